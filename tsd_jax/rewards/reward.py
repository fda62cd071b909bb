"""What a response is worth: the protocol of every reward.

A reward sees all responses to a prompt at once, so that it may compare them. It
says in which range its values lie: nothing that reads it assumes [0, 1]. It may
have parameters, such as a reward model's; they travel beside the policy's
reference, are never donated, and their operations are in the ledger.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array, Prompts
from tsd_jax.models.phrases import Automaton
from tsd_jax.models.tokenizer import Tokenizer, is_end


class Score(NamedTuple):
  """What responses are worth; a pytree."""

  reward_X: Array  # float32, within the reward's range: for learning.
  # bool, solved exactly: for evaluation and champions. None where nobody knows.
  correct_X: Array | None = None
  # What the reward is made of, by name: logged one by one.
  parts: Mapping[str, Array] = {}


class Abstained(NamedTuple):
  """The token by which a response abstains, and what that is worth."""

  mark: int
  worth: float

  def said(self, tokens_XT: Any) -> Any:
    """Whether responses abstain, X; of NumPy or JAX, PAD after their ends."""
    return (tokens_XT == self.mark).any(axis=-1)


def marks(abstention: Abstained | None) -> tuple[int, ...]:
  """Tokens by which a response abstains."""
  return () if abstention is None else (abstention.mark,)


@dataclasses.dataclass(frozen=True)
class Reward(abc.ABC):
  """Scores responses in pure JAX; a subclass is hashable (a frozen dataclass).

  Attributes:
    low: the least reward, also that of a search's unfinished responses.
    high: the greatest reward.
    knows_correct: whether scores say what is correct.
    bounded: whether values lie in the range by construction; others are kept
      within it.
    abstention: what says "I don't know", and is paid for it; None where nothing
      does (`abstention.Abstention`).
    judgements: how often a response is judged to be scored once.
    forbidden: what no response may say; None: anything may be said
      (`constrained.Constrained`).
    disagreement: name of the part that says how far the members of an ensemble
      are apart; None where there is no ensemble.
    judges_steps: whether `progress` judges unfinished responses.
    guards: whether `passes` says where a response may not go on
      (`guarded.Guarded`).
  """

  # Without annotations, so that a subclass may make fields of them.
  low = 0.0
  high = 1.0
  knows_correct = True
  bounded = False
  abstention = None
  judgements = 1
  forbidden = None
  disagreement = None
  judges_steps = False
  guards = False

  @abc.abstractmethod
  def __call__(
    self, params: Any, prompts: Prompts, tokens_BGT: Array, mask_BGT: Array
  ) -> Score:
    """Scores G responses to each of B prompts; may be called under jit.

    Args:
      params: what `load` returned.
      prompts: B prompts.
      tokens_BGT: int32 tokens of the responses.
      mask_BGT: true up to and including a response's end token; wholly true
        where it has none.

    Returns:
      Scores BG.
    """

  def progress(
    self, params: Any, prompts: Prompts, tokens_BT: Array, mask_BT: Array
  ) -> Array:
    """How far unfinished responses have come, B, from 0 to 1.

    A process reward: the closer to the probability of a good end, the better
    for a search that values its leaves by it (`search.leaf=progress`).

    Args:
      params: what `load` returned.
      prompts: B prompts.
      tokens_BT: int32, the beginning of a response to each of them.
      mask_BT: true where it has a token.

    Raises:
      ValueError: the reward judges no steps.
    """
    raise ValueError(f"{type(self).__name__} judges no steps")

  def passes(
    self, params: Any, prompts: Prompts, tokens_BGT: Array, mask_BGT: Array
  ) -> Array:
    """Which responses, finished or not, are let pass, bool BG.

    Args:
      params: what `load` returned.
      prompts: B prompts.
      tokens_BGT: int32, responses to each of them, or their beginnings.
      mask_BGT: true where they have a token.

    Raises:
      ValueError: the reward guards nothing.
    """
    raise ValueError(f"{type(self).__name__} guards nothing")

  def unguarded(self, params: Any) -> tuple["Reward", Any]:
    """What pays where `passes` has been asked already, and its parameters."""
    return self, params

  @property
  def never(self) -> tuple[int, ...]:
    """Tokens that searches and champions know nothing of: they answer."""
    return marks(self.abstention)

  def load(self) -> Any:
    """Parameters that `__call__` reads, read once by the host; () for none."""
    return ()

  def rules(self, params: Any) -> Automaton | None:
    """What finds `forbidden` in responses, from what `load` returned."""
    del params
    return None

  def flops(self, prompt_length: int, response_length: int) -> float:
    """Operations of models that judge one response to a prompt once."""
    del prompt_length, response_length
    return 0.0

  def misreads(self, tokenizer: Tokenizer) -> str | None:
    """Why it cannot read a policy's tokens, in a line; None where it can."""
    del tokenizer

  def bind(self, own: "Reward", tokenizer: Tokenizer | None = None) -> "Reward":
    """This reward with the task's own wherever `algebra.TaskReward` stands.

    Args:
      own: the task's own reward.
      tokenizer: the task's, for rewards that read text.
    """
    return self._with_members(lambda member: member.bind(own, tokenizer))

  def truth(self) -> "Reward":
    """What held-out answers are judged by: itself, unless it errs.

    It reads the same parameters (`noise.Noisy`).
    """
    return self._with_members(lambda member: member.truth())

  def auditor(self) -> "Reward | None":
    """A second verifier, which judges and never pays; None where none does.

    It reads the same parameters (`audited.Audited`).
    """
    return None

  def _with_members(self, change: Callable[["Reward"], "Reward"]) -> "Reward":
    """This reward with the rewards that it holds changed."""

    def changed(value):
      if isinstance(value, Reward):
        return change(value)
      return tuple(map(changed, value)) if isinstance(value, tuple) else value

    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    changes = {n: new for n, x in fields.items() if (new := changed(x)) != x}
    return dataclasses.replace(self, **changes) if changes else self


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A reward with its parameters, for use inside a compiled program."""

  reward: Reward
  end_ids: tuple[int, ...]
  params: Any = ()

  def __post_init__(self):
    """Refuses a reward that has no range to speak of."""
    check_range(self.reward)

  def __call__(self, prompts: Prompts, tokens_BGT: Array) -> Score:
    """Scores responses, checked and kept within the reward's range.

    Raises:
      ValueError: the reward returns anything but scores of the right shape.
    """
    mask_BGT = response_mask(tokens_BGT, self.end_ids)
    return within_range(self.reward, self.params, prompts, tokens_BGT, mask_BGT)

  def one(self, prompts: Prompts, tokens_BT: Array) -> Score:
    """Scores one response to each prompt, B."""
    score = self(prompts, tokens_BT[:, None])
    return jax.tree.map(lambda a: a[:, 0], score)

  def accepted(self, prompts: Prompts, tokens_BGT: Array) -> Array | None:
    """How far a second verifier accepts responses, BG, from 0 to 1.

    None where there is none (`Reward.auditor`).
    """
    auditor = self.reward.auditor()
    if auditor is None:
      return None
    second = dataclasses.replace(self, reward=auditor)
    score = second(prompts, tokens_BGT)
    if score.correct_X is not None:
      return score.correct_X.astype(jnp.float32)
    return second.unit(score.reward_X)

  def progress(
    self, prompts: Prompts, tokens_BT: Array, length_B: Array
  ) -> Array:
    """How far beginnings of responses have come, B, within [0, 1].

    Args:
      prompts: B prompts.
      tokens_BT: their responses so far.
      length_B: tokens of them.

    Raises:
      ValueError: the reward returns anything but a number for each.
    """
    mask_BT = jnp.arange(tokens_BT.shape[-1])[None] < length_B[:, None]
    progress_B = self.reward.progress(self.params, prompts, tokens_BT, mask_BT)
    check_progress(self.reward, progress_B, length_B.shape)
    return jnp.clip(jnp.nan_to_num(progress_B), 0.0, 1.0)

  def passes(
    self, prompts: Prompts, tokens_BGT: Array, mask_BGT: Array | None = None
  ) -> Array:
    """Which responses are let pass, bool BG.

    Args:
      prompts: B prompts.
      tokens_BGT: their responses.
      mask_BGT: tokens of beginnings; None: up to the responses' ends.

    Raises:
      ValueError: the reward guards nothing.
    """
    if mask_BGT is None:
      mask_BGT = response_mask(tokens_BGT, self.end_ids)
    return self.reward.passes(self.params, prompts, tokens_BGT, mask_BGT)

  @property
  def unguarded(self) -> "Scorer":
    """The same for those who ask `passes` themselves."""
    reward, params = self.reward.unguarded(self.params)
    return dataclasses.replace(self, reward=reward, params=params)

  @property
  def rules(self) -> Automaton | None:
    """What finds in responses what they may not say; None: nothing is."""
    return self.reward.rules(self.params)

  def unit(self, reward_X: Array) -> Array:
    """Rewards on a scale from 0 (the least) to 1 (the greatest)."""
    return (reward_X - self.reward.low) / self.span

  def from_unit(self, unit_X: Array) -> Array:
    """Rewards from that scale."""
    return self.reward.low + self.span * unit_X

  @property
  def span(self) -> float:
    """Width of the reward's range."""
    return self.reward.high - self.reward.low


