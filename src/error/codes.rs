//! The catalog of error codes: stable spelling, category, meaning, and the usual remedy of each.

/// The category of an error code; Python maps it to a builtin exception class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something named does not exist: a file, a loaded adapter.
    NotFound,
    /// A value, a file or a request is wrong.
    Invalid,
    /// The input is well-formed, but this build does not support it.
    Unsupported,
    /// A budget or the machine's memory is exhausted.
    Memory,
    /// The caller stopped the work.
    Cancelled,
    /// Reading or writing failed in the operating system.
    Io,
    /// A bug in this crate.
    Internal,
}

impl ErrorKind {
    /// The snake_case spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not_found",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Memory => "memory",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Io => "io",
            ErrorKind::Internal => "internal",
        }
    }
}

macro_rules! catalog {
    ($($(#[doc = $summary:literal])+ $variant:ident = $code:literal, $kind:ident, $remedy:literal;)+) => {
        /// Stable identity of an error; scripts match on [`ErrorCode::as_str`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $summary])+ $variant,)+
        }

        impl ErrorCode {
            /// Every code, in catalog order.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)+];

            /// The stable snake_case spelling.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $code,)+ }
            }

            /// The category of the error.
            pub fn kind(self) -> ErrorKind {
                match self { $(ErrorCode::$variant => ErrorKind::$kind,)+ }
            }

            /// What the code means, in one sentence.
            pub fn summary(self) -> &'static str {
                match self { $(ErrorCode::$variant => concat!($($summary),+).trim_ascii(),)+ }
            }

            /// What usually helps: the hint of errors that have no hint of their own. Empty where only the message can tell, which
            /// names what is wrong and what was expected.
            pub fn remedy(self) -> &'static str {
                match self { $(ErrorCode::$variant => $remedy,)+ }
            }
        }
    };
}

