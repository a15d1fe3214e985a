#!/usr/bin/env python3
"""A small agent: it asks, runs the tools that the model calls, and asks again until there is an answer.

    ./run                                                  # Sluice on port 5002
    pip install -r examples/python/requirements.txt
    VLLM_MEDIUM_API_KEY=… examples/python/agent_loop.py "What is the weather in Paris?"

Reasoning and text are shown as they come. Only `base_url` and the key say that it is Sluice and not OpenAI.
"""

import json
import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("SLUICE_BASE_URL", "http://127.0.0.1:5002/v1"),
    api_key=os.environ["VLLM_MEDIUM_API_KEY"],
)
MODEL = os.environ.get("SLUICE_MODEL") or client.models.list().data[0].id
TURNS = 10


def get_weather(city):
    return {"city": city, "celsius": 21, "sky": "sunny"}


TOOLS = {"get_weather": get_weather}
DECLARED = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def ask(messages):
    """One turn, streamed: the assistant's message as the next request wants it."""
    text, calls = "", {}
    stream = client.chat.completions.create(model=MODEL, messages=messages, tools=DECLARED, stream=True)
    for chunk in stream:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        show(getattr(delta, "reasoning_content", None), sys.stderr)
        show(delta.content, sys.stdout)
        text += delta.content or ""
        for part in delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call["id"] += part.id or ""
            call["function"]["name"] += part.function.name or ""
            call["function"]["arguments"] += part.function.arguments or ""
    message = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = list(calls.values())
    return message


def show(text, where):
    if text:
        print(text, end="", flush=True, file=where)


def run(call):
    """The result of one tool call; an error is a result too, the model can react to it."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    print(f"[{name}]")
    try:
        return TOOLS[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


messages = [{"role": "user", "content": " ".join(sys.argv[1:]) or "What is the weather in Paris?"}]
for _ in range(TURNS):
    messages.append(ask(messages))
    if "tool_calls" not in messages[-1]:
        print()
        break
    for call in messages[-1]["tool_calls"]:
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(run(call))})
else:
    sys.exit(f"no answer after {TURNS} turns")
