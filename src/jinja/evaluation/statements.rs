//! Statements.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::interpreter::{Frame, Interpreter, Run};
use crate::jinja::ast::{For, Kind, Statement, Step};
use crate::jinja::budget::NODE_WORK;
use crate::jinja::error::Result;
use crate::jinja::runtime::Runtime;
use crate::jinja::value::{Items, Loop, Value};

/// How a list of statements ended.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl<'t> Interpreter<'t> {
    /// Runs a template and returns what it prints.
    pub(in crate::jinja) fn render(mut self, body: &'t [Statement]) -> Result<String> {
        let frame = Self::outermost();
        self.run(body, &frame)?;
        Ok(self.out)
    }

    pub(super) fn run(&mut self, body: &'t [Statement], frame: &Rc<Frame>) -> Result<Flow> {
        for statement in body {
            let flow = match &statement.kind {
                Kind::Data(text) => self.print(text).map(|()| Flow::Next),
                Kind::Print(expr) => self.value(expr, frame).and_then(|value| {
                    self.runtime.budget.work(NODE_WORK / 4)?;
                    self.print_value(&value)?;
                    Ok(Flow::Next)
                }),
                other => self.deeper(|this| this.statement(other, frame)),
            };
            let flow = flow.map_err(|e| e.at(statement.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, kind: &'t Kind, frame: &Rc<Frame>) -> Result<Flow> {
        match kind {
            Kind::If(branches, otherwise) => {
                for (test, body) in branches {
                    self.runtime.budget.work(NODE_WORK / 4)?;
                    if self.value(test, frame)?.truth() {
                        return self.run(body, frame);
                    }
                }
                return self.run(otherwise, frame);
            }
            Kind::For(block) => {
                let items = self.value(&block.items, frame)?;
                self.run_loop(block, &items, frame, 0)?;
            }
            Kind::Set(target, expr) => {
                let value = self.value(expr, frame)?;
                self.assign(target, value, frame)?;
            }
            Kind::SetBlock(target, filters, body) => {
                let (flow, printed) = self.captured(|this| this.run(body, &Frame::inside(frame)))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(printed, filters, frame)?;
                self.assign(target, value, frame)?;
            }
            Kind::With(assignments, body) => {
                let inner = Frame::inside(frame);
                for (target, expr) in assignments {
                    let value = self.value(expr, frame)?;
                    self.assign(target, value, &inner)?;
                }
                return self.run(body, &inner);
            }
            Kind::Macro(block) => {
                let value = self.define(block, frame)?;
                self.set(frame, block.variable, value)?;
            }
            Kind::Call(block, call) => self.call_block(block, call, frame)?,
            Kind::Filter(filters, body) => {
                let (flow, printed) = self.captured(|this| this.run(body, &Frame::inside(frame)))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(printed, filters, frame)?;
                self.print_value(&value)?;
            }
            Kind::Scope(body) => {
                self.run(body, &Frame::inside(frame))?;
            }
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
            Kind::Data(_) | Kind::Print(_) => {}
        }
        Ok(Flow::Next)
    }

    /// A captured text behind filters.
    fn filtered(&mut self, printed: String, filters: &'t [Step], frame: &Rc<Frame>) -> Result<Value> {
        let mut value = self.runtime.str(printed)?;
        for filter in filters {
            match filter {
                Step::Filter(filter, arguments) => {
                    self.runtime.budget.work(NODE_WORK)?;
                    let args = self.arguments(arguments, frame)?;
                    value = filter(&self.runtime, value, args)?;
                }
                Step::Missing(error) => return Err(error.clone()),
                _ => {}
            }
        }
        Ok(value)
    }

    /// Runs a `for` over the elements of a value.
    pub(super) fn run_loop(&mut self, block: &'t For, items: &Value, frame: &Rc<Frame>, depth0: usize) -> Result<()> {
        let mut items = self.runtime.iterate(items)?;
        // With a test, the variable `loop` counts what passes it; without the variable, the test sees what the body did.
        let mut test = block.test.as_ref();
        if block.reads_loop && test.take().is_some() {
            items = self.passing(block, &items, frame)?;
        }
        let number = self.next_run;
        self.next_run += 1;
        let run = block.reads_loop.then(|| {
            let changed = RefCell::new(None);
            Rc::new(Loop { items: Rc::clone(&items), index: Cell::new(0), depth0, changed, run: number })
        });
        self.runs.push(Run { number, block, frame: Rc::clone(frame) });
        let ran = self.run_body(block, &items, frame, run.as_ref(), test.is_some());
        self.runs.pop();
        if let Some(run) = &run {
            run.changed.take();
        }
        if !ran? {
            self.run(&block.otherwise, &Frame::inside(frame))?;
        }
        Ok(())
    }

    /// Runs the body for each element; whether it ran at all.
    fn run_body(
        &mut self,
        block: &'t For,
        items: &Items,
        frame: &Rc<Frame>,
        run: Option<&Rc<Loop>>,
        tested: bool,
    ) -> Result<bool> {
        let mut ran = false;
        for (index, item) in items.values.iter().enumerate() {
            self.runtime.budget.work(NODE_WORK)?;
            let inner = Frame::inside(frame);
            self.assign(&block.target, item.clone(), &inner)?;
            if tested && !self.passes(block, &inner)? {
                continue;
            }
            ran = true;
            if let (Some(run), Some(name)) = (run, self.loop_name) {
                run.index.set(index);
                self.set(&inner, name, Value::Loop(Rc::clone(run)))?;
            }
            if self.run(&block.body, &inner)? == Flow::Break {
                break;
            }
        }
        Ok(ran)
    }

    fn passes(&mut self, block: &'t For, frame: &Rc<Frame>) -> Result<bool> {
        match &block.test {
            Some(test) => Ok(self.value(test, frame)?.truth()),
            None => Ok(true),
        }
    }

    /// The elements that pass a loop's test.
    fn passing(&mut self, block: &'t For, items: &Items, frame: &Rc<Frame>) -> Result<Rc<Items>> {
        let mut passing = Vec::new();
        for item in &items.values {
            self.runtime.budget.elements(1)?;
            let inner = Frame::inside(frame);
            self.assign(&block.target, item.clone(), &inner)?;
            if self.passes(block, &inner)? {
                passing.push(item.clone());
            }
        }
        let list = self.runtime.list(passing)?;
        Runtime::iterate(&self.runtime, &list)
    }
}
