// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One card for each latency: percentiles, and how many fell into which bucket.

import {count, quantile, since} from "./exposition.js";
import {kLatencies} from "./samples.js";

const {html, bars, create} = nibblePlot;
const {seconds, number, plural, percent} = nibbleNumbers;
const kMinBars = 6;

function card(name, {title, short}) {
  const figures = html("dl", {class: "figures"});
  const plot = html("div", {});
  const counted = html("p", {class: "note number"});
  const root = html("section", {class: "card", "aria-labelledby": `${name}-title`},
                    html("div", {class: "card-head"}, html("h3", {id: `${name}-title`}, title, " ", html("abbr", {class: "note"}, short)), counted),
                    figures, plot);
  return {root, figures, counted, plot: create(plot)};
}

// The buckets that hold something, and a few around them.
function shown(one) {
  const used = one.counts.flatMap((value, i) => (value > 0 ? [i] : []));
  let first = used[0] ?? 0;
  let last = used.at(-1) ?? kMinBars - 1;
  for (let side = 0; last - first + 1 < kMinBars && (first > 0 || last < one.counts.length - 1); ++side) {
    if (side % 2 === 0 && first > 0) --first;
    else if (last < one.counts.length - 1) ++last;
  }
  return [first, last];
}

function edge(bound) {
  return bound === Infinity ? "∞" : seconds(bound);
}

function percentileText(found) {
  if (!found) return "–";
  return found.beyond ? `over ${seconds(found.value)}` : seconds(found.value);
}

export class Latencies {
  constructor(holder) {
    this.cards = Object.fromEntries(Object.entries(kLatencies).map(([name, about]) => [name, card(name, about)]));
    holder.append(...Object.values(this.cards).map((one) => one.root));
  }

  // `before` is the sample that the period begins with, or null for all since the server's start.
  show(sample, before) {
    for (const [name, {title}] of Object.entries(kLatencies)) {
      const now = sample.latencies[name];
      if (now) this.#draw(this.cards[name], title, since(before?.latencies[name], now));
    }
  }

  #draw(one, title, found) {
    const all = count(found);
    const percentiles = [50, 90, 99].map((p) => ({p, found: quantile(found, p / 100)}));
    one.counted.textContent = all > 0 ? `${number(all)} counted` : "";
    one.figures.replaceChildren(...percentiles.map(({p, found: at}) =>
        html("div", {}, html("dt", {}, `p${p}`), html("dd", {}, percentileText(at)))));
    const [first, last] = shown(found);
    const range = found.counts.slice(first, last + 1);
    one.plot.draw(bars({
      title: all === 0 ? `${title}: nothing in this period`
                       : `${title}: ${percentiles.map(({p, found: at}) => `p${p} ${percentileText(at)}`).join(", ")}`,
      height: 150,
      yFormat: percent,
      edges: [first === 0 ? "0" : edge(found.bounds[first - 1]), ...range.map((_, i) => edge(found.bounds[first + i]))],
      bars: range.map((value, i) => ({
        value: all === 0 ? 0 : value / all,
        tip: `${first + i === 0 ? "0" : edge(found.bounds[first + i - 1])} to ${edge(found.bounds[first + i])}\n${plural(value, "time")}, ${percent(value / all)}`,
      })),
      rules: percentiles.filter(({p, found: at}) => at && p !== 90).map(({p, found: at}) => ({at: at.position - first, label: `p${p}`})),
      empty: "Nothing in this period",
    }));
  }
}
