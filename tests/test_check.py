"""Tests that `corpus check` names the videos that cannot be read, and only those."""

import json
import shutil
import sys
from pathlib import Path

import av
import pytest
from datasets import Dataset
from PIL import Image

from region_learner.cli import main
from region_learner.corpora import check as module
from region_learner.corpora import check_corpus

from .test_prepare import rows_of, write_video

_check_row = module._check_row


def write_metadata(folder: Path, numbers):
    lines = ["file_name,text", *(f"{number}.mp4,a caption" for number in numbers)]
    (folder / "metadata.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    for number in range(4):
        write_video(folder / f"{number}.mp4", seed=number)
    write_metadata(folder, range(4))
    data = (folder / "1.mp4").read_bytes()
    (folder / "1.mp4").write_bytes(data[: len(data) // 2])
    (folder / "2.mp4").write_bytes(b"")
    return folder


def names(result) -> list[str]:
    return [entry["video_id"] for entry in result["unreadable"]]


def damage_packet(path: Path, number: int):
    """Overwrites a packet so that its units have impossible sizes."""
    with av.open(str(path)) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][number])
    data = path.read_bytes()
    assert data.count(packet) == 1
    path.write_bytes(data.replace(packet, b"\xff" * len(packet)))


def test_what_cannot_be_read_is_named(folder):
    rows = rows_of(str(folder / f"{number}.mp4") for number in (3, 1, 0, 2))
    rows = Dataset.from_list([*rows, {**rows[1], "captions": ["another row of the same video"]}])
    result = check_corpus(rows, workers=2)
    assert (result["videos"], names(result)) == (4, ["1", "2"])
    assert all(f"{entry['video_id']}.mp4" in entry["reason"] for entry in result["unreadable"])


def test_a_row_without_a_video_is_named(folder):
    rows = Dataset.from_list(
        [{"video": None, "video_id": "none", "captions": ["x"]}, *rows_of([str(folder / "0.mp4")])]
    )
    assert names(check_corpus(rows, workers=1)) == ["none"]


def test_damage_at_the_end_is_found(tmp_path):
    """An evaluation that reads only the first frames would not notice such damage."""
    path = write_video(tmp_path / "0.mkv", frames=60)
    path.write_bytes(path.read_bytes()[:-1200])  # Matroska can be read up to where it ends
    assert check_corpus(rows_of([str(path)]))["videos"] == 1
    whole = write_video(tmp_path / "1.mkv", frames=60)
    damage_packet(whole, 55)
    assert names(check_corpus(rows_of([str(whole)]))) == ["1"]


def hang_on_0(row):
    while row["video_id"] == "0":
        pass
    return _check_row(row)


def test_a_video_that_hangs_is_named(folder, monkeypatch):
    monkeypatch.setattr(module, "_check_row", hang_on_0)
    result = check_corpus(rows_of(str(folder / f"{number}.mp4") for number in (0, 3)), workers=1, timeout=2)
    assert names(result) == ["0"]
    assert "takes more than 2 seconds" in result["unreadable"][0]["reason"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux")
def test_a_video_that_takes_too_much_memory_is_named(folder, tmp_path):
    """The file has some KiB, but takes 100 MiB when decoded."""
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    rows = rows_of([str(tmp_path / "large.png"), str(folder / "3.mp4")])
    assert names(check_corpus(rows, workers=1)) == []
    result = check_corpus(rows, workers=1, memory=50 * 2**20)
    assert result["unreadable"] == [
        {"video_id": "large", "reason": "reading it takes more than 0.0488281 GiB of memory"}
    ]


def test_command(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["corpus", "check", "--data-dir", str(folder), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (exit.value.code, result["videos"], names(result)) == (1, 4, ["1", "2"])
    with pytest.raises(SystemExit) as exit:
        main(["corpus", "check", "--data-dir", str(folder), "--max-unreadable", "0.5"])
    assert exit.value.code in (0, None)
    assert "2 of 4 videos cannot be read" in capsys.readouterr().err
    for number in (0, 3):
        shutil.copy(folder / f"{number}.mp4", tmp_path)
    write_metadata(tmp_path, (0, 3))
    with pytest.raises(SystemExit) as exit:
        main(["corpus", "check", "--data-dir", str(tmp_path)])
    assert exit.value.code in (0, None)
    assert "0 of 2 videos cannot be read" in capsys.readouterr().err
