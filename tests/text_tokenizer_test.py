"""Tokenizers and chats of published models, against transformers."""

import dataclasses
import importlib
import json
import time

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from tests import gguf_test
from tests.published import LLAMA, make
from tsd_jax.base.errors import UserError
from tsd_jax.models import hf, pretrained, text_tokenizer
from tsd_jax.tasks.task import real_tokens

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
  "{% for message in messages %}\n"
  "    {%- if loop.first and message['role'] != 'system' %}\n"
  "{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}\n"
  "    {%- endif %}\n"
  "{{ '<|im_start|>' + message.role + '\\n' + message.content | trim }}"
  "{{ eos_token + '\\n' }}\n"
  "{%- endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT = [
  {"role": "user", "content": "How much is 12 + 345? "},
  {"role": "assistant", "content": "It is 357."},
  {"role": "user", "content": "I'm  not\n\nsure: caf\u00e9 \u4f60\u597d <3"},
]
TEXT = "Let's add 12 and 345: it's 357. caf\u00e9!  \n\n\tDone, isn't it? "


def pre_tokenizer(pre: str):
  """How a text is cut, written down a second time."""
  cut = tokenizers.pre_tokenizers
  plain = cut.ByteLevel(add_prefix_space=False)
  if pre == "smollm":
    return cut.Sequence([cut.Digits(individual_digits=True), plain])
  return plain


