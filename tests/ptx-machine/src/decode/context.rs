//! Names, registers and constants of the kernel being decoded.

use crate::isa::{Address, Guard};
use crate::memory::Space;
use crate::parse::{Failure, Instruction, Operand};
use crate::registers::Slot;
use crate::ty::Ty;
use std::collections::HashMap;

/// A special register that a warp fills in when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    WarpCount,
    LaneMask { below: bool, equal: bool, above: bool },
    DynamicShared,
    TotalShared,
}

impl Special {
    fn parse(name: &str, component: Option<&str>) -> Option<Self> {
        let axis = match component {
            None => None,
            Some("x") => Some(0),
            Some("y") => Some(1),
            Some("z") => Some(2),
            Some(_) => return None,
        };
        let mask = |below, equal, above| Self::LaneMask { below, equal, above };
        Some(match (name, axis) {
            ("%tid", Some(axis)) => Self::Tid(axis),
            ("%ntid", Some(axis)) => Self::Ntid(axis),
            ("%ctaid", Some(axis)) => Self::Ctaid(axis),
            ("%nctaid", Some(axis)) => Self::Nctaid(axis),
            ("%laneid", None) => Self::LaneId,
            ("%warpid", None) => Self::WarpId,
            ("%nwarpid", None) => Self::WarpCount,
            ("%lanemask_lt", None) => mask(true, false, false),
            ("%lanemask_le", None) => mask(true, true, false),
            ("%lanemask_eq", None) => mask(false, true, false),
            ("%lanemask_ge", None) => mask(false, true, true),
            ("%lanemask_gt", None) => mask(false, false, true),
            ("%dynamic_smem_size", None) => Self::DynamicShared,
            ("%total_smem_size", None) => Self::TotalShared,
            _ => return None,
        })
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Binding {
    Register {
        ty: Ty,
        slot: Slot,
    },
    Symbol {
        space: Space,
        address: u64,
    },
    /// A `.param` inside a kernel, which passes arguments to a function.
    CallParam,
}

/// The size class of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Width {
    Predicate,
    /// 8 and 16 bits.
    Short,
    Word,
    Wide,
}

impl Width {
    pub(crate) fn of(ty: Ty) -> Self {
        match ty.bits() {
            1 => Self::Predicate,
            8 | 16 => Self::Short,
            32 => Self::Word,
            _ => Self::Wide,
        }
    }

