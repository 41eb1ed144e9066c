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
from holdfast.data.columns import Column
from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter, chosen, said_by, versions_of
from holdfast.targets.batch import Batch, Batcher, Rows
from holdfast.targets.defences.detectors import Detector, refusal
from holdfast.targets.defences.transforms import Defence
from holdfast.targets.frameworks.pytorch import activation
from holdfast.targets.frameworks.pytorch.gradients import apart_from, back, kept
from holdfast.targets.frameworks.pytorch.layouts import Reading, readings, remark
from holdfast.targets.frameworks.pytorch.module import (
    content_of,
    differentiable,
    first_parameter,
    folded,
    frozen,
    half_of,
    is_quantised,
    modules_of,
    recurrent,
)
from holdfast.targets.frameworks.pytorch.network import Network, check_answers
from holdfast.targets.frameworks.pytorch.outputs import (
    are_shares,
    is_one,
    no_scores,
    parts_of,
    unfit,
)
from holdfast.targets.head import LINEAR, LOG_SOFTMAX, SIGMOID, SOFTMAX, Head, shifted
from holdfast.targets.own_preprocessing import Own
from holdfast.targets.preprocess import Normalize, Preprocess, applied, excess
from holdfast.targets.registry import adapted_by_trial
from holdfast.targets.target import (
    Access,
    Bounds,
    Cost,
    GradientInfo,
    Identity,
    Inputs,
    Pullback,
    Target,
    asking,
    copied,
    sealed,
)
from holdfast.tasks import Classes, Form, TaskWithTruth, odds, side_by_side
from holdfast.tasks import parse as parse_task
from holdfast.tensors import detached

PASS = 2**30  # bytes that the rows of one pass keep for their gradients, on a CPU

