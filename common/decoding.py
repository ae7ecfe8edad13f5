"""Decoding picture files: what is refused before and while a decoder reads them."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import stat
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from common.errors import InputError
from common.schema import one_line
from common.tiff_tags import read_tags

MAX_PIXELS = 200_000_000
MAX_BYTES = 8 * MAX_PIXELS  # no file of so many pixels needs more
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")  # others can run programs (EPS) or cut pixels to 8 bits unseen
_MAX_OVERVIEWS = 40  # of a GeoTIFF: each has half of the size of the one before
_MAX_SCANS = 500  # of a JPEG; usual are 1 to 20, and each costs as much as a whole decoding
_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # what is used without this reader keeps to the limit, too
warnings.filterwarnings("ignore", module=r"PIL\.")  # odd tags and the like: this reader says what matters
logging.getLogger("PIL").addHandler(logging.NullHandler())


def _quiet_libtiff() -> None:
    """Stops Pillow's libtiff from writing its own lines to stderr about a damaged file, which is refused in one."""
    with contextlib.suppress(OSError, AttributeError, IndexError):  # another system, or Pillow without libtiff
        maps = Path("/proc/self/maps").read_text().splitlines()
        library = next((line.split(maxsplit=5)[5] for line in maps if "/libtiff" in line), None)
        if library:
            ctypes.CDLL(library).TIFFSetErrorHandler(None)


_quiet_libtiff()


