//! Everything that can go wrong, in sentences.

use crate::report::Report;

/// Why a module did not load, a launch did not start, or a launch did not end well.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not PTX, as far as the parser can tell.
    #[error("PTX line {line} does not parse: {reason}, in `{text}`.")]
    Syntax {
        /// Line in the PTX text, counted from one.
        line: u32,
        /// That line.
        text: String,
        /// What was expected, or what is wrong.
        reason: String,
    },
    /// The text may be PTX, but the machine does not know how to run it.
    #[error("PTX line {line} is not supported: {reason}, in `{text}`.")]
    Unsupported {
        /// Line in the PTX text, counted from one.
        line: u32,
        /// That line.
        text: String,
        /// The instruction, type or modifier that is not known.
        reason: String,
    },
    /// The launch names a kernel that the module does not hold.
    #[error("The module has no kernel `{kernel}`; it has {known:?}.")]
    NoKernel {
        /// The name asked for.
        kernel: String,
        /// The kernels the module holds.
        known: Vec<String>,
    },
    /// The number of arguments differs from the kernel's parameter list.
    #[error("Kernel `{kernel}` takes {expected} arguments, and got {got}.")]
    ArgumentCount {
        /// The kernel.
        kernel: String,
        /// Length of its parameter list.
        expected: usize,
        /// Number of arguments passed.
        got: usize,
    },
    /// An argument cannot be passed for the parameter at its place.
    #[error("Argument {index} of kernel `{kernel}` should be {expected}, and is {got}.")]
    Argument {
        /// The kernel.
        kernel: String,
        /// Place in the argument list, counted from zero.
        index: usize,
        /// The parameter, as the PTX declares it.
        expected: String,
        /// The argument.
        got: String,
    },
    /// The grid, the block or the shared memory is not one a device accepts.
    #[error("Kernel `{kernel}` cannot be launched: {reason}.")]
    Launch {
        /// The kernel.
        kernel: String,
        /// The limit that does not hold.
        reason: String,
    },
    /// The host touched memory that no allocation holds.
    #[error("The host accessed {bytes} bytes at {address:#x}, which is not inside one allocation.")]
    HostOutOfBounds {
        /// First byte of the access.
        address: u64,
        /// Length of the access.
        bytes: u64,
    },
    /// The host read memory that neither the host nor a kernel has written.
    #[error("The host read the byte at {address:#x}, which nothing has written.")]
    HostUninitialised {
        /// The first such byte.
        address: u64,
    },
    /// The kernel ran, and did something that it must not.
    #[error(transparent)]
    Findings(#[from] Report),
}
