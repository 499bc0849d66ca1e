"""Measurements on finished runs: held-out scores, perplexity, and how well small batches estimate gradients."""
