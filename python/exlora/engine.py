"""`Engine`: a model, its adapters, and requests that choose among them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, overload

import exlora._exlora as _exlora
from exlora._exlora import AdapterInfo, Chunk, Completion, Request, SamplingParams, Tokenizer
from exlora.types import Adapter, Adapters, FloatArray, PerPrompt, Prompt, RequestKeywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Engine", "Stream"]

#: One of several prompts.
OnePrompt = TypeVar("OnePrompt", bound=Prompt | Request)

Function = TypeVar("Function", bound=Callable[..., Any])


def _shows_request_keywords(function: Function) -> Function:
    """Puts the keywords of a request, with their defaults, into the signature of a function that passes them on.

    They are written once, in the extension module's `Request` and `SamplingParams`.
    """
    signature = inspect.signature(function)
    parameters = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
    for owner in (Request, SamplingParams):
        for parameter in inspect.signature(owner).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                parameters.setdefault(parameter.name, parameter)
    function.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
    return function


class Engine:
    """A quantized base model and any number of LoRA adapters; each request names its own adapter or mixture.

    All methods may be called from any thread: requests of several threads run in one batch, and adapters can be loaded
    and unloaded meanwhile. Nothing runs in the background: a thread that waits for its result computes steps for all
    requests. An engine can be pickled; the copy loads the same model and adapters.

    model           folder with config.json and *.safetensors
    adapters        name -> folder of a PEFT LoRA adapter
    device          "auto", "cpu", or "reference" (plain float32 math, slow)
    threads         CPU threads; all physical cores by default
    kv_dtype        "f16" or "f32"
    max_seq_len     longest prompt and output together, in tokens; by default config.json's, with its rope scaling
    kv_tokens       tokens the KV cache holds over all requests; 8192 by default, or max_seq_len if that is more; memory
                    is committed as it is used
    max_batch_size  requests that run at once; others wait
    prefill_chunk   largest number of prompt tokens in one step (chunked prefill)
    prefix_cache    whether cached prefixes of prompts are reused
    generation_config
                    "auto" makes the model folder's generation_config.json the defaults of all keywords, a path another
                    one; by default none is used except for its eos_token_id
    progress        True for a bar on stderr, or a callable (modules done, modules in total)
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        adapters: Mapping[str, str | PathLike[str]] | None = None,
        device: str = "auto",
        threads: int | None = None,
        kv_dtype: str = "f16",
        max_seq_len: int | None = None,
        kv_tokens: int | None = None,
        max_batch_size: int = 32,
        prefill_chunk: int = 512,
        prefix_cache: bool = True,
        generation_config: str | PathLike[str] | None = None,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "kv_dtype": kv_dtype,
            "max_seq_len": max_seq_len,
            "kv_tokens": kv_tokens,
            "max_batch_size": max_batch_size,
            "prefill_chunk": prefill_chunk,
            "prefix_cache": prefix_cache,
            "generation_config": generation_config,
        }
        self._path = model
        self._engine: _exlora.Engine | None = _exlora.Engine(model, progress=progress, **self._options)
        self._defaults: Mapping[str, Any] = self._engine.request_defaults
        for name, path in (adapters or {}).items():
            self.load_adapter(name, path)

    @overload
    def generate(
        self,
        prompts: Prompt | Request,
        adapters: Adapter = None,
        *,
        adapter: Adapter = None,
        sampling: SamplingParams | None = None,
        **keywords: Unpack[RequestKeywords],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompts: list[OnePrompt] | tuple[OnePrompt, ...],
        adapters: Adapters = None,
        *,
        adapter: Adapter = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        **keywords: Unpack[RequestKeywords],
    ) -> list[Completion]: ...

    @_shows_request_keywords
    def generate(self, prompts: Any, adapters: Any = None, *, adapter: Any = None, **keywords: Any) -> Any:
        """Continues one prompt and returns a `Completion`, or a list of prompts and returns a list in the same order.

        A prompt is text, token ids (a list, or an array of numpy or torch), or chat messages (a list of dicts); a
        two-dimensional array is a list of prompts. All prompts run in one batch. `adapters` and every keyword take one
        value for all prompts, or a list with one value per prompt. Instead of prompts and keywords, a `Request` or a
        list of them may be given.

        adapters             None for the base, a name, or an ordered mapping name -> weight; `adapter` is the same
        sampling             a `SamplingParams`; keywords given with it change it
        max_new_tokens       largest number of new tokens
        min_new_tokens       stop tokens and stop strings do not end the text before this number of new tokens
        temperature          0 is greedy decoding
        top_k, top_p, min_p  keep the k best, the nucleus, the tokens of at least a share of the best one's probability
        repetition_penalty   on tokens of prompt and output, the last `repetition_range` of them if that is given
        frequency_penalty    and presence_penalty: on tokens of the output
        logit_bias           id -> value added to its logit; -inf forbids it
        seed                 of the random numbers
        stop                 ids and strings that end the text, one or a list; for several prompts it is one value per
                             prompt only if it is as long as the prompts and contains nothing but lists and None
        stop_at_eos          whether the model's own end-of-sequence ids end the text
        logprobs             n >= 1 returns `logprobs` (of the chosen ids) and `top_logprobs` (of the n best)
        return_logits        whether to return the logits that each token was chosen from
        skip_special_tokens  whether special tokens are left out of the text
        add_special_tokens   whether the tokenizer adds its own special tokens (a BOS) to a text prompt

        For chat messages, as transformers' `apply_chat_template` takes them:

        tools, documents        lists of dicts for the model's chat template; for several prompts, as `stop`
        chat_template           the name of a template of the model, or the text of another one
        chat_template_kwargs    a dict with other variables of the template, like `{"enable_thinking": False}`
        continue_final_message  True: the model continues the last message instead of starting its own
        add_generation_prompt   whether the prompt ends with the start of an answer; by default, unless it continues
        """
        adapters = _either(adapters, adapter)
        batch = _batch(prompts)
        if batch is None:
            return self._native.generate([_request(prompts, adapters, keywords, self._defaults)])[0]
        values = {"adapter": adapters, **keywords}
        each = {name: _per_prompt(name, value, len(batch)) for name, value in values.items()}
        requests = []
        for i, prompt in enumerate(batch):
            own = {name: column[i] for name, column in each.items()}
            requests.append(_request(prompt, own.pop("adapter"), own, self._defaults))
        return self._native.generate(requests)

    @_shows_request_keywords
    def stream(
        self,
        prompt: Prompt | Request,
        adapter: Adapter = None,
        *,
        sampling: SamplingParams | None = None,
        **keywords: Unpack[RequestKeywords],
    ) -> Stream:
        """Continues one prompt piece by piece. Takes what `generate` takes for one prompt.

        The texts of all chunks joined are the text of `generate`. The stream is an iterator and an async iterator.
        """
        request = _request(prompt, adapter, {"sampling": sampling, **keywords}, self._defaults)
        return Stream(self._native.submit(request))

    def logits(self, prompt: Prompt, adapter: Adapter = None) -> FloatArray:
        """Logits of every position of a prompt under a mixture, float32 [tokens, vocab]."""
        return self._native.logits(prompt, adapter)

    def load_adapter(self, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """Loads an adapter, or replaces the one of that name. Running requests keep the version they have."""
        return self._native.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Unloads an adapter. Running requests keep it. A name that is not loaded is an error."""
        self._native.unload_adapter(name)

    def adapters(self) -> list[AdapterInfo]:
        """The loaded adapters, sorted by name. Never waits for a step."""
        return self._native.adapters()

    def stats(self) -> dict[str, int]:
        """Counters and resident bytes. Never waits for a step: while one runs, the counters are as before it."""
        return self._native.stats()

    def clear_prefix_cache(self) -> None:
        """Forgets all cached prefixes."""
        self._native.clear_prefix_cache()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's folder."""
        return self._native.tokenizer

    def tokenizer_for(self, adapter: Adapter) -> Tokenizer:
        """The tokenizer of requests with these adapters: the first adapter's that brings one, else the model's."""
        return self._native.tokenizer_for(adapter)

    @property
    def device(self) -> str:
        """What computes: `cpu (avx512, 2 threads)`."""
        return self._native.model.device

    def close(self) -> None:
        """Closes the engine. Running streams keep the model until they end."""
        self._engine = None

    @property
    def _native(self) -> _exlora.Engine:
        if self._engine is None:
            raise _exlora.error("model_not_loaded", "the engine is closed", hint="make a new Engine")
        return self._engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        adapters = {info.name: info.path for info in self.adapters()}
        return _open, (self._path, {**self._options, "adapters": adapters})

    def __repr__(self) -> str:
        if self._engine is None:
            return f"Engine({str(self._path)!r}, closed)"
        return (
            f"Engine({str(self._path)!r}, device={self.device!r}, adapters={[info.name for info in self.adapters()]})"
        )


class Stream(Iterator[Chunk], AsyncIterator[Chunk]):
    """The chunks of one request. Closing it, leaving its `with` block or deleting it ends the request.

    With `async for`, each chunk is awaited in a thread of the event loop's default executor.
    """

    def __init__(self, job: _exlora.Job) -> None:
        self._job = job

    def __next__(self) -> Chunk:
        chunk = self._job.next_chunk()
        if chunk is None:
            raise StopIteration
        return chunk

    async def __anext__(self) -> Chunk:
        chunk = await asyncio.to_thread(self._job.next_chunk)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Ends the request."""
        self._job.close()

    async def aclose(self) -> None:
        """Ends the request without blocking the event loop."""
        self._job.cancel()
        await asyncio.to_thread(self._job.close)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _open(path: str | PathLike[str], options: dict[str, Any]) -> Engine:
    """Unpickles an engine."""
    return Engine(path, **options)


def _request(prompt: Any, adapter: Any, keywords: Mapping[str, Any], defaults: Mapping[str, Any]) -> Request:
    """A request of a prompt and keywords, or the request itself, which has both."""
    if not isinstance(prompt, Request):
        return Request(prompt, adapter, **_with_defaults(keywords, defaults))
    if adapter is not None or any(value is not None for value in keywords.values()):
        raise TypeError("a Request has its own adapters and settings; give them to the Request")
    return prompt


def _with_defaults(keywords: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords, and defaults for those that are not given; a `SamplingParams` gives all of its own."""
    if keywords.get("sampling") is not None:
        defaults = {name: value for name, value in defaults.items() if not hasattr(SamplingParams, name)}
    merged = {**defaults, **keywords}
    if keywords.get("logit_bias") and "logit_bias" in defaults:
        # Forbidden tokens stay forbidden, unless the request has its own value for them.
        merged["logit_bias"] = {**defaults["logit_bias"], **keywords["logit_bias"]}
    return merged


def _batch(prompts: Any) -> Any:
    """The prompts, if they are several (a list of anything but ids or messages, an array of rows), else `None`."""
    if hasattr(prompts, "ndim"):
        return prompts if prompts.ndim > 1 else None
    if not isinstance(prompts, list | tuple):
        return None
    is_one = len(prompts) > 0 and (_is_id(prompts[0]) or isinstance(prompts[0], Mapping))
    return None if is_one else prompts


def _is_id(item: Any) -> bool:
    """Whether it is an integer, of any library, rather than an array of integers."""
    return hasattr(item, "__index__") and not getattr(item, "ndim", 0)


def _either(adapters: Any, adapter: Any) -> Any:
    if adapters is not None and adapter is not None:
        raise TypeError("adapter and adapters mean the same; give one of them")
    return adapter if adapters is None else adapters


def _per_prompt(name: str, value: Any, n: int) -> Any:
    """One value for each of n prompts."""
    is_list = isinstance(value, list | tuple) or bool(getattr(value, "ndim", 0))
    if name in ("stop", "tools", "documents"):
        # Such a list is usually one value.
        is_list = is_list and len(value) == n and all(item is None or isinstance(item, list | tuple) for item in value)
    if not is_list:
        return [value] * n
    if len(value) != n:
        raise _exlora.error(
            "request_invalid",
            f"{'adapters' if name == 'adapter' else name} has another length than the prompts",
            expected=f"one value, or a list of {n}",
            found=f"a list of {len(value)}",
        )
    return value
