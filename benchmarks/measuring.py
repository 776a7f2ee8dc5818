"""What several benchmarks share: a description of the machine, a counter of operations, and a measure of memory."""

import ctypes
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def about(device: Any = "cpu", *distributions: str) -> dict[str, Any]:
    """
    Returns what a measurement depends on besides its options: the machine, and the versions of Python, PyTorch,
    transformers, this package and other `distributions`.

    Args:
        device: the device that is measured, a `torch.device` or its name.
        distributions: names of more distributions that are measured.
    """
    import torch  # some scripts measure processes that do not need it

    device = torch.device(device)
    names = ("torch", "transformers", "region-learner", *distributions)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def described(found: dict[str, Any]) -> str:
    """Returns the result of [`about`] as one line."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"{found['device']}; {found['cpu']}, {found['cores']} cores, threads: {found['threads']}, {found['machine']}; "
        f"Python {found['python']}, {versions}"
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # this package may be run from its source
        return "not installed"


def added_memory(run: Callable[[], Any], device: Any) -> int | None:
    """Returns the bytes that `run()` needs at its peak, in addition to what is in use; None if that is not known."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if device.type != "cpu" or platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier calls have freed, which `run` would use again
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak_of_process()
    run()
    return _peak_of_process() - before


def _peak_of_process() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM.")


def count_flops(run: Callable[[], Any]) -> int:
    """
    Returns the floating-point operations of the matrix products, convolutions and attention in `run()`, which needs
    gradients enabled.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query, key, value, *args, **kwargs):
        return sdpa_flop_count(query, key, value)

    def backward(gradient, query, key, value, *args, **kwargs):
        return sdpa_backward_flop_count(gradient, query, key, value)

    # PyTorch has formulas for the attention kernels of GPUs, but not for those of CPUs.
    formulas = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return counter.get_total_flops()
