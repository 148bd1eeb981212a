#!/usr/bin/env python3
"""Makes one randomly initialized Llama model in every format that the other CPU engines load.

  make_random_llama.py OUT --shape 1.1b [--rank 16] [--sym] [--no-gguf]

Needs numpy, torch, safetensors; `gguf` for the GGUF files.
Writes under OUT:
  hf-bf16/           config.json, model.safetensors (bf16), tokenizer.json (one word per token: t0 t1 ...)
  gptq-4bit-g128/    the same linears rounded to nearest: qweight/qzeros/scales/g_idx, v1 zero points
  hf-dequant-bf16/   the GPTQ copy dequantized (--dequant): the reference for the GPTQ copy's logits
  lora-r16/          a PEFT adapter on all seven linears (adapter_config.json, adapter_model.safetensors)
  model-bf16.gguf    lora-r16.gguf
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

#        hidden inter layers heads kv_heads vocab
SHAPES = {
    "tiny": (256, 768, 2, 4, 2, 512),
    "0.4b": (1280, 3584, 20, 20, 4, 32000),
    "1.1b": (2048, 5632, 22, 32, 4, 32000),  # TinyLlama-1.1B
}
LINEARS = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]
GGUF_NAMES = dict(
    zip(LINEARS, ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"], strict=False)
)


def linear_sizes(shape):
    hidden, inter, _, heads, kv_heads, _ = SHAPES[shape]
    kv = hidden // heads * kv_heads
    return dict(
        zip(
            LINEARS,
            [
                (hidden, hidden),
                (kv, hidden),
                (kv, hidden),
                (hidden, hidden),
                (inter, hidden),
                (inter, hidden),
                (hidden, inter),
            ],
            strict=False,
        )
    )  # (out, in)


def make_weights(shape, seed):
    hidden, _, layers, _, _, vocab = SHAPES[shape]
    make = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=make).mul_(size[-1] ** -0.5).to(torch.bfloat16)

    weights = {"model.embed_tokens.weight": draw(vocab, hidden)}
    for i in range(layers):
        at = f"model.layers.{i}."
        for name, size in linear_sizes(shape).items():
            weights[at + name + ".weight"] = draw(*size)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[at + norm + ".weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    weights["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    weights["lm_head.weight"] = draw(vocab, hidden)
    return weights


def config(shape):
    hidden, inter, layers, heads, kv_heads, vocab = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_hf(folder, weights, cfg):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(cfg, indent=1))
    words = {f"t{i}": i for i in range(cfg["vocab_size"])}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "WhitespaceSplit"},
                "post_processor": None,
                "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
                "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
            }
        )
    )


def gptq_round(weight, group, sym):
    """Round-to-nearest 4-bit per (group of inputs, output). Returns the checkpoint's four tensors and W'."""
    out_n, in_n = weight.shape
    w = weight.float().reshape(out_n, in_n // group, group)
    if sym:
        scale = (w.abs().amax(2) / 7.5).clamp_min(1e-8)  # AutoGPTQ's symmetric grid: zero point fixed at 8
        zero = torch.full_like(scale, 8.0)
    else:
        low, high = w.amin(2).clamp_max(0), w.amax(2).clamp_min(0)
        scale = ((high - low) / 15).clamp_min(1e-8)
        zero = (-low / scale).round().clamp(1, 15)  # v1 stores zero-1, so 0 has no code
    scale = scale.half().float()
    q = ((w / scale[..., None]).round() + zero[..., None]).clamp(0, 15)
    back = ((q - zero[..., None]) * scale[..., None]).reshape(out_n, in_n)
    q = q.to(torch.int64).reshape(out_n, in_n).T.contiguous()  # [in, out]
    zero = (zero.to(torch.int64) - 1).T.contiguous()  # [in/group, out]
    shifts = torch.arange(0, 32, 4)
    pack_in = (q.reshape(in_n // 8, 8, out_n) << shifts[None, :, None]).sum(1)
    pack_out = (zero.reshape(-1, out_n // 8, 8) << shifts).sum(2)

    def to_i32(t):
        return torch.where(t >= 2**31, t - 2**32, t).to(torch.int32).contiguous()

    return {
        "qweight": to_i32(pack_in),
        "qzeros": to_i32(pack_out),
        "scales": scale.T.half().contiguous(),
        "g_idx": (torch.arange(in_n) // group).to(torch.int32),
    }, back.to(torch.bfloat16)


def write_gptq(out, weights, cfg, group, sym, dequant):
    packed, back = {}, {}
    for name, w in weights.items():
        base = name.removesuffix(".weight")
        if base.split(".", 3)[-1] in LINEARS:
            tensors, back[name] = gptq_round(w, group, sym)
            packed.update({f"{base}.{k}": t for k, t in tensors.items()})
        else:
            packed[name], back[name] = w.half(), w
    quant = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group,
        "desc_act": False,
        "sym": sym,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "meta": {"quantizer": ["gptqmodel:7.7.0"]},
    }  # GPTQModel refuses asymmetric v1 files from older makers
    folder = out / f"gptq-4bit-g{group}"
    write_hf(folder, packed, {**cfg, "torch_dtype": "float16", "quantization_config": quant})
    (folder / "quantize_config.json").write_text(json.dumps(quant, indent=1))
    if dequant:
        write_hf(out / "hf-dequant-bf16", back, cfg)


def make_lora(shape, rank, seed):
    make = torch.Generator().manual_seed(seed + 1)

    def draw(*size):
        # The type that adapters are published in, and that of the GGUF file: every engine has the same values.
        return torch.randn(*size, generator=make).mul_(0.5 * size[-1] ** -0.5).half()

    return {
        (i, name): (draw(rank, n_in), draw(n_out, rank))
        for i in range(SHAPES[shape][2])
        for name, (n_out, n_in) in linear_sizes(shape).items()
    }


def write_peft(folder, lora, rank):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for (i, name), (a, b) in lora.items():
        at = f"base_model.model.model.layers.{i}.{name}."
        tensors[at + "lora_A.weight"], tensors[at + "lora_B.weight"] = a, b
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": "",
                "r": rank,
                "lora_alpha": 2 * rank,
                "lora_dropout": 0.0,
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
                "target_modules": [n.split(".")[-1] for n in LINEARS],
            },
            indent=1,
        )
    )


def for_rope(tensor, name, heads, kv_heads):
    """GGUF's llama pairs neighboring rows in RoPE where HF pairs the two halves of a head."""
    if name not in ("self_attn.q_proj", "self_attn.k_proj"):
        return tensor
    n = heads if name.endswith("q_proj") else kv_heads
    return tensor.reshape(n, 2, tensor.shape[0] // n // 2, -1).transpose(1, 2).reshape(tensor.shape)


def write_gguf(path, weights, shape):
    import gguf

    hidden, inter, layers, heads, kv_heads, vocab = SHAPES[shape]
    file = gguf.GGUFWriter(path, "llama")
    for key, value in (
        ("context_length", 2048),
        ("embedding_length", hidden),
        ("block_count", layers),
        ("feed_forward_length", inter),
        ("head_count", heads),
        ("head_count_kv", kv_heads),
        ("rope_dimension_count", hidden // heads),
        ("rope_freq_base", 10000.0),
        ("layer_norm_rms_eps", 1e-5),
        ("vocab_size", vocab),
    ):
        getattr(file, "add_" + key)(value)
    file.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    # A server needs texts of tokens; those of tokenizer.json.
    file.add_tokenizer_model("llama")
    file.add_token_list([f"t{token}" for token in range(vocab)])
    file.add_token_scores([0.0] * vocab)
    file.add_token_types([gguf.TokenType.NORMAL] * vocab)
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    part = {**GGUF_NAMES, "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, w in weights.items():
        base = name.removesuffix(".weight")
        if base in whole:
            to = whole[base]
        else:
            _, _, i, rest = base.split(".", 3)
            to, w = f"blk.{i}.{part[rest]}", for_rope(w, rest, heads, kv_heads)
        if w.dim() == 1:
            file.add_tensor(to + ".weight", w.float().numpy())
        else:
            file.add_tensor(
                to + ".weight", w.contiguous().view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16
            )
    finish(file)


def write_gguf_lora(path, lora, rank, shape):
    import gguf

    _, _, _, heads, kv_heads, _ = SHAPES[shape]
    file = gguf.GGUFWriter(path, "llama")
    file.add_type("adapter")
    file.add_string("adapter.type", "lora")
    file.add_float32("adapter.lora.alpha", 2.0 * rank)
    for (i, name), (a, b) in lora.items():
        to = f"blk.{i}.{GGUF_NAMES[name]}.weight"
        file.add_tensor(to + ".lora_a", a.numpy())
        file.add_tensor(to + ".lora_b", for_rope(b, name, heads, kv_heads).contiguous().numpy())
    finish(file)


def finish(file):
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--sym", action="store_true", help="zero point fixed at 8 (default: asymmetric)")
    parser.add_argument("--dequant", action="store_true")
    parser.add_argument("--no-gguf", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    options.out.mkdir(parents=True, exist_ok=True)
    weights, lora, cfg = (
        make_weights(options.shape, options.seed),
        make_lora(options.shape, options.rank, options.seed),
        config(options.shape),
    )
    write_hf(options.out / "hf-bf16", weights, cfg)
    write_gptq(options.out, weights, cfg, options.group, options.sym, options.dequant)
    write_peft(options.out / f"lora-r{options.rank}", lora, options.rank)
    if not options.no_gguf:
        write_gguf(options.out / "model-bf16.gguf", weights, options.shape)
        write_gguf_lora(options.out / f"lora-r{options.rank}.gguf", lora, options.rank, options.shape)
    sizes = {
        str(p.relative_to(options.out)): round(p.stat().st_size / 2**20, 1)
        for p in sorted(options.out.rglob("*"))
        if p.is_file() and p.stat().st_size > 1e5
    }
    print(json.dumps({"parameters": sum(w.numel() for w in weights.values()), "MiB": sizes}, indent=1))


if __name__ == "__main__":
    main()
