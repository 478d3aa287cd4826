"""A photo as the bytes of an arithmetic coder, and back."""

from __future__ import annotations

import pytest
import tolerances
import torch
from torch import Tensor

from bench.lic.data import Crops, Images, batches, load
from bench.lic.models import build
from bench.lic.models.model import Model, rate_distortion
from bench.lic.optimizers import aux_parameters, main_parameters

pytest.importorskip("constriction")

from bench.lic.evaluation.coding import LIMIT, decode, encode, turns

FACTOR = 1 / 16


@pytest.fixture(scope="module")
def photos() -> Images:
    return load(None, 64, 128)


@pytest.fixture(scope="module")
def photo(photos: Images) -> Tensor:
    return photos.held_out[0][None, :, :256, :384].float() / 255  # [1, 3, 256, 384]


def trained(name: str, photos: Images) -> Model:
    """So far that both latents have many symbols, and likely ones."""
    torch.manual_seed(0)
    model = build(name, FACTOR)
    crops = batches(Crops(photos.training, 64, 0), 4)
    optimizer = torch.optim.Adam(main_parameters(model), lr=3e-3)
    aux_optimizer = torch.optim.Adam(aux_parameters(model), lr=0.1)
    for _ in range(40):
        images = next(crops).float() / 255
        optimizer.zero_grad()
        aux_optimizer.zero_grad()
        rate_distortion(model(images), images, 0.05).loss.backward()
        torch.nn.utils.clip_grad_norm_(main_parameters(model), 1.0)
        optimizer.step()
        model.aux_loss().backward()
        aux_optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ["hyperprior", "elic"])
def test_a_coded_photo_has_the_estimated_bits_and_is_decoded_again(
    name: str, photos: Images, photo: Tensor
) -> None:
    model = trained(name, photos)
    data, symbols = encode(model, photo)
    for latent in symbols:
        assert latent.unique().numel() >= 5
        assert (latent != 0).float().mean() > 0.2
    with torch.no_grad():
        forward = model(photo)
    estimated = -sum(p.log2().sum().item() for p in forward.likelihoods)
    assert 8 * len(data) == pytest.approx(estimated, rel=tolerances.CODED)

    image, decoded = decode(model, data)
    assert torch.equal(decoded.z, symbols.z)
    assert torch.equal(decoded.y, symbols.y)
    torch.testing.assert_close(image, forward.images.clamp(0, 1), **tolerances.PLAIN)


@pytest.mark.parametrize("name", ["lalic", "tcm_64", "dcae"])
def test_every_context_can_be_decoded_in_its_order(name: str, photo: Tensor) -> None:
    torch.manual_seed(0)
    model = build(name, FACTOR).eval()
    model.analysis.register_forward_hook(lambda module, inputs, y: 300 * y)  # symbols, untrained
    image = photo[..., :128, :128]
    data, symbols = encode(model, image)
    assert symbols.y.unique().numel() > 10
    decoded, again = decode(model, data)
    assert torch.equal(again.y, symbols.y)
    assert torch.equal(again.z, symbols.z)
    with torch.no_grad():
        expected = model(image).images.clamp(0, 1)
    torch.testing.assert_close(decoded, expected, **tolerances.PLAIN)


@pytest.mark.parametrize(("name", "count"), [("hyperprior", 1), ("elic", 10), ("tcm_64", 5)])
def test_turns_take_every_symbol_once(name: str, count: int) -> None:
    model = build(name, FACTOR)
    channels = model.analysis(torch.zeros(1, 3, 128, 128)).shape[1]
    taken = torch.stack(list(turns(model, torch.Size((1, channels, 4, 6)), torch.device("cpu"))))
    assert len(taken) == count
    assert torch.equal(taken.sum(0), torch.ones_like(taken[0], dtype=torch.int64))


def test_symbols_beyond_the_limit_are_refused(photo: Tensor) -> None:
    torch.manual_seed(0)
    model = build("hyperprior", FACTOR).eval()
    model.analysis.register_forward_hook(lambda module, inputs, y: 1e6 * y)
    with pytest.raises(ValueError, match=f"beyond {LIMIT}: has this model diverged"):
        encode(model, photo)
