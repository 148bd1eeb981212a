"""
The compiled half of exlora. Use the package `exlora`.
"""

from _typeshed import SupportsGetItem
from exlora.errors import ExloraError
from exlora.model import ExLlamaV2
from exlora.types import Adapter, FloatArray, LogitBias, Messages, Prompt, Stop, TokenIds
from os import PathLike
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex, final

__all__ = ["PAGE_TOKENS", "__version__", "AdapterInfo", "Chunk", "Completion", "Engine", "ExLlamaV2Lora", "Job", "KvCache", "Model", "Request", "Tokenizer", "Usage", "error", "error_codes", "main", "peft_features", "read_model_config"]

PAGE_TOKENS: Final[int]
"""
Tokens of a KV page.
"""

__version__: Final[str]
"""
Version of the crate, which is the package's.
"""

@final
class AdapterInfo:
    """
    A resident adapter.
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
        SHA-256 over config and weights.
        """
    @property
    def generation(self, /) -> int:
        """
        Counts up with every adapter that becomes resident.
        """
    @property
    def leases(self, /) -> int:
        """
        Leases that requests held on it when this was asked.
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
        Largest rank of a site.
        """
    @property
    def sites(self, /) -> int:
        """
        Number of sites it acts on.
        """

@final
class Chunk:
    """
    A piece of a running request: usually one token, and the text that became certain with it.
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
    def stop_match(self, /) -> int | str | None:
        """
        On the last chunk, the token id or string that stopped it, if one did.
        """
    @property
    def text(self, /) -> str:
        """
        Text that became certain; the texts of all chunks joined are the completion's text.
        """
    @property
    def token_ids(self, /) -> list[int]:
        """
        New tokens.
        """
    @property
    def top_logprobs(self, /) -> list[list[tuple[int, float]]] | None:
        """
        Per token, the most likely (id, log-probability), best first; `None` unless asked for.
        """
    @property
    def usage(self, /) -> Usage | None:
        """
        Tokens used, on the last chunk.
        """

@final
class Completion:
    """
    A finished request.
    """
    def __repr__(self, /) -> str: ...
    @property
    def adapter(self, /) -> str | dict[str, float] | list[tuple[str, float]] | None:
        """
        The mixture: `None` for the base, a name for one adapter of weight 1, else a dict of name to weight (a list of
        pairs where a name stands twice).
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
    def stop_match(self, /) -> int | str | None:
        """
        The token id or string that stopped it, if one did.
        """
    @property
    def text(self, /) -> str:
        """
        The new text, without prompt and stop.
        """
    @property
    def token_ids(self, /) -> list[int]:
        """
        The new tokens, a stop token included.
        """
    @property
    def top_logprobs(self, /) -> list[list[tuple[int, float]]] | None:
        """
        Per token, the most likely (id, log-probability), best first; `None` unless asked for.
        """
    @property
    def usage(self, /) -> Usage:
        """
        Tokens used.
        """

