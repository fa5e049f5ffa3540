# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Several ranks on one host: the same answers, and what happens when a rank, or the server, is killed or stopped."""
import contextlib
import os
import shutil
import signal
import subprocess

import pytest

from nibble_server import STORIES, Server
from ranks import (MODEL, Stream, alive, group_is_whole, held, in_progress, kill_at_work, rank_processes, requests, run_streams, shm_names,
                   wait_until)

SAME = ("--dtype", "float32", "--all-reduce", "none")
# None of these ranks is taken for lost because the machine stood still for a while.
EXACT = (*SAME, "--rank-timeout", "60")


@pytest.fixture(scope="module")
def pair(nibble):
    """Two ranks that compute as exactly as one."""
    before = shm_names()
    with Server(nibble, "--tensor-parallel-size", 2, *EXACT) as server:
        yield server
    wait_until(lambda: shm_names() <= before, shm_names)


@pytest.fixture(scope="module")
def undisturbed(pair):
    """What streams of requests(8, 400) say when nothing happens."""
    return run_streams(pair, requests(8, 400))


def greedy(server, prompt, max_tokens=64):
    answer = server.post("/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                                             "ignore_eos": True})[1]
    return answer["choices"][0]["text"]


def test_the_banner_says_what_runs(pair):
    for part in ("ranks      2, ", "all-reduce none: ", "float32", "KV cache"):
        assert part in pair.log(), pair.log()
    assert sorted(rank_processes(pair.process.pid)) == [0, 1]


def test_two_and_four_ranks_say_what_one_says(nibble, pair, reference):
    for case in reference["prompts"]:
        assert greedy(pair, case["ids"], 32) == case["greedy_text"]
    with Server(nibble, "--tensor-parallel-size", 4, *EXACT) as four:
        assert sorted(rank_processes(four.process.pid)) == [0, 1, 2, 3]
        for case in reference["prompts"]:
            assert greedy(four, case["ids"], 32) == case["greedy_text"]


def test_coded_sums(nibble):
    """INT8 between quantized ranks: not the same text, but text; banner and metrics say what was chosen."""
    with Server(nibble, "--tensor-parallel-size", 2, "--quantization", "w4a8", "--all-reduce", "int8",
                "--all-reduce-group-size", 64) as server:
        assert "int8 g64" in server.log()
        assert 'nibble:all_reduce_info{algorithm="two-shot",codec="int8 g64' in server.request("GET", "/metrics")[1]
        assert len(greedy(server, "Once upon a time")) > 100


def test_one_host_measures_nothing(nibble, tmp_path):
    with Server(nibble, "--tensor-parallel-size", 2, environment={"XDG_CACHE_HOME": str(tmp_path)}) as server:
        assert "all-reduce auto" in server.log() and "measured" not in server.log()
        assert server.metric("nibble:all_reduce_info", up_to_bytes="+Inf") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_streams_go_on_when_a_rank_is_killed(pair, undisturbed, rank):
    before = rank_processes(pair.process.pid)
    losses = pair.metric("nibble:rank_losses_total")
    recomputed = pair.metric("nibble:recomputed_sequences_total")
    formations = pair.metric("nibble:group_formations_total")
    kills = []

    def disturb():
        kills.append(kill_at_work(pair, lambda: rank_processes(pair.process.pid), rank, 8))

    assert run_streams(pair, requests(8, 400), disturb) == undisturbed
    assert pair.metric("nibble:rank_losses_total") == losses + kills[0]
    assert 1 <= pair.metric("nibble:recomputed_sequences_total") - recomputed <= 8 * kills[0]
    assert pair.metric("nibble:group_formations_total") == formations + kills[0]
    assert pair.metric("nibble:outage_seconds_total") > 0
    assert f"rank {rank} (pid {before[rank]})" in pair.log() and "signal 9" in pair.log()
    after = rank_processes(pair.process.pid)
    assert sorted(after) == [0, 1]
    assert after[rank] != before[rank] and after[1 - rank] == before[1 - rank]  # the other kept its weights
    assert group_is_whole(pair, 2)
    assert pair.wait_until_idle() == (0, 0, 0)


def test_a_stopped_rank_is_noticed_and_replaced(nibble, undisturbed):
    with Server(nibble, "--tensor-parallel-size", 2, *SAME, "--rank-timeout", 5) as server:
        before = rank_processes(server.process.pid)

        def disturb():
            os.kill(before[1], signal.SIGSTOP)
            wait_until(lambda: server.metric("nibble:rank_losses_total", rank=1, reason="silent") == 1, server.log)

        assert run_streams(server, requests(8, 400), disturb) == undisturbed
        wait_until(lambda: not alive(before[1]) and group_is_whole(server, 2), server.log)
        assert server.metric("nibble:rank_losses_total") == 1
        assert server.wait_until_idle() == (0, 0, 0)


def test_an_idle_group_notices_too(pair):
    before = rank_processes(pair.process.pid)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: rank_processes(pair.process.pid).get(0) not in (None, before[0]) and group_is_whole(pair, 2),
               pair.log)
    assert "Once" not in greedy(pair, "Once upon a time", 8)


