// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which view is shown, and the state in the header.

import {Chat} from "./chat.js";
import {Live} from "./live.js";

const byId = (id) => document.getElementById(id);
const kTitles = {chat: "Chat", server: "Server"};

const chat = new Chat();
const live = new Live(({state, text}) => {
  byId("state").dataset.state = state;
  // The role is there for changes of state, not for every change of a number.
  byId("state-text").setAttribute("aria-live", state === "busy" || state === "ready" ? "off" : "polite");
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
});

function show(moveFocus) {
  const wanted = location.hash.slice(1);
  const view = Object.hasOwn(kTitles, wanted) ? wanted : "chat";
  for (const name of Object.keys(kTitles)) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${kTitles[view]} · nibble`;
  document.body.dataset.view = view;
  live.show(view === "server");
  if (view === "chat" && (moveFocus || matchMedia("(hover: hover)").matches)) {
    chat.focus();  // not where that would raise a keyboard over the page
  } else if (moveFocus) {
    byId(`${view}-title`).focus();
  }
}

addEventListener("hashchange", () => show(true));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();  // the hash names views
  byId("main").focus();
});
show(false);