_READ = (
    "The model ends in a {}; its logits are read before it, which are its log-probabilities up to "
    "a constant, and do not round to 0 and 1."
)
QUANTISED = (
    "The model is quantised: layers that compute in whole numbers have no gradient, so it gives "
    "scores alone. Attack it by the gradients of its float version with --surrogate."
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
        batch_size: rows of one pass; on a CPU fewer, where they would keep more than 1 GiB for
            their gradients.
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
        task: str | TaskWithTruth | None = None,
        further: Mapping[str, tuple[int, ...]] | None = None,
        attacked: int | None = None,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {precision!r}; it is float32 or bfloat16.")
        self.bounds = Bounds.of(bounds)
        self.preprocess = tuple(preprocess)
        truth_task = parse_task(task) if isinstance(task, str) else task
        self.head = Head(probabilities, said=probabilities is not None, truth_task=truth_task)
        self._scripted: activation.Bare | None = None
        self.output, self.classes = output, classes
        self.inputs, self.attacked = Inputs(context=dict(further or {})), attacked
        self.bound = False  # the model was seen to work on inputs of its shape
        self._asked = layout
        self.identity = Identity(was_training=any(m.training for m in modules_of(model)))
        if isinstance(model, nn.Module):
            model = frozen(model, device)
        self._take(model)
        first = first_parameter(self.model)
        if device is None:
            device = first.device
        self.batcher = Batcher(batch_size, torch.device(device))
        if first.dtype == torch.float64:
            self.batcher.dtype = torch.float64
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
        if self.head.truth_task is not None:
            self._find_sides()
        self._try_channels_last()
        self._make_twin()
        self._limit_pass()
        self.bound = True

    def of_table(self, columns: Sequence[Column]) -> Target:
        if not isinstance(self.model, Adapter):
            return super().of_table(columns)
        own = copied(self)
        own.model = own.twin = self.model.of_table(columns)
        return own

    def labels(self, x: Rows) -> Tensor:
        if self.access >= Access.SCORES:
            return super().labels(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._ask(self.model, self._before(x)).reshape(len(x)).long()

    def scores(self, x: Rows) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            batch = Batch.of(x)
            return self._forward(batch.with_x(detached(batch.x)))

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        leaf, z = self._traced(x)
        return z.detach(), lambda cotangent: back(leaf, z, cotangent, again=True)

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        if not isinstance(self.model, Adapter) or self.detectors:
            leaf, z = self._traced(x)
            return z.detach(), back(leaf, z, cotangent(z.detach()), again=False)
        kept: list[Tensor] = []

        def through_head(raw: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                z = self._scored(leaf, len(x))
                kept.append(z.detach())
                return torch.autograd.grad((z * cotangent(z.detach())).sum(), leaf)[0]

        batch = Batch.of(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = detached(batch.x).detach().requires_grad_()
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

    def through(self, x: Rows, ask: Callable[[Any, Tensor], Any]) -> Any:
        """What a function gives of the model and of raw inputs as it takes them, after the
        preprocessing; gradients flow through, as through `outputs`."""
        with self._mixed():
            return ask(self.model, self._before(x))

    def network(self) -> nn.Module:
        network = Network(self)
        if isinstance(self.model, Adapter):
            check_answers(network, self)
        return network

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.describe()).encode())
        for step in self.preprocess:
            if isinstance(step, Defence):
                digest.update(step.digest())
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
            | ({"attacked": self.attacked} if self.inputs.context else {})
            | ({} if self.output is None else {"output": str(self.output)})
            | {
                "preprocess": [spec.write(step, whole=True) for step in self.preprocess],
                "probabilities": bool(self.head.probabilities),
                "layout": self.inputs.layout,
            }
        )

    def _traced(self, x: Rows) -> tuple[Tensor, Tensor]:
        """Inputs that can be asked for a gradient, and the twin's scores of them."""
        batch = Batch.of(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = detached(batch.x).detach().requires_grad_()
            with self._mixed():
                return leaf, self._forward(batch.with_x(leaf), self.twin)

    def images(self, x: Tensor) -> Tensor:
        """Raw inputs, images with their channels first."""
        if self.axis == "added":
            return x[:, None]
        return x.movedim(-1, 1) if self.inputs.layout == "nhwc" and x.ndim > 2 else x

    def bare(self, x: Tensor, model: Callable[[Tensor], Any] | None = None) -> Tensor:
        """Scores [n, k] of `images` that pass no defence; gradients flow through."""
        steps = [step for step in self.preprocess if not isinstance(step, Defence)]
        inner = apart_from(x, self._inwards(applied(steps, x, self.bounds)))
        return self._scored(self._ask(model or self.model, inner), len(x))

    def _mixed(self) -> torch.autocast:
        return torch.autocast(
            self.batcher.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )

    def _forward(self, x: Rows, model: Callable[[Tensor], Any] | None = None) -> Tensor:
        z = self._scored(self._ask(model or self.model, self._before(x)), len(x))
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
        if self.inputs.context:
            return self._flat(batch)
        x = batch.x
        return apart_from(x, self._inwards(applied(self.preprocess, self.images(x), self.bounds)))

    def _flat(self, batch: Batch) -> Tensor:
        """Rows of several inputs, the one that may change last: [n, features]."""
        for name, shape in self.inputs.context.items():
            given = batch.context.get(name)
            if given is None:
                raise InputError(
                    f"the model takes several inputs, and {name} did not come with x: give data as "
                    "((x, x2, ...), y)."
                )
            if tuple(given.shape[1:]) != (shape or (1,)):
                raise InputError(
                    f"{name} is {tuple(given.shape[1:])} a row, but the model takes {shape}."
                )
        return Batch(batch.x, {name: batch.context[name] for name in self.inputs.context}).flat()

    def _ask(self, model: Callable[[Tensor], Any], x: Tensor) -> Any:
        """What a model gives for its inputs x [n, ...], which are its own to change."""
        if self.half is not None and model is self.model:
            x = x.to(self.half)
        version = x._version
        with self._guarded(x), differentiable(self.recurrent):
            z = self._called(model, x)
        if isinstance(z, Tensor) and z.is_meta:
            raise InputError(
                "the model answers on the device meta, where there are no numbers; load its "
                "weights."
            )
        self.identity.rewrites |= x._version != version or said_by(model).rewrites
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
        if len(said_by(self.model).shape or ()) == 1:
            x = x.flatten(1)
        return x

    def _called(self, model: Callable[[Tensor], Any], x: Tensor) -> Any:
        """What a model gives for preprocessed x, perhaps with the logits before it: see
        `activation`."""
        if not self.head.reads or isinstance(model, (Adapter, activation.Bare)):
            return model(x)
        if self._scripted is not None:
            return self._scripted(x)
        with activation.Reading():
            return model(x)

    def _logits(self, z: Tensor) -> tuple[Tensor, bool]:
        """A model's output, or the logits before its last activation; and whether it is these."""
        if isinstance(self.model, Adapter) and self.model.ending is not None:
            if self.head.reads:
                return z, True
            return activation.applied(self.model.ending, z), False
        if not self.head.reads:
            return z, False
        logits = activation.logits_of(z)
        return logits, logits is not z

    def _chosen(self, z: Any, n: int) -> Any:
        """The scores among a model's outputs for n inputs, an adapter has chosen; or, where the
        task takes several, these side by side."""
        task = self.head.truth_task
        if task is not None and task.structured and self.output is None and not is_one(z):
            z, form = side_by_side(task.pick(parts_of(z, n)))
            return self._formed(z, form)
        if isinstance(self.model, Adapter):
            return chosen(z, None)
        return chosen(z, self.output)

    def _scored(self, z: Any, n: int) -> Tensor:
        """A model's output for n inputs as scores [n, k]."""
        z = self._read(z, n)
        return shifted(z, self.head.odds) if self.head.odds else z

    def _read(self, z: Any, n: int) -> Tensor:
        """The same as the model means them, whatever the threshold."""
        one, z = is_one(z), self._chosen(z, n)
        if not isinstance(z, Tensor):
            raise InputError(
                f"the model returns a {type(z).__name__}, but scores must be one tensor [n, "
                f"classes]. Wrap it in a module that returns the logits alone."
            )
        z, logits = self._logits(z)
        chances = bool(self.head.probabilities) and not logits
        if z.dtype != torch.float64:
            z = z.float()
        if n == 1 and z.ndim == 1 and len(z) > 1:  # one row that was squeezed
            z = z[None]
        if self.head.truth_task is not None and z.shape[:1] in ((n,), ()):
            form, z = Form((("", tuple(z.shape[1:])),)), z.reshape(n, -1)
            if one:  # else `_chosen` has noted it
                z = self._formed(z, said_by(self.model).form or form)
            return odds(z) if chances and self.head.truth_task.logits else z
        if z.shape in ((n,), (n, 1)) or (z.ndim == 0 and n == 1):  # squeezed to nothing
            z = z.reshape(-1)
            if chances:
                z = odds(z)
            return torch.stack([torch.zeros_like(z), z], 1)
        if z.ndim != 2 or len(z) != n:
            raise InputError(no_scores(tuple(z.shape), n))
        return z.clamp_min(torch.finfo(z.dtype).tiny).log() if chances else z

    def _take(self, model: Callable[[Tensor], Any]) -> None:
        task = self.head.truth_task
        if isinstance(model, Adapter) and task is not None and task.structured:
            model = model.whole()
        self.model = self.twin = model
        said = said_by(model)
        self.access, remarks = said.access, said.remarks
        if is_quantised(model):
            self.access, remarks = Access.SCORES, (("no_gradients", QUANTISED),)
        self.wants = said.layout  # of the model's images
        self.axis = ""  # of one channel: "added" to the inputs for the model, or "dropped"
        self.inputs = replace(self.inputs, layout=self._asked or self.wants)
        self.classes = self.classes or said.classes
        self.identity = replace(
            self.identity,
            remarks=remarks + tuple(s.remark for s in self.preprocess if isinstance(s, Defence)),
            class_labels=said.class_labels,
            versions={},
        )
        if isinstance(model, Adapter):
            self.identity.versions = versions_of(*model.libraries)
        if said.numbers is not None and self.head.truth_task is None:
            raise InputError(said.numbers)
        self.detectors = [step for step in self.preprocess if isinstance(step, Detector)]
        self.cost = Cost(1 + sum(step.passes for step in self.detectors))
        if self.detectors and (self.access < Access.SCORES or self.head.truth_task is not None):
            raise InputError(
                "a detector's refusal is one more score next to the scores of classes, and "
                "this model gives none."
            )

    def _settle(self, shape: tuple[int, ...]) -> None:
        """Take the first of `readings` in which the model takes inputs of this shape; say it where
        it was a choice.

        Raises:
            InputError: there is none; the reason is that of the first.
        """
        given, reason = self.model, None
        found = readings(given, shape, self._asked, flat=bool(self.inputs.context))
        steps, own = self.preprocess, any(isinstance(step, Own) for step in self.preprocess)
        declared, access = said_by(given).shape, self.access
        for reading in found:
            self.access = access  # an earlier reading may have lowered it
            try:
                with sealed(0):
                    self._read_as(reading)
                    if own:
                        self.preprocess = steps
                        self._find_own()
                    before = self._before(self._probe())
                    if declared is not None and tuple(before.shape[1:]) != tuple(declared):
                        continue
                    if not isinstance(given, (nn.Module, Adapter)):
                        self._take(
                            adapted_by_trial(
                                given, before, output=self.output, classes=self.classes
                            )
                        )
                        self._read_as(reading)
                        if own:
                            self._find_own()
                    self._find_task()
                    self._find_ending()
            except Exception as error:  # noqa: BLE001  # a model may raise anything
                reason = reason or error
                if self.model is not given:
                    self._take(given)
                continue
            text = remark(self.model, shape, self._asked, reading, found[0])
            if text is not None:
                self.identity.remarks += (("layout", text),)
            return
        self.shape = None
        if reason is None:
            raise InputError(f"inputs are {shape}, but the model takes {tuple(declared or ())}.")
        raise unfit(reason, shape) from reason

    def _read_as(self, reading: Reading) -> None:
        layout, self.wants, self.axis = reading
        self.inputs = replace(self.inputs, layout=layout)

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
            (8, *self.shape), generator=torch.Generator().manual_seed(0), dtype=self.batcher.dtype
        )
        return (self.bounds.low + (self.bounds.high - self.bounds.low) * unit).to(
            self.batcher.device
        )

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
        ending = self._scripted = None
        self.head = replace(self.head, ending=None)
        if isinstance(model, Adapter):
            out = model(self._before(probe))
            ending, says = model.ending, model.probabilities
        elif (scripted := activation.scripted(model)) is not None:
            out = self._ask(model, self._before(probe))
            if activation.gives(
                scripted.kind,
                scripted(self._before(probe).to(self.half or self.batcher.dtype)),
                out,
            ):
                ending, self._scripted = scripted.kind, scripted
        else:
            with activation.Reading():
                out = self._ask(model, self._before(probe))
            ending = activation.ending(self._chosen(out, 1))
        self.head = replace(self.head, ending=ending)
        self._scored(out, 1)  # one row alone is a batch too
        out = self._chosen(out, 1)
        truth_task = self.head.truth_task
        self.head = replace(self.head, single=truth_task is None and out.numel() == 1)
        if ending is not None:
            says = ending in (SOFTMAX, SIGMOID)
        if says is False and ending in (None, LINEAR) and are_shares(out):
            says = None  # a linear layer that adds probabilities up, as of classes in groups
        labels = truth_task is None or truth_task.logits
        if says is not None and labels and not self.head.said:
            self.head = replace(self.head, probabilities=says, said=True)
        if self.head.reads and ending != LOG_SOFTMAX:
            self.identity.remarks += (("probabilities", _READ.format(ending)),)

    def _formed(self, z: Tensor, form: Form) -> Tensor:
        """Outputs z [n, k], of which the form is noted while it is found out."""
        if not self.bound:
            self.form = replace(form, image=self.form.image, seen=self.form.seen)
        return z

    def _find_sides(self) -> None:
        """Of images, the height and width as they come in and as the model sees them."""
        x = self.images(self._probe().x[:1])
        if x.ndim == 4 and not self.inputs.context:
            seen = applied(self.preprocess, x, self.bounds).shape[2:]
            self.form = replace(self.form, image=tuple(x.shape[2:]), seen=tuple(seen))

    def _probe(self) -> Batch:
        assert self.shape is not None
        middle = (self.bounds.low + self.bounds.high) / 2

        def full(shape: tuple[int, ...]) -> Tensor:
            return torch.full(
                (2, *shape), middle, dtype=self.batcher.dtype, device=self.batcher.device
            )

        return Batch(
            full(self.shape), {name: full(form) for name, form in self.inputs.context.items()}
        )

    def _try_channels_last(self) -> None:
        wide = any(
            isinstance(m, nn.Conv2d) and m.in_channels >= 32 and m.stride == (1, 1)
            for m in modules_of(self.model)
        )
        if not wide or self.batcher.device.type != "cpu" or self.batcher.dtype != torch.float32:
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

    def _limit_pass(self) -> None:
        """Fewer rows a pass, where those asked for would keep more than `PASS` bytes for their
        gradients."""
        if self.batcher.device.type != "cpu" or self.access < Access.GRADIENTS:
            return  # an accelerator says that memory is short, and is then asked for less
        probe = self._probe()
        try:
            with sealed(0):
                one, two = (kept(lambda n=n: self._traced(probe[:n])) for n in (1, 2))
        except Exception:  # noqa: BLE001  # whatever it raises, the first gradient will
            return
        self.batcher.size = max(1, min(self.batcher.size, PASS // max(1, two - one)))

    def _compiled(self, model: Any) -> Callable[[Tensor], Any]:
        """The model compiled, without its last activation where logits are read before that."""
        if not self.head.reads:
            return torch.compile(model, dynamic=True)
        assert self.head.ending is not None
        bare = activation.traced(model, self.head.ending)
        return (
            model
            if bare is None
            else activation.Bare(self.head.ending, torch.compile(bare, dynamic=True))
        )

    def _make_twin(self) -> None:
        """The twin for gradients, faster or more exact, if it gives what the model gives."""
        self.twin = self.model
        if self.half is not None:
            assert isinstance(self.model, nn.Module)
            # in half precision small gradients are zero
            self.twin = copy.deepcopy(self.model).float()
        elif any(isinstance(m, nn.BatchNorm2d) for m in modules_of(self.model)):
            assert isinstance(self.model, nn.Module)
            with sealed(0):
                self.twin = folded(self.model)
        if self.compile:
            self.twin = self._compiled(self.twin)
        own = self.twin is self.model and self.precision == "float32"
        if own or isinstance(self.model, Adapter):
            self.gradients = GradientInfo(approximate=said_by(self.model).approximate)
            return
        self.gradients = GradientInfo(approximate=True)
        self.recurrent = recurrent(self.model, self.twin)
        loose = 0.1 if self.precision == "bfloat16" or self.half is not None else 1e-3
        try:
            with sealed(0), warnings.catch_warnings():
                # the compiler's
                warnings.filterwarnings("ignore", ".*grad attribute of a Tensor that is not a leaf")
                exact, linearized = self.scores(self._probe()), self.linearize(self._probe())[0]
            same = bool((linearized - exact).abs().max() <= loose * exact.abs().max().clamp_min(1))
        except Exception:  # noqa: BLE001  # as of a model that casts its inputs itself
            same = False
        if not same:
            self.twin, self.precision, self.gradients = self.model, "float32", GradientInfo()
