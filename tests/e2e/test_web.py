# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The page at /, in a browser, against the real server."""
import json
import re
import threading
import urllib.parse

import pytest

from nibble_server import ROOT, Server
from web_browser import scrolls_sideways, until, violations_of_accessibility

LONG = 1500  # tokens: far more than the model would write of its own accord
PROMPT = "Tell me a story about a brave dog."


@pytest.fixture
def chat(server, open_page):
    page = open_page(server.url + "/")
    page.locator("#model:enabled").wait_for()
    return page


def host_of(server):
    return urllib.parse.urlsplit(server.url).netloc


def on_request(page, change):
    """`change` gets, and may change, the JSON of each chat request. Returns the list of all that were sent."""
    sent = []

    def handle(route):
        body = json.loads(route.request.post_data)
        sent.append(json.loads(route.request.post_data))
        change(body)
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", handle)
    return sent


def make_long(body):
    body.update(ignore_eos=True, max_tokens=LONG)


NUM_CHOICES = 64


def make_slow(body):
    """Seconds of work, of which the page shows one part in 64: time to do something before it ends."""
    body.update(ignore_eos=True, max_tokens=LONG, n=NUM_CHOICES)


def limit_bandwidth(page, bytes_per_second):
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", {
        "offline": False, "latency": 0, "downloadThroughput": bytes_per_second, "uploadThroughput": -1})


def ask(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def wait_for_end(page):
    page.get_by_role("button", name="Try again").wait_for()


def answer_of(page):
    return page.locator(".message.assistant .said").last


def event(content):
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": content}}]}) + "\n\n"


def answer_with(page, *events, status=200, headers=None, body=None):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=status, headers={"Content-Type": "text/event-stream", **(headers or {})},
        body="".join(events) if body is None else body))


# --- the chat


def test_an_answer_comes_piece_by_piece(server, chat):
    sent = on_request(chat, make_long)
    limit_bandwidth(chat, 150_000)  # the answer is some 400 KB of events, however fast the server is
    ask(chat, PROMPT)
    lengths = []
    until(chat, "document.querySelector('.message.assistant .said').textContent.length > 20")
    while chat.locator("#stop").is_visible():
        lengths.append(len(answer_of(chat).text_content()))
    wait_for_end(chat)
    assert len(set(lengths)) >= 3, f"the text was seen to grow {len(set(lengths))} times"
    assert lengths == sorted(lengths)
    assert len(answer_of(chat).text_content()) >= lengths[-1]
    assert sent[0]["stream"] is True and sent[0]["messages"] == [{"role": "user", "content": PROMPT}]
    figures = chat.locator(".message.assistant .foot p").inner_text()
    assert re.search(r"to the first token · [\d,.]+ tokens/s · 1,500 tokens in .* · cut at the token limit", figures), figures
    assert re.search(r"1,5\d\d of 2,048 tokens of context used", chat.locator("#context").inner_text())
    chat.watch.check(host_of(server))


