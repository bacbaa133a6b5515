//! A tensor on a device: dtype, shape, row-major elements.
//!
//! On the CPU the elements are either owned (aligned to a cache line) or shared with whoever mapped the
//! model file, so weights are used where they lie. Activations are f32 tensors whose rows may be fewer
//! in use than allocated: every op takes the number of rows `n` it works on. On a GPU the elements are device memory,
//! which ops name by address; activations there are bf16.

use std::fmt;
use std::sync::Arc;

use super::cpu::dot::{B16, H16};
use super::cpu::lanes::f16_to_f32;
use super::cuda::{Address, Buffer};
use super::device::Device;
use super::host::Lines;
use crate::error::{Error, Fault, Result};
use crate::tensor::{Dtype, Shape};

/// Bytes owned by somebody else, kept alive by the tensor.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

enum Storage {
    Owned(Lines),
    Shared(Lent),
    Device(Buffer),
}

/// What an owner of bytes lent, asked for once: whoever is asked twice may answer otherwise.
struct Lent {
    at: *const u8,
    len: usize,
    /// keeps them
    _owner: SharedBytes,
}

// SAFETY: bytes that nobody writes, and an owner that may be shared and dropped anywhere.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    fn of(owner: SharedBytes) -> Lent {
        let bytes = (*owner).as_ref();
        Lent { at: bytes.as_ptr(), len: bytes.len(), _owner: owner }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: they were borrowed from the owner, which neither moves nor goes while this holds it; so the borrow
        // could have lasted until now.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

/// A tensor.
pub struct Tensor {
    dtype: Dtype,
    shape: Shape,
    storage: Storage,
}

