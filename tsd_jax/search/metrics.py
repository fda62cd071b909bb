"""How well a search spent its simulations, as a few numbers an iteration."""

import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.types import UNVISITED, Array


def search_metrics(tree: mctx.Tree, simulations: Array) -> dict[str, Array]:
  """Means over the trees of a batch.

  Args:
    tree: a finished search.
    simulations: how many were made a prompt.

  Returns:
    search_depth: tokens from the root to a node.
    search_wasted: simulations that went below a finished node, visited one
      again, or had no tree to grow.
    search_answers: distinct finished responses in a tree.
    search_duplicates: fraction of the answers found that were there already.
    search_cut_off: fraction of the nodes whose path is full, or was drawn
      before, and has no answer.
    search_visit_entropy: nats, of the visits to the root's moves.
    search_root_value: V_search of the prompt, to be held against how often the
      policy succeeds.
    search_forbidden: share of a node's moves that are closed because they say
      what the reward forbids; only where it forbids something.
    search_refused: share of the nodes that a guard did not let pass, or whose
      answer; only where there is one.
  """
  nodes = tree.embeddings
  B = nodes.reward.shape[0]
  over_BN = nodes.finished | nodes.cut_off
  below_BN = jnp.take_along_axis(over_BN, jnp.maximum(tree.parents, 0), axis=1)
  grown_BN = ((tree.node_visits > 0) & ~below_BN).at[:, 0].set(False)
  grown = jnp.maximum(jnp.sum(grown_BN), 1)

  def fraction(x_BN):
    return jnp.sum(jnp.where(grown_BN, x_BN, 0)) / grown

  found_BN = nodes.has_answer & grown_BN
  same_BNN = jnp.all(
    nodes.answer_tokens[:, :, None] == nodes.answer_tokens[:, None], axis=-1
  )
  earlier_BNN = jnp.tril(same_BNN & found_BN[:, None], k=-1)
  repeated_BN = found_BN & jnp.any(earlier_BNN, axis=2)
  answers = jnp.sum(found_BN)
  visits_BA = jnp.where(
    tree.children_index[:, 0] == UNVISITED, 0, tree.children_visits[:, 0]
  )
  p_BA = visits_BA / jnp.maximum(jnp.sum(visits_BA, axis=1, keepdims=True), 1)
  entropy_B = -jnp.sum(p_BA * jnp.log(jnp.maximum(p_BA, 1e-30)), axis=1)
  closed = {}
  if nodes.forbidden_A is not None:
    share_BN = jnp.mean(nodes.forbidden_A.astype(jnp.float32), axis=-1)
    closed["search_forbidden"] = fraction(share_BN)
  if nodes.refused is not None:
    closed["search_refused"] = fraction(nodes.refused | nodes.end_refused)
  return closed | {
    "search_depth": fraction(nodes.depth),
    "search_wasted": 1.0 - grown / jnp.maximum(B * simulations, 1),
    "search_answers": (answers - jnp.sum(repeated_BN)) / B,
    "search_duplicates": jnp.sum(repeated_BN) / jnp.maximum(answers, 1),
    "search_cut_off": fraction(nodes.cut_off & ~nodes.has_answer),
    "search_visit_entropy": jnp.mean(entropy_B),
    "search_root_value": jnp.mean(jax.nn.sigmoid(nodes.value_logit[:, 0])),
  }
