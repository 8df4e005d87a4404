// OpenAI's client for Node: what its users call, printed as one JSON object.
const OpenAI = require("openai");

const [, , url, question] = process.argv;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "x", maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const parameters = {
  type: "object",
  properties: { country: { type: "string", enum: ["Spain", "Peru"] } },
  required: ["country"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "capital_of", parameters, strict: true } };
const schema = { type: "json_schema", json_schema: { name: "x", schema: parameters, strict: true } };

async function texts(stream, text) {
  let all = "";
  for await (const part of stream) all += text(part) || "";
  return all;
}

async function failure(asked) {
  try {
    await asked;
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param];
  }
}

async function main() {
  const chat = (more) => client.chat.completions.create({ model: "demo", messages, ...more });
  const said = (answer) => answer.choices[0].message;
  const runner = client.chat.completions.stream({ model: "demo", messages });
  const left = await chat({ stream: true, min_tokens: 4000 });
  for await (const _ of left) break; // which closes the connection
  return {
    models: (await client.models.list()).data.map((model) => model.id),
    chat: said(await chat()).content,
    stream: await texts(await chat({ stream: true }), (chunk) => chunk.choices[0].delta.content),
    final: await runner.finalContent(),
    tool: said(await chat({ tools: [tool], tool_choice: "required", max_tokens: 100 })).tool_calls[0]
      .function,
    structured: said(await chat({ response_format: schema, max_tokens: 100 })).content,
    completion: (
      await client.completions.create({ model: "demo", prompt: "The capital of Spain is", max_tokens: 2 })
    ).choices[0].text,
    response: (await client.responses.create({ model: "demo", input: question })).output_text,
    events: await texts(
      await client.responses.create({ model: "demo", input: question, stream: true }),
      (event) => event.type === "response.output_text.delta" && event.delta,
    ),
    unknown: await failure(chat({ model: "gpt-4" })),
    bad: await failure(chat({ temperature: 9 })),
  };
}

main().then((found) => console.log(JSON.stringify(found)));
