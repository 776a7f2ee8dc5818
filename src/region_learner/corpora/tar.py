"""Reads tar files by their headers, skipping the content of their members.

The standard library's `tarfile` treats a damaged header as the end of the file, and silently loses the rest. It is
also slower, by a factor of 3.8 if only headers are read, and of 2.0 if a stream of 30,000 samples with a .json each is
replayed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from .base import CorpusError

_BLOCK = 512
_MAX_EXTENDED_HEADER = 2**20  # bytes of a long name or of a pax header


class Member(NamedTuple):
    """A regular file in a shard: its name, and the place of its content."""

    name: str
    offset: int
    size: int


class DamagedShardError(CorpusError):
    """The rest of a shard cannot be read."""


def walk_members(file: BinaryIO, shard: str) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar file (POSIX ustar and pax, GNU, V7), reading only its headers.

    Directories are skipped. Archives that were concatenated with `cat` are read to the end.

    Args:
        file: the shard, opened without a buffer. It may be moved between two members.
        shard: the name of the shard, for messages.

    Raises:
        CorpusError: the file is damaged, truncated or compressed; a member is a link or a device, or its name is
            absolute or leads out of the directory it would be unpacked to.
    """
    length = file.seek(0, os.SEEK_END)
    position = 0
    extended: dict[str, Any] = {}  # name and size of the next member, if they do not fit into its own header
    ended = False
    while position < length:
        block = read_at(file, position, _BLOCK, shard)
        if not block.strip(b"\0"):
            ended = True
            position += _BLOCK
            continue
        ended = False
        _check_checksum(block, position, shard)
        kind = block[156:157]
        is_extended = kind in b"LKxgX"
        size = _number(block[124:136], position, shard)
        if "size" in extended and not is_extended:
            size = extended["size"]
        offset = position + _BLOCK
        if not 0 <= size <= length - offset:
            raise DamagedShardError(
                f"{shard} is damaged or truncated: its member at byte {position} should have {size} bytes, but only "
                f"{length - offset} follow"
            )
        following = offset + -(-size // _BLOCK) * _BLOCK
        if is_extended:
            extended |= _read_extended(file, kind, position, size, shard)
            position = following
            continue
        name = extended["path"] if "path" in extended else _name(block, shard)
        is_sparse = extended.get("sparse", False)
        extended = {}
        is_directory = kind == b"5" or (kind == b"\0" and name.endswith("/"))
        if not is_directory:
            _check_member(name, b"S" if is_sparse else kind, shard)
            yield Member(name, offset, size)
        position = offset if is_directory else following
    if not ended:
        raise DamagedShardError(f"{shard} is truncated: it has no end-of-archive mark after its last member")


def read_at(file: BinaryIO, offset: int, size: int, shard: str) -> bytes:
    """Reads exactly `size` bytes. Callers know that the file has them, or that they are few."""
    try:
        file.seek(offset)
        content = file.read(size)
        while len(content) < size and (more := file.read(size - len(content))):
            content += more
    except OSError as error:
        raise DamagedShardError(f"{shard} cannot be read at byte {offset}: {error.strerror}") from error
    if len(content) < size:
        raise DamagedShardError(f"{shard} is truncated at byte {offset + len(content)}")
    return content


def _check_checksum(block: bytes, position: int, shard: str) -> None:
    """Checks the sum of a header's bytes. The field of the sum itself counts as blanks."""
    try:
        wanted = int(block[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        wanted = -1
    if sum(block.translate(None, b"\0")) - sum(block[148:156]) + 8 * ord(" ") != wanted:
        what = "is not a tar file" if position == 0 else "is damaged"
        raise DamagedShardError(f"{shard} {what}: no header at byte {position}")


def _number(field: bytes, position: int, shard: str) -> int:
    """Parses a number of octal digits, or (GNU) in binary with the first bit set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise DamagedShardError(f"{shard} is damaged: no size in the header at byte {position}") from None


def _name(block: bytes, shard: str) -> str:
    name = block[:100].split(b"\0", 1)[0]
    # The older GNU format has other fields in the place of the prefix.
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return _text(name, shard)


def _text(name: bytes, shard: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise CorpusError(f"{shard}: the name of member {name!r} is not UTF-8: pack the shard again") from None


def _read_extended(file: BinaryIO, kind: bytes, position: int, size: int, shard: str) -> dict[str, Any]:
    """Reads what the extended header at `position`, of `size` bytes, says of the next member."""
    if kind not in b"LxX":
        return {}  # others do not rename or resize it
    if size > _MAX_EXTENDED_HEADER:
        raise DamagedShardError(f"{shard} is damaged: a header at byte {position} of {size} bytes")
    content = read_at(file, position + _BLOCK, size, shard)
    if kind == b"L":
        return {"path": _text(content.split(b"\0", 1)[0], shard)}
    return _read_pax(content, position, shard)


def _read_pax(content: bytes, position: int, shard: str) -> dict[str, Any]:
    """Reads `path`, `size` and whether the file is sparse from the records `LENGTH KEY=VALUE\\n` of a pax header."""
    found: dict[str, Any] = {}
    start = 0
    while start < len(content) and content[start]:
        digits, _, _ = content[start : start + 20].partition(b" ")
        try:
            end = start + int(digits)
            if end <= start:  # the same record again, or an earlier one
                raise ValueError
            key, equals, value = content[start + len(digits) + 1 : end - 1].partition(b"=")
            if not equals or content[end - 1 : end] != b"\n":
                raise ValueError
            if key == b"path":
                found["path"] = _text(value, shard)
            elif key == b"size":
                found["size"] = int(value)
            elif key.startswith(b"GNU.sparse."):
                found["sparse"] = True
        except ValueError as error:
            if isinstance(error, CorpusError):
                raise
            raise DamagedShardError(f"{shard} is damaged: the pax header at byte {position} has no records") from None
        start = end
    return found


_REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


def _check_member(name: str, kind: bytes, shard: str) -> None:
    """Checks that a member is a regular file whose name does not lead out of the shard."""
    if kind not in (b"0", b"\0", b"7"):
        what = _REFUSED.get(kind, "a sparse file" if kind == b"S" else f"of the unknown type {kind!r}")
        raise CorpusError(f"{shard}: member {name!r} is {what}: shards hold only regular files; pack it again")
    parts = name.replace("\\", "/").split("/")
    if not name or name[0] in "/\\" or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise CorpusError(f"{shard}: member {name!r} leads outside of the shard: use relative names without '..'")
