"""Attention of a vision transformer: maps from the attention matrices of its blocks, with or without the gradient of a class.

A is the attention ``[heads, T, T]`` of one block; row i is the attention of token i to all T tokens. Maps are on the grid of
patches, ``[rows, columns]``, never negative. If the classifier reads a class token (and a distillation token), the map is that
token's row (the mean of both rows); if it reads the mean of the tokens, the map is the mean of all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.graph.attention import AttentionGraph
from service.engine.graph.split import Split
from service.engine.graph.split_cache import SizedNetwork
from service.engine.methods.method import Query, QueryMethod
from service.engine.types import MethodParameters
from service.errors import MethodNotApplicable, ParameterInvalid

FAMILY = "attention"


def attention(query: Query) -> tuple[Tensor, ...]:
    """Attention of one block, heads fused by mean, maximum or minimum.

    `toward=from_class` is the class token's row: its attention to each patch. `to_class` is its column: the attention of each
    patch to it. The map is the same for all classes.

    Raises:
        MethodNotApplicable: `toward` is `to_class`, and the classifier reads no class token.
        ParameterInvalid: the network has no such block.
    """
    graph = query.network.attention
    attention_pass = graph.look(query.image)
    fused = fuse(attention_pass.matrices[_block(graph, query.parameters)][0], query.parameters.head_fusion)
    if query.parameters.toward == "to_class":
        if not graph.read:
            raise MethodNotApplicable(
                "toward: this model has no class token that patches attend to; use toward=from_class, the mean of all rows."
            )
        fused = fused.T
    return (graph.grid(graph.of_class(fused)),)


def attention_rollout(query: Query) -> tuple[Tensor, ...]:
    r"""Attention rollout: the product of the attention of all blocks, each averaged with its residual connection.

    .. math:: R = \tilde A_L \cdots \tilde A_1, \qquad \tilde A = \tfrac12 (\bar A + I), \text{ rows normalised}

    with :math:`\bar A` ``[T, T]`` the heads fused. Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928. `discard_ratio` is
    the fraction of each fused matrix, its lowest entries, that is set to zero first; the class token's attention to itself is
    never discarded, as in the common implementation (jacobgil/vit-explain; there each column is divided by the sums of the
    rows, here each row is). The map is the same for all classes.
    """
    graph = query.network.attention
    attention_pass = graph.look(query.image)
    fused = [fuse(matrix[0], query.parameters.head_fusion) for matrix in attention_pass.matrices]
    result = rollout([discard(matrix, query.parameters.discard_ratio or 0.0, keep_first=bool(graph.read)) for matrix in fused])
    return (graph.grid(graph.of_class(result)),)


def chefer(query: Query) -> tuple[Tensor, ...]:
    r"""Gradient-weighted rollout, "generic attention explainability".

    .. math:: R \leftarrow R + \bar A R, \qquad \bar A = E_h [(\nabla A \odot A)^+], \qquad R_0 = I

    over the blocks in order, :math:`\nabla A` ``[heads, T, T]`` the gradient of the class's score. Chefer et al. 2021,
    https://arxiv.org/abs/2103.15679, equations 5 and 6 for self-attention. The map is the class token's row of :math:`R - I`.
    """
    graph = query.network.attention
    with torch.enable_grad():
        attention_pass = graph.look(query.image)
        score = query.target.score(attention_pass.logits).sum()
    gradients = torch.autograd.grad(score, attention_pass.matrices)
    products = [(g[0] * a[0].detach()).clamp(min=0).mean(0) for a, g in zip(attention_pass.matrices, gradients, strict=True)]
    relevance = torch.eye(products[0].shape[-1], device=products[0].device)
    for product in products:
        relevance = relevance + product @ relevance
    return (graph.grid(graph.of_class(relevance - torch.eye(len(relevance), device=relevance.device))),)


def legrad(query: Query) -> tuple[Tensor, ...]:
    r"""LeGrad: the gradient of the class's score by the attention of each block, with the head applied behind that block.

    .. math:: E = \frac{1}{L} \sum_l \frac{1}{h T} \sum_{h, i} \left(\frac{\partial s^l}{\partial A^l_{h i \cdot}}\right)^+,
        \qquad s^l = f(\bar Z^l)_c

    :math:`\bar Z^l` is the mean of the tokens in the output of block l, f the network behind the last block. Bousselham et al.
    2024, https://arxiv.org/abs/2404.03214. `block` is the first block of the sum: 0 for all, as in the paper; the authors' code
    uses the last two, -2.

    Raises:
        ParameterInvalid: the network has no such block.
    """
    graph, head = block_by_block(query.network)
    first = _block(graph, query.parameters)
    gradients = []
    with torch.enable_grad():
        attention_pass = graph.look(query.image)
        for matrix, stream in list(zip(attention_pass.matrices, attention_pass.streams, strict=True))[first:]:
            logits = head.head(stream.mean(dim=1, keepdim=True).expand_as(stream))[0]
            (gradient,) = torch.autograd.grad(query.target.score(logits).sum(), matrix, retain_graph=True)
            gradients.append(gradient[0].clamp(min=0).mean(dim=(0, 1)))
    return (graph.grid(torch.stack(gradients).mean(0)),)


def attention_of(network: SizedNetwork) -> AttentionGraph:
    """The network with its attention matrices.

    Raises:
        MethodNotApplicable: the network has no attention matrices.
    """
    return network.attention


def block_by_block(network: SizedNetwork) -> tuple[AttentionGraph, Split]:
    """The network's attention matrices, and its split behind its last block.

    Raises:
        MethodNotApplicable: the network has no attention matrices, or its classifier depends on more than the blocks' outputs.
    """
    graph = network.attention
    if graph.head is None:
        raise MethodNotApplicable("method: the outputs of this model's blocks cannot be scored block by block; use chefer.")
    return graph, graph.head


def fuse(heads: Tensor, fusion: str | None) -> Tensor:
    """Heads ``[heads, T, T]`` -> ``[T, T]``: their mean, maximum or minimum."""
    return heads.amax(0) if fusion == "max" else heads.amin(0) if fusion == "min" else heads.mean(0)


def discard(fused: Tensor, ratio: float, *, keep_first: bool) -> Tensor:
    """Sets the lowest entries of a matrix ``[T, T]`` to zero.

    Args:
        fused: the attention of a block, its heads fused.
        ratio: the fraction of the entries to discard.
        keep_first: whether to keep the entry [0, 0], the attention of the first token to itself.
    """
    flat = fused.flatten().clone()
    lowest = flat.topk(int(len(flat) * ratio), largest=False).indices
    flat[lowest[lowest != 0] if keep_first else lowest] = 0
    return flat.view_as(fused)


def rollout(fused: list[Tensor]) -> Tensor:
    """Fused attention ``[T, T]`` of each block, in order -> their rollout ``[T, T]``, whose rows sum to 1."""
    identity = torch.eye(fused[0].shape[-1], device=fused[0].device)
    result = identity
    for matrix in fused:
        mean = (matrix + identity) / 2
        result = (mean / mean.sum(dim=-1, keepdim=True)) @ result
    return result


def _block(graph: AttentionGraph, parameters: MethodParameters) -> int:
    """The index of the block of the request, from 0.

    Raises:
        ParameterInvalid: the network has no such block.
    """
    block = parameters.block or 0
    if not -graph.blocks <= block < graph.blocks:
        raise ParameterInvalid(
            f"block: this model has {graph.blocks} attention blocks: 0 to {graph.blocks - 1}, or from the last, -1 to "
            f"-{graph.blocks}."
        )
    return block % graph.blocks


METHODS = (
    QueryMethod(
        name="attention",
        family=FAMILY,
        cost="forward",
        paper="https://arxiv.org/abs/2010.11929",
        summary="What the class token of one block attends to; the same for every class.",
        raw_unit="probability",
        defaults=MethodParameters(head_fusion="mean", block=-1, toward="from_class"),
        explain=attention,
        layered=False,
        fits=attention_of,
    ),
    QueryMethod(
        name="attention_rollout",
        family=FAMILY,
        cost="forward",
        paper="https://arxiv.org/abs/2005.00928",
        summary="Attention followed from the class token back through all blocks; the same for every class.",
        raw_unit="probability",
        defaults=MethodParameters(head_fusion="mean", discard_ratio=0.0),
        explain=attention_rollout,
        layered=False,
        fits=attention_of,
    ),
    QueryMethod(
        name="chefer",
        family=FAMILY,
        cost="forward",
        paper="https://arxiv.org/abs/2103.15679",
        summary="Rollout of attention weighted by the gradient of the class's logit.",
        raw_unit="none",
        explain=chefer,
        layered=False,
        fits=attention_of,
    ),
    QueryMethod(
        name="legrad",
        family=FAMILY,
        cost="forward",
        paper="https://arxiv.org/abs/2404.03214",
        summary="Gradient of the class's logit toward attention, block by block.",
        raw_unit="logit",
        defaults=MethodParameters(block=0),
        explain=legrad,
        layered=False,
        fits=block_by_block,
    ),
)
