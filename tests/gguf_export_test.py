"""GGUF files that we write, read by ggml's library, by us, by transformers."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.published import SHAPES, TOKENS_RT, make
from tests.text_tokenizer_test import CHAT, CHATML, TEXT, train, write_folder
from tsd_jax.base.errors import UserError
from tsd_jax.models import (
  gguf_export,
  gguf_vocabulary,
  names,
  pretrained,
  text_tokenizer,
  weights,
)
from tsd_jax.models.symbols import SymbolTokenizer

gguf = pytest.importorskip("gguf", reason="needs the extra: text")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra: text")

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Blocks of Q8_0 have 32 numbers.
WIDE = {
  name: dataclasses.replace(shape, d_mlp=64, num_layers=1, number_tokens=0)
  for name, shape in SHAPES.items()
}
DTYPES = {
  "float32": "F32",
  "float16": "F16",
  "bfloat16": "BF16",
  "q8_0": "Q8_0",
}


@pytest.fixture(scope="module")
def models():
  return {name: make(shape) for name, shape in WIDE.items()}


def save(file, config, params, tokenizer=None, **kwargs):
  tokenizer = SymbolTokenizer() if tokenizer is None else tokenizer
  gguf_export.save(file, config, params, tokenizer, max_length=64, **kwargs)
  return file


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    ("llama", "float32"),
    ("llama", "q8_0"),
    ("llama_untied", "float16"),
    ("qwen2", "bfloat16"),
    ("qwen3", "float32"),
  ],
)
def test_we_read_what_was_stored_and_so_does_transformers(
  tmp_path, models, name, dtype
):
  """Bit for bit: ggml's own library rounds each matrix, and rounds it back."""
  config, (graphdef, params) = WIDE[name], models[name]
  file = save(tmp_path / "m.gguf", config, params, dtype=dtype)
  found, structure, back = pretrained.load(file)
  assert found == config and structure == graphdef
  assert pretrained.read_card(file).max_length == 64
  kind = gguf.GGMLQuantizationType[DTYPES[dtype]]
  ours, flat = weights.flatten(params), weights.flatten(back)
  for piece in names.pieces(config, "gguf"):
    array, read = ours[piece.ours], flat[piece.ours]
    if piece.layer is not None:
      array, read = array[piece.layer], read[piece.layer]
    array = np.ascontiguousarray(piece.to_theirs(array))
    if array.ndim == 2:
      array = gguf.dequantize(gguf.quantize(array, kind), kind)
    np.testing.assert_array_equal(piece.to_theirs(read), array, piece.theirs)
  check_transformers(file, config, nnx.merge(graphdef, back))


def check_transformers(file, config, model):
  torch = pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  where = {"gguf_file": file.name}
  said = transformers.AutoConfig.from_pretrained(file.parent, **where)
  said.head_dim = config.head_dim  # transformers does not read key_length.
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, **where, dtype=torch.float32, config=said
  )
  with torch.no_grad():
    expected = theirs(torch.tensor(TOKENS_RT)).logits.numpy()
  ours = model(jnp.asarray(TOKENS_RT))
  np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("name", WIDE)
def test_ggml_reads_the_shape_and_the_order_of_rotary_pairs(
  tmp_path, models, name
):
  config, (_, params) = WIDE[name], models[name]
  reader = gguf.GGUFReader(save(tmp_path / "m.gguf", config, params))
  said = {key: field.contents() for key, field in reader.fields.items()}
  arch = said["general.architecture"]
  assert said[f"{arch}.attention.head_count_kv"] == config.num_kv_heads
  assert said[f"{arch}.rope.freq_base"] == config.rope_theta
  assert said["general.file_type"] == gguf.LlamaFileType.ALL_F32
  stored = {tensor.name: tensor.data for tensor in reader.tensors}
  query_LDHE = weights.flatten(params)["layers.query_LDHE"]
  half = config.head_dim // 2
  for head in range(config.num_heads):
    for i in range(config.head_dim):
      # Llama's pairs are neighbours, Qwen's lie half a head apart.
      place = 2 * (i % half) + i // half if arch == "llama" else i
      np.testing.assert_array_equal(
        stored["blk.0.attn_q.weight"][head * config.head_dim + place],
        query_LDHE[0, :, head, i],
      )


