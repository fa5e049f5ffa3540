# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Renders the chart with Helm's own engine, and reads what comes out.

As a program it writes the plain manifests: python tests/deploy/chart.py
"""
import copy
import functools
import json
import pathlib

import helm_python as helm
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "nibble"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
MANIFESTS = ROOT / "deploy" / "kubernetes"


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML as the API server's strict decoding reads it: a key that comes twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(text):
    # By way of JSON, as for the API server: what anchors share is apart then.
    return [json.loads(json.dumps(document)) for document in yaml.load_all(text, UniqueKeyLoader) if document]


def default_values():
    return yaml.safe_load((CHART / "values.yaml").read_text())


def example(name):
    return yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text())


def merged(*several):
    """Later values over earlier ones, as Helm merges them."""
    result = {}
    for values in several:
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(result.get(key), dict):
                result[key] = merged(result[key], value)
            else:
                result[key] = copy.deepcopy(value)
    return result


@functools.cache
def loaded():
    return helm.Chart.load(str(CHART))


def render_text(values):
    """{template: text} of the release nibble in the namespace nibble, of the templates that have any."""
    rendered = loaded().render(values, name="nibble", namespace="nibble")
    return {path.split("/templates/")[1]: text for path, text in sorted(rendered.items()) if text.strip()}


def render(values):
    """The objects of a release with these values."""
    return [document for path, text in render_text(values).items() if path.endswith(".yaml") for document in read(text)]


def manifest(path):
    """The text of the plain manifest of one example."""
    header = (f"# Rendered from deploy/helm/nibble/examples/{path.name} (release nibble, namespace nibble) by\n"
              "# tests/deploy/chart.py: change the chart or the example, not this.\n")
    parts = []
    for template, text in render_text(yaml.safe_load(path.read_text())).items():
        if template.endswith(".yaml") and read(text):
            parts.append(text.strip().removeprefix("---").strip() + "\n")
    return header + "".join(f"---\n{part}" for part in parts)


def main():
    for path in EXAMPLES:
        target = MANIFESTS / path.name
        target.write_text(manifest(path))
        print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
