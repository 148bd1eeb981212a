//! Tokenizers that adapters bring along.
//!
//! Trainers save the tokenizer that they trained with beside the adapter: a copy of the base's, or one with more tokens, another
//! end token or another chat template. Requests under such an adapter use it. It is read before the adapter gets its name, and
//! is part of the adapter version, so that replacing or unloading the name changes nothing for running requests.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::tokenizer::Tokenizer;
use crate::adapter::pool::{AdapterLease, Attachment};
use crate::error::{Error, ErrorCode, Result};
use crate::model::config::generation_eos_ids;

/// The tokenizer of an adapter's folder.
pub struct AdapterTokenizer {
    /// The base's own, once it is known that both are the same.
    tokenizer: Mutex<Arc<Tokenizer>>,
    /// `eos_token_id` of the folder's generation_config.json.
    eos_ids: Vec<u32>,
}

impl AdapterTokenizer {
    /// Reads an adapter's folder; `None` where there is no tokenizer.json. What is equal to the base's is not kept twice.
    ///
    /// # Errors
    /// `tokenizer_invalid`: a file is unreadable or malformed; `model_config_invalid`: generation_config.json is.
    fn open(dir: &Path, base: Option<&Arc<Tokenizer>>) -> Result<Option<Self>> {
        let Some(mut tokenizer) = Tokenizer::open(dir)? else { return Ok(None) };
        if let Some(base) = base {
            tokenizer.share_vocabulary(base);
        }
        let this = Self {
            tokenizer: Mutex::new(Arc::new(tokenizer)),
            eos_ids: generation_eos_ids(&dir.join("generation_config.json"))?,
        };
        this.get(base);
        Ok(Some(this))
    }

    /// As [`AdapterTokenizer::open`], to be kept with the adapter version.
    ///
    /// # Errors
    /// As [`AdapterTokenizer::open`].
    pub fn attachment(dir: &Path, base: Option<&Arc<Tokenizer>>) -> Result<Option<Attachment>> {
        Ok(Self::open(dir, base)?.map(|this| Arc::new(this) as Attachment))
    }

    /// The tokenizer; the base's if it is the same.
    fn get(&self, base: Option<&Arc<Tokenizer>>) -> Arc<Tokenizer> {
        let mut tokenizer = self.tokenizer.lock();
        if let Some(base) = base
            && !Arc::ptr_eq(base, &tokenizer)
            && base.equals(&tokenizer)
        {
            *tokenizer = Arc::clone(base);
        }
        Arc::clone(&tokenizer)
    }
}

/// The tokenizer that a request uses, and the ids that end its text besides those of the model's configs.
#[derive(Default)]
pub struct RequestTokenizer {
    /// The first adapter's that has one, else the base's.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// End tokens of the adapters: of their generation_config.json, and of a tokenizer that is not the base's.
    pub eos_ids: Vec<u32>,
}

impl RequestTokenizer {
    /// The tokenizer of a request with these adapters.
    ///
    /// # Errors
    /// `adapter_mixture_invalid`: two adapters bring different tokenizers.
    pub fn new<'a>(adapters: impl Iterator<Item = &'a AdapterLease>, base: Option<&Arc<Tokenizer>>) -> Result<Self> {
        let mut first: Option<(&AdapterLease, Arc<Tokenizer>)> = None;
        let mut eos_ids = Vec::new();
        for lease in adapters {
            let Some(own) = lease.attachment::<AdapterTokenizer>() else { continue };
            eos_ids.extend(&own.eos_ids);
            let tokenizer = own.get(base);
            match &first {
                None => first = Some((lease, tokenizer)),
                Some((_, other)) if Arc::ptr_eq(other, &tokenizer) || other.equals(&tokenizer) => {}
                Some((other, _)) => {
                    let what = format!("'{}' and '{}' bring different tokenizers", other.label(), lease.label());
                    return Err(Error::new(ErrorCode::AdapterMixtureInvalid, what));
                }
            }
        }
        let own = first.map(|(_, tokenizer)| tokenizer);
        if let Some(own) = own.as_ref().filter(|own| base.is_none_or(|base| !Arc::ptr_eq(own, base))) {
            eos_ids.extend(own.eos_id());
        }
        Ok(Self { tokenizer: own.or_else(|| base.cloned()), eos_ids })
    }
}
