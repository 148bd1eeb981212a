//! Operands: registers, constants, special registers, predicates, destinations and addresses.
use std::collections::HashMap;

use super::scopes::Symbol;
use super::{Lowering, RegisterClass, Result};
use crate::arithmetic::moves;
use crate::data_type::Width;
use crate::execution;
use crate::instruction::{CONSTANT, Class, Kind, Modifiers, NEGATED, NONE, SpecialRegister, StateSpace};
use crate::parser::syntax::Operand;

/// The constants of a kernel, each repeated for 32 lanes.
#[derive(Default)]
pub(super) struct Constants {
    pub bytes: Vec<u8>,
    slots: HashMap<(u64, Width), u32>,
}

impl Constants {
    fn slot(&mut self, value: u64, width: Width) -> u32 {
        let bytes = &mut self.bytes;
        *self.slots.entry((value, width)).or_insert_with(|| {
            let slot = CONSTANT | (bytes.len() / 128) as u32;
            match width {
                Width::Bits32 => bytes.extend((value as u32).to_le_bytes().repeat(32)),
                Width::Bits64 => bytes.extend(value.to_le_bytes().repeat(32)),
            }
            slot
        })
    }
}

/// Where a result goes: a register of the wanted width, and the register of another width that it belongs into.
#[must_use]
pub(super) struct Destination {
    pub register: u32,
    resized: Option<u32>,
}

/// A lane's address: a 64-bit base and an offset in bytes.
pub(super) struct Address {
    pub base: u32,
    pub offset: i64,
    pub space: StateSpace,
}

