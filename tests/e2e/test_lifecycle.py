# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Starting, draining, and what the operator is told."""
import re
import shutil
import signal
import subprocess

import pytest

from nibble_server import ROOT, STORIES, Server
from ranks import HOLDABLE, held, in_progress, rank_processes, wait_until

MODEL = "stories-llama"


def run(nibble, *arguments, **options):
    return subprocess.run([str(nibble), *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def test_banner_says_what_runs(server):
    log = server.log()
    for part in ("stories-llama", "LlamaForCausalLM", "4.20 M parameters", "w4a8", "cpu", "tokens", "/v1", "gRPC"):
        assert part in log, log


def test_the_log_begins_with_version_and_options(nibble):
    with Server(nibble, "--api-key", "key-of-this-test", "--max-num-seqs", 3,
                "--no-enable-prefix-caching") as server:
        line = server.lines[0]
        assert re.search(rf"nibble \d+\.\d+\.\d+: serve {STORIES} .*--max-num-seqs 3 --enable-prefix-caching=false.* --api-key \(1 given\)", line), line
        assert "key-of-this-test" not in server.log()
        assert "--block-size" not in line  # what was not given
        assert "GET /web/*" in server.log() and "main.js" not in server.log()


def test_the_curl_line_works_when_pasted(server):
    lines = server.log().splitlines()
    start = next(index for index, line in enumerate(lines) if "curl" in line)
    command = "\n".join(lines[start:start + 2])  # what comes then is the log
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert '"content"' in answer.stdout, answer.stdout


def test_an_open_address_is_named_and_warned_of(nibble):
    with Server(nibble, "--host", "0.0.0.0") as server:
        port = server.url.rsplit(":", 1)[1]
        log = server.log()
        assert f"listening: http://0.0.0.0:{port}," in log and f"HTTP       http://0.0.0.0:{port}/v1" in log
        assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in log
        assert log.count("nothing asks for a key") == 1, log
    with Server(nibble, "--host", "0.0.0.0", "--api-key", "key-of-this-test") as server:
        assert "nothing asks for a key" not in server.log()


def test_health_version_and_metrics(server):
    assert server.request("GET", "/health")[0] == 200
    assert re.match(r"\d+\.\d+\.\d+", server.request("GET", "/version")[1]["version"])
    _, text, headers = server.request("GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain")
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                 "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket",
                 "vllm:inter_token_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_bucket",
                 "vllm:request_success_total", "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total",
                 "vllm:cache_config_info", "http_requests_total"):
        assert name in text, name


def test_options_as_scripts_for_vllm_give_them(nibble):
    """The last one counts, names of two letters, sizes with a suffix."""
    def refused(*options):
        return run(nibble, "serve", "--model", "models/none", "--grpc-port", -1, *options).stderr

    assert "99999" not in refused("--port", 99999, "--port", 0) and "--port is 99999" in refused("--port", 0, "--port", 99999)
    error = refused("-tp", 2, "-pp=3", "--nnodes", 4, "--kv-cache-memory-bytes", "1GiB", "--kv-cache-memory-bytes", "-4KiB")
    assert "--pipeline-parallel-size 3 x --tensor-parallel-size 2 are 6 ranks" in error, error
    assert "--kv-cache-memory-bytes is -4096" in error, error
    ended = run(nibble, "serve", "models/none", "--kv-cache-memory-bytes", "4 GB")
    assert ended.returncode == 2 and "'4 GB' is no size" in ended.stderr and "as in 4GiB" in ended.stderr, ended.stderr


def test_tokenize_and_detokenize(server, reference):
    case = reference["prompts"][0]
    status, answer, _ = server.post("/tokenize", {"model": MODEL, "prompt": case["text"]})
    assert (status, answer["tokens"], answer["count"]) == (200, case["ids"], len(case["ids"]))
    status, answer, _ = server.post("/detokenize", {"model": MODEL, "tokens": case["ids"]})
    assert status == 200 and answer["prompt"].endswith(case["text"])
    for chat in reference["chat"]:
        status, answer, _ = server.post("/tokenize", {"messages": chat["messages"],
                                                      "add_generation_prompt": chat["add_generation_prompt"]})
        assert (status, answer["tokens"]) == (200, chat["ids"])


def test_sigterm_drains(nibble):
    server = Server(nibble, "--dtype", "float32", "--shutdown-timeout", "600", *HOLDABLE)
    connection = server.connection(timeout=600)
    with held(rank_processes(server.process.pid).values()):
        connection.request("POST", "/v1/completions", '{"model": "stories-llama", "prompt": "Once", "max_tokens": 200, '
                           '"ignore_eos": true, "stream": true, "n": 20}', {"Content-Type": "application/json"})
        wait_until(lambda: in_progress(server) == 20, server.log)
        server.process.send_signal(signal.SIGTERM)
        # Not ready, and nothing new is taken, while the streams go on.
        assert wait_until(lambda: (status := server.request("GET", "/health")[0]) != 200 and status, server.log) == 503
        assert server.post("/v1/completions", {"model": MODEL, "prompt": "x"})[0] == 503
    rest = connection.getresponse().read().decode()
    assert rest.rstrip().endswith("data: [DONE]"), rest[-200:]
    assert rest.replace(" ", "").count('"finish_reason":"length"') == 20
    with server:
        server.process.wait(60)
    assert server.process.returncode == 0


def test_shutdown_timeout_cuts_answers_off(nibble):
    server = Server(nibble, "--shutdown-timeout", "0", "--max-num-seqs", "1")
    connection = server.connection()
    # Half a minute of work and more.
    connection.request("POST", "/v1/completions", '{"model": "stories-llama", "prompt": "Once", "max_tokens": 2000, '
                       '"ignore_eos": true, "stream": true, "n": 128}', {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read(200)
    server.process.send_signal(signal.SIGTERM)
    rest = response.read().decode()  # the client is told: an error event, or a last chunk
    assert "error" in rest or "abort" in rest, rest[-300:]
    with server:
        server.process.wait(60)
    assert "cut off" in server.log()


def test_a_port_in_use_is_an_error(nibble, server):
    port = server.url.rsplit(":", 1)[1]
    result = run(nibble, "serve", STORIES, "--port", port, "--grpc-port", "-1")
    assert result.returncode == 1
    assert port in result.stderr and "in use" in result.stderr, result.stderr


@pytest.mark.parametrize("arguments, status, named", [
    (["serve", "/no/such/model"], 1, "/no/such/model"),
    (["serve", str(ROOT / "README.md")], 1, "not a directory"),
    (["serve", str(STORIES), "--port", "99999"], 1, "99999"),
    (["serve", str(STORIES), "--dtype", "float8", "--quantization", "int3"], 1, "int3"),
    (["serve", str(STORIES), "--device", "cuda"], 1, "cuda"),
    (["serve", str(STORIES), "--max-model-len", "100000"], 1, "2048"),
    (["serve", str(STORIES), "--kv-cache-memory-bytes", "1000"], 1, "--kv-cache-memory-bytes"),
    (["serve", str(STORIES), "--frobnicate"], 2, "--frobnicate"),
    (["serve"], 2, "--model is required"),
    ([], 2, "subcommand"),
    (["eval", "perplexity", str(STORIES), "--data", "/no/such/file"], 1, "/no/such/file"),
    (["inspect", "/no/such/model"], 1, "/no/such/model"),
])
def test_wrong_command_lines(nibble, arguments, status, named):
    result = run(nibble, *arguments)
    assert result.returncode == status, result.stderr
    assert named in result.stderr, result.stderr
    assert result.stdout == ""


def test_an_unknown_forced_isa_is_refused(nibble):
    result = run(nibble, "eval", "perplexity", STORIES, "--data", "x", env={"FORCE_ISA": "sse9"})
    assert result.returncode == 1
    assert "FORCE_ISA=sse9" in result.stderr


@pytest.fixture
def broken_model(tmp_path):
    """A copy of the bundled model to be broken."""
    return pathlib_copy(tmp_path / "model")


def pathlib_copy(target):
    shutil.copytree(STORIES, target)
    for path in target.iterdir():
        path.chmod(0o644)
    return target


@pytest.mark.parametrize("name, change, named", [
    ("config.json", lambda text: text.replace('"LlamaForCausalLM"', '"BananaForCausalLM"'), "BananaForCausalLM"),
    ("config.json", lambda text: text.replace('"num_hidden_layers": 4', '"num_hidden_layers": -4'), "num_hidden_layers"),
    ("config.json", lambda text: text.replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'), "model.layers.4"),
    ("config.json", lambda text: text.replace('"intermediate_size": 512', '"intermediate_size": 768'), "mlp"),
    ("config.json", lambda text: text[:100], "config.json"),
    ("tokenizer.json", lambda text: text[:5000], "tokenizer.json"),
    ("tokenizer_config.json", lambda text: text.replace("endfor", "endfrob"), "template"),
], ids=["architecture", "negative layers", "missing tensors", "wrong shapes", "cut config", "cut tokenizer", "template"])
def test_broken_models_are_refused_by_name(nibble, broken_model, name, change, named):
    path = broken_model / name
    path.write_text(change(path.read_text()))
    result = run(nibble, "serve", broken_model, "--port", "0", "--grpc-port", "0")
    assert result.returncode == 1
    assert named in result.stderr, result.stderr


def test_truncated_weights_are_refused(nibble, broken_model):
    path = broken_model / "model.safetensors"
    for size in (0, 4, 100, 5_000_000):
        data = (STORIES / "model.safetensors").read_bytes()[:size]
        path.write_bytes(data)
        result = run(nibble, "inspect", broken_model)
        assert result.returncode == 1
        assert "model.safetensors" in result.stderr, result.stderr
