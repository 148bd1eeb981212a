"""A running server, as its clients see it."""

import contextlib
import json
import os
import subprocess
import sys

# Clients talk to this machine, whatever proxy the environment names.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# A chat that the test model answers with prose.
MESSAGES = [{"role": "user", "content": "Tell me about the weather."}]

# Functions whose calls are short, whatever a model chooses.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Rome", "Oslo"]},
                    "days": {"type": "integer", "minimum": 0, "maximum": 9},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]


@contextlib.contextmanager
def serving(model, *options, tool_call_parser="hermes"):
    """Runs `exlora serve` on a free port and yields its URL. Without a parser, the chat template tells the format."""
    tools = () if tool_call_parser is None else ("--tool-call-parser", tool_call_parser)
    command = [sys.executable, "-m", "exlora", "--json", "serve", "-m", str(model), "--port", "0", *tools, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield json.loads(server.stdout.readline())["url"]
        finally:
            server.terminate()
            assert server.wait(timeout=30) == 0
