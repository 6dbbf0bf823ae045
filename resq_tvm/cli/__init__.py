"""The command line ``resq-tvm``: one verb per file; verbs parse and print, the library works.

Nothing heavy is imported until a verb does its work, so ``resq-tvm --help`` is immediate. Every
failure that a user can cause ends in one line on standard error and an exit code other than 0:
1 for what the library refuses, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from resq_tvm.cli import (
    bench,
    bops,
    calibrate,
    compile,
    demo,
    doctor,
    edge,
    evaluate,
    inspect,
    run,
    tune,
)
from resq_tvm.errors import ResqError

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def build_app() -> typer.Typer:
    """Return the application with all verbs."""
    app = typer.Typer(
        name="resq-tvm",
        help="Compile video networks with Residual Quantization and run them frame by frame.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for verb in (demo, compile, calibrate, tune, run, bench, evaluate, bops, inspect, edge, doctor):
        name = verb.__name__.rsplit(".", 1)[-1]
        app.command(name)(getattr(verb, name))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in args
    # PyTorch's threads spin at barriers by default: beside any other busy process, a millisecond's
    # network then takes hundreds. Waiting passively costs next to nothing on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Libraries warn their own developers; a user of this program can do nothing about it.
    warnings.simplefilter("ignore")
    try:
        # Exit codes that a verb or the help asks for come back as values.
        code = build_app()(args, prog_name="resq-tvm", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`resq-tvm … | head`): nothing is left to say, to nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_REFUSED
    except ResqError as error:
        _report(error, str(error), as_json)
        code = EXIT_REFUSED
    except Exception as error:
        message = _usage_message(error)
        if message is None:
            raise
        _report(error, message, as_json)
        code = EXIT_USAGE
    if code == EXIT_INTERRUPTED:
        _report(KeyboardInterrupt(), "interrupted; no output was written", as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: Exception) -> str | None:
    """Return the text of a usage error of typer's parser, None for any other exception.

    Typer carries its own copy of click since 0.26 and used the package before: their exceptions
    are told by what they offer, not by their class.
    """
    formatter = getattr(error, "format_message", None)
    return str(formatter()) if callable(formatter) and hasattr(error, "exit_code") else None


def _report(error: BaseException, message: str, as_json: bool) -> None:
    text = " ".join(message.split())
    if as_json:
        document: dict[str, Any] = {"error": {"type": type(error).__name__, "message": text}}
        print(json.dumps(document), file=sys.stderr)
    else:
        print(f"resq-tvm: error: {text}", file=sys.stderr)
