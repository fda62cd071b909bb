"""Configs as JSON: what `config.json` of a run holds, and back."""

import collections.abc
import dataclasses
import inspect
import json
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Union

from tsd_jax.base import config_values, names
from tsd_jax.base.config import is_config
from tsd_jax.base.errors import ConfigError

_CLASS = "__class__"  # Field of a saved config that names its class.


def to_dict(config: Any) -> dict[str, Any]:
  """Returns the config as JSON's own types, equal to what a reload gives.

  A nested config whose class its field does not tell (a union, a base class)
  carries the class's full name as `__class__`; so do those in a tuple.
  """
  hints = typing.get_type_hints(type(config))
  return {
    field.name: _to_json_value(
      getattr(config, field.name), hints[field.name], field.name
    )
    for field in dataclasses.fields(config)
  }


def to_json(config: Any) -> str:
  """Returns the config as indented JSON, the content of `config.json`."""
  return json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n"


def from_dict(cls: type, saved: Any, *, name: str = "config") -> Any:
  """Returns the config that `to_dict` wrote.

  Args:
    cls: its dataclass; nested ones follow from the annotations.
    saved: what `json.loads` gave.
    name: what an error calls it.

  Raises:
    ConfigError: a field is missing, unknown or of another type, or a
      `__post_init__` refuses a value.
  """
  if not isinstance(saved, Mapping):
    raise ConfigError(f"{name} is {_show(saved)}, not an object of fields")
  hints = typing.get_type_hints(cls)
  known = [field.name for field in dataclasses.fields(cls)]
  wrong = [f"{field} is missing" for field in known if field not in saved]
  wrong += [f"{field} is unknown" for field in saved if field not in known]
  if wrong:
    raise _other_version(name, *wrong)
  values = {
    field.name: _from_json_value(
      saved[field.name], hints[field.name], f"{name}.{field.name}"
    )
    for field in dataclasses.fields(cls)
    if field.init
  }
  try:
    return cls(**values)
  except ValueError as error:
    raise ConfigError(f"{name}: {error}") from error


def difference(
  saved: Mapping[str, Any], config: Any, *, ignore: Collection[str] = ()
) -> list[str]:
  """Returns a line for every field in which a saved config is another one.

  Args:
    saved: `json.loads` of an earlier `to_json`.
    config: the config at hand.
    ignore: dotted names that may differ, each with all that it contains.
  """
  old, new = _flatten(saved), _flatten(to_dict(config))
  lines = []
  for name in [*new, *(name for name in old if name not in new)]:
    if any(f"{name}.".startswith(f"{prefix}.") for prefix in ignore):
      continue
    if name not in old:
      lines.append(f"{name}: not saved, now {_show(new[name])}")
    elif name not in new:
      lines.append(f"{name}: saved {_show(old[name])}, now absent")
    elif old[name] != new[name]:
      lines.append(f"{name}: saved {_show(old[name])}, now {_show(new[name])}")
  return lines


def _to_json_value(value: Any, annotation: Any, name: str) -> Any:
  if is_config(value):
    tag = (
      {} if type(value) is annotation else {_CLASS: _named(type(value), name)}
    )
    return tag | to_dict(value)
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, tuple | list):
    each = _of_items(annotation, len(value)) or (None,) * len(value)
    return [
      _to_json_value(item, annotation, f"{name}.{i}")
      for i, (item, annotation) in enumerate(zip(value, each, strict=True))
    ]
  if isinstance(value, Mapping):
    return {
      str(key): _to_json_value(item, None, f"{name}.{key}")
      for key, item in value.items()
    }
  if callable(value) and hasattr(value, "__qualname__"):
    return _named(value, name)
  raise ConfigError(
    f"field {name} holds {type(value).__name__}, which JSON cannot say"
  )


def _from_json_value(value: Any, annotation: Any, name: str) -> Any:
  members = _members(annotation)
  if value is None and type(None) in members:
    return None
  if isinstance(value, str) and str in members:
    return value
  if isinstance(value, list):
    each = _of_items(annotation, len(value))
    if each is not None:
      return tuple(
        _from_json_value(item, annotation, f"{name}.{i}")
        for i, (item, annotation) in enumerate(zip(value, each, strict=True))
      )
  known = tuple(kind for m in members if (kind := _config_kind(m)))
  if collections.abc.Callable in known and not isinstance(value, Mapping):
    return _function(value, members, name)
  if known:
    return _from_json_config(value, annotation, known, name)
  # A text is a text and a list a tuple: what is left is said in a word.
  plain = tuple(
    m for m in members if m is not str and typing.get_origin(m) is not tuple
  )
  try:
    return config_values.parse(str(value), Union[plain])  # noqa: UP007
  except (TypeError, ValueError):
    expected = config_values.type_name(annotation)
    raise ConfigError(
      f"{name} is saved as {_show(value)}, not as {expected}"
    ) from None


