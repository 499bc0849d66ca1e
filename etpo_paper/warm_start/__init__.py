"""The warm start: a short supervised fine-tuning on real scikit-learn code.

The paper begins with CodeLlama-7B, which already writes Python programs that run now and then. The small model that
stands in for it does not, and an agent that never earns a reward cannot learn from one. The small model is therefore
taught first what a body of `build_model` looks like. `mining` reads constructor calls out of the installed
scikit-learn. `bodies` writes them as bodies, keeps those that really run, and breaks some of them in realistic ways to
obtain true error messages. `corpus` combines prompts and bodies into examples, `sft` trains on them, and `report`
measures the share of the model's code that runs. The resulting model is the "original language model" of the
experiments: the start of the policy and the frozen reference. The corpus contains no score of any task.
"""
