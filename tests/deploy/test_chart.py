# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The chart, rendered with the examples' values and others, against the schemas and the checks."""
import itertools
import re

import helm_python as helm
import pytest
import yaml

import chart
import checks
import schemas
from variants import GROUP, VARIANTS


def test_five_examples_are_there():
    assert [path.stem for path in chart.EXAMPLES] == ["cpu", "expert-parallel", "gpu-1", "gpu-2x8", "gpu-8"]


def test_lint():
    found = helm.lint(str(chart.CHART))
    assert found["total_charts_linted"] == 1 and not found["errors"], found


def test_objects_of_examples_are_valid(example):
    for item in example[1]:
        schemas.validate(item)


def test_objects_of_examples_pass_the_checks(example):
    assert checks.violations(example[1]) == []


def test_objects_of_examples_are_valid_by_the_real_definitions(example, definitions):
    for item in example[1]:
        if schemas.kind_of(item) in definitions.schemas:
            definitions.validate(item)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_values(name):
    objects = chart.render(VARIANTS[name])
    for item in objects:
        schemas.validate(item)
    assert checks.violations(objects) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_other_values_by_the_real_definitions(name, definitions):
    for item in chart.render(VARIANTS[name]):
        if schemas.kind_of(item) in definitions.schemas:
            definitions.validate(item)


def leaves(values, where=()):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*where, key))
        else:
            yield (*where, key), value


def test_every_value_is_tried_and_has_an_effect():
    """Each value of values.yaml is given in a variant or an example, and changes what is rendered there."""
    defaults = chart.default_values()
    sets = [*VARIANTS.values(), *(chart.example(path.stem) for path in chart.EXAMPLES)]
    for path, default in leaves(defaults):
        def get(values):
            for key in path:
                values = values.get(key) if isinstance(values, dict) else None
            return values
        using = [values for values in sets if get(values) not in (None, default)]
        assert using, f"{'.'.join(path)} is tried nowhere"

        def without(values):
            reset = chart.merged(defaults, values)
            inner = reset
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = default
            return reset

        def differs(values):
            try:
                return chart.render_text(values) != chart.render_text(without(values))
            except helm.HelmError:
                return True  # a check between values
        assert any(map(differs, using)), f"{'.'.join(path)} changes nothing"


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("pre_stop, drain, margin",
                         [*itertools.product((1, 15, 3600), (1, 60, 86400), (20, 3600)), (17, 123, 21)])
def test_grace_is_longer_than_drain_for_all_values(nodes, pre_stop, drain, margin):
    values = chart.merged(GROUP, {"nodes": nodes, "drain": {
        "preStopSeconds": pre_stop, "shutdownTimeoutSeconds": drain, "marginSeconds": margin}})
    objects = chart.render(values)
    for _, template in checks.templates(objects):
        assert template["spec"]["terminationGracePeriodSeconds"] == pre_stop + drain + margin
        for name in {"startupProbe", "livenessProbe"} & set(checks.container(template)):
            assert checks.container(template)[name]["terminationGracePeriodSeconds"] == pre_stop + margin
    assert list(checks.grace(objects)) == []
    item = checks.workload(objects)
    if item["kind"] == "Deployment":
        assert item["spec"]["progressDeadlineSeconds"] > 1800 + pre_stop + drain + margin


def test_numbers_are_written_as_the_binary_reads_them():
    _, template = checks.templates(chart.render({"options": {
        "max-num-batched-tokens": 1048576, "kv-cache-memory-bytes": 137438953472, "gpu-memory-utilization": 0.925,
        "enforce-eager": True, "batch-invariant": False, "api": ["a", "b"]}}))[0]
    assert checks.option(template, "max-num-batched-tokens") == "1048576"
    assert checks.option(template, "kv-cache-memory-bytes") == "137438953472"
    assert checks.option(template, "gpu-memory-utilization") == "0.925"
    assert checks.option(template, "enforce-eager") is True
    assert checks.option(template, "batch-invariant") is None
    assert checks.container(template)["args"].count("--api") == 2


def test_made_up_secret_is_long_and_never_the_same():
    def secret():
        (item,) = checks.kinds(chart.render(VARIANTS["group with a made-up secret"]), "Secret")
        return item["data"]["cluster-secret"]
    assert len(secret()) >= 64 and secret() != secret()


def test_groups_are_given_longer_to_start():
    def seconds(**values):
        probe = checks.container(checks.templates(chart.render(values))[0][1])["startupProbe"]
        return probe["periodSeconds"] * probe["failureThreshold"]
    assert seconds() == 1800 and seconds(**GROUP) == 5400
    assert seconds(probes={"startupSeconds": 61}) == 65 and seconds(**GROUP, probes={"startupSeconds": 7200}) == 7200


