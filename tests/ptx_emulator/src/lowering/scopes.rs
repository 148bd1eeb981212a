//! Names: scopes, registers, variables and labels.
use std::collections::HashMap;

use super::{Lowering, RegisterClass, Result};
use crate::data_type::{DataType, Width};
use crate::execution::SHARED_BASE;
use crate::instruction::{NEGATED, NONE, StateSpace};
use crate::kernel::SharedVariable;
use crate::parser::syntax::{InstructionText, Statement, Variable};

/// Bytes between shared variables that belong to none of them, so that an overrun is seen.
const RED_ZONE: u32 = 128;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Symbol {
    Register(u32),
    Variable { space: StateSpace, address: u64 },
    Label(u32),
    BranchTable(u32),
}

/// Where the variables in shared memory are.
#[derive(Default)]
pub(super) struct SharedLayout {
    pub variables: Vec<SharedVariable>,
    /// Bytes that a GPU needs for them.
    pub static_bytes: u32,
    /// Bytes laid out so far, red zones included.
    end: u32,
    /// Names of the arrays that the launch gives their size, all at the same address.
    dynamic: Vec<String>,
    dynamic_alignment: u32,
}

impl SharedLayout {
    /// Bytes in front of the dynamic shared memory.
    pub fn layout_bytes(&self) -> u32 {
        self.end.next_multiple_of(self.dynamic_alignment.max(RED_ZONE))
    }

    /// The address of a static variable; none for an array that the launch gives its size.
    fn place(&mut self, variable: &Variable) -> Option<u32> {
        let (bytes, alignment) = (variable.bytes as u32, variable.alignment as u32);
        if variable.is_external || bytes == 0 {
            self.dynamic_alignment = self.dynamic_alignment.max(alignment);
            self.dynamic.push(variable.name.clone());
            return None;
        }
        self.static_bytes = self.static_bytes.next_multiple_of(alignment) + bytes;
        let offset = self.end.next_multiple_of(alignment.max(16));
        self.end = (offset + bytes).next_multiple_of(RED_ZONE) + RED_ZONE;
        let address = SHARED_BASE + offset;
        self.variables.push(SharedVariable { name: variable.name.clone(), address, bytes });
        Some(address)
    }
}

