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
import inspect
import pathlib
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from tsd_jax.base import (
  config_text,
  config_values,
  names,
  outside_files,
  paths,
  signals,
)
from tsd_jax.base.errors import ConfigError, UserError, show
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
  outside_files.read_text(file, outside_files.MIB)  # Refused before it is run.
  names.allow([str(file)])
  try:
    module = names.load_file(file, again=True)
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
  errors: list[ConfigError] = []
  # The whole before its parts, whatever the order of the flags: other names may
  # lie within what is chosen by its class.
  for name in sorted(overrides, key=lambda name: name.count(".")):
    try:
      parent, leaf = _descend(config, name, chosen)
      value = _chosen(parent, leaf, overrides[name])
      if value is not None:
        change = _Choice(value, {})
      else:
        value = _parse_field(parent, name, leaf, overrides[name])
        change = _Value(value)
    except ConfigError as error:
      errors.append(error)
      continue
    chosen[name] = value
    _branch(nested, name)[leaf] = change
  _raise_all(errors)
  return _rebuild(config, nested, "")


def _raise_all(errors: list[ConfigError]) -> None:
  """Raises what went wrong, all of it in one message."""
  if errors:
    message = "; ".join(map(str, errors))
    raise ConfigError(message) from errors[0].__cause__


def from_flags(
  path: str, overrides: Mapping[str, str], kind: str | None = None
) -> Any:
  """Returns a file's config with the overrides of the command line applied.

  Args:
    path: as `load` takes it.
    overrides: texts by names of fields.
    kind: name of the class that it must be of; None: any.

  Raises:
    ConfigError: as `load` and `override`, or it is another class's.
  """
  config = load(path)
  found = [c.__name__ for c in type(config).__mro__]
  if kind is not None and kind not in found:
    raise ConfigError(
      f"get_config() of {path} returned {found[0]}; this command needs "
      f"{_KINDS[kind]}"
    )
  return override(config, overrides)


_KINDS = {  # What a command needs, and a file that has one.
  "Experiment": "an Experiment, as experiments/countdown.py has it",
  "Comparison": "a Comparison, as experiments/compare_countdown.py has it",
}


def required(flag: flags.FlagHolder) -> Any:
  """Returns the value of a flag that has no default.

  Raises:
    UserError: the flag was not given.
  """
  if flag.value is None:
    raise UserError(f"--{flag.name} is missing")
  return flag.value


class _Path(flags.ArgumentParser):
  """Reads a path as `paths.named` does: a shell leaves --workdir=~/x alone."""

  def parse(self, argument):
    return str(paths.named(argument))


def path_flag(
  name: str, default: str | None, help: str, **options: Any
) -> flags.FlagHolder[Any]:
  """A flag that names a file or a folder; ~ is the user's home.

  Args:
    name: of the flag.
    default: its value where it is not given.
    help: what it is.
    **options: of absl's DEFINE.
  """
  return flags.DEFINE(_Path(), name, default, help, **options)


def seed_flag(default: int | None, help: str) -> flags.FlagHolder[Any]:
  """The flag --seed, of which no two values are the same random numbers.

  Args:
    default: its value where it is not given.
    help: what it is of.
  """
  return flags.DEFINE_integer(
    "seed", default, help, lower_bound=0, upper_bound=2**32 - 1
  )


# Flags belong to the modules that ask for them.
flags.disclaim_key_flags()


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


def run(
  main: Callable[[dict[str, str]], int | None],
  operands: list[str] | None = None,
) -> None:
  """Runs an entry point with absl's flags and the overrides of its config.

  Bad flags, stray arguments and a `UserError` become one line on stderr and
  its exit code, 2; any other exception keeps its traceback.

  Args:
    main: called with the overrides; it returns the exit code or None.
    operands: filled with the arguments that are no flags; None: there are none.
  """
  overrides: dict[str, str] = {}
  _define_print_config()
  imports = flags.DEFINE_list(
    "imports", [], "Modules and .py files that a run's config.json may name."
  )
  _show_in_help("imports")

  def parse(argv: Sequence[str]) -> list[str]:
    try:
      found, others = split_overrides(argv)
      remaining = flags.FLAGS(others)
      if found and "config" not in flags.FLAGS:
        raise ConfigError(f"no config to set {next(iter(found))} of")
      if operands is not None:
        operands.extend(remaining[1:])
      elif len(remaining) > 1:
        raise UserError(
          f"unexpected argument {remaining[1]!r}; a flag is --name=value"
        )
    except (flags.Error, UserError) as error:
      show(error)
      sys.exit(2)
    overrides.update(found)
    return remaining[:1]

  def guarded(argv: Sequence[str]) -> int | None:
    del argv
    names.allow(imports.value)
    try:
      if "print_config" in flags.FLAGS and flags.FLAGS.print_config:
        config = from_flags(flags.FLAGS.config, overrides)
        print(config_text.describe(config), end="")
        return None
      with signals.command():
        return main(overrides)
    except UserError as error:
      show(error)
      return error.exit_code
    except KeyboardInterrupt:
      return 130  # As a shell counts it; who caught it has said what to do.

  app.run(guarded, flags_parser=parse)


