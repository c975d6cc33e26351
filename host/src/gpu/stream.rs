//! Streams, events and graphs.

use super::Gpu;
use super::context::Kept;
use crate::error::Result;
use int_flash_attention_driver::{EventHandle, GraphExec, StreamHandle};
use std::ffi::c_void;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A queue of work on a GPU, independent of the default stream.
#[derive(Debug)]
pub struct Stream {
    gpu: Gpu,
    handle: StreamHandle,
}

impl Gpu {
    /// A new stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn stream(&self) -> Result<Stream> {
        let handle = self.0.context.beside_recordings(|driver| Ok(driver.create_stream()?))?;
        Ok(Stream { handle, gpu: self.clone() })
    }

    /// A new event.
    ///
    /// # Errors
    /// What the driver says.
    pub fn event(&self) -> Result<Event> {
        let handle = self.0.context.beside_recordings(|driver| Ok(driver.create_event()?))?;
        Ok(Event { handle, gpu: self.clone() })
    }

    /// Records the work that `record` gives to `stream`, without running it, as a CUDA graph. The graph keeps the buffers of
    /// this crate and the kernels that were recorded; memory of other libraries is refused, and with
    /// [`from_raw`](super::DeviceSlice::from_raw) it is the caller's to keep.
    ///
    /// Other threads may meanwhile allocate, upload, launch and run [`Gpu::attention`]; waiting for the whole GPU is
    /// [`Error::Recording`](crate::Error::Recording). The recording ends when `record` returns, fails or panics. Memory that is
    /// dropped meanwhile is freed when it has ended.
    ///
    /// # Errors
    /// What `record` or the driver says; a stream of another context.
    pub fn capture(&self, stream: &Stream, record: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let stream = self.launching(stream.into())?.not_recorded("another recording of the stream")?;
        let context = &self.0.context;
        // SAFETY: the stream is borrowed, of this context, and not the default one.
        let recorder = unsafe { context.record(stream) }?;
        record()?;
        let (graph, kept) = recorder.finish()?;
        context.beside_recordings(|driver| {
            // SAFETY: the graph is this function's.
            let exec = unsafe { driver.instantiate_graph(graph) };
            let destroyed = unsafe { driver.destroy_graph(graph) };
            let graph = Graph { gpu: self.clone(), exec: Mutex::new(exec?), kept };
            destroyed?;
            Ok(graph)
        })
    }
}

impl Stream {
    /// Waits for the work that was given to the stream.
    ///
    /// # Errors
    /// What the driver says, which includes errors of earlier launches.
    pub fn synchronize(&self) -> Result<()> {
        let stream = self.gpu.launching(self.into())?.not_recorded("waiting for a stream that is being recorded")?;
        // SAFETY: the stream is alive.
        self.gpu.0.context.beside_recordings(|driver| Ok(unsafe { driver.synchronize_stream(stream) }?))
    }

    /// Lets later work of the stream wait for the event, which may be another GPU's.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        Ok(unsafe { self.gpu.bind()?.wait_event(self.handle, event.handle) }?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // An error means that the context is gone, and this with it.
        // SAFETY: made by this object; the driver lets the stream's work finish.
        let _ = self.gpu.0.context.beside_recordings(|driver| Ok(unsafe { driver.destroy_stream(self.handle) }?));
    }
}

/// A stream to launch on: this crate's, another library's, or the default stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamRef<'a> {
    handle: StreamHandle,
    home: StreamHome<'a>,
}

/// What is known of a stream's context.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamHome<'a> {
    /// A stream of this crate.
    Of(&'a Gpu),
    /// Whichever context is current, which at a launch is the plan's.
    Current,
    /// The caller has promised that it is the plan's.
    Promised,
    /// Another library's stream, borrowed for the call: the driver is asked.
    #[cfg_attr(not(any(feature = "cudarc", feature = "cust")), allow(dead_code))]
    Foreign,
}

impl<'a> StreamRef<'a> {
    /// The default stream.
    pub const DEFAULT: StreamRef<'static> = StreamRef::of_context(0);
    /// The default stream that waits for all blocking streams, by its own handle, `CU_STREAM_LEGACY` (0x1).
    pub const LEGACY: StreamRef<'static> = StreamRef::of_context(1);
    /// The calling thread's default stream, `CU_STREAM_PER_THREAD` (0x2), which candle uses.
    pub const PER_THREAD: StreamRef<'static> = StreamRef::of_context(2);

