"""Prometheus' rules and Grafana's dashboard ask for what the running service exports, in PromQL that parses."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service.errors import CamserveError
from service.vocabulary import CacheStatus, Stage
from tests.conftest import Running, running
from tests.explain.small_service import load_small, small_settings
from tests.promql import References, references

ROOT = Path(__file__).resolve().parent.parent
RULES = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/camserve.json").read_text())
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

# Prometheus itself makes these: the metric of a scrape, and the labels of a target.
OF_PROMETHEUS = {"up"}
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
BUDGET, MONTH_H = 0.001, 30 * 24


def expressions() -> Iterator[Any]:
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield pytest.param(rule["expr"], id=f"rule {rule.get('alert') or rule['record']}")
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"panel {panel['title']} {target['refId']}")
    adapter = yaml.safe_load((ROOT / "deploy/prometheus-adapter.yml").read_text())
    for rule in adapter["rules"]["custom"]:
        yield pytest.param(rule["seriesQuery"], id="adapter series")
        yield pytest.param(rule["metricsQuery"], id="adapter query")


def scrape(service: Running) -> dict[str, set[str]]:
    """Labels by sample of a service that has answered, refused and looked into its cache."""
    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(file, "PNG")
    assert httpx.post(f"{service.url}/explain", content=file.getvalue(), timeout=60).status_code == 200
    assert httpx.post(f"{service.url}/explain", content=b"", timeout=60).status_code == 422
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(httpx.get(f"{service.url}/metrics").text):
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


@pytest.fixture(scope="module")
def exported(server: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels by sample, of the service and of a small one that caches."""
    found = scrape(server)
    with pytest.MonkeyPatch.context() as monkeypatch:
        load_small(monkeypatch)
        with running(small_settings(tmp_path_factory.mktemp("cards"), cache_entries=8)) as caching:
            return scrape(caching) | found


def dashboard_references() -> list[References]:
    return [references(target["expr"]) for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("expression", list(expressions()))
def test_an_expression_asks_for_what_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    asked = references(expression)
    assert asked.labels
    known = exported | {name: set[str]() for name in OF_PROMETHEUS | RECORDED}
    for metric, labels in asked.labels.items():
        assert metric in known, metric
        assert labels <= known[metric] | TARGET_LABELS, metric
    assert asked.grouping <= TARGET_LABELS.union(*(known[metric] for metric in asked.labels))


@pytest.mark.parametrize("expression", list(expressions()))
def test_an_expression_compares_with_values_that_exist(expression: str) -> None:
    def below(error: type[CamserveError]) -> set[str]:
        return {error.code}.union(*(below(child) for child in error.__subclasses__()))

    possible = {
        "code": below(CamserveError),
        "result": set(get_args(CacheStatus)),
        "stage": set(get_args(Stage)),
        "status": {"503"},
        "job": {"camserve"},
        "namespace": {"default", ""},
        "pod": {""},
    }
    for label, values in references(expression).values.items():
        assert values <= possible[label], label


def test_a_word_that_is_not_promql_and_a_metric_that_is_not_there_are_found(exported: dict[str, set[str]]) -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        references("sum(rate(camserve_requests_total[5m])")
    assert "camserve_request_total" not in exported


def test_every_metric_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if re.match("camserve_(?!.*_created$)", name)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for asked in dashboard_references() for name in asked.labels}
    assert ours <= shown


def test_every_alert_says_what_it_means_and_how_bad_it_is() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["alert"].startswith("Camserve")
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description"} == rule["annotations"].keys()


def test_burn_rates_take_the_shares_of_the_budget_that_the_workbook_gives() -> None:
    hours = {"m": 1 / 60, "h": 1, "d": 24}
    shares = {}
    for rule in ALERTS:
        if "ErrorBudget" in rule["alert"]:
            windows = re.findall(r"ratio_rate(\d+)([mhd]) > (?:([\d.]+) \* )?([\d.]+)", rule["expr"])
            pairs = [(float(number) * hours[unit], float(rate or 1), float(budget)) for number, unit, rate, budget in windows]
            for (long, rate, budget), (short, same_rate, same_budget) in zip(pairs[::2], pairs[1::2], strict=True):
                assert (rate, budget) == (same_rate, same_budget) == (rate, BUDGET)
                assert short == pytest.approx(long / 12)
                shares[long] = rate * long / MONTH_H
    assert shares == pytest.approx({1: 0.02, 6: 0.05, 24: 0.10, 72: 0.10})


def test_every_panel_has_a_title_a_unit_and_a_sentence() -> None:
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_panels_do_not_overlap() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        return {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}

    taken = {panel["title"]: cells(panel) for panel in DASHBOARD["panels"]}
    assert len(taken) == len(DASHBOARD["panels"])
    assert all(0 <= x < 24 for covered in taken.values() for x, _ in covered)
    for (title, one), (other_title, other) in combinations(taken.items(), 2):
        assert not one & other, (title, other_title)
    rows = range(1 + max(y for covered in taken.values() for _, y in covered))
    assert sum(map(len, taken.values())) == 24 * len(rows)  # no gap either


def test_the_dashboard_is_provisioned_with_its_data_source() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    provisioned = {Path(target).name: ROOT / source for source, target in mounts.items() if "/etc/grafana" in target}
    [provider] = yaml.safe_load((provisioned["dashboards"] / "camserve.yml").read_text())["providers"]
    [source] = yaml.safe_load((provisioned["datasources"] / "prometheus.yml").read_text())["datasources"]
    assert provider["options"]["path"] == mounts["./deploy/grafana/dashboards"]
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home) == Path(provider["options"]["path"]) / "camserve.json"
    host, port = source["url"].removeprefix("http://").split(":")
    assert compose["services"][host]["ports"][0].endswith(f":{port}")
    scrape_interval = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape_interval
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
