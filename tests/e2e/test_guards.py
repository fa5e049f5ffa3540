# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""A guarded server: keys on every route, TLS with client certificates for HTTP and gRPC, certificates and keys that
change while it serves, deadlines, the request log."""
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time

import grpc
import httpx2 as httpx  # that the openai package brings
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from nibble_server import Server
from test_grpc import api  # noqa: F401 (a fixture)

KEY = "key-of-the-environment"
OPEN = {"/health", "/health/live", "/health/ready"}


class Authority:
    """Signs certificates for this host; files in a folder."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.ca = folder / f"{name}-ca.pem"
        self._key = folder / f"{name}-ca.key"
        self._openssl("req", "-x509", *self._new_key(self._key), "-days", "2", "-subj", f"/CN={name}",
                      "-out", str(self.ca))

    @staticmethod
    def _new_key(path):
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(path)

    @staticmethod
    def _openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def sign(self, name):
        """(certificate, key) files."""
        key, request, cert = (self.folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        names = self.folder / "names"
        names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._openssl("req", *self._new_key(key), "-subj", f"/CN={name}", "-out", str(request))
        self._openssl("x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._key),
                      "-CAcreateserial", "-days", "2", "-extfile", str(names), "-out", str(cert))
        return cert, key


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("guards")


@pytest.fixture(scope="module")
def authority(files):
    return Authority(files, "trusted")


@pytest.fixture(scope="module")
def stranger(files):
    return Authority(files, "stranger")


@pytest.fixture(scope="module")
def guarded(nibble, files, authority):
    """Keys from the environment and a file, TLS, a request log."""
    cert, key = authority.sign("server")
    (files / "keys").write_text("# of a test\nkey-of-the-file\n")
    with Server(nibble, "--ssl-certfile", cert, "--ssl-keyfile", key, "--api-key-file", files / "keys",
                "--request-log", files / "log", "--request-timeout", "60",
                environment={"NIBBLE_API_KEY": KEY}) as running:
        running.files, running.cert, running.key = files, cert, key
        yield running


def http(server, ca, cert=None, **options):
    context = ssl.create_default_context(cafile=str(ca))
    if cert:
        context.load_cert_chain(*map(str, cert))
    # A connection is kept for as long as the server keeps it.
    return httpx.Client(base_url=server.url, verify=context, timeout=60, limits=httpx.Limits(keepalive_expiry=None), **options)


def bearer(key=KEY):
    return {"Authorization": f"Bearer {key}"}


@contextlib.contextmanager
def channel(server, ca=None, cert=None, key=None):
    if ca is None:
        with grpc.insecure_channel(server.grpc_address) as plain:
            yield plain
        return
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key and key.read_bytes(), cert and cert.read_bytes())
    with grpc.secure_channel(server.grpc_address, credentials) as secure:
        yield secure


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def log_lines(server):
    whole = (server.files / "log").read_text().rpartition("\n")[0]  # the last one may be under way
    return [json.loads(line) for line in whole.splitlines()]


def test_every_route_of_the_server_wants_a_key(guarded, authority):
    routes = re.search(r"HTTP routes: (.*)", guarded.log()).group(1).split(", ")
    assert len(routes) > 10 and "POST /v1/chat/completions" in routes
    with http(guarded, authority.ca) as client:
        for method, path in [route.split(" ") for route in routes] + [("GET", "/none"), ("DELETE", "/v1/models")]:
            path = path.replace("*", "x")
            answer = client.request(method, path)
            if path in OPEN:
                assert answer.status_code == 200, path
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers.get_list("www-authenticate") == ["Bearer", 'Basic realm="nibble"']
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["x-request-id"]
            assert client.request(method, path, headers=bearer("wrong")).status_code == 401
            assert client.request(method, path, headers=bearer()).status_code != 401
    assert KEY not in guarded.log() and "key-of-the-file" not in guarded.log()


def test_basic_is_for_browsers_and_their_own_page(guarded, authority):
    with http(guarded, authority.ca, auth=("anybody", "key-of-the-file")) as client:
        host = guarded.url.split("//")[1]
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Origin": f"https://{host}"}).status_code == 200
        for origin in ("https://elsewhere.example", "null", f"https://{host}.example"):
            answer = client.post("/v1/completions", headers={"Origin": origin}, json={})
            assert answer.status_code == 403, origin


