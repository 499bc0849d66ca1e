"""The paper's three update rules, one file each: `etpo`, its ablation `action_level`, and the baseline `ppo_kl`.

All three fulfil `interfaces.Method`, so two of them read as a diff. They compute with the functions of `bellman` and
`losses` and reach the networks through `interfaces.Networks` only.
"""

from etpo_core.update.action_level import ActionLevelETPO
from etpo_core.update.etpo import ETPO
from etpo_core.update.ppo_kl import PPOKL

__all__ = ["ETPO", "PPOKL", "ActionLevelETPO"]
