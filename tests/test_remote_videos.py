"""Tests videos at URLs: what is read, what is refused, and when reading is given up."""

import contextlib
import http.client
import http.server
import re
import socket
import threading
import time

import numpy as np
import pytest
from datasets import Dataset

from region_learner import RegionLearnerVideoProcessor, video_decoding_region_learner
from region_learner import remote_videos as module
from region_learner.corpora import check_corpus
from region_learner.video_decoding_region_learner import VideoDecodeError, iterate_frames

from .test_video_processing import read, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "plain.mp4", options={"g": "10", "bf": "2"})


@pytest.fixture
def server(video):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = video.read_bytes()
            if self.path == "/missing.mp4":
                self.send_error(404)
            elif self.path == "/moved.mp4":
                self.send_response(302)
                self.send_header("Location", "/video.mp4")
                self.end_headers()
            elif self.path == "/elsewhere.mp4":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1/video.mp4")
                self.end_headers()
            elif self.path == "/inside.mp4":
                self.send_response(302)
                self.send_header("Location", "https://127.0.0.1/video.mp4")
                self.end_headers()
            elif self.path == "/ftp.mp4":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/video.mp4")
                self.end_headers()
            elif self.path == "/announced.mp4":
                self.send_response(200)
                self.send_header("Content-Length", str(2**40))
                self.end_headers()
            elif self.path == "/slow.mp4":
                released.wait(10)
            elif "dripping" in self.path:
                if "header" not in self.path:
                    self.send_response(200)
                    self.end_headers()
                with contextlib.suppress(OSError):  # the client has disconnected
                    for _ in range(100):
                        self.wfile.write(b"x")
                        self.wfile.flush()
                        released.wait(0.1)
            else:
                self.send_response(200)
                if self.path != "/open_ended.mp4":
                    self.send_header("Content-Length", str(len(data) * (2 if "broken_off" in self.path else 1)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    released = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        released.set()
        httpd.shutdown()


def ssl_free_connection(server: str):
    """Returns a class of connections that reach `server`, unencrypted, whatever host they are for."""

    class Connection(http.client.HTTPConnection):
        def __init__(self, host, **kwargs):
            super().__init__(server.removeprefix("http://"), timeout=10)

    return Connection


def test_videos_from_urls(server, video, monkeypatch):
    monkeypatch.setenv("REGION_LEARNER_URLS", "any")
    expected = read(video, 5, 30)[0]
    for url in (f"{server}/video.mp4", f"{server}/moved.mp4", f"{server}/open_ended.mp4", video.as_uri()):
        np.testing.assert_array_equal(read(url, 5, 30)[0], expected)
    for name, reason in (
        ("missing", "Not Found"),
        ("broken_off", "bytes arrived"),
        ("announced", "larger than 1073741824 bytes"),
        ("ftp", "unknown url type"),
    ):
        with pytest.raises(VideoDecodeError, match=f"^{server}/{name}.mp4: .*{reason}"):
            read(f"{server}/{name}.mp4", 0)
    with pytest.raises(OSError, match=r"^the URL is not valid: check its port") as error:
        module.read_url(f"{server}/my video.mp4?token=secret")
    assert "secret" not in str(error.value)
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    with pytest.raises(VideoDecodeError, match="timed out"):
        read(f"{server}/slow.mp4", 0)
    monkeypatch.setattr(module, "_MAX_BYTES", 100)
    for name in ("video", "open_ended"):
        with pytest.raises(VideoDecodeError, match="larger than 100 bytes"):
            read(f"{server}/{name}.mp4", 0)


def test_urls_are_read_wherever_videos_are(server, video, monkeypatch):
    monkeypatch.setenv("REGION_LEARNER_URLS", "any")
    url = f"{server}/video.mp4"
    processor = RegionLearnerVideoProcessor.for_image_size(32)
    expected = processor(video)["pixel_values_videos"][0]
    for videos in (url, [url], [[url]], {"path": url, "bytes": None}, [video, url]):
        assert (processor(videos)["pixel_values_videos"][-1] == expected).all()
    np.testing.assert_array_equal(processor.decode(url)[0], processor.decode(video)[0])
    assert len(list(iterate_frames(url))) == 40
    rows = [{"video": url, "video_id": "0", "captions": ["x"]}, {"video": f"{server}/missing.mp4", "video_id": "1"}]
    checked = check_corpus(Dataset.from_list(rows), workers=1)  # in another process
    assert [entry["reason"] for entry in checked["unreadable"]] == [f"{server}/missing.mp4: Not Found"]


@pytest.mark.parametrize("url", ["https://example.org/video.mp4", "http://example.org/video.mp4", "file:///video.mp4"])
def test_without_the_package_urls_are_refused(url, monkeypatch):
    """A checkpoint's copy of the file has no reader of URLs."""
    monkeypatch.setattr(video_decoding_region_learner, "_url_reader", None)
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(VideoDecodeError, match=f"^{url}: URLs are only read with the region-learner package[^\n]*$"):
        read(url, 0)


def test_urls_must_be_public_unless_allowed(server, video, monkeypatch):
    monkeypatch.delenv("REGION_LEARNER_URLS", raising=False)
    asked = "set REGION_LEARNER_URLS=any"
    for url, reason in (
        (f"{server}/video.mp4", "http is not encrypted"),
        (video.as_uri(), "a URL of a local file"),
        ("https://127.0.0.1/video.mp4", "127.0.0.1, which is not a public address"),
        ("https://[::1]/video.mp4", "::1, which is not a public address"),
        ("https://169.254.169.254/video.mp4", "not a public address"),
        ("https://localhost/video.mp4", "not a public address"),
    ):
        with pytest.raises(VideoDecodeError, match=f"^{re.escape(url)}: .*{re.escape(reason)}.*{asked}"):
            read(url, 0)
    for url in ("https://", "https://[oops/video.mp4", "https:///video.mp4"):
        with pytest.raises(VideoDecodeError, match=re.escape(url)):
            read(url, 0)


@pytest.mark.parametrize(
    ("name", "reason"), [("elsewhere", "http is not encrypted"), ("ftp", "unknown url type: ftp")]
)
def test_redirects_are_checked(server, monkeypatch, name, reason):
    """A public server may redirect elsewhere. Here, the first request counts as one to a public address."""
    redirecting = ssl_free_connection(server)
    monkeypatch.setattr(module, "_PublicConnection", redirecting)
    with pytest.raises(VideoDecodeError, match=reason):
        read(f"https://example.org/{name}.mp4", 0)


def test_redirects_to_other_addresses_are_checked(server, monkeypatch):
    reached = ssl_free_connection(server)
    public = module._PublicConnection
    # The first request reaches the server. The redirected one uses the real connections.
    connections = iter([reached, public])
    monkeypatch.setattr(module, "_PublicConnection", lambda *args, **kwargs: next(connections)(*args, **kwargs))
    with pytest.raises(VideoDecodeError, match=r"127\.0\.0\.1, which is not a public address"):
        read("https://example.org/inside.mp4", 0)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "https://127.0.0.1:9"])
