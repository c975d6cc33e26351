//! All mutants of some kernels, and a sample of them.

use super::kernel::Kernel;
use super::kinds::{self, Kind};
use super::ptx;
use std::collections::BTreeMap;
use std::ops::Range;

pub(super) struct Mutant {
    pub(super) kernel: usize,
    pub(super) kind: Kind,
    /// What is replaced in the kernel's text, and by what.
    pub(super) span: Range<usize>,
    pub(super) replacement: String,
}

impl Mutant {
    pub(super) fn text(&self, kernel: &Kernel) -> String {
        let (before, after) = (&kernel.text[..self.span.start], &kernel.text[self.span.end..]);
        format!("{before}{}{after}", self.replacement)
    }

    /// Its line in the module with the kernel alone.
    pub(super) fn line(&self, kernel: &Kernel) -> usize {
        kernel.text[..self.span.start].matches('\n').count() + 1
    }

    /// The line, what stands there and what would.
    pub(super) fn describe(&self, kernel: &Kernel) -> String {
        let was = kernel.text[self.span.clone()].split_whitespace().collect::<Vec<_>>().join(" ");
        let is = if self.replacement.is_empty() { "nothing" } else { &self.replacement };
        let line = self.line(kernel);
        format!("{} {}:{line}: `{was}` becomes `{is}`", self.kind, kernel.name)
    }
}

pub(super) fn mutants(kernels: &[Kernel], kinds: &[Kind]) -> Vec<Mutant> {
    let mut out = Vec::new();
    for (index, kernel) in kernels.iter().enumerate() {
        for statement in ptx::statements(&kernel.text, kernel.body.clone()) {
            let of_statement = kinds::mutations(&statement).into_iter();
            let wanted = of_statement.filter(|(kind, _)| kinds.is_empty() || kinds.contains(kind));
            out.extend(wanted.map(|(kind, replacement)| Mutant {
                kernel: index,
                kind,
                span: statement.span.clone(),
                replacement,
            }));
        }
    }
    out
}

/// So many of each kind, spread over the kernels evenly and inside them at random.
pub(super) fn sample(all: &[Mutant], each: usize, seed: u64) -> Vec<&Mutant> {
    let mix = |noise: u64| {
        let mixed = (noise ^ (noise >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    // Seeds side by side would begin one sequence at places side by side.
    let mut noise = mix(seed);
    let mut random = move || {
        noise = noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(noise) >> 33) as usize
    };
    let mut out = Vec::new();
    for kind in Kind::ALL {
        let mut of_kernels: BTreeMap<usize, Vec<&Mutant>> = BTreeMap::new();
        for mutant in all.iter().filter(|mutant| mutant.kind == kind) {
            of_kernels.entry(mutant.kernel).or_default().push(mutant);
        }
        let mut left: Vec<_> = of_kernels.into_values().collect();
        for _ in 0..each {
            if left.is_empty() {
                break;
            }
            // a kernel, which is not asked again before the others were
            let mut of_kernel = left.remove(random() % left.len().div_ceil(2));
            out.push(of_kernel.swap_remove(random() % of_kernel.len()));
            if !of_kernel.is_empty() {
                left.push(of_kernel);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_over_kinds_and_kernels_and_repeats() {
        let mutant = |kernel, kind, at| Mutant { kernel, kind, span: at..at + 1, replacement: String::new() };
        let kinds = [Kind::Barrier, Kind::Store];
        let all: Vec<_> = (0..600).map(|i| mutant(i % 3, kinds[i / 3 % 2], i)).collect();
        let chosen = |seed| sample(&all, 6, seed).iter().map(|mutant| mutant.span.start).collect::<Vec<_>>();
        assert_eq!(chosen(1), chosen(1));
        assert_ne!(chosen(1), chosen(2));
        for (kernel, kind) in (0..3).flat_map(|kernel| kinds.map(|kind| (kernel, kind))) {
            let sample = sample(&all, 6, 1);
            let found = sample.iter().filter(|mutant| mutant.kernel == kernel && mutant.kind == kind).count();
            assert_eq!(sample.len(), 12);
            assert!((1..=3).contains(&found), "{found} of kernel {kernel}, {kind}");
        }
    }
}
