"""What a model's folder says twice, or not at all, is read as by transformers.

Every row of the table in docs/models.md has a test here that names it.
"""

import itertools
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tests.published import SHAPES, edit_config, make
from tests.text_tokenizer_test import CHAT, CHATML, TEXT, gguf_file, train
from tests.text_tokenizer_test import write_folder as write_tokenizer
from tsd_jax.base.errors import UserError
from tsd_jax.inference import generate
from tsd_jax.models import (
  assemble,
  families,
  hf,
  pretrained,
  text_tokenizer,
)
from tsd_jax.models.transformer import ModelConfig

torch = pytest.importorskip("torch", reason="needs the extra: interop")
transformers = pytest.importorskip("transformers")

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"
covered: set[str] = set()


def row(*names):
  """The rows of the table that a test is about."""
  covered.update(names)
  return lambda test: test


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A folder of each shape, of a model that says something."""
  root = tmp_path_factory.mktemp("published")
  tokenizer = text_tokenizer.load(write_tokenizer(root / "tokenizer"))
  made = {}
  for name, shape in SHAPES.items():
    config = shape.__class__(
      **vars(shape) | {"vocab_size": tokenizer.vocab_size, "number_tokens": 0}
    )
    made[name] = root / name
    hf.save(made[name], config, make(config)[1], tokenizer, max_length=64)
  return made


@pytest.fixture
def folder(published, tmp_path):
  return shutil.copytree(published["llama"], tmp_path / "model")


def test_frequencies_of_another_width_are_refused_before_any_are_computed():
  def read():
    raise AssertionError("read")

  config = SHAPES["llama"].__class__(
    **vars(SHAPES["llama"]) | {"head_dim": 2**31 - 2}
  )
  tensor = assemble.Stored("model.safetensors", (4,), read)
  with pytest.raises(UserError, match="other rotary frequencies"):
    hf._check_frequencies("rotary_emb.inv_freq", tensor, config)


def edit(file, **changes):
  """Sets values of a JSON file, which may not exist yet."""
  saved = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(saved | changes))


TOKENS_RT = np.random.default_rng(0).integers(0, 300, (2, 12))


def theirs_of(folder):
  """The logits of transformers."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  with torch.no_grad():
    return model(torch.tensor(TOKENS_RT)).logits.float().numpy()


def check_logits(folder):
  """Ours are those of transformers; returns them."""
  _, graphdef, params = pretrained.load(folder)
  ours = np.asarray(nnx.merge(graphdef, params)(jnp.asarray(TOKENS_RT)))
  np.testing.assert_allclose(ours, theirs_of(folder), atol=2e-5, rtol=2e-4)
  return ours


def refused(folder, words):
  with pytest.raises(UserError, match=words):
    pretrained.load(folder)


# --- The model ----------------------------------------------------------------


@row("the output matrix")
@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_a_tied_output_may_be_stored_twice_but_not_otherwise(
  published, tmp_path, shape
):
  folder = shutil.copytree(published[shape], tmp_path / "model")
  before = check_logits(folder)
  arrays = load_file(folder / MODEL)
  save = lambda head: save_file(  # noqa: E731
    arrays | {HEAD: head}, folder / MODEL, {"format": "pt"}
  )
  save(arrays[EMBEDDING].copy())
  np.testing.assert_array_equal(check_logits(folder), before)
  save(arrays[EMBEDDING][::-1].copy())
  assert not np.allclose(theirs_of(folder), before, atol=0.1)  # With both.
  refused(folder, "says that lm_head.weight is model.embed_tokens.weight")
  edit_config(folder, tie_word_embeddings=False)
  check_logits(folder)
  edit_config(folder, tie_word_embeddings=None)  # Not said: not tied.
  check_logits(folder)


