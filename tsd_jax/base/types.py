"""Axis legend and the few records that several modules share.

Shapes are written in names: `logits_BTV` has axes batch, position, vocabulary.
A letter means one thing everywhere; digits are sizes.

  B  prompts in a batch
  G  responses of one prompt
  P  prompt positions
  T  response positions (queries)
  S  source (key) positions
  V  vocabulary, or a block of it
  D  model width
  F  feed-forward width
  L  layers
  H  query heads
  K  key/value heads, or heads of a reward model
  E  width of one head
  N  nodes of a search tree
  A  moves that a node offers
  U  tokens of a move
  R  rows of a model call
  Q  problems or prompts of a list, searched prompts among them
  C  prompts that are distilled
  M  champions of a prompt
  I  iterations
  W  blocks of prompts searched one after another
  Y  forks of a prompt
  O  tokens of one observation
  Z  integers of a state key
  J  pieces of a game or blocks of a vocabulary (its numbers, cells)
  X  any leading or other axes
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# The log-probability given to impossible moves. Finite, so that a product with
# a zero probability stays zero.
LOG_ZERO = -1e9

# mctx's index of a child that was never expanded.
UNVISITED = -1


class PromptForm(NamedTuple):
  """How prompts are laid out; known before anything is compiled."""

  padded: bool = False  # Whether some are shorter than P.
  shared_prefix_length: int = 0  # Leading tokens that all have, run once.


class Media(NamedTuple):
  """Embeddings of pictures or sound that stand at placeholder tokens.

  Leaves lead with B. A model reads them in place of the tokens' own embeddings.
  """

  embedding_BJD: Array  # float32.
  position_BJ: Array  # int32, where in the prompt; P or more is nowhere.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
  """What is asked: a batch of prompts; leaves lead with B.

  `prompts[index]` takes some of them, as an array's leading axis is indexed.
  """

  tokens_BP: Array  # int32, padded on the right.
  length_B: Array  # int32, tokens without padding.
  # int32, the problem's index in its task: by it graders, reward models and
  # logs find the problem, for two problems may share their text.
  example_B: Array
  media: Media | None = None

  def __len__(self) -> int:
    return self.tokens_BP.shape[0]

  def __getitem__(self, index: Any) -> "Prompts":
    return jax.tree.map(lambda a: a[index], self)

  def __iter__(self) -> Iterator["Prompts"]:
    # An index past the end of a JAX array is no error: count.
    return (self[i] for i in range(len(self)))

  def repeat(self, count: int) -> "Prompts":
    """Every prompt `count` times, one after the other."""
    return jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), self)


def chosen_tokens(mask_X: Array, environment_X: Array | None) -> Array:
  """The part of a mask at which the model chose the token.

  Args:
    mask_X: tokens that count.
    environment_X: bool, those that the environment wrote; None: none of them.
  """
  return mask_X if environment_X is None else mask_X & ~environment_X


class Responses(NamedTuple):
  """G finished or cut-off responses to each of B prompts, as they were sampled.

  A row holds what the model chose and what the task's environment wrote. States
  before either have values; only choices have log-probabilities.

  Rows may fork from one another: row g of a forked response repeats the first
  `fork_BG` tokens of row `parent_BG`; those tokens were sampled once, by the
  parent, and `mask_BGT` is false for them in the child.
  """

  tokens_BGT: Array  # int32, PAD after the end.
  mask_BGT: Array  # bool, tokens of this row itself (end token included).
  log_prob_BGT: Array  # float32, behaviour log-probability, 0 where not chosen.
  value_BGT: Array  # float32, V_pi of the state before each token.
  entropy_BGT: Array  # float32, nats, of the distribution sampled from.
  parent_BG: Array  # int32, row this one forked from (itself if it did not).
  fork_BG: Array  # int32, number of leading tokens shared with the parent.
  reward_BG: Array  # float32.
  correct_BG: Array | None  # bool; None without ground truth.
  # bool, tokens that the environment wrote; None where it never does.
  environment_BGT: Array | None = None

  @property
  def chosen_BGT(self) -> Array:
    """Tokens that this row sampled itself."""
    return chosen_tokens(self.mask_BGT, self.environment_BGT)
