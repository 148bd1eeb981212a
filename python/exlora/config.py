"""`ExLlamaV2Config`: a model folder's config under exllamav2's names."""

from __future__ import annotations

from os import PathLike
from typing import Any

import exlora._exlora as _exlora
from exlora._unsupported import refuse

__all__ = ["ExLlamaV2Config", "check_max_seq_len"]


#: What of config.json a script may change before the model is loaded.
_MAY_CHANGE = (
    "max_seq_len", "bos_token_id", "eos_token_id", "pad_token_id", "rotary_embedding_base", "scale_pos_emb",
)  # fmt: skip

#: Settings of exllamav2's config that exlora has no counterpart of. They are refused where a script has set them.
_NOT_READ = ("sliding_window", "num_experts_per_token")


def check_max_seq_len(owner: str, tokens: Any) -> None:
    """Refuses a longest sequence that is none; `owner` says whose it is."""
    if not hasattr(tokens, "__index__") or tokens < 1:
        what = f"{owner}.max_seq_len is no number of tokens"
        raise _exlora.error("request_invalid", what, expected="an integer of at least 1", found=repr(tokens))


class ExLlamaV2Config:
    """The contents of config.json, and settings for using the model.

    Settings that choose among exllamav2's GPU code paths (`no_flash_attn`, `no_xformers`, `no_sdpa`, `no_graphs`,
    `max_attention_size`, `max_dq_size`, `fasttensors`) have no effect. exlora's own settings are `device`, `threads`,
    `head`, `activations` and `kv_dtype`.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    #: Attention window of each layer; None is full causal attention.
    sliding_windows: list[int | None]
    #: Rotary frequency of each pair of channels, and the factor of its cosine and sine, in the layers seeing farthest;
    #: None if no layer is rotated.
    rope_inv_freq: list[float] | None
    rope_attention_factor: float | None
    #: Rotary frequencies of each layer; None of those that are not rotated.
    layer_rope_inv_freq: list[list[float] | None]
    #: Base of the rotary frequencies, `rope_theta`.
    rotary_embedding_base: float
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    def __init__(self, model_dir: str | PathLike[str] | None = None) -> None:
        self.model_dir = model_dir
        self.max_seq_len = 2048
        self.max_batch_size = 1
        self.max_input_len = 2048
        self.max_attention_size = 2048**2
        self.max_output_len: int | None = None
        #: What positions are divided by; of a model with linear rope scaling at first its factor.
        self.scale_pos_emb = 1.0
        #: NTK scaling: the base of the rotary frequencies times this to the power of head_dim / (head_dim - 2).
        self.scale_alpha_value = 1.0
        self.no_flash_attn = False
        self.no_xformers = False
        self.no_sdpa = False
        self.no_graphs = False
        self.load_in_q4 = False
        self.fasttensors = False
        self.max_dq_size = 512 * 1024**2
        self.device = "auto"
        self.threads: int | None = None
        self.head = "stored"
        self.activations = "f32"
        self.kv_dtype = "f16"
        #: What was read.
        self._read: dict[str, Any] = {}
        if model_dir is not None:
            self.prepare()

    def prepare(self, no_tensors: bool = False) -> None:
        """Reads the folder `model_dir`. Tensors are checked when the model is loaded."""
        del no_tensors
        if self.model_dir is None:
            raise _exlora.error("model_config_invalid", "the config has no model_dir", hint="set config.model_dir")
        read = _exlora.read_model_config(self.model_dir)
        #: What ends a text: the ids of config.json in their order, then what generation_config.json adds.
        self.eos_token_ids: list[int] = read.pop("eos_token_ids")
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        scale_before = self.scale_pos_emb
        vars(self).update(read)
        if self.scale_pos_emb == 1.0:
            self.scale_pos_emb = scale_before
        self._read = {**read, "eos_token_id": self.eos_token_id}

    @property
    def arch(self) -> str:
        """The architecture's name."""
        return self.architecture

    def arch_compat_overrides(self, quiet: bool = False, warn_only: bool = False) -> None:
        """Nothing to override: what a device cannot compute is refused when the model is loaded."""

    def set_low_mem(self) -> None:
        """Sets the smaller chunks of exllamav2's low-memory mode."""
        self.max_input_len = 1024
        self.max_attention_size = 1024**2

    def check(self) -> None:
        """Refuses settings that would change the results and are not supported."""
        check_max_seq_len("config", self.max_seq_len)
        refuse("ExLlamaV2Config", load_in_q4=self.load_in_q4)
        refuse("ExLlamaV2Config", **{name: vars(self).get(name) for name in _NOT_READ})
        for name, value in self._read.items():
            if name not in _MAY_CHANGE and getattr(self, name) != value:
                raise _exlora.error(
                    "setting_unsupported",
                    f"{name} was changed after it was read, and the model computes by its config.json",
                    expected=repr(value),
                    found=repr(getattr(self, name)),
                    hint="change config.json",
                )

    def changed(self, name: str) -> Any:
        """The value of a setting if it is another one than was read, else `None`."""
        value = getattr(self, name, None)
        return None if value == self._read.get(name) else value

    @property
    def rope_overrides(self) -> dict[str, float | None]:
        """What replaces the rotary position embedding of config.json, as keywords of a native model."""
        # As in exllamav2, None and 0 are no scaling.
        alpha = self.scale_alpha_value or 1.0
        return {
            "rope_theta": self.changed("rotary_embedding_base"),
            "rope_scale": None if self.changed("scale_pos_emb") is None else self.scale_pos_emb or 1.0,
            "rope_alpha": None if alpha == 1.0 else alpha,
        }

    def __repr__(self) -> str:
        return f"ExLlamaV2Config({str(self.model_dir)!r})"
