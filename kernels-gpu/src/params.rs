//! What the host hands to an attention kernel: one structure by value, the kernel's only parameter.
//!
//! The host fills it, the kernels read it and the tests' PTX machine is given its bytes, all from this definition
//! (docs/kernel-abi.md has the shapes). An optional array or output that is not there has address zero.

mod append;
mod attention;
mod baseline;
mod convert;
mod decode;
mod gather;
mod quantize;

pub use append::AppendParams;
pub use attention::{AttentionParams, BlockParams, ScoreParams, ShortParams, mask_kind};
pub use baseline::BaselineParams;
pub use convert::{ConvertParams, PAIRS};
pub use decode::{DecodeParams, MergeSplitsParams, MergeStatesParams, MergedParams, SplitParams};
pub use gather::GatherParams;
pub use quantize::{DequantizeParams, QuantizeParams};

use core::fmt;
use core::marker::PhantomData;

/// The address of the first of some `T` in the GPU's global memory; zero where there are none.
#[repr(transparent)]
pub struct Global<T> {
    address: u64,
    pointee: PhantomData<fn() -> T>,
}

impl<T> Global<T> {
    /// No array.
    pub const NULL: Self = Self::new(0);

    /// The array at an address.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self { address, pointee: PhantomData }
    }

    /// The address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }
}

impl<T> Clone for Global<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Global<T> {}

impl<T> fmt::Debug for Global<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

#[cfg(target_arch = "nvptx64")]
impl<T> Global<T> {
    /// The address as a pointer.
    #[inline(always)]
    pub(crate) fn ptr(self) -> *const T {
        self.address as *const T
    }

    /// Whether there is no array.
    #[inline(always)]
    pub(crate) fn is_null(self) -> bool {
        self.address == 0
    }
}

/// A `[batch][head][token][head_dim]` tensor whose last dimension is contiguous; strides in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    /// The first element.
    pub data: Global<u8>,
    /// From one batch to the next.
    pub stride_b: i64,
    /// From one head to the next.
    pub stride_h: i64,
    /// From one token to the next.
    pub stride_n: i64,
}

/// `o_dtype`: the element type of an output.
pub mod dtype {
    /// IEEE binary16.
    pub const F16: u32 = 0;
    /// bfloat16.
    pub const BF16: u32 = 1;
    /// IEEE binary32.
    pub const F32: u32 = 2;
}

/// `operand` of the dequantization: layout, and what a scale belongs to.
pub mod operand {
    /// Queries: row-major, one scale a token.
    pub const Q: u32 = 0;
    /// Keys: packed, one scale a token.
    pub const K: u32 = 1;
    /// Values: packed and transposed, one scale a token.
    pub const V: u32 = 2;
}

/// `window_left` or `window_right` of a window that has no end on that side.
pub const UNLIMITED: u32 = u32::MAX;

/// Where the tokens of sequences of unlike lengths lie. Without any of the arrays, all sequences have the parameter's lengths.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SeqLens {
    /// Where queries are packed: where those of each sequence begin, and behind the last where they end, one more than sequences.
    pub cu_seqlens_q: Global<u32>,
    /// The same of keys and values.
    pub cu_seqlens_kv: Global<u32>,
    /// The keys of each sequence, where it has fewer than there are; null where all count.
    pub seqlens_kv: Global<u32>,
    /// Query tokens of a head of the tensors: of one sequence, or of all that are packed.
    pub total_q: u32,
    /// Key and value tokens of a head of the tensors.
    pub total_kv: u32,
    /// Not 0 where the queries of all sequences are packed.
    pub packed_q: u32,
    /// Not 0 where keys and values are.
    pub packed_kv: u32,
}

/// A kernel's parameter: a structure whose every byte is part of a field.
///
/// # Safety
/// `repr(C)`, without padding.
pub unsafe trait Params: Copy {
    /// The bytes, as a launch passes them.
    fn bytes(&self) -> &[u8] {
        // SAFETY: every byte belongs to a field.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

impl Strided {
    /// No tensor.
    pub const NONE: Self = Self { data: Global::NULL, stride_b: 0, stride_h: 0, stride_n: 0 };
}

impl SeqLens {
    /// All sequences have the same lengths, which are zero.
    pub const NONE: Self = Self {
        cu_seqlens_q: Global::NULL,
        cu_seqlens_kv: Global::NULL,
        seqlens_kv: Global::NULL,
        total_q: 0,
        total_kv: 0,
        packed_q: 0,
        packed_kv: 0,
    };
}

const _: () = assert!(size_of::<Strided>() == 4 * 8);
const _: () = assert!(size_of::<SeqLens>() == 3 * 8 + 4 * 4);
