"""SmolLM2-135M-Instruct, taught by itself with layers left out.

Purpose: a search model that is smaller than the policy, has its tokens and
needs no training: the published model without some of its layers, fixed.

Command: python -m launch.train --config=experiments/smollm2_teacher.py
  --workdir=DIR
Compared with `experiments/smollm2_countdown.py`, which searches with itself:
mean@16 of 96 test problems .499 and .462 after 20 iterations, two seeds each
(`tsd_jax/models/README.md`).
"""

import dataclasses
import pathlib
from collections.abc import Collection

import jax
import numpy as np

from experiments import smollm2_countdown
from experiments.recipes import fetch_smollm2
from tsd_jax.run.experiment import Experiment

# Of all blocks of four at even places these change the next-token distributions
# on the task's prompts least.
LEFT_OUT = (4, 5, 6, 7)


def get_config() -> Experiment:
  """The run."""
  base = smollm2_countdown.get_config()
  teacher = pruned(fetch_smollm2.PATH, LEFT_OUT)
  return dataclasses.replace(base, search_init=str(teacher), refresh_every=0)


def pruned(model: pathlib.Path, left_out: Collection[int]) -> pathlib.Path:
  """Writes a published model without some layers beside it, once.

  Args:
    model: a folder, or a GGUF file.
    left_out: numbers of the layers, from 0.

  Returns:
    The folder.
  """
  from tsd_jax.models import hf, pretrained, text_tokenizer

  name = "-".join(map(str, sorted(left_out)))
  folder = model.with_name(f"{model.stem}-without-{name}")
  if folder.is_dir():
    return folder
  config, _, params = pretrained.load(model)
  kept = np.array([i for i in range(config.num_layers) if i not in left_out])
  params["layers"] = jax.tree.map(lambda a: a[kept], params["layers"])
  hf.save(
    folder,
    dataclasses.replace(config, num_layers=len(kept)),
    params,
    text_tokenizer.load(model),
    max_length=pretrained.read_card(model).max_length,
  )
  return folder
