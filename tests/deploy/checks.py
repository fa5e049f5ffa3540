# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""What must be true of the objects of a release that no schema says. Each check yields what is wrong, in words.

test_checks.py breaks objects on purpose and sees that each check notices.
"""
import re

from schemas import pod_templates_of

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def violations(objects):
    return [f"{one.__name__}: {text}" for one in CHECKS for text in one(objects)]


def kinds(objects, *names):
    return [item for item in objects if item["kind"] in names]


def workload(objects):
    (item,) = kinds(objects, "Deployment", "LeaderWorkerSet")
    return item


def templates(objects):
    return pod_templates_of(workload(objects))


def container(template):
    (nibble,) = template["spec"]["containers"]
    return nibble


def option(template, name, default=None):
    """The value of a command line option in a pod's arguments; True for a flag."""
    args = container(template)["args"]
    if f"--{name}" not in args:
        return default
    following = args[args.index(f"--{name}") + 1:][:1]
    return following[0] if following and not following[0].startswith("--") else True


def number_of_ranks(template):
    return int(option(template, "tensor-parallel-size", 1)) * int(option(template, "pipeline-parallel-size", 1))


def hosts(objects):
    item = workload(objects)
    return item["spec"]["leaderWorkerTemplate"]["size"] if item["kind"] == "LeaderWorkerSet" else 1


