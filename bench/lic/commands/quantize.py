"""`quantize`: what finished runs lose by 8-bit weights and activations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from bench import envelope
from bench.command import Parser, check_target, device, positive
from bench.files import BadInput
from bench.lic import style
from bench.lic.commands.evaluate import finished, image_sets
from bench.lic.data import EvaluationSet, calibration_set
from bench.lic.evaluation.curves import against, points
from bench.lic.evaluation.int8 import ITERATIONS
from bench.lic.evaluation.quality import Score, mean_of, measure_set
from bench.lic.evaluation.quantization import (
    RANGES,
    ROUNDINGS,
    Quantization,
    Recipe,
    calibrated,
    crops,
    quantized,
)
from bench.lic.evaluation.runs import Group, Run, group
from bench.lic.training import load_model, say

FLOAT = "float"
WAYS = [f"{rounding}, {ranges}" for rounding in ROUNDINGS for ranges in RANGES]

NOTES = (
    "Weights: 8 bits, symmetric, a scale for each output channel. Activations: 8 bits, asymmetric, "
    "a range for each layer's input, from the calibration images. Biases, sums, normalisations and "
    "products of two activations (queries with keys) stay float.",
    "nearest and adaround are how weights are rounded; AdaRound (arXiv 2004.10568) goes by each "
    "layer's own output error, with the float model's inputs. Output errors are of images that "
    "AdaRound has not seen; a layer where it is no better there keeps nearest.",
    "R-D loss is lambda * 255² * mse + bpp, its change that of the quantised model against the "
    "float one. BD-rate is against the float model of the same runs: per cent of bits at equal "
    "PSNR, negative where fewer are needed.",
)

Rows = list[dict[str, Any]]


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "quantize", help="what finished runs lose by 8-bit weights and activations"
    ).add_argument
    add("runs", metavar="RUN", nargs="+", help="folder that `train --out` has filled")
    add(
        "--data",
        metavar="DIR",
        action="append",
        help="folder of images to measure on; may be repeated (default: scikit-image's photo that "
        "is never trained on)",
    )
    add(
        "--calibration",
        metavar="DIR",
        help="folder of images that ranges and roundings come from, none of those measured on "
        "(default: scikit-image's photos to train on)",
    )
    add("--images", type=positive(int), default=32, help="of them, at most (default: %(default)s)")
    add(
        "--crop",
        type=positive(int),
        default=512,
        metavar="PIXELS",
        help="of each, the middle of at most so many a side (default: %(default)s)",
    )
    add(
        "--percentile",
        type=_percentile,
        default=Recipe.percentile,
        help="per cent of an activation's values within its range, in place of all of them "
        "(default: %(default)s)",
    )
    add(
        "--iterations",
        type=positive(int),
        default=ITERATIONS,
        help="of AdaRound, for each layer (default: %(default)s)",
    )
    add(
        "--entropy-networks",
        action="store_true",
        help="quantise the networks of the entropy model too (default: analysis and synthesis)",
    )
    add("--json", metavar="FILE", help="write the result there too; - is standard output")
    add("--device", type=device, default="auto", help="default: cuda where there is one, else cpu")


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    groups = group(finished(options.runs))
    sets = image_sets(options.data)
    calibration = _calibration(options)
    recipe = Recipe(options.percentile, options.iterations, options.entropy_networks)
    read = Calibration(calibration, options.crop, options.images)
    measurements = measured(groups, sets, read, recipe, options.device)
    rows = measurements.rows(groups)
    lines = [*(data.found for data in sets), f"calibrated on {calibration.found}"]
    page = text(rows, [*lines, *measurements.absent(calibration)])
    if options.json is not None:
        envelope.write(options.json, rows, "lic quantize")
    print(page, file=sys.stderr if options.json == "-" else sys.stdout)
    return 0


class Calibration(NamedTuple):
    """Which images ranges and roundings come from."""

    images: EvaluationSet
    crop: int  # pixels a side, at most
    count: int  # at most


def measured(
    groups: list[Group],
    sets: list[EvaluationSet],
    calibration: Calibration,
    recipe: Recipe,
    device: str,
) -> Measurements:
    """All runs of the groups, quantised and measured on the sets."""
    measurements = Measurements(sets)
    calibrating: dict[int, list[Tensor]] = {}  # by the model's stride
    for each in (run for one in groups for run in one.runs):
        try:
            model = _model(each, device)
            stride = cast(int, model.stride)
            if stride not in calibrating:
                images, side, count = calibration
                calibrating[stride] = crops(images, stride, side, count)
            measurements.add(each, model, calibrated(model, calibrating[stride], recipe))
        except BadInput as error:
            measurements.refused[each.name] = error
    return measurements


def _percentile(text: str) -> float:
    value = float(text)
    if not 50 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is outside (50, 100]")
    return value


def _calibration(options: argparse.Namespace) -> EvaluationSet:
    found = calibration_set(options.calibration)
    if options.calibration is not None:
        same = Path(options.calibration).resolve()
        if same in [Path(folder).resolve() for folder in options.data or ()]:
            raise BadInput("--calibration and --data are one folder; measure on other images")
    return found


def _model(run: Run, device: str) -> nn.Module:
    model, config = load_model(run.folder)
    if config != run.config:
        raise BadInput("model.pt and result.json are of two runs; train anew")
    return model.to(device)


class Measurements:
    """Scores of each run, float and quantised, on each data set."""

    def __init__(self, sets: list[EvaluationSet]) -> None:
        self.sets = sets
        self.scores: dict[str, dict[tuple[str, str], list[Score]]] = {}  # run -> (way, set)
        self.quantizations: dict[str, Quantization] = {}
        self.refused: dict[str, BadInput] = {}

    def add(self, run: Run, model: nn.Module, quantization: Quantization) -> None:
        """Measure a run's model, whose integers these are."""
        say(f"{run.name}: {_told(quantization)}")
        self.quantizations[run.name] = quantization
        found: dict[tuple[str, str], list[Score]] = {}
        for way in (FLOAT, *WAYS):
            for data in self.sets:
                with _as(way, model, quantization):
                    scores, failed, _ = measure_set(model, data)
                data.left_out.update(failed)
                found[way, data.name] = scores
        self.scores[run.name] = found

    def rows(self, groups: list[Group]) -> Rows:
        """Of three kinds: `quantized`, `bd_rate` and `layers`.

        Raises:
            BadInput: no run is left, or no image of a set that all could code.
        """
        if not self.scores:
            name, error = next(iter(self.refused.items()))
            raise BadInput(f"{name}: {error}")
        for name, error in self.refused.items():
            say(f"left out the run {name} ({error})")
        rows: Rows = []
        for one in groups:
            for variant, runs in one.variants().items():
                left = [run for run in runs if run.name in self.scores]
                of_variant = [row for run in left for row in self._of_run(run)]
                of_variant += _bd_rates(of_variant)
                of_variant += [_layers(run, self.quantizations[run.name]) for run in left]
                rows += [{**row, "group": one.name, "variant": variant} for row in of_variant]
        return rows

    def _of_run(self, run: Run) -> Iterator[dict[str, Any]]:
        for data in self.sets:
            losses: dict[str, float] = {}
            for way in (FLOAT, *WAYS):
                scores = self.scores[run.name][way, data.name]
                scores = [score for score in scores if score.image not in data.left_out]
                if not scores:
                    raise BadInput(f"{data.name} has no image that every run can code; name others")
                mean = mean_of(scores)
                losses[way] = fmean(_loss(score, run.lam) for score in scores)
                yield {
                    "kind": "quantized",
                    "run": run.name,
                    "lam": run.lam,
                    "seed": run.config["seed"],
                    "set": data.name,
                    "quantized": way,
                    "bpp": mean.bpp,
                    "psnr": mean.psnr,
                    "rd_loss": losses[way],
                    "change": losses[way] / losses[FLOAT] - 1,
                    "images": [score._asdict() for score in scores],
                }

    def absent(self, calibration: EvaluationSet) -> list[str]:
        """What is in no result, a line each."""
        lines = [f"left out the run {name} ({error})" for name, error in self.refused.items()]
        for data in (*self.sets, calibration):
            lines += [f"skipped {reason}" for reason in data.skipped]
            lines += [f"left out {name} ({reason})" for name, reason in data.left_out.items()]
        return lines


