"""
The compiled half of exlora. Use the package `exlora`.
"""

from _typeshed import SupportsGetItem
from exlora.errors import ExloraError
from exlora.types import Adapter, ContinueFinalMessage, FloatArray, JsonObjects, JsonSchema, LogitBias, Messages, PostSamplingHook, PostSamplingHooks, Prompt, Stop, TemplateKwargs, Texts, TokenIds
from os import PathLike
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex, final
from typing_extensions import disjoint_base

__all__ = ["PAGE_TOKENS", "__version__", "AdapterInfo", "Chunk", "Completion", "Engine", "ExLlamaV2Base", "ExLlamaV2Lora", "InFlight", "Job", "Model", "PostSampling", "Request", "SamplingParams", "SequenceCache", "Server", "Tokenizer", "Usage", "architectures", "error", "error_codes", "main", "peft_features", "read_model_config"]

PAGE_TOKENS: Final[int]
"""
Tokens of a KV page.
"""

__version__: Final[str]
"""
Version of the crate and the package.
"""

@final
class AdapterInfo:
    """
    A resident adapter.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs_ex__(self, /) -> "tuple[tuple[()], dict[str, object]]": ...
    def __hash__(self, /) -> int: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, *, name: str, path: str, generation: "SupportsIndex", content_hash: str, rank: "SupportsIndex", sites: "SupportsIndex", bytes: "SupportsIndex", leases: "SupportsIndex" = 0) -> AdapterInfo:
        """
        Made by the engine; the constructor is for tests and unpickling.
        """
    def __repr__(self, /) -> str: ...
    @property
    def bytes(self, /) -> int:
        """
        Bytes it occupies.
        """
    @property
    def content_hash(self, /) -> str:
        """
        SHA-256 of config and weights.
        """
    @property
    def generation(self, /) -> int:
        """
        Number of this adapter version; higher for each adapter loaded later.
        """
    @property
    def leases(self, /) -> int:
        """
        Leases that requests held on it at the time of the call.
        """
    @property
    def name(self, /) -> str:
        """
        Name under which requests find it.
        """
    @property
    def path(self, /) -> str:
        """
        Folder it was read from.
        """
    @property
    def rank(self, /) -> int:
        """
        Largest rank at a site.
        """
    @property
    def sites(self, /) -> int:
        """
        Number of sites where it acts.
        """
    def to_dict(self, /) -> dict[str, Any]:
        """
        All fields by name.
        """

@final
class Chunk:
    """
    A piece of a running request: usually one token and the text it completed.
    """
    def __eq__(self, other: object, /) -> bool: ...
    def __getnewargs_ex__(self, /) -> "tuple[tuple[()], dict[str, object]]": ...
    def __new__(cls, /, *, text: str = "", token_ids: TokenIds = ..., finish_reason: str | None = None, stop_match: Stop | None = None, usage: Usage | None = None, seed: "SupportsIndex | None" = None, logprobs: FloatArray | None = None, top_logprobs: "list[list[tuple[int, float]]] | None" = None, probs: FloatArray | None = None, top_probs: "list[list[tuple[int, float]]] | None" = None, logits: FloatArray | None = None, suppressed_text: str = "", suppressed_token_ids: TokenIds = ...) -> Chunk:
        """
        Made by the engine; the constructor is for tests and unpickling.
        """
    def __repr__(self, /) -> str: ...
    @property
    def finish_reason(self, /) -> str | None:
        """
        `stop`, `length` or `cancelled` on the last chunk, else `None`.
        """
    @property
    def logits(self, /) -> FloatArray | None:
        """
        The logits each token was chosen from, float32 [tokens, vocab]; `None` unless asked for.
        """
    @property
    def logprobs(self, /) -> FloatArray | None:
        """
        Log-probability of each chosen id, float32 [tokens]; `None` unless asked for.
        """
    @property
    def probs(self, /) -> FloatArray | None:
        """
        Probability of each chosen id after penalties and filters, float32 [tokens]; `None` unless asked for.
        """
    @property
    def seed(self, /) -> int | None:
        """
        Seed of the request's random numbers, on the last chunk.
        """
    @property
    def stop_match(self, /) -> int | str | None:
        """
        On the last chunk, the token id or string that ended the text, if one did.
        """
    @property
    def suppressed_text(self, /) -> str:
        """
        Text that was given up because it contained a banned string; it is not part of `text`.
        """
    @property
    def suppressed_token_ids(self, /) -> list[int]:
        """
        The tokens of that text.
        """
    @property
    def text(self, /) -> str:
        """
        New text. The texts of all chunks joined are the text of the completion.
        """
    def to_dict(self, /) -> dict[str, Any]:
        """
        All fields by name, as plain values that JSON can represent.
        """
    @property
    def token_ids(self, /) -> list[int]:
        """
        New tokens.
        """
    @property
    def top_logprobs(self, /) -> list[list[tuple[int, float]]] | None:
        """
        For each token, the most likely (id, log-probability), best first; `None` unless asked for.
        """
    @property
    def top_probs(self, /) -> list[list[tuple[int, float]]] | None:
        """
        For each token, the most likely (id, probability) after penalties and filters, best first; `None` unless asked for.
        """
    @property
    def usage(self, /) -> Usage | None:
        """
        Token counts, on the last chunk.
        """

@final
class Completion:
    """
    A finished request.
    """
    def __eq__(self, other: object, /) -> bool: ...
    def __getnewargs_ex__(self, /) -> "tuple[tuple[()], dict[str, object]]": ...
    def __new__(cls, /, *, text: str = "", token_ids: TokenIds = ..., finish_reason: str = "stop", stop_match: Stop | None = None, usage: Usage | None = None, seed: "SupportsIndex | None" = None, sample: "SupportsIndex" = 0, adapter: Adapter | None = None, logprobs: FloatArray | None = None, top_logprobs: "list[list[tuple[int, float]]] | None" = None, probs: FloatArray | None = None, top_probs: "list[list[tuple[int, float]]] | None" = None, logits: FloatArray | None = None, suppressed_text: str = "", suppressed_token_ids: TokenIds = ...) -> Completion:
        """
        Made by the engine; the constructor is for tests and unpickling.
        """
    def __repr__(self, /) -> str: ...
    @property
    def adapter(self, /) -> str | dict[str, float] | list[tuple[str, float]] | None:
        """
        The mixture: `None` for the base, a name for one adapter of weight 1, else a dict of name to weight (a list of pairs
        if a name appears twice).
        """
    @property
    def finish_reason(self, /) -> str:
        """
        `stop`, `length` or `cancelled`.
        """
    @property
    def logits(self, /) -> FloatArray | None:
        """
        The logits each token was chosen from, float32 [tokens, vocab]; `None` unless asked for.
        """
    @property
    def logprobs(self, /) -> FloatArray | None:
        """
        Log-probability of each chosen id, float32 [tokens]; `None` unless asked for.
        """
    @property
    def probs(self, /) -> FloatArray | None:
        """
        Probability of each chosen id after penalties and filters, float32 [tokens]; `None` unless asked for.
        """
    @property
    def sample(self, /) -> int:
        """
        Which of the request's `n` samples it is, from 0.
        """
    @property
    def seed(self, /) -> int:
        """
        Seed of its random numbers: the one it was given, or the one drawn for it. The same seed gives the same text.
        """
    @property
    def stop_match(self, /) -> int | str | None:
        """
        The token id or string that ended the text, if one did.
        """
    @property
    def suppressed_text(self, /) -> str:
        """
        Text that was given up because it contained a banned string, joined; no part of `text`.
        """
    @property
    def suppressed_token_ids(self, /) -> list[int]:
        """
        The tokens of that text; no part of `token_ids`.
        """
    @property
    def text(self, /) -> str:
        """
        The new text, without the prompt and the stop.
        """
    def to_dict(self, /) -> dict[str, Any]:
        """
        All fields by name, as plain values that JSON can represent.
        """
    @property
    def token_ids(self, /) -> list[int]:
        """
        The new tokens, including a stop token.
        """
    @property
    def top_logprobs(self, /) -> list[list[tuple[int, float]]] | None:
        """
        For each token, the most likely (id, log-probability), best first; `None` unless asked for.
        """
    @property
    def top_probs(self, /) -> list[list[tuple[int, float]]] | None:
        """
        For each token, the most likely (id, probability) after penalties and filters, best first; `None` unless asked for.
        """
    @property
    def usage(self, /) -> Usage:
        """
        Token counts.
        """

@final
class Engine:
    """
    A model, a KV cache and a scheduler.
    """
    def __new__(cls, /, model: str | PathLike[str], *, device: str = "auto", threads: "SupportsIndex | None" = None, head: str = "stored", activations: str = "f32", kv_dtype: str = "f16", max_seq_len: "SupportsIndex | None" = None, kv_tokens: "SupportsIndex | None" = None, max_batch_size: "SupportsIndex" = 32, prefill_chunk: "SupportsIndex" = 512, prefix_cache: bool = True, generation_config: str | PathLike[str] | None = None, draft_model: str | PathLike[str] | None = None, num_draft_tokens: "SupportsIndex" = 4, progress: Any | None = None) -> Engine:
        """
        Loads a model folder and its tokenizer. `progress` is `True` for a bar on stderr, or a callable (done, total).
        """
    def adapters(self, /) -> list[AdapterInfo]:
        """
        The named adapters, sorted by name.
        """
    def check(self, /, requests: "list[Request]") -> None:
        """
        Checks requests without running them. One that would be refused raises its exception, with its `request_index`.
        """
    def clear_prefix_cache(self, /) -> None:
        """
        Forgets all cached prefixes.
        """
    def draft_adapters(self, /) -> list[AdapterInfo]:
        """
        The named adapters of the draft model, sorted by name.
        """
    @staticmethod
    def from_model(model: Model, tokenizer: Tokenizer | None = None, *, kv_dtype: str = "f16", max_seq_len: "SupportsIndex | None" = None, kv_tokens: "SupportsIndex | None" = None, max_batch_size: "SupportsIndex" = 32, prefill_chunk: "SupportsIndex" = 512, prefix_cache: bool = True, generation_config: str | PathLike[str] | None = None, draft_model: Model | None = None, num_draft_tokens: "SupportsIndex" = 4) -> Engine:
        """
        An engine with its own KV cache over a loaded model; `draft_model` is loaded too.
        """
    def generate(self, /, requests: "list[Request]", n: "list[int] | None" = None, *, run_none_if_refused: bool = True, progress: Any | None = None) -> list[list[Completion | ExloraError]]:
        """
        Runs `n[i]` samples of each request, one by default, to their end in one batch. Returns the results of the samples of
        each request: completions, and exceptions.

        If `run_none_if_refused`, a request that is refused raises its exception, with its `request_index`, before any is run.
        `progress` is `True` for a bar on stderr, or a callable (requests done, requests in total).
        """
    def load_adapter(self, /, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """
        Loads an adapter under a name, or replaces the adapter of that name.
        """
    def load_draft_adapter(self, /, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """
        Loads an adapter of the draft model under a name, or replaces the adapter of that name.
        """
    def logits(self, /, prompt: Prompt, adapter: Adapter | None = None) -> FloatArray:
        """
        Logits of every position of a prompt, float32 [tokens, vocab].
        """
    @property
    def max_tokens(self, /) -> int:
        """
        Positions that a sequence can reach: those of the model, or of the cache if that is smaller.
        """
    @property
    def model(self, /) -> Model:
        """
        The model.
        """
    @property
    def request_defaults(self, /) -> dict[str, Any]:
        """
        The keywords that the generation config sets, with their values.
        """
    def stats(self, /) -> dict[str, int]:
        """
        Counters and resident bytes. Never waits for a step.
        """
    def step(self, /) -> bool:
        """
        Computes one step for all requests; `False` if there was nothing to do.
        """
    def submit(self, /, request: Request) -> Job:
        """
        Checks a request and queues it. Steps are computed by the threads that ask for chunks.
        """
    @property
    def tokenizer(self, /) -> Tokenizer:
        """
        The tokenizer of the model's folder.
        """
    def tokenizer_for(self, /, adapter: Adapter) -> Tokenizer:
        """
        The tokenizer of requests with these adapters: the first adapter's that has one, else the model's.
        """
    def unload_adapter(self, /, name: str) -> None:
        """
        Removes an adapter's name.
        """
    def unload_draft_adapter(self, /, name: str) -> None:
        """
        Removes the name of an adapter of the draft model.
        """

@disjoint_base
class ExLlamaV2Base:
    """
    Base class of `ExLlamaV2`: its config and, while it is loaded, its model.
    """
    def __new__(cls, /, config: Any, *args: "object", **kwargs: "object") -> ExLlamaV2Base:
        """
        A model that is not loaded. Further arguments are those of the derived class.
        """
    @property
    def config(self, /) -> Any:
        """
        The config it was made with.
        """
    @property
    def loaded(self, /) -> bool:
        """
        Whether it is loaded.
        """
    def native_model(self, /) -> Model:
        """
        The loaded model, which caches, adapters and generators use.
        """
    def set_native_model(self, /, model: Model | None) -> None:
        """
        Sets the loaded model; `None` unloads it.
        """

@final
class ExLlamaV2Lora:
    """
    A LoRA adapter of a loaded model, for `set_loras`, jobs and `forward`.
    """
    def __new__(cls, /, model: ExLlamaV2Base, lora_config_path: str | PathLike[str], lora_path: str | PathLike[str], lora_scaling: SupportsFloat | SupportsIndex = 1.0) -> ExLlamaV2Lora:
        """
        Loads an adapter from its two files, which must be in one folder under PEFT's names. See also `from_directory`.
        """
    def __repr__(self, /) -> str: ...
    @property
    def bias_ignored(self, /) -> bool:
        """
        Always `False`: a bias that cannot be applied is an error when the adapter is loaded.
        """
    @property
    def config(self, /) -> Any:
        """
        The config of that model.
        """
    @property
    def content_hash(self, /) -> str:
        """
        SHA-256 of config and weights.
        """
    @classmethod
    def from_directory(cls, /, model: ExLlamaV2Base, directory: str | PathLike[str], lora_scaling: SupportsFloat | SupportsIndex = 1.0) -> ExLlamaV2Lora:
        """
        Loads the adapter in a folder; `lora_scaling` multiplies the scaling that its config asks for.
        """
    @property
    def is_loaded(self, /) -> bool:
        """
        Whether it can be used.
        """
    @property
    def lora_alpha(self, /) -> float:
        """
        `lora_alpha` of adapter_config.json, times the square root of r if it asks for rank-stabilized scaling.
        """
    @property
    def lora_config_path(self, /) -> str:
        """
        Path of the config.
        """
    @property
    def lora_path(self, /) -> str:
        """
        Path of the weights.
        """
    @property
    def lora_r(self, /) -> int:
        """
        `r` of adapter_config.json.
        """
    @property
    def lora_scaling(self, /) -> float:
        """
        The effective multiplier, `weight * lora_alpha / lora_r`. Patterns in the config may change it for single modules.
        """
    @property
    def model(self, /) -> ExLlamaV2Base:
        """
        The model it was loaded on.
        """
    @property
    def target_modules(self, /) -> list[str]:
        """
        Names of the modules it targets, as in adapter_config.json.
        """
    def unload(self, /) -> None:
        """
        Unloads the adapter. Jobs that use it keep it to their end; its memory is freed with the last of them.
        """
    @property
    def weight(self, /) -> float:
        """
        The multiplier given as `lora_scaling` when it was loaded.
        """

@final
class InFlight:
    """
    Requests that were submitted and whose results were not taken yet. Deleting it ends them.

    The lock is only taken without the interpreter's lock, so the two cannot wait for each other.
    """
    def __new__(cls, /, engine: Engine) -> InFlight:
        """
        No requests yet.
        """
    def close(self, /) -> None:
        """
        Ends all requests.
        """
    def has_room(self, /) -> bool:
        """
        Whether another request should be submitted before the next result is awaited.
        """
    def is_empty(self, /) -> bool:
        """
        Whether nothing was submitted whose result was not taken.
        """
    def next_result(self, /) -> tuple[int, Completion | ExloraError] | None:
        """
        The next result, computing steps as needed; `None` if nothing is in flight.
        """
    def poll_result(self, /) -> tuple[int, Completion | ExloraError] | None:
        """
        The next result if one is ready; computes nothing.
        """
    def submit(self, /, index: SupportsIndex, request: Request, n: "SupportsIndex") -> None:
        """
        Submits `n` samples of a request; if it is refused, that is their result.
        """

@final
class Job:
    """
    A submitted request: its chunks, one by one. Deleting it cancels the request.

    The lock is only taken without the interpreter's lock, so the two cannot wait for each other.
    """
    def cancel(self, /) -> None:
        """
        Ends the request at the next step; its last chunk has the reason `cancelled`. Never waits.
        """
    def close(self, /) -> None:
        """
        Ends the request and releases its adapters. Waits for a thread that waits for a chunk of this request.
        """
    def forbid_next(self, /, ids: TokenIds) -> None:
        """
        Forbids tokens for the one that the next step chooses, in the place of those that were forbidden before it. With drafts
        a step may choose several tokens, of which this concerns the first.
        """
    @property
    def has_started(self, /) -> bool:
        """
        Whether the request runs, or has ended; before that it waits for others.
        """
    @property
    def is_finished(self, /) -> bool:
        """
        Whether the last chunk was returned.
        """
    def next_chunk(self, /) -> Chunk | None:
        """
        The next chunk, computing steps as needed; `None` after the last.
        """
    def poll_chunk(self, /) -> Chunk | None:
        """
        The next chunk if one is ready; computes nothing.
        """
    @property
    def prefill_progress(self, /) -> tuple[int, int]:
        """
        Prompt tokens whose keys and values are in the cache, and the number of prompt tokens. Those of a negative prompt count.
        """
    @property
    def prompt_tokens(self, /) -> list[int]:
        """
        Token ids of the prompt.
        """
    @property
    def seed(self, /) -> int:
        """
        Seed of its random numbers: the one it was given, or the one drawn for it.
        """

@final
class Model:
    """
    A model that several engines may share.
    """
    def __new__(cls, /, path: str | PathLike[str], *, device: str = "auto", threads: "SupportsIndex | None" = None, head: str = "stored", activations: str = "f32", max_seq_len: "SupportsIndex | None" = None, rope_theta: SupportsFloat | SupportsIndex | None = None, rope_scale: SupportsFloat | SupportsIndex | None = None, rope_alpha: SupportsFloat | SupportsIndex | None = None, progress: Any | None = None) -> Model:
        """
        Loads a model folder. `rope_theta` and `rope_scale` replace the base of the rotary frequencies and what positions are
        divided by, `rope_alpha` scales the base (NTK). `progress` is `True` for a bar on stderr, or a callable (done, total).
        """
    @property
    def device(self, /) -> str:
        """
        What computes: `cpu (avx512, 2 threads)`.
        """
    @property
    def max_positions(self, /) -> int:
        """
        Longest sequence that its config.json is made for, in positions.
        """
    @property
    def max_seq_len(self, /) -> int:
        """
        Longest sequence that it computes, in positions.
        """
    @property
    def path(self, /) -> Path:
        """
        The folder it was loaded from.
        """
    @property
    def vocab_size(self, /) -> int:
        """
        Number of token ids.
        """
    @property
    def weights_bytes(self, /) -> int:
        """
        Bytes of its packed weights.
        """

@final
class PostSampling:
    """
    A token that was chosen, before it becomes part of the text: what a hook of `post_sampling_hooks` is called with.
    """
    @property
    def logits(self, /) -> FloatArray:
        """
        The logits that it was chosen from, before penalties, float32 [vocab].
        """
    @property
    def prob(self, /) -> float:
        """
        Its probability after penalties and filters.
        """
    @property
    def token(self, /) -> int:
        """
        The token. A hook may replace it by any other of the vocabulary.
        """
    @token.setter
    def token(self, /, token: SupportsIndex) -> None: ...
    @property
    def top_probs(self, /) -> list[tuple[int, float]]:
        """
        The most likely (id, probability) after penalties and filters, best first: `probs` of them, at least one.
        """

@final
class Request:
    """
    A prompt and how to continue it.
    """
    def __copy__(self, /) -> Request: ...
    def __deepcopy__(self, /, memo: Any) -> Request:
        """
        Requests are immutable.
        """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs_ex__(self, /) -> "tuple[tuple[()], dict[str, object]]": ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, prompt: Prompt, adapter: Adapter | None = None, *, sampling: SamplingParams | None = None, negative_prompt: Prompt | None = None, max_new_tokens: "SupportsIndex" = 128, min_new_tokens: "SupportsIndex" = 0, stop: Stop | None = None, banned_strings: Texts | None = None, stop_at_eos: bool = True, logprobs: "SupportsIndex" = 0, probs: "SupportsIndex" = 0, post_sampling_hooks: PostSamplingHooks | None = None, return_logits: bool = False, ngram_draft: bool = False, max_ngram: "SupportsIndex" = 4, num_draft_tokens: "SupportsIndex | None" = None, draft_adapters: Adapter | None = None, skip_special_tokens: bool = True, add_special_tokens: bool = True, json_schema: JsonSchema | None = None, json_object: bool = False, regex: str | None = None, grammar: str | None = None, gbnf: str | None = None, choices: Texts | None = None, filters: SupportsGetItem[int, Any] | None = None, filter_prefer_eos: bool = False, token_healing: bool = False, tools: JsonObjects | None = None, documents: JsonObjects | None = None, chat_template: str | None = None, chat_template_kwargs: TemplateKwargs | None = None, add_generation_prompt: bool | None = None, continue_final_message: ContinueFinalMessage | None = None, **keywords: "Any") -> Request:
        """
        A request. Adapters are looked up when it is submitted. The keywords of `SamplingParams` are taken too; they change
        those of `sampling`.
        """
    def __repr__(self, /) -> str: ...
    @property
    def adapter(self, /) -> str | dict[str, float] | list[tuple[str, float]] | None:
        """
        The mixture: `None` for the base, a name for one adapter of weight 1, else a dict of name to weight (a list of pairs
        if a name appears twice).
        """
    @property
    def add_generation_prompt(self, /) -> bool | None:
        """
        Whether a chat ends with the start of an answer; `None`: unless the final message is continued.
        """
    @property
    def add_special_tokens(self, /) -> bool:
        """
        Whether the tokenizer adds its own special tokens (a BOS) to a text prompt.
        """
    @property
    def banned_strings(self, /) -> list[str]:
        """
        Strings that the text does not contain.
        """
    @property
    def chat_template(self, /) -> str | None:
        """
        The name of a chat template of the model, or the text of another one.
        """
    @property
    def chat_template_kwargs(self, /) -> TemplateKwargs:
        """
        Other variables of the chat template.
        """
    @property
    def choices(self, /) -> list[str] | None:
        """
        The strings of which the text is one.
        """
    @property
    def continue_final_message(self, /) -> str | None:
        """
        The field of the final message that is continued.
        """
    @property
    def documents(self, /) -> JsonObjects | None:
        """
        The documents for its chat template.
        """
    @property
    def draft_adapters(self, /) -> str | dict[str, float] | list[tuple[str, float]] | None:
        """
        The mixture of the draft model, as `adapter`.
        """
    @property
    def filter_prefer_eos(self, /) -> bool:
        """
        Whether a token that ends the text is chosen as soon as the filters allow one.
        """
    @property
    def filters(self, /) -> list[Any]:
        """
        The objects that limit the tokens.
        """
    @property
    def gbnf(self, /) -> str | None:
        """
        The grammar of the text, in llama.cpp's GBNF.
        """
    @property
    def grammar(self, /) -> str | None:
        """
        The grammar of the text, in Lark syntax.
        """
    @property
    def json_object(self, /) -> bool:
        """
        Whether the text is a JSON object.
        """
    @property
    def json_schema(self, /) -> str | None:
        """
        The JSON schema that the text is valid under, as text.
        """
    @property
    def logprobs(self, /) -> int:
        """
        Number of top log-probabilities for each token; 0 for no log-probabilities.
        """
    @property
    def max_new_tokens(self, /) -> int:
        """
        Largest number of new tokens.
        """
    @property
    def max_ngram(self, /) -> int:
        """
        Largest number of last tokens that such a draft looks for.
        """
    @property
    def min_new_tokens(self, /) -> int:
        """
        Up to this number of new tokens, only `max_new_tokens` ends the text: tokens that would end it are not chosen, and
        stop strings become part of it.
        """
    @property
    def negative_prompt(self, /) -> Prompt | None:
        """
        Another prompt, which the text is guided away from as `cfg_scale` says: text, token ids or chat messages.
        """
    @property
    def ngram_draft(self, /) -> bool:
        """
        Whether tokens are drafted from the prompt and the output themselves.
        """
    @property
    def num_draft_tokens(self, /) -> int | None:
        """
        Largest number of tokens drafted for a step; `None`: the engine's.
        """
    @property
    def post_sampling_hooks(self, /) -> list[PostSamplingHook]:
        """
        Callables that get a `PostSampling` for each chosen token, in this order; each may replace its `token`.
        """
    @property
    def probs(self, /) -> int:
        """
        Number of top probabilities for each token after penalties and filters; 0 for no probabilities.
        """
    @property
    def prompt(self, /) -> Prompt:
        """
        The prompt: text, token ids or chat messages.
        """
    @property
    def regex(self, /) -> str | None:
        """
        The regular expression that the whole text matches.
        """
    @property
    def return_logits(self, /) -> bool:
        """
        Whether the logits that each token was chosen from are returned.
        """
    @property
    def sampling(self, /) -> SamplingParams:
        """
        How tokens are chosen.
        """
    @property
    def skip_special_tokens(self, /) -> bool:
        """
        Whether special tokens are left out of the text.
        """
    @property
    def stop(self, /) -> list[int | str]:
        """
        Token ids and strings that end the text.
        """
    @property
    def stop_at_eos(self, /) -> bool:
        """
        Whether the model's end-of-sequence ids end the text.
        """
    def to_dict(self, /) -> dict[str, Any]:
        """
        Prompt, mixture and all settings by keyword; `Request(**request.to_dict())` is the same request.
        """
    @property
    def token_healing(self, /) -> bool:
        """
        Whether the first new token may replace the last one of the prompt by one that begins with its text.
        """
    @property
    def tools(self, /) -> JsonObjects | None:
        """
        The functions that the model may call, for its chat template.
        """

@final
class SamplingParams:
    """
    How tokens are chosen.
    """
    def __copy__(self, /) -> SamplingParams: ...
    def __deepcopy__(self, /, memo: Any) -> SamplingParams:
        """
        Parameters are immutable.
        """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs_ex__(self, /) -> "tuple[tuple[()], dict[str, object]]": ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, *, cfg_scale: "SupportsFloat | SupportsIndex | None" = None, temperature: "SupportsFloat | SupportsIndex" = 0.0, top_k: "SupportsIndex" = 0, top_p: "SupportsFloat | SupportsIndex" = 1.0, top_a: "SupportsFloat | SupportsIndex" = 0.0, min_p: "SupportsFloat | SupportsIndex" = 0.0, tfs: "SupportsFloat | SupportsIndex" = 1.0, typical: "SupportsFloat | SupportsIndex" = 1.0, mirostat: bool = False, mirostat_tau: "SupportsFloat | SupportsIndex" = 1.5, mirostat_eta: "SupportsFloat | SupportsIndex" = 0.1, mirostat_mu: "SupportsFloat | SupportsIndex | None" = None, smoothing_factor: "SupportsFloat | SupportsIndex" = 0.0, min_temp: "SupportsFloat | SupportsIndex" = 0.0, max_temp: "SupportsFloat | SupportsIndex" = 0.0, temp_exponent: "SupportsFloat | SupportsIndex" = 1.0, temperature_last: bool = False, xtc_probability: "SupportsFloat | SupportsIndex" = 0.0, xtc_threshold: "SupportsFloat | SupportsIndex" = 0.1, xtc_ignore_tokens: TokenIds | None = None, skew: "SupportsFloat | SupportsIndex" = 0.0, repetition_penalty: "SupportsFloat | SupportsIndex" = 1.0, repetition_range: "SupportsIndex | None" = None, repetition_decay: "SupportsIndex" = 0, frequency_penalty: "SupportsFloat | SupportsIndex" = 0.0, presence_penalty: "SupportsFloat | SupportsIndex" = 0.0, penalize_prompt: bool = False, dry_multiplier: "SupportsFloat | SupportsIndex" = 0.0, dry_base: "SupportsFloat | SupportsIndex" = 1.75, dry_allowed_length: "SupportsIndex" = 2, dry_max_ngram: "SupportsIndex" = 20, dry_range: "SupportsIndex" = 0, dry_sequence_breakers: TokenIds | None = None, logit_bias: LogitBias | None = None, allowed_token_ids: TokenIds | None = None, seed: "SupportsIndex | None" = None) -> SamplingParams:
        """
        Greedy decoding without penalties, changed by the keywords given.
        """
    def __repr__(self, /) -> str: ...
    @property
    def allowed_token_ids(self, /) -> list[int] | None:
        """
        The only token ids that can be chosen; `None` is all.
        """
    @property
    def cfg_scale(self, /) -> float | None:
        """
        Weight of the log-probabilities after the prompt, where there is a negative prompt, whose have 1 less this; 1 is the
        prompt alone.
        """
    def distribution(self, /, logits: SupportsGetItem[int, SupportsFloat | SupportsIndex], tokens: TokenIds, prompt_len: "SupportsIndex" = 0, tokenizer: Tokenizer | None = None) -> FloatArray:
        """
        The probabilities float32 [vocab] that the token after `tokens` is drawn from, given its `logits` [vocab].

        The tokenizer says which tokens break repetitions (DRY) and which XTC ignores, where these settings leave it open.
        """
    def draw(self, /, logits: SupportsGetItem[int, SupportsFloat | SupportsIndex], tokens: TokenIds, random: SupportsFloat | SupportsIndex, top: "SupportsIndex" = 1, tokenizer: Tokenizer | None = None, negative_logits: SupportsGetItem[int, SupportsFloat | SupportsIndex] | None = None) -> tuple[int, float, list[tuple[int, float]], float | None]:
        """
        Chooses the token that follows `tokens` from `logits` [vocab] by a number in [0, 1) instead of the seed.

        Returns the id, its probability after penalties and filters, the `top` best (id, probability), and Mirostat's limit for
        the token that follows it, `None` without Mirostat. `mirostat_mu` is the limit for this token. With `cfg_scale`, the
        logits after the negative prompt are `negative_logits` [vocab].
        """
    @property
    def dry_allowed_length(self, /) -> int:
        """
        Length from which on a repetition is penalized.
        """
    @property
    def dry_base(self, /) -> float:
        """
        Factor on that penalty for each token that the repetition is longer.
        """
    @property
    def dry_max_ngram(self, /) -> int:
        """
        Length up to which repetitions are compared.
        """
    @property
    def dry_multiplier(self, /) -> float:
        """
        DRY: penalty on a token that would continue a repetition of `dry_allowed_length` tokens; 0 is off.
        """
    @property
    def dry_range(self, /) -> int:
        """
        Number of most recent tokens among which repetitions are looked for; 0 is all.
        """
    @property
    def dry_sequence_breakers(self, /) -> list[int] | None:
        """
        Token ids that no repetition contains or ends with; `None` is those with punctuation, line breaks or tabs, and special
        tokens.
        """
    @property
    def frequency_penalty(self, /) -> float:
        """
        Subtracted from a token's logit for each occurrence in the output.
        """
    @property
    def logit_bias(self, /) -> dict[int, float]:
        """
        Token id -> value added to its logit; minus infinity forbids it.
        """
    @property
    def max_temp(self, /) -> float:
        """
        ... to this, if all are equally likely; off if not above `min_temp`.
        """
    @property
    def min_p(self, /) -> float:
        """
        Keep tokens of at least this share of the best token's probability; 0 keeps all.
        """
    @property
    def min_temp(self, /) -> float:
        """
        Dynamic temperature: what the filters left gets a temperature from this, if one token is certain, ...
        """
    @property
    def mirostat(self, /) -> bool:
        """
        Whether Mirostat (2.0) limits the surprise of tokens.
        """
    @property
    def mirostat_eta(self, /) -> float:
        """
        How fast Mirostat's limit follows.
        """
    @property
    def mirostat_mu(self, /) -> float | None:
        """
        Mirostat's limit for the first token, in bits; `None` is twice `mirostat_tau`.
        """
    @property
    def mirostat_tau(self, /) -> float:
        """
        Mean surprise that Mirostat aims at, in bits.
        """
    @property
    def penalize_prompt(self, /) -> bool:
        """
        Whether frequency and presence penalty count the tokens that the repetition penalty looks at, and not the output's.
        """
    @property
    def presence_penalty(self, /) -> float:
        """
        Subtracted from a token's logit if it is in the output.
        """
    @property
    def repetition_decay(self, /) -> int:
        """
        Number of tokens before these over which the penalty goes back to nothing.
        """
    @property
    def repetition_penalty(self, /) -> float:
        """
        Makes tokens of prompt and output less likely; 1 is off.
        """
    @property
    def repetition_range(self, /) -> int | None:
        """
        Number of most recent tokens that the repetition penalty looks at; `None` is all.
        """
    def sample(self, /, logits: SupportsGetItem[int, SupportsFloat | SupportsIndex], tokens: TokenIds, prompt_len: "SupportsIndex" = 0, top: "SupportsIndex" = 1) -> tuple[int, float, list[tuple[int, float]]]:
        """
        Chooses the token that follows `tokens` from `logits` [vocab].

        Returns the id, its log-probability, and the `top` best (id, log-probability), both before penalties and filters.
        Frequency and presence penalties count the tokens from `prompt_len` on.
        """
    @property
    def seed(self, /) -> int | None:
        """
        Seed of the random numbers; `None` draws one for each request.
        """
    @property
    def skew(self, /) -> float:
        """
        Moves draws towards less likely tokens if above 0, towards more likely ones if below.
        """
    @property
    def smoothing_factor(self, /) -> float:
        """
        Makes weights fall with the square of the distance from the best logit, times this factor; 0 is off.
        """
    @property
    def temp_exponent(self, /) -> float:
        """
        Power of the relative entropy by which dynamic temperature grows.
        """
    @property
    def temperature(self, /) -> float:
        """
        0 is greedy decoding.
        """
    @property
    def temperature_last(self, /) -> bool:
        """
        Whether the temperature acts after the filters instead of before them.
        """
    @property
    def tfs(self, /) -> float:
        """
        Tail-free sampling: keep tokens up to this share of the curvature of the sorted probabilities; 1 keeps all.
        """
    def to_dict(self, /) -> dict[str, Any]:
        """
        All parameters by keyword.
        """
    @property
    def top_a(self, /) -> float:
        """
        Keep tokens of at least this multiple of the best token's squared probability; 0 keeps all.
        """
    @property
    def top_k(self, /) -> int:
        """
        Keep the k most likely tokens; 0 keeps all.
        """
    @property
    def top_p(self, /) -> float:
        """
        Keep the smallest set of tokens with this probability; 1 keeps all.
        """
    @property
    def typical(self, /) -> float:
        """
        Locally typical sampling: keep the tokens nearest to the expected surprise, with this probability together; 1 keeps
        all.
        """
    @property
    def xtc_ignore_tokens(self, /) -> list[int] | None:
        """
        Token ids that XTC never leaves out; `None` is those with line breaks, and special tokens.
        """
    @property
    def xtc_probability(self, /) -> float:
        """
        XTC: probability that likely tokens are left out, except for the least likely of them; 0 is off.
        """
    @property
    def xtc_threshold(self, /) -> float:
        """
        Probability from which on XTC takes a token for likely.
        """

@final
class SequenceCache:
    """
    Keys and values of a fixed number of sequences of a model.

    The lock is only taken without the interpreter's lock, so the two cannot wait for each other.
    """
    def __new__(cls, /, model: Model, sequences: "SupportsIndex", max_tokens: "SupportsIndex", dtype: str = "f16") -> SequenceCache:
        """
        Room for `sequences` sequences of at most `max_tokens` tokens each.
        """
    @property
    def bytes(self, /) -> int:
        """
        Bytes of all keys and values.
        """
    def computed_tokens(self, /, sequence: SupportsIndex, layer: SupportsIndex) -> int:
        """
        Number of leading tokens of a sequence whose keys and values in a layer are here.
        """
    def copy_positions(self, /, sequence: SupportsIndex, start: SupportsIndex, end: SupportsIndex, target: SequenceCache, to: SupportsGetItem[int, tuple[SupportsIndex, SupportsIndex]]) -> None:
        """
        Copies the positions from `start` to `end` of a sequence to sequences of a cache, which may be this one: `to` has for each
        its index and the position of the first. What precedes it there must be computed, what was behind is dropped. Keys are
        rotated on where their positions change.
        """
    def forward(self, /, chunks: SupportsGetItem[int, tuple[SupportsIndex, SupportsIndex, TokenIds, SupportsIndex]], adapter: Adapter | None = None) -> FloatArray:
        """
        Computes chunks of several sequences and returns the logits asked for, float32 [rows, vocab].

        A chunk is (sequence, position of the first token, tokens, number of last tokens whose logits are returned).
        """
    def forward_with_last_states(self, /, chunks: SupportsGetItem[int, tuple[SupportsIndex, SupportsIndex, TokenIds, SupportsIndex]], adapter: Adapter | None = None) -> tuple[FloatArray, FloatArray]:
        """
        As `forward`, and the residual stream behind the last layer, before the final norm: of all tokens of the chunks,
        float32 [tokens, hidden_size].
        """
    @property
    def layers(self, /) -> int:
        """
        Layers that have keys and values here: those of the model, or of the longest layer map so far.
        """
    @property
    def max_tokens(self, /) -> int:
        """
        Largest number of tokens of a sequence.
        """
    def read_states(self, /, sequence: SupportsIndex, layer: SupportsIndex, start: SupportsIndex, end: SupportsIndex) -> tuple[FloatArray, FloatArray]:
        """
        Copies of the keys and of the values of a layer at the positions from `start` to `end` of a sequence, codes dequantized:
        each float32 [positions, kv_heads * head_dim].
        """
    def set_parts(self, /, sequence: SupportsIndex, position: SupportsIndex, prompt: Prompt) -> list[int]:
        """
        As `set_tokens`, of token ids, or a dict `prompt_embeds` with ids and arrays of vectors in place of ids. Returns the
        tokens to compute.
        """
    def set_tokens(self, /, sequence: SupportsIndex, position: SupportsIndex, tokens: TokenIds) -> None:
        """
        Sets the tokens of a sequence from a position on, before they are computed in several steps.
        """

@final
class Server:
    """
    An HTTP server that answers requests in a thread of its own. Deleting it stops it.
    """
    def __new__(cls, /, engine: Engine, *, host: str = ..., port: "SupportsIndex" = 8000, api_keys: SupportsGetItem[int, str] = ..., admin_key: str | None = None, metrics_key: str | None = None, no_auth: bool = False, cors_origins: SupportsGetItem[int, str] = ..., served_model_names: SupportsGetItem[int, str] = ..., adapters_dir: str | PathLike[str] | None = None, pinned_adapters: SupportsGetItem[int, str] = ..., tool_call_parser: str | None = None, max_queue: "SupportsIndex" = 256, max_connections: "SupportsIndex" = 1024, shutdown_timeout: SupportsFloat | SupportsIndex = 30.0, defaults: str = "{}") -> Server:
        """
        Listens, and answers requests from now on. `defaults` is a JSON object: what a request has where it says nothing.
        """
    def begin_stop(self, /) -> None:
        """
        From now on, no request is accepted. Does not wait.
        """
    @property
    def port(self, /) -> int:
        """
        The port that it listens on.
        """
    @property
    def url(self, /) -> str:
        """
        Its URL, without a slash at the end.
        """
    def wait(self, /, timeout: SupportsFloat | SupportsIndex | None = None) -> bool:
        """
        Waits until it has ended, but no longer than `timeout` seconds; whether it has. In a forked process it has.
        """

@final
class Tokenizer:
    """
    The tokenizer and chat template of a model folder.
    """
    def __new__(cls, /, path: str | PathLike[str]) -> Tokenizer:
        """
        Reads a model folder.
        """
    def __reduce__(self, /) -> "tuple[type[Tokenizer], tuple[str]]": ...
    def __repr__(self, /) -> str: ...
    def apply_chat_template(self, /, messages: Messages, add_generation_prompt: bool | None = None, *, continue_final_message: ContinueFinalMessage | None = None, tools: JsonObjects | None = None, documents: JsonObjects | None = None, chat_template: str | None = None, chat_template_kwargs: TemplateKwargs | None = None, **keywords: "Any") -> str:
        """
        Renders a chat with a template of the model, or with `chat_template`, its text. Other keywords are variables of the
        template.
        """
    @property
    def bos_token_id(self, /) -> int | None:
        """
        Beginning-of-sequence id.
        """
    def decode(self, /, ids: TokenIds, skip_special_tokens: bool = False) -> str:
        """
        Decodes token ids; bytes that are not valid UTF-8 become U+FFFD, an unknown id has no text.
        """
    def encode(self, /, text: str, add_special_tokens: bool = True, parse_special_tokens: bool | None = None) -> list[int]:
        """
        Encodes a text. The tokenizer's own BOS is added if `add_special_tokens`; special tokens written in the text
        are recognized if `parse_special_tokens`, by default unless tokenizer_config.json has `split_special_tokens`.
        """
    @property
    def eos_token_id(self, /) -> int | None:
        """
        End-of-sequence id.
        """
    @property
    def has_chat_template(self, /) -> bool:
        """
        Whether the model has a chat template.
        """
    def id_of(self, /, token: str) -> int | None:
        """
        Id of a token, by its spelling in the vocabulary.
        """
    def is_special(self, /, id: SupportsIndex) -> bool:
        """
        Whether an id is a special token.
        """
    @property
    def pad_token_id(self, /) -> int | None:
        """
        Padding id.
        """
    def piece(self, /, id: SupportsIndex) -> str:
        """
        The text that a token adds in the middle of a text.
        """
    def piece_bytes(self, /, id: SupportsIndex) -> bytes | None:
        """
        The bytes that a token adds in the middle of a text, which may be a part of a character; `None` for special tokens.
        """
    def token_of(self, /, id: SupportsIndex) -> str | None:
        """
        Spelling of an id in the vocabulary.
        """
    @property
    def unk_token_id(self, /) -> int | None:
        """
        Unknown-token id.
        """
    @property
    def vocab_size(self, /) -> int:
        """
        Number of token ids.
        """

@final
class Usage:
    """
    Token counts of a request.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs_ex__(self, /) -> "tuple[tuple[()], dict[str, object]]": ...
    def __hash__(self, /) -> int: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, *, prompt_tokens: "SupportsIndex" = 0, cached_tokens: "SupportsIndex" = 0, completion_tokens: "SupportsIndex" = 0, accepted_draft_tokens: "SupportsIndex" = 0, rejected_draft_tokens: "SupportsIndex" = 0) -> Usage:
        """
        Made by the engine; the constructor is for tests and unpickling.
        """
    def __repr__(self, /) -> str: ...
    @property
    def accepted_draft_tokens(self, /) -> int:
        """
        Drafted tokens that were chosen: of the new tokens, those that took no step of their own.
        """
    @property
    def cached_tokens(self, /) -> int:
        """
        Prompt tokens whose keys and values were found in the prefix cache.
        """
    @property
    def completion_tokens(self, /) -> int:
        """
        New tokens, including a stop token.
        """
    @property
    def prompt_tokens(self, /) -> int:
        """
        Tokens of the prompt.
        """
    @property
    def rejected_draft_tokens(self, /) -> int:
        """
        Drafted tokens that were computed and not chosen.
        """
    def to_dict(self, /) -> dict[str, int]:
        """
        All counts by name.
        """

def architectures() -> list[dict[str, str]]:
    """
    The supported architectures: a dict with `name`, as config.json has it, and `models`, which of them have it, for each.
    """

def error(code: str, message: str, *, path: str | None = None, expected: str | None = None, found: str | None = None, hint: str | None = None) -> ExloraError:
    """
    An exception of that code, for the Python half to raise. An unknown code gives `internal`.
    """

def error_codes() -> list[dict[str, str]]:
    """
    The catalog of errors: a dict with `code`, `kind`, `remedy` and `summary` for each.
    """

def main(argv: SupportsGetItem[int, str]) -> int:
    """
    Runs the command line on `argv` (its first item is the program's name) and returns the exit code.
    """

def peft_features() -> list[dict[str, str]]:
    """
    How each PEFT feature is treated: a dict with `feature`, `verdict` (yes, refused, no effect), `code` (of the
    refusal, else empty) and `note` for each.
    """

def read_model_config(path: str | PathLike[str]) -> dict[str, Any]:
    """
    What config.json and generation_config.json of a model folder say.
    """
