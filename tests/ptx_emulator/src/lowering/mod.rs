//! Syntax tree to executable kernel: names and scopes, operand widths, inlined calls, block order, register slots.
mod arithmetic;
mod block_order;
mod calls;
mod collectives;
mod comparisons;
mod control_flow;
mod instructions;
mod liveness;
mod matrices;
mod memory;
mod moves;
mod operands;
mod registers;
mod scopes;

use std::collections::HashMap;
use std::fmt::Display;

use crate::arithmetic::InstructionSet;
use crate::instruction::{Class, Handler, Instruction, Kind, Modifiers, NONE};
use crate::kernel::{Kernel, Parameter};
use crate::parser::syntax::{Function, Module, SourceLocation, Variable};
use operands::Constants;
use scopes::{SharedLayout, Symbol};

type Result<T> = std::result::Result<T, String>;

/// Addresses of the module's variables in device memory.
pub type VariableAddresses = HashMap<String, u64>;

/// The executable form of the entry function `function` of `module`, for the widest instruction set that the CPU has.
///
/// # Errors
/// A text with the line: unknown instructions, operands and symbols, calls that cannot be inlined.
pub fn lower(module: &Module, function: &Function, variables: &VariableAddresses) -> Result<Kernel> {
    lower_for(InstructionSet::detect(), module, function, variables)
}

/// Like [`lower`], for a chosen instruction set of the CPU.
///
/// # Errors
/// As for [`lower`].
pub fn lower_for(
    instruction_set: InstructionSet,
    module: &Module,
    function: &Function,
    variables: &VariableAddresses,
) -> Result<Kernel> {
    let body = function.body.as_ref().ok_or_else(|| format!("entry function {} has no body", function.name))?;
    let mut lowering = Lowering::new(instruction_set, module, function, variables);
    let (parameters, parameter_bytes) = lowering.place_parameters(&function.parameters);
    lowering.place_shared_variables(body);
    lowering.scope(body)?;
    lowering.exit();
    let kernel = Kernel {
        name: function.name.clone(),
        code: vec![],
        opcodes: vec![],
        locations: vec![],
        branch_tables: vec![],
        constants: vec![],
        register_slots: 0,
        predicates: 0,
        parameters,
        parameter_bytes,
        shared_layout_bytes: lowering.shared.layout_bytes(),
        static_shared_bytes: lowering.shared.static_bytes,
        shared_variables: std::mem::take(&mut lowering.shared.variables),
        local_bytes: lowering.local_bytes.next_multiple_of(16),
        maxntid: function.maxntid,
        reqntid: function.reqntid,
        files: module.files.clone(),
        warnings: vec![],
    };
    registers::finish(lowering, kernel)
}

/// What kind of register a virtual register becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RegisterClass {
    Predicate,
    Bits32,
    Bits64,
}

/// The code of one kernel while it is built. Operands are virtual registers until the end.
struct Lowering<'a> {
    instruction_set: InstructionSet,
    module: &'a Module,
    variables: &'a VariableAddresses,
    code: Vec<Instruction>,
    /// The opcode of each instruction as written.
    opcodes: Vec<String>,
    locations: Vec<SourceLocation>,
    /// The class of each virtual register.
    registers: Vec<RegisterClass>,
    constants: Constants,
    /// Innermost last.
    scopes: Vec<HashMap<String, Symbol>>,
    /// Positions in `code`, known once the label has been passed.
    labels: Vec<Option<usize>>,
    /// Labels of each indexed branch.
    branch_tables: Vec<Vec<u32>>,
    shared: SharedLayout,
    local_bytes: u32,
    /// Where `ret` goes in the functions being inlined, innermost last.
    return_labels: Vec<u32>,
    /// What every instruction made from the current statement carries.
    current: Current,
}

/// The statement being lowered.
struct Current {
    line: u32,
    location: u32,
    guard: u32,
    opcode: String,
}

impl<'a> Lowering<'a> {
    fn new(
        instruction_set: InstructionSet,
        module: &'a Module,
        function: &Function,
        variables: &'a VariableAddresses,
    ) -> Self {
        Self {
            instruction_set,
            module,
            variables,
            code: vec![],
            opcodes: vec![],
            locations: vec![SourceLocation::default()],
            registers: vec![],
            constants: Constants::default(),
            scopes: vec![HashMap::new()],
            labels: vec![],
            branch_tables: vec![],
            shared: SharedLayout::default(),
            local_bytes: 0,
            return_labels: vec![],
            current: Current { line: function.line, location: 0, guard: NONE, opcode: String::new() },
        }
    }

    /// Gives every parameter its offset; returns them with the size of the parameter space in bytes.
    fn place_parameters(&mut self, variables: &[Variable]) -> (Vec<Parameter>, u32) {
        let mut end = 0u32;
        let mut parameters = vec![];
        for variable in variables {
            let offset = end.next_multiple_of(variable.alignment as u32);
            end = offset + variable.bytes as u32;
            parameters.push(Parameter { offset, bytes: variable.bytes as u32 });
            self.scopes[0]
                .insert(variable.name.clone(), Symbol::Variable { space: variable.space, address: u64::from(offset) });
        }
        (parameters, end)
    }

    fn error<T>(&self, message: impl Display) -> Result<T> {
        Err(format!("PTX line {}: {message}", self.current.line))
    }

    /// An instruction without operands, with line, location and guard of the current statement.
    fn instruction(&self, handler: Handler, kind: Kind, class: Class) -> Instruction {
        Instruction {
            handler,
            kind,
            class,
            guard: self.current.guard,
            destinations: [NONE; 4],
            sources: [NONE; 10],
            immediate: 0,
            modifiers: Modifiers::None,
            line: self.current.line,
            location: self.current.location,
        }
    }

    fn emit(&mut self, instruction: Instruction) {
        self.code.push(instruction);
        self.opcodes.push(self.current.opcode.clone());
    }

    fn new_register(&mut self, class: RegisterClass) -> u32 {
        self.registers.push(class);
        self.registers.len() as u32 - 1
    }

    fn new_label(&mut self) -> u32 {
        self.labels.push(None);
        self.labels.len() as u32 - 1
    }

    /// Puts a label at the end of the code so far.
    fn place_label(&mut self, label: u32) {
        self.labels[label as usize] = Some(self.code.len());
    }
}
