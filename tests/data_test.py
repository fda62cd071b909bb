"""Tests of the datasets and of the order of the prompts."""

import collections
import json
import multiprocessing
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Prompts
from tsd_jax.models import symbols
from tsd_jax.tasks import countdown, data
from tsd_jax.tasks.countdown import CountdownConfig

# Two hundred problems or so: built in a fraction of a second.
SMALL = CountdownConfig(max_number=4, validation_size=20, test_size=30)


def load(*arguments):
  """Returns the tokens of a split's prompts."""
  return data.load_problems(*arguments).tokens_BP


def canonical(prompt_QP):
  """Returns the set of (sorted numbers, target)."""
  return {(tuple(sorted(p[:-2])), p[-1]) for p in prompt_QP.tolist()}


def folder_of(root):
  """Returns the one dataset folder below `root`."""
  (folder,) = pathlib.Path(root).glob("tsd_countdown/*/*")
  return folder


@pytest.mark.parametrize("numbers", [3, 4])
def test_no_problem_is_in_two_splits(numbers):
  """Canonical forms are disjoint, and together they are all problems."""
  config = CountdownConfig(numbers=numbers, split_by="problem")
  splits = data.split_problems(config)
  sizes = {split: len(problems) for split, problems in splits.items()}
  assert (sizes["validation"], sizes["test"]) == (512, 512)
  union = set().union(*splits.values())
  assert len(union) == sum(sizes.values())
  assert union == set(config.problems())
  for problems in splits.values():
    assert all(list(given) == sorted(given) for given, _ in problems)


@pytest.mark.parametrize("numbers", [3, 4])
def test_numbers_of_held_out_problems_are_in_no_other_split(numbers):
  """Nor are most of a held-out part's problems of a few numbers."""
  config = CountdownConfig(numbers=numbers, tuning_size=512)
  splits = data.split_problems(config)
  numbers_of = {s: {given for given, _ in p} for s, p in splits.items()}
  assert sum(map(len, numbers_of.values())) == len(
    set().union(*numbers_of.values())
  )
  assert [len(splits[s]) for s in ("test", "validation", "tuning")] == [512] * 3
  assert all(len(found) >= 45 for found in numbers_of.values())
  # A part's problems are as hard as all are: their targets are spread alike.
  means = [np.mean([target for _, target in p]) for p in splits.values()]
  assert np.ptp(means) < 8


@pytest.mark.parametrize(
  "config",
  [
    CountdownConfig(),
    CountdownConfig(numbers=4, max_number=5, validation_size=99, test_size=99),
  ],
)
def test_stored_prompts_do_not_overlap_either(config, tmp_path):
  """What is read back is the split, up to the order of the numbers."""
  split_problems = data.split_problems(config)
  seen, shuffled = set(), 0
  for split in data.filled_splits(config):
    prompt_QP = load(config, split, tmp_path)
    assert prompt_QP.dtype == np.int32
    assert prompt_QP.shape == (len(split_problems[split]), config.numbers + 2)
    assert np.all(prompt_QP[:, -2] == symbols.SEPARATOR)
    assert canonical(prompt_QP) == set(split_problems[split])
    assert not canonical(prompt_QP) & seen
    seen |= canonical(prompt_QP)
    numbers_NM = prompt_QP[:, :-2]
    shuffled += np.any(np.diff(numbers_NM, axis=1) < 0, axis=1).sum()
  assert shuffled > len(seen) / 2  # Sorted numbers would be a hint.


def test_stored_solutions_are_exact(tmp_path):
  """Each record carries a solution of its problem."""
  load(SMALL, "train", tmp_path)
  source = data.ProblemBuilder(config=SMALL, data_dir=tmp_path).as_data_source(
    split="train"
  )
  prompts, responses = zip(
    *((example["prompt"], example["solution"]) for example in source),
    strict=True,
  )
  score = countdown.Countdown(SMALL).score(
    np.array(prompts), np.array(responses)
  )
  assert len(prompts) > 50 and score.correct_X.all()


