//! The functions, by the names under which the library exports them.

use crate::meeting::come;
use crate::module::{assemble, find, is_ptx};
use crate::recording::{CAPTURED_EVENT, IMPLICIT, UNSUPPORTED, exchange_mode};
use crate::work::{KernelNode, Word, attribute, copy, fill, launch, on_stream, store, stream_recording};
use crate::world::{Function, Stream, World, current, set_current, with};
use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

/// One function: counted, refused where that was asked for, and dead in a forked process.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) |$world:ident| $body:block)*) => {
        $(
            $(#[$doc])*
            #[allow(non_snake_case)]
            unsafe extern "system" fn $name($($argument: $type),*) -> u32 {
                come(stringify!($name));
                let call = |$world: &mut World| -> Result<(), u32> {
                    before($world, stringify!($name))?;
                    $body
                };
                with(call).err().unwrap_or(0)
            }
        )*

        pub(crate) fn lookup(name: &str) -> Option<NonNull<c_void>> {
            let address = match name {
                $(stringify!($name) => $name as *mut c_void,)*
                _ => return None,
            };
            NonNull::new(address)
        }
    };
}

fn before(world: &mut World, name: &'static str) -> Result<(), u32> {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    *world.calls.entry(name).or_default() += 1;
    // CUDA_ERROR_NOT_INITIALIZED
    if *PROCESS.get_or_init(std::process::id) != std::process::id() {
        return Err(3);
    }
    let refused = world.refused.iter().find(|(refused, _)| *refused == name);
    refused.map_or(Ok(()), |&(_, code)| Err(code))
}

