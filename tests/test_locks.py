"""Tests locks of directories: held by another run, waited for, and on file systems without locks."""

import errno
import logging
import subprocess
import sys
import threading
import time

import pytest

from region_learner.files import locked

fcntl = pytest.importorskip("fcntl")

HOLD = """
import sys, time
from pathlib import Path
from region_learner.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_and_a_killed_run_releases_its_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match=r"is being written to by another run"), locked(tmp_path):
            pass
        with locked(tmp_path, "other"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass


def test_waiting_is_logged(tmp_path, caplog):
    inside = threading.Event()

    def wait():
        with locked(tmp_path, wait=True):
            inside.set()

    with caplog.at_level(logging.INFO), locked(tmp_path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        deadline = time.monotonic() + 60
        while "Waiting for another process that holds" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not inside.is_set()
    waiting.join(60)
    assert inside.is_set()
    assert "Waiting for another process that holds" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(code, tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    for wait in (False, True):
        with locked(tmp_path, wait=wait):
            pass
    assert "cannot be locked" in caplog.text


def test_other_errors_are_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file"):
        pass
