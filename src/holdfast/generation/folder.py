"""The folder of a generator: what was asked, the log, the pictures, the weights that draw best, and
their measure."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from holdfast import spec
from holdfast.errors import InputError
from holdfast.generation.diffusion import Denoiser, Diffusion
from holdfast.generation.gan import GAN
from holdfast.generation.model import Model
from holdfast.generation.nets import Decoder, Frame, Reader
from holdfast.generation.own import Own, OwnGenerator
from holdfast.rng import Keys

NOTE, WEIGHTS, READER = "generate.json", "generator.safetensors", "classifier.safetensors"
MODELS: dict[str, Callable[..., Model]] = {"gan": GAN, "diffusion": Diffusion, "own": Own}
_AT_ONCE = {"cpu": 250, "cuda": 2000}  # samples drawn together
# times the number of classes: how often a generator without classes is asked for a row of one
_TRIES = 30


def parse(text: str) -> Model:
    """The model that `gan`, `wgan-gp` or `diffusion(steps=2000)` spells.

    Raises:
        SpecError: no such model or option.
    """
    also = {name: functools.partial(GAN, **fields) for name, fields in GAN.also.items()}
    return spec.build(text.replace("wgan-gp", "wgangp", 1), MODELS | also, "model")


@dataclass(frozen=True)
class Generator:
    """A trained generator: draws rows x [n, *shape] in raw units, of classes 0..k-1.

    `reader` takes the place of the class where the generator knows none: it says which class a row
    is of.
    """

    model: Model
    net: nn.Module
    frame: Frame
    k: int
    reader: Reader | None = None

    def draw(self, y: Tensor, ids: Tensor, seed: int = 0) -> Tensor:
        """New rows of the classes y [n] int64; each follows from its id ([n] int64), its class and
        the seed alone.

        A generator that knows no classes is asked again until its reader takes a row for its class;
        a row for which that never happens stays as it was drawn last.
        """
        parts = []
        with torch.no_grad():
            for at in torch.arange(len(y)).split(_AT_ONCE.get(self.device.type, 250)):
                own, place = y[at].to(self.device), ids[at].to(self.device)
                keys = Keys.of(seed, place).fold("sample")
                parts.append(
                    self._drawn(own, keys)
                    if self.reader is None
                    else self._found(own, keys, self.reader)
                )
        return torch.cat(parts)

    def _drawn(self, y: Tensor, keys: Keys) -> Tensor:
        return self.frame.outward(self.model.draw(self.net, tuple(self.frame.shape), y, keys))

    def _found(self, y: Tensor, keys: Keys, reader: Reader) -> Tensor:
        x = y.new_zeros((len(y), *self.frame.raw), dtype=torch.float32)
        missing = torch.arange(len(y), device=y.device)
        for i in range(_TRIES * self.k):
            x[missing] = self._drawn(y[missing], keys.take(missing).fold("try", i))
            missing = missing[reader(x[missing]).argmax(1) != y[missing]]
            if not len(missing):
                break
        return x

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """What a GAN makes of z [n, latent] for the classes y [n]; gradients flow to z.

        Raises:
            InputError: the model is no GAN.
        """
        if not isinstance(self.net, Decoder):
            raise InputError(
                f"a {type(self.model).__name__.lower()} has no latent space to decode from; train "
                "a gan."
            )
        return self.frame.outward(self.net(z, y))

    def denoise(self, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """What a diffusion model takes the inputs x [n, *shape] to be without noise; gradients flow
        to x.

        Args:
            sigma: [n], the standard deviation of the noise where inputs span [-1, 1]: in [0, 1], it
                is half of that.
            y: the classes [n], or None.

        Raises:
            InputError: the model is no diffusion model.
        """
        if not isinstance(self.net, Denoiser):
            raise InputError(
                f"a {type(self.model).__name__.lower()} cannot denoise; train a diffusion model."
            )
        return self.frame.outward(self.net(self.frame.inward(x), sigma, y))

    @property
    def device(self) -> torch.device:
        return self.frame.middle.device


def load(folder: Path | str, device: str = "cpu") -> Generator:
    """The generator that `holdfast generate train` left in a folder.

    Raises:
        InputError: the folder holds none, or a damaged one.
    """
    folder = Path(folder)
    try:
        note = json.loads((folder / NOTE).read_bytes())
        weights = load_file(folder / WEIGHTS, device=device)
        frame = Frame(
            tuple(note["shape"]), note["layout"], weights.pop("low"), weights.pop("high")
        ).to(device)
        model = parse(note["model"])
        net = model.nets(tuple(frame.shape), note["classes"])["generator"].to(device)
        net.load_state_dict(weights)
    except FileNotFoundError as error:
        missing = Path(error.filename or WEIGHTS).name  # safetensors names no file
        raise InputError(
            f"{folder} holds no generator ({missing} is missing); train one: holdfast generate "
            "train."
        ) from None
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"the generator in {folder} cannot be read: {str(error).splitlines()[0]}."
        ) from error
    generator = Generator(model, net.eval().requires_grad_(False), frame, note["classes"])
    if knows_classes(net):
        return generator
    return dataclasses.replace(generator, reader=load_reader(folder, frame, generator.k))


def knows_classes(net: nn.Module) -> bool:
    """Whether a generator draws rows of the class asked for; only one of the user's may not."""
    return not isinstance(net, OwnGenerator) or net.conditional


def load_reader(folder: Path, frame: Frame, k: int) -> Reader:
    """The small classifier, trained on the same data, whose features the folder's figures are taken
    from."""
    reader = Reader(frame, k).to(frame.middle.device)
    reader.load_state_dict(load_file(folder / READER))
    return reader.eval().requires_grad_(False)
