//! The checkpoint of a model folder, by the names that its text model's tensors have in a model of text alone.

use std::collections::BTreeSet;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::text_prefix::{TextPrefix, is_other_modality};

/// Opens the checkpoint of a model folder, and tells what the names in its files begin with. What else a multimodal model has is
/// left where it is.
///
/// # Errors
/// As [`Checkpoint::open`].
pub(super) fn open(dir: &Path) -> Result<(Checkpoint, TextPrefix)> {
    without_prefix(Checkpoint::open(dir)?)
}

fn without_prefix(checkpoint: Checkpoint) -> Result<(Checkpoint, TextPrefix)> {
    let others = checkpoint.names().filter(|name| is_other_modality(name)).count();
    if others > 0 {
        tracing::info!(tensors = others, "tensors of other modalities are not loaded: only text is served");
    }
    let prefixes: BTreeSet<_> = checkpoint.names().filter_map(TextPrefix::shown_by).collect();
    match prefixes.first() {
        // With several, the names that are missing are reported as they are looked up.
        Some(&prefix) if prefixes.len() == 1 && prefix != TextPrefix::None => {
            Ok((checkpoint.renamed(|name| prefix.removed_from(name))?, prefix))
        }
        _ => Ok((checkpoint, TextPrefix::None)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    /// A checkpoint with a number under each name.
    fn checkpoint(names: &[&str]) -> Checkpoint {
        let tensor = |at: usize| json!({"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]});
        let header: Map<_, _> = names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), tensor(at))).collect();
        let header = serde_json::Value::Object(header).to_string().into_bytes();
        let values = (0..names.len()).flat_map(|at| (at as f32).to_le_bytes());
        let bytes = (header.len() as u64).to_le_bytes().into_iter().chain(header.iter().copied()).chain(values);
        Checkpoint::from_bytes(bytes.collect(), Path::new("model.safetensors")).expect("a checkpoint")
    }

    #[test]
    fn the_text_model_is_found_below_any_prefix() {
        let alone = ["lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
        let inner =
            ["lm_head.weight", "model.language_model.layers.0.mlp.up_proj.weight", "model.language_model.norm.weight"];
        let outer = alone.map(|name| format!("language_model.{name}"));
        let outer = outer.each_ref().map(String::as_str);
        for (spelling, prefix) in [(&alone, TextPrefix::None), (&inner, TextPrefix::Inner), (&outer, TextPrefix::Outer)]
        {
            for other in ["model.vision_tower.patch.weight", "vision_tower.patch.weight"] {
                let names = [&spelling[..], &[other]].concat();
                let (renamed, found) = without_prefix(checkpoint(&names)).expect("renamed");
                assert_eq!(found, prefix, "{names:?}");
                for (at, name) in alone.iter().chain([&other]).enumerate() {
                    let tensor = renamed.tensor(name).expect(name);
                    assert_eq!(tensor.to_f32(), [at as f32], "{name} of {names:?}");
                }
                assert_eq!(renamed.names().count(), names.len());
            }
        }
    }

    #[test]
    fn two_spellings_in_one_checkpoint_are_left_alone() {
        let names = ["model.norm.weight", "model.language_model.norm.weight"];
        let (kept, prefix) = without_prefix(checkpoint(&names)).expect("kept");
        assert_eq!(prefix, TextPrefix::None);
        assert!(names.iter().all(|name| kept.contains(name)));
    }
}
