"""What to do next, from a report: for all forms in which it is shown."""

from __future__ import annotations

import shlex

from ..selection import kinds
from .model import Report
from .text_predicted import auto_is_better

__all__ = ["better", "call_text", "command"]


def better(report: Report) -> tuple[str, str] | None:
    """Options that the prediction favours, and why."""
    if auto_is_better(report):
        none = all(c.chosen == "none" for c in report.effect.choices) if report.effect else False
        return "--policy auto", "predicted to be faster" + (", without any kernel" if none else "")
    taken = {s.kind for s in report.sites if s.choice == "kernel"}
    chosen = " ".join(c.chosen for c in report.effect.choices) if report.effect else ""
    slower = {v.kernel for v in report.verdicts if v.verdict == "slower" and f"{v.kernel}:" not in chosen} & taken
    others = [k for k in report.summary.kernels if k.partition(":")[0] in taken - slower]
    if slower and others:
        return f"--kernels {','.join(others)}", f"{' and '.join(sorted(slower))} is slower by its verdict"
    return None


def command(report: Report, more: str) -> str:
    """`fluxrewrite inspect` for the model, sizes and target of the report, with `more` options, in lines of 80 columns.

    "" for a report on a model that no name is known of.
    """
    m, e = report.model, report.effect
    if m.image_tokens is None:
        return ""
    dtypes = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    providers = [s.kernel.provider for s in report.sites if s.kernel]
    options: dict[str, tuple[object, object]] = {
        "image-tokens": (m.image_tokens, 256),
        "text-tokens": (m.text_tokens, 512),
        "batch": (m.batch, 1),
        "dtype": (dtypes.get(m.dtype, "bf16"), "bf16"),
        "tp": (m.tp, 1),
        "device": (e.device if e else "trn2", "trn2"),
        "regime": (e.regime if e else "compile", "compile"),
        "provider": (providers[0] if providers else "builtin", "builtin"),
    }
    words = ["fluxrewrite inspect", shlex.quote(m.name)]
    words += [f"--{name} {value}" for name, (value, usual) in options.items() if value != usual]
    if not more.startswith("--kernels") and set(report.summary.kernels) != set(kinds()):
        words.append(f"--kernels {','.join(report.summary.kernels)}")
    words += ["--dynamic"] * bool(m.dynamic_sizes) + [more]
    lines = [words[0]]
    for word in words[1:]:
        fits = len(lines[-1]) + len(word) < 72
        lines[-1:] = [f"{lines[-1]} {word}"] if fits else [f"{lines[-1]} \\", f"    {word}"]
    return "\n".join(lines)


def call_text(report: Report) -> str:
    """The call that takes the plan of the report, in lines of less than 80 columns."""
    kernels = ",".join(report.summary.kernels)
    policy = "" if report.summary.policy == "all" else f',\n    policy="{report.summary.policy}"'
    return f'torch.compile(model, backend=fluxrewrite.backend(\n    kernels="{kernels}"{policy}))'
