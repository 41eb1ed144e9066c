"""The shared cases of tables: their rows, nets and rules, and the schema that these make."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.threats.table.features import Feature
from holdfast.threats.table.schema import Schema

CASES = Path(__file__).parents[3] / "shared" / "cases"
DIRECTIONS = ("s", "d")
ORDERS = (("sum", "max"), ("sum", "min"), ("max", "min"))


def table_case(name: str) -> ModuleType:
    """The loader of a case: `lcld`, `url` or `botnet`; skips without it."""
    path = CASES / f"tabular_{name}" / "load.py"
    if not path.exists():
        pytest.skip(f"the shared case tabular_{name} is not here")
    spec = importlib.util.spec_from_file_location(f"tabular_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def schema_of(name: str) -> Schema:
    """The schema that a case's features and relations make."""
    case = table_case(name)
    folder = CASES / f"tabular_{name}"
    said = json.loads((folder / "relations.json").read_text())
    features = _features(case, folder)
    if name == "botnet":
        return Schema(features, relations=_botnet(case), tolerance=said["tolerance"])
    relations = {one["name"]: one["expr"] for one in said["relations"]}
    formulas = {key: said[key] for key in ("months(d)", "r") if key in said}
    groups = {pattern.removesuffix("_*"): [pattern] for pattern in said.get("one_hot", [])}
    return Schema(features, groups, relations, {}, formulas, said["tolerance"])


def halves_of_loans() -> list[tuple[np.ndarray, np.ndarray]]:
    """The legal loans, their rows and classes, in two halves by a digest of each row."""
    (x, y), schema = table_case("lcld").data(), schema_of("lcld")
    x = x.astype(np.float32)
    legal = schema.legal(torch.from_numpy(x), torch.from_numpy(x)).numpy()
    side = np.array([hashlib.sha256(row.tobytes()).digest()[0] & 1 for row in x])
    return [(x[legal & (side == half)], y[legal & (side == half)]) for half in (0, 1)]


def _features(case: ModuleType, folder: Path) -> list[Feature]:
    scale = np.load(folder / "scaler.npz")["scale"]
    return [_feature(one, float(s)) for one, s in zip(case.features(), scale, strict=True)]


def _feature(said: dict[str, Any], scale: float) -> Feature:
    kind = {"real": "real", "int": "integer"}.get(said["type"], "binary")
    grows = said["min"] is None
    low = -abs(said["max"]) - 1 if grows else said["min"]
    mutability = "fixed"
    if said["mutable"]:
        mutability = "increase" if grows else "free"
    unit = 1 / scale if scale else None
    return Feature(said["feature"], kind, mutability, (low, said["max"]), scale=unit)


def _botnet(case: ModuleType) -> dict[str, str]:
    """Relations between quantities of 18 ports, the last of which is OTHER."""
    names = [one["feature"] for one in case.features()]
    found: dict[str, str] = {}
    for d in DIRECTIONS:
        sent = " + ".join(f'sum("{protocol}_sum_{d}_*")' for protocol in ("icmp", "udp", "tcp"))
        seen = f'sum("bytes_in_sum_{d}_*") + sum("bytes_out_sum_{d}_*")'
        found[f"protocol_total_{d}"] = f"{sent} == {seen}"
    for d in DIRECTIONS:
        stem = f"bytes_out_sum_{d}"
        for port in [names[i].rsplit("_", 1)[1] for i in case.index(stem)][:17]:
            packets = f"pkts_out_sum_{d}_{port}"
            found[f"packet_size_{d}_{port}"] = (
                f"{packets} != 0 implies {stem}_{port} <= 1500 * {packets}"
            )
    for high, low in ORDERS:
        for d in DIRECTIONS:
            for q in ("bytes_out", "pkts_out", "duration"):
                pairs = (case.index(f"{q}_{one}_{d}") for one in (low, high))
                for i, j in zip(*pairs, strict=True):
                    found[f"{names[i]} <= {names[j]}"] = f'"{names[i]}" <= "{names[j]}"'
    return found


class Scaled(nn.Module):
    """A net on scaled rows, asked about raw ones; `threshold`: of the probability of class 1."""

    def __init__(self, net: nn.Module, case: ModuleType, name: str, threshold: float = 0.5) -> None:
        super().__init__()
        scaler = np.load(CASES / f"tabular_{name}" / "scaler.npz")
        self.net = net
        self.register_buffer("scale", torch.tensor(scaler["scale"]))
        self.register_buffer("low", torch.tensor(scaler["min"]))
        lead = float(np.log((1 - threshold) / threshold))
        self.register_buffer("lead", torch.tensor([0.0, lead]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x.double() * self.scale + self.low).float()) + self.lead.float()
