"""Builds the native library with CMake and ninja; everything else about the package is in pyproject.toml.

It is built for the torch that is installed, also where pip builds apart from the environment (``pip install .``);
without pybind11 or Python's headers the library is built without the planner's Python module.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TELL = "import os, torch; print(os.path.dirname(torch.__file__), torch.version.cuda or '', sep='\\n')"
NO_TORCH = """
dynroute: its kernels are built for the torch that is installed, and {python} has none.
Install it first (pip install "torch>=2.10"), then run this command again.
"""


def installed_torch() -> tuple[str, str]:
    """The folder of torch, and the version of its CUDA or "".

    pip's isolated build is this environment's Python with a PYTHONPATH that hides what is installed.
    """
    visible = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for environment in (dict(os.environ), visible):
        told = subprocess.run([sys.executable, "-c", TELL], env=environment, capture_output=True, text=True)
        if told.returncode == 0:
            folder, cuda = told.stdout.split("\n")[-3:-1]
            return folder, cuda
    raise SystemExit(NO_TORCH.format(python=sys.executable))


class CMakeBuild(build_ext):
    """Runs CMakeLists.txt into ``dynroute/lib`` of the package being built.

    It makes ``libdynroute_cpu.so``, ``_planner`` and, where nvcc is and torch has CUDA, ``libdynroute_cuda.so``.
    """

    def run(self) -> None:
        torch_folder, torch_cuda = installed_torch()
        build = Path(self.build_temp).resolve() / "cmake"
        lib = (ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()) / "dynroute" / "lib"
        configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-DTORCH_DIR={torch_folder}", f"-DTORCH_CUDA={torch_cuda}", f"-DDYNROUTE_LIB={lib}"]
        configure += [f"-DDYNROUTE_CUDA={os.environ.get('DYNROUTE_CUDA', 'AUTO')}"]  # AUTO, ON or OFF
        if find_spec("pybind11"):
            import pybind11

            configure += [f"-DPYBIND11_DIR={pybind11.get_cmake_dir()}"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build)], check=True)

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("dynroute._cpu", sources=[])], cmdclass={"build_ext": CMakeBuild})
