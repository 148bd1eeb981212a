"""OpenAI's own client against a running server: what it sends is understood, and what it gets it can read."""

import asyncio
import json
from typing import Literal

import exlora
import openai
import pytest
from pydantic import BaseModel, Field
from support.server import MESSAGES, TOOLS, serving


class Weather(BaseModel):
    """A small object."""

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def url(quill):
    with serving(quill) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def engine(quill):
    return exlora.Engine(quill)


def test_models_are_listed(client):
    assert "quill-4m" in [model.id for model in client.models.list()]
    assert client.models.retrieve("quill-4m").object == "model"


def test_a_completion_has_the_text_of_the_engine(client, engine):
    completion = client.completions.create(model="base", prompt="Once upon a", max_tokens=12, temperature=0)
    assert completion.choices[0].text == engine.generate("Once upon a", max_new_tokens=12).text
    assert completion.usage.completion_tokens == 12


def test_a_chat_has_the_text_of_the_engine_whole_and_streamed(client, engine):
    expected = engine.generate(MESSAGES, max_new_tokens=16).text
    arguments = {"model": "base", "messages": MESSAGES, "max_completion_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**arguments)
    assert whole.choices[0].message.content == expected
    stream = client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage


def test_the_async_client_streams_several_chats_at_once(url, engine):
    expected = engine.generate(MESSAGES, max_new_tokens=16).text

    async def text(client):
        stream = await client.chat.completions.create(
            model="base", messages=MESSAGES, max_tokens=16, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def texts():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(text(client) for _ in range(8)))

    assert asyncio.run(texts()) == [expected] * 8


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_is_required_is_made_with_valid_arguments(client, choice):
    chat = client.chat.completions.create(
        model="base", messages=MESSAGES, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, temperature=0
    )
    message = chat.choices[0].message
    assert chat.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert call.function.name in ("get_weather", "now")
    if call.function.name == "get_weather":
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_a_streamed_call_comes_in_pieces_that_join_to_the_whole_one(client):
    arguments = {
        "model": "base",
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "temperature": 0,
    }
    whole = client.chat.completions.create(**arguments).choices[0].message.tool_calls[0].function
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**arguments, stream=True)]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert pieces[0].id
    assert pieces[0].type == "function"
    assert pieces[0].function.name == "get_weather"
    assert len(pieces) > 1
    assert all(piece.id is None and piece.index == 0 for piece in pieces[1:])
    assert "".join(piece.function.arguments for piece in pieces) == whole.arguments
    assert chunks[-1].finish_reason == "tool_calls"


def test_the_clients_stream_helper_builds_the_message(client):
    with client.chat.completions.stream(
        model="base", messages=MESSAGES, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
        parallel_tool_calls=False, temperature=0,
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    call = completion.choices[0].message.tool_calls[0].function
    assert call.name == "Weather"
    assert isinstance(call.parsed_arguments, Weather)


def test_a_tool_that_the_model_may_call_leaves_its_text_as_it_is(client):
    arguments = {"model": "base", "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    plain = client.chat.completions.create(**arguments).choices[0]
    for choice in ("auto", "none"):
        choices = client.chat.completions.create(**arguments, tools=TOOLS, tool_choice=choice).choices
        # The template of the test model does not print tools.
        assert choices[0].message == plain.message
        assert choices[0].finish_reason == plain.finish_reason


def test_the_answer_to_a_call_is_part_of_the_chat(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    chat = client.chat.completions.create(model="base", messages=messages, tools=TOOLS, max_tokens=4)
    assert chat.choices[0].message.role == "assistant"


def test_several_choices_have_calls_of_their_own(client):
    chat = client.chat.completions.create(
        model="base", messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, n=3, seed=1
    )
    ids = [choice.message.tool_calls[0].id for choice in chat.choices]
    assert len(set(ids)) == 3


def test_a_json_object_is_one(client):
    chat = client.chat.completions.create(
        model="base", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=200, temperature=0
    )
    if chat.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(chat.choices[0].message.content), dict)
    else:
        assert chat.choices[0].message.content.startswith("{")


SMALL = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_json_schema_is_kept(client, strict):
    schema = {"name": "weather", "schema": SMALL} | ({} if strict is None else {"strict": strict})
    chat = client.chat.completions.create(
        model="base", messages=MESSAGES, response_format={"type": "json_schema", "json_schema": schema}, temperature=0
    )
    assert chat.choices[0].finish_reason == "stop"
    found = json.loads(chat.choices[0].message.content)
    assert found["city"] in ("Rome", "Oslo")
    assert 0 <= found["days"] <= 9


def test_parse_gives_an_object_of_the_class(client):
    class Answer(BaseModel):
        yes: bool
        days: int = Field(ge=0, le=9)

    chat = client.chat.completions.parse(model="base", messages=MESSAGES, response_format=Answer, temperature=0)
    assert isinstance(chat.choices[0].message.parsed, Answer)


def test_json_or_a_call_where_the_model_may_choose(client):
    chat = client.chat.completions.create(
        model="base", messages=MESSAGES, tools=TOOLS, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": SMALL}},
    )  # fmt: skip
    message = chat.choices[0].message
    assert message.tool_calls or json.loads(message.content)["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("functions", [{"name": "f"}], "setting_unsupported"),
        ("function_call", "auto", "setting_unsupported"),
        ("tools", [{"type": "custom", "custom": {"name": "f"}}], "request_invalid"),
        ("tools", [{"type": "function", "function": {"name": "a b"}}], "request_invalid"),
        ("response_format", {"type": "xml"}, "request_invalid"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "request_invalid"),
        ("tool_choice", "any", "request_invalid"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(client, field, value, code):
    extra = {field: value} if field != "tool_choice" else {"tools": TOOLS, field: value}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="base", messages=MESSAGES, extra_body=extra)
    assert refused.value.code == code
    assert refused.value.param.startswith(field)


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert refused.value.code == "adapter_not_found"
