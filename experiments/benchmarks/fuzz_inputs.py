"""Damaged and hostile files for `fuzz.py`: the whole ones, and how they spoil.

A kind of input is a folder that is written once and read without complaint, the
files of it that are spoilt, and the call that reads it.
"""

import contextlib
import copy
import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Callable
from typing import Any

MODEL, TOKENIZER, GGUF = "model", "tokenizer", "gguf"
TEMPLATE, PROBLEMS, RUN, CONFIG, FLAGS = (
  "template", "problems", "run", "config", "flags",
)  # fmt: skip

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = [
  {"role": "user", "content": "How much is 12 + 345?"},
  {"role": "assistant", "content": "It is 357."},
  {"role": "user", "content": "Sure: café 你好 <3?"},
]
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
  "{{ '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Parts of templates; the later ones do not end, or fill the memory.
PIECES = (
  CHATML, "{{ bos_token }}", "{{ messages[0].content }}", "{{ messages[9] }}",
  "{% for m in messages %}", "{% endfor %}", "{% if tools %}", "{% endif %}",
  "{{ 1 / 0 }}", "{{ none.x }}", "{% set ns = namespace(s='ab') %}", "{%", "}}",
  "{{ raise_exception('no') }}", "{{ ''.__class__ }}", "{{ m | tojson }}",
  "{{ range(99999999) | list }}", "{{ messages | map('upper') | join }}",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ cycler() }}", "\x00",
  "{{ 'x' * 999999999 }}", "{{ '%999999999d' % 1 }}", "{{ 9 ** 9 ** 9 }}",
)  # fmt: skip
ENDLESS = (
  "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
  "{% endfor %}",
  "{% set ns = namespace(s='ab') %}{% for i in range(99) %}"
  "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
  "{{ lipsum(n=100000) }}",
)
PARTS_OF_TOKENIZERS = (
  ("normalizer", {"type": "Replace", "pattern": {"String": "a"},
                  "content": "aaaaaaaa"}),
  ("normalizer", {"type": "Sequence", "normalizers": [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 14}),
  ("normalizer", {"type": "Prepend", "prepend": "x" * 9_999}),
  ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
  ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"},
                     "behavior": "Isolated", "invert": False}),
  ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(?<=(a|b)*)"},
                     "behavior": "Isolated", "invert": False}),
  ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁"}),
  ("post_processor", {"type": "TemplateProcessing", "single": [],
                      "pair": [], "special_tokens": {}}),
  ("decoder", {"type": "Replace", "pattern": {"Regex": "(.*)*$"},
               "content": "zz"}),
  ("decoder", {"type": "WordPiece", "prefix": "#", "cleanup": True}),
  ("truncation", {"direction": "Right", "max_length": 0, "stride": 9,
                  "strategy": "LongestFirst"}),
)  # fmt: skip
ODD = (
  None, True, False, 0, -1, 1, 2, 7, 2**31, 2**32 - 1, 2**63, 10**40, -0.0, 0.5,
  1e308, -1e308, 5e-324, "", "x", "0", "none", "x" * 5_000, "é\u2028\x00", [],
  [[]], {}, {"": None}, [0] * 1_000, {"content": 3}, "<|im_end|>",
)  # fmt: skip
# JSON that Python's own writer does not write.
RAW = (
  "1" + "0" * 5_000, "[" * 20_000, '"\\ud800"', "1e999", "NaN", "-Infinity",
  '{"a":' * 5_000, "0x1", "",
)  # fmt: skip


