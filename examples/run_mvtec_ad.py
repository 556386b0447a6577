"""
The paper's experiment on MVTec AD
==================================

This example needs the MVTec AD data set (5 GB; the terms of its owners are at
https://www.mvtec.com/company/research/datasets/mvtec-ad) and the weights of WideResNet-50, which torchvision downloads
once. A GPU is recommended. The example was not run for this page, so that only its code is shown.
"""

# sphinx_gallery_thumbnail_path = "_static/demo.jpg"

# %%
# ``accept_license=True`` states that you have read the terms of the data set and comply with them.

from skpatchcore import evaluate
from skpatchcore.datasets import fetch_mvtec_ad
from skpatchcore.evaluation.category import with_mean
from skpatchcore.evaluation.presets import make_detector

root = fetch_mvtec_ad(accept_license=True)

# %%
# The preset ``paper-10`` has the settings of the paper with 10 % of the patches in the memory bank. The command
# ``skpatchcore evaluate ROOT -o results/ --preset paper-10`` computes the same metrics and writes a report. If the
# command is interrupted, run it again: it continues where it stopped.

table = evaluate(make_detector("paper-10"), root, resolution="seen", verbose=1)
print(with_mean(table)[["image_auroc", "pixel_auroc", "aupro", "misclassified"]].round(3).to_string())
