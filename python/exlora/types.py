"""The types of arguments and results, for annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

if TYPE_CHECKING:
    import numpy
    import numpy.typing

    from exlora._exlora import ExLlamaV2Lora

    FloatArray: TypeAlias = numpy.typing.NDArray[numpy.float32]

__all__ = ["Adapter", "FloatArray", "LogitBias", "Message", "Prompt", "Stop", "TokenIds"]


class Array(Protocol):
    """A numpy array, a torch tensor, or whatever else can list its items."""

    def tolist(self) -> Any: ...


#: Token ids of one prompt.
TokenIds: TypeAlias = Sequence[int] | Array

#: One message of a chat: `role`, `content`, and whatever else the model's template reads.
Message: TypeAlias = Mapping[str, Any]

#: What to continue.
Prompt: TypeAlias = Union[str, TokenIds, Sequence[Message]]

#: One adapter or an ordered mixture; `None` is the base model.
Adapter: TypeAlias = Union[
    None,
    str,
    "ExLlamaV2Lora",
    Mapping[str, float],
    Sequence[Union[str, "ExLlamaV2Lora", tuple[Union[str, "ExLlamaV2Lora"], float]]],
]

#: Ids and strings that end a text.
Stop: TypeAlias = Union[None, int, str, Sequence[Union[int, str]]]

#: What is added to the logits of single ids.
LogitBias: TypeAlias = Mapping[int, float] | None
