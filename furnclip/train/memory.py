"""How much memory there is, and how much of it training may use."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch
from torch import nn

_KEPT_SHARE = 0.25
_ASSUMED_BYTES = 4 * 2**30  # where the system does not tell (Windows)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on the device; on Linux hosts also within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_free_on_host(), _free_in_container())


def kept_activations_bytes(wanted_mb: int, device: torch.device) -> int:
    """Budget for graphs that are kept between the two passes; -1 is a quarter of what is free."""
    return int(free_bytes(device) * _KEPT_SHARE) if wanted_mb < 0 else wanted_mb * 2**20


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that this process has had on the device; None on Windows, which counts otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # the other counter begins at the peak of the process that started this one
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        return int(peak[1]) / 1024 if peak else None
    if sys.platform == "win32":
        return None
    import resource  # Unix only

    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 2**20


def storage_addresses(module: nn.Module) -> frozenset[int]:
    """Where the model's own weights lie."""
    return frozenset(parameter.untyped_storage().data_ptr() for parameter in module.parameters())


def _free_on_host() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _ASSUMED_BYTES
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_in_container() -> int:
    """What a control group's limit leaves; without a limit, more than any machine has."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 2**62
