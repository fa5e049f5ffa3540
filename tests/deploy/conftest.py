# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures: the binary, and the objects of the example releases."""
import os
import pathlib
import sys

import pytest

import chart
import schemas

# Where the tests' server is.
sys.path.insert(0, str(chart.ROOT / "tests" / "e2e"))


def pytest_addoption(parser):
    parser.addoption("--nibble", default="build/release/bin/nibble", help="the nibble binary to test")
    parser.addoption("--image-root", help="an image's root to test, instead of one made of --nibble")
    parser.addoption("--crds", help="folder with CustomResourceDefinitions: objects are validated against these as well")


def pytest_collection_modifyitems(config, items):
    """Without the real definitions their tests are not there, rather than skipped by the dozen."""
    if config.getoption("--crds") is None:
        without = [item for item in items if "definitions" in item.fixturenames]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


@pytest.fixture(scope="session")
def nibble(request):
    path = pathlib.Path(request.config.getoption("--nibble")).resolve()
    assert os.access(path, os.X_OK), f"{path} is not built"
    return path


@pytest.fixture(scope="session")
def definitions(request):
    return schemas.Definitions(request.config.getoption("--crds"))


@pytest.fixture(scope="session", params=[path.stem for path in chart.EXAMPLES])
def example(request):
    """(name, objects) of each example."""
    return request.param, chart.render(chart.example(request.param))
