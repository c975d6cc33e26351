//! Matrix products of a warpgroup (PTX ISA 9.7.15, `wgmma`; sm_90a).
//!
//! # Fragments of `m64nNk32` for 8-bit A and B
//!
//! Warp `w` of the four holds rows `16w..16w+16` of A and D, in the fragments of `mma.m16n8k32` (`super::mma`): four registers of
//! A, and four of D for each n8 tile.
//!
//! # Operands in shared memory
//!
//! Panels of 32-byte rows (one k step), rows of a panel contiguous, with the 32-byte swizzle: `layout::swizzle`.
//!
//! ```text
//! descriptor  0..14 address / 16    16..30 unused here (1)    32..46 bytes between eight rows / 16 = 16    62..64 3: 32-byte swizzle
//! ```
//!
//! # Asynchrony
//!
//! A product reads and writes its registers until a [`wait`](Sums::wait) returns: they must not be touched in between, and
//! [`fence`] must stand between what wrote them and the product.

use core::arch::asm;

/// Descriptor of the panel row at shared address `address` (a multiple of 256).
#[inline(always)]
#[must_use]
pub fn descriptor(address: u32) -> u64 {
    const LAYOUT: u64 = 3 << 62 | 16 << 32 | 1 << 16;
    LAYOUT | u64::from(address >> 4)
}

/// Registers written so far are ordered before the products that follow (`wgmma.fence`).
///
/// # Safety
/// All warps of the warpgroup call it, converged.
#[inline(always)]
pub unsafe fn fence() {
    unsafe { asm!("wgmma.fence.sync.aligned;", options(nostack)) }
}

/// [`fence`] behind what writes `a`: a compiler may move that, and not the fence.
///
/// # Safety
/// As [`fence`].
#[inline(always)]
#[must_use]
pub unsafe fn fence_behind(mut a: [u32; 4]) -> [u32; 4] {
    unsafe {
        asm!("wgmma.fence.sync.aligned; // {}, {}, {}, {}",
            inout(reg32) a[0], inout(reg32) a[1], inout(reg32) a[2], inout(reg32) a[3], options(nostack));
    }
    a
}

/// Closes the group of products issued since the last commit (`wgmma.commit_group`).
///
/// # Safety
/// As [`fence`].
#[inline(always)]
pub unsafe fn commit_group() {
    unsafe { asm!("wgmma.commit_group.sync.aligned;", options(nostack)) }
}

/// The sums of `TILES` n8 tiles of a warpgroup's 64 rows: this lane's four of each.
pub type Sums<const TILES: usize> = [[i32; 4]; TILES];

/// The products whose sums are `TILES` n8 tiles wide.
pub trait Products: Copy {
    /// n8 tiles.
    const TILES: usize;
    /// Zeros: of products that have not been started.
    const ZERO: Self;
    /// Element `i` of tile `tile`.
    fn get(&self, tile: usize, i: usize) -> i32;
    /// `A * B`, signed by signed bytes, both in shared memory.
    ///
    /// # Safety
    /// As [`fence`]; the operands have landed and stay until the products have been waited for.
    unsafe fn s8_s8(a: u64, b: u64) -> Self;
    /// `self += A * B`.
    ///
    /// # Safety
    /// As [`Self::s8_s8`].
    unsafe fn add_s8_s8(&mut self, a: u64, b: u64);
    /// `A * B`, unsigned bytes, A in registers.
    ///
    /// # Safety
    /// As [`Self::s8_s8`].
    unsafe fn registers_u8_u8(a: [u32; 4], b: u64) -> Self;
    /// `self += A * B`.
    ///
    /// # Safety
    /// As [`Self::s8_s8`].
    unsafe fn add_registers_u8_u8(&mut self, a: [u32; 4], b: u64);
    /// Waits until at most `PENDING` of the latest groups are under way; these sums belong to an earlier one and are
    /// ready from here on.
    ///
    /// # Safety
    /// As [`fence`].
    unsafe fn wait<const PENDING: usize>(&mut self);
}

/// Sixteen operands of a template.
macro_rules! sixteen {
    () => {
        "{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}"
    };
}

macro_rules! operands {
    (32) => {
        sixteen!()
    };
    (48) => {
        concat!(sixteen!(), ", {}, {}, {}, {}, {}, {}, {}, {}")
    };
    (64) => {
        concat!(sixteen!(), ", ", sixteen!())
    };
    (96) => {
        concat!(sixteen!(), ", ", sixteen!(), ", ", sixteen!())
    };
    (128) => {
        concat!(sixteen!(), ", ", sixteen!(), ", ", sixteen!(), ", ", sixteen!())
    };
}

