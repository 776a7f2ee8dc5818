"""
Runs transformers' own common tests against this package. They are downloaded with the source distribution of the
installed release, and never committed.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

HERE = Path(__file__).parent

# The distribution lacks these modules of transformers' repository, which its tests name but ours do not need.
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


@pytest.fixture(scope="module")
def common_tests(tmp_path_factory) -> Path:
    """A directory with the `tests` package of the installed release."""
    folder = tmp_path_factory.mktemp("transformers")
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    subprocess.run([*command, "--dest", str(folder), requirement], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if re.fullmatch(r"[^/]+/tests/[^/]+\.py", member.name)]
        tar.extractall(folder, members, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    for name, content in STUBS.items():
        path = unpacked / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(content)
    return unpacked


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["conformance_model", "conformance_video_processor"])
def test_common_tests_pass(common_tests, name):
    shutil.copy(HERE / f"{name}.py", common_tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", f"{name}.py"]
    done = subprocess.run(
        command, cwd=common_tests, env=os.environ | {"RUN_SLOW": "0"}, capture_output=True, text=True, check=False
    )
    summary = done.stdout.strip().splitlines()[-1]
    print(summary)
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", summary)[1]) > 30
