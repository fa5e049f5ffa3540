# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The live view of the page at /, the page for everybody, and how it is served: in a browser, against the real server."""
import json
import re

import pytest

from nibble_server import ROOT, Server
from ranks import wait_until
from web_browser import scrolls_sideways, until, violations_of_accessibility
from web_page import (HOSTILE, PROMPT, answer_of, answer_with, ask, busy, event, generate, host_of, make_slow, on_request, tile,
                      wait_for_end)


def test_the_live_view_shows_what_the_server_does(server, open_page):
    page = open_page(server.url + "/#server")
    tile(page, "Generated").get_by_text("since the start").wait_for()
    generated = server.metric("vllm:generation_tokens_total")
    with busy(server, 4, max_tokens=1800) as answered:
        until(page, "document.getElementById('state-text').textContent.includes('running')")
        until(page, "Number(document.querySelector('.tile .value span').textContent) > 0")
    until(page, "document.getElementById('state-text').textContent === 'Ready'")
    assert server.metric("vllm:generation_tokens_total") == generated + len(answered) * 1800
    for name in ("ttft", "itl", "e2e"):
        card = page.locator(f"section[aria-labelledby={name}-title]")
        card.locator("svg rect").first.wait_for()
        assert re.fullmatch(r"p50 \S+ (µs|ms|s), p90 .*, p99 .*", card.locator("svg").get_attribute("aria-label").split(": ")[1])
        assert re.fullmatch(r"[\d,]+ counted", card.locator(".card-head .note").last.inner_text())
    for name in ("throughput", "requests", "kv"):
        assert page.locator(f"#{name} svg path.line").count() >= 1
    finished = page.get_by_role("table", name="Answers by outcome")
    count = finished.get_by_role("row", name="Cut at the token limit").locator("td").inner_text()
    assert int(count.replace(",", "")) >= len(answered) >= 4
    assert "stories-llama · nibble" in page.locator("#about").inner_text()
    page.watch.check(host_of(server))


def test_latencies_of_a_period_and_since_the_start(server, open_page):
    total = server.metric("vllm:e2e_request_latency_seconds_count") + 2
    for thread in generate(server, 2):
        thread.join()
    wait_until(lambda: server.metric("vllm:e2e_request_latency_seconds_count") == total, server.log)
    page = open_page(server.url + "/#server")
    counted = page.locator("section[aria-labelledby=e2e-title] .card-head .note").last
    page.locator("section[aria-labelledby=e2e-title]").get_by_text("Nothing in this period").wait_for()
    page.get_by_role("radio", name="Since the start").check()
    until(page, "document.querySelector('section[aria-labelledby=e2e-title] svg rect') !== null")
    assert int(counted.inner_text().split()[0].replace(",", "")) == total
    page.get_by_role("radio", name="Period").check()
    for thread in generate(server, 3):
        thread.join()
    until(page, "document.querySelector('section[aria-labelledby=e2e-title] svg rect') !== null")
    page.get_by_text("3 counted").first.wait_for()


def test_pause_holds_the_view_and_continue_catches_up(server, open_page):
    page = open_page(server.url + "/#server")
    since_start = tile(page, "Generated").locator(".note")
    since_start.get_by_text("since the start").wait_for()
    page.get_by_role("button", name="Pause").click()
    held = since_start.inner_text()
    for thread in generate(server, 1, max_tokens=500):
        thread.join()
    with page.expect_response("**/metrics"):
        pass
    with page.expect_response("**/metrics"):
        pass
    assert since_start.inner_text() == held
    page.get_by_role("button", name="Continue").click()
    until(page, f"![...document.querySelectorAll('.tile .note')].some((note) => note.textContent === {json.dumps(held)})")


