# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""What clients should not do, each done many times over plain sockets; run by abuse.py in a process of its own.

    python attacks.py NAME COUNT HTTP_PORT GRPC_PORT

Attacks that hold something open hold COUNT of it until the input ends; those that repeat something do so COUNT times a
second. Prints one line when it is under way, and one line of JSON at the end: what servers answered, and how often.
"""
import argparse
import collections
import functools
import gzip
import json
import os
import random
import resource
import select
import socket
import ssl
import struct
import sys
import time

HOST = "127.0.0.1"
MODEL = "stories-llama"
CUT_OFF = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


def connect(port, receive_buffer=None):
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect((HOST, port))
    return connection


def close_hard(connection):
    """With a reset instead of a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def post(body, path="/v1/completions", headers=(), length=None):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json",
             f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status_of(connection):
    """The status of an HTTP answer, or how it failed."""
    try:
        answer = connection.recv(200)
    except CUT_OFF:
        return "reset"
    except (TimeoutError, ssl.SSLError) as error:
        return type(error).__name__
    words = answer.split(b" ", 2)
    return words[1].decode() if answer.startswith(b"HTTP/1.1 ") and len(words) > 1 else f"{len(answer)} bytes"


def send(connection, data):
    try:
        connection.sendall(data)
        return True
    except (*CUT_OFF, TimeoutError):
        return False


# --- held open: each returns connections

def idle(ports):
    return connect(ports.http)


def idle_grpc(ports):
    return connect(ports.grpc)


def half_headers(ports):
    connection = connect(ports.http)
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: applica")
    return connection


def half_bodies(ports):
    """Half a MiB of a promised MiB, in one write."""
    connection = connect(ports.http)
    send(connection, post(b'{"prompt": "' + b"x" * (512 << 10), length=1 << 20))
    return connection


def slow_readers(ports):
    """Asks for a long answer of which nothing is read: 3 MiB that are kept for it, or 12, for which it is cut off."""
    connection = connect(ports.http, receive_buffer=4096)
    connection.sendall(post({"model": MODEL, "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True,
                             "n": random.choice((2, 8)), "logprobs": 5}))
    return connection


def pipelining(ports):
    """A thousand requests at once, and no answer is read."""
    connection = connect(ports.http, receive_buffer=4096)
    connection.setblocking(False)
    data = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    try:
        connection.send(data)
    except (BlockingIOError, *CUT_OFF):
        pass
    return connection


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CANCEL = 8


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def call_headers(stream, method="/nibble.v1.Nibble/Generate", end_stream=False, encoding=None):
    """HEADERS of a gRPC call, literals of static names: no dynamic table."""
    def text(value):
        return bytes((len(value),)) + value.encode()

    block = (b"\x83\x86\x04" + text(method) + b"\x01" + text("localhost") + b"\x0f\x10" + text("application/grpc")
             + b"\x00" + text("te") + text("trailers"))
    if encoding is not None:
        block += b"\x00" + text("grpc-encoding") + text(encoding)
    return frame(1, 0x4 | (0x1 if end_stream else 0), stream, block)


def grpc_connection(ports):
    connection = connect(ports.grpc)
    connection.sendall(PREFACE + frame(4, 0, 0, b""))
    return connection


def frames_of(data):
    """(kind, flags, stream, payload) of every whole frame."""
    while len(data) >= 9 and len(data) >= 9 + (length := int.from_bytes(data[:3], "big")):
        yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:9 + length]
        data = data[9 + length:]


def received(connection, seconds):
    """Everything that comes until nothing has for so long."""
    data = b""
    try:
        while select.select([connection], [], [], seconds)[0] and (part := connection.recv(65536)):
            data += part
    except CUT_OFF:
        pass
    return data


def idle_http2(ports):
    """Connections on which HTTP/2 was begun, and nothing else."""
    connection = grpc_connection(ports)
    connection.recv(65536)  # its settings
    connection.sendall(frame(4, 1, 0, b""))
    return connection


def varint(value):
    out = b""
    while value > 127:
        out += bytes((value & 127 | 128,))
        value >>= 7
    return out + bytes((value,))


def grpc_message(fields):
    """A message of the protocol as it travels, of (number, integer or bytes)."""
    body = b""
    for number, value in fields:
        if isinstance(value, int):
            body += varint(number << 3) + varint(value)
        else:
            body += varint(number << 3 | 2) + varint(len(value)) + value
    return body


