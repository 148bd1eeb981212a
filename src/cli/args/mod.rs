//! Arguments that several commands share.

mod headings;
mod mixture_arg;
mod model_args;
mod path_arg;

pub(super) use crate::request_settings::{
    RequestSettings, did_you_mean, prompt_embeds_of_json, prompt_of_json, read_json, read_json_at,
};
pub(super) use headings::INPUT_AND_OUTPUT;
pub(super) use mixture_arg::MixtureArg;
#[cfg(feature = "cuda")]
pub(super) use model_args::size;
pub(super) use model_args::{EngineArgs, ModelArgs, NamedAdapter, UseArgs};
pub(super) use path_arg::{expand_home, path};
