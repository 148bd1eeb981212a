"""langchain's client against a running server: chats, streams, tools, structured output."""

import exlora
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field
from support.server import MESSAGES, TOOLS, serving

QUESTION = MESSAGES[0]["content"]


class Forecast(BaseModel):
    """A forecast."""

    # Without this the test model adds properties until it is cut off.
    model_config = ConfigDict(extra="forbid")

    rain: bool
    days: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def url(quill):
    with serving(quill) as url:
        yield url


@pytest.fixture(scope="module")
def expected(quill):
    return exlora.Engine(quill).generate(MESSAGES, max_new_tokens=8).text


def chat(url, max_tokens=8, **options):
    options = {"model": "base", "api_key": "none", "max_retries": 0, "temperature": 0} | options
    return ChatOpenAI(base_url=f"{url}/v1", max_tokens=max_tokens, **options)


def test_a_chat_is_answered_whole_and_streamed(url, expected):
    whole = chat(url).invoke(QUESTION)
    assert whole.content == expected
    assert whole.usage_metadata["output_tokens"] == 8
    streamed = None
    for part in chat(url, stream_usage=True).stream(QUESTION):
        streamed = part if streamed is None else streamed + part
    assert streamed.content == expected
    assert streamed.usage_metadata == whole.usage_metadata


def test_a_batch_of_chats_is_answered(url, expected):
    answers = chat(url).batch([QUESTION] * 4)
    assert [answer.content for answer in answers] == [expected] * 4


def test_the_responses_api_gives_the_same_text(url, expected):
    answer = chat(url, use_responses_api=True).invoke(QUESTION)
    assert answer.text == expected


@pytest.mark.parametrize("streams", [False, True])
def test_a_bound_tool_is_called_and_answered(url, streams):
    model = chat(url, max_tokens=200).bind_tools(TOOLS, tool_choice="get_weather", parallel_tool_calls=False)
    if streams:
        answer = None
        for part in model.stream(QUESTION):
            answer = part if answer is None else answer + part
    else:
        answer = model.invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in ("Rome", "Oslo")
    result = ToolMessage("Sun.", tool_call_id=call["id"])
    after = chat(url).bind_tools(TOOLS).invoke([HumanMessage(QUESTION), answer, result])
    assert isinstance(after.content, str)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_object_of_the_class(url, method):
    model = chat(url, max_tokens=200)
    forecast = model.with_structured_output(Forecast, method=method).invoke(QUESTION)
    assert isinstance(forecast, Forecast)
