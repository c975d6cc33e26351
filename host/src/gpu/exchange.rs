//! What is exchanged between GPUs: checked messages, and copies that wait for another GPU's work.

use super::{DeviceSlice, DeviceSliceMut, Event, Gpu, StreamRef};
use crate::error::Result;
use crate::ranks::Message;
use int_flash_attention_driver::{Context, DevicePtr, StreamHandle};
use std::sync::Arc;

/// Bytes of a GPU that travel: in one piece, or in rows.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRows<B> {
    bytes: B,
    rows: usize,
    row_bytes: usize,
    pitch: usize,
}

impl<B> DeviceRows<B> {
    /// So many rows of so many bytes, and `pitch` bytes from the start of a row to the next one's. Both ends of a message have the same rows; each has
    /// its own pitch.
    #[must_use]
    pub const fn new(bytes: B, rows: usize, row_bytes: usize, pitch: usize) -> Self {
        Self { bytes, rows, row_bytes, pitch }
    }
}

impl<'a> From<DeviceSlice<'a, u8>> for DeviceRows<DeviceSlice<'a, u8>> {
    fn from(bytes: DeviceSlice<'a, u8>) -> Self {
        let len = bytes.len();
        Self::new(bytes, 1, len, len)
    }
}

impl<'a> From<DeviceSliceMut<'a, u8>> for DeviceRows<DeviceSliceMut<'a, u8>> {
    fn from(bytes: DeviceSliceMut<'a, u8>) -> Self {
        let len = bytes.len();
        Self::new(bytes, 1, len, len)
    }
}

/// A message's end on this GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) peer: usize,
    pub(crate) ptr: DevicePtr,
    pub(crate) rows: usize,
    /// Of a row.
    pub(crate) bytes: usize,
    pitch: usize,
}

#[cfg(feature = "nccl")]
impl End {
    /// Where each row begins.
    pub(crate) fn starts(&self) -> impl Iterator<Item = DevicePtr> + use<> {
        let Self { ptr, rows, pitch, .. } = *self;
        (0..rows).map(move |row| ptr + (row * pitch) as DevicePtr)
    }
}

/// An exchange whose stream and memory are of one GPU.
pub(crate) struct Checked {
    pub(crate) stream: StreamHandle,
    pub(crate) sends: Vec<End>,
    pub(crate) receives: Vec<End>,
}

/// Bytes that another GPU may read, once its stream has waited for the event. They stay as they are until it has.
#[derive(Clone, Debug)]
pub(crate) struct PostedEnd {
    pub(crate) end: End,
    context: Context,
    ready: Arc<Event>,
}

