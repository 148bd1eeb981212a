"""Every face of the package on a CUDA device, against the CPU: one tiny mixed batch each.

`make test-cuda` runs these tests on the emulated driver, `make test-cuda-slow` the slow one; other runs leave them out.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from exlora import (
    Engine,
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Config,
    ExLlamaV2Lora,
    ExLlamaV2Tokenizer,
    UnsupportedError,
)
from exlora.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler
from support import families

pytestmark = pytest.mark.cuda

MODEL = "quill-4m-gptq-4bit-g32-asym-actorder"
ADAPTERS = {"jargon": "jargon-lora-r8", "devil": "devil-dora-r8"}
PROMPTS = ["A bug is", "A bug is", "The truth is"]
MIXTURES = [None, "jargon", {"jargon": 0.5, "devil": 0.5}]
DEVICES = ["cpu", "cuda"]


def assert_close(found, expected):
    """Logits of f16 activations against those of float32, as a part of the largest one."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()


def run(*arguments, **environment):
    """The finished command."""
    command, env = [sys.executable, "-m", "exlora", *map(str, arguments)], os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=env)


def test_an_engine_answers_a_mixed_batch_as_on_the_cpu(fixtures):
    adapters = {name: fixtures / "adapters" / folder for name, folder in ADAPTERS.items()}
    outputs = {}
    for device in DEVICES:
        engine = Engine(fixtures / MODEL, device=device, adapters=adapters, kv_tokens=256)
        outputs[device] = engine.generate(PROMPTS, MIXTURES, max_new_tokens=2, return_logits=True)
    stats = engine.stats()
    assert 0 < stats["device_free_bytes"] < stats["device_total_bytes"]
    assert stats["weights_bytes"] > 0
    assert stats["device_buffers_bytes"] > 0
    for found, expected in zip(outputs["cuda"], outputs["cpu"], strict=True):
        assert_close(found.logits[0], expected.logits[0])
        assert found.text == expected.text


def test_the_exllamav2_shape_answers_as_on_the_cpu(fixtures):
    texts, logits = {}, {}
    for device in DEVICES:
        config = ExLlamaV2Config(str(fixtures / MODEL))
        config.device = device
        model = ExLlamaV2(config)
        cache = ExLlamaV2Cache(model, max_seq_len=256, lazy=True)
        model.load_autosplit(cache)
        assert model.get_cache_devices()[0].startswith(device)
        loras = [
            ExLlamaV2Lora.from_directory(model, str(fixtures / "adapters" / folder)) for folder in ADAPTERS.values()
        ]
        logits[device] = model.forward(np.array([[5, 6, 7]]), loras=loras[:1])
        generator = ExLlamaV2DynamicGenerator(model, cache, ExLlamaV2Tokenizer(config))
        settings = ExLlamaV2Sampler.Settings.greedy()
        for mixture in [[], [(loras[0], 1.0)], [(loras[0], 0.5), (loras[1], 0.5)]]:
            generator.enqueue(ExLlamaV2DynamicJob(np.array([[5, 6, 7, 8]]), 2, loras=mixture, gen_settings=settings))
        ended = {}
        while generator.num_remaining_jobs():
            for result in generator.iterate():
                if result["eos"]:
                    ended[result["serial"]] = result["full_completion"], result["eos_reason"]
        texts[device] = [ended[serial] for serial in sorted(ended)]
    assert_close(logits["cuda"], logits["cpu"])
    assert texts["cuda"] == texts["cpu"]
    assert len(texts["cpu"]) == len(MIXTURES)


def test_the_command_answers_a_mixed_batch_as_on_the_cpu(fixtures, tmp_path):
    lines = [{"prompt": prompt, "adapter": mixture} for prompt, mixture in zip(PROMPTS, MIXTURES, strict=True)]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("\n".join(map(json.dumps, lines)))
    adapters = [f"--adapter={name}={fixtures / 'adapters' / folder}" for name, folder in ADAPTERS.items()]
    texts = {}
    for device in DEVICES:
        done = run("generate", "-m", fixtures / MODEL, *adapters, "--device", device, "--kv-tokens", 256, "--ordered",
                   "--json", "--max-new-tokens", 2, "--requests", requests)  # fmt: skip
        assert done.returncode == 0, done.stderr
        texts[device] = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    assert texts["cuda"] == texts["cpu"]
    assert len(texts["cpu"]) == len(PROMPTS)


