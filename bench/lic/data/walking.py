"""All files below a folder, through links to folders too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator


def files_below(top: str) -> Iterator[os.DirEntry[str]]:
    """Regular files, links to them, and links to nothing, which whoever opens them can name.

    Pipes, sockets and devices are left out: reading one may never end. So are hidden folders, and
    macOS's shadows. A link to a folder is followed, after all folders that need none, unless its
    folder was seen: each is gone through once, whatever loops there are, and always by the same
    name.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [top], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # not ours to read, or gone
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is(entry.is_dir):
                if entry.name[0] != "." and entry.name != "__MACOSX":
                    (links if entry.is_symlink() else folders).append(entry.path)
            elif _is(entry.is_file) or not os.path.exists(entry.path):
                yield entry


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a loop of links, which leads to nothing
        return False
