"""What a plan is made for: the device, how graphs run on it, what its compiler fuses, and what was measured there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...cost import Device, Evidence, load_device, load_evidence
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
        calls_reference: a kernel call runs the op's reference body, as on any machine without a Neuron device.
    """

    device: Device
    regime: str
    rules: Rules
    evidence: Evidence
    calls_reference: bool

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
            compiler: name of shipped rules or a file; by default "neuronx" for Neuron devices, else "inductor".
            evidence: files in addition to the shipped ones.

        Raises:
            InputError: unknown names, files that cannot be read, a regime that the device is not run in.
        """
        if regime not in REGIMES:
            raise InputError(f"unknown regime {regime!r}; known: {', '.join(REGIMES)}")
        profile = load_device(device)
        profile.check_regime(regime)
        neuron = profile.name.startswith(("trn", "inf"))
        rules = _rules(compiler or ("neuronx" if neuron else "inductor"))
        return cls(profile, regime, rules, load_evidence(evidence), not neuron)


def _rules(name: str) -> Rules:
    try:
        return load_rules(name)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{name}: cannot be read as rules ({error}); give a JSON file as those in fluxrewrite/fusion/data"
        ) from error
