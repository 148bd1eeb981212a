//! The parsed config as data.

use std::collections::BTreeSet;

use crate::adapter::target_modules::{PatternMap, Targeting};
use crate::error::Error;

/// What an adapter's config says.
#[derive(Clone, Debug, Default)]
pub struct AdapterConfig {
    /// `r`; if missing, the rank is inferred from the tensors (PEFT would assume 8).
    pub rank: Option<usize>,
    /// `lora_alpha`; `None` is one of the problems.
    pub alpha: Option<f64>,
    /// `use_rslora`: alpha is divided by the root of the rank.
    pub use_rslora: bool,
    /// `rank_pattern`: ranks of single modules.
    pub(in crate::adapter) rank_pattern: PatternMap<usize>,
    /// `alpha_pattern`: alphas of single modules.
    pub(in crate::adapter) alpha_pattern: PatternMap<f64>,
    /// `target_modules` as written: names, or the one string.
    pub target_modules: Vec<String>,
    /// Which modules may have factors. The tensors decide; this is a cross-check.
    pub(in crate::adapter) targeting: Targeting,
    /// `use_dora`: every pair of factors has a magnitude.
    pub use_dora: bool,
    /// `lora_bias`: every B of a linear has a bias.
    pub lora_bias: bool,
    /// `bias`: which biases of the base were trained.
    pub biases: TrainedBiases,
    /// `modules_to_save`: suffixes of the paths of modules whose weights are replaced.
    pub modules_to_save: Vec<String>,
    /// `trainable_token_indices`: token ids by the suffix of their module's path; `None` is the embedding.
    pub token_rows: Vec<(Option<String>, Vec<u32>)>,
    /// `ensure_weight_tying`: what acts on the embedding also acts on a tied head.
    pub ensure_weight_tying: bool,
    /// `layer_replication`: ranges `start..end` of the base's layers, concatenated; empty means the base's own layers.
    pub layer_replication: Vec<(u32, u32)>,
    /// `alora_invocation_tokens`: the adapter acts from their last occurrence on.
    pub invocation: Vec<u32>,
    /// `qalora_group_size` where `use_qalora` is on: number of inputs that A sees pooled.
    pub pooled_inputs: Option<usize>,
    /// `use_bdlora`: A or B is stored as the blocks of a block-diagonal matrix.
    pub blocks: Option<BlockDiagonal>,
    /// `kasa_config`: the base's weights are truncated, and there is a diagonal between A and B.
    pub uses_kasa: bool,
    /// The field of PEFT's LoRA variant that is on, if one is: they exclude each other.
    pub(in crate::adapter) variant: Option<&'static str>,
    /// Everything wrong with the fields.
    pub problems: Vec<Error>,
    /// Fields whose value was refused: their consequences are not reported again.
    pub(in crate::adapter) broken: BTreeSet<&'static str>,
}

impl AdapterConfig {
    /// Whether a field's value was refused, which is among [`AdapterConfig::problems`].
    pub fn is_broken(&self, field: &str) -> bool {
        self.broken.contains(field)
    }

    /// Whether `modules_to_save` covers a module, or one that contains it: PEFT takes every path that ends with an entry.
    pub(in crate::adapter) fn is_saved(&self, path: &str) -> bool {
        let mut containing = path.match_indices('.').map(|(at, _)| &path[..at]).chain([path]);
        containing.any(|path| self.modules_to_save.iter().any(|entry| path.ends_with(entry.as_str())))
    }
}

/// `bias`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainedBiases {
    /// None of them.
    #[default]
    None,
    /// Those of every linear.
    All,
    /// Those of linears that have factors.
    LoraOnly,
}

/// `use_bdlora`. A module belongs to a list if its path contains one of the list's strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockDiagonal {
    /// `target_modules_bd_a`: modules whose A is block-diagonal.
    pub a: Vec<String>,
    /// `target_modules_bd_b`: modules whose B is block-diagonal.
    pub b: Vec<String>,
    /// `nblocks`.
    pub count: usize,
    /// `match_strict`: each module must be in one of the lists.
    pub strict: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_saves_every_module_whose_path_ends_with_it_and_everything_inside() {
        let saved = |entry: &str, path| {
            AdapterConfig { modules_to_save: vec![entry.to_owned()], ..AdapterConfig::default() }.is_saved(path)
        };
        assert!(saved("norm", "model.norm") && saved("norm", "model.layers.0.input_layernorm"));
        assert!(saved("mlp", "model.layers.0.mlp.up_proj") && saved("lm_head", "lm_head"));
        assert!(!saved("up", "model.layers.0.mlp.up_proj") && !saved("norm", "model.norms.up_proj"));
    }
}
