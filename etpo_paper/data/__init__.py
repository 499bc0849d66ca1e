"""The fourteen data sets as tables (`tasks`) and the texts that perplexity is measured on (`corpora`)."""
