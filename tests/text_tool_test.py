"""A calculator in text that writes into responses, against plain Python."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from experiments.recipes import fetch_smollm2
from tests.flat_search import flat_search
from tests.host_tools import calculate, misbehave, results
from tests.noisy import add_noise
from tests.text_tokenizer_test import write_folder
from tsd_jax.base import config_json
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import LOG_ZERO, UNVISITED, Responses
from tsd_jax.inference import sampling
from tsd_jax.inference.prefill import prefill
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning import iteration, memory, methods, update
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.models import transformer
from tsd_jax.parallel import sharding
from tsd_jax.rewards import callback
from tsd_jax.rewards.pool import PoolConfig
from tsd_jax.rewards.reward import Scorer
from tsd_jax.run import evaluation
from tsd_jax.search import search as search_lib
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks import text
from tsd_jax.tasks.task import (
  Task,
  as_prompts,
  chosen,
  environment_tokens,
  prompt_form,
)
from tsd_jax.tasks.text import TextConfig

B, T, MOST = 4, 18, 4
# What the model likes to write: its next token follows one of these texts.
HABITS = ["<<3*4=7>>", "<<3+4=7>>", "4+4"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """The task, with SmolLM2's tokenizer where it is there."""
  folder = tmp_path_factory.mktemp("calculator")
  tokenizer = fetch_smollm2.PATH
  if not tokenizer.is_file():
    import tokenizers

    tokenizer = write_folder(folder / "tokenizer")
    backend = tokenizers.Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    backend.add_tokens(["<<", ">>"])  # As in SmolLM2's.
    backend.save(f"{tokenizer}/tokenizer.json")
  lines = [
    {"prompt": f"Use {n} and 4:", "unit": unit, "wanted": 12 * unit}
    for n, unit in zip((3, 4, 3, 12), (1, 3, 10, 1), strict=True)
  ]
  file = folder / "lines.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return TextConfig(
    file=str(file), tokenizer=str(tokenizer), reward=results, prompt_length=10,
    response_length=T, step_ends=">", low=-2.0, high=2.0, tool=calculate,
    tool_ends="=", tool_tokens=MOST, validation_size=0, test_size=0,
  )  # fmt: skip


@pytest.fixture(scope="module")
def task(config):
  return config.make()


@pytest.fixture(scope="module")
def prompts(config, task):
  return as_prompts(task, np.array([line.prompt_P for line in config.lines]))


@pytest.fixture(autouse=True)
def _nothing_goes_wrong_unheard():
  yield
  callback.report()


@functools.cache
def model_of(task):
  """A model of random weights with a habit of writing operations.

  A token's embedding is, but for noise, a feature of its own, and the output
  likes what may follow it: most of what it writes comes to a call of the tool.
  """
  encode = task.tokenizer.encode
  follows = [pair for t in HABITS for pair in itertools.pairwise(encode(t))]
  last = encode(">>")[-1]
  follows += [(last, task.eos_id), (last, encode("<<")[0])]
  follows.append((encode(":")[0], encode("<<")[0]))
  known = sorted({token for pair in follows for token in pair})
  size = transformer.ModelConfig(
    vocab_size=task.vocab_size, d_model=32, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=16, d_mlp=16, tied_embeddings=False,
  )  # fmt: skip
  assert len(known) < size.d_model
  graphdef, params = transformer.create(size, 1)
  params = add_noise(params, scale=0.1, seed=2)
  # The last feature is all tokens' own; by it the others are not written.
  embedding_VD = (0.1 * params["embedding_VD"][...]).at[:, -1].set(4.0)
  output_VD = (0.5 * params["unembedding_VD"][...]).at[:, -1].set(-6.0)
  output_VD = output_VD.at[jnp.array(known), -1].set(0.0)
  for i, token in enumerate(known):
    embedding_VD = embedding_VD.at[token, i].set(4.0)
    output_VD = output_VD.at[jnp.array(known), i].add(-1.0)
  for token, after in follows:
    goes_on = (token, after) == (encode("4")[0], encode("+")[0])
    strength = 0.7 if goes_on else 1.0  # Or sums would be all that it writes.
    output_VD = output_VD.at[after, known.index(token)].set(strength)
  params["embedding_VD"][...] = embedding_VD
  params["unembedding_VD"][...] = output_VD
  for name in ("output_LHED", "down_LFD"):  # The layers change it a little.
    params["layers"][name][...] *= 0.3
  return graphdef, params