@row("one file or several")
def test_a_file_beside_the_index_of_others_is_refused(folder):
  arrays = load_file(folder / MODEL)
  other = {k: v + 1 for k, v in arrays.items()}
  part = "model-00001-of-00001.safetensors"
  save_file(other, folder / part, {"format": "pt"})
  index = {"metadata": {}, "weight_map": dict.fromkeys(arrays, MODEL)}
  (folder / INDEX).write_text(json.dumps(index))
  check_logits(folder)  # The index names the file itself.
  index["weight_map"] = dict.fromkeys(arrays, part)
  (folder / INDEX).write_text(json.dumps(index))
  refused(folder, rf"holds two models: {MODEL}, and model-00001-of-00001")
  (folder / MODEL).unlink()
  check_logits(folder)


@row("an adapter")
def test_an_adapter_beside_the_model_is_refused(folder):
  edit(folder / "adapter_config.json", peft_type="LORA")
  refused(folder, r"holds an adapter \(adapter_config.json\): merge it")


@row("rotary frequencies")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_stored_rotary_frequencies_must_be_the_configs(folder, dtype):
  arrays = load_file(folder / MODEL)
  names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)]
  names.append("model.rotary_emb.inv_freq")
  for theta in (5_000.0, 10_000.0):
    frequencies = (theta ** -(np.arange(0, 16, 2) / 16)).astype(dtype)
    save_file(
      arrays | dict.fromkeys(names, frequencies),
      folder / MODEL,
      {"format": "pt"},
    )
    if theta == 5_000:
      check_logits(folder)
    else:
      refused(folder, "inv_freq has other rotary frequencies than config.json")


@row("rotary settings")
@pytest.mark.parametrize(
  "said",
  [
    {},
    {"rope_theta": 700.0},
    {"rope_parameters": {"rope_theta": 300.0}, "rope_theta": 700.0},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 700.0},
    {
      "rope_parameters": {"rope_theta": 300.0, "rope_type": "default"},
      "rope_scaling": {"rope_theta": 90.0, "type": "default"},
    },
    {
      "rope_parameters": {"rope_theta": 300.0},
      "rope_scaling": {"rope_type": "default"},
      "rope_theta": 20.0,
    },
    {"rope_parameters": {"rope_theta": 300.0}, "rope_scaling": {}},
  ],
)
@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_rotary_settings_are_those_of_transformers(
  published, tmp_path, shape, said
):
  folder = shutil.copytree(published[shape], tmp_path / "model")
  edit_config(folder, **{"rope_theta": None, "rope_parameters": None} | said)
  check_logits(folder)


@row("rotary settings")
@pytest.mark.parametrize(
  ("said", "words"),
  [
    (
      {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default"},
      },
      "rope_type=linear is not supported: choose a model whose rotary",
    ),
    ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta=-1.0 must be"),
    ({"rope_parameters": None, "rope_theta": 0}, "rope_theta=0.0 must be"),
    ({"rope_parameters": {"rope_theta": True}}, "rope_theta=True is of a wron"),
    ({"rms_norm_eps": -1.0}, "config.json: rms_norm_eps=-1.0 must be"),
    ({"max_position_embeddings": 0}, "a model of 0 positions"),
  ],
)
def test_settings_that_no_model_has_are_refused(folder, said, words):
  edit_config(folder, **said)
  refused(folder, words)


@row("sizes that are not said")
@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
  "key",
  ["num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"],
)
@pytest.mark.parametrize("null", [False, True])
def test_an_absent_size_is_that_of_transformers(
  published, tmp_path, shape, key, null
):
  folder = shutil.copytree(published[shape], tmp_path / "model")
  saved = json.loads((folder / "config.json").read_text())
  del saved[key]
  (folder / "config.json").write_text(
    json.dumps(saved | ({key: None} if null else {}))
  )
  try:
    config = transformers.AutoConfig.from_pretrained(folder)
  except Exception:  # Theirs says so in several ways.
    with pytest.raises(UserError, match=f"has no '{key}'"):
      pretrained.read_card(folder)
    return
  expected = getattr(config, key, None)
  if expected is None:
    expected = saved["hidden_size"] // saved["num_attention_heads"]
  # Otherwise no such model exists: transformers would fail on its tensors.
  if key == "num_key_value_heads" and expected == 32:
    refused(folder, "must be a multiple of num_key_value_heads=32")
    return
  ours = pretrained.read_card(folder).config
  names = dict(
    num_key_value_heads=ours.num_kv_heads,
    head_dim=ours.head_dim,
    rms_norm_eps=ours.rms_eps,
    tie_word_embeddings=ours.tied_embeddings,
  )
  assert names[key] == expected


