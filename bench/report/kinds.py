"""Which measurement a result file is of, by the fields of its rows."""

from __future__ import annotations

from dataclasses import dataclass

from bench.output.files import ResultFile


@dataclass(frozen=True)
class Kind:
    """Results of one command.

    Attributes:
        needs: fields that a row of it has, and of kinds further up has not.
        columns: of its table.
    """

    name: str
    title: str
    needs: frozenset[str]
    columns: tuple[str, ...] = ()


def _kind(name: str, title: str, needs: str, columns: str = "") -> Kind:
    return Kind(name, title, frozenset(needs.split()), tuple(columns.split()))


SUITE = _kind(
    "suite",
    "Ops, by pytest-benchmark",
    "",
    "op shapes backend device seconds flops bytes launches share_of_roof",
)
# The first one that fits.
KINDS = (
    _kind("scaling", "Cost against size", "sweep"),
    _kind("roof", "Roofs", "roof value unit", "roof value unit median device threads what"),
    _kind(
        "kernels",
        "Kernels and operators",
        "us flops bytes",
        "name phase by shapes device us flops bytes share",
    ),
    _kind(
        "aot",
        "Kernels, compiled ahead of time",
        "registers spill_bytes",
        "kernel sm options registers shared_bytes stack_bytes spill_bytes load_bytes",
    ),
    _kind(
        "launches",
        "Launches of the models",
        "launches_plain",
        "model launches_plain launches_refresh flops bytes padding workspace_ratio host_ratio "
        "floor_ms",
    ),
    _kind("gate", "Gate", "check rule ok", "check of found rule expected ok"),
    _kind("compare", "Two results", "old_ms new_ms", "name old_ms new_ms ratio low high verdict"),
    _kind(
        "train",
        "Training steps",
        "forward_ms optimizer_ms",
        "name model width batch crop mean_ms forward_ms backward_ms optimizer_ms share ratio "
        "peak_bytes peak_ratio",
    ),
    _kind("trace", "Named parts of steps", "times host_ms", "name times host_ms device_ms share"),
    _kind(
        "refresh",
        "First bases and refreshes",
        "refresh_loop_ms",
        "shapes op device factors threads refresh_ms refresh_loop_ms refresh_ratio eigh_ms "
        "eigh_loop_ms eigh_ratio",
    ),
    _kind("step", "Steps by phase", "name first_ms plain_ms refresh_ms"),
    _kind(
        "comparison",
        "Optimizers compared on models",
        "variant rd_loss_spread",
        "group variant lr rd_loss rd_loss_spread steps_ratio seconds_ratio step_ms optimizer_share",
    ),
    _kind(
        "demo",
        "The demo",
        "optimizer rd_loss curve",
        "optimizer lr steps rd_loss bpp psnr step_ms optimizer_ms optimizer_share",
    ),
    _kind("state", "State", "model state_bytes", "model parameters state_bytes"),
)
NAMES = tuple(kind.name for kind in (*KINDS, SUITE))


def kind_of(file: ResultFile) -> Kind | None:
    """What a file is of; None for what nothing is known of."""
    if file.by_plugin:
        return SUITE if file.rows else None
    for kind in KINDS:
        if any(kind.needs <= set(row) for row in file.rows):
            return kind
    return None
