//! Which adapter a name means, and which names there are.

use std::borrow::Cow;
use std::sync::Arc;

use super::paths::AdaptersDir;
use super::record::Wanted;
use super::residency::Residency;
use crate::error::{Error, ErrorCode, Result};
use crate::request_settings::closest;

/// Most names that are suggested for one that no adapter has.
const MAX_CLOSE_NAMES: usize = 3;

/// What can be named instead of a name that no adapter has.
#[derive(Default)]
pub(super) struct KnownNames {
    pub all: Vec<String>,
    /// The closest first.
    pub close: Vec<String>,
}

impl Residency {
    /// The one name of the adapter that a name means. Something was loaded under it, or it leads to a folder, whose name it is
    /// then: by however many links a folder is reached, it is loaded once.
    pub(super) async fn identity<'a>(self: &Arc<Self>, name: &'a str) -> Result<Cow<'a, str>> {
        if self.dir.is_none() || self.is_known(name) {
            return Ok(Cow::Borrowed(name));
        }
        let owned = name.to_owned();
        self.blocking(move |this| this.name_of_folder(&owned)).await.map(Cow::Owned)
    }

    pub(super) fn is_known(&self, name: &str) -> bool {
        let table = self.table.lock();
        table.records.contains_key(name) || table.loading.contains_key(name) || self.pool().lease(name).is_ok()
    }

    pub(super) fn name_of_folder(&self, name: &str) -> Result<String> {
        let folder = self.folder(name, &Wanted::Name)?;
        Ok(self.dir.as_ref().and_then(|dir| dir.name_of(&folder)).unwrap_or_else(|| name.to_owned()))
    }

    /// The name that llama.cpp's clients know by this number.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub(super) fn name_of(&self, id: usize) -> Result<String> {
        let table = self.table.lock();
        table.ids.get(id).cloned().ok_or_else(|| {
            let all = table.ids.len();
            Error::new(ErrorCode::AdapterNotFound, format!("no adapter has the id {id}"))
                .with_found(format!("{all} ids"))
                .with_hint("GET /lora-adapters lists the ids, or name the adapter by its name")
        })
    }

    /// The names of adapters that can be loaded. Reads the folder.
    pub(super) async fn available(self: &Arc<Self>) -> Vec<String> {
        self.blocking(|this| Ok(this.dir.iter().flat_map(AdaptersDir::names).collect())).await.unwrap_or_default()
    }

    /// The name of the adapter that a name means, whether it is loaded or not; `None` if there is none.
    pub(super) async fn find(self: &Arc<Self>, name: &str) -> Option<String> {
        if self.is_known(name) {
            return Some(name.to_owned());
        }
        let owned = name.to_owned();
        self.blocking(move |this| Ok(this.dir.as_ref().and_then(|dir| dir.adapter_at(&owned)))).await.ok().flatten()
    }

    /// At most `most` of the names that can be named, sorted, and those of them that are closest to a name that cannot. Reads the
    /// folder.
    pub(super) async fn known_names(self: &Arc<Self>, name: &str, most: usize) -> KnownNames {
        let owned = name.to_owned();
        let names = self.blocking(move |this| {
            let loaded: Vec<String> = this.pool().list().into_iter().map(|info| info.name).collect();
            let mut close: Vec<String> =
                this.dir.iter().flat_map(|dir| dir.close_names(&owned, MAX_CLOSE_NAMES)).collect();
            close.extend(closest(&owned, loaded.iter().map(String::as_str)).into_iter().map(str::to_owned));
            let mut all: Vec<String> = this.dir.iter().flat_map(|dir| dir.names().take(most)).chain(loaded).collect();
            all.sort();
            all.dedup();
            all.truncate(most);
            Ok(KnownNames { all, close })
        });
        names.await.unwrap_or_default()
    }
}