@row("attributes that change nothing")
@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_attributes_that_change_nothing_are_read_over(
  published, tmp_path, shape
):
  folder = shutil.copytree(published[shape], tmp_path / "model")
  expected = check_logits(folder)
  edit_config(
    folder, hidden_act="swish", id2label={"0": "a"}, label2id={"a": 0},
    tokenizer_class="X", auto_map={"AutoModel": "x.Y"}, is_decoder=True,
    output_attentions=False, return_dict=True, is_encoder_decoder=False,
    keys_to_ignore_at_inference=["past_key_values"], temperature=0.7,
  )  # fmt: skip
  np.testing.assert_array_equal(check_logits(folder), expected)


@row("attributes that change something")
@pytest.mark.parametrize(
  ("said", "words"),
  [
    ({"hidden_act": "gelu"}, "a llama with hidden_act=gelu is not supported"),
    ({"is_causal": False}, "is_causal=False is not supported"),
    ({"architectures": ["MistralForCausalLM"]}, "choose a model with Llama"),
    ({"quantization_config": {"bits": 4}}, "unknown here and may change"),
    ({"logit_scale": 2.0}, "choose another model, or remove it from a copy"),
  ],
)
def test_attributes_that_change_something_are_refused(folder, said, words):
  edit_config(folder, **said)
  refused(folder, words)


@row("the type of numbers")
def test_tensors_are_read_in_their_own_type(folder):
  arrays = load_file(folder / MODEL)
  arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
  save_file(arrays, folder / MODEL, {"format": "pt"})
  edit_config(folder, dtype="float32", torch_dtype="bfloat16")
  check_logits(folder)


@row("numbers that are none")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [EMBEDDING, UP])
def test_weights_that_are_no_numbers_are_refused(folder, name, value):
  arrays = load_file(folder / MODEL)
  arrays[name][1, 2] = value
  save_file(arrays, folder / MODEL, {"format": "pt"})
  refused(folder, rf"{MODEL}: {name} holds values that are no finite numbers")


@row("numbers that are none")
@pytest.mark.parametrize(
  ("dtype", "value", "words"),
  [
    (
      "float16",
      7e4,
      r"=float16 ends at 65504, but layers\.up_LDF has 70000",
    ),
    ("bfloat16", 3.4e38, "--dtype=bfloat16 ends at 3.38953e"),
    (
      "float32",
      np.nan,
      "up_LDF holds values that are no finite numbers",
    ),
  ],
)
def test_an_export_holds_what_the_model_holds(tmp_path, dtype, value, words):
  tokenizer = text_tokenizer.load(write_tokenizer(tmp_path / "t"))
  config = SHAPES["llama"]
  _, params = make(config)
  leaf = params["layers"]["up_LDF"]
  leaf[...] = leaf[...].at[1, 0, 0].set(value)
  with pytest.raises(UserError, match=words):
    hf.save(
      tmp_path / "out", config, params, tokenizer, max_length=64, dtype=dtype
    )
  assert not list(tmp_path.glob("out*"))
  largest = dict(float16=65504.0, bfloat16=3.3e38).get(dtype, 3.4e38)
  leaf[...] = leaf[...].at[1, 0, 0].set(largest)
  hf.save(
    tmp_path / "out", config, params, tokenizer, max_length=64, dtype=dtype
  )


# --- Where a reply ends -------------------------------------------------------


PROMPTS = [[5, 6, 7], [40, 41, 42]]
LENGTH = 12


