"""The LSTM for OpenVINO's frontend, which knows none in an fx graph: torch.export would unroll it into thousands of operations.

`lowering` writes an LSTM as ``aten.lstm.input(x, h, c, *weights)``; this module translates that to OpenVINO's `LSTMSequence`.
"""

from __future__ import annotations

from typing import Any, Final

OPERATION: Final = "aten.lstm.input"
WEIGHTS: Final = 4  # of a direction: input, recurrent, and a bias of each


def extension() -> Any:
    """The frontend's extension that translates `OPERATION`."""
    from openvino.frontend.pytorch import ConversionExtension  # noqa: PLC0415  (optional)

    return ConversionExtension(OPERATION, _translate)


def _translate(context: Any) -> list[Any]:
    """The hidden states of one layer, ``[N, T, directions * hidden]``.

    torch's inputs: x ``[N, T, features]``; h, c ``[directions, N, hidden]``; for each direction W ``[4 * hidden, features]``,
    R ``[4 * hidden, hidden]`` and two biases ``[4 * hidden]``, whose gates are in the order input, forget, cell, output.
    OpenVINO's: h, c ``[N, directions, hidden]``, weights stacked by direction, one bias, gates in the order forget, input,
    cell, output; its result is ``[N, directions, T, hidden]``.
    """
    from openvino import opset13 as ops  # noqa: PLC0415  (optional)

    def permuted(value: Any, order: list[int]) -> Any:
        return ops.transpose(value, ops.constant(order)).output(0)

    def gates(value: Any) -> Any:
        parts = ops.split(value, 0, 4).outputs()
        return ops.unsqueeze(ops.concat([parts[1], parts[0], parts[2], parts[3]], 0), 0)

    x, h, c, *weights = [context.get_input(index) for index in range(context.get_input_size())]
    by_direction = [weights[start : start + WEIGHTS] for start in range(0, len(weights), WEIGHTS)]
    stacked = [
        ops.concat([gates(part) for part in parts], 0)
        for parts in zip(*((w, r, ops.add(b, d)) for w, r, b, d in by_direction), strict=True)
    ]
    hidden = by_direction[0][1].get_partial_shape()[1].get_length()
    sizes = ops.shape_of(x)
    rows, steps = (ops.gather(sizes, ops.constant([index]), ops.constant(0)) for index in (0, 1))
    sequence = ops.lstm_sequence(
        x,
        permuted(h, [1, 0, 2]),
        permuted(c, [1, 0, 2]),
        ops.broadcast(steps, rows),
        *stacked,
        hidden,
        "bidirectional" if len(by_direction) == 2 else "forward",
    )
    states = permuted(sequence.output(0), [0, 2, 1, 3])
    return [ops.reshape(states, ops.constant([0, 0, len(by_direction) * hidden]), special_zero=True).output(0)]
