"""Files of pairs: every form that is published, and every way to be wrong."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tokenizers import processors

from tests.text_tokenizer_test import SPECIAL, write_folder
from tsd_jax.base.errors import UserError
from tsd_jax.models import text_tokenizer
from tsd_jax.tasks import pairs
from tsd_jax.tasks.pairs import Limits

USER = {"role": "user", "content": "add 12 and 345"}
GOOD, BAD = (
  {"role": "assistant", "content": text} for text in ("357", "it isn't")
)
TEXT = {"prompt": "add 12 and 345:", "chosen": " 357", "rejected": " done"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return text_tokenizer.load(write_folder(tmp_path_factory.mktemp("t")))


def write(folder, *rows, name="pairs.jsonl"):
  file = folder / name
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return file


ROOM = Limits(99, 99)


def read(folder, tokenizer, *rows, limits=ROOM):
  return pairs.read(write(folder, *rows), tokenizer, limits)


def rows_of(found, i):
  """Prompt, chosen and rejected tokens of a pair, without padding."""
  p = found.pairs
  both = [p.tokens_Q2T[i, j][p.mask_Q2T[i, j]].tolist() for j in range(2)]
  return p.prompt_QP[i, : p.prompt_length_Q[i]].tolist(), *both


def test_texts_are_continued_and_end(tmp_path, tokenizer):
  found = read(
    tmp_path, tokenizer, TEXT, TEXT | {"margin": 2, "chosen": " 35<|im_end|>"}
  )
  encode = tokenizer.encode
  end = [tokenizer.eos_id]
  assert rows_of(found, 0) == (
    encode(TEXT["prompt"], add_special=True),
    encode(" 357") + end,
    encode(" done") + end,
  )
  assert rows_of(found, 1)[1] == encode(" 35") + end  # Not twice.
  assert found.pairs.margin_Q.tolist() == [0, 2]
  lengths = [list(map(len, rows_of(found, i)[1:])) for i in range(2)]
  assert found.pairs.length_Q2.tolist() == lengths
  # What fills up ends no response.
  assert not np.isin(
    found.pairs.tokens_Q2T[~found.pairs.mask_Q2T], tokenizer.end_ids
  ).any()


def test_a_chat_that_was_rendered_before_starts_once(tmp_path, tokenizer):
  """As the prompts of trees are."""
  with_start = text_tokenizer.load(write_folder(tmp_path / "tokenizer"))
  with_start.backend.post_processor = processors.TemplateProcessing(
    single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
  )
  asked = tokenizer.render([USER])
  assert asked.startswith(SPECIAL[1])
  found = read(tmp_path, with_start, TEXT, TEXT | {"prompt": asked})
  assert rows_of(found, 0)[0][:2].count(1) == 1
  assert rows_of(found, 1)[0] == tokenizer.encode_chat([USER])


@pytest.mark.parametrize(
  "row",
  [
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {
      "prompt": USER["content"],
      "chosen": [USER, GOOD],
      "rejected": [USER, BAD],
    },
    {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
  ],
)
def test_chats_are_one_prompt_however_they_are_written(
  tmp_path, tokenizer, row
):
  found = read(tmp_path, tokenizer, row)
  assert rows_of(found, 0) == (
    tokenizer.encode_chat([USER]),
    tokenizer.encode("357") + [tokenizer.eos_id],
    tokenizer.encode("it isn't") + [tokenizer.eos_id],
  )


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ({"prompt": "a", "chosen": "b"}, 'no "rejected", but prompt, chosen'),
    ({"chosen": "b", "rejected": "c"}, 'no "prompt", but chosen, rejected'),
    (TEXT | {"chosen": 5}, '"chosen" is 5: texts and chats do not mix'),
    (TEXT | {"prompt": [USER]}, '"prompt" is a list .*: texts and chats do no'),
    (TEXT | {"rejected": None}, '"rejected" is None'),
    (TEXT | {"rejected": TEXT["chosen"]}, "are the same: leave it out"),
    (
      TEXT | {"rejected": f"{TEXT['chosen']}<|im_end|>"},
      "are the same tokens: leave it out",
    ),
    (TEXT | {"chosen": [GOOD]}, '"rejected" is a text .* chats do not mix'),
    (
      TEXT | {"chosen": [GOOD], "rejected": [BAD]},
      "chosen a chat that does not hold it",
    ),
    ({"chosen": [GOOD], "rejected": [BAD]}, "there is no prompt"),
    ({"chosen": [USER, GOOD], "rejected": [BAD]}, "must be alike but for one"),
    ({"chosen": [USER], "rejected": [GOOD]}, "one last message of the assist"),
    ({"chosen": [USER, "x"], "rejected": [USER, BAD]}, 'a message is {"role"'),
    ({"chosen": [], "rejected": []}, '"chosen" is a list'),
    (
      {"prompt": [GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
      "begins with other messages than the prompt",
    ),
    (TEXT | {"margin": "much"}, '"margin" is a text .*, no number'),
    (TEXT | {"chosen": "a<|im_end|>b"}, "goes on after the end token"),
    ([1, 2], "is a list .*, no object"),
  ],
)
def test_what_is_no_pair_is_refused_with_its_line(
  tmp_path, tokenizer, row, words
):
  with pytest.raises(UserError, match=words) as error:
    read(tmp_path, tokenizer, TEXT, row)
  assert f"{tmp_path / 'pairs.jsonl'}, line 2" in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "holds no pairs"),
    (b"\n \n", "holds no pairs"),
    (b"{\n", "line 1 is damaged"),
    (b"\xff\n", "no UTF-8"),
  ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, tokenizer, content, words):
  file = tmp_path / "pairs.jsonl"
  file.write_bytes(content)
  with pytest.raises(UserError, match=words) as error:
    pairs.read(file, tokenizer, Limits(9, 9))
  assert str(file) in str(error.value)


def test_a_missing_file_is_one_line(tmp_path, tokenizer):
  with pytest.raises(UserError, match="no pairs in .*nowhere.jsonl"):
    pairs.read(tmp_path / "nowhere.jsonl", tokenizer, Limits(9, 9))


def test_what_is_too_long_is_cut_on_the_left_or_left_out(tmp_path, tokenizer):
  whole = read(tmp_path, tokenizer, TEXT)
  prompt, *both = rows_of(whole, 0)
  most = Limits(len(prompt) - 2, max(map(len, both)))
  long = TEXT | {"rejected": " done" * 20}
  found = read(tmp_path, tokenizer, long, TEXT, long, limits=most)
  assert (found.shortened, found.dropped, len(found.pairs)) == (1, 2, 1)
  assert rows_of(found, 0) == (prompt[2:], *both)
  # Of the whole prompt: what was cut off tells two apart.
  assert found.pairs.group_Q[0] == whole.pairs.group_Q[0]
  with pytest.raises(UserError, match="all 1 pairs .* raise --response_length"):
    read(tmp_path, tokenizer, long, limits=most)


def test_parquet_holds_the_same(tmp_path, tokenizer):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  texts = [TEXT | {"margin": 0.5}, TEXT | {"chosen": " 12"}]
  chats = [{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}]
  for rows in (texts, chats):
    file = tmp_path / "pairs.parquet"
    other = [row | {"id": i} for i, row in enumerate(rows)]
    parquet.write_table(pyarrow.Table.from_pylist(other), file)
    ours = pairs.read(file, tokenizer, ROOM)
    lines = read(tmp_path, tokenizer, *rows)
    for i in range(len(rows)):
      assert rows_of(ours, i) == rows_of(lines, i)
    np.testing.assert_array_equal(ours.pairs.margin_Q, lines.pairs.margin_Q)
  whole = file.read_bytes()
  for damaged in (whole[:-20], b"PAR1", b"", whole[:40] + whole[80:]):
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged") as error:
      pairs.read(file, tokenizer, ROOM)
    assert str(file) in str(error.value)
  table = pyarrow.Table.from_pylist([{"prompt": "a", "chosen": "b"}])
  parquet.write_table(table, file)
  with pytest.raises(UserError, match='row 1: it has no "rejected", but pro'):
    pairs.read(file, tokenizer, ROOM)


def many(tmp_path, tokenizer, prompts):
  rows = [TEXT | {"prompt": f"add {p}:"} for p in prompts]
  return read(tmp_path, tokenizer, *rows).pairs


@hypothesis.settings(
  deadline=None,
  max_examples=30,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  prompts=st.lists(st.integers(0, 9), min_size=2, max_size=30),
  share=st.floats(0.01, 0.99),
  seed=st.integers(0, 99),
)
def test_no_prompt_is_on_both_sides_of_a_split(
  tmp_path, tokenizer, prompts, share, seed
):
  every = many(tmp_path, tokenizer, prompts)
  if len(set(prompts)) == 1:
    with pytest.raises(UserError, match="all pairs have the same prompt"):
      pairs.split(every, share, seed)
    return
  trained, held_out = pairs.split(every, share, seed)
  assert len(trained) and len(held_out)
  assert len(trained) + len(held_out) == len(every)
  assert not set(trained.group_Q) & set(held_out.group_Q)
  assert pairs.common_prompts(trained, held_out) == 0
  count = len(set(held_out.group_Q))
  groups = len(set(prompts))
  assert count == min(max(1, round(share * groups)), groups - 1)


def test_prompts_are_alike_whatever_their_case_and_space(tmp_path, tokenizer):
  p = many(tmp_path, tokenizer, ["one", "ONE", " one", "two"])
  assert len(set(p.group_Q[:3])) == 1 and p.group_Q[3] != p.group_Q[0]
  assert pairs.common_prompts(p[:1], p) == 3


def test_joined_files_have_one_shape_and_the_same_pairs(tmp_path, tokenizer):
  long = TEXT | {"prompt": "add " * 9, "rejected": " done done"}
  one, two = (read(tmp_path, tokenizer, row).pairs for row in (TEXT, long))
  a, b = pairs.joined([one, two], 0)
  assert a.prompt_QP.shape == b.prompt_QP.shape
  assert a.tokens_Q2T.shape == b.tokens_Q2T.shape == a.mask_Q2T.shape
  for before, after in ((one, a), (two, b)):
    found = [pairs.Read(p, 0, 0) for p in (before, after)]
    assert rows_of(found[0], 0) == rows_of(found[1], 0)
