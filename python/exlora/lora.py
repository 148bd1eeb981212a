"""exllamav2's module of that name: the adapter object."""

from exlora._exlora import ExLlamaV2Lora

__all__ = ["ExLlamaV2Lora"]
