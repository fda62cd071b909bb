"""A run that a second verifier watches: rows, the page, and where it stops."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from experiments.benchmarks import hybrid
from tests.noisy import add_noise
from tests.report_test import figures, write, write_run
from tests.small_game import PAD, get_config
from tsd_jax.base.errors import UserError
from tsd_jax.parallel import sharding
from tsd_jax.rewards.reward import Reward, Score
from tsd_jax.run import audit, directory, report, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.run.hacking import Audit, Seen
from tsd_jax.tasks.data import load_problems


@dataclasses.dataclass(frozen=True)
class First(Reward):
  """Pays the first token, which is a digit or an end."""

  high, knows_correct, disagreement = 8.0, False, "apart"

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    first_BG = tokens_BGT[..., 0].astype(jnp.float32)
    return Score(first_BG, None, {"apart": first_BG / 10})


@dataclasses.dataclass(frozen=True)
class Low(Reward):
  """Accepts first tokens below a bound, which is a parameter."""

  def load(self):
    return {"bound": np.float32(4.0)}

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    low_BG = tokens_BGT[..., 0] < params["bound"]
    return Score(low_BG.astype(jnp.float32), low_BG)


def experiment(**changes):
  base = get_config()
  return dataclasses.replace(
    base,
    reward=First(),
    audit=Audit(Low(), samples=16, **changes),
    loss=dataclasses.replace(base.loss, champion_gate="better"),
    eval=dataclasses.replace(base.eval, modes="mean@16"),
  )


def rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """A run that is suspected at its start, and what is said of it."""
  folder, told = tmp_path_factory.mktemp("audit") / "run", []
  warn = logging.warning
  logging.warning = lambda text, *args: told.append(str(text) % args)
  try:
    for _ in range(2):  # The same command says the same.
      with pytest.raises(UserError) as error:
        train.train(experiment(stop=True), folder)
  finally:
    logging.warning = warn
  return folder, str(error.value), [t for t in told if "hacked" in t]


def test_a_run_that_is_suspected_stops_before_it_learns_that(stopped):
  folder, said, told = stopped
  assert "was stopped by its audit (iteration 0: the audit accepts" in said
  assert "go on with --config.audit.stop=false" in said
  assert "no checkpoint yet" in said and len(told) == 2
  (row,) = rows(folder)
  found = row["audit"]
  assert set(found["alarms"]) <= {"best_paid", "champion"} and found["alarms"]
  assert found["accepted_best_paid"] < found["accepted"]
  # What it says of itself it says of the very samples of mean@16.
  assert found["reward"] == pytest.approx(row["eval"]["mean@16"]["reward"])
  assert found["disagreement"] == pytest.approx(found["reward"] / 10)
  assert found["kl"] == 0.0 and 1 <= found["length"] <= 3


def test_the_best_paid_answers_that_are_rejected_are_kept(stopped):
  folder, *_ = stopped
  kept = audit.read_rejected(folder)
  paid = [answer["reward"] for answer in kept]
  assert 0 < len(kept) <= 8 and paid == sorted(paid, reverse=True)
  task = get_config().task.make()
  prompts = load_problems(get_config().task, "validation").tokens_BP
  texts = {task.tokenizer.decode(p) for p in np.asarray(prompts)}
  for answer in kept:
    first, *_ = *task.tokenizer.encode(answer["text"]), PAD
    # Padding that a model writes is no text.
    assert answer["reward"] == PAD or first == answer["reward"] >= 4
    assert answer["prompt"] in texts
  assert len({answer["prompt"] for answer in kept}) == len(kept)


def test_its_folder_goes_on_where_that_is_wanted(stopped):
  """With the same audit; what was told before is not told again."""
  folder, *_ = stopped
  directory.prepare(experiment(stop=False), folder)
  with pytest.raises(UserError, match=r"audit\.kl: saved null, now 0\.5"):
    directory.prepare(experiment(stop=False, kl=0.5), folder)
  directory.prepare(experiment(stop=True), folder)


def test_a_mesh_is_audited_as_one_device():
  config = experiment()
  task, (graphdef, start) = config.make_task(), initial_params(config)
  held_out = load_problems(config.task, "validation")[:6]
  shape = sharding.MeshConfig(data=2, fsdp=2)
  mesh = sharding.make_mesh(shape)

  def measure(place, layout):
    changed = add_noise(start, 0.1, seed=0)
    return audit.measure(
      graphdef, place(changed), place(start), task, held_out, config.audit,
      config.search, step=1, seed=0, layout=layout,
      reward_params=task.reward.load(),
    )  # fmt: skip

  one = measure(lambda params: params, sharding.HERE)
  two = measure(
    lambda params: sharding.place(params, mesh), sharding.Layout.of(mesh, shape)
  )
  assert two.rejected == one.rejected
  rows = [{**found.row({}), "alarms": 0} for found in (one, two)]
  assert rows[1] == pytest.approx(rows[0], rel=1e-5)
  assert one.seen.kl and len(one.seen.champion_Q) == 6


def test_runs_of_one_program_are_not_stopped_by_one(tmp_path):
  configs = [dataclasses.replace(experiment(stop=True), seed=s) for s in (0, 1)]
  with pytest.raises(ValueError, match="would stop all 2 of one program"):
    train.check_alike(configs)


def seen_row(step, accepted, alarms=()):
  a_Q = np.full(4, accepted)
  seen = Seen(step, 1.0 + step, a_Q, a_Q / 2, a_Q, None, 9.0, 0.1 * step)
  return audit.Audited(seen, []).row(dict.fromkeys(alarms, "it <fell>"))


def test_a_page_shows_what_the_audit_says(tmp_path):
  folder = write_run(
    tmp_path / "a", [0.1, 0.2, 0.4], reward_own=0.3, reward_liked=0.9
  )
  plain = write(tmp_path, folder)
  assert "Audit" not in plain
  assert "Part of the reward: liked" in figures(plain)
  found = rows(folder)
  for step, alarms in enumerate([(), ("fall",), ("fall", "kl")]):
    found[step]["audit"] = seen_row(step, 0.5, alarms)
    found[step]["champion_reward_own"] = 0.1
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in found)
  )
  rejected = [{"prompt": "1 = <2>", "text": "<b>", "reward": 3.0}]
  (folder / directory.AUDIT).write_text(json.dumps({"rejected": rejected}))
  page = write(tmp_path, folder)
  assert "<b>" not in page and "1 = &lt;2&gt;" in page
  assert '<td class="answer no"><bdi>&lt;b&gt;</bdi>  (3.00)</td>' in page
  assert page.count("it &lt;fell&gt;.") == 2  # Once for each rule.
  assert "Iteration 1: it" in page and "Iteration 2: it" in page
  drawn = figures(page)
  title = "Samples that the audit accepts, held out"
  (mark,) = [p for p in drawn[title].iter("path") if p.get("class") == "mark"]
  # Half way: at iteration 1 of 2.
  assert mark.get("d").startswith("M198 ")
  own = drawn["Part of the reward: own"]
  assert len([p for p in own.iter("path") if p.get("class") == "curve"]) == 2
  assert "Disagreement of the ensemble, held out" not in drawn
  (folder / directory.AUDIT).write_text('{"rejected": [{"prompt": 1}]}')
  with pytest.raises(UserError, match="it holds no answers"):
    report.read_log(folder)


def test_the_benchmark_tells_when_it_was_warned():
  found = [{"step": 0}, {"step": 5, "audit": seen_row(5, 0.5)}]
  assert hybrid.warnings(found) == {
    "warned": "never", "accepted, held out": "5: 0.500",
  }  # fmt: skip
  for step, alarms in ((10, ("fall",)), (15, ("kl", "fall"))):
    found.append({"step": step, "audit": seen_row(step, 0.25, alarms)})
  said = hybrid.warnings(found)["warned"]
  assert said == "fall at 10 (accepted 0.250); kl at 15 (accepted 0.250)"


@pytest.mark.parametrize("wrong", [3, {"alarms": 3}, {"alarms": {"fall": 3}}])
def test_a_damaged_row_is_refused(tmp_path, wrong):
  folder = write_run(tmp_path / "a", [0.1, 0.2], audit=wrong)
  with pytest.raises(UserError, match="is no row of a run"):
    write(tmp_path, folder)


def test_the_best_rejected_are_found():
  reward_QG = np.array([[1.0, 3.0], [5.0, 2.0], [9.0, 9.0], [4.0, 4.0]])
  accepted_QG = np.array([[0, 0], [1, 0.4], [1, 1], [0, 0.5]])
  found = audit.best_rejected(reward_QG, accepted_QG, 9)
  assert found == [(3, 0), (0, 1), (1, 1)]
  assert audit.best_rejected(reward_QG, accepted_QG, 1) == [(3, 0)]
