"""The former name of `mfkernels.integrations.point_sampling`, for one release."""

import warnings

from mfkernels.integrations.point_sampling import *  # noqa: F403
from mfkernels.integrations.point_sampling import point_matching_cost as matching_cost  # noqa: F401

warnings.warn(
    "mfkernels.integrations.points is called point_sampling now, and its matching_cost "
    "point_matching_cost; the old names go away with the next release",
    FutureWarning,
    stacklevel=2,
)
