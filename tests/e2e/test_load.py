# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""nibble bench serve and nibble bench sweep against the real server. No figure of speed is asserted."""
import http.server
import json
import os
import signal
import subprocess
import threading

import pytest

from nibble_server import STORIES, Server
from ranks import wait_until

SMALL = ["--num-prompts", 8, "--random-input-len", 16, "--random-output-len", 6, "--temperature", 0]
VLLM_KEYS = {
    "date", "backend", "model_id", "num_prompts", "request_rate", "burstiness", "max_concurrency", "duration", "completed",
    "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput", "output_throughput",
    "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests",
} | {f"{statistic}_{metric}_ms" for statistic in ("mean", "median", "std", "p99") for metric in ("ttft", "tpot", "itl", "e2el")}
DETAILS = {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "end_times", "send_delays", "errors", "finish_reasons"}


def bench(nibble, *arguments, command="serve", environment=None):
    environment = {key: value for key, value in os.environ.items() if key != "NIBBLE_API_KEY"} | (environment or {})
    return subprocess.run([str(nibble), "bench", command, *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          env=environment)


def target(server, kind):
    return ["--grpc", server.grpc_address] if "grpc" in kind else ["--url", server.url]


class Scripted(http.server.BaseHTTPRequestHandler):
    """A server that answers each request with two tokens at once, until its owner says otherwise."""
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, b'{"data": [{"id": "m"}]}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.on_request(self.path, body)
        if self.path == "/detokenize":
            status = 503 if self.server.broken else 200 if body["tokens"][0] < 300 else 400
            return self.answer(status, b'{"prompt": "x"}')
        token = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
        last = {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}],
                "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
        self.answer(200, b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in (token, last)) + b"data: [DONE]\n\n",
                    "text/event-stream")

    def log_message(self, *_):
        pass


@pytest.fixture
def scripted():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        server.daemon_threads = True
        server.broken = False
        server.on_request = lambda path, body: None
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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
    """Requests that the server refuses."""
    bad = ["--num-prompts", 3, "--random-input-len", 8, "--extra-body", '{"temperature": -1}', "--json", "--save-detailed"]
    done = bench(nibble, "--url", server.url, *bad)
    assert done.returncode == 1 and "no request was answered" in done.stderr
    result = json.loads(done.stdout)
    assert result["failed"] == 3 and result["error_counts"][0]["count"] == 3
    assert "HTTP 400: " in result["error_counts"][0]["error"]
    assert result["latencies"] == [0] * 3
    assert all(end > start for start, end in zip(result["start_times"], result["end_times"]))
    done = bench(nibble, "--grpc", server.grpc_address, *bad)
    assert done.returncode == 1 and "INVALID_ARGUMENT: " in json.loads(done.stdout)["error_counts"][0]["error"]


def test_what_cannot_fit_is_not_sent(nibble, server):
    for kind in ("openai", "grpc"):
        done = bench(nibble, *target(server, kind), "--num-prompts", 3, "--random-input-len", 4000)
        assert done.returncode == 1 and not done.stdout
        assert "the longest has 4000 prompt tokens and asks for 128, stories-llama has 2048 for both" in done.stderr, done


@pytest.mark.parametrize("arguments, named", [
    (["--url", "http://127.0.0.1:1"], "cannot connect to 127.0.0.1:1: Connection refused"),
    (["--grpc", "127.0.0.1:1"], "127.0.0.1:1: UNAVAILABLE: "),
    (["--url", "nowhere"], "--url: 'nowhere' is not an address"),
    (["--request-rate", 0], "--request-rate is 0"),
    (["--goodput", "ttft"], "--goodput 'ttft': want ttft:MS"),
    (["--url", "http://127.0.0.1:65536"], "--url: 'http://127.0.0.1:65536' is not an address"),
    (["--grpc", "127.0.0.1:70000"], "want HOST:PORT, a port from 1 to 65535"),
    (["--url", "http://127.0.0.1:1", "--insecure"], "go with an address of https://"),
])
def test_what_cannot_begin_says_why(nibble, arguments, named):
    done = bench(nibble, *arguments, *SMALL)
    assert done.returncode == 1 and named in done.stderr and not done.stdout, done


def test_prompts_that_do_not_fit_into_memory(nibble):
    done = bench(nibble, "--num-prompts", 10_000_000, "--random-input-len", 1024)
    assert done.returncode == 1 and "are 10240000000 tokens, the limit is" in done.stderr, done


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
    try:
        finished = server.metric("vllm:request_success_total", finished_reason="length")
        wait_until(lambda: server.metric("vllm:request_success_total", finished_reason="length") >= finished + 3
                   or process.poll() is not None, "three answers")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
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


def test_a_sweep_whose_server_fails_leaves_its_runs(nibble, scripted, tmp_path):
    """The first run is all that there is: table, JSON and report have it, and the reason is told."""
    sent = []

    def on_request(path, body):
        sent.extend([path] if path == "/v1/completions" else [])
        scripted.broken = len(sent) >= 8

    scripted.on_request = on_request
    done = bench(nibble, "--url", scripted.url, *SMALL, "--max-concurrencies", "1,2,4", "--save-result", "--result-dir", tmp_path / "r",
                 "--result-filename", "s.json", "--report", tmp_path / "s.html", command="sweep")
    assert done.returncode == 1 and "the run at 2: " in done.stderr and "503" in done.stderr, done
    assert len(done.stdout.splitlines()) == 2
    results = json.loads((tmp_path / "r" / "s.json").read_text())["results"]
    assert [result["completed"] for result in results] == [8] and "ttfts" not in results[0]
    assert (tmp_path / "s.html").read_text().startswith("<!")


def test_files_are_looked_at_before_the_test(nibble, scripted, tmp_path):
    sent = []
    scripted.on_request = lambda path, body: sent.append(path)
    done = bench(nibble, "--url", scripted.url, *SMALL, "--save-result", "--result-filename", tmp_path / "none" / "r.json")
    assert done.returncode == 1 and "--save-result: " in done.stderr and "none/r.json" in done.stderr and not done.stdout, done
    assert not sent
    done = bench(nibble, "--url", scripted.url, *SMALL, "--result-dir", tmp_path / "a")
    assert done.returncode == 1 and "go with --save-result" in done.stderr and not (tmp_path / "a").exists(), done
    done = bench(nibble, "--url", scripted.url, *SMALL, "--label", "a/b", "--save-result", "--result-dir", tmp_path / "c")
    assert done.returncode == 0, done
    assert [path.name.startswith("a-b-infqps-m-") for path in (tmp_path / "c").iterdir()] == [True]


def test_one_file_that_cannot_be_written_takes_nothing_with_it(nibble, scripted, tmp_path):
    """A folder comes to be where the JSON is to go, while the test runs."""
    scripted.on_request = lambda path, body: (tmp_path / "r.json").mkdir(exist_ok=True) if path == "/v1/completions" else None
    done = bench(nibble, "--url", scripted.url, *SMALL, "--save-result", "--result-filename", tmp_path / "r.json",
                 "--report", tmp_path / "r.html")
    assert done.returncode == 1 and "r.json is a directory" in done.stderr and "Successful requests:" in done.stdout, done
    assert (tmp_path / "r.html").read_text().startswith("<!")


def test_the_servers_counters_see_no_errors_of_the_client(nibble, server):
    before = server.metric("http_requests_total", status="400")
    for backend in ("openai", "openai-chat"):
        done = bench(nibble, "--url", server.url, "--backend", backend, *SMALL, "--json")
        assert done.returncode == 0, done
    assert server.metric("http_requests_total", status="400") == before