def test_one_rank_in_a_process_of_its_own(nibble, undisturbed):
    """As on a GPU, whose loss ends a process: the server and its clients' streams outlive it."""
    with Server(nibble, "--distributed-executor-backend", "mp", "--threads", 1, "--dtype", "float32", "--rank-timeout", 60) as server:
        assert "ranks      1, 1 thread each" in server.log()
        before = rank_processes(server.process.pid)
        assert sorted(before) == [0]

        def disturb():
            kill_at_work(server, lambda: rank_processes(server.process.pid), 0, 8)

        assert run_streams(server, requests(8, 400), disturb) == undisturbed
        assert group_is_whole(server, 1)
        assert sorted(rank_processes(server.process.pid)) == [0]
        assert server.wait_until_idle() == (0, 0, 0)
    with Server(nibble, "--threads", 1) as server:
        assert not rank_processes(server.process.pid)  # on the CPU nothing is lost but with the server


def test_readiness_names_the_missing_rank(pair):
    def kill_until_seen():
        if 1 in (ranks := rank_processes(pair.process.pid)):  # it comes back within a moment
            os.kill(ranks[1], signal.SIGKILL)
        answer = pair.request("GET", "/health")
        return answer[0] != 200 and "rank 1" in str(answer[1]) and answer

    with held([rank_processes(pair.process.pid)[0]]):
        stream = Stream(pair, {"prompt": "Once", "max_tokens": 8})
        wait_until(lambda: in_progress(pair) == 1, pair.log)
        status, answer, headers = wait_until(kill_until_seen, pair.log)
    assert status == 503 and "rank 1" in str(answer), answer
    assert int(headers["Retry-After"]) > 0
    assert stream.result()[2] is not None  # it waited
    wait_until(lambda: group_is_whole(pair, 2), pair.log)


def test_draining_while_the_group_is_broken(nibble):
    """SIGTERM with a rank missing: what runs is finished, nothing is left."""
    before = shm_names()
    server = Server(nibble, "--tensor-parallel-size", 2, *EXACT)
    ranks = rank_processes(server.process.pid)
    streams = [Stream(server, body) for body in requests(4, 300)]
    assert all(stream.delivered.wait(60) for stream in streams)
    with held([ranks[0]]):
        streams += [Stream(server, body) for body in requests(4, 300)]
        wait_until(lambda: in_progress(server) >= 4, server.log)
        os.kill(ranks[1], signal.SIGKILL)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.metric("nibble:health_state", state="draining") == 1, server.log)
    assert [stream.result()[1:] for stream in streams] == [(300, "length")] * 8
    with server:
        server.process.wait(60)
    assert not any(alive(pid) for pid in ranks.values())
    assert shm_names() <= before


def test_ctrl_c_goes_to_all_processes_and_still_drains(nibble):
    """A terminal signals the whole foreground group: ranks must not die before the server has drained."""
    server = Server(nibble, "--tensor-parallel-size", 2, *EXACT, start_new_session=True)
    ranks = rank_processes(server.process.pid)
    streams = [Stream(server, body) for body in requests(4, 300)]
    assert all(stream.delivered.wait(60) for stream in streams)
    with held([ranks[0]]):
        streams += [Stream(server, body) for body in requests(4, 300)]
        wait_until(lambda: in_progress(server) >= 4, server.log)
        os.killpg(server.process.pid, signal.SIGINT)
        wait_until(lambda: server.metric("nibble:health_state", state="draining") == 1, server.log)
    assert [stream.result()[1:] for stream in streams] == [(300, "length")] * 8
    with server:
        server.process.wait(60)
    assert not any(alive(pid) for pid in ranks.values())


