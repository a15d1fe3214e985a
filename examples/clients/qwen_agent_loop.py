#!/usr/bin/env python3
"""An agent with Qwen-Agent over its OpenAI client: the framework runs the tools.

    pip install qwen-agent numpy soundfile python-dateutil tqdm
    VLLM_MEDIUM_API_KEY=… ./qwen_agent_loop.py

`use_raw_api` leaves the tool calls to the server; without it Qwen-Agent writes the tools into the prompt and parses the text by
itself. Two turns, one tool each. The second question carries a marker of Sluice's simulator, which makes the call come out wrong
as models do now and then; a real model ignores it. What reaches the tools must be right all the same: that is checked at the end.
"""

import json
import os

from openai import OpenAI
from qwen_agent.agents import FnCallAgent
from qwen_agent.tools.base import BaseTool

BASE_URL = os.environ.get("SLUICE_BASE_URL", "http://127.0.0.1:5002/v1")
KEY = os.environ["VLLM_MEDIUM_API_KEY"]
BROKEN = os.environ.get("SLUICE_SIM_CALL", "number_as_string")
QUESTIONS = ["What will the weather be in Paris?", f"Book a table for us there. [[sim call={BROKEN}]]"]
ran = []


def parameters(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


class GetWeather(BaseTool):
    name = "get_weather"
    description = "The weather of a city in the next days"
    parameters = parameters(city={"type": "string"}, days={"type": "integer"})

    def call(self, params: str, **_) -> str:
        given = json.loads(params)
        ran.append((self.name, given))
        return json.dumps({**given, "sky": "sunny"})


class BookTable(BaseTool):
    name = "book_table"
    description = "Book a table in a restaurant"
    parameters = parameters(place={"type": "string"}, guests={"type": "integer"}, outdoors={"type": "boolean"})

    def call(self, params: str, **_) -> str:
        given = json.loads(params)
        ran.append((self.name, given))
        return json.dumps({**given, "booked": True})


agent = FnCallAgent(
    llm={
        "model": os.environ.get("SLUICE_MODEL") or OpenAI(base_url=BASE_URL, api_key=KEY).models.list().data[0].id,
        "model_type": "oai",
        "model_server": BASE_URL,
        "api_key": KEY,
        "generate_cfg": {"use_raw_api": True},
    },
    function_list=[GetWeather(), BookTable()],
)

messages, answers = [], []
for question in QUESTIONS:
    messages.append({"role": "user", "content": question})
    response = []
    for response in agent.run(messages):  # each holds all that came so far
        pass
    messages += response
    answers.append(response[-1]["content"])

types = [(name, {key: type(value).__name__ for key, value in arguments.items()}) for name, arguments in ran]
assert types == [
    ("get_weather", {"city": "str", "days": "int"}),
    ("book_table", {"place": "str", "guests": "int", "outdoors": "bool"}),
], ran
assert len(answers) == 2 and all(answers), answers
print(f"{len(ran)} tools ran, {BROKEN} among them; at last: {answers[-1]}")
