"""One training step of GRPO, ours beside TRL's and Tunix's: time and memory.

A step samples 4 responses to each of 8 prompts and makes one update on them.
Every library starts processes of its own on the same random weights and prompts
of the same length; the end token lies beyond the vocabulary, so that every
response is full. Adam, clip and reward are the same; there is no KL term, no
reference model, no log, no saving and no gradient checkpointing. Ours is the
compiled loop of a run, an iteration a dispatch. The processes take turns; a
figure is the median over the steps of all turns but each process's first ones.
Times are seconds of the processor, so that other work on the machine counts
less; `wall_seconds` is what passed.

  compile  what the first steps of a process take beyond later ones
  rollout  sampling alone; ours is one program, so its sampling is compiled and
           timed once more by itself, and the rest of a step is called its
           update
  memory   the most that a process ever held, interpreter included

What stays different: TRL is PyTorch as it comes, without `torch_compile`; ours
runs a prompt once for its group, in sampling and in the update, where the
others run it once a row; TRL and Tunix begin and end with text, ours with
tokens. A scan over layers (`smollm2`) keeps the matmuls' results for its
backward pass and makes norms and attention again, as it does in every run.

Command (an environment of its own for each, see trl_grpo.py and tunix_grpo.py;
a library whose interpreter is not named is left out):

  taskset -c 0 python -m experiments.baselines.step_time --shapes=tiny,smollm2
    --trl=PYTHON --tunix=PYTHON --output=FILE.json
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types

from absl import flags, logging

from tsd_jax import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SHAPES = flags.DEFINE_list(
  "shapes", ["tiny"], "tiny, smollm2.", allow_override=True
)
_TRL = flags.DEFINE_string("trl", None, "Python of an environment with TRL.")
_TUNIX = flags.DEFINE_string("tunix", None, "The same with Tunix.")
_OUTPUT = flags.DEFINE_string(
  "output", None, "JSON file to write.", allow_override=True
)
_WORK = flags.DEFINE_string("work", None, "Set for the processes it starts.")
_PROMPTS, _GROUP = 8, 4


@dataclasses.dataclass(frozen=True)
class Size:
  """What a shape is measured with."""

  length: int  # Of a prompt, and of a response.
  warm: int  # Steps of a process that are not counted.
  steps: int  # Steps that are.
  turns: int  # Processes of each library.


SIZES = {
  "tiny": Size(length=16, warm=2, steps=10, turns=2),
  "smollm2": Size(length=64, warm=1, steps=1, turns=1),
}


class Words:
  """Tokens as the words t0, t1, ...; the end and the padding come after."""

  def __init__(self, vocab_size: int):
    """Names all tokens that a model of so many has, and two more."""
    self.bos_id = self.eos_id = vocab_size
    self.pad_id = vocab_size + 1
    self._special = {"<end>": self.eos_id, "<pad>": self.pad_id}
    self._words = [*(f"t{i}" for i in range(vocab_size)), *self._special]
    self._ids = {word: i for i, word in enumerate(self._words)}

  def encode(self, text: str) -> list[int]:
    """Token ids."""
    return [self._ids[word] for word in text.split()]

  def decode(self, ids) -> str:
    """Text, without padding."""
    return " ".join(self._words[i] for i in ids if i != self.pad_id)

  def huggingface_files(self) -> dict[str, str]:
    """The same tokenizer for transformers."""
    from tsd_jax import tokenizers

    card = dict(
      tokenizer_class="PreTrainedTokenizerFast",
      eos_token="<end>",
      pad_token="<pad>",
      clean_up_tokenization_spaces=False,
    )
    return {
      "tokenizer.json": json.dumps(
        tokenizers.word_level(self._ids, self._special)
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
  from tsd_jax import methods
  from tsd_jax.rollout import RolloutConfig
  from tsd_jax.search.tree import SearchConfig
  from tsd_jax.tasks.task import Score

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
      prompts=_PROMPTS, samples=_GROUP, forks=0, baseline_prompts=_PROMPTS
    ),
    loss=methods.LossConfig(champion_weight=0.0),
    optimizer=methods.OptimizerConfig(minibatches=1, learning_rate=1e-5),
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
      peak_memory_gb=peak_memory() / 1e9,
    )


def peak_memory() -> int:
  """The most bytes that this process ever held, as Linux counts them."""
  # Not getrusage, which begins with what the parent held.
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  raise config_lib.UserError("/proc/self/status has no VmHWM: use Linux")


def ours(work, clock: Clock) -> dict[str, list[float]]:
  """Runs our loop."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx

  from tsd_jax import decode, learner
  from tsd_jax.models import transformer
  from tsd_jax.rollout import rollout

  case = make_case(work["vocab_size"], work["length"], work["steps"])
  task, config = case.make_task(), case.learner_config()
  graphdef, params = transformer.create(model_config(work["shape"]), 0)
  reference = jax.tree.map(jnp.copy, params)
  state = learner.init_state(config, params)
  del params  # The loop holds them while it runs.
  chunk = learner.make_train_chunk(graphdef, task, config)
  hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}
  key = jax.random.key(case.seed)
  prompts = np.array(work["prompts"], np.int32).reshape(
    work["steps"], 1, _PROMPTS, work["length"]
  )
  clock.step_ended()
  for prompt_1BP in prompts:
    state, metrics = chunk(
      state, jnp.asarray(prompt_1BP), reference, hyper, key
    )
    metrics = jax.device_get(metrics)
    clock.step_ended()
  figures = clock.figures()

  @jax.jit
  def sample(params, prompt_BP):
    model = nnx.merge(graphdef, params)
    prefix = decode.prefill(model, prompt_BP)
    return rollout(model, task, prompt_BP, prefix, key, config.rollout)

  alone = Clock()
  timed = alone.samples(
    lambda prompt_BP: jax.block_until_ready(sample(state.params, prompt_BP))
  )
  for (prompt_BP,) in prompts:
    alone.step_ended()
    timed(prompt_BP)
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

  def reward(completions, **unused):
    del unused
    return rewards(map(words.encode, completions), work["vocab_size"])

  def update_and_mark(*args, **kwargs):
    update(*args, **kwargs)
    jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
    clock.step_ended()

  cluster.rollout.generate = clock.samples(cluster.rollout.generate)
  cluster.update_actor = update_and_mark
  texts = [words.decode(prompt) for prompt in work["prompts"]]
  batches = np.array(texts).reshape(-1, _PROMPTS)
  clock.step_ended()
  tunix_grpo.train(
    case, cluster, mesh, lambda prompts, completions, **_: reward(completions),
    ({"prompts": batch} for batch in batches),
  )  # fmt: skip
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


