"""ETPO: entropy-regularised token-level policy optimisation of a language agent (arXiv 2402.06700).

Read `bellman` (which number should Q of a token move to?) and `losses` (what do critic and policy minimise?) first:
they are the equations, as pure functions of tensors. `update` turns them into update rules, which reach the networks
only through `interfaces`; `value` fits the value of a prefix. `sandbox` executes and scores the programs that the agent
writes. Nothing here imports from the rest of the repository.
"""

__version__ = "0.1.0"