def test_ranks_and_experts(nibble, open_page):
    with Server(nibble, "--tensor-parallel-size", 2, "--rank-threads", 1, model=ROOT / "models" / "stories-mixtral") as server:
        page = open_page(server.url + "/#server")
        ranks = page.locator("#ranks .rank")
        ranks.nth(1).wait_for()
        assert [text.split() for text in ranks.all_inner_texts()] == [f"Rank {i} node 0 Up Never lost".split() for i in range(2)]
        assert page.locator("#ranks-note").inner_text() == "2 of 2 up · group 1 · no outage since the start"
        server.post("/v1/completions", {"model": "stories-mixtral", "prompt": "Once", "max_tokens": 50})
        layer = page.get_by_role("img", name=re.compile("Layer 0: expert . took"))
        layer.wait_for()
        assert layer.locator("rect").count() == 8
        page.watch.check(host_of(server))


def test_a_server_that_goes_away_is_told(nibble, open_page):
    with Server(nibble) as server:
        page = open_page(server.url + "/#server")
        tile(page, "Running").wait_for()
    page.get_by_text("Not reachable").wait_for()
    assert "The server cannot be reached." in page.get_by_role("alert").inner_text()
    assert tile(page, "Running").is_visible()  # what was known stays
    page.watch.check(host_of(server), ignore=["Failed to load resource"])


@pytest.mark.parametrize("address", ["/", "/#chat", "/#constructor", "/#nowhere"])
def test_other_addresses_show_the_chat(server, open_page, address):
    page = open_page(server.url + address)
    page.locator("#model:enabled").wait_for()
    assert page.locator("#view-chat").is_visible() and page.locator("#view-server").is_hidden()
    assert page.title() == "Chat · nibble"
    page.watch.check(host_of(server))


# --- for everybody


def test_the_keyboard_alone_is_enough(slow_server, open_page):
    server = slow_server
    page = open_page(server.url + "/")
    page.locator("#model:enabled").wait_for()
    on_request(page, make_slow)
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"
    assert page.evaluate(focused) == "message"  # type at once
    order = []
    for key, times in (("Shift+Tab", 8), ("Tab", 13)):
        for _ in range(times):
            page.keyboard.press(key)
            order.append(page.evaluate(focused))
    order = order[7:]
    assert order == ["skip", "Chat", "Server", "model", "transcript", "Tell me a story about a brave dog.",
                     "Write about a girl who finds a small blue boat.", "What did the old clock say to the cat?", "message", "system",
                     "temperature", "top_p", "top_k", "max_tokens"]
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("you")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.message.assistant .said')?.textContent.length > 20")
    assert page.locator(".message.user .said").text_content() == "Hello\nyou"
    page.keyboard.press("Escape")
    wait_for_end(page)
    assert "stopped by you" in page.locator(".message.assistant .foot").inner_text()
    assert page.evaluate(focused) == "message"
    page.locator("nav").get_by_role("link", name="Server").focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'server-title'")
    assert page.title() == "Server · nibble"
    page.keyboard.press("Tab")  # the period
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('input[name=period]:checked').value") == "300"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Continue").wait_for()
    page.go_back()
    until(page, "document.activeElement.id === 'message'")
    page.watch.check(host_of(server))


def test_screen_readers_hear_the_answer_once(chat):
    status = chat.locator("#chat-status")
    assert status.get_attribute("role") == "status"
    chat.evaluate("""() => {
      window.heard = [];
      new MutationObserver(() => window.heard.push(document.getElementById("chat-status").textContent))
          .observe(document.getElementById("chat-status"), {childList: true, characterData: true, subtree: true});
    }""")
    on_request(chat, lambda body: body.update(max_tokens=30, temperature=0))
    ask(chat, PROMPT)
    wait_for_end(chat)
    heard = [text for text in chat.evaluate("window.heard") if text]
    assert heard[0] == "stories-llama is answering"
    assert len(heard) == 2 and heard[1].startswith("Answer complete: ") and answer_of(chat).inner_text()[:40] in heard[1]
    assert chat.locator(".message.assistant").get_attribute("aria-busy") is None