def replies(folder):
  """What transformers writes after two prompts; what we write is the same."""
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  tokenizer = text_tokenizer.load(folder)
  _, graphdef, params = pretrained.load(folder)
  tokens_BT, mask_BT = generate.complete(
    graphdef, params, np.array(PROMPTS, np.int32), None, length=LENGTH,
    end_ids=tokenizer.end_ids, pad_id=tokenizer.pad_id,
  )  # fmt: skip
  found = []
  for row, prompt in enumerate(PROMPTS):
    ids = theirs.generate(
      torch.tensor([prompt]), do_sample=False, max_new_tokens=LENGTH
    )[0, len(prompt) :].tolist()
    assert np.asarray(tokens_BT[row])[np.asarray(mask_BT[row])].tolist() == ids
    found.append(ids)
  return found


@row("where a reply ends")
def test_replies_end_where_those_of_transformers_end(folder):
  config, generation = folder / "config.json", folder / "generation_config.json"
  free = replies(folder)
  a, b = free[0][4], free[1][7]
  assert list(map(len, free)) == [LENGTH, LENGTH] and 2 not in (a, b)
  edit(config, eos_token_id=[2, b])  # Not read beside the other file.
  edit(generation, eos_token_id=[a, 2])
  assert text_tokenizer.load(folder).end_ids == (2, a)
  ended = replies(folder)
  assert ended[0] == free[0][: free[0].index(a) + 1]
  generation.unlink()
  assert text_tokenizer.load(folder).end_ids == (2, b)
  assert replies(folder)[1] == free[1][: free[1].index(b) + 1]
  # Where nothing says so theirs goes on; a response of ours needs an end.
  edit_config(folder, eos_token_id=None)
  assert text_tokenizer.load(folder).end_ids == (2,)


@row("where a reply ends")
@pytest.mark.parametrize(
  ("said", "words"),
  [
    (0, r"ends replies with the tokens 0, the tokenizer with 2 \('<\|im_end"),
    ("2", "eos_token_id='2' is neither a token nor a list"),
    ([2, -1], "is neither a token nor a list"),
    ([True, 2], "is neither a token nor a list"),
  ],
)
def test_a_reply_that_would_run_over_its_end_is_refused(folder, said, words):
  edit(folder / "generation_config.json", eos_token_id=said)
  with pytest.raises(UserError, match=words):
    text_tokenizer.load(folder)


@row("where a reply ends")
def test_all_ends_are_exported(folder, tmp_path):
  edit(folder / "generation_config.json", eos_token_id=[0, 2])
  tokenizer = text_tokenizer.load(folder)
  config, _, params = pretrained.load(folder)
  hf.save(tmp_path / "out", config, params, tokenizer, max_length=64)
  assert text_tokenizer.load(tmp_path / "out").end_ids == (2, 0)
  theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
  assert theirs.eos_token_id == [2, 0]


# --- Tokens -------------------------------------------------------------------


def check_tokens(folder, texts=()):
  """Every text has the same tokens, and every role the same one."""
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  ours = text_tokenizer.load(folder)
  for text in (TEXT, "a<|x|>b <|im_end|>c<|im_start|> d", *texts):
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text, add_special=True) == theirs.encode(text)
  assert ours.special == {
    name.removesuffix("_token"): token
    for name, token in theirs.special_tokens_map.items()
  }
  assert set(ours.special_ids) == {
    i for i, token in theirs.added_tokens_decoder.items() if token.special
  }
  return ours


def flags(content, **changes):
  return dict(
    content=content, lstrip=False, rstrip=False, normalized=False,
    single_word=False, special=True,
  ) | changes  # fmt: skip


@row("special tokens")
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
  "older",
  [
    {},
    {"eos_token": "<|endoftext|>", "unk_token": "<|im_start|>"},
    {"bos_token": flags("<|endoftext|>")},
  ],
)
def test_roles_are_those_of_transformers(tmp_path, listed, older):
  folder = write_tokenizer(tmp_path / "x", sep_token="<|im_start|>")
  if older:
    edit(folder / "special_tokens_map.json", **older)
  if listed:
    decoder = {"2": flags("<|im_end|>")}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
  check_tokens(folder)


