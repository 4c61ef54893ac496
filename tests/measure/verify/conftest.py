"""A FLUX.2 transformer of 1 + 1 small blocks with numbers in it, and kernels that are wrong on purpose."""

import json
from pathlib import Path

import pytest
import torch

from fluxrewrite.kernel import load_kernels
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.workload import realise

CONFIG = {
    "_class_name": "Flux2Transformer2DModel",
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "joint_attention_dim": 96,
    "in_channels": 16,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 16, 16, 16],
}
SHAPES = Shapes(image_tokens=24, text_tokens=12)


@pytest.fixture
def config(tmp_path) -> Path:
    """The configuration as a file, for the command line."""
    pytest.importorskip("diffusers")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def small(config):
    """`small(dtype)`: the model and its inputs."""
    return lambda dtype=torch.float32: realise(find_model(str(config)), SHAPES, dtype)


@pytest.fixture
def plant(provide):
    """`plant(kind, harm, where)`: a provider "mine", right but for what `harm` makes of the results of one kernel.

    `where` is told the arguments of a call and answers whether it is harmed.
    """

    def install(kind, harm, where=lambda *a: True):
        def launched(name, op):
            def launch(execution, *arguments):
                out = op(*arguments)
                if name != kind or not where(*arguments):
                    return out
                return [harm(t) for t in out] if isinstance(out, list) else harm(out)

            return launch

        provide({k.name: launched(k.name, k.op) for k in load_kernels().values()})

    return install
