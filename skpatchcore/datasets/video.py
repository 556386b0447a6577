"""Frames of videos: :func:`video_frames` reads one video, :func:`load_video_task` a data set of videos."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.listing import list_images
from skpatchcore.images.reading import image_size

# Endings of video files.
VIDEO_SUFFIXES = (".avi", ".mp4", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
# Number of decoded frames that are kept: more than the images that an extractor reads at the same time.
_N_RECENT = 16


class VideoFile(Sequence[np.ndarray]):
    """Frames of a video file, which are decoded when they are used.

    Frames are decoded one after the other. Therefore reading in ascending order is fast. The last 16 frames are kept.
    A frame before them starts the decoding anew. Several threads may read from one object. All frames are decoded once
    when the object is made, to count them.

    Parameters
    ----------
    path : path
        The video file. The package PyAV must be installed (``pip install av``).
    every : int, default=1
        Only every n-th frame is an item: the frames 0, n, 2n, ...

    Attributes
    ----------
    numbers : array of shape (n_frames,), int
        Number of each frame in the video, counted from 0.

    Raises
    ------
    ImportError
        If PyAV is not installed.
    ValueError
        If the file is no video, or `every` is no integer of at least 1.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1):
        _check_every(every)
        self.path, self.every = os.fspath(path), every
        self.numbers = np.arange(0, self._count(), every)
        self._forget()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice | np.ndarray | list):
            return [self[i] for i in _items(index, len(self))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        with self._lock:  # extractors read images in several threads if the network runs on a GPU
            found: np.ndarray = self._frame(int(self.numbers[index])).to_ndarray(format="rgb24")
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "every": self.every, "numbers": self.numbers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        """Start without a decoder and without decoded frames."""
        self._decoder: Iterator[Any] | None = None
        self._next = 0
        self._recent: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _frame(self, number: int) -> Any:
        """Return a decoded frame by its number in the video, which is a multiple of `every`."""
        if number not in self._recent:
            if self._decoder is None or number < self._next:
                self._decoder, self._next, self._recent = self._frames(), 0, {}
            while self._next <= number:
                frame = next(self._decoder, None)
                if frame is None:
                    raise ValueError(
                        f"{self.path!r}: frame {number} cannot be read, although the file has had it before."
                    )
                if self._next % self.every == 0:
                    self._recent[self._next] = frame
                    self._recent.pop(self._next - _N_RECENT * self.every, None)
                self._next += 1
        return self._recent[number]

    def _frames(self) -> Iterator[Any]:
        with _opened(self.path) as container:
            if not container.streams.video:
                raise ValueError(f"{self.path!r} has no video, e.g. only sound.")
            yield from container.decode(video=0)

    def _count(self) -> int:
        """Return the number of frames, by decoding them all: the number in the header is often wrong."""
        n = sum(1 for _ in self._frames())
        if not n:
            raise ValueError(f"{self.path!r} has no frame that can be read.")
        with _opened(self.path) as container:
            n_stated = container.streams.video[0].frames
        if n < n_stated:
            warn_user(
                f"{self.path!r}: {n} of {n_stated} frames can be read. If the file is damaged, the numbers of the "
                "frames after the first damaged one are too small."
            )
        return n


def video_frames(video: Any, *, every: int = 1) -> Sequence[Any]:
    """Return the frames of a video, or of several, as images for `fit` and `predict`.

    Parameters
    ----------
    video : path or sequence of paths
        A folder of frames, whose names are sorted (numbers by their values), or a video file, which needs the package
        PyAV (``pip install av``). A sequence of paths is several videos.
    every : int, default=1
        Every n-th frame is returned. The PatchCore paper uses every fifth frame of the training videos.

    Returns
    -------
    sequence
        Paths of the frames, or a :class:`~skpatchcore.datasets.VideoFile`, which decodes frames when they are used. For
        several videos, a :class:`~skpatchcore.datasets.JoinedVideos`, whose ``groups`` are the videos.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder, or the folder contains no image.
    ValueError
        If the file is no video, if a folder has frames in folders below it, or `every` is no integer of at least 1.
    ImportError
        If PyAV is needed and not installed.
    """
    _check_every(every)
    if not isinstance(video, str | os.PathLike):
        return JoinedVideos([video_frames(one, every=every) for one in video])
    if os.path.isdir(video):
        found = sorted(list_images(video), key=_by_numbers)
        if len(places := sorted({os.path.dirname(path) for path in found})) > 1:
            raise ValueError(
                f"{os.fspath(video)!r} has frames in several folders, e.g. {places[-1]!r}. Pass the folder of one "
                "video, or a list of folders."
            )
        return found[::every]
    if not os.path.isfile(video):
        raise FileNotFoundError(f"there is no video {os.fspath(video)!r}.")
    return VideoFile(video, every)


@dataclass(frozen=True)
class VideoTask:
    """Data set of videos: frames of normal training videos, and labelled frames of test videos.

    Attributes
    ----------
    train_images, test_images : sequence
        Frames: paths, or arrays that are decoded when they are used.
    train_groups : array of shape (n_train,), str
        Video of each training frame. Frames of one video are alike, so that the calibration must not compare them.
    test_labels : array of shape (n_test,), int
        +1 for normal frames and -1 for anomalous ones.
    test_defects : array of shape (n_test,), str
        ``"good"`` for normal frames, ``"anomaly"`` for others.
    test_masks : sequence of length n_test
        Masks of the anomalous pixels. None for normal frames, and if there are no masks.
    test_videos : array of shape (n_test,), str
        Video of each test frame.
    test_numbers : array of shape (n_test,), int
        Number of each test frame in its video, counted from 0.
    """

    train_images: Sequence[Any]
    train_groups: np.ndarray
    test_images: Sequence[Any]
    test_labels: np.ndarray
    test_defects: np.ndarray
    test_masks: Sequence[Any]
    test_videos: np.ndarray
    test_numbers: np.ndarray


class JoinedVideos(Sequence[Any]):
    """Frames of several videos one after the other, without copies. :func:`video_frames` returns it for several videos.

    Parameters
    ----------
    parts : sequence of sequences
        Frames of each video.

    Attributes
    ----------
    groups : array of shape (n_frames,), int
        Number of the video of each frame, counted from 0: the ``groups`` of `fit`.
    """

    def __init__(self, parts: Sequence[Sequence[Any]]):
        self._parts = list(parts)
        self.groups = np.repeat(np.arange(len(self._parts)), [len(part) for part in self._parts])
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice | np.ndarray | list):
            return [self[i] for i in _items(index, len(self))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part][index - int(self._starts[part])]


