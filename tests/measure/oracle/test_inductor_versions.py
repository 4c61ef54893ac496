import pytest
import torch

from fluxrewrite.errors import InputError
from fluxrewrite.measure.oracle.inductor import inductor_fusion


def test_an_older_torch_is_named(trace, monkeypatch):
    """Also where the torch at hand is an older one: nothing that it lacks is imported before."""
    gm = trace(lambda a: a.relu(), a=torch.zeros(2))
    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    with pytest.raises(InputError, match=r"torch 2\.12\.1\+cpu: .* needs 2\.13 or later"):
        inductor_fusion(gm, [torch.zeros(2)])
