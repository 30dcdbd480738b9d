"""The command `hyperfarm`. Each subcommand's module is imported when it is called: start-up time counts."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

from hyperfarm.errors import HyperfarmError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("hyperfarm.controller.commands", "Run a search: FILE.py or module:function."),
    "worker": ("hyperfarm.worker.commands", "Run trials on this host until stopped."),
    "hosts": ("hyperfarm.deploy.commands", "Start and stop workers on many machines, over SSH."),
    "ls": ("hyperfarm.analysis.commands", "List the experiments."),
    "show": ("hyperfarm.analysis.commands", "Show an experiment, or one of its trials."),
    "top": ("hyperfarm.analysis.top_commands", "Watch experiments and workers."),
    "best": ("hyperfarm.analysis.commands", "Show the best trial of an experiment."),
    "pull": ("hyperfarm.analysis.commands", "Fetch a trial's model or another saved file."),
    "plot": ("hyperfarm.analysis.commands", "Draw an experiment."),
    "logs": ("hyperfarm.analysis.commands", "Print what a trial printed."),
    "enqueue": ("hyperfarm.controller.commands", "Have points tried by an experiment."),
    "cancel": ("hyperfarm.controller.commands", "Cancel an experiment's waiting and running trials."),
    "rm": ("hyperfarm.controller.commands", "Delete an experiment with everything that belongs to it."),
    "gc": ("hyperfarm.garbage_commands", "Find what nothing refers to any more, and remove it."),
    "db": ("hyperfarm.db_commands", "Start, stop or look at the private MongoDB of this machine."),
    "doctor": ("hyperfarm.doctor_commands", "Check database, workers and this host, and say what to do."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from hyperfarm import __version__

        click.echo(f"hyperfarm {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it."
)
def cli() -> None:
    """A distributed Hyperopt worker farm backed by MongoDB.

    The database is named by --mongo, by HYPERFARM_MONGO, or by the file mongo-url in the configuration
    folder; without any of them, each command uses a private MongoDB on this machine.

    \b
    Example:
      hyperfarm run optimise_task.py --max-evals 20 --workers 2
      hyperfarm best optimise_task
    """


def _end(number: int, _frame: object) -> None:
    """End by way of all `finally` blocks: a private database that we started goes with us."""
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; an error of ours is one sentence and exit code 2."""
    signal.signal(signal.SIGTERM, _end)
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_ERROR)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except HyperfarmError as error:
        if os.environ.get("HYPERFARM_DEBUG"):
            raise
        click.echo(f"hyperfarm: {error}", err=True)
        sys.exit(EXIT_ERROR)
    except BrokenPipeError:
        # The reader of our output has gone (`hyperfarm ls | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
