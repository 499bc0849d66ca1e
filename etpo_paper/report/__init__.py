"""From raw results to the numbers, tables and figures that the notebooks show. No model is loaded here.

`results` reads the files that the runs wrote, and `statistics` averages and compares them. Each notebook has a module
that makes its figures and tables: most bear its name, `datasets` belongs to `dataset_table`. `tables` and `plotting`
write them, byte for byte the same for the same numbers; `names` holds the words that readers see.
"""
