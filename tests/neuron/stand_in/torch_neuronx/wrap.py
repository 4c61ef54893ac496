"""`wrap_nki` and `nki_op`: kernels called on tensors, and custom ops that compile as the kernel calls they are made of."""

import inspect
import math
import os

import torch
from fluxrewrite.kernels import emulator
from torch._subclasses.functional_tensor import FunctionalTensorMode

from .hop import constants, kernels, nki_kernel_wrapper, refuse_strided

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def _lnc():
    return int(os.environ.get("NEURON_LOGICAL_NC_CONFIG", "2"))


def wrap_nki(kernel):
    if not isinstance(kernel, emulator.EmulatedKernel):
        raise TypeError(f"wrap_nki takes a function decorated by nki.jit, not {kernel!r}")
    return Caller(kernel, None)


class Caller:
    """`caller[grid](*args, **kwargs)`; the grid is the number of physical cores of one logical core."""

    def __init__(self, kernel, grid):
        self._kernel, self._grid = kernel, grid

    def __getitem__(self, grid):
        if not isinstance(grid, int | tuple | list) or isinstance(grid, bool):
            raise TypeError(f"grid {grid!r}: an int, or a tuple or list of ints")
        sizes = (grid,) if isinstance(grid, int) else tuple(grid)
        if len(sizes) != 1 or not all(isinstance(n, int) for n in sizes):
            raise ValueError(f"grid {grid!r}: one axis of ints")
        return Caller(self._kernel, sizes)

    def __call__(self, *args, **kwargs):
        grid = self._grid or (1,)
        if math.prod(grid) != _lnc():
            raise RuntimeError(
                f"kernel launched with LNC={math.prod(grid)}, the runtime has NEURON_LOGICAL_NC_CONFIG={_lnc()}"
            )
        bound = inspect.signature(self._kernel.fn).bind(*args, **kwargs).arguments
        tensors = {n: v for n, v in bound.items() if isinstance(v, torch.Tensor)}
        if not tensors:
            raise TypeError(f"{self._kernel.fn.__name__} was given no tensor")
        fixed = {n: _constant(n, v) for n, v in bound.items() if n not in tensors}
        for name, tensor in tensors.items():
            _check(name, tensor)
        key = hash(tuple((n, type(v).__name__, str(v)) for n, v in fixed.items()))
        constants[key] = fixed
        if self._kernel not in kernels:
            kernels.append(self._kernel)
        return nki_kernel_wrapper(
            kernel_idx=kernels.index(self._kernel),
            grid=grid,
            backend_config="",
            operand_output_aliases={},
            args=tuple(tensors.values()),
            arg_names=tuple(tensors),
            constant_args_key=key,
        )


def _constant(name, value):
    """Constants of trace time. The documentation knows no others; a dtype is NKI's."""
    if isinstance(value, int | float | bool | str | emulator.language.DType):
        return value
    raise TypeError(
        f"argument {name}: {type(value).__name__} is neither a tensor nor a constant (int, float, bool, str, dtype)"
    )


def _check(name, tensor):
    if any(isinstance(n, torch.SymInt) for n in tensor.shape):
        raise RuntimeError(f"argument {name}: dynamic shape {tuple(tensor.shape)} is not supported")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"argument {name}: dtype {tensor.dtype} is not supported by NKI")
    if tensor.device.type not in ("cpu", "meta"):
        raise RuntimeError(f"argument {name} is on {tensor.device}, not on the Neuron device")
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        refuse_strided([tensor])


def nki_op(name, fn=None, mutates_args={}):  # noqa: B006 - as documented
    """A custom op of `fn`, whose schema comes from its annotations; compiling traces into `fn`."""
    if fn is None:
        return lambda f: nki_op(name, f, mutates_args)
    if mutates_args:
        raise NotImplementedError("the stand-in has no operand/output aliases")
    op = torch.library.custom_op(name, mutates_args=(), schema=torch.library.infer_schema(fn, mutates_args=()))(fn)
    op.register_fake(fn)

    def into(mode, func, types, args, kwargs):
        with mode:
            return fn(*args, **kwargs)

    torch.library.register_torch_dispatch(name, FunctionalTensorMode, into)
    return op