impl Lowering<'_> {
    /// A constant, repeated for every lane.
    pub(super) fn constant(&mut self, value: u64, width: Width) -> u32 {
        let value = if width == Width::Bits32 { value & 0xffff_ffff } else { value };
        self.constants.slot(value, width)
    }

    fn register(&self, name: &str) -> Result<(u32, RegisterClass)> {
        match self.find(name) {
            Some(Symbol::Register(register)) => Ok((register, self.registers[register as usize])),
            _ => self.error(format!("'{name}' is not a register")),
        }
    }

    /// The register of a data operand with its width.
    pub(super) fn data_register(&self, operand: &Operand) -> Result<(u32, Width)> {
        let Operand::Symbol(name) = operand else { return self.error("a register is expected") };
        match self.register(name)? {
            (register, RegisterClass::Bits32) => Ok((register, Width::Bits32)),
            (register, RegisterClass::Bits64) => Ok((register, Width::Bits64)),
            _ => self.error(format!("the predicate '{name}' is used as data")),
        }
    }

    pub(super) fn predicate_register(&self, name: &str) -> Result<u32> {
        match self.register(name)? {
            (register, RegisterClass::Predicate) => Ok(register),
            _ => self.error(format!("'{name}' is not a predicate")),
        }
    }

    /// Whether the operand is a predicate register.
    pub(super) fn is_predicate(&self, operand: &Operand) -> bool {
        matches!(operand, Operand::Symbol(name) if self.predicate_register(name).is_ok())
    }

    /// The predicate register that an instruction writes; none for `_`.
    pub(super) fn predicate_destination(&self, operand: &Operand) -> Result<Option<u32>> {
        match operand {
            Operand::Symbol(name) if name == "_" => Ok(None),
            Operand::Symbol(name) => self.predicate_register(name).map(Some),
            _ => self.error("a predicate register is expected as the destination"),
        }
    }

    /// A predicate source, perhaps with [`NEGATED`].
    pub(super) fn predicate_source(&mut self, operand: &Operand) -> Result<u32> {
        match operand {
            Operand::Symbol(name) => self.predicate_register(name),
            Operand::NegatedPredicate(name) => Ok(self.predicate_register(name)? | NEGATED),
            Operand::Integer(value) => {
                let register = self.new_register(RegisterClass::Predicate);
                let handlers = moves::constant_predicate(*value != 0);
                self.arithmetic(handlers, Class::Move, register, &[]);
                Ok(register)
            }
            _ => self.error("a predicate is expected"),
        }
    }

    /// A data source as a slot of the wanted width.
    pub(super) fn source(&mut self, operand: &Operand, width: Width) -> Result<u32> {
        let value = match operand {
            Operand::Integer(value) => *value as u64,
            Operand::Float32(bits) if width == Width::Bits32 => u64::from(*bits),
            Operand::Float32(bits) => f64::from(f32::from_bits(*bits)).to_bits(),
            Operand::Float64(bits) if width == Width::Bits64 => *bits,
            Operand::Float64(bits) => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            Operand::SymbolOffset(name, offset) => match self.find(name) {
                Some(Symbol::Variable { address, .. }) => address.wrapping_add_signed(*offset),
                _ => return self.error(format!("unknown symbol '{name}'")),
            },
            Operand::Symbol(name) => return self.symbol_source(name, width),
            _ => return self.error(format!("unsupported operand {operand:?}")),
        };
        Ok(self.constant(value, width))
    }

    fn symbol_source(&mut self, name: &str, width: Width) -> Result<u32> {
        match self.find(name) {
            Some(Symbol::Register(register)) => match self.registers[register as usize] {
                RegisterClass::Bits32 => Ok(self.resize(register, Width::Bits32, width)),
                RegisterClass::Bits64 => Ok(self.resize(register, Width::Bits64, width)),
                RegisterClass::Predicate => self.error(format!("the predicate '{name}' is used as data")),
            },
            Some(Symbol::Variable { address, .. }) => Ok(self.constant(address, width)),
            None if name == "WARP_SZ" => Ok(self.constant(32, width)),
            None if name.starts_with('%') => {
                let Some(special) = SpecialRegister::named(name) else {
                    return self.error(format!("unknown special register '{name}'"));
                };
                let special_width = if special.is_wide() { Width::Bits64 } else { Width::Bits32 };
                let register = self.new_register(special_width.into());
                let mut instruction = self.instruction(execution::special_register, Kind::Arithmetic, Class::Move);
                instruction.destinations[0] = register;
                instruction.modifiers = Modifiers::SpecialRegister(special);
                self.emit(instruction);
                Ok(self.resize(register, special_width, width))
            }
            _ => self.error(format!("unknown symbol '{name}'")),
        }
    }

    /// The value of a register in another width: truncated or zero-extended.
    fn resize(&mut self, register: u32, from: Width, to: Width) -> u32 {
        if from == to {
            return register;
        }
        let resized = self.new_register(to.into());
        let handlers = if to == Width::Bits32 { moves::truncate() } else { moves::zero_extend() };
        // A new register is written whether the instruction that reads it has a guard or not.
        let guard = std::mem::replace(&mut self.current.guard, NONE);
        self.arithmetic(handlers, Class::Move, resized, &[register]);
        self.current.guard = guard;
        resized
    }

    /// A register of the wanted width to write to; [`Self::complete`] must follow the instruction.
    pub(super) fn destination(&mut self, operand: &Operand, width: Width) -> Result<Destination> {
        if matches!(operand, Operand::Symbol(name) if name == "_") {
            return Ok(Destination { register: self.new_register(width.into()), resized: None });
        }
        let (register, has) = self.data_register(operand)?;
        if has == width {
            Ok(Destination { register, resized: None })
        } else {
            Ok(Destination { register: self.new_register(width.into()), resized: Some(register) })
        }
    }

    /// Moves a result into a destination of another width, sign-extended if `signed`.
    pub(super) fn complete(&mut self, destination: Destination, signed: bool) {
        let Some(resized) = destination.resized else { return };
        let handlers = match (self.registers[destination.register as usize], signed) {
            (RegisterClass::Bits64, _) => moves::truncate(),
            (_, true) => moves::sign_extend(),
            (_, false) => moves::zero_extend(),
        };
        self.arithmetic(handlers, Class::Move, resized, &[destination.register]);
    }

    /// An address in brackets. A variable brings its own state space where the opcode names none.
    pub(super) fn address(&mut self, operand: &Operand, space: StateSpace) -> Result<Address> {
        let Operand::Address(base, offset) = operand else { return self.error("an address is expected") };
        let (base, offset, space) = match &**base {
            Operand::Integer(value) => (self.constant(0, Width::Bits64), *value as i64 + offset, space),
            Operand::Symbol(name) => match self.find(name) {
                Some(Symbol::Variable { space: own, address }) => {
                    let takes_own = match space {
                        StateSpace::Param => true,
                        StateSpace::Generic => own != StateSpace::Global,
                        _ => false,
                    };
                    let base = self.constant(0, Width::Bits64);
                    (base, address as i64 + offset, if takes_own { own } else { space })
                }
                _ => (self.source(&Operand::Symbol(name.clone()), Width::Bits64)?, *offset, space),
            },
            operand => (self.source(operand, Width::Bits64)?, *offset, space),
        };
        Ok(Address { base, offset, space })
    }
}
