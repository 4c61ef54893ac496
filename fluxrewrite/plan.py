"""From findings to decisions: which sites a kernel takes, and why the others are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Graph, GraphModule, Node

from .choose import Choice
from .errors import InputError
from .graph import GraphView
from .guards import across_autocast, of_other_class
from .join import Joinable, parameters
from .kernel import Kernel, load_kernels, load_plugins
from .nested import misses_within
from .proof.asked import Prove, proved, refuted
from .provider import provided
from .rewrite import Pass, Replacement, as_module, needs_grad, rewritten_graph
from .site import Code, Finding, Miss, Reason, Site

__all__ = [
    "CHOOSING",
    "Chooser",
    "Decision",
    "Failed",
    "Plan",
    "Policy",
    "Selection",
    "apply",
    "apply_graph",
    "check_policy",
    "make_plan",
]

Policy = str | Callable[[Site], bool | str]


@dataclass(frozen=True)
class Selection:
    """Which kinds and forms of site may be rewritten: `kernels=("qkv:triple", "attention")`.

    Attributes:
        passes: the passes in use, by kind.
        kernels: the kernels in use, by name.
        forms: for a kind, the forms selected; all forms where a kind is missing.
        provider: whose kernels: "builtin", "nkilib@2.29", or "reference" for the ops' own bodies without further limits.
    """

    passes: Mapping[str, Pass]
    kernels: Mapping[str, Kernel]
    forms: Mapping[str, frozenset[str]]
    provider: str = "builtin"

    @classmethod
    def of(
        cls,
        kernels: str | Iterable[str] | None = None,
        provider: str = "builtin",
        execution: str = "reference",
    ) -> Selection:
        """Read `kernels`: None for all, a comma-separated text, or kinds with an optional `:form`.

        Raises InputError for an unknown kind, form, provider or execution, with the known ones.
        """
        if kernels is None:
            words = None
        elif isinstance(kernels, str):
            words = [w.strip() for w in kernels.split(",") if w.strip()]
        else:
            words = list(kernels)
        kinds = None if words is None else tuple(dict.fromkeys(w.partition(":")[0] for w in words))
        if kinds == ():
            raise InputError("no kernel named; leave the option out for all, or use policy 'none' for no rewrite")
        passes = load_plugins("fluxrewrite.passes", kinds, _new_pass)
        forms: dict[str, set[str]] = {}
        for word in words or ():
            kind, colon, form = word.partition(":")
            if not colon:
                forms[kind] = set(passes[kind].forms)
            elif form in passes[kind].forms:
                forms.setdefault(kind, set()).add(form)
            else:
                raise InputError(f"unknown form {form!r} of {kind!r}; known: {', '.join(passes[kind].forms)}")
        offered = provided(load_kernels().values(), provider, execution)
        return cls(passes, offered, {k: frozenset(v) for k, v in forms.items()}, provider)

    def has(self, site: Site) -> bool:
        """Whether the form of a site is among those selected."""
        forms = self.forms.get(site.kind)
        return forms is None or site.form in forms

    def names(self) -> tuple[str, ...]:
        """The selection as words, in order: what `of` would take."""
        words: list[str] = []
        for kind in self.passes:
            forms = self.forms.get(kind)
            whole = forms is None or forms == set(self.passes[kind].forms)
            words += [kind] if whole else [f"{kind}:{form}" for form in sorted(forms or ())]
        return tuple(words)


def _new_pass(cls: type[Pass]) -> Pass:
    """A pass that has what a pass needs, or AttributeError."""
    made = cls()
    for name in ("kind", "kernel", "forms", "looks_for", "find", "emit"):
        getattr(made, name)
    return made


@dataclass(frozen=True)
class Decision:
    """A finding and what becomes of it: `choice` is "kernel", "inline" or "keep"; `reasons` say why it is kept."""

    finding: Finding
    choice: str
    reasons: tuple[Reason, ...] = ()
    kernel: Kernel | None = None

    @property
    def status(self) -> str:
        """ "missed" for a near miss, "ineligible" for a site that no kernel may take, else "eligible"."""
        if isinstance(self.finding, Miss):
            return "missed"
        return "eligible" if self.finding.eligible else "ineligible"


@dataclass(frozen=True)
class Plan:
    """Every finding of one graph with its decision, in graph order within a kind; `choices` of the policy "auto"."""

    decisions: tuple[Decision, ...]
    selection: Selection
    choices: tuple[Choice, ...] = ()

    def replacements(self) -> list[Replacement]:
        """The sites that kernels take, and those that are written inline."""
        return [
            Replacement(self.selection.passes[d.finding.kind], d.finding, d.kernel)
            for d in self.decisions
            if isinstance(d.finding, Site) and (d.choice == "inline" or (d.choice == "kernel" and d.kernel is not None))
        ]

    def keeping(self, left: Iterable[tuple[Site, Reason]]) -> Plan:
        """The plan with sites that could not be rewritten after all."""
        late = {id(site): reason for site, reason in left}
        changed = []
        for d in self.decisions:
            reason = late.get(id(d.finding))
            if reason is not None and isinstance(d.finding, Site):
                d = Decision(replace(d.finding, reasons=(reason,)), "keep", (reason,))
            changed.append(d)
        return Plan(tuple(changed), self.selection, self.choices)

    def kept(self, why: str) -> Plan:
        """The plan with every site that would have been rewritten kept, for this reason."""
        changed = [
            _kept(d.finding, why) if d.choice != "keep" and isinstance(d.finding, Site) else d for d in self.decisions
        ]
        return Plan(tuple(changed), self.selection, self.choices)


OnError = Callable[[str, Exception], None]


def _raise(_: str, error: Exception) -> None:
    raise error


Failed = Callable[[Site, Kernel], object | None]
"""How a kernel failed at a site like this one, or None."""
Chooser = Callable[[GraphView, Sequence[Site]], tuple[Sequence[Site], Sequence[Choice]]]
"""Answers which of the eligible sites kernels take, and why: `choose.choose` with a price."""


def make_plan(
    view: GraphView,
    selection: Selection,
    policy: Policy = "all",
    on_error: OnError = _raise,
    chooser: Chooser | None = None,
    joinable: Joinable = parameters,
    failed: Failed = lambda site, kernel: None,
    prove: Prove | None = None,
) -> Plan:
    """Find all sites of the selected passes and decide on each.

    `policy`: "all" rewrites every eligible site, "none" keeps them all, a callable answers True for each site that its kernel
    is to take and "inline" for one to be written as plain operations, and "auto" and "measure" take what `chooser` answers.
    `chooser` is asked whatever the policy, if there is one; `joinable` tells whether weights can be joined for an inline form,
    `failed` whether a kernel has failed at a site like this one. `prove` is asked of each site that a kernel may take, and of
    each that may be written inline; without it nothing is proved. Policy "none" asks for no proof.
    `on_error` is told of a pass or policy that raised, and what it was doing; by default the error goes on up. If it
    returns, that pass finds nothing, or that site is kept.

    Raises InputError for an unknown policy, and for one that compares times where there is no `chooser`.
    """
    check_policy(policy)
    if policy in CHOOSING and chooser is None:
        raise InputError(f"policy {policy!r} compares times; it needs a device profile (device=)")
    if policy == "none":
        prove = None
    decisions = []
    for kind, rewriter in selection.passes.items():
        kernel = selection.kernels.get(rewriter.kernel)
        findings: list[Finding] = []
        try:
            findings = [*rewriter.find(view), *misses_within(rewriter, view)]
        except Exception as error:
            on_error(f"pass {kind!r}", error)
        for finding in findings:
            try:
                reasons = _checked(view, finding, kernel, failed, selection.provider)
                if prove is not None and not reasons and isinstance(finding, Site) and selection.has(finding):
                    finding, reasons = proved(view, finding, rewriter, kernel, prove)
                elif prove is None and policy != "none" and not reasons:
                    reasons = _needs_proof(finding)
                decision = _decide(view, finding, kernel, reasons, selection, policy, joinable, prove)
            except Exception as error:
                on_error(f"policy {policy!r}", error)
                decision = Decision(finding, "keep", (Reason(Code.POLICY, f"the policy raised {error!r}", ""),))
            decisions.append(decision)
    choices: Sequence[Choice] = ()
    if chooser is not None:
        variants = _variants(view, decisions, selection, joinable, prove if policy in CHOOSING else None)
        decisions, choices = _compared(view, decisions, variants, policy, chooser, on_error)
    taken = [d.finding for d in decisions if d.choice != "keep" and isinstance(d.finding, Site)]
    return Plan(tuple(_without_covered(decisions, taken)), selection, tuple(choices))


def _variants(
    view: GraphView, decisions: Sequence[Decision], selection: Selection, joinable: Joinable, prove: Prove | None
) -> dict[int, Site]:
    """The inline form of each site that has one and that nothing but its kernel's limits or the policy stands against."""
    allowed = {Code.POLICY, Code.LIMIT, Code.NO_KERNEL, Code.FAILED}
    sites = [d.finding for d in decisions if isinstance(d.finding, Site) and {r.code for r in d.reasons} <= allowed]
    found = {}
    for site in sites:
        if selection.has(site):
            inline = _inlined(view, site, selection, joinable, prove)
            found.update({} if inline is None or refuted(inline) else {id(site): inline})
    return found


