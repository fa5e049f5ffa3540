# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""nibble bench serve and nibble bench sweep against the real server. No figure of speed is asserted."""
import json
import os
import signal
import subprocess

import pytest

from nibble_server import STORIES, Server

SMALL = ["--num-prompts", 8, "--random-input-len", 16, "--random-output-len", 6, "--temperature", 0]
VLLM_KEYS = {
    "date", "backend", "model_id", "num_prompts", "request_rate", "burstiness", "max_concurrency", "duration", "completed",
    "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput", "output_throughput",
    "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests",
} | {f"{statistic}_{metric}_ms" for statistic in ("mean", "median", "std", "p99") for metric in ("ttft", "tpot", "itl", "e2el")}
DETAILS = {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "send_delays", "errors", "finish_reasons"}


def bench(nibble, *arguments, command="serve", environment=None):
    environment = {key: value for key, value in os.environ.items() if key != "NIBBLE_API_KEY"} | (environment or {})
    return subprocess.run([str(nibble), "bench", command, *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          env=environment)


def target(server, kind):
    return ["--grpc", server.grpc_address] if "grpc" in kind else ["--url", server.url]


@pytest.mark.parametrize("kind, backend", [("openai", "openai"), ("openai-chat", "openai-chat"), ("nibble-grpc", "openai"),
                                           ("nibble-grpc-chat", "openai-chat")])
def test_every_way_to_the_server(nibble, server, kind, backend):
    generated = server.metric("vllm:generation_tokens_total")
    done = bench(nibble, *target(server, kind), "--backend", backend, *SMALL, "--max-concurrency", 4, "--num-warmups", 1, "--json",
                 "--save-detailed", "--goodput", "ttft:60000", "tpot:60000", "--metadata", "team=a", "--seed", 7)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert VLLM_KEYS | DETAILS <= set(result), VLLM_KEYS | DETAILS - set(result)
    assert (result["completed"], result["failed"], result["backend"]) == (8, 0, kind)
    assert result["total_output_tokens"] == 8 * 6 and result["output_lens"] == [6] * 8
    assert server.metric("vllm:generation_tokens_total") - generated == 9 * 6  # and one to warm up
    assert result["finish_reasons"] == ["length"] * 8 and result["errors"] == [""] * 8
    if backend == "openai":
        assert result["input_lens"] == [16] * 8
    else:
        assert all(16 <= length <= 60 for length in result["input_lens"])  # and what the template adds
    assert 1 <= result["max_concurrent_requests"] <= 4
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["team"] == "a" and result["request_rate"] == "inf"
    assert [0 < ttft <= latency < 60 for ttft, latency in zip(result["ttfts"], result["latencies"])] == [True] * 8
    assert server.wait_until_idle() == (0, 0, 0)


def test_the_block_and_the_files(nibble, server, tmp_path):
    done = bench(nibble, "--url", server.url, *SMALL, "--request-rate", 200, "--save-result", "--result-dir", tmp_path / "a",
                 "--result-filename", "r.json", "--report", tmp_path / "r.html", "--metric-percentiles", "50,99.9")
    assert done.returncode == 0, done.stderr
    assert "= Serving Benchmark Result =" in done.stdout and "P99.9 TTFT (ms):" in done.stdout
    result = json.loads((tmp_path / "a" / "r.json").read_text())
    assert result["completed"] == 8 and not DETAILS & set(result) and result["request_rate"] == 200
    assert (tmp_path / "r.html").read_text().startswith("<!")


def test_datasets(nibble, server, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "Once upon a time", "output_tokens": 3}\n{"prompt": [1, 2, 3], "output_tokens": 4}\n')
    done = bench(nibble, "--url", server.url, "--dataset-name", "custom", "--dataset-path", prompts, "--num-prompts", 0,
                 "--ignore-eos", "--disable-shuffle", "--json", "--save-detailed")
    assert done.returncode == 0 and json.loads(done.stdout)["output_lens"] == [3, 4], done
    trace = tmp_path / "t.jsonl"
    trace.write_text("".join(json.dumps({"timestamp": 5 + second, "input_tokens": 9, "output_tokens": 2}) + "\n"
                             for second in (0.5, 0, 0.25)))
    done = bench(nibble, "--url", server.url, "--dataset-name", "timed-trace", "--dataset-path", trace, "--num-prompts", 0, "--json",
                 "--save-detailed")
    result = json.loads(done.stdout)
    assert result["input_lens"] == [9] * 3 and result["duration"] >= 0.5
    assert all(start >= planned for start, planned in zip(result["start_times"], (0, 0.25, 0.5)))
    cached = server.metric("vllm:prompt_tokens_cached_total")
    done = bench(nibble, "--url", server.url, "--dataset-name", "prefix_repetition", "--num-prompts", 6,
                 "--prefix-repetition-prefix-len", 64, "--prefix-repetition-suffix-len", 8, "--prefix-repetition-num-prefixes", 1,
                 "--prefix-repetition-output-len", 2, "--max-concurrency", 1, "--json", "--seed", 11)
    assert json.loads(done.stdout)["completed"] == 6
    assert server.metric("vllm:prompt_tokens_cached_total") - cached >= 5 * 64
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"prompt": "a", "output_tokens": 0}\n')
    done = bench(nibble, "--url", server.url, "--dataset-name", "custom", "--dataset-path", bad)
    assert done.returncode == 1 and "bad.jsonl: line 2: output_tokens is 0, want 1 to" in done.stderr and not done.stdout


