// Requests to the API of this page, with the caller's key, if set.

const KEY = "embedq-key";
const PATIENCE = 10_000;

/** The error in an unsuccessful answer, by its code. */
export class Problem extends Error {
  /** `retryAfter` in seconds, 0 if the answer has none. */
  constructor(status, code, detail, retryAfter = 0) {
    super(detail);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** The JSON of an answer. Throws Problem; its code is `unreachable` without an answer. */
export async function ask(path, { body, method = body ? "POST" : "GET", patience = PATIENCE } = {}) {
  const headers = { Accept: "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(patience),
    });
  } catch {
    throw new Problem(0, "unreachable", "The API does not answer.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const { code = "unreadable", detail = `The API answered ${response.status}.` } = answer ?? {};
  throw new Problem(response.status, code, detail, Number(response.headers.get("Retry-After")) || 0);
}
