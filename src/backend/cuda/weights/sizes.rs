//! How much device memory the base's weights need, before any of them is loaded.

use super::linear::LinearPlan;
use crate::backend::cuda::driver::ArenaSize;
use crate::backend::{EmbeddingId, GroupId, LinearSource, NormId, NormSource, WeightLoader};
use crate::error::Result;
use crate::sites::SiteId;
use crate::tensor::TensorView;

/// Adds up the memory of weights and keeps none of them.
#[derive(Default)]
pub(crate) struct WeightSizes {
    size: ArenaSize,
}

impl WeightSizes {
    /// That of the weights so far.
    pub(crate) fn size(&self) -> ArenaSize {
        self.size
    }
}

impl WeightLoader for WeightSizes {
    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        for member in members {
            let plan = LinearPlan::of(&member.weight)?;
            self.size.add(plan.bytes);
            if member.bias.is_some() {
                self.size.add(plan.layout.out_features * size_of::<f32>());
            }
        }
        Ok(GroupId(0))
    }

    fn load_embedding(&mut self, _: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        self.size.add(table.bytes().len());
        Ok(EmbeddingId(0))
    }

    fn load_norm(&mut self, source: &NormSource<'_>) -> Result<NormId> {
        self.size.add(source.weight.len() * size_of::<f32>());
        Ok(NormId(0))
    }
}
