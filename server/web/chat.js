// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The chat: one conversation, kept in this page's memory alone. At most one answer runs at a time.

import {ApiError, explain, getJson, streamChat} from "./api.js";
import {AnswerView, figures, userMessage} from "./conversation_view.js";
import {Parameters} from "./parameters.js";

const {number} = nibbleNumbers;
const byId = (id) => document.getElementById(id);
const kModelRetryMs = 3000;
const kAnnouncedMs = 8000;  // then it is only in the conversation
const kFrameMs = 16;
const kPausePerPaint = 5;  // texts that take long to show are shown less often: the page stays usable
const kNearEnd = 80;  // pixels from the end within which the view follows the text

export class Chat {
  constructor() {
    this.parameters = new Parameters();
    this.turns = [];       // {role, content}: what is sent; an answer's after it ended
    this.running = null;   // AbortController of the answer in progress
    this.lastView = null;  // of the last answer
    this.models = [];
    this.following = true;  // the end of the conversation, until its reader scrolls away from it
    this.message = byId("message");
    this.transcript = byId("transcript");
    this.#listen();
    this.#loadModels();
  }

  focus() {
    this.message.focus();
  }

  #listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.message.addEventListener("input", () => this.#fit());
    this.message.addEventListener("keydown", (event) => {
      // isComposing: Enter that ends the input of a Chinese or Japanese word is no Enter.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    byId("view-chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.#reset());
    byId("suggestions").addEventListener("click", (event) => {
      if (!(event.target instanceof HTMLButtonElement)) return;
      this.message.value = event.target.textContent;
      this.#send();
    });
    byId("jump").addEventListener("click", () => {
      this.#scrollToEnd();
      this.focus();
    });
    this.transcript.addEventListener("scroll", () => {
      this.following = this.#isNearEnd();
      this.#showJump();
    });
    new ResizeObserver(() => this.#follow()).observe(this.transcript);  // a keyboard comes up, the box grows
    byId("model").addEventListener("change", () => this.#showModel());
  }

  async #loadModels() {
    const select = byId("model");
    try {
      const {data} = await getJson("v1/models");
      this.models = data;
      select.replaceChildren(...data.map((model) => new Option(model.id, model.id)));
      select.disabled = data.length === 0;
    } catch (error) {
      select.replaceChildren(new Option(explain(error).title));
      if (error instanceof ApiError && error.kind !== "unauthorized") setTimeout(() => this.#loadModels(), kModelRetryMs);
    }
    this.#showModel();
    this.#fit();
  }

  get #model() {
    return this.models.find((model) => model.id === byId("model").value);
  }

  #showModel() {
    const model = this.#model;
    this.message.placeholder = model ? `Message ${model.id}` : "Write a message";
    byId("welcome-title").textContent = model ? `Talk to ${model.id}` : "What shall we talk about?";
  }

  // The box grows with its text; the button is there when there is something to send.
  #fit() {
    this.message.style.height = "auto";
    this.message.style.height = `${this.message.scrollHeight}px`;
    byId("send").disabled = this.message.value.trim() === "" || this.running !== null || !this.#model;
  }

  #send() {
    const text = this.message.value.trim();
    if (text === "" || this.running !== null || !this.#model) return;
    if (this.parameters.read() === null) return;
    this.message.value = "";
    // What got no answer is not part of the conversation: templates want turns that take turns.
    if (this.turns.at(-1)?.role === "user") this.turns.pop();
    this.turns.push({role: "user", content: text});
    byId("messages").append(userMessage(text));
    this.#answer();
  }

  async #answer() {
    const parameters = this.parameters.read();
    if (parameters === null || this.running !== null) return;
    const model = this.#model;
    this.lastView?.settle();
    const view = (this.lastView = new AnswerView(model.id));
    byId("welcome").hidden = true;
    byId("messages").append(view.root);
    this.#scrollToEnd();
    this.#setRunning(new AbortController());
    this.#say(`${model.id} is answering`);