def test_openai_client(guarded, authority):
    with http(guarded, authority.ca) as transport:
        client = openai.OpenAI(base_url=guarded.url + "/v1", api_key=KEY, http_client=transport, max_retries=0)
        answer = client.chat.completions.create(model="stories-llama", max_tokens=5,
                                                messages=[{"role": "user", "content": "Hello"}])
        assert answer.usage.completion_tokens == 5
        wrong = openai.OpenAI(base_url=guarded.url + "/v1", api_key="no", http_client=transport, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()


def test_chat_command(nibble, guarded, authority):
    def chat(*options, environment=None):
        return subprocess.run([nibble, "chat", "--url", guarded.url, "--max-tokens", "5", *map(str, options)],
                              input="Hello\n", capture_output=True, text=True, timeout=60,
                              env={**os.environ, **(environment or {})})

    answer = chat("--ca-cert", authority.ca, environment={"NIBBLE_API_KEY": KEY})
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr
    assert chat("--insecure", "--api-key", KEY).returncode == 0
    assert "API key" in chat("--ca-cert", authority.ca).stderr
    assert chat("--api-key", KEY).returncode == 1  # nobody it knows signed the certificate


def test_others_bytes_end_their_connection_only(guarded, authority, stranger):
    with http(guarded, authority.ca) as client:
        assert client.get("/health").status_code == 200
        for stream in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 500, os.urandom(5000), b"\x16\x03\x01\xff\xff"):
            port = int(guarded.url.rsplit(":", 1)[1])
            for target in (port, int(guarded.grpc_address.rsplit(":", 1)[1])):
                with socket.create_connection(("127.0.0.1", target), timeout=30) as plain:
                    plain.sendall(stream)
                    with contextlib.suppress(OSError):  # where the server was quicker to end it
                        plain.shutdown(socket.SHUT_WR)
                    answer = b""
                    with contextlib.suppress(ConnectionError):
                        while part := plain.recv(4096):
                            answer += part
                if target == port and stream.startswith(b"GET"):
                    assert answer.startswith(b"HTTP/1.1 400") and b"https" in answer
        assert client.get("/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        http(guarded, stranger.ca).get("/health")


def test_grpc_with_key_over_tls(guarded, authority, stranger, api):
    request = api.messages.GenerateRequest(text="Once", sampling=api.messages.SamplingParams(max_tokens=4))
    metadata = (("authorization", f"Bearer {KEY}"), ("x-request-id", "named"))
    with channel(guarded, authority.ca) as secure:
        stub = api.services.NibbleStub(secure)
        call = stub.Generate(request, metadata=metadata)
        assert len(list(call)) > 0
        assert dict(call.initial_metadata())["x-request-id"] == "named"
        for wrong in ((), (("authorization", "Bearer wrong"),)):
            with pytest.raises(grpc.RpcError) as raised:
                stub.ListModels(api.messages.ListModelsRequest(), metadata=wrong)
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(secure)  # follows the server within a tenth of a second
        assert wait_for(lambda: health.Check(health_pb2.HealthCheckRequest()).status == 1)
        with pytest.raises(grpc.RpcError) as raised:
            ProtoReflectionDescriptorDatabase(secure).get_services()
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    for ca in (None, stranger.ca):
        with channel(guarded, ca) as other, pytest.raises(grpc.RpcError):
            health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest(), timeout=60)


def test_deadlines(guarded, authority):
    body = {"model": "stories-llama", "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "n": 128}  # far more work than a deadline
    with http(guarded, authority.ca, headers=bearer()) as client:
        answer = client.post("/v1/completions", json=body, headers={"x-request-timeout": "0.1"})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
        answer = client.post("/v1/completions", json={**body, "stream": True}, headers={"x-request-timeout": "0.1"})
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]" and "0.1 s" in json.loads(events[-2])["error"]["message"]
        for bad in ("0", "-1", "nan", "1e9", "soon"):
            answer = client.post("/v1/completions", json=body, headers={"x-request-timeout": bad})
            assert answer.status_code == 400 and "86400" in answer.json()["error"]["message"]

        def idle():
            text = client.get("/metrics").text
            return all(re.search(rf"^vllm:{name}{{.*}} 0(\.0)?$", text, re.M)
                       for name in ("num_requests_running", "kv_cache_usage_perc"))

        assert wait_for(idle)


def expiry_of(cert):
    """Seconds since 1970."""
    said = subprocess.run(["openssl", "x509", "-noout", "-enddate", "-in", str(cert)], check=True, capture_output=True, text=True)
    return ssl.cert_time_to_seconds(said.stdout.strip().removeprefix("notAfter="))


def scraped(server, ca, name):
    with http(server, ca) as client:
        text = client.get("/metrics", headers=bearer()).text
    return float(re.search(rf"^{name}{{[^}}]*}} (\S+)$", text, re.M).group(1))


