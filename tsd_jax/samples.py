"""What a model writes, and what a search around it finds, as text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax import decode, evaluate
from tsd_jax.search import tree as tree_lib
from tsd_jax.search import view
from tsd_jax.tasks.task import Task


def samples(
  graphdef,
  params,
  task: Task,
  prompt_BP: np.ndarray,
  tokenizer,
  search: tree_lib.SearchConfig,
  *,
  seed: int,
  responses: int = 4,
) -> list[dict[str, Any]]:
  """Samples responses to a few prompts and searches once for each.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: scores responses.
    prompt_BP: a few prompts.
    tokenizer: token ids -> text.
    search: how the trees are searched.
    seed: of sampling.
    responses: a prompt.

  Returns:
    One record a prompt: prompt, responses (text, reward, correct), tree (text).
  """
  sample_key, search_key = jax.random.split(jax.random.key(seed))
  prompt_BP = jnp.asarray(prompt_BP)
  tokens_BGT, reward_BG, correct_BG, _ = jax.device_get(
    evaluate.draw(
      graphdef,
      params,
      task,
      prompt_BP,
      sample_key,
      jnp.float32(1),
      samples=responses,
    )
  )

  @jax.jit
  def grow(params, prompt_BP):
    model = nnx.merge(graphdef, params)
    prefix = decode.prefill(model, prompt_BP)
    return tree_lib.search(
      model, task, prompt_BP, prefix, search_key, search
    ).tree

  tree = jax.device_get(grow(params, prompt_BP))
  return [
    {
      "prompt": tokenizer.decode(prompt_P),
      "responses": [
        {
          "text": tokenizer.decode(tokens_T),
          "reward": round(float(reward), 4),
          "correct": bool(correct),
        }
        for tokens_T, reward, correct in zip(
          tokens_BGT[i], reward_BG[i], correct_BG[i], strict=True
        )
      ],
      "tree": view.tree_text(tree, i, tokenizer.decode),
    }
    for i, prompt_P in enumerate(np.asarray(prompt_BP))
  ]
