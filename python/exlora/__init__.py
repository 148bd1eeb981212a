"""Multi-LoRA inference: any PEFT LoRA, on any quantized LLM, chosen per request.

    from exlora import Engine

    engine = Engine("models/quill", adapters={"sql": "adapters/sql", "wit": "adapters/wit"})
    outs = engine.generate(["SELECT", "A cat is", "Once"], adapters=["sql", {"sql": 0.5, "wit": 0.5}, None])

Scripts written for exllamav2 run after changing their imports, or as they are with `python -m exlora.compat`: the
classes named ExLlamaV2... here and in `exlora.generator` have its names, arguments and results.
"""

from exlora._exlora import (
    AdapterInfo,
    Chunk,
    Completion,
    ExLlamaV2Lora,
    PostSampling,
    Request,
    SamplingParams,
    Tokenizer,
    Usage,
    __version__,
    error_codes,
)
from exlora._logging import configure as _configure_logging
from exlora.as_completed import AsCompleted
from exlora.async_engine import AsyncEngine, AsyncStream
from exlora.cache import (
    ExLlamaV2Cache,
    ExLlamaV2Cache_8bit,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Cache_Q6,
    ExLlamaV2Cache_Q8,
    ExLlamaV2Cache_TP,
    ExLlamaV2CacheBase,
)
from exlora.config import ExLlamaV2Config
from exlora.engine import Engine, Stream
from exlora.errors import (
    AdapterNotFoundError,
    ExloraError,
    InternalError,
    InvalidError,
    IoError,
    NotFoundError,
    OperationCancelledError,
    OutOfMemoryError,
    UnsupportedError,
)
from exlora.errors import (
    CancelledError as CancelledError,
)
from exlora.model import ExLlamaV2
from exlora.module import Intervention
from exlora.server import Server, serve
from exlora.tokenizer import ExLlamaV2Tokenizer
from exlora.util import SeqTensor, Timer
from exlora.vlm import ExLlamaV2MultimodalProjector, ExLlamaV2VisionTower

__all__ = [
    "AdapterInfo",
    "AdapterNotFoundError",
    "AsCompleted",
    "AsyncEngine",
    "AsyncStream",
    "Chunk",
    "Completion",
    "Engine",
    "ExLlamaV2",
    "ExLlamaV2Cache",
    "ExLlamaV2CacheBase",
    "ExLlamaV2Cache_8bit",
    "ExLlamaV2Cache_Q4",
    "ExLlamaV2Cache_Q6",
    "ExLlamaV2Cache_Q8",
    "ExLlamaV2Cache_TP",
    "ExLlamaV2Config",
    "ExLlamaV2Lora",
    "ExLlamaV2MultimodalProjector",
    "ExLlamaV2Tokenizer",
    "ExLlamaV2VisionTower",
    "ExloraError",
    "InternalError",
    "Intervention",
    "InvalidError",
    "IoError",
    "NotFoundError",
    "OperationCancelledError",
    "OutOfMemoryError",
    "PostSampling",
    "Request",
    "SamplingParams",
    "SeqTensor",
    "Server",
    "Stream",
    "Timer",
    "Tokenizer",
    "UnsupportedError",
    "Usage",
    "__version__",
    "error_codes",
    "serve",
]

_configure_logging()
