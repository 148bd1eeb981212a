"""exllamav2's generators: `dynamic` for many jobs at once, `base` and `streaming` for the older interfaces."""

from exlora.generator.base import ExLlamaV2BaseGenerator
from exlora.generator.dynamic import ExLlamaV2DynamicGenerator
from exlora.generator.dynamic_async import ExLlamaV2DynamicGeneratorAsync, ExLlamaV2DynamicJobAsync
from exlora.generator.dynamic_embeddings import ExLlamaV2MMEmbedding
from exlora.generator.hooks import ExLlamaV2PostSamplingHook, ExLlamaV2PostSamplingResult
from exlora.generator.job import ExLlamaV2DynamicJob
from exlora.generator.sampler import ExLlamaV2Sampler
from exlora.generator.streaming import ExLlamaV2StreamingGenerator

__all__ = [
    "ExLlamaV2BaseGenerator",
    "ExLlamaV2DynamicGenerator",
    "ExLlamaV2DynamicGeneratorAsync",
    "ExLlamaV2DynamicJob",
    "ExLlamaV2DynamicJobAsync",
    "ExLlamaV2MMEmbedding",
    "ExLlamaV2PostSamplingHook",
    "ExLlamaV2PostSamplingResult",
    "ExLlamaV2Sampler",
    "ExLlamaV2StreamingGenerator",
]