@final
class Engine:
    """
    A model, a KV cache and a scheduler.
    """
    def __new__(cls, /, model: str | PathLike[str], *, device: str = "auto", threads: SupportsIndex | None = None, kv_dtype: str = "f16", kv_tokens: SupportsIndex | None = None, max_batch_size: SupportsIndex = 32, prefill_chunk: SupportsIndex = 512, prefix_cache: bool = True, progress: Any | None = None) -> Engine:
        """
        Loads a model folder and its tokenizer. `progress` is `True` for a bar on stderr, or a callable (done, total).
        """
    def adapters(self, /) -> list[AdapterInfo]:
        """
        The named adapters, by name.
        """
    def clear_prefix_cache(self, /) -> None:
        """
        Forgets every cached prefix.
        """
    def generate(self, /, requests: "list[Request]") -> list[Completion]:
        """
        Runs requests to their end in one batch; results stand in the order of the requests.
        """
    def load_adapter(self, /, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """
        Loads an adapter under a name, or replaces the one that has it.
        """
    def logits(self, /, prompt: Prompt, adapter: Adapter = ...) -> FloatArray:
        """
        Logits of every position of a prompt, float32 [tokens, vocab].
        """
    @property
    def max_tokens(self, /) -> int:
        """
        Positions a sequence can reach: the model's, or the cache's if that is smaller.
        """
    @property
    def model(self, /) -> Model:
        """
        The model.
        """
    @staticmethod
    def over(model: Model, tokenizer: Tokenizer | None = None, *, kv_dtype: str = "f16", kv_tokens: SupportsIndex | None = None, max_batch_size: SupportsIndex = 32, prefill_chunk: SupportsIndex = 512, prefix_cache: bool = True) -> Engine:
        """
        An engine over a model that is loaded already, with a cache of its own.
        """
    def stats(self, /) -> dict[str, int]:
        """
        Counters and resident bytes, now.
        """
    def step(self, /) -> bool:
        """
        Computes one step for all requests; `False` if there was nothing to do.
        """
    def submit(self, /, request: Request) -> Job:
        """
        Checks a request and queues it; whoever asks for chunks computes.
        """
    @property
    def tokenizer(self, /) -> Tokenizer:
        """
        The tokenizer of the model's folder.
        """
    def unload_adapter(self, /, name: str) -> None:
        """
        Forgets an adapter's name.
        """

@final
class ExLlamaV2Lora:
    """
    A LoRA adapter of a loaded model, to be given to `set_loras`, to jobs, or to `forward`.
    """
    def __new__(cls, /, model: ExLlamaV2, lora_config_path: str | PathLike[str], lora_path: str | PathLike[str], lora_scaling: SupportsFloat | SupportsIndex = 1.0) -> ExLlamaV2Lora:
        """
        Loads an adapter by its two files, which stand in one folder under PEFT's names. Mind `from_directory`.
        """
    def __repr__(self, /) -> str: ...
    @property
    def bias_ignored(self, /) -> bool:
        """
        Always `False`: a bias that cannot be served is refused when the adapter is loaded.
        """
    @property
    def config(self, /) -> Any:
        """
        That model's config.
        """
    @property
    def content_hash(self, /) -> str:
        """
        SHA-256 over config and weights.
        """
    @classmethod
    def from_directory(cls, /, model: ExLlamaV2, directory: str | PathLike[str], lora_scaling: SupportsFloat | SupportsIndex = 1.0) -> ExLlamaV2Lora:
        """
        Loads the adapter of a folder; `lora_scaling` multiplies the scaling its config asks for.
        """
    @property
    def is_loaded(self, /) -> bool:
        """
        Whether it can still be used.
        """
    @property
    def lora_alpha(self, /) -> float:
        """
        `lora_alpha` of adapter_config.json, times the root of r where it asks for rank-stabilized scaling.
        """
    @property
    def lora_config_path(self, /) -> str:
        """
        The config's file.
        """
    @property
    def lora_path(self, /) -> str:
        """
        The weights' file.
        """
    @property
    def lora_r(self, /) -> int:
        """
        `r` of adapter_config.json.
        """
    @property
    def lora_scaling(self, /) -> float:
        """
        The effective multiplier, `weight * lora_alpha / lora_r`. Patterns of the config may differ from it site by site.
        """
    @property
    def model(self, /) -> Any:
        """
        The model it was loaded on.
        """
    @property
    def target_modules(self, /) -> list[str]:
        """
        Names of the modules it targets, as adapter_config.json writes them.
        """
    def unload(self, /) -> None:
        """
        Lets go of the adapter. Jobs that use it keep it to their end; its memory returns with the last of them.
        """
    @property
    def weight(self, /) -> float:
        """
        The multiplier given as `lora_scaling` when it was loaded.
        """

@final
class Job:
    """
    A submitted request: its chunks, one by one. Letting go of it cancels the request.

    The lock is only ever taken without the interpreter's lock, so the two cannot wait for each other.
    """
    def cancel(self, /) -> None:
        """
        Ends the request; its last chunk says `cancelled`.
        """
    def close(self, /) -> None:
        """
        Ends the request and lets go of everything it holds, its leases included.
        """
    @property
    def is_finished(self, /) -> bool:
        """
        Whether the last chunk has been handed out.
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
        Prompt tokens whose keys and values are in the cache, and prompt tokens in all.
        """
    @property
    def prompt_tokens(self, /) -> list[int]:
        """
        The prompt's token ids.
        """

@final
class KvCache:
    """
    Keys and values of some sequences of a model.
    """
    def __new__(cls, /, model: Model, sequences: SupportsIndex, max_tokens: SupportsIndex, dtype: str = "f16") -> KvCache:
        """
        Room for `sequences` sequences of at most `max_tokens` tokens each.
        """
    def announce(self, /, sequence: SupportsIndex, position: SupportsIndex, tokens: SupportsGetItem[int, SupportsIndex]) -> None:
        """
        Tells the tokens that a sequence goes on with from a position on, before they are computed in steps.
        """
    @property
    def bytes(self, /) -> int:
        """
        Bytes of its keys and values.
        """
    def forward(self, /, tokens: SupportsGetItem[int, SupportsIndex], positions: SupportsGetItem[int, SupportsIndex], sequences: SupportsGetItem[int, SupportsIndex], picked: SupportsGetItem[int, SupportsIndex], adapter: Adapter = ...) -> FloatArray:
        """
        Computes tokens of several sequences in one step and returns the logits of those picked, float32 [picked, vocab].

        Token `i` is `tokens[i]` at `positions[i]` of sequence `sequences[i]`; a sequence's tokens stand in ascending order
        of position, and everything before them must be in the cache. `picked` are indices of tokens.
        """
    @property
    def max_tokens(self, /) -> int:
        """
        Tokens a sequence can hold.
        """

@final
class Model:
    """
    A model that several engines may share.
    """
    def __new__(cls, /, path: str | PathLike[str], *, device: str = "auto", threads: SupportsIndex | None = None, progress: Any | None = None) -> Model:
        """
        Loads a model folder. `progress` is `True` for a bar on stderr, or a callable (done, total).
        """
    @property
    def device(self, /) -> str:
        """
        What computes: `cpu (avx512, 2 threads)`.
        """
    @property
    def max_positions(self, /) -> int:
        """
        Positions it was made for.
        """
    @property
    def path(self, /) -> Path:
        """
        The folder it was loaded from.
        """
    @property
    def vocab_size(self, /) -> int:
        """
        Rows of embedding and head.
        """
    @property
    def weights_bytes(self, /) -> int:
        """
        Bytes of its packed weights.
        """

@final
class Request:
    """
    One prompt and how to continue it.
    """
    def __new__(cls, /, prompt: Prompt, adapter: Adapter = ..., *, max_new_tokens: SupportsIndex = 128, min_new_tokens: SupportsIndex = 0, temperature: SupportsFloat | SupportsIndex = 0.0, top_k: SupportsIndex = 0, top_p: SupportsFloat | SupportsIndex = 1.0, min_p: SupportsFloat | SupportsIndex = 0.0, repetition_penalty: SupportsFloat | SupportsIndex = 1.0, repetition_range: SupportsIndex | None = None, frequency_penalty: SupportsFloat | SupportsIndex = 0.0, presence_penalty: SupportsFloat | SupportsIndex = 0.0, logit_bias: LogitBias = ..., seed: SupportsIndex = 0, stop: Stop = ..., stop_at_eos: bool = True, logprobs: SupportsIndex = 0, return_logits: bool = False, skip_special_tokens: bool = True, add_special_tokens: bool = True) -> Request:
        """
        A request; adapters are looked up when it is submitted.
        """
    def __repr__(self, /) -> str: ...
    def sample(self, /, logits: SupportsGetItem[int, SupportsFloat | SupportsIndex], tokens: TokenIds, prompt_len: SupportsIndex = 0, top: SupportsIndex = 1) -> tuple[int, float, list[tuple[int, float]]]:
        """
        Chooses the token that follows `tokens` from `logits` [vocab], by this request's sampling.

        Returns the id, its log-probability, and the `top` best (id, log-probability), both before penalties and filters.
        Frequency and presence penalties count the tokens from `prompt_len` on.
        """

@final
class Tokenizer:
    """
    tokenizer.json and the chat template of a model folder.
    """
    def __new__(cls, /, path: str | PathLike[str]) -> Tokenizer:
        """
        Reads a model folder.
        """
    def __reduce__(self, /) -> "tuple[type[Tokenizer], tuple[str]]": ...
    def __repr__(self, /) -> str: ...
    def apply_chat_template(self, /, messages: Messages, add_generation_prompt: bool = True) -> str:
        """
        The prompt of a chat, by the model's own template.
        """
    @property
    def bos_token_id(self, /) -> int | None:
        """
        Beginning-of-sequence id.
        """
    def decode(self, /, ids: TokenIds, skip_special_tokens: bool = False) -> str:
        """
        Text of token ids; bytes that are no character become U+FFFD.
        """
    def encode(self, /, text: str, add_special_tokens: bool = True, parse_special_tokens: bool = True) -> list[int]:
        """
        Token ids of a text. The tokenizer's own BOS is added if `add_special_tokens`; special tokens written in the text
        are recognized if `parse_special_tokens`.
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
        Id of a token's exact spelling.
        """
    @property
    def pad_token_id(self, /) -> int | None:
        """
        Padding id.
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
        Number of ids the tokenizer knows.
        """

@final
class Usage:
    """
    Tokens of a request.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __repr__(self, /) -> str: ...
    @property
    def cached_tokens(self, /) -> int:
        """
        Of those, tokens whose keys and values were found in the cache.
        """
    @property
    def completion_tokens(self, /) -> int:
        """
        New tokens, a stop token included.
        """
    @property
    def prompt_tokens(self, /) -> int:
        """
        Tokens of the prompt.
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
    What becomes of each of PEFT's features: a dict with `feature`, `verdict` (yes, refused, no effect), `code` (of the
    refusal, else empty) and `note` for each.
    """

def read_model_config(path: str | PathLike[str]) -> dict[str, Any]:
    """
    What config.json and generation_config.json of a model folder say.
    """
