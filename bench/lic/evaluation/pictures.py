"""Curves, and what decoded images look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from bench.files import writing
from bench.lic.evaluation.curves import RDPoint
from bench.lic.style import frame, lines, plain_text

# (group, data set) -> variant -> its curve
Curves = dict[tuple[str, str], dict[str, list[RDPoint]]]

DETAIL = 128  # pixels, side of the part from the middle that is shown enlarged
PANEL = 3.6  # inches


class Shown(NamedTuple):
    """A decoded image and what is said about it."""

    title: str
    image: Tensor  # float32 [3, H, W] in [0, 1]


@plain_text()
def rate_distortion(
    curves: Curves, path: Path, optimizers: Mapping[str, str] | None = None
) -> None:
    """A panel for every group on every data set.

    Args:
        optimizers: of each variant; None where its label begins with it.
    """
    groups, sets = (list(dict.fromkeys(key[place] for key in curves)) for place in (0, 1))
    figure = Figure(figsize=(1 + 4 * len(sets), 0.6 + PANEL * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(sets), squeeze=False)
    for row, group in zip(panels, groups, strict=True):
        for axes, data in zip(row, sets, strict=True):
            found = curves.get((group, data), {})
            drawn = lines(
                {label: (optimizers or {}).get(label, label.partition(" (")[0]) for label in found}
            )
            for variant, curve in found.items():
                axes.plot(
                    [point.bpp for point in curve],
                    [point.psnr for point in curve],
                    marker="o",
                    markersize=4,
                    label=variant,
                    **drawn[variant],
                )
            axes.set(title=f"{group}\n{data}", xlabel="bits per pixel", ylabel="PSNR (dB)")
            axes.title.set_fontsize(9)
            frame(axes)
            if axes.lines:
                axes.legend(frameon=False, fontsize=8, loc="best", handlelength=4)
    with writing(path):
        figure.savefig(path, dpi=120)


@plain_text()
def reconstructions(shown: list[Shown], path: Path) -> None:
    """The images side by side, and a part from the middle of each, enlarged, below it."""
    height, width = shown[0].image.shape[1:]
    size = (PANEL * len(shown), PANEL * height / width + PANEL + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    ratios = [height / width, 1]
    panels = figure.subplots(2, len(shown), squeeze=False, height_ratios=ratios)
    side = min(DETAIL, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    for (whole, detail), (title, image) in zip(panels.T, shown, strict=True):
        pixels = image.permute(1, 2, 0).numpy()  # [H, W, 3]
        whole.imshow(pixels)
        whole.set_title(title, fontsize=9)
        detail.imshow(pixels[top : top + side, left : left + side], interpolation="nearest")
        for axes in (whole, detail):
            axes.set_axis_off()
    with writing(path):
        figure.savefig(path, dpi=100)
