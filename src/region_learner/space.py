"""A Space on the Hub that searches videos by text: its files, and the app that it serves."""

import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import install_hint

if TYPE_CHECKING:
    import gradio

    from .search import VideoIndex

_PACKAGE = Path(__file__).parent
_PORT = 7860  # that Spaces expect

_APP = '''"""Searches the videos of this Space by text."""

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

Search videos by text, image or video with [{model}](https://huggingface.co/{model}) and RegionLearner.

Put videos into the directory `videos` of this Space. They are indexed when the Space starts. To make it start faster,
also put an index of these videos, made with `region-learner index`, into the directory `index`.
{private}"""

_PRIVATE = """
The model is private: add a token with read access to it as the secret `HF_TOKEN` in the settings of this Space.
"""

_NOTHING = """# Search videos by text

This Space has no videos yet. Add to its repository:

- videos, in the directory `videos`; they are indexed when the Space starts;
- to make it start faster, an index of these videos, made with `region-learner index`, in the directory `index`.

The model is [{model}](https://huggingface.co/{model}).
"""

_FAILED = """# The videos cannot be searched

{error}

If the model, [{model}](https://huggingface.co/{model}), is private, add a token with read access to it as the
secret `HF_TOKEN` in the settings of this Space.
"""


def files_of_space(model: str, private: bool) -> dict[str, Path | bytes]:
    """
    Returns the files of a Space by name: its README, the app, the requirements, and this package itself, so that the
    index and the app have the same version.

    Args:
        model: name of the model on the Hub.
        private: whether the model is private, so that the Space needs a token.

    Raises:
        ValueError: Gradio or this package is not installed, so the versions that the Space needs are not known.
    """
    try:
        sdk = metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            f"--space needs Gradio, because the README of a Space names its version: {install_hint('app')}"
        ) from error
    name = model.rpartition("/")[2]
    card = _README.format(title=f"Search with {name}"[:60], gradio=sdk, model=model, private=_PRIVATE * private)
    files: dict[str, Path | bytes] = {
        "README.md": card.encode(),
        "app.py": _APP.format(model=model).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in requirements()).encode(),
    }
    for path in sorted(_PACKAGE.rglob("*")):
        inner = path.relative_to(_PACKAGE)
        is_hidden = any(part.startswith(".") for part in inner.parts)  # such as the cache of a tool
        if path.is_file() and "__pycache__" not in inner.parts and not is_hidden:
            files[f"region_learner/{inner.as_posix()}"] = path
    return files


def requirements() -> list[str]:
    """
    Returns the requirements of this package and its app, in pip's format.

    Raises:
        ValueError: this package is not installed.
    """
    try:
        declared = metadata.requires("region-learner") or []
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"--space needs region-learner to be installed: {install_hint('app')}") from error
    needed = []
    for line in declared:
        requirement, _, condition = (part.strip() for part in line.partition(";"))
        if not condition or condition.replace("'", '"') in ('extra == "siglip"', 'extra == "timm"'):
            needed.append(requirement)
    return sorted(needed)  # Gradio is that of the Space


def serve_space(directory: str | os.PathLike[str], model: str) -> None:
    """
    Serves the app of a Space until it ends: a search of its videos, or a page that says what to add.

    Args:
        directory: directory of the Space's repository.
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
    Returns the index of a Space: that in `directory/index`, updated with `directory/videos` if these exist, or a new
    index of these videos; None if there is neither.

    Args:
        directory: directory of the Space's repository.
        model: name of the model on the Hub, or its directory.

    Raises:
        OSError: the model cannot be downloaded, or a file cannot be read.
        ValueError: the index was made with another model.
    """
    from .search import VideoIndex
    from .search.database import FILE

    place, videos = directory / "index", directory / "videos"
    is_made = (place / FILE).is_file()
    if not is_made and not videos.is_dir():
        return None
    index = VideoIndex.open(place, model) if is_made else VideoIndex.create(place, model)
    _ = index.embedder  # raises an error now if the model is another one, not at the first search
    if videos.is_dir():
        print(index.update(videos), flush=True)  # videos that were indexed elsewhere are recognized by their content
    return index


def page(text: str) -> "gradio.Blocks":
    """Returns an app that shows a text in Markdown."""
    import gradio as gr

    with gr.Blocks(title="Search videos by text") as app:
        gr.Markdown(text)
    return app