def test_metrics_of_certificate_keys_and_refused_calls(guarded, authority, api):
    assert scraped(guarded, authority.ca, "nibble:tls_certificate_expiry_timestamp_seconds") == expiry_of(guarded.cert)
    errors = scraped(guarded, authority.ca, "nibble:api_key_file_errors_total")
    (guarded.files / "keys").write_text("# none\n")
    assert wait_for(lambda: scraped(guarded, authority.ca, "nibble:api_key_file_stale") == 1)
    assert scraped(guarded, authority.ca, "nibble:api_key_file_errors_total") == errors + 1
    with http(guarded, authority.ca) as client:
        assert client.get("/v1/models", headers=bearer("key-of-the-file")).status_code == 200
    (guarded.files / "keys").write_text("key-of-the-file\n")
    assert wait_for(lambda: scraped(guarded, authority.ca, "nibble:api_key_file_stale") == 0)
    with channel(guarded, authority.ca) as secure, pytest.raises(grpc.RpcError):
        api.services.NibbleStub(secure).Detokenize(api.messages.DetokenizeRequest(), metadata=(("authorization", "Bearer no"),))
    with http(guarded, authority.ca) as client:
        text = client.get("/metrics", headers=bearer()).text
    counted = 'grpc_server_handled_total{grpc_code="UNAUTHENTICATED",grpc_method="Detokenize",grpc_service="nibble.v1.Nibble"} 1'
    assert counted in text, [line for line in text.splitlines() if "grpc_server_handled_total" in line]


def test_keys_and_certificates_change_while_it_serves(guarded, authority, stranger):
    (guarded.files / "keys").write_text("another-key\n")
    with http(guarded, authority.ca) as client:
        assert wait_for(lambda: client.get("/v1/models", headers=bearer("another-key")).status_code == 200)
        assert client.get("/v1/models", headers=bearer("key-of-the-file")).status_code == 401
        old = guarded.cert.read_bytes(), guarded.key.read_bytes()
        guarded.key.write_text("nothing")
        assert wait_for(lambda: "the old ones stay in use" in guarded.log())
        with http(guarded, authority.ca) as other:
            assert other.get("/health").status_code == 200
        for target, source in zip((guarded.cert, guarded.key), stranger.sign("renewed")):
            target.write_bytes(source.read_bytes())

        def renewed():
            with contextlib.suppress(httpx.ConnectError), http(guarded, stranger.ca) as other:
                return other.get("/health").status_code == 200

        assert wait_for(renewed)
        assert scraped(guarded, stranger.ca, "nibble:tls_certificate_expiry_timestamp_seconds") == expiry_of(guarded.cert)
        with channel(guarded, stranger.ca) as secure:
            health = health_pb2_grpc.HealthStub(secure)
            assert wait_for(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1)
        assert client.get("/health").status_code == 200  # its connection is the old one
        for target, content in zip((guarded.cert, guarded.key), old):
            target.write_bytes(content)
        (guarded.files / "keys").write_text("key-of-the-file\n")

        def restored():
            with contextlib.suppress(httpx.ConnectError), http(guarded, authority.ca) as other:
                return other.get("/v1/models", headers=bearer("key-of-the-file")).status_code == 200

        assert wait_for(restored)


def test_request_log(guarded, authority):
    secret = "Nobody may read this"
    with http(guarded, authority.ca, headers=bearer()) as client:
        answer = client.post("/v1/completions", headers={"x-request-id": "of-the-log"}, json={
            "model": "stories-llama", "prompt": secret, "max_tokens": 3, "temperature": 0.5, "ignore_eos": True})
        assert answer.headers["x-request-id"] == "of-the-log"
        client.post("/v1/completions", content="{", headers={"x-request-id": "malformed"})
        client.get("/health")

        def line(name):
            return next((line for line in log_lines(guarded) if line.get("request_id") == name), None)

        assert wait_for(lambda: line("of-the-log") and line("malformed"))
        entry = line("of-the-log")
        assert entry["status"] == 200 and entry["route"] == "/v1/completions" and entry["model"] == "stories-llama"
        assert entry["output_tokens"] == 3 and entry["finish_reasons"] == ["length"]
        assert entry["queue_seconds"] <= entry["ttft_seconds"] <= entry["e2e_seconds"]
        assert entry["sampling"]["temperature"] == 0.5 and entry["peer"].startswith("127.0.0.1:")
        assert line("malformed")["status"] == 400
        lines = log_lines(guarded)
        assert any(entry["status"] == 401 for entry in lines)
        assert any(entry.get("code") == "UNAUTHENTICATED" for entry in lines)
        assert not any(entry["route"] in OPEN for entry in lines)
        assert secret not in (guarded.files / "log").read_text()

        (guarded.files / "log").rename(guarded.files / "log.1")
        guarded.process.send_signal(signal.SIGHUP)
        assert wait_for((guarded.files / "log").exists)
        client.get("/v1/models", headers={"x-request-id": "after"})
        assert wait_for(lambda: line("after"))


