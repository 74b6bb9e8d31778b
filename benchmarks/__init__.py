"""What the CPU runtime costs and saves, beside what else runs the same networks: `python -m benchmarks --help`."""

import os

# Read when torch is loaded: its profiler would announce every start and stop on the terminal.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
