"""Templates and tokenizers that do not end, or fill the memory."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.text_tokenizer_test import CHAT, train
from tsd_jax.base.errors import UserError
from tsd_jax.models import chat_template, text_limits, text_worker

pytest.importorskip("tokenizers", reason="needs the extra: text")

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENDLESS = {
  "loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
  "{% endfor %}{% endfor %}",
  "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}"
  "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
  "much text": "{% for i in range(99) %}{{ 'x' * 99999 }}{% endfor %}",
  "more text": "{{ '%999999999d' % 1 }}",
  "lipsum": "{{ lipsum(n=100000) }}",
  "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.fixture
def process():
  made = text_limits.TextProcess(seconds=1.0)
  yield made
  made.close()


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_is_refused_in_time(process, name):
  process.render("ready", {})
  start = time.monotonic()
  with pytest.raises(UserError, match="more than|too much|makes|recursion"):
    process.render(ENDLESS[name], {"messages": CHAT})
  assert time.monotonic() - start < 5
  # The next one is none the worse for it.
  assert process.render("{{ a }}", {"a": "é\ud800"}) == "é\ud800"


def test_one_process_serves_all_requests_and_is_replaced_when_it_dies(process):
  assert process.render("{{ 1 }}", {}) == "1"
  first = process._process.pid
  text = train().to_str()
  process.load(text)
  ids = process.run("encode", text, "2 + 3", False)
  assert process._process.pid == first
  os.kill(first, signal.SIGKILL)
  with pytest.raises(UserError, match="ends its process"):
    process.render("{{ 1 }}", {})
  # Another process, which is given the tokenizer again.
  assert process.run("encode", text, "2 + 3", False) == ids
  assert process.run("decode", text, [ids], True) == ["2 + 3"]
  assert process._process.pid != first


def test_threads_get_each_their_own_answer(process):
  wrong = []

  def ask(number):
    for _ in range(20):
      if process.render("{{ n }}", {"n": number}) != str(number):
        wrong.append(number)

  threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_only_json_goes_in_and_errors_come_back(process):
  with pytest.raises(UserError, match="give it only what JSON can say"):
    process.render("", {"f": print})
  with pytest.raises(UserError, match="division by zero"):
    process.render("{{ 1 / 0 }}", {})
  with pytest.raises(UserError, match="two systems"):
    process.render("{{ raise_exception('two systems') }}", {})
  with pytest.raises(UserError):
    process.load("{}")


def test_a_limited_tokenizer_reads_and_writes_as_the_plain_one():
  plain = train()
  limited = text_limits.LimitedTokenizer(plain.to_str())
  for text in ("2 + 3 = 5", "café 你好", "<|im_start|>user", ""):
    ids = plain.encode(text, add_special_tokens=True).ids
    assert limited.encode(text, add_special_tokens=True).ids == ids
    for skip in (True, False):
      expected = plain.decode(ids, skip_special_tokens=skip)
      assert limited.decode(ids, skip_special_tokens=skip) == expected
  for i in (0, 1, 100, 299):
    expected = plain.decode([i], skip_special_tokens=False)
    assert limited.decode([i], skip_special_tokens=False) == expected
  assert limited.get_vocab() == plain.get_vocab()
  assert limited.token_to_id("<|im_end|>") == 2
  added = limited.get_added_tokens_decoder()
  assert [i for i, token in added.items() if token.special] == [0, 1, 2]
  assert limited.decoder is not None


ALONE = """
import os, signal
from tsd_jax.models import text_limits
process = text_limits.shared()
process.render("", {})
print(process._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_ends_with_a_program_that_is_killed():
  done = subprocess.run(
    [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, check=False
  )
  assert done.returncode == -signal.SIGKILL
  stat = pathlib.Path(f"/proc/{int(done.stdout)}/stat")
  deadline = time.monotonic() + 30
  # A zombie has ended, too: nobody may be there who waits for it.
  while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_answers_of_the_process_are_bounded(monkeypatch):
  monkeypatch.setattr(text_worker, "CHARACTERS", 10)
  assert text_worker.render("0123456789", {}) == "0123456789"
  with pytest.raises(ValueError, match="11 characters"):
    text_worker.render("0123456789a", {})


def test_templates_are_compiled_once():
  """Which takes most of a rendering's time."""
  before = chat_template._compiled.cache_info().misses
  for n in range(5):
    assert chat_template.render("{{ n }} of 5", {"n": n}) == f"{n} of 5"
  assert chat_template._compiled.cache_info().misses == before + 1
