//! The PTX modules: of each its name, the part of the crate that it is made of, and what it is compiled for.

use super::rows::{baseline_rows, conversion_rows, decode_rows, merge_rows, short_rows, sm80_rows, sm90a_rows};
use super::{Family, concat, decode};

/// A PTX module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// File stem in `host/ptx`, and the `--cfg` that selects its entry points.
    pub name: &'static str,
    /// The part of the crate that it is made of: the value of `--cfg kernels`.
    pub part: &'static str,
    /// `-Ctarget-cpu`.
    pub target: &'static str,
    /// The least PTX version, major and minor: a code generator knows what the target needs, and not what the kernels' inline
    /// assembly does.
    pub ptx: (u32, u32),
}

/// Modules that every GPU from compute capability 8.0 on runs. Conversions to pairs that saturate came with PTX 8.1.
macro_rules! sm80_modules {
    ($part:expr; $($name:ident { $($field:tt)* })*) => {
        &[$(Module { name: stringify!($name), part: $part, target: Family::Sm80.target(), ptx: (8, 1) }),*]
    };
    ($($name:ident { $($field:tt)* })*) => { sm80_modules!("sm80"; $($name {})*) };
}

/// `wgmma` of u8 and s8 came with PTX 8.4.
macro_rules! sm90a_modules {
    ($($name:ident { $($field:tt)* })*) => {
        &[$(Module { name: stringify!($name), part: "sm90a", target: Family::Sm90a.target(), ptx: (8, 4) }),*]
    };
}

macro_rules! baseline_modules {
    ($($name:ident { $($field:tt)* })*) => { sm80_modules!("baseline"; $($name {})*) };
}

macro_rules! short_modules {
    ($($name:ident { $($field:tt)* })*) => { sm80_modules!("short"; $($name {})*) };
}

macro_rules! decode_modules {
    ($($name:ident { $($field:ident: $value:tt),* })*) => {
        &[$(overlapping("decode", stringify!($name), decode_modules!(@last $($value)*))),*]
    };
    (@last $last:tt) => { $last };
    (@last $first:tt $($rest:tt)+) => { decode_modules!(@last $($rest)+) };
}

macro_rules! merge_modules {
    ($($name:ident { overlaps: $overlaps:literal })*) => { &[$(overlapping("merge", stringify!($name), $overlaps)),*] };
}

/// A module whose launches may overlap, which GPUs from compute capability 9.0 on have an instruction for, or may not.
const fn overlapping(part: &'static str, name: &'static str, overlaps: bool) -> Module {
    let target = if overlaps { decode::OVERLAPPING_TARGET } else { Family::Sm80.target() };
    Module { name, part, target, ptx: (8, 1) }
}

macro_rules! conversion_modules {
    ($($name:ident { part: $part:literal, overlaps: $overlaps:literal })*) => { &[$(overlapping($part, stringify!($name), $overlaps)),*] };
}

const CONVERSION_MODULES: &[Module] = conversion_rows!(conversion_modules);
const SM80_MODULES: &[Module] = sm80_rows!(sm80_modules);
const SM90A_MODULES: &[Module] = sm90a_rows!(sm90a_modules);
const SHORT_MODULES: &[Module] = short_rows!(short_modules);
const BASELINE_MODULES: &[Module] = baseline_rows!(baseline_modules);
const DECODE_MODULES: &[Module] = decode_rows!(decode_modules);
const MERGE_MODULES: &[Module] = merge_rows!(merge_modules);

const MODULE_PARTS: &[&[Module]] =
    &[CONVERSION_MODULES, SM80_MODULES, SM90A_MODULES, SHORT_MODULES, BASELINE_MODULES, DECODE_MODULES, MERGE_MODULES];

/// All PTX modules that `xtask build` writes.
pub const MODULES: &[Module] = &concat::<_, { len(MODULE_PARTS) }>(MODULE_PARTS);

/// Elements of all parts.
const fn len<T>(parts: &[&[T]]) -> usize {
    let (mut part, mut len) = (0, 0);
    while part < parts.len() {
        len += parts[part].len();
        part += 1;
    }
    len
}
