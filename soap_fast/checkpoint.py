"""Writing and reading `state_dict`s: ours, checked whole before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from soap_fast import layouts
from soap_fast.call import state_dtype
from soap_fast.options import plan_options, step_options
from soap_fast.plan import TensorPlan, plan_tensor

Layout = Literal["soap_fast", "reference"]
ENTRY_KEYS = ("calls", "step", "skipped", "exp_avg", "exp_avg_sq", "GG", "Q")
ParamGroups = list[dict[str, Any]]


def write(packed: dict[str, Any], groups: ParamGroups, layout: Layout) -> dict[str, Any]:
    """A state_dict of torch's making, with views into stacks replaced by tensors of their own.

    Args:
        packed: {"state": {id: entry}, "param_groups": [...]} as `torch.optim.Optimizer` packs it.
        groups: the optimizer's own groups, in the same order.
        layout: "soap_fast" or "reference".
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout={layout!r} is not one of {get_args(Layout)}")
    state = {key: _detached(entry) for key, entry in packed["state"].items()}
    written = {**packed, "state": state}
    return layouts.to_reference(written, groups) if layout == "reference" else written


def _detached(value: Any) -> Any:
    """Tensors that share a storage with others copied out of it, so that a file holds only them."""
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_detached(item) for item in value]
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() != value.nbytes:
        return value.contiguous() if not value.is_contiguous() else value.clone()
    return value


def read(
    state_dict: Mapping[str, Any], groups: ParamGroups
) -> tuple[ParamGroups, dict[torch.Tensor, dict[str, Any]]]:
    """Groups and state for the parameters of `groups`, in whichever known layout they were saved.

    Raises:
        ValueError: the state_dict does not fit; nothing has been changed.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"the state_dict has no {key!r}: it is not one of an optimizer")
    saved_groups = state_dict["param_groups"]
    _check_sizes(saved_groups, groups)
    layout = layouts.recognise(state_dict)

    new_groups, state, known = [], {}, set()
    for saved, group in zip(saved_groups, groups, strict=True):
        # An option a layout does not know keeps the value this optimizer was built with.
        merged = {**group, **layouts.group_options(saved, layout), "params": group["params"]}
        planning, _ = plan_options(merged), step_options(merged)
        new_groups.append(merged)
        for index, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
            known.add(key)
            if not state_dict["state"].get(key):
                continue
            plan = plan_tensor(tuple(param.shape), planning)
            entry = state_dict["state"][key]
            try:
                entry = layouts.entry_to_ours(entry, saved, plan, layout)
                state[param] = _own(_checked(entry, plan), param)
            except ValueError as error:
                name = merged.get("param_names", {index: f"parameter {key}"})[index]
                raise ValueError(f"state_dict does not fit: {name}: {error}") from None
    strangers = sorted(str(key) for key in state_dict["state"] if key not in known)
    if strangers:
        raise ValueError(f"the state_dict has state for parameters {strangers} of no group")
    return new_groups, state


def _check_sizes(saved: ParamGroups, groups: ParamGroups) -> None:
    found, wanted = ([len(group["params"]) for group in side] for side in (saved, groups))
    if found != wanted:
        raise ValueError(
            f"the state_dict has groups of {found} parameters, this optimizer of {wanted}: build "
            "it with the same parameters in the same groups"
        )


def _checked(entry: Mapping[str, Any], plan: TensorPlan) -> Mapping[str, Any]:
    """Refuse an entry that is incomplete or shaped for another parameter or other options."""
    missing = [key for key in ENTRY_KEYS if key not in entry]
    if missing:
        raise ValueError(f"its entry has no {missing}: the checkpoint is incomplete")
    if not isinstance(entry["calls"], int) or entry["calls"] < 1:
        raise ValueError(f"calls={entry['calls']!r} is not an integer >= 1")
    for key in ("exp_avg", "exp_avg_sq"):
        _require_shape(key, entry[key], plan.shape)
    for key in ("step", "skipped"):
        if not isinstance(entry[key], torch.Tensor) or entry[key].numel() != 1:
            raise ValueError(f"{key}={entry[key]!r} is not a tensor of one element")
    for key in ("GG", "Q"):
        if len(entry[key]) != len(plan.factors):
            raise ValueError(
                f"{key} has {len(entry[key])} modes, the parameter {len(plan.factors)}"
            )
        for mode, (matrix, size) in enumerate(zip(entry[key], plan.factors, strict=True)):
            if size is None and matrix is not None:
                raise ValueError(
                    f"{key}[{mode}] is there, but the options give this mode no factor: use the "
                    "max_precond_dim, merge_dims, precondition_1d and data_format it was saved with"
                )
            if size is not None:
                _require_shape(f"{key}[{mode}]", matrix, (size, size))
    return entry


def _require_shape(name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else tensor
    if found != shape:
        raise ValueError(f"{name} is {found}, not of shape {shape}")


def _own(entry: Mapping[str, Any], param: torch.Tensor) -> dict[str, Any]:
    """A copy of an entry on the parameter's device; factors stay shared, stacking copies them."""
    device, dtype = param.device, state_dtype(param)

    def copied(tensor: torch.Tensor, to: torch.dtype) -> torch.Tensor:
        return tensor.detach().to(device, to, copy=True).contiguous()

    def factors(matrices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        return [None if m is None else m.detach().to(device, dtype) for m in matrices]

    return {
        "calls": entry["calls"],
        "step": copied(entry["step"], torch.float32).reshape(()),
        "skipped": copied(entry["skipped"], torch.int64).reshape(()),
        "exp_avg": copied(entry["exp_avg"], dtype),
        "exp_avg_sq": copied(entry["exp_avg_sq"], dtype),
        "GG": factors(entry["GG"]),
        "Q": factors(entry["Q"]),
    }
