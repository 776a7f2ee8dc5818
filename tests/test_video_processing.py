"""Tests decoding, sampling and transforms, each against a simple reference computation."""

import io
import json
import pickle
import shutil
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2 as transforms
from transformers.image_utils import SizeDict
from transformers.video_utils import VideoMetadata

from region_learner import video_decoding_region_learner as module
from region_learner.corpora.encoding import add_video_stream
from region_learner.video_decoding_region_learner import ClipMetadata, VideoDecodeError, read_clip
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .fresh_process import run_fresh

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data beside the project is not at {DATA}")


def pictures(count, width=64, height=48):
    """Yields distinct frames: a moving square on a gradient."""
    rows, columns = np.mgrid[0:height, 0:width]
    for i in range(count):
        image = np.stack([columns * 2, rows * 3, (rows + columns + 5 * i) % 256], axis=-1).astype(np.uint8)
        image[i % (height - 12) :, (3 * i) % (width - 12) :][:12, :12] = [255, (7 * i) % 256, 40]
        yield image


def write_video(
    path,
    count=40,
    codec="libx264",
    options=None,
    container_options=None,
    rate=25,
    shift=0,
    pix_fmt="yuv420p",
    times=lambda i: i,
    **size,
):
    exact = {"fflags": "+bitexact"}  # otherwise, Matroska files get random IDs
    with av.open(str(path), "w", container_options=exact | (container_options or {})) as container:
        stream = add_video_stream(container, codec, rate, options)
        for i, image in enumerate(pictures(count, **size)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if i == 0:
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = "rgb8" if codec == "gif" else pix_fmt
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = times(i) + shift
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path):
    """Returns the rotation and the pixels of every frame, decoding the file from start to end."""
    with av.open(str(path)) as container:
        return [(frame.rotation, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def read(source, *indices):
    return read_clip(source, lambda metadata: indices)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def video(folder):
    return write_video(folder / "plain.mp4", options={"g": "10", "bf": "2"})


@pytest.fixture
def processor():
    return RegionLearnerVideoProcessor.for_image_size(32)


# Decoding ------------------------------------------------------------------------------------------------

ENCODINGS = {
    "h264.mp4": {"options": {"g": "10", "bf": "3"}},
    "h264_one_key_frame.mp4": {"options": {"g": "250"}},
    "h264.mkv": {"options": {"g": "10", "bf": "3"}},
    "h264.ts": {"options": {"g": "10", "bf": "3"}},
    "h264.avi": {"options": {"g": "10", "bf": "2"}},
    "h264_open_gop.mp4": {"options": {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}},
    "h264_intra_refresh.mkv": {"options": {"g": "10", "bf": "0", "x264-params": "intra-refresh=1"}},
    "h264_late_start.mp4": {"options": {"g": "10", "bf": "2"}, "shift": 7},
    "h264_fragmented.mp4": {
        "options": {"g": "10"},
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "hevc_open_gop.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=10:open-gop=1:log-level=none"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "16"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "10", "bf": "2"}},
    "h264_pyramid.mp4": {"options": {"g": "24", "bf": "7", "x264-params": "b-pyramid=normal:scenecut=0:b-adapt=0"}},
    "h264_10_bits.mp4": {"options": {"g": "10", "bf": "2"}, "pix_fmt": "yuv420p10le"},
    "h264_444.mp4": {"options": {"g": "10", "bf": "2"}, "pix_fmt": "yuv444p"},
    "h264_interlaced.mkv": {"options": {"g": "10", "bf": "2", "x264-params": "tff=1"}},
    "mpeg2_interlaced.ts": {"codec": "mpeg2video", "options": {"g": "10", "bf": "2", "flags": "+ilme+ildct"}},
    "h264_variable_rate.mp4": {"options": {"g": "10", "bf": "2"}, "times": lambda i: i + (i * i) // 7},
    "one_frame.mp4": {"count": 1},
    "mjpeg.mov": {"codec": "mjpeg", "options": {"strict": "unofficial"}},
    "gif.gif": {"codec": "gif"},
}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ENCODINGS)
def test_frames_match_a_full_decode(folder, name, kept, monkeypatch):
    """Clips equal the frames of a full decode, whether packets are kept in memory or sought in the file."""
    if not kept:
        monkeypatch.setattr(module, "_MAX_KEPT", 0)
    arguments = ENCODINGS[name]
    if arguments.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot encode with {arguments['codec']}")
    path = write_video(folder / name, **arguments)
    frames = [frame for _, frame in decode_all(path)]
    last = len(frames) - 1
    for indices in [(3,), (0, last), (4, 17, 18, 33), (29, 11, 11), range(len(frames))]:
        indices = [min(index, last) for index in indices]
        clip, metadata = read(path, *indices)
        assert metadata.total_num_frames == len(frames)
        assert metadata.frames_indices == list(indices)
        np.testing.assert_array_equal(clip, np.stack([frames[i] for i in indices]))
    for i in range(len(frames)):
        np.testing.assert_array_equal(read(path, i)[0][0], frames[i], err_msg=f"frame {i}")


def check_against_whole_file(path, indices_of):
    frames = decode_all(path)
    indices = indices_of(len(frames))
    clip, metadata = read(path, *indices)
    assert metadata.total_num_frames == len(frames)
    for index, image in zip(indices, clip):
        rotation, frame = frames[index]
        np.testing.assert_array_equal(image, np.rot90(frame, rotation // 90), err_msg=f"{path.name}, frame {index}")


def real_clips():
    return sorted((DATA / "real_clips" / "clips").glob("*.mp4"))


@needs_data
def test_frames_of_some_real_clips():
    for path in real_clips()[::15]:
        check_against_whole_file(path, lambda n: [n // 8, n // 8 + 1, n // 2, 7 * n // 8])


@needs_data
@pytest.mark.slow
def test_frames_of_all_real_clips():
    generator = np.random.default_rng(0)
    for path in real_clips():
        check_against_whole_file(path, lambda n: [*sorted(generator.choice(n, 8)), n - 1])


GOOD_ODD_VIDEOS = [
    "av1_video.mkv",
    "bt709_full_range.mp4",
    "h264_10bits.mp4",
    "h265_video.mp4",
    "nasa_13013.mp4",
    "video_0.mov",
    "video_90.mov",
    "video_180.mov",
    "bitmap.mp4",
    "-video-with-dash-.mp4",
    "big_buck_bunny_432_433.webm",
    "example.mp4",
]


@needs_data
@pytest.mark.parametrize("name", [*GOOD_ODD_VIDEOS, pytest.param("smpte-2997.mp4", marks=pytest.mark.slow)])
def test_frames_of_odd_videos(name):
    check_against_whole_file(DATA / "odd_videos" / name, lambda n: sorted({0, n // 3, n // 2, n - 1}))


@needs_data
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nasa_13013.mp4.audio.mp3", "no video stream"),
        ("sine_mono_s16.wav", "no video stream"),
        ("result.webm", "empty file"),
        ("corrupted.mp4", "Invalid data"),
        ("manifest.jsonl", "text, not a video or picture"),
    ],
)
def test_unreadable_videos_are_errors(processor, name, reason):
    path = DATA / "odd_videos" / name
    with pytest.raises(VideoDecodeError, match=reason) as error:
        processor(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(VideoDecodeError, match=f"^<bytes>: .*{reason}"):
        processor.decode(path.read_bytes())


@needs_data
def test_frames_before_the_damage_are_read():
    clip, metadata = read(DATA / "odd_videos" / "corrupted.mp4", 20)
    assert clip.shape == (1, 720, 1280, 3)
    assert metadata.total_num_frames == 50


@needs_data
def test_rotated_videos_are_set_upright():
    upright = read(DATA / "odd_videos" / "video_0.mov", 0)[0][0]
    turned = read(DATA / "odd_videos" / "video_90.mov", 0)[0][0]
    assert upright.shape == (320, 568, 3)
    assert turned.shape == (568, 320, 3)


def test_the_first_of_several_video_streams(folder):
    """The first stream is read, not the largest, which FFmpeg would choose."""
    path = folder / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [add_video_stream(container, rate=25) for _ in range(2)]
        for stream, width in zip(streams, (64, 128)):
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
        for images in zip(pictures(20), pictures(20, width=128)):
            for stream, image in zip(streams, images):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    frames = [frame for _, frame in decode_all(path)]
    clip, metadata = read(path, 3, 15)
    assert metadata.total_num_frames == 20
    np.testing.assert_array_equal(clip, [frames[3], frames[15]])


def test_frames_that_no_other_frame_needs_are_skipped(folder, monkeypatch):
    """Of all B-frames, only the requested one is decoded."""
    options = {"g": "30", "bf": "2", "x264-params": "scenecut=0:b-adapt=0:b-pyramid=none"}
    path = write_video(folder / "b_frames.mp4", count=60, options=options)
    with av.open(str(path)) as container:
        kinds = [av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    wanted = next(index for index in range(10, 20) if kinds[index] == "B")
    decoded = []

    def counted(*args, original=module._decode_from):
        for frame in original(*args):
            decoded.append(av.video.frame.PictureType(frame.pict_type).name)
            yield frame

    monkeypatch.setattr(module, "_decode_from", counted)
    read(path, wanted)
    assert decoded.count("B") == 1
    assert decoded.count("P") <= wanted // 3 + 1
    # The next P-frame is shown after the B-frame but decoded before it.
    monkeypatch.delattr(module, "_decode_all")
    following = next(index for index in range(wanted, 60) if kinds[index] == "P")
    assert len(read(path, wanted, following)[0]) == 2


def test_only_the_needed_part_is_decoded(folder, monkeypatch):
    path = write_video(folder / "long.mp4", count=200, options={"g": "10", "bf": "0", "x264-params": "scenecut=0"})
    decoded = []

    def counted(*args, original=module._decode_from):
        for frame in original(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(module, "_decode_from", counted)
    monkeypatch.delattr(module, "_decode_all")
    read(path, 25, 28, 104, 199)
    assert len(decoded) == 9 + 5 + 10


def test_wrong_seeks_are_noticed(video, monkeypatch):
    """Wherever a seek lands, the frames are correct, if necessary by decoding the whole file."""
    frames = [frame for _, frame in decode_all(video)]
    whole = []
    decode_whole = module._decode_all
    monkeypatch.setattr(module, "_decode_all", lambda *arguments: whole.append(True) or decode_whole(*arguments))
    monkeypatch.setattr(module, "_MAX_KEPT", 0)
    original = module.PacketList.read_from
    for wrong in (10, -10):
        monkeypatch.setattr(
            module.PacketList,
            "read_from",
            lambda self, stream, first, wrong=wrong: original(
                self, stream, min(max(first + wrong, 0), len(self.times) - 1)
            ),
        )
        np.testing.assert_array_equal(read(video, 25)[0][0], frames[25])
    assert len(whole) == 2  # to count and to decode after the late seek; the early one does no harm


def test_packets_that_show_nothing_are_not_counted(folder):
    """VP8 has reference frames that are never shown. This test turns an ordinary frame into one."""
    source = write_video(folder / "shown.webm", codec="libvpx", options={"auto-alt-ref": "0"})
    path = folder / "hidden.webm"
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for i, packet in enumerate(container.demux(video=0)):
            if packet.size:
                data = bytearray(bytes(packet))
                data[0] &= 0xFF if i != 10 else ~0x10
                changed = av.Packet(bytes(data))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                output.mux(changed)
    frames = [frame for _, frame in decode_all(path)]
    assert len(frames) == 39
    for index in (9, 10, 38):
        clip, metadata = read(path, index)
        assert metadata.total_num_frames == 39
        np.testing.assert_array_equal(clip[0], frames[index])


@pytest.mark.parametrize("name", ["h264_open_gop.mp4", "hevc_open_gop.mp4"])
def test_streams_cut_at_an_open_gop(folder, name):
    """The first packet is a key frame, but frames shown before it refer to packets that were cut off."""
    if ENCODINGS[name].get("codec", "libx264") not in av.codecs_available:
        pytest.skip("this FFmpeg lacks the encoder")
    source = write_video(folder / f"uncut_{name}", **ENCODINGS[name])
    path = folder / f"open_{name}".replace(".mp4", ".mkv")
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start = next(i for i, packet in enumerate(packets) if i and packet.is_keyframe)
        assert packets[start + 1].pts < packets[start].pts
        for packet in packets[start:]:
            packet.stream = stream
            output.mux(packet)
    frames = [frame for _, frame in decode_all(path)]
    assert len(frames) < len(packets) - start
    for index in range(len(frames)):
        clip, metadata = read(path, index)
        assert metadata.total_num_frames == len(frames)
        np.testing.assert_array_equal(clip[0], frames[index])


def test_the_number_of_frames_is_corrected(video, monkeypatch):
    """If decoding contradicts the packets, frames are selected again."""
    decode_whole = module._decode_all

    def contradict(*args):
        raise module._ContradictionError
        yield

    monkeypatch.setattr(module, "_decode_by_time", contradict)
    monkeypatch.setattr(module, "_decode_all", lambda *args: islice(decode_whole(*args), 30))
    clip, metadata = read_clip(video, lambda metadata: [metadata.total_num_frames - 1])
    assert metadata.frames_indices == [29]
    np.testing.assert_array_equal(clip[0], decode_all(video)[29][1])


@pytest.mark.parametrize("wrong", [40, -1])
def test_frames_that_do_not_exist_are_refused(video, wrong):
    with pytest.raises(ValueError, match=rf"frames \[{wrong}\] were selected from a video of 40 frames") as error:
        read(video, 3, wrong)
    assert "plain.mp4: " in str(error.value)


def identifies_frames(times: list[int], is_key: list[bool]) -> bool:
    """Returns whether every timestamp identifies one frame, looking at the packets one by one."""
    if not is_key[0] or min(times) < times[0] or len(set(times)) < len(times):
        return False
    key, latest, is_past = times[0], times[0], False  # is_past: a frame after the key frame was seen
    for time, starts in zip(times[1:], is_key[1:]):
        if starts:
            if time < latest:
                return False
            key, is_past = time, False
        elif time > key:
            is_past = True
        elif is_past:
            return False
        latest = max(latest, time)
    return True


def test_which_time_stamps_identify_frames():
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(3000):
        count = int(rng.integers(1, 8))
        times = np.arange(count) + rng.uniform(-2, 2, count).round().astype(int)
        is_key = rng.random(count) < 0.4
        is_key[0] |= rng.random() < 0.9
        outcomes.append(identifies_frames(times.tolist(), is_key.tolist()))
        assert module._identifies_frames(times, is_key) == outcomes[-1], (times, is_key)
    assert 500 < sum(outcomes) < 2500


def test_frames_an_edit_list_cuts_out_are_not_counted(folder):
    source = write_video(folder / "uncut.mp4", options={"g": "20", "bf": "0"})
    path = folder / "cut.mp4"
    with (
        av.open(str(source)) as container,
        av.open(str(path), "w", container_options={"avoid_negative_ts": "disabled"}) as output,
    ):
        stream = output.add_stream_from_template(container.streams.video[0])
        offset = None
        for packet in container.demux(video=0):
            if packet.size:
                offset = offset or 7 * packet.duration
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, stream
                output.mux(packet)
    frames = [frame for _, frame in decode_all(path)]
    assert len(frames) == 33
    for index in (0, 5, 20, 32):
        clip, metadata = read(path, index)
        assert metadata.total_num_frames == 33
        np.testing.assert_array_equal(clip[0], frames[index])


def test_truncated_video(folder):
    path = write_video(folder / "whole.mkv", options={"g": "10"})
    cut = folder / "half.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    count = len(decode_all(cut))
    assert 0 < count < 40
    check_against_whole_file(cut, lambda n: [0, n // 2])


def test_metadata_of_a_decoded_video(video):
    metadata = read(video, 3)[1]
    assert metadata.fps == 25
    assert metadata.duration == pytest.approx(40 / 25)
    assert (metadata.height, metadata.width) == (48, 64)
    assert metadata.timestamps == [3 / 25]


def test_times_of_all_frames(video):
    """The timestamps include the last frames, which the decoder holds back until the end of the stream."""
    times = [at for _, at in module.iterate_frames(video)]
    np.testing.assert_allclose(times, np.arange(40) / 25)


def test_still_pictures_are_videos_of_one_frame(folder):
    image = next(pictures(1))
    Image.fromarray(image).save(folder / "still.png")
    clip, metadata = read(folder / "still.png", 0)
    assert metadata.total_num_frames == 1
    np.testing.assert_array_equal(clip[0], image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_photographs(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / "photograph.jpg"
    Image.fromarray(next(pictures(1))).save(path, exif=exif, quality=95, subsampling=0)
    expected = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    clip = read(path, 0)[0]
    assert clip[0].shape == expected.shape
    assert np.abs(clip[0] - expected).mean() < 3  # FFmpeg and Pillow round differently


def set_upright(frame, stored):
    is_transposed, *flips = module._orientation(frame)
    upright = stored.T if is_transposed else stored
    return np.flip(upright, [axis for axis, flip in enumerate(flips) if flip])


@pytest.mark.parametrize("columns", [(0, 1), (1, 0)])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_orientations_of_display_matrices(columns, signs):
    """The matrix moves the pixel in column p and row q to (a p + c q, b p + d q)."""
    a_b, c_d = np.zeros(2, int), np.zeros(2, int)
    a_b[columns[0]], c_d[columns[1]] = signs
    matrix = np.int32([a_b[0], a_b[1], 0, c_d[0], c_d[1], 0, 0, 0, 1]) * 65536
    stored = np.arange(2 * 3).reshape(2, 3)
    places = {tuple(p * a_b + q * c_d): stored[q, p] for q in range(2) for p in range(3)}
    xs, ys = (sorted({place[axis] for place in places}) for axis in (0, 1))
    expected = np.array([[places[x, y] for x in xs] for y in ys])
    frame = SimpleNamespace(side_data={"DISPLAYMATRIX": matrix.tobytes()})
    np.testing.assert_array_equal(set_upright(frame, stored), expected)


@pytest.mark.parametrize("turns", range(-2, 3))
def test_orientation_of_a_video_with_unknown_side_data(turns):
    class Frame:
        rotation = 90 * turns

        @property
        def side_data(self):
            raise ValueError("99 is not a valid Type")

    stored = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(set_upright(Frame(), stored), np.rot90(stored, turns))


def test_matrices_other_than_quarter_turns_and_flips_are_ignored():
    for a, b, c, d in ((1, 8192, 0, 1), (1, 1, -1, 1), (0, 0, 0, 0)):
        matrix = np.int32([a, b, 0, c, d, 0, 0, 0, 1]) * 65536
        frame = SimpleNamespace(side_data={"DISPLAYMATRIX": matrix.tobytes()})
        assert module._orientation(frame) == (False, False, False)


@pytest.mark.parametrize(
    ("colorspace", "red", "blue"),
    [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)],
    ids=["709", "601", "2020"],
)
def test_color_matrices(folder, colorspace, red, blue):
    """A color encoded by the formulas of BT.709, 601 or 2020 (limited range) is decoded to the same color."""
    color = np.array([200, 60, 30])
    luma = np.dot([red, 1 - red - blue, blue], color)
    values = (
        16 + 219 * luma / 255,
        128 + 224 * (color[2] - luma) / (2 * (1 - blue)) / 255,
        128 + 224 * (color[0] - luma) / (2 * (1 - red)) / 255,
    )
    path = folder / f"matrix_{colorspace}.mp4"
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = colorspace
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, value in zip(frame.planes, values):
            plane.update(bytes([round(value)]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(read(path, 0)[0].astype(int) - color).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_blended_with_black(folder, processor, mode):
    rgba = np.full((20, 30, 4), 200, np.uint8)
    rgba[:, :10, 3], rgba[:, 10:20, 3], rgba[:, 20:, 3] = 0, 128, 255
    image = Image.fromarray(rgba)
    if mode == "P":
        image = Image.fromarray(np.repeat(np.uint8([[0, 1, 1]]), 10, axis=1).repeat(20, axis=0), mode="P")
        image.putpalette([200] * 3 + [100, 100, 100])
        image.info["transparency"] = 0
        expected = {0: 0, 15: 100, 25: 100}
    else:
        image = image.convert(mode)
        expected = {0: 0, 15: 100, 25: 200}
    image.save(folder / f"{mode}.png")
    decoded = processor.decode(folder / f"{mode}.png", num_frames=1)[0]
    given = processor.decode(image, num_frames=1)[0]
    assert decoded.shape == given.shape == (1, 3, 20, 30)
    for column, value in expected.items():
        assert (decoded[..., column] == value).all()
        assert (given[..., column] == value).all()


def test_full_and_limited_range(folder):
    """White stays white in full and in limited range."""
    for pix_fmt, white in (("yuv420p", 235), ("yuvj420p", 255)):
        frame = av.VideoFrame(64, 48, pix_fmt)
        for plane, value in zip(frame.planes, (white, 128, 128)):
            plane.update(bytes([value]) * plane.buffer_size)
        with av.open(str(folder / f"{pix_fmt}.mkv"), "w") as container:
            stream = add_video_stream(container, "ffv1", 5)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt.replace("j", "")
            stream.codec_context.color_range = 2 if "j" in pix_fmt else 1
            if "j" in pix_fmt:
                frame = frame.reformat(format="yuv420p", src_color_range=2, dst_color_range=2)
            frame.pts = 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        assert read(folder / f"{pix_fmt}.mkv", 0)[0].min() >= 254


def test_titles_in_odd_encodings_do_not_matter(folder):
    path = folder / "title.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE-TITLE"
        stream = add_video_stream(container, rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in pictures(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"TITLE-TITLE" in data
    assert read(data.replace(b"TITLE-TITLE", b"\xff\xfe\xffLE-TITLE"), 2)[1].total_num_frames == 5


@pytest.mark.parametrize("expected", [{"metadata_errors": "ignore"}, {}], ids=["PyAV 18", "PyAV 19"])
def test_metadata_errors_are_ignored_where_pyav_has_the_option(video, monkeypatch, expected):
    """PyAV 19 no longer has this argument of `av.open`, and refuses it."""
    given = []

    def open_video(file, options, **others):
        given.append(others)
        return original(file, options=options)

    original = av.open
    monkeypatch.setattr(av, "open", open_video)
    monkeypatch.setattr(av.container, "Container", type("Container", (), dict.fromkeys(expected)))
    assert len(read(video, 2)[0]) == 1
    assert given == [expected]


def test_huge_frames_are_refused(folder):
    Image.new("L", (9000, 9000)).save(folder / "huge.png")
    with pytest.raises(VideoDecodeError, match=r"huge.png: .* more than 67108864 pixels"):
        read(folder / "huge.png", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as on Linux")
def test_huge_frames_take_no_memory(folder):
    """Refusing a file with huge frames never allocates one, not even to probe the file."""
    Image.new("L", (16000, 16000)).save(folder / "gigantic.png")
    script = (
        "import re, sys\n"
        "from region_learner.video_decoding_region_learner import VideoDecodeError, read_clip\n"
        "peak = lambda: int(re.search('VmHWM:[^0-9]*([0-9]+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "try: read_clip(sys.argv[1], lambda metadata: [0])\n"
        "except VideoDecodeError: print(peak() - before)\n"
    )
    done = run_fresh(script, str(folder / "gigantic.png"), isolated=False)
    assert int(done.stdout) < 100_000  # KiB; one frame has 256 million pixels


def remux(source: Path, target: Path, change, **options) -> Path:
    """Copies a video to `target`, passing each packet through `change(number, packet)`."""
    with av.open(str(source)) as container, av.open(str(target), "w", **options) as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size:
                packet = change(number, packet)
                packet.stream = stream
                output.mux(packet)
    return target


def check_every_frame(path: Path):
    frames = [frame for _, frame in decode_all(path)]
    for index, frame in enumerate(frames):
        clip, metadata = read(path, index)
        assert metadata.total_num_frames == len(frames)
        np.testing.assert_array_equal(clip[0], frame, err_msg=f"{path.name}, frame {index}")


@pytest.mark.parametrize(
    ("extension", "codec", "pix_fmt"),
    [
        ("mp4", "mpeg4", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("avi", "msmpeg4", "yuv420p"),
        ("mp4", "libx264", "yuv420p"),
        ("mkv", "mpeg2video", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("avi", "cinepak", "rgb24"),
        ("avi", "msvideo1", "rgb555le"),
    ],
)
def test_wrong_key_frame_flags_do_no_harm(folder, extension, codec, pix_fmt):
    """Some decoders start at any packet without an error and return a gray or black picture."""
    source = write_video(
        folder / f"keys_{codec}.{extension}", 20, codec, {"g": "10"}, pix_fmt=pix_fmt, width=160, height=120
    )

    def call_it_a_key(number, packet):
        packet.is_keyframe = True
        return packet

    check_every_frame(remux(source, folder / f"all_keys_{codec}.{extension}", call_it_a_key))


@pytest.mark.parametrize("extension", ["avi", "mp4"])
def test_mpeg4_packets_that_show_nothing_are_not_counted(folder, extension):
    """XviD writes such packets, with `vop_coded` 0, where nothing moves (ISO/IEC 14496-2, 6.2.5)."""
    source = write_video(folder / f"coded.{extension}", codec="mpeg4", options={"g": "10"})

    def leave_uncoded(number, packet):
        if number != 5:
            return packet
        data = bytes(packet)
        start = data.index(b"\0\0\1\xb6") + 4
        bits = "".join(f"{byte:08b}" for byte in data[start : start + 8])
        end = bits.index("0", 2) + 1 + 1 + 5 + 1  # after seconds, a marker, 5 bits of 25 steps per second, a marker
        assert bits[end] == "1"
        bits = bits[:end] + "00"
        bits += "1" * (-len(bits) % 8)
        other = av.Packet(data[:start] + int(bits, 2).to_bytes(len(bits) // 8, "big"))
        other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
        return other

    path = remux(source, folder / f"uncoded.{extension}", leave_uncoded)
    assert len(decode_all(path)) < 40
    check_every_frame(path)


@pytest.mark.parametrize("codec", ["libsvtav1", "libvpx-vp9", "libx264"])
def test_small_packets_of_other_codecs_show_frames(folder, codec, monkeypatch):
    """Frames without motion take only a few bytes, which is not a reason to decode the whole file."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot encode with {codec}")
    path = folder / f"still_{codec}.mkv"
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, codec, 25, {"g": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert min(packet.size for packet in container.demux(video=0) if packet.size) < 32
    monkeypatch.setattr(module, "_decode_all", None)
    check_every_frame(path)


def test_zeroed_packets_are_not_skipped(folder):
    """Zeroed packets look like frames that no other frame needs; the frames that need them must not be made up."""
    path = write_video(folder / "zeroed.mp4", count=25, **ENCODINGS["h264_pyramid.mp4"])
    frames = [frame for _, frame in decode_all(path)]
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    read_frames = 0
    for packet in packets[1:]:
        at = data.index(packet) + 4  # after the length of the packet
        zeroed = data[:at] + bytes(len(packet) - 4) + data[at + len(packet) - 4 :]
        for index in range(0, 25, 3):
            try:
                clip, _ = read(zeroed, index)
            except VideoDecodeError:
                continue
            read_frames += 1
            np.testing.assert_array_equal(clip[0], frames[index])
    assert read_frames > 50


def test_timestamps_that_start_over(folder):
    """The file joins two recordings whose timestamps overlap."""
    options = {"g": "10", "bf": "2", "x264-params": "scenecut=0"}
    first = write_video(folder / "first.ts", options=options)

    def later(number, packet):
        packet.pts, packet.dts = packet.pts + 26 * 3600 + 1234, packet.dts + 26 * 3600 + 1234
        return packet

    second = remux(first, folder / "second.ts", later, container_options={"avoid_negative_ts": "disabled"})
    path = folder / "both.ts"
    # The packet counters continue, so that nothing but the timestamps shows where the second recording begins.
    data = bytearray(second.read_bytes())
    last: dict[int, int] = {}
    whole = first.read_bytes()
    for start in range(0, len(whole), 188):
        if whole[start + 3] & 0x10:
            last[int.from_bytes(whole[start + 1 : start + 3], "big") & 0x1FFF] = whole[start + 3] & 15
    for start in range(0, len(data), 188):
        name = int.from_bytes(data[start + 1 : start + 3], "big") & 0x1FFF
        if data[start + 3] & 0x10:
            last[name] = (last.get(name, -1) + 1) % 16
        data[start + 3] = data[start + 3] & 0xF0 | last.get(name, 0)
    path.write_bytes(whole + data)
    check_every_frame(path)


def test_file_names_are_not_patterns(folder):
    for number in range(3):
        Image.new("RGB", (32, 32), (0, 0, 50 * number)).save(folder / f"picture{number}.png")
    Image.new("RGB", (32, 32), (200, 0, 0)).save(folder / "picture%d.png")
    clip, metadata = read(folder / "picture%d.png", 0)
    assert metadata.total_num_frames == 1
    assert clip[0, 0, 0].tolist() == [200, 0, 0]


def test_reading_has_a_time_limit(folder, monkeypatch):
    path = write_video(folder / "long.gif", codec="gif")
    monkeypatch.setattr(module, "_SECONDS", 0)
    with pytest.raises(VideoDecodeError, match=r"long.gif: reading it takes more than 0 seconds"):
        read(path, 39)


def test_frames_of_changing_size(folder):
    """The two halves of a raw H.264 stream have different sizes; all frames are returned in the size of the first."""
    data = b"".join(
        write_video(folder / f"{width}.h264", count=10, options={"bf": "0"}, width=width).read_bytes()
        for width in (64, 128)
    )
    clip = read(data, 2, 15)[0]
    assert clip.shape == (2, 48, 64, 3)


def test_names_that_look_like_protocols(folder, monkeypatch, video):
    monkeypatch.chdir(folder)
    for name in ("-dash.mp4", "concat:a|b.mp4", "100%d.mp4", "http:.mp4"):
        shutil.copy(video, name)
        assert read(name, 1)[1].total_num_frames == 40


def test_playlists_are_refused(folder, video):
    """Playlists, whose entries FFmpeg would open, and other text files are refused."""
    segment = folder / "segment.ts"
    write_video(segment)
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{segment}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"ffconcat version 1.0\nfile {video.name}\n",
        "drawing.nfo": "some text " * 100,
    }
    for name, text in lists.items():
        path = folder / name
        path.write_text(text)
        for source in (path, path.read_bytes()):
            with pytest.raises(VideoDecodeError, match=r"text, not a video or picture: it begins with"):
                read(source, 0)


def test_cover_pictures_are_not_videos(folder):
    path = folder / "song.mp3"
    if "libmp3lame" not in av.codecs_available:
        pytest.skip("this FFmpeg cannot encode MP3")
    cover = io.BytesIO()
    Image.fromarray(next(pictures(1))).save(cover, "png")
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44100)
        picture = container.add_stream("png", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic.value
        container.mux(picture.encode(av.VideoFrame.from_ndarray(next(pictures(1)), format="rgb24")))
        container.mux(picture.encode())
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 4410), np.int16), format="s16p", layout="stereo")
        samples.sample_rate = 44100
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    with pytest.raises(VideoDecodeError, match="no video stream"):
        read(path, 0)


def test_files_that_are_not_videos(processor, tmp_path):
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html>\n<title>404</title>" + "." * 5000)
    with pytest.raises(VideoDecodeError, match=r"page.mp4: text, not a video or picture: it begins with '<!DOCTYPE"):
        processor(tmp_path / "page.mp4")
    (tmp_path / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(VideoDecodeError, match=r"pointer.mp4: a Git LFS pointer"):
        processor(tmp_path / "pointer.mp4")
    with pytest.raises(VideoDecodeError, match=r": not a file$"):
        processor(str(tmp_path))
    with open(tmp_path / "page.mp4") as file, pytest.raises(TypeError, match=r"page.mp4 was opened as text"):
        processor(file)
    with pytest.raises(VideoDecodeError, match=r"^nowhere/x.mp4: no such file$"):
        processor("nowhere/x.mp4")


# Forms of input ------------------------------------------------------------------------------------------


def test_one_video_in_every_form(processor, video):
    frames = [frame for _, frame in decode_all(video)]
    array = np.stack(frames)
    with open(video, "rb") as file:
        mixture = [
            str(video),
            video,
            video.read_bytes(),
            file,
            {"path": str(video), "bytes": None},
            {"path": "not there.mp4", "bytes": video.read_bytes()},
            array,
            array.transpose(0, 3, 1, 2),
            torch.from_numpy(array).permute(0, 3, 1, 2),
            frames,
            [torch.from_numpy(frame) for frame in frames],
            [Image.fromarray(frame) for frame in frames],
            [video],
        ]
        output = processor(mixture, return_tensors="pt")["pixel_values_videos"]
    assert output.shape == (len(mixture), 4, 3, 32, 32)
    assert (output == output[0]).all()
    alone = processor(frames, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(alone, output[:1])
    batch = processor(np.stack([array, array]), return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(batch, output[:2])


def test_forms_of_images(processor):
    image = next(pictures(1))
    for form in (image, Image.fromarray(image), torch.from_numpy(image), [image], [[image]], image[None]):
        assert processor(form, num_frames=1, return_tensors="pt")["pixel_values_videos"].shape == (1, 1, 3, 32, 32)
    gray = image[..., 0]
    for form in ([gray] * 4, [Image.fromarray(gray)] * 4, np.stack([gray] * 4)[..., None]):
        output = processor(form, return_tensors="pt")["pixel_values_videos"]
        assert output.shape == (1, 4, 3, 32, 32)
    lone = processor([image, [image, image]], num_frames=2, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(lone[0], lone[1])


@pytest.mark.parametrize(("videos", "form"), [(3, "int"), ([None], "NoneType"), (np.zeros(3), "1 dimensions")])
def test_inputs_of_other_types_are_refused(processor, videos, form):
    with pytest.raises(TypeError, match=form):
        processor(videos)


def test_an_empty_list_is_refused(processor):
    with pytest.raises(ValueError, match="No videos"):
        processor([])


def test_frames_of_a_clip_must_have_one_size(processor):
    with pytest.raises(ValueError, match=r"the same size; got \[\(20, 20\), \(20, 30\)\]"):
        processor([Image.new("RGB", (20, 20)), Image.new("RGB", (30, 20))])


def test_clips_of_different_lengths_cannot_be_batched(processor):
    clips = [np.zeros((3, 40, 40, 3), np.uint8), np.zeros((5, 40, 40, 3), np.uint8)]
    with pytest.raises(ValueError, match="num_frames"):
        processor(clips, do_sample_frames=False, return_tensors="pt")
    assert [len(clip) for clip in processor(clips, do_sample_frames=False)["pixel_values_videos"]] == [3, 5]


def test_decode(processor, video):
    frames, metadata = processor.decode(video)
    assert frames.shape == (4, 3, 48, 64)
    assert frames.dtype == torch.uint8
    assert metadata.frames_indices == [4, 14, 24, 34]
    assert processor.decode(video, num_frames=2)[1].frames_indices == [9, 29]
    first = processor.decode(video, training=True, generator=torch.Generator().manual_seed(0))[1].frames_indices
    again = processor.decode(video, training=True, generator=torch.Generator().manual_seed(0))[1].frames_indices
    assert first == again
    with pytest.raises(ValueError, match="one video at a time; got 2"):
        processor.decode(np.zeros((2, 4, 48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="40 frames was given as one frame of a clip"):
        processor.decode([video, video])


def test_decode_of_frames_that_are_files(processor, tmp_path):
    """A list of image files is one clip, as in a row of a dataset."""
    for number, image in enumerate(pictures(3)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    frames, metadata = processor.decode(paths, sample_indices_fn=lambda metadata: np.array([2, 0]))
    assert metadata.frames_indices == [2, 0]
    expected = np.stack([np.array(Image.open(paths[index])) for index in (2, 0)])
    assert np.array_equal(frames.permute(0, 2, 3, 1), expected)


def test_fetch_videos(processor, video):
    videos, metadata = processor.fetch_videos([str(video)])
    assert videos[0].shape == (40, 3, 48, 64)
    assert metadata[0].frames_indices == list(range(40))


# Sampling ------------------------------------------------------------------------------------------------


def sample(total, **kwargs):
    return RegionLearnerVideoProcessor().sample_frames(VideoMetadata(total_num_frames=total, fps=25), **kwargs)


@pytest.mark.parametrize(("total", "num_frames"), [(4, 4), (5, 4), (9, 4), (300, 8), (301, 1), (17, 16), (30, 22)])
def test_middle_frames_of_segments(total, num_frames):
    borders = np.linspace(0, total, num_frames + 1).astype(int)
    expected = [(borders[i] + borders[i + 1] - 1) // 2 for i in range(num_frames)]
    assert sample(total, num_frames=num_frames).tolist() == expected


def test_key_frames_of_segments(folder):
    """Training draws key frames where a segment has some, and any frame where it has none."""
    options = {"g": "10", "bf": "2", "x264-params": "scenecut=0"}
    path = write_video(folder / "keys.mp4", count=80, options=options)
    processor = RegionLearnerVideoProcessor(num_frames=16, sampling="keyframes")
    drawn = [processor.decode(path, training=True)[1].frames_indices for _ in range(20)]
    for indices in drawn:
        for segment, index in enumerate(indices):
            assert 5 * segment <= index < 5 * segment + 5
            assert segment % 2 or index == 5 * segment  # every tenth frame is a key frame
    assert len({tuple(indices) for indices in drawn}) == 20
    fixed = processor.decode(path)[1].frames_indices
    assert fixed == RegionLearnerVideoProcessor(num_frames=16).decode(path)[1].frames_indices
    unknown = processor.sample_frames(VideoMetadata(80), training=True)
    assert any(index % 5 for index in unknown[::2])


def test_random_frames_of_segments():
    """In segments of 2, 3, 3 and 3 frames, every frame is drawn equally often, including the last."""
    generator = torch.Generator().manual_seed(0)
    draws = np.stack([sample(11, num_frames=4, training=True, generator=generator) for _ in range(3000)])
    for column, segment in zip(draws.T, [(0, 1), (2, 3, 4), (5, 6, 7), (8, 9, 10)]):
        counts = Counter(column.tolist())
        assert set(counts) == set(segment)
        assert all(abs(count - 3000 / len(segment)) < 130 for count in counts.values())  # 5 standard deviations


def test_random_frames_follow_the_generator():
    generator = torch.Generator().manual_seed(3)
    first, second = (sample(1000, training=True, generator=generator).tolist() for _ in range(2))
    generator.manual_seed(3)
    assert sample(1000, training=True, generator=generator).tolist() == first != second
    torch.manual_seed(3)
    first = sample(1000, training=True).tolist()
    torch.manual_seed(3)
    assert sample(1000, training=True).tolist() == first


def test_short_clips(processor, folder):
    path = write_video(folder / "short.mp4", count=3)
    output = processor(path, return_metadata=True, return_tensors="pt")
    assert output["video_metadata"][0].frames_indices == [0, 1, 2, 2]
    clip = output["pixel_values_videos"][0]
    assert torch.equal(clip[2], clip[3])
    assert not torch.equal(clip[1], clip[2])
    with pytest.raises(ValueError, match=r"3 frames.*num_frames=4") as error:
        processor(path, short_clips="error")
    assert "short.mp4: " in str(error.value)


def test_frames_per_second(processor, video):
    assert sample(100, fps=5).tolist() == [(5 * i + 5 * (i + 1) - 1) // 2 for i in range(20)]
    assert sample(3, fps=1).tolist() == [1]
    output = processor(video, fps=5, return_metadata=True, return_tensors="pt")  # the video lasts 1.6 seconds
    assert output["pixel_values_videos"].shape[1] == 8
    slow = RegionLearnerVideoProcessor(fps=5)
    assert slow.num_frames is None
    assert slow.decode(video)[0].shape[0] == 8
    assert slow(video, num_frames=2, return_tensors="pt")["pixel_values_videos"].shape[1] == 2
    with pytest.raises(ValueError, match="Give only one of"):
        processor(video, fps=5, num_frames=2)
    with pytest.raises(ValueError, match="fps must be greater than 0; got 0"):
        processor("not_decoded.mp4", fps=0)
    with pytest.raises(ValueError, match="fps must be greater than 0; got -5"):
        sample(100, fps=-5)
    with pytest.raises(ValueError, match="from a video with 25"):
        processor(video, fps=30)
    with pytest.raises(ValueError, match="video_metadata"):
        processor(np.zeros((8, 40, 40, 3), np.uint8), fps=5)


def test_metadata_of_arrays(processor):
    clip = np.zeros((8, 40, 50, 3), np.uint8)
    metadata = processor(clip, return_metadata=True)["video_metadata"][0]
    assert metadata == VideoMetadata(total_num_frames=8, height=40, width=50, frames_indices=[0, 2, 4, 6])
    with pytest.raises(ValueError, match="do_sample_frames=False"):
        processor(clip, video_metadata=[{"total_num_frames": 80, "fps": 10}])
    with pytest.raises(ValueError, match="video_metadata"):
        processor([clip, clip], video_metadata=[{"total_num_frames": 8}])


def test_without_sampling(processor, video):
    output = processor(video, do_sample_frames=False, return_tensors="pt")
    assert output["pixel_values_videos"].shape[1] == 40
    for options in ({"num_frames": 2}, {"fps": 1}):
        with pytest.raises(ValueError, match="do_sample_frames=False takes all frames: leave it out"):
            processor(video, do_sample_frames=False, **options)


# Transforms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(300, 455), (455, 300), (256, 342), (100, 120), (224, 224)])
def test_evaluation_transform_matches_the_reference_implementation(size, antialias):
    clip = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    original = transforms.Compose(
        [
            transforms.Resize(256, antialias=antialias),
            transforms.CenterCrop(256),
            transforms.Resize(224, antialias=antialias),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    processor = RegionLearnerVideoProcessor(num_frames=2, antialias=antialias)
    output = processor(clip, return_tensors="pt")["pixel_values_videos"]
    assert output.shape == (1, 2, 3, 224, 224)
    rounding = 2 / 255 / 0.224 if antialias else 1e-5  # each of two resizings is off by at most one level
    torch.testing.assert_close(output[0], original(clip / 255), atol=rounding, rtol=0)
    in_float = processor(clip / 255, return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(in_float[0], original(clip / 255), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(320, 180), (180, 320), (202, 150), (400, 90)])
def test_frames_of_large_videos_are_scaled_while_they_are_decoded(folder, width, height):
    """Frames equal those resized after decoding, up to rounding, and have the same size: nothing is resized twice."""
    path = write_video(folder / f"{width}x{height}.mp4", count=4, width=width, height=height, pix_fmt="yuv444p")
    processor = RegionLearnerVideoProcessor.for_image_size(32)
    scaled, metadata = processor.fetch_videos(path, scale=processor.scale_while_decoding({}))
    whole = processor.decode(path)[0]
    assert (metadata.height, metadata.width) == (height, width)
    expected = processor.resize(whole, SizeDict(shortest_edge=37), resample=processor.resample, antialias=True)
    assert scaled.shape == expected.shape
    assert (scaled.float() - expected.float()).abs().mean() < 2
    raw = {"do_normalize": False, "do_rescale": False, "return_tensors": "pt"}
    ours = processor(path, **raw)["pixel_values_videos"].float()
    theirs = processor(whole, **raw)["pixel_values_videos"].float()
    assert (ours - theirs).abs().mean() < 2


def test_training_scales_while_decoding_no_further_than_crops_allow(folder, monkeypatch):
    path = write_video(folder / "large.mp4", count=4, width=640, height=360)
    processor = RegionLearnerVideoProcessor(output_size=40, num_frames=4)
    seen = []

    def crop(self, video, scale, generator=None, original=RegionLearnerVideoProcessor.random_crop):
        seen.append((video.shape[-2:], original(self, video, scale, generator).shape[-2:]))
        return original(self, video, scale, generator)

    monkeypatch.setattr(RegionLearnerVideoProcessor, "random_crop", crop)
    for seed in range(50):
        processor(path, training=True, generator=torch.Generator().manual_seed(seed))
    assert {frame for frame, _ in seen} == {(66, 117)}  # 40 / sqrt(0.5 * 3 / 4), rounded up
    assert min(min(size) for _, size in seen) >= 40
    processor(path, training=True, do_resize=False)
    assert processor.scale_while_decoding({"do_resize": False}) is None
    assert processor.scale_while_decoding({"antialias": False}) is None
    assert processor.scale_while_decoding({"size": {"height": 40, "width": 60}}) is None
    with pytest.raises(ValueError, match="crop_scale must be two shares of the area"):
        processor(path, training=True, crop_scale=(0, 1))


def training_clip(processor, **kwargs):
    """Returns a training clip whose pixels hold their own coordinates, which show how it was cropped."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 120), torch.linspace(0, 1, 160), indexing="ij")
    clip = torch.stack([rows, columns, torch.zeros_like(rows)]).expand(4, 3, 120, 160)
    return processor(clip, training=True, do_rescale=False, do_normalize=False, return_tensors="pt", **kwargs)[
        "pixel_values_videos"
    ][0]


def test_training_transform(processor):
    generator = torch.Generator().manual_seed(0)
    flips, shares = 0, []
    for _ in range(120):
        output = training_clip(processor, generator=generator)
        assert output.shape == (4, 3, 32, 32)
        assert (output == output[:1]).all()  # the crop is the same for all frames
        rows, columns = output[0, 0], output[0, 1]
        flips += bool(columns[0, 0] > columns[0, -1])
        height = (rows[-1, 0] - rows[0, 0]).item() * 32 / 31  # from the centers of the outer pixels to their edges
        width = (columns[0, -1] - columns[0, 0]).abs().item() * 32 / 31
        shares.append(height * width)
        assert 0.72 < width * 160 / (height * 120) < 1.4
    assert 35 < flips < 85
    assert 0.45 < min(shares) < 0.55
    assert 0.85 < max(shares) < 1.02
    everything = training_clip(processor, crop_scale=(1, 1), flip_probability=0, generator=generator)
    assert everything.shape == (4, 3, 32, 32)
    for probability, mirrored in ((0, False), (1, True)):
        for _ in range(5):
            columns = training_clip(processor, flip_probability=probability)[0, 1]
            assert bool(columns[0, 0] > columns[0, -1]) is mirrored


def test_random_crops_are_distributed_like_those_of_torchvision(processor):
    image = torch.zeros(1, 90, 160)
    generator = torch.Generator().manual_seed(0)
    ours = torch.tensor([processor.random_crop(image, (0.5, 1.0), generator).shape[1:] for _ in range(3000)])
    torch.manual_seed(0)
    reference = transforms.RandomResizedCrop(32, scale=(0.5, 1.0))
    theirs = [reference.make_params([image]) for _ in range(3000)]
    theirs = torch.tensor([[params["height"], params["width"]] for params in theirs])
    torch.testing.assert_close(ours.double().mean(0), theirs.double().mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(ours.double().std(0), theirs.double().std(0), atol=0.5, rtol=0)


@pytest.mark.parametrize(("shape", "crop"), [((20, 2000), (20, 27)), ((2000, 20), (27, 20))])
def test_random_crop_of_a_strip(processor, shape, crop):
    assert processor.random_crop(torch.zeros(3, *shape), (0.5, 1.0)).shape == (3, *crop)


def test_training_follows_the_generator(processor, video):
    def output(seed):
        return processor(video, training=True, generator=torch.Generator().manual_seed(seed), return_tensors="pt")

    assert torch.equal(output(1)["pixel_values_videos"], output(1)["pixel_values_videos"])
    assert not torch.equal(output(1)["pixel_values_videos"], output(2)["pixel_values_videos"])


def test_rgb_conversion_is_optional(processor):
    clip = np.zeros((4, 40, 40, 1), np.uint8)
    output = processor(clip, do_convert_rgb=False, image_mean=0.0, image_std=1.0, return_tensors="pt")
    assert output["pixel_values_videos"].shape == (1, 4, 1, 32, 32)
    rgba = torch.full((4, 4, 40, 40), 0.5)
    converted = processor(rgba, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(converted, torch.full((1, 4, 3, 32, 32), 0.25))


def test_without_resizing(processor):
    clip = np.zeros((4, 40, 50, 3), np.uint8)
    assert processor(clip, do_resize=False, do_center_crop=False, return_tensors="np")[
        "pixel_values_videos"
    ].shape == (1, 4, 3, 40, 50)
    output = processor(clip, do_resize=False, training=True, return_tensors="pt")["pixel_values_videos"]
    assert output.shape == (1, 4, 3, 40, 50)


def test_a_saved_processor_takes_the_options_that_a_call_takes(video, tmp_path):
    """An option that replaces a default also replaces a saved value."""
    RegionLearnerVideoProcessor(num_frames=3).save_pretrained(tmp_path / "frames")
    RegionLearnerVideoProcessor(fps=2).save_pretrained(tmp_path / "fps")
    by_fps = RegionLearnerVideoProcessor.from_pretrained(tmp_path / "frames", fps=2)
    assert (by_fps.fps, by_fps.num_frames) == (2, None)
    by_number = RegionLearnerVideoProcessor.from_pretrained(tmp_path / "fps", num_frames=8)
    assert (by_number.fps, by_number.num_frames) == (None, 8)
    assert RegionLearnerVideoProcessor.from_pretrained(tmp_path / "fps").fps == 2
    cropped = RegionLearnerVideoProcessor.from_pretrained(tmp_path / "frames", crop_size=200)
    options = {"return_tensors": "pt"}
    expected = RegionLearnerVideoProcessor(num_frames=3)(video, crop_size=200, **options)["pixel_values_videos"]
    assert torch.equal(cropped(video, **options)["pixel_values_videos"], expected)
    with pytest.raises(ValueError, match="Give only one of num_frames and fps"):
        RegionLearnerVideoProcessor.from_pretrained(tmp_path / "fps", num_frames=8, fps=2)


def test_options_that_the_model_could_not_use_are_refused(video):
    processor = RegionLearnerVideoProcessor()
    for options in ({"do_pad": True}, {"data_format": "channels_last"}):
        with pytest.raises(ValueError, match="do_pad and data_format are not supported"):
            processor(video, **options)
    processor(video, do_pad=False, data_format="channels_first")


def test_the_number_of_frames_is_bounded_before_memory_is_allocated():
    """A file may claim any time stamps."""
    metadata = ClipMetadata(2, fps=25.0, times=np.array([0.0, 1e9]))
    processor = RegionLearnerVideoProcessor()
    for training in (False, True):
        with pytest.raises(ValueError, match=r"^1 frames per second of 2e\+09 seconds are 2000000000 frames, more"):
            processor.sample_frames(metadata, fps=1, start=0, training=training)


@pytest.mark.parametrize("options", [{"size": {"shortest_edge": 20}}, {"do_resize": False, "crop_size": 60}])
def test_frames_smaller_than_the_crop_are_refused(processor, options):
    """Frames smaller than the crop are an error; they do not get black borders."""
    with pytest.raises(ValueError, match=r"smaller than crop_size, .*: give a larger size or a smaller crop_size"):
        processor(np.full((4, 40, 50, 3), 255, np.uint8), **options)


# Sizes, saving and loading -------------------------------------------------------------------------------


def test_sizes():
    default = RegionLearnerVideoProcessor()
    assert default.size == {"shortest_edge": 256}
    assert default.crop_size == {"height": 256, "width": 256}
    assert default.output_size == {"height": 224, "width": 224}
    small = RegionLearnerVideoProcessor.for_image_size(112, num_frames=2)
    assert small.size == {"shortest_edge": 128}
    assert small.crop_size == {"height": 128, "width": 128}
    assert small.output_size == {"height": 112, "width": 112}
    assert small.num_frames == 2
    clip = np.zeros((4, 40, 50, 3), np.uint8)
    cropped = RegionLearnerVideoProcessor(size=20, crop_size=18)
    assert cropped.output_size is None
    assert cropped(clip, return_tensors="pt")["pixel_values_videos"].shape[-2:] == (18, 18)
    assert cropped(clip, training=True, return_tensors="pt")["pixel_values_videos"].shape[-2:] == (18, 18)
    assert default(clip, crop_size=18, return_tensors="pt")["pixel_values_videos"].shape[-2:] == (18, 18)
    wide = default(clip, output_size={"height": 16, "width": 24}, return_tensors="pt")["pixel_values_videos"]
    assert wide.shape[-2:] == (16, 24)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"size": 20, "crop_size": 18},
        {"fps": 2},
        {"short_clips": "error", "antialias": False, "crop_scale": [0.3, 0.8], "flip_probability": 0},
        {"training": True, "generator": torch.Generator()},
    ],
)
def test_saving_and_loading(tmp_path, kwargs):
    processor = RegionLearnerVideoProcessor(**kwargs)
    processor.save_pretrained(tmp_path)
    loaded = RegionLearnerVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**processor.to_dict(), **({"auto_map": loaded.auto_map} if loaded._auto_class else {})}
    saved = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert not saved.keys() & {"training", "generator"}
    assert not loaded.training
    assert loaded.generator is None
    for name in {"output_size", "num_frames", "fps", "short_clips", "antialias", "crop_scale", "flip_probability"}:
        assert getattr(loaded, name) == getattr(processor, name), name


def test_processors_can_be_pickled(processor):
    assert pickle.loads(pickle.dumps(processor)).to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"flip_probability": 2}, "flip_probability"),
        ({"short_clips": "black"}, 'short_clips must be "repeat" or "error"'),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 2, "fps": 1}, "Give only one of"),
        ({"fps": 0}, "fps must be greater than 0"),
        ({"num_frmaes": 9}, "'num_frmaes' is not an option .*; did you mean 'num_frames'"),
    ],
)
def test_wrong_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RegionLearnerVideoProcessor(**kwargs)


def test_misspelled_options_are_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'training'"):
        processor(np.zeros((4, 40, 50, 3), np.uint8), trainings=True)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'crop_scale'"):
        RegionLearnerVideoProcessor.from_pretrained(tmp_path, crop_scal=(0.8, 1.0))
    assert RegionLearnerVideoProcessor(image_processor_type="CLIPImageProcessor").num_frames == 4  # from saved files


def test_without_av_or_torchvision(tmp_path):
    """The source files, alone as in a checkpoint, name a missing package when it is needed."""
    (tmp_path / "alone").mkdir()
    for name in ("configuration", "video_decoding", "video_processing"):
        shutil.copy(Path(module.__file__).with_name(f"{name}_region_learner.py"), tmp_path / "alone")
    script = """
import importlib.util, sys
missing = ("av", "torchvision", "region_learner")
for name in [name for name in sys.modules if name.partition(".")[0] in missing]:
    del sys.modules[name]
sys.path.insert(0, "")
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in missing else find_spec(name, *rest)
from alone import video_processing_region_learner as module
for use in (lambda: module.read_clip(b"x", None), module.RegionLearnerVideoProcessor):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    result = run_fresh(script, isolated=False, cwd=tmp_path)
    assert result.stdout.splitlines() == [
        "Decoding videos needs PyAV: pip install av",
        "RegionLearnerVideoProcessor needs torchvision: pip install torchvision",
    ], result.stderr