/// A tensor's elements by stored type.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bf16 bits.
    Bf16(&'a [B16]),
    /// f16 bits.
    F16(&'a [H16]),
}

fn shape_of(extents: &[usize]) -> Result<Shape> {
    Shape::new(extents).ok_or_else(|| Error::new(Fault::BadLength, format!("extents {extents:?} overflow")))
}

impl Tensor {
    /// A tensor of zeros. Fails with `OutOfHostMemory`, never aborts.
    pub fn zeros(dtype: Dtype, extents: &[usize]) -> Result<Tensor> {
        let shape = shape_of(extents)?;
        let len = shape.elements().checked_mul(dtype.size()).filter(|&n| n <= isize::MAX as usize - 64);
        let len = len.ok_or_else(|| Error::new(Fault::BadLength, format!("{shape} of {dtype} overflows")))?;
        let lines = Lines::zeros(len, format_args!("{dtype} {shape}"))?;
        Ok(Tensor { dtype, shape, storage: Storage::Owned(lines) })
    }

    /// A tensor where the device computes: zeros on the CPU, undefined on a GPU.
    pub fn on(device: &Device, dtype: Dtype, extents: &[usize]) -> Result<Tensor> {
        match device {
            Device::Cpu(_) => Tensor::zeros(dtype, extents),
            Device::Cuda(cuda) => {
                let shape = shape_of(extents)?;
                let len = shape.elements().checked_mul(dtype.size());
                let len = len.ok_or_else(|| Error::new(Fault::BadLength, format!("{shape} of {dtype} overflows")))?;
                Ok(Tensor { dtype, shape, storage: Storage::Device(cuda.allocate(len)?) })
            }
        }
    }

    /// Whether all elements are numbers, none NaN or infinite; in host memory.
    pub fn is_finite(&self) -> bool {
        // Without a way out of the loops they run many elements at a time.
        match self.elements() {
            Elements::F32(x) => x.iter().fold(true, |all, x| all & x.is_finite()),
            Elements::Bf16(x) => x.iter().fold(true, |all, x| all & (x.0 & 0x7f80 != 0x7f80)),
            Elements::F16(x) => x.iter().fold(true, |all, x| all & (x.0 & 0x7c00 != 0x7c00)),
        }
    }

    /// A tensor over device memory that holds its elements.
    pub fn over(dtype: Dtype, shape: Shape, buffer: Buffer) -> Tensor {
        assert_eq!(buffer.len(), shape.elements() * dtype.size(), "{dtype} {shape} over {buffer:?}");
        Tensor { dtype, shape, storage: Storage::Device(buffer) }
    }

    /// Fills a bf16 tensor on a GPU with the elements of one in host memory, rounded where it holds more. Waits.
    pub fn upload_as_bf16(&self, from: &Tensor) -> Result<()> {
        assert!(self.dtype == Dtype::Bf16 && self.shape == from.shape, "{from:?} is uploaded to {self:?}");
        if from.dtype == Dtype::Bf16 {
            return self.buffer().write(from.bytes());
        }
        self.buffer().write_by(|at, piece| from.round_into(at / 2, piece))
    }

    /// A copy where `device` computes. Waits.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        let mut copy = Tensor::on(device, self.dtype, self.shape.extents())?;
        match &mut copy.storage {
            Storage::Device(buffer) => buffer.write(self.bytes())?,
            _ => copy.bytes_mut().copy_from_slice(self.bytes()),
        }
        Ok(copy)
    }

    /// A copy in host memory, after all that was launched.
    pub fn to_host(&self) -> Result<Tensor> {
        let mut copy = Tensor::zeros(self.dtype, self.shape.extents())?;
        match &self.storage {
            Storage::Device(buffer) => buffer.read_into(copy.bytes_mut())?,
            _ => copy.bytes_mut().copy_from_slice(self.bytes()),
        }
        Ok(copy)
    }

    /// Copies everything from a tensor of the same dtype and shape on the same device. On a GPU in order with launches.
    pub fn copy_from(&mut self, other: &Tensor) {
        assert!(self.dtype == other.dtype && self.shape == other.shape, "{other:?} is copied to {self:?}");
        match (&mut self.storage, &other.storage) {
            (Storage::Device(to), Storage::Device(from)) => {
                let device = to.device();
                // SAFETY: both are live buffers of the same length.
                device.keep(unsafe { device.api().copy(to.address(), from.address(), to.len()) });
            }
            _ => self.bytes_mut().copy_from_slice(other.bytes()),
        }
    }

    /// Whether it lies in a GPU's memory.
    pub fn is_on_gpu(&self) -> bool {
        matches!(self.storage, Storage::Device(_))
    }

    /// Where it lies on its GPU.
    pub fn address(&self) -> Address {
        self.buffer().address()
    }

    /// Where its bf16 elements lie on their GPU: what kernels take of weights and activations.
    pub fn bf16_address(&self) -> Address {
        assert_eq!(self.dtype, Dtype::Bf16, "kernels take bf16");
        self.address()
    }

    /// Its device memory.
    pub fn buffer(&self) -> &Buffer {
        match &self.storage {
            Storage::Device(buffer) => buffer,
            _ => panic!("a tensor on a GPU is wanted, {self:?} lies in host memory"),
        }
    }

    /// Bytes that it took of the memory it lies in; none where the bytes are somebody else's.
    pub fn taken(&self) -> u64 {
        match &self.storage {
            Storage::Owned(lines) => Lines::taken(lines.len()) as u64,
            Storage::Shared(_) => 0,
            Storage::Device(buffer) => buffer.taken(),
        }
    }

    /// Bytes of its elements.
    pub fn n_bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    /// An f32 tensor with the given elements.
    pub fn from_f32(extents: &[usize], elements: &[f32]) -> Result<Tensor> {
        let mut t = Tensor::zeros(Dtype::F32, extents)?;
        if t.shape.elements() != elements.len() {
            return Err(Error::new(Fault::BadLength, format!("{} elements for shape {}", elements.len(), t.shape)));
        }
        t.f32_mut().copy_from_slice(elements);
        Ok(t)
    }

    /// A tensor over bytes that live elsewhere (a mapped file); copied only if misaligned.
    pub fn from_shared(dtype: Dtype, shape: Shape, bytes: SharedBytes) -> Result<Tensor> {
        let lent = Lent::of(bytes);
        let given = lent.bytes();
        let wanted = shape.elements().checked_mul(dtype.size());
        if wanted != Some(given.len()) {
            return Err(Error::new(Fault::BadLength, format!("{} bytes for {dtype} {shape}", given.len())));
        }
        if given.as_ptr().align_offset(dtype.size()) != 0 {
            let mut t = Tensor::zeros(dtype, shape.extents())?;
            t.bytes_mut().copy_from_slice(given);
            return Ok(t);
        }
        Ok(Tensor { dtype, shape, storage: Storage::Shared(lent) })
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Extent `i`.
    pub fn extent(&self, i: usize) -> usize {
        self.shape.extents()[i]
    }

    /// The raw bytes of a tensor in host memory.
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned(lines) => lines.bytes(),
            Storage::Shared(lent) => lent.bytes(),
            Storage::Device(_) => panic!("{self:?} lies on a GPU"),
        }
    }

    /// The raw bytes, to be written. Panics on a shared tensor: weights of a revision never change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.storage {
            Storage::Owned(lines) => lines.bytes_mut(),
            Storage::Shared(_) => panic!("a shared tensor is immutable"),
            Storage::Device(_) => panic!("the tensor lies on a GPU"),
        }
    }

    /// The elements by type.
    pub fn elements(&self) -> Elements<'_> {
        let bytes = self.bytes();
        let n = bytes.len() / self.dtype.size();
        // SAFETY: the start is aligned for the dtype (checked or allocated so), the length is `n` elements,
        // and any bit pattern is an element.
        unsafe {
            match self.dtype {
                Dtype::F32 => Elements::F32(std::slice::from_raw_parts(bytes.as_ptr().cast(), n)),
                Dtype::Bf16 => Elements::Bf16(std::slice::from_raw_parts(bytes.as_ptr().cast(), n)),
                Dtype::F16 => Elements::F16(std::slice::from_raw_parts(bytes.as_ptr().cast(), n)),
            }
        }
    }

    /// The elements of an f32 tensor.
    pub fn f32(&self) -> &[f32] {
        match self.elements() {
            Elements::F32(x) => x,
            _ => panic!("an f32 tensor is wanted, this one is {}", self.dtype),
        }
    }

    /// The elements of an owned f32 tensor, to be written.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, Dtype::F32, "an f32 tensor is wanted");
        let bytes = self.bytes_mut();
        // SAFETY: owned buffers are aligned to 64 bytes, and any bit pattern is an f32.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 4) }
    }

    /// The elements of an owned 16-bit tensor, to be written.
    pub fn u16_mut(&mut self) -> &mut [u16] {
        assert_ne!(self.dtype, Dtype::F32, "a 16-bit tensor is wanted");
        let bytes = self.bytes_mut();
        // SAFETY: owned buffers are aligned to 64 bytes, and any bit pattern is a u16.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 2) }
    }

    /// All elements widened to f32: for few, since the list is asked for without asking whether there is room.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.shape.elements()];
        self.widen_into(&mut all);
        all
    }

    /// Writes all elements, widened to f32, to a list of as many.
    pub fn widen_into(&self, to: &mut [f32]) {
        assert_eq!(to.len(), self.shape.elements(), "{self:?} is widened into {} elements", to.len());
        match self.elements() {
            Elements::F32(x) => to.copy_from_slice(x),
            Elements::Bf16(x) => to.iter_mut().zip(x).for_each(|(to, b)| *to = f32::from_bits((b.0 as u32) << 16)),
            Elements::F16(x) => to.iter_mut().zip(x).for_each(|(to, h)| *to = f16_to_f32(h.0)),
        }
    }

    /// Writes the elements from `first` on as bf16, as many as the bytes take.
    fn round_into(&self, first: usize, bytes: &mut [u8]) {
        let put = |(to, x): (&mut [u8], f32)| to.copy_from_slice(&half::bf16::from_f32(x).to_bits().to_ne_bytes());
        let to = bytes.chunks_exact_mut(2);
        match self.elements() {
            Elements::F32(x) => to.zip(x[first..].iter().copied()).for_each(put),
            Elements::Bf16(x) => to.zip(&x[first..]).for_each(|(to, b)| to.copy_from_slice(&b.0.to_ne_bytes())),
            Elements::F16(x) => to.zip(x[first..].iter().map(|h| f16_to_f32(h.0))).for_each(put),
        }
    }

    /// The rows that an activation tensor has when `n` were asked for.
    pub fn rows_reserved(n: usize) -> usize {
        n.next_multiple_of(16)
    }

    /// Makes sure that an activation tensor [rows, ...] has at least `n` rows; contents are lost when it grows.
    pub fn reserve_rows(&mut self, n: usize) -> Result<()> {
        if self.extent(0) < n {
            let mut extents = self.shape.extents().to_vec();
            extents[0] = Tensor::rows_reserved(n);
            *self = match &self.storage {
                Storage::Device(buffer) => Tensor::on(&Device::Cuda(buffer.device().clone()), self.dtype, &extents)?,
                _ => Tensor::zeros(self.dtype, &extents)?,
            };
        }
        Ok(())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn misaligned_shared_bytes_are_copied() {
        let backing: Vec<u8> = (0..64).collect();
        struct Window(Vec<u8>, usize);
        impl AsRef<[u8]> for Window {
            fn as_ref(&self) -> &[u8] {
                &self.0[self.1..self.1 + 16]
            }
        }
        let shape = Shape::new(&[4]).unwrap();
        for start in 0..5 {
            let t = Tensor::from_shared(Dtype::F32, shape, Arc::new(Window(backing.clone(), start))).unwrap();
            assert_eq!(t.bytes(), &backing[start..start + 16]);
            assert_eq!(t.f32().len(), 4);
        }
    }

    #[test]
    fn an_owner_of_bytes_is_asked_once_and_cannot_answer_otherwise_later() {
        struct Fickle(AtomicUsize, [u64; 2]);
        impl AsRef<[u8]> for Fickle {
            fn as_ref(&self) -> &[u8] {
                // SAFETY: sixteen bytes.
                let all = unsafe { std::slice::from_raw_parts(self.1.as_ptr().cast::<u8>(), 16) };
                match self.0.fetch_add(1, Ordering::Relaxed) {
                    0 => all,
                    _ => &all[1..3],
                }
            }
        }
        let owner = Arc::new(Fickle(AtomicUsize::new(0), [0x4000_0000_3f80_0000; 2]));
        let t = Tensor::from_shared(Dtype::F32, Shape::new(&[4]).unwrap(), owner.clone()).unwrap();
        for _ in 0..3 {
            assert_eq!((t.bytes().len(), t.f32()), (16, &[1.0, 2.0, 1.0, 2.0][..]));
        }
        assert_eq!(owner.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_impossible_allocation_is_an_error() {
        let e = Tensor::zeros(Dtype::F32, &[usize::MAX / 8, 1]).unwrap_err();
        assert!(matches!(e.fault(), Fault::OutOfHostMemory | Fault::BadLength));
        assert!(Tensor::zeros(Dtype::F32, &[usize::MAX, 2]).is_err());
    }
}
