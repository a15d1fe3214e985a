#!/usr/bin/env python3
"""What OpenAI's Python SDK sees through Sluice, checked against a real vLLM.

Used by `./test real`. The engine must honour the `@@FORCE:…@@` markers of the test set-up (a prompt that says what the
model answers), so this is a check, not an example: see agent_loop.py for that.

    SLUICE_BASE_URL=http://127.0.0.1:5002/v1 VLLM_MEDIUM_API_KEY=… openai_sdk_check.py
"""

import asyncio
import base64
import json
import os
import sys

import openai
from openai import AsyncOpenAI, OpenAI

MODEL = "Qwen/Qwen3-32B-AWQ"
BASE_URL = os.environ.get("SLUICE_BASE_URL", "http://127.0.0.1:5002/v1")
# Retries would hide what the gateway answers first.
SETTINGS = {"base_url": BASE_URL, "api_key": os.environ["VLLM_MEDIUM_API_KEY"], "max_retries": 0, "timeout": 60}

THOUGHT = "The user asks about the weather, so I call the tool."
THINK = f"<think>\n{THOUGHT}\n</think>\n\n"
ARGUMENTS = '{"city": "Paris", "unit": "celsius"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
CALL_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


def asking(text, **script):
    """Messages whose answer is `text`."""
    script = base64.urlsafe_b64encode(json.dumps({"force_text": text, **script}).encode()).decode()
    return [{"role": "user", "content": f"What is the weather in Paris? @@FORCE:{script}@@"}]


class Folded:
    """A stream put together as a client does it; the choices apart."""

    def __init__(self):
        self.choices, self.usage, self.ids, self.models = {}, None, set(), set()

    def add(self, chunk):
        self.ids.add(chunk.id)
        self.models.add(chunk.model)
        if chunk.usage:
            assert chunk.choices == [], "usage comes in a chunk without choices"
            assert self.usage is None, "usage comes once"
            self.usage = chunk.usage
        for choice in chunk.choices:
            assert self.usage is None, "usage comes last"
            part = self.choices.setdefault(
                choice.index, {"content": "", "reasoning": "", "calls": [], "roles": 0, "finish": None, "logprobs": []}
            )
            assert part["finish"] is None, "nothing follows the finish"
            delta = choice.delta
            part["roles"] += delta.role is not None
            part["content"] += delta.content or ""
            thought = getattr(delta, "reasoning", None)
            assert thought == getattr(delta, "reasoning_content", None), "reasoning under both names"
            part["reasoning"] += thought or ""
            if choice.logprobs:
                part["logprobs"] += choice.logprobs.content
            for call in delta.tool_calls or []:
                if call.index == len(part["calls"]):
                    assert call.id and call.type == "function" and call.function.name
                    part["calls"].append([call.id, call.function.name, ""])
                else:
                    assert call.id is None and call.function.name is None, "id and name are said once"
                part["calls"][call.index][2] += call.function.arguments or ""
            part["finish"] = choice.finish_reason

    def done(self, choices=1):
        assert len(self.ids) == 1 and len(self.models) == 1, "id and model stay constant"
        assert sorted(self.choices) == list(range(choices))
        assert all(part["roles"] == 1 for part in self.choices.values()), "each choice says its role once"
        return self.choices[0]


def fold(stream, choices=1):
    folded = Folded()
    for chunk in stream:
        folded.add(chunk)
    return folded.done(choices), folded


def thoughts(message):
    thought = getattr(message, "reasoning", None)
    assert thought == getattr(message, "reasoning_content", None), "reasoning under both names"
    return (thought or "").strip()


def chat(client, text, script=None, **fields):
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 256, **fields}
    return client.chat.completions.create(messages=asking(text, **(script or {})), **fields)


def check_text(client):
    answer = chat(client, THINK + "It is sunny.")
    message = answer.choices[0].message
    assert (message.role, message.content.strip(), thoughts(message)) == ("assistant", "It is sunny.", THOUGHT)
    assert answer.choices[0].finish_reason == "stop" and message.tool_calls is None
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens

    part, folded = fold(chat(client, THINK + "It is sunny.", stream=True))
    assert (part["content"].strip(), part["reasoning"].strip(), part["finish"]) == ("It is sunny.", THOUGHT, "stop")
    assert (part["content"], part["reasoning"]) == (message.content, message.reasoning), "stream and whole are the same"
    assert folded.usage is None, "usage only if it is asked for"


def check_usage_in_the_stream(client):
    part, folded = fold(chat(client, THINK + "Sunny.", stream=True, stream_options={"include_usage": True}))
    assert folded.usage.completion_tokens > 0 and part["content"].strip() == "Sunny."
    assert folded.usage.completion_tokens_details.reasoning_tokens > 0


