"""How many cores this process may really use: its affinity, and the quota of its control group."""

import os
from pathlib import Path

# Control groups v2: "QUOTA PERIOD" in microseconds, or "max PERIOD".
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota_file: Path = CGROUP_QUOTA) -> int:
    """Return the number of cores, at least 1.

    A container with `cpus: 2` on a 64-core host must start 2 threads, not 64: its affinity mask shows all
    cores, only the quota tells.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, round(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no control group, or an older kernel: the affinity is all there is
    return max(1, cores)