def jitted(task, fn):
  """A function of the model and of arrays, compiled, its result on the host."""
  graphdef, params = model_of(task)
  compiled = jax.jit(lambda params, *a: fn(nnx.merge(graphdef, params), *a))
  return lambda *arrays: jax.device_get(compiled(params, *arrays))


def listed(task, tokens):
  """Python integers up to the end token, or the padding."""
  tokens = [int(token) for token in tokens]
  for end, stop in ((task.eos_id, 1), (task.pad_id, 0)):
    if end in tokens:
      return tokens[: tokens.index(end) + stop]
  return tokens


def tool_says(task, row, tokens):
  """What is written after some tokens; None: nothing. No cache, no JAX."""
  encode = task.tokenizer.encode
  decode = functools.partial(task.tokenizer.decode, skip_special=False)
  if not tokens or not decode([tokens[-1]]).endswith("="):
    return None
  line = task.config.lines[row]
  said = calculate(line.prompt, decode(tokens), line.example)
  ids = [] if said is None else encode(said)
  return ids if 0 < len(ids) <= MOST else None


def replay(task, row, tokens):
  """Checks what the tool wrote; which tokens are the model's."""
  own, t = [], 0
  while t < len(tokens):
    said = tool_says(task, row, tokens[:t])
    if said is None:
      own.append(True)
      t += 1
    else:
      assert tokens[t : t + len(said)] == said
      own += [False] * len(said)
      t += len(said)
  return own


@functools.cache
def forward(task):
  """Plain full forwards of rows of one length, which compile once."""

  def plain(model, tokens_1S, last):
    positions_1S = jnp.arange(tokens_1S.shape[1])[None]
    x_1SD = model.trunk(tokens_1S, positions_1S).x_RTD
    return model.logits(x_1SD[:, last])[0]

  return jitted(task, plain)


@functools.cache
def next_logits(task, tokens):
  """Logits over the vocabulary after some tokens, float64."""
  padded = np.zeros((1, 32), int)
  padded[0, : len(tokens)] = tokens
  return forward(task)(padded, len(tokens) - 1).astype(np.float64)


def log_probs(task, row, tokens, temperature=1.0):
  """Log pi of every token by plain full forwards."""
  pad, prompt_P = task.prompt_pad_id, task.config.lines[row].prompt_P
  prompt = [int(token) for token in prompt_P if token != pad]
  found = []
  for t, token in enumerate(tokens):
    scaled_V = next_logits(task, (*prompt, *tokens[:t])) / temperature
    found.append(scaled_V[token] - np.logaddexp.reduce(scaled_V))
  return np.array(found)


SAMPLES = RolloutConfig(prompts=B, samples=5, forks=3, temperature=1.25)


@pytest.fixture(scope="module")
def sampled(task, prompts):
  def draw(model, prompts):
    samples, _ = SAMPLES(model, task, prompts, jax.random.key(3))
    score = Scorer(task.reward, task.end_ids)(prompts, samples.tokens_BGT)
    return Responses(
      **samples._asdict(), reward_BG=score.reward_X, correct_BG=score.correct_X
    )

  return jitted(task, draw)(prompts)


