"""`bench.lic` on a GPU: half precision, and a run that goes on from its checkpoint."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import cache

import pytest
import tolerances
import torch

pytest.importorskip("numpy")  # and what else images need; tests of GPUs do without
pytest.importorskip("PIL")

from bench.lic.data import Images, load
from bench.lic.evaluation.quantization import Recipe, calibrated, quantized
from bench.lic.models import build
from bench.lic.study.watched import Watched
from bench.lic.training import Config, Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]
CONFIG = Config(
    model="hyperprior", factor=1 / 8, optimizer="soap_fast", lr=1e-3, lam=0.013, steps=12,
    batch=2, crop=64, precondition_frequency=3, device="cuda",
)  # fmt: skip


@cache
def images() -> Images:
    """The photos that scikit-image ships, for crops and strides up to 128."""
    return load(None, 128, 128)


def trained(config: Config, steps: int) -> Training:
    training = Training(config, images())
    for _ in range(steps):
        training.step()
    return training


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("model", "crop"), [("hyperprior", 64), ("elic", 64), ("tcm_64", 128), ("lalic", 64)]
)
def test_half_precision_trains_as_float32_does(model: str, crop: int, amp: str) -> None:
    config = replace(CONFIG, model=model, crop=crop, factor=1 / 16)
    half = trained(replace(config, amp=amp), 4)
    assert all(map(math.isfinite, half.history.losses))
    whole = trained(config, 4).history.losses
    assert half.history.losses == pytest.approx(whole, rel=tolerances.HALF_LOSSES)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert half.scaler.get_scale() >= 1


@pytest.mark.parametrize("amp", [None, "fp16"])
def test_a_resumed_run_goes_on_where_it_stopped(amp: str | None) -> None:
    """To the same losses; not to the same bits, as cuDNN adds gradients in any order."""
    config = replace(CONFIG, amp=amp, schedule="plateau")
    straight, kept = trained(config, 6), io.BytesIO()
    straight.evaluate()
    torch.save(straight.state_dict(), kept)
    kept.seek(0)
    resumed = Training(config, images())
    resumed.load_state_dict(torch.load(kept, map_location="cpu", weights_only=True))
    assert resumed.scaler.get_scale() == straight.scaler.get_scale()
    for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert q.is_cuda
        assert torch.equal(p, q)
    for _ in range(4):
        straight.step()
        resumed.step()
    assert resumed.history.losses == pytest.approx(straight.history.losses, rel=tolerances.CUDNN)
    assert resumed.evaluate().loss == pytest.approx(straight.evaluate().loss, rel=tolerances.CUDNN)


def test_times_and_memory_are_those_of_the_device() -> None:
    training = trained(CONFIG, 3)
    training.evaluate()
    history = training.history
    assert history.peak_memory_of == "device memory"
    assert history.peak_memory > 4 * sum(p.numel() for p in training.model.parameters())
    for step, optimizer in zip(history.step_seconds, history.optimizer_seconds, strict=True):
        assert 0 < optimizer < step


def test_a_run_looks_at_itself_and_its_memory_is_none_of_training() -> None:
    config = replace(CONFIG, evaluate_every=1)
    plain, watched = Training(config, images()), Watched(config, images())
    for training in (plain, watched):
        for _ in range(8):
            training.step()
            training.evaluate()
    assert watched.history.losses == pytest.approx(plain.history.losses, rel=tolerances.CUDNN)
    assert [look["step"] for look in watched.history.watched] == [4, 8]
    for look in watched.history.watched:
        assert -1 <= look["intra"] <= 1
        assert -1 <= look["inter"] <= 1


def test_a_model_is_quantised_on_a_gpu_as_on_the_cpu() -> None:
    photos = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
    found = {}
    for device in ("cpu", CONFIG.device):
        torch.manual_seed(0)
        model = build("hyperprior", 1 / 16).eval().to(device)
        result = calibrated(model, photos, Recipe(iterations=50))
        with torch.no_grad(), quantized(model, result, "adaround", "min-max"):
            found[device] = result, model(photos[0].to(device)).images.cpu()
    (expected, image), (result, other) = found["cpu"], found[CONFIG.device]
    near = pytest.approx(expected.error_ratio, abs=tolerances.QUANTIZED_RATIO)
    assert result.error_ratio == near
    for ours, theirs in zip(result.layers, expected.layers, strict=True):
        found, wanted = (layer.grids["min-max"].scale for layer in (ours, theirs))
        assert found == pytest.approx(wanted, rel=tolerances.QUANTIZED_SCALE)
        found, wanted = (layer.errors["nearest"] for layer in (ours, theirs))
        assert found == pytest.approx(wanted, rel=tolerances.QUANTIZED_ERROR)
    assert (image - other).norm() < 0.1 * image.norm()
