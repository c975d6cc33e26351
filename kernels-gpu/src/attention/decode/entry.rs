//! The entry points, from the table `decode_rows`.

use super::{Kernel, decode};
use crate::params::DecodeParams;

macro_rules! entries {
    ($($name:ident { head_dim: $d:literal, team: $team:literal, min_ctas: $ctas:literal, v4: $v4:literal, overlaps: $overlaps:literal })*) => {$(
        #[cfg($name)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $name(params: DecodeParams) {
            struct Row;
            impl Kernel for Row {
                const HEAD_DIM: usize = $d;
                const TEAM: usize = $team;
                const V4: bool = $v4;
                const OVERLAPS: bool = $overlaps;
            }
            unsafe { decode::<Row>(&params) }
        }
    )*};
}

crate::config::rows::decode_rows!(entries);
