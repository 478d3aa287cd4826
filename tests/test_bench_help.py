"""Every command of `python -m bench` explains itself, and names what it takes."""

from __future__ import annotations

import pytest

from bench.__main__ import COMMANDS
from bench.__main__ import main as bench


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    first = (COMMANDS[command].__doc__ or "").partition("\n")[0]
    assert first.startswith(f"`{command}`: ")
    assert first.partition(": ")[2].split()[0] in text


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"readme"}))
def test_results_can_be_kept(command, capsys):
    with pytest.raises(SystemExit):
        bench([command, "--help"])
    text = capsys.readouterr().out
    assert "--json" in text or "--out DIR" in text
