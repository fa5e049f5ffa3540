# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""What the tests of the page at / do with it."""
import contextlib
import json
import threading
import urllib.parse

LONG = 1500  # tokens: far more than the model would write of its own accord
PROMPT = "Tell me a story about a brave dog."

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


NUM_CHOICES = 128


def make_slow(body):
    """For slow_server: a minute of work, of which the page shows the first half second and then waits for the rest."""
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


def tile(page, name):
    return page.locator(".tile", has=page.get_by_text(name, exact=True))


def generate(server, count, **more):
    threads = [threading.Thread(target=server.post, args=("/v1/completions", {
        "model": "stories-llama", "prompt": f"Once {i}", "max_tokens": 40, "ignore_eos": True, **more})) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads


@contextlib.contextmanager
def busy(server, clients, **more):
    """Clients that ask without a pause until the body of `with` ends: however fast a server, it has work to show. Gives how many were
    answered so far, in a list."""
    answered, over = [], threading.Event()

    def ask_on():
        while not over.is_set():
            for thread in generate(server, 1, **more):
                thread.join()
            answered.append(None)

    threads = [threading.Thread(target=ask_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join()
