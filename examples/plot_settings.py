"""
Choose settings without defects
===============================

Which layers, which image score, and should the features be whitened? With labelled defects, a grid search answers. This
example answers from images of good parts only: :func:`~skpatchcore.select_settings` draws synthetic defects on held-out
good images, and compares how many of them each setting finds at a low false-alarm rate.

The images are crops of the texture ``gravel`` of scikit-image.
"""

from skpatchcore import PatchCoreDetector, SettingsDisplay, TorchFeatureExtractor, select_settings
from skpatchcore.datasets import make_textures

task = make_textures("gravel")
good = task.train_images[:40]
detector = PatchCoreDetector(TorchFeatureExtractor("efficientnet_lite0", image_size=128), random_state=0)

# %%
# The grid has the form of scikit-learn's ``GridSearchCV``. The setting of the detector itself is always included. It is
# kept unless the evidence for another setting is clear.

grid = {
    "image_score": ["reweighted", "map-max"],
    "extractor__layers": [None, ("stage3", "stage4", "stage5")],
    "extractor__patch_size": [1, 3, 5],
}
result = select_settings(detector, grid, good, n_defects=20)
print(result)

# %%
# Each row of the figure is a setting. The dot is the gain over the given setting, the line is one standard error to
# each side, and the ticks are the gains for the single kinds of defects. The pictures show some of the defects.

SettingsDisplay.from_result(result)

# %%
# The detector of the result has the chosen settings. It is not fitted yet.

fitted = result.detector.fit(good)
found = (fitted.predict(task.test_images[task.test_labels == -1]) == -1).mean()
print(f"{found:.0%} of the test defects are found")
