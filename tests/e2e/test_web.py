# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The chat of the page at /, in a browser, against the real server."""
import json
import re

import pytest

from web_browser import until
from web_page import (HOSTILE, NUM_CHOICES, PROMPT, answer_of, answer_with, ask, event, host_of, limit_bandwidth, make_long, make_slow,
                      on_request, wait_for_end)


def test_an_answer_comes_piece_by_piece(server, chat):
    sent = on_request(chat, make_long)
    limit_bandwidth(chat, 150_000)  # the answer is some 400 KB of events, however fast the server is
    # What a reader sees, noted by the page itself.
    chat.evaluate("""() => {
      window.lengths = [];
      new MutationObserver(() => window.lengths.push(document.querySelector(".message.assistant .said")?.textContent.length ?? 0))
          .observe(document.querySelector("main"), {childList: true, characterData: true, subtree: true});
    }""")
    ask(chat, PROMPT)
    wait_for_end(chat)
    lengths = chat.evaluate("window.lengths")
    assert len(set(lengths)) >= 3, f"the text was seen to grow {len(set(lengths))} times"
    assert lengths == sorted(lengths)
    assert len(answer_of(chat).text_content()) == lengths[-1]
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


def test_stop_ends_the_answer_here_and_on_the_server(slow_server, slow_chat):
    server, chat = slow_server, slow_chat
    on_request(chat, make_slow)
    ended = {reason: server.metric("vllm:request_success_total", finished_reason=reason) for reason in ("abort", "length")}
    ask(chat, PROMPT)
    until(chat, "document.querySelector('.message.assistant .said').textContent.length > 20")
    chat.get_by_role("button", name="Stop").click()
    wait_for_end(chat)
    assert "stopped by you" in chat.locator(".message.assistant .foot").inner_text()
    text = answer_of(chat).inner_text()
    assert len(text) > 20
    assert server.wait_until_idle() == (0, 0, 0)
    ended = {reason: server.metric("vllm:request_success_total", finished_reason=reason) - before for reason, before in ended.items()}
    assert sum(ended.values()) == NUM_CHOICES and ended["abort"] > NUM_CHOICES // 2, ended
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


def test_new_chat_ends_the_answer_in_progress(slow_server, slow_chat):
    server, chat = slow_server, slow_chat
    aborted = server.metric("vllm:request_success_total", finished_reason="abort")
    on_request(chat, make_slow)
    ask(chat, PROMPT)
    until(chat, "document.querySelector('.message.assistant .said').textContent.length > 20")
    chat.get_by_role("button", name="New chat").click()
    chat.locator("#welcome").wait_for()
    assert chat.locator(".message").count() == 0
    assert server.wait_until_idle() == (0, 0, 0)
    assert server.metric("vllm:request_success_total", finished_reason="abort") - aborted > NUM_CHOICES // 2
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


def test_try_again_with_a_wrong_parameter_keeps_the_answer(chat):
    sent = on_request(chat, lambda body: body.update(max_tokens=5))
    ask(chat, PROMPT)
    wait_for_end(chat)
    said = answer_of(chat).text_content()
    chat.get_by_label("Temperature").fill("5")
    chat.get_by_role("button", name="Try again").click()
    assert chat.get_by_label("Temperature").get_attribute("aria-invalid") == "true"
    assert answer_of(chat).text_content() == said
    chat.get_by_label("Temperature").fill("0.5")
    chat.get_by_role("button", name="Try again").click()
    wait_for_end(chat)
    assert [[message["role"] for message in request["messages"]] for request in sent] == [["user"], ["user"]]


def test_what_got_no_answer_is_not_sent_again(chat):
    answer_with(chat, status=500, body="")
    ask(chat, PROMPT)
    wait_for_end(chat)
    chat.unroute_all()
    sent = on_request(chat, lambda body: body.update(max_tokens=5))
    ask(chat, "Another one.")
    chat.locator(".message.assistant").nth(1).get_by_role("button", name="Try again").wait_for()
    assert sent[0]["messages"] == [{"role": "user", "content": "Another one."}]


def test_headings_and_code(chat):
    answer_with(chat, event("# On C#\n\n## Closed ##\n\n```c++ x\n#\n```\n"), "data: [DONE]\n\n")
    ask(chat, PROMPT)
    wait_for_end(chat)
    headings = answer_of(chat).locator("h3, h4")
    assert headings.all_text_contents() == ["On C#", "Closed"]
    assert answer_of(chat).locator(".code").get_attribute("data-language") == "c++"
    assert answer_of(chat).locator("pre").text_content() == "#"


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
