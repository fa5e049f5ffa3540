# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Releases that are broken on purpose: each check, and each schema, notices."""
import copy

import pytest
import yaml

import chart
import checks
import schemas
from variants import GROUP, VARIANTS


def release(name):
    return chart.render(VARIANTS[name] if name in VARIANTS else chart.example(name))


def first(objects, *kinds):
    return checks.kinds(objects, *kinds)[0]


def pod(objects, role="server"):
    return next(template for found, template in checks.templates(objects) if found == role)


def set_option(objects, name, value, role="server"):
    args = checks.container(pod(objects, role))["args"]
    args[args.index(f"--{name}") + 1] = value


def drop_option(objects, name, role="server"):
    args = checks.container(pod(objects, role))["args"]
    at = args.index(f"--{name}")
    del args[at:at + 2]


def volume(objects, name, role="server"):
    return next(one for one in pod(objects, role)["spec"]["volumes"] if one["name"] == name)


def mount(objects, path, role="server"):
    return next(one for one in checks.container(pod(objects, role))["volumeMounts"] if one["mountPath"] == path)


def policy(objects, ending):
    return next(item for item in checks.kinds(objects, "NetworkPolicy") if item["metadata"]["name"].endswith(ending))


# (check that notices, example, what is broken)
BROKEN = [
    ("metadata", "cpu", lambda o: first(o, "Service")["metadata"].pop("namespace")),
    ("metadata", "cpu", lambda o: o.append(copy.deepcopy(first(o, "ServiceAccount")))),
    ("metadata", "cpu", lambda o: first(o, "Service")["metadata"].update(name="n" * 64)),
    ("metadata", "cpu", lambda o: first(o, "Service")["metadata"]["labels"].clear()),
    ("metadata", "cpu", lambda o: pod(o)["metadata"]["labels"].update({"helm.sh/chart": "nibble-0.1.0"})),
    ("grace", "cpu", lambda o: pod(o)["spec"].update(terminationGracePeriodSeconds=94)),
    ("grace", "cpu", lambda o: checks.container(pod(o))["livenessProbe"].update(terminationGracePeriodSeconds=15)),
    ("grace", "cpu", lambda o: checks.container(pod(o))["startupProbe"].update(terminationGracePeriodSeconds=34)),
    ("grace", "gpu-2x8", lambda o: pod(o, "node")["spec"].update(terminationGracePeriodSeconds=30)),
    ("grace", "cpu", lambda o: set_option(o, "shutdown-timeout", "90")),
    ("grace", "cpu", lambda o: set_option(o, "drain-delay", "15")),
    ("grace", "cpu", lambda o: checks.container(pod(o))["lifecycle"]["preStop"]["sleep"].update(seconds=0)),
    ("drain_is_one", "gpu-2x8", lambda o: set_option(o, "shutdown-timeout", "10", "node")),
    ("probes", "cpu", lambda o: checks.container(pod(o))["livenessProbe"]["httpGet"].update(path="/health/ready")),
    ("probes", "cpu", lambda o: checks.container(pod(o))["readinessProbe"]["httpGet"].update(path="/health/live")),
    ("probes", "cpu", lambda o: checks.container(pod(o)).pop("startupProbe")),
    ("probes", "cpu", lambda o: checks.container(pod(o))["readinessProbe"]["httpGet"].update(port="http")),
    ("probes", "cpu", lambda o: checks.container(pod(o))["livenessProbe"].update(failureThreshold=1)),
    ("probes", "cpu", lambda o: checks.container(pod(o))["livenessProbe"].update(timeoutSeconds=60)),
    ("probes", "cpu", lambda o: checks.container(pod(o))["livenessProbe"]["httpGet"].update(scheme="HTTPS")),
    ("probes", "cpu", lambda o: checks.container(pod(o))["livenessProbe"].pop("terminationGracePeriodSeconds")),
    ("probes", "gpu-2x8", lambda o: checks.container(pod(o))["startupProbe"].update(failureThreshold=360)),
    ("probes", "gpu-2x8", lambda o: checks.container(pod(o, "node")).update(
        readinessProbe=checks.container(pod(o))["readinessProbe"])),
    ("security", "cpu", lambda o: pod(o)["spec"]["securityContext"].update(runAsUser=0)),
    ("security", "cpu", lambda o: pod(o)["spec"]["securityContext"].pop("runAsNonRoot")),
    ("security", "cpu", lambda o: pod(o)["spec"]["securityContext"]["seccompProfile"].update(type="Unconfined")),
    ("security", "cpu", lambda o: pod(o)["spec"].pop("automountServiceAccountToken")),
    ("security", "cpu", lambda o: pod(o)["spec"].pop("enableServiceLinks")),
    ("security", "cpu", lambda o: pod(o)["spec"].update(hostNetwork=True)),
    ("security", "cpu", lambda o: checks.container(pod(o))["securityContext"].update(readOnlyRootFilesystem=False)),
    ("security", "cpu", lambda o: checks.container(pod(o))["securityContext"].pop("allowPrivilegeEscalation")),
    ("security", "gpu-2x8", lambda o: checks.container(pod(o, "node"))["securityContext"]["capabilities"].pop("drop")),
    ("security", "cpu", lambda o: checks.container(pod(o))["securityContext"]["capabilities"].update(add=["SYS_ADMIN"])),
    ("security", "gpu-2x8", lambda o: checks.container(pod(o))["securityContext"]["capabilities"].update(add=["IPC_LOCK"])),
    ("security", "cpu", lambda o: checks.container(pod(o))["securityContext"].update(runAsUser=0)),
    ("security", "expert-parallel", lambda o: pod(o)["spec"]["initContainers"][0].pop("securityContext")),
    ("security", "cpu", lambda o: first(o, "ServiceAccount").pop("automountServiceAccountToken")),
    ("mounts", "cpu", lambda o: pod(o)["spec"]["volumes"].pop()),
    ("mounts", "cpu", lambda o: volume(o, "shm")["emptyDir"].pop("medium")),
    ("mounts", "cpu", lambda o: volume(o, "shm")["emptyDir"].pop("sizeLimit")),
    ("mounts", "cpu", lambda o: mount(o, "/models").pop("readOnly")),
    ("mounts", "cpu", lambda o: mount(o, "/var/cache/nibble").update(readOnly=True)),
    ("mounts", "gpu-1", lambda o: mount(o, "/etc/nibble/auth").update(mountPath="/etc/other")),
    ("mounts", "gpu-1", lambda o: volume(o, "auth")["secret"].update(defaultMode=0o444)),
    ("mounts", "gpu-1", lambda o: mount(o, "/etc/nibble/tls").pop("readOnly")),
    ("secrets_are_files", "cpu", lambda o: checks.container(pod(o))["args"].extend(["--api-key", "a"])),
    ("secrets_are_files", "gpu-2x8", lambda o: checks.container(pod(o))["env"].append(
        {"name": "NIBBLE_CLUSTER_SECRET", "value": "a"})),
    ("secrets_are_files", "gpu-2x8", lambda o: checks.container(pod(o, "node"))["args"].extend(["--api-key-file", "/etc/nibble/a"])),
    ("ports", "cpu", lambda o: set_option(o, "port", "8080")),
    ("ports", "cpu", lambda o: set_option(o, "grpc-port", "-1")),
    ("ports", "cpu", lambda o: set_option(o, "host", "127.0.0.1")),
    ("ports", "gpu-2x8", lambda o: checks.container(pod(o, "node"))["args"].extend(["--port", "8000"])),
    ("ports", "cpu", lambda o: checks.container(pod(o))["ports"][1].update(containerPort=8000)),
    ("ports", "cpu", lambda o: first(o, "Service")["spec"]["ports"][0].update(targetPort="web")),
    ("ports", "gpu-2x8", lambda o: first(o, "Service")["spec"]["ports"].append(
        {"name": "cluster", "port": 29500, "targetPort": "cluster"})),
    ("selectors", "cpu", lambda o: first(o, "Service")["spec"]["selector"].update(a="b")),
    ("selectors", "gpu-2x8", lambda o: first(o, "Service")["spec"]["selector"].pop("app.kubernetes.io/component")),
    ("selectors", "cpu", lambda o: first(o, "Deployment")["spec"]["selector"]["matchLabels"].update(a="b")),
    ("selectors", "gpu-2x8", lambda o: first(o, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "server"})),
    ("selectors", "gpu-8", lambda o: first(o, "InferencePool")["spec"]["targetPorts"][0].update(number=1)),
    ("selectors", "gpu-8", lambda o: first(o, "InferencePool")["spec"]["selector"]["matchLabels"].update(a="b")),
    ("selectors", "gpu-8", lambda o: pod(o)["metadata"]["labels"].pop("inference.networking.k8s.io/engine-type")),
    ("selectors", "gpu-8", lambda o: pod(o)["metadata"]["labels"].pop("llm-d.ai/engine-type")),
    ("selectors", "spread group", lambda o: pod(o, "node")["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "server"})),
    ("selectors", "cpu", lambda o: pod(o)["spec"]["nodeSelector"].pop("kubernetes.io/arch")),
    ("selectors", "CPUs, scaled", lambda o: first(o, "ServiceMonitor")["spec"]["selector"]["matchLabels"].update(a="b")),
    ("selectors", "CPUs, scaled", lambda o: first(o, "ServiceMonitor")["spec"]["endpoints"][0].update(port="metrics")),
    ("selectors", "CPUs, scaled", lambda o: first(o, "ServiceMonitor")["spec"].update(jobLabel="app")),
    ("network", "cpu", lambda o: o.remove(policy(o, "nibble"))),
    ("network", "cpu", lambda o: policy(o, "nibble")["spec"].update(policyTypes=["Ingress"])),
    ("network", "cpu", lambda o: policy(o, "-clients")["spec"]["ingress"][0].pop("from")),
    ("network", "cpu", lambda o: policy(o, "-clients")["spec"]["ingress"][0].pop("ports")),
    ("network", "gpu-2x8", lambda o: policy(o, "-clients")["spec"]["ingress"][0]["ports"].append({"port": 29500, "protocol": "TCP"})),
    ("network", "gpu-2x8", lambda o: policy(o, "-clients")["spec"]["podSelector"]["matchLabels"].pop("app.kubernetes.io/component")),
    ("network", "gpu-2x8", lambda o: policy(o, "-group-0")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].pop(
        "leaderworkerset.sigs.k8s.io/group-index")),
    ("network", "gpu-2x8", lambda o: policy(o, "-group-0")["spec"]["ingress"][0]["from"].append({"ipBlock": {"cidr": "0.0.0.0/0"}})),
    ("network", "gpu-2x8", lambda o: policy(o, "-group-0")["spec"]["ingress"][0].pop("from")),
    ("network", "gpu-2x8", lambda o: policy(o, "-group-0")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "server"})),
    ("network", "gpu-2x8", lambda o: o.remove(policy(o, "-group-2"))),
    ("network", "gpu-2x8", lambda o: policy(o, "nibble")["spec"].pop("egress")),
    ("network", "gpu-8", lambda o: policy(o, "-clients")["spec"]["ingress"].pop(1)),
    ("network", "gpu-8", lambda o: policy(o, "-clients")["spec"]["ingress"][1].update(ports=[{"port": "grpc", "protocol": "TCP"}])),
    ("group", "gpu-2x8", lambda o: first(o, "LeaderWorkerSet")["spec"].update(startupPolicy="LeaderReady")),
    ("group", "gpu-2x8", lambda o: first(o, "LeaderWorkerSet")["metadata"].update(name="nibble")),
    ("group", "gpu-2x8", lambda o: first(o, "LeaderWorkerSet")["metadata"].update(name="nibble-0")),
    ("group", "gpu-2x8", lambda o: first(o, "Service")["metadata"].update(name="nibble-group-1")),
    ("group", "gpu-2x8", lambda o: set_option(o, "node-rank", "0", "node")),
    ("group", "gpu-2x8", lambda o: set_option(o, "node-addr", "$(LWS_LEADER_ADDRESS)")),
    ("group", "gpu-2x8", lambda o: drop_option(o, "cluster-secret-file", "node")),
    ("group", "gpu-2x8", lambda o: set_option(o, "pipeline-parallel-size", "1", "node")),
    ("group", "gpu-2x8", lambda o: checks.container(pod(o, "node")).update(image="other")),
    ("group", "gpu-2x8", lambda o: checks.container(pod(o, "node")).pop("env")),
    ("group", "cpu", lambda o: checks.container(pod(o))["args"].extend(["--nnodes", "2"])),
    ("accelerators", "gpu-8", lambda o: set_option(o, "tensor-parallel-size", "4")),
    ("accelerators", "gpu-8", lambda o: checks.container(pod(o))["resources"]["limits"].pop("nvidia.com/gpu")),
    ("accelerators", "gpu-1", lambda o: set_option(o, "device", "cpu")),
    ("accelerators", "cpu", lambda o: checks.container(pod(o))["resources"]["limits"].pop("memory")),
    ("accelerators", "cpu", lambda o: checks.container(pod(o))["resources"]["limits"].pop("cpu")),
    ("accelerators", "gpu-8", lambda o: drop_option(o, "cpu-binding")),
    ("accelerators", "gpu-8", lambda o: drop_option(o, "rank-threads")),
    ("accelerators", "gpu-1", lambda o: set_option(o, "threads", "64")),
    ("accelerators", "expert-parallel", lambda o: pod(o)["spec"]["initContainers"][0].pop("resources")),
    ("scaling", "CPUs, scaled", lambda o: first(o, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(name="other")),
    ("scaling", "gpu-2x8", lambda o: first(o, "ScaledObject")["spec"]["scaleTargetRef"].update(kind="Deployment")),
    ("scaling", "CPUs, scaled", lambda o: first(o, "Deployment")["spec"].update(replicas=2)),
    ("scaling", "gpu-8", lambda o: first(o, "Deployment")["spec"].pop("replicas")),
    ("scaling", "gpu-1", lambda o: first(o, "ScaledObject")["spec"]["triggers"][0]["metadata"].update(
        query='sum(vllm:num_requests_waiting{namespace="nibble",service="nibble"})')),
    ("scaling", "gpu-1", lambda o: first(o, "ScaledObject")["spec"]["triggers"][0]["metadata"].update(
        query="sum(vllm:num_requests_waiting) + sum(vllm:num_requests_running)")),
    ("scaling", "gpu-1", lambda o: first(o, "ScaledObject")["spec"]["triggers"][0]["metadata"].pop("ignoreNullValues")),
    ("scaling", "KEDA", lambda o: first(o, "ScaledObject")["spec"]["fallback"].update(replicas=5)),
    ("monitoring_may_ask", "gpu-1", lambda o: first(o, "ServiceMonitor")["spec"]["endpoints"][0].pop("tlsConfig")),
    ("monitoring_may_ask", "gpu-1", lambda o: first(o, "ServiceMonitor")["spec"]["endpoints"][0]["tlsConfig"].pop("ca")),
    ("monitoring_may_ask", "gpu-1", lambda o: first(o, "ServiceMonitor")["spec"]["endpoints"][0].pop("authorization")),
    ("monitoring_may_ask", "gpu-1", lambda o: first(o, "ServiceMonitor")["spec"]["endpoints"][0].update(scheme="http")),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_check_notices(number):
    name, example, break_it = BROKEN[number]
    objects = release(example)
    break_it(objects)
    assert any(found.startswith(f"{name}: ") for found in checks.violations(objects)), checks.violations(objects)


def test_every_check_was_seen_to_notice():
    assert {name for name, _, _ in BROKEN} == {one.__name__ for one in checks.CHECKS}


# (example, kind, what is broken): misspelt, misplaced, of a wrong type, or missing.
MALFORMED = [
    ("cpu", "Deployment", lambda item: item["spec"].update(replica=1)),
    ("cpu", "Deployment", lambda item: item["spec"]["template"]["spec"].update(terminationGracePeriodSeconds="85")),
    ("cpu", "Deployment", lambda item: item["spec"]["template"]["spec"]["containers"][0].update(readyProbe={})),
    ("cpu", "Deployment", lambda item: item["spec"].pop("selector")),
    ("cpu", "Service", lambda item: item["spec"]["ports"][0].update(port="http")),
    ("CPUs, scaled", "HorizontalPodAutoscaler", lambda item: item["spec"].update(maxReplica=1)),
    ("cpu", "NetworkPolicy", lambda item: item["spec"].update(egres=[])),
    ("cpu", "PodDisruptionBudget", lambda item: item["spec"].update(maxUnavailble=1)),
    ("cpu", "ServiceAccount", lambda item: item.update(automount=False)),
    ("CPUs, scaled", "ServiceMonitor", lambda item: item["spec"]["endpoints"][0].update(intervall="15s")),
    ("CPUs, scaled", "ServiceMonitor", lambda item: item["spec"].pop("selector")),
    ("gpu-1", "ScaledObject", lambda item: item["spec"].update(minReplica=1)),
    ("gpu-1", "ScaledObject", lambda item: item["spec"]["triggers"][0].pop("type")),
    ("gpu-1", "ScaledObject", lambda item: item["spec"].update(maxReplicaCount="many")),
    ("rules and dashboard", "PrometheusRule", lambda item: item["spec"]["groups"][0]["rules"][0].update(expression="1")),
    ("gpu-8", "InferencePool", lambda item: item["spec"].update(targetPortNumber=8000)),
    ("gpu-8", "InferencePool", lambda item: item["spec"]["targetPorts"][0].update(number=0)),
    ("gpu-2x8", "LeaderWorkerSet", lambda item: item["spec"].update(size=2)),
    ("gpu-2x8", "LeaderWorkerSet", lambda item: item["spec"]["leaderWorkerTemplate"].update(size="two")),
    ("gpu-2x8", "LeaderWorkerSet", lambda item: item["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"].update(affinty={})),
    ("gpu-2x8", "LeaderWorkerSet", lambda item: item["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"].pop("containers")),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_a_schema_notices(number):
    example, kind, break_it = MALFORMED[number]
    item = first(release(example), kind)
    schemas.validate(item)
    break_it(item)
    with pytest.raises(schemas.INVALID):
        schemas.validate(item)


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_the_real_definitions_notice(number, definitions):
    example, kind, break_it = MALFORMED[number]
    item = first(release(example), kind)
    if schemas.kind_of(item) not in definitions.schemas:
        pytest.skip("Kubernetes' own")
    definitions.validate(item)
    break_it(item)
    with pytest.raises(schemas.INVALID):
        definitions.validate(item)


def test_a_key_that_comes_twice_is_noticed():
    with pytest.raises(yaml.constructor.ConstructorError, match="comes twice"):
        chart.read("a: 1\nb: {c: 1, c: 2}\n")


@pytest.mark.parametrize("values", [GROUP, chart.merged(GROUP, {"replicas": 2})])
def test_groups_are_whole_before_they_are_broken(values):
    assert checks.violations(chart.render(values)) == []
