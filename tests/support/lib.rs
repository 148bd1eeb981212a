//! What tests, benchmarks and fuzz targets share: a writer of safetensors files that shares no code with the reader, seeded
//! random numbers, GPTQ and EXL2 packing by their specifications, writers of tiny models and adapters, and a harness around
//! a backend.

pub mod adapter_cases;
pub mod adapters;
pub mod allocator;
pub mod deltas;
pub mod exl2;
pub mod gptq;
pub mod harness;
pub mod kv_states;
pub mod magnitudes;
pub mod model;
pub mod random_adapters;
pub mod reference;

use std::fmt::Write as _;
use std::path::PathBuf;

pub use exlora::doctor::random::Rng;
pub use exlora::doctor::random_weights;
use half::{bf16, f16};
use proptest::test_runner::Config as ProptestConfig;

/// The folder of fixtures: the repository's, or that of `EXLORA_FIXTURES` for a test binary that was taken elsewhere.
pub fn fixtures() -> PathBuf {
    let of_repository = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures"));
    std::env::var_os("EXLORA_FIXTURES").map_or_else(of_repository, PathBuf::from)
}

/// By how much the environment variable `EXLORA_TEST_CASES` multiplies the cases of tests; 1 where it is not set.
///
/// # Panics
/// If it is no number.
pub fn case_factor() -> u32 {
    std::env::var("EXLORA_TEST_CASES").map_or(1, |factor| factor.parse().expect("EXLORA_TEST_CASES is a number"))
}

/// The configuration of a property test that runs `count` cases, times [`case_factor`]. The variable of proptest itself would give
/// all tests one number of cases, whatever each of theirs takes.
pub fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count * case_factor(), ..ProptestConfig::default() }
}

/// A tensor to be written: any name, any spelling of the type, bytes that need not fit.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl StoredTensor {
    pub fn new(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), bytes }
    }

    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "F32", shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Rounds to float16.
    pub fn f16(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "F16", shape, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect())
    }

    /// Rounds to bfloat16.
    pub fn bf16(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "BF16", shape, values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect())
    }

    pub fn i32(name: &str, shape: &[usize], values: &[i32]) -> Self {
        Self::new(name, "I32", shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// The bytes of a file with that header, valid or not, and that data.
pub fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// The bytes of a safetensors file, tensors in the order given.
pub fn safetensors(tensors: &[StoredTensor]) -> Vec<u8> {
    let (mut header, mut data) = (String::from("{\"__metadata__\":{\"format\":\"pt\"}"), Vec::new());
    for tensor in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        let name = serde_json::to_string(&tensor.name).expect("a string");
        let (dtype, shape, end) = (tensor.dtype, &tensor.shape, data.len());
        write!(header, ",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
            .expect("strings grow");
    }
    header.push('}');
    file_of(&header, &data)
}