def test_samples_and_forks_hold_what_the_tool_writes(task, sampled):
  r, answers, forked = sampled, 0, 0
  assert isinstance(task, Task)
  for b, g in np.ndindex(B, SAMPLES.group):
    tokens = listed(task, r.tokens_BGT[b, g])
    own, shared, n = replay(task, b, tokens), int(r.fork_BG[b, g]), len(tokens)
    np.testing.assert_array_equal(r.environment_BGT[b, g, :n], np.invert(own))
    mask = (np.arange(T) < n) & (np.arange(T) >= shared)
    np.testing.assert_array_equal(r.mask_BGT[b, g], mask)
    own_T = np.pad(own, (0, T - n)) & mask
    np.testing.assert_array_equal(r.chosen_BGT[b, g], own_T)
    expected = np.pad(log_probs(task, b, tokens, 1.25), (0, T - n)) * own_T
    np.testing.assert_allclose(r.log_prob_BGT[b, g], expected, atol=1e-4)
    if task.eos_id not in tokens and n < T:  # The answer would not have fitted.
      assert n + len(tool_says(task, b, tokens)) > T
    answers += sum(np.diff(own, prepend=True) & ~np.array(own))
    if shared and shared < n:
      assert own[shared]  # A fork leaves its parent where the model chose.
      forked += 1
  assert answers > 12 and forked > 3


def test_what_the_tool_says_is_what_the_function_says_with_the_example(
  task, sampled
):
  said = set()
  for b, g in np.ndindex(B, SAMPLES.group):
    whole = task.tokenizer.decode(listed(task, sampled.tokens_BGT[b, g]))
    if "<<3*4=" in whole:
      said.add((b, whole.partition("<<3*4=")[2].partition(">>")[0]))
  right = {(0, "12"), (1, "36"), (2, "120"), (3, "12")}
  # Answers that did not fit are not there.
  assert said and {pair for pair in said if pair[1]} <= right


def test_rewards_see_the_tools_text_and_keep_to_their_range(task, sampled):
  for b, g in np.ndindex(B, SAMPLES.group):
    tokens = listed(task, sampled.tokens_BGT[b, g])
    line, reward = task.config.lines[b], -2.0
    if task.eos_id in tokens:
      said = task.tokenizer.decode(tokens[:-1], skip_special=False)
      reward = results(line.prompt, said, line.example)
    assert sampled.reward_BG[b, g] == pytest.approx(reward)
    assert sampled.correct_BG[b, g] == (reward >= 1.0)
  assert len(set(sampled.reward_BG.ravel().tolist())) > 2


def test_given_responses_are_told_apart_by_what_was_said(
  task, prompts, sampled
):
  callback.report()
  again_BGT = jax.jit(functools.partial(environment_tokens, task))(
    prompts, sampled.tokens_BGT
  )
  written_BGT = sampled.tokens_BGT != task.pad_id
  np.testing.assert_array_equal(
    again_BGT & written_BGT, sampled.environment_BGT & written_BGT
  )
  assert callback.report() == {}  # All of it was known.
  chosen_BGT = chosen(task, prompts, sampled.tokens_BGT, sampled.mask_BGT)
  np.testing.assert_array_equal(chosen_BGT, sampled.chosen_BGT)


def test_greedy_answers_are_an_argmax_loop_with_a_tool(task, prompts):
  graphdef, params = model_of(task)
  tokens_B1T, *_ = evaluation.draw(
    graphdef, params, task, prompts, jax.random.key(0), 1.0, samples=0
  )
  answered = 0
  for row in range(B):
    pad, prompt_P = task.prompt_pad_id, task.config.lines[row].prompt_P
    prompt, tokens = [int(t) for t in prompt_P if t != pad], []
    while len(tokens) < T and task.eos_id not in tokens:
      said = tool_says(task, row, tokens)
      if said is not None and len(tokens) + len(said) > T:
        break
      answered += said is not None
      best = next_logits(task, (*prompt, *tokens)).argmax()
      tokens += [int(best)] if said is None else said
    assert listed(task, tokens_B1T[row, 0]) == tokens
  assert answered


