"""The libraries of `step_time.py`, each run in a process of its own.

A process is told what to do by a JSON file: `library`, `shape`, `start` (the
folder of the weights), `steps`, `length`, `vocab_size`, `prompts` and, for TRL,
its settings, so that it need not load JAX.
"""

import functools
import importlib.metadata
import json
import pathlib
import tempfile
import time
import types

from experiments.benchmarks import host_memory

PROMPTS, _GROUP = 8, 4


class Words:
  """Tokens as the words t0, t1, ...; the end and the padding come after."""

  def __init__(self, vocab_size: int):
    """Names all tokens that a model of so many has, and two more."""
    self.bos_id = self.eos_id = vocab_size
    self.end_ids = (self.eos_id,)
    self.pad_id = vocab_size + 1
    self._special = {"<end>": self.eos_id, "<pad>": self.pad_id}
    self._words = [*(f"t{i}" for i in range(vocab_size)), *self._special]
    self._ids = {word: i for i, word in enumerate(self._words)}

  def encode(self, text: str) -> list[int]:
    """Token ids."""
    return [self._ids[word] for word in text.split()]

  def decode(self, ids, *, skip_special=True) -> str:
    """Text, without padding."""
    return " ".join(self._words[i] for i in ids if i != self.pad_id)

  def huggingface_files(self) -> dict[str, str]:
    """The same tokenizer for transformers."""
    from tsd_jax.models import symbols

    card = dict(
      tokenizer_class="PreTrainedTokenizerFast",
      eos_token="<end>",
      pad_token="<pad>",
      clean_up_tokenization_spaces=False,
    )
    return {
      "tokenizer.json": json.dumps(
        symbols.word_level(self._ids, self._special)
      ),
      "tokenizer_config.json": json.dumps(card),
    }


def model_config(shape: str):
  """Shape of the model."""
  from experiments.benchmarks import shapes
  from tsd_jax.models import presets

  return {"tiny": shapes.TINY, "smollm2": presets.SMOLLM2_135M}[shape]


