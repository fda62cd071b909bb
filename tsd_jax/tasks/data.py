"""A task's problems as a tensorflow-datasets dataset, and batches of prompts.

TensorFlow is never imported: records are array_record files that are read
through `as_data_source`, and the order of the prompts comes from grain.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Prompts
from tsd_jax.tasks.task import Problem, TaskConfig, as_prompts

SPLITS = ("train", "validation", "test", "tuning")
_DATA_DIR_VARIABLE = "TSD_JAX_DATA_DIR"
_DIGESTS = "sha256.json"  # Lies beside the records, written last.
_FILE_BYTES = 2**33  # Of the records' files: no bound but on nonsense.
_READ_SIZE = 10_000  # Records decoded at once: bounds the memory in between.


def default_data_dir() -> pathlib.Path:
  """Returns `$TSD_JAX_DATA_DIR`, or a folder of the user's cache."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(
    os.environ.get(_DATA_DIR_VARIABLE) or pathlib.Path(cache) / "tsd_jax"
  )


# Test problems come first: they stay the same whatever the others' sizes are.
_HELD_OUT = ("test", "validation", "tuning")
_OF_GROUPS = 10  # One in so many is held out for each of them.


def split_problems(config: TaskConfig) -> dict[str, list[Problem]]:
  """Splits the canonical problems: no group of them is in two splits.

  A held-out part draws its problems from a tenth of the groups, or from more if
  it must: a few problems of many families say more than many of a few. What it
  leaves of them is in no split.

  Args:
    config: its seed decides the split, its sizes the held-out parts.

  Returns:
    A list of canonical problems, in random order, for each of `SPLITS`.

  Raises:
    UserError: the held-out parts leave no problem to train on.
  """
  groups: dict[Problem, list[Problem]] = {}
  for problem in config.problems():
    groups.setdefault(config.group(problem), []).append(problem)
  rng, found = np.random.default_rng(config.seed), list(groups.values())
  count = sum(map(len, found))
  alone = len(found) == count
  left = [found[index] for index in rng.permutation(len(found))]
  splits, taken = {}, 0
  for split in _HELD_OUT:
    size, problems = getattr(config, f"{split}_size"), []
    end = taken + min(size, len(left) // _OF_GROUPS)
    while taken < len(left) and (taken < end or len(problems) < size):
      problems += left[taken]
      taken += 1
    splits[split] = problems
  splits["train"] = list(itertools.chain.from_iterable(left[taken:]))
  if not alone:  # Else they are in a random order already.
    splits = {name: _mixed(part, rng) for name, part in splits.items()}
  for split in _HELD_OUT:
    splits[split] = splits[split][: getattr(config, f"{split}_size")]
  if not splits["train"]:
    in_groups = "" if alone else f" in {len(found)} groups"
    part = max(1, count // (5 if alone else 10))
    raise UserError(
      f"validation_size={config.validation_size}, "
      f"test_size={config.test_size} and tuning_size={config.tuning_size} "
      f"leave nothing to train on: there are {count} problems{in_groups}; use "
      f"for instance --config.task.validation_size={part} "
      f"--config.task.test_size={part}"
    )
  return splits


def _mixed(problems: list[Problem], rng: np.random.Generator) -> list[Problem]:
  return [problems[index] for index in rng.permutation(len(problems))]


@dataclasses.dataclass(eq=False)
class _BuilderConfig(tfds.core.BuilderConfig):
  """A tfds config that knows the task's config."""

  task: TaskConfig | None = None

  def __str__(self) -> str:
    """Keeps tfds' log line about custom configs short."""
    return self.name


class ProblemBuilder(tfds.core.GeneratorBasedBuilder):
  """Problems of a task, each with one solution."""

  name = "tsd"
  VERSION = tfds.core.Version("4.0.0")
  RELEASE_NOTES = {
    "3.0.0": "Records name the example that they come from.",
    "4.0.0": "No group of problems is in two splits; see TaskConfig.group.",
  }

  # Nothing is downloaded. Left unset, tfds 4.9.10 looks for checksums beside
  # this file, with a package that it imports but does not declare.
  url_infos = None

  def __init__(self, *, config: TaskConfig, data_dir: os.PathLike[str] | str):
    """Names the dataset's folder after its task and settings.

    Args:
      config: the task's config.
      data_dir: folder of all datasets.
    """
    self._task = config
    # tfds reads it of the instance as well as of the class.
    vars(self)["name"] = f"tsd_{config.make().name}"
    super().__init__(
      config=_BuilderConfig(name=config.dataset, task=config),
      data_dir=os.fspath(data_dir),
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    task = self._task.make()
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        f"Problems of {task.name}: the tokens of a prompt and of one correct "
        "response."
      ),
      features=tfds.features.FeaturesDict(
        {
          "prompt": tfds.features.Tensor(
            shape=(task.prompt_length,), dtype=np.int32
          ),
          "solution": tfds.features.Tensor(
            shape=(task.response_length,), dtype=np.int32
          ),
          "example": np.int32,
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    problems = split_problems(self._task)
    # tfds refuses a split without examples; such a split is simply not there.
    return {
      split: self._generate_examples(split, problems[split])
      for split in SPLITS
      if problems[split]
    }

  def _generate_examples(self, split: str, problems: list[Problem]):
    config = self._task
    rng = np.random.default_rng((config.seed, SPLITS.index(split)))
    place = {problem: i for i, problem in enumerate(config.problems())}
    for index, problem in enumerate(problems):
      posed = config.pose(problem, rng)
      example = place[problem] if posed.example is None else posed.example
      yield (
        index,
        {
          "prompt": posed.prompt_P,
          "solution": posed.response_T,
          "example": example,
        },
      )


def load_problems(
  config: TaskConfig,
  split: str,
  data_dir: os.PathLike[str] | str | None = None,
) -> Prompts:
  """Returns all prompts of a split, building the dataset at its first use.

  Args:
    config: the task's config.
    split: one of `SPLITS`.
    data_dir: folder of all datasets; `default_data_dir()` if None.

  Returns:
    The prompts, NumPy arrays, always in the same order.

  Raises:
    UserError: the split is unknown or empty, or the dataset's folder is
      damaged.
  """
  if split not in SPLITS:
    raise UserError(f"{split=} is unknown: use one of {', '.join(SPLITS)}")
  if split not in filled_splits(config):
    raise UserError(f"{split=} is empty: set {split}_size above 0")
  root = pathlib.Path(data_dir or default_data_dir()).expanduser().absolute()
  folder = root / f"tsd_{config.make().name}" / config.dataset
  folder /= str(ProblemBuilder.VERSION)
  if not folder.exists():
    with _writing(root):
      _build(config, root, folder)
  try:
    _check_digests(folder)
    # Only now the reader, which may not survive a broken file.
    builder: Any = ProblemBuilder(config=config, data_dir=root)
    source = builder.as_data_source(split=split)
    prompt_QP, example_Q = _read_prompts(source)
  except Exception as error:
    raise UserError(
      f"the dataset in {folder} is damaged ({type(error).__name__}: {error}); "
      "delete that folder, and it is built anew at the next use"
    ) from error
  task = config.make()
  head = task.shared_prefix_length
  if np.any(prompt_QP[:, :head] != prompt_QP[:1, :head]):
    raise ValueError(
      f"shared_prefix_length={head} of {task.name}, but prompts differ before"
    )
  prompts = as_prompts(task, prompt_QP, example_Q)
  if head and np.any(np.asarray(prompts.length_B) <= head):
    raise ValueError(
      f"shared_prefix_length={head} of {task.name}, but a prompt is no longer "
      "than that: let each have a token of its own"
    )
  prompts = dataclasses.replace(prompts, media=config.media(prompts))
  return jax.device_get(prompts)


def filled_splits(config: TaskConfig) -> list[str]:
  """Those of `SPLITS` that hold problems."""
  return [
    split
    for split in SPLITS
    if split == "train" or getattr(config, f"{split}_size") > 0
  ]


def load_splits(config: TaskConfig) -> dict[str, Prompts]:
  """All prompts of every split that holds any; see `load_problems`."""
  return {
    split: load_problems(config, split) for split in filled_splits(config)
  }


def digests(
  config: TaskConfig, splits: Mapping[str, Prompts]
) -> dict[str, str]:
  """The digest of each split: what a run remembers of its problems."""
  return {split: digest(config, prompts) for split, prompts in splits.items()}


def digest(config: TaskConfig, prompts: Prompts) -> str:
  """A SHA-256 of prompts and of what their graders read, in their order.

  Media are left out: they are a function of the rest.
  """
  sha = hashlib.sha256()
  for leaf in jax.tree.leaves(dataclasses.replace(prompts, media=None)):
    array = np.ascontiguousarray(leaf)
    sha.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
  for index in prompts.example_B.tolist():
    sha.update(json.dumps(config.example(index), sort_keys=True).encode())
  return sha.hexdigest()


@contextlib.contextmanager
def _writing(root: pathlib.Path):
  """Says in one line that a dataset cannot be written."""
  try:
    yield
  except (OSError, RuntimeError) as error:
    # array_record knows no OSError.
    if not isinstance(error, OSError) and "write() failed" not in str(error):
      raise
    raise UserError(
      f"no dataset can be written to {root} ({str(error)[:200]}): make room "
      f"there, or set {_DATA_DIR_VARIABLE} to a folder that has some"
    ) from error


def _build(
  config: TaskConfig, root: pathlib.Path, folder: pathlib.Path
) -> None:
  """Builds in a temporary folder and renames: readers see all or nothing."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  # On the same file system as `folder`, or the rename would not be atomic.
  with tempfile.TemporaryDirectory(prefix=".building_", dir=root) as temporary:
    builder = ProblemBuilder(config=config, data_dir=temporary)
    logging.info("building %s", folder)
    tfds.disable_progress_bar()
    # Its messages name the temporary folder.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
    built = pathlib.Path(builder.data_dir)
    digests = json.dumps(_digests(built), indent=2, sort_keys=True)
    (built / _DIGESTS).write_text(digests, encoding="utf-8")
    try:
      built.rename(folder)
    except OSError:
      # A folder that holds files cannot be replaced. If it is there now,
      # another process has won with the same content.
      if not (folder / _DIGESTS).exists():
        raise


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of every file in the folder, but for the list."""
  return {
    path.name: hashlib.sha256(
      outside_files.read_bytes(path, _FILE_BYTES)
    ).hexdigest()
    for path in folder.iterdir()
    if path.name != _DIGESTS
  }


def _check_digests(folder: pathlib.Path) -> None:
  """Raises ValueError where a file is missing or not what was built."""
  expected = outside_files.read_object(folder / _DIGESTS)
  found = _digests(folder)
  wrong = [name for name in expected if found.get(name) != expected[name]]
  if wrong:
    raise ValueError(f"missing or changed: {', '.join(sorted(wrong))}")


def _read_prompts(source: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns prompt_QP and example_Q of a tfds data source."""
  prompts, places = [], []
  for start in range(0, len(source), _READ_SIZE):
    rows = range(start, min(start + _READ_SIZE, len(source)))
    examples = source.__getitems__(list(rows))
    prompts.append(np.stack([example["prompt"] for example in examples]))
    places.append(np.array([example["example"] for example in examples]))
  return np.concatenate(prompts), np.concatenate(places).astype(np.int32)


class PromptIterator:
  """Endless batches of prompts, in an order that a seed decides.

  Every epoch visits every prompt once, in a new order. Batches run across the
  end of an epoch, so no prompt is dropped, and a batch larger than the data
  holds whole epochs. The global order does not depend on the number of
  processes: each takes its own rows of the same global batches.
  """

  def __init__(
    self,
    problems: Prompts,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Starts at the first batch.

    Args:
      problems: all prompts, the same in every process.
      batch_size: B, over all processes.
      seed: decides the order.
      process_index: this process's rank; it gets rows
        [process_index * B / process_count, (process_index + 1) * ...).
      process_count: number of processes.

    Raises:
      ValueError: an argument does not fit.
    """
    if not len(problems):
      raise ValueError("there are no prompts to iterate over")
    if not 0 <= seed < 2**32:
      raise ValueError(f"{seed=}: use an integer in 0..2**32-1")
    if not 0 <= process_index < process_count:
      raise ValueError(f"{process_index=} is not below {process_count=}")
    if batch_size < 1 or batch_size % process_count:
      raise ValueError(
        f"{batch_size=} is not a positive multiple of {process_count=}"
      )
    self._problems = problems
    self._seed = seed
    self._batch_size = batch_size
    self._rows = range(
      process_index * batch_size // process_count,
      (process_index + 1) * batch_size // process_count,
    )
    # `seed` mixes its number before `shuffle` adds the epoch to it: with
    # `shuffle(seed=...)` epoch 1 of seed 0 would be epoch 0 of seed 1.
    order = grain.MapDataset.source(range(len(problems))).seed(seed).shuffle()
    self._order = order.repeat()
    self._next_batch = 0

  def next_batches(self, num_iterations: int) -> Prompts:
    """Returns the next batches; leaves lead with I and B / process_count.

    Args:
      num_iterations: I.

    Raises:
      ValueError: `num_iterations` is below 1.
    """
    if num_iterations < 1:
      raise ValueError(f"{num_iterations=}: use 1 or more")
    first = self._next_batch
    index_IB = np.array(
      [
        [self._order[batch * self._batch_size + row] for row in self._rows]
        for batch in range(first, first + num_iterations)
      ]
    )
    self._next_batch = first + num_iterations
    return self._problems[index_IB]

  def get_state(self) -> dict[str, Any]:
    """Returns the position, fit for JSON and equal in every process."""
    return {
      "next_batch": self._next_batch,
      "seed": self._seed,
      "batch_size": self._batch_size,
      "prompts": self._fingerprint,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues where `get_state` was called.

    Args:
      state: from an iterator with the same prompts, batch size and seed; the
        number of processes may differ.

    Raises:
      ValueError: the state belongs to another sequence of batches.
    """
    own = self.get_state()
    if state.keys() != own.keys():
      raise ValueError(f"a state has {sorted(own)}, got {sorted(state)}")
    for field in ("seed", "batch_size", "prompts"):
      if state[field] != own[field]:
        raise ValueError(
          f"the state was saved with {field}={state[field]!r}, this iterator "
          f"has {own[field]!r}: the order would not continue"
        )
    if not isinstance(state["next_batch"], int) or state["next_batch"] < 0:
      raise ValueError(f"next_batch={state['next_batch']!r}: use 0 or more")
    self._next_batch = state["next_batch"]

  @functools.cached_property
  def _fingerprint(self) -> str:
    """Names the prompts, shape included; media are a function of the rest."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(
      dataclasses.replace(self._problems, media=None)
    ):
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return f"{self._problems.tokens_BP.shape}:{digest.hexdigest()[:16]}"


def groups(task: TaskConfig, prompts: Prompts) -> list[int]:
  """A number for each problem, equal where two are of one group."""
  found = [task.group(task.canonical(p)) for p in np.asarray(prompts.tokens_BP)]
  number = {group: i for i, group in enumerate(dict.fromkeys(found))}
  return [number[group] for group in found]
