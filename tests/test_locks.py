"""Locks belong to the process that took them, not to those that it forks."""

import fcntl
import os
import signal

from common.files import flock


def test_a_forked_process_holds_no_lock_of_its_parent(tmp_path):
    """A data worker that outlives a killed command must not keep the next one from tidying up."""
    reading, writing = os.pipe()
    command = os.fork()
    if command == 0:
        with flock(tmp_path / "lock", fcntl.LOCK_EX):
            worker = os.fork()
            if worker == 0:
                os.write(writing, b"%d" % os.getpid())
                signal.pause()
            signal.pause()
    worker = int(os.read(reading, 20))
    try:
        os.kill(command, signal.SIGKILL)
        os.waitpid(command, 0)
        with flock(tmp_path / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            assert alone
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_lock_is_free_at_once_though_a_process_was_just_forked(tmp_path):
    for _ in range(5):
        with flock(tmp_path / "lock", fcntl.LOCK_EX):
            child = os.fork()
            if child == 0:
                os._exit(0)
        with flock(tmp_path / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            assert alone
        os.waitpid(child, 0)


def test_a_forked_process_that_leaves_a_lock_closes_no_file_of_its_own(tmp_path):
    lock = flock(tmp_path / "lock", fcntl.LOCK_EX)
    lock.__enter__()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = os.open(tmp_path, os.O_RDONLY)  # takes the number that the lock had
            lock.__exit__(None, None, None)
            os.fstat(own)
            code = 0
        finally:
            os._exit(code)
    lock.__exit__(None, None, None)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
