# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Two nodes on one machine: joining, what is refused, a node that dies and comes back."""
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess

import grpc
import pytest

from nibble_server import STORIES, Server
from ranks import (HEAD, MODEL, SECRET, Cluster, Node, Stream, alive, free_port, group_is_whole, held, in_progress, rank_processes,
                   refused, requests, run_streams, shm_names, wait_until)

SIZE = ("--tensor-parallel-size", 2, "--nnodes", 2, "--master-addr", HEAD)
SMALL = (*SIZE, "--rank-threads", 1)
EXACT = (*SMALL, "--dtype", "float32", "--all-reduce", "none")


@pytest.fixture(scope="module")
def cluster(nibble):
    before = shm_names()
    with Cluster(nibble, EXACT) as running:
        yield running
    wait_until(lambda: shm_names() <= before, shm_names)


def test_the_measured_choice_is_kept(nibble, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    choices = []
    for measure in ((), (), ("--all-reduce-measure",)):
        with Cluster(nibble, SMALL, head_options=measure, environment=environment) as cluster:
            # Ranks write it to the log of the node that runs them; rank 0 is the head's.
            assert ("all-reduce measured in" in cluster.server.log()) == (choices == [] or measure != ())
            choices.append(re.search(r"all-reduce auto: (.*)", cluster.server.log()).group(1))
    assert choices[0] == choices[1]
    assert len(list((tmp_path / "nibble").iterdir())) == 1


def test_two_nodes_say_what_one_process_says(cluster, reference):
    assert "2 on 2 nodes" in cluster.server.log(), cluster.server.log()
    assert "node 1 of 2, ranks 1..1 of 2" in cluster.node.log(), cluster.node.log()
    for case in reference["prompts"]:
        answer = cluster.server.post("/v1/completions", {"model": MODEL, "prompt": case["ids"], "max_tokens": 32,
                                                         "temperature": 0, "ignore_eos": True})[1]
        assert answer["choices"][0]["text"] == case["greedy_text"]
    assert cluster.server.metric("nibble:rank_up", node=1, rank=1) == 1


def test_strangers_are_refused_and_the_group_goes_on(cluster, tmp_path):
    def disturb():
        assert "secret" in refused(cluster.join(secret="another secret, as long"))
        assert "node 1" in refused(cluster.join())  # the number is taken
        other_options = refused(cluster.join("--quantization", "w4a8"))
        assert "its options are not node 0's: --quantization is w4a8 (node 0: none)\n" in other_options
        model = tmp_path / "model"
        shutil.copytree(STORIES, model)
        (model / "tokenizer_config.json").chmod(0o644)
        with open(model / "tokenizer_config.json", "a") as file:
            file.write("\n")
        assert "model" in refused(cluster.join(model=model))
        port = cluster.options[cluster.options.index("--master-port") + 1]
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(512), b""):
            with socket.create_connection((HEAD, port), timeout=60) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(garbage)

    assert [result[1:] for result in run_streams(cluster.server, requests(2, 600), disturb)] == [(600, "length")] * 2
    assert cluster.server.metric("nibble:group_formations_total") == 1, cluster.server.log()
    assert group_is_whole(cluster.server, 2), cluster.server.log()


def test_a_killed_node_comes_back_and_streams_go_on(cluster):
    undisturbed = run_streams(cluster.server, requests(4, 300))
    lost = rank_processes(cluster.node.process.pid)

    def disturb():
        cluster.node.process.kill()
        cluster.node.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in lost.values()), "ranks outlive their node")
        wait_until(lambda: cluster.server.metric("nibble:rank_losses_total", node=1, rank=1) >= 1, cluster.server.log)
        cluster.node = cluster.join()

    assert run_streams(cluster.server, requests(4, 300), disturb) == undisturbed
    assert "node 1" in cluster.server.log()
    wait_until(lambda: group_is_whole(cluster.server, 2), cluster.server.log)


def test_a_stopped_node_is_noticed(cluster):
    undisturbed = run_streams(cluster.server, requests(4, 300))
    try:
        def disturb():
            cluster.node.process.send_signal(signal.SIGSTOP)
            status, answer, _ = wait_until(
                lambda: (health := cluster.server.request("GET", "/health"))[0] != 200 and health,
                cluster.server.log)
            assert status == 503 and "node 1" in str(answer), answer
            cluster.node.process.send_signal(signal.SIGCONT)

        assert run_streams(cluster.server, requests(4, 300), disturb) == undisturbed
    finally:
        cluster.node.process.send_signal(signal.SIGCONT)
    wait_until(lambda: group_is_whole(cluster.server, 2), cluster.server.log)


