"""What the benchmarks share: finding their files, reading their lists and tables, published sizes, answers.

A benchmark's own files are read as people have them on disk. Whatever an annotation file says is checked: rows are
named with file and line where they are wrong, and no entry can lead out of the directory of the videos.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CorpusError
from .folder import SPLIT_ALIASES, build_dataset, check_data_dir, check_split
from .paths import VIDEO_EXTENSIONS, Listings, composed, report_missing, resolve_within
from .tables import Row, check_header, csv_records, parse_json
from .values import MISSING_WORDS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

# Below data_dir, where annotation files are looked for in this order.
ANNOTATION_DIRS = (
    "",
    "annotation",
    "annotations",
    "metadata",
    "meta_data",
    "splits",
    "high-quality/structured-symlinks",
)


def open_benchmark(corpus: str, data_dir: PathLike | None, split: str, splits: Sequence[str]) -> tuple[Path, str]:
    """The directory as an absolute path, and the name of the split ("validation" means "val").

    Raises:
        CorpusError: no such directory or split.
    """
    directory = check_data_dir(corpus, data_dir)
    if SPLIT_ALIASES.get(split) in splits:
        split = SPLIT_ALIASES[split]
    check_split(split, splits, corpus)
    return directory, split


# --- Annotation files ----------------------------------------------------------------------------------------


def look_for(data_dir: Path, names: Sequence[str], directories: Sequence[str] = ()) -> Path | None:
    """The first of the files `names` that lies in `data_dir` or in one of its usual directories for annotations."""
    for name in names:
        for directory in (*ANNOTATION_DIRS, *directories):
            path = data_dir / directory / name
            if path.is_file():
                return path
    return None


def find_annotation(data_dir: Path, names: Sequence[str], what: str, directories: Sequence[str] = ()) -> Path:
    """As `look_for`.

    Raises:
        CorpusError: there is none.
    """
    path = look_for(data_dir, names, directories)
    if path is None:
        places = ", ".join(f"{directory}/" for directory in (*ANNOTATION_DIRS, *directories) if directory)
        raise CorpusError(
            f"no {what} in {data_dir}: looked for {' or '.join(names)} there and in {places}; put the file there or "
            "check data_dir="
        )
    return path


def check_count(found: int, published: int | Sequence[int], what: str, path: Path) -> None:
    """Warns of a list that is not as long as published: some are cut to what could still be downloaded."""
    expected = [published] if isinstance(published, int) else list(published)
    if found not in expected:
        numbers = " or ".join(f"{number:,}" for number in expected)
        logger.warning("%s: expected %s, found %s in %s", what, numbers, f"{found:,}", path)


def read_list(path: Path) -> list[tuple[int, str]]:
    """Lines of a text file that are not blank, stripped, each with its number.

    Raises:
        CorpusError: the file is not UTF-8 text or has no such line.
    """
    lines = [(number, line.strip()) for number, line in enumerate(_read_text(path).split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise CorpusError(f"{path} is empty")
    return lines


def read_json(path: Path) -> Any:
    """
    Raises:
        CorpusError: the file is not JSON.
    """
    return parse_json(_read_text(path), path)


def read_entries(path: Path) -> list[tuple[str, Row]]:
    """Objects of a JSON list or of JSON lines, each with where it stands, for messages.

    Raises:
        CorpusError: the file is not of either form.
    """
    text = _read_text(path)
    if text.lstrip().startswith("["):
        values = parse_json(text, path)
        entries = [(f"{path}, entry {number}", value) for number, value in enumerate(values, start=1)]
    else:
        lines = read_list(path)
        entries = [(f"{path}, line {number}", parse_json(line, path, number)) for number, line in lines]
    for where, value in entries:
        if not isinstance(value, dict):
            raise CorpusError(f"{where}: not a JSON object")
    if not entries:
        raise CorpusError(f"{path} is empty")
    return entries


def text_field(entry: Mapping[str, Any], name: str, where: str) -> str:
    """A string of an entry, stripped.

    Raises:
        CorpusError: it is missing, blank or no string.
    """
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"{where}: {name!r} must be a string that is not blank, not {value!r}")
    return value.strip()


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The named columns of a CSV file with a header, each row with where it stands; other columns are passed over.

    Raises:
        CorpusError: a column is missing, or a row has another number of fields than the header.
    """
    rows: list[tuple[str, dict[str, str]]] = []
    header: list[str] = []
    try:
        for number, fields in csv_records(path, strict=False):
            if not header:
                check_header(fields, path)
                header = fields
                if absent := [name for name in columns if name not in header]:
                    raise CorpusError(f"{path} has no column {' or '.join(absent)} (columns: {', '.join(header)})")
                continue
            where = f"{path}, line {number}"
            if len(fields) != len(header):
                raise CorpusError(f"{where}: not as many fields as the {len(header)} columns of the header")
            rows.append((where, {name: fields[header.index(name)].strip() for name in columns}))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error
    if not header:
        raise CorpusError(f"{path} is empty")
    if not rows:
        raise CorpusError(f"{path} has no rows")
    return rows


