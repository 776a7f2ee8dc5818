"""Runs the fast tests with the oldest versions that `pyproject.toml` allows, in an environment of their own."""

import os
import subprocess
import sys

import pytest

from ..conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_fast_tests_pass_with_the_oldest_versions(tmp_path):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[dev]"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints-oldest.txt")], check=True)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", "tests"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    print(done.stdout.strip().splitlines()[-1])
