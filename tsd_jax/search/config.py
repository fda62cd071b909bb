"""How the tree is searched, as one config: a rule, and what all rules share."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from tsd_jax.base import temperature
from tsd_jax.base.config_values import snake_case
from tsd_jax.base.errors import refuse
from tsd_jax.search import moves
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.rules import PUCT, Gumbel, Rule
from tsd_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """How the tree is searched."""

  # Which move is tried next: best_first, puct, gumbel, or a rule of your own.
  rule: BestFirst | PUCT | Gumbel | Rule = BestFirst()
  num_simulations: int = 64
  # Prompts searched for each one that the policy samples on, and how many trees
  # grow at the same time: more of them need more memory. With `slot_reuse` it
  # holds the trees of all prompts.
  width: int = 16
  trees: int = 256
  num_candidates: int = 8  # A: the likeliest tokens of a node, or draws.
  # A move is a token (1), or a step of at most so many tokens that is drawn
  # from the model and ends where the task says (`Task.step_end_ids`).
  step_tokens: int = 1
  # What a drawn step's prior is made of: how often it was drawn, or log pi.
  step_prior: moves.Prior = "draws"
  # What an unfinished leaf is worth: V_search, a rollout to the end, the mean
  # of both weighted by `mix`, or how far the reward says that it has come
  # (`Reward.progress`); "none" is for rules that compare no values.
  leaf: Literal["none", "value", "rollout", "mix", "progress"] = "none"
  mix: float = 0.5  # Weight of the rollout in "mix".
  rollout_temperature: float = 1.0
  # Whether all prompts are searched together, `trees` of them in a simulation:
  # one that is solved makes room for another.
  slot_reuse: bool = False

  def __post_init__(self):
    """Refuses impossible searches."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    for field in (
      "num_simulations",
      "num_candidates",
      "step_tokens",
      "width",
      "trees",
    ):
      if getattr(self, field) < 1:
        yield (f"search.{field}={getattr(self, field)} must be at least 1")
    if not isinstance(self.rule, Rule):
      yield (
        f"search.rule={self.rule!r} is no rule: use BestFirst(...), PUCT(...), "
        "Gumbel(...) or another subclass of search.rules.Rule"
      )
      return  # What follows asks it.
    if not 0.0 <= self.mix <= 1.0:
      yield (f"search.mix={self.mix} must lie in [0, 1]")
    if not temperature.is_allowed(self.rollout_temperature):
      yield (
        f"search.rollout_temperature={self.rollout_temperature} must be "
        f"{temperature.ALLOWED}"
      )
    name = snake_case(type(self.rule).__name__)
    if self.slot_reuse and not self.rule.reuses_slots:
      yield (
        f"search.slot_reuse=true is nothing for search.rule={name}, whose "
        "trees grow in step: set search.slot_reuse=false"
      )
    if self.leaf == "none" and self.rule.compares_values:
      yield (
        f"search.leaf=none gives search.rule={name} nothing to compare moves "
        "by: use value, rollout, mix or progress, or rule best_first"
      )

  @property
  def lazy(self) -> bool:
    """Whether a step is drawn when it is tried, and no other."""
    return self.rule.draws_lazily

  def too_many_candidates(self, vocab_size: int) -> bool:
    """Whether a node would offer more tokens than there are; draws may."""
    return self.step_tokens == 1 and self.num_candidates > vocab_size

  @property
  def drawn_tokens(self) -> int:
    """Tokens of the move that a simulation tries, at most."""
    return self.step_tokens if self.lazy else 1

  @property
  def needs_value(self) -> bool:
    """Whether leaves are valued by V_search, which must then be trained."""
    return self.leaf in ("value", "mix")

  @property
  def values_leaves(self) -> bool:
    """Whether a node has a value before anything below it is known."""
    return self.needs_value or self.leaf == "progress"

  @property
  def rolls_out(self) -> bool:
    """Whether leaves are valued by a rollout."""
    return self.leaf in ("rollout", "mix")

  @property
  def ends_with_node(self) -> bool:
    """Whether the answer that ends at a node is scored with the node."""
    return self.rule.ends_with_node and not (self.rolls_out or self.lazy)

  def merges(self, task: Task) -> bool:
    """Whether moves that lead to one state are merged."""
    return self.rule.merges_states and task.state_key is not None

  def move_tokens(self, task: Task) -> int:
    """U, the most tokens of a move: a step, or a whole observation."""
    return max(self.step_tokens, task.observation_length)

  def block(self, prompts: int) -> int:
    """How many of some prompts have their trees at the same time."""
    return prompts if self.slot_reuse else min(self.trees, prompts)

  def rows(self, prompts: int) -> int:
    """How many of the trees of such a block grow in a simulation."""
    return min(self.trees, prompts) if self.slot_reuse else prompts

  def exhaustive(self, num_simulations: int) -> "SearchConfig":
    """The same search, of so many simulations whatever it finds."""
    rule = dataclasses.replace(self.rule, stop_when_solved=False)
    return dataclasses.replace(self, rule=rule, num_simulations=num_simulations)
