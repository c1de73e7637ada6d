// What the official JavaScript client gets from a server: `node client.mjs ADDRESS MODEL` prints it as JSON.
import OpenAI from "openai";

const [address, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model, temperature: 0, max_tokens: 12 };
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { enum: ["Paris", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

async function failure(asked) {
  try {
    await asked();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, param: error.param, code: error.code };
  }
  return null;
}

const found = {};
found.models = (await client.models.list()).data.map((one) => one.id);
found.chat = (await client.chat.completions.create({ messages, ...greedy })).choices[0].message.content;

const parts = [];
let usage = null;
for await (const chunk of await client.chat.completions.create({
  messages, ...greedy, stream: true, stream_options: { include_usage: true },
})) {
  parts.push(chunk.choices[0]?.delta?.content ?? "");
  usage = chunk.usage ?? usage;
}
found.streamed = parts.join("");
found.usage = usage;

const tools = { tools: [weather], tool_choice: "required", parallel_tool_calls: false };
const called = await client.chat.completions.create({ messages, ...greedy, max_tokens: 99, ...tools });
found.called = called.choices[0].message.tool_calls[0].function;
const stream = client.chat.completions.stream({ messages, ...greedy, max_tokens: 99, ...tools });
found.calledInStream = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0].function;

const format = { type: "json_schema", json_schema: { name: "answer", schema: { enum: ["yes", "no"] }, strict: true } };
const parsed = await client.chat.completions.parse({ messages, ...greedy, response_format: format });
found.schema = JSON.parse(parsed.choices[0].message.content);

const response = { model, input: messages[0].content, temperature: 0, max_output_tokens: 64 };
found.response = (await client.responses.create(response)).output_text;
found.responseInStream = (await client.responses.stream(response).finalResponse()).output_text;

found.unknownModel = await failure(() => client.chat.completions.create({ messages, ...greedy, model: "other" }));
found.unknownField = await failure(() => client.chat.completions.create({ messages, ...greedy, tokens: 5 }));

const endless = await client.completions.create({ model, prompt: "Once", max_tokens: 8000, ignore_eos: true, stream: true });
for await (const chunk of endless) {
  found.aborted = chunk.object;
  endless.controller.abort();
}
console.log(JSON.stringify(found));
