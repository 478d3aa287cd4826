"""Names of files as text that can be printed, drawn and written anywhere."""

from __future__ import annotations

from pathlib import Path

from bench.output.writing import writing


def readable(name: str) -> str:
    r"""The name of a file, with \x.. for bytes that are no UTF-8, and for what cannot be printed.

    Where the locale knows ASCII only, Python hands out all other bytes of a name as surrogates:
    here they become the characters that they are.
    """
    try:
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, as names on Windows may hold
        text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_text(path: Path, text: str) -> None:
    """As UTF-8, whatever the locale.

    Raises:
        CannotWrite: the disk is full, for instance.
    """
    with writing(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
