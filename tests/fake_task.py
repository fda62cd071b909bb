"""What the tasks that tests make up have in common."""

import dataclasses

from tsd_jax.tasks.task import OwnReward


@dataclasses.dataclass(frozen=True)
class Numbers:
  """A tokenizer whose tokens are their numbers."""

  vocab_size: int
  eos_id: int
  pad_id: int

  bos_id, joiner = None, " "

  @property
  def end_ids(self):
    return (self.eos_id,)

  @property
  def special_ids(self):
    return (self.eos_id, self.pad_id)

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids, skip_special=True):
    return self.joiner.join(str(int(i)) for i in ids)

  def huggingface_files(self):
    raise NotImplementedError("no test exports it")


class Fake:
  """A game of full prompts in which nothing but the model writes.

  A subclass is a frozen dataclass with a name, sizes, tokens and `score`.
  """

  prompt_pad_id, shared_prefix_length, step_end_ids = None, 0, ()
  observe, observation_length, state_key = None, 0, None
  reward = property(OwnReward)

  @property
  def end_ids(self):
    return (self.eos_id,)

  @property
  def tokenizer(self):
    return Numbers(self.vocab_size, self.eos_id, self.pad_id)

  def describe(self, prompt_P, response_T, example=None):
    del example
    return " | ".join(map(self.tokenizer.decode, (prompt_P, response_T)))
