"""A function on the host that judges texts, finished or not."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from tsd_jax.base import names
from tsd_jax.base.errors import UserError
from tsd_jax.models.tokenizer import Tokenizer, before_end
from tsd_jax.rewards import callback, pool, worker
from tsd_jax.rewards.reward import Reward, Score


@dataclasses.dataclass(frozen=True)
class Classifier(Reward):
  """What a function on the host says of the text of a response so far.

  It is called in processes of its own (`docs/graders.md`), once for each text
  of a call of the program; one that fails says `low`. Where nothing is shown it
  is not asked, and `high` is said. Under a mesh it needs all axes for prompts.

  Attributes:
    function: of prompt, response and None, like a text task's reward: a number
      from `low` to `high`; a member of a module that can be imported.
    grading: how many processes call it, and what a call may take.
    low: the least that it says.
    high: the most.
    tokenizer: what the tokens say; `bind` puts the task's here.
  """

  knows_correct = False

  function: Callable[[str, str, None], float]
  grading: pool.PoolConfig = pool.PoolConfig()
  low: float = 0.0
  high: float = 1.0
  tokenizer: Tokenizer | None = None

  def bind(self, own: Reward, tokenizer: Tokenizer | None = None) -> Reward:
    """With the task's tokenizer, where it has none."""
    del own
    return dataclasses.replace(self, tokenizer=self.tokenizer or tokenizer)

  def load(self) -> tuple:
    """No parameters; starts the processes.

    Raises:
      UserError: it was bound to no task, or the function cannot be imported.
    """
    if self.tokenizer is None:
      raise UserError(
        "Classifier.tokenizer=None: give the reward to Experiment.reward, or "
        "call reward.bind(task.reward, task.tokenizer)"
      )
    self._workers()
    return ()

  def _workers(self) -> pool.Pool:
    name = names.full_name(self.function)
    return pool.shared(name, self.grading, worker.Number(self.low, self.high))

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Asks the function of the tokens that the mask shows."""
    del params
    B, G, _ = tokens_BGT.shape
    P = prompts.tokens_BP.shape[1]
    prompt_BGP = jnp.broadcast_to(prompts.tokens_BP[:, None], (B, G, P))
    length_BG = jnp.broadcast_to(prompts.length_B[:, None], (B, G))

    def grade(length_Q: np.ndarray, row_QX: np.ndarray) -> np.ndarray:
      return self._grade(length_Q, row_QX[:, :P], row_QX[:, P:])

    # Tokens that are not looked at are -1: none has that number.
    seen_BGT = jnp.where(mask_BGT, tokens_BGT, -1)
    row_BGX = jnp.concatenate([prompt_BGP, seen_BGT], axis=-1)
    return Score(
      callback.graded(grade, length_BG, row_BGX, self.low, self.high)
    )

  def _grade(
    self, length_Q: np.ndarray, prompt_QP: np.ndarray, seen_QT: np.ndarray
  ) -> np.ndarray:
    """What the function says; of those that say the same it is asked once."""
    assert self.tokenizer is not None  # `load` saw to it.
    decode, ends = self.tokenizer.decode, self.tokenizer.end_ids

    def spelled(length: int, prompt_P: np.ndarray, seen_T: np.ndarray):
      shown_T = seen_T[seen_T >= 0]
      if not len(shown_T):
        return None
      said, _ = before_end(shown_T, ends)
      return decode(prompt_P[:length]), decode(said, skip_special=False)

    return pool.grade_distinct(
      self._workers(),
      list(map(spelled, length_Q.tolist(), prompt_QP, seen_QT)),
      lambda texts: (*texts, None),
      otherwise=self.high,
    )