def without_special(folder, *tokens):
  """Leaves tokens in the vocabulary, and takes them from the added ones."""
  file = folder / "tokenizer.json"
  saved = json.loads(file.read_text())
  saved["added_tokens"] = [
    t for t in saved["added_tokens"] if t["content"] not in tokens
  ]
  file.write_text(json.dumps(saved))


@row("special tokens")
@pytest.mark.parametrize(
  ("files", "tokens"),
  [
    ({}, ["<|im_end|>"]),
    (
      {"added_tokens.json": {"<|im_start|>": 1}},
      ["<|im_end|>", "<|im_start|>"],
    ),
    (
      {
        "tokenizer_config.json": {
          "added_tokens_decoder": {
            "0": flags("<|endoftext|>", special=False, lstrip=True),
            "2": flags("<|im_end|>", rstrip=True, special=False),
          }
        }
      },
      ["<|im_end|>", "<|endoftext|>"],
    ),
    (
      {
        "tokenizer_config.json": {
          "added_tokens_decoder": {
            "0": flags("<|endoftext|>", special=False),
            "1": flags("<|im_start|>", lstrip=True, special=False),
          }
        }
      },
      [],
    ),
    (
      {"tokenizer_config.json": {"extra_special_tokens": ["<|endoftext|>"]}},
      ["<|endoftext|>"],
    ),
    (
      {
        "tokenizer_config.json": {
          "additional_special_tokens": ["<|endoftext|>"]
        }
      },
      ["<|endoftext|>"],
    ),
  ],
)
def test_a_token_that_only_a_config_calls_special_is_one(
  tmp_path, files, tokens
):
  folder = write_tokenizer(tmp_path / "x")
  without_special(folder, *tokens)
  for name, content in files.items():
    edit(folder / name, **content)
  check_tokens(folder, ["a <|endoftext|> b <|im_end|> c <|im_start|> d"])


@row("special tokens")
@pytest.mark.parametrize(
  ("config", "words"),
  [
    (
      {"added_tokens_decoder": {"9": flags("<|im_end|>")}},
      "'<|im_end|>' has the id 9 in the config and 2 in tokenizer.json",
    ),
    (
      {"added_tokens_decoder": {"400": flags("<|new|>")}},
      "'<|new|>' has the id 400 in the config and none in tokenizer.json",
    ),
    (
      {"extra_special_tokens": ["<|new|>"]},
      "special token '<|new|>' is not in the vocabulary",
    ),
    ({"eos_token": 5}, "eos_token is 5, no text"),
    ({"added_tokens_decoder": {"a": 3}}, "added_tokens_decoder holds what is"),
    ({"split_special_tokens": True}, "split_special_tokens=true"),
  ],
)
def test_tokens_that_the_vocabulary_has_not_are_refused(
  tmp_path, config, words
):
  folder = write_tokenizer(tmp_path / "x", **config)
  with pytest.raises(UserError) as error:
    text_tokenizer.load(folder)
  assert words in str(error.value)


@row("the vocabulary")
def test_a_model_has_a_row_for_every_token(folder):
  tokenizer = text_tokenizer.load(folder)
  generate.generate(folder, tokenizer, [[5, 6]], max_tokens=1)
  file = folder / "tokenizer.json"
  saved = json.loads(file.read_text())
  new = {"id": tokenizer.vocab_size} | flags("<|new|>")
  file.write_text(
    json.dumps(saved | {"added_tokens": [*saved["added_tokens"], new]})
  )
  tokenizer = text_tokenizer.load(folder)
  with pytest.raises(UserError, match=r"has 3\d\d tokens, its model 3\d\d"):
    generate.generate(folder, tokenizer, [[5, 6]], max_tokens=1)


