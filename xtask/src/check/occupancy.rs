//! How many CTAs of a kernel a multiprocessor holds.

use int_flash_attention_kernels::config::shared_memory::{self, SYSTEM_BYTES};

/// What the multiprocessors of some GPUs have (CUDA programming guide, "Technical specifications per compute capability").
pub struct Class {
    /// KiB of shared memory that one CTA may have, by which the class is called; the multiprocessor has one more.
    pub kib: usize,
    warps: usize,
    ctas: usize,
    /// The architectures that ptxas is asked for.
    pub architectures: &'static [&'static str],
}

/// RTX 30 to 50, A10, A40, L4, L40; A100; H100, H200, B200. Of each the GPUs with the fewest warps and CTAs.
pub const CLASSES: [Class; shared_memory::CLASSES.len()] = {
    let [small, medium, large] = shared_memory::CLASSES;
    [
        Class { kib: small, warps: 48, ctas: 16, architectures: &["sm_86", "sm_89", "sm_120"] },
        Class { kib: medium, warps: 64, ctas: 32, architectures: &["sm_80"] },
        Class { kib: large, warps: 64, ctas: 32, architectures: &["sm_90", "sm_90a", "sm_100"] },
    ]
};

/// Registers of a multiprocessor, which all of them have.
const REGISTERS: usize = 64 << 10;
/// Schedulers of a multiprocessor, each with a quarter of its registers and warps.
const SCHEDULERS: usize = 4;
/// A warp's registers are given out in steps of so many.
const REGISTER_UNIT: usize = 256;
/// The steps in which shared memory is given out.
const SHARED_UNIT: usize = 128;

/// What one CTA asks for.
#[derive(Clone, Copy, Debug)]
pub struct Cta {
    pub threads: usize,
    /// Of a thread.
    pub registers: usize,
    /// Static and dynamic.
    pub shared: usize,
}

impl Class {
    /// CTAs that a multiprocessor holds at once; none where one alone is too large.
    pub fn holds(&self, cta: Cta) -> usize {
        if cta.shared > self.kib << 10 {
            return 0;
        }
        let warps = cta.threads.div_ceil(32);
        let of_warp = (32 * cta.registers.max(1)).next_multiple_of(REGISTER_UNIT);
        let by_registers = SCHEDULERS * (REGISTERS / SCHEDULERS / of_warp) / warps;
        let by_shared = ((self.kib << 10) + SYSTEM_BYTES) / (cta.shared + SYSTEM_BYTES).next_multiple_of(SHARED_UNIT);
        by_registers.min(by_shared).min(self.warps / warps).min(self.ctas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctas(threads: usize, registers: usize, shared: usize) -> [usize; 3] {
        CLASSES.map(|class| class.holds(Cta { threads, registers, shared }))
    }

    #[test]
    fn registers_shared_memory_warps_and_slots_each_limit() {
        // 128 threads with 255 registers: a scheduler holds two warps, an SM two CTAs.
        assert_eq!(ctas(128, 255, 0), [2, 2, 2]);
        assert_eq!(ctas(128, 168, 0), [3, 3, 3]);
        assert_eq!(ctas(128, 128, 0), [4, 4, 4]);
        // Shared memory, with the system's KiB for each CTA.
        assert_eq!(ctas(128, 32, 49 << 10), [2, 3, 4]);
        assert_eq!(ctas(128, 32, (49 << 10) + 1), [1, 3, 4]);
        assert_eq!(ctas(128, 32, 99 << 10), [1, 1, 2]);
        assert_eq!(ctas(128, 32, (99 << 10) + 1), [0, 1, 2]);
        // Warps, and CTAs.
        assert_eq!(ctas(1024, 32, 0), [1, 2, 2]);
        assert_eq!(ctas(32, 16, 0), [16, 32, 32]);
    }
}
