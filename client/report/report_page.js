// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The page of one run.
"use strict";

const reportPage = (() => {
  const {html, lines, legend, create} = nibblePlot;
  const {number, compact, seconds, percent, percentile, plural, timeTicks, maximum} = nibbleNumbers;
  const {card, distribution, timeline, timelineLegend, table, tiles, settings} = reportPlots;
  const {finite, kLatencies} = reportData;

  const kMaxErrors = 20;

  // vLLM writes 20261122-184502.
  function dateText(date) {
    const match = /^(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)$/.exec(String(date ?? ""));
    return match ? `${match[1]}-${match[2]}-${match[3]} ${match[4]}:${match[5]}` : String(date ?? "");
  }

  const isInfinite = (value) => value === Infinity || value === "inf" || value === "Infinity";

  // How requests were sent, in words.
  function load(result) {
    const parts = [];
    if (Number.isFinite(finite(result.num_prompts))) parts.push(plural(result.num_prompts, "request"));
    if (isInfinite(result.request_rate)) parts.push("sent at once");
    else if (finite(result.request_rate) > 0) parts.push(`${number(result.request_rate)} per second`);
    if (finite(result.max_concurrency) > 0) parts.push(`at most ${number(result.max_concurrency)} at a time`);
    return parts.join(", ");
  }

  function header(kind, result, rest) {
    const model = typeof result.model_id === "string" ? result.model_id : "a model";
    document.title = `${kind} of ${model} · nibble`;
    const parts = [dateText(result.date), typeof result.backend === "string" ? `backend ${result.backend}` : "", rest];
    return html("header", {}, html("h1", {}, `${kind} of ${model}`), html("p", {class: "muted"}, parts.filter((part) => part !== "").join(" · ")));
  }

  function headline(result, summary) {
    const row = (name) => summary.rows.find((one) => one.name === name)?.values ?? {};
    const pair = (name) => {
      const {p50, p99} = row(name);
      return [p50 ?? NaN, (value) => seconds(value), "median", Number.isFinite(p99) ? `p99 ${seconds(p99)}` : ""];
    };
    const goodput = finite(result.request_goodput ?? result["request_goodput:"]);
    const good = goodput / finite(result.request_throughput);
    return tiles([
      ["Output", finite(result.output_throughput), compact, "tokens/s", Number.isFinite(finite(result.total_token_throughput)) ? `${compact(result.total_token_throughput)} with prompts` : ""],
      ["Requests", finite(result.request_throughput), number, "per second", Number.isFinite(finite(result.completed)) ? `${number(result.completed)} in ${seconds(finite(result.duration))}` : ""],
      ["Goodput", goodput, number, "per second", Number.isFinite(good) ? `${percent(Math.min(1, good))} met the goals` : ""],
      ["First token", ...pair("ttft")],
      ["Between tokens", ...pair("itl")],
      ["Whole request", ...pair("e2el")],
    ]);
  }

  function summaryCard(summary) {
    const names = {mean: "mean", std: "std. dev.", p50: "median"};
    return card("summary-title", "Latency", "",
                table("Latency", ["Interval", ...summary.columns.map((column) => names[column] ?? column)],
                      summary.rows.map((row) => [`${row.title} (${row.short})`, ...summary.columns.map((column) => seconds(row.values[column]))])));
  }

  function courseCards(course, gapStride) {
    const common = {xRange: [0, course.end], xTicks: timeTicks, xFormat: seconds, yFormat: compact, area: true, height: 200};
    const make = (id, title, name, points, note, style) => {
      const holder = html("div", {});
      const most = maximum(points.map(([, value]) => value));
      create(holder).draw(lines({...common, title: `${title}: at most ${compact(most)}`, series: [{name, points, style}]}));
      return card(id, title, note, holder);
    };
    const cards = [];
    if (course.generated.some(([, value]) => value > 0)) {
      const sampled = gapStride > 1 ? `, drawn from one request in ${number(gapStride)}` : "";
      cards.push(make("throughput-title", "Output tokens per second", "Tokens/s", course.generated, `in steps of ${seconds(course.step)}${sampled}`, 1));
    }
    cards.push(make("concurrency-title", "Requests in progress", "Requests", course.running, `means over ${seconds(course.step)}`, 3));
    return html("div", {class: cards.length > 1 ? "cards two" : "cards"}, ...cards);
  }

  function timelineCard(all, course) {
    const drawn = all.filter((one) => Number.isFinite(one.start) && Number.isFinite(one.latency));
    const failed = drawn.some((one) => one.failed);
    return card("timeline-title", "Every request", timelineLegend(failed), timeline(drawn, course.end),
                html("p", {class: "note"}, "As many lines as requests ran at a time; a request takes the lowest that is free when it is sent."));
  }

  function slowest(all) {
    const worst = all.filter((one) => !one.failed && Number.isFinite(one.ttft)).sort((a, b) => b.ttft - a.ttft).slice(0, 5);
    return card("slowest-title", "Longest to the first token", "",
                table("Longest to the first token", ["Request", "sent at", "prompt tokens", "output tokens", "first token", "whole request"],
                      worst.map((one) => [number(one.number + 1), seconds(one.start), number(one.input), number(one.output), seconds(one.ttft), seconds(one.latency)])));
  }

  // Whether the client kept its own plan: one that did not has measured itself.
  function delays(all) {
    const sorted = all.map((one) => one.delay).filter(Number.isFinite).sort((a, b) => a - b);
    if (sorted.length === 0) return [];
    return [html("p", {class: "note"}, `The client’s own delay, from when a request was due until it was sent: ${seconds(percentile(sorted, 50))} median, ` +
        `${seconds(percentile(sorted, 99))} p99, ${seconds(sorted.at(-1))} at most.`)];
  }

  function failures(result, all) {
    const failed = finite(result.failed);
    const found = reportData.errors(all.filter((one) => one.error !== "interrupted"));
    const count = failed > 0 ? failed : found.reduce((sum, [, n]) => sum + n, 0);
    if (!(count > 0)) return [];
    const note = html("p", {class: "problem"}, html("strong", {}, `${plural(count, "request")} failed.`), " They count in no latency.");
    return found.length === 0 ? [note]
                              : [note, card("errors-title", "Errors", "", table("Errors", ["Message", "requests"], found.slice(0, kMaxErrors).map(([message, n]) => [message, number(n)])))];
  }

  function show(page, {result, gap_stride: gapStride}) {
    const all = reportData.requests(result);
    const sorted = reportData.latencies(all);
    const summary = reportData.summary(result, sorted);
    const course = reportData.courses(all, finite(result.duration), gapStride);
    const [problem, ...errors] = failures(result, all);
    page.replaceChildren(header("Load test", result, load(result)), ...(problem ? [problem] : []), headline(result, summary), ...errors);
    if (summary.rows.length > 0) page.append(summaryCard(summary));
    const distributions = Object.entries(kLatencies).filter(([name]) => sorted[name].length > 0).map(([name, about]) =>
        distribution(name, about, sorted[name], name === "itl" && gapStride > 1 ? `of one request in ${number(gapStride)}` : undefined));
    if (distributions.length > 0) page.append(html("div", {class: "cards two"}, ...distributions));
    if (course !== null) page.append(courseCards(course, gapStride), timelineCard(all, course), slowest(all));
    if (all.length === 0) page.append(html("p", {class: "card muted"}, "The result has no entries for each request: with --save-detailed there are distributions and a timeline."));
    page.append(...delays(all), settings(result));
  }

  return {show, header, load, isInfinite};
})();
