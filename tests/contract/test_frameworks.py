"""The frameworks people train in take it as they take Adam: Lightning, Accelerate, CompressAI.

CompressAI 1.2.8 cannot be installed beside this torch: it wants torchvision, torch-geometric and
numpy below 2. What it asks of an optimizer is written out here: `net_aux_optimizer` builds two of
them over parameters split by name, and `OPTIMIZERS`, in which it looks up types, is a dict of
constructors.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from streams import assert_same_bits
from subject import assert_equal, copies, device_of, on_every_backend

from soap_fast import SOAP

OPTIONS = {"lr": 0.01, "precondition_frequency": 2}


def layers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))


def batches(count: int, device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, generator=generator).to(device) for _ in range(count)]


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - 1).square().mean()


def by_hand(backend, taken, clip: float = 1.0, accumulate: int = 1) -> tuple:
    """Model and optimizer after a plain loop."""
    model = layers().to(device_of(backend))
    optimizer = SOAP(model.parameters(), backend=backend, **OPTIONS)
    for place, batch in enumerate(taken, start=1):
        (loss_of(model, batch) / accumulate).backward()
        if place % accumulate == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer


@pytest.fixture(scope="module")
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        return pytest.importorskip("lightning", reason="lightning is not installed")


@pytest.fixture(scope="module")
def accelerate():
    return pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture
def lightning_fit(lightning, tmp_path):
    """fit(backend, batches, epochs, resume) -> model, optimizer, path of a checkpoint."""

    class Module(lightning.LightningModule):
        def __init__(self, backend):
            super().__init__()
            self.layers, self.backend = layers(), backend

        def training_step(self, batch, index):
            return loss_of(self.layers, batch)

        def configure_optimizers(self):
            optimizer = SOAP(self.parameters(), backend=self.backend, **OPTIONS)
            scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def fit(backend, taken, *, epochs=1, resume=None, accumulate=1):
        module = Module(backend)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if device_of(backend) == "cuda" else "cpu",
            devices=1,
            gradient_clip_val=1.0,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few workers and short epochs
            loader = torch.utils.data.DataLoader(taken, batch_size=None)
            trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
        path = tmp_path / f"{epochs}.ckpt"
        trainer.save_checkpoint(path)
        return module.layers, trainer.optimizers[0], path

    return fit


@on_every_backend
def test_lightning_clips_and_accumulates_as_a_plain_loop_does(backend, lightning_fit):
    """It hands the whole of forward and backward over to `step` as a closure."""
    found, optimizer, _ = lightning_fit(backend, batches(6), accumulate=2)
    expected, other = by_hand(backend, batches(6, device_of(backend)), accumulate=2)
    assert isinstance(optimizer, SOAP)
    assert optimizer.backend == backend
    assert_equal(copies(found.to(device_of(backend)).parameters()), copies(expected.parameters()))
    assert {entry["calls"] for entry in optimizer.state.values()} == {3}
    assert_same_bits(optimizer.state_dict()["state"], other.state_dict()["state"])


@on_every_backend
def test_lightning_resumes_a_run_bit_for_bit(backend, lightning_fit):
    _, _, path = lightning_fit(backend, batches(2))
    resumed, optimizer, _ = lightning_fit(backend, batches(2), epochs=2, resume=path)
    whole, other, _ = lightning_fit(backend, batches(2), epochs=2)
    assert {entry["calls"] for entry in optimizer.state.values()} == {4}
    assert_equal(copies(resumed.parameters()), copies(whole.parameters()))
    assert_same_bits(optimizer.state_dict()["state"], other.state_dict()["state"])


def accelerated(accelerate, backend, accumulate=1):
    accelerator = accelerate.Accelerator(
        cpu=device_of(backend) == "cpu", gradient_accumulation_steps=accumulate
    )
    model = layers()
    optimizer = SOAP(model.parameters(), backend=backend, **OPTIONS)
    return accelerator, *accelerator.prepare(model, optimizer)


def accelerated_steps(accelerator, model, optimizer, taken) -> None:
    for batch in taken:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch.to(accelerator.device)))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


@on_every_backend
def test_accelerate_clips_and_accumulates_as_a_plain_loop_does(backend, accelerate):
    accelerator, model, optimizer = accelerated(accelerate, backend, accumulate=2)
    accelerated_steps(accelerator, model, optimizer, batches(6))
    expected, other = by_hand(backend, batches(6, device_of(backend)), accumulate=2)
    assert isinstance(optimizer.optimizer, SOAP)
    assert_equal(copies(model.parameters()), copies(expected.parameters()))
    assert_same_bits(optimizer.state_dict()["state"], other.state_dict()["state"])


@on_every_backend
def test_accelerate_saves_a_run_and_goes_on_bit_for_bit(backend, accelerate, tmp_path):
    accelerator, model, optimizer = accelerated(accelerate, backend)
    accelerated_steps(accelerator, model, optimizer, batches(3))
    accelerator.save_state(str(tmp_path / "run"))
    accelerated_steps(accelerator, model, optimizer, batches(2))

    again, resumed, other = accelerated(accelerate, backend)
    again.load_state(str(tmp_path / "run"))
    assert {entry["calls"] for entry in other.optimizer.state.values()} == {3}
    accelerated_steps(again, resumed, other, batches(2))
    assert_equal(copies(model.parameters()), copies(resumed.parameters()))
    assert_same_bits(optimizer.state_dict(), other.state_dict())


class Compression(torch.nn.Module):
    """Quantiles with a loss of their own beside everything else, as CompressAI's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = layers()
        self.entropy_bottleneck = torch.nn.Module()
        self.entropy_bottleneck.quantiles = torch.nn.Parameter(torch.tensor([[[-3.0, 0.5, 3.0]]]))

    def aux_loss(self) -> torch.Tensor:
        return (self.entropy_bottleneck.quantiles - torch.tensor([-1.0, 0.0, 1.0])).abs().sum()


