"""What is measured once the runs are done: held-out scores, perplexity, and the agreement of gradients."""
