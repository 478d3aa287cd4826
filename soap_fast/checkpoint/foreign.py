"""Other people's `state_dict` layouts: nikhilvyas/SOAP in and out, pytorch_optimizer's SOAP in.

| layout | clock | exp_avg | a mode without factor | a mode of size 1 |
|---|---|---|---|---|
| soap_fast | `calls`, `step` per tensor | rotated | None | None |
| reference | int `step` per tensor, calls after the first | rotated | [] | GG, Q of [1, 1] |
| pytorch_optimizer | int `step` per group, all calls | not rotated | [] | GG, Q of [1, 1] |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from soap_fast import ambient
from soap_fast.options import PLAN_OPTIONS, STEP_OPTIONS, plan_options
from soap_fast.step.modes import rotate
from soap_fast.step.plan import TensorPlan, eligible_modes, plan_tensor
from soap_fast.step.state import ENTRY_KEYS, LATER_KEYS, NOT_SAVED

KnownLayout = Literal["soap_fast", "reference", "pytorch_optimizer"]

NOT_SOAP = (
    "the state_dict is {kind}, which has no factors for SOAP to work in. To go on from a model "
    "trained with another optimizer, load the model's weights, build SOAP on its parameters and do "
    "not load this state: SOAP starts its factors from the next gradient"
)
PYTORCH_OPTIMIZER_NAMES = {
    "max_precondition_dim": "max_precond_dim",
    "normalize_gradient": "normalize_grads",
}
# The reference keeps data_format outside its groups.
REFERENCE_OPTIONS = tuple(name for name in STEP_OPTIONS + PLAN_OPTIONS if name != "data_format")
OUR_KEYS = frozenset((*ENTRY_KEYS, *LATER_KEYS, *NOT_SAVED))
REFERENCE_KEYS = frozenset(
    ("step", "exp_avg", "exp_avg_sq", "GG", "Q", "precondition_frequency", "shampoo_beta")
)
FROM_OTHERS = {*REFERENCE_OPTIONS, "initial_lr", "param_names"}  # a scheduler's and torch's own


def keys_of_entry(layout: KnownLayout) -> frozenset[str]:
    """What of a saved entry the optimizer wrote; other keys are its user's."""
    return OUR_KEYS if layout == "soap_fast" else REFERENCE_KEYS


def recognise(state: Mapping[Any, Any], groups: list[dict[str, Any]]) -> KnownLayout:
    """Which SOAP wrote this state and these groups.

    Raises:
        ValueError: none did; the message says how to start from another optimizer's model.
    """
    entries = [entry for entry in state.values() if isinstance(entry, Mapping)]
    if all("max_precondition_dim" in group for group in groups):
        return "pytorch_optimizer"
    if all("precondition_frequency" in group for group in groups):
        reference = any("GG" in entry and "calls" not in entry for entry in entries)
        return "reference" if reference else "soap_fast"
    is_adam = any("exp_avg" in entry and "exp_avg_sq" in entry for entry in entries)
    raise ValueError(NOT_SOAP.format(kind="one of Adam" if is_adam else "not one of a known SOAP"))


def group_options(saved: Mapping[str, Any], layout: KnownLayout) -> dict[str, Any]:
    """A saved group's options under our names; of another's group, only what we know."""
    options = {key: value for key, value in saved.items() if key != "params"}
    if layout == "soap_fast":
        return options
    renamed = {PYTORCH_OPTIMIZER_NAMES.get(key, key): value for key, value in options.items()}
    if renamed.get("shampoo_beta") is None:
        renamed["shampoo_beta"] = -1
    return {key: value for key, value in renamed.items() if key in FROM_OTHERS}


def entry_to_ours(
    entry: Mapping[str, Any], saved_group: Mapping[str, Any], plan: TensorPlan, layout: KnownLayout
) -> Mapping[str, Any]:
    """One parameter's entry in our layout.

    Raises:
        ValueError: something of the entry, or its clock, is missing or of another shape.
    """
    if layout == "soap_fast":
        return entry
    missing = [key for key in ("exp_avg", "exp_avg_sq", "GG", "Q") if key not in entry]
    if missing:
        raise ValueError(f"its entry has no {missing}: the checkpoint is incomplete")
    from_reference = layout == "reference"
    calls = _integer("step", entry) + 1 if from_reference else _integer("step", saved_group)
    bases, factors = _matrices("Q", entry, plan), _matrices("GG", entry, plan)
    kept = [None if _is_unit(q) else q for q in bases]
    exp_avg = entry["exp_avg"]
    require_tensor("exp_avg", exp_avg, plan.shape)  # which is computed with below
    for mode, q in enumerate(bases):
        if q is not None:
            require_tensor(f"Q[{mode}]", q, tuple(q.shape))
    if from_reference:
        # The basis of a mode of size 1 is [[1]] for us and [[1]] or [[-1]] in the reference.
        for q in bases:
            if q is not None and _is_unit(q):
                exp_avg = exp_avg * q.reshape(()).sign()
    else:
        with ambient.neutral({exp_avg.device.type}):
            exp_avg = rotate(exp_avg, kept, plan)
    return {
        "calls": calls,
        "step": torch.tensor(float(calls - 1), dtype=torch.float32, device="cpu"),
        "skipped": torch.zeros((), dtype=torch.int64, device="cpu"),
        "exp_avg": exp_avg,
        "exp_avg_sq": entry["exp_avg_sq"],
        "GG": [None if _is_unit(k) else k for k in factors],
        "Q": kept,
    }


