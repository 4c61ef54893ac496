"""Several processes on one model: their group, the shards of the model, and the check that all of them plan the same.

The work is done by torch: torch.distributed with gloo, DTensor, torchrun, and the `_tp_plan` of a diffusers model. This module
adds only what these leave open.

    torchrun --nproc-per-node 4 script.py

    with process_group(timeout_s=60) as here:
        model = shard(build(seed=0), here.world)     # every rank builds the same weights and keeps its part
        run = torch.compile(model, backend=fluxrewrite.backend("inductor"))
        ...
        if here.leads:
            print(...)
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import Store, _resolve_process_group
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.fx import GraphModule, Node

from .errors import InputError, RankError, RewriteError, one_line
from .graph.localize import mesh_of

__all__ = [
    "Ranks",
    "agree",
    "cpu_mesh",
    "degree",
    "divisible",
    "fake_group",
    "of_transport",
    "peers",
    "process_group",
    "ranks",
    "shard",
]

TIMEOUT_S = 60.0
"""How long a rank waits for another one, seconds. The default of gloo is 30 minutes."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and how many there are.

    Attributes:
        rank: counts from 0.
        world: number of processes.
    """

    rank: int
    world: int

    def __post_init__(self) -> None:
        """Raise InputError for a rank that is not in 0..world-1."""
        if not 0 <= self.rank < self.world:
            raise InputError(f"rank {self.rank} of {self.world}: ranks count from 0 to {self.world - 1}")

    @property
    def leads(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0


def ranks(environment: Mapping[str, str] | None = None) -> Ranks | None:
    """The rank and world from torchrun's environment (RANK, WORLD_SIZE); None outside of torchrun.

    Args:
        environment: read instead of `os.environ`.

    Raises:
        InputError: only one of the two variables is set, or one is not a number.
    """
    given = os.environ if environment is None else environment
    found = {name: given.get(name) for name in ("RANK", "WORLD_SIZE")}
    if not any(found.values()):
        return None
    for name, value in found.items():
        if value is None or not value.isdigit():
            raise InputError(f"{name} is {value!r} in the environment; torchrun sets RANK and WORLD_SIZE to numbers")
    return Ranks(int(found["RANK"] or 0), int(found["WORLD_SIZE"] or 0))


@contextlib.contextmanager
def process_group(
    rank: int | None = None,
    world: int | None = None,
    store: str | Path | Store | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Ranks]:
    """A gloo group of processes on CPU for the duration of a `with` block.

    Args:
        rank, world: this process and how many there are; by default from torchrun's environment.
        store: where the processes meet: a file that does not exist yet, "tcp://host:port" or a store of torch; by default
            torchrun's address (MASTER_ADDR and MASTER_PORT).
        timeout_s: longest wait for another rank, seconds.

    Raises:
        InputError: no ranks are given or found, a group exists already, or the ranks cannot meet at `store`.
        RankError: another rank did not join, ended, or did not answer in time, here or anywhere in the block.
    """
    here = ranks() if rank is None or world is None else Ranks(rank, world)
    if here is None:
        raise InputError("no ranks: run under torchrun --nproc-per-node N, or give rank, world and store")
    _require_no_group("process_group")
    place: dict[str, Any] = {"store": store} if isinstance(store, Store) else {"init_method": _init_method(store)}
    wait = datetime.timedelta(seconds=timeout_s)
    try:
        dist.init_process_group("gloo", rank=here.rank, world_size=here.world, timeout=wait, **place)
    except ValueError as error:
        raise InputError(
            f"{place.get('init_method')}: ranks cannot meet there ({error}); give a new file or tcp://host:port"
        ) from error
    except RuntimeError as error:
        raise _lost(here, timeout_s, error) from error
    try:
        yield here
    except RuntimeError as error:
        if not of_transport(error):
            raise
        raise _lost(here, timeout_s, error) from error
    finally:
        dist.destroy_process_group()


def _init_method(store: str | Path | None) -> str:
    """The address where ranks meet, as an `init_method` of torch."""
    if store is None or "://" in str(store):
        return str(store or "env://")
    path = Path(store).absolute()
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    return f"file://{path}"


def of_transport(error: BaseException) -> bool:
    """Whether torch raised this error because another rank ended or did not answer."""
    if not isinstance(error, RuntimeError):
        return False
    known = (dist.DistError, dist.DistStoreError, dist.DistNetworkError)
    # Errors inside gloo are plain RuntimeErrors. Only their text says where they come from.
    return isinstance(error, known) or "gloo" in one_line(error, named=False)


def _lost(here: Ranks, timeout_s: float, error: Exception) -> RankError:
    """The error for this rank. Messages of gloo name sockets and not ranks, so they only follow in brackets."""
    return RankError(
        f"rank {here.rank} of {here.world}: another rank ended, or did not answer within {timeout_s:g} s; "
        f"its own message says why ({one_line(error, named=False)})"
    )


@contextlib.contextmanager
def fake_group(world: int, rank: int = 0) -> Iterator[Ranks]:
    """A group in which only this process exists, to trace what one rank of `world` computes. Its collectives do nothing.

    Raises InputError if a group exists already.
    """
    from torch.testing._internal.distributed import fake_pg  # registers the backend "fake"

    here = Ranks(rank, world)
    _require_no_group("tracing one rank")
    dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=rank, world_size=world)
    try:
        yield here
    finally:
        dist.destroy_process_group()


def _require_no_group(what: str) -> None:
    if dist.is_initialized():
        raise InputError(
            f"{what} needs a process without a group, and one of {dist.get_world_size()} ranks is initialised already; "
            "run it in a separate process"
        )


# *** shards


def degree(model: nn.Module) -> int:
    """The number of ranks that the DTensors of a model are divided among; 1 if it has no DTensor."""
    return max((p.device_mesh.size() for p in model.parameters() if isinstance(p, DTensor)), default=1)


def shard(model: nn.Module, world: int, mesh: DeviceMesh | None = None) -> nn.Module:
    """Divide a model among ranks by its own `_tp_plan`, in place, and return it.

    Parameters become DTensors of which this rank keeps its part. Forward hooks convert to and from DTensors at the sharded layers,
    so everything between these is local. Nothing is sent: every rank must hold the same weights before, from one seed or one file.

    Args:
        model: of a class with `_tp_plan`; parameters may be fake.
        world: number of ranks.
        mesh: one axis over the ranks; by default one of CPU devices over the whole process group.

    Raises:
        InputError: the model has no plan, is divided already, or cannot be divided among so many ranks.
    """
    plan = divisible(model, world)
    from diffusers.hooks.tensor_parallel import _resolve_tp_plan, _styles
    from torch.distributed.tensor.parallel import parallelize_module

    mesh = cpu_mesh(world) if mesh is None else mesh
    # The steps of diffusers' `enable_parallelism`, which itself refuses devices of type "cpu". Without `src_data_rank=None` each
    # layer would broadcast its weights from rank 0.
    for module, styles in _resolve_tp_plan(model, dict(plan)):
        parallelize_module(module, mesh, _styles(styles), src_data_rank=None)
    _copy_views(model)
    return model


def cpu_mesh(world: int) -> DeviceMesh:
    """One axis "tp" over the CPUs of all ranks of the process group."""
    with unset_fake_temporarily():  # a mesh is made of tensors too
        return init_device_mesh("cpu", (world,), mesh_dim_names=("tp",))


def divisible(model: nn.Module, world: int) -> Mapping[str, Any]:
    """The `_tp_plan` of a model that can be divided among `world` ranks. Its parameters may be fake or meta.

    Raises InputError if the model has no plan or is divided already, or if its heads, or blocks of rows or columns, are not a
    multiple of the ranks.
    """
    name = type(model).__name__
    plan: Mapping[str, Any] | None = getattr(model, "_tp_plan", None)
    if degree(model) > 1:
        raise InputError(f"{name} is divided among {degree(model)} ranks already")
    if not plan:
        raise InputError(
            f"{name} has no _tp_plan, so it is not known how to divide it among {world} ranks; "
            "give a diffusers transformer that has one, or a model whose parameters are DTensors"
        )
    heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
    if isinstance(heads, int) and heads % world:
        fits = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
        raise InputError(f"{name}: {heads} heads cannot be divided among {world} ranks; {fits} ranks divide them")
    try:
        from diffusers.hooks.tensor_parallel import resolve_tp_shard_specs
    except ImportError as error:
        raise InputError(f"{name}: dividing by _tp_plan needs diffusers with tensor parallelism ({error})") from error
    try:
        resolve_tp_shard_specs(model, dict(plan), world)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{name}: {error}") from error
    return plan


def _copy_views(model: nn.Module) -> None:
    """Replace parts that are views by copies."""
    # A view would keep the whole weight in memory on every rank, and then dividing the model would save none.
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            local = parameter._local_tensor
            if local.untyped_storage().nbytes() > local.numel() * local.element_size():
                parameter._local_tensor = local.clone()


# *** one plan on all ranks


def peers(gm: GraphModule) -> tuple[int, ...]:
    """The ranks that a graph communicates with, this one included; empty for one process and for a fake group."""
    if (
        not (dist.is_available() and dist.is_initialized())
        or dist.get_world_size() == 1
        or dist.get_backend() == "fake"
    ):
        return ()
    mesh = mesh_of(gm)
    if mesh is not None:
        return tuple(sorted(int(r) for r in mesh.mesh.flatten().tolist()))
    found = {rank for node in gm.graph.nodes for rank in _group_of(node)}
    return tuple(sorted(found))


def _group_of(node: Node) -> Sequence[int]:
    """The ranks of a functional collective's group."""
    if not str(node.target).startswith("_c10d_functional.") or "wait" in str(node.target):
        return ()
    group = node.args[-1]
    if isinstance(group, str):
        return dist.get_process_group_ranks(_resolve_process_group(group))  # type: ignore[arg-type]  # a str in torch 2.9
    return dist.get_process_group_ranks(None)


