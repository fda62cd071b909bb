"""GGUF files that we write, run by llama.cpp itself.

`xllamacpp` has llama.cpp in it, built: `pip install --no-deps xllamacpp`. It is
in no extra, for nothing else needs it.
"""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.published import SHAPES, make
from tests.text_tokenizer_test import CHAT, TEXT, write_folder
from tsd_jax.models import gguf_export, pretrained, text_tokenizer
from tsd_jax.models.symbols import SymbolTokenizer

pytest.importorskip("gguf", reason="needs the extra: text")
llama_cpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
pytestmark = pytest.mark.slow
ROWS, POSITIONS, NEW = 400, 256, 6


def served(file):
  """A server of llama.cpp that keeps keys and values in float32."""
  params = llama_cpp.CommonParams()
  params.model.path = str(file)
  params.n_ctx, params.n_parallel, params.n_gpu_layers = POSITIONS, 1, 0
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
  params.cache_type_k = params.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
  params.flash_attn_type = (
    llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
  )
  params.verbosity = -1
  return llama_cpp.Server(params)


def continued(server, prompt, **options):
  """llama.cpp's greedy tokens, and its log-probabilities of each, by token."""
  said = server.handle_completions(
    {"prompt": prompt, "temperature": 0, "logprobs": ROWS, "max_tokens": NEW}
    | options
  )
  steps = (said["choices"][0]["logprobs"] or {"content": []})["content"]
  found_TV = np.full((len(steps), ROWS), np.nan)
  for t, step in enumerate(steps):
    for entry in step["top_logprobs"]:
      found_TV[t, entry["id"]] = entry["logprob"]
  return [step["id"] for step in steps], found_TV, said["usage"]


def ours_TV(file, prompt, tokens):
  """Our log-probabilities of each next token, of the same file."""
  _, graphdef, params = pretrained.load(file)
  whole = jnp.asarray([[*prompt, *tokens]])
  logits_TV = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, whole)[0]
  logits_TV = logits_TV[len(prompt) - 1 : -1]
  return np.asarray(jax.nn.log_softmax(logits_TV))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return text_tokenizer.load(write_folder(tmp_path_factory.mktemp("tokenizer")))


# In less than float32 llama.cpp also rounds what a matrix is multiplied by.
@pytest.mark.parametrize(
  ("name", "dtype", "tolerance"),
  [
    ("llama", "float32", 1e-3),
    ("llama", "q8_0", 0.1),
    ("llama_untied", "float16", 0.02),
    ("qwen2", "bfloat16", 0.1),
    ("qwen3", "float32", 1e-3),
  ],
)
def test_llama_cpp_computes_what_we_compute(
  tmp_path, tokenizer, name, dtype, tolerance
):
  shape = dataclasses.replace(
    SHAPES[name], vocab_size=ROWS, d_mlp=64, num_layers=1, number_tokens=0,
  )  # fmt: skip
  file = tmp_path / "m.gguf"
  gguf_export.save(
    file, shape, make(shape)[1], tokenizer, max_length=POSITIONS, dtype=dtype
  )
  server = served(file)
  prompt, difference, compared = tokenizer.encode(TEXT), 0.0, 0
  # A token at a time: the server keeps back one that is half a character.
  for length in (1, 2, 3, len(prompt)):
    tokens, found_TV, usage = continued(server, prompt[:length], max_tokens=1)
    assert usage["prompt_tokens"] == length
    if not tokens:
      continue
    compared += 1
    expected_TV = ours_TV(file, prompt[:length], tokens)
    difference = max(difference, np.abs(found_TV - expected_TV).max())
    if dtype == "float32":  # Greedy tokens are ours.
      assert expected_TV.argmax() == tokens[0]
  print(f"{name}, {dtype}: log-probabilities differ by up to {difference:.1e}")
  assert difference < tolerance and compared >= 2
  # It cuts a text as we do: the same tokens give the same numbers.
  _, text_TV, usage = continued(server, TEXT, max_tokens=1)
  assert usage["prompt_tokens"] == len(prompt)
  np.testing.assert_allclose(text_TV[0], found_TV[0], atol=1e-4)
  chat = tokenizer.encode_chat(CHAT)
  said = server.handle_chat_completions({"messages": CHAT, "max_tokens": 1})
  assert said["usage"]["prompt_tokens"] == len(chat)
  del server
  gc.collect()


def test_a_model_of_symbols_reads_and_writes_them(tmp_path):
  shape = dataclasses.replace(SHAPES["llama"], number_tokens=0, num_layers=1)
  file, symbols = tmp_path / "m.gguf", SymbolTokenizer()
  gguf_export.save(file, shape, make(shape)[1], symbols, max_length=POSITIONS)
  server = served(file)
  text = "3 4 199 = 24 + ?"
  prompt = symbols.encode(text)
  tokens, found_TV, usage = continued(server, text)
  assert usage["prompt_tokens"] == len(prompt)
  expected_TV = ours_TV(file, prompt, tokens)
  np.testing.assert_allclose(found_TV[:, :208], expected_TV, atol=1e-3)
  np.testing.assert_array_equal(expected_TV.argmax(axis=1), tokens)
  said = server.handle_completions(
    {"prompt": text, "temperature": 0, "max_tokens": NEW}
  )
  assert said["choices"][0]["text"].strip() == symbols.decode(tokens)
