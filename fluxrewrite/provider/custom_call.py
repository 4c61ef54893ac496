"""A canonical op as the custom call of HLO that stands for a NKI kernel: compiled by XLA, run by none but Neuron's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from ..errors import InputError

__all__ = ["TARGET", "custom_call", "custom_call_of"]

TARGET = "AwsNeuronCustomNativeKernel"
"""Target of the custom call that stands for a NKI kernel in the HLO that neuronx-cc takes (framework_custom_op.rst, SDK 2.32)."""


def custom_call_of(op: Any, arguments: Sequence[Any]) -> Any:
    """Lazy XLA tensors of the shapes and dtypes of `op(*arguments)`, by one custom call; nothing stands behind it.

    Raises InputError for tensors that are not XLA's.
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
    """One custom call on the tensors among `arguments`, in order, with results like the fake or meta tensors `results`."""
    import torch_xla

    operands = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    like, spec = tree_flatten(results)
    shapes, dtypes = [list(t.shape) for t in like], [t.dtype for t in like]
    options: Mapping[str, str] = {}
    made = torch_xla._XLAC._xla_custom_call(operands, TARGET, shapes, dtypes, False, name, 1, options)
    return tree_unflatten(made, spec)
