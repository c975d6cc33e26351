//! What pages hold: after appends of every form, copies and swaps, with V in 4 bits, with an offset of K.

use super::{CONFIG, DIM, HEADS, HEADS_KV, Model, causal};
use crate::plain::{ERROR, error, tensor, values};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{CacheConfig, KvCache, PagedTables};

/// The order of the tokens in an append, the type of the slots, the strides of K and V, and tokens that are left out.
#[test]
fn forms_of_an_append_are_the_same() -> Result<()> {
    let (k, v) = (tensor((2, 3, HEADS_KV, DIM), 0.2, DType::F32)?, tensor((2, 3, HEADS_KV, DIM), 0.3, DType::F32)?);
    let slots = [0_i64, 1, 2, 128, 129, 130];
    let bytes = |append: &dyn Fn(&mut KvCache) -> Result<()>| {
        let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
        append(&mut cache)?;
        cache.read_pages(&[0, 1])
    };
    let flat = |tensor: &Tensor| tensor.flatten_to(1);
    let of_slots = Tensor::new(&slots, &Device::Cpu)?;
    let want = bytes(&|cache| cache.append(&flat(&k)?, &flat(&v)?, &of_slots))?;
    assert!(want.iter().any(|&byte| byte != 0));
    // A batch of sequences.
    assert_eq!(bytes(&|cache| cache.append(&k, &v, &of_slots))?, want);
    // As u32, with a token that is left out in front.
    let more = Tensor::new(&[u32::MAX, 0, 1, 2, 128, 129, 130], &Device::Cpu)?;
    let with_one = |tensor: &Tensor| Tensor::cat(&[&flat(tensor)?.narrow(0, 5, 1)?, &flat(tensor)?], 0);
    assert_eq!(bytes(&|cache| cache.append(&with_one(&k)?, &with_one(&v)?, &more))?, want);
    // One after the other, backwards, from tensors whose heads come first.
    let heads_first = |tensor: &Tensor| flat(tensor)?.transpose(0, 1)?.contiguous()?.transpose(0, 1);
    let backwards = bytes(&|cache| {
        for token in (0..6).rev() {
            let part = |tensor: &Tensor| heads_first(tensor)?.narrow(0, token, 1);
            cache.append(&part(&k)?, &part(&v)?, &of_slots.narrow(0, token, 1)?)?;
        }
        Ok(())
    })?;
    assert_eq!(backwards, want);
    // Nothing at all.
    let nothing = |tensor: &Tensor| flat(tensor)?.narrow(0, 0, 0);
    let empty = bytes(&|cache| cache.append(&nothing(&k)?, &nothing(&v)?, &of_slots.narrow(0, 0, 0)?))?;
    assert!(empty.iter().all(|&byte| byte == 0));
    Ok(())
}

/// A sequence that shares its prefix: its last page is copied; pages that were kept elsewhere come back.
#[test]
fn pages_are_copied_and_swapped() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([150, 150])?;
    let q = tensor((2, 1, HEADS, DIM), 0.1, DType::F16)?;
    let attend = |cache: &KvCache, rows: [[u32; 2]; 2]| {
        let tables = PagedTables {
            block_tables: Tensor::new(&rows, &Device::Cpu)?,
            context_lens: Tensor::new(&[150_u32, 150], &Device::Cpu)?,
        };
        values(&cache.attend(&q, &tables, &causal().attention()?)?)
    };
    let want = attend(&model.cache, [[5, 0], [1, 7]])?;
    model.cache.copy_pages(&[(0, 6), (6, 4)])?;
    assert_eq!(attend(&model.cache, [[5, 4], [1, 7]])?, want);
    let mut other = KvCache::layers(2, CONFIG, &Device::Cpu)?.remove(1);
    let kept = model.cache.read_pages(&[5, 0, 1, 7])?;
    assert_eq!((kept.len(), other.config()), (4 * other.page_bytes(), CONFIG));
    other.write_pages(&[2, 3, 0, 1], &kept)?;
    assert_eq!(attend(&other, [[2, 3], [0, 1]])?, want);
    Ok(())
}

