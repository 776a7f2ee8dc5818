"""
Measures how long the package takes to start: `import region_learner`, `from region_learner import RegionLearnerModel`
and `region-learner --help`, each in new processes.

    python benchmarks/starting.py [--repeats 9] [--json FILE]

Commands take turns. "seconds" is how much longer a process takes than one that does nothing (the median). "own" is the
time of the package's own modules, without the libraries that they import (from `python -X importtime`): the median,
and the largest time of a repetition.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import about, described

COMMANDS = {
    "nothing": ["-c", "pass"],
    "import region_learner": ["-c", "import region_learner"],
    "region-learner --help": ["-m", "region_learner", "--help"],
    "from region_learner import RegionLearnerModel": ["-c", "from region_learner import RegionLearnerModel"],
}
_LINE = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)")


def own_seconds(importtime: str) -> float:
    """Returns the time that modules of the package take themselves, from the output of `python -X importtime`."""
    found = (_LINE.match(line) for line in importtime.splitlines())
    return sum(int(line[1]) for line in found if line and line[2].split(".")[0] == "region_learner") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    own: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(options.repeats + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds = time.perf_counter() - start
            traced = [sys.executable, "-X", "importtime", *command]  # takes longer, so it is not timed
            done = subprocess.run(traced, check=True, capture_output=True, text=True)
            if repeat:  # the first one reads files from the disk
                times[name].append(seconds)
                own[name].append(own_seconds(done.stderr))
    where, rows = about(), []
    print(described(where))
    print(f"{'':<48} {'seconds':>8} {'own':>8} {'largest':>8}")
    for name in COMMANDS:
        seconds = statistics.median(a - b for a, b in zip(times[name], times["nothing"]))
        rows.append(
            {"command": name, "seconds": seconds, "own": statistics.median(own[name]), "largest_own": max(own[name])}
        )
        print(f"{name:<48} {seconds:>8.2f} {rows[-1]['own']:>8.2f} {rows[-1]['largest_own']:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps({"about": where, "rows": rows}))


if __name__ == "__main__":
    main()