def _inlined(view: GraphView, site: Site, selection: Selection, joinable: Joinable, prove: Prove | None) -> Site | None:
    """The site as plain operations, with the reason if that is not proved; None where it has no such form."""
    rewriter = selection.passes[site.kind]
    form = rewriter.inline(view, site)
    if form is None or not all(joinable(group) for group in form.joined):
        return None
    if view.written([n for group in form.joined for n in group], 0, len(view.nodes)) is not None:
        return None  # the joined tensor is an input of its own: compilers would read it as it was before the write
    inline = replace(site, inline=form, proof=None)
    if prove is None:
        return inline
    inline, reasons = proved(view, inline, rewriter, None, prove)
    return replace(inline, reasons=reasons) if reasons else inline


def _compared(
    view: GraphView,
    decisions: list[Decision],
    variants: Mapping[int, Site],
    policy: Policy,
    chooser: Chooser,
    on_error: OnError,
) -> tuple[list[Decision], Sequence[Choice]]:
    """What the chooser answers; and the decisions, which follow it where the policy asks for that."""
    chosen: Sequence[Site] = ()
    choices: Sequence[Choice] = ()
    why = f"policy {policy!r} keeps it: no set of kernels with it makes its block faster"
    try:
        could = [d.finding for d in decisions if _could(d) and isinstance(d.finding, Site)]
        chosen, choices = chooser(view, [*could, *variants.values()])
    except Exception as error:
        on_error("choosing kernels", error)
        why = f"policy {policy!r} raised {error!r}"
    if policy not in CHOOSING:
        return decisions, choices
    taken = {id(s) for s in chosen}
    return [_chosen(d, variants, taken, why) for d in _without_covered(decisions, chosen)], choices


