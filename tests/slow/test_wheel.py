"""The wheel holds the package and nothing else."""

import subprocess
import sys
import zipfile

import pytest

import region_learner

from ..conftest import ROOT


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"region_learner-{region_learner.__version__}-")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "region_learner"
    suffixes = {".py", ".yaml", ".jinja", ".typed"}
    files = {path for path in package.rglob("*") if path.suffix in suffixes or path.name == "py.typed"}
    assert names == {f"region_learner/{path.relative_to(package).as_posix()}" for path in files}
