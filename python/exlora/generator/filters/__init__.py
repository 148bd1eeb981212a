"""exllamav2's filters: objects that choose which tokens may follow."""

from exlora.generator.filters.base import ExLlamaV2Filter
from exlora.generator.filters.prefix import ExLlamaV2PrefixFilter
from exlora.generator.filters.select import ExLlamaV2SelectFilter

__all__ = ["ExLlamaV2Filter", "ExLlamaV2PrefixFilter", "ExLlamaV2SelectFilter"]
