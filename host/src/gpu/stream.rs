//! Streams, events and graphs.

use super::Gpu;
use crate::error::Result;
use int_flash_attention_driver::{CaptureMode, EventHandle, GraphExec, StreamHandle};
use std::ffi::c_void;
use std::marker::PhantomData;

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
        Ok(Stream { handle: self.bind()?.create_stream()?, gpu: self.clone() })
    }

    /// A new event.
    ///
    /// # Errors
    /// What the driver says.
    pub fn event(&self) -> Result<Event> {
        Ok(Event { handle: self.bind()?.create_event()?, gpu: self.clone() })
    }

    /// Records the work that `record` gives to `stream`, without running it, as a CUDA graph. Buffers that it uses have
    /// to live as long as the graph is launched.
    ///
    /// # Errors
    /// What `record` or the driver says.
    pub fn capture(&self, stream: &Stream, record: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let driver = self.bind()?;
        // SAFETY: the stream is alive and not the default one; recording ends below whatever happens in between.
        unsafe {
            driver.begin_capture(stream.handle, CaptureMode::ThreadLocal)?;
            let recorded = record();
            let graph = driver.end_capture(stream.handle);
            recorded?;
            let graph = graph?;
            let exec = driver.instantiate_graph(graph);
            driver.destroy_graph(graph)?;
            Ok(Graph { gpu: self.clone(), exec: exec? })
        }
    }
}

impl Stream {
    /// Waits for the work that was given to the stream.
    ///
    /// # Errors
    /// What the driver says, which includes errors of earlier launches.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        Ok(unsafe { self.gpu.bind()?.synchronize_stream(self.handle) }?)
    }

    /// Lets later work of the stream wait for the event.
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
        if let Ok(driver) = self.gpu.bind() {
            // SAFETY: made by this object; the driver lets the stream's work finish.
            let _ = unsafe { driver.destroy_stream(self.handle) };
        }
    }
}

/// A stream to launch on: this crate's, another library's, or the default stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamRef<'a> {
    handle: StreamHandle,
    stream: PhantomData<&'a Stream>,
}

impl StreamRef<'_> {
    /// The default stream.
    pub const DEFAULT: StreamRef<'static> = StreamRef { handle: StreamHandle::NULL, stream: PhantomData };

    /// A `CUstream` (or `cudaStream_t`) that something else owns.
    ///
    /// # Safety
    /// The stream is alive while the reference is used, and of the context of the plans that are launched on it.
    #[must_use]
    pub const unsafe fn from_raw(stream: *mut c_void) -> Self {
        Self { handle: StreamHandle(stream), stream: PhantomData }
    }

    #[inline]
    pub(super) const fn handle(self) -> StreamHandle {
        self.handle
    }
}

impl<'a> From<&'a Stream> for StreamRef<'a> {
    fn from(stream: &'a Stream) -> Self {
        Self { handle: stream.handle, stream: PhantomData }
    }
}

/// A point in a stream's work, with the time at which it was reached.
#[derive(Debug)]
pub struct Event {
    gpu: Gpu,
    handle: EventHandle,
}

impl Event {
    /// Marks where the stream's work now ends.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record<'s>(&self, stream: impl Into<StreamRef<'s>>) -> Result<()> {
        // SAFETY: both are alive.
        Ok(unsafe { self.gpu.bind()?.record_event(self.handle, stream.into().handle) }?)
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
        if let Ok(driver) = self.gpu.bind() {
            // SAFETY: made by this object.
            let _ = unsafe { driver.destroy_event(self.handle) };
        }
    }
}

/// Recorded work, to be launched as one.
#[derive(Debug)]
pub struct Graph {
    gpu: Gpu,
    exec: GraphExec,
}

impl Graph {
    /// Runs the recorded work in the stream's order.
    ///
    /// # Errors
    /// What the driver says.
    pub fn launch<'s>(&self, stream: impl Into<StreamRef<'s>>) -> Result<()> {
        // SAFETY: both are alive.
        Ok(unsafe { self.gpu.bind()?.launch_graph(self.exec, stream.into().handle) }?)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(driver) = self.gpu.bind() {
            // SAFETY: made by this object.
            let _ = unsafe { driver.destroy_graph_exec(self.exec) };
        }
    }
}
