"""The names that exllamav2's example scripts and tabbyAPI use: each exists, and works or is refused by name."""

import argparse
import importlib

import exlora
import numpy as np
import pytest
from exlora import (
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Config,
    ExLlamaV2Tokenizer,
    ExloraError,
    SeqTensor,
    model_init,
    util,
)
from exlora.generator import ExLlamaV2BaseGenerator, ExLlamaV2Sampler, ExLlamaV2StreamingGenerator
from exlora.tokenizer import ExLlamaV2TokenizerBase

PROMPT = "The table is used to"
GREEDY = ExLlamaV2Sampler.Settings.greedy()

MODULES = {
    "": "ExLlamaV2 ExLlamaV2Config ExLlamaV2Cache ExLlamaV2CacheBase ExLlamaV2Cache_8bit ExLlamaV2Cache_Q4 "
    "ExLlamaV2Cache_Q6 ExLlamaV2Cache_Q8 ExLlamaV2Cache_TP ExLlamaV2Tokenizer ExLlamaV2Lora ExLlamaV2VisionTower "
    "ExLlamaV2MultimodalProjector Intervention SeqTensor Timer",
    "generator": "ExLlamaV2BaseGenerator ExLlamaV2StreamingGenerator ExLlamaV2DynamicGenerator ExLlamaV2DynamicJob "
    "ExLlamaV2DynamicGeneratorAsync ExLlamaV2DynamicJobAsync ExLlamaV2Sampler ExLlamaV2MMEmbedding "
    "ExLlamaV2PostSamplingHook ExLlamaV2PostSamplingResult",
    "generator.base": "ExLlamaV2BaseGenerator ExLlamaV2Filter",
    "generator.dynamic": "ExLlamaV2DynamicGenerator",
    "generator.dynamic_async": "ExLlamaV2DynamicGeneratorAsync ExLlamaV2DynamicJobAsync",
    "generator.dynamic_embeddings": "ExLlamaV2MMEmbedding",
    "generator.filters": "ExLlamaV2Filter ExLlamaV2PrefixFilter ExLlamaV2SelectFilter",
    "generator.hooks": "ExLlamaV2PostSamplingHook ExLlamaV2PostSamplingResult",
    "generator.sampler": "ExLlamaV2Sampler",
    "generator.streaming": "ExLlamaV2StreamingGenerator",
    "cache": "ExLlamaV2Cache ExLlamaV2CacheBase",
    "config": "ExLlamaV2Config",
    "lora": "ExLlamaV2Lora",
    "model": "ExLlamaV2",
    "model_init": "add_args print_options check_args init post_init_load",
    "module": "ExLlamaV2Module Intervention",
    "tokenizer": "ExLlamaV2Tokenizer ExLlamaV2TokenizerBase ExLlamaV2TokenizerHF",
    "tokenizer.base": "ExLlamaV2TokenizerBase",
    "tokenizer.hf": "ExLlamaV2TokenizerHF",
    "tokenizer.tokenizer": "ExLlamaV2Tokenizer",
    "util": "SeqTensor Timer get_basic_progress",
    "vlm.vision_tower": "ExLlamaV2VisionTower",
    "vlm.mmprojector": "ExLlamaV2MultimodalProjector",
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_its_names(module):
    found = importlib.import_module(".".join(["exlora", module]).rstrip("."))
    missing = [name for name in MODULES[module].split() if not hasattr(found, name)]
    assert not missing


@pytest.fixture(scope="module")
def config(fixtures):
    return ExLlamaV2Config(str(fixtures / "quill-4m-gptq-4bit-g128-sym"))


@pytest.fixture(scope="module")
def model(config):
    model = ExLlamaV2(config)
    model.load()
    return model


@pytest.fixture(scope="module")
def tokenizer(config):
    return ExLlamaV2Tokenizer(config)


@pytest.fixture
def cache(model):
    return ExLlamaV2Cache(model, max_seq_len=256)


@pytest.fixture
def streaming(model, tokenizer):
    return ExLlamaV2StreamingGenerator(model, ExLlamaV2Cache(model, max_seq_len=256), tokenizer)


OBJECTS = {
    "config": "arch architecture arch_compat_overrides bos_token_id eos_token_id fasttensors head_dim hidden_size "
    "load_in_q4 max_attention_size max_batch_size max_dq_size max_input_len max_output_len max_seq_len model_dir "
    "no_flash_attn no_graphs no_sdpa no_xformers num_hidden_layers num_key_value_heads prepare scale_alpha_value "
    "scale_pos_emb set_low_mem vocab_size",
    "model": "cache_map config forward forward_chunk get_cache_devices get_modules is_quant load load_autosplit "
    "load_autosplit_gen load_gen load_tp load_tp_gen loaded modules modules_dict tp_context unload update_loras",
    "tokenizer": "actual_vocab_size bos_token bos_token_id cached_encode_str char_trie char_trie_ci config decode "
    "encode encode_special encode_unspecial eos_token eos_token_id extended_id_to_piece "
    "extended_piece_to_id get_char_trie get_char_trie_ci get_id_to_ord_list get_id_to_piece_list "
    "get_piece_to_id_dict get_prefix_id_to_ids_dict get_prefix_to_ids_dict get_vocab_size id_to_ord "
    "id_to_piece newline_token newline_token_id num_tokens pad_token pad_token_id padding_mask "
    "piece_to_id prefix_id_to_ids prefix_to_ids single_id single_token space_token space_token_id "
    "tokenizer tokenizer_config_dict tokenizer_model unk_token unk_token_id unspecial_id_to_piece "
    "unspecial_piece_to_id",
    "cache": "all_tensors batch_size clone copy_states current_seq_len footprint get_kv_state key_states max_seq_len "
    "model reset roll_left value_states",
    "streaming": "begin_stream begin_stream_ex cache draft_cache draft_model full generate_simple get_sd_stats model "
    "num_speculative_tokens reset_sd_stats sequence_ids set_stop_conditions speculative_ngram stop_strings "
    "stop_tokens stream stream_ex tokenizer warmup",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_has_its_names(name, request):
    found = request.getfixturevalue(name)
    assert not [attribute for attribute in OBJECTS[name].split() if not hasattr(found, attribute)]


def refused_uses(model):
    """What raises, by a word of its error."""
    cache = model and ExLlamaV2Cache(model, max_seq_len=256)
    return {
        "vision_tower": lambda: exlora.ExLlamaV2VisionTower(model.config),
        "multimodal_projector": lambda: exlora.ExLlamaV2MultimodalProjector(model.config),
        "intervention": lambda: exlora.Intervention(model.modules[1]),
        "self_attn": lambda: model.modules[1].forward(np.zeros((1, 1, 8))),
        "tensor_parallel": lambda: exlora.ExLlamaV2Cache_TP(model),
        "page_size": lambda: cache.get_kv_state(0, 1, 0, 1, page_size=256),
    }


@pytest.mark.parametrize("name", refused_uses(None))
def test_what_exlora_does_not_have_is_refused_by_name(model, name):
    with pytest.raises(ExloraError, match=name) as caught:
        refused_uses(model)[name]()
    assert caught.value.code == "setting_unsupported"


# Tokenizer


def test_the_vocabulary_is_that_of_the_tokenizers_file(fixtures, tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(fixtures / "quill-4m/tokenizer.json"))
    ours = tokenizer.tokenizer_model
    assert isinstance(ours, ExLlamaV2TokenizerBase)
    assert ours is tokenizer.tokenizer
    assert tokenizer.actual_vocab_size == ours.vocab_size() == theirs.get_vocab_size()
    ids = range(ours.vocab_size())
    assert [ours.id_to_piece(i) for i in ids] == [theirs.id_to_token(i) for i in ids]
    assert all(ours.piece_to_id(ours.id_to_piece(i)) == i for i in ids)
    assert [piece for _, piece in ours.enumerate_tokens()] == ours.vocab == [theirs.decode([i]) for i in ids]
    text = "A cat\nis <not> a dog."
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text
    assert (ours.space_char(), ours.newline_char()) == ("\u0120", "\u010a")
    assert ours.clean_special_chars("\u0120a\u010a") == " a\n"


def test_special_tokens_are_in_the_extended_tables_alone(tokenizer):
    extended = tokenizer.extended_id_to_piece
    assert tokenizer.eos_token_id in extended
    assert extended[tokenizer.eos_token_id] == tokenizer.eos_token
    assert {piece: i for i, piece in extended.items()} == tokenizer.extended_piece_to_id
    assert all(tokenizer.native.is_special(i) or i == tokenizer.unk_token_id for i in extended)
    assert all(tokenizer.get_id_to_piece_list()[i] == "" for i in extended if tokenizer.native.is_special(i))
    assert all(tokenizer.get_id_to_piece_list(True)[i] == piece for i, piece in extended.items())


def test_tables_of_pieces_hold_what_a_search_finds(tokenizer):
    pieces = tokenizer.get_id_to_piece_list()
    last = {piece: i for i, piece in enumerate(pieces)}
    assert tokenizer.get_piece_to_id_dict() == last
    prefixes = tokenizer.get_prefix_to_ids_dict()
    for prefix in ("th", " the", "S", " "):
        assert prefixes[prefix] == sorted(i for piece, i in last.items() if piece.startswith(prefix))
        assert tokenizer.get_prefix_id_to_ids_dict()[last[prefix]] == prefixes[prefix]

    def found(trie, text):
        for character in text:
            trie = trie.children[character]
        return trie.leaf

    for text in (" the", "The", "a"):
        assert found(tokenizer.get_char_trie(), text) == [i for i, piece in enumerate(pieces) if piece == text]
        folded = [i for i, piece in enumerate(pieces) if piece.lower() == text.lower()]
        assert found(tokenizer.get_char_trie_ci(), text.lower()) == folded
    ords = tokenizer.get_id_to_ord_list()
    assert (ords[last["A"]], ords[last[" the"]]) == (65, -1)
    assert ords[tokenizer.newline_token_id] == 10


def test_encoded_texts_are_remembered_up_to_a_number(tokenizer):
    tokenizer.max_cached_strings = 2
    for text in ("one", "two", "three", "two"):
        assert np.array_equal(tokenizer.cached_encode_str(text), tokenizer.encode(text))
    assert list(tokenizer.tokenized_str_cache) == ["two", "three"]
    assert tokenizer.encode_special(tokenizer.eos_token) == [tokenizer.eos_token_id]
    assert tokenizer.encode_unspecial(tokenizer.eos_token) != [tokenizer.eos_token_id]


# Model, util


def test_modules_are_named_as_in_the_checkpoint(model):
    keys = [module.key for module in model.modules]
    layers = model.config.num_hidden_layers
    assert (keys[0], keys[-2:], len(keys)) == ("model.embed_tokens", ["model.norm", "lm_head"], 3 + 2 * layers)
    assert model.modules_dict["model.layers.1.mlp"].layer_idx == 1
    assert model.modules[0].device() == "cpu"
    assert list(model.cache_map) == list(range(layers))


def test_a_seq_tensor_grows_along_its_dimension():
    torch = pytest.importorskip("torch")
    values = torch.arange(2 * 700 * 3).reshape(2, 700, 3)
    grown = SeqTensor((2, 1, 3), torch.long, seq_dim=1)
    assert not grown
    for start in range(0, 700, 100):
        grown.append(values[:, start : start + 100])
    grown.append(None)
    assert len(grown) == 700
    assert torch.equal(grown.torch(), values)
    assert (grown.seq_cap, grown.tensor.shape) == (768, (2, 768, 3))
    assert torch.equal(grown.torch_slice(5, 9), values[:, 5:9])
    assert torch.equal(grown.slice(None, 9).torch(), values[:, :9])
    assert torch.equal(grown.slice(690, None).torch(), values[:, 690:])
    assert torch.equal(grown.clone(drop=10).torch(), values[:, :-10])
    copied = grown.clone()
    grown.truncate(3)
    grown.append(SeqTensor.from_tensor(values[:, :2], -2))
    assert torch.equal(grown.torch(), torch.cat([values[:, :3], values[:, :2]], 1))
    assert torch.equal(copied.torch(), values)
    grown.set(values[:, 7:8])
    assert torch.equal(grown.torch(), values[:, 7:8])
    with pytest.raises(ValueError, match="new_len"):
        grown.truncate(2)


def test_the_basic_progress_bar_is_one_of_rich():
    pytest.importorskip("rich")
    with util.get_basic_progress() as progress:
        task = progress.add_task("Working", total=3)
        progress.update(task, advance=3)
        assert progress.finished


# model_init


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--own", default="text")
    model_init.add_args(parser)
    return parser.parse_args(arguments)


def test_model_init_loads_what_the_options_say(config, capsys):
    args = parsed("-m", str(config.model_dir), "-l", "512", "-lm", "-nfa", "--own", "x")
    model_init.check_args(args)
    model_init.print_options(args)
    model, tokenizer = model_init.init(args, max_batch_size=4, max_output_len=16)
    assert model.loaded
    assert tokenizer.config is model.config
    assert (model.config.max_seq_len, model.config.max_input_len, model.config.max_batch_size) == (512, 1024, 4)
    printed = capsys.readouterr().out
    assert "length: 512" in printed
    assert "low_mem" in printed
    assert "own" not in printed.replace(str(config.model_dir), "")


def test_model_init_leaves_an_auto_split_to_the_script(config, capsys):
    args = parsed("-m", str(config.model_dir), "-gs", "auto")
    model, _ = model_init.init(args, quiet=True, allow_auto_split=True)
    assert not model.loaded
    model.load_autosplit(ExLlamaV2Cache(model, lazy=True))
    assert model.loaded
    with pytest.raises(SystemExit, match="auto"):
        model_init.init(args, quiet=True)
    model, _ = model_init.init(args, quiet=True, skip_load=True)
    assert not model.loaded
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("option", [["-tp"], ["-lq4"], ["-ry", "2"], ["-ept", "2"]], ids=str)
def test_model_init_refuses_what_exlora_does_not_have(config, option):
    with pytest.raises(ExloraError) as caught:
        model_init.init(parsed("-m", str(config.model_dir), *option), quiet=True)
    assert caught.value.code == "setting_unsupported"


def test_model_init_ends_a_script_without_a_model(tmp_path):
    for arguments in ([], ["-m", str(tmp_path / "missing")], ["-m", str(tmp_path)]):
        with pytest.raises(SystemExit, match="Error"):
            model_init.check_args(parsed(*arguments))


# Generators


def test_the_streaming_generator_is_a_base_generator(streaming, model, tokenizer):
    assert isinstance(streaming, ExLlamaV2BaseGenerator)
    base = ExLlamaV2BaseGenerator(model, streaming.cache, tokenizer)
    text = streaming.generate_simple(PROMPT, GREEDY, 8)
    assert text == base.generate_simple(PROMPT, GREEDY, 8)
    assert base.generate_simple([PROMPT, "Once"], GREEDY, 8)[0] == text
    rows = np.asarray(base.sequence_ids)
    assert tokenizer.decode(rows)[0] == text
    assert rows.shape[0] == 2


def test_the_sequence_is_prompt_and_output(streaming, tokenizer):
    assert streaming.sequence_ids is None
    assert not streaming.full()
    ids = tokenizer.encode(PROMPT)
    streaming.begin_stream_ex(ids, GREEDY)
    assert np.array_equal(streaming.sequence_ids, ids)
    found = [np.asarray(streaming.stream_ex()["chunk_token_ids"]) for _ in range(5)]
    assert np.array_equal(streaming.sequence_ids, np.concatenate([np.asarray(ids), *found], axis=1))


def test_the_token_that_stops_is_part_of_the_sequence(streaming, tokenizer):
    ids = np.asarray(tokenizer.encode(PROMPT))
    streaming.begin_stream_ex(ids, GREEDY)
    stop = int(np.asarray(streaming.stream_ex()["chunk_token_ids"])[0, 0])
    streaming.set_stop_conditions([stop, "never"])
    assert (streaming.stop_tokens, streaming.stop_strings) == ({stop}, {"never"})
    streaming.begin_stream_ex(ids, GREEDY)
    result = streaming.stream_ex()
    assert result["eos"]
    assert np.asarray(result["chunk_token_ids"]).size == 0
    assert np.asarray(streaming.sequence_ids)[0].tolist() == [*ids[0].tolist(), stop]


def test_a_full_context_is_no_end_of_the_text(streaming, tokenizer):
    """As chat.py relies on: it makes the prompt shorter and goes on."""
    streaming.set_stop_conditions([])
    room = streaming.cache.max_seq_len
    streaming.begin_stream_ex(np.arange(3, 3 + room - 4)[None], GREEDY)
    ends = []
    while not streaming.full():
        ends.append(streaming.stream_ex()["eos"])
    assert ends == [False] * 4
    assert np.asarray(streaming.sequence_ids).shape[1] == room
    # The last token needs no room of its own.
    assert any(streaming.stream_ex()["eos"] for _ in range(2))
    streaming.begin_stream_ex(tokenizer.encode(PROMPT), GREEDY)
    assert not streaming.full()
    assert not streaming.stream_ex()["eos"]
