"""Writing and reading `state_dict`s; one that is read is checked whole before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch.nn.parameter import is_lazy

from soap_fast.checkpoint import by_mode
from soap_fast.checkpoint import foreign as layouts
from soap_fast.options import plain_options, plan_options, step_options
from soap_fast.step.call import Owed, state_dtype
from soap_fast.step.plan import TensorPlan, plan_tensor
from soap_fast.step.state import ENTRY_KEYS, NOT_SAVED, entries, refresh_counters

Layout = Literal["soap_fast", "reference"]
ParamGroups = list[dict[str, Any]]
State = Mapping[torch.Tensor, dict[str, Any]]

HOST = torch.device("cpu")
NOT_BEGUN_KEYS = ("calls", "skipped")


def write(state: State, groups: ParamGroups, layout: Layout) -> dict[str, Any]:
    """{"state": {index: entry}, "param_groups": [...]}, of tensors that nothing else refers to.

    State is copied into the host's memory, one tensor after the other: a GPU that is nearly full
    has no room for a second one. Options, such as an `lr` in a tensor, stay where they are.

    Args:
        state: the optimizer's entries by parameter.
        groups: its parameter groups.
        layout: "soap_fast" or "reference".

    Raises:
        ValueError: an unknown layout, or state of a parameter of no group.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout={layout!r} is not one of {get_args(Layout)}")
    indices = _indices(groups)
    for param, entry in entries(state):
        if entry and param not in indices:
            shape = tuple(param.shape)
            raise ValueError(
                f"a parameter of shape {shape} has state and is in no group any more: "
                "delete its entry of optimizer.state"
            )
    others = _others(state, set(indices.values()))
    begun = {param: entry for param, entry in entries(state) if entry}
    written: dict[str, Any] = {
        "state": {indices[p]: _snapshot(_saved(e), HOST) for p, e in begun.items()} | others,
        "param_groups": [
            {
                **_snapshot(plain_options(options)),
                **_owed(params, begun),
                "params": [indices[p] for p in params],
            }
            for options, params in map(_split, groups)
        ],
    }
    if layout == "reference":
        return layouts.to_reference(written, groups)
    for key in indices.values():
        if key in written["state"]:
            written["state"][key] = by_mode.to_saved(written["state"][key])
    return written


def _saved(entry: dict[str, Any]) -> dict[str, Any]:
    left_out = {*NOT_SAVED, *(() if any(entry.get("phases") or ()) else ("phases",))}
    return {key: value for key, value in entry.items() if key not in left_out}


def _indices(groups: ParamGroups) -> dict[torch.Tensor, int]:
    """Where each parameter stands, counted over the groups; twice in one: the last place.

    Source: torch.optim.Optimizer.state_dict.
    """
    indices: dict[torch.Tensor, int] = {}
    start = 0
    for group in groups:
        places = enumerate(group["params"], start)
        indices.update({param: i for i, param in places if param not in indices})
        start += len(group["params"])
    return indices


def _others(state: Mapping[Any, Any], indices: set[int]) -> dict[Any, Any]:
    """What a subclass or a user keeps under keys that are no tensors, where it lies."""
    others = {key: value for key, value in state.items() if not isinstance(key, torch.Tensor)}
    for key in others:
        _require(
            key not in indices,
            f"optimizer.state[{key!r}] would be saved under the index of a parameter: keep it "
            "under another key, such as a string",
        )
    return {key: _snapshot(value) for key, value in others.items()}


def _owed(params: list[torch.Tensor], begun: State) -> dict[str, list[list[int]]]:
    """What a group says of refreshes that a step has left to the next one; mostly nothing.

    `owed` has for each parameter the modes that owe one. It is no part of the entries, which are
    those of tensors to which none falls due.
    """
    found = (begun.get(param, {}).get("owed") for param in params)
    owed = [owed.modes if owed is not None and bool(owed.taken) else [] for owed in found]
    return {"owed": owed} if any(owed) else {}


