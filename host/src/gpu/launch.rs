//! A launch on its way: where it goes, and that everything it is given is of one context.

use super::context::Kept;
use super::kernel::Kernel;
use super::memory::Home;
use super::stream::StreamHome;
use super::{Gpu, StreamRef};
use crate::error::{Error, Result};
use int_flash_attention_driver::{DevicePtr, Driver, StreamHandle};
use int_flash_attention_kernels::params::Params;

/// A launch for a stream of the GPU's context, which is current on the thread.
pub(super) struct Launch<'a> {
    gpu: &'a Gpu,
    driver: Driver,
    stream: StreamRef<'a>,
    /// The recording that the stream is part of.
    recording: Option<u64>,
}

impl Gpu {
    /// The beginning of a launch.
    #[inline]
    pub(super) fn launching<'a>(&'a self, stream: StreamRef<'a>) -> Result<Launch<'a>> {
        let context = &self.0.context;
        let driver = self.bind()?;
        match stream.home() {
            StreamHome::Of(gpu) if gpu.0.context.handle != context.handle => {
                return Err(self.other_context("the stream", gpu.place()));
            }
            StreamHome::Foreign => {
                // SAFETY: the stream is borrowed as long as the reference.
                if unsafe { driver.stream_context(stream.handle()) }? != context.handle {
                    return Err(self.other_context("the stream", "another context".into()));
                }
            }
            StreamHome::Of(_) | StreamHome::Current | StreamHome::Promised => {}
        }
        // Streams that other libraries have as well, of which nobody has promised anything.
        let shared = match stream.home() {
            StreamHome::Foreign => true,
            StreamHome::Current => !stream.is_legacy(),
            StreamHome::Of(_) | StreamHome::Promised => false,
        };
        let ask = shared || context.is_recording();
        // SAFETY: alive as long as the reference, and of this context as just checked or promised.
        let recording = if ask { unsafe { driver.recording(stream.handle()) }? } else { None };
        if let Some(id) = recording {
            // A recording of another library would keep nothing of what it is given here.
            if shared && !context.records(id) {
                return Err(Error::RecordedForeign {
                    name: "what is launched on a stream that another library records",
                });
            }
            context.keep(id, [], [self.clone()]);
        }
        Ok(Launch { gpu: self, driver, stream, recording })
    }

    /// The context, for a sentence.
    fn place(&self) -> String {
        format!("CUDA device {}", self.0.context.device)
    }

    #[cold]
    fn other_context(&self, name: &'static str, given: String) -> Error {
        let mut expected = self.place();
        if given == expected {
            expected.push_str(" in another context");
        }
        Error::OtherContext { name, given, expected }
    }
}

impl Launch<'_> {
    /// The address, once it is known to be of this context; a recording keeps the memory.
    #[inline]
    pub(super) fn accept(&self, name: &'static str, ptr: DevicePtr, home: Home<'_>) -> Result<DevicePtr> {
        let context = &self.gpu.0.context;
        match home {
            Home::Buffer(memory) => {
                if memory.gpu().0.context.handle != context.handle {
                    return Err(self.gpu.other_context(name, memory.gpu().place()));
                }
                if let Some(id) = self.recording {
                    context.keep(id, [memory.clone()], []);
                }
            }
            Home::Promised => {}
            Home::Foreign { ordered_by } => {
                if ordered_by.is_some_and(|stream| stream != self.stream()) {
                    return Err(Error::OtherStream { name });
                }
                let (device, of) = self.driver.pointer_home(ptr)?;
                // Memory of a pool has no context.
                if device != context.device || !(of.is_null() || of == context.handle) {
                    return Err(self.gpu.other_context(name, format!("CUDA device {device}")));
                }
                if self.recording.is_some() {
                    return Err(Error::RecordedForeign { name });
                }
            }
        }
        Ok(ptr)
    }

    /// The driver, with the context current.
    pub(super) const fn driver(&self) -> Driver {
        self.driver
    }

    /// The stream's handle.
    pub(super) const fn stream(&self) -> StreamHandle {
        self.stream.handle()
    }

    /// The stream's handle, where it is not being recorded.
    pub(super) fn not_recorded(&self, what: &'static str) -> Result<StreamHandle> {
        if self.recording.is_some() { Err(Error::Recording { what }) } else { Ok(self.stream()) }
    }

    /// Whether the stream is being recorded, by this crate or by whoever it is of.
    #[inline]
    pub(super) fn is_recorded(&self) -> Result<bool> {
        match self.stream.home() {
            StreamHome::Of(_) | StreamHome::Foreign | StreamHome::Current => Ok(self.recording.is_some()),
            StreamHome::Promised if self.stream.is_legacy() => Ok(false),
            // SAFETY: alive and of this context, as promised.
            StreamHome::Promised => Ok(unsafe { self.driver.recording(self.stream()) }?.is_some()),
        }
    }

    /// What a graph keeps that is launched here, for the recording.
    pub(super) fn keep_all(&self, kept: &Kept) {
        if let Some(id) = self.recording {
            self.gpu.0.context.keep_all(id, kept);
        }
    }

    /// Gives a kernel to the stream whose only parameter is a structure.
    ///
    /// # Safety
    /// As of [`Kernel::launch`].
    #[inline]
    pub(super) unsafe fn kernel_with<P: Params>(&self, kernel: &Kernel, params: &P) -> Result<()> {
        // SAFETY: the caller's promise; the context is current.
        unsafe { kernel.launch(self.driver, self.stream(), params) }
    }
}
