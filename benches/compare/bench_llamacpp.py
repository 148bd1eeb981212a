#!/usr/bin/env python3
"""One measurement of llama.cpp on the CPU through llama-cpp-python's low-level binding: one JSON line.

  bench_llamacpp.py MODEL.gguf [--adapter LORA.gguf] [--batch 8 --distinct-adapters 8]
  bench_llamacpp.py MODEL.gguf --quantize Q4_0 OUT.gguf

Its adapters belong to a context, not to a sequence: sequences of different adapters are decoded one adapter after the
other, as llama.cpp's own server does.
"""

import ctypes
import random
import time

import llama_cpp as llama
import numpy as np
from timing import measured, options, random_tokens, report  # beside this file

MICRO_BATCH = 512


class Context:
    """A model with its adapters and a context for the sequences of one batch."""

    def __init__(self, chosen):
        start = time.perf_counter()
        self.model = llama.llama_model_load_from_file(str(chosen.model).encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx = chosen.batch * (chosen.prompt + chosen.decode + 64)
        params.n_batch = params.n_ubatch = max(MICRO_BATCH, chosen.batch)
        params.n_seq_max = chosen.batch
        params.n_threads = params.n_threads_batch = chosen.threads
        self.context = llama.llama_init_from_model(self.model, params)
        self.load_s = time.perf_counter() - start
        start = time.perf_counter()
        wanted = chosen.distinct_adapters if chosen.adapter else 0
        self.adapters = [llama.llama_adapter_lora_init(self.model, str(chosen.adapter).encode()) for _ in range(wanted)]
        self.lora_load_s = time.perf_counter() - start if wanted else None
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(max(MICRO_BATCH, chosen.batch), 0, 1)
        self.draw = random.Random(0)

    def use(self, adapter):
        if adapter is None:
            code = llama.llama_set_adapters_lora(self.context, None, 0, None)
        else:
            one = (llama.llama_adapter_lora_p_ctypes * 1)(self.adapters[adapter])
            code = llama.llama_set_adapters_lora(self.context, one, 1, (ctypes.c_float * 1)(1.0))
        if code != 0:
            raise SystemExit(f"llama_set_adapters_lora gave {code}")

    def decode(self, items):
        """Each item is (token, position, sequence, whether its logits are wanted)."""
        for i, (token, position, sequence, wanted) in enumerate(items):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wanted
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
        self.batch.n_tokens = len(items)
        code = llama.llama_decode(self.context, self.batch)
        if code != 0:
            raise SystemExit(f"llama_decode gave {code}")

    def run(self, assignment, prompt, decode):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        groups = {}
        for sequence, adapter in enumerate(assignment):
            groups.setdefault(adapter, []).append(sequence)
        start = time.perf_counter()
        for adapter, sequences in groups.items():
            self.use(adapter)
            tokens = {s: random_tokens(prompt, self.vocab, self.draw) for s in sequences}
            items = [(tokens[s][p], p, s, p == prompt - 1) for s in sequences for p in range(prompt)]
            for i in range(0, len(items), MICRO_BATCH):
                self.decode(items[i : i + MICRO_BATCH])
        llama.llama_get_logits(self.context)
        prompts = time.perf_counter() - start
        start = time.perf_counter()
        for step in range(decode):
            for adapter, sequences in groups.items():
                if len(groups) > 1:
                    self.use(adapter)
                self.decode([(*random_tokens(1, self.vocab, self.draw), prompt + step, s, True) for s in sequences])
                for i in range(len(sequences)):  # a greedy choice, as exlora makes
                    row = llama.llama_get_logits_ith(self.context, i)
                    np.ctypeslib.as_array(row, (self.vocab,)).argmax()
        return prompts, (time.perf_counter() - start) / decode


def quantize(source, kind, out):
    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, "LLAMA_FTYPE_MOSTLY_" + kind)
    if llama.llama_model_quantize(str(source).encode(), out.encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"quantizing to {kind} failed")


def main():
    parser = options(__doc__)
    parser.add_argument("--quantize", nargs=2, metavar=("TYPE", "OUT"), help="quantize the model, and stop")
    chosen = parser.parse_args()
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    if chosen.quantize:
        quantize(chosen.model, *chosen.quantize)
        return
    context = Context(chosen)
    report("llama.cpp", chosen, context.load_s, context.lora_load_s, measured(context.run, chosen))


if __name__ == "__main__":
    main()
