//! The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes.
//!
//! Reading maps the file and trusts no byte of it: each lie that a header can tell has a fault of its
//! own. The header is walked here rather than by the `safetensors` crate because the crate folds
//! repeated names and reports most lies alike; its dtype table and its header writer are used. The
//! format: <https://github.com/huggingface/safetensors>.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::mmap::Bytes;
use super::{durable, not_a_model};
use crate::error::{Error, Fault, Result, brief};
use crate::memory;
use crate::tensor::{Dtype, Shape};

/// The longest header read, in bytes; the limit of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor as it lies in a file: row-major, little-endian, not necessarily aligned.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Shape,
    /// `shape.elements() * dtype.size()` bytes.
    pub bytes: Bytes,
}

/// One tensor's entry in the header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header as it is written, repetitions included.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Maps a file and lists its tensors in the order of their bytes.
///
/// Errors: `MissingFile`, `CannotOpen`, `CannotMap`, `NotTheContent` for a file that is something else, one of the
/// `Safetensors…` faults, or `UnsupportedDtype` for a dtype that the format knows and squire does not compute with.
pub fn read(path: &Path) -> Result<Vec<(String, StoredTensor)>> {
    let file = Bytes::map(path)?;
    // Looked at only once the parse has failed: eight bytes of a length could be the beginning of anything.
    parse(&file).map_err(|e| match not_a_model::content_of(path) {
        Some(what) => Error::new(Fault::NotTheContent, format!("{}: {what}", path.display())),
        None => e.within(path.display()),
    })
}