class ImageError(InputError):
    """A file cannot be used as a mask or image.

    Attributes:
        reason: the message without the file's name.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason

    @classmethod
    def of(cls, path: str | os.PathLike[str], reason: str) -> ImageError:
        """The error of a file, in one line."""
        return cls(f"{one_line(os.fspath(path), 1000)}: {reason}", reason)


@dataclass(frozen=True)
class Picture:
    """A decoded file: its pixels as stored, bits a channel in the file, EXIF orientation, and what a TIFF says.

    Attributes:
        white_is_zero: a TIFF's 0 is white; Pillow has turned gray levels over.
        signed: a TIFF's numbers have a sign.
        size: (H, W) as stored; the image has fewer pixels where it was decoded small.
    """

    image: Image.Image
    bits: int
    orientation: int
    white_is_zero: bool
    signed: bool = False
    size: tuple[int, int] = (0, 0)


def decode(path: str | os.PathLike[str], data: bytes | None = None, small: bool = False) -> Picture:
    """Opens and fully decodes a file.

    Args:
        path: the file.
        data: what ``content`` read of it, where that is done.
        small: a JPEG's pixels are means over 8 x 8; each byte of it is decoded all the same, so that what is damaged
            is refused, and what takes the time, transforms and colors, is left out.

    Raises:
        ImageError: no regular file, no picture of a known format, damaged, too large, or several pictures in one.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries switch it on, and then cut-off files pass as gray ones
    data = content(path) if data is None else data
    if data[:8] == b"\x89PNG\r\n\x1a\n" and (fault := _png_fault(data)):
        raise ImageError.of(path, f"cannot be read ({fault}); make the file again")
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageError.of(path, f"is a JPEG of more than {_MAX_SCANS} scans; write it again")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_header(path, image)
        bits, white_is_zero, signed = _depth(image, data)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        size = image.height, image.width
        if small and image.format == "JPEG" and image.mode in ("L", "RGB"):
            image.draft(image.mode, (1, 1))
        image.load()
        if image.format == "TIFF" and orientation in _TURN_BACK:  # the only format that Pillow turns while reading
            turned, image = image, image.transpose(_TURN_BACK[orientation])
            image.format = turned.format
        return Picture(image, bits, orientation if orientation in _TURN_BACK else 1, white_is_zero, signed, size)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError.of(path, f"is larger than {MAX_PIXELS // 10**6} Mpx; cut it into tiles") from error
    except Exception as error:  # decoders raise whatever they like on broken files
        known = data[:4] in (b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*") or data[:2] in (b"\xff\xd8", b"BM")
        if isinstance(error, UnidentifiedImageError):
            reason = "it is damaged, or of bands and bits that are not read here" if known else "is no image"
        else:
            reason = "too little memory" if isinstance(error, MemoryError) else one_line(str(error) or repr(error))
        raise ImageError.of(path, f"cannot be read ({reason}); make the file again as PNG, JPEG or TIFF") from error


def check_file(path: str | os.PathLike[str], most: int | None = MAX_BYTES) -> None:
    """Refuses what no decoder is to open: pipes and devices, so that nothing waits for them, and what is too large.

    Args:
        path: the file.
        most: bytes that it may have; None for any number.

    Raises:
        ImageError: no regular file, empty, or too large.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:  # no such file, a loop of links, a NUL byte in the name
        if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
            raise ImageError.of(path, f"is a link to {one_line(Path(path).readlink())}, which is not there") from error
        reason = one_line(getattr(error, "strerror", None) or error)
        raise ImageError.of(path, f"cannot be read ({reason}); make the file again") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise ImageError.of(path, f"is {kind}, no picture; remove it")
    if most is not None and status.st_size > most:
        raise ImageError.of(path, f"has {status.st_size} bytes, more than {most}; cut it into tiles")
    if not status.st_size:
        raise ImageError.of(path, "cannot be read (it is empty); make the file again")


def content(path: str | os.PathLike[str]) -> bytes:
    """What a regular file holds.

    Raises:
        ImageError: see ``check_file``; or it cannot be read.
    """
    check_file(path)
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(os.fstat(file.fileno()).st_size + 1)
    except (OSError, ValueError, MemoryError) as error:
        reason = one_line(getattr(error, "strerror", None) or error) or "too little memory"
        raise ImageError.of(path, f"cannot be read ({reason}); make the file again") from error


def _check_header(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Refuses by what a file declares, before its pixels take memory and time."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError.of(path, f"is {width} x {height} px (width x height); a picture needs pixels")
    if width * height > MAX_PIXELS:
        raise ImageError.of(
            path, f"is {width} x {height} px (width x height), more than {MAX_PIXELS // 10**6} Mpx; cut it into tiles"
        )
    if _several(image):
        raise ImageError.of(path, "holds several pages or frames; write the one to use as a file of its own")
    if image.format == "TIFF":
        bands, stored = len(image.getbands()), image.tag_v2.get(277, 1)  # type: ignore[attr-defined]
        if stored != bands:
            raise ImageError.of(path, f"has {stored} bands, of which {bands} would be read; write those to use alone")


def _several(image: Image.Image) -> bool:
    """Whether a file holds more than one picture; smaller copies of the first do not count."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):  # MPO: a phone's JPEG, its preview behind it
        return False
    if image.format != "TIFF":
        return True
    page = 0
    with contextlib.suppress(EOFError):  # behind the last page
        while page < _MAX_OVERVIEWS:
            image.seek(page := page + 1)
            if image.tag_v2.get(254, 0) != 1:  # type: ignore[attr-defined] # 1: of reduced resolution
                return True
    image.seek(0)
    return page >= _MAX_OVERVIEWS


def _depth(image: Image.Image, data: bytes) -> tuple[int, bool, bool]:
    """Bits a channel as the file has them (Pillow cuts RGB to 8), whether a TIFF's 0 is white, and has a sign."""
    if image.format == "PNG":
        return data[24], False, False  # the header's field for it; the header always comes first
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        white_is_zero = tags.get(262) == 0 and image.mode != "P"
        return int(max(tags.get(258, (1,)))), white_is_zero, 2 in tags.get(339, ())
    return 8, False, False


def stored_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """(width, height) as the file's reader will give them, by its header alone; None where it is no picture."""
    if (tags := read_tags(path)) is not None:
        return tags.width, tags.height
    try:
        if not Path(path).is_file():  # opening a pipe would wait
            return None
        with Image.open(path) as image:
            return image.size
    except Exception:  # decoders raise whatever they like on broken files
        return None


def _png_fault(data: bytes) -> str:
    """What is wrong with a PNG's chunks (Pillow does not look at the checksums of pixels); empty where nothing is."""
    if data[12:16] != b"IHDR":
        return "it is damaged: its header does not come first"
    view, place = memoryview(data), 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(view[place : place + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return f"it is damaged: wrong checksum at byte {place}"
        if view[place + 4 : place + 8] == b"IEND":
            return ""
        place = end
    return "it is cut off"
