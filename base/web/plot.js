// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Plots as SVG: lines over an axis, and bars. Drawn anew whenever the data or the element's width
// change. Colours are classes of theme.css, so that dark, light and print need no redrawing; text
// is only ever set as text. A classic script; everything is in nibblePlot.
//
//   const plot = nibblePlot.create(element);
//   plot.draw(nibblePlot.lines({title, series: [{name, points: [[x, y], ...]}], ...}));
"use strict";

const nibblePlot = (() => {
  const kNamespace = "http://www.w3.org/2000/svg";

  function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS(kNamespace, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function html(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // Keeps what was drawn last, so that it can be drawn for another width. `drawing` is a function
  // of the width that gives {root: <svg>, tip(x, y)?: {text, x}}.
  function create(element) {
    element.classList.add("plot");
    let drawing = null;
    let drawn = null;
    let pointer = null;  // [x, y] inside the element while a pointer is over it
    let width = 0;
    const tip = html("div", {class: "plot-tip", hidden: ""});

    function showTip() {
      const found = pointer && drawn?.tip?.(pointer[0], pointer[1]);
      tip.hidden = !found;
      drawn?.cursor?.setAttribute("visibility", found ? "visible" : "hidden");
      if (!found) return;
      tip.textContent = found.text;
      drawn.cursor?.setAttribute("transform", `translate(${found.x} 0)`);
      const right = found.x + 14 + tip.offsetWidth > width;
      const left = right ? Math.max(0, found.x - 14 - tip.offsetWidth) : found.x + 14;
      tip.style.transform = `translate(${left}px, ${Math.max(0, pointer[1] - tip.offsetHeight - 8)}px)`;
    }

    function redraw() {
      width = element.clientWidth;
      if (drawing === null || width === 0) return;
      drawn = drawing(width);
      element.replaceChildren(drawn.root, tip);
      showTip();
    }

    element.addEventListener("pointermove", (event) => {
      const box = element.getBoundingClientRect();
      pointer = [event.clientX - box.left, event.clientY - box.top];
      showTip();
    });
    element.addEventListener("pointerleave", () => {
      pointer = null;
      showTip();
    });
    new ResizeObserver(() => {
      if (element.clientWidth !== width) redraw();
    }).observe(element);
    return {
      draw(next) {
        drawing = next;
        redraw();
      },
    };
  }

  const kMargin = {top: 12, right: 14, bottom: 24, left: 52};

  // An SVG with the grid and the labels of both axes; {root, x(value), y(value), area}.
  function axes(width, {title, height, xRange, yRange, xTicks, yTicks, xFormat, yFormat, margin = kMargin}) {
    const area = {
      left: margin.left, top: margin.top, right: Math.max(margin.left + 1, width - margin.right),
      bottom: height - margin.bottom,
    };
    const x = (value) => area.left + ((value - xRange[0]) / (xRange[1] - xRange[0])) * (area.right - area.left);
    const y = (value) => area.bottom - ((value - yRange[0]) / (yRange[1] - yRange[0])) * (area.bottom - area.top);
    const root = svg("svg", {height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title});
    for (const tick of yTicks) {
      const at = Math.round(y(tick)) + 0.5;
      root.append(
          svg("line", {class: "grid", x1: area.left, x2: area.right, y1: at, y2: at}),
          svg("text", {x: area.left - 8, y: at + 3.5, "text-anchor": "end"}, yFormat(tick)));
    }
    let end = -Infinity;  // of the label before, so that none stands on another
    for (const tick of xTicks) {
      const text = xFormat(tick);
      const half = text.length * 3.2;
      const at = Math.min(Math.max(x(tick), half), width - half);
      if (at - half < end + 8) continue;
      end = at + half;
      root.append(svg("text", {x: at, y: height - 6, "text-anchor": "middle"}, text));
    }
    return {root, x, y, area};
  }

  function emptyNote(root, width, height, text) {
    root.append(svg("text", {class: "empty", x: width / 2, y: height / 2}, text));
  }

  // Series share the axes. A point whose y is null ends a line; a single point is drawn as a dot.
  //   {title, series: [{name, points, style?}], height?, xRange?, xTicks?, xFormat, yFormat, yMax?, yMin?, area?,
  //    dots?, empty?, labels?: [[x, y, text]]}
  function lines(options) {
    const {title, series, height = 190, xFormat, yFormat, area: filled = false, dots = false, empty = "Nothing yet",
           labels = []} = options;
    const numbers = nibbleNumbers;
    const points = series.flatMap((one) => one.points.filter((point) => point[1] !== null));
    const xs = points.map((point) => point[0]);
    const xRange = options.xRange ?? [Math.min(0, -numbers.maximum(xs.map((v) => -v))), numbers.maximum(xs)];
    if (!(xRange[1] > xRange[0])) xRange[1] = xRange[0] + 1;
    const top = options.yMax ?? Math.max(numbers.maximum(points.map((point) => point[1])), options.yMin ?? 0);
    const yRange = [0, top > 0 && Number.isFinite(top) ? top : 1];
    const yTicks = numbers.ticks(0, yRange[1], height > 150 ? 4 : 3);
    if (options.yMax === undefined && yTicks.length > 1) {  // up to the next round value
      const step = yTicks[1] - yTicks[0];
      yRange[1] = Math.ceil(yRange[1] / step - 1e-9) * step;
      if (yTicks.at(-1) < yRange[1] - step / 2) yTicks.push(yRange[1]);
    }
    return (width) => {
      const xTicks = (options.xTicks ?? numbers.ticks)(xRange[0], xRange[1], Math.max(2, Math.floor(width / 110)));
      const frame = axes(width, {title, height, xRange, yRange, xTicks, yTicks, xFormat, yFormat});
      if (points.length === 0) emptyNote(frame.root, width, height, empty);
      series.forEach((one, i) => drawSeries(frame, one, one.style ?? i + 1, {filled: filled && i === 0, dots, solid: series.length === 1}));
      for (const [px, py, text] of labels) {
        frame.root.append(svg("text", {class: "rule-label", x: frame.x(px) + 8, y: frame.y(py) - 8}, text));
      }
      const cursor = svg("line", {class: "cursor", y1: frame.area.top, y2: frame.area.bottom, visibility: "hidden"});
      frame.root.append(cursor);
      return {root: frame.root, cursor, tip: (px) => nearest(frame, series, px, xFormat, yFormat)};
    };
  }

  function drawSeries(frame, one, style, {filled, dots, solid}) {
    const runs = [];
    let run = null;
    for (const [px, py] of one.points) {
      if (py === null) {
        run = null;
        continue;
      }
      if (run === null) runs.push((run = []));
      run.push([frame.x(px), frame.y(py)]);
    }
    for (const at of runs) {
      const path = at.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
      if (filled && at.length > 1) {
        const bottom = frame.area.bottom;
        frame.root.append(svg("path", {
          class: `area fill series-${style}`, d: `M${at[0][0].toFixed(1)} ${bottom}L${path}L${at.at(-1)[0].toFixed(1)} ${bottom}Z`,
        }));
      }
      if (at.length > 1) frame.root.append(svg("path", {class: `line series-${style}${solid ? " solid" : ""}`, d: `M${path}`}));
      for (const [px, py] of dots ? at : at.length === 1 ? at : []) {
        frame.root.append(svg("circle", {class: `fill series-${style}`, cx: px, cy: py, r: dots ? 4 : 2.5}));
      }
    }
  }

  // All series' values at the x that is nearest to the pointer.
  function nearest(frame, series, px, xFormat, yFormat) {
    let best = null;
    for (const one of series) {
      for (const [x, y] of one.points) {
        if (y === null) continue;
        const distance = Math.abs(frame.x(x) - px);
        if (best === null || distance < best.distance) best = {x, distance};
      }
    }
    if (best === null || best.distance > 60) return null;
    const rows = [xFormat(best.x)];
    for (const one of series) {
      const point = one.points.find(([x, y]) => x === best.x && y !== null);
      if (point) rows.push(`${one.name}  ${(one.tipFormat ?? yFormat)(point[1])}${point[2] ? `  (${point[2]})` : ""}`);
    }
    return {text: rows.join("\n"), x: frame.x(best.x)};
  }

  // Bars side by side, each with a name or the range it counts; rules mark values between them.
  //   {title, bars: [{value, label, tip}], rules?: [{at, label}], height?, yFormat, style?, empty?, edges?: [text],
  //    yMax?}
  // `at` is counted in bars from the left. `edges`, one more than bars, labels the borders instead.
  function bars(options) {
    const {title, bars: values, rules = [], height = 190, yFormat, style = 1, empty = "Nothing yet", edges} = options;
    const top = options.yMax ?? nibbleNumbers.maximum(values.map((bar) => bar.value));
    const yRange = [0, top > 0 ? top : 1];
    const any = values.some((bar) => bar.value > 0);
    return (width) => {
      const labels = edges ?? values.map((bar) => bar.label);
      const offset = edges ? 0 : 0.5;
      const frame = axes(width, {
        title, height, xRange: [0, Math.max(1, values.length)], yRange,
        yTicks: any ? nibbleNumbers.ticks(0, yRange[1], 3) : [],
        xTicks: any ? labels.map((_, i) => i + offset) : [],
        xFormat: (at) => labels[Math.floor(at)], yFormat,
        margin: {...kMargin, top: rules.length > 0 ? 26 : kMargin.top},
      });
      if (!any) emptyNote(frame.root, width, height, empty);
      const gap = width / values.length > 12 ? 2 : width / values.length > 5 ? 1 : 0;
      values.forEach((bar, i) => {
        if (!(bar.value > 0)) return;
        const size = Math.max(1, frame.area.bottom - frame.y(bar.value));
        frame.root.append(svg("rect", {
          class: `fill series-${bar.style ?? style}`, x: frame.x(i) + gap / 2, y: frame.area.bottom - size,
          width: Math.max(0.75, frame.x(i + 1) - frame.x(i) - gap), height: size, rx: gap > 0 ? 1.5 : 0,
        }));
      });
      drawRules(frame, width, any ? rules : []);
      const tip = (px) => {
        const at = Math.floor(((px - frame.area.left) / (frame.area.right - frame.area.left)) * values.length);
        return values[at]?.value > 0 ? {text: values[at].tip ?? values[at].label, x: frame.x(at + 0.5)} : null;
      };
      return {root: frame.root, tip};
    };
  }

  // Labels stand above the plot; one that would touch the one before goes a line higher or away.
  function drawRules(frame, width, rules) {
    let end = -Infinity;
    for (const rule of [...rules].sort((a, b) => a.at - b.at)) {
      const x = frame.x(rule.at);
      frame.root.append(svg("line", {class: "rule", x1: x, x2: x, y1: frame.area.top - 4, y2: frame.area.bottom}));
      const half = rule.label.length * 3.1;
      const at = Math.min(Math.max(x, half), width - half);
      if (at - half < end + 6) continue;
      end = at + half;
      frame.root.append(svg("text", {class: "rule-label", x: at, y: frame.area.top - 9, "text-anchor": "middle"}, rule.label));
    }
  }

  // A list that says which line or colour is which.
  function legend(names, {filled = false} = {}) {
    return html("ul", {class: "legend"}, ...names.map((name, i) => {
      const key = filled ? svg("rect", {class: `fill series-${i + 1}`, x: 5, width: 12, height: 10, rx: 2})
                         : svg("line", {class: `line series-${i + 1}`, x1: 1, x2: 21, y1: 5, y2: 5});
      return html("li", {}, svg("svg", {viewBox: "0 0 22 10", "aria-hidden": "true"}, key), name);
    }));
  }

  // Keyboards reach what scrolls sideways, and only while it does.
  function scrollable(element, label) {
    new ResizeObserver(() => {
      const attributes = {tabindex: "0", role: "group", "aria-label": label};
      for (const [name, value] of Object.entries(attributes)) {
        if (element.scrollWidth > element.clientWidth) element.setAttribute(name, value);
        else element.removeAttribute(name);
      }
    }).observe(element);
    return element;
  }

  return {create, lines, bars, legend, scrollable, svg, html};
})();
