"""What TorchNeuron kept of a compile, read back and compared with what was predicted.

With `TORCH_NEURONX_PRESERVE_COMPILATION_ARTIFACTS=1` it keeps, for each process, folders `fx_graphs/`, `stablehlo/`, `raw/`
and `neff/` under `TORCH_NEURONX_DEBUG_DIR`. Names of the files in them are not documented: only `*.neff` are counted as NEFFs,
and every other readable file of `stablehlo/` is searched for custom calls.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..provider.custom_call import TARGET
from .model import ArtifactsInfo, ProcessInfo, Report

__all__ = ["Process", "compared", "read_artifacts"]

_FOLDERS = ("neff", "stablehlo")
_CALLS = re.compile(
    r"stablehlo\.custom_call\s+@([\w.$-]+)"  # as StableHLO is printed
    r'|call_target_name\s*=\s*"([^"]+)"'  # in MLIR's generic form
    r'|custom_call_target="([^"]+)"'  # as HLO text
)
_BYTECODE = b"ML\xefR"
"""The first bytes of MLIR bytecode (mlir/docs/BytecodeFormat.md), which StableHLO may be kept as; it is not read here."""
_REMEDY = "compile on the device with TORCH_NEURONX_PRESERVE_COMPILATION_ARTIFACTS=1 and TORCH_NEURONX_DEBUG_DIR=DIR, then give DIR"


@dataclass(frozen=True)
class Process:
    """The artifacts of one process.

    Attributes:
        name: its folder, relative to the one that was given; "." for that one.
        graphs: files in `fx_graphs/`.
        modules: StableHLO modules as text.
        neffs: executables.
        calls: custom calls in the StableHLO, by target.
    """

    name: str
    graphs: int
    modules: int
    neffs: int
    calls: Mapping[str, int]

    @property
    def kernels(self) -> int:
        """Calls of NKI kernels."""
        return self.calls.get(TARGET, 0)


def read_artifacts(folder: Path) -> tuple[Process, ...]:
    """The artifacts of every process under `folder`, by name of their folder.

    Raises InputError for a folder that does not exist or holds none, and for StableHLO that cannot be read as text.
    """
    if not folder.is_dir():
        raise InputError(f"--artifacts {folder}: no such folder; {_REMEDY}")
    found = sorted({p.parent for name in _FOLDERS for p in folder.rglob(name) if p.is_dir()})
    processes = tuple(_process(folder, at) for at in found)
    if not any(p.neffs or p.modules for p in processes):
        raise InputError(f"--artifacts {folder}: no neff/ or stablehlo/ with files in or below it; {_REMEDY}")
    return processes


def _process(folder: Path, at: Path) -> Process:
    texts = [_text(p) for p in _files(at / "stablehlo")]
    calls: Counter[str] = Counter()
    for text in texts:
        calls.update(next(filter(None, groups)) for groups in _CALLS.findall(text))
    return Process(
        name=at.relative_to(folder).as_posix(),
        graphs=sum(1 for _ in _files(at / "fx_graphs")),
        modules=len(texts),
        neffs=sum(p.suffix == ".neff" for p in _files(at / "neff")),
        calls=dict(sorted(calls.items())),
    )


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file())


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(_BYTECODE):
            raise InputError(
                f"{path} is MLIR bytecode; turn it into text: stablehlo-translate --deserialize {path.name}"
            )
        return content.decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text of StableHLO ({error.reason} at byte {error.start}); {_REMEDY}") from error


def compared(report: Report, processes: tuple[Process, ...]) -> Report:
    """The report with the artifacts, compared with what was predicted for each process.

    Predicted are one NEFF for each executable of the rewritten graphs, and one call for each site that a kernel takes.
    """
    segments = report.segments.after if report.segments is not None else report.model.graphs
    sites = sum(s.choice == "kernel" for s in report.sites)
    info = ArtifactsInfo(
        predicted_neffs=segments,
        predicted_kernel_calls=sites,
        processes=tuple(
            ProcessInfo(
                name=p.name,
                fx_graphs=p.graphs,
                stablehlo_modules=p.modules,
                neffs=p.neffs,
                kernel_calls=p.kernels,
                custom_calls=dict(p.calls),
            )
            for p in processes
        ),
        agree=all((p.neffs, p.kernels) == (segments, sites) for p in processes),
    )
    return report.model_copy(update={"artifacts": info})
