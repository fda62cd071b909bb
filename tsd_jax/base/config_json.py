"""Configs as JSON: what `config.json` of a run holds, and back."""

import collections.abc
import dataclasses
import importlib
import json
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Union

from absl import logging

from tsd_jax.base import config_values
from tsd_jax.base.config import is_config
from tsd_jax.base.errors import ConfigError

_CLASS = "__class__"  # Field of a saved config that names its class.


def to_dict(config: Any) -> dict[str, Any]:
  """Returns the config as JSON's own types, equal to what a reload gives.

  A nested config whose class its field does not tell (a union, a base class)
  carries the class's full name as `__class__`.
  """
  return {
    field.name: _to_json_value(
      getattr(config, field.name),
      typing.get_type_hints(type(config))[field.name],
      field.name,
    )
    for field in dataclasses.fields(config)
  }


def to_json(config: Any) -> str:
  """Returns the config as indented JSON, the content of `config.json`."""
  return json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n"


def from_dict(cls: type, saved: Any, *, name: str = "config") -> Any:
  """Returns the config that `to_dict` wrote.

  Fields that came later than the file take their defaults, with a warning.

  Args:
    cls: its dataclass; nested ones follow from the annotations.
    saved: what `json.loads` gave.
    name: what an error calls it.

  Raises:
    ConfigError: a field without a default is missing, one is unknown or of
      another type, or a `__post_init__` refuses a value.
  """
  if not isinstance(saved, Mapping):
    raise ConfigError(f"{name} is {_show(saved)}, not an object of fields")
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
  known = [field for field in fields if field in saved]
  later = [field for field in fields if field not in saved]
  missing = [field for field in later if not _has_default(fields[field])]
  unknown = [field for field in saved if field not in hints]
  if missing or unknown:
    raise ConfigError(
      f"{name} was saved by another version of the code: "
      + "; ".join(
        [f"{field} is missing" for field in missing]
        + [f"{field} is unknown" for field in unknown]
      )
    )
  if later:
    logging.warning(
      "%s was saved before it had %s, which now take their defaults",
      name,
      ", ".join(later),
    )
  values = {
    field: _from_json_value(saved[field], hints[field], f"{name}.{field}")
    for field in known
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
  old = _later(saved, config) | old
  lines = []
  for name in [*new, *(name for name in old if name not in new)]:
    if any(f"{name}.".startswith(f"{prefix}.") for prefix in ignore):
      continue
    if name not in old:
      if name.endswith(_CLASS):
        continue  # Older configs do not name the class; its fields tell.
      lines.append(f"{name}: not saved, now {_show(new[name])}")
    elif name not in new:
      lines.append(f"{name}: saved {_show(old[name])}, now absent")
    elif old[name] != new[name]:
      lines.append(f"{name}: saved {_show(old[name])}, now {_show(new[name])}")
  return lines


def _has_default(field: dataclasses.Field) -> bool:
  none = dataclasses.MISSING
  return field.default is not none or field.default_factory is not none


def _later(saved: Mapping[str, Any], config: Any) -> dict[str, Any]:
  """Flat defaults of the fields of a config that a saved one lacks."""
  found = {}
  hints = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value, inner = getattr(config, field.name), saved.get(field.name)
    if is_config(value) and isinstance(inner, Mapping):
      # Where neither tells the class, its fields do: see `difference`.
      if type(value) is hints[field.name] or _CLASS in inner:
        own = _later(inner, value)
        found |= {f"{field.name}.{name}": v for name, v in own.items()}
    elif field.name not in saved and _has_default(field):
      default = field.default
      if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
      default = _to_json_value(default, hints[field.name], field.name)
      found |= _flatten({field.name: default})
  return found


def _to_json_value(value: Any, annotation: Any, name: str) -> Any:
  if is_config(value):
    tag = {} if type(value) is annotation else {_CLASS: _full_name(type(value))}
    return tag | to_dict(value)
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, tuple | list):
    return [_to_json_value(item, type(item), name) for item in value]
  if isinstance(value, Mapping):
    return {
      str(key): _to_json_value(item, type(item), name)
      for key, item in value.items()
    }
  if callable(value) and hasattr(value, "__qualname__"):
    return _full_name(value)
  raise ConfigError(
    f"field {name} holds {type(value).__name__}, which JSON cannot say"
  )


def _from_json_value(value: Any, annotation: Any, name: str) -> Any:
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  members = args if origin in (Union, types.UnionType) else (annotation,)
  if value is None and type(None) in members:
    return None
  if isinstance(value, str) and str in members:
    return value
  if any(typing.get_origin(m) is collections.abc.Callable for m in members):
    return _import(value, name)
  configs = tuple(
    m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)
  )
  if configs:
    fields = dict(value) if isinstance(value, Mapping) else {}
    tag = fields.pop(_CLASS, None)
    cls = configs[0] if tag is None else _config_class(tag, configs, name)
    return from_dict(cls, fields or value, name=name)
  text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
  try:
    return config_values.parse(text, annotation)
  except (TypeError, ValueError):
    expected = config_values.type_name(annotation)
    raise ConfigError(
      f"{name} is saved as {_show(value)}, not as {expected}"
    ) from None


def _config_class(tag: Any, known: tuple[type, ...], name: str) -> type:
  """Finds the class that `to_dict` named: a known one, or a subclass of it."""
  for cls in known:
    if tag == _full_name(cls):
      return cls
  cls = _import(tag, f"{name}.{_CLASS}")
  if not (isinstance(cls, type) and issubclass(cls, known)):
    raise ConfigError(
      f"{name}.{_CLASS} is {_show(tag)}, which is no "
      + " or ".join(cls.__name__ for cls in known)
    )
  return cls


def _full_name(value: Any) -> str:
  return f"{value.__module__}.{value.__qualname__}"


def _import(value: Any, name: str) -> Any:
  """Finds the function or class that `to_dict` named."""
  try:
    module, _, path = str(value).rpartition(".")
    return getattr(importlib.import_module(module), path)
  except (ImportError, AttributeError, ValueError):
    raise ConfigError(
      f"{name} is {_show(value)}, which cannot be imported: define it in a "
      "module, not in a notebook, a shell, a config file or another function"
    ) from None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _show(value: Any) -> str:
  return json.dumps(value)
