#!/usr/bin/env python3
"""An agent with LangChain's `ChatOpenAI`: streamed turns, tools bound to the model.

    pip install langchain-openai
    VLLM_MEDIUM_API_KEY=… ./langchain_openai_agent.py

Two turns, one tool each. The second question carries a marker of Sluice's simulator, which makes the call come out wrong as
models do now and then; a real model ignores it. What the model called must be right all the same: that is checked at the end.
"""

import os

import httpx
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

BASE_URL = os.environ.get("SLUICE_BASE_URL", "http://127.0.0.1:5002/v1")
KEY = os.environ["VLLM_MEDIUM_API_KEY"]
BROKEN = os.environ.get("SLUICE_SIM_CALL", "number_as_string")
QUESTIONS = ["What will the weather be in Paris?", f"Book a table for us there. [[sim call={BROKEN}]]"]
STEPS = 5


def first_model():
    listed = httpx.get(f"{BASE_URL}/models", headers={"authorization": f"Bearer {KEY}"}).raise_for_status()
    return listed.json()["data"][0]["id"]


@tool
def get_weather(city: str, days: int) -> dict:
    """The weather of a city in the next days"""
    return {"city": city, "days": days, "sky": "sunny"}


@tool
def book_table(place: str, guests: int, outdoors: bool) -> dict:
    """Book a table in a restaurant"""
    return {"booked": place, "guests": guests, "outdoors": outdoors}


TOOLS = {"get_weather": get_weather, "book_table": book_table}
model = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=os.environ.get("SLUICE_MODEL") or first_model())
agent = model.bind_tools(list(TOOLS.values()))


def ask(messages):
    """One step, streamed; the chunks add up to the message."""
    whole = None
    for chunk in agent.stream(messages):
        whole = chunk if whole is None else whole + chunk
    return whole


messages, ran, answers = [], [], []
for question in QUESTIONS:
    messages.append(HumanMessage(question))
    for _ in range(STEPS):
        message = ask(messages)
        messages.append(message)
        assert not message.invalid_tool_calls, message.invalid_tool_calls
        if not message.tool_calls:
            answers.append(message.text)
            break
        for call in message.tool_calls:
            ran.append((call["name"], call["args"]))
            messages.append(TOOLS[call["name"]].invoke(call))

# The arguments as they came: the tools themselves would turn "3" into 3.
types = [(name, {key: type(value).__name__ for key, value in arguments.items()}) for name, arguments in ran]
assert types == [
    ("get_weather", {"city": "str", "days": "int"}),
    ("book_table", {"place": "str", "guests": "int", "outdoors": "bool"}),
], ran
assert len(answers) == 2 and all(answers), answers
print(f"{len(ran)} tools ran, {BROKEN} among them; at last: {answers[-1]}")
