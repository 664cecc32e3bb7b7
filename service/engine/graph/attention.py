"""Attention matrices of a network, taken from its graph: no hooks, no patches, one way for torchvision, timm and transformers.

A copy of the graph has every scaled dot product written out as softmax(q k^T scale + mask) v, so that the matrix between is a
node of its own: it can be returned, and autograd can be asked for its gradient. What a matrix is used for is the methods' job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from service.engine.graph.dimensions import Tokens, operation
from service.engine.graph.export import NetworkGraph, depends_on, is_attention
from service.engine.graph.split import Split, split
from service.errors import MethodNotApplicable


@dataclass(frozen=True)
class AttentionPass:
    """What one pass of one image showed.

    Attributes:
        logits: ``[1, classes]``.
        matrices: of each block, ``[heads, T, T]``: row i is how token i attends to all tokens; rows sum to 1.
        streams: of each block, what it hands on, ``[1, T, K]``.
    """

    logits: Tensor
    matrices: tuple[Tensor, ...]
    streams: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class AttentionGraph:
    """A network of attention blocks over one set of tokens.

    Attributes:
        module: image -> (logits, attention ``[N, heads, T, T]`` of each block, what each block hands on ``[N, T, K]``).
        blocks: how many blocks.
        tokens: where the grid lies among the tokens.
        read: the tokens that the classifier reads (class, distillation); none where it reads the mean.
        head: what the last block hands on -> logits; None where more than that reaches the classifier.
    """

    module: fx.GraphModule
    blocks: int
    tokens: Tokens
    read: tuple[int, ...]
    head: Split | None

    def look(self, image: Tensor) -> AttentionPass:
        """One pass of one image ``[1, C, H, W]``; differentiable in the matrices where gradients are enabled."""
        # The weights are frozen: it is the image that makes autograd follow.
        results = self.module(image.detach().requires_grad_() if torch.is_grad_enabled() else image)
        matrices = tuple(results[1 : 1 + self.blocks])
        return AttentionPass(results[0], matrices, tuple(results[1 + self.blocks :]))

    def grid(self, over_tokens: Tensor) -> Tensor:
        """``[T]`` -> ``[rows, columns]``."""
        first, rows, columns = self.tokens.before, self.tokens.rows, self.tokens.columns
        return over_tokens[first : first + rows * columns].reshape(rows, columns)

    def of_class(self, matrix: Tensor) -> Tensor:
        """The rows ``[T, T]`` -> ``[T]`` of what the classifier reads: their mean, of all tokens where it reads their mean."""
        return matrix[list(self.read)].mean(0) if self.read else matrix.mean(0)


def matrix(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention ``[N, heads, T, S]`` of queries ``[N, heads, T, d]`` to keys ``[N, heads, S, d]``."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def attention_graph(network: NetworkGraph) -> AttentionGraph:
    """The network with its attention matrices.

    Raises:
        MethodNotApplicable: it has no attention over all its tokens, or writes it out in a way that is not understood.
    """
    attention = [node for node in network.module.graph.nodes if is_attention(node)]
    found = {node: tokens for node in attention if (tokens := _over_tokens(network, node)) is not None}
    if not attention:
        raise MethodNotApplicable("method: this model has no attention. Use a method that explains a layer, such as gradcam.")
    # Behind the last block a pooling attention may follow, whose queries are no tokens.
    if not found or len(set(found.values())) > 1 or any(node not in found for node in attention if node < max(found)):
        raise MethodNotApplicable(
            "method: this model's attention is not one over all places of the image (it works in windows, on several grids, "
            "or is written out by hand), so there is no matrix to show. Use a method that explains a layer, such as gradcam."
        )
    blocks = list(found)
    tokens = found[blocks[0]]
    streams = [_stream(network, node, tokens) for node in blocks[1:]]
    sums = [node for node in network.dimensions if _is_sum(network, node, tokens) and node > blocks[-1]]
    whole = [stream for stream in [*streams, max(sums, default=None)] if stream is not None]
    streams_known = len(whole) == len(blocks)
    return AttentionGraph(
        module=_written_out(network, blocks, whole if streams_known else []),
        blocks=len(blocks),
        tokens=tokens,
        read=_read(network, tokens, after=blocks[-1]),
        head=_head(network, whole[-1]) if streams_known else None,
    )


def _over_tokens(network: NetworkGraph, node: fx.Node) -> Tokens | None:
    """The tokens that attend to each other; None where they are not one set, of one image."""
    if operation(node) != "scaled_dot_product_attention":
        return None
    arguments = _arguments(node)
    query, key = arguments["query"], arguments["key"]
    sides = {network.dimensions.get(side, (None, None))[-2] for side in (query, key)}
    (tokens, *others) = sides
    plain = not arguments["is_causal"] and not arguments["enable_gqa"]
    one_image = network.per_image(query.meta["val"].shape[0]) == 1 and query.meta["val"].dim() == 4
    return tokens if isinstance(tokens, Tokens) and not others and plain and one_image else None


def _arguments(node: fx.Node) -> dict[str, Any]:
    defaults = {
        "query": None, "key": None, "value": None, "attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None,
        "enable_gqa": False,
    }  # fmt: skip
    return defaults | dict(zip(defaults, node.args, strict=False)) | dict(node.kwargs)


def _is_sum(network: NetworkGraph, node: fx.Node, tokens: Tokens) -> bool:
    """Whether a node is the sum of a residual stream: of two tensors that both come from the image, token by token."""
    dimensions = network.dimensions.get(node, ())
    both = [parent for parent in node.all_input_nodes if parent in network.dimensions]
    return operation(node) == "add" and len(both) == 2 and len(dimensions) == 3 and dimensions[1] == tokens


def _stream(network: NetworkGraph, attention: fx.Node, tokens: Tokens) -> fx.Node | None:
    """The sum that a block reads, which is what the block before it hands on."""
    queue = [attention]
    for node in queue:
        if _is_sum(network, node, tokens):
            return node
        queue += [parent for parent in node.all_input_nodes if parent not in queue]
    return None


def _read(network: NetworkGraph, tokens: Tokens, *, after: fx.Node) -> tuple[int, ...]:
    """Which tokens the classifier picks out, in order."""
    picked: set[int] = set()
    for node in depends_on({after}):
        source = node.args[0] if node.args else None
        dimensions = network.dimensions.get(source, ()) if isinstance(source, fx.Node) else ()
        if operation(node) not in {"select", "slice"} or len(dimensions) != 3 or dimensions[1] != tokens or node.args[1] != 1:
            continue
        first: Any = node.args[2]
        last: Any = first + 1 if operation(node) == "select" else node.args[3]
        picked.update(range(first, last) if 0 <= first < last <= tokens.before else ())
    return tuple(sorted(picked))


def _head(network: NetworkGraph, last: fx.Node) -> Split | None:
    """The network behind its last block, where nothing else reaches the classifier."""
    path = next((path for path, node in network.layer_nodes().items() if node is last), None)
    parts = split(network, [path]) if path is not None else None
    return parts if parts is not None and len(parts.crossings) == 1 else None


def _written_out(network: NetworkGraph, blocks: list[fx.Node], streams: list[fx.Node]) -> fx.GraphModule:
    """The network with the scaled dot products of `blocks` written out, their matrices and `streams` returned beside logits."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    matrices: list[fx.Node] = []
    copied: Callable[[fx.Node], fx.Node] = env.__getitem__
    for node in network.module.graph.nodes:
        if node.op == "output":
            continue
        if node not in blocks:
            env[node] = graph.node_copy(node, copied)
            continue
        arguments = _arguments(node)
        mask = arguments["attn_mask"]
        inputs = (env[arguments["query"]], env[arguments["key"]], env[mask] if mask is not None else None)
        matrices.append(graph.call_function(matrix, (*inputs, arguments["scale"])))
        env[node] = graph.call_function(torch.matmul, (matrices[-1], env[arguments["value"]]))
    graph.output((env[network.logits], *matrices, *(env[node] for node in streams)))
    graph.lint()
    return fx.GraphModule(network.module, graph)
