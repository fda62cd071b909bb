"""Files that others wrote, opened and read within limits.

A published model, a problem file or a run's folder may hold anything. So a
file is a regular one of a bounded size, text is UTF-8, and JSON has bounded
depth, digits and numbers of values. All else is an error of one line that
names the file, what is wrong, and what to do.
"""

import contextlib
import gzip
import io
import json
import os
import pathlib
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from tsd_jax.base.errors import UserError

Path = str | pathlib.Path

MIB = 2**20
TEXT_BYTES = 32 * MIB  # Of a text that is read whole, where nobody says more.
LINE_BYTES = 4 * MIB  # Of a line of a file of lines.
LINES_BYTES = 256 * MIB  # Of such a file.
DEPTH = 64  # Of JSON: objects and lists in each other.
DIGITS = 1_000  # Of a number in JSON.
VALUES = 8_000_000  # Values in a JSON text; the largest tokenizers hold 2.
COUNT = 2**31 - 1  # The largest integer that counts or names something.


class MissingFile(UserError):
  """There is no file of this name."""


def read_bytes(path: Path, most: int) -> bytes:
  """Content of a regular file.

  Args:
    path: where it is.
    most: bytes that it may have.

  Raises:
    MissingFile: there is none.
    UserError: it is no regular file, too large, or cannot be read.
  """
  with _opened(path) as file:
    size = os.fstat(file).st_size
    if size > most:
      raise UserError(
        f"{path} has {size:,} bytes, more than the {most:,} that are read of "
        "such a file: is it another file?"
      )
    with os.fdopen(os.dup(file), "rb") as stream:
      return stream.read(most)  # It may grow meanwhile.


def read_start(path: Path, count: int) -> bytes:
  """The first bytes of a regular file; before a library opens it by itself.

  Raises:
    MissingFile, UserError: as `read_bytes`.
  """
  with _opened(path) as file:
    return os.read(file, count)


def is_there(path: Path) -> bool:
  """Whether something has this name, a dangling link too."""
  try:
    return os.path.lexists(path)
  except ValueError:  # A name that no file can have.
    return False


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
  """Content of a UTF-8 file.

  Raises:
    MissingFile, UserError: as `read_bytes`, or it is no UTF-8.
  """
  text = _decoded(read_bytes(path, most), str(path))
  return text.replace("\r\n", "\n")  # As Python reads any text.


def read_json(path: Path, most: int = TEXT_BYTES) -> Any:
  """Content of a JSON file.

  Raises:
    MissingFile, UserError: as `read_text` and `parse_json`.
  """
  return parse_json(read_text(path, most), str(path))


def read_object(path: Path, most: int = TEXT_BYTES) -> dict[str, Any]:
  """Content of a JSON file that holds an object.

  Raises:
    MissingFile, UserError: as `read_json`, or it holds something else.
  """
  content = read_json(path, most)
  if not isinstance(content, dict):
    raise UserError(
      f"{path} is no JSON object but {shown(content)}: it is another file, or "
      "damaged"
    )
  return content


def read_lines(
  path: Path, most: int = LINES_BYTES, values: int = VALUES
) -> list[str]:
  """Lines of a UTF-8 file of JSON lines, their ends left out.

  Args:
    path: where it is; a name that ends with .gz means a compressed file.
    most: bytes that it may have, unpacked.
    values: of JSON that all lines may hold.

  Raises:
    MissingFile, UserError: as `read_text`, or naming a line that is too long.
  """
  content = read_bytes(path, most)
  if str(path).endswith(".gz"):
    content = _unpacked(content, most, path)
  count = sum(map(content.count, (b",", b"[", b"{")))
  _check_count(count, str(path), values)
  lines = content.split(b"\n")
  for number, line in enumerate(lines, 1):
    if len(line) > LINE_BYTES:
      raise UserError(
        f"{path}, line {number} has {len(line):,} bytes, more than "
        f"{LINE_BYTES:,}: shorten it"
      )
  return [
    _decoded(line, f"{path}, line {number}")
    for number, line in enumerate(lines, 1)
  ]


