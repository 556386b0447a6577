"""
Detection capability: what size of defect is found?
===================================================

The probability of detection (POD) is the fraction of defects of a size that the detector finds. This example draws
defects of graded sizes on good images, and reads a90 and a90/95 from the curves: the size at which 90 % of the defects
are found, and its upper bound at 95 % confidence.
"""

# %%
# The detector is fitted on photographs of a wall. The good test images show other pieces of the wall.

import matplotlib.pyplot as plt

from skpatchcore import DetectionCapabilityDisplay, PatchCoreDetector, TorchFeatureExtractor, detection_capability
from skpatchcore.datasets import make_textures

task = make_textures("brick")
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, random_state=0).fit(task.train_images[::2], groups=task.train_groups[::2])
good = task.test_images[task.test_labels == 1]

# %%
# Each kind gets 60 defects. One third of them covers all sizes, and the others lie where the detection changes from
# rare to nearly certain. Good images that are flagged without a defect are left out: a false alarm is not a hit.

result = detection_capability(detector, good, kinds=["blob", "foreign"])
print(result.summary())

# %%
# Ticks at the top are found defects, and ticks at the bottom are missed ones. The band has one-sided 95 % bounds. The
# images below are the smallest found and the largest missed defect.

DetectionCapabilityDisplay.from_result(result)
plt.show()

# %%
# The sizes hold for defects of these shapes and of this contrast. Fainter defects must be larger to be found:

faint = detection_capability(detector, good, kinds=["blob"], contrasts=[0.3, 0.8], n_trials=30)
print(faint.to_frame()[["contrast", "n_found", "a90", "a90_95", "state"]].round(1).to_string(index=False))

# %%
# Synthetic defects do not show that real defects are found. :func:`skpatchcore.capability_of_defects` measures labelled
# defects with masks in the same way.
