"""A reward with a verifier beside it that judges and never pays."""

import dataclasses
from typing import Any

from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.rewards.around import Around
from tsd_jax.rewards.reward import Reward, Score


@dataclasses.dataclass(frozen=True)
class Audited(Around):
  """A reward whose responses a second verifier judges as well.

  Whoever learns sees the reward alone; whoever asks `auditor` sees the other.
  Its operations and judgements are not counted, as those of an evaluation.

  Attributes:
    reward: what pays.
    verifier: what judges.

  Raises:
    ValueError: one of them is no reward.
  """

  verifier: Reward

  def __post_init__(self):
    """Refuses what is no reward."""
    super().__post_init__()
    if not isinstance(self.verifier, Reward):
      raise ValueError(f"Audited holds {self.verifier!r}, which is no reward")

  def load(self) -> tuple[Any, Any]:
    """The parameters of both."""
    return self.reward.load(), self.verifier.load()

  def rules(self, params):
    """Those of what pays."""
    return self.reward.rules(params[0] if params else ())

  def passes(self, params, prompts, tokens_BGT, mask_BGT):
    """What the guard of what pays lets pass."""
    return self.reward.passes(params[0], prompts, tokens_BGT, mask_BGT)

  def unguarded(self, params):
    """With what pays behind its guard."""
    reward, own = self.reward.unguarded(params[0])
    return dataclasses.replace(self, reward=reward), (own, params[1])

  def progress(self, params, prompts, tokens_BT, mask_BT):
    """That of what pays."""
    return self.reward.progress(params[0], prompts, tokens_BT, mask_BT)

  def misreads(self, tokenizer: Tokenizer) -> str | None:
    """The first that cannot read the policy's tokens."""
    return super().misreads(tokenizer) or self.verifier.misreads(tokenizer)

  def truth(self) -> "Audited":
    """What pays, where it does not err; the verifier stays as it is."""
    return dataclasses.replace(self, reward=self.reward.truth())

  def auditor(self) -> Reward:
    """The verifier, which reads the parameters of both."""
    return _Auditor(self.verifier)

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Scores by what pays."""
    return self.reward(params[0], prompts, tokens_BGT, mask_BGT)


@dataclasses.dataclass(frozen=True)
class _Auditor(Around):
  """The verifier of an audited reward."""

  def load(self):
    """Is never called: the parameters are the audited reward's.

    Raises:
      ValueError: always.
    """
    raise ValueError("an auditor reads the parameters of Audited.load")

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Scores by the verifier."""
    return self.reward(params[1], prompts, tokens_BGT, mask_BGT)
