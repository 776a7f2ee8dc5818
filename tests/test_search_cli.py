"""Tests the commands `index` and `search`."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from region_learner import VideoIndex
from region_learner.cli import main
from region_learner.cli import search as search_commands
from region_learner.cli.search import _parse_video, given_videos
from region_learner.search import percent
from region_learner.search.nearest import NearestRows

from .search_toys import make_video, save_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a folder with `model`, a checkpoint, `videos`, and `index`, an index of the videos."""
    folder = tmp_path_factory.mktemp("search")
    save_checkpoint("space_time", folder / "model")
    for seed, (name, seconds) in enumerate({"a.mp4": 3, "b.mp4": 11, "sub/c.mp4": 2}.items()):
        make_video(folder / "videos" / name, seconds, seed)
    index = VideoIndex.create(folder / "index", str(folder / "model"), window=4, stride=2)
    index.update(folder / "videos")
    return folder


@pytest.fixture
def run(root, capsys):
    """Returns a function that runs a command in `root`, checks its exit code, and returns its output and messages."""

    def call(*arguments, code=0):
        before = os.getcwd()
        os.chdir(root)
        try:
            with pytest.raises(SystemExit) as end:
                main([str(argument) for argument in arguments])
        finally:
            os.chdir(before)
        printed = capsys.readouterr()
        assert end.value.code == code, printed
        return printed.out, printed.err

    return call


def test_index_and_search(run, root, tmp_path):
    index = tmp_path / "new"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bad.mp4").write_text("not a video")
    command = ["index", "videos", tmp_path / "more", "--index", index, "--workers", 1]
    out, err = run(*command, "--model", "model", "--window", 4)
    assert "unreadable:" in out
    assert "text, not a video" in out
    assert "3 new, 1 unreadable." in out
    assert f'Wrote {index}: 3 videos. Search: region-learner search {index} "words"' in err
    assert VideoIndex.open(index).about()["stride"] == 2
    out, _ = run(*command, "--json")
    report = json.loads(out)
    assert len(report["unchanged"]) == 3
    assert list(report["unreadable"]) == [str(tmp_path / "more" / "bad.mp4")]
    for option, value in (("--window", 5), ("--num-frames", 3), ("--stride", 1)):
        _, err = run(*command, option, value, code=2)
        assert f"was made with {option} " in err
    expected = VideoIndex.open(index).search("a red square", k=2)
    out, _ = run("search", index, "a red square", "--top", 2)
    for line, hit in zip(out.splitlines(), expected, strict=True):
        assert line.split()[0] == percent(hit.probability)
        assert line.endswith(hit.path)
    assert f"{expected[0].score:.3f}" in out


def test_several_queries_as_json(run, root):
    video = root / "videos" / "b.mp4"
    out, _ = run("search", "index", "blue circle", "--video", f"{video}:0:04-0:08", "--video", video, "--json")
    found = json.loads(out)
    assert [result["query"] for result in found] == ["blue circle", f"{video}:0:04-0:08", str(video)]
    assert found[1]["hits"][0]["path"] == str(video)
    assert found[1]["hits"][0]["score"] == pytest.approx(1)
    hits = VideoIndex.open(root / "index").search("blue circle")
    assert [hit["start"] for hit in found[0]["hits"]] == [hit.start for hit in hits]


def test_filters_and_queries_without_matches(run, root):
    out, _ = run("search", "index", "blue circle", "--within", root / "videos" / "sub")
    assert len(out.splitlines()) == 1
    assert "c.mp4" in out
    out, err = run("search", "index", "blue circle", "--min-score", 0.99)
    assert out == ""
    assert "Nothing was found" in err
    _, err = run("search", "index", "blue circle", "--min-probability", 0)
    best = VideoIndex.open(root / "index").search("blue circle")[0].probability
    assert ("Probably nothing in this index matches: the best hit has a probability below 10%." in err) == (best < 0.1)


