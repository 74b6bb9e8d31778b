"""The version, said once; the package's metadata (pyproject.toml) and the native library (CMakeLists.txt) read it."""

__version__ = "0.1.0"
