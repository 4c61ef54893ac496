"""Running kernels: ``jit``, ``simulate`` and the conversion of their arguments and results."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import dtypes
from .dtypes import DType
from .errors import EmulationError, HardwareLimit, fail
from .lnc import run_cores
from .machine import Machine, MachineOptions, Shared, running
from .profile import Profile, build
from .specs import DEVICES, DeviceSpec
from .storage import MemoryRegion, Storage
from .tensor import NkiTensor


@dataclass(frozen=True)
class EmulatedRun:
    """Result of a simulated call.

    Attributes:
        outputs: what the kernel returned, with arrays (or torch tensors, if the inputs were) for its tensors.
        profile: what the call cost.
    """

    outputs: Any
    profile: Profile


class EmulatedKernel:
    """A kernel made by :func:`jit`: ``kernel(...)`` on one core, ``kernel[2](...)`` on two.

    Called inside another kernel it runs inline; called outside it is simulated on trn2 and returns the outputs.
    """

    def __init__(self, fn: Callable[..., Any], lnc: int = 1) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.lnc = lnc

    def __getitem__(self, grid: Any) -> EmulatedKernel:
        """Return the kernel launched on ``grid`` cores: 1, 2, or a one-element tuple or list of that."""
        count = grid[0] if isinstance(grid, tuple | list) and len(grid) == 1 else grid
        if count not in (1, 2):
            raise EmulationError(
                HardwareLimit.LNC, f"launch grid {grid}; a logical core has 1 or 2 cores", self.fn.__name__
            )
        return EmulatedKernel(self.fn, int(count))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the kernel; see the class."""
        if running() is not None:
            return self.fn(*args, **kwargs)
        return simulate(self)(*args, **kwargs).outputs


def jit(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorate a kernel, as ``nki.jit`` (options are accepted and ignored)."""
    return (lambda f: EmulatedKernel(f)) if fn is None else EmulatedKernel(fn)


# Types that torch and NumPy exchange directly; the others go through their bits.
_TORCH_TO_NUMPY = frozenset(
    {*("int8", "int16", "int32", "uint8", "uint16", "uint32", "bool"), *("float16", "float32", "tfloat32")}
)


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_torch(value)


def _dtype(value: Any) -> DType:
    name = str(value.dtype).removeprefix("torch.")
    found = dtypes.bool_ if name == "bool" else dtypes.of(name)
    if found is None:
        raise EmulationError(HardwareLimit.DTYPE, f"argument of dtype {value.dtype} has no NKI counterpart", "simulate")
    return found


def _values(value: Any, dtype: DType) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    tensor = value.detach().cpu().contiguous()
    if dtype in _TORCH_TO_NUMPY:
        return np.asarray(tensor.numpy())
    torch = sys.modules["torch"]
    same_size = torch.int16 if dtype.itemsize == 2 else torch.uint8
    return np.asarray(tensor.view(same_size).numpy()).view(dtype.np)


def _to_torch(values: np.ndarray, dtype: DType) -> Any:
    torch = sys.modules["torch"]
    kind = getattr(torch, str(dtype), torch.float32)
    if dtype in _TORCH_TO_NUMPY:
        return torch.from_numpy(values.copy())
    bits = values.view(np.int16 if values.dtype.itemsize == 2 else np.uint8)
    return torch.from_numpy(bits.copy()).view(kind)


class _Arguments:
    """Kernel arguments as HBM storages shared by all cores of the run."""

    def __init__(self, options: MachineOptions) -> None:
        self._options = options
        self.torch = False
        self._storages: list[tuple[Any, Storage]] = []

    def convert(self, value: Any, name: str = "") -> Any:
        """Return ``value`` with its arrays replaced by tensors in shared HBM."""
        if isinstance(value, tuple | list):
            return type(value)(self.convert(v, name) for v in value)
        if not _is_array(value):
            return value
        self.torch = self.torch or _is_torch(value)
        dtype = _dtype(value)
        shape = tuple(int(n) for n in value.shape) or (1,)
        storage = Storage(shape, dtype, MemoryRegion.shared_hbm, name, "argument")
        storage.adopt(_values(value, dtype) if self._options.numerics else None, self._options.precise)
        self._storages.append((value, storage))
        return NkiTensor.whole(storage)

    def write_back(self) -> None:
        """Copy arguments that the kernel wrote to into the caller's arrays."""
        for value, storage in self._storages:
            if not storage.mutated or storage.data is None:
                continue
            data = storage.data.reshape(storage.shape).astype(storage.dtype.np)
            if isinstance(value, np.ndarray):
                value[...] = data.reshape(value.shape)
            else:
                value.copy_(_to_torch(data, storage.dtype).reshape(value.shape))


def _output(value: Any, torch: bool, options: MachineOptions) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_output(v, torch, options) for v in value)
    if not isinstance(value, NkiTensor):
        return value
    dtype = value.dtype
    if not options.numerics:
        if torch:
            module = sys.modules["torch"]
            return module.empty(value.shape, dtype=getattr(module, str(dtype), module.float32), device="meta")
        return np.broadcast_to(np.zeros((), dtype.np), value.shape)
    values = value.array().astype(dtype.np)
    return _to_torch(values, dtype) if torch else values


