//! Several GPUs of one process, over copies of the CUDA driver.
//!
//! A message is posted by the sender, with an event behind what its stream has of it, and taken by the receiver, whose stream waits for the event and
//! copies. Then the sender's stream waits for an event behind the copy, so that what comes after may change the bytes. Host threads wait for each
//! other until all that is posted has been taken; the GPUs' work is not waited for.

use super::communicator::{OnGpu, check_peers};
use super::{Communicator, Message, RanksError};
use crate::error::Result;
use crate::gpu::{Checked, DeviceRows, DeviceSlice, DeviceSliceMut, End, Event, Gpu, PostedEnd, StreamRef};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a rank waits for another one to come to the same exchange.
const PATIENCE: Duration = Duration::from_secs(120);

/// A rank of several in one process, each with a GPU and a thread of its own. Two ranks may have the same GPU.
#[derive(Debug)]
pub struct Peers {
    gpu: Gpu,
    rank: usize,
    hub: Arc<Hub>,
}

/// What the ranks share.
#[derive(Debug)]
struct Hub {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What has been posted and not taken, from rank to rank: `[from][to]`.
    posted: Vec<VecDeque<Post>>,
    gone: Vec<bool>,
}

#[derive(Debug)]
struct Post {
    bytes: PostedEnd,
    taken: Taken,
}

/// What has become of a message that is out of its box: an event behind its copy, or an error of the receiver.
type Taken = Arc<Mutex<Option<Result<Arc<Event>>>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// A rank for each of these GPUs, in order; copies between them go straight where the GPUs can.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ranks(gpus: &[Gpu]) -> Result<Vec<Self>> {
        for (own, other) in gpus.iter().flat_map(|own| gpus.iter().map(move |other| (own, other))) {
            own.reach(other)?;
        }
        let ranks = gpus.len();
        let posted = (0..ranks * ranks).map(|_| VecDeque::new()).collect();
        let state = Mutex::new(State { posted, gone: vec![false; ranks] });
        let hub = Arc::new(Hub { ranks, state, changed: Condvar::new() });
        Ok(gpus.iter().enumerate().map(|(rank, gpu)| Self { gpu: gpu.clone(), rank, hub: hub.clone() }).collect())
    }

    /// The rank's GPU.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn post(&self, checked: &Checked) -> Result<Vec<Taken>> {
        if checked.sends.is_empty() {
            return Ok(Vec::new());
        }
        let ready = self.gpu.mark(checked.stream)?;
        let mut state = lock(&self.hub.state);
        let post = |end: &End| {
            let taken = Taken::default();
            let post = Post { bytes: self.gpu.post(end, &ready), taken: taken.clone() };
            state.posted[self.rank * self.hub.ranks + end.peer].push_back(post);
            taken
        };
        let taken = checked.sends.iter().map(post).collect();
        self.hub.changed.notify_all();
        Ok(taken)
    }

    /// Takes what comes, as far as it comes; the receipts of all that has been taken, and whether it was all.
    fn receive(&self, checked: &Checked) -> (Vec<Taken>, Result<()>) {
        let mut receipts = Vec::new();
        let mut all = || {
            for room in &checked.receives {
                let post = self.next(room.peer)?;
                receipts.push(post.taken);
                let of = |end: &End| (end.rows, end.bytes);
                if of(&post.bytes.end) != of(room) {
                    let (given, expected) = (post.bytes.end.rows * post.bytes.end.bytes, room.rows * room.bytes);
                    return Err(RanksError::Unlike { from: room.peer, given, expected }.into());
                }
                // SAFETY: the room has been checked, and is borrowed until the exchange returns, after which the stream's order keeps it; the
                // sender waits until the message has a receipt, and its stream for the copy.
                unsafe { self.gpu.take(checked.stream, &post.bytes, room) }?;
            }
            Ok(())
        };
        let result = all();
        (receipts, result)
    }

    /// The next message of a rank, waited for.
    fn next(&self, from: usize) -> Result<Post> {
        let (start, hub) = (Instant::now(), &self.hub);
        let mut state = lock(&hub.state);
        loop {
            if let Some(post) = state.posted[from * hub.ranks + self.rank].pop_front() {
                return Ok(post);
            }
            if state.gone[from] {
                return Err(RanksError::Gone { rank: from }.into());
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(RanksError::Late { rank: from, seconds: PATIENCE.as_secs() }.into());
            }
            state = hub.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says of messages that were taken where their copies end.
    fn sign(&self, checked: &Checked, receipts: Vec<Taken>) -> Result<()> {
        if receipts.is_empty() {
            return Ok(());
        }
        let end = self.gpu.mark(checked.stream);
        if end.is_err() {
            // Nothing says where the copies end: they have to have ended.
            let _ = self.gpu.synchronize();
        }
        for taken in receipts {
            *lock(&taken) = Some(end.clone());
        }
        // A waiting sender looks at its receipts under this lock.
        drop(lock(&self.hub.state));
        self.hub.changed.notify_all();
        end.map(|_| ())
    }

    /// Waits until all messages have receipts, and lets the stream wait for their copies. What no rank has taken when the others end, do not
    /// come, or when this rank has failed itself, is taken back: after this, nobody reads the bytes who is not waited for.
    fn settle(&self, checked: &Checked, sent: &[Taken], give_up: bool) -> Result<()> {
        let (start, hub, mut result) = (Instant::now(), &self.hub, Ok(()));
        // The messages that a rank took in one exchange have one event.
        let mut last: Option<Arc<Event>> = None;
        for (taken, end) in sent.iter().zip(&checked.sends) {
            let mut state = lock(&hub.state);
            let receipt = loop {
                if let Some(receipt) = lock(taken).take() {
                    break receipt;
                }
                let (late, gone) = (start.elapsed() >= PATIENCE, state.gone[end.peer]);
                let own = &mut state.posted[self.rank * hub.ranks + end.peer];
                // Not where it is out of its box: its receipt comes.
                if let Some(at) = own.iter().position(|post| Arc::ptr_eq(&post.taken, taken))
                    && (give_up || late || gone)
                {
                    own.remove(at);
                    let (rank, seconds) = (end.peer, PATIENCE.as_secs());
                    break Err(if late { RanksError::Late { rank, seconds } } else { RanksError::Gone { rank } }.into());
                }
                let left = PATIENCE.saturating_sub(start.elapsed()).max(Duration::from_millis(100));
                state = hub.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            };
            drop(state);
            let waited = receipt.and_then(|copied| {
                if last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &copied)) {
                    self.gpu.wait_for(checked.stream, &copied)?;
                }
                last = Some(copied);
                Ok(())
            });
            result = result.and(waited);
        }
        result
    }
}

impl Communicator<OnGpu> for Peers {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.hub.ranks
    }

    fn exchange(
        &self,
        stream: StreamRef<'_>,
        sends: &[Message<DeviceRows<DeviceSlice<'_, u8>>>],
        receives: &mut [Message<DeviceRows<DeviceSliceMut<'_, u8>>>],
    ) -> Result<()> {
        let checked = self.gpu.check_exchange(stream, sends, receives)?;
        check_peers(self.hub.ranks, checked.sends.iter().chain(&checked.receives).map(|end| end.peer))?;
        let sent = self.post(&checked)?;
        let (receipts, received) = self.receive(&checked);
        let signed = self.sign(&checked, receipts);
        let settled = self.settle(&checked, &sent, received.is_err());
        received.and(signed).and(settled)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        lock(&self.hub.state).gone[self.rank] = true;
        self.hub.changed.notify_all();
    }
}
