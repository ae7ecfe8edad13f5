"""The filter's writing: while the next batch is looked at, in few threads, and nothing that was done is lost."""

import threading
import time

import pytest

from post_processing.filter_passes import in_threads


def test_all_is_done_by_few_threads_and_little_waits():
    done, threads, waiting = [], set(), []

    def source():
        for i in range(40):
            waiting.append(i - len(done))
            yield (i,)

    def work(i):
        threads.add(threading.get_ident())
        time.sleep(0.002)
        done.append(i)

    in_threads(work, source(), 3)
    assert sorted(done) == list(range(40)) and len(threads) <= 3 and threading.get_ident() not in threads
    assert max(waiting) <= 3 + 4  # at work, and waiting


def test_what_is_begun_is_ended_when_the_source_fails():
    done = []

    def source():
        yield from ((i,) for i in range(3))
        raise ValueError("a bad image")

    def work(i):
        time.sleep(0.02)
        done.append(i)

    with pytest.raises(ValueError, match="a bad image"):
        in_threads(work, source(), 2)
    assert sorted(done) == [0, 1, 2]


def test_a_full_disk_ends_it():
    asked = []

    def source():
        for i in range(1000):
            asked.append(i)
            yield (i,)

    def work(i):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        in_threads(work, source(), 2)
    assert len(asked) < 10
