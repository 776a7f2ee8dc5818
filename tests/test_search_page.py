"""Tests for previews of spans, which are decoded to check them, and for the HTML page of a search."""

import base64
import hashlib
import io
import os
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from region_learner import VideoIndex
from region_learner.corpora.encoding import add_video_stream
from region_learner.files import readable
from region_learner.search import Hit, percent, preview
from region_learner.search import page as search_page
from region_learner.search.page import span, write_search_page
from region_learner.search.preview import LONGEST_PREVIEW, strip_of, write_preview
from region_learner.video_decoding_region_learner import VideoDecodeError, iterate_parts

from .fake_index import COLORS, FPS, FakeIndex, write_colors
from .search_toys import make_video, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_colors(folder / "trips/red then blue.mp4", "red", "blue")
    write_colors(folder / "home/green.mp4", "green")
    return folder


@pytest.fixture
def video(folder) -> Path:
    return folder / "trips/red then blue.mp4"


def decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Returns the times and frames of a file, decoded by PyAV alone."""
    with av.open(str(path)) as container:
        pairs = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [time for time, _ in pairs], [frame for _, frame in pairs]


def color_of(frame: np.ndarray) -> str:
    """Returns the name of the color that covers most of a frame."""
    middle = np.median(np.asarray(frame)[..., :3].reshape(-1, 3), axis=0)
    return min(COLORS, key=lambda name: np.abs(np.subtract(COLORS[name], middle)).sum())


def write_at(path: Path, times: list[float], names: list[str], size=(48, 64), codec="libx264") -> Path:
    """Writes a video whose frames have these time stamps."""
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, codec, 1000)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, name in zip(times, names):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), COLORS[name], np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# --- Previews ----------------------------------------------------------------------------------------------------


def test_preview_has_the_span_and_its_context(video, tmp_path):
    output = tmp_path / "preview.mp4"
    assert write_preview(video, 4.0, 6.0, output, context=1.5) == 1.5
    times, frames = decoded(output)
    assert np.allclose(np.diff(times), 1 / FPS)
    assert len(frames) == 5 * FPS  # 2.5 to 7.5
    assert [color_of(frame) for frame in frames] == ["red"] * 15 + ["blue"] * 35
    # The square moves by one pixel per frame, so its position shows whether each frame is the right one.
    left = [int(np.flatnonzero(frame[15].min(-1) > 180)[0]) for frame in frames]
    expected = [number % 40 % 52 for number in range(25, 75)]
    assert np.abs(np.subtract(left, expected)).max() <= 1


def test_preview_ends_where_the_video_does(video, tmp_path):
    output = tmp_path / "preview.mp4"
    assert write_preview(video, 1.0, 8.0, output) == 1.0
    assert len(decoded(output)[0]) == 8 * FPS


def test_preview_plays_in_browsers(tmp_path):
    """Browsers need H.264 in yuv420p, which requires even sizes, and the `moov` box before the frames."""
    source = write_colors(tmp_path / "odd.mp4", "red", size=(330, 502))
    output = tmp_path / "preview.mp4"
    write_preview(source, 0, 4, output, short_side=101)
    with av.open(str(output)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.height, context.width) == ("h264", "yuv420p", 100, 154)
        assert not container.streams.audio
    content = output.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("size", "expected"), [((48, 64), (48, 64)), ((32, 1600), (20, 960)), ((16, 2000), (16, 960))]
)
def test_preview_sizes(tmp_path, size, expected):
    output = tmp_path / "preview.mp4"
    write_preview(write_colors(tmp_path / "a.mp4", "red", seconds=0.5, size=size), 0, 0.5, output)
    assert decoded(output)[1][0].shape[:2] == expected


@pytest.mark.parametrize(("fps", "rate"), [(10, 10), (24, 12), (25, 12.5), (30, 15), (60, 15), (100, 100 / 7)])
def test_preview_takes_every_nth_frame(tmp_path, fps, rate):
    source = write_at(tmp_path / "a.mp4", [number / fps for number in range(2 * fps)], ["red"] * (2 * fps))
    write_preview(source, 0, 2, tmp_path / "preview.mp4")
    with av.open(str(tmp_path / "preview.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(rate, rel=0.02)


def test_preview_of_a_variable_frame_rate(tmp_path):
    """A frame is shown until the next one, however long that takes."""
    times = [0.0, 0.1, 0.2, 3.0, 3.1, 3.2, 6.0]
    source = write_at(tmp_path / "a.mkv", times, ["red", "green", "blue", "yellow", "red", "green", "blue"])
    assert write_preview(source, 3.05, 3.15, tmp_path / "preview.mp4", context=1.0) == pytest.approx(1.0)
    shown, frames = decoded(tmp_path / "preview.mp4")
    names = ["red", "green", "blue", "yellow", "red", "green", "blue"]
    for time, frame in zip(shown, frames):
        assert color_of(frame) == names[np.searchsorted(times, 2.05 + time + 1e-6, "right") - 1], time
    assert {color_of(frame) for frame in frames} == {"blue", "yellow", "red", "green"}


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.ts", "mpeg2video")])
def test_preview_of_other_formats(tmp_path, name, codec):
    source = tmp_path / name
    with av.open(str(source), "w") as container:
        stream = add_video_stream(container, codec, 25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(50):
            color = COLORS["red" if number < 25 else "blue"]
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), color, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert write_preview(source, 1.0, 2.0, tmp_path / "preview.mp4", context=0.5) == 0.5
    names = [color_of(frame) for frame in decoded(tmp_path / "preview.mp4")[1]]
    assert names[0] == "red"
    assert names[-1] == "blue"
    assert abs(names.count("red") / len(names) - 1 / 3) < 0.15


def test_preview_of_a_member_and_of_a_picture(video, tmp_path):
    write_preview(video, 4.0, 6.0, tmp_path / "a.mp4")
    write_preview({"path": "x.tar/y.mp4", "bytes": video.read_bytes()}, 4.0, 6.0, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    Image.new("RGB", (64, 48), COLORS["green"]).save(tmp_path / "a.png")
    write_preview(tmp_path / "a.png", 0.0, 0.04, tmp_path / "preview.mp4")
    assert [color_of(frame) for frame in decoded(tmp_path / "preview.mp4")[1]] == ["green"]


def test_preview_is_bounded(video, tmp_path, monkeypatch):
    assert LONGEST_PREVIEW == 60
    monkeypatch.setattr(preview, "LONGEST_PREVIEW", 3.0)
    assert write_preview(video, 2.0, 8.0, tmp_path / "preview.mp4", context=1.0) == 1.0
    assert len(decoded(tmp_path / "preview.mp4")[0]) == 3 * FPS


def test_preview_is_the_same_in_parts(video, tmp_path, monkeypatch):
    write_preview(video, 4.0, 6.0, tmp_path / "a.mp4")
    monkeypatch.setattr(preview, "_FRAMES_AT_ONCE", 7)
    write_preview(video, 4.0, 6.0, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_preview_starts_over_when_reading_does(video, tmp_path, monkeypatch):
    write_preview(video, 4.0, 6.0, tmp_path / "a.mp4")
    given = []

    def twice(*options):
        for metadata, indices, frames in iterate_parts(*options):
            yield metadata, indices[:3], 255 - frames[:3]
            given.append(metadata)
            break
        yield from iterate_parts(*options)

    monkeypatch.setattr(preview, "iterate_parts", twice)
    write_preview(video, 4.0, 6.0, tmp_path / "b.mp4")
    assert given
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (8.0, 9.0, r"blue\.mp4: the span begins at 8 s, but the video ends at 8 s\. If the file has changed"),
        (3.0, 3.0, r"^A span must begin at 0 s or later and end after it begins, not 3-3 s\.$"),
        (-1.0, 3.0, "not -1-3 s"),
        (0.0, float("inf"), "not 0-inf s"),
        (float("nan"), 3.0, "not nan-3 s"),
    ],
)
def test_wrong_spans(video, tmp_path, start, end, message):
    with pytest.raises(ValueError, match=message):
        write_preview(video, start, end, tmp_path / "preview.mp4")
    with pytest.raises(ValueError, match=message):
        strip_of(video, start, end)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_no_files(video, tmp_path):
    (tmp_path / "a.mp4").write_bytes(video.read_bytes()[:2000])
    with pytest.raises(VideoDecodeError, match=r"a\.mp4"):
        write_preview(tmp_path / "a.mp4", 0, 2, tmp_path / "preview.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]
    with pytest.raises(OSError, match=r"No such file or directory: '.*missing/preview\.mp4'"):
        write_preview(video, 0, 2, tmp_path / "missing/preview.mp4")


def test_strip_has_the_middles_of_equal_parts(video):
    strip = strip_of(video, 2.0, 6.0, frames=4, height=24)
    assert strip.size == (4 * 32 + 3, 24)
    assert [color_of(np.asarray(strip)[:, left : left + 32]) for left in (0, 33, 66, 99)] == [
        "red",
        "red",
        "blue",
        "blue",
    ]


def test_strip_does_not_begin_with_the_span(video):
    strip = np.asarray(strip_of(video, 3.2, 7.2, frames=2, height=24))
    assert [color_of(strip[:, :32]), color_of(strip[:, 33:])] == ["blue", "blue"]


def test_strip_of_a_very_wide_video(tmp_path):
    source = write_colors(tmp_path / "a.mp4", "red", seconds=0.5, size=(16, 1600))
    strip = strip_of(source, 0, 0.5, frames=2, height=40)
    assert strip.size == (2 * 160 + 1, 40)
    assert np.asarray(strip)[0, :160, :3].max() == 0  # a black bar


# --- The page ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Parses a page into its elements, each with its attributes, and its visible `text`."""

    def __init__(self, path: Path):
        super().__init__()
        self.content = path.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: list[str] = []
        self.feed(self.content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def index(folder) -> FakeIndex:
    spans = {"trips/red then blue.mp4": [(0.0, 4.0), (4.0, 8.0)], "home/green.mp4": [(0.0, 4.0)]}
    return FakeIndex(folder, spans)


def test_page(index, tmp_path):
    path = write_search_page(
        tmp_path / "new/page.html", index, [(name, index.search(name)) for name in ("blue", "fog")]
    )
    page = Page(path)
    assert "“" not in page.text  # the style sheet adds the quotes
    assert page.text.count("red then blue.mp4 trips/ 00:") == 4
    (first,) = re.finditer(r"00:04-00:08 likely, 95% score (0\.9\d\d|1\.000)", page.text)
    assert (
        first.start()
        < page.text.index("00:00-00:04 unlikely, 5%")
        < page.text.index("Probably nothing in this index matches.")
    )
    assert page.text.count("Probably nothing in this index matches.") == 1
    assert "3 spans, best first." in page.text
    assert len(page.all("video")) == len(page.all("img")) == len(page.all("details")) == 6
    assert page.all("img")[0]["alt"] == "Frames of trips/red then blue.mp4 from 00:04-00:08"
    assert all(picture["alt"] for picture in page.all("img"))
    assert all(video["aria-label"] and video["preload"] == "none" for video in page.all("video"))


def test_players_have_the_span(index, tmp_path):
    page = Page(write_search_page(tmp_path / "page.html", index, [("blue", index.search("blue", k=1))]))
    (video,) = page.all("video")
    assert (video["data-begin"], video["data-stop"]) == ("4.0", "8.0")  # all of the 8 seconds are shown
    content, _, fragment = video["src"].partition("#")
    assert fragment == "t=4.000,8.000"
    (tmp_path / "preview.mp4").write_bytes(base64.b64decode(content.removeprefix("data:video/mp4;base64,")))
    times, frames = decoded(tmp_path / "preview.mp4")
    names = [color_of(frame) for time, frame in zip(times, frames)]
    assert names == ["red"] * 40 + ["blue"] * 40
    (picture,) = page.all("img")
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))))
    assert strip.shape[:2] == (int(picture["height"]), int(picture["width"]))
    assert color_of(strip[:, :100]) == "blue"


