"""Tests pictures and frames in every form: a path, an opened picture and an array of it give equal pixels."""

import io
import shutil
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from region_learner import video_decoding_region_learner as module
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.video_decoding_region_learner import VideoDecodeError, picture_levels, read_clip
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .crafted_videos import box, fragment_without_bytes, large_gif, replace_boxes, samples_without_bytes
from .test_processing import make_tokenizer
from .test_video_processing import pictures, write_video


@pytest.fixture
def processor():
    return RegionLearnerVideoProcessor.for_image_size(32, num_frames=1)


@pytest.fixture(scope="module")
def photograph():
    """Returns a picture of 640 x 480 pixels with detail everywhere, like a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((640, 480))
    return Image.fromarray((np.array(coarse) * 0.8 + rng.integers(0, 50, (480, 640, 3))).astype(np.uint8))


def frames_of(source):
    return read_clip(source, lambda metadata: range(metadata.total_num_frames))[0]


def values(processor, *clips, **options):
    """Returns the pixel values of a call without normalization."""
    options = {"do_normalize": False, "return_tensors": "pt"} | options
    return processor(*clips, **options)["pixel_values_videos"]


# Picture files -------------------------------------------------------------------------------------------

KINDS = {
    "baseline.jpg": {},
    "progressive.jpeg": {"progressive": True},
    "restart.jpg": {"restart_marker_rows": 1},
    "cmyk.jpg": {"mode": "CMYK"},
    "gray.jpg": {"mode": "L"},
    "full_chroma.jpg": {"subsampling": 0},
    "rgb.png": {},
    "rgba.png": {"mode": "RGBA"},
    "gray_alpha.png": {"mode": "LA"},
    "palette.png": {"mode": "P"},
    "bits.png": {"mode": "1"},
    "lossy.webp": {},
    "lossless.webp": {"lossless": True},
    "alpha.webp": {"mode": "RGBA"},
    "still.gif": {"mode": "P"},
    "rgb.bmp": {},
    "rgb.tif": {},
    "cmyk.tif": {"mode": "CMYK"},
    "rgb.ppm": {},
    "rgb.jp2": {},
    "rgb.avif": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_path_and_an_opened_picture_give_equal_pixels(tmp_path, photograph, processor, name):
    options = dict(KINDS[name])
    image = photograph.convert(options.pop("mode", "RGB"))
    if image.mode in ("RGBA", "LA"):
        image.putalpha(photograph.convert("L"))
    image.save(tmp_path / name, **options)
    assert (tmp_path / name).stat().st_size > 2048
    with Image.open(tmp_path / name) as opened:
        expected = np.array(opened.convert("RGBA")).astype(float)
        given = values(processor, opened)
    expected = expected[..., :3] * expected[..., 3:] / 255
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        frames = frames_of(source)
        assert frames.shape == (1, 480, 640, 3)
        assert np.abs(frames[0] - expected).max() <= 0.5
        assert torch.equal(values(processor, source), given)


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "A.JPG",
        "a",
        "a.png",
        "a.mp4",
        "a*.jpg",
        "a?.jpg",
        "{a,b}.jpg",
        "a[1].jpg",
        "a%d.jpg",
        "a%03d.mp4",
        "ä.h",
    ],
)
def test_names_and_extensions_do_not_matter(tmp_path, photograph, name):
    photograph.save(tmp_path / "photograph", "JPEG")
    shutil.copy(tmp_path / "photograph", tmp_path / name)
    np.testing.assert_array_equal(frames_of(tmp_path / name), frames_of(tmp_path / "photograph"))
    video = write_video(tmp_path / "video.mpg", count=3, codec="mpeg1video")
    shutil.copy(video, tmp_path / name)
    np.testing.assert_array_equal(frames_of(tmp_path / name), frames_of(video))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_orientation_of_paths_and_opened_pictures(tmp_path, photograph, processor, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photograph.{extension}"
    photograph.resize((64, 48)).save(path, exif=exif)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(picture_levels(opened), np.array(ImageOps.exif_transpose(opened).convert("RGB")))
        assert torch.equal(values(processor, opened), values(processor, path))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grayscale(tmp_path, processor, extension):
    gray = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(gray).save(tmp_path / f"gray.{extension}")
    frame = frames_of(tmp_path / f"gray.{extension}")[0]
    np.testing.assert_array_equal(frame, np.repeat(np.round(gray / 257).astype(np.uint8)[..., None], 3, axis=-1))
    with Image.open(tmp_path / f"gray.{extension}") as opened:
        assert torch.equal(values(processor, opened), values(processor, tmp_path / f"gray.{extension}"))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_ambiguous_pictures_are_refused(tmp_path, processor, mode):
    image = Image.new(mode, (40, 40))
    with pytest.raises(ValueError, match=f"mode '{mode}'"):
        processor(image)
    image.save(tmp_path / "image.tif")
    with pytest.raises(VideoDecodeError, match=f"image.tif: a PIL image of mode '{mode}'"):
        processor(tmp_path / "image.tif")


@pytest.mark.parametrize("kind", ["webp", "avif"])
def test_animations_are_videos(tmp_path, kind):
    """All frames of animated WebP and AVIF files can be read, with their times."""
    images = [Image.fromarray(image) for image in pictures(5)]
    options = {"lossless": True} if kind == "webp" else {"quality": 100}
    images[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=images[1:], duration=200, **options)
    clip, metadata = read_clip(tmp_path / f"a.{kind}", lambda metadata: [4, 0, 2, 2])
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (5, 5, 1)
    expected = [np.array(images[index]).astype(int) for index in (4, 0, 2, 2)]
    assert np.abs(clip - expected).mean() < (1e-9 if kind == "webp" else 3)
    frames, times = zip(*module.iterate_frames(tmp_path / f"a.{kind}"))
    assert times == (0, 0.2, 0.4, 0.6, 0.8)
    np.testing.assert_array_equal(frames[2], clip[2])


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_opened_animation_is_not_a_frame(tmp_path, processor, kind):
    images = [Image.fromarray(image) for image in pictures(3)]
    images[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=images[1:])
    with Image.open(tmp_path / f"a.{kind}") as opened:
        with pytest.raises(ValueError, match="of 3 frames was given as one frame: give its path"):
            processor(opened)
        assert values(processor, opened.copy()).shape == (1, 1, 3, 32, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_damaged_pictures(tmp_path, photograph, kind):
    file = io.BytesIO()
    photograph.save(file, kind)
    data = file.getvalue()
    for damaged in (data[: len(data) // 2], data[: len(data) // 2] + bytes(len(data) // 2)):
        if damaged != data[: len(data) // 2] and kind in ("WEBP", "TIFF", "AVIF"):
            continue  # these formats have no checksums, so any bytes may be a valid picture
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(VideoDecodeError, match=r"damaged: .*") as error:
            frames_of(tmp_path / "damaged")
        assert "\n" not in str(error.value)


# Frames given as arrays ----------------------------------------------------------------------------------


def test_floats_are_levels_divided_by_255(processor):
    clip = np.stack(list(pictures(4)))
    expected = values(processor, clip, antialias=False, num_frames=4)
    for form in (
        clip / 255,
        (clip / 255).astype(np.float32),
        torch.from_numpy(clip).permute(0, 3, 1, 2) / 255,
        list(clip / 255),
    ):
        torch.testing.assert_close(values(processor, form, antialias=False, num_frames=4), expected, atol=1e-5, rtol=0)
    normalized = processor(clip / 255, antialias=False, return_tensors="pt", num_frames=4)["pixel_values_videos"]
    levels = values(processor, clip / 255, antialias=False, rescale_factor=1.0, num_frames=4)
    torch.testing.assert_close(processor.normalize_clips(levels), normalized)
    assert levels.max() > 200


def test_floats_that_rounding_takes_out_of_range(processor):
    """Resizing in floating point may slightly leave the range 0..1. Values further outside are still refused."""
    white = torch.nn.functional.interpolate(torch.ones(1, 3, 97, 61), (40, 40), mode="bilinear", antialias=True)
    assert white.max() > 1
    for clip in (white, -(white - 1), white.half(), white.bfloat16()):
        levels = values(processor, clip, num_frames=1)
        assert levels.min() > -1e-5
        assert levels.max() < 1 + 1e-5
    with pytest.raises(ValueError, match=r"within 0\.\.1; got values from 0 to 1\.01"):
        processor(torch.linspace(0, 1.01, 4800).reshape(1, 3, 40, 40))


@pytest.mark.filterwarnings("error::UserWarning")
def test_arrays_that_torch_does_not_accept(processor):
    """These are read-only arrays (such as those of files and datasets), other byte orders, and 80-bit floats."""
    levels = np.stack(list(pictures(2)))
    read_only = np.frombuffer(levels.tobytes(), np.uint8).reshape(levels.shape)
    assert torch.equal(values(processor, read_only), values(processor, levels))
    expected = values(processor, levels / 255)
    for kind in (">f4", ">f8", np.longdouble):
        torch.testing.assert_close(values(processor, (levels / 255).astype(kind)), expected)


def test_levels_are_not_normalized_as_if_within_0_to_1(processor, tmp_path, photograph):
    """Frames of 0..255 normalized with a mean and standard deviation for 0..1 would be nearly white."""
    photograph.save(tmp_path / "a.png")
    clip = np.stack(list(pictures(2)))
    for frames in (clip, tmp_path / "a.png"):
        with pytest.raises(ValueError, match=r"Frames of 0\.\.255 would be normalized with an image_std"):
            processor(frames, do_rescale=False)
    with pytest.raises(ValueError, match=r"Frames of 0\.\.255 would be normalized"):
        processor(clip / 255, rescale_factor=1.0)
    unscaled = RegionLearnerVideoProcessor.for_image_size(32, num_frames=1, do_rescale=False)
    with pytest.raises(ValueError, match=r"Frames of 0\.\.255 would be normalized"):
        unscaled.normalize_clips(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    # Intended uses still work: floats without rescaling, and statistics for 0..255.
    expected = processor(clip / 255, return_tensors="pt")["pixel_values_videos"]
    given = processor(clip / 255, do_rescale=False, return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(given, expected)
    of_levels = {name: [255 * value for value in getattr(processor, name)] for name in ("image_mean", "image_std")}
    given = processor(clip, do_rescale=False, return_tensors="pt", **of_levels)["pixel_values_videos"]
    torch.testing.assert_close(given, processor(clip, return_tensors="pt")["pixel_values_videos"])


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (np.full((2, 40, 40, 3), 200.0), r"floats must lie within 0\.\.1; got values from 200 to 200"),
        (np.full((2, 40, 40, 3), -0.5), "must lie within"),
        (np.full((2, 40, 40, 3), np.nan), "must lie within"),
        (np.ones((2, 40, 40, 3), bool), r"Frames of bool .*astype\(np.uint8\) \* 255"),
        (np.full((2, 40, 40, 3), 60000, np.uint16), "Frames of uint16 .*65535"),
        (torch.full((2, 3, 40, 40), 200), "Frames of int64"),
        ([np.full((40, 40), 200, np.int32)] * 2, "Frames of int32"),
        (np.zeros((2, 40, 40, 2), np.uint8), r"shape \(40, 40, 2\) have no axis of 1, 3 or 4 channels"),
        (np.zeros((2, 3, 40, 3), np.uint8), "channels first or last"),
        (np.zeros((0, 40, 40, 3), np.uint8), "empty"),
        ([[], [np.zeros((40, 40, 3), np.uint8)]], "has no frames"),
        ([np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40, 3))], "the same type"),
    ],
)
def test_invalid_or_ambiguous_arrays_are_refused(processor, clip, reason):
    with pytest.raises(ValueError, match=reason):
        processor(clip)


def test_do_rescale_means_what_it_says(processor):
    """With `do_rescale=False`, values stay as they are, whatever they are."""
    clip = torch.full((1, 3, 40, 40), -7.5)
    for given in (clip, clip.clamp(0.25)):
        torch.testing.assert_close(values(processor, given, do_rescale=False), given[None, ..., :32, :32])
    levels = torch.full((1, 3, 40, 40), 200, dtype=torch.uint8)
    assert (values(processor, levels, do_rescale=False) == 200).all()


def test_layouts(processor):
    image = next(pictures(1))
    expected = values(processor, image)
    bgr = np.ascontiguousarray(image[..., ::-1])
    for form in (
        image.transpose(2, 0, 1),
        torch.from_numpy(image),
        torch.from_numpy(image).permute(2, 0, 1),
        bgr[..., ::-1],
        [image],
        image[None],
        np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1),
    ):
        assert torch.equal(values(processor, form), expected)
    with pytest.raises(ValueError, match=r"input_data_format='channels_first' does not fit"):
        processor(image, input_data_format="channels_first")
    with pytest.raises(TypeError, match=r"np\.asarray"):
        processor([[[1, 2, 3]]])


def test_floats_with_an_alpha_channel(processor):
    rgba = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 4), dtype=np.uint8)
    torch.testing.assert_close(
        values(processor, rgba / 255, antialias=False), values(processor, rgba, antialias=False), atol=3e-3, rtol=0
    )


# Lists ---------------------------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path):
    images = [Image.fromarray(image) for image in pictures(4)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    return images, [str(tmp_path / f"{number}.png") for number in range(4)]


def test_lists_of_lists_are_clips_of_frames(four):
    images, paths = four
    processor = RegionLearnerVideoProcessor.for_image_size(32, num_frames=2)
    expected = values(processor, np.stack([[np.array(image) for image in images]]).reshape(2, 2, 48, 64, 3))
    arrays = [np.array(image) for image in images]
    both = RegionLearnerProcessor(processor, make_tokenizer())
    for form in (
        [paths[:2], paths[2:]],
        (tuple(paths[:2]), tuple(paths[2:])),
        [images[:2], images[2:]],
        [arrays[:2], paths[2:]],
        [[paths[0], images[1]], [arrays[2], open(paths[3], "rb").read()]],  # noqa: SIM115
        [[paths[:2]], [paths[2:]]],
        [np.stack(arrays[:2]), paths[2:]],
    ):
        assert torch.equal(values(processor, form), expected)
        assert torch.equal(both(videos=form, do_normalize=False)["pixel_values_videos"], expected)
    assert values(processor, paths, num_frames=1).shape[:2] == (4, 1)  # a flat list contains videos
    floats = [[array / 255 for array in arrays[:2]], paths[2:]]
    of_floats = values(processor, floats)
    assert torch.equal(of_floats[1], expected[1])
    torch.testing.assert_close(of_floats[0], expected[0], rtol=0, atol=2 / 255)  # bytes are rounded when resized


def test_only_the_requested_files_of_a_clip_are_read(four, processor):
    paths = four[1]
    output = processor([[paths[0], paths[1], "nowhere.png"]], return_metadata=True, return_tensors="pt")
    assert output["video_metadata"][0].frames_indices == [1]
    with pytest.raises(VideoDecodeError, match=r"^nowhere.png: no such file"):
        processor([[paths[0], "nowhere.png"]], num_frames=2)


def test_videos_within_a_clip_are_refused(four, processor, tmp_path):
    video = write_video(tmp_path / "video.mp4", count=3)
    with pytest.raises(ValueError, match=r"A video of 3 frames was given as one frame of a clip.*flat list") as error:
        processor([[video, four[1][0]]])
    assert not isinstance(error.value, VideoDecodeError)  # training would skip a video with such an error


@pytest.mark.parametrize("images", [[], [[]], [[], Image.new("RGB", (40, 40))], np.zeros((0, 40, 40, 3), np.uint8)])
def test_empty_images_are_refused(processor, images):
    with pytest.raises(ValueError, match=r"no frames|No images|empty"):
        RegionLearnerProcessor(processor, make_tokenizer())(images=images)


# Budgets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("craft", [samples_without_bytes, fragment_without_bytes])
def test_tables_of_more_frames_than_bytes(tmp_path, monkeypatch, craft):
    data = craft(write_video(tmp_path / "video.mp4").read_bytes(), 20_000_000)
    assert len(data) < 20_000
    (tmp_path / "crafted.mp4").write_bytes(data)
    monkeypatch.setattr(module.av, "open", None)  # FFmpeg, which would take 700 MB, is not called
    for source in (tmp_path / "crafted.mp4", data):
        with pytest.raises(VideoDecodeError, match="its tables list more frames"):
            frames_of(source)


@pytest.mark.parametrize("wrapper", ["dinf", "udta", "xyzw", "moov"])
@pytest.mark.parametrize("craft", [samples_without_bytes, fragment_without_bytes])
def test_tables_within_other_boxes(tmp_path, monkeypatch, craft, wrapper):
    """FFmpeg finds tables in many kinds of boxes, also across the parts in which the file is searched."""
    data = craft(write_video(tmp_path / "video.mp4").read_bytes(), 20_000_000)
    name = b"stbl" if craft is samples_without_bytes else b"traf"
    inner = data[data.rindex(name) - 4 :][: int.from_bytes(data[data.rindex(name) - 4 :][:4], "big")]
    wrapped = replace_boxes(data, {name.decode().encode(): box(wrapper.encode(), inner)})
    monkeypatch.setattr(module.av, "open", None)
    for size in (2**24, 64, 101):
        monkeypatch.setattr(module, "_SCANNED_AT_ONCE", size)
        with pytest.raises(VideoDecodeError, match="its tables list more frames"):
            frames_of(wrapped)


def test_tables_in_a_free_box(tmp_path, monkeypatch):
    """FFmpeg parses such a box if it begins like `moov`."""
    data = samples_without_bytes(write_video(tmp_path / "video.mp4").read_bytes(), 20_000_000)
    start = data.index(b"moov")
    monkeypatch.setattr(module.av, "open", None)
    with pytest.raises(VideoDecodeError, match="its tables list more frames"):
        frames_of(data[:start] + b"free" + data[start + 4 :])


def test_compressed_headers_are_refused(tmp_path):
    data = write_video(tmp_path / "video.mp4").read_bytes()
    start = data.index(b"moov") - 4
    packed = box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", bytes(4))))
    with pytest.raises(VideoDecodeError, match="its headers are compressed, which is not supported"):
        frames_of(data[:start] + packed)


def test_counting_samples_of_other_files_ends():
    y4m = b"YUV4MPEG2 W16 H16 F25:1\nFRAME\n" + b"stsz" * 96
    for content in (y4m, b"\0\0\x80\0moov" * 4096, b"\0\0\0\x08moov" * 4096, b"\x1aE\xdf\xa3" * 4096, b"", b"\0" * 9):
        assert module._count_samples(io.BytesIO(content), len(content)) == 0


def test_jpeg_files_of_many_scans(tmp_path):
    """Each scan takes time in proportion to the whole picture, however small it is."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", progressive=True)
    assert len(frames_of(tmp_path / "a.jpg")) == 1
    data = (tmp_path / "a.jpg").read_bytes()
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 2000 + data[-2:]
    with pytest.raises(VideoDecodeError, match=r"a JPEG file of 20\d\d scans, more than 1000"):
        frames_of(many)


