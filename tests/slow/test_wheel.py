"""The wheel holds the package and nothing else."""

import shutil
import subprocess
import sys
import zipfile

import pytest

import region_learner

from ..conftest import ROOT


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(tmp_path):
    project = tmp_path / "project"  # building writes into the source directory
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(project)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"region_learner-{region_learner.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "region_learner").rglob("*.*")}
    assert names == {name for name in files if name.endswith((".py", ".yaml", ".jinja", ".typed"))}
