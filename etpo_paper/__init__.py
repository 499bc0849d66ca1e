"""Everything that the paper's experiments need around the algorithm of `etpo_core`.

Each room below has one subject and imports only from rooms further up this list (checked in CI):

    base          folders, settings, provenance, what the machine offers, several processes as one
    environment   the text MDP: prompts, programs as actions, rewards from the executor
    data          the fourteen tables and the texts for perplexity
    model         four networks over one frozen language model, and how it samples actions
    report        from raw results to numbers, tables and figures
    methods       the registry of update rules, and the rules that are not the paper's own
    tabular       small worlds whose optimum is known, and networks that are tables
    warm_start    supervised fine-tuning, so that the small model writes programs that run
    measure       what is measured after training: held-out scores, perplexity, gradients
    training      the loop that ties an agent, an environment and an update rule together
    use           the command line `etpo`, for a table of one's own
"""
