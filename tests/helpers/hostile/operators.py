"""A fuzzer: calls every CPU operator of `torch.ops.mfkernels` with valid and invalid arguments.

`python operators.py CALLS SEED [FILE]` prints how the calls ended. Whatever its arguments, a call
must return a result or raise one of `EXPECTED`. A crash ends this process, and FILE then says how
to reproduce the call. Memory is limited unless `--no-limit` is given, as sanitizers need it: they
map a lot of address space.
"""

from __future__ import annotations

import random
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mfkernels  # noqa: F401

EXPECTED = (RuntimeError, ValueError, TypeError)

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.complex64,
)
FLOATS = DTYPES[:4]
SIZES = (0, 1, 2, 3, 5, 8, 17, 33)
GIANTS = (2**20, 2**24 + 1, 2**31, 2**32 + 5, 2**40)
NUMBERS = (0.0, 0.25, 1.0, 2.0, -1.0, 1e30, -1e300, float("nan"), float("inf"), -float("inf"))
INTEGERS = (0, 1, 2, 7, 130, -1, -(2**63), 2**24 + 1, 2**31, 2**40, 2**62, 2**63 - 1)


class Draw:
    """Random sizes, named by the schema's letters, and arguments that match them or do not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        # One size per letter for all arguments, so that many calls pass the shape checks.
        pick = self.random.choice
        few, sides = (0, 1, 2, 3), (0, 1, 2, 5, 17, 33)
        self.L, self.B, self.Q, self.K = pick(few), pick(few), pick((0, 1, 3, 7)), pick(few)
        self.C, self.h, self.w = pick((0, 1, 5, 17)), pick(sides), pick(sides)
        self.H, self.W, self.P = pick(sides), pick(sides), pick((0, 1, 5, 600))
        self.counts = [pick(few) for _ in range(self.B)]
        self.N, self.T = sum(self.counts), max(self.counts, default=0)
        self.dtype = pick(FLOATS)
        self.dense, self.overlap = pick((True, False)), pick((True, False))
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32

    def floats(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator).mul_(self.random.choice((1, 1e4)))
        if values.numel() and self.random.random() < 0.1:
            values.view(-1)[0] = self.random.choice(NUMBERS[-3:])
        return values.to(dtype or self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator)

    def bools(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < 0.4

    # One method per operator: matching arguments, although sizes may be 0.

    def masks(self) -> list[Any]:
        if self.dense:
            return [self.floats(self.L, self.B, self.Q, self.h, self.w), None]
        embed = self.floats(self.L, self.B, self.Q, self.C)
        return [embed, self.floats(self.B, self.C, self.h, self.w)]

    def segments(self) -> list[Any]:
        if self.overlap:
            return [None, self.bools(self.N, self.H, self.W)]
        return [self.integers(-2, self.T + 2, self.B, self.H, self.W).short(), None]

    def focal(self) -> list[Any]:
        return [self.random.choice((0.25, -1.0)), self.random.choice((0.0, 0.5, 1.0, 2.0))]

    def sums(self, *shape: int) -> list[Any]:
        return [self.floats(*shape, *more, dtype=self.wide) for more in ((), (), (3,))]

    def assignment(self) -> list[Any]:
        counts = [self.integers(0, size + 1, self.B) for size in (self.Q, self.T)]
        cost = self.floats(self.B, self.Q, self.T)
        return [cost, *self.random.choice((counts, [None, None])), self.flag(), self.flag()]

    def assignment_reference(self) -> list[Any]:
        return self.assignment()[:-1]

    def mask_logits(self) -> list[Any]:
        embed = self.floats(self.L, self.B, self.Q, self.C)
        return [embed, self.floats(self.B, self.C, self.h, self.w)]

    def matching_cost(self) -> list[Any]:
        logits = self.floats(self.L, self.B, self.Q, self.K + 1)
        targets = [*self.segments(), self.integers(-1, self.K + 2, self.N)]
        counts = torch.tensor(self.counts, dtype=torch.int64)
        return [logits, *self.masks(), *targets, counts, self.T, 1.0, 20.0, 1.0, *self.focal()]

    def mask_loss(self) -> list[Any]:
        counts = torch.tensor(self.counts, dtype=torch.int64)
        matches = self.integers(-1, self.Q, self.L, self.B, self.T)
        segments = self.segments()
        return [*self.masks(), *segments, counts, matches, self.N, *self.focal(), self.flag()]

    def mask_loss_backward(self) -> list[Any]:
        sums, maps = self.sums(self.L, self.B, self.T), self.floats(0, dtype=self.wide)
        return [*sums, maps, *self.mask_loss(), self.flag()]

    def focal_dice(self) -> list[Any]:
        targets = self.random.choice((self.bools, self.floats))(self.N, self.P)
        return [self.floats(self.N, self.P), targets, *self.focal()]

    def focal_dice_backward(self) -> list[Any]:
        return [*self.sums(self.N), *self.focal_dice()]

    def points(self, first: int) -> Tensor:
        return self.floats(first, self.P, 2, dtype=self.wide) * self.random.choice((0.3, 1.0, 1e9))

    def conv3x3(self) -> list[Any]:
        channels, out_channels = (16 * self.random.randint(1, 3) for _ in range(2))
        maps = self.floats(self.B, channels, self.h, self.w, dtype=self.wide)
        weight = self.floats(out_channels, channels, 3, 3, dtype=self.wide)
        bias = self.random.choice((None, self.floats(out_channels, dtype=self.wide)))
        return [maps, weight, bias]

    def conv3x3_weight_grad(self) -> list[Any]:
        maps, weight, _ = self.conv3x3()
        return [self.floats(self.B, len(weight), self.h, self.w, dtype=self.wide), maps]

    def group_norm(self) -> list[Any]:
        channels = 16 * self.random.randint(1, 3)
        maps = self.floats(self.B, channels, self.h, self.w, dtype=self.wide)
        weight, bias = (self.floats(channels, dtype=self.wide) for _ in range(2))
        return [
            maps,
            weight,
            bias,
            self.random.choice((1, 4, 16)),
            1e-5,
            self.random.random() < 0.5,
        ]

    def group_norm_backward(self) -> list[Any]:
        maps, weight, bias, groups, _, relu = self.group_norm()
        mean, inverse_std = (self.floats(self.B, groups, dtype=self.wide) for _ in range(2))
        return [
            self.floats(*maps.shape, dtype=self.wide),
            mean,
            inverse_std,
            maps,
            weight,
            bias,
            groups,
            relu,
        ]

    def window_attention(self) -> list[Any]:
        heads, channels = self.random.randint(1, 3), self.random.choice((16, 32, 48))
        window, shift = zip(*(self._window_side() for _ in range(2)), strict=True)
        tokens = window[0] * window[1]
        return [
            self.floats(self.B, self.h, self.w, 3, heads, channels, dtype=self.wide),
            self.floats(3, heads, channels, dtype=self.wide),
            self.floats(heads, tokens, tokens, dtype=self.wide),
            *window,
            *shift,
        ]

    def _window_side(self) -> tuple[int, int]:
        """A side of windows, and the shift along it."""
        side = self.random.randint(1, 5)
        return side, self.random.randrange(side)

    def window_attention_backward(self) -> list[Any]:
        arguments = self.window_attention()
        qkv, _, bias, *sides = arguments
        windows = self.B * -(-self.h // sides[0]) * -(-self.w // sides[1])
        return [
            self.floats(*qkv.shape[:3], *qkv.shape[4:], dtype=self.wide),
            self.floats(windows, len(bias), 2, bias.shape[1], dtype=self.wide),
            *arguments,
        ]

    def sample_points(self) -> list[Any]:
        images = self.random.choice((self.bools, self.floats))(self.N, self.h, self.w)
        return [images, self.points(self.random.choice((1, self.N)))]

    def sample_points_backward(self) -> list[Any]:
        return [self.floats(self.N, self.P, dtype=self.wide), *self.sample_points()]

    def point_loss(self) -> list[Any]:
        targets = self.random.choice((self.bools, self.floats))(self.N, self.H, self.W)
        logits = self.floats(self.N, self.h, self.w)
        return [logits, targets, self.points(self.N), *self.focal()]

    def point_loss_backward(self) -> list[Any]:
        return [*self.sums(self.N), *self.point_loss()]

    def sigmoid_focal_loss(self) -> list[Any]:
        shape = self.random.choice(((), (self.P,), (self.N, self.h, self.w)))
        targets = self.random.choice((self.bools, self.floats))(*shape)
        return [self.floats(*shape), targets, *self.focal()]

    def sigmoid_focal_loss_backward(self) -> list[Any]:
        arguments = self.sigmoid_focal_loss()
        return [self.floats(*arguments[0].shape), *arguments]

    def view(self) -> tuple[Tensor, Tensor | None, list[int]]:
        height, width = self.random.randint(1, 40), self.random.randint(1, 40)
        image = [self.random.randint(1, height), self.random.randint(1, width)]
        if self.dense:
            return self.floats(self.Q, self.h, self.w), None, [height, width, *image]
        features = self.floats(self.C, self.h, self.w)
        return self.floats(self.Q, self.C), features, [height, width, *image]

    def semantic_segmentation(self) -> list[Any]:
        views = [self.view() for _ in range(self.random.randint(1, 2))]
        probabilities = [torch.rand(self.Q, self.K, generator=self.generator) for _ in views]
        sides_of_views = [
            list(sides) for sides in zip(*(sides for *_, sides in views), strict=True)
        ]
        flipped = [self.flag() for _ in views]
        features = [features for _, features, _ in views if features is not None]
        sides = [self.random.randint(1, 300), self.random.randint(1, 40)]
        embed = [embed for embed, *_ in views]
        given = [probabilities, embed, features, *sides_of_views, flipped]
        return [*given, *sides, self.flag(), self.flag()]

    def panoptic_owners(self) -> list[Any]:
        embed, features, sides = self.view()
        scores = torch.rand(self.Q, generator=self.generator) - 0.3
        return [scores, embed, features, *sides, self.random.randint(1, 40), 35, self.flag()]

    def flag(self) -> bool:
        return self.random.random() < 0.5

    # Arguments that do not match.

    def spoil(self, kind: str, value: Any) -> Any:
        """A replacement for an argument's value, given its type in the schema; often invalid."""
        choice = self.random.choice
        if kind == "Tensor?" and self.random.random() < 0.3:
            return choice((None, self.tensor()))
        if kind in ("Tensor", "Tensor?"):
            return self.changed(value) if isinstance(value, Tensor) else self.tensor()
        if kind == "Tensor[]":
            return choice(([self.changed(each) for each in value], value[1:], value * 2))
        if kind == "int[]":
            numbers = list(value) or [0]
            numbers[choice(range(len(numbers)))] = choice(INTEGERS)
            return choice((numbers, numbers[1:], []))
        if kind == "bool[]":
            return choice((list(value)[1:], [*value, True], [None]))
        if kind == "int":
            return choice((*INTEGERS, None, 2**64))
        if kind == "float":
            return choice((*NUMBERS, None))
        return choice((True, False, None))

    def tensor(self) -> Tensor:
        shape = [self.random.choice(SIZES) for _ in range(self.random.randint(0, 5))]
        return self.floats(*shape).to(self.random.choice(DTYPES))

    def changed(self, tensor: Tensor) -> Any:
        """A variation of a tensor: another shape, dtype, device, layout or content; or None."""
        shape = list(tensor.shape)
        place = self.random.randrange(len(shape)) if shape else None
        ways: list[Callable[[], Any]] = [
            self.tensor,
            lambda: None,
            lambda: tensor.to(self.random.choice(DTYPES)),
            lambda: tensor[None],
            lambda: tensor.to("meta"),
            lambda: tensor.to_sparse(),
            lambda: tensor.mT if tensor.ndim > 1 else tensor.flip(0),
            lambda: torch.full_like(tensor, self.random.choice((-5, 100))),
            lambda: tensor.new_zeros(()).expand([self.random.choice(GIANTS)] * len(shape)),
        ]
        if place is not None:
            ways += [
                lambda: resized(tensor, place, self.random.choice(SIZES)),
                lambda: resized(tensor, place, self.random.choice(GIANTS)),
                lambda: tensor.select(place, 0) if shape[place] else tensor[..., None],
                # A view with the strides of a larger tensor.
                lambda: torch.cat([tensor, tensor], place).unfold(place, shape[place], 1)[..., 0],
            ]
        return self.random.choice(ways)()


