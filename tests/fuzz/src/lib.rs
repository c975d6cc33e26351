//! Bytes that nobody has looked at, through everything that reads such: tensor files, layouts, problems, what changes
//! scores, lengths of sequences, caches and their block tables, PTX.
//!
//! A target takes any bytes and panics where a property does not hold. `fuzz/` at the repository's root puts libFuzzer on top of
//! them (`cargo fuzz run file`); `tests/bounded.rs` runs them on mutations of the same corpus, a fixed number of times.

mod cache;
mod file;
mod layout;
mod lengths;
pub mod mutate;
mod problem;
mod ptx;
mod score_inputs;
mod scores;
mod tables;

pub use cache::cache;
pub use file::file;
pub use layout::layout;
pub use lengths::lengths;
pub use problem::problem;
pub use ptx::ptx;
pub use scores::scores;
pub use tables::tables;

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// A target and its name, which is also that of its folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 8] = [
    ("cache", cache),
    ("file", file),
    ("layout", layout),
    ("lengths", lengths),
    ("problem", problem),
    ("ptx", ptx),
    ("scores", scores),
    ("tables", tables),
];

/// An error is one sentence that can be read.
fn is_sentence(text: &str) {
    assert!(!text.is_empty() && text.lines().count() == 1, "not one line: {text:?}");
    assert!(text.len() < 2000, "{} bytes: {}", text.len(), text.chars().take(200).collect::<String>());
    assert!(!text.chars().any(char::is_control), "control characters: {text:?}");
}
