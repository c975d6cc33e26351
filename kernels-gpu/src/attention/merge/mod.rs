//! States of attention over parts of the keys to the state of all (docs/kernel-abi.md, "Merge").
//!
//! A CTA has a row. Its threads are groups that have all dims each, eight a thread; group `i` of `n` takes the states `i`, `i + n`, .., and the
//! groups' sums are added in the groups' order, so that the result depends on the states alone.

mod entry;
mod row;
