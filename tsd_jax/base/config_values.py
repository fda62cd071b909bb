"""Texts of flags, read and written as a config field's annotation says."""

import collections.abc
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union


def parse(text: str, annotation: Any) -> Any:
  """Reads a text as an annotation says.

  Args:
    text: `32`, `1e-3`, `true`, `none`, `8,4`, a word.
    annotation: int, float, bool, str, None, a Literal, a tuple or a union of
      them.

  Raises:
    ValueError: the text is no such value.
    TypeError: no text can say a value of this annotation.
  """
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if annotation is str:
    return text
  if annotation is int:
    return int(text)
  if annotation is float:
    if math.isnan(value := float(text)):
      raise ValueError(text)
    return value
  if annotation is bool:
    return _one_of(
      text.lower(), {"true": True, "1": True, "false": False, "0": False}
    )
  if annotation is type(None):
    return _one_of(text.lower(), {"none": None})
  if origin is Literal:
    return _one_of(text, {str(choice): choice for choice in args})
  if origin is tuple:
    parts = text.removesuffix(",").split(",") if text else []
    each = args[:1] * len(parts) if args[1:] == (...,) else args
    if len(each) != len(parts):
      raise ValueError(text)
    return tuple(
      parse(part.strip(), a) for part, a in zip(parts, each, strict=True)
    )
  if origin in (Union, types.UnionType):
    return _parse_union(text, args)
  raise TypeError(annotation)


def unparse(value: Any) -> str:
  """Writes a value as `parse` reads it."""
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple):
    return ",".join(map(unparse, value))
  return repr(value) if isinstance(value, float) else str(value)


def _one_of(text: str, choices: Mapping[str, Any]) -> Any:
  if text not in choices:
    raise ValueError(text)
  return choices[text]


def _parse_union(text: str, members: tuple[Any, ...]) -> Any:
  """Reads a text as the first member that takes it; None is tried first."""
  failures = []
  for member in sorted(members, key=lambda member: member is not type(None)):
    try:
      return parse(text, member)
    except (TypeError, ValueError) as error:
      failures.append(error)
  sayable = [e for e in failures if isinstance(e, ValueError)]
  raise (sayable or failures)[0]


def type_name(annotation: Any) -> str:
  """Returns what a user calls a type, such as `an integer`."""
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Literal:
    return "one of " + ", ".join(map(str, args))
  if origin in (Union, types.UnionType):
    return " or ".join(map(type_name, args))
  if origin is tuple and args[1:] == (...,):
    return f"a comma-separated list, each {type_name(args[0])}"
  if origin is tuple:
    return f"{len(args)} comma-separated values: " + ", ".join(
      map(type_name, args)
    )
  if origin is collections.abc.Callable:
    return "a function (set in the config file)"
  names = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "none",
  }
  return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def snake_case(name: str) -> str:
  """A class's name as flags say it: BestFirst is best_first, PUCT puct."""
  return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