def _unpacked(content: bytes, most: int, path: Path) -> bytes:
  """What a gzip file holds; no more than `most` bytes are made of it."""
  try:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
      unpacked = stream.read(most + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(_damaged(str(path), error)) from None
  if len(unpacked) > most:
    raise UserError(
      f"{path} has more than {most:,} bytes when it is unpacked: is it "
      "another file?"
    )
  return unpacked


def parse_json(text: str, where: str) -> Any:
  """The value that a JSON text holds.

  Args:
    text: the JSON.
    where: what an error calls it.

  Raises:
    UserError: it is no JSON, or holds what nothing here can be made of: more
      than `DEPTH` levels, a number of more than `DIGITS` digits or of no finite
      value, half a character, more than `VALUES` values.
  """
  _check_count(sum(map(text.count, ",[{")), where)
  try:
    value = json.loads(
      text, parse_int=_integer, parse_float=_finite, parse_constant=_finite
    )
    check_values(value)
  except RecursionError:
    raise UserError(_damaged(where, _DEEP)) from None
  except ValueError as error:  # JSONDecodeError is one.
    raise UserError(_damaged(where, error)) from None
  return value


@contextlib.contextmanager
def library(path: Path, remedy: str = "fetch it again") -> Iterator[None]:
  """Turns what a library raises of a damaged file into one line.

  Libraries in Rust panic, which is no Exception, and those in Python raise
  whatever is met first.

  Raises:
    UserError: naming the file.
  """
  try:
    yield
  except UserError:
    raise
  except BaseException as error:
    if isinstance(error, Exception) or panicked(error):
      raise UserError(f"{path} is damaged ({told(error)}): {remedy}") from error
    raise


def panicked(error: BaseException) -> bool:
  """Whether a library in Rust gave up: pyo3 derives that of BaseException."""
  return type(error).__name__ == "PanicException"


def told(error: BaseException) -> str:
  """An error's kind and the beginning of its text, on one line."""
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text[:200]}" if text else f"{error!r:.200}"


def shown(value: Any) -> str:
  """A value of JSON as an error names it: short."""
  kinds = {dict: "an object", list: "a list", str: "a text"}
  kind = kinds.get(type(value), "")
  return f"{kind} {value!r:.60}".strip() if kind != "an object" else kind


def integer(value: Any, name: str, *, low: int = 0, high: int = COUNT) -> int:
  """A field that must be an integer.

  Args:
    value: what it is.
    name: what an error calls it.
    low: the least that it may be.
    high: the greatest.

  Raises:
    UserError: it is no integer, or out of range.
  """
  if type(value) is not int or not low <= value <= high:
    raise UserError(
      f"{name} is {shown(value)}: it must be an integer in {low}..{high}"
    )
  return value


def is_number(value: Any) -> bool:
  """Whether a value of JSON is a number that arithmetic is made with."""
  a_number = isinstance(value, int | float) and not isinstance(value, bool)
  return a_number and -(2**63) <= value <= 2**63


_DEEP = f"more than {DEPTH} levels of brackets"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
  """Opens a regular file; never waits for the other end of a FIFO."""
  try:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except (FileNotFoundError, NotADirectoryError):
    if os.path.islink(path):
      raise UserError(
        f"{path} is a link to {os.readlink(path)}, where nothing is: mend it"
      ) from None
    raise MissingFile(f"there is no file {path}") from None
  except (OSError, ValueError) as error:
    _refuse(path, error)
  try:
    kind = os.fstat(file).st_mode
    if not stat.S_ISREG(kind):
      raise UserError(
        f"{path} is {_kind(kind)}, no regular file: name a file, or remove it"
      )
    yield file
  except OSError as error:  # A disk that fails while it is read.
    _refuse(path, error)
  finally:
    os.close(file)


def _refuse(path: Path, error: Exception) -> NoReturn:
  reason = getattr(error, "strerror", None) or str(error)
  raise UserError(
    f"{str(path)!r:.300} cannot be read ({reason}): name a file that can"
  ) from None


def _kind(mode: int) -> str:
  kinds: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda m: stat.S_ISCHR(m) or stat.S_ISBLK(m),
  }
  return next((name for name, is_so in kinds.items() if is_so(mode)), "odd")


def _decoded(content: bytes, where: str) -> str:
  try:
    return content.decode()
  except UnicodeDecodeError as error:
    raise UserError(
      _damaged(where, f"no UTF-8 text: byte {error.start} is {error.reason}")
    ) from None


def _damaged(where: str, why: Any) -> str:
  return f"{where} is damaged ({why}): fetch it, or write it, again"


def _check_count(values: int, where: str, most: int = VALUES) -> None:
  """Refuses what would take gigabytes as objects of Python."""
  if values > most:
    raise UserError(
      f"{where} holds {values:,} values of JSON, more than {most:,}: is it "
      "another file?"
    )


def _integer(digits: str) -> int:
  if len(digits) > DIGITS:
    raise ValueError(f"a number of {len(digits):,} digits")
  return int(digits)


def _finite(digits: str) -> float:
  if len(digits) > DIGITS:
    raise ValueError(f"a number of {len(digits):,} digits")
  value = float(digits)
  if value - value != 0:  # Infinite, or no number.
    raise ValueError(f"{digits} is no finite number")
  return value


def check_values(value: Any) -> None:
  """Refuses what is no JSON, without recursion.

  Raises:
    ValueError: half a character, too many levels, or no finite number.
  """
  level, depth = [value], 0
  while level:
    if depth > DEPTH:
      raise ValueError(_DEEP)
    below: list[Any] = []
    for item in level:
      if isinstance(item, str):
        if not item.isascii():
          _check_text(item)
      elif isinstance(item, float):
        if item - item != 0:
          raise ValueError(f"{item} is no finite number")
      elif isinstance(item, list):
        below += item
      elif isinstance(item, dict):
        below += item
        below += item.values()
    level, depth = below, depth + 1


def _check_text(text: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError:
    raise ValueError(f"half a character in {text!r:.60}") from None
