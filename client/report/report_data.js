// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the plots are drawn from, made of a result's keys. Any of them may be absent, or of another type.
"use strict";

const reportData = (() => {
  const {percentile, mean, deviation, maximum} = nibbleNumbers;
  const kLatencies = {
    ttft: {title: "Time to first token", short: "TTFT"},
    tpot: {title: "Time per output token", short: "TPOT"},
    itl: {title: "Between tokens", short: "ITL"},
    e2el: {title: "Whole request", short: "E2E"},
  };

  const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : NaN);
  const listOf = (value) => (Array.isArray(value) ? value : []);

  // One entry for each request, in the order in which they were sent; empty without --save-detailed.
  function requests(result) {
    const columns = ["start_times", "ttfts", "latencies", "itls", "input_lens", "output_lens", "errors", "send_delays", "finish_reasons", "end_times"];
    const lists = Object.fromEntries(columns.map((name) => [name, listOf(result[name])]));
    if (lists.start_times.length === 0 && lists.ttfts.length === 0) return [];
    const count = maximum(columns.map((name) => lists[name].length));
    const made = [];
    for (let i = 0; i < count; ++i) {
      const error = lists.errors[i];
      const itls = Array.isArray(lists.itls[i]) ? lists.itls[i].filter(Number.isFinite) : null;
      const ttft = finite(lists.ttfts[i]);
      let latency = finite(lists.latencies[i]);
      if (Number.isNaN(latency) && itls !== null) latency = itls.reduce((sum, gap) => sum + gap, ttft);
      const start = finite(lists.start_times[i]);
      const failed = typeof error === "string" && error !== "";
      // Without a last token there is no latency: until it ended it took a place all the same.
      const end = finite(lists.end_times[i]);
      if (failed && end >= start) latency = end - start;
      made.push({
        number: i, start, ttft, latency, itls, failed,
        error: typeof error === "string" ? error : "", input: finite(lists.input_lens[i]), output: finite(lists.output_lens[i]),
        delay: finite(lists.send_delays[i]), finish: lists.finish_reasons[i],
      });
    }
    return made.sort((a, b) => a.start - b.start || a.number - b.number);
  }

  // Sorted seconds of each latency, of the requests that succeeded.
  function latencies(all) {
    const good = all.filter((one) => !one.failed);
    const sorted = (values) => Float64Array.from(values.filter(Number.isFinite)).sort();
    const gaps = [];
    for (const one of good) for (const gap of one.itls ?? []) gaps.push(gap);
    return {
      ttft: sorted(good.map((one) => one.ttft)),
      tpot: sorted(good.filter((one) => one.output > 1).map((one) => (one.latency - one.ttft) / (one.output - 1))),
      itl: sorted(gaps),
      e2el: sorted(good.map((one) => one.latency)),
    };
  }

  // [{name, short, values: {mean, p50, ...} in seconds}]: what the result says, else what its requests give.
  function summary(result, sorted) {
    const given = new Set();
    for (const key of Object.keys(result)) {
      const match = /^p(\d+(?:\.\d+)?)_(?:ttft|tpot|itl|e2el)_ms$/.exec(key);
      if (match) given.add(Number(match[1]));
    }
    const wanted = [...new Set([50, 90, 95, 99, ...given])].sort((a, b) => a - b);
    const rows = Object.entries(kLatencies).map(([name, about]) => {
      const value = (key, compute) => {
        const said = finite(result[`${key}_${name}_ms`]);
        return Number.isNaN(said) ? (sorted[name].length > 0 ? compute(sorted[name]) : NaN) : said / 1e3;
      };
      const values = {mean: value("mean", mean), std: value("std", deviation)};
      for (const p of wanted) values[`p${p}`] = value(p === 50 ? "median" : `p${p}`, (v) => percentile(v, p));
      return {name, ...about, values};
    });
    const columns = ["mean", "std", ...wanted.map((p) => `p${p}`)];
    return {
      columns: columns.filter((column) => rows.some((row) => Number.isFinite(row.values[column]))),
      rows: rows.filter((row) => columns.some((column) => Number.isFinite(row.values[column]))),
    };
  }

  // Counts in about `bins` ranges of round width; what lies beyond the 99.5th percentile is in the last one, so that a
  // single late request does not press all others into one bar.
  function histogram(sorted, bins) {
    const low = sorted[0];
    const most = sorted.at(-1);
    let high = percentile(sorted, 99.5);
    if (most <= low + (high - low) * 1.25) high = most;
    const ticks = nibbleNumbers.ticks(0, Math.max(high - low, high * 1e-3, 1e-9), bins);
    const width = ticks.length > 1 ? ticks[1] - ticks[0] : Math.max(high, 1e-6);
    const first = Math.floor(low / width + 1e-9);
    const count = Math.max(1, Math.ceil(high / width - 1e-9) - first);
    const counts = new Array(count).fill(0);
    for (const value of sorted) ++counts[Math.min(count - 1, Math.max(0, Math.floor(value / width + 1e-9) - first))];
    const edges = counts.map((_, i) => (first + i) * width).concat((first + count) * width);
    return {counts, edges, open: most > edges.at(-1) * (1 + 1e-9)};
  }

  // Tokens that came, and requests that ran, in steps of equal length: {step, generated, running} with points [time, value].
  function courses(all, duration, gapStride) {
    const timed = all.filter((one) => Number.isFinite(one.start) && Number.isFinite(one.latency));
    const end = Math.max(duration || 0, maximum(timed.map((one) => one.start + one.latency)));
    if (timed.length === 0 || !(end > 0)) return null;
    const steps = nibbleNumbers.ticks(0, end, 120);
    const step = steps.length > 1 ? steps[1] : end;
    const count = Math.max(1, Math.ceil(end / step - 1e-9));
    const tokens = new Float64Array(count);
    const change = new Float64Array(count + 1);
    const at = (time) => Math.min(count - 1, Math.max(0, Math.floor(time / step)));
    const busy = new Float64Array(count);  // seconds of running requests in a step: its mean is what is drawn
    for (const one of timed) {
      addTokens(one, gapStride, tokens, at);
      const [first, last] = [at(one.start), at(one.start + one.latency)];
      if (first === last) {
        busy[first] += one.latency;
        continue;
      }
      busy[first] += (first + 1) * step - one.start;
      busy[last] += one.start + one.latency - last * step;
      change[first + 1] += 1;
      change[last] -= 1;
    }
    let whole = 0;
    const middle = (i) => Math.min(end, (i + 0.5) * step);
    const points = (values) => Array.from(values, (value, i) => [middle(i), value]);
    return {
      step, end,
      generated: points(tokens).map(([time, value]) => [time, value / step]),
      running: points(busy).map(([time, seconds], i) => [time, (whole += change[i]) + seconds / step]),
    };
  }

  // A chunk of a stream may hold several tokens; those of a request are spread over its chunks.
  function addTokens(one, gapStride, tokens, at) {
    if (one.failed || one.itls === null || !Number.isFinite(one.ttft)) return;
    const weight = (Number.isFinite(one.output) ? one.output / (one.itls.length + 1) : 1) * gapStride;
    let time = one.start + one.ttft;
    tokens[at(time)] += weight;
    for (const gap of one.itls) tokens[at((time += gap))] += weight;
  }

  // [[message, count], ...], the most frequent first. Messages that differ in numbers alone are one, the first of them.
  function errors(all) {
    const found = new Map();
    for (const {failed, error} of all) {
      if (!failed) continue;
      const kind = error.replace(/\d+/g, "0");
      if (!found.has(kind)) found.set(kind, [error, 0]);
      ++found.get(kind)[1];
    }
    return [...found.values()].sort((a, b) => b[1] - a[1]);
  }

  return {kLatencies, finite, requests, latencies, summary, histogram, courses, errors};
})();
