//! The parameter of `convert_pages`.

use super::{Global, Params};

/// Most pairs of pages of a launch.
pub const PAIRS: usize = 16;

/// The parameter of `convert_pages`: pages with V in 8 bits to pages with 4, or the other way.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConvertParams {
    /// The pages.
    pub pool: Global<u8>,
    /// From which page to which, of the other kind; no page is in two of them.
    pub pairs: [[u32; 2]; PAIRS],
    /// From which page on V has 4 bits.
    pub v8_pages: u32,
    /// Heads of K and V.
    pub heads_kv: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
}

impl ConvertParams {
    /// Nothing: no pool.
    pub const NONE: Self =
        Self { pool: Global::NULL, pairs: [[0; 2]; PAIRS], v8_pages: 0, heads_kv: 0, head_dim: 0, reserved: 0 };
}

const _: () = assert!(size_of::<ConvertParams>() == 8 + PAIRS * 8 + 4 * 4);

// SAFETY: the size above is the sum of the fields'.
unsafe impl Params for ConvertParams {}