def within_range(
  reward: Reward,
  params: Any,
  prompts: Prompts,
  tokens_BGT: Array,
  mask_BGT: Array,
) -> Score:
  """What a reward says of responses, checked and kept within its range.

  Raises:
    ValueError: it returns anything but scores of the right shape.
  """
  score = reward(params, prompts, tokens_BGT, mask_BGT)
  check_score(reward, score, tokens_BGT.shape[:-1])
  if reward.bounded:
    return score
  clipped_BG = jnp.clip(score.reward_X, reward.low, reward.high)
  return score._replace(reward_X=clipped_BG)


def response_mask(tokens_XT: Array, end_ids: tuple[int, ...]) -> Array:
  """True up to and including the first end token; all true without one."""
  end_XT = is_end(tokens_XT, end_ids)
  return jnp.cumsum(end_XT, axis=-1) - end_XT == 0


def check_range(reward: Reward) -> None:
  """Refuses a reward whose range is none.

  Raises:
    ValueError: naming the reward and its range.
  """
  low, high = reward.low, reward.high
  if not (math.isfinite(low) and math.isfinite(high) and low < high):
    raise ValueError(
      f"reward {type(reward).__name__} has low={low} and high={high}: both "
      "must be finite, and low below high"
    )


def check_worth(owner: Reward, worth: float | None, of: Reward) -> None:
  """Refuses a worth of what may not be that is above anything else's.

  Args:
    owner: the reward that has such a worth.
    worth: None is the least there is.
    of: what all other responses are worth.

  Raises:
    ValueError: naming the owner, the worth and what it may be at most.
  """
  # Where `of.low` is not known yet, nothing is above it.
  if worth is not None and not (math.isfinite(worth) and not worth > of.low):
    raise ValueError(
      f"{type(owner).__name__}.worth={worth} must be finite and at most "
      f"{of.low}, the least that {type(of).__name__} gives"
    )


