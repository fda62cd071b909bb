"""Tables as others write them: pandas-like parquet, `datasets` folders."""

import json
import random
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsd_jax.base import outside_files, tabular
from tsd_jax.base.errors import UserError

CHAT = [{"role": "user", "content": "2 + 3?", "name": None}]
ROWS = [
  {"q": "café", "n": 5, "x": 0.5, "ok": True, "chat": CHAT, "tags": ["a"]},
  {"q": None, "n": None, "x": None, "ok": None, "chat": None, "tags": None},
  {"q": "", "n": -(2**60), "x": 2.0, "ok": False, "chat": [], "tags": []},
]


def parquet(path, rows, **options):
  pq.write_table(pa.Table.from_pylist(rows), path, **options)
  return path


def saved(folder, rows, shards=2):
  """A folder as `save_to_disk` of `datasets` writes it."""
  folder.mkdir()
  table = pa.Table.from_pylist(rows)
  names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
  for i, name in enumerate(names):
    part = table.take(
      [j for j in range(len(rows)) if j * shards // len(rows) == i]
    )
    with pa.OSFile(str(folder / name), "wb") as sink:
      with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(part, max_chunksize=2)
  state = {"_data_files": [{"filename": name} for name in names]}
  (folder / "state.json").write_text(json.dumps(state))
  (folder / "dataset_info.json").write_text("{}")
  return folder


def values(path, columns=None):
  return [row.values for row in tabular.rows(path, columns)]


def test_every_form_has_the_same_rows(tmp_path):
  parquet(tmp_path / "t.parquet", ROWS, row_group_size=2)
  saved(tmp_path / "saved", ROWS)
  with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(sink, table.schema) as writer:
      writer.write_table(table)
  (tmp_path / "parts").mkdir()
  for i in range(3):
    name = f"train-{i:05}-of-00003.parquet"
    parquet(tmp_path / "parts" / name, ROWS[i : i + 1])
  forms = ("t.parquet", "saved", "f.arrow", "parts/train-*.parquet")
  for form in forms[:3]:
    assert values(tmp_path / form) == ROWS
    assert tabular.is_table(tmp_path / form)
  assert values(tmp_path / "saved", ["n", "q"]) == [
    {"n": row["n"], "q": row["q"]} for row in ROWS
  ]
  # A part of empty cells has no types.
  rows = [*tabular.rows(tmp_path / "parts", ["q"])]
  assert [row.values["q"] for row in rows] == ["café", None, ""]
  assert values(tmp_path / forms[3], ["q"]) == [row.values for row in rows]
  assert (
    rows[2].where == f"{tmp_path}/parts/train-00002-of-00003.parquet, row 1"
  )
  assert not tabular.is_table(tmp_path / "problems.jsonl")


cells = st.none() | st.text(max_size=9)
records = st.fixed_dictionaries(
  {
    "a": cells,
    "b": st.none() | st.integers(-(2**63), 2**63 - 1),
    "c": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "d": st.none() | st.lists(cells, max_size=3),
    "e": st.none() | st.fixed_dictionaries({"role": cells, "content": cells}),
  }
)
SCHEMA = pa.schema(
  {
    "a": pa.dictionary(pa.int32(), pa.string()),
    "b": pa.int64(),
    "c": pa.float64(),
    "d": pa.list_(pa.large_string()),
    "e": pa.struct({"role": pa.string(), "content": pa.string()}),
  }
)


@hypothesis.given(
  rows=st.lists(records, min_size=1, max_size=9), group=st.integers(1, 9)
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_what_was_written_is_read(tmp_path_factory, rows, group):
  folder = tmp_path_factory.mktemp("table")
  table = pa.Table.from_pylist(rows, schema=SCHEMA)
  pq.write_table(table, folder / "t.parquet", row_group_size=group)
  assert values(folder / "t.parquet") == table.to_pylist() == rows


def test_columns_that_json_has_no_values_for_are_left_out(tmp_path):
  table = pa.table(
    {
      "q": ["a"],
      "day": pa.array([0], pa.date32()),
      "raw": [b"x"],
      "picture": pa.array([{"bytes": b"x"}]),
    }
  )
  pq.write_table(table, tmp_path / "t.parquet")
  assert values(tmp_path / "t.parquet") == [{"q": "a"}]
  with pytest.raises(UserError, match="column day is of type date32.* as text"):
    values(tmp_path / "t.parquet", ["day"])
  with pytest.raises(UserError, match="has 0 columns 'Q': it has q, day, raw"):
    values(tmp_path / "t.parquet", ["Q"])
  pq.write_table(table.select(["raw"]), tmp_path / "raw.parquet")
  with pytest.raises(UserError, match="no columns of text or numbers"):
    values(tmp_path / "raw.parquet")


def test_a_bad_value_is_named_by_row_and_column(tmp_path, monkeypatch):
  parquet(tmp_path / "t.parquet", [{"x": 1.0}] * 300 + [{"x": float("nan")}])
  with pytest.raises(UserError, match="row 301, column x .*nan is no finite"):
    values(tmp_path / "t.parquet")
  monkeypatch.setattr(outside_files, "LINE_BYTES", 1_000)
  parquet(tmp_path / "l.parquet", [{"q": "a"}, {"q": "b" * 2_000}])
  with pytest.raises(UserError, match="row 2, column q has more than 1,000"):
    values(tmp_path / "l.parquet")
  monkeypatch.setattr(tabular, "_PART_BYTES", 1_000)
  with pytest.raises(UserError, match="row group 0 has .* fewer rows"):
    values(tmp_path / "l.parquet")


@pytest.mark.parametrize(
  "kind", ["t.parquet", "saved/data-00000-of-00001.arrow"]
)
def test_damaged_files_are_one_line(tmp_path, kind):
  """Bits that are turned at random: rows, or one line that names the file."""
  parquet(tmp_path / "t.parquet", ROWS)
  saved(tmp_path / "saved", ROWS, shards=1)
  whole = (tmp_path / kind).read_bytes()
  rng, refused = random.Random(0), 0
  for i in range(150):
    content = bytearray(whole)
    if i % 3:
      for _ in range(3):
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    else:
      del content[rng.randrange(len(whole)) :]
    (tmp_path / kind).write_bytes(bytes(content))
    try:
      values(tmp_path / kind)
    except UserError as error:
      refused += 1
      assert str(tmp_path / kind) in str(error) and "\n" not in str(error)
  assert refused > 50


def test_folders_that_are_no_table_of_one_split(tmp_path):
  with pytest.raises(UserError, match=r"holds no \*\.parquet"):
    values(tmp_path)
  for split in ("test", "train"):
    parquet(tmp_path / f"{split}-00000-of-00001.parquet", ROWS)
  with pytest.raises(
    UserError, match=r"several splits \(test, train\).*train-\*"
  ):
    values(tmp_path)
  assert values(tmp_path / "train-*.parquet") == ROWS
  folder = saved(tmp_path / "saved", ROWS)
  (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  with pytest.raises(UserError, match="several splits: name one .*saved/train"):
    values(folder)
  (folder / "dataset_dict.json").unlink()
  state = folder / "state.json"
  for odd in (
    {},
    {"_data_files": ["x"]},
    {"_data_files": [{"filename": "../x"}]},
  ):
    state.write_text(json.dumps(odd))
    with pytest.raises(
      UserError, match="state.json names .* no file beside it"
    ):
      values(folder)
  state.write_text('{"_indices_data_files": [{"filename": "i.arrow"}]}')
  with pytest.raises(UserError, match="flatten_indices"):
    values(folder)
  state.write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
  with pytest.raises(UserError, match="there is no file .*gone.arrow"):
    values(folder)


def test_memory_does_not_grow_with_the_table(tmp_path):
  """Ten times the rows take as much of Python's and of arrow's memory."""

  def peak(count: int) -> int:
    file = tmp_path / f"{count}.parquet"
    schema = pa.schema({"q": pa.string()})
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
      for i in range(count):
        texts = [f"{i} {j} " + "x" * 1_000 for j in range(1_000)]
        writer.write_table(pa.table({"q": texts}, schema=schema))
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for i, _ in enumerate(tabular.rows(file)):
      if i % 100 == 0:
        most = max(most, pa.total_allocated_bytes() - before)
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert i == count * 1_000 - 1
    return most + traced

  few, many = peak(2), peak(20)
  assert many < 1.5 * few < 10_000_000  # Of 20 MB of text.


def test_files_of_datasets_itself(tmp_path):
  datasets = pytest.importorskip(
    "datasets", reason="needs pip install datasets"
  )
  table = datasets.Dataset.from_list(ROWS)
  table.save_to_disk(tmp_path / "saved", num_shards=2)
  assert values(tmp_path / "saved") == table.to_list() == ROWS
  table.select([2, 0]).save_to_disk(tmp_path / "chosen")
  assert values(tmp_path / "chosen") == [ROWS[2], ROWS[0]]
  table.to_parquet(tmp_path / "t.parquet")
  assert values(tmp_path / "t.parquet") == ROWS
  datasets.DatasetDict(train=table).save_to_disk(tmp_path / "splits")
  with pytest.raises(UserError, match="splits/train"):
    values(tmp_path / "splits")
  assert values(tmp_path / "splits" / "train") == ROWS
