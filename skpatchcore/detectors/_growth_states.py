"""`older_growth`: the attributes for growing that the states of older versions lack."""

from __future__ import annotations

from typing import Any

import numpy as np


def older_growth(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes for growing that the state of a fitted PatchCoreDetector of an older version lacks."""
    paths, embeddings = state.get("training_paths_"), state.get("embeddings_")
    is_other = state.get("calibration_plan_") == "other good images"
    calibrated = np.zeros(0, np.int64) if is_other else state["calibration_image_indices_"]
    images = np.union1d(state["bank_image_indices_"], calibrated).astype(np.int64)
    n_embeddings = 0 if embeddings is None else len(embeddings)
    same = n_embeddings == len(images) and not is_other
    reserve = ("rows", "image_indices", "positions", "boxes", "indices", "supports")
    n_images = int(images.max()) + 1 if paths is None else len(paths)
    return {
        "n_images_seen_": n_images,
        "calibration_sizes_": np.full(n_images, len(images)),
        "training_image_indices_": images,
        "embedding_image_indices_": images if same else np.full(n_embeddings, -1),
        "training_groups_": None,
        "calibration_slope_": 0.0,
        "pixel_calibration_slope_": 0.0,
        "contamination_": state["contamination"],
        "pixel_contamination_": state.get("pixel_contamination"),
        "updates_": [],
        **{f"reserve_{name}_": None for name in reserve},
    }
