// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks and experts: cards that are there when /metrics has them.

import {samples, total} from "./exposition.js";

const {html, svg} = nibblePlot;
const {number, seconds, percent, plural, maximum} = nibbleNumbers;
const byId = (id) => document.getElementById(id);

function headRow(names) {
  return html("thead", {}, html("tr", {}, ...names.map(([name, figure]) =>
      html("th", {scope: "col", class: figure ? "figure" : ""}, name))));
}

export function table(names, rows, label) {
  return html("table", {"aria-label": label}, headRow(names), html("tbody", {}, ...rows.map((row) =>
      html("tr", {}, ...row.map((cell, i) => i === 0 ? html("th", {scope: "row"}, cell)
                                                     : html("td", {class: names[i][1] ? "figure" : ""}, cell))))));
}

// Elements are made anew when what they say has changed, not every second: who has selected or is reading one keeps it.
export function replaceIfNew(holder, content, make) {
  const key = JSON.stringify(content);
  if (holder.shownContent === key) return;
  holder.shownContent = key;
  holder.replaceChildren(...make());
}

function bytes(text) {
  const value = Number(text);
  if (text === "" || !Number.isFinite(value)) return "any size";
  if (value >= 1 << 30) return `${number(value / (1 << 30))} GiB`;
  return value >= 1 << 20 ? `${number(value / (1 << 20))} MiB` : value >= 1024 ? `${number(value / 1024)} KiB` : `${value} B`;
}

export function showRanks(families) {
  const up = samples(families, "nibble:rank_up");
  byId("ranks-card").hidden = up.length === 0;
  if (up.length === 0) return;
  const losses = samples(families, "nibble:rank_losses_total");
  const numUp = up.filter((rank) => rank.value === 1).length;
  const outage = total(families, "nibble:outage_seconds_total") ?? 0;
  byId("ranks-note").textContent =
      `${numUp} of ${up.length} up · group ${number(total(families, "nibble:group_generation") ?? NaN)} · ` +
      (outage > 0 ? `${seconds(outage)} of outage since the start` : "no outage since the start");
  const sorted = [...up].sort((a, b) => Number(a.labels.rank) - Number(b.labels.rank));
  replaceIfNew(byId("ranks"), [sorted, losses], () => sorted.map(({labels, value}) => {
    const lost = losses.filter((one) => one.labels.rank === labels.rank && one.value > 0);
    const reasons = lost.map((one) => `${one.labels.reason} ${number(one.value)}×`).join(", ");
    return html("li", {class: "rank", "data-up": String(value)},
                html("p", {}, html("strong", {}, `Rank ${labels.rank}`), html("span", {class: "muted"}, ` node ${labels.node}`)),
                html("p", {class: "rank-state"}, html("span", {class: "dot", "aria-hidden": "true"}), value === 1 ? "Up" : "Down"),
                html("p", {class: "note"}, lost.length > 0 ? `Lost: ${reasons}` : "Never lost"));
  }));
  const sums = samples(families, "nibble:all_reduce_info").map((one) => one.labels);
  sums.sort((a, b) => (Number(a.up_to_bytes) || Infinity) - (Number(b.up_to_bytes) || Infinity));
  replaceIfNew(byId("sums"), sums, () => (sums.length === 0 ? [] : [
    table([["Sums of up to"], ["Algorithm"], ["Codec"]],
          sums.map((one) => [bytes(one.up_to_bytes), one.algorithm, one.codec]), "How sums travel")]));
}

// Tokens of each expert since `before`, as [[layer, [tokens of expert 0, ...]], ...].
function expertTokens(families, before) {
  const layers = new Map();
  const start = new Map(before.map(({labels, value}) => [`${labels.layer} ${labels.expert}`, value]));
  for (const {labels, value} of samples(families, "nibble:moe_expert_tokens_total")) {
    if (!layers.has(labels.layer)) layers.set(labels.layer, []);
    layers.get(labels.layer)[Number(labels.expert)] = value - (start.get(`${labels.layer} ${labels.expert}`) ?? 0);
  }
  return [...layers].sort((a, b) => Number(a[0]) - Number(b[0]));
}

const kGap = 0.35;  // percent of the row

// A row of squares for each layer; the darker, the more of the layer's tokens went to that expert.
function layerRow(layer, tokens, balance) {
  const all = tokens.reduce((sum, value) => sum + value, 0);
  const most = maximum(tokens);
  const busiest = tokens.indexOf(most);
  const said = all === 0 ? "no tokens yet"
                         : `expert ${busiest} took ${percent(most / all)}, an even share is ${percent(1 / tokens.length)}`;
  const cells = svg("svg", {
    class: "expert-row", role: "img", "aria-label": `Layer ${layer}: ${said}`,
  });
  tokens.forEach((value, i) => {
    const share = all === 0 ? 0 : value / all;
    const cell = svg("rect", {
      class: "fill series-1", x: `${(i * 100) / tokens.length}%`, y: 1, width: `${Math.max(0.1, 100 / tokens.length - kGap)}%`,
      height: 20, rx: tokens.length > 32 ? 1 : 4,
      // Twice an even share is full colour.
      "fill-opacity": (0.06 + 0.94 * Math.min(1, (share * tokens.length) / 2)).toFixed(3),
    });
    cell.append(svg("title", {}, `Expert ${i}: ${plural(value, "token")}, ${percent(share)}`));
    cells.append(cell);
  });
  return html("div", {class: "expert-layer"}, html("p", {class: "note number"}, `Layer ${layer}`), cells,
              html("p", {class: "note number"}, balance === undefined ? "" : percent(balance)));
}

export class Experts {
  constructor() {
    this.start = null;  // the counters when the page first saw them
  }

  show(families) {
    const balance = new Map(samples(families, "nibble:moe_balancedness").map(({labels, value}) => [labels.layer, value]));
    byId("experts-card").hidden = balance.size === 0;
    if (balance.size === 0) return;
    const counters = samples(families, "nibble:moe_expert_tokens_total");
    const sum = (list) => list.reduce((all, one) => all + one.value, 0);
    if (this.start === null || sum(this.start) > sum(counters)) this.start = counters;
    const sinceOpened = sum(counters) > sum(this.start);
    const rows = expertTokens(families, sinceOpened ? this.start : []);
    byId("experts-note").textContent = rows.length > 0
        ? `each expert’s share of its layer’s tokens ${sinceOpened ? "since this page was opened" : "since the start"}; on the right, how even the ranks’ work is`
        : "how even the ranks’ work is; this model has too many experts for a counter each";
    if (rows.length === 0) {
      const values = [...balance].map(([layer, value]) => [layer, percent(value)]);
      replaceIfNew(byId("experts"), values, () => [table([["Layer"], ["Balance of ranks", true]], values, "Balance of ranks by layer")]);
    } else {
      replaceIfNew(byId("experts"), [rows, [...balance]],
                   () => rows.map(([layer, tokens]) => layerRow(layer, tokens, balance.get(layer))));
    }
  }
}
