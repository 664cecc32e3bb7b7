"""Whether a document is what Kubernetes takes: its own kinds by its schemas, those of operators by what they require."""

from __future__ import annotations

from typing import Any, Final

import jsonschema
import kubernetes_validate

OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version()
TEXT: Final = {"type": "string", "minLength": 1}


def required(*names: str, **properties: Any) -> dict[str, Any]:
    """A JSON schema of an object."""
    return {"type": "object", "required": [*names, *properties], "properties": properties}


RULE = required(expr=TEXT) | {"oneOf": [{"required": ["alert"]}, {"required": ["record"]}]}
PREDICTOR = {"type": "object", "oneOf": [{"required": ["containers"]}, required(model=required("modelFormat", "storageUri"))]}
# What the operators' own definitions require, of what is used here.
CUSTOM_RESOURCES = {
    ("serving.kserve.io/v1beta1", "InferenceService"): required(predictor=PREDICTOR),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): required(
        containers={"type": "array", "minItems": 1, "items": required(name={"const": "kserve-container"}, image=TEXT)},
        supportedModelFormats={"type": "array", "items": required(name=TEXT)},
        protocolVersions={"type": "array", "items": {"enum": ["v1", "v2", "grpc-v2"]}},
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): required(
        selector=required("matchLabels"), endpoints={"type": "array", "minItems": 1, "items": required(port=TEXT, path=TEXT)}
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): required(
        groups={"type": "array", "minItems": 1, "items": required(name=TEXT, rules={"type": "array", "items": RULE})}
    ),
}


def check(document: dict[str, Any]) -> None:
    """Raises what is wrong with a document."""
    schema = CUSTOM_RESOURCES.get((document["apiVersion"], document["kind"]))
    if schema is None:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(document, version, strict=True)
        return
    jsonschema.validate(document, required("apiVersion", "kind", metadata=required(name=TEXT), spec=schema))
    spec = document["spec"].get("predictor", document["spec"])
    if "containers" in spec:
        named = ("containers", "volumes", "securityContext", "enableServiceLinks", "terminationGracePeriodSeconds")
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": {key: spec[key] for key in named if key in spec},
        }
        kubernetes_validate.validate(pod, NEWEST, strict=True)
