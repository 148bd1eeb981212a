// The form that holds all settings but the adapters.

import { defaultSettings } from "./settings.js";

const SAMPLING = Object.keys(defaultSettings().sampling);
const COLUMNS = Object.keys(defaultSettings().columns);

/** The settings in the form, with these adapters. */
export function readForm(form, adapters) {
  const fields = form.elements;
  return {
    mode: fields.mode.value,
    system: fields.system.value,
    prompt: fields.prompt.value,
    sampling: Object.fromEntries(SAMPLING.map((name) => [name, fields[name].value])),
    adapters,
    columns: Object.fromEntries(COLUMNS.map((name) => [name, fields[`show_${name}`].checked])),
    difference: fields.difference.checked,
  };
}

/** Fills the form. */
export function writeForm(form, settings) {
  const fields = form.elements;
  fields.mode.value = settings.mode;
  fields.system.value = settings.system;
  fields.prompt.value = settings.prompt;
  for (const name of SAMPLING) fields[name].value = settings.sampling[name];
  for (const name of COLUMNS) fields[`show_${name}`].checked = settings.columns[name];
  fields.difference.checked = settings.difference;
  showMode(form);
}

/** A plain prompt has no system message. */
export function showMode(form) {
  form.querySelector("#system-field").hidden = form.elements.mode.value !== "chat";
}
