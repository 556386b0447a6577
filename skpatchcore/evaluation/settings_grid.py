"""default_grid: the settings among which :func:`~skpatchcore.select_settings` chooses if no grid is given."""

from __future__ import annotations

import re
from typing import Any

from skpatchcore.features._families import default_layers
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.features.whitening import PatchWhitening

# Additional layers by family of backbones: the layer at stride 4, and a layer between the two default layers (None if
# there is none). The first pattern that matches the name is used.
_MORE_LAYERS: tuple[tuple[str, str, str | None], ...] = (
    (r"(wide_)?resne(x)?t\d+", "layer1", None),
    (r"densenet\d+", "features.denseblock1", None),
    (r"efficientnet_lite\d", "stage2", "stage4"),
    (r"convnext_|swin_", "features.1", None),
    (r"efficientnet_", "features.2", "features.4"),
    (r"regnet_", "trunk_output.block1", None),
    (r"mobilenet_v2", "features.3", None),
)


def default_grid(detector: Any) -> dict[str, list[Any]] | list[dict[str, list[Any]]]:
    """Return the settings that often help, as a grid for :func:`~skpatchcore.select_settings`.

    Parameters
    ----------
    detector : PatchCoreDetector
        The detector whose settings are chosen.

    Returns
    -------
    list of dict
        Grids of parameters: image scores (the detector's own and ``"map-max"``), a transformer (the detector's own and
        :class:`~skpatchcore.PatchWhitening`), and for a :class:`~skpatchcore.TorchFeatureExtractor` with default
        layers of a common family of backbones, more layers. With the layer at stride 4, the stride of the patches is
        doubled, so that the number of patches stays the same.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.evaluation import default_grid
    >>> grid = default_grid(PatchCoreDetector(TorchFeatureExtractor("efficientnet_lite0")))
    >>> [part["extractor__layers"] for part in grid if "extractor__layers" in part]
    [[('stage2', 'stage3', 'stage5')], [('stage3', 'stage4', 'stage5')]]
    """
    names = detector.get_params(deep=False)
    common: dict[str, list[Any]] = {}
    if "image_score" in names:
        common["image_score"] = list(dict.fromkeys([names["image_score"], "map-max"]))
    if "transformer" in names:
        common["transformer"] = [names["transformer"]]
        if not isinstance(names["transformer"], PatchWhitening):
            common["transformer"].append(PatchWhitening())
    grids = [common]
    extractor = names.get("extractor")
    extractor = TorchFeatureExtractor() if extractor is None else extractor
    if not isinstance(extractor, TorchFeatureExtractor) or not isinstance(extractor.backbone, str):
        return grids
    usual = _default_layers_or_none(extractor.backbone)
    if usual is None or (extractor.layers is not None and tuple(extractor.layers) != usual):
        return grids
    for pattern, fine, middle in _MORE_LAYERS:
        if re.match(pattern, extractor.backbone):
            with_fine: dict[str, list[Any]] = {
                "extractor__layers": [(fine, *usual)],
                "extractor__stride": [2 * extractor.stride],
            }
            grids.append({**with_fine, **common})
            if middle is not None:
                grids.append({"extractor__layers": [(usual[0], middle, *usual[1:])], **common})
            break
    return grids


def _default_layers_or_none(backbone: str) -> tuple[str, ...] | None:
    try:
        return default_layers(backbone)
    except ValueError:  # a family without default layers: the user has named the layers
        return None
