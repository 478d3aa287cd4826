"""Which backend steps which tensor, by device and dtype, on a machine with a GPU and without."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tolerances
import torch
from streams import assert_same_bits, needs_interpreter, needs_native, parameters, set_gradients

from soap_fast import SOAP, explain, extension
from soap_fast.backends import NAMES, choose
from soap_fast.backends.native import NativeBackend
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.options import plan_options
from soap_fast.step.plan import plan_tensor

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def best_on(device: torch.device) -> str:
    return {"cpu": "native", "cuda": "triton"}.get(device.type, "eager")


def stepped_by(backend, device, dtype=torch.float32, shape=(4, 3), lr=0.01) -> str:
    """Who steps such a tensor; `meta` has the strides that a device's has."""
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    alike = SimpleNamespace(
        device=device, dtype=dtype, shape=tensor.shape, numel=tensor.numel, stride=tensor.stride
    )
    plan = plan_tensor(tuple(shape), plan_options(SOAP([torch.ones(1)]).defaults))
    return backend.stepped_by(alike, alike, plan, lr)[0]


def SimpleTensor(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that claims to lie on a device."""
    tensor = torch.ones((), dtype=dtype)
    return type("Far", (torch.Tensor,), {"device": device})(tensor)


@pytest.fixture
def a_gpu(monkeypatch):
    """A machine that has one, with all that Triton needs; nobody may touch it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("soap_fast.backends.missing_for_triton", lambda: None)


@pytest.fixture
def with_cuda(monkeypatch):
    monkeypatch.setattr(extension, "missing_cuda", lambda: None)


@needs_native
class TestByDefault:
    def test_every_device_has_its_own(self, a_gpu, with_cuda):
        backend = choose(None, best_on=best_on)
        assert stepped_by(backend, CPU) == "native"
        assert stepped_by(backend, GPU) == "triton"
        assert stepped_by(backend, torch.device("mps")) == "eager"

    def test_float64_on_a_gpu_is_for_plain_torch(self, a_gpu, with_cuda):
        backend = choose(None, best_on=best_on)
        assert stepped_by(backend, GPU, torch.float64) == "eager"
        assert stepped_by(backend, CPU, torch.float64) == "native"
        assert not backend.computes(GPU, torch.float64)
        assert backend.computes(GPU, torch.float32)

    def test_an_lr_that_no_kernel_reads_is_for_the_extension(self, a_gpu, with_cuda):
        lr = SimpleTensor(torch.bfloat16, GPU)
        assert stepped_by(choose(None, best_on=best_on), GPU, lr=lr) == "native"

    def test_a_model_on_the_cpu_does_not_initialise_cuda(self, a_gpu, monkeypatch):
        """Which raises in a process that was forked after CUDA was used."""

        def refuse(*_):
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

        for name in ("get_device_capability", "get_device_properties", "device_count", "init"):
            monkeypatch.setattr(torch.cuda, name, refuse)
        (param,) = parameters(((4, 3),))
        optimizer = SOAP([param])
        for call in range(2):
            set_gradients([param], call)
            optimizer.step()
        assert optimizer.backend == "native"

    @pytest.mark.parametrize("name", NAMES)
    def test_the_verdict_decides(self, a_gpu, with_cuda, name):
        backend = choose(None, best_on=lambda device: name)
        assert stepped_by(backend, GPU) == name
        assert backend.name_on(GPU) == name
        assert backend.computes(GPU, torch.float32) == (name != "eager")

    def test_a_model_on_the_cpu_steps_natively_where_there_is_a_gpu(self, a_gpu):
        """To the bits of a machine without one."""
        ours, others = parameters(), parameters()
        optimizer = SOAP(ours, precondition_frequency=2)
        other = SOAP(others, precondition_frequency=2, backend="native")
        assert isinstance(optimizer._backend, TritonBackend)
        assert optimizer.backend == "native"
        for call in range(5):
            for params, each in ((ours, optimizer), (others, other)):
                set_gradients(params, call)
                each.step()
        assert_same_bits(ours, others)
        assert {tensors.by for tensors in explain(optimizer).tensors} == {"native"}

    def test_without_a_gpu_it_is_the_extension(self):
        backend = choose(None, best_on=best_on)
        assert isinstance(backend, NativeBackend)
        assert backend.name_on(CPU) == "native"


@needs_native
class TestAnExtensionWithoutCuda:
    def test_triton_steps_and_plain_torch_refreshes(self, monkeypatch):
        monkeypatch.setattr(extension, "missing_cuda", lambda: "it was built without CUDA")
        for backend in (TritonBackend(), TritonBackend(best_on=best_on)):
            assert stepped_by(backend, GPU) == "triton"
            assert not backend.computes(GPU, torch.float32)
            assert backend.computes(CPU, torch.float32)
            assert "plain torch" in backend.refreshes_on(GPU)
            assert "built without CUDA" in backend.refreshes_on(GPU)

    def test_with_cuda_it_is_the_extension(self, with_cuda):
        said = TritonBackend().refreshes_on(GPU)
        assert "CUDA kernels" in said
        assert "Triton" in said

    def test_explain_says_how_bases_are_refreshed(self):
        page = str(explain(SOAP(parameters())))
        assert "Refreshes on cpu by the extension's CPU kernels." in page


@needs_interpreter
class TestOneTensorByTwoBackends:
    """A gradient of a dtype that no kernel reads goes the other way, and back at the next call."""

    def test_it_stays_on_its_trajectory(self):
        shapes = ((5, 5), (4, 3, 3, 3))
        ours = parameters(shapes)
        expected = parameters(shapes, torch.float64)
        optimizer = SOAP(ours, precondition_frequency=2, eps=0.3)
        optimizer._backend = TritonBackend(best_on=lambda device: "triton")
        oracle = SOAP(expected, precondition_frequency=2, eps=0.3, backend="eager")
        for call in range(9):
            for params, each in ((ours, optimizer), (expected, oracle)):
                for index, param in enumerate(params):
                    generator = torch.Generator().manual_seed(17 * call + index)
                    grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
                    if param.dim() == 2:
                        grad += torch.diag(torch.linspace(2, 6, 5, dtype=torch.float64))
                    grad = grad.float()
                    odd = call in (4, 5) and index == 0  # call 4 refreshes, counted from 0
                    param.grad = None
                    param.grad_dtype = None
                    param.grad = grad.double() if odd or param.dtype == torch.float64 else grad
                each.step()
        for param, should_be, start in zip(ours, expected, parameters(shapes), strict=True):
            moved = (should_be - start).abs().max()
            assert (param - should_be).abs().max() / moved < tolerances.TRACE
            entry, its = optimizer.state[param], oracle.state[should_be]
            assert entry["refreshes"].tolist() == its["refreshes"].tolist()

    def test_a_steady_step_does_not_follow_one_of_another_backend(self):
        params = parameters(((6, 5),))
        optimizer = SOAP(params)
        optimizer._backend = backend = TritonBackend(best_on=lambda device: "triton")
        for call in range(3):
            set_gradients(params, call)
            optimizer.step()
        assert backend.steady is not None
        params[0].grad = None
        params[0].grad_dtype = None
        params[0].grad = torch.randn(6, 5, dtype=torch.float64)
        optimizer.step()
        assert backend.steady is None
