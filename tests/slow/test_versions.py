"""
Runs the fast tests in separate environments: with the oldest supported versions, and without constraints on the newest
Python of this machine.
"""

import os
import shutil
import subprocess
import sys

import pytest

from ..conftest import ROOT


def newest_python() -> str:
    for minor in range(sys.version_info.minor + 9, sys.version_info.minor, -1):
        found = shutil.which(f"python3.{minor}")
        command = [str(found), "-c", "import ensurepip, venv"]  # a shim of pyenv may have no Python behind it
        if found and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return found
    return sys.executable


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("constraints", ["constraints-oldest.txt", None], ids=["oldest", "latest"])
def test_fast_tests_pass(constraints, tmp_path):
    environment = tmp_path / "venv"
    made_by = sys.executable if constraints else newest_python()
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
