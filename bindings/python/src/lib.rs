//! The extension module `exlora._exlora`: Python classes over the engine, without logic of their own.
//!
//! Every function converts its arguments ([`args`]), calls the crate `exlora` with the interpreter's lock released ([`gil`]) and
//! converts the result ([`returns`]). Errors become the classes of `exlora/errors.py` ([`errors`]). Convenience (one value for
//! all prompts, exllamav2's names) is written in Python on top of this module.

// Nothing here prints: the streams are Python's, and so is `logging`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod args;
mod chat;
mod device;
mod engine;
mod errors;
mod exllamav2;
mod gil;
mod grammar;
mod in_flight;
mod job;
mod logging;
mod model;
mod numbers;
mod post_sampling;
mod progress;
mod request;
mod results;
mod returns;
mod sampling_params;
mod sequence_cache;
mod server;
mod tokenizer;

use std::collections::BTreeMap;
use std::ffi::OsString;

use exlora::adapter::peft_support::{FeatureRow, Verdict, table};
use exlora::model::config;
use pyo3::prelude::*;

/// The compiled half of exlora. Use the package `exlora`.
#[pymodule(gil_used = false)]
mod _exlora {
    #[pymodule_export]
    use super::engine::PyEngine;
    #[pymodule_export]
    use super::errors::{error, error_codes};
    #[pymodule_export]
    use super::exllamav2::{ExLlamaV2Lora, PyExLlamaV2Base};
    #[pymodule_export]
    use super::in_flight::PyInFlight;
    #[pymodule_export]
    use super::job::PyJob;
    #[pymodule_export]
    use super::main;
    #[pymodule_export]
    use super::model::{PyModel, read_model_config};
    #[pymodule_export]
    use super::post_sampling::PyPostSampling;
    #[pymodule_export]
    use super::request::PyRequest;
    #[pymodule_export]
    use super::results::{PyAdapterInfo, PyChunk, PyCompletion, PyUsage};
    #[pymodule_export]
    use super::sampling_params::PySamplingParams;
    #[pymodule_export]
    use super::sequence_cache::PySequenceCache;
    #[pymodule_export]
    use super::server::PyServer;
    #[pymodule_export]
    use super::tokenizer::PyTokenizer;
    #[pymodule_export]
    use super::{architectures, peft_features};

    /// Tokens of a KV page.
    #[pymodule_export]
    const PAGE_TOKENS: usize = exlora::kv_cache::PAGE_TOKENS;

    /// Version of the crate and the package.
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}

/// Runs the command line on `argv` (its first item is the program's name) and returns the exit code.
#[pyfunction]
fn main(py: Python<'_>, argv: Vec<OsString>) -> PyResult<u8> {
    device::tell_python_paths(py)?;
    Ok(py.detach(|| exlora::cli::run(argv)))
}

/// The supported architectures: a dict with `name`, as config.json has it, and `models`, which of them have it, for each.
#[pyfunction]
fn architectures() -> Vec<BTreeMap<&'static str, &'static str>> {
    config::architectures().map(|known| [("name", known.name), ("models", known.models)].into()).collect()
}

/// How each PEFT feature is treated: a dict with `feature`, `verdict` (yes, refused, no effect), `code` (of the
/// refusal, else empty) and `note` for each.
#[pyfunction]
fn peft_features() -> Vec<BTreeMap<&'static str, String>> {
    let entry = |row: FeatureRow| {
        let code = match row.verdict {
            Verdict::Refused(code) => code.as_str(),
            Verdict::Yes | Verdict::NoEffect => "",
        };
        let verdict = row.verdict.to_string();
        let feature = ("feature", row.feature.to_owned());
        [feature, ("verdict", verdict), ("code", code.to_owned()), ("note", row.note.to_owned())].into()
    };
    table().into_iter().map(entry).collect()
}
