"""Reads videos from URLs. URLs may come from strangers' data, and must not reach into the local network."""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

_MAX_BYTES = 2**30
_TIMEOUT = 30  # seconds without an answer
_SECONDS = 600  # in total
_HINT = "set REGION_LEARNER_URLS=any to allow it"

# IPv6 networks that are not public though Python calls them global, and the network that translates to IPv4.
_NOT_PUBLIC = [ipaddress.ip_network(name) for name in ("::/96", "64:ff9b:1::/48", "fec0::/10")]
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


def read_url(url: str) -> bytes | str:
    """
    Reads the file at an https URL of a public address into memory.

    Other URLs are refused, even after redirects, unless `REGION_LEARNER_URLS=any` is set in the environment. At most
    1 GiB is read, in at most 600 seconds.

    Args:
        url: an http, https or file URL.

    Returns:
        The bytes of the file, or the path that a file URL names.

    Raises:
        OSError: if the URL is refused or cannot be read. The message does not contain the URL.

    Example:

    ```python
    >>> register_url_reader(read_url)  # done by `import region_learner`
    >>> processor(["https://example.org/video.mp4"])
    ```
    """
    allows_any = os.environ.get("REGION_LEARNER_URLS") == "any"
    if url.startswith("file://"):
        if not allows_any:
            raise OSError(f"a URL of a local file; give its path, or {_HINT}")
        return urllib.request.url2pathname(urlsplit(url).path)
    deadline = _Deadline()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "region-learner"})
        with deadline, _opener(allows_any, deadline).open(request, timeout=_TIMEOUT) as response:
            data, announced = _read(response)
    except http.client.InvalidURL:  # whose message contains the URL
        raise OSError("the URL is not valid: check its port, and write special characters as %20 (a space)") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        if not deadline.has_passed:
            raise OSError(str(getattr(error, "reason", None) or error)) from error
    if deadline.has_passed:
        raise OSError(f"not downloaded within {_SECONDS} seconds")
    if announced is not None and len(data) != announced:
        raise OSError(f"only {len(data)} of {announced} bytes arrived: try again, or download it and give its path")
    return data


def _read(response: Any) -> tuple[bytes, int | None]:
    """Returns the body of a response, and the length that its header announces."""
    length = response.headers.get("Content-Length", "")
    announced = int(length) if length.isascii() and length.isdecimal() else None
    file = io.BytesIO()
    while (announced or 0) <= _MAX_BYTES and file.tell() <= _MAX_BYTES:
        if not (chunk := response.read1(2**20)):
            return file.getvalue(), announced
        file.write(chunk)
    raise OSError(f"larger than {_MAX_BYTES} bytes: download it, and give its path")


def _opener(allows_any: bool, deadline: _Deadline) -> urllib.request.OpenerDirector:
    proxies = urllib.request.getproxies()
    if not allows_any:  # a proxy for http would be asked before http is refused
        proxies = {"https": proxies["https"]} if "https" in proxies else {}
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),  # refuses redirects to ftp
        _HTTPSHandler(_HTTPSConnection if allows_any else _PublicConnection, deadline),
        _HTTPHandler(deadline) if allows_any else _RefusingHTTPHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Deadline:
    """
    Shuts connections down after `_SECONDS`. (The timeout of a socket restarts with each answer, and a server may send
    one byte of a header now and then.)
    """

    def __init__(self):
        self.has_passed = False
        self.end = time.monotonic() + _SECONDS
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(_SECONDS, self._shut_down)
        self.timer.daemon = True

    def __enter__(self):
        self.timer.start()

    def __exit__(self, *exception):
        self.timer.cancel()

    def remaining(self) -> float:
        """
        Returns the seconds until the deadline.

        Raises:
            OSError: it has passed.
        """
        if (seconds := self.end - time.monotonic()) <= 0:
            raise OSError(f"not downloaded within {_SECONDS} seconds")
        return seconds

    def add(self, connection: socket.socket):
        self.sockets.append(connection)
        if self.has_passed:
            self._shut_down()

    def _shut_down(self):
        self.has_passed = True
        for connection in self.sockets:
            with suppress(OSError):  # already closed
                connection.shutdown(socket.SHUT_RDWR)


class _HTTPConnection(http.client.HTTPConnection):
    def __init__(self, *args, deadline: _Deadline, **kwargs):
        self.deadline = deadline
        super().__init__(*args, **kwargs)

    def connect(self):
        super().connect()
        self.deadline.add(self.sock)


class _HTTPSConnection(_HTTPConnection, http.client.HTTPSConnection):
    pass


class _PublicConnection(http.client.HTTPSConnection):
    """
    Connects only to public addresses. It connects to the address that was checked instead of resolving the name again,
    because the name may resolve to another address a moment later. A proxy resolves names itself; the names that this
    machine can resolve are checked.
    """

    def __init__(self, host: str, deadline: _Deadline, **kwargs):
        self.deadline, self.tls = deadline, ssl.create_default_context()
        self.behind_proxy: str | None = None
        super().__init__(host, context=self.tls, **kwargs)

    def set_tunnel(self, host: str, port: int | None = None, headers: Any = None):
        self.behind_proxy = host
        super().set_tunnel(host, port, headers)

    def connect(self):
        host = self.behind_proxy or self.host
        try:
            found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            if self.behind_proxy is None:
                raise
            found = []  # a name that only the proxy knows
        addresses = [str(address[0]) for *_, address in found]
        for address in addresses:
            if not _is_public(address):
                raise OSError(f"{host} is {address}, which is not a public address; {_HINT}")
        if self.behind_proxy is not None:
            super().connect()
            self.deadline.add(self.sock)
            return
        for address in addresses:
            try:
                timeout = self.timeout if self.timeout is None else min(self.timeout, self.deadline.remaining())
                connection = socket.create_connection((address, self.port), timeout)
                break
            except OSError as error:
                failure = error
        else:
            raise failure
        self.deadline.add(connection)
        self.sock = self.tls.wrap_socket(connection, server_hostname=host)
        self.deadline.add(self.sock)


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    leads_to: list[Any] = []
    if isinstance(found, ipaddress.IPv6Address):
        if any(found in network for network in _NOT_PUBLIC):
            return False
        leads_to = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in _TRANSLATED:
            leads_to.append(ipaddress.IPv4Address(found.packed[-4:]))
    return all(one.is_global and not one.is_multicast for one in (found, *leads_to) if one is not None)


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline):
        super().__init__()
        self.deadline = deadline

    def http_open(self, request):
        return self.do_open(partial(_HTTPConnection, deadline=self.deadline), request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, connection: Any, deadline: _Deadline):
        super().__init__()
        self.connection, self.deadline = connection, deadline

    def https_open(self, request):
        return self.do_open(partial(self.connection, deadline=self.deadline), request)


class _RefusingHTTPHandler(urllib.request.BaseHandler):
    def http_open(self, request):
        raise OSError(f"http is not encrypted: use https, or {_HINT}")
