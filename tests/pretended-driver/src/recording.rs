//! Recordings (stream capture), and what breaks them: the documentation of `cuThreadExchangeStreamCaptureMode`, and where it leaves
//! something open, what was seen on GPUs.
//!
//! | call, while a stream of the GPU is being recorded | what comes of it |
//! | --- | --- |
//! | a wait for the whole context, on any thread, in any mode | 900, all recordings of the GPU are broken |
//! | a copy or fill without a stream, on any thread | 906, the same |
//! | a wait for a stream or an event that is part of a recording | 900 or 907, that recording is broken |
//! | allocating, loading and unloading modules, on a thread that records (not relaxed), unless the thread is in relaxed mode; with a global recording on every thread that is in global mode | 900, that recording is broken |
//! | freeing memory, the same; it waits for the GPU, too | the same |

use crate::world::{Launch, Stream, World};
use std::cell::Cell;
use std::thread::ThreadId;

/// `CU_STREAM_PER_THREAD`.
pub(crate) const PER_THREAD: usize = 2;

pub(crate) const GLOBAL: i32 = 0;
pub(crate) const RELAXED: i32 = 2;

pub(crate) const UNSUPPORTED: u32 = 900;
pub(crate) const INVALIDATED: u32 = 901;
pub(crate) const UNJOINED: u32 = 904;
pub(crate) const IMPLICIT: u32 = 906;
pub(crate) const CAPTURED_EVENT: u32 = 907;
pub(crate) const WRONG_THREAD: u32 = 908;

pub(crate) struct Recording {
    pub(crate) thread: ThreadId,
    pub(crate) mode: i32,
    pub(crate) gpu: i32,
    /// The stream that it began with.
    pub(crate) origin: usize,
    pub(crate) broken: bool,
    pub(crate) launches: Vec<Launch>,
}

thread_local! {
    static MODE: Cell<i32> = const { Cell::new(GLOBAL) };
}

/// Sets the thread's mode, and returns what it was.
pub(crate) fn exchange_mode(mode: i32) -> i32 {
    MODE.replace(mode)
}

impl World {
    /// A call that is unsafe beside a recording.
    pub(crate) fn unsafe_call(&mut self) -> Result<(), u32> {
        let (mode, thread) = (MODE.get(), std::thread::current().id());
        let mut refused = false;
        for recording in self.recordings.values_mut() {
            let own = recording.thread == thread && recording.mode != RELAXED;
            let global = mode == GLOBAL && recording.mode == GLOBAL;
            if mode != RELAXED && (own || global) {
                recording.broken = true;
                refused = true;
            }
        }
        if refused { Err(UNSUPPORTED) } else { Ok(()) }
    }

    /// A call that waits for everything on a context's GPU, or orders everything behind it.
    pub(crate) fn whole_device(&mut self, context: usize, code: u32) -> Result<(), u32> {
        let gpu = self.gpu_of(context);
        let mut refused = false;
        for recording in self.recordings.values_mut().filter(|recording| Some(recording.gpu) == gpu) {
            recording.broken = true;
            refused = true;
        }
        if refused { Err(code) } else { Ok(()) }
    }

    /// A call that a stream's recording does not survive.
    pub(crate) fn not_recorded(&mut self, recording: Option<u64>, code: u32) -> Result<(), u32> {
        match recording.and_then(|id| self.recordings.get_mut(&id)) {
            Some(recording) => {
                recording.broken = true;
                Err(code)
            }
            None => Ok(()),
        }
    }

    pub(crate) fn begin_recording(&mut self, stream: usize, mode: i32) -> Result<(), u32> {
        let id = self.handle() as u64;
        if stream == PER_THREAD {
            // There as long as it is recorded.
            let context = self.context()?;
            self.streams.entry(stream).or_insert(Stream { context, recording: None });
        }
        let found = self.streams.get_mut(&stream).ok_or(UNSUPPORTED)?;
        if found.recording.is_some() {
            return Err(1);
        }
        found.recording = Some(id);
        let gpu = self.streams[&stream].context;
        let gpu = self.gpu_of(gpu).ok_or(201_u32)?;
        let thread = std::thread::current().id();
        let recording = Recording { thread, mode, gpu, origin: stream, broken: false, launches: Vec::new() };
        self.recordings.insert(id, recording);
        Ok(())
    }

    /// The graph of a recording that has gone well.
    pub(crate) fn end_recording(&mut self, stream: usize) -> Result<usize, u32> {
        let id = self.streams.get(&stream).and_then(|stream| stream.recording).ok_or(1_u32)?;
        if self.recordings[&id].origin != stream {
            return Err(1);
        }
        let forked = self.streams.values().filter(|stream| stream.recording == Some(id)).count() > 1;
        for stream in self.streams.values_mut().filter(|stream| stream.recording == Some(id)) {
            stream.recording = None;
        }
        if stream == PER_THREAD {
            self.streams.remove(&stream);
        }
        let recording = self.recordings.remove(&id).ok_or(1_u32)?;
        if recording.mode != RELAXED && recording.thread != std::thread::current().id() {
            return Err(WRONG_THREAD);
        }
        if recording.broken {
            return Err(INVALIDATED);
        }
        // (A stream that has been joined again is no part any more: `wait_event` takes it out.)
        if forked {
            return Err(UNJOINED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, recording.launches);
        Ok(graph)
    }
}
