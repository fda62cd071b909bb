"""A game as a user writes one, and a run of it that compiles in seconds."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np

from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.models.symbols import word_level
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.rewards.reward import Score
from tsd_jax.run.experiment import EvalConfig, Experiment
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import OwnReward, Posed, TaskConfig, check_warm_start

DIGITS, EOS, PAD = 6, 6, 7


class Tokenizer:
  """Digits 0..5 and `.` for the end: a `models.tokenizer.Tokenizer`."""

  symbols = (*"012345.", "<pad>")
  vocab_size, bos_id, eos_id, pad_id = 8, None, EOS, PAD
  end_ids = (EOS,)
  special_ids, joiner = (EOS, PAD), " "

  def encode(self, text):
    return [self.symbols.index(symbol) for symbol in text.split()]

  def decode(self, ids, skip_special=True):
    return " ".join(self.symbols[i] for i in map(int, ids) if i != PAD)

  def huggingface_files(self):
    ids = {symbol: i for i, symbol in enumerate(self.symbols)}
    special = {".": EOS, "<pad>": PAD}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "."}
    return {
      "tokenizer.json": json.dumps(word_level(ids, special)),
      "tokenizer_config.json": json.dumps(config | {"pad_token": "<pad>"}),
    }


@dataclasses.dataclass(frozen=True)
class BackwardsConfig(TaskConfig):
  """Write some digits backwards."""

  validation_size: int = 8
  test_size: int = 8
  digits: int = 2

  def __post_init__(self):
    super().__post_init__()
    self.need(int, "digits", lambda x: 1 <= x <= 4, "use an integer in 1..4")

  @property
  def dataset(self):
    return f"digits{self.digits}_{self.split}"

  def make(self):
    return Backwards(self)

  def problems(self):
    return list(itertools.product(range(DIGITS), repeat=self.digits))

  def pose(self, problem, rng):
    del rng
    return Posed(
      np.array(problem, np.int32), np.array([*problem[::-1], EOS], np.int32)
    )

  def canonical(self, prompt_P):
    return tuple(map(int, prompt_P))

  def warm_start(self, rng, count, relabel_fraction, excluded=()):
    check_warm_start(count, relabel_fraction)
    asked = [p for p in self.problems() if p not in set(excluded)]
    posed = [
      self.pose(asked[i], rng) for i in rng.integers(len(asked), size=count)
    ]
    shape = count, self.digits
    return (
      np.array([p.prompt_P for p in posed], np.int32).reshape(shape),
      np.array([p.response_T for p in posed], np.int32).reshape(count, -1),
    )


@dataclasses.dataclass(frozen=True)
class Backwards:
  """What the compiled loop sees."""

  config: BackwardsConfig = BackwardsConfig()

  name = "backwards"
  vocab_size, eos_id, pad_id = Tokenizer.vocab_size, EOS, PAD
  end_ids = (EOS,)
  tokenizer = Tokenizer()
  prompt_pad_id, shared_prefix_length, step_end_ids = None, 0, ()
  observe, observation_length, state_key = None, 0, None
  reward = property(OwnReward)

  @property
  def prompt_length(self):
    return self.config.digits

  @property
  def response_length(self):
    return self.config.digits + 1

  def score(self, prompt_XP, response_XT):
    """The share of digits that are right, of a finished response."""
    finished_X = jnp.any(response_XT == EOS, axis=-1)
    right_XT = response_XT[..., :-1] == jnp.flip(prompt_XP, axis=-1)
    correct_X = jnp.all(right_XT, axis=-1) & (response_XT[..., -1] == EOS)
    return Score(
      jnp.where(finished_X, jnp.mean(right_XT, axis=-1), 0.0), correct_X
    )

  def describe(self, prompt_P, response_T, example=None):
    return (
      f"{self.tokenizer.decode(prompt_P)} | {self.tokenizer.decode(response_T)}"
    )


def get_config() -> Experiment:
  """The run: every token is a move, so that searches find answers."""
  return Experiment(
    task=BackwardsConfig(),
    model=ModelConfig(
      vocab_size=8, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1,
      head_dim=8, d_mlp=16,
    ),
    iterations=2,
    iterations_per_call=1,
    checkpoint_every=2,
    rollout=RolloutConfig(prompts=8, samples=4, forks=0, baseline_prompts=8),
    search=SearchConfig(
      num_simulations=12, num_candidates=8, width=2, trees=16
    ),
    loss=LossConfig(
      advantage="group", distilled_prompts=8, success_weight=0.1
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2, minibatches=2),
    eval=EvalConfig(every=2, modes="greedy,mean@2"),
  )  # fmt: skip