def require_tensor(name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError for anything but a finite, dense, floating point tensor of this shape."""
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
        found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else repr(tensor)
        raise ValueError(f"{name} is {found}, not of shape {shape}")
    if tensor.layout != torch.strided or not tensor.is_floating_point() or tensor.is_meta:
        raise ValueError(
            f"{name} is not a dense floating point tensor: {tensor.dtype}, {tensor.layout}"
        )
    if not tensor.isfinite().all():
        raise ValueError(
            f"{name} has NaN or inf: the run that saved it had diverged; load an earlier one"
        )


def to_reference(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Our state_dict in the layout of nikhilvyas/SOAP."""
    known = {key for saved in state_dict["param_groups"] for key in saved["params"]}
    written_groups: list[dict[str, Any]] = []
    state = {key: value for key, value in state_dict["state"].items() if key not in known}
    for saved, group in zip(state_dict["param_groups"], groups, strict=True):
        options = plan_options(group)
        written_groups.append({key: saved[key] for key in (*REFERENCE_OPTIONS, "params")})
        for key, param in zip(saved["params"], group["params"], strict=True):
            if state_dict["state"].get(key, {}).get("calls"):
                plan = plan_tensor(tuple(param.shape), options)
                eligible = eligible_modes(plan.shape, plan.modes, options)
                entry = state_dict["state"][key]
                state[key] = _reference_entry(entry, plan, eligible, saved)
    return {**state_dict, "state": state, "param_groups": written_groups}


def _reference_entry(
    entry: Mapping[str, Any], plan: TensorPlan, eligible: tuple[bool, ...], group: Mapping[str, Any]
) -> dict[str, Any]:
    # Every factor's trace is the average of |g|², which is what a factor of size 1 holds.
    tracked = [k for k in entry["GG"] if k is not None]
    energy = tracked[0].trace() if tracked else entry["exp_avg_sq"].sum()
    factors: list[Any] = []
    bases: list[Any] = []
    for k, q, size, may in zip(entry["GG"], entry["Q"], plan.modes, eligible, strict=True):
        unit = k is None and size == 1 and may
        factors.append(energy.reshape(1, 1) if unit else [] if k is None else k)
        bases.append(torch.ones_like(energy).reshape(1, 1) if unit else [] if q is None else q)
    beta = group["shampoo_beta"]
    own = {key: value for key, value in entry.items() if key not in keys_of_entry("soap_fast")}
    return {
        **own,
        "step": int(entry["step"]),
        "exp_avg": entry["exp_avg"],
        "exp_avg_sq": entry["exp_avg_sq"],
        "GG": factors,
        "Q": bases,
        "precondition_frequency": group["precondition_frequency"],
        "shampoo_beta": beta if beta >= 0 else group["betas"][1],
    }


def _matrices(key: str, entry: Mapping[str, Any], plan: TensorPlan) -> list[torch.Tensor | None]:
    """Factors or bases as saved, one per mode; other layouts write [] for none."""
    saved, modes = entry[key], len(plan.factors)
    if not isinstance(saved, list) or len(saved) != modes:
        found = len(saved) if isinstance(saved, list) else repr(saved)
        raise ValueError(f"{key} has {found} modes, the parameter {modes}")
    matrices = [m if isinstance(m, torch.Tensor) and m.numel() > 0 else None for m in saved]
    for mode, (matrix, size) in enumerate(zip(matrices, plan.factors, strict=True)):
        if size is not None and (matrix is None or tuple(matrix.shape) != (size, size)):
            shape = None if matrix is None else tuple(matrix.shape)
            raise ValueError(f"{key}[{mode}] is {shape}, not of shape {(size, size)}")
    return matrices


def _is_unit(matrix: torch.Tensor | None) -> bool:
    return matrix is not None and matrix.numel() == 1


def _integer(name: str, saved: Mapping[str, Any]) -> int:
    value = saved.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}={value!r} is not an integer >= 0: the checkpoint is incomplete")
    return value
