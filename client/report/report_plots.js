// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The report's own plots: distributions, and the timeline of all requests.
"use strict";

const reportPlots = (() => {
  const {html, svg, bars, create} = nibblePlot;
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

  // A row for each request, thousands of them: a canvas holds the rows, an SVG the axis.
  function timeline(all, end) {
    const rows = all.filter((one) => Number.isFinite(one.start) && Number.isFinite(one.latency));
    const height = Math.round(Math.min(520, Math.max(60, rows.length * 9)));
    const canvas = html("canvas", {"aria-hidden": "true"});
    const holder = html("div", {});
    const title = `Timeline of ${plural(rows.length, "request")} over ${seconds(end)}`;
    create(holder).draw((width) => {
      const inner = Math.max(1, width - kLeft - kRight);
      const x = (time) => kLeft + (time / end) * inner;
      const root = svg("svg", {height: height + kAxis, viewBox: `0 0 ${width} ${height + kAxis}`, role: "img", "aria-label": title});
      for (const tick of ticks(0, end, Math.max(2, Math.floor(width / 110)))) {
        root.append(svg("line", {class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: height + 4}),
                    svg("text", {x: x(tick), y: height + 20, "text-anchor": "middle"}, seconds(tick)));
      }
      for (const tick of ticks(0, rows.length, 4)) {
        if (tick > 0 && tick % 1 === 0 && tick <= rows.length) {
          root.append(svg("text", {x: kLeft - 8, y: ((tick - 0.5) / rows.length) * height + 4, "text-anchor": "end"}, compact(tick)));
        }
      }
      const picture = svg("foreignObject", {x: kLeft, y: 0, width: inner, height});
      paint(canvas, rows, inner, height, end);
      picture.append(canvas);
      const cursor = svg("line", {class: "cursor", y1: 0, y2: height, visibility: "hidden"});
      root.append(picture, cursor);
      const tip = (px, py) => {
        const one = rows[Math.floor((py / height) * rows.length)];
        return one && px >= kLeft && px <= width - kRight ? {text: describe(one), x: px} : null;
      };
      return {root, tip, cursor};
    });
    return holder;
  }

  // Colours that can be told apart on white and on black, as a picture of one theme may be printed in the other.
  const kColors = {waiting: "#d9822b", decoding: "#1d9484", failed: "#d0433a"};

  function paint(canvas, rows, width, height, end) {
    const scale = Math.min(3, window.devicePixelRatio || 1);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    const row = canvas.height / rows.length;
    const thick = Math.max(1, row > 3 ? row * 0.7 : row);
    const x = (time) => (time / end) * canvas.width;
    const bar = (from, to, y, color) => {
      context.fillStyle = color;
      context.fillRect(x(from), y, Math.max(1, x(to) - x(from)), thick);
    };
    rows.forEach((one, i) => {
      const y = i * row + (row - thick) / 2;
      const stop = one.start + one.latency;
      if (one.failed) return bar(one.start, stop, y, kColors.failed);
      const first = Number.isFinite(one.ttft) ? Math.min(stop, one.start + one.ttft) : stop;
      bar(one.start, first, y, kColors.waiting);
      if (first < stop) bar(first, stop, y, kColors.decoding);
    });
  }

  function describe(one) {
    const lines = [`Request ${one.number + 1}, sent at ${seconds(one.start)}`];
    if (Number.isFinite(one.input)) lines.push(`${plural(one.input, "prompt token")}, ${plural(one.output, "output token")}`);
    if (one.failed) lines.push(`failed after ${seconds(one.latency)}: ${one.error.slice(0, 60)}`);
    else lines.push(`first token after ${seconds(one.ttft)}, all after ${seconds(one.latency)}`);
    return lines.join("\n");
  }

  function timelineLegend(anyFailed) {
    const names = [["waiting", "Until the first token"], ["decoding", "Until the last"], ...(anyFailed ? [["failed", "Failed"]] : [])];
    return html("ul", {class: "legend"}, ...names.map(([key, name]) =>
        html("li", {}, svg("svg", {viewBox: "0 0 22 10", "aria-hidden": "true"}, svg("rect", {fill: kColors[key], x: 4, width: 14, height: 10, rx: 2})), name)));
  }

  function table(label, columns, rows) {
    return html("div", {class: "table-scroll"}, html("table", {"aria-label": label},
        html("thead", {}, html("tr", {}, ...columns.map((name, i) => html("th", {scope: "col", class: i === 0 ? "" : "figure"}, name)))),
        html("tbody", {}, ...rows.map((cells) => html("tr", {}, ...cells.map((cell, i) =>
            i === 0 ? html("th", {scope: "row"}, cell) : html("td", {class: "figure"}, cell)))))));
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
