"""Accuracy figures against their definitions, and launch.evaluate."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import tsd_jax as tsd
from tests import small_experiment
from tests.noisy import add_noise
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.models import transformer
from tsd_jax.parallel import sharding
from tsd_jax.run import evaluation, load, samples, train
from tsd_jax.tasks import data
from tsd_jax.tasks.task import as_prompts

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A short run."""
  folder = tmp_path_factory.mktemp("run")
  config = config_lib.override(
    small_experiment.get_config(),
    {"iterations": "2", "init": "experiments/starts/warm_start_3.safetensors"}
    | {
      f"model.{k}": v
      for k, v in dict(
        d_model="128", num_layers="2", num_heads="4", num_kv_heads="4",
        head_dim="32", d_mlp="384", unroll_layers="2",
      ).items()
    },
  )  # fmt: skip
  train.train(config, folder)
  return folder


@given(st.integers(1, 6), st.data())
def test_pass_at_k_is_the_mean_over_all_draws(n, drawn):
  k = drawn.draw(st.integers(1, n))
  correct_BN = np.asarray(
    drawn.draw(
      st.lists(
        st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4
      )
    )
  )
  expected = np.mean(
    [
      [any(row[list(draw)]) for draw in itertools.combinations(range(n), k)]
      for row in correct_BN
    ]
  )
  assert evaluation.pass_at_k(correct_BN, k) == pytest.approx(expected)


@given(st.integers(1, 6), st.data())
def test_the_best_of_k_is_the_mean_of_the_best_over_all_draws(n, drawn):
  """Where nobody knows what is right, samples solve a prompt so far."""
  k = drawn.draw(st.integers(1, n))
  far = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
  row = drawn.draw(st.lists(far, min_size=n, max_size=n))
  draws = [max(draw) for draw in itertools.combinations(row, k)]
  (got,) = evaluation.solved_by_k(np.array([row]), k)
  assert got == pytest.approx(np.mean(draws), abs=1e-12)


def greedy_by_full_forwards(model, task, prompt_BP):
  """No cache: the whole sequence again for every token."""
  (B, P), T = prompt_BP.shape, task.response_length
  # One length, compiled once: no token sees what stands behind it.
  forward = jax.jit(lambda tokens_BS: model(tokens_BS))
  tokens_BS = np.full((B, P + T), task.pad_id)
  tokens_BS[:, :P] = prompt_BP
  ended = np.zeros(B, bool)
  for t in range(P, P + T):
    best = np.asarray(forward(tokens_BS))[:, t - 1].argmax(-1)
    best = np.where(ended, task.pad_id, best)
    ended |= best == task.eos_id
    tokens_BS[:, t] = best
  return tokens_BS[:, P:]


def test_figures_follow_from_plain_decoding(workdir):
  run = load.open_run(workdir)
  task = run.config.make_task()
  prompts = data.load_problems(run.config.task, "validation")[:64]
  results = evaluation.evaluate(
    run.graphdef, run.params, task, prompts,
    "greedy,mean@3,pass@3,mean@2,best@3,vote@3,search@20,search@1", seed=1,
  )  # fmt: skip
  model = nnx.merge(run.graphdef, run.params)
  asked = jnp.asarray(prompts.tokens_BP)
  tokens_BT = greedy_by_full_forwards(model, task, asked)
  score = task.score(asked, jnp.asarray(tokens_BT))
  assert score.correct_X.sum() > 0
  assert results["greedy"]["accuracy"] == pytest.approx(
    float(score.correct_X.mean())
  )
  _, _, correct_BG, tokens = evaluation.draw(
    run.graphdef, run.params, task, prompts, jax.random.key(1),
    jnp.float32(1), samples=3,
  )  # fmt: skip
  correct_BG = np.asarray(correct_BG)
  mean = results["mean@3"]
  assert mean["accuracy"] == pytest.approx(correct_BG.mean())
  assert mean["stderr"] == pytest.approx(correct_BG.mean(1).std() / 8)
  assert (mean["n"], mean["tokens"]) == (64, int(tokens))
  assert results["pass@3"]["accuracy"] == pytest.approx(
    correct_BG.any(1).mean()
  )
  assert results["mean@2"]["accuracy"] == pytest.approx(
    correct_BG[:, :2].mean()
  )
  assert results["mean@2"]["tokens"] < mean["tokens"]
  # The reward is highest where the answer is correct.
  assert results["best@3"]["accuracy"] == results["pass@3"]["accuracy"]
  assert results["search@20"]["tokens"] == 64 * (20 + task.prompt_length)
  assert results["search@1"]["accuracy"] == 0 < results["search@20"]["accuracy"]