    fn words(self) -> u32 {
        match self {
            Self::Predicate => 1,
            Self::Short | Self::Word => 16,
            Self::Wide => 32,
        }
    }
}

/// What an instruction does with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// The state of decoding one kernel.
pub(crate) struct Context<'a> {
    pub(crate) scopes: Vec<HashMap<String, Binding>>,
    /// Names of functions, and whether they return.
    pub(crate) functions: HashMap<&'a str, bool>,
    constants: HashMap<(Width, u64), Slot>,
    specials: HashMap<Special, Slot>,
    /// The initial register file.
    words: Vec<u64>,
    /// Line of the instruction being decoded.
    pub(crate) line: u32,
    /// Registers that it reads, and those that it writes.
    pub(crate) uses: Vec<(Slot, Use)>,
    target: &'a str,
    /// Whether the kernel says how many threads it is for, without which `setmaxnreg` does nothing.
    pub(crate) may_trade_registers: bool,
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        symbols: HashMap<String, Binding>,
        functions: HashMap<&'a str, bool>,
        target: &'a str,
        may_trade_registers: bool,
    ) -> Self {
        Self {
            scopes: vec![symbols],
            functions,
            constants: HashMap::new(),
            specials: HashMap::new(),
            words: Vec::new(),
            line: 0,
            uses: Vec::new(),
            target,
            may_trade_registers,
        }
    }

    /// The initial register file, and where special registers go in it.
    pub(crate) fn finish(self) -> (Vec<u64>, Vec<(Special, Slot)>) {
        (self.words, self.specials.into_iter().collect())
    }

    pub(crate) fn unsupported<T>(&self, reason: impl Into<String>) -> Result<T, Failure> {
        Err(Failure::unsupported(self.line, reason))
    }

    pub(crate) fn syntax<T>(&self, reason: impl Into<String>) -> Result<T, Failure> {
        Err(Failure::syntax(self.line, reason))
    }

    /// Fails unless the module is for one of the given architectures.
    pub(crate) fn require_target(&self, targets: &[&str]) -> Result<(), Failure> {
        if targets.contains(&self.target) {
            return Ok(());
        }
        self.unsupported(format!("an instruction of {} in a module for {}", targets.join(" or "), self.target))
    }

    /// A new register, and room for it.
    pub(crate) fn allocate(&mut self, width: Width) -> Slot {
        let slot = Slot(self.words.len() as u32);
        self.words.resize(self.words.len() + width.words() as usize, 0);
        slot
    }

    pub(crate) fn bind(&mut self, name: String, binding: Binding) {
        self.scopes.last_mut().expect("the outermost scope never closes").insert(name, binding);
    }

    pub(crate) fn lookup(&self, name: &str) -> Option<Binding> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name).copied())
    }

    /// A register that holds a constant.
    pub(crate) fn constant(&mut self, width: Width, value: u64) -> Slot {
        let value = match width {
            Width::Predicate => u64::from(u32::MAX) * (value & 1),
            Width::Short => value & 0xffff,
            Width::Word => value & 0xffff_ffff,
            Width::Wide => value,
        };
        if let Some(slot) = self.constants.get(&(width, value)) {
            return *slot;
        }
        let slot = self.allocate(width);
        let pair = if matches!(width, Width::Short | Width::Word) { value << 32 | value } else { value };
        self.words[slot.0 as usize..].fill(pair);
        self.constants.insert((width, value), slot);
        slot
    }

    fn register(&self, name: &str) -> Result<(Ty, Slot), Failure> {
        match self.lookup(name) {
            Some(Binding::Register { ty, slot }) => Ok((ty, slot)),
            _ => self.syntax(format!("`{name}` is not a register")),
        }
    }

    /// A register of exactly this width.
    fn register_of(&mut self, name: &str, width: Width, purpose: Use) -> Result<Slot, Failure> {
        let (ty, slot) = self.register(name)?;
        if Width::of(ty) != width {
            return self.syntax(format!("register `{name}` has the wrong size for its place"));
        }
        self.uses.push((slot, purpose));
        Ok(slot)
    }

    /// A register of exactly this width, to be read.
    pub(crate) fn read(&mut self, name: &str, width: Width) -> Result<Slot, Failure> {
        self.register_of(name, width, Use::Read)
    }

    /// A register of exactly this width, to be written.
    pub(crate) fn write(&mut self, name: &str, width: Width) -> Result<Slot, Failure> {
        self.register_of(name, width, Use::Write)
    }

    /// A source operand: register, special register, constant or address.
    pub(crate) fn source(&mut self, operand: &Operand<'a>, width: Width) -> Result<Slot, Failure> {
        match *operand {
            Operand::Int(value) => Ok(self.constant(width, value)),
            Operand::F32(bits) if width == Width::Word => Ok(self.constant(width, bits.into())),
            Operand::F32(bits) if width == Width::Wide => {
                Ok(self.constant(width, f64::from(f32::from_bits(bits)).to_bits()))
            }
            Operand::F64(bits) if width == Width::Wide => Ok(self.constant(width, bits)),
            Operand::F64(bits) if width == Width::Word => {
                Ok(self.constant(width, (f64::from_bits(bits) as f32).to_bits().into()))
            }
            Operand::Name(name, component) => self.named_source(name, component, width),
            Operand::Offset(name, offset) => match self.lookup(name) {
                Some(Binding::Symbol { address, .. }) => Ok(self.constant(width, address.wrapping_add_signed(offset))),
                _ => self.syntax(format!("`{name}` is not a variable")),
            },
            _ => self.syntax("an operand of this form has no place here"),
        }
    }

    fn named_source(&mut self, name: &'a str, component: Option<&str>, width: Width) -> Result<Slot, Failure> {
        if name == "WARP_SZ" {
            return Ok(self.constant(width, 32));
        }
        match self.lookup(name) {
            Some(Binding::Register { .. }) if component.is_none() => return self.read(name, width),
            Some(Binding::Symbol { address, .. }) => return Ok(self.constant(width, address)),
            _ => {}
        }
        let Some(special) = Special::parse(name, component) else {
            return self.unsupported(format!("operand `{name}`"));
        };
        if width != Width::Word {
            return self.unsupported("a special register at a size other than 32 bits");
        }
        if let Some(slot) = self.specials.get(&special) {
            return Ok(*slot);
        }
        let slot = self.allocate(width);
        self.specials.insert(special, slot);
        Ok(slot)
    }

    /// A destination register of exactly this width.
    pub(crate) fn target(&mut self, operand: &Operand<'a>, width: Width) -> Result<Slot, Failure> {
        match operand {
            Operand::Name(name, None) => self.write(name, width),
            _ => self.syntax("a register was expected"),
        }
    }

    /// The register, and its own width, of an instruction whose destination may be wider than its type.
    pub(crate) fn any_target(&mut self, operand: &Operand<'a>) -> Result<(Slot, Width), Failure> {
        let (slot, width) = self.any_register(operand)?;
        self.uses.push((slot, Use::Write));
        Ok((slot, width))
    }

    fn any_register(&self, operand: &Operand<'a>) -> Result<(Slot, Width), Failure> {
        match operand {
            Operand::Name(name, None) => {
                let (ty, slot) = self.register(name)?;
                Ok((slot, Width::of(ty)))
            }
            _ => self.syntax("a register was expected"),
        }
    }

    /// The width an operand has by itself, if it is a register.
    pub(crate) fn width_of(&self, operand: &Operand<'a>) -> Option<Width> {
        self.any_register(operand).ok().map(|(_, width)| width)
    }

    /// A predicate operand, perhaps negated.
    pub(crate) fn predicate(&mut self, operand: &Operand<'a>) -> Result<Guard, Failure> {
        match operand {
            Operand::Not(name) => Ok(Guard { predicate: self.read(name, Width::Predicate)?, negated: true }),
            other => Ok(Guard { predicate: self.source(other, Width::Predicate)?, negated: false }),
        }
    }

    /// An address operand; the state space comes along when the base is a variable.
    pub(crate) fn address(&mut self, operand: &Operand<'a>) -> Result<(Address, Option<Space>), Failure> {
        match *operand {
            Operand::AbsoluteAddress(value) => {
                let base = self.constant(Width::Wide, value);
                Ok((Address { base, wide: true, offset: 0 }, None))
            }
            Operand::Address(name, offset) => match self.lookup(name) {
                Some(Binding::Register { ty, .. }) => match Width::of(ty) {
                    width @ (Width::Word | Width::Wide) => {
                        let base = self.read(name, width)?;
                        Ok((Address { base, wide: width == Width::Wide, offset }, None))
                    }
                    _ => self.syntax("an address register has 32 or 64 bits"),
                },
                Some(Binding::Symbol { space, address }) => {
                    let base = self.constant(Width::Wide, address);
                    Ok((Address { base, wide: true, offset }, Some(space)))
                }
                _ => self.unsupported(format!("address base `{name}`")),
            },
            _ => self.syntax("an address was expected"),
        }
    }
}

