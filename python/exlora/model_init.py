"""exllamav2's command-line options of a model, and loading one as they say. For scripts: it prints, and ends them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from exlora._unsupported import refuse
from exlora.config import ExLlamaV2Config
from exlora.model import ExLlamaV2
from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["add_args", "check_args", "init", "post_init_load", "print_options"]


def add_args(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a parser."""

    def option(short: str, name: str, kind: type, text: str) -> None:
        parser.add_argument(f"-{short}", f"--{name}", type=kind, help=text)

    def flag(short: str, name: str, text: str) -> None:
        parser.add_argument(f"-{short}", f"--{name}", action="store_true", help=text)

    option("m", "model_dir", str, "folder of the model")
    option("gs", "gpu_split", str, '"auto" loads the model once its cache is known; anything else has no effect')
    flag("tp", "tensor_parallel", "not supported")
    option("l", "length", int, "longest sequence, in tokens")
    option("rs", "rope_scale", float, "factor by which positions are divided")
    option("ra", "rope_alpha", float, "alpha of NTK-aware rope scaling")
    option("ry", "rope_yarn", float, "not supported: YaRN is read from config.json")
    flag("nfa", "no_flash_attn", "no effect")
    flag("nxf", "no_xformers", "no effect")
    flag("nsdpa", "no_sdpa", "no effect")
    flag("ng", "no_graphs", "no effect")
    flag("lm", "low_mem", "smaller chunks of prompts")
    option("ept", "experts_per_token", int, "not supported: read from config.json")
    flag("lq4", "load_q4", "not supported: weights are used as they are stored")
    flag("fst", "fast_safetensors", "no effect")
    flag("ic", "ignore_compatibility", "no effect")
    option("chunk", "chunk_size", int, "largest number of prompt tokens in one step")


def print_options(args: argparse.Namespace) -> None:
    """Prints the model's folder and the options that are given."""
    given = [
        name if value is True else f"{name}: {value}"
        for name, value in vars(args).items()
        if name in _NAMES and name != "model_dir" and value not in (None, False)
    ]
    print(f" -- Model: {args.model_dir}")
    print(f" -- Options: {given}")


def check_args(args: argparse.Namespace) -> None:
    """Ends the script if there is no model in the folder."""
    folder = Path(args.model_dir or "")
    if not args.model_dir:
        sys.exit(" ## Error: no model directory was given; use -m")
    if not folder.is_dir():
        sys.exit(f" ## Error: there is no model directory {folder}")
    for pattern in ("config.json", "tokenizer.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            sys.exit(f" ## Error: there is no {pattern} in {folder}")


def init(
    args: argparse.Namespace,
    quiet: bool = False,
    allow_auto_split: bool = False,
    skip_load: bool = False,
    benchmark: bool = False,
    max_batch_size: int | None = None,
    max_input_len: int | None = None,
    max_output_len: int | None = None,
    progress: bool = False,
) -> tuple[ExLlamaV2, ExLlamaV2Tokenizer]:
    """A model and its tokenizer, by the options. See `post_init_load` for when the model is loaded."""
    model = ExLlamaV2(_config(args, max_batch_size, max_input_len, max_output_len))
    if not skip_load:
        post_init_load(model, args, quiet, allow_auto_split, benchmark, progress)
    if not quiet:
        print(" -- Loading tokenizer...")
    return model, ExLlamaV2Tokenizer(model.config)


def _config(
    args: argparse.Namespace, max_batch_size: int | None, max_input_len: int | None, max_output_len: int | None
) -> ExLlamaV2Config:
    config = ExLlamaV2Config(args.model_dir)
    refuse("model_init", rope_yarn=args.rope_yarn, experts_per_token=args.experts_per_token)
    config.max_seq_len = args.length or config.max_seq_len
    config.scale_pos_emb = args.rope_scale or config.scale_pos_emb
    config.scale_alpha_value = args.rope_alpha or config.scale_alpha_value
    config.max_batch_size = max_batch_size or config.max_batch_size
    config.max_input_len = max_input_len or config.max_input_len
    config.max_output_len = max_output_len
    config.load_in_q4 = args.load_q4
    if args.low_mem:
        config.set_low_mem()
    if args.chunk_size is not None:
        config.max_input_len = args.chunk_size
    return config


def post_init_load(
    model: ExLlamaV2,
    args: argparse.Namespace,
    quiet: bool = False,
    allow_auto_split: bool = False,
    benchmark: bool = False,
    progress: bool = False,
) -> None:
    """Loads the model. With `--gpu_split auto` the script does, by `load_autosplit`, once it has made a cache."""
    if args.tensor_parallel:
        model.load_tp()
    if args.gpu_split == "auto":
        if not allow_auto_split:
            sys.exit(" ## Error: this script does not have --gpu_split auto")
        return
    if not quiet and not progress:
        print(" -- Loading model...")
    began = time.perf_counter()
    model.load(progress=progress)
    if benchmark and not quiet:
        print(f" -- Loaded model in {time.perf_counter() - began:.4f} seconds")


def _names() -> set[str]:
    """The options' names."""
    parser = argparse.ArgumentParser(add_help=False)
    add_args(parser)
    return set(vars(parser.parse_args([])))


_NAMES = _names()
