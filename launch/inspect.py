"""Searches one prompt and writes a page to explore the tree in.

python -m launch.inspect --workdir=runs/tsd --example=17 --beside_start
python -m launch.inspect --workdir=runs/tsd --prompt="3 4 5 = 17"
python -m launch.inspect --model=FOLDER --prompt="2 + 3 =" --reward=FILE.py:NAME

The page is one file, tree.html, that needs no server and loads nothing.
"""

import pathlib
from typing import Any

from absl import flags

from tsd_jax.base import config as config_lib

_WORKDIR = config_lib.path_flag("workdir", None, "Folder of a run.")
_MODEL = config_lib.path_flag(
  "model", None, "In place of a run: a Hugging Face folder or .gguf file."
)
_EXAMPLE = flags.DEFINE_integer(
  "example", None, "A problem, by its place in its split."
)
_PROMPT = flags.DEFINE_string(
  "prompt",
  None,
  "A problem, by its text; with --reward any text.",
)
_SPLIT = flags.DEFINE_string(
  "split", None, "Of --example: train, validation or test; the run's own."
)
_REWARD = flags.DEFINE_string(
  "reward",
  None,
  "FILE.py:NAME or module.NAME of a function (prompt, response) -> a number in "
  "[0, 1]; by default the run's own reward.",
)
_BESIDE_START = flags.DEFINE_bool(
  "beside_start", False, "Search with what the run started from too."
)
_SIMULATIONS = flags.DEFINE_integer(
  "num_simulations", None, "Of the tree; by default the run's, or 32."
)
_STOP = flags.DEFINE_bool(
  "stop_when_solved", False, "End at the first correct response."
)
_STEP_TOKENS = flags.DEFINE_integer(
  "step_tokens", None, "With --reward: most tokens of a move."
)
_MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", None, "With --reward: most tokens of a response."
)
_SEED = config_lib.seed_flag(0, "Of what is drawn.")
_OUTPUT = config_lib.path_flag(
  "output", None, "The page; by default tree.html, in the run's folder."
)


def main(overrides):
  """Searches, writes the page, says where it is."""
  del overrides
  output = _checked_flags()
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.rewards import callback
  from tsd_jax.search import explorer

  progress.quiet_libraries()
  compilation_cache.enable()
  trees = _with_reward() if _REWARD.value else _of_run()
  explorer.save(output, trees)
  for tree in trees:
    print(explorer.summary(tree))
  for function, counts in callback.report().items():
    print(function, ", ".join(f"{n} {kind}" for kind, n in counts.items()))
  print(f"{output}: open it in a browser")


def _checked_flags() -> pathlib.Path:
  """The page's file.

  Raises:
    UserError: flags do not fit together, or there is no place for the page.
  """
  given = {
    f"--{flag.name}": flag.value is not None
    for flag in (_WORKDIR, _MODEL, _EXAMPLE, _PROMPT, _REWARD)
  }
  for a, b in (("--workdir", "--model"), ("--example", "--prompt")):
    if given[a] == given[b]:
      both = "both" if given[a] else "neither"
      raise config_lib.UserError(f"{both} of {a} and {b} given: give one")
  if given["--model"] and not given["--reward"]:
    raise config_lib.UserError(
      "--reward=FILE.py:NAME is missing: a model knows no reward of its own"
    )
  if given["--reward"] and not given["--prompt"]:
    raise config_lib.UserError(
      "--reward is for --prompt=TEXT: an example has the run's own reward"
    )
  if _MODEL.value and _BESIDE_START.value:
    raise config_lib.UserError("--beside_start is for --workdir")
  for flag in (_STEP_TOKENS, _MAX_TOKENS):
    if flag.value is not None and not given["--reward"]:
      raise config_lib.UserError(
        f"--{flag.name} is for --reward: else a run searches as it is trained"
      )
  if _SIMULATIONS.value is not None and _SIMULATIONS.value < 1:
    raise config_lib.UserError(
      f"--num_simulations={_SIMULATIONS.value} must be at least 1"
    )
  folder = pathlib.Path(_WORKDIR.value or ".").expanduser()
  output = pathlib.Path(_OUTPUT.value or folder / "tree.html").expanduser()
  if _OUTPUT.value and not output.parent.is_dir():
    raise config_lib.UserError(
      f"--output={output}: there is no folder {output.parent}"
    )
  return output


def _of_run() -> list[dict[str, Any]]:
  """Trees of a problem of the run, with the run's search and reward."""
  from tsd_jax.base import progress
  from tsd_jax.run import inspection, load

  config = load.read_config(_WORKDIR.value)
  split = _SPLIT.value or config.eval.split
  search = inspection.chosen_search(
    config, _SIMULATIONS.value, stop_when_solved=_STOP.value
  )
  if _EXAMPLE.value is not None:
    problem = inspection.find_example(config.task, split, _EXAMPLE.value)
  else:
    problem = inspection.find_prompt(config.task, _PROMPT.value)
  with progress.phase("searching"):
    return inspection.trees(
      _WORKDIR.value,
      problem,
      search,
      seed=_SEED.value,
      beside_start=_BESIDE_START.value,
    )


def _with_reward() -> list[dict[str, Any]]:
  """Trees of any prompt, with a reward of the user's."""
  import tsd_jax as tsd
  from tsd_jax.base import progress

  reward = _found_reward(_REWARD.value)
  if _MODEL.value:
    model = tsd.load_model(_MODEL.value)
    models = {model.name: model}
  else:
    run = tsd.load_run(_WORKDIR.value)
    models = {"start": run.start()} if _BESIDE_START.value else {}
    models[f"iteration {run.step}"] = run.model
  with progress.phase("searching"):
    return [
      tsd.search(
        model,
        _PROMPT.value,
        reward,
        num_simulations=_SIMULATIONS.value,
        step_tokens=_STEP_TOKENS.value,
        max_tokens=_MAX_TOKENS.value,
        stop_when_solved=_STOP.value,
        seed=_SEED.value,
      ).data(name)
      for name, model in models.items()
    ]


def _found_reward(name: str) -> Any:
  """The function that a user names.

  Raises:
    UserError: there is none.
  """
  from tsd_jax.base import names

  place = names.home(name)
  if place.endswith(".py"):
    function = name.removeprefix(place)
    name = f"{pathlib.Path(place).expanduser().absolute()}{function}"
  try:
    return names.find(name)
  except SyntaxError as error:
    raise config_lib.UserError(
      f"--reward={_REWARD.value}: line {error.lineno} of {error.filename} is "
      f"no Python ({error.msg})"
    ) from None
  except (ImportError, AttributeError, ValueError) as error:
    raise config_lib.UserError(
      f"--reward={_REWARD.value}: {error}; use FILE.py:NAME or module.NAME"
    ) from None


if __name__ == "__main__":
  config_lib.run(main)
