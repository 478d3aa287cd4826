"""One model, one optimizer, and the steps they take together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.lic.data import Crops, Images, batches
from bench.lic.models import Model, build
from bench.lic.models.model import psnr, rate_distortion
from bench.lic.models.registry import Foreign
from bench.lic.optimizers import aux_parameters, main_parameters
from bench.lic.optimizers import build as build_optimizer
from bench.lic.training.config import Config, apply_layout
from bench.lic.training.history import History, Quality, evaluate
from bench.lic.training.processes import ALONE, Processes
from bench.lic.training.schedules import Schedule, autocast, scaler
from bench.lic.training.trial import try_once

CLIP_NORM = 1.0  # of the gradient of all main parameters together
AUX_RATE = 1e-3


class Training:
    """A run of one optimizer; `state_dict` holds all that later steps depend on.

    Crops and noise are functions of the seed and of the number of the step (and noise of the
    process), so that no generator's state has to be kept.

    Args:
        config: what is run.
        images: what is trained on, and what is held out.
        processes: those that share each batch; all of them construct this, and call it alike.
        workers: processes that read images, of each training process; no result depends on it.
        sharding: of soap_fast's work among the processes; no bit of a result depends on it.

    Raises:
        BadInput: the config names a model or an optimizer that there is not, or that refuses it;
            or a model of others fails in a trial.
        ImportError: the optimizer's package is missing.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        processes: Processes = ALONE,
        workers: int = 0,
        sharding: str = "none",
    ) -> None:
        self.config, self.images, self.processes, self.workers = config, images, processes, workers
        self.in_parts = sharding == "state"  # the optimizer's state, among the processes
        self.device = config.device if processes.world == 1 else processes.device
        self.on_gpu = self.device.startswith("cuda")
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        torch.manual_seed(config.seed)  # of the initial weights
        self.model = build(config.model, config.factor).to(self.device)
        if isinstance(self.model, Foreign):
            try_once(self.model, config, self.device)
        self.layout = apply_layout(self.model, config.channels_last, self.device)
        self.network = self._network()
        self.optimizer = build_optimizer(
            config.optimizer,
            self.model,
            config.lr,
            config.precondition_frequency,
            {**config.optimizer_options, **({} if sharding == "none" else {"sharding": sharding})},
        )
        quantiles = aux_parameters(self.model)  # a model of others may have none
        self.aux_optimizer = torch.optim.Adam(quantiles, lr=AUX_RATE) if quantiles else None
        self.schedule = Schedule(config, self.optimizer)
        self.scaler = scaler(config.amp, self.device)
        self.history = History()
        self._batches: Generator[Tensor] | None = None
        # Entered while a batch is waited for: nothing is half done, and an exception may come.
        self.while_waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    def _network(self) -> Any:
        """The model as it is called in training: shared among processes, compiled."""
        network: Any = self.model
        if self.processes.world > 1:
            network = _shared(self.model)
        if self.config.compile is not None:
            network = torch.compile(network, mode=self.config.compile)
        return network

    @property
    def steps(self) -> int:
        return len(self.history.losses)

    @property
    def diverged(self) -> bool:
        """A loss that is not finite ends a run, whether the optimizer took its gradient or not."""
        return self.steps > 0 and not math.isfinite(self.history.losses[-1])

    @property
    def finished(self) -> bool:
        return self.diverged or self.steps >= self.config.steps

    def step(self) -> Quality:
        """One training step; returns the cost of its batch, of all processes."""
        waiting = self._now()
        with self.while_waiting():
            images = self._next_batch()  # [batch / world, 3, crop, crop]
        start = self._now()
        self.schedule.before_step(self.steps)
        torch.manual_seed(self._noise_seed())
        self.optimizer.zero_grad()
        with autocast(self.config.amp, self.device):
            coded = self.network(images)
        cost = rate_distortion(coded, images, self.config.lam)
        self.scaler.scale(cost.loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(main_parameters(self.model), CLIP_NORM)
        before = self._now()
        self.scaler.step(self.optimizer)
        after = self._now()
        self.scaler.update()
        if self.aux_optimizer is not None:
            self._fit_quantiles(self.aux_optimizer)
        self.history.data_seconds.append(start - waiting)
        self.history.optimizer_seconds.append(after - before)
        self.history.step_seconds.append(self._now() - start)
        mine = [cost.loss.item(), cost.bpp.item(), cost.mse.item()]
        loss, bpp, mse = self.processes.mean(mine)
        self.history.losses.append(loss)
        return Quality(loss, bpp, psnr(mse))

    def _fit_quantiles(self, optimizer: torch.optim.Optimizer) -> None:
        """Every process has the same, and so the same gradient: nothing is exchanged."""
        optimizer.zero_grad()
        loss = self.model.aux_loss()
        if loss.requires_grad:  # of some models of others it is a number
            loss.backward()
            optimizer.step()

    def evaluation_due(self) -> bool:
        return self.steps % self.config.evaluation_interval == 0 or self.finished

    def evaluate(self) -> Quality:
        """Of the held-out images, by the first process; every process learns it."""
        quality = None
        if self.processes.first:
            held_out = self.images.held_out
            quality = evaluate(self.model, held_out, self.config.lam, self.device)
        quality = Quality(*self.processes.from_first(quality))
        if self.processes.world > 1 and isinstance(self.model, Foreign):
            self._share_buffers()
        self.history.evaluated_at.append(self.steps)
        self.history.evaluations.append(list(quality))
        self.schedule.evaluated(quality.loss)
        self._note_memory()
        return quality

    def _share_buffers(self) -> None:
        """Those of some models get other sizes in an evaluation, which the first process makes."""
        state = self.model.state_dict()
        names = [name for name, _ in self.model.named_buffers() if name in state]
        shared = self.processes.from_first({name: state[name].cpu() for name in names})
        if not self.processes.first:
            self.model.load_state_dict({**state, **shared})

    def gather(self) -> None:
        """By all processes, ahead of `state_dict` in any: each may have a part of it."""
        if self.in_parts:
            consolidate: Callable[[], None] = self.optimizer.consolidate_state_dict
            consolidate()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict() if self.aux_optimizer else {},
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.aux_optimizer is not None:
            self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = History.from_state(state["history"])
        self.history.starts.append(self.steps)
        self.close()

    def close(self) -> None:
        """End the processes that read images; a further step starts others."""
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close()

    def _next_batch(self) -> Tensor:
        """The next step's crops, of this process  # [batch / world, 3, crop, crop] float32."""
        if self._batches is None:
            crops = Crops(
                self.images.training, self.config.crop, self.config.seed, flip=self.config.flip
            )
            self._batches = batches(
                crops,
                self.config.batch,
                start=self.steps,
                workers=self.workers,
                rank=self.processes.rank,
                world=self.processes.world,
                pin_memory=self.on_gpu,
            )
        pixels = next(self._batches).to(self.device, non_blocking=True)
        return (pixels.float() / 255).contiguous(memory_format=self.layout)

    def _noise_seed(self) -> int:
        numbers = np.random.SeedSequence([self.config.seed, self.processes.rank, self.steps])
        return int(numbers.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _note_memory(self) -> None:
        if self.on_gpu:
            what, peak = "device memory", torch.cuda.max_memory_allocated(self.device)
        else:
            what, peak = "optimizer state", _tensor_bytes(self.optimizer.state)
        self.history.peak_memory = max(self.history.peak_memory, peak)
        self.history.peak_memory_of = what

    def _now(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _shared(model: nn.Module) -> nn.Module:
    """The model with gradients averaged over all processes, but for those of the quantiles.

    DistributedDataParallel takes what needs a gradient when it is made. The quantiles' comes from
    the auxiliary loss, in a backward pass of its own, and is the same in every process.
    """
    quantiles = aux_parameters(model)
    for param in quantiles:
        param.requires_grad_(False)
    # Our models use all their parameters in every forward; of others that is not known.
    network = DistributedDataParallel(model, find_unused_parameters=not isinstance(model, Model))
    for param in quantiles:
        param.requires_grad_(True)
    return network


def _tensor_bytes(value: Any) -> int:
    """Of all tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(part) for part in value.values())
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0
