"""Lightning in mixed precision: what its plugin refuses, and clipping by hand in its place."""

from __future__ import annotations

import warnings

import pytest
import torch
from streams import assert_same_bits
from subject import assert_equal, copies, device_of, on_every_backend
from test_frameworks import OPTIONS, batches, layers, lightning, loss_of  # noqa: F401

from soap_fast import SOAP


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_lightning_in_mixed_precision_clips_no_optimizer_that_unscales_itself(lightning, precision):  # noqa: F811
    """Ours does, as torch's fused Adam; its plugin refuses both, with a scaler and without."""
    plugin = lightning.pytorch.plugins.precision.MixedPrecision(precision, "cpu")
    params = list(layers().parameters())
    for optimizer in (SOAP(params), torch.optim.Adam(params, fused=True)):
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            plugin.clip_gradients(optimizer, 1.0)
    plugin.clip_gradients(SOAP(params), 0.0)


@on_every_backend
def test_lightning_in_mixed_precision_where_the_module_clips(backend, lightning):  # noqa: F811
    """The way out that docs/recipes.md has, under a scaler, against a plain loop."""
    device = device_of(backend)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = layers()

        def training_step(self, batch, index):
            return loss_of(self.layers, batch)

        def configure_optimizers(self):
            return SOAP(self.parameters(), backend=backend, **OPTIONS)

        def configure_gradient_clipping(
            self, optimizer, gradient_clip_val, gradient_clip_algorithm
        ):
            self.trainer.precision_plugin.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def scaler():
        return torch.amp.GradScaler(device, init_scale=2.0**8)

    plugin = lightning.pytorch.plugins.precision.MixedPrecision("16-mixed", device, scaler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            gradient_clip_val=0.1,
            plugins=[plugin],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(batches(4), batch_size=None))

    model, scale = layers().to(device), scaler()
    optimizer = SOAP(model.parameters(), backend=backend, **OPTIONS)
    for batch in batches(4, device):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.half):
            loss = loss_of(model, batch)
        scale.scale(loss).backward()
        scale.unscale_(optimizer)
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0.1
        scale.step(optimizer)
        scale.update()
    assert_equal(copies(module.layers.to(device).parameters()), copies(model.parameters()))
    state = trainer.optimizers[0].state_dict()["state"]
    assert_same_bits(state, optimizer.state_dict()["state"])
