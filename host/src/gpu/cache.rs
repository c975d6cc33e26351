//! A paged cache in a GPU's memory.

use super::kernel::Kernel;
use super::memory::Checked;
use super::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu, StreamRef};
use crate::cache::{CacheFormat, CacheShape, HostCache, HostTables, KvCache, PageCopy, PageTables};
use crate::decode::{PagedKv, ViewPagedKv};
use crate::error::{Error, Result};
use int_flash_attention_driver::{DevicePtr, Driver, StreamHandle};
use int_flash_attention_kernels::params::{ConvertParams, Global};
use int_flash_attention_kernels::quantize::launch::{CONVERT, CONVERT_THREADS};

/// A cache that owns its memory.
pub type DeviceCache = KvCache<DeviceBuffer<u8>, DeviceBuffer<f32>>;
/// A cache to be read.
pub type ViewCache<'a> = KvCache<DeviceSlice<'a, u8>, DeviceSlice<'a, f32>>;
/// A cache to be written; of memory that something else owns, a pool [`from_raw`](DeviceSliceMut::from_raw).
pub type ViewMutCache<'a> = KvCache<DeviceSliceMut<'a, u8>, DeviceSlice<'a, f32>>;

/// Block tables and lengths that own their memory.
pub type DeviceTables = PageTables<DeviceBuffer<u32>>;
/// Block tables and lengths to be read.
pub type ViewTables<'a> = PageTables<DeviceSlice<'a, u32>>;

impl DeviceCache {
    /// An empty cache.
    ///
    /// # Errors
    /// Wrong sizes, or what the driver says.
    pub fn alloc(gpu: &Gpu, shape: CacheShape) -> Result<Self> {
        shape.check()?;
        Ok(Self { shape, format: CacheFormat::CURRENT, pool: gpu.alloc(shape.bytes())?, k_offset: None })
    }

    /// To be read.
    #[must_use]
    pub fn view(&self) -> ViewCache<'_> {
        KvCache {
            shape: self.shape,
            format: self.format,
            pool: self.pool.slice(),
            k_offset: self.k_offset.as_ref().map(DeviceBuffer::slice),
        }
    }

    /// To be written.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMutCache<'_> {
        KvCache {
            shape: self.shape,
            format: self.format,
            pool: self.pool.slice_mut(),
            k_offset: self.k_offset.as_ref().map(DeviceBuffer::slice),
        }
    }

    /// A copy in the host's memory, after everything that the GPU was given.
    ///
    /// # Errors
    /// What the driver says.
    pub fn to_host(&self) -> Result<HostCache> {
        Ok(KvCache {
            shape: self.shape,
            format: self.format,
            pool: self.pool.to_vec()?,
            k_offset: self.k_offset.as_ref().map(DeviceBuffer::to_vec).transpose()?,
        })
    }
}

impl HostCache {
    /// A copy in a GPU's memory.
    ///
    /// # Errors
    /// Arrays of wrong lengths, or what the driver says.
    pub fn to_device(&self, gpu: &Gpu) -> Result<DeviceCache> {
        self.check()?;
        Ok(KvCache {
            shape: self.shape,
            format: self.format,
            pool: gpu.upload(&self.pool)?,
            k_offset: self.k_offset.as_ref().map(|offset| gpu.upload(offset)).transpose()?,
        })
    }
}

impl ViewMutCache<'_> {
    /// To be read, after what was written.
    #[must_use]
    pub fn as_view(&self) -> ViewCache<'_> {
        KvCache { shape: self.shape, format: self.format, pool: self.pool.as_slice(), k_offset: self.k_offset }
    }
}

impl<'a> ViewCache<'a> {
    /// The sequences that tables make of it, for [`DecodePlan`](super::DecodePlan).
    #[must_use]
    pub fn sequences(&self, tables: &ViewTables<'a>) -> ViewPagedKv<'a> {
        PagedKv {
            pages: self.pool,
            v4_pages: self.shape.v4_pages,
            block_table: tables.block_table,
            table_stride: tables.max_blocks,
            seqlens_kv: tables.seqlens_kv,
        }
    }
}

impl DeviceTables {
    /// To be read.
    #[must_use]
    pub fn view(&self) -> ViewTables<'_> {
        PageTables {
            batch: self.batch,
            max_blocks: self.max_blocks,
            block_table: self.block_table.slice(),
            seqlens_kv: self.seqlens_kv.slice(),
        }
    }
}

impl HostTables {
    /// A copy in a GPU's memory.
    ///
    /// # Errors
    /// As [`check`](Self::check), or what the driver says.
    pub fn to_device(&self, gpu: &Gpu, shape: &CacheShape) -> Result<DeviceTables> {
        self.check(shape)?;
        Ok(PageTables {
            batch: self.batch,
            max_blocks: self.max_blocks,
            block_table: gpu.upload(&self.block_table)?,
            seqlens_kv: gpu.upload(&self.seqlens_kv)?,
        })
    }
}

