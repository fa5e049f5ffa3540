# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""What clients may send that is wrong: each gets a clear error, and the server keeps serving."""
import json
import socket
import urllib.parse

import pytest

MODEL = "stories-llama"


def chat(**fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, **fields}


BAD_BODIES = [
    ("empty", b"", ""),
    ("not JSON", b"hello", ""),
    ("cut off", b'{"model": "stories-llama", "messages": [', ""),
    ("invalid UTF-8", b'{"model": "stories-llama", "prompt": "\xff\xfe"}', ""),
    ("not an object", b"[1, 2]", ""),
    ("deep nesting", b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "64"),
    ("unknown field", json.dumps(chat(frobnicate=1)), "frobnicate"),
    ("NaN", b'{"model": "stories-llama", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', ""),
    ("1e400", b'{"model": "stories-llama", "messages": [{"role": "user", "content": "x"}], "temperature": 1e400}', ""),
    ("negative max_tokens", json.dumps(chat(max_tokens=-1)), "max_tokens"),
    ("fractional max_tokens", json.dumps(chat(max_tokens=1.5)), "max_tokens"),
    ("huge integer", json.dumps(chat(max_tokens=10**30)), "max_tokens"),
    ("huge seed", json.dumps(chat(seed=10**30)), "seed"),
    ("negative temperature", json.dumps(chat(temperature=-0.1)), "temperature"),
    ("text temperature", json.dumps(chat(temperature="hot")), "temperature"),
    ("n of a billion", json.dumps(chat(n=10**9)), "n"),
    ("100000 stop strings", json.dumps(chat(stop=["x"] * 100_000)), "stop"),
    ("empty stop string", json.dumps(chat(stop=[""])), "stop"),
    ("min_tokens above max_tokens", json.dumps(chat(min_tokens=50)), "min_tokens"),
    ("repetition_penalty of 0", json.dumps(chat(repetition_penalty=0)), "repetition_penalty"),
    ("bias for no token", json.dumps(chat(logit_bias={"-1": 1})), "logit_bias"),
    ("bias key is text", json.dumps(chat(logit_bias={"x": 1})), "logit_bias"),
    ("top_logprobs without logprobs", json.dumps(chat(top_logprobs=2)), "logprobs"),
    ("stream_options without stream", json.dumps(chat(stream_options={"include_usage": True})), "stream_options"),
    ("messages is text", json.dumps({"model": MODEL, "messages": "Hello"}), "messages"),
    ("message without role", json.dumps({"model": MODEL, "messages": [{"content": "x"}]}), "role"),
    ("content is a number", json.dumps({"model": MODEL, "messages": [{"role": "user", "content": 5}]}), "content"),
    ("image content", json.dumps({"model": MODEL, "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}), "image_url"),
    ("tools", json.dumps(chat(tools=[{"type": "function", "function": {"name": "f"}}])), "tools"),
    ("response_format", json.dumps(chat(response_format={"type": "json_object"})), "response_format"),
    ("prompt too long", json.dumps(chat(messages=[{"role": "user", "content": "word " * 5000}])), "2048"),
    ("max_tokens beyond the context", json.dumps(chat(max_tokens=5000)), "2048"),
]


@pytest.mark.parametrize("body, named", [case[1:] for case in BAD_BODIES], ids=[case[0] for case in BAD_BODIES])
def test_bad_chat_bodies(server, body, named):
    status, answer, _ = server.post("/v1/chat/completions", body)
    assert status == 400, answer
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert named in error["message"] + " " + str(error["param"]), error
    assert server.post("/v1/chat/completions", chat())[0] == 200


@pytest.mark.parametrize("body", [
    {"model": MODEL}, {"model": MODEL, "prompt": []}, {"model": MODEL, "prompt": [[]]}, {"model": MODEL, "prompt": [-1]},
    {"model": MODEL, "prompt": [4096]}, {"model": MODEL, "prompt": [1, "x"]}, {"model": MODEL, "prompt": {"a": 1}},
    {"model": MODEL, "prompt": ["x"] * 100_000}, {"model": MODEL, "prompt": "x", "echo": True},
    {"model": MODEL, "prompt": "x", "best_of": 3}, {"model": MODEL, "prompt": "x", "suffix": "y"},
    {"model": MODEL, "prompt": "x", "logprobs": 10**6},
], ids=lambda body: json.dumps(body)[:60])
def test_bad_completions(server, body):
    status, answer, _ = server.post("/v1/completions", body)
    assert status == 400, answer
    assert answer["error"]["message"]


@pytest.mark.parametrize("path, body", [
    ("/tokenize", {}), ("/tokenize", {"prompt": 5}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": "x"}),
    ("/detokenize", {"tokens": [10**6]}), ("/detokenize", {}),
])
def test_bad_tokenize(server, path, body):
    assert server.post(path, body)[0] == 400


def test_unknown_paths_and_methods(server):
    assert server.request("GET", "/v1/nothing")[0] == 404
    status, _, headers = server.request("GET", "/v1/chat/completions")
    assert status == 405
    assert "POST" in headers["Allow"]
    assert server.request("POST", "/v1/models", "{}")[0] == 405


def raw(server, data, limit=4096):
    parts = urllib.parse.urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before everything was taken
        try:
            return connection.recv(limit)
        except ConnectionResetError:
            return b""


def test_100_mb_body_is_refused_by_its_length(server):
    answer = raw(server, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert b"104857600" in answer and b"16777216" in answer, answer


def test_chunked_body_over_the_limit_is_refused(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    answer = raw(server, head + chunk * 20)
    assert answer.startswith(b"HTTP/1.1 413") or answer == b"", answer
    assert server.request("GET", "/health")[0] == 200


# Refused with a status line; only a client that is cut off while still sending may see a reset instead.
@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
], ids=["TLS", "no target", "version", "negative length", "length overflow", "huge header"])
def test_bad_http(server, data):
    answer = raw(server, data)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")) or (answer == b"" and len(data) > 100_000), answer
    assert server.request("GET", "/health")[0] == 200
