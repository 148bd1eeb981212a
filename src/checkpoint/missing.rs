//! What to say of a folder that does not exist.

use std::path::{Component, Path};

use crate::error::Error;

/// Adds what the path probably meant: a home folder that only a shell would find, or a repository of the Hugging Face Hub.
pub(crate) fn with_path_hint(error: Error, dir: &Path) -> Error {
    let part = |part| if let Component::Normal(name) = part { name.to_str() } else { None };
    let parts: Option<Vec<&str>> = dir.components().map(part).collect();
    match parts.unwrap_or_default()[..] {
        [first, ..] if first.starts_with('~') => error
            .with_hint("'~' is expanded by shells only; write the home folder's path, in Python os.path.expanduser"),
        [owner, name] if is_hub_name(owner) && is_hub_name(name) && !Path::new(owner).exists() => {
            let id = format!("{owner}/{name}");
            error.with_hint(format!(
                "if it is a repository of the Hugging Face Hub, download it first: hf download {id} --local-dir {name}"
            ))
        }
        _ => error,
    }
}

/// Whether it could be an owner's or a repository's name on the Hub.
fn is_hub_name(name: &str) -> bool {
    name.len() <= 96 && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    fn hint(path: &str) -> String {
        let error = Error::new(ErrorCode::CheckpointNotFound, "the folder does not exist");
        with_path_hint(error, Path::new(path)).remedy().to_owned()
    }

    #[test]
    fn a_path_that_no_folder_has_is_explained() {
        for home in ["~/models/quill", "~someone/quill", "~"] {
            assert!(hint(home).contains("expanduser"), "{home}");
        }
        assert!(hint("Qwen/Qwen2.5-7B").contains("hf download Qwen/Qwen2.5-7B --local-dir Qwen2.5-7B"));
        let usual = ErrorCode::CheckpointNotFound.remedy();
        for path in
            ["/models/quill", "models/quill/base", "quill", "./models/quill", "../quill", "src/quill", "a b/c", ""]
        {
            assert_eq!(hint(path), usual, "{path}");
        }
    }
}
