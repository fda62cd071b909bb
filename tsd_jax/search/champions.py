"""What a finished tree teaches: its best answers and its move distributions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.types import UNVISITED, Array
from tsd_jax.models.tokenizer import one_end
from tsd_jax.search.best_first import eos_actions


class Champions(NamedTuple):
  """The M best distinct finished responses of each tree."""

  tokens_BMT: Array
  reward_BM: Array  # 0 where there is none.
  correct_BM: Array
  valid_BM: Array  # Whether the tree holds that many distinct answers.
  node_BM: Array  # Node that each was found at.


class PathTargets(NamedTuple):
  """Improved move distributions at the states of a response, BT(A)."""

  candidate_BTA: Array  # int32 tokens.
  weight_BTA: Array  # Sums to one over A.
  mass_BT: Array  # Total prior probability of the candidates.
  mask_BT: Array  # Where the tree visited the state well.
  # bool, candidates that may not be chosen there; None: all of them may be.
  forbidden_BTA: Array | None = None


def champions(
  tree: mctx.Tree, count: int, end_ids: tuple[int, ...] = ()
) -> Champions:
  """Best answers by reward, then by search-model log-probability.

  Rollout answers count as well as paths. Unfinished paths never do, and equal
  responses count once.

  Args:
    tree: a finished search.
    count: M.
    end_ids: tokens that end a response; which of them does makes no other
      answer.

  Returns:
    The champions, best first.
  """
  nodes = tree.embeddings
  B, N = nodes.reward.shape
  rows = jnp.arange(B)
  alike_BNT = nodes.answer_tokens
  if end_ids:
    alike_BNT = one_end(alike_BNT, end_ids)
  keys = (nodes.answer_log_prob, nodes.reward)
  order_BN = jnp.flip(jnp.lexsort(keys, axis=-1), axis=-1)
  rank_BN = (
    jnp.zeros((B, N), jnp.int32)
    .at[rows[:, None], order_BN]
    .set(jnp.arange(N)[None])
  )

  def pick(left_BN, _):
    node_B = jnp.argmin(jnp.where(left_BN, rank_BN, N), axis=1)
    valid_B = jnp.any(left_BN, axis=1)
    tokens_BT = nodes.answer_tokens[rows, node_B]
    same_BN = jnp.all(alike_BNT == alike_BNT[rows, node_B][:, None], axis=-1)
    found = Champions(
      tokens_BT,
      jnp.where(valid_B, nodes.reward[rows, node_B], 0.0),
      valid_B & nodes.correct[rows, node_B],
      valid_B,
      node_B,
    )
    return left_BN & ~same_BN, found

  _, found = jax.lax.scan(pick, nodes.has_answer, length=count)
  return Champions(*(jnp.moveaxis(a, 0, 1) for a in found))


def ends(nodes) -> Array:
  """Whether the answer of a node ends there, and is no rollout; BN."""
  return nodes.finished | (nodes.eos_action < nodes.log_prob_A.shape[-1])


def success_prob(tree: mctx.Tree, *, by_reward: bool = False) -> Array:
  """Search model's probability of the correct answers found, B.

  A lower bound of its chance to solve the prompt in one sample: answers that
  end at a node are distinct, so their probabilities add up.

  Args:
    tree: a finished search.
    by_reward: without ground truth an answer counts by its reward, from 0 to 1;
      then it is a lower bound of the reward that one sample brings.
  """
  nodes = tree.embeddings
  found_BN = (tree.node_visits > 0) & ends(nodes)
  prob_BN = jnp.exp(nodes.answer_log_prob)
  if by_reward:
    prob_BN *= nodes.reward
  else:
    found_BN &= nodes.correct
  return jnp.sum(jnp.where(found_BN, prob_BN, 0.0), axis=1)


def greedy_reward(tree: mctx.Tree) -> Array:
  """Reward of the search model's greedy answer, B; 0 if that never ends.

  Where a tree was not grown to its end the likeliest answer that it holds
  stands in its place. Of drawn steps the one with the best prior, and then the
  likeliest, is taken.
  """
  nodes = tree.embeddings
  T, grown_BN = nodes.path_tokens.shape[-1], tree.node_visits > 0
  first_BNT = (nodes.path_actions == 0) | (
    jnp.arange(nodes.path_actions.shape[-1]) >= nodes.depth[..., None]
  )
  greedy_BN = grown_BN & jnp.all(first_BNT, axis=-1)
  ended_BN = greedy_BN & (nodes.finished | (nodes.eos_action == 0))
  # The last token must be the end's.
  endless_B = jnp.any(greedy_BN & (nodes.depth >= T - 1), axis=1)
  reward_B = jnp.max(jnp.where(ended_BN, nodes.reward, 0.0), axis=1)
  known_B = jnp.any(ended_BN, axis=1) | endless_B
  if nodes.refused is not None:  # It is refused, and worth the least.
    known_B |= jnp.any(greedy_BN & nodes.refused, axis=1)
  return jnp.where(known_B, reward_B, likeliest_reward(tree))


def likeliest_reward(tree: mctx.Tree) -> Array:
  """Reward of the likeliest answer that a tree holds, B; 0 if it holds none."""
  nodes = tree.embeddings
  log_prob_BN = jnp.where(nodes.has_answer, nodes.answer_log_prob, -jnp.inf)
  at_B1 = jnp.argmax(log_prob_BN, axis=1)[:, None]
  reward_BN = jnp.where(nodes.has_answer, nodes.reward, 0.0)
  return jnp.take_along_axis(reward_BN, at_B1, axis=1)[:, 0]


def path_nodes(tree: mctx.Tree, node_B: Array) -> tuple[Array, Array]:
  """Nodes from the root to given nodes: the states of an answer's tokens.

  Args:
    tree: a finished search.
    node_B: one node a tree.

  Returns:
    node_BT, entry t the state in which token t was chosen, and a mask of the
    entries that exist. No token is chosen where a response is finished.
  """
  T = tree.embeddings.path_tokens.shape[-1]
  rows = jnp.arange(node_B.shape[0])
  depth_BN = tree.embeddings.depth

  def up(at_B, _):
    chooses_B = (at_B >= 0) & ~tree.embeddings.finished[rows, at_B]
    parent_B = jnp.where(at_B >= 0, tree.parents[rows, at_B], at_B)
    return parent_B, (at_B, depth_BN[rows, at_B], chooses_B)

  _, (node_TB, depth_TB, going_TB) = jax.lax.scan(up, node_B, length=T + 1)
  # Column T takes what does not exist and is cut off.
  column_TB = jnp.where(going_TB, depth_TB, T)
  shape = (node_B.shape[0], T + 1)
  node_BT = jnp.zeros(shape, jnp.int32).at[rows[None], column_TB].set(node_TB)
  mask_BT = jnp.zeros(shape, bool).at[rows[None], column_TB].set(going_TB)
  return node_BT[:, :T], mask_BT[:, :T]


def closed_moves(tree: mctx.Tree) -> Array | None:
  """Moves that say what may not be said, BNA; None where all may be said.

  Those that a rule of phrases closed, and those that led to what a guard
  refused, ends of responses among them.
  """
  nodes, closed_BNA = tree.embeddings, tree.embeddings.forbidden_A
  if nodes.refused is None:
    return closed_BNA
  B, N, A = tree.children_index.shape
  at_BX = jnp.maximum(tree.children_index, 0).reshape(B, N * A)
  refused_BNA = jnp.take_along_axis(nodes.refused, at_BX, axis=1).reshape(
    B, N, A
  )
  refused_BNA &= tree.children_index != UNVISITED
  refused_BNA |= eos_actions(nodes) & nodes.end_refused[..., None]
  return refused_BNA if closed_BNA is None else closed_BNA | refused_BNA


def path_targets(
  tree: mctx.Tree, improved_BNA: Array, node_B: Array, *, min_visits: int
) -> PathTargets:
  """Soft targets at the states that lead to given nodes.

  Args:
    tree: a finished search.
    improved_BNA: a rule's improved distributions.
    node_B: one node a tree, for instance the champion's.
    min_visits: states visited less often are masked.

  Returns:
    Targets for the response that ends at the node.
  """
  node_BT, exists_BT = path_nodes(tree, node_B)
  rows = jnp.arange(node_B.shape[0])[:, None]
  nodes = tree.embeddings
  forbidden_BTA = closed_moves(tree)
  if forbidden_BTA is not None:
    forbidden_BTA = forbidden_BTA[rows, node_BT] & exists_BT[..., None]
  return PathTargets(
    candidate_BTA=nodes.candidate_A[rows, node_BT],
    weight_BTA=improved_BNA[rows, node_BT],
    mass_BT=jnp.sum(jnp.exp(nodes.log_prob_A[rows, node_BT]), axis=-1),
    mask_BT=exists_BT & (tree.node_visits[rows, node_BT] >= min_visits),
    forbidden_BTA=forbidden_BTA,
  )
