//! The sums of rows: of the codes of a block, of the blocks so far, and at the end.

use crate::attention::KEY_STEPS;
use crate::attention::epilogue::Finished;
use crate::attention::softmax::{Joined, MAGIC, MAGIC_BITS, Notes, WEIGHT_UNIT};
use crate::layout::{KV_BLOCK, V_OFFSET, V_ROTATION};
use crate::ptx::math::{add_rn_f32, lg2_approx_ftz_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::mma::mma_m16n8k32_s32_u8_u8;
use crate::ptx::shared::{ld_shared_v4_f32, st_shared_v4_u32};

/// The largest unit of values that the factor of the sums has.
const NARROW: f32 = (1_u64 << 30) as f32;
/// What sums of P V are to be multiplied with: 2^149 over [`WEIGHT_UNIT`].
///
/// P and the bytes of V are unsigned, so a sum of P V is from 0 to `255 * 255 * 128 < 2^23`, and its bits, read as a float, are
/// the sum times 2^-149: floats next to zero (subnormal) have that step, and the arithmetic takes them at full speed. The sums
/// so go into `fma` as they are; converting them would be an instruction of half the rate for each. What V's bytes have too much
/// ([`V_OFFSET`]) leaves the output at the end.
const SUBNORMAL: f32 = (1_u128 << 101) as f32;

const _: () = assert!(255 * 255 * KV_BLOCK < 1 << 23);

/// Sums over the blocks so far, of rows or of a lane's share of them. They are in shared memory ([`Notes::sums`]) but where a block is
/// added: the loops have no registers for them.
pub(crate) struct Sums<const MT: usize> {
    /// Of the exponentials.
    pub row: [[f32; 2]; MT],
    /// Of the codes of P, each block's times its weight and the scale of its values: [`V_OFFSET`] times that is what V's bytes have too
    /// much.
    pub code: [[f32; 2]; MT],
}

impl<const MT: usize> Sums<MT> {
    pub const ZERO: Self = Self { row: [[0.0; 2]; MT], code: [[0.0; 2]; MT] };

    #[inline(always)]
    pub unsafe fn load(notes: Notes) -> Self {
        let mut sums = Self::ZERO;
        unroll!(0..MT, |mt| {
            let [a, b, c, d] = unsafe { ld_shared_v4_f32(notes.sums + (16 * mt) as u32) };
            (sums.row[mt], sums.code[mt]) = ([a, b], [c, d]);
        });
        sums
    }

    #[inline(always)]
    pub unsafe fn store(&self, notes: Notes) {
        unroll!(0..MT, |mt| {
            let ([a, b], [c, d]) = (self.row[mt], self.code[mt]);
            unsafe { st_shared_v4_u32(true, notes.sums + (16 * mt) as u32, [a, b, c, d].map(f32::to_bits)) };
        });
    }
}

/// The sums of P over all keys, of the rows in the two halves of a fragment.
#[inline(always)]
pub(crate) unsafe fn quad_sums(p: &[[u32; 4]; KEY_STEPS]) -> [f32; 2] {
    let mut sums = CodeSums::ZERO;
    unroll!(0..KEY_STEPS, |step| {
        unsafe { sums.add(p[step]) };
    });
    sums.get()
}

/// The sums of P of a quad's two rows, step by step.
#[derive(Clone, Copy)]
pub(crate) struct CodeSums([i32; 4]);

impl CodeSums {
    pub(crate) const ZERO: Self = Self([MAGIC_BITS; 4]);

    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn add(&mut self, p: [u32; 4]) {
        // Ones for B: every column of the product is the row sum.
        self.0 = unsafe { mma_m16n8k32_s32_u8_u8(p, [0x0101_0101; 2], self.0) };
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> [f32; 2] {
        [0, 2].map(|i| add_rn_f32(f32::from_bits(self.0[i] as u32), -MAGIC))
    }
}

/// A row of the sums `sum` of its exponentials and `codes` of its codes of P, both in `2^reference`.
#[inline(always)]
pub(crate) fn finish(sum: f32, codes: f32, reference: f32, sink: f32, unit: f32) -> Finished {
    // Not `sum > 0`: NaN is a result.
    if sum == 0.0 {
        return Finished::UNSEEN;
    }
    let row = Joined::new(sum, reference, sink, 255.0);
    // More than float16 holds, and no more than a factor of the sums does.
    let (narrow, rest) = if unit > NARROW { (NARROW, mul_rn_f32(unit, 1.0 / NARROW)) } else { (unit, 1.0) };
    let scale = mul_rn_f32(narrow, 1.0 / V_ROTATION as f32);
    let inverse = mul_rn_f32(rcp_approx_ftz_f32(row.sum), row.weight);
    Finished {
        factor: mul_rn_f32(mul_rn_f32(inverse, SUBNORMAL), scale),
        // In this order: a product of the scale and one factor would leave float32 where the unit is far from 1.
        offset: mul_rn_f32(mul_rn_f32(mul_rn_f32(codes, inverse), f32::from(V_OFFSET) / WEIGHT_UNIT), scale),
        rest,
        rotated: true,
        seen: u32::MAX,
        lse: row.reference + lg2_approx_ftz_f32(mul_rn_f32(row.sum, 1.0 / 255.0)),
    }
}
