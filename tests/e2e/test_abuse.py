# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Clients that do what they should not: the others' answers stay as they are, and memory is bounded. abuse.py measures
the same."""
import subprocess
import time

import pytest

from abuse import KEY, MEBIBYTE, Clients, attack, resident_bytes
from attacks import HELD, REPEATED
from nibble_server import Server

# How many (or how many a second), by how many MiB memory may grow at most, and all that may be seen as an answer. Where an
# attack is about memory, the bound is well below what it would take if the server kept it all.
CASES = {
    "idle": (500, 16, {"open"}),
    "idle_grpc": (100, 24, {"open"}),
    "half_headers": (100, 16, {"open"}),
    "half_bodies": (40, 48, {"open"}),  # 20 MiB of them, below the bound of all requests' bytes
    "slow_readers": (6, 48, {"open"}),
    "pipelining": (8, 16, {"open"}),
    "half_grpc_messages": (60, 200, {"open"}),
    "idle_http2": (300, 48, {"open"}),
    "slow_grpc_readers": (6, 64, {"open"}),
    "watchers": (5, 48, {"open"}),
    "churn": (300, 16, {"closed"}),
    "vanishing": (30, 32, {"200", "left at once"}),
    "bad_utf8": (100, 16, {"400", "404"}),
    "tls_garbage": (100, 16, None),
    "big_headers": (10, 16, {"431", "reset"}),
    "big_bodies": (5, 128, {"413", "reset"}),
    "deep_json": (5, 48, {"400"}),
    "big_grpc_messages": (5, 32, None),
    "grpc_gzip": (5, 32, {"headers", "headers stream reset", "nothing"}),
    "rapid_reset": (20, 32, {"closed"}),
    "grpc_garbage": (100, 16, None),
}


@pytest.fixture(scope="module")
def abused(nibble):
    with Server(nibble, "--quantization", "w4a8") as server:
        yield server, Clients(server)


@pytest.fixture(scope="module")
def keyed(nibble):
    with Server(nibble, "--quantization", "w4a8", "--api-key", KEY) as server:
        yield server, Clients(server, headers={"Authorization": f"Bearer {KEY}"})


@pytest.fixture(scope="module")
def encrypted(nibble, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=localhost", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with Server(nibble, "--quantization", "w4a8", "--ssl-certfile", certificate, "--ssl-keyfile", key) as server:
        yield server, Clients(server)


def check(server, clients, name, count, most_mebibytes, answers):
    before = resident_bytes(server)
    with attack(server, name, count) as result:
        clients.run(0.6)
    assert not clients.failures, clients.failures[:3]
    assert result["rss_peak_mib"] - before / MEBIBYTE < most_mebibytes, result
    assert sum(result["seen"].values()) > 0 and (answers is None or set(result["seen"]) <= answers), result


@pytest.mark.parametrize("name", CASES)
def test_others_do_not_notice(abused, name):
    check(*abused, name, *CASES[name])
    assert abused[0].wait_until_idle() == (0, 0, 0)


def test_wrong_keys(keyed):
    check(*keyed, "wrong_keys", 200, 16, {"401"})


@pytest.mark.parametrize("name, count", [("idle", 300), ("churn", 200), ("tls_noise", 100), ("half_headers", 100)])
def test_encrypted_clients_do_not_notice(encrypted, name, count):
    """A connection of TLS costs more, before and after its handshake."""
    check(*encrypted, name, count, 48, None)


def test_what_attackers_send_does_not_get_into_the_log(abused):
    """No line breaks, terminal's escapes or bytes that are no text of theirs, and not a line for each."""
    server, _ = abused
    before = len(server.lines)
    with attack(server, "grpc_garbage", 300):
        server.wait_until_idle()
        time.sleep(1)
    assert all(line.rstrip("\n").isprintable() for line in server.lines), server.log()[-3000:]
    assert len(server.lines) - before < 50, len(server.lines)


def test_every_attack_is_tried():
    assert {*CASES, "wrong_keys", "tls_noise"} == {*HELD, *REPEATED}
