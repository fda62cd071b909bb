"""Tables that others wrote, row by row: parquet files and `datasets` folders.

A part of a table is in memory at a time: some rows of a parquet file's row
group, or a record batch of an arrow file, which is mapped. So a table may be
larger than the memory. `outside_files` says why all of it is bounded.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError

_BATCH = 256  # Rows that are objects of Python at a time.
_PART_BYTES = 2 * 1024 * outside_files.MIB  # Of a row group, or a batch.


class Row(NamedTuple):
  """A row of a table."""

  where: str  # Its file and number, for messages.
  values: dict[str, Any]  # By column: values that JSON has. Empty: None.


def present(values: Mapping[str, Any]) -> dict[str, Any]:
  """Values of a row without its empty cells.

  A column that some rows alone have is empty in the others.
  """
  return {name: value for name, value in values.items() if value is not None}


def is_table(path: str | pathlib.Path) -> bool:
  """Whether a path means a table, not a file of lines."""
  path = pathlib.Path(path)
  return path.suffix in (".parquet", ".arrow") or path.is_dir()


def rows(
  path: str | pathlib.Path, columns: Sequence[str] | None = None
) -> Iterator[Row]:
  """Yields the rows of a table in their order.

  Args:
    path: a parquet or arrow file, several with a `*` in the name, a folder
      with parquet files, or one that `datasets` wrote (`save_to_disk`); of one
      split.
    columns: those that are read. By default all that JSON has values for:
      text, numbers, yes and no, lists and structures of these.

  Raises:
    UserError: naming the file, the row and the column that cannot be read, or
      the columns that there are.
  """
  for file in files(path):
    outside_files.read_start(file, 0)  # A regular file?
    read = _parquet if file.suffix == ".parquet" else _arrow
    number = 0
    for batch in read(file, columns):
      for values in _values(file, number, batch):
        number += 1
        yield Row(f"{file}, row {number}", values)


def files(path: str | pathlib.Path) -> list[pathlib.Path]:
  """The files of a table in their order.

  Raises:
    UserError: there is none, or it has several splits.
  """
  path = pathlib.Path(path).expanduser()
  if "*" in path.name:
    return _listed(path.parent, path.name)
  if not path.is_dir():
    return [path]
  if outside_files.is_there(path / "dataset_dict.json"):
    said = outside_files.read_object(path / "dataset_dict.json").get("splits")
    names = [str(s) for s in said] if isinstance(said, list) else []
    raise UserError(
      f"{path} holds several splits: name one of them, such as "
      f"{path / (names or ['train'])[0]} ({', '.join(names[:8])})"
    )
  if outside_files.is_there(path / "state.json"):
    return _saved_files(path)
  return _listed(path, "*.parquet")


def _listed(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """Files of one split by their pattern.

  Raises:
    UserError: there is none, or they are of several splits.
  """
  found = sorted(folder.glob(pattern))
  if not found:
    raise UserError(
      f"{folder} holds no {pattern}: name a .parquet file, a folder with some, "
      "or one that save_to_disk of datasets wrote"
    )
  # train-00000-of-00002.parquet, as the hub names them.
  splits = sorted({file.name.partition("-")[0] for file in found})
  if len(splits) > 1 and all("-of-" in file.name for file in found):
    raise UserError(
      f"{folder} holds several splits ({', '.join(splits[:8])}): name one of "
      f"them, such as {folder}/{splits[-1]}-*{found[0].suffix}"
    )
  return found


def _saved_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """What state.json names.

  Raises:
    UserError: it names what is no file beside it, or chosen rows.
  """
  file = folder / "state.json"
  state = outside_files.read_object(file)
  if state.get("_indices_data_files"):
    raise UserError(
      f"{file} chooses rows of another table: write the folder again with "
      "flatten_indices().save_to_disk(...)"
    )
  listed = state.get("_data_files")
  names = [
    entry.get("filename") if isinstance(entry, dict) else None
    for entry in (listed if isinstance(listed, list) else [None])
  ]
  for name in names:
    # A name with a folder in it could point outside.
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      raise UserError(f"{file} names {name!r:.60}: no file beside it")
  return [folder / str(name) for name in names]


def _library() -> Any:
  """The package `pyarrow`, which takes a while to import."""
  import pyarrow
  import pyarrow.parquet

  return pyarrow


def _parquet(
  file: pathlib.Path, columns: Sequence[str] | None
) -> Iterator[Any]:
  """Some rows of a row group at a time."""
  arrow = _library()
  with outside_files.library(file):
    # Without a buffer a column's part of a row group is read at once.
    with arrow.parquet.ParquetFile(
      file, buffer_size=outside_files.MIB, pre_buffer=False
    ) as opened:
      chosen = _columns(file, opened.schema_arrow, columns)
      for i in range(opened.metadata.num_row_groups):
        # Not of its columns alone: pyarrow 26 ends the process at odd ones.
        size = opened.metadata.row_group(i).total_byte_size
        _check_part(file, f"row group {i}", size)
      yield from opened.iter_batches(_BATCH, columns=chosen, use_threads=False)


def _arrow(file: pathlib.Path, columns: Sequence[str] | None) -> Iterator[Any]:
  """Some rows of a record batch at a time; the file is mapped."""
  arrow = _library()
  with outside_files.library(file):
    with arrow.memory_map(str(file)) as source:
      magic = source.read(6)
      source.seek(0)
      # `datasets` writes streams; a file is one with an index behind.
      reader = (
        arrow.ipc.open_file(source)
        if magic == b"ARROW1"
        else arrow.ipc.open_stream(source)
      )
      chosen = _columns(file, reader.schema, columns)
      batches = (
        map(reader.get_batch, range(reader.num_record_batches))
        if magic == b"ARROW1"
        else reader
      )
      for i, batch in enumerate(batches):
        batch = batch.select(chosen)
        # Before anything else looks: its offsets may point anywhere.
        batch.validate(full=True)
        _check_part(file, f"record batch {i}", batch.nbytes)
        for start in range(0, batch.num_rows, _BATCH):
          yield batch.slice(start, _BATCH)


def _check_part(file: pathlib.Path, name: str, size: int) -> None:
  if size > _PART_BYTES:
    raise UserError(
      f"{file}: {name} has {size:,} bytes, more than {_PART_BYTES:,}: write "
      "the table with fewer rows in each"
    )


def _columns(
  file: pathlib.Path, schema: Any, columns: Sequence[str] | None
) -> list[str]:
  """Names of the columns that are read.

  Raises:
    UserError: one is not there, twice there, or of a type that JSON has not.
  """
  if columns is None:
    names = [f.name for f in schema if _is_json(f.type)]
  else:
    names = list(dict.fromkeys(columns))
  for name in names:
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
      there = ", ".join(schema.names[:12])
      raise UserError(
        f"{file} has {len(places)} columns {name!r}: it has {there}"
      )
    if not _is_json(schema.field(places[0]).type):
      raise UserError(
        f"{file}, column {name} is of type {schema.field(places[0]).type}, "
        "which is neither text nor a number: write it as text"
      )
  if not names:
    raise UserError(f"{file} has no columns of text or numbers")
  return names


def _is_json(kind: Any, depth: int = 0) -> bool:
  """Whether JSON has values for a type."""
  types = _library().types
  if depth > outside_files.DEPTH:
    return False
  if types.is_dictionary(kind):
    return _is_json(kind.value_type, depth + 1)
  if types.is_list(kind) or types.is_large_list(kind):
    return _is_json(kind.value_type, depth + 1)
  if types.is_struct(kind):
    return all(_is_json(field.type, depth + 1) for field in kind)
  return (
    types.is_string(kind)
    or types.is_large_string(kind)
    or types.is_integer(kind)
    or types.is_float32(kind)
    or types.is_float64(kind)
    or types.is_boolean(kind)
    or types.is_null(kind)
  )


def _values(
  file: pathlib.Path, before: int, batch: Any
) -> Iterator[dict[str, Any]]:
  """Rows of a batch as Python has them.

  Raises:
    UserError: naming a row and column whose value is damaged or too large.
  """
  most, shared = outside_files.LINE_BYTES, _library().types.is_dictionary
  with outside_files.library(file):
    batch.validate(full=True)  # Texts are UTF-8.
  # A dictionary's texts are there once, whatever the rows are.
  large = [c.nbytes > most and not shared(c.type) for c in batch.columns]
  columns = [*zip(batch.schema.names, batch.columns, large, strict=True)]
  for i in range(batch.num_rows):
    values = {}
    for name, column, is_large in columns:
      where = f"{file}, row {before + i + 1}, column {name}"
      if is_large and column.slice(i, 1).nbytes > most:
        raise UserError(f"{where} has more than {most:,} bytes: shorten it")
      with outside_files.library(where):
        values[name] = column[i].as_py()
        outside_files.check_values(values[name])
    yield values