def test_roles_and_names(chat):
    for role, name in [("banner", None), ("main", None), ("navigation", "Views"), ("combobox", "Model"), ("region", "Conversation"),
                       ("textbox", "Message"), ("button", "Send"), ("complementary", "Parameters"), ("textbox", "System prompt"),
                       ("spinbutton", "Temperature"), ("spinbutton", "Seed")]:
        found = chat.get_by_role(role, name=name, exact=True) if name else chat.get_by_role(role)
        assert found.count() == 1, (role, name)
    assert chat.get_by_role("link", name="Chat").get_attribute("aria-current") == "page"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_rule_of_accessibility_is_broken(server, open_page, scheme, width):
    page = open_page(server.url + "/", color_scheme=scheme, viewport={"width": width, "height": 800})
    page.locator("#model:enabled").wait_for()
    assert violations_of_accessibility(page) == []
    answer_with(page, event(HOSTILE), "data: [DONE]\n\n")
    ask(page, PROMPT)
    wait_for_end(page)
    if width < 900:
        page.get_by_role("button", name="Parameters").click()
    assert violations_of_accessibility(page) == []
    page.goto(server.url + "/#server")
    tile(page, "Generated").get_by_text("since the start").wait_for()  # what comes now is of this period
    for thread in generate(server, 2):
        thread.join()
    page.locator("section[aria-labelledby=e2e-title] svg rect").first.wait_for()
    assert violations_of_accessibility(page) == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screens(server, open_page, width):
    page = open_page(server.url + "/", viewport={"width": width, "height": 640})
    page.locator("#model:enabled").wait_for()
    answer_with(page, event(HOSTILE + "\n" + "unbroken" * 60), "data: [DONE]\n\n")
    ask(page, "x" * 300)
    wait_for_end(page)
    assert not scrolls_sideways(page)
    assert page.get_by_label("Message", exact=True).is_visible() and page.get_by_role("button", name="Send").is_visible()
    page.get_by_role("button", name="Parameters").click()
    assert page.get_by_label("Temperature").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_label("Temperature").is_hidden()
    page.goto(server.url + "/#server")
    tile(page, "Running").wait_for()
    assert not scrolls_sideways(page)


# --- what the server says


def test_inline_scripts_do_not_run(server, chat):
    chat.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
    }""")
    until(chat, "window.violations.length > 0")
    assert chat.evaluate("window.ran") is None
    assert chat.evaluate("window.violations[0]").startswith("script-src")


def test_files_are_kept_by_the_browser_until_they_change(server, chat):
    _, _, headers = server.request("GET", "/web/main.js")
    status, body, again = server.request("GET", "/web/main.js", headers={"If-None-Match": headers["ETag"]})
    assert (status, body, again["ETag"]) == (304, "", headers["ETag"])
    with chat.expect_response("**/web/main.js") as got:
        chat.reload()
    assert got.value.status == 304


def test_disable_web(nibble):
    with Server(nibble, "--disable-web") as server:
        for path in ("/", "/web/main.js"):
            status, body, _ = server.request("GET", path)
            assert status == 404 and "error" in body
        assert server.request("GET", "/v1/models")[0] == 200
        assert "Page" not in server.log()


def test_a_key_opens_the_page_and_all_that_it_asks(nibble, open_page):
    with Server(nibble, environment={"NIBBLE_API_KEY": "a-key-of-a-test"}) as server:
        status, _, headers = server.request("GET", "/")
        assert status == 401 and 'Basic realm="nibble"' in ", ".join(headers.get_all("WWW-Authenticate"))
        page = open_page(server.url + "/", http_credentials={"username": "any", "password": "a-key-of-a-test"})
        page.locator("#model:enabled").wait_for()
        page.get_by_label("Max tokens").fill("5")
        ask(page, PROMPT)
        wait_for_end(page)
        assert "5 tokens in" in page.locator(".message.assistant .foot").inner_text()
        page.goto(server.url + "/#server")
        tile(page, "Running").wait_for()
        # The server's own 401, which makes a browser ask; the page goes on with the key.
        page.watch.check(host_of(server), ignore=["401"])