def test_the_memory_of_pictures_of_a_clip_is_limited(processor, tmp_path, monkeypatch):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(module, "_MAX_CLIP", 3 * 48 * 64 * 3)
    assert processor([[str(tmp_path / "a.png")] * 3], num_frames=3)["pixel_values_videos"][0].shape[0] == 3
    with pytest.raises(VideoDecodeError, match="4 frames of 64x48 pixels take more than"):
        processor([[str(tmp_path / "a.png")] * 4], num_frames=4)


def test_large_frames_of_a_small_file(tmp_path):
    (tmp_path / "large.gif").write_bytes(large_gif(8000, 8000))
    with pytest.raises(VideoDecodeError, match="more than 35651584"):
        frames_of(tmp_path / "large.gif")


def test_the_memory_of_requested_frames_is_limited(tmp_path, monkeypatch):
    video = write_video(tmp_path / "video.mp4", count=3)
    monkeypatch.setattr(module, "_MAX_CLIP", 2 * 48 * 64 * 3)
    assert len(read_clip(video, lambda metadata: [0, 2])[0]) == 2
    with pytest.raises(VideoDecodeError, match=r"3 frames of 64x48 pixels take more than .* \(num_frames\)"):
        frames_of(video)


def test_large_jpeg_files(tmp_path, monkeypatch):
    Image.new("RGB", (64, 48)).save(tmp_path / "large.jpg")
    assert len(frames_of(tmp_path / "large.jpg")) == 1
    monkeypatch.setattr(module, "_MAX_JPEG", 100)
    with pytest.raises(VideoDecodeError, match="a JPEG file of more than 100 bytes"):
        frames_of(tmp_path / "large.jpg")


