"""Tests pictures of regions against naive computations, and the page of results as browsers see it."""

import base64
import io
import itertools
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from region_learner.evaluation.region_description import mask_report
from region_learner.evaluation.region_metrics import region_metrics
from region_learner.region_masks import region_focus
from region_learner.visualization import (
    Page,
    Query,
    Result,
    Table,
    draw_clusters,
    draw_region_grid,
    draw_regions,
    frame_strip,
    frames_from_pixel_values,
    region_colors,
    render_page,
    write_page,
)
from region_learner.visualization.page import CAPTIONS_SHOWN, _smooth, _ticks

from .test_region_metrics import naive_otsu

GRAY = 96
HEIGHT, WIDTH = 64, 80


def gray_frames(frames: int = 2) -> np.ndarray:
    return np.full((frames, HEIGHT, WIDTH, 3), GRAY, dtype=np.uint8)


def blob_masks(*blobs: tuple[int, int, int, int, float], frames: int = 2, regions: int = 3) -> torch.Tensor:
    """Returns masks (T, S, 8, 10) that are 0 except at blobs (frame, region, row, column, value)."""
    masks = torch.zeros(frames, regions, 8, 10)
    for frame, region, row, column, value in blobs:
        masks[frame, region, row, column] = value
    return masks


def changed(image: Image.Image) -> np.ndarray:
    """Returns which pixels (H, W) of a picture differ from the gray frame that it shows."""
    return (np.asarray(image) != GRAY).any(-1)


def nearest_color(pixel: np.ndarray, colors: list[tuple[int, int, int]]) -> int:
    """Returns the index of the color in whose direction a pixel differs from the gray of the frame."""
    direction = pixel.astype(float) - GRAY
    towards = [np.subtract(color, GRAY) for color in colors]
    return int(np.argmax([direction @ t / np.linalg.norm(t) for t in towards]))


# --- Regions ---------------------------------------------------------------------------------------------------


def competing(*weights: torch.Tensor) -> torch.Tensor:
    """Returns masks (T, S, h, w) like those of a softmax over regions, from one weight (T, h, w) per region."""
    shares = torch.stack(weights, dim=1)
    shares = shares / shares.sum(1, keepdim=True)
    return shares / shares.mean((2, 3), keepdim=True)


