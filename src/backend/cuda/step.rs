//! What a forward pass must know of its rows, laid out in device memory: one upload a step.