/// Pages whose V has 4 bits, beside others: by a copy, and swapped.
#[test]
fn pages_with_v_in_4_bits() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([150, 150])?;
    let attend = |cache: &KvCache, queries: usize, rows: [[u32; 2]; 2]| {
        let tables = PagedTables {
            block_tables: Tensor::new(&rows, &Device::Cpu)?,
            context_lens: Tensor::new(&[150_u32, 150], &Device::Cpu)?,
        };
        values(&cache.attend(&tensor((2, queries, HEADS, DIM), 0.1, DType::F16)?, &tables, &causal().attention()?)?)
    };
    let mut cache = KvCache::layers_with_v4_pages(1, CONFIG, 3, &Device::Cpu)?.remove(0);
    assert_eq!((cache.num_v4_pages(), cache.config()), (3, CONFIG));
    cache.write_pages(&[0, 1, 2, 3], &model.cache.read_pages(&[5, 0, 1, 7])?)?;
    cache.copy_pages(&[(0, 5), (2, 6)])?;
    let kept = cache.read_pages(&[5, 1])?;
    assert_eq!(kept.len(), cache.v4_page_bytes() + cache.page_bytes());
    cache.write_pages(&[7, 4], &kept)?;
    // By a decode, and by a prefill.
    for queries in [1, 40] {
        let want = attend(&model.cache, queries, [[5, 0], [1, 7]])?;
        let got = attend(&cache, queries, [[7, 4], [6, 3]])?;
        let square = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
        let off = square(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        let error = off / square(&mut want.iter().copied());
        assert!(error > 0.0 && error < 1e-1, "{queries}: {error:e}");
    }
    let v4_page_bytes = cache.v4_page_bytes();
    let wrong = cache.write_pages(&[0], &kept[..v4_page_bytes]).unwrap_err().to_string();
    assert!(wrong.contains("bytes were given for 1 pages"), "{wrong}");
    let wrong = KvCache::layers_with_v4_pages(1, CacheConfig { head_dim: 96, ..CONFIG }, 1, &Device::Cpu);
    assert!(wrong.unwrap_err().to_string().contains("V in 4 bits"));
    Ok(())
}

/// Keys with channels far from zero, as a bias in their projection makes them.
#[test]
fn an_offset_of_k_changes_nothing_but_the_error() -> Result<()> {
    let far: Vec<f32> = (0..HEADS_KV * DIM).map(|at| if at % 5 == 0 { 300.0 } else { 0.1 * (at % 3) as f32 }).collect();
    let far = Tensor::from_vec(far, (HEADS_KV, DIM), &Device::Cpu)?;
    let k = tensor((1, 200, HEADS_KV, DIM), 0.2, DType::F32)?.broadcast_add(&far)?;
    let v = tensor((1, 200, HEADS_KV, DIM), 0.3, DType::F32)?;
    let slots = Tensor::arange(0_i64, 200, &Device::Cpu)?;
    let tables = PagedTables {
        block_tables: Tensor::new(&[[0_u32, 1]], &Device::Cpu)?,
        context_lens: Tensor::new(&[200_u32], &Device::Cpu)?,
    };
    let errors = |offset: Option<&Tensor>| -> Result<[f64; 2]> {
        let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
        offset.iter().try_for_each(|offset| cache.set_k_offset(offset))?;
        cache.append(&k, &v, &slots)?;
        assert!(cache.set_k_offset(&far).expect_err("a refusal").to_string().contains("give it to an empty cache"));
        let of = |rows| -> Result<f64> {
            let q = tensor((1, rows, HEADS, DIM), 0.1, DType::F32)?;
            error(&cache.attend(&q, &tables, &causal().attention()?)?, &causal().plain(&q, &k, &v)?)
        };
        Ok([of(2)?, of(20)?])
    };
    let (with, without) = (errors(Some(&k.narrow(1, 0, 64)?.mean(1)?.squeeze(0)?))?, errors(None)?);
    assert!(with.iter().all(|&error| error < ERROR), "{with:?}");
    assert!(without.iter().all(|&error| error > 2.0 * ERROR), "{without:?}");

    let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
    for (offset, part) in [
        (far.t()?.contiguous()?, "the shape [64, 2]; (2, 64) is expected"),
        (far.to_dtype(DType::F16)?, "the offset of K holds F16"),
        ((&far / 0.0)?, "the offset of K holds inf at element 0"),
    ] {
        let error = cache.set_k_offset(&offset).expect_err("a refusal").to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    Ok(())
}
