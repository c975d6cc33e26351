//! From parsed statements to [`Inst`]s: names become slots, modifiers become fields, once.

mod compare;
mod context;
mod control;
mod convert;
mod float;
mod integer;
mod layout;
mod matrix;
mod mbarrier;
mod memory;
mod warp;
mod warpgroup;

use crate::cfg;
use crate::isa::{Control, Guard, Inst, Op};
use crate::memory::Space;
use crate::parse::{Failure, Instruction, Kernel, Param, Source, Statement};
use crate::registers::{Registers, Slot};
use crate::ty::Ty;
use context::{Binding, Context, Width};
use std::collections::HashMap;

pub(crate) use context::Special;
pub(crate) use layout::module_variables;

/// Shared memory that Hopper's system keeps for itself in each CTA, at the lowest addresses.
const SYSTEM_SHARED: u32 = 1024;

/// A kernel, ready to run.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) code: std::sync::Arc<[Inst]>,
    pub(crate) registers: Registers,
    pub(crate) specials: Vec<(Special, Slot)>,
    pub(crate) params: Vec<ParamPlace>,
    pub(crate) param_bytes: u32,
    pub(crate) local_bytes: u32,
    /// Where shared memory begins, for `sm_90` after what the system keeps for itself.
    pub(crate) first_shared: u32,
    /// Where dynamic shared memory begins, after the static.
    pub(crate) dynamic_shared: u32,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) max_threads: Option<u32>,
    /// Registers that some `wgmma` uses.
    pub(crate) watched_registers: u32,
    /// Registers that each thread has at first, where the directives tell.
    pub(crate) register_pool: Option<u32>,
}

/// A parameter, and where it lies in parameter memory.
#[derive(Clone, Debug)]
pub(crate) struct ParamPlace {
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    pub(crate) ty: Ty,
    pub(crate) align: u32,
    pub(crate) pointer: bool,
    pub(crate) array: bool,
}

/// Decodes one kernel; `globals` are the module's variables that have addresses of their own.
pub(crate) fn kernel<'a>(
    kernel: &Kernel<'a>,
    source: &Source<'a>,
    globals: &HashMap<String, Binding>,
) -> Result<Program, Failure> {
    let mut symbols = globals.clone();
    let first_shared = if source.target.starts_with("sm_90") { SYSTEM_SHARED } else { 0 };
    let dynamic_shared = layout::shared_variables(kernel, &source.variables, &mut symbols, first_shared);
    let (params, param_bytes) = params(&kernel.params, &mut symbols);
    let mut returns: HashMap<&str, bool> = HashMap::new();
    for function in &source.functions {
        *returns.entry(function.name).or_insert(true) &= function.returns;
    }
    let mut cx = Context::new(symbols, returns, source.target, warpgroup::may_trade_registers(kernel));
    let labels = labels(&kernel.body)?;
    let mut local_bytes = 0;
    let mut code = Vec::new();
    let mut uses = Vec::new();
    let mut scopes = vec![0];
    let mut next_scope = 1;
    for statement in &kernel.body {
        match statement {
            Statement::Label { .. } => {}
            Statement::Open => {
                scopes.push(next_scope);
                next_scope += 1;
                cx.scopes.push(HashMap::new());
            }
            Statement::Close => {
                scopes.pop();
                cx.scopes.pop();
            }
            Statement::Registers { ty, name, count } => declare(&mut cx, *ty, name, *count),
            Statement::Variable(variable) => match variable.space {
                Space::Local => {
                    let address = layout::place(&mut local_bytes, variable.align, variable.bytes);
                    cx.bind(variable.name.into(), Binding::Symbol { space: Space::Local, address });
                }
                Space::Param => cx.bind(variable.name.into(), Binding::CallParam),
                Space::Shared => {}
                _ => return Err(Failure::unsupported(variable.line, "a global variable inside a kernel")),
            },
            Statement::Instruction(instruction) => {
                cx.line = instruction.line;
                let find = |name: &str| scopes.iter().rev().find_map(|s| labels.get(&(*s, name)).copied());
                code.push(inst(&mut cx, instruction, &find)?);
                uses.push(std::mem::take(&mut cx.uses));
            }
        }
    }
    code.push(Inst {
        op: Op::Control(Control::Exit),
        guard: None,
        line: cx.line.max(kernel.line),
        watched: Box::default(),
    });
    let watched_registers = warpgroup::watch(&mut code, &uses);
    cfg::set_reconvergence(&mut code);
    let (words, specials) = cx.finish();
    Ok(Program {
        name: kernel.name.into(),
        code: code.into(),
        registers: Registers::new(words),
        specials,
        params,
        param_bytes,
        local_bytes: local_bytes as u32,
        first_shared,
        dynamic_shared,
        required_block: kernel.required_block,
        max_threads: kernel.max_threads,
        watched_registers,
        register_pool: warpgroup::register_pool(kernel),
    })
}

