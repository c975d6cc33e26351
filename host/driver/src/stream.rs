//! Streams, events and graphs.

use crate::types::{
    CAPTURE_STATUS_NONE, CaptureMode, Context, EVENT_DEFAULT, EventHandle, Graph, GraphExec, STREAM_NON_BLOCKING,
    StreamHandle,
};
use crate::{Driver, Result};
use std::ptr::null_mut;

impl Driver {
    /// A stream of the current context, independent of the default stream.
    ///
    /// # Errors
    /// What `cuStreamCreate` says.
    pub fn create_stream(self) -> Result<StreamHandle> {
        let mut stream = StreamHandle::NULL;
        // SAFETY: the function stores one handle.
        self.check("cuStreamCreate", unsafe { (self.0.stream_create)(&mut stream, STREAM_NON_BLOCKING) })?;
        Ok(stream)
    }

    /// An event of the current context, with time stamps.
    ///
    /// # Errors
    /// What `cuEventCreate` says.
    pub fn create_event(self) -> Result<EventHandle> {
        let mut event = EventHandle::NULL;
        // SAFETY: the function stores one handle.
        self.check("cuEventCreate", unsafe { (self.0.event_create)(&mut event, EVENT_DEFAULT) })?;
        Ok(event)
    }
}

/// Methods that take handles and nothing else, which the caller promises to be alive and of the current context.
macro_rules! on_handles {
    ($($(#[$doc:meta])* $method:ident($($argument:ident: $kind:ty),*) = $field:ident, $call:literal;)*) => {
        impl Driver {$(
            $(#[$doc])*
            ///
            /// # Safety
            /// The handles are alive and of one context.
            ///
            /// # Errors
            #[doc = concat!("What `", $call, "` says.")]
            pub unsafe fn $method(self, $($argument: $kind),*) -> Result<()> {
                // SAFETY: the caller's promise.
                self.check($call, unsafe { (self.0.$field)($($argument),*) })
            }
        )*}
    };
}

on_handles! {
    /// Ends a stream once its work is done.
    destroy_stream(stream: StreamHandle) = stream_destroy, "cuStreamDestroy";
    /// Waits for a stream's work.
    synchronize_stream(stream: StreamHandle) = stream_synchronize, "cuStreamSynchronize";
    /// Ends an event.
    destroy_event(event: EventHandle) = event_destroy, "cuEventDestroy";
    /// Sets the event where the stream now is.
    record_event(event: EventHandle, stream: StreamHandle) = event_record, "cuEventRecord";
    /// Waits for an event.
    synchronize_event(event: EventHandle) = event_synchronize, "cuEventSynchronize";
    /// Launches a graph in the stream's order.
    launch_graph(graph: GraphExec, stream: StreamHandle) = graph_launch, "cuGraphLaunch";
    /// Ends a recorded graph.
    destroy_graph(graph: Graph) = graph_destroy, "cuGraphDestroy";
    /// Ends an instantiated graph.
    destroy_graph_exec(graph: GraphExec) = graph_exec_destroy, "cuGraphExecDestroy";
}

impl Driver {
    /// Lets the stream's later work wait for the event.
    ///
    /// # Safety
    /// Stream and event are alive.
    ///
    /// # Errors
    /// What `cuStreamWaitEvent` says.
    pub unsafe fn wait_event(self, stream: StreamHandle, event: EventHandle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuStreamWaitEvent", unsafe { (self.0.stream_wait_event)(stream, event, 0) })
    }

    /// Milliseconds between two events that have happened.
    ///
    /// # Safety
    /// Both events are alive.
    ///
    /// # Errors
    /// What `cuEventElapsedTime` says.
    pub unsafe fn elapsed_ms(self, start: EventHandle, end: EventHandle) -> Result<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.0.event_elapsed_time)(&mut milliseconds, start, end) };
        self.check("cuEventElapsedTime", code)?;
        Ok(milliseconds)
    }

    /// Records the stream's work from now on instead of running it.
    ///
    /// # Safety
    /// The stream is alive, and not the default stream.
    ///
    /// # Errors
    /// What `cuStreamBeginCapture` says.
    pub unsafe fn begin_capture(self, stream: StreamHandle, mode: CaptureMode) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuStreamBeginCapture", unsafe { (self.0.stream_begin_capture)(stream, mode as i32) })
    }

    /// What was recorded; null where something in between cannot be recorded.
    ///
    /// # Safety
    /// The stream is alive and being recorded.
    ///
    /// # Errors
    /// What `cuStreamEndCapture` says.
    pub unsafe fn end_capture(self, stream: StreamHandle) -> Result<Graph> {
        let mut graph = Graph::NULL;
        // SAFETY: the caller's promise.
        self.check("cuStreamEndCapture", unsafe { (self.0.stream_end_capture)(stream, &mut graph) })?;
        Ok(graph)
    }

    /// Makes a recorded graph ready to be launched.
    ///
    /// # Safety
    /// The graph is alive.
    ///
    /// # Errors
    /// What `cuGraphInstantiate` says.
    pub unsafe fn instantiate_graph(self, graph: Graph) -> Result<GraphExec> {
        let mut exec = GraphExec::NULL;
        // SAFETY: the caller's promise.
        self.check("cuGraphInstantiate", unsafe { (self.0.graph_instantiate)(&mut exec, graph, 0) })?;
        Ok(exec)
    }

    /// The recording that a stream is part of; each has a number of its own in the process.
    ///
    /// # Safety
    /// The stream is alive.
    ///
    /// # Errors
    /// What `cuStreamGetCaptureInfo` says.
    pub unsafe fn recording(self, stream: StreamHandle) -> Result<Option<u64>> {
        let (mut status, mut id) = (CAPTURE_STATUS_NONE, 0);
        // SAFETY: the caller's promise; what is null is not stored.
        let code = unsafe {
            (self.0.stream_get_capture_info)(stream, &mut status, &mut id, null_mut(), null_mut(), null_mut())
        };
        self.check("cuStreamGetCaptureInfo", code)?;
        Ok((status != CAPTURE_STATUS_NONE).then_some(id))
    }

    /// The context that a stream is of.
    ///
    /// # Safety
    /// The stream is alive.
    ///
    /// # Errors
    /// What `cuStreamGetCtx` says.
    pub unsafe fn stream_context(self, stream: StreamHandle) -> Result<Context> {
        let mut context = Context::NULL;
        // SAFETY: the caller's promise.
        self.check("cuStreamGetCtx", unsafe { (self.0.stream_get_ctx)(stream, &mut context) })?;
        Ok(context)
    }

    /// Sets what recordings forbid to the calling thread, and returns what was set.
    ///
    /// # Errors
    /// What `cuThreadExchangeStreamCaptureMode` says.
    pub fn exchange_capture_mode(self, mode: CaptureMode) -> Result<CaptureMode> {
        let mut mode = mode as i32;
        // SAFETY: the function reads and stores one integer.
        let code = unsafe { (self.0.thread_exchange_stream_capture_mode)(&mut mode) };
        self.check("cuThreadExchangeStreamCaptureMode", code)?;
        Ok(CaptureMode::from_raw(mode))
    }
}
