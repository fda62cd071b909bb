"""The notebook runs from its first cell to its last."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "experiments" / "colab.ipynb"


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
  nbclient = pytest.importorskip("nbclient", reason="needs the extra: notebook")
  nbformat = pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  monkeypatch.setenv("TSD_JAX_NOTEBOOK_DIR", str(tmp_path))
  monkeypatch.setenv("TSD_JAX_NOTEBOOK_ITERATIONS", "5")
  notebook = nbformat.read(FILE, as_version=4)
  nbformat.validate(notebook)
  assert not any(c.get("outputs") for c in notebook.cells), "clear its outputs"
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3",
    resources={"metadata": {"path": str(ROOT)}},
  )  # fmt: skip
  client.execute()
  cells = [c for c in notebook.cells if c.cell_type == "code"]

  def texts(cell):
    return "".join(o.get("text", "") for o in cell.outputs)

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
  assert any("root" in texts(c) and "└─" in texts(c) for c in cells)
  assert (tmp_path / "exported" / "model.safetensors").is_file()
  assert not any(
    o.output_type == "error" for c in cells for o in c.get("outputs", ())
  )
