// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The live view: asks /metrics once a second while the page is looked at, and draws what came.

import {ApiError, explain, getJson, getText} from "./api.js";
import {parse, samples, total} from "./exposition.js";
import {Latencies} from "./latency.js";
import {Experts, replaceIfNew, showRanks, table} from "./ranks.js";
import {kMaxSeconds, Samples} from "./samples.js";
import {stateOf} from "./state.js";

const {html, lines, legend, create} = nibblePlot;
const {number, compact, seconds, percent, plural, timeTicks} = nibbleNumbers;
const byId = (id) => document.getElementById(id);

const kPollMs = 1000;
const kRetryMs = 3000;
const kLargeAnswer = 512 * 1024;  // a model with thousands of experts: asked for less often
const kLargeAnswerMs = 5000;

const ago = (at) => (at > -0.5 ? "now" : `−${seconds(Math.round(-at))}`);
// What a server answers about itself is no work of its clients.
const kOwnHandlers = new Set(["/metrics", "/health", "/health/ready", "/health/live", "/", "none"]);
const kReasons = {stop: "Ended by themselves", length: "Cut at the token limit", abort: "Left by the client", error: "Failed"};

export class Live {
  // `onState({state, text})` tells the header what to say.
  constructor(onState) {
    this.onState = onState;
    this.samples = new Samples();
    this.families = null;
    this.paused = false;
    this.visible = false;
    this.timer = 0;
    this.polling = false;
    this.latencies = new Latencies(byId("latencies"));
    this.experts = new Experts();
    this.plots = Object.fromEntries(["throughput", "requests", "kv"].map((id) => [id, create(byId(id))]));
    byId("throughput-legend").append(legend(["Generated", "Prompt"]));
    byId("requests-legend").append(legend(["Running", "Waiting"]));
    for (const name of ["period", "latency-span"]) byId(name).addEventListener("change", () => this.draw());
    byId("pause").addEventListener("click", () => this.#togglePause());
    document.addEventListener("visibilitychange", () => this.#schedule(0));
    this.#schedule(0);
    this.#identify();
  }

  show(visible) {
    this.visible = visible;
    this.draw();
  }

  #togglePause() {
    this.paused = !this.paused;
    byId("pause").setAttribute("aria-pressed", String(this.paused));
    byId("pause").textContent = this.paused ? "Continue" : "Pause";
    if (!this.paused) this.draw();
  }

  async #identify() {
    try {
      const [{data}, {version}] = await Promise.all([getJson("v1/models"), getJson("version")]);
      this.identity = `${data.map((model) => model.id).join(", ")} · nibble ${version} · sequences of up to ` +
          `${number(data[0]?.max_model_len ?? NaN)} tokens`;
    } catch {
      setTimeout(() => this.#identify(), kRetryMs);  // what is wrong, the poll says
    }
  }

  #schedule(delayMs) {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.#poll(), delayMs);
  }

