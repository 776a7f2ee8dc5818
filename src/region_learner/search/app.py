"""
An app that searches an index in a browser, on this machine. Queries are words, an image or a video, and a click on
a span plays it.

The answers to the browser's requests contain the pictures and previews, which are made from videos of the index. A
request cannot name a file of this machine, only the number of a hit. Files that are uploaded as queries are kept in a
temporary directory, which is removed when the app ends. Nothing is sent to, or loaded from, other machines.
"""

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import install_hint
from ..files import readable
from ..interruption import interruptible
from ..video_decoding_region_learner import VideoDecodeError, read_clip
from .guard import MAX_UPLOAD, Guard
from .index import NO_MATCH, UNREADABLE, Hit, VideoIndex
from .page import ShownHit, environment, message_of, show_hit, span

if TYPE_CHECKING:
    import gradio

MOST_HITS = 50
_MOST_LETTERS = 1000  # maximum number of characters of a query
_KEPT = 3600  # seconds until an uploaded file is removed
_PICTURES_AT_ONCE = 6
_MOST_FOLDERS = 500  # maximum number of folders to choose from


@dataclass(frozen=True)
class Query:
    """
    A query.

    Args:
        label: its name in the answer.
        options: its arguments for `VideoIndex.search`.
        itself: for "More like this", the hit that the query was made from, which is left out of the hits.
    """

    label: str
    options: dict[str, Any]
    itself: Hit | None = None


def launch(index: VideoIndex, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = False) -> None:
    """
    Serves the app until it is interrupted.

    Args:
        index: a `VideoIndex`.
        host: the address to listen on. By default, only this machine can reach the app. There is no password: with
            "0.0.0.0", everybody on the network can search and watch the videos.
        port: the port to listen on. The default is the first free port from 7860 on.
        open_browser: whether to open the app in the browser.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is in use.

    Example:

        launch(VideoIndex.open("my-index"))
    """
    with interruptible("The app has ended."), serving(index, host, port, open_browser) as address:
        print(f"The app is running at {address}. Press Ctrl-C to end it.", flush=True)
        threading.Event().wait()


