// @ts-check
// An agent with Vercel's AI SDK and its OpenAI-compatible provider: the SDK streams, checks the arguments and runs the tools.
//
//     npm install ai @ai-sdk/openai-compatible zod
//     VLLM_MEDIUM_API_KEY=… node vercel_ai.mjs
//
// Two turns, one tool each. The second question carries a marker of Sluice's simulator, which makes the call come out wrong as
// models do now and then; a real model ignores it. What reaches the tools must be right all the same: that is checked at the end.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.env.SLUICE_BASE_URL ?? "http://127.0.0.1:5002/v1";
const apiKey = process.env.VLLM_MEDIUM_API_KEY;
const broken = process.env.SLUICE_SIM_CALL ?? "number_as_string";
const QUESTIONS = ["What will the weather be in Paris?", `Book a table for us there. [[sim call=${broken}]]`];

async function firstModel() {
  const listed = await fetch(`${baseURL}/models`, { headers: { authorization: `Bearer ${apiKey}` } });
  assert(listed.ok, `${listed.status}`);
  return (await listed.json()).data[0].id;
}

const sluice = createOpenAICompatible({ name: "sluice", baseURL, apiKey, includeUsage: true });
const model = sluice(process.env.SLUICE_MODEL ?? (await firstModel()));

const tools = {
  get_weather: tool({
    description: "The weather of a city in the next days",
    inputSchema: z.object({ city: z.string(), days: z.int() }),
    execute: async ({ city, days }) => ({ city, days, sky: "sunny" }),
  }),
  book_table: tool({
    description: "Book a table in a restaurant",
    inputSchema: z.object({ place: z.string(), guests: z.int(), outdoors: z.boolean() }),
    execute: async ({ place, guests, outdoors }) => ({ booked: place, guests, outdoors }),
  }),
};

/** @type {import("ai").ModelMessage[]} */
const messages = [];
/** @type {[string, Record<string, unknown>][]} */
const ran = [];
const answers = [];
for (const content of QUESTIONS) {
  messages.push({ role: "user", content });
  const answer = streamText({ model, tools, messages, stopWhen: stepCountIs(5) });
  let pieces = 0;
  for await (const piece of answer.textStream) pieces += piece.length > 0 ? 1 : 0;
  assert(pieces > 1, "a stream has more than one piece");
  messages.push(...(await answer.response).messages);
  for (const step of await answer.steps) {
    // Zod does not turn "3" into 3: a wrong argument is an invalid call here, and no tool runs.
    for (const result of step.toolResults) ran.push([result.toolName, result.input]);
  }
  answers.push(await answer.text);
}

const types = ran.map(([name, given]) => [name, Object.fromEntries(Object.entries(given).map(([k, v]) => [k, typeof v]))]);
assert.deepEqual(types, [
  ["get_weather", { city: "string", days: "number" }],
  ["book_table", { place: "string", guests: "number", outdoors: "boolean" }],
]);
assert(answers.length === 2 && answers.every(Boolean), String(answers));
console.log(`${ran.length} tools ran, ${broken} among them; at last: ${answers[1]}`);