/// The modifiers of an instruction; each decoder takes those it knows, and what is left is an error.
pub(crate) struct Modifiers<'a> {
    line: u32,
    words: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub(crate) fn of(instruction: &Instruction<'a>) -> Self {
        Self { line: instruction.line, words: instruction.modifiers.clone() }
    }

    pub(crate) fn take(&mut self, word: &str) -> bool {
        let place = self.words.iter().position(|w| *w == word);
        place.map(|i| self.words.remove(i)).is_some()
    }

    /// Takes the first of the given words that is there.
    pub(crate) fn take_one<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(word, _)| self.take(word)).map(|(_, value)| *value)
    }

    /// Takes every modifier that `drop` accepts.
    pub(crate) fn drop_if(&mut self, drop: impl Fn(&str) -> bool) {
        self.words.retain(|word| !drop(word));
    }

    /// Takes the first type.
    pub(crate) fn ty(&mut self) -> Result<Ty, Failure> {
        let place = self.words.iter().position(|word| Ty::parse(word).is_some());
        match place.and_then(|i| Ty::parse(self.words.remove(i))) {
            Some(ty) => Ok(ty),
            None => Err(Failure::unsupported(self.line, format!("no known type among the modifiers {:?}", self.words))),
        }
    }

    /// Fails if a modifier is left.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(Failure::unsupported(self.line, format!("modifier `.{word}`"))),
        }
    }
}

/// The operands, if there are as many as the instruction takes.
pub(crate) fn operands<'i, 'a, const N: usize>(
    instruction: &'i Instruction<'a>,
) -> Result<&'i [Operand<'a>; N], Failure> {
    instruction.operands.as_slice().try_into().map_err(|_| {
        let (got, name) = (instruction.operands.len(), instruction.name);
        Failure::syntax(instruction.line, format!("`{name}` takes {N} operands here, and has {got}"))
    })
}
