# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Validates objects strictly: a field that a schema does not know is an error, as a wrong type is.

- Kubernetes' own kinds: the schemas in the package kubernetes-validate, one set per version of Kubernetes.
- KEDA's ScaledObject, the Prometheus operator's ServiceMonitor and PrometheusRule: the packages cloudcoil.models.*, which are
  generated from their CustomResourceDefinitions. They pass over fields that they do not know, so what they read is written
  again and compared.
- LeaderWorkerSet and InferencePool are in no package: schemas/*.json, written for nibble after LeaderWorkerSet 0.9 and
  Gateway API Inference Extension 1.6, with the fields that the chart uses and no others. `pytest --crds FOLDER` compares all
  of these objects with the real definitions as well (see README.md).
"""
import json
import pathlib

import jsonschema
import kubernetes_validate
import pydantic
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus

FOLDER = pathlib.Path(__file__).parent / "schemas"
# The oldest that the chart supports, the one from which on image volumes are a field, and the newest in the package.
VERSIONS = ("1.30", "1.33", "1.37")
IMAGE_VOLUMES_SINCE = (1, 31)
MODELS = {
    ("keda.sh/v1alpha1", "ScaledObject"): keda.ScaledObject,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): prometheus.ServiceMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): prometheus.PrometheusRule,
}
OWN = {
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): "leaderworkerset.json",
    ("inference.networking.k8s.io/v1", "InferencePool"): "inferencepool.json",
}


class UnknownFields(Exception):
    """Fields that a model passes over."""


# What validators say of an object; anything else is a fault of theirs or ours. That of kubernetes-validate is jsonschema's.
INVALID = (jsonschema.ValidationError, pydantic.ValidationError, UnknownFields)


def kind_of(item):
    return item["apiVersion"], item["kind"]


def pod_templates_of(item):
    """(role, pod template) of a workload."""
    if item["kind"] == "Deployment":
        return [("server", item["spec"]["template"])]
    if item["kind"] == "LeaderWorkerSet":
        template = item["spec"]["leaderWorkerTemplate"]
        return [("server", template["leaderTemplate"]), ("node", template["workerTemplate"])]
    return []


def has_image_volume(item):
    return any("image" in volume for _, template in pod_templates_of(item) for volume in template["spec"]["volumes"])


def unknown_fields(given, read, where=""):
    """Paths in `given` that a reader did not keep."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(read, dict) or key not in read:
                yield f"{where}.{key}"
            else:
                yield from unknown_fields(value, read[key], f"{where}.{key}")
    elif isinstance(given, list):
        for index, value in enumerate(given):
            if not isinstance(read, list) or index >= len(read):
                yield f"{where}[{index}]"
            else:
                yield from unknown_fields(value, read[index], f"{where}[{index}]")


def validate_model(item, model):
    kept = model.model_validate(item).model_dump(mode="json", by_alias=True, exclude_unset=True)
    unknown = list(unknown_fields(item, kept))
    if unknown:
        raise UnknownFields(f"unknown fields: {', '.join(unknown)}")


def validate_builtin(item, version):
    kubernetes_validate.validate(item, version, strict=True)


def validate(item):
    """Raises what is wrong with one object."""
    kind = kind_of(item)
    if kind in MODELS:
        validate_model(item, MODELS[kind])
        return
    if kind in OWN:
        jsonschema.validate(item, json.loads((FOLDER / OWN[kind]).read_text()))
    for version in VERSIONS:
        if has_image_volume(item) and tuple(map(int, version.split("."))) < IMAGE_VOLUMES_SINCE:
            continue
        if kind not in OWN:
            validate_builtin(item, version)
        elif item["kind"] == "LeaderWorkerSet":
            # What is in it that is Kubernetes' own.
            for role, template in pod_templates_of(item):
                validate_builtin({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": role},
                                  "template": template}, version)


class Definitions:
    """CustomResourceDefinitions from files, for validating against the real ones."""

    def __init__(self, folder):
        self.schemas = {}
        for path in sorted(pathlib.Path(folder).rglob("*.y*ml")):
            for item in yaml.safe_load_all(path.read_text()):
                if isinstance(item, dict) and item.get("kind") == "CustomResourceDefinition":
                    spec = item["spec"]
                    for version in spec["versions"]:
                        key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                        self.schemas[key] = closed(version["schema"]["openAPIV3Schema"])

    def validate(self, item):
        schema = self.schemas[kind_of(item)]
        for name in ("apiVersion", "kind", "metadata"):
            schema.setdefault("properties", {}).setdefault(name, {})
        jsonschema.validate(item, schema)


def closed(schema):
    """An OpenAPI v3 schema of a CRD as JSON schema, in which unknown fields are errors."""
    schema = dict(schema)
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "pattern" in schema and "(?i)" in schema["pattern"][1:]:
        del schema["pattern"]  # Go's regular expressions take that anywhere
    if "properties" in schema:
        schema["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            schema[name] = closed(schema[name])
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    if schema.get("type") == "object" and set(schema) <= {"type", "description"}:
        schema["additionalProperties"] = True  # metadata
    return schema