def test_a_new_version_of_the_chart_starts_no_pod_again():
    """Pods with another label are other pods."""
    for name in ("defaults", "group, HPA", "pool"):
        for _, template in checks.templates(chart.render(VARIANTS[name])):
            text = yaml.safe_dump(template["metadata"])
            version = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["version"]
            assert version not in text, text


def test_values_stay_strings():
    """What looks like a number, a truth value or a mapping is the text that was given."""
    objects = chart.render(VARIANTS["looks like others"])
    (_, template), = checks.templates(objects)
    spec = template["spec"]
    assert spec["runtimeClassName"] == "true" and spec["priorityClassName"] == "1e3" and spec["serviceAccountName"] == "456"
    assert checks.container(template)["args"][3] == "/models/a: b" and spec["nodeSelector"]["a"] == "no"
    assert next(one for one in spec["volumes"] if one["name"] == "model")["persistentVolumeClaim"]["claimName"] == "123"
    assert {item["metadata"]["name"] for item in objects} == {"true", "true-clients"}


def test_prometheus_checks_the_certificate():
    def config(values):
        (monitor,) = checks.kinds(chart.render(values), "ServiceMonitor")
        return monitor["spec"]["endpoints"][0].get("tlsConfig")
    there = {"tls": {"existingSecret": "a"}, "serviceMonitor": {"enabled": True}}
    authority = {"secret": {"name": "a", "key": "ca.crt"}}
    assert config(there) == {"serverName": "nibble.nibble.svc", "ca": authority}
    own = {"cert": {"secret": {"name": "b", "key": "tls.crt"}}, "keySecret": {"name": "b", "key": "tls.key"}}
    assert config(chart.merged(there, {"serviceMonitor": {"tlsConfig": own}})) == {
        "serverName": "nibble.nibble.svc", "ca": authority, **own}
    other = {"ca": {"configMap": {"name": "c", "key": "d"}}, "serverName": "e"}
    assert config(chart.merged(there, {"serviceMonitor": {"tlsConfig": other}})) == other
    assert config(VARIANTS["secrets of the chart"]) == {"insecureSkipVerify": True}
    assert config(VARIANTS["certificate without its authority"])["ca"]["secret"] == {"name": "nibble-tls", "key": "tls.crt"}
    assert config(VARIANTS["CPUs, scaled"]) is None


def test_notes_of_every_release():
    for values in [*VARIANTS.values(), *(chart.example(path.stem) for path in chart.EXAMPLES)]:
        text = chart.render_text(values)["NOTES.txt"]
        assert "kubectl" in text and "<no value>" not in text
        assert ("there are no API keys" in text) == (not values.get("auth"))
        assert ("$KEY" in text) == ("export KEY=" in text) == bool(values.get("auth"))
        assert ("--cert" in text) == (values.get("tls", {}).get("clientCertificates") == "required")
        assert ("-group" in text) == (values.get("nodes", 1) > 1)


