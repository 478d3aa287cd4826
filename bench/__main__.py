"""Measure soap_fast on this machine."""

from __future__ import annotations

import sys
from importlib import import_module

import torch

from bench.command import Parser, check_target, show
from bench.files import BadInput, CannotWrite

NAMES = (
    "roof", "step", "train", "refresh", "kernels", "launches", "tune", "device", "report", "readme",
)  # fmt: skip
# A command is a module with a docstring, `add_options(parser)` and `run(options)`, which returns
# rows, to be shown in the module's COLUMNS and kept where `--json` says, or an exit code.
COMMANDS = {name: import_module(f"bench.{name}") for name in NAMES}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 2 where something given cannot be used, 1 where a file cannot be written."""
    parser = Parser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, module in COMMANDS.items():
        text = module.__doc__ or ""
        summary = text.partition("\n")[0].partition(": ")[2]
        module.add_options(commands.add_parser(name, help=summary, description=text))
    options = parser.parse_args(arguments)
    module = COMMANDS[options.command]
    try:
        check_target(getattr(options, "json", None))
        if threads := getattr(options, "threads", None):
            torch.set_num_threads(threads)
        found = module.run(options)
        if isinstance(found, int):
            return found
        show(found, module.COLUMNS, options.json, options.command)
        return 0
    except (BadInput, CannotWrite) as problem:
        print(f"python -m bench {options.command}: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, BadInput) else 1


if __name__ == "__main__":
    sys.exit(main())
