"""Tests cuts of videos: decoded frames are compared with those of the source, sound by its samples and packets."""

import dataclasses
import io
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from region_learner import video_decoding_region_learner as decoding
from region_learner.corpora.encoding import add_video_stream
from region_learner.search import cut as module
from region_learner.search.cut import cut_span
from region_learner.video_decoding_region_learner import VideoDecodeError, read_clip

from .test_spans_of_videos import shown_at
from .test_video_processing import DATA, needs_data, pictures, write_video

X264 = {"g": "10", "bf": "3", "x264-params": "scenecut=0:b-adapt=0"}
# Arguments of `write_video`, the suffix of a cut from the middle, and whether the cut is a copy.
FILES = {
    "plain.mp4": ({"options": X264}, ".mp4", True),
    "plain.mov": ({"options": X264}, ".mov", True),
    "plain.mkv": ({"options": X264}, ".mp4", True),
    "plain.ts": ({"options": X264}, ".mp4", True),
    "plain.flv": ({"options": X264}, ".mp4", True),
    "one_key_frame.m4v": ({"options": {"g": "250", "bf": "2"}}, ".m4v", True),
    "open_gop.mp4": ({"options": X264 | {"x264-params": "open-gop=1:scenecut=0"}}, ".mp4", False),
    "open_gop.ts": ({"options": X264 | {"x264-params": "open-gop=1:scenecut=0"}}, ".mp4", False),
    "hevc.mp4": (
        {"codec": "libx265", "options": {"x265-params": "keyint=10:open-gop=1:log-level=none"}},
        ".mp4",
        True,
    ),
    "variable_rate.mp4": ({"options": X264, "times": lambda i: i + (i * i) // 7}, ".mp4", True),
    "variable_rate.mkv": ({"options": X264, "times": lambda i: i + 9 * (i > 20)}, ".mp4", True),
    "late_start.mp4": ({"options": X264, "shift": 7}, ".mp4", True),
    "mpeg2.ts": ({"codec": "mpeg2video", "options": {"g": "10", "bf": "2"}}, ".mp4", True),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"g": "10", "lag-in-frames": "16"}}, ".mp4", True),
    "mjpeg.mkv": ({"codec": "mjpeg", "options": {"strict": "unofficial"}}, ".mkv", True),
    "vp8.webm": ({"codec": "libvpx", "options": {"g": "10"}}, ".mp4", False),
    "plain.avi": ({"options": X264}, ".mp4", False),
    "mpeg4.avi": ({"codec": "mpeg4", "options": {"g": "10", "bf": "2"}}, ".mp4", False),
    "gif.gif": ({"codec": "gif"}, ".mp4", False),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncut")
    known = {}

    def get(name):
        if name not in known:
            arguments = FILES[name][0]
            if arguments.get("codec", "libx264") not in av.codecs_available:
                pytest.skip(f"this FFmpeg cannot encode with {arguments['codec']}")
            path = write_video(folder / name, **arguments)
            known[name] = path, *whole(path)
        return known[name]

    return get


def whole(source):
    frames, metadata = read_clip(source, lambda metadata: range(metadata.total_num_frames))
    return frames, metadata