def is_long(cost: Any) -> bool:
    """Whether calling SciPy once per problem would take too long."""
    return isinstance(cost, Tensor) and cost.ndim > 0 and cost.shape[0] > 1000


def resized(tensor: Tensor, place: int, size: int) -> Tensor:
    """A view with one size changed by expanding the first slice, which allocates no memory."""
    shape = list(tensor.shape)
    shape[place] = size
    first = tensor.narrow(place, 0, min(1, tensor.shape[place]))
    return tensor.new_zeros(()).expand(shape) if first.numel() == 0 else first.expand(shape)


def operators() -> dict[str, Any]:
    """Every operator with a CPU kernel, by name."""
    found = {}
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, operator = name.partition("::")
        if namespace != "mfkernels" or "." in operator:
            continue
        if any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in KEYS):
            found[operator] = getattr(torch.ops.mfkernels, operator).default
    return found


KEYS = ("CPU", "CompositeExplicitAutograd")


def run(calls: int, seed: int, last: Path | None) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    every = operators()
    for call in range(calls):
        name = sorted(every)[(seed + call) % len(every)]
        draw = Draw(seed + call)
        try:
            arguments = getattr(draw, name)()
            kinds = [str(argument.type) for argument in every[name]._schema.arguments]
            for place in draw.random.sample(
                range(len(arguments)), draw.random.choice((0, 1, 1, 2))
            ):
                kind = kinds[place].replace("Optional[Tensor]", "Tensor?")
                kind = re.sub(r"List\[(\w+)\]", r"\1[]", kind)
                arguments[place] = draw.spoil(kind, arguments[place])
        except (*EXPECTED, IndexError):
            outcomes["not drawn"] += 1
            continue
        if name == "assignment_reference" and is_long(arguments[0]):
            continue
        if last is not None:
            last.write_text(f"{name}: operators.py 1 {seed + call}\n")
        try:
            every[name](*arguments)
            outcomes["results"] += 1
        except EXPECTED as error:
            outcomes[type(error).__name__] += 1
        outcomes["calls"] += 1
    return outcomes


def main() -> None:
    calls, seed = int(sys.argv[1]), int(sys.argv[2])
    last = Path(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[3] != "--no-limit" else None
    if "--no-limit" not in sys.argv:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))
    print(dict(run(calls, seed, last)), sorted(operators()))


if __name__ == "__main__":
    main()