calls! {
    cuInit(_flags: u32) |world| {
        // CUDA_ERROR_NO_DEVICE
        if world.gpus.is_empty() { Err(100) } else { Ok(()) }
    }
    cuDriverGetVersion(version: *mut i32) |_world| { unsafe { store(version, 13000) }; Ok(()) }
    cuGetErrorName(_code: u32, text: *mut *const c_char) |_world| {
        unsafe { store(text, c"CUDA_ERROR_PRETENDED".as_ptr()) };
        Ok(())
    }
    cuGetErrorString(_code: u32, text: *mut *const c_char) |_world| {
        unsafe { store(text, c"the pretended driver refuses".as_ptr()) };
        Ok(())
    }

    cuDeviceGet(device: *mut i32, ordinal: i32) |_world| { unsafe { store(device, ordinal) }; Ok(()) }
    cuDeviceGetCount(count: *mut i32) |world| { unsafe { store(count, world.gpus.len() as i32) }; Ok(()) }
    cuDeviceGetName(name: *mut c_char, len: i32, device: i32) |world| {
        let text = world.gpus.get(device as usize).ok_or(101_u32)?.name;
        let bytes = text.len().min(len as usize - 1);
        // SAFETY: the caller's buffer has `len` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), bytes);
            name.add(bytes).write(0);
        }
        Ok(())
    }
    cuDeviceGetAttribute(value: *mut i32, number: i32, device: i32) |world| {
        let found = attribute(world, number, device)?;
        unsafe { store(value, found) };
        Ok(())
    }
    cuDevicePrimaryCtxRetain(context: *mut Word, device: i32) |world| {
        let handle = world.retain(device);
        unsafe { store(context, handle) };
        Ok(())
    }
    cuDevicePrimaryCtxRelease_v2(device: i32) |world| {
        match world.release(device) { 0 => Ok(()), code => Err(code) }
    }
    cuDevicePrimaryCtxGetState(device: i32, _flags: *mut u32, active: *mut i32) |world| {
        unsafe { store(active, i32::from(world.retained[device as usize] > 0)) };
        Ok(())
    }

    cuCtxGetCurrent(context: *mut Word) |_world| { unsafe { store(context, current()) }; Ok(()) }
    cuCtxSetCurrent(context: Word) |world| {
        if context != 0 && world.gpu_of(context).is_none() {
            world.violation(format!("context {context:#x} is made current after its end"));
            return Err(201);
        }
        set_current(context);
        Ok(())
    }
    cuCtxGetDevice(device: *mut i32) |world| {
        let context = world.context()?;
        unsafe { store(device, world.gpu_of(context).unwrap_or(0)) };
        Ok(())
    }
    cuCtxSynchronize() |world| {
        let context = world.context()?;
        world.whole_device(context, UNSUPPORTED)
    }

    cuModuleLoadDataEx(
        module: *mut Word, image: *const c_char, options: u32, names: *mut i32, values: *mut *mut c_void
    ) |world| {
        let context = world.context()?;
        world.unsafe_call()?;
        // SAFETY: machine code is longer than its first four bytes, and PTX is text.
        if !is_ptx(unsafe { std::slice::from_raw_parts(image.cast(), 4) }) {
            // CUDA_ERROR_NO_BINARY_FOR_GPU
            return Err(209);
        }
        if !world.assembler_log.is_empty() {
            // SAFETY: as many options and values as said; the buffers have the sizes that stand behind them.
            unsafe {
                let names = std::slice::from_raw_parts(names, options as usize);
                // CU_JIT_ERROR_LOG_BUFFER
                if let Some(at) = names.iter().position(|&name| name == 5) {
                    let log = world.assembler_log;
                    std::ptr::copy_nonoverlapping(log.as_ptr(), (*values.add(at)).cast(), log.len());
                }
            }
            // CUDA_ERROR_INVALID_PTX
            return Err(218);
        }
        // SAFETY: PTX ends in a zero byte.
        unsafe { store(module, assemble(world, image, Some(context))) };
        Ok(())
    }
    cuLibraryLoadData(
        library: *mut Word, image: *const c_char, _names: *mut i32, _values: *mut *mut c_void, _options: u32,
        _library_names: *mut i32, _library_values: *mut *mut c_void, _library_options: u32
    ) |world| {
        world.unsafe_call()?;
        // CUDA_ERROR_INVALID_PTX
        if !world.assembler_log.is_empty() { return Err(218) }
        // SAFETY: PTX ends in a zero byte.
        unsafe { store(library, assemble(world, image, None)) };
        Ok(())
    }
    cuLibraryUnload(library: Word) |world| {
        world.unsafe_call()?;
        world.kernels.retain(|_, (of, _)| *of != library);
        world.unload(library, true)
    }
    cuLibraryGetKernel(kernel: *mut Word, library: Word, name: *const c_char) |world| {
        let index = find(world, library, name)?;
        let handle = world.handle();
        world.kernels.insert(handle, (library, index));
        unsafe { store(kernel, handle) };
        Ok(())
    }
    cuKernelGetFunction(function: *mut Word, kernel: Word) |world| {
        let context = world.context()?;
        // As a module, which it is loaded as.
        world.unsafe_call()?;
        let &(module, index) = world.kernels.get(&kernel).ok_or(400_u32)?;
        let handle = world.handle();
        world.functions.insert(handle, Function { module, index, context });
        unsafe { store(function, handle) };
        Ok(())
    }
    cuModuleUnload(module: Word) |world| {
        world.context()?;
        world.unsafe_call()?;
        world.unload(module, false)
    }
    cuModuleGetFunction(function: *mut Word, module: Word, name: *const c_char) |world| {
        let index = find(world, module, name)?;
        let context = world.modules[&module].context.ok_or(400_u32)?;
        let handle = world.handle();
        world.functions.insert(handle, Function { module, index, context });
        unsafe { store(function, handle) };
        Ok(())
    }
    cuFuncGetAttribute(value: *mut i32, _attribute: i32, _function: Word) |_world| { unsafe { store(value, 1) }; Ok(()) }
    cuFuncSetAttribute(_function: Word, _attribute: i32, _value: i32) |_world| { Ok(()) }
    cuLaunchKernel(
        function: Word, _gx: u32, _gy: u32, _gz: u32, _bx: u32, _by: u32, _bz: u32, _shared: u32, stream: Word,
        arguments: *mut *mut c_void, _extra: *mut *mut c_void
    ) |world| {
        // SAFETY: the caller of the driver's function promises the same.
        let launch = unsafe { launch(world, function, arguments) }?;
        on_stream(world, stream, vec![launch]).map(|_| ())
    }

    cuLaunchKernelEx(
        config: *const c_void, function: Word, arguments: *mut *mut c_void, _extra: *mut *mut c_void
    ) |world| {
        // SAFETY: `CUlaunchConfig` has the stream behind seven numbers of 32 bits and a gap.
        let stream = unsafe { config.cast::<u8>().add(32).cast::<Word>().read() };
        // SAFETY: the caller of the driver's function promises the same.
        let launch = unsafe { launch(world, function, arguments) }?;
        on_stream(world, stream, vec![launch]).map(|_| ())
    }

    cuPointerGetAttribute(to: *mut c_void, number: i32, address: Word) |world| {
        let context = world.find(address).map(|(_, allocation)| allocation.context).ok_or(1_u32)?;
        match number {
            1 => unsafe { store(to.cast(), context) },
            _ => unsafe { store(to.cast(), world.gpu_of(context).unwrap_or(0)) },
        }
        Ok(())
    }
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |world| {
        let context = world.context()?;
        let all = world.gpus[world.gpu_of(context).unwrap_or(0) as usize].memory;
        let used: usize = world.allocations.values().map(|allocation| allocation.layout.size()).sum();
        unsafe { store(free, all - used.min(all)) };
        unsafe { store(total, all) };
        Ok(())
    }
    cuMemAlloc_v2(address: *mut Word, bytes: usize) |world| {
        let context = world.context()?;
        world.unsafe_call()?;
        let found = world.alloc(context, bytes)?;
        unsafe { store(address, found) };
        Ok(())
    }
    cuMemFree_v2(address: Word) |world| {
        world.context()?;
        world.unsafe_call()?;
        world.free(address)
    }
    cuMemcpyHtoD_v2(to: Word, from: Word, bytes: usize) |world| {
        let context = world.context()?;
        world.whole_device(context, IMPLICIT)?;
        copy(world, &[to], to, from, bytes)
    }
    cuMemcpyDtoH_v2(to: Word, from: Word, bytes: usize) |world| {
        let context = world.context()?;
        world.whole_device(context, IMPLICIT)?;
        copy(world, &[from], to, from, bytes)
    }
    cuMemcpyDtoD_v2(to: Word, from: Word, bytes: usize) |world| {
        let context = world.context()?;
        world.whole_device(context, IMPLICIT)?;
        copy(world, &[to, from], to, from, bytes)
    }
    cuMemcpyHtoDAsync_v2(to: Word, from: Word, bytes: usize, stream: Word) |world| {
        if on_stream(world, stream, Vec::new())? { copy(world, &[to], to, from, bytes) } else { Ok(()) }
    }
    cuMemcpyDtoHAsync_v2(to: Word, from: Word, bytes: usize, stream: Word) |world| {
        if on_stream(world, stream, Vec::new())? { copy(world, &[from], to, from, bytes) } else { Ok(()) }
    }
    cuMemcpyDtoDAsync_v2(to: Word, from: Word, bytes: usize, stream: Word) |world| {
        if on_stream(world, stream, Vec::new())? { copy(world, &[to, from], to, from, bytes) } else { Ok(()) }
    }
    cuMemcpy3DPeerAsync(copy: *const [Word; 25], stream: Word) |world| {
        // SAFETY: the caller's structure: eleven words a side, then bytes of a row, rows and depth.
        let copy = unsafe { *copy };
        let side = |words: &[Word]| (words[6], words[8], words[9]);
        let ((from, from_context, from_pitch), (to, to_context, to_pitch)) = (side(&copy[..11]), side(&copy[11..22]));
        let (bytes, rows) = (copy[22], copy[23]);
        let runs = on_stream(world, stream, Vec::new())?;
        for row in 0..rows {
            let (to, from) = (to + row * to_pitch, from + row * from_pitch);
            world.inside(to_context, to, bytes)?;
            world.inside(from_context, from, bytes)?;
            if runs {
                // SAFETY: both are in allocations.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            }
        }
        Ok(())
    }
    cuMemcpyPeerAsync(to: Word, to_context: Word, from: Word, from_context: Word, bytes: usize, stream: Word) |world| {
        world.inside(to_context, to, bytes)?;
        world.inside(from_context, from, bytes)?;
        if on_stream(world, stream, Vec::new())? {
            // SAFETY: both are in allocations.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        }
        Ok(())
    }
    cuDeviceCanAccessPeer(can: *mut i32, gpu: i32, peer: i32) |_world| { unsafe { store(can, i32::from(gpu != peer)) }; Ok(()) }
    cuCtxEnablePeerAccess(_other: Word, _flags: u32) |world| { world.context().map(|_| ()) }
    cuMemsetD8_v2(to: Word, byte: u8, bytes: usize) |world| {
        let context = world.context()?;
        world.whole_device(context, IMPLICIT)?;
        fill(world, to, byte, bytes)
    }
    cuMemsetD8Async(to: Word, byte: u8, bytes: usize, stream: Word) |world| {
        if on_stream(world, stream, Vec::new())? { fill(world, to, byte, bytes) } else { Ok(()) }
    }

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