fn params(params: &[Param<'_>], symbols: &mut HashMap<String, Binding>) -> (Vec<ParamPlace>, u32) {
    let mut end = 0;
    let mut out = Vec::new();
    for param in params {
        let bytes = param.array.unwrap_or(param.ty.bytes());
        let align = if param.pointer { param.ty.bytes() } else { param.align };
        let offset = layout::place(&mut end, align, bytes.into());
        symbols.insert(param.name.into(), Binding::Symbol { space: Space::Param, address: offset });
        let (offset, array) = (offset as u32, param.array.is_some());
        out.push(ParamPlace { offset, bytes, ty: param.ty, align: param.align, pointer: param.pointer, array });
    }
    (out, end as u32)
}

/// The instruction that each label stands before, by scope.
fn labels<'a>(body: &[Statement<'a>]) -> Result<HashMap<(usize, &'a str), u32>, Failure> {
    let mut out = HashMap::new();
    let mut scopes = vec![0];
    let (mut next_scope, mut index) = (1, 0);
    for statement in body {
        match statement {
            Statement::Open => {
                scopes.push(next_scope);
                next_scope += 1;
            }
            Statement::Close => {
                scopes.pop();
            }
            Statement::Instruction(_) => index += 1,
            Statement::Label { name, line } => {
                let scope = scopes.last().copied().unwrap_or(0);
                if out.insert((scope, *name), index).is_some() {
                    return Err(Failure::syntax(*line, format!("label `{name}` stands twice")));
                }
            }
            Statement::Registers { .. } | Statement::Variable(_) => {}
        }
    }
    Ok(out)
}

fn declare(cx: &mut Context<'_>, ty: Ty, name: &str, count: Option<u32>) {
    let width = Width::of(ty);
    let names = match count {
        None => vec![name.to_owned()],
        Some(count) => (0..count).map(|i| format!("{name}{i}")).collect(),
    };
    for name in names {
        let slot = cx.allocate(width);
        cx.bind(name, Binding::Register { ty, slot });
    }
}

fn inst<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    labels: &dyn Fn(&str) -> Option<u32>,
) -> Result<Inst, Failure> {
    let guard = match instruction.guard {
        Some((name, negated)) => Some(Guard { predicate: cx.read(name, Width::Predicate)?, negated }),
        None => None,
    };
    let op = match instruction.name {
        "bra" | "call" | "ret" | "exit" | "trap" | "brkpt" => control::decode(cx, instruction, labels)?,
        "mov" | "selp" => control::data(cx, instruction)?,
        "setp" | "set" | "slct" => Op::Compare(compare::decode(cx, instruction)?),
        "cvt" => Op::Convert(convert::decode(cx, instruction)?),
        "ld" | "ldu" | "st" | "atom" | "red" | "cvta" => memory::decode(cx, instruction)?,
        "prefetch" => memory::prefetch(cx, instruction)?,
        "cp" if instruction.modifiers.get(1) == Some(&"bulk") => Op::Bulk(mbarrier::bulk(cx, instruction)?),
        "cp" => Op::Async(memory::asynchronous(cx, instruction)?),
        "mbarrier" => Op::Mbarrier(mbarrier::decode(cx, instruction)?),
        "wgmma" => Op::Warpgroup(warpgroup::wgmma(cx, instruction)?),
        "setmaxnreg" => Op::Warpgroup(warpgroup::registers(cx, instruction)?),
        "ldmatrix" | "mma" => Op::Matrix(matrix::decode(cx, instruction)?),
        "shfl" | "vote" | "activemask" | "elect" => Op::Warp(warp::decode(cx, instruction)?),
        "bar" | "barrier" | "membar" | "fence" => warp::barrier(cx, instruction)?,
        "griddepcontrol" => warp::grid_dependency(cx, instruction)?,
        "and" | "or" | "xor" | "not" if instruction.modifiers == ["pred"] => control::predicate_logic(cx, instruction)?,
        _ if float::is_float(instruction) => Op::Float(float::decode(cx, instruction)?),
        _ => Op::Integer(integer::decode(cx, instruction)?),
    };
    Ok(Inst { op, guard, line: instruction.line, watched: Box::default() })
}
