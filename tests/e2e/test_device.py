# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""--device on a machine without a usable GPU: builds with and without the CUDA engine start and serve."""
import pathlib
import subprocess

import pytest

from nibble_server import STORIES, Server

pytestmark = pytest.mark.skipif(pathlib.Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")


@pytest.mark.parametrize("options", [[], ["--device", "auto"], ["--device", "cpu"]])
def test_serves_on_the_cpu(nibble, options):
    with Server(nibble, *options, "--dtype", "float32") as server:
        status, answer, _ = server.post("/v1/completions", {"model": "stories-llama", "prompt": "Once upon a time",
                                                            "max_tokens": 8, "temperature": 0})
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("command", [["serve", STORIES, "--port", "0", "--grpc-port", "0"], ["bench", "decode", STORIES]])
def test_refuses_a_device_that_is_not_there(nibble, command):
    result = subprocess.run([str(nibble), *map(str, command), "--device", "cuda"], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 1, result.stderr  # a signal would be negative
    assert "--device cuda" in result.stderr
    assert "use --device cpu" in result.stderr
    # Why: the build, or the machine.
    assert "no CUDA engine" in result.stderr or "CUDA driver" in result.stderr
