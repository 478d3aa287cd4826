"""No test has a tolerance of its own: all stand in tolerances.py, with what each follows from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TABLE = {"tolerances", "U"}  # names by which an expression takes from it
KEYWORDS = {"rtol", "atol", "rel", "abs", "rel_tol", "abs_tol"}
COMPARISONS = {"allclose", "assert_close"}
SMALL = 0.01  # a float below it, as an upper limit in an assertion, is a tolerance


def numbers(node: ast.AST) -> list[float]:
    """Numbers other than 0 in an expression that does not name the table."""
    inside = list(ast.walk(node))
    if any(isinstance(part, ast.Name) and part.id in TABLE for part in inside):
        return []
    constants = [part.value for part in inside if isinstance(part, ast.Constant)]
    return [c for c in constants if isinstance(c, int | float) and c]


def literal_tolerances(tree: ast.AST) -> Iterator[ast.AST]:
    """Keywords with a number, comparisons of tensors by default, and small upper limits."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            yield from (v for name, v in given.items() if name in KEYWORDS and numbers(v))
            named = isinstance(node.func, ast.Attribute) and node.func.attr in COMPARISONS
            if named and None not in given and not {"rtol", "atol"} <= set(given):
                yield node
        elif isinstance(node, ast.Assert):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Compare) and isinstance(part.ops[-1], ast.Lt | ast.LtE):
                    limit = part.comparators[-1]
                    if any(isinstance(c, float) and 0 < c < SMALL for c in numbers(limit)):
                        yield limit


def test_all_stand_in_the_table():
    for path in TESTS.rglob("*.py"):
        if path.name != "tolerances.py":
            for node in literal_tolerances(ast.parse(path.read_text())):
                pytest.fail(f"{path.relative_to(TESTS)}:{node.lineno}: {ast.unparse(node)}")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("approx(x, rel=1e-5)", 1),
        ("approx(x, rel=2 * tolerances.U)", 0),
        ("torch.allclose(x, y)", 1),
        ("torch.testing.assert_close(x, y, rtol=0, atol=0)", 0),
        ("torch.testing.assert_close(x, y, **tolerances.PLAIN)", 0),
        ("assert error <= 2 * 5e-4 * moved", 1),
        ("assert error < 0.7", 0),
    ],
)
def test_a_literal_one_is_found(code, found):
    assert len(list(literal_tolerances(ast.parse(code)))) == found
