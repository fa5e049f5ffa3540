// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The report's own plots: distributions, and the timeline of all requests.
"use strict";

const reportPlots = (() => {
  const {html, svg, bars, create, scrollable} = nibblePlot;
  const {number, compact, seconds, percent, percentile, plural, ticks} = nibbleNumbers;
  const kBars = 36;

  function card(id, title, note, ...content) {
    return html("section", {class: "card", "aria-labelledby": id},
                html("div", {class: "card-head"}, html("h2", {id}, title), typeof note === "string" ? html("p", {class: "note"}, note) : note),
                ...content);
  }

  function distribution(name, {title, short}, sorted, note) {
    const marks = [50, 90, 99].map((p) => [p, percentile(sorted, p)]);
    const figures = html("dl", {class: "figures"}, ...marks.map(([p, value]) =>
        html("div", {}, html("dt", {}, `p${p}`), html("dd", {}, seconds(value)))));
    const holder = html("div", {});
    const {counts, edges, open} = reportData.histogram(sorted, kBars);
    const width = edges[1] - edges[0];
    const last = counts.length - 1;
    create(holder).draw(bars({
      title: `${title}: ${marks.map(([p, value]) => `p${p} ${seconds(value)}`).join(", ")}`,
      height: 180, yFormat: compact, edges: edges.map((edge, i) => (open && i === edges.length - 1 ? "more" : seconds(edge))),
      bars: counts.map((value, i) => ({
        value, tip: `${seconds(edges[i])} ${open && i === last ? "and more" : `to ${seconds(edges[i + 1])}`}\n` +
            `${plural(value, "time")}, ${percent(value / sorted.length)}`,
      })),
      rules: marks.map(([p, value]) => ({at: Math.min(counts.length - 0.5, (value - edges[0]) / width), label: `p${p}`})),
    }));
    const counted = html("p", {class: "note number"}, note ?? `${number(sorted.length)} values`);
    return card(`${name}-title`, `${title} (${short})`, counted, figures, holder);
  }

  const kAxis = 30;
  const kLeft = 52;
  const kRight = 14;

  // Each request gets the first lane that is free when it starts, as in a car park: there are as many lanes as requests
  // that ran at a time, however many there were. [{one, lane}, ...] and the number of lanes.
  function lanes(rows) {
    const free = [];  // when the last request of each lane ends
    const placed = rows.map((one) => {
      let lane = free.findIndex((end) => end <= one.start);
      if (lane < 0) lane = free.push(0) - 1;
      free[lane] = one.start + one.latency;
      return {one, lane};
    });
    return {placed, count: free.length};
  }

  // Thousands of requests: a canvas holds them, an SVG the axes.
  function timeline(rows, end) {
    const {placed, count} = lanes(rows);
    const height = Math.round(Math.min(480, Math.max(48, count * 14)));
    const canvas = html("canvas", {"aria-hidden": "true"});
    const holder = html("div", {});
    const title = `Timeline of ${plural(rows.length, "request")} over ${seconds(end)}, up to ${number(count)} at a time`;
    create(holder).draw((width) => {
      const inner = Math.max(1, width - kLeft - kRight);
      const x = (time) => kLeft + (time / end) * inner;
      const root = svg("svg", {height: height + kAxis, viewBox: `0 0 ${width} ${height + kAxis}`, role: "img", "aria-label": title});
      for (const tick of ticks(0, end, Math.max(2, Math.floor(width / 110)))) {
        root.append(svg("line", {class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: height + 4}),
                    svg("text", {x: x(tick), y: height + 20, "text-anchor": "middle"}, seconds(tick)));
      }
      for (const tick of ticks(0, count, 4).filter((one) => one > 0 && Number.isInteger(one))) {
        root.append(svg("text", {x: kLeft - 8, y: height - ((tick - 0.5) / count) * height + 4, "text-anchor": "end"}, compact(tick)));
      }
      const picture = svg("foreignObject", {x: kLeft, y: 0, width: inner, height});
      paint(canvas, {placed, count, width: inner, height, end});
      picture.append(canvas);
      const cursor = svg("line", {class: "cursor", y1: 0, y2: height, visibility: "hidden"});
      root.append(picture, cursor);
      const tip = (px, py) => {
        const found = nearest(placed, Math.floor(((height - py) / height) * count), ((px - kLeft) / inner) * end, (4 / inner) * end);
        return found ? {text: describe(found.one), x: px} : null;
      };
      return {root, tip, cursor};
    });
    return holder;
  }

  // The request of that lane that runs at `time`, or did within `slack`.
  function nearest(placed, lane, time, slack) {
    return placed.find(({one, lane: its}) => its === lane && time >= one.start - slack && time <= one.start + one.latency + slack);
  }

  // Colours that can be told apart on white and on black: what is painted in one theme may be printed in the other.
  const kColors = {waiting: "#d9822b", decoding: "#1d9484", failed: "#d0433a"};

  function paint(canvas, {placed, count, width, height, end}) {
    const scale = Math.min(3, window.devicePixelRatio || 1);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    const row = canvas.height / count;
    const thick = row > 3 ? row - Math.max(scale, row * 0.2) : row;
    const x = (time) => (time / end) * canvas.width;
    const bar = (from, to, lane, color) => {
      context.fillStyle = color;
      context.fillRect(from, canvas.height - (lane + 1) * row + (row - thick) / 2, Math.max(1, to - from), thick);
    };
    for (const {one, lane} of placed) {
      const [from, to] = [x(one.start), x(one.start + one.latency)];
      const stop = to - from > 4 * scale ? to - scale : to;  // so that neighbours are seen to be two
      if (one.failed) {
        bar(from, stop, lane, kColors.failed);
        continue;
      }
      const first = Number.isFinite(one.ttft) ? Math.min(stop, x(one.start + one.ttft)) : stop;
      bar(from, first, lane, kColors.waiting);
      if (first < stop) bar(first, stop, lane, kColors.decoding);
    }
  }

  function describe(one) {
    const lines = [`Request ${one.number + 1}, sent at ${seconds(one.start)}`];
    if (Number.isFinite(one.input)) lines.push(`${plural(one.input, "prompt token")}, ${plural(one.output, "output token")}`);
    if (one.failed && one.error === "interrupted") lines.push(`interrupted after ${seconds(one.latency)}`);
    else if (one.failed) lines.push(`failed after ${seconds(one.latency)}: ${one.error.slice(0, 60)}`);
    else lines.push(`first token after ${seconds(one.ttft)}, all after ${seconds(one.latency)}`);
    return lines.join("\n");
  }

  function timelineLegend(anyFailed) {
    const names = [["waiting", "Until the first token"], ["decoding", "Until the last"], ...(anyFailed ? [["failed", "Failed"]] : [])];
    return html("ul", {class: "legend"}, ...names.map(([key, name]) =>
        html("li", {}, svg("svg", {viewBox: "0 0 22 10", "aria-hidden": "true"}, svg("rect", {fill: kColors[key], x: 4, width: 14, height: 10, rx: 2})), name)));
  }

  function table(label, columns, rows) {
    return scrollable(html("div", {class: "table-scroll"}, html("table", {"aria-label": label},
        html("thead", {}, html("tr", {}, ...columns.map((name, i) => html("th", {scope: "col", class: i === 0 ? "" : "figure"}, name)))),
        html("tbody", {}, ...rows.map((cells) => html("tr", {}, ...cells.map((cell, i) =>
            i === 0 ? html("th", {scope: "row"}, cell) : html("td", {class: "figure"}, cell))))))), label);
  }

  function tiles(entries) {
    return html("dl", {class: "tiles"}, ...entries.filter(([, value]) => Number.isFinite(value)).map(([name, value, format, unit, note]) =>
        html("div", {class: "tile"}, html("dt", {}, name),
             html("dd", {class: "value"}, format(value), " ", html("span", {class: "unit"}, unit)), html("dd", {class: "note"}, note ?? ""))));
  }

  // Every key that is one value, as it is in the JSON.
  function settings(result) {
    const rows = Object.entries(result).filter(([, value]) => value !== null && typeof value !== "object").map(([key, value]) => [key, String(value)]);
    return html("details", {class: "card"}, html("summary", {}, "All figures and settings"), table("All figures and settings", ["Key", "Value"], rows));
  }

  return {card, distribution, timeline, timelineLegend, table, tiles, settings};
})();
