"""How the options of a part are declared, once: a class of them is the argument of the function
that does the work, the flags of its command, the keys of its section in quarry.toml and the record
in the manifest. It stands in the file of its part.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"  # of an index, a source, a set: it becomes a folder


VIEW = (
    "what documents are indexed by in place of their own text: a file with columns doc_id and text,"
    " or code:LANGUAGE, their code with names masked by their kind [default: their own]"
)


class Options(BaseModel):
    """A frozen set of options; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def record(self) -> dict[str, Any]:
        """Return the options that decide the result as plain JSON values, as the manifest keeps
        them.
        """
        free = {
            name for name, field in type(self).model_fields.items() if "free" in extra_of(field)
        }
        return self.model_dump(mode="json", exclude=free)


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """Return how the command line writes an option, as `option` was told."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def option(default: Any, about: str, **extra: Any) -> Any:
    """Declare an option.

    Args:
        default: its value where none is given; `...` if one must be.
        about: its line of help.
        extra: pydantic's bounds (ge, gt, le, lt, pattern, min_length), and how the command line
            writes it: `short`, a short flag; `flag`, another long one; `argument`, taken by place;
            `free`, it changes no byte of the result, so it may be another when a stage is resumed.
    """
    names = ("short", "flag", "argument", "free")
    ours: dict[str, Any] = {name: extra.pop(name) for name in names if name in extra}
    return Field(default, description=about, json_schema_extra=ours or None, **extra)
