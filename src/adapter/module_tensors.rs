//! The tensors of an adapter's file, by module.
//!
//! One spelling of the names throughout a file is accepted; two are not, since they would be two adapters. An unknown name is
//! an error; PEFT would silently use the base model there. Of a multimodal model, what belongs to other modalities than text is
//! left out and counted, because it cannot act on a request of text.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::keys::{Key, PREFIX, Part, Role};
use crate::adapter::unsupported::Feature;
use crate::error::{Error, ErrorCode, printable};
use crate::text_prefix::{TextPrefix, is_other_modality};

/// The tensors of one module, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleTensors<'a>(BTreeMap<Part, &'a str>);

impl<'a> ModuleTensors<'a> {
    /// The name of a part's tensor.
    pub fn get(&self, part: Part) -> Option<&'a str> {
        self.0.get(&part).copied()
    }

    /// The name of the first of these parts that is present.
    pub fn first(&self, parts: &[Part]) -> Option<&'a str> {
        parts.iter().find_map(|part| self.get(*part))
    }

    /// All names; there is at least one.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &'a str> {
        self.0.values().copied()
    }

    /// A name for messages.
    pub fn example(&self) -> &'a str {
        self.names().next().unwrap_or_default()
    }
}

/// The classified names of a file.
#[derive(Debug, Default)]
pub struct Contents<'a> {
    /// Tensors by module path.
    pub modules: BTreeMap<String, ModuleTensors<'a>>,
    /// What stands before the paths of the text model's modules.
    pub prefix: TextPrefix,
    /// Number of tensors of modules of other modalities, which are not in `modules`.
    pub ignored: usize,
    /// Problems with the names.
    pub problems: Vec<Error>,
}

/// Classifies the tensor names of an adapter's file.
pub fn classify<'a>(names: impl IntoIterator<Item = &'a str>) -> Contents<'a> {
    let mut contents = Contents::default();
    let mut spellings = Spellings::default();
    let mut features: BTreeMap<Feature, (&str, usize)> = BTreeMap::new();
    for name in names {
        let key = Key::parse(name);
        match key.role {
            Role::Part(part) => {
                spellings.add(name, &key, part);
                let tensors = &mut contents.modules.entry(key.module).or_default().0;
                match tensors.get(&part) {
                    Some(first) => contents.problems.push(
                        Error::new(ErrorCode::AdapterTensorUnexpected, "two tensors for the same part")
                            .with_tensor(name)
                            .with_found(format!("'{first}' too")),
                    ),
                    None => drop(tensors.insert(part, name)),
                }
            }
            Role::Feature(feature) => features.entry(feature).or_insert((name, 0)).1 += 1,
            Role::Redundant => tracing::info!(tensor = %printable(name), "a tensor without effect is left out"),
            Role::Foreign(tool) => {
                contents.problems = vec![foreign(tool, name)];
                return contents;
            }
            Role::Unknown => contents
                .problems
                .push(Error::new(ErrorCode::AdapterTensorUnexpected, "unknown tensor").with_tensor(name)),
        }
    }
    contents.leave_out_other_modalities();
    contents.find_prefix();
    contents.problems.extend(spellings.problems());
    contents.problems.extend(features.into_iter().map(|(feature, (name, count))| {
        let refusal = feature.refusal().with_tensor(name);
        if count > 1 { refusal.with_found(format!("{count} tensors of it")) } else { refusal }
    }));
    contents
}

impl Contents<'_> {
    /// Leaves out the modules of other modalities, unless there are no others.
    fn leave_out_other_modalities(&mut self) {
        if self.modules.keys().all(|path| is_other_modality(path)) {
            return;
        }
        let (others, text) =
            std::mem::take(&mut self.modules).into_iter().partition(|(path, _)| is_other_modality(path));
        let others: BTreeMap<String, ModuleTensors<'_>> = others;
        (self.modules, self.ignored) = (text, others.values().map(|tensors| tensors.names().len()).sum());
    }

    /// Finds the prefix that all paths have which show one.
    fn find_prefix(&mut self) {
        let mut shown: BTreeMap<TextPrefix, &str> = BTreeMap::new();
        for (path, tensors) in &self.modules {
            if let Some(prefix) = TextPrefix::shown_by(path) {
                shown.entry(prefix).or_insert(tensors.example());
            }
        }
        let mut names = shown.iter();
        if let Some((&prefix, first)) = names.next() {
            self.prefix = prefix;
            if let Some((_, other)) = names.next() {
                self.problems.push(
                    Error::new(
                        ErrorCode::AdapterTensorUnexpected,
                        "modules with different prefixes of a multimodal model",
                    )
                    .with_tensor(*other)
                    .with_expected("one spelling of the paths of its text model")
                    .with_found(format!("'{first}' too")),
                );
            }
        }
    }
}

fn foreign(tool: &str, name: &str) -> Error {
    Error::new(ErrorCode::AdapterFormatUnsupported, format!("the tensors are named in the style of {tool}, not PEFT"))
        .with_tensor(name)
        .with_expected(format!("{PREFIX}<module>.lora_A.weight"))
}

/// The spellings of a file's names, with an example of each: with or without prefix, under which adapter name.
#[derive(Default)]
struct Spellings<'a> {
    prefixed: BTreeMap<bool, &'a str>,
    adapters: BTreeMap<Option<&'a str>, &'a str>,
    /// Of modules inside a saved block: if biases are saved too, PEFT leaves the adapter's name in their second copies.
    blocks: BTreeMap<&'a str, &'a str>,
}

