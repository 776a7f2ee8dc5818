"""Tests for the search app: its answers, and the HTTP requests that it refuses."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from region_learner import VideoIndex

from .fake_index import COLORS, FakeIndex, write_colors
from .search_toys import make_video, save_checkpoint

gr = pytest.importorskip("gradio", reason="the app needs Gradio")
httpx = pytest.importorskip("httpx")

from region_learner.search import guard  # noqa: E402
from region_learner.search.app import Answers, Query, build_app, hit_of, kind_of, serving  # noqa: E402

# Gradio's request statistics use deprecated options of pandas.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")

NO_FILTERS = ("", 0, 12)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> FakeIndex:
    folder = tmp_path_factory.mktemp("videos")
    write_colors(folder / "trips/red then blue.mp4", "red", "blue")
    write_colors(folder / "home/green.mp4", "green")
    spans = {"trips/red then blue.mp4": [(0.0, 4.0), (4.0, 8.0)], "home/green.mp4": [(0.0, 4.0)]}
    return FakeIndex(folder, spans)


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.new("RGB", (32, 32), COLORS["blue"]).save(tmp_path / "sky.png")
    return tmp_path / "sky.png"


def last(values) -> tuple:
    """Returns the final value of each component, as a browser would show it."""
    state: list = [None] * 7
    for number, update in enumerate(values):
        skipped = [isinstance(value, dict) and set(value) == {"__type__"} for value in update]
        state = [old if skip and number else value for old, value, skip in zip(state, update, skipped)]
    return tuple(state)


# --- Answers -----------------------------------------------------------------------------------------------------


def test_words_find_spans(index):
    query, hits, answer, results, panel, _, file = last(Answers(index).to_words(" blue ", *NO_FILTERS))
    assert query == Query("“blue”", {"text": "blue"})
    assert (hits[0].path, hits[0].start, hits[0].end) == ("trips/red then blue.mp4", 4.0, 8.0)
    assert "3 spans for “blue”" in answer
    assert results.count("<button") == results.count("<img") == 3
    assert results.index("00:04-00:08") < results.index("00:00-00:04")
    assert "likely, 95%" in results
    assert "unlikely, 5%" in results
    assert not panel.visible
    assert file is None  # a dropped file is no longer the query


def test_hits_come_before_their_pictures(index):
    first = next(iter(Answers(index).to_words("blue", *NO_FILTERS)))
    assert "<img" not in first[3]
    assert first[3].count("<button") == 3


def test_an_empty_text_is_not_a_query(index):
    assert list(Answers(index).to_words("  ", *NO_FILTERS)) == []


def test_filters(index):
    answers = Answers(index)
    hits = last(answers.to_words("green", "trips", 0, 12))[1]
    assert {hit.path for hit in hits} == {"trips/red then blue.mp4"}
    assert len(last(answers.to_words("green", "", 0, 2))[1]) == 2
    hits = last(answers.to_words("green", "", 50, 12))[1]
    assert [hit.path for hit in hits] == ["home/green.mp4"]
    _, hits, answer, results, *_ = last(answers.to_words("yellow", None, 50, 12))
    assert hits == []
    assert "Nothing was found for “yellow” with a probability of at least 50%." in answer
    assert "<button" not in results


def test_folders_are_found_by_their_displayed_names(tmp_path):
    write_colors(tmp_path / "new\nyear/green.mp4", "green")
    answers = Answers(FakeIndex(tmp_path, {"new\nyear/green.mp4": [(0.0, 4.0)]}))
    assert list(answers.folders) == [r"new\nyear"]
    assert len(last(answers.to_words("green", r"new\nyear", 0, 12))[1]) == 1


def test_no_match_is_an_answer(index):
    _, hits, answer, *_ = last(Answers(index).to_words("a unicorn", *NO_FILTERS))
    assert len(hits) == 3
    assert "Probably nothing in this index matches “a unicorn”." in answer


def test_picture_and_clip_as_query(index, picture, tmp_path):
    query, hits, answer, *_, words, _ = last(Answers(index).to_file(str(picture), *NO_FILTERS))
    assert query.options == {"image": str(picture)}
    assert (hits[0].start, hits[0].end) == (4.0, 8.0)
    assert "3 spans like the image sky.png" in answer
    assert words == ""
    clip = write_colors(tmp_path / "meadow.mp4", "green")
    query, hits, *_ = last(Answers(index).to_file(str(clip), *NO_FILTERS))
    assert query.options == {"video": str(clip)}
    assert hits[0].path == "home/green.mp4"


def test_a_file_that_is_neither_image_nor_video(index, tmp_path):
    file = tmp_path / "<b>notes.txt"
    file.write_text("hello")
    query, hits, answer, *_ = last(Answers(index).to_file(str(file), *NO_FILTERS))
    assert query is None
    assert hits == []
    assert "&lt;b&gt;notes.txt" in answer
    assert "text, not a video" in answer
    assert str(tmp_path) not in answer


def test_kind_of(picture, tmp_path):
    assert kind_of(str(picture)) == "image"
    frames = [Image.new("RGB", (16, 16), color) for color in COLORS.values()]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert kind_of(str(tmp_path / "a.webp")) == "video"


def test_more_like_this(index):
    answers = Answers(index)
    hit = last(answers.to_words("red", *NO_FILTERS))[1][0]
    _, hits, answer, *_ = last(answers.to_more(hit, *NO_FILTERS))
    assert index.searches[-1]["video"] == (index.source(hit.path), 0.0, 4.0)
    assert index.searches[-1]["exclude"] == (hit.path, 0.0, 4.0)
    assert index.searches[-1]["k"] == 12
    assert len(hits) == 2
    assert all((other.path, other.start) != (hit.path, hit.start) for other in hits)  # the hit itself is left out
    assert "Probably nothing in this index matches 00:00-00:04 of trips/red then blue.mp4" in answer
    assert list(answers.to_more(None, *NO_FILTERS)) == []


def test_again_repeats_the_query_with_other_filters(index):
    query = Query("“green”", {"text": "green"})
    _, hits, *_ = last(Answers(index).again(query, "home", 0, 12))
    assert [hit.path for hit in hits] == ["home/green.mp4"]
    assert list(Answers(index).again(None, *NO_FILTERS)) == []


def test_errors_are_answers(index, monkeypatch):
    def refuse(**_):
        raise ValueError("no folder <trips>\nin the index")

    monkeypatch.setattr(index, "search", refuse)
    query, hits, answer, *_ = last(Answers(index).to_words("red", *NO_FILTERS))
    assert "no folder &lt;trips&gt; in the index" in answer
    assert hits == []
    assert query is not None  # so that changed filters repeat it


def test_player(index):
    hit = last(Answers(index).to_words("blue", *NO_FILTERS))[1][0]
    panel, player = Answers(index).play(hit)
    assert panel.visible
    assert 'data-begin="4.0" data-stop="8.0"' in player
    assert "data:video/mp4;base64," in player


def test_a_video_that_is_gone_is_named(tmp_path):
    write_colors(tmp_path / "a.mp4", "red")
    index = FakeIndex(tmp_path, {"a.mp4": [(0.0, 4.0)]})
    hit = index.search(text="red")[0]
    (tmp_path / "a.mp4").unlink()
    _, player = Answers(index).play(hit)
    assert "<video" not in player
    assert "no such file" in player


@pytest.mark.parametrize("data", [None, {}, [0], {"hit": -1}, {"hit": 3}, {"hit": "0"}, {"hit": True}, {"hit": None}])
def test_only_numbers_of_hits_are_accepted(data):
    assert hit_of(["a", "b", "c"], data) is None
    assert hit_of(["a", "b", "c"], {"hit": 2}) == "c"


def test_without_gradio(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(
        ImportError, match=r"^The app needs Gradio: pip install 'region-learner\[app\]' \(in a clone: .*\)$"
    ):
        build_app(index)


# --- HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(index):
    with serving(index) as address:
        yield address.rstrip("/")


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def upload(client, name: str, content: bytes) -> str:
    """Uploads a file, and returns its path on the server."""
    answer = client.post("/gradio_api/upload", files={"files": (name, io.BytesIO(content))})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def ask(client, name: str, *data) -> dict:
    """Calls a function of the app as browsers do, and returns the last message about it."""
    functions = client.get("/config").json()["dependencies"]
    number = next(function["id"] for function in functions if function["api_name"] == name)
    session = os.urandom(8).hex()
    request = {"data": list(data), "fn_index": number, "session_hash": session}
    assert client.post("/gradio_api/queue/join", json=request).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as messages:
        for line in messages.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


def test_page_is_served_locally_only(client, address):
    assert address.startswith("http://127.0.0.1:")
    assert client.get("/").status_code == 200
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert all(function["api_visibility"] == "private" for function in config["dependencies"])


def test_words_over_http(client):
    answer = ask(client, "to_words", "blue", "", 0, 12)
    assert answer["success"]


def test_an_index_that_grows(tmp_path):
    """Another process may write while the app searches, and threads of the app share the index."""
    make_video(tmp_path / "videos/a.mp4", 5.0, seed=0)
    model = str(save_checkpoint("space_time", tmp_path / "model"))
    made = VideoIndex.create(tmp_path / "index", model, window=4.0, stride=2.0)
    made.update(tmp_path / "videos")
    with serving(VideoIndex.open(tmp_path / "index")) as address, httpx.Client(base_url=address) as client:
        for _ in range(3):
            answer = ask(client, "to_words", "a red square", None, 0, 12)
            assert answer["success"]
        assert "a.mp4" in json.dumps(answer)
        make_video(tmp_path / "videos/b.mp4", 5.0, seed=1)
        made.update(tmp_path / "videos")
        assert "b.mp4" in json.dumps(ask(client, "to_words", "a red square", None, 0, 12))
        assert "2 videos in the index" in json.dumps(ask(client, "heading"))
        folder = str(tmp_path / "videos")
        assert "b.mp4" in json.dumps(ask(client, "to_words", "blue", folder, 0, 12))
        assert "has no videos within" in json.dumps(ask(client, "to_words", "blue", folder + "/c", 0, 12))


def test_uploaded_picture_is_a_query(client, picture, index):
    path = upload(client, "sky.png", picture.read_bytes())
    assert client.get(f"/gradio_api/file={path}").content == picture.read_bytes()
    answer = ask(client, "to_file", {"path": path, "meta": {"_type": "gradio.FileData"}}, "", 0, 12)
    assert answer["success"]
    assert index.searches[-1]["image"] == path


@pytest.mark.parametrize("prefix", ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy="])
def test_files_of_this_machine_are_not_served(client, index, tmp_path, prefix):
    (tmp_path / "secret.txt").write_text("secret")
    uploads = os.environ["GRADIO_TEMP_DIR"]
    link = Path(uploads, "link")
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    inside = index.source("home/green.mp4")
    for path in (
        "/etc/passwd",
        str(tmp_path / "secret.txt"),
        inside,
        f"{uploads}/../../etc/passwd",
        f"{uploads}/link/secret.txt",
        f"{uploads}/%2e%2e/%2e%2e/etc/passwd",
        os.path.relpath("/etc/passwd"),
        __file__,
        "pyproject.toml",
        "http://127.0.0.1:1/",
        "file:///etc/passwd",
        "",
    ):
        answer = client.get(prefix + path)
        assert answer.status_code in (403, 404), (prefix, path)
        assert answer.text in ("Not found.", "")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{video}", "pyproject.toml", "http://127.0.0.1:{port}/", "file:///etc/passwd"]
)
@pytest.mark.parametrize("function", ["to_file"])
def test_only_uploads_are_queries(client, index, address, path, function):
    searches = len(index.searches)
    path = path.format(video=index.source("home/green.mp4"), port=address.rpartition(":")[2])
    for payload in ({"path": path}, {"path": path, "url": path}, {"path": "", "url": path}):
        answer = ask(client, function, payload | {"meta": {"_type": "gradio.FileData"}}, "", 0, 12)
        assert not answer["success"], payload
    assert not ask(client, function, {"path": path}, "", 0, 12)["success"]
    assert len(index.searches) == searches


def test_addresses_are_not_fetched(client, monkeypatch):
    """Gradio would download files from public addresses; its function is replaced, so the test uses no network."""
    fetched = []

    async def fetch(address, **_):
        fetched.append(address)
        raise OSError

    monkeypatch.setattr(gr.processing_utils, "async_ssrf_protected_download", fetch)
    payload = {"path": "https://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
    assert not ask(client, "to_file", payload, "", 0, 12)["success"]
    assert fetched == []


def test_a_browser_cannot_choose_what_is_played(client, index):
    hit = {"path": "home/green.mp4", "start": 0, "end": 4}
    for function, data in (("play", [hit]), ("draw", [hit, True]), ("to_more", [hit, "", 0, 12])):
        answer = ask(client, function, *data)
        assert "data:video" not in json.dumps(answer)
        assert "data:image" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/gradio_api/run/to_words"),
        ("POST", "/gradio_api/call/to_words"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("DELETE", "/"),
        ("PUT", "/gradio_api/upload"),
    ],
)
def test_other_endpoints_do_not_exist(client, method, path):
    answer = client.request(method, path)
    assert (answer.status_code, answer.text) == (404, "Not found.")


def test_other_sites_cannot_use_it(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"host": f"localhost:{client.base_url.port}"}).status_code == 200
    assert client.post("/gradio_api/upload", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/gradio_api/queue/join", headers={"origin": "null"}, content="{}").status_code == 403
    own = {"origin": f"http://{client.base_url.host}:{client.base_url.port}"}
    assert client.get("/config", headers=own).status_code == 200


def test_uploads_are_bounded(client, index, monkeypatch):
    monkeypatch.setattr(guard, "_MAX_UPLOADS", 10)
    upload_ = {"files": ("a.png", b"0" * 100)}
    client.post("/gradio_api/upload", files=upload_)
    answer = client.post("/gradio_api/upload", files=upload_)
    assert answer.status_code == 413
    assert "restart the app" in answer.text


def test_one_upload_is_bounded(index, monkeypatch):
    monkeypatch.setattr("region_learner.search.app.MAX_UPLOAD", 1000)
    with serving(index) as address, httpx.Client(base_url=address, trust_env=False) as client:
        assert client.post("/gradio_api/upload", files={"files": ("a.png", b"0" * 5000)}).status_code == 413


def test_temporary_files_are_removed(index, monkeypatch, picture):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "somewhere")
    with serving(index) as address, httpx.Client(base_url=address, trust_env=False) as client:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        path = upload(client, "sky.png", picture.read_bytes())
        assert Path(path).is_relative_to(folder)
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "somewhere"
    with pytest.raises(httpx.TransportError):
        httpx.get(address, trust_env=False)


def test_a_port_that_is_taken(index, address):
    port = int(address.rpartition(":")[2])
    with (
        pytest.raises(OSError, match=rf"^Port {port} is already in use: choose another one with --port\.$"),
        serving(index, port=port),
    ):
        pass
