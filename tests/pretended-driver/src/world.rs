//! Everything that the pretended driver keeps.

use crate::module::Module;
use crate::recording::Recording;
use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// A GPU to pretend.
#[derive(Clone, Copy, Debug)]
pub struct PretendedGpu {
    /// Its name.
    pub name: &'static str,
    /// Major and minor compute capability.
    pub capability: (i32, i32),
    /// The most shared memory that a block may ask for, in bytes.
    pub shared_bytes: i32,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Its memory in bytes.
    pub memory: usize,
}

impl PretendedGpu {
    /// Hopper's.
    pub const H200: Self = Self {
        name: "Pretended H200",
        capability: (9, 0),
        shared_bytes: 232_448,
        multiprocessors: 132,
        memory: 1 << 30,
    };
    /// Ampere's of a workstation: 99 KiB of shared memory.
    pub const A10: Self =
        Self { name: "Pretended A10", capability: (8, 6), shared_bytes: 101_376, multiprocessors: 72, ..Self::H200 };
    /// One that is too old for the kernels.
    pub const V100: Self =
        Self { name: "Pretended V100", capability: (7, 0), shared_bytes: 98_304, multiprocessors: 80, ..Self::H200 };
    /// Blackwell Ultra's, whose integer tensor cores are slow.
    pub const B300: Self = Self { name: "Pretended B300", capability: (10, 3), multiprocessors: 148, ..Self::H200 };
}

/// Counts of what is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// References to primary contexts.
    pub contexts: usize,
    /// Modules.
    pub modules: usize,
    /// Libraries.
    pub libraries: usize,
    /// Streams.
    pub streams: usize,
    /// Events.
    pub events: usize,
    /// Allocations.
    pub allocations: usize,
    /// Recordings under way.
    pub recordings: usize,
    /// Graphs, and graphs made ready.
    pub graphs: usize,
}

pub(crate) struct Allocation {
    pub(crate) layout: Layout,
    pub(crate) context: usize,
    /// No other allocation ever has it.
    pub(crate) number: u64,
}

pub(crate) struct Stream {
    pub(crate) context: usize,
    /// The recording that it is part of.
    pub(crate) recording: Option<u64>,
}

/// A kernel for launches in a context.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    /// The module or library that it is of, and its place there.
    pub(crate) module: usize,
    pub(crate) index: usize,
    pub(crate) context: usize,
}

/// What a launch was given.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) kernel: String,
    /// The allocations that its parameters point into, by address and number.
    pub(crate) memory: Vec<(usize, u64)>,
    /// The function, which its module's end ends.
    pub(crate) function: usize,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) gpus: Vec<PretendedGpu>,
    /// References to each GPU's primary context.
    pub(crate) retained: Vec<usize>,
    /// Contexts that are no primary ones, with their GPUs.
    pub(crate) created: HashMap<usize, i32>,
    pub(crate) allocations: BTreeMap<usize, Allocation>,
    pub(crate) streams: HashMap<usize, Stream>,
    /// With the recording that an event's mark is part of.
    pub(crate) events: HashMap<usize, Option<u64>>,
    pub(crate) recordings: HashMap<u64, Recording>,
    pub(crate) graphs: HashMap<usize, Vec<Launch>>,
    pub(crate) execs: HashMap<usize, Vec<Launch>>,
    /// A node's graph, and its place there.
    pub(crate) nodes: HashMap<usize, (usize, usize)>,
    pub(crate) modules: HashMap<usize, Module>,
    /// A library's kernel: its library, and its place there.
    pub(crate) kernels: HashMap<usize, (usize, usize)>,
    pub(crate) functions: HashMap<usize, Function>,
    pub(crate) launched: Vec<String>,
    pub(crate) violations: Vec<String>,
    pub(crate) calls: HashMap<&'static str, usize>,
    pub(crate) refused: Vec<(&'static str, u32)>,
    pub(crate) left_out: Vec<&'static str>,
    pub(crate) assembler_log: &'static str,
    next: usize,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn current() -> usize {
    CURRENT.get()
}

pub(crate) fn set_current(context: usize) {
    CURRENT.set(context);
}

/// Runs `f` on the world.
pub(crate) fn with<T>(f: impl FnOnce(&mut World) -> T) -> T {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    f(world.get_or_insert_default())
}

/// A world with these GPUs and nothing else.
pub(crate) fn reset(gpus: &[PretendedGpu]) {
    set_current(0);
    with(|world| {
        for (address, allocation) in std::mem::take(&mut world.allocations) {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(address as *mut u8, allocation.layout) };
        }
        // Handles are never used twice.
        let next = world.next.max(0x1_0000);
        *world = World { gpus: gpus.to_vec(), retained: vec![0; gpus.len()], next, ..World::default() };
    });
}

/// The handle of a GPU's primary context.
const fn primary(gpu: i32) -> usize {
    0x1000 + gpu as usize
}

impl World {
    pub(crate) fn handle(&mut self) -> usize {
        self.next += 0x10;
        self.next
    }

