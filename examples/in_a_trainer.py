"""ETPO's losses inside `transformers.Trainer`: a dataset of prompts, and a loss that writes, scores and learns.

    python examples/in_a_trainer.py    # the task of bare_loop.py

The trainer optimises one module, so policy, critic and reference are its parts. Each step writes new actions for a
batch of prompts. V is fitted anew after each, so leave `gradient_accumulation_steps` at 1. This is for one process:
several need a `Reducer` that adds up what each observed, in place of `Alone`.
"""

import tempfile

import torch
from bare_loop import at_prefixes, etpo_loss, three_networks, write
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from etpo_core.interfaces import Alone
from etpo_core.value import LeastSquaresValue


class ETPOTrainer(Trainer):
    """Trains the "policy" and the "critic" of an `nn.ModuleDict`."""

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        self.v, self.rewards = LeastSquaresValue(decay=0.9, ridge=0.5), list[float]()

    def compute_loss(
        self,
        model: nn.ModuleDict,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The loss of the actions that the policy writes for these prompts now."""
        prompts = inputs["input_ids"]
        tokens, lengths, reward = write(model["policy"], prompts)
        found = {role: at_prefixes(of_role, prompts, tokens) for role, of_role in model.items()}
        logits = {role: of_role for role, (of_role, _) in found.items()}
        loss = etpo_loss(logits, found["reference"][1], self.v, tokens, lengths, reward)
        self.v.fit(Alone())  # it is read again with the next batch
        self.rewards.append(float(reward.mean()))
        return loss


def main(updates: int = 60) -> list[float]:
    """Trains, and returns the mean reward of each batch."""
    prompts = [{"input_ids": torch.ones(1, dtype=torch.long)}] * (32 * updates)
    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": 32, "num_train_epochs": 1, "learning_rate": 2e-3, "use_cpu": True}
        options |= {"lr_scheduler_type": "constant", "report_to": [], "save_strategy": "no", "disable_tqdm": True}
        arguments = TrainingArguments(folder, remove_unused_columns=False, **options)
        trainer = ETPOTrainer(nn.ModuleDict(three_networks()), arguments, train_dataset=prompts)
        trainer.train()
    for update in range(10, updates + 1, 10):
        print(f"update {update}: mean reward {sum(trainer.rewards[update - 10 : update]) / 10:.2f}")
    return trainer.rewards


if __name__ == "__main__":
    torch.set_num_threads(1)  # a model of this size gains nothing from more
    main()
