"""Faithful: adapters on a tiny model of every family against PEFT in float32, alone, mixed, and in batches.

The bound is 2e-5 of the largest logit, at every position: an adapter's sums add their rounding to the base's. Caches
hold float32.
"""

import numpy as np
import peft
import pytest
from exlora import Engine
from support import adapters, collection, families
from support.adapter_specs import Spec
from support.compare import bits, distance
from support.families import FAMILIES, LONG_PROMPT, PROMPT, some
from support.tiny import logits

TOLERANCE = 2e-5
VISIBLE = 1e-3
SETTINGS = {"max_new_tokens": 6, "temperature": 0.0, "logprobs": 3, "stop_at_eos": False}

ALL, WITH_EMBEDDING, WITH_HEAD = "all-linear", r".*(_proj|c_fc|embed_tokens)", r".*(_proj|c_fc|lm_head)"
ADAPTERS = {
    "all-linear": Spec(targets=ALL),
    "other-rank": Spec({"use_rslora": True}, targets=ALL, r=6, lora_alpha=5),
    "dora": Spec({"use_dora": True}, targets=ALL),
    "lora-bias": Spec({"lora_bias": True}, targets=ALL),
    "norms": Spec({"modules_to_save": ["norm"]}, targets=ALL),
    "embedding": Spec(targets=WITH_EMBEDDING, save_embeddings=False),
    "embedding-dora": Spec({"use_dora": True}, targets=WITH_EMBEDDING, save_embeddings=False),
    "tokens": Spec({"trainable_token_indices": PROMPT[2:9:3]}, targets=ALL),
    "head": Spec(targets=WITH_HEAD, save_embeddings=False),
    "bias-all": Spec({"bias": "all"}, targets=ALL),
}
HAVE_BIASES = ("granite", "glm", "glm4", "starcoder2")
# In the quick tests, each kind is tried where a datum meets it: norms stored less one, factors of the embedding, of the
# residual sum and of the logits, norms behind linears, fused projections, biases, also of norms.
QUICK = [
    *((name, "all-linear") for name in ("mistral", "smollm3", "gemma3", "cohere2", "glm4", "olmo3")),
    *((name, "norms") for name in ("gemma3", "cohere", "olmo2", "starcoder2")),
    *((name, "dora") for name in ("phi3", "glm4", "gemma2")),
    *((name, "head") for name in ("gemma2", "granite")),
    *((name, "bias-all") for name in ("starcoder2", "glm")),
    ("gemma3", "embedding"),
    ("granite", "embedding"),
    ("granite", "embedding-dora"),
    ("gemma3", "tokens"),
    ("granite", "lora-bias"),
]
SLOW = [
    (name, kind)
    for name in FAMILIES
    for kind in ADAPTERS
    if (name, kind) not in QUICK and (kind != "bias-all" or name in HAVE_BIASES)
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


class Adapters:
    """Adapters of the table for the tiny models, each written once."""

    def __init__(self, models, root):
        self.models, self.root = models, root

    def model(self, name):
        return families.write(name, self.models)

    def adapter(self, name, kind):
        folder = self.root / f"{name}-{kind}"
        if folder.exists():
            return folder
        seed = list(ADAPTERS).index(kind)
        return collection.write(ADAPTERS[kind], folder, self.model(name), seed)

    def peft(self, name, kind):
        return collection.load(ADAPTERS[kind], self.adapter(name, kind), self.model(name))

    def engine(self, name, *kinds, **options):
        folders = {kind: self.adapter(name, kind) for kind in kinds}
        options = {"threads": 1, "kv_dtype": "f32", "prefix_cache": False, **options}
        return Engine(self.model(name), adapters=folders, **options)


@pytest.fixture(scope="module")
def store(models, tmp_path_factory):
    return Adapters(models, tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_adapter_on_a_family_equals_peft(name, kind, store):
    want = logits(store.peft(name, kind), PROMPT)
    assert np.abs(want - families.logits(store.model(name))).max() > VISIBLE
    engine = store.engine(name, kind)
    assert distance(engine.logits(PROMPT, adapter=kind), want) < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_an_adapter_on_the_reference_device_equals_peft(name, store):
    engine = store.engine(name, "all-linear", "norms", "dora", device="reference")
    for kind in ("all-linear", "norms", "dora"):
        assert distance(engine.logits(PROMPT, adapter=kind), logits(store.peft(name, kind), PROMPT)) < TOLERANCE, kind


@pytest.mark.parametrize("name", some(["granite", "phi3", "starcoder2"]))
def test_a_mixture_is_pefts_weighted_sum_of_deltas(name, store):
    """Ranks that are joined (`cat`) sum the deltas exactly; the deltas added by hand agree with them."""
    mixture = {"all-linear": 0.75, "other-rank": -0.5}
    model = peft.PeftModel.from_pretrained(
        collection.base_model(store.model(name)), store.adapter(name, "all-linear"), "all-linear"
    )
    model.load_adapter(store.adapter(name, "other-rank"), "other-rank")
    model.add_weighted_adapter(list(mixture), list(mixture.values()), "mixture", combination_type="cat")
    model.set_adapter("mixture")
    want = logits(model.eval(), PROMPT)
    by_hand = adapters.load_sum(
        store.model(name), [(store.adapter(name, kind), weight) for kind, weight in mixture.items()]
    )
    assert distance(logits(by_hand, PROMPT), want) < TOLERANCE
    engine = store.engine(name, *mixture)
    assert distance(engine.logits(PROMPT, adapter=mixture), want) < TOLERANCE


@pytest.mark.parametrize("name", some(["gemma2", "granite", "phi3"]))
def test_a_row_has_the_same_bits_alone_in_a_batch_and_in_chunks(name, store):
    kinds = ("all-linear", "other-rank", "dora", "norms")
    mixtures = [None, *kinds, {"all-linear": 0.5, "other-rank": 0.25}, None, "norms"]
    prompts = [PROMPT[: 22 - 2 * row] for row in range(len(mixtures))]
    together = store.engine(name, *kinds).generate(prompts, adapters=mixtures, **SETTINGS)
    chunked = store.engine(name, *kinds, prefill_chunk=5, threads=2)
    for prompt, mixture, out in zip(prompts, mixtures, together, strict=True):
        [alone] = chunked.generate([prompt], adapters=[mixture], **SETTINGS)
        assert bits(alone) == bits(out), mixture


@pytest.mark.parametrize("name", some(["gemma3", "cohere2", "glm4", "olmo3", "phi3-longrope"]))
def test_a_cached_prefix_changes_no_bit(name, store):
    """Across windows, too, and never shared with another adapter."""
    caching, fresh = (store.engine(name, "all-linear", prefix_cache=cache) for cache in (True, False))
    for seen, mixture in enumerate([None, "all-linear", None, "all-linear"]):
        ours, want = (engine.generate([LONG_PROMPT], adapters=[mixture], **SETTINGS)[0] for engine in (caching, fresh))
        assert bits(ours) == bits(want)
        assert (ours.usage.cached_tokens > 0) == (seen >= 2)