    const fn of_context(handle: usize) -> StreamRef<'static> {
        StreamRef { handle: StreamHandle(std::ptr::without_provenance_mut(handle)), home: StreamHome::Current }
    }

    /// A `CUstream` (or `cudaStream_t`) that something else owns. The handles 0x1 and 0x2 are the default streams
    /// [`LEGACY`](Self::LEGACY) and [`PER_THREAD`](Self::PER_THREAD).
    ///
    /// # Safety
    /// The stream is alive while the reference is used, and of the context of the plans that are launched on it.
    #[must_use]
    pub const unsafe fn from_raw(stream: *mut c_void) -> Self {
        Self { handle: StreamHandle(stream), home: StreamHome::Promised }
    }

    /// Another library's stream, of a context that the launch will ask the driver for.
    ///
    /// # Safety
    /// The stream is alive while the reference is used.
    #[cfg(any(feature = "cudarc", feature = "cust"))]
    pub(crate) const unsafe fn foreign(stream: *mut c_void) -> Self {
        Self { handle: StreamHandle(stream), home: StreamHome::Foreign }
    }

    #[inline]
    pub(super) const fn handle(self) -> StreamHandle {
        self.handle
    }

    /// Whether it is the default stream of the context, which cannot be recorded.
    pub(super) fn is_legacy(self) -> bool {
        [Self::DEFAULT.handle, Self::LEGACY.handle].contains(&self.handle)
    }

    #[inline]
    pub(super) const fn home(self) -> StreamHome<'a> {
        self.home
    }
}

impl<'a> From<&'a Stream> for StreamRef<'a> {
    fn from(stream: &'a Stream) -> Self {
        Self { handle: stream.handle, home: StreamHome::Of(&stream.gpu) }
    }
}

/// A point in a stream's work, with the time at which it was reached.
#[derive(Debug)]
pub struct Event {
    gpu: Gpu,
    handle: EventHandle,
}

impl Event {
    pub(super) const fn handle(&self) -> EventHandle {
        self.handle
    }

    /// Marks where the stream's work now ends.
    ///
    /// # Errors
    /// A stream of another context; what the driver says.
    pub fn record<'s>(&self, stream: impl Into<StreamRef<'s>>) -> Result<()> {
        let stream = stream.into();
        let launch = self.gpu.launching(stream)?;
        // SAFETY: both are alive and of one context.
        Ok(unsafe { launch.driver().record_event(self.handle, launch.stream()) }?)
    }

    /// Waits until the mark has been reached.
    ///
    /// # Errors
    /// What the driver says, which includes errors of earlier launches.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is alive.
        Ok(unsafe { self.gpu.bind()?.synchronize_event(self.handle) }?)
    }

    /// Milliseconds from `start` to this event; both have been reached.
    ///
    /// # Errors
    /// What the driver says, for instance that one has not been recorded.
    pub fn elapsed_ms(&self, start: &Self) -> Result<f32> {
        // SAFETY: both are alive.
        Ok(unsafe { self.gpu.bind()?.elapsed_ms(start.handle, self.handle) }?)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // An error means that the context is gone, and this with it.
        // SAFETY: made by this object.
        let _ = self.gpu.0.context.beside_recordings(|driver| Ok(unsafe { driver.destroy_event(self.handle) }?));
    }
}

/// Recorded work, to be launched as one. It keeps the buffers and kernels that were recorded.
pub struct Graph {
    gpu: Gpu,
    /// CUDA does not lock graphs: calls with one are the caller's to put in order.
    exec: Mutex<GraphExec>,
    kept: Kept,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

impl Graph {
    /// Runs the recorded work in the stream's order.
    ///
    /// # Errors
    /// A stream of another context; what the driver says.
    pub fn launch<'s>(&self, stream: impl Into<StreamRef<'s>>) -> Result<()> {
        let stream = stream.into();
        let launch = self.gpu.launching(stream)?;
        launch.keep_all(&self.kept);
        let exec = self.exec.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: both are alive and of one context; no other thread uses the graph.
        Ok(unsafe { launch.driver().launch_graph(*exec, launch.stream()) }?)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // An error means that the context is gone, and this with it.
        // SAFETY: made by this object.
        let exec = *self.exec.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = self.gpu.0.context.beside_recordings(|driver| Ok(unsafe { driver.destroy_graph_exec(exec) }?));
    }
}