@functools.cache
def text_model():
  """A model with more rows than its tokenizers have tokens."""
  shape = dataclasses.replace(WIDE["llama"], vocab_size=400)
  return shape, make(shape)[1]


def check_same_tokenizer(ours, again):
  for text in (TEXT, "x12 345 1999", "  \n a1b22", CHATML, "<|im_end|>x"):
    assert ours.encode(text) == again.encode(text)
    ids = ours.encode(text, add_special=True)
    assert ids == again.encode(text, add_special=True)
    assert ours.decode(ids) == again.decode(ids)
  assert ours.special_ids == again.special_ids
  assert (ours.bos_id, ours.end_ids) == (again.bos_id, again.end_ids)
  assert ours.pad_id == again.pad_id
  assert ours.encode_chat(CHAT) == again.encode_chat(CHAT)


def test_a_tokenizer_reads_as_the_original(tmp_path):
  transformers = pytest.importorskip(
    "transformers", reason="needs the extra: interop"
  )
  folder = write_folder(tmp_path / "tokenizer")
  file = folder / "tokenizer.json"
  saved = json.loads(file.read_text())
  # One without a role, one that is text, and two ends.
  more = {"<|tool|>": True, "<note>": False}
  count = len(saved["model"]["vocab"])
  saved["added_tokens"] += [
    {
      "id": count + i, "content": content, "single_word": False,
      "lstrip": False, "rstrip": False, "normalized": False, "special": special,
    }
    for i, (content, special) in enumerate(more.items())
  ]  # fmt: skip
  saved["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {
      "<|im_start|>": {
        "id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]
      }
    },
  }  # fmt: skip
  file.write_text(json.dumps(saved))
  (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
  tokenizer = text_tokenizer.load(folder)
  assert tokenizer.encode("a<note>", add_special=True)[::2] == [1, count + 1]
  written = save(tmp_path / "m.gguf", *text_model(), tokenizer)
  again = text_tokenizer.load(written)
  check_same_tokenizer(tokenizer, again)
  assert again.end_ids == (2, 0)
  theirs = transformers.AutoTokenizer.from_pretrained(
    tmp_path, gguf_file="m.gguf"
  )
  chat = theirs.apply_chat_template(CHAT, add_generation_prompt=True)
  assert chat["input_ids"] == tokenizer.encode_chat(CHAT)


@pytest.mark.parametrize(
  "pre", [pre for pre in text_tokenizer.GGUF_PRE if pre != "default"]
)
def test_each_way_to_cut_has_its_name(tmp_path, pre):
  """A folder with these parts becomes a file that says them, and back."""
  model = json.loads(train().to_str())["model"]
  backend = text_tokenizer.gguf_backend(
    pre, model["vocab"], [tuple(merge) for merge in model["merges"]]
  )
  backend.add_special_tokens(list(tokens_of(model)))
  folder = write_folder(tmp_path / "tokenizer")
  saved = json.loads(backend.to_str())
  saved["pre_tokenizer"]["pretokenizers"][-1]["trim_offsets"] = False
  saved["model"]["continuing_subword_prefix"] = ""  # As Qwen2 has it.
  (folder / "tokenizer.json").write_text(json.dumps(saved))
  tokenizer = text_tokenizer.load(folder)
  file = save(tmp_path / "m.gguf", *text_model(), tokenizer)
  (field,) = [
    field
    for key, field in gguf.GGUFReader(file).fields.items()
    if key == "tokenizer.ggml.pre"
  ]
  assert field.contents() == pre
  check_same_tokenizer(tokenizer, text_tokenizer.load(file))


def tokens_of(model):
  return (token for token in model["vocab"] if token.startswith("<|"))


def changed(**parts):
  """A folder's tokenizer with other parts."""

  def change(folder):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))

  return change


