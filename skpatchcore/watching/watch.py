"""watch_folder: judge the images of a folder as they arrive, exactly once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from skpatchcore._utils.names import escape_name
from skpatchcore.reports.cards import verdict_of
from skpatchcore.reports.pipelines import as_image_detector
from skpatchcore.reports.predictions import Prediction
from skpatchcore.watching.arrivals import Arrival, Arrivals
from skpatchcore.watching.candidates import Place
from skpatchcore.watching.delivery import Delivery
from skpatchcore.watching.discovery import Discovery
from skpatchcore.watching.heartbeat import Heartbeat
from skpatchcore.watching.journal import Journal
from skpatchcore.watching.judging import Judge, Judged, RecordingPictures
from skpatchcore.watching.live import LiveReport
from skpatchcore.watching.models import LoadedModel, ModelFile
from skpatchcore.watching.notices import Notices
from skpatchcore.watching.outbox import Outbox
from skpatchcore.watching.program import runner_of
from skpatchcore.watching.recorder import Recorder
from skpatchcore.watching.settings import WatchSettings
from skpatchcore.watching.storing import Stopped, Storing
from skpatchcore.watching.wakeups import Wakeups
from skpatchcore.watching.webhook import sender_of, shown_url

JOURNAL, HEARTBEAT = "journal.sqlite", "heartbeat.json"
# Longest time in seconds without a turn, and the same if the caller gave an event to stop.
_LONGEST_WAIT, _LONGEST_WAIT_FOR_EVENT = 1.0, 0.2
# Seconds for the messages that are left at the end of a run with `once`.
_DRAIN = 60.0
# Seconds between two tries to move files that could not be moved.
_MOVE_AGAIN = 60.0
# Maximum size in bytes of the files that are read at once, except that one file is always read.
_N_BYTES = 2**28
# What is said of a model file that was removed.
_MISSING = "is missing"
# Number of failures to deliver after which a program of the user is not run again for the same result.
_MOST_RUNS = 3


def watch_folder(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: WatchSettings | None = None,
    *,
    load: Callable[[str], Any] | None = None,
    on_prediction: Callable[[Prediction], Any] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Judge the images of a folder as they arrive, and write each result exactly once.

    The function returns when the process gets SIGTERM or SIGINT, when `stop` is set, or at once after all files are
    judged if ``settings.once`` is True. Before it returns, it writes the results of the files that go through the
    network at this moment.

    Parameters
    ----------
    folder : path
        The watched folder. Its subfolders are watched, too.
    model : path
        Model file. It is loaded again when it is replaced.
    output : path
        Folder of the results. It is created if it does not exist. It must not be the watched folder or a parent of it.
    settings : WatchSettings or None, default=None
        Options. None uses the defaults.
    load : callable or None, default=None
        Function that loads a model file. None uses :func:`skpatchcore.load`.
    on_prediction : callable or None, default=None
        Called with each prediction after its lines are written.
    stop : Event or None, default=None
        Ends the function. Signals are handled only if the function runs in the main thread.

    Raises
    ------
    NotADirectoryError
        If the folder does not exist at the start. If it vanishes later, the function waits for it.
    JournalError
        If another process uses the output folder, or if its journal is damaged.
    ValueError
        If the folders lie inside each other.
    KeyboardInterrupt
        If a second signal arrives before the function has returned. No result is lost.
    Exception
        Any error of loading the model at the start. Errors of a later model are printed, and the earlier model is used.

    Notes
    -----
    The output folder contains ``scores.csv``, ``scores.jsonl``, ``heartbeat.json``, ``journal.sqlite`` and the heat
    maps in the folder ``maps``. The user guide describes these files and the guarantees.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from PIL import Image
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.reports import read_predictions
    >>> from skpatchcore.watching import WatchSettings, watch_folder
    >>> good = np.random.default_rng(0).integers(120, 130, (6, 64, 64, 3), dtype=np.uint8)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0).fit(good)
    >>> with tempfile.TemporaryDirectory() as name:
    ...     top = pathlib.Path(name)
    ...     (top / "in").mkdir()
    ...     Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(top / "in" / "part.png")
    ...     (top / "parts.skops").touch()
    ...     options = WatchSettings(once=True, settle=0, poll=1)
    ...     watch_folder(top / "in", top / "parts.skops", top / "out", options, load=lambda path: detector)
    ...     [prediction.label for prediction in read_predictions(top / "out")]
    [-1]
    """
    watch = _Watch(os.fspath(folder), os.fspath(model), Path(output), settings or WatchSettings(), load, stop)
    watch.run(on_prediction)