def make_case(vocab_size: int, length: int, steps: int):
  """What the libraries' files read of an experiment: GRPO, a step an iteration.

  Args:
    vocab_size: tokens that the model has.
    length: of a prompt, and of a response.
    steps: optimiser steps.
  """
  from experiments.benchmarks.shapes import Unsolved
  from tsd_jax.inference.rollout import RolloutConfig
  from tsd_jax.learning import methods
  from tsd_jax.learning.config import LossConfig, OptimizerConfig
  from tsd_jax.rewards.reward import Score
  from tsd_jax.search.config import SearchConfig

  class Low(Unsolved):
    """Responses of low tokens; none ever ends."""

    eos_id, pad_id = vocab_size, vocab_size + 1

    def score(self, prompt_XP, response_XT):
      """The share of low tokens."""
      del prompt_XP
      share_X = (response_XT < vocab_size // 2).mean(axis=-1)
      return Score(share_X, share_X == 1)

  task = Low(vocab_size, length, length)
  parts = dict(
    rollout=RolloutConfig(
      prompts=PROMPTS, samples=_GROUP, forks=0, baseline_prompts=PROMPTS
    ),
    loss=LossConfig(champion_weight=0.0),
    optimizer=OptimizerConfig(minibatches=1, learning_rate=1e-5),
  )
  config = methods.resolve(
    "grpo",
    task,
    search=SearchConfig(),
    refresh_every=0,
    iterations=steps,
    **parts,
  )
  return types.SimpleNamespace(
    iterations=steps,
    seed=0,
    make_task=lambda: task,
    learner_config=lambda: config,
    **parts,
  )


def rewards(completion_ids, vocab_size: int) -> list[float]:
  """The same reward for the other libraries."""
  return [
    sum(token < vocab_size // 2 for token in ids) / len(ids)
    for ids in completion_ids
  ]


class Clock:
  """Marks the ends of steps, and how much of them was sampling."""

  def __init__(self):
    """Starts with no step."""
    self._ends, self._sampling = [], [0.0]

  def step_ended(self, *unused) -> None:
    """Ends a step; the first call begins the first one."""
    del unused
    self._ends.append((time.perf_counter(), time.process_time()))
    self._sampling.append(0.0)

  def samples(self, call):
    """The call, with its time counted as sampling."""

    @functools.wraps(call)
    def timed(*args, **kwargs):
      start = time.process_time()
      result = call(*args, **kwargs)
      self._sampling[-1] += time.process_time() - start
      return result

    return timed

  def figures(self) -> dict[str, list[float]]:
    """Seconds of all steps."""
    pairs = list(zip(self._ends, self._ends[1:], strict=False))
    return dict(
      wall_seconds=[b[0] - a[0] for a, b in pairs],
      step_seconds=[b[1] - a[1] for a, b in pairs],
      rollout_seconds=self._sampling[1:-1],
      peak_memory_gb=host_memory.peak() / 1e9,
    )


def ours(work, clock: Clock) -> dict[str, list[float]]:
  """Runs our loop."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from tsd_jax.learning import iteration
  from tsd_jax.learning.update import FixedParams
  from tsd_jax.models import transformer
  from tsd_jax.tasks.task import as_prompts

  case = make_case(work["vocab_size"], work["length"], work["steps"])
  task, config = case.make_task(), case.learner_config()
  graphdef, params = transformer.create(model_config(work["shape"]), 0)
  fixed = FixedParams(jax.tree.map(jnp.copy, params))
  state = iteration.init_state(config, params)
  del params  # The loop holds them while it runs.
  train_loop = iteration.make_train_loop(graphdef, task, config)
  hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}
  key = jax.random.key(case.seed)
  tokens_IBP = np.array(work["prompts"], np.int32).reshape(
    work["steps"], PROMPTS, work["length"]
  )
  prompts = jax.device_get([as_prompts(task, a_BP) for a_BP in tokens_IBP])
  clock.step_ended()
  for batch in prompts:
    state, metrics = train_loop(state, batch[None], fixed, hyper, key)
    metrics = jax.device_get(metrics)
    clock.step_ended()
  figures = clock.figures()

  program = iteration.Program(graphdef, None, task, config, None)

  @jax.jit
  def sample(state, prompts):
    return iteration.sample_phase(program, state, prompts, fixed, key)

  alone = Clock()
  timed = alone.samples(
    lambda prompts: jax.block_until_ready(sample(state, prompts))
  )
  for batch in prompts:
    alone.step_ended()
    timed(batch)
  alone.step_ended()
  return figures | {"rollout_seconds": alone.figures()["rollout_seconds"]}


def trl(work, clock: Clock) -> dict[str, list[float]]:
  """Runs TRL's trainer."""
  from experiments.baselines import trl_grpo

  def reward(completion_ids, **unused):
    del unused
    return rewards(completion_ids, work["vocab_size"])

  with tempfile.TemporaryDirectory() as folder:
    trainer = trl_grpo.make_trainer(
      work["start"], pathlib.Path(folder), work["trl"], work["prompts"],
      reward, clock.step_ended,
    )  # fmt: skip
    trainer.model.generate = clock.samples(trainer.model.generate)
    clock.step_ended()
    trainer.train()
  return clock.figures()


def tunix(work, clock: Clock) -> dict[str, list[float]]:
  """Runs Tunix's learner."""
  import jax
  import numpy as np
  from flax import nnx

  from experiments.baselines import tunix_grpo

  words, mesh = Words(work["vocab_size"]), tunix_grpo.make_mesh()
  case = make_case(work["vocab_size"], work["length"], work["steps"])
  cluster = tunix_grpo.make_cluster(
    case, pathlib.Path(work["start"]), tunix_grpo.Symbols(words), mesh
  )
  update = cluster.update_actor

  def reward(prompts, completions, **unused):
    del prompts, unused
    return rewards(map(words.encode, completions), work["vocab_size"])

  def update_and_mark(*args, **kwargs):
    update(*args, **kwargs)
    jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
    clock.step_ended()

  cluster.rollout.generate = clock.samples(cluster.rollout.generate)
  cluster.update_actor = update_and_mark
  texts = [words.decode(prompt) for prompt in work["prompts"]]
  batches = np.array(texts).reshape(-1, PROMPTS)
  clock.step_ended()
  tunix_grpo.train(
    case, cluster, mesh, reward, ({"prompts": batch} for batch in batches)
  )
  return clock.figures()


WORKERS = dict(ours=ours, trl=trl, tunix=tunix)
_PACKAGES = dict(
  ours=["jax"],
  trl=["trl", "transformers", "torch"],
  tunix=["google-tunix", "flax"],
)


def work_on(file: pathlib.Path) -> None:
  """Does what a file asks, and writes the figures beside it."""
  work = json.loads(file.read_text())
  library = work["library"]
  figures = WORKERS[library](work, Clock())
  figures["versions"] = {
    name: importlib.metadata.version(name) for name in _PACKAGES[library]
  }
  file.with_suffix(".done").write_text(json.dumps(figures))
