"""What to do next, from a report: for all forms in which it is shown."""

from __future__ import annotations

import re
import shlex
from collections import Counter

from ..graph.module_paths import block_path
from ..rewrite.plan import CHOOSING
from ..rewrite.selection import kinds
from .model import ChoiceInfo, Report

__all__ = ["auto_is_better", "better", "call_text", "command"]


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


_NAMED = re.compile(r"((?:inline )?\w+:\w+)(?:\[[^\]]*\])?(?: x(\d+))?")  # "qkv:triple[256] x2" of a choice
_WORTH_SAYING = 0.005
"""Share of a step: the sum of the blocks and the whole step agree to less than this."""


def auto_is_better(report: Report) -> bool:
    """Whether "auto" takes other kernels than this plan, and the whole step is predicted to be faster with them.

    What "auto" saves is what its blocks save by their own times; the plan's step is the one predicted for the whole graph, and
    where runs speak of the plan, what they say: then shares of a step are compared, for seconds of the two cannot be.
    """
    e = report.effect
    if e is None or report.summary.policy in CHOOSING or all(_as_taken(c, report) for c in e.choices):
        return False
    saved = sum(c.blocks * (c.times_us["none"] - c.times_us[c.chosen]) for c in e.choices)
    if e.measured is None:
        return e.step_before.us - saved < e.step_after.us * (1 - _WORTH_SAYING)
    blocks = sum(c.blocks * c.times_us["none"] for c in e.choices)
    return blocks - saved < blocks * (e.measured.ratio or 1.0) * (1 - _WORTH_SAYING)


def _as_taken(choice: ChoiceInfo, report: Report) -> bool:
    """Whether kernels take in the first of these blocks what "auto" would have them take."""
    taken: Counter[str] = Counter()
    for s in report.sites:
        if s.choice != "keep" and block_path(s.path) == choice.block:
            taken[f"{'inline ' * (s.choice == 'inline')}{s.kind}:{s.form}"] += 1
    wanted: Counter[str] = Counter()
    for name, times in _NAMED.findall(choice.chosen):
        wanted[name] += int(times or 1)
    return taken == wanted
