"""`sharing`: a refresh of all factors of a model by several processes, against one alone.

Each process has a core of its own and one thread, and they speak by gloo. In turn the first one
refreshes all factors while the others wait, and all of them share the same refresh. Timed is what
`sharding="refresh"` does in place of the operator: computing, sending and receiving. Of those that
share the slowest counts. Ratios are shared over alone, of medians; those of CPU time hold on a
machine that others use as well, since waiting is none of it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bench import shapes
from bench.command import Row, common, positive
from bench.costs import PLAN
from bench.files import BadInput
from bench.refresh import OPS, Factors
from soap_fast import extension
from soap_fast.distributed.sharing import Sharing
from soap_fast.step.plan import plan_tensor

COLUMNS = (
    "shapes", "op", "ranks", "factors", "alone_ms", "shared_ms", "ratio", "alone_cpu_ms",
    "shared_cpu_ms", "cpu_ratio", "cpu_ratio_least", "cpu_ratio_most", "megabytes",
)  # fmt: skip
LIMIT = 600  # seconds that ranks wait for each other
Times = list[tuple[float, float]]  # wall and CPU seconds, by repeat


def add_options(parser: argparse.ArgumentParser) -> None:
    common(parser, "--shapes", "--repeats")
    parser.add_argument("--op", choices=OPS, default="native", help="default: %(default)s")
    parser.add_argument("--ranks", type=positive(int), default=2, help="default: %(default)s")


def run(options: argparse.Namespace) -> list[Row]:
    if options.op == "native" and not extension.available():
        raise BadInput(f"--op native: {extension.reason()}")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < options.ranks:
        raise BadInput(f"--ranks {options.ranks}: each needs a core, and {len(cores)} are known")
    inventory = shapes.load(options.shapes)
    plans = (plan_tensor(entry.shape, PLAN) for entry in inventory.entries)
    if not any(size for plan in plans for size in plan.factors):
        raise BadInput(f"no parameter of {inventory.model} has a factor: name other --shapes")
    found = _by_processes(options, cores)
    alone = found[0]["alone"]
    # Of each repeat the slowest rank; wall and CPU time each by itself.
    shared = [
        tuple(max(times) for times in zip(*of_repeat, strict=True))
        for of_repeat in zip(*(rank["shared"] for rank in found), strict=True)
    ]
    row: Row = {
        "shapes": inventory.model,
        "op": options.op,
        "device": "cpu",
        "ranks": options.ranks,
        "factors": found[0]["factors"],
        "megabytes": found[0]["bytes"] / 1e6,
        "repeats": options.repeats,
        "samples": {"alone": alone, "shared": shared},
    }
    for kind, place in (("", 0), ("cpu_", 1)):
        one, many = ([1e3 * times[place] for times in side] for side in (alone, shared))
        ratios = [b / a for a, b in zip(one, many, strict=True)]
        row |= {
            f"alone_{kind}ms": statistics.median(one),
            f"shared_{kind}ms": statistics.median(many),
            f"{kind}ratio": statistics.median(many) / statistics.median(one),
            f"{kind}ratio_least": min(ratios),
            f"{kind}ratio_most": max(ratios),
        }
    return [row]


def _by_processes(options: argparse.Namespace, cores: list[int]) -> list[dict[str, Any]]:
    """What each of them found, by rank."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(options.ranks):
            ours, theirs = context.Pipe()
            arguments = rank, options, cores[rank], f"{folder}/store", theirs
            processes.append(context.Process(target=_rank, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        try:
            return [pipe.recv() for pipe in pipes]
        except EOFError:
            raise BadInput("a process ended before it was done; its error stands above") from None
        finally:
            for process in processes:
                process.join(LIMIT)


def _rank(rank: int, options: argparse.Namespace, core: int, store: str, pipe: Any) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=options.ranks,
        timeout=timedelta(seconds=LIMIT),
    )
    group = dist.group.WORLD
    assert group is not None
    factors, sharing = Factors.of(shapes.load(options.shapes)), Sharing(group)
    op = OPS[options.op][1]
    times: dict[str, Times] = {"alone": [], "shared": []}
    for _ in range(options.repeats + 1):  # the first one warms up
        for name, found in times.items():
            bases = [q.clone() for q in factors.first_Q]  # the list gets others
            arguments = factors.K, bases, factors.chosen, factors.allowed, 0.0
            dist.barrier()
            if name == "shared":
                found.append(_timed(lambda given=arguments: sharing.refresh(op, *given)))
            elif rank == 0:
                found.append(_timed(lambda given=arguments: op(*given)))
    count = sum(len(stack) for stack in factors.K)
    kept = {name: found[1:] for name, found in times.items()}
    pipe.send({**kept, "factors": count, "bytes": sharing.traffic[1]})
    dist.barrier()
    dist.destroy_process_group()


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of this process, all its threads."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
