"""The dynamo backend "neuron": AOTAutograd, checks of what StableHLO and neuronx-cc take, an executor with its eager rerun."""

import os
import warnings

import torch
from torch._dynamo.backends.common import aot_autograd
from torch.fx import Interpreter
from torch.utils._pytree import tree_leaves

from .hop import nki_kernel_wrapper, refuse_strided

graphs = []
_KNOWN = ("aten", "prims", "_operator")


def neuron_backend(gm, example_inputs, *, options=None, mode="default"):
    """Compile a Dynamo graph; `options` is a dict (`model_name`) or None."""
    if options is not None and not isinstance(options, dict):
        raise TypeError(f"options {options!r}: a dict or None")
    if mode != "default":
        warnings.warn(f"mode {mode!r} is not supported by the neuron backend; the default is used", stacklevel=2)
    for value in example_inputs:
        if isinstance(value, torch.SymInt) or any(isinstance(n, torch.SymInt) for n in getattr(value, "shape", ())):
            raise RuntimeError("dynamic shapes are not supported by the neuron backend; compile with dynamic=False")
    compiled = aot_autograd(fw_compiler=_compile, keep_inference_input_mutations=True)(gm, example_inputs)

    def run(*args):
        try:
            return compiled(*args)
        except Exception:
            if os.environ.get("TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION") == "1":
                raise
            return gm.forward(*args)

    return run


def _compile(gm, example_inputs):
    """One graph, which would be one NEFF. What has no lowering to StableHLO is refused."""
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target is nki_kernel_wrapper:
            continue
        if getattr(node.target, "namespace", getattr(node.target, "__module__", "")) not in _KNOWN:
            raise NotImplementedError(f"no lowering to StableHLO for {node.target}")
    graphs.append(gm)
    return _Executor(gm).run


class _Executor(Interpreter):
    """Runs the graph; a kernel call takes what its operands really are."""

    def run_node(self, n):
        if n.target is nki_kernel_wrapper:
            _, kwargs = self.fetch_args_kwargs_from_env(n)
            refuse_strided([t for t in tree_leaves(kwargs["args"]) if isinstance(t, torch.Tensor)])
        return super().run_node(n)
