// @ts-check
// A small agent: it asks, runs the tools that the model calls, and asks again until there is an answer.
//
//     ./run                                             # Sluice on port 5002
//     cd examples/typescript && npm install
//     VLLM_MEDIUM_API_KEY=… node agent_loop.mjs "What is the weather in Paris?"
//
// Plain JavaScript with checked types, so that Node 20 runs it as it is. Only `baseURL` and the key say that it is Sluice.

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.SLUICE_BASE_URL ?? "http://127.0.0.1:5002/v1",
  apiKey: process.env.VLLM_MEDIUM_API_KEY,
});
const model = process.env.SLUICE_MODEL ?? (await client.models.list()).data[0].id;
const TURNS = 10;

/** @type {Record<string, (given: any) => unknown>} */
const TOOLS = {
  get_weather: ({ city }) => ({ city, celsius: 21, sky: "sunny" }),
};

/** @type {OpenAI.Chat.Completions.ChatCompletionTool[]} */
const DECLARED = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Current weather of a city",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

/**
 * One turn, streamed: reasoning goes to standard error, text to standard output, both as they come.
 * @param {OpenAI.Chat.Completions.ChatCompletionMessageParam[]} messages
 */
async function ask(messages) {
  const stream = await client.chat.completions.create({ model, messages, tools: DECLARED, stream: true });
  let content = "";
  /** @type {OpenAI.Chat.Completions.ChatCompletionMessageFunctionToolCall[]} */
  const calls = [];
  for await (const chunk of stream) {
    // The SDK's types don't know reasoning.
    const delta = /** @type {any} */ (chunk.choices[0]?.delta ?? {});
    if (delta.reasoning_content) process.stderr.write(delta.reasoning_content);
    if (delta.content) process.stdout.write(delta.content);
    content += delta.content ?? "";
    for (const part of delta.tool_calls ?? []) {
      const call = (calls[part.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
      call.id += part.id ?? "";
      call.function.name += part.function?.name ?? "";
      call.function.arguments += part.function?.arguments ?? "";
    }
  }
  return { content: content || null, calls };
}

/**
 * The result of one call; an error is a result too, the model can react to it.
 * @param {OpenAI.Chat.Completions.ChatCompletionMessageFunctionToolCall} call
 */
function run({ function: { name, arguments: given } }) {
  console.log(`[${name} ${given}]`);
  try {
    if (!Object.hasOwn(TOOLS, name)) throw new Error(`there is no tool ${name}`);
    return TOOLS[name](JSON.parse(given));
  } catch (error) {
    return { error: String(error) };
  }
}

/** @type {OpenAI.Chat.Completions.ChatCompletionMessageParam[]} */
const messages = [{ role: "user", content: process.argv.slice(2).join(" ") || "What is the weather in Paris?" }];
let answered = false;
for (let turn = 0; turn < TURNS && !answered; turn++) {
  const { content, calls } = await ask(messages);
  if (calls.length === 0) {
    answered = true;
    continue;
  }
  messages.push({ role: "assistant", content, tool_calls: calls });
  for (const call of calls) {
    messages.push({ role: "tool", tool_call_id: call.id, content: JSON.stringify(run(call)) });
  }
}
if (answered) {
  console.log();
} else {
  console.error(`no answer after ${TURNS} turns`);
  process.exitCode = 1;
}
