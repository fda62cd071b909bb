"""Tree searches in Python on transformers, written as their users write them.

One tree, PUCT over log-probabilities, all rewards zero: what is timed is what a
node costs. Random weights of a Llama of the same shape, float32.
"""

import copy
import math
import time

from tsd_jax.models.transformer import ModelConfig

_MOVES = {"tokens": 8, "steps": 4}
_SECONDS = 10.0  # How long a tree grows.


class Node:
  """A node of a PUCT tree."""

  def __init__(self, prior: float, state):
    """A leaf: `state` is what its expansion needs."""
    self.prior, self.state = prior, state
    self.visits, self.children = 0, []

  def best(self) -> "Node":
    """The child of the largest PUCT score; no value is known."""
    root = math.sqrt(self.visits + 1)
    return max(self.children, key=lambda c: c.prior * root / (1 + c.visits))


def grow(plant, expand) -> float:
  """Nodes a second.

  Args:
    plant: plant() gives a new root, when a response has come to its end too.
    expand: expand(node) gives its children, none at the end of a response.
  """
  made, root, start = 0, plant(), time.perf_counter()
  while (took := time.perf_counter() - start) < _SECONDS or made < 8:
    node, path = root, [root]
    while node.children:
      node = node.best()
      path.append(node)
    node.children = expand(node)
    if not node.children:
      root = plant()
      continue
    made += 1
    for node in path:
      node.visits += 1
  return made / took


def llama(config: ModelConfig):
  """A random Llama of the same shape."""
  import torch
  import transformers

  torch.manual_seed(0)
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=config.vocab_size,
      hidden_size=config.d_model,
      intermediate_size=config.d_mlp,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads,
      head_dim=config.head_dim,
      tie_word_embeddings=config.tied_embeddings,
      eos_token_id=None,
      pad_token_id=0,
    )
  ).eval()


def tokens(config: ModelConfig, length: int) -> float:
  """Nodes a second of a tree of tokens, the parent's cache copied.

  Args:
    config: shape of the model.
    length: of the prompt, and of a response.
  """
  import torch

  model = llama(config)
  prompt = torch.randint(1, config.vocab_size - 1, (1, length))

  def children(out, cache, depth):
    log_prob = out.logits[0, -1].log_softmax(-1)
    values, ids = log_prob.topk(_MOVES["tokens"])
    return [
      Node(math.exp(p), (cache, token, depth))
      for p, token in zip(values.tolist(), ids.tolist(), strict=True)
    ]

  def expand(node):
    cache, token, depth = node.state
    if depth == length:
      return []
    cache = copy.deepcopy(cache)
    out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
    return children(out, cache, depth + 1)

  with torch.inference_mode():
    out = model(prompt, use_cache=True)

    def plant():
      root = Node(1.0, None)
      root.children = children(out, out.past_key_values, 0)
      return root

    return grow(plant, expand)


def steps(config: ModelConfig, length: int) -> float:
  """Nodes a second of a tree of steps, four drawn by `generate` at a node.

  Args:
    config: shape of the model.
    length: of the prompt, and of a response, which has four steps.
  """
  import torch

  model, size = llama(config), length // 4
  prompt = torch.randint(1, config.vocab_size - 1, (1, length))

  def expand(node):
    if node.state.shape[1] == 2 * length:
      return []
    drawn = model.generate(
      node.state,
      attention_mask=torch.ones_like(node.state),
      do_sample=True,
      num_return_sequences=_MOVES["steps"],
      max_new_tokens=size,
    )
    return [Node(1 / _MOVES["steps"], row[None]) for row in drawn]

  with torch.inference_mode():
    return grow(lambda: Node(1.0, prompt), expand)
