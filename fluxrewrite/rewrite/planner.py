"""From findings to decisions: which sites become kernel calls, and why the others are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from torch.fx import Node

from ..errors import InputError
from ..graph.view import GraphView
from ..kernel import Kernel
from ..site import Code, Finding, Miss, Reason, Site, SiteKey
from .base import Pass
from .checks import needs_grad
from .guards import across_autocast, of_other_class
from .joined_weights import Joinable, parameters
from .nested_graphs import misses_within
from .plan import CHOOSING, Choice, Decision, Plan, Policy, check_policy, kept
from .proof.outcome import Prove, proved, refuted
from .search import BlockChoice
from .selection import Selection

__all__ = ["Chooser", "PastFailure", "PlanningOptions", "make_plan"]

OnError = Callable[[str, Exception], None]
PastFailure = Callable[[Site, Kernel], object | None]
"""How a kernel failed at a site like this one; None if it did not."""
Chooser = Callable[[GraphView, Sequence[Site]], tuple[Sequence[Site], Sequence[BlockChoice]]]
"""Returns which of the eligible sites become kernel calls, and why: `search.choose` with a price."""


class PlanningOptions(TypedDict, total=False):
    """What `make_plan` checks of each site besides its guards, for callers that pass it on; meanings as there."""

    joinable: Joinable
    failed: PastFailure
    prove: Prove | None


def _raise(_: str, error: Exception) -> None:
    raise error


def make_plan(
    view: GraphView,
    selection: Selection,
    policy: Policy = "all",
    *,
    on_error: OnError = _raise,
    chooser: Chooser | None = None,
    joinable: Joinable = parameters,
    failed: PastFailure = lambda site, kernel: None,
    prove: Prove | None = None,
) -> Plan:
    """Find all sites of the selected passes and decide on each.

    Args:
        view: the graph.
        selection: passes and kernels.
        policy: "all" rewrites every eligible site, "none" keeps them all, "auto" and "measure" follow `chooser`. A callable
            returns True for each site that becomes a kernel call and "inline" for one that is written as plain operations.
        on_error: called with what failed and the error when a pass or policy raises; by default the error propagates. If it
            returns, that pass finds nothing, or that site is kept.
        chooser: compares sets of kernels. It is called under every policy, because the report shows what "auto" would choose.
        joinable: whether weights can be joined for an inline form.
        failed: whether a kernel has failed before at a site like this one.
        prove: runs each site that may be rewritten against its replacement; None proves nothing. Policy "none" needs no proof.

    Raises:
        InputError: an unknown policy, or one that compares times without a `chooser`.
    """
    check_policy(policy)
    if policy in CHOOSING and chooser is None:
        raise InputError(f"policy {policy!r} compares times; it needs a device profile (device=)")
    planner = _Planner(
        view=view,
        selection=selection,
        policy=policy,
        on_error=on_error,
        joinable=joinable,
        failed=failed,
        prove=None if policy == "none" else prove,
    )
    decisions: Sequence[Decision] = list(planner.decisions())
    choices: Sequence[BlockChoice] = ()
    if chooser is not None:
        decisions, choices = planner.compared(decisions, chooser)
    taken = [d.finding for d in decisions if d.choice != Choice.KEEP and isinstance(d.finding, Site)]
    return Plan(tuple(_without_covered(decisions, taken)), selection, tuple(choices))


@dataclass(frozen=True)
class _Planner:
    """The arguments of `make_plan`, which all decisions on one graph depend on."""

    view: GraphView
    selection: Selection
    policy: Policy
    on_error: OnError
    joinable: Joinable
    failed: PastFailure
    prove: Prove | None

    def decisions(self) -> Iterator[Decision]:
        """A decision on each finding of each pass. Sites inside larger sites are not sorted out yet."""
        for kind, rewriter in self.selection.passes.items():
            for finding in self._found(kind, rewriter):
                yield self._decision(finding, rewriter)

    def compared(
        self, decisions: Sequence[Decision], chooser: Chooser
    ) -> tuple[Sequence[Decision], Sequence[BlockChoice]]:
        """The decisions, changed to follow the chooser under a policy that compares times, and the choices themselves."""
        variants = self._variants(decisions)
        chosen: Sequence[Site] = ()
        choices: Sequence[BlockChoice] = ()
        why = f"policy {self.policy!r} keeps it: no set of kernels with it makes its block faster"
        try:
            could = [d.finding for d in decisions if _could(d) and isinstance(d.finding, Site)]
            chosen, choices = chooser(self.view, [*could, *variants.values()])
        except Exception as error:
            self.on_error("choosing kernels", error)
            why = f"policy {self.policy!r} raised {error!r}"
        if self.policy not in CHOOSING:
            return decisions, choices
        taken = {s.key for s in chosen}
        return [_chosen(d, variants, taken, why) for d in _without_covered(decisions, chosen)], choices

    def _found(self, kind: str, rewriter: Pass) -> Sequence[Finding]:
        try:
            return [*rewriter.find(self.view), *misses_within(rewriter, self.view)]
        except Exception as error:
            self.on_error(f"pass {kind!r}", error)
            return []

    def _decision(self, finding: Finding, rewriter: Pass) -> Decision:
        kernel = self.selection.kernels.get(rewriter.kernel)
        try:
            reasons = self._checked(finding, kernel)
            if self.prove is not None and not reasons and isinstance(finding, Site) and self.selection.has(finding):
                finding, reasons = proved(self.view, finding, rewriter, kernel, self.prove)
            elif self.prove is None and self.policy != "none" and not reasons:
                reasons = _needs_proof(finding)
            return self._decided(finding, kernel, reasons)
        except Exception as error:
            self.on_error(f"policy {self.policy!r}", error)
            return Decision(finding, Choice.KEEP, (Reason(Code.POLICY, f"the policy raised {error!r}", ""),))

    def _checked(self, finding: Finding, kernel: Kernel | None) -> tuple[Reason, ...]:
        """Why a finding may not become a kernel call."""
        if isinstance(finding, Miss):
            return (finding.reason,)
        where = finding.outputs[0].name
        if kernel is None:
            missing = f"provider {self.selection.provider!r} has no kernel named {finding.kind!r}"
            return (Reason(Code.NO_KERNEL, missing, where),)
        view = self.view
        guards = (needs_grad(view, finding.outputs), of_other_class(view, finding), across_autocast(view, finding))
        symbolic = kernel.symbolic(finding.shapes)
        limits = kernel.refusals({**finding.facts, **finding.shapes}, finding.dtype) + ((symbolic,) if symbolic else ())
        failure = self.failed(finding, kernel)
        reasons = tuple(replace(r, node=where) for r in limits) + tuple(r for r in guards if r is not None)
        return reasons + ((Reason(Code.FAILED, str(failure), where),) if failure is not None else ())

    def _decided(self, finding: Finding, kernel: Kernel | None, reasons: tuple[Reason, ...]) -> Decision:
        if isinstance(finding, Miss):
            return Decision(finding, Choice.KEEP, reasons)
        if reasons:
            return Decision(replace(finding, reasons=reasons), Choice.KEEP, reasons)
        if not self.selection.has(finding):
            forms = ", ".join(sorted(self.selection.forms[finding.kind]))
            message = f"form {finding.form!r} is not among the selected {forms}"
            return Decision(finding, Choice.KEEP, (Reason(Code.NOT_SELECTED, message, finding.outputs[0].name),))
        policy = self.policy
        answer = policy(finding) if callable(policy) else policy != "none"
        if answer == "inline":
            inline = self._inlined(finding, self.prove)
            if inline is None:
                return kept(finding, "it has no inline form here")
            return Decision(inline, Choice.KEEP, inline.reasons) if refuted(inline) else Decision(inline, Choice.INLINE)
        if not answer:
            name = policy if isinstance(policy, str) else getattr(policy, "__name__", type(policy).__name__)
            return kept(finding, f"policy {name!r} keeps it")
        return Decision(finding, Choice.KERNEL, (), kernel)

    def _variants(self, decisions: Sequence[Decision]) -> dict[SiteKey, Site]:
        """The inline form of each site that has one, unless something other than its kernel's limits or the policy rules it out."""
        allowed = {Code.POLICY, Code.LIMIT, Code.NO_KERNEL, Code.FAILED}
        prove = self.prove if self.policy in CHOOSING else None
        found = {}
        for site in (d.finding for d in decisions if {r.code for r in d.reasons} <= allowed):
            if isinstance(site, Site) and self.selection.has(site):
                inline = self._inlined(site, prove)
                found.update({} if inline is None or refuted(inline) else {site.key: inline})
        return found

    def _inlined(self, site: Site, prove: Prove | None) -> Site | None:
        """The site as plain operations, with the reason if that is not proved; None if it has no such form."""
        view, rewriter = self.view, self.selection.passes[site.kind]
        form = rewriter.inline(view, site)
        if form is None or not all(self.joinable(group) for group in form.joined):
            return None
        if view.written([n for group in form.joined for n in group], 0, len(view.nodes)) is not None:
            return None  # the joined tensor is an input of its own: compilers would read it as it was before the write
        inline = replace(site, inline=form, proof=None)
        if prove is None:
            return inline
        inline, reasons = proved(view, inline, rewriter, None, prove)
        return replace(inline, reasons=reasons) if reasons else inline


