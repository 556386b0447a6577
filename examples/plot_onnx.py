"""
Export to ONNX
==============

A fitted detector is exported to one ONNX file, and the file scores images without torch. The file carries images with
the results of the detector. Therefore a runtime on any machine can be compared with the detector. The extras ``onnx``
and ``offline`` are needed: ``pip install ".[onnx,offline]"``.
"""

# %%
# The detector is fitted on cuts of a photograph of bricks.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import skpatchcore
from skpatchcore import GreedyCoresetSampler, OnnxDetector, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures

task = make_textures("brick", n_views=4)
extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=128)
detector = PatchCoreDetector(extractor, sampler=GreedyCoresetSampler(0.05), random_state=0)
detector.fit(task.train_images, groups=task.train_groups)

# %%
# Before ``export`` writes the file, it runs the file in ONNX Runtime, and compares every stage with the detector. If a
# stage differs, an error is raised. The report states the largest difference of each stage.

folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "bricks.onnx"
report = skpatchcore.export(detector, path)
for stage in report.stages:
    print(f"{stage.stage:<14}{stage.difference:.1e}")
print(f"{report.n_bytes / 1e6:.1f} MB, {report.n_flipped} labels flipped")

# %%
# ``OnnxDetector`` runs the file. It has the methods of the detector that score images, and needs neither torch nor
# scikit-learn.

exported = OnnxDetector(path)
images = task.test_images
labels = exported.predict(images)
print(f"equal labels: {(labels == detector.predict(images)).sum()} of {len(images)}")

# %%
# The anomaly maps of both agree, except for rounding. The white line is the pixel threshold. The maps on the right
# show the differences, with a scale of their own.

shown = [images[i] for i in np.flatnonzero(task.test_labels == -1)[:3]]
maps, exported_maps = detector.segment(shown), exported.segment(shown)
differences = np.abs(maps - exported_maps)
threshold = detector.pixel_offset_
figure, axes = plt.subplots(len(shown), 4, figsize=(9, 7), layout="constrained")
for row, image, own, other, difference in zip(axes, shown, maps, exported_maps, differences, strict=True):
    row[0].imshow(image, cmap="gray")
    for axis, drawn in zip(row[1:3], (own, other), strict=True):
        heat = axis.imshow(drawn, vmin=0, vmax=2 * threshold, cmap="inferno")
        axis.contour(drawn, levels=[threshold], colors="white", linewidths=1)
    small = row[3].imshow(difference, vmin=0, vmax=differences.max(), cmap="viridis")
    for axis in row:
        axis.set_axis_off()
for axis, title in zip(axes[0], ("image", "detector", "ONNX file", "difference"), strict=True):
    axis.set_title(title)
bar = figure.colorbar(heat, ax=axes[:, :3], location="bottom", shrink=0.6, label="anomaly map, bigger = more anomalous")
bar.ax.axvline(threshold, color="white")
figure.colorbar(small, ax=axes[:, 3], location="bottom", label="absolute difference", format="%.0e")
print(f"largest difference of two maps: {differences.max():.1e}, pixel threshold: {threshold:.2f}")
plt.show()

# %%
# ``verify`` compares a runtime with the golden results in the file. It needs neither torch nor the detector: run it on
# the machine on which the file will be used, e.g. with the command ``skpatchcore verify bricks.onnx``.

verification = skpatchcore.verify(path, runtimes=["onnxruntime"])
print(verification.checks[0])
print("passed" if verification.is_passed else "failed")

# %%
# With the detector and images, the results of these images are compared, too. With labels, the AUROC of both is
# computed.

comparison = skpatchcore.verify(
    path, runtimes=["onnxruntime"], detector=detector, images=images[::2], y=task.test_labels[::2]
)
print(comparison.checks[1])

# %%
# float16 stores the weights of the network and the memory bank in half the size. The decisions are compared for
# ``test_images``. If a larger fraction of them than ``max_flipped`` flips, no file is written.

half = skpatchcore.export(
    detector, path, precision="float16", test_images=images, y_test=task.test_labels, max_flipped=0.01
)
print(f"{half.n_bytes / 1e6:.1f} MB. {half.decisions}")
folder.cleanup()
