//! The crate's one error type.

mod words;

use crate::dtype::DType;
use crate::problem::Scheme;
use int_flash_attention_driver::DriverError;
use int_flash_attention_kernels::config::Family;
use int_flash_attention_kernels::layout::page::CACHE_FORMAT;
use int_flash_attention_kernels::layout::{HEAD_DIMS, PACKED_FORMAT};
use std::path::PathBuf;
use words::{cache_padding, filling, numbered, padding, refusal};

/// What every fallible function of the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Machine code that the driver refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCode {
    /// The architecture that it is for, as ptxas calls it.
    pub architecture: &'static str,
    /// The driver's error.
    pub why: DriverError,
}

/// Everything that can be wrong with a request; each sentence says what was given and what is allowed.
///
/// Fields have the same names in all of them: `name` and `what` are what it is about, `given` is what was given, and `expected`, `planned`,
/// `allowed`, `max` and `most` are what would do. `device` is a GPU's name, `major` and `minor` are its compute capability.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "fields are described with their variant, or above")]
pub enum Error {
    /// A size of zero.
    #[error("{name} is 0; every size of a tensor is at least 1")]
    ZeroSize { name: &'static str },

    /// A size above what the kernels' 32-bit indices or the grid hold. `way`: why, and the way out.
    #[error("{name} is {given}; at most {max} is possible: {way}")]
    TooLarge { name: &'static str, given: usize, max: usize, way: &'static str },

    /// A number of elements or bytes that does not fit a 64-bit address. `shape`: that, or the strides, for which it was counted.
    #[error("{what} of {shape} do not fit into 63 bits")]
    Overflow { what: &'static str, shape: String },

    /// A tensor file's dimensions that are not four.
    #[error(
        "a tensor has the dimensions {given:?}; four are needed, [batch, heads, tokens, head_dim] (bhnd) or [batch, tokens, heads, head_dim] (bnhd)"
    )]
    Rank { given: Vec<usize> },

    /// A stride, in elements, that the kernels cannot follow.
    #[error("the {name} stride is {given}; it has to be {allowed}")]
    Stride { name: &'static str, given: i64, allowed: &'static str },

