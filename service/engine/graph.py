"""A network as one functional graph: exported once, so that it can be cut anywhere without hooks or state on the module.

Functional means that no operation writes into another's output: the ReLU that works in place after a layer cannot change that
layer's activations any more (DenseNet's does), and autograd may ask for a gradient at any node.
"""

from __future__ import annotations

import operator
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from service.engine.work import LayerInfo
from service.errors import ConfigurationError

# torch.export keeps global state while it traces.
_exporting = threading.Lock()


@dataclass(frozen=True)
class NetworkGraph:
    """The exported network.

    Attributes:
        module: the functional graph; one placeholder ``[N, C, height, width]``, one output ``[N, classes]``.
        image: the placeholder.
        logits: the node that is returned.
        batch: the symbol of N in the shapes that nodes carry in ``meta["val"]``, a ``torch.SymInt``.
    """

    module: fx.GraphModule
    image: fx.Node
    logits: fx.Node
    batch: Any

    def layer_nodes(self) -> dict[str, fx.Node]:
        """Module path -> the last node that the module computed, for every module that computed one."""
        last: dict[str, fx.Node] = {}
        for node in self.module.graph.nodes:
            if node.op == "call_function":
                for path, _kind in (node.meta.get("nn_module_stack") or {}).values():
                    last[path] = node
        last.pop("", None)
        return last

    def layers(self) -> dict[str, LayerInfo]:
        """Every module whose output is a grid of channels: float ``[N, channels, rows, columns]`` with more than one cell."""
        found: dict[str, LayerInfo] = {}
        for path, node in self.layer_nodes().items():
            value = node.meta.get("val")
            if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
                continue
            rows, columns = value.shape[2:]
            if self.per_picture(value.shape[0]) == 1 and rows * columns > 1:
                found[path] = LayerInfo(path, int(value.shape[1]), (int(rows), int(columns)))
        return found

    def per_picture(self, size: Any) -> int:
        """How many entries of a dimension belong to one picture; 0 where the dimension does not count pictures.

        Compares expressions, not numbers: a size that happens to equal the example batch's is not mistaken for it.
        """
        expression = size.node.expr if isinstance(size, torch.SymInt) else None
        ratio = expression / self.batch.node.expr if expression is not None else None
        return int(ratio) if ratio is not None and ratio.is_Integer else 0


def export(name: str, module: nn.Module, input_shape: tuple[int, int, int]) -> NetworkGraph:
    """Exports an eval-mode network for any batch of one picture size.

    Args:
        name: the model's, for the message.
        module: takes float32 ``[N, C, height, width]``, gives logits ``[N, classes]``.
        input_shape: (C, height, width).

    Raises:
        ConfigurationError: the network cannot be exported, or does not map one batch of pictures to one batch of logits.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    example = torch.zeros(2, *input_shape, device=device)
    try:
        with _exporting, torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            # An empty table decomposes nothing; what remains of it is functionalisation.
            program = program.run_decompositions({})
            exported = program.module(check_guards=False)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigurationError(
            f"card {name}: the network cannot be exported by torch.export with a free batch size: {reason[:400]}. Its forward "
            "must be free of data-dependent Python control flow"
        ) from error
    assert isinstance(exported, fx.GraphModule)
    return _checked(name, exported)


def _checked(name: str, exported: fx.GraphModule) -> NetworkGraph:
    nodes = list(exported.graph.nodes)
    images = [node for node in nodes if node.op == "placeholder"]
    results = nodes[-1].args[0]
    if isinstance(results, (tuple, list)) and len(results) == 1:
        results = results[0]
    value = results.meta.get("val") if isinstance(results, fx.Node) else None
    if len(images) != 1 or not isinstance(results, fx.Node) or not isinstance(value, Tensor) or value.dim() != 2:
        raise ConfigurationError(f"card {name}: a classifier takes one picture tensor and gives one tensor [N, classes]")
    batch = images[0].meta["val"].shape[0]
    if not isinstance(batch, torch.SymInt):
        raise ConfigurationError(f"card {name}: the network fixes its batch size to {batch}; it must take any batch")
    return NetworkGraph(exported, images[0], results, batch)


def depends_on(start: set[fx.Node]) -> set[fx.Node]:
    """`start` and every node computed from one of them."""
    reached = set(start)
    stack = list(start)
    while stack:
        for user in stack.pop().users:
            if user not in reached:
                reached.add(user)
                stack.append(user)
    return reached


def is_size(node: fx.Node) -> bool:
    """Whether a node computes a size, not a tensor."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt)) and node.op == "call_function"


def is_batch_size(node: fx.Node, image: fx.Node) -> bool:
    """Whether a node reads the batch size off the picture tensor."""
    return node.target in {torch.ops.aten.sym_size.int, operator.getitem} and node.args == (image, 0)