impl Lowering<'_> {
    /// Places every shared variable of the module, of the kernel and of the functions that it may call.
    pub(super) fn place_shared_variables(&mut self, body: &[Statement]) {
        let module = self.module;
        for variable in module.variables.iter().filter(|variable| variable.space == StateSpace::Shared) {
            self.place_shared_variable(variable);
        }
        self.place_shared_variables_of(body);
        for function in module.functions.iter().filter(|function| !function.is_entry) {
            self.place_shared_variables_of(function.body.as_deref().unwrap_or_default());
        }
        let address = u64::from(SHARED_BASE + self.shared.layout_bytes());
        for name in &self.shared.dynamic {
            self.scopes[0].insert(name.clone(), Symbol::Variable { space: StateSpace::Shared, address });
        }
    }

    fn place_shared_variables_of(&mut self, body: &[Statement]) {
        for statement in body {
            match statement {
                Statement::Scope(statements) => self.place_shared_variables_of(statements),
                Statement::Variable(variable) if variable.space == StateSpace::Shared => {
                    self.place_shared_variable(variable);
                }
                _ => {}
            }
        }
    }

    fn place_shared_variable(&mut self, variable: &Variable) {
        if self.scopes[0].contains_key(&variable.name) {
            return;
        }
        if let Some(address) = self.shared.place(variable) {
            let symbol = Symbol::Variable { space: StateSpace::Shared, address: u64::from(address) };
            self.scopes[0].insert(variable.name.clone(), symbol);
        }
    }

    /// What `name` stands for in the innermost scope that knows it.
    pub(super) fn find(&self, name: &str) -> Option<Symbol> {
        let in_scopes = self.scopes.iter().rev().find_map(|scope| scope.get(name).cloned());
        in_scopes.or_else(|| {
            let address = *self.variables.get(name)?;
            Some(Symbol::Variable { space: StateSpace::Global, address })
        })
    }

    fn declare(&mut self, name: String, symbol: Symbol) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, symbol);
        }
    }

    pub(super) fn label(&self, name: &str) -> Result<u32> {
        match self.find(name) {
            Some(Symbol::Label(label)) => Ok(label),
            _ => self.error(format!("unknown label '{name}'")),
        }
    }

    /// Lowers the statements of a scope.
    pub(super) fn scope(&mut self, statements: &[Statement]) -> Result<()> {
        self.scopes.push(HashMap::new());
        // labels, and the tables made of them, are visible in the whole scope
        for statement in statements {
            if let Statement::Label(name) = statement {
                let label = self.new_label();
                self.declare(name.clone(), Symbol::Label(label));
            }
        }
        for statement in statements {
            if let Statement::BranchTargets { name, labels } = statement {
                let targets = labels.iter().map(|label| self.label(label)).collect::<Result<_>>()?;
                self.branch_tables.push(targets);
                self.declare(name.clone(), Symbol::BranchTable(self.branch_tables.len() as u32 - 1));
            }
        }
        for statement in statements {
            self.statement(statement)?;
        }
        self.scopes.pop();
        Ok(())
    }

    fn statement(&mut self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::Scope(statements) => self.scope(statements),
            Statement::Registers { data_type, name, count } => {
                self.declare_registers(*data_type, name, *count);
                Ok(())
            }
            Statement::Variable(variable) => self.declare_variable(variable),
            Statement::Label(name) => {
                let label = self.label(name)?;
                self.place_label(label);
                Ok(())
            }
            Statement::BranchTargets { .. } => Ok(()),
            Statement::Instruction(text) => self.instruction_statement(text),
        }
    }

    fn declare_registers(&mut self, data_type: DataType, name: &str, count: Option<u32>) {
        let class = match data_type {
            DataType::Pred => RegisterClass::Predicate,
            _ => data_type.width().into(),
        };
        let names = match count {
            Some(count) => (0..count).map(|number| format!("{name}{number}")).collect(),
            None => vec![name.to_string()],
        };
        for name in names {
            let register = self.new_register(class);
            self.declare(name, Symbol::Register(register));
        }
    }

    fn declare_variable(&mut self, variable: &Variable) -> Result<()> {
        match variable.space {
            // a call's parameters live in the caller's local memory
            StateSpace::Local | StateSpace::Param => {
                let address = self.local_bytes.next_multiple_of(variable.alignment.max(8) as u32);
                self.local_bytes = address + variable.bytes as u32;
                let symbol = Symbol::Variable { space: StateSpace::Local, address: u64::from(address) };
                self.declare(variable.name.clone(), symbol);
                Ok(())
            }
            StateSpace::Shared => Ok(()),
            space => self.error(format!("the variable '{}' inside a function is in {space:?} memory", variable.name)),
        }
    }

    fn instruction_statement(&mut self, text: &InstructionText) -> Result<()> {
        if self.locations.last() != Some(&text.location) {
            self.locations.push(text.location.clone());
        }
        self.current.line = text.line;
        self.current.location = self.locations.len() as u32 - 1;
        self.current.opcode = text.opcode.to_string();
        self.current.guard = NONE;
        if let Some(guard) = &text.guard {
            let predicate = self.predicate_register(&guard.register)?;
            self.current.guard = if guard.negated { predicate | NEGATED } else { predicate };
        }
        if self.lower_instruction(text)? {
            Ok(())
        } else {
            self.error(format!("unsupported instruction '{}'", text.opcode))
        }
    }
}

impl From<Width> for RegisterClass {
    fn from(width: Width) -> Self {
        match width {
            Width::Bits32 => Self::Bits32,
            Width::Bits64 => Self::Bits64,
        }
    }
}