def slow_grpc_readers(ports):
    """Asks for a long answer of which nothing is read: no window is ever given back."""
    connection = grpc_connection(ports)
    max_tokens, ignore_eos, logprobs, text, sampling, choices = 1, 14, 17, 2, 4, 5  # fields of nibble.proto
    body = grpc_message([(text, b"Once"), (choices, random.choice((2, 8))),
                         (sampling, grpc_message([(max_tokens, 1900), (ignore_eos, 1), (logprobs, 5)]))])
    connection.sendall(frame(4, 1, 0, b"") + call_headers(1) + frame(0, 1, 1, b"\x00" + struct.pack(">I", len(body)) + body))
    return connection


def watchers(ports):
    """Calls that need no key and never end: a hundred on every connection."""
    connection = grpc_connection(ports)
    watch = "/grpc.health.v1.Health/Watch"
    connection.sendall(frame(4, 1, 0, b"") + b"".join(
        call_headers(stream, watch) + frame(0, 1, stream, b"\x00" * 5) for stream in range(1, 201, 2)))
    return connection


def half_grpc_messages(ports):
    """A call whose message is said to be of nearly 16 MiB, of which as much comes as the server takes at once."""
    connection = grpc_connection(ports)
    connection.sendall(call_headers(1) + frame(0, 0, 1, b"\x00" + struct.pack(">I", (16 << 20) - 100)))
    window = {0: 65535, 1: 65535}  # of the connection, of the call
    taken = 0
    while data := received(connection, 0.02):
        for kind, flags, stream, payload in frames_of(data):
            if kind == 4 and not flags & 1:
                values = dict(struct.unpack(">HI", payload[at:at + 6]) for at in range(0, len(payload), 6))
                window[1] += values.get(4, 65535) - 65535
                send(connection, frame(4, 1, 0, b""))
            elif kind == 6 and not flags & 1:
                send(connection, frame(6, 1, 0, payload))
            elif kind == 8:
                window[stream] += int.from_bytes(payload, "big")
        while (size := min(16000, window[0], window[1], (16 << 20) - 200 - taken)) > 0:
            if not send(connection, frame(0, 0, 1, b"x" * size)):
                break
            window = {stream: left - size for stream, left in window.items()}
            taken += size
    return connection


# --- repeated: each returns what the server did

def churn(ports):
    connection = connect(ports.http)
    close_hard(connection) if random.random() < 0.5 else connection.close()
    return "closed"


