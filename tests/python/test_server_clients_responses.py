"""OpenAI's responses: the client's types read every event, and the events add up to the whole response."""

import json

import exlora
import openai
import pytest
from pydantic import BaseModel, Field
from support.server import MESSAGES, TOOLS, serving

RESPONSES_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]


@pytest.fixture(scope="module")
def client(quill):
    with serving(quill) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def engine(quill):
    return exlora.Engine(quill)


def test_a_response_has_the_text_of_the_engine(client, engine):
    expected = engine.generate([{"role": "user", "content": "Tell me."}], max_new_tokens=8)
    response = client.responses.create(model="base", input="Tell me.", max_output_tokens=8, temperature=0)
    assert response.output_text == expected.text
    assert response.usage.output_tokens == 8
    assert response.usage.input_tokens == expected.usage.prompt_tokens
    assert response.usage.total_tokens == 8 + expected.usage.prompt_tokens
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.max_output_tokens == 8
    assert response.temperature == 0


def test_instructions_are_the_system(client, engine):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me."}]
    expected = engine.generate(messages, max_new_tokens=8).text
    arguments = {"model": "base", "max_output_tokens": 8, "temperature": 0}
    text = client.responses.create(input="Tell me.", instructions="Be brief.", **arguments).output_text
    assert text == expected
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "Tell me."}]}]
    items = [{"role": "developer", "content": "Be brief."}, *parts]
    assert client.responses.create(input=items, **arguments).output_text == expected


def test_the_events_of_a_stream_add_up_to_the_response(client):
    arguments = {"model": "base", "input": "Tell me.", "max_output_tokens": 8, "temperature": 0}
    whole = client.responses.create(**arguments)
    events = list(client.responses.create(**arguments, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-4].text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == 8
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1


def test_the_clients_stream_helper_gives_the_final_response(client):
    with client.responses.stream(model="base", input="Tell me.", temperature=0, extra_body=CHOICE) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == "".join(deltas)


# Ends by itself, which the model does not do in a few tokens.
CHOICE = {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["Rome", "Oslo"]}}}}


def test_a_json_schema_is_kept(client):
    class Answer(BaseModel):
        yes: bool
        days: int = Field(ge=0, le=9)

    response = client.responses.parse(model="base", input="Tell me.", text_format=Answer, temperature=0)
    assert isinstance(response.output_parsed, Answer)
    assert response.status == "completed"


def test_a_function_is_called_and_its_output_is_part_of_the_input(client):
    response = client.responses.create(
        model="base", input="Tell me.", tools=RESPONSES_TOOLS, tool_choice={"type": "function", "name": "get_weather"},
        temperature=0,
    )  # fmt: skip
    (call,) = response.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert call.status == "completed"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    items = [
        {"role": "user", "content": "Tell me."},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sun."},
    ]
    after = client.responses.create(model="base", input=items, tools=RESPONSES_TOOLS, max_output_tokens=4)
    assert after.output[0].type == "message"


def test_a_call_is_streamed(client):
    events = list(
        client.responses.create(
            model="base", input="Tell me.", tools=RESPONSES_TOOLS, tool_choice="required", parallel_tool_calls=False,
            temperature=0, stream=True,
        )
    )  # fmt: skip
    types = [event.type for event in events]
    assert types[2] == "response.output_item.added"
    assert types[-1] == "response.completed"
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.arguments == arguments == events[-1].response.output[0].arguments


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("tools", [{"type": "web_search"}]),
        ("include", ["reasoning.encrypted_content"]),
        ("truncation", "auto"),
        ("top_logprobs", 3),
        ("reasoning", {"effort": "high"}),
        ("prompt", {"id": "p"}),
        ("max_tool_calls", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(client, field, value):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="base", input="Tell me.", extra_body={field: value})
    assert refused.value.code == "setting_unsupported"
    assert refused.value.param.startswith(field)


def test_what_changes_no_answer_is_accepted(client):
    for extra in ({"store": True}, {"store": False}, {"metadata": {"a": "b"}}, {"background": False}, {"user": "me"}):
        response = client.responses.create(model="base", input="Tell me.", max_output_tokens=1, extra_body=extra)
        assert response.metadata == extra.get("metadata", {})
        assert response.store is False if hasattr(response, "store") else True


def test_messages_of_a_chat_are_an_input(client, engine):
    expected = engine.generate(MESSAGES, max_new_tokens=8).text
    response = client.responses.create(model="base", input=MESSAGES, max_output_tokens=8, temperature=0)
    assert response.output_text == expected