    /// An output layout in which two elements share an address. Strides in elements.
    #[error(
        "strides {strides:?} (batch, head, token) put two elements of {shape} at one address; an output needs an address for each"
    )]
    Overlap { strides: [i64; 3], shape: String },

    /// A tensor whose shape is not what the problem says.
    #[error("{name} has the shape {given}; {expected} is expected")]
    ShapeMismatch { name: &'static str, given: String, expected: String },

    /// Query heads that are not a multiple of the key/value heads.
    #[error(
        "{heads_q} query heads for {heads_kv} key/value heads; the query heads have to be a multiple of the key/value heads"
    )]
    HeadGroups { heads_q: usize, heads_kv: usize },

    /// A head dimension without an INT8 kernel.
    #[error("head_dim is {given}; there are kernels for multiples of 8 up to {most}: {}", padding(*.given, *.most))]
    HeadDim { given: usize, most: usize },

    /// A head dimension of V for which there is no kernel with that of Q and K.
    #[error(
        "V's head_dim is {head_dim_v}, that of Q and K {head_dim}; there are kernels where both are padded to the same of {HEAD_DIMS:?}, and in the default scheme for 136 to 256 with 104 to 128: {}", filling(*.head_dim, *.head_dim_v)
    )]
    HeadDimOfV { head_dim: usize, head_dim_v: usize },

    /// A head dimension that caches, decode and the merge of states do not have.
    #[error(
        "head_dim is {given}; caches, decode and the merge of states have {allowed:?}: {}", cache_padding(*.given, .allowed)
    )]
    CacheHeadDim { given: usize, allowed: Vec<usize> },

    /// A head dimension that pages with V in 4 bits do not have.
    #[error(
        "pages with V in 4 bits were asked for with head_dim {given}; they have head dims {allowed:?}: keep V in 8 bits (v4_pages 0)"
    )]
    V4HeadDim { given: usize, allowed: Vec<usize> },

    /// A prefill on the pages of a cache some of which have V in 4 bits. `given`: the cache's.
    #[error(
        "{given} pages of the cache have V in 4 bits, which a prefill does not read: gather the sequences (`Gpu::plan_gather`, `HostCache::gather`) and attend \
         on the operands"
    )]
    PrefillV4 { given: usize },

    /// A cache with other pages in 4 bits than a decode was planned for. `given`: the cache's; `planned`: the problem's.
    #[error(
        "{given} pages of the cache have V in 4 bits; the problem was made for {planned}: set v4_pages to the cache's"
    )]
    V4Pages { given: usize, planned: usize },

    /// A job that was asked of a kernel for short K and V, which has other problems.
    #[error(
        "the kernels for short K and V have head dims {allowed:?}, the default scheme, V's head dim that of K and unchanged scores, \
         which a problem of head_dim {given} is not: plan the job without naming its way"
    )]
    NotShort { given: usize, allowed: Vec<usize> },

    /// A head dimension without a float16 kernel.
    #[error(
        "head_dim is {given}; there are float16 kernels for {allowed:?}: compare with one of those that is no smaller"
    )]
    Float16HeadDim { given: usize, allowed: Vec<usize> },

    /// A side of a window that is not a number of keys. `side`: the one that is wrong.
    #[error(
        "the window `{given}` has the side `{side}`; a side is how many keys are seen before or behind the query's own, which is not \
         negative, or `inf` for all of them"
    )]
    Window { given: String, side: String },

    /// A softmax scale that is not a finite number.
    #[error("softmax_scale is {given}; it has to be a finite number")]
    SoftmaxScale { given: f32 },

    /// A softcap out of range.
    #[error("softcap is {given}; it has to be from 2^-14 to 2^14 (or left out, where scores are not capped)")]
    Softcap { given: f32 },

    /// A tensor of the scores that the problem does not have, or that is missing. `given`: "given" or "not given"; `posed`: "with" or "without".
    #[error("{name} was {given}; the problem is one {posed} it (`AttentionProblem::score_mod`)")]
    ScoreTensor { name: &'static str, given: &'static str, posed: &'static str },

    /// An ALiBi slope or a sink that is no finite number. `at`: its element.
    #[error("{name} holds {value} at element {at}; all of them have to be finite")]
    HeadValue { name: &'static str, value: f32, at: usize },

    /// Kernels that have nothing to change scores with.
    #[error(
        "what changes scores (`AttentionProblem::score_mod`) was asked for of {kernels}, which do not have it; the INT8 kernels for {} do",
        Family::Sm80
    )]
    PlainKernels { kernels: &'static str },

    /// A length of fixed splits that is not of whole blocks.
    #[error("a fixed split of {given} keys was asked for; it has to be a multiple of 128, from 128 on")]
    SplitLength { given: usize },

    /// A pool of a paged cache that is not of whole pages, or of too many. `given` and `page` in bytes, `max` in pages.
    #[error(
        "a pool of {given} bytes was given; besides its pages with V in 4 bits it has to be a whole number of pages of {page} bytes, at most {max} of \
         all"
    )]
    Pool { given: usize, page: usize, max: usize },

    /// A number of states to merge that a launch was not planned for.
    #[error("{given} states were given to be merged; the plan was made for {planned}")]
    States { given: usize, planned: usize },

    /// A merge in place into an output that is not where the state is.
    #[error(
        "a merge in place was asked for, of a plan whose output is not contiguous as [batch][heads][tokens][head_dim]; the states are"
    )]
    InPlace,

    /// An element type other than the one agreed on.
    #[error("{name} holds {given}; {expected} is expected")]
    DTypeMismatch { name: &'static str, given: DType, expected: DType },

    /// Quantized operands that another version of the library packed.
    #[error("packed blocks of version {given} were given; this library reads version {PACKED_FORMAT}")]
    PackedFormat { given: u32 },

    /// Pages of a cache that another version of the library wrote.
    #[error("pages of version {given} were given; this library reads version {CACHE_FORMAT}")]
    CacheFormat { given: u32 },

    /// A slot that no page has.
    #[error("token {token} has the slot {given}; the cache has the slots 0 to {}, and -1 leaves a token out", .slots - 1)]
    Slot { token: usize, given: i64, slots: usize },

    /// A slot that is to be written twice at once. `first` and `second`: tokens.
    #[error("the tokens {first} and {second} have both the slot {slot}; each token is written to a slot of its own")]
    SlotTwice { slot: i64, first: usize, second: usize },

    /// A page that the pool does not have. `what` names it, the sequence included.
    #[error("{what} names page {given}; the cache has the pages 0 to {}", .pages - 1)]
    NoPage { what: String, given: u32, pages: usize },

    /// A sequence that its row of the block table has no room for. `given` and `max` in tokens.
    #[error("sequence {sequence} has {given} tokens; its row of the block table has room for {max}")]
    SequenceLength { sequence: usize, given: usize, max: usize },

    /// A page that is to be written, and that something else uses. `other`: the sequence that uses it too, the same where it is there twice.
    #[error(
        "sequence {sequence} is to be written to page {page}, which sequence {other} uses as well; copy the page and put the copy into the block table first"
    )]
    SharedPage { page: u32, sequence: usize, other: usize },

    /// A buffer of the wrong size. In elements.
    #[error("{name} holds {given} elements; {expected} are needed")]
    Length { name: &'static str, given: usize, expected: usize },

    /// A buffer whose address the kernels' vector accesses cannot use. In bytes.
    #[error("{name} starts at {address:#x}; its address has to be a multiple of {align} bytes")]
    Alignment { name: &'static str, address: u64, align: u64 },

    /// Data that is not a whole number of elements. `given` in bytes.
    #[error("{given} bytes are not a whole number of {dtype} elements of {size} bytes", size = .dtype.size())]
    PartialElement { given: usize, dtype: DType },

    /// A NaN or an infinity.
    #[error(
        "{name} holds {value} at [batch {batch}, head {head}, token {token}, dim {dim}]; all values have to be finite"
    )]
    NotFinite { name: &'static str, value: f32, batch: usize, head: usize, token: usize, dim: usize },

    /// A NaN or an infinity among the results of finite inputs. `name`: "o" or "lse"; `dtype`: the output's.
    #[error(
        "{name} came out as {value} in [batch {batch}, head {head}, token {token}]: the scores have left the range of the scheme, or the output that of {dtype}; scale q, k or v down, give a smaller softmax_scale, or ask for an output of another element type"
    )]
    ResultNotFinite { name: &'static str, value: f32, batch: usize, head: usize, token: usize, dtype: DType },

    /// Memory of the host that the system does not give.
    #[error("there is no memory for {what}, {bytes} bytes")]
    Memory { what: &'static str, bytes: usize },

    /// Threads that the system does not give. `why`: what the system says.
    #[error(
        "the threads for the CPU cannot be started ({why}); RAYON_NUM_THREADS sets their number, else there is one a core"
    )]
    Threads { why: String },

    /// A code that no quantizer gives. `at`: the byte.
    #[error("{name} holds the code -128 at byte {at}; codes are -127 to 127")]
    Code { name: &'static str, at: usize },

    /// A scale that no quantizer gives. `at`: the element.
    #[error("{name} holds {value} at element {at}; scales are not negative and not infinite")]
    Scale { name: &'static str, value: f32, at: usize },

    /// A query position past the end.
    #[error("query row {given} was asked for; there are {seqlen_q}")]
    Row { given: usize, seqlen_q: usize },

    /// Offsets of packed sequences that are none. `begin` and `end`: the sequence's; `total`: tokens of all.
    #[error(
        "{name} has sequence {sequence} from token {begin} to {end}; offsets begin at 0, do not decrease, and are at most the {total} tokens that there are"
    )]
    Offsets { name: &'static str, sequence: usize, begin: usize, end: usize, total: usize },

    /// A sequence longer than what was planned for. In tokens; `name`: which lengths or offsets.
    #[error("{name} has {given} tokens for sequence {sequence}; the problem's sequences have at most {max}")]
    SeqLen { name: &'static str, sequence: usize, given: usize, max: usize },

    /// An output or input that was left out although the plan was made with it, or the other way round. `given`: "given" or
    /// "not given"; `planned`: "with" or "without".
    #[error("{name} was {given} at the launch; the plan was made {planned} it")]
    Optional { name: &'static str, given: &'static str, planned: &'static str },

    /// An operand of another scheme than the plan's.
    #[error("{name} is an operand of the {given} scheme; the plan was made for a problem of the {planned} scheme")]
    OperandScheme { name: &'static str, given: Scheme, planned: Scheme },

    /// A word that names no choice.
    #[error("unknown {what} {given:?}; it is one of {allowed}")]
    Parse { what: &'static str, given: String, allowed: &'static str },

    /// A GPU too old for the kernels.
    #[error("{device} has compute capability {major}.{minor}; the kernels need 8.0 or later (Ampere)")]
    ComputeCapability { device: String, major: u32, minor: u32 },

    /// Kernels of a family that the GPU or its driver does not run. `cuda`: the CUDA version of the driver, `1000 * major + 10 * minor`.
    #[error(
        "{device} has compute capability {major}.{minor} and a driver for CUDA {}.{}; they do not run the kernels for {family}",
        .cuda / 1000, .cuda % 1000 / 10
    )]
    Family { device: String, major: u32, minor: u32, cuda: u32, family: Family },

    /// A GPU that does not exist.
    #[error("CUDA device {given} was asked for; there are {count}")]
    NoSuchDevice { given: usize, count: usize },

    /// Several GPUs, none of which can be used. `reasons`: why, GPU by GPU.
    #[error("none of the {} GPUs can be used: {}", .reasons.len(), numbered(.reasons))]
    NoUsableGpu { reasons: Vec<Error> },

    /// A GPU on which INT8 is slower than float16. `rate`: of INT8 over that of float16.
    #[error(
        "{device} (compute capability {major}.{minor}) does INT8 at {rate:.2} times its float16 rate, so attention in float16 is faster there; `Gpu::plan_attention_of` makes the plan all the same"
    )]
    SlowInt8 { device: String, major: u32, minor: u32, rate: f32 },

    /// A kernel that needs more shared memory than the GPU lends to one block. In bytes.
    #[error("kernel {kernel} needs {needed} bytes of shared memory a block; {device} has {available}")]
    SharedMemory { kernel: &'static str, needed: usize, available: usize, device: String },

    /// A file of PTX that cannot be read. `why`: what the system says.
    #[error("cannot read {}: {why}", .path.display())]
    PtxFile { path: PathBuf, why: String },

    /// A kernel that the PTX does not hold.
    #[error("module {module} has no kernel {kernel}; its PTX is made by `cargo xtask build`")]
    MissingKernel { module: &'static str, kernel: &'static str },

    /// A module that this build of the library was told to leave out. `features`: those of cargo that bring it.
    #[error("module {module} is not in this build of int-flash-attention; it comes with the cargo features {}", .features.join(" and "))]
    LeftOut { module: &'static str, features: Vec<&'static str> },

    /// A module that the driver takes neither as machine code, where there is some for the GPU, nor as PTX. `why`: the driver's
    /// error, with its log, and no source, so that a chain of errors shows the log once; `machine_code`: what was tried before.
    #[error("the driver cannot load the PTX of module {module}: {why}{}", refusal(.machine_code.as_deref()))]
    ModuleLoad { module: &'static str, why: DriverError, machine_code: Option<Box<RefusedCode>> },

    /// More blocks than a CUDA grid has. `kernel`: what was to be launched.
    #[error("{kernel} on {shape} needs more than 2147483647 blocks")]
    Grid { kernel: &'static str, shape: String },

    /// More tiles of query rows than an attention kernel counts.
    #[error("{kernel} on {shape} has more tiles of query rows than its 32-bit count holds")]
    Tiles { kernel: &'static str, shape: String },

    /// Memory, a stream or an event of another GPU or context than the plan's. `given`: where it is; `expected`: where the plan is.
    #[error(
        "{name} is of {given}; {expected} was meant: what is launched together has to be of one context, so make plans, buffers and streams with one `Gpu`"
    )]
    OtherContext { name: &'static str, given: String, expected: String },

    /// Something that CUDA does not allow beside a recording.
    #[error(
        "{what} is not possible while a graph is being recorded on this GPU, because it would break the recording; do it before or after `Gpu::capture`, or wait for one stream (`Stream::synchronize`, `DeviceBuffer::to_vec_on`)"
    )]
    Recording { what: &'static str },

    /// Memory of another library in a launch on another stream than it orders its use by.
    #[error(
        "{name} is memory that its library frees and reuses behind the work of another stream than the launch's; give the wrapper (`CudarcSlice::new`) the stream that is launched on"
    )]
    OtherStream { name: &'static str },

    /// Memory of another library in a recorded launch, or a recording of another library.
    #[error(
        "{name} cannot be kept alive by the graph; record with `Gpu::capture` and this crate's buffers, or use `from_raw`, whose caller promises that memory and plans outlive the graph"
    )]
    RecordedForeign { name: &'static str },

    /// A current context that cannot be held.
    #[error(
        "the thread's current CUDA context is not the primary context of its GPU, so it cannot be kept alive; use `Gpu::new`, or the unsafe `Gpu::borrow_current`"
    )]
    NotPrimary,

    /// No driver, or a call that it refused.
    #[error(transparent)]
    Driver(#[from] DriverError),

    /// What is wrong with several ranks together.
    #[error(transparent)]
    Ranks(#[from] crate::ranks::RanksError),
}
