// The settings of a comparison: what is asked, how it is sampled, and of which adapters. They are what the URL holds.

/** Settings with nothing asked yet. Sampling settings are text as it was typed; an empty one is left to the server. */
export function defaultSettings() {
  return {
    mode: "plain",
    system: "",
    prompt: "",
    sampling: { temperature: "0", max_tokens: "128", seed: "", top_p: "", top_k: "", min_p: "", repetition_penalty: "", stop: "" },
    // The picked adapters, in the order of the mixture.
    adapters: [],
    columns: { base: true, single: true, mixture: true },
    difference: false,
  };
}

/** The settings as the part of a URL after `#`, which browsers never send to a server. Defaults are left out. */
export function toFragment(settings) {
  const plain = defaultSettings();
  const query = new URLSearchParams();
  const set = (name, value, usual) => value !== usual && query.set(name, value);
  set("mode", settings.mode, plain.mode);
  set("system", settings.system, plain.system);
  set("prompt", settings.prompt, plain.prompt);
  for (const [name, usual] of Object.entries(plain.sampling)) set(name, settings.sampling[name], usual);
  for (const { name, weight } of settings.adapters) query.append("adapter", `${name}*${weight}`);
  const hidden = Object.keys(plain.columns).filter((name) => !settings.columns[name]);
  set("hide", hidden.join(","), "");
  set("difference", settings.difference ? "1" : "", "");
  return query.toString();
}

/** The settings in such a part of a URL. What it doesn't say, or says wrongly, has its default. */
export function fromFragment(fragment) {
  const settings = defaultSettings();
  const query = new URLSearchParams(fragment.replace(/^#/, ""));
  if (query.get("mode") === "chat") settings.mode = "chat";
  settings.system = query.get("system") ?? settings.system;
  settings.prompt = query.get("prompt") ?? settings.prompt;
  for (const name of Object.keys(settings.sampling)) settings.sampling[name] = query.get(name) ?? settings.sampling[name];
  for (const item of query.getAll("adapter")) {
    const star = item.lastIndexOf("*");
    const weight = Number(item.slice(star + 1));
    const name = item.slice(0, star);
    if (star > 0 && Number.isFinite(weight) && !settings.adapters.some((other) => other.name === name)) {
      settings.adapters.push({ name, weight });
    }
  }
  for (const name of (query.get("hide") ?? "").split(",")) if (name in settings.columns) settings.columns[name] = false;
  settings.difference = query.get("difference") === "1";
  return settings;
}

/** The columns that the settings ask for: `{id, title, adapters}` each. */
export function columnsOf(settings) {
  const { adapters, columns } = settings;
  const found = [];
  if (columns.base) found.push({ id: "base", title: "Base", adapters: [] });
  if (columns.single) {
    for (const adapter of adapters) found.push({ id: `adapter ${adapter.name}`, title: mixtureText([adapter]), adapters: [adapter] });
  }
  if (columns.mixture && adapters.length > 1) found.push({ id: "mixture", title: mixtureText(adapters), adapters });
  return found;
}

/** A mixture as the command line writes it: `sql*0.5 + tone*0.5`. */
export function mixtureText(adapters) {
  return adapters.map(({ name, weight }) => (weight === 1 ? name : `${name}*${weight}`)).join(" + ");
}