def check_progress(
  reward: Reward, progress: Any, shape: tuple[int, ...]
) -> None:
  """Refuses what is no number for each response.

  Raises:
    ValueError: naming the reward, what it returned and what was expected.
  """
  array = jnp.asarray(progress)
  if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(
      f"reward {type(reward).__name__} returned progress of {array.dtype}"
      f"{list(array.shape)}; expected floating{list(shape)}"
    )


def check_score(reward: Reward, score: Any, shape: tuple[int, ...]) -> None:
  """Refuses what is no score of responses of a shape.

  Raises:
    ValueError: naming the reward, what it returned and what was expected.
  """
  name = type(reward).__name__
  if not isinstance(score, Score):
    raise ValueError(
      f"reward {name} returned {type(score).__name__}; return "
      "rewards.reward.Score(reward_X, correct_X)"
    )
  if (score.correct_X is not None) != reward.knows_correct:
    raise ValueError(
      f"reward {name} has knows_correct={reward.knows_correct}, but its scores "
      f"have correct_X={'none' if score.correct_X is None else 'given'}"
    )
  expected = {"reward_X": jnp.floating, "correct_X": jnp.bool_}
  for field, kind in expected.items():
    value = getattr(score, field)
    if value is None:
      continue
    value = jnp.asarray(value)
    if value.shape != shape or not jnp.issubdtype(value.dtype, kind):
      raise ValueError(
        f"reward {name} returned {field} of {value.dtype}{list(value.shape)}; "
        f"expected {kind.__name__}{list(shape)}"
      )
  for part, value in score.parts.items():
    if jnp.shape(value) != shape:
      raise ValueError(
        f"reward {name} returned part {part!r} of shape "
        f"{list(jnp.shape(value))}; expected {list(shape)}"
      )