def train(pre: str = "smollm"):
  """A small vocabulary, learnt from a few sentences."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = pre_tokenizer(pre)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=SPECIAL,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = [TEXT, *(message["content"] for message in CHAT), "12 345 1234"]
  backend.train_from_iterator(texts * 3, trainer)
  return backend


def write_folder(folder, template=CHATML, **config):
  folder.mkdir(exist_ok=True)
  train().save(str(folder / "tokenizer.json"))
  content = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": SPECIAL[1],
    "eos_token": {"__type": "AddedToken", "content": SPECIAL[2]},
    "pad_token": SPECIAL[2],
    "chat_template": template,
  } | config
  content = {k: v for k, v in content.items() if v is not None}
  (folder / "tokenizer_config.json").write_text(json.dumps(content))
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
  return text_tokenizer.load(folder)


def gguf_file(
  path, backend, pre="smollm", template=CHATML, metadata=None, **said
):
  """The same vocabulary in ggml's words."""
  model = json.loads(backend.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  config = dataclasses.replace(LLAMA, vocab_size=len(tokens), number_tokens=0)
  return gguf_test.write(
    path,
    config,
    make(config)[1],
    tokenizer={
      "model": "gpt2",
      "pre": pre,
      "tokens": tokens,
      "token_type": [3 if token in SPECIAL else 1 for token in tokens],
      "merges": [" ".join(merge) for merge in model["merges"]],
      "chat_template": template,
      "bos": 1,
      "eos": 2,
    }
    | said,
    **metadata or {},
  )


def reference(folder):
  transformers = pytest.importorskip(
    "transformers", reason="needs the extra: interop"
  )
  return transformers.AutoTokenizer.from_pretrained(folder)


def test_special_tokens_and_sizes(tokenizer):
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
  assert tokenizer.vocab_size == train().get_vocab_size() > 300
  assert tokenizer.encode("<|im_end|>") == [2]


@hypothesis.given(st.text())
def test_text_comes_back(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_special_tokens_are_shown_on_demand(tokenizer):
  ids = [1, *tokenizer.encode("sure"), 2]
  assert tokenizer.decode(ids) == "sure"
  shown = tokenizer.decode(np.array(ids), skip_special=False)
  assert shown == "<|im_start|>sure<|im_end|>"


TEMPLATES = {
  "chatml": CHATML,
  "loop": (
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ bos_token }}{{ m['content'] | tojson }}\n{% endfor %}"
    "{% if tools is defined and tools %}tools{% endif %}"
  ),
  "namespace": (
    "{%- set ns = namespace(n=0) %}\n"
    "  {% for m in messages %}\n"
    "    {%- set ns.n = ns.n + 1 %}\n"
    "    {% if m.role == 'user' and m.content.startswith('How') %}\n"
    "[{{ ns.n }}] {{ m.content.strip().upper() }}\n"
    "    {% endif %}\n"
    "  {% endfor %}\n"
    "{% if not enable_thinking | default(true) %}<think></think>{% endif %}"
  ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_are_those_of_transformers(tmp_path, name):
  folder = write_folder(tmp_path / "x", TEMPLATES[name])
  ours, theirs = text_tokenizer.load(folder), reference(folder)
  for variables in ({}, {"enable_thinking": False}):
    for chat in (CHAT, CHAT[:1]):
      expected = theirs.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False, **variables
      )
      assert ours.render(chat, **variables) == expected
      ids = theirs.apply_chat_template(
        chat, add_generation_prompt=True, **variables
      )["input_ids"]
      assert ours.encode_chat(chat, **variables) == ids


def test_a_prefilled_reply_is_continued(tokenizer, folder):
  theirs = reference(folder)
  begun = [*CHAT, {"role": "assistant", "content": "It is"}]
  ids = theirs.apply_chat_template(begun, continue_final_message=True)
  assert tokenizer.encode_chat(CHAT, reply="It is") == ids["input_ids"]
  assert tokenizer.render(CHAT, reply="It is").endswith("assistant\nIt is")


@pytest.mark.parametrize(
  ("template", "chat", "message"),
  [
    (None, CHAT, "has no chat template"),
    (
      "{{ raise_exception('two systems') }}",
      CHAT,
      "it refuses this chat: two systems",
    ),
    ("{{ messages.append(1) }}", CHAT, "it fails .*unsafe"),
    ("{{ ''.__class__.__mro__ }}", CHAT, "it fails .*unsafe"),
    ("\n{% if %}", CHAT, "it is damaged, line 2: Expected an expr"),
    ("{{ 1 + 'a' }}", CHAT, r"it fails \(TypeError"),
    (CHATML, ["hi"], "a chat message is 'hi'"),
    (CHATML, [{"role": "user"}], "a chat message is"),
    (CHATML, [{"role": "user", "content": 3}], "a chat message is"),
  ],
)
def test_chats_that_cannot_be_are_refused(tmp_path, template, chat, message):
  tokenizer = text_tokenizer.load(write_folder(tmp_path / "x", template))
  with pytest.raises(UserError, match=message):
    tokenizer.render(chat)


def test_prompts_are_padded_on_the_right(tokenizer):
  prompts = [tokenizer.encode_chat(CHAT), tokenizer.encode_chat(CHAT[:1])]
  length = len(prompts[0])
  rows_BP = tokenizer.pad(prompts, length)
  assert rows_BP.shape == (2, length) and rows_BP.dtype == np.int32
  mask_BP = jax.jit(real_tokens, static_argnums=1)(rows_BP, tokenizer.pad_id)
  for row, mask, prompt in zip(rows_BP, mask_BP, prompts, strict=True):
    assert mask.dtype == bool and list(row[mask]) == prompt
    assert list(mask) == sorted(mask, reverse=True)
  # The padding token is also the end of a turn, inside of both prompts.
  assert all(tokenizer.pad_id in prompt for prompt in prompts)


def test_prompts_that_do_not_fit_are_named(tokenizer):
  prompts = [[5], tokenizer.encode(TEXT)]
  with pytest.raises(UserError, match=r'prompt 1 \("Let.* has \d+ tokens, mor'):
    tokenizer.pad(prompts, 8)
  with pytest.raises(UserError, match="prompt 0 is empty"):
    tokenizer.pad([[]], 8)
  with pytest.raises(UserError, match="prompt 0 .* ends with the padding"):
    tokenizer.pad([[5, 2]], 8)


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_a_gguf_vocabulary_reads_as_the_original(tmp_path, pre):
  backend = train(pre)
  tokenizer = text_tokenizer.load(gguf_file(tmp_path / "m.gguf", backend, pre))
  for text in (TEXT, "x12 345", "  \n a1b22", "<|im_start|>user\n12<|im_end|>"):
    assert tokenizer.encode(text) == backend.encode(text).ids
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
  assert tokenizer.chat_template == CHATML
  digits = tokenizer.encode("1234")
  assert (len(digits) == 4) == (pre == "smollm")


def test_patterns_are_those_of_the_model_families():
  pytest.importorskip("transformers", reason="needs the extra: interop")
  # By name: transformers also has a function of this name.
  convert = importlib.import_module("transformers.convert_slow_tokenizer")
  from transformers.models.qwen2 import tokenization_qwen2

  qwen2, _, _ = text_tokenizer._PRE["qwen2"]
  assert qwen2 == tokenization_qwen2.PRETOKENIZE_REGEX
  llama3, _, _ = text_tokenizer._PRE["llama-bpe"]
  converter = convert.TikTokenConverter("")
  assert llama3 == converter.pattern


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe"])
def test_a_gguf_tokenizer_is_exported_for_transformers(tmp_path, pre):
  path = gguf_file(tmp_path / "m.gguf", train(), pre)
  tokenizer = text_tokenizer.load(path)
  config, _, params = pretrained.load(path)
  out = tmp_path / "out"
  hf.save(out, config, params, tokenizer, max_length=64)
  theirs, again = reference(out), text_tokenizer.load(out)
  ids = tokenizer.encode(TEXT)
  assert theirs(TEXT)["input_ids"] == ids == again.encode(TEXT)
  chat = theirs.apply_chat_template(CHAT, add_generation_prompt=True)
  assert chat["input_ids"] == tokenizer.encode_chat(CHAT)
  assert again.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)
  assert (theirs.eos_token_id, theirs.pad_token_id) == (2, 2)
  generation = json.loads((out / "generation_config.json").read_text())
  assert generation["eos_token_id"] == 2
  vocab = gguf_test.gguf.SpecialVocab(out, load_merges=True)
  assert vocab.chat_template == CHATML and len(vocab.merges) > 40


