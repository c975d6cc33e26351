//! What carries bytes from rank to rank.

use crate::error::Result;
use crate::gpu::{DeviceRows, DeviceSlice, DeviceSliceMut, StreamRef};
use crate::ranks::RanksError;

/// Where bytes are, and what puts exchanges in order with other work.
pub trait Place {
    /// What an exchange is ordered by.
    type Stream<'a>: Copy;
    /// Bytes to be sent.
    type Bytes<'a>: Copy;
    /// Room for bytes to be received.
    type BytesMut<'a>;
}

/// The host's memory; an exchange is done when it returns.
#[derive(Clone, Copy, Debug)]
pub enum Host {}

impl Place for Host {
    type Stream<'a> = ();
    type Bytes<'a> = &'a [u8];
    type BytesMut<'a> = &'a mut [u8];
}

/// A GPU's memory; an exchange is work of a stream.
#[derive(Clone, Copy, Debug)]
pub enum OnGpu {}

impl Place for OnGpu {
    type Stream<'a> = StreamRef<'a>;
    type Bytes<'a> = DeviceRows<DeviceSlice<'a, u8>>;
    type BytesMut<'a> = DeviceRows<DeviceSliceMut<'a, u8>>;
}

/// Bytes to or from a rank.
#[derive(Clone, Copy, Debug)]
pub struct Message<B> {
    /// The other rank, or the rank itself.
    pub peer: usize,
    /// The bytes, or the room for them.
    pub bytes: B,
}

/// One of several ranks that do the same thing at the same time, each with its own part of the data.
///
/// The messages from one rank to another are matched in the order in which both list them, and have the same lengths, and rows of a GPU, on both
/// sides; they are of one exchange on both. A rank has no part in an exchange in which it has no messages.
pub trait Communicator<P: Place> {
    /// This rank's number, from 0 on.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Whether an exchange gets on beside kernels that fill the GPU. Where it does not, since it is the work of multiprocessors itself, plans do not let them run at
    /// one time: what has begun on one rank would hold multiprocessors until the other rank's kernels leave some free.
    fn copies_beside_kernels(&self) -> bool {
        true
    }

    /// Sends and receives these messages as one: none of them waits for another one. An all-to-all is an exchange with every rank, itself
    /// included. In the stream's order, what was written before is sent, and what is received is there afterwards; until then the memory
    /// of both stays as it is.
    ///
    /// # Errors
    /// A peer that is no rank; memory or a stream of another GPU; a peer that is gone or does not come; what the engine says.
    fn exchange(
        &self,
        stream: P::Stream<'_>,
        sends: &[Message<P::Bytes<'_>>],
        receives: &mut [Message<P::BytesMut<'_>>],
    ) -> Result<()>;
}

/// Whether there are such peers.
pub(crate) fn check_peers(ranks: usize, peers: impl IntoIterator<Item = usize>) -> Result<()> {
    match peers.into_iter().find(|&peer| peer >= ranks) {
        Some(given) => Err(RanksError::Peer { given, ranks }.into()),
        None => Ok(()),
    }
}

/// Whether a communicator is that which a plan was made with, or one like it.
pub(crate) fn check_rank(ranks: &dyn Communicator<OnGpu>, count: usize, planned: usize) -> Result<()> {
    let given = check_ranks(ranks, count)?;
    if given == planned { Ok(()) } else { Err(RanksError::Rank { given, planned }.into()) }
}

/// The rank of a communicator that has as many as a problem. Anyone can write one, and it may say anything.
pub(crate) fn check_ranks<P: Place>(ranks: &dyn Communicator<P>, planned: usize) -> Result<usize> {
    let given = ranks.ranks();
    if given != planned {
        return Err(RanksError::Ranks { given, planned }.into());
    }
    let given = ranks.rank();
    if given < planned { Ok(given) } else { Err(RanksError::NoRank { given, ranks: planned }.into()) }
}
