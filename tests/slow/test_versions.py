"""Runs the fast tests with the oldest supported versions and with the latest, in environments of their own."""

import os
import subprocess
import sys

import pytest

from ..conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("constraints", ["constraints-oldest.txt", None], ids=["oldest", "latest"])
def test_fast_tests_pass(constraints, tmp_path):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    options = ["--constraint", str(ROOT / constraints)] if constraints else []
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[dev]", *options], check=True)
    # Old versions warn of each other.
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