def test_page_loads_nothing_and_runs_only_its_script(index, tmp_path):
    page = Page(write_search_page(tmp_path / "page.html", index, [("blue", index.search("blue"))]))
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    (script,) = re.findall(r"<script>(.*?)</script>", page.content, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r'"data:[^"]*"', "", page.content))
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")


STRANGE = [
    "<img src=x onerror=alert(1)>.mp4",
    'a"\' onload="alert(1).mp4',
    "{{ 7 * 7 }}${7*7}.mp4",
    "</script><script>alert(1)</script>.mp4".replace("/", "\\"),
    "\u202egpj.mp4",
    "line\nbreak.mp4",
    "x" * 200 + ".mp4",
    os.fsdecode(b"not utf-8 \xff.mp4"),
]


def test_strange_names_are_text(folder, tmp_path):
    names = {name: [(0.0, 4.0)] for name in STRANGE}
    index = FakeIndex(folder, names)
    index.source = lambda path: str(folder / "home/green.mp4")
    hits = [Hit(name, 0.0, 4.0, 0.5, 0.9) for name in STRANGE]
    page = Page(
        write_search_page(tmp_path / "page.html", index, [(name, hits[:1]) for name in STRANGE] + [("all", hits)])
    )
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 2 * len(STRANGE)
    assert all(set(picture) == {"src", "width", "height", "decoding", "alt"} for picture in page.all("img"))
    shown = [readable(name) for name in STRANGE]
    headings = [" ".join(name.split()) for name in shown]
    assert all(page.text.count(heading) >= 2 for heading in headings)  # as a query and as a path
    assert "line\\nbreak.mp4" in page.text
    assert "not utf-8 \\udcff.mp4" in page.text
    assert "\\u202egpj.mp4" in page.text