def write_all(folder: pathlib.Path) -> None:
  """Writes the whole inputs, a folder a kind."""
  from tsd_jax.base import config_json
  from tsd_jax.models import hf, transformer
  from tsd_jax.models.symbols import SymbolTokenizer

  backend = _tokenizer()
  size = dataclasses.replace(
    _experiment().shape, vocab_size=backend.get_vocab_size(), number_tokens=0
  )
  _, params = transformer.create(size, 0)
  for kind in (MODEL, TOKENIZER, TEMPLATE, PROBLEMS):
    (folder / kind).mkdir(parents=True)
  hf.save(
    folder / MODEL, size, params, SymbolTokenizer(), max_length=64
  )  # Its tokenizer is the next lines'.
  for kind in (MODEL, TOKENIZER, TEMPLATE, PROBLEMS):
    backend.save(str(folder / kind / "tokenizer.json"))
    (folder / kind / "tokenizer_config.json").write_text(
      json.dumps(
        {
          "eos_token": {"content": SPECIAL[2]},
          "bos_token": SPECIAL[1],
          "chat_template": CHATML,
        }
      )
    )
  lines = [
    {"prompt": "2 + 3 =", "answer": 5, "solution": " 5"},
    {"messages": CHAT, "reply": "It", "problem": "a"},
    {"messages": CHAT[:1], "answer": [1.5, None, {"x": "y"}]},
  ]
  (folder / PROBLEMS / "problems.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )
  _write_gguf(folder / GGUF, size, params, backend)
  (folder / RUN).mkdir()
  _write_run(folder / RUN, config_json.to_json(_experiment()))
  for kind in (CONFIG, FLAGS):
    (folder / kind).mkdir()
  (folder / CONFIG / "config.py").write_text(
    "import dataclasses\n\nfrom experiments import countdown\n\n\n"
    "def get_config():\n  base = countdown.get_config()\n"
    "  return dataclasses.replace(base, iterations=20, seed=3)\n"
  )


def _experiment():
  from experiments import countdown

  return countdown.get_config()


def _tokenizer():
  import tokenizers

  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  bytes_ = tokenizers.pre_tokenizers.ByteLevel
  backend.pre_tokenizer = bytes_(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=list(SPECIAL),
    initial_alphabet=bytes_.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator([m["content"] for m in CHAT] * 3, trainer)
  return backend


def _write_gguf(folder: pathlib.Path, size, params, backend) -> None:
  import gguf

  from tsd_jax.models import names, weights

  folder.mkdir()
  writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
  writer.add_embedding_length(size.d_model)
  writer.add_block_count(size.num_layers)
  writer.add_head_count(size.num_heads)
  writer.add_head_count_kv(size.num_kv_heads)
  writer.add_key_length(size.head_dim)
  writer.add_feed_forward_length(size.d_mlp)
  writer.add_layer_norm_rms_eps(size.rms_eps)
  writer.add_context_length(64)
  flat = weights.flatten(params)
  for piece in names.pieces(size, "gguf"):
    array = flat[piece.ours]
    array = array if piece.layer is None else array[piece.layer]
    writer.add_tensor(piece.theirs, piece.to_theirs(array).copy())
  model = json.loads(backend.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(tokens)
  writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
  writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
  writer.add_chat_template(CHATML)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _write_run(folder: pathlib.Path, config: str) -> None:
  (folder / "config.json").write_text(config)
  parts = ("prefill", "search", "rollout", "rescore", "update", "reward")
  rows = [
    {
      "step": step,
      "seconds": 1.5 * step,
      "reward": 0.25,
      "ledger": {**dict.fromkeys(parts, step), "total": 8 * step},
      "eval": {"mean@16": {"accuracy": 0.1 * step, "stderr": 0.01}},
    }
    for step in range(4)
  ]
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  answer = {"text": "1 + 2", "reward": 0.5, "correct": True}
  sample = {
    "prompt": "1 2 = 3", "tree": "root", "before": [answer], "after": [answer],
  }  # fmt: skip
  (folder / "samples.json").write_text(json.dumps([sample]))


def spoil(folder: pathlib.Path, kind: str, rng: random.Random) -> None:
  """Spoils one or more files of a copy of a whole input."""
  files = sorted(f for f in folder.iterdir() if f.is_file())
  if kind == FLAGS:
    return
  if kind == TEMPLATE:
    return _spoil_template(folder / "tokenizer_config.json", rng)
  if kind in (TOKENIZER, PROBLEMS) and rng.random() < 0.8:
    name = "tokenizer.json" if kind == TOKENIZER else "problems.jsonl"
    files = [folder / name]
  for _ in range(rng.choice((1, 1, 1, 2, 5))):
    _spoil_file(rng.choice(files), rng)


def _spoil_template(file: pathlib.Path, rng: random.Random) -> None:
  content = json.loads(file.read_text())
  pieces = [rng.choice(PIECES) for _ in range(rng.randint(1, 6))]
  if rng.random() < 0.01:  # Each takes its whole time.
    pieces = [rng.choice(ENDLESS)]
  content["chat_template"] = "".join(pieces)
  if rng.random() < 0.1:
    content["chat_template"] = rng.choice(ODD)
  file.write_text(json.dumps(content))


def _spoil_file(file: pathlib.Path, rng: random.Random) -> None:
  if not file.is_file() or file.is_symlink():
    return
  if rng.random() < 0.02:
    _replace_by_no_file(file, rng)
    return
  data = file.read_bytes()
  with contextlib.suppress(ValueError, TypeError, RecursionError):
    if file.suffix in (".json", ".jsonl") and rng.random() < 0.7:
      file.write_bytes(_spoilt_json(data, file, rng))
      return
    if file.suffix == ".safetensors" and rng.random() < 0.6:
      data = _spoilt_header(data, rng)
  binary = file.suffix in (".safetensors", ".gguf") or rng.random() < 0.1
  file.write_bytes(_spoilt_bytes(data, rng, _ANY if binary else _SIGNS))


def _replace_by_no_file(file: pathlib.Path, rng: random.Random) -> None:
  file.unlink()
  match rng.randrange(5):
    case 0:
      file.mkdir()
    case 1:
      os.mkfifo(file)
    case 2:
      file.symlink_to(file.name)
    case 3:
      file.symlink_to("/dev/zero")
    case 4:
      file.symlink_to("nowhere")


_ANY, _SIGNS = bytes(range(256)), b'{}[]()",:0123456789eE+-.\\ \n_abcnftu='


def _spoilt_bytes(data: bytes, rng: random.Random, signs: bytes) -> bytes:
  content = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 8))):
    at = rng.randrange(len(content) + 1)
    # Headers are short, and most of what can go wrong lies there.
    at = min(at, rng.choice((16, 400, 10**9)))
    size = rng.choice((1, 1, 2, 4, 8, 100))
    match rng.randrange(5):
      case 0:
        content[at : at + size] = bytes(rng.choices(signs, k=size))
      case 1:
        content[at : at + size] = b""
      case 2:
        content[at:at] = bytes(rng.choices(signs, k=size))
      case 3:
        content[at : at + size] = rng.choice((signs[-1:], signs[:1])) * size
      case 4 if rng.random() < 0.3:
        del content[at:]
  return bytes(content)


