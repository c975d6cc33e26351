//! Straight-line loops.
//!
//! A register tile is an array whose indices are all constants. Where a loop stays rolled its index is none, and the
//! array moves to local memory. rustc's LLVM is told by options to unroll (xtask/src/build/llvm.rs); the LLVM behind
//! the feature `cuda-std` takes no options, so there the source does it.

/// `unroll!(0..N, |i| { body });` with constant bounds: the body once for each `i`, in order. At most 64 times, and the
/// body has no `break`, `continue` or `return`.
#[cfg(not(all(target_arch = "nvptx64", feature = "cuda-std")))]
macro_rules! unroll {
    ($range:expr, |$i:ident| $body:block) => {
        for $i in $range $body
    };
}

#[cfg(all(target_arch = "nvptx64", feature = "cuda-std"))]
macro_rules! unroll {
    ($range:expr, |$i:ident| $body:block) => {{
        const { assert!($range.end <= $range.start + 64, "unroll! has 64 calls") };
        #[allow(unused_mut, reason = "a body may change what it captures, or not")]
        let mut body = #[inline(always)]
        |$i: usize| $body;
        unroll!(@calls body, $range, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
        unroll!(@calls body, $range, 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63);
    }};
    // An inline const: the calls past the end are gone before a code generator sees them.
    (@calls $body:ident, $range:expr, $($k:literal)*) => {
        $(if const { $range.start + $k < $range.end } {
            $body(const { $range.start + $k });
        })*
    };
}
