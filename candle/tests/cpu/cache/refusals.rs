//! What is refused, in words that say what was given, and that nothing is left of it in the cache.

use super::{CONFIG, DIM, HEADS, HEADS_KV, Model, PAGES};
use crate::plain::{refusal, tensor};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{CacheConfig, FlashAttn, KvCache, PackedQueries, PagedTables};

#[test]
fn packed_queries_that_are_wrong_are_refused() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([140, 60])?;
    let tables = model.tables()?;
    let q = tensor((1, 20, HEADS, DIM), 0.1, DType::F16)?.squeeze(0)?;
    let ends = |ends: &[u32]| Tensor::new(ends, &Device::Cpu);
    for (seqlens_q, max_seqlen_q, part) in [
        (ends(&[0])?, 20, "seqlens_q has 1 elements"),
        (ends(&[0, 20])?, 20, "block_tables has rows for 2 sequences, q is of 1"),
        (ends(&[0, 10, 20])?.to_dtype(DType::I64)?, 20, "seqlens_q holds I64"),
        (ends(&[0, 15, 10])?, 20, "cu_seqlens_q"),
        (ends(&[0, 10, 21])?, 20, "cu_seqlens_q"),
        (ends(&[0, 5, 20])?, 14, "15"),
    ] {
        let queries = PackedQueries { seqlens_q, max_seqlen_q };
        let refused = refusal(model.cache.attend_varlen(&q, &queries, &tables, &FlashAttn::new(0.1))).to_string();
        assert!(refused.starts_with("int-flash-attn: ") && refused.contains(part), "{part}: {refused}");
    }
    let queries = PackedQueries { seqlens_q: ends(&[0, 10, 20])?, max_seqlen_q: 10 };
    let attend = |cache: &KvCache, q: &Tensor| refusal(cache.attend_varlen(q, &queries, &tables, &FlashAttn::new(0.1)));
    assert!(attend(&model.cache, &q.unsqueeze(0)?).to_string().contains("unexpected rank, expected: 3, got: 4"));
    let with_v4 = KvCache::layers_with_v4_pages(1, CONFIG, 2, &Device::Cpu)?.remove(0);
    let error = attend(&with_v4, &q).to_string();
    assert!(error.contains("pages with V in 4 bits") && error.contains("`attend`"), "{error}");
    Ok(())
}