def test_videos_that_are_gone_are_named(index, tmp_path):
    hits = [
        Hit("gone.mp4", 0.0, 4.0, 0.5, 0.9),
        Hit("home/green.mp4", 99.0, 100.0, 0.5, 0.9),
        *index.search("green", k=1),
    ]
    page = Page(write_search_page(tmp_path / "page.html", index, [("green", hits)]))
    assert "This video cannot be shown: gone.mp4 is not in the index." in page.text
    assert "green.mp4: the span begins at 99 s, but the video ends at 4 s." in page.text
    assert len(page.all("video")) == len(page.all("img")) == 1


def test_nothing_found(index, tmp_path):
    page = Page(write_search_page(tmp_path / "page.html", index, [("green", [])]))
    assert "Nothing was found." in page.text
    assert not page.all("li")
    assert "Nothing was searched for." in Page(write_search_page(tmp_path / "page.html", index, [])).text


def test_a_span_is_decoded_once_and_previews_are_bounded(index, tmp_path, monkeypatch):
    made = []

    def count(source, *span):
        made.append((source, *span))
        return "data:video/mp4;base64,", 0.0

    monkeypatch.setattr(search_page, "preview_uri", count)
    results = [(name, index.search(name)) for name in ("red", "blue")]
    assert len(Page(write_search_page(tmp_path / "page.html", index, results)).all("video")) == 6
    assert len(made) == len(set(made)) == 3
    monkeypatch.setattr(search_page, "_PREVIEWS", 2)
    page = Page(write_search_page(tmp_path / "page.html", index, results[:1]))
    assert (len(page.all("video")), len(page.all("img"))) == (2, 3)
    assert page.text.count("Only the first 2 hits of a page have a preview.") == 1


