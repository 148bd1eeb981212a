//! PEFT adapters: read, checked against a model's sites, kept in slots, routed to rows. SKELETON

pub mod batch;
pub mod config;
pub mod delta;
pub mod keys;
pub mod plan;
pub mod pool;

use std::path::Path;

use crate::error::Result;
use crate::sites::SiteTable;

/// An adapter's files, read into memory.
pub struct AdapterFiles {}

impl AdapterFiles {
    /// Reads adapter_config.json and adapter_model.safetensors of a folder.
    pub fn read(_dir: &Path) -> Result<Self> {
        todo!()
    }

    /// Checks everything against a model's sites; nothing is uploaded. All problems at once.
    pub fn plan(&self, _sites: &SiteTable) -> Result<plan::AdapterPlan<'_>> {
        todo!()
    }
}
