"""What to do next, from a report: for all forms in which it is shown."""

from __future__ import annotations

from .model import Report
from .text_predicted import auto_is_better

__all__ = ["better", "call_text"]


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


def call_text(report: Report) -> str:
    """The call that takes the plan of the report, in lines of less than 80 columns."""
    kernels = ",".join(report.summary.kernels)
    policy = "" if report.summary.policy == "all" else f',\n    policy="{report.summary.policy}"'
    return f'torch.compile(model, backend=fluxrewrite.backend(\n    kernels="{kernels}"{policy}))'