@row("the start token")
@pytest.mark.parametrize("says", [None, True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_the_start_token_is_added_as_tokenizer_json_says(tmp_path, says, adds):
  folder = write_tokenizer(tmp_path / "x", add_bos_token=says)
  file = folder / "tokenizer.json"
  saved = json.loads(file.read_text())
  if adds:
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    saved["post_processor"] = {
      "type": "TemplateProcessing",
      "single": [start, text],
      "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
      "special_tokens": {
        "<|im_start|>": {
          "id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"],
        }
      },
    }  # fmt: skip
  file.write_text(json.dumps(saved))
  ours = check_tokens(folder)
  assert (ours.encode("a", add_special=True)[0] == 1) == adds


@row("the padding token")
def test_padding_that_nothing_names_is_the_end_and_undefined(tmp_path):
  template = "{{ pad_token is defined }} {{ pad_token }}|{{ unk_token }}"
  folder = write_tokenizer(tmp_path / "x", template, pad_token=None)
  ours = check_tokens(folder)
  assert ours.pad_id == ours.eos_id
  check_chat(folder)


# --- Chats --------------------------------------------------------------------


def check_chat(folder, chat=CHAT, **variables):
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  expected = theirs.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=False, **variables
  )
  assert text_tokenizer.load(folder).render(chat, **variables) == expected
  return expected


@row("where the chat template is")
def test_the_chat_template_is_that_of_transformers(tmp_path):
  folder = write_tokenizer(tmp_path / "x", "config")
  edit(folder / "chat_template.json", chat_template="of a processor")
  assert check_chat(folder) == "config"
  several = [
    {"name": "tool_use", "template": "tools"},
    {"name": "default", "template": "default"},
  ]
  edit(folder / "tokenizer_config.json", chat_template=several)
  assert check_chat(folder) == "default"
  for text in ("file", ""):
    (folder / "chat_template.jinja").write_text(text)
    assert check_chat(folder) == text
  for name in ("chat_template.jinja", "tokenizer_config.json"):
    (folder / name).unlink()
  edit(folder / "tokenizer_config.json", eos_token="<|im_end|>")
  with pytest.raises(UserError, match="has no chat template"):
    text_tokenizer.load(folder).render(CHAT)


@row("what a template finds")
@pytest.mark.parametrize(
  "template",
  [
    CHATML,
    "{% if tools is not none %}TOOLS{% endif %}{{ tools is defined }}",
    "{% if documents is none %}NO{% endif %}{{ documents }}",
    "{{ unknown is defined }}{{ unknown }}{% if unknown %}x{% endif %}",
    "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ sep_token is defined }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}"
    "{% endgeneration %}{{ x is defined }}\n{% endfor %}",
    "{{ messages | tojson }}{{ messages | tojson(ensure_ascii=False) }}",
    "{{ messages | tojson(ensure_ascii=True, sort_keys=True, indent=2) }}",
    "{{ messages[0] | tojson(sort_keys=True, separators=(',', ':')) }}",
    "{{ messages[0] | tojson(indent=1) }}<&>",
    "{% for m in messages %}{{ m.name is defined }}{{ m.name }}{% endfor %}",
    "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}"
    "|{{ m.reasoning }}\n{% endfor %}",
    "  {% if true %}\n  x\n  {% endif %}\n{{ dict(a=1) }}",
  ],
)
def test_templates_find_what_transformers_gives_them(tmp_path, template):
  folder = write_tokenizer(tmp_path / "x", template)
  check_chat(folder)
  check_chat(folder, enable_thinking=False, tools=[{"type": "function"}])
  chat = [
    {"role": "user", "content": "<&> \u00e9", "name": None},
    {"role": "assistant", "content": "b", "thinking": "c"},
    {"role": "user", "content": "d", "reasoning_content": "e", "name": "f"},
  ]
  check_chat(folder, chat)


@row("today's date")
def test_a_chat_is_the_same_tomorrow(tmp_path):
  template = (
    "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024"
    "{% endif %}"
  )
  tokenizer = text_tokenizer.load(write_tokenizer(tmp_path / "x", template))
  assert tokenizer.render(CHAT) == "2024"


