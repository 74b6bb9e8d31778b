"""The command line: `dynroute COMMAND ...`, one module per command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from dynroute.cli.common import one_line, write_json
from dynroute.version import __version__

# In the order of a first session; each module offers HELP, EXAMPLES, `add_arguments(parser)` and `run(args)`.
COMMANDS = ("data", "train", "eval", "segment", "flops", "bench", "report", "doctor")
_MODULES = {"eval": "evaluate"}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="dynroute",
        formatter_class=raw,
        description="Dynamically routed semantic segmentation: train, run, count and time it.",
        epilog="`dynroute COMMAND --help` teaches each with an example.  `dynroute doctor` says what runs here.",
    )
    parser.add_argument("--version", action="version", version=f"dynroute {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"dynroute.cli.{_MODULES.get(name, name)}")
        sub = commands.add_parser(
            name,
            help=module.HELP,
            formatter_class=raw,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.\n\n{module.__doc__ or ''}".rstrip(),
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
        )
        module.add_arguments(sub)
        sub.add_argument(
            "--json", type=Path, metavar="FILE", help="also write the result, with its provenance, as JSON"
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=module.run)
    return parser


def _at_home(value: Any) -> Any:
    """`~` and `~user` at the beginning of a path, or of text that may be one, as a shell has them: a shell leaves them
    alone in `--out=~/x` and in quotes."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 on an error (one line on stderr), 130 on Ctrl-C."""
    args = make_parser().parse_args(argv)
    for name, value in vars(args).items():
        setattr(args, name, _at_home(value))
    try:
        if args.json is not None and not args.json.resolve().parent.is_dir():
            raise ValueError(f"--json {args.json}: wanted a file in a folder that exists")
        result = args.run(args)
        if args.json is not None and result is not None:
            write_json(args.json, result)
    except KeyboardInterrupt as stopped:
        print(f"dynroute: interrupted{f': {stopped}' if str(stopped) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output has seen enough; without this the interpreter complains again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if args.debug:
            raise
        print(f"dynroute: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0
