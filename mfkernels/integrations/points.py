"""Deprecated: the former name of `mfkernels.integrations.point_sampling`."""

import warnings

from mfkernels.integrations.point_sampling import *  # noqa: F403
from mfkernels.integrations.point_sampling import point_matching_cost as matching_cost  # noqa: F401

warnings.warn(
    "mfkernels.integrations.points is now called point_sampling, and its matching_cost "
    "point_matching_cost; the next release removes the old names",
    FutureWarning,
    stacklevel=2,
)