def _define_print_config() -> None:
  """Gives a command that reads a config the flag that shows it."""
  if "config" not in flags.FLAGS or "print_config" in flags.FLAGS:
    return
  flags.DEFINE_bool(
    "print_config",
    False,
    "Print the config's fields, their values and what they mean, and stop. "
    "--config.FIELD=VALUE sets one: --config.optimizer.learning_rate=1e-4.",
  )
  _show_in_help("print_config")


def _show_in_help(flag: str) -> None:
  """Has --help show a flag beside the command's own."""
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag])


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


def _find(path: str) -> pathlib.Path:
  given = pathlib.Path(path).expanduser()
  for base in (pathlib.Path.cwd(), ROOT):
    for file in (base / given, base / f"{given}.py"):
      if file.suffix == ".py" and outside_files.is_there(file):
        return file.absolute()
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


_SEE_ALL = "--print_config shows all fields"

# What others call our fields: a name's last part, and ours.
_SYNONYMS = {
  "lr": "learning_rate",
  "steps": "iterations",
  "num_steps": "iterations",
  "max_steps": "iterations",
  "num_iterations": "iterations",
  "train_steps": "iterations",
  "batch_size": "prompts",
  "bs": "prompts",
  "num_generations": "samples",
  "group_size": "samples",
  "num_samples": "samples",
  "n": "samples",
  "gamma": "discount",
  "lam": "gae_lambda",
  "lambda": "gae_lambda",
  "beta": "kl_weight",
  "kl_coef": "kl_weight",
  "ent_coef": "entropy_weight",
  "entropy_coef": "entropy_weight",
  "vf_coef": "value_weight",
  "clip_range": "clip_high",
  "clip_eps": "clip_high",
  "epsilon": "clip_high",
  "cliprange": "clip_high",
  "grad_clip": "max_grad_norm",
  "num_epochs": "epochs",
  "max_tokens": "response_length",
  "max_new_tokens": "response_length",
  "max_completion_length": "response_length",
  "max_prompt_length": "prompt_length",
  "method": "algorithm",
  "algo": "algorithm",
  "model_path": "init",
  "checkpoint": "init",
  "save_every": "checkpoint_every",
  "save_steps": "checkpoint_every",
  "eval_every": "every",
  "eval_steps": "every",
  "nodes": "num_simulations",
  "sims": "num_simulations",
  "simulations": "num_simulations",
  "rollouts": "num_simulations",
  "lora_rank": "rank",
  "r": "rank",
}


def _nearest(name: str, known: list[str]) -> str | None:
  """Returns the known dotted name that an unknown one means, if any is like it.

  Parts count by themselves too, for a name is often right but for its place.
  """
  leaf = name.rpartition(".")[2]
  leaf = _SYNONYMS.get(leaf, leaf)

  def likeness(candidate: str) -> float:
    whole = difflib.SequenceMatcher(None, name, candidate).ratio()
    its = candidate.rpartition(".")[2]
    if its == leaf:
      return 2 + whole
    words = set(leaf.split("_")) & set(its.split("_"))
    own = difflib.SequenceMatcher(None, leaf, its).ratio()
    return max(own, 0.7 * bool(words)) + whole / 4

  best = max(known, key=likeness)
  return best if likeness(best) > 0.7 else None


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
      hint = f"did you mean config.{near}?" if near else _SEE_ALL
      raise ConfigError(f"no field config.{name}; {hint}")
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
  values, errors = {}, []
  for name, change in changes.items():
    below = f"{path}.{name}"
    try:
      if isinstance(change, _Value):
        values[name] = change.value
      elif isinstance(change, _Choice):
        values[name] = _rebuild(change.value, change.changes, below)
      else:
        values[name] = _rebuild(getattr(config, name), change, below)
    except ConfigError as error:
      errors.append(error)
  _raise_all(errors)
  try:
    return dataclasses.replace(config, **values)
  except ValueError as error:
    raise ConfigError(f"config{path}: {error}") from error