TOKENS, STEPS = dict(num_candidates=3), dict(num_candidates=3, step_tokens=5)
SEARCHES = {
  "tokens": TOKENS,
  "steps": STEPS,
  "lazy": STEPS | dict(lazy=True),
  "turns": TOKENS | dict(slot_reuse=True, trees=3),
  "puct": TOKENS | dict(rule="puct", leaf="rollout"),
  "gumbel": STEPS | dict(rule="gumbel", leaf="value"),
}
searches = pytest.mark.parametrize(
  "case",
  [
    "tokens", "steps",
    *(
      pytest.param(c, marks=pytest.mark.slow)
      for c in ("lazy", "turns", "puct", "gumbel")
    ),
  ],
)  # fmt: skip
_TREES = {}


def searched(task, prompts, case):
  if case not in _TREES:
    settings = dict(num_simulations=40, stop_when_solved=False)
    settings = flat_search(**settings | SEARCHES[case])

    def grow(model, prompts):
      key = jax.random.key(5)
      return search_lib.search(model, task, prompts, key, settings).tree

    _TREES[case] = jitted(task, grow)(prompts)
  return _TREES[case]


@searches
def test_trees_branch_only_where_the_model_chooses(task, prompts, case):
  tree = searched(task, prompts, case)
  nodes, whole, mixed = tree.embeddings, 0, 0
  for row in range(B):
    for parent, action in np.argwhere(tree.children_index[row] != UNVISITED):
      child = tree.children_index[row, parent, action]
      if nodes.finished[row, parent] or nodes.cut_off[row, parent]:
        continue
      if nodes.log_prob_A[row, parent, action] <= LOG_ZERO:
        # A step drawn a second time: no move, and no place below it.
        assert case == "lazy" and nodes.cut_off[row, child]
        continue
      depth, below = nodes.depth[row, parent], nodes.depth[row, child]
      path = nodes.path_tokens[row, child][:below].tolist()
      before = path[:depth]
      said = tool_says(task, row, before)
      if said is not None and depth + len(said) > T:
        continue  # A move to nowhere: the path is cut off.
      own = replay(task, row, path)
      log_prob_T = np.where(own, log_probs(task, row, path), 0.0)
      assert nodes.log_prob_A[row, parent, action] == pytest.approx(
        log_prob_T[depth:].sum(), abs=1e-4
      )
      assert nodes.path_log_prob[row, child] == pytest.approx(
        log_prob_T.sum(), abs=2e-4
      )
      if not any(own[depth:]):
        whole += 1
        assert path[depth:] == said
        assert action == 0 and nodes.log_prob_A[row, parent, 0] == 0
        assert np.all(nodes.prior_A[row, parent, 1:] <= LOG_ZERO)
      mixed += said is not None
  assert mixed > 3
  assert whole > 3 or "step_tokens" in SEARCHES[case]


@searches
def test_answers_of_trees_replay_and_are_graded(task, prompts, case):
  nodes, written = searched(task, prompts, case).embeddings, 0
  found = np.argwhere(nodes.has_answer)
  assert len(found) > B
  for row, n in found:
    answer = listed(task, nodes.answer_tokens[row, n])
    own, line = replay(task, row, answer), task.config.lines[row]
    written += len(own) - sum(own)
    assert answer[-1] == task.eos_id
    said = task.tokenizer.decode(answer[:-1], skip_special=False)
    reward = results(line.prompt, said, line.example)
    assert nodes.reward[row, n] == pytest.approx((reward + 2) / 4, abs=1e-6)
    assert nodes.correct[row, n] == (reward >= 1)
    log_prob_T = np.where(own, log_probs(task, row, answer), 0.0)
    assert nodes.answer_log_prob[row, n] == pytest.approx(
      log_prob_T.sum(), abs=2e-4
    )
  assert written > B


