//! Jinja2 templates as transformers renders chats with them, within bounds.
//!
//! A template is a program from a model folder, and is not trusted. Python's values and Jinja2's rules are followed as far
//! as transformers' sandbox shows them; what is not followed is refused by name. A rendering has a budget of work, memory
//! and printed text; brackets and blocks, values and calls nest to fixed depths. So it ends within seconds, with some
//! hundred MiB at most, and with a stack of some ten MiB.
//!
//! Source of the rules: Jinja2 3.1.6, and `transformers.utils.chat_template_utils` 5.23.

mod ast;
mod attributes;
mod budget;
mod chars;
mod error;
mod evaluation;
mod filters;
mod format;
mod functions;
mod is_tests;
mod lexer;
mod methods;
mod ops;
mod parser;
mod runtime;
mod text;
mod value;
mod variables;

use std::sync::Arc;

use serde_json::Value as Json;

use ast::Statement;
use budget::Budget;
pub(crate) use chars::is_space;
pub(crate) use error::TemplateError;
use evaluation::Interpreter;
use runtime::Runtime;

/// A parsed template.
pub(crate) struct Template {
    body: Vec<Statement>,
    /// The names of variables that it uses.
    names: Vec<Arc<str>>,
}

impl Template {
    /// Parses a template. Needs a stack of some MiB.
    ///
    /// # Errors
    /// It is not valid, too large, nested too deeply, or uses what is not supported.
    pub(crate) fn parse(source: &str) -> Result<Self, TemplateError> {
        let (body, names) = parser::parse(source)?;
        Ok(Self { body, names })
    }

    /// Renders the template with variables. Needs a stack of some ten MiB.
    ///
    /// # Errors
    /// The template fails on these variables, calls `raise_exception`, uses what is not supported, or exceeds its budget.
    pub(crate) fn render(&self, variables: &[(&str, &Json)]) -> Result<String, TemplateError> {
        let bytes = variables.iter().try_fold(0, |sum, (_, value)| Ok(sum + variables::size(value)?))?;
        if bytes > variables::MAX_BYTES {
            let most = variables::MAX_BYTES;
            return error::fail(format!("the messages and other variables are larger than {most} bytes"));
        }
        let runtime = Runtime::new(Budget::for_input(bytes), filters::find, is_tests::find);
        let value = |name: &Arc<str>| match variables.iter().find(|(other, _)| *other == &**name) {
            Some((_, value)) => variables::value(&runtime, value).map(Some),
            None => Ok(functions::find(name)),
        };
        let globals = self.names.iter().map(value).collect::<Result<_, _>>()?;
        Interpreter::new(runtime, &self.names, globals).render(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::STACK_BYTES;

    fn render(source: &str) -> Result<String, TemplateError> {
        Template::parse(source)?.render(&[])
    }

    /// A stack overflow would end the test.
    #[test]
    fn the_deepest_recursions_fit_an_eighth_of_a_guarded_stack() {
        let calls = [
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% macro m() %}{{ [{'a': (1, not (2 + -(m() ~ 1) == 3 and 4) if 5 else 6)}]|list }}{% endmacro %}{{ m() }}",
            "{% macro m(a=m()) %}{% endmacro %}{{ m() }}",
            "{% macro m() %}{{ 1|default(1 is eq(''.join([dict(a=m())][0:m()]))) }}{% endmacro %}{{ m() }}",
            "{% macro m() %}{% if 1 %}{% for i in [1] if 1 %}{% set x %}{% with %}{% filter upper %}{% generation %}{{ m() }}\
             {% endgeneration %}{% endfilter %}{% endwith %}{% endset %}{% endfor %}{% endif %}{% endmacro %}{{ m() }}",
            "{% macro m() %}{{ caller() }}{% endmacro %}{% macro w() %}{% call m() %}{{ w() }}{% endcall %}{% endmacro %}{{ w() }}",
            "{% for x in [1] recursive %}{% for y in [1] %}{% endfor %}{{ loop([1]) }}{% endfor %}",
        ];
        let value = "{% set ns = namespace(x=[], y=[]) %}{% for i in range(398) %}{% set ns.x = [{'a': ns.x}][0] %}\
                     {% set ns.y = [{'a': ns.y}][0] %}{% endfor %}";
        let values =
            ["{{ ns.x }}", "{{ ns.x|tojson }}", "{{ ns.x == ns.y }}", "{{ [ns.x] < [ns.y] }}", "{{ [ns.x]|sort }}"];
        let nested = ["[", "(", "{1:", "a[", "a(", "1 if 1 else ", "a|default(", "a is eq("];
        let work = move || {
            for source in calls {
                let error = render(source).expect_err("no end").to_string();
                assert!(error.contains("too deeply"), "{source}: {error}");
            }
            for one in values {
                let _ = render(&format!("{value}{one}"));
            }
            for open in nested {
                let close: String =
                    open.chars().rev().filter_map(|c| "([{".find(c).map(|at| [")", "]", "}"][at])).collect();
                for depth in [20, 90, 100_000] {
                    let _ = render(&format!("{{{{ {}1{} }}}}", open.repeat(depth), close.repeat(depth)));
                }
            }
        };
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES / 8).spawn(work);
        thread.expect("a thread").join().expect("no panic");
    }

    #[test]
    fn errors_name_the_line_of_the_template() {
        let at = |source: &str| render(source).expect_err("an error").to_string();
        assert!(at("a\n{% if true %}\n{{ x.y }}\n{% endif %}").ends_with("(line 3 of the template)"));
        assert!(at("a\n{{ 'b }}").ends_with("(line 2 of the template)"));
        assert!(at("a\n\n{% if %}").ends_with("(line 3 of the template)"));
    }
}