def _split(group: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    options = {key: value for key, value in group.items() if key != "params"}
    return options, group["params"]


def _snapshot(value: Any, device: torch.device | None = None) -> Any:
    """A copy, on `device` or where it was; a tensor is contiguous and has a storage of its own."""
    if isinstance(value, dict):
        return {key: _snapshot(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_snapshot(item, device) for item in value)
    if isinstance(value, torch.Tensor):
        if device is None or value.device == device:
            return value.detach().clone(memory_format=torch.contiguous_format)
        return value.detach().to(device).contiguous()
    return copy.deepcopy(value)


def read(state_dict: Mapping[str, Any], groups: ParamGroups) -> tuple[ParamGroups, dict[Any, Any]]:
    """Groups and state for the parameters of `groups`, in whichever known layout they were saved.

    Raises:
        ValueError: the state_dict does not fit; nothing has been changed.
    """
    saved_state, saved_groups = _parts(state_dict)
    _check_sizes(saved_groups, groups)
    layout = layouts.recognise(saved_state, saved_groups)

    new_groups, known = [], set()
    state: dict[Any, Any] = {}
    for saved, group in zip(saved_groups, groups, strict=True):
        # An option a layout does not know keeps the value this optimizer was built with.
        options = _snapshot(layouts.group_options(saved, layout))
        owed = options.pop("owed", [[]] * len(group["params"]))
        _require(_is_list_for(owed, group["params"]), f"its group has owed={owed!r}")
        merged = plain_options({**group, **options, "params": group["params"]})
        planning, _ = plan_options(merged), step_options(merged)
        new_groups.append(merged)
        for index, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
            known.add(key)
            entry = saved_state.get(key)
            if entry is None or by_mode.is_empty(entry):
                continue
            try:
                _require(not is_lazy(param), "it is not initialised yet: run the model once before")
                plan = plan_tensor(tuple(param.shape), planning)
                _require(isinstance(entry, Mapping), f"its entry is a {type(entry).__name__}")
                own = {k: entry[k] for k in entry if k not in layouts.keys_of_entry(layout)}
                state[param] = own = _snapshot(own, param.device)
                if own.keys() == entry.keys():  # it was saved before the first call
                    continue
                listed = by_mode.from_saved(entry, len(plan.factors))
                entry = {**by_mode.without_factors(plan.factors), **listed}
                entry = layouts.entry_to_ours(entry, saved, plan, layout)
                state[param] = {**own, **_own(_checked(entry, plan), param, plan)}
                if owed[index]:
                    state[param]["owed"] = _owing(owed[index], plan, param)
            except ValueError as error:
                name = merged.get("param_names", {index: f"parameter {key}"})[index]
                raise ValueError(f"the state_dict does not fit: {name}: {error}") from None
    others = {key: value for key, value in saved_state.items() if key not in known}
    strangers = sorted(str(key) for key, value in others.items() if _is_entry(value))
    _require(not strangers, f"the state_dict has state for parameters {strangers} of no group")
    return new_groups, {**state, **_snapshot(others)}


def _is_list_for(owed: Any, params: list[torch.Tensor]) -> bool:
    """Whether the group's `owed` has a list for each of its parameters."""
    return isinstance(owed, list) and list(map(type, owed)) == [list] * len(params)


def _owing(modes: list[Any], plan: TensorPlan, param: torch.Tensor) -> Owed:
    factors = [mode for mode, size in enumerate(plan.factors) if size is not None]
    _require(all(mode in factors for mode in modes), f"owed={modes!r} are not modes with a factor")
    return Owed(modes, torch.ones((), dtype=torch.bool, device=param.device))


def _is_entry(value: Any) -> bool:
    """Whether a value is a parameter's entry, and nothing that a user keeps beside them."""
    return isinstance(value, Mapping) and any(key in value for key in ENTRY_KEYS)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _parts(state_dict: Mapping[str, Any]) -> tuple[Mapping[Any, Any], ParamGroups]:
    for key, kind in (("state", Mapping), ("param_groups", list)):
        _require(key in state_dict, f"the state_dict has no {key!r}: it is not an optimizer's")
        found = state_dict[key]
        _require(isinstance(found, kind), f"its {key!r} is a {type(found).__name__}")
    for group in state_dict["param_groups"]:
        usable = isinstance(group, Mapping) and isinstance(group.get("params"), list)
        _require(usable, "a parameter group of the state_dict has no list of params")
    return state_dict["state"], state_dict["param_groups"]


def _check_sizes(saved: ParamGroups, groups: ParamGroups) -> None:
    found, wanted = ([len(group["params"]) for group in side] for side in (saved, groups))
    _require(
        found == wanted,
        f"the state_dict has groups of {found} parameters, this optimizer of {wanted}: build it "
        "with the same parameters in the same groups",
    )


def _checked(entry: Mapping[str, Any], plan: TensorPlan) -> Mapping[str, Any]:
    """Refuse an entry that is incomplete, damaged, or of another parameter or other options."""
    calls: Any = entry.get("calls")
    keys = NOT_BEGUN_KEYS if calls == 0 else ENTRY_KEYS
    missing = [key for key in keys if key not in entry]
    _require(not missing, f"its entry has no {missing}: the checkpoint is incomplete")
    _require(type(calls) is int and calls >= 0, f"calls={calls!r} is not an integer >= 0")
    _require_clock("skipped", entry["skipped"], float("inf"))
    if calls == 0:
        return entry

    _require_clock("step", entry["step"], calls - 1)
    for key in ("exp_avg", "exp_avg_sq"):
        layouts.require_tensor(key, entry[key], plan.shape)
    _require(bool((entry["exp_avg_sq"] >= 0).all()), "exp_avg_sq has negative entries")
    _check_refreshes(entry, plan)
    for key in ("GG", "Q"):
        matrices = entry[key]
        _require(isinstance(matrices, list), f"{key} is a {type(matrices).__name__}, not a list")
        modes = len(plan.factors)
        _require(len(matrices) == modes, f"{key} has {len(matrices)} modes, the parameter {modes}")
        for mode, (matrix, size) in enumerate(zip(matrices, plan.factors, strict=True)):
            if size is not None:
                layouts.require_tensor(f"{key}[{mode}]", matrix, (size, size))
            else:
                _require(
                    matrix is None,
                    f"{key}[{mode}] is there, but the options give this mode no factor: use the "
                    "max_precond_dim, merge_dims, precondition_1d, data_format it was saved with",
                )
    return entry


def _check_refreshes(entry: Mapping[str, Any], plan: TensorPlan) -> None:
    """What checkpoints may lack: counters of refreshes, and phases of a staggered schedule."""
    for key, size in (("refreshes", 3), ("off_diagonal", len(plan.modes))):
        found = entry.get(key)
        if found is not None:
            usable = isinstance(found, torch.Tensor) and tuple(found.shape) == (size,)
            _require(usable, f"{key} is {found!r}, not a tensor of {size} elements")
    phases = entry.get("phases")
    if phases is not None:
        usable = isinstance(phases, list) and len(phases) == len(plan.factors)
        usable = usable and all(
            phase is None if size is None else type(phase) is int and phase >= 1
            for phase, size in zip(phases, plan.factors, strict=True)
        )
        _require(usable, f"phases={phases!r} are not one integer >= 1 for each factor")


def _require_clock(name: str, clock: Any, last: float) -> None:
    usable = isinstance(clock, torch.Tensor) and clock.numel() == 1 and not clock.is_meta
    _require(usable, f"{name}={clock!r} is not a tensor of one element")
    value = clock.item()
    _require(0 <= value <= last, f"{name}={value} is outside [0, {last}], what `calls` allows")


def _own(entry: Mapping[str, Any], param: torch.Tensor, plan: TensorPlan) -> dict[str, Any]:
    """A copy of an entry on the parameter's device; factors stay shared, stacking copies them."""
    device, dtype = param.device, state_dtype(param)

    def copied(tensor: torch.Tensor, to: torch.dtype) -> torch.Tensor:
        return tensor.detach().to(device, to, copy=True).contiguous()

    def factors(matrices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        return [None if m is None else m.detach().to(device, dtype) for m in matrices]

    begun = {"calls": entry["calls"], "skipped": copied(entry["skipped"], torch.int64).reshape(())}
    if entry["calls"] == 0:
        return begun
    counters = refresh_counters(param, plan)
    for name, fresh in counters.items():
        if name in entry:
            counters[name] = copied(entry[name], fresh.dtype)
    return {
        **begun,
        **counters,
        "phases": None if entry.get("phases") is None else list(entry["phases"]),
        "step": copied(entry["step"], torch.float32).reshape(()),
        "exp_avg": copied(entry["exp_avg"], dtype),
        "exp_avg_sq": copied(entry["exp_avg_sq"], dtype),
        "GG": factors(entry["GG"]),
        "Q": factors(entry["Q"]),
    }
