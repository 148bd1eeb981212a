"""The exceptions of exlora: one class per kind of error, each also the builtin exception that a caller would expect.

Their contents come from the crate's catalog of errors (`exlora.error_codes()`). `code` is stable; the text may improve.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AdapterNotFoundError",
    "ExloraError",
    "InternalError",
    "InvalidError",
    "IoError",
    "NotFoundError",
    "OperationCancelledError",
    "OutOfMemoryError",
    "UnsupportedError",
]


class ExloraError(Exception):
    """Base class of exlora's own exceptions.

    code      stable snake_case name of the error
    message   what is wrong
    path      file or folder, or None
    tensor    full name of the tensor, or None
    expected  what was expected, or None
    found     what was found instead, or None
    hint      what to do about it
    others    further problems found in the same pass

    Of a batch:

    request_index  index of the prompt or request, or None
    results        what `return_errors=True` would have returned, if `generate` ran the batch to its end, or None
    """

    code: str
    message: str
    path: str | None
    tensor: str | None
    expected: str | None
    found: str | None
    hint: str
    others: list[ExloraError]
    request_index: int | None
    results: list[Any] | None

    def __init__(
        self,
        text: str = "",
        *,
        code: str = "internal",
        message: str | None = None,
        path: str | None = None,
        tensor: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str = "",
        others: list[ExloraError] | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.message = text if message is None else message
        self.path = path
        self.tensor = tensor
        self.expected = expected
        self.found = found
        self.hint = hint
        self.others = others or []
        self.request_index = None
        self.results = None


class NotFoundError(ExloraError, FileNotFoundError):
    """Something does not exist: a file, a tensor, an adapter."""


class AdapterNotFoundError(NotFoundError, ValueError, LookupError):
    """No adapter of that name is loaded."""


class InvalidError(ExloraError, ValueError):
    """A value, a file or a request is wrong."""


class UnsupportedError(ExloraError, NotImplementedError, ValueError):
    """Valid, but not supported by this build."""


class OutOfMemoryError(ExloraError, MemoryError):
    """A budget or the machine's memory is too small."""


class OperationCancelledError(ExloraError):
    """The caller stopped the work. Ctrl-C and exceptions in callbacks reach the caller as they are, not as this."""


#: The former name, which reads like asyncio's unrelated exception.
CancelledError = OperationCancelledError


class IoError(ExloraError, OSError):
    """Reading or writing failed in the operating system."""


class InternalError(ExloraError, RuntimeError):
    """A bug in exlora."""


_BY_KIND: dict[str, type[ExloraError]] = {
    "not_found": NotFoundError,
    "invalid": InvalidError,
    "unsupported": UnsupportedError,
    "memory": OutOfMemoryError,
    "cancelled": OperationCancelledError,
    "io": IoError,
    "internal": InternalError,
}


def class_of(code: str, kind: str) -> type[ExloraError]:
    """The class of an error by code and kind. Called by the extension module."""
    return AdapterNotFoundError if code == "adapter_not_found" else _BY_KIND[kind]
