"""The optimizer. `step` reads as the paper; what it calls is one file each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar, overload

import torch
import torch.distributed as dist
from torch.optim.optimizer import ParamsT

from soap_fast import ambient, checkpoint, forks, ranges
from soap_fast.backends import NAMES, WORKSPACE, Precision, choose
from soap_fast.begin import begin
from soap_fast.distributed import ALONE, Entries, Groups, Sharding, sharing_of
from soap_fast.interrupts import at_once, held
from soap_fast.names import label
from soap_fast.options import DataFormat, RefreshSchedule, plain_options, plan_options, step_options
from soap_fast.self_check import Choice
from soap_fast.step import capture, checks
from soap_fast.step.call import Scaling, TensorCall, moving
from soap_fast.step.phases import assign_missing_phases
from soap_fast.step.plan import plan_tensor
from soap_fast.step.state import bind, entries, entry_of, restack
from soap_fast.step.stats import read_counters

__all__ = ["SOAP"]

P = ParamSpec("P")
R = TypeVar("R")
GRAD = attrgetter("grad")
GradOf = Callable[[torch.Tensor], torch.Tensor | None]


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's factors (arXiv 2409.11321), as a `torch.optim` optimizer.

    For a parameter p of shape [d_1 .. d_k] with gradient g, every mode i of size d_i keeps a factor
    K_i = E[g_(i) g_(i)ᵀ] and its eigenvectors Q_i, both [d_i, d_i]. A step runs Adam on g rotated
    by the Q_i and rotates the result back; every `precondition_frequency` steps the Q_i follow the
    K_i. The first call of a parameter only starts its factors and moves nothing.

    A gradient with NaN or inf leaves its tensor and all of its state untouched and is counted, see
    `stats`. Parameters may be float32, float64, bfloat16 or float16; state and arithmetic are
    float64 for float64 parameters and float32 for all others. Under a `torch.amp.GradScaler`
    gradients are unscaled, and left out where they are not finite, within the step.

    Args:
        params: parameters, named parameters or group dicts, as for every torch optimizer. Every
            option below but the last six may be set per group. Numbers may be numpy's, or lie in
            arrays and CPU tensors without dimensions; groups keep plain ones.
        lr: step size; a float or a tensor of one element.
        betas: decay of the first and second moment, each in [0, 1); any sequence of two.
        shampoo_beta: decay of the factors K; negative takes `betas[1]`.
        eps: added to the root of the second moment.
        weight_decay: decoupled; p loses the share lr * weight_decay after its update.
        precondition_frequency: steps between refreshes of the bases.
        max_precond_dim: modes larger than this get no factor.
        merge_dims: merge neighbouring modes while their product stays <= max_precond_dim.
        precondition_1d: give 1-D parameters a factor as well.
        normalize_grads: divide each tensor's update by its root mean square.
        data_format: "channels_last", not torch's, permutes 4-D tensors (0, 3, 1, 2) before merging.
        correct_bias: scale lr by sqrt(1 - beta2^step) / (1 - beta1^step).
        refresh_tolerance: keep a basis at its refresh while the share of QᵀKQ off its diagonal, in
            Frobenius norm, is not above this; 0 refreshes all.
        refresh_schedule: "staggered" spreads the refreshes over the steps by cost, each tensor at a
            phase of its own, in place of all at once every precondition_frequency steps.
        noise_floor: entries of the rotated basis take no step where the root of their second moment
            is below this many times the rounding there; 0 takes every step, as the reference does.
        backend: who computes. None takes the best one of each device, of "triton", "native" and
            "eager"; on a GPU of a kind not seen before its kernels are first checked there, see
            soap_fast/self_check. `soap_fast.explain(optimizer)` says who steps which parameters.
        input_precision: of the Triton backend's products; "tf32x3" has float32's accuracy on tensor
            cores, "ieee" does without these, "tf32" has 10 bits of mantissa where that is harmless.
        refresh_workspace: bytes of the Triton backend's for tensors refreshed together; fewer take
            less memory and more launches, and `soap_fast.explain(optimizer)` tells the peak.
        sharding: whether processes of `process_group` share the work, "refresh" by bases, "state"
            by parameters, FSDP2's included; gradients must be alike on all: docs/distributed.md.
        process_group: None takes all processes.
        overlap: whether bases of sharding="refresh" travel during the next step, likewise.

    Raises:
        ValueError: an option outside its range, an unknown backend, precision or sharding, or a
            parameter that is complex, sparse, on meta, an ungathered DTensor or of another dtype.
    """

    _step_supports_amp_scaling = True  # a GradScaler then sets grad_scale and found_inf

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 3e-3,
        betas: Sequence[float] = (0.95, 0.95),
        shampoo_beta: float = -1,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        merge_dims: bool = False,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: DataFormat = "channels_first",
        correct_bias: bool = True,
        *,
        refresh_tolerance: float = 0.0,
        refresh_schedule: RefreshSchedule = "periodic",
        noise_floor: float = 1.0,
        backend: str | None = None,
        input_precision: Precision = "tf32x3",
        refresh_workspace: int = WORKSPACE,
        sharding: Sharding = "none",
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
    ) -> None:
        self._sharing = sharing_of(sharding, process_group, overlap)
        self._choose_backend(backend, input_precision, refresh_workspace)
        self._in_graphs: list[torch.Tensor] = []
        self._generation = 0  # of the memory that the state lies in, which graphs hold on to
        self._underway = False  # a step, or one was left by an exception
        defaults = {
            "lr": lr,
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_precond_dim": max_precond_dim,
            "merge_dims": merge_dims,
            "precondition_1d": precondition_1d,
            "normalize_grads": normalize_grads,
            "data_format": data_format,
            "correct_bias": correct_bias,
            "refresh_tolerance": refresh_tolerance,
            "refresh_schedule": refresh_schedule,
            "noise_floor": noise_floor,
        }
        super().__init__(params, plain_options(defaults))
        checks.warn_of_shards(self.param_groups)

    def _choose_backend(self, name: str | None, precision: Precision, workspace: int) -> None:
        self._requested_backend = name
        self._asked = {"input_precision": precision, "refresh_workspace": workspace}
        self._best_on = Choice(SOAP, precision)
        self._backend = choose(name, precision, self._best_on, workspace)
        self._backend.sharing = self._sharing

    @property
    def backend(self) -> str:
        """Name of the backend that carries out the steps; where there are several, of the best."""
        devices = {param.device for group in self.param_groups for param in group["params"]}
        names = [self._backend.name_on(device) for device in devices]
        return min(names, key=NAMES.index, default=self._backend.name)

    @staticmethod
    def profile_hook_step(func: Callable[P, R]) -> Callable[P, R]:
        """torch puts this around `step`, once a class. torch.compile leaves all of it alone."""
        why = "soap_fast steps by kernels and operators of its own"
        hooked = torch.optim.Optimizer.profile_hook_step(func)
        return torch.compiler.disable(hooked, reason=why)  # type: ignore[no-untyped-call,no-any-return]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step for every parameter that has a gradient.

        Args:
            closure: reevaluates the model with gradients enabled and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: an option, gradient or parameter that cannot be stepped; nothing is written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling = Scaling(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        step = partial(self._step, scaling)
        with self._sharing.held:  # others would wait for a rank that left in the middle
            self._sharing.take(step, self.param_groups, self.state, self._backend)
        return loss

    def _step(self, scaling: Scaling, groups: Groups, state: Entries) -> None:
        self._underway, capturing = True, capture.underway()
        if not capturing and self._backend.steady_step(groups, state, scaling):
            self._underway = False
            return
        calls = list(self._calls(scaling, shared=(groups, state)))
        recording = capture.captured(calls, groups, self._backend)
        with (
            ambient.neutral({call.param.device.type for call in calls}),
            recording if capturing else nullcontext(),
        ):
            # First call of a tensor: K = (1 - b_s) g gᵀ, Q = its eigenvectors, and nothing else.
            later = [call for call in calls if not call.is_first]
            with ranges.named("begin"):
                first = [call for call in calls if call.is_first]
                begun = self._sharing.begin(begin, first, state, self._backend)
                self._generation += any(entry["calls"] for entry in begun.values())
                state.update(begun)  # all of these tensors begin, or none
            assign_missing_phases(later, groups, state)
            if any(call.owed for call in later):
                self._sharing.make_up(later, self._backend)
            # Every later call: g' = R(g), m and v average g' and g'², n = m / (sqrt(v) + eps),
            # p -= a R⁻¹(n), p -= lr weight_decay p, K = b_s K + (1 - b_s) g gᵀ.
            with ranges.named("update"):
                taken = self._backend.update(later)
            # Every f-th: Q = QR(K Q), columns by descending eigenvalue; v permuted, m carried over.
            due = [pair for pair in zip(later, taken, strict=True) if pair[0].owed]
            with ranges.named("refresh"):
                self._backend.refresh([call for call, _ in due], [flag for _, flag in due])
        if capturing:
            self._in_graphs = [call.param for call in calls]
        else:
            self._backend.after_step(groups, state, calls)
        self._underway = False

    def _calls(
        self, scaling: Scaling, grad_of: GradOf = GRAD, shared: tuple[Groups, Entries] | None = None
    ) -> Iterator[TensorCall]:
        """Every parameter with a gradient, once, checked together with the options of its group."""
        groups, state = (self.param_groups, self.state) if shared is None else shared
        seen: set[int] = set()  # a tied weight may stand in a group twice
        for place, group in enumerate(groups):
            planning, options = plan_options(group), step_options(group)
            for index, param in enumerate(group["params"]):
                grad = grad_of(param)
                if grad is None or id(param) in seen or not self._sharing.owns(param):
                    continue
                seen.add(id(param))
                plan = plan_tensor(tuple(param.shape), planning)
                entry = entry_of(state, param)
                try:
                    checks.check_parameter(param)
                    checks.check_gradient(param, grad)
                    checks.check_lr(options.lr, param)
                    grad = grad.resolve_neg()  # whose memory is what it says
                    call = TensorCall(param, grad, entry, plan, options, scaling)
                    self._check_backend(param, call)
                    if entry["calls"]:
                        checks.check_state(entry, plan, param)
                except ValueError as error:
                    raise ValueError(f"{label(group, place, index)} {error}") from None
                yield call

    def prepare_capture(self) -> None:
        """Make ready for the capture of a step in a CUDA graph under a staggered schedule.

        To be called outside of the capture, after the first refreshes. It uploads what is due at
        each phase, so that one graph serves them all. Under the periodic schedule nothing is done.
        """
        calls = list(self._calls(Scaling()))
        with ambient.neutral({call.param.device.type for call in calls}):
            self._backend.prepare_capture(calls)

    def replayed(self) -> None:
        """Tell that a CUDA graph with a captured step of this optimizer has been replayed.

        The clock that drives refreshes and is saved lies on the host, which a replay does not
        reach. `soap_fast.GraphedStep` replays and tells.

        Raises:
            RuntimeError: no step has been captured.
        """
        if not self._in_graphs:
            raise RuntimeError("no step of this optimizer has been captured in a CUDA graph")
        at_once(moving([self.state[param] for param in self._in_graphs]))
        self._backend.replayed()

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counters by kind and parameter; reading them waits for the device, keeping them does not.

        Returns:
            `skipped`: calls left out because the gradient was not finite; `held_back`: entries of
            the rotated basis that took no step at the last update, see `noise_floor`; `refreshed`,
            `kept`, `failed`: what became of bases at their refreshes, counted over the modes;
            `off_diagonal`: per mode the share of QᵀKQ off its diagonal before the last refresh, NaN
            without one.
        """
        self._sharing.finish(self._backend)
        self._backend.follow_streams()
        return read_counters(self.param_groups, self.state)

    def _check_backend(self, param: torch.Tensor, call: TensorCall | None = None) -> None:
        """A backend that was asked for by name steps a tensor or says why not."""
        if self._requested_backend is None:
            return
        reason = self._backend.refuses(param)
        if reason is None and call is not None:
            reason = self._backend.refuses_call(call)
        if reason is not None:
            raise ValueError(reason)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, also after steps were taken; checked whole before they are part of it.

        Raises:
            ValueError: as for the constructor.
        """
        self._sharing.finish(self._backend)
        super().add_param_group(param_group)
        place, added = len(self.param_groups) - 1, self.param_groups[-1]
        added.update(plain_options(added))
        try:
            checks.check_group(added, place, self._sharing.gathered, self._check_backend)
            devices = {param.device for param in added["params"]}
            self._best_on.prepare(devices, self._requested_backend)
        except ValueError:
            self.param_groups.pop()
            raise
        self._sharing.forget()

    @forks.on_own_threads()
    def state_dict(self, *, layout: checkpoint.Layout = "soap_fast") -> dict[str, Any]:
        """The state in contiguous tensors of its own, loadable with `weights_only=True`.

        Unlike those of torch's optimizers it is a snapshot, in the host's memory: later steps do
        not change it, and a GPU has not to hold the state twice while it is saved.

        Args:
            layout: "soap_fast", or "reference" for the layout of nikhilvyas/SOAP.

        Raises:
            ValueError: an unknown layout, or state of a parameter that is in no group any more.
            RuntimeError: a step was left between its launches, and there is no state to save, or
                sharding="state" and it was not consolidated.
        """
        self._backend.check_whole()
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        whole = self._sharing.whole_state(self.state)
        state_dict = checkpoint.write(whole, self.param_groups, layout)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state_dict)
            if replaced is not None:
                state_dict = replaced
        return state_dict

    def consolidate_state_dict(self, *, always: bool = False) -> None:
        """On every rank: have `state_dict` tell of all, until a step, or gather at every call."""
        self._sharing.gather(self.state, always=always)

    @forks.on_own_threads()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of soap_fast, of nikhilvyas/SOAP or of pytorch_optimizer's SOAP.

        The layout is recognised. State becomes float32 (float64 for float64 parameters) on the
        device of its parameter, whatever it was saved as.

        Raises:
            ValueError: the state_dict does not fit these parameters, is incomplete or damaged, or
                is another optimizer's; raised before anything changed.
        """
        if not isinstance(state_dict, dict):
            raise ValueError(f"a state_dict is a dict, this is a {type(state_dict).__name__}")
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state_dict)
            if replaced is not None:
                state_dict = replaced
        groups, state = checkpoint.read(state_dict, self.param_groups)
        state = self._sharing.own(groups, state)
        bind(restack(state), state)
        # From here on nothing is allocated: all of it is loaded, or nothing.
        with held:
            self._backend.forget({param.device for param, _ in entries(state)})
            self._in_graphs = []
            self._generation += 1
            self._sharing.forget()
            super().__setstate__({"param_groups": groups, "state": defaultdict(dict, state)})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        self._backend.check_whole()
        self._sharing.check_whole()
        return super().__getstate__() | {"requested_backend": self._requested_backend} | self._asked

    @forks.on_own_threads()
    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy or a pickle; its factors share stacks no more, and are stacked anew.

        It steps alone, whoever shared the work of the original: process groups are not copied.
        """
        state, self._sharing = dict(state), ALONE
        self._in_graphs, self._generation, self._underway = [], 0, False
        how = state.pop("input_precision", "tf32x3"), state.pop("refresh_workspace", WORKSPACE)
        self._choose_backend(state.pop("requested_backend", None), *how)
        super().__setstate__(state)
        bind(restack(self.state), self.state)
