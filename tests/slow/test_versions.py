"""
Runs the fast tests in separate environments: with the oldest supported versions, and without constraints on the newest
Python of this machine, including those of pyenv and uv.
"""

import os
import shutil
import subprocess
import sys

import pytest

from ..conftest import ROOT

OLDEST_FOR_LATEST = 12  # the newest PyAV needs Python 3.12


def output_of(*command: str, **environment: str) -> str:
    """Returns what a command prints, or an empty string if it does not exist or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def newest_python() -> str | None:
    """Returns the path of the newest Python that can make environments, or None if none is new enough."""
    every = ":".join(output_of("pyenv", "versions", "--bare").split())  # pyenv runs only versions that are selected
    show = ("-c", "import ensurepip, sys, venv; print(sys.executable)")
    for minor in range(OLDEST_FOR_LATEST + 9, OLDEST_FOR_LATEST - 1, -1):
        for found in (f"python3.{minor}", output_of("uv", "python", "find", f"3.{minor}")):
            if python := output_of(found, *show, PYENV_VERSION=every):
                return python
    return None


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("constraints", ["constraints-oldest.txt", None], ids=["oldest", "latest"])
def test_fast_tests_pass(constraints, tmp_path):
    environment = tmp_path / "venv"
    made_by = sys.executable if constraints else newest_python()
    if made_by is None:
        pytest.skip(f"needs Python 3.{OLDEST_FOR_LATEST} or newer on PATH, in pyenv or in uv")
    subprocess.run([made_by, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    options = ["--constraint", str(ROOT / constraints)] if constraints else []
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[dev]", *options], check=True)
    # Old versions emit deprecation warnings because of each other.
    warnings = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"] if constraints else []
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", *warnings, "tests"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    print(done.stdout.strip().splitlines()[-1])
