"""Files: written whole or not at all, compared by content, one writer a folder, and a full disk in one line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import InputError

PROGRESS_BYTES = 1 << 30  # what takes longer than this many shows its progress


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary name beside ``path`` and renames it to ``path`` once the block has ended without an error.

    Raises:
        OSError: the disk is full; it names ``path``, whoever wrote and whatever that raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except Exception as error:
        number = full_disk(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Has the system write a file to its disk now, so that a full or failing one is noticed before old files go.

    Another machine's disk may refuse what it took a moment ago, and writers outside Python do not tell.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_folder(folder: Path, option: str) -> Iterator[Path]:
    """Yields a new folder beside ``folder``, which gets its name once the block has ended without an error.

    Args:
        folder: not there yet, or empty.
        option: the command-line option that named it.

    Raises:
        InputError: something is there, or nothing can be written there.
    """
    refuse_content(folder, option)
    parent = check_writable(folder.absolute().parent, option)
    temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        with room_for(option, folder):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_content(folder: Path, option: str) -> None:
    """Refuses a name for a new folder under which there is something.

    Raises:
        InputError: there is.
    """
    if folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{option} {folder}: is there already; name another folder, or remove it")


def _umask() -> int:
    """Of this process: set to be read, since the system gives it in no other way, by one thread at a time."""
    with _ASKING:
        mask = os.umask(0o077)  # what another thread makes meanwhile is not for everybody
        os.umask(mask)
    return mask


_ASKING = threading.Lock()  # two at a time would take each other's for the process's own, for good


_FULL = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
# torch's writer and numpy's lose the reason; on a disk that can be written to at all, it is hardly another
_WRITER_FAILED = re.compile(r"inline_container|PytorchStreamWriter|iostream error|\d+ requested and \d+ written")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def full_disk(error: BaseException) -> int | None:
    """The number of the system's error, if this one comes of a full disk, a quota or a limit on file sizes."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return cause.errno
    for cause in _causes(error):  # written outside Python: the reason is in the text, or lost
        for number, text in _FULL.items():
            if text in str(cause):
                return number
        if isinstance(cause, RuntimeError | OSError) and _WRITER_FAILED.search(str(cause)):
            return errno.ENOSPC
    return None


def full_disk_line(error: BaseException, path: str | os.PathLike[str] | None = None) -> str | None:
    """What to tell of a full disk: the path and what to do; None if the error is another.

    Args:
        error: any error.
        path: the path to name where the error names none.
    """
    number = full_disk(error)
    if number is None:
        return None
    named = [cause.filename for cause in _causes(error) if isinstance(cause, OSError) and cause.filename]
    shown = named[0] if named else path or Path.cwd()
    return (
        f"disk full: {shown} ({_FULL[number]}); files written before are whole: make room, or name another disk, "
        "and start again"
    )


def check_writable(folder: str | os.PathLike[str], option: str) -> Path:
    """Makes ``folder`` and proves that files can be written to it.

    Raises:
        InputError: it cannot be made or written to; the message names ``option``.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{option} {folder}: cannot write there ({reason}); name another folder") from error
    return folder


@contextlib.contextmanager
def room_for(option: str, folder: Path) -> Iterator[None]:
    """Turns a full disk into one line; outputs are written whole or not at all, so that a second start goes on.

    Raises:
        InputError: the disk, a quota or a limit on file sizes is reached.
    """
    try:
        yield
    except Exception as error:
        line = full_disk_line(error, folder)
        if line is None or isinstance(error, InputError):
            raise
        raise InputError(f"{option}: {line}") from error


def name_fault(name: str, longest: int = 255) -> str:
    """Why a text is no name for a file that every command and shell takes; empty where it is one.

    Args:
        name: without folders.
        longest: bytes that it may have.
    """
    if not name or name.startswith(".") or "/" in name:
        return "it is empty, or begins with a dot, or names a folder"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return "it holds a line break, NUL or another control character, or half of a character"
    if len(name.encode()) > longest:
        return f"it has more than {longest} bytes"
    return ""


def inside(path: Path, folder: Path | None) -> bool:
    """Whether a path is a folder or lies in it."""
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def digest(*parts: Any) -> str:
    """SHA-256 of values and files, in hexadecimal; of a large file with a progress bar."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            size = part.stat().st_size
            with (
                part.open("rb") as file,
                tqdm.wrapattr(file, "read", size, desc=f"hash {part.name}", disable=size < PROGRESS_BYTES) as shown,
            ):
                while block := shown.read(1 << 20):
                    total.update(block)
        else:
            total.update(json.dumps(part, sort_keys=True, default=str).encode())
    return total.hexdigest()


