//! From the fields of a request to leases on its adapters.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::fields::{AdapterFields, AdapterKey, MixtureField};
use super::paths::AdaptersDir;
use super::residency::{Residency, Status};
use crate::adapter::mixture::Mixture;
use crate::adapter::pool::{AdapterInfo, AdapterLease};
use crate::engine::{AdapterRef, Engine};
use crate::error::{Error, ErrorCode, Result};
use crate::request_settings::did_you_mean;
use crate::server::metrics::Metrics;
use crate::server::options::ServeOptions;

/// The base model's name in every server.
const BASE: &str = "base";

/// Most names that an error lists.
const MAX_LISTED_NAMES: usize = 16;

/// The adapters that requests may name.
pub struct Adapters {
    pub(super) residency: Arc<Residency>,
    /// What clients may call the base model besides `base`.
    base_names: Vec<String>,
    /// Names and weights of the mixture of requests that name the base and no mixture.
    default_mixture: Mutex<Vec<(String, f32)>>,
}

/// The adapters of a request.
pub struct Selection {
    /// The mixture, leased; empty for the base.
    pub adapters: Vec<(AdapterRef, f32)>,
    /// What the response calls the model.
    pub model: String,
}

impl Selection {
    /// What its requests are counted under: an adapter's name, `base`, or `mixture`.
    pub fn label(&self) -> String {
        match &self.adapters[..] {
            [] => BASE.to_owned(),
            [(adapter, _)] => adapter.label(),
            _ => "mixture".to_owned(),
        }
    }
}

impl Adapters {
    /// The adapters of an engine. Those that are resident now stay; those that are to be pinned are loaded.
    ///
    /// # Errors
    /// `io_failed`: the folder of adapters cannot be opened. `adapter_name_invalid`: an adapter has a name of the base. For
    /// pinned adapters, those that loading an adapter has.
    pub fn new(engine: &Engine, options: &ServeOptions, metrics: &Metrics) -> Result<Self> {
        let dir = options.adapters_dir.as_deref().map(AdaptersDir::open).transpose()?;
        let residency = Residency::new(engine.clone(), dir, options.max_adapter_loads, metrics.clone());
        let adapters = Self {
            residency: Arc::new(residency),
            base_names: options.served_model_names.clone(),
            default_mixture: Mutex::default(),
        };
        let resident = engine.adapters().into_iter().map(|info| info.name);
        resident.chain(options.pinned_adapters.iter().cloned()).try_for_each(|name| adapters.check_name(&name))?;
        let pinned = |error: Error| error.with_subject("a pinned adapter");
        options.pinned_adapters.iter().try_for_each(|name| adapters.residency.load_pinned(name).map_err(pinned))?;
        Ok(adapters)
    }

    /// The adapters that a request names, leased: those that are not resident are loaded.
    ///
    /// # Errors
    /// `adapter_not_found`; `request_invalid` for fields that contradict each other; `adapter_budget_exceeded`; any other that
    /// loading an adapter has.
    pub async fn select(&self, fields: &AdapterFields) -> Result<Selection> {
        let named = fields.model.as_deref().filter(|name| !self.is_base(name));
        let mixture = match (&fields.adapters, &fields.lora) {
            (Some(_), Some(_)) => return Err(contradicting("the fields adapters and lora both name a mixture")),
            (adapters, lora) => adapters.as_ref().or(lora.as_ref()),
        };
        let adapters = match (named, mixture) {
            (Some(name), Some(_)) => {
                let what = format!("the model '{name}' is an adapter, and another field names a mixture");
                return Err(contradicting(&what));
            }
            (Some(name), None) => vec![(AdapterRef::Lease(self.lease_model(name).await?), 1.0)],
            (None, Some(mixture)) => self.lease_mixture(mixture).await?,
            (None, None) => {
                let parts = self.default_mixture().into_iter();
                let parts = parts.map(|(name, weight)| (AdapterKey::Name(name), weight)).collect();
                self.lease_mixture(&MixtureField(parts)).await?
            }
        };
        let model = fields.model.as_deref().unwrap_or(self.base_name());
        Ok(Selection { adapters, model: model.to_owned() })
    }

    /// A lease on the adapter that a request calls its model: `sql`, or `base:sql` and `base::sql`, with any of the base's names.
    async fn lease_model(&self, model: &str) -> Result<AdapterLease> {
        self.lease(self.behind_base_name(model).unwrap_or(model)).await
    }

    /// A lease on the adapter of that name, which is loaded if need be.
    ///
    /// # Errors
    /// `adapter_not_found`, which says what can be named instead; those that loading an adapter has.
    pub(super) async fn lease(&self, name: &str) -> Result<AdapterLease> {
        // A folder whose name is read otherwise cannot be named.
        if self.check_name(name).is_err() {
            return Err(self.not_found(name).await);
        }
        match self.residency.lease(name).await {
            Err(error) if error.code() == ErrorCode::AdapterNotFound => Err(self.not_found(name).await),
            lease => lease,
        }
    }

