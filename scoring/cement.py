"""ratings -> margins of the Cement loss.

InfoNCE in which each hard negative carries a margin that grows with the concreteness of the word
that was changed to make it (methods: arXiv 2604.13313, "Concrete Jungle". The formula is
**reconstructed** from the paper's words; sign and constants are options):

    L_i = -log  e^{s_ii/tau} / ( e^{s_ii/tau} + sum_k e^{(s_ik' + m_ik)/tau}
                                 + sum_{j != i} e^{s_ij/tau} )
    m   = m0 + a (c - 1) / 4          c in [1, 5]

s is the cosine; i' are i's own hard negatives (the paper has one), j the positives of the batch's
other anchors. With `symmetric`, half of the loss is InfoNCE from positives to anchors, which has no
hard negatives, as in CLIP: the made negatives are texts, the anchors images.

The loss itself is in `scoring.cement_torch`, so that the exports, which need only `margins`, import
no torch.
"""

import numpy as np
import numpy.typing as npt

from miner.errors import UserError

TAU = 0.05  # sentence-transformers' scale of 20
LOW, HIGH = 1.0, 5.0  # the scale of ratings


# of the Cement loss: at tau .05 the most concrete word weighs e times the most abstract one
MARGIN_BASE, MARGIN_SLOPE = 0.0, 0.05


def cement_margins(
    concreteness: npt.ArrayLike, m0: float = MARGIN_BASE, a: float = MARGIN_SLOPE
) -> np.ndarray:
    """Return m0 + a (c - 1) / 4 as float64, in units of cosine: m0 for the most abstract word, m0 +
    a for the most concrete one.

    >>> cement_margins([1.0, 3.0, 5.0, float("nan")], m0=0.1, a=0.2).round(2).tolist()
    [0.1, 0.2, 0.3, 0.1]

    Args:
        concreteness: ratings from 1 to 5, any shape; nan where a rating is missing, which gets m0.
        m0: margin at rating 1.
        a: what rating 5 has more than rating 1.

    Raises:
        UserError: a rating is outside 1 to 5.
    """
    ratings = np.asarray(concreteness, np.float64)
    outside = (ratings < LOW) | (ratings > HIGH)
    if outside.any():
        raise UserError(
            f"concreteness {ratings[outside].flat[0]:g} is outside 1 to 5; bring the ratings to"
            " that scale, 5 the most concrete"
        )
    return np.where(np.isnan(ratings), m0, m0 + a * (ratings - LOW) / (HIGH - LOW))
