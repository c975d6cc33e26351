//! The functions, by the names under which the library exports them.

use crate::meeting::come;
use crate::module::{assemble, find, is_ptx};
use crate::recording::{IMPLICIT, UNSUPPORTED};
use crate::work::{Word, attribute, copy, fill, launch, on_stream, store};
use crate::world::{Function, World, current, set_current, with};
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

        pub(super) fn find_call(name: &str) -> Option<NonNull<c_void>> {
            let address = match name {
                $(stringify!($name) => $name as *mut c_void,)*
                _ => return None,
            };
            NonNull::new(address)
        }
    };
}

mod streams;

/// The address of a function.
pub(crate) fn lookup(name: &str) -> Option<NonNull<c_void>> {
    find_call(name).or_else(|| streams::find_call(name))
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
}
