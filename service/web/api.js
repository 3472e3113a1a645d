// The service's interface, as this page uses it. A refusal becomes an Error with the problem's sentence.

let key = sessionStorage.getItem("key") ?? "";

export class Problem extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

export function useKey(given) {
  key = given;
  sessionStorage.setItem("key", given);
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "The service does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem(response.status, problem.code, problem.detail ?? `The service answered ${response.status}.`);
}

const json = async (path, options) => (await request(path, options)).json();

const post = (path, body, signal) =>
  json(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });

export const info = () => json("/info");
export const items = (parameters) => json(`/items?${new URLSearchParams(parameters)}`);
export const search = (query, k, signal) => post("/search", { ...query, k }, signal);
export const classify = (query, signal) => post("/classify", query, signal);

// One upload, one decoding, one embedding; search and classification then ask by vector.
export async function embed(file, signal) {
  const form = new FormData();
  form.append("image", file);
  return (await json("/embed", { method: "POST", body: form, signal })).embeddings[0];
}

// An <img> cannot send a key, so with one the picture is fetched and shown from memory.
export async function thumbnail(id) {
  const path = `/items/${encodeURIComponent(id)}/thumbnail`;
  if (!key) return path;
  return URL.createObjectURL(await (await request(path)).blob());
}
