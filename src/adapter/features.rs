//! PEFT's features beside plain low-rank factors, each named once for every message that refuses one.

use std::fmt;

use crate::error::{Error, ErrorCode};

/// Something an adapter may ask for, by its config or by a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// A magnitude vector rescales each output.
    Dora,
    /// B has a bias of its own.
    LoraBias,
    /// Biases of the base were trained.
    Bias,
    /// Whole weights of the base are replaced.
    ModulesToSave,
    /// A copy of a base weight lies in the file.
    BaseWeight,
    /// Low-rank factors on an embedding.
    Embedding,
    /// Single rows of an embedding are replaced.
    TrainableTokens,
    /// An adapter on a tied embedding acts on the head too.
    WeightTying,
    /// Layers stand several times in the stack.
    LayerReplication,
    /// Factors on parameters that are no linears, such as stacked experts.
    TargetParameters,
    /// The adapter acts only from an invocation on.
    ActivatedLora,
    /// The input is pooled before A.
    QaLora,
    /// A or B is block-diagonal.
    BdLora,
    /// The base is truncated, and a diagonal stands between A and B.
    Kasa,
    /// A router over other adapters.
    Arrow,
    /// A head of another task than text generation.
    TaskHead,
    /// An initialisation that is not known, and may have changed the base.
    Initialisation,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feature::Dora => "DoRA (use_dora)",
            Feature::LoraBias => "a bias of B (lora_bias)",
            Feature::Bias => "trained base biases (bias)",
            Feature::ModulesToSave => "replaced weights (modules_to_save)",
            Feature::BaseWeight => "a base weight stored in the adapter (save_embedding_layers)",
            Feature::Embedding => "LoRA on an embedding",
            Feature::TrainableTokens => "replaced embedding rows (trainable_token_indices)",
            Feature::WeightTying => "tied adapters (ensure_weight_tying)",
            Feature::LayerReplication => "repeated layers (layer_replication)",
            Feature::TargetParameters => "LoRA on parameters (target_parameters)",
            Feature::ActivatedLora => "activated LoRA (alora_invocation_tokens)",
            Feature::QaLora => "QA-LoRA (use_qalora)",
            Feature::BdLora => "block-diagonal LoRA (use_bdlora)",
            Feature::Kasa => "KaSA (kasa_config)",
            Feature::Arrow => "Arrow routing (arrow_config)",
            Feature::TaskHead => "another task than text generation (task_type)",
            Feature::Initialisation => "an unknown initialisation (init_lora_weights)",
        })
    }
}

impl Feature {
    /// The refusal of an adapter that needs it.
    pub(super) fn refusal(self) -> Error {
        Error::new(ErrorCode::AdapterFeatureUnsupported, format!("the adapter needs {self}, which is not served"))
    }
}
