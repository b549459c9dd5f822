// What the npm client `openai` makes of the server at argv[2], as JSON: whole answers, streams, an error, a stream
// that is left.
const OpenAI = require("openai").default;

async function main() {
  const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const found = { version: require("openai/version").VERSION, models };

  const asked = { model: "kjv", prompt: "In the beginning", max_tokens: 16, temperature: 0, logprobs: 2 };
  found.completion = await client.completions.create(asked);
  found.completionParts = [];
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const part of await client.completions.create({ ...asked, ...options })) found.completionParts.push(part);

  const messages = [{ role: "user", content: "Who made the earth?" }];
  const chat = { model: "kjv", messages, max_completion_tokens: 12, seed: 7, logprobs: true, top_logprobs: 3 };
  found.chat = await client.chat.completions.create(chat);
  found.chatParts = [];
  for await (const part of await client.chat.completions.create({ ...chat, stream: true })) found.chatParts.push(part);
  // The client's own assembly of a stream.
  found.chatAssembled = await client.chat.completions.stream(chat).finalChatCompletion();

  try {
    await client.completions.create({ ...asked, temperature: -1 });
  } catch (error) {
    found.error = { name: error.constructor.name, status: error.status, param: error.param };
  }

  const long = await client.completions.create({ ...asked, max_tokens: 400, ignore_eos: true, stream: true });
  found.left = 0;
  for await (const part of long) {
    found.left += part.choices.length;
    if (found.left === 3) break;
  }
  console.log(JSON.stringify(found));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
