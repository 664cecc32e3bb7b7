"""Settings from the environment and from arguments: how they are written, what is refused, what stays secret."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import PLATFORM_VARIABLES, Settings, variable_of


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment that the tests run in."""
    platforms = {name for names in PLATFORM_VARIABLES.values() for name in names}
    for name in [name for name in os.environ if name.startswith("CAMSERVE_") or name in platforms]:
        monkeypatch.delenv(name)


def test_the_defaults_are_the_contract() -> None:
    settings = Settings()
    assert settings.models == ("efficientnet_lite0",)
    assert (settings.max_body_bytes, settings.max_image_pixels) == (10 * 1024 * 1024, 50_000_000)
    assert (settings.max_images_per_request, settings.max_classes_per_image) == (16, 16)
    assert (settings.models_dir / "efficientnet_lite0.toml").is_file()
    assert settings.cache_entries > 0
    assert settings.host == "127.0.0.1"
    assert not settings.random_weights


@pytest.mark.parametrize(
    ("written", "found"), [("a", ("a",)), ("a,b", ("a", "b")), (" b , a ,", ("b", "a")), ("", ("efficientnet_lite0",))]
)
def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch, written: str, found: tuple[str, ...]) -> None:
    monkeypatch.setenv("CAMSERVE_MODELS", written)
    assert Settings().models == found


def test_arguments_are_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_PORT", "9000")
    monkeypatch.setenv("CAMSERVE_MAX_BATCH_SIZE", "")
    assert (Settings().port, Settings().max_batch_size) == (9000, 8)
    assert Settings(port=9001).port == 9001
    assert Settings(models=("a", "b,c")).models == ("a", "b", "c")


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_API_KEYS", "first-secret,second-secret")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-secret", "second-secret"]
    assert "secret" not in repr(settings).replace("SecretStr", "")
    assert "secret" not in settings.model_dump_json()


def test_a_platform_s_port_is_taken_where_none_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = {"PORT": 8081, "SAGEMAKER_BIND_TO_PORT": 8082, "AIP_HTTP_PORT": 8083, "CAMSERVE_PORT": 8084}
    found = [Settings().port]
    for name, port in ports.items():
        monkeypatch.setenv(name, str(port))
        found.append(Settings().port)
        assert variable_of("port") == name
    assert found == [8000, *ports.values()]
    assert Settings(port=8085).port == 8085
    for name in ports:
        monkeypatch.setenv(name, "")
    assert Settings().port == 8000
    assert variable_of("port") == "CAMSERVE_PORT"


def test_a_platform_s_port_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(ValidationError, match="port"):
        Settings()
    assert variable_of("port") == "PORT"


def test_vertex_ai_s_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Settings().vertex_health_route, Settings().vertex_predict_route) == (None, None)
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/7/deployedModels/8")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/7/deployedModels/8:predict")
    settings = Settings(vertex_health_route="/healthz")
    assert settings.vertex_health_route == "/healthz"
    assert settings.vertex_predict_route == "/v1/endpoints/7/deployedModels/8:predict"
    for wrong in ("predict", "/a b", "/{model}", "/a/", "/" + "a" * 256):
        with pytest.raises(ValidationError, match="vertex_predict_route"):
            Settings(vertex_predict_route=wrong)


def test_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().protocols == ("native", "kserve", "oip", "torchserve", "sagemaker", "vertex")
    monkeypatch.setenv("CAMSERVE_PROTOCOLS", "native, oip")
    assert Settings().protocols == ("native", "oip")
    with pytest.raises(ValidationError, match="there is no grpc; there are native, kserve"):
        Settings(protocols="native,grpc")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"), ("port", "http"), ("device", "gpu"), ("device", "cuda:"), ("max_batch_size", "0"),
        ("max_image_pixels", "63"), ("request_timeout_s", "0"), ("log_format", "xml"), ("log_level", "loud"),
        ("models", ","), ("models", "a,a"), ("random_weights", "perhaps"), ("threads", "-1"), ("max_images_per_request", "257"),
        ("max_queue_size", "15"), ("cache_entries", "-1"), ("replicas", "0"), ("cache_bytes", "-1"),
    ],
)  # fmt: skip
def test_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CAMSERVE_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), "port", 1)  # noqa: B010 (to a type checker it is as wrong as it is meant to be)


@pytest.mark.parametrize("written", ["none", "None", " off "])
def test_the_cache_on_disk_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("CAMSERVE_CACHE_DIR", written)
    assert Settings().cache_dir is None
    assert Settings(cache_dir="").cache_dir is None


@pytest.mark.parametrize(
    ("home", "xdg", "folder"),
    [
        ("/home/a", None, "/home/a/.cache/camserve"),
        ("/home/a", "/var/cache", "/var/cache/camserve"),
        ("/home/a", "relative", "/home/a/.cache/camserve"),
    ],
)
def test_the_cache_on_disk_is_in_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, home: str, xdg: str | None, folder: str
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert Settings().cache_dir == Path(folder)


def test_a_user_without_a_home_has_no_cache_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert Settings().cache_dir is None


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_network_and_codecs_share_the_cores(threads: int) -> None:
    settings = Settings(threads=threads)
    assert settings.cores == threads
    assert 1 <= settings.engine_threads <= threads
    assert 2 <= settings.codec_threads <= max(2, threads)


@pytest.mark.parametrize(("replicas", "threads"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_replicas_share_the_cores(replicas: int, threads: int) -> None:
    assert Settings(threads=8, replicas=replicas).engine_threads == threads


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000\n", 4), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("odd", 4), (None, 4)],
)
def test_a_containers_quota_counts(monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int) -> None:
    def read_text(path: Path, encoding: str) -> str:
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError
        return quota

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(Path, "read_text", read_text)
    assert Settings().cores == cores


def test_the_page_of_settings_has_every_setting() -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    table = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert table == set(Settings.model_fields)


def test_the_variable_of_a_kubernetes_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_PORT", "tcp://10.96.0.12:8000")
    assert Settings().port == 8000
    monkeypatch.setenv("CAMSERVE_PORT", "9000")
    assert Settings().port == 9000
