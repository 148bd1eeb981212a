"""The format of a model's calls, told from its chat template, with markers that are special tokens of its tokenizer."""

import json
import shutil

import openai
import pytest
from support.server import MESSAGES, TOOLS, serving

# The marker that is a special token in the place of <|im_start|>, and what a template of the format prints.
TEMPLATES = {
    "hermes": ("<tool_call>", 'For each call return <tool_call>{"name": …, "arguments": …}</tool_call>.'),
    "llama3": ("<|python_tag|>", '<|start_header_id|> Respond in the format {"name": …, "parameters": …}.'),
    "mistral list": ("[TOOL_CALLS]", "[TOOL_CALLS] [...]"),
    "mistral names": ("[TOOL_CALLS]", "[TOOL_CALLS]name[ARGS]{}"),
    "mistral names and ids": ("[TOOL_CALLS]", "[TOOL_CALLS]name[CALL_ID]id[ARGS]{}"),
    "unknown": ("<|im_start|>", "Return <tool_call>name\\n<arg_key>key</arg_key></tool_call>."),
}

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def folder_of(quill, folder, name):
    """A copy of the model whose template teaches a format."""
    marker, teaches = TEMPLATES[name]
    shutil.copytree(quill, folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(json.dumps("<|im_start|>"), json.dumps(marker)))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        CHAT + "{% if tools %}" + teaches + "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=TEMPLATES)
def served(request, quill, tmp_path_factory):
    folder = folder_of(quill, tmp_path_factory.mktemp("formats") / "model", request.param)
    with (
        serving(folder, tool_call_parser=None) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield request.param, client


def ask(client, **arguments):
    return client.chat.completions.create(model="base", messages=MESSAGES, tools=TOOLS, temperature=0, **arguments)


def test_calls_are_made_in_the_format_of_the_template(served):
    name, client = served
    named = {"type": "function", "function": {"name": "get_weather"}}
    if name == "unknown":
        for choice in ("auto", "required", named):
            with pytest.raises(openai.BadRequestError, match="--tool-call-parser") as refused:
                ask(client, tool_choice=choice)
            assert refused.value.code == "setting_unsupported"
        assert ask(client, tool_choice="none", max_tokens=4).choices[0].message.tool_calls is None
        return
    whole = ask(client, tool_choice=named).choices[0]
    (call,) = whole.message.tool_calls
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    assert len(call.id) == 9 if name.startswith("mistral") else call.id.startswith("call_")
    pieces = [
        piece
        for chunk in ask(client, tool_choice=named, stream=True)
        for piece in chunk.choices[0].delta.tool_calls or []
    ]
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments


def test_a_text_that_calls_nothing_is_the_same_with_strict_tools(served):
    name, client = served
    if name == "unknown":
        return
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    arguments = {"model": "base", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    free = client.chat.completions.create(**arguments, tools=TOOLS)
    checked = client.chat.completions.create(**arguments, tools=strict)
    assert checked.choices[0].message == free.choices[0].message


@pytest.mark.parametrize("max_tokens", [1, 2, 4, 7, 11, 16])
def test_a_call_that_is_cut_off_is_no_content(served, max_tokens):
    name, client = served
    if name == "unknown":
        return
    arguments = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": max_tokens}
    whole = ask(client, **arguments).choices[0]
    assert whole.finish_reason in ("length", "tool_calls")
    assert not whole.message.content
    chunks = [chunk.choices[0] for chunk in ask(client, **arguments, stream=True)]
    assert not "".join(chunk.delta.content or "" for chunk in chunks)
    assert chunks[-1].finish_reason == whole.finish_reason
    pieces = [piece.function.arguments for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert "".join(pieces) == "".join(call.function.arguments for call in whole.message.tool_calls or [])
