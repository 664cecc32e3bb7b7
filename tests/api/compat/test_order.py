"""Many clients of several protocols at once: each gets the answer that it would get alone, in the order of its images."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import httpx
import numpy as np
from kserve import InferenceRESTClient, RESTConfig
from numpy.typing import NDArray
from tritonclient.http import InferenceServerClient, InferRequestedOutput
from tritonclient.http import InferInput as TritonInput

from tests.api.compat.wire import b64
from tests.conftest import Running
from tests.photographs import CAMERA, CHELSEA, CHINA, COFFEE, ROCKET, Photograph

MODEL = "efficientnet_lite0"
CLIENTS = 16
REQUESTS = 4  # of each client
TOLERANCE = 0.02  # of a map's range: sums of a batch are added in another order than those of one image
CLASSES = {CHELSEA: (281, 285), COFFEE: (967, 968), ROCKET: (657, 744), CAMERA: (872, 447), CHINA: (698, 832)}

Map = NDArray[np.float32]
Ask = Callable[[str, Photograph, Photograph], list[tuple[int, Map]]]


def native(url: str, photo: Photograph, _other: Photograph) -> list[tuple[int, Map]]:
    params = {"class_id": "{},{}".format(*CLASSES[photo]), "size": "input", "format": "npy"}
    response = httpx.post(f"{url}/explain", content=photo.data, params=params, timeout=120)
    ids = map(int, response.headers["x-explain-class-id"].split(","))
    return list(zip(ids, np.load(io.BytesIO(response.content), allow_pickle=False), strict=True))


def v1(url: str, photo: Photograph, other: Photograph) -> list[tuple[int, Map]]:
    instances = [{"image": {"b64": b64(one.data)}, "class_id": list(CLASSES[one])} for one in (photo, other)]
    document = {"instances": instances, "parameters": {"size": "input", "heatmap": "list"}}

    async def explain() -> dict[str, list[list[dict[str, object]]]]:
        async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=120)) as client:
            return dict(await client.explain(url, MODEL, document))

    rows = asyncio.run(explain())["explanations"]
    return [(int(str(one["class_id"])), np.array(one["heatmap"], np.float32)) for row in rows for one in row]


def v2(url: str, photo: Photograph, other: Photograph) -> list[tuple[int, Map]]:
    client = InferenceServerClient(url.removeprefix("http://"), connection_timeout=120, network_timeout=120)
    image, classes = TritonInput("image", [2], "BYTES"), TritonInput("class_id", [2, 2], "INT64")
    image.set_data_from_numpy(np.array([photo.data, other.data], np.object_))
    classes.set_data_from_numpy(np.array([CLASSES[photo], CLASSES[other]], np.int64))
    outputs = [InferRequestedOutput("heatmap"), InferRequestedOutput("class_id")]
    answer = client.infer(MODEL, [image, classes], outputs=outputs)
    client.close()
    maps, ids = answer.as_numpy("heatmap"), answer.as_numpy("class_id")
    return [(int(ids[row, column]), maps[row, column]) for row in range(2) for column in range(2)]


def torchserve(url: str, photo: Photograph, _other: Photograph) -> list[tuple[int, Map]]:
    params = {"target": "{},{}".format(*CLASSES[photo])}
    response = httpx.put(f"{url}/explanations/{MODEL}", content=photo.data, params=params, timeout=120)
    return list(zip(CLASSES[photo], np.array(response.json()[0], np.float32), strict=True))


def test_nobody_gets_another_s_answer(server: Running) -> None:
    alone = {photo: native(server.url, photo, photo) for photo in CLASSES}
    photos = list(CLASSES)

    def client(number: int) -> int:
        ask: Ask = (native, v1, v2, torchserve)[number % 4]
        answers = 0
        for photo, other in islice(zip(cycle(photos[number % 5 :]), cycle(photos[::-1]), strict=False), REQUESTS):
            found = ask(server.url, photo, other)
            expected = alone[photo] + (alone[other] if len(found) == 4 else [])
            assert [class_id for class_id, _ in found] == [class_id for class_id, _ in expected]
            for (_, heatmap), (_, one) in zip(found, expected, strict=True):
                np.testing.assert_allclose(heatmap, one, atol=TOLERANCE)
            answers += 1
        return answers

    # Maps of the classes of all photographs differ by more than the tolerance, so that a mistaken one would be seen.
    maps = [heatmap for found in alone.values() for _, heatmap in found]
    assert min(np.abs(a - b).max() for i, a in enumerate(maps) for b in maps[:i]) > 2 * TOLERANCE
    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(client, range(CLIENTS))) == [REQUESTS] * CLIENTS
