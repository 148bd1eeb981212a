//! adapter_config.json: what each of its fields means here.
//!
//! Every field that PEFT 0.21.2 writes has one row in `fields.rs`: it is read, it cannot change a result, or it is refused by
//! name where it does and is not supported. The table of PEFT features in the documentation is made from the same rows.
//! PEFT drops unknown fields with a warning, even those that switch something on; here such a field is an error.

mod adapter_config;
mod exclusions;
pub(super) mod fields;
mod json;
mod parse;
mod readers;

pub use self::adapter_config::{AdapterConfig, BlockDiagonal, TrainedBiases};
