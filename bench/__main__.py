"""Measure soap_fast on this machine."""

from __future__ import annotations

import sys

from bench import (
    device,
    kernels,
    launches,
    readme,
    refresh,
    report,
    roof,
    sharing,
    step,
    train,
    tune,
)
from bench.command import Parser, check_target, show
from bench.files import BadInput, CannotWrite

# A command is a module with a docstring, `add_options(parser)` and `run(options)`, which returns
# rows, to be shown in the module's COLUMNS and kept where `--json` says, or an exit code.
COMMANDS = {
    "roof": roof,
    "step": step,
    "train": train,
    "refresh": refresh,
    "sharing": sharing,
    "kernels": kernels,
    "launches": launches,
    "tune": tune,
    "device": device,
    "report": report,
    "readme": readme,
}


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