def learner(task, **changes):
  loss = LossConfig(distilled_prompts=B, champions=2, champion_gate="better")
  return methods.resolve(
    "tsd", task, rollout=SAMPLES, refresh_every=1, iterations=1,
    loss=dataclasses.replace(loss, **changes),
    search=SearchConfig(num_simulations=40, num_candidates=3, width=1),
    optimizer=OptimizerConfig(minibatches=1),
  )  # fmt: skip


def caught(graphdef, carry, fixed, batch, *rest):
  """In place of the update: what it would have learned from."""
  del graphdef, fixed, rest
  d = batch.distillation
  return carry, dict(
    answer=d.tokens_CMT, observed=d.environment_CMT, used=d.used_CM,
    example=d.prompts.example_B,
  )  # fmt: skip


def check_champions(task, found):
  """Champions are told apart as a replay does it; tokens of the tool."""
  written = 0
  for example, *row in zip(
    *(np.asarray(found[n]) for n in ("example", "answer", "observed", "used")),
    strict=True,
  ):
    for tokens_T, observed_T, used in zip(*row, strict=True):
      if used:
        tokens = listed(task, tokens_T)
        own = replay(task, int(example), tokens)
        np.testing.assert_array_equal(observed_T[: len(own)], np.invert(own))
        written += len(own) - sum(own)
  return written


@pytest.mark.parametrize(
  "source", ["search", pytest.param("samples", marks=pytest.mark.slow)]
)
def test_an_iteration_tells_its_champions_apart(
  task, prompts, source, monkeypatch
):
  monkeypatch.setattr(iteration, "update", caught)
  config = learner(task, champion_source=source)
  graphdef, params = model_of(task)
  params = jax.tree.map(jnp.copy, params)
  program = iteration.Program(graphdef, None, task, config.static, None)
  _, metrics = iteration._train_loop.__wrapped__(program, False)(
    iteration.init_state(config, params),
    jax.tree.map(lambda a: a[None], prompts),
    update.FixedParams(jax.tree.map(jnp.copy, params)),
    {name: jnp.float32(x) for name, x in config.hyper.items()},
    jax.random.key(0),
  )
  found = jax.tree.map(lambda a: a[0], metrics)
  assert check_champions(task, found) > B


def test_no_gradient_comes_from_what_the_tool_wrote(task, prompts, sampled):
  """The loss of champions is the mean over the model's own tokens, by hand."""
  tokens_CMT = sampled.tokens_BGT[:, :2]
  used_CM = np.any(tokens_CMT == task.eos_id, axis=2)
  d = iteration.mark_environment(
    iteration.Program(None, None, task, learner(task), None),
    update.DistillationBatch(prompts, tokens_CMT, used_CM, None),
  )
  config = learner(task, policy_weight=0.0, success_weight=0.0)
  assert not config.loss.trains_on_samples
  graphdef, params = model_of(task)
  batch = update.Batch(prompts, None, None, None, None, d)
  hyper = {name: jnp.float32(x) for name, x in config.hyper.items()}
  loss, _ = jax.jit(
    lambda params: update.loss_fn(
      params, update.FixedParams(params), graphdef, batch, hyper, config
    )
  )(params)
  picked, others = [], 0
  for b, m in np.argwhere(used_CM):
    tokens = listed(task, tokens_CMT[b, m])
    own = replay(task, b, tokens)
    picked += log_probs(task, b, tokens, SAMPLES.temperature)[own].tolist()
    others += len(own) - sum(own)
  assert others > 3
  expected = -config.loss.champion_weight * np.mean(picked)
  assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_devices_ask_for_their_own_rows(task, prompts, sampled):
  """Inside `per_shard` and for champions, with the numbers of one device."""
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2), jax.devices()[:2])
  config = dataclasses.replace(learner(task), mesh=sharding.MeshConfig(data=2))
  program = iteration.Program(None, None, task, config, mesh)

  def both(model, prompts):
    graphdef, params = nnx.split(model)

    def draw(params, prompts, key):
      return SAMPLES(nnx.merge(graphdef, params), task, prompts, key)[0], (), ()

    samples, *_ = program.per_shard(draw)(params, prompts, jax.random.key(3))
    d = update.DistillationBatch(
      prompts, samples.tokens_BGT, jnp.ones((B, SAMPLES.group), bool), None
    )
    return samples, iteration.mark_environment(program, d).environment_CMT

  samples, environment_CMT = jitted(task, both)(prompts)
  np.testing.assert_array_equal(samples.tokens_BGT, sampled.tokens_BGT)
  np.testing.assert_array_equal(samples.environment_BGT, environment_CMT)


