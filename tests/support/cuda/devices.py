"""Limits of the GPUs that launches are asked for."""

from __future__ import annotations

from dynroute.runtime.cuda.launch_list import DeviceLimits

A100 = DeviceLimits(80, 108, 163 << 10, 164 << 10)
H100 = DeviceLimits(90, 132, 227 << 10, 228 << 10)
ADA = DeviceLimits(89, 128, 99 << 10, 100 << 10)
SMALL = DeviceLimits(86, 84, 99 << 10, 100 << 10)
ONE = SMALL._replace(multiprocessors=1)  # few blocks take all the tiles