def strips(folder):
  file = folder / "tokenizer.json"
  saved = json.loads(file.read_text())
  saved["added_tokens"][0]["lstrip"] = True
  file.write_text(json.dumps(saved))


def ends(folder):
  (folder / "generation_config.json").write_text(
    '{"eos_token_id": [0, 1, 2, 3]}'
  )


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (changed(pre_tokenizer={"type": "WhitespaceSplit"}), "cuts text in a way"),
    (changed(normalizer={"type": "Lowercase"}), "cuts text in a way"),
    (
      changed(
        normalizer={
          "type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"
        }
      ),
      "has parts that llama.cpp has no name for",
    ),
    (strips, r"has the token '<\|endoftext\|>' with lstrip=true"),
    (ends, "ends replies with 4 tokens, not up to 3"),
  ],
)  # fmt: skip
def test_tokenizers_without_a_name_are_refused(tmp_path, spoil, message):
  folder = write_folder(tmp_path / "tokenizer")
  spoil(folder)
  tokenizer = text_tokenizer.load(folder)
  with pytest.raises(UserError, match=f"{message}.*--format=huggingface"):
    save(tmp_path / "m.gguf", *text_model(), tokenizer)
  assert not (tmp_path / "m.gguf").exists()


def test_words_that_do_not_grow_letter_by_letter_are_refused():
  symbols = SymbolTokenizer()
  said = gguf_vocabulary.metadata(symbols, 210)
  tokens = said["tokenizer.ggml.tokens"]
  assert tokens[12] == "\u258112" and tokens[207:209] == ["<eos>", "[PAD208]"]
  assert said["tokenizer.ggml.token_type"][205:209] == [3, 1, 3, 5]
  with mock.patch.object(
    SymbolTokenizer, "decode", lambda self, ids, **_: "ab"
  ):
    with pytest.raises(UserError, match="has the word 'ab', and no 'a'"):
      gguf_vocabulary.metadata(symbols, 210)


def test_eight_bits_are_for_gguf_files_alone():
  done = subprocess.run(
    [sys.executable, "-m", "launch.export", "--workdir=x", "--output=y"]
    + ["--dtype=q8_0"],
    cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert "add --format=gguf" in done.stderr.strip().splitlines()[-1]


def test_what_does_not_fit_is_refused_before_anything_is_written(
  tmp_path, models
):
  config, (_, params) = WIDE["llama"], models["llama"]
  with pytest.raises(UserError, match=r"name a file that ends with \.gguf"):
    save(tmp_path / "folder", config, params)
  (tmp_path / "old.gguf").write_text("kept")
  with pytest.raises(UserError, match="is there already"):
    save(tmp_path / "old.gguf", config, params)
  assert (tmp_path / "old.gguf").read_text() == "kept"
  odd = dataclasses.replace(config, d_mlp=48)
  with pytest.raises(UserError, match="a row of blk.0.ffn_down.weight has 48"):
    save(tmp_path / "m.gguf", odd, params, dtype="q8_0")
  odd = dataclasses.replace(WIDE["qwen2"], head_dim=16)
  with pytest.raises(
    UserError, match="a qwen2 of 4 heads of 16 .* in all, not"
  ):
    save(tmp_path / "m.gguf", odd, params)
  both = dataclasses.replace(config, qkv_bias=True, qk_norm=True)
  with pytest.raises(UserError, match="are no Hugging Face architecture"):
    save(tmp_path / "m.gguf", both, params)
  arrays = weights.flatten(params)
  arrays["layers.up_LDF"] = arrays["layers.up_LDF"] + 1e6
  with pytest.raises(UserError, match="--dtype=float16 ends at 65504, but lay"):
    save(
      tmp_path / "m.gguf", config, weights.unflatten(params, arrays),
      dtype="float16",
    )  # fmt: skip
  assert [f.name for f in tmp_path.iterdir()] == ["old.gguf"]
