"""`Engine`: a model, its adapters and every request's choice among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from exlora import _exlora
from exlora._exlora import AdapterInfo, Chunk, Tokenizer
from exlora.types import Adapter, FloatArray, LogitBias, Prompt, Stop

__all__ = ["Engine", "Stream"]


class Engine:
    """A quantized base model and any number of LoRA adapters; each request names its own adapter or mixture.

    Any thread may call anything at any time: requests of several threads run in one batch, and adapters come and go
    while they run. An engine can be pickled: the copy loads the same model and adapters anew.

    model           folder with config.json and *.safetensors
    adapters        name -> folder of a PEFT LoRA adapter
    device          "auto", "cpu", or "reference" (plain float32 maths, slow)
    threads         CPU threads; all physical cores by default
    kv_dtype        "f16" or "f32"
    kv_tokens       tokens the KV cache holds over all requests; 8192 by default, touched as they are used
    max_batch_size  requests that run at once; further ones wait
    prefill_chunk   prompt tokens a step computes at most
    prefix_cache    whether beginnings of prompts are found in the cache
    progress        True for a bar on stderr, or a callable (modules done, modules in all)
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        adapters: Mapping[str, str | PathLike[str]] | None = None,
        device: str = "auto",
        threads: int | None = None,
        kv_dtype: str = "f16",
        kv_tokens: int | None = None,
        max_batch_size: int = 32,
        prefill_chunk: int = 512,
        prefix_cache: bool = True,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "kv_dtype": kv_dtype,
            "kv_tokens": kv_tokens,
            "max_batch_size": max_batch_size,
            "prefill_chunk": prefill_chunk,
            "prefix_cache": prefix_cache,
        }
        self._path = model
        self._engine: _exlora.Engine | None = _exlora.Engine(model, progress=progress, **self._options)
        for name, path in (adapters or {}).items():
            self.load_adapter(name, path)

    def generate(
        self,
        prompts: Any,
        adapters: Any = None,
        *,
        adapter: Adapter = None,
        max_new_tokens: int | Sequence[int] = 128,
        min_new_tokens: int | Sequence[int] = 0,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        min_p: float | Sequence[float] = 0.0,
        repetition_penalty: float | Sequence[float] = 1.0,
        frequency_penalty: float | Sequence[float] = 0.0,
        presence_penalty: float | Sequence[float] = 0.0,
        logit_bias: LogitBias | Sequence[LogitBias] = None,
        seed: int | Sequence[int] = 0,
        stop: Stop | Sequence[Stop] = None,
        logprobs: int | Sequence[int] = 0,
        stop_at_eos: bool | Sequence[bool] = True,
        return_logits: bool | Sequence[bool] = False,
        skip_special_tokens: bool | Sequence[bool] = True,
        add_special_tokens: bool | Sequence[bool] = True,
    ) -> Any:
        """Continues one prompt and returns its `Completion`, or a list of prompts and returns a list in their order.

        A prompt is text, token ids (a list, or an array of numpy or torch), or chat messages (a list of dicts). All
        prompts run in one batch. `adapters` and every keyword take one value for all prompts, or a list with one each.

        adapters             None for the base, a name, or an ordered mapping name -> weight; `adapter` is the same
        temperature          0 is greedy
        top_k, top_p, min_p  keep the k best, the nucleus, the tokens of a share of the best one's probability
        repetition_penalty   on tokens of prompt and output
        frequency_penalty    and presence_penalty: on tokens of the output
        logit_bias           id -> what is added to its logit; -inf forbids it
        stop                 ids and strings that end the text, one or a list; for a batch it is one value per prompt
                             only if it is as long as the prompts and holds nothing but lists and None
        logprobs             n >= 1 gives `logprobs` (of the chosen ids) and `top_logprobs` (of the n best)
        stop_at_eos          whether the model's own end ids end the text
        """
        settings = locals()
        for name in ("self", "prompts", "adapters", "adapter"):
            del settings[name]
        batch, adapters = _batch(prompts), _either(adapters, adapter)
        if batch is None:
            [completion] = self._native.generate([_exlora.Request(prompts, adapters, **settings)])
            return completion
        each = {
            name: _spread_stop(value, len(batch)) if name == "stop" else _spread(name, value, len(batch))
            for name, value in settings.items()
        }
        adapter_of = _spread("adapters", adapters, len(batch))
        requests = [
            _exlora.Request(prompt, adapter_of[i], **{name: values[i] for name, values in each.items()})
            for i, prompt in enumerate(batch)
        ]
        return self._native.generate(requests)

    def stream(
        self,
        prompt: Prompt,
        adapter: Adapter = None,
        *,
        max_new_tokens: int = 128,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: LogitBias = None,
        seed: int = 0,
        stop: Stop = None,
        logprobs: int = 0,
        stop_at_eos: bool = True,
        return_logits: bool = False,
        skip_special_tokens: bool = True,
        add_special_tokens: bool = True,
    ) -> Stream:
        """Continues one prompt piece by piece; keywords as for `generate`, whose text the chunks' texts add up to."""
        settings = locals()
        for name in ("self", "prompt", "adapter"):
            del settings[name]
        return Stream(self._native.submit(_exlora.Request(prompt, adapter, **settings)))

    def logits(self, prompt: Prompt, adapter: Adapter = None) -> FloatArray:
        """Logits of every position of a prompt under a mixture, float32 [tokens, vocab]."""
        return self._native.logits(prompt, adapter)

    def load_adapter(self, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """Loads an adapter, or replaces the one of that name; running requests keep theirs."""
        return self._native.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; running requests keep it. One that is not loaded is an error."""
        self._native.unload_adapter(name)

    def adapters(self) -> list[AdapterInfo]:
        """The loaded adapters, by name."""
        return self._native.adapters()

    def stats(self) -> dict[str, int]:
        """Counters and resident bytes, now."""
        return self._native.stats()

    def clear_prefix_cache(self) -> None:
        """Forgets every cached prefix."""
        self._native.clear_prefix_cache()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's folder."""
        return self._native.tokenizer

    @property
    def device(self) -> str:
        """What computes: `cpu (avx512, 2 threads)`."""
        return self._native.model.device

    def close(self) -> None:
        """Lets go of the model. Streams that still run keep it to their end."""
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


class Stream(Iterator[Chunk]):
    """The chunks of one request. Closing it, leaving its `with` block or forgetting it ends the request."""

    def __init__(self, job: _exlora.Job) -> None:
        self._job = job

    def __next__(self) -> Chunk:
        chunk = self._job.next_chunk()
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Ends the request."""
        self._job.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: str | PathLike[str], options: dict[str, Any]) -> Engine:
    """An engine from its pickled options."""
    return Engine(path, **options)


def _batch(prompts: Any) -> Any:
    """The prompts, if they are several (a list of anything but ids or messages, an array of rows), else `None`."""
    if hasattr(prompts, "ndim"):
        return prompts if prompts.ndim > 1 else None
    if not isinstance(prompts, list | tuple):
        return None
    is_one = len(prompts) > 0 and (_is_id(prompts[0]) or isinstance(prompts[0], Mapping))
    return None if is_one else prompts


def _is_id(item: Any) -> bool:
    """Whether it is an integer, of whatever library, rather than an array of them."""
    return hasattr(item, "__index__") and not getattr(item, "ndim", 0)


def _either(adapters: Any, adapter: Any) -> Any:
    if adapters is not None and adapter is not None:
        raise TypeError("adapter and adapters mean the same; give one of them")
    return adapter if adapters is None else adapters


def _spread(name: str, value: Any, n: int) -> Any:
    """One value for each of n prompts."""
    if not isinstance(value, list | tuple) and not getattr(value, "ndim", 0):
        return [value] * n
    if len(value) != n:
        what = f"{name} has another length than the prompts"
        raise _exlora.error(
            "request_invalid", what, expected=f"one value, or a list of {n}", found=f"a list of {len(value)}"
        )
    return value


def _spread_stop(value: Any, n: int) -> Any:
    """As `_spread`, where a list is usually one value."""
    is_list = isinstance(value, list | tuple)
    if is_list and len(value) == n and all(item is None or isinstance(item, list | tuple) for item in value):
        return value
    return [value] * n
