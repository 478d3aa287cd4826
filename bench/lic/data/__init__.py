"""Images: which a folder holds, how they are read, and the crops and batches made of them.

The order of the files is the order of the data: `decoding` (pixels of one path) -> `sources` (what
a folder is, and all to train on) -> `images` (training and held out, and whole ones to evaluate on)
-> `batches` (crop number i, batch number s, by worker processes).
"""

from __future__ import annotations

from bench.lic.data.batches import Crops, batches
from bench.lic.data.images import (
    EvaluationSet,
    Images,
    calibration_set,
    evaluation_set,
    load,
    reason_of,
)
from bench.lic.data.sources import Source, Sources

__all__ = [
    "Crops",
    "EvaluationSet",
    "Images",
    "Source",
    "Sources",
    "batches",
    "calibration_set",
    "evaluation_set",
    "load",
    "reason_of",
]
