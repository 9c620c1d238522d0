"""The web page over HTTP: limits, privacy, the queue, counters."""

import json
import os
import re
import socket
import time
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
from PIL import Image

from emo_jax.media.audio import load_audio
from emo_jax.media.video import probe
from tests.app.conftest import write_sound

gradio_client = pytest.importorskip("gradio_client", reason="the extra app is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Gradio, its client and pandas


def get(address):
    with urllib.request.urlopen(address) as answer:
        return answer.read()


def connect(address):
    return gradio_client.Client(address, verbose=False)


def generate(client, portrait="ada.png", song="short.wav", portrait_file=None, song_file=None, consent=True, **options):
    files = [None if file is None else gradio_client.handle_file(file) for file in (portrait_file, song_file)]
    fields = dict(seed=0, speed=None, framing="portrait", face=None, start=0, seconds=None, label="") | options
    arguments = [portrait, files[0], song, files[1], None, consent, *fields.values()]
    return client.submit(*arguments, api_name="/generate")


def video_of(job):
    return job.result(timeout=120)[2]["value"] if isinstance(job.result()[2], dict) else job.result()[2]


def test_song_keeps_its_two_channels_and_the_options_reach_the_pipeline(start):
    _, pipe, address = start()
    path = video_of(generate(connect(address), song="two.wav", speed=0.3, face=2, framing="crop", seed=7))
    info = probe(path)
    assert info["frames"] == 50 and info["video_codec"] == "h264"
    assert pipe.options == [dict(max_size=1080, seed=7, speed=0.3, framing="crop", face_box=2)]
    import av

    with av.open(path) as container:
        assert container.streams.audio[0].channels == 2 and "seed 7" in container.metadata["comment"]


def test_part_of_a_song_and_the_limit_of_seconds(start):
    server, _, address = start(max_seconds=1.5)
    client = connect(address)
    done = generate(client, song="long.wav", start=2)
    assert probe(video_of(done))["seconds"] == pytest.approx(1.5, abs=0.05) and "first 1.5 s" in done.result()[0]
    path = video_of(generate(client, song="long.wav", start=29, seconds=0.6))
    assert probe(path)["frames"] == 15
    assert len(load_audio(path)) >= 9600
    with pytest.raises(Exception, match="the length of the song"):
        generate(client, song="short.wav", start=5).result(timeout=60)


def test_bad_inputs_are_clear_messages_and_leave_nothing(start, tmp_path):
    server, pipe, address = start(max_megapixels=1)
    client = connect(address)
    (tmp_path / "text.png").write_text("no picture\n")
    (tmp_path / "text.wav").write_text("no sound\n")
    Image.new("1", (1200, 1000)).save(tmp_path / "many.png")
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    cases = [
        (dict(portrait_file=tmp_path / "text.png"), "the portrait is not an image"),
        (dict(song_file=tmp_path / "text.wav"), "the song cannot be read"),
        (dict(portrait_file=tmp_path / "many.png"), "million pixels"),
        (dict(consent=False), "agrees"),
        (dict(portrait="../../etc/passwd"), "there is no"),
        (dict(portrait=""), "choose or send a portrait"),
    ]
    for change, text in cases:
        with pytest.raises(Exception, match=text) as caught:
            generate(client, **change).result(timeout=60)
        assert str(server.studio.root) not in str(caught.value)
    with pytest.raises(Exception, match="413|[Mm]aximum"):
        generate(client, portrait_file=tmp_path / "large.png").result(timeout=60)
    assert not server.studio.jobs and not pipe.options
    assert [path.name for path in server.studio.root.iterdir() if path.name != "uploads"] == []


def test_pictures_that_pillow_takes_for_bombs_are_refused(start, tmp_path):
    server, pipe, address = start()
    Image.new("1", (20000, 15000)).save(tmp_path / "bomb.png")
    with pytest.raises(Exception, match="300 million pixels"):
        generate(connect(address), portrait_file=tmp_path / "bomb.png").result(timeout=60)
    assert not pipe.options


def test_of_a_long_song_only_the_used_part_is_decoded(start, monkeypatch):
    from emo_jax.media import audio

    _, _, address = start(max_seconds=1.5)
    blocks, decoded = audio.decode_blocks, []

    def counted(*arguments):
        for block in blocks(*arguments):
            decoded.append(len(block[2]))
            yield block

    monkeypatch.setattr(audio, "decode_blocks", counted)
    assert "first 1.5 s" in generate(connect(address), song="long.wav", start=2).result(timeout=60)[0]
    assert 3.5 * 16000 <= sum(decoded) < 4 * 16000


def test_jobs_in_the_queue_are_counted(start):
    _, pipe, address = start()
    pipe.delay = 0.5
    jobs = [generate(connect(address)) for _ in range(3)]
    waiting, deadline = set(), time.monotonic() + 60
    while not all(job.done() for job in jobs) and time.monotonic() < deadline:
        waiting.add(re.search(r"emo_jobs_waiting (\d+)", get(f"{address}/metrics").decode())[1])
        time.sleep(0.05)
    assert "2" in waiting and "emo_jobs_waiting 0.0" in get(f"{address}/metrics").decode()


def test_addresses_are_not_downloaded(start, monkeypatch):
    from gradio import processing_utils

    _, pipe, address = start()
    asked = []

    async def download(url, cache_dir):
        asked.append(url)
        raise ValueError(url)

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", download)
    for place in (1, 3, 4):
        data = ["ada.png", None, "short.wav", None, None, True, 0, None, "portrait", None, 0, None, ""]
        data[place] = {"path": "http://example.org/a.png", "meta": {"_type": "gradio.FileData"}}
        body, headers = json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
        call = f"{address}/gradio_api/call/generate"
        event = json.loads(get(urllib.request.Request(call, body, headers)))["event_id"]
        answer = get(f"{call}/{event}").decode()
        assert "event: error" in answer and "send the file" in answer
    assert not asked and not pipe.options


def test_used_port_leaves_no_folder(start, monkeypatch):
    import tempfile

    from emo_jax.app.server import Server
    from emo_jax.app.settings import Settings

    made = []
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **options: made.append(options))
    with socket.create_server(("127.0.0.1", 0)) as used:
        with pytest.raises(ValueError, match="--port"):
            Server(Settings(port=used.getsockname()[1]), list)
    assert not made