def load_video_task(root: str | os.PathLike[str], *, every: int = 5, scene: str = "") -> VideoTask:
    """List the videos of a data set in the layout of ShanghaiTech Campus.

    Parameters
    ----------
    root : path
        Folder of the data set::

            training/videos/01_001.avi ...     or training/frames/01_001/000.jpg ...
            testing/frames/01_0014/000.jpg ... or testing/videos/01_0014.avi ...
            testing/test_frame_mask/01_0014.npy   (1 for an anomalous frame, 0 for a normal one)
            testing/test_pixel_mask/01_0014.npy   (optional: masks of all frames)

    every : int, default=5
        Every n-th frame of the training videos is used, as in the PatchCore paper. All test frames are used.
    scene : str, default=""
        Only videos whose names begin with this text are used, e.g. ``"01_"`` for the first scene. By default, all.

    Returns
    -------
    VideoTask
        The frames, labels and masks, which :func:`~skpatchcore.evaluate` accepts.

    Raises
    ------
    FileNotFoundError
        If a folder is missing, or a test video has no file in ``test_frame_mask``.
    ValueError
        If the number of labels or masks differs from the number of frames of a video, if masks have another size than
        the frames, if a label is neither 0 nor 1, or
        if two video files differ only in their endings.

    Warns
    -----
    UserWarning
        If only some test videos have masks of pixels: those without are left out of the pixel metrics. If a video file
        contains fewer frames than it states.

    References
    ----------
    Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 4.4. The paper resizes the
    frames to 256 x 256 pixels without a crop, and uses the layers 3 and 4 of WideResNet-50: the preset
    ``"paper-video"`` of :func:`~skpatchcore.evaluation.make_detector`.
    """
    root = Path(root)
    training, testing = _videos_in(root / "training", scene), _videos_in(root / "testing", scene)
    train = {name: video_frames(path, every=every) for name, path in training.items()}
    test = {name: video_frames(path) for name, path in testing.items()}
    labels, masks, without = [], [], []
    for name, frames in test.items():
        own = _labels_of(root / "testing" / "test_frame_mask" / f"{name}.npy", name, len(frames))
        labels.append(own)
        file = root / "testing" / "test_pixel_mask" / f"{name}.npy"
        if file.exists():
            found = np.load(file, mmap_mode="r", allow_pickle=False)
            if len(found) != len(frames):
                raise ValueError(f"video {name!r} has {len(frames)} frames, and {str(file)!r} has {len(found)} masks.")
            if (size := image_size(frames[0], 0)) != found.shape[1:3]:
                raise ValueError(
                    f"frames of video {name!r} have {size[0]} x {size[1]} pixels, and the masks in {str(file)!r} have "
                    f"{' x '.join(map(str, found.shape[1:]))}."
                )
            masks += [found[i] if own[i] else None for i in range(len(frames))]
        else:
            without.append(name)
            masks += [None] * len(frames)
    if without and len(without) < len(test):
        warn_user(
            f"{len(without)} of {len(test)} test videos have no masks of pixels, e.g. {without[0]!r}. Their anomalous "
            "frames are left out of the pixel metrics."
        )
    is_anomalous = np.concatenate(labels)
    return VideoTask(
        train_images=JoinedVideos(list(train.values())),
        train_groups=np.repeat(list(train), [len(frames) for frames in train.values()]),
        test_images=JoinedVideos(list(test.values())),
        test_labels=np.where(is_anomalous, -1, 1),
        test_defects=np.where(is_anomalous, "anomaly", "good"),
        test_masks=masks,
        test_videos=np.repeat(list(test), [len(frames) for frames in test.values()]),
        test_numbers=np.concatenate([np.arange(len(frames)) for frames in test.values()]),
    )