def test_export_and_page(run, root, tmp_path):
    _, err = run(
        "search", "index", "blue circle", "--top", 2, "--export", tmp_path / "cut", "--html", tmp_path / "p.html"
    )
    assert len(list((tmp_path / "cut").iterdir())) == 2
    assert f"Wrote 2 spans to {tmp_path / 'cut'}" in err
    assert "blue circle" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere", "words"], "nowhere is not an index: it has no index.sqlite"),
        (["search", "index"], "Give a query: words in quotes"),
        (["search", "index", " "], "A query is empty"),
        (["search", "index", "--image", "videos/d.mp4"], "There is no file videos/d.mp4"),
        (["search", "index", "--video", "videos/a.mp4:5-2"], r"start"),
        (["search", "index", "--video", "videos/a.mp5:1-2"], "There is no file videos/a.mp5; did you mean 'a.mp4'?"),
        (["search", "index", "words", "--within", "/nowhere"], "has no videos within /nowhere."),
        (["search", "index", "words", "--within", "videos/a.mp3"], "videos/a.mp3; did you mean 'a.mp4'?"),
        (["search", "index", "words", "--within", "videoz"], "videoz; did you mean 'videos'?"),
        (["search", "index", "words", "--model", "none/at/all"], "There is no directory none/at/all"),
        (["index", "videos"], "--index DIR is missing"),
        (
            ["index", "videos", "--index", "new", "--data-dir", "videos"],
            "--data-dir applies only to a corpus: add --corpus",
        ),
        (["index", "videos", "--index", "new", "--split", "test"], "--split applies only to a corpus: add"),
        (["embed", "model", "videos", "--output", "new", "--max-missing", "1"], "--max-missing applies only to"),
        (["index", "--index", "new"], "Give either VIDEOS or --corpus NAME"),
        (["index", "videos", "--index", "new", "--model", "/none"], "There is no directory /none"),
        (["index", "videos", "--index", "new", "--model", ""], "--model is empty"),
        (["index", "videos", "--index", ""], "--index is empty"),
        (["index", "videos", "--index="], "--index is empty"),
        (["train", "moving_shapes", "--output-dir", ""], "--output-dir is empty"),
        (["index", "", "--index", "new"], "An argument is empty"),
        (["search", "", "words"], "An argument is empty"),
        (
            ["index", "--index", "new", "--from-embeddings", "parts", "--window", "0"],
            "takes only --index DIR and --json",
        ),
        (["corpus", "check", "--data-dir", "videos", "--memory", "inf"], "--memory must be"),
        (["regions", "model", "videos/a.mp4", "--output", "r.mpg"], "does not have the extension of an image file"),
        (["index", "videoz", "--index", "new", "--model", "model"], "There is no file or folder"),
        (["index", "videos", "--index", "videos", "--model", "model"], "videos contains other files"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(run, root, arguments, message):
    _, err = run(*arguments, code=2)
    line = err.strip().splitlines()[-1]
    assert line.startswith("region-learner: error: ")
    assert message in line
    assert not (root / "new").exists()


def test_spans_on_the_command_line(tmp_path):
    odd = make_video(tmp_path / "clip:1-2.mp4", 1, 0)
    assert _parse_video(str(odd)) == str(odd)
    assert _parse_video(f"{odd}:00:42-1:02:03.5") == (str(odd), 42, 3723.5)
    assert _parse_video(f"{odd}:3-4.25") == (str(odd), 3, 4.25)
    plain = shutil.copy(odd, tmp_path / "1-2")
    assert _parse_video(f"{plain}") == str(plain)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*x\.mp4:1-"):
        _parse_video(str(Path(tmp_path / "x.mp4:1-")))


def test_file_names_do_not_control_the_terminal(run, root, tmp_path):
    shutil.copytree(root / "videos" / "sub", tmp_path / "v")
    (tmp_path / "v" / "c.mp4").rename(tmp_path / "v" / "\x1b[31mred\n.mp4")
    index = VideoIndex.create(tmp_path / "i", str(root / "model"))
    index.update(tmp_path / "v")
    out, _ = run("search", tmp_path / "i", "words")
    assert "\\x1b[31mred\\n.mp4" in out
    assert len(out.splitlines()) == 1
    bad = os.fsencode(tmp_path / "v") + b"/\xff\x1b[31mbad.mp4"
    with open(bad, "wb") as file:
        file.write(b"not a video")
    out, _ = run("index", tmp_path / "v", "--index", tmp_path / "i", "--workers", 1)
    assert "/\\udcff\\x1b[31mbad.mp4" in out


def test_folders_are_searched_once(run, root, tmp_path, monkeypatch):
    walked, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda folder, **options: walked.append(folder) or walk(folder, **options))
    shutil.copytree(root / "index", tmp_path / "i")
    run("index", "videos", "--index", tmp_path / "i")
    assert walked.count(str(root / "videos")) == 1


