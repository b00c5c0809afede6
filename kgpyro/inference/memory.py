"""How much memory a fit will take, and how much there is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kgpyro.names import GUIDES, resolve
from kgpyro.program.setting import Setting

STATES = {"adagrad": 1, "adam": 2, "adamw": 2, "rmsprop": 1, "sgd": 0}  # tables an optimiser keeps of each parameter
TABLES = ("lookup", "lowrank", "flow", "mixture")  # guides with a location and a scale for every symbol


def shortage(kg: Setting, config: Mapping[str, Any], answers: float, free: float | None = None) -> str | None:
    """What to tell before a fit that would take more memory than there is; None where it fits, or nothing is known.

    Args:
        answers: mean number of answers of a query.
        free: bytes; by default what is there now.
    """
    free = available(config["device"]) if free is None else free
    tables, batch = table_bytes(kg, config), batch_bytes(kg, config, answers)
    if free is None or tables + batch <= free:
        return None
    advice = [f"--dim (now {config['dim']})"]
    if batch > 0.2 * tables:
        advice.append(f"--batch-size (now {config['batch_size']})")
        advice += [f"--negatives (now {config['negatives']})"] if config["negatives"] != "all" else []
    way_out = f"lower {' or '.join(advice)}"
    if not kg.sparse and kg.num_entities > 10_000:
        way_out += ", or draw candidates by --negatives 100 with --optimizer adagrad, whose gradients are sparse"
    return (
        f"this fit takes about {(tables + batch) / 1e9:.1f} GB ({tables / 1e9:.1f} for tables, {batch / 1e9:.1f} for a "
        f"batch), and {free / 1e9:.1f} GB are free; {way_out}."
    )


def table_bytes(kg: Setting, config: Mapping[str, Any]) -> float:
    """Of the symbols' locations and scales, with gradients, draws and the optimiser's state; 0 for other guides."""
    if not str(config["guide"]).startswith(TABLES):
        return 0.0
    members = inspect.signature(resolve(config["guide"], GUIDES, "guide")).parameters.get("members")
    kinds = [(kg.count(kind), kg.size(kind), kg.family(kind)) for kind in ("entity", "relation")]
    numbers = sum(count * (family.loc_size(size) + family.scale_size(size)) for count, size, family in kinds)
    numbers *= members.default if members else 1
    return numbers * _bytes(config) * (1 + STATES[config["optimizer"]] + (0.2 if kg.sparse else 1.8))


def batch_bytes(kg: Setting, config: Mapping[str, Any], answers: float) -> float:
    """Of a step's scores and latents; the factors are those of measured peaks."""
    if config["negatives"] == "all":
        fused = kg.score.linear and config["estimator"] != "plain"
        numbers = float((1 if fused else 8) * kg.num_entities)
    else:
        numbers = 13 * (config["negatives"] + answers) * max(kg.entity_size, kg.relation_size)
    return config["batch_size"] * numbers * _bytes(config)


def _bytes(config: Mapping[str, Any]) -> int:
    return 8 if config["precision"] == "64" else 4


def available(device: str) -> float | None:
    """Free bytes on the GPU where the fit runs on one, else of the machine; None where nothing says."""
    if device in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        control = Path("/sys/fs/cgroup")
        limit = (control / "memory.max").read_text().strip()
        return min(free, int(limit) - int((control / "memory.current").read_text())) if limit != "max" else free
    except (OSError, StopIteration, ValueError):
        return None
