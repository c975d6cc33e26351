//! A CUDA context, held as long as something of it lives, and the recordings under way in it.
//!
//! What CUDA does to a recording decides which calls this crate makes:
//! * `cuCtxSynchronize` on any thread ends every recording of the GPU with an error, whatever its mode. Nothing that has to
//!   work beside a recording calls it: new memory is cleared and filled on a stream of its own. What means "everything that the
//!   GPU was given" is refused while a recording is under way.
//! * `cuMemAlloc`, `cuModuleLoadData` and their kind are forbidden to a thread that records, unless it says that it knows what
//!   it does ([`SharedContext::beside_recordings`]).
//! * `cuMemFree` waits for the GPU; memory that is given up while a recording is under way is freed when it has ended.

use super::Gpu;
use super::buffer::Memory;
use crate::error::{Error, Result};
use int_flash_attention_driver::{
    CaptureMode, Context, DeviceOrdinal, DevicePtr, Driver, Graph as RawGraph, StreamHandle,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// What everything of this crate in one context shares.
pub(super) struct SharedContext {
    pub(super) driver: Driver,
    pub(super) device: DeviceOrdinal,
    pub(super) handle: Context,
    /// Whether this object holds a reference to the primary context.
    retained: bool,
    /// For copies that wait for nothing else.
    transfers: StreamHandle,
    /// Written where a recording begins or ends, read while the whole context is waited for.
    recordings: RwLock<Vec<Recording>>,
    /// How many there are, to be looked at without a lock.
    under_way: AtomicUsize,
    /// To be freed when no recording is under way.
    given_up: Mutex<Vec<DevicePtr>>,
}

/// A recording under way.
struct Recording {
    /// The driver's number.
    id: u64,
    kept: Kept,
}

/// What a recorded launch uses, and what lives as long as its graph therefore.
#[derive(Clone, Default)]
pub(super) struct Kept {
    memory: Vec<Arc<Memory>>,
    /// They hold the kernels.
    gpus: Vec<Gpu>,
}

impl Kept {
    fn add(&mut self, memory: impl IntoIterator<Item = Arc<Memory>>, gpus: impl IntoIterator<Item = Gpu>) {
        for memory in memory {
            if !self.memory.iter().any(|kept| Arc::ptr_eq(kept, &memory)) {
                self.memory.push(memory);
            }
        }
        for gpu in gpus {
            if !self.gpus.iter().any(|kept| Arc::ptr_eq(&kept.0, &gpu.0)) {
                self.gpus.push(gpu);
            }
        }
    }
}

/// The contexts in use, so that each has one [`SharedContext`].
static CONTEXTS: Mutex<Vec<(Context, Weak<SharedContext>)>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedContext {
    /// A GPU's primary context, held.
    pub(super) fn primary(driver: Driver, device: DeviceOrdinal) -> Result<Arc<Self>> {
        let handle = driver.retain_primary_context(device)?;
        Self::share(driver, device, handle, true)
    }

    /// The thread's current context, held where it is a primary one; `None` where it is not.
    pub(super) fn current_primary(driver: Driver) -> Result<Option<Arc<Self>>> {
        let (handle, device) = (driver.current_context()?, driver.current_device()?);
        if !driver.primary_context_is_active(device)? {
            return Ok(None);
        }
        let primary = driver.retain_primary_context(device)?;
        if primary == handle {
            return Self::share(driver, device, handle, true).map(Some);
        }
        // SAFETY: retained just now, and used for nothing.
        unsafe { driver.release_primary_context(device) }?;
        Ok(None)
    }

    /// The thread's current context, not held.
    ///
    /// # Safety
    /// It outlives this object.
    pub(super) unsafe fn current_borrowed(driver: Driver) -> Result<Arc<Self>> {
        Self::share(driver, driver.current_device()?, driver.current_context()?, false)
    }

    /// The one object for a context. A reference that `retained` says the caller has goes to it, or back.
    fn share(driver: Driver, device: DeviceOrdinal, handle: Context, retained: bool) -> Result<Arc<Self>> {
        let give_back = || {
            if retained {
                // SAFETY: the caller's reference, which nothing uses.
                let _ = unsafe { driver.release_primary_context(device) };
            }
        };
        let mut contexts = lock(&CONTEXTS);
        contexts.retain(|(_, shared)| shared.strong_count() > 0);
        // An object that does not hold the context must not be what one who wants it held gets.
        let found =
            contexts.iter().filter(|(context, _)| *context == handle).filter_map(|(_, shared)| shared.upgrade());
        if let Some(shared) = found.into_iter().find(|shared| shared.retained || !retained) {
            give_back();
            return Ok(shared);
        }
        // SAFETY: the context exists: the caller has a reference to it, or promises it.
        let made = unsafe { driver.set_current_context(handle) }.and_then(|()| driver.create_stream());
        let transfers = made.inspect_err(|_| give_back())?;
        let shared = Arc::new(Self {
            driver,
            device,
            handle,
            retained,
            transfers,
            recordings: RwLock::new(Vec::new()),
            under_way: AtomicUsize::new(0),
            given_up: Mutex::new(Vec::new()),
        });
        contexts.push((handle, Arc::downgrade(&shared)));
        Ok(shared)
    }

    /// The driver, with this context current on the calling thread.
    #[inline]
    pub(super) fn bind(&self) -> Result<Driver> {
        if self.driver.current_context()? != self.handle {
            // SAFETY: retained by this object, or kept alive by the caller of `Gpu::borrow_current`.
            unsafe { self.driver.set_current_context(self.handle) }?;
        }
        Ok(self.driver)
    }

    /// Whether a recording may be under way; an acquire, so that what the recording thread did is seen.
    #[inline]
    pub(super) fn is_recording(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
    }

    /// Waits for everything that was given to the GPU in this context.
    pub(super) fn synchronize(&self) -> Result<()> {
        let driver = self.bind()?;
        let recordings = self.recordings.read().unwrap_or_else(PoisonError::into_inner);
        if !recordings.is_empty() {
            return Err(Error::Recording { what: "waiting for the whole GPU" });
        }
        // Under the lock: no recording begins meanwhile.
        Ok(driver.synchronize()?)
    }

    /// Runs calls that CUDA forbids to a thread that records, because they would not be part of the recording: here they are not
    /// meant to be.
    pub(super) fn beside_recordings<T>(&self, calls: impl FnOnce(Driver) -> Result<T>) -> Result<T> {
        let driver = self.bind()?;
        let mode = driver.exchange_capture_mode(CaptureMode::Relaxed)?;
        let done = calls(driver);
        driver.exchange_capture_mode(mode)?;
        done
    }

    /// Gives work to the stream of transfers, and waits for it.
    pub(super) fn transfer(
        &self,
        work: impl FnOnce(Driver, StreamHandle) -> int_flash_attention_driver::Result<()>,
    ) -> Result<()> {
        self.on_stream(self.transfers, work)
    }

    /// Gives work to a stream, and waits for it.
    ///
    /// The stream is alive, of this context and not being recorded.
    pub(super) fn on_stream(
        &self,
        stream: StreamHandle,
        work: impl FnOnce(Driver, StreamHandle) -> int_flash_attention_driver::Result<()>,
    ) -> Result<()> {
        self.beside_recordings(|driver| {
            let given = work(driver, stream);
            // Also where something failed: what was given before may still use the caller's memory.
            // SAFETY: the stream is alive.
            let waited = unsafe { driver.synchronize_stream(stream) };
            given?;
            Ok(waited?)
        })
    }

    /// Frees memory, now or when the recordings under way have ended.
    ///
    /// # Safety
    /// Allocated in this context, and not used any more.
    pub(super) unsafe fn free(&self, memory: DevicePtr) {
        lock(&self.given_up).push(memory);
        self.free_given_up();
    }

    /// Frees what could not be freed before.
    pub(super) fn free_given_up(&self) {
        if self.is_recording() {
            return;
        }
        let given_up = std::mem::take(&mut *lock(&self.given_up));
        for memory in given_up {
            // SAFETY: `free`'s caller's promise.
            let freed = self.beside_recordings(|driver| Ok(unsafe { driver.free(memory) }?));
            // A recording of another library; the memory is tried again. (Other errors mean that the context is gone.)
            if matches!(&freed, Err(Error::Driver(error)) if error.is_about_recording()) {
                lock(&self.given_up).push(memory);
            }
        }
    }

    /// Begins to record a stream.
    ///
    /// # Safety
    /// The stream is alive until the recorder is gone, of this context, and not the default one.
    pub(super) unsafe fn record(self: &Arc<Self>, stream: StreamHandle) -> Result<Recorder> {
        let driver = self.bind()?;
        let mut recordings = self.recordings.write().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        let id = unsafe {
            driver.begin_capture(stream, CaptureMode::ThreadLocal)?;
            match driver.recording(stream) {
                Ok(id) => id.unwrap_or_default(),
                Err(error) => {
                    if let Ok(graph) = driver.end_capture(stream) {
                        let _ = driver.destroy_graph(graph);
                    }
                    return Err(error.into());
                }
            }
        };
        recordings.push(Recording { id, kept: Kept::default() });
        self.under_way.store(recordings.len(), Ordering::Release);
        Ok(Recorder { context: self.clone(), stream, id })
    }

    /// Whether a recording is this crate's.
    pub(super) fn records(&self, id: u64) -> bool {
        let recordings = self.recordings.read().unwrap_or_else(PoisonError::into_inner);
        recordings.iter().any(|recording| recording.id == id)
    }

    /// Lets the graph of a recording keep these.
    pub(super) fn keep(
        &self,
        id: u64,
        memory: impl IntoIterator<Item = Arc<Memory>>,
        gpus: impl IntoIterator<Item = Gpu>,
    ) {
        let mut recordings = self.recordings.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(recording) = recordings.iter_mut().find(|recording| recording.id == id) {
            recording.kept.add(memory, gpus);
        }
    }

    /// Lets the graph of a recording keep what another graph keeps.
    pub(super) fn keep_all(&self, id: u64, kept: &Kept) {
        self.keep(id, kept.memory.iter().cloned(), kept.gpus.iter().cloned());
    }
}

impl Drop for SharedContext {
    fn drop(&mut self) {
        // Errors here mean that the context is gone already, and with it what would be given back.
        // SAFETY: everything of the context holds a clone, so this is the last use; the context is retained, or is kept alive by
        // the caller of `Gpu::borrow_current`.
        unsafe {
            if self.bind().is_ok() {
                self.free_given_up();
                let _ = self.driver.destroy_stream(self.transfers);
            }
            if self.retained {
                let _ = self.driver.release_primary_context(self.device);
            }
        }
    }
}

/// A recording of this crate, which ends when this is dropped, whatever happens in between.
pub(super) struct Recorder {
    context: Arc<SharedContext>,
    stream: StreamHandle,
    id: u64,
}

impl Recorder {
    /// What was recorded, and what it uses.
    pub(super) fn finish(self) -> Result<(RawGraph, Kept)> {
        self.end()
    }

    fn end(&self) -> Result<(RawGraph, Kept)> {
        let mut recordings = self.context.recordings.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = recordings.iter().position(|recording| recording.id == self.id) else {
            return Ok((RawGraph::NULL, Kept::default()));
        };
        let ended = self.context.bind().and_then(|driver| {
            // SAFETY: `record`'s caller's promise; it is being recorded since.
            Ok(unsafe { driver.end_capture(self.stream) }?)
        });
        let Recording { kept, .. } = recordings.swap_remove(at);
        self.context.under_way.store(recordings.len(), Ordering::Release);
        // What is dropped below may free memory, which looks at the recordings.
        drop(recordings);
        self.context.free_given_up();
        Ok((ended?, kept))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Nothing to do where it has ended.
        if let Ok((graph, _)) = self.end()
            && !graph.is_null()
        {
            // SAFETY: nothing else has the graph.
            let _ = unsafe { self.context.driver.destroy_graph(graph) };
        }
    }
}
