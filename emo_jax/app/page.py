"""The page: two choices, one button, and the video that plays while it grows."""

from __future__ import annotations

import html
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.processing_utils import save_file_to_cache  # pyright: ignore[reportMissingImports]
from gradio.utils import get_upload_folder  # pyright: ignore[reportMissingImports]

from emo_jax.app.jobs import Job, Studio, request_of
from emo_jax.app.owners import Owners, user_of
from emo_jax.app.settings import PICTURES, SOUNDS, Library
from emo_jax.app.texts import TEXTS, language

OPTIONS = ("seed", "speed", "framing", "face", "start", "seconds", "label")
"""Names of the advanced fields, as `request_of` takes them."""
CONCURRENCY = "generate"
"""Name of the queue of the button."""
CSS = """
footer {display: none !important}
#video video {width: 100%; max-height: 70vh; background: #000}
#make {min-height: 3.2em; font-size: 1.15em}
.bar {height: 6px; border-radius: 3px; background: var(--border-color-primary)}
.bar div {height: 100%; border-radius: 3px; background: var(--color-accent)}
"""


def _as_sent(field: Any) -> Any:
    """Makes a field pass on the path of the file that the user sent, which `load_portrait` or `load_voice` checks.

    Gradio's own conversion fails with its own messages. A subclass would make Gradio write a stub into this folder.
    """
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def _refuse_addresses(field: Any) -> None:
    """Makes a field refuse addresses in place of files, which Gradio would download for clients of its API."""
    move = field.async_move_resource_to_block_cache

    async def move_files(path: Any) -> Any:
        if path is not None and str(path).lower().startswith(("http://", "https://")):
            raise gr.Error("An address is given in place of a file; download it and send the file.")
        return await move(path)

    field.async_move_resource_to_block_cache = move_files