    const answer = {
      text: "", running: true, stopped: false, error: null, finishReason: null, usage: null,
      numChunks: 0, numFirstChunks: 0, firstTokenMs: null, lastTokenMs: null,
    };
    const system = this.parameters.systemPrompt;
    const messages = [...(system === "" ? [] : [{role: "system", content: system}]), ...this.turns];
    await this.#receive(answer, view, {model: model.id, messages, ...parameters});
    answer.running = false;
    // What was said so far is part of the conversation, however it ended.
    if (answer.text !== "") this.turns.push({role: "assistant", content: answer.text});
    view.finish(answer, {onRetry: () => this.#again(view, answer)});
    this.#setRunning(null);
    this.#showContext(answer, model);
    this.#follow();
    this.#announce(answer);
  }

  // Fills `answer` until it ends, in whatever way.
  async #receive(answer, view, body) {
    const started = performance.now();
    const {signal} = this.running;
    let painting = false;
    let pauseMs = 0;
    const paint = () => {
      painting = false;
      if (!answer.running) return;
      const began = performance.now();
      view.update(answer);
      this.#follow();
      const tookMs = performance.now() - began;
      pauseMs = tookMs > kFrameMs ? kPausePerPaint * tookMs : 0;
    };
    try {
      for await (const {chunk, at} of streamChat(body, signal)) {
        const choice = chunk.choices?.find((one) => one.index === 0);
        if (choice?.delta?.content) {
          answer.lastTokenMs = at - started;
          answer.firstTokenMs ??= answer.lastTokenMs;
          answer.text += choice.delta.content;
          ++answer.numChunks;
          if (answer.lastTokenMs === answer.firstTokenMs) ++answer.numFirstChunks;
        }
        answer.finishReason = choice?.finish_reason ?? answer.finishReason;
        answer.usage = chunk.usage ?? answer.usage;
        if (!painting) {
          painting = true;
          if (pauseMs > 0) setTimeout(paint, pauseMs);
          else requestAnimationFrame(paint);
        }
      }
    } catch (error) {
      if (signal.aborted) answer.stopped = true;
      else answer.error = error;
    }
  }

  #again(view, answer) {
    if (this.running !== null || this.parameters.read() === null) return;
    if (answer.text !== "") this.turns.pop();
    view.root.remove();
    this.lastView = null;
    this.#answer();
    this.focus();
  }

  stop() {
    this.running?.abort();
  }

  #reset() {
    this.stop();
    // The answer in progress, if there is one, ends after this and may not come back.
    const settled = this.running === null ? Promise.resolve() : new Promise((resolve) => (this.onIdle = resolve));
    settled.then(() => {
      this.turns = [];
      this.lastView = null;
      byId("messages").replaceChildren();
      byId("context").textContent = "";
      byId("welcome").hidden = false;
      byId("new-chat").disabled = true;
      this.#say("New chat");
      this.#showJump();
      this.focus();
    });
  }

  #setRunning(controller) {
    const hadFocus = document.activeElement === byId("stop") || document.activeElement === byId("send");
    this.running = controller;
    byId("stop").hidden = controller === null;
    byId("send").hidden = controller !== null;
    byId("new-chat").disabled = false;
    this.#fit();
    if (hadFocus) this.focus();  // a button that goes takes the focus with it
    if (controller === null) {
      this.onIdle?.();
      this.onIdle = null;
    }
  }

  #showContext(answer, model) {
    if (answer.usage === null || !model.max_model_len) return;
    byId("context").textContent =
        `${number(answer.usage.total_tokens)} of ${number(model.max_model_len)} tokens of context used`;
  }

  // Read out once, when it is whole: word by word nobody could follow.
  #announce(answer) {
    const said = answer.error ? Object.values(explain(answer.error)).filter((part) => typeof part === "string").join(" ")
                              : `${answer.stopped ? "Stopped" : "Answer complete"}: ${answer.text}`;
    this.#say(`${said} ${figures(answer).join(", ")}`);
  }

  // To screen readers.
  #say(text) {
    clearTimeout(this.silence);
    byId("chat-status").textContent = text;
    this.silence = setTimeout(() => (byId("chat-status").textContent = ""), kAnnouncedMs);
  }

  #isNearEnd() {
    const {scrollHeight, scrollTop, clientHeight} = this.transcript;
    return scrollHeight - scrollTop - clientHeight < kNearEnd;
  }

  #scrollToEnd() {
    this.following = true;
    this.transcript.scrollTop = this.transcript.scrollHeight;
    this.#showJump();
  }

  #follow() {
    if (this.following) this.#scrollToEnd();
    else this.#showJump();
  }

  #showJump() {
    byId("jump").hidden = this.#isNearEnd();
  }
}
