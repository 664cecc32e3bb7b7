"""What an operator is handed fits together: Dockerfile, compose file, Prometheus' configuration, Makefile, README, CI."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAPERS = (
    "Dockerfile",
    "docker-compose.yml",
    "Makefile",
    "README.md",
    "deploy/prometheus.yml",
    "deploy/azure-ml.yml",
    "deploy/kserve/inferenceservice.yaml",
    "deploy/kserve/servingruntime.yaml",
    "deploy/helm/camserve/values.yaml",
    "docs/deploy.md",
    "docs/coming-from.md",
)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continuation lines joined."""
    lines = [line for line in read("Dockerfile").splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def last(instruction: str) -> str:
    return [rest for word, rest in dockerfile() if word == instruction][-1]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder: the last pattern that fits it or one of its folders decides."""
    parts = Path(path).parts
    prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    verdict = False
    for line in read(".dockerignore").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            if any(fnmatch(prefix, pattern) or fnmatch(Path(prefix).name, pattern) for prefix in prefixes):
                verdict = not line.startswith("!")
    return verdict


def copied() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    copies = [rest.split() for word, rest in dockerfile() if word == "COPY" and "--from" not in rest]
    return [source for *sources, _ in copies for source in sources]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load(read("docker-compose.yml"))
    assert isinstance(document, dict)
    return document


def test_what_the_image_is_made_of_exists_and_reaches_the_builder() -> None:
    assert {"service", "models", "pyproject.toml", "setup.py"} <= set(copied())
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "tests/conftest.py", "service/__pycache__/app.pyc", ".env"]
)
def test_what_the_image_must_not_hold_stays_away(path: str) -> None:
    assert ignored(path)


def test_the_image_runs_without_root_and_says_how_it_is() -> None:
    assert last("USER") == "10001"
    assert json.loads(last("ENTRYPOINT")) == ["camserve"]
    assert json.loads(last("CMD")) == ["serve"]
    assert last("STOPSIGNAL") == "SIGTERM"
    assert last("EXPOSE") == str(Settings.model_fields["port"].default)
    probe = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    compile(probe[2], "healthcheck", "exec")
    assert "/readyz" in probe[2]


def test_the_probe_of_the_image_says_no_when_nothing_listens() -> None:
    probe = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    answer = subprocess.run([sys.executable, *probe[1:]], env={"CAMSERVE_PORT": "1"}, capture_output=True, check=False)
    assert answer.returncode != 0
    assert b"ConnectionRefusedError" in answer.stderr


@pytest.mark.parametrize("paper", PAPERS)
def test_every_setting_named_is_a_setting(paper: str) -> None:
    named = set(re.findall(r"\bCAMSERVE_([A-Z][A-Z0-9_]*[A-Z0-9])", read(paper)))
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def test_compose_sets_values_that_settings_accept(compose: dict[str, Any]) -> None:
    for service in ("camserve", "camserve-gpu"):
        environment = compose["services"][service]["environment"]
        plain = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in environment.items()}
        values = {name.removeprefix("CAMSERVE_").lower(): value for name, value in plain.items() if value}
        settings = Settings.model_validate(values)
        assert settings.models == ("efficientnet_lite0",)
        assert settings.request_timeout_s < 30  # stop_grace_period


def test_compose_gives_the_service_no_more_than_it_needs(compose: dict[str, Any]) -> None:
    for name in ("camserve", "camserve-gpu"):
        service = compose["services"][name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["stop_grace_period"] == "30s"
        assert "./models:/models:ro" in service["volumes"]
        assert {"mem_limit", "cpus", "pids_limit", "tmpfs"} <= service.keys()
    assert compose["services"]["camserve-gpu"]["profiles"] == ["gpu"]


def test_every_port_is_offered_to_this_machine_only_and_once(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_every_image_names_its_version(compose: dict[str, Any]) -> None:
    version = re.search(r'^version = "(.+)"', read("pyproject.toml"), re.MULTILINE)
    assert version
    images = [service["image"] for service in compose["services"].values()]
    bases = [rest.partition("=")[2] for word, rest in dockerfile() if word == "ARG" and rest.startswith("BASE=")]
    assert bases
    for image in (*images, *bases):
        assert re.search(r":v?\d[\w.-]*$", image), image
    assert all(image.startswith(f"camserve:{version[1]}-") for image in images if image.startswith("camserve:"))
    assert f"VERSION={version[1]}" in [rest for word, rest in dockerfile() if word == "ARG"]


def test_prometheus_scrapes_the_services_of_compose(compose: dict[str, Any]) -> None:
    prometheus = compose["services"]["prometheus"]
    assert "./deploy/prometheus.yml:/etc/prometheus/prometheus.yml:ro" in prometheus["volumes"]
    [job] = yaml.safe_load(read("deploy/prometheus.yml"))["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    [discovery] = job["dns_sd_configs"]
    for name in discovery["names"]:
        assert compose["services"][name]["ports"][0].split(":")[-1] == str(discovery["port"])
    assert set(discovery["names"]) == set(compose["services"]) - {"prometheus", "grafana"}


def test_prometheus_loads_the_alerts(compose: dict[str, Any]) -> None:
    [rules] = yaml.safe_load(read("deploy/prometheus.yml"))["rule_files"]
    assert f"./deploy/alerts.yml:/etc/prometheus/{rules}:ro" in compose["services"]["prometheus"]["volumes"]
    [job] = yaml.safe_load(read("deploy/prometheus.yml"))["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}}' in read("deploy/alerts.yml")


def test_whatever_watches_the_service_has_no_more_than_it_needs(compose: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        service = compose["services"][name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
        for source, _, mode in (volume.split(":") for volume in service["volumes"] if volume.startswith("./")):
            assert (ROOT / source).exists()
            assert mode == "ro"
    assert compose["services"]["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_the_readme_names_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert {"serve", "test"} <= set(re.findall(r"(?:^|`)make ([a-z]+)", read("README.md"), re.MULTILINE)) <= targets


def test_help_lists_every_target() -> None:
    makefile = read("Makefile")
    [phony] = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE) == phony.split()


def test_ci_runs_what_everybody_runs() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    commands = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert [command.split()[1] for command in commands] == ["lint", "test", "test-slow"]
