// Drives a gateway with OpenAI's own JavaScript client, unchanged; prints what it saw as JSON.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hi you" }];
const seen = {};

const chat = await client.chat.completions.create({ model, messages, max_tokens: 3 });
seen.chat = chat.choices[0].message.content;
seen.usage = chat.usage.completion_tokens;

const stream = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 3,
  stream: true,
  stream_options: { include_usage: true },
});
seen.stream = "";
for await (const chunk of stream) {
  seen.stream += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) seen.streamUsage = chunk.usage.completion_tokens;
}

const response = await client.responses.create({ model, input: "hi", max_output_tokens: 2 });
seen.response = response.output_text;
const events = await client.responses.create({
  model,
  input: "hi",
  max_output_tokens: 2,
  stream: true,
});
seen.events = [];
for await (const event of events) seen.events.push(event.type);

const embedding = await client.embeddings.create({
  model,
  input: "hi",
  encoding_format: "float",
});
seen.embedding = embedding.data[0].embedding;
seen.models = (await client.models.list()).data.map((each) => each.id);

try {
  await client.chat.completions.create({ model, messages, max_tokens: 900000 });
} catch (error) {
  seen.refused = [error.status, error.code, error.constructor.name];
}
console.log(JSON.stringify(seen));
