"""A Space on the Hub that searches videos by words: its files, and what it serves."""

import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio

    from .search import VideoIndex

_PACKAGE = Path(__file__).parent
_PORT = 7860  # that Spaces expect

_APP = '''"""Searches the videos of this Space by words."""

from pathlib import Path

from region_learner.space import serve_space

serve_space(Path(__file__).parent, {model!r})
'''

_README = """---
title: {title}
emoji: 🎞️
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
models:
- {model}
---

Search videos by words, pictures or clips with [{model}](https://huggingface.co/{model}), by RegionLearner.

Put videos into the directory `videos` of this Space: they are indexed when it starts. So that it starts at once, also
put the index that `region-learner index` made of them into the directory `index`.
{private}"""

_PRIVATE = """
The model is private: add a token that may read it as the secret `HF_TOKEN` in the settings of this Space.
"""

_NOTHING = """# Search videos by words

This Space has no videos yet. Add, in its repository,

- videos, in the directory `videos`: they are indexed when the Space starts;
- so that it starts at once, the index that `region-learner index` made of them, in the directory `index`.

The model is [{model}](https://huggingface.co/{model}).
"""

_FAILED = """# The videos cannot be searched

{error}

If the model, [{model}](https://huggingface.co/{model}), is private, add a token that may read it as the
secret `HF_TOKEN` in the settings of this Space.
"""


def files_of_space(model: str, private: bool) -> dict[str, Path | bytes]:
    """
    Returns the files of a Space by name: a page about it, the app, what it needs, and this package itself, so that an
    index and the app are of one version.

    Args:
        model: name of the model on the Hub.
        private: whether the model is private, so that the Space needs a token.

    Raises:
        ValueError: this package is not installed, so that it is not known what it needs.
    """
    try:
        sdk = metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            "--space needs Gradio, whose version a Space names: pip install 'region-learner[app]'"
        ) from error
    name = model.rpartition("/")[2]
    card = _README.format(title=f"Search with {name}"[:60], gradio=sdk, model=model, private=_PRIVATE * private)
    files: dict[str, Path | bytes] = {
        "README.md": card.encode(),
        "app.py": _APP.format(model=model).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in requirements()).encode(),
    }
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            files[f"region_learner/{path.relative_to(_PACKAGE).as_posix()}"] = path
    return files


def requirements() -> list[str]:
    """
    Returns what this package and its app need, as `pip` reads it.

    Raises:
        ValueError: this package is not installed.
    """
    try:
        declared = metadata.requires("region-learner") or []
    except metadata.PackageNotFoundError as error:
        raise ValueError("--space needs region-learner to be installed: pip install 'region-learner[app]'") from error
    needed = []
    for line in declared:
        requirement, _, condition = (part.strip() for part in line.partition(";"))
        if not condition or condition.replace("'", '"') in ('extra == "siglip"', 'extra == "timm"'):
            needed.append(requirement)
    return sorted(needed)  # Gradio is that of the Space


def serve_space(directory: str | os.PathLike[str], model: str) -> None:
    """
    Serves the app of a Space until it is ended: a search in its videos, or else a page that says what to add.

    Args:
        directory: of the repository of the Space.
        model: name of the model on the Hub.
    """
    from .search.app import launch

    port = int(os.environ.get("GRADIO_SERVER_PORT", _PORT))
    try:
        index = open_index(Path(directory), model)
    except (OSError, ValueError) as error:
        text = _FAILED.format(model=model, error=" ".join(str(error).split()))
    else:
        if index is not None:
            launch(index, host="0.0.0.0", port=port)
            return
        text = _NOTHING.format(model=model)
    page(text).launch(server_name="0.0.0.0", server_port=port, footer_links=[])


def open_index(directory: Path, model: str) -> "VideoIndex | None":
    """
    Returns the index of a Space: the one in `directory/index`, brought up to date with `directory/videos` if that is
    there, or else a new one of these videos; None if there is neither.

    Args:
        directory: of the repository of the Space.
        model: name of the model on the Hub, or its directory.

    Raises:
        OSError: the model cannot be had, or a file cannot be read.
        ValueError: the index was made with another model.
    """
    from .search import VideoIndex
    from .search.database import FILE

    place, videos = directory / "index", directory / "videos"
    is_made = (place / FILE).is_file()
    if not is_made and not videos.is_dir():
        return None
    index = VideoIndex.open(place, model) if is_made else VideoIndex.create(place, model)
    _ = index.embedder  # another model is found now, not at the first search
    if videos.is_dir():
        print(index.update(videos), flush=True)  # videos that were indexed elsewhere are known by their content
    return index


def page(text: str) -> "gradio.Blocks":
    """Returns an app that shows a text in Markdown."""
    import gradio as gr

    with gr.Blocks(title="Search videos by words") as app:
        gr.Markdown(text)
    return app