impl Gpu {
    /// Whether an exchange's stream and memory are of this GPU, and no recording.
    pub(crate) fn check_exchange(
        &self,
        stream: StreamRef<'_>,
        sends: &[Message<DeviceRows<DeviceSlice<'_, u8>>>],
        receives: &[Message<DeviceRows<DeviceSliceMut<'_, u8>>>],
    ) -> Result<Checked> {
        let launch = self.launching(stream)?;
        let handle = launch.not_recorded("an exchange between ranks")?;
        let end = |peer: usize, name: &'static str, rows: DeviceRows<DeviceSlice<'_, u8>>| {
            let DeviceRows { bytes: slice, rows, row_bytes: bytes, pitch } = rows;
            let span = rows.checked_sub(1).and_then(|rows| rows.checked_mul(pitch)?.checked_add(bytes));
            Ok(End { peer, ptr: slice.checked_bytes(&launch, name, span.unwrap_or(usize::MAX))?, rows, bytes, pitch })
        };
        let send =
            |message: &Message<DeviceRows<DeviceSlice<'_, u8>>>| end(message.peer, "bytes to be sent", message.bytes);
        let receive = |message: &Message<DeviceRows<DeviceSliceMut<'_, u8>>>| {
            let DeviceRows { bytes, rows, row_bytes, pitch } = &message.bytes;
            end(message.peer, "room for bytes", DeviceRows::new(bytes.as_slice(), *rows, *row_bytes, *pitch))
        };
        Ok(Checked {
            stream: handle,
            sends: sends.iter().map(send).collect::<Result<_>>()?,
            receives: receives.iter().map(receive).collect::<Result<_>>()?,
        })
    }

    /// Copies rows of bytes between arrays of this GPU, in the order of a stream of it.
    pub(crate) fn copy_rows(
        &self,
        stream: StreamRef<'_>,
        from: DeviceRows<DeviceSlice<'_, u8>>,
        to: DeviceRows<DeviceSliceMut<'_, u8>>,
    ) -> Result<()> {
        let ends =
            self.check_exchange(stream, &[Message { peer: 0, bytes: from }], &[Message { peer: 0, bytes: to }])?;
        let context = self.0.context.handle;
        for (from, to) in ends.sends.iter().zip(&ends.receives) {
            // SAFETY: both arrays are of this GPU and long enough; the borrows and the stream's order keep them until then.
            unsafe { self.copy_end(ends.stream, (from, context), to) }?;
        }
        Ok(())
    }

    /// Copies a message's bytes from its one end, of a context, to the other, of this GPU.
    ///
    /// # Safety
    /// Both ends have the same rows, stay allocated, and nothing else uses them, until the stream has come there; the context is alive.
    unsafe fn copy_end(&self, stream: StreamHandle, (from, context): (&End, Context), to: &End) -> Result<()> {
        let (driver, own) = (self.bind()?, self.0.context.handle);
        // SAFETY: the caller's promise.
        let copied = unsafe {
            match from.rows {
                1 => driver.copy_to_peer_async((to.ptr, own), (from.ptr, context), from.bytes, stream),
                rows => driver.copy_rows_to_peer_async(
                    (to.ptr, own, to.pitch),
                    (from.ptr, context, from.pitch),
                    (rows, from.bytes),
                    stream,
                ),
            }
        };
        Ok(copied?)
    }

    /// Whether copies between this GPU and the other go straight, from now on.
    pub(crate) fn reach(&self, other: &Self) -> Result<bool> {
        let (own, of) = (&self.0.context, &other.0.context);
        if own.handle == of.handle {
            return Ok(true);
        }
        // SAFETY: the other context is held by the object.
        Ok(unsafe { self.bind()?.reach_peer(of.handle, of.device) }?)
    }

    /// An event where the stream's work now ends. The stream is of this GPU.
    pub(crate) fn mark(&self, stream: StreamHandle) -> Result<Arc<Event>> {
        let event = self.event()?;
        // SAFETY: both are alive and of one context.
        unsafe { self.bind()?.record_event(event.handle(), stream) }?;
        Ok(Arc::new(event))
    }

    /// Lets the stream, which is of this GPU, wait for an event of any GPU.
    pub(crate) fn wait_for(&self, stream: StreamHandle, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        Ok(unsafe { self.bind()?.wait_event(stream, event.handle()) }?)
    }

    /// Bytes of this GPU for another one.
    pub(crate) fn post(&self, end: &End, ready: &Arc<Event>) -> PostedEnd {
        PostedEnd { end: *end, context: self.0.context.handle, ready: ready.clone() }
    }

    /// Copies bytes of another GPU, or of this one, once they are ready, in the order of a stream of this GPU.
    ///
    /// # Safety
    /// The room has the same rows; those of both ends stay allocated, and nothing else uses them, until the stream has come there.
    pub(crate) unsafe fn take(&self, stream: StreamHandle, posted: &PostedEnd, room: &End) -> Result<()> {
        self.wait_for(stream, &posted.ready)?;
        // SAFETY: the caller's promise; the event holds the other context.
        unsafe { self.copy_end(stream, (&posted.end, posted.context), room) }
    }
}