def test_perplexity_follows_from_a_plain_forward():
  config = small_experiment.get_config()
  graphdef, params = transformer.create(config.model, 0)
  params = add_noise(params, scale=0.3, seed=1)
  task, rng = config.make_task(), np.random.default_rng(0)
  P, T = task.prompt_length, task.response_length
  tokens = rng.integers(0, 200, (5, P + T))
  tokens[0, -3:] = (
    task.pad_id
  )  # What follows the end is no token of a response.
  got = evaluation.perplexity(
    graphdef, params, task, as_prompts(task, tokens[:, :P]), tokens[:, P:]
  )
  logits = np.asarray(nnx.merge(graphdef, params)(jnp.asarray(tokens)))
  log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  found = [
    log_prob[n, t - 1, tokens[n, t]]
    for n in range(5)
    for t in range(P, P + T)
    if tokens[n, t] != task.pad_id
  ]
  assert len(found) == 5 * T - 3
  assert got == pytest.approx(np.exp(-np.mean(found)), rel=1e-4)


@pytest.mark.parametrize("end_ids", [(2,), (2, 1)])
def test_the_vote_is_a_count_of_equal_finished_answers(end_ids):
  rng = np.random.default_rng(0)
  tokens_BGT = rng.integers(0, 3, (200, 7, 2))
  chosen_B = evaluation.vote(tokens_BGT, end_ids)
  ties = 0
  for tokens_KT, chosen in zip(tokens_BGT, chosen_B, strict=True):
    rows = [tuple(2 if i in end_ids else i for i in t) for t in tokens_KT]
    counts = {t: rows.count(t) for t in rows if 2 in t}
    if counts:
      best = [t for t in counts if counts[t] == max(counts.values())]
      assert rows[chosen] == best[0]  # The first one drawn wins a tie.
      ties += len(best) > 1
  assert ties


@pytest.mark.parametrize(
  "modes",
  ["best", "mean", "mean@0", "pass@-1", "", "mean@²", "mean@" + "9" * 5_000],
)
def test_unknown_modes_are_refused(modes):
  with pytest.raises(UserError, match="use greedy, mean@K"):
    evaluation.parse_modes(modes)


def run_evaluate(workdir, *flags, **variables):
  return subprocess.run(
    [sys.executable, "-m", "launch.evaluate", f"--workdir={workdir}", *flags],
    cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    env=os.environ | variables,
  )  # fmt: skip


def test_launch_evaluate_repeats_the_runs_own_figures(workdir):
  done = run_evaluate(workdir)
  assert done.returncode == 0, done.stderr
  assert re.fullmatch(r"(evaluating.*\n)*", done.stderr)
  saved = json.loads((workdir / "eval.json").read_text())
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  for mode, expected in json.loads(rows[-1])["eval"].items():
    got = saved[mode]
    assert {name: got[name] for name in expected} == expected
    assert (got["split"], got["step"]) == ("validation", 2)
    assert f"{expected['accuracy']:.3f}" in done.stdout
  # More modes are added, each with what it was measured on.
  (workdir / "data.json").write_text('{"test": "other"}')
  done = run_evaluate(workdir, "--mode=pass@2", "--split=test")
  assert done.returncode == 0, done.stderr
  assert "the test problems are not those that" in done.stderr
  more = json.loads((workdir / "eval.json").read_text())
  assert more.pop("pass@2")["split"] == "test" and more == saved


def test_what_cannot_be_written_is_told_before_the_work(workdir):
  (workdir / "eval_base.json").write_text("[]")
  done = run_evaluate(workdir, "--base")
  assert done.returncode == 2 and "eval_base.json is damaged" in done.stderr
  (workdir / "eval_base.json").unlink()
  (workdir / "eval_base.json.tmp").mkdir()  # As where nothing can be written.
  done = run_evaluate(workdir, "--base")
  assert done.returncode == 2 and done.stdout == ""
  assert "eval_base.json cannot be written" in done.stderr
  (workdir / "eval_base.json.tmp").rmdir()


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--mode=best", "use greedy, mean@K"),
    ("--split=dev", "use one of train, validation, test"),
    ("--temperature=0", "must be 1e-06 or more"),
    ("--config.seed=1", "no config to set seed of"),
  ],
)
def test_bad_flags_are_one_line(workdir, flag, words):
  done = run_evaluate(workdir, flag)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ") and words in done.stderr
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  "axes", [{"data": 4}, {"fsdp": 2, "tensor": 2}, {"fsdp": 4, "serving": "2d"}]
)
def test_a_mesh_measures_as_one_device(workdir, axes):
  """Six prompts, which four devices do not divide, and two do."""
  run = load.open_run(workdir)
  task, config = run.config.make_task(), sharding.MeshConfig(**axes)
  mesh = sharding.make_mesh(config)
  prompts = data.load_problems(run.config.task, "validation")[:6]

  def measure(params, layout):
    found = evaluation.evaluate_each(
      run.graphdef, params, task, prompts, "greedy,mean@4,vote@4,search@6",
      seed=1, search=run.config.search, layout=layout,
    )  # fmt: skip
    shown = samples.samples(
      run.graphdef, params, params, task, prompts, task.tokenizer,
      run.config.search, seed=1, layout=layout,
    )  # fmt: skip
    return found, shown

  (one, one_each), shown = measure(run.params, sharding.HERE)
  layout = sharding.Layout.of(mesh, config)
  (got, each), also = measure(sharding.place(run.params, mesh), layout)
  for mode, result in one.items():
    assert result["accuracy"] == got[mode]["accuracy"], mode
    np.testing.assert_array_equal(one_each[mode], each[mode])
  assert [s["after"] for s in shown] == [s["after"] for s in also]
  assert [s["tree"] for s in shown] == [s["tree"] for s in also]
  # Every part has as many rows, and gives up when its own have ended.
  assert got["search@6"]["tokens"] >= one["search@6"]["tokens"]


