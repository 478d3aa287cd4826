"""What a step refuses, checked for every tensor before anything is written.

Messages are predicates: the caller puts the name of the parameter in front.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from soap_fast.names import Group, label
from soap_fast.options import plan_options, step_options
from soap_fast.step.call import state_dtype
from soap_fast.step.plan import TensorPlan

DELETE_ENTRY = "delete its entry, `del optimizer.state[p]`, and its next gradient starts it"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_group(
    group: Group,
    place: int,
    gathered: Callable[[torch.Tensor], torch.Tensor],
    check_backend: Callable[[torch.Tensor], None],
) -> None:
    """Refuse a parameter group before it is part of an optimizer.

    Args:
        group: with all of its options.
        place: of the group among the others.
        gathered: gives what is known of a parameter that processes gather, raises ValueError for
            one that they cannot, and leaves others as they are.
        check_backend: raises ValueError for a parameter that the backend does not step.

    Raises:
        ValueError: an option outside its range, or a parameter that cannot be stepped, by name.
    """
    plan_options(group)
    step_options(group)
    for index, param in enumerate(group["params"]):
        try:
            known = gathered(param)
            check_parameter(known)
            check_backend(known)
        except ValueError as error:
            raise ValueError(f"{label(group, place, index)} {error}") from None


def check_parameter(param: torch.Tensor) -> None:
    """Refuse a parameter no backend can step; of one without a shape yet, by what is known of it.

    Raises:
        ValueError: it is complex, sparse, on the meta device, not of a supported floating dtype,
            made of other tensors, a negated view, or elements of it share memory.
    """
    if _is_made_of_others(param):
        raise ValueError(f"is a {type(param).__name__}, {_way_out_of(param)}")
    if param.is_complex():
        raise ValueError(
            f"is complex ({param.dtype}): SOAP rotates real tensors; optimize "
            "torch.view_as_real of it instead"
        )
    if param.layout != torch.strided:
        raise ValueError(
            f"has layout {param.layout}: SOAP needs dense parameters; give sparse ones to "
            "torch.optim.SparseAdam"
        )
    if param.is_meta:
        raise ValueError(
            "is on the meta device and has no data: materialise the model (to_empty and "
            "its initialisation) before building the optimizer"
        )
    if not is_lazy(param) and param.is_neg():
        raise ValueError(
            "is a negated view, whose memory holds the opposite of its values: make it a tensor of "
            "its own with .resolve_neg()"
        )
    if not is_lazy(param) and not param.is_contiguous() and _overlaps_itself(param):
        raise ValueError(
            f"has strides {param.stride()} for shape {list(param.shape)}: elements share memory, "
            "and an update of one would change another; make it contiguous with .clone()"
        )
    if param.dtype not in DTYPES:
        raise ValueError(
            f"has dtype {param.dtype}, not one of {[str(dtype) for dtype in DTYPES]}: "
            "convert the parameter or leave it to another optimizer"
        )


def check_gradient(param: torch.Tensor, grad: torch.Tensor) -> None:
    """Refuse a gradient that does not belong to its parameter, and either without memory.

    Raises:
        ValueError: it is sparse, complex, made of other tensors, of another shape or on another
            device, or the storage of one was resized to 0.
    """
    check_memory(param)
    if _is_made_of_others(grad):
        raise ValueError(f"has a gradient that is a {type(grad).__name__}, {_way_out_of(grad)}")
    if grad.layout != torch.strided:
        raise ValueError(
            f"has a gradient of layout {grad.layout}: SOAP needs dense gradients; set "
            "sparse=False on the layer, or give it to torch.optim.SparseAdam"
        )
    if not grad.is_floating_point():
        raise ValueError(f"has a gradient of dtype {grad.dtype}: it must be floating point")
    if grad.shape != param.shape or grad.device != param.device:
        raise ValueError(
            f"is {list(param.shape)} on {param.device}, its gradient {list(grad.shape)} on "
            f"{grad.device}: both must agree; run backward again after moving or resizing it"
        )
    if _is_freed(grad):
        raise ValueError("has a gradient without memory: its storage was resized to 0")


def check_memory(param: torch.Tensor) -> None:
    """Refuse a parameter whose memory was freed.

    Raises:
        ValueError: its storage was resized to 0.
    """
    if _is_freed(param):
        raise ValueError(
            f"is {list(param.shape)} but has no memory: its storage was resized to 0, as FSDP1 "
            "does to what it has not gathered; take the step while it is there"
        )


def check_state(state: dict[str, Any], plan: TensorPlan, param: torch.Tensor) -> None:
    """Refuse a state that does not fit its parameter any more.

    Raises:
        ValueError: the parameter was resized, cast or moved after its first call, or an option that
            decides its factors was changed.
    """
    found = tuple(state["exp_avg"].shape)
    if found != plan.shape:
        raise ValueError(
            f"is {list(plan.shape)} but was {list(found)} at its first call: a resized "
            f"parameter must start anew; {DELETE_ENTRY}"
        )
    dtype = state["exp_avg"].dtype
    if dtype != state_dtype(param):
        raise ValueError(
            f"is {param.dtype} now, its state {dtype}: convert the model before building the "
            "optimizer, or load the optimizer's state_dict again afterwards"
        )
    if state["exp_avg"].device != param.device:
        raise ValueError(
            f"is on {param.device}, its state on {state['exp_avg'].device}: move the model "
            "before building the optimizer, or load the optimizer's state_dict again afterwards"
        )
    sizes = tuple(None if k is None else k.shape[0] for k in state["GG"])
    if sizes != plan.factors:
        merged = plan.modes != plan.shape or len(sizes) != len(plan.modes)  # now or before
        if not merged and _of_other_sizes(sizes, plan):
            raise ValueError(
                f"is {list(plan.shape)} but its factors are of {list(sizes)}: it was resized with "
                "its moments, but factors cannot be resized and must start anew; "
                f"{DELETE_ENTRY}"
            )
        if merged:
            raise ValueError(
                f"has factors of sizes {list(sizes)} but its shape and options now ask for "
                f"{list(plan.factors)}: either it was resized with its moments, or one of "
                "max_precond_dim, merge_dims, precondition_1d and data_format was changed, which "
                "cannot change after a parameter's first call. Restore that option, or start the "
                f"parameter anew: {DELETE_ENTRY}"
            )
        raise ValueError(
            f"has factors of sizes {list(sizes)} but its options now ask for "
            f"{list(plan.factors)}: max_precond_dim, merge_dims, precondition_1d and data_format "
            "cannot change after a parameter's first call"
        )
    for name, tensor, shape, wanted in _expected(state, plan, dtype):
        if tensor.dtype != wanted or tuple(tensor.shape) != shape or tensor.device != param.device:
            raise ValueError(
                f"has a {name} of {tensor.dtype} {list(tensor.shape)} on {tensor.device} in its "
                f"state, where {wanted} {list(shape)} on {param.device} belongs: load the "
                "optimizer's state_dict, or delete the parameter's entry from optimizer.state"
            )


def _of_other_sizes(sizes: Sequence[int | None], plan: TensorPlan) -> bool:
    """Whether factors belong to larger or smaller modes; no option but merging changes a size."""
    pairs = zip(sizes, plan.modes, strict=True)
    return any(size is not None and size != mode for size, mode in pairs)


def _expected(
    state: dict[str, Any], plan: TensorPlan, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor, tuple[int, ...], torch.dtype]]:
    """Tensors of a state, with the shape and dtype they must have."""
    yield "step", state["step"], (), torch.float32
    yield "skipped", state["skipped"], (), torch.int64
    yield "exp_avg_sq", state["exp_avg_sq"], plan.shape, dtype
    yield "refreshes", state["refreshes"], (3,), torch.int64
    yield "off_diagonal", state["off_diagonal"], (len(plan.modes),), dtype
    for kind in ("GG", "Q"):
        for matrix, size in zip(state[kind], plan.factors, strict=True):
            if matrix is not None and size is not None:
                yield kind, matrix, (size, size), dtype


def check_lr(lr: float | torch.Tensor, param: torch.Tensor) -> None:
    """Refuse a tensor lr that this parameter's update cannot read.

    Raises:
        ValueError: it lies on another device than the parameter, and not on the CPU.
    """
    if isinstance(lr, torch.Tensor) and lr.device.type != "cpu" and lr.device != param.device:
        raise ValueError(f"is on {param.device}, its lr on {lr.device}: keep lr on the CPU")


def warn_of_shards(groups: Sequence[Group]) -> None:
    """Say that parameters are flat pieces of themselves, as FSDP1 leaves them, by name."""
    flat = [
        (param, label(group, place, index))
        for place, group in enumerate(groups)
        for index, param in enumerate(group["params"])
        if getattr(param, "_fsdp_flattened", False)  # which torch sets, whatever it does to it
    ]
    if flat and all(param.dim() < 2 for param, _ in flat):  # NO_SHARD leaves shapes as they were
        warnings.warn(
            f"{flat[0][1]} and {len(flat) - 1} others look like shards of FSDP, which are flat: "
            "SOAP steps a flat piece without its factors, as Adam would. Take "
            "ShardingStrategy.NO_SHARD or DistributedDataParallel, which leave parameters whole",
            stacklevel=3,
        )


def _is_made_of_others(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a wrapper, without memory of its own that kernels could be given.

    Source: torch.utils._python_dispatch.is_traceable_wrapper_subclass, which asks the same.
    """
    return hasattr(type(tensor), "__tensor_flatten__")


def _is_freed(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor is spread over processes by torch's DTensor."""
    # To ask for the class would import it, and all of torch.distributed.
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def _way_out_of(wrapper: torch.Tensor) -> str:
    if is_dtensor(wrapper):
        return (
            "spread over a mesh of processes (FSDP2, tensor parallelism): SOAP needs whole "
            "tensors; take sharding='state', which gathers each for one process to step, train "
            "with DistributedDataParallel, which leaves them whole, or leave this one to "
            "torch.optim.AdamW"
        )
    return (
        "which is made of other tensors and has no memory of its own: make it a plain tensor, or "
        "leave it to another optimizer"
    )


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether two elements may share memory: a stride is smaller than what faster axes span."""
    span = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < span:
                return True
            span += stride * (size - 1)
    return False