def test_a_start_token_is_added_where_the_model_wants_it(tmp_path):
  plain = text_tokenizer.load(gguf_file(tmp_path / "a.gguf", train()))
  assert plain.encode("sure", add_special=True) == plain.encode("sure")
  path = gguf_file(tmp_path / "b.gguf", train(), add_bos=True)
  tokenizer = text_tokenizer.load(path)
  ids = tokenizer.encode("sure", add_special=True)
  assert ids == [1, *tokenizer.encode("sure")]


def test_a_folders_files_are_exported_as_they_are(tmp_path):
  folder = write_folder(tmp_path / "x", None)
  (folder / "chat_template.jinja").write_text(CHATML)
  (folder / "README.md").write_text("not ours to copy")
  tokenizer = text_tokenizer.load(folder)
  assert tokenizer.chat_template == CHATML
  files = tokenizer.huggingface_files()
  assert set(files) == {
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
  }  # fmt: skip
  for name, text in files.items():
    assert text == (folder / name).read_text()


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"eos_token": None}, "names no end token"),
    ({"bos_token": "<s>"}, "token '<s>' is not in the vocabulary"),
  ],
)
def test_special_tokens_that_lack_are_refused(tmp_path, config, message):
  with pytest.raises(UserError, match=message):
    text_tokenizer.load(write_folder(tmp_path / "x", **config))


@pytest.mark.parametrize(
  ("said", "message"),
  [
    ({"eos": 4294967295}, "eos_token_id is 4294967295: it must be an integer"),
    ({"tokens": ["a"] * 3, "token_type": [1] * 3}, "is damaged"),
    ({"token_type": [1, 2]}, "is damaged"),
    ({"merges": ["nothing"]}, "is damaged"),
  ],
)
def test_gguf_vocabularies_that_are_none_are_refused(tmp_path, said, message):
  path = gguf_file(tmp_path / "m.gguf", train(), **said)
  with pytest.raises(UserError, match=message):
    text_tokenizer.load(path)


def test_a_vocabulary_of_special_tokens_is_read_in_no_time(tmp_path):
  """Each would else go through all that were added before it."""
  tokens = [*(f"<{i}>" for i in range(30_000)), "a", "b", "ab"]
  path = gguf_file(
    tmp_path / "m.gguf", train(), tokens=tokens, token_type=[3] * len(tokens),
    merges=["a b"],
  )  # fmt: skip
  start = time.monotonic()
  assert text_tokenizer.load(path).encode("<7><29999>") == [7, 29_999]
  assert time.monotonic() - start < 5


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"chat_template": 5}, "chat_template is 5, no text"),
    ({"chat_template": ["x"]}, "is damaged"),
    ({"eos_token": 7}, "eos_token is 7, no text"),
    ({"eos_token": {"content": ["x"]}}, "eos_token is a list"),
    ({"eos_token": {}}, "eos_token is None, no text"),
  ],
)
def test_settings_of_a_tokenizer_of_other_types_are_named(
  tmp_path, config, message
):
  with pytest.raises(UserError, match=message):
    text_tokenizer.load(write_folder(tmp_path / "x", **config))


def test_missing_and_damaged_tokenizers_are_named(tmp_path):
  with pytest.raises(UserError, match=r"has no tokenizer\.json"):
    text_tokenizer.load(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
    text_tokenizer.load(tmp_path)
  write_folder(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("[]")
  with pytest.raises(UserError, match=r"tokenizer_config\.json is no JSON obj"):
    text_tokenizer.load(tmp_path)
  path = gguf_file(tmp_path / "m.gguf", train(), pre="deepseek-llm")
  with pytest.raises(UserError, match=r"pre=deepseek-llm is not supported"):
    text_tokenizer.load(path)
  path = gguf_file(tmp_path / "n.gguf", train(), model="llama")
  with pytest.raises(UserError, match=r"tokenizer\.ggml\.model=llama"):
    text_tokenizer.load(path)
