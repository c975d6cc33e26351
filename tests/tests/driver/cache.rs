//! What appends, and copies of pages, refuse.

use crate::nothing_is_left;
use half::f16;
use int_flash_attention::{
    AppendProblem, Appended, AttentionProblem, CacheShape, DType, DeviceBuffer, DeviceCache, DeviceK, DeviceQ,
    DeviceSliceMut, DeviceV, Error, GatherProblem, Gpu, HostTables, NewTokens, PageCopy, Shape, Slots, TensorLayout,
    ViewMutCache, ViewTables,
};
use pretended_driver::{PretendedGpu, begin};

#[test]
fn appends_refuse_what_does_not_fit() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::H200]);
    {
        let (gpu, other) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let stream = gpu.stream().unwrap();
        let shape = CacheShape::new(3, 2, 64).unwrap();
        let problem = AppendProblem { cache: shape, heads_q: 4, max_tokens: 130, dtype: DType::F16 };
        for wrong in [
            AppendProblem { heads_q: 3, ..problem },
            AppendProblem { max_tokens: 0, ..problem },
            AppendProblem { max_tokens: 1 << 31, ..problem },
            AppendProblem { cache: CacheShape { pages: 1 << 25, ..shape }, ..problem },
        ] {
            assert!(gpu.plan_append(&wrong).is_err(), "{wrong:?}");
        }
        let plan = gpu.plan_append(&problem).unwrap();
        let mut cache = DeviceCache::alloc(&gpu, shape).unwrap();
        let data: DeviceBuffer<f16> = gpu.alloc(130 * 4 * 64).unwrap();
        let slots: DeviceBuffer<i64> = gpu.alloc(130).unwrap();
        let mut q_out = DeviceQ::alloc(&gpu, &AttentionProblem::new(65, 4, 2, 2, 1, 64)).unwrap();
        let layout = |heads, tokens| TensorLayout::bnhd(Shape::new(1, heads, tokens, 64).unwrap());
        let tensor = |heads, tokens| NewTokens { data: (&data).into(), layout: layout(heads, tokens) };
        let good = Appended {
            q: Some(tensor(4, 130)),
            k: tensor(2, 130),
            v: tensor(2, 130),
            slots: Slots::I64(slots.slice()),
        };
        plan.launch(&stream, &good, &mut cache.view_mut(), Some(&mut q_out.view_mut())).unwrap();

        let mut refused = |new: &Appended<'_>, cache: &mut ViewMutCache<'_>| {
            plan.launch(&stream, new, cache, Some(&mut q_out.view_mut())).unwrap_err()
        };
        let (floats, far): (DeviceBuffer<f32>, DeviceBuffer<f16>) =
            (gpu.alloc(130 * 2 * 64).unwrap(), other.alloc(130 * 2 * 64).unwrap());
        let of = |data| NewTokens { data, layout: layout(2, 130) };
        let no_tokens = TensorLayout::bnhd(Shape { batch: 1, heads: 2, seqlen: 0, head_dim: 64 });
        let none = NewTokens { data: (&data).into(), layout: no_tokens };
        let mut view = cache.view_mut();
        for (new, sentence) in [
            (Appended { q: None, ..good }, "q was not given"),
            (Appended { k: tensor(4, 130), ..good }, "k has the shape"),
            (Appended { v: tensor(2, 129), ..good }, "v has the shape"),
            (Appended { q: Some(tensor(2, 130)), ..good }, "q has the shape"),
            (Appended { k: of((&floats).into()), ..good }, "k holds f32"),
            (Appended { v: of((&far).into()), ..good }, "v is of CUDA device 1"),
            (Appended { slots: Slots::I64(slots.slice().range(1, 130).unwrap()), ..good }, "the slots holds 129"),
            (Appended { k: tensor(2, 131), ..good }, "the number of new tokens is 131"),
            (Appended { k: none, v: none, ..good }, "the number of new tokens is 0"),
        ] {
            let text = refused(&new, &mut view).to_string();
            assert!(text.starts_with(sentence), "{sentence}: {text}");
        }
        let pool = shape.bytes();
        // SAFETY (of both): never used, because they are refused.
        let raw = |at, len| unsafe { DeviceSliceMut::<u8>::from_raw(at, len) };
        let at = view.pool.ptr();
        let mut short = ViewMutCache { pool: raw(at, pool - 1), ..cache.view_mut() };
        assert!(matches!(refused(&good, &mut short), Error::Length { name: "the pool", .. }));
        let mut odd = ViewMutCache { pool: raw(at + 8, pool), ..cache.view_mut() };
        assert!(matches!(refused(&good, &mut odd), Error::Alignment { name: "the pool", .. }));
        let mut larger = ViewMutCache { shape: CacheShape { pages: 4, ..shape }, ..cache.view_mut() };
        assert!(matches!(refused(&good, &mut larger), Error::ShapeMismatch { name: "the cache", .. }));

        // Pages, on the GPU and to the host.
        let mut view = cache.view_mut();
        assert!(matches!(gpu.copy_pages(&stream, &mut view, &[(0, 1), (3, 0)]), Err(Error::NoPage { given: 3, .. })));
        gpu.copy_pages(&stream, &mut view, &[(0, 1), (1, 1)]).unwrap();
        let mut bytes = vec![0; shape.page_bytes()];
        assert!(matches!(
            gpu.pages_to_host(&stream, &view.as_view(), &[0, 1], &mut bytes),
            Err(Error::Length { expected, .. }) if expected == 2 * shape.page_bytes()
        ));
        gpu.pages_to_host(&stream, &view.as_view(), &[2], &mut bytes).unwrap();
        gpu.pages_from_host(&stream, &mut view, &[1], &bytes).unwrap();
        let recorded = gpu.capture(&stream, || gpu.pages_from_host(&stream, &mut view, &[1], &bytes));
        assert!(matches!(recorded, Err(Error::Recording { .. })));
    }
    nothing_is_left(&session);
}

