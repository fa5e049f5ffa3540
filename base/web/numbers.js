// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Numbers as people read them, and the few statistics that pages need. A classic script, so that a
// page may also hold it inline: everything is in the one object nibbleNumbers.
"use strict";

const nibbleNumbers = (() => {
  // Three digits that matter, and no more: 0, 0.0123, 1.23, 12.3, 123, 1,234.
  function number(value) {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 100) return Math.round(value).toLocaleString("en-US");
    if (size === 0) return "0";
    const digits = Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(size))));
    return String(Number(value.toFixed(digits)));
  }

  // 950, 12.3k, 4.56M
  function compact(value) {
    if (!Number.isFinite(value)) return "–";
    for (const [unit, suffix] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
      if (Math.abs(value) >= unit) return number(value / (unit === 1e4 ? 1e3 : unit)) + suffix;
    }
    return number(value);
  }

  // 850 µs, 12.3 ms, 1.42 s, 3 min 5 s, 2 h 4 min
  function seconds(value) {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0 s";
    if (size < 0.9995e-3) return `${number(value * 1e6)} µs`;
    if (size < 0.9995) return `${number(value * 1e3)} ms`;
    if (size < 120) return `${number(value)} s`;
    const whole = Math.round(value);
    if (whole < 7200) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }

  const milliseconds = (value) => seconds(value / 1e3);
  const percent = (share) => (Number.isFinite(share) ? `${number(share * 100)} %` : "–");

  function plural(count, one, many = `${one}s`) {
    return `${number(count)} ${count === 1 ? one : many}`;
  }

  // Of sorted values, between neighbours by their distance, as numpy does by default.
  function percentile(sorted, p) {
    if (sorted.length === 0) return NaN;
    const at = ((sorted.length - 1) * p) / 100;
    const low = Math.floor(at);
    const high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
  }

  function mean(values) {
    let sum = 0;
    for (const value of values) sum += value;
    return values.length === 0 ? NaN : sum / values.length;
  }

  function deviation(values) {
    const middle = mean(values);
    let sum = 0;
    for (const value of values) sum += (value - middle) ** 2;
    return values.length === 0 ? NaN : Math.sqrt(sum / values.length);
  }

  function maximum(values) {  // of any length: Math.max(...values) ends at some 100,000
    let result = -Infinity;
    for (const value of values) if (value > result) result = value;
    return result;
  }

  // Round values that a scale from `low` to `high` is labelled with, about `count` of them.
  function ticks(low, high, count) {
    if (!(high > low)) return [low];
    const rough = (high - low) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const result = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; ++i) {
      result.push(Number((i * step).toPrecision(12)));
    }
    return result;
  }

  // The same for time, whose round steps are minutes and hours above a minute.
  function timeTicks(low, high, count) {
    const rough = (high - low) / Math.max(1, count);
    if (rough < 20) return ticks(low, high, count);
    const steps = [30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
    const step = steps.find((s) => s >= rough * 0.999) ?? 86400 * Math.ceil(rough / 86400);
    const result = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) result.push(at);
    return result;
  }

  return {number, compact, seconds, milliseconds, percent, plural, percentile, mean, deviation, maximum, ticks, timeTicks};
})();