def test_runs_side_by_side_ask_in_one_call(task, prompts, monkeypatch):
  """`vmap` makes rows of them, and asks for nothing where nobody asks."""
  rows = []
  answer = text.Text.answer

  def counted(self, example_Q, response_QT, length_Q):
    rows.append(len(example_Q))
    return answer(self, example_Q, response_QT, length_Q)

  monkeypatch.setattr(text.Text, "answer", counted)
  encode = task.tokenizer.encode
  begun = np.full((2, B, T), task.pad_id)
  asks = [["<<3*4=", "<<3*4", "<<4+3=", ""], ["=", "<<4*4", "12>>", "<<3+3="]]
  length = np.zeros((2, B), int)
  for run, row in np.ndindex(2, B):
    ids = encode(asks[run][row])
    begun[run, row, : len(ids)], length[run, row] = ids, len(ids)

  def observe(response_BT, length_B):
    return task.observe(prompts, response_BT, length_B)

  token, count = jax.jit(jax.vmap(observe))(begun, length)
  assert rows == [4]
  for run, row in np.ndindex(2, B):
    ids = encode(asks[run][row])
    said = tool_says(task, row, ids) or []
    assert token[run, row, : count[run, row]].tolist() == said
  jax.jit(jax.vmap(observe))(begun, length * 0)
  jax.jit(jax.vmap(jax.vmap(observe)))(
    begun[None], np.maximum(length - 1, 0)[None]
  )
  assert rows == [4]


def test_equal_texts_are_asked_once_and_only_after_a_trigger(config, tmp_path):
  log, file = tmp_path / "log", tmp_path / "lines.jsonl"
  example = {"prompt": "Go:", "unit": 2, "log": str(log), "wanted": 0}
  file.write_text(json.dumps(example))
  task = dataclasses.replace(config, file=str(file)).make()
  prompts = as_prompts(
    task, np.array([task.config.lines[0].prompt_P] * 6), np.zeros(6, int)
  )
  ids = task.tokenizer.encode("<<3*4=")
  begun = np.full((6, T), task.pad_id)
  begun[:, : len(ids)] = ids
  begun[3:, 0] = task.tokenizer.encode("3")[0]

  @jax.jit
  def ask(begun, length):
    return task.observe(prompts, begun, jnp.full(6, length))

  for length in range(len(ids)):
    assert not np.any(ask(begun, length)[1])
  assert not log.exists()
  callback.report()
  for _ in range(2):
    token, count = ask(begun, len(ids))
    assert count[0] > 0 and count.tolist() == [count[0]] * 3 + [count[3]] * 3
  assert len(log.read_text().splitlines()) == 2
  assert callback.report() == {"host_tools": {"asked": 2}}


FAULTS = {
  "raise": "raised", "hang": "timed_out", "number": "wrong_type",
  "half": "wrong_type", "long": "out_of_range", "many": "too_long",
  "end": "unwritable",
}  # fmt: skip


