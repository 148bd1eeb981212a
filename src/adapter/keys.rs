//! PEFT's tensor names: which part of which module a tensor is.
//!
//! ```text
//! base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight
//! |-- prefix ------||------- module path --------| role  |name|
//! ```
//!
//! Files saved by PEFT have the prefix and no adapter name. Files taken from a wrapped, injected or compiled model may lack the
//! prefix, have an adapter name, or contain segments of the wrapper.

use crate::adapter::unsupported::Feature;

/// What PEFT puts before a module's path.
pub const PREFIX: &str = "base_model.model.";

/// Segments that wrappers of a model (torch.compile, FSDP) leave in a path; no module has such a name.
const WRAPPERS: [&str; 2] = ["_orig_mod", "_fsdp_wrapped_module"];

/// What a tensor of an adapter is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `A [rank, in_features]`.
    A,
    /// `B [out_features, rank]`.
    B,
    /// B's bias `[out_features]`.
    BBias,
    /// KaSA's diagonal `[rank]` between A and B.
    Diagonal,
    /// DoRA's magnitude `[out_features]`.
    Magnitude,
    /// An embedding's `A [rank, rows]`.
    EmbeddingA,
    /// An embedding's `B [width, rank]`.
    EmbeddingB,
    /// A weight that replaces the base's.
    Weight,
    /// The same, under the name of PEFT's wrapper for saved modules.
    SavedWeight,
    /// The same, of a module that also has factors.
    BaseWeight,
    /// The same, of an embedding with replaced rows.
    RowsWeight,
    /// A bias that replaces the base's.
    Bias,
    /// The same, under the name of PEFT's wrapper for saved modules.
    SavedBias,
    /// The same, of a module that also has factors.
    BaseBias,
    /// New rows `[rows, width]` of an embedding.
    Rows,
}

impl Part {
    /// Names of a replaced weight; the first one present is used.
    pub const WEIGHTS: [Part; 4] = [Part::Weight, Part::SavedWeight, Part::BaseWeight, Part::RowsWeight];
    /// Names of a replaced bias; the first one present is used.
    pub const BIASES: [Part; 3] = [Part::Bias, Part::SavedBias, Part::BaseBias];
    /// Parts of a low-rank delta.
    pub const LOW_RANK: [Part; 7] =
        [Part::A, Part::B, Part::EmbeddingA, Part::EmbeddingB, Part::BBias, Part::Magnitude, Part::Diagonal];

    /// What follows the module's path in the name PEFT gives the tensor.
    pub fn suffix(self) -> &'static str {
        match self {
            Part::A => "lora_A.weight",
            Part::B => "lora_B.weight",
            Part::BBias => "lora_B.bias",
            Part::Magnitude => "lora_magnitude_vector",
            Part::Diagonal => "lora_diag",
            Part::EmbeddingA => "lora_embedding_A",
            Part::EmbeddingB => "lora_embedding_B",
            Part::Weight => "weight",
            Part::SavedWeight => "modules_to_save.weight",
            Part::BaseWeight => "base_layer.weight",
            Part::RowsWeight => "token_adapter.base_layer.weight",
            Part::Bias => "bias",
            Part::SavedBias => "modules_to_save.bias",
            Part::BaseBias => "base_layer.bias",
            Part::Rows => "token_adapter.trainable_tokens_delta",
        }
    }

    /// The name under which PEFT saves it.
    pub fn tensor_name(self, module: &str) -> String {
        format!("{PREFIX}{module}.{}", self.suffix())
    }

    /// Whether its name contains the adapter's name before PEFT strips it.
    pub(super) fn is_named(self) -> bool {
        !matches!(self, Part::Weight | Part::BaseWeight | Part::RowsWeight | Part::Bias | Part::BaseBias)
    }
}

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A part of a module.
    Part(Part),
    /// State that only training needs, or a copy of another tensor.
    Redundant,
    /// Part of a feature that is not supported.
    Feature(Feature),
    /// Named in the style of another tool.
    Foreign(&'static str),
    /// Not known.
    Unknown,
}

