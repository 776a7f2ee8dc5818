"""
Runs scripts in processes that are as fresh as those of `python -c`, but import `transformers` in two seconds instead
of six. They are forked from a process that has imported PyTorch and torchvision, but nothing that reads settings of
the Hub.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SERVER = """
import contextlib, gc, json, os, sys

gc.disable()
import safetensors.torch, tokenizers, torch, torchvision.transforms.v2
with contextlib.suppress(ImportError):
    import pyarrow.dataset, sklearn.metrics  # for sentence-transformers
gc.freeze()
assert not {"huggingface_hub", "region_learner", "transformers"} & sys.modules.keys()

for line in sys.stdin:
    job = json.loads(line)
    if os.fork() == 0:
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    sys.exit()

gc.enable()
for descriptor, path in enumerate((os.devnull, job["stdout"], job["stderr"])):
    os.dup2(os.open(path, os.O_RDWR), descriptor)
os.environ.clear()
os.environ.update(job["environment"])
os.chdir(job["cwd"])
sys.argv, sys.path = ["-c", *job["arguments"]], job["path"] or sys.path
exec(compile(job["script"], "<string>", "exec"), {"__name__": "__main__"})
"""


@cache
def _server() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-I", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run_fresh(
    script: str,
    *arguments: str,
    isolated: bool = True,
    environment: dict[str, str] | None = None,
    cwd: Path | str | None = None,
) -> subprocess.CompletedProcess:
    """
    Runs Python code as `python -c` does, and returns its exit code and what it printed.

    Args:
        isolated: whether to run as with `python -I`. Otherwise, modules are found where this process finds them.
        environment: all environment variables; by default, those of this process.
        cwd: the working directory; by default, that of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
        for path in outputs.values():
            Path(path).touch()
        job = {"script": script, "arguments": arguments, "path": [] if isolated else sys.path, **outputs}
        job |= {"environment": dict(os.environ if environment is None else environment), "cwd": str(cwd or Path.cwd())}
        server = _server()
        try:
            print(json.dumps(job), file=server.stdin, flush=True)
            code = int(server.stdout.readline())
        except BaseException:  # such as the timeout of a test; the next call starts a new server
            server.kill()
            _server.cache_clear()
            raise
        texts = {name: Path(path).read_text(encoding="utf-8") for name, path in outputs.items()}
    return subprocess.CompletedProcess([script, *arguments], code, **texts)


def run_script(command: list[str], env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
    """Replaces `subprocess.run` where the package runs one of its scripts with `python -P`."""
    assert command[:2] == [sys.executable, "-P"]
    return run_fresh(Path(command[2]).read_text(encoding="utf-8"), *command[3:], environment=env)