def _spoilt_header(data: bytes, rng: random.Random) -> bytes:
  """A safetensors file whose header says something odd of its tensors."""
  size = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + size])
  written = json.dumps(_spoilt_tree(header, rng)).encode()
  return len(written).to_bytes(8, "little") + written + data[8 + size :]


def _spoilt_json(data: bytes, file: pathlib.Path, rng: random.Random) -> bytes:
  if file.suffix == ".jsonl":
    lines = data.decode().split("\n")
    at = rng.randrange(len(lines))
    lines[at] = _spoilt_text(json.loads(lines[at] or "{}"), rng)
    return "\n".join(lines).encode()
  tree = json.loads(data)
  if file.name == "tokenizer.json" and rng.random() < 0.3:
    # With an odd regular expression a text may take its whole time.
    part, value = rng.choice(PARTS_OF_TOKENIZERS)
    tree[part] = value
  return _spoilt_text(tree, rng).encode()


def _spoilt_text(tree: Any, rng: random.Random) -> str:
  text = json.dumps(_spoilt_tree(tree, rng), indent=rng.choice((None, 2)))
  if rng.random() < 0.1:  # In place of some number or text.
    old = json.dumps(rng.choice(_leaves(tree)))
    text = text.replace(old, rng.choice(RAW), 1)
  return text


def _leaves(tree: Any) -> list[Any]:
  if isinstance(tree, dict):
    tree = list(tree.values())
  if isinstance(tree, list):
    return [leaf for item in tree for leaf in _leaves(item)] or [0]
  return [tree]


