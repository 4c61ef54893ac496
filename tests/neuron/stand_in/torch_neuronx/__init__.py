"""A stand-in for TorchNeuron's `torch_neuronx`, for tests where the real one cannot be had.

Written from AWS's public documentation and sources of an earlier release: `wrap_nki`, `nki_op`, the higher-order op
`nki_kernel_wrapper` and the dynamo backend "neuron". There is no device: tensors lie on the CPU, where the Neuron device would
be `torch.device("neuron")`, and kernels run in `fluxrewrite.kernels.emulator`. It is strict where the real one may be lenient:
what passes here keeps to what is documented, and what fails here is not known to fail there.

`calls` counts kernel runs by name, `graphs` holds each graph that was compiled, and so would have been one NEFF.
"""

from .dynamo import graphs, neuron_backend
from .hop import calls, front_end, nki_kernel_wrapper
from .wrap import nki_op, wrap_nki

__all__ = ["calls", "front_end", "graphs", "neuron_backend", "nki_kernel_wrapper", "nki_op", "wrap_nki"]
