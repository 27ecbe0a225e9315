"""Timing shared by the benchmarks: interleaved rounds, the minimum of each, and the machine's name."""

import os
import platform
import time
from collections.abc import Callable

import jax


def machine() -> str:
    """Device, cores and versions, for the table's header."""
    device = jax.devices()[0]
    load = os.getloadavg()[0]
    versions = f"{platform.machine()}, JAX {jax.__version__}"
    return f"{device.device_kind} x {jax.device_count()}, {os.cpu_count()} cores, {versions}, load {load:.1f}"


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least seconds of each function; they take turns, so that a noisy moment meets all alike."""
    for function in functions.values():
        jax.block_until_ready(function())
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function())
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
