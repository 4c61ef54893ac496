"""What XLA fuses of a model, asked in a Python environment of its own that has torch-xla."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from ...errors import InputError
from ...fusion.groups import Fusion
from ...models.registry import Shapes
from .fusion_json import fusion_from_json
from .xla_graph import environment

__all__ = ["xla_fusion"]

_REMEDY = "run: make xla"


def xla_fusion(
    python: Path,
    model: str,
    shapes: Shapes,
    kernels: str | None = None,
    dtype: torch.dtype = torch.float32,
    timeout_s: float = 900,
    dump: Path | None = None,
    touched: bool = False,
) -> Fusion:
    """Trace `model` there, replace the sites of `kernels` by custom calls, and read XLA's kernels for CPU.

    Args:
        python: interpreter of an environment with fluxrewrite, torch-xla and what the model needs.
        model: as `fluxrewrite.models.find_model` takes it. No memory is taken for its parameters.
        shapes: sizes of the inputs.
        kernels: kinds of site to replace, comma-separated; none when None.
        dtype: of parameters and inputs.
        timeout_s: seconds after which it is ended.
        dump: folder for XLA's dump; a temporary one when None.
        touched: as `fluxrewrite.measure.oracle.hlo_kernels.fusion_of` takes it.

    Raises:
        InputError: no such interpreter, no torch-xla there, bad input, or no answer in time.
    """
    if not python.is_file():
        raise InputError(f"{python}: no such Python interpreter; {_REMEDY}")
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        name = str(dtype).removeprefix("torch.")
        question = {"model": model, "shapes": asdict(shapes), "kernels": kernels, "dtype": name, "touched": touched}
        request.write_text(json.dumps(question))
        variables = {**os.environ, **environment(dump or Path(folder) / "hlo")}
        command = [str(python), "-m", "fluxrewrite.measure.oracle.xla_worker", str(request), str(answer)]
        _run(command, variables, timeout_s)
        return fusion_from_json(answer.read_text())


def _run(command: list[str], variables: dict[str, str], timeout_s: float) -> None:
    """Run the worker. Its last line on stderr becomes the error."""
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout_s)
    except OSError as error:
        raise InputError(f"{command[0]} cannot be started ({error}); {_REMEDY}") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"XLA gave no answer within {timeout_s:g} s; take fewer blocks or a longer timeout_s"
        ) from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {done.returncode}, nothing on stderr"
        missing = f"; {_REMEDY}" if "No module named" in last else ""
        raise InputError(f"{command[0]}: {last}{missing}")