def test_the_same_settings_give_the_same_data(tmp_path):
  """On any machine, at any time; another seed gives another split."""
  first = load(SMALL, "train", tmp_path / "a")
  np.testing.assert_array_equal(first, load(SMALL, "train", tmp_path / "a"))
  np.testing.assert_array_equal(first, load(SMALL, "train", tmp_path / "b"))
  other = CountdownConfig(
    max_number=4, validation_size=20, test_size=30, seed=1
  )
  assert canonical(load(other, "train", tmp_path / "a")) != canonical(first)


def test_settings_never_share_a_folder(tmp_path):
  """Each field that changes the records changes the folder; rewards do not."""
  base = dict(max_number=4, validation_size=20, test_size=30)
  changes = [
    dict(numbers=4),
    dict(max_number=3, max_target=24),
    dict(max_target=50),
    dict(max_value=150),
    dict(validation_size=21),
    dict(test_size=31),
    dict(seed=7),
  ]
  for count, change in enumerate([{}, *changes], start=1):
    config = CountdownConfig(**{**base, **change})
    load(config, "test", tmp_path)
    assert len(list(tmp_path.glob("tsd_countdown/*"))) == count
  load(CountdownConfig(**base, illegal=0.01), "test", tmp_path)
  assert len(list(tmp_path.glob("tsd_countdown/*"))) == count
  assert not list(tmp_path.glob(".building*"))


def test_the_test_split_does_not_depend_on_the_validation_size():
  """Results stay comparable when a run wants less validation."""
  few = CountdownConfig(validation_size=8)
  many = CountdownConfig(validation_size=900)
  assert data.split_problems(few)["test"] == data.split_problems(many)["test"]


