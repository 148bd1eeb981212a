//! Calls, which are inlined.
use std::collections::HashMap;

use super::scopes::Symbol;
use super::{Lowering, Result};
use crate::execution;
use crate::instruction::{Class, Kind, NEGATED, NONE, StateSpace};
use crate::parser::syntax::{Function, InstructionText, Operand};

/// Calls within calls; more is taken for recursion.
const MAX_DEPTH: usize = 16;

impl Lowering<'_> {
    /// `call[.uni] [(results),] function[, (arguments)]`
    pub(super) fn lower_call(&mut self, text: &InstructionText) -> Result<bool> {
        let (results, rest) = match text.operands.as_slice() {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            operands => (&[][..], operands),
        };
        let (name, arguments) = match rest {
            [Operand::Symbol(name)] => (name, &[][..]),
            [Operand::Symbol(name), Operand::List(arguments)] => (name, arguments.as_slice()),
            _ => return Ok(false),
        };
        let module = self.module;
        let Some(function) = module.functions.iter().find(|function| &function.name == name) else {
            return self.error(format!("call of '{name}': indirect calls are not supported"));
        };
        if function.body.is_some() {
            self.inline(function, arguments, results)?;
        } else if name == "__assertfail" {
            let instruction = self.instruction(execution::assert_failed, Kind::MayFault, Class::Control);
            self.emit(instruction);
        } else {
            return self.error(format!("call of the external function '{name}'"));
        }
        Ok(true)
    }

    fn inline(&mut self, function: &Function, arguments: &[Operand], results: &[Operand]) -> Result<()> {
        if self.return_labels.len() >= MAX_DEPTH {
            return self.error("recursion is not supported");
        }
        if function.parameters.len() != arguments.len() || function.results.len() != results.len() {
            return self.error(format!(
                "call of '{}' with {} arguments and {} results",
                function.name,
                arguments.len(),
                results.len()
            ));
        }
        let mut scope = HashMap::new();
        let parameters = function.parameters.iter().chain(&function.results);
        for (parameter, argument) in parameters.zip(arguments.iter().chain(results)) {
            let variable = match argument {
                Operand::Symbol(name) => self.find(name),
                _ => None,
            };
            let Some(variable @ Symbol::Variable { .. }) = variable else {
                return self.error("the arguments of a call are .param variables");
            };
            scope.insert(parameter.name.clone(), variable);
        }
        let end = self.new_label();
        if self.current.guard != NONE {
            // skips the body where the guard is false
            let mut branch = self.branch(end);
            branch.guard ^= NEGATED;
            self.emit(branch);
        }
        // the function sees the shared variables of the module and its own parameters
        let mut module_scope = self.scopes[0].clone();
        module_scope.retain(|_, symbol| matches!(symbol, Symbol::Variable { space: StateSpace::Shared, .. }));
        let scopes_of_caller = std::mem::replace(&mut self.scopes, vec![module_scope, scope]);
        self.return_labels.push(end);
        self.scope(function.body.as_deref().unwrap_or_default())?;
        self.return_labels.pop();
        self.scopes = scopes_of_caller;
        self.place_label(end);
        Ok(())
    }
}
