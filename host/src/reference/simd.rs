//! Loops compiled twice: for every machine, and for AVX2.

/// A loop to run with the widest vectors that the machine has. `run` has to be `#[inline(always)]`, and what it calls too.
pub(super) trait Kernel {
    fn run(self);
}

/// Runs `kernel`, compiled for AVX2 where the machine has it. The results are the same: nothing is contracted or reordered.
#[inline]
pub(super) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn avx2(kernel: impl Kernel) {
            kernel.run();
        }
        // SAFETY: the machine has AVX2, as was just asked.
        return unsafe { avx2(kernel) };
    }
    kernel.run();
}

/// `a . b` in int32; lengths a multiple of 32. The caller's bounds keep it below 2^31.
#[inline(always)]
pub(super) fn dot(a: &[i16], b: &[i8]) -> i32 {
    let mut sum = 0;
    for (a, b) in a.chunks_exact(32).zip(b.chunks_exact(32)) {
        for i in 0..32 {
            sum += i32::from(a[i]) * i32::from(b[i]);
        }
    }
    sum
}
