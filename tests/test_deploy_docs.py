"""docs/deploy.md and docs/coming-from.md: commands that parse, names that exist, and requests that the service answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from service.engine.methods import METHODS
from service.explain.options import ExplainOptions
from service.settings import Settings
from tests.conftest import Running
from tests.photographs import CHELSEA

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/deploy.md", "docs/coming-from.md")
COMING_FROM = (ROOT / "docs/coming-from.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


NOW = [block for block in blocks("docs/coming-from.md", "sh") if block.startswith("# now\n")]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_shell_and_every_manifest_yaml(page: str) -> None:
    assert blocks(page, "sh")
    for block in blocks(page, "sh"):
        parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, parsed.stderr
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_is_in_the_checkout(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", text))
    assert named
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert all((ROOT / name).exists() for name in named)
    assert all((ROOT / "docs" / link).exists() for link in links if link)


def test_the_headings_that_are_linked_to_exist() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    headings = {heading.lower().replace(" ", "-").replace(",", "") for heading in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    linked = set(re.findall(r"\]\((?:deploy\.md)?#([\w-]+)\)", text + COMING_FROM))
    assert linked - {"cloud-run-and-knative"} <= headings
    assert "cloud-run-and-knative" in headings


def test_azure_asks_what_the_service_answers(server: Running) -> None:
    deployment = yaml.safe_load((ROOT / "deploy/azure-ml.yml").read_text())
    environment = deployment["environment_variables"]
    settings = Settings.model_validate({name.removeprefix("CAMSERVE_").lower(): value for name, value in environment.items()})
    routes = deployment["environment"]["inference_config"]
    assert {route["port"] for route in routes.values()} == {settings.port}
    paths = server.app.openapi()["paths"]
    assert "post" in paths[routes["scoring_route"]["path"]]
    assert all("get" in paths[routes[f"{kind}_route"]["path"]] for kind in ("liveness", "readiness"))
    assert deployment["request_settings"]["request_timeout_ms"] > settings.request_timeout_s * 1000


def test_knative_is_handed_pods() -> None:
    [manifest] = [yaml.safe_load(block) for block in blocks("docs/deploy.md", "yaml") if "serving.knative.dev/v1" in block]
    containers = [{"name": "user-container", **one} for one in manifest["spec"]["template"]["spec"]["containers"]]
    for container in containers:
        for probe in ("readinessProbe", "livenessProbe"):  # Knative fills in the port
            container[probe]["httpGet"] = {"port": 8000, **container[probe]["httpGet"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": containers}}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_methods_and_options_that_take_the_place_of_others_exist() -> None:
    methods = set(re.findall(r"method=(\w+)", COMING_FROM)) | set(re.findall(r'"method": "(\w+)"', COMING_FROM))
    assert {"integrated_gradients", "kernel_shap"} <= methods <= METHODS.keys()
    table = COMING_FROM.partition("| `explanationSpec` | option |\n")[2].partition("\n\n")[0]
    options = {name for row in table.splitlines()[1:] for name in re.findall(r"`([a-z_]+)`", row.split("|")[2])}
    values = {"positive", "negative", "both", "none", "original", "grayscale", "mask_black", "viridis", "raw_min", "raw_max"}
    assert len(options - values) > 8
    assert options - values <= ExplainOptions.model_fields.keys()
    table = COMING_FROM.partition("| TorchServe | camserve |\n")[2].partition("\n\n")[0]
    settings = {name for row in table.splitlines()[1:] for name in re.findall(r"`([a-z_]+)`", row.split("|")[2])}
    assert settings - {"error", "code"} <= Settings.model_fields.keys()


@pytest.mark.parametrize("commands", NOW, ids=["torchserve", "kserve", "vertex"])
def test_the_requests_of_now_are_answered(commands: str, server: Running, tmp_path: Path) -> None:
    if missing := [tool for tool in ("curl", "jq", "base64") if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    shutil.copy(CHELSEA.path, tmp_path / "cat.jpg")
    script = commands.replace("localhost:8000", server.url.removeprefix("http://"))
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != "cat.jpg"}
    assert written
    assert all(content.startswith(b"\x89PNG") for name, content in written.items() if name.endswith(".png"))
