# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures: the binary under test, and servers shared by the tests of a run."""
import json
import os
import pathlib

import openai
import pytest

from nibble_server import STORIES, Server
from web_browser import browser, open_page  # noqa: F401  fixtures


def pytest_addoption(parser):
    parser.addoption("--nibble", default="build/release/bin/nibble", help="the nibble binary to test")


@pytest.fixture(scope="session")
def nibble(request):
    path = pathlib.Path(request.config.getoption("--nibble")).resolve()
    assert os.access(path, os.X_OK), f"{path} is not built"
    return path


@pytest.fixture(scope="session")
def server(nibble):
    """The bundled model quantized at load, as `./dev serve` does it."""
    with Server(nibble, "--quantization", "w4a8") as running:
        yield running


@pytest.fixture(scope="session")
def exact_server(nibble):
    """The bundled model in float32: what the reference values were computed in."""
    with Server(nibble, "--dtype", "float32") as running:
        yield running


@pytest.fixture(scope="session")
def slow_server(nibble):
    """One sequence at a time, by one thread, in float32: an answer of many choices (web_page.make_slow) takes a minute."""
    with Server(nibble, "--dtype", "float32", "--max-num-seqs", 1, "--threads", 1) as running:
        yield running


@pytest.fixture(scope="session")
def reference():
    return json.loads((STORIES / "reference.json").read_text())


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def exact_client(exact_server):
    return openai.OpenAI(base_url=exact_server.url + "/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def chat(server, open_page):
    """The page at /, ready to be talked to."""
    page = open_page(server.url + "/")
    page.locator("#model:enabled").wait_for()
    return page


@pytest.fixture
def slow_chat(slow_server, open_page):
    page = open_page(slow_server.url + "/")
    page.locator("#model:enabled").wait_for()
    return page
