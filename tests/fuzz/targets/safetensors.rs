//! A weight file from outside: whatever is accepted is read to its last byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use squire::format::Bytes;
use squire::format::safetensors::parse;

fuzz_target!(|data: &[u8]| {
    match parse(&Bytes::from(data.to_vec())) {
        Err(e) => assert!(e.message().len() < 2000, "a message of {} bytes", e.message().len()),
        Ok(tensors) => {
            for (_, t) in tensors {
                assert_eq!(t.bytes.len(), t.shape.elements() * t.dtype.size());
                std::hint::black_box(t.bytes.as_slice().iter().fold(0u8, |sum, b| sum ^ b));
            }
        }
    }
});