class Page:
    """The page of a studio.

    Args:
        studio: makes the videos.
        owners: which user sent which file.
        jobs: number of videos that are made at a time.

    Attributes:
        blocks: the page.
        i18n: its texts.
    """

    def __init__(self, studio: Studio, owners: Owners, jobs: int = 1):
        self.studio, self.owners = studio, owners
        self.portraits = Library(studio.settings.portraits, PICTURES)
        self.songs = Library(studio.settings.songs, SOUNDS)
        self.i18n = gr.I18n(**TEXTS)
        with gr.Blocks(title="emo_jax", analytics_enabled=False) as self.blocks:
            self._build(jobs)
        self.blocks.queue(max_size=studio.settings.max_queue)
        for field in self.blocks.blocks.values():
            _refuse_addresses(field)
        studio.metrics.waiting.set_function(self.waiting)

    def waiting(self) -> int:
        """Returns the number of jobs in the queue."""
        # Gradio's estimation counts all queues together; this is the one of the button alone.
        queues = self.blocks._queue.event_queue_per_concurrency_id
        return len(queues[CONCURRENCY].queue) if CONCURRENCY in queues else 0

    def _build(self, jobs: int) -> None:
        """Lays out the page and connects its parts."""
        text = self.i18n
        consent_kept = gr.BrowserState(False, storage_key="emo_consent", secret="emo")
        gr.Markdown(text("intro"))
        with gr.Row():
            with gr.Column():
                portrait_name, portrait_file = self._portrait_choice()
            with gr.Column():
                song_name, song_file, song_recording = self._song_choice()
        consent = gr.Checkbox(label=text("consent"), elem_id="consent")
        with gr.Row():
            make = gr.Button(text("make"), variant="primary", elem_id="make", scale=4)
            cancel = gr.Button(text("cancel"), variant="stop", elem_id="cancel", visible="hidden", scale=1)
        status = gr.HTML(elem_id="status")
        video = gr.HTML(elem_id="video")
        download = gr.File(label=text("download"), visible="hidden", elem_id="download", interactive=False)
        with gr.Accordion(text("more"), open=False):
            options = self._options()
        inputs = [portrait_name, portrait_file, song_name, song_file, song_recording, consent, *options]
        outputs = [status, video, download, cancel]
        concurrency: Any = dict(concurrency_limit=jobs, concurrency_id=CONCURRENCY)
        shown: Any = dict(show_progress="minimal", show_progress_on=status)  # the place in the queue
        made = make.click(self.generate, inputs, outputs, api_name="generate", **shown, **concurrency)
        idle: Any = dict(queue=False, show_progress="hidden", api_visibility="private")
        made.failure(lambda: ("", "", gr.update(visible="hidden"), gr.update(visible="hidden")), None, outputs, **idle)
        cancel.click(self._cancelled, None, outputs, cancels=[made], queue=False, api_visibility="private")
        consent.change(lambda value: value, consent, consent_kept, queue=False, api_visibility="private")
        self.blocks.load(lambda kept: kept, consent_kept, consent, queue=False, api_visibility="private")

    def _portrait_choice(self) -> tuple[Any, Any]:
        """Adds the choice of a portrait; returns the fields of its name and its file."""
        names, text = self.portraits.names(), self.i18n
        gr.Markdown(text("portrait"), elem_classes="heading")
        name = gr.Textbox(names[0] if names else "", visible="hidden", elem_id="portrait_name", label="portrait_name")
        with gr.Tab(text("choose")):
            search = gr.Textbox(label=text("search"), visible=len(names) > 12 or "hidden")
            gallery = gr.Gallery(
                self._thumbnails(names),
                columns=3,
                height=280,
                fit_columns=False,
                object_fit="contain",
                allow_preview=False,
                selected_index=0 if names else None,
                show_label=False,
                elem_id="portraits",
                interactive=False,
            )
        with gr.Tab(text("send")):
            sources: Any = ["upload", "webcam", "clipboard"]
            file = _as_sent(
                gr.Image(
                    label=text("send_picture"), sources=sources, type="filepath", elem_id="portrait_file", height=280
                )
            )

        def select(event: gr.SelectData) -> tuple[str, None]:
            return event.value["caption"], None

        quiet: Any = dict(queue=False, api_visibility="private", show_progress="hidden")
        gallery.select(select, None, [name, file], **quiet)
        search.change(lambda words: self._thumbnails(self.portraits.names(words)), search, gallery, **quiet)
        return name, file

    def _thumbnails(self, names: list[str]) -> list[tuple[str, str]]:
        return [(str(self.portraits.path(name)), name) for name in names]

    def _song_choice(self) -> tuple[Any, Any, Any]:
        """Adds the choice of a song; returns the fields of its name, its file and its recording."""
        names, text = self.songs.names(), self.i18n
        gr.Markdown(text("song"), elem_classes="heading")
        with gr.Tab(text("choose")):
            # The dropdown filters its choices by the typed text.
            name = gr.Dropdown(names, value=names[0] if names else None, label=text("song"), elem_id="song_name")
            heard = gr.Audio(
                str(self.songs.path(names[0])) if names else None,
                interactive=False,
                show_label=False,
                buttons=[],
                elem_id="heard",
            )
        with gr.Tab(text("send")):
            file = gr.File(label=text("send_sound"), file_types=["audio", "video"], elem_id="song_file")
            recording = _as_sent(
                gr.Audio(
                    label=text("record"), sources=["microphone"], type="filepath", elem_id="recording", editable=False
                )
            )
        quiet: Any = dict(queue=False, api_visibility="private", show_progress="hidden")
        name.change(lambda chosen: (str(self.songs.path(chosen)), None, None), name, [heard, file, recording], **quiet)
        return name, file, recording

    def _options(self) -> list[Any]:
        """Adds the advanced fields, in the order of OPTIONS."""
        text = self.i18n
        with gr.Row():
            seed = gr.Number(0, label=text("seed"), precision=0, minimum=0, maximum=2**32 - 1)
            speed = gr.Number(None, label=text("speed"), minimum=0)
        choices: Any = [(text("whole_picture"), "portrait"), (text("square"), "crop")]
        with gr.Row():
            framing = gr.Radio(choices, value="portrait", label=text("framing"))
            face = gr.Number(None, label=text("face"), precision=0, minimum=1)
        with gr.Row():
            start = gr.Number(0, label=text("start"), minimum=0)
            seconds = gr.Number(None, label=text("seconds"), minimum=0, elem_id="seconds")
            label = gr.Textbox("", label=text("label"), max_length=60)
        return [seed, speed, framing, face, start, seconds, label]

    def generate(
        self,
        portrait_name: str,
        portrait_file: str | None,
        song_name: str,
        song_file: str | None,
        song_recording: str | None,
        consent: bool,
        seed: float | None,
        speed: float | None,
        framing: str,
        face: float | None,
        start: float | None,
        seconds: float | None,
        label: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Makes a video; yields the status, the player, the file and the state of the cancel button.

        A file that was sent is used instead of a name. The fields are those of the page; see `request_of`.
        """
        texts = TEXTS[language(request.headers.get("accept-language"))]
        user = user_of(request.cookies)
        if not consent:
            raise gr.Error(texts["need_consent"], print_exception=False)
        values: Any = (seed, speed, framing, face, start, seconds, label)
        try:
            portrait = self._chosen(portrait_file, self.portraits, portrait_name, user, texts, "need_portrait")
            song = self._chosen(song_file or song_recording, self.songs, song_name, user, texts, "need_song")
            made = self.studio.run(request_of(portrait, song, **dict(zip(OPTIONS, values, strict=True))), user)
            waiting = texts["loading" if self.studio.status == "loading" else "preparing"]
            yield _bar(waiting, 0.0), "", gr.update(value=None, visible="hidden"), gr.update(visible=True)
            shown = False
            for job in made:
                if job.complete:
                    # Gradio serves a copy; made here, it has an owner.
                    copy = save_file_to_cache(str(job.video), cache_dir=get_upload_folder())
                    self.owners.add(copy, user)
                    file = gr.update(value=copy, visible=True)
                    player, cancel = _player(job, "video.mp4"), gr.update(visible="hidden")
                    yield _done(job, texts, self.studio), player, file, cancel
                    return
                player = gr.skip() if shown else _player(job, "live.mp4")
                shown = True
                yield _progress(job, texts), player, gr.skip(), gr.skip()
        except gr.Error:
            raise
        except (ValueError, FloatingPointError) as error:
            raise gr.Error(html.escape(str(error)), duration=30, print_exception=False) from error
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            raise gr.Error(texts["failed"], print_exception=False) from error

    def _chosen(
        self, sent: str | None, library: Library, name: str, user: str, texts: dict[str, str], missing: str
    ) -> Path:
        """Returns the file that a user sent, or the one of the library with the chosen name."""
        if sent:
            if not self.owners.may_read(sent, user):
                raise gr.Error(texts["not_yours"], print_exception=False)
            return Path(sent)
        if not name:
            raise gr.Error(texts[missing], print_exception=False)
        return library.path(name)

    def _cancelled(self, request: gr.Request) -> tuple[Any, ...]:
        """Returns the outputs after a job is cancelled."""
        texts = TEXTS[language(request.headers.get("accept-language"))]
        return html.escape(texts["cancelled"]), "", gr.update(value=None, visible="hidden"), gr.update(visible="hidden")


def _bar(text: str, share: float) -> str:
    return f'<p>{html.escape(text)}</p><div class="bar"><div style="width:{100 * share:.1f}%"></div></div>'


def _progress(job: Job, texts: dict[str, str]) -> str:
    if not job.frames:
        return _bar(texts["preparing"], 0.0)
    text = texts["progress"].format(frames=job.frames, total=job.total, left=round(job.seconds_left()))
    return _bar(text, job.frames / job.total)


def _done(job: Job, texts: dict[str, str], studio: Studio) -> str:
    """Returns the status of a complete video, with a note if the song was cut."""
    lines = [texts["done"].format(seconds=f"{job.seconds:.1f}")]
    if job.cut:
        lines.append(texts["cut"].format(seconds=f"{studio.settings.max_seconds:g}"))
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _player(job: Job, name: str) -> str:
    # Browsers start a growing file by themselves only when they expect no more stalls.
    return f'<video src="videos/{job.token}/{name}" controls playsinline onloadeddata="this.play()"></video>'