/// A parsed tensor name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    /// Path of the module in the model, without prefix and wrapper segments.
    pub module: String,
    /// What the tensor is.
    pub role: Role,
    /// A leftover adapter name.
    pub adapter: Option<&'a str>,
    /// Whether [`PREFIX`] was there.
    pub prefixed: bool,
}

impl<'a> Key<'a> {
    /// Parses a tensor's name. It never fails: what is not understood is [`Role::Unknown`].
    pub fn parse(name: &'a str) -> Self {
        let mut segments: Vec<&str> = name.split('.').filter(|s| !WRAPPERS.contains(s)).collect();
        drop_ddp(&mut segments);
        let prefixed = segments.starts_with(&["base_model", "model"]);
        if prefixed {
            segments.drain(..2);
            drop_ddp(&mut segments);
        }
        let place = |found: fn(&str) -> bool| segments.iter().rposition(|s| found(s));
        let (module, role, adapter) = if let Some(at) = place(|s| s.starts_with("lora_")) {
            let (role, adapter) = lora_role(segments[at], &segments[at + 1..]);
            (segments[..at].to_vec(), role, adapter)
        } else if let Some(at) = place(|s| s == "token_adapter") {
            let (role, adapter) = token_role(&segments[at + 1..]);
            (segments[..at].to_vec(), role, adapter)
        } else if let Some(at) = place(|s| s == "modules_to_save" || s == "original_module") {
            saved_role(&segments[..at], segments[at] == "modules_to_save", &segments[at + 1..])
        } else {
            let (module, role) = plain_role(&segments);
            (module.to_vec(), role, None)
        };
        let role = match role {
            Role::Part(_) if module.is_empty() => Role::Unknown,
            // The adapter of a parameter, nested in another one.
            Role::Part(_) if module.last() == Some(&"base_layer") => Role::Feature(Feature::TargetParameters),
            role => role,
        };
        Self { module: module.join("."), role, adapter, prefixed }
    }
}

/// DDP's wrapper is called `module`, which cannot be the name of a top-level module.
fn drop_ddp(segments: &mut Vec<&str>) {
    segments.drain(..segments.iter().take_while(|s| **s == "module").count());
}

/// The role of a tensor by its `lora_…` segment and the rest: `weight`, an adapter's name, both or neither.
fn lora_role<'a>(segment: &str, tail: &[&'a str]) -> (Role, Option<&'a str>) {
    let part = |part, name| (Role::Part(part), name);
    match (segment, tail) {
        ("lora_A", ["weight"]) => part(Part::A, None),
        ("lora_A", [name, "weight"]) => part(Part::A, Some(*name)),
        ("lora_B", ["weight"]) => part(Part::B, None),
        ("lora_B", [name, "weight"]) => part(Part::B, Some(*name)),
        ("lora_B", ["bias"]) => part(Part::BBias, None),
        ("lora_B", [name, "bias"]) => part(Part::BBias, Some(*name)),
        ("lora_magnitude_vector", [] | ["weight"]) => part(Part::Magnitude, None),
        ("lora_magnitude_vector", [name] | [name, "weight"]) => part(Part::Magnitude, Some(*name)),
        ("lora_embedding_A", []) => part(Part::EmbeddingA, None),
        ("lora_embedding_A", [name]) => part(Part::EmbeddingA, Some(*name)),
        ("lora_embedding_B", []) => part(Part::EmbeddingB, None),
        ("lora_embedding_B", [name]) => part(Part::EmbeddingB, Some(*name)),
        ("lora_diag", []) => part(Part::Diagonal, None),
        ("lora_diag", [name]) => part(Part::Diagonal, Some(*name)),
        ("lora_arrow", _) => (Role::Feature(Feature::Arrow), None),
        ("lora_velora_embed" | "lora_monteclora_sampler", _) => (Role::Redundant, None),
        ("lora_a" | "lora_b", []) => (Role::Foreign("mlx-lm"), None),
        ("lora_down" | "lora_up", _) => (Role::Foreign("kohya or diffusers"), None),
        ("lora_linear_layer", _) => (Role::Foreign("diffusers"), None),
        (unet, _) if unet.starts_with("lora_unet_") || unet.starts_with("lora_te") => (Role::Foreign("kohya"), None),
        _ => (Role::Unknown, None),
    }
}

