#!/usr/bin/env python3
"""An agent with OpenAI's Python SDK: streamed turns, tools run as the model calls them.

    pip install openai
    VLLM_MEDIUM_API_KEY=… ./openai_sdk.py

Two turns, one tool each. The second question carries a marker of Sluice's simulator, which makes the call come out wrong as
models do now and then; a real model ignores it. What reaches the tools must be right all the same: that is checked at the end.
"""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("SLUICE_BASE_URL", "http://127.0.0.1:5002/v1"),
    api_key=os.environ["VLLM_MEDIUM_API_KEY"],
)
MODEL = os.environ.get("SLUICE_MODEL") or client.models.list().data[0].id
BROKEN = os.environ.get("SLUICE_SIM_CALL", "number_as_string")
QUESTIONS = ["What will the weather be in Paris?", f"Book a table for us there. [[sim call={BROKEN}]]"]
STEPS = 5


def get_weather(city: str, days: int):
    return {"city": city, "days": days, "sky": "sunny"}


def book_table(place: str, guests: int, outdoors: bool):
    return {"booked": place, "guests": guests, "outdoors": outdoors}


TOOLS = {"get_weather": get_weather, "book_table": book_table}


def declared(name, description, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


DECLARED = [
    declared("get_weather", "The weather of a city in the next days", city={"type": "string"}, days={"type": "integer"}),
    declared(
        "book_table",
        "Book a table in a restaurant",
        place={"type": "string"},
        guests={"type": "integer"},
        outdoors={"type": "boolean"},
    ),
]


def ask(messages):
    """One step, streamed: the assistant's message as the next request wants it."""
    text, calls = "", {}
    stream = client.chat.completions.create(model=MODEL, messages=messages, tools=DECLARED, stream=True)
    for chunk in stream:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
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


messages, ran, answers = [], [], []
for question in QUESTIONS:
    messages.append({"role": "user", "content": question})
    for _ in range(STEPS):
        messages.append(ask(messages))
        if "tool_calls" not in messages[-1]:
            answers.append(messages[-1]["content"])
            break
        for call in messages[-1]["tool_calls"]:
            name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
            ran.append((name, arguments))
            result = json.dumps(TOOLS[name](**arguments))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

types = [(name, {key: type(value).__name__ for key, value in arguments.items()}) for name, arguments in ran]
assert types == [
    ("get_weather", {"city": "str", "days": "int"}),
    ("book_table", {"place": "str", "guests": "int", "outdoors": "bool"}),
], ran
assert len(answers) == 2 and all(answers), answers
print(f"{len(ran)} tools ran, {BROKEN} among them; at last: {answers[-1]}")
