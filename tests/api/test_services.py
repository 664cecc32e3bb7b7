"""The typed door to the routes: mypy sees through it, and the phase only moves forward."""

from __future__ import annotations

from pathlib import Path

from mypy import api as mypy

from service.api.dependencies import Lifecycle, Phase

ROOT = Path(__file__).resolve().parents[2]
# A line of a route, and the code of the error that mypy must find in it.
CALLS = {
    "services.registry.describe_one('resnet50')": None,
    "services.registry.describe_one(5)": "arg-type",
    "services.registry.describe_all()": "attr-defined",
    "services.regisrty": "attr-defined",
    "services.metrics = services.metrics": "misc",
}
ROUTE = "from service.api.dependencies import ServicesDependency\nasync def route(services: ServicesDependency) -> None:\n"


def test_mypy_refuses_a_wrong_call_in_a_route(tmp_path: Path) -> None:
    route = tmp_path / "route.py"
    route.write_text(ROUTE + "".join(f"    {call}\n" for call in CALLS))
    told, errors, _ = mypy.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"), str(route)]
    )
    assert errors == ""
    first = ROUTE.count("\n") + 1
    found = {call: [line for line in told.splitlines() if f"route.py:{first + n}:" in line] for n, call in enumerate(CALLS)}
    for call, code in CALLS.items():
        assert len(found[call]) == (code is not None), told
        assert code is None or f"[{code}]" in found[call][0]


def test_the_phase_only_moves_forward() -> None:
    lifecycle = Lifecycle()
    phases = [lifecycle.phase]
    assert lifecycle.serve()
    phases.append(lifecycle.phase)
    lifecycle.drain()
    assert not lifecycle.serve()
    assert [*phases, lifecycle.phase] == [Phase.STARTING, Phase.SERVING, Phase.DRAINING]
