"""An options class as the flags of a command: names, types, defaults, bounds and help come from
the class alone.
"""

import inspect
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cli.steps import Step
from miner.errors import UserError
from miner.options import Options, extra_of

CONFIG = "quarry.toml"
Kind = TypeVar("Kind", bound=Options)


def flag_name(name: str, field: FieldInfo) -> str:
    """Return how an option is written on the command line."""
    extra = extra_of(field)
    if extra.get("argument"):
        return name.upper()
    return str(extra.get("flag", "--" + name.replace("_", "-")))


def parameters(kind: type[Options]) -> list[inspect.Parameter]:
    """Return the parameters of a Typer command that takes these options.

    None is required here: what the command line leaves out, quarry.toml may give, and `build` says
    what is missing in the end.
    """
    made = []
    for name, field in kind.model_fields.items():
        extra = extra_of(field)
        about = field.description or ""
        shown = not field.is_required() and field.default not in (None, False, ())
        default = field.default if shown else None
        if extra.get("argument"):
            info = typer.Argument(help=about, show_default=False, metavar=name.upper())
        else:
            switch = (
                f"{flag_name(name, field)}/--no-{name.replace('_', '-')}"
                if field.default is True
                else flag_name(name, field)
            )
            names = [switch, *([str(extra["short"])] if "short" in extra else [])]
            about += " [required]" if field.is_required() else ""
            info = typer.Option(*names, help=about, show_default=shown)
        made.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[_parsed_type(field.annotation), info],
            )
        )
    return made


def _parsed_type(annotation: Any) -> Any:
    """Return the type that Typer parses: a tuple of any length is a repeated option, and
    everything may be left out.
    """
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        annotation = list[get_args(annotation)[0]]  # type: ignore[misc]
    return annotation if annotation is bool else annotation | None


def with_signature(
    function: Callable[..., None], parts: list[inspect.Parameter]
) -> Callable[..., None]:
    """Give a function that takes keywords the signature that Typer reads."""
    function.__signature__ = inspect.Signature(parts)  # type: ignore[attr-defined]
    function.__annotations__ = {part.name: part.annotation for part in parts}
    return function


def read_config(path: Path | None) -> dict[str, Any]:
    """Read quarry.toml; without a path, the one in this folder if there is one.

    Raises:
        UserError: the file that was asked for is missing, or it is no TOML.
    """
    file = path or Path(CONFIG)
    if not file.exists():
        if path:
            raise UserError(f"{path} does not exist; give --config a TOML file")
        return {}
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no TOML: {error}") from error


def section(config: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """Return a section's keys as option names: `from` and `max-rank` are written as on the
    command line, or as in Python.
    """
    found: Any = config
    for part in path:
        found = found.get(part, {}) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise UserError(f"{CONFIG}: [{'.'.join(path)}] is {found!r}; expected a section")
    return {name.replace("-", "_"): value for name, value in found.items()}


def kinds(config: Mapping[str, Any], stage: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the sections [stage.NAME] in their order: NAME -> (kind, values). The kind is NAME
    itself, unless the section says another: [mine.bm25-soft] with kind = "bm25" is a second BM25.
    """
    found = {}
    section(config, stage)  # it is one, or the message says so
    for name in config.get(stage, {}):
        values = section(config, stage, name)
        found[name] = str(values.pop("kind", name)), values
    return found


def own_section(config: Mapping[str, Any], step: Step, name: str | None) -> dict[str, Any]:
    """Return what quarry.toml says for a command: [stage], [stage.SET], or [stage.NAME] if NAME is
    of its kind.

    Args:
        config: of quarry.toml.
        step: the command.
        name: of the set, or of the source, index or judge, if the command line names one.
    """
    if step.name is None:
        return section(
            config, step.stage, *([name or ""] if "name" in step.part.options.model_fields else [])
        )
    kind, values = kinds(config, step.stage).get(name or step.name, (step.name, {}))
    return values if kind == step.name else {}


def build_options(
    kind: type[Kind],
    values: Mapping[str, Any],
    where: str,
    spelled: Callable[[str, FieldInfo], str] = flag_name,
) -> Kind:
    """Make the options from what was given.

    Args:
        kind: the options class.
        values: option name (or the name of its flag) -> value; None is not given.
        where: the command or section, for the message.
        spelled: how the message is to write an option.

    Raises:
        UserError: a value is missing, unknown, of the wrong type or out of bounds; one line names
            the option, what was found and expected.
    """
    names = {
        flag_name(name, field).lstrip("-").replace("-", "_"): name
        for name, field in kind.model_fields.items()
    }
    given = {names.get(name, name): value for name, value in values.items() if value is not None}
    try:
        return kind(
            **{
                name: [value] if _wants_many(kind, name) and isinstance(value, str) else value
                for name, value in given.items()
            }
        )
    except ValidationError as error:
        raise UserError(f"{where}: {_wrong(kind, error, spelled)}") from None


def _wrong(
    kind: type[Options], error: ValidationError, spelled: Callable[[str, FieldInfo], str]
) -> str:
    """Say what is wrong with the options that were given, an unknown one first."""
    first = max(error.errors(), key=lambda one: one["type"] == "extra_forbidden")
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r}; expected one of {', '.join(kind.model_fields)}"
    shown = spelled(name, kind.model_fields[name]) if name in kind.model_fields else name
    if first["type"] == "missing":
        return f"{shown} is missing: {kind.model_fields[name].description}"
    words = first["msg"].removeprefix("Value error, ")
    return f"{shown} is {first['input']!r}; {words[0].lower()}{words[1:]}"


def _wants_many(kind: type[Options], name: str) -> bool:
    return name in kind.model_fields and get_origin(kind.model_fields[name].annotation) is tuple