def test_listing_packets_has_limits(tmp_path, monkeypatch):
    video = write_video(tmp_path / "video.mp4", count=10)
    monkeypatch.setattr(module, "_sample", None)  # would be called after listing the packets
    monkeypatch.setattr(module, "_MAX_FRAMES", 9)
    with pytest.raises(VideoDecodeError, match="more than 9 frames"):
        frames_of(video)
    monkeypatch.setattr(module, "_SECONDS", 0)
    with pytest.raises(VideoDecodeError, match="more than 0 seconds"):
        frames_of(video)


@pytest.mark.parametrize("decodes_all", [False, True])
def test_decoding_has_a_time_limit(tmp_path, monkeypatch, decodes_all):
    """The limit applies to decoding even if listing the packets was fast."""
    video = write_video(tmp_path / "video.mp4", count=3)
    index_packets = module._index_packets
    monkeypatch.setattr(
        module, "_index_packets", lambda stream, _: None if decodes_all else index_packets(stream, Mock())
    )
    monkeypatch.setattr(module, "_SECONDS", 0)
    with pytest.raises(VideoDecodeError, match=r"video.mp4: reading it takes more than 0 seconds"):
        frames_of(video)


def test_every_frame_has_a_time_limit(tmp_path, monkeypatch):
    video = write_video(tmp_path / "video.mp4", count=3)
    clock = Mock()
    monkeypatch.setattr(module, "_Clock", lambda: clock)
    assert len(list(module.iterate_frames(video))) == 3
    assert clock.restart.call_count == 3
    clock.check.side_effect = VideoDecodeError("too slow")
    with pytest.raises(VideoDecodeError, match="too slow"):
        list(module.iterate_frames(video))


