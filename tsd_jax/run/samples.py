"""What a model writes, and what a search around it finds, as text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from flax import nnx

from tsd_jax.base.types import Prompts
from tsd_jax.parallel.sharding import HERE, Layout
from tsd_jax.rewards.reward import Scorer
from tsd_jax.run import evaluation
from tsd_jax.search import search as search_lib
from tsd_jax.search import view
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import Task


def responses_to(
  graphdef,
  params,
  task: Task,
  prompts: Prompts,
  tokenizer,
  *,
  seed: int,
  count: int,
  reward_params: Any = (),
  layout: Layout = HERE,
) -> list[list[dict[str, Any]]]:
  """Samples `count` responses a prompt: text, reward and correct of each.

  What is correct is None where nobody knows.
  """
  tokens_BGT, reward_BG, correct_BG, _ = jax.device_get(
    evaluation.draw(
      graphdef,
      params,
      task,
      prompts,
      jax.random.key(seed),
      jnp.float32(1),
      reward_params,
      samples=count,
      layout=layout,
    )
  )
  return [
    [
      {
        "text": tokenizer.decode(tokens_T),
        "reward": round(float(reward), 4),
        "correct": bool(correct) if task.reward.knows_correct else None,
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
  prompts: Prompts,
  tokenizer,
  search: SearchConfig,
  *,
  seed: int,
  count: int = 4,
  reward_params: Any = (),
  layout: Layout = HERE,
) -> list[dict[str, Any]]:
  """Samples responses to a few prompts and searches once for each.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    before: parameters that training started from.
    task: scores responses.
    prompts: a few prompts.
    tokenizer: token ids -> text.
    search: how the trees are searched.
    seed: of sampling; the same draws before and after.
    count: responses a prompt.
    reward_params: the reward's parameters.
    layout: the devices that share the prompts; all their processes must call.

  Returns:
    One record a prompt: prompt, before and after (lists of text, reward,
    correct), tree (text).
  """
  first, last = (
    responses_to(
      graphdef,
      p,
      task,
      prompts,
      tokenizer,
      seed=seed,
      count=count,
      reward_params=reward_params,
      layout=layout,
    )
    for p in (before, params)
  )

  tree = trees(
    graphdef,
    params,
    task,
    prompts,
    search,
    seed=seed,
    reward_params=reward_params,
    layout=layout,
  )
  return [
    {
      "prompt": tokenizer.decode(prompt_P),
      "before": first[i],
      "after": last[i],
      "tree": view.tree_text(tree, i, tokenizer),
    }
    for i, prompt_P in enumerate(np.asarray(prompts.tokens_BP))
  ]


def trees(
  graphdef,
  params,
  task: Task,
  prompts: Prompts,
  search: SearchConfig,
  *,
  seed: int,
  reward_params: Any = (),
  layout: Layout = HERE,
) -> mctx.Tree:
  """Searches once for each prompt.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: scores responses.
    prompts: a few prompts.
    search: how the trees are searched.
    seed: of what is drawn.
    reward_params: the reward's parameters.
    layout: the devices that share the prompts.

  Returns:
    The trees, on the host.
  """
  key = jax.random.fold_in(jax.random.key(seed), 1)
  return jax.device_get(
    _grow(
      graphdef, params, prompts, key, reward_params, task=task, search=search,
      layout=layout,
    )
  )  # fmt: skip


@functools.partial(
  jax.jit, static_argnames=("graphdef", "task", "search", "layout")
)
def _grow(
  graphdef, params, prompts, key, reward_params, *, task, search,
  layout: Layout,
):  # fmt: skip
  def growing(params, prompts, key):
    params, reward_params = params
    model = nnx.merge(graphdef, params).without(task.reward.never)
    scorer = Scorer(task.reward, task.end_ids, reward_params)
    found = search_lib.search(model, task, prompts, key, search, scorer=scorer)
    return found.tree, ()

  params = layout.served(graphdef, params), reward_params
  return layout.map_prompts(growing, params, prompts, key)[0]
