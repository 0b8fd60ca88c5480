"""Joules from hardware counters, or nothing: NVML on NVIDIA cards, RAPL on Intel and AMD hosts.

Where no counter can be read, energy is not measured: it is never computed from a guess.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


def nvml_joules(index: int = 0) -> Callable[[], float] | None:
    """A reader of a card's total energy since its driver was loaded; None where there is none.

    Args:
        index: of the card, as NVML counts them.
    """
    try:
        nvml: Any = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    value = ctypes.c_ulonglong()
    try:
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)):
            return None
    except AttributeError:  # an old driver without the call
        return None

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return value.value / 1000  # the counter is in millijoules

    return read


def rapl_joules(root: Path = RAPL) -> Callable[[], float] | None:
    """A reader of the packages' energy counters; None where they cannot be read."""
    files = sorted(root.glob("intel-rapl:[0-9]*/energy_uj"))
    files = [file for file in files if file.parent.name.count(":") == 1]
    try:
        tops = [int((f.parent / "max_energy_range_uj").read_text()) for f in files]
        last = [int(file.read_text()) for file in files]
    except (OSError, ValueError):
        return None
    if not files:
        return None
    total = [0]

    def read() -> float:
        for i, file in enumerate(files):
            now = int(file.read_text())
            total[0] += (now - last[i]) % (tops[i] + 1)  # counters wrap
            last[i] = now
        return total[0] / 1e6

    return read
