//! What the tests share: cases and values, the properties that hold of the kernels, and the PTX machine's launch glue.

pub mod agreement;
pub mod baseline;
pub mod battery;
pub mod cache;
pub mod case;
pub mod continuation;
pub mod decode;
pub mod definition;
pub mod prefill;
pub mod properties;
pub mod quickstart;
pub mod ranks;
pub mod scores;
pub mod sequences;
pub mod sim;
pub mod unseen;
pub mod values;

/// The code in README and quickstart is compiled, and the part without a GPU run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/quickstart.md")]
#[doc = include_str!("../../docs/scores.md")]
struct Documents;

/// The number of generated cases: `INT_FLASH_CASES` where it is set (few under compute-sanitizer), else `usual`.
#[must_use]
pub fn cases(usual: u32) -> u32 {
    std::env::var("INT_FLASH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// The seed of the generated cases: `INT_FLASH_SEED` where it is set, else always the same, so that a run can be repeated.
fn seed() -> [u8; 32] {
    let number: u64 = std::env::var("INT_FLASH_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    seed
}

/// One generated value, always the same of a seed.
///
/// # Errors
///
/// When the strategy finds none.
pub fn draw<S: proptest::strategy::Strategy>(strategy: &S, seed: u64) -> anyhow::Result<S::Value> {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    Ok(strategy.new_tree(&mut runner).map_err(|why| anyhow::anyhow!("no case: {why}"))?.current())
}

/// Runs `property` on generated cases; the error shows the smallest case that was found to fail.
///
/// # Errors
///
/// The failing case and why.
pub fn check_cases<S: proptest::strategy::Strategy>(
    cases: u32,
    strategy: &S,
    property: impl Fn(&S::Value) -> anyhow::Result<()>,
) -> Result<(), String> {
    use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed()));
    let result =
        runner.run(strategy, |value| property(&value).map_err(|error| TestCaseError::fail(format!("{error:#}"))));
    result.map_err(|error| error.to_string())
}
