//! The argument `progress` of loading.

use exlora::error::Result;
use exlora::model::Progress;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::errors::type_name;
use crate::gil::PythonCalls;

/// Where the progress of loading is reported: nowhere (`None`, `False`), a bar on stderr (`True`), or a callable with the
/// arguments (modules done, modules in total).
pub(crate) enum ProgressReporter {
    Silent,
    Bar(indicatif::ProgressBar),
    Callable(Py<PyAny>),
}

impl ProgressReporter {
    /// Reads the argument `progress`.
    pub(crate) fn new(progress: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        match progress {
            None => Ok(ProgressReporter::Silent),
            Some(value) if value.is_callable() => Ok(ProgressReporter::Callable(value.clone().unbind())),
            Some(value) => match value.extract::<bool>() {
                Ok(true) => Ok(ProgressReporter::Bar(indicatif::ProgressBar::new(0))),
                Ok(false) => Ok(ProgressReporter::Silent),
                Err(_) => {
                    let found = type_name(value);
                    Err(PyTypeError::new_err(format!("progress is None, a bool or a callable, not {found}")))
                }
            },
        }
    }

    /// Reports progress and checks for Ctrl-C.
    pub(crate) fn report(&self, python: &mut PythonCalls, progress: Progress) -> Result<()> {
        match self {
            ProgressReporter::Silent => {}
            ProgressReporter::Bar(bar) => {
                bar.set_length(progress.total as u64);
                bar.set_position(progress.done as u64);
            }
            ProgressReporter::Callable(callable) => {
                python.call(|py| callable.call1(py, (progress.done, progress.total)).map(drop))?;
            }
        }
        python.check_signals()
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let ProgressReporter::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
