"""exllamav2's tokenizer, its vocabulary by ids, and tables of what tokens add to a text."""

from exlora.tokenizer.base import ExLlamaV2TokenizerBase
from exlora.tokenizer.hf import ExLlamaV2TokenizerHF
from exlora.tokenizer.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2Tokenizer", "ExLlamaV2TokenizerBase", "ExLlamaV2TokenizerHF"]
