"""One real message for each code of the catalog, provoked on copies of the bundled model and adapters.

Each is provoked in a folder of its own, under the relative paths a reader would use, so that it is the same on every
machine. `example(code)` is what README's table of codes shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from math import inf, prod
from typing import Any

import exlora
from exlora import ExLlamaV2, ExLlamaV2Config, ExLlamaV2Lora

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "tests" / "fixtures"
PLAIN = FIXTURES / "quill-4m"
PACKED = FIXTURES / "quill-4m-gptq-4bit-g32-asym-actorder"
SQLITE = FIXTURES / "adapters" / "sqlite-rslora-r16"

# The paths that appear in messages.
MODEL, ADAPTER = pathlib.Path("models/quill"), pathlib.Path("adapters/sql")
TENSORS = MODEL / "model.safetensors"
FACTORS = ADAPTER / "adapter_model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj"
Q_A, Q_B = (f"base_model.model.{Q_PROJ}.lora_{factor}.weight" for factor in "AB")

# An unknown bug; Ctrl-C, which Python raises as KeyboardInterrupt; a fork during a step; what needs a card.
CUDA = {"activation_overflow", "cuda_unavailable", "cuda_compile_failed", "cuda_driver_failed"}
# What only a server answers.
SERVER = {
    "unauthorized",
    "forbidden",
    "route_not_found",
    "request_too_large",
    "request_timeout",
    "queue_full",
    "server_stopping",
    "adapter_generation_mismatch",
    "adapter_path_refused",
}
UNPROVOKED = {"internal", "interrupted", "forked_while_in_use"} | CUDA | SERVER

# Tensor name -> dtype, shape, bytes.
Tensors = dict[str, tuple[str, list[int], bytes]]
Change = Callable[[Tensors], object]


class NoToken:
    """A filter that allows nothing."""

    def begin(self, prefix: str) -> None:
        """A text begins."""

    def next(self) -> tuple[list[int], list[int]]:
        """What may follow."""
        return [], []

    def feed(self, token: int) -> None:
        """A token was chosen."""


# Broken files.


def copy(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies a folder as links to its files; each link may be replaced by a file."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)


def write(file: pathlib.Path, content: bytes | str) -> None:
    """Writes a file in place of a link, not through the link."""
    file.unlink(missing_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(file: pathlib.Path, **fields: Any) -> None:
    """Changes fields of a JSON file."""
    write(file, json.dumps({**json.loads(file.read_text()), **fields}))


def edit_tensors(file: pathlib.Path, change: Change) -> None:
    """Changes the tensors of a safetensors file."""
    content = file.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {
        name: (entry["dtype"], entry["shape"], content[start:][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
    change(tensors)
    header, data = {}, b"".join(content for _, _, content in tensors.values())
    end = 0
    for name, (dtype, shape, content) in tensors.items():
        begin, end = end, end + len(content)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    write(file, struct.pack("<Q", len(text)) + text + data)


def of_shape(name: str, shape: list[int]) -> Change:
    """Replaces a tensor by zeros of a different shape."""

    def change(tensors: Tensors) -> None:
        dtype, before, content = tensors[name]
        tensors[name] = dtype, shape, bytes(len(content) // prod(before) * prod(shape))

    return change


def of_dtype(name: str, dtype: str) -> Change:
    """Declares a different data type for the same bytes."""
    return lambda tensors: tensors.update({name: (dtype, *tensors[name][1:])})


def of_bytes(name: str, first: bytes) -> Change:
    """Replaces the first bytes of a tensor."""

    def change(tensors: Tensors) -> None:
        dtype, shape, content = tensors[name]
        tensors[name] = dtype, shape, first + content[len(first) :]

    return change


def renamed(old: str, new: str, *names: str) -> Change:
    """Renames tensors."""
    return lambda tensors: tensors.update({name.replace(old, new): tensors.pop(name) for name in names})


# Calls that fail.


def model(
    source: pathlib.Path = PLAIN,
    change: Change | None = None,
    files: dict[str, bytes | str | None] | None = None,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> exlora.Engine:
    """An engine on a copy of a model with changed tensors, files (`None` removes one) and fields of config.json."""
    copy(source, MODEL)
    for name, content in (files or {}).items():
        write(MODEL / name, content or "")
        if content is None:
            (MODEL / name).unlink()
    if config:
        edit(MODEL / "config.json", **config)
    if change:
        edit_tensors(TENSORS, change)
    return exlora.Engine(MODEL, **options)


def quantized(**fields: Any) -> exlora.Engine:
    """An engine on a quantized model with changed fields of its quantization config."""
    config = json.loads((PACKED / "config.json").read_text())["quantization_config"]
    return model(PACKED, config={"quantization_config": {**config, **fields}})


def adapter(change: Change | None = None, corrupt: Callable[[], object] | None = None, **fields: Any) -> exlora.Engine:
    """An engine with a copy of an adapter that has changed tensors, files and fields of adapter_config.json."""
    copy(SQLITE, ADAPTER)
    edit(ADAPTER / "adapter_config.json", **fields)
    if change:
        edit_tensors(FACTORS, change)
    if corrupt:
        corrupt()
    engine = model()
    engine.load_adapter("sql", ADAPTER)
    return engine


def directory_for_a_file() -> object:
    copy(PLAIN, MODEL)
    TENSORS.unlink()
    TENSORS.mkdir()
    return exlora.Engine(MODEL)


def truncated_file() -> object:
    return model(files={TENSORS.name: (PLAIN / TENSORS.name).read_bytes()[:-1000]})


def index_that_points_outside() -> object:
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    return model(files={TENSORS.name: None, "model.safetensors.index.json": json.dumps(index)})


def too_many_adapters() -> object:
    def one_pair(tensors: Tensors) -> None:
        pair = {name: tensors[name] for name in (Q_A, Q_B)}
        tensors.clear()
        tensors.update(pair)

    engine = adapter(one_pair)
    return [engine.load_adapter(f"sql-{i}", ADAPTER) for i in range(2000)]


def exllamav2() -> ExLlamaV2:
    return ExLlamaV2(ExLlamaV2Config(str(PLAIN)))


def adapter_of_a_different_model() -> object:
    copy(SQLITE, ADAPTER)
    mine, yours = exllamav2(), exllamav2()
    mine.load()
    yours.load()
    return mine.forward([[1]], loras=ExLlamaV2Lora.from_directory(yours, str(ADAPTER)))


def draft_model_with_another_vocabulary() -> object:
    draft = pathlib.Path("models/draft")
    copy(PLAIN, draft)
    tokenizer = json.loads((PLAIN / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    one, other = (token for token, number in vocab.items() if number in (1000, 1001))
    vocab[one], vocab[other] = vocab[other], vocab[one]
    write(draft / "tokenizer.json", json.dumps(tokenizer))
    return model(draft_model=draft)


def missing_requests_file() -> object:
    """Only the command reads such a file; the last line on stderr is the error."""
    command = [sys.executable, "-m", "exlora", "generate", "-m", str(PLAIN), "--requests", "requests.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text, hint, code = re.findall(r"exlora: (.* \((.*)\) \[(.*)\])$", done.stderr, re.MULTILINE)[-1]
    raise exlora.ExloraError(text, code=code, hint=hint)


CHAT = [{"role": "user", "content": "SELECT"}]
STRICT = json.dumps({"chat_template": "{{ raise_exception('roles must alternate') }}"})


def with_norm(tensors: Tensors) -> None:
    """Adds a norm that replaces the base's, as modules_to_save does."""
    tensors["base_model.model.model.norm.weight"] = ("F32", [256], bytes(1024))


