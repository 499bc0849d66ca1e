"""The warm start: a short supervised fine-tuning on real scikit-learn code.

The paper begins with CodeLlama-7B, which already writes Python that runs now and then. The small stand-in does not,
and an agent that never earns a reward cannot learn from one. So it is first taught what a body of `build_model` looks
like. `mining` reads constructor calls out of the installed scikit-learn; `bodies` rewrites them as bodies, keeps those
that really run, and breaks some in realistic ways to obtain true error messages; `corpus` puts prompts and bodies
together; `sft` trains; `report` measures the share of code that runs. The result is the experiments' "original
language model": the start of the policy and the frozen reference. No score on any task enters the corpus.
"""
