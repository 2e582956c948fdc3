"""The command line: one module a command, imported when it is called, so that help is instant."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "prepare": "make a dataset of an interaction log (CSV, Parquet, ... or a built-in one)",
    "join": "make one dataset of several, for systems that learn from many domains",
    "train": "train a system on a dataset",
    "transfer": "use a trained run on a dataset that it has never seen (zero-shot)",
    "evaluate": "measure a run: full ranking, on validation or test",
    "compare": "put runs on one dataset into a table with intervals and tests, and an HTML report",
    "steps": "what each reasoning step of a ReaRec run is worth, and an oracle's headroom",
    "recommend": "ask a run what comes next after a history",
    "serve": "answer requests over HTTP, with live events",
    "store": "keys and upkeep of the service's event store",
    "index": "build and measure fast search over a run's items",
    "export": "write a run as an ONNX graph that serves without the model's code",
    "tune": "search for better settings (Optuna)",
    "preferences": "write what users want, in words, for systems that read it",
    "benchmark": "ask runs for what users say they want, along five axes",
    "codes": "give items semantic ids (build), look at them (report), add new items (append)",
    "models": "list the systems, or the settings of one",
    "doctor": "check the installation, a dataset or a run",
}

USAGE = """\
ensuite: from a log of who did what and when, to a model that says what comes next.

usage: ensuite COMMAND ...    (ensuite COMMAND --help explains each)

{commands}

A first walk:
  ensuite prepare ml-small --out data/ml
  ensuite train sasrec --data data/ml --out runs/sasrec
  ensuite recommend runs/sasrec --history 1 10 260
"""


def main(argv: list[str] | None = None) -> None:
    """Run one command; a user's mistake becomes one line on standard error and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        sys.stdout.write(
            USAGE.format(commands="\n".join(f"  {n:<{width}}  {text}" for n, text in COMMANDS.items()))
        )
        return
    if argv[0] in ("-V", "--version"):
        from ensuite import __version__

        sys.stdout.write(f"ensuite {__version__}\n")
        return
    from ensuite.errors import EnsuiteError, did_you_mean

    name = argv[0]
    try:
        if name not in COMMANDS:
            raise EnsuiteError(f"unknown command '{name}'; {did_you_mean(name, COMMANDS)}")
        import_module(f"ensuite.cli.{name}").main(argv[1:])
    except EnsuiteError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt as stopped:  # a command that keeps what it has done says so
        _fail(str(stopped) or "interrupted; nothing half-written is left behind", 130)
    except BrokenPipeError:
        sys.stderr.close()


def _fail(message: str, status: int) -> None:
    label = "\033[1;31merror:\033[0m" if sys.stderr.isatty() else "error:"
    sys.stderr.write(f"{label} {message}\n")
    raise SystemExit(status)
