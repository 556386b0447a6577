"""
Frames of a video over time
===========================

A camera watches a scene in which people walk. A detector learns normal frames, and scores each frame of a new video.
The scores over time show when something unusual came into the scene, and the anomaly map shows where.

The video of this example is drawn: walkers are dark shapes that move over a texture of scikit-image. For real videos,
:func:`~skpatchcore.datasets.video_frames` reads the frames of a file or of a folder.
"""

import numpy as np
from skimage import data

from skpatchcore import AnomalyMapDisplay, PatchCoreDetector, ScoreTimelineDisplay, TorchFeatureExtractor

scene = np.repeat(data.brick()[:128, :192, None], 3, axis=2)


def frames_of(first_places, n_frames, intruder_from=None, intruder_to=None):
    """Return the frames of a video: walkers move to the right, and an intruder on a bright vehicle to the left."""
    frames = []
    for i in range(n_frames):
        frame = scene.copy()
        for row, place, speed in first_places:
            left = int(place + speed * i) % 180
            frame[row : row + 22, left : left + 6] = 45
            frame[row - 6 : row, left + 1 : left + 5] = 70
        if intruder_from is not None and intruder_from <= i < intruder_to:
            left = 160 - 4 * (i - intruder_from)
            frame[60:84, left : left + 30] = [235, 200, 60]
            frame[80:88, left + 3 : left + 9] = frame[80:88, left + 20 : left + 26] = 20
        frames.append(frame)
    return np.stack(frames)


# %%
# Learn from normal videos
# ------------------------
#
# Neighbouring frames are nearly equal. Therefore, every fifth frame is enough. The frames of one video are a group: the
# calibration compares no frame with frames of the same video.

rng = np.random.default_rng(0)
videos = [
    frames_of([(row, rng.integers(180), rng.uniform(0.8, 2)) for row in (30, 70, 100)], 40)[::5] for _ in range(20)
]
normal, groups = np.concatenate(videos), np.repeat(np.arange(len(videos)), len(videos[0]))

extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
detector = PatchCoreDetector(extractor, contamination=0.05, random_state=0).fit(normal, groups=groups)

# %%
# Score a new video
# -----------------
#
# The intruder is in the scene in the frames 60 to 84.

new = frames_of([(30, 20, 1.5), (70, 90, 1.1), (100, 10, 1.8)], 120, intruder_from=60, intruder_to=85)
labels = np.where((np.arange(120) >= 60) & (np.arange(120) < 85), -1, 1)
scores, maps = detector.score_and_segment(new)
display = ScoreTimelineDisplay.from_scores(scores, offset=detector.offset_, labels=labels)

# %%
# Where
# -----

AnomalyMapDisplay.from_estimator(detector, new[[40, 70]])