    /// What follows the longest of the base's names in `base:sql` or `base::sql`; `None` if no such name, or nothing behind it.
    fn behind_base_name<'a>(&self, model: &'a str) -> Option<&'a str> {
        let after = |base: &str| model.strip_prefix(base)?.strip_prefix(':');
        let name = self.base_names().filter_map(after).min_by_key(|name| name.len())?;
        Some(name.strip_prefix(':').unwrap_or(name)).filter(|name| !name.is_empty())
    }

    async fn lease_mixture(&self, MixtureField(parts): &MixtureField) -> Result<Vec<(AdapterRef, f32)>> {
        Mixture::check_length(parts.len())?;
        self.check_fits(parts)?;
        let mut leases: Vec<(AdapterRef, f32)> = Vec::with_capacity(parts.len());
        for (key, weight) in parts {
            // What a list names twice is one version, on which the request has one lease.
            let known = parts[..leases.len()].iter().position(|(other, _)| other == key);
            let adapter = match (known, key) {
                (Some(index), _) => leases[index].0.clone(),
                (None, AdapterKey::Name(name)) => AdapterRef::Lease(self.lease(name).await?),
                (None, AdapterKey::Id(id)) => AdapterRef::Lease(self.lease(&self.residency.name_of(*id)?).await?),
            };
            leases.push((adapter, *weight));
        }
        Ok(leases)
    }

    /// Refuses a mixture of more adapters than are ever loaded at once, for which there would be no room however long it waited.
    fn check_fits(&self, parts: &[(AdapterKey, f32)]) -> Result<()> {
        let is_first = |(i, (key, _)): &(usize, &(AdapterKey, f32))| parts[..*i].iter().all(|(other, _)| other != key);
        let (distinct, most) = (parts.iter().enumerate().filter(is_first).count(), self.residency.pool().limits());
        if distinct <= most.max_adapters {
            return Ok(());
        }
        Err(Error::new(ErrorCode::AdapterMixtureInvalid, "the mixture has more adapters than may be loaded at once")
            .with_expected(format!("at most {}", most.max_adapters))
            .with_found(distinct)
            .with_hint("start the server with a larger --max-adapters"))
    }

    /// The error for a name that no adapter has: the names that there are, the closest ones, and those of the base.
    pub async fn not_found(&self, name: &str) -> Error {
        // One more than is listed, to say that there are more.
        let known = self.residency.known_names(name, MAX_LISTED_NAMES + 1).await;
        let quoted = |name: &str| format!("'{name}'");
        let listed = known.all.iter().take(MAX_LISTED_NAMES).map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let found = match known.all.len() {
            0 => "no adapters".to_owned(),
            all if all > MAX_LISTED_NAMES => format!("{listed} and more"),
            _ => listed,
        };
        let known = known.close.iter().map(String::as_str).chain(self.base_names());
        let what = match self.is_base(name) {
            true => format!("'{name}' is the base model and no adapter"),
            false => format!("there is no adapter named '{name}'{}", did_you_mean(name, known)),
        };
        let bases = self.listed_base_names().iter().map(|name| quoted(name)).collect::<Vec<_>>().join(" or ");
        Error::new(ErrorCode::AdapterNotFound, what)
            .with_found(found)
            .with_hint(format!("the base model is {bases}; GET /v1/models lists all names"))
    }

    /// The names that a request may have as its model, with what is known of those that are in memory. Reads the folder.
    pub async fn listed(&self) -> BTreeMap<String, Option<AdapterInfo>> {
        let mut listed: BTreeMap<_, _> = self.available().await.into_iter().map(|name| (name, None)).collect();
        // One that the program itself has loaded and unloaded has no folder any more.
        let loadable = self.statuses().into_iter().filter(|status| status.folder.is_some());
        listed.extend(loadable.map(|status| (status.name, status.info)));
        listed
    }

    /// The name of the adapter that a name means, whether it is listed or not; `None` if there is none.
    pub async fn find(&self, name: &str) -> Option<String> {
        let name = self.behind_base_name(name).unwrap_or(name);
        if self.check_name(name).is_ok() { self.residency.find(name).await } else { None }
    }

    /// The names of adapters that can be loaded. Reads the folder.
    pub(super) async fn available(&self) -> Vec<String> {
        // A folder that has a name of the base, or begins with one and a colon, cannot be named.
        let names = self.residency.available().await.into_iter();
        let mut names: Vec<String> = names.filter(|name| self.check_name(name).is_ok()).collect();
        names.sort();
        names
    }

    /// All adapters that have been loaded, in that order.
    pub fn statuses(&self) -> Vec<Status> {
        self.residency.statuses()
    }

    /// Names and weights that requests for the base get, unless they name a mixture, be it an empty one.
    pub(super) fn default_mixture(&self) -> Vec<(String, f32)> {
        self.default_mixture.lock().clone()
    }

    pub(super) fn set_default_mixture(&self, mixture: Vec<(String, f32)>) {
        *self.default_mixture.lock() = mixture;
    }

    /// The base's name in responses.
    fn base_name(&self) -> &str {
        self.base_names.first().map_or(BASE, String::as_str)
    }

    fn base_names(&self) -> impl Iterator<Item = &str> {
        self.base_names.iter().map(String::as_str).chain([BASE])
    }

    /// All names of the base model, each once: the one in responses first, `base` last.
    pub fn listed_base_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.base_names() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Checks that an adapter may have a name: it is none of the base's, and none that is read as one of these and an adapter.
    ///
    /// # Errors
    /// `adapter_name_invalid`.
    pub(super) fn check_name(&self, name: &str) -> Result<()> {
        let begins_with = |base: &&str| name.strip_prefix(base).is_some_and(|rest| rest.starts_with(':'));
        let what = match self.base_names().find(begins_with) {
            _ if self.is_base(name) => format!("'{name}' is a name of the base model"),
            Some(base) => format!("'{name}' would be read as the base model '{base}' and an adapter"),
            None => return Ok(()),
        };
        Err(Error::new(ErrorCode::AdapterNameInvalid, what)
            .with_hint("give the adapter another name, or the base with --served-model-name"))
    }

    /// Whether clients call the base model so.
    fn is_base(&self, name: &str) -> bool {
        self.base_names().any(|base| base == name)
    }
}

fn contradicting(what: &str) -> Error {
    Error::new(ErrorCode::RequestInvalid, what).with_hint("name the adapters in one field")
}
