// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What this page has seen of /metrics, sample by sample: the server keeps no history, so it begins when the page opens.

import {histogram, total} from "./exposition.js";

export const kMaxSeconds = 900;
const kGapSeconds = 6;  // without a sample for longer, nothing is known about the time between

export const kLatencies = {
  ttft: {metric: "vllm:time_to_first_token_seconds", title: "Time to first token", short: "TTFT"},
  itl: {metric: "vllm:inter_token_latency_seconds", title: "Between tokens", short: "ITL"},
  e2e: {metric: "vllm:e2e_request_latency_seconds", title: "Whole request", short: "end to end"},
};

export class Samples {
  constructor() {
    this.all = [];
  }

  get last() {
    return this.all.at(-1);
  }

  // `time` in seconds of any clock that only goes forward.
  add(time, families) {
    const sample = {
      time,
      running: total(families, "vllm:num_requests_running"),
      waiting: total(families, "vllm:num_requests_waiting"),
      kvUse: total(families, "vllm:kv_cache_usage_perc"),
      generated: total(families, "vllm:generation_tokens_total"),
      prompt: total(families, "vllm:prompt_tokens_total"),
      cacheHits: total(families, "vllm:prefix_cache_hits_total"),
      cacheQueries: total(families, "vllm:prefix_cache_queries_total"),
      latencies: {},
    };
    for (const [name, {metric}] of Object.entries(kLatencies)) sample.latencies[name] = histogram(families, metric);
    // Counters only grow: a server whose counters are lower is another one.
    if (this.last && !(sample.generated >= this.last.generated && sample.prompt >= this.last.prompt)) this.all = [];
    this.all.push(sample);
    while (time - this.all[0].time > kMaxSeconds) this.all.shift();
  }

  // Those of the last `seconds`, and the one before them, which rates need.
  within(seconds) {
    if (this.all.length === 0) return [];
    const from = this.last.time - seconds;
    const first = this.all.findIndex((sample) => sample.time >= from);
    return this.all.slice(Math.max(0, first - 1));
  }

  // [[seconds before now, value]], with a break where samples are missing.
  points(seconds, valueOf) {
    return this.#walk(seconds, (before, sample) => valueOf(sample), false);
  }

  // The same of a counter's growth per second.
  rates(seconds, counterOf) {
    return this.#walk(seconds, (before, sample) => rate(before, sample, counterOf), true);
  }

  #walk(seconds, valueOf, skipFirst) {
    const result = [];
    const chosen = this.within(seconds);
    chosen.forEach((sample, i) => {
      const before = chosen[i - 1];
      if (i === 0 && skipFirst) return;
      const at = sample.time - this.last.time;
      if (at < -seconds) return;
      if (before && sample.time - before.time > kGapSeconds) {
        result.push([at, null]);
        if (skipFirst) return;
      }
      result.push([at, valueOf(before, sample) ?? null]);
    });
    return result;
  }

  // Growth per second over the last few samples: a figure that can be read.
  recentRate(counterOf, seconds = 3) {
    const chosen = this.within(seconds);
    return chosen.length < 2 ? null : rate(chosen[0], chosen.at(-1), counterOf);
  }
}

function rate(before, sample, counterOf) {
  const span = sample.time - before.time;
  const growth = counterOf(sample) - counterOf(before);
  return span > 0 && growth >= 0 ? growth / span : null;
}
