"""Half precision, layout and compilation change what training costs, and not what it does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tolerances
import torch

from bench.files import BadInput
from bench.lic.data import Images, load
from bench.lic.models import build
from bench.lic.models.convolutions import GDN
from bench.lic.models.entropy import EntropyBottleneck, GaussianConditional, full_precision
from bench.lic.models.lalic import bidirectional_wkv
from bench.lic.training import Config, Training

CONFIG = Config(
    model="hyperprior",
    factor=1 / 16,
    optimizer="soap_fast",
    lr=3e-3,
    lam=0.013,
    steps=4,
    batch=2,
    crop=64,
)


@pytest.fixture(scope="module")
def images() -> Images:
    return load(None, 64, 64)


def losses(config: Config, images: Images) -> list[float]:
    training = Training(config, images)
    while not training.finished:
        training.step()
    return training.history.losses


@pytest.mark.parametrize("model", ["hyperprior", "elic"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_as_float32_does(model: str, amp: str, images: Images) -> None:
    config = replace(CONFIG, model=model)
    half = losses(replace(config, amp=amp), images)
    assert half == pytest.approx(losses(config, images), rel=tolerances.AMP_LOSSES)
    assert half != losses(config, images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entropy_models_leave_autocast(dtype: torch.dtype) -> None:
    """A latent of 200.25 is 200 in bfloat16, and its likelihood beyond the second digit noise."""
    torch.manual_seed(0)
    y = torch.randn(1, 4, 8, 8).to(dtype)
    scale, mean = torch.rand(1, 4, 8, 8).to(dtype) + 0.2, torch.randn(1, 4, 8, 8).to(dtype)
    gaussian, bottleneck = GaussianConditional().eval(), EntropyBottleneck(4).eval()
    with torch.autocast("cpu", dtype), torch.no_grad():
        inside = *gaussian(y, scale, mean), *bottleneck(y), gaussian.decode(y, mean)
    with torch.no_grad():
        y, scale, mean = y.float(), scale.float(), mean.float()
        outside = *gaussian(y, scale, mean), *bottleneck(y), gaussian.decode(y, mean)
    for found, expected in zip(inside, outside, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_squares_and_long_sums_leave_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    large = (400 * torch.randn(1, 4, 8, 8)).to(dtype)  # the squares are beyond float16
    tokens = torch.randn(1, 4, 1024).to(dtype), torch.randn(1, 4, 1024).to(dtype)
    gdn, rates = GDN(4), (torch.randn(4), torch.randn(4))
    with torch.autocast("cpu", dtype), torch.no_grad():
        inside = gdn(large), bidirectional_wkv(*rates, *tokens)
    with torch.no_grad():
        outside = (
            gdn(large.float()),
            bidirectional_wkv(*rates, *(token.float() for token in tokens)),
        )
    for found, expected in zip(inside, outside, strict=True):
        assert torch.equal(found, expected)
        assert found.isfinite().all()


@full_precision
def added(x: torch.Tensor | None = None, *, means: torch.Tensor | None = None) -> object:
    """What it is given, and whether autocast is on."""
    kinds = [None if value is None else value.dtype for value in (x, means)]
    return (*kinds, torch.is_autocast_enabled("cpu"))


def test_arguments_by_keyword_leave_autocast_as_others_do() -> None:
    half, full = torch.ones(2, dtype=torch.bfloat16), torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert added(half, means=half) == (full, full, False)
        assert added(means=half) == (None, full, False)
        assert added(x=half.double(), means=None) == (torch.float64, None, False)
        assert added() == (None, None, True)
    assert added(means=half) == (None, torch.bfloat16, False)


@pytest.mark.parametrize(("name", "side"), [("tcm_64", 128), ("lalic", 64), ("dcae", 128)])
def test_likelihoods_of_every_model_are_float32_under_autocast(name: str, side: int) -> None:
    torch.manual_seed(0)
    model, pixels = build(name, 1 / 32), torch.rand(1, 3, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        coded = model(pixels)
    assert {p.dtype for p in coded.likelihoods} == {torch.float32}
    assert all(p.isfinite().all() for p in coded.likelihoods)


@pytest.mark.parametrize("optimizer", ["adam", "soap_fast", "pytorch_optimizer"])
def test_a_gradient_beyond_float16_skips_the_step_and_lowers_the_scale(
    optimizer: str, images: Images
) -> None:
    training = Training(replace(CONFIG, optimizer=optimizer, amp="fp16"), images)
    for _ in range(2):  # a SOAP's first call only initialises
        training.step()
    weight = training.model.synthesis[0].weight
    hook = weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    before, scale = weight.detach().clone(), training.scaler.get_scale()
    training.step()
    hook.remove()
    assert torch.equal(weight, before)
    assert training.scaler.get_scale() == scale / 2
    assert not training.diverged
    training.step()
    assert not torch.equal(weight, before)


def test_channels_last_trains_as_the_other_layout(images: Images) -> None:
    training = Training(replace(CONFIG, channels_last=True), images)
    weight = training.model.analysis[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert training._next_batch().is_contiguous(memory_format=torch.channels_last)
    expected = losses(CONFIG, images)
    found = losses(replace(CONFIG, channels_last=True), images)
    assert found == pytest.approx(expected, rel=tolerances.CHANNELS_LAST)


def test_channels_last_is_refused_where_torch_would_corrupt_memory(images: Images) -> None:
    with pytest.raises(BadInput, match="channels_last on a CPU corrupts memory"):
        Training(replace(CONFIG, model="tcm_64", crop=128, channels_last=True), images)


def test_compiled_training_is_the_same(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, as for any backend; the default one takes 40 seconds to compile this."""
    modes = []
    real = torch.compile

    def traced(model: torch.nn.Module, mode: str) -> torch.nn.Module:
        modes.append(mode)
        return real(model, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    config = replace(CONFIG, amp="bf16", steps=2)
    compiled = losses(replace(config, compile="reduce-overhead"), images)
    assert compiled == pytest.approx(losses(config, images), rel=tolerances.COMPILED)
    assert modes == ["reduce-overhead"]


def test_memory_is_counted(images: Images) -> None:
    held = {}
    for optimizer in ("adam", "soap_fast"):
        training = Training(replace(CONFIG, optimizer=optimizer), images)
        for _ in range(2):
            training.step()
        training.evaluate()
        held[optimizer] = training.history.peak_memory
        assert training.history.peak_memory_of == "optimizer state"
    scalars = sum(p.numel() for p in training.model.parameters())
    aux = training.model.entropy_bottleneck.quantiles.numel()
    tensors = len(list(training.model.parameters())) - 1
    assert held["adam"] == 4 * (2 * (scalars - aux) + tensors)
    assert held["soap_fast"] > held["adam"]
