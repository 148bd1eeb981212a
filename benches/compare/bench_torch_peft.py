#!/usr/bin/env python3
"""One measurement of torch on the CPU (transformers + peft): one JSON line.

  bench_torch_peft.py MODEL_DIR [--lora ADAPTER_DIR] [--kind bf16|fp32|int4|gptqmodel] [--threads 2] [--prompt 512]
                      [--decode 64]

bf16, fp32  the model as transformers loads it, the adapter as peft applies it (disable_adapter for base)
int4        MODEL_DIR is a GPTQ 4-bit copy: each quantized linear becomes torch's own packed int4 CPU kernel
            (aten::_weight_int4pack_mm_for_cpu, bf16 activations), the kernel that gptqmodel's TorchAtenLinear
            calls; the adapter is x A' B', added in bf16
gptqmodel   the same copy through GPTQModel's own CPU kernel (AVX512-BF16, --backend for another) and peft;
            the first use compiles the kernel, which takes minutes
"""

import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pathlib import Path

import torch
from timing import line, measured


class Int4Linear(torch.nn.Module):
    def __init__(self, get, base, group):
        super().__init__()
        qweight, qzeros, scales = get(base + ".qweight"), get(base + ".qzeros"), get(base + ".scales")
        in_n, out_n = qweight.shape[0] * 8, qweight.shape[1]
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        q = ((qweight[:, None, :] >> shifts[None, :, None]) & 15).reshape(in_n, out_n)
        zero = ((qzeros[:, :, None] >> shifts) & 15).reshape(-1, out_n) + 1
        self.group, self.out_n, self.lora = group, out_n, None
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.T.contiguous().int(), 1)
        scales = scales.float()
        # the kernel's value is scale * (code - 8) + offset
        self.side = torch.stack([scales, (8 - zero) * scales], 2).to(torch.bfloat16).contiguous()

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.packed, self.group, self.side)
        if self.lora is not None:
            a, b = self.lora
            out = torch.addmm(out, flat @ a, b)
        return out.reshape(*x.shape[:-1], self.out_n)


def load_int4(folder):
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = json.loads((folder / "config.json").read_text())
    group = cfg.pop("quantization_config")["group_size"]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**cfg)).to(torch.bfloat16)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        for name, module in list(model.named_modules()):
            if name + ".qweight" in names:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, Int4Linear(file.get_tensor, name, group))
            elif name + ".weight" in names:
                module.weight = torch.nn.Parameter(file.get_tensor(name + ".weight").to(torch.bfloat16), False)
    rope = model.model.rotary_emb
    model.model.rotary_emb = type(rope)(config=model.config)
    return model


def lora_for_int4(model, folder):
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, out = load_file(folder / "adapter_model.safetensors"), {}
    for name in tensors:
        if name.endswith("lora_A.weight"):
            at = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
            out[at] = (
                a.T.to(torch.bfloat16).contiguous(),
                (b.T * (config["lora_alpha"] / config["r"])).to(torch.bfloat16).contiguous(),
            )
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--kind", choices=["bf16", "fp32", "int4", "gptqmodel"], default="bf16")
    parser.add_argument("--backend", default="GPTQ_TORCH_CPU_AVX512", help="GPTQModel's BACKEND name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--logits", help="write the float32 logits of tokens 1..16 here (.npy), and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    import transformers
    from transformers import DynamicCache  # imported here, so that load_s is the model's alone

    transformers.logging.set_verbosity_error()

    if options.kind == "gptqmodel":
        from gptqmodel import BACKEND, GPTQModel  # its log goes to stdout; the JSON line is the last one
    start = time.perf_counter()
    if options.kind == "int4":
        model = load_int4(options.model)
    elif options.kind == "gptqmodel":
        model = GPTQModel.load(
            str(options.model), device="cpu", dtype=torch.bfloat16, backend=BACKEND[options.backend]
        ).model
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            options.model, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[options.kind]
        )
    model.eval()
    load_s, lora_s = time.perf_counter() - start, None

    def use(lora):
        return None

    if options.lora:
        start = time.perf_counter()
        if options.kind == "int4":
            pairs = lora_for_int4(model, options.lora)

            def use(lora):
                for at, pair in pairs.items():
                    model.get_submodule(at).lora = pair if lora else None
        else:
            import peft

            model = peft.PeftModel.from_pretrained(model, options.lora)

            def use(lora):
                (model.base_model.enable_adapter_layers if lora else model.base_model.disable_adapter_layers)()

        lora_s = time.perf_counter() - start

    if options.logits:
        import numpy as np

        use(bool(options.lora))
        np.save(options.logits, model(input_ids=torch.arange(1, 17)[None]).logits[0, -1].float().numpy())
        return

    vocab = model.config.vocab_size
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, vocab, (1, options.prompt), generator=draw)
    cache = None

    def clear():
        nonlocal cache
        cache = DynamicCache()

    def feed(tokens):
        return model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    line(
        {
            "engine": f"torch-{options.kind}",
            "model": options.model.name,
            "threads": options.threads,
            "file_mib": round(sum(f.stat().st_size for f in options.model.glob("*.safetensors")) / 2**20, 1),
            "load_s": load_s,
            "lora_load_s": lora_s,
        },
        measured(
            use,
            clear,
            lambda n: feed(prompt[:, :n]),
            lambda _: feed(torch.randint(3, vocab, (1, 1), generator=draw)),
            options.prompt,
            options.decode,
            bool(options.lora),
            options.rounds,
        ),
    )


if __name__ == "__main__":
    main()
