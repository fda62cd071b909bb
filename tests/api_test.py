"""The public names: the README's lines on a small model, and bad input."""

import dataclasses
import functools
import html
import inspect
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

import tsd_jax as tsd
from experiments.recipes import fetch_smollm2
from tests import small_experiment, small_text
from tests.published import LLAMA, export, make
from tsd_jax.api import programs
from tsd_jax.base.types import UNVISITED
from tsd_jax.models import hf
from tsd_jax.models.symbols import SymbolTokenizer
from tsd_jax.search import view
from tsd_jax.tasks.countdown import CountdownConfig

POSITIONS = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random model that often ends what it writes, with a small tokenizer."""
  folder = tmp_path_factory.mktemp("api")
  tokenizer, config, params = small_text.random_model(folder)
  # All tokens share a feature, the end token has more of it: it is likely.
  rows = params["embedding_VD"]
  rows[...] = rows[...].at[:, 0].set(4.0).at[tokenizer.eos_id, 0].set(4.2)
  hf.save(folder / "model", config, params, tokenizer, max_length=POSITIONS)
  return folder / "model"


@pytest.fixture(scope="module")
def model(folder):
  return tsd.load_model(folder)


def ending(model, weight):
  """The same model with another weight of the end token."""
  params = jax.tree.map(lambda a: a, model.params)
  rows = params["embedding_VD"]
  rows[...] = rows[...].at[model.tokenizer.eos_id, 0].set(weight)
  return dataclasses.replace(model, params=params)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, ids_T):
  return nnx.merge(graphdef, params)(ids_T[None])[0]


def plain_log_probs(model, ids):
  """Log pi over the vocabulary after each token, without a cache."""
  padded = jnp.array([*ids, *[0] * (POSITIONS - len(ids))])
  logits_TV = _logits(model.graphdef, model.params, padded)
  return jax.nn.log_softmax(logits_TV)[: len(ids)]


def log_prob_of(model, prompt, response):
  log_prob_TV = plain_log_probs(model, [*prompt, *response])
  return sum(
    float(log_prob_TV[len(prompt) + i - 1, t]) for i, t in enumerate(response)
  )


def vowels(prompt, response):
  """A reward with many levels."""
  return sum(c in "aeiou" for c in response) / max(1, len(response))


@pytest.fixture(scope="module")
def tree(model):
  return tsd.search(model, "Say a", vowels, num_simulations=24, max_tokens=6)


# Names.


def test_the_import_alone_starts_no_jax():
  lines = (
    "import sys, tsd_jax as tsd",
    "heavy = {'jax', 'flax', 'numpy', 'tokenizers'}",
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)",
    "assert set(tsd.__all__) <= set(dir(tsd)) and tsd.__version__",
    "assert not heavy & set(sys.modules)",
    "tsd.load_model",
    "assert 'jax' in sys.modules",
    # Whatever is imported first, and in whichever way.
    "import tsd_jax.search.moves as moves",
    "from tsd_jax.search import view",
    "assert callable(tsd.search) and tsd.search.moves is moves",
  )
  subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_every_name_is_documented():
  assert sorted(tsd.__all__) == tsd.__all__
  for name in tsd.__all__:
    value = getattr(tsd, name)
    value = getattr(value, "__wrapped__", value)
    assert inspect.getdoc(value), name
    if inspect.isfunction(value):
      doc = inspect.getdoc(value)
      for parameter, said in inspect.signature(value).parameters.items():
        assert f"  {parameter}: " in doc, (name, parameter)
        assert said.annotation is not inspect.Parameter.empty
  with pytest.raises(AttributeError, match="no attribute 'serach'"):
    tsd.serach  # noqa: B018


def test_search_is_a_function_and_the_package_of_that_name():
  function = tsd.search.__wrapped__
  assert inspect.signature(tsd.search) == inspect.signature(function)
  assert list(inspect.signature(tsd.search).parameters)[:3] == [
    "model", "prompt", "reward",
  ]  # fmt: skip
  assert tsd.search.view is view


def test_a_model_says_what_it_is(model):
  text = repr(model)
  assert "\n" not in text and "1 layers of 16" in text and "96" in text
  assert model.chats and model.tokenizer.decode(model.read("Say a").ids)


# A tree.


def test_the_lines_of_the_readme(folder, capsys):
  model = tsd.load_model(folder)
  tree = tsd.search(
    model, "2 + 3 =", reward=lambda prompt, response: float("5" in response)
  )
  print(tree)
  print(tree.champion)
  *drawn, champion = capsys.readouterr().out.splitlines()
  assert drawn[0].startswith("32 simulations, ") and "best reward" in drawn[0]
  assert drawn[1].startswith("prompt: ") and "2 + 3 =" in drawn[1]
  assert any(line.startswith("★") for line in drawn)
  assert champion == str(tree.champion) and "reward" in champion
  assert tree.text().splitlines() == drawn and len(drawn) < 50
  assert repr(tree).count("\n") == 0


def test_nodes_are_the_arrays(tree):
  arrays = jax.tree.map(lambda a: np.asarray(a)[0], tree.arrays)
  assert len(tree.nodes) == 25 == tree.simulations + 1
  for n, node in tree.nodes.items():
    assert node.visits == arrays.node_visits[n]
    below = [tree.nodes[c] for c in node.children]
    assert node.visits == 1 + sum(child.visits for child in below)
    assert all(child.parent == n for child in below)
    found = arrays.children_index[n]
    assert sorted(node.children) == sorted(found[found != UNVISITED])
    assert node.value == pytest.approx(arrays.node_values[n])
    assert node.path == tuple(
      arrays.embeddings.path_tokens[n][: arrays.embeddings.depth[n]]
    )


def test_answers_are_those_that_a_plain_model_and_the_reward_tell(model, tree):
  prompt, eos = model.read("Say a"), model.tokenizer.eos_id
  assert tree.prompt == prompt.text
  best = {}
  for node in tree.nodes.values():
    if node.answer is None:
      continue
    log_prob = log_prob_of(model, prompt.ids, [*node.answer, eos])
    text = view.said(model.tokenizer, node.answer)
    found = (vowels(tree.prompt, text), log_prob, text)
    best[text] = max(best.get(text, found), found)
  assert len(best) > 3
  expected = sorted(best.values(), key=lambda b: (-b[0], -b[1]))
  assert [a.text for a in tree.answers] == [text for *_, text in expected]
  for answer, (reward, log_prob, text) in zip(
    tree.answers, expected, strict=True
  ):
    assert answer.reward == reward
    assert answer.log_prob == pytest.approx(log_prob, abs=1e-3)
    node = tree.nodes[answer.node]
    assert view.said(model.tokenizer, node.answer) == text
  assert tree.champion == tree.answers[0]


def test_the_reward_sees_each_finished_response_once(model):
  calls = []

  def reward(prompt, response):
    calls.append((prompt, response))
    return len(calls) / 100

  tree = tsd.search(
    model, "Say a", reward, num_simulations=24, max_tokens=6, reply="It is"
  )
  prompt = model.tokenizer.render(
    [{"role": "user", "content": "Say a"}], reply="It is"
  )
  assert {p for p, _ in calls} == {prompt}
  texts = [response for _, response in calls]
  assert sorted(set(texts)) == sorted(texts)
  assert sorted(texts) == sorted(a.text for a in tree.answers)


def test_nothing_hides_in_special_tokens_from_a_reward(model):
  task = programs.PromptTask(model.tokenizer, 8, 6, ())
  a, b = map(model.tokenizer.encode, "ab")
  response = np.array([*a, 1, 1, *b, model.tokenizer.eos_id, task.pad_id])
  assert task.read(response) == "a<|im_start|><|im_start|>b"


def test_the_same_program_serves_other_prompts_and_rewards(model):
  settings = dict(num_simulations=24, max_tokens=6)
  one = tsd.search(model, "Say a", vowels, **settings)
  before = programs._grow._cache_size()
  other = tsd.search(model, "Say b!", lambda p, r: 0.5, **settings)
  assert programs._grow._cache_size() == before
  assert {a.reward for a in other.answers} == {0.5}
  again = tsd.search(model, "Say a", vowels, **settings)
  assert str(again) == str(one) and again.answers == one.answers


def test_tokens_are_those_of_the_ledger(tree):
  # A node is a forward, and so is a token of the prompt, padded to 64.
  assert tree.tokens == 24 + 64


def test_a_search_may_stop_when_it_is_solved(model):
  def solved(prompt, response):
    return 1

  tree = tsd.search(model, "Say a", solved, max_tokens=6, stop_when_solved=True)
  assert tree.champion.reward == 1.0 and tree.simulations < 32


@pytest.mark.slow
def test_steps_and_other_rules(model):
  steps = tsd.search(
    model, "Say a", vowels, num_simulations=8, step_tokens=4, max_tokens=8
  )
  long = [n for n in steps.nodes.values() if n.parent >= 0]
  assert any(len(n.path) - len(steps.nodes[n.parent].path) > 1 for n in long)
  other = tsd.search(
    model, "Say a", vowels, seed=1, num_simulations=8, step_tokens=4,
    max_tokens=8,
  )  # fmt: skip
  assert str(other) != str(steps)
  config = tsd.SearchConfig(tsd.PUCT(), leaf="rollout", num_simulations=8)
  ready = ending(model, 5.5)
  rolled = tsd.search(ready, "Say a", vowels, max_tokens=6, config=config)
  assert rolled.simulations == 8 and "→" in str(rolled)


def test_without_a_finished_response_there_is_no_champion(model):
  def never(prompt, response):
    raise AssertionError("nothing is finished")

  config = tsd.SearchConfig(
    tsd.BestFirst(stop_when_solved=False), num_candidates=2, num_simulations=4
  )
  tree = tsd.search(ending(model, 0.0), "Say a", never, config=config)
  assert tree.champion is None and tree.answers == ()
  assert "no finished answer" in str(tree) and "★" not in str(tree)
  assert "no finished answer" in repr(tree)
  assert "no finished answer" in tree._repr_html_()


def test_a_tree_shows_itself_and_is_saved(tree, tmp_path):
  piece = tree._repr_html_()
  assert piece.count("<iframe") == 1 and "<script" not in piece
  assert html.escape(str(tree)) in piece  # As text, below the frame.
  file = tree.save(tmp_path / "tree.html")
  (data,) = re.findall(r'id="data">(.*?)</script>', file.read_text())
  (saved,) = json.loads(data)["trees"]
  assert saved == json.loads(json.dumps(tree.data()))
  assert len(saved["nodes"]) == len(tree.nodes)
  with pytest.raises(tsd.UserError, match="cannot be written"):
    tree.save(tmp_path / "none" / "tree.html")


# Bad input.


def raises(error):
  def reward(prompt, response):
    raise error

  return reward


@pytest.mark.parametrize(
  ("reward", "words"),
  [
    (raises(ValueError("no luck")), "reward raised ValueError: no luck, for"),
    (lambda p, r: float("nan"), "reward returned nan: outside"),
    (lambda p, r: 1.5, r"reward returned 1.5: outside of \[0, 1\]"),
    (lambda p, r: -1, "reward returned -1.0: outside"),
    (lambda p, r: "5", r"reward returned '5' \(str\): no number"),
    (lambda p, r: None, r"reward returned None \(NoneType\)"),
    (lambda p, r: [1.0], r"reward returned \[1.0\] \(list\)"),
    (lambda p, r: np.ones(2), "ndarray"),
    (lambda r: 1.0, r"must take \(prompt, response\)"),
    (3, r"must take \(prompt, response\)"),
  ],
)
def test_a_reward_that_fails_is_one_line(model, reward, words):
  with pytest.raises(tsd.UserError, match=words) as caught:
    tsd.search(model, "Say a", reward, num_simulations=24, max_tokens=6)
  assert "\n" not in str(caught.value)
  # The next search is none the worse for it.
  tree = tsd.search(model, "Say a", vowels, num_simulations=24, max_tokens=6)
  assert tree.champion is not None


@pytest.mark.parametrize(
  "value", [True, 1, 0.25, np.float32(0.5), np.array(1), np.bool_(False)]
)
def test_every_kind_of_number_is_a_reward(model, value):
  tree = tsd.search(
    model, "Say a", lambda p, r: value, num_simulations=24, max_tokens=6
  )
  assert {a.reward for a in tree.answers} == {float(value)}


def test_what_a_reward_raised_is_the_cause(model):
  error = KeyError("x")
  with pytest.raises(tsd.UserError) as caught:
    tsd.search(model, "Say a", raises(error), num_simulations=24, max_tokens=6)
  assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_comes_through_a_reward(model, error):
  with pytest.raises(type(error)) as caught:
    tsd.search(model, "Say a", raises(error), num_simulations=24, max_tokens=6)
  assert caught.value is error
  tree = tsd.search(model, "Say a", vowels, num_simulations=24, max_tokens=6)
  assert tree.champion is not None


def test_a_reward_cannot_run_a_model(model):
  """It would wait for the search that waits for it."""

  def judge(prompt, response):
    return len(tsd.sample(model, response)) / 100

  with pytest.raises(tsd.UserError, match="cannot sample or search itself"):
    tsd.search(model, "Say a", judge, num_simulations=24, max_tokens=6)
  assert tsd.sample(model, "Say a")


CHAT = [{"role": "user", "content": "Say a"}]


@pytest.mark.parametrize(
  ("prompt", "settings", "words"),
  [
    ("", {}, "the prompt is empty"),
    (" \n", {}, "the prompt is empty"),
    ([], {}, "the prompt is"),
    (["Say a"], {}, "the prompt is"),
    (7, {}, "the prompt is 7: use a text, or messages"),
    ([{"role": "user"}], {}, "chat message"),
    (CHAT, {"raw": True}, "raw=True is for a text"),
    ("Say a " * 99, {}, "exceed the 96 positions"),
    ("Say a", {"max_tokens": 90}, "max_tokens=90 exceed the 96 positions"),
    ("Say a", {"max_tokens": 0}, "max_tokens=0 must be at least 1"),
    ("Say a", {"num_simulations": 0}, "^num_simulations=0 must be at least 1"),
    ("Say a", {"step_tokens": 0}, "^step_tokens=0 must be at least 1"),
    ("Say a", {"num_candidates": 999}, "num_candidates=999 exceeds the"),
    ("a<|im_end|>", {"raw": True}, "ends with the padding token"),
    (
      "Say a",
      {"config": tsd.SearchConfig(tsd.PUCT(), leaf="value")},
      "leaf=value values leaves by V_search",
    ),
  ],
)
def test_bad_input_is_one_line(model, prompt, settings, words):
  with pytest.raises(tsd.UserError, match=words) as caught:
    tsd.search(model, prompt, vowels, **settings)
  assert "\n" not in str(caught.value)


def test_models_that_cannot_be_read(tmp_path, folder):
  with pytest.raises(tsd.UserError, match=r"no model at .*nothing.gguf"):
    tsd.load_model(tmp_path / "nothing.gguf")
  (tmp_path / "metrics.jsonl").touch()
  with pytest.raises(tsd.UserError, match="is a run: read it with load_run"):
    tsd.load_model(tmp_path)
  with pytest.raises(tsd.UserError, match="no run in"):
    tsd.load_run(tmp_path)
  with pytest.raises(tsd.UserError, match="max_lines=0"):
    tsd.Tree("", {}, (), 0, 0, None, None).text(max_lines=0)


# Samples.


def test_samples_are_those_of_a_plain_model(model):
  one, *more = tsd.sample(
    model, ["Say a", "Write bc"], temperature=0, max_tokens=5
  )
  assert len(more) == 1 and one.prompt == model.read("Say a").text
  prompt, eos, response = model.read("Say a").ids, model.tokenizer.eos_id, []
  while len(response) < 5 and eos not in response:
    response.append(int(plain_log_probs(model, prompt + response)[-1].argmax()))
  assert one.finished == (eos in response)
  assert one.text == model.tokenizer.decode(response)
  assert one.log_prob == pytest.approx(
    log_prob_of(model, prompt, response), abs=1e-3
  )


def test_samples_of_a_prompt_stand_in_a_row(model):
  drawn = tsd.sample(
    model, ["Say a", CHAT, "b"], num_samples=3, max_tokens=8, seed=1
  )
  prompts = [model.read(p).text for p in ("Say a", CHAT, "b") for _ in "abc"]
  assert [s.prompt for s in drawn] == prompts
  assert len({s.text for s in drawn}) > 3
  again = tsd.sample(
    model, ["Say a", CHAT, "b"], num_samples=3, max_tokens=8, seed=1
  )
  assert again == drawn
  (chat,) = tsd.sample(model, CHAT, max_tokens=8)
  assert str(chat).count("\n") == 0
  for settings, words in (
    (dict(prompts=[]), "no prompts"),
    (dict(prompts="a", num_samples=0), "num_samples=0"),
    (dict(prompts="a", temperature=-1.0), "temperature=-1.0"),
    (dict(prompts=["a", ""]), "empty"),
    (dict(prompts=CHAT[0]), "one message is no chat"),
  ):
    with pytest.raises(tsd.UserError, match=words):
      tsd.sample(model, **settings)


# Symbols and runs.


def test_a_model_of_symbols_is_searched_as_well(tmp_path):
  """Its own tokenizer, and the same symbols read back from a folder."""
  graphdef, params = make(LLAMA)
  own = tsd.Model("own", LLAMA, graphdef, params, SymbolTokenizer(), 64)
  export(tmp_path / "exported", LLAMA, params)
  read = tsd.load_model(tmp_path / "exported")
  for model in (own, read):
    assert model.read("3 * 4 =").ids == [3, 202, 4, 204]
    assert model.read("3 *", reply="4 =").text == "3 * 4 ="
  settings = dict(temperature=0, max_tokens=4)
  assert tsd.sample(own, "3 * 4 =", **settings) == tsd.sample(
    read, "3 * 4 =", **settings
  )
  tree = tsd.search(
    own, "3 * 4 =", lambda p, r: len(r) / 99, num_simulations=12, max_tokens=4,
    num_candidates=64,
  )  # fmt: skip
  assert tree.prompt == "3 * 4 =" and len(tree.nodes) == 13
  for node in tree.nodes.values():
    assert view.visible(SymbolTokenizer().decode(node.path)) in (
      " ".join(tree.nodes[n].text for n in way_down(tree, node.index))
    )
  with pytest.raises(tsd.UserError, match="unknown symbol 'x' at position 0"):
    own.read("x")
  with pytest.raises(tsd.UserError, match="no chat template"):
    own.read(CHAT)
  with pytest.raises(tsd.UserError, match="not empty"):
    tsd.export(own, tmp_path / "exported")
  assert tsd.export(own, tmp_path / "again").is_dir()


def way_down(tree, n):
  """Nodes from below the root to a node."""
  above = tree.nodes[n].parent
  return [] if above == UNVISITED else [*way_down(tree, above), n]


@pytest.mark.slow
def test_a_run_is_trained_read_measured_and_exported(tmp_path):
  experiment = small_experiment.get_config()
  experiment = tsd.Experiment(
    **{f: getattr(experiment, f) for f in vars(experiment)} | {"iterations": 2}
  )
  run = tsd.train(experiment, tmp_path / "run")
  assert run.step == 2 and run.metrics[-1]["step"] == 2
  assert run.config == experiment and "iteration 2 of 2" in repr(run)
  assert tsd.load_run(tmp_path / "run").ledger == run.ledger
  kwargs = dict(modes="greedy,mean@2", max_problems=16)
  results = tsd.evaluate(run, **kwargs)
  command = [
    sys.executable, "-m", "launch.evaluate", f"--workdir={run.workdir}",
    "--mode=greedy,mean@2",
  ]  # fmt: skip
  subprocess.run(command, check=True, capture_output=True)
  saved = json.loads((run.workdir / "eval.json").read_text())
  whole = tsd.evaluate(run, modes="greedy,mean@2")
  assert whole == saved
  assert results.keys() == saved.keys()
  assert results["greedy"]["n"] == 16
  # Exported and read back it is the same model.
  folder = tsd.export(run, tmp_path / "exported")
  read = tsd.load_model(folder)
  other = tsd.evaluate(
    read, CountdownConfig(numbers=3), **kwargs, split=experiment.eval.split
  )
  assert other["greedy"]["accuracy"] == results["greedy"]["accuracy"]
  prompt = "3 4 5 = 17"
  for candidate in (run.model, read, run.start()):
    tree = tsd.search(candidate, prompt, lambda p, r: 0.0, num_simulations=8)
    assert tree.simulations == 8
    assert len(tsd.sample(candidate, prompt, num_samples=2)) == 2
  with pytest.raises(tsd.UserError, match="give its config"):
    tsd.evaluate(read)
  with pytest.raises(tsd.UserError, match="max_problems=0 must be at least 1"):
    tsd.evaluate(run, max_problems=0)
  # The run trains V_search; what it starts from never did.
  kwargs |= dict(modes="greedy,search@8", search=tsd.SearchConfig(leaf="value"))
  assert "search@8" in tsd.evaluate(run, **kwargs)
  with pytest.raises(tsd.UserError, match="V_search .search.leaf=value.,"):
    tsd.evaluate(run.start(), CountdownConfig(numbers=3), **kwargs)
  kwargs |= dict(modes="greedy")
  tsd.evaluate(run.start(), CountdownConfig(numbers=3), **kwargs)
  with pytest.raises(tsd.UserError, match="positions"):
    tsd.search(run.model, prompt + " 1" * 30, lambda p, r: 0.0)


@pytest.mark.slow
@pytest.mark.skipif(
  not fetch_smollm2.PATH.is_file(),
  reason="run python -m experiments.recipes.fetch_smollm2",
)
def test_smollm2_adds():
  model = tsd.load_model(fetch_smollm2.PATH)
  assert "135 M parameters" in repr(model)
  tree = tsd.search(
    model, "2 + 3 =", reward=lambda prompt, response: float("5" in response)
  )
  assert tree.champion is not None and tree.champion.reward == 1.0
  assert "5" in str(tree.champion) and "★" in str(tree)
