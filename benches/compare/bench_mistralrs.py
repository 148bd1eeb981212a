#!/usr/bin/env python3
"""One measurement of mistral.rs on the CPU: one JSON line.

  bench_mistralrs.py MODEL_FOLDER --uqff FILE [--adapter PEFT_FOLDER] [--batch 8 --distinct-adapters 8]
  bench_mistralrs.py MODEL_FOLDER --write-uqff FILE

Its interface gives the time of a whole request, so a step is the difference of two requests over the number of tokens.
"""

import os
import random
import threading
import time

from timing import measured, options, random_tokens, report  # beside this file

VOCAB = 32000
QUANTIZATION = "Q4K"


class Runner:
    """A model with its adapters, asked by as many threads as there are sequences."""

    def __init__(self, chosen, mistralrs):
        self.library = mistralrs
        self.draw = random.Random(0)
        start = time.perf_counter()
        folder, llama = str(chosen.model), mistralrs.Architecture.Llama
        wanted = range(chosen.distinct_adapters if chosen.adapter else 0)
        adapters = [mistralrs.LoraAdapter(f"a{i}", str(chosen.adapter)) for i in wanted]
        if adapters:
            which = mistralrs.Which.Lora(folder, adapters=adapters, arch=llama, from_uqff=chosen.uqff)
        else:
            which = mistralrs.Which.Plain(folder, arch=llama, from_uqff=chosen.uqff)
        self.runner = mistralrs.Runner(which, prefix_cache_n=0, token_source="none", max_seqs=64)
        self.load_s = time.perf_counter() - start

    def ask(self, prompt, new_tokens, adapter):
        # The random model's tokenizer has one word per token.
        text = " ".join(f"t{token}" for token in random_tokens(prompt, VOCAB, self.draw))
        request = self.library.CompletionRequest(
            text,
            "default",
            max_tokens=new_tokens,
            temperature=0.0,
            ignore_eos=True,
            adapter=None if adapter is None else f"a{adapter}",
        )
        self.runner.send_completion_request(request)

    def seconds(self, assignment, prompt, new_tokens):
        threads = [threading.Thread(target=self.ask, args=(prompt, new_tokens, adapter)) for adapter in assignment]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def run(self, assignment, prompt, decode):
        prompts = self.seconds(assignment, prompt, 1)
        return prompts, (self.seconds(assignment, prompt, 1 + decode) - prompts) / decode


def main():
    parser = options(__doc__)
    parser.add_argument("--uqff", help="the quantized weights")
    parser.add_argument("--write-uqff", metavar="FILE", help=f"quantize to {QUANTIZATION}, and stop")
    chosen = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(chosen.threads)
    if chosen.threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import mistralrs  # reads the variable

    if chosen.write_uqff:
        which = mistralrs.Which.Plain(
            str(chosen.model), arch=mistralrs.Architecture.Llama, write_uqff=chosen.write_uqff
        )
        mistralrs.Runner(which, in_situ_quant=QUANTIZATION, token_source="none")
        os._exit(0)
    runner = Runner(chosen, mistralrs)
    report("mistral.rs", chosen, runner.load_s, None, measured(runner.run, chosen))


if __name__ == "__main__":
    main()