  async #poll() {
    if (this.polling) return;
    this.polling = true;
    let delayMs = kPollMs;
    try {
      const text = await getText("metrics");
      if (text.length > kLargeAnswer) delayMs = kLargeAnswerMs;
      this.families = parse(text);
      // While it loads, a server says how it is and nothing else.
      if (total(this.families, "vllm:num_requests_running") !== undefined) {
        this.samples.add(performance.now() / 1000, this.families);
      }
      const {state, text: said, problem} = await stateOf(this.families);
      this.#showProblem(problem);
      this.onState({state, text: said});
      if (!this.paused) this.draw();
    } catch (error) {
      delayMs = Math.max(kRetryMs, error.retryAfter ? error.retryAfter * 1000 : 0);
      this.#unavailable(error);
    }
    this.polling = false;
    this.#schedule(delayMs);
  }

  // An alert is read out when its text changes: not every second.
  #showProblem(text) {
    const box = byId("problem");
    if (box.textContent !== text) box.textContent = text;
    box.hidden = text === "";
  }

  #unavailable(error) {
    const {title, advice, reload} = explain(error);
    this.#showProblem(`${title} ${advice}`);
    const names = {network: "Not reachable", silent: "No answer", unauthorized: "Key needed", unready: "Not ready"};
    this.onState({state: reload ? "degraded" : "down", text: error instanceof ApiError ? names[error.kind] ?? "Failing" : "Failing"});
  }

  draw() {
    if (!this.visible || !this.samples.last) return;
    const period = Number(document.querySelector("input[name=period]:checked").value);
    this.#drawAbout();
    this.#drawTiles(period);
    this.#drawCourses(period);
    const all = document.querySelector("input[name=span]:checked").value === "all";
    this.latencies.show(this.samples.last, all ? null : this.samples.within(Math.min(period, kMaxSeconds))[0]);
    this.#drawFinished();
    showRanks(this.families);
    this.experts.show(this.families);
  }

  #drawAbout() {
    const parts = [this.identity ?? ""];
    const start = total(this.families, "process_start_time_seconds");
    if (start) parts.push(`up ${seconds(Math.max(0, Math.round(Date.now() / 1000 - start)))}`);
    const memory = total(this.families, "process_resident_memory_bytes");
    if (memory) parts.push(`${number(memory / 2 ** 20)} MiB resident`);
    byId("about").textContent = parts.filter((part) => part !== "").join(" · ") || "\u00a0";
  }

  #drawTiles(period) {
    const last = this.samples.last;
    const rate = (counterOf) => this.samples.recentRate(counterOf) ?? NaN;
    const first = this.samples.within(period)[0];
    const queries = last.cacheQueries - first.cacheQueries;
    const recent = queries > 0;  // else what the server has seen since its start
    const hits = recent ? (last.cacheHits - first.cacheHits) / queries : last.cacheHits / last.cacheQueries;
    const {blocks, tokens} = this.#kvSize();
    const most = total(this.families, "nibble:max_num_seqs");
    const tiles = [
      ["Running", number(last.running), "", most ? `of at most ${number(most)}` : "sequences in the batch"],
      ["Waiting", number(last.waiting), "", "for a place or memory"],
      ["Generated", compact(rate((one) => one.generated)), "tokens/s", `${compact(last.generated)} since the start`],
      ["Prompt", compact(rate((one) => one.prompt)), "tokens/s", `${compact(last.prompt)} since the start`],
      ["KV cache", number(last.kvUse * 100), "%", blocks ? `of ${compact(tokens)} tokens` : ""],
      ["Prefix cache", Number.isFinite(hits) ? number(hits * 100) : "–", Number.isFinite(hits) ? "%" : "",
       Number.isFinite(hits) ? (recent ? "of prompt tokens found" : "found since the start") : "no prompt yet"],
    ];
    const holder = byId("tiles");
    if (holder.children.length !== tiles.length) {
      holder.replaceChildren(...tiles.map(([name]) => html("div", {class: "tile"}, html("dt", {}, name), html("dd", {class: "value"}, html("span", {}), " ", html("span", {class: "unit"})), html("dd", {class: "note"}))));
    }
    tiles.forEach(([, value, unit, note], i) => {
      const [, figure, below] = holder.children[i].children;
      figure.children[0].textContent = value;
      figure.children[1].textContent = unit;
      below.textContent = note;
    });
  }

  #kvSize() {
    const labels = samples(this.families, "vllm:cache_config_info")[0]?.labels ?? {};
    const blocks = Number(labels.num_gpu_blocks);
    return {blocks, tokens: blocks * Number(labels.block_size)};
  }

  #drawCourses(period) {
    const of = (key) => this.samples.points(period, (sample) => sample[key]);
    const rates = (key) => this.samples.rates(period, (sample) => sample[key]);
    const common = {xRange: [-period, 0], xFormat: ago, xTicks: timeTicks, yFormat: compact, empty: "Collecting…", area: true};
    const last = (points) => points.at(-1)?.[1] ?? NaN;
    const [generated, prompt, running, waiting, kv] = [rates("generated"), rates("prompt"), of("running"), of("waiting"), of("kvUse")];
    this.plots.throughput.draw(lines({
      ...common, yMin: 10,
      title: `Tokens per second: ${compact(last(generated))} generated, ${compact(last(prompt))} of prompts`,
      series: [{name: "Generated", points: generated}, {name: "Prompt", points: prompt}],
    }));
    this.plots.requests.draw(lines({
      ...common, yMin: 4,
      title: `Requests: ${number(last(running))} running, ${number(last(waiting))} waiting`,
      series: [{name: "Running", points: running}, {name: "Waiting", points: waiting}],
    }));
    const {blocks} = this.#kvSize();
    byId("kv-note").textContent = blocks ? `${number(Math.round(this.samples.last.kvUse * blocks))} of ${plural(blocks, "block")}` : "";
    this.plots.kv.draw(lines({
      ...common, yMax: 1, height: 230, yFormat: percent, title: `KV cache in use: ${percent(last(kv))}`,
      series: [{name: "In use", points: kv, style: 3}],
    }));
  }

  #drawFinished() {
    const finished = new Map(samples(this.families, "vllm:request_success_total").map(({labels, value}) =>
        [labels.finished_reason, value]));
    const order = [...new Set([...Object.keys(kReasons), ...finished.keys()])].filter((reason) => finished.has(reason));
    const rows = order.map((reason) => [kReasons[reason] ?? reason, compact(finished.get(reason))]);
    const refused = samples(this.families, "http_requests_total").filter(({labels}) =>
        Number(labels.status) >= 400 && labels.status !== "499" && !kOwnHandlers.has(labels.handler));
    const byStatus = new Map();
    for (const {labels, value} of refused) byStatus.set(labels.status, (byStatus.get(labels.status) ?? 0) + value);
    for (const [status, value] of [...byStatus].sort()) rows.push([`Refused with HTTP ${status}`, compact(value)]);
    rows.push(["Preempted to be computed again", compact(total(this.families, "vllm:num_preemptions_total") ?? NaN)]);
    replaceIfNew(byId("finished"), rows, () => [table([["Outcome"], ["Count", true]], rows, "Answers by outcome")]);
  }
}
