// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How the server is, from its own metrics: {state, text, problem}. `state` is one of ready, busy, degraded, down; `text`
// says it in two words, `problem` in a sentence, "" where all is well.

import {getJson} from "./api.js";
import {samples, total} from "./exposition.js";

const {number, percent, plural} = nibbleNumbers;

const kStates = {  // of nibble:health_state
  loading: {state: "degraded", text: "Loading"},
  stalled: {state: "down", text: "Stalled"},
  broken: {state: "degraded", text: "Ranks lost"},
  draining: {state: "degraded", text: "Shutting down"},
  failed: {state: "down", text: "Failed"},
};

export async function stateOf(families) {
  const name = samples(families, "nibble:health_state").find((one) => one.value === 1)?.labels.state;
  const known = kStates[name];
  if (known) {
    let {text} = known;
    let problem = `The server is ${name}.`;
    try {
      const {reason, progress} = await getJson("health/live");
      if (typeof reason === "string" && reason !== "") problem = `${reason.charAt(0).toUpperCase()}${reason.slice(1)}${reason.endsWith(".") ? "" : "."}`;
      if (progress > 0) text = `Loading, ${percent(Math.round(progress * 100) / 100)}`;
    } catch {
      // Then without its reason.
    }
    return {state: known.state, text, problem};
  }
  const down = samples(families, "nibble:rank_up").filter((rank) => rank.value !== 1).length;
  if (down > 0) {
    return {
      state: "degraded", text: `${plural(down, "rank")} down`,
      problem: `${plural(down, "rank")} ${down === 1 ? "is" : "are"} down. Requests wait until the group is whole again.`,
    };
  }
  const running = total(families, "vllm:num_requests_running") ?? 0;
  const waiting = total(families, "vllm:num_requests_waiting") ?? 0;
  if (running + waiting === 0) return {state: "ready", text: "Ready", problem: ""};
  const queue = waiting > 0 ? `, ${number(waiting)} waiting` : "";
  return {state: "busy", text: `${number(running)} running${queue}`, problem: ""};
}
