//! PEFT's tensor names: which factor of which module a tensor is, and what else a file can hold.
//!
//! ```text
//! base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight
//! |-- prefix ------||------- module path --------| role  |name|
//! ```
//!
//! Saved files have the prefix and no adapter name; files taken from a wrapped, injected or compiled model may lack the one,
//! have the other, or carry the wrapper's own segments. One such spelling over a whole file is accepted, two are not: they
//! would be two adapters. A name that isn't understood is an error: PEFT serves the base model in its place.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::features::Feature;
use crate::error::{Error, ErrorCode};

/// What PEFT puts before a module's path.
pub const PREFIX: &str = "base_model.model.";

/// Segments that wrappers of a model (torch.compile, FSDP) leave in a path; no module is called so.
const WRAPPERS: [&str; 2] = ["_orig_mod", "_fsdp_wrapped_module"];

/// The name under which PEFT saves a factor.
pub fn factor_name(module: &str, factor: Factor) -> String {
    format!("{PREFIX}{module}.{}.weight", factor.segment())
}

/// One of the two matrices of a low-rank delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Factor {
    /// `A [rank, in_features]`.
    A,
    /// `B [out_features, rank]`.
    B,
}

impl Factor {
    /// Its segment in a tensor's name.
    pub fn segment(self) -> &'static str {
        match self {
            Factor::A => "lora_A",
            Factor::B => "lora_B",
        }
    }

    /// The other of the pair.
    pub fn other(self) -> Self {
        match self {
            Factor::A => Factor::B,
            Factor::B => Factor::A,
        }
    }
}

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A factor of a linear.
    Factor(Factor),
    /// State that only training needs.
    Training,
    /// Part of a feature that is not served.
    Feature(Feature),
    /// Named as another tool names it.
    Foreign(&'static str),
    /// Nothing known.
    Unknown,
}

/// A tensor's name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    /// Path of the module in the model, without prefix and wrappers.
    pub module: String,
    /// What the tensor is.
    pub role: Role,
    /// A leftover adapter name.
    pub adapter: Option<&'a str>,
    /// Whether [`PREFIX`] was there.
    pub prefixed: bool,
}

impl<'a> Key<'a> {
    /// Takes a tensor's name apart. Total: what isn't understood is [`Role::Unknown`].
    pub fn parse(name: &'a str) -> Self {
        let mut segments: Vec<&str> = name.split('.').filter(|s| !WRAPPERS.contains(s)).collect();
        // DDP's wrapper is called `module`, which only at the top can't be a module's name.
        segments.drain(..segments.iter().take_while(|s| **s == "module").count());
        let prefixed = segments.starts_with(&["base_model", "model"]);
        if prefixed {
            segments.drain(..2);
        }
        let (module, role, adapter) = match segments.iter().rposition(|s| s.starts_with("lora_")) {
            Some(at) => {
                let (role, adapter) = lora_role(segments[at], &segments[at + 1..]);
                (&segments[..at], role, adapter)
            }
            None => other_role(&segments),
        };
        let role = match role {
            Role::Factor(_) if module.is_empty() => Role::Unknown,
            // A parameter's adapter that nests in another one.
            Role::Factor(_) if module.last() == Some(&"base_layer") => Role::Feature(Feature::TargetParameters),
            role => role,
        };
        Self { module: module.join("."), role, adapter, prefixed }
    }
}

/// The role of a tensor by its `lora_…` segment and what follows: `weight`, an adapter's name, both or neither.
fn lora_role<'a>(segment: &str, tail: &[&'a str]) -> (Role, Option<&'a str>) {
    let role = match (segment, tail) {
        ("lora_A", ["weight"] | [_, "weight"]) => Role::Factor(Factor::A),
        ("lora_B", ["weight"] | [_, "weight"]) => Role::Factor(Factor::B),
        ("lora_B", ["bias"] | [_, "bias"]) => Role::Feature(Feature::LoraBias),
        ("lora_magnitude_vector", [] | [_] | [_, "weight"]) => Role::Feature(Feature::Dora),
        ("lora_embedding_A" | "lora_embedding_B", [] | [_]) => Role::Feature(Feature::Embedding),
        ("lora_diag", [] | [_]) => Role::Feature(Feature::Kasa),
        ("lora_arrow", _) => Role::Feature(Feature::Arrow),
        ("lora_velora_embed" | "lora_monteclora_sampler", _) => Role::Training,
        ("lora_a" | "lora_b", []) => Role::Foreign("mlx-lm"),
        ("lora_down" | "lora_up", _) => Role::Foreign("kohya or diffusers"),
        ("lora_linear_layer", _) => Role::Foreign("diffusers"),
        (unet, _) if unet.starts_with("lora_unet_") || unet.starts_with("lora_te") => Role::Foreign("kohya"),
        _ => Role::Unknown,
    };
    let adapter = match (role, tail) {
        (Role::Factor(_), [name, _]) => Some(*name),
        _ => None,
    };
    (role, adapter)
}