def command(nibble, *arguments):
    ended = subprocess.run([nibble, *map(str, arguments)], capture_output=True, text=True, input="Hello\n", timeout=300)
    return ended.returncode, ended.stdout + ended.stderr


def test_chat_says_what_a_guarded_server_wants(nibble, guarded, authority, files):
    def chat(*options):
        return command(nibble, "chat", "--url", guarded.url + "/v1", *options)

    refusals = ((), "certificate verify failed"), ((), "--ca-cert"), \
        (("--ca-cert", authority.ca), "--api-key"), (("--ca-cert", authority.ca, "--api-key", "wrong"), "401"), \
        (("--ca-cert", files / "none"), f"--ca-cert {files / 'none'}: No such file")
    for options, words in refusals:
        status, output = chat(*options)
        assert status == 1 and words in output and "Is a server running?" not in output, output
    status, output = chat("--ca-cert", authority.ca, "--api-key", KEY)
    assert (status, "error" in output) == (0, False), output
    # Who names a model hears of the key from the first answer.
    assert "--api-key" in chat("--ca-cert", authority.ca, "--model", "stories-llama")[1]


def test_clients_show_certificates(nibble, files, authority, stranger, api):
    cert, key = authority.sign("mutual")
    with Server(nibble, "--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certs", authority.ca,
                "--ssl-cert-reqs", "required") as server:
        own, foreign = authority.sign("client"), stranger.sign("foreign")
        with http(server, authority.ca, cert=own) as client:
            assert client.get("/v1/models").status_code == 200
        for shown in (None, foreign):
            with pytest.raises(httpx.TransportError):
                http(server, authority.ca, cert=shown).get("/health")
        status, output = command(nibble, "chat", "--url", server.url, "--ca-cert", authority.ca)
        assert status == 1 and "--cert FILE" in output and "Is a server running?" not in output, output
        with channel(server, authority.ca, *own) as secure:
            assert api.services.NibbleStub(secure).ListModels(api.messages.ListModelsRequest()).models
        with channel(server, authority.ca) as secure, pytest.raises(grpc.RpcError):
            api.services.NibbleStub(secure).ListModels(api.messages.ListModelsRequest(), timeout=60)


def test_experts_of_a_guarded_server(nibble, guarded, authority):
    def inspect(*options):
        return command(nibble, "inspect", "--experts", guarded.url, *options)[1]

    assert "certificate" in inspect()
    assert "--api-key" in inspect("--ca-cert", authority.ca)
    assert "the model is dense" in inspect("--ca-cert", authority.ca, "--api-key", KEY)


@pytest.mark.parametrize("options, words", [
    (("--api-key", ""), "empty"),
    (("--api-key", "two words"), "visible ASCII"),
    (("--api-key", "k" * 5000), "4096"),
    (("--api-key-file", "/nonexistent"), "--api-key-file /nonexistent: No such file"),
    (("--api-key-file", "."), "--api-key-file .: Is a directory"),
    (("--ssl-certfile", "x.pem"), "--ssl-keyfile"),
    (("--ssl-certfile", "x.pem", "--ssl-keyfile", "y.pem"), "--ssl-certfile x.pem: No such file"),
    (("--ssl-cert-reqs", "required"), "--ssl-ca-certs"),
    (("--ssl-cert-reqs", "sometimes"), "sometimes"),
    (("--ssl-ca-certs", "x.pem"), "--ssl-cert-reqs"),
    (("--max-header-bytes", "10"), "256..65536"),
    (("--max-connections", "0"), "1..1000000"),
    (("--http-read-timeout", "0"), "1..86400"),
    (("--request-timeout", "-1"), "0.001..86400"),
    (("--request-timeout", "nan"), "0.001..86400"),
    (("--request-log", "/nonexistent/log"), "/nonexistent/log"),
    (("--request-log-prompts",), "--request-log"),
])
def test_bad_options_are_refused_before_loading(nibble, options, words):
    ended = subprocess.run([nibble, "serve", "models/none-is-loaded", "--port", "0", "--grpc-port", "-1", *options],
                           capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "two words" not in ended.stderr


def test_an_empty_key_in_the_environment_opens_nothing(nibble):
    ended = subprocess.run([nibble, "serve", "models/none-is-loaded", "--port", "0", "--grpc-port", "-1"],
                           capture_output=True, text=True, timeout=60, env={**os.environ, "NIBBLE_API_KEY": ""})
    assert ended.returncode == 1 and "NIBBLE_API_KEY" in ended.stderr
