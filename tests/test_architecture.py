"""The layout itself: imports go one way, files stay small, and importing is safe and light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "soap_fast"

# A module may import from modules further down only.
ORDER = [
    "__main__",
    "__init__",
    "install",
    "explain",
    "graphs",
    "diagnostics",
    "diagnostics.activations",
    "diagnostics.updates",
    "diagnostics.factors",
    "diagnostics.scores",
    "diagnostics.preconditioners",
    "precondition",
    "soap",
    "self_check",
    "self_check.choice",
    "self_check.checking",
    "self_check.isolated",
    "self_check.verdict",
    "self_check.problem",
    "checkpoint",
    "by_mode",
    "layouts",
    "begin",
    "backends",
    "backends.triton",
    "backends.requirements",
    "backends.native",
    "backends.eager",
    "cpu_step",
    "distributed.planner",
    "distributed",
    "distributed.choice",
    "distributed.sharing",
    "distributed.owning",
    "distributed.together",
    "distributed.agreement",
    "distributed.exchange",
    "distributed.messages",
    "distributed.partition",
    "fused.steady",
    "fused.engine",
    "fused.turns",
    "fused.metadata",
    "fused.refresher",
    "fused.staggered",
    "fused.grouped",
    "fused.due",
    "fused.carry_tables",
    "fused.option_rows",
    "fused.memory",
    "fused.tensor_table",
    "fused.works",
    "fused.underway",
    "fused.launcher",
    "fused.tables",
    "fused.rotations",
    "fused.gram_tables",
    "fused.plane_tables",
    "fused.work",
    "fused.operands",
    "fused.upload",
    "fused.pieces",
    "fused.stream_order",
    "fused.floor",
    "fused.tuning",
    "fused.tiles",
    "fused.twins",
    "fused.layout",
    "fused.columns",
    "fused",
    "stats",
    "schedule",
    "carry",
    "refresh",
    "grouped_matmul",
    "update",
    "modes",
    "eigh",
    "extension",
    "state",
    "checks",
    "capture",
    "call",
    "plan",
    "rounding",
    "options",
    "values",
    "names",
    "ambient",
    "forks",
    "interrupts",
    "ranges",
    "versions",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("soap_fast"):
            base = node.module.removeprefix("soap_fast").lstrip(".")
            if base.startswith("triton_kernels"):
                continue
            if base:
                names.add(base)
            else:
                names |= {alias.name if alias.name in ORDER else "__init__" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("soap_fast.")
                for alias in node.names
                if alias.name.startswith("soap_fast.")
            }
    return names


def test_imports_go_one_way():
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    assert set(files) == set(ORDER), "a module is missing in ORDER, or gone"
    for name, path in files.items():
        for target in imported(path):
            assert ORDER.index(target) > ORDER.index(name), f"{name} imports {target}"


def test_kernels_know_nothing_of_the_optimizer_but_their_tables():
    for path in (ROOT / "triton_kernels").glob("*.py"):
        for target in imported(path):
            assert target == "fused.columns", f"{path.name} imports {target}"


def test_files_stay_small():
    for folder in ("soap_fast", "triton_kernels", "bench", "csrc", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".cpp", ".cu", ".h"}:
                lines = len(path.read_text().splitlines())
                assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines: split it by idea"


def test_importing_needs_neither_triton_nor_the_compiler_stack():
    code = (
        "import sys; import torch; before = set(sys.modules); import soap_fast; "
        "print([m for m in ('triton', 'torch._dynamo', 'torch._inductor') "
        "if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_but_the_package_is_installed_at_the_top_level():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name in project["tool"]["setuptools"]["packages"]:
        assert name.split(".")[0] == "soap_fast"
