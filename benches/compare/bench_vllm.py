#!/usr/bin/env python3
"""One measurement of vLLM on the CPU: one JSON line.

  bench_vllm.py MODEL_FOLDER [--adapter PEFT_FOLDER] [--batch 8 --distinct-adapters 8]

The engine's steps are driven and timed one by one. Its GPTQ kernel wants symmetric zero points.
"""

import itertools
import os
import random
import time

from timing import measured, options, random_tokens, report  # beside this file

VOCAB = 32000


class VllmEngine:
    """An engine in this process, with a request for each adapter."""

    def __init__(self, chosen):
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        start = time.perf_counter()
        lora = {}
        if chosen.adapter:
            lora = {"enable_lora": True, "max_loras": chosen.distinct_adapters, "max_lora_rank": chosen.max_rank}
        model = LLM(
            model=str(chosen.model),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=2048,
            enable_prefix_caching=False,
            max_num_seqs=max(chosen.batch, 8),
            **lora,
        )
        self.load_s = time.perf_counter() - start
        self.engine = model.llm_engine
        wanted = range(chosen.distinct_adapters if chosen.adapter else 0)
        self.adapters = [LoRARequest(f"a{i}", i + 1, str(chosen.adapter)) for i in wanted]
        self.names = itertools.count()
        self.draw = random.Random(0)

    def run(self, assignment, prompt, decode):
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=decode + 4, ignore_eos=True, detokenize=False, temperature=0)
        for adapter in assignment:
            tokens = {"prompt_token_ids": random_tokens(prompt, VOCAB, self.draw)}
            lora = None if adapter is None else self.adapters[adapter]
            self.engine.add_request(str(next(self.names)), tokens, params, lora_request=lora)
        start = time.perf_counter()
        while True:
            outputs = self.engine.step()
            if len(outputs) == len(assignment) and all(output.outputs[0].token_ids for output in outputs):
                break
        prompts = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(decode):
            self.engine.step()
        step = (time.perf_counter() - start) / decode
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return prompts, step


def main():
    parser = options(__doc__)
    parser.add_argument("--max-rank", type=int, default=16, help="vLLM pads every adapter to this rank")
    chosen = parser.parse_args()
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, sorted(os.sched_getaffinity(0))[: chosen.threads])),
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS=str(chosen.threads),
    )
    engine = VllmEngine(chosen)
    report("vllm-cpu", chosen, engine.load_s, None, measured(engine.run, chosen))


if __name__ == "__main__":
    main()