def file_hash(path: str | os.PathLike[str]) -> str:
    """The first 16 digits of a file's ``digest``; of a folder: of one over the names and contents of its files.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return digest(path)[:16]
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = "".join(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def write_json(content: dict[str, Any], path: Path, indent: int | None = 1) -> None:
    """Writes JSON whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


@contextlib.contextmanager
def flock(path: Path, how: int) -> Iterator[bool]:
    """Holds a lock on a file, released even by a kill; False where another process holds it (``LOCK_NB``).

    A file system without locks gives True: then commands that share a folder have to run one after the other.

    Args:
        path: the lock's file; made if need be, and left behind: removing a lock would be a race.
        how: ``fcntl.LOCK_EX``, ``LOCK_SH``, with ``LOCK_NB`` not to wait.
    """
    # A process forked meanwhile (a data worker) would go on holding the lock after this one was killed.
    with _FORKING:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:  # another user's file
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        _OPEN_LOCKS.add(handle)
    try:
        try:
            fcntl.flock(handle, how)
            got = True
        except BlockingIOError:
            got = False
        except OSError:
            got = True
        yield got
    finally:
        with _FORKING:
            if handle in _OPEN_LOCKS:  # else this is a forked process, whose number it is no more
                _OPEN_LOCKS.discard(handle)
                with contextlib.suppress(OSError):  # a process forked this moment may not have closed its copy yet
                    fcntl.flock(handle, fcntl.LOCK_UN)
                os.close(handle)


_OPEN_LOCKS: set[int] = set()
_FORKING = threading.Lock()  # no fork between the opening of a lock and its listing


def _forget_locks() -> None:
    _FORKING.release()
    while _OPEN_LOCKS:
        with contextlib.suppress(OSError):
            os.close(_OPEN_LOCKS.pop())


# closing a copy does not release the parent's lock
os.register_at_fork(before=_FORKING.acquire, after_in_parent=_FORKING.release, after_in_child=_forget_locks)


@contextlib.contextmanager
def only_writer(folder: Path, option: str) -> Iterator[None]:
    """For the whole of a command that writes into a folder: no second one does at the same time.

    Of the processes that one launcher started, the first holds the lock.

    Args:
        folder: made if need be; the lock is its hidden file ``.lock``, which names its holder.
        option: the command-line option that named the folder.

    Raises:
        InputError: another process works there; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".lock", f"{option} {folder}", "another folder"):
        yield


@contextlib.contextmanager
def only_writer_of(file: Path, option: str) -> Iterator[None]:
    """As ``only_writer``, for one output file, whose folder must be there; the lock is hidden beside it."""
    with _alone(file.parent / f".{file.name}.lock", f"{option} {file}", "another file"):
        yield


@contextlib.contextmanager
def _alone(path: Path, shown: str, other: str) -> Iterator[None]:
    with flock(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        if not alone:
            holder = path.read_text(errors="replace").strip() or "another command"
            raise InputError(f"{shown}: {holder} is writing there; wait for its end, or name {other}")
        with contextlib.suppress(OSError):  # another user's lock file
            path.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
        yield
