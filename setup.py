"""Builds the native library with CMake and ninja; everything else about the package is in pyproject.toml.

Use the torch that is installed: ``pip install --no-build-isolation -e .``; without pybind11 or Python's headers the
library is built without the planner's Python module.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMakeLists.txt into ``dynroute/lib`` of the package being built.

    It makes ``libdynroute_cpu.so``, ``_planner`` and, where nvcc is and torch has CUDA, ``libdynroute_cuda.so``.
    """

    def run(self) -> None:
        build = Path(self.build_temp).resolve() / "cmake"
        lib = (ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()) / "dynroute" / "lib"
        configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
        cuda = os.environ.get("DYNROUTE_CUDA", "AUTO")  # AUTO, ON or OFF
        subprocess.run([*configure, f"-DDYNROUTE_LIB={lib}", f"-DDYNROUTE_CUDA={cuda}"], check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build)], check=True)

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("dynroute._cpu", sources=[])], cmdclass={"build_ext": CMakeBuild})
