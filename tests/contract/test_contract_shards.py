"""Parameters that are spread over processes: refused by name, or warned of where they are shards.

One process is a mesh of one, which suffices for what an optimizer sees of FSDP2. FSDP1 leaves
parameters whole there; what it does to them among several is done by hand.
"""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from streams import ON_CPU, assert_same_bits, parameters, set_gradients, snapshot, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.testing._internal.two_tensor import TwoTensor

from soap_fast import SOAP


@pytest.fixture
def mesh():
    """Of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(mesh) -> torch.nn.Module:
    layer = torch.nn.Linear(4, 3)
    fully_shard(layer, mesh=mesh)
    return layer


@pytest.mark.parametrize("backend", [None, *ON_CPU])
def test_parameters_of_fsdp2_are_refused_by_name_with_the_way_out(mesh, backend):
    layer = sharded(mesh)
    why = r"parameter 'weight' is a DTensor.*FSDP2.*DistributedDataParallel.*AdamW"
    with pytest.raises(ValueError, match=why):
        SOAP(layer.named_parameters(), backend=backend)
    optimizer = SOAP(parameters(), backend=backend)
    with pytest.raises(ValueError, match="parameter 0 of group 1 is a DTensor"):
        optimizer.add_param_group({"params": layer.parameters()})
    assert len(optimizer.param_groups) == 1


def test_so_are_replicated_ones(mesh):
    param = torch.nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Replicate()]))
    with pytest.raises(ValueError, match="parameter 0 of group 0 is a DTensor"):
        SOAP([param])


def test_one_that_is_put_into_a_group_later_stops_the_step(mesh):
    """As loops do that shard a model after they have built its optimizer."""
    layer = torch.nn.Linear(4, 3)
    params = list(layer.parameters())
    optimizer = SOAP(layer.named_parameters())
    train(optimizer, params, range(2))
    before = params[0].detach().clone()
    fully_shard(layer, mesh=mesh)
    optimizer.param_groups[0]["params"][1] = layer.bias
    layer(torch.ones(2, 4)).sum().backward()
    set_gradients(params[:1], 2)
    with pytest.raises(ValueError, match="parameter 'bias' is a DTensor"):
        optimizer.step()
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("backend", [None, *ON_CPU])
def test_other_tensors_without_memory_of_their_own_are_refused(backend):
    """Kernels would find no address, and step nothing."""
    param = torch.nn.Parameter(TwoTensor(torch.ones(3, 2), torch.ones(3, 2)))
    with pytest.raises(ValueError, match=r"parameter 'odd' is a TwoTensor.*made of other tensors"):
        SOAP([("odd", param)], backend=backend)
    plain = parameters(((3, 2), (2, 2)))
    optimizer = SOAP(plain, backend=backend)
    train(optimizer, plain, range(3))
    before = snapshot(optimizer, plain)
    set_gradients(plain, 3)
    plain[1].grad = TwoTensor(torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="1 of group 0 has a gradient that is a TwoTensor"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer, plain), before)


def test_parameters_that_fsdp1_leaves_whole_step_as_ever(mesh):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 4))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one process is not sharded over
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizers = [SOAP(m.parameters(), precondition_frequency=2) for m in (plain, model)]
    for call in range(4):
        images = torch.randn(2, 4, generator=torch.Generator().manual_seed(call))
        for one, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad()
            one(images).square().sum().backward()
            optimizer.step()
    ends = [[p.detach().clone() for p in one.parameters()] for one in (plain, model)]
    assert_same_bits(*ends)


def test_shards_of_fsdp1_are_warned_of_by_name():
    """Among several processes a parameter is a flat piece of itself, or an empty one."""
    layer = torch.nn.Linear(4, 3)
    for param in layer.parameters():
        param._fsdp_flattened = True
    layer.weight.data = layer.weight.data.flatten()[:5]
    layer.bias.data = torch.empty(0)
    with pytest.warns(UserWarning, match=r"parameter 'weight'.*shard.*without its factors"):
        optimizer = SOAP(layer.named_parameters())
    train(optimizer, list(layer.parameters()), range(3))


def test_one_flat_parameter_of_fsdp1_is_warned_of_as_well():
    flat = torch.nn.Parameter(torch.zeros(15))
    flat._is_flat_param = flat._fsdp_flattened = True
    with pytest.warns(UserWarning, match=r"parameter 1 of group 0.*shard"):
        SOAP([*parameters(((3, 3),)), flat])


def test_nothing_distributed_is_imported_to_know():
    code = (
        "import sys, torch; before = set(sys.modules); import soap_fast.step.checks; "
        "soap_fast.step.checks.check_parameter(torch.nn.Parameter(torch.ones(2, 2))); "
        "print([m for m in set(sys.modules) - before if m.startswith('torch.distributed')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
