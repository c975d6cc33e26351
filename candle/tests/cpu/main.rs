//! On the CPU: the bits that the library gives, in candle's shapes; attention as candle's own operations compute it; refusals.

mod cache;
mod dense;
mod plain;
mod scores;
mod varlen;
