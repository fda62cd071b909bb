"""Words in a config that are none of those that their fields take.

Flags are read by a field's annotation (`config_values`); a config file is
Python, which checks nothing.
"""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal


def violations(config: Any, prefix: str = "") -> Iterator[str]:
  """What is wrong with the fields of a config, and of the configs in it.

  Args:
    config: a dataclass instance.
    prefix: of its fields' names, such as `loss.`.
  """
  annotations = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value, name = getattr(config, field.name), prefix + field.name
    known = _words(annotations[field.name])
    if known and not (isinstance(value, str) and value in known):
      yield f"{name}={value} must be one of {', '.join(known)}"
    for part in value if isinstance(value, tuple) else (value,):
      if dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield from violations(part, f"{name}.")


def _words(annotation: Any) -> tuple[str, ...]:
  """The words of a Literal; none where an annotation is anything else."""
  if typing.get_origin(annotation) is not Literal:
    return ()
  return typing.get_args(annotation)
