//! Which adapters a request uses, which are resident, and the routes that load and unload them.

mod compat_routes;
mod fields;
mod fingerprint;
mod names;
mod paths;
mod record;
mod residency;
mod routes;
mod selection;
#[cfg(test)]
mod tests;

pub use self::compat_routes::Document as CompatDocument;
pub use self::fields::AdapterFields;
pub use self::routes::{Document, routes};
pub use self::selection::{Adapters, Selection};
