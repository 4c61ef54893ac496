"""What a plan is made for: the device, how graphs run on it, what its compiler fuses, and what was measured there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...cost import Case, Device, Evidence, load_device, load_evidence
from ...errors import InputError
from .. import Rules, load_rules

__all__ = ["REGIMES", "Target"]

REGIMES = ("compile", "lazy")


@dataclass(frozen=True)
class Target:
    """A device, a regime and a compiler.

    Attributes:
        device: its profile.
        regime: "compile", one executable in which a kernel call is a barrier; "lazy", where it also splits the executable.
        rules: what the compiler fuses.
        evidence: runs on this and other devices.
        calls_reference: a kernel call runs the body of its op, as the profile says (`Device.runs_kernels`).
    """

    device: Device
    regime: str
    rules: Rules
    evidence: Evidence
    calls_reference: bool

    @property
    def case(self) -> Case:
        """What evidence is looked up by where no more than the device and the regime is known."""
        return Case(device=self.device.name, regime=self.regime)  # type: ignore[arg-type]

    @classmethod
    def of(
        cls,
        device: str | Path = "trn2",
        regime: str = "compile",
        compiler: str | None = None,
        evidence: Iterable[str | Path] = (),
    ) -> Target:
        """Read profile, rules and evidence.

        Args:
            device: name of a shipped profile or a file.
            regime: "compile" or "lazy".
            compiler: name of shipped rules or a file; by default that of the profile.
            evidence: files in addition to the shipped ones.

        Raises:
            InputError: unknown names, files that cannot be read, a regime that the device is not run in.
        """
        if regime not in REGIMES:
            raise InputError(f"unknown regime {regime!r}; known: {', '.join(REGIMES)}")
        profile = load_device(device)
        profile.check_regime(regime)
        rules = _rules(compiler) if compiler else _rules_of(profile)
        return cls(profile, regime, rules, load_evidence(evidence), calls_reference=not profile.runs_kernels)


def _rules_of(profile: Device) -> Rules:
    """The rules that a profile names; an error says that the name is the profile's."""
    try:
        return _rules(profile.compiler)
    except InputError as error:
        raise InputError(f"compiler of device {profile.name!r}: {error}") from error


def _rules(name: str) -> Rules:
    try:
        return load_rules(name)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{name}: cannot be read as rules ({error}); give a JSON file as those in fluxrewrite/fusion/data"
        ) from error
