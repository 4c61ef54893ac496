"""Limits of nkilib's kernels for each SDK version, and the source of each.

"source 2.29" is the repository aws-neuron/nki-library at tag 2.29, "docs 2.29" the page of that kernel in
aws-neuron-sdk at tag v2.29.0 (`nki/library/api/`), "notes" its `release-notes/components/nki-lib.rst`. The sources of 2.30
and later were not available; limits that their notes do not change are assumed to hold.

The page of RoPE says S <= 512, heads <= 16 and batch <= 64 in every version from 2.28 to 2.32. The sources of 2.28 and 2.29
assert none of it, so it is no limit here.
"""

from __future__ import annotations

from collections.abc import Mapping

from fluxrewrite.kernel import Limit

__all__ = ["LIMITS", "SBUF_BYTES", "UNTILED_ROPE", "VERSIONS", "rope_bytes"]

VERSIONS = ("2.27", "2.28", "2.29", "2.30", "2.31", "2.32")
UNTILED_ROPE = VERSIONS[:-1]
"""Versions whose RoPE holds its whole input in SBUF; notes 2.32: "Group-tile (B, n_heads) so the SBUF working set fits"."""
SBUF_BYTES = 192 * 1024
"""SBUF of one partition, the smallest in use (trn1; trn2 has 224 KiB), neuron-core-v2.rst."""
_TWO_BYTES = ("bfloat16", "float16")
_ROPE_227 = "source of 2026-01-23, between tags 2.27 and 2.28; tag 2.27 has no RoPE"


def rope_bytes(heads: int, positions: int, itemsize: int) -> int:
    """SBUF bytes per partition that RoPE of 2.28 and 2.29 holds at once, counted in `RoPE` and `RoPE_sbuf`.

    Seven tensors the size of its input (`heads` of all batches) and two tables; partitions are not shared.
    """
    return (7 * heads + 2) * positions * itemsize


def _since(source: str, version: str) -> str:
    """The source to name for a limit of the 2.29 source, for `version`."""
    return f"{source} {version}" if version <= "2.29" else f"source 2.29; notes {version} say nothing of it"


def _rope(version: str) -> tuple[Limit, ...]:
    if version == "2.27":
        return (
            Limit("head_size", one_of=(64, 128), source=_ROPE_227),
            Limit("sequence", maximum=512, source=_ROPE_227),
            Limit("heads", maximum=16, source=_ROPE_227),
            Limit("batch", maximum=64, source=_ROPE_227),
        )
    head = Limit("head_size", one_of=(64, 128), source=f"docs {version}")
    if version not in UNTILED_ROPE:
        return (head,)
    stated, counted = "said in source 2.28 and 2.29, not asserted", "working set of one head in SBUF, source 2.29"
    if version > "2.29":
        stated, counted = (f"{text}; notes {version} say nothing of it" for text in (stated, counted))
    longest = [SBUF_BYTES // rope_bytes(1, 1, size) for size in (2, 4)]
    return (
        head,
        Limit("batch*heads*sequence", maximum=73728, dtypes=_TWO_BYTES, source=f"SBUF, {stated}"),
        Limit("batch*heads*sequence", maximum=36864, dtypes=("float32",), source=f"half of 73728 in bf16, {stated}"),
        Limit("sequence", maximum=longest[0], dtypes=_TWO_BYTES, source=counted),
        Limit("sequence", maximum=longest[1], dtypes=("float32",), source=counted),
    )


def _qkv(version: str) -> tuple[Limit, ...]:
    source = f"docs {version}" + (f" and source {version}" if version <= "2.29" else "")
    return (
        Limit("dtype", one_of=_TWO_BYTES, source=f"float32 is turned to bfloat16, docs {version}"),
        Limit("hidden", multiple_of=128, source=source),
        Limit("hidden", maximum=24576, source=source),
        Limit("columns", maximum=4096, source=source),
    )


_TESTED = {"2.27": (16, 32768, 8 * 16384**2), "2.28": (32, 36864, 32 * 36864**2)}
"""Batch times heads, positions, and batch times heads times queries times keys, as asserted in those sources."""


def _attention(version: str) -> tuple[Limit, ...]:
    batch, positions, product = _TESTED.get(version, (512, 131072, None))
    source = _since("asserted in source", version)
    limits = [
        Limit("dtype", one_of=("bfloat16",), source="products are in bfloat16, docstring of source 2.29"),
        Limit("mask", one_of=("none",), source=f"no argument for one, docs {version}"),
        Limit("batch*heads", maximum=batch, source=source),
        Limit("sequence", maximum=positions, source=source),
        Limit("kv_sequence", maximum=positions, source=source),
    ]
    if product is not None:
        limits.append(Limit("batch*heads*sequence*kv_sequence", maximum=product, source=source))
    return tuple(limits)


LIMITS: Mapping[str, Mapping[str, tuple[Limit, ...]]] = {
    "rope": {v: _rope(v) for v in VERSIONS},
    "qkv": {v: _qkv(v) for v in VERSIONS},
    "attention": {v: _attention(v) for v in VERSIONS},
}
"""By kernel, then by version; in addition to the limits of the ops, which hold for every provider (head_size <= 128)."""
