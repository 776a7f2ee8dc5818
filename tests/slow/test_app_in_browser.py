"""
Tests the app, the pages of results and the site in a headless browser: what a user types, sees and plays, on a desktop
and on a phone.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from region_learner import VideoIndex
from region_learner.search.page import write_search_page
from region_learner.visualization import Query, Result, write_page

from ..conftest import ROOT
from ..fake_index import COLORS, FakeIndex, write_colors
from ..search_toys import make_video, save_checkpoint
from ..test_visualization import a_page, a_strip

pytest.importorskip("gradio", reason="the app needs Gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")

from region_learner.search.app import serving  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Gradio's request statistics use deprecated options of pandas.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="browser tests need chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing"),
]

STRANGE = "home/${alert(1)}{{value}}<img src=x onerror=alert(1)>.mp4"
# Returns the color near the bottom center of the current frame of a video.
COLOR = """video => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 9;
    canvas.getContext("2d").drawImage(video, 0, 0, 9, 9);
    return Array.from(canvas.getContext("2d").getImageData(4, 7, 1, 1).data.slice(0, 3));
}"""


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> FakeIndex:
    folder = tmp_path_factory.mktemp("videos")
    write_colors(folder / "trips/red then blue then red.mp4", "red", "blue", "red", seconds=8.0, size=(96, 128))
    write_colors(folder / STRANGE, "green", seconds=6.0, size=(96, 128))
    write_colors(folder / ("trips/" + "long " * 30 + "x" * 60 + ".mp4"), "yellow", seconds=3.0)
    spans = {str(path.relative_to(folder)): [(0.0, 3.0)] for path in folder.rglob("*.mp4")}
    return FakeIndex(folder, spans | {"trips/red then blue then red.mp4": [(0.0, 8.0), (8.0, 12.0)]})


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390])
def page(request, browser) -> Iterator:
    """Yields a page, and fails if it reports an error, opens a dialog or loads anything from elsewhere."""
    context = browser.new_context(viewport={"width": request.param, "height": 844})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    here = re.compile(r"http://127\.0\.0\.1:|file:|data:|blob:|about:")
    page.on("request", lambda asked: None if here.match(asked.url) else wrong.append(asked.url))
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def address(index) -> Iterator[str]:
    with serving(index) as address:
        yield address


def nothing_is_cut_off(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def search(page, words: str) -> None:
    box = page.get_by_label("What happens in the video?")
    box.fill(words)
    box.press("Enter")
    page.get_by_text(re.compile(rf"(for|matches) “{re.escape(words)}”")).wait_for()
    until(page, "document.querySelectorAll('.hits img').length == document.querySelectorAll('.hits li').length")


def until(page, condition: str) -> None:
    """Waits for a condition. (`wait_for_function` needs `eval`, which the page of a search forbids.)"""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(condition)


def color_shown(page) -> str:
    seen = page.eval_on_selector("video", COLOR)
    return min(COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(COLORS[name], seen)))


def test_a_person_searches_and_plays(page, address):
    page.goto(address)
    search(page, "blue")
    hits = page.locator(".hits button")
    assert hits.count() == 4
    assert "red then blue then red.mp4" in hits.nth(0).inner_text()
    assert "00:08-00:12" in hits.nth(0).inner_text()
    assert "likely, 95%" in hits.nth(0).inner_text()
    assert nothing_is_cut_off(page)
    hits.nth(0).click()
    page.locator("video").wait_for()
    until(page, "document.querySelector('video').currentTime > 5.3")  # the span begins at 5
    assert color_shown(page) == "blue"
    assert nothing_is_cut_off(page)
    until(page, "document.querySelector('video').paused")  # at the end of the span
    assert 9 <= page.evaluate("document.querySelector('video').currentTime") < 9.6
    page.evaluate("document.querySelector('video').play()")  # playback continues past the end of the span
    until(page, "document.querySelector('video').currentTime > 9.8")
    page.evaluate("document.querySelector('video').currentTime = 1")  # before the span
    until(page, "document.querySelector('video').currentTime > 1.2")
    assert color_shown(page) == "red"


def test_the_keyboard_is_enough(page, address):
    page.goto(address)
    search(page, "green")
    page.locator(".hits button").nth(0).focus()
    page.keyboard.press("Enter")
    page.locator("video").wait_for()
    until(page, "!document.querySelector('video').paused || document.querySelector('video').currentTime > 0.2")


def test_more_like_this(page, address, index):
    page.goto(address)
    search(page, "red")
    page.locator(".hits button").nth(0).click()
    page.locator("video").wait_for()
    page.get_by_role("button", name="More like this").click()
    page.get_by_text("00:00-00:08 of trips/red then blue then red.mp4").wait_for()
    assert page.get_by_label("What happens in the video?").input_value() == ""
    assert index.searches[-1]["video"][1:] == (0.0, 8.0)
    assert page.locator("video").count() == 0 or not page.locator("video").is_visible()


def test_a_picture_and_a_clip_are_dropped(page, address, index, tmp_path):
    Image.new("RGB", (64, 48), COLORS["blue"]).save(tmp_path / "sky.png")
    clip = write_colors(tmp_path / "meadow.mp4", "green", seconds=1.0)
    (tmp_path / "notes.txt").write_text("hello")
    for file, answer, first in (
        (tmp_path / "sky.png", "like the image sky.png", "red then blue then red.mp4"),
        (clip, "like the video meadow.mp4", "${alert(1)}"),
    ):
        page.goto(address)
        drop(page, file)
        page.get_by_text(answer).wait_for()
        until(page, "document.querySelectorAll('.hits img').length > 0")
        assert first in page.locator(".hits button").nth(0).inner_text()
    page.goto(address)
    drop(page, tmp_path / "notes.txt")
    page.get_by_text("notes.txt: text, not a video or picture").wait_for()
    assert str(tmp_path) not in page.content()


def drop(page, file: Path) -> None:
    """Drops a file on the page, like a user from the desktop."""
    content = file.read_bytes().hex()
    data = page.evaluate_handle(
        """([content, name]) => {
            const bytes = new Uint8Array(content.match(/../g).map(byte => parseInt(byte, 16)));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name));
            return data;
        }""",
        [content, file.name],
    )
    target = page.locator("#file button").first
    target.wait_for()
    target.dispatch_event("drop", {"dataTransfer": data})


def test_nothing_matches_and_filters(page, address):
    page.goto(address)
    search(page, "unicorns")
    page.get_by_text("Probably nothing in this index matches “unicorns”.").wait_for()
    page.get_by_text("Filters").click()
    number = page.get_by_label("number input for Minimum probability (percent)")
    number.fill("50")
    number.press("Enter")
    number.blur()
    page.get_by_text("Nothing was found for “unicorns” with a probability of at least 50%.").wait_for()
    assert page.locator(".hits li").count() == 0
    assert nothing_is_cut_off(page)


def test_strange_names_are_not_executed(page, address):
    page.goto(address)
    search(page, "green")
    first = page.locator(".hits button").nth(0)
    assert STRANGE.removeprefix("home/") in first.inner_text()
    first.click()
    page.locator("video").wait_for()
    assert STRANGE.removeprefix("home/") in page.locator(".playing").inner_text()
    search(page, "<img src=x onerror=alert(1)>${alert(1)}")


def test_new_videos_appear(page, index, tmp_path):
    write_colors(tmp_path / "a.mp4", "red")
    growing = FakeIndex(tmp_path, {"a.mp4": [(0.0, 4.0)]})
    with serving(growing) as address:
        page.goto(address)
        search(page, "green")
        assert page.locator(".hits li").count() == 1
        write_colors(tmp_path / "b.mp4", "blue")
        growing.spans["b.mp4"] = [(0.0, 4.0)]
        search(page, "blue")
        assert "b.mp4" in page.locator(".hits button").nth(0).inner_text()
        page.goto("about:blank")  # otherwise, the page would report that the server is gone


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_players_of_a_page_jump_to_their_spans(page, index, tmp_path, scheme):
    results = [(name, index.search(name)) for name in ("blue", "green", "unicorns")]
    file = write_search_page(tmp_path / "page.html", index, results)
    page.emulate_media(color_scheme=scheme)
    page.goto(file.as_uri())
    page.get_by_text("Probably nothing in this index matches.").wait_for()
    assert nothing_is_cut_off(page)
    assert page.evaluate("Array.from(document.querySelectorAll('video')).every(video => video.readyState === 0)")
    page.get_by_text("Play 00:08-00:12").first.click()
    until(page, "document.querySelector('video').currentTime > 5.3")
    assert color_shown(page) == "blue"
    until(page, "document.querySelector('video').paused")
    assert 9 <= page.evaluate("document.querySelector('video').currentTime") < 9.6
    assert nothing_is_cut_off(page)
    page.get_by_role("button", name="Play the span again").first.click()
    until(page, "document.querySelector('video').currentTime < 7")
    page.get_by_text("Play 00:00-00:08").first.click()  # only one video plays at a time
    until(page, "document.querySelector('video').paused")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly(tmp_path, number):
    make_video(tmp_path / "videos/a.mp4", 3.0, seed=0)
    index = VideoIndex.create(tmp_path / "index", str(save_checkpoint("space_time", tmp_path / "model")))
    index.update(tmp_path / "videos")
    (tmp_path / "temporary").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "region_learner", "app", str(index.directory), "--port", str(port)],
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        assert process.stdout.readline() == f"The app is running at {address}. Press Ctrl-C to end it.\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 200
        assert any((tmp_path / "temporary").glob("region-learner-app-*"))
    finally:
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert output == ""
    assert "region-learner: interrupted. The app has ended." in errors
    assert "Traceback" not in errors
    assert not any((tmp_path / "temporary").glob("region-learner-app-*"))


def test_a_page_of_results_fits_a_phone(page, tmp_path):
    phrases = [("a red square that moves to the left", a_strip(0)), ("x" * 80, a_strip(1))]
    long = Result(
        "folder/" + "x" * 120 + ".mp4", 0.5, a_strip(2), a_strip(3), ["word " * 60, "y" * 120], True, "z" * 90, phrases
    )
    contents = a_page(subtitle="s" * 90, facts=[("file", "f" * 90), ("parameters", "3.1 M")])
    contents = replace(contents, queries=[*contents.queries, Query("q" * 120, [long], "n" * 120)])
    page.goto(write_page(tmp_path / "index.html", contents).as_uri())
    page.get_by_text("q" * 120).first.wait_for()
    assert nothing_is_cut_off(page)
    assert page.evaluate("Array.from(document.images).every(image => image.naturalWidth > 0)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.mark.timeout(600)
def test_the_site_fits_a_phone(page, site):
    """Wide tables and long lines of code scroll, but never the page around them."""
    files = sorted(set(site.rglob("*.html")) - {site / "404.html"})  # its links need a server
    assert len(files) > 30
    for file in files:
        page.goto(file.as_uri())
        assert nothing_is_cut_off(page), file.name
    # The first column of a table names its rows: a few words fit in each of its lines.
    page.goto((site / "evidence.html").as_uri())
    widths = page.evaluate(
        """Array.from(document.querySelectorAll("tbody td:first-child"), cell => {
            const style = getComputedStyle(cell);
            return cell.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        })"""
    )
    assert len(widths) > 100
    assert min(widths) >= 80
    # The lines of commands are wrapped on a phone.
    page.goto((site / "finetune.html").as_uri())
    if page.viewport_size["width"] < 500:
        blocks = "Array.from(document.querySelectorAll('.language-bash code'))"
        assert page.evaluate(f"{blocks}.length") > 5
        assert page.evaluate(f"{blocks}.every(block => block.scrollWidth <= block.clientWidth)")