# What decoders only log ----------------------------------------------------------------------------------

LOGGED = {
    "gif.gif": {"codec": "gif"},
    "ffv1.mkv": {"codec": "ffv1", "options": {"slicecrc": "1", "level": "3"}},
    "wmv2.wmv": {"codec": "wmv2", "options": {"g": "10"}},
}


@pytest.mark.parametrize("name", LOGGED)
def test_damage_that_a_decoder_only_logs_is_an_error(tmp_path, name):
    """Some bytes of one packet at a time are changed. Frames before the damage are those of the undamaged file."""
    source = write_video(tmp_path / name, count=12, **LOGGED[name])
    whole = frames_of(source)
    data = source.read_bytes()
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    refused = 0
    for packet in packets[3:9]:
        at = data.index(packet[len(packet) // 2 :]) if name != "gif.gif" else data.index(packet) + len(packet) // 2
        damaged = bytearray(data)
        damaged[at : at + 8] = bytes(value ^ 0xA5 for value in damaged[at : at + 8])
        with av.open(io.BytesIO(bytes(damaged))) as container, module._capture_errors() as lines:
            try:
                list(container.decode(video=0))
            except av.error.FFmpegError:
                lines.append((av.logging.ERROR, "", "raised"))
        if lines:
            refused += 1
            with pytest.raises(VideoDecodeError, match=r"<bytes>: "):
                frames_of(bytes(damaged))
            if name != "wmv2.wmv":  # its frames can only be numbered by decoding all of them
                np.testing.assert_array_equal(read_clip(bytes(damaged), lambda metadata: [0, 1])[0], whole[:2])
    assert refused


def test_the_log_level_is_restored(tmp_path):
    video = write_video(tmp_path / "video.mp4", count=3)
    for level in (None, av.logging.VERBOSE):
        before = av.logging.get_level()
        av.logging.set_level(level)
        try:
            frames_of(video)
            assert av.logging.get_level() == level
            assert av.logging.get_skip_repeated()
        finally:
            av.logging.set_level(before)
