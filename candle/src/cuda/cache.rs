//! A cache in a GPU's memory.

use super::memory::{Held, HeldScores, Read, Write, stream_ref};
use crate::cache::{AppendCall, AttendCall, Attended, Step};
use crate::call::{NAME, refused};
use crate::plans::{Engine, GatheredKey, StepKey, StepPlans};
use crate::{PackedQueries, PagedTables};
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType as Type, Device, Error, Result, Storage, Tensor, bail};
use int_flash_attention::{
    AnySliceMut, AppendProblem, Appended, CacheFormat, CacheShape, DeviceSlice, KvCache, NewTokens, PageTables, Slots,
    ViewCache, ViewMutCache, ViewTables,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// A layer's pages, in candle's memory.
#[derive(Debug)]
pub struct Pool {
    device: CudaDevice,
    shape: CacheShape,
    pages: CudaSlice<u8>,
    k_offset: Option<Offset>,
    scratch: Arc<Mutex<Scratch>>,
}

/// What is taken out of every token of K.
#[derive(Debug)]
struct Offset {
    /// `[heads_kv][head_dim]`.
    one: CudaSlice<f32>,
    /// The same for each sequence of a step.
    repeated: Mutex<Grown<f32>>,
}

/// What attention on pages has for itself. It grows to what the largest one needed, and then nothing is allocated any more.
#[derive(Debug, Default)]
struct Scratch {
    /// Whose launches use it: a stream, and a thread, since candle's streams are a thread's own.
    user: Option<(usize, ThreadId)>,
    /// Quantized queries, and what the kernels leave to each other.
    memory: Grown<u8>,
    /// What is taken out of the keys of a cache without an offset.
    zeros: Grown<f32>,
}

/// Slices of which the last is the largest. Those before are kept: a CUDA graph may have recorded them.
#[derive(Debug)]
struct Grown<T>(Vec<CudaSlice<T>>);

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: DeviceRepr + ValidAsZeroBits> Grown<T> {
    /// At least so many elements; new ones are zero, and `fill` is given them.
    fn at_least(
        &mut self,
        device: &CudaDevice,
        len: usize,
        fill: impl FnOnce(&mut CudaSlice<T>) -> Result<()>,
    ) -> Result<&mut CudaSlice<T>> {
        let most = self.0.last().map_or(0, CudaSlice::len);
        if most < len {
            // Twice as many as before, so that what is kept is no more than what is used.
            let mut new = device.alloc_zeros(len.max(2 * most))?;
            fill(&mut new)?;
            self.0.push(new);
        }
        match self.0.last_mut() {
            Some(last) => Ok(last),
            None => bail!("{NAME}: attention that needs no memory"),
        }
    }
}

impl Scratch {
    /// For the launches of this thread on a stream. Another user's have to end first: nothing else orders the two.
    fn lock<'a>(shared: &'a Mutex<Self>, stream: &CudaStream) -> Result<MutexGuard<'a, Self>> {
        let (mut scratch, user) = (lock(shared), (stream.cu_stream() as usize, thread::current().id()));
        if scratch.user.is_some_and(|last| last != user) {
            stream.context().synchronize().map_err(Error::wrap)?;
        }
        scratch.user = Some(user);
        Ok(scratch)
    }
}

impl Offset {
    fn repeat(&self, device: &CudaDevice, all: &mut CudaSlice<f32>) -> Result<()> {
        let len = self.one.len();
        for sequence in 0..all.len() / len {
            device.memcpy_dtod(&self.one, &mut all.slice_mut(sequence * len..(sequence + 1) * len))?;
        }
        Ok(())
    }
}

impl Pool {
    pub fn layers(layers: usize, shape: CacheShape, device: &CudaDevice) -> Result<Vec<Self>> {
        let scratch = Arc::<Mutex<Scratch>>::default();
        let of_layer = |_| {
            Ok(Self {
                device: device.clone(),
                shape,
                pages: device.alloc_zeros(shape.bytes())?,
                k_offset: None,
                scratch: scratch.clone(),
            })
        };
        (0..layers).map(of_layer).collect()
    }

    fn engine(&self) -> Result<Arc<Engine>> {
        Engine::of_process(self.device.cuda_stream().context().ordinal()).map_err(refused)
    }

