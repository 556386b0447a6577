"""Score images with an exported detector: ``python score_image.py parts.onnx 1.png 2.png``, without skpatchcore.

Each image gets one line: score (bigger = more normal), decision (negative = anomalous), label (1 = normal, -1 =
anomalous), p-value. A picture is saved beside it: the image in grey, pixels above the threshold from red (at the
threshold) to yellow (at twice the threshold), and pixels that are not inspected in blue.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit("usage: python score_image.py MODEL.onnx IMAGE ...")
content = Path(sys.argv[1]).read_bytes() if Path(sys.argv[1]).is_file() else b""
entry = b"\x72\x56\x0a\x12skpatchcore.sha256\x12\x40" + hashlib.sha256(content[:-88]).hexdigest().encode()
if content[-88:] != entry:  # the digest of all other bytes
    sys.exit(f"{sys.argv[1]}: the file is missing or damaged, or skpatchcore.export did not write it.")
session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
manifest = json.loads(session.get_modelmeta().custom_metadata_map["skpatchcore"])
print("image\tscore\tdecision\tlabel\tp_value")
for path in sys.argv[2:]:
    try:
        image, size = Image.open(path), manifest["input"]["image_size"]  # None: any size
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except Exception as error:  # Pillow raises several types of errors
        sys.exit(f"{path}: {error}")
    if image.mode[0] in "IF" or getattr(image, "n_frames", 1) > 1 or size not in (None, [*pixels.shape[1:3]]):
        sys.exit(f"{path}: {image.mode}, {pixels.shape[1:3]}. Expected one picture, 8 bits, size {size or 'any'}.")
    images = {"images": pixels if manifest["input"]["dtype"] == "uint8" else pixels / np.float32(255)}
    outputs = session.run(["score", "decision", "label", "p_value", "anomaly_map", "pixels"], images)
    print("\t".join([path, *(f"{output[0]:.9g}" for output in outputs[:4])]), flush=True)
    heat = outputs[4][0, :, :, None] / manifest["thresholds"]["pixel_offset"]  # 1 is the threshold
    grey = (pixels / 255 if pixels.shape[1:3] == heat.shape[:2] else outputs[5])[0].mean(axis=-1, keepdims=True)
    colours = np.where(heat > 1, np.clip(heat - [0, 1, np.inf], 0, 1), np.where(np.isnan(heat), [0, 0, 0.6], grey))
    Image.fromarray((255 * colours).astype(np.uint8)).save(f"{path}.heat.png")
