//! A config.json from outside: read, and if it is accepted, everything that is computed from it before weights are there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use squire::backend::cpu::Cpu;
use squire::backend::{Compute, Device};
use squire::model::{Model, ModelConfig};

fuzz_target!(|data: &[u8]| {
    let Ok(document) = serde_json::from_slice(data) else { return };
    let mut warnings = Vec::new();
    let config = match ModelConfig::read(&document, &mut warnings) {
        Ok(config) => config,
        Err(e) => return assert!(e.message().len() < 2000, "a message of {} bytes", e.message().len()),
    };
    let again = ModelConfig::read(&config.to_json(), &mut Vec::new()).expect("what squire writes it reads");
    assert_eq!(again.to_json(), config.to_json());
    let device = Device::Cpu(Cpu::new(1, None).expect("one thread"));
    let context = config.max_position.min(64);
    let _ = Model::new(config, device, Compute::Bf16, context);
});
