//! Sizes of paged caches, and decode and prefill on pages of any bytes, beside a model of what is taken.

use crate::is_sentence;
use arbitrary::{Arbitrary, Result, Unstructured};
use int_flash_attention::{
    CacheFormat, CacheShape, DType, DecodeHeads, DecodeProblem, HostCache, HostPagedKv, HostQ, HostTensor, PagedKv,
    PrefillProblem, Scheme, Shape, Split, TensorLayout, Window, reference,
};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_kernels::layout::page::{MAX_PAGES, V4_HEAD_DIMS, page_head_bytes};

const PAGE: usize = CacheShape::PAGE_TOKENS;

/// Sizes are taken where the model takes them, and then their pages follow one another; attention on pages of any bytes, through tables that are anything,
/// gives a result of the right shape or a sentence.
pub fn cache(bytes: &[u8]) {
    // Too few bytes say nothing.
    let u = &mut Unstructured::new(bytes);
    let _ = sizes(u).and_then(|()| attention(u));
}

/// Mostly small, sometimes any.
fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=15_u8)? {
        0 => usize::arbitrary(u)?,
        1 => 1 << u.int_in_range(0..=63_u32)?,
        _ => u.int_in_range(0..=9)?,
    })
}

fn head_dim(u: &mut Unstructured<'_>) -> Result<usize> {
    if u.ratio(7, 8)? { Ok(*u.choose(&CACHE_HEAD_DIMS)?) } else { size(u) }
}

/// What docs say of sizes, in numbers that do not overflow.
fn allowed(CacheShape { pages, v4_pages, heads_kv, head_dim }: &CacheShape) -> bool {
    let known = CACHE_HEAD_DIMS.contains(head_dim);
    let bytes = |pages: usize| if known { (pages * heads_kv) as u128 * page_head_bytes(*head_dim) as u128 } else { 0 };
    known
        && (1..=MAX_PAGES).contains(pages)
        && (1..1 << 24).contains(heads_kv)
        && v4_pages <= pages
        && (*v4_pages == 0 || V4_HEAD_DIMS.contains(head_dim))
        && bytes(*pages) <= i64::MAX as u128
}

/// Of public fields, so that nobody may have checked them.
fn sizes(u: &mut Unstructured<'_>) -> Result<()> {
    let version = u32::arbitrary(u)? % 8;
    assert_eq!(CacheFormat::from_version(version).is_ok(), (1..=2).contains(&version));
    let shape = CacheShape { pages: size(u)?, v4_pages: size(u)?, heads_kv: size(u)?, head_dim: head_dim(u)? };
    let page = u32::arbitrary(u)? >> u.int_in_range(0..=31_u32)?;
    let (bytes, slots) = (shape.bytes(), shape.slots());
    let range = shape.page_range(page);
    assert!(range.start <= range.end && (range.is_empty() || range.len() <= shape.page_bytes()));
    let made =
        CacheShape::new(shape.pages, shape.heads_kv, shape.head_dim).and_then(|s| s.with_v4_pages(shape.v4_pages));
    let cache = HostCache { shape, format: CacheFormat::CURRENT, pool: Vec::new(), k_offset: None };
    let error = cache.check().expect_err("no pool");
    is_sentence(&error.to_string());
    match made {
        Ok(made) => {
            assert!(allowed(&shape), "{shape:?} was taken");
            assert_eq!((made, made.v8_pages() + made.v4_pages, slots), (shape, shape.pages, shape.pages * PAGE));
            let first = shape.page_range(0);
            let last = shape.page_range(shape.pages as u32 - 1);
            assert_eq!((first.start, last.end), (0, bytes));
            if (page as usize) < shape.pages && page > 0 {
                assert_eq!(shape.page_range(page - 1).end, range.start, "{shape:?}, page {page}");
                let of_page = if shape.is_v4(page) { shape.v4_page_bytes() } else { shape.page_bytes() };
                assert_eq!([range.len(), shape.bytes_of(&[page])], [of_page; 2]);
            }
        }
        Err(error) => {
            is_sentence(&error.to_string());
            assert!(!allowed(&shape), "{shape:?}: {error}");
        }
    }
    Ok(())
}

/// A cache of few pages whose bytes nobody has looked at, and tables of which some are right.
struct Cache {
    shape: CacheShape,
    pool: Vec<u8>,
    batch: usize,
    block_table: Vec<u32>,
    table_stride: usize,
    seqlens_kv: Vec<u32>,
}