    pub(crate) fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    pub(crate) fn alive(&self) -> Alive {
        Alive {
            contexts: self.retained.iter().sum(),
            modules: self.modules.values().filter(|module| module.context.is_some()).count(),
            libraries: self.modules.values().filter(|module| module.context.is_none()).count(),
            streams: self.streams.len(),
            events: self.events.len(),
            allocations: self.allocations.len(),
            recordings: self.recordings.len(),
            graphs: self.graphs.len() + self.execs.len(),
        }
    }

    pub(crate) fn retain(&mut self, gpu: i32) -> usize {
        self.retained[gpu as usize] += 1;
        primary(gpu)
    }

    pub(crate) fn release(&mut self, gpu: i32) -> u32 {
        let Some(references) = self.retained[gpu as usize].checked_sub(1) else {
            self.violation(format!("the primary context of GPU {gpu} is released more often than retained"));
            return 201;
        };
        self.retained[gpu as usize] = references;
        if references == 0 {
            let context = primary(gpu);
            let left = self.streams.values().filter(|stream| stream.context == context).count()
                + self.allocations.values().filter(|allocation| allocation.context == context).count()
                + self.modules.values().filter(|module| module.context == Some(context)).count();
            if left > 0 {
                self.violation(format!("the context of GPU {gpu} ends with {left} things in it"));
            }
        }
        0
    }

    pub(crate) fn create_context(&mut self, gpu: i32) -> usize {
        let handle = self.handle();
        self.created.insert(handle, gpu);
        handle
    }

    /// The GPU of a context that is alive.
    pub(crate) fn gpu_of(&self, context: usize) -> Option<i32> {
        let primaries = 0..self.gpus.len() as i32;
        let found = primaries.into_iter().find(|&gpu| primary(gpu) == context && self.retained[gpu as usize] > 0);
        found.or_else(|| self.created.get(&context).copied())
    }

    /// The thread's context, if it is alive.
    pub(crate) fn context(&mut self) -> Result<usize, u32> {
        let context = current();
        if context != 0 && self.gpu_of(context).is_none() {
            self.violation(format!("context {context:#x} is used after its end"));
        }
        // CUDA_ERROR_INVALID_CONTEXT
        self.gpu_of(context).map(|_| context).ok_or(201)
    }

    /// A module's end, or a library's.
    pub(crate) fn unload(&mut self, handle: usize, library: bool) -> Result<(), u32> {
        let found = self.modules.get(&handle).ok_or(400_u32)?;
        if found.context.is_none() != library {
            self.violation(format!("{handle:#x} is unloaded as what it is not"));
            return Err(400);
        }
        self.functions.retain(|_, function| function.module != handle);
        self.modules.remove(&handle);
        Ok(())
    }

    /// Bytes allocated, uninitialized as far as anyone should rely on.
    pub(crate) fn alloc(&mut self, context: usize, bytes: usize) -> Result<usize, u32> {
        let gpu = self.gpu_of(context).ok_or(201_u32)?;
        let used: usize = self.allocations.values().map(|allocation| allocation.layout.size()).sum();
        // CUDA_ERROR_OUT_OF_MEMORY
        if used.saturating_add(bytes) > self.gpus[gpu as usize].memory {
            return Err(2);
        }
        let layout = Layout::from_size_align(bytes, 256).map_err(|_| 2_u32)?;
        // SAFETY: the size is not zero: the driver is never asked for that.
        let address = unsafe { alloc(layout) };
        if address.is_null() {
            return Err(2);
        }
        // SAFETY: allocated with so many bytes.
        unsafe { address.write_bytes(0xa5, bytes) };
        let number = self.handle() as u64;
        self.allocations.insert(address as usize, Allocation { layout, context, number });
        Ok(address as usize)
    }

    pub(crate) fn free(&mut self, address: usize) -> Result<(), u32> {
        let Some(allocation) = self.allocations.remove(&address) else {
            self.violation(format!("{address:#x} is freed, and no allocation"));
            return Err(1);
        };
        // SAFETY: allocated with this layout.
        unsafe { dealloc(address as *mut u8, allocation.layout) };
        Ok(())
    }

    /// The allocation that an address lies in.
    pub(crate) fn find(&self, address: usize) -> Option<(usize, &Allocation)> {
        let (&start, allocation) = self.allocations.range(..=address).next_back()?;
        (address - start < allocation.layout.size()).then_some((start, allocation))
    }

    /// Whether so many bytes from an address lie in an allocation of this context.
    pub(crate) fn inside(&mut self, context: usize, address: usize, bytes: usize) -> Result<(), u32> {
        let fits = self.find(address).is_some_and(|(start, allocation)| {
            allocation.context == context && address - start + bytes <= allocation.layout.size()
        });
        if !fits && bytes > 0 {
            self.violation(format!("{bytes} bytes at {address:#x} are no memory of the context"));
            return Err(1);
        }
        Ok(())
    }
}
