"""Types of the part of mctx that is used here; it ships none of its own."""

from collections.abc import Callable
from typing import Any, Self

from jax import Array

class Tree:
  node_visits: Array
  raw_values: Array
  node_values: Array
  parents: Array
  action_from_parent: Array
  children_index: Array
  children_prior_logits: Array
  children_visits: Array
  children_rewards: Array
  children_discounts: Array
  children_values: Array
  embeddings: Any
  root_invalid_actions: Array
  extra_data: Any
  def qvalues(self, indices: Any) -> Array: ...
  def replace(self, **changes: Any) -> Self: ...

class RootFnOutput:
  prior_logits: Array
  value: Array
  embedding: Any
  def __init__(
    self, *, prior_logits: Array, value: Array, embedding: Any
  ) -> None: ...

class RecurrentFnOutput:
  reward: Array
  discount: Array
  prior_logits: Array
  value: Array
  def __init__(
    self, *, reward: Array, discount: Array, prior_logits: Array, value: Array
  ) -> None: ...

class PolicyOutput:
  action: Array
  action_weights: Array
  search_tree: Tree

RecurrentFn = Callable[[Any, Array, Array, Any], tuple[RecurrentFnOutput, Any]]

def search(
  params: Any,
  rng_key: Array,
  *,
  root: RootFnOutput,
  recurrent_fn: RecurrentFn,
  root_action_selection_fn: Callable[..., Array] | None,
  interior_action_selection_fn: Callable[..., Array] | None,
  num_simulations: int,
  max_depth: int | None = ...,
  invalid_actions: Array | None = ...,
  extra_data: Any = ...,
  loop_fn: Callable[..., Any] = ...,
) -> Tree: ...
def muzero_policy(
  params: Any,
  rng_key: Array,
  root: RootFnOutput,
  recurrent_fn: RecurrentFn,
  num_simulations: int,
  invalid_actions: Array | None = ...,
  max_depth: int | None = ...,
  loop_fn: Callable[..., Any] = ...,
  *,
  qtransform: Callable[..., Array] = ...,
  dirichlet_fraction: float = ...,
  dirichlet_alpha: float = ...,
  pb_c_init: float = ...,
  pb_c_base: float = ...,
  temperature: float = ...,
) -> PolicyOutput: ...
def gumbel_muzero_policy(
  params: Any,
  rng_key: Array,
  root: RootFnOutput,
  recurrent_fn: RecurrentFn,
  num_simulations: int,
  invalid_actions: Array | None = ...,
  max_depth: int | None = ...,
  loop_fn: Callable[..., Any] = ...,
  *,
  qtransform: Callable[..., Array] = ...,
  max_num_considered_actions: int = ...,
  gumbel_scale: float = ...,
) -> PolicyOutput: ...
def qtransform_completed_by_mix_value(
  tree: Tree,
  node_index: Any,
  *,
  value_scale: float = ...,
  maxvisit_init: float = ...,
  rescale_values: bool = ...,
  use_mixed_value: bool = ...,
  epsilon: float = ...,
) -> Array: ...
def muzero_action_selection(
  rng_key: Array,
  tree: Tree,
  node_index: Any,
  depth: Any,
  *,
  pb_c_init: float = ...,
  pb_c_base: float = ...,
  qtransform: Callable[..., Array] = ...,
) -> Array: ...
def gumbel_muzero_root_action_selection(
  rng_key: Array,
  tree: Tree,
  node_index: Any,
  *,
  num_simulations: Any,
  max_num_considered_actions: Any,
  qtransform: Callable[..., Array] = ...,
) -> Array: ...
def gumbel_muzero_interior_action_selection(
  rng_key: Array,
  tree: Tree,
  node_index: Any,
  depth: Any,
  *,
  qtransform: Callable[..., Array] = ...,
) -> Array: ...
