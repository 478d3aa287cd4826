"""The recorded trajectories of the reference optimizer."""

from __future__ import annotations

import ast
import json
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "data" / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@dataclass
class Trace:
    """One run of the reference: `grads[t][i]` and `params[t][i]` after call t + 1, float32."""

    kwargs: dict
    init: list[torch.Tensor]
    grads: list[list[torch.Tensor]]
    params: list[list[torch.Tensor]]
    states: dict[int, list[dict]]  # call -> per parameter {step, exp_avg, exp_avg_sq, GG, Q}


def load(case: str) -> Trace:
    file = arrays(FOLDER / f"{case}.npz")
    meta = json.loads(bytes(file["meta"].tolist()).decode())
    count, calls = len(meta["shapes"]), range(1, meta["steps"] + 1)

    def matrices(prefix: str) -> dict[int, torch.Tensor]:
        found = {key: value for key, value in file.items() if key.startswith(prefix)}
        return {int(key.removeprefix(prefix)): value for key, value in found.items()}

    def state(i: int, t: int) -> dict:
        where = f"p{i}/state{t}"
        return {
            "step": int(file[f"{where}/step"]),
            "exp_avg": file[f"{where}/exp_avg"],
            "exp_avg_sq": file[f"{where}/exp_avg_sq"],
            "GG": matrices(f"{where}/GG"),
            "Q": matrices(f"{where}/Q"),
        }

    kwargs = meta["kwargs"]
    if "betas" in kwargs:
        kwargs["betas"] = tuple(kwargs["betas"])
    return Trace(
        kwargs=kwargs,
        init=[file[f"p{i}/init"] for i in range(count)],
        grads=[[file[f"p{i}/grad{t}"] for i in range(count)] for t in calls],
        params=[[file[f"p{i}/param{t}"] for i in range(count)] for t in calls],
        states={
            t: [state(i, t) for i in range(count)] for t in calls if f"p0/state{t}/step" in file
        },
    )


def arrays(path: Path) -> dict[str, torch.Tensor]:
    """What an .npz file holds; without numpy, which a machine for tests of GPUs need not have."""
    with zipfile.ZipFile(path) as file:
        return {name.removesuffix(".npy"): array(file.read(name)) for name in file.namelist()}


DTYPES = {"<f4": torch.float32, "<f8": torch.float64, "<i8": torch.int64, "|u1": torch.uint8}


def array(data: bytes) -> torch.Tensor:
    """An .npy file: eight bytes, the header's length, the header, a Python dict; the values."""
    assert data[:6] == b"\x93NUMPY", "not an .npy file"
    length_format = "<H" if data[6] == 1 else "<I"
    start = 8 + struct.calcsize(length_format)
    values = start + struct.unpack_from(length_format, data, 8)[0]
    header = ast.literal_eval(data[start:values].decode())
    shape, dtype = header["shape"], DTYPES[header["descr"]]
    assert not header["fortran_order"], "written by columns"
    if not prod(shape):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[values:]), dtype=dtype).view(shape)
