//! States of attention over parts of the keys to the state of all (docs/kernel-abi.md, "Merge").
//!
//! Where states are few, a thread has all of them in eight dims of a row, and a CTA has many rows. Else a CTA has a row, or some dims of one where there are few rows. Its threads are eight groups that have all these dims each, eight a thread;
//! group `i` takes the states `i`, `i + 8`, .., and the groups' sums are added in the groups' order, so that the result depends on the states alone.

mod entry;
mod row;
