// @ts-check
// An agent with OpenAI's Node SDK: streamed turns, tools run as the model calls them.
//
//     npm install openai
//     VLLM_MEDIUM_API_KEY=… node openai_sdk.mjs
//
// Two turns, one tool each. The second question carries a marker of Sluice's simulator, which makes the call come out wrong as
// models do now and then; a real model ignores it. What reaches the tools must be right all the same: that is checked at the end.

import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.SLUICE_BASE_URL ?? "http://127.0.0.1:5002/v1",
  apiKey: process.env.VLLM_MEDIUM_API_KEY,
});
const model = process.env.SLUICE_MODEL ?? (await client.models.list()).data[0].id;
const broken = process.env.SLUICE_SIM_CALL ?? "number_as_string";
const QUESTIONS = ["What will the weather be in Paris?", `Book a table for us there. [[sim call=${broken}]]`];
const STEPS = 5;

/** @type {Record<string, (given: any) => unknown>} */
const TOOLS = {
  get_weather: ({ city, days }) => ({ city, days, sky: "sunny" }),
  book_table: ({ place, guests, outdoors }) => ({ booked: place, guests, outdoors }),
};

/**
 * @param {string} name
 * @param {string} description
 * @param {Record<string, object>} properties
 * @returns {OpenAI.Chat.Completions.ChatCompletionTool}
 */
function declared(name, description, properties) {
  const parameters = { type: "object", properties, required: Object.keys(properties) };
  return { type: "function", function: { name, description, parameters } };
}

const DECLARED = [
  declared("get_weather", "The weather of a city in the next days", {
    city: { type: "string" },
    days: { type: "integer" },
  }),
  declared("book_table", "Book a table in a restaurant", {
    place: { type: "string" },
    guests: { type: "integer" },
    outdoors: { type: "boolean" },
  }),
];

/** @type {OpenAI.Chat.Completions.ChatCompletionMessageParam[]} */
const messages = [];
/** @type {[string, Record<string, unknown>][]} */
const ran = [];
const answers = [];
for (const question of QUESTIONS) {
  messages.push({ role: "user", content: question });
  for (let step = 0; step < STEPS; step++) {
    // The SDK's helper puts the stream together; its events show it as it comes.
    const stream = client.chat.completions.stream({ model, messages, tools: DECLARED });
    let pieces = 0;
    stream.on("chunk", () => pieces++);
    const message = await stream.finalMessage();
    assert(pieces > 2, "a stream has more than one piece");
    messages.push(message);
    if (!message.tool_calls?.length) {
      answers.push(message.content);
      break;
    }
    for (const call of message.tool_calls) {
      assert(call.type === "function");
      const given = JSON.parse(call.function.arguments);
      ran.push([call.function.name, given]);
      const result = TOOLS[call.function.name](given);
      messages.push({ role: "tool", tool_call_id: call.id, content: JSON.stringify(result) });
    }
  }
}

const types = ran.map(([name, given]) => [name, Object.fromEntries(Object.entries(given).map(([k, v]) => [k, typeof v]))]);
assert.deepEqual(types, [
  ["get_weather", { city: "string", days: "number" }],
  ["book_table", { place: "string", guests: "number", outdoors: "boolean" }],
]);
assert(answers.length === 2 && answers.every(Boolean), String(answers));
console.log(`${ran.length} tools ran, ${broken} among them; at last: ${answers[1]}`);
