//! x
#[derive(Clone, Debug, PartialEq)]
pub struct DriverError;
impl std::fmt::Display for DriverError { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("x") } }
impl std::error::Error for DriverError {}
