"""Sphinx configuration. Build the site with ``python -m sphinx -n -W docs docs/_build/html``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import matplotlib as mpl
from sphinx_gallery.sorting import ExplicitOrder

import skpatchcore
from skpatchcore._utils import diagrams

# The HTML representations of estimators in the gallery link to the pages of this site.
diagrams.documentation_site = lambda: ".."

mpl.use("Agg")
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

project = "skpatchcore"
author = "The skpatchcore developers"
copyright = "The skpatchcore developers"
version = release = skpatchcore.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_generated", "auto_examples/*.ipynb", "auto_examples/*.py"]
nitpicky = True
default_role = "literal"
copybutton_prompt_text = ">>> "

html_theme = "pydata_sphinx_theme"
html_title = "skpatchcore"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_show_sourcelink = False
# The sidebar lists the pages below the current page. These pages have none, so they get no sidebar.
html_sidebars = {
    page: []
    for page in (
        "start",
        "how_it_works",
        "glossary",
        "performance",
        "promises",
        "faq",
        "coming_from",
        "contributing",
        "index",
    )
}
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2, "secondary_sidebar_items": ["page-toc"]}

toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": ExplicitOrder(
        [
            "plot_quickstart.py",
            "plot_maps_and_masks.py",
            "plot_thresholds.py",
            "plot_detection_capability.py",
            "plot_unclean.py",
            "plot_nearest_patch.py",
            "plot_coreset.py",
            "plot_indexes.py",
            "plot_low_shot.py",
            "plot_growth.py",
            "plot_grid_search.py",
            "plot_settings.py",
            "plot_products.py",
            "plot_ensemble.py",
            "plot_baselines.py",
            "plot_video.py",
            "plot_pandas_pipeline.py",
            "plot_image_sizes.py",
            "plot_resolutions.py",
            "plot_regions.py",
            "plot_retina.py",
            "plot_onnx.py",
            "run_mvtec_ad.py",
            "serve_fastapi.py",
        ]
    ),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1e9,
    "reference_url": {"skpatchcore": None},
    "backreferences_dir": "_backreferences",
    "doc_module": ("skpatchcore",),
}

# Store the --help output of each command. The page on the command line includes these files.
_generated = Path(__file__).parent / "_generated"
_generated.mkdir(exist_ok=True)
for _command in (
    "fit", "predict", "watch", "review", "update", "show", "export", "verify", "evaluate", "capability", "demo",
):  # fmt: skip
    _shown = subprocess.run(
        [sys.executable, "-m", "skpatchcore", _command, "--help"],
        env={**os.environ, "COLUMNS": "88"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (_generated / f"{_command}.txt").write_text(_shown.stdout, encoding="utf-8")

# Objects of other projects that the pages link to. Small inventories are written from this table. They are read if the
# projects' own inventories cannot be downloaded.
_ELSEWHERE = {
    "sklearn": (
        "https://scikit-learn.org/stable/",
        {
            "sklearn.model_selection.ParameterGrid": "modules/generated/sklearn.model_selection.ParameterGrid.html",
            "sklearn.model_selection.GridSearchCV": "modules/generated/sklearn.model_selection.GridSearchCV.html",
            "sklearn.neighbors.NearestNeighbors": "modules/generated/sklearn.neighbors.NearestNeighbors.html",
            "sklearn.pipeline.Pipeline": "modules/generated/sklearn.pipeline.Pipeline.html",
        },
    ),
    "numpy": ("https://numpy.org/doc/stable/", {"numpy.ndarray": "reference/generated/numpy.ndarray.html"}),
    "torch": ("https://docs.pytorch.org/docs/stable/", {"torch.nn.Module": "generated/torch.nn.Module.html"}),
}


def _inventory(name: str, objects: dict[str, str]) -> str:
    """Write an inventory file in Sphinx's format and return its path."""
    lines = "".join(f"{key} py:class 1 {page}#{key} -\n" for key, page in objects.items())
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    path = Path(tempfile.mkdtemp()) / f"{name}.inv"
    path.write_bytes(head.encode() + zlib.compress(lines.encode()))
    return str(path)


intersphinx_mapping = {name: (url, (None, _inventory(name, found))) for name, (url, found) in _ELSEWHERE.items()}
intersphinx_timeout = 5
