"""The extension: what it says of itself, that it may be missing, and the ABI that it promises."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from streams import needs_native

import soap_fast
from soap_fast import extension

PACKAGE = Path(soap_fast.__file__).parent


def copy_without_extension(folder: Path) -> Path:
    """As in a clone, with the kernels beside the package."""
    shutil.copytree(PACKAGE, folder / "soap_fast", ignore=shutil.ignore_patterns("*.so"))
    shutil.copytree(PACKAGE.parent / "triton_kernels", folder / "triton_kernels")
    return folder / "soap_fast"


def run_python(code: str, folder: Path) -> str:
    """Output of a fresh process that imports from `folder` first."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# An editable install has a finder that would still find the native modules of the checkout.
SAY = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import soap_fast
from soap_fast import extension as e
print(soap_fast.__file__, e.available(), e.build_info(), e.reason(), sep="|")
"""


def test_missing_extension_is_explained(tmp_path):
    package = copy_without_extension(tmp_path)
    file, available, info, reason = run_python(SAY, tmp_path).split("|")
    assert Path(file).parent == package
    assert (available, info) == ("False", "None")
    assert reason.startswith("soap_fast was installed without its extension")
    assert "SOAP_FAST_EXTENSION=ON" in reason


@pytest.mark.parametrize("installed", [True, False])
def test_a_source_folder_in_place_of_the_installed_one_is_named(installed, tmp_path):
    """In a clone Python imports the folder soap_fast/ there, in place of what pip installed."""
    clone, site = tmp_path / "clone", tmp_path / "site"
    clone.mkdir()
    copy_without_extension(clone)
    (site / "soap_fast-0.1.0.dist-info").mkdir(parents=True)
    (site / "soap_fast-0.1.0.dist-info" / "METADATA").write_text("Name: soap_fast\n")
    if installed:  # else as an editable install, whose code is the clone's
        (site / "soap_fast").mkdir()
    *_, reason = run_python(f"import sys; sys.path.append({str(site)!r})\n{SAY}", clone).split("|")
    named = f"{clone / 'soap_fast'} is imported in place of the installed {site / 'soap_fast'}"
    assert reason.startswith(named if installed else "soap_fast was installed without")
    assert ("--editable" in reason) == installed


def test_broken_extension_is_explained(tmp_path):
    (copy_without_extension(tmp_path) / "_operators.so").write_bytes(b"not a library")
    _, available, _, reason = run_python(SAY, tmp_path).split("|")
    assert available == "False"
    assert f"does not load on torch {torch.__version__}" in reason
    assert "_operators.so" in reason


def test_reason_and_availability_agree():
    assert extension.available() == (extension.reason() is None)


@needs_native
def test_build_info():
    info = extension.build_info()
    assert info["version"] == soap_fast.__version__
    assert re.fullmatch(r"\w+ \d+(\.\d+)+", info["compiler"])
    assert info["build_type"] in ("Release", "Debug")
    assert info["cxx_standard"] >= 17
    assert info["torch_target"] == "2.11"
    assert re.match(r"\d+\.\d+", info["torch_built_with"])
    if info["cuda"]:
        assert info["cuda_missing_because"] is None
        assert re.match(r"\d+\.\d+", info["cuda_version"])
        assert re.match(r"\d+", info["cuda_architectures"])
    else:
        assert info["cuda_missing_because"]
        assert info["cuda_version"] is info["cuda_architectures"] is None
    info["version"] = "changed"  # each caller has a dict of his own
    assert extension.build_info()["version"] == soap_fast.__version__


@needs_native
@pytest.mark.skipif(
    os.environ.get("SOAP_FAST_CUDA") != "ON", reason="SOAP_FAST_CUDA=ON does not demand CUDA"
)
def test_cuda_is_in_it_where_it_was_demanded():
    """And it has loaded, on a torch without CUDA too."""
    assert extension.available(), extension.reason()
    assert extension.build_info()["cuda"], extension.build_info()["cuda_missing_because"]
    assert torch._C._dispatch_has_kernel_for_dispatch_key("soap_fast::eigh", "CUDA")


def test_one_place_knows_how_versions_of_torch_report_a_failure():
    """Macros for it that later headers have are missing in 2.11's."""
    csrc = Path(__file__).parent.parent / "csrc"
    sources = [path for path in csrc.rglob("*") if path.is_file()]
    assert sources
    for source in sources:
        found = re.findall(r"torch_call_dispatcher|TORCH_ERROR_CODE_CHECK", source.read_text())
        assert not found or source.stem == "common", f"{source.name} has {set(found)}"


@needs_native
@pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF files with binutils")
class TestStableABI:
    """One library of operators for every CPython and every torch from 2.11 on."""

    def test_symbols(self):
        """From torch, plain C functions of the stable interface and nothing mangled."""
        listing = subprocess.run(
            ["nm", "-D", "--undefined-only", extension.LIBRARY],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        symbols = [line.split()[-1] for line in listing.splitlines()]
        leaks = [s for s in symbols if re.search(r"^_Z.*(2at|3c10|5torch)|^Py|^_Py", s)]
        assert leaks == []
        from_system = re.compile(r"@|^(_ITM_|__gmon_start__$|__cxa_finalize$)")
        from_torch = [s for s in symbols if not from_system.search(s)]
        assert [s for s in from_torch if not re.match(r"(aoti_)?torch_\w+$", s)] == []
        assert "torch_call_dispatcher" in from_torch
        assert not any("cuda_stream" in s for s in from_torch)  # libtorch_cuda may be absent

    def test_needs_nothing_but_torch_cpu_and_the_system(self):
        listing = subprocess.run(
            ["readelf", "-d", extension.LIBRARY], capture_output=True, text=True, check=True
        ).stdout
        needed = re.findall(r"NEEDED.*\[(\S+)\]", listing)
        assert "libtorch_cpu.so" in needed
        system = r"lib(torch_cpu|stdc\+\+|m|gcc_s|c|dl|pthread|rt)\.so(\.\d+)?|ld-linux.*"
        assert [name for name in needed if not re.fullmatch(system, name)] == []
        assert not re.search(r"RPATH|RUNPATH", listing)

    def test_names_no_folder_of_the_build_machine(self):
        for module in PACKAGE.glob("*.so"):
            content = module.read_bytes()
            for folder in (PACKAGE.parent, Path(torch.__file__).parent, Path(sys.prefix)):
                assert str(folder).encode() not in content, (module.name, folder)
