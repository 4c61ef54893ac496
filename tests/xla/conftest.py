"""XLA reads its flags once: they are set before torch-xla is imported, for the whole process (`make test-xla`)."""

import importlib.util
import json
import os
import tempfile
from pathlib import Path

import pytest

from fluxrewrite.measure.oracle.xla_graph import environment

if importlib.util.find_spec("torch_xla"):
    _dump = tempfile.TemporaryDirectory()
    os.environ.update(environment(Path(_dump.name)))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder with the config of a FLUX.2 transformer of 1 + 2 blocks: 3 attentions, 6 rotations, 4 projections."""
    config = {
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "joint_attention_dim": 96,
        "in_channels": 16,
        "guidance_embeds": False,
        "axes_dims_rope": [16, 16, 16, 16],
    }
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
