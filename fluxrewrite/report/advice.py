"""What to do next, from a report: for all forms in which it is shown."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ..cost import device_names
from ..cost.noise import NEUTRAL
from ..graph.module_paths import block_path
from ..rewrite.plan import CHOOSING
from ..rewrite.selection import kinds
from ..site import Code
from .model import ChoiceInfo, Effect, Report, SiteInfo

__all__ = ["BetterPlan", "NextStep", "as_chosen", "auto_is_better", "better_plan", "command", "next_step", "this_plan"]


@dataclass(frozen=True)
class BetterPlan:
    """Another plan that the figures favour: the options that ask for it, and why.

    Attributes:
        why: the reason, as "predicted to be faster".
        policy: another policy; "" for that of the report.
        kernels: other kinds of site; none for those of the report.
    """

    why: str
    policy: str = ""
    kernels: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """The options of `fluxrewrite inspect`, as "--policy auto"."""
        return f"--policy {self.policy}" if self.policy else f"--kernels {','.join(self.kernels)}"


@dataclass(frozen=True)
class NextStep:
    """What to run next, and why. `command` is for a shell or for Python; its lines are copied together."""

    why: str
    command: str


def next_step(report: Report) -> NextStep:
    """The better plan where there is one, else the call that takes this plan, else where to read why nothing is taken."""
    better = better_plan(report)
    if better is not None:
        wanted = command(report, better.options) or _call(report, better)
        return NextStep(f"try {better.options} ({better.why})", wanted)
    if this_plan(report):
        return NextStep("compile the model with this plan", this_plan(report))
    if report.sites:
        return NextStep(
            "read why each site is left alone, and list the kernels with their limits", "fluxrewrite kernels"
        )
    return NextStep("list what is looked for, and within which limits", "fluxrewrite kernels")


def better_plan(report: Report) -> BetterPlan | None:
    """The plan that the figures favour over that of the report, if any: "auto", or the kinds whose verdict is not slower."""
    choices = report.effect.choices if report.effect else ()
    if auto_is_better(report):
        none = all(not c.taken for c in choices)
        return BetterPlan(f"predicted to be faster{', without any kernel' if none else ''}", policy="auto")
    taken = {s.kind for s in report.sites if s.choice == "kernel"}
    favoured = {kind.kind for c in choices for kind in c.taken}
    slower = {v.kernel for v in report.verdicts if v.verdict == "slower"} & taken - favoured
    others = tuple(k for k in report.summary.kernels if k.partition(":")[0] in taken - slower)
    if slower and others:
        return BetterPlan(f"{' and '.join(sorted(slower))} is slower by its verdict", kernels=others)
    return None


def _device(name: str) -> str:
    """What `--device` takes. A report keeps only the name of a profile, so that of a file is a placeholder."""
    return name if name in device_names() else "FILE"


def command(report: Report, more: str) -> str:
    """`fluxrewrite inspect` for the model, sizes and target of the report, with `more` options.

    Lines are shorter than 72 columns, joined by backslashes. "" for a report on a model without a name that `inspect` knows.
    """
    m, e = report.model, report.effect
    if m.image_tokens is None:
        return ""
    dtypes = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    options: dict[str, tuple[object, object]] = {
        "image-tokens": (m.image_tokens, 256),
        "text-tokens": (m.text_tokens, 512),
        "batch": (m.batch, 1),
        "dtype": (dtypes.get(m.dtype, "bf16"), "bf16"),
        "tp": (m.tp, 1),
        "device": (_device(e.device) if e else "trn2", "trn2"),
        "regime": (e.regime if e else "compile", "compile"),
        "provider": (_provider(report), "builtin"),
    }
    words = ["fluxrewrite inspect", shlex.quote(m.name)]
    words += [f"--{name} {value}" for name, (value, usual) in options.items() if value != usual]
    if not more.startswith("--kernels") and set(report.summary.kernels) != set(kinds()):
        words.append(f"--kernels {','.join(report.summary.kernels)}")
    words += ["--dynamic"] * bool(m.dynamic_sizes) + [more]
    lines = [words[0]]
    for word in words[1:]:
        fits = len(lines[-1]) + len(word) < 70
        lines[-1:] = [f"{lines[-1]} {word}"] if fits else [f"{lines[-1]} \\", f"    {word}"]
    return "\n".join(lines)


def _provider(report: Report) -> str:
    return next((s.kernel.provider for s in report.sites if s.kernel), "builtin")


def this_plan(report: Report) -> str:
    """The call of `torch.compile` that takes the plan of the report; "" where it rewrites nothing."""
    return _call(report) if any(s.choice != "keep" for s in report.sites) else ""


def _call(report: Report, better: BetterPlan | None = None) -> str:
    """One line where 70 columns hold it. Arguments that `fluxrewrite.backend` has by default are left out."""
    kernels = (better.kernels if better else ()) or report.summary.kernels
    policy = (better.policy if better else "") or report.summary.policy
    arguments = [] if set(kernels) == set(kinds()) else [f'kernels="{",".join(kernels)}"']
    arguments += [] if policy == "all" else [f"policy={_policy_argument(policy)}"]
    arguments += [] if _provider(report) == "builtin" else [f'provider="{_provider(report)}"']
    line = f"torch.compile(model, backend=fluxrewrite.backend({', '.join(arguments)}))"
    if len(line) <= 70:
        return line
    return f"torch.compile(model, backend=fluxrewrite.backend(\n    {f',{chr(10)}    '.join(arguments)}))"


def _policy_argument(policy: str) -> str:
    """A policy of one's own is named by its function, which no quotes belong around."""
    return f'"{policy}"' if re.fullmatch(r"all|none|auto|measure", policy) else policy


