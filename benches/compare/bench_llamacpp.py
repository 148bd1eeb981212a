#!/usr/bin/env python3
"""One measurement of llama.cpp on the CPU through llama-cpp-python's low-level binding: one JSON line.

  bench_llamacpp.py MODEL.gguf [--lora LORA.gguf] [--threads 2] [--prompt 512] [--decode 64] [--no-repack]

With --lora it measures base and adapter alternately in the same process, so that their ratio is paired.
Run it in a fresh process for each measurement: peak RSS is the process's.
"""

import argparse
import ctypes
import os
import random
import time

from timing import line, measured  # beside this file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lora")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-repack", action="store_true")
    parser.add_argument("--logits", help="write the float32 logits of tokens 1..16 here (.npy), and stop")
    options = parser.parse_args()
    import llama_cpp as L

    quiet = L.llama_log_callback(lambda *_: None)
    L.llama_log_set(quiet, None)
    L.llama_backend_init()
    start = time.perf_counter()
    mp = L.llama_model_default_params()
    mp.use_extra_bufts = not options.no_repack
    model = L.llama_model_load_from_file(options.model.encode(), mp)
    cp = L.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch = options.prompt + 2 * options.decode + 64, 512, 512
    cp.n_threads = cp.n_threads_batch = options.threads
    ctx = L.llama_init_from_model(model, cp)
    load_s = time.perf_counter() - start
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    lora_s, adapter = None, None
    if options.lora:
        start = time.perf_counter()
        adapter = L.llama_adapter_lora_init(model, options.lora.encode())
        lora_s = time.perf_counter() - start

    def use(lora):
        if lora:
            code = L.llama_set_adapters_lora(
                ctx, (L.llama_adapter_lora_p_ctypes * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)
            )
        else:
            code = L.llama_set_adapters_lora(ctx, None, 0, None)
        assert code == 0

    def feed(tokens):
        array = (L.llama_token * len(tokens))(*tokens)
        assert L.llama_decode(ctx, L.llama_batch_get_one(array, len(tokens))) == 0

    if options.logits:
        import numpy as np

        use(bool(options.lora))
        feed(list(range(1, 17)))
        np.save(options.logits, np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, -1), (vocab,)).copy())
        return

    draw = random.Random(0)
    prompt = [draw.randrange(3, vocab) for _ in range(options.prompt)]

    def step(_):
        feed([draw.randrange(3, vocab)])
        L.llama_get_logits_ith(ctx, -1)

    def clear():
        L.llama_memory_clear(L.llama_get_memory(ctx), True)

    line(
        {
            "engine": "llama.cpp",
            "model": os.path.basename(options.model),
            "threads": options.threads,
            "repack": not options.no_repack,
            "file_mib": round(os.path.getsize(options.model) / 2**20, 1),
            "load_s": load_s,
            "lora_load_s": lora_s,
        },
        measured(
            use,
            clear,
            lambda n: feed(prompt[:n]),
            step,
            options.prompt,
            options.decode,
            bool(options.lora),
            options.rounds,
        ),
    )
    os._exit(0)


if __name__ == "__main__":
    main()
