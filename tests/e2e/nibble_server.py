# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Starts `nibble serve` as a user would and finds out where it listens."""
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORIES = ROOT / "models" / "stories-llama"
START_SECONDS = 120


class Server:
    """A running server; `with Server(binary, ...) as server:`. Options are passed to `nibble serve`. `wrap` is a command
    that runs it ("ip netns exec a"). With wait=False it may still be loading: see wait_for_ports()."""

    def __init__(self, binary, *options, model=STORIES, environment=None, start_new_session=False, wrap=(),
                 ports=("--port", 0, "--grpc-port", 0), wait=True):
        command = [*wrap, str(binary), "serve", str(model), *map(str, ports), *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        errors="surrogateescape", env={**os.environ, **(environment or {})},
                                        start_new_session=start_new_session)
        self.lines = []
        self._ready, self._listening = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            self.wait_for_banner()

    def wait_for_ports(self):
        """Until the server listens, which it does before it loads its model."""
        if not self._listening.wait(START_SECONDS) or self.process.poll() is not None:
            self.process.kill()
            raise AssertionError("no ports:\n" + self.log())
        listening = next(line for line in self.lines if "listening:" in line)
        self.url = re.search(r"(https?://[^\s,;]+)", listening).group(1)
        self.grpc_address = (re.search(r"gRPC ([^\s,;]+)", listening) or [None, None])[1]
        self.health_url = (re.search(r"health (http://[^\s,;]+)", listening) or [None, None])[1]

    def wait_for_banner(self):
        if not self._ready.wait(START_SECONDS):
            self.process.kill()
            raise AssertionError("no banner:\n" + self.log())
        if self.process.poll() is not None and "Try:" not in self.log():
            raise AssertionError("the server ended:\n" + self.log())
        self.wait_for_ports()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if "listening:" in line:
                self._listening.set()
            if "-d '{" in line:  # the banner's last line
                self._ready.set()
        self._listening.set()
        self._ready.set()

    def log(self):
        return "".join(self.lines)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise AssertionError("the server did not end after SIGTERM:\n" + self.log())
        self._reader.join(60)
        assert self.process.returncode == 0, f"exit status {self.process.returncode}:\n{self.log()}"

    def connection(self, timeout=60):
        parts = urllib.parse.urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, decoded JSON or text, headers) of one request; `body` is bytes, text, or a value to encode."""
        connection = self.connection(timeout)
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        connection.request(method, path, body, headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        try:
            return response.status, json.loads(text), response.headers
        except ValueError:
            return response.status, text.decode(), response.headers

    def post(self, path, body, **options):
        return self.request("POST", path, body, **options)

    def metric(self, name, **labels):
        """Sum of the samples of `name` whose labels include the given ones."""
        _, text, _ = self.request("GET", "/metrics")
        total = 0.0
        for line in text.splitlines():
            match = re.match(r"([^\s{#]+)(\{[^}]*\})? (\S+)", line)
            if match and match.group(1) == name and all(
                    f'{key}="{value}"' in (match.group(2) or "") for key, value in labels.items()):
                total += float(match.group(3))
        return total

    def wait_until_idle(self, seconds=60):
        """Waits until no request runs or waits and no KV block is used; returns the last state seen."""
        deadline = time.monotonic() + seconds
        while True:
            state = tuple(self.metric("vllm:" + name)
                          for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"))
            if state == (0, 0, 0) or time.monotonic() > deadline:
                return state
            time.sleep(0.05)
