"""Group norms that use `mfkernels.group_norm` where it is faster."""

from __future__ import annotations

from torch import Tensor, nn

from mfkernels import group_norm
from mfkernels.ops.group_norm import is_faster, reference


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, followed by ReLU if `relu`; by `mfkernels.group_norm` where it is faster."""

    def forward(self, input: Tensor, relu: bool = False) -> Tensor:  # noqa: A002
        if is_faster(input):
            return group_norm(input, self.num_groups, self.weight, self.bias, self.eps, relu=relu)
        arguments = (self.weight, self.bias, self.num_groups, self.eps, relu)
        return reference.group_norm(input, *arguments)
