"""Kubernetes' own schemas, strict: a field that a version doesn't know is an error."""

import json
from functools import cache
from typing import Any

import importlib_resources
import jsonschema
from referencing import Registry, Resource

VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
# Their schemas belong to others: Prometheus' operator and the Gateway API. Any further unknown kind is an error.
FOREIGN_KINDS = {("monitoring.coreos.com/v1", "ServiceMonitor"), ("gateway.networking.k8s.io/v1", "HTTPRoute")}


def problems(document: dict[str, Any], version: str) -> list[str]:
    """What a Kubernetes of this version would refuse, or silently drop."""
    kind = (str(document.get("apiVersion")), str(document.get("kind")))
    if kind in FOREIGN_KINDS:
        return []
    validator = _validator(version, *kind)
    if validator is None:
        return [f"Kubernetes {version} has no {kind[1]} of {kind[0]}"]
    return [
        f"Kubernetes {version}, {kind[1]} {'.'.join(str(part) for part in error.path)}: {error.message}"
        for error in validator.iter_errors(document)
    ]


@cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator | None:
    group, _, number = api_version.rpartition("/")
    parts = (kind.lower(), group.partition(".")[0], number)
    schema = _load(version, f"{'-'.join(part for part in parts if part)}.json")
    if schema is None:
        return None
    return jsonschema.Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    # Read once: the library's own function reads these megabytes for each document.
    return Resource.from_contents(_load(version, "_definitions.json")) @ Registry()


def _load(version: str, name: str) -> Any:
    folder = importlib_resources.files("kubernetes_validate") / "kubernetes-json-schema"
    path = folder / f"v{version}.0-local-strict" / name
    return json.loads(path.read_text()) if path.is_file() else None
