//! The byte alphabet of byte-level BPE (GPT-2, Radford et al. 2019): every byte has one printable
//! character, so that a vocabulary can be written as text.
#![forbid(unsafe_code)]

/// The character that stands for a byte: itself where it is printable and not a space in Latin-1, else
/// the next free one from U+0100 on.
pub(super) fn char_of(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        char::from(byte)
    } else {
        let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
        // At most 68 bytes are not printable, so the sum stays in Latin Extended-A.
        char::from_u32(0x100 + rank).expect("a code point of Latin Extended-A")
    }
}

/// The way back, as a table over the first 512 code points.
pub(super) fn bytes_by_char() -> [Option<u8>; 512] {
    let mut table = [None; 512];
    for byte in 0..=255u8 {
        table[char_of(byte) as usize] = Some(byte);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_printable_character() {
        let table = bytes_by_char();
        assert!((0..=255u8).all(|b| table[char_of(b) as usize] == Some(b)));
        assert_eq!(table.iter().flatten().count(), 256);
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(b'a'), char_of(0xad)), ('Ġ', 'Ċ', 'a', 'Ń'));
    }
}
