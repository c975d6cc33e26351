//! Streams, events, recordings and graphs.

use super::before;
use crate::meeting::come;
use crate::recording::{CAPTURED_EVENT, UNSUPPORTED, exchange_mode};
use crate::work::{KernelNode, Word, launch, on_stream, store, stream_recording};
use crate::world::{Stream, World, with};
use std::ffi::c_void;
use std::ptr::NonNull;

calls! {
    cuStreamCreate(stream: *mut Word, _flags: u32) |world| {
        let context = world.context()?;
        let handle = world.handle();
        world.streams.insert(handle, Stream { context, recording: None });
        unsafe { store(stream, handle) };
        Ok(())
    }
    cuStreamCreateWithPriority(stream: *mut Word, _flags: u32, _priority: i32) |world| {
        let context = world.context()?;
        let handle = world.handle();
        world.streams.insert(handle, Stream { context, recording: None });
        unsafe { store(stream, handle) };
        Ok(())
    }
    cuStreamDestroy_v2(stream: Word) |world| {
        let recording = stream_recording(world, stream)?;
        let _ = world.not_recorded(recording, UNSUPPORTED);
        world.streams.remove(&stream).map(|_| ()).ok_or(400)
    }
    cuStreamSynchronize(stream: Word) |world| {
        let recording = stream_recording(world, stream)?;
        world.not_recorded(recording, UNSUPPORTED)
    }
    cuStreamWaitEvent(stream: Word, event: Word, _flags: u32) |world| {
        stream_recording(world, stream)?;
        let &mark = world.events.get(&event).ok_or(400_u32)?;
        // The stream becomes part of the recording that the mark is part of.
        if let (Some(id), Some(found)) = (mark, world.streams.get_mut(&stream)) {
            found.recording.get_or_insert(id);
        }
        Ok(())
    }
    cuStreamGetCtx(stream: Word, context: *mut Word) |world| {
        let of = match world.streams.get(&stream) { Some(found) => found.context, None => world.context()? };
        unsafe { store(context, of) };
        Ok(())
    }
    cuStreamBeginCapture_v2(stream: Word, mode: i32) |world| {
        stream_recording(world, stream)?;
        world.begin_recording(stream, mode)
    }
    cuStreamEndCapture(stream: Word, graph: *mut Word) |world| {
        stream_recording(world, stream)?;
        let made = world.end_recording(stream);
        unsafe { store(graph, made.unwrap_or(0)) };
        made.map(|_| ())
    }
    cuStreamGetCaptureInfo_v2(
        stream: Word, status: *mut i32, id: *mut u64, _graph: *mut Word, _nodes: *mut *const c_void, _count: *mut usize
    ) |world| {
        let recording = stream_recording(world, stream)?;
        unsafe { store(status, i32::from(recording.is_some())) };
        unsafe { store(id, recording.unwrap_or(0)) };
        Ok(())
    }
    cuThreadExchangeStreamCaptureMode(mode: *mut i32) |_world| {
        // SAFETY: the caller's integer.
        unsafe { *mode = exchange_mode(*mode) };
        Ok(())
    }

    cuEventCreate(event: *mut Word, _flags: u32) |world| {
        world.context()?;
        let handle = world.handle();
        world.events.insert(handle, None);
        unsafe { store(event, handle) };
        Ok(())
    }
    cuEventDestroy_v2(event: Word) |world| { world.events.remove(&event).map(|_| ()).ok_or(400) }
    cuEventRecord(event: Word, stream: Word) |world| {
        let recording = stream_recording(world, stream)?;
        *world.events.get_mut(&event).ok_or(400_u32)? = recording;
        // A stream that joined a recording and marks its end is taken to be joined again by whoever waits for the mark.
        let joined = recording.is_some_and(|id| world.recordings[&id].origin != stream);
        if let Some(found) = world.streams.get_mut(&stream).filter(|_| joined) {
            found.recording = None;
        }
        Ok(())
    }
    cuEventSynchronize(event: Word) |world| {
        let &mark = world.events.get(&event).ok_or(400_u32)?;
        world.not_recorded(mark, CAPTURED_EVENT)
    }
    cuEventElapsedTime(milliseconds: *mut f32, _start: Word, _end: Word) |_world| {
        unsafe { store(milliseconds, 1.0) };
        Ok(())
    }

    cuGraphCreate(graph: *mut Word, _flags: u32) |world| {
        world.context()?;
        let handle = world.handle();
        world.graphs.insert(handle, Vec::new());
        unsafe { store(graph, handle) };
        Ok(())
    }
    cuGraphAddKernelNode(
        node: *mut Word, graph: Word, _after: *const Word, count: usize, params: *const KernelNode
    ) |world| {
        // SAFETY: the caller of the driver's function promises the same.
        let launch = unsafe { launch(world, (*params).function, (*params).arguments) }?;
        let launches = world.graphs.get_mut(&graph).ok_or(400_u32)?;
        // Graphs are chains here.
        if count != launches.len().min(1) { return Err(1) }
        launches.push(launch);
        let place = launches.len() - 1;
        let handle = world.handle();
        world.nodes.insert(handle, (graph, place));
        unsafe { store(node, handle) };
        Ok(())
    }
    cuGraphExecKernelNodeSetParams(exec: Word, node: Word, params: *const KernelNode) |world| {
        let &(graph, place) = world.nodes.get(&node).ok_or(400_u32)?;
        if !world.graphs.contains_key(&graph) {
            world.violation(format!("node {node:#x} is used after its graph's end"));
        }
        // SAFETY: the caller of the driver's function promises the same.
        let launch = unsafe { launch(world, (*params).function, (*params).arguments) }?;
        *world.execs.get_mut(&exec).and_then(|launches| launches.get_mut(place)).ok_or(400_u32)? = launch;
        Ok(())
    }
    cuGraphInstantiateWithFlags(exec: *mut Word, graph: Word, _flags: u64) |world| {
        let launches = world.graphs.get(&graph).cloned().ok_or(400_u32)?;
        let handle = world.handle();
        world.execs.insert(handle, launches);
        unsafe { store(exec, handle) };
        Ok(())
    }
    cuGraphLaunch(exec: Word, stream: Word) |world| {
        let launches = world.execs.get(&exec).cloned().ok_or(400_u32)?;
        on_stream(world, stream, launches).map(|_| ())
    }
    cuGraphDestroy(graph: Word) |world| { world.graphs.remove(&graph).map(|_| ()).ok_or(400) }
    cuGraphExecDestroy(exec: Word) |world| { world.execs.remove(&exec).map(|_| ()).ok_or(400) }
}