def auto_is_better(report: Report) -> bool:
    """Whether "auto" takes other kernels than this plan, and the whole step is predicted to be faster with them.

    What "auto" saves is what its blocks save by their own times. The plan's step is the one predicted for the whole graph.
    Where runs of this case exist, their times decide. They are of another device than the model's times, so ratios of a step
    are compared instead of times. A saving below `NEUTRAL` is no difference, and the sum of the blocks differs from the whole
    step by less than half of that.
    """
    e = report.effect
    if e is None or report.summary.policy in CHOOSING or all(as_chosen(c, report) for c in e.choices):
        return False
    saved = sum(c.blocks * _saved(c) for c in e.choices)
    if e.measured is None:
        return e.step_before.us - saved < e.step_after.us * (1 - NEUTRAL)
    blocks = _blocks_us(e)
    return blocks - saved < blocks * (e.measured.ratio or 1.0) * (1 - NEUTRAL)


def _blocks_us(effect: Effect) -> float:
    return sum(c.blocks * c.times_us.get("none", 0.0) for c in effect.choices)


def _saved(choice: ChoiceInfo) -> float:
    """Microseconds that the choice saves in one block; 0 where one of its times is not known."""
    none = choice.times_us.get("none", 0.0)
    return none - choice.times_us.get(choice.chosen, none)


def as_chosen(choice: ChoiceInfo, report: Report) -> bool:
    """Whether the sites in the first of these blocks are rewritten as the choice has it.

    Every site of a chosen kind is rewritten, unless it is inside a larger one, and no other site is.
    """
    wanted = {(k.kind, k.form, _sizes(k.shapes), k.inline) for k in choice.taken}
    sites = [s for s in report.sites if block_path(s.path) == choice.block and s.status != "missed"]
    if {_key(s) for s in sites if s.choice != "keep"} != wanted:
        return False
    kinds_taken = {key[:3] for key in wanted}
    kept = (
        s
        for s in sites
        if s.choice == "keep" and s.status == "eligible" and not any(r.code == Code.COVERED for r in s.reasons)
    )
    return not any(_key(s)[:3] in kinds_taken for s in kept)


def _key(site: SiteInfo) -> tuple[str, str, tuple[tuple[str, int | str], ...], bool]:
    return site.kind, site.form, _sizes(site.shapes), site.choice == "inline"


def _sizes(shapes: dict[str, int | str]) -> tuple[tuple[str, int | str], ...]:
    return tuple(sorted(shapes.items()))
