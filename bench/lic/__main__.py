"""Command line: `python -m bench.lic COMMAND`; what each does is in `bench/lic/commands/`."""

from __future__ import annotations

import argparse
import io
import shlex
import sys

from bench.command import Parser
from bench.files import BadInput, CannotWrite
from bench.lic.commands import compare, demo, evaluate, quantize, search, shapes, study, train
from bench.lic.training import Interrupted, say
from bench.lic.training.processes import started

DESCRIPTION = "Learned image compression: models, and how optimizers train them."
COMMANDS = {
    "demo": demo,
    "train": train,
    "search": search,
    "eval": evaluate,
    "quantize": quantize,
    "compare": compare,
    "study": study,
    "shapes": shapes,
}
INTERRUPTED = 130  # what a shell expects after Ctrl-C


def main(arguments: list[str]) -> int:
    parser = Parser(prog="python -m bench.lic", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS.values():
        command.add(commands)
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may lack the letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return COMMANDS[options.command].run(options)
    except BadInput as error:
        say(f"python -m bench.lic: {error}")  # all processes of a run have found the same
        return 2
    except CannotWrite as error:
        print(f"python -m bench.lic: {error}", file=sys.stderr)  # of any process
        return 1
    except Interrupted as stopped:
        say(f"{stopped}{_how_to_go_on(options, arguments)}")
        return INTERRUPTED
    except KeyboardInterrupt:
        kept = "; --resume goes on from the last checkpoint, if there is one"
        say(f"stopped at once{kept if hasattr(options, 'resume') else ''}")
        return INTERRUPTED


def _how_to_go_on(options: argparse.Namespace, arguments: list[str]) -> str:
    if not hasattr(options, "resume"):  # a search keeps nothing of what it has tried
        return ""
    if started()[1] > 1:
        return "; go on with the same command and --resume"
    again = [*arguments, *([] if options.resume else ["--resume"])]
    return f"; go on with: python -m bench.lic {shlex.join(again)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
