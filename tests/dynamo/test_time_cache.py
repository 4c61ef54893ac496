"""What measured times depend on, and the files that keep them."""

from __future__ import annotations

import torch

from fluxrewrite.dynamo.machine import machine_text
from fluxrewrite.dynamo.time_cache import Time, Times
from fluxrewrite.provider.digests import kernel_text
from fluxrewrite.rewrite.selection import Selection

CPU = torch.device("cpu")


def inner(gm, example_inputs):
    return gm.forward


def test_keys_know_kernels_options_and_versions(monkeypatch):
    kernels = Selection.of(("attention", "qkv")).kernels
    builtin, reference = (Selection.of("attention", p).kernels["attention"] for p in ("builtin", "reference"))
    assert len({kernel_text(k) for k in (kernels["qkv"], builtin, reference)}) == 3
    texts = [machine_text(CPU, inner, "x", None), machine_text(CPU, inner, "x", {"a": 1})]
    texts += [
        machine_text(CPU, inner, "y", None),
        machine_text(CPU, torch._dynamo.lookup_backend("inductor"), "inductor", None),
    ]
    with torch._inductor.config.patch(max_autotune=True):
        texts.append(machine_text(CPU, torch._dynamo.lookup_backend("inductor"), "inductor", None))
    monkeypatch.setattr(torch, "__version__", "9.9")
    texts.append(machine_text(CPU, inner, "x", None))
    assert len(set(texts)) == len(texts)


def test_times_of_two_writers(tmp_path):
    times = Times(tmp_path)
    times.save("block", {"a": Time(us=1.5, noise_us=0.1)})
    assert Times(tmp_path).load("block") == {"a": Time(us=1.5, noise_us=0.1)}
    assert [p.name for p in tmp_path.iterdir()] == ["block.json"]
    assert times.load("other") == {}
