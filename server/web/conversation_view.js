// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How messages look: elements for what users and models say, with their figures and buttons.

import {explain} from "./api.js";
import {render} from "./markdown.js";

const {html} = nibblePlot;
const {number, seconds, plural} = nibbleNumbers;

function button(label, onClick) {
  const made = html("button", {type: "button", class: "quiet small"}, label);
  made.addEventListener("click", onClick);
  return made;
}

function copyButton(textOf) {
  const made = button("Copy", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(textOf());
    } catch {
      said = "Could not copy";  // no permission, or a plain-HTTP address other than this machine's
    }
    made.textContent = said;
    setTimeout(() => (made.textContent = "Copy"), 1600);
  });
  return made;
}

export function userMessage(text) {
  return html("li", {class: "message user"},
              html("h2", {class: "visually-hidden"}, "You"),
              html("div", {class: "said"}, text));
}

// Why an answer is short, when it is.
function ending(answer) {
  if (answer.stopped) return "stopped by you";
  if (answer.finishReason === "length") return "cut at the token limit";
  return "";
}

// "23 ms to the first token · 141 tokens/s · 212 tokens in 1.52 s"
export function figures(answer) {
  const parts = [];
  if (answer.firstTokenMs !== null) parts.push(`${seconds(answer.firstTokenMs / 1e3)} to the first token`);
  const exact = answer.usage !== null;
  const tokens = exact ? answer.usage.completion_tokens : answer.numChunks;
  const span = (answer.lastTokenMs - answer.firstTokenMs) / 1e3;
  // What came with the first token is what the time starts at: a fast server sends more than a browser reads one by one.
  const timed = tokens * (1 - answer.numFirstChunks / answer.numChunks);
  if (timed > 0 && span > 0) parts.push(`${exact ? "" : "about "}${number(timed / span)} tokens/s`);
  if (tokens > 0) {
    const time = answer.lastTokenMs === null ? "" : ` in ${seconds(answer.lastTokenMs / 1e3)}`;  // the end alone has no text
    parts.push(`${exact ? "" : "about "}${plural(tokens, "token")}${time}`);
  }
  if (answer.usage?.prompt_tokens_details?.cached_tokens > 0) {
    const {prompt_tokens: prompt, prompt_tokens_details: details} = answer.usage;
    parts.push(`${number(details.cached_tokens)} of ${plural(prompt, "prompt token")} cached`);
  }
  if (ending(answer) !== "") parts.push(ending(answer));
  return parts;
}

export class AnswerView {
  constructor(modelName) {
    this.text = html("div", {class: "said markdown"});
    this.waiting = html("p", {class: "waiting"}, html("span", {}), html("span", {}), html("span", {}),
                        html("span", {class: "visually-hidden"}, "Waiting for the first token"));
    this.foot = html("div", {class: "foot note number"});
    this.trouble = html("div", {class: "problem"});
    this.trouble.hidden = true;
    this.root = html("li", {class: "message assistant"},
                     html("h2", {class: "speaker"}, modelName), this.waiting, this.text, this.trouble, this.foot);
    this.root.setAttribute("aria-busy", "true");
  }

  update(answer) {
    this.waiting.hidden = answer.text !== "" || !answer.running;
    render(this.text, answer.text);
    const parts = figures(answer);
    this.foot.replaceChildren(html("p", {}, parts.join(" · ")));
  }

  finish(answer, {onRetry}) {
    this.update(answer);
    this.root.removeAttribute("aria-busy");
    const buttons = html("div", {class: "buttons"});
    if (answer.text !== "") buttons.append(copyButton(() => answer.text));
    this.retry = button("Try again", onRetry);
    buttons.append(this.retry);
    this.foot.append(buttons);
    if (answer.error) this.#show(answer.error);
    for (const code of this.text.querySelectorAll(".code")) {
      code.append(copyButton(() => code.querySelector("code").textContent));
    }
  }

  // Only the last answer can be asked for again.
  settle() {
    this.retry?.remove();
  }

  #show(error) {
    const {title, advice, reload} = explain(error);
    this.trouble.replaceChildren(html("p", {}, html("strong", {}, title), ` ${advice}`));
    if (reload) this.trouble.append(button("Reload", () => location.reload()));
    this.trouble.hidden = false;
  }
}
