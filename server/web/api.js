// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The server's public API. Paths are relative, so that the page works behind a proxy's prefix too.

const kPollTimeoutMs = 5000;

// What went wrong, for people: `kind` is one of network, silent, unauthorized, busy, unready, timeout, request, server, cut.
export class ApiError extends Error {
  constructor(kind, message, {status = 0, retryAfter = 0} = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function kindOf(status) {
  if (status === 401 || status === 403) return "unauthorized";
  if (status === 429) return "busy";
  if (status === 503) return "unready";
  if (status === 408 || status === 504) return "timeout";
  return status >= 500 ? "server" : "request";
}

// The server's own words if the body has them: an OpenAI error, or a health state with its reason.
function messageOf(text, status) {
  try {
    const body = JSON.parse(text);
    const message = body.error?.message ?? body.reason ?? body.error ?? body.status;
    if (typeof message === "string" && message !== "") return message;
  } catch {
    // Not JSON: a proxy's page, which tells a reader of this page nothing.
  }
  return `the server answered with status ${status}`;
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  let text = "";
  try {
    text = await response.text();
  } catch {
    // The status alone has to do.
  }
  return new ApiError(kindOf(response.status), messageOf(text, response.status), {status: response.status, retryAfter});
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, {cache: "no-store", ...options});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new ApiError("silent", "the server does not answer");
    throw new ApiError("network", "the server cannot be reached");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function poll(path, read) {
  const response = await request(path, {signal: AbortSignal.timeout(kPollTimeoutMs)});
  try {
    return await read(response);
  } catch {
    throw new ApiError("network", `the answer to ${path} was cut off`);
  }
}

export const getJson = (path) => poll(path, (response) => response.json());
export const getText = (path) => poll(path, (response) => response.text());

// {data, at} of each event of a stream of server-sent events, whatever pieces it comes in; `at` is when its piece came.
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const {value, done} = await reader.read();
      if (done) return;
      const at = performance.now();
      buffer += value;
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length > 0) {
          yield {data: data.join("\n"), at};
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});  // who stops listening closes the connection
  }
}

// The {chunk, at} of a chat completion. Ends when the server says that it is done; throws an ApiError of kind "cut" when the
// stream ends without that.
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({...body, stream: true, stream_options: {include_usage: true}}),
    signal,
  });
  try {
    for await (const {data, at} of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError("server", chunk.error.message ?? "the server gave up");
      yield {chunk, at};
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("cut", "the connection was lost before the answer was complete");
  }
  throw new ApiError("cut", "the connection ended before the answer was complete");
}

// One sentence and what to do next, for each kind.
export function explain(error) {
  if (!(error instanceof ApiError)) return {title: "Something in this page went wrong.", advice: String(error?.message ?? error)};
  // A sentence; but names of parameters, with which some messages begin, stay as they are.
  const said = /^[a-z]+ /.test(error.message) ? error.message.charAt(0).toUpperCase() + error.message.slice(1) : error.message;
  const after = error.retryAfter > 0 ? ` It asks to wait ${nibbleNumbers.plural(error.retryAfter, "second")}.` : "";
  switch (error.kind) {
    case "network":
      return {title: "The server cannot be reached.", advice: "Is nibble serve still running, and your network up?"};
    case "silent":
      return {title: "The server does not answer.", advice: `It did not for ${kPollTimeoutMs / 1000} seconds; this page goes on asking.`};
    case "unauthorized":
      return {
        title: error.status === 403 ? "The server refused this page." : "The server wants a key.",
        advice: error.status === 403 ? said : "Reload the page and give an API key as the password; the user name does not matter.",
        reload: true,
      };
    case "busy":
      return {title: "The server is busy.", advice: `${said}.${after}`};
    case "unready":
      return {title: "The server is not ready.", advice: `${said}.${after}`};
    case "timeout":
      return {title: "That took longer than the server allows.", advice: said};
    case "cut":
      return {title: "The answer is not complete.", advice: `${said}.`};
    case "request":
      return {title: "The server refused the request.", advice: said};
    default:
      return {title: "The server failed.", advice: said};
  }
}