def vanishing(ports):
    """Starts a stream and leaves with a reset."""
    connection = connect(ports.http)
    connection.sendall(post({"model": MODEL, "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}))
    status = status_of(connection) if random.random() < 0.5 else "left at once"
    close_hard(connection)
    return status


def one_answer(port, data):
    connection = connect(port)
    send(connection, data)
    status = status_of(connection)
    connection.close()
    return status


def bad_utf8(ports):
    junk = bytes(random.randrange(128, 256) for _ in range(64))
    if random.random() < 0.5:
        return one_answer(ports.http, post(b'{"model": "stories-llama", "prompt": "' + junk + b'"}'))
    return one_answer(ports.http, b"GET /" + junk + b" HTTP/1.1\r\nHost: x\r\nX-Junk: " + junk + b"\r\n\r\n")


def tls_garbage(ports):
    """A TLS greeting, cut off or followed by noise, to both ports."""
    greeting = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(random.choice((0, 40, 517, 4000)))
    return one_answer(random.choice(ports), greeting)


def tls_noise(ports):
    """To servers with TLS: noise inside a real handshake's first record, and plain HTTP."""
    return one_answer(ports.http, random.choice((b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(300),
                                                 b"\x16\x03\x01\x40\x00" + os.urandom(200))))


def wrong_keys(ports):
    key = "".join(random.choices("abcdefghij", k=random.choice((0, 1, 32, 4000))))
    return one_answer(ports.http, post({"model": MODEL, "prompt": "x"}, headers=(f"Authorization: Bearer {key}",)))


def big_headers(ports):
    return one_answer(ports.http, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Big: " + b"y" * (1 << 20) + b"\r\n\r\n")


def big_bodies(ports):
    """Seventeen MiB: by length, or in chunks that do not say so before."""
    if random.random() < 0.5:
        return one_answer(ports.http, post(b"x" * (1 << 20), length=17 << 20))
    connection = connect(ports.http)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    send(connection, head) and all(send(connection, chunk) for _ in range(17))
    status = status_of(connection)
    connection.close()
    return status


def deep_json(ports):
    return one_answer(ports.http, post(b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", path="/v1/chat/completions"))


def grpc_answer(connection):
    """The last kind of frame that came within a moment: 7 is a GOAWAY, 3 a reset, 1 headers (or trailers with the status)."""
    names = {1: "headers", 3: "stream reset", 7: "goaway"}
    kinds = {names.get(kind, "") for kind, _, _, _ in frames_of(received(connection, 0.2))}
    return " ".join(sorted(kinds - {""})) or "nothing"


def big_grpc_messages(ports):
    """A message that is said to be of 4 GiB, and frames of it."""
    connection = grpc_connection(ports)
    send(connection, call_headers(1) + frame(0, 0, 1, b"\x00\xff\xff\xff\xff" + b"x" * 16000))
    answer = grpc_answer(connection)
    connection.close()
    return answer


@functools.cache
def gzip_bomb():
    """48 KiB that become 48 MiB."""
    return gzip.compress(bytes(48 << 20), 9)


def grpc_gzip(ports):
    """A compressed message to a method that needs no key."""
    connection = grpc_connection(ports)
    message = b"\x01" + struct.pack(">I", len(gzip_bomb())) + gzip_bomb()
    frames = [frame(0, int(at + 16000 >= len(message)), 1, message[at:at + 16000]) for at in range(0, len(message), 16000)]
    send(connection, call_headers(1, "/grpc.health.v1.Health/Check", encoding="gzip") + b"".join(frames))
    answer = grpc_answer(connection)
    connection.close()
    return answer


def rapid_reset(ports):
    """A hundred calls in one write, each cancelled as it starts."""
    connection = grpc_connection(ports)
    data = b"".join(call_headers(stream) + frame(3, 0, stream, struct.pack(">I", CANCEL)) for stream in range(1, 201, 2))
    send(connection, data)
    connection.close()
    return "closed"


def grpc_garbage(ports):
    return one_answer(ports.grpc, random.choice((b"GET / HTTP/1.1\r\n\r\n", os.urandom(2000), PREFACE + os.urandom(2000),
                                                 PREFACE + frame(4, 0, 0, b"") + frame(1, 0x4, 1, os.urandom(300)))))


HELD = {attack.__name__: attack for attack in (
    idle, idle_grpc, half_headers, half_bodies, slow_readers, pipelining, half_grpc_messages, idle_http2,
    slow_grpc_readers, watchers)}
REPEATED = {attack.__name__: attack for attack in (
    churn, vanishing, bad_utf8, tls_garbage, tls_noise, wrong_keys, big_headers, big_bodies, deep_json, big_grpc_messages,
    grpc_gzip, rapid_reset, grpc_garbage)}


def input_ended():
    return bool(select.select([sys.stdin], [], [], 0)[0])


def hold(attack, count, ports, seen):
    connections = []
    for _ in range(count):
        try:
            connections.append(attack(ports))
        except OSError as error:  # refused, or no file left here: told, and not tried again
            seen[f"{type(error).__name__} {error.errno}"] += 1
            break
    seen["open"] = len(connections)
    print("under way", flush=True)
    sys.stdin.read()
    for connection in connections:
        close_hard(connection)


def repeat(attack, rate, ports, seen):
    start, done = time.monotonic(), 0
    while not input_ended():
        try:
            seen[attack(ports)] += 1
        except OSError as error:
            seen[f"{type(error).__name__} {error.errno}"] += 1
        done += 1
        if done == 1:
            print("under way", flush=True)
        time.sleep(max(0.0, start + done / rate - time.monotonic()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("name", choices=(*HELD, *REPEATED))
    parser.add_argument("count", type=int)
    parser.add_argument("http", type=int)
    parser.add_argument("grpc", type=int)
    arguments = parser.parse_args()
    ports = collections.namedtuple("Ports", "http grpc")(arguments.http, arguments.grpc)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    random.seed(arguments.name)
    seen = collections.Counter()
    if arguments.name in HELD:
        hold(HELD[arguments.name], arguments.count, ports, seen)
    else:
        repeat(REPEATED[arguments.name], arguments.count, ports, seen)
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