def most_of_the_frame() -> torch.Tensor:
    """Returns weights (2, 8, 10): 0.9 on 90 % of the frame, 0.1 on the rest."""
    weights = torch.full((2, 8, 10), 0.9)
    weights[:, :, 4] = 0.1
    return weights


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns values that vary slowly; the areas of noise would change when it is enlarged."""
    return torch.nn.functional.interpolate(randn(*shape, 3, 4, seed=seed), (8, 10), mode="bicubic")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


AGREEMENT = {
    "90 % of the frame, over regions": lambda: competing(most_of_the_frame(), 1 - most_of_the_frame()),
    "90 % of the frame, over positions": lambda: most_of_the_frame()[:, None] / 0.82,
    "90 % of the frame, raw": lambda: most_of_the_frame()[:, None] - 3,
    "a tie": lambda: competing(*[1 - most_of_the_frame()] * 2, most_of_the_frame()),
    "raw": lambda: smooth(2, 3) - 7,
    "over positions": lambda: 80 * smooth(2, 3).flatten(2).softmax(2).view(2, 3, 8, 10),
    "over regions": lambda: competing(*(3 * smooth(4, 2)).softmax(0)),
    "even": lambda: torch.ones(2, 2, 8, 10),
    "even behind another": lambda: torch.cat([AGREEMENT["over positions"]()[:, :1], torch.ones(2, 1, 8, 10)], dim=1),
}


@pytest.mark.parametrize("name", AGREEMENT)
def test_pictures_and_metrics_agree_on_what_belongs_to_a_region(name):
    masks = AGREEMENT[name]()
    images = draw_regions(gray_frames(), masks)
    inside = region_focus(masks).areas((2 * HEIGHT, 2 * WIDTH))  # pictures are drawn in this size and averaged down
    report = mask_report(masks[None])
    # Exactly the area that the masks cover according to the metrics is colored.
    covered = [sub_pixels(inside[t].any(0)) for t in range(2)]
    for image, sub_pixel in zip(images, covered):
        np.testing.assert_array_equal(changed(image), sub_pixel.any(-1))
    shares = [changed(image).mean() for image in images]
    assert 100 * np.mean(shares) == pytest.approx(report["coverage"], abs=12)  # the report counts coarse positions
    # Where there is only one region, pixels have its color.
    for t, image in enumerate(images):
        pixels = np.asarray(image)
        for s in range(masks.shape[1]):
            alone = inside[t, s] & (inside[t].sum(0) == 1)
            for row, column in np.argwhere(sub_pixels(alone).all(-1))[::7]:
                assert nearest_color(pixels[row, column], region_colors(masks.shape[1])) == s
    # Read as a label map, the picture of a single region matches the region.
    if masks.shape[1] == 1:
        labels = torch.from_numpy(np.stack([changed(image) for image in images])).long()
        assert region_metrics(masks, labels)["iou"] > 95


def sub_pixels(inside: torch.Tensor) -> np.ndarray:
    """Reshapes (2 H, 2 W) to (H, W, 4)."""
    return inside.view(HEIGHT, 2, WIDTH, 2).permute(0, 2, 1, 3).reshape(HEIGHT, WIDTH, 4).numpy()


def test_the_first_of_tied_regions_is_drawn_and_the_grid_shows_all():
    masks = AGREEMENT["a tie"]()
    image = np.asarray(draw_regions(gray_frames(), masks)[0])
    middle = image[20, 36]  # in the column that regions 1 and 2 share
    assert nearest_color(middle, region_colors(3)) == 0
    assert nearest_color(image[20, 8], region_colors(3)) == 2
    swapped = np.asarray(draw_regions(gray_frames(), masks[:, [2, 1, 0]])[0])
    assert nearest_color(swapped[20, 36], region_colors(3)) == 1
    sheet = np.asarray(draw_region_grid(gray_frames(), masks)).astype(int)
    top, left = np.argwhere((sheet == GRAY).all(-1))[0]
    rows = [sheet[top + s * (HEIGHT + 2) :, left:][:HEIGHT, :WIDTH] for s in (1, 2, 3)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


@pytest.mark.parametrize("value", [5.0, -5.0])
def test_a_blob_is_colored_where_it_is_and_nowhere_else(value):
    masks = blob_masks((0, 0, 2, 3, value), (1, 0, 5, 7, value), regions=1)
    images = draw_regions(gray_frames(), masks)

    assert [image.size for image in images] == [(WIDTH, HEIGHT)] * 2
    cell = 8  # pixels per mask position
    for image, row, column in zip(images, (2, 5), (3, 7)):
        rows, columns = np.nonzero(changed(image))
        assert (row - 0.5) * cell <= rows.min() < rows.max() < (row + 1.5) * cell
        assert (column - 0.5) * cell <= columns.min() < columns.max() < (column + 1.5) * cell


@pytest.mark.parametrize("normalized", [False, True])
def test_each_position_goes_to_the_region_with_the_greatest_weight_above_its_threshold(normalized):
    masks = randn(2, 4, 8, 10).double() + torch.tensor([0.0, 9.0, -3.0, 1.0]).view(1, 4, 1, 1)
    masks[1] *= 0.4
    if normalized:
        masks = 80 * masks.flatten(2).softmax(2).view(2, 4, 8, 10)
    # Blocks of equal values, so that interpolation leaves the value at their center as it is.
    blocks = masks.repeat_interleave(3, 2).repeat_interleave(3, 3)
    images = draw_regions(gray_frames(), blocks, height=8 * 3 * 8)

    weights = masks.numpy() if normalized else (masks - masks.mean((2, 3), keepdim=True)).abs().numpy()
    largest = weights.max((2, 3))
    uncolored = 0
    for t, image in enumerate(images):
        pixels = np.asarray(image)
        cuts = [naive_otsu(weight.flatten()) for weight in weights[t]]
        for row, column in np.ndindex(8, 10):
            rises = [
                (weights[t, s, row, column] - cuts[s])
                / (largest[t, s] - cuts[s])
                * (1 if normalized else largest[t, s] / largest[:, s].max())
                for s in range(4)
            ]
            pixel = pixels[row * 24 + 12, column * 24 + 12]
            if max(rises) <= 0:
                assert (pixel == GRAY).all()
                uncolored += 1
            else:
                assert nearest_color(pixel, region_colors(4)) == int(np.argmax(rises))
    assert 5 < uncolored < 155


def test_greater_weights_are_denser_and_the_frame_stays_visible():
    frames = gray_frames(1)
    frames[:, ::2] = 200  # stripes
    masks = torch.zeros(1, 1, 4, 5)
    masks[0, 0, 1, 1], masks[0, 0, 2, 3] = 5.0, 8.0
    image = np.asarray(draw_regions(frames, masks)[0]).astype(int)
    shift = np.abs(image - frames[0]).sum(-1)

    weak, strong = shift[23:25, 23:25], shift[39:41, 55:57]
    assert 0 < weak.mean() < strong.mean()
    stripes = image[38:42, 56].sum(-1)
    assert abs(stripes[0] - stripes[1]) > 100  # 312 without the overlay


def test_offsets_and_scales_of_raw_masks_change_nothing():
    masks = randn(2, 3, 8, 10, seed=1).double()
    plain = draw_regions(gray_frames(), masks)
    moved = draw_regions(gray_frames(), masks + torch.tensor([100.0, -7.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1))
    grown = draw_regions(gray_frames(), masks * torch.tensor([5.0, 0.01, 1.0], dtype=torch.float64).view(1, 3, 1, 1))
    for image, *others in zip(plain, moved, grown):
        for other in others:
            assert np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 1


def test_a_frame_in_which_raw_masks_vary_little_is_paler():
    masks = blob_masks((0, 0, 2, 3, 5.0), (1, 0, 2, 3, 0.5), regions=1)

    def at_the_peak(masks: torch.Tensor) -> list[int]:
        images = draw_regions(gray_frames(), masks)
        return [int(np.abs(np.asarray(image)[20, 28].astype(int) - GRAY).sum()) for image in images]

    strong, pale = at_the_peak(masks)
    assert 0 < pale < 0.5 * strong
    assert at_the_peak(masks[:1].repeat(2, 1, 1, 1)) == [strong] * 2
    one, other = at_the_peak(80 * masks.flatten(2).softmax(2).view(2, 1, 8, 10))
    assert one == pytest.approx(other, abs=6) == pytest.approx(strong, abs=6)  # each frame is normalized separately


def test_a_mask_that_is_constant_up_to_rounding_is_drawn_evenly():
    masks = torch.full((2, 3, 8, 10), 1000.0)
    masks[0, 0, 0, 0] = torch.nextafter(masks[0, 0, 0, 0], torch.tensor(2000.0))
    for image in draw_regions(gray_frames(), masks):
        pixels = np.asarray(image).reshape(-1, 3)
        assert (pixels == pixels[0]).all()
        assert 0 < np.abs(pixels[0].astype(int) - GRAY).max() < 30  # faint


def test_colors_are_fixed_distinct_and_as_many_as_asked():
    assert region_colors(3) == region_colors(8)[:3]
    assert region_colors(0) == []
    assert len(set(region_colors(24))) == 24
    with pytest.raises(ValueError, match="must be at least 0, not -1"):
        region_colors(-1)


@pytest.mark.parametrize("deficiency", ["none", "protanopia", "deuteranopia", "tritanopia"])
def test_the_first_colors_can_be_told_apart(deficiency):
    # Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB.
    simulated = {
        "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
        "tritanopia": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.3039],
        ],
    }[deficiency]
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]

    def lab(color):
        value = np.array(color) / 255
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        xyz = to_xyz @ np.clip(simulated @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    labs = [lab(color) for color in region_colors(8)]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(labs) for b in labs[:i]) > 16


def rows_of_the_grid(frames: np.ndarray, masks: torch.Tensor) -> list[list[np.ndarray]]:
    """Returns the cells (H, W, 3) of each region in a sheet, after checking that the first row has the frames."""
    sheet = np.asarray(draw_region_grid(frames, masks)).astype(int)
    top, left = np.argwhere((sheet == GRAY).all(-1))[0]  # the first frame is found by its gray
    gap = 2
    cells = [
        [sheet[top + s * (HEIGHT + gap) :, left + t * (WIDTH + gap) :][:HEIGHT, :WIDTH] for t in range(len(frames))]
        for s in range(1 + masks.shape[1])
    ]
    for frame, cell in zip(frames, cells[0]):
        assert (cell == frame).all()
    return cells[1:]


def test_the_grid_has_the_frames_and_a_signed_row_for_each_region():
    frames = gray_frames()
    frames[1] = 150
    masks = blob_masks((0, 0, 2, 3, 5.0), (1, 1, 5, 6, -5.0), regions=2)
    cells = rows_of_the_grid(frames, masks)
    above, below = cells[0][0][20, 28], cells[1][1][44, 52]
    assert above[0] > above[2] + 50  # orange
    assert below[2] > below[0] + 50  # blue
    flat = cells[0][1]  # region 1 has nothing in the second frame
    assert (flat[2:-2, 2:-2] == flat[4, 4]).all()
    assert flat[4, 4, 0] < 150


def test_the_grid_shows_the_weights_of_normalized_masks_and_outlines_regions():
    masks = competing(most_of_the_frame(), 1 - most_of_the_frame())
    (most, _), (rest, _) = rows_of_the_grid(gray_frames(), masks)
    orange = [(cell[..., 0] - cell[..., 2]) > 60 for cell in (most, rest)]
    assert orange[0][:, :24].all()
    assert orange[1][4:-4, 35:37].all()
    assert not orange[0][4:-4, 35:37].any()
    assert not orange[1][:, :24].any()
    assert not any((cell[..., 2] > cell[..., 0] + 20).any() for cell in (most, rest))  # nothing is below 0: no blue
    for cell in (most, rest):  # borders are on both sides of the fifth of ten columns, and nowhere else
        borders = np.flatnonzero((cell[..., 2] > 120).all(0))
        assert all(28 <= column < 44 for column in borders)
        assert borders.min() < 36 < borders.max()


def test_pictures_can_be_made_larger_than_the_frames():
    masks, codes = torch.randn(2, 3, 8, 10), torch.zeros(2, 8, 10, dtype=torch.long)
    for images in (draw_regions(gray_frames(), masks, height=96), draw_clusters(gray_frames(), codes, height=96)):
        assert [image.size for image in images] == [(120, 96)] * 2
    with pytest.raises(ValueError, match="height must be at least 1 pixel, not 0"):
        draw_regions(gray_frames(), masks, height=0)


# --- Clusters and frames ---------------------------------------------------------------------------------------


def test_a_code_has_the_same_color_everywhere():
    codes = torch.tensor([[[7, 7, 500], [3, 7, 500]], [[2047, 7, 3], [3, 3, 3]]])
    images = [np.asarray(image) for image in draw_clusters(np.full((2, 40, 60, 3), GRAY, np.uint8), codes)]

    colors: dict[int, set] = {}
    for t in range(2):
        for row in range(2):
            for column in range(3):
                center = images[t][row * 20 + 10, column * 20 + 10]
                colors.setdefault(int(codes[t, row, column]), set()).add(tuple(center.tolist()))
    assert all(len(found) == 1 for found in colors.values())
    assert len(set.union(*colors.values())) == 4


def test_pixel_values_are_converted_back_to_frames():
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixel_values = torch.empty(2, 3, 5, 6)
    for t, y, x, c in np.ndindex(frames.shape):
        pixel_values[t, c, y, x] = (frames[t, y, x, c] / 255 - mean[c]) / std[c]

    np.testing.assert_array_equal(frames_from_pixel_values(pixel_values, mean, std), frames)
    assert frames_from_pixel_values(pixel_values * 100, mean, std).dtype == np.uint8  # clipped, not wrapped
    gray = frames_from_pixel_values(torch.zeros(1, 1, 4, 4), [0.5], [0.5])
    assert gray.shape == (1, 4, 4, 3)
    assert (gray == 128).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, m, c: draw_regions(f.astype(float), m), TypeError, r"uint8 .*\(T, H, W, 3\), not float64"),
        (lambda f, m, c: draw_regions([1], m), TypeError, r"\(T, H, W, 3\), not list"),
        (lambda f, m, c: draw_regions(f[0], m), ValueError, r"\(T, H, W, 3\), not \(64, 80, 3\)"),
        (lambda f, m, c: draw_regions(f, m[None]), ValueError, r"one clip.*\(1, 2, 3, 8, 10\).*region_masks\[i\]"),
        (lambda f, m, c: draw_regions(f, m.long()), TypeError, r"\(T, S, h, w\), not torch.int64"),
        (lambda f, m, c: draw_regions(f, None), TypeError, "a model without regions"),
        (lambda f, m, c: draw_regions(f[:1], m), ValueError, "1 frames, but region_masks has 2"),
        (lambda f, m, c: draw_regions(f, m / 0), ValueError, "not finite"),
        (lambda f, m, c: draw_region_grid(f[:1], m), ValueError, "1 frames, but region_masks has 2"),
        (lambda f, m, c: draw_clusters(f, c.float()), TypeError, r"\(T, h, w\), not torch.float32"),
        (lambda f, m, c: draw_clusters(f, None), TypeError, "a model without quantization"),
        (lambda f, m, c: draw_clusters(f, c[None]), ValueError, r"\(1, 2, 8, 10\).*cluster_ids\[i\]"),
        (lambda f, m, c: draw_clusters(f, c[:1]), ValueError, "2 frames, but cluster_ids has 1"),
        (lambda f, m, c: frames_from_pixel_values(m, [0.5], [0.5]), ValueError, "must have 3 values"),
        (lambda f, m, c: frames_from_pixel_values(m[0], [0], [1]), ValueError, r"\(T, C, H, W\).*\(3, 8, 10\)"),
    ],
)
def test_errors_say_what_is_expected(call, error, message):
    with pytest.raises(error, match=message):
        call(gray_frames(), torch.randn(2, 3, 8, 10), torch.zeros(2, 8, 10, dtype=torch.long))


# --- The page --------------------------------------------------------------------------------------------------

VOID = {"meta", "img", "link", "br", "hr", "input"}


class PageReader(HTMLParser):
    """Collects elements, texts and attributes, and fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f"</{tag}> does not close what is open: {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def all_text(self) -> str:
        return " ".join("".join(self.text).split())


