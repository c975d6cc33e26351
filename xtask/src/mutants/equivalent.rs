//! Survivors that change nothing: ptxas makes the same machine code of them, or there is a reason that it does not see.

use super::Fate;
use super::dead::is_dead;
use super::kernel::Kernel;
use super::kinds::Kind;
use super::limits::Limits;
use super::mutant::Mutant;
use super::ptx;
use crate::tools::Tools;
use crate::workspace;
use anyhow::{Context, Result};
use int_flash_attention_kernels::config::{ATTENTION, Scheme};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_kernels::params::{AttentionParams, BlockParams};
use rayon::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::mem::offset_of;
use std::process::Command;

/// Survivors that change nothing for a reason that ptxas does not see (docs/testing.md): kind, kernel, what stands there, and what
/// stands in its line, the one before and the one that its last operand, `$`, is from; `*` for anything.
const NO_CHANGE: [(Kind, &str, &str, &str); 13] = [
    // Plus or minus zero.
    (Kind::Arithmetic, "attention", ", 0f00000000", ""),
    // Whether a window has no end on the right, which decides whether the longest tiles are first.
    (Kind::Constant, "attention", "setp.ne.b64*, 4294967295", ""),
    (Kind::Predicate, "attention", "bra", "setp.ne.b64*, 4294967295"),
    (Kind::Compare, "", "setp.ne.b64*, 4294967295", ""),
    // What a sink is short of by K's offset, which the paper's scheme has not: zero of either sign.
    (Kind::Swizzle, "_paper", "xor.b32*, -2147483648", "ld.global.nc.f32"),
    // After the last block the newest group is empty, so that a wait for all but one is a wait for all.
    (Kind::Wait, "attention", "cp.async.wait_group 0", ""),
    // A warpgroup that skips a block arrives too early, and the slot waits for one that does not.
    (Kind::Barrier, "sm90a", "mbarrier.try_wait", ""),
    // The bias or mask of a key behind the last one, whose score is hidden whatever it is.
    (Kind::Constant, "_general", "mov.*, 0", "@p ld.global.nc"),
    // The place of a head or sequence in an array of four bytes each: 2^30 of them that are not nearly all empty have more than 4 TiB of K.
    // Those of blocks do not live to come here.
    (Kind::Stride, "attention", "mul.wide.u32*, 4", ""),
    // Where a key's bias of two bytes is in its row: a sequence has fewer than 2^31 keys.
    (Kind::Stride, "_general", "mul.wide.u32*, 2", ""),
    // The first of a lane's eight dims, which is compared with a head dim that is a multiple of eight.
    (Kind::Constant, "attention", "or.b32", "add.s64*\tor.b32"),
    // The slot of what is no token: no number from the pool's slots on is one's.
    (Kind::Constant, "append", "mov.b32*, -1", "setp.ge.u32"),
    // In the first block in which the left end of the window hides nothing from any row, its mask hides nothing.
    (Kind::Compare, "attention_sm80", "setp.lt.u32", "ld.shared.v2.u32 {$,"),
];

/// Of the parameters, those that are zero in every plan of a kernel, by where their eight bytes begin.
fn zeros(kernel: &str) -> Vec<usize> {
    let Some(variant) = ATTENTION.iter().find(|variant| variant.name == kernel) else { return Vec::new() };
    let mut zeros = Vec::new();
    // K has no offset in the paper's scheme.
    if variant.scheme == Scheme::Paper {
        zeros.push(offset_of!(AttentionParams, q_bias));
    }
    // Blocks are no pages where there are no caches: of another scheme, of other head dims.
    let cached = CACHE_HEAD_DIMS.contains(&variant.head_dim) && variant.head_dim == variant.head_dim_v;
    if variant.scheme == Scheme::Paper || !cached {
        let blocks = offset_of!(AttentionParams, blocks);
        // A stride of 32 bits, and behind it the number of pages.
        zeros.extend(
            [offset_of!(BlockParams, block_table), offset_of!(BlockParams, table_stride)].map(|at| blocks + at),
        );
    }
    zeros
}

const _: () = assert!(offset_of!(BlockParams, pages) == offset_of!(BlockParams, table_stride) + 4);

/// The kernel as it is launched: with zeros for the parameters that are always so.
fn as_launched(kernel: &str, text: &str) -> String {
    let mut out = text.to_owned();
    for zero in zeros(kernel) {
        let parameter = format!("[{kernel}_param_0+{zero}]");
        let line = |line: &str| match line.split_once(&parameter) {
            Some((load, rest)) => load.replace("ld.param", "mov") + "0" + rest,
            None => line.to_owned(),
        };
        out = out.lines().map(line).collect::<Vec<_>>().join("\n");
    }
    out
}

