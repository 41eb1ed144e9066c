"""Examples that other libraries find on a tiny network, as the values that our attacks are held
against: one file an attack and library in tests/attacks/references, with its origin.

The network and its rows are drawn once and kept there too (network.json), so that no value depends
on anybody's generator. Needs foolbox, adv-lib and torchattacks (make bench); run it again only to
add an attack or a library: the files are meant to stay.

    python benchmarks/references.py [NAME ...]
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from common import ROOT
from peers import stand_ins
from torch import Tensor, nn

PLACE = ROOT / "tests" / "attacks" / "references"
ROWS, PIXELS, HIDDEN, CLASSES = 8, 16, 12, 3
Found = Callable[[nn.Module, Tensor, Tensor], Tensor]


def draw() -> dict[str, Any]:
    """A network of one hidden layer, and rows of which it is fairly sure."""
    rng = np.random.default_rng(0)
    drawn = {
        "0.weight": rng.normal(size=(HIDDEN, PIXELS)) / 2,
        "0.bias": rng.normal(size=HIDDEN) / 4,
        "2.weight": rng.normal(size=(CLASSES, HIDDEN)) / 2,
        "2.bias": np.zeros(CLASSES),
    }
    parts = {name: part.round(3).tolist() for name, part in drawn.items()}
    x = rng.uniform(0.2, 0.8, size=(200, PIXELS)).round(3)
    z = network(parts)(torch.from_numpy(x).float()).detach()
    best = z.topk(2).values
    kept = ((best[:, 0] - best[:, 1]) > 0.3).nonzero().flatten()[:ROWS]
    return {"parts": parts, "x": x[kept].tolist(), "y": z.argmax(1)[kept].tolist()}


def network(parts: dict[str, Any]) -> nn.Module:
    net = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    net.load_state_dict({name: torch.tensor(part) for name, part in parts.items()})
    return nn.Sequential(nn.Flatten(), net).eval()


def foolbox(kind: str, eps: float | None = None, **how: Any) -> Found:
    def call(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox as library

        model = library.PyTorchModel(net, bounds=(0, 1), device="cpu")
        return getattr(library.attacks, kind)(**how)(model, x, y, epsilons=eps)[1]

    return call


def advlib(kind: str, **how: Any) -> Found:
    def call(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with stand_ins():
            library = importlib.import_module("adv_lib.attacks")
        return getattr(library, kind)(net, x, y, **how)

    return call


def torchattacks(kind: str, **how: Any) -> Found:
    def call(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        library = importlib.import_module("torchattacks")
        return getattr(library, kind)(net, **how)(x, y)

    return call


LIBRARIES = {"foolbox": foolbox, "adv-lib": advlib, "torchattacks": torchattacks}
PGD = {"steps": 10, "random_start": False}
APGD = {"loss_function": "ce", "best_loss": True}
# name, library, what is called, its options
CALLS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("fgsm_linf", "foolbox", "LinfFastGradientAttack", {"eps": 0.05}),
    ("pgd_linf", "foolbox", "LinfPGD", PGD | {"eps": 0.05, "abs_stepsize": 0.0125}),
    ("pgd_l2", "foolbox", "L2PGD", PGD | {"eps": 0.2, "abs_stepsize": 0.05}),
    ("apgd_linf", "adv-lib", "apgd", APGD | {"eps": 0.05, "norm": np.inf}),
    ("apgd_l2", "adv-lib", "apgd", APGD | {"eps": 0.2, "norm": 2}),
    ("apgd_l1", "adv-lib", "apgd", APGD | {"eps": 0.6, "norm": 1}),
    ("square_linf", "torchattacks", "Square", {"norm": "Linf", "eps": 0.05, "n_queries": 500}),
    ("fab_linf", "adv-lib", "fab", {"norm": np.inf, "n_iter": 50}),
    ("fab_l2", "adv-lib", "fab", {"norm": 2, "n_iter": 50}),
    ("fab_l1", "adv-lib", "fab", {"norm": 1, "n_iter": 50}),
    ("deepfool_l2", "foolbox", "L2DeepFoolAttack", {"steps": 50}),
    ("deepfool_linf", "foolbox", "LinfDeepFoolAttack", {"steps": 50}),
    ("superdeepfool_l2", "adv-lib", "sdf", {"steps": 100}),
    ("cw_l2", "foolbox", "L2CarliniWagnerAttack", {"binary_search_steps": 9, "steps": 200}),
    ("ead_l1", "foolbox", "EADAttack", {"steps": 200, "decision_rule": "L1"}),
    ("ddn_l2", "adv-lib", "ddn", {"steps": 100, "levels": None}),
    ("fmn_linf", "adv-lib", "fmn", {"norm": np.inf, "steps": 100}),
    ("fmn_l2", "adv-lib", "fmn", {"norm": 2, "steps": 100}),
    ("fmn_l1", "adv-lib", "fmn", {"norm": 1, "steps": 100}),
    ("fmn_l0", "adv-lib", "fmn", {"norm": 0, "steps": 100}),
    ("alma_l2", "adv-lib", "alma", {"distance": "l2", "num_steps": 200}),
    ("pdpgd_l1", "adv-lib", "pdpgd", {"norm": 1, "num_steps": 200}),
    ("sigmazero_l0", "adv-lib", "sigma_zero", {"num_steps": 200}),
    ("boundary_l2", "foolbox", "BoundaryAttack", {"steps": 2000}),
    ("hopskipjump_l2", "foolbox", "HopSkipJumpAttack", {"steps": 20}),
]


def main(names: Sequence[str]) -> None:
    PLACE.mkdir(exist_ok=True)
    if not (PLACE / "network.json").exists():
        (PLACE / "network.json").write_text(json.dumps(draw()) + "\n")
    drawn = json.loads((PLACE / "network.json").read_text())
    for name, library, kind, options in CALLS:
        if names and name not in names:
            continue
        x = torch.tensor(drawn["x"]).view(ROWS, 1, 4, 4)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what Foolbox draws from
        net, y = network(drawn["parts"]), torch.tensor(drawn["y"])
        found = LIBRARIES[library](kind, **options)(net, x, y)
        said = ", ".join(f"{option}={value!r}" for option, value in options.items())
        packages = {p: importlib.metadata.version(p) for p in (library, "torch")}
        origin = {"call": f"{kind}({said})", "versions": packages}
        examples = found.detach().double().flatten(1).numpy().round(7).tolist()
        text = json.dumps({"origin": origin, "examples": examples}, ensure_ascii=False)
        (PLACE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name, library, packages[library])


if __name__ == "__main__":
    main(sys.argv[1:])
