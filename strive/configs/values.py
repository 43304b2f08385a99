"""Types of configuration fields: what a text of YAML or of the command line is read as."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from strive.errors import nearest
from strive.files import expanded

UserPath = Annotated[Path, AfterValidator(expanded)]
# YAML reads a text of digits as a number.
TextOrNumber = Annotated[str, Field(coerce_numbers_to_str=True)]
PositiveInt = Annotated[int, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


def as_list(value: Any) -> Any:
    """One text where several may stand is a list of one."""
    return (value,) if isinstance(value, (str, Path)) and str(value) else value


def known_or_own(names: tuple[str, ...], elsewhere: Mapping[str, str] = {}) -> AfterValidator:
    """Refuse what is neither one of the names nor of the form `module:function`.

    `elsewhere` tells the key and value of names that other trainers give here.
    """

    def check(name: str) -> str:
        if name not in names and ":" not in name:
            there = f"; {name} is {elsewhere[name]} here" if name in elsewhere else ""
            raise ValueError(
                f"{', '.join(names)} or module:function is wanted{there or nearest(name, names)}"
            )
        return name

    return AfterValidator(check)


OneOrMore = BeforeValidator(as_list)


def as_pair(value: Any) -> Any:
    """Read `field=value`."""
    if not isinstance(value, str):
        return value
    field, separator, wanted = value.partition("=")
    if not separator:
        raise ValueError("write field=value")
    return field, wanted


def _as_shard(value: Any) -> Any:
    """Read `i/n`."""
    if isinstance(value, (list, tuple)):
        return value
    index, separator, count = str(value).partition("/")
    # Not isdigit: that is true of superscripts, which int() refuses.
    if not separator or not index.isdecimal() or not count.isdecimal():
        raise ValueError("write i/n with 0 <= i < n")
    return int(index), int(count)


def _check_shard(value: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= value[0] < value[1]:
        raise ValueError("write i/n with 0 <= i < n")
    return value


Shard = Annotated[
    tuple[int, int],
    BeforeValidator(_as_shard),
    AfterValidator(_check_shard),
    WithJsonSchema({"type": "string", "format": "i/n"}),
]


def as_models(value: Any) -> Any:
    """Read texts `SCORER=ID_OR_DIR`; the model of the only scorer needs no name."""
    if isinstance(value, (list, tuple)):
        pairs = [text.partition("=") for text in value]
        return {name if separator else "": model or name for name, separator, model in pairs}
    return {"": value} if isinstance(value, str) else value
