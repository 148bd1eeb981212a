//! What a stored weight means.
//!
//! Each file format is known in one file of this folder and nowhere else. To a backend every quantized weight looks the
//! same, [`QuantizedWeight`]: unsigned integer codes in *stored order*, cut into groups of inputs, with
//!
//! ```text
//! W[n, permutation[k]] = scale[g, n] * (code[k, n] - zero[g, n])        g = the group of stored input k
//! ```
//!
//! so no kernel knows a file format. Where the format defines that product as rounded to float16,
//! [`QuantizedWeight::rounds_to_f16`] says so. [`StoredWeight::dequantize`] is the oracle of every format and every kernel.

mod bit_fields;
pub mod config;
pub mod exl2;
pub mod gptq;
mod module_tensors;
mod open_weight;
mod rounded;
mod weight;

pub use self::bit_fields::BitStreams;
pub use self::config::QuantConfig;
pub use self::open_weight::{format_of, open_bias, open_dense, open_linear};
pub use self::rounded::RoundedWeight;
pub use self::weight::{QuantGroup, QuantLayout, QuantizedWeight, StoredWeight};
