"""Data: the fourteen tables that the agent writes classifiers for (`tasks`), and texts for perplexity (`corpora`)."""
