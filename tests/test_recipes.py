"""Every block of code in docs/recipes.md runs, and trains."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from streams import assert_same_bits

import soap_fast

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
PACKAGES = {
    "PyTorch Lightning": "lightning",
    "Hugging Face Accelerate": "accelerate",
    "safetensors": "safetensors",
}

# Takes no step, and moves a weight of its own.
WITHOUT_THE_MODEL = ("CompressAI's configuration files", "What moves where no gradient points")


def recipes() -> dict[str, str]:
    """Heading and code of each section that has some."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        title, _, text = section.partition("\n")
        blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        if blocks:
            found[title] = "\n".join(blocks)
    return found


class Small(torch.nn.Module):
    """A model with quantiles and a loss of their own, as compression models have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.GELU(), torch.nn.Conv2d(4, 3, 3)
        )
        self.bottleneck = torch.nn.Module()
        self.bottleneck.quantiles = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)

    def aux_loss(self) -> torch.Tensor:
        return self.bottleneck.quantiles.square().sum()


def loss_of(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    quantiles = next(p for name, p in model.named_parameters() if name.endswith("quantiles"))
    return model(images).square().mean() + 0 * quantiles.sum()


@pytest.fixture
def compressai_registry(monkeypatch):
    """A registry with the interface of CompressAI 1.2.8, which needs a torchvision to import."""
    registry = types.ModuleType("compressai.registry")
    registry.OPTIMIZERS = dict(vars(torch.optim))

    def register_optimizer(name):
        def decorator(cls):
            registry.OPTIMIZERS[name] = cls
            return cls

        return decorator

    registry.register_optimizer = register_optimizer
    monkeypatch.setitem(sys.modules, "compressai", types.ModuleType("compressai"))
    monkeypatch.setitem(sys.modules, "compressai.registry", registry)


@pytest.mark.parametrize("title", recipes())
@pytest.mark.usefixtures("compressai_registry")
def test_a_recipe_runs(title, tmp_path, monkeypatch):
    package = PACKAGES.get(title)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    graphs = title == "CUDA graphs"
    if graphs and not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    device = "cuda" if graphs else "cpu"
    model = Small().to(device)
    around = {
        "torch": torch,
        "soap_fast": soap_fast,
        "model": model,
        "loader": [torch.randn(2, 3, 8, 8, device=device) for _ in range(4)],
        "loss_of": loss_of,
    }
    before = [p.detach().clone() for p in model.layers.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        exec(compile(recipes()[title], f"{PAGE.name}: {title}", "exec"), around)
    if title not in WITHOUT_THE_MODEL:
        moved = zip(model.layers.parameters(), before, strict=True)
        assert all(not torch.equal(param, old) for param, old in moved)
    optimizer = around.get("optimizer")
    if optimizer is not None:
        assert isinstance(getattr(optimizer, "optimizer", optimizer), soap_fast.SOAP)
    assert ("resumed" in around) == (title in ("Saving and going on", "safetensors"))
    if "resumed" in around:
        found, expected = around["resumed"].state_dict(), optimizer.state_dict()
        assert_same_bits(found["state"], expected["state"])
        # Of a file of safetensors pairs come back as lists.
        assert json.dumps(found["param_groups"]) == json.dumps(expected["param_groups"])
    torch.compiler.reset()