def _check_every(every: int) -> None:
    """Raise a ValueError if `every` is not a positive integer."""
    if not isinstance(every, Integral) or every < 1:
        raise ValueError(f"every={every}: expected an integer of at least 1.")


def _items(index: Any, n: int) -> list[int]:
    """Return the positions in a sequence of length `n` that a slice, a list or an array selects."""
    return [int(i) for i in np.arange(n)[index]]


def _by_numbers(path: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in file names by their values: 9.png comes before 10.png."""
    parts = re.split(r"([0-9]+)", path)
    return [(int(part) if i % 2 else 0, "" if i % 2 else part) for i, part in enumerate(parts)]


def _videos_in(folder: Path, scene: str) -> dict[str, Path]:
    """Return the videos of a part of a data set by their names: folders of frames, or video files.

    Hidden files and folders are left out, and so are videos whose names do not begin with the name of the scene.
    """
    for kind in ("frames", "videos"):
        place = folder / kind
        if place.is_dir():
            found: dict[str, Path] = {}
            for path in sorted(place.iterdir()):
                if path.name.startswith(".") or not path.name.startswith(scene):
                    continue
                if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
                    name = path.name if path.is_dir() else path.stem
                    if name in found:
                        raise ValueError(f"{str(found[name])!r} and {str(path)!r} are two videos of the same name.")
                    found[name] = path
            if found:
                return found
    named = f" whose names begin with {scene!r}" if scene else ""
    raise FileNotFoundError(f"there are no videos{named} in {str(folder / 'frames')!r} or {str(folder / 'videos')!r}.")


def _labels_of(file: Path, name: str, n_frames: int) -> np.ndarray:
    if not file.exists():
        raise FileNotFoundError(f"test video {name!r} has no labels of its frames: expected {str(file)!r}.")
    labels = np.load(file, allow_pickle=False).ravel()
    if len(labels) != n_frames:
        raise ValueError(f"video {name!r} has {n_frames} frames, and {str(file)!r} has {len(labels)} labels.")
    if not (is_known := np.isin(labels, (0, 1))).all():
        i = int(is_known.argmin())
        raise ValueError(
            f"{str(file)!r}: the label of frame {i} is {labels[i]!r}, expected 0 (normal) or 1 (anomalous)."
        )
    return np.asarray(labels == 1)


def _opened(path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"reading the video {path!r} needs the package PyAV: pip install av, or extract the frames into a folder."
        ) from error
    try:
        return av.open(path)
    except av.error.FFmpegError as error:
        raise ValueError(f"{path!r} cannot be read as a video: {error}.") from error