REFUSED = [
    ({"replica": 1}, "replica"),
    ({"replicas": -1}, "replicas"),
    ({"nodes": 0}, "nodes"),
    ({"drain": {"preStopSeconds": 0}}, "preStopSeconds"),
    ({"drain": {"marginSeconds": 19}}, "marginSeconds"),
    ({"probes": {"startupSeconds": 29}}, "startupSeconds"),
    ({"host": "127.0.0.1"}, "host"),
    ({"ports": {"grpc": 8000}}, "ports.grpc and ports.http are both 8000"),
    ({"ports": {"health": 8001}}, "ports.grpc and ports.health are both 8001"),
    ({**GROUP, "ports": {"cluster": 8002}}, "ports.cluster and ports.health are both 8002"),
    ({"options": {"device": "cuda"}}, "resources.limits wants GPUs"),
    ({**GROUP, "env": [{"name": "POD_IP", "value": "a"}]}, "POD_IP comes twice"),
    ({"env": [{"name": "A", "value": "a"}, {"name": "A", "value": "b"}]}, "A comes twice"),
    ({"podLabels": {"app.kubernetes.io/component": "node"}}, "app.kubernetes.io/component is not free"),
    ({"podLabels": {"app.kubernetes.io/name": "a"}}, "app.kubernetes.io/name is not free"),
    ({"podLabels": {"leaderworkerset.sigs.k8s.io/group-index": "1"}}, "is not free"),
    ({"podAnnotations": {"nibble/cluster-revision": "a"}}, "the chart sets nibble/cluster-revision"),
    ({**GROUP, "cluster": {"key": "other"}}, "another entry wants cluster.existingSecret"),
    ({"autoscaling": {"keda": {"metadata": {"query": "1"}}}}, "invalid propertyName 'query'"),
    ({"autoscaling": {"keda": {"fallback": {"replicas": 1}}}}, "fallback"),
    ({"autoscaling": {"keda": {"authenticationRef": {"kind": "TriggerAuthentication"}}}}, "authenticationRef"),
    ({"inferencePool": {"enabled": True, "endpointPicker": {"name": "p"}}, "networkPolicy": {"clients": [{"ipBlock": {"cidr": "::/0"}}]}},
     "inferencePool.endpointPicker.podLabels"),
    ({"drain": {"shutdownTimeoutSeconds": "60"}}, "shutdownTimeoutSeconds"),
    ({"model": {"source": "s3"}}, "source"),
    ({"model": {"path": "../etc"}}, "path"),
    ({"model": {"path": "/etc"}}, "path"),
    ({"model": {"source": "image"}}, "model.image.reference is missing"),
    ({"model": {"source": "copy"}}, "model.copy.image is missing"),
    ({"options": {"port": 1}}, "the chart sets --port, by ports.http"),
    ({"options": {"--device": "cpu"}}, "'--device' does not match"),
    ({"options": {"tensor-parallel-size": 3}, "nodes": 2}, "3 ranks, want a multiple of nodes (2)"),
    ({"options": {"tensor-parallel-size": 4}, "resources": {"limits": {"nvidia.com/gpu": 8}}}, "each host has 4 ranks"),
    ({"cluster": {"secret": "short"}}, "secret"),
    ({"auth": {"keys": ["two words"]}}, "keys"),
    ({"auth": {"keys": ["#comment"]}}, "keys"),
    ({"auth": {"existingSecret": "a"}, "serviceMonitor": {"enabled": True}}, "/metrics wants a key"),
    ({"tls": {"clientCertificates": "required"}}, "tls.clientCertificates wants"),
    ({"tls": {"certificate": "a"}}, "want both or none"),
    ({"tls": {"certificate": "a", "key": "b", "clientCertificates": "required"}}, "wants tls.clientCa"),
    ({"tls": {"existingSecret": "a", "clientCertificates": "required"}, "serviceMonitor": {"enabled": True}},
     "Prometheus wants a certificate"),
    ({"autoscaling": {"type": "keda", "minReplicas": 5, "maxReplicas": 2}}, "minReplicas is 5"),
    ({"autoscaling": {"minReplicas": 0}}, "minReplicas"),
    ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "rollout"),
    ({"inferencePool": {"enabled": True}}, "inferencePool.endpointPicker.name is missing"),
    ({"addCapabilities": ["IPC_LOCK"]}, "addCapabilities"),
    ({"shmSize": "lots"}, "shmSize"),
    ({"topologySpreadConstraints": [{"labelSelector": {}}]}, "topologySpreadConstraints"),
]


@pytest.mark.parametrize("values, words", REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_values_that_cannot_work_are_refused(values, words):
    with pytest.raises(helm.HelmError, match=re.escape(words)):
        chart.render(values)


def test_manifests_are_what_the_chart_renders():
    for path in chart.EXAMPLES:
        text = (chart.MANIFESTS / path.name).read_text()
        assert text == chart.manifest(path), f"run tests/deploy/chart.py: {path.name} is not up to date"
        assert chart.read(text) == chart.render(yaml.safe_load(path.read_text()))
    assert sorted(path.name for path in chart.MANIFESTS.glob("*.yaml")) == [path.name for path in chart.EXAMPLES]


def values_table():
    """README.md's table of values, from values.yaml: each value with the comment above it."""
    rows, path, comment = [], [], ""
    defaults = dict(leaves(chart.default_values()))
    for line in (chart.CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment = text[1:].strip()
        match = re.match(r"( *)(\w+):", line)
        if match:
            path = [*path[:len(match.group(1)) // 2], match.group(2)]
            if tuple(path) in defaults:
                assert comment, f"{'.'.join(path)} has no comment"
                value = yaml.safe_dump(defaults[tuple(path)], default_flow_style=True).removesuffix("\n").removesuffix("\n...")
                rows.append(f"| `{'.'.join(path)}` | {'' if value in ('''''', chr(39) * 2) else f'`{value}`'} | {comment} |")
                comment = ""
    return rows


def test_readme_has_every_value():
    text = (chart.CHART / "README.md").read_text()
    table = text.split("<!-- values -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    assert table == values_table()
