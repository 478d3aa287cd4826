"""Measure soap_fast on this machine."""

from __future__ import annotations

import sys

from bench.arguments import Parser
from bench.command import BadInput
from bench.commands import (
    compare,
    device,
    gate,
    kernels,
    launches,
    plan,
    readme,
    refresh,
    report,
    roof,
    scaling,
    step,
    trace,
    train,
    tune,
)
from bench.output.writing import CannotWrite

# A command is a module with a docstring, `add_options(parser)` and `run(options) -> exit code`.
COMMANDS = {
    "roof": roof,
    "step": step,
    "train": train,
    "refresh": refresh,
    "scaling": scaling,
    "compare": compare,
    "gate": gate,
    "report": report,
    "kernels": kernels,
    "launches": launches,
    "plan": plan,
    "trace": trace,
    "tune": tune,
    "device": device,
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
    try:
        return COMMANDS[options.command].run(options)
    except BadInput as problem:
        print(f"python -m bench {options.command}: {problem}", file=sys.stderr)
        return 2
    except CannotWrite as problem:
        print(f"python -m bench {options.command}: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
