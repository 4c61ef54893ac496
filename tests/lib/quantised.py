"""A weight in 8 bits, as quantisers make them: a tensor of a class of its own that dequantises where it is used."""

import torch
from torch import nn
from torch.utils._pytree import tree_map_only


class Int8(torch.Tensor):
    """`codes * scale`; operations on it are done on that product."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype, device=codes.device)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, outer_size, outer_stride):
        return Int8(inner["codes"], inner["scale"])

    def __repr__(self):
        return f"Int8({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            (given,) = args
            return Int8(func(given.codes), func(given.scale))
        if not func.namespace.startswith("aten"):
            raise NotImplementedError(f"{func} of a quantised weight")
        args, kwargs = tree_map_only(Int8, lambda t: t.codes * t.scale, (args, kwargs or {}))
        return func(*args, **kwargs)


def quantise(model: nn.Module, names: tuple[str, ...]) -> int:
    """Give the linear layers of these names weights in 8 bits; how many there were."""
    found = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in names:
            weight = layer.weight.detach()
            scale = weight.abs().amax(1, keepdim=True) / 127
            layer.weight = nn.Parameter(Int8((weight / scale).round().to(torch.int8), scale), requires_grad=False)
            found += 1
    return found