def a_strip(seed: int, height: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    frames = [Image.fromarray(frame).resize((160, 160), Image.Resampling.BICUBIC) for frame in pixels]
    return frame_strip(frames, height)


def a_page(height: int = 32, **changes) -> Page:
    queries = [
        Query(
            f"query {q}",
            [
                Result(
                    title=f"clip {q}-{r}",
                    score=0.9 - 0.1 * r - 0.011 * q,
                    strip=a_strip(10 * q + r, height),
                    regions=a_strip(100 + 10 * q + r, height),
                    captions=[f"caption {q} {r} {c}" for c in range(3)],
                    correct=r == q,
                )
                for r in range(4)
            ],
            note=f"note {q}",
        )
        for q in range(5)
    ]
    contents = {
        "title": "A page",
        "subtitle": "To look at",
        "facts": [("Machine", "2 cores"), ("Parameters", "3.1 M")],
        "metrics": Table(["", "R@1"], [["Text to video", 61.25], ["Chance", 0.5]], "What it is", muted=[1]),
        "loss": [(step, 5 * math.exp(-step / 300)) for step in range(1000)],
        "queries": queries,
        "num_regions": 8,
    }
    return Page(**(contents | changes))


def test_the_page_shows_everything_it_is_given():
    page = a_page()
    reader = PageReader(render_page(page))
    text = reader.all_text()

    assert reader.attributes("html") == [{"lang": "en"}]
    assert "To look at" in text
    assert "Machine" in text
    assert "3.1 M" in text
    assert "61.2" in text
    assert "What it is" in text
    for query in page.queries:
        assert query.text in text
        assert query.note in text
        for result in query.results:
            assert result.title in text
            assert f"{result.score:.3f}" in text
            assert all(caption in text for caption in result.captions)
    assert text.count("✓ right clip") == 4  # the right clip of query 4 is not among its four results
    assert text.count("another clip") == 16
    assert "Region 8" in text
    assert "Region 9" not in text
    headings = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(level <= before + 1 for before, level in itertools.pairwise(headings))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_pictures_are_inlined_with_their_size_and_a_description():
    page = a_page()
    images = PageReader(render_page(page)).attributes("img")
    assert len(images) == 40
    kind, data = images[0]["src"].split(",", 1)
    assert kind == "data:image/webp;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    strip = page.queries[0].results[0].strip
    assert shown.size == strip.size == (int(images[0]["width"]), int(images[0]["height"]))
    assert np.abs(np.asarray(shown.convert("RGB"), int) - np.asarray(strip.convert("RGB"))).mean() < 12
    assert images[0]["alt"] == "Frames of clip 0-0: caption 0 0 0"
    assert all(image["alt"] for image in images)


def test_the_page_is_self_contained():
    text = render_page(a_page())
    reader = PageReader(text)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    policies = [meta["content"] for meta in reader.attributes("meta") if "http-equiv" in meta]
    assert policies
    assert policies[0].startswith("default-src 'none'")


def test_untrusted_text_is_escaped():
    evil = """"><script>alert('1')</script><img src=x onerror="alert(2)">&amp;"""
    result = Result(evil, 0.5, a_strip(0), a_strip(1), [evil] * (CAPTIONS_SHOWN + 1), True, evil, [(evil, a_strip(2))])
    metrics = Table([evil, evil], [[evil, evil]], evil)
    page = Page(evil, evil, [(evil, evil)], metrics, queries=[Query(evil, [result], evil)], score_name=evil)
    reader = PageReader(render_page(page))

    assert not reader.attributes("script")
    assert len(reader.attributes("img")) == 3
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    # 2 titles, subtitle, 2 facts, 2 headers, 2 cells, caption, query, note, 5 of the result and its phrase, name of
    # the score
    flat = " ".join(evil.split())
    assert reader.all_text().count(flat) == 2 + 1 + 2 + 2 + 2 + 1 + 1 + 1 + (2 + CAPTIONS_SHOWN + 1) + 1 + 1
    assert reader.attributes("img")[0]["alt"] == f"Frames of {evil}: {evil}"
    assert reader.attributes("img")[2]["alt"] == f"Frames of {evil} with a heat map of {evil}"


def test_sections_without_content_are_left_out():
    reader = PageReader(render_page(Page("Only a title")))
    assert [tag for tag, _ in reader.elements if re.fullmatch("h[1-6]|section|dl|table|svg|article|img", tag)] == [
        "h1"
    ]

    text = PageReader(render_page(a_page(loss=[], metrics=None, facts=[]))).all_text()
    assert "Search results" in text
    assert "Loss" not in text
    assert "Metrics" not in text

    text = PageReader(render_page(a_page(queries=[]))).all_text()
    assert "Loss" in text
    assert "Metrics" in text
    assert "Search results" not in text
    assert "Region 1" not in text

    plain = [Query("words", [Result("clip", 0.5)]), Query("nothing")]
    reader = PageReader(render_page(Page("Search", queries=plain, num_regions=8)))
    assert "Region 1" not in reader.all_text()  # no picture shows one
    assert "clip 0.500" in reader.all_text()
    assert "right clip" not in reader.all_text()
    assert "Nothing was found." in reader.all_text()
    assert not reader.attributes("img")


@pytest.mark.parametrize("loss", [[], [(0, 1.0)], [(0, 1.0), (1, math.nan)], [(3, 1.0), (3, 2.0)]])
def test_too_few_losses_make_no_curve(loss):
    assert not PageReader(render_page(Page("Short", loss=loss))).attributes("svg")


def test_the_curve_of_the_loss():
    loss = [(2 * step, 4.0 - step / 500) for step in range(1001)]
    loss[10] = (20, math.inf)
    reader = PageReader(render_page(Page("Loss", loss=loss)))
    lines = {line["class"]: line["points"] for line in reader.attributes("polyline")}

    for name in ("raw", "smooth"):  # a straight line from top left to bottom right; y ticks are 2.0 to 4.0
        points = np.array([point.split(",") for point in lines[name].split()], float)
        assert 300 < len(points) <= 602
        np.testing.assert_allclose(points[:, 0], points[:, 1], atol=0.11)
        np.testing.assert_allclose(points[[0, -1]], [[0, 0], [100, 100]], atol=0.11)
    chart = next(svg for svg in reader.attributes("svg") if svg.get("role") == "img")
    assert "from 4 to 2 at step 2,000" in chart["aria-label"]
    assert "1 losses were not finite" in chart["aria-label"]
    text = reader.all_text()
    assert all(label in text for label in ("2.5", "3.5", "500", "1,500", "2,000", "step", "loss"))


def test_flat_and_negative_curves_can_be_drawn():
    for values in ([0.0] * 5, [1e-9] * 5, [-3.0, -2.0, -1.0, -2.0, 5000.0]):
        assert "nan" not in render_page(Page("Loss", loss=list(enumerate(values))))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.017), (-3, 12345), (2, 2), (1e-5, 3e-5), (99.9, 100.1)])