def _as(way: str, model: nn.Module, quantization: Quantization) -> AbstractContextManager[None]:
    """The model float, or quantised in one of WAYS."""
    return nullcontext() if way == FLOAT else quantized(model, quantization, *way.split(", "))


def _loss(score: Score, lam: float) -> float:
    return lam * 255**2 * 10 ** (-score.psnr / 10) + score.bpp


def _bd_rates(rows: Rows) -> Rows:
    """Of each way against the float model, on each set."""
    found: Rows = []
    for data in dict.fromkeys(row["set"] for row in rows):
        curves = {
            way: points(
                [
                    (row["lam"], row["bpp"], row["psnr"])
                    for row in rows
                    if (row["set"], row["quantized"]) == (data, way)
                ]
            )
            for way in (FLOAT, *WAYS)
        }
        for row in against([FLOAT], curves):
            result = {key: row[key] for key in ("anchor", "percent", "reason")}
            found.append({"kind": "bd_rate", "set": data, "quantized": row["variant"], **result})
    return found


def _layers(run: Run, quantization: Quantization) -> dict[str, Any]:
    return {
        "kind": "layers",
        "run": run.name,
        "lam": run.lam,
        "seed": run.config["seed"],
        "entropy_networks": quantization.entropy_networks,
        "kept_nearest": quantization.kept_nearest,
        "error_ratio": quantization.error_ratio,
        "never_run": quantization.never_run,
        "layers": [
            {
                "layer": layer.name,
                "type": layer.kind,
                "output_error": layer.errors,
                "kept_nearest": layer.kept_nearest,
                "activations": {name: grid._asdict() for name, grid in layer.grids.items()},
            }
            for layer in quantization.layers
        ],
    }


