//! An error as a client of a server sees it: in the client's names of settings, and without the folders of the machine.

use std::path::{Path, PathBuf};

use super::{Details, Error};

impl Error {
    /// The same in the words of someone who calls settings otherwise: `name_of` gives their name of a setting. The names of
    /// further problems are changed too.
    pub(crate) fn with_settings_called(mut self, name_of: &dyn Fn(&str) -> Option<String>) -> Self {
        let others = std::mem::take(&mut self.0.others);
        self.0.others = others.into_iter().map(|other| other.with_settings_called(name_of)).collect();
        let Some(path) = self.0.setting.take() else { return self };
        let (setting, place) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
        let name = name_of(setting);
        if let (Some(name), Some(rest)) = (&name, self.0.message.strip_prefix(setting))
            && !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        {
            self.0.message = format!("{name}{rest}");
        }
        self.0.setting = Some(name.map_or_else(|| path.clone(), |name| name + place));
        self
    }

    /// The same with paths below `folder` as paths below `name`, or as relative ones if that is empty. For readers of whom the
    /// machine's folders are no business.
    pub(crate) fn with_folder_called(mut self, folder: &Path, name: &str) -> Self {
        let others = std::mem::take(&mut self.0.others);
        self.0.others = others.into_iter().map(|other| other.with_folder_called(folder, name)).collect();
        if let Some(below) = self.0.path.as_ref().and_then(|path| path.strip_prefix(folder).ok()) {
            let is_folder = below.as_os_str().is_empty();
            self.0.path = Some(if is_folder { PathBuf::from(name) } else { Path::new(name).join(below) });
        }
        let (prefix, name) = (format!("{}/", folder.display()), Path::new(name).join(""));
        let name = name.display().to_string();
        let Details { message, expected, found, hint, .. } = &mut *self.0;
        for text in [Some(message), expected.as_mut(), found.as_mut(), hint.as_mut()].into_iter().flatten() {
            if text.contains(&prefix) {
                *text = text.replace(&prefix, &name);
            }
        }
        self
    }

    /// The same with the last part alone of a path that is still absolute.
    pub(crate) fn without_absolute_paths(mut self) -> Self {
        let others = std::mem::take(&mut self.0.others);
        self.0.others = others.into_iter().map(Self::without_absolute_paths).collect();
        if let Some(path) = self.0.path.take_if(|path| path.is_absolute()) {
            self.0.path = path.file_name().map(PathBuf::from);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn a_setting_is_called_as_its_user_calls_it() {
        let error = |setting: &str, message: &str| Error::new(ErrorCode::RequestInvalid, message).with_setting(setting);
        let renamed = |error: Error| {
            let name_of = |setting: &str| (setting == "max_new_tokens").then(|| "max_tokens".to_owned());
            let error = error.with_settings_called(&name_of);
            (error.setting().map(str::to_owned), error.message().to_owned())
        };
        let expected = |setting: &str, message: &str| (Some(setting.to_owned()), message.to_owned());
        let of = "max_new_tokens";
        assert_eq!(renamed(error(of, "max_new_tokens is 0")), expected("max_tokens", "max_tokens is 0"));
        assert_eq!(renamed(error(of, "max_new_tokens_2 is 0")), expected("max_tokens", "max_new_tokens_2 is 0"));
        assert_eq!(renamed(error("max_new_tokens[1].x", "wrong")), expected("max_tokens[1].x", "wrong"));
        assert_eq!(renamed(error("n", "n is 0")), expected("n", "n is 0"));
        let both = Error::all(vec![error("n", "n is 0"), error(of, "max_new_tokens is 0")]).expect("two");
        assert_eq!(renamed(both.into_list().remove(1)), expected("max_tokens", "max_tokens is 0"));
    }

    #[test]
    fn folders_of_the_machine_are_called_by_a_name() {
        let error = Error::new(ErrorCode::CheckpointIndexInvalid, "in /srv/adapters/sql/a.json")
            .with_path("/srv/adapters/sql/adapter_config.json")
            .with_found("another in /srv/adapters/sql/b, not /srv/adapters2/c");
        let text = error.clone().with_folder_called(Path::new("/srv/adapters"), "").to_string();
        assert!(
            text.starts_with("in sql/a.json: sql/adapter_config.json: found another in sql/b, not /srv/adapters2/c"),
            "{text}"
        );
        let text = error.clone().with_folder_called(Path::new("/srv/adapters/sql"), "sql-v2").to_string();
        assert!(text.contains(": sql-v2/adapter_config.json: found another in sql-v2/b"), "{text}");
        let elsewhere = Error::all(vec![error.clone(), error]).expect("two").without_absolute_paths();
        assert_eq!(elsewhere.to_string().matches(": adapter_config.json").count(), 2, "{elsewhere}");
    }
}
