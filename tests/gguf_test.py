"""GGUF files written by ggml's own library, read by us and by transformers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from tests.published import LLAMA, SHAPES, TOKENS_RT, export, make
from tsd_jax.base.errors import UserError
from tsd_jax.models import families, names, pretrained, weights

gguf = pytest.importorskip("gguf", reason="needs the extra: text")

# Blocks of ggml's quantisations have 32 weights.
CONFIG = dataclasses.replace(LLAMA, d_mlp=64, number_tokens=0)


def interleave(array, heads):
  """Order of rotary pairs in llama.cpp's files: halves become neighbours."""
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(array.shape)


def write(
  path,
  config,
  params,
  kind="F32",
  without=(),
  more=(),
  shapes=(),
  tokenizer=None,
  **said,
):
  """Writes a model; `said` is metadata, the rest spoils it."""
  arch = families.family(config)
  writer = gguf.GGUFWriter(path, arch)
  writer.add_block_count(config.num_layers)
  writer.add_embedding_length(config.d_model)
  writer.add_feed_forward_length(config.d_mlp)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_layer_norm_rms_eps(config.rms_eps)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_context_length(64)
  if "ARCH__vocab_size" not in said:
    writer.add_vocab_size(config.vocab_size)
  if "ARCH__rope__dimension_count" not in said:
    writer.add_rope_dimension_count(config.head_dim)
  for name, value in said.items():
    name = name.replace("__", ".").replace("ARCH", arch)
    add = writer.add_string if isinstance(value, str) else writer.add_uint32
    add(name, value)
  leaves = weights.by_name(params)
  for piece in names.pieces(config, "gguf"):
    if piece.theirs in without:
      continue
    leaf = leaves[piece.ours]
    array = np.asarray(leaf if piece.layer is None else leaf[piece.layer])
    array = np.ascontiguousarray(piece.to_theirs(array))
    if arch == "llama" and "attn_q.w" in piece.theirs:
      array = interleave(array, config.num_heads)
    if arch == "llama" and "attn_k.w" in piece.theirs:
      array = interleave(array, config.num_kv_heads)
    array = dict(shapes).get(piece.theirs, array)
    stored = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
    data = gguf.quantize(array, stored)
    writer.add_tensor(piece.theirs, data, raw_dtype=stored)
  if tokenizer is not None:
    writer.add_tokenizer_model(tokenizer["model"])
    writer.add_tokenizer_pre(tokenizer["pre"])
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["token_type"])
    writer.add_token_merges(tokenizer["merges"])
    writer.add_chat_template(tokenizer["chat_template"])
    writer.add_bos_token_id(tokenizer["bos"])
    writer.add_eos_token_id(tokenizer["eos"])
    if (adds := tokenizer.get("add_bos", False)) is not None:
      writer.add_add_bos_token(adds)
  for name in more:
    writer.add_tensor(name, np.zeros(8, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(params=SHAPES)
def shape(request):
  return dataclasses.replace(SHAPES[request.param], d_mlp=64, number_tokens=0)


def test_a_file_gives_back_the_model(tmp_path, shape):
  graphdef, params = make(shape)
  path = write(tmp_path / "m.gguf", shape, params)
  config, structure, back = pretrained.load(path)
  assert config == shape and structure == graphdef
  assert pretrained.read_card(path).max_length == 64
  flat = weights.flatten(back)
  for name, array in weights.flatten(params).items():
    if not names.is_value(name):
      np.testing.assert_array_equal(flat[name], array, name)
  # And out to Hugging Face and in again.
  export(tmp_path / "out", config, back)
  _, _, again = pretrained.load(tmp_path / "out")
  for name, array in weights.flatten(again).items():
    np.testing.assert_array_equal(flat[name], array, name)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_transformers_reads_the_same_model(tmp_path, shape, kind):
  torch = pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  path = write(tmp_path / "m.gguf", shape, make(shape)[1], kind)
  config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf")
  config.head_dim = shape.head_dim  # transformers does not read key_length.
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file="m.gguf", dtype=torch.float32, config=config
  )
  _, graphdef, params = pretrained.load(path)
  ours = nnx.merge(graphdef, params)(jnp.asarray(TOKENS_RT))
  with torch.no_grad():
    expected = theirs(torch.tensor(TOKENS_RT)).logits.numpy()
  np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=2e-4)


def test_the_order_of_rotary_pairs_matters(tmp_path):
  """A q matrix read in the file's order is another model."""
  graphdef, params = make(CONFIG)
  path = write(tmp_path / "m.gguf", CONFIG, params)
  reader = gguf.GGUFReader(path)
  (stored,) = [t for t in reader.tensors if t.name == "blk.0.attn_q.weight"]
  export(tmp_path / "out", CONFIG, params)
  ours = load_file(tmp_path / "out" / "model.safetensors")
  assert not np.array_equal(
    stored.data, ours["model.layers.0.self_attn.q_proj.weight"]
  )


@pytest.mark.parametrize(
  ("said", "message"),
  [
    ({"ARCH__rope__scaling__type": "yarn"}, r"llama\.rope\.scaling\.type=yarn"),
    ({"ARCH__rope__dimension_count": 8}, r"rope\.dimension_count=8 .* 16"),
    ({"ARCH__expert_count": 4}, r"llama\.expert_count=4 is not supported"),
    ({"ARCH__attention__sliding_window": 9}, r"attention\.sliding_window=9"),
    ({"ARCH__vocab_size": 9}, r"llama\.vocab_size=9 is not supported"),
    ({"split__count": 2}, r"split\.count=2"),
    ({"ARCH__block_count": 2**32 - 1}, "says 4,294,967,295 layers"),
  ],
)
def test_metadata_that_is_not_ours_is_refused(tmp_path, said, message):
  path = write(tmp_path / "m.gguf", CONFIG, make(CONFIG)[1], **said)
  with pytest.raises(UserError, match=message):
    pretrained.load(path)


def test_another_architecture_is_refused(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
  writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(UserError, match=r"general\.architecture='gpt2'"):
    pretrained.load(tmp_path / "m.gguf")


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
  _, params = make(CONFIG)
  missing = ("blk.1.attn_k.weight",)
  path = write(tmp_path / "a.gguf", CONFIG, params, without=missing)
  with pytest.raises(UserError, match=r"lacks 1 tensors: blk\.1\.attn_k\.we"):
    pretrained.load(path)
  path = write(tmp_path / "b.gguf", CONFIG, params, more=("rope_freqs.weight",))
  with pytest.raises(UserError, match=r"has 1 tensors .*rope_freqs\.weight"):
    pretrained.load(path)
  odd = {"blk.0.ffn_up.weight": np.zeros((32, 32), np.float32)}
  path = write(tmp_path / "c.gguf", CONFIG, params, shapes=odd)
  with pytest.raises(UserError, match=r"ffn_up\.weight has shape \[32, 32\]"):
    pretrained.load(path)


def test_truncated_files_are_refused(tmp_path):
  path = write(tmp_path / "m.gguf", CONFIG, make(CONFIG)[1])
  whole = path.read_bytes()
  for size in (len(whole) - 40, len(whole) // 2, 900, 300, 30, 4, 0):
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r"m\.gguf is damaged or no GGUF file"):
      pretrained.load(path)
  path.write_bytes(b"PK\x03\x04" + whole[4:])
  with pytest.raises(UserError, match=r"m\.gguf is damaged or no GGUF file"):
    pretrained.load(path)
  with pytest.raises(UserError, match=r"no model at .*none\.gguf"):
    pretrained.load(tmp_path / "none.gguf")