def test_every_face_serves_a_quantized_cache(fixtures):
    logits, kv_bytes = {}, {}
    for device in DEVICES:
        engine = Engine(fixtures / MODEL, device=device, kv_dtype="q8", kv_tokens=256)
        completion = engine.generate(PROMPTS[0], max_new_tokens=1, return_logits=True)
        logits[device], kv_bytes[device] = np.asarray(completion.logits[0]), engine.stats()["kv_bytes"]
    # Each is within 1 % of float32.
    assert np.abs(logits["cuda"] - logits["cpu"]).max() <= 2e-2 * np.abs(logits["cpu"]).max()
    assert kv_bytes["cuda"] == kv_bytes["cpu"]
    config = ExLlamaV2Config(str(fixtures / MODEL))
    config.device = "cuda"
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache_Q4(model, max_seq_len=64, lazy=True)
    model.load_autosplit(cache)
    assert np.isfinite(np.asarray(model.forward(np.array([[5, 6, 7]]), cache))).all()
    clone = cache.clone()
    for one, other in zip(cache.all_tensors(), clone.all_tensors(), strict=True):
        assert np.asarray(one).any()
        assert np.array_equal(one, other)
    assert np.array_equal(model.forward(np.array([[8]]), clone), model.forward(np.array([[8]]), cache))
    done = run("generate", "-m", fixtures / MODEL, "--device", "cuda", "--kv-dtype", "q6", "--kv-tokens", 256,
               "--prompt", PROMPTS[0], "--max-new-tokens", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_auto_is_the_card_unless_only_the_cpu_takes_what_is_asked_for(fixtures):
    engine = Engine(fixtures / MODEL, kv_tokens=256)
    assert engine.stats()["device_total_bytes"] > 0
    done = run("--json", "bench", "-m", fixtures / MODEL, "--activations", "int8", "--prompt", 4, "--decode", 1)
    assert done.returncode == 0, done.stderr
    assert "cuda" not in done.stdout


@pytest.mark.slow
def test_a_card_with_little_shared_memory_answers_a_prompt_of_many_rows(fixtures):
    """Of compute capability 8.6: the linear kernel's widest tile does not fit, and a narrower one has the same bits."""
    asked = (
        "generate",
        "-m",
        fixtures / MODEL,
        "--device",
        "cuda",
        "--json",
        "--max-new-tokens",
        2,
        "--kv-tokens",
        512,
    )
    large, small = (run(*asked, "--prompt", "A bug is " * 40, EMULATED_CUDA_CC=version) for version in ("9.0", "8.6"))
    assert small.returncode == 0, small.stderr
    assert json.loads(small.stdout.splitlines()[-1])["text"] == json.loads(large.stdout.splitlines()[-1])["text"]


def test_the_benchmark_runs_on_the_device(fixtures):
    adapter = f"jargon={fixtures / 'adapters' / ADAPTERS['jargon']}"
    done = run("--json", "bench", "-m", fixtures / MODEL, "--device", "cuda:0", "--adapter", adapter, "--prompt", 4,
               "--decode", 1, "--rounds", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cuda:0 (" in done.stdout


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_family_is_computed_as_on_the_cpu(name, tmp_path):
    folder = families.write(name, tmp_path)
    engines = [Engine(folder, device=device, kv_tokens=256) for device in DEVICES]
    expected, found = (engine.logits(families.PROMPT) for engine in engines)
    assert_close(found, expected)


def test_a_card_that_is_not_there_is_one_line(fixtures):
    with pytest.raises(UnsupportedError, match="no card cuda:7") as caught:
        Engine(fixtures / MODEL, device="cuda:7")
    assert caught.value.code == "cuda_unavailable"
    done = run("generate", "-m", fixtures / MODEL, "--device", "cuda:7", "--prompt", "A")
    assert done.returncode != 0
    assert "there is no card cuda:7" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"EMULATED_CUDA_CC": "7.5"},
            "too old: expected compute capability 8.0 or newer, found compute capability 7.5",
        ),
        ({"LD_LIBRARY_PATH": ""}, "libcuda.so.1, the library of the NVIDIA driver, was not found"),
    ],
)
def test_what_cuda_lacks_is_one_line(fixtures, environment, message):
    if "Emulated" not in run("doctor").stdout:
        pytest.skip("this machine has what the emulated driver can be without")
    done = run("generate", "-m", fixtures / MODEL, "--device", "cuda", "--prompt", "A", **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
