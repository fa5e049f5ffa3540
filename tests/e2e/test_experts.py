# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""A model with experts: the same text however ranks share it, what is told of the experts, failures, refusals."""
import json
import socket
import subprocess

import pytest

from nibble_server import ROOT, STORIES, Server
from ranks import (HEAD, Cluster, Node, group_is_whole, kill_at_work, rank_processes, refused, requests, run_streams, shm_names,
                   wait_until)

MODEL = "stories-mixtral"
MIXTRAL = ROOT / "models" / MODEL
LAYERS, EXPERTS, PER_TOKEN = 4, 8, 2
# Sums of ranks come in another order than one rank's; all the same, every token is the reference's.
ONE = ("--dtype", "float32")
STAGES = (*ONE, "--rank-timeout", 60, "--rank-threads", 1)  # none is lost because the machine stood still for a while
RANKS = (*STAGES, "--all-reduce", "none")


@pytest.fixture(scope="module")
def reference():
    return json.loads((MIXTRAL / "reference.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    before = shm_names()
    yield
    wait_until(lambda: shm_names() <= before, shm_names)


def bodies(count, max_tokens):
    return [{**body, "model": MODEL} for body in requests(count, max_tokens)]


def says_the_reference(server, reference):
    for case in reference["prompts"]:
        status, answer, _ = server.post("/v1/completions", {"model": MODEL, "prompt": case["ids"], "max_tokens": 32,
                                                            "temperature": 0, "ignore_eos": True,
                                                            "skip_special_tokens": False})
        assert (status, answer["choices"][0]["text"]) == (200, case["greedy_text"]), server.log()


def tokens_of_layer(server, layer):
    return server.metric("nibble:moe_expert_tokens_total", layer=layer)


def expected_tokens(server, reference):
    """By layer, after says_the_reference() alone."""
    # All but the last token of an answer are computed, prompts once: the cache may have had them.
    computed = server.metric("vllm:prompt_tokens_total") - server.metric("vllm:prompt_tokens_cached_total")
    generated = server.metric("vllm:generation_tokens_total")
    computed += generated - len(reference["prompts"])
    # Of the last layer only what the next token is chosen from.
    return [PER_TOKEN * computed] * (LAYERS - 1) + [PER_TOKEN * generated]


@pytest.fixture(scope="module")
def alone(nibble, reference, tmp_path_factory):
    """What one process says to bodies(6, 300), and the expert load that it recorded."""
    record = tmp_path_factory.mktemp("load") / "load.json"
    with Server(nibble, *ONE, "--record-expert-load", record, model=MIXTRAL) as server:
        assert "6.83 M per token" in server.log(), server.log()
        says_the_reference(server, reference)
        assert [tokens_of_layer(server, layer) for layer in range(LAYERS)] == expected_tokens(server, reference)
        results = run_streams(server, bodies(6, 300))
        shown = inspect(nibble, "--experts", server.url, "--json")
        assert shown["num_experts"] == EXPERTS
        assert all(0 < server.metric("nibble:moe_balancedness", layer=layer) <= 1 for layer in range(LAYERS))
    recorded = json.loads(record.read_text())
    assert recorded["tokens"] == [layer["experts"] for layer in shown["layers"]]
    return results, record


def inspect(nibble, *options):
    result = subprocess.run([str(nibble), "inspect", *map(str, options)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout) if "--json" in options else result.stdout


def test_inspect_shows_loads(nibble, alone):
    _, record = alone
    text = inspect(nibble, "--experts", record)
    assert "EP2" in text and "EP8" in text and len(text.splitlines()) == 2 + LAYERS
    shown = inspect(nibble, "--experts", record, "--expert-parallel-size", 4, "--num-redundant-experts", 4, "--json")
    for layer in shown["layers"]:
        balance = layer["balancedness"]
        assert balance["EP4"] <= balance["EP4 +4"] <= 1, layer


def test_inspect_shows_the_model(nibble):
    shown = inspect(nibble, MIXTRAL, "--json")
    assert (shown["experts"], shown["experts_per_token"], shown["moe_layers"]) == (EXPERTS, PER_TOKEN, LAYERS)
    assert shown["active_parameters"] < shown["parameters"]


def test_quantized_while_loading(nibble):
    with Server(nibble, "--quantization", "w4a8", "--tensor-parallel-size", 2, "--enable-expert-parallel",
                "--check-routing", model=MIXTRAL) as server:
        answer = server.post("/v1/completions", {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 64,
                                                 "temperature": 0})[1]
        assert len(answer["choices"][0]["text"]) > 100
        assert "w4a8" in server.log() and "experts whole on each" in server.log()


@pytest.mark.parametrize("options, banner", [
    (("--tensor-parallel-size", 2), "ranks      2, a slice of every expert on each"),
    (("--tensor-parallel-size", 4, "--expert-parallel-size", 2, "--check-routing"),
     "ranks      4, experts in 2 parts of 2 slices"),
])
def test_ranks_say_what_one_says(nibble, reference, options, banner):
    with Server(nibble, *RANKS, *options, model=MIXTRAL) as server:
        assert banner in server.log(), server.log()
        says_the_reference(server, reference)
        expected = expected_tokens(server, reference)  # ranks tell once a second
        wait_until(lambda: [tokens_of_layer(server, layer) for layer in range(LAYERS)] == expected, server.log)


def test_whole_experts_placed_by_load(nibble, reference, alone):
    """Copies of full experts: the same text, and none counted twice."""
    results, record = alone
    with Server(nibble, *RANKS, "--tensor-parallel-size", 2, "--enable-expert-parallel", "--check-routing",
                "--expert-load", record, "--num-redundant-experts", 2, model=MIXTRAL) as server:
        assert "experts whole on each, placed by load with 2 copies" in server.log(), server.log()
        says_the_reference(server, reference)
        assert run_streams(server, bodies(6, 300)) == results
        generated = server.metric("vllm:generation_tokens_total")
        wait_until(lambda: tokens_of_layer(server, LAYERS - 1) == PER_TOKEN * generated, server.log)
        assert all(0.5 <= server.metric("nibble:moe_balancedness", layer=layer) <= 1 for layer in range(LAYERS))


def test_two_stages_say_what_one_says(nibble, reference, alone):
    with Server(nibble, *STAGES, "--pipeline-parallel-size", 2, model=MIXTRAL) as server:
        assert "ranks      2 stages x 1" in server.log() and "all-reduce" not in server.log(), server.log()
        says_the_reference(server, reference)
        assert run_streams(server, bodies(6, 300)) == alone[0]


@pytest.fixture(scope="module")
def stages(nibble):
    """Two stages of two ranks with whole experts."""
    with Server(nibble, *RANKS, "--pipeline-parallel-size", 2, "--tensor-parallel-size", 2, "--enable-expert-parallel",
                "--check-routing", model=MIXTRAL) as server:
        yield server


def test_stages_of_ranks_say_what_one_says(stages, reference, alone):
    assert "ranks      2 stages x 2, experts whole on each" in stages.log(), stages.log()
    assert sorted(rank_processes(stages.process.pid)) == [0, 1, 2, 3]
    says_the_reference(stages, reference)
    assert run_streams(stages, bodies(6, 300)) == alone[0]
    # Every stage counts its own layers.
    wait_until(lambda: tokens_of_layer(stages, 0) == tokens_of_layer(stages, 2) > 0, stages.log)


@pytest.mark.parametrize("rank", [1, 2])  # of the first stage; of the last one, and the one that samples
def test_streams_go_on_when_a_rank_of_a_stage_is_killed(stages, alone, rank):
    before = rank_processes(stages.process.pid)
    counted = stages.metric("nibble:moe_expert_tokens_total")

    def disturb():
        kill_at_work(stages, lambda: rank_processes(stages.process.pid), rank, 6)

    assert run_streams(stages, bodies(6, 300), disturb) == alone[0]
    assert group_is_whole(stages, 4)
    after = rank_processes(stages.process.pid)
    assert [other for other in range(4) if after[other] != before[other]] == [rank]
    assert stages.wait_until_idle() == (0, 0, 0)
    wait_until(lambda: stages.metric("nibble:moe_expert_tokens_total") > counted, stages.log)


def test_two_nodes_with_a_stage_each(nibble, reference, alone, tmp_path):
    """Stages over the network; every node reads the load that decides the layout, and it must be the same."""
    results, record = alone
    size = (*RANKS, "--pipeline-parallel-size", 2, "--tensor-parallel-size", 2, "--nnodes", 2, "--master-addr", HEAD,
            "--enable-expert-parallel")
    other = tmp_path / "other.json"
    load = json.loads(record.read_text())
    load["tokens"][0].reverse()
    other.write_text(json.dumps(load))
    with Cluster(nibble, size, "--expert-load", record, model=MIXTRAL) as cluster:
        assert "2 stages x 2, experts whole on each, placed by load on 2 nodes" in cluster.server.log()
        says_the_reference(cluster.server, reference)
        assert sorted(rank_processes(cluster.node.process.pid)) == [2, 3]

        def disturb():
            kill_at_work(cluster.server, lambda: rank_processes(cluster.node.process.pid), 3, 6)

        assert run_streams(cluster.server, bodies(6, 300), disturb) == results
        cluster.node.process.kill()  # a signal alone would wait for node 0
        cluster.node.process.wait()
        wait_until(lambda: cluster.server.request("GET", "/health")[0] == 503, cluster.server.log)
        said = refused(Node(nibble, *(other if option == record else option for option in cluster.options), "--node-rank", 1,
                            model=MIXTRAL))
        assert "its options are not node 0's: --expert-load has another content\n" in said, said
        cluster.node = cluster.join()
        wait_until(lambda: group_is_whole(cluster.server, 4), cluster.server.log)
        says_the_reference(cluster.server, reference)


@pytest.mark.parametrize("model, options, named", [
    (STORIES, ["--tensor-parallel-size", "2", "--enable-expert-parallel"],
     ["--enable-expert-parallel: the model (LlamaForCausalLM) has no experts"]),
    (STORIES, ["--record-expert-load", "x"], ["--record-expert-load x: the model (LlamaForCausalLM) has no experts"]),
    (STORIES, ["--pipeline-parallel-size", "5"], ["--pipeline-parallel-size is 5, want 1 to 4"]),
    (MIXTRAL, ["--tensor-parallel-size", "16", "--enable-expert-parallel"], ["16, want 8 at most"]),
    (MIXTRAL, ["--tensor-parallel-size", "4", "--expert-parallel-size", "3", "--num-redundant-experts", "1"],
     ["--expert-parallel-size is 3, want a divisor of --tensor-parallel-size (4)", "--expert-load FILE is missing"]),
    (MIXTRAL, ["--tensor-parallel-size", "2", "--expert-load", "/nonexistent"], ["--enable-expert-parallel"]),
    (MIXTRAL, ["--tensor-parallel-size", "2", "--enable-expert-parallel", "--expert-load", "/nonexistent"],
     ["--expert-load", "/nonexistent"]),
    (MIXTRAL, ["--record-expert-load", "/nonexistent/load.json"], ["--record-expert-load", "/nonexistent/load.json"]),
])
def test_wrong_options_are_refused(nibble, model, options, named):
    result = subprocess.run([str(nibble), "serve", str(model), "--port", "0", "--grpc-port", "-1", *options],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    for part in named:
        assert part in result.stderr, result.stderr


@pytest.mark.parametrize("option, other", [("--port", "--grpc-port"), ("--grpc-port", "--port")])
def test_a_port_in_use_is_found_before_ranks_start(nibble, option, other):
    with socket.create_server((HEAD, 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run([str(nibble), "serve", str(MIXTRAL), "--pipeline-parallel-size", "2", option, port, other, "0"],
                                capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and port in result.stderr, result.stderr
    assert "loading" not in result.stderr, result.stderr
