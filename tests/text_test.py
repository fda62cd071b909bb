"""Tasks in text, from a file of problems to a trained run."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tests import small_text
from tests.grading import length, letters, same, signed
from tsd_jax.base import config_json
from tsd_jax.base.errors import UserError
from tsd_jax.models import hf, text_tokenizer
from tsd_jax.planning import aot
from tsd_jax.rewards.reward import Scorer, response_mask
from tsd_jax.run import directory, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data
from tsd_jax.tasks.task import Task, as_prompts
from tsd_jax.tasks.text import TextConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = [f"{a}{b}" for a in "abcdef" for b in "aeiou"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A random model with the small tokenizer."""
  folder = tmp_path_factory.mktemp("text")
  tokenizer, config, params = small_text.random_model(folder)
  # A model that often ends what it writes, or there is nothing to grade.
  rows = params["embedding_VD"]
  rows[...] = rows[...].at[tokenizer.eos_id].multiply(8.0)
  hf.save(folder / "model", config, params, tokenizer, max_length=64)
  return folder / "model"


def write(file, lines):
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(file)


def problems(**fields):
  lines = []
  for i, word in enumerate(WORDS):
    text = f"Write {word}"
    line = {"letters": word} | fields
    if i % 2:
      line["messages"] = [{"role": "user", "content": text}]
    else:
      line["prompt"] = text
    lines.append(line)
  return lines


def digests(config):
  return data.digests(config, data.load_splits(config))


@pytest.mark.parametrize("split", data.SPLITS[:3])
@pytest.mark.parametrize("change", ["answer", "prompt"])
def test_a_changed_line_changes_the_digest_of_its_split(
  model, tmp_path, split, change
):
  lines = problems()
  before = configure(model, write(tmp_path / "a.jsonl", lines))
  place = data.load_problems(before, split).example_B[0]
  if change == "answer":
    lines[place] |= {"letters": "other"}
  else:
    lines[place].pop("messages", None)
    lines[place] |= {"prompt": "Write something else", "problem": "other"}
  after = configure(model, write(tmp_path / "b.jsonl", lines))
  old, new = digests(before), digests(after)
  assert [name for name in old if old[name] != new[name]] == [split]
  run = dataclasses.replace(
    small_text.experiment(str(model), before.file), task=before
  )
  directory.prepare(run, tmp_path / "run", old)
  directory.prepare(run, tmp_path / "run", old)
  with pytest.raises(UserError, match=f"prompts or examples of {split} have"):
    directory.prepare(run, tmp_path / "run", new)
  # Nothing is written over what the run began with.
  directory.prepare(run, tmp_path / "run", old)


def configure(model, file, **changes):
  options = dict(
    file=file, tokenizer=str(model), reward=letters, prompt_length=48,
    response_length=8, correct_at=0.5, validation_size=8, test_size=4,
  )  # fmt: skip
  return TextConfig(**options | changes)


def test_a_response_is_graded_as_the_function_grades_its_text(model, tmp_path):
  log = tmp_path / "log"
  file = write(tmp_path / "p.jsonl", problems(log=str(log), reply="It is"))
  config = configure(model, file)
  task = config.make()
  assert isinstance(task, Task) and hash(task) == hash(
    configure(model, file).make()
  )
  assert task.pad_id != task.eos_id == task.prompt_pad_id
  encode, eos = task.tokenizer.encode, task.eos_id
  # The grader sees special tokens, in which nothing can hide.
  texts = ["ab", "bb", "q", "", "ab", "xyz", "a<|im_start|><|im_start|>b"]
  rows = np.full((2, len(texts), 8), task.pad_id)
  for i, text in enumerate(texts):
    ids = [*encode(text), eos]
    rows[:, i, : len(ids)] = ids
  rows[:, 4] = encode("a")[0]  # Unfinished.
  prompts = as_prompts(
    task, np.stack([config.lines[i].prompt_P for i in (0, 1)])
  )
  score = jax.jit(Scorer(task.reward, task.end_ids))(prompts, rows)
  for i, word in enumerate(WORDS[:2]):
    expected = [
      sum(c in word for c in t) / max(1, len(t)) if t != "q" and j != 4 else 0.0
      for j, t in enumerate(texts)
    ]
    np.testing.assert_allclose(score.reward_X[i], expected, atol=1e-6)
    np.testing.assert_array_equal(
      score.correct_X[i], [e >= 0.5 for e in expected]
    )
  said = [eval(line) for line in log.read_text().splitlines()]
  prompt = f"Write {WORDS[0]}It is"
  assert (prompt, "bb") in said and said.count((prompt, "ab")) == 1
  chat = next(p for p, _ in said if "<|im_start|>" in p)
  assert chat.endswith("assistant\nIt is") and WORDS[1] in chat


