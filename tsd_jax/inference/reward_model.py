"""A reward model: a language model's trunk with heads that say a number.

A head reads the hidden state at a response's last token, its end token where it
has one. Several heads, or several models, are an ensemble: how far they are
apart is what the model does not know.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array, PromptForm, Prompts
from tsd_jax.inference import prefill
from tsd_jax.models import pretrained, text_tokenizer, transformer
from tsd_jax.models.flops import flops_per_token
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.models.transformer import Transformer
from tsd_jax.rewards.reward import Reward, Score
from tsd_jax.tasks.text_lines import load_tokenizer

_PADDED = PromptForm(padded=True)


def last_states(
  model: Transformer, prompts: Prompts, tokens_BGT: Array, mask_BGT: Array
) -> Array:
  """Hidden states at the last token of each response, BGD.

  Args:
    model: the trunk.
    prompts: B prompts; each is run once for all its responses.
    tokens_BGT: G responses to each.
    mask_BGT: true up to the last token of each.
  """
  B, G, T = tokens_BGT.shape
  rows = prefill.repeat_rows(prefill.prefill(model, prompts, _PADDED), G)
  hidden = model.trunk(
    tokens_BGT.reshape(B * G, T),
    rows.length_B[:, None] + jnp.arange(T)[None],
    segments=rows.segments,
  )
  last_R = jnp.sum(mask_BGT, axis=-1).reshape(-1) - 1
  x_RD = jnp.take_along_axis(hidden.x_RTD, last_R[:, None, None], axis=1)[:, 0]
  return x_RD.reshape(B, G, -1)


def head_rewards(score_KD: Array, x_BGD: Array) -> Array:
  """What each head says of hidden states, BGK, float32."""
  return jnp.einsum("bgd,kd->bgk", x_BGD.astype(jnp.float32), score_KD)


def lower_bound(reward_XK: Array, pessimism: float) -> Array:
  """The members' mean less so many of their standard deviations, X.

  Where members disagree, which is where a policy goes that games one of them,
  the reward is low (arXiv:2310.02743).
  """
  mean_X, spread_X = jnp.mean(reward_XK, axis=-1), spread(reward_XK)
  return mean_X - pessimism * spread_X


def spread(reward_XK: Array) -> Array:
  """Standard deviation over members, X; 0 of one alone."""
  K = reward_XK.shape[-1]
  return jnp.std(reward_XK, axis=-1, ddof=1) if K > 1 else reward_XK[..., 0] * 0


@dataclasses.dataclass(frozen=True)
class RewardModel(Reward):
  """How probably a response is better than a usual one, in a model's eyes.

    sigmoid(mean - pessimism * std),  over the members' rewards

  Members are the heads of all the models, each less the mean of what it says of
  the responses that it was measured on. So Bradley and Terry's model gives the
  probability, and the range is [0, 1] whatever scale a model has. The parts
  `mean` and `std` are as the members say.

  Attributes:
    folders: of reward models, as `launch.train_reward` and transformers write
      them; all read the policy's tokens.
    pessimism: how many standard deviations are taken off.

  Raises:
    ValueError: there is no model, or less than no pessimism.
  """

  knows_correct, bounded = False, True
  disagreement = "std"

  folders: tuple[str, ...]
  pessimism: float = 0.0

  def __post_init__(self):
    """Refuses what is no reward."""
    if isinstance(self.folders, str) or not self.folders:
      raise ValueError(
        f"RewardModel.folders={self.folders!r} must be a tuple of folders"
      )
    if not 0 <= self.pessimism < math.inf:
      raise ValueError(
        f"RewardModel.pessimism={self.pessimism} must be a number from 0 on"
      )

  def load(self) -> list[Any]:
    """The models' trunks and heads.

    Raises:
      UserError: a folder holds no reward model.
    """
    return [_load(folder) for folder in self.folders]

  def flops(self, prompt_length: int, response_length: int) -> float:
    """A forward of every model; the heads are a row of a table."""
    length = prompt_length + response_length
    return sum(length * _flops(folder) for folder in self.folders)

  def misreads(self, tokenizer: Tokenizer) -> str | None:
    """Names a model that has other tokens."""
    for folder in self.folders:
      own = load_tokenizer(folder)
      if text_tokenizer.vocabulary(own) != text_tokenizer.vocabulary(tokenizer):
        return (
          f"the reward model {folder} has other tokens than the policy: train "
          "it from a model with the policy's tokenizer"
        )
    return None

  def __call__(
    self,
    params: Any,
    prompts: Prompts,
    tokens_BGT: Array,
    mask_BGT: Array,
  ) -> Score:
    """Scores responses.

    Raises:
      ValueError: the prompts hold media, which the models cannot read.
    """
    if prompts.media is not None:
      raise ValueError("a RewardModel reads text alone, not prompts with media")
    reward_BGK = self.members(params, prompts, tokens_BGT, mask_BGT)
    parts = {"mean": jnp.mean(reward_BGK, axis=-1), "std": spread(reward_BGK)}
    return Score(
      jax.nn.sigmoid(lower_bound(reward_BGK, self.pessimism)), None, parts
    )

  def members(
    self,
    params: Sequence[Any],
    prompts: Prompts,
    tokens_BGT: Array,
    mask_BGT: Array,
  ) -> Array:
    """What each member says of responses, BGK, less what it says of usual ones.

    Args:
      params: what `load` returned.
      prompts: B prompts.
      tokens_BGT: responses.
      mask_BGT: true up to and including the end token.
    """
    found = []
    for folder, own in zip(self.folders, params, strict=True):
      graphdef, _ = transformer.abstract(pretrained.reward_shape(folder))
      x_BGD = last_states(
        nnx.merge(graphdef, own["trunk"]), prompts, tokens_BGT, mask_BGT
      )
      found.append(head_rewards(own["score_KD"], x_BGD) - own["centre_K"])
    return jnp.concatenate(found, axis=-1)


def _load(folder: str) -> dict[str, Any]:
  """Parameters of one model.

  Raises:
    UserError: there is none.
  """
  try:
    _, _, params, heads = pretrained.load_reward(folder)
  except UserError as error:
    raise UserError(f"RewardModel.folders: {error}") from error
  return {
    "trunk": params,
    "score_KD": jnp.asarray(heads.score_KD),
    "centre_K": jnp.asarray(heads.centre_K),
  }


def _flops(folder: str) -> float:
  """Operations of a token, the output table aside, which is not there."""
  shape = pretrained.reward_shape(folder)
  return flops_per_token(dataclasses.replace(shape, vocab_size=1))
