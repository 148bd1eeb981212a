"""The types of arguments and results, for annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from exlora._exlora import ExLlamaV2Lora, PostSampling

__all__ = [
    "Adapter",
    "Adapters",
    "ContinueFinalMessage",
    "EmbedsPrompt",
    "Filter",
    "FloatArray",
    "JsonObjects",
    "JsonSchema",
    "LogitBias",
    "Message",
    "Messages",
    "OneRequestKeywords",
    "PerPrompt",
    "PostSamplingHook",
    "PostSamplingHooks",
    "Progress",
    "Prompt",
    "RequestKeywords",
    "SamplingKeywords",
    "Stop",
    "Stops",
    "TemplateKwargs",
    "Texts",
    "TokenIds",
]

T = TypeVar("T")


class Array(Protocol):
    """A numpy array, a torch tensor, or any other array with `tolist`."""

    def tolist(self) -> Any: ...


#: float32 values.
FloatArray: TypeAlias = NDArray[np.float32]

#: Token ids of one prompt.
TokenIds: TypeAlias = Sequence[int] | Array

#: One message of a chat: `role`, `content`, and anything else that the model's template uses.
Message: TypeAlias = Mapping[str, Any]

#: A chat.
Messages: TypeAlias = Sequence[Message]

#: Tools or documents for a chat template.
JsonObjects: TypeAlias = Sequence[Mapping[str, Any]]

#: A JSON schema: a dict, its text, or a class with pydantic's `model_json_schema`.
JsonSchema: TypeAlias = Mapping[str, Any] | str | type


class Filter(Protocol):
    """The caller's own code that limits the tokens of one text."""

    def begin(self, prefix: str) -> Any:
        """A text begins; `prefix` is empty."""

    def next(self) -> Any:
        """The ids that may follow (`None`: all) and, of these, those that end the text."""

    def feed(self, token: int) -> Any:
        """A token was chosen."""


#: Variables of a chat template by name.
TemplateKwargs: TypeAlias = Mapping[str, Any]

#: Whether the final message of a chat is continued, or the name of the field of it that is.
ContinueFinalMessage: TypeAlias = bool | str


class EmbedsPrompt(TypedDict):
    """A prompt of vectors in place of token ids, as vLLM takes it."""

    #: Floats [tokens, hidden_size], or a list of token ids and such arrays.
    prompt_embeds: Array | Sequence[int | Array]


#: A prompt.
Prompt: TypeAlias = str | TokenIds | Messages | EmbedsPrompt

#: One adapter or an ordered mixture; `None` is the base model.
Adapter: TypeAlias = (
    str | ExLlamaV2Lora | Mapping[str, float] | Sequence[str | ExLlamaV2Lora | tuple[str | ExLlamaV2Lora, float]] | None
)

#: The same for all prompts, or a list with one value per prompt. Written flat, so that lists in calls type-check.
Adapters: TypeAlias = (
    str
    | ExLlamaV2Lora
    | Mapping[str, float]
    | Sequence[
        str
        | ExLlamaV2Lora
        | tuple[str | ExLlamaV2Lora, float]
        | Mapping[str, float]
        | Sequence[str | ExLlamaV2Lora | tuple[str | ExLlamaV2Lora, float]]
        | None
    ]
    | None
)

#: Token ids and strings that end a text.
Stop: TypeAlias = int | str | Sequence[int | str] | None

#: The same for all prompts, or a list with one value per prompt.
Stops: TypeAlias = int | str | Sequence[int | str | Sequence[int | str] | None] | None

#: One text or several.
Texts: TypeAlias = str | Sequence[str]

#: Values added to the logits of single token ids.
LogitBias: TypeAlias = Mapping[int, float] | None

#: Called with each chosen token, which it may replace.
PostSamplingHook: TypeAlias = Callable[[PostSampling], object]

#: Called in this order.
PostSamplingHooks: TypeAlias = Sequence[PostSamplingHook]

#: One value for all prompts, or, where several prompts are given, a list with one value per prompt.
PerPrompt: TypeAlias = T | Sequence[T]


#: Where progress is shown: a bar on stderr, or a callable (done, total).
Progress: TypeAlias = bool | Callable[[int, int], object] | None


