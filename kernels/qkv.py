"""Query, key and value projections of one activation, and other rows packed with them, as products that read `x` once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxrewrite.kernel import Kernel, Limit
from fluxrewrite.provider import launch

__all__ = ["KERNEL", "Piece", "pieces_of", "qkv"]

Piece = tuple[Tensor, Tensor | None, int, int]
"""A weight, its bias, the first row and the number of rows of one result."""


@torch.library.custom_op("fluxrewrite::qkv", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    pieces: Sequence[int],
    execution: str = "reference",
    provider: str = "builtin",
) -> list[Tensor]:
    """`x @ weight[rows].T + bias[rows]` for query, key and value, then for other rows of the same weights.

    Args:
        x: [..., H], any strides.
        weights: [N, H] each, whole, as in `torch.nn.Linear`; listed once each, even where several results use one.
        biases: [N] or None for each weight.
        pieces: three numbers for each result: index of the weight, first row, rows. Query, key and value come first, or two of
            them, then other rows of the weights; the widths may all differ.
        execution, provider: what runs, as `fluxrewrite.provider.launch` takes them.

    Returns:
        For each piece a contiguous tensor [..., rows] of the dtype of `x`.

    Raises ValueError for shapes that do not fit and pieces outside their weight.
    """
    found = pieces_of(x, weights, biases, pieces)
    if execution != "reference":
        result: list[Tensor] = launch("qkv", provider, execution, x, weights, biases, pieces)
        return result
    # A product for each piece: slices of one product per weight would need a copy each to be contiguous.
    return [F.linear(x, w[i : i + n], None if b is None else b[i : i + n]).contiguous() for w, b, i, n in found]


@qkv.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    pieces: Sequence[int],
    execution: str = "reference",
    provider: str = "builtin",
) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], rows)) for *_, rows in pieces_of(x, weights, biases, pieces)]


def pieces_of(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], pieces: Sequence[int]
) -> list[Piece]:
    """The arguments of the op as one `Piece` for each result. Raises ValueError as the op does."""
    if len(biases) != len(weights):
        raise ValueError(f"{len(biases)} biases for {len(weights)} weights; give None for a weight without one")
    for weight, bias in zip(weights, biases, strict=True):
        if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
            raise ValueError(f"weight {tuple(weight.shape)} for x {tuple(x.shape)}")
        if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
            raise ValueError(f"bias {tuple(bias.shape)} for weight {tuple(weight.shape)}")
    if len(pieces) % 3 or len(pieces) < 6:
        raise ValueError(f"{len(pieces)} numbers in pieces; give weight, first row and rows of two results or more")
    return list(_pieces(weights, biases, pieces))


def _pieces(weights: Sequence[Tensor], biases: Sequence[Tensor | None], pieces: Sequence[int]) -> Iterator[Piece]:
    for at in range(0, len(pieces), 3):
        index, start, rows = pieces[at : at + 3]
        if not 0 <= index < len(weights):
            raise ValueError(f"piece {at // 3} is of weight {index}; there are {len(weights)}")
        if start < 0 or rows < 1 or start + rows > weights[index].shape[0]:
            raise ValueError(
                f"piece {at // 3} is rows {start} to {start + rows} of weight {tuple(weights[index].shape)}"
            )
        yield weights[index], biases[index], start, rows


KERNEL = Kernel(
    name="qkv",
    op=torch.ops.fluxrewrite.qkv.default,
    limits=(Limit("dtype", one_of=("float32", "bfloat16", "float16")),),
    summary="query, key and value projections, and other rows of a packed weight, in one pass over the activation; "
    "optional biases; unequal widths (GQA)",
)