def _from_json_config(
  value: Any, annotation: Any, known: tuple[type, ...], name: str
) -> Any:
  """Reads a nested config.

  Args:
    value: what was saved.
    annotation: of its field.
    known: the kinds of config that the annotation names.
    name: what an error calls the field.
  """
  told = known == (annotation,) and not inspect.isabstract(annotation)
  if isinstance(value, Mapping):
    fields = dict(value)
    tag = fields.pop(_CLASS, None)
    if tag is not None:
      return from_dict(_config_class(tag, known, name), fields, name=name)
    if not told:
      raise _other_version(name, f"{_CLASS} is missing")
  return from_dict(known[0], value, name=name)


def _config_kind(annotation: Any) -> Any:
  """What configs an annotation takes: those of a class, or called ones."""
  if typing.get_origin(annotation) is collections.abc.Callable:
    return collections.abc.Callable
  a_class = isinstance(annotation, type)
  return (
    annotation if a_class and dataclasses.is_dataclass(annotation) else None
  )


def _members(annotation: Any) -> tuple[Any, ...]:
  """What a union is made of; of anything else, itself."""
  union = typing.get_origin(annotation) in (Union, types.UnionType)
  return typing.get_args(annotation) if union else (annotation,)


def _of_items(annotation: Any, count: int) -> tuple[Any, ...] | None:
  """Annotations of a tuple's items; None where it holds no so many."""
  for member in _members(annotation):
    args = typing.get_args(member)
    if typing.get_origin(member) is not tuple:
      continue
    if args[1:] == (...,):
      return args[:1] * count
    if len(args) == count:
      return args
  return None


def _other_version(name: str, *wrong: str) -> ConfigError:
  """The error of a config that this code would have saved otherwise."""
  return ConfigError(
    f"{name} was saved by another version of the code: {'; '.join(wrong)}"
  )


def _config_class(tag: Any, known: tuple[type, ...], name: str) -> type:
  """Finds the class that `to_dict` named: a known one, or a subclass of it."""
  by_name = {names.full_name(cls): cls for cls in known}
  cls = by_name.get(tag) or _import(tag, f"{name}.{_CLASS}")
  a_config = isinstance(cls, type) and dataclasses.is_dataclass(cls)
  if not (a_config and issubclass(cls, known)) or inspect.isabstract(cls):
    raise ConfigError(
      f"{name}.{_CLASS} is {_show(tag)}, which is no "
      + " or ".join(cls.__name__ for cls in known)
    )
  return cls


def _function(value: Any, members: tuple[Any, ...], name: str) -> Any:
  """Finds the function that `to_dict` named.

  Args:
    value: its name.
    members: annotations of its field; one of them says what it takes.
    name: what an error calls the field.
  """
  function = _import(value, name)
  called = [m for m in members if _config_kind(m) is collections.abc.Callable]
  wanted, *_ = typing.get_args(called[0]) or (...,)
  if isinstance(function, type) or not callable(function):
    raise ConfigError(f"{name} is {_show(value)}, which is no function")
  if wanted is not ... and not names.takes(function, len(wanted)):
    raise ConfigError(
      f"{name} is {_show(value)}, which does not take {len(wanted)} arguments"
    )
  return function


def _named(value: Any, field: str) -> str:
  """The name that a function or class is found by again.

  Raises:
    ConfigError: it would not be.
  """
  name = names.full_name(value)
  try:
    names.find(name)
  except (ImportError, AttributeError):
    raise ConfigError(
      f"field {field} holds {name}, which nobody could find again: define it "
      "at the top of a module or of the config file"
    ) from None
  names.allow([names.home(name)])  # This process's own config names it.
  return name


def _import(value: Any, name: str) -> Any:
  """Finds the function or class that `to_dict` named."""
  wanted = str(value)
  place = names.home(wanted)
  if place and not names.is_allowed(wanted):
    raise ConfigError(
      f"{name} is {_show(value)}: reading it would run {place}, and a run's "
      f"folder may come from anywhere; if you trust it, add --imports={place} "
      f"(in Python: load_run(workdir, imports=['{place}']))"
    )
  try:
    found = names.find(wanted)
  except (ImportError, AttributeError, ValueError) as error:
    raise ConfigError(
      f"{name} is {_show(value)}, which cannot be imported ({error}): start "
      "where it was trained, or put its folder on PYTHONPATH"
    ) from None
  # Not what a module has from elsewhere.
  if getattr(found, "__module__", None) != place:
    raise ConfigError(
      f"{name} is {_show(value)}, which {place} does not define"
    )
  return found


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Leaves by their dotted names; configs in a list have its indices."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
      value = {str(i): item for i, item in enumerate(value)}
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _show(value: Any) -> str:
  return json.dumps(value)
