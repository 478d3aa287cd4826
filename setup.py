"""Builds the extension with CMake and Ninja. Everything declarative is in pyproject.toml.

Environment:
    SOAP_FAST_EXTENSION           AUTO (default): without a working C++ compiler install without
                                  the extension; ON: that is an error; OFF: do not build it
    SOAP_FAST_CUDA                AUTO (default): with CUDA kernels when nvcc works; ON: error
                                  when it does not; OFF: without
    SOAP_FAST_CUDA_ARCHITECTURES  in CMake's notation, such as "80-real;90"
    CXX, CXXFLAGS, CUDACXX, CUDAHOSTCXX, CMAKE_BUILD_PARALLEL_LEVEL as CMake reads them
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILERS = ("c++", "g++", "clang++")


def switch(name: str) -> str:
    value = os.environ.get(name, "AUTO").upper()
    if value not in ("AUTO", "ON", "OFF"):
        sys.exit(f"{name}={value} is not one of AUTO, ON, OFF; unset it to get AUTO")
    return value


def find_tool(name: str) -> str | None:
    """PyPI's cmake and ninja lie beside this Python, which need not be on PATH."""
    beside = sysconfig.get_path("scripts")
    return shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def working_compiler() -> list[str] | None:
    """The command of the first compiler that makes a shared library of C++17."""
    chosen = os.environ.get("CXX")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <optional>\nint probe() { return *std::optional<int>(1); }\n")
        flags = ["-std=c++17", "-shared", "-fPIC", "-o", str(Path(folder, "probe.so"))]
        for command in [shlex.split(chosen)] if chosen else [[name] for name in COMPILERS]:
            if shutil.which(command[0]) is None:
                continue
            probe = subprocess.run([*command, *flags, str(source)], capture_output=True)
            if probe.returncode == 0:
                return command
    return None


def missing_tools() -> str | None:
    """What the build of the extension lacks on this machine, with the way to get it."""
    if working_compiler() is None:
        names = os.environ.get("CXX") or ", ".join(COMPILERS)
        return f"no working C++17 compiler ({names}); install one (g++ or clang) or set CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h; install this Python's development headers (python3-dev)"
    for name in ("cmake", "ninja"):
        if find_tool(name) is None:
            return f"no {name}; pip install {name}"
    return None


def commit_of(torch: Path) -> str:
    """What `torch.version.git_version` says, without importing it."""
    found = re.search(r"git_version = '(\w+)'", (torch / "version.py").read_text())
    return found[1] if found else "unknown"


def wants_extension() -> bool:
    extension, cuda = switch("SOAP_FAST_EXTENSION"), switch("SOAP_FAST_CUDA")
    if extension == "OFF":
        if cuda == "ON":
            sys.exit("SOAP_FAST_CUDA=ON needs the extension; unset SOAP_FAST_EXTENSION=OFF")
        return False
    missing = missing_tools()
    if missing is None:
        return True
    if extension == "ON" or cuda == "ON":
        sys.exit(f"The extension of soap_fast was demanded, but there is {missing}.")
    rule = "*" * 80
    print(
        f"{rule}\nWARNING: soap_fast is installed WITHOUT its C++ extension: there is {missing}.\n"
        "It works, with the slower eager backend. Reinstall with SOAP_FAST_EXTENSION=ON to make\n"
        f"this an error.\n{rule}",
        file=sys.stderr,
    )
    return False


class BuildWithCMake(build_ext):
    """One run of CMake makes all extensions; setuptools says where to copy them."""

    def build_extensions(self) -> None:
        # Not build_temp: an editable install throws that away, and with it the incremental build.
        folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake = find_tool("cmake")
        environment = {**os.environ, "CXX": shlex.join(working_compiler())}
        configure = [cmake, "--fresh", *self.cmake_arguments(folder)]
        try:
            subprocess.run(configure, check=True, env=environment)
            subprocess.run([cmake, "--build", folder], check=True)
        except subprocess.CalledProcessError:
            sys.exit("soap_fast: the extension did not build; CMake's own words are above")
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / target.name, target)

    def cmake_arguments(self, folder: Path) -> list[str]:
        import pybind11

        found = importlib.util.find_spec("torch")  # without importing it
        if found is None or found.origin is None:
            sys.exit("soap_fast: install torch first, and build with --no-build-isolation")
        torch = Path(found.origin).parent
        settings = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "SOAP_FAST_VERSION": self.distribution.get_version(),
            "SOAP_FAST_TORCH_VERSION": importlib.metadata.version("torch"),
            "SOAP_FAST_TORCH_COMMIT": commit_of(torch),
            "SOAP_FAST_TORCH_INCLUDE": torch / "include",
            "SOAP_FAST_TORCH_LIB": torch / "lib",
            "SOAP_FAST_CUDA": switch("SOAP_FAST_CUDA"),
            "SOAP_FAST_CUDA_ARCHITECTURES": os.environ.get("SOAP_FAST_CUDA_ARCHITECTURES", ""),
        }
        defines = [f"-D{name}={value}" for name, value in settings.items()]
        return ["-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *defines]

    def get_ext_filename(self, fullname: str) -> str:
        """The operator library knows no Python, so its name carries no CPython tag."""
        if fullname.rpartition(".")[2] == "_operators":
            return str(Path(*fullname.split("."))) + ".so"
        return super().get_ext_filename(fullname)


def extensions() -> list[Extension]:
    """Sources are listed for the source distribution; CMakeLists.txt says which are compiled."""
    files = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    sources = sorted(str(path.relative_to(ROOT)) for path in files)
    return [
        Extension("soap_fast._operators", [*sources, "CMakeLists.txt"]),
        Extension("soap_fast._build_info", ["csrc/build_info.cpp"]),
        Extension("soap_fast._unchanged", ["csrc/unchanged/module.cpp"]),
    ]


setup(
    ext_modules=extensions() if wants_extension() else [],
    cmdclass={"build_ext": BuildWithCMake},
)
