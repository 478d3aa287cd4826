"""Launches of grouped products that are kept for the next refresh on the same memory."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import needs_native

from soap_fast.backends.triton import backend as of_backend
from soap_fast.backends.triton import products
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.backends.triton.launch.launcher import RecordingLauncher
from soap_fast.backends.triton.ops import grouped_matmul as grouped
from soap_fast.backends.triton.products import KeptProducts, Products
from soap_fast.step import capture
from soap_fast.step.grouped_matmul import ROUNDED, SYMMETRIC, groups_of

PRECISION = "tf32x3"


def operands(*shapes):
    """Room for products of rows with rows, [n, d, d] each: a, b, out."""
    a, b, out = ([torch.zeros(n, d, d) for n, d in shapes] for _ in range(3))
    return a, [x.mT for x in b], out


def multiply(by, of, structure=0):
    """As the operator calls it."""
    by.multiply(of[2][0], groups_of(*of), structure)


def tables(of, structure=0, kept=None, precision=PRECISION):
    """What is launched: arguments, tables as numbers."""
    launcher = RecordingLauncher()
    multiply(Products(launcher, precision, kept or KeptProducts()), of, structure)
    return [
        (launch.arguments[0].tolist(), launch.arguments[1:], launch.constants)
        for launch in launcher.launched
    ]


@pytest.fixture
def uploads(monkeypatch):
    """Tables that were uploaded."""
    made = []

    def counting(table, device):
        made.append(table)
        return table

    monkeypatch.setattr(grouped, "upload", counting)
    return made


def test_a_call_on_the_same_memory_uploads_nothing(uploads):
    kept, of = KeptProducts(), operands((2, 64), (1, 33), (3, 40))
    first = tables(of, kept=kept)
    assert len(uploads) == len(first) == 1
    views = [[x[:] for x in side] for side in of]  # other tensors, as a refresh makes them
    assert tables(views, kept=kept) == first
    assert len(uploads) == 1


@given(st.data())
def test_kept_launches_are_those_that_would_be_made(data):
    """Whatever has changed: sizes at one address, addresses, structure, precision."""
    kept, memory = KeptProducts(), torch.zeros(3, 4 * 48 * 48)
    for _ in range(data.draw(st.integers(2, 5))):
        number, d = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([32, 40, 45]))
        start = data.draw(st.sampled_from([0, 4, 5]))
        a, b, out = (x[start : start + number * d * d].view(number, d, d) for x in memory)
        structure = data.draw(st.sampled_from([0, SYMMETRIC, ROUNDED]))
        precision = data.draw(st.sampled_from(["tf32x3", "ieee"]))
        of = [a], [b.mT], [out]
        assert tables(of, structure, kept, precision) == tables(of, structure, None, precision)


def test_kernels_are_compiled_once_for_all_calls_alike():
    kept, launcher = KeptProducts(), RecordingLauncher()
    for d in (40, 44):
        multiply(Products(launcher, PRECISION, kept), operands((1, d)))
    multiply(Products(launcher, "ieee", kept), operands((1, 44)))
    first, second, ieee = (launch.kept for launch in launcher.launched)
    assert first is second
    assert first is not ieee


def test_kernels_on_more_programs_are_others():
    kept, launcher = KeptProducts(), RecordingLauncher(multiprocessors=132)
    for n in (1, 100):
        multiply(Products(launcher, PRECISION, kept), operands((n, 64)))
    assert launcher.launched[0].kept is not launcher.launched[1].kept


def test_as_many_calls_are_kept_as_are_said(monkeypatch, uploads):
    monkeypatch.setattr(KeptProducts, "MOST", 3)
    kept, each = KeptProducts(), [operands((1, 40)) for _ in range(4)]
    for of in each:
        tables(of, kept=kept)
    assert len(kept.made) == 3
    uploads.clear()
    tables(each[1], kept=kept)  # used: the last to go
    tables(each[0], kept=kept)
    tables(each[1], kept=kept)
    assert len(uploads) == 1


def test_a_capture_has_tables_of_its_own(monkeypatch, uploads):
    """Its graph owns them: they must not go with those of other calls."""
    kept, of = KeptProducts(), operands((1, 40))
    monkeypatch.setattr(capture, "underway", lambda: True)
    for _ in range(2):
        tables(of, kept=kept)
    assert len(uploads) == 2
    assert not kept.made


@needs_native
def test_groups_of_another_dtype_are_left_to_torch_each_time():
    a = [torch.eye(8, dtype=torch.float64)[None]]
    kept, out = KeptProducts(), [torch.zeros_like(a[0])]
    for _ in range(2):
        out[0].zero_()
        assert tables((a, a, out), kept=kept) == []
        assert torch.equal(out[0], a[0])


def test_each_stream_has_launches_of_its_own(monkeypatch):
    """Tables are given up without looking at streams: nobody else may read them."""
    backend, handed = TritonBackend(), []
    stream = iter("aab")
    factor = SimpleNamespace(device=torch.device("cuda", 0))

    def products_by(launcher, precision, *, kept):
        handed.append(kept)
        return nullcontext()

    monkeypatch.setattr(backend, "name_on", lambda device: backend.name)
    monkeypatch.setattr(backend, "_launcher", lambda device: None)
    monkeypatch.setattr(of_backend, "current", lambda device: next(stream))
    monkeypatch.setattr(of_backend, "refresh_native", lambda *arguments: arguments)
    monkeypatch.setattr(products, "products_by", products_by)
    for _ in range(3):
        backend._refresh_by_extension([factor])
    assert handed[0] is handed[1] is not handed[2]
    assert set(backend.products.values()) == {handed[0], handed[2]}
    backend.forget()
    assert not backend.products