class SamplingKeywords(TypedDict, total=False):
    """The keywords of `SamplingParams`, which `generate` takes too."""

    cfg_scale: PerPrompt[float | None]
    temperature: PerPrompt[float]
    top_k: PerPrompt[int]
    top_p: PerPrompt[float]
    top_a: PerPrompt[float]
    min_p: PerPrompt[float]
    tfs: PerPrompt[float]
    typical: PerPrompt[float]
    mirostat: PerPrompt[bool]
    mirostat_tau: PerPrompt[float]
    mirostat_eta: PerPrompt[float]
    mirostat_mu: PerPrompt[float | None]
    smoothing_factor: PerPrompt[float]
    min_temp: PerPrompt[float]
    max_temp: PerPrompt[float]
    temp_exponent: PerPrompt[float]
    temperature_last: PerPrompt[bool]
    xtc_probability: PerPrompt[float]
    xtc_threshold: PerPrompt[float]
    xtc_ignore_tokens: PerPrompt[TokenIds | None]
    skew: PerPrompt[float]
    repetition_penalty: PerPrompt[float]
    repetition_range: PerPrompt[int | None]
    repetition_decay: PerPrompt[int]
    frequency_penalty: PerPrompt[float]
    presence_penalty: PerPrompt[float]
    penalize_prompt: PerPrompt[bool]
    dry_multiplier: PerPrompt[float]
    dry_base: PerPrompt[float]
    dry_allowed_length: PerPrompt[int]
    dry_max_ngram: PerPrompt[int]
    dry_range: PerPrompt[int]
    dry_sequence_breakers: PerPrompt[TokenIds | None]
    logit_bias: PerPrompt[LogitBias]
    allowed_token_ids: PerPrompt[TokenIds | None]
    seed: PerPrompt[int | None]


class RequestKeywords(SamplingKeywords, total=False):
    """The keywords of a request, for `generate` with several prompts."""

    negative_prompt: Prompt | Sequence[Prompt | None] | None
    max_new_tokens: PerPrompt[int]
    min_new_tokens: PerPrompt[int]
    stop: Stops
    banned_strings: Texts | Sequence[Sequence[str] | None] | None
    stop_at_eos: PerPrompt[bool]
    logprobs: PerPrompt[int]
    probs: PerPrompt[int]
    post_sampling_hooks: PostSamplingHooks | Sequence[PostSamplingHooks] | None
    return_logits: PerPrompt[bool]
    ngram_draft: PerPrompt[bool]
    max_ngram: PerPrompt[int]
    num_draft_tokens: PerPrompt[int | None]
    draft_adapters: Adapters
    skip_special_tokens: PerPrompt[bool]
    add_special_tokens: PerPrompt[bool]
    json_schema: PerPrompt[JsonSchema | None]
    json_object: PerPrompt[bool]
    regex: PerPrompt[str | None]
    grammar: PerPrompt[str | None]
    gbnf: PerPrompt[str | None]
    choices: Texts | Sequence[Sequence[str] | None] | None
    filters: Sequence[Filter] | Sequence[Sequence[Filter] | None] | None
    filter_prefer_eos: PerPrompt[bool]
    token_healing: PerPrompt[bool]
    tools: JsonObjects | Sequence[JsonObjects | None] | None
    documents: JsonObjects | Sequence[JsonObjects | None] | None
    chat_template: PerPrompt[str | None]
    chat_template_kwargs: PerPrompt[TemplateKwargs | None]
    add_generation_prompt: PerPrompt[bool | None]
    continue_final_message: PerPrompt[ContinueFinalMessage | None]


class OneRequestKeywords(TypedDict, total=False):
    """The keywords of a request, for one prompt: none takes a list of values."""

    cfg_scale: float | None
    temperature: float
    top_k: int
    top_p: float
    top_a: float
    min_p: float
    tfs: float
    typical: float
    mirostat: bool
    mirostat_tau: float
    mirostat_eta: float
    mirostat_mu: float | None
    smoothing_factor: float
    min_temp: float
    max_temp: float
    temp_exponent: float
    temperature_last: bool
    xtc_probability: float
    xtc_threshold: float
    xtc_ignore_tokens: TokenIds | None
    skew: float
    repetition_penalty: float
    repetition_range: int | None
    repetition_decay: int
    frequency_penalty: float
    presence_penalty: float
    penalize_prompt: bool
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_max_ngram: int
    dry_range: int
    dry_sequence_breakers: TokenIds | None
    logit_bias: LogitBias
    allowed_token_ids: TokenIds | None
    seed: int | None
    negative_prompt: Prompt | None
    max_new_tokens: int
    min_new_tokens: int
    stop: Stop
    banned_strings: Texts | None
    stop_at_eos: bool
    logprobs: int
    probs: int
    post_sampling_hooks: PostSamplingHooks | None
    return_logits: bool
    ngram_draft: bool
    max_ngram: int
    num_draft_tokens: int | None
    draft_adapters: Adapter
    skip_special_tokens: bool
    add_special_tokens: bool
    json_schema: JsonSchema | None
    json_object: bool
    regex: str | None
    grammar: str | None
    gbnf: str | None
    choices: Texts | None
    filters: Sequence[Filter] | None
    filter_prefer_eos: bool
    token_healing: bool
    tools: JsonObjects | None
    documents: JsonObjects | None
    chat_template: str | None
    chat_template_kwargs: TemplateKwargs | None
    add_generation_prompt: bool | None
    continue_final_message: ContinueFinalMessage | None
