//! Which pages a sequence is made of, and how long it is.

use super::CacheShape;
use crate::error::{Error, Result};
use int_flash_attention_kernels::layout::page::{MAX_PAGES, PAGE_TOKENS};
use std::collections::HashMap;

/// The block tables and lengths of a batch: `T` is an array of `u32`.
#[derive(Clone, Debug, PartialEq)]
pub struct PageTables<T> {
    /// Sequences.
    pub batch: usize,
    /// Entries of a sequence.
    pub max_blocks: usize,
    /// The page of each block of 128 tokens, `[batch][max_blocks]`. What is behind a sequence's length means nothing.
    pub block_table: T,
    /// Tokens of each sequence, `[batch]`.
    pub seqlens_kv: T,
}

/// Whether the kernels, which do so with 32 bits, count from one sequence's entries to the next one's.
pub(crate) fn check_stride(entries: usize) -> Result<()> {
    let (max, way) = (u32::MAX as usize, "its entries are counted with 32 bits; no sequence has so many pages");
    if entries <= max {
        return Ok(());
    }
    Err(Error::TooLarge { name: "a row of block_table", given: entries, max, way })
}

/// Block tables and lengths in the host's memory.
pub type HostTables = PageTables<Vec<u32>>;

impl HostTables {
    /// Empty sequences whose pages follow one another: a contiguous cache. It is of `batch * max_blocks` pages; where no cache has so many, the
    /// tables are too short, which [`check`](Self::check) says.
    #[must_use]
    pub fn contiguous(batch: usize, max_blocks: usize) -> Self {
        let entries = batch.saturating_mul(max_blocks).min(MAX_PAGES) as u32;
        let seqlens_kv = vec![0; batch.min(MAX_PAGES)];
        Self { batch, max_blocks, block_table: (0..entries).collect(), seqlens_kv }
    }

    /// Whether the arrays have the lengths that the sizes ask, every length fits its table, and every page in use is of the pool.
    ///
    /// # Errors
    /// Wrong lengths of the arrays; [`Error::SequenceLength`] or [`Error::NoPage`], with the sequence.
    pub fn check(&self, shape: &CacheShape) -> Result<()> {
        for sequence in 0..self.check_sizes()? {
            for (block, &given) in self.pages_of(sequence).iter().enumerate() {
                if given as usize >= shape.pages {
                    let what = format!("block {block} of sequence {sequence}");
                    return Err(Error::NoPage { what, given, pages: shape.pages });
                }
            }
        }
        Ok(())
    }

    /// The number of sequences, once lengths are known to be right.
    fn check_sizes(&self) -> Result<usize> {
        let entries = self.batch.saturating_mul(self.max_blocks);
        crate::quantized::check_len("block_table", self.block_table.len(), entries)?;
        crate::quantized::check_len("seqlens_kv", self.seqlens_kv.len(), self.batch)?;
        let max = self.max_blocks.saturating_mul(PAGE_TOKENS);
        match self.seqlens_kv.iter().position(|&given| given as usize > max) {
            Some(sequence) => Err(Error::SequenceLength { sequence, given: self.seqlens_kv[sequence] as usize, max }),
            None => Ok(self.batch),
        }
    }

    /// The pages in use of a sequence.
    fn pages_of(&self, sequence: usize) -> &[u32] {
        let blocks = (self.seqlens_kv[sequence] as usize).div_ceil(PAGE_TOKENS);
        &self.block_table[sequence * self.max_blocks..][..blocks]
    }

    /// Makes sequence `i` longer by `new[i]` tokens, and gives the slots of all new tokens, those of a sequence after the other, as
    /// [`HostCache::append`](super::HostCache::append) and `AppendPlan` take them.
    ///
    /// # Errors
    /// Not a number for each sequence; [`Error::SequenceLength`] where a table has no room; [`Error::SharedPage`] where a page that would be
    /// written is in use by another sequence too, or twice by one: copy it first (`copy_pages`). The lengths are as they were then.
    pub fn extend(&mut self, new: &[usize]) -> Result<Vec<i64>> {
        self.check_sizes()?;
        crate::quantized::check_len("the numbers of new tokens", new.len(), self.batch)?;
        let mut longer = self.clone();
        for (sequence, (length, &new)) in longer.seqlens_kv.iter_mut().zip(new).enumerate() {
            let given = (*length as usize).saturating_add(new);
            let max = (u32::MAX as usize).min(self.max_blocks.saturating_mul(PAGE_TOKENS));
            let fits = u32::try_from(given).ok().filter(|_| given <= max);
            *length = fits.ok_or(Error::SequenceLength { sequence, given, max })?;
        }
        let mut uses: HashMap<u32, (usize, usize)> = HashMap::new();
        for sequence in 0..self.batch {
            for &page in longer.pages_of(sequence) {
                let (count, first) = uses.entry(page).or_insert((0, sequence));
                *count += 1;
                *first = (*first).min(sequence);
            }
        }
        let mut slots = Vec::with_capacity(new.iter().sum());
        for sequence in 0..self.batch {
            for token in self.seqlens_kv[sequence] as usize..longer.seqlens_kv[sequence] as usize {
                let page = longer.pages_of(sequence)[token / PAGE_TOKENS];
                if let Some(&(count, first)) = uses.get(&page)
                    && count > 1
                {
                    let other = if first == sequence { self.other_user(&longer, page, sequence) } else { first };
                    return Err(Error::SharedPage { page, sequence, other });
                }
                slots.push((page as usize * PAGE_TOKENS + token % PAGE_TOKENS) as i64);
            }
        }
        *self = longer;
        Ok(slots)
    }

    /// Another sequence that uses a page, or this one where it uses it twice.
    fn other_user(&self, longer: &Self, page: u32, sequence: usize) -> usize {
        (0..self.batch).find(|&other| other != sequence && longer.pages_of(other).contains(&page)).unwrap_or(sequence)
    }
}
