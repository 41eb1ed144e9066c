"""Plants known defects into a copy of the source, one at a time, and asks the laws to find each
(make test-mutants).

The defects are those that other tools have shipped. Prints which law caught which; exits with 1
where a defect survives, or where what "caught" it fails without the defect too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The quickest laws first, then the most general; every file of laws runs, until one test fails.
FIRST = "losses norms geometry apgd budgets success optimum invariance rows".split()


@dataclass(frozen=True)
class Defect:
    name: str
    file: str  # under src/holdfast
    changes: tuple[tuple[str, str], ...]  # text that is there exactly once, and what replaces it


DEFECTS = [
    Defect(
        "wrong projection: L2 rescales, then clips to the box",
        "norms.py",
        (
            (
                "return (d * wide(torch.where(legal, 1, s), d)).clamp_(lo, hi)",
                "return (d / wide(self.size(d), d) * eps).clamp(lo, hi)",
            ),
        ),
    ),
    Defect(
        "sign of the margin loss flipped",
        "losses.py",
        (("return other - _at(z, y)", "return _at(z, y) - other"),),
    ),
    Defect(
        "steepest normalises over the whole batch",
        "norms.py",
        (
            (
                "length = wide(g.flatten(1).square().sum(1).sqrt(), g)",
                "length = g.square().sum().sqrt()",
            ),
        ),
    ),
    Defect(
        "APGD's best loss is the same memory as the one noted at the checkpoint",
        "attacks/shared/checkpoints.py",
        (
            (
                "best_value=torch.where(up, value, self.best_value),",
                "best_value=self.best_value.copy_(torch.where(up, value, self.best_value)),",
            ),
        ),
    ),
    Defect(
        "the last iterate is never judged",
        "attacks/attack.py",
        (("if d is not self._asked:", "if False:"),),
    ),
    Defect(
        "the true class is masked by a product with 0",
        "losses.py",
        (
            (
                "return z.scatter(1, c[:, None], -torch.inf)",
                "return z * torch.ones_like(z).scatter(1, c[:, None], 0)",
            ),
        ),
    ),
    Defect(
        "pixels exactly at the bounds never move",
        "attacks/problem.py",
        (
            (
                "self.lo, self.hi = self._masked(low - x), self._masked(high - x)\n",
                "self.lo, self.hi = self._masked(low - x), self._masked(high - x)\n"
                "        inner = (self.lo < 0) & (self.hi > 0)\n"
                "        self.lo, self.hi = self.lo * inner, self.hi * inner\n",
            ),
        ),
    ),
    Defect(
        "a floor of 1e-12 under the squared norm of a gradient",
        "norms.py",
        (
            ("        g = scaled(g)\n        length", "        length"),
            (
                "return g / torch.where(length > 0, length, 1)",
                "return g / (length.square() + 1e-12).sqrt()",
            ),
        ),
    ),
    Defect(
        "a query that succeeds is not charged",
        "attacks/counts.py",
        (
            (
                "result.charge(at, queries=count,",
                "result.charge(at, queries=count * ~hit if isinstance(count, int) else count,",
            ),
        ),
    ),
    Defect(
        "the size is that of the image, not of the perturbation",
        "attacks/counts.py",
        (("self.norm.size(found.double() - start.double())", "self.norm.size(found.double())"),),
    ),
    Defect(
        "coefficients of the branch that came last are used for all where a network forks",
        "bounds/propagate.py",
        (
            (
                "held[i] = held[i] + part if i in held else part",
                "held[i] = part",
            ),
        ),
    ),
    Defect(
        "coefficients are subtracted where a network forks",
        "bounds/propagate.py",
        (("held[i] + part if i in", "held[i] - part if i in"),),
    ),
    Defect(
        "a bound that is no number is a proof",
        "bounds/margins.py",
        (
            (
                "(lower.isfinite() & least.isfinite() & (lower > least))",
                "~(lower <= least)",
            ),
            ("shown.all(1) & lower.isfinite().any(1)", "shown.all(1)"),
        ),
    ),
    Defect(
        "the upper line of ReLU has the slope of the lower one",
        "bounds/relaxations.py",
        (("torch.where(convex, chord, touch)", "touch"),),
    ),
    Defect(
        "bounds forget the box",
        "norms.py",
        (("return _over_box(g, *self.hull(eps, lo, hi))", "return -eps.flatten() * self.dual(g)"),),
    ),
    Defect(
        "bounds are computed in float32",
        "bounds/propagate.py",
        (
            (
                "        return slope, torch.stack([total, total - off])",
                "        return slope, torch.stack([total, total - off]).float().double()",
            ),
        ),
    ),
    Defect(
        "slopes of alpha-CROWN leave their limits",
        "bounds/alpha.py",
        (
            (
                "values[key] = torch.minimum(torch.maximum(ahead, least), most)",
                "values[key] = ahead.clamp(-1, 2)",
            ),
        ),
    ),
    Defect(
        "the rounding of float32 is left out of a certificate",
        "bounds/margins.py",
        (("return _above(self.lower, self.rounding)", "return self.proved"),),
    ),
]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="holdfast-mutants-") as folder:
        planted = [plant(defect, Path(folder) / str(i)) for i, defect in enumerate(DEFECTS)]
        unchanged = plant(None, Path(folder) / "unchanged")
        folders = ("laws", "attacks", "certification")
        found = [path for name in folders for path in ROOT.glob(f"tests/{name}/test_*.py")]
        places = {path.stem.removeprefix("test_"): str(path) for path in sorted(found)}
        files = [places.pop(name) for name in FIRST] + list(places.values())
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            caught = list(pool.map(lambda copy: failure(copy, files), planted))
        control = failure(unchanged, sorted({test for test in caught if test}))
    width = max(len(defect.name) for defect in DEFECTS)
    for defect, test in zip(DEFECTS, caught, strict=True):
        print(f"{defect.name:{width}}  {test or 'SURVIVED'}")
    if control:
        print(f"\nwithout any defect this fails too: {control}")
    survived = caught.count(None)
    print(f"\n{len(DEFECTS) - survived} of {len(DEFECTS)} defects caught")
    return 1 if survived or control else 0


def plant(defect: Defect | None, folder: Path) -> Path:
    """A copy of the package, with the defect in it."""
    shutil.copytree(
        ROOT / "src" / "holdfast", folder / "holdfast", ignore=shutil.ignore_patterns("__pycache__")
    )
    if defect is not None:
        file = folder / "holdfast" / defect.file
        text = file.read_text()
        for old, new in defect.changes:
            if text.count(old) != 1:
                raise SystemExit(
                    f"cannot plant {defect.name!r}: {old!r} is there {text.count(old)} times in "
                    f"{defect.file}"
                )
            text = text.replace(old, new)
        file.write_text(text)
    return folder


def failure(copy: Path, tests: list[str]) -> str | None:
    """The first test that fails on a copy of the package; None where all pass."""
    env = os.environ | {
        "PYTHONPATH": str(copy),
        "OMP_NUM_THREADS": "1",
        "PYTHONPYCACHEPREFIX": str(copy.parent / "pyc"),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    where = run(["-c", "import holdfast; print(holdfast.__file__)"], env).stdout
    if not where.startswith(str(copy)):
        raise SystemExit(f"the copy in {copy} is not the one imported: {where}")
    # A known defect (xfail) that another defect hides counts for nothing.
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "xfail_strict=false",
        "--tb=no",
        "--no-header",
    ]
    done = run(["-m", "pytest", *options, *tests], env)
    if done.returncode == 0:
        return None
    found = re.search(r"^FAILED (\S+?::.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:
        raise SystemExit(
            f"pytest ended with {done.returncode} on "
            f"{copy}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        )
    return found.group(1)


def run(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    raise SystemExit(main())
