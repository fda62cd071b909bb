"""Configs: nested frozen dataclasses, loaded from a file, changed by flags.

An experiment file has a function `get_config()`; an entry point reads

  _CONFIG = flags.DEFINE_string("config", "experiments/countdown.py", "File.")
  def main(overrides):
    config = config_lib.from_flags(_CONFIG.value, overrides)
  if __name__ == "__main__":
    config_lib.run(main)

and is called with `--config=FILE --config.search.num_simulations=32`. The
other flags are ordinary absl flags.
"""

import dataclasses
import difflib
import importlib.util
import inspect
import pathlib
import sys
import traceback
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from tsd_jax.base import config_values
from tsd_jax.base.errors import ConfigError, UserError
from tsd_jax.base.paths import ROOT


def load(path: str) -> Any:
  """Returns what `get_config()` of a Python file returns.

  Args:
    path: the file, with or without `.py`, relative to the working directory or
      else to the repository's root.

  Raises:
    ConfigError: there is no such file, or it yields no config.
  """
  file = _find(path)
  name = f"_tsd_jax_config_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
  spec = importlib.util.spec_from_file_location(name, file)
  assert spec is not None and spec.loader is not None  # It ends with .py.
  module = importlib.util.module_from_spec(spec)
  # Dataclasses that the file defines look their module up here.
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
      raise ConfigError(
        f"{path} has no function get_config(); define one that returns the "
        "config"
      )
    config = get_config()
  except UserError:
    raise
  except Exception as error:
    raise ConfigError(
      f"{path}{_line_in(file, error)}: {type(error).__name__}: {error}"
    ) from error
  if not is_config(config):
    raise ConfigError(
      f"get_config() of {path} returned {type(config).__name__}; it must "
      "return an instance of a dataclass"
    )
  return config


def override(config: Any, overrides: Mapping[str, str]) -> Any:
  """Returns the config with the named fields set.

  All values are set before any check runs, so that fields which depend on each
  other can change together; then every `__post_init__` runs again.

  Args:
    config: a dataclass, possibly of dataclasses.
    overrides: `{"search.num_simulations": "32"}`; each text is read as its
      field's annotation says.

  Raises:
    ConfigError: an unknown name, a text that is no such value, or a value that
      a `__post_init__` refuses.
  """
  nested: dict[str, Any] = {}
  chosen: dict[str, Any] = {}
  # The whole before its parts, whatever the order of the flags: other names may
  # lie within what is chosen by its class.
  for name in sorted(overrides, key=lambda name: name.count(".")):
    parent, leaf = _descend(config, name, chosen)
    value = _chosen(parent, leaf, overrides[name])
    if value is not None:
      change = _Choice(value, {})
    else:
      value = _parse_field(parent, name, leaf, overrides[name])
      change = _Value(value)
    chosen[name] = value
    _branch(nested, name)[leaf] = change
  return _rebuild(config, nested, "")


def from_flags(path: str, overrides: Mapping[str, str]) -> Any:
  """Returns a file's config with the overrides of the command line applied."""
  return override(load(path), overrides)


def required(flag: flags.FlagHolder) -> Any:
  """Returns the value of a flag that has no default.

  Raises:
    UserError: the flag was not given.
  """
  if flag.value is None:
    raise UserError(f"--{flag.name} is missing")
  return flag.value


def command(module: str, *, workdir: bool = True) -> str:
  """The command line as results keep it: without this machine's folders.

  Args:
    module: what `python -m` runs.
    workdir: whether it has that flag.
  """
  words, skip = [], False
  for word in sys.argv[1:]:
    if not skip and not word.startswith(("--workdir", "--output")):
      words.append(word)
    skip = word in ("--workdir", "--output")
  folder = ["--workdir=DIR"] * workdir
  return " ".join(["python -m", module, *words, *folder])


def split_overrides(
  argv: Sequence[str],
) -> tuple[dict[str, str], list[str]]:
  """Takes `--config.NAME=VALUE` and `--config.NAME VALUE` out of a line.

  Args:
    argv: the program's name and its arguments.

  Returns:
    The overrides by dotted name (the last one wins), and the other arguments.

  Raises:
    ConfigError: an override has no value.
  """
  overrides, others, rest = {}, [], list(argv)
  while rest:
    arg = rest.pop(0)
    if arg == "--":
      return overrides, [*others, arg, *rest]
    if not arg.startswith(("--config.", "-config.")):
      others.append(arg)
      continue
    name, equals, text = arg.lstrip("-").removeprefix("config.").partition("=")
    if not equals:
      if not rest or rest[0].startswith("--"):
        raise ConfigError(f"--config.{name} has no value")
      text = rest.pop(0)
    overrides[name] = text
  return overrides, others


