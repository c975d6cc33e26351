//! What the tests share: cases and values, the properties that hold of the kernels, and the PTX machine's launch glue.

pub mod case;
pub mod properties;
pub mod sim;
pub mod values;

/// The number of generated cases: `INT_FLASH_CASES` where it is set (few under compute-sanitizer), else `usual`.
#[must_use]
pub fn cases(usual: u32) -> u32 {
    std::env::var("INT_FLASH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
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
    let config =
        proptest::test_runner::Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(strategy, |value| {
        property(&value).map_err(|error| proptest::test_runner::TestCaseError::fail(format!("{error:#}")))
    });
    result.map_err(|error| error.to_string())
}