impl<'a> Spellings<'a> {
    fn add(&mut self, name: &'a str, key: &Key<'a>, part: Part) {
        self.prefixed.entry(key.prefixed).or_insert(name);
        if let (Part::SavedWeight | Part::SavedBias, Some(adapter)) = (part, key.adapter) {
            self.blocks.entry(adapter).or_insert(name);
        } else if part.is_named() {
            self.adapters.entry(key.adapter).or_insert(name);
        }
    }

    fn problems(&self) -> Vec<Error> {
        let mut problems = Vec::new();
        if let (Some(with), Some(without)) = (self.prefixed.get(&true), self.prefixed.get(&false)) {
            problems.push(
                Error::new(ErrorCode::AdapterTensorUnexpected, "names with and without PEFT's prefix")
                    .with_tensor(*without)
                    .with_expected(format!("'{PREFIX}' before all names or none"))
                    .with_found(format!("'{with}' too")),
            );
        }
        let mut adapters = self.adapters.clone();
        if self.blocks.len() > 1 || adapters.keys().any(Option::is_some) {
            adapters.extend(self.blocks.iter().map(|(adapter, name)| (Some(*adapter), *name)));
        }
        if adapters.len() > 1 {
            let names: BTreeSet<_> =
                adapters.keys().map(|name| name.map_or("none".into(), |n| format!("'{n}'"))).collect();
            problems.push(
                Error::new(ErrorCode::AdapterTensorUnexpected, "the file contains tensors of several adapters")
                    .with_tensor(adapters.values().next_back().copied().unwrap_or_default())
                    .with_expected("one adapter name in all tensors, or none")
                    .with_found(names.into_iter().take(8).collect::<Vec<_>>().join(", "))
                    .with_hint("save each adapter into a folder of its own"),
            );
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classified(names: &[&'static str]) -> Vec<ErrorCode> {
        classify(names.iter().copied()).problems.iter().map(Error::code).collect()
    }

    #[test]
    fn one_spelling_per_file_is_accepted_and_two_are_not() {
        use ErrorCode::AdapterTensorUnexpected as Unexpected;
        assert_eq!(classified(&["a.lora_A.weight", "a.lora_B.weight"]), []);
        assert_eq!(classified(&["a.lora_A.mine.weight", "a.lora_B.mine.weight"]), []);
        assert_eq!(classified(&["a.lora_A.mine.weight", "a.lora_B.weight"]), [Unexpected]);
        assert_eq!(classified(&["a.lora_A.mine.weight", "b.lora_A.yours.weight"]), [Unexpected]);
        assert_eq!(classified(&["base_model.model.a.lora_A.weight", "a.lora_B.weight"]), [Unexpected]);
        assert_eq!(classified(&["a.lora_A.weight", "_orig_mod.a.lora_A.weight"]), [Unexpected]);
    }

    #[test]
    fn the_adapter_name_must_be_the_same_in_tensors_of_every_kind() {
        let kinds = ["a.lora_A.mine.weight", "a.lora_magnitude_vector.mine", "e.lora_embedding_A.mine"];
        assert_eq!(classified(&kinds), []);
        assert_eq!(classified(&["a.lora_A.mine.weight", "norm.weight", "a.base_layer.bias"]), []);
        for other in
            ["a.lora_magnitude_vector", "e.token_adapter.trainable_tokens_delta.other", "h.modules_to_save.weight"]
        {
            assert_eq!(classified(&["a.lora_A.mine.weight", other]), [ErrorCode::AdapterTensorUnexpected], "{other}");
        }
    }

    #[test]
    fn the_prefix_of_a_multimodal_model_is_the_same_throughout_a_file() {
        let name = |path: &str| format!("base_model.model.{path}.lora_A.weight");
        let (up, vision) = ("layers.0.mlp.up_proj", name("model.vision_tower.blocks.0.qkv"));
        let spellings = [
            (name(&format!("model.{up}")), TextPrefix::None),
            (name(&format!("model.language_model.{up}")), TextPrefix::Inner),
            (name(&format!("language_model.model.{up}")), TextPrefix::Outer),
        ];
        for (text, prefix) in &spellings {
            let head = name("lm_head");
            let contents = classify([text.as_str(), &head, &vision]);
            assert_eq!((contents.prefix, contents.ignored, contents.modules.len()), (*prefix, 1, 2), "{text}");
            assert!(contents.problems.is_empty());
        }
        let codes = classify([spellings[0].0.as_str(), &spellings[1].0]).problems;
        assert_eq!(codes.iter().map(Error::code).collect::<Vec<_>>(), [ErrorCode::AdapterTensorUnexpected]);
        // Alone, they match nothing, which is reported with their names.
        assert_eq!(classify([vision.as_str()]).modules.len(), 1);
    }

    #[test]
    fn a_feature_is_refused_once_with_an_example_and_a_count() {
        let nested = ["a.base_layer.lora_A.weight", "a.base_layer.lora_B.weight"];
        let contents = classify(["a.lora_A.weight", "a.lora_arrow.weight"].into_iter().chain(nested));
        let problems: Vec<_> = contents.problems.iter().map(|p| (p.message().to_owned(), p.tensor())).collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].0.contains("target_parameters"));
        assert_eq!(problems[0].1, Some("a.base_layer.lora_A.weight"));
        assert_eq!(contents.problems[0].found(), Some("2 tensors of it"));
        assert!(problems[1].0.contains("Arrow"));
    }

    proptest! {
        #[test]
        fn any_name_can_be_classified(names in prop::collection::vec("[a-z_A.]{0,12}|\\PC{0,12}", 0..8)) {
            let contents = classify(names.iter().map(String::as_str));
            prop_assert!(contents.modules.len() <= names.len());
        }
    }
}