def _could(decision: Decision) -> bool:
    """Whether nothing but the policy stands between a site and its kernel."""
    return decision.choice == "kernel" or [r.code for r in decision.reasons] == [Code.POLICY]


CHOOSING = ("auto", "measure")
"""Policies that compare times."""


def check_policy(policy: Policy) -> None:
    """Raise InputError for a policy that is none."""
    if not callable(policy) and policy not in ("all", "none", *CHOOSING):
        raise InputError(f"unknown policy {policy!r}; known: auto, measure, all, none, or a callable on sites")


def _chosen(decision: Decision, variants: Mapping[int, Site], taken: set[int], why: str) -> Decision:
    inline = variants.get(id(decision.finding))
    if inline is not None and id(inline) in taken:
        return Decision(inline, "inline", inline.reasons)
    if decision.choice != "kernel" or id(decision.finding) in taken or not isinstance(decision.finding, Site):
        return decision
    return _kept(decision.finding, why)


def _kept(site: Site, why: str) -> Decision:
    return Decision(site, "keep", (Reason(Code.POLICY, why, site.outputs[0].name),))


def _without_covered(decisions: Sequence[Decision], taken: Sequence[Site]) -> Iterator[Decision]:
    """Where two sites hold the same values, the larger one is taken by its kernel and the smaller ones are kept."""
    owners: dict[Node, Site] = {}
    for site in sorted(taken, key=lambda s: len(s.interior)):
        owners.update(dict.fromkeys((*site.interior, *site.outputs), site))
    for d in decisions:
        held = [owners.get(n, d.finding) for n in d.finding.outputs] if isinstance(d.finding, Site) else []
        owner = next((o for o in held if o is not d.finding), None)
        if owner is None or d.choice != "kernel" or not isinstance(d.finding, Site):
            yield d
            continue
        why = Reason(Code.COVERED, f"part of a {owner.kind} site that a kernel takes", d.finding.outputs[0].name)
        yield Decision(d.finding, "keep", (why,))


