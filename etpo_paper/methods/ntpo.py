"""NTPO: naive token-level policy optimisation (arXiv 2405.15821).

As `poad`, but tokens are ordinary time steps: the discount that stands between actions also stands between the tokens
of one action. The reward of an action of L tokens then reaches its first token as gamma^{L-1} r, and what is
maximised depends on how long an action is written, which is the mistake that action decomposition removes.
"""

from etpo_paper.methods.poad import POAD


class NTPO(POAD):
    """POAD with gamma inside an action as well; arguments as `POAD`."""

    @property
    def inner_discount(self) -> float:
        """Discount between tokens."""
        return self.gamma
