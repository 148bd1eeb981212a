//! Which adapters a request uses.

mod fields;
mod residency;
mod routes;

pub use self::fields::AdapterFields;
pub use self::residency::{Adapters, Selection};
pub use self::routes::routes;
