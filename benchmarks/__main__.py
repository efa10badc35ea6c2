"""`make bench`: every benchmark in turn but the long ones; each prints a table and says on what hardware it ran."""

from __future__ import annotations

import os
import pkgutil
import platform
import runpy
from pathlib import Path

LONG = ("azure", "cmapss", "lost", "plant", "reasons")
"""These train and judge whole models, for tens of minutes or hours, or take a trained one: `python -m benchmarks.plant`
and the like."""


def hardware() -> str:
    """One line about this machine for the head of a result."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    print(f"On {hardware()}\n")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_") and module.name not in LONG:
            print(f"## {module.name}")
            runpy.run_module(f"benchmarks.{module.name}", run_name="__main__")
            print()