/// The role of a tensor by what follows `token_adapter`.
fn token_role<'a>(tail: &[&'a str]) -> (Role, Option<&'a str>) {
    match tail {
        ["trainable_tokens_delta"] => (Role::Part(Part::Rows), None),
        ["trainable_tokens_delta", name] => (Role::Part(Part::Rows), Some(*name)),
        ["base_layer", "weight"] => (Role::Part(Part::RowsWeight), None),
        // The rows before training, and those that a tied head shares with the embedding.
        ["trainable_tokens_original", ..] | ["tied_adapter", ..] => (Role::Redundant, None),
        _ => (Role::Unknown, None),
    }
}

/// The role of a tensor in PEFT's wrapper for saved modules: the trained module, or the original. The wrapper may hold a whole
/// block, whose inner path follows the adapter's name.
fn saved_role<'a>(module: &[&'a str], trained: bool, tail: &[&'a str]) -> (Vec<&'a str>, Role, Option<&'a str>) {
    let (inner, name, leaf) = match tail {
        [leaf] => (&[][..], None, *leaf),
        [name, inner @ .., leaf] if trained => (inner, Some(*name), *leaf),
        [inner @ .., leaf] => (inner, None, *leaf),
        [] => (&[][..], None, ""),
    };
    let role = match (leaf, trained) {
        ("weight", true) => Role::Part(Part::SavedWeight),
        ("bias", true) => Role::Part(Part::SavedBias),
        ("weight" | "bias", false) => Role::Redundant,
        _ => Role::Unknown,
    };
    ([module, inner].concat(), role, name)
}

