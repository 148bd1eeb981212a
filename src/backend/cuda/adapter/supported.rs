//! What an adapter may change that this backend does not compute yet: refused by name when the adapter is loaded.

use crate::adapter::delta::SiteDelta;
use crate::backend::sorted_deltas::{PlacedSite, SitePlace, Sorted};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteId;

/// Refuses an adapter that changes what the kernels would not see.
///
/// # Errors
/// `adapter_feature_unsupported`.
pub(super) fn check_supported(sorted: &Sorted<'_>, find: impl Fn(SiteId) -> Option<PlacedSite>) -> Result<()> {
    if !sorted.tables.is_empty() {
        return Err(refusal("a delta of the embedding"));
    }
    if !sorted.norms.is_empty() {
        return Err(refusal("a replaced norm"));
    }
    sorted.groups.values().flatten().try_for_each(|(_, delta)| check_linear(delta, &find))
}

fn check_linear(delta: &SiteDelta<'_>, find: impl Fn(SiteId) -> Option<PlacedSite>) -> Result<()> {
    if delta.rows.is_some() {
        return Err(refusal("replaced rows of a weight"));
    }
    if delta.removed.is_some() {
        return Err(refusal("a truncated weight (KaSA)"));
    }
    let is_linear = |site: &PlacedSite| matches!(site.place, SitePlace::Linear { .. });
    let outputs = find(delta.site).filter(is_linear).map(|site| site.shape[0]);
    match &delta.weight {
        Some(weight) if outputs != Some(weight.shape()[0]) => Err(refusal("a head with more outputs than the base's")),
        _ => Ok(()),
    }
}

fn refusal(what: &str) -> Error {
    Error::new(
        ErrorCode::AdapterFeatureUnsupported,
        format!("the adapter needs {what}, which is not supported on CUDA"),
    )
    .with_hint("load the model with device=\"cpu\"")
}
