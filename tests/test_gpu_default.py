"""On an NVIDIA GPU: what steps by default, after a check there."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import tolerances
import torch
from streams import assert_same_bits, parameters, set_gradients

from soap_fast import SOAP, explain, extension
from soap_fast.backends import NAMES
from soap_fast.self_check import checking

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@pytest.fixture
def nothing_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))  # of the check's process
    monkeypatch.setattr(checking, "_known", {})


def far(shapes, dtype=torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().cuda()) for p in parameters(shapes, dtype)]


def test_it_is_triton_after_a_check_of_half_a_minute_at_most(nothing_kept, capfd, recwarn):
    start = time.monotonic()
    assert SOAP(far(((4, 4),))).backend == "triton", [str(w.message) for w in recwarn.list]
    assert time.monotonic() - start < 30
    assert "checking backend 'triton'" in capfd.readouterr().err


def test_the_verdict_is_found_again_at_once(nothing_kept, monkeypatch):
    SOAP(far(((4, 4),)))
    monkeypatch.setattr(checking, "_known", {})
    monkeypatch.setattr(checking, "check_isolated", None)
    params = far(((4, 4),))
    start = time.monotonic()
    assert SOAP(params).backend == "triton"
    assert time.monotonic() - start < 0.1


def test_each_tensor_has_its_own_backend():
    shapes = ((8, 8), (6, 4, 3, 3))
    groups = [far(shapes), far(shapes, torch.float64), parameters(shapes)]
    found = explain(SOAP([{"params": group} for group in groups])).tensors
    assert {(t.device, t.dtype): t.by for t in found} == {
        ("cuda:0", "float32"): "triton",
        ("cuda:0", "float64"): "eager",
        ("cpu", "float32"): "native",
    }


def test_a_model_on_the_cpu_has_the_bits_of_the_extension():
    ours, others = parameters(), parameters()
    optimizer, other = SOAP(ours), SOAP(others, backend="native")
    for call in range(12):
        for params, each in ((ours, optimizer), (others, other)):
            set_gradients(params, call)
            each.step()
    assert_same_bits(ours, others)


def test_an_lr_that_no_kernel_reads_is_stepped_all_the_same():
    params, twins = far(((8, 8),)), far(((8, 8),), torch.float64)
    lr = torch.tensor(0.0078125, device="cuda", dtype=torch.bfloat16)  # a power of two
    optimizer, twin = SOAP(params, lr=lr, eps=1.0), SOAP(twins, lr=0.0078125, eps=1.0)
    for call in range(4):
        for group, each in ((params, optimizer), (twins, twin)):
            generator = torch.Generator().manual_seed(call)
            grad = torch.randn(8, 8, generator=generator) + torch.diag(torch.linspace(6, 12, 8))
            group[0].grad = grad.to(group[0])
            each.step()
    torch.testing.assert_close(params[0].data.double(), twins[0].data, **tolerances.FEW_CALLS)


def test_the_command_checks_every_backend_on_every_device():
    command = [sys.executable, "-m", "soap_fast", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    checked = {row["what"]: row["ok"] for row in json.loads(done.stdout)["self_check"]}
    for name in NAMES if extension.missing_cuda() is None else ("triton", "eager"):
        assert checked[f"backend {name} on cuda:0"], checked
