"""Odd picture files of all kinds, made here, and what every command is to make of them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 64
IDS = (np.add.outer(np.arange(SIDE) // 16, np.arange(SIDE) // 32) % 4).astype(np.uint8)  # 0..3
PIXELS = np.stack([IDS * 60, np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE), 255 - IDS * 9], axis=-1)
TURN = Image.Exif()
TURN[274] = 6


def encoded(array, kind="PNG", palette=None, mode=None, **options):
    """The bytes of a picture file."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image = image.convert(mode) if mode else image
    if palette:
        image.putpalette(palette)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth, color, rows, *chunks):
    """A PNG of raw rows (with filter bytes), and further chunks before them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    middle = b"".join(chunk(*one) for one in chunks)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + pixels + chunk(b"IEND", b"")


def _flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _in_bits(depth, *palette):
    """A PNG of ``depth`` bits, gray or with a palette, whose samples are the ids, modulo its range."""
    ids = (IDS % 2**depth).reshape(SIDE, -1, 8 // depth)
    packed = (ids << np.arange(8 - depth, -1, -depth, dtype=np.uint8)).sum(-1).astype(np.uint8)
    color = 3 if palette else 0
    return png(SIDE, SIDE, depth, color, b"".join(b"\0" + row.tobytes() for row in packed), *palette)


def _gray_and_alpha_of_16_bits():
    samples = np.dstack([IDS, np.full_like(IDS, 255)]).astype(">u2") * np.array([1, 257], ">u2")
    return png(SIDE, SIDE, 16, 4, b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples))


def tiff(array, photometric=1, extra=(), kind=1):
    """A plain TIFF (H, W) or (H, W, bands) of numbers that Pillow does not write.

    Args:
        array: of any type; its bits are those of the file.
        photometric: 0: white is 0, 1: black is 0, 2: RGB.
        extra: meaning of the bands beyond the colors, 0: unspecified.
        kind: 1: without sign, 2: with one, 3: float.
    """
    height, width, bands = np.atleast_3d(array).shape
    data, more = array.tobytes(), b""

    def shorts(*values):  # in the entry itself, or behind the pixels
        nonlocal more
        if len(values) <= 2:
            return int.from_bytes(struct.pack(f"<{len(values)}H", *values), "little")
        more += struct.pack(f"<{len(values)}H", *values)
        return 8 + len(data) + len(more) - 2 * len(values)

    bits = 8 * array.dtype.itemsize
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, bands, shorts(*[bits] * bands)),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
        (277, 3, 1, bands),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
        *([(338, 3, len(extra), shorts(*extra))] if extra else []),
        (339, 3, bands, shorts(*[kind] * bands)),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data) + len(more)) + data + more + directory + bytes(4)


_BOMB = (b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 26)))
_ALPHA = np.dstack([PIXELS, np.full((SIDE, SIDE), 255, np.uint8)])
_GLASS = _ALPHA.copy()
_GLASS[3, 4, 3] = 254
_FRAMES = {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1])]}
_SMALL = Image.fromarray(IDS[::2, ::2])
_SMALL.encoderinfo = {"tiffinfo": {254: 1}}
_OVERVIEWS = {"save_all": True, "append_images": [_SMALL]}
_FOUR_BANDS = encoded(np.dstack([PIXELS, IDS]), "TIFF")

# name: (suffix, bytes, what is said of it as an image, as a mask); None: it is taken; a mask then holds IDS, or, of
# 1 bit, IDS modulo 2
FILES = {
    "gray": (".png", encoded(IDS), None, None),
    "palette": (".png", encoded(IDS, palette=list(range(255, -1, -1)) * 3), None, None),
    "palette with a transparent class": (
        ".png",
        encoded(IDS, palette=[9] * 768, transparency=2),
        "has transparent pixels",
        None,
    ),
    "three equal channels": (".png", encoded(np.stack([IDS] * 3, -1)), None, None),
    "four channels, opaque": (".png", encoded(_ALPHA), None, "has three channels that differ"),
    "half transparent": (".png", encoded(_GLASS), "has transparent pixels", "has transparent pixels"),
    "16 bit of ids": (".png", encoded(IDS.astype(np.uint16)), "has 16 bits a channel", None),
    "16 bit beyond": (".png", encoded(IDS.astype(np.uint16) * 300), "has 16 bits a channel", "values 300, 600, 900"),
    "16 bit colors": (
        ".png",
        png(SIDE, SIDE, 16, 2, (b"\0" + bytes(SIDE * 6)) * SIDE),
        "has 16 bits a channel",
        "has colors of 16 bits",
    ),
    "1 bit": (".png", _in_bits(1), None, None),
    "1 bit TIFF": (".tif", encoded(Image.fromarray(IDS % 2 * 255).convert("1"), "TIFF"), None, None),
    "palette of 2 bits": (".png", _in_bits(2, (b"PLTE", bytes(range(12)))), None, None),
    "2 bit": (".png", _in_bits(2), None, None),
    "4 bit": (".png", _in_bits(4), None, None),
    "32 bit TIFF": (".tif", encoded(IDS.astype(np.int32), "TIFF"), "has 32 bits a channel", None),
    "packed TIFF": (".tiff", encoded(IDS, "TIFF", compression="tiff_lzw"), None, None),
    "float TIFF": (".tif", encoded(IDS.astype(np.float32), "TIFF"), "has 32 bits a channel", "has float values"),
    "16 bit TIFF colors": (
        ".tif",
        tiff(PIXELS.astype(np.uint16), photometric=2),
        "has 16 bits a channel",
        "has colors of 16 bits",
    ),
    "TIFF of five bands": (
        ".tif",
        tiff(np.dstack([PIXELS, IDS, IDS]), photometric=2, extra=(0, 0)),
        "has 5 bands, of which 3 would be read",
        "has 5 bands, of which 3 would be read",
    ),
    "TIFF of infrared": (
        ".tif",
        tiff(np.dstack([PIXELS, IDS]), photometric=2, extra=(0,)),
        "has 4 bands, of which 3 would be read",
        "has 4 bands, of which 3 would be read",
    ),
    "TIFF with a sign": (".tif", tiff(IDS.astype(np.int16), kind=2), "has 16 bits a channel", None),
    "TIFF below zero": (".tif", tiff(IDS.astype(np.int16) - 1, kind=2), "has 16 bits a channel", "values -1 are not"),
    "8 bit TIFF below zero": (
        ".tif",
        tiff(IDS.astype(np.int8) - 1, kind=2),
        "has signed numbers",
        "has values below 0",
    ),
    "double TIFF": (".tif", tiff(IDS.astype(np.float64), kind=3), "cannot be read", "cannot be read"),
    "TIFF of white 0": (".tif", tiff(IDS, photometric=0), None, "is a TIFF whose 0 is white"),
    "CMYK TIFF": (".tif", encoded(PIXELS, "TIFF", mode="CMYK"), None, "has mode CMYK"),
    "16 bit with alpha": (".png", _gray_and_alpha_of_16_bits(), "has 16 bits a channel", "has colors of 16 bits"),
    "TIFF of four bands": (".tif", _FOUR_BANDS, "has a fourth band that is not opaque", "has transparent pixels"),
    "GeoTIFF with overviews": (".tif", encoded(IDS, "TIFF", **_OVERVIEWS), None, None),
    "two pages": (".tif", encoded(PIXELS, "TIFF", **_FRAMES), "holds several pages", "holds several pages"),
    "animated": (".png", encoded(PIXELS, **_FRAMES), "holds several pages", "holds several pages"),
    "JPEG": (".jpg", encoded(PIXELS, "JPEG"), None, "is a JPEG"),
    "CMYK": (".jpg", encoded(PIXELS, "JPEG", mode="CMYK"), None, "is a JPEG"),
    "cut JPEG": (".jpg", encoded(PIXELS, "JPEG")[:700], "cannot be read", "cannot be read"),
    "cut PNG": (".png", encoded(IDS)[:-20], "cannot be read", "cannot be read"),
    "wrong checksum": (".png", _flipped(encoded(IDS), -20), "wrong checksum", "wrong checksum"),
    "turned": (".png", encoded(IDS, exif=TURN), None, None),
    "turned TIFF": (".tif", encoded(IDS, "TIFF", exif=TURN), None, None),
    "bomb of pixels": (".png", png(60000, 60000, 8, 0, b""), "Mpx", "Mpx"),
    "bomb of 201 Mpx": (".png", png(15000, 13400, 8, 0, b""), "more than 200 Mpx", "more than 200 Mpx"),
    "bomb in a chunk": (
        ".png",
        png(SIDE, SIDE, 8, 0, (b"\0" + bytes(SIDE)) * SIDE, _BOMB),
        "cannot be read",
        "cannot be read",
    ),
    "no pixels": (".png", png(0, 5, 8, 0, b""), "", ""),
    "empty": (".png", b"", "is empty", "is empty"),
    "no picture": (".png", b"no picture at all", "is no image", "is no image"),
    "PostScript": (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image", "is no image"),
}
