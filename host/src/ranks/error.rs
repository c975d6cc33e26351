//! What can be wrong with several ranks together.

/// What can be wrong with several ranks together; each sentence says what was given and what is allowed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RanksError {
    /// No ranks, or a communicator of others than the problem's.
    #[error("{given} ranks were given; the problem is of {planned}, and there is at least one")]
    Ranks {
        /// How many.
        given: usize,
        /// How many the problem has.
        planned: usize,
    },

    /// A communicator of another rank than the plan's.
    #[error("the communicator is of rank {given}; the plan was made for rank {planned}")]
    Rank {
        /// The communicator's.
        given: usize,
        /// The plan's.
        planned: usize,
    },

    /// A communicator of a rank that there is not.
    #[error("the communicator says that it is rank {given} of {ranks}; ranks count from 0 on, up to {ranks} less one")]
    NoRank {
        /// The rank.
        given: usize,
        /// How many there are.
        ranks: usize,
    },

    /// A message to or from a rank that there is not.
    #[error("a message names rank {given}; there are {ranks}, from 0 on")]
    Peer {
        /// The rank.
        given: usize,
        /// How many there are.
        ranks: usize,
    },

    /// Too few tokens.
    #[error("{tokens} tokens are {blocks} blocks of 128, which do not go round {ranks} ranks; take fewer ranks")]
    Short {
        /// Tokens of a sequence.
        tokens: usize,
        /// Their blocks.
        blocks: usize,
        /// Ranks.
        ranks: usize,
    },

    /// What a rank with a part of the tokens cannot do.
    #[error("{what} not possible over several ranks: {way}")]
    Refused {
        /// What, with its verb.
        what: &'static str,
        /// What is possible.
        way: &'static str,
    },

    /// Heads that ranks cannot share.
    #[error(
        "{heads_q} heads of Q and {heads_kv} of K and V do not go round {ranks} ranks: heads of Q are a multiple of the ranks, and of the heads of K and V and the ranks one is a multiple of the other; ring attention asks nothing of heads"
    )]
    Heads {
        /// Of Q.
        heads_q: usize,
        /// Of K and V.
        heads_kv: usize,
        /// Ranks.
        ranks: usize,
    },

    /// A rank that has ended.
    #[error("rank {rank} has ended before it took part in an exchange; its own error says why")]
    Gone {
        /// The rank.
        rank: usize,
    },

    /// A rank that does not come.
    #[error(
        "rank {rank} has not come to an exchange for {seconds} seconds; all ranks make the same calls, each in a thread of its own"
    )]
    Late {
        /// The rank.
        rank: usize,
        /// How long it was waited for.
        seconds: u64,
    },

    /// A quantization of later tokens that has no constants from the first.
    #[error(
        "later tokens of a head are quantized in the default scheme, of sequences that are not packed; else all tokens are quantized together"
    )]
    LaterTokens,

    /// An output whose heads' tokens are not neighbours.
    #[error("the outputs of heads come to {shape} in order bhnd; another layout was given")]
    Layout {
        /// The output's shape.
        shape: String,
    },

    /// No NCCL.
    #[error(
        "NCCL (libnccl.so.2) was not found: {}; install it (the Python package nvidia-nccl-cu12 has it), or set INT_FLASH_NCCL to its file",
        tried.join("; ")
    )]
    NoNccl {
        /// Each place, and what was wrong there.
        tried: Vec<String>,
    },

    /// NCCL's own.
    #[error("{call} failed: {text} ({code})")]
    Nccl {
        /// The function.
        call: &'static str,
        /// Its `ncclResult_t`.
        code: i32,
        /// NCCL's words for it.
        text: String,
    },

    /// A message of another length than the room for it.
    #[error(
        "{given} bytes come from rank {from} where {expected} are expected; all ranks have the same problem and make the same calls"
    )]
    Unlike {
        /// The sender.
        from: usize,
        /// What it sends.
        given: usize,
        /// The room.
        expected: usize,
    },
}