def start_work(python: str, work) -> dict:
  """Runs a process and returns its figures.

  Raises:
    UserError: it failed.
  """
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "work.json"
    file.write_text(json.dumps(work))
    env = dict(os.environ, HF_HUB_OFFLINE="1", JAX_PLATFORMS="cpu")
    # What is read from a cache was not compiled.
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    command = [python, "-m", "experiments.baselines.step_time"]
    ended = subprocess.run(
      [*command, f"--work={file}"], cwd=_ROOT, env=env, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if ended.returncode:
      print(ended.stdout, file=sys.stderr)
      raise config_lib.UserError(
        f"{work['library']} failed on {work['shape']}; its output stands above"
      )
    return json.loads(file.with_suffix(".done").read_text())


def make_work(shape: str, start: pathlib.Path) -> dict:
  """What all libraries are asked to do; writes the weights that they read."""
  import numpy as np

  from experiments.baselines import trl_grpo
  from tsd_jax.models import hf, transformer

  size, model = SIZES[shape], model_config(shape)
  steps = size.warm + size.steps
  _, params = transformer.create(model, 0)
  words = Words(model.vocab_size)
  hf.save(start, model, params, words, max_length=2 * size.length)
  prompts = np.random.default_rng(0).integers(
    model.vocab_size, size=(steps * _PROMPTS, size.length)
  )
  return dict(
    shape=shape,
    start=str(start),
    steps=steps,
    length=size.length,
    vocab_size=model.vocab_size,
    prompts=prompts.tolist(),
    trl=trl_grpo.settings(make_case(model.vocab_size, size.length, steps)),
  )


def summary(turns: list[dict], warm: int) -> dict[str, float]:
  """The figures of one library and shape.

  Args:
    turns: of its processes.
    warm: how many steps of each are not counted.
  """

  def middle(name):
    return statistics.median(x for turn in turns for x in turn[name][warm:])

  step, rollout = middle("step_seconds"), middle("rollout_seconds")
  first = statistics.median(sum(turn["step_seconds"][:warm]) for turn in turns)
  return dict(
    step_seconds=step,
    wall_seconds=middle("wall_seconds"),
    rollout_seconds=rollout,
    update_seconds=step - rollout,
    compile_seconds=first - warm * step,
    peak_memory_gb=max(turn["peak_memory_gb"] for turn in turns),
  )


def rows_of(shape: str, turns_of: dict[str, list[dict]]) -> list[dict]:
  """The table's rows of one shape, with ratios of theirs over ours."""
  found = {
    library: summary(turns, SIZES[shape].warm)
    for library, turns in turns_of.items()
  }
  names = dict(step="step_seconds", compile="compile_seconds")
  names["memory"] = "peak_memory_gb"
  return [
    dict(shape=shape, library=library, **row)
    | {f"{k}_over_ours": row[n] / found["ours"][n] for k, n in names.items()}
    for library, row in found.items()
  ]


def main(overrides):
  """Starts the processes, prints the rows and writes the JSON."""
  del overrides
  logging.set_verbosity(logging.WARNING)  # Tunix prints samples of each step.
  if _WORK.value:
    return work_on(pathlib.Path(_WORK.value))
  if unknown := sorted(set(_SHAPES.value) - set(SIZES)):
    raise config_lib.UserError(
      f"--shapes={','.join(unknown)} is unknown: use {', '.join(SIZES)}"
    )
  pythons = dict(ours=sys.executable, trl=_TRL.value, tunix=_TUNIX.value)
  pythons = {name: python for name, python in pythons.items() if python}
  for name, python in pythons.items():
    if shutil.which(python) is None:
      raise config_lib.UserError(f"--{name}={python} is no program")
  rows, versions = [], {}
  for shape in _SHAPES.value:
    turns_of = {name: [] for name in pythons}
    with tempfile.TemporaryDirectory() as folder:
      work = make_work(shape, pathlib.Path(folder) / "start")
      for _ in range(SIZES[shape].turns):
        for name, python in pythons.items():
          turn = start_work(python, work | {"library": name})
          versions |= turn["versions"]
          turns_of[name].append(turn)
          print(f"{shape}, {name}: {json.dumps(turn)}", flush=True)
    rows += rows_of(shape, turns_of)
    write(rows, versions, [name for name in pythons if name != "ours"])


def write(rows, versions, others) -> None:
  """Writes the rows where a file was asked for."""
  from experiments.benchmarks import table

  command = [
    "taskset -c 0 python -m experiments.baselines.step_time",
    f"--shapes={','.join(_SHAPES.value)}",
    *(f"--{name}=PYTHON" for name in others),
  ]
  about = (
    "One training step of GRPO, 8 prompts of 4 samples, on one core: medians "
    "of processor seconds; ratios are theirs over ours."
  )
  content = {"about": about} | table.origin(" ".join(command)) | {"rows": rows}
  content["versions"] |= versions
  table.write(_OUTPUT.value, content)


if __name__ == "__main__":
  config_lib.run(main)