def test_http_is_refused_behind_a_proxy_too(proxy, monkeypatch):
    monkeypatch.delenv("REGION_LEARNER_URLS", raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(VideoDecodeError, match="http is not encrypted"):
        read("http://10.0.0.1/video.mp4", 0)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34 in IPv6-only networks
        ("64:ff9b::a00:1", False),  # 10.0.0.1
        ("64:ff9b:1::a00:1", False),
        ("2002:7f00:1::", False),  # 127.0.0.1
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("fec0::1", False),
        ("fe80::1%eth0", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
    ],
)
def test_public_addresses(address, public):
    assert module._is_public(address) == public


def test_a_server_that_never_finishes(server, monkeypatch):
    monkeypatch.setenv("REGION_LEARNER_URLS", "any")
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    for name in ("dripping_header.mp4", "dripping.mp4"):
        with pytest.raises(VideoDecodeError, match=f"{name}: not downloaded within 0.5 seconds"):
            read(f"{server}/{name}", 0)


def test_connections_use_the_address_that_was_checked(monkeypatch):
    """The name resolves to a public address when it is checked, and to a local one when it is resolved again."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, *args, **kwargs: [(socket.AF_INET, 1, 6, "", (next(answers), port))]
    )
    connected = []

    def connect(address, *args):
        connected.append(address)
        raise OSError("stop here")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(VideoDecodeError, match="stop here"):
        read("https://rebinding.example/video.mp4", 0)
    assert connected == [("93.184.216.34", 443)]


def test_many_addresses_share_the_time(monkeypatch):
    addresses = [f"93.184.216.{number}" for number in range(100)]
    found = [(socket.AF_INET, 1, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    timeouts = []

    def connect(address, timeout):
        timeouts.append(timeout)
        time.sleep(min(timeout, 0.2))
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(VideoDecodeError, match=r"not downloaded within 0\.5 seconds"):
        read("https://slow.example/video.mp4", 0)
    assert len(timeouts) < 5
    assert max(timeouts) <= 0.5


def test_all_addresses_of_a_name_are_tried(monkeypatch):
    found = [(socket.AF_INET6, 1, 6, "", ("2606:4700::1111", 443, 0, 0)), (socket.AF_INET, 1, 6, "", ("1.1.1.1", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    tried = []

    def connect(address, *args):
        tried.append(address[0])
        raise OSError(f"{address[0]} does not answer")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(VideoDecodeError, match=r"1\.1\.1\.1 does not answer"):
        read("https://example.org/video.mp4", 0)
    assert tried == ["2606:4700::1111", "1.1.1.1"]
