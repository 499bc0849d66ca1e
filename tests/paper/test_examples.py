"""The examples learn, their loss is that of the package's own update, and the losses are light to import."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etpo_core.interfaces import Alone, Transition
from etpo_core.update import ETPO
from etpo_core.value import LeastSquaresValue

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIGHT = "bellman", "interfaces", "losses", "update", "value"
HEAVY = "transformers", "peft", "pandas", "sklearn", "scipy", "matplotlib"


@pytest.fixture
def example(monkeypatch):
    """A function that imports an example as a script of that folder would."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_losses_load_torch_and_little_else():
    imports = "; ".join(f"import etpo_core.{name}" for name in LIGHT)
    code = f"import sys, etpo_core; {imports}; import etpo_paper.methods; print(*({set(HEAVY)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_package_itself_loads_nothing():
    code = "import sys; before = set(sys.modules); import etpo_core; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["etpo_core"], done.stderr


@pytest.mark.parametrize("name", ["bare_loop", "in_a_trainer"])
def test_the_reward_rises(example, name, capsys):
    rewards = example(name).main(updates=30)
    assert len(rewards) == 30
    assert sum(rewards[:5]) / 5 < 0.6 and sum(rewards[-5:]) / 5 > 0.8
    assert "update 30: mean reward 0." in capsys.readouterr().out


ACTIONS = [(4, 5, 6), (4, 7), (8,), (4, 5, 9, 2)]
PROMPTS = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [3, 2, 1]])
TOKENS = torch.tensor([[*action, *(3,) * (4 - len(action))] for action in ACTIONS])
REWARDS = torch.tensor([[0.8, -1.0, -1.0, 0.5], [0.3, 0.9, -1.0, 0.0]])  # of two updates: before the first V is 0


def test_its_gradient_is_that_of_an_update(example, make_agent, monkeypatch):
    """The same adapters, twice: by `ETPO.update` with streamed logits, and by the example on whole ones."""
    bare_loop, networks = example("bare_loop"), make_agent().networks
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*networks.parameters("policy"), *networks.parameters("critic")]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    learning = {role: networks.parameters(role) for role in ("critic", "policy")}

    def gradients():
        found = {role: torch.cat([p.grad.flatten() for p in weights]) for role, weights in learning.items()}
        networks.model.zero_grad()
        return found

    updates, constants = [], {"policy_lr": 0.0, "critic_lr": 0.0, "tau": 0.9, "epochs": 1, "reflect": True}
    constants |= {"beta": bare_loop.BETA, "gamma": bare_loop.GAMMA, "lam": bare_loop.LAM}
    method = ETPO(advantage_prior=bare_loop.PRIOR, value_decay=0.9, value_ridge=0.5, **constants)
    method.start(networks, Alone())
    # Both optimisers step after one backward pass, the policy's last.
    monkeypatch.setattr(networks, "step", lambda o: updates.append(gradients()) if o is method.optimisers[-1] else None)
    for rewards in REWARDS.tolist():
        rows = zip(PROMPTS.tolist(), ACTIONS, rewards, strict=True)
        method.update([Transition(tuple(p), a, (0.0,) * len(a), r, True, None) for p, a, r in rows])

    v, lengths = LeastSquaresValue(decay=0.9, ridge=0.5), torch.tensor([len(action) for action in ACTIONS])
    for reward, of_update in zip(REWARDS, updates, strict=True):
        logits = {}
        for role in ("reference", "policy", "critic"):
            with networks.switched_to(role):
                logits[role], hidden = bare_loop.at_prefixes(networks.model, PROMPTS, TOKENS)
            if role == "reference":
                features = hidden
        bare_loop.etpo_loss(logits, features, v, TOKENS, lengths, reward).backward()
        v.fit(Alone())
        for role, gradient in gradients().items():
            assert gradient.abs().max() > 1e-4
            torch.testing.assert_close(gradient, of_update[role], rtol=1e-4, atol=2e-6)
