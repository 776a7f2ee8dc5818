"""Reports each unreadable video of a run once, and ends the run if there are too many of them."""

import json
import logging
from pathlib import Path

from accelerate.utils import gather_object

from ..files import write_json
from ..video_decoding_region_learner import VideoDecodeError
from .data import CorpusPart

logger = logging.getLogger(__name__)


class UnreadableVideos:
    """
    The unreadable videos of this process.

    Args:
        output_dir: directory of the run, where `unreadable_videos.json` lists them.
        max_share: share of the videos that may be unreadable, the `max_unreadable` of the arguments.
        parts: the corpora that are trained on.

    Attributes:
        in_training, in_evaluation: error messages by video id.
    """

    def __init__(self, output_dir: Path, max_share: float, parts: list[CorpusPart]):
        self.output_dir, self.max_share, self.parts = output_dir, max_share, parts
        self.in_training: dict[str, str] = {}
        self.in_evaluation: dict[str, str] = {}
        self._number_of_videos: int | None = None
        self._samples_before = 0  # the clips trained on before the run was resumed

    def report(self, video_id: str, reason: str, in_training: bool, samples_seen: int = 0) -> None:
        """
        Reports an unreadable video.

        Args:
            video_id: id of the video.
            reason: the reason why it cannot be read.
            in_training: whether it was drawn for training, where another video is substituted.
            samples_seen: number of clips trained on since the run started or resumed, because the number of videos of
                a stream is unknown.

        Raises:
            VideoDecodeError: too many videos are unreadable.
        """
        if video_id in self.in_training or video_id in self.in_evaluation:
            return
        if not in_training:
            self.in_evaluation[video_id] = reason
            logger.warning("Leaving an unreadable video out of the evaluation: %s", reason)
            return
        self.in_training[video_id] = reason
        logger.warning("Skipping an unreadable video, substituting another one: %s", reason)
        seen = max(self._samples_before + samples_seen, 100)
        self._check(self.in_training, seen if self._streamed else self.number_of_videos)

    def check_all_processes(self, reports: int) -> None:
        """
        Checks the share of unreadable videos in all processes, each of which has only read some of the videos. (Each
        process reads a stream of its own, which it checks alone.) All processes must call it.

        Args:
            reports: number of unreadable videos of all processes together, some of which may be the same.

        Raises:
            VideoDecodeError: too many videos are unreadable.
        """
        if not self._streamed and reports > self.max_share * self.number_of_videos:
            self._check(dict(gather_object(list(self.in_training.items()))), self.number_of_videos)

    def _check(self, unreadable: dict[str, str], total: int) -> None:
        if total and len(unreadable) > self.max_share * total:
            self._write(unreadable)
            raise VideoDecodeError(
                f"{len(unreadable)} of {total} videos are unreadable, more than max_unreadable={self.max_share} "
                f"allows: see unreadable_videos.json in {self.output_dir}. Repair or remove them, or raise the limit."
            )

    @property
    def _streamed(self) -> bool:
        return any(part.streamed for part in self.parts)

    @property
    def number_of_videos(self) -> int:
        """The number of videos in the corpora, which are not streamed."""
        if self._number_of_videos is None:
            ids = (part.dataset["video_id"] if hasattr(part.dataset, "column_names") else () for part in self.parts)
            distinct = sum(len(set(column)) for column in ids)  # a video may have several questions
            self._number_of_videos = distinct or sum(len(part.dataset) for part in self.parts)
        return self._number_of_videos

    def finish(self, is_main_process: bool) -> int:
        """Writes the list of unreadable videos of all processes, and returns their number. All must call it."""
        unreadable = dict(gather_object(list(self.in_training.items())))
        if unreadable and is_main_process:
            logger.warning("%d videos could not be read.", len(unreadable))
            self._write(unreadable)
        return len(unreadable)

    def _write(self, unreadable: dict[str, str]) -> None:
        path = self.output_dir / "unreadable_videos.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, unreadable, indent=2)
            logger.warning("%s lists the unreadable videos.", path)
        except OSError as error:  # not worth losing hours of training for
            logger.warning("The list of unreadable videos could not be written: %s", error)

    def save(self, checkpoint: Path, process_index: int, samples_seen: int) -> None:
        state = {"videos": self.in_training, "samples_seen": self._samples_before + samples_seen}
        (checkpoint / f"unreadable_{process_index}.json").write_text(json.dumps(state))

    def load(self, checkpoint: Path, process_index: int) -> None:
        path = checkpoint / f"unreadable_{process_index}.json"
        if path.is_file():
            state = json.loads(path.read_text())
            if "samples_seen" not in state:  # an older checkpoint, which only has the videos
                state = {"videos": state, "samples_seen": 0}
            self.in_training, self._samples_before = state["videos"], state["samples_seen"]