def test_a_node_that_stays_away_times_out(nibble):
    """Requests wait --group-timeout; then 503 and UNAVAILABLE with a retry hint, until the node is back."""
    with Cluster(nibble, EXACT, "--group-timeout", 2) as cluster:
        server = cluster.server
        # A minute of work, so that it is in progress.
        stream = Stream(server, {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "n": 128})
        assert stream.delivered.wait(60)
        cluster.node.process.kill()
        cluster.node.process.wait()
        waited = server.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 4})
        stream.join(60)
        for status, answer, headers in (waited, server.post("/v1/completions", {"model": MODEL, "prompt": "x"})):
            assert (status, answer["error"]["code"]) == (503, "unavailable"), answer
            assert int(headers["Retry-After"]) > 0
        assert stream.error is not None and stream.error["code"] == "unavailable"
        assert len(stream.text) > 0
        with grpc.insecure_channel(server.grpc_address) as channel:
            call = channel.unary_stream("/nibble.v1.Nibble/Generate")(b"\x12\x01x")  # GenerateRequest.text
            with pytest.raises(grpc.RpcError) as error:
                list(call)
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "retry-after-ms" in dict(error.value.trailing_metadata())
        cluster.node = cluster.join()
        wait_until(lambda: group_is_whole(server, 2), server.log)
        assert server.post("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 4})[0] == 200
        assert server.wait_until_idle() == (0, 0, 0)


def test_a_signal_to_all_nodes_at_once_cuts_no_stream(nibble):
    with Cluster(nibble, EXACT, "--rank-timeout", 60) as cluster:
        streams = [Stream(cluster.server, body) for body in requests(2, 400)]
        assert all(stream.delivered.wait(60) for stream in streams)
        with held(rank_processes(cluster.node.process.pid).values()):
            streams += [Stream(cluster.server, body) for body in requests(2, 400)]
            wait_until(lambda: in_progress(cluster.server) >= 2, cluster.server.log)
            cluster.node.process.terminate()
            cluster.server.process.terminate()
            wait_until(lambda: "waiting for node 0 to finish" in cluster.node.log(), cluster.node.log)
            wait_until(lambda: cluster.server.metric("nibble:health_state", state="draining") == 1, cluster.server.log)
        assert [stream.result()[1:] for stream in streams] == [(400, "length")] * 4
        wait_until(lambda: cluster.server.process.poll() is not None, cluster.server.log)
        assert cluster.server.process.returncode == 0, cluster.server.log()
        wait_until(lambda: cluster.node.process.poll() is not None, cluster.node.log)
        assert "lost a rank" not in cluster.server.log()


def test_a_new_head_gets_the_node(nibble, tmp_path):
    """kill -9 of node 0: its ranks end, node 1 waits, and works for the next one."""
    before = shm_names()
    cluster = Cluster(nibble, EXACT)
    ranks = rank_processes(cluster.server.process.pid)
    cluster.server.process.kill()
    cluster.server.process.wait()
    wait_until(lambda: not any(alive(pid) for pid in ranks.values()), "ranks outlive their server")
    (tmp_path / "secret").write_text(SECRET + "\n")
    cluster.server = Server(nibble, *cluster.options, "--cluster-secret-file", tmp_path / "secret")
    with cluster:
        assert cluster.server.post("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 4})[0] == 200
        assert len(rank_processes(cluster.node.process.pid)) == 1
    wait_until(lambda: shm_names() <= before, shm_names)


def certificates(folder):
    """Options of nodes that know each other by certificates of one authority."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=tests")
    openssl("req", *key, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node")
    (folder / "names").write_text(f"subjectAltName=IP:{HEAD}")
    openssl("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", "node.pem")
    return ("--cluster-tls-ca", folder / "ca.pem", "--cluster-tls-cert", folder / "node.pem", "--cluster-tls-key",
            folder / "node.key")


def test_nodes_with_certificates_need_no_secret(nibble, tmp_path):
    (tmp_path / "other").mkdir()
    strangers = certificates(tmp_path / "other")
    with Cluster(nibble, EXACT, *certificates(tmp_path), secret="") as cluster:
        assert cluster.server.post("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 4})[0] == 200
        with Node(nibble, *cluster.options[:-6], *strangers, "--node-rank", 1, secret="") as stranger:
            wait_until(lambda: "cannot join" in stranger.log(), stranger.log)
            assert "joined" not in stranger.log()
        assert group_is_whole(cluster.server, 2)


def test_a_node_without_a_head_waits_and_ends_on_a_signal(nibble):
    with Node(nibble, *SIZE, "--master-port", free_port(HEAD), "--node-rank", 1) as node:
        wait_until(lambda: "joins" in node.log(), node.log)
    assert node.process.returncode == 0, node.log()
