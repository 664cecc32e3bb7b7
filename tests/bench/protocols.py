"""P12: what another server's protocol costs. One map over the Open Inference Protocol in binary, and as the native array."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench.http import RAMP_S, SPAN_S
from tests.bench.image import jpeg
from tests.bench.load import Job, Measured, send
from tests.bench.processes import camserve, serving
from tests.bench.report import Row, Side, Target
from tests.bench.timing import Schedule, columns, ratios, rounds

MODEL = "efficientnet_lite0"
NATIVE, INFER, INFER_ALL = "native npy", "v2 binary heatmap", "v2 binary, default outputs"


def measure(plan: Schedule, wanted: set[str]) -> Iterator[Row]:
    """P12, one client: the network answers a lone request soonest, so that whatever else it costs shows most."""
    if "P12" not in wanted:
        return
    command, ready, environment = camserve(MODEL)
    # The embedded weights: a map of random ones may be blank.
    environment |= {"CAMSERVE_RANDOM_WEIGHTS": "0"}
    last: dict[str, Measured] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(serving(*command, ready=ready, **environment)).port

        def latency(name: str) -> Callable[[], float]:
            def p50() -> float:
                last[name] = send(_job(name, port, folder, plan.seconds(SPAN_S)))
                return last[name].p50

            return p50

        figures = columns(list(rounds({name: latency(name) for name in (NATIVE, INFER, INFER_ALL)}, plan.rounds)))
    for name, target in ((INFER, Target("<=", 1.1)), (INFER_ALL, None)):
        sides = tuple(Side(side, tuple(1000 * seconds for seconds in figures[side]), "ms") for side in (name, NATIVE))
        sizes = f"{last[name].answer_bytes / 1000:.0f} kB against {last[NATIVE].answer_bytes / 1000:.0f} kB"
        yield Row(
            "P12", f"p50 of {name} / {NATIVE}, {MODEL}, 1 client", tuple(ratios(figures[name], figures[NATIVE])), "x", target,
            sides, sizes,
        )  # fmt: skip


def _job(name: str, port: int, folder: Path, seconds: float) -> Job:
    """A request for the map of the predicted class at the network's input size; the default outputs hold more."""
    body = folder / name.replace(" ", "-").replace(",", "")
    if name == NATIVE:
        body.write_bytes(jpeg())
        path, headers = "/explain?size=input", ()
        return Job(port, path, str(body), "image/jpeg", "application/x-npy", 1, 0, seconds, RAMP_S, headers)
    element = struct.pack("<I", len(jpeg())) + jpeg()
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    document: dict[str, object] = {"inputs": [image], "parameters": {"binary_data_output": True}}
    if name == INFER:
        document["outputs"] = [{"name": "heatmap", "parameters": {"binary_data": True}}]
    head = json.dumps(document).encode()
    body.write_bytes(head + element)
    length = f"Inference-Header-Content-Length: {len(head)}"
    path = f"/v2/models/{MODEL}/infer"
    return Job(port, path, str(body), "application/octet-stream", "*/*", 1, 0, seconds, RAMP_S, (length,))
