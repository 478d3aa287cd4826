"""A result file is whole, or what it was before."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from bench.output import envelope


def written(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


def test_a_death_while_writing_leaves_the_earlier_result(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    envelope.write(str(target), [{"a": 1}])
    write = Path.write_text

    def die_halfway(path, text):
        write(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", die_halfway)
    with pytest.raises(KeyboardInterrupt):
        envelope.write(str(target), [{"a": 2}])
    assert written(target) == [{"a": 1}]
    monkeypatch.undo()
    envelope.write(str(target), [{"a": 3}])
    assert written(target) == [{"a": 3}]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")
def test_links_and_pipes_stay_what_they_are(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("result.json", "link.json", "pipe"))
    target.write_text("")
    link.symlink_to(target)
    envelope.write(str(link), [{"a": 1}])
    assert link.is_symlink()
    assert written(target) == [{"a": 1}]
    os.mkfifo(pipe)
    read: list[list[dict]] = []
    reader = threading.Thread(target=lambda: read.append(written(pipe)), daemon=True)
    reader.start()
    envelope.write(str(pipe), [{"a": 2}])
    reader.join(10)
    assert pipe.is_fifo()
    assert read == [[{"a": 2}]]
