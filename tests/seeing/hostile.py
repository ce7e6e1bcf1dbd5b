"""Five hundred images that mean no good, made from few seeds: bombs, stumps, wrong types, odd modes, lies."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG as its header says, whatever its rows are."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def sound(rng: random.Random) -> Image.Image:
    """An image with something in it."""
    image = Image.new("RGB", (rng.randint(8, 90), rng.randint(8, 90)), tuple(rng.randbytes(3)))
    ImageDraw.Draw(image).ellipse((2, 2, 7, 7), fill=tuple(rng.randbytes(3)))
    return image


def refused() -> Iterator[tuple[str, bytes]]:
    """Each is a 400."""
    yield "bomb", png(8000, 8000, b"\0" * (8000 * 8001), colour=0)
    yield "bomb of one bit", png(16000, 16000, b"\0" * (16000 * 2001), depth=1, colour=0)
    yield "bomb that lies of its rows", png(60000, 60000, b"\0" * 100)
    yield "line", encoded(Image.new("L", (1, 100_000)), "PNG")
    yield "long line", encoded(Image.new("L", (10_000, 10)), "PNG")
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "html", b"<html><img src=x onerror=alert(1)></html>"
    yield "tiff", encoded(Image.new("RGB", (9, 9)), "TIFF")
    yield "pdf and png", b"%PDF-1.7\n" + encoded(Image.new("RGB", (9, 9)), "PNG")
    yield "nothing but a signature", b"\x89PNG\r\n\x1a\n"
    yield "bytes", bytes(range(256)) * 40
    yield "progressive bomb", encoded(Image.new("RGB", (6000, 4000)), "JPEG", progressive=True, quality=5)
    rng = random.Random(5)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = encoded(Image.fromarray(np.asarray(sound(rng).resize((64, 64)))), kind)
        for share in (0.02, 0.1, 0.3):
            yield f"{kind} cut at {share}", whole[: int(len(whole) * share)]


def odd() -> Iterator[tuple[str, bytes]]:
    """Each is an image all the same."""
    rng = random.Random(7)
    frames = [sound(rng).resize((32, 32)) for _ in range(30)]
    yield "animated gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "animated webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    yield "cmyk", encoded(sound(rng).convert("CMYK"), "JPEG")
    yield "sixteen bits", encoded(Image.fromarray(np.full((20, 20), 40_000, np.uint16)), "PNG")
    yield "one bit", encoded(sound(rng).convert("1"), "PNG")
    yield "palette", encoded(sound(rng).convert("P"), "PNG", transparency=3)
    yield "grey with alpha", encoded(sound(rng).convert("LA"), "PNG")
    yield "embedded profile", encoded(sound(rng), "PNG", icc_profile=b"\0" * 100_000)
    yield "text of a megabyte", encoded(sound(rng), "JPEG", comment=b"x" * 60_000)
    yield "png and zip", encoded(sound(rng), "PNG") + b"PK\x03\x04" * 9
    yield "one pixel", encoded(Image.new("RGB", (1, 1)), "PNG")
    yield "sixteen million pixels", encoded(Image.new("RGB", (4096, 4096)), "PNG")
    yield "a phone's jpeg", encoded(Image.new("RGB", (8000, 6000)), "JPEG", quality=5)


def mangled(count: int) -> Iterator[tuple[str, bytes]]:
    """Sound images with bytes turned: an image, or a 400."""
    rng = random.Random(11)
    for number in range(count):
        kind = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP"))
        data = bytearray(encoded(sound(rng), kind))
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield f"{kind} with bytes turned, {number}", bytes(data)
