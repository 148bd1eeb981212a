//! How files of multimodal models spell the module paths of their text model, which everything else knows by the paths that it has
//! alone.
//!
//! ```text
//! model.layers.0.mlp.up_proj                    alone                                    lm_head
//! model.language_model.layers.0.mlp.up_proj     in a multimodal model                    lm_head
//! language_model.model.layers.0.mlp.up_proj     in one of transformers before 4.52       language_model.lm_head
//! ```

use std::borrow::Cow;

/// What stands before the paths of a text model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TextPrefix {
    /// Nothing: the text model is alone.
    #[default]
    None,
    /// `language_model` after `model`.
    Inner,
    /// `language_model` before everything.
    Outer,
}

/// Modules of other modalities, at the top or below `model`.
const OTHER_MODALITIES: [&str; 12] = [
    "vision_tower",
    "vision_model",
    "vision_encoder",
    "visual",
    "multi_modal_projector",
    "mm_projector",
    "patch_merger",
    "image_newline",
    "embed_vision",
    "audio_tower",
    "audio_encoder",
    "embed_audio",
];

impl TextPrefix {
    /// The prefix that a path of a text model shows; `None` if it shows none, as that of a head.
    pub fn shown_by(path: &str) -> Option<Self> {
        if path.starts_with("language_model.") {
            return Some(TextPrefix::Outer);
        }
        let below = path.strip_prefix("model.").filter(|_| !is_other_modality(path))?;
        Some(if below.starts_with("language_model.") { TextPrefix::Inner } else { TextPrefix::None })
    }

    /// The path that the module has in the text model alone.
    pub fn removed_from(self, path: &str) -> Cow<'_, str> {
        let removed = match self {
            TextPrefix::None => None,
            TextPrefix::Inner => path.strip_prefix("model.language_model.").map(|rest| format!("model.{rest}").into()),
            TextPrefix::Outer => path.strip_prefix("language_model.").map(Cow::from),
        };
        removed.unwrap_or(path.into())
    }

    /// The prefix of the modules in programs that load such files, if it is another one: transformers has had one for all
    /// multimodal models since 4.52, and some programs write their files with the older one again.
    pub fn loaded_as(self) -> Option<Self> {
        (self == TextPrefix::Outer).then_some(TextPrefix::Inner)
    }

    /// The path in a file with this prefix of what has that path in the text model alone.
    pub fn added_to(self, path: &str) -> Cow<'_, str> {
        match (self, path.strip_prefix("model.")) {
            (TextPrefix::None, _) | (TextPrefix::Inner, None) => path.into(),
            (TextPrefix::Inner, Some(rest)) => format!("model.language_model.{rest}").into(),
            (TextPrefix::Outer, _) => format!("language_model.{path}").into(),
        }
    }
}

/// Whether a module or tensor belongs to what sees or hears, and not to the text model.
pub fn is_other_modality(path: &str) -> bool {
    let first = path.strip_prefix("model.").unwrap_or(path).split('.').next();
    first.is_some_and(|first| OTHER_MODALITIES.contains(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: &str = "model.layers.0.mlp.up_proj";

    #[test]
    fn a_prefix_is_added_and_removed() {
        for (prefix, up, head) in [
            (TextPrefix::None, UP, "lm_head"),
            (TextPrefix::Inner, "model.language_model.layers.0.mlp.up_proj", "lm_head"),
            (TextPrefix::Outer, "language_model.model.layers.0.mlp.up_proj", "language_model.lm_head"),
        ] {
            assert_eq!((prefix.added_to(UP), prefix.added_to("lm_head")), (up.into(), head.into()));
            assert_eq!((prefix.removed_from(up), prefix.removed_from(head)), (UP.into(), "lm_head".into()));
            assert_eq!(TextPrefix::shown_by(up), Some(prefix));
        }
        assert_eq!(TextPrefix::shown_by("lm_head"), None);
        assert_eq!(TextPrefix::Outer.loaded_as(), Some(TextPrefix::Inner));
        assert_eq!([TextPrefix::None, TextPrefix::Inner].map(TextPrefix::loaded_as), [None, None]);
        assert_eq!(TextPrefix::Outer.removed_from("lm_head"), "lm_head");
    }

    #[test]
    fn modules_of_other_modalities_are_known_at_both_places() {
        for path in ["vision_tower.blocks.0.attn", "model.vision_tower.x", "model.multi_modal_projector.linear_1"] {
            assert!(is_other_modality(path) && TextPrefix::shown_by(path).is_none(), "{path}");
        }
        assert!(!is_other_modality(UP) && !is_other_modality("model.layers.0.visual") && !is_other_modality("lm_head"));
    }
}
