"""Tests frame times, spans and parts of videos against decoding the whole file and selecting in plain Python."""

import threading
import weakref
from fractions import Fraction
from itertools import islice, pairwise
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from region_learner import video_decoding_region_learner as module
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.video_decoding_region_learner import VideoDecodeError, iterate_parts, read_clip
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .test_processing import make_tokenizer
from .test_video_processing import DATA, needs_data, pictures, read, write_video

FILES = {
    "plain.mp4": {"options": {"g": "10", "bf": "3", "x264-params": "scenecut=0"}},
    "variable_rate.mp4": {"options": {"g": "10", "bf": "2"}, "times": lambda i: i + (i * i) // 7},
    "variable_rate.mkv": {"options": {"g": "7", "bf": "2"}, "times": lambda i: i + 9 * (i > 20)},
    "late_start.mp4": {"options": {"g": "10", "bf": "2"}, "shift": 7},
    "ntsc.ts": {"options": {"g": "10", "bf": "3"}, "rate": Fraction(30000, 1001)},
    "plain.avi": {"options": {"g": "10", "bf": "2"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "10", "lag-in-frames": "16"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "10", "bf": "2"}},
    "gif.gif": {"codec": "gif"},
    "one_frame.mp4": {"count": 1},
    "without_times.h264": {"options": {"g": "10", "bf": "2"}},
}


def decode_all(path):
    """Decodes a whole file. Returns the exact times of its frames in seconds from the first one, and the frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        decoded = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        base = stream.time_base
    stamps = [pts for pts, _ in decoded]
    if None in stamps or any(b <= a for a, b in pairwise(stamps)):
        times = [Fraction(index) / rate for index in range(len(stamps))]
    else:
        times = [(pts - stamps[0]) * base for pts in stamps]
    return times, np.stack([frame for _, frame in decoded])


def shown_at(times, at):
    """Returns the index of the last frame at or before a time, by linear search."""
    shown = 0
    for index, time in enumerate(times):
        if time <= at + Fraction(1, 10**6):
            shown = index
    return shown


def middle_frames(times, start, end, count):
    start, end = Fraction(start), Fraction(end)
    return [shown_at(times, start + (j + Fraction(1, 2)) * (end - start) / count) for j in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    known = {}

    def get(name):
        if name not in known:
            if FILES[name].get("codec", "libx264") not in av.codecs_available:
                pytest.skip(f"this FFmpeg cannot encode with {FILES[name]['codec']}")
            path = write_video(folder / name, **FILES[name])
            known[name] = path, *decode_all(path)
        return known[name]

    return get


@pytest.fixture
def processor():
    """A processor that leaves frames as they are."""
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    return RegionLearnerVideoProcessor(**dict.fromkeys(steps, False), output_size=None)


def metadata_of(source):
    return read_clip(source, lambda metadata: [0])[1]


# Times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_times_match_decoding_the_whole_file(files, name):
    path, times, _ = files(name)
    metadata = metadata_of(path)
    assert metadata.times.dtype == np.float64
    np.testing.assert_allclose(metadata.times, [float(time) for time in times], rtol=0, atol=1e-9)
    gaps = sorted(b - a for a, b in pairwise(times))
    usual = (gaps[len(gaps) // 2] + gaps[(len(gaps) - 1) // 2]) / 2 if gaps else Fraction(1, 25)
    assert metadata.end == pytest.approx(float(times[-1] + usual), abs=1e-9)
    everything = read_clip(path, lambda metadata: range(metadata.total_num_frames))[1]
    np.testing.assert_array_equal(everything.timestamps, metadata.times)


def test_times_without_a_list_of_packets(files, monkeypatch):
    """If the whole file has to be decoded, times are taken from the frames."""
    monkeypatch.setattr(module, "_index_packets", lambda *arguments: None)
    for name in ("variable_rate.mp4", "late_start.mp4", "without_times.h264", "gif.gif"):
        path, times, _ = files(name)
        np.testing.assert_allclose(metadata_of(path).times, [float(time) for time in times], rtol=0, atol=1e-9)


def test_times_count_from_the_first_frame_that_is_shown(tmp_path):
    """In this file, sound begins before the pictures, and an edit list cuts out the first pictures."""
    path = tmp_path / "cut.mp4"
    source = write_video(tmp_path / "uncut.mp4", options={"g": "20", "bf": "0"})
    with (
        av.open(str(source)) as container,
        av.open(str(path), "w", container_options={"avoid_negative_ts": "disabled"}) as output,
    ):
        sound = output.add_stream("aac", rate=16000)
        stream = output.add_stream_from_template(container.streams.video[0])
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
        samples.sample_rate, samples.pts = 16000, 0
        output.mux(sound.encode(samples))
        output.mux(sound.encode())
        for packet in container.demux(video=0):
            if packet.size:
                offset = 7 * packet.duration
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, stream
                output.mux(packet)
    _, frames = decode_all(path)
    assert len(frames) == 33
    metadata = metadata_of(path)
    np.testing.assert_allclose(metadata.times, np.arange(33) / 25, atol=1e-9)
    assert metadata.end == pytest.approx(33 / 25)


def test_times_of_pictures(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    metadata = metadata_of(tmp_path / "picture.png")
    assert metadata.times.tolist() == [0.0]
    assert metadata.end == 0.04
    images = [Image.fromarray(image) for image in pictures(3)]
    images[0].save(tmp_path / "moving.webp", save_all=True, append_images=images[1:], duration=[100, 350, 50])
    metadata = metadata_of(tmp_path / "moving.webp")
    np.testing.assert_allclose(metadata.times, [0, 0.1, 0.45])


def test_metadata_remains_comparable(files):
    """An array among the fields would make `==` ambiguous."""
    path, *_ = files("plain.mp4")
    first, second = metadata_of(path), metadata_of(path)
    assert first is not second
    assert first == second
    assert first != metadata_of(files("variable_rate.mp4")[0])


# Spans ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_frames_of_spans(files, name, processor):
    path, times, frames = files(name)
    length = metadata_of(path).end
    rng = np.random.default_rng(0)
    spans = [(0, length), (0, length / 3), (length / 2, length), (length * 0.41, length * 0.42)]
    spans += [tuple(sorted(rng.uniform(0, length, 2))) for _ in range(4)]
    for start, end in spans:
        for count in (1, 4, 7):
            expected = middle_frames(times, start, end, count)
            metadata = metadata_of(path)
            assert processor.span_frames(metadata, start, end, count).tolist() == expected
            values = processor(path, start=start, end=end, num_frames=count, return_tensors="pt").pixel_values_videos
            np.testing.assert_array_equal(values[0].permute(0, 2, 3, 1).numpy(), frames[expected])
    decoded, metadata = processor.decode(path, start=length / 4, num_frames=3)
    assert metadata.frames_indices == middle_frames(times, length / 4, length, 3)
    np.testing.assert_array_equal(decoded.permute(0, 2, 3, 1).numpy(), frames[metadata.frames_indices])


def test_rounding_does_not_matter(processor):
    """Windows on a common grid share frames, though their times are rounded differently."""
    for rate in (Fraction(10), Fraction(25), Fraction(30000, 1001), Fraction(12, 5)):
        times = [index / rate for index in range(3000)]
        metadata = module.ClipMetadata(3000, fps=float(rate), times=np.array([float(time) for time in times]))
        for count, step in ((4, 2), (5, 3)):
            window = 2 * count / rate  # so that the middles of segments are exactly at frames
            for k in range(0, 300, 7):
                start = k * step / rate
                exact = [int((start + (j + Fraction(1, 2)) * window / count) * rate) for j in range(count)]
                found = processor.span_frames(metadata, float(start), float(start) + float(window), count)
                assert found.tolist() == exact


def test_one_span_per_video(files, processor):
    (first, times, frames), (second, other_times, other_frames) = files("plain.mp4"), files("variable_rate.mp4")
    given = {"start": [0.4, None], "end": 1.2, "num_frames": 4, "return_tensors": "pt"}
    values = processor([first, second], **given).pixel_values_videos.permute(0, 1, 3, 4, 2).numpy()
    np.testing.assert_array_equal(values[0], frames[middle_frames(times, 0.4, 1.2, 4)])
    np.testing.assert_array_equal(values[1], other_frames[middle_frames(other_times, 0, 1.2, 4)])
    for starts in (np.array([0.4, 0]), torch.tensor([0.4, 0.0], dtype=torch.float64), (np.float64(0.4), 0)):
        given["start"] = starts
        np.testing.assert_array_equal(
            processor([first, second], **given).pixel_values_videos, values.transpose(0, 1, 4, 2, 3)
        )


def test_without_a_span_nothing_changes(files, processor):
    path, _, frames = files("variable_rate.mp4")
    whole = [(index * 40 // 4 + (index + 1) * 40 // 4 - 1) // 2 for index in range(4)]
    for span in ({}, {"start": None, "end": None}, {"start": [None], "end": [None]}):
        values = processor([path], num_frames=4, return_tensors="pt", **span).pixel_values_videos
        np.testing.assert_array_equal(values[0].permute(0, 2, 3, 1).numpy(), frames[whole])


def test_frames_per_second_within_a_span(files, processor):
    path, times, frames = files("plain.mp4")
    for start, end, fps in ((0.2, 1.4, 5), (0.2, 1.4, 25), (0.1, 0.15, 2), (0, 0.3, 10)):
        count = max(1, int(Fraction(str(end)) * fps - Fraction(str(start)) * fps))
        _, metadata = processor.decode(path, sample_indices_fn=None, start=start, end=end, num_frames=count)
        values = processor(path, start=start, end=end, fps=fps, return_tensors="pt").pixel_values_videos
        expected = middle_frames(times, start, end, count)
        assert metadata.frames_indices == expected
        np.testing.assert_array_equal(values[0].permute(0, 2, 3, 1).numpy(), frames[expected])
    with pytest.raises(ValueError, match="Cannot sample 30 frames per second from a video with 25"):
        processor(path, start=0, end=1, fps=30)


def test_all_frames_of_a_span(files):
    times = files("variable_rate.mp4")[1]
    metadata = metadata_of(files("variable_rate.mp4")[0])
    processor = RegionLearnerVideoProcessor(num_frames=None)
    for start, end in (
        (0.5, 2.0),
        (float(times[9]), float(times[12])),
        (float(times[9]) + 0.01, float(times[9]) + 0.02),
    ):
        shown = [
            index
            for index, time in enumerate(times)
            if float(time) < end - 1e-6 and (index + 1 == len(times) or float(times[index + 1]) > start + 1e-6)
        ]
        assert processor.sample_frames(metadata, start=start, end=end).tolist() == shown
        assert processor.span_frames(metadata, start, end).tolist() == shown


@pytest.mark.parametrize("sampling", ["segments", "keyframes"])
def test_training_draws_from_segments_of_the_span(files, processor, sampling):
    path, times, _ = files("variable_rate.mp4")
    metadata = metadata_of(path)
    start, end, count = 0.3, 4.1, 3
    generator = torch.Generator().manual_seed(0)
    draws = np.array(
        [
            processor.sample_frames(metadata, count, None, True, generator, sampling=sampling, start=start, end=end)
            for _ in range(400)
        ]
    )
    for j in range(count):
        low, high = (start + (end - start) * (j + k) / count for k in (0, 1))
        allowed = {index for index, time in enumerate(times) if low <= time < high}
        assert allowed
        if sampling == "keyframes":
            allowed = allowed & set(metadata.keyframes) or allowed
        assert set(draws[:, j]) == allowed
    short = processor.sample_frames(
        metadata, 4, None, True, generator, start=float(times[-2]) + 0.02, end=float(times[-1])
    )
    assert short.tolist() == [38] * 4  # no frame begins in these segments


def test_short_spans(files, processor):
    path, _, frames = files("plain.mp4")
    values = processor(path, start=0.4, end=0.48, num_frames=4, return_tensors="pt").pixel_values_videos
    np.testing.assert_array_equal(values[0].permute(0, 2, 3, 1).numpy(), frames[[10, 10, 11, 11]])
    assert len(processor(path, start=0.4, end=0.56, num_frames=4, short_clips="error").pixel_values_videos[0]) == 4
    for training in (False, True):
        with pytest.raises(ValueError, match=r"plain.mp4: The span of 0.4-0.5 s has 3 frames, but num_frames=4"):
            processor(path, start=0.4, end=0.5, num_frames=4, short_clips="error", training=training)


WRONG = {
    "ends at 1.6 s": [{"start": 1.6}, {"end": 1.65}, {"start": 0.5, "end": 3}, {"start": 1.62, "end": 1.63}],
    "start=1 must be less than end=1": [{"start": 1, "end": 1}],
    "start=2 must be less than end=1": [{"start": 2, "end": 1}],
    "start=-0.5 must be a number of seconds": [{"start": -0.5}],
    "end=nan must be a number of seconds": [{"end": float("nan")}],
    "end=inf must be a number of seconds": [{"end": float("inf")}],
    "start='3' must be a number of seconds": [{"start": "3"}],
    "start=True must be a number of seconds": [{"start": True}],
}


@pytest.mark.parametrize("message", WRONG)
def test_invalid_spans_are_refused(files, processor, message):
    path, *_ = files("plain.mp4")
    for span in WRONG[message]:
        with pytest.raises(ValueError, match=f"plain.mp4: .*{message}") as error:
            processor([path], **span)
        assert "\n" not in str(error.value)
    assert len(processor([path], end=1.64).pixel_values_videos) == 1  # the end may be one frame interval too late


def test_other_mistakes_with_spans(files, processor):
    path, *_ = files("plain.mp4")
    with pytest.raises(ValueError, match="3 values of start were given for 2 videos"):
        processor([path, path], start=[0, 1, 2])
    with pytest.raises(ValueError, match="do_sample_frames=True"):
        processor([path], start=1, do_sample_frames=False)
    with pytest.raises(ValueError, match="sample_indices_fn"):
        processor.decode(path, start=1, sample_indices_fn=lambda metadata: [0])
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        processor.span_frames(metadata_of(path), 0, 1, 0)


def test_spans_of_videos_given_as_frames(processor):
    frames = np.stack(list(pictures(20)))
    known = VideoMetadata(total_num_frames=20, fps=10)
    values = processor([frames], start=0.5, end=1.5, num_frames=5, video_metadata=[known], return_tensors="pt")
    expected = frames[[6, 8, 10, 12, 14]]
    np.testing.assert_array_equal(values.pixel_values_videos[0].permute(0, 2, 3, 1).numpy(), expected)
    with pytest.raises(ValueError, match=r"videos\[1\]: start and end need the times of the frames.*fps"):
        processor([frames, frames], start=[None, 0.5])
    with pytest.raises(ValueError, match=r"videos\[0\]: The span of 0-3 s is not in the video, which ends at 2 s"):
        processor([frames], end=3, video_metadata=[known])


def test_spans_through_the_processor_of_text_and_videos(files, tmp_path):
    path, *_ = files("plain.mp4")
    video_processor = RegionLearnerVideoProcessor.for_image_size(32)
    processor = RegionLearnerProcessor(video_processor, make_tokenizer())
    both = processor(text=["a dog", "a cat"], videos=[path, path], start=[0.2, 0.9], end=[0.8, None])
    for row, span in zip(both["pixel_values_videos"], ({"start": 0.2, "end": 0.8}, {"start": 0.9})):
        alone = video_processor(path, return_tensors="pt", **span)
        torch.testing.assert_close(row, alone.pixel_values_videos[0], rtol=0, atol=0)
    nested = processor(videos=[path], videos_kwargs={"start": 0.2, "end": 0.8})
    torch.testing.assert_close(nested["pixel_values_videos"][0], both["pixel_values_videos"][0], rtol=0, atol=0)
    for given in ({"images": Image.new("RGB", (32, 32))}, {"text": "a dog"}):
        with pytest.raises(ValueError, match="start and end select a span of videos"):
            processor(**given, end=3)
    video_processor.start = 0.2
    assert not {"start", "end"} & set(video_processor.to_dict())


# Parts ---------------------------------------------------------------------------------------------------


def gather(source, indices, **options):
    """Returns the frames by index and the metadata, both since the last start, and the number of starts."""
    current, frames, order, starts = None, {}, [], 0
    for metadata, part, images in iterate_parts(source, lambda metadata: indices, **options):
        if metadata is not current:
            current, frames, order, starts = metadata, {}, [], starts + 1
        assert 1 <= len(part) == len(images) <= options.get("max_frames", 256)
        assert part.dtype == np.int64
        frames.update(zip(part.tolist(), images))
        order += part.tolist()
    assert order == sorted(set(indices))
    return frames, current, starts


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_parts_are_the_frames_of_a_clip(files, name, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(module, "_MAX_KEPT", 0)
    path, _, frames = files(name)
    last = len(frames) - 1
    for indices in (range(last + 1), [3, 4, 17, 3, 18, 33], [last]):
        indices = [min(index, last) for index in indices]
        clip, of_clip = read(path, *indices)
        for max_frames in (1, 4, 256):
            parts, metadata, starts = gather(path, indices, max_frames=max_frames)
            assert metadata == of_clip
            assert starts == 1 or name in ("plain.avi", "mpeg2.mpg")  # their time stamps, or seeking, are inexact
            for index, frame in zip(indices, clip):
                np.testing.assert_array_equal(parts[index], frame)
                np.testing.assert_array_equal(parts[index], frames[index])


@pytest.mark.parametrize("max_frames", [1, 3, 7, 100])
def test_parts_decode_nothing_twice(files, monkeypatch, max_frames):
    path, *_ = files("plain.mp4")
    decoded, opened, listed = [], [], []

    def counted(*args, original=module._decode_from):
        for frame in original(*args):
            decoded.append(frame.pts)
            yield frame

    original_open, original_list = module._open_video, module._index_packets
    monkeypatch.setattr(module, "_decode_from", counted)
    monkeypatch.setattr(module, "_open_video", lambda file: opened.append(file) or original_open(file))
    monkeypatch.setattr(module, "_index_packets", lambda *args: listed.append(args) or original_list(*args))
    gather(path, range(40), max_frames=max_frames)
    assert len(decoded) == len(set(decoded)) == 40
    assert len(opened) == len(listed) == 1


def test_parts_of_animations(tmp_path):
    images = [Image.fromarray(image) for image in pictures(9)]
    images[0].save(tmp_path / "moving.webp", save_all=True, append_images=images[1:], lossless=True, duration=100)
    parts, _, _ = gather(tmp_path / "moving.webp", [7, 0, 2, 5, 8], max_frames=2)
    for index, frame in parts.items():
        np.testing.assert_array_equal(frame, np.asarray(images[index]))


@pytest.mark.parametrize("shown", [40, 33])
def test_parts_start_over_if_decoding_contradicts_the_list(files, monkeypatch, shown):
    """Seeking the third group of pictures goes wrong. Decoding the whole file may give another number of frames."""
    path, _, frames = files("plain.mp4")
    monkeypatch.setattr(module, "_MAX_KEPT", 0)
    read_from, decode_whole = module.PacketList.read_from, module._decode_all

    def wrong(self, stream, position):
        return read_from(self, stream, min(position + 10 * (position >= 20), len(self.times) - 1))

    monkeypatch.setattr(module.PacketList, "read_from", wrong)
    monkeypatch.setattr(module, "_decode_all", lambda *args: islice(decode_whole(*args), shown))
    runs = []
    for metadata, indices, images in iterate_parts(
        path, lambda metadata: range(metadata.total_num_frames), max_frames=6
    ):
        if not runs or runs[-1][0] is not metadata:
            runs.append((metadata, {}))
        runs[-1][1].update(zip(indices.tolist(), images))
    (first, before), (second, after) = runs
    assert list(before) == list(range(18))  # the fourth part has frames of the third group
    assert list(after) == list(range(shown)) == second.frames_indices
    assert (first == second) == (shown == 40)
    for index, frame in after.items():
        np.testing.assert_array_equal(frame, frames[index])


def test_damage_is_noticed_in_any_thread(tmp_path):
    """FFV1's decoder only logs damage. Each part is read in another thread, alternating with an intact video."""
    path = write_video(tmp_path / "whole.mkv", codec="ffv1", options={"slicecrc": "1", "level": "3", "g": "10"})
    _, frames = decode_all(path)
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0) if packet.size][35]
    data = bytearray(path.read_bytes())
    data[data.index(packet) + len(packet) // 2] ^= 0xFF
    (tmp_path / "damaged.mkv").write_bytes(data)
    level = av.logging.get_level()
    parts, others = (
        iterate_parts(tmp_path / name, lambda metadata: range(40), max_frames=5)
        for name in ("damaged.mkv", "whole.mkv")
    )
    found, errors = [], []

    def ask():
        try:
            found.append(next(parts))
        except VideoDecodeError as error:
            errors.append(str(error))

    while not errors:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        next(others, None)
        assert av.logging.get_level() == level
    assert len(found) == 14  # seven parts before the damage, and again after starting over
    assert "damaged.mkv: frame 35 is damaged" in errors[0]
    for _, indices, images in found:
        np.testing.assert_array_equal(images, frames[indices])
    assert list(others) == []


def test_parts_have_their_own_size_limit(files, monkeypatch):
    path, *_ = files("plain.mp4")
    references = []
    for _, _, images in iterate_parts(path, lambda metadata: range(40), max_frames=10):
        references.append(weakref.ref(images))
        del images
        assert references[-1]() is None  # the generator does not keep it
    frame_bytes = 48 * 64 * 3
    monkeypatch.setattr(module, "_MAX_CLIP", 3 * frame_bytes)
    sizes = [len(part) for _, part, _ in iterate_parts(path, lambda metadata: range(40))]
    assert sizes == [3] * 13 + [1]
    with pytest.raises(VideoDecodeError, match="40 frames of 64x48 pixels take more than"):
        read_clip(path, lambda metadata: range(40))
    monkeypatch.setattr(module, "_MAX_CLIP", frame_bytes - 1)
    with pytest.raises(VideoDecodeError, match="1 frames of 64x48 pixels take more than"):
        next(iterate_parts(path, lambda metadata: range(40)))


def test_parts_have_their_own_time_limit(files, monkeypatch):
    """Every reading of the clock takes one second here."""
    path, *_ = files("plain.mp4")
    seconds = iter(range(10**6))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(module, "_SECONDS", 60)
    with pytest.raises(VideoDecodeError, match="more than 60 seconds"):
        read_clip(path, lambda metadata: range(40))
    assert sum(len(part) for _, part, _ in iterate_parts(path, lambda metadata: range(40), max_frames=4)) == 40


def test_invalid_selections_are_refused(files):
    path, *_ = files("plain.mp4")
    for select in (read_clip, lambda *args: list(iterate_parts(*args))):
        with pytest.raises(ValueError, match=r"plain.mp4: no frames were selected"):
            select(path, lambda metadata: [])
        with pytest.raises(ValueError, match=r"plain.mp4: frames \[40\] were selected from a video of 40"):
            select(path, lambda metadata: [3, 40])
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        next(iterate_parts(path, lambda metadata: [0], max_frames=0))


@needs_data
@pytest.mark.parametrize("name", ["nasa_13013.mp4", "big_buck_bunny_432_433.webm", "circle.gif"])
def test_odd_videos(name, processor):
    path = DATA / "odd_videos" / name
    times, frames = decode_all(path)
    metadata = metadata_of(path)
    np.testing.assert_allclose(metadata.times, [float(time) for time in times], rtol=0, atol=1e-9)
    chosen = processor.span_frames(metadata, metadata.end / 3, metadata.end / 2, 9)
    assert chosen.tolist() == middle_frames(times, metadata.end / 3, metadata.end / 2, 9)
    parts, _, _ = gather(path, chosen.tolist(), max_frames=4)
    for index, frame in parts.items():
        np.testing.assert_array_equal(frame, frames[index])
