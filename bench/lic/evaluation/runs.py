"""Finished runs, read again, and which of them can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command import BadInput

# What a comparison is about, or what a curve runs over: runs of one group may differ in these.
COMPARED = ("optimizer", "optimizer_options", "lr", "precondition_frequency", "lam", "seed")
# What moves times (and last bits): runs of a group may differ in these, but then have no common
# clock.
TIMED = ("threads", "device", "world", "amp", "compile", "channels_last")
UNIMPORTANT = ("evaluate_every",)


@dataclass(frozen=True)
class Run:
    """What a folder of `python -m bench.lic train --out FOLDER` says of its run."""

    folder: Path
    summary: dict[str, Any]  # see bench/lic/training/history.py
    machine: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.summary["config"]
        return config

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def optimizer(self) -> str:
        return str(self.config["optimizer"])

    @property
    def lam(self) -> float:
        return float(self.config["lam"])

    @property
    def clock(self) -> dict[str, Any]:
        """Runs with equal ones have comparable seconds."""
        return {**self.machine, **{key: self.config.get(key) for key in TIMED}}

    @property
    def setting(self) -> dict[str, Any]:
        """All that runs of one group have in common."""
        left_out = (*COMPARED, *TIMED, *UNIMPORTANT)
        return {key: value for key, value in self.config.items() if key not in left_out}


@dataclass(frozen=True)
class Group:
    """Runs that differ only in what is compared.

    Attributes:
        name: the model, with what tells this group from others of the same model.
        runs: in the order they were named.
    """

    name: str
    runs: list[Run]

    def variants(self) -> dict[str, list[Run]]:
        """Runs by optimizer, Adam first; by its options too where one optimizer has several."""
        ordered = sorted(self.runs, key=lambda run: run.optimizer != "adam")
        varied: dict[str, set[str]] = {}
        for run in ordered:
            varied.setdefault(run.optimizer, set()).add(_details(run))
        variants: dict[str, list[Run]] = {}
        for run in ordered:
            several = len(varied[run.optimizer]) > 1
            label = f"{run.optimizer} ({_details(run)})" if several else run.optimizer
            variants.setdefault(label, []).append(run)
        return variants


def read(folder: str) -> Run:
    """The run that has left its files in `folder`.

    Raises:
        BadInput: there are none, or they are of something else.
    """
    path = Path(folder) / "result.json"
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror}; name the --out of a finished `python -m bench.lic train`"
        ) from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); train anew") from None
    try:
        (summary,) = content["results"]
        run = Run(Path(folder), summary, content["machine"])
        present = {"model", "factor", *COMPARED} <= run.config.keys() and "curve" in summary
    except (KeyError, TypeError, ValueError):
        present = False
    if not present:
        raise BadInput(f"{path} is not of one run of `python -m bench.lic train`; name another")
    return run


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs in groups that can be compared, each named by what tells it from the others."""
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(json.dumps(run.setting, sort_keys=True), []).append(run)
    settings = [members[0].setting for members in by_setting.values()]
    return [Group(_name(members[0].setting, settings), members) for members in by_setting.values()]


def _name(setting: dict[str, Any], settings: list[dict[str, Any]]) -> str:
    name = f"{setting['model']} x {setting['factor']:g}"
    same_model = [other for other in settings if _model(other) == _model(setting)]
    differing = [
        f"{key} {setting.get(key)}"
        for key in setting
        if any(other.get(key) != setting[key] for other in same_model)
    ]
    return ", ".join([name, *differing])


def _model(setting: dict[str, Any]) -> tuple[Any, ...]:
    return setting["model"], setting["factor"]


def _details(run: Run) -> str:
    """What distinguishes two runs of one optimizer, its rate and its seed aside."""
    options = [f"{key} {value}" for key, value in (run.config["optimizer_options"] or {}).items()]
    if run.optimizer == "adam":  # it has no frequency, whatever the config says
        return ", ".join(options) or "plain"
    return ", ".join([f"frequency {run.config['precondition_frequency']}", *options])