    /// Takes this out of every token of K from now on: `(heads_kv, head_dim)` of f32, contiguous.
    pub fn set_k_offset(&mut self, offset: &Tensor) -> Result<()> {
        self.device_of("the offset of K", offset)?;
        let (storage, layout) = offset.storage_and_layout();
        let (Storage::Cuda(storage), Some((from, to))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("{NAME}: the offset of K is not contiguous on a GPU")
        };
        let mut one = self.device.alloc_zeros(to - from)?;
        self.device.memcpy_dtod(&storage.as_cuda_slice::<f32>()?.slice(from..to), &mut one)?;
        self.k_offset = Some(Offset { one, repeated: Mutex::default() });
        Ok(())
    }

    /// The device of a step's tensor, whose stream the step is on: one of the cache's GPU.
    fn device_of<'t>(&self, name: &str, tensor: &'t Tensor) -> Result<&'t CudaDevice> {
        let Device::Cuda(device) = tensor.device() else {
            bail!("{NAME}: {name} is on the CPU, the cache on a GPU: `to_device` brings it there")
        };
        if device.cuda_stream().context().cu_ctx() != self.device.cuda_stream().context().cu_ctx() {
            bail!("{NAME}: {name} is on another GPU than the cache: `to_device` brings it there")
        }
        Ok(device)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An offset, to be read.
fn read_offset<'a>(offset: &'a Option<Offset>, stream: &'a CudaStream) -> Option<Read<'a>> {
    offset.as_ref().map(|offset| Read::of_slice(&offset.one, stream))
}

/// Pages as the cache that they are.
fn cache<'a, P>(shape: CacheShape, pool: P, k_offset: Option<&'a Read<'_>>) -> KvCache<P, DeviceSlice<'a, f32>> {
    KvCache { shape, format: CacheFormat::CURRENT, pool, k_offset: k_offset.map(Read::f32s) }
}

/// The slots as the type that they are of.
fn slots<'a>(slots: &'a Read<'_>, dtype: Type) -> Slots<'a> {
    if dtype == Type::I64 { Slots::I64(slots.i64s()) } else { Slots::U32(slots.u32s()) }
}

fn append_problem(shape: CacheShape, call: &AppendCall) -> AppendProblem {
    AppendProblem {
        cache: shape,
        heads_q: call.q.map_or(0, |q| q.shape().heads),
        max_tokens: call.tokens,
        dtype: call.dtype,
    }
}

pub fn append(pool: &mut Pool, call: &AppendCall, [k, v]: [&Tensor; 2], slot_mapping: &Tensor) -> Result<()> {
    let stream = &*pool.device_of("k", k)?.cuda_stream();
    let plan = pool.engine()?.append(&append_problem(pool.shape, call)).map_err(refused)?;
    let (k, v, held) = (Held::of("k", k), Held::of("v", v), Held::of("slot_mapping", slot_mapping));
    let (k, v, read) = (k.read(stream)?, v.read(stream)?, held.read(stream)?);
    let new = Appended {
        q: None,
        k: NewTokens { data: k.floats()?, layout: call.layouts[0] },
        v: NewTokens { data: v.floats()?, layout: call.layouts[1] },
        slots: slots(&read, slot_mapping.dtype()),
    };
    let (mut pages, offset) = (Write::of(&mut pool.pages, stream), read_offset(&pool.k_offset, stream));
    let mut cache = cache(pool.shape, pages.bytes(), offset.as_ref());
    plan.launch(stream_ref(stream), &new, &mut cache, None).map_err(refused)
}

/// Block tables, lengths and offsets of packed queries whose storage nobody can take away.
struct HeldTables<'t> {
    tables: [Held<'t>; 2],
    seqlens_q: Option<Held<'t>>,
}

/// The same, to be read.
struct ReadTables<'a> {
    batch: usize,
    stride: usize,
    block_tables: Read<'a>,
    context_lens: Read<'a>,
    seqlens_q: Option<Read<'a>>,
}

impl<'t> HeldTables<'t> {
    fn of(tables: &'t PagedTables, packed: Option<&'t PackedQueries>) -> Self {
        let PagedTables { block_tables, context_lens } = tables;
        Self {
            tables: [Held::of("block_tables", block_tables), Held::of("context_lens", context_lens)],
            seqlens_q: packed.map(|packed| Held::of("seqlens_q", &packed.seqlens_q)),
        }
    }

