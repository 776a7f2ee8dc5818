"""Tests that equal frames are encoded as equal bytes, whatever memory contained before."""

import ctypes
import hashlib
import sys

import av
import numpy as np
import pytest
from packaging.version import Version
from PIL import Image

from region_learner.corpora import PrepareOptions
from region_learner.corpora.encoding import add_video_stream
from region_learner.corpora.encoding import write_video as write_frames
from region_learner.corpora.prepare import encode_clip

from .test_video_processing import ENCODINGS, write_video

M_PERTURB = -6  # option of mallopt (glibc): the byte that new memory is filled with
FILLINGS = (0, 1, 15, 85, 127, 128, 170, 255)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is filled as glibc does it")


@pytest.fixture
def fill_memory():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")

    def fill(byte: int):
        assert libc.mallopt(M_PERTURB, byte) == 1

    yield fill
    fill(0)


def moving_clip(width: int, height: int = 96, frames: int = 16) -> np.ndarray:
    """Returns a panning picture with a square and noise, (T, H, W, 3), whose blocks differ in their costs."""
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
    big = np.asarray(small.resize((width + 2 * frames, height + frames), Image.Resampling.BICUBIC))
    clip = np.stack([big[i : i + height, 2 * i : 2 * i + width] for i in range(frames)])
    for i, image in enumerate(clip):
        image[20:40, 2 * i : 2 * i + 20] = (255, 0, 0)
    return np.clip(clip.astype(int) + rng.integers(-6, 6, clip.shape), 0, 255).astype(np.uint8)


def digests(encode, fill_memory, fillings=FILLINGS, repeats: int = 1) -> set[str]:
    found = set()
    rng = np.random.default_rng(0)
    for byte in fillings:
        fill_memory(byte)
        for _ in range(repeats):
            churn = [rng.integers(0, 256, size, np.uint8) for size in rng.integers(1000, 400_000, 6)]
            found.add(hashlib.sha256(encode()).hexdigest())
            del churn
    return found


def generated(clip, path):
    def encode():
        write_frames(path, clip, 8)
        return path.read_bytes()

    return encode


def prepared(clip, path):
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, "ffv1", 8)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "bgr0"
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return lambda: encode_clip(path, PrepareOptions())[1]


WRITERS = {"generated.mp4": generated, "prepared.mkv": prepared}


# If x264 depends on old memory, it is at widths that are not a multiple of 128.
@pytest.mark.parametrize("width", [96, 128, 144, 160])
@pytest.mark.parametrize("name", WRITERS)
def test_equal_frames_are_encoded_as_equal_bytes(fill_memory, tmp_path, name, width):
    assert len(digests(WRITERS[name](moving_clip(width), tmp_path / name), fill_memory)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", range(48, 336, 16))
@pytest.mark.parametrize("name", WRITERS)
def test_equal_frames_are_encoded_as_equal_bytes_many_times(fill_memory, tmp_path, name, width):
    encode = WRITERS[name](moving_clip(width, frames=40), tmp_path / name)
    assert len(digests(encode, fill_memory, range(0, 256, 16), repeats=3)) == 1


@pytest.mark.parametrize("name", ENCODINGS)
def test_videos_for_tests_are_the_same_each_time(fill_memory, tmp_path, name):
    """Tests that damage these videos therefore always damage the same bytes."""
    arguments = ENCODINGS[name]
    if arguments.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot encode with {arguments['codec']}")
    if arguments.get("codec") == "gif" and Version(av.__version__).major >= 19:
        pytest.skip("what the GIF encoder of this FFmpeg writes depends on old memory")
    encode = lambda: write_video(tmp_path / name, **arguments).read_bytes()  # noqa: E731
    assert len(digests(encode, fill_memory, (0, 85, 255))) == 1