def test_a_fault_of_the_tool_is_no_observation_and_is_counted(config, tmp_path):
  end = config.make().tokenizer.special["eos"]
  file = tmp_path / "lines.jsonl"
  file.write_text(json.dumps({"prompt": "Go:", "end": end}))
  task = dataclasses.replace(
    config, file=str(file), tool=misbehave, grading=PoolConfig(seconds=1.0),
    response_length=24,
  ).make()  # fmt: skip
  asked = [*FAULTS, "none", "empty", "fine"]
  rows = [task.tokenizer.encode(f"x;{how}=") for how in asked]
  begun = np.full((len(rows), 24), task.pad_id)
  for row, ids in enumerate(rows):
    begun[row, : len(ids)] = ids
  length = np.array([len(ids) for ids in rows])
  prompts = as_prompts(
    task, np.array([task.config.lines[0].prompt_P] * len(rows)), 0 * length
  )
  callback.report()
  observe = jax.jit(lambda: task.observe(prompts, begun, length))
  for _ in range(2):
    token, count = observe()
    assert not np.any(count[:-1])
    said = token[-1, : count[-1]].tolist()
    assert said == task.tokenizer.encode("12>>")
  kinds = list(FAULTS.values())
  assert callback.report() == {
    "host_tools": {"asked": len(asked)} | {k: kinds.count(k) for k in kinds}
  }


def test_settings_of_a_tool_that_cannot_be_are_refused(config):
  def change(**settings):
    return dataclasses.replace(config, **settings)

  with pytest.raises(ValueError, match="tool_ends='': name the characters"):
    change(tool_ends="")
  with pytest.raises(ValueError, match="tool_ends='=': .*none without a tool"):
    change(tool=None)
  with pytest.raises(ValueError, match="tool='calculate': use a function"):
    change(tool="calculate")
  for most in (0, T):
    with pytest.raises(ValueError, match=f"tool_tokens={most}: .*1..{T - 1}"):
      change(tool_tokens=most)
  assert change(tool=None, tool_ends="").make().observe is None
  task = change(tool_ends="\u4dc0").make()
  with pytest.raises(UserError, match="the tool would never be asked"):
    task.observe(None, jnp.zeros((1, T), int), jnp.ones(1, int))


def test_a_saved_tool_comes_back(config):
  saved = json.loads(json.dumps(config_json.to_dict(config)))
  assert config_json.from_dict(TextConfig, saved) == config


def test_a_search_of_tokens_has_room_for_whole_answers(task):
  """The pool of keys, and the estimate of memory, know of them."""
  plain = dataclasses.replace(task.config, tool=None, tool_ends="").make()
  size = nnx.merge(*model_of(task)).config
  pools = [
    memory.estimate_memory(size, t, SearchConfig()).pool for t in (task, plain)
  ]
  assert pools[0] == MOST * pools[1]


def test_sampling_asks_for_nothing_it_will_not_write(
  task, prompts, monkeypatch
):
  """Rows that have ended and rows within an answer are not asked again."""
  texts = []
  answer = text.Text.answer

  def heard(self, example_Q, response_QT, length_Q):
    texts.extend(
      (int(e), tuple(r[:n].tolist()))
      for e, r, n in zip(example_Q, response_QT, length_Q, strict=True)
    )
    return answer(self, example_Q, response_QT, length_Q)

  monkeypatch.setattr(text.Text, "answer", heard)

  def draw(model, prompts):
    return sampling.sample(
      model,
      prefill(model, prompts, prompt_form(task)),
      jax.random.split(jax.random.key(7), B),
      length=T,
      end_ids=task.end_ids,
      pad_id=task.pad_id,
      observe=sampling.observer(task, prompts),
    )

  drawn = jitted(task, draw)(prompts)
  expected = []
  for row, tokens_T in enumerate(np.asarray(drawn.tokens_RT)):
    tokens = listed(task, tokens_T)
    own = replay(task, row, tokens) + [True]
    expected += [
      (row, tuple(tokens[:t]))
      for t in range(1, min(len(tokens) + 1, T))
      if task.tokenizer.decode([tokens[t - 1]]).endswith("=")
      and (own[t] or own[t - 1])
    ]
  assert sorted(texts) == sorted(expected) and texts
