//! Every lie that a safetensors file can tell is refused by its own fault; one test a lie.

#[path = "support/weight_file.rs"]
mod weight_file;

use squire::error::Fault;
use squire::format::{Bytes, safetensors};
use weight_file::file;

fn lie(file: Vec<u8>) -> Fault {
    safetensors::parse(&Bytes::from(file)).expect_err("the lie was believed").fault()
}

fn header_lie(header: &str, data: usize) -> Fault {
    lie(file(header, data))
}

#[test]
fn safetensors_a_file_too_short_for_a_length() {
    for n in 0..8 {
        assert_eq!(lie(vec![0; n]), Fault::SafetensorsHeaderLength);
    }
}

#[test]
fn safetensors_a_header_longer_than_the_file() {
    let mut bytes = file("{}", 0);
    bytes[0] = 3;
    assert_eq!(lie(bytes), Fault::SafetensorsHeaderLength);
}

#[test]
fn safetensors_an_absurd_header_length() {
    for length in [u64::MAX, i64::MAX as u64, 100_000_001] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        assert_eq!(lie(bytes), Fault::SafetensorsHeaderLength);
    }
}

#[test]
fn safetensors_a_header_that_is_not_json_of_the_form() {
    let t = |entry: &str| format!(r#"{{"t": {entry}}}"#);
    let headers = [
        "".to_string(),
        "[]".into(),
        " {}".into(),
        "{".into(),
        "{} x".into(),
        "{\"\u{fffd}".into(),
        t("1"),
        t(r#"{"dtype": "F32", "shape": [1]}"#),
        t(r#"{"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}"#),
        t(r#"{"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}"#),
        t(r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 18446744073709551616]}"#),
        t(r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}"#),
        t(r#"{"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}"#),
        t(r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}"#),
        r#"{"__metadata__": {"format": 1}}"#.into(),
        t(&"[".repeat(100_000)),
    ];
    for header in headers {
        assert_eq!(header_lie(&header, 4), Fault::SafetensorsHeader, "{:.80}", header);
    }
    let mut not_utf8 = file(r#"{"t"}"#, 0);
    not_utf8[10] = 0xff;
    assert_eq!(lie(not_utf8), Fault::SafetensorsHeader);
}

#[test]
fn safetensors_offsets_outside_the_file() {
    for end in ["8", "18446744073709551615"] {
        let header = format!(r#"{{"t": {{"dtype": "F32", "shape": [2], "data_offsets": [0, {end}]}}}}"#);
        assert_eq!(header_lie(&header, 4), Fault::SafetensorsOffsets);
    }
}

#[test]
fn safetensors_offsets_that_run_backwards() {
    let header = r#"{"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#;
    assert_eq!(header_lie(header, 4), Fault::SafetensorsOffsets);
}

#[test]
fn safetensors_tensors_that_overlap() {
    let header = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                     "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#;
    assert_eq!(header_lie(header, 12), Fault::SafetensorsOverlap);
}

#[test]
fn safetensors_a_hole_before_between_or_behind_the_tensors() {
    let t = |name: &str, from: usize| {
        format!(r#""{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [{from}, {}]}}"#, from + 4)
    };
    assert_eq!(header_lie(&format!("{{{}}}", t("a", 4)), 8), Fault::SafetensorsOverlap);
    assert_eq!(header_lie(&format!("{{{}, {}}}", t("a", 0), t("b", 8)), 12), Fault::SafetensorsOverlap);
    assert_eq!(header_lie(&format!("{{{}}}", t("a", 0)), 5), Fault::SafetensorsOverlap);
}

#[test]
fn safetensors_a_shape_that_overflows() {
    for shape in ["[4294967296, 4294967296]", "[18446744073709551615]", "[9223372036854775807, 2, 0]", "[1, 1, 1, 1]"] {
        let header = format!(r#"{{"t": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 4]}}}}"#);
        assert_eq!(header_lie(&header, 4), Fault::SafetensorsShape, "{shape}");
    }
}

#[test]
fn safetensors_a_shape_that_does_not_match_the_bytes() {
    for (dtype, shape) in [("F32", "[2]"), ("F32", "[0]"), ("BF16", "[1]"), ("F16", "[3]"), ("F32", "[2, 2]")] {
        let header = format!(r#"{{"t": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [0, 4]}}}}"#);
        assert_eq!(header_lie(&header, 4), Fault::SafetensorsShape, "{dtype} {shape}");
    }
}

#[test]
fn safetensors_a_dtype_that_is_not_known() {
    let header = r#"{"t": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}"#;
    assert_eq!(header_lie(header, 4), Fault::SafetensorsDtype);
}

#[test]
fn safetensors_a_dtype_that_is_not_computed_with() {
    for dtype in ["I64", "F64", "F8_E4M3", "BOOL", "I8", "U8"] {
        let header = format!(r#"{{"the.name": {{"dtype": "{dtype}", "shape": [1], "data_offsets": [0, 4]}}}}"#);
        let e = safetensors::parse(&Bytes::from(file(&header, 4))).unwrap_err();
        assert_eq!(e.fault(), Fault::UnsupportedDtype);
        assert!(e.message().contains("the.name") && e.message().contains(dtype), "{e}");
    }
}

#[test]
fn safetensors_a_name_that_occurs_twice() {
    let header = r#"{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                     "t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
    assert_eq!(header_lie(header, 8), Fault::SafetensorsDuplicate);
}

#[test]
fn safetensors_any_change_of_a_byte_is_read_or_refused() {
    let header = r#"{"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [], "data_offsets": [4, 8]}}"#;
    let good = file(header, 8);
    assert_eq!(safetensors::parse(&Bytes::from(good.clone())).unwrap().len(), 2);
    for at in 0..good.len() {
        for change in [0, 1, b'0', b'9', b'"', b'-', b'[', 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = change;
            let _ = safetensors::parse(&Bytes::from(bytes)); // neither panic nor endless allocation
        }
        let _ = safetensors::parse(&Bytes::from(good[..at].to_vec()));
    }
}
