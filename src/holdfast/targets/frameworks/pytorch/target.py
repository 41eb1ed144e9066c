"""PyTorch models as targets, and what other frameworks' models share with them: preprocessing,
layout, head."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast import spec
from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter, chosen
from holdfast.targets.batch import Batch, Batcher, Rows
from holdfast.targets.defences.detectors import Detector, refusal
from holdfast.targets.defences.transforms import Defence
from holdfast.targets.frameworks.pytorch import activation
from holdfast.targets.frameworks.pytorch.module import (
    content_of,
    differentiable,
    frozen,
    half_of,
    is_quantised,
    recurrent,
)
from holdfast.targets.own_preprocessing import Own
from holdfast.targets.preprocess import Normalize, Preprocess, applied, excess
from holdfast.targets.registry import by_trial
from holdfast.targets.target import (
    Access,
    Bounds,
    Cost,
    GradientInfo,
    Identity,
    Pullback,
    Target,
    asking,
    sealed,
)
from holdfast.tasks import Classes, Graded, odds
from holdfast.tasks import parse as parse_task

_READ = (
    "The model ends in a {}; its logits are read before it, which are its log-probabilities up to "
    "a constant, and do not round to 0 and 1."
)
QUANTISED = (
    "The model is quantised: layers that compute in whole numbers have no gradient, so it gives "
    "scores alone. Lend it the gradients of its float version with --surrogate."
)
HALF_PRECISION = (
    "The model computes in {0}: its inputs are float32 and cast inside, its scores are read as "
    "float32. Gradients are "
    "those of a copy in float32 where that gives about the same scores; the model itself judges."
)


class TorchTarget(Target):
    """A torch classifier: a module or any differentiable callable from [n, *shape] to scores.

    A module is copied once, in eval mode and with frozen parameters, so the caller's own is never
    touched; wrap it again after training it further. Float32 modules with wide convolutions run
    channels-last on a CPU, where that is measured faster (benchmarks/results/layout.md); a module
    that cannot (it calls `view`) runs as it is.

    Args:
        model: gives [n, k] logits, or [n] / [n, 1] for a single logit (class 1 when positive). A
            `Adapter` one runs in its own framework.
        bounds: the box of raw inputs: two numbers, or two arrays [*shape].
        shape: of one raw input, without the batch axis; default: learnt from the first inputs.
        preprocess: applied to raw inputs in order, inside the target.
        probabilities: whether the model gives probabilities, of which scores are the logits: read
            before its last softmax or sigmoid where that can be seen, else logarithms. False: what
            it gives is taken as it is. None: what the model itself says; of one that does not,
            `evaluate` finds out.
        batch_size: rows of one pass.
        device: where to run; default: where the parameters are.
        layout: of raw images, `nchw` or `nhwc`; turned where the model wants the other. Default:
            the order of axes in which the model takes them, by its own shape of inputs where it has
            one, else by trial. Images [h, w] gain an axis of one channel, or lose it, where the
            model takes them so; a remark says what was done.
        output: which of several outputs are the scores, by name or place.
        classes: how many there are, for a model that gives labels.
        task: what the head means: `classes`, or `multilabel` or `regression(tolerance=0.1)`, whose
            outputs [n, k] are taken as they are; their truths are [n, k] too.
        further: shapes by name of further inputs, which come in the context of a batch. The model
            then takes flat rows: these in their order, and last the input that may change.
        attacked: which of a model's several inputs that is.
        precision: of gradients: `float32`, or `bfloat16`, which pays on accelerators and costs on
            most CPUs.
        compile: compile what gradients are taken of; pays for large models on accelerators.

    Gradients may come from a faster twin of the model: with its batch norms folded into its
    convolutions, which is always worth it, and as `precision` and `compile` ask. `scores` never do,
    and what the twin calls a success is asked of the model itself.

    Raises:
        InputError: the model cannot be copied, or what it returns is not scores.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        *,
        shape: Sequence[int] | None = None,
        bounds: Bounds | tuple[float, float] = (0.0, 1.0),
        preprocess: Sequence[Preprocess] = (),
        probabilities: bool | None = None,
        batch_size: int = 256,
        device: str | torch.device | None = None,
        layout: str | None = None,
        output: str | int | None = None,
        classes: int | None = None,
        task: str | Graded | None = None,
        further: Mapping[str, tuple[int, ...]] | None = None,
        attacked: int | None = None,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {precision!r}; it is float32 or bfloat16.")
        self.bounds = Bounds.of(bounds)
        self.preprocess = tuple(preprocess)
        self.probabilities, self.said = probabilities, probabilities is not None
        # the activation at the model's end, or that there is none: see `activation`
        self.ending: str | None = None
        self._scripted: activation.Bare | None = None
        self.output, self.classes = output, classes
        self.context, self.attacked = dict(further or {}), attacked
        self.graded = parse_task(task) if isinstance(task, str) else task
        # of one input's outputs, where the task is not one of classes
        self.form: tuple[int, ...] = ()
        self.bound = False  # the model was seen to work on inputs of its shape
        self._asked = layout
        training = isinstance(model, nn.Module) and any(m.training for m in model.modules())
        self.identity = Identity(was_training=training)
        self._take(frozen(model, device) if isinstance(model, nn.Module) else model)
        first = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        where = torch.device(device) if device is not None else _device_of(first)
        double = first is not None and first.dtype == torch.float64
        self.batcher = Batcher(batch_size, where, torch.float64 if double else torch.float32)
        self.half, self.recurrent = half_of(self.model), recurrent(self.model)
        if self.half is not None:
            name = str(self.half).removeprefix("torch.")
            self.identity.remarks += (("half_precision", HALF_PRECISION.format(name)),)
        self.channels_last = False
        self.precision, self.compile = precision, compile
        if shape is not None:
            self.bind(tuple(shape))

    def bind(self, shape: tuple[int, ...]) -> None:
        if self.shape is not None:
            return super().bind(shape)
        super().bind(shape)
        self._settle(shape)
        self._try_channels_last()
        self._make_twin()
        self.bound = True

    def labels(self, x: Rows) -> Tensor:
        if self.access >= Access.SCORES:
            return super().labels(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._ask(self.model, self._before(x)).reshape(len(x)).long()

    def scores(self, x: Rows) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            batch = Batch.of(x)
            return self._forward(batch.with_x(_own(batch.x)))

    def answers(self, x: Rows) -> Tensor:
        def ask(rows: slice) -> Tensor:
            z = chosen(
                self._ask(self.model, self._before(x[rows])),
                None if isinstance(self.model, Adapter) else self.output,
            )
            return z.reshape(rows.stop - rows.start, -1)

        with torch.inference_mode(False), torch.no_grad():
            return torch.cat(list(self.batcher.parts(ask, len(x))))

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        leaf, z = self._traced(x)
        return z.detach(), lambda cotangent: _back(leaf, z, cotangent, again=True)

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        if not isinstance(self.model, Adapter) or self.detectors:
            leaf, z = self._traced(x)
            return z.detach(), _back(leaf, z, cotangent(z.detach()), again=False)
        kept: list[Tensor] = []

        def through_head(raw: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                z = self._head(leaf, len(x))
                kept.append(z.detach())
                return torch.autograd.grad((z * cotangent(z.detach())).sum(), leaf)[0]

        batch = Batch.of(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _own(batch.x).detach().requires_grad_()
            inner = self._before(batch.with_x(leaf))
            with self._guarded(inner):
                _, g = self.model.pull(inner.detach().contiguous(), through_head)
            g = torch.autograd.grad((inner * g.to(inner.dtype)).sum(), leaf)[0]
        return kept[-1], g

    def live(self, model: nn.Module, precision: str = "float32") -> TorchTarget:
        """This target around a module that is trained meanwhile: no copy, no faster twin; its mode
        is the caller's.

        With precision bfloat16 whatever gradients flow through is mixed: convolutions and products
        in bfloat16.
        """
        own = copy.copy(self)
        own.model = own.twin = model
        own._scripted = None
        own.half, own.recurrent = half_of(model), recurrent(model)
        own.gradients, own.precision = GradientInfo(), precision
        return own

    def outputs(self, x: Rows) -> Tensor:
        """Scores [n, k] that gradients flow through, to inputs and parameters alike."""
        with self._mixed():
            return self._forward(x)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.describe()).encode())
        for step in self.preprocess:
            digest.update(step.digest() if isinstance(step, Defence) else b"")
        if isinstance(self.model, nn.Module):
            for part in content_of(self.model):
                digest.update(part)
        elif isinstance(self.model, Adapter):
            digest.update(self.model.digest())
        else:
            digest.update(
                getattr(self.model, "__qualname__", type(self.model).__qualname__).encode()
            )
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        return (
            super().describe()
            | ({"attacked": self.attacked} if self.context else {})
            | ({} if self.output is None else {"output": str(self.output)})
            | {
                "preprocess": [spec.write(step, whole=True) for step in self.preprocess],
                "probabilities": bool(self.probabilities),
                "layout": self.layout,
            }
        )

    def _traced(self, x: Rows) -> tuple[Tensor, Tensor]:
        """Inputs that can be asked for a gradient, and the twin's scores of them."""
        batch = Batch.of(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _own(batch.x).detach().requires_grad_()
            with self._mixed():
                return leaf, self._forward(batch.with_x(leaf), self.twin)

    def images(self, x: Tensor) -> Tensor:
        """Raw inputs, images with their channels first."""
        if self.axis == "added":
            return x[:, None]
        return x.movedim(-1, 1) if self.layout == "nhwc" and x.ndim > 2 else x

    def bare(self, x: Tensor, model: Callable[[Tensor], Any] | None = None) -> Tensor:
        """Scores [n, k] of `images` before which no defence stands; gradients flow through."""
        steps = [step for step in self.preprocess if not isinstance(step, Defence)]
        inner = _apart_from(x, self._inwards(applied(steps, x, self.bounds)))
        return self._head(self._ask(model or self.model, inner), len(x))

    def _mixed(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )

    def _forward(self, x: Rows, model: Callable[[Tensor], Any] | None = None) -> Tensor:
        z = self._head(self._ask(model or self.model, self._before(x)), len(x))
        if self.bound and z.shape[1] != self.task.k:
            raise InputError(
                f"the model gives {z.shape[1]} outputs for {len(x)} inputs, but gave {self.task.k} "
                f"before; the number may not depend on the inputs."
            )
        if not self.detectors:
            return z
        images = self.images(Batch.of(x).x)
        far = excess(self.preprocess, images, self.bounds, lambda u: self.bare(u, model))
        return torch.cat([z, refusal(z, far)], 1)

    def _before(self, rows: Rows) -> Tensor:
        """Raw inputs as the model wants them, in memory that it may write to."""
        batch = Batch.of(rows)
        if self.context:
            return self._flat(batch)
        x = batch.x
        return _apart_from(x, self._inwards(applied(self.preprocess, self.images(x), self.bounds)))

    def _flat(self, batch: Batch) -> Tensor:
        """Rows of several inputs, the one that may change last: [n, features]."""
        missing = [name for name in self.context if name not in batch.context]
        if missing:
            raise InputError(
                f"the model takes several inputs, and {' and '.join(missing)} did not come with x: "
                "give data as ((x, x2, ...), y)."
            )
        return Batch(batch.x, {name: batch.context[name] for name in self.context}).flat()

    def _ask(self, model: Callable[[Tensor], Any], x: Tensor) -> Any:
        """What a model gives for its inputs x [n, ...], which are its own to change."""
        if self.half is not None and model is self.model:
            x = x.to(self.half)
        version = x._version
        layers = self.recurrent if torch.is_grad_enabled() else ()
        with self._guarded(x), differentiable(layers):
            z = self._called(model, x)
        if isinstance(z, Tensor) and z.is_meta:
            raise InputError(
                "the model answers on the device meta, where there are no numbers; load its "
                "weights."
            )
        self.identity.rewrites |= x._version != version or (
            isinstance(model, Adapter) and model.rewrites
        )
        return z

    def _guarded(self, x: Tensor) -> AbstractContextManager[None]:
        """Within, the model is asked about x [n, ...]; what it raises while its kind is found out
        is read by `bind`."""
        return asking(
            f"the model, asked about {len(x)} inputs of shape {tuple(x.shape[1:])},",
            learning=not self.bound,
        )

    def _inwards(self, x: Tensor) -> Tensor:
        """Preprocessed images as the model wants them."""
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.axis == "dropped":
            x = x[:, 0]
        elif self.wants == "nhwc" and x.ndim > 2:
            x = x.movedim(1, -1)
        if (
            isinstance(self.model, Adapter)
            and self.model.shape is not None
            and len(self.model.shape) == 1
        ):
            x = x.flatten(1)
        return x

    @property
    def reads(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.ending not in (activation.SOFTMAX, activation.SIGMOID, activation.LOG_SOFTMAX):
            return False
        if self.single and self.ending == activation.SOFTMAX:  # which is 1 whatever the logit
            return False
        if self.graded is not None:  # whose outputs are judged one by one
            return (
                self.graded.logits
                and self.ending == activation.SIGMOID
                and self.probabilities is not False
            )
        return self.probabilities is not False or self.ending == activation.LOG_SOFTMAX

    def _called(self, model: Callable[[Tensor], Any], x: Tensor) -> Any:
        """What a model gives for preprocessed x, perhaps with the logits before it: see
        `activation`."""
        if not self.reads or isinstance(model, (Adapter, activation.Bare)):
            return model(x)
        if self._scripted is not None:
            return self._scripted(x)
        with activation.Reading():
            return model(x)

    def _logits(self, z: Tensor) -> tuple[Tensor, bool]:
        """A model's output, or the logits before its last activation; and whether it is these."""
        if isinstance(self.model, Adapter) and self.model.ending is not None:
            return (z, True) if self.reads else (activation.applied(self.model.ending, z), False)
        found = activation.before(z) if self.reads else None
        return (z, False) if found is None or found.logits is None else (found.logits, True)

    def _head(self, z: Any, n: int) -> Tensor:
        """A model's output for n inputs as scores [n, k]."""
        # a foreign one has chosen
        z = chosen(z, None if isinstance(self.model, Adapter) else self.output)
        if not isinstance(z, Tensor):
            raise InputError(
                f"the model returns a {type(z).__name__}, but scores must be one tensor [n, "
                f"classes]. Wrap it in a module that returns the logits alone."
            )
        z, logits = self._logits(z)
        chances = bool(self.probabilities) and not logits
        z = z if z.dtype == torch.float64 else z.float()
        z = z[None] if n == 1 and z.ndim == 1 and len(z) > 1 else z  # one row that was squeezed
        if self.graded is not None and z.shape[:1] in ((n,), ()):
            self.form = tuple(z.shape[1:])
            z = z.reshape(n, -1)
            return odds(z) if chances and self.graded.logits else z
        if z.shape in ((n,), (n, 1)) or (z.ndim == 0 and n == 1):  # squeezed to nothing
            z = z.reshape(-1)
            z = odds(z) if chances else z
            return torch.stack([torch.zeros_like(z), z], 1)
        if z.ndim != 2 or len(z) != n:
            raise InputError(_no_scores(tuple(z.shape), n))
        return z.clamp_min(torch.finfo(z.dtype).tiny).log() if chances else z

    def _take(self, model: Callable[[Tensor], Any]) -> None:
        self.model = self.twin = model
        foreign = model if isinstance(model, Adapter) else None
        self.access = Access.GRADIENTS if foreign is None else foreign.access
        quantised = is_quantised(model)
        self.access = Access.SCORES if quantised else self.access
        self.wants = "nchw" if foreign is None else foreign.layout  # of the model's images
        self.axis = ""  # of one channel: "added" to the inputs for the model, or "dropped"
        self.layout = self._asked or self.wants
        self.classes = self.classes or (None if foreign is None else foreign.classes)
        remarks = () if foreign is None else foreign.remarks
        remarks += (("no_gradients", QUANTISED),) if quantised else ()
        self.identity = replace(
            self.identity,
            remarks=remarks + tuple(s.remark for s in self.preprocess if isinstance(s, Defence)),
            class_labels=None if foreign is None else foreign.class_labels,
            versions={} if foreign is None else foreign.versions,
        )
        if foreign is not None and foreign.numbers is not None and self.graded is None:
            raise InputError(foreign.numbers)
        self.detectors = [step for step in self.preprocess if isinstance(step, Detector)]
        self.cost = Cost(1 + sum(step.passes for step in self.detectors))
        if self.detectors and (self.access < Access.SCORES or self.graded is not None):
            raise InputError(
                "a detector's refusal stands beside the scores of classes, and this model gives "
                "none."
            )

    def _settle(self, shape: tuple[int, ...]) -> None:
        """Take the first of `_readings` in which the model takes inputs of this shape; say it where
        it was a choice.

        Raises:
            InputError: there is none; the reason is that of the first.
        """
        given, readings, reason = self.model, self._readings(shape), None
        steps, own = self.preprocess, any(isinstance(step, Own) for step in self.preprocess)
        declared, access = given.shape if isinstance(given, Adapter) else None, self.access
        for reading in readings:
            self.access = access  # an earlier reading may have lowered it
            try:
                with sealed(0):
                    self.layout, self.wants, self.axis = reading
                    if own:
                        self.preprocess = steps
                        self._find_own()
                    before = self._before(self._probe())
                    if declared is not None and tuple(before.shape[1:]) != tuple(declared):
                        continue
                    if not isinstance(given, (nn.Module, Adapter)):
                        self._take(
                            by_trial(given, before, output=self.output, classes=self.classes)
                        )
                        self.layout, self.wants, self.axis = reading
                        if own:
                            self._find_own()
                    self._find_task()
                    self._find_ending()
            except Exception as error:  # noqa: BLE001  # a model may raise anything on what it cannot take
                reason = reason or error
                if self.model is not given:
                    self._take(given)
                continue
            self._remark(shape, reading, readings[0])
            return
        self.shape = None
        if reason is None:
            raise InputError(f"inputs are {shape}, but the model takes {tuple(declared or ())}.")
        raise reason if isinstance(reason, InputError) else _unfit(reason, shape) from reason

    def _readings(self, shape: tuple[int, ...]) -> list[tuple[str, str, str]]:
        """How inputs may lie, and how the model may want them: layout, wants, axis; the likeliest
        first.

        Networks of torch and Keras have a convention, so images that nobody described lie in it. A
        plain function is likeliest given what it takes.
        """
        convention = self.model.layout if isinstance(self.model, Adapter) else "nchw"
        asked = self._asked
        if self.context:  # the model takes flat rows, whatever lies in them
            return [(asked or convention, convention, "")]
        network = (
            isinstance(self.model, nn.Module) or getattr(self.model, "trainable", None) is not None
        )
        declared = self.model.shape if isinstance(self.model, Adapter) else None
        if declared is not None:
            convention = _layout_of(declared) or convention
        if len(shape) == 2:
            layout = asked or convention
            others = [
                (layout, wants, "added") for wants in dict.fromkeys((convention, "nchw", "nhwc"))
            ]
            return [(layout, convention, ""), *others]
        if len(shape) != 3:
            return [(asked or convention, convention, "")]
        first = asked or (convention if network else _layout_of(shape) or convention)
        other = "nchw" if first == "nhwc" else "nhwc"
        pairs = [(first, first), (first, other), (other, first)]
        if network or declared is not None:
            pairs = [(first, convention), (other, convention)]
        dropped = [
            (layout, convention, "dropped")
            for layout, end in (("nchw", 0), ("nhwc", -1))
            if shape[end] == 1
        ]
        return [(*pair, "") for pair in dict.fromkeys(pairs)] + dropped

    def _remark(
        self, shape: tuple[int, ...], taken: tuple[str, str, str], likeliest: tuple[str, str, str]
    ) -> None:
        """Say of a reading that is not what was asked for, or not the likeliest, how the inputs
        were taken."""
        layout, wants, axis = taken
        declared = isinstance(self.model, Adapter) and self.model.shape is not None
        # only one reading fits
        if taken == likeliest or (declared and not axis and not self._asked):
            return
        if axis:
            text = f"Inputs of shape {shape} had an axis of one channel {axis} for the model."
        elif self._asked and layout != likeliest[0]:
            text = (
                f"Inputs of shape {shape} fit the model only as {layout} images, not as "
                f"{likeliest[0]} ones."
            )
        else:
            text = (
                f"Inputs of shape {shape} were taken as {layout} images, and given to the model as "
                f"{wants}."
            )
        self.identity.remarks += (("layout", text),)

    def _find_own(self) -> None:
        """How each step of the user's own is called and differentiated."""
        x, steps, raw = self.images(self._spread()), list(self.preprocess), True
        for i, step in enumerate(steps):
            if isinstance(step, Own):
                steps[i] = step.bound(x, self.bounds, raw=raw)
            raw = raw and not isinstance(step, (Own, Normalize))
            x = applied([steps[i]], x, self.bounds).detach()
        self.preprocess = tuple(steps)
        own = [step for step in steps if isinstance(step, Own)]
        self.identity.remarks = tuple(
            r for r in self.identity.remarks if r[0] != "preprocess"
        ) + tuple(step.remark for step in own)
        if not all(step.differentiable for step in own):
            self.access = min(self.access, Access.SCORES)

    def _spread(self) -> Tensor:
        """Eight inputs at random within the bounds: [8, *shape]."""
        assert self.shape is not None
        unit = torch.rand(
            (8, *self.shape), generator=torch.Generator().manual_seed(0), dtype=self.dtype
        )
        return (self.bounds.low + (self.bounds.high - self.bounds.low) * unit).to(self.device)

    def _find_task(self) -> None:
        if self.access >= Access.SCORES:
            refuses = bool(self.detectors)
            self.task = Classes(self.scores(self._probe()).shape[1] - refuses, refuses)
            return
        if self.classes is None:
            raise InputError(
                "the model gives labels alone, which do not say how many classes there are: give "
                "classes."
            )
        self.labels(self._probe())
        self.task = Classes(self.classes)

    def _find_ending(self) -> None:
        """How the model ends, and whether that says that it gives probabilities."""
        if self.access < Access.SCORES:
            return
        model, says, probe = self.model, None, self._probe()[:1]
        self.ending = self._scripted = None
        if isinstance(model, Adapter):
            out = model(self._before(probe))
            self.ending, says = model.ending, model.probabilities
        elif (scripted := activation.scripted(model)) is not None:
            out = self._ask(model, self._before(probe))
            if activation.gives(
                scripted.kind, scripted(self._before(probe).to(self.half or self.dtype)), out
            ):
                self.ending, self._scripted = scripted.kind, scripted
        else:
            with activation.Reading():
                out = self._ask(model, self._before(probe))
            self.ending = activation.ending(chosen(out, self.output))
        self._head(out, 1)  # one row alone is a batch too
        out = chosen(out, None if isinstance(model, Adapter) else self.output)
        self.single = self.graded is None and out.numel() == 1
        if self.ending is not None:
            says = self.ending in (activation.SOFTMAX, activation.SIGMOID)
        if says is False and self.ending in (None, activation.LINEAR) and _are_shares(out):
            says = None  # a linear layer that adds probabilities up, as of classes in groups
        labels = self.graded is None or self.graded.logits
        if says is not None and labels and not self.said:
            self.probabilities, self.said = says, True
        if self.reads and self.ending != activation.LOG_SOFTMAX:
            self.identity.remarks += (("probabilities", _READ.format(self.ending)),)

    def _probe(self) -> Batch:
        assert self.shape is not None
        middle = (self.bounds.low + self.bounds.high) / 2

        def full(shape: tuple[int, ...]) -> Tensor:
            return torch.full((2, *shape), middle, dtype=self.dtype, device=self.device)

        return Batch(full(self.shape), {name: full(form) for name, form in self.context.items()})

    def _try_channels_last(self) -> None:
        parts = self.model.modules() if isinstance(self.model, nn.Module) else ()
        wide = any(
            isinstance(p, nn.Conv2d) and p.in_channels >= 32 and p.stride == (1, 1) for p in parts
        )
        if not wide or self.device.type != "cpu" or self.dtype != torch.float32:
            return
        assert isinstance(self.model, nn.Module)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.channels_last = True
        try:
            with sealed(0):
                self.scores(self._probe())
        except Exception:  # noqa: BLE001  # whatever the model raises: it then runs as it is
            self.model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            self.channels_last = False

    def _compiled(self, model: Any) -> Callable[[Tensor], Any]:
        """The model compiled, without its last activation where logits are read before that."""
        if not self.reads:
            return torch.compile(model, dynamic=True)
        assert self.ending is not None
        bare = activation.traced(model, self.ending)
        return (
            model
            if bare is None
            else activation.Bare(self.ending, torch.compile(bare, dynamic=True))
        )

    def _make_twin(self) -> None:
        """The twin for gradients, faster or more exact, if it gives what the model gives."""
        self.twin = self.model
        if self.half is not None:
            assert isinstance(self.model, nn.Module)
            # in half precision small gradients are zero
            self.twin = copy.deepcopy(self.model).float()
        elif isinstance(self.model, nn.Module) and any(
            isinstance(m, nn.BatchNorm2d) for m in self.model.modules()
        ):
            with sealed(0):
                self.twin = _folded(self.model)
        if self.compile:
            self.twin = self._compiled(self.twin)
        if isinstance(self.model, Adapter):
            self.gradients = GradientInfo(approximate=self.model.approximate)
            return
        if self.twin is self.model and self.precision == "float32":
            self.gradients = GradientInfo()
            return
        self.gradients = GradientInfo(approximate=True)
        self.recurrent = recurrent(self.model, self.twin)
        loose = 0.1 if self.precision == "bfloat16" or self.half is not None else 1e-3
        try:
            with sealed(0), warnings.catch_warnings():
                # the compiler's
                warnings.filterwarnings("ignore", ".*grad attribute of a Tensor that is not a leaf")
                exact, near = self.scores(self._probe()), self.linearize(self._probe())[0]
            same = bool((near - exact).abs().max() <= loose * exact.abs().max().clamp_min(1))
        except Exception:  # noqa: BLE001  # a model that casts its inputs itself fails in another precision
            same = False
        if not same:
            self.twin, self.precision, self.gradients = self.model, "float32", GradientInfo()


def _own(x: Tensor) -> Tensor:
    """Inputs that a graph may hold, though they were made in inference mode."""
    return x.clone() if x.is_inference() else x


def _apart_from(x: Tensor, inner: Tensor) -> Tensor:
    """Inputs `inner` made from x, copied where they still lie in its memory: a model may write to
    what it is given."""
    shared = inner.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return inner.clone() if shared else inner


def _back(leaf: Tensor, z: Tensor, cotangent: Tensor, *, again: bool) -> Tensor:
    """The gradient on `leaf` of what has this cotangent at z. Only for another one is the graph
    kept: that costs."""
    if not z.requires_grad:  # no path from the input to the scores: the gradient is exactly zero
        return torch.zeros_like(leaf)
    with torch.inference_mode(False), torch.enable_grad():
        # As a product: with grad_outputs, autograd would first import half of torch.fx and sympy.
        pulled = (z * cotangent.to(z.dtype)).sum()
        g = torch.autograd.grad(pulled, leaf, retain_graph=again, allow_unused=True)[0]
    return torch.zeros_like(leaf) if g is None else g


def _folded(model: nn.Module) -> nn.Module:
    """The model with each batch norm inside the convolution before it, where its graph can be
    read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer's own making
            from torch.fx.experimental.optimization import fuse

            return fuse(model, inplace=False)
    except Exception:  # noqa: BLE001  # whatever a trace of a user's code may raise
        return model


def _are_shares(z: Tensor) -> bool:
    """Whether one row of outputs [1, k] could be probabilities of k classes."""
    return z.numel() > 1 and bool((z >= 0).all()) and abs(float(z.double().sum()) - 1) < 1e-3


def _no_scores(shape: tuple[int, ...], n: int) -> str:
    """What an output of this shape for n inputs may be, where scores [n, classes] are expected."""
    said = (
        f"the model gives {list(shape)} for {n} inputs, but a classifier gives scores [n, classes]."
    )
    if shape[:1] != (n,):
        return (
            f"{said} Keep the rows apart to the end of the model: what stands first is their "
            "number."
        )
    if len(shape) == 4:
        return (
            f"{said} It looks like a map of scores for each pixel; segmentation is not supported."
        )
    each = " x ".join(map(str, shape[1:]))
    return (
        f'{said} If these are {each} numbers or labels of one input, say --task "regression(tolerance=0.1)" or '
        "--task multilabel, with a truth for each; if one part of it is the scores, wrap the "
        f"model in a module that returns that part, such as output[:, -1]."
    )


def _unfit(error: Exception, shape: tuple[int, ...]) -> InputError:
    """A model's own error on its first input, as one sentence with the likely cause."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if "scalar types: Long, Int" in first or "embedding" in first.lower():
        return InputError(
            "the model looks its inputs up as whole numbers, as models of text do with tokens; "
            "only inputs that can "
            "change by a little are supported, such as images and tables of numbers."
        )
    cause = "Check the architecture, the preprocessing and the shape of the data."
    return InputError(f"the model fails on inputs of shape {shape}: {first}. {cause}")


def _layout_of(shape: tuple[int, ...]) -> str | None:
    """The layout that a shape of images shows; None where it could be either."""
    if len(shape) != 3 or (shape[0] in (1, 3, 4)) == (shape[-1] in (1, 3, 4)):
        return None
    return "nchw" if shape[0] in (1, 3, 4) else "nhwc"


def _device_of(parameter: Tensor | None) -> torch.device:
    return torch.device("cpu") if parameter is None else parameter.device
