#!/usr/bin/env python3
"""An agent with LlamaIndex's `OpenAILike`: streamed turns, tools called by hand.

    pip install llama-index-llms-openai-like
    VLLM_MEDIUM_API_KEY=… ./llamaindex_agent.py

Two turns, one tool each. The second question carries a marker of Sluice's simulator, which makes the call come out wrong as
models do now and then; a real model ignores it. What the model called must be right all the same: that is checked at the end.
"""

import os

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI

BASE_URL = os.environ.get("SLUICE_BASE_URL", "http://127.0.0.1:5002/v1")
KEY = os.environ["VLLM_MEDIUM_API_KEY"]
BROKEN = os.environ.get("SLUICE_SIM_CALL", "number_as_string")
QUESTIONS = ["What will the weather be in Paris?", f"Book a table for us there. [[sim call={BROKEN}]]"]
STEPS = 5


def get_weather(city: str, days: int) -> dict:
    """The weather of a city in the next days"""
    return {"city": city, "days": days, "sky": "sunny"}


def book_table(place: str, guests: int, outdoors: bool) -> dict:
    """Book a table in a restaurant"""
    return {"booked": place, "guests": guests, "outdoors": outdoors}


TOOLS = {function.__name__: FunctionTool.from_defaults(function) for function in (get_weather, book_table)}
llm = OpenAILike(
    api_base=BASE_URL,
    api_key=KEY,
    model=os.environ.get("SLUICE_MODEL") or OpenAI(base_url=BASE_URL, api_key=KEY).models.list().data[0].id,
    is_chat_model=True,
    is_function_calling_model=True,
)


def ask(messages):
    """One step, streamed; each response holds all that came so far."""
    response = None
    for response in llm.stream_chat_with_tools(list(TOOLS.values()), chat_history=messages):
        pass
    return response


messages, ran, answers = [], [], []
for question in QUESTIONS:
    messages.append(ChatMessage(role="user", content=question))
    for _ in range(STEPS):
        response = ask(messages)
        messages.append(response.message)
        calls = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        if not calls:
            answers.append(response.message.content)
            break
        for call in calls:
            ran.append((call.tool_name, call.tool_kwargs))
            result = TOOLS[call.tool_name](**call.tool_kwargs)
            messages.append(
                ChatMessage(role="tool", content=str(result), additional_kwargs={"tool_call_id": call.tool_id})
            )

types = [(name, {key: type(value).__name__ for key, value in arguments.items()}) for name, arguments in ran]
assert types == [
    ("get_weather", {"city": "str", "days": "int"}),
    ("book_table", {"place": "str", "guests": "int", "outdoors": "bool"}),
], ran
assert len(answers) == 2 and all(answers), answers
print(f"{len(ran)} tools ran, {BROKEN} among them; at last: {answers[-1]}")