def net_aux(model, conf, registry) -> dict[str, torch.optim.Optimizer]:
    """Two optimizers, of types and options from a configuration, over disjoint sets of names."""
    named = dict(model.named_parameters())
    aux = {name for name in named if name.endswith(".quantiles")}
    names = {"net": sorted(named.keys() - aux), "aux": sorted(aux)}

    def build(key: str) -> torch.optim.Optimizer:
        options = {**conf[key]}
        return registry[options.pop("type")]((named[name] for name in names[key]), **options)

    return {key: build(key) for key in ("net", "aux")}


@on_every_backend
def test_two_optimizers_from_a_configuration_train_a_compression_model(backend):
    """Main and auxiliary loss, clipping, a plateau scheduler, and a checkpoint of all of it."""
    registry = {name: kind for name, kind in vars(torch.optim).items() if name[0].isupper()}
    registry["SOAP"] = SOAP  # as compressai.registry.register_optimizer("SOAP")(SOAP) does
    conf = {
        "net": {"type": "SOAP", "backend": backend, **OPTIONS},
        "aux": {"type": "Adam", "lr": 0.1},
    }
    device = device_of(backend)

    def run(model, epochs, saved=None):
        optimizers = net_aux(model, conf, registry)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizers["net"], "min", factor=0.5, patience=0, threshold=10.0
        )
        parts = {**optimizers, "scheduler": scheduler, "model": model}
        for name, state in (saved or {}).items():
            parts[name].load_state_dict(state)
        losses = []
        for _ in range(epochs):
            total = torch.zeros(())
            for batch in batches(2, device):
                for optimizer in optimizers.values():
                    optimizer.zero_grad()
                loss = loss_of(model.transform, batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.transform.parameters(), 1.0)
                optimizers["net"].step()
                model.aux_loss().backward()
                optimizers["aux"].step()
                total += loss.detach().cpu() + model.aux_loss().detach().cpu()
            losses.append(total.item())
            scheduler.step(total)
        return losses, parts

    whole = Compression().to(device)
    losses, parts = run(whole, 3)
    assert losses[2] < losses[0]
    assert parts["net"].param_groups[0]["lr"] < 0.01
    assert whole.entropy_bottleneck.quantiles not in parts["net"].state
    assert {entry["calls"] for entry in parts["net"].state.values()} == {6}

    _, first = run(Compression().to(device), 2)
    resumed = Compression().to(device)
    _, rest = run(resumed, 1, {name: part.state_dict() for name, part in first.items()})
    assert_equal(copies(whole.parameters()), copies(resumed.parameters()))
    assert_same_bits(parts["net"].state_dict(), rest["net"].state_dict())
