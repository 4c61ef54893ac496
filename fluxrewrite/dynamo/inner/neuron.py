"""TorchNeuron. Every call of a canonical op becomes a call of an op made by `torch_neuronx.nki_op`.

TorchNeuron's compiler knows aten ops and its own `nki_kernel_wrapper`, not custom ops. AOTAutograd traces into an op of `nki_op`,
so the compiler sees the adapter's views and copies and the kernel call itself as nodes of their own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ...errors import InputError
from ...graph.modules import copied, module_with
from ...kernel import load_kernels
from ...provider.neuron_device import NeuronDevice, native, runtime_lnc
from ...provider.registry import launch
from .record import InnerAdapter, InnerBackend

__all__ = ["BACKEND", "NO_FALLBACK", "WARNING", "check", "eager_fallback", "lowered", "neuron_op"]

NO_FALLBACK = "TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION"
"""Set to 1, TorchNeuron raises where it would otherwise rerun a graph eagerly without saying so."""

WARNING = (
    f"{NO_FALLBACK}=1 is not set: where a graph fails on the device, TorchNeuron runs it eagerly without a word, and "
    "times and outputs are then not those of the kernels; set it before the process starts"
)

_TYPES = {
    "Tensor": Tensor,
    "Optional[Tensor]": Tensor | None,
    "List[Tensor]": Sequence[Tensor],
    "List[Optional[Tensor]]": Sequence[Tensor | None],
    "bool": bool,
    "int": int,
    "SymInt": int,
    "float": float,
    "str": str,
    "Optional[float]": float | None,
    "Optional[int]": int | None,
    "Optional[ScalarType]": torch.dtype | None,
    "List[int]": Sequence[int],
    "List[SymInt]": Sequence[int],
    "List[float]": Sequence[float],
}
"""Types of a schema as the annotations that `torch.library.infer_schema` turns back into them."""


def check(execution: str) -> None:
    """Raise InputError unless TorchNeuron is installed and can compile ops of that execution."""
    if execution != "device":
        raise InputError(
            f"inner='neuron' with execution={execution!r}: TorchNeuron compiles NKI kernels only; leave execution out, or "
            "compile without kernels: policy='none'"
        )
    if not native():
        raise InputError(
            "inner='neuron' needs TorchNeuron: the torch_neuronx installed here has no wrap_nki, as that of the XLA stack; "
            "inner='openxla' is for that one"
        )


def eager_fallback(environment: Mapping[str, str] | None = None) -> bool:
    """Whether TorchNeuron may silently rerun a graph eagerly in this process when its execution fails."""
    return (os.environ if environment is None else environment).get(NO_FALLBACK) != "1"


def lowered(gm: GraphModule, lnc: int) -> GraphModule:
    """A copy of `gm` with calls of canonical ops on a device replaced by calls of ops that TorchNeuron traces into.

    A graph without such calls is returned as it is. Raises InputError as `neuron_op` does.
    """
    names = {op: name for name, k in load_kernels().items() for op in (k.op, k.op.overloadpacket)}
    graph = copied(gm)
    changed = False
    for node in graph.nodes:
        if node.op == "call_function" and node.target in names:
            name = names[node.target]
            given = dict(zip(_argument_names(name), node.args, strict=False)) | node.kwargs
            if given.pop("execution", None) == "device":
                node.target = neuron_op(name, given.pop("provider", "builtin"), lnc)
                node.args, node.kwargs = (), given
                changed = True
    return module_with(gm, graph) if changed else gm


def _argument_names(kernel: str) -> list[str]:
    return [a.name for a in load_kernels((kernel,))[kernel].op._schema.arguments]


@functools.cache
def neuron_op(kernel: str, provider: str, lnc: int) -> Callable[..., Any]:
    """The op `fluxrewrite_neuron::KERNEL_PROVIDER_lncN` that runs a provider's kernel on `lnc` physical cores.

    It takes the arguments of the canonical op without `execution` and `provider`. Shapes come from the fake implementation of the
    canonical op, not from the NKI front end, so a graph can be analysed where kernels cannot be traced.

    Raises InputError for an argument of a type that a custom op of torch cannot take.
    """
    canonical = load_kernels((kernel,))[kernel].op
    device = NeuronDevice(lnc)
    signature = _signature(canonical)

    def on_device(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return launch(kernel, provider, device, *given.args)

    vars(on_device).update(__signature__=signature, __name__=kernel, __doc__=f"{kernel} of {provider}, LNC{lnc}.")
    on_device.__annotations__ = {n: p.annotation for n, p in signature.parameters.items()}
    on_device.__annotations__["return"] = signature.return_annotation
    plain = "".join(c if c.isalnum() else "_" for c in provider)
    name = f"fluxrewrite_neuron::{kernel}_{plain}_lnc{lnc}"
    importlib.import_module("torch_neuronx").nki_op(name, on_device, mutates_args={})
    torch.library.register_fake(name, lambda *args, **kwargs: canonical(*args, **kwargs), allow_override=True)
    namespace, _, short = name.partition("::")
    op: Callable[..., Any] = getattr(getattr(torch.ops, namespace), short).default
    return op


def _signature(op: Any) -> inspect.Signature:
    """The signature of an op without the arguments that choose what it runs."""
    parameters = []
    for argument in op._schema.arguments:
        if argument.name in ("execution", "provider"):
            continue
        kind = _TYPES.get(str(argument.real_type))
        if kind is None:
            raise InputError(
                f"{op}: argument {argument.name} of type {argument.real_type} cannot be passed to a Neuron device"
            )
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        parameters.append(
            inspect.Parameter(argument.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
        )
    returned = [str(r.type) for r in op._schema.returns]
    result: Any = list[Tensor] if returned == ["List[Tensor]"] else tuple[(Tensor,) * len(returned)]  # type: ignore[misc]
    return inspect.Signature(parameters, return_annotation=Tensor if returned == ["Tensor"] else result)


def _adapter(execution: str, lnc: int | None) -> InnerAdapter:
    check(execution)

    def cores() -> int:
        return lnc or runtime_lnc()  # read at every compile: the setting may come after the backend is made

    return InnerAdapter(
        ready=lambda gm: lowered(gm, cores()),
        eager_fallback=eager_fallback,
        fallback_warning=WARNING,
        cache_key=lambda: (f"lnc {cores()}",),
    )


BACKEND = InnerBackend(
    profile="trn2",
    accelerator="neuron",
    default_execution=lambda: "device",
    takes_lnc=True,
    adapter=_adapter,
    caches={"TORCH_NEURONX_NEFF_CACHE_DIR": "neff", "NKI_COMPILE_CACHE_URL": "nki"},
)
