//! Any GPUs, of one process or several, of one host or several, over NVIDIA's NCCL.

mod library;

use super::communicator::{OnGpu, check_peers};
use super::{Communicator, Message, RanksError};
use crate::error::Result;
use crate::gpu::{DeviceRows, DeviceSlice, DeviceSliceMut, End, Gpu, StreamRef};
use library::{BYTES, Comm, Functions, UniqueId};
use std::fmt;

/// What the ranks of one communicator know each other by: one rank makes it, and gives it to the others by any way that programs have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NcclId(pub [u8; 128]);

impl fmt::Debug for NcclId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NcclId").finish_non_exhaustive()
    }
}

impl NcclId {
    /// A new one, of this host.
    ///
    /// # Errors
    /// No NCCL, and where it was looked for; what NCCL says.
    pub fn new() -> Result<Self> {
        let functions = Functions::get()?;
        let mut id = UniqueId([0; 128]);
        // SAFETY: the function stores one of it.
        functions.check("ncclGetUniqueId", unsafe { (functions.get_unique_id)(&mut id) })?;
        Ok(Self(id.0))
    }
}

/// A rank of NCCL's, which one thread uses.
pub struct Nccl {
    gpu: Gpu,
    rank: usize,
    ranks: usize,
    comm: Comm,
    functions: &'static Functions,
}

// SAFETY: NCCL's communicators may go from thread to thread; none is used by two at once, as this is not `Sync`.
unsafe impl Send for Nccl {}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nccl({} of {}, {:?})", self.rank, self.ranks, self.gpu)
    }
}

impl Nccl {
    /// Rank `rank` of `ranks`, on this GPU, which is no other rank's. It waits until all ranks have come here, each in a thread of its own.
    ///
    /// # Errors
    /// No NCCL, and where it was looked for; a rank that is none; what NCCL says.
    pub fn new(gpu: &Gpu, id: NcclId, rank: usize, ranks: usize) -> Result<Self> {
        let functions = Functions::get()?;
        if rank >= ranks {
            return Err(RanksError::NoRank { given: rank, ranks }.into());
        }
        let mut comm: Comm = std::ptr::null_mut();
        gpu.bind()?;
        // SAFETY: the context is current; the function stores one handle.
        let code = unsafe { (functions.init_rank)(&mut comm, ranks as i32, UniqueId(id.0), rank as i32) };
        functions.check("ncclCommInitRank", code)?;
        Ok(Self { gpu: gpu.clone(), rank, ranks, comm, functions })
    }

    /// The rank's GPU.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

impl Communicator<OnGpu> for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn copies_beside_kernels(&self) -> bool {
        false
    }

    fn exchange(
        &self,
        stream: StreamRef<'_>,
        sends: &[Message<DeviceRows<DeviceSlice<'_, u8>>>],
        receives: &mut [Message<DeviceRows<DeviceSliceMut<'_, u8>>>],
    ) -> Result<()> {
        let checked = self.gpu.check_exchange(stream, sends, receives)?;
        check_peers(self.ranks, checked.sends.iter().chain(&checked.receives).map(|end| end.peer))?;
        let f = self.functions;
        self.gpu.bind()?;
        // SAFETY: memory and stream have been checked, and the memory is the caller's until the stream has come there; the communicator is alive,
        // and this thread's alone.
        unsafe {
            f.check("ncclGroupStart", (f.group_start)())?;
            // A row is a message of NCCL's.
            let send = |end: &End| {
                end.starts().try_for_each(|start| {
                    let from = std::ptr::without_provenance(start as usize);
                    f.check("ncclSend", (f.send)(from, end.bytes, BYTES, end.peer as i32, self.comm, checked.stream.0))
                })
            };
            let receive = |end: &End| {
                end.starts().try_for_each(|start| {
                    let to = std::ptr::without_provenance_mut(start as usize);
                    f.check("ncclRecv", (f.receive)(to, end.bytes, BYTES, end.peer as i32, self.comm, checked.stream.0))
                })
            };
            let given =
                checked.sends.iter().try_for_each(send).and_then(|()| checked.receives.iter().try_for_each(receive));
            // Also where one was refused: a group that has begun ends.
            let ended = f.check("ncclGroupEnd", (f.group_end)());
            given.and(ended)
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: made by this object, and used by nothing any more; NCCL waits for what it was given.
            let _ = unsafe { (self.functions.destroy)(self.comm) };
        }
    }
}