def selects(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


def group_labels(template, group):
    """Labels of a pod of a LeaderWorkerSet: its controller adds the group."""
    return {**template["metadata"]["labels"], "leaderworkerset.sigs.k8s.io/group-index": str(group)}


@check
def metadata(objects):
    seen = set()
    for item in objects:
        name = item["metadata"]["name"]
        key = item["kind"], name
        if key in seen:
            yield f"{key} comes twice"
        seen.add(key)
        if not item["metadata"].get("namespace"):
            yield f"{key} has no namespace"
        if item["metadata"].get("labels", {}).get("app.kubernetes.io/name") != "nibble":
            yield f"{key} has no name label"
        if len(name) > 63:
            yield f"{key}: the name is longer than 63 characters"
    for role, template in templates(objects):
        changing = {"helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"} & set(template["metadata"]["labels"])
        if changing:
            yield f"{role}: {sorted(changing)} start all pods again when nothing but the chart has changed"


@check
def grace(objects):
    """What is in progress when a pod is told to end may be finished before it is killed."""
    for role, template in templates(objects):
        sleep = container(template)["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = int(option(template, "drain-delay")) + int(option(template, "shutdown-timeout"))
        total = template["spec"]["terminationGracePeriodSeconds"]
        # After the drain an engine that hangs has 15 s, and its ranks 2 s.
        if total < sleep + drain + 20:
            yield f"{role}: {total} s of grace for {sleep} s of preStop and {drain} s of --drain-delay and --shutdown-timeout"
        for name in ("startupProbe", "livenessProbe"):
            own = container(template).get(name, {}).get("terminationGracePeriodSeconds", sleep + 20)
            if own < sleep + 20:
                yield f"{role}: {own} s for a pod that {name} ends, of which preStop takes {sleep}"
        if sleep < 1:
            yield f"{role}: no time for balancers"


@check
def drain_is_one(objects):
    """The hosts of a group keep their ranks for as long as its leader answers."""
    waits = {(container(template)["lifecycle"]["preStop"]["sleep"]["seconds"], option(template, "shutdown-timeout"))
             for _, template in templates(objects)}
    if len(waits) > 1:
        yield f"hosts of a group wait differently: {waits}"


@check
def probes(objects):
    for role, template in templates(objects):
        nibble = container(template)
        found = {name: nibble[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
                 if name in nibble}
        want = {"startupProbe": "/health/ready", "readinessProbe": "/health/ready", "livenessProbe": "/health/live"}
        if role != "server":
            want = {}  # it serves nothing; its leader is ready when its ranks are up
        if found != want:
            yield f"{role} has {found}, want {want}"
        ports = {port["name"]: port["containerPort"] for port in nibble.get("ports", [])}
        for name in found:
            probe = nibble[name]
            if probe["httpGet"]["port"] != "health" or str(ports.get("health")) != option(template, "health-port"):
                yield f"{role}: {name} does not ask at --health-port"
            if probe["httpGet"].get("scheme", "HTTP") != "HTTP":
                yield f"{role}: {name}: --health-port has no TLS"
            if probe["timeoutSeconds"] > probe["periodSeconds"]:
                yield f"{role}: {name} waits for longer than its period"
        if set(want) <= set(found) and want:
            def patience(name):
                return nibble[name]["periodSeconds"] * nibble[name]["failureThreshold"]
            if patience("livenessProbe") <= patience("readinessProbe"):
                yield f"{role} is killed before it is taken off the lists"
            for name in ("startupProbe", "livenessProbe"):
                if nibble[name].get("terminationGracePeriodSeconds", float("inf")) >= template["spec"]["terminationGracePeriodSeconds"]:
                    yield f"{role}: {name} waits for the whole drain of a server that hangs"
            # Half an hour to join and half an hour to start are nibble's own; hosts also come, pull and copy.
            if hosts(objects) > 1 and patience("startupProbe") < 3600 + 600:
                yield f"{role} is killed while hosts of its group are still expected"


@check
def security(objects):
    for role, template in templates(objects):
        spec = template["spec"]
        pod = spec["securityContext"]
        if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser") or not pod.get("runAsGroup"):
            yield f"{role} may run as root"
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{role}: no seccomp profile"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{role} gets a token"
        if spec.get("enableServiceLinks") is not False:
            yield f"{role} gets the environment of all Services"
        for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            if spec.get(name):
                yield f"{role}: {name}"
        for one in spec["containers"] + spec.get("initContainers", []):
            context = one.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
                yield f"{role}: {one['name']} may gain privileges"
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{role}: {one['name']} may write its root"
            # Nor adds any: without rights of root they would have no effect.
            if context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{role}: {one['name']} keeps capabilities"
            if {"runAsUser", "runAsNonRoot", "seccompProfile"} & set(context):
                yield f"{role}: {one['name']} differs from its pod"
    for account in kinds(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield "the service account mounts its token"


@check
def mounts(objects):
    for role, template in templates(objects):
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        used = {mount["name"] for one in spec["containers"] + spec.get("initContainers", []) for mount in one["volumeMounts"]}
        if used != set(volumes):
            yield f"{role}: volumes {sorted(volumes)}, mounted {sorted(used)}"
            continue
        paths = {mount["mountPath"]: mount for mount in container(template)["volumeMounts"]}
        for argument in container(template)["args"]:
            if argument.startswith("/") and not any(argument == path or argument.startswith(path + "/") for path in paths):
                yield f"{role}: {argument} is in no volume"
        shm = volumes[paths["/dev/shm"]["name"]].get("emptyDir", {}) if "/dev/shm" in paths else {}
        if shm.get("medium") != "Memory" or not shm.get("sizeLimit"):
            yield f"{role}: /dev/shm is not memory with a limit"
        for path in ("/var/cache/nibble", "/tmp"):
            if path not in paths or paths[path].get("readOnly"):
                yield f"{role}: {path} cannot be written"
        for path, mount in paths.items():
            if (path == "/models" or "secret" in volumes[mount["name"]]) and not mount.get("readOnly"):
                yield f"{role}: {path} can be written"
        for name, volume in volumes.items():
            if "secret" in volume and volume["secret"].get("defaultMode") != 0o440:
                yield f"{role}: the secret {name} can be read by others than the group"


@check
def secrets_are_files(objects):
    """Not in arguments or the environment, which whoever may see pods may read."""
    for role, template in templates(objects):
        if option(template, "api-key") or any("SECRET" in one["name"] or "KEY" in one["name"]
                                              for one in container(template).get("env", [])):
            yield f"{role}: a secret in the arguments or the environment"
        if role != "server" and (option(template, "api-key-file") or option(template, "ssl-keyfile")):
            yield f"{role} has keys that only servers need"


@check
def ports(objects):
    (service,) = kinds(objects, "Service")
    for role, template in templates(objects):
        named = {port["name"]: port["containerPort"] for port in container(template).get("ports", [])}
        if len(set(named.values())) != len(named):
            yield f"{role}: two ports with one number: {named}"
        if role != "server":
            if named or any(option(template, name) for name in ("host", "port", "grpc-port", "health-port")):
                yield f"{role} is told of ports that it does not have"
            continue
        want = {"http": option(template, "port"), "grpc": option(template, "grpc-port"), "health": option(template, "health-port"),
                "cluster": option(template, "master-port")}
        want = {name: int(value) for name, value in want.items() if value is not None and value != "-1"}
        if named != want:
            yield f"{role}: containerPorts {named}, arguments {want}"
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in named:
                yield f"the service's {port['name']} leads nowhere"
        if {port["targetPort"] for port in service["spec"]["ports"]} - {"http", "grpc"}:
            yield "the service has ports that are not for clients"
        if option(template, "host") not in ("0.0.0.0", "::"):
            yield "the server does not listen on the pod's address"


@check
def selectors(objects):
    (service,) = kinds(objects, "Service")
    for role, template in templates(objects):
        labels = template["metadata"]["labels"]
        if selects(service["spec"]["selector"], labels) != (role == "server"):
            yield f"the service {'does not select' if role == 'server' else 'selects'} {role}"
        for budget in kinds(objects, "PodDisruptionBudget"):
            if not selects(budget["spec"]["selector"]["matchLabels"], labels):
                yield f"the disruption budget does not select {role}"
        for pool in kinds(objects, "InferencePool"):
            if selects(pool["spec"]["selector"]["matchLabels"], labels) != (role == "server"):
                yield f"the pool and {role}"
            ports = [port["containerPort"] for port in container(template).get("ports", []) if port["name"] == "http"]
            if role == "server" and [port["number"] for port in pool["spec"]["targetPorts"]] != ports:
                yield "the pool's port is not the HTTP port"
            if role == "server" and any(labels.get(key) != "vllm" for key in (
                    "llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")):
                yield "the picker does not know whose metrics these are"
        for spread in template["spec"].get("topologySpreadConstraints", []):
            if [other for other, one in templates(objects)
                    if selects(spread["labelSelector"]["matchLabels"], one["metadata"]["labels"])] != [role]:
                yield f"{role} is spread by where others are"
        if template["spec"].get("nodeSelector", {}).get("kubernetes.io/arch") != "amd64" or \
                template["spec"]["nodeSelector"].get("kubernetes.io/os") != "linux":
            yield f"{role} may come to a node for which there is no image"
    item = workload(objects)
    if item["kind"] == "Deployment" and not selects(item["spec"]["selector"]["matchLabels"],
                                                    item["spec"]["template"]["metadata"]["labels"]):
        yield "the deployment does not select its own pods"
    for monitor in kinds(objects, "ServiceMonitor"):
        if not selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]):
            yield "the monitor does not select the service"
        if service["metadata"]["labels"].get(monitor["spec"]["jobLabel"]) != "nibble":
            yield "the job is not named nibble, by which rules and dashboard know it"
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                yield "the monitor asks at no port of the service"


def peers_are_group(peers, group):
    return all(set(peer) == {"podSelector"} and
               peer["podSelector"]["matchLabels"].get("leaderworkerset.sigs.k8s.io/group-index") == group for peer in peers)


@check
def network(objects):
    policies = kinds(objects, "NetworkPolicy")
    if not policies:
        return
    named = {"http", "grpc"}
    for role, template in templates(objects):
        chosen = [policy for policy in policies
                  if selects(policy["spec"]["podSelector"]["matchLabels"], group_labels(template, 0))]
        if not {"Ingress", "Egress"} <= {one for policy in chosen for one in policy["spec"]["policyTypes"]}:
            yield f"{role} is not closed in both directions"
        for policy in chosen:
            group = policy["spec"]["podSelector"]["matchLabels"].get("leaderworkerset.sigs.k8s.io/group-index")
            for rule in policy["spec"].get("ingress", []):
                if group is not None and peers_are_group(rule.get("from", []) or [{}], group):
                    continue
                if role != "server":
                    yield f"{role} lets others in than its group: {rule}"
                if not rule.get("from"):
                    yield f"everybody is let in: {rule}"
                if not rule.get("ports") or {port["port"] for port in rule["ports"]} - named:
                    yield f"other ports than those for clients are open: {rule}"
        if role == "server":
            allowed = {port["port"] for policy in chosen for rule in policy["spec"].get("ingress", [])
                       for port in rule.get("ports", [])}
            served = {port["name"] for port in container(template)["ports"]} & named
            if allowed != served:
                yield f"clients may use {allowed}, the server has {served}"
            near = [peer for policy in chosen for rule in policy["spec"].get("ingress", []) for peer in rule.get("from", [])
                    if set(peer) == {"podSelector"} and "http" in {port.get("port") for port in rule.get("ports", [])}]
            if kinds(objects, "InferencePool") and not near:
                yield "the endpoint picker, which is in the pool's namespace, may not read /metrics"
    item = workload(objects)
    if item["kind"] != "LeaderWorkerSet":
        return
    scalers = kinds(objects, "HorizontalPodAutoscaler", "ScaledObject")
    most = item["spec"].get("replicas", 1)
    for scaler in scalers:
        most = scaler["spec"].get("maxReplicas", scaler["spec"].get("maxReplicaCount"))
    most += item["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]["maxSurge"]
    for group in range(most):
        for role, template in templates(objects):
            # The selector of each group's pods, and not that of another's.
            inside = [policy for policy in policies if policy["spec"]["podSelector"]["matchLabels"].get(
                "leaderworkerset.sigs.k8s.io/group-index") == str(group)
                and selects(policy["spec"]["podSelector"]["matchLabels"], group_labels(template, group))]
            if len(inside) != 1 or not inside[0]["spec"].get("ingress") or not inside[0]["spec"].get("egress"):
                yield f"{role} of group {group} cannot reach its group"
            elif not all(selects(peer["podSelector"]["matchLabels"], group_labels(other, group))
                         for rule in inside[0]["spec"]["ingress"] for peer in rule.get("from", []) if "podSelector" in peer
                         for _, other in templates(objects)):
                yield f"group {group} does not let in its own hosts"
    resolves = any(port["port"] == 53 for policy in policies for rule in policy["spec"].get("egress", [])
                   for port in rule.get("ports", []))
    if not resolves:
        yield "the hosts of a group cannot resolve their leader's name"


@check
def group(objects):
    item = workload(objects)
    for role, template in templates(objects):
        words = {name: option(template, name) for name in ("nnodes", "node-rank", "master-addr", "node-addr")}
        if item["kind"] == "Deployment":
            if any(words.values()):
                yield f"one host with {words}"
            continue
        if words != {"nnodes": "$(LWS_GROUP_SIZE)", "node-rank": "$(LWS_WORKER_INDEX)", "master-addr": "$(LWS_LEADER_ADDRESS)",
                     "node-addr": "$(POD_IP)"}:
            yield f"{role} joins by {words}"
        if not option(template, "cluster-secret-file"):
            yield f"{role} has no secret"
        address = [one for one in container(template).get("env", []) if one["name"] == "POD_IP"]
        if not address or address[0]["valueFrom"]["fieldRef"]["fieldPath"] != "status.podIP":
            yield f"{role} does not know its address"
    if item["kind"] == "LeaderWorkerSet":
        # Its controller makes a headless Service of the set's name, in which pods that are not ready are found; one that is
        # there it takes as it is. Its pods, and the sets of its workers, are NAME-0, NAME-1...
        own = item["metadata"]["name"]
        for service in kinds(objects, "Service"):
            name = service["metadata"]["name"]
            if name == own or re.fullmatch(rf"{re.escape(name)}-\d+", own) or re.fullmatch(rf"{re.escape(own)}-\d+", name):
                yield f"the Service {name} takes a name from the LeaderWorkerSet {own}: hosts do not find their leader"
        if item["spec"]["startupPolicy"] != "LeaderCreated":
            yield "hosts that start when the leader is ready never start: it waits for them"
        server, node = (template for _, template in templates(objects))
        for name in ("tensor-parallel-size", "pipeline-parallel-size", "device", "all-reduce", "quantization"):
            if option(server, name) != option(node, name):
                yield f"--{name} differs between the hosts of a group"
        if container(server)["image"] != container(node)["image"] or container(server).get("resources") != container(node).get(
                "resources"):
            yield "the hosts of a group differ"


@check
def accelerators(objects):
    for role, template in templates(objects):
        resources = container(template).get("resources", {})
        gpus = resources.get("limits", {}).get("nvidia.com/gpu")
        requested = str(resources.get("requests", {}).get("cpu", ""))
        exclusive = requested and requested == str(resources.get("limits", {}).get("cpu", ""))
        if requested and not exclusive and option(template, "cpu-binding") != "none":
            yield f"{role}: pods of one node bind their threads to the same CPUs"
        threads = int(option(template, "threads", 0)) or \
            int(option(template, "rank-threads", 0)) * number_of_ranks(template) // hosts(objects)
        if requested and not exclusive and (not requested.isdigit() or threads != int(requested)):
            yield f"{role}: {threads or 'as many as CPUs'} threads, {requested} CPUs are asked for"
        device = option(template, "device", "auto")
        if device == "cuda" and not gpus:
            yield f"{role}: --device cuda without nvidia.com/gpu"
        if device == "cpu" and gpus:
            yield f"{role}: --device cpu with nvidia.com/gpu"
        if gpus and int(gpus) * hosts(objects) != number_of_ranks(template):
            yield f"{role}: {gpus} GPUs on each of {hosts(objects)} hosts, {number_of_ranks(template)} ranks"
        if "memory" not in resources.get("limits", {}) and (gpus or resources):
            yield f"{role}: no limit of memory"
        for one in template["spec"].get("initContainers", []):
            if not {"cpu", "memory"} <= set(one.get("resources", {}).get("requests", {})) or "memory" not in one["resources"].get("limits", {}):
                yield f"{role}: {one['name']} says nothing of its resources, which a quota refuses"


@check
def scaling(objects):
    item = workload(objects)
    scalers = kinds(objects, "HorizontalPodAutoscaler", "ScaledObject")
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        if (target["apiVersion"], target["kind"], target["name"]) != (
                item["apiVersion"], item["kind"], item["metadata"]["name"]):
            yield f"it scales {target}"
        if "replicas" in item["spec"]:
            yield "an upgrade sets back what was scaled"
        for trigger in scaler["spec"].get("triggers", []):
            query = trigger["metadata"]["query"]
            if trigger["metadata"].get("ignoreNullValues") != "false":
                yield "where Prometheus has nothing, servers in use are taken away"
            for name in ("vllm:num_requests_waiting", "vllm:num_requests_running"):
                if name not in query:
                    yield f"the query has no {name}"
            (service,) = kinds(objects, "Service")
            if f'service="{service["metadata"]["name"]}"' not in query or "namespace=" not in query:
                yield "the query is about other servers too"
        fallback = scaler["spec"].get("fallback")
        if fallback and not scaler["spec"]["minReplicaCount"] <= fallback["replicas"] <= scaler["spec"]["maxReplicaCount"]:
            yield f"{fallback['replicas']} when Prometheus is away are fewer or more than ever"
    if not scalers and "replicas" not in item["spec"]:
        yield "nobody says how many"


@check
def monitoring_may_ask(objects):
    for _, template in templates(objects):
        for monitor in kinds(objects, "ServiceMonitor"):
            for endpoint in monitor["spec"]["endpoints"]:
                if option(template, "api-key-file") and not endpoint.get("authorization"):
                    yield "/metrics wants a key, and Prometheus has none"
                if option(template, "ssl-certfile") and endpoint.get("scheme") != "https":
                    yield "the server speaks TLS, and Prometheus does not"
                tls = endpoint.get("tlsConfig", {})
                if option(template, "ssl-certfile") and not tls.get("insecureSkipVerify") and not (tls.get("serverName") and tls.get("ca")):
                    yield "certificates are not for the addresses that Prometheus asks at, nor of whom it trusts"
