"""Windows: which ranges are fetched, that memory is bounded, and what an error leaves behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from clair_cli.store.objects import entry_of
from clair_cli.store.tree import Entry
from clair_cli.store.windows import LEAST_WINDOW_BYTES, WINDOW_BYTES, Windows

Fetched = list[tuple[str, int, int]]


def content(name: str, begin: int, end: int) -> bytes:
    return bytes((ord(name) + k // 1000) % 251 for k in range(begin, end))


class Store:
    """Files "a", "b"... of any size, and what was fetched of them."""

    def __init__(self) -> None:
        self.fetched: Fetched = []
        self.broken = False

    def read(self, parts: tuple[str, ...], entry: Entry, begin: int, end: int) -> memoryview:
        assert 0 <= begin < end <= entry.size
        self.fetched.append((parts[0], begin, end))
        if self.broken:
            raise OSError("broken")
        return memoryview(content(parts[0], begin, end))


def get(windows: Windows, name: str, size: int, begin: int, count: int) -> bytes:
    memory = bytearray(count)
    windows.fill((name,), Entry(size, "tag"), begin, memoryview(memory))
    return bytes(memory)


@pytest.fixture
def store() -> Store:
    return Store()


def make(store: Store, room: int = 2**30) -> tuple[Windows, ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1)
    return Windows(store.read, pool, room), pool


def test_neighbours_are_one_request(store: Store) -> None:
    windows, pool = make(store)
    size = 100_000
    for begin in range(0, size, 5_000):
        assert get(windows, "a", size, begin, 5_000) == content("a", begin, begin + 5_000)
    pool.shutdown()
    assert store.fetched == [("a", 0, size)]


def test_what_crosses_a_border_is_whole_and_the_next_window_comes_ahead(store: Store) -> None:
    windows, pool = make(store)
    size, border = 3 * WINDOW_BYTES + 10, WINDOW_BYTES
    assert get(windows, "a", size, border - 3, 6) == content("a", border - 3, border + 3)
    pool.shutdown()
    begins = (0, border, 2 * border)
    assert sorted(store.fetched) == [("a", b, b + border) for b in begins]


def test_more_than_a_window_is_fetched_as_it_is(store: Store) -> None:
    windows, pool = make(store)
    size = 3 * WINDOW_BYTES
    count = WINDOW_BYTES + 1
    assert get(windows, "a", size, 5, count) == content("a", 5, 5 + count)
    pool.shutdown()
    assert store.fetched == [("a", 5, 5 + WINDOW_BYTES), ("a", 5 + WINDOW_BYTES, 5 + count)]


def test_a_window_of_exactly_its_size_is_one(store: Store) -> None:
    windows, pool = make(store)
    get(windows, "a", WINDOW_BYTES, 0, WINDOW_BYTES)
    pool.shutdown()
    assert store.fetched == [("a", 0, WINDOW_BYTES)]


def test_many_files_have_smaller_windows(store: Store) -> None:
    windows, _ = make(store, room=256 * 2**20)
    for count, size in ((42, WINDOW_BYTES), (43, WINDOW_BYTES // 2), (5_000, LEAST_WINDOW_BYTES)):
        for number in range(count):
            windows.expect((str(number),))
        assert windows.window_bytes == size


def test_memory_is_bounded(store: Store) -> None:
    room = 4 * WINDOW_BYTES
    windows, pool = make(store, room)
    for name in "abcdefgh":
        get(windows, name, 100, 0, 100)
        assert sum(key[1] for key in windows._found) <= room
    get(windows, "h", 100, 0, 10)  # there
    get(windows, "a", 100, 0, 10)  # made room for others, so again
    pool.shutdown()
    assert [f[0] for f in store.fetched] == [*"abcdefgh", "a"]


def test_an_error_is_not_kept(store: Store) -> None:
    windows, pool = make(store)
    store.broken = True
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            get(windows, "a", 100, 0, 10)
    store.broken = False
    assert get(windows, "a", 100, 0, 10) == content("a", 0, 10)
    pool.shutdown()
    assert len(store.fetched) == 3


def test_a_tag_is_quoted_as_if_match_wants_it() -> None:
    for given in ('"0x8DC"', "0x8DC"):
        assert entry_of({"size": 3, "e_tag": given}, "az://c/x") == Entry(3, '"0x8DC"')
    for none in (None, "", 'W/"weak"'):
        with pytest.raises(OSError, match="no strong ETag"):
            entry_of({"size": 3, "e_tag": none}, "az://c/x")


def test_threads_that_want_one_window_fetch_it_once(store: Store) -> None:
    windows, pool = make(store)
    ready = threading.Barrier(8)

    def ask(begin: int) -> bytes:
        ready.wait(10)
        return get(windows, "a", 1000, begin, 100)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(0, 800, 100)))
    pool.shutdown()
    assert found == [content("a", b, b + 100) for b in range(0, 800, 100)]
    assert len(store.fetched) == 1
