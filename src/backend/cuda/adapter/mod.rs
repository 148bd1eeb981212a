//! Adapters on the device: what a slot holds, put together on the host and copied there while steps go on.

mod embedding;
mod factors;
mod low_rank;
mod norm_terms;
mod prepare;
mod resident;
mod slot_array;
mod stack;

pub(super) use self::prepare::prepare;
pub(super) use self::resident::Adapter;
