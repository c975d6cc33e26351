//! What is exchanged between GPUs: checked messages, and copies that wait for another GPU's work.

use super::{DeviceSlice, DeviceSliceMut, Event, Gpu, StreamRef};
use crate::error::Result;
use crate::ranks::Message;
use int_flash_attention_driver::{Context, DevicePtr, StreamHandle};
use std::sync::Arc;

/// A message's end on this GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) peer: usize,
    pub(crate) ptr: DevicePtr,
    pub(crate) len: usize,
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
    pub(crate) ptr: DevicePtr,
    pub(crate) len: usize,
    context: Context,
    ready: Arc<Event>,
}

impl Gpu {
    /// Whether an exchange's stream and memory are of this GPU, and no recording.
    pub(crate) fn check_exchange(
        &self,
        stream: StreamRef<'_>,
        sends: &[Message<DeviceSlice<'_, u8>>],
        receives: &[Message<DeviceSliceMut<'_, u8>>],
    ) -> Result<Checked> {
        let launch = self.launching(stream)?;
        let handle = launch.not_recorded("an exchange between ranks")?;
        let send = |message: &Message<DeviceSlice<'_, u8>>| {
            let len = message.bytes.len();
            Ok(End { peer: message.peer, ptr: message.bytes.checked_bytes(&launch, "bytes to be sent", len)?, len })
        };
        let receive = |message: &Message<DeviceSliceMut<'_, u8>>| {
            let (bytes, len) = (message.bytes.as_slice(), message.bytes.len());
            Ok(End { peer: message.peer, ptr: bytes.checked_bytes(&launch, "room for bytes", len)?, len })
        };
        Ok(Checked {
            stream: handle,
            sends: sends.iter().map(send).collect::<Result<_>>()?,
            receives: receives.iter().map(receive).collect::<Result<_>>()?,
        })
    }

    /// Copies rows of bytes between arrays of this GPU, in the order of a stream of it. Beside an array, the bytes from a row to the next.
    pub(crate) fn copy_rows(
        &self,
        stream: StreamRef<'_>,
        (from, from_pitch): (DeviceSlice<'_, u8>, usize),
        (to, to_pitch): (DeviceSliceMut<'_, u8>, usize),
        (rows, bytes): (usize, usize),
    ) -> Result<()> {
        if rows * bytes == 0 {
            return Ok(());
        }
        let launch = self.launching(stream)?;
        let handle = launch.not_recorded("an exchange between ranks")?;
        let span = |pitch: usize| (rows - 1) * pitch + bytes;
        let (from, to) = (
            from.checked_bytes(&launch, "rows to be copied", span(from_pitch))?,
            to.as_slice().checked_bytes(&launch, "room for rows", span(to_pitch))?,
        );
        // SAFETY: both arrays are of this GPU and long enough; the borrows and the stream's order keep them until then.
        Ok(unsafe { self.bind()?.copy_rows_async((to, to_pitch), (from, from_pitch), (rows, bytes), handle) }?)
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
        PostedEnd { ptr: end.ptr, len: end.len, context: self.0.context.handle, ready: ready.clone() }
    }

    /// Copies bytes of another GPU, or of this one, once they are ready, in the order of a stream of this GPU.
    ///
    /// # Safety
    /// The room has as many bytes; those of both ends stay allocated, and nothing else uses them, until the stream has come there.
    pub(crate) unsafe fn take(&self, stream: StreamHandle, posted: &PostedEnd, room: &End) -> Result<()> {
        self.wait_for(stream, &posted.ready)?;
        let (to, from) = ((room.ptr, self.0.context.handle), (posted.ptr, posted.context));
        // SAFETY: the caller's promise; the event holds the other context.
        Ok(unsafe { self.bind()?.copy_to_peer_async(to, from, posted.len, stream) }?)
    }
}
