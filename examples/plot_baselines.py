"""
Is the difference between two detectors chance?
===============================================

PatchCore and three baselines are evaluated on three textures. A table of numbers does not say which differences are
chance: :func:`~skpatchcore.evaluation.compare_detectors` adds intervals and tests.
"""

# %%
# Evaluate
# --------
#
# All detectors use the same features, except the autoencoder, which is trained on pixels. Each texture is a data set of
# its own, with drawn defects.

import warnings

from sklearn.exceptions import ConvergenceWarning

from skpatchcore import (
    AutoencoderDetector,
    DN2Detector,
    PaDiMDetector,
    PatchCoreDetector,
    PixelExtractor,
    TorchFeatureExtractor,
)
from skpatchcore.datasets import TEXTURES, make_textures
from skpatchcore.evaluation import compare_detectors, evaluate_category

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detectors = {
    "PatchCore": PatchCoreDetector(extractor, random_state=0),
    "PaDiM": PaDiMDetector(extractor, random_state=0),
    "DN2": DN2Detector(extractor),
    "Autoencoder": AutoencoderDetector(PixelExtractor(image_size=(64, 64)), width=8, max_epochs=15, random_state=0),
}
data = {name: make_textures(name, n_views=4) for name in TEXTURES}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # the training of this example is short
    results = {
        name: [evaluate_category(detector, category, task)[0] for category, task in data.items()]
        for name, detector in detectors.items()
    }

# %%
# Intervals
# ---------
#
# The brackets are 95 % intervals: other test images of the same kind would give other values.

comparison = compare_detectors(results)
print(comparison.table("image_auroc").to_string())

# %%
# Differences
# -----------
#
# All detectors are compared on the same images. Therefore the interval of a difference is narrower than the intervals
# of the two values.

print(comparison.describe("image_auroc"))

# %%
# Ranks
# -----
#
# Detectors that one bar joins cannot be told apart by their ranks on three data sets. Three are too few: the critical
# difference is large.

display = comparison.plot("image_auroc")
