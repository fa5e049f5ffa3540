// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The form of sampling parameters. Only what is filled in is sent: the server's defaults are those of the model.

const kNumbers = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const byId = (id) => document.getElementById(id);

// Why `input` cannot be sent, or "".
function complaint(input) {
  if (input.validity.badInput) return "Not a number";
  if (input.value === "") return "";
  const value = Number(input.value);
  const least = Number(input.min);
  const most = input.max === "" ? Infinity : Number(input.max);
  if (input.step === "1" && !Number.isInteger(value)) return "Want a whole number";
  if (value < least) return `At least ${least}`;
  if (value > most) return `At most ${most}`;
  return "";
}

function check(input) {
  const text = complaint(input);
  const help = byId(`${input.id}-help`);
  help.dataset.plain ??= help.textContent;
  help.textContent = text || help.dataset.plain;
  input.setAttribute("aria-invalid", String(text !== ""));
  return text === "";
}

export class Parameters {
  constructor() {
    this.inputs = kNumbers.map(byId);
    this.system = byId("system");
    const form = byId("parameters-form");
    const toggle = byId("parameters-toggle");
    const panel = byId("parameters");
    form.addEventListener("input", (event) => {
      if (kNumbers.includes(event.target.id)) check(event.target);
      this.#showReset();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => {
      // The fields have their old values until after this event.
      setTimeout(() => {
        this.inputs.forEach(check);
        this.#showReset();
        this.system.focus();
      });
    });
    const show = (open) => {
      panel.classList.toggle("open", open);
      toggle.setAttribute("aria-expanded", String(open));
    };
    toggle.addEventListener("click", () => {
      show(!panel.classList.contains("open"));
      if (panel.classList.contains("open")) this.system.focus();
    });
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !panel.classList.contains("open")) return;
      event.stopPropagation();
      show(false);
      toggle.focus();
    });
  }

  #showReset() {
    byId("reset").hidden = [this.system, ...this.inputs].every((input) => input.value === "" && !input.validity.badInput);
  }

  get systemPrompt() {
    return this.system.value.trim();
  }

  // {name: value} of what is filled in, or null after moving the focus to a field that is wrong.
  read() {
    const wrong = this.inputs.filter((input) => !check(input));
    if (wrong.length > 0) {
      byId("parameters").classList.add("open");
      byId("parameters-toggle").setAttribute("aria-expanded", "true");
      wrong[0].focus();
      return null;
    }
    const filled = this.inputs.filter((input) => input.value !== "");
    return Object.fromEntries(filled.map((input) => [input.id, Number(input.value)]));
  }
}
