from pathlib import Path

import pytest

from fluxrewrite.cost import Case, load_evidence
from fluxrewrite.cost.published import from_table

TABLE = Path(__file__).parents[1] / "data" / "seed_results.json"
KLEIN = {
    "model": "flux2-klein-4b",
    "dtype": "bfloat16",
    "tp": 4,
    "batch": 1,
    "image_tokens": 256,
    "text_tokens": 512,
}


@pytest.fixture
def evidence():
    return load_evidence()


@pytest.fixture
def published():
    return from_table(TABLE)


@pytest.fixture
def compiled():
    return Case(device="trn2", regime="compile", **KLEIN)


@pytest.fixture
def lazy():
    return Case(device="trn1", regime="lazy", **KLEIN)


@pytest.fixture
def without():
    """`without(evidence, kernels)`: the evidence less every run with just these kernels."""

    def run(evidence, *kernels):
        tables = [
            t.model_copy(update={"runs": tuple(r for r in t.runs if sorted(r.kernels) != sorted(kernels))})
            for t in evidence.tables
        ]
        return evidence.model_copy(update={"tables": tuple(tables)})

    return run
