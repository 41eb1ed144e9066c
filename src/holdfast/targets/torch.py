"""PyTorch models as targets, and what other frameworks' models share with them: preprocessing, layout, head."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast import spec
from holdfast.errors import InputError
from holdfast.targets import activation
from holdfast.targets.adopt import by_trial
from holdfast.targets.defences import Defence
from holdfast.targets.detect import Detector, refusal
from holdfast.targets.foreign import Foreign, chosen
from holdfast.targets.preprocess import Preprocess, applied, excess
from holdfast.targets.target import Access, Bounds, Pullback, Target, sealed
from holdfast.tasks import Classes, Graded, odds
from holdfast.tasks import parse as parse_task

_READ = (
    "The model ends in a {}; its logits are read before it, which are its log-probabilities up to a constant, and "
    "do not round to 0 and 1."
)


class TorchTarget(Target):
    """A torch classifier: a module or any differentiable callable from [n, *shape] to scores.

    A module is copied once, in eval mode and with frozen parameters, so the caller's own is never touched; wrap it
    again after training it further. Float32 modules with wide convolutions run channels-last on a CPU, where that
    is measured faster (benchmarks/results/layout.md); a module that cannot (it calls `view`) runs as it is.

    Args:
        model: gives [n, k] logits, or [n] / [n, 1] for a single logit (class 1 when positive). A `Foreign` one runs
            in its own framework.
        bounds: the box of raw inputs: two numbers, or two arrays [*shape].
        shape: of one raw input, without the batch axis; default: learnt from the first inputs.
        preprocess: applied to raw inputs in order, inside the target.
        probabilities: whether the model gives probabilities, of which scores are the logits: read before its last
            softmax or sigmoid where that can be seen, else logarithms. False: what it gives is taken as it is. None:
            what the model itself says; of one that does not, `evaluate` finds out.
        batch_size: rows of one pass.
        device: where to run; default: where the parameters are.
        layout: of raw images, `nchw` or `nhwc`; turned where the model wants the other. Default: what the model
            wants, or what its own shape of inputs says.
        output: which of several outputs are the scores, by name or place.
        classes: how many there are, for a model that gives labels.
        task: what the head means: `classes`, or `multilabel` or `regression(tolerance=0.1)`, whose outputs [n, k] are
            taken as they are; their truths are [n, k] too.
        free: shape of the last features of flat inputs, where they alone may change; bounds are then of these.
        attacked: which of a model's several inputs that is.
        precision: of gradients: `float32`, or `bfloat16`, which pays on accelerators and costs on most CPUs.
        compile: compile what gradients are taken of; pays for large models on accelerators.

    Gradients may come from a faster twin of the model: with its batch norms folded into its convolutions, which is
    always worth it, and as `precision` and `compile` ask. `scores` never do, and what the twin calls a success is
    asked of the model itself.

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
        free: tuple[int, ...] | None = None,
        attacked: int | None = None,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {precision!r}; it is float32 or bfloat16.")
        self.bounds = Bounds.of(bounds)
        self.preprocess = tuple(preprocess)
        self.probabilities, self.said = probabilities, probabilities is not None
        self.ending: str | None = None  # the activation at the model's end, or that there is none: see `activation`
        self._scripted: activation.Bare | None = None
        self.batch_size = batch_size
        self.output, self.classes = output, classes
        self.free, self.attacked = free, attacked
        self.graded = parse_task(task) if isinstance(task, str) else task
        self._layout_given = layout is not None
        self.layout = layout or "nchw"
        self.was_training = isinstance(model, nn.Module) and any(m.training for m in model.modules())
        self._take(frozen(model, device) if isinstance(model, nn.Module) else model)
        first = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        self.device = torch.device(device) if device is not None else _device_of(first)
        self.dtype = torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32
        self.channels_last = False
        self.precision, self.compile = precision, compile
        if shape is not None:
            self.bind(tuple(shape))

    def bind(self, shape: tuple[int, ...]) -> None:
        if self.shape is not None:
            return super().bind(shape)
        super().bind(shape)
        self.beside = 0 if self.free is None else math.prod(shape) - math.prod(self.free)
        if not isinstance(self.model, (nn.Module, Foreign)):
            with sealed(0):
                self._take(by_trial(self.model, self._probe(), output=self.output, classes=self.classes))
        self._find_layout(shape)
        try:
            with sealed(0):
                try:
                    self._find_task()
                except Exception:
                    if not self._may_be_turned(shape):
                        raise
                    self.layout = "nchw" if self.wants == "nhwc" else "nhwc"
                    self._find_task()
            with sealed(0):
                self._find_ending()
        except InputError:
            self.shape = None
            raise
        except Exception as error:
            self.shape = None
            raise _unfit(error, shape) from error
        self._try_channels_last()
        self._make_twin()

    def labels(self, x: Tensor) -> Tensor:
        if self.access >= Access.SCORES:
            return super().labels(x)
        with torch.inference_mode(False), torch.no_grad():
            return self.model(self._before(x)).reshape(len(x)).long()

    def scores(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return self._forward(x.clone() if x.is_inference() else x)

    def answers(self, x: Tensor) -> Tensor:
        def ask(rows: slice) -> Tensor:
            z = chosen(self.model(self._before(x[rows])), None if isinstance(self.model, Foreign) else self.output)
            return z.reshape(rows.stop - rows.start, -1)

        with torch.inference_mode(False), torch.no_grad():
            return torch.cat(list(self.batched(ask, len(x))))

    def linearize(self, x: Tensor) -> tuple[Tensor, Pullback]:
        leaf, z = self._traced(x)
        return z.detach(), lambda cotangent: _back(leaf, z, cotangent, again=True)

    def pull(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        if not isinstance(self.model, Foreign) or self.detectors:
            leaf, z = self._traced(x)
            return z.detach(), _back(leaf, z, cotangent(z.detach()), again=False)
        kept: list[Tensor] = []

        def through_head(raw: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                z = self._head(leaf, len(x))
                kept.append(z.detach())
                return torch.autograd.grad((z * cotangent(z.detach())).sum(), leaf)[0]

        with torch.inference_mode(False), torch.enable_grad():
            leaf = (x.clone() if x.is_inference() else x).detach().requires_grad_()
            inner = self._before(leaf)
            _, g = self.model.pull(inner.detach().contiguous(), through_head)
            g = torch.autograd.grad((inner * g.to(inner.dtype)).sum(), leaf)[0]
        return kept[-1], g

    def live(self, model: nn.Module, precision: str = "float32") -> TorchTarget:
        """This target around a module that is trained meanwhile: no copy, no faster twin; its mode is the caller's.

        With precision bfloat16 whatever gradients flow through is mixed: convolutions and products in bfloat16.
        """
        own = copy.copy(self)
        own.model = own.twin = model
        own._scripted = None
        own.approximate, own.precision = False, precision
        return own

    def outputs(self, x: Tensor) -> Tensor:
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
        elif isinstance(self.model, Foreign):
            digest.update(self.model.digest())
        else:
            digest.update(getattr(self.model, "__qualname__", type(self.model).__qualname__).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        return (
            super().describe()
            | ({} if self.free is None else {"free": list(self.free), "attacked": self.attacked})
            | ({} if self.output is None else {"output": str(self.output)})
            | {
                "preprocess": [spec.write(step, whole=True) for step in self.preprocess],
                "probabilities": bool(self.probabilities),
                "layout": self.layout,
            }
        )

    def _traced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs that can be asked for a gradient, and the twin's scores of them."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (x.clone() if x.is_inference() else x).detach().requires_grad_()
            with self._mixed():
                return leaf, self._forward(leaf, self.twin)

    def images(self, x: Tensor) -> Tensor:
        """Raw inputs, images with their channels first."""
        return x.movedim(-1, 1) if self.layout == "nhwc" and x.ndim > 2 else x

    def bare(self, x: Tensor, model: Callable[[Tensor], Any] | None = None) -> Tensor:
        """Scores [n, k] of `images` before which no defence stands; gradients flow through."""
        steps = [step for step in self.preprocess if not isinstance(step, Defence)]
        return self._head(self._ask(self._inwards(applied(steps, x, self.bounds)), model), len(x))

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _forward(self, x: Tensor, model: Callable[[Tensor], Any] | None = None) -> Tensor:
        z = self._head(self._ask(self._before(x), model), len(x))
        if not self.detectors:
            return z
        far = excess(self.preprocess, self.images(x), self.bounds, lambda u: self.bare(u, model))
        return torch.cat([z, refusal(z, far)], 1)

    def _before(self, x: Tensor) -> Tensor:
        """Raw inputs as the model wants them."""
        return self._inwards(applied(self.preprocess, self.images(x), self.bounds))

    def _inwards(self, x: Tensor) -> Tensor:
        """Preprocessed images as the model wants them."""
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.wants == "nhwc" and x.ndim > 2:
            x = x.movedim(1, -1)
        if isinstance(self.model, Foreign) and self.model.shape is not None and len(self.model.shape) == 1:
            x = x.flatten(1)
        return x

    @property
    def reads(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.ending not in (activation.SOFTMAX, activation.SIGMOID, activation.LOG_SOFTMAX):
            return False
        if self.single and self.ending == activation.SOFTMAX:  # which is 1 whatever the logit
            return False
        if self.graded is not None:  # whose outputs are judged one by one
            return self.graded.logits and self.ending == activation.SIGMOID and self.probabilities is not False
        return self.probabilities is not False or self.ending == activation.LOG_SOFTMAX

    def _ask(self, x: Tensor, model: Callable[[Tensor], Any] | None) -> Any:
        """What the model gives for preprocessed x, perhaps with the logits before it: see `activation`."""
        model = model or self.model
        if not self.reads or isinstance(model, (Foreign, activation.Bare)):
            return model(x)
        if self._scripted is not None:
            return self._scripted(x)
        with activation.Reading():
            return model(x)

    def _logits(self, z: Tensor) -> tuple[Tensor, bool]:
        """A model's output, or the logits before its last activation; and whether it is these."""
        if isinstance(self.model, Foreign) and self.model.ending is not None:
            return (z, True) if self.reads else (activation.applied(self.model.ending, z), False)
        found = activation.before(z) if self.reads else None
        return (z, False) if found is None or found.logits is None else (found.logits, True)

    def _head(self, z: Any, n: int) -> Tensor:
        """A model's output for n inputs as scores [n, k]."""
        z = chosen(z, None if isinstance(self.model, Foreign) else self.output)  # a foreign one has chosen
        if not isinstance(z, Tensor):
            raise InputError(
                f"the model returns a {type(z).__name__}, but scores must be one tensor [n, classes]. Wrap it in a "
                f"module that returns the logits alone."
            )
        z, logits = self._logits(z)
        chances = bool(self.probabilities) and not logits
        z = z if z.dtype == torch.float64 else z.float()
        if self.graded is not None and z.ndim <= 2 and z.shape[:1] in ((n,), ()):
            z = z.reshape(n, -1)
            return odds(z) if chances and self.graded.logits else z
        if z.shape in ((n,), (n, 1)) or (z.ndim == 0 and n == 1):  # squeezed to nothing
            z = z.reshape(-1)
            z = odds(z) if chances else z
            return torch.stack([torch.zeros_like(z), z], 1)
        if z.ndim != 2 or len(z) != n:
            raise InputError(
                f"the model gives {tuple(z.shape)} for {n} inputs, but scores must be [n, classes]. Segmentation "
                f"and detection heads are not supported."
            )
        return z.clamp_min(torch.finfo(z.dtype).tiny).log() if chances else z

    def _take(self, model: Callable[[Tensor], Any]) -> None:
        self.model = self.twin = model
        foreign = model if isinstance(model, Foreign) else None
        self.access = Access.GRADIENTS if foreign is None else foreign.access
        self.wants = "nchw" if foreign is None else foreign.layout  # of the model's images
        self.layout = self.layout if self._layout_given else self.wants
        self.classes = self.classes or (None if foreign is None else foreign.classes)
        self.remarks = () if foreign is None else foreign.remarks
        self.remarks += tuple(step.remark for step in self.preprocess if isinstance(step, Defence))
        self.detectors = [step for step in self.preprocess if isinstance(step, Detector)]
        self.passes = 1 + sum(step.passes for step in self.detectors)
        if self.detectors and (self.access < Access.SCORES or self.graded is not None):
            raise InputError("a detector's refusal stands beside the scores of classes, and this model gives none.")

    def _find_layout(self, shape: tuple[int, ...]) -> None:
        """Where the model says its shape and the user no layout: the one in which the data fit."""
        wanted = self.model.shape if isinstance(self.model, Foreign) else None
        if wanted is None or self._layout_given or len(wanted) != 3 or len(shape) != 3:
            return
        other = "nchw" if self.wants == "nhwc" else "nhwc"
        turned = (shape[1], shape[2], shape[0]) if other == "nchw" else (shape[2], shape[0], shape[1])
        fits = [layout for layout, form in ((self.wants, shape), (other, turned)) if form == tuple(wanted)]
        self.layout = fits[0] if fits else self.layout

    def _may_be_turned(self, shape: tuple[int, ...]) -> bool:
        """Whether images of another framework's model may lie otherwise than it wants them; nobody has said."""
        foreign = isinstance(self.model, Foreign) and self.model.shape is None
        return foreign and not self._layout_given and len(shape) == 3

    def _find_task(self) -> None:
        if self.access >= Access.SCORES:
            refuses = bool(self.detectors)
            self.task = Classes(self.scores(self._probe()).shape[1] - refuses, refuses)
            return
        if self.classes is None:
            raise InputError("the model gives labels alone, which do not say how many classes there are: give classes.")
        self.labels(self._probe())
        self.task = Classes(self.classes)

    def _find_ending(self) -> None:
        """How the model ends, and whether that says that it gives probabilities."""
        if self.access < Access.SCORES:
            return
        model, says, probe = self.model, None, self._probe()[:1]
        if isinstance(model, Foreign):
            out = model(self._before(probe))
            self.ending, says = model.ending, model.probabilities
        elif (scripted := activation.scripted(model)) is not None:
            self.ending, self._scripted = scripted.kind, scripted
            out = scripted(self._before(probe))
        else:
            with activation.Reading():
                out = chosen(model(self._before(probe)), self.output)
            self.ending = activation.ending(out)
        self._head(out, 1)  # one row alone is a batch too
        self.single = self.graded is None and out.numel() == 1
        if self.ending is not None:
            says = self.ending in (activation.SOFTMAX, activation.SIGMOID)
        labels = self.graded is None or self.graded.logits
        if says is not None and labels and not self.said:
            self.probabilities, self.said = says, True
        if self.reads and self.ending != activation.LOG_SOFTMAX:
            self.remarks += (("probabilities", _READ.format(self.ending)),)

    def _probe(self) -> Tensor:
        assert self.shape is not None
        middle = (self.bounds.low + self.bounds.high) / 2
        return torch.full((2, *self.shape), middle, dtype=self.dtype, device=self.device)

    def _try_channels_last(self) -> None:
        parts = self.model.modules() if isinstance(self.model, nn.Module) else ()
        wide = any(isinstance(p, nn.Conv2d) and p.in_channels >= 32 and p.stride == (1, 1) for p in parts)
        if not wide or self.device.type != "cpu" or self.dtype != torch.float32:
            return
        assert isinstance(self.model, nn.Module)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.channels_last = True
        try:
            with sealed(0):
                self.scores(self._probe())
        except RuntimeError:
            self.model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            self.channels_last = False

    def _compiled(self, model: Any) -> Callable[[Tensor], Any]:
        """The model compiled, without its last activation where logits are read before that."""
        if not self.reads:
            return torch.compile(model, dynamic=True)
        assert self.ending is not None
        bare = activation.traced(model, self.ending)
        return model if bare is None else activation.Bare(self.ending, torch.compile(bare, dynamic=True))

    def _make_twin(self) -> None:
        """The faster twin for gradients, if it gives what the model gives."""
        self.twin = self.model
        if isinstance(self.model, nn.Module) and any(isinstance(m, nn.BatchNorm2d) for m in self.model.modules()):
            with sealed(0):
                self.twin = _folded(self.model)
        if self.compile:
            self.twin = self._compiled(self.twin)
        self.approximate = self.twin is not self.model or self.precision != "float32"
        if isinstance(self.model, Foreign):
            self.approximate = self.model.approximate
            return
        if not self.approximate:
            return
        with sealed(0):
            exact, near = self.scores(self._probe()), self.linearize(self._probe())[0]
        loose = 0.1 if self.precision == "bfloat16" else 1e-3
        if not bool((near - exact).abs().max() <= loose * exact.abs().max().clamp_min(1)):
            self.twin, self.precision, self.approximate = self.model, "float32", False


def _back(leaf: Tensor, z: Tensor, cotangent: Tensor, *, again: bool) -> Tensor:
    """The gradient on `leaf` of what has this cotangent at z. Only for another one is the graph kept: that costs."""
    if not z.requires_grad:  # no path from the input to the scores: the gradient is exactly zero
        return torch.zeros_like(leaf)
    with torch.inference_mode(False), torch.enable_grad():
        # As a product: with grad_outputs, autograd would first import half of torch.fx and sympy.
        pulled = (z * cotangent.to(z.dtype)).sum()
        g = torch.autograd.grad(pulled, leaf, retain_graph=again, allow_unused=True)[0]
    return torch.zeros_like(leaf) if g is None else g


def _folded(model: nn.Module) -> nn.Module:
    """The model with each batch norm inside the convolution before it, where its graph can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer's own making
            from torch.fx.experimental.optimization import fuse

            return fuse(model, inplace=False)
    except Exception:  # noqa: BLE001  # whatever a trace of a user's code may raise
        return model


def content_of(model: nn.Module) -> Iterator[Any]:
    """All that decides what a module gives, in bytes: its parts, then its weights."""
    yield repr(model).encode()
    for name, value in sorted(model.state_dict().items()):
        yield f"{name}{tuple(value.shape)}{value.dtype}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def frozen(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """A copy in eval mode, its parameters without gradients.

    Raises:
        InputError: it cannot be copied.
    """
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about its own exported programs
            own = copy.deepcopy(model)
    except Exception as error:
        raise InputError(f"the model cannot be copied ({error}); pass a module that copy.deepcopy accepts.") from error
    own.eval()
    for module in own.modules():
        module.training = False  # also where a module overrides train()
    for parameter in own.parameters():  # a scripted module refuses the method for all of them
        parameter.requires_grad_(False)
    return own if device is None else own.to(device)


def _unfit(error: Exception, shape: tuple[int, ...]) -> InputError:
    """A model's own error on its first input, as one sentence with the likely cause."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if "scalar types: Long, Int" in first or "embedding" in first.lower():
        return InputError(
            "the model looks its inputs up as whole numbers, as models of text do with tokens; only inputs that can "
            "change by a little are supported, such as images and tables of numbers."
        )
    cause = "Check the architecture, the preprocessing and the shape of the data."
    if len(shape) == 3 and shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        cause = "They look like NHWC images: say --layout nhwc (in Python: layout='nhwc')."
    return InputError(f"the model fails on inputs of shape {shape}: {first}. {cause}")


def _device_of(parameter: Tensor | None) -> torch.device:
    return torch.device("cpu") if parameter is None else parameter.device
