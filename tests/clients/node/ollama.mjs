// ollama-js: chat, generate, tools, a format, the list of models.
import assert from "node:assert/strict";
import { Ollama } from "ollama";

const ollama = new Ollama({ host: process.env.ONECARD_URL });
const MODEL = process.env.ONECARD_MODEL;
const FRANCE = "What is the capital of France?";
const PARIS = "The capital of France is Paris.";
const PARAMETERS = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const TOOL = {
  type: "function",
  function: { name: "get_weather", description: "Get the weather of a city", parameters: PARAMETERS },
};
const user = (content) => [{ role: "user", content }];
const ask = (messages, fields = {}) =>
  ollama.chat({ model: MODEL, messages, options: { temperature: 0, num_predict: 200 }, ...fields });

assert.equal((await ask(user(FRANCE))).message.content, PARIS);
assert.equal((await ollama.generate({ model: MODEL, prompt: FRANCE, options: { temperature: 0 } })).response, PARIS);
assert.ok((await ollama.list()).models.some((model) => model.model === MODEL));
assert.ok((await ollama.show({ model: MODEL })).capabilities.includes("completion"));
assert.ok((await ollama.ps()).models.some((model) => model.model === MODEL));
console.log("ok turn");

let text = "";
for await (const part of await ask(user(FRANCE), { stream: true })) text += part.message.content;
assert.equal(text, PARIS);
console.log("ok stream");

const turns = user("What is the weather in Paris?");
const first = (await ask(turns, { tools: [TOOL] })).message;
assert.deepEqual(first.tool_calls[0].function.arguments, { city: "Paris" });
const report = '{"condition": "sunny", "temperature": 21}';
turns.push(first, { role: "tool", content: report, tool_name: "get_weather" });
assert.match((await ask(turns, { tools: [TOOL] })).message.content, /sunny/);
console.log("ok tools");

const schema = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, large: { type: "boolean" } },
  required: ["city", "large"],
  additionalProperties: false,
};
const answer = JSON.parse((await ask(user(FRANCE), { format: schema })).message.content);
assert.equal(typeof answer.city, "string");
assert.equal(typeof answer.large, "boolean");
console.log("ok schema");