def run(main: Callable[[dict[str, str]], int | None]) -> None:
  """Runs an entry point with absl's flags and the overrides of its config.

  Bad flags, stray arguments and a `UserError` become one line on stderr and
  its exit code, 2; any other exception keeps its traceback.

  Args:
    main: called with the overrides; it returns the exit code or None.
  """
  overrides: dict[str, str] = {}

  def parse(argv: Sequence[str]) -> list[str]:
    try:
      found, others = split_overrides(argv)
      remaining = flags.FLAGS(others)
      if found and "config" not in flags.FLAGS:
        raise ConfigError(f"no config to set {next(iter(found))} of")
      if len(remaining) > 1:
        raise UserError(
          f"unexpected argument {remaining[1]!r}; a flag is --name=value"
        )
    except (flags.Error, UserError) as error:
      _print_error(error)
      sys.exit(2)
    overrides.update(found)
    return remaining

  def guarded(argv: Sequence[str]) -> int | None:
    del argv
    try:
      return main(overrides)
    except UserError as error:
      _print_error(error)
      return error.exit_code
    except KeyboardInterrupt:
      return 130  # As a shell counts it; who caught it has said what to do.

  app.run(guarded, flags_parser=parse)


@dataclasses.dataclass(frozen=True)
class _Value:
  """A parsed value: tells a new leaf from a branch of further names."""

  value: Any


@dataclasses.dataclass(frozen=True)
class _Choice:
  """A part of a config chosen by its class, with changes of its fields."""

  value: Any
  changes: dict[str, Any]


def _branch(nested: dict[str, Any], name: str) -> dict[str, Any]:
  """The changes beside which those of a dotted name stand."""
  for head in name.split(".")[:-1]:
    nested = nested.setdefault(head, {})
    if isinstance(nested, _Choice):
      nested = nested.changes
  return nested


def _choices(parent: Any, leaf: str) -> dict[str, type]:
  """Classes that a field may hold, by the names that a flag gives them."""
  members = typing.get_args(_hints(parent)[leaf])
  known: list[type] = [
    m
    for m in members
    if isinstance(m, type)
    and dataclasses.is_dataclass(m)
    and not inspect.isabstract(m)
  ]
  current = getattr(parent, leaf)
  if known and is_config(current):
    known.append(type(current))  # It may be one of the user's own.
  return {config_values.snake_case(cls.__name__): cls for cls in known}


def _chosen(parent: Any, leaf: str, text: str) -> Any:
  """An instance of the class that a text names; None where it names none."""
  cls = _choices(parent, leaf).get(text.lower())
  current = getattr(parent, leaf)
  if type(current) is cls:
    return current
  return None if cls is None or _needs_arguments(cls) else cls()


def _needs_arguments(cls: type) -> bool:
  none = dataclasses.MISSING
  return any(
    f.init and f.default is none and f.default_factory is none
    for f in dataclasses.fields(cls)
  )


def _print_error(error: Exception) -> None:
  print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)


def _find(path: str) -> pathlib.Path:
  given = pathlib.Path(path).expanduser()
  for base in (pathlib.Path.cwd(), ROOT):
    for file in (base / given, base / f"{given}.py"):
      if file.is_file() and file.suffix == ".py":
        return file.resolve()
  known = sorted(
    str(file.relative_to(ROOT))
    for file in (ROOT / "experiments").glob("*.py")
    if file.name != "__init__.py"
  )
  near = difflib.get_close_matches(str(given), known, n=1)
  remedy = f"did you mean {near[0]}?" if near else "name a Python file"
  raise ConfigError(
    f"no config file {path!r} in {pathlib.Path.cwd()} or {ROOT}; {remedy}"
  )


def _line_in(file: pathlib.Path, error: Exception) -> str:
  """Returns `:LINE` of the innermost frame in `file`, if there is one."""
  if isinstance(error, SyntaxError):
    return f":{error.lineno}"
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(file)]
  return f":{lines[-1]}" if lines else ""