def check_tools(client):
    answer = chat(client, THINK + CALL + "\n" + CALL_NOW, tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None and thoughts(message) == THOUGHT
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    assert calls == [("get_weather", ARGUMENTS), ("now", "{}")]
    assert len({call.id for call in message.tool_calls}) == 2

    part, _ = fold(chat(client, THINK + CALL + "\n" + CALL_NOW, tools=TOOLS, tool_choice="auto", stream=True))
    assert [tuple(call[1:]) for call in part["calls"]] == calls and part["finish"] == "tool_calls"
    assert part["content"].strip() == "" and part["reasoning"].strip() == THOUGHT

    # What an agent sends next: the call, its result.
    history = asking(THINK + "It is 21 degrees.")
    history[1:] = [
        message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'} for call in message.tool_calls),
    ]
    answer = client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, max_tokens=256, temperature=0)
    assert answer.choices[0].message.content.strip() == "It is 21 degrees."

    # The client's own `none`: no call is looked for.
    answer = chat(client, THINK + CALL, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None and CALL in answer.choices[0].message.content


def check_two_choices(client):
    answer = chat(client, THINK + "Twice.", n=2, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content.strip() == "Twice." for choice in answer.choices)
    assert all(thoughts(choice.message) == THOUGHT for choice in answer.choices)
    _, folded = fold(chat(client, THINK + CALL, n=2, temperature=1, stream=True, tools=TOOLS), choices=2)
    for part in folded.choices.values():
        assert part["calls"][0][1:] == ["get_weather", ARGUMENTS] and part["finish"] == "tool_calls"
    assert len({part["calls"][0][0] for part in folded.choices.values()}) == 2, "call ids are unique over the choices"


def check_logprobs(client):
    answer = chat(client, "Hello there.", logprobs=True, top_logprobs=2, extra_body=NO_THINKING)
    tokens = answer.choices[0].logprobs.content
    assert "Hello there." in "".join(token.token for token in tokens)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    stream = chat(client, "Hello there.", logprobs=True, top_logprobs=2, stream=True, extra_body=NO_THINKING)
    part, _ = fold(stream)
    assert [token.token for token in part["logprobs"]] == [token.token for token in tokens]
    assert part["content"] == answer.choices[0].message.content == "Hello there."


def check_stop_and_length(client):
    text = THINK + "One two three four."
    for stream in (False, True):
        answer = chat(client, text, stop=["three"], stream=stream)
        content, finish = ended(answer, stream)
        assert (content.strip(), finish) == ("One two", "stop")
        content, finish = ended(chat(client, "One two three four.", max_tokens=2, stream=stream, extra_body=NO_THINKING), stream)
        assert (content.strip(), finish) == ("One two", "length")


def ended(answer, stream):
    if stream:
        part, _ = fold(answer)
        return part["content"], part["finish"]
    return answer.choices[0].message.content, answer.choices[0].finish_reason


def check_response_format(client):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "celsius": {"type": "integer"}},
        "required": ["city", "celsius"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
    text = '{"city": "Paris", "celsius": 21}'
    for stream in (False, True):
        answer = chat(client, text, response_format=form, stream=stream, extra_body=NO_THINKING)
        content, finish = ended(answer, stream)
        assert json.loads(content) == json.loads(text) and finish == "stop"


def check_errors(client):
    wrong_key = OpenAI(**{**SETTINGS, "api_key": "sk-unknown"})
    raises(openai.AuthenticationError, lambda: chat(wrong_key, "Never said."))
    missing = raises(openai.NotFoundError, lambda: chat(client, "Never said.", model="gpt-4"))
    assert MODEL in missing.message and missing.code == "model_not_found"
    for stream in (False, True):
        long = raises(
            openai.BadRequestError,
            lambda: client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "word " * 33_000}], max_tokens=4, stream=stream
            ),
        )
        assert long.code == "context_length_exceeded" and "context length" in long.message
    raises(openai.BadRequestError, lambda: chat(client, "Never said.", temperature=-1))
    # Not served for clients without a grant: it would let a client script the engine.
    raises(openai.BadRequestError, lambda: chat(client, "Never said.", extra_body={"vllm_xargs": {"force_text": "x"}}))


def raises(kind, call):
    try:
        call()
    except kind as error:
        assert error.response.headers["x-request-id"], "an error has its request id"
        return error
    raise AssertionError(f"{kind.__name__} is expected")


def check_models_and_completions(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    prompt = asking(" there was a gateway.")[0]["content"]
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=32, temperature=0)
    assert answer.choices[0].text == " there was a gateway."
    stream = client.completions.create(model=MODEL, prompt=prompt, max_tokens=32, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == " there was a gateway."


def check_headers(client):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=asking("Hello."), max_tokens=16, extra_headers={"x-request-id": "from-the-sdk"}
    )
    assert raw.headers["x-request-id"] == "from-the-sdk"
    assert raw.headers["x-sluice-attempts"] == "1" and raw.headers["x-sluice-replica"]


async def check_async():
    async with AsyncOpenAI(**SETTINGS) as client:

        async def whole(number):
            answer = await chat(client, f"{THINK}Answer {number}.")
            return answer.choices[0].message.content.strip()

        async def streamed(number):
            folded = Folded()
            async for chunk in await chat(client, f"{THINK}Answer {number}.", stream=True):
                folded.add(chunk)
            return folded.done()["content"].strip()

        answers = await asyncio.gather(*(task(number) for number in range(4) for task in (whole, streamed)))
        assert answers == [f"Answer {number}." for number in range(4) for _ in range(2)]

        # A client that leaves in mid-stream leaves nothing behind that disturbs the next request.
        stream = await chat(client, THINK + "word " * 100, script={"force_delay_ms": 10}, stream=True)
        async for _ in stream:
            break
        await stream.close()
        assert await whole(5) == "Answer 5."


def main():
    client = OpenAI(**SETTINGS)
    checks = [check for name, check in globals().items() if name.startswith("check_") and check is not check_async]
    failed = 0
    for check in [*checks, lambda _: asyncio.run(check_async())]:
        name = "check_async" if check.__name__ == "<lambda>" else check.__name__
        try:
            check(client)
            print(f"ok      {name}")
        except Exception as error:  # noqa: BLE001  every check is run and every failure is told, whatever it is
            failed += 1
            trace = error.__traceback__
            while trace.tb_next and trace.tb_next.tb_frame.f_code.co_filename == __file__:
                trace = trace.tb_next
            print(f"FAILED  {name}, line {trace.tb_lineno}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
