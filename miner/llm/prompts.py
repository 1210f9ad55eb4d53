"""Prompts as files: name, version, system text, template, JSON schema, examples. Documents in
them are data and stay data.
"""

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from json import dumps
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from jsonschema import Draft202012Validator, SchemaError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from miner.errors import UserError

FOLDER = Path(__file__).parent / "prompts"
# What a chat template, or our own tags, would take for a border between speakers or parts: tags,
# <|im_start|>, [INST], <<SYS>>.
BORDER = re.compile(
    r"<(?=[/|｜!<A-Za-z])|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\b)"
)
SLACK = 24  # characters that a text may be longer than the least: one of a few words may grow
ESCAPES = {"<": "&lt;", "[": "&#91;"}
JINJA = SandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, finalize=lambda value: escape(str(value))
)


def escape(text: str) -> str:
    """Return a text in which nothing opens or closes a part of a prompt; "a < b" stays as it is."""
    return BORDER.sub(lambda found: ESCAPES[found[0]], text)


def unescape(text: str) -> str:
    """Return a text that a model copied from an escaped one as it was."""
    for plain, escaped in ESCAPES.items():
        text = text.replace(escaped, plain)
    return text


class Prompt(BaseModel):
    """What a model is told.

    Attributes:
        name, version: both are part of a request's key: another version asks anew.
        system: what all requests share.
        template: Jinja text of one request.
        json_schema: of the answer, in the file as `schema`.
        output: the answer's key that holds the text.
        meaning_effect: what the made text does to the meaning, kept beside it.
        length: least and most characters of the text, as a share of what is shown of the original.
        most: most characters of the text, however long the original.
        near: share of common character trigrams from which a text is a copy; 1 is only the same
            words.
        close: whether a text that was cut off may end at its last whole sentence.
        examples: values of the template's names, and `answer`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    version: int
    system: str
    template: str
    json_schema: dict[str, Any] = Field(alias="schema")
    output: str = "text"
    meaning_effect: str = "change"
    length: tuple[float, float] = (0.3, 3.0)
    most: int | None = Field(None, ge=1)
    near: float = Field(1.0, gt=0, le=1)
    close: bool = False
    examples: tuple[dict[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Return name and version."""
        return f"{self.name}@{self.version}"

    def schema_text(self, least: int, most: int) -> str:
        """Return the schema as JSON, always the same bytes; the text has so many characters, unless
        the prompt's own schema says otherwise.
        """
        properties = self.json_schema.get("properties", {})
        text = {"minLength": least, "maxLength": most} | properties.get(self.output, {})
        bounded = self.json_schema | {"properties": properties | {self.output: text}}
        return dumps(bounded, sort_keys=True)

    def bounds(self, original: int) -> tuple[float, float]:
        """Return the least and the most characters of a text made from one of so many."""
        least = self.length[0] * original
        most = max(self.length[1] * original, least + SLACK)
        return least, min(most, self.most or most)

    def turns(self) -> tuple[tuple[str, str], ...]:
        """Return the examples, each as what is asked and what is answered."""
        return tuple(
            (fill_in(self.template, example), example.get("answer", ""))
            for example in self.examples
        )

    def opening(self) -> str:
        """Return all that requests share: the system text and the examples."""
        return "\n".join([self.system, *(part for turn in self.turns() for part in turn)])


class JudgePrompt(BaseModel):
    """What a judge is told: one question in several wordings, each of which is a vote."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    version: int
    system: str
    yes: str = "Yes"
    no: str = "No"
    templates: tuple[str, ...] = Field(min_length=1)

    @property
    def title(self) -> str:
        """Return name and version."""
        return f"{self.name}@{self.version}"


def prompt_path(given: str) -> Path:
    """Return the file of a prompt: one of the project's by its name, else a path.

    Raises:
        UserError: there is no such file.
    """
    own = FOLDER / f"{given}.toml"
    file = own if own.exists() and "/" not in given else Path(given)
    if not file.is_file():
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise UserError(f"there is no prompt {given!r}; expected one of {names}, or a .toml file")
    return file


@lru_cache
def load_prompt(given: str) -> Prompt:
    """Read a prompt.

    Raises:
        UserError: there is no such file, or it is not a prompt.
    """
    return _read_prompt(prompt_path(given), Prompt)


@lru_cache
def load_judge_prompt(given: str) -> JudgePrompt:
    """Read a judge's prompt.

    Raises:
        UserError: there is no such file, or it is not a prompt of a judge.
    """
    return _read_prompt(prompt_path(given), JudgePrompt)


def _read_prompt(file: Path, kind: Any) -> Any:
    try:
        prompt = kind(**tomllib.loads(file.read_text("utf-8")))
        for template in getattr(prompt, "templates", None) or [prompt.template]:
            JINJA.parse(template)
        Draft202012Validator.check_schema(getattr(prompt, "json_schema", {}))
    except SchemaError as error:
        where = ".".join(map(str, ["schema", *error.path]))
        raise UserError(f"prompt {file}: {where} is no JSON schema: {error.message}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TemplateError) as error:
        raise UserError(f"prompt {file} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"prompt {file}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    return prompt


def fill_in(template: str, fields: Mapping[str, str]) -> str:
    """Return a template with its names filled in, escaped.

    Raises:
        UserError: it names what there is not.
    """
    try:
        return JINJA.from_string(template).render(fields)
    except TemplateError as error:
        raise UserError(
            f"a prompt's template fails: {error}; it may name {', '.join(sorted(fields))}"
        ) from error


def shorten(text: str, words: int) -> str:
    """Return the first words of a text, its spaces kept."""
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    return text if len(ends) <= words else text[: ends[words - 1]] + " …"
