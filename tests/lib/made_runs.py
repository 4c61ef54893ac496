"""A made-up file of runs, for tests of what is made of such files."""

import json

from fluxrewrite.cost.runs import Runs

MINI = {"model": "flux2-klein-mini", "dtype": "bfloat16", "batch": 1, "image_tokens": 256, "text_tokens": 512}
TIMES = {"vanilla": 1.0, "qkv": 0.9, "attention": 1.25, "norm_rope_attention": 0.96}
CALLS = {
    "vanilla": {},
    "qkv": {"qkv:packed": 2, "qkv:triple": 2},
    "attention": {"attention:sdpa": 3},
    "norm_rope_attention": {"norm_rope_attention:joint": 1, "norm_rope_attention:single": 2},
}


def record(name, s, calls, **fields):
    """A variant of which every warm step takes `s` seconds, but for 0.2 % more in the last run."""
    steps = [[30.0, s, s, s], [s] * 4, [s] * 4, [s * 1.002] * 4]
    return {
        "name": name,
        "kernels": [] if name in ("vanilla", "auto", "eager") else name.split("+"),
        "calls": dict(calls),
        "specialisations": dict.fromkeys(calls, 1),
        "runs": [{"steps_s": row} for row in steps],
        "peak_rss_mb": 1000.0,
        "output": {"digest": "d", "finite": True, "cosine": None if name == "vanilla" else 0.99999},
        **fields,
    }


def content(*variants, **fields):
    """A file of runs of flux2-klein-mini, as JSON would be read; by default four variants."""
    return {
        "schema": "fluxrewrite.runs/1",
        "date": "2026-01-01T00:00:00+00:00",
        "versions": {"fluxrewrite": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "diffusers": None},
        "machine": {"processor": "a processor", "cores": 2, "threads": 2, "device": "a processor"},
        "case": {"device": "cpu", "regime": "compile", "tp": 1, **MINI},
        "setup": {**MINI, "steps": 4, "runs": 4},
        "variants": list(variants or (record(n, s, CALLS[n]) for n, s in TIMES.items())),
        **fields,
    }


def made(*variants, **fields):
    """The same as `Runs`."""
    return Runs.model_validate_json(json.dumps(content(*variants, **fields)))
