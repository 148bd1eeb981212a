//! Fields that exclude each other in PEFT, which refuses such a config before it reads any tensor.
//!
//! Source: PEFT 0.21.2, `LoraConfig.__post_init__` and `lora.Linear.lora_variants`. A grid of all pairs of features is compared
//! with PEFT in `tests/python/test_peft_pairs.py`.

use super::readers::Draft;
use crate::error::{Error, ErrorCode};

impl Draft {
    /// PEFT's LoRA variants, and whether each is on. PEFT computes one at a time.
    fn variants(&self) -> [(&'static str, bool); 7] {
        let (config, noted) = (&self.config, |field| self.noted.contains(&field));
        [
            ("use_dora", config.use_dora),
            ("use_bdlora", config.blocks.is_some()),
            ("alora_invocation_tokens", !config.invocation.is_empty()),
            ("kasa_config", config.uses_kasa),
            ("velora_config", noted("velora_config")),
            ("monteclora_config", noted("monteclora_config")),
            ("init_lora_weights = \"mica\"", self.init.as_deref() == Some("mica")),
        ]
    }

    /// The variant that is on.
    pub(super) fn variant(&self) -> Option<&'static str> {
        self.variants().into_iter().find(|(_, on)| *on).map(|(name, _)| name)
    }

    /// Reports the fields that exclude each other.
    pub(super) fn check_exclusions(&self, mut report: impl FnMut(Error)) {
        let invalid = |what: String| Error::new(ErrorCode::AdapterConfigInvalid, what);
        let mut on = self.variants().into_iter().filter(|(_, on)| *on).map(|(name, _)| name);
        if let Some(first) = on.next() {
            on.for_each(|other| report(invalid(format!("{first} and {other} exclude each other, as in PEFT"))));
        }
        let targets_are_text = self.config.targeting.targets_are_text();
        let pairs = [
            ("use_dora", self.config.use_dora, "lora_bias", self.config.lora_bias),
            ("use_dora", self.config.use_dora, "megatron_config", self.noted.contains(&"megatron_config")),
            ("lora_bias", self.config.lora_bias, "a name in init_lora_weights", self.init.is_some()),
            ("a text in target_modules", targets_are_text, "layers_to_transform", self.layers.is_some()),
            ("a text in target_modules", targets_are_text, "layers_pattern", self.layer_names.is_some()),
        ];
        for (first, first_on, second, second_on) in pairs {
            if first_on && second_on {
                report(invalid(format!("{first} and {second} exclude each other, as in PEFT")));
            }
        }
        let is_pattern_given = self.layer_names.as_ref().is_some_and(|names| !names.is_empty());
        if is_pattern_given && self.layers.is_none() && !self.config.is_broken("layers_to_transform") {
            report(invalid("layers_pattern needs layers_to_transform, as in PEFT".to_owned()));
        }
    }
}
