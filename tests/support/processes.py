"""Python in a process of its own, for what is read once: the environment decides which native code is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it in the checkout with these variables besides our own; what it printed is in the result."""
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True)
