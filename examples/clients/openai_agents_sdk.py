#!/usr/bin/env python3
"""An agent with OpenAI's Agents SDK over chat completions: the SDK runs the tools, a session keeps the turns.

    pip install openai-agents
    VLLM_MEDIUM_API_KEY=… ./openai_agents_sdk.py

Two turns, one tool each. The second question carries a marker of Sluice's simulator, which makes the call come out wrong as
models do now and then; a real model ignores it. What the model called must be right all the same: that is checked at the end.
"""

import asyncio
import json
import os

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

BROKEN = os.environ.get("SLUICE_SIM_CALL", "number_as_string")
QUESTIONS = ["What will the weather be in Paris?", f"Book a table for us there. [[sim call={BROKEN}]]"]

# Traces go to OpenAI otherwise.
set_tracing_disabled(True)


# Not strict: Sluice checks arguments against the schema by itself. Strict tools make vLLM decode by grammar.
@function_tool(strict_mode=False)
def get_weather(city: str, days: int) -> dict:
    """The weather of a city in the next days"""
    return {"city": city, "days": days, "sky": "sunny"}


@function_tool(strict_mode=False)
def book_table(place: str, guests: int, outdoors: bool) -> dict:
    """Book a table in a restaurant"""
    return {"booked": place, "guests": guests, "outdoors": outdoors}


async def main():
    client = AsyncOpenAI(
        base_url=os.environ.get("SLUICE_BASE_URL", "http://127.0.0.1:5002/v1"),
        api_key=os.environ["VLLM_MEDIUM_API_KEY"],
    )
    model = os.environ.get("SLUICE_MODEL") or (await client.models.list()).data[0].id
    agent = Agent(
        name="host",
        model=OpenAIChatCompletionsModel(model=model, openai_client=client),
        tools=[get_weather, book_table],
    )
    items, ran, answers = [], [], []
    for question in QUESTIONS:
        run = Runner.run_streamed(agent, [*items, {"role": "user", "content": question}], max_turns=5)
        deltas = 0
        async for event in run.stream_events():
            deltas += event.type == "raw_response_event"
        assert deltas > 2, "a stream has more than one event"
        items = run.to_input_list()
        calls = [item.raw_item for item in run.new_items if item.type == "tool_call_item"]
        ran += [(call.name, json.loads(call.arguments)) for call in calls]
        answers.append(run.final_output)

    # The arguments as they came: the tools themselves would turn "3" into 3.
    types = [(name, {key: type(value).__name__ for key, value in arguments.items()}) for name, arguments in ran]
    assert types == [
        ("get_weather", {"city": "str", "days": "int"}),
        ("book_table", {"place": "str", "guests": "int", "outdoors": "bool"}),
    ], ran
    assert len(answers) == 2 and all(answers), answers
    print(f"{len(ran)} tools ran, {BROKEN} among them; at last: {answers[-1]}")


asyncio.run(main())
