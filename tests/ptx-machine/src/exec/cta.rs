//! The state of a CTA and of its warps.

use super::async_copy::Copies;
use super::barrier::Meeting;
use super::mbarrier;
use super::warpgroup::{self, Flights, Together};
use crate::decode::{Program, Special};
use crate::memory::{LocalMemory, Memory, Party, SharedMemory};
use crate::registers::{Lane, Registers};
use crate::report::{Fault, Finding};
use std::mem::discriminant;

/// What all CTAs of a launch have in common.
pub(crate) struct Environment<'a> {
    pub(crate) program: &'a Program,
    pub(crate) memory: &'a Memory,
    /// The module's own variables.
    pub(crate) variables: &'a Memory,
    /// The arguments, laid out as parameter memory, in whole words.
    pub(crate) params: Vec<u8>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
    /// Warp instructions that a CTA may execute.
    pub(crate) limit: u64,
    /// The PTX, to quote lines from.
    pub(crate) ptx: &'a str,
}

impl Environment<'_> {
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub(crate) fn warps(&self) -> u32 {
        self.threads().div_ceil(32)
    }

    /// Where shared memory ends.
    fn shared_end(&self) -> u32 {
        self.program.dynamic_shared + self.dynamic_shared
    }
}

/// Lanes that follow one path, and where they stop to wait for the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) pc: u32,
    /// The reconvergence point; `u32::MAX` for the end.
    pub(super) until: u32,
    pub(super) mask: u32,
}

/// What only one warp sees.
pub(crate) struct Warp {
    pub(super) id: usize,
    pub(super) registers: Registers,
    /// Paths still to be run; the last is the current one.
    pub(super) frames: Vec<Frame>,
    /// Lanes that the block is large enough to fill.
    pub(super) present: u32,
    pub(super) exited: u32,
    pub(super) local: LocalMemory,
    pub(super) copies: Copies,
    pub(super) flights: Flights,
    /// Lane and line at which it last had to wait for an mbarrier, or for its warpgroup.
    pub(super) wait_place: (usize, u32),
}

/// Whether a warp can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Waiting,
    Done,
}

/// What the warps of a CTA share.
pub(crate) struct Cta<'e> {
    pub(super) env: &'e Environment<'e>,
    pub(super) id: [u32; 3],
    pub(super) shared: SharedMemory,
    pub(super) parties: Vec<Party>,
    pub(super) states: Vec<State>,
    pub(super) meetings: [Meeting; 16],
    pub(super) mbarriers: Vec<mbarrier::Object>,
    /// Mbarriers that bulk copies have used.
    pub(super) copying_mbarriers: u32,
    pub(super) warpgroups: Vec<Together>,
    /// Registers of a thread of each warp.
    pub(super) registers: Vec<u32>,
    /// Warps that wait for registers, as bits.
    pub(super) short_of_registers: u32,
    pub(super) findings: Vec<Finding>,
    /// Set when the CTA must not go on.
    pub(super) dead: bool,
}

impl<'e> Cta<'e> {
    pub(super) fn new(env: &'e Environment<'e>) -> Self {
        Self {
            env,
            id: [0; 3],
            shared: SharedMemory::default(),
            parties: Vec::new(),
            states: Vec::new(),
            meetings: Default::default(),
            mbarriers: Vec::new(),
            copying_mbarriers: 0,
            warpgroups: Vec::new(),
            registers: Vec::new(),
            short_of_registers: 0,
            findings: Vec::new(),
            dead: false,
        }
    }

    /// Starts over as the CTA with the given number.
    pub(super) fn begin(&mut self, index: u64) {
        let [x, y, _] = self.env.grid.map(u64::from);
        self.id = [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32];
        let warps = self.env.warps();
        self.shared.begin(self.env.program.first_shared, self.env.shared_end(), warps as usize);
        let time = self.shared.now;
        self.parties = (0..warps).map(|warp| Party::new(warp, time)).collect();
        self.states = vec![State::Ready; warps as usize];
        self.meetings = Default::default();
        self.mbarriers.clear();
        self.copying_mbarriers = 0;
        self.warpgroups.clear();
        self.warpgroups.resize_with(warps.div_ceil(warpgroup::WARPS as u32) as usize, Together::default);
        self.registers = vec![self.env.program.register_pool.unwrap_or(0); warps as usize];
        self.short_of_registers = 0;
        self.findings = Vec::new();
        self.dead = false;
    }

