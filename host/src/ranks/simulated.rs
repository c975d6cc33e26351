//! Ranks that are threads of this process and send what is in the host's memory.

use super::communicator::check_peers;
use super::{Communicator, Host, Message, RanksError};
use crate::error::Result;
use std::sync::mpsc::{Receiver, Sender, channel};

/// A rank of several in one process, each in a thread of its own: for tests, and for the CPU.
#[derive(Debug)]
pub struct Simulated {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Simulated {
    /// So many ranks, in order; each belongs to one thread.
    #[must_use]
    pub fn ranks(count: usize) -> Vec<Self> {
        let mut ranks: Vec<Self> = (0..count).map(|rank| Self { rank, to: vec![], from: vec![] }).collect();
        for from in 0..count {
            for to in 0..count {
                let (sender, receiver) = channel();
                ranks[from].to.push(sender);
                ranks[to].from.push(receiver);
            }
        }
        ranks
    }
}

impl Communicator<Host> for Simulated {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, _: (), sends: &[Message<&[u8]>], receives: &mut [Message<&mut [u8]>]) -> Result<()> {
        let peers = sends.iter().map(|send| send.peer).chain(receives.iter().map(|receive| receive.peer));
        check_peers(self.ranks(), peers)?;
        for &Message { peer, bytes } in sends {
            self.to[peer].send(bytes.to_vec()).map_err(|_| RanksError::Gone { rank: peer })?;
        }
        for Message { peer, bytes } in receives {
            let got = self.from[*peer].recv().map_err(|_| RanksError::Gone { rank: *peer })?;
            if got.len() != bytes.len() {
                return Err(RanksError::Unlike { from: *peer, given: got.len(), expected: bytes.len() }.into());
            }
            bytes.copy_from_slice(&got);
        }
        Ok(())
    }
}