#[test]
fn refused_appends_leave_the_cache_as_it_was() -> Result<()> {
    let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
    let x = tensor((1, 4, HEADS_KV, DIM), 0.1, DType::F16)?.squeeze(0)?;
    let slots = |slots: &[i64]| Tensor::new(slots, &Device::Cpu);
    let good = slots(&[0, 1, 2, 3])?;
    let uneven = tensor((2, 3, HEADS_KV, DIM), 0.1, DType::F16)?.narrow(1, 0, 2)?;
    for (k, v, slots, part) in [
        (&x, &x, &slots(&[0, 1, 2])?, "slot_mapping has 3 slots for 4 new tokens"),
        (&x, &x, &slots(&[0, 1, 2, 1024])?, "token 3 has the slot 1024"),
        (&x, &x, &slots(&[0, 1, 2, 1])?, "the tokens 1 and 3 have both the slot 1"),
        (&x, &x, &good.to_dtype(DType::F32)?, "slot_mapping holds F32; [I64, U32] is taken"),
        (&x.narrow(1, 0, 1)?, &x, &good, "k has the shape [4, 1, 64]; (tokens, 2, 64)"),
        (&x, &x.narrow(2, 0, 32)?, &good, "v has the shape [4, 2, 32]"),
        (&uneven, &uneven, &good, "the tokens of k lie unevenly"),
        (&x, &x.narrow(0, 0, 3)?, &good, "shape mismatch"),
        (&x, &x.to_dtype(DType::F32)?, &good, "dtype mismatch"),
    ] {
        let error = cache.append(k, v, slots).expect_err("a refusal").to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // An attention that is refused appends nothing either.
    let q = tensor((1, 4, 5, DIM), 0.1, DType::F16)?;
    let tables = PagedTables {
        block_tables: Tensor::new(&[[0_u32]], &Device::Cpu)?,
        context_lens: Tensor::new(&[4_u32], &Device::Cpu)?,
    };
    let both = cache.append_and_attend([&q, &x, &x], &good, &tables, &FlashAttn::new(0.1));
    assert!(refusal(both).to_string().contains("2 heads of k and v do not divide the 5 heads of q"));
    let far = PagedTables { context_lens: Tensor::new(&[129_u32], &Device::Cpu)?, ..tables };
    let q = tensor((1, 4, 4, DIM), 0.1, DType::F16)?;
    let both = cache.append_and_attend([&q, &x, &x], &good, &far, &FlashAttn::new(0.1));
    assert!(refusal(both).to_string().contains("sequence 0 has 129 tokens"));
    // What is found out when it is computed: slopes that are no numbers, and offsets.
    let four = PagedTables { context_lens: Tensor::new(&[4_u32], &Device::Cpu)?, ..far };
    let nan = FlashAttn::new(0.1).with_alibi_slopes(Tensor::new(&[f32::NAN; 4], &Device::Cpu)?);
    let back = PackedQueries { seqlens_q: Tensor::new(&[3_u32, 0], &Device::Cpu)?, max_seqlen_q: 4 };
    let packed = q.squeeze(0)?;
    for (queries, attention, part) in [(&back, &FlashAttn::new(0.1), "cu_seqlens_q"), (&back, &nan, "alibi_slopes")] {
        let both = cache.append_and_attend_varlen([&packed, &x, &x], &good, queries, &four, attention);
        let error = refusal(both).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // Nor do pages that there are not come back.
    let page = cache.read_pages(&[0])?;
    assert!(cache.write_pages(&[PAGES as u32], &page).is_err());
    assert!(cache.read_pages(&(0..PAGES as u32).collect::<Vec<_>>())?.iter().all(|&byte| byte == 0));
    // So it is a cache without tokens.
    cache.set_k_offset(&Tensor::zeros((HEADS_KV, DIM), DType::F32, &Device::Cpu)?)
}

#[test]
fn refusals_say_what_was_given_and_the_way_out() -> Result<()> {
    let config = |num_pages, head_dim| CacheConfig { num_pages, head_dim, ..CONFIG };
    for (config, part) in [(config(0, 64), "the number of pages is 0"), (config(1, 80), "zeros to the next")] {
        let error = KvCache::new(config, &Device::Cpu).expect_err("a refusal").to_string();
        assert!(error.starts_with("int-flash-attn: ") && error.contains(part), "{part}: {error}");
    }
    let mut model = Model::new(DType::F16)?;
    model.append([140, 60])?;
    let good = model.tables()?;
    let blocks = |block_tables: Tensor| PagedTables { block_tables, ..good.clone() };
    let lengths = |lengths: &[u32]| -> Result<PagedTables> {
        Ok(PagedTables { context_lens: Tensor::new(lengths, &Device::Cpu)?, ..good.clone() })
    };
    let pages = |rows: &[[u32; 2]]| Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu);
    let plain = FlashAttn::new(0.1);
    let per_sequence = plain.clone().with_alibi_slopes(Tensor::zeros((2, HEADS), DType::F32, &Device::Cpu)?);
    let masked = plain.clone().with_mask(Tensor::ones((1, 1, 1, 512), DType::U8, &Device::Cpu)?);
    let q = tensor((2, 1, HEADS, DIM), 0.1, DType::F16)?;
    let narrow = tensor((2, 1, HEADS, 32), 0.1, DType::F16)?;
    for (q, tables, attention, part) in [
        (&q, &blocks(pages(&[[5, 0]])?), &plain, "block_tables has rows for 1 sequences, q is of 2"),
        (&q, &blocks(pages(&[[5, 0], [1, 7]])?.to_dtype(DType::I64)?), &plain, "block_tables holds I64; U32 is taken"),
        (&q, &blocks(pages(&[[5, 1], [0, 7]])?.t()?), &plain, "last dim of block_tables must be contiguous"),
        (&q, &blocks(pages(&[[5, 0], [8, 7]])?), &plain, "sequence 1 names page 8"),
        (&q, &blocks(pages(&[[5, 0]])?.broadcast_as((2, 2))?), &plain, "the rows of block_tables overlap"),
        (&q, &lengths(&[140])?, &plain, "context_lens has 1 elements"),
        (&q, &lengths(&[140, 513])?, &plain, "sequence 1 has 513 tokens"),
        (&q, &good, &per_sequence, "attend on the sequences one at a time"),
        (&q, &good, &masked, "a bias or a mask was given for attention on a cache"),
        (&q, &good, &plain.clone().with_softcap(0.0), "softcap is 0"),
        (&narrow, &good, &plain, "q has the head dim 32, the cache 64"),
        (&q.narrow(2, 0, 5)?, &good, &plain, "do not divide the 5 heads of q"),
    ] {
        let error = refusal(model.cache.attend(q, tables, attention)).to_string();
        assert!(error.starts_with("int-flash-attn: ") && error.contains(part), "{part}: {error}");
    }
    let double = model.cache.attend(&q.to_dtype(DType::F64)?, &good, &plain);
    assert!(matches!(refusal(double), candle_core::Error::UnsupportedDTypeForOp(DType::F64, _)));
    let missing = model.cache.copy_pages(&[(0, 8)]).expect_err("a refusal").to_string();
    assert!(missing.contains("page 8"), "{missing}");
    let short = model.cache.write_pages(&[0, 1], &[0; 3]).expect_err("a refusal").to_string();
    assert!(short.contains("3 bytes were given for 2 pages"), "{short}");
    Ok(())
}
