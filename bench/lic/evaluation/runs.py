"""Finished runs, read again, and which of them can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.files import BadInput, readable
from bench.lic.optimizers import ADAMS

# Every field of a Config has one role (tests/lic/test_lic_eval_runs.py).
# What a comparison is about, or what a curve runs over: runs of one group may differ in these.
COMPARED = ("optimizer", "optimizer_options", "lr", "precondition_frequency", "lam", "seed")
# What moves times (and last bits): runs of a group may differ in these, but then have no common
# clock. Half precision moves more than last bits: the names of variants tell it.
TIMED = ("threads", "device", "world", "amp", "compile", "channels_last")
UNIMPORTANT = ("evaluate_every",)
# What all runs of a group have in common.
SETTING = (
    *("model", "factor", "images", "steps", "batch", "crop", "flip"),
    *("schedule", "milestones", "gamma", "patience"),
)
# What `eval --across` lets differ: milestones are steps too.
ACROSS = {"steps": ("steps", "milestones")}
PACKAGES = ("torch", "soap_fast")  # whose versions move times


@dataclass(frozen=True)
class Run:
    """What a folder of `python -m bench.lic train --out FOLDER` says of its run."""

    folder: Path
    summary: dict[str, Any]  # see bench/lic/training/history.py
    machine: dict[str, Any]
    versions: dict[str, Any] = field(default_factory=dict)  # of packages
    commit: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.summary["config"]
        return config

    @property
    def name(self) -> str:
        return readable(str(self.folder))

    @property
    def optimizer(self) -> str:
        return str(self.config["optimizer"])

    @property
    def lam(self) -> float:
        return float(self.config["lam"])

    @property
    def diverged(self) -> bool:
        """Its last loss was no number, in training or held out: it has no final quality."""
        return bool(self.summary.get("diverged")) or self.summary["rd_loss"] is None

    @property
    def clock(self) -> dict[str, Any]:
        """Runs with equal ones have comparable seconds."""
        return {
            **self.machine,
            **{key: self.config.get(key) for key in TIMED},
            **{f"version of {name}": self.versions.get(name) for name in PACKAGES},
            "resumed elsewhere": self.name if self._moved else None,  # then equal to no other's
        }

    @property
    def commits(self) -> list[str | None]:
        """Of the code that it was trained by: several, if it was resumed by another one."""
        parts = [part["commit"] for part in self.summary.get("ran_on") or ()]
        return list(dict.fromkeys(parts or [self.commit]))

    @property
    def _moved(self) -> bool:
        parts: list[dict[str, Any]] = self.summary.get("ran_on") or []
        return any(part[key] != parts[0][key] for part in parts for key in ("machine", "versions"))

    @property
    def setting(self) -> dict[str, Any]:
        """All that runs of one group have in common."""
        return {key: self.config.get(key) for key in SETTING}


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
        """Runs by optimizer, Adam first; and by what differs beside lambda and seed.

        An optimizer's options and frequency are in the label where it has several, its rate where
        it has several at one lambda; precision and steps where they differ in the group.
        """
        variants: dict[str, list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: run.optimizer != "adam"):
            details = ", ".join(self._details(run))
            label = f"{run.optimizer} ({details})" if details else run.optimizer
            variants.setdefault(label, []).append(run)
        return variants

    def anchors(self) -> list[str]:
        """The labels of Adam's variants, which the others are compared with."""
        return [label for label, runs in self.variants().items() if runs[0].optimizer == "adam"]

    def _details(self, run: Run) -> list[str]:
        details = []
        siblings = [other for other in self.runs if other.optimizer == run.optimizer]
        if any(_options(other) != _options(run) for other in siblings):
            details.append(_options(run) or "plain")
        at_lambda = [other for other in siblings if other.lam == run.lam]
        if any(
            other.config["lr"] != run.config["lr"] and _options(other) == _options(run)
            for other in at_lambda
        ):
            details.append(f"lr {run.config['lr']:.3g}")
        for key, name in (("amp", "precision"), ("steps", "steps")):
            if any(other.config.get(key) != run.config.get(key) for other in self.runs):
                details.append(f"{name} {run.config.get(key) or 'float32'}")
        return details


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
        machine, versions = content["machine"], content.get("versions") or {}
        run = Run(Path(folder), summary, machine, versions, content.get("commit"))
        present = {"model", "factor", *COMPARED} <= run.config.keys()
        present = present and {"curve", "rd_loss"} <= summary.keys()
    except (KeyError, TypeError, ValueError):
        present = False
    if not present:
        raise BadInput(f"{path} is not of one run of `python -m bench.lic train`; name another")
    return run


def group(runs: Sequence[Run], across: Sequence[str] = ()) -> list[Group]:
    """Runs in groups that can be compared, each named by what tells it from the others.

    Args:
        runs: in any order.
        across: of ACROSS, what runs of one group may differ in beside COMPARED.

    Raises:
        BadInput: two runs are the same variant of equal lambda and seed.
    """
    free = {key for name in across for key in ACROSS[name]}
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        setting = {key: value for key, value in run.setting.items() if key not in free}
        by_setting.setdefault(json.dumps(setting), []).append(run)
    settings = [json.loads(key) for key in by_setting]
    groups = [
        Group(_name(setting, settings), members)
        for setting, members in zip(settings, by_setting.values(), strict=True)
    ]
    for one in groups:
        _refuse_twins(one)
    return groups


def _refuse_twins(group: Group) -> None:
    for label, runs in group.variants().items():
        known: dict[tuple[float, int], Run] = {}
        for run in runs:
            other = known.setdefault((run.lam, run.config["seed"]), run)
            if other is not run:
                keys = [key for key in run.clock if run.clock[key] != other.clock.get(key)]
                differ = f", apart from {', '.join(keys)}" if keys else ""
                raise BadInput(
                    f"{other.name} and {run.name} are the same run, {label} of lambda {run.lam:g} "
                    f"and seed {run.config['seed']}{differ}; leave one out"
                )


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


def _options(run: Run) -> str:
    """Of its optimizer, the rate aside; empty where it has none."""
    options = [f"{key} {value}" for key, value in (run.config["optimizer_options"] or {}).items()]
    if run.optimizer not in ADAMS:  # which have no frequency, whatever the config says
        options.insert(0, f"frequency {run.config['precondition_frequency']}")
    return ", ".join(options)
