"""What XLA fuses of a model, determined in a separate Python environment that has torch-xla.

It is separate because torch-xla needs a torch of its own version.
"""

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
    *,
    dtype: torch.dtype = torch.float32,
    timeout_s: float = 900,
    dump: Path | None = None,
    touched: bool = False,
) -> Fusion:
    """Trace a model in another environment, replace sites by custom calls, and read XLA's kernels for the CPU.

    Args:
        python: interpreter of an environment with fluxrewrite, torch-xla and the packages that the model needs.
        model: as `fluxrewrite.models.find_model` takes it. No memory is allocated for its parameters.
        shapes: sizes of the inputs.
        kernels: kinds of site to replace, comma-separated; None for none.
        dtype: dtype of parameters and inputs.
        timeout_s: seconds after which the process is killed.
        dump: folder for XLA's dump; a temporary one when None.
        touched: as for `fluxrewrite.measure.oracle.hlo_kernels.fusion_of`.

    Raises:
        InputError: the interpreter does not exist, has no torch-xla, refuses the input, or does not finish in time.
    """
    if not python.is_file():
        raise InputError(f"{python}: no such Python interpreter; {_REMEDY}")
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        name = str(dtype).removeprefix("torch.")
        content = {"model": model, "shapes": asdict(shapes), "kernels": kernels, "dtype": name, "touched": touched}
        request.write_text(json.dumps(content))
        variables = {**os.environ, **environment(dump or Path(folder) / "hlo")}
        command = [str(python), "-m", "fluxrewrite.measure.oracle.xla_worker", str(request), str(answer)]
        _run(command, variables, timeout_s)
        return fusion_from_json(answer.read_text())


def _run(command: list[str], variables: dict[str, str], timeout_s: float) -> None:
    """Run the worker. If it fails, the error has its last line on stderr."""
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout_s)
    except OSError as error:
        raise InputError(f"{command[0]} cannot be started ({error}); {_REMEDY}") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"XLA did not finish within {timeout_s:g} s; use fewer blocks or a longer timeout_s"
        ) from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {done.returncode}, nothing on stderr"
        missing = f"; {_REMEDY}" if "No module named" in last else ""
        raise InputError(f"{command[0]}: {last}{missing}")
