"""The notebooks run from their first cell to their last."""

import json
import pathlib
import re

import pytest

from experiments.recipes import fetch_smollm2

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "experiments" / "colab.ipynb"
THOUGHTS = ROOT / "experiments" / "thoughts.ipynb"


def executed(file):
  """Code cells of a notebook with their outputs."""
  nbclient = pytest.importorskip("nbclient", reason="needs the extra: notebook")
  nbformat = pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  notebook = nbformat.read(file, as_version=4)
  nbformat.validate(notebook)
  assert not any(c.get("outputs") for c in notebook.cells), "clear its outputs"
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3",
    resources={"metadata": {"path": str(ROOT)}},
  )  # fmt: skip
  client.execute()
  cells = [c for c in notebook.cells if c.cell_type == "code"]
  assert not any(
    o.output_type == "error" for c in cells for o in c.get("outputs", ())
  )
  return cells


def texts(cell):
  return "".join(o.get("text", "") for o in cell.outputs)


def test_ppo_has_the_rate_that_the_command_gives_it():
  cells = json.loads(FILE.read_text())["cells"]
  (ppo,) = [
    text for c in cells if (text := "".join(c["source"])).startswith("PPO =")
  ]
  said = (ROOT / "launch" / "local.py").read_text()
  (rate,) = re.findall(r"for the default experiment ([\d.e-]+)\.", said)
  assert f'"optimizer.learning_rate": "{rate}"' in ppo


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
  monkeypatch.setenv("TSD_JAX_NOTEBOOK_DIR", str(tmp_path))
  monkeypatch.setenv("TSD_JAX_NOTEBOOK_ITERATIONS", "5")
  cells = executed(FILE)
  tables = [c for c in cells if "curves_lib.summary" in c.source]
  assert "tokens/iteration" in texts(tables[0])
  (halved,) = [c for c in cells if "def no_times" in c.source]
  # Rewards of another measure are never said to have risen or fallen.
  assert texts(halved).count("reward by its own measure") == 2
  pages = [
    o["data"]["text/html"]
    for c in cells
    for o in c.outputs
    if o.output_type == "display_data"
  ]
  assert len(pages) == 2 and pages[0].count("<svg") == 3
  assert pages[1].count("<svg") > 8
  # Whether it has branches is the prompt's affair.
  assert any("root" in texts(c) and "▸" in texts(c) for c in cells)
  assert (tmp_path / "exported" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(
  not fetch_smollm2.PATH.is_file(),
  reason="needs python -m experiments.recipes.fetch_smollm2",
)
def test_the_thoughts_of_a_model_are_looked_into(monkeypatch):
  """A smaller tree of the same questions, one right and one never."""
  monkeypatch.setenv("TSD_JAX_NOTEBOOK_SIMULATIONS", "64")
  cells = executed(THOUGHTS)
  pages = [
    o["data"]["text/html"]
    for c in cells
    for o in c.outputs
    if "text/html" in o.get("data", {})
  ]
  assert len(pages) == 2 and all("Content-Security-Policy" in p for p in pages)
  first, lost = (c for c in cells if "beliefs(" in c.source and c.outputs)
  assert "    8 " in texts(first) and "thoughts  p = 0.0" in texts(first)
  assert "reward 1" not in texts(lost) and "log-prob" in texts(lost)
  (parting,) = [c for c in cells if "tree.pairs()" in c.source]
  assert texts(parting).startswith("both:")
