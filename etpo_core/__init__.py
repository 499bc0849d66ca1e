"""ETPO: entropy-regularised token-level policy optimisation of a language agent (arXiv 2402.06700).

Data flows one way through this package: `tasks` -> `environment` -> `rollout` -> `bellman` targets ->
`losses` -> update (`methods`, `training`) -> raw results -> notebooks. `bellman` and `losses` know tensors
and nothing else; `sandbox` knows arrays and source code and nothing else; the rest ties them together.
"""

__version__ = "0.1.0"
