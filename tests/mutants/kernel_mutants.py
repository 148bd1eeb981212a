"""Bugs in the kernels' sources, of all families."""

from attention_mutants import ATTENTION_MUTANTS
from expand_mutants import EXPAND_MUTANTS
from kv_mutants import KV_MUTANTS
from linear_mutants import LINEAR_MUTANTS

KERNEL_MUTANTS = (*ATTENTION_MUTANTS, *LINEAR_MUTANTS, *EXPAND_MUTANTS, *KV_MUTANTS)
