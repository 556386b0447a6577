"""Small ONNX files in the form that `skpatchcore.export` writes. Their patch scores are the darkness of 8×8 pixels."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from skpatchcore.deployment.container import as_npz_text, with_entries

CELL = 8


def manifest(**changes):
    """Return a manifest. Nested settings are changed by names such as ``input__dtype``."""
    found = {
        "format": 1,
        "skpatchcore": "0.1.0",
        "detector": "PatchCoreDetector",
        "parameters": {},
        "backbone": {"name": "none", "weights": "none", "layers": [], "digest": "", "license": ""},
        "precision": "float32",
        "opset": 18,
        "thresholds": {
            "offset": -0.5,
            "pixel_offset": 0.45,
            "min_area": 0.01,
            "promised_rate": 0.2,
            "contamination": 0.2,
            "calibration_plan": "other good images",
        },
        "calibration_scores": [-0.5, -0.4, None, -0.3, -0.2],
        "calibration_peaks": [0.45, 0.35, None, 0.25, 0.15],
        "input": {
            "dtype": "uint8",
            "channel_order": "rgb",
            "value_range": None,
            "max_pixels": None,
            "image_size": None,
        },
        "resize": {"image_size": None, "crop_size": None, "rounded_to": 16},
        "patches": {"stride": 1, "smoothing": 4.0},
        "map_size": "input",
        "inspected": "all pixels",
        "outputs": {"score": "bigger = more normal"},
    }
    for name, value in changes.items():
        place, names = found, name.split("__")
        for key in names[:-1]:
            place = place[key]
        place[names[-1]] = value
    return found


def darkness_model(*, dtype="uint8", crop=None, stride=1, counted=None, score="darkest"):
    """Return the bytes of an ONNX model.

    Parameters
    ----------
    dtype : {"uint8", "float32"}
        Type of the input.
    crop : (int, int, int, int) or None
        Top, left, height and width of the part of the image that is used.
    stride : int
        Distance between two kept patches.
    counted : array of shape (grid_height, grid_width), bool, or None
        The patches that are inspected. The others have the score NaN.
    score : {"darkest", "nan", "infinite"}
        "darkest" is minus the largest patch score. For a black image, "nan" returns NaN, and "infinite" infinity.
    """
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    helper, types = onnx.helper, onnx.TensorProto
    nodes, constants = [], []

    def constant(name, values, kind=types.INT64):
        values = np.asarray(values)
        constants.append(helper.make_tensor(name, kind, values.shape, values.ravel()))
        return name

    def node(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    white = 255.0 if dtype == "uint8" else 1.0
    pixels = node("Cast", ["images"], "cast", to=types.FLOAT)
    if crop is not None:
        top, left, height, width = crop
        corners = constant("top left", [top, left]), constant("bottom right", [top + height, left + width])
        pixels = node("Slice", [pixels, *corners, constant("hw", [1, 2])], "cropped")
    grey = node("ReduceMean", [pixels, constant("last", [3])], "grey", keepdims=0)
    share = node("Div", [grey, constant("white", white, types.FLOAT)], "share")
    dark = node("Sub", [constant("one", 1.0, types.FLOAT), share], "dark")
    with_channel = node("Unsqueeze", [dark, constant("second", [1])], "with_channel")
    pooled = node("AveragePool", [with_channel], "pooled", kernel_shape=[CELL, CELL], strides=[CELL, CELL])
    full = node("Squeeze", [pooled, "second"], "full")
    shape = node("Shape", [full], "shape")
    node("Slice", [shape, constant("from", [1]), constant("to", [3])], "grid")
    starts, ends = constant("zeros", [0, 0]), constant("far", [10**6] * 2)
    kept = node("Slice", [full, starts, ends, constant("axes", [1, 2]), constant("steps", [stride] * 2)], "kept")
    if counted is None:
        node("Identity", [kept], "patch_scores")
        largest = node("ReduceMax", [kept, "axes"], "largest", keepdims=0)
    else:
        mask = constant("mask", np.asarray(counted)[None], types.BOOL)
        node("Where", [mask, kept, constant("nan", math.nan, types.FLOAT)], "patch_scores")
        some = node("Where", [mask, kept, constant("lowest", -1.0, types.FLOAT)], "some")
        largest = node("ReduceMax", [some, "axes"], "largest", keepdims=0)
    if score == "darkest":
        node("Neg", [largest], "score")
    else:
        mean = node("ReduceMean", [share, "axes2"], "mean", keepdims=0)
        constant("axes2", [1, 2])
        node("Div", [mean if score == "nan" else "one", mean], "score")
    graph = helper.make_graph(
        nodes,
        "darkness",
        [helper.make_tensor_value_info("images", getattr(types, dtype.upper().replace("32", "")), ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info("score", types.FLOAT, ["n"]),
            helper.make_tensor_value_info("patch_scores", types.FLOAT, ["n", "gh", "gw"]),
            helper.make_tensor_value_info("grid", types.INT64, [2]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def write_exported(path, model=None, region=None, golden="", **changes):
    """Write a file with a model and the manifest with changes; return the path. `golden` is an entry's text."""
    entries = {
        "skpatchcore": json.dumps(manifest(**changes)),
        "skpatchcore.golden": golden,
    }
    if region is not None:
        entries["skpatchcore.region"] = as_npz_text(region)
    path.write_bytes(with_entries(darkness_model() if model is None else model, entries))
    return path
