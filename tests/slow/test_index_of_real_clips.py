"""Tests an index of real, odd and damaged videos whose updates are killed repeatedly, and the spans it finds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.real_spans import join_clips, measure, overlap
from region_learner import VideoIndex

from ..search_toys import save_checkpoint

pytestmark = pytest.mark.slow


def answers(index):
    queries = ["a red square moves left", "blue circle", "down quickly"]
    return [
        [(hit.path, hit.start, hit.end, hit.score, hit.probability) for hit in hits]
        for hits in index.search(queries, k=200)
    ]


@pytest.mark.timeout(1800)
def test_killed_ten_times(shared_data, tmp_path):
    videos, model = tmp_path / "videos", save_checkpoint("clip", tmp_path / "model")
    shutil.copytree(shared_data / "real_clips" / "clips", videos / "real")
    shutil.copytree(shared_data / "odd_videos", videos / "odd")
    index = VideoIndex.create(tmp_path / "index", str(model), window=4, stride=2)
    report = index.update(videos)
    assert len(report.new) > 130
    assert {os.path.basename(path) for path in report.unreadable} >= {"corrupted.mp4"}
    again = index.update(videos)
    assert (again.new, again.changed, again.removed) == ([], [], [])
    assert again.unreadable == report.unreadable

    clips = sorted((videos / "real").iterdir())
    random.Random(0).shuffle(clips)
    for old, new in zip(clips[:3], clips[3:6]):  # changed
        shutil.copy(shared_data / "real_clips" / "clips" / new.name, old)
    for path in clips[6:8]:
        path.unlink()
    for path in clips[8:50]:  # new: copies would be recognized, so these are cut short
        os.truncate(path, path.stat().st_size - 1)
    command = [sys.executable, "-m", "region_learner", "index", str(videos), "--index", str(tmp_path / "index")]
    killed = 0
    for run in range(10):
        process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        database, before = VideoIndex.open(tmp_path / "index").database, None
        for _ in range(600):  # wait until it has begun to write, and then a little longer
            time.sleep(0.1)
            version = database.version()
            if (before is not None and version != before) or process.poll() is not None:
                break
            before = version
        time.sleep(0.05 * run)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        VideoIndex.open(tmp_path / "index").search("a red")
    assert killed
    subprocess.run(command, check=True, capture_output=True)
    anew = VideoIndex.create(tmp_path / "anew", str(model), window=4, stride=2)
    anew.update(videos)
    assert answers(VideoIndex.open(tmp_path / "index")) == answers(anew)
    assert VideoIndex.open(tmp_path / "index").unreadable() == anew.unreadable()


def test_joined_clips_and_spans(shared_data, tmp_path):
    clips = sorted((shared_data / "real_clips" / "clips").iterdir())[:3]
    spans = join_clips([str(clip) for clip in clips], tmp_path / "long.mp4", size=48)
    model = save_checkpoint("clip", tmp_path / "model")
    index = VideoIndex.create(tmp_path / "index", str(model), window=4, stride=2)
    index.update(tmp_path / "long.mp4")
    assert index.duration(str(tmp_path / "long.mp4")) == pytest.approx(spans[-1][1])
    for clip, span in zip(clips, spans):  # each clip finds itself
        hit = index.search(video=str(clip), k=1)[0]
        assert overlap((hit.start, hit.end), span) > 0
    result = measure(str(model), shared_data / "real_clips", tmp_path / "measured")
    assert result["captions"] == 120
    assert 0 <= result["overlaps"] <= result["right_video"] <= 1
