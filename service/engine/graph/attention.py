"""Attention matrices of a network, from its graph: without hooks or patches, the same for torchvision, timm and transformers.

In a copy of the graph every scaled dot product is decomposed into softmax(q k^T scale + mask) v, so that the attention matrix
is a node of its own: the graph can return it, and autograd can compute its gradient. Methods turn matrices into maps.
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
    """Logits and attention of one pass of one image.

    Attributes:
        logits: ``[1, classes]``.
        matrices: for each block ``[1, heads, T, T]``: row i is how token i attends to all tokens; rows sum to 1.
        streams: for each block its output, the residual stream, ``[1, T, K]``.
    """

    logits: Tensor
    matrices: tuple[Tensor, ...]
    streams: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class AttentionGraph:
    """A network of attention blocks over one set of tokens.

    Attributes:
        module: image -> (logits, attention ``[N, heads, T, T]`` of each block, output ``[N, T, K]`` of each block).
        blocks: number of blocks.
        tokens: the position of the grid among the tokens.
        read: indices of the tokens that the classifier reads (class, distillation); () where it reads the mean.
        head: output of the last block -> logits; None where the classifier depends on more than that.
    """

    module: fx.GraphModule
    blocks: int
    tokens: Tokens
    read: tuple[int, ...]
    head: Split | None

    def look(self, image: Tensor) -> AttentionPass:
        """One pass of one image ``[1, C, H, W]``; differentiable in the matrices where gradients are enabled."""
        # The weights are frozen, so autograd records only what depends on an image that requires a gradient.
        results = self.module(image.detach().requires_grad_() if torch.is_grad_enabled() else image)
        matrices = tuple(results[1 : 1 + self.blocks])
        return AttentionPass(results[0], matrices, tuple(results[1 + self.blocks :]))

    def grid(self, values: Tensor) -> Tensor:
        """Values of all tokens ``[T]`` -> those of the grid, ``[rows, columns]``."""
        first, rows, columns = self.tokens.before, self.tokens.rows, self.tokens.columns
        return values[first : first + rows * columns].reshape(rows, columns)

    def of_class(self, matrix: Tensor) -> Tensor:
        """Mean ``[T]`` of the rows of ``[T, T]`` that belong to the tokens that the classifier reads, else of all rows."""
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
        MethodNotApplicable: the network has no attention over all its tokens, or its attention is no scaled dot product.
    """
    attention = [node for node in network.module.graph.nodes if is_attention(node)]
    tokens_of = {node: tokens for node in attention if (tokens := _attention_tokens(network, node)) is not None}
    if not attention:
        raise MethodNotApplicable("method: this model has no attention. Use a method that explains a layer, such as gradcam.")
    # A pooling attention may follow the last block; its queries are no tokens.
    if (
        not tokens_of
        or len(set(tokens_of.values())) > 1
        or any(node not in tokens_of for node in attention if node < max(tokens_of))
    ):
        raise MethodNotApplicable(
            "method: this model's attention does not relate all patches of the image to each other (it works in windows, on "
            "several grids, or is no scaled dot product). Use a method that explains a layer, such as gradcam."
        )
    blocks = list(tokens_of)
    tokens = tokens_of[blocks[0]]
    inputs = [_block_input(network, node, tokens) for node in blocks[1:]]
    sums = [node for node in network.dimensions if _is_residual_sum(network, node, tokens) and node > blocks[-1]]
    streams = [stream for stream in [*inputs, max(sums, default=None)] if stream is not None]
    has_all_streams = len(streams) == len(blocks)
    return AttentionGraph(
        module=_decompose_attention(network, blocks, streams if has_all_streams else []),
        blocks=len(blocks),
        tokens=tokens,
        read=_classifier_tokens(network, tokens, after=blocks[-1]),
        head=_head_behind(network, streams[-1]) if has_all_streams else None,
    )