def _checked(
    view: GraphView, finding: Finding, kernel: Kernel | None, failed: Failed, provider: str
) -> tuple[Reason, ...]:
    """Why its kernel may not take a finding."""
    if isinstance(finding, Miss):
        return (finding.reason,)
    where = finding.outputs[0].name
    if kernel is None:
        missing = f"provider {provider!r} has no kernel named {finding.kind!r}"
        return (Reason(Code.NO_KERNEL, missing, where),)
    guards = (needs_grad(view, finding.outputs), of_other_class(view, finding), across_autocast(view, finding))
    symbolic = kernel.symbolic(finding.shapes)
    limits = kernel.refusals({**finding.facts, **finding.shapes}, finding.dtype) + ((symbolic,) if symbolic else ())
    failure = failed(finding, kernel)
    reasons = tuple(replace(r, node=where) for r in limits) + tuple(r for r in guards if r is not None)
    return reasons + ((Reason(Code.FAILED, str(failure), where),) if failure is not None else ())


def _needs_proof(finding: Finding) -> tuple[Reason, ...]:
    """Why a site that was found by what it computes is left alone where nothing is proved."""
    if isinstance(finding, Miss) or not finding.needs_proof:
        return ()
    message = (
        "it was found by what it computes on made-up inputs; only verify='numeric' confirms that the call does the same"
    )
    return (Reason(Code.NEEDS_PROOF, message, finding.outputs[0].name),)


def _decide(
    view: GraphView,
    finding: Finding,
    kernel: Kernel | None,
    reasons: tuple[Reason, ...],
    selection: Selection,
    policy: Policy,
    joinable: Joinable,
    prove: Prove | None = None,
) -> Decision:
    if isinstance(finding, Miss):
        return Decision(finding, "keep", reasons)
    if reasons:
        return Decision(replace(finding, reasons=reasons), "keep", reasons)
    where = finding.outputs[0].name
    if not selection.has(finding):
        forms = ", ".join(sorted(selection.forms[finding.kind]))
        why = Reason(Code.NOT_SELECTED, f"form {finding.form!r} is not among the selected {forms}", where)
        return Decision(finding, "keep", (why,))
    answer = policy(finding) if callable(policy) else policy != "none"
    if answer == "inline":
        inline = _inlined(view, finding, selection, joinable, prove)
        if inline is None:
            return _kept(finding, "it has no inline form here")
        return Decision(inline, "keep", inline.reasons) if refuted(inline) else Decision(inline, "inline")
    if not answer:
        name = policy if isinstance(policy, str) else getattr(policy, "__name__", type(policy).__name__)
        return _kept(finding, f"policy {name!r} keeps it")
    return Decision(finding, "kernel", (), kernel)


def apply(gm: GraphModule, plan: Plan) -> tuple[GraphModule, Plan]:
    """The rewritten module, `gm` itself when there is nothing to rewrite; and the plan as it was carried out."""
    graph, carried_out = apply_graph(gm, plan)
    return as_module(gm, graph), carried_out


def apply_graph(gm: GraphModule, plan: Plan) -> tuple[Graph, Plan]:
    """As `apply`, but the graph alone: that of `gm` itself when there is nothing to rewrite."""
    replacements = plan.replacements()
    if not replacements:
        return gm.graph, plan
    graph, left = rewritten_graph(gm, replacements)
    return graph, plan.keeping(left)
