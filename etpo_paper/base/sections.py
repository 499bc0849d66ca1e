"""Sections of settings: immutable, checked by name, type and range, and each mistake told in one line.

There are two kinds. A `Typed` section is a class with a field for each setting. A `Section` holds whatever names it is
given, because only the caller knows which are allowed (the settings of a method are the arguments of its class); it
remembers where its values are written, and `check_values` checks them.

Values are never converted: a number in quotes is text and therefore no number, and `true` is none either.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from etpo_core.errors import UserError

# Mistakes in one line ---------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a setting is written.

    Attributes:
        path: its name with the sections around it, e.g. "scales.laptop.training.env_steps".
        file: the file, relative to the project's root.
    """

    path: str
    file: str = "params.yaml"

    def __str__(self) -> str:
        return self.path

    def below(self, *names: str | int) -> "Place":
        """The place of something inside."""
        path = self.path + "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)
        return Place(path.removeprefix("."), self.file)

    def above(self) -> "Place":
        """The section around it."""
        return Place(self.path.rpartition(".")[0], self.file)


def mistake(place: Place, got: object, expected: str) -> UserError:
    """The error for a value that cannot be used."""
    shown = repr(got) if len(repr(got)) <= 60 else repr(got)[:57] + "..."
    return UserError(f"{place}: got {shown}, expected {expected}; change it in {place.file}")


def unknown_name(kind: str, name: object, known: Iterable[str], place: Place | None = None) -> UserError:
    """The error for a name that does not exist: which name may have been meant, and which ones there are."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.75)
    where = f" in {' of '.join(filter(None, place))}" if place else ""
    meant = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {str(name)!r}{where}; {meant}choose one of: {', '.join(known)}")


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section of settings",
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "string_pattern_mismatch": "a name of letters, digits, _ and -, with a letter at its beginning",
    "string_too_short": "text of at least {min_length} character",
    "literal_error": "{expected}",
}


def told(error: ErrorDetails, place: Place) -> UserError:
    """One error of pydantic as a line of ours."""
    if error["type"] == "missing":
        return UserError(f"{place} is missing; add it to {place.file} or restore the file from git")
    template = _EXPECTED.get(error["type"], "{message}")
    expected = template.format(**{"message": error["msg"]} | error.get("ctx", {}))
    if error["type"] in ("int_type", "float_type") and _is_number_in_text(error["input"]):
        expected += " (a number in quotes is text; leave them out)"
    return mistake(place, error["input"], expected)


def _is_number_in_text(value: object) -> bool:
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def check_values(section: "Section", fields: Mapping[str, Any], kind: str) -> None:
    """Checks the settings of a section whose names only the caller knows.

    Args:
        section: the settings found.
        fields: for each setting its type and its default, as `pydantic.create_model` takes them; `...` as the default
            of one that must be given.
        kind: what an unknown setting is called in the message, e.g. "setting of ppo_kl".

    Raises:
        UserError: an unknown setting, a missing one, or one that cannot be used.
    """
    for key in section:
        if key not in fields:
            raise unknown_name(kind, key, fields, section.place(key).above())
    try:
        create_model("values", __config__=Typed.model_config, **fields)(**section)
    except ValidationError as error:
        first = error.errors()[0]
        raise told(first, section.place(str(first["loc"][0]))) from None


# Sections ---------------------------------------------------------------------------------------------------------


class Section(Mapping[str, Any]):
    """A section whose names are not known here: an immutable mapping whose values are attributes as well.

    Args:
        values: names and values; mappings become sections and lists become tuples.
        at: where the section is written, for messages about it.
        elsewhere: where settings are written that are not written there.
        named: more names and values.
    """

    __slots__ = ("_at", "_elsewhere", "_values")
    _values: dict[str, Any]
    _at: Place
    _elsewhere: dict[str, Place]

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        at: Place | None = None,
        elsewhere: Mapping[str, Place] | None = None,
        /,
        **named: Any,
    ):
        object.__setattr__(self, "_values", {k: _frozen(v) for k, v in {**(values or {}), **named}.items()})
        object.__setattr__(self, "_at", at or Place(""))
        object.__setattr__(self, "_elsewhere", dict(elsewhere or {}))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"no setting {name!r}; there are: {', '.join(self._values)}")
        return self._values[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings cannot be changed once they are loaded ({name})")

    def __repr__(self) -> str:
        return f"Section({self._values!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Section, (self.plain(), self._at, self._elsewhere)

    @property
    def at(self) -> Place:
        """Where the section is written."""
        return self._at

    def place(self, key: str) -> Place:
        """Where a setting of this section is written."""
        return self._elsewhere.get(key, self._at.below(key))

    def without(self, *keys: str) -> "Section":
        """The section less some settings."""
        return Section({k: v for k, v in self._values.items() if k not in keys}, self._at, self._elsewhere)

    def plain(self) -> dict[str, Any]:
        """The section as nested dictionaries and lists, for run cards and hashes."""
        return {key: _plain(value) for key, value in self._values.items()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._checked)

    @classmethod
    def _checked(cls, value: Any) -> "Section":
        if not isinstance(value, Mapping):
            raise PydanticCustomError("section", "a section of settings")
        return value if isinstance(value, Section) else Section(value)


class Typed(BaseModel):
    """A section whose names, types and ranges are known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def plain(self) -> dict[str, Any]:
        """The section as nested dictionaries and lists, for run cards and hashes."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping) and not isinstance(value, Section):
        return Section(value)
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Section | Typed):
        return value.plain()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