@contextmanager
def serving(
    index: VideoIndex, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = False
) -> Iterator[str]:
    """Serves the app, as `launch` does, within a `with` statement, and yields its address."""
    gr = _gradio()
    from starlette.middleware import Middleware

    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="region-learner-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # Gradio's directory for uploads, by default shared by all apps
        app = None
        try:
            app = build_app(index)
            _, address, _ = app.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                num_workers=0,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=MAX_UPLOAD,
                theme=gr.themes.Default(
                    primary_hue="cyan", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
                ),
                css=str(_parts().style()),
                app_kwargs={"middleware": [Middleware(Guard, folder=Path(folder), hosts=_names(host))]},
            )
            yield address
        except OSError as error:
            if port is not None and "empty port" in str(error):
                raise OSError(f"Port {port} is already in use: choose another one with --port.") from None
            raise
        finally:
            if app is not None:
                app.close(verbose=False)
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def build_app(index: VideoIndex) -> "gradio.Blocks":
    """
    Returns the app that searches an index; `launch` serves it.

    Args:
        index: a `VideoIndex`.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = _gradio()
    answers, parts = Answers(index), _parts()

    def choose(hits: Sequence[Hit], event: gr.EventData) -> Any:  # type: ignore[name-defined]
        return hit_of(hits, event._data)

    with gr.Blocks(title="Video search", analytics_enabled=False, delete_cache=(_KEPT // 4, _KEPT)) as app:
        query, hits, chosen = gr.State(None), gr.State([]), gr.State(None)
        heading = gr.HTML(answers.heading())
        with gr.Row(equal_height=True):
            words = gr.Textbox(
                label="What happens in the video?",
                placeholder="a dog runs on the beach",
                max_length=_MOST_LETTERS,
                max_lines=1,
                submit_btn="Search",
                autofocus=True,
                scale=3,
                elem_id="words",
            )
            file = gr.File(label="Or an image or a video", height=112, min_width=240, scale=1, elem_id="file")
            _refuse_addresses(file)
        with gr.Accordion("Filters", open=False), gr.Row():
            within = gr.Dropdown(
                list(answers.folders), label="Folder or video (all if empty)", value=None, allow_custom_value=True
            )
            least = gr.Slider(0, 95, 0, step=5, label="Minimum probability (percent)")
            count = gr.Slider(1, MOST_HITS, 12, step=1, label="Maximum number of hits")
        answer = gr.HTML(parts.answer(None, []))
        with gr.Row(elem_id="found"):
            with gr.Column(scale=2, min_width=300, visible=False, elem_id="player") as panel:
                player = gr.HTML(js_on_load=str(parts.player_script()))
                with gr.Row():
                    more = gr.Button("More like this", elem_id="more")
                    show = gr.Checkbox(
                        label="Show regions",
                        visible=bool(index.model.config.video_config.num_regions or index.model.config.token_dim),
                        elem_id="regions",
                    )
                regions = gr.HTML()
            with gr.Column(scale=3, min_width=300):
                results = gr.HTML(js_on_load=str(parts.results_script()), elem_id="results")

        filters = [within, least, count]
        found = [query, hits, answer, results, panel, words, file]
        # One event at a time, because all of them use the same model.
        event: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "index", "concurrency_limit": 1}
        slow, quick = event | {"show_progress": "minimal"}, event | {"show_progress": "hidden"}
        app.load(answers.heading, None, [heading], **quick)  # whenever a browser opens it
        words.submit(answers.to_words, [words, *filters], found, show_progress_on=answer, **slow)
        file.upload(answers.to_file, [file, *filters], found, show_progress_on=answer, **slow)
        more.click(answers.to_more, [chosen, *filters], found, show_progress_on=answer, **slow)
        for changed in (within.input, least.release, count.release):
            changed(answers.again, [query, *filters], found, show_progress_on=answer, **slow)
        played = results.click(choose, [hits], [chosen], **quick)
        played = played.then(answers.play, [chosen], [panel, player], show_progress_on=answer, **slow)
        played.then(answers.draw, [chosen, show, query], [regions], **quick)
        show.change(answers.draw, [chosen, show, query], [regions], **slow)
    return app


class Answers:
    """
    Answers the events of the app. The methods whose names start with `to_` search. Like `again`, they yield values for
    the components `found` of `build_app`, first with the hits alone and then with pictures.

    Args:
        index: a `VideoIndex`.
    """

    def __init__(self, index: VideoIndex):
        self.index, self.parts, self.gr = index, _parts(), _gradio()
        self.folders = folders_of(index)
        self.lock = threading.Lock()  # Gradio calls from many threads, but an index serves one at a time

    def heading(self) -> str:
        with self.lock:
            return self.parts.heading(len(self.index))

    def to_words(self, words: str, *filters: Any) -> Iterator[tuple]:
        if words.strip():
            label = f"\N{LEFT DOUBLE QUOTATION MARK}{words.strip()}\N{RIGHT DOUBLE QUOTATION MARK}"
            yield from self._search(Query(label, {"text": words.strip()}), filters, self.gr.skip(), None)

    def to_file(self, file: str, *filters: Any) -> Iterator[tuple]:
        try:
            kind = kind_of(file)
        except VideoDecodeError as error:
            problem = message_of(error).replace(readable(str(file)), Path(file).name)
            yield self._values(None, [], problem=problem, words="", file=self.gr.skip())
            return
        yield from self._search(Query(f"the {kind} {Path(file).name}", {kind: str(file)}), filters, "", self.gr.skip())

    def to_more(self, hit: Hit | None, *filters: Any) -> Iterator[tuple]:
        if hit is None:
            return
        try:
            with self.lock:
                video = (self.index.source(hit.path), *self.index.span_of(hit).values())
        except UNREADABLE as error:
            yield self._values(None, [], problem=message_of(error), words="", file=None)
            return
        yield from self._search(
            Query(f"{span(hit)} of {readable(hit.path)}", {"video": video}, hit), filters, "", None
        )

    def again(self, query: Query | None, *filters: Any) -> Iterator[tuple]:
        """Repeats a search with other filters."""
        if query is not None:
            yield from self._search(query, filters, self.gr.skip(), self.gr.skip())

    def play(self, hit: Hit | None) -> tuple[Any, Any]:
        """Returns the opened panel of the player, and the player with a hit."""
        if hit is None:
            return self.gr.skip(), self.gr.skip()
        with self.lock:
            return self.gr.Column(visible=True), self.parts.player(show_hit(self.index, hit))

    def draw(self, hit: Hit | None, wanted: bool, query: Query | None = None) -> str:
        """Returns the frames of a hit with the regions of the query drawn over them, or nothing if not wanted."""
        if hit is None or not wanted:
            return ""
        with self.lock:
            try:
                hit = self.index.with_regions(hit, query.options.get("text") if query else None)
            except UNREADABLE as error:
                return self.parts.regions(ShownHit(hit, problem=message_of(error)))
            return self.parts.regions(show_hit(self.index, hit, with_preview=False))

    def _search(self, query: Query, filters: Sequence[Any], words: Any, file: Any) -> Iterator[tuple]:
        within, least, count = filters
        count = min(max(1, int(count)), MOST_HITS)
        within = self.folders.get(within, within) or None
        itself = query.itself
        exclude = None if itself is None else (itself.path, itself.start, itself.end)
        options = {"k": count, "within": within, "min_probability": least / 100, "exclude": exclude}
        try:
            with self.lock:
                found = self.index.search(**query.options, **options)
        except UNREADABLE as error:
            yield self._values(query, [], problem=message_of(error), words=words, file=file)
            return
        hits = found[:count]
        shown = [ShownHit(hit) for hit in hits]
        yield self._values(query, shown, least, words=words, file=file)
        for first in range(0, len(hits), _PICTURES_AT_ONCE):
            some = slice(first, first + _PICTURES_AT_ONCE)
            with self.lock:
                shown[some] = [show_hit(self.index, hit, with_preview=False) for hit in hits[some]]
            same = self.gr.skip()
            yield same, same, same, self.parts.results(shown), same, same, same

    def _values(
        self, query: Query | None, shown: Sequence[ShownHit], least: float = 0, problem: str = "", **inputs: Any
    ) -> tuple:
        hits = [one.hit for one in shown]
        answer = self.parts.answer(query, hits, least, problem, NO_MATCH)
        panel = self.gr.Column(visible=False)
        return query, hits, answer, self.parts.results(shown), panel, inputs["words"], inputs["file"]


# --- Parts --------------------------------------------------------------------------------------------------------


def folders_of(index: VideoIndex) -> dict[str, str]:
    """
    Returns the folders and shards of the videos of an index, by the name to show, because a browser cannot send every
    path. If there are too many, these are the folders with the most videos.
    """
    counts = Counter(os.path.dirname(path) for path in index.paths())
    return {readable(folder): folder for folder in sorted(folder for folder, _ in counts.most_common(_MOST_FOLDERS))}


def hit_of(hits: Sequence[Hit], data: Any) -> Any:
    """Returns the hit whose number a browser sent, or None. The browser is not trusted: it may send anything."""
    number = data.get("hit") if isinstance(data, dict) else None
    return hits[number] if type(number) is int and 0 <= number < len(hits) else None


def kind_of(file: str) -> str:
    """
    Returns whether a file is an `image` or a `video`, by its content.

    Raises:
        VideoDecodeError: the file is neither.
    """
    _, metadata = read_clip(file, lambda metadata, **_: [0])
    return "image" if metadata.video_backend == "pillow" and metadata.total_num_frames == 1 else "video"


def _parts() -> Any:
    """Returns the macros of the template."""
    return environment().get_template("app.html.jinja").module


def _refuse_addresses(file: Any) -> None:
    """Keeps Gradio from fetching an address that a client sends in place of an uploaded file."""
    move = file.async_move_resource_to_block_cache

    async def move_local(path: Any) -> str | None:
        if path is not None and not os.path.isabs(path):
            raise ValueError("Only uploaded files are accepted.")
        return await move(path)

    file.async_move_resource_to_block_cache = move_local


def _names(host: str) -> set[str] | None:
    """Returns the host names under which an app that listens on `host` may be reached; None for any."""
    local = {"localhost", "127.0.0.1", "::1"}
    return local | {host} if host in local else None


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"The app needs Gradio: {install_hint('app')}") from error
    return gradio
