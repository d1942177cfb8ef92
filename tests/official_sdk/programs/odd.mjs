// Answers of odd shape, each streamed and whole, by the SDK for Node. The cases come from the test, as JSON in the environment.

import { createRequire } from "node:module";
import path from "node:path";

const { Anthropic, APIError } = createRequire(path.join(process.env.NODE_SDK, "package.json"))("@anthropic-ai/sdk");
const cases = JSON.parse(process.env.CASES);
const client = new Anthropic({ maxRetries: 0, timeout: 30_000 });

async function streamed(parameters) {
  const stream = client.messages.stream(parameters);
  let said = "";
  stream.on("text", (text) => (said += text));
  const { response } = await stream.withResponse();
  return { message: await stream.finalMessage(), said, job_id: response.headers.get("x-job-id") };
}

async function whole(parameters) {
  const { data, response } = await client.messages.create(parameters).withResponse();
  return { message: data, job_id: response.headers.get("x-job-id") };
}

async function tryOut(name, mode) {
  let seen;
  try {
    seen = await (mode === "stream" ? streamed : whole)(cases[name][mode]);
  } catch (error) {
    seen = { error: error.constructor.name, message: String(error.message) };
    if (error instanceof APIError) seen.status = error.status ?? null;
  }
  console.log(JSON.stringify({ case: name, mode, ...seen }));
}

await Promise.all(Object.keys(cases).flatMap((name) => Object.keys(cases[name]).map((mode) => tryOut(name, mode))));