@pytest.mark.parametrize("leaf, refused", [("value", True), ("none", False)])
def test_a_search_by_a_value_that_was_never_trained_is_refused(leaf, refused):
  config = small_experiment.get_config()
  graphdef, params = transformer.create(config.model, 0)
  task, prompts = config.make_task(), data.load_problems(config.task, "test")

  def measure(params, modes):
    search = dataclasses.replace(config.search, leaf=leaf)
    return evaluation.evaluate(
      graphdef, params, task, prompts[:4], modes, seed=0, search=search
    )

  measure(params, "greedy")
  measure(add_noise(params, 0.1, seed=0), "search@2")
  if not refused:
    measure(params, "search@2")
    return
  with pytest.raises(UserError, match="V_search .*never trained: leave the m"):
    measure(params, "greedy,search@2")


def test_a_run_is_measured_on_its_mesh_where_there_are_as_many_devices(
  workdir, tmp_path, monkeypatch
):
  folder = tmp_path / "run"
  shutil.copytree(workdir, folder)
  saved = json.loads((folder / "config.json").read_text())
  saved["mesh"] |= {"data": 2, "tensor": 2}
  (folder / "config.json").write_text(json.dumps(saved))
  found = {}
  for devices in (4, 1):
    count = f"--xla_force_host_platform_device_count={devices}"
    flags = "--mode=greedy,mean@2", "--split=validation"
    done = run_evaluate(folder, *flags, XLA_FLAGS=count)
    assert done.returncode == 0, done.stderr
    measured = json.loads((folder / "eval.json").read_text())
    found[devices] = {m: r["accuracy"] for m, r in measured.items()}
  assert found[4] == found[1]

  seen = []
  monkeypatch.setattr(
    evaluation,
    "evaluate",
    lambda *args, layout, **_: seen.append((args, layout)) or {},
  )
  run = tsd.load_run(folder)
  tsd.evaluate(run)
  tsd.evaluate(run, run.config.task)
  (args, layout), (_, elsewhere) = seen
  assert layout.mesh.size == 4 and elsewhere.mesh is None
  assert all(len(a.sharding.device_set) == 4 for a in jax.tree.leaves(args[1]))
  opened = load.open_run(folder, layout)
  for a, b in zip(*map(jax.tree.leaves, (args[1], opened.params)), strict=True):
    assert len(b.sharding.device_set) == 4
    np.testing.assert_array_equal(a, b)

  one = sharding.Layout.where_it_fits(sharding.MeshConfig(data=16))
  four = sharding.Layout.where_it_fits(sharding.MeshConfig(data=2, tensor=2))
  assert one.mesh is None and four.mesh.size == 4


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  done = run_evaluate("~/run")
  assert f"no run in {tmp_path}/run: " in done.stderr


def test_a_damaged_checkpoint_is_passed_over_and_left_alone(workdir, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(workdir, folder)
  newest = folder / "checkpoints" / "2"
  for file in newest.rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(UserError, match="every checkpoint .* is damaged"):
    load.open_run(folder)
  assert newest.is_dir()


def test_the_base_is_measured_beside_the_run(workdir):
  done = run_evaluate(workdir, "--base", "--mode=mean@2")
  assert done.returncode == 0, done.stderr
  saved = json.loads((workdir / "eval_base.json").read_text())
  first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
  expected = first["eval"]["mean@2"]
  assert {k: saved["mean@2"][k] for k in expected} == expected
  success = expected["accuracy"]
  assert f"{success:.3f} of the start's samples are right" in done.stdout
  done = run_evaluate(workdir, "--base", "--mode=greedy")
  assert "of the start's" not in done.stdout


@pytest.mark.parametrize("kind", ["greedy", *evaluation.KINDS])
def test_a_mode_is_defined_in_the_docs_and_in_help(kind):
  page = (ROOT / "docs" / "commands.md").read_text()
  assert re.search(rf"^\| `{kind}(@\d+)?` \| \w", page, re.M)
  command = (ROOT / "launch" / "evaluate.py").read_text()
  assert re.search(rf"\b{kind}(@[KN])?: \w", command)
