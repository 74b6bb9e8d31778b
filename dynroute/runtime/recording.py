"""What all who record CUDA graphs in this process share."""

from __future__ import annotations

import threading

# CUDA lets several threads record at once, torch's allocator one at a time.
RECORDING = threading.Lock()
