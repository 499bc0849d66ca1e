"""A frozen language model in four roles, how its losses are computed, and how it samples actions."""
