//! The crate's one error type.

use crate::dtype::DType;
use crate::problem::Scheme;
use int_flash_attention_driver::DriverError;
use int_flash_attention_kernels::config::Family;
use int_flash_attention_kernels::layout::PACKED_FORMAT;
use std::path::PathBuf;

/// What every fallible function of the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can be wrong with a request; each sentence says what was given and what is allowed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size of zero.
    #[error("{name} is 0; every size of a tensor is at least 1")]
    ZeroSize {
        /// Which size.
        name: &'static str,
    },

    /// A size above what the kernels' 32-bit indices or the grid hold.
    #[error("{name} is {given}; at most {max} is possible")]
    TooLarge {
        /// Which size.
        name: &'static str,
        /// The size given.
        given: usize,
        /// The largest one allowed.
        max: usize,
    },

    /// A number of elements or bytes that does not fit a 64-bit address.
    #[error("{what} of {shape} do not fit into 63 bits")]
    Overflow {
        /// What was counted.
        what: &'static str,
        /// The shape or strides it was counted for.
        shape: String,
    },

    /// A tensor file's dimensions that are not four.
    #[error(
        "a tensor has the dimensions {given:?}; four are needed, [batch, heads, tokens, head_dim] (bhnd) or [batch, tokens, heads, head_dim] (bnhd)"
    )]
    Rank {
        /// The dimensions given.
        given: Vec<usize>,
    },

    /// A stride that the kernels cannot follow.
    #[error("the {name} stride is {given}; it has to be {allowed}")]
    Stride {
        /// Which stride.
        name: &'static str,
        /// The stride given, in elements.
        given: i64,
        /// What is allowed.
        allowed: &'static str,
    },

    /// An output layout in which two elements share an address.
    #[error(
        "strides {strides:?} (batch, head, token) put two elements of {shape} at one address; an output needs an address for each"
    )]
    Overlap {
        /// The strides given, in elements.
        strides: [i64; 3],
        /// The shape.
        shape: String,
    },

    /// A tensor whose shape is not what the problem says.
    #[error("{name} has the shape {given}; {expected} is expected")]
    ShapeMismatch {
        /// Which tensor.
        name: &'static str,
        /// Its shape.
        given: String,
        /// The shape the problem asks for.
        expected: String,
    },

    /// Query heads that are not a multiple of the key/value heads.
    #[error(
        "{heads_q} query heads for {heads_kv} key/value heads; the query heads have to be a multiple of the key/value heads"
    )]
    HeadGroups {
        /// Query heads.
        heads_q: usize,
        /// Key/value heads.
        heads_kv: usize,
    },

    /// A head dimension without an INT8 kernel.
    #[error("head_dim is {given}; the INT8 kernels have {allowed:?}")]
    HeadDim {
        /// The head dimension given.
        given: usize,
        /// Those that there are.
        allowed: Vec<usize>,
    },

    /// A side of a window that is not a number of keys.
    #[error(
        "the window `{given}` has the side `{side}`; a side is how many keys are seen before or behind the query's own, which is not \
         negative, or `inf` for all of them"
    )]
    Window {
        /// The window given.
        given: String,
        /// The side of it.
        side: String,
    },

    /// A softmax scale that is not a finite number.
    #[error("softmax_scale is {given}; it has to be a finite number")]
    SoftmaxScale {
        /// The scale given.
        given: f32,
    },

    /// An element type other than the one agreed on.
    #[error("{name} holds {given}; {expected} is expected")]
    DTypeMismatch {
        /// Which tensor.
        name: &'static str,
        /// Its type.
        given: DType,
        /// The type expected.
        expected: DType,
    },

    /// Quantized operands that another version of the library packed.
    #[error("packed blocks of version {given} were given; this library reads version {PACKED_FORMAT}")]
    PackedFormat {
        /// Their version.
        given: u32,
    },

    /// A buffer of the wrong size.
    #[error("{name} holds {given} elements; {expected} are needed")]
    Length {
        /// Which buffer.
        name: &'static str,
        /// Its length in elements.
        given: usize,
        /// The length needed.
        expected: usize,
    },

    /// A buffer whose address the kernels' vector accesses cannot use.
    #[error("{name} starts at {address:#x}; its address has to be a multiple of {align} bytes")]
    Alignment {
        /// Which buffer.
        name: &'static str,
        /// Its device address.
        address: u64,
        /// The alignment needed, in bytes.
        align: u64,
    },

    /// Data that is not a whole number of elements.
    #[error("{given} bytes are not a whole number of {dtype} elements of {size} bytes", size = .dtype.size())]
    PartialElement {
        /// Bytes given.
        given: usize,
        /// The element type.
        dtype: DType,
    },

    /// A NaN or an infinity.
    #[error(
        "{name} holds {value} at [batch {batch}, head {head}, token {token}, dim {dim}]; all values have to be finite"
    )]
    NotFinite {
        /// Which tensor.
        name: &'static str,
        /// The value.
        value: f32,
        /// Its batch.
        batch: usize,
        /// Its head.
        head: usize,
        /// Its token.
        token: usize,
        /// Its dimension.
        dim: usize,
    },

    /// A query position past the end.
    #[error("query row {given} was asked for; there are {seqlen_q}")]
    Row {
        /// The row asked for.
        given: usize,
        /// Rows that there are.
        seqlen_q: usize,
    },

    /// An output or input that was left out although the plan was made with it, or the other way round.
    #[error("{name} was {given} at the launch; the plan was made {planned} it")]
    Optional {
        /// Which operand.
        name: &'static str,
        /// "given" or "not given".
        given: &'static str,
        /// "with" or "without".
        planned: &'static str,
    },

    /// An operand of another scheme than the plan's.
    #[error("{name} is an operand of the {given} scheme; the plan was made for a problem of the {planned} scheme")]
    OperandScheme {
        /// Which operand.
        name: &'static str,
        /// Its scheme.
        given: Scheme,
        /// The plan's.
        planned: Scheme,
    },

    /// A word that names no choice.
    #[error("unknown {what} {given:?}; it is one of {allowed}")]
    Parse {
        /// What was to be chosen.
        what: &'static str,
        /// The word given.
        given: String,
        /// The choices.
        allowed: &'static str,
    },

    /// A GPU too old for the kernels.
    #[error("{device} has compute capability {major}.{minor}; the kernels need 8.0 or later (Ampere)")]
    ComputeCapability {
        /// The GPU's name.
        device: String,
        /// Its major compute capability.
        major: u32,
        /// Its minor compute capability.
        minor: u32,
    },

    /// Kernels of a family that the GPU or its driver does not run.
    #[error(
        "{device} has compute capability {major}.{minor} and a driver for CUDA {}.{}; they do not run the kernels for {family}",
        .cuda / 1000, .cuda % 1000 / 10
    )]
    Family {
        /// The GPU's name.
        device: String,
        /// Its major compute capability.
        major: u32,
        /// Its minor compute capability.
        minor: u32,
        /// The CUDA version of its driver, `1000 * major + 10 * minor`.
        cuda: u32,
        /// The family asked for.
        family: Family,
    },

    /// A GPU that does not exist.
    #[error("CUDA device {given} was asked for; there are {count}")]
    NoSuchDevice {
        /// The ordinal asked for.
        given: usize,
        /// Devices that there are.
        count: usize,
    },

    /// A kernel that needs more shared memory than the GPU lends to one block.
    #[error("kernel {kernel} needs {needed} bytes of shared memory a block; {device} has {available}")]
    SharedMemory {
        /// The kernel.
        kernel: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes the GPU offers.
        available: usize,
        /// The GPU's name.
        device: String,
    },

    /// A file of PTX that cannot be read.
    #[error("cannot read {}: {why}", .path.display())]
    PtxFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },

    /// A kernel that the PTX does not hold.
    #[error("module {module} has no kernel {kernel}; its PTX is made by `cargo xtask build`")]
    MissingKernel {
        /// The PTX module.
        module: &'static str,
        /// The entry point.
        kernel: &'static str,
    },

    /// PTX that the driver could not assemble.
    #[error("the driver cannot load module {module}: {source}")]
    ModuleLoad {
        /// The PTX module.
        module: &'static str,
        /// The driver's error, with its log.
        source: DriverError,
    },

    /// More blocks than a CUDA grid has.
    #[error("{kernel} on {shape} needs more than 2147483647 blocks")]
    Grid {
        /// What was to be launched.
        kernel: &'static str,
        /// The shape.
        shape: String,
    },

    /// More tiles of query rows than an attention kernel counts.
    #[error("{kernel} on {shape} has more tiles of query rows than its 32-bit count holds")]
    Tiles {
        /// What was to be launched.
        kernel: &'static str,
        /// The shape of Q.
        shape: String,
    },

    /// No driver, or a call that it refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
}
