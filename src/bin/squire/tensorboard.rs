//! The figures of a run as TensorBoard reads them: a file of events, one scalar each.
//!
//! Written by hand: `tboard` 0.1.1 (January 2024) brings prost and its build step with protoc, anyhow with backtraces and
//! hostname; `tensorboard-rs` 0.5.9 (March 2022) an image library and protobuf 2. What is needed of the format is below.
//!
//! A file is records (TFRecord): length as u64, the masked CRC-32C of these eight bytes, the bytes, their masked CRC-32C; all
//! little-endian. masked(c) = (c rotated right by 15) + 0xa282ead8. The bytes are a protobuf `Event`: 1 wall_time (double),
//! 2 step (int64), 3 file_version (string), 5 summary, which has 1 value: 1 tag (string), 2 simple_value (float). The first
//! record has file_version "brain.Event:2".
#![forbid(unsafe_code)]

use crate::run_folder::{History, Report, Step, Update};

/// The file's name: the same for a run whenever it is written, so that a later one takes its place.
pub fn file_name(history: &History) -> String {
    let name: String = history.run.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    format!("events.out.tfevents.{:010}.{name}", history.times.0.clamp(0.0, 1e10) as u64)
}

/// The whole file.
pub fn events(history: &History) -> Vec<u8> {
    let mut file = Vec::new();
    record(&mut file, &[double(1, history.times.0), bytes(3, b"brain.Event:2")].concat());
    for (at, step) in &history.steps {
        let mut scalar = |tag: &str, value: Option<f64>, time: f64| {
            let Some(value) = value else { return };
            let value = [bytes(1, tag.as_bytes()), float(2, value as f32)].concat();
            record(&mut file, &[double(1, time), whole(2, *at), bytes(5, &bytes(1, &value))].concat());
        };
        for (name, played) in [("train", &step.training), ("evaluation", &step.evaluation)] {
            scalar(&format!("{name}/success"), played.success(), played.time);
            scalar(&format!("{name}/return"), played.mean_return(), played.time);
        }
        let Some(update) = &step.update else { continue };
        for (tag, of) in OF_UPDATES {
            scalar(tag, of(step, update), step.time);
        }
        for (tag, of) in OF_REPORTS {
            scalar(tag, of(&update.report), step.time);
        }
        for (name, value) in &update.schedules {
            scalar(&format!("schedule/{name}"), *value, step.time);
        }
    }
    file
}

type OfUpdate = fn(&Step, &Update) -> Option<f64>;
const OF_UPDATES: [(&str, OfUpdate); 3] = [
    ("update_kl", |step, _| step.update_kl()),
    ("learning_rate", |_, update| update.learning_rate),
    ("seconds/apply", |step, _| step.applied.as_ref()?.seconds),
];

type OfReport = fn(&Report) -> Option<f64>;
const OF_REPORTS: [(&str, OfReport); 22] = [
    ("loss", |r| r.loss),
    ("divergence/reverse_kl", |r| r.reverse_kl),
    ("divergence/forward_kl", |r| r.forward_kl),
    ("divergence/jsd", |r| r.jsd),
    ("divergence/cross_entropy", |r| r.cross_entropy),
    ("divergence/sampled_reverse_kl", |r| r.sampled_reverse_kl),
    ("divergence/k2", |r| r.k2),
    ("divergence/weighted_k3", |r| r.weighted_k3),
    ("tokens/student", |r| r.student_tokens),
    ("tokens/teacher", |r| r.teacher_tokens),
    ("tokens/replay", |r| r.replay_tokens),
    ("turns/student", |r| r.student_turns),
    ("turns/teacher", |r| r.teacher_turns),
    ("turns/replay", |r| r.replay_turns),
    ("gradient_norm", |r| r.gradient_norm),
    ("entropy/student", |r| r.entropy),
    ("entropy/teacher", |r| r.teacher_entropy),
    ("response_length", |r| r.response_length),
    ("lag/mean", |r| r.lag?.mean),
    ("lag/largest", |r| r.lag?.largest),
    ("seconds/build", |r| r.seconds),
    ("seconds/teacher", |r| r.teacher_seconds),
];

/// Adds a record to the file.
fn record(file: &mut Vec<u8>, content: &[u8]) {
    let length = (content.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked(crc32c(&length)).to_le_bytes());
    file.extend(content);
    file.extend(masked(crc32c(content)).to_le_bytes());
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli): the reflected polynomial 0x82f63b78, ones before and inverted after.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A field's key: its number and how it is written (0 varint, 1 eight bytes, 2 a length and bytes, 5 four bytes).
fn field(number: u8, wire: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | wire], content].concat()
}

fn double(number: u8, value: f64) -> Vec<u8> {
    field(number, 1, &value.to_le_bytes())
}

fn float(number: u8, value: f32) -> Vec<u8> {
    field(number, 5, &value.to_le_bytes())
}

fn whole(number: u8, value: u64) -> Vec<u8> {
    field(number, 0, &varint(value))
}

fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    field(number, 2, &[&varint(content.len() as u64), content].concat())
}

/// Seven bits a byte, the lowest first, the eighth bit where more follow.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn numbers_are_written_in_groups_of_seven_bits() {
        assert_eq!((varint(0), varint(300)), (vec![0], vec![0xac, 0x02]));
        assert_eq!(bytes(5, b"ab"), [0x2a, 2, b'a', b'b']);
    }
}