def read_tsv(path: Path, columns: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Fields of a tab-separated file without header or quotes, each row with where it stands. The first row counts.

    Args:
        columns: how many there may be.

    Raises:
        CorpusError: a row has another number of fields.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) not in columns:
            expected = " or ".join(map(str, columns))
            raise CorpusError(f"{path}, line {number}: {len(fields)} tab-separated fields, expected {expected}")
        rows.append((f"{path}, line {number}", fields))
    if not rows:
        raise CorpusError(f"{path} is empty")
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error


# --- Videos --------------------------------------------------------------------------------------------------


class VideoFiles:
    """Where the videos of a benchmark lie. Every directory is listed once; no file is looked up or opened.

    A name is found in the first of the directories that has it: as it is, or else by its stem with any extension of
    a video, as releases are often re-encoded. "x.mov" is thus found as x.mov, x.mov.mp4 or x.mp4.

    Args:
        data_dir: of the benchmark.
        video_dir: where its videos lie, absolute or relative to `data_dir`; the only place then.
        usual: where to look without it, below `data_dir`; `data_dir` itself comes last.
        extension: of a name without one, for what is said of missing files.

    Raises:
        CorpusError: no directory `video_dir`.
    """

    def __init__(self, data_dir: Path, video_dir: PathLike | None, usual: Sequence[str], extension: str = ".mp4"):
        self.data_dir = data_dir
        self.extension = extension
        self.roots = video_roots(data_dir, video_dir, usual)
        self._files = Listings()
        self._listings: dict[str, dict[str, str]] = {}
        self._found: dict[str, str] = {}
        self.missing: set[str] = set()

    def find(self, name: str, where: str, stem: str | None = None) -> str:
        """The absolute path of a video; of one that is missing, where it should be.

        Args:
            name: relative to the directory of the videos, with or without extension.
            where: file and line that name it.
            stem: the name without its extension, where that is not one of a video.

        Raises:
            CorpusError: the name leads out of that directory.
        """
        return self.find_first([name], where, stem)

    def find_first(self, names: Sequence[str], where: str, stem: str | None = None) -> str:
        """As `find`, of a video that may have any of several names, the usual one first."""
        if names[0] not in self._found:
            wanted = [form for name in names for form in (name, *_stems(name))]
            if stem is not None:
                wanted += [stem, *_stems(stem)]
            self._found[names[0]] = self._find(wanted, where) or self._expected(names[0], where)
        return self._found[names[0]]

    def _find(self, wanted: Sequence[str], where: str) -> str | None:
        for root in self.roots:
            for name in wanted:
                directory, key = os.path.split(resolve_within(root, name, root, where, "video"))
                directory = self._files.directory(directory)
                listing = self._listing(directory)
                found = listing.get(key) or listing.get(composed(key))
                if found is not None:
                    return os.path.join(directory, found)
        return None

    def _expected(self, name: str, where: str) -> str:
        path = resolve_within(self.roots[0], name, self.roots[0], where, "video")
        # What follows the last dot of a name need not be an extension.
        if not path.lower().endswith(VIDEO_EXTENSIONS) and not path.endswith("."):
            path += self.extension
        self.missing.add(path)
        return path

    def _listing(self, directory: str) -> dict[str, str]:
        """Names of files by themselves and by all their stems."""
        if directory not in self._listings:
            names = sorted(set(self._files.names(directory).values()), key=_preference)
            listing = {name: name for name in names}
            for name in names:
                for form in (composed(name), *_stems(name), *_stems(composed(name))):
                    listing.setdefault(form, name)
            self._listings[directory] = listing
        return self._listings[directory]


def video_roots(data_dir: Path, video_dir: PathLike | None, usual: Sequence[str]) -> list[Path]:
    """Directories to look for videos in: `video_dir`, or those of `usual` that there are and `data_dir`.

    Raises:
        CorpusError: no directory `video_dir`.
    """
    if video_dir is not None:
        root = Path(os.path.normpath(data_dir / os.path.expanduser(video_dir)))
        if not root.is_dir():
            raise CorpusError(f"no directory {root}: check video_dir=")
        return [root]
    return [*(data_dir / name for name in usual if (data_dir / name).is_dir()), data_dir]


def _stems(name: str) -> list[str]:
    """Without one or more extensions of videos, and without the dot of an empty one: "a.mov.mp4" -> "a.mov", "a"."""
    stems: list[str] = []
    while True:
        stem, extension = os.path.splitext(name)
        if name.endswith(".") and name.rstrip("."):
            stem = name.rstrip(".")
        elif extension.lower() not in VIDEO_EXTENSIONS or not extension:
            return stems
        stems.append(stem)
        name = stem


def _preference(name: str) -> tuple[int, str]:
    extension = os.path.splitext(name)[1].lower()
    rank = VIDEO_EXTENSIONS.index(extension) if extension in VIDEO_EXTENSIONS else len(VIDEO_EXTENSIONS)
    return rank, name


# --- From rows to a data set ---------------------------------------------------------------------------------


