"""The layout itself: imports go one way, files stay small, and importing is safe and light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "soap_fast"

# Rooms and files from the top down: a module imports from its own layer and from those below. The
# longest name that a module's begins with says where it belongs.
LAYERS = (
    ("__main__", "__init__", "install"),
    ("graphs", "inspect", "diagnostics"),
    ("soap", "self_check", "checkpoint"),
    ("begin",),
    ("backends",),
    ("distributed",),
    ("backends.triton.ops",),
    ("backends.triton.launch",),
    ("step",),
    ("options", "values", "names", "ambient", "forks", "interrupts"),
    ("extension", "ranges", "versions"),
    ("triton_kernels",),
)
KERNELS = ROOT / "triton_kernels"
OF_SEVERAL_KERNELS = {"columns", "plane", "product", "registers", "table"}


def module_name(path: Path) -> str:
    """Within soap_fast, as installed; of a package its own."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in (*PACKAGE.rglob("*.py"), *KERNELS.glob("*.py"))}


def names_from(package: str, path: Path) -> Iterator[str]:
    """What a file imports from a package, wherever in the file: `module` or `module.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        inner = f"{package}."
        yield from (name.removeprefix(inner) for name in found if name.startswith(inner))


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    names = names_from("soap_fast", path)
    return {n if n in MODULES else n.rpartition(".")[0] or "__init__" for n in names}


IMPORTED = {name: imported(path) for name, path in MODULES.items()}


def layer_of(module: str) -> int:
    found = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert found, f"{module} belongs to no layer"
    return max(found)[1]


def test_imports_go_one_way():
    for name, targets in IMPORTED.items():
        for target in targets:
            assert target in MODULES, f"{name} imports {target}, which is not there"
            assert layer_of(target) >= layer_of(name), f"{name} imports {target}"


def test_imports_go_in_no_circle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path, name))}"
        if name not in done:
            for target in IMPORTED[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_every_layer_is_there():
    for name in (name for names in LAYERS for name in names):
        assert any(m == name or m.startswith(f"{name}.") for m in MODULES), f"{name} is gone"


def test_kernels_know_nothing_of_the_optimizer():
    for name in (name for name in MODULES if name.startswith("triton_kernels")):
        outside = {t for t in IMPORTED[name] if not t.startswith("triton_kernels")}
        assert not outside, f"{name} imports {outside}"


def test_an_op_is_a_kernel_and_a_host_file_of_one_name():
    kernels = {path.stem for path in KERNELS.glob("[a-z]*.py")} - OF_SEVERAL_KERNELS
    hosts = {path.stem for path in (PACKAGE / "backends/triton/ops").glob("[a-z]*.py")}
    assert kernels <= hosts, f"without a file of the host: {kernels - hosts}"


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


def test_backends_are_siblings():
    from soap_fast.backends import Backend
    from soap_fast.backends.eager import EagerBackend
    from soap_fast.backends.native import NativeBackend
    from soap_fast.backends.triton.backend import TritonBackend

    for backend in (EagerBackend, NativeBackend, TritonBackend):
        assert backend.__bases__ == (Backend,)
