// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Prometheus' text format, and what can be said about times that only come in buckets.

const kSample = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const kLabel = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const kEscapes = {n: "\n"};

function parseValue(text) {
  if (text === "+Inf" || text === "Inf") return Infinity;
  return text === "-Inf" ? -Infinity : Number(text);
}

// Map from a series' name to its samples, [{labels, value}].
export function parse(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line[0] === "#") continue;
    const match = kSample.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(kLabel)) {
      labels[name] = value.includes("\\") ? value.replace(/\\(.)/g, (_, c) => kEscapes[c] ?? c) : value;
    }
    if (!families.has(match[1])) families.set(match[1], []);
    families.get(match[1]).push({labels, value: parseValue(match[3])});
  }
  return families;
}

export const samples = (families, name) => families.get(name) ?? [];

// Sum over all label sets, or undefined where there is no such series.
export function total(families, name) {
  const found = families.get(name);
  return found?.reduce((sum, sample) => sum + sample.value, 0);
}

// {bounds, counts, sum}: counts of each bucket, not of all below it; the last bound is Infinity. Null without a series.
export function histogram(families, name) {
  const found = families.get(`${name}_bucket`);
  if (!found) return null;
  const below = new Map();
  for (const {labels, value} of found) {
    const bound = parseValue(labels.le);
    below.set(bound, (below.get(bound) ?? 0) + value);
  }
  const bounds = [...below.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound, i) => below.get(bound) - (i === 0 ? 0 : below.get(bounds[i - 1])));
  return {bounds, counts, sum: total(families, `${name}_sum`) ?? NaN};
}

// What was counted after `before`; all of `now` if there was none or the server started anew.
export function since(before, now) {
  if (!before || !now || before.counts.length !== now.counts.length) return now;
  const counts = now.counts.map((count, i) => count - before.counts[i]);
  if (counts.some((count) => count < 0)) return now;
  return {bounds: now.bounds, counts, sum: now.sum - before.sum};
}

export const count = (one) => (one ? one.counts.reduce((sum, value) => sum + value, 0) : 0);

// Where the quantile `q` lies, as Prometheus' histogram_quantile has it: values are taken to be spread evenly in their
// bucket, and beyond the last bound only that bound is known. {value, position} (in buckets), or null of nothing.
export function quantile(one, q) {
  const all = count(one);
  if (all === 0) return null;
  let rest = q * all;
  for (let i = 0; i < one.counts.length; ++i) {
    if (rest > one.counts[i] || one.counts[i] === 0) {
      rest -= one.counts[i];
      continue;
    }
    const low = i === 0 ? 0 : one.bounds[i - 1];
    if (one.bounds[i] === Infinity) return {value: low, position: i, beyond: true};
    const share = rest / one.counts[i];
    return {value: low + (one.bounds[i] - low) * share, position: i + share, beyond: false};
  }
  return null;
}
