"""What results were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from kgpyro.inference.training import has_bf16


def machine() -> str:
    """Processor, whether it has bfloat16 products, threads and PyTorch's version."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    bf16 = "with" if has_bf16() else "without"
    name = names[0] if names else platform.processor()
    return f"{platform.machine()} {name} {bf16} bfloat16, {torch.get_num_threads()} threads, torch {torch.__version__}"
