"""The page of the public names: docstrings, and the fields of configs."""

import dataclasses
import inspect
import typing

from tsd_jax import api
from tsd_jax.base import config_text, config_values

_NO_MEMBERS = "    options:\n      members: false"


def page() -> str:
  """The page, whose docstrings mkdocstrings fills in."""
  named = [getattr(api, name) for name in api.__all__]
  named.sort(key=inspect.isclass)  # Functions first.
  parts = ["# API", "What `import tsd_jax as tsd` offers."]
  for each in named:
    part = f"::: {each.__module__}.{each.__name__}"
    table = fields(each) if inspect.isclass(each) else ""
    parts += [f"{part}\n{_NO_MEMBERS}", table] if table else [part]
  return "\n\n".join(parts) + "\n"


def fields(cls: type) -> str:
  """A table of a config's fields, from the comments beside them.

  Args:
    cls: the class; one that lists its attributes itself gets none.
  """
  hints = {
    name: hint
    for name, hint in typing.get_type_hints(cls).items()
    if typing.get_origin(hint) is not typing.ClassVar
  }
  if "Attributes:" in (cls.__doc__ or "") or not hints:
    return ""
  said = config_text.comments(cls)
  rows = ["| field | value | default | |", "| --- | --- | --- | --- |"]
  for name, hint in hints.items():
    cells = [
      f"`{name}`",
      config_values.type_name(hint).replace("jaxlib._jax.", ""),
      _default(cls, name),
      said.get(name, ""),
    ]
    cells = [cell.replace("|", "\\|") for cell in cells]
    rows.append(f"| {' | '.join(cells)} |")
  return "\n".join(rows)


def _default(cls: type, name: str) -> str:
  """What a field is if nothing is said."""
  if name not in _defaults(cls):
    return "required"
  value = _defaults(cls)[name]
  if dataclasses.is_dataclass(value):
    return f"`{type(value).__name__}(…)`"
  return f"`{config_values.unparse(value) or '()'}`"


def _defaults(cls: type) -> dict[str, typing.Any]:
  if not dataclasses.is_dataclass(cls):  # A NamedTuple.
    return getattr(cls, "_field_defaults", {})
  return {
    field.name: field.default
    for field in dataclasses.fields(cls)
    if field.default is not dataclasses.MISSING
  }