/// The role of a tensor without a `lora_…` segment: weights and biases of the base, and PEFT's other wrappers.
fn other_role<'a, 'b>(segments: &'b [&'a str]) -> (&'b [&'a str], Role, Option<&'a str>) {
    let place = |name: &str| segments.iter().rposition(|s| *s == name);
    if let Some(at) = place("modules_to_save").or_else(|| place("original_module")) {
        return (&segments[..at], Role::Feature(Feature::ModulesToSave), None);
    }
    if let Some(at) = place("token_adapter").or_else(|| place("trainable_tokens_delta")) {
        return (&segments[..at], Role::Feature(Feature::TrainableTokens), None);
    }
    match segments {
        [module @ .., "base_layer", "weight"] => (module, Role::Feature(Feature::BaseWeight), None),
        [module @ .., "base_layer", "bias"] => (module, Role::Feature(Feature::Bias), None),
        [.., "lora", "down" | "up", _] => (segments, Role::Foreign("diffusers"), None),
        [module @ .., "weight"] if !module.is_empty() => (module, Role::Feature(Feature::ModulesToSave), None),
        [module @ .., "bias"] if !module.is_empty() => (module, Role::Feature(Feature::Bias), None),
        _ => (segments, Role::Unknown, None),
    }
}

/// The factors of one module, by the names of their tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactorNames<'a> {
    /// A's tensor.
    pub a: Option<&'a str>,
    /// B's tensor.
    pub b: Option<&'a str>,
}

impl<'a> FactorNames<'a> {
    fn slot(&mut self, factor: Factor) -> &mut Option<&'a str> {
        match factor {
            Factor::A => &mut self.a,
            Factor::B => &mut self.b,
        }
    }
}

/// A file's names, sorted out.
#[derive(Debug, Default)]
pub struct Contents<'a> {
    /// Factors by module path.
    pub modules: BTreeMap<String, FactorNames<'a>>,
    /// What is wrong with the names.
    pub problems: Vec<Error>,
}

/// Sorts out the tensor names of an adapter's file.
pub fn sort<'a>(names: impl IntoIterator<Item = &'a str>) -> Contents<'a> {
    let mut contents = Contents::default();
    let mut spellings = Spellings::default();
    let mut features: BTreeMap<Feature, (&str, usize)> = BTreeMap::new();
    for name in names {
        let key = Key::parse(name);
        match key.role {
            Role::Factor(factor) => {
                spellings.add(name, &key);
                let slot = contents.modules.entry(key.module).or_default().slot(factor);
                match slot {
                    Some(first) => contents.problems.push(
                        Error::new(ErrorCode::AdapterTensorUnexpected, "two tensors stand for the same factor")
                            .tensor(name)
                            .found(format!("'{first}' too")),
                    ),
                    None => *slot = Some(name),
                }
            }
            Role::Feature(feature) => features.entry(feature).or_insert((name, 0)).1 += 1,
            Role::Training => tracing::info!(tensor = ?name, "a tensor that only training needs is left out"),
            Role::Foreign(tool) => {
                contents.problems = vec![foreign(tool, name)];
                return contents;
            }
            Role::Unknown => contents
                .problems
                .push(Error::new(ErrorCode::AdapterTensorUnexpected, "a tensor is not known").tensor(name)),
        }
    }
    contents.problems.extend(spellings.problems());
    contents.problems.extend(features.into_iter().map(|(feature, (name, count))| {
        let refusal = feature.refusal().tensor(name);
        if count > 1 { refusal.found(format!("{count} tensors of it")) } else { refusal }
    }));
    contents
}

