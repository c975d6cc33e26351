//! Candle's memory and streams, by address. All are of the primary context of a GPU, which is the only one that `CudaDevice` is made with, and
//! `Gpu::new` takes the same.

use crate::FlashAttn;
use crate::call::{NAME, float};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
};
use candle_core::{CudaStorage, DType as Type, Layout, Result, Storage, StorageRef, Tensor, bail};
use half::{bf16, f16};
use int_flash_attention::{AnySlice, AnySliceMut, DeviceSlice, DeviceSliceMut, ScoreViews, StreamRef};

/// The stream, as the library takes it.
pub fn stream_ref(stream: &CudaStream) -> StreamRef<'_> {
    // SAFETY: borrowed as long.
    unsafe { StreamRef::from_raw(stream.cu_stream().cast()) }
}

/// A tensor of which nobody else can take the storage away.
pub struct Held<'t> {
    name: &'static str,
    storage: StorageRef<'t>,
    layout: &'t Layout,
}

impl<'t> Held<'t> {
    pub fn of(name: &'static str, tensor: &'t Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { name, storage, layout }
    }

    pub fn read<'a>(&'a self, stream: &'a CudaStream) -> Result<Read<'a>> {
        let Storage::Cuda(storage) = &*self.storage else {
            bail!("{NAME}: {} is on the CPU, the others on a GPU: `to_device` brings it there", self.name)
        };
        Read::of(self.name, storage, self.layout, stream)
    }
}

/// A tensor's memory from its first element on, to be read. What the stream is given while this lives comes after what other streams have written, and
/// those that write later come after it.
pub struct Read<'a> {
    address: u64,
    bytes: usize,
    dtype: Type,
    _order: SyncOnDrop<'a>,
}

/// The address of all of a storage, and its elements.
fn all<'a, T: CudaDType + DeviceRepr + 'a>(
    storage: &'a CudaStorage,
    stream: &'a CudaStream,
) -> Result<(u64, usize, SyncOnDrop<'a>)> {
    let slice = storage.as_cuda_slice::<T>()?;
    let (address, order) = slice.device_ptr(stream);
    Ok((address, slice.len(), order))
}

macro_rules! views {
    ($($name:ident: $element:ty),*) => {
        $(
            pub fn $name(&self) -> DeviceSlice<'_, $element> {
                // SAFETY: as many as there are bytes for, of candle's memory, borrowed as long, which candle frees in the order of the streams.
                unsafe { DeviceSlice::from_raw(self.address, self.bytes / size_of::<$element>()) }
            }
        )*
    };
}

impl<'a> Read<'a> {
    pub fn of(name: &str, storage: &'a CudaStorage, layout: &Layout, stream: &'a CudaStream) -> Result<Self> {
        if storage.device().cuda_stream().context().cu_ctx() != stream.context().cu_ctx() {
            bail!("{NAME}: {name} is on another GPU than the others: `to_device` brings it there")
        }
        let dtype = storage.dtype();
        let (address, elements, order) = match dtype {
            Type::F16 => all::<f16>(storage, stream)?,
            Type::BF16 => all::<bf16>(storage, stream)?,
            Type::F32 => all::<f32>(storage, stream)?,
            Type::U8 => all::<u8>(storage, stream)?,
            Type::U32 => all::<u32>(storage, stream)?,
            Type::I64 => all::<i64>(storage, stream)?,
            other => bail!("{NAME}: {name} holds {other:?}, which is not taken"),
        };
        let (first, size) = (layout.start_offset(), dtype.size_in_bytes());
        let bytes = elements.saturating_sub(first) * size;
        Ok(Self { address: address + (first * size) as u64, bytes, dtype, _order: order })
    }

    /// All of a slice of bytes or floats.
    pub fn of_slice<T: DeviceRepr>(slice: &'a CudaSlice<T>, stream: &'a CudaStream) -> Self {
        let (address, order) = slice.device_ptr(stream);
        Self { address, bytes: slice.len() * size_of::<T>(), dtype: Type::U8, _order: order }
    }

