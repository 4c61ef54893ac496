"""What Inductor fuses of a Dynamo graph, read from Inductor's own schedule.

The graph passes through all of AOTAutograd, decompositions, Inductor's passes, lowering and scheduling. Only code generation is
left out, so no C++ is compiled and, with fake inputs, no tensor is allocated.

- The nodes of a group are the nodes of `gm` whose arithmetic its kernel runs, including those that other kernels compute too.
  Views (view, transpose, split, getitem, a reshape without a copy) compute nothing and are in no group; a reshape, contiguous or
  cat that moves data is in the group that moves it. To find the real producer of an edge, skip views.
- A node that Inductor drops (an identity, a cast to the same dtype, a value that is computed elsewhere) is in no group.
- A node computed from a symbolic float is in no group, because torch creates it again without its metadata.
- A copy that only changes the layout for a library call or a kernel of this project is a group of its own, of kind "copy". It has
  no nodes unless it does something else as well.
- A group is one node of the schedule: loops that pass values to each other without memory, apart from one number per row that a
  reduction may store. (The C++ backend then puts several consecutive groups into one function.)
- Reads and writes count each element of a buffer once, and only the part of the buffer that is accessed. Buffers that only the
  kernel itself uses do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._inductor import compile_fx, config
from torch._inductor.debug import DebugContext
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.utils import shape_env_from_inputs
from torch._inductor.virtualized import V
from torch.fx import Graph, GraphModule
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import _disable_current_modes

from ...errors import InputError, one_line
from ...fusion import Fusion, Group
from .inductor_kernels import groups
from .inductor_lowering import MarkedLowering
from .node_names import Names

__all__ = ["inductor_fusion"]

_OLDEST = "2.13"  # Inductor's internals change between versions


def inductor_fusion(gm: GraphModule, example_inputs: Sequence[Any]) -> Fusion:
    """Compile `gm` for inference on the CPU up to Inductor's schedule, and read the kernels from it.

    The docstring of this module defines groups, their nodes and their bytes.

    Args:
        gm: a Dynamo graph, rewritten or not. It is left unchanged.
        example_inputs: a tensor for each placeholder, fake or real. For symbolic sizes, bytes are those of the hints.

    Raises:
        InputError: an older torch, the wrong number of inputs, an input on another device, or a graph that Inductor cannot
            compile.
    """
    _check(gm, example_inputs)
    scheduled: list[MarkedLowering] = []

    def inner(post: GraphModule, inputs: Sequence[Any], **given: Any) -> Callable[..., Any]:
        scheduled.append(_schedule(post, inputs, given["get_decomp_fn"]))
        return post.forward

    names = Names(gm)
    with _alone(), _before_passes(names.see_before):
        try:
            compile_fx.compile_fx(names.named, list(example_inputs), inner_compile=cast(Any, inner))
        except TensorifyScalarRestartAnalysis as error:
            raise InputError(
                "Inductor needs this graph traced again with fixed float sizes; trace it with static sizes"
            ) from error
        except Exception as error:
            raise InputError(f"Inductor cannot compile this graph: {one_line(error)}") from error
        found = [group for lowering in scheduled for group in _read(lowering, names)]
    return Fusion(f"inductor {torch.__version__.partition('+')[0]} cpu", tuple(found))


def _read(lowering: MarkedLowering, names: Names) -> list[Group]:
    names.see_after(lowering.graph)
    with V.set_graph_handler(lowering):
        return list(groups(lowering, names.of))


def _check(gm: GraphModule, example_inputs: Sequence[Any]) -> None:
    if TorchVersion(torch.__version__) < _OLDEST:
        raise InputError(
            f"torch {torch.__version__}: reading Inductor's schedule needs {_OLDEST} or later; upgrade torch"
        )
    expected = len(gm.graph.find_nodes(op="placeholder"))
    if len(example_inputs) != expected:
        raise InputError(f"example_inputs: {len(example_inputs)} given, the graph has {expected} placeholders")
    for i, value in enumerate(example_inputs):
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            raise InputError(f"example_inputs[{i}] is on {value.device}; give tensors on the CPU")


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of `torch.compile`, because tracing keeps metadata of nodes in globals, and disable caches.

    Freezing and autotuning use real tensors, so they are off, as they are by default.
    """
    settings = {
        "force_disable_caches": True,
        "freezing": False,
        "max_autotune": False,
        "max_autotune_gemm": False,
        "cpp_wrapper": False,
    }
    with compile_lock, torch.no_grad(), config.patch(settings):
        yield


@contextmanager
def _before_passes(see: Callable[[Graph], None]) -> Iterator[None]:
    """Call `see` with the decomposed graph, before any custom passes of the user that Inductor runs at this point."""
    from torch._inductor.custom_graph_pass import get_custom_graph_passes  # not in torch 2.9, which `_check` refuses

    with config.patch(joint_custom_pre_pass=[see, *get_custom_graph_passes(config.joint_custom_pre_pass)]):
        yield


def _schedule(post: GraphModule, inputs: Sequence[Any], get_decomp_fn: Any) -> MarkedLowering:
    """The steps of Inductor's `codegen_and_compile` up to the schedule."""
    with _disable_current_modes(), DebugContext():
        view_to_reshape(post)
        fake_mode = compile_fx.fake_tensor_prop(post, inputs)
        compile_fx._recursive_record_original_output_strides(post)
        with V.set_fake_mode(fake_mode):
            compile_fx._recursive_post_grad_passes(post, is_inference=True)
        with V.set_fake_mode(fake_mode), compile_fx.maybe_disable_comprehensive_padding(inputs):
            shape_env = post.shape_env or shape_env_from_inputs(inputs)
            lowering = MarkedLowering(
                post, example_inputs=inputs, shape_env=shape_env, is_inference=True, get_decomp_fn=get_decomp_fn
            )
            lowering.freeze_runtime_asserts()
            with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
                lowering.run(*inputs)
                lowering.init_wrapper_code()
                lowering._update_scheduler()
    return lowering
