"""
Embeds videos on a Ray cluster with Ray Data, and joins the parts into an index.

    pip install region-learner "ray[data]"  # in a clone: pip install . "ray[data]"
    python examples/search/ray_data.py MODEL VIDEOS --parts DIR --index DIR --shards 64 --gpus 1

Each task embeds one shard of the videos. If a worker dies, Ray restarts its task, which resumes with the videos that
are not in parts yet. All machines must see VIDEOS and --parts under the same paths.
"""

import argparse
from typing import Any

import ray

from region_learner import VideoIndex


def embed_share(row: dict[str, Any], model: str, videos: list[str], parts: str, shards: int, workers: int):
    from region_learner.search import embed_videos

    report = embed_videos(model, videos, parts, shard=(row["id"], shards), num_workers=workers)
    return {"shard": row["id"], "report": str(report), "unreadable": len(report.unreadable)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint: a directory or a Hub name")
    parser.add_argument("videos", nargs="+", help="folders, video files, tar files or lists (.txt)")
    parser.add_argument("--parts", required=True, help="directory for the parts, on a disk that all machines share")
    parser.add_argument("--index", required=True, help="directory of the index")
    parser.add_argument("--shards", type=int, default=64, help="number of shards: use several per worker")
    parser.add_argument("--cpus", type=int, default=1, help="cores per task, for decoding")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each task")
    parser.add_argument("--address", help="address of a Ray cluster; by default this machine")
    options = parser.parse_args()

    ray.init(address=options.address)
    shares = ray.data.range(options.shards, override_num_blocks=options.shards)
    embedded = shares.map(
        embed_share,
        fn_kwargs={
            "model": options.model,
            "videos": options.videos,
            "parts": options.parts,
            "shards": options.shards,
            "workers": options.cpus,
        },
        num_cpus=options.cpus,
        num_gpus=options.gpus,
    )
    for row in embedded.iter_rows():
        print(f"shard {row['shard']}/{options.shards}: {row['report']}")
    index = VideoIndex.from_embeddings(options.index, options.parts)
    print(f"{options.index}: {len(index)} videos")


if __name__ == "__main__":
    main()