    /// The thread of a lane, as `%tid`.
    fn thread(&self, warp: usize, lane: usize) -> [u32; 3] {
        let [x, y, _] = self.env.block;
        let linear = (warp * 32 + lane) as u32;
        [linear % x, linear / x % y, linear / x / y]
    }

    /// Records a finding, unless the line already has one of its kind.
    #[cold]
    pub(super) fn fault(&mut self, warp: usize, lane: usize, line: u32, fault: Fault) {
        let kind = discriminant(&fault);
        if self.findings.iter().any(|f| f.line == line && discriminant(&f.fault) == kind) {
            return;
        }
        self.findings.push(Finding {
            fault,
            kernel: self.env.program.name.clone(),
            line,
            text: crate::parse::line_text(self.env.ptx, line),
            cta: self.id,
            thread: self.thread(warp, lane),
        });
    }

    /// Records a finding that ends the CTA.
    pub(super) fn fatal(&mut self, warp: usize, lane: usize, line: u32, fault: Fault) {
        self.fault(warp, lane, line, fault);
        self.dead = true;
    }

    /// Records a finding unless all of `required` execute the instruction.
    pub(super) fn require_lanes(&mut self, warp: &Warp, line: u32, required: u32, active: u32) {
        if required & !active != 0 {
            let lane = active.trailing_zeros() as usize;
            self.fault(warp.id, lane, line, Fault::InactiveLanes { required, active });
        }
    }
}

impl Warp {
    pub(super) fn new(id: usize, env: &Environment<'_>) -> Self {
        let present = env.threads().saturating_sub(id as u32 * 32).min(32);
        Self {
            id,
            registers: Registers::default(),
            frames: Vec::new(),
            present: if present == 32 { u32::MAX } else { (1 << present) - 1 },
            exited: 0,
            local: LocalMemory::new(env.program.local_bytes as usize),
            copies: Copies::default(),
            flights: Flights::default(),
            wait_place: (0, 0),
        }
    }

    /// Starts over at the first instruction.
    pub(super) fn begin(&mut self, cta: &Cta<'_>) {
        let env = cta.env;
        self.registers.copy_from(&env.program.registers);
        for (special, slot) in &env.program.specials {
            let values = std::array::from_fn(|lane| self.special(*special, lane, cta));
            u32::write(&mut self.registers, *slot, u32::MAX, &values);
        }
        self.frames.clear();
        self.frames.push(Frame { pc: 0, until: u32::MAX, mask: self.present });
        self.exited = 0;
        self.local.clear();
        self.copies = Copies::default();
        self.flights.begin(env.program.watched_registers);
    }

    fn special(&self, special: Special, lane: usize, cta: &Cta<'_>) -> u32 {
        let env = cta.env;
        match special {
            Special::Tid(axis) => cta.thread(self.id, lane)[axis],
            Special::Ntid(axis) => env.block[axis],
            Special::Ctaid(axis) => cta.id[axis],
            Special::Nctaid(axis) => env.grid[axis],
            Special::LaneId => lane as u32,
            Special::WarpId => self.id as u32,
            Special::WarpCount => env.warps(),
            Special::LaneMask { below, equal, above } => {
                let (own, up_to) = (1_u32 << lane, (2_u64 << lane).wrapping_sub(1) as u32);
                let pick = |wanted: bool, mask: u32| if wanted { mask } else { 0 };
                pick(below, up_to & !own) | pick(equal, own) | pick(above, !up_to)
            }
            Special::DynamicShared => env.dynamic_shared,
            Special::TotalShared => env.shared_end() - env.program.first_shared,
        }
    }
}