def test_ranks_end_with_a_killed_server(nibble):
    before = shm_names()
    server = Server(nibble, "--tensor-parallel-size", 2, *EXACT)
    ranks = rank_processes(server.process.pid)
    stream = Stream(server, {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True})
    assert stream.delivered.wait(60)
    with held([ranks[0]]):
        Stream(server, {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True})
        wait_until(lambda: in_progress(server) >= 1, server.log)
        server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(alive(pid) for pid in ranks.values()), "ranks outlive their server")
    wait_until(lambda: shm_names() <= before, shm_names)


def test_a_rank_that_cannot_come_back_times_out(nibble):
    """Killed again and again: requests wait --group-timeout, then 503 and an error event, and the server lives."""
    with Server(nibble, "--tensor-parallel-size", 2, *EXACT, "--group-timeout", 1) as server:
        # A minute of work, so that it is in progress.
        stream = Stream(server, {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "n": 128})
        assert stream.delivered.wait(60)

        def kill_until_refused():
            for pid in rank_processes(server.process.pid).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if stream.is_alive():
                return None
            answer = server.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 4})
            return answer[0] != 200 and answer  # the group may have been there again for a moment

        status, answer, headers = wait_until(kill_until_refused, server.log)
        assert (status, answer["error"]["code"]) == (503, "unavailable"), answer
        assert int(headers["Retry-After"]) > 0
        assert stream.error is not None and stream.error["code"] == "unavailable" and len(stream.text) > 0
        wait_until(lambda: group_is_whole(server, 2), server.log)
        assert len(greedy(server, "Once")) > 0
        assert server.wait_until_idle() == (0, 0, 0)


@pytest.mark.parametrize("options, named", [
    (["--tensor-parallel-size", "3"], ["8", "3"]),  # of 8 heads
    (["--tensor-parallel-size", "65", "--rank-timeout", "0"], ["--tensor-parallel-size is 65, want 1 to 64",
                                                              "--rank-timeout is 0"]),
    (["--tensor-parallel-size", "2", "--threads", "2"], ["--rank-threads"]),
    (["--tensor-parallel-size", "2", "--all-reduce", "int7"], ["--all-reduce is 'int7'"]),
    (["--tensor-parallel-size", "2", "--kv-cache-memory-bytes", "1000"], ["--kv-cache-memory-bytes"]),
    (["--tensor-parallel-size", "2", "--cpu-binding", "0-2"], ["--cpu-binding names 3 CPUs"]),
    (["--tensor-parallel-size", "3", "--nnodes", "2"], ["a multiple of --nnodes", "--master-addr is missing",
                                                        "NIBBLE_CLUSTER_SECRET"]),
])
def test_wrong_options_of_ranks(nibble, options, named):
    result = subprocess.run([str(nibble), "serve", str(STORIES), "--port", "0", "--grpc-port", "-1", *options],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    for part in named:
        assert part in result.stderr, result.stderr


def test_a_rank_is_not_for_people(nibble):
    text = subprocess.run([str(nibble), "--help"], capture_output=True, text=True).stdout
    assert "serve" in text and "rank" not in text.split("Subcommands")[1]
    result = subprocess.run([str(nibble), "rank", str(STORIES), "--tensor-parallel-size", "2", "--pipeline-parallel-size", "1",
                             "--expert-parallel-size", "1", "--rank", "2", "--control-fd", "0", "--block-size", "16", "--max-num-batched-tokens", "64", "--max-num-seqs", "4",
                             "--max-model-len", "64", "--model-fingerprint", "0", "--device-index", "0", "--host-ranks", "2",
                             "--kv-cache-memory-bytes", "0", "--min-batched-tokens", "1"],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "--rank is 2, want 0 to 1" in result.stderr and "--control-fd is 0" in result.stderr


def test_a_rank_of_another_model_stays_out(nibble, tmp_path):
    """Files that change while the server runs: a rank that starts anew must not compute another model."""
    model = tmp_path / "model"
    shutil.copytree(STORIES, model)
    with Server(nibble, "--tensor-parallel-size", 2, "--served-model-name", MODEL, *EXACT, model=model) as server:
        before = greedy(server, "Once upon a time")
        config = (model / "config.json").read_text()
        (model / "config.json").write_text(config.replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
        os.kill(rank_processes(server.process.pid)[1], signal.SIGKILL)
        wait_until(lambda: "no longer those that the server was started with" in server.log(), server.log)
        assert server.request("GET", "/health")[0] == 503
        (model / "config.json").write_text(config)
        wait_until(lambda: group_is_whole(server, 2), server.log)
        assert greedy(server, "Once upon a time") == before