def _attention_tokens(network: NetworkGraph, node: fx.Node) -> Tokens | None:
    """The tokens that attend to each other; None unless queries and keys are the same tokens of one image."""
    if operation(node) != "scaled_dot_product_attention":
        return None
    arguments = _arguments(node)
    query, key = arguments["query"], arguments["key"]
    dimensions = {network.dimensions.get(argument, (None, None))[-2] for argument in (query, key)}
    (tokens, *others) = dimensions
    is_plain = not arguments["is_causal"] and not arguments["enable_gqa"]
    is_per_image = network.per_image(query.meta["val"].shape[0]) == 1 and query.meta["val"].dim() == 4
    return tokens if isinstance(tokens, Tokens) and not others and is_plain and is_per_image else None


def _arguments(node: fx.Node) -> dict[str, Any]:
    defaults = {
        "query": None, "key": None, "value": None, "attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None,
        "enable_gqa": False,
    }  # fmt: skip
    return defaults | dict(zip(defaults, node.args, strict=False)) | dict(node.kwargs)


def _is_residual_sum(network: NetworkGraph, node: fx.Node, tokens: Tokens) -> bool:
    """Whether a node is a sum of the residual stream: of two tensors that both depend on the image, token by token."""
    dimensions = network.dimensions.get(node, ())
    terms = [parent for parent in node.all_input_nodes if parent in network.dimensions]
    return operation(node) == "add" and len(terms) == 2 and len(dimensions) == 3 and dimensions[1] == tokens


def _block_input(network: NetworkGraph, attention: fx.Node, tokens: Tokens) -> fx.Node | None:
    """The sum that is the input of a block, and the output of the block before it."""
    queue = [attention]
    for node in queue:
        if _is_residual_sum(network, node, tokens):
            return node
        queue += [parent for parent in node.all_input_nodes if parent not in queue]
    return None


def _classifier_tokens(network: NetworkGraph, tokens: Tokens, *, after: fx.Node) -> tuple[int, ...]:
    """Indices of the tokens that the classifier selects behind the node `after`, in order."""
    indices: set[int] = set()
    for node in depends_on({after}):
        source = node.args[0] if node.args else None
        dimensions = network.dimensions.get(source, ()) if isinstance(source, fx.Node) else ()
        if operation(node) not in {"select", "slice"} or len(dimensions) != 3 or dimensions[1] != tokens or node.args[1] != 1:
            continue
        first: Any = node.args[2]
        last: Any = first + 1 if operation(node) == "select" else node.args[3]
        indices.update(range(first, last) if 0 <= first < last <= tokens.before else ())
    return tuple(sorted(indices))


def _head_behind(network: NetworkGraph, last: fx.Node) -> Split | None:
    """The network split at the output of its last block; None where the classifier depends on another value too."""
    path = next((path for path, node in network.layer_nodes().items() if node is last), None)
    head = split(network, [path]) if path is not None else None
    return head if head is not None and len(head.crossings) == 1 else None


def _decompose_attention(network: NetworkGraph, blocks: list[fx.Node], streams: list[fx.Node]) -> fx.GraphModule:
    """A copy of the network that decomposes the scaled dot products `blocks`, and returns logits, their matrices, `streams`."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    matrices: list[fx.Node] = []
    copy_of: Callable[[fx.Node], fx.Node] = env.__getitem__
    for node in network.module.graph.nodes:
        if node.op == "output":
            continue
        if node not in blocks:
            env[node] = graph.node_copy(node, copy_of)
            continue
        arguments = _arguments(node)
        mask = arguments["attn_mask"]
        inputs = (env[arguments["query"]], env[arguments["key"]], env[mask] if mask is not None else None)
        matrices.append(graph.call_function(matrix, (*inputs, arguments["scale"])))
        env[node] = graph.call_function(torch.matmul, (matrices[-1], env[arguments["value"]]))
    graph.output((env[network.logits], *matrices, *(env[node] for node in streams)))
    graph.lint()
    return fx.GraphModule(network.module, graph)
