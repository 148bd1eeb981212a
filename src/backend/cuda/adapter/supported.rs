//! What an adapter may change that this backend does not compute yet: refused by name when the adapter is loaded.

use crate::backend::sorted_deltas::Sorted;
use crate::error::{Error, ErrorCode, Result};

/// Refuses an adapter that changes what the kernels would not see.
///
/// # Errors
/// `adapter_feature_unsupported`.
pub(super) fn check_supported(sorted: &Sorted<'_>) -> Result<()> {
    if !sorted.tables.is_empty() {
        return Err(refusal("a delta of the embedding"));
    }
    if !sorted.norms.is_empty() {
        return Err(refusal("a replaced norm"));
    }
    Ok(())
}

fn refusal(what: &str) -> Error {
    Error::new(
        ErrorCode::AdapterFeatureUnsupported,
        format!("the adapter needs {what}, which is not supported on CUDA"),
    )
    .with_hint("load the model with device=\"cpu\"")
}
