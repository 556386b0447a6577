"""Webhook and program: every result is delivered, failures are tried again, and nothing blocks the judging."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from skpatchcore.watching import delivery
from skpatchcore.watching.webhook import shown_url
from tests.watching.helpers import heartbeat_of, lines_of, names_of, run_once, wait_until, watching
from tests.watching.light import image


@contextmanager
def server(answer):
    """Run a server during the block. `answer` is a function of the number of the request that returns a status."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((dict(self.headers), body))
            self.send_response(answer(len(requests)))
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{http.server_address[1]}", requests
    finally:
        http.shutdown()
        http.server_close()
        thread.join(10)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Let failed deliveries be tried again at once."""
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE", 0.02)


def write(folder, n, value=255):
    names = [f"{i}.pgm" for i in range(n)]
    for name in names:
        (folder / name).write_bytes(image(value))
    return names


def test_webhook_gets_the_lines_of_anomalous_and_unreadable_parts(folder, output):
    (folder / "good.pgm").write_bytes(image(0))
    (folder / "bad.pgm").write_bytes(image(255))
    (folder / "broken.pgm").write_bytes(b"x")
    with server(lambda n: 204) as (host, requests):
        run_once(folder, output, webhook=f"http://user:secret@{host}/hook?token=hidden")
        assert len(requests) == 2
    lines = {line["id"]: line for line in lines_of(output) if line["verdict"] != "normal"}
    assert {json.loads(body)["id"]: json.loads(body) for _, body in requests} == lines
    for headers, body in requests:
        assert headers["Idempotency-Key"] == json.loads(body)["id"]
        assert headers["Authorization"] == "Basic dXNlcjpzZWNyZXQ="
        assert headers["Content-Type"] == "application/json"
    assert heartbeat_of(output)["webhook"]["delivered"] == 2


def test_webhook_all_gets_all_parts(folder, output):
    write(folder, 3, 0)
    with server(lambda n: 200) as (host, requests):
        run_once(folder, output, webhook=f"http://{host}/", webhook_all=True)
        assert len(requests) == 3


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_failed_delivery_is_tried_again_until_it_succeeds(folder, output, capsys, status):
    write(folder, 3)
    with (
        server(lambda n: status if n <= 4 else 200) as (host, requests),
        watching(folder, output, webhook=f"http://user:secret@{host}/hidden"),
    ):
        wait_until(lambda: len(requests) >= 7)
        wait_until(lambda: len(names_of(output)) == 3)
    ids = [json.loads(body)["id"] for _, body in requests]
    assert len(set(ids)) == 3
    said = capsys.readouterr().err
    assert said.count("failed: status") == 1
    assert "works again" in said
    assert "secret" not in said
    assert "hidden" not in said


@pytest.mark.parametrize("status", [410, 400, 302])
def test_refused_result_is_given_up_and_said(folder, output, capsys, status):
    write(folder, 2)
    with server(lambda n: status if n == 1 else 200) as (host, requests):
        run_once(folder, output, webhook=f"http://{host}/")
        assert len(requests) == 2
    assert f"given up: status {status}" in capsys.readouterr().err
    assert heartbeat_of(output)["webhook"] == {
        "delivered": 1, "queued": 0, "dropped": 0, "given_up": 1, "is_failing": False,
    }  # fmt: skip


def test_queue_survives_a_restart(folder, output):
    write(folder, 3)
    url = "http://127.0.0.1:9/"  # nobody listens
    run_once(folder, output, webhook=url)
    assert heartbeat_of(output)["webhook"]["queued"] == 3
    with server(lambda n: 200) as (host, requests):
        run_once(folder, output, webhook=f"http://{host}/")
        assert sorted(json.loads(body)["id"] for _, body in requests) == sorted(line["id"] for line in lines_of(output))


def test_full_queue_drops_the_oldest_and_says_it(folder, output, capsys):
    write(folder, 6)
    run_once(folder, output, webhook="http://127.0.0.1:9/", queue=2)
    assert heartbeat_of(output)["webhook"]["queued"] == 2
    assert heartbeat_of(output)["webhook"]["dropped"] == 4
    assert capsys.readouterr().err.count("queue is full") == 1
    with server(lambda n: 200) as (host, requests):
        run_once(folder, output, webhook=f"http://{host}/")
        assert {json.loads(body)["id"] for _, body in requests} == {line["id"] for line in lines_of(output)[-2:]}


def test_slow_server_does_not_delay_the_judging(folder, output):
    is_free = threading.Event()

    def slow(n):
        is_free.wait(20)
        return 200

    names = write(folder, 5)
    with server(slow) as (host, requests), watching(folder, output, webhook=f"http://{host}/"):
        wait_until(lambda: len(names_of(output)) == len(names))
        assert len(requests) <= 1
        is_free.set()
        wait_until(lambda: len(requests) == len(names))


def test_shown_url_has_no_secret():
    assert shown_url("https://user:secret@host.example:8443/T000/B000?key=hidden") == "https://host.example:8443"


def script(tmp_path, code):
    path = tmp_path / "program.py"
    path.write_text(f"import json, os, sys, time\nlog = {str(tmp_path / 'log.txt')!r}\n{code}\n")
    return f"'{sys.executable}' '{path}' one"


RECORD = "open(log, 'a').write(json.dumps([sys.argv[1:], json.load(sys.stdin)]) + '\\n')"


def log_of(tmp_path):
    try:
        return [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    except FileNotFoundError:
        return []


def test_program_gets_the_path_as_last_argument_and_the_result_as_input(folder, output, tmp_path):
    odd = "a b;$(x)\n'.pgm"
    (folder / odd).write_bytes(image(255))
    (folder / "good.pgm").write_bytes(image(0))
    run_once(folder, output, exec=script(tmp_path, RECORD))
    (entry,) = log_of(tmp_path)
    assert entry[0] == ["one", str(folder / odd)]
    assert entry[1] == next(line for line in lines_of(output) if line["verdict"] == "anomalous")


def test_program_gets_the_path_after_the_move(folder, output, tmp_path):
    write(folder, 1)
    code = f"{RECORD}\nassert os.path.exists(sys.argv[-1])"
    run_once(folder, output, exec=script(tmp_path, code), move=str(tmp_path / "moved"))
    (entry,) = log_of(tmp_path)
    assert entry[0][1] == str(tmp_path / "moved" / "anomalous" / "0.pgm")
    assert heartbeat_of(output)["exec"]["delivered"] == 1


def test_program_that_fails_is_run_three_times(folder, output, tmp_path, capsys):
    write(folder, 1)
    with watching(folder, output, exec=script(tmp_path, f"{RECORD}\nsys.exit(3)")):
        wait_until(lambda: heartbeat_of(output).get("exec", {}).get("given_up") == 1 or len(log_of(tmp_path)) == 3)
        wait_until(lambda: "given up" in capsys.readouterr().err)
    assert len(log_of(tmp_path)) == 3
    assert heartbeat_of(output)["exec"]["queued"] == 0


@pytest.mark.skipif(os.name != "posix", reason="processes are grouped on POSIX systems only")
def test_program_that_hangs_is_killed_with_its_children(folder, output, tmp_path, capsys):
    write(folder, 1)
    code = "import subprocess\nsubprocess.Popen(['sleep', '97'])\nopen(log + '.pid', 'a').write('x')\ntime.sleep(97)"
    with watching(folder, output, exec=script(tmp_path, code), exec_timeout=0.3):
        wait_until(lambda: "it took more than 0.3 s" in capsys.readouterr().err)
        wait_until(lambda: names_of(output))
    assert heartbeat_of(output)["state"] == "stopped"


def test_program_that_ignores_its_input_is_delivered(folder, output, tmp_path):
    write(folder, 1)
    run_once(folder, output, exec=script(tmp_path, "sys.exit(0)"))
    assert heartbeat_of(output)["exec"]["delivered"] == 1


def test_program_that_does_not_exist_is_said(folder, output, capsys):
    write(folder, 1)
    with watching(folder, output, exec="no-such-program-here"):
        wait_until(lambda: "given up: No such file" in capsys.readouterr().err)


def test_full_disk_while_a_message_is_removed_delivers_it_once(folder, output, monkeypatch):
    import sqlite3

    from skpatchcore.watching.outbox import Outbox

    monkeypatch.setattr(delivery, "_LONGEST_WAIT", 0.02)
    remove, n_calls = Outbox.remove, []

    def failing(self, message):
        n_calls.append(message)
        if len(n_calls) <= 3:
            raise sqlite3.OperationalError("database or disk is full")
        remove(self, message)

    monkeypatch.setattr(Outbox, "remove", failing)
    write(folder, 1)
    with server(lambda n: 200) as (host, requests), watching(folder, output, webhook=f"http://{host}/"):
        wait_until(lambda: len(n_calls) >= 4)
        time.sleep(0.1)
        assert len(requests) == 1
