"""Problems as people have them: tables, chats, compressed lines."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tests.grading import letters
from tests.text_tokenizer_test import write_folder
from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.models import text_tokenizer
from tsd_jax.tasks import text_lines
from tsd_jax.tasks.text import TextConfig

QUESTIONS = [
  {"question": f"What is {n} + 1?", "target": str(n + 1), "n": n}
  for n in range(5)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("tokenizer"))


def read(tokenizer, file, **changes):
  return TextConfig(
    file=str(file), tokenizer=str(tokenizer), reward=letters,
    **{"prompt_length": 48, "response_length": 16} | changes,
  ).lines  # fmt: skip


def table(path, rows):
  pq.write_table(pa.Table.from_pylist(rows), path)
  return path


def test_columns_are_named_by_a_flag(tokenizer, tmp_path):
  file = table(tmp_path / "t.parquet", QUESTIONS)
  columns = "prompt=question,solution=target,problem=target"
  lines = read(tokenizer, file, columns=columns)
  assert [line.prompt for line in lines] == [q["question"] for q in QUESTIONS]
  assert [line.problem for line in lines] == [q["target"] for q in QUESTIONS]
  model = text_tokenizer.load(tokenizer)
  ids = [*model.encode("1"), model.eos_id]
  assert lines[0].response_T is not None
  np.testing.assert_array_equal(lines[0].response_T[: len(ids)], ids)
  # The grader sees the file's own names too.
  assert lines[0].example["target"] == "1" and lines[0].example["n"] == 0
  # The same of a file of lines.
  written = tmp_path / "p.jsonl"
  written.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
  again = read(tokenizer, written, columns=columns)
  assert [line.example for line in again] == [line.example for line in lines]


def test_a_chat_ends_before_the_reply_that_it_has(tokenizer, tmp_path):
  chat = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "2 + 3"},
  ]
  reply = {"role": "assistant", "content": "5"}
  older = [
    {"from": "system", "value": "Add."}, {"from": "human", "value": "2 + 3"},
    {"from": "gpt", "value": "5"},
  ]  # fmt: skip
  # "prompt" is another column here, which is not meant.
  rows = [
    {"chat": [*chat, reply], "prompt": "2 + 3"},
    {"chat": chat, "prompt": "no reply"},
  ]
  lines = read(
    tokenizer, table(tmp_path / "t.parquet", rows), columns="messages=chat"
  )
  (other,) = read(
    tokenizer,
    table(tmp_path / "o.parquet", [{"conversations": older}]),
    columns="messages=conversations",
  )
  wanted = text_tokenizer.load(tokenizer).render(chat)
  assert [line.prompt for line in (*lines, other)] == [wanted] * 3
  for line in (lines[0], other):
    assert line.response_T is not None
    text = text_tokenizer.load(tokenizer).decode(line.response_T)
    assert text == "5"
  assert lines[1].response_T is None


def test_compressed_lines_are_read_and_bounded(
  tokenizer, tmp_path, monkeypatch
):
  lines = "".join(json.dumps({"prompt": f"a{n}"}) + "\n" for n in range(50))
  file = tmp_path / "p.jsonl.gz"
  # Two members, as programs append them.
  file.write_bytes(gzip.compress(b"") + gzip.compress(lines.encode()))
  assert len(read(tokenizer, file)) == 50
  assert len(read(tokenizer, file, rows=7)) == 7
  file.write_bytes(gzip.compress(lines.encode())[:-20])
  with pytest.raises(UserError, match="gz is damaged"):
    read(tokenizer, file, rows=1)
  file.write_bytes(gzip.compress(bytes(10**7)))
  limits = (10**6, outside_files.VALUES)
  monkeypatch.setattr(outside_files.read_lines, "__defaults__", limits)
  with pytest.raises(
    UserError, match="more than 1,000,000 bytes when it is un"
  ):
    read(tokenizer, file, rows=2)


def test_what_is_too_long_is_refused_or_left_out(tokenizer, tmp_path):
  rows = [
    {"prompt": "add " * 99, "solution": "5"},
    {"prompt": "add 12", "solution": "345 " * 99},
    {"prompt": "add 345", "solution": "5"},
  ]
  file = table(tmp_path / "t.parquet", rows)
  with pytest.raises(UserError, match=r"t\.parquet, row 1: prompt 0 .* tokens"):
    read(tokenizer, file)
  with pytest.raises(UserError, match="row 1: the solution .*skip_long=true"):
    read(tokenizer, table(tmp_path / "s.parquet", rows[1:]))
  lines = read(tokenizer, file, skip_long=True)
  assert [line.prompt for line in lines] == ["add 12", "add 345"]
  assert [line.response_T is None for line in lines] == [True, False]


def test_a_table_that_is_too_large_says_how_much_of_it_fits(
  tokenizer, tmp_path, monkeypatch
):
  file = table(
    tmp_path / "t.parquet", [{"prompt": f"{n:08}"} for n in range(99)]
  )
  monkeypatch.setattr(
    outside_files, "LINES_BYTES", 10 * len('{"prompt": "********"}')
  )
  with pytest.raises(
    UserError, match="task.rows=10 reads its first rows alone"
  ):
    read(tokenizer, file)
  assert len(read(tokenizer, file, rows=10)) == 10


@pytest.mark.parametrize(
  ("row", "columns", "message"),
  [
    ({"prompt": "a", "messages": []}, "", r"row 1: .* \(task.columns names"),
    ({"q": None}, "prompt=q", 'row 1: it must be an object with "prompt"'),
    ({"q": "a"}, "prompt=Q", "row 1: there is no 'Q' .*, only 'q'"),
    ({"q": 3}, "prompt=q", 'row 1: "prompt" is 3, no text'),
    ({"q": "a"}, "messages=q", 'row 1: "messages" is no list of messages'),
    (
      {"q": [{"role": "assistant", "content": "a"}]}, "messages=q",
      'row 1: "messages" has none that a reply could answer',
    ),
    ({"q": [{"role": "user"}]}, "messages=q", "row 1: a chat message is"),
  ],
)  # fmt: skip
def test_errors_name_the_row(tokenizer, tmp_path, row, columns, message):
  with pytest.raises(UserError, match=message):
    read(tokenizer, table(tmp_path / "t.parquet", [row]), columns=columns)


@pytest.mark.parametrize(
  "columns", ["prompt", "=a", "a=", "a=b,a=c", "prompt=a,messages=b", "a=b,"]
)
def test_columns_of_another_form_are_refused(columns):
  with pytest.raises(ValueError, match=r"TextConfig\.columns=.*FIELD=COLUMN"):
    TextConfig(file="x", tokenizer="y", reward=letters, columns=columns)
  assert text_lines.parse_columns("") == ()
