//! From the fields of a request to leases on its adapters.

use std::sync::Arc;

use parking_lot::Mutex;

use super::fields::{AdapterFields, AdapterKey, MixtureField};
use super::paths::AdaptersDir;
use super::residency::{Residency, Status};
use crate::adapter::mixture::Mixture;
use crate::adapter::pool::AdapterLease;
use crate::engine::{AdapterRef, Engine};
use crate::error::{Error, ErrorCode, Result};
use crate::server::metrics::Metrics;
use crate::server::options::ServeOptions;

/// The base model's name in every server.
const BASE: &str = "base";

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
        options.pinned_adapters.iter().try_for_each(|name| adapters.residency.load_pinned(name))?;
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
        let lease = self.residency.lease(model).await;
        let Some(name) = self.behind_base_name(model) else { return lease };
        match lease {
            Err(error) if error.code() == ErrorCode::AdapterNotFound => self.residency.lease(name).await,
            lease => lease,
        }
    }

    fn behind_base_name<'a>(&self, model: &'a str) -> Option<&'a str> {
        let after = |base: &str| model.strip_prefix(base)?.strip_prefix(':');
        let name = self.base_names().find_map(after)?;
        Some(name.strip_prefix(':').unwrap_or(name)).filter(|name| !name.is_empty())
    }

    async fn lease_mixture(&self, MixtureField(parts): &MixtureField) -> Result<Vec<(AdapterRef, f32)>> {
        Mixture::check_length(parts.len())?;
        let mut leases = Vec::with_capacity(parts.len());
        for (key, weight) in parts {
            let name = match key {
                AdapterKey::Name(name) => name.clone(),
                AdapterKey::Id(id) => self.residency.name_of(*id)?,
            };
            leases.push((AdapterRef::Lease(self.residency.lease(&name).await?), *weight));
        }
        Ok(leases)
    }

    /// The names of adapters that can be loaded. Reads the folder.
    pub(super) async fn available(&self) -> Vec<String> {
        // A folder that has a name of the base cannot be named.
        self.residency.available().await.into_iter().filter(|name| !self.is_base(name)).collect()
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

    /// Checks that an adapter may have a name, which is none of the base's.
    ///
    /// # Errors
    /// `adapter_name_invalid`.
    pub(super) fn check_name(&self, name: &str) -> Result<()> {
        if !self.is_base(name) {
            return Ok(());
        }
        Err(Error::new(ErrorCode::AdapterNameInvalid, format!("'{name}' is a name of the base model"))
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
