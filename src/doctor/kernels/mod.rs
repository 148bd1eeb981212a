//! Checks of a device's kernels: seeded cases, computed by the device and by the reference backend through the same calls.
//!
//! Lower files first: `case` (what a case is), the cases by family, this file.

mod attention;
mod case;
mod decoder_layer;
mod linears;
mod rows;

use serde::Serialize;

use self::case::{Case, Precision, Run, run};
#[cfg(feature = "cuda")]
use crate::backend::cuda::{self, layout::ElementType};
use crate::backend::{Backend, BackendBuilder, cpu, reference};
use crate::error::Result;
#[cfg(any(test, not(feature = "cuda")))]
use crate::error::{Error, ErrorCode};
use crate::model::Device;

/// What a device computed for a case, beside what the reference computes.
#[derive(Clone, Debug, Serialize)]
pub struct KernelCheck {
    /// The case: `linear, 4 bits, 9 rows`.
    pub kernel: String,
    /// The type of the device's activations: `f16`, `bf16` or `f32`.
    pub activations: &'static str,
    /// The norm of the difference, relative to that of the expected values; `None` if the device failed or computed no numbers.
    pub error: Option<f64>,
    /// The largest error that passes.
    pub tolerance: f64,
    /// Whether it passed.
    pub passed: bool,
    /// Why the device computed nothing.
    pub failure: Option<String>,
    /// What the device computed.
    #[serde(skip)]
    pub values: Vec<f32>,
}

/// The type in which a device holds activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only cards compute in 16 bits"))]
enum Activations {
    F32,
    F16,
    Bf16,
}

impl Activations {
    fn name(self) -> &'static str {
        match self {
            Activations::F32 => "f32",
            Activations::F16 => "f16",
            Activations::Bf16 => "bf16",
        }
    }

    /// The largest error that passes.
    fn tolerance(self, precision: Precision) -> f64 {
        match (precision, self) {
            (Precision::Single, _) | (Precision::Half, Activations::F32) => 1e-5,
            // The last bit of an f32 may decide to which f16 a key or value is rounded, 2^-11 of it apart.
            (Precision::HalfCache | Precision::HalfRepeatedly, Activations::F32) => 1e-4,
            (Precision::Half | Precision::HalfCache, Activations::F16) => 1e-3,
            (Precision::Half | Precision::HalfCache, Activations::Bf16) => 1e-2,
            (Precision::HalfRepeatedly, Activations::F16) => 5e-3,
            (Precision::HalfRepeatedly, Activations::Bf16) => 2e-2,
        }
    }
}

/// Computes every case on a device and on the reference backend; `checked` gets each result as it is there.
///
/// # Errors
/// The device cannot be opened; the reference failed; what `checked` returned.
pub fn check_kernels(device: Device, checked: &mut dyn FnMut(&KernelCheck) -> Result<()>) -> Result<Vec<KernelCheck>> {
    let families = [rows::cases(), linears::cases(), attention::cases(), decoder_layer::cases()];
    // A case's numbers are seeded by its place, so what came later stands at the end.
    let rarer = [rows::rarer_cases(), attention::rarer_cases()];
    let cases: Vec<Case> = families.into_iter().chain(rarer).flatten().collect();
    let mut checks = Vec::new();
    for (activations, builder) in open(device)? {
        let (mut tested, runs) = load(&cases, builder)?;
        let (mut oracle, oracle_runs) = load(&cases, reference::open())?;
        for ((case, found), expected) in cases.iter().zip(runs).zip(oracle_runs) {
            let expected = expected.and_then(|case| run(case, &mut oracle))?;
            let found = found.and_then(|case| run(case, &mut tested));
            let check = compare(case, activations, found, &expected);
            checked(&check)?;
            checks.push(check);
        }
    }
    Ok(checks)
}

/// The device with each type of activations that it has.
fn open(device: Device) -> Result<Vec<(Activations, Box<dyn BackendBuilder>)>> {
    match device {
        Device::Reference => Ok(vec![(Activations::F32, reference::open())]),
        Device::Auto | Device::Cpu => Ok(vec![(Activations::F32, cpu::open(&cpu::CpuOptions::default())?)]),
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => [(Activations::F16, ElementType::F16), (Activations::Bf16, ElementType::Bf16)]
            .into_iter()
            .map(|(activations, element)| {
                Ok((activations, cuda::open(&cuda::CudaOptions { ordinal, element: Some(element) })?))
            })
            .collect(),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => {
            Err(Error::new(ErrorCode::DeviceUnavailable, "this build has no CUDA backend").with_found("cuda"))
        }
    }
}

/// A backend with the weights of all cases, and what computes each case that could be loaded.
fn load(cases: &[Case], mut builder: Box<dyn BackendBuilder>) -> Result<(Backend, Vec<Result<Run>>)> {
    let mut sites = 0;
    let runs = (0..).zip(cases).map(|(seed, case)| case.load(&mut *builder, &mut sites, seed)).collect();
    Ok((builder.finish()?, runs))
}

fn compare(case: &Case, activations: Activations, found: Result<Vec<f32>>, expected: &[f32]) -> KernelCheck {
    let tolerance = activations.tolerance(case.precision);
    let (values, failure) = match found {
        Ok(values) => (values, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let error = ratio(&values, expected).filter(|error| error.is_finite());
    KernelCheck {
        kernel: case.kernel.clone(),
        activations: activations.name(),
        error,
        tolerance,
        passed: error.is_some_and(|error| error <= tolerance),
        failure,
        values,
    }
}

/// `|found - expected| / |expected|`, or `None` for other numbers of values.
fn ratio(found: &[f32], expected: &[f32]) -> Option<f64> {
    let difference = |(found, expected): (&f32, &f32)| (f64::from(*found) - f64::from(*expected)).powi(2);
    let norm = expected.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    let squares = found.iter().zip(expected).map(difference).sum::<f64>();
    (found.len() == expected.len()).then(|| (squares / norm).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_passes_on_the_cpu_and_has_a_name_of_its_own() {
        let mut names = std::collections::BTreeSet::new();
        let checks = check_kernels(Device::Cpu, &mut |_| Ok(())).expect("the CPU opens");
        for check in &checks {
            assert!(check.passed, "{} {:?} {:?}", check.kernel, check.error, check.failure);
            assert!(names.insert(&check.kernel), "{}", check.kernel);
        }
        assert!(checks.len() > 30);
    }

    #[test]
    fn wrong_and_missing_numbers_do_not_pass() {
        let case = Case::new("a case", Precision::Half, |_| Ok(Box::new(|_| Ok(Vec::new()))));
        let check = |found: Result<Vec<f32>>| compare(&case, Activations::F16, found, &[3.0, 4.0]);
        assert!(check(Ok(vec![3.0, 4.0])).passed);
        assert!(check(Ok(vec![3.0, 4.0049])).passed);
        let failed = Error::new(ErrorCode::Internal, "it failed");
        for found in [Ok(vec![3.0, 4.0051]), Ok(vec![3.0]), Ok(vec![3.0, f32::NAN]), Ok(vec![]), Err(failed)] {
            assert!(!check(found.clone()).passed, "{found:?}");
        }
    }
}