def _could(decision: Decision) -> bool:
    """Whether only the policy keeps a site from becoming a kernel call."""
    return decision.choice == Choice.KERNEL or [r.code for r in decision.reasons] == [Code.POLICY]


def _chosen(decision: Decision, variants: Mapping[SiteKey, Site], taken: set[SiteKey], why: str) -> Decision:
    inline = variants.get(decision.finding.key) if isinstance(decision.finding, Site) else None
    if inline is not None and inline.key in taken:
        return Decision(inline, Choice.INLINE, inline.reasons)
    if decision.choice != Choice.KERNEL or not isinstance(decision.finding, Site) or decision.finding.key in taken:
        return decision
    return kept(decision.finding, why)


def _without_covered(decisions: Sequence[Decision], taken: Sequence[Site]) -> Iterator[Decision]:
    """If two sites compute the same values, the larger one becomes a kernel call and the smaller ones are kept."""
    owners: dict[Node, Site] = {}
    for site in sorted(taken, key=lambda s: len(s.interior)):
        owners.update(dict.fromkeys((*site.interior, *site.outputs), site))
    for d in decisions:
        found = d.finding
        if d.choice != Choice.KERNEL or not isinstance(found, Site):
            yield d
            continue
        owner = next((o for n in found.outputs if (o := owners.get(n, found)).key != found.key), None)
        if owner is None:
            yield d
            continue
        why = Reason(Code.COVERED, f"part of a {owner.kind} site that a kernel takes", found.outputs[0].name)
        yield Decision(found, Choice.KEEP, (why,))


def _needs_proof(finding: Finding) -> tuple[Reason, ...]:
    """Why a site that was found by what it computes is left alone if nothing is proved."""
    if isinstance(finding, Miss) or not finding.needs_proof:
        return ()
    message = (
        "it was found by what it computes on made-up inputs; only proof='numeric' confirms that the call does the same"
    )
    return (Reason(Code.NEEDS_PROOF, message, finding.outputs[0].name),)
