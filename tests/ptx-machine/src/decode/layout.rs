//! Addresses of variables.

use super::context::Binding;
use crate::memory::{Memory, Space};
use crate::parse::{Failure, Init, Kernel, Operand, Statement, Variable};
use std::collections::{HashMap, HashSet};

/// Appends a variable, and returns where it begins.
pub(super) fn place(end: &mut u64, align: u32, bytes: u64) -> u64 {
    let start = end.next_multiple_of(u64::from(align.max(1)));
    *end = start + bytes;
    start
}

/// Allocates and fills the module's `.global` and `.const` variables.
pub(crate) fn module_variables(variables: &[Variable<'_>]) -> Result<(Memory, HashMap<String, Binding>), Failure> {
    let mut memory = Memory::of_module();
    let mut bindings = HashMap::new();
    let mut places = Vec::new();
    for variable in variables.iter().filter(|v| v.space != Space::Shared) {
        if variable.external {
            return Err(Failure::unsupported(variable.line, "a variable defined elsewhere"));
        }
        let ptr = memory.alloc(variable.bytes, u64::from(variable.align));
        places.push((variable, ptr));
        bindings.insert(variable.name.to_owned(), Binding::Symbol { space: variable.space, address: ptr.0 });
    }
    for (variable, ptr) in places {
        let mut bytes = Vec::new();
        for init in &variable.init {
            let value = match init {
                Init::Bits(bits) => *bits,
                Init::Address(name) => match bindings.get(*name) {
                    Some(Binding::Symbol { address, .. }) => *address,
                    _ => return Err(Failure::unsupported(variable.line, format!("the address of `{name}`"))),
                },
            };
            bytes.extend_from_slice(&value.to_le_bytes()[..variable.ty.bytes() as usize]);
        }
        bytes.resize(variable.bytes as usize, 0);
        memory.write(ptr, &bytes).map_err(|_| Failure::syntax(variable.line, "the initialiser is too long"))?;
    }
    Ok((memory, bindings))
}

/// Lays out the shared variables that a kernel names, from an address on; returns where dynamic shared memory begins.
pub(super) fn shared_variables(
    kernel: &Kernel<'_>,
    module: &[Variable<'_>],
    symbols: &mut HashMap<String, Binding>,
    first: u32,
) -> u32 {
    let mut names = HashSet::new();
    let mut own = Vec::new();
    for statement in &kernel.body {
        match statement {
            Statement::Instruction(instruction) => instruction.operands.iter().for_each(|o| collect(o, &mut names)),
            Statement::Variable(variable) if variable.space == Space::Shared => own.push(variable),
            _ => {}
        }
    }
    let used = module.iter().filter(|v| v.space == Space::Shared && names.contains(v.name));
    let (dynamic, fixed): (Vec<_>, Vec<_>) = used.chain(own).partition(|v| v.external || v.bytes == 0);
    let mut end = first.into();
    for variable in fixed {
        let address = place(&mut end, variable.align, variable.bytes);
        symbols.insert(variable.name.to_owned(), Binding::Symbol { space: Space::Shared, address });
    }
    let align = dynamic.iter().map(|v| v.align).max().unwrap_or(1);
    let address = place(&mut end, align, 0);
    for variable in dynamic {
        symbols.insert(variable.name.to_owned(), Binding::Symbol { space: Space::Shared, address });
    }
    address as u32
}

fn collect<'a>(operand: &Operand<'a>, names: &mut HashSet<&'a str>) {
    match operand {
        Operand::Name(name, _) | Operand::Offset(name, _) | Operand::Address(name, _) => {
            names.insert(name);
        }
        Operand::List(list) => list.iter().for_each(|o| collect(o, names)),
        _ => {}
    }
}