def norm_replaced_twice() -> None:
    """A mixture of two adapters that replace the same norm."""
    engine = adapter(with_norm)
    engine.load_adapter("wit", ADAPTER)
    engine.generate("SELECT", adapters={"sql": 1.0, "wit": 1.0})


PROVOKE: dict[str, Callable[[], object]] = {
    "checkpoint_not_found": lambda: exlora.Engine(MODEL),
    "checkpoint_unreadable": directory_for_a_file,
    "checkpoint_truncated": truncated_file,
    "checkpoint_header_invalid": lambda: model(files={TENSORS.name: "version https://git-lfs.github.com/spec/v1\n"}),
    "checkpoint_too_large": lambda: model(files={TENSORS.name: struct.pack("<Q", 10**10)}),
    "checkpoint_index_invalid": index_that_points_outside,
    "checkpoint_tensor_duplicate": lambda: model(
        files={TENSORS.name: None, **{f"part-{i}.safetensors": (PLAIN / TENSORS.name).read_bytes() for i in (1, 2)}}
    ),
    "checkpoint_tensor_missing": lambda: model(change=renamed("model.", "", "model.norm.weight")),
    "checkpoint_shape_mismatch": lambda: model(change=of_shape("model.norm.weight", [64])),
    "checkpoint_dtype_unsupported": lambda: model(change=of_dtype("model.norm.weight", "U16")),
    "quant_format_unsupported": lambda: quantized(quant_method="awq"),
    "quant_config_invalid": lambda: quantized(bits="four"),
    "quant_shape_mismatch": lambda: quantized(bits=8),
    "quant_value_invalid": lambda: model(PACKED, of_bytes(f"{Q_PROJ}.g_idx", struct.pack("<i", 4000))),
    "model_config_invalid": lambda: model(config={"num_attention_heads": 0}),
    "model_architecture_unsupported": lambda: model(config={"architectures": ["GPT2LMHeadModel"]}),
    "model_feature_unsupported": lambda: model(config={"hidden_act": "relu"}),
    "adapter_config_not_found": lambda: model().load_adapter("sql", ADAPTER),
    "adapter_config_invalid": lambda: adapter(r="16"),
    "adapter_type_unsupported": lambda: adapter(peft_type="IA3"),
    "adapter_feature_unsupported": lambda: adapter(use_tomorrows_variant=True),
    "adapter_base_changed": lambda: adapter(init_lora_weights="pissa"),
    "adapter_weights_not_found": lambda: adapter(corrupt=FACTORS.unlink),
    "adapter_format_unsupported": lambda: adapter(corrupt=lambda: FACTORS.rename(ADAPTER / "adapter_model.bin")),
    "adapter_tensor_unexpected": lambda: adapter(
        lambda tensors: tensors.update({Q_A.replace("lora_A", "lora_C"): tensors[Q_A]})
    ),
    "adapter_tensor_missing": lambda: adapter(lambda tensors: tensors.pop(Q_B)),
    "adapter_site_not_found": lambda: adapter(renamed(".0.", ".31.", Q_A, Q_B)),
    "adapter_site_excluded": lambda: adapter(exclude_modules=[Q_PROJ]),
    "adapter_shape_mismatch": lambda: adapter(of_shape(Q_A, [16, 96])),
    "adapter_rank_mismatch": lambda: adapter(of_shape(Q_B, [256, 8])),
    "adapter_dtype_unsupported": lambda: adapter(of_dtype(Q_A, "U16")),
    "adapter_not_finite": lambda: adapter(of_bytes(Q_B, b"\xff" * 4)),
    "adapter_scale_invalid": lambda: adapter(alpha_pattern={Q_PROJ: 1e300}),
    "adapter_pattern_invalid": lambda: adapter(target_modules="(q|v_proj"),
    "adapter_not_found": lambda: model().generate("SELECT", adapters="sql"),
    "adapter_name_invalid": lambda: adapter().load_adapter("", ADAPTER),
    "adapter_budget_exceeded": too_many_adapters,
    "adapter_weight_invalid": lambda: adapter(with_norm).generate("SELECT", adapters={"sql": 0.5}),
    "adapter_mixture_invalid": norm_replaced_twice,
    "adapter_model_mismatch": adapter_of_a_different_model,
    "draft_model_mismatch": draft_model_with_another_vocabulary,
    "tokenizer_not_found": lambda: model(files={"tokenizer.json": None}).generate("SELECT"),
    "tokenizer_invalid": lambda: model(files={"tokenizer.json": "[]"}),
    "chat_template_not_found": lambda: model(files={"tokenizer_config.json": "{}"}).generate(CHAT),
    "chat_template_failed": lambda: model(files={"tokenizer_config.json": STRICT}).generate(CHAT),
    "request_invalid": lambda: model().generate(["SELECT", "INSERT"], max_new_tokens=[8, 8, 8]),
    "prompt_empty": lambda: model().generate([[]]),
    "prompt_too_long": lambda: model().generate([[1] * 10_000]),
    "prompt_embeds_invalid": lambda: model().generate({"prompt_embeds": [[0.5, 0.25]]}),
    "token_out_of_range": lambda: model().generate([[1, 2048]]),
    "logits_not_finite": lambda: adapter().generate("SELECT", adapters={"sql": 3e38}),
    "kv_overflow": lambda: adapter().generate("SELECT", adapters={"sql": 1e30}),
    "sampling_invalid": lambda: model().generate("SELECT", temperature=inf),
    "constraint_invalid": lambda: model().generate("SELECT", regex="(a"),
    "constraint_failed": lambda: model().generate("SELECT", filters=[NoToken()]),
    "hook_failed": lambda: model().generate("SELECT", post_sampling_hooks=[lambda result: result.no_such_field]),
    "setting_unsupported": lambda: exllamav2().load_tp(),
    "model_not_loaded": lambda: exllamav2().forward([[1]]),
    "device_unavailable": lambda: model(device="tpu"),
    "memory_exhausted": lambda: model(kv_tokens=1 << 45),
    "io_failed": missing_requests_file,
}


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """A temporary, empty working directory."""
    before = pathlib.Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def provoke(code: str) -> exlora.ExloraError:
    """Raises and returns an error with the code."""
    with scratch():
        try:
            PROVOKE[code]()
        except exlora.ExloraError as error:
            return error
    raise AssertionError(f"no call failed with {code}")


def example(code: str) -> str:
    """A message with the code, without its remedy; empty if none can be provoked."""
    if code in UNPROVOKED:
        return ""
    error = provoke(code)
    return str(error).removesuffix(f" [{code}]").removesuffix(f" ({error.hint})")
