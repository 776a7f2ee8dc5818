"""Small files that claim to contain very much, made byte by byte because no encoder writes them."""

import struct


def box(name: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), name) + content


def full_box(name: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", flags), *parts)


def replace_boxes(data: bytes, new: dict[bytes, bytes], inside=(b"moov", b"trak", b"mdia", b"minf", b"stbl")) -> bytes:
    """Returns an MP4 with the boxes of these names replaced, wherever they are, and all sizes updated."""
    out, start = b"", 0
    while start + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        content = data[start + 8 : start + size]
        if name in new:
            out += new[name]
        else:
            out += box(name, replace_boxes(content, new, inside) if name in inside else content)
        start += size
    return out


def samples_without_bytes(video: bytes, count: int) -> bytes:
    """Returns an MP4 whose tables claim `count` frames of one byte each, all in one chunk."""
    numbers = struct.pack
    return replace_boxes(
        video,
        {
            b"stsz": full_box(b"stsz", numbers(">II", 1, count)),
            b"stts": full_box(b"stts", numbers(">III", 1, count, 1)),
            b"stsc": full_box(b"stsc", numbers(">IIII", 1, 1, count, 1)),
            b"stco": full_box(b"stco", numbers(">II", 1, 48)),
            b"ctts": b"",
            b"stss": b"",
        },
    )


def fragment_without_bytes(video: bytes, count: int) -> bytes:
    """Returns an MP4 with a fragment that claims `count` frames but has none."""
    extends = box(b"mvex", full_box(b"trex", struct.pack(">IIIII", 1, 1, 1, 1, 0)))
    moov = video.index(b"moov") - 4
    size = int.from_bytes(video[moov : moov + 4], "big")
    whole = video[:moov] + box(b"moov", video[moov + 8 : moov + size], extends) + video[moov + size :]
    header = full_box(b"tfhd", struct.pack(">I", 1), flags=0x20000)
    run = full_box(b"trun", struct.pack(">I", count))
    return whole + box(b"moof", full_box(b"mfhd", struct.pack(">I", 1)), box(b"traf", header, run))


def large_gif(width: int, height: int) -> bytes:
    """Returns a GIF with a screen of this size, whose only frame has one pixel."""
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + frame + b";"