    views!(bytes: u8, f32s: f32, u32s: u32, i64s: i64);

    pub fn floats(&self) -> Result<AnySlice<'_>> {
        Ok(AnySlice::from_bytes(self.bytes(), float(self.dtype)?))
    }
}

/// A slice of bytes or floats, to be written; the order of streams as with [`Read`].
pub struct Write<'a> {
    address: u64,
    bytes: usize,
    _order: SyncOnDrop<'a>,
}

impl<'a> Write<'a> {
    pub fn of<T: DeviceRepr>(slice: &'a mut CudaSlice<T>, stream: &'a CudaStream) -> Self {
        let bytes = slice.len() * size_of::<T>();
        let (address, order) = slice.device_ptr_mut(stream);
        Self { address, bytes, _order: order }
    }

    /// All of a storage of floats.
    pub fn of_floats(storage: &'a mut CudaStorage, stream: &'a CudaStream) -> Result<Self> {
        Ok(match storage.dtype() {
            Type::F16 => Self::of(storage.as_cuda_slice_mut::<f16>()?, stream),
            Type::BF16 => Self::of(storage.as_cuda_slice_mut::<bf16>()?, stream),
            _ => Self::of(storage.as_cuda_slice_mut::<f32>()?, stream),
        })
    }

    pub fn bytes(&mut self) -> DeviceSliceMut<'_, u8> {
        // SAFETY: candle's memory with its own length, borrowed as long, which candle frees in the order of the streams.
        unsafe { DeviceSliceMut::from_raw(self.address, self.bytes) }
    }

    pub fn floats(&mut self, dtype: Type) -> Result<AnySliceMut<'_>> {
        Ok(AnySliceMut::from_bytes(self.bytes(), float(dtype)?))
    }

    /// The first so many bytes, a multiple of four, and the floats behind them.
    pub fn parts(&mut self, first: usize) -> (DeviceSliceMut<'_, u8>, DeviceSliceMut<'_, f32>) {
        let first = first.min(self.bytes);
        let floats = (self.bytes - first) / size_of::<f32>();
        // SAFETY: as in `bytes`; the two do not overlap.
        unsafe {
            (
                DeviceSliceMut::from_raw(self.address, first),
                DeviceSliceMut::from_raw(self.address + first as u64, floats),
            )
        }
    }
}

/// The tensors that change scores.
pub struct HeldScores<'t>([Option<Held<'t>>; 4]);

/// The same, to be read.
pub struct ReadScores<'a>([Option<Read<'a>>; 4]);

impl<'t> HeldScores<'t> {
    pub fn of(options: &'t FlashAttn) -> Self {
        let FlashAttn { alibi_slopes, sinks, bias, mask, .. } = options;
        let held = |name, tensor: &'t Option<Tensor>| tensor.as_ref().map(|tensor| Held::of(name, tensor));
        Self([held("alibi_slopes", alibi_slopes), held("bias", bias), held("mask", mask), held("sinks", sinks)])
    }

    pub fn read<'a>(&'a self, stream: &'a CudaStream) -> Result<ReadScores<'a>> {
        let mut read = [const { None }; 4];
        for (read, held) in read.iter_mut().zip(&self.0) {
            *read = held.as_ref().map(|held| held.read(stream)).transpose()?;
        }
        Ok(ReadScores(read))
    }
}

impl ReadScores<'_> {
    pub fn views(&self) -> Result<ScoreViews<'_>> {
        let [alibi_slopes, bias, mask, sinks] = &self.0;
        Ok(ScoreViews {
            alibi_slopes: alibi_slopes.as_ref().map(Read::f32s),
            bias: bias.as_ref().map(Read::floats).transpose()?,
            mask: mask.as_ref().map(Read::bytes),
            sinks: sinks.as_ref().map(Read::f32s),
        })
    }
}