def test_hits_that_cannot_be_read_do_not_hide_others(run, root, tmp_path):
    shutil.copytree(root / "videos", tmp_path / "v")
    VideoIndex.create(tmp_path / "i", str(root / "model"), window=4, stride=2).update(tmp_path / "v")
    (tmp_path / "v" / "a.mp4").unlink()
    _, err = run("search", tmp_path / "i", "words", "--export", tmp_path / "cut", "--html", tmp_path / "p.html")
    assert f"A hit was not exported: {tmp_path}/v/a.mp4: no such file" in err
    names = [path.name for path in (tmp_path / "cut").iterdir()]
    assert any("-b-" in name for name in names)
    assert not any("-a-" in name for name in names)
    assert "cannot be shown" in (tmp_path / "p.html").read_text()


def test_values_that_end_in_an_equals_sign(run, root, tmp_path):
    shutil.copytree(root / "index", tmp_path / "lr=")
    out, _ = run("search", f"{tmp_path}/lr=", "words", f"--within={root}/videos", "--json")
    assert json.loads(out)
    _, err = run("index", "videos", f"--index={tmp_path}/new=", "--model=none=", code=2)
    assert "is empty" not in err


def test_names_of_queries_that_are_not_text(run, root, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")
    Image.new("RGB", (40, 40)).save(name)
    out, _ = run("search", "index", "words", "--image", name)
    assert "/\\udce9.png:" in out
    out.encode()


def test_more_hits_than_windows_need_no_memory(root, monkeypatch):
    index = VideoIndex.open(root / "index")
    search, numbers = NearestRows.search, []
    monkeypatch.setattr(NearestRows, "search", lambda self, *args: numbers.append(args[1]) or search(self, *args))
    hits = index.search("words", k=10**9)
    assert len(hits) == len(index.search("words", k=50))
    assert max(numbers) <= index.database.about("rows")


def test_long_names_are_shortened(run, root, tmp_path):
    name = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 80 + ".mp4"
    (tmp_path / "v").mkdir()
    shutil.copy(root / "videos" / "a.mp4", tmp_path / "v" / name)
    VideoIndex.create(tmp_path / "i", str(root / "model"), window=4, stride=2).update(tmp_path / "v")
    _, err = run("search", tmp_path / "i", "words", "--export", tmp_path / "cut", "--html", tmp_path / "p.html")
    assert "Wrote 1 spans" in err
    (cut,) = (tmp_path / "cut").iterdir()
    assert cut.name.startswith("01-" + name[:40])
    assert name in (tmp_path / "p.html").read_text()


def test_corpora_with_different_options_are_distinct(monkeypatch):
    """If two such corpora had the same root, indexing one would remove the videos of the other."""
    monkeypatch.setattr(search_commands, "read_corpus", lambda *arguments: [])

    def root_of(options):
        return given_videos(None, "msrvtt", Path("d"), "test", options, None)[1]

    assert root_of(None) == root_of("{}") == f"msrvtt {Path('d').absolute()} test"
    assert root_of('{"a": 1, "b": 2}') == root_of('{"b": 2, "a": 1}') != root_of('{"a": 1}') != root_of(None)