def test_regions_are_drawn_over_the_frames(tmp_path):
    videos = tmp_path / "videos"
    make_video(videos / "a.mp4", 6.0, seed=0)
    made = VideoIndex.create(
        tmp_path / "index", str(save_checkpoint("space_time", tmp_path / "model")), window=4.0, stride=2.0
    )
    made.update(videos)
    hits = made.search("a red square", regions=True)
    page = Page(write_search_page(tmp_path / "page.html", made, [("a red square", hits)]))
    frames, regions = (picture for picture in page.all("img")[:2])
    assert regions["alt"] == "The same frames with all regions of the model drawn over them"
    assert "show all regions that the model finds" in page.text
    plain, drawn = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).convert("RGB"), float)
        for image in (frames, regions)
    )
    assert plain.shape == drawn.shape
    assert 5 < np.abs(plain - drawn).mean() < 100
    assert np.corrcoef(plain.ravel(), drawn.ravel())[0, 1] > 0.5  # the same frames
    masks = np.zeros_like(hits[0].regions)  # (T, S, h, w), of one position each: top left in the first frame,
    masks[0, :, 0, 0] = masks[1:, :, -1, -1] = masks[0, 0].size  # and bottom right in the others
    page = Page(write_search_page(tmp_path / "page.html", made, [("first frame", [replace(hits[0], regions=masks)])]))
    plain, drawn = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).convert("RGB"), float)
        for image in page.all("img")
    )
    half = len(plain) // 2
    parts = np.array_split((plain - drawn)[:half], len(masks), axis=1)
    changed = [np.abs(part[:, 4 : half - 4]).mean() for part in parts]  # top left
    assert changed[0] > 2 * max(changed[1:])  # the rest is due to compression
    without = made.search("a red square")
    page = Page(write_search_page(tmp_path / "page.html", made, [("a red square", without)]))
    assert len(page.all("img")) == len(without)


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "<1%"), (0.0099, "<1%"), (0.014, "1%"), (0.5, "50%"), (0.995, ">99%")],
)
def test_percent(probability, text):
    assert percent(probability) == text


def test_span():
    assert span(Hit("a.mp4", 41.6, 3725.0, 0.5, 0.9)) == "00:41-1:02:05"