def test_ticks_are_round_few_and_span_the_values(low, high):
    ticks = _ticks(low, high, 5)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-6)
    assert round(step / 10 ** math.floor(math.log10(step * 1.000001)), 6) in (1, 2, 5)


def test_smoothing_is_a_local_line_fit():
    rng = np.random.default_rng(0)
    points = [(step, float(rng.normal())) for step in range(100)]  # 4 neighbors on either side
    smooth = _smooth(points)
    for index in (0, 1, 50, 98, 99):
        near = range(max(0, index - 4), min(100, index + 5))
        line = np.polyfit(near, [points[i][1] for i in near], 1)
        assert smooth[index][1] == pytest.approx(np.polyval(line, index))


def test_a_page_of_five_queries_is_small_and_replaces_the_previous_one(tmp_path):
    path = tmp_path / "new" / "page.html"
    assert write_page(path, Page("Before")) == path
    write_page(path, a_page(height=160))
    assert 50_000 < path.stat().st_size < 3_000_000
    assert "<title>A page</title>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_file_names_that_are_not_text_can_be_written(tmp_path):
    name = b"clip-\xff.mp4".decode("utf-8", "surrogateescape")
    path = write_page(tmp_path / "page.html", Page("Search", queries=[Query("words", [Result(name, 0.5)])]))
    assert "clip-\\udcff.mp4" in path.read_text(encoding="utf-8")


def test_rows_must_be_as_long_as_the_header():
    with pytest.raises(ValueError, match="has 2 cells, but the header has 3"):
        render_page(Page("Wrong", metrics=Table(["", "R@1", "R@5"], [["Chance", 1.0]])))


def test_a_strip_joins_frames_with_gaps():
    frames = [Image.new("RGB", (20, 40), "red"), Image.new("L", (80, 80), 7)]
    strip = frame_strip(frames, 80)
    assert strip.size == (40 + 2 + 80, 80)
    pixels = np.asarray(strip)
    assert (pixels[:, :40] == [255, 0, 0, 255]).all()
    assert (pixels[:, 40:42, 3] == 0).all()
    assert (pixels[:, 42:] == [7, 7, 7, 255]).all()
    with pytest.raises(ValueError, match="at least one frame"):
        frame_strip([], 80)
    with pytest.raises(ValueError, match="at least 1 pixel, not 0"):
        frame_strip(frames, 0)
