"""Score image files with an exported detector. This program needs numpy, pillow and onnxruntime, but not skpatchcore.

Run ``python score_image.py parts.onnx 1.png 2.png``. Each image gets one line: score (bigger = more normal), decision
(negative = anomalous), label (1 = normal, -1 = anomalous), p-value. Its heat map is saved in a file beside the image.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

DIGEST = b"\x72\x56\x0a\x12skpatchcore.sha256\x12\x40"  # the last entry of the file; 64 hexadecimal digits follow
OUTPUTS = ["score", "decision", "label", "p_value", "anomaly_map"]

content = Path(sys.argv[1]).read_bytes()
if content[-88:-64] != DIGEST or hashlib.sha256(content[:-88]).hexdigest().encode() != content[-64:]:
    sys.exit(f"{sys.argv[1]}: the file is damaged, or skpatchcore.export did not write it.")
session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
manifest = json.loads(session.get_modelmeta().custom_metadata_map["skpatchcore"])
options = onnxruntime.RunOptions()
options.only_execute_path_to_fetches = True  # outputs that are not listed above are not computed

print("image\tscore\tdecision\tlabel\tp_value")
for path in sys.argv[2:]:
    image = Image.open(path)
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK") or getattr(image, "n_frames", 1) > 1:
        sys.exit(f"{path}: the mode is {image.mode}, expected one picture with 8 bits per channel.")
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
    pixels = pixels / np.float32(255) if session.get_inputs()[0].type == "tensor(float)" else pixels
    score, decision, label, p_value, heat = (a[0] for a in session.run(OUTPUTS, {"images": pixels}, options))
    print(f"{path}\t{score:.9g}\t{decision:.9g}\t{label}\t{p_value:.9g}", flush=True)
    heat = heat[..., None] / (2 * manifest["thresholds"]["pixel_offset"])  # 0.5 is the threshold of the pixels
    colours = np.where(np.isnan(heat), 0.5, np.clip(3 * heat - [0, 1, 2], 0, 1))  # grey is not inspected
    Image.fromarray((255 * colours).astype(np.uint8)).save(f"{path}.heat.png")
