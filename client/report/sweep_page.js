// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The page of a sweep, and what begins either page.
"use strict";

const sweepPage = (() => {
  const {html, lines, legend, create} = nibblePlot;
  const {number, compact, seconds, plural} = nibbleNumbers;
  const {card, table, settings} = reportPlots;
  const {finite, kLatencies} = reportData;

  // What differs from run to run: the rate, else the concurrency.
  function variable(runs) {
    const candidates = [
      {key: "request_rate", title: "Rate", unit: "/s"}, {key: "max_concurrency", title: "Concurrency", unit: " at a time"}];
    const varied = candidates.filter(({key}) => new Set(runs.map((run) => run[key])).size > 1);
    const {key, title, unit} = varied[0] ?? candidates[0];
    const value = (run) => (reportPage.isInfinite(run[key]) ? Infinity : finite(run[key]));
    return {title, value, text: (run) => (value(run) === Infinity ? "no limit" : Number.isFinite(value(run)) ? `${number(value(run))}${unit}` : "–")};
  }

  function curve(name, {title, short}, runs, swept) {
    const at = (run, key) => finite(run[`${key}_${name}_ms`]) / 1e3;
    const series = [["median", "median"], ["p99", "p99"]].map(([key, label]) => ({
      name: label,
      points: runs.filter((run) => Number.isFinite(at(run, key)) && Number.isFinite(finite(run.output_throughput)))
                  .map((run) => [run.output_throughput, at(run, key), swept.text(run)]),
    })).filter((one) => one.points.length > 0);
    if (series.length === 0) return null;
    const holder = html("div", {});
    const labels = series[0].points.map(([x, y, text]) => [x, y, text]);
    create(holder).draw(lines({
      title: `${title} by output throughput, over ${plural(runs.length, "run")}`, series, xFormat: compact, yFormat: seconds,
      xRange: [0, nibbleNumbers.maximum(series.flatMap((one) => one.points.map(([x]) => x))) * 1.08], dots: true, height: 240, labels,
    }));
    return card(`${name}-title`, `${title} (${short})`, legend(series.map((one) => one.name)), holder,
                html("p", {class: "note axis"}, "output tokens per second"));
  }

  function runsTable(runs, swept) {
    const latency = (run, key) => (Number.isFinite(finite(run[key])) ? seconds(run[key] / 1e3) : "–");
    const goodput = runs.some((run) => Number.isFinite(finite(run.request_goodput)));
    return card("runs-title", "Runs", "", table(
        "Runs", [swept.title, "output tokens/s", "requests/s", ...(goodput ? ["goodput/s"] : []), "TTFT median", "TTFT p99", "TPOT median", "TPOT p99", "E2E p99", "failed"],
        runs.map((run) => [
          swept.text(run), number(finite(run.output_throughput)), number(finite(run.request_throughput)), ...(goodput ? [number(finite(run.request_goodput))] : []),
          latency(run, "median_ttft_ms"), latency(run, "p99_ttft_ms"), latency(run, "median_tpot_ms"), latency(run, "p99_tpot_ms"), latency(run, "p99_e2el_ms"),
          number(finite(run.failed)),
        ])));
  }

  function show(page, {results}) {
    const swept = variable(results);
    const order = (run) => (Number.isNaN(swept.value(run)) ? -1 : swept.value(run));
    const runs = [...results].sort((a, b) => order(a) - order(b) || finite(a.output_throughput) - finite(b.output_throughput));
    page.replaceChildren(reportPage.header("Sweep", runs[0] ?? {}, `${plural(runs.length, "run")} by ${swept.title.toLowerCase()}`));
    if (runs.length === 0) return page.append(html("p", {class: "card muted"}, "The sweep has no runs."));
    const failed = runs.filter((run) => finite(run.failed) > 0).length;
    if (failed > 0) page.append(html("p", {class: "problem"}, `In ${plural(failed, "run")} requests failed; they count in no latency.`));
    const curves = Object.entries(kLatencies).map(([name, about]) => curve(name, about, runs, swept)).filter((one) => one !== null);
    if (curves.length > 0) page.append(html("div", {class: "cards two"}, ...curves));
    page.append(runsTable(runs, swept), settings(runs[0]));
  }

  return {show};
})();

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  (data.kind === "sweep" ? sweepPage : reportPage).show(page, data);
  // Folded on screen, but part of what is printed.
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
})();