def finish(
    rows: Sequence[Row],
    videos: VideoFiles,
    source: Path,
    split: str,
    streaming: bool,
    max_missing: int | float,
    missing_list: PathLike | None,
    captioned: bool = True,
    features: Mapping[str, Any] | None = None,
) -> Dataset | IterableDataset:
    """Strips captions, leaves out blank ones and missing videos with a warning of each kind, and builds the data set.

    Args:
        rows: with `video` from `videos`.
        source: the file that captions come from.
        captioned: every row must have a caption.
        features: of columns beside the common ones.

    Raises:
        CorpusError: more videos are missing than `max_missing`; no row is left.
    """
    from datasets import Features, Value

    if captioned:
        rows = _strip_captions(rows, source)
    files = {row["video"] for row in rows}
    report_missing(files & videos.missing, len(files), videos.data_dir, max_missing, missing_list, split, videos.roots)
    present = [row for row in rows if row["video"] not in videos.missing]
    if not present:
        raise CorpusError(f"no row of split {split!r} is left of {source}")
    texts: Any = [Value("string")]
    common = Features({"video": Value("string"), "video_id": Value("string"), "captions": texts})
    return build_dataset(present, streaming, features={**common, **(features or {})})


def _strip_captions(rows: Sequence[Row], source: Path) -> list[Row]:
    blank, kept, bare = 0, [], []
    for row in rows:
        captions = [caption.strip() for caption in row["captions"]]
        captions = [caption for caption in captions if caption and caption not in MISSING_WORDS]
        blank += len(row["captions"]) - len(captions)
        if captions:
            kept.append({**row, "captions": captions})
        else:
            bare.append(row["video_id"])
    if blank or bare:
        names = f" (the first: {', '.join(bare[:5])})" if bare else ""
        logger.warning(
            "left out %d blank captions and %d videos without a caption%s: %s", blank, len(bare), names, source
        )
    if rows and not kept:
        raise CorpusError(f"no video of the split has a caption in {source}")
    return kept


def strings(value: Any, where: str) -> list[str]:
    """
    Raises:
        CorpusError: it is no list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise CorpusError(f"{where}: expected a list of strings, not {value!r:.100}")
    return value


def answer_vocabulary(rows: Iterable[Mapping[str, Any]], size: int) -> list[str]:
    """The most frequent answers, as open-ended question answering has them for classes; ties in alphabetical order.

    Usual sizes are 1,500 for MSRVTT-QA and 1,000 for MSVD-QA, counted over the training split.

    Args:
        rows: of a corpus with questions, or the data set itself.
        size: how many at most.

    Raises:
        CorpusError: rows without the column `answer`, or with a choice instead of words; `size` is not positive.
    """
    if size < 1:
        raise CorpusError(f"size must be at least 1, not {size}")
    columns = getattr(rows, "column_names", None)
    if columns is not None and "answer" in columns and hasattr(rows, "select_columns"):
        rows = rows.select_columns(["answer"])
    counts: Counter[str] = Counter()
    for row in rows:
        if not isinstance(row.get("answer"), str):
            raise CorpusError("answer_vocabulary needs rows with a column 'answer' of words, such as msrvtt_qa has")
        counts[row["answer"]] += 1
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:size]


# --- Question answering and multiple choice ------------------------------------------------------------------


def question_rows(path: Path, names: Mapping[int, str] | None, prefix: str, videos: VideoFiles) -> list[Row]:
    """Rows of a file of {"question", "answer", "video_id"}.

    Args:
        names: ids of videos by their number, or None for `prefix` and number.
    """
    rows = []
    for where, entry in read_entries(path):
        number = entry.get("video_id")
        if isinstance(number, str) and number.strip():
            number = number.strip()
            digits = number.removeprefix(prefix)
            number = int(digits) if digits.isascii() and digits.isdigit() else number
        if isinstance(number, bool) or not isinstance(number, int | str) or number == "":
            raise CorpusError(f"{where}: no 'video_id'")
        if isinstance(number, str):
            video_id = number
        elif names is None:
            video_id = f"{prefix}{number}"
        elif number in names:
            video_id = names[number]
        else:
            raise CorpusError(f"{where}: no video {number} in the mapping of ids")
        rows.append(
            {
                "video": videos.find(video_id, where),
                "video_id": video_id,
                "captions": [],
                "question": text_field(entry, "question", where),
                "answer": text_field(entry, "answer", where),
            }
        )
    return rows


def choice_row(video: str, video_id: str, options: list[str], answer: Any, where: str) -> Row:
    """
    Raises:
        CorpusError: an answer that is none of the options, or is blank.
    """
    options = [option.strip() for option in options]
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise CorpusError(f"{where}: the answer {answer!r} is none of the {len(options)} options")
    if not options[answer]:
        raise CorpusError(f"{where}: the right option, {answer}, is blank")
    return {
        "video": video,
        "video_id": video_id,
        "captions": [options[answer]],
        "options": options,
        "answer": answer,
    }


def choice_features() -> dict[str, Any]:
    from datasets import Value

    return {"options": [Value("string")], "answer": Value("int64")}


def question_features() -> dict[str, Any]:
    from datasets import Value

    return {"question": Value("string"), "answer": Value("string")}
