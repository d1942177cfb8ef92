// The API as the pages call it. Every response that is no success becomes an ApiError with the problem document in it.

let authorization = null;
let tenant = null;

// key: an API key or null; name: the tenant to act for where no key is needed.
export function actAs(key, name) {
  authorization = key ? `Bearer ${key}` : null;
  tenant = key ? null : name;
}

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The API answered ${status}.`);
    this.status = status;
    this.problem = problem;
  }
}

export function headersOf(more) {
  const headers = { ...more };
  if (authorization) headers.Authorization = authorization;
  if (tenant) headers["X-Tenant"] = tenant;
  return headers;
}

export async function checked(response) {
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // a proxy's page, not ours
  }
  throw new ApiError(response.status, problem);
}

export async function call(method, path, { body, headers, signal } = {}) {
  const sent = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      headers: headersOf({ ...sent, ...headers }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { detail: "The API cannot be reached. Is it running?" });
  }
  await checked(response);
  return response.status === 204 ? null : response.json();
}

export const get = (path, options) => call("GET", path, options);
export const post = (path, body, options) => call("POST", path, { body, ...options });

export function query(members) {
  const pairs = Object.entries(members).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}

// Yields {id, name, data} for each event of a stream. Ends with the connection, and throws if it breaks.
// EventSource cannot send an API key in a header, and a key in a URL would end up in logs.
export async function* events(path, { after, signal } = {}) {
  const headers = headersOf({ Accept: "text/event-stream", ...(after ? { "Last-Event-ID": after } : {}) });
  const response = await checked(await fetch(path, { headers, signal }));
  if (response.status === 204) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const event = eventOf(frame);
      if (event) yield event;
    }
  }
}

function eventOf(frame) {
  const event = { id: null, name: "message", data: null };
  for (const line of frame.split("\n")) {
    const at = line.indexOf(":");
    const value = line.slice(at + 1).replace(/^ /, "");
    const member = line.slice(0, at);
    if (member === "id") event.id = value;
    if (member === "event") event.name = value;
    if (member === "data") event.data = event.data === null ? value : `${event.data}\n${value}`;
  }
  return event.data === null ? null : event;
}
