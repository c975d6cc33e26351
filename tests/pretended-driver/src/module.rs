//! Modules: the kernels that a PTX text declares, and how many parameters each has.

pub(crate) struct Module {
    pub(crate) context: usize,
    pub(crate) kernels: Vec<Kernel>,
}

pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) parameters: usize,
}

/// The kernels of a PTX text.
pub(crate) fn kernels(ptx: &str) -> Vec<Kernel> {
    let kernel = |text: &str| {
        let (name, rest) = text.split_once('(')?;
        let parameters = rest.split_once(')')?.0.matches(".param").count();
        Some(Kernel { name: name.trim().to_owned(), parameters })
    };
    ptx.split(".entry ").skip(1).filter_map(kernel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_parameters_are_counted() {
        let found = kernels(".visible .entry a(\n.param .u64 a_0,\n.param .u32 a_1\n)\n{ ret; }\n.entry b()\n{}");
        let found: Vec<_> = found.iter().map(|kernel| (kernel.name.as_str(), kernel.parameters)).collect();
        assert_eq!(found, [("a", 2), ("b", 0)]);
    }
}
