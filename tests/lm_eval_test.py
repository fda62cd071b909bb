"""An exported student in lm-eval: the same replies and likelihoods as here.

lm-eval is in no extra, for it brings half a hundred packages:
`pip install lm_eval`, best into an environment of its own.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small_text
from tsd_jax.inference import generate
from tsd_jax.models import hf, transformer

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install lm_eval")
pytestmark = pytest.mark.slow
RECIPES = pathlib.Path(__file__).parents[1] / "experiments/recipes/lm_eval"
PROMPTS = ("Let's", "add 12", "and", "it's 357.", "caf\u00e9 or tea?", "Done")
LENGTH = 12


@pytest.fixture(scope="module")
def student(tmp_path_factory):
  """Tokenizer, structure, parameters, and the folder of the export."""
  folder = tmp_path_factory.mktemp("student")
  tokenizer, config, params = small_text.random_model(folder)
  hf.save(folder / "out", config, params, tokenizer, max_length=256)
  graphdef, _ = transformer.abstract(config)
  return tokenizer, graphdef, params, folder / "out"


def replies(student, ids):
  """Our greedy replies."""
  tokenizer, graphdef, params, _ = student
  tokens_BT, mask_BT = generate.complete(
    graphdef, params, tokenizer.pad(ids, 128), None,
    length=LENGTH, end_ids=tokenizer.end_ids, pad_id=tokenizer.pad_id,
  )  # fmt: skip
  rows = zip(np.asarray(tokens_BT), np.asarray(mask_BT), strict=True)
  return [tokenizer.decode(tokens[mask]) for tokens, mask in rows]


def evaluate(folder, student, name, problems, monkeypatch, **kwargs):
  """What lm-eval says: its table, and each problem's raw response."""
  monkeypatch.chdir(folder)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_HOME", str(folder / "cache"))
  text = (RECIPES / f"{name}.yaml").read_text()
  (folder / "tasks").mkdir()
  (folder / "tasks" / f"{name}.yaml").write_text(
    text.replace("max_gen_toks: 128", f"max_gen_toks: {LENGTH}")
  )
  (folder / "problems.jsonl").write_text(
    "".join(json.dumps(problem) + "\n" for problem in problems)
  )
  found = lm_eval.simple_evaluate(
    model="hf",
    model_args={
      "pretrained": str(student[-1]), "dtype": "float32", "device": "cpu",
    },
    tasks=[name],
    task_manager=lm_eval.tasks.TaskManager(
      include_path=str(folder / "tasks"), include_defaults=False
    ),
    batch_size=2,
    bootstrap_iters=0,
    **kwargs,
  )  # fmt: skip
  samples = sorted(found["samples"][name], key=lambda s: s["doc_id"])
  return found["results"][name], [sample["resps"][0][0] for sample in samples]


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_replies_are_ours(tmp_path, student, monkeypatch, chat):
  tokenizer = student[0]
  ids = [
    tokenizer.encode_chat([{"role": "user", "content": prompt}])
    if chat
    else tokenizer.encode(prompt, add_special=True)
    for prompt in PROMPTS
  ]
  wanted = replies(student, ids)
  assert len({*wanted}) > 1
  answers = [text if i % 3 else text + "x" for i, text in enumerate(wanted)]
  problems = [
    {"prompt": prompt, "answer": answer}
    for prompt, answer in zip(PROMPTS, answers, strict=True)
  ]
  table, found = evaluate(
    tmp_path, student, "problems_greedy", problems, monkeypatch,
    apply_chat_template=chat,
  )  # fmt: skip
  assert found == wanted
  assert table["exact_match,none"] == pytest.approx(4 / 6)


def test_likelihoods_are_ours(tmp_path, student, monkeypatch):
  tokenizer, graphdef, params, _ = student
  problems = [
    {"prompt": prompt, "answer": f" {n} caf\u00e9"}
    for n, prompt in enumerate(PROMPTS)
  ]
  table, found = evaluate(
    tmp_path, student, "problems_likelihood", problems, monkeypatch
  )
  model = jax.jit(nnx.merge(graphdef, params).__call__)
  expected = []
  for problem in problems:
    start = tokenizer.encode(problem["prompt"])
    whole = tokenizer.encode(problem["prompt"] + problem["answer"])
    assert whole[: len(start)] == start
    logits_TV = model(jnp.asarray([whole]))[0]
    chosen_T = jax.nn.log_softmax(logits_TV)[
      np.arange(len(whole) - 1), np.asarray(whole[1:])
    ]
    expected.append(float(chosen_T[len(start) - 1 :].sum()))
  np.testing.assert_allclose([ll for ll, _ in found], expected, rtol=1e-5)
  assert table["perplexity,none"] == pytest.approx(
    math.exp(-np.mean(expected)), rel=1e-4
  )
