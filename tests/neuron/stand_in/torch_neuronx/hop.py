"""`nki_kernel_wrapper`: the node that a kernel call is in a graph. All operands are keywords, tensors apart from constants."""

import contextlib
from collections import Counter

import torch
from fluxrewrite.kernels import emulator
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, disable_proxy_modes_tracing, track_tensor_tree
from torch.utils._pytree import tree_map, tree_map_only

calls = Counter()
kernels = []  # by kernel_idx
constants = {}  # by constant_args_key


class NkiKernelWrapper(HigherOrderOperator):
    def __init__(self):
        super().__init__("nki_kernel_wrapper", cacheable=True)

    def __call__(self, *, kernel_idx, grid, backend_config, operand_output_aliases, args, arg_names, constant_args_key):
        return super().__call__(
            kernel_idx=kernel_idx,
            grid=grid,
            backend_config=backend_config,
            operand_output_aliases=operand_output_aliases,
            args=args,
            arg_names=arg_names,
            constant_args_key=constant_args_key,
        )


nki_kernel_wrapper = NkiKernelWrapper()
for key in ("AutogradCPU", "AutogradOther", "AutogradFunctionality", "AutocastCPU", "ADInplaceOrView", "BackendSelect"):
    nki_kernel_wrapper.fallthrough(getattr(DispatchKey, key))
for key in ("PythonDispatcher", "PythonTLSSnapshot"):
    nki_kernel_wrapper.fallthrough(getattr(DispatchKey, key))

_closed = []


@contextlib.contextmanager
def front_end(there):
    """Have the NKI front end, which traces kernels for their output shapes, missing for the duration if not `there`."""
    _closed.append(not there)
    try:
        yield
    finally:
        _closed.pop()


def refuse_strided(args):
    for tensor in args:
        if not tensor.is_contiguous():
            raise RuntimeError(
                f"Cannot process non-contiguous tensors: shape {tuple(tensor.shape)}, strides {tensor.stride()}"
            )


def _simulated(kernel_idx, grid, args, arg_names, constant_args_key, numerics):
    kernel = kernels[kernel_idx]
    run = emulator.simulate(kernel, "trn2", lnc=grid[0], numerics=numerics, trace=False)
    return kernel, run(**dict(zip(arg_names, args, strict=True)), **constants[constant_args_key]).outputs


@nki_kernel_wrapper.py_impl(DispatchKey.CompositeExplicitAutograd)
def _execute(*, kernel_idx, grid, backend_config, operand_output_aliases, args, arg_names, constant_args_key):
    refuse_strided(args)
    kernel, outputs = _simulated(kernel_idx, grid, args, arg_names, constant_args_key, True)
    calls[kernel.fn.__name__] += 1
    return outputs


@nki_kernel_wrapper.py_impl(FakeTensorMode)
def _shapes(mode, *, kernel_idx, grid, backend_config, operand_output_aliases, args, arg_names, constant_args_key):
    """Shapes from tracing the kernel without numbers."""
    if any(_closed):
        raise ImportError("the NKI front end is not there, and output shapes come from tracing the kernel")
    _, outputs = _simulated(kernel_idx, grid, args, arg_names, constant_args_key, False)
    with mode:
        return tree_map_only(
            torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device=args[0].device), outputs
        )


@nki_kernel_wrapper.py_impl(ProxyTorchDispatchMode)
def _traced(mode, **given):
    with disable_proxy_modes_tracing():
        outputs = nki_kernel_wrapper(**given)
    proxies = tree_map(mode.tracer.unwrap_proxy, given)
    name = f"{kernels[given['kernel_idx']].fn.__name__}_proxy"
    proxy = mode.tracer.create_proxy("call_function", nki_kernel_wrapper, (), proxies, name=name)
    return track_tensor_tree(outputs, proxy, constant=None, tracer=mode.tracer)


@nki_kernel_wrapper.py_functionalize_impl
def _functional(ctx, **given):
    args = ctx.unwrap_tensors(given["args"])
    with ctx.redispatch_to_next():
        return ctx.wrap_tensors(nki_kernel_wrapper(**{**given, "args": args}))