/// The role of a tensor in none of PEFT's wrappers, or only in the one around a base layer.
fn plain_role<'a, 'b>(segments: &'b [&'a str]) -> (&'b [&'a str], Role) {
    match segments {
        [module @ .., "base_layer", "weight"] => (module, Role::Part(Part::BaseWeight)),
        [module @ .., "base_layer", "bias"] => (module, Role::Part(Part::BaseBias)),
        [.., "lora", "down" | "up", _] => (segments, Role::Foreign("diffusers")),
        [module @ .., "weight"] => (module, Role::Part(Part::Weight)),
        [module @ .., "bias"] => (module, Role::Part(Part::Bias)),
        _ => (segments, Role::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn every_name_that_peft_writes_is_known() {
        let table = [
            ("lora_A.weight", Role::Part(Part::A)),
            ("lora_B.weight", Role::Part(Part::B)),
            ("lora_B.default.weight", Role::Part(Part::B)),
            ("lora_B.bias", Role::Part(Part::BBias)),
            ("lora_B.default.bias", Role::Part(Part::BBias)),
            ("lora_magnitude_vector", Role::Part(Part::Magnitude)),
            ("lora_magnitude_vector.weight", Role::Part(Part::Magnitude)),
            ("lora_magnitude_vector.default.weight", Role::Part(Part::Magnitude)),
            ("lora_embedding_A", Role::Part(Part::EmbeddingA)),
            ("lora_embedding_B.default", Role::Part(Part::EmbeddingB)),
            ("lora_diag", Role::Part(Part::Diagonal)),
            ("lora_arrow.weight", Role::Feature(Feature::Arrow)),
            ("lora_velora_embed", Role::Redundant),
            ("lora_monteclora_sampler.std", Role::Redundant),
            ("base_layer.weight", Role::Part(Part::BaseWeight)),
            ("base_layer.bias", Role::Part(Part::BaseBias)),
            ("base_layer.lora_A.weight", Role::Feature(Feature::TargetParameters)),
            ("weight", Role::Part(Part::Weight)),
            ("modules_to_save.weight", Role::Part(Part::SavedWeight)),
            ("modules_to_save.default.weight", Role::Part(Part::SavedWeight)),
            ("modules_to_save.bias", Role::Part(Part::SavedBias)),
            ("original_module.weight", Role::Redundant),
            ("bias", Role::Part(Part::Bias)),
            ("token_adapter.trainable_tokens_delta", Role::Part(Part::Rows)),
            ("token_adapter.trainable_tokens_delta.default", Role::Part(Part::Rows)),
            ("token_adapter.base_layer.weight", Role::Part(Part::RowsWeight)),
            ("lora_A", Role::Unknown),
            ("lora_A.a.b.weight", Role::Unknown),
            ("lora_C.weight", Role::Unknown),
            ("token_adapter.rubbish", Role::Unknown),
            ("qweight", Role::Unknown),
        ];
        for (suffix, expected) in table {
            let name = format!("{PREFIX}{Q_PROJ}.{suffix}");
            let key = Key::parse(&name);
            assert_eq!(key.role, expected, "{suffix}");
            assert!(!matches!(expected, Role::Part(_)) || key.module == Q_PROJ, "{suffix}: {}", key.module);
        }
    }

    #[test]
    fn names_of_other_tools_are_recognized() {
        for name in [
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            "lora_unet_down_blocks_0.alpha",
            "lora_te1_text_model.lora_up.weight",
            "transformer.blocks.0.attn.to_q.lora.down.weight",
            "model.layers.0.self_attn.q_proj.lora_a",
            "unet.mid.to_q.lora_linear_layer.up.weight",
        ] {
            assert!(matches!(Key::parse(name).role, Role::Foreign(_)), "{name}");
        }
    }

    #[test]
    fn wrapper_segments_are_removed_from_the_path() {
        for name in [
            "_orig_mod.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.module.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model._orig_mod.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
        ] {
            let key = Key::parse(name);
            assert_eq!((key.module.as_str(), key.prefixed), (Q_PROJ, true), "{name}");
        }
        assert_eq!(Key::parse("base_model.model.a.module.b.lora_A.weight").module, "a.module.b");
    }

    #[test]
    fn paths_inside_a_saved_block_are_kept() {
        let key = Key::parse("base_model.model.model.layers.0.mlp.modules_to_save.default.gate_proj.weight");
        assert_eq!(key.module, "model.layers.0.mlp.gate_proj");
        assert_eq!((key.role, key.adapter), (Role::Part(Part::SavedWeight), Some("default")));
    }

    fn module_path() -> impl Strategy<Value = String> {
        let segment = prop_oneof!["[a-z][a-z0-9_]{0,6}", "[0-9]{1,3}"];
        prop::collection::vec(segment, 1..6).prop_map(|segments| segments.join(".")).prop_filter(
            "not a name of PEFT",
            |path| {
                let first = path.split('.').next();
                !path.split('.').any(|s| s.starts_with("lora_") || s == "base_layer" || s == "token_adapter")
                    && first != Some("module")
                    && first != Some("base_model")
            },
        )
    }

    proptest! {
        #[test]
        fn the_name_of_a_part_parses_to_its_module(
            module in module_path(),
            b in any::<bool>(),
            prefixed in any::<bool>(),
            adapter in prop::option::of("[a-z][a-z0-9_-]{0,6}"),
        ) {
            let part = if b { Part::B } else { Part::A };
            let infix = adapter.as_ref().map_or(String::new(), |name| format!(".{name}"));
            let name = part.tensor_name(&module);
            let name = if prefixed { name.as_str() } else { &name[PREFIX.len()..] };
            let name = name.replace(".weight", &format!("{infix}.weight"));
            let key = Key::parse(&name);
            prop_assert_eq!(key, Key { module, role: Role::Part(part), adapter: adapter.as_deref(), prefixed });
        }
    }
}