def _check_outputs(kernel: str, result: Any) -> None:
    if isinstance(result, tuple | list):
        for item in result:
            _check_outputs(kernel, item)
        return
    if not isinstance(result, NkiTensor):
        return
    storage = result.storage
    what = f"output {storage.name or ''} {list(result.shape)} {result.dtype} from {storage.line}"
    if storage.buffer is not MemoryRegion.shared_hbm:
        raise EmulationError(HardwareLimit.OUTPUT_BUFFER, f"{what} is in {storage.buffer.name}, not shared_hbm", kernel)
    if not storage.settle():
        _, _, missing = storage.lowest_state(result.shape, result.strides, result.offset, result.dtype.itemsize)
        if missing:
            text = f"{what}: {missing} of {result.size} elements were never written"
            raise EmulationError(HardwareLimit.OUTPUT_UNWRITTEN, text, kernel)


def _refuse_nesting() -> None:
    if running() is not None:
        fail(HardwareLimit.UNSUPPORTED, "simulate", "a kernel cannot be simulated inside another one")


def _cores(kernel: Any, lnc: int | None, spec: DeviceSpec, name: str) -> int:
    cores = lnc if lnc is not None else kernel.lnc if isinstance(kernel, EmulatedKernel) else 1
    if cores not in (1, 2) or (cores == 2 and spec.generation < 3):
        text = f"{cores} cores on {spec.name}: trn1 has LNC1, trn2 and trn3 LNC1 and LNC2"
        raise EmulationError(HardwareLimit.LNC, text, name)
    return cores


@dataclass(frozen=True)
class _Simulation:
    """A kernel's function on one configuration of the emulated device."""

    fn: Callable[..., Any]
    name: str
    device: DeviceSpec
    cores: int
    options: MachineOptions

    def run(self, *args: Any, **kwargs: Any) -> EmulatedRun:
        _refuse_nesting()
        arguments, shared = _Arguments(self.options), Shared()
        bound = [arguments.convert(a) for a in args]
        named = {k: arguments.convert(v, k) for k, v in kwargs.items()}
        machines = [Machine(self.device, self.options, shared, i, self.cores) for i in range(self.cores)]
        result = run_cores(machines, lambda: self.fn(*bound, **named))
        _check_outputs(self.name, result)
        arguments.write_back()
        return EmulatedRun(_output(result, arguments.torch, self.options), build(machines))


def simulate(
    kernel: Any,
    device: str = "trn2",
    lnc: int | None = None,
    precise: bool = True,
    numerics: bool = True,
    trace: bool = True,
) -> Callable[..., EmulatedRun]:
    """Return a function that runs ``kernel`` on NumPy arrays or torch CPU tensors and returns a :class:`EmulatedRun`.

    Args:
        kernel: a :func:`jit` kernel (``kernel[2]`` for two cores) or a plain function.
        device: ``trn1``, ``trn2`` or ``trn3``.
        lnc: cores, 1 or 2; None takes the kernel's own launch grid.
        precise: store bf16/fp8 with true rounding; False keeps low precision as float32.
        numerics: False checks shapes and limits and counts costs but computes nothing: arguments may be torch meta
            tensors, outputs are placeholders, checks of values (activation ranges) do not happen.
        trace: keep every instruction for the timeline.

    Raises EmulationError for what the device or the emulator refuses (see :class:`HardwareLimit`), ValueError for an
    unknown device.
    """
    spec = DEVICES.get(device)
    if spec is None:
        raise ValueError(f"device {device!r}; known are {', '.join(DEVICES)}")
    fn = kernel.fn if isinstance(kernel, EmulatedKernel) else inspect.unwrap(kernel)
    name = getattr(fn, "__name__", "kernel")
    options = MachineOptions(precise, numerics, trace)
    return _Simulation(fn, name, spec, _cores(kernel, lnc, spec, name), options).run