macro_rules! product {
    ($n:tt, $types:literal, $new:ident, $add:ident, ($a:ident: $a_type:ty), $template:literal, ($($operand:tt)*), $(($t:literal $i:literal))*) => {
        #[inline(always)]
        unsafe fn $new($a: $a_type, b: u64) -> Self {
            let mut d = [[0; 4]; $n / 8];
            unsafe {
                asm!(concat!("{{ .reg .pred p; setp.ne.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n", $n, "k32.s32.", $types,
                    " {{", operands!($n), "}}, ", $template, ", {}, p; }}"),
                    $(out(reg32) d[$t][$i],)* $($operand)* in(reg64) b, options(nostack));
            }
            d
        }

        #[inline(always)]
        unsafe fn $add(&mut self, $a: $a_type, b: u64) {
            let d = self;
            unsafe {
                asm!(concat!("{{ .reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n", $n, "k32.s32.", $types,
                    " {{", operands!($n), "}}, ", $template, ", {}, p; }}"),
                    $(inout(reg32) d[$t][$i],)* $($operand)* in(reg64) b, options(nostack));
            }
        }
    };
}

macro_rules! products {
    ($n:tt: $($sum:tt)*) => {
        impl Products for Sums<{ $n / 8 }> {
            const TILES: usize = $n / 8;
            const ZERO: Self = [[0; 4]; $n / 8];

            #[inline(always)]
            fn get(&self, tile: usize, i: usize) -> i32 {
                self[tile][i]
            }

            product!($n, "s8.s8", s8_s8, add_s8_s8, (a: u64), "{}", (in(reg64) a,), $($sum)*);
            product!($n, "u8.u8", registers_u8_u8, add_registers_u8_u8, (a: [u32; 4]), "{{{}, {}, {}, {}}}",
                (in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],), $($sum)*);
            waits!($n: $($sum)*);
        }
    };
}

macro_rules! waits {
    ($n:tt: $(($t:literal $i:literal))*) => {
        #[inline(always)]
        unsafe fn wait<const PENDING: usize>(&mut self) {
            let d = self;
            // The sums pass through: what reads them stays behind the wait.
            unsafe {
                asm!(concat!("wgmma.wait_group.sync.aligned {}; // ", operands!($n)),
                    const PENDING, $(inout(reg32) d[$t][$i],)* options(nostack));
            }
        }
    };
}

products!(32: (0 0) (0 1) (0 2) (0 3) (1 0) (1 1) (1 2) (1 3) (2 0) (2 1) (2 2) (2 3) (3 0) (3 1) (3 2) (3 3));
products!(48: (0 0) (0 1) (0 2) (0 3) (1 0) (1 1) (1 2) (1 3) (2 0) (2 1) (2 2) (2 3) (3 0) (3 1) (3 2) (3 3) (4 0) (4 1) (4 2) (4 3) (5 0) (5 1) (5 2) (5 3));
products!(64: (0 0) (0 1) (0 2) (0 3) (1 0) (1 1) (1 2) (1 3) (2 0) (2 1) (2 2) (2 3) (3 0) (3 1) (3 2) (3 3) (4 0) (4 1) (4 2) (4 3) (5 0) (5 1) (5 2) (5 3) (6 0) (6 1) (6 2) (6 3) (7 0) (7 1) (7 2) (7 3));
products!(96: (0 0) (0 1) (0 2) (0 3) (1 0) (1 1) (1 2) (1 3) (2 0) (2 1) (2 2) (2 3) (3 0) (3 1) (3 2) (3 3) (4 0) (4 1) (4 2) (4 3) (5 0) (5 1) (5 2) (5 3) (6 0) (6 1) (6 2) (6 3) (7 0) (7 1) (7 2) (7 3) (8 0) (8 1) (8 2) (8 3) (9 0) (9 1) (9 2) (9 3) (10 0) (10 1) (10 2) (10 3) (11 0) (11 1) (11 2) (11 3));
products!(128: (0 0) (0 1) (0 2) (0 3) (1 0) (1 1) (1 2) (1 3) (2 0) (2 1) (2 2) (2 3) (3 0) (3 1) (3 2) (3 3) (4 0) (4 1) (4 2) (4 3) (5 0) (5 1) (5 2) (5 3) (6 0) (6 1) (6 2) (6 3) (7 0) (7 1) (7 2) (7 3) (8 0) (8 1) (8 2) (8 3) (9 0) (9 1) (9 2) (9 3) (10 0) (10 1) (10 2) (10 3) (11 0) (11 1) (11 2) (11 3) (12 0) (12 1) (12 2) (12 3) (13 0) (13 1) (13 2) (13 3) (14 0) (14 1) (14 2) (14 3) (15 0) (15 1) (15 2) (15 3));
