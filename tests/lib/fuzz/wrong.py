"""What makes a program close but wrong: it computes something else, and looks almost as before.

Whether a rewrite is wrong is told by numbers alone: with another scale it is attention still. `NEVER` names the changes after which
one site less must be found, whatever the numbers say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fluxrewrite.graph.op_table import read

from .edit import Draft, Draw, Unfit
from .mutations import MUTATIONS

__all__ = ["NEVER", "WRONG"]

aten = torch.ops.aten


def _instead(draft: Draft, node: Node, new: Node) -> None:
    draft.replace(node, new)


def sign_dropped(draft: Draft, draw: Draw) -> None:
    node = draw.one(draft.having("neg"))
    _instead(draft, node, read(node).args["input"])


def sign_moved(draft: Draft, draw: Draw) -> None:
    """The first half negated in the place of the second."""
    node = draw.one(draft.having("cat", "stack"))
    first, second = _two(read(node).args["tensors"])
    call = draft.before(node)
    if read(first).op != "neg":
        raise Unfit("no half is negated")
    draft.change(node, ([read(first).args["input"], call("neg", second)], read(node).args.get("dim", 0)), {})


def _two(tensors: Any) -> tuple[Node, Node]:
    if len(tensors) != 2:
        raise Unfit("not two tensors")
    return tensors[0], tensors[1]


def sums_exchanged(draft: Draft, draw: Draw) -> None:
    """A difference for a sum, or a sum for a difference."""
    node = draw.one([n for n in draft.having("add", "sub") if len(n.args) == 2])
    draft.change(node, node.args, {}, torch.sub if read(node).op == "add" else torch.add)


def pairs_exchanged(draft: Draft, draw: Draw) -> None:
    """Two halves put together in the other order."""
    node = draw.one(draft.having("cat", "stack"))
    first, second = _two(read(node).args["tensors"])
    draft.change(node, ([second, first], read(node).args.get("dim", 0)), {})


def pieces_exchanged(draft: Draft, draw: Draw) -> None:
    """Another piece of a chunk, split or unbind."""
    items = [n for n in draft.having("getitem") if isinstance(read(n).args.get("index"), int)]
    node = draw.one(items)
    draft.change(node, (node.args[0], draw.one([i for i in range(3) if i != node.args[1]])))


def cut_otherwise(draft: Draft, draw: Draw) -> None:
    """Neighbours where halves are taken, or halves where neighbours are."""
    node = draw.one(
        [n for n in draft.having("getitem") if isinstance(n.args[1], tuple) and isinstance(n.args[1][-1], slice)]
    )
    size = draft.shape(node.args[0])[-1]
    options = [
        slice(0, None, 2),
        slice(1, None, 2),
        slice(0, size // 2),
        slice(size // 2, None),
        slice(1, size // 2 + 1),
    ]
    draft.change(node, (node.args[0], (*node.args[1][:-1], draw.one(options))))  # type: ignore[index]


def joined_otherwise(draft: Draft, draw: Draw) -> None:
    """Pairs put together as neighbours where they are halves, or the other way round."""
    node = draw.one(draft.having("stack", "cat"))
    first, second = _two(read(node).args["tensors"])
    call = draft.before(node)
    if read(node).op == "cat":
        _instead(draft, node, call("flatten", call(torch.stack, [first, second], -1), -2))
    else:
        whole = call(torch.stack, [first, second], -2)
        shape = draft.shape(node)
        _instead(draft, node, call("reshape", whole, *shape))


def tables_exchanged(draft: Draft, draw: Draw) -> None:
    """cos for sin in one place or in all."""
    node = draw.one([n for n in draft.tensors() if n.name.startswith(("cos", "sin")) and n.users])
    other = draw.one([n for n in draft.tensors() if n.name.startswith(("cos", "sin")) and _alike(draft, n, node)])
    order = draft.order()
    users = [u for u in node.users if order[u] > order[other]]
    draft.replace(node, other, users if draw.coin() else [draw.one(users)])


def _alike(draft: Draft, a: Node, b: Node) -> bool:
    one, two = draft.tensor(a), draft.tensor(b)
    return a is not b and one is not None and two is not None and (one.shape, one.dtype) == (two.shape, two.dtype)


def scale_changed(draft: Draft, draw: Draw) -> None:
    node = draw.one(draft.having("sdpa", "mul", "div", "baddbmm"))
    if read(node).op == "sdpa":
        draft.change(node, node.args, {**node.kwargs, "scale": draw.one([0.1, 1.0, -0.5])})
    else:
        number = draw.one([i for i, a in enumerate(node.args) if isinstance(a, float)])
        draft.change(node, (*node.args[:number], draw.one([0.1, 2.0, -0.5]), *node.args[number + 1 :]))


def scale_on_values(draft: Draft, draw: Draw) -> None:
    """A factor on probabilities, values or the second half of pairs."""
    node = draw.one(draft.having("softmax", "sdpa", "getitem", "neg", "cat", "stack", "rms_norm", "linear"))
    if draft.tensor(node) is None:
        raise Unfit("no tensor")
    users = list(node.users)
    draft.replace(node, draft.after(node)("mul", node, 1.5), users if draw.coin() else [draw.one(users)])


def eps_changed(draft: Draft, draw: Draw) -> None:
    node = draw.one(draft.having("rms_norm"))
    draft.change(node, (*node.args[:3], draw.one([1e-2, 0.1])), {})


def gains_exchanged(draft: Draft, draw: Draw) -> None:
    node, other = (draw.one(draft.having("rms_norm")) for _ in range(2))
    draft.change(node, (*node.args[:2], draw.one([None, read(other).args["weight"]]), *node.args[3:]), {})


def norm_moved(draft: Draft, draw: Draw) -> None:
    """Another norm in the place of an RMS norm: one that takes the mean away, or one over another axis."""
    node = draw.one(draft.having("rms_norm"))
    x, size, gain = (read(node).args[n] for n in ("input", "normalized_shape", "weight"))
    call = draft.before(node)
    if draw.coin():
        _instead(draft, node, call(F.layer_norm, x, size, gain))
    else:
        turned = call("transpose", x, -1, -2)
        normed = call(F.rms_norm, turned, (draft.shape(turned)[-1],), None, 1e-6)
        _instead(draft, node, call("mul", call("transpose", normed, -1, -2), gain))


def softmax_axis(draft: Draft, draw: Draw) -> None:
    node = draw.one(draft.having("softmax"))
    dim = draw.one([-2, 1, -3])
    draft.change(node, (read(node).args["input"],), {"dim": dim, "dtype": read(node).args.get("dtype")}, F.softmax)


def softmax_other(draft: Draft, draw: Draw) -> None:
    node = draw.one(draft.having("softmax"))
    x, dtype = read(node).args["input"], read(node).args.get("dtype")
    call = draft.before(node)
    wide = x if dtype is None else call("to", x, dtype)
    new = draw.one(
        [lambda: call(torch.sigmoid, wide), lambda: call(F.log_softmax, wide, -1), lambda: call(torch.exp, wide)]
    )
    _instead(draft, node, new())


def mask_dropped(draft: Draft, draw: Draw) -> None:
    node = draw.one([*draft.having("masked_fill", "where"), *_masks(draft), *draft.having("sdpa")])
    if read(node).op == "sdpa":
        if read(node).args.get("attn_mask") is None:
            raise Unfit("there is no mask")
        draft.change(node, node.args[:3], {k: v for k, v in node.kwargs.items() if k != "attn_mask"})
    else:
        _instead(draft, node, read(node).args["input"])


def _masks(draft: Draft) -> list[Node]:
    added = ((n, read(n).args.get("other")) for n in draft.having("add"))
    return [n for n, other in added if isinstance(other, Node) and other.name.startswith("mask")]


def mask_after(draft: Draft, draw: Draw) -> None:
    """The mask on the probabilities, or on the scores before their factor."""
    mask = next((n for n in draft.inputs if n.name.startswith(("mask", "keep"))), None)
    softmax, products = draft.having("softmax"), draft.having("mul", "div", "matmul")
    at = draw.one([*softmax, *[p for p in products if draft.shape(p)[-1:] == draft.shape(mask)[-1:]]])
    order = draft.order()
    users = list(at.users)
    if mask is None or order[at] < order[mask]:
        raise Unfit("there is no mask")
    call = draft.after(at)
    new = call("masked_fill", at, mask, -1.0) if draft.tensor(mask).dtype == torch.bool else call("add", at, mask)  # type: ignore[union-attr]
    draft.replace(at, new, users)


def mask_inverted(draft: Draft, draw: Draw) -> None:
    mask = draw.one([n for n in draft.inputs if n.name.startswith(("mask", "keep")) and n.users])
    users, call = list(mask.users), draft.after(mask)
    boolean = draft.tensor(mask).dtype == torch.bool  # type: ignore[union-attr]
    options = ["logical_not"] if boolean else ["exp", "neg", "tanh"]
    turned = call(draw.one(options), mask)
    draft.replace(mask, call("transpose", turned, -1, -2) if draw.coin() else turned, users)


def fill_changed(draft: Draft, draw: Draw) -> None:
    node = draw.one(draft.having("masked_fill", "where"))
    draft.change(node, (*node.args[:2], draw.one([0.0, -1.0, 5.0])))


def operand_turned(draft: Draft, draw: Draw) -> None:
    """A transpose left out, or of other axes, where the sizes let it be."""
    node = draw.one([*draft.having("transpose", "permute", "getattr")])
    source = read(node).args["input"]
    if draw.coin():
        _instead(draft, node, source)
        return
    axes = draw.shuffled(range(len(draft.shape(source))))
    _instead(draft, node, draft.before(node)("permute", source, *axes))


def roles_exchanged(draft: Draft, draw: Draw) -> None:
    """Query, key and value in other roles, or one tensor in two."""
    node = draw.one(draft.having("sdpa"))
    q, k, v = (read(node).args[n] for n in ("query", "key", "value"))
    roles = draw.one([(q, v, k), (k, q, v), (q, k, k), (q, q, v), (v, k, q), (q, k, q)])
    draft.change(
        node, (*roles, *node.args[3:]), {k: v for k, v in node.kwargs.items() if k not in ("query", "key", "value")}
    )


def heads_mixed(draft: Draft, draw: Draw) -> None:
    """A reshape that puts the axes in another order."""
    node = draw.one([n for n in draft.having("reshape") if len(draft.shape(n)) > 2])
    shape = draft.shape(node)
    a = draw.one(range(1, len(shape)))
    b = draw.one([i for i in range(1, len(shape)) if i != a])
    turned = list(shape)
    turned[a], turned[b] = turned[b], turned[a]
    call = draft.before(node)
    _instead(draft, node, call("transpose", call("reshape", read(node).args["input"], *turned), a, b))


SPOKEN: Mapping[str, Callable[[Draft, Draw], None]] = {
    "sign dropped": sign_dropped,
    "sign moved": sign_moved,
    "sum for difference": sums_exchanged,
    "pair order": pairs_exchanged,
    "another piece": pieces_exchanged,
    "cut otherwise": cut_otherwise,
    "joined otherwise": joined_otherwise,
    "cos and sin exchanged": tables_exchanged,
    "scale changed": scale_changed,
    "scale elsewhere": scale_on_values,
    "eps changed": eps_changed,
    "gains exchanged": gains_exchanged,
    "another norm": norm_moved,
    "softmax over another axis": softmax_axis,
    "no softmax": softmax_other,
    "mask dropped": mask_dropped,
    "mask elsewhere": mask_after,
    "mask changed": mask_inverted,
    "fill changed": fill_changed,
    "operand turned": operand_turned,
    "roles exchanged": roles_exchanged,
    "heads mixed": heads_mixed,
}
WRONG: Mapping[str, Callable[[Draft, Draw], None]] = {**SPOKEN, **MUTATIONS}
NEVER: Mapping[str, str] = {
    "sign dropped": "rope",
    "softmax over another axis": "attention",
    "no softmax": "attention",
    "fill changed": "attention",
    "another norm": "norm_rope_attention",
}
"""The kind of which one site less must be found."""
