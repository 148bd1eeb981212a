#!/usr/bin/env python3
"""One measurement of OpenVINO GenAI on the CPU: one JSON line.

  bench_openvino.py IR_FOLDER [--adapter adapter_model.safetensors] [--batch 8]

One sequence runs in its LLMPipeline, several in its ContinuousBatchingPipeline. The latter gives all rows of a step the
first request's adapter, so that distinct adapters cannot be measured. Activations are rounded to int8 by default.
"""

import random
import time

import numpy as np
import openvino
import openvino_genai as genai
from timing import measured, options, random_tokens, report  # beside this file

VOCAB = 32000
# PEFT's file carries no alpha, so the scale alpha / r of the random adapter is given here.
SCALE = 2.0


class Pipeline:
    """A pipeline for one sequence or for a batch."""

    def __init__(self, chosen):
        if chosen.distinct_adapters > 1:
            raise SystemExit("OpenVINO GenAI gives all rows of a step the first request's adapter")
        self.draw = random.Random(0)
        start = time.perf_counter()
        properties = {"INFERENCE_NUM_THREADS": chosen.threads}
        self.adapter = genai.Adapter(str(chosen.adapter)) if chosen.adapter else None
        if self.adapter:
            properties["adapters"] = genai.AdapterConfig(self.adapter, SCALE)
        self.single = chosen.batch == 1
        if self.single:
            self.pipeline = genai.LLMPipeline(str(chosen.model), "CPU", ATTENTION_BACKEND="PA", **properties)
        else:
            scheduler = genai.SchedulerConfig()
            scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 2, 64, 512
            scheduler.enable_prefix_caching = False
            self.pipeline = genai.ContinuousBatchingPipeline(str(chosen.model), scheduler, "CPU", properties)
        self.load_s = time.perf_counter() - start

    def prompt(self, tokens):
        return openvino.Tensor(np.array([random_tokens(tokens, VOCAB, self.draw)], dtype=np.int64))

    def config(self, new_tokens, adapter):
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample, config.eos_token_id = new_tokens, True, False, -1
        if self.adapter:
            on = adapter is not None
            config.adapters = genai.AdapterConfig(self.adapter, SCALE) if on else genai.AdapterConfig()
        return config

    def run(self, assignment, prompt, decode):
        if self.single:
            ids = self.prompt(prompt)
            inputs = genai.TokenizedInputs(ids, openvino.Tensor(np.ones((1, prompt), dtype=np.int64)))
            metrics = self.pipeline.generate(inputs, self.config(1 + decode, assignment[0])).perf_metrics
            return metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3
        prompts = self.seconds(assignment, prompt, 1)
        return prompts, (self.seconds(assignment, prompt, 1 + decode) - prompts) / decode

    def seconds(self, assignment, prompt, new_tokens):
        inputs = [self.prompt(prompt) for _ in assignment]
        start = time.perf_counter()
        self.pipeline.generate(inputs, [self.config(new_tokens, adapter) for adapter in assignment])
        return time.perf_counter() - start


def main():
    chosen = options(__doc__).parse_args()
    pipeline = Pipeline(chosen)
    report("openvino-genai", chosen, pipeline.load_s, None, measured(pipeline.run, chosen))


if __name__ == "__main__":
    main()
