"""What a model writes, and what a search around it finds, as text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.inference import decode
from tsd_jax.run import evaluation
from tsd_jax.search import tree as tree_lib
from tsd_jax.search import view
from tsd_jax.tasks.task import Task


def responses_to(
  graphdef, params, task: Task, prompt_BP, tokenizer, *, seed: int, count: int
) -> list[list[dict[str, Any]]]:
  """Samples `count` responses a prompt: text, reward and correct of each."""
  tokens_BGT, reward_BG, correct_BG, _ = jax.device_get(
    evaluation.draw(
      graphdef,
      params,
      task,
      jnp.asarray(prompt_BP),
      jax.random.key(seed),
      jnp.float32(1),
      samples=count,
    )
  )
  return [
    [
      {
        "text": tokenizer.decode(tokens_T),
        "reward": round(float(reward), 4),
        "correct": bool(correct),
      }
      for tokens_T, reward, correct in zip(*rows, strict=True)
    ]
    for rows in zip(tokens_BGT, reward_BG, correct_BG, strict=True)
  ]


def samples(
  graphdef,
  params,
  before,
  task: Task,
  prompt_BP: np.ndarray,
  tokenizer,
  search: tree_lib.SearchConfig,
  *,
  seed: int,
  count: int = 4,
) -> list[dict[str, Any]]:
  """Samples responses to a few prompts and searches once for each.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    before: parameters that training started from.
    task: scores responses.
    prompt_BP: a few prompts.
    tokenizer: token ids -> text.
    search: how the trees are searched.
    seed: of sampling; the same draws before and after.
    count: responses a prompt.

  Returns:
    One record a prompt: prompt, before and after (lists of text, reward,
    correct), tree (text).
  """
  first, last = (
    responses_to(
      graphdef, p, task, prompt_BP, tokenizer, seed=seed, count=count
    )
    for p in (before, params)
  )

  @jax.jit
  def grow(params, prompt_BP):
    model = nnx.merge(graphdef, params)
    prefix = decode.prefill(
      model, prompt_BP, task.prompt_pad_id, task.shared_prefix_length
    )
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return tree_lib.search(model, task, prompt_BP, prefix, key, search).tree

  tree = jax.device_get(grow(params, jnp.asarray(prompt_BP)))
  return [
    {
      "prompt": tokenizer.decode(prompt_P),
      "before": first[i],
      "after": last[i],
      "tree": view.tree_text(tree, i, tokenizer),
    }
    for i, prompt_P in enumerate(np.asarray(prompt_BP))
  ]