    fn read<'a>(&'a self, tables: &PagedTables, call: &AttendCall, stream: &'a CudaStream) -> Result<ReadTables<'a>> {
        let [block_tables, context_lens] = &self.tables;
        Ok(ReadTables {
            batch: tables.context_lens.elem_count(),
            stride: call.table_stride,
            block_tables: block_tables.read(stream)?,
            context_lens: context_lens.read(stream)?,
            seqlens_q: self.seqlens_q.as_ref().map(|held| held.read(stream)).transpose()?,
        })
    }
}

impl ReadTables<'_> {
    fn views(&self) -> ViewTables<'_> {
        let (block_table, seqlens_kv) = (self.block_tables.u32s(), self.context_lens.u32s());
        PageTables { batch: self.batch, max_blocks: self.stride, block_table, seqlens_kv }
    }

    fn seqlens_q(&self) -> Option<DeviceSlice<'_, u32>> {
        self.seqlens_q.as_ref().map(Read::u32s)
    }
}

/// An output in the shape of `q`, which `launch` is given to write.
fn output(
    q: &Tensor,
    device: &CudaDevice,
    stream: &CudaStream,
    launch: impl FnOnce(AnySliceMut<'_>) -> Result<()>,
) -> Result<Tensor> {
    // SAFETY: the kernels write all of it before anything reads it, but for rows that belong to no sequence, which have no meaning
    // (`KvCache::attend_varlen`).
    let mut o = unsafe { device.alloc_uninit(q.shape(), q.dtype())? };
    launch(Write::of_floats(&mut o, stream)?.floats(q.dtype())?)?;
    Ok(Tensor::from_storage(Storage::Cuda(o), q.shape(), BackpropOp::none(), false))
}

pub fn attend(pool: &Pool, q: &Tensor, step: &Step<'_>) -> Result<Tensor> {
    let Step { call, packed, tables, attention } = step;
    let device = pool.device_of("q", q)?;
    let stream = &*device.cuda_stream();
    let (engine, at) = (pool.engine()?, stream_ref(stream));
    let (held_tables, scores, held) = (HeldTables::of(tables, *packed), HeldScores::of(attention), Held::of("q", q));
    let (tables, scores) = (held_tables.read(tables, call, stream)?, scores.read(stream)?);
    let read = held.read(stream)?;
    let (pages, offset) = (Read::of_slice(&pool.pages, stream), read_offset(&pool.k_offset, stream));
    let cache: &ViewCache<'_> = &cache(pool.shape, pages.bytes(), offset.as_ref());
    output(q, device, stream, |o| match call.attended {
        Attended::Pages(on) => {
            let plans = engine.step(&StepKey { on, q: call.q, dtype: call.dtype }).map_err(refused)?;
            let Scratch { memory, zeros, .. } = &mut *Scratch::lock(&pool.scratch, stream)?;
            let (mut repeated, len) =
                (pool.k_offset.as_ref().map(|offset| lock(&offset.repeated)), plans.offsets_len());
            let offsets = match (&pool.k_offset, &mut repeated) {
                (Some(offset), Some(all)) => all.at_least(device, len, |new| offset.repeat(device, new))?,
                _ => zeros.at_least(device, len, |_| Ok(()))?,
            };
            let offsets = Read::of_slice(offsets, stream);
            let mut memory = Write::of(memory.at_least(device, step_bytes(&plans), |_| Ok(()))?, stream);
            let (of_q, workspace) = memory.parts(plans.q_bytes());
            let q = plans.quantize(at, read.floats()?, offsets.f32s(), of_q).map_err(refused)?;
            let (queries, pages) = ((q.as_view(), tables.seqlens_q()), (cache, &tables.views()));
            plans.attend(at, queries, pages, &scores.views()?, workspace, o).map_err(refused)
        }
        Attended::Gathered(gather, problem) => {
            let key = GatheredKey { gather, problem, q: call.q, dtype: call.dtype };
            let plans = engine.gathered(&key).map_err(refused)?;
            // SAFETY: the kernels write it before anything reads it. It goes back to candle's pool in the order of the stream.
            let mut operands = unsafe { device.alloc::<u8>(plans.bytes())? };
            let mut operands = Write::of(&mut operands, stream);
            let (q, pages, memory) = (read.floats()?, (cache, &tables.views()), operands.bytes());
            plans.launch(at, q, pages, &scores.views()?, memory, o).map_err(refused)
        }
    })
}

/// An append that quantizes the queries of an attention on pages as well, and that attention.
pub fn append_and_attend(
    pool: &mut Pool,
    new: &AppendCall,
    [q, k, v]: [&Tensor; 3],
    slot_mapping: &Tensor,
    step: &Step<'_>,
) -> Result<Tensor> {
    let Step { call, packed, tables, attention } = step;
    let (Attended::Pages(on), Some(new_q)) = (call.attended, new.q) else {
        bail!("{NAME}: an attention that does not read pages was to be joined with an append")
    };
    let device = pool.device_of("q", q)?;
    let stream = &*device.cuda_stream();
    let (engine, at) = (pool.engine()?, stream_ref(stream));
    let plans = engine.step(&StepKey { on, q: call.q, dtype: call.dtype }).map_err(refused)?;
    let append = engine.append(&append_problem(pool.shape, new)).map_err(refused)?;
    let (held_tables, scores) = (HeldTables::of(tables, *packed), HeldScores::of(attention));
    let held =
        [("q", q), ("k", k), ("v", v), ("slot_mapping", slot_mapping)].map(|(name, tensor)| Held::of(name, tensor));
    let (tables, scores) = (held_tables.read(tables, call, stream)?, scores.read(stream)?);
    let [of_q, of_k, of_v, of_slots] = held.each_ref().map(|held| held.read(stream));
    let (of_q, of_k, of_v, of_slots) = (of_q?, of_k?, of_v?, of_slots?);
    let appended = Appended {
        q: Some(NewTokens { data: of_q.floats()?, layout: new_q }),
        k: NewTokens { data: of_k.floats()?, layout: new.layouts[0] },
        v: NewTokens { data: of_v.floats()?, layout: new.layouts[1] },
        slots: slots(&of_slots, slot_mapping.dtype()),
    };
    let Pool { shape, pages, k_offset, scratch, .. } = pool;
    let mut scratch = Scratch::lock(scratch, stream)?;
    let (mut pages, offset) = (Write::of(pages, stream), read_offset(k_offset, stream));
    let mut memory = Write::of(scratch.memory.at_least(device, step_bytes(&plans), |_| Ok(()))?, stream);
    let mut cache: ViewMutCache<'_> = cache(*shape, pages.bytes(), offset.as_ref());
    output(q, device, stream, |o| {
        let (of_q, workspace) = memory.parts(plans.q_bytes());
        let mut q = plans.queries(of_q).map_err(refused)?;
        append.launch(at, &appended, &mut cache, Some(&mut q)).map_err(refused)?;
        let (queries, pages) = ((q.as_view(), tables.seqlens_q()), (&cache.as_view(), &tables.views()));
        plans.attend(at, queries, pages, &scores.views()?, workspace, o).map_err(refused)
    })
}

/// Quantized queries, and the workspace behind them.
fn step_bytes(plans: &StepPlans) -> usize {
    plans.q_bytes() + plans.workspace_len() * size_of::<f32>()
}

pub fn copy_pages(pool: &mut Pool, pairs: &[(u32, u32)]) -> Result<()> {
    let (stream, engine) = (&*pool.device.cuda_stream(), pool.engine()?);
    let mut pages = Write::of(&mut pool.pages, stream);
    engine.gpu().copy_pages(stream_ref(stream), &mut cache(pool.shape, pages.bytes(), None), pairs).map_err(refused)
}

pub fn read_pages(pool: &Pool, pages: &[u32]) -> Result<Vec<u8>> {
    let (stream, engine) = (&*pool.device.cuda_stream(), pool.engine()?);
    let mut bytes = vec![0; pool.shape.bytes_of(pages)];
    let from = Read::of_slice(&pool.pages, stream);
    let from = cache(pool.shape, from.bytes(), None);
    engine.gpu().pages_to_host(stream_ref(stream), &from, pages, &mut bytes).map_err(refused)?;
    Ok(bytes)
}

pub fn write_pages(pool: &mut Pool, pages: &[u32], bytes: &[u8]) -> Result<()> {
    let (stream, engine) = (&*pool.device.cuda_stream(), pool.engine()?);
    let mut to = Write::of(&mut pool.pages, stream);
    engine
        .gpu()
        .pages_from_host(stream_ref(stream), &mut cache(pool.shape, to.bytes(), None), pages, bytes)
        .map_err(refused)
}
