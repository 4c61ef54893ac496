"""The pass of CONTRIBUTING.md, run as it stands there."""

import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import torch

import fluxrewrite
from fluxrewrite import kernel
from fluxrewrite.kernel import Kernel, Limit

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


@torch.library.custom_op("mylib::softcap", mutates_args=())
def softcap_op(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(x / cap) * cap


@softcap_op.register_fake
def _(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.empty_like(x)


def load(monkeypatch):
    """Install the example's pass and kernel as a third party's entry points."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "class Softcap" in b]
    names: dict = {}
    exec(re.sub(r"^   ", "", block, flags=re.M), names)
    (line,) = re.findall(r"`KERNEL = (.*)`", TEXT)
    loaded = {
        "fluxrewrite.passes": names["Softcap"],
        "fluxrewrite.kernels": eval(line, {"Kernel": Kernel, "Limit": Limit, "torch": torch}),
    }

    class Entry(EntryPoint):
        def load(self):
            return loaded[self.group]

    monkeypatch.setattr(
        kernel, "entry_points", lambda group: [*entry_points(group=group), Entry("softcap", "mylib:x", group)]
    )


def test_example_pass_rewrites_and_keeps_to_its_limit(monkeypatch, check):
    load(monkeypatch)
    report = check(lambda x: 5.0 * torch.tanh(x / 5.0), "softcap", x=torch.randn(3, 4))
    assert [(s.kind, s.choice) for s in report.sites] == [("softcap", "kernel")]
    report = check(lambda x: 5.0 * torch.tanh(x / 5.0), "softcap", x=torch.randn(3, 5))
    assert [r.code for s in report.sites for r in s.reasons] == ["limit"]
    report = check(lambda x: 5.0 * torch.tanh(x / 4.0), "softcap", x=torch.randn(3, 4))
    assert report.sites == ()
    assert "softcap" in fluxrewrite.inspect(lambda x: x + 1, x=torch.randn(2)).summary.kinds
