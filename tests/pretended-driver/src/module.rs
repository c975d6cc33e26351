//! Modules: the kernels that a PTX text declares, and how long the parameters of each are.

pub(crate) struct Module {
    pub(crate) context: usize,
    pub(crate) kernels: Vec<Kernel>,
}

pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Bytes of each parameter.
    pub(crate) parameters: Vec<usize>,
}

/// The kernels of a PTX text.
pub(crate) fn kernels(ptx: &str) -> Vec<Kernel> {
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
