"""Tests of the metadata of exported files: exact round trips, and one clear error for each kind of bad file."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore import ExportError, ModelFileError, load
from skpatchcore.deployment.container import as_npz_text, read_container, with_entries
from tests.deployment.graphs import darkness_model, manifest

# The start of a model: ir_version 9, producer_name "skpatchcore", an empty graph.
HEAD = b"\x08\x09\x12\x0bskpatchcore"
MODEL = HEAD + b"\x3a\x00"


def entries(**changes):
    return {
        "skpatchcore": json.dumps(manifest(**changes)),
        "skpatchcore.golden": as_npz_text({"images": np.arange(6, dtype=np.uint8), "score": np.float32([0.5, np.nan])}),
    }


def written(path, content):
    path.write_bytes(content)
    return path


def test_read_container_returns_what_with_entries_wrote(tmp_path):
    region = as_npz_text({"fill": np.arange(6).reshape(2, 3)})
    content = with_entries(MODEL, {**entries(), "skpatchcore.region": region})
    found = read_container(written(tmp_path / "a.onnx", content))
    assert found.content == content
    assert found.manifest == manifest()
    np.testing.assert_array_equal(found.golden["images"], np.arange(6))
    np.testing.assert_array_equal(found.golden["score"], np.float32([0.5, np.nan]))
    np.testing.assert_array_equal(found.region["fill"], [[0, 1, 2], [3, 4, 5]])
    assert content.endswith(found.digest.encode())
    assert read_container(written(tmp_path / "b.onnx", with_entries(MODEL, entries()))).region is None


def test_entries_are_read_by_the_package_onnx_in_their_order():
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    some = {**entries(), "key": "ü" * 200}
    found = onnx.load_from_string(with_entries(darkness_model(), some))
    onnx.checker.check_model(found)
    pairs = [(pair.key, pair.value) for pair in found.metadata_props]
    assert pairs[:-1] == list(some.items())
    assert pairs[-1][0] == "skpatchcore.sha256"


def test_with_entries_refuses_a_digest():
    with pytest.raises(ValueError, match="is computed"):
        with_entries(MODEL, {"skpatchcore.sha256": ""})


def test_a_missing_file_and_a_folder_raise_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_container(tmp_path / "none.onnx")
    with pytest.raises(OSError, match=r"directory|denied"):
        read_container(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ONNX file"),
        (b"PK\x03\x04 a zip file", "is not an ONNX file"),
        (b"\x08\x09", "is not an ONNX file"),
        (b"\x08\x09\x3a\x00", "that skpatchcore.export did not write"),
        (b"\x08\x09\x12\x07pytorch\x3a\x00", "that skpatchcore.export did not write"),
        (b"\x08\x09\x3a\x05abc", "truncated or damaged"),
        (MODEL, "truncated or damaged: the digest at its end is missing"),
        (with_entries(MODEL, {"skpatchcore": "{}"})[:-88], "truncated or damaged: the digest at its end is missing"),
        (with_entries(MODEL, {}), "was not written by skpatchcore.export: KeyError"),
        (with_entries(MODEL, {"skpatchcore": "[]"}), "was not written by skpatchcore.export: TypeError"),
        (with_entries(MODEL, entries(format=2)), "has format 2, written by skpatchcore 0.1.0.*update skpatchcore"),
        (with_entries(MODEL, {"skpatchcore": entries()["skpatchcore"]}), "was not written by skpatchcore.export"),
    ],
)  # fmt: skip
def test_read_container_raises_one_clear_error(tmp_path, content, message):
    with pytest.raises(ModelFileError, match=message) as caught:
        read_container(written(tmp_path / "a.onnx", content))
    assert str(caught.value).startswith(repr(str(tmp_path / "a.onnx")))
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_and_every_truncation_is_refused(tmp_path_factory, data):
    content = bytearray(with_entries(MODEL, entries()))
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    with pytest.raises(ModelFileError):
        read_container(written(path, bytes(content)))


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([b"", b"\x08", HEAD]), content=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(tmp_path_factory, start, content):
    with pytest.raises(ModelFileError):
        read_container(written(tmp_path_factory.getbasetemp() / "any.onnx", start + content))


def test_no_pickle_in_a_file_is_read(tmp_path):
    stream = tmp_path / "a.npz"
    np.savez(stream, images=np.array([{"a": 1}], dtype=object))
    pickled = base64.b64encode(stream.read_bytes()).decode()
    content = with_entries(MODEL, {**entries(), "skpatchcore.golden": pickled})
    with pytest.raises(ModelFileError, match="allow_pickle"):
        _ = read_container(written(tmp_path / "a.onnx", content)).golden


@pytest.mark.parametrize("entry", ["golden", "region"])
def test_arrays_are_expanded_on_use_and_bounded(tmp_path, monkeypatch, entry):
    for text, message in (
        ("??", "Error"),
        (as_npz_text({"a": np.zeros(10**6)}), "its arrays take 8 MiB, at most 1 MiB"),
    ):
        content = with_entries(MODEL, {**entries(), f"skpatchcore.{entry}": text})
        monkeypatch.setattr("skpatchcore.deployment.container._MAX_BYTES", 2**20)
        found = read_container(written(tmp_path / "a.onnx", content))
        with pytest.raises(ModelFileError, match=f"was not written by skpatchcore.export: .*{message}"):
            getattr(found, entry)
        monkeypatch.undo()


def test_arrays_that_could_not_be_read_are_not_written(monkeypatch):
    monkeypatch.setattr("skpatchcore.deployment.container._MAX_BYTES", 2**20)
    with pytest.raises(ExportError, match="take 8 MiB, at most 1 MiB"):
        as_npz_text({"a": np.zeros(10**6)})


def test_load_of_an_exported_file_names_the_class_that_reads_it(tmp_path):
    with pytest.raises(ModelFileError, match=r"exported ONNX file: read it with skpatchcore\.OnnxDetector"):
        load(written(tmp_path / "a.onnx", with_entries(MODEL, entries())))


def test_reading_a_container_needs_neither_onnx_nor_torch(tmp_path):
    path = written(tmp_path / "a.onnx", with_entries(MODEL, entries()))
    code = (
        "import sys; from skpatchcore.deployment.container import read_container; "
        f"print(read_container({str(path)!r}).manifest['format'], "
        "[name for name in ('onnx', 'google.protobuf', 'torch', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).strip() == "1 []"
