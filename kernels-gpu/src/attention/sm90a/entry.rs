//! The entry points, from the table `sm90a_rows`.

use super::{Kernel, attention};
use crate::params::AttentionParams;
use crate::ptx::wgmma::Sums;

macro_rules! scheme {
    (Default) => {
        crate::attention::softmax::BlockMax<1, true>
    };
    (Paper) => {
        crate::attention::softmax::Paper<1>
    };
}

macro_rules! entries {
    ($($name:ident { head_dim: $d:literal, scheme: $scheme:ident, warpgroups: $wgs:literal, slots: $slots:literal,
        part: $part:literal, apart: $apart:literal, trimmed: $trimmed:literal, handover: $handover:literal, early: $early:literal, from_keys: $from:literal })*) => {$(
        #[cfg($name)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $name(params: AttentionParams) {
            struct Row;
            impl Kernel for Row {
                type Softmax = scheme!($scheme);
                type Part = Sums<{ $part / 8 }>;
                const HEAD_DIM: usize = $d;
                const WGS: usize = $wgs;
                const SLOTS: usize = $slots;
                const HANDOVER: usize = $handover;
                const EARLY: bool = $early;
                const APART: bool = $apart;
                const TRIMMED: bool = $trimmed;
            }
            unsafe { attention::<Row>(&params) }
        }
    )*};
}

crate::config::rows::sm90a_rows!(entries);
