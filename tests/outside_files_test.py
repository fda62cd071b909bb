"""Files that others wrote: one line for whatever is wrong with them."""

import ast
import os
import pathlib
import socket

import pytest

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError

LIBRARY = pathlib.Path(outside_files.__file__).parents[1]


def make(folder, kind):
  path = folder / "file.json"
  match kind:
    case "folder":
      path.mkdir()
    case "FIFO":
      os.mkfifo(path)
    case "device":
      path.symlink_to("/dev/zero")
    case "cannot be read":
      socket.socket(socket.AF_UNIX).bind(str(path))
    case "symbolic links":
      path.symlink_to(path.name)
    case "where nothing is":
      path.symlink_to(folder / "nowhere")
    case "bytes, more than":
      with path.open("wb") as file:
        file.truncate(10**12)
    case "no UTF-8":
      path.write_bytes(b'{"a": "\xff"}')
  return path


@pytest.mark.parametrize(
  "kind",
  [
    "folder", "FIFO", "device", "cannot be read", "symbolic links",
    "where nothing is", "bytes, more than", "no UTF-8",
  ],
)  # fmt: skip
def test_what_is_no_text_file_is_refused_by_name(tmp_path, kind):
  path = make(tmp_path, kind)
  with pytest.raises(UserError, match=kind) as error:
    outside_files.read_json(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)
  assert not isinstance(error.value, outside_files.MissingFile)


def test_a_missing_file_is_told_from_an_odd_one(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "none", tmp_path / "file" / "none"):
    with pytest.raises(outside_files.MissingFile, match="there is no file"):
      outside_files.read_text(path)
  for path in ("a\0b", "x" * 5_000):
    with pytest.raises(UserError, match="cannot be read"):
      outside_files.read_text(path)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1" * 5_000, "a number of 5,000 digits"),
    ("1." + "1" * 5_000, "a number of 5,002 digits"),
    ("[" * 200_000, "more than 64 levels"),
    ('{"a":' * 70 + "1" + "}" * 70, "more than 64 levels"),
    ('["\\ud800"]', "half a character"),
    ('{"\\udfff": 1}', "half a character"),
    ("1e999", "1e999 is no finite number"),
    ("[NaN]", "NaN is no finite number"),
    ("-Infinity", "-Infinity is no finite number"),
    ("{", "Expecting property name"),
    ("[" + "0," * 9_000_000 + "0]", "9,000,001 values"),
  ],
  ids=lambda value: value[:20],
)
def test_json_that_nothing_can_be_made_of_is_refused(text, message):
  with pytest.raises(UserError, match=message) as error:
    outside_files.parse_json(text, "the file")
  assert str(error.value).startswith("the file ")
  assert len(str(error.value)) < 300


def test_ordinary_json_is_read_as_it_stands():
  text = '{"a": [1, -2.5, 1e3, true, null, "caf\\u00e9", "\\ud83d\\ude00"]}'
  expected = [1, -2.5, 1e3, True, None, "café", "😀"]
  assert outside_files.parse_json(text, "x") == {"a": expected}
  assert outside_files.parse_json("[" * 64 + "]" * 64, "x")
  assert outside_files.parse_json("9" * 1_000, "x") == 10**1_000 - 1


def test_lines_are_bounded_one_by_one(tmp_path, monkeypatch):
  monkeypatch.setattr(outside_files, "LINE_BYTES", 10)
  path = tmp_path / "lines"
  path.write_bytes(b"[1]\n[2]\r\n")
  assert outside_files.read_lines(path) == ["[1]", "[2]\r", ""]
  path.write_bytes(b"[1]\n" + b"1" * 11)
  with pytest.raises(UserError, match="line 2 has 11 bytes, more than 10"):
    outside_files.read_lines(path)
  path.write_bytes(b"[1]\n\xff")
  with pytest.raises(UserError, match="line 2 is damaged .no UTF-8"):
    outside_files.read_lines(path)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [], -1, 2**31, 10**99])
def test_a_count_is_an_integer_in_its_range(value):
  assert outside_files.integer(2**31 - 1, "n") == 2**31 - 1
  with pytest.raises(
    UserError, match=r"^n is .* an integer in 0\.\.2147483647"
  ):
    outside_files.integer(value, "n")


def test_panics_of_libraries_in_rust_are_errors_and_signals_stay():
  class PanicException(BaseException):
    pass

  for error in (PanicException("called unwrap"), KeyError("x"), MemoryError()):
    with pytest.raises(UserError, match="^FILE is damaged .*: delete it$"):
      with outside_files.library("FILE", "delete it"):
        raise error
  with pytest.raises(KeyboardInterrupt), outside_files.library("FILE"):
    raise KeyboardInterrupt
  with pytest.raises(UserError, match="^mine$"), outside_files.library("FILE"):
    raise UserError("mine")


# Calls that open files or read JSON, and where else they may stand, and why.
OPENING = {
  "open", "read_text", "read_bytes", "load", "loads", "memmap", "mmap",
  "ZipFile", "safe_open", "fromfile", "loadtxt", "GGUFReader",
  "ParquetFile", "memory_map", "GzipFile",
}  # fmt: skip
KNOWN = {
  "base/outside_files.py": {
    "open",
    "loads",
    "read_bytes",
    "read_text",
    "GzipFile",
  },
  # Opened by a library, after `read_start` has looked at it.
  "base/tabular.py": {"ParquetFile", "memory_map"},
  "models/weights.py": {"safe_open"},
  "models/gguf.py": {"memmap"},
  "models/gguf_layout.py": {"open", "mmap"},
  "run/reward_params.py": {"load", "ZipFile"},
  # Messages of a process that we started.
  "models/text_limits.py": {"loads"},
  "models/text_worker.py": {"loads"},
  "rewards/pool.py": {"loads"},
  "rewards/worker.py": {"loads"},
  "rewards/isolation.py": {"open"},  # The system's own, below /proc.
  "comparison/jobs.py": {"open", "read_bytes", "load"},  # And their logs.
  "parallel/pod.py": {"read_text"},
  "run/directory.py": {"open"},  # Written, never read.
  "run/tracking.py": {"open"},  # A service, not a file.
  "search/explorer.py": {"read_text"},  # The package's own page.
  # What a tokenizer that was read writes of itself.
  "models/hf.py": {"loads"},
  "models/phrases.py": {"loads"},
  "models/text_tokenizer.py": {"loads"},
}


def openings(source):
  """Names of the calls in a file that open something."""
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Call):
      continue
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in OPENING:
      owner = ast.unparse(node.func).rpartition(".")[0]
      # What else loads is of the library.
      if owner != "outside_files" and (
        name != "load" or owner in ("np", "json", "pickle")
      ):
        yield name


def test_the_library_opens_files_nowhere_else():
  found = {}
  for file in LIBRARY.rglob("*.py"):
    if names := set(openings(file.read_text())):
      found[str(file.relative_to(LIBRARY))] = names
  assert found == KNOWN


def test_openings_are_found():
  source = "json.loads(x)\nPath(x).read_text()\nopen(x)\nweights.load(x)"
  assert list(openings(source)) == ["loads", "read_text", "open"]
