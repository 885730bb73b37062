"""Throughput, waiting, memory and utilisation of a stage, without synchronising the device."""

import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets; the longest matching name counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L4": 121e12,
    "L40S": 362e12,
    "V100": 125e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def known_card(device: torch.device) -> str | None:
    """The name in `PEAK_FLOPS` of a CUDA device, or None where no honest figure is known (CPU, other cards)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if re.search(r"\b(Laptop|Ti|D)\b", name):  # other chips under the same number
        return None
    return max((known for known in PEAK_FLOPS if re.search(rf"\b{known}\b", name)), key=len, default=None)


def duration(seconds: float) -> str:
    """A length of time as people say it: `45 s`, `12 min`, `2 h 10 min`, `3 days 4 h`."""
    if seconds < 99.5:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} day{'s' * (days > 1)} {hours} h" if days else f"{hours} h {minutes} min"


def forward_flops(forward: Callable[[], object]) -> float:
    """FLOPs of the matrix products in `forward`; element-wise work is not counted.

    Attention runs as two plain products while it is counted: not every version of torch counts its fused kernel.
    Under a causal mask both products count in full, as is usual.
    """
    counter = FlopCounterMode(display=False)
    account: Any = _NoModules()
    counter.mod_tracker = account
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    return float(counter.get_total_flops())


class _NoModules:
    """In place of the counter's account of modules, which raises on a view of a parameter under `no_grad`."""

    parents = ("Global",)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def count_flops(forward: Callable[[], object]) -> float:
    """FLOPs of a training step through `forward`: those of the forward pass, times three.

    The backward pass of a matrix product costs two products of the same size.
    """
    return 3.0 * forward_flops(forward)


FIRST_STEPS = 20  # whose pace tells how long a stage will take


class Meter:
    """Times the steps of a stage between log lines.

    A GPU works behind the host, so its steps are timed by events on its own clock, and the length of a window ends
    after the synchronisation that every log line needs anyway.

    Args:
        samples_per_step: global batch.
        tokens_per_sample: trunk tokens a sample.
        flops_per_sample: training FLOPs a sample.
        device: where the steps run.
        world: processes.
    """

    def __init__(
        self, samples_per_step: int, tokens_per_sample: int, flops_per_sample: float, device: torch.device, world: int
    ):
        self.samples = samples_per_step
        self.tokens = samples_per_step * tokens_per_sample
        self.flops = samples_per_step * flops_per_sample
        self.device = device
        card = known_card(device)
        self.peak = PEAK_FLOPS[card] * world if card else None
        self._seconds_before = 0.0
        self._paused: float | None = None
        self._first: list[tuple[Any, Any]] = []  # stamps of the first steps
        self._start_window()

    def _start_window(self) -> None:
        self._steps: list[tuple[Any, Any]] = []  # stamps before and behind each step
        self._waited = 0.0
        self._window_start = time.perf_counter()
        self._mark = self._stamp()

    def _stamp(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @property
    def seconds(self) -> float:
        """Training time so far, without pauses."""
        now = time.perf_counter() if self._paused is None else self._paused
        return self._seconds_before + now - self._window_start

    def pause(self) -> None:
        """Leave out what happens until `resume` (evaluation, checkpoints); waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Time what follows again."""
        assert self._paused is not None
        self._window_start += time.perf_counter() - self._paused
        self._paused = None
        self._mark = self._stamp()

    def step(self, waited: float) -> None:
        """Note that a step is over; `waited` seconds of it were spent waiting for data."""
        stamp = self._stamp()
        self._steps.append((self._mark, stamp))
        self._waited += waited
        if len(self._first) < FIRST_STEPS:
            self._first.append((self._mark, stamp))
        self._mark = stamp

    def read(self) -> dict[str, float | None]:
        """Figures of the window, which ends here; call it just after the device was synchronised."""
        seconds = time.perf_counter() - self._window_start
        rate = len(self._steps) / seconds
        p50, p95 = np.percentile(self._milliseconds(self._steps), [50, 95])
        out = {
            "samples_per_s": self.samples * rate,
            "tokens_per_s": self.tokens * rate,
            "step_ms_p50": float(p50),
            "step_ms_p95": float(p95),
            "data_wait_pct": 100 * self._waited / seconds,
            "memory_gib": self._memory(),
            "tflops": self.flops * rate / 1e12,
            "mfu_pct": 100 * self.flops * rate / self.peak if self.peak else None,
        }
        self._seconds_before += seconds
        self._start_window()
        return out

    def pace(self) -> float:
        """Median seconds of the first `FIRST_STEPS` steps, so that compilation does not count; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return float(np.median(self._milliseconds(self._first))) / 1000

    def _milliseconds(self, steps: list[tuple[Any, Any]]) -> list[float]:
        on_gpu = self.device.type == "cuda"
        return [a.elapsed_time(b) if on_gpu else 1e3 * (b - a) for a, b in steps]

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
