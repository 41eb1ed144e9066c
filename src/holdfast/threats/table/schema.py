"""What the rows of a table may be, and what an adversary may do to them."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import InputError, SpecError, listed, suggest
from holdfast.tensors import as_tensor
from holdfast.threats.table.expressions import Column, Comparison, Condition, Number
from holdfast.threats.table.features import FREE, Feature, is_number
from holdfast.threats.table.infer import coded, infer
from holdfast.threats.table.language import Vocabulary
from holdfast.threats.table.projection import project
from holdfast.threats.table.repair import Mender, Rows

ROUNDING = 2.0**-23  # of a number of float32, relative
HALVINGS = 7  # of the way to a point that has no legal row within eps


@dataclass(frozen=True, eq=False)
class Schema:
    """The columns of a table in their order, the relations between them, and what may change.

    Rows are [n, features], in the units of the table. Norms count changes in the features' own
    units: see `Feature.scale`. `groups` are columns of which exactly one is 1; `derived` says
    features by formulas, which follow what they are made of; `formulas` are names that relations
    share. The language of relations is that of `holdfast.threats.table.language`.

    Raises:
        SpecError: a column, relation or formula that cannot be understood; its text is named.
    """

    features: Sequence[Feature]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    relations: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    formulas: Mapping[str, str] = field(default_factory=dict)
    # how far apart numbers may be that a relation calls equal; None: one part in a million
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not self.features:
            raise SpecError("the schema names no column.")
        names = [feature.name for feature in self.features]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SpecError(f"the schema names the column {twice[0]!r} twice.")
        for name in self.derived:
            if name not in names:
                raise SpecError(f"the derived feature {name!r}: {suggest(name, names)}")
            if name in self.relations:
                raise SpecError(
                    f"the relation {name} has the name of a derived feature, which is a rule "
                    "itself; give the relation another name."
                )
        tolerance = self.tolerance
        if tolerance is not None and not (is_number(tolerance) and 0 <= tolerance < math.inf):
            raise SpecError(
                f"the schema has the tolerance {tolerance!r:.60}; expected a number of at least 0."
            )
        _ = self.mender  # which refuses what cannot be read

    # ------------------------------------------------------------------ the parts

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns, in their order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def unit(self) -> Tensor:
        """What counts as a change of 1 in each feature: [features] float64."""
        return torch.tensor([f.unit for f in self.features], dtype=torch.float64)

    @cached_property
    def box(self) -> tuple[Tensor, Tensor]:
        """The bounds of each feature, [features] float64 each; infinite where it has none."""
        sides = torch.tensor([f.bounds for f in self.features], dtype=torch.float64)
        return sides[:, 0], sides[:, 1]

    @property
    def extent(self) -> tuple[Tensor, Tensor]:
        """The same with 0 in the place of what is infinite."""
        low, high = (side.nan_to_num(0, 0, 0) for side in self.box)
        return low, high

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """The relations and the formulas of derived features, by their names."""
        words = self._words
        found = {
            name: words.condition(text, f"relation {name}") for name, text in self.relations.items()
        }
        formulas = {
            self.names.index(name): words.number(text, f"derived feature {name}")
            for name, text in self.derived.items()
        }
        if circle := formulas.keys() - dict(_ordered(formulas)).keys():
            raise SpecError(
                f"the derived features {listed([self.names[j] for j in sorted(circle)], 5)} cannot "
                "be computed: their formulas go in a circle."
            )
        for j, formula in formulas.items():
            found[self.names[j]] = Comparison(Column(j), "==", formula, self.tolerance)
        return found

    @cached_property
    def rules(self) -> tuple[str, ...]:
        """What each column of `violations` is about."""
        kinds = ("type", "bounds", "mutability")
        own = [f"{self.names[j]}: {kind}" for kind in kinds for j in self._ruled[kind]]
        return (*self.conditions, *(f"{name}: one-hot" for name in self.groups), *own)

    def words(self, rule: str) -> str:
        """A rule with its text, where it has one."""
        text = self.relations.get(rule) or self.derived.get(rule)
        return rule if text is None else f"{rule} ({text})"

    @property
    def determined(self) -> list[int]:
        """The features that follow from others."""
        return [j for j, _ in self.mender.formulas]

    # ------------------------------------------------------------------ rows

    def violations(self, x: Any, start: Any = None) -> Tensor:
        """How far rows x [n, features] are from each of the `rules`: [n, rules] float64; 0: it
        holds.

        Rows are a tensor, an array, or a DataFrame, whose columns are taken by their names.
        `start`: those that they were made of; without them nothing is said of mutability.

        Raises:
            InputError: they have other columns, or a text that is none of a column's values.
            SpecError: they hold what is no number.
        """
        x = self._numbers(x).double()
        start = start if start is None else self._numbers(start)
        columns = x.T.contiguous()
        parts = [c.distance(columns)[:, None] for c in self.conditions.values()]
        for group in self.members.values():
            one = x[:, group]
            parts.append(((one.sum(1) - 1).abs() + (one * (1 - one)).abs().sum(1))[:, None])
        parts += [self._of_types(columns), self._of_bounds(x), self._of_changes(x, start)]
        return torch.cat(parts, 1)

    def legal(self, x: Any, start: Any) -> Tensor:
        """Whether an adversary may make rows x of rows `start`: [n] bool; rows as in
        `violations`."""
        x, start = self._numbers(x), self._numbers(start)
        finite = x.isfinite().all(1)
        return finite & (self.violations(x, start) == 0).all(1)

    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How low and how high each feature of rows x may go: [n, features] float64 each."""
        x = x.double()
        low, high = (side.to(x.device).expand_as(x) for side in self.box)
        fall, rise = self._allowed.to(x.device)
        low, high = torch.maximum(low, x + fall), torch.minimum(high, x + rise)
        return torch.minimum(low, x), torch.maximum(high, x)

    def repaired(
        self, x: Tensor, proposed: Tensor, size: Callable[[Tensor], Tensor], limit: Tensor
    ) -> Tensor:
        """Legal rows that can be made of rows x, near the proposed ones; x where there is none.

        Args:
            proposed: [n, features] float64.
            size: of changes in units [n, features], [n].
            limit: the largest size, [n].
        """
        # many small steps, which an accelerator would only wait for
        if x.device.type != "cpu":
            return self.repaired(x.cpu(), proposed.cpu(), size, limit.cpu()).to(x.device)
        unit, start = self.unit, x.double()
        low, high = self.limits(x)
        found, share = x.clone(), torch.ones_like(limit)
        reached, over = torch.zeros_like(limit), torch.ones_like(limit)
        left = (proposed / unit != start / unit).any(1).nonzero()[:, 0]
        if self.mender.linear:
            parts = [(part / unit)[left].T for part in (start, proposed, low, high)]
            nearest = project(self.mender.linear, *parts)
            proposed = proposed.index_copy(0, left, nearest.T * unit)
        for t in range(HALVINGS + 1):
            if not len(left):
                break
            ahead = start + share[:, None] * (proposed - start)
            own, least, most, point = (
                part[left].T.contiguous() for part in (start, low, high, ahead)
            )
            mended = self.mender.mend(Rows(own, least, most, point, x.dtype)).T.to(x.dtype)
            length = size((mended.double() - start[left]) / unit)
            legal = (length <= limit[left]) & self.legal(mended, x[left])
            found[left[legal]] = mended[legal]
            reached[left[legal]], over[left[~legal]] = share[left[legal]], share[left[~legal]]
            if t == 0:
                left, length = left[~legal], length[~legal]
                guess = 0.98 * limit[left] / length
                share[left] = torch.where(guess < 0.98, guess, 0.5)
            else:
                share[left] = (reached[left] + over[left]) / 2
        return found

    def drafted(
        self, x: Tensor, proposed: Tensor, size: Callable[[Tensor], Tensor], limit: Tensor
    ) -> Tensor:
        """Rows near the proposed ones in which the features that formulas say follow from the
        others, as `repaired` takes and gives them; types, groups and other relations need not
        hold, and where a formula bends the size may be somewhat larger."""
        if x.device.type != "cpu":
            return self.drafted(x.cpu(), proposed.cpu(), size, limit.cpu()).to(x.device)
        start, (low, high) = x.double(), self.limits(x)
        found, share = proposed, torch.ones_like(limit)
        for _ in range(2):  # the second time shorter by as much as the first was too long
            share = share * limit / size((found - start) / self.unit).maximum(limit)
            ahead = start + share[:, None] * (proposed - start)
            own, least, most, point = (part.T.contiguous() for part in (start, low, high, ahead))
            rows = Rows(own, least, most, point, x.dtype)
            self.mender.compute(rows)
            found = rows.found.T
        return found.to(x.dtype)

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """Gradients g on rows x as ones on the features that others do not determine: [n,
        features]."""
        if not self.mender.formulas:
            return g
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().double().T.clone().requires_grad_()
            columns = list(leaf.unbind(0))
            for j, formula in self.mender.formulas:
                columns[j] = formula.value(columns)
            parts = [columns[j] * g.double()[:, j].clone() for j, _ in self.mender.formulas]
            total = torch.stack(parts).sum(0)
            chained = torch.autograd.grad(total.sum(), leaf)[0].T
        found = g.double() + chained.nan_to_num(0, 0, 0)
        found[:, self.determined] = 0
        return found

    # ------------------------------------------------------------------ files

    @staticmethod
    def infer(
        x: Any,
        names: Sequence[str] | None = None,
        texts: Sequence[Sequence[str]] | None = None,
    ) -> Schema:
        """A first draft from rows x [n, features], an array of numbers or a DataFrame: types,
        bounds and one-hot groups, as the rows show them. All may change but texts, and what has one
        value.

        Args:
            names: of the columns; default: those of the DataFrame, or x1, x2, ...
            texts: of each column of numbers the texts that 0, 1, ... mean, where it has some.

        Raises:
            InputError: it is no table of finite numbers and texts.
        """
        try:
            rows, own = coded(x)
        except (TypeError, ValueError) as error:
            raise InputError(f"a schema is inferred from rows of numbers: {error}.") from None
        known = getattr(x, "columns", None) if names is None else names
        if known is None:
            known = [f"x{j + 1}" for j in range(rows.shape[-1])]
        return Schema(*infer(rows, [str(name) for name in known], own if texts is None else texts))

    @staticmethod
    def load(path: Path | str) -> Schema:
        """The schema of a file of TOML.

        Raises:
            SpecError: the file cannot be read, or is none.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise SpecError(f"there is no schema {path}; check its path.") from None
        except IsADirectoryError:
            raise SpecError(f"the schema {path} is a folder; expected a file of TOML.") from None
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise SpecError(f"the schema {path} cannot be read as text: {error}.") from None
        try:
            return Schema.parse(text)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None

    @staticmethod
    def parse(text: str) -> Schema:
        """The schema of a text of TOML.

        Raises:
            SpecError: it is none.
        """
        try:
            said = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise SpecError(f"the schema is no TOML: {error}.") from None
        known = ("features", "groups", "relations", "derived", "formulas", "tolerance")
        for word in said:
            if word not in known:
                raise SpecError(f"the schema has {word!r}; {suggest(word, known)}")
        for word in known[:-1]:
            if not isinstance(said.get(word, {}), Mapping):
                raise SpecError(f"[{word}] of the schema is no table of names.")
        features = [Feature.of(name, one) for name, one in said.pop("features", {}).items()]
        return Schema(features, **said)

    def text(self) -> str:
        """This schema as TOML, which `parse` reads."""
        lines = [] if self.tolerance is None else [f"tolerance = {self.tolerance!r}", ""]
        lines += ["[features]", *map(_line, self.features)]
        for word in ("groups", "formulas", "relations", "derived"):
            part = getattr(self, word)
            if part:
                lines += ["", f"[{word}]"]
                lines += [f"{_quoted(name)} = {_value(value)}" for name, value in part.items()]
        return "\n".join(lines) + "\n"

    def save(self, path: Path | str) -> None:
        """Write a file that `load` reads."""
        Path(path).write_text(self.text(), encoding="utf-8")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its text."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    # ------------------------------------------------------------------ inside

    def _numbers(self, x: Any) -> Tensor:
        """Rows as a tensor [n, features]."""
        if hasattr(x, "columns"):
            known = [str(name) for name in x.columns]
            if missing := [name for name in self.names if name not in known]:
                raise InputError(
                    f"the rows lack the column {missing[0]}; {suggest(missing[0], known)}"
                )
            cells = [x.iloc[:, known.index(feature.name)] for feature in self.features]
            pairs = zip(self.features, cells, strict=True)
            x = np.stack([feature.numbers(column.to_numpy()) for feature, column in pairs], 1)
        x = as_tensor(x, "rows of a table")
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise InputError(
                f"the schema names {len(self.names)} columns, but the rows have the shape "
                f"{tuple(x.shape)}; expected [n, {len(self.names)}]."
            )
        return x

    @cached_property
    def _words(self) -> Vocabulary:
        columns = {name: j for j, name in enumerate(self.names)}
        values = {j: f.names for j, f in enumerate(self.features) if f.names}
        return Vocabulary(columns, values, {}, self.tolerance).with_formulas(self.formulas)

    @cached_property
    def members(self) -> dict[str, list[int]]:
        """The columns of each group."""
        return {name: self._found(name, said) for name, said in self.groups.items()}

    def _found(self, group: str, said: Any) -> list[int]:
        patterns = [said] if isinstance(said, str) else said
        if not isinstance(patterns, (list, tuple)) or not patterns:
            raise SpecError(f"group {group} is {said!r:.60}; expected a list of columns.")
        found: list[int] = []
        for pattern in patterns:
            every = enumerate(self.names)
            matched = [j for j, name in every if fnmatchcase(name, str(pattern))]
            if not matched:
                raise SpecError(f"group {group} names {pattern!r}, which matches no column.")
            found += matched
        if len(set(found)) < len(found):
            raise SpecError(f"group {group} names a column twice; expected each column once.")
        return found

    @cached_property
    def _ruled(self) -> dict[str, list[int]]:
        """The features that have a rule of each kind."""
        every = list(enumerate(self.features))
        return {
            "type": [*self._whole[0], *self._whole[1]],
            "bounds": [j for j, f in every if f.bounds != FREE],
            "mutability": [j for j, f in every if f.mutability != "free" or f.change != FREE],
        }

    @cached_property
    def _allowed(self) -> Tensor:
        """How far each feature may fall and rise: [2, features] float64."""
        both = [f.reach for f in self.features]
        return torch.tensor(both, dtype=torch.float64).T

    def _of_types(self, columns: Tensor) -> Tensor:
        whole, others = self._whole
        found = [(columns[whole] - columns[whole].round()).abs()]
        for j in others:
            levels = columns.new_tensor(self.features[j].levels)[:, None]
            found.append((columns[j] - levels).abs().amin(0)[None])
        return torch.cat(found).T

    @cached_property
    def _whole(self) -> tuple[list[int], list[int]]:
        """The features of whole numbers, and those with a list of values."""
        every = list(enumerate(self.features))
        return [j for j, f in every if f.whole], [j for j, f in every if f.levels]

    def _of_bounds(self, x: Tensor) -> Tensor:
        at = self._ruled["bounds"]
        low, high = (side.to(x.device)[at] for side in self.box)
        return _beyond(x[:, at], low, high)

    def _of_changes(self, x: Tensor, start: Tensor | None) -> Tensor:
        at = self._ruled["mutability"]
        if start is None:
            return x.new_zeros(len(x), len(at))
        fall, rise = self._allowed.to(x.device)[:, at]
        own = start.double()[:, at]
        return _beyond(x[:, at], own + fall, own + rise)

    @cached_property
    def mender(self) -> Mender:
        """What makes rows legal."""
        conditions = self.conditions
        formulas = _ordered(self._formulas(conditions))
        said = {j for j, _ in formulas}
        fixed = {j for j, f in enumerate(self.features) if f.mutability == "fixed"}
        groups = [torch.tensor(group) for group in self.members.values()]
        grouped = {j for group in self.members.values() for j in group}
        low, high = self.extent
        return Mender(
            conditions=list(conditions.values()),
            formulas=formulas,
            whole=torch.tensor([f.whole for f in self.features]),
            levels={
                j: torch.tensor(f.levels, dtype=torch.float64)
                for j, f in enumerate(self.features)
                if f.levels
            },
            groups=groups,
            unit=self.unit,
            still=frozenset(fixed | said | grouped),
            middle=((low + high) / 2)[:, None],
        )

    def _formulas(self, conditions: Mapping[str, Condition]) -> dict[int, Number]:
        """The features that follow from others: those that are derived, and those that are one
        side of an equality."""
        found: dict[int, Number] = {}
        grouped = {j for group in self.members.values() for j in group}
        names = sorted(conditions, key=lambda name: name not in self.derived)
        for one in (conditions[name] for name in names):
            if not isinstance(one, Comparison) or one.kind != "==":
                continue
            for side, other in ((one.left, one.right), (one.right, one.left)):
                j = getattr(side, "index", -1)
                fixed = j < 0 or self.features[j].mutability == "fixed" or j in grouped
                if not fixed and j not in found and j not in other.used:
                    found[j] = other
                    break
        return found


def _ordered(formulas: dict[int, Number]) -> list[tuple[int, Number]]:
    """Formulas in an order in which each needs only earlier ones; those in a circle left out."""
    left, found = dict(formulas), list[tuple[int, Number]]()
    while left:
        ready = [j for j, formula in left.items() if not formula.used & left.keys()]
        if not ready:
            break
        found += [(j, left.pop(j)) for j in ready]
    return found


def _beyond(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far numbers are outside of bounds, but for what float32 rounds."""
    slack = ROUNDING * torch.maximum(low.abs().nan_to_num(0, 0, 0), x.abs())
    over = ROUNDING * torch.maximum(high.abs().nan_to_num(0, 0, 0), x.abs())
    out = torch.maximum(low - slack - x, x - high - over)
    return torch.where(out > 0, torch.maximum(low - x, x - high), 0)


def _line(feature: Feature) -> str:
    """A feature as a line of TOML."""
    parts = [f"type = {_value(feature.type)}"]
    if feature.mutability != "free":
        parts.append(f"mutability = {_value(feature.mutability)}")
    if feature.bounds != FREE:
        parts.append(f"bounds = {_value(feature.bounds)}")
    if feature.change != FREE:
        parts.append(f"change = {_value(feature.change)}")
    if feature.scale is not None:
        parts.append(f"scale = {_value(feature.scale)}")
    if feature.values:
        parts.append(f"values = {_value(feature.values)}")
    return f"{_quoted(feature.name)} = {{ {', '.join(parts)} }}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)


def _quoted(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _string(name)


def _string(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    made = "".join(escapes.get(c, c) for c in text)
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in made) + '"'
