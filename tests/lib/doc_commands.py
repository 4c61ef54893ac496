"""How each command of README.md, CONTRIBUTING.md and docs/ is run. One that no row knows fails in `tests/docs`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from documented import Command

__all__ = ["ByTest", "NotHere", "Recipe", "Run", "Target", "Tool", "Whole", "how", "smaller"]


@dataclass(frozen=True)
class Whole:
    """`fluxrewrite.cli.main` runs it as it stands, in the slow tests; the default tests read its options."""


@dataclass(frozen=True)
class Run:
    """`fluxrewrite.cli.main` runs it in this process, in a folder that has the files it names.

    Attributes:
        instead: what is run; by default the command on the model of examples/small, as `smaller` says. What begins with a
            blank is added to the command.
        code: exit code of that.
        slow: that takes long: it is for the slow tests.
    """

    instead: str = ""
    code: int = 0
    slow: bool = False

    def of(self, command: Command) -> str:
        """What is run in the place of the command."""
        return command.text + self.instead if self.instead.startswith(" ") else self.instead or smaller(command.text)


@dataclass(frozen=True)
class Target:
    """A target of the Makefile that .ci/run calls."""


@dataclass(frozen=True)
class Recipe:
    """A target of the Makefile whose recipe is commands that stand here too."""


@dataclass(frozen=True)
class Tool:
    """A script of tools/, run on smaller graphs; `small` says how, as `tests/docs/test_tools.py` makes them."""

    small: str


@dataclass(frozen=True)
class ByTest:
    """Another test runs it: "file::name", or a target of the Makefile that .ci/run calls."""

    by: str


@dataclass(frozen=True)
class NotHere:
    """It cannot be run here, or must not. A command of fluxrewrite is still read: its options must be real ones."""

    why: str


How = Whole | Run | Target | Recipe | Tool | ByTest | NotHere


def smaller(text: str) -> str:
    """The command on the folder "small" in the place of a preset, with 24 + 12 tokens."""
    found, count = re.subn(r"\b(flux2-klein-4b|flux2-klein-mini|flux2-dev)\b", "small", text, count=1)
    return f"{found} --image-tokens 24 --text-tokens 12" if count else text


_TRN2 = NotHere("needs a Trn2 instance and AWS's packages; nobody has run it")
_ENVIRONMENT = NotHere("makes an environment on a Trn2 instance from AWS's package index")
_BENCH = Run(
    "fluxrewrite bench small --image-tokens 24 --text-tokens 12 --dtype fp32 --inner eager --variants vanilla,all --steps 1 "
    "--runs 2 --save runs.json",
    slow=True,
)
_CALIBRATE = Run(
    "fluxrewrite calibrate --quick --threads 1 --for small --kernels attention --image-tokens 24 --text-tokens 12 -o me.json",
    slow=True,
)

_ROWS: tuple[tuple[str, How], ...] = (
    # a model's report
    (
        r"fluxrewrite inspect flux2-klein-4b --tp 4",  # tests/test_tensor_parallel.py has klein-4B on four ranks
        Run("fluxrewrite inspect small --tp 2 --image-tokens 24 --text-tokens 12", slow=True),
    ),
    (r"fluxrewrite (inspect flux2-klein-mini --device|devices) FILE", ByTest("tests/cost/test_own_profile.py")),
    (r"fluxrewrite inspect flux2-dev --format html .*", Run(slow=True)),  # tests/report/draw/test_page.py has the page of 56 blocks
    (r"fluxrewrite inspect (flux2-klein-4b|flux2-klein-mini).*", Whole()),
    (r"fluxrewrite inspect --device trn1 --regime lazy", Run(smaller("fluxrewrite inspect flux2-dev --device trn1 --regime lazy"))),
    (r"fluxrewrite inspect mymodels:block", Run()),
    (r"fluxrewrite show report.json .*", Run()),
    (r"fluxrewrite diff \S+ \S+", Run()),
    (r"fluxrewrite diff .* --exit-code .*", Run(code=1)),
    (r"fluxrewrite (inspect|show|diff|verify|bench|calibrate|kernels profile)", Run(" --help")),
    (r"fluxrewrite (kernels|kernels --format json|devices|devices trn2)", Run()),
    (
        r"fluxrewrite kernels profile attention --shape heads=6,sequence=4608 --cores 2",
        Run("fluxrewrite kernels profile attention --shape heads=2,sequence=130 --cores 2"),
    ),
    (
        r"fluxrewrite kernels profile attention .* --trace timeline.json",
        Run("fluxrewrite kernels profile attention --shape heads=2,sequence=130 --cores 2 --trace timeline.json"),
    ),
    # what runs models and kernels
    (r"fluxrewrite verify flux2-klein-mini.*", Run(slow=True)),
    (
        r"fluxrewrite verify --kernels( --quick| NAME)?",
        Run("fluxrewrite verify --kernels rope --quick --filter 'rope fp32'", slow=True),
    ),
    (r"fluxrewrite verify --kernels .*--simulator both", _TRN2),
    (r"fluxrewrite bench flux2-klein-mini .*", _BENCH),
    (r"fluxrewrite bench flux2-klein-4b --variants .*", _BENCH),
    (r"fluxrewrite bench .*--inner neuron.*", _TRN2),
    (r"fluxrewrite calibrate --from runs.json .*", Run()),
    (
        r"fluxrewrite calibrate (--quick )?-o (here.json|FILE)",
        Run("fluxrewrite calibrate --quick --threads 1 -o here.json", slow=True),
    ),
    (r"fluxrewrite calibrate --for MODEL -o me.json", _CALIBRATE),
    # targets
    (r"make (test|test-slow|test-browser|test-xla|test-torch29|test-quantised|lint|docs|lint docs test)", Target()),
    (r"make (inspect|map|verify|bench|bench-kernels|bench-plans|docs-reference|sessions)", Recipe()),
    (r"make schema", ByTest("tests/report/test_report.py")),
    # scripts
    (r"python tools/bench_matching.py", Tool("flux2-klein-mini as both models, 1,000 nodes, 1 round")),
    (r"python tools/bench_analysis.py --runs 7", Tool("flux2-klein-mini as both models, 1,000 nodes, 1 round")),
    (r"python tools/bench_kernels.py", Tool("trn2, without the long sequence")),
    (r"python tools/bench_plans.py", Tool("one small attention, 7 rounds, its graphs run as they are in the place of Inductor")),
    (r"python tools/compare_oracles.py", Tool("16 + 8 tokens, the kernel qkv alone")),
    (r"python tools/compare_oracles.py --compiler xla .*", NotHere("needs the environment of make xla: tests/xla asks XLA there")),
    (r"python tools/coverage.py .*|make coverage", ByTest("tests/tools/test_coverage.py")),
    (r"make fuzz|python tools/fuzz.py .*", ByTest("tests/fuzz/test_tool.py")),
    (r"make mutate|python tools/mutate_guards.py .*", ByTest("tests/tools/test_mutate_guards.py")),
    (r"python tools/docs_reference.py", ByTest("tests/docs/test_reference.py::test_pages_say_what_the_code_says")),
    (r"python tools/docs_sessions.py", ByTest("tests/docs/test_sessions.py::test_a_session_is_recorded_again")),
    (r"python examples/flux2_pipeline.py", ByTest("tests/test_examples.py::test_the_pipeline_of_diffusers")),
    (r"torchrun --nproc-per-node 4 script.py", ByTest("tests/test_parallel.py")),
    (r"torchrun --nproc-per-node 4 -m fluxrewrite (bench|verify) .*", ByTest("tests/cli/test_torchrun.py")),
    (r"model-explorer graphs.json .*", ByTest("tests/browser/test_model_explorer.py")),
    # pytest and pip
    (r"pytest tests/test_parallel.py -m slow", ByTest("make test-slow")),
    (r"pytest tests/(neuron( -q)?|cost tests/cli tests/fusion/boundary)", ByTest("make test")),
    (r"pytest --update-golden", NotHere("writes the golden graphs anew, which is to be looked at")),
    (r"pytest --nkilib=PATH", NotHere("needs a checkout of AWS's repository")),
    (
        r"pip install -c constraints.txt '.\[diffusers\]'",
        ByTest("tests/test_package.py::test_wheel_in_an_empty_environment"),
    ),
    (r"pip install ai-edge-model-explorer", NotHere("installs; make test-browser does, as the extra viz")),
    (r"(python3.12 -m venv neuron|. neuron/bin/activate|pip install (torch==2.13.0|--extra-index-url .*|-e .*))", _ENVIRONMENT),
    (r"pip list", _ENVIRONMENT),
    (r"python -c 'import torch, torch_neuronx.*", _TRN2),
    (r"export TORCH_NEURONX_\w+=\S+", ByTest("tests/neuron/test_docs.py::test_settings_are_those_that_the_code_reads")),
)  # fmt: skip


def how(command: Command) -> How:
    """The first row that knows the command. Raises LookupError for a command that no row knows."""
    for pattern, found in _ROWS:
        if re.fullmatch(pattern, command.text):
            return found
    raise LookupError(
        f"{command.where}: nobody runs `{command.text}`: give it a row in tests/lib/doc_commands.py that says how it is run"
    )
