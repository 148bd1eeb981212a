//! The extension module `exlora._exlora`: Python objects over the engine, nothing that thinks.
//!
//! Every function converts its arguments, calls the crate with the interpreter's lock released, and converts back.
//! Arguments that may have many shapes are types of their own ([`convert`]), errors become the classes of
//! `exlora/errors.py` ([`errors`]), and whatever may take long listens to Ctrl-C ([`detach`]). What is convenience only
//! (one value for all prompts, exllamav2's names) is written in Python above this module.

mod convert;
mod detach;
mod engine;
mod errors;
mod job;
mod kv;
mod lora;
mod model;
mod request;
mod results;
mod tokenizer;

use std::collections::BTreeMap;
use std::ffi::OsString;

use pyo3::prelude::*;

use crate::adapter::peft_support::{FeatureRow, Verdict, table};

/// The compiled half of exlora. Use the package `exlora`.
#[pymodule(gil_used = false)]
mod _exlora {
    #[pymodule_export]
    use super::engine::PyEngine;
    #[pymodule_export]
    use super::errors::{error, error_codes};
    #[pymodule_export]
    use super::job::PyJob;
    #[pymodule_export]
    use super::kv::PyKvCache;
    #[pymodule_export]
    use super::lora::ExLlamaV2Lora;
    #[pymodule_export]
    use super::main;
    #[pymodule_export]
    use super::model::{PyModel, read_model_config};
    #[pymodule_export]
    use super::peft_features;
    #[pymodule_export]
    use super::request::PyRequest;
    #[pymodule_export]
    use super::results::{PyAdapterInfo, PyChunk, PyCompletion, PyUsage};
    #[pymodule_export]
    use super::tokenizer::PyTokenizer;

    /// Tokens of a KV page.
    #[pymodule_export]
    const PAGE_TOKENS: usize = crate::kv::PAGE_TOKENS;

    /// Version of the crate, which is the package's.
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}

/// Runs the command line on `argv` (its first item is the program's name) and returns the exit code.
#[pyfunction]
fn main(py: Python<'_>, argv: Vec<OsString>) -> u8 {
    py.detach(|| crate::cli::run(argv))
}

/// What becomes of each of PEFT's features: a dict with `feature`, `verdict` (yes, refused, no effect), `code` (of the
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
