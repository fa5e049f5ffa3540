// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The Markdown that models write, as elements: paragraphs, headings, lists, quotes, tables, code. Text only ever becomes
// text nodes, so nothing a model says is HTML. Made for text that grows: render() keeps the blocks that did not change.

const kMaxInline = 20_000;  // characters of a block; beyond it its markup is shown as it is
const kInline = /`([^`\n]+)`|\*\*(\S(?:[^*\n]*\S)?)\*\*|\*([^\s*](?:[^*\n]*[^\s*])?)\*|\[([^\][\n]+)\]\((https?:\/\/[^\s()]+)\)/g;
// Every text takes these time in proportion to its length.
const kFence = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const kHeading = /^(#{1,6})\s+(.*)$/;
const kRule = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const kItem = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const kTableRule = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

function inline(text) {
  if (text.length > kMaxInline) return [text];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(kInline)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    const [, code, strong, emphasis, label, address] = match;
    if (code !== undefined) nodes.push(element("code", code));
    else if (strong !== undefined) nodes.push(element("strong", ...inline(strong)));
    else if (emphasis !== undefined) nodes.push(element("em", ...inline(emphasis)));
    else {
      const link = element("a", label);
      link.href = address;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      nodes.push(link);
    }
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

// Without the #s that may close a heading.
function headingText(text) {
  const trimmed = text.trimEnd();
  let end = trimmed.length;
  while (end > 0 && trimmed[end - 1] === "#") --end;
  return end === 0 || /\s/.test(trimmed[end - 1]) ? trimmed.slice(0, end).trimEnd() : trimmed;
}

// Cuts text into blocks {kind, lines, ...}; a block that has not ended is one too.
export function blocks(text) {
  const result = [];
  let block = null;
  const begin = (kind, more = {}) => result.push((block = {kind, lines: [], ...more}));
  for (const line of text.split("\n")) {
    if (block?.kind === "code" && !block.closed) {
      const fence = kFence.exec(line);
      if (fence && fence[2].trim() === "" && fence[1].startsWith(block.fence)) block.closed = true;
      else block.lines.push(line);
      continue;
    }
    const fence = kFence.exec(line);
    if (fence) {
      begin("code", {fence: fence[1], language: /^[\w+#.-]*/.exec(fence[2].trimStart())[0]});
    } else if (line.trim() === "") {
      if (block?.kind === "list") block.loose = true;
      else block = null;
    } else if (kHeading.test(line)) {
      begin("heading", {level: kHeading.exec(line)[1].length});
      block.lines.push(headingText(kHeading.exec(line)[2]));
      block = null;
    } else if (kRule.test(line)) {
      begin("rule");
      block = null;
    } else if (line.startsWith(">")) {
      if (block?.kind !== "quote") begin("quote");
      block.lines.push(line.replace(/^>\s?/, ""));
    } else if (kItem.test(line)) {
      if (block?.kind !== "list") begin("list");
      block.lines.push(line);
    } else if (block?.kind === "list" && (/^\s/.test(line) || !block.loose)) {
      block.lines.push(line);
    } else if (line.includes("|") && (block?.kind === "table" || block?.kind !== "paragraph")) {
      if (block?.kind !== "table") begin("table");
      block.lines.push(line);
    } else {
      if (block?.kind !== "paragraph") begin("paragraph");
      block.lines.push(line);
    }
  }
  return result;
}

function list(lines) {
  const items = [];  // {indent, ordered, text}
  for (const line of lines) {
    const match = kItem.exec(line);
    if (match) {
      items.push({indent: match[1].length, ordered: /\d/.test(match[2]), number: parseInt(match[2], 10), text: match[3]});
    } else if (items.length > 0) {
      items.at(-1).text += `\n${line.trim()}`;
    }
  }
  let at = 0;
  const level = (indent) => {
    const made = element(items[at].ordered ? "ol" : "ul");
    if (items[at].ordered && items[at].number !== 1) made.start = items[at].number;
    while (at < items.length && items[at].indent >= indent) {
      if (items[at].indent > indent + 1 && made.lastChild) {
        made.lastChild.append(level(items[at].indent));
      } else {
        made.append(element("li", ...inline(items[at++].text)));
      }
    }
    return made;
  };
  const parts = [];
  while (at < items.length) parts.push(level(items[at].indent));
  return parts.length === 1 ? parts[0] : element("div", ...parts);
}

function table(lines) {
  if (lines.length < 2 || !kTableRule.test(lines[1])) return element("p", ...inline(lines.join("\n")));
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, tag) => element("tr", ...cells(line).map((cell) => element(tag, ...inline(cell))));
  const holder = element("div", element("table", element("thead", row(lines[0], "th")),
                                        element("tbody", ...lines.slice(2).map((line) => row(line, "td")))));
  holder.className = "table-scroll";
  return nibblePlot.scrollable(holder, "Table");
}

function code(block) {
  const text = element("code", block.lines.join("\n"));
  const holder = element("div", element("pre", text));
  holder.className = "code";
  holder.firstChild.tabIndex = 0;  // it scrolls
  holder.dataset.language = block.language;
  return holder;
}

function build(block) {
  const text = block.lines.join("\n");
  switch (block.kind) {
    case "code":
      return code(block);
    case "heading":
      return element(`h${Math.min(6, block.level + 2)}`, ...inline(text));  // the page's own headings end at 2
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", element("p", ...inline(text)));
    case "list":
      return list(block.lines);
    case "table":
      return table(block.lines);
    default:
      return element("p", ...inline(text));
  }
}

// Makes `container` show `text`; what is shown already and did not change stays as it is.
export function render(container, text) {
  const wanted = blocks(text);
  const shown = container.markdownBlocks ?? [];
  wanted.forEach((block, i) => {
    const key = JSON.stringify(block);
    if (shown[i] === key) return;
    const made = build(block);
    if (i < container.children.length) container.children[i].replaceWith(made);
    else container.append(made);
    shown[i] = key;
  });
  while (container.children.length > wanted.length) container.lastElementChild.remove();
  shown.length = wanted.length;
  container.markdownBlocks = shown;
}