def test_a_tokenizer_of_ones_own(nibble, server):
    done = bench(nibble, "--url", server.url, "--tokenizer", STORIES, "--backend", "openai-chat", *SMALL, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["completed"] == 8, done
    done = bench(nibble, "--url", server.url, "--tokenizer", "no/such/model", *SMALL)
    assert done.returncode == 1 and "--tokenizer: no/such/model" in done.stderr


def test_failures_are_counted_and_are_the_exit_status(nibble, server):
    """Prompts that do not fit, from a server that answers others."""
    done = bench(nibble, "--url", server.url, "--num-prompts", 3, "--random-input-len", 4000, "--json")
    assert done.returncode == 1 and "no request was answered" in done.stderr
    result = json.loads(done.stdout)
    assert result["failed"] == 3 and result["error_counts"][0]["count"] == 3
    assert "HTTP 400: " in result["error_counts"][0]["error"]
    done = bench(nibble, "--grpc", server.grpc_address, "--num-prompts", 3, "--random-input-len", 4000, "--json")
    assert done.returncode == 1 and "INVALID_ARGUMENT: " in json.loads(done.stdout)["error_counts"][0]["error"]


@pytest.mark.parametrize("arguments, named", [
    (["--url", "http://127.0.0.1:1"], "cannot connect to 127.0.0.1:1: Connection refused"),
    (["--grpc", "127.0.0.1:1"], "127.0.0.1:1: UNAVAILABLE: "),
    (["--url", "nowhere"], "--url: 'nowhere' is not an address"),
    (["--request-rate", 0], "--request-rate is 0"),
    (["--goodput", "ttft"], "--goodput 'ttft': want ttft:MS"),
])
def test_what_cannot_begin_says_why(nibble, arguments, named):
    done = bench(nibble, *arguments, *SMALL)
    assert done.returncode == 1 and named in done.stderr and not done.stdout, done


def test_a_model_that_is_not_served(nibble, server):
    for kind in ("openai", "grpc"):
        done = bench(nibble, *target(server, kind), "--model", "other", *SMALL)
        assert done.returncode == 1 and "has no 'other'; it serves stories-llama" in done.stderr, done


def test_tls_to_a_server_without_it(nibble, server):
    done = bench(nibble, "--url", server.url.replace("http", "https"), "--insecure", *SMALL)
    assert done.returncode == 1 and "cannot make a TLS connection to " in done.stderr, done


@pytest.fixture(scope="module")
def guarded(nibble, tmp_path_factory):
    """A server with TLS and a key, and the file with its certificate, which it signed itself."""
    folder = tmp_path_factory.mktemp("load")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key),
                    "-out", str(cert), "-days", "2", "-subj", "/CN=load", "-addext", "subjectAltName=IP:127.0.0.1"],
                   check=True, capture_output=True)
    with Server(nibble, "--quantization", "w4a8", "--ssl-certfile", cert, "--ssl-keyfile", key,
                environment={"NIBBLE_API_KEY": "secret"}) as server:
        yield server, cert


@pytest.mark.parametrize("kind", ["openai", "grpc"])
def test_a_guarded_server(nibble, guarded, kind):
    server, cert = guarded
    where = target(server, kind)
    done = bench(nibble, *where, "--ca-cert", cert, "--api-key", "secret", *SMALL, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["completed"] == 8, done
    done = bench(nibble, *where, "--insecure", *SMALL, "--json", environment={"NIBBLE_API_KEY": "secret"})
    assert done.returncode == 0 and json.loads(done.stdout)["completed"] == 8, done
    done = bench(nibble, *where, "--ca-cert", cert, "--api-key", "wrong", *SMALL)
    assert done.returncode == 1 and "--api-key or NIBBLE_API_KEY has the server's key" in done.stderr, done
    where += ["--grpc-tls"] if kind == "grpc" else []
    done = bench(nibble, *where, "--api-key", "secret", *SMALL)
    assert done.returncode == 1 and ("self-signed certificate" in done.stderr or kind == "grpc"), done


@pytest.mark.parametrize("kind", ["openai", "grpc"])
def test_ctrl_c_ends_with_what_was_measured(nibble, server, kind):
    # Minutes of work, so that it is in progress.
    arguments = [*target(server, kind), "--num-prompts", 10_000, "--random-input-len", 8, "--random-output-len", 400,
                 "--max-concurrency", 2, "--json"]
    process = subprocess.Popen([str(nibble), "bench", "serve", *map(str, arguments)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    finished = server.metric("vllm:request_success_total", finished_reason="length")
    while server.metric("vllm:request_success_total", finished_reason="length") < finished + 3 and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    result = json.loads(out)
    assert result["completed"] >= 3 and result["failed"] == 0 and result["interrupted"] <= 2
    assert result["num_prompts"] == 10_000
    assert server.wait_until_idle() == (0, 0, 0)


@pytest.mark.parametrize("option, values", [("--max-concurrencies", [1, 4]), ("--request-rates", [50, 100])])
def test_sweeps(nibble, server, tmp_path, option, values):
    done = bench(nibble, "--url", server.url, *SMALL, option, ",".join(map(str, values)), "--save-result", "--result-dir", tmp_path,
                 "--result-filename", "s.json", "--report", tmp_path / "s.html", command="sweep")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 and "TTFT ms" in done.stdout
    sweep = json.loads((tmp_path / "s.json").read_text())
    assert [run[sweep["sweep"]] for run in sweep["results"]] == values
    assert [run["completed"] for run in sweep["results"]] == [8, 8]
    assert [run["seed"] for run in sweep["results"]] == [0, 1]
    assert (tmp_path / "s.html").read_text().startswith("<!")
