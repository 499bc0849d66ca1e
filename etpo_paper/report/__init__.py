"""From raw results to the numbers, tables and figures that the notebooks show. No model is loaded here."""
