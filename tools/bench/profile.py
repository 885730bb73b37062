"""Where the time of a step goes, kernel by kernel, as torch's profiler sees it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

# On a GPU it waits for the host or for data; on a CPU this is Python and what torch does not name.
NO_KERNEL = "no kernel"


def profile(step: Callable[[], Any], device: torch.device, steps: int = 3, most: int = 8) -> dict[str, float]:
    """Share of the time by kernel.

    Args:
        step: what to look at; was called before, so that nothing is compiled now.
        device: where its kernels run. On CUDA these are kernels of the device, on a CPU the operators of torch.
        steps: to average over.
        most: kernels to name.

    Returns:
        Name -> share of the time that went by, largest first: the kernels, `others` and, last, `NO_KERNEL`. The shares
        sum to 1 (a little more where kernels overlap). The profiler itself slows down a step of many small kernels.
    """
    cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize(device)
        microseconds = 1e6 * (time.perf_counter() - started)
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        if cuda and event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            spent[event.key] = spent.get(event.key, 0.0) + event.self_device_time_total / microseconds
        elif not cuda:
            spent[event.key] = spent.get(event.key, 0.0) + event.self_cpu_time_total / microseconds
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    others = sum(share for _, share in ranked[most:])
    return dict(ranked[:most]) | {"others": others, NO_KERNEL: max(0.0, 1.0 - sum(spent.values()))}
