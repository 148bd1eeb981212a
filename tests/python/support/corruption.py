"""Damaged and hostile input: files to corrupt, an engine that must be unaffected, and the expected error."""

import json
import os
import pathlib
import shutil
import stat
from collections.abc import Callable
from typing import Any

import pytest
from exlora import Engine, ExloraError
from safetensors.numpy import load_file, save_file

from support import adapters, tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder in which models and adapters are written once."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def adapter(models, tmp_path):
    """A copy of an adapter folder, to be corrupted."""
    return shutil.copytree(adapters.write("plain", tiny.write("llama", models)), tmp_path / "adapter")


@pytest.fixture(scope="module")
def engine(models):
    """An engine with a good adapter."""
    base = tiny.write("llama", models)
    return Engine(base, adapters={"good": adapters.write("other", base)})


@pytest.fixture
def serving(engine):
    """Checks that the engine's bits, names and resident bytes are the same before and after the test."""
    before = state(engine)
    yield engine
    assert state(engine) == before


def state(engine: Engine) -> tuple[Any, ...]:
    """Everything observable of an engine: logits to the last bit, answers, adapters, what is resident and running."""
    logits = [engine.logits(tiny.PROMPT, adapter).tobytes() for adapter in (None, "good", {"good": 0.5})]
    outs = engine.generate([tiny.PROMPT] * 2, adapters=[None, "good"], max_new_tokens=4)
    stats = engine.stats()
    counts = ("tokens_", "prefix_", "kv_pages_free", "steps")
    held = {name: stats[name] for name in stats if not name.startswith(counts)}
    infos = [(info.name, info.path, info.generation, info.content_hash, info.bytes) for info in engine.adapters()]
    return logits, [out.token_ids for out in outs], held, infos


def refused(code: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ExloraError:
    """The error that the call must raise, with this code."""
    with pytest.raises(ExloraError) as caught:
        call(*args, **kwargs)
    error = caught.value
    assert error.code == code, str(error)
    assert f"[{code}]" in str(error)
    return error


def edit_config(folder: pathlib.Path, name: str = "config.json", /, **changes: Any) -> None:
    """Changes fields of a JSON file."""
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


def edit_tensors(file: pathlib.Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the tensors of a safetensors file."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def no_file(kind: str, path: pathlib.Path) -> None:
    """Replaces a regular file by something else."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        os.mknod(path, 0o600 | {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}[kind])
