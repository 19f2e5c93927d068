"""Validation errors as one line of cause and one of remedy; a section's keys laid over another section."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.redact import redact
from pipeline.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


def overlay(base: ModelT, keys: Mapping[str, Any], path: tuple[str, ...]) -> ModelT:
    """`base` with the values of `keys` in place of its own, validated again as a whole."""
    data = _merge(base.model_dump(mode="json"), keys)
    try:
        return type(base).model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise explain(error, type(base), path) from None


def _merge(base: Any, keys: Any) -> Any:
    if isinstance(base, dict) and isinstance(keys, Mapping):
        return {**base, **{key: _merge(base.get(key), value) for key, value in keys.items()}}
    return keys


def explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> ConfigError:
    """Pydantic's errors as `ConfigError`s, one per key: returns the first one, with the rest as its `others`."""
    complaints: dict[str, ConfigError] = {}
    for details in error.errors():
        path, complaint = _complaint(details, model, prefix)
        complaints.setdefault(path, complaint)  # a union complains once a member
    first, *others = complaints.values()
    first.others = tuple(others)
    return first


def _complaint(
    details: ErrorDetails, model: type[BaseModel], prefix: tuple[str, ...]
) -> tuple[str, ConfigError]:
    """The key's dotted path, and the error there."""
    loc, known = _walk(model, details["loc"])
    path = ".".join((*prefix, *loc)) or "the config"
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Known keys here: {', '.join(known)}."
        return path, ConfigError(f"{path}: unknown key", remedy)
    if details["type"] == "missing":
        return path, ConfigError(f"{path}: missing", "Add the key; docs/config.md says what it holds.")
    message = str(details["msg"]).removeprefix("Value error, ")
    value = "" if isinstance(details["input"], dict) else f" (given: {redact(path, details['input'])!r:.200})"
    remedy = "Change the value; docs/config.md lists what is allowed."
    return path, ConfigError(f"{path}: {message}{value}", remedy)


def _walk(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """The config keys of pydantic's `loc`, without the parts that pydantic adds, and the known keys at its end."""
    section: Any = model
    path: list[str] = []
    for part in loc:
        fields = getattr(section, "model_fields", None)
        if fields is not None and part not in fields:  # an unknown key, or pydantic's "[key]"
            return [*path, *([str(part)] if part != "[key]" else [])], list(fields)
        if fields is not None:
            section = fields[part].annotation
        elif get_origin(section) in (dict, tuple):
            section = get_args(section)[-1 if get_origin(section) is dict else 0]
        else:  # pydantic's name for a member of a union
            break
        path.append(str(part))
        while get_origin(section) in (Annotated, Union, UnionType):  # `X | None`, `Annotated[X, …]` → X
            members = [member for member in get_args(section) if member is not NoneType]
            if get_origin(section) is not Annotated and len(members) > 1:
                break
            section = members[0]
    return path, []