def test_no_path_of_the_server_can_be_read(start, tmp_path):
    server, pipe, address = start()
    private = tmp_path / "private.png"
    Image.new("RGB", (120, 160), "red").save(private)
    for path in ("/etc/passwd", "../../etc/passwd", "/proc/self/environ", f"{server.studio.root}/../x", str(private)):
        arguments = ["", {"path": path, "meta": {"_type": "gradio.FileData"}}, "short.wav", None, None, True]
        body = json.dumps({"data": [*arguments, 0, None, "portrait", None, 0, None, ""]}).encode()
        headers = {"Content-Type": "application/json"}
        call = f"{address}/gradio_api/call/generate"
        try:
            event = json.loads(get(urllib.request.Request(call, body, headers)))["event_id"]
            answer = get(f"{call}/{event}").decode()
        except urllib.error.HTTPError as error:
            answer = error.read().decode()
        assert "root:" not in answer and "event: complete" not in answer
        for route in (f"/gradio_api/file={path}", f"/videos/{path}", "/videos/..%2f..%2fetc/passwd"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(address + urllib.request.quote(route, safe="/=%"))
            assert caught.value.code in (403, 404)
    assert not pipe.options and not list(server.studio.root.rglob("p*"))


@pytest.mark.parametrize("cookie", ["emo_user=ada", 'other={"a":1}; emo_user=ada'])
def test_files_of_users_are_read_by_their_owners_alone(start, cookie):
    _, _, address = start()
    head, tail = b"--x\r\nContent-Disposition: form-data; name=\"files\"; filename=\"me.txt\"\r\n\r\n", b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Cookie": cookie}
    sent = urllib.request.Request(f"{address}/gradio_api/upload", head + b"mine" + tail, headers)
    (path,) = json.loads(get(sent))
    for route in (f"file={path}", f"file{path}", f"file/{path}"):
        for other in ({}, {"Cookie": "emo_user=bob"}):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(urllib.request.Request(f"{address}/gradio_api/{route}", headers=other))
            assert caught.value.code in (403, 404)
    assert get(urllib.request.Request(f"{address}/gradio_api/file={path}", headers={"Cookie": cookie})) == b"mine"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{address}/gradio_api/file=http://127.0.0.1:1/x")
    assert caught.value.code == 404


def test_the_libraries_stay_when_files_of_users_are_deleted(start):
    server, _, address = start()
    config = json.loads(get(f"{address}/config"))
    paths = set(re.findall(r'"path": "(/[^"]+\.(?:png|wav))"', json.dumps(config)))
    assert paths
    for path in server.studio.root.rglob("*"):
        os.utime(path, (0, 0))
    server.studio.sweep()
    for path in paths:
        assert get(f"{address}/gradio_api/file={urllib.request.quote(path)}")


def test_a_failing_video_leaves_no_files_and_the_next_one_works(start, monkeypatch):
    server, pipe, address = start()
    client, stream = connect(address), pipe.stream

    def broken(*arguments, **options):
        made = stream(*arguments, **options)
        segments = made._segments

        def fail():
            yield next(segments)
            raise RuntimeError(f"secret {server.studio.root}")

        made._segments = fail()
        return made

    monkeypatch.setattr(pipe, "stream", broken)
    with pytest.raises(Exception, match="error on the server") as caught:
        generate(client).result(timeout=60)
    assert "secret" not in str(caught.value) and not server.studio.jobs
    monkeypatch.undo()
    assert probe(video_of(generate(client)))["frames"] == 25
    counters = get(f"{address}/metrics").decode()
    assert 'emo_jobs_total{outcome="failed"} 1.0' in counters and 'emo_jobs_total{outcome="done"} 1.0' in counters
    assert "emo_jobs_running 0.0" in counters and json.loads(get(f"{address}/healthz")) == {"status": "ok"}


def test_login_is_asked_for(start):
    _, _, address = start(auth=(("ada", "secret"),))
    with pytest.raises(Exception, match="401|[Aa]uth|log"):
        generate(connect(address)).result(timeout=60)
    client = gradio_client.Client(address, auth=("ada", "secret"), verbose=False)
    assert probe(video_of(generate(client)))["frames"] == 25


@pytest.mark.slow
def test_fifty_jobs_of_eight_clients_end_in_order_and_their_files_go(start):
    server, pipe, address = start(keep_minutes=0.2)
    pipe.delay = 0.02
    clients = [connect(address) for _ in range(8)]
    video_of(generate(clients[0]))
    process, before = psutil.Process(), psutil.Process().memory_info().rss
    jobs = []
    for index in range(50):
        job = generate(clients[index % 8], seed=index)
        while job.status().code.name in ("STARTING", "JOINING_QUEUE", "SENDING_DATA"):
            time.sleep(0.01)
        jobs.append(job)
    assert [probe(video_of(job))["frames"] for job in jobs] == [25] * 50
    assert [options["seed"] for options in pipe.options[1:]] == list(range(50))
    assert process.memory_info().rss - before < 200e6
    deadline = time.monotonic() + 60
    while server.studio.jobs and time.monotonic() < deadline:
        time.sleep(1)
    assert not server.studio.jobs
    assert not [path for path in server.studio.root.rglob("*.mp4") if path.is_file()]


def test_sound_files_of_users_are_heard(start, tmp_path):
    _, _, address = start()
    write_sound(tmp_path / "mine.wav", 0.8)
    Image.new("RGB", (90, 90), "navy").save(tmp_path / "me.jpg")
    path = video_of(generate(connect(address), portrait_file=tmp_path / "me.jpg", song_file=tmp_path / "mine.wav"))
    assert probe(path)["frames"] == 20