def test_data_dir_from_the_environment(tmp_path, monkeypatch):
  """An argument wins over the variable, which wins over the cache folder."""
  monkeypatch.setenv("TSD_JAX_DATA_DIR", str(tmp_path / "variable"))
  load(SMALL, "test")
  assert folder_of(tmp_path / "variable").is_dir()
  load(SMALL, "test", tmp_path / "argument")
  assert folder_of(tmp_path / "argument").is_dir()
  monkeypatch.delenv("TSD_JAX_DATA_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert data.default_data_dir() == tmp_path / "tsd_jax"
  monkeypatch.delenv("XDG_CACHE_HOME")
  expected = pathlib.Path.home() / ".cache" / "tsd_jax"
  assert data.default_data_dir() == expected


def test_bad_splits_are_refused(tmp_path):
  """Before anything is built."""
  with pytest.raises(UserError, match="split='dev' is unknown.*validation"):
    load(SMALL, "dev", tmp_path)
  empty = CountdownConfig(max_number=4, validation_size=0, test_size=9)
  with pytest.raises(UserError, match="empty: set validation_size above 0"):
    load(empty, "validation", tmp_path)
  assert len(load(empty, "test", tmp_path)) == 9
  greedy = CountdownConfig(max_number=2, validation_size=500)
  message = "test_size=512 and .* nothing to train on: there are 18 .*_size=1"
  with pytest.raises(UserError, match=message):
    load(greedy, "train", tmp_path)


def _truncate(folder):
  path = next(folder.glob("*train*"))
  path.write_bytes(path.read_bytes()[:-100])


def _flip(folder):
  path = next(folder.glob("*train*"))
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def _remove_records(folder):
  next(folder.glob("*train*")).unlink()


def _break_info(folder):
  (folder / "dataset_info.json").write_text("{")


def _drop_one_from_info(folder):
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  lengths = info["splits"][0]["shardLengths"]
  lengths[0] = str(int(lengths[0]) - 1)
  path.write_text(json.dumps(info))


def _remove_all(folder):
  for path in folder.iterdir():
    path.unlink()


@pytest.mark.parametrize(
  "damage",
  [
    _truncate,
    _flip,
    _remove_records,
    _break_info,
    _drop_one_from_info,
    _remove_all,
  ],
)
def test_damage_is_one_clear_error(damage, tmp_path):
  """The message names the folder to delete, and deleting it helps."""
  good = load(SMALL, "train", tmp_path)
  folder = folder_of(tmp_path)
  damage(folder)
  with pytest.raises(UserError, match="delete that folder") as error:
    load(SMALL, "train", tmp_path)
  assert str(folder) in str(error.value)
  _remove_all(folder)
  folder.rmdir()
  np.testing.assert_array_equal(load(SMALL, "train", tmp_path), good)


def _load(root, queue):
  queue.put(load(SMALL, "train", root).sum())


def test_processes_may_build_at_once(tmp_path):
  """All get the same data, and no temporary folder stays behind."""
  context = multiprocessing.get_context("spawn")
  queue = context.Queue()
  workers = [
    context.Process(target=_load, args=(tmp_path, queue)) for _ in range(3)
  ]
  for worker in workers:
    worker.start()
  sums = {queue.get(timeout=60) for _ in workers}
  for worker in workers:
    worker.join(timeout=60)
    assert worker.exitcode == 0
  assert sums == {load(SMALL, "train", tmp_path).sum()}
  assert [path.name for path in tmp_path.iterdir()] == ["tsd_countdown"]


def test_the_loser_of_a_race_keeps_the_winners_data(tmp_path):
  """A build that ends second is thrown away."""
  load(SMALL, "train", tmp_path)
  folder = folder_of(tmp_path)
  before = folder.stat().st_ino
  data._build(SMALL, tmp_path, folder)
  assert folder.stat().st_ino == before
  assert [path.name for path in tmp_path.iterdir()] == ["tsd_countdown"]


def test_tensorflow_is_never_imported(tmp_path):
  """Nor needed to build and to read."""
  program = (
    "from tsd_jax.tasks import data\n"
    "from tsd_jax.tasks.countdown import CountdownConfig\n"
    "config = CountdownConfig(max_number=4, validation_size=2, test_size=3)\n"
    f"assert len(data.load_problems(config, 'test', {str(tmp_path)!r})) == 3\n"
    "import sys\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  root = pathlib.Path(data.__file__).parents[2]
  subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def numbered(count):
  """Returns prompts that name themselves."""
  token_QP = np.arange(count * 2, dtype=np.int32).reshape(count, 2)
  return Prompts(token_QP, np.full(count, 2), np.arange(count) + 100)


def iterator(count=10, batch_size=4, seed=0, **kwargs):
  """Returns an iterator over numbered prompts."""
  return data.PromptIterator(
    numbered(count), batch_size=batch_size, seed=seed, **kwargs
  )


def test_every_epoch_visits_every_prompt_once_in_a_new_order():
  """No prompt is dropped where a batch runs across the end of an epoch."""
  prompts = iterator().next_batches(5)  # Two epochs of ten prompts.
  token_IBP = prompts.tokens_BP
  assert token_IBP.shape == (5, 4, 2) and token_IBP.dtype == np.int32
  np.testing.assert_array_equal(prompts.example_B, token_IBP[..., 0] // 2 + 100)
  first, second = token_IBP[..., 0].reshape(2, 10) // 2
  assert sorted(first) == sorted(second) == list(range(10))
  assert list(first) != list(second)
  assert list(first) != list(range(10))
  np.testing.assert_array_equal(token_IBP[..., 1], token_IBP[..., 0] + 1)


def test_the_size_of_a_call_does_not_matter():
  """Only the number of batches taken so far does."""
  whole = iterator().next_batches(6).tokens_BP
  parts = iterator()
  joined = np.concatenate([parts.next_batches(n).tokens_BP for n in (1, 3, 2)])
  np.testing.assert_array_equal(joined, whole)


def test_seeds_differ_in_every_epoch():
  """Epoch 1 of seed 0 is not epoch 0 of seed 1."""
  orders = collections.Counter()
  for seed in range(4):
    epochs = iterator(count=50, batch_size=50, seed=seed).next_batches(4)
    orders.update(tuple(epoch.tokens_BP[:, 0]) for epoch in epochs)
  assert len(orders) == 16


def test_a_batch_may_be_larger_than_the_data():
  """It then holds whole epochs, and no prompt more often than it must."""
  (batch_BP,) = iterator(count=3, batch_size=8).next_batches(1)
  counts = np.bincount(batch_BP.tokens_BP[:, 0] // 2)
  assert sorted(counts) == [2, 3, 3]


def test_a_resumed_iterator_is_identical():
  """The state goes through JSON, as a checkpoint stores it."""
  original = iterator()
  original.next_batches(3)
  state = json.loads(json.dumps(original.get_state()))
  expected = original.next_batches(7)
  resumed = iterator()
  resumed.set_state(state)
  np.testing.assert_array_equal(
    resumed.next_batches(7).tokens_BP, expected.tokens_BP
  )
  assert resumed.get_state() == original.get_state()


def test_a_state_of_other_batches_is_refused():
  """Resuming would otherwise repeat and skip prompts without a word."""
  state = iterator().get_state()
  with pytest.raises(ValueError, match="seed=0, this iterator has 1"):
    iterator(seed=1).set_state(state)
  with pytest.raises(ValueError, match="batch_size=4, this iterator has 5"):
    iterator(batch_size=5).set_state(state)
  with pytest.raises(ValueError, match="prompts="):
    iterator(count=11).set_state(state)
  with pytest.raises(ValueError, match="a state has"):
    iterator().set_state({"next_batch": 1})
  with pytest.raises(ValueError, match="next_batch=-1"):
    iterator().set_state({**state, "next_batch": -1})


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_one_global_order(process_count):
  """Slices laid side by side are the batches of a single process."""
  whole = iterator(batch_size=8).next_batches(5).tokens_BP
  slices = []
  for index in range(process_count):
    part = iterator(
      batch_size=8, process_index=index, process_count=process_count
    )
    part.set_state(iterator(batch_size=8).get_state())
    slices.append(part.next_batches(5).tokens_BP)
  assert slices[0].shape == (5, 8 // process_count, 2)
  np.testing.assert_array_equal(np.concatenate(slices, axis=1), whole)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(batch_size=0), "batch_size=0"),
    (dict(batch_size=3, process_count=2), "process_count=2"),
    (dict(process_index=2, process_count=2), "process_index=2"),
    (dict(seed=-1), "seed=-1"),
    (dict(count=0), "there are no prompts"),
  ],
)
def test_iterator_refuses_bad_arguments(kwargs, message):
  """Errors print the numbers that do not fit."""
  with pytest.raises(ValueError, match=message):
    iterator(**kwargs)
  with pytest.raises(ValueError, match="num_iterations=0"):
    iterator().next_batches(0)


@pytest.mark.parametrize("head", [5, 6])
def test_a_prompt_needs_a_token_beside_the_common_ones(
  head, tmp_path, monkeypatch
):
  """What follows the head is run by itself: of nothing there is no state."""
  same_QP = np.ones((4, 6), np.int32)
  same_QP[:, 5] = symbols.PAD
  monkeypatch.setattr(data, "_read_prompts", lambda _: (same_QP, np.arange(4)))
  task = type(SMALL.make())
  monkeypatch.setattr(task, "prompt_pad_id", symbols.PAD)
  monkeypatch.setattr(task, "shared_prefix_length", head)
  with pytest.raises(ValueError, match="let each have a token of its own"):
    data.load_problems(SMALL, "train", tmp_path)
  monkeypatch.setattr(task, "shared_prefix_length", 4)
  assert len(data.load_problems(SMALL, "train", tmp_path)) == 4
