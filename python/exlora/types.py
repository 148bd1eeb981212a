"""The types of arguments and results, for annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exlora._exlora import ExLlamaV2Lora

__all__ = ["Adapter", "FloatArray", "LogitBias", "Message", "Messages", "Prompt", "Stop", "TokenIds"]


class Array(Protocol):
    """A numpy array, a torch tensor, or whatever else can list its items."""

    def tolist(self) -> Any: ...


#: float32 values.
FloatArray: TypeAlias = NDArray[np.float32]

#: Token ids of one prompt.
TokenIds: TypeAlias = Sequence[int] | Array

#: One message of a chat: `role`, `content`, and whatever else the model's template reads.
Message: TypeAlias = Mapping[str, Any]

#: A chat.
Messages: TypeAlias = Sequence[Message]

#: What to continue.
Prompt: TypeAlias = str | TokenIds | Messages

#: One adapter or an ordered mixture; `None` is the base model.
Adapter: TypeAlias = (
    str | ExLlamaV2Lora | Mapping[str, float] | Sequence[str | ExLlamaV2Lora | tuple[str | ExLlamaV2Lora, float]] | None
)

#: Ids and strings that end a text.
Stop: TypeAlias = int | str | Sequence[int | str] | None

#: What is added to the logits of single ids.
LogitBias: TypeAlias = Mapping[int, float] | None
