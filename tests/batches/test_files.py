"""Files of the data folder: how much one owner may keep there, and when they go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from server.errors import ApiError
from server.files.folder import DataFolder, Page
from server.files.store import TABLE, FileStore, StoredFile


class Shelf:
    """A store of 1000 bytes for each owner, and the time it is told."""

    def __init__(self, place: Path) -> None:
        self.now = time.time()
        self.place = place
        self.folder = DataFolder(lambda: place, (TABLE,))
        self.store = FileStore(self.folder, lambda: self.now, most_bytes=1000)

    def keep(self, owner: str, n_bytes: int, lifetime_s: int | None = None) -> StoredFile:
        path = self.place / "upload"
        path.write_bytes(bytes(n_bytes))
        return self.store.keep(path, owner=owner, name="a", purpose="batch", lifetime_s=lifetime_s)


def test_an_owner_fills_its_own_room_alone(tmp_path: Path):
    shelf = Shelf(tmp_path)
    first = shelf.keep("anna", 600)

    with pytest.raises(ApiError, match=r"it has 500 B, and yours hold 600 B of 1000 B") as caught:
        shelf.keep("anna", 500)

    assert (caught.value.status, caught.value.code) == (413, "files_too_large")
    shelf.keep("anna", 400)
    shelf.keep("ben", 1000)
    shelf.store.delete(first.id, "anna")
    shelf.keep("anna", 600)
    shelf.folder.close()


def test_a_file_that_has_had_its_time_leaves_list_and_disk(tmp_path: Path):
    shelf = Shelf(tmp_path)
    gone, kept = shelf.keep("anna", 900, lifetime_s=60), shelf.keep("ben", 1)
    place = shelf.store.content(gone)
    shelf.now += 60

    assert [one.id for one in shelf.store.listed(None, Page(9))[0]] == [kept.id]
    with pytest.raises(ApiError, match="No such File object"):
        shelf.store.get(gone.id, "anna")
    shelf.keep("anna", 900)

    shelf.now += 3601  # contents that are no file's are left for an hour: they may become one
    shelf.store.sweep()
    assert not place.exists()
    assert shelf.store.content(kept).exists()
    shelf.folder.close()