def test_the_text_is_that_of_the_api(server, chat):
    on_request(chat, lambda body: None)
    chat.get_by_label("Temperature").fill("0")
    chat.get_by_label("Max tokens").fill("60")
    ask(chat, PROMPT)
    wait_for_end(chat)
    _, answer, _ = server.post("/v1/chat/completions", {
        "model": "stories-llama", "messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 60})
    expected = answer["choices"][0]["message"]["content"]
    assert answer_of(chat).inner_text().split() == expected.split()


def test_stop_ends_the_answer_here_and_on_the_server(server, chat):
    on_request(chat, make_slow)
    aborted = server.metric("vllm:request_success_total", finished_reason="abort")
    ask(chat, PROMPT)
    until(chat, "document.querySelector('.message.assistant .said').textContent.length > 20")
    chat.get_by_role("button", name="Stop").click()
    wait_for_end(chat)
    assert "stopped by you" in chat.locator(".message.assistant .foot").inner_text()
    text = answer_of(chat).inner_text()
    assert 20 < len(text) < 4 * LONG
    assert server.wait_until_idle() == (0, 0, 0)
    assert server.metric("vllm:request_success_total", finished_reason="abort") == aborted + NUM_CHOICES
    # What was said is part of the conversation.
    chat.unroute_all()
    sent = on_request(chat, lambda body: body.update(max_tokens=5))
    ask(chat, "Go on.")
    chat.locator(".message.assistant").nth(1).get_by_role("button", name="Try again").wait_for()
    assert [message["role"] for message in sent[0]["messages"]] == ["user", "assistant", "user"]
    assert sent[0]["messages"][1]["content"].split() == text.split()
    chat.watch.check(host_of(server))


def test_parameters_are_sent_when_filled_in(chat):
    sent = on_request(chat, lambda body: None)
    for label, value in {"System prompt": "Be brief.", "Temperature": "0.5", "Top p": "0.9", "Top k": "5", "Max tokens": "7",
                         "Seed": "11"}.items():
        chat.get_by_label(label).fill(value)
    ask(chat, PROMPT)
    wait_for_end(chat)
    assert sent == [{
        "model": "stories-llama",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}],
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "max_tokens": 7, "seed": 11,
        "stream": True, "stream_options": {"include_usage": True}}]
    assert "7 tokens in" in chat.locator(".message.assistant .foot").inner_text()
    chat.get_by_role("button", name="Reset").click()
    chat.get_by_role("button", name="Reset").wait_for(state="hidden")
    ask(chat, "And then?")
    chat.locator(".message.assistant").nth(1).get_by_role("button", name="Try again").wait_for()
    assert set(sent[1]) == {"model", "messages", "stream", "stream_options"}
    assert [message["role"] for message in sent[1]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("label,value,complaint", [
    ("Temperature", "2.5", "At most 2"), ("Top p", "0", "At least 0.001"), ("Top k", "1.5", "Want a whole number"),
    ("Max tokens", "0", "At least 1")])
def test_a_wrong_parameter_is_named_and_not_sent(chat, label, value, complaint):
    sent = on_request(chat, lambda body: None)
    field = chat.get_by_label(label)
    field.fill(value)
    ask(chat, PROMPT)
    assert field.get_attribute("aria-invalid") == "true"
    assert chat.locator(f"#{field.get_attribute('aria-describedby')}").inner_text() == complaint
    assert field.evaluate("field => field === document.activeElement")
    assert sent == [] and chat.locator(".message").count() == 0
    assert chat.get_by_label("Message", exact=True).input_value() == PROMPT


def test_a_conversation_is_kept_in_memory_alone(server, chat):
    on_request(chat, lambda body: body.update(max_tokens=5))
    ask(chat, "A secret.")
    wait_for_end(chat)
    stored = "[localStorage.length, sessionStorage.length, document.cookie]"
    assert chat.evaluate(stored) == [0, 0, ""]
    assert chat.evaluate("indexedDB.databases().then((all) => all.length)") == 0
    chat.get_by_role("button", name="New chat").click()
    assert chat.locator(".message").count() == 0 and chat.locator("#welcome").is_visible()
    ask(chat, "Another.")
    wait_for_end(chat)
    chat.reload()
    chat.locator("#model:enabled").wait_for()
    assert chat.locator(".message").count() == 0
    assert "Another" not in chat.locator("main").inner_text()
    chat.watch.check(host_of(server))


def test_new_chat_ends_the_answer_in_progress(server, chat):
    on_request(chat, make_slow)
    ask(chat, PROMPT)
    until(chat, "document.querySelector('.message.assistant .said').textContent.length > 20")
    chat.get_by_role("button", name="New chat").click()
    chat.locator("#welcome").wait_for()
    assert chat.locator(".message").count() == 0
    assert server.wait_until_idle() == (0, 0, 0)
    assert chat.locator("#stop").is_hidden()


def test_try_again_asks_the_same(chat):
    sent = on_request(chat, lambda body: body.update(max_tokens=5))
    ask(chat, PROMPT)
    wait_for_end(chat)
    with chat.expect_request("**/v1/chat/completions"):
        chat.get_by_role("button", name="Try again").click()
    wait_for_end(chat)
    assert sent[0]["messages"] == sent[1]["messages"]
    assert chat.locator(".message.assistant").count() == 1


HOSTILE = """<img src=x onerror=alert(1)><script>alert(2)</script>

# A heading with **bold**, *slanted* and `<b>code</b>`

[good](https://example.org/a) [bad](javascript:alert(3)) [data](data:text/html,x)

- one
- two
  - inner <iframe src="//evil"></iframe>

| a | b |
|---|---|
| 1 | <svg onload=alert(4)> |

```html
<script>alert(5)</script>
```
"""


def test_what_a_model_says_is_text(server, chat):
    chat.on("dialog", lambda dialog: pytest.fail(dialog.message))
    answer_with(chat, *[event(HOSTILE[i:i + 7]) for i in range(0, len(HOSTILE), 7)], "data: [DONE]\n\n")
    ask(chat, "<b>Say</b> something bad.")
    wait_for_end(chat)
    assert chat.locator(".message.user .said").text_content() == "<b>Say</b> something bad."
    said = answer_of(chat)
    assert said.evaluate("said => [...new Set([...said.querySelectorAll('*')].map((one) => one.localName))].sort()") == sorted(
        ["p", "h3", "strong", "em", "code", "a", "ul", "li", "div", "table", "thead", "tbody", "tr", "th", "td", "pre", "button"])
    for text in ("<img src=x onerror=alert(1)>", "<script>alert(2)</script>", "<b>code</b>", '<iframe src="//evil"></iframe>',
                 "<svg onload=alert(4)>", "<script>alert(5)</script>", "[bad](javascript:alert(3))"):
        assert text in said.text_content(), text
    link = said.locator("a")
    assert [link.get_attribute(name) for name in ("href", "target", "rel")] == ["https://example.org/a", "_blank", "noopener noreferrer"]
    assert said.locator("li li").count() == 1
    chat.watch.check(host_of(server))


@pytest.mark.parametrize("status,headers,body,texts", [
    (429, {"Retry-After": "3"}, {"error": {"message": "1024 sequences wait already, the limit is 1024"}},
     ["The server is busy.", "1024 sequences wait already", "3 seconds"]),
    (503, {}, {"error": {"message": "rank 1 is lost"}}, ["The server is not ready.", "Rank 1 is lost"]),
    (401, {}, {"error": {"message": "want a key"}}, ["The server wants a key.", "Reload"]),
    (400, {}, {"error": {"message": "the prompt is too long"}}, ["The server refused the request.", "The prompt is too long"]),
    (504, {}, {"error": {"message": "the deadline of 2 s has passed"}}, ["longer than the server allows", "2 s"]),
    (502, {}, "<html>a proxy</html>", ["The server failed.", "status 502"]),
])
def test_errors_are_told_plainly(chat, status, headers, body, texts):
    answer_with(chat, status=status, headers=headers, body=body if isinstance(body, str) else json.dumps(body))
    ask(chat, PROMPT)
    wait_for_end(chat)
    told = chat.locator(".message.assistant .problem").inner_text()
    for text in texts:
        assert text in told
    assert "html" not in told
    # Nothing is lost, and the next one works.
    chat.unroute_all()
    on_request(chat, lambda request: request.update(max_tokens=5))
    chat.get_by_role("button", name="Try again").click()
    chat.locator("#stop").wait_for(state="hidden")
    assert chat.locator(".message.assistant .problem:visible").count() == 0
    assert answer_of(chat).text_content() != ""


def test_answers_that_break_off_are_told(chat):
    answer_with(chat, event("Once upon"))
    ask(chat, PROMPT)
    wait_for_end(chat)
    assert "The answer is not complete." in chat.locator(".message.assistant .problem").inner_text()
    assert answer_of(chat).inner_text() == "Once upon"
    chat.unroute_all()
    answer_with(chat, event("Once"), 'data: {"error": {"message": "the engine failed"}}\n\n', "data: [DONE]\n\n")
    chat.get_by_role("button", name="Try again").click()
    wait_for_end(chat)
    assert "The engine failed" in chat.locator(".message.assistant .problem").inner_text()
    chat.unroute_all()
    chat.route("**/v1/chat/completions", lambda route: route.abort())
    chat.get_by_role("button", name="Try again").click()
    wait_for_end(chat)
    assert "The server cannot be reached." in chat.locator(".message.assistant .problem").inner_text()


# --- the live view


def tile(page, name):
    return page.locator(".tile", has=page.get_by_text(name, exact=True))


def generate(server, count, **more):
    threads = [threading.Thread(target=server.post, args=("/v1/completions", {
        "model": "stories-llama", "prompt": f"Once {i}", "max_tokens": 40, "ignore_eos": True, **more})) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_the_live_view_shows_what_the_server_does(server, open_page):
    page = open_page(server.url + "/#server")
    tile(page, "Generated").get_by_text("since the start").wait_for()
    generated = server.metric("vllm:generation_tokens_total")
    threads = generate(server, 4, max_tokens=1800)
    until(page, "document.getElementById('state-text').textContent.includes('running')")
    until(page, "Number(document.querySelector('.tile .value span').textContent) > 0")
    for thread in threads:
        thread.join()
    until(page, "document.getElementById('state-text').textContent === 'Ready'")
    assert server.metric("vllm:generation_tokens_total") >= generated + 4 * 1800
    for name in ("ttft", "itl", "e2e"):
        card = page.locator(f"section[aria-labelledby={name}-title]")
        card.locator("svg rect").first.wait_for()
        assert re.fullmatch(r"p50 \S+ (µs|ms|s), p90 .*, p99 .*", card.locator("svg").get_attribute("aria-label").split(": ")[1])
        assert re.fullmatch(r"[\d,]+ counted", card.locator(".card-head .note").last.inner_text())
    for name in ("throughput", "requests", "kv"):
        assert page.locator(f"#{name} svg path.line").count() >= 1
    finished = page.get_by_role("table", name="Answers by outcome")
    count = finished.get_by_role("row", name="Cut at the token limit").locator("td").inner_text()
    assert int(count.replace(",", "")) >= 4
    assert "stories-llama · nibble" in page.locator("#about").inner_text()
    page.watch.check(host_of(server))


def test_latencies_of_a_period_and_since_the_start(server, open_page):
    for thread in generate(server, 2):
        thread.join()
    page = open_page(server.url + "/#server")
    counted = page.locator("section[aria-labelledby=e2e-title] .card-head .note").last
    page.locator("section[aria-labelledby=e2e-title]").get_by_text("Nothing in this period").wait_for()
    page.get_by_role("radio", name="Since the start").check()
    until(page, "document.querySelector('section[aria-labelledby=e2e-title] svg rect') !== null")
    total = int(counted.inner_text().split()[0].replace(",", ""))
    assert total == server.metric("vllm:e2e_request_latency_seconds_count")
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


# --- for everybody


def test_the_keyboard_alone_is_enough(server, open_page):
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
    assert got.value.ok or got.value.status == 304


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