def _spoilt_tree(tree: Any, rng: random.Random) -> Any:
  """The tree with an item replaced, left out, doubled or renamed."""
  tree = copy.deepcopy(tree)
  for _ in range(rng.choice((1, 1, 2))):
    at = tree
    while True:
      if not isinstance(at, dict | list) or not at:
        return rng.choice(ODD)
      keys = list(at) if isinstance(at, dict) else range(len(at))
      key = rng.choice(keys)
      if not isinstance(at[key], dict | list) or rng.random() < 0.3:
        break
      at = at[key]
    match rng.randrange(6):
      case 0:
        del at[key]
      case 1 if isinstance(at, dict):
        at[rng.choice(("", "x", "__class__", "type", "content"))] = at[key]
      case 2 if isinstance(at[key], int):
        at[key] = int(at[key]) * rng.choice((-1, 0, 3, 10**9)) + rng.choice(
          (0, 1)
        )
      case _:
        at[key] = copy.deepcopy(rng.choice(ODD))
  return tree


def read(folder: pathlib.Path, kind: str, rng: random.Random) -> None:
  """Reads an input as the commands do."""
  _READ[kind](folder, rng)


def _read_model(folder: pathlib.Path, rng: random.Random) -> None:
  del rng
  from tsd_jax.models import pretrained

  pretrained.load(folder)


def _read_gguf(folder: pathlib.Path, rng: random.Random) -> None:
  from tsd_jax.models import pretrained

  pretrained.load(folder / "m.gguf")
  _use_tokenizer(folder / "m.gguf", rng)


def _use_tokenizer(path: pathlib.Path, rng: random.Random) -> None:
  from tsd_jax.models import text_tokenizer
  from tsd_jax.models.tokenizer import tokens_ending

  tokenizer = text_tokenizer.load(path)
  text = rng.choice(("2 + 3 = 5, isn't it?", "a" * 60 + "b", "café  \n\n你"))
  ids = tokenizer.encode(text, add_special=True)
  tokenizer.decode(ids)
  tokens_ending(tokenizer, "\n")
  if tokenizer.chat_template is not None:
    tokenizer.encode_chat(CHAT)


def _read_problems(folder: pathlib.Path, rng: random.Random) -> None:
  del rng
  from tsd_jax.tasks import text_lines

  file = str(folder / "problems.jsonl")
  source = text_lines.Source(file, str(folder), "", 256, 64)
  # What it keeps is of another file of the same name.
  for function in (text_lines.read, text_lines.load_tokenizer):
    function.cache_clear()
  text_lines.read(source)
  text_lines.common_head.cache_clear()
  text_lines.common_head(source)


def _read_run(folder: pathlib.Path, rng: random.Random) -> None:
  from tsd_jax.run import directory, load, report

  match rng.randrange(4):
    case 0:
      load.read_config(folder)
    case 1:
      directory.prepare(_experiment(), folder)
    case 2:
      directory.keep_rows(folder / directory.METRICS, 2)
      directory.read_rows(folder)
    case 3:
      report.write(folder / "page.html", "$\\frac{$", folder, "mean@16")


def _read_config(folder: pathlib.Path, rng: random.Random) -> None:
  del rng
  from tsd_jax.base import config

  config.load(str(folder / "config.py"))


def _read_flags(folder: pathlib.Path, rng: random.Random) -> None:
  del folder
  from tsd_jax.base import config
  from tsd_jax.learning import memory
  from tsd_jax.run import evaluation

  names = config._leaf_names(_experiment(), {})
  values = (
    "4", "0", "1", "-1", "2", "3", "1000000000", "9" * 5_000, "1e999", "nan",
    "none", "true", "x", "²", "0.5", "1e-300", "mean@²", "a,b", "\x00",
  )  # fmt: skip
  said: dict[str, str] = {
    rng.choice(names): rng.choice(values) for _ in range(rng.randint(1, 3))
  }
  experiment = config.override(_experiment(), said)
  evaluation.parse_modes(experiment.eval.modes)
  memory.check(
    experiment.shape,
    experiment.make_task(),
    experiment.learner_config(),
    experiment.mesh,
  )


_READ: dict[str, Callable[[pathlib.Path, random.Random], None]] = {
  MODEL: _read_model,
  TOKENIZER: _use_tokenizer,
  GGUF: _read_gguf,
  TEMPLATE: _use_tokenizer,
  PROBLEMS: _read_problems,
  RUN: _read_run,
  CONFIG: _read_config,
  FLAGS: _read_flags,
}
KINDS = tuple(_READ)
