"""Functions and classes by the names that a run's folder keeps them under.

`package.module.function`, or `FILE.py:function` where it stands in a config
file. Finding one runs the code of its module. A folder may come from anywhere,
so a name in it is followed only into tsd_jax, experiments, and what this
process's user has named: a config file, a config of this process, `allow`.
"""

import importlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from tsd_jax.base.paths import ROOT

_OWN = ("tsd_jax", "experiments")
_allowed: set[str] = set()


def full_name(value: Any) -> str:
  """The name of a function or class."""
  module = value.__module__
  dot = ":" if module.endswith(".py") else "."
  return f"{module}{dot}{value.__qualname__}"


def home(name: str) -> str:
  """The module or file that a name lies in, as `allow` takes it."""
  file, colon, _ = name.rpartition(":")
  return file if colon else name.rpartition(".")[0]


def find(name: str) -> Any:
  """Imports what a name stands for, wherever that is.

  Raises:
    ImportError: there is no such module or file; AttributeError: it has no
      such member.
  """
  place, member = home(name), name.replace(":", ".").rpartition(".")[2]
  module = (
    load_file(ROOT / place)
    if place.endswith(".py")
    else importlib.import_module(place)
  )
  return getattr(module, member)


def load_file(file: pathlib.Path, *, again: bool = False) -> ModuleType:
  """Runs a Python file as a module that bears its path as its name.

  Args:
    file: it.
    again: whether to run it even where this process has.

  Raises:
    ImportError: there is no such file.
  """
  name = file_name(file)
  if name in sys.modules and not again:
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None or spec.loader is None or not file.is_file():
    raise ImportError(f"there is no file {file}")
  module = importlib.util.module_from_spec(spec)
  # Dataclasses that the file defines look their module up here.
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]  # Half a module is none.
    raise
  return module


def file_name(file: pathlib.Path) -> str:
  """A file's path, from the repository's root where it lies there."""
  file = file.expanduser().resolve()
  return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)


def allow(places: Iterable[str]) -> None:
  """Lets names lead into some modules, with all below them, and files."""
  for place in places:
    is_file = place.endswith(".py")
    _allowed.add(file_name(pathlib.Path(place)) if is_file else place)


def allowed() -> list[str]:
  """What was allowed, for a process that this one starts."""
  return sorted(_allowed)


def is_allowed(name: str) -> bool:
  """Whether a name in a file may be followed."""
  place = home(name)
  if place.endswith(".py"):
    # A path may lead out of a folder again: `experiments/../x.py`.
    place = file_name(ROOT / place)
    return place in _allowed or place.startswith("experiments/")
  return any(
    f"{place}.".startswith(f"{known}.") for known in (*_OWN, *_allowed)
  )


def takes(function: Callable, count: int) -> bool:
  """Whether a function can be called with so many arguments."""
  try:
    inspect.signature(function).bind(*[None] * count)
  except (TypeError, ValueError):  # It says nothing of its arguments.
    return False
  return True
