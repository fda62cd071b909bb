"""Pairs of a right and a wrong answer to one problem, from a start and a game.

An experiment's start answers problems of a game a few times each. A right
answer is chosen and a wrong one rejected, each at most once. Held-out pairs ask
problems of the validation split. Truth is known here, so that one can tell what
a reward model learned from it, and what it made of the answers' lengths.

Writes FOLDER/start (a Hugging Face folder), FOLDER/train.jsonl and
FOLDER/held_out.jsonl.

Command:
  python -m experiments.recipes.task_pairs --output=FOLDER
  python -m launch.train_reward --model=FOLDER/start --pairs=FOLDER/train.jsonl
    --held_out=FOLDER/held_out.jsonl --learning_rate=1e-3 --workdir=DIR
"""

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from tsd_jax.api import programs
from tsd_jax.base import config as config_lib
from tsd_jax.base import output_files, progress
from tsd_jax.base.types import Prompts
from tsd_jax.models import hf
from tsd_jax.models.tokenizer import before_end
from tsd_jax.rewards.reward import Scorer
from tsd_jax.run import load
from tsd_jax.run.experiment import Experiment, initial_params
from tsd_jax.tasks import data

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file: its task and start."
)
_OUTPUT = config_lib.path_flag("output", None, "New folder.")
_PROBLEMS = flags.DEFINE_integer("problems", 4_096, "Of the train split.")
_SAMPLES = flags.DEFINE_integer("samples", 16, "Answers to each problem.")
_MOST = flags.DEFINE_integer("most", 4, "Most pairs of a problem.")
_SEED = flags.DEFINE_integer("seed", 0, "Of what is sampled and drawn.")
_BLOCK = 256  # Problems at a time.


def pairs(
  config: Experiment,
  params,
  prompts: Prompts,
  samples: int,
  most: int,
  seed: int,
) -> Iterator[dict[str, str]]:
  """Pairs of answers of a model, as `tasks.pairs` reads them.

  Args:
    config: its task and shape.
    params: of the model.
    prompts: problems.
    samples: answers to each.
    most: pairs of a problem.
    seed: of what is sampled and drawn.
  """
  graphdef, params = params
  task, rng = config.make_task(), np.random.default_rng(seed)
  scorer = Scorer(task.reward, task.end_ids, task.reward.load())
  score = jax.jit(lambda prompts, tokens_BGT: scorer(prompts, tokens_BGT))
  spell = task.tokenizer.decode
  for first in range(0, len(prompts), _BLOCK):
    some = prompts[first : first + _BLOCK]
    tokens_RT, _, _ = programs.draw(
      graphdef, params, task.tokenizer, np.asarray(some.tokens_BP).tolist(),
      samples=samples, max_tokens=task.response_length, temperature=1.0,
      seed=seed + first,
    )  # fmt: skip
    tokens_BGT = tokens_RT.reshape(len(some), samples, -1)
    found = score(jax.tree.map(jnp.asarray, some), jnp.asarray(tokens_BGT))
    for prompt_P, rows_GT, right_G in zip(
      some.tokens_BP, tokens_BGT, np.asarray(found.correct_X), strict=True
    ):
      answers: tuple[set[str], set[str]] = (set(), set())
      for row_T, right in zip(rows_GT, right_G, strict=True):
        ids, ended = before_end(row_T, task.end_ids)
        if ended:
          answers[int(right)].add(spell(ids))
      wrong, right = (rng.permutation(sorted(x)) for x in answers)
      for a, b in list(zip(right, wrong, strict=False))[:most]:
        yield dict(prompt=spell(prompt_P), chosen=str(a), rejected=str(b))


def main(overrides):
  """Writes the folder."""
  progress.quiet_libraries()
  folder = pathlib.Path(config_lib.required(_OUTPUT)).expanduser()
  config = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  task, (graphdef, params) = config.make_task(), initial_params(config)
  hf.save(
    folder / "start", config.shape, params, task.tokenizer,
    max_length=load.max_positions(config),
  )  # fmt: skip
  splits = {"train": _PROBLEMS.value, "validation": None}
  for split, count in splits.items():
    problems = data.load_problems(config.task, split)
    chosen = np.random.default_rng(_SEED.value).permutation(len(problems))
    lines = pairs(
      config, (graphdef, params), problems[chosen[:count]], _SAMPLES.value,
      _MOST.value, _SEED.value,
    )  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    name = "train.jsonl" if split == "train" else "held_out.jsonl"
    output_files.write_whole(folder / name, text)
    print(f"{folder / name}: {text.count(chr(10)):,} pairs")


if __name__ == "__main__":
  config_lib.run(main)