/// Lists the tensors of a file's bytes; what [`read`] does after mapping.
pub fn parse(file: &Bytes) -> Result<Vec<(String, StoredTensor)>> {
    let bytes = file.as_slice();
    let short = |what: String| Error::new(Fault::SafetensorsHeaderLength, what);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(short(format!(
            "the file has {} bytes, too few for a header length; download it again",
            bytes.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(short(format!(
            "the header claims {length} bytes, more than the {MAX_HEADER} allowed; it is no safetensors file"
        )));
    }
    if length > rest.len() as u64 {
        return Err(short(format!(
            "the header claims {length} bytes, but {} follow; the file is cut short, download it again",
            rest.len()
        )));
    }
    let (header, data) = rest.split_at(length as usize);
    let data_start = bytes.len() - data.len();

    let broken = |why: &dyn fmt::Display| {
        Error::new(Fault::SafetensorsHeader, format!("header: {why}; the file is broken, download it again"))
    };
    if header.first() != Some(&b'{') {
        return Err(broken(&"it does not begin with '{'"));
    }
    memory::room_for(memory::json_bytes(header.len(), memory::json_values(header)), "the header of a weight file")?;
    let Header(mut entries) = serde_json::from_slice(header).map_err(|e| broken(&e))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);

    let mut tensors: Vec<(String, StoredTensor)> = Vec::with_capacity(entries.len());
    let mut seen = HashSet::with_capacity(entries.len());
    let mut end_of_last = 0;
    for (name, entry) in entries {
        if !seen.insert(name.clone()) {
            return Err(Error::new(
                Fault::SafetensorsDuplicate,
                format!("tensor {}: the name occurs twice; save the file again", brief(&name)),
            ));
        }
        let tensor = place(&entry, file, data_start).map_err(|e| e.within(format!("tensor {}", brief(&name))))?;
        let begin = entry.data_offsets.0;
        if begin != end_of_last {
            let what = if begin < end_of_last { "overlaps the tensor before it" } else { "leaves a hole before it" };
            let why = format!(
                "tensor {}: it begins at {begin} where {end_of_last} was due, so it {what}; save the file again",
                brief(&name)
            );
            return Err(Error::new(Fault::SafetensorsOverlap, why));
        }
        end_of_last = entry.data_offsets.1;
        tensors.push((name, tensor));
    }
    if end_of_last != data.len() as u64 {
        let why = format!(
            "the tensors end at {end_of_last}, but the file has {} bytes of data; download it again",
            data.len()
        );
        return Err(Error::new(Fault::SafetensorsOverlap, why));
    }
    Ok(tensors)
}

/// Checks one entry against the file and cuts its window.
fn place(entry: &Entry, file: &Bytes, data_start: usize) -> Result<StoredTensor> {
    let dtype = match entry.dtype.as_str() {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        other => {
            let known = safetensors::Dtype::deserialize(serde_json::Value::from(other)).is_ok();
            let (fault, why) = match known {
                true => (
                    Fault::UnsupportedDtype,
                    "is not computed with; wanted F32, F16 or BF16: give the folder of the model that is not quantised, \
                     or save it with torch_dtype=bfloat16",
                ),
                false => (Fault::SafetensorsDtype, "is not known; save the file again"),
            };
            return Err(Error::new(fault, format!("dtype {other:?} {why}")));
        }
    };
    let (begin, end) = entry.data_offsets;
    let data_bytes = (file.len() - data_start) as u64;
    if begin > end || end > data_bytes {
        let why = format!(
            "offsets {begin}..{end} do not lie in the {data_bytes} bytes of data; the file is cut short, download it again"
        );
        return Err(Error::new(Fault::SafetensorsOffsets, why));
    }
    let shape = || -> Option<Shape> {
        let extents: Vec<usize> = entry.shape.iter().map(|&e| usize::try_from(e).ok()).collect::<Option<_>>()?;
        Shape::new(&extents)
    };
    let shape = shape().ok_or_else(|| {
        let why = format!(
            "shape {:?} has more than three extents or too many elements; it is no tensor of a Qwen3",
            entry.shape
        );
        Error::new(Fault::SafetensorsShape, why)
    })?;
    if shape.elements().checked_mul(dtype.size()).map(|n| n as u64) != Some(end - begin) {
        let why =
            format!("shape {shape} of {dtype} does not fill its {} bytes exactly; save the file again", end - begin);
        return Err(Error::new(Fault::SafetensorsShape, why));
    }
    // `end` is at most the file's length, checked above, so neither sum nor cast can overflow.
    let bytes = file.slice(data_start + begin as usize..data_start + end as usize);
    let bytes = bytes.ok_or_else(|| Error::new(Fault::SafetensorsOffsets, "the window does not lie in the file"))?;
    Ok(StoredTensor { dtype, shape, bytes })
}

/// A tensor to be written: name, dtype, shape, and its row-major little-endian bytes.
pub type TensorToWrite<'a> = (&'a str, Dtype, Shape, &'a [u8]);

/// Writes a file that [`read`] and the reference implementation read, durably (see [`durable`]). The
/// bytes depend on nothing but the tensors: they are ordered by dtype, then by name, as the reference
/// orders them, and the metadata is `{"format": "pt"}`.
///
/// Errors: `SafetensorsDuplicate`; `SafetensorsShape` where bytes and shape disagree; `CannotWrite`.
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = TensorToWrite<'a>>) -> Result<()> {
    let stored = |dtype| match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    };
    let mut tensors: Vec<TensorToWrite> = tensors.into_iter().collect();
    tensors.sort_by(|a, b| stored(b.1).cmp(&stored(a.1)).then(a.0.cmp(b.0)));
    let mut seen = HashSet::with_capacity(tensors.len());
    let mut entries = Vec::with_capacity(tensors.len());
    let mut offset = 0usize;
    for &(name, dtype, shape, bytes) in &tensors {
        if !seen.insert(name) || name == "__metadata__" {
            let why = format!("{}: tensor {name}: the name is taken", path.display());
            return Err(Error::new(Fault::SafetensorsDuplicate, why));
        }
        let fits = shape.elements().checked_mul(dtype.size()) == Some(bytes.len());
        let end = offset.checked_add(bytes.len()).filter(|_| fits).ok_or_else(|| {
            let found = bytes.len();
            let why = format!("{}: tensor {name}: {found} bytes for shape {shape} of {dtype}", path.display());
            Error::new(Fault::SafetensorsShape, why)
        })?;
        let shape = shape.extents().to_vec();
        entries.push((name.to_string(), TensorInfo { dtype: stored(dtype), shape, data_offsets: (offset, end) }));
        offset = end;
    }
    let cannot = |why: &dyn fmt::Display| Error::new(Fault::CannotWrite, format!("{}: header: {why}", path.display()));
    let metadata = [("format".to_string(), "pt".to_string())].into();
    let metadata = Metadata::new(Some(metadata), entries).map_err(|e| cannot(&e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| cannot(&e))?;
    header.resize(header.len().next_multiple_of(8), b' '); // so that the first tensor is aligned
    durable::write_file(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, _, _, bytes)| file.write_all(bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_bytes_do_not_depend_on_the_order_given() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let shape = |e: &[usize]| Shape::new(e).unwrap();
        let one = ("one", Dtype::Bf16, shape(&[3, 1]), &[1u8, 2, 3, 4, 5, 6][..]);
        let two = ("two", Dtype::F32, shape(&[1]), &[7u8, 8, 9, 10][..]);
        let none = ("none", Dtype::F32, shape(&[0, 5]), &[][..]);
        write(&a, [one, two, none]).unwrap();
        write(&b, [none, two, one]).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        let tensors: BTreeMap<_, _> = read(&a).unwrap().into_iter().collect();
        assert_eq!(tensors.len(), 3);
        for (name, dtype, shape, bytes) in [one, two, none] {
            let t = &tensors[name];
            assert_eq!((t.dtype, t.shape, t.bytes.as_slice()), (dtype, shape, bytes));
        }
        // The reference implementation agrees.
        let file = std::fs::read(&a).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(reference.tensor("one").unwrap().data(), one.3);
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }

    #[test]
    fn a_name_given_twice_or_bytes_that_do_not_fit_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let shape = Shape::new(&[1]).unwrap();
        let t = ("t", Dtype::F32, shape, &[0u8; 4][..]);
        assert_eq!(write(&path, [t, t]).unwrap_err().fault(), Fault::SafetensorsDuplicate);
        let short = ("t", Dtype::F32, shape, &[0u8; 3][..]);
        assert_eq!(write(&path, [short]).unwrap_err().fault(), Fault::SafetensorsShape);
        assert!(!path.exists());
    }
}
