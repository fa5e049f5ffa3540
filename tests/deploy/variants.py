# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Values beside the examples': every value of the chart is set to something other than its default in at least one of them
or in an example (test_chart.py counts)."""

PEM = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"
GROUP = {"nodes": 2, "options": {"tensor-parallel-size": 2}}

VARIANTS = {
    "defaults": {},
    "CPUs, scaled": {
        "options": {"device": "cpu", "threads": 8}, "replicas": 2, "rollout": {"maxSurge": 1, "maxUnavailable": 0},
        "resources": {"requests": {"cpu": "8", "memory": "12Gi"}, "limits": {"cpu": "8", "memory": "12Gi"}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}],
        "autoscaling": {"type": "hpa", "minReplicas": 2, "maxReplicas": 8, "targetRequests": 8},
        "serviceMonitor": {"enabled": True}},
    # Strings that YAML would take for something else.
    "looks like others": {
        "fullnameOverride": "true", "model": {"name": "1.0", "path": "a: b", "pvc": {"claimName": "123"}}, "podLabels": {"a": "1"},
        "runtimeClassName": "true", "priorityClassName": "1e3", "image": {"repository": "0x10", "pullSecrets": ["123"]},
        "auth": {"existingSecret": "123", "key": "a: b"}, "tls": {"existingSecret": "null", "clientCertificates": "optional"},
        "serviceAccount": {"name": "456"}, "shmSize": "1073741824", "nodeSelector": {"a": "no"}, "podAnnotations": {"a": "yes"},
        "autoscaling": {"type": "keda", "keda": {"serverAddress": "http://a: b"}},
        "serviceMonitor": {"enabled": True, "apiKeySecret": {"name": "123", "key": "true"}},
        "inferencePool": {"enabled": True, "endpointPicker": {"name": "123", "podLabels": {"a": "1"}}}},
    "looks like others, group": {
        "nodes": 2, "options": {"tensor-parallel-size": 2}, "autoscaling": {"type": "hpa", "hpa": {"metric": "123"}},
        "model": {"source": "copy", "copy": {"image": "123", "from": "/a: b", "sizeLimit": "1000000"}},
        "cluster": {"existingSecret": "123", "key": "a: b", "revision": "1", "exclusiveTopology": "true",
                    "tls": {"existingSecret": "456", "serverName": "789"}}},
    "looks like others, host and image": {"model": {"source": "image", "image": {"reference": "a: b"}}, "host": "::"},
    "names": {
        "fullnameOverride": "llm", "model": {"name": "a b", "path": "a/b", "pvc": {"claimName": "other"}}, "replicas": 3,
        "image": {"repository": "registry.example/nibble", "digest": "sha256:" + "a" * 64, "pullPolicy": "Always",
                  "pullSecrets": ["registry"]}, "logLevel": "debug",
        "serviceAccount": {"name": "shared"}, "podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False},
    },
    "pod": {
        "image": {"tag": "1"}, "podAnnotations": {"a/b": "true"}, "podLabels": {"team": "a"}, "runtimeClassName": "nvidia",
        "priorityClassName": "high", "nodeSelector": {"a": "b"}, "serviceAccount": {"annotations": {"a/b": "c"}},
        "env": [{"name": "FORCE_ISA", "value": "avx2"}],
        "volumes": [{"name": "load", "configMap": {"name": "load"}}],
        "volumeMounts": [{"name": "load", "mountPath": "/etc/load", "readOnly": True}],
        "options": {"expert-load": "/etc/load/load.json", "enforce-eager": False, "batch-invariant": True, "threads": 4},
        "host": "::", "drain": {"marginSeconds": 21}, "probes": {"startupSeconds": 61, "periodSeconds": 1, "readinessFailures": 1, "livenessFailures": 30},
        "podDisruptionBudget": {"maxUnavailable": 0}, "service": {"type": "LoadBalancer", "annotations": {"a/b": "c"}},
    },
    "ports": {"ports": {"http": 80, "grpc": 81, "health": 82, "cluster": 83}, **GROUP},
    "without gRPC": {"ports": {"grpc": -1}},
    "secrets of the chart": {
        "auth": {"keys": ["first", "second"]},
        "tls": {"certificate": PEM, "key": PEM, "clientCa": PEM, "clientCertificates": "optional"},
        "serviceMonitor": {"enabled": True, "labels": {"release": "a"}, "interval": "30s",
                           "apiKeySecret": {"name": "metrics", "key": "key"}, "tlsConfig": {"insecureSkipVerify": True}},
    },
    "secrets that are there": {
        "auth": {"existingSecret": "keys", "key": "keys.txt"}, "tls": {"existingSecret": "tls", "clientCertificates": "required"},
    },
    "group with a secret of the chart": {**GROUP, "cluster": {"secret": "0123456789abcdef", "key": "secret"}},
    "group with a made-up secret": {**GROUP, "cluster": {"restartPolicy": "RecreateGroupOnPodRestart"}},
    "group, HPA": {**GROUP, "autoscaling": {"type": "hpa", "minReplicas": 2, "maxReplicas": 5, "scaleDownSeconds": 60,
                                            "hpa": {"metric": "load"}}, "rollout": {"maxSurge": 1}},
    "groups": {**GROUP, "replicas": 2, "nodes": 1, "rollout": {"maxSurge": 1, "maxUnavailable": 0}},
    "KEDA": {"autoscaling": {"type": "keda", "keda": {
        "serverAddress": "https://prometheus.example", "authenticationRef": {"name": "prometheus", "kind": "ClusterTriggerAuthentication"},
        "metadata": {"authModes": "bearer"}, "fallback": {"failureThreshold": 3, "replicas": 2}}}},
    "spread group": {**GROUP, "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}],
        "cluster": {"exclusiveTopology": "rack", "revision": "2026-01"}},
    "certificate without its authority": {"tls": {"certificate": PEM, "key": PEM}, "serviceMonitor": {
        "enabled": True, "tlsConfig": {"serverName": "llm.example"}}},
    "network": {"networkPolicy": {
        "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "monitoring": [],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]}]}},
    "pool": {"inferencePool": {"enabled": True, "endpointPicker": {"name": "p", "port": 9003, "failureMode": "FailOpen"}}},
    "rules and dashboard": {"prometheusRule": {"enabled": True, "labels": {"a": "b"}},
                            "dashboard": {"enabled": True, "labels": {"grafana_dashboard": "yes", "folder": "a"}}},
    "model in an image": {"model": {"source": "image", "image": {"reference": "m:1", "pullPolicy": "Always"}}},
    "host's model": {"model": {"source": "hostPath", "hostPath": {"path": "/models"}}, "supplementalGroups": [1000, 2000000]},
    "copied model": {"model": {"source": "copy", "copy": {
        "image": "m:1", "pullPolicy": "Always", "from": "/m", "sizeLimit": "1Gi",
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"memory": "2Gi"}}}}},
}
