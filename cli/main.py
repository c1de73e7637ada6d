"""``aicc``: the entry point, and how every failure becomes one line on stderr and an exit code.

Command modules import nothing heavy at the top, so that ``aicc --help`` is quick and the commands
that only run models work where the compiler is not installed.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from aicc.cli.compile_commands import check, compile_command, pull
from aicc.cli.inspect_commands import inspect
from aicc.cli.machine_commands import doctor, targets
from aicc.cli.measure_commands import bench, evaluate
from aicc.cli.output import one_line
from aicc.cli.plan_command import plan
from aicc.cli.run_commands import chat, run
from aicc.cli.serve_command import serve

INTERRUPTED = 130  # what shells report for Ctrl-C
TERMINATED = 143
BROKEN_PIPE = 141  # what shells report for a reader that went away


class OrderedGroup(click.Group):
    """Lists commands in the order a newcomer needs them instead of the alphabet's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order they were added."""
        return list(self.commands)


@click.group(
    cls=OrderedGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="aicc", message="aicc %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compile an open model into one artifact for one chip; run, measure and serve it lean.

    A first session: `aicc pull smollm2-135m`, then `aicc compile smollm2-135m --target cpu -o smol.aicc`,
    then `aicc chat smol.aicc`.

    Results go to stdout, progress to stderr. Exit codes: 0 done, 1 a bug in aicc, 2 wrong usage,
    3 unsupported model or operator, 4 target or version mismatch, 5 not enough memory or disk,
    6 too much quality lost, 7 a damaged file.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (pull, check, plan, compile_command, run, chat, serve, inspect, bench, evaluate, targets, doctor):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after ``aicc``; None takes the process's own.

    Returns:
        The exit code.
    """
    if "_AICC_COMPLETE" in os.environ:  # a shell asks what could come next; click answers and exits
        cli(prog_name="aicc")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with cli.make_context("aicc", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain about the same pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("AICC_DEBUG"):
            traceback.print_exc()
        message, code = explain(error)
        print(f"aicc: {one_line(message)}", file=sys.stderr, flush=True)
        return code


def explain(error: Exception) -> tuple[str, int]:
    """One line for a person, and the exit code, for anything a command may raise."""
    from aicc.runtime.errors import AiccError, is_disk_full

    if isinstance(error, AiccError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "aicc"
        return f"{error.format_message()} See `{path} --help`.", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, MemoryError):
        return "out of memory. Close other programs, or compile with fewer bits (--quant int4).", 5
    if is_disk_full(error):
        return f"no space left on the disk{_of(error)}. Free some space, or write elsewhere.", 5
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}{_of(error)}. Check the path and its permissions.", 2
    return (
        f"{type(error).__name__}: {error} (this is a bug in aicc; set AICC_DEBUG=1 for the traceback and report it)",
        1,
    )


def _of(error: OSError) -> str:
    return f": {error.filename}" if error.filename is not None else ""


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave through the ``finally`` blocks, which take half-made files away."""
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