def check_folders(folder: str, output: str, move: str | None) -> None:
    """Raise an error if the folders of a watch are missing or lie inside each other."""
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"there is no directory {folder!r}.")
    real = Path(os.path.realpath(folder))
    for kind, path in (("output folder", output), ("folder of judged files", move)):
        if path is not None and Path(os.path.realpath(path)) in (real, *real.parents):
            raise ValueError(f"the watched folder {folder!r} lies in the {kind} {path!r}. Choose another one.")


class _Watch:
    """One run of :func:`watch_folder`."""

    def __init__(
        self,
        folder: str,
        model: str,
        output: Path,
        settings: WatchSettings,
        load: Callable[[str], Any] | None,
        stop: threading.Event | None,
    ):
        check_folders(folder, str(output), settings.move)
        self._settings, self._output, self._stop_event = settings, output, stop
        self._notices, self._wakeups = Notices(), Wakeups()
        self._is_stopped = False
        excluded = [str(output), *([] if settings.move is None else [settings.move])]
        self._place = Place(folder, excluded, settings.done_marker)
        self._file = ModelFile(model, load or _loaded, settings.settle)
        self._judge: Judge | None = None
        self._report: LiveReport | None = None
        self._deliveries: list[Delivery] = []
        self._last: tuple[str, float] | None = None
        self._model_problem = ""
        self._next_move = time.monotonic() + _MOVE_AGAIN
        output.mkdir(parents=True, exist_ok=True)
        self._heartbeat = Heartbeat(output / HEARTBEAT, self._facts)

    def run(self, on_prediction: Callable[[Prediction], Any] | None) -> None:
        """Watch until the end."""
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            self._journal = Journal(self._output / JOURNAL, self._settings.fsync)
            stack.callback(self._journal.close)
            self._storing = Storing(self._heartbeat, self._notices, self._pause)
            self._recorder = Recorder(
                self._place, self._output, self._settings, self._journal, self._storing, self._notices
            )
            stack.callback(self._recorder.close)
            self._arrivals = Arrivals(self._place, self._recorder.known.__contains__, self._settings.settle)
            self._discovery = Discovery(
                self._place,
                self._arrivals,
                self._wakeups,
                poll=self._settings.poll,
                rescan=self._settings.rescan,
                notices=self._notices,
            )
            stack.callback(self._discovery.stop)
            state = "failed"
            try:
                self._heartbeat.start()
                self._use(self._file.load())
                with suppress(Stopped):
                    self._recorder.recover()
                    self._start_deliveries()
                    self._discovery.start()
                    self._turns(on_prediction)
                    self._write_page(is_end=True)
                state = "stopped"
            except KeyboardInterrupt:
                state = "stopped"
                raise
            finally:
                if self._settings.once and state == "stopped" and not self._is_ending():
                    for delivery in self._deliveries:
                        delivery.drain(_DRAIN, self._is_ending)
                for delivery in self._deliveries:
                    delivery.stop()
                self._heartbeat.stop(state)

    def _turns(self, on_prediction: Callable[[Prediction], Any] | None) -> None:
        while not self._is_ending():
            now = time.monotonic()
            self._heartbeat.turn()
            self._discovery.turn(now)
            if self._file.is_replaced():
                self._reload()
            self._look_for_model()
            if self._journal.is_removed():
                self._storing.insist(self._journal.restore)
                self._notices.say(f"the journal {str(self._output / JOURNAL)!r} was removed. It was written again.")
            assert self._judge is not None
            taken = self._take()
            if taken:
                self._heartbeat.enter("judging", now=False)
                for prediction in self._judged(self._judge, taken):
                    if on_prediction is not None:
                        on_prediction(prediction)
                self._write_page()
                if self._settings.once:  # files that came meanwhile are judged, too
                    self._discovery.search_anew()
                continue
            if self._is_done():
                break
            self._heartbeat.enter("folder missing" if self._discovery.is_missing else "waiting", self._is_changed())
            self._idle(now)
            due = self._arrivals.next_due()
            times = [self._discovery.next_time(), *([] if due is None else [due])]
            self._rest(max(0.0, min(times) - time.monotonic()))

    def _take(self) -> list[Arrival]:
        assert self._judge is not None
        if self._discovery.is_missing:
            return []
        try:
            return self._arrivals.take(time.monotonic(), self._judge.batch, _N_BYTES)
        except OSError:  # the folder has vanished, which the next turn says
            return []

    def _judged(self, judge: Judge, taken: list[Arrival]) -> Iterator[Prediction]:
        """Judge files, and yield the predictions after they are written, in the order of the files."""
        judged, failed = judge.judge(taken)
        results: dict[str, Judged] = {one.arrival.version.path: one for one in judged}
        for arrival, reason in failed:
            path = arrival.version.path
            try:
                is_same = self._place.version_of(path) == arrival.version
                if is_same and arrival.n_tries:
                    results[path] = judge.flag(arrival, reason)
                else:
                    self._arrivals.postpone(arrival, time.monotonic(), self._settings.patience)
            except OSError:  # the folder has vanished, which the next turn says
                self._arrivals.finish(path)
        for arrival in taken:
            one = results.get(arrival.version.path)
            if one is None:
                continue
            prediction = self._recorder.record(judge, one, self._report)
            one.result = one.kept = None
            self._arrivals.finish(arrival.version.path)
            self._deliver(prediction)
            self._last = prediction.path, time.monotonic()
            yield prediction
        if judge.drift.alarm:
            self._notices.say_once(judge.drift.alarm, "drift")

    def _deliver(self, prediction: Prediction) -> None:
        kinds = self._recorder.messages_of(verdict_of(prediction))
        for delivery in self._deliveries:
            if delivery.outbox.kind not in kinds:
                continue
            if self._storing.insist(delivery.outbox.added):
                self._notices.say_once(f"{delivery.name}: the queue is full. The oldest results are dropped.", "queue")
            delivery.allow(self._journal.last)

    def _idle(self, now: float) -> None:
        """Do what can wait until no file waits."""
        if self._discovery.is_missing:
            self._write_page(is_idle=True)
            return
        self._storing.insist(self._journal.flush)
        self._write_page(is_idle=True)
        if now >= self._next_move:
            self._next_move = now + _MOVE_AGAIN
            self._recorder.move_rest()

    def _write_page(self, is_idle: bool = False, is_end: bool = False) -> None:
        if self._report is None or self._judge is None:
            return
        report, drift = self._report, self._judge.drift.alarm
        counts = self._recorder.counts
        status = {
            "State": "stopped" if is_end else self._heartbeat.state,
            "Judged since the start": f"{counts.judged:,}",
            "Anomalous": f"{counts.anomalous:,}",
            "Unreadable": f"{counts.unreadable:,}",
            "Waiting": f"{len(self._arrivals):,}",
            "Folder": escape_name(self._place.folder),
        }
        self._storing.insist(lambda: report.write_if_due(drift, status, is_idle, is_end))

    def _look_for_model(self) -> None:
        """Say if the model file is missing: the process goes on, but a restart would fail."""
        if self._file.is_missing():
            self._model_problem = _MISSING
            self._notices.say_once(f"the model {self._file.path!r} {_MISSING}. The earlier model is used.", _MISSING)
        elif self._model_problem == _MISSING:
            self._model_problem = ""
            self._notices.forget(_MISSING)

    def _reload(self) -> None:
        """Load the model file again. If this fails, go on with the earlier model."""
        self._heartbeat.enter("loading model")
        try:
            self._use(self._file.load())
        except Exception as error:
            self._model_problem = " ".join(str(error).split()) or type(error).__name__
            self._notices.say(
                f"the new model {self._file.path!r} cannot be used: {self._model_problem.rstrip('.')}. The earlier "
                "model is used."
            )
        else:
            assert self._judge is not None
            self._notices.say(f"the model {self._file.path!r} was loaded again, digest {self._judge.digest}.")

    def _use(self, model: LoadedModel) -> None:
        """Judge with a model from now on."""
        model = model._replace(detector=as_image_detector(model.detector))
        judge = Judge(
            model,
            self._place,
            self._output,
            maps=self._settings.maps,
            batch=self._settings.batch,
            product=self._settings.product,
            pictures=RecordingPictures(self._output) if self._settings.report else None,
            notices=self._notices,
        )
        judge.warm_up()
        if judge.drift.reason:
            self._notices.say_once(judge.drift.reason)
        if not judge.has_threshold:
            self._notices.say_once("the model has no threshold, so no part is called normal or anomalous.")
        self._notices.forget("drift")
        if self._settings.report:
            self._report = LiveReport(self._output, model.detector, self._file.path, self._journal, self._notices)
        self._recorder.use(judge)
        self._judge, self._model_problem = judge, ""

    def _start_deliveries(self) -> None:
        settings, notices = self._settings, self._notices
        if settings.webhook is not None:
            outbox = Outbox(self._journal, "webhook", settings.queue)
            name = f"the webhook {shown_url(settings.webhook)}"
            self._deliveries.append(Delivery(outbox, sender_of(settings.webhook, self._journal.id), notices, name))
        if settings.exec is not None:
            outbox = Outbox(self._journal, "exec", settings.queue)
            run = runner_of(settings.command, settings.exec_timeout, self._place.full, lambda: programs.is_stopped)
            programs = Delivery(outbox, run, notices, f"the program {settings.command[0]!r}", _MOST_RUNS)
            self._deliveries.append(programs)
        for delivery in self._deliveries:
            delivery.start(self._journal.last)

    def _facts(self) -> dict[str, Any]:
        """Return the values of the heartbeat. The heartbeat's thread calls this method."""
        judge, last, recorder = self._judge, self._last, getattr(self, "_recorder", None)
        discovery, arrivals = getattr(self, "_discovery", None), getattr(self, "_arrivals", None)
        facts: dict[str, Any] = {
            "folder": escape_name(self._place.folder),
            "model": {
                "file": escape_name(self._file.path),
                "digest": None if judge is None else judge.digest,
                "problem": escape_name(self._model_problem),
            },
            "drift": "" if judge is None else judge.drift.alarm,
            "last_file": None if last is None else escape_name(last[0]),
            "seconds_since_last_file": None if last is None else round(time.monotonic() - last[1], 1),
        }
        if recorder is not None and arrivals is not None and discovery is not None:
            facts["counts"] = {
                **vars(recorder.counts),
                "waiting": len(arrivals),
                "more_waiting": arrivals.is_cut,
                "ignored": discovery.n_ignored,
                "without_marker": discovery.n_unmarked,
                "vanished": arrivals.n_vanished,
            }
        for delivery in self._deliveries:
            facts[delivery.outbox.kind] = {
                "delivered": delivery.n_delivered,
                "queued": delivery.outbox.n_queued,
                "dropped": delivery.outbox.n_dropped,
                "given_up": delivery.n_refused,
                "is_failing": delivery.is_failing,
            }
        return facts

    def _is_changed(self) -> bool:
        """Return whether the change to the state that follows is to be written at once: from or to a problem."""
        return self._discovery.is_missing or self._heartbeat.state not in ("judging", "waiting")

    def _is_done(self) -> bool:
        """Return whether a run with `once` has judged all files. Search again until nothing is found."""
        discovery = self._discovery
        if not self._settings.once or discovery.is_missing or discovery.is_busy:
            return False
        if len(self._arrivals) or discovery.n_found is None:
            return False
        if discovery.n_found or self._arrivals.is_cut:
            discovery.search_anew()
            return False
        return True

    def _is_ending(self) -> bool:
        return self._is_stopped or (self._stop_event is not None and self._stop_event.is_set())

    def _rest(self, seconds: float) -> None:
        """Wait until there is an event, or the time is over, at most one second."""
        longest = _LONGEST_WAIT if self._stop_event is None else _LONGEST_WAIT_FOR_EVENT
        self._wakeups.wait(min(longest, seconds))

    def _pause(self, seconds: float) -> bool:
        """Wait until the time is over or the process ends. Return whether it ends."""
        end = time.monotonic() + seconds
        while not self._is_ending() and (left := end - time.monotonic()) > 0:
            self._rest(left)
        return self._is_ending()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """End at the first SIGTERM or SIGINT after the batch in hand, and at the second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: Any) -> None:
            if self._is_stopped:
                raise KeyboardInterrupt
            self._is_stopped = True
            self._wakeups.wake()

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _loaded(path: str) -> Any:
    import skpatchcore

    return skpatchcore.load(path)
