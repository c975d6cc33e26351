//! The entry points, from the table `short_rows`.

use super::{Kernel, attention};
use crate::params::ShortParams;

macro_rules! entries {
    ($($name:ident { head_dim: $d:literal, m16_tiles: $mt:literal, most_warps: $warps:literal, min_ctas: $ctas:literal,
        any_queries: $any:literal, to_keys: $to:literal, to_keys_filled: $filled:literal })*) => {$(
        #[cfg($name)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $name(params: ShortParams) {
            struct Row;
            impl Kernel<$mt> for Row {
                const HEAD_DIM: usize = $d;
            }
            unsafe { attention::<Row, $mt>(&params) }
        }
    )*};
}

crate::config::rows::short_rows!(entries);
