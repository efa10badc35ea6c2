"""`python -m tests.fuzz [--seconds N] [TARGET …]`: the targets under atheris (the extra `fuzz`), one after the other.

Each runs in a process of its own, because libFuzzer ends the process it runs in. A finding stops its target, is printed
and kept under --findings; turn it into a case of tests/test_fuzz.py. Exit status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path


def fuzz(target: str, seconds: int, findings: Path) -> None:
    """Run one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["connectors", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS

    corpus = findings / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[target].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={findings}/{target}-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([target, *arguments, str(corpus)], TARGETS[target].run)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="all when none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.findings.mkdir(parents=True, exist_ok=True)
    if asked.in_process:
        fuzz(asked.targets[0], asked.seconds, asked.findings)
    names = asked.targets
    if not names:
        from tests.fuzz.targets import TARGETS

        names = list(TARGETS)
    found = 0
    for name in names:
        begun = time.monotonic()
        command = [sys.executable, "-m", "tests.fuzz", "--in-process", name]
        command += ["--seconds", str(asked.seconds), "--findings", str(asked.findings)]
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        said = (ran.stdout + ran.stderr).splitlines()
        units = next((line.rsplit(maxsplit=1)[-1] for line in said if "number_of_executed_units" in line), "?")
        end = "nothing found" if ran.returncode == 0 else f"FOUND (status {ran.returncode})"
        print(f"{name}: {units} inputs in {time.monotonic() - begun:.0f} s, {end}", flush=True)
        if ran.returncode:
            found += 1
            print("\n".join(said[-40:]), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
