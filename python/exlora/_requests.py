"""Prompts and keywords of one request or several, as the engine's methods take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import exlora._exlora as _exlora
from exlora._exlora import Completion, Request, SamplingParams
from exlora.errors import ExloraError

#: How the extension module notes which argument it was reading; before Python 3.11 it is part of the text.
_NOTE = "while processing "

__all__ = ["RequestBatch", "batch_of", "either", "requests_of", "samples_of"]


@dataclass(frozen=True)
class RequestBatch:
    """The requests of one call, and the shape that its caller expects of their results."""

    requests: list[Request | Exception]
    #: A prompt's number of samples, by its index.
    samples: Callable[[int], int]
    is_one: bool
    #: Whether a prompt's result is the list of its samples.
    is_sampled: bool

    @classmethod
    def of(
        cls, prompts: Any, values: Mapping[str, Any], defaults: Mapping[str, Any], n: Any, *, return_errors: bool
    ) -> RequestBatch:
        """The requests of prompts and keywords. The first that cannot be made raises, unless `return_errors`."""
        if isinstance(prompts, Iterator):
            prompts = list(prompts)
        batch = batch_of(prompts)
        is_one = batch is None
        batch = [prompts] if is_one else batch
        samples = samples_of(n, batch, is_one=is_one)
        requests = list(requests_of(batch, values, defaults, is_one=is_one))
        wrong = [request for request in requests if isinstance(request, Exception)]
        if wrong and not return_errors:
            raise wrong[0]
        return cls(requests, samples, is_one, n is not None)

    def valid(self) -> list[tuple[int, Request]]:
        """The requests that could be made, each with its index."""
        return [(i, request) for i, request in enumerate(self.requests) if isinstance(request, Request)]

    def shaped(self, results: Mapping[int, list[Completion | Exception]], *, return_errors: bool) -> Any:
        """What the caller gets of the results of the samples of each valid request, by its index.

        Raises the first error, with all results attached, unless `return_errors`.
        """
        lists: list[list[Completion | Exception]] = [
            results[i] if isinstance(one, Request) else [one] for i, one in enumerate(self.requests)
        ]
        shaped: list[Any] = lists if self.is_sampled else [samples[0] for samples in lists]
        if not return_errors:
            _raise_first_error(lists, shaped)
        return shaped[0] if self.is_one else shaped


def _raise_first_error(lists: list[list[Completion | Exception]], results: list[Any]) -> None:
    """Raises the first exception among the results of the samples of each prompt, with all results attached."""
    for index, samples in enumerate(lists):
        for error in samples:
            if isinstance(error, ExloraError):
                error.request_index = index
                error.results = results
                raise error


def either(adapters: Any, adapter: Any) -> Any:
    """The one that was given."""
    if adapters is not None and adapter is not None:
        raise TypeError("adapter and adapters mean the same; give one of them")
    return adapter if adapters is None else adapters


def batch_of(prompts: Any) -> Any:
    """The prompts, if they are several: an iterable of anything but ids or messages, an array of rows. Else `None`."""
    if isinstance(prompts, str | bytes | bytearray | Mapping | Request):
        return None
    if isinstance(prompts, set | frozenset):
        raise TypeError("prompts is a set, which has no order; expected a list or another iterable")
    dimensions = getattr(prompts, "ndim", None)
    if dimensions is not None and dimensions > 1:
        return prompts
    if dimensions == 1 and hasattr(prompts, "tolist"):
        values = prompts.tolist()  # an array of ids, or a column of texts
        return values if values and isinstance(values[0], str) else None
    if not isinstance(prompts, list | tuple | range):
        return prompts if isinstance(prompts, Iterable) and dimensions is None else None
    is_one = len(prompts) > 0 and (_is_id(prompts[0]) or _is_message(prompts[0]))
    return None if is_one else prompts


def requests_of(
    prompts: Iterable[Any], values: Mapping[str, Any], defaults: Mapping[str, Any], *, is_one: bool
) -> Iterator[Request | Exception]:
    """The request of each prompt, or the exception of one that cannot be made, as the prompts are asked for.

    Each of `values` is the same for all prompts, or, unless `is_one`, a list with one value per prompt. `defaults` are
    those of the engine.
    """
    n = len(prompts) if isinstance(prompts, Sized) else None
    columns = {} if is_one else {name: values[name] for name in values if _is_column(name, values[name], n)}
    for name, column in columns.items():
        _check_length("adapters" if name == "adapter" else name, len(column), n)
    shared = {name: value for name, value in values.items() if name not in columns}

    def requests() -> Iterator[Request | Exception]:
        for i, prompt in enumerate(prompts):
            own = {**shared, **{name: column[i] for name, column in columns.items()}}
            try:
                yield _request(prompt, own.pop("adapter", None), own, defaults)
            except (TypeError, ValueError) as error:
                yield _named(error, None if is_one else i)

    return requests()


def samples_of(n: Any, prompts: Any, *, is_one: bool) -> Callable[[int], int]:
    """A function from a prompt's index to its number of samples."""
    if n is None:
        return lambda _: 1
    if not is_one and _is_column("n", n, None):
        _check_length("n", len(n), len(prompts) if isinstance(prompts, Sized) else None)
        return lambda i: n[i]
    return lambda _: n


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


def _named(error: Exception, index: int | None) -> Exception:
    """The error, with the index of its prompt and the name of its argument in the text."""
    notes: list[str] = getattr(error, "__notes__", [])
    text = str(error)
    if len(notes) == 1 and notes[0].startswith(_NOTE):
        text = f"argument {notes.pop().removeprefix(_NOTE)}: {text}"
    error.args = (text if index is None else f"request {index}: {text}",)
    return error


def _is_id(item: Any) -> bool:
    """Whether it is an integer, of any library, rather than an array of integers."""
    return hasattr(item, "__index__") and not getattr(item, "ndim", 0)


def _is_message(item: Any) -> bool:
    """Whether it is a message of a chat, rather than a prompt with vectors."""
    return isinstance(item, Mapping) and "prompt_embeds" not in item


def _is_column(name: str, value: Any, n: int | None) -> bool:
    """Whether it is a list with one value per prompt."""
    if name == "negative_prompt":
        return batch_of(value) is not None and isinstance(value, Sized)
    is_list = isinstance(value, list | tuple) or bool(getattr(value, "ndim", 0))
    if name in ("stop", "banned_strings", "choices", "filters", "post_sampling_hooks", "tools", "documents"):
        # Such a list is usually one value.
        return is_list and len(value) == n and all(item is None or isinstance(item, list | tuple) for item in value)
    return is_list


def _check_length(name: str, found: int, n: int | None) -> None:
    if n is None:
        raise _exlora.error(
            "request_invalid",
            f"{name} is a list, but the number of prompts is not known before they are taken",
            expected="one value for all prompts, or prompts that are Requests",
        )
    if found != n:
        raise _exlora.error(
            "request_invalid",
            f"{name} has another length than the prompts",
            expected=f"one value, or a list of {n}",
            found=f"a list of {found}",
        )
