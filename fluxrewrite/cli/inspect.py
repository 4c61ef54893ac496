"""`fluxrewrite inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import Dtype, Format, PolicyName, progress, show, torch_dtype, writable, write

__all__ = ["inspect"]


def inspect(
    model: Annotated[str, typer.Argument(help="Preset (flux2-klein-4b, flux2-klein-9b, flux2-dev, flux1-dev), diffusers folder or "
                                         "config.json, or module:callable that returns (model, inputs).")],
    image_tokens: Annotated[int, typer.Option(help="Image tokens; a 1024x1024 picture is 4096 of them.")] = 256,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 512,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and activations.")] = Dtype.BF16,
    kernels: Annotated[str | None, typer.Option(help="Kinds, with an optional form: qkv:triple,attention. Default: all.")] = None,
    policy: Annotated[PolicyName, typer.Option(help="all: rewrite every eligible site; none: only report.")] = PolicyName.ALL,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Trace with symbolic sizes.")] = False,
    provider: Annotated[str, typer.Option(help="Whose kernels: builtin, nkilib, nkilib@2.27 (its limits in that SDK version), or "
                                          "reference (the ops' own bodies, every shape).")] = "builtin",
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks: heads and columns are divided before limits are checked.")] = 1,
    format: Annotated[Format, typer.Option(help="text for people, json for programs.")] = Format.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")] = None,
) -> None:  # fmt: skip
    """Trace MODEL without weights and report which parts of it kernels can replace, and why not more."""
    from ..analysis import inspect_spec
    from ..models import Shapes, find_model
    from ..plan import Selection

    shapes = Shapes(image_tokens, text_tokens, batch)
    Selection.of(kernels, provider, tp=tp)  # a wrong name is told before the model is traced
    spec = find_model(model)
    writable(output)
    options = {"kernels": kernels, "policy": policy.value, "dynamic": dynamic, "provider": provider, "tp": tp}
    with progress(f"tracing {model}"):
        report = inspect_spec(spec, shapes, torch_dtype(dtype), **options)  # type: ignore[arg-type]
    if format is Format.JSON:
        write(report.to_json(), output)
        return
    from ..report.text import rendered

    show(rendered(report), output)