catalog! {
    /// The model folder or one of its files does not exist.
    CheckpointNotFound = "checkpoint_not_found", NotFound, "check the path; a model folder holds config.json and *.safetensors";
    /// A checkpoint file could not be read.
    CheckpointUnreadable = "checkpoint_unreadable", Invalid, "check permissions, and that the path is a regular file";
    /// A safetensors file ends before the data that its header describes.
    CheckpointTruncated = "checkpoint_truncated", Invalid, "download the file again";
    /// A safetensors header is not valid.
    CheckpointHeaderInvalid = "checkpoint_header_invalid", Invalid, "the file is damaged or is not safetensors; save it again";
    /// A safetensors header, or its number of tensors, exceeds the limit.
    CheckpointTooLarge = "checkpoint_too_large", Invalid, "no real model is this large; the file is damaged or malicious";
    /// The shard index does not match the files in its folder.
    CheckpointIndexInvalid = "checkpoint_index_invalid", Invalid, "save the checkpoint again, or remove a stale index";
    /// A tensor appears in two shards.
    CheckpointTensorDuplicate = "checkpoint_tensor_duplicate", Invalid, "remove the stale file";
    /// A tensor that the model needs is not in the checkpoint.
    CheckpointTensorMissing = "checkpoint_tensor_missing", Invalid, "the checkpoint is incomplete, or config.json belongs to a different model";
    /// The shape of a tensor in the checkpoint contradicts config.json.
    CheckpointShapeMismatch = "checkpoint_shape_mismatch", Invalid, "config.json and the weights belong to different models";
    /// A tensor of the checkpoint has an unsupported data type.
    CheckpointDtypeUnsupported = "checkpoint_dtype_unsupported", Unsupported, "convert it to float16, bfloat16 or float32";
    /// The quantization format is not supported.
    QuantFormatUnsupported = "quant_format_unsupported", Unsupported, "use a GPTQ (gptq, gptq_v2), EXL2 or unquantized checkpoint";
    /// The quantization config is malformed.
    QuantConfigInvalid = "quant_config_invalid", Invalid, "quantize the model again, or fix quantize_config.json";
    /// The shape of a quantized tensor contradicts its bits or group size.
    QuantShapeMismatch = "quant_shape_mismatch", Invalid, "the quantization config belongs to a different model";
    /// A quantized tensor contains an impossible value.
    QuantValueInvalid = "quant_value_invalid", Invalid, "the file is damaged; quantize the model again";
    /// config.json is missing, malformed or contradictory.
    ModelConfigInvalid = "model_config_invalid", Invalid, "use the config.json that came with the weights";
    /// The model's architecture is not supported.
    ModelArchitectureUnsupported = "model_architecture_unsupported", Unsupported, "see the supported models in the README";
    /// The architecture is supported, but one of its options is not.
    ModelFeatureUnsupported = "model_feature_unsupported", Unsupported, "see the supported models in the README";
    /// The adapter's folder or its adapter_config.json does not exist.
    AdapterConfigNotFound = "adapter_config_not_found", NotFound, "give the folder that contains adapter_config.json";
    /// adapter_config.json is malformed.
    AdapterConfigInvalid = "adapter_config_invalid", Invalid, "save the adapter again with PEFT";
    /// The adapter's PEFT type is not LoRA.
    AdapterTypeUnsupported = "adapter_type_unsupported", Unsupported, "only LoRA adapters are supported";
    /// The adapter uses a PEFT feature that is not supported.
    AdapterFeatureUnsupported = "adapter_feature_unsupported", Unsupported, "see docs/peft.md for the supported PEFT features";
    /// The adapter's initialization changed the base weights it was trained on.
    AdapterBaseChanged = "adapter_base_changed", Unsupported, "convert it: save it with path_initial_model_for_weight_conversion";
    /// The folder has no adapter_model.safetensors.
    AdapterWeightsNotFound = "adapter_weights_not_found", NotFound, "save the adapter as safetensors (PEFT's default)";
    /// The adapter's weights are in an unsupported file format.
    AdapterFormatUnsupported = "adapter_format_unsupported", Unsupported, "convert the weights to PEFT's adapter_model.safetensors";
    /// The adapter contains a tensor that is not recognized.
    AdapterTensorUnexpected = "adapter_tensor_unexpected", Invalid, "the file was written by a different tool, or for a different model";
    /// A tensor that adapter_config.json or another tensor requires is missing.
    AdapterTensorMissing = "adapter_tensor_missing", Invalid, "the file is incomplete; save the adapter again";
    /// The adapter targets a module that the base model does not have.
    AdapterSiteNotFound = "adapter_site_not_found", Invalid, "the adapter was trained on a different base model";
    /// The file has tensors for a module that adapter_config.json excludes.
    AdapterSiteExcluded = "adapter_site_excluded", Invalid, "adapter_config.json and the weights come from different training runs";
    /// The shape of an adapter tensor does not match the base model.
    AdapterShapeMismatch = "adapter_shape_mismatch", Invalid, "the adapter was trained on a different base model";
    /// The rank of an adapter tensor contradicts adapter_config.json.
    AdapterRankMismatch = "adapter_rank_mismatch", Invalid, "adapter_config.json and the weights come from different training runs";
    /// An adapter tensor has an unsupported data type.
    AdapterDtypeUnsupported = "adapter_dtype_unsupported", Unsupported, "convert it to float16, bfloat16 or float32";
    /// An adapter tensor contains NaN or infinite values.
    AdapterNotFinite = "adapter_not_finite", Invalid, "training diverged; use an earlier checkpoint";
    /// The adapter's alpha and rank give no finite scale.
    AdapterScaleInvalid = "adapter_scale_invalid", Invalid, "fix lora_alpha or alpha_pattern in adapter_config.json";
    /// A pattern in adapter_config.json is not a valid regular expression, or is too expensive to match.
    AdapterPatternInvalid = "adapter_pattern_invalid", Invalid, "fix the pattern in adapter_config.json";
    /// No adapter is loaded under this name.
    AdapterNotFound = "adapter_not_found", NotFound, "load the adapter first; use None for the base model";
    /// An adapter's name is empty or contains unprintable characters.
    AdapterNameInvalid = "adapter_name_invalid", Invalid, "choose a non-empty name of printable characters";
    /// The adapter exceeds the memory or slot budget for adapters.
    AdapterBudgetExceeded = "adapter_budget_exceeded", Memory, "unload another adapter or raise the budget";
    /// An adapter's name has another generation than the request expects.
    AdapterGenerationMismatch = "adapter_generation_mismatch", Invalid, "look at the adapter again, and send the generation that it has now";
    /// A client's path leads out of the server's folder of adapters, or to something that is no folder.
    AdapterPathRefused = "adapter_path_refused", Invalid, "give the path of a folder below --adapters-dir";
    /// An adapter's weight in a mixture is not finite, or is not 1 although the adapter replaces weights, biases or embedding rows.
    AdapterWeightInvalid = "adapter_weight_invalid", Invalid, "use a finite weight, and 1 for an adapter that replaces parts of the model";
    /// A mixture has too many adapters, or two that replace the same part of the model or run its layers in different orders.
    AdapterMixtureInvalid = "adapter_mixture_invalid", Invalid, "use them in separate requests";
    /// The adapter was loaded on a different model object.
    AdapterModelMismatch = "adapter_model_mismatch", Invalid, "load the adapter on the model that runs the request";
    /// The draft model's tokens are not those of the model.
    DraftModelMismatch = "draft_model_mismatch", Invalid, "use a draft model with the same tokenizer, as of the same family";
    /// The request needs a tokenizer, but the model folder has no tokenizer.json.
    TokenizerNotFound = "tokenizer_not_found", NotFound, "add tokenizer.json, or pass token ids";
    /// tokenizer.json or tokenizer_config.json is malformed.
    TokenizerInvalid = "tokenizer_invalid", Invalid, "use the files that came with the model";
    /// The model has no chat template.
    ChatTemplateNotFound = "chat_template_not_found", NotFound, "pass text, or add chat_template to tokenizer_config.json";
    /// The chat template rejected the messages.
    ChatTemplateFailed = "chat_template_failed", Invalid, "check the roles and the order of the messages";
    /// A request or option is invalid.
    RequestInvalid = "request_invalid", Invalid, "";
    /// The prompt has no tokens.
    PromptEmpty = "prompt_empty", Invalid, "give at least one token";
    /// The prompt exceeds the model's context length or the KV cache.
    PromptTooLong = "prompt_too_long", Invalid, "shorten the prompt, or raise the limit that the message names";
    /// Vectors in place of token ids have another width than the model, or values that are no numbers.
    PromptEmbedsInvalid = "prompt_embeds_invalid", Invalid, "give finite floats [tokens, hidden_size], as the model's own embedding layer returns them";
    /// A token id is outside the vocabulary.
    TokenOutOfRange = "token_out_of_range", Invalid, "use the model's own tokenizer";
    /// A sampling setting is out of range.
    SamplingInvalid = "sampling_invalid", Invalid, "";
    /// A grammar of a request cannot be understood, is not supported, or is too expensive.
    ConstraintInvalid = "constraint_invalid", Invalid, "see docs/structured-output.md for what a grammar may contain";
    /// A grammar or filter of a request allows no token, or failed while the text was generated.
    ConstraintFailed = "constraint_failed", Invalid, "allow more: a wider grammar, fewer filters, or none";
    /// A hook of a request raised an exception.
    HookFailed = "hook_failed", Invalid, "correct the hook: the exception is its own";
    /// The logits are not finite, so no token can be sampled.
    LogitsNotFinite = "logits_not_finite", Invalid, "use smaller adapter weights; if that does not help, the base model or an adapter is damaged";
    /// A setting of exllamav2 that exlora does not support.
    SettingUnsupported = "setting_unsupported", Unsupported, "leave the setting at its default";
    /// The model is not loaded, or was unloaded.
    ModelNotLoaded = "model_not_loaded", Invalid, "call load() or load_autosplit() first";
    /// The process was forked while another thread used the engine, whose state the child cannot continue.
    ForkedWhileInUse = "forked_while_in_use", Invalid, "load the engine in the child, or fork while no request runs";
    /// A key or value is beyond the range of the KV cache's element type.
    KvOverflow = "kv_overflow", Invalid, "store keys and values in float32: kv_dtype=\"f32\"";
    /// An activation is beyond the range of float16, in which the device computes.
    ActivationOverflow = "activation_overflow", Invalid, "use device=\"cpu\", which computes in float32";
    /// The caller interrupted the work.
    Interrupted = "interrupted", Cancelled, "";
    /// The device is unknown or not available.
    DeviceUnavailable = "device_unavailable", Unsupported, "use device=\"cpu\"";
    /// CUDA cannot be used: the driver, a card or the run-time compiler is missing or too old.
    CudaUnavailable = "cuda_unavailable", Unsupported, "use device=\"cpu\"; `exlora doctor` shows what is missing";
    /// A CUDA kernel could not be compiled.
    CudaCompileFailed = "cuda_compile_failed", Internal, "please report it, with the full message and the output of `exlora doctor`";
    /// A call of the CUDA driver failed, or a kernel did.
    CudaDriverFailed = "cuda_driver_failed", Internal, "start the process again; if it happens again, report it with the full message";
    /// Memory for weights, adapters or the KV cache could not be allocated.
    MemoryExhausted = "memory_exhausted", Memory, "use a smaller KV cache or model";
    /// A file or stream could not be read or written.
    IoFailed = "io_failed", Io, "check that it exists, who may use it, and the room on the disk";
    /// The server wants a key, and the request has none that it accepts.
    Unauthorized = "unauthorized", Invalid, "send the key as Authorization: Bearer KEY";
    /// The server does not allow this request, whatever key it has.
    Forbidden = "forbidden", Unsupported, "whoever runs the server decides what it allows: see `exlora serve --help`";
    /// The server has no such route, or the route has no such method.
    RouteNotFound = "route_not_found", NotFound, "see /openapi.json for the routes";
    /// The request is larger than the server allows.
    RequestTooLarge = "request_too_large", Invalid, "send less, or raise the server's limit";
    /// The request did not arrive in time.
    RequestTimeout = "request_timeout", Invalid, "send the whole body without pauses";
    /// As many requests wait as the server allows.
    QueueFull = "queue_full", Memory, "try again later";
    /// The server is being stopped.
    ServerStopping = "server_stopping", Cancelled, "";
    /// A bug in exlora.
    Internal = "internal", Internal, "please report it, with the full message";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_snake_case() {
        let mut seen = std::collections::HashSet::new();
        for &code in ErrorCode::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} appears twice");
            assert!(text.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{text}");
            assert!(!code.summary().is_empty());
        }
    }
}
