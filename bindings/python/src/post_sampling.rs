//! Hooks that are Python functions.

use std::sync::Arc;

use exlora::engine::{PostSampling, PostSamplingHook};
use exlora::error::{ErrorCode, Result};
use pyo3::exceptions::PyTypeError;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3::{type_hint_identifier, type_hint_subscript};

use crate::errors::type_name;
use crate::gil::{attached, callback_error};
use crate::numbers::token_id;
use crate::returns::{FloatArray, Floats};

/// A token that was chosen, before it becomes part of the text: what a hook of `post_sampling_hooks` is called with.
#[pyclass(name = "PostSampling", module = "exlora._exlora")]
pub(crate) struct PyPostSampling {
    token: u32,
    prob: f32,
    top_probs: Vec<(u32, f32)>,
    logits: Vec<f32>,
}

#[pymethods]
impl PyPostSampling {
    /// The token. A hook may replace it by any other of the vocabulary.
    #[getter]
    fn token(&self) -> u32 {
        self.token
    }

    #[setter]
    fn set_token(&mut self, token: TokenIdArg) {
        self.token = token.0;
    }

    /// Its probability after penalties and filters.
    #[getter]
    fn prob(&self) -> f32 {
        self.prob
    }

    /// The most likely (id, probability) after penalties and filters, best first: `probs` of them, at least one.
    #[getter]
    fn top_probs(&self) -> Vec<(u32, f32)> {
        self.top_probs.clone()
    }

    /// The logits that it was chosen from, before penalties, float32 [vocab].
    #[getter]
    fn logits(&self, py: Python<'_>) -> PyResult<FloatArray> {
        FloatArray::new(py, Floats { values: self.logits.clone(), columns: None })
    }
}

/// A token id; a setter's argument has no other place for its type.
struct TokenIdArg(u32);

impl<'py> FromPyObject<'_, 'py> for TokenIdArg {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("typing", "SupportsIndex");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        token_id(&value).map(Self)
    }
}

/// Callables in their order; equal if they are the same objects.
#[derive(Clone, Default)]
pub(crate) struct Hooks(Arc<[Py<PyAny>]>);

impl PartialEq for Hooks {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&*other.0).all(|(one, other)| one.is(other))
    }
}

impl<'py> FromPyObject<'_, 'py> for Hooks {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "PostSamplingHooks");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let hooks = value.try_iter()?.collect::<PyResult<Vec<_>>>()?;
        match hooks.iter().find(|hook| !hook.is_callable()) {
            Some(other) => {
                let found = type_name(other);
                Err(PyTypeError::new_err(format!("post_sampling_hooks are callables, not {found}")))
            }
            None => Ok(Self(hooks.into_iter().map(Bound::unbind).collect())),
        }
    }
}

impl Hooks {
    /// The hooks for the engine.
    pub(crate) fn hooks(&self) -> Vec<PostSamplingHook> {
        let hook = |index: usize| {
            let hooks = Arc::clone(&self.0);
            PostSamplingHook::new(move |chosen| call(&hooks[index], chosen))
        };
        (0..self.0.len()).map(hook).collect()
    }
}

impl<'py> IntoPyObject<'py> for Hooks {
    type Target = PyList;
    type Output = Bound<'py, PyList>;
    type Error = PyErr;

    const OUTPUT_TYPE: PyStaticExpr = type_hint_subscript!(
        type_hint_identifier!("builtins", "list"),
        type_hint_identifier!("exlora.types", "PostSamplingHook")
    );

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.iter().map(|hook| hook.bind(py)))
    }
}

/// Calls a hook, from the thread that computes a step without the interpreter's lock.
fn call(hook: &Py<PyAny>, chosen: &mut PostSampling<'_>) -> Result<()> {
    let call = |py: Python<'_>| -> PyResult<u32> {
        let result = PyPostSampling {
            token: chosen.token,
            prob: chosen.prob,
            top_probs: chosen.top_probs.to_vec(),
            logits: chosen.logits.to_vec(),
        };
        let result = Bound::new(py, result)?;
        hook.bind(py).call1((&result,))?;
        Ok(result.borrow().token)
    };
    let failed = |raised, py: Python<'_>| callback_error(py, ErrorCode::HookFailed, "a post-sampling hook", raised);
    chosen.token = attached(|py| call(py).map_err(|raised| failed(raised, py)))?;
    Ok(())
}
