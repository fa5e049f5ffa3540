# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Chromium for the tests of pages: the distribution's, without a window. Tests with the fixture `open_page` skip,
with the reason, where it is not installed."""
import shutil
import time
import urllib.parse

import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

# Runs before a page's own scripts: what its security policy refused.
COLLECT_VIOLATIONS = """
  window.violations = [];
  document.addEventListener("securitypolicyviolation",
                            (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="session")
def browser():
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if executable is None:
        pytest.skip("no Chromium to open pages with (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        with_chromium = started.chromium.launch(executable_path=executable)
        yield with_chromium
        with_chromium.close()


class Watch:
    """What a page did that it should not: errors, refused by its policy, asked of other hosts."""

    def __init__(self, page):
        self.page = page
        self.problems = []
        self.hosts = set()
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", lambda request: self.hosts.add(urllib.parse.urlsplit(request.url).netloc))

    def _on_console(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def check(self, *hosts, ignore=()):
        """`ignore`: texts of problems that the test made on purpose."""
        problems = [problem for problem in self.problems if not any(text in problem for text in ignore)]
        assert problems == []
        assert self.page.evaluate("window.violations") == []
        assert self.hosts <= set(hosts), f"asked other hosts: {self.hosts}"


@pytest.fixture
def open_page(browser):
    """Opens pages, each in a context of its own; options are those of a browser context."""
    contexts = []

    def open_one(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.add_init_script(COLLECT_VIOLATIONS)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.watch = Watch(page)
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()


def until(page, expression, seconds=60):
    """Waits until `expression` is true. playwright's own wait_for_function evaluates text inside the page, which the page's
    policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not within {seconds} s: {expression}"
        page.wait_for_timeout(20)


def violations_of_accessibility(page):
    """Of axe-core's rules: one line for each, with the elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']][:3]}" for one in found]


def scrolls_sideways(page):
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
