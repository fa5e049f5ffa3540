# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The pods' command lines with the real binary: every option is one that it knows and takes, and servers and groups that are
started with them work as their probes, Services and metrics say."""
import http.client
import json
import os
import re
import shutil
import subprocess
import time

import pytest

import chart
import checks
from nibble_server import STORIES
from ranks import free_port
from variants import GROUP, VARIANTS

KEY = "a-key-of-the-test"
RELEASES = {**{path.stem: chart.example(path.stem) for path in chart.EXAMPLES}, **VARIANTS}


class Pod:
    """The command of one pod outside of Kubernetes: files of its Secrets and its folders under `folder`, variables put in."""

    def __init__(self, nibble, template, folder, index=0, size=1, address="127.0.0.1", model=None, ports=None):
        self.template = template
        self.ports = {}
        arguments = list(checks.container(template)["args"])
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        self.paths = {}
        for mount in checks.container(template)["volumeMounts"]:
            target = folder / mount["name"]
            self.paths[mount["mountPath"]] = target
            if not target.exists():
                target.mkdir(parents=True)
                if "secret" in volumes[mount["name"]]:
                    write_secret(target, template)
        variables = {"LWS_GROUP_SIZE": str(size), "LWS_WORKER_INDEX": str(index), "LWS_LEADER_ADDRESS": "127.0.0.1",
                     "POD_IP": address}
        self.environment = {**{one["name"]: one["value"] for one in checks.container(template).get("env", []) if "value" in one},
                            "XDG_CACHE_HOME": str(self.paths["/var/cache/nibble"])}
        arguments = [re.sub(r"\$\((\w+)\)", lambda match: variables[match.group(1)], argument) for argument in arguments]
        self.model_index = arguments.index("serve") + 1
        for position, argument in enumerate(arguments):
            if position != self.model_index and argument.startswith("/"):
                mount = max((path for path in self.paths if argument.startswith(path)), key=len)
                arguments[position] = argument.replace(mount, str(self.paths[mount]), 1)
        if model is not None:
            arguments[self.model_index] = str(model)
            if "--host" in arguments:
                arguments[arguments.index("--host") + 1] = "127.0.0.1"
        for name, port in (ports or {}).items():
            arguments[arguments.index(f"--{name}") + 1] = str(port)
        self.command = [str(nibble), *arguments]

    def run(self):
        return subprocess.run(self.command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)


def write_secret(folder, template):
    """Whatever file of a Secret the arguments may name."""
    names = {os.path.basename(argument) for argument in checks.container(template)["args"] if argument.startswith("/etc/nibble/")}
    for name in names:
        if name in ("ca.crt", "tls.crt", "tls.key"):
            continue
        (folder / name).write_text(f"{KEY}\n")
    certificate, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=nibble", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", certificate,
                    "-keyout", key], check=True, capture_output=True)
    shutil.copy(certificate, folder / "ca.crt")


@pytest.mark.parametrize("release", RELEASES)
def test_the_binary_takes_every_option(nibble, release, tmp_path):
    """It gets as far as the model, which is not there: what it says of options, it says before that."""
    objects = chart.render(RELEASES[release])
    size = checks.hosts(objects)
    for role, template in checks.templates(objects):
        for index in range(0 if role == "server" else 1, 1 if role == "server" else size):
            pod = Pod(nibble, template, tmp_path / role, index, size)
            ended = pod.run()
            missing = pod.command[pod.model_index + 1]
            assert ended.returncode == 1, ended.stderr
            assert f"nibble: error: {missing}: no such directory" in ended.stderr, f"{' '.join(pod.command)}\n{ended.stderr}"


def test_an_unknown_option_is_noticed(nibble, tmp_path):
    (_, template), = checks.templates(chart.render({"options": {"tensor-paralel-size": 8}}))
    ended = Pod(nibble, template, tmp_path).run()
    assert ended.returncode == 2 and "--tensor-paralel-size" in ended.stderr


class Running:
    """Pods that run, and their ends."""

    def __init__(self, pods):
        self.processes = [subprocess.Popen(pod.command, env={**os.environ, **pod.environment}, stderr=subprocess.PIPE, text=True)
                          for pod in pods]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        try:
            for process in self.processes:
                process.wait(60)
        finally:
            for process in self.processes:
                process.kill()
                process.stderr.close()

    def log(self):
        for process in self.processes:
            process.kill()
        return "\n".join(process.stderr.read() for process in self.processes)


def get(port, path, body=None, key=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return None, ""
    finally:
        connection.close()


def probe(template, name, port):
    """What the kubelet would see."""
    return get(port, checks.container(template)[name]["httpGet"]["path"])[0]


def wait_ready(running, template, port, seconds=120):
    deadline = time.monotonic() + seconds
    seen = set()
    while (status := probe(template, "readinessProbe", port)) != 200:
        seen.add((status, probe(template, "livenessProbe", port)))
        if time.monotonic() > deadline or any(process.poll() is not None for process in running.processes):
            raise AssertionError(f"not ready, {seen}:\n{running.log()}")
        time.sleep(0.05)
    # While it loads it is live, unless nobody listens yet.
    assert all(live in (200, None) for _, live in seen), seen


def metric(text, query):
    """Whether a scrape has every metric of a query."""
    return [name for name in re.findall(r"\b(?:vllm|nibble):\w+", query) if f"\n{name}{{" not in text and f"\n{name} " not in text]


def test_one_server_as_rendered(nibble, tmp_path):
    objects = chart.render(chart.merged(
        chart.example("gpu-1"), {"options": {"device": "cpu", "threads": 1, "max-model-len": 512}, "tls": {"existingSecret": ""},
                                 "resources": {"limits": {"nvidia.com/gpu": None}}}))
    (_, template), = checks.templates(objects)
    ports = {"port": free_port(), "grpc-port": free_port(), "health-port": free_port()}
    pod = Pod(nibble, template, tmp_path, model=STORIES, ports=ports)
    with Running([pod]) as running:
        wait_ready(running, template, ports["health-port"])
        assert probe(template, "livenessProbe", ports["health-port"]) == 200
        assert get(ports["health-port"], "/v1/models")[0] == 404
        assert get(ports["port"], "/v1/models")[0] == 401
        body = {"model": checks.option(template, "served-model-name"), "prompt": "Once", "max_tokens": 4}
        status, text = get(ports["port"], "/v1/completions", body, KEY)
        assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == 4, text
        # What the autoscaler asks Prometheus about is what Prometheus finds here.
        (scaler,) = checks.kinds(objects, "ScaledObject")
        _, text = get(ports["port"], "/metrics", key=KEY)
        assert metric(text, scaler["spec"]["triggers"][0]["metadata"]["query"]) == []
        assert metric(text, "vllm:no_such_metric") != []
        assert pod.paths["/var/cache/nibble"].is_dir()
    assert running.processes[0].returncode == 0


def test_a_group_as_rendered(nibble, tmp_path):
    """Two hosts of one rank each, both here."""
    objects = chart.render(chart.merged(GROUP, {"options": {"device": "cpu", "rank-threads": 1, "max-model-len": 512,
                                                            "all-reduce": "none"}}))
    (_, server), (_, node) = checks.templates(objects)
    ports = {"port": free_port(), "grpc-port": free_port(), "health-port": free_port(), "master-port": free_port()}
    pods = [Pod(nibble, server, tmp_path / "0", 0, 2, "127.0.0.1", STORIES, ports),
            Pod(nibble, node, tmp_path / "1", 1, 2, "127.0.0.1", STORIES, {"master-port": ports["master-port"]})]
    with Running(pods) as running:
        wait_ready(running, server, ports["health-port"])
        status, text = get(ports["port"], "/v1/completions", {"model": "stories-llama", "prompt": "Once", "max_tokens": 4})
        assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == 4, text
    assert [process.returncode for process in running.processes] == [0, 0]


def test_a_worker_without_its_leader_goes_on_trying(nibble, tmp_path):
    objects = chart.render(chart.merged(GROUP, {"options": {"device": "cpu"}}))
    (_, _), (_, node) = checks.templates(objects)
    pod = Pod(nibble, node, tmp_path, 1, 2, "127.0.0.1", STORIES)
    pod.command[pod.command.index("--master-addr") + 1] = "leader.that.is.not.there.invalid"
    with Running([pod]) as running:
        time.sleep(2)
        assert running.processes[0].poll() is None, running.log()
