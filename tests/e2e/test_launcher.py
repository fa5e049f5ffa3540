# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""nibble started by naming the linker, as the GPU pack does where the machine's C library is too old."""
import re
import subprocess

from nibble_server import Server
from ranks import rank_processes


def test_ranks_are_started_as_the_server_was(nibble, tmp_path):
    libraries = subprocess.run(["ldd", nibble], capture_output=True, text=True, check=True).stdout
    linker = re.search(r"(/\S*ld-linux\S*) \(", libraries).group(1)
    folders = sorted({path.rsplit("/", 1)[0] for path in re.findall(r"=> (/\S+)", libraries)})
    launcher = tmp_path / "nibble"
    launcher.write_text(f"#!/bin/sh\nexec {linker} --library-path {':'.join(folders)} {nibble} \"$@\"\n")
    launcher.chmod(0o755)
    with Server(launcher, "--distributed-executor-backend", "mp", "--threads", 1, "--dtype", "float32",
                environment={"NIBBLE_RANK_PROGRAM": str(launcher)}) as server:
        ranks = rank_processes(server.process.pid)
        assert sorted(ranks) == [0]
        with open(f"/proc/{ranks[0]}/cmdline", "rb") as command:
            assert command.read().split(b"\0")[0] == linker.encode()
        status, answer, _ = server.request("POST", "/v1/completions", {"model": "stories-llama", "prompt": "Once", "max_tokens": 3})
        assert status == 200 and answer["usage"]["completion_tokens"] == 3