# --- GGUF ---------------------------------------------------------------------


@row("GGUF: where a reply ends")
def test_all_ends_of_a_gguf_file_end_a_reply(tmp_path):
  keys = "tokenizer__ggml__eot_token_id", "tokenizer__ggml__eom_token_id"
  for i, (eot, eom) in enumerate(itertools.product((None, 0, 2), (None, 1))):
    said = {
      k: v for k, v in zip(keys, (eot, eom), strict=True) if v is not None
    }
    path = gguf_file(tmp_path / f"{i}.gguf", train(), metadata=said)
    wanted = [2, *(x for x in (eot, eom) if x not in (None, 2))]
    assert text_tokenizer.load(path).end_ids == tuple(wanted)
  path = gguf_file(tmp_path / "b.gguf", train(), metadata={keys[0]: 9_999})
  with pytest.raises(
    UserError, match="eot_token_id is 9999: it must be an int"
  ):
    text_tokenizer.load(path)
  said = {"tokenizer__ggml__add_eos_token": 1}
  path = gguf_file(tmp_path / "c.gguf", train(), metadata=said)
  with pytest.raises(UserError, match="add_eos_token=true, which ends every"):
    text_tokenizer.load(path)


@row("GGUF: the start token")
@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
@pytest.mark.parametrize("says", [None, True, False])
def test_llama_3_files_add_a_start_token_unless_they_say_no(
  tmp_path, pre, says
):
  path = gguf_file(tmp_path / "m.gguf", train(), pre, add_bos=says)
  ids = text_tokenizer.load(path).encode("a", add_special=True)
  assert (ids[0] == 1) == (pre == "llama-bpe" if says is None else says)


@row("GGUF: sizes that are not said")
def test_an_absent_size_of_a_gguf_file_is_that_of_llama_cpp():
  said = {
    "embedding_length": 32, "block_count": 2, "feed_forward_length": 48,
    "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5,
  }  # fmt: skip
  card = families.from_gguf(
    {"general.architecture": "qwen2"}
    | {f"qwen2.{name}": value for name, value in said.items()},
    vocab_size=9,
    tied=True,
  )
  assert card == families.Card(
    ModelConfig(
      vocab_size=9, d_model=32, num_layers=2, num_heads=4, num_kv_heads=4,
      head_dim=8, d_mlp=48, rms_eps=1e-5, qkv_bias=True,
    ),
    None,
  )  # fmt: skip


# --- Order --------------------------------------------------------------------


@row("which complaint comes first")
def test_a_model_that_is_not_supported_is_named_before_its_tokenizer(folder):
  (folder / "tokenizer.json").unlink()
  with pytest.raises(UserError, match=r"has no tokenizer\.json"):
    text_tokenizer.load(folder)
  edit_config(folder, rope_parameters={"rope_type": "llama3", "factor": 8.0})
  with pytest.raises(UserError, match="rope_type=llama3 is not") as error:
    text_tokenizer.load(folder)
  assert "default" not in str(error.value)


@row("where words are cut")
def test_words_are_cut_as_the_tokenizers_file_says(folder):
  """transformers cuts as the class named beside it does: no digits apart."""
  backend = train("gpt-2")
  backend.pre_tokenizer = train("smollm").pre_tokenizer
  backend.save(str(folder / "tokenizer.json"))
  edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
  text = "12 345"
  file = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  named = transformers.AutoTokenizer.from_pretrained(folder)
  ours = text_tokenizer.load(folder).encode(text)
  assert ours == file.encode(text) != named.encode(text)


def test_every_row_of_the_table_has_a_test():
  lines = (ROOT / "docs" / "models.md").read_text().splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith("| what |"))
  table = itertools.takewhile(lambda x: x.startswith("|"), lines[start + 2 :])
  assert {line.split("|")[1].strip() for line in table} == covered