def packets_of(path, kind="video"):
    """Returns the packets of the first stream of a kind as (time in seconds, data)."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(stream) if packet.size]


def check_frames(path, frames, metadata, start, end, is_copy=True):
    """Checks that the frames of the cut are those that are shown in the span, at the same intervals."""
    times = [Fraction(time) for time in metadata.times.tolist()]
    first = shown_at(times, Fraction(start))
    stop = shown_at(times, Fraction(end) - Fraction(2, 10**6)) + 1
    cut, of_cut = whole(path)
    np.testing.assert_allclose(of_cut.times, metadata.times[first:stop] - metadata.times[first], atol=1.1e-3)
    if is_copy:
        np.testing.assert_array_equal(cut, frames[first:stop])
    else:  # each frame is most similar to the expected one
        distances = [np.abs(frames.astype(int) - frame).mean((1, 2, 3)) for frame in cut]
        assert np.argmin(distances, axis=1).tolist() == list(range(first, stop))
        assert np.min(distances) < 16


def spans_of(metadata):
    return [(metadata.end * a, metadata.end * b) for a, b in ((0.33, 0.61), (0, 0.2), (0.8, 1), (0.47, 0.48))]


@pytest.mark.parametrize("name", FILES)
def test_cuts_have_the_frames_of_the_span(files, tmp_path, name):
    path, frames, metadata = files(name)
    _, suffix, is_copy = FILES[name]
    for number, (start, end) in enumerate(spans_of(metadata)):
        cut = cut_span(path, start, end, tmp_path / f"{number}")
        if number == 0:
            assert cut == tmp_path / f"0{suffix}"
        check_frames(cut, frames, metadata, start, end, is_copy=is_copy or cut.suffix == ".webm")
        if is_copy:  # no frame is shown before the key frame, as it would need packets that are cut off
            times = [time for time, _ in packets_of(cut)]
            assert times[0] == min(times)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_copies_have_the_packets_of_the_source(files, tmp_path):
    path, *_ = files("plain.mp4")
    cut = cut_span(path, 0.6, 1.2, tmp_path / "cut")
    source, copied = packets_of(path), packets_of(cut)
    data = [packet for _, packet in source]
    assert [data.index(packet) for _, packet in copied] == list(range(10, 10 + len(copied)))
    assert len(copied) <= 20 + 4
    encoded = cut_span(files("plain.avi")[0], 0.6, 1.2, tmp_path / "encoded")
    assert not {packet for _, packet in packets_of(encoded)} & set(data)


def test_nothing_is_hidden_unless_necessary(files, tmp_path):
    """A cut without B-frames that starts at a key frame keeps the container of the source."""
    options = {"g": "10", "bf": "0", "x264-params": "scenecut=0"}
    for suffix in (".mkv", ".mp4"):
        path = write_video(tmp_path / f"simple{suffix}", options=options)
        cut = cut_span(path, 0.4, 1.0, tmp_path / "kept")
        assert cut.suffix == suffix
        assert [data for _, data in packets_of(cut)] == [data for _, data in packets_of(path)][10:25]
        check_frames(cut, *whole(path), 0.4, 1.0)


def test_without_limits_the_whole_video_is_copied(files, tmp_path):
    path, frames, metadata = files("variable_rate.mp4")
    check_frames(cut_span(path, None, None, tmp_path / "all"), frames, metadata, 0, metadata.end)
    check_frames(cut_span(path, 2.0, None, tmp_path / "rest"), frames, metadata, 2.0, metadata.end)


@pytest.mark.parametrize("name", ["one_key_frame.m4v", "variable_rate.mkv", "hevc.mp4"])
def test_cuts_of_cuts(files, tmp_path, name):
    """A cut has frames that its edit list hides, before and after those that are shown."""
    first = cut_span(files(name)[0], 0.3, 1.3, tmp_path / "first")
    frames, metadata = whole(first)
    for start, end in ((0, 0.5), (0.2, 0.6), (0.5, metadata.end)):
        check_frames(cut_span(first, start, end, tmp_path / "second"), frames, metadata, start, end)


def test_copies_hide_no_more_than_a_minute(files, tmp_path, monkeypatch):
    path, frames, metadata = files("one_key_frame.m4v")
    monkeypatch.setattr(module, "_LEAD_IN", 0.5)
    packets = {data for _, data in packets_of(path)}
    for start, is_copy in ((0.48, True), (0.56, False)):
        cut = cut_span(path, start, 1.2, tmp_path / "cut")
        assert ({data for _, data in packets_of(cut)} <= packets) == is_copy
        check_frames(cut, frames, metadata, start, 1.2, is_copy=is_copy)


def test_only_the_part_around_the_span_is_read(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mkv", count=200, options=X264)
    monkeypatch.setattr(module, "_BEFORE", 1)
    monkeypatch.setattr(module, "_AFTER", 1)
    read = []

    def counted(*args, original=module._packets_around):
        for packet in original(*args):
            read.append(packet.pts)
            yield packet

    monkeypatch.setattr(module, "_packets_around", counted)
    cut = cut_span(path, 4.0, 5.0, tmp_path / "cut")
    assert len(packets_of(cut)) < len(read) < 100
    check_frames(cut, *whole(path), 4.0, 5.0)


def test_decoding_times():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 12))
        shown = np.cumsum(rng.integers(1, 50, count))
        stamps = shown[np.argsort(np.arange(count) + rng.uniform(0, 4, count))]
        times = module._decoding_times(stamps)
        assert list(times) == stamps.tolist()
        decoding = list(times.values())
        assert all(a < b for a, b in pairwise(decoding))
        assert all(at <= stamp for stamp, at in times.items())
        if stamps.tolist() == sorted(stamps.tolist()):
            assert decoding == stamps.tolist()  # no delay where nothing is reordered


def write_with_sound(path, codec, video="libx264", options=X264, rate=16000, shift=0.0):
    """Writes two seconds of pictures from `shift` seconds on, and sound whose samples count up from 0 seconds on."""
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, video, 25, options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout="mono")
        samples = (np.arange(rate * 4) % 30000).astype(np.int16)
        for start in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        for i, image in enumerate(pictures(50)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i + round(shift * 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("copied.mov", {}),
        ("late.mov", {"shift": 0.4}),
        ("copied.mkv", {"video": "mjpeg", "options": {"strict": "unofficial"}}),
        ("encoded.avi", {"video": "mpeg4", "options": {"g": "10"}}),
        ("late_encoded.mkv", {"video": "libvpx", "options": {"g": "10"}, "shift": 0.4}),
    ],
)
def test_sound_stays_in_sync(tmp_path, name, options):
    """The value of each sample is its position in the sound of the source."""
    path = write_with_sound(tmp_path / name, "pcm_s16le", **options)
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
        origin = first.pts * first.time_base
    start, end = 0.6, 1.32
    cut = cut_span(path, start, end, tmp_path / "cut")
    with av.open(str(cut)) as container:
        shown = min(frame.pts * frame.time_base for frame in container.decode(video=0))
    with av.open(str(cut)) as container:
        sound = [(frame.pts * frame.time_base, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    for time, samples in sound:
        assert abs((time - shown + Fraction(start) + origin) * 16000 - int(samples[0])) <= 17  # a millisecond
    times = [time - origin for time, _ in packets_of(path, "audio")]
    expected = sum(start - 1e-3 <= time < end - 1e-3 for time in times)
    assert 10 < expected == len(sound)


def test_recordings_that_begin_without_a_key_frame(tmp_path):
    """The first frames cannot be decoded. Times count from the first one that is shown."""
    whole_file = write_with_sound(tmp_path / "whole.ts", "mp2", "mpeg2video", {"g": "12", "bf": "2"}, rate=48000)
    with av.open(str(whole_file)) as source, av.open(str(tmp_path / "late.ts"), "w") as output:
        targets = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        skipped = 0
        for packet in source.demux():
            if packet.dts is None:
                continue
            skipped += packet.stream.type == "video"
            if packet.stream.type == "video" and skipped <= 4:
                continue
            packet.stream = targets[packet.stream.index]
            output.mux(packet)
    path = tmp_path / "late.ts"
    with av.open(str(path)) as container:
        origin = next(frame.pts * frame.time_base for frame in container.decode(video=0) if not frame.is_corrupt)
    with av.open(str(path)) as container:
        sounds = [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(audio=0) if packet.size]
    start, end = 0.2, 0.8
    cut = cut_span(path, start, end, tmp_path / "cut")
    with av.open(str(cut)) as container:
        found = [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(audio=0) if packet.size]
    with av.open(str(cut)) as container:
        shown = min(frame.pts * frame.time_base for frame in container.decode(video=0))
    assert len(found) > 10
    expected = [at for at, content in sounds if content == found[0][1]]
    assert any(abs(at - origin - Fraction(start) - (found[0][0] - shown)) < Fraction(1, 100) for at in expected)


def test_sound_after_encoding_has_started_over(tmp_path, monkeypatch):
    """The sound is read from the beginning again."""
    path = write_with_sound(tmp_path / "a.avi", "mp2", "mpeg4", {"g": "10"}, rate=48000)
    expected = packets_of(cut_span(path, 0.1, 1.9, tmp_path / "expected"), "audio")
    original = module.iterate_parts

    def twice(*args, **kwargs):
        parts = list(original(*args, **kwargs))
        yield dataclasses.replace(parts[0][0]), *parts[0][1:]
        again = dataclasses.replace(parts[0][0])
        for _, *part in parts:
            yield again, *part

    monkeypatch.setattr(module, "_PART", 30)
    monkeypatch.setattr(module, "iterate_parts", twice)
    cut = cut_span(path, 0.1, 1.9, tmp_path / "cut")
    assert packets_of(cut, "audio") == expected
    assert len(expected) > 50


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_the_shape_of_pixels_of_h264(tmp_path, suffix):
    """Its header is only read by decoding."""
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, "libx264", 25, {"g": "50", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for image in pictures(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert module._shape_of_pixels(str(path)) == Fraction(16, 11)


@pytest.mark.parametrize("size", [(48, 64), (64, 48)])
def test_the_shape_of_pixels_and_the_colors_are_kept(tmp_path, size):
    height, width = size
    with av.open(str(tmp_path / "a.mpg"), "w", format="mpeg") as container:
        stream = add_video_stream(container, "mpeg2video", 25, {"g": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        for _ in range(50):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((height, width, 3), (200, 30, 90), np.uint8)))
            )
        container.mux(stream.encode())
    with av.open(str(tmp_path / "a.mpg")) as container:
        shape = container.streams.video[0].codec_context.sample_aspect_ratio  # MPEG-2 has only a few
    cut = cut_span(tmp_path / "a.mpg", 0.2, 1.2, tmp_path / "cut")
    with av.open(str(cut)) as container:
        context = container.streams.video[0].codec_context
        next(container.decode(video=0))
        assert context.sample_aspect_ratio == shape != 1
        assert (context.colorspace, context.color_range) == (6, 1)
    source = read_clip(str(tmp_path / "a.mpg"), lambda metadata: [10])[0].astype(int)
    assert abs(read_clip(str(cut), lambda metadata: [5])[0].astype(int) - source).max() <= 6


def test_sound_that_no_container_supports_is_left_out_with_a_warning(tmp_path, caplog):
    path = write_with_sound(tmp_path / "old.avi", "adpcm_yamaha")
    cut = cut_span(path, 0.6, 1.2, tmp_path / "cut")
    with av.open(str(cut)) as container:
        has_sound = bool(container.streams.audio)
    assert not has_sound
    assert "old.avi: its sound (adpcm_yamaha) is left out because no container supports it" in caplog.text


def test_packets_of_sound_are_copied(tmp_path):
    path = write_with_sound(tmp_path / "source.mp4", "aac")
    cut = cut_span(path, 0.6, 1.2, tmp_path / "cut")
    source, copied = packets_of(path, "audio"), packets_of(cut, "audio")
    expected = [(time - Fraction(3, 5), data) for time, data in source if Fraction(3, 5) <= time < Fraction(6, 5)]
    assert [data for _, data in copied] == [data for _, data in expected]
    for (time, _), (other, _) in zip(copied, expected):
        assert abs(time - other) < 1e-3


def test_all_streams_are_copied(tmp_path):
    """A file with two video streams keeps both."""
    path = tmp_path / "two.mp4"
    first = write_video(tmp_path / "first.mp4", options=X264)
    second = write_video(tmp_path / "second.mp4", options={"g": "10", "bf": "0"}, width=96)
    with av.open(str(first)) as a, av.open(str(second)) as b, av.open(str(path), "w") as output:
        streams = [output.add_stream_from_template(container.streams.video[0]) for container in (a, b)]
        packets = [
            (packet, stream) for container, stream in zip((a, b), streams) for packet in container.demux(video=0)
        ]
        for packet, stream in sorted((p for p in packets if p[0].size), key=lambda p: p[0].dts):
            packet.stream = stream
            output.mux(packet)
    cut = cut_span(path, 0.6, 1.2, tmp_path / "cut")
    with av.open(str(cut)) as container:
        assert [stream.width for stream in container.streams.video] == [64, 96]
        others = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=1)]
    np.testing.assert_array_equal(others, whole(second)[0][15:30])


def test_encoding_starts_over_with_decoding(files, tmp_path, monkeypatch):
    """Seeking to a later part ends at a wrong position, so decoding starts over, and so must encoding."""
    path, frames, metadata = files("vp8.webm")
    read_from = decoding.PacketList.read_from

    def wrong(self, stream, position):
        return read_from(self, stream, min(position + 10 * (position >= 20), len(self.times) - 1))

    monkeypatch.setattr(decoding, "_MAX_KEPT", 0)
    monkeypatch.setattr(decoding.PacketList, "read_from", wrong)
    monkeypatch.setattr(module, "_PART", 2)
    seen = []
    original = module.iterate_parts

    def watched(*args, **kwargs):
        for metadata, *part in original(*args, **kwargs):
            seen.append(metadata)
            yield metadata, *part

    monkeypatch.setattr(module, "iterate_parts", watched)
    cut = cut_span(path, 0.2, metadata.end, tmp_path / "cut")
    assert len({id(metadata) for metadata in seen}) == 2
    monkeypatch.undo()
    check_frames(cut, frames, metadata, 0.2, metadata.end, is_copy=False)


def test_odd_sizes_are_encoded(tmp_path):
    path = write_video(tmp_path / "odd.gif", codec="gif", width=65, height=49)
    cut, _ = whole(cut_span(path, 0.2, 0.8, tmp_path / "cut"))
    assert cut.shape[1:] == (48, 64, 3)


# Files ---------------------------------------------------------------------------------------------------


def test_suffixes(files, tmp_path):
    path, *_ = files("plain.mp4")
    for name, expected in (("cut.mp4", "cut.mp4"), ("cut.MKV", "cut.mp4"), ("00.42-00.52", "00.42-00.52.mp4")):
        assert cut_span(path, 0.5, 1, tmp_path / name).name == expected
        assert (tmp_path / expected).is_file()
    for source in (path.read_bytes(), {"path": "member.mov", "bytes": path.read_bytes()}):
        cut = cut_span(source, 0.5, 1, tmp_path / "of_bytes")
        assert cut.suffix == (".mov" if isinstance(source, dict) else ".mp4")
        check_frames(cut, *files("plain.mp4")[1:], 0.5, 1)


@pytest.mark.parametrize("name", ["a%03d", "http:b", "-c", "d:e?f#g"])
def test_names_are_neither_patterns_nor_urls(files, tmp_path, name):
    cut = cut_span(files("plain.mp4")[0], 0.5, 1, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [cut.name] == [f"{name}.mp4"]


@pytest.mark.parametrize("name", ["plain.mp4", "plain.avi"])
def test_cuts_appear_only_when_they_are_complete(files, tmp_path, monkeypatch, name):
    path, *_ = files(name)
    (tmp_path / "cut.mp4").write_bytes(b"before")
    writes = []

    class Full(io.FileIO):
        def write(self, data):
            writes.append(len(data))
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "open", lambda name, mode: Full(name, "w+"), raising=False)
    with pytest.raises(OSError, match="No space left"):
        cut_span(path, 0.5, 1, tmp_path / "cut")
    assert writes
    assert [file.name for file in tmp_path.iterdir()] == ["cut.mp4"]
    assert (tmp_path / "cut.mp4").read_bytes() == b"before"


def test_what_cannot_be_cut(files, tmp_path):
    path, *_ = files("plain.mp4")
    out = tmp_path / "out"
    out.mkdir()
    for span, message in (((1, 1), "must be less than"), ((-1, 1), "start=-1"), ((1, 9), "ends at 1.6 s")):
        with pytest.raises(ValueError, match=f"plain.mp4: .*{message}"):
            cut_span(path, *span, out / "cut")
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    (tmp_path / "notes.mp4").write_text("not a video")
    for name, message in (("picture.png", "a picture"), ("notes.mp4", "text"), ("missing.mp4", "no such file")):
        with pytest.raises(VideoDecodeError, match=f"{name}: {message}"):
            cut_span(tmp_path / name, 0, 1, out / "cut")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cut_span(path, 0, 1, tmp_path / "nowhere" / "cut")
    assert list(out.iterdir()) == []


def test_damaged_videos(tmp_path):
    """A span without damage is encoded, and a damaged one is refused."""
    path = write_video(tmp_path / "whole.avi", codec="ffv1", options={"slicecrc": "1", "level": "3", "g": "10"})
    frames, metadata = whole(path)
    data = bytearray(path.read_bytes())
    _, packet = packets_of(path)[25]
    data[data.index(packet) + len(packet) // 2] ^= 0xFF
    (tmp_path / "damaged.avi").write_bytes(data)
    cut = cut_span(tmp_path / "damaged.avi", 0.2, 0.9, tmp_path / "cut")
    check_frames(cut, frames, metadata, 0.2, 0.9, is_copy=False)
    with pytest.raises(VideoDecodeError, match=r"damaged.avi: frame 25 is damaged") as error:
        cut_span(tmp_path / "damaged.avi", 0.9, 1.2, tmp_path / "none")
    assert str(error.value).count("damaged.avi") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.mp4", "damaged.avi", "whole.avi"]


@needs_data
@pytest.mark.parametrize(
    "name", ["nasa_13013.mp4", "av1_video.mkv", "h264_10bits.mp4", "h265_video.mp4", "video_90.mov"]
)
def test_odd_videos(tmp_path, name):
    path = DATA / "odd_videos" / name
    if name.startswith("av1") and "libdav1d" not in av.codecs_available:
        pytest.skip("this FFmpeg cannot decode AV1")
    frames, metadata = whole(path)
    for start, end in spans_of(metadata)[:3]:
        check_frames(cut_span(path, start, end, tmp_path / "cut"), frames, metadata, start, end)


@needs_data
@pytest.mark.parametrize("number", [0, 80])
def test_real_clips(tmp_path, number):
    path = sorted((DATA / "real_clips" / "clips").glob("*.mp4"))[number]
    frames, metadata = whole(path)
    for start, end in spans_of(metadata)[:3]:
        check_frames(cut_span(path, start, end, tmp_path / "cut"), frames, metadata, start, end)
