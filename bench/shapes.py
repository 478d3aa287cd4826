"""Inventories: every parameter of a real model by name and shape, and tensors made from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.files import BadInput, told

FOLDER = Path(__file__).parent / "shapes"
FOLDS = 7  # modes up to this size keep it, since they may fold


@dataclass(frozen=True)
class Entry:
    """One parameter that the main optimizer steps."""

    name: str
    shape: tuple[int, ...]
    contiguous: bool


@dataclass(frozen=True)
class Inventory:
    """The parameters of a model; those of a second optimizer or without gradient are left out."""

    model: str
    entries: tuple[Entry, ...]

    @property
    def numel(self) -> int:
        return sum(torch.Size(entry.shape).numel() for entry in self.entries)

    def small(self) -> Inventory:
        """As many tensors of as many different sizes, so that the host does the same for it."""
        sizes = sorted({size for entry in self.entries for size in entry.shape if size > FOLDS})
        smaller = {size: FOLDS + 1 + place for place, size in enumerate(sizes)}
        entries = (
            Entry(e.name, tuple(smaller.get(size, size) for size in e.shape), e.contiguous)
            for e in self.entries
        )
        return Inventory(self.model, tuple(entries))

    def parameters(self, device: str = "cpu") -> list[torch.nn.Parameter]:
        """Normal random parameters, float32, with the strides the model gives them."""
        generator = torch.Generator(device).manual_seed(0)
        return [torch.nn.Parameter(_normal(entry, generator)) for entry in self.entries]

    def set_gradients(self, params: list[torch.nn.Parameter], seed: int) -> None:
        """Normal random gradients with the parameters' strides."""
        generator = torch.Generator(params[0].device).manual_seed(seed)
        for entry, param in zip(self.entries, params, strict=True):
            param.grad = _normal(entry, generator)


def _normal(entry: Entry, generator: torch.Generator) -> torch.Tensor:
    shape = entry.shape if entry.contiguous else (*entry.shape[1:], entry.shape[0])
    value = torch.randn(shape, generator=generator, device=generator.device)
    # The inventories' permuted tensors are tables whose first axis varies fastest in memory.
    return value if entry.contiguous else value.movedim(-1, 0)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Inventory:
    """An inventory by its name, or from a file of the same form; else BadInput."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise BadInput(f"no shapes {name!r}: take {', '.join(names())}, or the path of a JSON file")
    try:
        content = json.loads(path.read_text())
        entries = tuple(
            Entry(item["name"], tuple(item["shape"]), item.get("contiguous", True))
            for item in content["params"]
            if not item.get("aux", False) and item.get("grad", True)
        )
        for entry in entries:
            if not all(isinstance(size, int) and size >= 0 for size in entry.shape):
                raise ValueError(f"{entry.name} has shape {list(entry.shape)}")
            if not entry.contiguous and len(entry.shape) < 2:
                raise ValueError(f"{entry.name} of shape {entry.shape} can only be contiguous")
        if not entries:
            raise ValueError("no parameter of it is stepped")
        return Inventory(content["model"], entries)
    except (ValueError, KeyError, TypeError) as error:
        form = "{model, params: [{name, shape}]}"
        raise BadInput(f"{path} is not an inventory ({told(error)}): it needs {form}") from None