def test_every_token_that_ends_generation_ends_a_response(model, tmp_path):
  folder = shutil.copytree(model, tmp_path / "model")
  (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
  file = write(tmp_path / "p.jsonl", problems(solution="ab"))
  task = configure(folder, file).make()
  assert (task.eos_id, task.end_ids) == (2, (2, 0))
  assert task.config.lines[0].response_T[-1] != 0  # Solutions end as before.
  assert task.pad_id not in task.end_ids
  ab, c = task.tokenizer.encode("ab"), task.tokenizer.encode("c")
  rows = np.full((1, 3, 8), task.pad_id)
  for row, ids in zip(rows[0], ([*ab, 0, *c], [*ab, 2, *c], ab), strict=True):
    row[: len(ids)] = ids
  prompts = as_prompts(task, task.config.lines[0].prompt_P[None])
  score = Scorer(task.reward, task.end_ids)(prompts, rows)
  expected = sum(letter in WORDS[0] for letter in "ab") / 2
  np.testing.assert_allclose(score.reward_X, [[expected, expected, 0]])
  mask_GT = response_mask(jnp.asarray(rows[0]), task.end_ids)
  n = len(ab) + 1
  assert mask_GT.sum(axis=1).tolist() == [n, n, 8]


def test_a_run_beyond_the_models_positions_is_refused(model, tmp_path):
  file = write(tmp_path / "p.jsonl", problems(letters="abcdefghijklmnop"))
  config = small_text.experiment(str(model), file)
  task = dataclasses.replace(config.task, response_length=20)
  with pytest.raises(UserError, match=r"exceed the 64 positions of init="):
    initial_params(dataclasses.replace(config, task=task))


def test_problems_that_share_their_text_are_graded_each_by_its_own(
  model, tmp_path
):
  lines = [
    {"prompt": "Say", "problem": word, "word": word}
    for word in ("aa", "bb", "aa")
  ]
  config = configure(model, write(tmp_path / "p.jsonl", lines), reward=same)
  assert len(config.lines) == 2  # A line that repeats another counts once.
  task = config.make()
  tokens_BGT = np.full((2, 2, 8), task.pad_id)
  for g, word in enumerate(("aa", "bb")):
    ids = [*task.tokenizer.encode(word), task.eos_id]
    tokens_BGT[:, g, : len(ids)] = ids
  prompts = as_prompts(task, np.stack([line.prompt_P for line in config.lines]))
  scorer = jax.jit(Scorer(task.reward, task.end_ids))
  score = scorer(prompts, tokens_BGT)
  np.testing.assert_array_equal(score.reward_X, np.eye(2))
  # They are two problems wherever prompts go, not one that is asked twice.
  config = dataclasses.replace(config, validation_size=0, test_size=0)
  stored = data.load_problems(config, "train", tmp_path / "data")
  assert np.array_equal(stored.tokens_BP[0], stored.tokens_BP[1])
  assert sorted(stored.example_B) == [0, 1]
  asked = data.PromptIterator(stored, batch_size=6, seed=1).next_batches(1)[0]
  score = scorer(asked, tokens_BGT[[0] * 6])
  np.testing.assert_array_equal(score.reward_X, np.eye(2)[asked.example_B])
  assert len(set(asked.example_B.tolist())) == 2
  for example, word in enumerate(("aa", "bb")):
    line = task.describe(stored.tokens_BP[0], tokens_BGT[0, 0], example)
    assert line.endswith(f"reward {float(word == 'aa'):.3f}")


def test_a_reward_has_the_range_that_the_config_says(model, tmp_path):
  """What is unfinished, or goes wrong, is worth the least."""
  lines = [{"prompt": f"Say {word}", "word": word} for word in ("aa", "bb")]
  config = configure(
    model, write(tmp_path / "p.jsonl", lines), reward=signed, low=-2, high=3,
    correct_at=2.5,
  )  # fmt: skip
  task = config.make()
  assert (task.reward.low, task.reward.high) == (-2, 3)
  tokens_BGT = np.full((2, 4, 8), task.pad_id)
  for g, word in enumerate(("aa", "bb", "")):
    ids = [*task.tokenizer.encode(word), task.eos_id]
    tokens_BGT[:, g, : len(ids)] = ids
  tokens_BGT[:, 3] = task.tokenizer.encode("aa")[0]  # Unfinished.
  prompts = as_prompts(task, np.stack([line.prompt_P for line in config.lines]))
  scorer = Scorer(task.reward, task.end_ids)
  score = jax.jit(scorer)(prompts, tokens_BGT)
  np.testing.assert_array_equal(
    score.reward_X, [[3, -1, -2, -2], [-1, 3, -2, -2]]
  )
  np.testing.assert_array_equal(score.correct_X, score.reward_X == 3)
  np.testing.assert_allclose(scorer.unit(score.reward_X)[0], [1, 0.2, 0, 0])
  assert (
    config_json.from_dict(TextConfig, config_json.to_dict(config)) == config
  )


def test_forms_of_a_problem_land_in_one_split(model, tmp_path):
  lines = [
    {"prompt": f"{how} {word}", "problem": word}
    for word in WORDS
    for how in ("Say", "Write")
  ]
  config = configure(model, write(tmp_path / "p.jsonl", [*lines, lines[0]]))
  splits, seen = data.split_problems(config), []
  assert [len(splits[s]) for s in data.SPLITS] == [18, 8, 4, 0]
  for split in data.filled_splits(config):
    prompt_QP = data.load_problems(config, split, tmp_path / "data").tokens_BP
    forms = [config.canonical(prompt_P) for prompt_P in prompt_QP]
    assert sorted(forms) == sorted(splits[split])
    seen += forms
  assert sorted(seen) == sorted(WORDS)
  spaced = [{"prompt": "Say  A"}, {"prompt": "say a"}]
  other = configure(model, write(tmp_path / "q.jsonl", spaced))
  assert other.problems() == ["say a"]


def test_families_that_lines_name_land_in_one_split(model, tmp_path):
  lines = [
    {"prompt": f"{how} {word}", "family": word}
    for word in WORDS
    for how in ("Say", "Write")
  ]
  config = configure(model, write(tmp_path / "p.jsonl", lines))
  splits = data.split_problems(config)
  assert [len(splits[s]) for s in ("validation", "test")] == [8, 4]
  families = [{p.split()[1] for p in problems} for problems in splits.values()]
  assert sum(map(len, families)) == len(set().union(*families)) > 25
  alone = dataclasses.replace(config, split_by="problem")
  assert alone.group("say aa") == "say aa"
  assert config.group("say aa") == config.group("write aa") == "aa"
  assert alone.dataset != config.dataset
  bad = configure(
    model, write(tmp_path / "r.jsonl", [lines[0] | {"family": 1}])
  )
  with pytest.raises(UserError, match='line 1: "family" is 1, no text'):
    bad.problems()


def test_a_family_may_stand_on_any_line_of_a_problem(model, tmp_path):
  """And problems may join families."""
  lines = [
    line
    for i, word in enumerate(WORDS)
    for line in (
      {"prompt": f"Say {word}", "problem": word},
      {"prompt": f"Write {word}", "problem": word, "family": f"f{i // 3}"},
    )
  ]
  lines.append({"prompt": "Sing", "problem": WORDS[0], "family": "f1"})
  config = configure(model, write(tmp_path / "p.jsonl", lines))
  splits = data.split_problems(config)
  where = {p: split for split, problems in splits.items() for p in problems}
  of_family = {}
  for i, word in enumerate(WORDS):
    of_family.setdefault(max(i // 3, 1), set()).add(where.get(word, "none"))
  # What a held-out part leaves of a family is in no split.
  assert all(len(found - {"none"}) <= 1 for found in of_family.values())
  assert len(where) > 20 and len(set(where.values())) == 3
  assert config.group(WORDS[0]) == config.group(WORDS[5])
  assert config.group(WORDS[5]) != config.group(WORDS[6])


def test_warm_starts_show_solutions_that_may_be_shown(model, tmp_path):
  lines = [{"prompt": w, "solution": w[::-1]} for w in WORDS[:5]]
  config = configure(
    model, write(tmp_path / "p.jsonl", [*lines, {"prompt": "none"}])
  )
  prompt_QP, response_QT = config.warm_start(
    np.random.default_rng(0), 50, 1.0, {WORDS[0]}
  )
  asked = {config.canonical(p) for p in prompt_QP}
  assert asked == set(WORDS[1:5])
  decode = config.make().tokenizer.decode
  for prompt_P, response_T in zip(prompt_QP, response_QT, strict=True):
    assert decode(response_T) == config.canonical(prompt_P)[::-1]


@pytest.mark.parametrize(
  ("lines", "words"),
  [
    (["x"], "line 1: it must be an object with"),
    ([{"prompt": "a", "messages": []}], "it must be an object with"),
    ([{"prompt": "a"}, {"prompt": 3}], 'line 2: "prompt" is 3, no text'),
    ([{"prompt": "a" * 500}], "line 1: prompt 0 .* more than the prompt len"),
    ([{"prompt": "a", "solution": "z" * 99}], "the solution has"),
    (
      [{"prompt": "a", "solution": "z<|im_end|>z"}],
      "the solution holds the end token '<.im_end.>'",
    ),
    ([], "holds no problems"),
  ],
)
def test_lines_that_do_not_fit_are_named(model, tmp_path, lines, words):
  config = configure(model, write(tmp_path / "p.jsonl", lines))
  with pytest.raises(UserError, match=words):
    config.problems()


def test_what_all_prompts_begin_with_is_run_once(model, tmp_path):
  def head(texts):
    lines = [{"prompt": text} for text in texts]
    file = tmp_path / f"{len(texts)}{texts[0]}.jsonl"
    task = configure(model, write(file, lines)).make()
    encode = task.tokenizer.encode
    ids = [encode(text, add_special=True) for text in texts]
    return task.shared_prefix_length, os.path.commonprefix(ids), map(len, ids)

  for texts in (["Say aa", "Say bb", "Say c"], ["aa", "bb"]):
    common, shared, _ = head(texts)
    assert common == len(shared)
  # One prompt begins another: it keeps a token of its own.
  common, shared, lengths = head(["Say", "Say aa", "Say aabb"])
  assert common == min(lengths) - 1 == len(shared) - 1


def test_settings_that_cannot_be_are_refused(model, tmp_path):
  with pytest.raises(ValueError, match="correct_at=0"):
    configure(model, "x", correct_at=0)
  with pytest.raises(ValueError, match="correct_at=-2: .* above low=-1"):
    configure(model, "x", correct_at=-2, low=-1)
  with pytest.raises(ValueError, match="low=1 must be less than high=1"):
    configure(model, "x", low=1, high=1)
  with pytest.raises(ValueError, match="reward='letters'"):
    configure(model, "x", reward="letters")
  with pytest.raises(UserError, match="no problems in missing.jsonl"):
    configure(model, "missing.jsonl").problems()


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"prompt": "2", "answer": ' + "1" * 5_000 + "}", "5,000 digits"),
    ("[" * 200_000, "more than 64 levels of brackets"),
    ('{"prompt": "\\ud800"}', "half a character"),
    ('{"prompt": "2", "answer": 1e999}', "1e999 is no finite number"),
    ('{"prompt": "caf\xe9"}'.encode("latin-1"), "no UTF-8 text"),
    ("5", 'an object with "prompt"'),
  ],
  ids=["digits", "depth", "surrogate", "infinity", "bytes", "number"],
)
def test_lines_that_hold_no_problem_are_named(model, tmp_path, line, message):
  line = line if isinstance(line, bytes) else line.encode()
  file = tmp_path / "problems.jsonl"
  file.write_bytes(b'{"prompt": "1"}\n' + line)
  with pytest.raises(UserError, match=f"{file}, line 2.*{message}"):
    configure(model, file).problems()


def test_what_is_no_file_of_problems_is_named(model, tmp_path):
  os.mkfifo(tmp_path / "fifo")
  for file, message in (
    (tmp_path, r"holds no \*\.parquet"),
    (tmp_path / "fifo", "is a FIFO, no regular file"),
    ("/dev/zero", "is a device, no regular file"),
  ):
    with pytest.raises(UserError, match=message):
      configure(model, file).problems()


def test_held_out_parts_that_leave_nothing_are_refused_with_sizes(
  model, tmp_path
):
  file = write(tmp_path / "x", [{"prompt": str(i)} for i in range(300)])
  task = configure(model, file, validation_size=512, test_size=512)
  message = "there are 300 problems; .*validation_size=60 .*test_size=60"
  with pytest.raises(UserError, match=message):
    data.load_problems(task, "train", tmp_path / "data")


def run(module, *flags):
  return subprocess.run(
    [sys.executable, "-m", f"launch.{module}", *flags],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip


@pytest.mark.slow
def test_a_run_in_text_trains_is_measured_and_exported(model, tmp_path):
  file = write(tmp_path / "p.jsonl", problems(letters="abcdefghijklmnoprstuvw"))
  workdir = tmp_path / "run"
  config = tmp_path / "config.py"
  config.write_text(
    "from tests import small_text\n"
    f"model, file = {str(model)!r}, {file!r}\n"
    "def get_config(): return small_text.experiment(model, file)\n"
  )
  done = run("train", f"--config={config}", f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  rows = [json.loads(r) for r in (workdir / "metrics.jsonl").open()]
  assert all(row["host_rewards"]["graded"] > 0 for row in rows)
  assert max(row["reward"] + row["search_reward"] for row in rows[1:]) > 0
  opened = (f"--workdir={workdir}", "--imports=tests.grading")
  done = run("evaluate", *opened, "--mode=mean@4,search@4")
  assert done.returncode == 0, done.stderr
  assert "host_rewards" in done.stdout
  saved = json.loads((workdir / "eval.json").read_text())
  assert list(saved) == ["mean@4", "search@4"]
  out = tmp_path / "out"
  done = run("export", *opened, f"--output={out}")
  assert done.returncode == 0, done.stderr
  text_tokenizer.load(out)
  # As many positions as the model was published with.
  sizes = [json.loads((f / "config.json").read_text()) for f in (model, out)]
  assert sizes[0]["max_position_embeddings"] == 64  # The run's are 56.
  assert sizes[1]["max_position_embeddings"] == 64


def test_steps_end_with_a_character(model):
  tokenizer = text_tokenizer.load(model)
  for characters in ("", "e", "\n.s"):
    task = configure(model, "p.jsonl", step_ends=characters).make()
    texts = [tokenizer.decode([i]) for i in range(task.vocab_size)]
    expected = [i for i, t in enumerate(texts) if t and t[-1] in characters]
    assert list(task.step_end_ids) == expected
    assert bool(expected) == bool(characters)


def test_a_saved_config_comes_back(model, tmp_path):
  config = configure(model, "p.jsonl")
  assert (
    config_json.from_dict(TextConfig, config_json.to_dict(config)) == config
  )


@pytest.mark.slow
def test_a_run_is_planned_without_its_host(model, tmp_path):
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  file = write(tmp_path / "problems.jsonl", problems())
  run = small_text.experiment(str(model), file)
  result = aot.plan(run, "v5e:1x1", effort="quick")
  assert result["fits"]
  # Afterwards the host is asked again.
  task = run.make_task()
  prompts = data.load_problems(run.task, "train")[:1]
  tokens_B1T = jnp.full((1, 1, task.response_length), task.eos_id)
  score = Scorer(task.reward, task.end_ids)(prompts, tokens_B1T)
  assert score.reward_X == 0


@pytest.mark.slow
def test_vmapped_runs_of_a_text_task_are_the_runs_alone(model, tmp_path):
  """A host's rewards are asked for all runs at a time."""
  file = write(tmp_path / "problems.jsonl", problems())
  run = small_text.experiment(str(model), file)
  task = dataclasses.replace(run.task, reward=length)
  runs = [dataclasses.replace(run, task=task, seed=seed) for seed in (0, 1)]
  together = [tmp_path / f"together{run.seed}" for run in runs]
  train.train_vmapped(runs, together)
  for one, folder in zip(runs, together, strict=True):
    train.train(one, tmp_path / f"alone{one.seed}")
    mine, alone = map(
      directory.read_rows, (folder, tmp_path / f"alone{one.seed}")
    )
    for got, expected in zip(mine, alone, strict=True):
      assert got["ledger"] == expected["ledger"]
      assert got.get("reward") == pytest.approx(expected.get("reward"))
      assert got.get("eval") == expected.get("eval")
    assert any(row.get("reward", 0) > 0 for row in mine)