fn foreign(tool: &str, name: &str) -> Error {
    Error::new(ErrorCode::AdapterFormatUnsupported, format!("the tensors are named as {tool} names them, not PEFT"))
        .tensor(name)
        .expected(format!("{PREFIX}<module>.lora_A.weight"))
}

/// The spellings of a file's factors: with or without prefix, under which adapter name; an example of each.
#[derive(Default)]
struct Spellings<'a> {
    prefixed: BTreeMap<bool, &'a str>,
    adapters: BTreeMap<Option<&'a str>, &'a str>,
}

impl<'a> Spellings<'a> {
    fn add(&mut self, name: &'a str, key: &Key<'a>) {
        self.prefixed.entry(key.prefixed).or_insert(name);
        self.adapters.entry(key.adapter).or_insert(name);
    }

    fn problems(&self) -> Vec<Error> {
        let mut problems = Vec::new();
        if let (Some(with), Some(without)) = (self.prefixed.get(&true), self.prefixed.get(&false)) {
            problems.push(
                Error::new(ErrorCode::AdapterTensorUnexpected, "names with and without PEFT's prefix are mixed")
                    .tensor(*without)
                    .expected(format!("'{PREFIX}' before all names or before none"))
                    .found(format!("'{with}' too")),
            );
        }
        if self.adapters.len() > 1 {
            let names: BTreeSet<_> =
                self.adapters.keys().map(|name| name.map_or("none".into(), |n| format!("'{n}'"))).collect();
            problems.push(
                Error::new(ErrorCode::AdapterTensorUnexpected, "the file holds factors of several adapters")
                    .tensor(self.adapters.values().next_back().copied().unwrap_or_default())
                    .expected("one adapter name in all tensors, or none")
                    .found(names.into_iter().take(8).collect::<Vec<_>>().join(", "))
                    .hint("save each adapter into a folder of its own"),
            );
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";

    fn role(name: &str) -> Role {
        Key::parse(name).role
    }

    #[test]
    fn every_name_peft_writes_is_known() {
        let table = [
            ("lora_A.weight", Role::Factor(Factor::A)),
            ("lora_B.weight", Role::Factor(Factor::B)),
            ("lora_B.default.weight", Role::Factor(Factor::B)),
            ("lora_B.bias", Role::Feature(Feature::LoraBias)),
            ("lora_magnitude_vector", Role::Feature(Feature::Dora)),
            ("lora_magnitude_vector.weight", Role::Feature(Feature::Dora)),
            ("lora_magnitude_vector.default.weight", Role::Feature(Feature::Dora)),
            ("lora_embedding_A", Role::Feature(Feature::Embedding)),
            ("lora_embedding_B.default", Role::Feature(Feature::Embedding)),
            ("lora_diag", Role::Feature(Feature::Kasa)),
            ("lora_arrow.weight", Role::Feature(Feature::Arrow)),
            ("lora_velora_embed", Role::Training),
            ("lora_monteclora_sampler.std", Role::Training),
            ("base_layer.weight", Role::Feature(Feature::BaseWeight)),
            ("base_layer.bias", Role::Feature(Feature::Bias)),
            ("base_layer.lora_A.weight", Role::Feature(Feature::TargetParameters)),
            ("weight", Role::Feature(Feature::ModulesToSave)),
            ("modules_to_save.default.weight", Role::Feature(Feature::ModulesToSave)),
            ("bias", Role::Feature(Feature::Bias)),
            ("token_adapter.trainable_tokens_delta", Role::Feature(Feature::TrainableTokens)),
            ("lora_A", Role::Unknown),
            ("lora_A.a.b.weight", Role::Unknown),
            ("lora_C.weight", Role::Unknown),
            ("qweight", Role::Unknown),
        ];
        for (suffix, expected) in table {
            let name = format!("{PREFIX}{Q_PROJ}.{suffix}");
            assert_eq!(role(&name), expected, "{suffix}");
        }
    }

    #[test]
    fn names_of_other_tools_are_recognised() {
        for name in [
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            "lora_unet_down_blocks_0.alpha",
            "lora_te1_text_model.lora_up.weight",
            "transformer.blocks.0.attn.to_q.lora.down.weight",
            "model.layers.0.self_attn.q_proj.lora_a",
            "unet.mid.to_q.lora_linear_layer.up.weight",
        ] {
            assert!(matches!(role(name), Role::Foreign(_)), "{name}");
        }
    }

    #[test]
    fn wrappers_leave_no_trace_in_the_path() {
        for name in [
            "_orig_mod.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model._orig_mod.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
        ] {
            let key = Key::parse(name);
            assert_eq!((key.module.as_str(), key.prefixed), (Q_PROJ, true), "{name}");
        }
        assert_eq!(Key::parse("base_model.model.a.module.b.lora_A.weight").module, "a.module.b");
    }

    fn sorted(names: &[&'static str]) -> Vec<ErrorCode> {
        sort(names.iter().copied()).problems.iter().map(Error::code).collect()
    }

    #[test]
    fn one_spelling_over_the_whole_file_is_accepted_and_two_are_not() {
        use ErrorCode::AdapterTensorUnexpected as Unexpected;
        assert_eq!(sorted(&["a.lora_A.weight", "a.lora_B.weight"]), []);
        assert_eq!(sorted(&["a.lora_A.mine.weight", "a.lora_B.mine.weight"]), []);
        assert_eq!(sorted(&["a.lora_A.mine.weight", "a.lora_B.weight"]), [Unexpected]);
        assert_eq!(sorted(&["a.lora_A.mine.weight", "b.lora_A.yours.weight"]), [Unexpected]);
        assert_eq!(sorted(&["base_model.model.a.lora_A.weight", "a.lora_B.weight"]), [Unexpected]);
        assert_eq!(sorted(&["a.lora_A.weight", "_orig_mod.a.lora_A.weight"]), [Unexpected]);
    }

    #[test]
    fn a_feature_is_refused_once_with_an_example_and_a_count() {
        let contents = sort(["a.lora_magnitude_vector", "a.lora_A.weight", "b.lora_magnitude_vector", "a.lora_B.bias"]);
        let problems: Vec<_> = contents.problems.iter().map(|p| (p.message().to_owned(), p.tensor_name())).collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].0.contains("DoRA"));
        assert_eq!(problems[0].1, Some("a.lora_magnitude_vector"));
        assert_eq!(contents.problems[0].found_value(), Some("2 tensors of it"));
        assert!(problems[1].0.contains("lora_bias"));
    }

    fn module_path() -> impl Strategy<Value = String> {
        let segment = prop_oneof!["[a-z][a-z0-9_]{0,6}", "[0-9]{1,3}"];
        prop::collection::vec(segment, 1..6).prop_map(|segments| segments.join(".")).prop_filter(
            "no name of PEFT's",
            |path| {
                let first = path.split('.').next();
                !path.split('.').any(|s| s.starts_with("lora_") || s == "base_layer")
                    && first != Some("module")
                    && first != Some("base_model")
            },
        )
    }

    proptest! {
        #[test]
        fn a_factors_name_leads_back_to_its_module(
            module in module_path(),
            b in any::<bool>(),
            prefixed in any::<bool>(),
            adapter in prop::option::of("[a-z][a-z0-9_-]{0,6}"),
        ) {
            let factor = if b { Factor::B } else { Factor::A };
            let infix = adapter.as_ref().map_or(String::new(), |name| format!(".{name}"));
            let name = factor_name(&module, factor);
            let name = if prefixed { name.as_str() } else { &name[PREFIX.len()..] };
            let name = name.replace(".weight", &format!("{infix}.weight"));
            let key = Key::parse(&name);
            prop_assert_eq!(key, Key { module, role: Role::Factor(factor), adapter: adapter.as_deref(), prefixed });
        }

        #[test]
        fn no_name_is_too_odd_to_be_sorted(names in prop::collection::vec("[a-z_A.]{0,12}|\\PC{0,12}", 0..8)) {
            let contents = sort(names.iter().map(String::as_str));
            prop_assert!(contents.modules.len() <= names.len());
        }
    }
}
