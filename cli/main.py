"""The command line: a skin in flow order. It parses options, calls one function, prints the
summary, and turns errors into exit codes.
"""

import errno
import inspect
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from cli.calling import Settings
from cli.flags import build_options, own_section, parameters, read_config, with_signature
from cli.perform import perform
from cli.steps import SINGLE, STAGES, Step, steps_of
from miner.errors import UserError

HELP = (
    "Mine hard negatives, weigh every set of them before fine-tuning, export Parquet for any"
    " trainer."
)
GROUPS = {
    "ingest": "Any format -> documents, queries, positives.",
    "index": "What the retrievers need.",
    "mine": "Candidates of one source.",
    "judge": "Describe pairs; drop nothing.",
}
HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
ORDER = ("demo", "run", *STAGES, "status", "show", "doctor")


class Catalogue(TyperGroup):
    """Commands in the order in which they are used. Those of a step are built when they are asked
    for, so that a list of commands imports none of them.
    """

    def _steps(self) -> dict[str, Step]:
        stages = [self.name] if self.name in GROUPS else SINGLE
        return {step.name or step.stage: step for stage in stages for step in steps_of(stage)}

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the names of the commands."""
        return list(self._steps()) if self.name in GROUPS else list(ORDER)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Return a command, or None if there is none of this name."""
        if cmd_name not in self.commands and cmd_name in self._steps():
            self.commands[cmd_name] = step_command(self._steps()[cmd_name])
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the list of commands from the catalogue."""
        steps, width = self._steps(), formatter.width
        about = {name: command.get_short_help_str(width) for name, command in self.commands.items()}
        about |= {name: step.part.about for name, step in steps.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, about[name]) for name in self.list_commands(ctx)])


INTERRUPTED = 130
app = typer.Typer(
    help=HELP,
    cls=Catalogue,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=HELP_FLAGS,
)


@app.callback()
def everything(
    context: typer.Context,
    run: Annotated[
        Path, typer.Option("--run", "-r", envvar="QUARRY_RUN", help="the run folder")
    ] = Path("run"),
    config: Annotated[
        Path | None,
        typer.Option(
            help="options of all commands [default: quarry.toml, if there]", show_default=False
        ),
    ] = None,
) -> None:
    """Read what holds for every command."""
    context.obj = Settings(run, read_config(config))


COMMON = {
    "force": ("--force", False, "make it afresh, even if it was made otherwise"),
    "workers": ("--workers", 1, "processes that share the shards"),
    "as_json": ("--json", False, "print the summary as one JSON object"),
}


def _common(step: Step) -> list[inspect.Parameter]:
    rows = dict(COMMON)
    if step.part.dry:
        rows["dry_run"] = ("--dry-run", False, "say what would come of it; make nothing")
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[type(default), typer.Option(flag, help=about)],
        )
        for name, (flag, default, about) in rows.items()
    ]


def step_command(step: Step) -> Any:
    """Return the command of a step: its flags are the options of its part."""
    kind = step.part.options

    def command(**values: Any) -> None:
        context: typer.Context = values.pop("context")
        common = {name: values.pop(name) for name in (*COMMON, "dry_run") if name in values}
        explicit = {
            name: value
            for name, value in values.items()
            if getattr(context.get_parameter_source(name), "name", "")
            in ("COMMANDLINE", "ENVIRONMENT")
        }
        given = own_section(context.obj.config, step, explicit.get("name"))
        perform(context.obj, step, build_options(kind, given | explicit, step.title), **common)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    signed = with_signature(command, [context, *parameters(kind), *_common(step)])
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP_FLAGS)
    alone.command(step.name or step.stage, help=inspect.cleandoc(kind.__doc__ or ""))(signed)
    return typer.main.get_command(alone)


for group, about in GROUPS.items():
    below = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None, cls=Catalogue)
    below.callback()(lambda: None)
    app.add_typer(below, name=group)

Force = Annotated[bool, typer.Option("--force", help="make every stage of the plan afresh")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="processes that share the shards")]
AsJson = Annotated[bool, typer.Option("--json", help="print the summary as one JSON object")]


@app.command()
def run(
    context: typer.Context,
    first: Annotated[
        str | None, typer.Option("--from", help="first stage", show_default=False)
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="last stage", show_default=False)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan and what is done of it; do nothing")
    ] = False,
    force: Force = False,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Carry out all that quarry.toml asks for; what is done is skipped."""
    from cli.flow import carry_out, make_plan, print_plan

    plan = make_plan(context.obj.config, first, last)
    if dry_run:
        print_plan(context.obj, plan, as_json)
    else:
        carry_out(context.obj, plan, force, workers, as_json)


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Argument(help="the run folder [default: demo-run]", show_default=False)
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="all of the standard library, not a sample of it")
    ] = False,
    llm: Annotated[
        bool,
        typer.Option(
            "--llm", help="negatives that a small language model writes, pairs that it judges"
        ),
    ] = False,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Run the whole flow on Python's own standard library: docstring summary -> function source."""
    from cli.flow import carry_out_demo

    carry_out_demo(folder, full, llm, workers, as_json)


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show each stage: rows, drops by reason, seconds, up to date or stale and why."""
    from cli.status import print_status

    print_status(context.obj.made_run, as_json)


@app.command()
def show(
    context: typer.Context,
    query_id: Annotated[str, typer.Argument(help="which query")],
    set_name: Annotated[
        str | None, typer.Option("--set", help="only this set [default: all]", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a query as a case file: every candidate, its sources, judges, verdict and reason."""
    from cli.status import print_query

    print_query(context.obj.made_run, query_id, set_name, as_json)


@app.command()
def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Say what is there, what is missing and how to get it."""
    from cli.doctor import print_doctor

    print_doctor(as_json)


def main() -> NoReturn:
    """Run the command line: exit 0 done, 2 the user's mistake (one line), 1 a fault of ours
    (with a traceback), 130 interrupted, 143 terminated.
    """
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        sys.exit(_one_line(str(error)))
    except typer.TyperException as error:
        sys.exit(_one_line(getattr(error, "format_message", error.__str__)()))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        sys.exit(
            _one_line(
                f"{error}; what was finished is kept: make room or get leave to write there, then"
                " repeat the command"
            )
        )
    except (KeyboardInterrupt, typer.Abort):
        _stopped()
    if code == INTERRUPTED:  # what typer makes of an interrupt
        _stopped()
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(*_: Any) -> None:
    """End as an interrupt does, so that what was begun is given up in order: else vLLM's processes
    would outlive this one.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # also says, below, by which of the two
    signal.raise_signal(signal.SIGINT)


def _stopped() -> NoReturn:
    by_term = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    what, code = ("terminated", 143) if by_term else ("interrupted", INTERRUPTED)
    sys.exit(_one_line(f"{what}; what was finished is kept: repeat the command to go on", code))


def _one_line(message: str, code: int = 2) -> int:
    print(f"quarry: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
