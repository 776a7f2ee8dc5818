"""
Indexes a folder of videos, and prints the spans that match a text best.

    python examples/search_a_folder.py my_videos "a dog jumps over a fence"

The index is kept: the next call embeds only videos that are new or have changed.
"""

import argparse
from pathlib import Path

from region_learner import VideoIndex
from region_learner.search import clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of videos")
    parser.add_argument("query", help="what happens in the video")
    parser.add_argument("--index", default="videos.index", help="directory of the index (default: %(default)s)")
    parser.add_argument("--model", help="a checkpoint, as a directory or Hub name (default: SigLIP 2 base)")
    parser.add_argument("--top", type=int, default=5, help="number of hits (default: %(default)s)")
    options = parser.parse_args()

    if not Path(options.index).exists():
        index = VideoIndex.create(options.index, options.model or "google/siglip2-base-patch16-224")
    elif options.model is None:
        index = VideoIndex.open(options.index)
    else:
        parser.error(f"{options.index} exists and has its own model: leave out --model, or name another --index.")
    report = index.update(options.folder)
    print(report)
    for path, reason in report.unreadable.items():
        print(f"{path} was skipped: {reason}")
    for hit in index.search(options.query, k=options.top):
        print(f"{hit.probability:4.0%}  {hit.score:.3f}  {clock(hit.start, hit.end)}  {hit.path}")


if __name__ == "__main__":
    main()