/// Pages of both kinds have their own bytes, and copies between them are launches, of as many pairs as do not wait for one another.
#[test]
fn pages_of_two_kinds() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let shape = CacheShape::new(6, 2, 64).unwrap().with_v4_pages(3).unwrap();
        let problem = AppendProblem { cache: shape, heads_q: 0, max_tokens: 8, dtype: DType::F16 };
        // Loads what copies need.
        gpu.plan_append(&problem).unwrap();
        let mut cache = DeviceCache::alloc(&gpu, shape).unwrap();
        assert_eq!(cache.pool.len(), shape.bytes());
        let mut view = cache.view_mut();
        let mut bytes = vec![0; shape.page_bytes() + shape.v4_page_bytes()];
        gpu.pages_to_host(&stream, &view.as_view(), &[4, 2], &mut bytes).unwrap();
        gpu.pages_from_host(&stream, &mut view, &[1, 5], &bytes).unwrap();
        let refused = gpu.pages_from_host(&stream, &mut view, &[1, 2], &bytes);
        assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
        let pairs = [(0, 3), (1, 4), (4, 2), (2, 1), (5, 0), (5, 3)];
        gpu.capture(&stream, || gpu.copy_pages(&stream, &mut view, &pairs)).unwrap();
        let steps = shape.page_copies(&pairs).into_iter().map(|step| match step {
            PageCopy::Bytes(from, to) => (from.len(), to),
            PageCopy::Converted(params, count) => {
                assert_eq!((params.v8_pages, params.heads_kv, params.head_dim), (3, 2, 64));
                (0, count)
            }
        });
        let of = |page: u32| (shape.page_range(page).len(), shape.page_range(page).start);
        assert_eq!(steps.collect::<Vec<_>>(), [(0, 2), (0, 1), of(1), (0, 1), of(3)]);
    }
    nothing_is_left(&session);
}

/// Sizes are public: those that no cache has lead no copy out of the pool.
#[test]
fn pages_of_sizes_that_nobody_checked_are_not_copied() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let good = CacheShape::new(6, 2, 64).unwrap().with_v4_pages(3).unwrap();
        let mut cache = DeviceCache::alloc(&gpu, good).unwrap();
        let mut bytes = vec![0; good.page_bytes()];
        for shape in [
            CacheShape { head_dim: 40, ..good },
            CacheShape { head_dim: 0, ..good },
            CacheShape { head_dim: 32, ..good },
            CacheShape { heads_kv: 0, ..good },
            CacheShape { pages: 2, ..good },
            CacheShape { pages: usize::MAX, v4_pages: usize::MAX, ..good },
        ] {
            cache.shape = shape;
            bytes.resize(shape.bytes_of(&[0]).min(good.page_bytes()), 0);
            let results = [
                gpu.copy_pages(&stream, &mut cache.view_mut(), &[(0, 5)]),
                gpu.copy_pages(&stream, &mut cache.view_mut(), &[(0, 1)]),
                gpu.pages_to_host(&stream, &cache.view(), &[0], &mut bytes),
                gpu.pages_from_host(&stream, &mut cache.view_mut(), &[0], &bytes),
            ];
            assert!(results.iter().all(Result::is_err), "{shape:?}: {results:?}");
        }
        assert!(session.launched().is_empty());
    }
    nothing_is_left(&session);
}

/// The stride of a table's rows is whatever a caller says.
#[test]
fn gathers_refuse_what_does_not_fit() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let shape = CacheShape::new(6, 2, 64).unwrap();
        let cache = DeviceCache::alloc(&gpu, shape).unwrap();
        let plan = gpu.plan_gather(&GatherProblem { cache: shape, batch: 3, seqlen_kv: 200 }).unwrap();
        let operands = AttentionProblem::new(3, 2, 2, 1, 200, 64);
        let (mut k, mut v) = (DeviceK::alloc(&gpu, &operands).unwrap(), DeviceV::alloc(&gpu, &operands).unwrap());
        let tables = HostTables::contiguous(3, 2).to_device(&gpu, &shape).unwrap();
        let mut gather = |batch, max_blocks| {
            let tables = ViewTables { batch, max_blocks, ..tables.view() };
            plan.launch(&stream, &cache.view(), &tables, &mut k.view_mut(), &mut v.view_mut())
        };
        assert_eq!(gather(3, 2), Ok(()));
        assert!(matches!(gather(2, 2), Err(Error::Length { name: "the tables' batch", .. })));
        assert!(matches!(gather(3, 1), Err(Error::Length { name: "a row of block_table", .. })));
        assert!(matches!(gather(3, 3), Err(Error::Length { name: "block_table", expected: 8, .. })));
        // Of which twice as many are 2 less than none, and none.
        for max_blocks in [usize::MAX, 1 << 63, u32::MAX as usize + 1] {
            let refused = gather(3, max_blocks);
            assert!(matches!(refused, Err(Error::TooLarge { name: "a row of block_table", .. })), "{refused:?}");
        }
        assert_eq!(session.launched().len(), 1);
    }
    nothing_is_left(&session);
}
