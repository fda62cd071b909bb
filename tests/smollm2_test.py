"""A real model, SmolLM2-135M-Instruct, against transformers.

`python -m experiments.recipes.fetch_smollm2` fetches it first (98 MB).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.recipes import fetch_smollm2
from tsd_jax.inference import generate
from tsd_jax.models import hf, presets, pretrained, text_tokenizer

PATH = fetch_smollm2.PATH
torch = pytest.importorskip("torch", reason="needs the extra: interop")
transformers = pytest.importorskip("transformers")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not PATH.is_file(),
    reason=f"no {PATH}: run python -m experiments.recipes.fetch_smollm2",
  ),
]

QUESTIONS = (
  "What is the capital of France?", "Write a haiku about rain.",
  "What is 12 + 345?", "Name three colours.", "Who wrote Hamlet?",
  "Translate 'good morning' to Spanish.", "Why is the sky blue?",
  "Give me a recipe for pancakes.", "What is 7 times 8?",
  "Use 3, 5 and 2 to make 16.", "Explain gravity to a child.",
  "List the days of the week.", "What is a prime number?",
  "Write a Python function that adds two numbers.", "Tell me a joke.",
  "How many legs has a spider?", "Summarise: the cat sat on the mat.",
  "What comes after 2, 4, 6?", "Caf\u00e9 or tea? \u4f60\u597d!",
  "Complete: once upon a time",
)  # fmt: skip
REPLY = {2: "12 + 345 =", 9: "<answer>"}  # Some begin prefilled.
LENGTH, PROMPT = 64, 64


@pytest.fixture(scope="module")
def ours():
  config, graphdef, params = pretrained.load(PATH)
  assert config == presets.SMOLLM2_135M
  return graphdef, params


@pytest.fixture(scope="module")
def tokenizer():
  return text_tokenizer.load(PATH)


@pytest.fixture(scope="module")
def theirs():
  return transformers.AutoModelForCausalLM.from_pretrained(
    PATH.parent, gguf_file=PATH.name, dtype=torch.float32
  ).eval()


def chat(i):
  return [{"role": "user", "content": QUESTIONS[i]}]


@pytest.fixture(scope="module")
def prompts(tokenizer):
  return [
    tokenizer.encode_chat(chat(i), reply=REPLY.get(i, ""))
    for i in range(len(QUESTIONS))
  ]


def test_prompts_are_those_of_transformers(prompts, tokenizer):
  reference = transformers.AutoTokenizer.from_pretrained(
    PATH.parent, gguf_file=PATH.name
  )
  for i, prompt in enumerate(prompts):
    if i in REPLY:
      begun = [*chat(i), {"role": "assistant", "content": REPLY[i]}]
      encoded = reference.apply_chat_template(
        begun, continue_final_message=True
      )
    else:
      encoded = reference.apply_chat_template(
        chat(i), add_generation_prompt=True
      )
    assert prompt == encoded["input_ids"]
    text = tokenizer.render(chat(i), reply=REPLY.get(i, ""))
    assert tokenizer.decode(prompt, skip_special=False) == text


def test_logits_are_those_of_transformers(ours, theirs):
  tokens_RT = np.random.default_rng(0).integers(0, 49_152, (2, 48))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens_RT)).logits.numpy()
  logits_RTV = jax.jit(lambda p, x: nnx.merge(ours[0], p)(x))(
    ours[1], jnp.asarray(tokens_RT)
  )
  difference = np.abs(logits_RTV - expected).max()
  print(f"largest difference of logits: {difference:.2e}")
  assert difference < 1e-3


def test_greedy_text_is_that_of_transformers(ours, theirs, tokenizer, prompts):
  """By induction: of every prefix, theirs goes on with our next token."""
  tokens_BT, mask_BT = generate.complete(
    *ours,
    tokenizer.pad(prompts, PROMPT),
    None,
    length=LENGTH,
    end_ids=tokenizer.end_ids,
    pad_id=tokenizer.pad_id,
  )
  compared = ties = 0
  for prompt, tokens, mask in zip(
    prompts, np.asarray(tokens_BT), np.asarray(mask_BT), strict=True
  ):
    reply = tokens[mask]
    assert len(reply) == LENGTH or reply[-1] == tokenizer.eos_id
    whole = torch.tensor([[*prompt, *reply]])
    with torch.no_grad():
      logits_TV = theirs(whole).logits[0, len(prompt) - 1 : -1].numpy()
    best_T = logits_TV.max(axis=1)
    chosen_T = logits_TV[np.arange(len(reply)), reply]
    differs_T = logits_TV.argmax(axis=1) != reply
    assert (best_T - chosen_T)[differs_T].max(initial=0.0) < 1e-3
    compared += len(reply)
    ties += differs_T.sum()
  print(f"{compared} tokens compared, {ties} ties")
  assert compared > 10 * LENGTH and ties <= 2


def test_the_export_is_the_model_bit_for_bit(ours, theirs, tokenizer, tmp_path):
  hf.save(
    tmp_path / "out", presets.SMOLLM2_135M, ours[1], tokenizer, max_length=8_192
  )
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", output_loading_info=True, dtype=torch.float32
  )
  assert not any(info.values()), info
  first, second = theirs.state_dict(), again.state_dict()
  assert set(first) == set(second)
  for name, tensor in first.items():
    assert torch.equal(tensor, second[name]), name
  assert again.generation_config.eos_token_id == 2
  _, _, params = pretrained.load(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, params, ours[1])
