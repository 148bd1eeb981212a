// The keys that a user typed: kept for this tab alone, and sent to this server alone.

const NAMES = { api: "exlora.api_key", admin: "exlora.admin_key" };

/** The key of a kind (`api` or `admin`), or an empty text. */
export function key(kind) {
  return sessionStorage.getItem(NAMES[kind]) ?? "";
}

/** Keeps a key until the tab is closed; an empty one is forgotten. */
export function setKey(kind, text) {
  if (text === "") sessionStorage.removeItem(NAMES[kind]);
  else sessionStorage.setItem(NAMES[kind], text);
}