impl Cache {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let head_dim = *u.choose(&[32, 64, 128])?;
        let pages = u.int_in_range(1..=3)?;
        let v4_pages = if u.ratio(1, 3)? { u.int_in_range(0..=pages)? } else { 0 };
        let v4_pages = if V4_HEAD_DIMS.contains(&head_dim) { v4_pages } else { 0 };
        let shape = CacheShape::new(pages, u.int_in_range(1..=2)?, head_dim).and_then(|s| s.with_v4_pages(v4_pages));
        let shape = shape.expect("a small cache");
        let few = u.bytes(13)?;
        let off = if u.ratio(1, 16)? { u.int_in_range(0..=2)? } else { 1 };
        let zeros = bool::arbitrary(u)?;
        let byte = |at: usize| if zeros && !at.is_multiple_of(7) { 0 } else { few[(at * 5 + at / 64) % few.len()] };
        let pool = (0..shape.bytes() + off - 1).map(byte).collect();
        let batch = u.int_in_range(1..=3)?;
        let table_stride = if u.ratio(1, 16)? { size(u)? } else { u.int_in_range(2..=3)? };
        let (mut block_table, mut seqlens_kv) = (Vec::new(), Vec::new());
        for _ in 0..batch * table_stride.min(4) {
            block_table.push(if u.ratio(1, 8)? { u32::arbitrary(u)? } else { u.int_in_range(0..=pages as u32 - 1)? });
        }
        for _ in 0..batch {
            seqlens_kv.push(if u.ratio(1, 8)? { u32::arbitrary(u)? } else { u.int_in_range(0..=300)? });
        }
        match u.int_in_range(0..=31_u8)? {
            0 => drop(block_table.pop()),
            1 => drop(seqlens_kv.pop()),
            _ => {}
        }
        Ok(Self { shape, pool, batch, block_table, table_stride, seqlens_kv })
    }

    fn view(&self, v4_pages: usize) -> HostPagedKv<'_> {
        PagedKv {
            pages: &self.pool,
            v4_pages,
            block_table: &self.block_table,
            table_stride: self.table_stride,
            seqlens_kv: &self.seqlens_kv,
        }
    }

    /// Whether arrays are as long as they have to be for sequences of so many keys.
    fn has_room(&self, longest: usize) -> bool {
        let blocks = longest.div_ceil(PAGE);
        let entries = (self.batch as u128 - 1) * self.table_stride as u128 + blocks as u128;
        self.pool.len() == self.shape.bytes()
            && (blocks..=u32::MAX as usize).contains(&self.table_stride)
            && self.block_table.len() as u128 >= entries
            && self.seqlens_kv.len() >= self.batch
    }
}

/// Queries of the default scheme, or now and then of the other, which caches do not have.
fn queries(u: &mut Unstructured<'_>, shape: Shape) -> Result<HostQ> {
    let mut few = [0.0; 5];
    for value in &mut few {
        *value = if u.ratio(1, 8)? { f32::arbitrary(u)? } else { f32::from(i16::arbitrary(u)?) / 256.0 };
    }
    let at = |b, h, n, d| few[(b * 3 + h * 7 + n * 11 + d) % 5];
    let q = HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), at).expect("a small tensor");
    let scheme = if u.ratio(1, 16)? { Scheme::Paper } else { Scheme::Default };
    // In the default scheme with the share of K's offset, which is of nothing.
    let offset = vec![0.0; shape.batch * shape.head_dim];
    let offset = (scheme == Scheme::Default).then_some(offset.as_slice());
    let mut q = reference::quantize_q(scheme, &q, offset).expect("a small tensor");
    // Whatever the values were, these are operands.
    q.scale.iter_mut().filter(|scale| !scale.is_finite()).for_each(|scale| *scale = 1.0);
    Ok(q)
}

fn attention(u: &mut Unstructured<'_>) -> Result<()> {
    let cache = Cache::any(u)?;
    let heads_q = cache.shape.heads_kv * u.int_in_range(1..=3)?;
    let longest = if u.ratio(1, 8)? { size(u)? } else { u.int_in_range(1..=300)? };
    let mut side = || if bool::arbitrary(u)? { Ok(None) } else { size(u).map(Some) };
    let window = Window { left: side()?, right: side()? };
    if bool::arbitrary(u)? {
        decode(u, &cache, heads_q, longest, window)
    } else {
        prefill(u, &cache, heads_q, longest, window)
    }
}

