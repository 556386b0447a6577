"""Videos: frames of folders and files, the data set of videos, and its evaluation frame by frame."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from skimage.data import brick

from skpatchcore import PatchCoreDetector, evaluate
from skpatchcore.datasets import JoinedVideos, VideoFile, load_video_task, video_frames
from skpatchcore.display import ScoreTimelineDisplay
from skpatchcore.evaluation import low_shot_curve
from tests.factories import extractor

N_FRAMES, SIZE = 30, (64, 96)


def frame_of(number, intruder=False):
    """Return a frame: a scene with a walker who moves to the right; an intruder is a large bright square."""
    frame = np.repeat(brick()[: SIZE[0], : SIZE[1], None], 3, axis=2).copy()
    left = 2 * number % (SIZE[1] - 8)
    frame[40:56, left : left + 5] = 60
    if intruder:
        frame[8:32, 30:60] = [250, 240, 40]
    return frame


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "walk"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(frame_of(i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def video(tmp_path):
    av = pytest.importorskip("av", reason="the extra video is not installed")
    path = tmp_path / "walk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for i in range(N_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_of(i), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_of_a_folder_are_sorted_by_number(frames):
    names = [path.rsplit("/", 1)[-1] for path in video_frames(frames, every=5)]
    assert names == ["0.png", "5.png", "10.png"]


def test_frames_of_a_file_are_decoded_in_any_order(video):
    found = video_frames(video, every=4)
    assert found.numbers.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    for i in (0, 3, 3, 1, -1):
        assert found[i].shape == (*SIZE, 3)
        assert np.abs(found[i].astype(int) - frame_of(found.numbers[i])).mean() < 6  # the compression is lossy
    np.testing.assert_array_equal(found[1:3][0], found[1])
    with pytest.raises(IndexError):
        found[8]


def test_frames_of_a_file_are_images_for_a_detector(video):
    found = video_frames(video, every=3)
    detector = PatchCoreDetector(extractor(), calibration=None, random_state=0).fit(found)
    scores = detector.score_samples([frame_of(2), frame_of(2, intruder=True)])
    assert scores[1] < 2 * scores[0]


def test_several_threads_read_frames_of_one_file(video):
    found, opened = VideoFile(video, every=2), []
    expected = [found[i] for i in range(len(found))]
    again = VideoFile(video, every=2)
    frames_of = again._frames
    again._frames = lambda: opened.append(1) or frames_of()
    with ThreadPoolExecutor(4) as executor:
        for i, frame in enumerate(executor.map(lambda i: again[i ^ 1], range(len(again) - 1))):
            np.testing.assert_array_equal(frame, expected[i ^ 1])
    assert len(opened) == 1  # neighbours in another order do not start the decoding anew


def test_video_file_is_pickled_without_its_decoder(video):
    found = VideoFile(video)
    first = found[3]
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again[3], first)


def test_broken_and_missing_videos_are_named(tmp_path):
    pytest.importorskip("av", reason="the extra video is not installed")
    (tmp_path / "broken.avi").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.avi' cannot be read as a video"):
        video_frames(tmp_path / "broken.avi")
    with pytest.raises(FileNotFoundError, match=r"missing\.avi"):
        video_frames(tmp_path / "missing.avi")


def test_a_file_with_sound_only_is_named(tmp_path):
    av = pytest.importorskip("av", reason="the extra video is not installed")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4' has no video"):
        video_frames(tmp_path / "sound.mp4")


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_every_must_be_at_least_one(frames, every):
    with pytest.raises(ValueError, match=f"every={every}"):
        video_frames(frames, every=every)


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "walk.avi").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install av"):
        video_frames(tmp_path / "walk.avi")


@pytest.fixture
def root(tmp_path):
    """Two training videos and two test videos, as folders of frames. The intruder comes in the frames 8 to 13."""
    for k in range(2):
        place = tmp_path / "training" / "frames" / f"01_00{k}"
        place.mkdir(parents=True)
        for i in range(20):
            Image.fromarray(frame_of(i + 7 * k)).save(place / f"{i:03d}.png")
    for k in range(2):
        place = tmp_path / "testing" / "frames" / f"01_01{k}"
        place.mkdir(parents=True)
        labels, masks = np.zeros(16, np.int8), np.zeros((16, *SIZE), np.uint8)
        for i in range(16):
            labels[i] = k == 1 and 8 <= i < 14
            masks[i, 8:32, 30:60] = labels[i]
            Image.fromarray(frame_of(i + 3, intruder=bool(labels[i]))).save(place / f"{i:03d}.png")
        for name, values in (("test_frame_mask", labels), ("test_pixel_mask", masks)):
            folder = tmp_path / "testing" / name
            folder.mkdir(exist_ok=True)
            np.save(folder / f"01_01{k}.npy", values)
    return tmp_path


def test_video_task_takes_every_fifth_training_frame_and_all_test_frames(root):
    task = load_video_task(root)
    assert [path[-7:] for path in task.train_images] == ["000.png", "005.png", "010.png", "015.png"] * 2
    assert task.train_groups.tolist() == ["01_000"] * 4 + ["01_001"] * 4
    assert len(task.test_images) == len(task.test_masks) == 32
    assert np.flatnonzero(task.test_labels == -1).tolist() == list(range(24, 30))
    assert (task.test_videos[24], task.test_numbers[24], task.test_defects[24]) == ("01_011", 8, "anomaly")
    assert task.test_images[-1] == task.test_images[31] == task.test_images[31:][0]


def test_evaluation_is_frame_by_frame_and_pixel_by_pixel(root):
    detector = PatchCoreDetector(extractor(), calibration=None, random_state=0)
    row = evaluate(detector, {"01": load_video_task(root, every=2)}).loc["01"]
    assert row["image_auroc"] == 1
    assert row["pixel_auroc"] > 0.9
    assert row[["n_train", "n_good", "n_defective", "n_masks"]].astype(int).tolist() == [20, 26, 6, 6]


def test_calibration_of_a_video_task_leaves_out_whole_videos(root):
    task = load_video_task(root)
    detector = PatchCoreDetector(extractor(), calibration=2, random_state=0)
    detector.fit(task.train_images, groups=task.train_groups)
    assert len(detector.calibration_scores_) == 8
    assert not np.isnan(detector.calibration_scores_).any()


def test_labels_that_do_not_fit_are_refused(root):
    file = root / "testing" / "test_frame_mask" / "01_010.npy"
    np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"'01_010' has 16 frames, and .* has 3 labels"):
        load_video_task(root)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="01_010"):
        load_video_task(root)


@pytest.mark.parametrize("values", [np.r_[np.ones(8), -np.ones(8)], np.full(16, np.nan), np.array(["0"] * 16)])
def test_labels_other_than_zero_and_one_are_refused(root, values):
    np.save(root / "testing" / "test_frame_mask" / "01_010.npy", values)
    with pytest.raises(ValueError, match=r"01_010\.npy': the label of frame (0|8) is .*expected 0 \(normal\) or 1"):
        load_video_task(root)


def test_two_files_of_one_video_are_refused(tmp_path):
    folder = tmp_path / "training" / "videos"
    folder.mkdir(parents=True)
    for name in ("01.avi", "01.mp4"):
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"01\.avi' and '.*01\.mp4' are two videos of the same name"):
        load_video_task(tmp_path)


def test_evaluation_with_few_frames_draws_them_from_all_videos(root):
    detector = PatchCoreDetector(extractor(), calibration=None, random_state=0)
    table = low_shot_curve(detector, {"01": load_video_task(root)}, [3], n_repeats=1)
    assert table["n_train"].tolist() == [3]


def test_masks_of_some_videos_only_are_said(root):
    (root / "testing" / "test_pixel_mask" / "01_011.npy").unlink()
    with pytest.warns(UserWarning, match="1 of 2 test videos have no masks of pixels, e.g. '01_011'"):
        task = load_video_task(root)
    assert task.test_masks[24] is None


def test_folder_without_videos_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="training/frames"):
        load_video_task(tmp_path)


def test_timeline_shades_the_known_spans_and_marks_flagged_frames():
    scores = -np.array([1.0, 1.0, 4.0, 5.0, 1.0, 3.0])
    display = ScoreTimelineDisplay.from_scores(
        scores, offset=-2.0, labels=[1, 1, -1, -1, 1, -1], times=np.arange(6) / 25
    )
    assert display.spans() == [(2, 4), (5, 6)]
    labels = display.ax_.get_legend_handles_labels()[1]
    assert labels == ["known to be anomalous", "anomaly score", "threshold", "flagged"]
    assert len(display.ax_.lines[-1].get_xdata()) == 3


def test_timeline_without_threshold_and_labels():
    display = ScoreTimelineDisplay.from_scores([-1.0])
    assert display.spans() == []
    assert [line.get_label() for line in display.ax_.lines] == ["anomaly score"]


@pytest.mark.parametrize(
    ("scores", "given", "message"),
    [
        ([], {}, "no frames"),
        ([-1.0, -2.0], {"labels": [1, 1, -1]}, "labels has 3 items for 2 scores"),
        ([-1.0, -2.0], {"times": [0.0]}, "times has 1 items for 2 scores"),
    ],
)
def test_timeline_needs_one_label_and_time_for_each_frame(scores, given, message):
    with pytest.raises(ValueError, match=message):
        ScoreTimelineDisplay.from_scores(scores, **given)


def test_videos_of_one_scene_are_chosen_and_hidden_folders_are_left_out(root):
    (root / "training" / "frames" / ".cache").mkdir()
    (root / "training" / "frames" / "02_000").mkdir()  # another scene, without frames
    assert len(load_video_task(root, scene="01_").train_images) == 8
    with pytest.raises(FileNotFoundError, match="no videos whose names begin with '03_'"):
        load_video_task(root, scene="03_")


def test_masks_of_another_size_are_named_before_the_fit(root):
    np.save(root / "testing" / "test_pixel_mask" / "01_010.npy", np.zeros((16, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"frames of video '01_010' have 64 x 96 pixels, .* have 32 x 32"):
        load_video_task(root)


def test_file_with_fewer_frames_than_it_states_gives_a_warning(video, monkeypatch):
    whole = VideoFile._frames
    monkeypatch.setattr(VideoFile, "_frames", lambda self: islice(whole(self), 12))
    with pytest.warns(UserWarning, match=rf"12 of {N_FRAMES} frames can be read"):
        assert len(video_frames(video)) == 12


@pytest.mark.parametrize("n_frames", [1, 5])
def test_timeline_has_times_of_a_clock(n_frames):
    times = np.datetime64("2026-01-01T06:00:00") + np.arange(n_frames) * np.timedelta64(40, "s")
    labels = np.where(np.arange(n_frames) == n_frames - 1, -1, 1)
    display = ScoreTimelineDisplay.from_scores(-np.arange(n_frames), offset=-2.5, labels=labels, times=times)
    assert display.spans() == [(n_frames - 1, n_frames)]
    assert display.ax_.get_xlim()[0] < display.ax_.get_xlim()[1]


def test_several_videos_are_joined_with_their_groups(frames, video):
    found = video_frames([frames, video], every=6)
    assert isinstance(found, JoinedVideos)
    assert found.groups.tolist() == [0, 0] + [1] * 5
    assert found[1] == str(frames / "6.png")
    assert [image.shape for image in found[[2, 6]]] == [(*SIZE, 3)] * 2


def test_folder_of_several_videos_is_no_video(root):
    with pytest.raises(ValueError, match="has frames in several folders"):
        video_frames(root / "training" / "frames")
