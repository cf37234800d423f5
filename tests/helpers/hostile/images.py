"""Files that are not valid images, built in memory: damaged, absurd, or of another kind."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import zlib
from pathlib import Path

from PIL import Image, features

AVIF = ("AVIF",) if features.check("avif") else ()
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "TGA", *AVIF)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """A valid image of 40 x 24 pixels of noise."""
    image = Image.effect_noise((40, 24), 90).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum


def png(width: int, height: int, depth: int = 8, kind: int = 2, body: bytes = b"") -> bytes:
    """A PNG with an arbitrary header, whether or not it matches the body."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def eps(program: str = "") -> bytes:
    head = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n%%EndComments\n"
    return f"{head}{program}\nshowpage\n%%EOF\n".encode()


def _damaged(kind: str) -> dict[str, bytes]:
    content = encoded(kind)
    rng = random.Random(kind)
    name = kind.lower()
    cases = {
        f"{name} cut in half": content[: len(content) // 2],
        f"{name} of 20 bytes": content[:20],
        f"{name} with zeros": content[:30] + bytes(len(content) - 30),
        f"{name} with ones": content[:40] + b"\xff" * (len(content) - 40),
    }
    for number in range(3):
        changed = bytearray(content)
        for _ in range(12):
            changed[rng.randrange(4, min(len(changed), 300))] = rng.randrange(256)
        cases[f"{name} with changed bytes {number}"] = bytes(changed)
    return cases


def _damaged_avif() -> dict[str, bytes]:
    """Files that make Pillow's decoder raise RuntimeError and ZeroDivisionError."""
    still = encoded("AVIF")
    data, places = still.index(b"mdat") + 4, still.index(b"iloc") + 4
    moving = encoded("AVIF", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    scale = moving.index(b"mdhd") + (24 if moving[moving.index(b"mdhd") + 4] else 16)
    return {
        "avif of empty data": still[:data] + bytes(len(still) - data),
        "avif of empty places": still[:places] + bytes(12) + still[places + 12 :],
        "avif without time": moving[:scale] + bytes(4) + moving[scale + 4 :],
    }


def contents() -> dict[str, bytes]:
    """The contents of the files, by the name of the case."""
    cases = {name: data for kind in FORMATS for name, data in _damaged(kind).items()}
    if AVIF:
        cases |= _damaged_avif()
    jpeg = encoded("JPEG")
    exif = b"\xff\xe1\0\x14Exif\0\0II*\0\xff\xff\xff\xff____"
    return cases | {
        "empty": b"",
        "text": b"no image",
        "of macOS": b"\0\5\x16\7\0\2\0\0Mac OS X",
        "heic": b"\0\0\0\x18ftypheic" + bytes(99),
        "eps": eps(),
        "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\n%%EOF",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>',
        "xpm": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"\n};\n',
        "psd": b"8BPS\0\1" + bytes(40),
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "png of no pixels": png(0, 5),
        "png of no rows": png(5, 0),
        "png of too many pixels": png(60_000, 60_000),
        "png of 2^31 columns": png(2**31 - 1, 1),
        "png of an odd depth": png(4, 4, depth=3),
        "png of an odd kind": png(4, 4, kind=5),
        "png without pixels": png(64, 64),
        "png with a long comment": png(4, 4)[:33] + chunk(b"zTXt", b"k\0\0" + _bomb()),
        "png with a broken length": png(4, 4)[:33] + b"\xff\xff\xff\xffIDAT",
        "png with a broken chunk": png(4, 4)[:33] + b"\0\0\0\0\0\0\0\0\0\0\0\0",
        "bmp of no pixels": _bmp(0, 4),
        "bmp of negative width": _bmp(-4, 4),
        "bmp of too many pixels": _bmp(2**30, 2**30),
        "ppm of no pixels": b"P6 0 0 255\n",
        "ppm of an endless number": b"P6 " + b"9" * 5000,
        "ppm of text": b"P3 2 2 255 a b c d",
        "pfm of no scale": b"Pf\n4 4\n0\n" + bytes(64),
        "gif of no pixels": b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\2\0;",
        "tiff that points to itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "tiff of absurd counts": b"II*\0\x08\0\0\0\1\0\0\1\4\0\xff\xff\xff\xff\x08\0\0\0\0\0\0\0",
        "jpeg with broken exif": jpeg[:2] + exif + jpeg[2:],
        "jpeg of no size": b"\xff\xd8\xff\xc0\0\x0b\x08\0\0\0\0\1\1\x11\0\xff\xd9",
        "webp of a broken chunk": b"RIFF\x20\0\0\0WEBPVP8L\xff\xff\xff\x7f" + bytes(16),
        "qoi of no pixels": b"qoif" + struct.pack(">IIBB", 0, 0, 3, 0),
        "qoi without pixels": b"qoif" + struct.pack(">IIBB", 9, 9, 3, 0),
    }  # fmt: skip


def write_special(file: Path, kind: str) -> None:
    """Put something other than a regular file in the place of an image."""
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(file))
    elif kind == "folder":
        file.mkdir()
    elif kind == "endless device":
        file.symlink_to("/dev/zero")
    elif kind == "terminal":
        file.symlink_to("/dev/tty")
    elif kind == "link to itself":
        file.symlink_to(file)
    elif kind == "link to nothing":
        file.symlink_to("nothing")
    else:
        raise ValueError(kind)


SPECIAL = (
    "pipe", "socket", "folder", "endless device", "terminal", "link to itself", "link to nothing"
)  # fmt: skip


def _bomb() -> bytes:
    return zlib.compress(bytes(80_000_000))


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
