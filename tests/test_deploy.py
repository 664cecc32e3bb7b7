"""What deploy/ holds for Kubernetes: the chart as Helm renders it and KServe's YAML, against the schemas of Kubernetes."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from tests.kubernetes_documents import check

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "camserve"
KSERVE = ROOT / "deploy" / "kserve"

EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example/camserve", "tag": "1", "pullSecrets": ["registry"]},
    "settings": {"models": "resnet50,vgg16", "random_weights": True, "max_body_bytes": 20971520, "request_timeout_s": 29.5},
    "apiKeys": {"existingSecret": "camserve-keys"},
    "adminKeys": {"existingSecret": "camserve-keys"},
    "models": {"volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}},
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"example.org/internal": "true"}},
    "autoscaling": {"enabled": True, "queueDepth": {"enabled": True}},
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {}}],
        "hub": True,
        "egress": [{"ports": [{"port": 4318}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "p"}, "authorization": {"existingSecret": "camserve-key"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "p"}},
    "grafanaDashboard": {"enabled": True},
    "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "podLabels": {"team": "vision"},
    "podAnnotations": {"example.org/a": "b"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "serviceAccountName": "camserve",
    "fullnameOverride": "cam",
}
GPU: dict[str, Any] = {
    "gpu": {"enabled": True},
    "autoscaling": {"enabled": True, "cpuUtilization": 0, "queueDepth": {"enabled": True}},
    "networkPolicy": {"enabled": True},
    "podDisruptionBudget": {"enabled": False},
    "topologySpread": {"enabled": False},
}
[OF_DOCS] = re.findall(r"^# production.yaml\n(.*?)^```$", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE | re.DOTALL)
VALUES = pytest.mark.parametrize(
    "values", [{}, EVERYTHING, GPU, yaml.safe_load(OF_DOCS)], ids=["defaults", "everything", "gpu", "docs"]
)


@pytest.fixture(scope="module")
def helm() -> str:
    found = shutil.which("helm", path=sysconfig.get_path("scripts")) or shutil.which("helm")
    if found is None:
        pytest.skip("helm is not installed; the package helm-binary has it for Linux on x86-64")
    return found


def run(helm: str, command: str, folder: Path, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    arguments: list[str | Path] = (
        ["lint", "--strict", CHART] if command == "lint" else ["template", "demo", CHART, "--namespace", "vision"]
    )
    # Helm's folders of caches and settings are nobody's business here.
    environment = {name: str(folder / name) for name in ("HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}
    command_line = [helm, *arguments, "--values", file]
    return subprocess.run(command_line, capture_output=True, text=True, env=environment, check=False)


def render(helm: str, folder: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The chart's documents, by kind."""
    rendered = run(helm, "template", folder, values)
    assert rendered.returncode == 0, rendered.stderr
    documents = [document for document in yaml.safe_load_all(rendered.stdout) if document]
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def container_of(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    [container] = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def settings_of(container: dict[str, Any]) -> Settings:
    """The settings that a container's environment gives."""
    plain = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert len({entry["name"] for entry in container["env"]}) == len(container["env"])
    prefix = "CAMSERVE_"
    return Settings.model_validate(
        {name.removeprefix(prefix).lower(): v for name, v in plain.items() if name.startswith(prefix)}
    )


@VALUES
def test_the_chart_is_clean_and_every_document_is_valid(helm: str, values: dict[str, Any], tmp_path: Path) -> None:
    lint = run(helm, "lint", tmp_path, values)
    assert lint.returncode == 0, lint.stdout
    for document in render(helm, tmp_path, values).values():
        check(document)


def test_by_default_there_is_nothing_that_a_bare_cluster_lacks(helm: str, tmp_path: Path) -> None:
    assert render(helm, tmp_path, {}).keys() == {"Deployment", "Service", "PodDisruptionBudget", "Pod"}
    kinds = {"HorizontalPodAutoscaler", "NetworkPolicy", "ServiceMonitor", "PrometheusRule", "ConfigMap"}
    assert kinds <= render(helm, tmp_path, EVERYTHING).keys()


@VALUES
def test_pods_may_do_no_more_than_they_need(helm: str, values: dict[str, Any], tmp_path: Path) -> None:
    documents = render(helm, tmp_path, values)
    for pod in (documents["Deployment"]["spec"]["template"]["spec"], documents["Pod"]["spec"]):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False  # CAMSERVE_PORT=tcp://... of a Service named camserve
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert not security["allowPrivilegeEscalation"]
            assert security["capabilities"] == {"drop": ["ALL"]}
    container = container_of(documents)
    assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {"/tmp"}
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@VALUES
def test_the_environment_is_settings_and_the_pod_waits_for_every_answer(
    helm: str, values: dict[str, Any], tmp_path: Path
) -> None:
    documents = render(helm, tmp_path, values)
    container = container_of(documents)
    settings = settings_of(container)
    assert settings.host == "0.0.0.0"
    assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
    grace = documents["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= settings.shutdown_delay_s + math.ceil(settings.request_timeout_s) + 5
    for name, value in values.get("settings", {}).items():
        given = getattr(settings, name)
        assert given == (tuple(value.split(",")) if isinstance(given, tuple) else value)
    assert not settings.api_keys
    secrets = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry}
    named = {"CAMSERVE_API_KEYS": "apiKeys", "CAMSERVE_ADMIN_KEYS": "adminKeys"}
    assert secrets == {
        variable: {"name": values[name]["existingSecret"], "key": variable.removeprefix("CAMSERVE_").lower()}
        for variable, name in named.items()
        if name in values
    }


def test_probes_ask_what_the_service_answers(helm: str, tmp_path: Path) -> None:
    container = container_of(render(helm, tmp_path, {}))
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 600


def test_a_gpu_is_asked_for_and_used(helm: str, tmp_path: Path) -> None:
    documents = render(helm, tmp_path, GPU)
    container = container_of(documents)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith("-cuda")
    assert settings_of(container).device == "cuda"
    assert documents["NetworkPolicy"]["spec"]["egress"] == []
    [metric] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "camserve_queue_depth"


def test_the_autoscaler_asks_for_what_the_adapter_offers(helm: str, tmp_path: Path) -> None:
    [rule] = yaml.safe_load((ROOT / "deploy/prometheus-adapter.yml").read_text())["rules"]["custom"]
    metrics = render(helm, tmp_path, EVERYTHING)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Resource", "Pods"]
    assert metrics[1]["pods"]["metric"]["name"] == rule["name"]["as"]
    [cpu] = render(helm, tmp_path, {"autoscaling": {"enabled": True}})["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert cpu["resource"]["name"] == "cpu"


def test_what_watches_the_service_selects_it_and_alerts_alike(helm: str, tmp_path: Path) -> None:
    documents = render(helm, tmp_path, EVERYTHING)
    service, monitor = documents["Service"], documents["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "camserve"  # up{job="camserve"}
    assert monitor["endpoints"][0]["authorization"]["credentials"] == {"name": "camserve-key", "key": "api_key"}
    alerts = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())
    assert documents["PrometheusRule"]["spec"]["groups"] == alerts["groups"]
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/camserve.json").read_text())
    assert json.loads(documents["ConfigMap"]["data"]["camserve.json"]) == dashboard
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selected in (
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selected.items() <= labels.items()
    assert not documents["Pod"]["metadata"]["labels"].items() >= service["spec"]["selector"].items()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"settings": {"port": 9000}}, "port"),
        ({"settings": {"models": ["resnet50"]}}, "settings.models"),
        ({"setings": {}}, "setings"),
        ({"autoscaling": {"enabled": True, "cpuUtilization": 0}}, "set cpuUtilization, or queueDepth.enabled"),
        ({"terminationGracePeriodSeconds": 10}, "accepted requests would be lost"),
    ],
)
def test_values_that_cannot_work_are_refused(helm: str, values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rendered = run(helm, "template", tmp_path, values)
    assert rendered.returncode != 0
    assert reason in rendered.stderr


def test_the_schema_knows_every_value_and_the_values_every_setting() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(values, schema)

    def compare(known: dict[str, Any], given: dict[str, Any], place: str) -> None:
        for name, part in known.items():
            if part.get("additionalProperties") is False and "claims" not in part["properties"]:
                assert part["properties"].keys() == given[name].keys(), f"{place}{name}"
                compare(part["properties"], given[name], f"{place}{name}.")

    compare({name: part for name, part in schema["properties"].items() if name != "global"}, values, "")
    assert schema["properties"].keys() - {"global"} == values.keys()
    assert values["settings"].keys() <= Settings.model_fields.keys()


def test_the_chart_has_the_version_of_the_service() -> None:
    from service import __version__

    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


@pytest.mark.parametrize("name", ["inferenceservice.yaml", "servingruntime.yaml"])
def test_kserve_is_handed_what_it_takes(name: str) -> None:
    documents = list(yaml.safe_load_all((KSERVE / name).read_text()))
    assert documents
    for document in documents:
        check(document)
        spec = document["spec"].get("predictor", document["spec"])
        for container in spec.get("containers", ()):
            settings = settings_of(container)
            assert container["args"] == ["serve"]
            assert container["ports"][0]["containerPort"] == settings.port == 8080
            probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
            assert probes == {"/livez", "/readyz"}
            grace = spec.get("terminationGracePeriodSeconds", 60)
            assert grace >= settings.shutdown_delay_s + settings.request_timeout_s + 5


def test_a_document_that_is_wrong_is_found() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": 80}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)
    [right] = yaml.safe_load_all((KSERVE / "inferenceservice.yaml").read_text())
    right["spec"]["predictor"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(right)
    with pytest.raises(jsonschema.ValidationError):
        check({"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "a"}, "spec": {}})
