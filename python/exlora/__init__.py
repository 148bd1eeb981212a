"""Any PEFT LoRA, on any quantised LLM, chosen per request."""
from exlora import _exlora
