// openai-node: chat completions, and a streamed response.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.ONECARD_URL + "/v1", apiKey: "none" });
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
  client.chat.completions.create({ model: MODEL, messages, temperature: 0, ...fields });

assert.equal((await ask(user(FRANCE))).choices[0].message.content, PARIS);
assert.equal((await client.responses.create({ model: MODEL, input: FRANCE, temperature: 0 })).output_text, PARIS);
console.log("ok turn");

let text = "";
for await (const chunk of await ask(user(FRANCE), { stream: true })) text += chunk.choices[0].delta.content ?? "";
assert.equal(text, PARIS);
text = "";
const stream = await client.responses.create({ model: MODEL, input: FRANCE, temperature: 0, stream: true });
for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
assert.equal(text, PARIS);
console.log("ok stream");

const turns = user("What is the weather in Paris?");
const first = (await ask(turns, { tools: [TOOL] })).choices[0].message;
assert.deepEqual(JSON.parse(first.tool_calls[0].function.arguments), { city: "Paris" });
const report = '{"condition": "sunny", "temperature": 21}';
turns.push(first, { role: "tool", tool_call_id: first.tool_calls[0].id, content: report });
assert.match((await ask(turns, { tools: [TOOL] })).choices[0].message.content, /sunny/);
console.log("ok tools");

const schema = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, large: { type: "boolean" } },
  required: ["city", "large"],
  additionalProperties: false,
};
const format = { type: "json_schema", json_schema: { name: "city", schema, strict: true } };
const answer = JSON.parse((await ask(user(FRANCE), { response_format: format, max_tokens: 200 })).choices[0].message.content);
assert.equal(typeof answer.city, "string");
assert.equal(typeof answer.large, "boolean");
console.log("ok schema");
