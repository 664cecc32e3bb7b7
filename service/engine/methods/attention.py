"""What a vision transformer looks at: from the attention matrices of its blocks, with or without the gradient of a class.

In all of them A is the attention ``[heads, T, T]`` of one block, row i that of token i over all T tokens. Maps are on the grid
of patches, ``[rows, columns]``, never negative. Where the classifier reads a class token (and a distillation token), theirs is
the row that counts (their mean); where it reads the mean of the tokens, the mean of all rows.
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

    `toward=from_class` is the class token's row: where it looks. `to_class` is its column: how much each patch looks at it.
    Tells nothing about a class: the map is the same for all.
    """
    graph = query.network.attention
    seen = graph.look(query.image)
    fused = fuse(seen.matrices[_block(graph, query.parameters)][0], query.parameters.head_fusion)
    if query.parameters.toward == "to_class":
        if not graph.read:
            raise MethodNotApplicable(
                "toward: this model has no class token that patches could look at; use toward=from_class, the mean of all rows."
            )
        fused = fused.T
    return (graph.grid(graph.of_class(fused)),)


def attention_rollout(query: Query) -> tuple[Tensor, ...]:
    r"""Attention rollout: attention followed through all blocks, half of each block being its residual connection.

    .. math:: R = \tilde A_L \cdots \tilde A_1, \qquad \tilde A = \tfrac12 (\bar A + I), \text{ rows normalised}

    with :math:`\bar A` ``[T, T]`` the heads fused. Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928. `discard_ratio` sets
    that part of each fused matrix, its lowest entries, to zero first, but never column 0, as the common implementation does
    (jacobgil/vit-explain; there each column is divided by the sums of the rows, here each row is). Tells nothing about a class.
    """
    graph = query.network.attention
    seen = graph.look(query.image)
    fused = [fuse(matrix[0], query.parameters.head_fusion) for matrix in seen.matrices]
    rolled = rollout([discard(one, query.parameters.discard_ratio or 0.0, keep_first=bool(graph.read)) for one in fused])
    return (graph.grid(graph.of_class(rolled)),)


def chefer(query: Query) -> tuple[Tensor, ...]:
    r"""Gradient-weighted rollout, "generic attention explainability".

    .. math:: R \leftarrow R + \bar A R, \qquad \bar A = E_h [(\nabla A \odot A)^+], \qquad R_0 = I

    over the blocks in order, :math:`\nabla A` ``[heads, T, T]`` the gradient of the class's score. Chefer et al. 2021,
    https://arxiv.org/abs/2103.15679, equations 5 and 6 for self-attention. The map is the class token's row of :math:`R - I`.
    """
    graph = query.network.attention
    with torch.enable_grad():
        seen = graph.look(query.image)
        score = query.target.score(seen.logits).sum()
    gradients = torch.autograd.grad(score, seen.matrices)
    weighted = [(g[0] * a[0].detach()).clamp(min=0).mean(0) for a, g in zip(seen.matrices, gradients, strict=True)]
    relevance = torch.eye(weighted[0].shape[-1], device=weighted[0].device)
    for one in weighted:
        relevance = relevance + one @ relevance
    return (graph.grid(graph.of_class(relevance - torch.eye(len(relevance), device=relevance.device))),)


def legrad(query: Query) -> tuple[Tensor, ...]:
    r"""LeGrad: how the attention of each block would raise the class's score, were the network to end with that block.

    .. math:: E = \frac{1}{L} \sum_l \frac{1}{h T} \sum_{h, i} \left(\frac{\partial s^l}{\partial A^l_{h i \cdot}}\right)^+,
        \qquad s^l = f(\bar Z^l)_c

    :math:`\bar Z^l` is the mean of the tokens that block l hands on, f what comes behind the last block. Bousselham et al.
    2024,
    https://arxiv.org/abs/2404.03214. `block` is the first block of the sum: 0 for all, as in the paper; the authors' code
    takes the last two, -2.
    """
    graph, head = block_by_block(query.network)
    first = _block(graph, query.parameters)
    felt = []
    with torch.enable_grad():
        seen = graph.look(query.image)
        for matrix, stream in list(zip(seen.matrices, seen.streams, strict=True))[first:]:
            logits = head.head(stream.mean(dim=1, keepdim=True).expand_as(stream))[0]
            (gradient,) = torch.autograd.grad(query.target.score(logits).sum(), matrix, retain_graph=True)
            felt.append(gradient[0].clamp(min=0).mean(dim=(0, 1)))
    return (graph.grid(torch.stack(felt).mean(0)),)


def attention_of(network: SizedNetwork) -> AttentionGraph:
    """The network with its attention matrices.

    Raises:
        MethodNotApplicable: it has none that can be read.
    """
    return network.attention


def block_by_block(network: SizedNetwork) -> tuple[AttentionGraph, Split]:
    """The network's attention, and what comes behind its last block.

    Raises:
        MethodNotApplicable: there is none, or what the blocks hand on is not all that the classifier reads.
    """
    graph = network.attention
    if graph.head is None:
        raise MethodNotApplicable("method: what this model's blocks hand on cannot be scored block by block; use chefer.")
    return graph, graph.head


def fuse(heads: Tensor, how: str | None) -> Tensor:
    """Heads ``[heads, T, T]`` -> ``[T, T]``: their mean, maximum or minimum."""
    return heads.amax(0) if how == "max" else heads.amin(0) if how == "min" else heads.mean(0)


def discard(fused: Tensor, ratio: float, *, keep_first: bool) -> Tensor:
    """``[T, T]`` without its lowest entries, so many of them; those in the row of the first token toward itself stay."""
    flat = fused.flatten().clone()
    lowest = flat.topk(int(len(flat) * ratio), largest=False).indices
    flat[lowest[lowest != 0] if keep_first else lowest] = 0
    return flat.view_as(fused)


def rollout(fused: list[Tensor]) -> Tensor:
    """Fused attention ``[T, T]`` of each block, in order -> ``[T, T]``, rows summing to 1."""
    identity = torch.eye(fused[0].shape[-1], device=fused[0].device)
    rolled = identity
    for one in fused:
        mixed = (one + identity) / 2
        rolled = (mixed / mixed.sum(dim=-1, keepdim=True)) @ rolled
    return rolled


def _block(graph: AttentionGraph, parameters: MethodParameters) -> int:
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
        defaults=MethodParameters(block=0),
        explain=legrad,
        layered=False,
        fits=block_by_block,
    ),
)
