"""A canonical op as HLO's custom call of a NKI kernel: every XLA compiles it, only Neuron's can run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from ..errors import InputError

__all__ = ["TARGET", "custom_call", "custom_call_of"]

TARGET = "AwsNeuronCustomNativeKernel"
"""Target of the custom calls that are NKI kernels in the HLO that neuronx-cc compiles (framework_custom_op.rst, SDK 2.32)."""


def custom_call_of(op: Any, arguments: Sequence[Any]) -> Any:
    """Lazy XLA tensors with the shapes and dtypes of `op(*arguments)`, made by one custom call without a kernel behind it.

    Raises InputError for tensors that are not on XLA's device.
    """
    elsewhere = {t.device.type for t in tree_leaves(list(arguments)) if isinstance(t, torch.Tensor)} - {"xla"}
    if elsewhere:
        raise InputError(
            f"execution='custom_call' of {op} takes XLA tensors, not those on {', '.join(sorted(elsewhere))}; "
            "compile with inner='openxla' and move the model there"
        )
    shapes = tree_map_only(torch.Tensor, lambda t: torch.empty_like(t, device="meta"), list(arguments))
    return custom_call(arguments, op(*shapes), str(op))


def custom_call(arguments: Any, results: Any, name: str) -> Any:
    """One custom call on the tensors in `arguments`, in order; its results have the shapes and dtypes of `results`, which are fake
    or meta tensors."""
    import torch_xla

    operands = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    like, spec = tree_flatten(results)
    shapes, dtypes = [list(t.shape) for t in like], [t.dtype for t in like]
    options: Mapping[str, str] = {}
    made = torch_xla._XLAC._xla_custom_call(operands, TARGET, shapes, dtypes, False, name, 1, options)
    return tree_unflatten(made, spec)
