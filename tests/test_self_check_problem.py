"""The problem of the self-check: what is right passes it, what is wrong does not."""

from __future__ import annotations

import os

import pytest
import torch
from streams import backends, needs_interpreter
from tf32 import to_tf32

from soap_fast import SOAP
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.backends.triton.launch.launcher import RecordingLauncher
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.self_check import problem
from soap_fast.step import update
from soap_fast.triton_kernels.columns import GRAM, GRAM_WIDTHS, ROTATE, ROTATE_CLASSES


@pytest.mark.usefixtures("one_thread")
class TestTheProblem:
    @pytest.mark.parametrize("backend", backends())
    def test_what_is_right_passes(self, backend):
        assert problem.largest_error(SOAP, backend, "cpu") <= problem.TOLERANCE / 5

    @needs_interpreter
    def test_the_kernels_take_every_tensor_of_it(self, monkeypatch):
        """And pass; here a few calls of the smaller ones, the whole in `make soak`."""
        few = [one for one in problem.TENSORS if one[0] not in ((144, 144, 3, 3), (56, 8000))]
        monkeypatch.setattr(problem, "TENSORS", few)
        monkeypatch.setattr(problem, "CALLS", 4)
        monkeypatch.setattr(problem, "FREQUENCY", 2)
        monkeypatch.setitem(problem.OPTIONS, "precondition_frequency", 2)
        monkeypatch.setattr(problem, "NAN_TENSOR", 2)
        monkeypatch.setattr(problem, "NORMALIZED", 1)
        monkeypatch.setattr(problem, "NAN_CALL", 2)
        assert problem.largest_error(SOAP, "triton", "cpu") <= problem.TOLERANCE

    @needs_interpreter
    @pytest.mark.soak
    @pytest.mark.skipif("SOAP_FAST_EXAMPLES" not in os.environ, reason="make soak runs it")
    def test_the_kernels_pass_all_of_it(self):
        assert problem.largest_error(SOAP, "triton", "cpu") <= problem.TOLERANCE

    @pytest.mark.parametrize("call", [1, 6, 11])
    def test_a_wrong_step_is_found(self, monkeypatch, call):
        """One that is off by a hundredth in one tensor, as a product in plain tf32 may be."""
        steps = iter(range(problem.CALLS))

        class Wrong(SOAP):
            def step(self, closure=None):
                super().step()
                checked = self.param_groups[0]["params"][1]
                if checked.dtype == torch.float32 and next(steps) >= call:
                    checked.data.mul_(1.01)

        assert problem.largest_error(Wrong, "eager", "cpu") > problem.TOLERANCE

    def test_products_in_tf32_are_found(self, monkeypatch):
        """Of which the bound is a good deal more than of float32, and less than what faults do."""
        rotate = update.rotate

        def in_tf32(x, bases, plan):
            if x.dtype == torch.float64:
                return rotate(x, bases, plan)
            bases = [None if q is None else to_tf32(q) for q in bases]
            return rotate(to_tf32(x), bases, plan)

        monkeypatch.setattr(update, "rotate", in_tf32)
        assert problem.largest_error(SOAP, "eager", "cpu") > problem.TOLERANCE

    def test_it_takes_every_kernel_and_every_class_of_its_tiles(self):
        """As recorded launches say; nothing is computed."""
        launcher = RecordingLauncher()

        class Recorded(SOAP):
            def step(self, closure=None):
                if self.param_groups[0]["params"][0].dtype == torch.float32 and "Triton" not in (
                    type(self._backend).__name__
                ):
                    self._backend = TritonBackend(launcher=launcher)
                super().step()

        list(problem._steps(Recorded, "eager", torch.device("cpu")))
        launched = {launch.op for launch in launcher.launched}
        assert launched == set(TUNING) - {"grouped_matmul"}  # of the extension's refresh on CUDA
        classes = {op: set[int]() for op in ("gram", "gram_reduce", "rotate")}
        for launch in launcher.launched:
            if launch.op in classes:
                tiles = launch.arguments[0].view(launch.tiles, -1)
                columns = ROTATE if launch.op == "rotate" else GRAM
                classes[launch.op] |= set(tiles[:, columns["kind"]].tolist())
        assert classes["rotate"] == set(range(len(ROTATE_CLASSES)))
        assert classes["gram"] == set(range(2 * len(GRAM_WIDTHS)))  # along and across
        assert classes["gram_reduce"]

    def test_a_value_that_is_not_finite_is_an_infinite_error(self):
        class Broken(SOAP):
            def step(self, closure=None):
                super().step()
                first = self.param_groups[0]["params"][0]
                if first.dtype == torch.float32:
                    first.data.view(-1)[0] = float("nan")

        assert problem.largest_error(Broken, "eager", "cpu") == float("inf")

    def test_a_gradient_with_a_nan_that_is_stepped_is_an_infinite_error(self, monkeypatch):
        class Careless(SOAP):
            def step(self, closure=None):
                for param in self.param_groups[0]["params"]:
                    if param.dtype == torch.float32:
                        param.grad = param.grad.nan_to_num()
                super().step()

        assert problem.largest_error(Careless, "eager", "cpu") == float("inf")