def is_config(value: Any) -> bool:
  """Whether a value is a dataclass instance: a config or a part of one."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _hints(config: Any) -> dict[str, Any]:
  return typing.get_type_hints(type(config))


def _field_names(config: Any) -> list[str]:
  return [field.name for field in dataclasses.fields(config)]


def _leaf_names(
  config: Any, chosen: Mapping[str, Any], prefix: str = ""
) -> list[str]:
  names = []
  for name in _field_names(config):
    value = chosen.get(prefix + name, getattr(config, name))
    if is_config(value):
      names += _leaf_names(value, chosen, f"{prefix}{name}.")
    else:
      names.append(prefix + name)
  return names


def _nearest(name: str, known: list[str]) -> str:
  """Returns the known dotted name that is most like an unknown one."""

  def likeness(candidate: str) -> float:
    whole = difflib.SequenceMatcher(None, name, candidate).ratio()
    mine, its = (text.rpartition(".")[2] for text in (name, candidate))
    return whole + difflib.SequenceMatcher(None, mine, its).ratio()

  return max(known, key=likeness)


def _descend(
  config: Any, name: str, chosen: Mapping[str, Any]
) -> tuple[Any, str]:
  """Returns the dataclass that owns a dotted name, and its last part.

  Args:
    config: the whole config.
    name: of a field.
    chosen: parts that take the place of the config's, by their names.
  """
  *heads, last = name.split(".")
  owner, parent = None, config
  for depth, head in enumerate([*heads, last]):
    at = ".".join(heads[:depth])
    if parent is None:
      raise ConfigError(
        f"config.{name}: config.{at} is none here; set it in the config file"
      )
    if not is_config(parent):
      raise ConfigError(f"config.{name}: config.{at} has no fields")
    if head not in _field_names(parent):
      others = (
        [] if owner is None else _with_field(owner, heads[depth - 1], head)
      )
      if others:
        kind = config_values.snake_case(type(parent).__name__)
        raise ConfigError(
          f"no field config.{name} where config.{at} is {kind}; set "
          f"config.{at}={' or '.join(others)}"
        )
      near = _nearest(name, _leaf_names(config, chosen))
      raise ConfigError(f"no field config.{name}; did you mean config.{near}?")
    if depth < len(heads):
      below = ".".join(heads[: depth + 1])
      owner, parent = parent, chosen.get(below, getattr(parent, head))
  return parent, last


def _with_field(owner: Any, leaf: str, field: str) -> list[str]:
  """Names of the classes that a field may hold and that have a field."""
  return [
    name
    for name, cls in _choices(owner, leaf).items()
    if field in [f.name for f in dataclasses.fields(cls)]
  ]


def _parse_field(parent: Any, name: str, leaf: str, text: str) -> Any:
  field = next(f for f in dataclasses.fields(parent) if f.name == leaf)
  if not field.init:
    raise ConfigError(f"config.{name} follows from other fields; set those")
  annotation, current = _hints(parent)[leaf], getattr(parent, leaf)
  if is_config(current) and not (
    text.lower() == "none" and type(None) in typing.get_args(annotation)
  ):
    inner = ", ".join(f"config.{name}.{n}" for n in _field_names(current))
    if len(names := _choices(parent, leaf)) > 1:
      raise ConfigError(
        f"config.{name}={text!r} is not one of {', '.join(names)}; its fields "
        f"here are {inner}"
      )
    raise ConfigError(f"config.{name} is set field by field: {inner}")
  expected = config_values.type_name(annotation)
  try:
    return config_values.parse(text, annotation)
  except TypeError:
    raise ConfigError(
      f"config.{name} is {expected}, which no flag can say; set it in the "
      "config file"
    ) from None
  except ValueError:
    raise ConfigError(f"config.{name}={text!r} is not {expected}") from None


def _rebuild(config: Any, changes: Mapping[str, Any], path: str) -> Any:
  values = {
    name: change.value
    if isinstance(change, _Value)
    else _rebuild(change.value, change.changes, f"{path}.{name}")
    if isinstance(change, _Choice)
    else _rebuild(getattr(config, name), change, f"{path}.{name}")
    for name, change in changes.items()
  }
  try:
    return dataclasses.replace(config, **values)
  except ValueError as error:
    raise ConfigError(f"config{path}: {error}") from error
