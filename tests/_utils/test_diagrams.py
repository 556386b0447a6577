"""Tests of the HTML representation of estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils import estimator_html_repr

from skpatchcore import ExactIndex, GreedyCoresetSampler, PaDiMDetector, PatchCoreDetector, PatchCoreEnsemble
from skpatchcore._utils import diagrams


class Entries:
    """Metadata of a distribution with the given URLs."""

    def __init__(self, urls):
        self.urls = urls

    def get_all(self, name):
        return self.urls if name == "Project-URL" else None


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(diagrams, "documentation_site", lambda: "https://example.org/docs")


def test_html_of_a_fitted_detector_shows_no_box_of_features():
    features = np.random.default_rng(0).random((8, 4, 4, 6))
    detector = PatchCoreDetector("precomputed", random_state=0).fit(features)
    assert len(detector.sampler_.get_feature_names_out()) == len(detector.memory_bank_)
    page = estimator_html_repr(detector)
    assert "GreedyCoresetSampler" in page
    assert "ExactIndex" in page
    assert '<div class="features' not in page
    assert "greedycoresetsampler0" not in page


def test_html_of_an_ensemble_shows_the_stages_of_its_detectors():
    page = estimator_html_repr(PatchCoreEnsemble([("a", PatchCoreDetector()), ("b", PaDiMDetector())]))
    assert "GreedyCoresetSampler" in page
    assert "TorchFeatureExtractor" in page


@pytest.mark.parametrize(
    "estimator", [PatchCoreDetector(), PatchCoreEnsemble([]), GreedyCoresetSampler(), ExactIndex()]
)
def test_html_links_to_the_page_of_the_estimator(estimator, site):
    address = f"https://example.org/docs/generated/skpatchcore.{type(estimator).__name__}.html"
    assert address in estimator_html_repr(estimator)


def test_html_of_a_users_subclass_has_no_link(site):
    class OwnDetector(PatchCoreDetector):
        pass

    assert OwnDetector()._get_doc_link() == ""


def test_documentation_site_is_the_url_in_the_metadata(monkeypatch):
    urls = ["Source, https://example.org/source", "Documentation, https://example.org/docs/"]
    monkeypatch.setattr(diagrams, "metadata", lambda name: Entries(urls))
    assert diagrams.documentation_site.__wrapped__() == "https://example.org/docs"


def test_documentation_site_without_a_url_is_the_built_site_of_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(diagrams, "metadata", lambda name: Entries(None))
    monkeypatch.setattr(diagrams, "__file__", str(tmp_path / "package" / "_utils" / "diagrams.py"))
    assert diagrams.documentation_site.__wrapped__() is None
    pages = tmp_path / "docs" / "_build" / "html"
    pages.mkdir(parents=True)
    (pages / "index.html").write_text("")
    assert diagrams.documentation_site.__wrapped__() == pages.as_uri()