/// Whether the host lets no launch be so large that a number loses something with its upper 32 bits, or what is turned round is a zero's sign.
fn is_within_limits(kernel: &Kernel, mutant: &Mutant) -> bool {
    let limits = Limits::new(&kernel.name, &kernel.text, kernel.body.clone());
    let own = ptx::statements(&kernel.text, mutant.span.start..mutant.span.end + 1);
    own.iter().any(|statement| match mutant.kind {
        // Of heads, sequences and blocks, as `NO_CHANGE` says of `mul.wide.u32`.
        Kind::Stride if kernel.name.starts_with("attention") && limits.is_place_of_words(statement) => true,
        Kind::Stride => limits.most(statement) <= u32::MAX.into(),
        Kind::Swizzle => statement.operands[2] == "-2147483648" && limits.is_zero(statement.operands[1]),
        _ => false,
    })
}

fn changes_nothing(kernel: &Kernel, mutant: &Mutant) -> bool {
    let text = &kernel.text[mutant.span.clone()];
    let lines = kernel.text[..mutant.span.end].rsplit('\n').take(2).map(str::len).sum::<usize>() + 1;
    let end = kernel.text[mutant.span.end..].find('\n').map_or(kernel.text.len(), |at| mutant.span.end + at);
    let around = &kernel.text[mutant.span.end.saturating_sub(lines)..end];
    let last = text.rsplit([' ', '\t']).next().unwrap_or_default();
    let from = kernel.text[..mutant.span.start].lines().rev().find(|line| ptx::defines(line, last)).unwrap_or_default();
    let around = format!("{from}\n{around}");
    let matches = |pattern: &str, text: &str| pattern.split('*').all(|piece| text.contains(piece));
    NO_CHANGE.iter().any(|&(kind, name, own, near)| {
        let near = near.replace('$', last);
        mutant.kind == kind && kernel.name.contains(name) && matches(own, text) && matches(&near, &around)
    })
}

/// Survivors of which ptxas makes what it makes of the kernel as it is.
pub(super) fn find_equivalents(kernels: &[Kernel], mutants: &[&Mutant], fates: &mut [Fate]) -> Result<()> {
    let lives = |i: &usize| matches!(fates[*i], Fate::Survived | Fate::Unreached);
    let survivors: Vec<usize> = (0..fates.len()).filter(lives).collect();
    if survivors.is_empty() {
        return Ok(());
    }
    let tools = Tools::find()?;
    let work = workspace::target().join(format!("mutants-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let assembled = |name: String, text: &str| -> Result<Option<Vec<u8>>> {
        let target = text.lines().find_map(|line| line.strip_prefix(".target ")).context("no target")?.trim();
        let (source, cubin) = (work.join(format!("{name}.ptx")), work.join(format!("{name}.cubin")));
        fs::write(&source, text)?;
        let mut ptxas = Command::new(&tools.ptxas);
        let output = ptxas.arg(format!("-arch={target}")).arg("-o").args([&cubin, &source]).output()?;
        Ok(if output.status.success() { Some(fs::read(cubin)?) } else { None })
    };
    let mut originals = HashMap::new();
    for &i in &survivors {
        let index = mutants[i].kernel;
        if let Entry::Vacant(place) = originals.entry(index) {
            let text = as_launched(&kernels[index].name, &kernels[index].text);
            place.insert(assembled(format!("original-{index}"), &text)?);
        }
    }
    let before: &[Fate] = fates;
    let found = survivors.par_iter().map(|&i| {
        let kernel = &kernels[mutants[i].kernel];
        let code = assembled(format!("mutant-{i}"), &as_launched(&kernel.name, &mutants[i].text(kernel)))?;
        Ok(match code {
            None => Fate::Refused("by ptxas".into()),
            code if code == originals[&mutants[i].kernel] => Fate::Equivalent,
            _ if before[i] == Fate::Unreached && is_dead(&kernel.name, &kernel.text, mutants[i].line(kernel) - 1) => {
                Fate::Equivalent
            }
            _ if changes_nothing(kernel, mutants[i]) || is_within_limits(kernel, mutants[i]) => Fate::Equivalent,
            _ => before[i].clone(),
        })
    });
    let found = found.collect::<Result<Vec<_>>>();
    let _ = fs::remove_dir_all(&work);
    for (i, fate) in survivors.iter().zip(found?) {
        fates[*i] = fate;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_no_plan_sets_are_zero() {
        let text = |load: &str| format!("a;\n\t{load}\nret;");
        let load = "ld.param.b64 \t%rd5, [attention_sm80_d64_paper_param_0+32];";
        let zero = "mov.b64 \t%rd5, 0;";
        assert_eq!(as_launched("attention_sm80_d64_paper", &text(load)), text(zero));
        let other = load.replace("_paper", "_default");
        assert_eq!(as_launched("attention_sm80_d64_default", &text(&other)), text(&other));
        let pages = offset_of!(AttentionParams, blocks) + offset_of!(BlockParams, table_stride);
        let load = |kernel: &str| text(&format!("ld.param.b64 \t%rd5, [{kernel}_param_0+{pages}];"));
        for kernel in ["attention_sm80_d64_paper", "attention_sm80_d512_default", "attention_sm80_d256_v128_default"] {
            assert_eq!(as_launched(kernel, &load(kernel)), text(zero), "{kernel}");
        }
        let cached = "attention_sm80_d256_default";
        assert_eq!(as_launched(cached, &load(cached)), load(cached));
    }
}
