//! Modules: the kernels that a PTX text declares, and how long the parameters of each are.

use crate::work::Word;
use crate::world::World;
use std::ffi::{CStr, c_char};

pub(crate) struct Module {
    /// None of a library, which is of no context.
    pub(crate) context: Option<usize>,
    pub(crate) kernels: Vec<Kernel>,
}

pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Bytes of each parameter.
    pub(crate) parameters: Vec<usize>,
}

/// A module or a library of PTX that ends in a zero byte.
pub(crate) fn assemble(world: &mut World, ptx: *const c_char, context: Option<usize>) -> Word {
    // SAFETY: that is what the image is.
    let text = unsafe { CStr::from_ptr(ptx) }.to_string_lossy();
    let mut kernels = kernels(&text);
    kernels.retain(|kernel| !world.left_out.contains(&kernel.name.as_str()));
    let handle = world.handle();
    world.modules.insert(handle, Module { context, kernels });
    handle
}

/// A kernel's place in its module or library.
pub(crate) fn find(world: &World, module: Word, name: *const c_char) -> Result<usize, u32> {
    // SAFETY: names end in a zero byte.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let kernels = &world.modules.get(&module).ok_or(400_u32)?.kernels;
    // CUDA_ERROR_NOT_FOUND
    kernels.iter().position(|kernel| kernel.name == name).ok_or(500)
}

/// The kernels of a PTX text.
fn kernels(ptx: &str) -> Vec<Kernel> {
    let kernel = |text: &str| {
        let (name, rest) = text.split_once('(')?;
        let parameters = rest.split_once(')')?.0.split(".param").skip(1).map(bytes).collect();
        Some(Kernel { name: name.trim().to_owned(), parameters })
    };
    ptx.split(".entry ").skip(1).filter_map(kernel).collect()
}

/// Bytes of a parameter: those of an array of bytes, which is how PTX declares a structure, else a slot of 8.
fn bytes(declaration: &str) -> usize {
    let array = || declaration.split_once('[')?.1.split_once(']')?.0.parse().ok();
    array().unwrap_or(8)
}

/// Whether an image is PTX and no machine code.
pub(crate) fn is_ptx(image: &[u8]) -> bool {
    !image.starts_with(b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_parameters_are_counted() {
        let text = ".visible .entry a(\n.param .u64 a_0,\n.param .align 8 .b8 a_1[24]\n)\n{ ret; }\n.entry b()\n{}";
        let found = kernels(text);
        let found: Vec<_> = found.iter().map(|kernel| (kernel.name.as_str(), &kernel.parameters[..])).collect();
        assert_eq!(found, [("a", &[8, 24][..]), ("b", &[])]);
    }
}