impl Gpu {
    /// Copies pages, the pairs `(from, to)` one after the other, in the stream's order: no waiting, capturable. From a page with V in 8 bits to one with
    /// 4, V is rounded; back to one with 8, nothing is lost any more. (The kernel that does so has been loaded by the plan of an append to such a cache.)
    ///
    /// # Errors
    /// Sizes that no cache has; a page that is not of the pool, and nothing is copied then; a wrong pool; no kernel that fits this GPU; the driver's.
    pub fn copy_pages<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        cache: &mut ViewMutCache<'_>,
        pairs: &[(u32, u32)],
    ) -> Result<()> {
        let launch = self.launching(stream.into())?;
        cache.shape.check()?;
        cache.shape.check_pages("a copy of pages", pairs.iter().flat_map(|&(from, to)| [from, to]))?;
        let pool = cache.pool.checked(&launch, "the pool", cache.shape.bytes())?;
        let driver = self.bind()?;
        for step in cache.shape.page_copies(pairs) {
            match step {
                PageCopy::Bytes(from, to) => {
                    let at = |byte: usize| pool + byte as u64;
                    // SAFETY: both are pages of the pool, which has been checked.
                    unsafe { driver.copy_on_device_async(at(to), at(from.start), from.len(), launch.stream()) }?;
                }
                PageCopy::Converted(params, count) => {
                    let kernel = self.convert_kernel((count * cache.shape.heads_kv) as u32)?;
                    // SAFETY: the parameter of `convert_pages`, of pages of the pool, and its grid.
                    unsafe { launch.kernel_with(&kernel, &ConvertParams { pool: Global::new(pool), ..params }) }?;
                }
            }
        }
        Ok(())
    }

    /// What converts pages between those with V in 8 bits and in 4.
    pub(super) fn convert_kernel(&self, ctas: u32) -> Result<Kernel> {
        self.kernel(CONVERT.module, CONVERT.entry, [ctas, 1, 1], CONVERT_THREADS, 0)
    }

    /// Copies pages to the host, one behind the other into `bytes`, in the stream's order, and waits for the stream.
    ///
    /// # Errors
    /// As [`copy_pages`](Self::copy_pages); `bytes` of another length; a stream that is being recorded.
    pub fn pages_to_host<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        cache: &ViewCache<'_>,
        pages: &[u32],
        bytes: &mut [u8],
    ) -> Result<()> {
        let to = bytes.as_mut_ptr();
        let copy = |driver: Driver, stream, first: usize, page: DevicePtr, len: usize| {
            // SAFETY: a page of the pool, and its part of the host's slice, which is borrowed until the stream has been waited for.
            unsafe { driver.copy_to_host_async(to.wrapping_add(first).cast(), page, len, stream) }
        };
        self.swap(stream.into(), cache, pages, bytes.len(), copy)
    }

    /// Copies pages from the host, which lie one behind the other in `bytes`, in the stream's order, and waits for the stream.
    ///
    /// # Errors
    /// As [`pages_to_host`](Self::pages_to_host).
    pub fn pages_from_host<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        cache: &mut ViewMutCache<'_>,
        pages: &[u32],
        bytes: &[u8],
    ) -> Result<()> {
        let from = bytes.as_ptr();
        let copy = |driver: Driver, stream, first: usize, page: DevicePtr, len: usize| {
            // SAFETY: a page of the pool, and its part of the host's slice, which is borrowed until the stream has been waited for.
            unsafe { driver.copy_to_device_async(page, from.wrapping_add(first).cast(), len, stream) }
        };
        self.swap(stream.into(), &cache.as_view(), pages, bytes.len(), copy)
    }

    /// Calls `copy` for each page, with the bytes of those before it, its address and its length.
    fn swap(
        &self,
        stream: StreamRef<'_>,
        cache: &ViewCache<'_>,
        pages: &[u32],
        given: usize,
        copy: impl Fn(Driver, StreamHandle, usize, DevicePtr, usize) -> int_flash_attention_driver::Result<()>,
    ) -> Result<()> {
        let launch = self.launching(stream)?;
        let stream = launch.not_recorded("a copy of pages from or to the host")?;
        cache.shape.check()?;
        cache.shape.check_pages("a copy of pages", pages.iter().copied())?;
        let pool = cache.pool.checked(&launch, "the pool", cache.shape.bytes())?;
        let expected = cache.shape.bytes_of(pages);
        if given != expected {
            return Err(Error::Length { name: "the pages in the host's memory", given, expected });
        }
        self.0.context.on_stream(stream, |driver, stream| {
            let mut at = 0;
            pages.iter().try_for_each(|&page| {
                let from = cache.shape.page_range(page);
                let first = at;
                at += from.len();
                copy(driver, stream, first, pool + from.start as u64, from.len())
            })
        })
    }
}
