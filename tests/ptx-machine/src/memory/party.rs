//! What the parties to shared memory know of each other's pasts: vector clocks.
//!
//! The parties are the warps of a CTA, and its mbarriers, in whose name bulk copies write. Time in a CTA is a counter
//! that every synchronization advances. An access is ordered before another when its time is one that the other's
//! party has learnt of, at a barrier or an mbarrier.

/// Warps come first, mbarriers after them.
pub(crate) const PARTIES: usize = 64;
/// The party of the first mbarrier.
pub(crate) const FIRST_MBARRIER: u32 = 32;

/// For each party, the latest of its times that is known.
pub(crate) type Clock = [u32; PARTIES];

/// What one warp knows.
#[derive(Clone, Debug)]
pub(crate) struct Party {
    pub(crate) warp: u32,
    /// The time that this warp's accesses carry.
    pub(crate) time: u32,
    /// All lanes of the warp know of all its accesses up to this time: they have met since.
    pub(crate) met: u32,
    /// Lanes that have accessed shared memory since they last met.
    pub(crate) touched: u32,
    pub(crate) known: Knowledge,
}

/// Which accesses are ordered before those that follow.
#[derive(Clone, Debug)]
pub(crate) struct Knowledge {
    /// Before ordinary accesses, which go through the generic proxy.
    pub(crate) seen: Clock,
    /// Ordinary accesses that are ordered before those of asynchronous instructions, by a proxy fence on the way.
    pub(crate) proxied: Clock,
}

impl Default for Knowledge {
    fn default() -> Self {
        Self { seen: [0; PARTIES], proxied: [0; PARTIES] }
    }
}

impl Knowledge {
    /// Learns what another knows.
    pub(crate) fn learn(&mut self, other: &Self) {
        for (mine, theirs) in self.seen.iter_mut().zip(&other.seen) {
            *mine = (*mine).max(*theirs);
        }
        for (mine, theirs) in self.proxied.iter_mut().zip(&other.proxied) {
            *mine = (*mine).max(*theirs);
        }
    }
}

impl Party {
    /// A warp that begins at `time`, and knows all that came before.
    pub(crate) fn new(warp: u32, time: u32) -> Self {
        Self {
            warp,
            time,
            met: time - 1,
            touched: 0,
            known: Knowledge { seen: [time - 1; PARTIES], proxied: [time - 1; PARTIES] },
        }
    }

    /// Whether what a party did at that time is ordered before this warp's next access.
    pub(crate) fn is_after(&self, party: u32, time: u32) -> bool {
        party == self.warp || time <= self.known.seen[party as usize]
    }

    /// Whether the asynchronous instructions of this warp may rely on it, too.
    pub(crate) fn is_proxied(&self, party: u32, time: u32) -> bool {
        time <= self.known.proxied[party as usize] || party >= FIRST_MBARRIER && self.is_after(party, time)
    }

    /// What others learn when these lanes of the warp arrive somewhere: all that it knows, and its own past, but what other
    /// lanes have done since they last met.
    pub(crate) fn release(&self, lanes: u32, to: &mut Knowledge) {
        to.learn(&self.known);
        let past = if self.touched & !lanes == 0 { self.time } else { self.met };
        to.seen[self.warp as usize] = to.seen[self.warp as usize].max(past);
    }

    /// All lanes meet; the warp's accesses after that carry the time `now`.
    pub(crate) fn meet(&mut self, now: u32) {
        self.met = self.time;
        self.touched = 0;
        self.time = now;
    }

    /// `fence.proxy.async`, after which the warp's accesses carry the time `now`.
    pub(crate) fn fence(&mut self, now: u32) {
        self.known.proxied = self.known.seen;
        self.known.proxied[self.warp as usize] = self.time;
        self.time = now;
    }
}
