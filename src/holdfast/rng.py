"""Keys: random numbers as a column.

A draw is a function of (seed, sample id, path of names, element) and of nothing else: not of the
batch, its order, the device or what was drawn before. So one sample can be run again alone, and
every batch size, shard and resume sees the same noise. The generator is SplitMix64 (Steele, Lea,
Flood 2014) with one stream a row.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _word(part: int | str) -> int:
    digest = hashlib.blake2b(repr(part).encode(), digest_size=8).digest()
    return _signed(int.from_bytes(digest, "big"))


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


@dataclass(frozen=True)
class Keys:
    """One 64-bit key a row: `rows` is [n] int64."""

    rows: Tensor

    @staticmethod
    def of(seed: int, ids: Tensor) -> Keys:
        """Keys of the samples with these `ids` ([n] int64) under `seed`."""
        return Keys(_mix(ids * _GAMMA)).fold(seed)

    def fold(self, *path: int | str | Tensor) -> Keys:
        """Keys of a place further down: an attack, a restart, a step, the name of a draw. A tensor
        [n] holds a number for each row."""
        rows = self.rows
        for part in path:
            if isinstance(part, Tensor):
                words = {number: _word(number) for number in set(part.tolist())}
                word = torch.tensor([words[number] for number in part.tolist()]).to(rows)
            else:
                word = _word(part)
            rows = _mix(rows ^ word)
        return Keys(rows)

    def draws(self, numbers: Tensor) -> Keys:
        """Of a single row: a key for each of its draws, by their `numbers` [m] int64."""
        return Keys(_mix(self.rows ^ _mix(numbers * _GAMMA)))

    def take(self, rows: Tensor) -> Keys:
        return Keys(self.rows[rows])

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform in [0, 1): [n, *shape]."""
        bits = self.bits(shape)
        if dtype == torch.float64:
            return _shift(bits, 11).to(torch.float64) * 2.0**-53
        return (_shift(bits, 40).to(torch.float32) * 2.0**-24).to(dtype)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal by Box and Muller, computed in float64: [n, *shape]."""
        u = self.fold("radius").uniform(shape, torch.float64)
        v = self.fold("angle").uniform(shape, torch.float64)
        return (torch.sqrt(-2 * torch.log1p(-u)) * torch.cos(2 * math.pi * v)).to(dtype)

    def words(self, shape: tuple[int, ...]) -> Tensor:
        """32 random bits each: [n, *shape] int32. Two share a number of the stream, for they are
        for whole images."""
        size = math.prod(shape)
        return self.bits(((size + 1) // 2,)).view(torch.int32)[:, :size].reshape(-1, *shape)

    def grain(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal up to 6.0, at a quarter of the time of `normal`: [n, *shape] float32.

        Box and Muller in float32, and both values of a pair are used.
        """
        size = math.prod(shape)
        u, v = self.words((2, (size + 1) // 2)).float().unbind(1)
        # the least word gives 0
        far = torch.sqrt(-2 * torch.log((u * 2.0**-32 + 0.5).clamp_min(2.0**-26)))
        turn = v * (math.pi * 2.0**-31)
        pair = torch.cat([far * torch.cos(turn), far * torch.sin(turn)], 1)
        return pair[:, :size].reshape(-1, *shape)

    def signs(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """-1 or 1, evenly: [n, *shape]."""
        return (_shift(self.bits(shape), 63) * 2 - 1).to(dtype)

    def integers(self, high: int) -> Tensor:
        """Whole numbers in [0, high): [n] int64."""
        return (self.uniform((), torch.float64) * high).to(torch.int64)

    def bits(self, shape: tuple[int, ...]) -> Tensor:
        """64 random bits each: [n, *shape] int64."""
        count = torch.arange(1, math.prod(shape) + 1, device=self.rows.device)
        return _mix(self.rows[:, None] + count * _GAMMA).reshape(-1, *shape)


def content(x: Tensor) -> Tensor:
    """A number of each row's values: x [n, ...] to [n] int64."""
    bits = x.detach().flatten(1).float().contiguous().view(torch.int32).long()
    odd = torch.arange(1, 2 * bits.shape[1], 2, device=x.device)
    return (bits * odd).sum(1)


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical shift right: torch's is arithmetic."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)
