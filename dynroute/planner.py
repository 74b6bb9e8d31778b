"""The planner of the CPU kernels and the tuning file, in one place: the public face of `dynroute.native.planner` and
`dynroute.runtime.cpu.tuning_file`.  A plan never changes a result, only its speed.
"""

from dynroute.native.planner import (
    MAX_TILE_PIXELS,
    Plan,
    Shape,
    Traced,
    machine,
    plan,
    tracing,
    tune,
    why_not,
)
from dynroute.runtime.cpu.tuning_file import (
    TUNING_FORMAT,
    Entry,
    Tuning,
    default_tuning_file,
    forget_tuning,
    load_tuning,
    read_tuning,
    save_tuning,
    tuning_file,
)

__all__ = [
    "MAX_TILE_PIXELS",
    "TUNING_FORMAT",
    "Entry",
    "Plan",
    "Shape",
    "Traced",
    "Tuning",
    "default_tuning_file",
    "forget_tuning",
    "load_tuning",
    "machine",
    "plan",
    "read_tuning",
    "save_tuning",
    "tracing",
    "tune",
    "tuning_file",
    "why_not",
]