def agree(plan: Sequence[str], among: Sequence[int]) -> None:
    """Check that all ranks have the same plan, and raise on each of them if not.

    Blocks until every rank has published its plan, or until the timeout of the group. Call it on every rank and equally often:
    the n-th call of a rank is compared with the n-th calls of the others.

    A rank that plans differently or fails alone would run another graph than the rest. The others would wait for it in a
    collective, and their error would not say why.

    Args:
        plan: the lines to compare: one for each site and its choice, or the outcome of a compile.
        among: the ranks, from `peers`. With fewer than two there is nothing to compare.

    Raises:
        RewriteError: the plans differ. The message names the ranks and the first line that differs.
        RankError: a rank published no plan within the timeout of the group.
    """
    if len(among) < 2:
        return
    plans = _exchanged("\n".join(plan), among)
    versions: dict[str, list[int]] = {}
    for rank, text in plans.items():
        versions.setdefault(hashlib.sha256(text.encode()).hexdigest(), []).append(rank)
    if len(versions) > 1:
        raise RewriteError(_difference([(found, plans[found[0]].splitlines()) for found in versions.values()]))


def _exchanged(text: str, among: Sequence[int]) -> dict[int, str]:
    """The text of each rank, in order of ranks."""
    # Through the store of the group and not by a collective: a rank that fails, or compiles another graph, would leave the
    # others inside the collective. From the store each of them learns which rank is missing.
    store, me = dist.distributed_c10d._get_default_store(), dist.get_rank()
    where = f"fluxrewrite/plan/{'-'.join(map(str, among))}"
    call = store.add(f"{where}/{me}", 1)
    store.set(f"{where}/{me}/{call}", text)
    wait = store.timeout  # type: ignore[attr-defined]  # as given to init_process_group
    plans = {}
    for rank in among:
        try:
            plans[rank] = store.get(f"{where}/{rank}/{call}").decode()
        except RuntimeError as error:
            raise RankError(
                f"rank {rank} did not publish its plan of graph {call} within {wait.total_seconds():g} s: it ended, "
                f"failed, or compiles other graphs than rank {me}"
            ) from error
    return plans


def _difference(versions: Sequence[tuple[Sequence[int], Sequence[str]]]) -> str:
    (first, mine), (second, other) = versions[0], versions[1]
    shown = next((a, b) for a, b in zip_longest(mine, other, fillvalue="nothing") if a != b)
    sides = " | ".join(f"{_rank_names(found)}: {line}" for found, line in zip((first, second), shown, strict=True))
    kinds = "" if len(versions) == 2 else f" in {len(versions)} ways"
    return (
        f"the ranks plan differently{kinds}; the first difference: {sides}; give every rank the same options and model"
    )


def _rank_names(found: Sequence[int]) -> str:
    return f"rank{'s' * (len(found) > 1)} {', '.join(map(str, found))}"
