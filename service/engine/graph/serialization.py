"""An exported graph as bytes, and back: JSON for the nodes, safetensors for constants. No pickle: reading it runs no code.

Parameters and buffers are not written; the graph refers to those of the network by name. Of each node's metadata the parts that
`NetworkGraph` reads are kept: the modules that computed it, and the sizes and dtype of its value, of which sizes that depend on
the batch size are written as multiples of it.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterable
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from service.engine.graph.dimensions import per_image

PYTHON_MODULES: Final = {"_operator": "operator", "operator": "operator", "math": "math"}
MAX_CONSTANT_BYTES: Final = 64 * 1024**2


class NotSerializable(ValueError):
    """The graph contains something that has no written form, such as a subgraph."""


def serialize(module: fx.GraphModule, network: nn.Module) -> bytes:
    """The bytes of an exported graph.

    Args:
        module: the graph, with a placeholder whose first size is the symbol of the batch size.
        network: the network from which it was exported, with its parameters.

    Raises:
        NotSerializable: an operation, an argument or a size of the graph has no written form.
    """
    batch = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"].shape[0]
    references, constants = _attributes(module, network)
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "target": _write_target(node),
            "args": _write(tuple(node.args)),
            "kwargs": {name: _write(value) for name, value in node.kwargs.items()},
            "modules": [path for path, _kind in (node.meta.get("nn_module_stack") or {}).values()],
            "value": _write_value(node.meta.get("val"), batch),
        }
        for node in module.graph.nodes
    ]
    header = json.dumps({"nodes": nodes, "references": references}).encode()
    return len(header).to_bytes(8, "little") + header + safetensors.torch.save(constants)


def deserialize(content: bytes, network: nn.Module) -> fx.GraphModule:
    """The graph of `serialize`, with the parameters of the network.

    Raises:
        Exception: the bytes are not of `serialize`, or the network lacks a parameter.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    constants = safetensors.torch.load(content[8 + length :])
    attributes: dict[str, Any] = {target: value.to(device) for target, value in constants.items()}
    for target, name in header["references"].items():
        attributes[target] = functools.reduce(_attribute, name.split("."), network)
    read_value = _value_reader()
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in header["nodes"]:
        args, kwargs = _read(entry["args"], nodes), {name: _read(value, nodes) for name, value in entry["kwargs"].items()}
        node = graph.create_node(entry["op"], _read_target(entry["target"]), args, kwargs, entry["name"])
        if entry["modules"]:
            node.meta["nn_module_stack"] = {str(number): (path, "") for number, path in enumerate(entry["modules"])}
        if entry["value"] is not None:
            node.meta["val"] = read_value(entry["value"])
        nodes[entry["name"]] = node
    output = graph.output_node()
    if isinstance(output.args[0], tuple) and len(output.args[0]) == 1:
        output.args = output.args[0]  # an exported program returns the logits themselves
    return fx.GraphModule(attributes, graph)


def _attributes(module: fx.GraphModule, network: nn.Module) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The tensors that the graph reads: name in the graph -> name in the network, and those that the network does not have."""
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    names = {_identity(tensor): name for name, tensor in tensors}
    references: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    for target in {node.target for node in module.graph.find_nodes(op="get_attr")}:
        value: Any = functools.reduce(_attribute, target.split("."), module)
        if not isinstance(value, Tensor):
            raise NotSerializable(f"{target} is no tensor")
        if _identity(value) in names:
            references[target] = names[_identity(value)]
        else:
            constants[target] = value.detach().contiguous().clone()
    if sum(value.nbytes for value in constants.values()) > MAX_CONSTANT_BYTES:
        raise NotSerializable("its constants are too large")
    return references, constants


def _attribute(owner: Any, name: str) -> Any:
    return getattr(owner, name)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same values in the same memory."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _write_target(node: fx.Node) -> Any:
    target: Any = node.target
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return {"operation": [target.namespace, target._opname, target._overloadname]}
    module = PYTHON_MODULES.get(getattr(target, "__module__", ""))
    if module is None:
        raise NotSerializable(f"{node.name} calls {target}")
    return {"python": [module, target.__name__]}


def _read_target(target: Any) -> Any:
    if isinstance(target, str):
        return target
    if "operation" in target:
        operation = functools.reduce(getattr, target["operation"], torch.ops)
        assert isinstance(operation, OpOverload)
        return operation
    module, name = target["python"]
    assert module in PYTHON_MODULES.values()
    return getattr(importlib.import_module(module), name)


def _write(value: Any) -> Any:
    """An argument of a node; nodes by their names."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_write(item) for item in value]
    for kind, (type_, write, _) in ARGUMENTS.items():
        if isinstance(value, type_):
            return {kind: _write(write(value))}
    raise NotSerializable(f"an argument of type {type(value).__name__}")


def _read(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    return ARGUMENTS[kind][2](_read(content, nodes))


def _short_name(value: Any) -> str:
    return str(value).removeprefix("torch.")  # torch.float32, torch.contiguous_format


def _of_torch(name: str) -> Any:
    value = getattr(torch, name)
    assert isinstance(value, (torch.dtype, torch.memory_format, torch.layout))
    return value


# Arguments of nodes that JSON does not know: kind -> their type, how they are written, how they are read.
ARGUMENTS: Final[dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "node": (fx.Node, lambda node: node.name, str),
    "tuple": (tuple, list, tuple),
    "slice": (slice, lambda value: [value.start, value.stop, value.step], lambda parts: slice(*parts)),
    "device": (torch.device, str, torch.device),
    "torch": ((torch.dtype, torch.memory_format, torch.layout), _short_name, _of_torch),
}


def _write_value(value: Any, batch: Any) -> Any:
    """The sizes and dtype of a node's value; a multiple of the batch size as {"batch": factor}."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, torch.SymInt):
        factor = per_image(value, batch)
        if not factor:
            raise NotSerializable(f"the size {value} is no multiple of the batch size")
        return {"batch": factor}
    if isinstance(value, Tensor):
        sizes = [_write_value(size, batch) for size in value.shape]
        return {"tensor": [str(value.dtype).removeprefix("torch."), sizes]}
    if isinstance(value, (list, tuple)):
        return [_write_value(item, batch) for item in value]
    raise NotSerializable(f"a value of type {type(value).__name__}")


def _value_reader() -> Callable[[Any], Any]:
    """A function that reads values of `_write_value`, with one symbol of the batch size for all of them."""
    from torch._dynamo.source import ConstantSource  # noqa: PLC0415  (takes a second to import)

    environment = ShapeEnv()
    source = ConstantSource("batch")
    symbol = environment.create_symbol(2, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    batch: Any = environment.create_symintnode(symbol, hint=2, source=source)
    multiples: dict[int, Any] = {1: batch}

    def multiple(factor: int) -> Any:
        return multiples.setdefault(factor, factor * batch) if factor not in multiples else multiples[factor]

    def sizes_of(sizes: Iterable[Any]) -> list[Any]:
        return [multiple(size["batch"]) if isinstance(size, dict) else size for size in sizes]

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "batch" in value:
            return multiple(value["batch"])
        dtype, sizes = value["tensor"]
        return torch.empty(sizes_of(sizes), dtype=getattr(torch, dtype), device="meta")

    return read