fn decode(u: &mut Unstructured<'_>, cache: &Cache, heads_q: usize, longest: usize, window: Window) -> Result<()> {
    let CacheShape { heads_kv, head_dim, v4_pages, .. } = cache.shape;
    let mut problem = DecodeProblem::new(cache.batch, heads_q, heads_kv, longest, head_dim);
    problem.seqlen_q = if u.ratio(1, 16)? { size(u)? } else { u.int_in_range(1..=3)? };
    problem.window = window;
    problem.v4_pages = v4_pages;
    problem.softcap = match u.int_in_range(0..=7_u8)? {
        0 => Some(f32::arbitrary(u)?),
        1 => Some(f32::from(u16::arbitrary(u)?) / 256.0),
        _ => None,
    };
    problem.softmax_scale = if u.ratio(1, 8)? { Some(f32::arbitrary(u)?) } else { None };
    problem.split = if u.ratio(1, 4)? { Split::Fixed(64 * u.int_in_range(0..=5)?) } else { Split::Even };
    let numbers = |u: &mut Unstructured<'_>| -> Result<Option<Vec<f32>>> {
        Ok(if u.ratio(1, 4)? { Some((0..heads_q).map(|_| f32::arbitrary(u)).collect::<Result<_>>()?) } else { None })
    };
    let (slopes, sinks) = (numbers(u)?, numbers(u)?);
    (problem.alibi, problem.sinks) = (slopes.is_some(), sinks.is_some());
    let heads = DecodeHeads { alibi_slopes: slopes.as_deref(), sinks: sinks.as_deref() };
    let allowed = (1..=8).contains(&problem.seqlen_q)
        && (1..=(1 << 31) - 256).contains(&longest)
        && problem.softcap.is_none_or(|cap| (1.0 / 16384.0..=16384.0).contains(&cap))
        && problem.softmax_scale.is_none_or(f32::is_finite)
        && !matches!(problem.split, Split::Fixed(keys) if keys == 0 || keys % PAGE > 0);
    let checked = problem.check();
    assert_eq!(checked.is_ok(), allowed, "{problem:?}: {checked:?}");
    let rows = Shape { seqlen: problem.seqlen_q.clamp(1, 8), ..problem.q_shape() };
    let q = queries(u, rows)?;
    let good = allowed && q.scheme == Scheme::Default && cache.has_room(longest);
    match problem.on_cpu(&q, &cache.view(v4_pages), &heads) {
        Ok(result) => {
            assert!(good, "{problem:?} was taken");
            assert_eq!((result.o.len(), result.lse.len()), (rows.elements(), rows.rows()));
        }
        Err(error) => {
            is_sentence(&error.to_string());
            assert!(!good, "{problem:?}: {error}");
        }
    }
    Ok(())
}

fn prefill(u: &mut Unstructured<'_>, cache: &Cache, heads_q: usize, longest: usize, window: Window) -> Result<()> {
    let CacheShape { heads_kv, head_dim, v4_pages, .. } = cache.shape;
    let most = u.int_in_range(1..=5)?;
    let problem = PrefillProblem::new(cache.batch, heads_q, heads_kv, most, longest, head_dim).with_window(window);
    let packed = bool::arbitrary(u)?;
    let total = u.int_in_range(1..=9)?;
    let problem = if packed { problem.with_packed_queries(total) } else { problem };
    let mut offsets = vec![0_u32];
    for _ in 0..cache.batch {
        let last = offsets[offsets.len() - 1];
        offsets.push(if u.ratio(1, 16)? { u32::arbitrary(u)? } else { last.wrapping_add(u.int_in_range(0..=3)?) });
    }
    if u.ratio(1, 16)? {
        offsets.push(0);
    }
    let given = if u.ratio(1, 16)? { !packed } else { packed };
    let allowed = (1..=(1 << 31) - 256).contains(&longest);
    let checked = problem.check();
    assert_eq!(checked.is_ok(), allowed, "{problem:?}: {checked:?}");
    let q = queries(u, problem.q_shape())?;
    let lengths_fit = cache.seqlens_kv.iter().take(cache.batch).all(|&keys| keys as usize <= longest);
    let own_pages = |(sequence, &keys): (usize, &u32)| {
        let row = cache.block_table.iter().skip(sequence * cache.table_stride);
        row.take((keys as usize).div_ceil(PAGE)).all(|&page| (page as usize) < cache.shape.pages)
    };
    let offsets_fit = !packed
        || offsets.len() == cache.batch + 1
            && offsets.windows(2).all(|ends| ends[0] <= ends[1] && (ends[1] - ends[0]) as usize <= most)
            && offsets.iter().all(|&end| end as usize <= total);
    let good = allowed
        && q.scheme == Scheme::Default
        && v4_pages == 0
        && given == packed
        && cache.has_room(longest)
        && lengths_fit
        && cache.seqlens_kv.iter().enumerate().all(own_pages)
        && offsets_fit;
    match problem.on_cpu(&q, given.then_some(offsets.as_slice()), &cache.view(v4_pages), &Default::default()) {
        Ok(result) => {
            assert!(good, "{problem:?} was taken");
            assert_eq!((result.o.len(), result.lse.len()), (problem.q_shape().elements(), problem.q_shape().rows()));
        }
        Err(error) => {
            is_sentence(&error.to_string());
            // Codes of -128 and scales that are none are refused where a sequence sees them.
            let of_bytes = error.to_string().contains("scale") || error.to_string().contains("-128");
            assert!(!good || of_bytes, "{problem:?}: {error}");
        }
    }
    Ok(())
}
