//! The reference backend: every operation in plain f32 math, the oracle of every fast path and the definition of what
//! exlora computes.
//!
//! One thread, weights dequantized to f32, no layout, no vectors. Values are f32; a sum is taken in f64 in the order of
//! its index, an activation's or a bound's function in f64 too, and rounded once, so that a fast path differs by its own rounding
//! alone.

mod activation;
mod attention;
mod compute;
mod delta;
mod kv_pages;
mod matrix;
mod norm;
mod weights;

use std::sync::Arc;

use self::compute::ReferenceCompute;
use self::weights::BaseWeights;
use super::{AdapterPreparer, Backend, BackendBuilder, MemoryUse};
use crate::error::Result;

/// The reference backend.
pub fn open() -> Box<dyn BackendBuilder> {
    Box::new(BaseWeights::default())
}

impl BackendBuilder for BaseWeights {
    fn finish(self: Box<Self>) -> Result<Backend> {
        let weights: Arc<Self> = Arc::from(self);
        let memory = Arc::new(MemoryUse::new(weights.bytes()));
        Ok(Backend {
            description: "cpu (reference, 1 thread)".to_owned(),
            memory: Arc::clone(&memory),
            adapters: Arc::clone(&weights) as Arc<dyn AdapterPreparer>,
            compute: Box::new(ReferenceCompute::new(weights, memory)),
        })
    }
}