def _told(quantization: Quantization) -> str:
    count = len(quantization.layers)
    said = f"{count} layers, AdaRound's output error {quantization.error_ratio:.2f} of nearest's, "
    said += f"{quantization.kept_nearest} keep nearest"
    if names := quantization.never_run:
        said += f"; {len(names)} stay float, which never run in evaluation, first {names[0]}"
    return said


# The report


def text(rows: Rows, lines: list[str]) -> str:
    """All tables in Markdown."""
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in TABLES}
    parts = [f"- {line}" for line in lines]
    for kind, tables in TABLES.items():
        for title, table in tables.items():
            parts += ["", f"## {title}", "", style.table(table(of[kind]))]
    return "\n".join([*parts, "", *(f"- {note}" for note in NOTES)]) + "\n"


def _quality(rows: Rows) -> Rows:
    return [
        {
            "model": row["group"],
            "optimizer": row["variant"],
            "lambda": f"{row['lam']:g}",
            "seed": row["seed"],
            "data set": row["set"],
            "weights, activations": row["quantized"],
            "bpp": f"{row['bpp']:.4f}",
            "PSNR dB": f"{row['psnr']:.2f}",
            "R-D loss": f"{row['rd_loss']:.4f}",
        }
        for row in rows
    ]


def _changes(rows: Rows) -> Rows:
    """A column for each optimizer; means over seeds."""
    changes: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    variants = dict.fromkeys(row["variant"] for row in rows)
    for row in rows:
        if row["quantized"] != FLOAT:
            key = row["group"], row["lam"], row["set"], row["quantized"]
            changes.setdefault(key, {}).setdefault(row["variant"], []).append(row["change"])
    return [
        {
            "model": model,
            "lambda": f"{lam:g}",
            "data set": data,
            "weights, activations": way,
            **{v: f"{fmean(found[v]):+.2%}" if v in found else "-" for v in variants},
        }
        for (model, lam, data, way), found in changes.items()
    ]


def _bd_table(rows: Rows) -> Rows:
    return [
        {
            "model": row["group"],
            "optimizer": row["variant"],
            "data set": row["set"],
            "weights, activations": row["quantized"],
            "BD-rate": row["reason"] or f"{row['percent']:+.2f} %",
        }
        for row in rows
    ]


def _errors(rows: Rows) -> Rows:
    return [
        {
            "model": row["group"],
            "optimizer": row["variant"],
            "lambda": f"{row['lam']:g}",
            "seed": row["seed"],
            "layers": len(row["layers"]),
            "nearest's output error": _mean_error(row),
            "AdaRound's of it": f"{row['error_ratio']:.2f}",
            "keep nearest": row["kept_nearest"],
            "never run": len(row["never_run"]),
        }
        for row in rows
    ]


def _mean_error(row: dict[str, Any]) -> str:
    return f"{fmean(layer['output_error']['nearest'] for layer in row['layers']):.1e}"


TABLES = {
    "quantized": {"Quality, float and quantised": _quality, "Change of the R-D loss": _changes},
    "bd_rate": {"BD-rate against float": _bd_table},
    "layers": {"Output errors by rounding": _errors},
}
