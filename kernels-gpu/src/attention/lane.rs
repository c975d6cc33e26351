//! Which elements of a warp's fragments a lane has (drawn in `ptx/mma.rs`).

/// The place of a lane in the fragments, and the queries of its warp.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    /// `lane / 4`: its row in each eight rows of a fragment.
    pub group: u32,
    /// `lane % 4`: its pair of columns in each eight columns of a fragment.
    pub quad: u32,
    /// First query of the fragments.
    pub row: u32,
}

impl Lane {
    /// Of thread `thread` of the CTA, whose warp has the queries from `row` on.
    #[inline(always)]
    pub(crate) fn new(thread: u32, row: u32) -> Self {
        Self { group: thread % 32 / 4, quad: thread % 4, row }
    }

    /// The lane's query in half `half` of m16 tile `mt`.
    #[inline(always)]
    pub(crate) fn query(&self, mt: usize, half: usize) -> u32 {
        self.row + (16 * mt + 8 * half) as u32 + self.group
    }
}
