//! Devices by their names, and what finding one's libraries needs to know of Python.

use std::path::PathBuf;

use exlora::backend::cuda::compiler::locate::set_python_paths;
use exlora::model::Device;
use pyo3::prelude::*;

use crate::errors::Result;

/// A device by its name. Where Python finds packages is where the run-time compiler of a CUDA device may be.
pub(crate) fn parse_device(py: Python<'_>, name: &str) -> Result<Device> {
    tell_python_paths(py)?;
    Ok(name.parse()?)
}

/// Hands `sys.path` to whoever looks for NVIDIA's wheels.
pub(crate) fn tell_python_paths(py: Python<'_>) -> PyResult<()> {
    let entries = py.import("sys")?.getattr("path")?.extract::<Vec<Bound<'_, PyAny>>>()?;
    let paths = entries.iter().filter_map(|entry| entry.extract::<PathBuf>().ok());
    set_python_paths(paths.filter(|path| path.is_absolute()).collect());
    Ok(())
}
