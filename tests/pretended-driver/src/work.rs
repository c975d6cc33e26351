//! What the functions do: copies, fills and launches, at once or into a recording.

use crate::recording::PER_THREAD;
use crate::world::{Function, Launch, World};
use std::ffi::c_void;

/// Addresses, sizes and handles.
pub(crate) type Word = usize;

/// `CUDA_KERNEL_NODE_PARAMS`.
#[repr(C)]
pub(crate) struct KernelNode {
    pub(crate) function: Word,
    /// Blocks, threads and shared memory.
    _shape: [u32; 7],
    pub(crate) arguments: *mut *mut c_void,
    _extra: *mut *mut c_void,
}

/// Stores a result.
///
/// # Safety
/// The address is the caller's, for one value.
pub(crate) unsafe fn store<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: the caller's promise.
        unsafe { to.write(value) };
    }
}

/// Attributes of a GPU (cuda.h).
pub(crate) fn attribute(world: &World, number: i32, gpu: i32) -> Result<i32, u32> {
    let gpu = world.gpus.get(gpu as usize).ok_or(101_u32)?;
    Ok(match number {
        8 => 49152,
        16 => gpu.multiprocessors,
        75 => gpu.capability.0,
        76 => gpu.capability.1,
        81 | 97 => gpu.shared_bytes,
        _ => 1,
    })
}

/// Copies between places, both of which are the host's.
pub(crate) fn copy(world: &mut World, device: &[Word], to: Word, from: Word, bytes: usize) -> Result<(), u32> {
    let context = world.context()?;
    for &address in device {
        world.inside(context, address, bytes)?;
    }
    // SAFETY: the device's side is in an allocation, the host's is the caller's promise.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    Ok(())
}

pub(crate) fn fill(world: &mut World, to: Word, byte: u8, bytes: usize) -> Result<(), u32> {
    let context = world.context()?;
    world.inside(context, to, bytes)?;
    // SAFETY: the memory is in an allocation.
    unsafe { (to as *mut u8).write_bytes(byte, bytes) };
    Ok(())
}

/// A stream's recording; the stream is of the current context.
pub(crate) fn stream_recording(world: &mut World, stream: Word) -> Result<Option<u64>, u32> {
    let context = world.context()?;
    // The default streams; the thread's can be recorded.
    if stream <= PER_THREAD {
        return Ok(world.streams.get(&stream).and_then(|stream| stream.recording));
    }
    match world.streams.get(&stream) {
        Some(found) if found.context == context => Ok(found.recording),
        found => {
            let what = if found.is_some() { "is of another context" } else { "is used after its end" };
            world.violation(format!("stream {stream:#x} {what}"));
            // CUDA_ERROR_INVALID_HANDLE
            Err(400)
        }
    }
}

/// Work on a stream that is recorded, or done at once.
pub(crate) fn on_stream(world: &mut World, stream: Word, launches: Vec<Launch>) -> Result<bool, u32> {
    let recording = stream_recording(world, stream)?;
    match recording.and_then(|id| world.recordings.get_mut(&id)) {
        Some(recording) => {
            recording.launches.extend(launches);
            Ok(false)
        }
        None => {
            run(world, launches);
            Ok(true)
        }
    }
}

/// Runs launches: their memory and modules have to be alive.
fn run(world: &mut World, launches: Vec<Launch>) {
    for launch in launches {
        for &(address, number) in &launch.memory {
            if world.allocations.get(&address).is_none_or(|allocation| allocation.number != number) {
                world.violation(format!("{} writes or reads freed memory at {address:#x}", launch.kernel));
            }
        }
        if !world.functions.contains_key(&launch.function) {
            world.violation(format!("{} is launched after its module's end", launch.kernel));
        }
        world.launched.push(launch.kernel);
    }
}

/// A launch on memory of its module's context.
///
/// # Safety
/// `arguments` point to as many values as the kernel has parameters, each as long as its parameter.
pub(crate) unsafe fn launch(world: &mut World, function: Word, arguments: *mut *mut c_void) -> Result<Launch, u32> {
    let context = world.context()?;
    let &Function { module, index, context: of } = world.functions.get(&function).ok_or(400_u32)?;
    let kernel = &world.modules[&module].kernels[index];
    let name = kernel.name.clone();
    // SAFETY: the caller's promise.
    let arguments = unsafe { std::slice::from_raw_parts(arguments, kernel.parameters.len()) };
    // What may be an address: the words of each.
    let words = |(argument, &bytes): (&*mut c_void, &usize)| {
        let words = argument.cast::<Word>();
        // SAFETY: the same; what is smaller than 8 bytes is in a slot of 8.
        (0..bytes / size_of::<Word>()).map(move |at| unsafe { words.add(at).read_unaligned() }).collect::<Vec<_>>()
    };
    let values: Vec<Word> = arguments.iter().zip(&kernel.parameters).flat_map(words).collect();
    if of != context {
        world.violation(format!("{name} is launched in another context than its module's"));
    }
    let mut memory = Vec::new();
    for value in values {
        if let Some((address, allocation)) = world.find(value) {
            let (number, home) = (allocation.number, allocation.context);
            memory.push((address, number));
            if home != context {
                world.violation(format!("{name} is given memory of another context"));
            }
        }
    }
    Ok(Launch { kernel: name, memory, function })
}
