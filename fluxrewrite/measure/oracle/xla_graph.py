"""What XLA fuses of one graph, inside a process that has torch-xla: trace it lazily, compile it, read the optimised HLO.

The process has to be started with `environment(dump)`, since XLA reads its flags only once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ...errors import InputError, one_line
from ...fusion.groups import Fusion
from ...graph.fake_values import value_of
from ...graph.view import GraphView
from ...provider.custom_call import custom_call
from ...rewrite.kernel_calls import kernel_calls
from .hlo import parse
from .hlo_kernels import fusion_of

__all__ = ["custom_calls", "dump_folder", "environment", "optimised_hlo", "xla_fusion_of"]

_DUMP = re.compile(r"--xla_dump_to=(\S+)")
_AFTER = "*after_optimizations.txt"


def environment(dump: Path) -> dict[str, str]:
    """Environment variables that a process needs from its start.

    With them XLA runs on the CPU, puts the names of the graph's nodes into its HLO, writes it to `dump`, and compiles a graph every
    time, since it writes nothing for a graph in its cache.
    """
    # XLA refuses a custom call that has no implementation, but only after its optimisations. Other threads are then still compiling
    # the kernels of its fusion emitters and crash on freed memory. Without these emitters it raises an error; the HLO is the same.
    emitters = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text {emitters}"
    return {
        "PJRT_DEVICE": "CPU",
        "XLA_IR_DEBUG": "1",
        "XLA_HLO_DEBUG": "1",
        "XLA_FLAGS": flags,
        "XLA_COMPILATION_CACHE_SIZE": "0",
    }


def xla_fusion_of(gm: GraphModule, opaque: Collection[Any] | None = None, touched: bool = False) -> Fusion:
    """What XLA fuses of a graph traced by Dynamo.

    Args:
        gm: a graph whose placeholders carry fake values. It is only compiled: no parameter is allocated, nothing is computed.
        opaque: custom ops that become custom calls; when None, the kernel calls of the graph do.
        touched: as for `fusion_of`.

    Raises:
        InputError: torch-xla is missing, the process was started without `environment`, or XLA cannot trace the graph.
    """
    text = optimised_hlo(gm, opaque)
    import torch_xla

    return fusion_of(parse(text), f"xla {torch_xla.__version__} cpu", touched)


def dump_folder() -> Path:
    """The folder that XLA writes its HLO to in this process. Raises InputError without torch-xla or `environment`."""
    try:
        import torch_xla  # noqa: F401
    except ImportError as error:
        raise InputError(f"torch-xla cannot be imported ({error}); run: make xla") from error
    found = _DUMP.search(os.environ.get("XLA_FLAGS", ""))
    if found is None or os.environ.get("XLA_HLO_DEBUG") != "1":
        raise InputError(
            "this process was not started with fluxrewrite.measure.oracle.xla_graph.environment(...): XLA writes no HLO"
        )
    return Path(found[1])


def optimised_hlo(gm: GraphModule, opaque: Collection[Any] | None = None) -> str:
    """The optimised HLO of a graph as text; see `xla_fusion_of`."""
    dump = dump_folder()
    import torch_xla

    # Make numbers constants of the program, as other compilers see them; by default each is an input of its own.
    torch_xla._XLAC._set_xla_all_numbers_special_scalars(True)
    device = torch_xla.device()
    calls = custom_calls(gm, opaque)
    inputs = [_on_device(node, device) for node in gm.graph.find_nodes(op="placeholder")]
    before = set(dump.glob(_AFTER))
    with torch.no_grad():
        results = _OnXla(gm, device, calls).run(*inputs)
    tensors = [t for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise InputError("the graph returns no tensor: nothing to compile")
    refusal = _compile(tensors)
    written = sorted(set(dump.glob(_AFTER)) - before, key=lambda p: p.stat().st_size)
    if not written:
        raise InputError(f"XLA wrote no optimised HLO to {dump}: {refusal or 'the graph computes nothing'}")
    return written[-1].read_text()


def custom_calls(gm: GraphModule, opaque: Collection[Any] | None = None) -> frozenset[Node]:
    """The nodes that become custom calls; `opaque` as `xla_fusion_of` takes it."""
    if opaque is None:
        return kernel_calls(GraphView(gm.graph))
    return frozenset(n for n in gm.graph.nodes if n.op == "call_function" and n.target in opaque)


def _compile(tensors: list[torch.Tensor]) -> str:
    """Compile the pending computation of the tensors. Returns why XLA refused to run it, or ""."""
    import torch_xla

    try:
        torch_xla._XLAC._xla_warm_up_cache(tensors, [])
    except (RuntimeError, ValueError) as error:
        # Custom calls have no implementation here. XLA compiles and dumps the graph all the same, and refuses it afterwards.
        return one_line(error, named=False)
    return ""


def _on_device(node: Node, device: torch.device) -> Any:
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        return value
    if not all(isinstance(n, int) for n in value.shape):
        raise InputError(f"{node.name} has symbolic sizes {tuple(value.shape)}; trace without dynamic=True")
    from torch_xla.core import xla_builder

    return xla_builder.create_placeholder_tensor(tuple(value.shape), value.dtype)


class _OnXla(Interpreter):
    """Runs a graph node by node. What a node creates carries its name, and `calls` become custom calls."""

    def __init__(self, gm: GraphModule, device: torch.device, calls: Collection[Node]) -> None:
        super().__init__(gm)
        self._device, self._calls = device, calls

    def run_node(self, n: Node) -> Any:
        import torch_xla

        scope = torch_xla._XLAC.profiler.scope_pusher(n.name)
        try:
            if n in self._calls:
                return self._custom_call(n)
            return super().run_node(n)
        finally:
            del scope

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a node, with devices and constants of the graph replaced by XLA's."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        args, kwargs = torch.utils._pytree.tree_map(self._moved, (args, kwargs))
        return args, kwargs

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.device) or (isinstance(value, torch.Tensor) and value.device != self._device):
            return self._device if isinstance(value, torch.device) else value.to(self._device)
        return value

    def _custom_call(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return custom_call((args, kwargs), value_of(n), str(n.target))
