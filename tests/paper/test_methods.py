"""The update rules at work on a tiny language model: what they learn, what they report, and what they survive."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from etpo_core.errors import UserError
from etpo_core.interfaces import Alone, Transition
from etpo_core.losses import advantage_square, q_dueling
from etpo_paper.base.settings import load_settings
from etpo_paper.methods import METHODS, build_method
from etpo_paper.model.batches import LanguageBatch, Sequences
from etpo_paper.training.loop import set_rates

TRAINED = ["etpo", "etpo_action_level", "etpo_memory", "etpo_on_logits", "ppo_kl", "ppo_kl_memory", "poad", "ntpo"]
TRAINED += ["tbrm", "shiq", "oreo", "grpo", "rloo"]
VARIANTS = ("etpo_memory", "etpo_on_logits", "ppo_kl_memory", "ntpo", "released", "shiq", "rloo")
PROMPT, FAILED = (1, 2, 3), (1, 2, 3, 9, 9)


def variants_at_night(names):
    """Parameters of a test that takes seconds: by day the methods, at night those that differ from one in a term."""
    return [pytest.param(name, marks=pytest.mark.nightly) if name in VARIANTS else name for name in names]


@pytest.fixture(scope="module")
def settings():
    return load_settings("laptop")


def started(name, settings, agent, **changes):
    method = build_method(name, {**settings.methods[name].plain(), **changes})
    method.start(agent.networks, Alone())
    return method


def one(prompt, action, reward, next_prompt=None):
    return Transition(prompt, action, (0.0,) * len(action), reward, next_prompt is None, next_prompt)


def log_prob(agent, role, *transitions):
    """The log-probabilities of some actions' tokens under a role, as one list of numbers."""
    batch = LanguageBatch.of(transitions, "cpu")
    with torch.no_grad():
        return batch.flat(agent.networks.log_prob(batch, role))


def shift(agent, role, by):
    with torch.no_grad():
        for parameter in agent.networks.parameters(role):
            parameter.add_(by)


def weights_of(agent, *roles):
    return torch.cat([p.detach().flatten() for role in roles for p in agent.networks.parameters(role)])


def next_token(agent):
    with torch.no_grad():
        return agent.networks.logits(agent.networks.hidden("policy", Sequences.of([PROMPT], [(0,)], "cpu"))).softmax(
            -1
        )[0]


def draw(agent, count, good, seed, length=2):
    """Actions of the policy itself; the reward is +1 when the first token is a good one, else -1."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.multinomial(next_token(agent), count, replacement=True, generator=generator)
    return [one(PROMPT, (t, *(5,) * (length - 1)), 1.0 if t in good else -1.0) for t in first.tolist()]


@pytest.mark.parametrize("name", TRAINED)
def test_it_learns_which_tokens_earn_the_reward(make_agent, settings, name):
    agent = make_agent()
    fast = {"policy_lr": 1e-2 if name == "shiq" else 5e-3}  # whose logits have every V to learn as well
    fast |= {"critic_lr": 3e-3} if name.startswith("etpo") else {"value_lr": 0.03}
    method = started(name, settings, agent, **{k: v for k, v in fast.items() if k in settings.methods[name]})
    # Half of the vocabulary, told apart by a direction of the head, so that a change of the hidden state can do it.
    head = agent.networks.head_weight
    side = head @ torch.randn(head.shape[1], generator=torch.Generator().manual_seed(0))
    good = set((side > 0).nonzero().flatten().tolist())
    before = float(next_token(agent)[sorted(good)].sum())
    for update in range(6):
        logged = method.update(draw(agent, 128, good, seed=update)).logged
    assert float(next_token(agent)[sorted(good)].sum()) > before + 0.08, logged


@pytest.mark.parametrize("name", TRAINED)
def test_the_first_update_starts_from_the_reference(make_agent, settings, name):
    agent = make_agent()
    logged = started(name, settings, agent).update(draw(agent, 6, {2}, 0)).logged
    assert logged["kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert logged["kl_per_action"] == pytest.approx(0.0, abs=1e-6)


def singly(cls, prompts, actions, device):
    """As `Sequences.of`, but every sequence is held and computed by itself, however often it comes."""
    single = [of(prompts[i : i + 1], actions[i : i + 1], device) for i in range(len(prompts))]
    nodes = list(itertools.accumulate((len(s.ids) for s in single), initial=0))
    drawn = list(itertools.accumulate((len(s.tokens) for s in single), initial=0))
    return cls(
        pairs=[pair for s in single for pair in s.pairs],
        ids=torch.cat([s.ids for s in single]),
        positions=torch.cat([s.positions for s in single]),
        paths=[path + start for s, start in zip(single, nodes, strict=False) for path in s.paths],
        own=[new for s in single for new in s.own],
        places=torch.cat([s.places + start for s, start in zip(single, nodes, strict=False)]),
        tokens=torch.cat([s.tokens for s in single]),
        lengths=torch.cat([s.lengths for s in single]),
        copies=torch.cat([s.copies + start for s, start in zip(single, drawn, strict=False)]),
    )


of = Sequences.of  # before a test replaces it


@pytest.mark.parametrize("name", variants_at_night([*TRAINED, "released"]))
def test_equal_actions_are_computed_once_and_count_as_often_as_they_were_drawn(make_agent, settings, name, monkeypatch):
    def begun():
        """An agent away from the reference; there some gradients are rounding alone, and AdamW would scale it up."""
        agent = make_agent()
        for role in ("policy", "critic", "target_critic"):
            generator = torch.Generator().manual_seed(0)
            for parameter in agent.networks.parameters(role):
                parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        agent.refresh()
        return agent

    def trained():
        agent = begun()
        section = settings.methods[name].plain()
        fast = {"epochs": 2, "policy_lr": 0.01, "critic_lr": 0.01}
        method = started(name, settings, agent, **{k: v for k, v in fast.items() if section.get(k, "exact") != "exact"})
        batch = [
            replace(t, reward=r) for t, r in zip(draw(agent, 3, set(), 0, length=3), (-1.0, 0.2, 1.0), strict=True)
        ]
        # One more behind a failure, one that is followed by a state, and all but one of them again.
        batch += [replace(batch[0], prompt=FAILED)]
        batch += [replace(batch[1], reward=-1.0, terminated=False, next_prompt=FAILED)]
        batch = [replace(t, environment=i) for i, t in enumerate(batch + batch[1:] + batch[2:3])]
        return [method.update(batch) for _ in range(2)], weights_of(agent, "policy", "critic")

    once, weights = trained()
    monkeypatch.setattr(Sequences, "of", classmethod(singly))
    alone, expected = trained()
    # In float32, sums in another order; and AdamW divides tiny gradients by their own size, rounding included.
    for a, b in zip(once, alone, strict=True):
        assert a.logged == pytest.approx(b.logged, rel=1e-3, abs=1e-6)
        for credit, of_its_own in zip(a.credit, b.credit, strict=True):
            assert credit == pytest.approx(of_its_own, rel=1e-3, abs=1e-5)
    moved = (expected - weights_of(begun(), "policy", "critic")).norm()
    assert moved > 0 and (weights - expected).norm() < 1e-3 * moved


def test_the_exact_policy_is_where_its_loss_is_least(make_agent, settings):
    agent = make_agent()
    method = started("etpo", settings, agent, policy_lr="exact")
    method.update(draw(agent, 8, {2}, 0))
    (batch,) = agent.networks.batches([one(PROMPT, (4, 5), 0.0), one(FAILED, (6,), 0.0)])
    terms = agent.networks.terms(batch, method.beta, policy="trained")
    assert terms.kl.max() > 1e-4  # it did learn
    assert terms.policy_loss.detach().abs().max() < 1e-6
    found = torch.autograd.grad(terms.policy_loss.sum(), agent.networks.parameters("policy"))
    assert max(float(g.abs().max()) for g in found) < 1e-5


def test_an_impossible_learning_rate_is_one_clear_line(settings):
    section = settings.methods["etpo"].plain()
    with pytest.raises(UserError, match="policy_lr: got 'fast', expected a learning rate or exact"):
        build_method("etpo", {**section, "policy_lr": "fast"})


def test_rates_are_shares_of_the_first_ones_after_a_restart_as_well(make_agent):
    def optimiser():
        return make_agent().networks.adamw({"critic": 0.4, "value": 0.2})

    first, second = optimiser(), optimiser()
    set_rates([first], 0.5)
    assert [g["lr"] for g in first.param_groups] == [0.2, 0.1]
    second.load_state_dict(first.state_dict())
    set_rates([first, second], 0.25)
    assert [g["lr"] for o in (first, second) for g in o.param_groups] == [0.1, 0.05] * 2


# Not on logits, where AdamW blows up rounding.
@pytest.mark.parametrize("name", variants_at_night(name for name in TRAINED if name != "etpo_on_logits"))
def test_micro_batches_change_nothing_but_memory(make_agent, settings, name):
    batch = [
        one(PROMPT, (4, 5, 6), -1.0, FAILED),
        one(PROMPT, (7,), 0.8),
        one(PROMPT, (4, 4), -1.0, (8, 8)),
        one(FAILED, (7, 8, 9, 10), 0.6),
    ]
    results = []
    for size in (1, 512):
        method = started(name, settings, make_agent(micro_batch_tokens=size))
        results.append([method.update(batch).logged for _ in range(2)])
    for a, b in zip(*results, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def value_of_one_half(agent, method):
    """Makes V 0.5 everywhere."""
    method.value.weight = torch.zeros(agent.networks.head_weight.shape[1] + 1, dtype=torch.float64)
    method.value.weight[-1] = 0.5


def critic_loss_of(make_agent, settings, transition, name="etpo", **changes):
    agent = make_agent()
    method = started(name, settings, agent, **changes)
    value_of_one_half(agent, method)
    return method.update([transition]).logged["critic_loss"]


@pytest.mark.parametrize("name", ["etpo", "etpo_action_level"])
def test_etpo_bootstraps_a_truncated_episode_from_the_next_state_and_a_terminated_one_not_at_all(
    make_agent, settings, name
):
    """V is 0.5 everywhere and KL is 0 at the start; with whole returns every token has the same target."""
    going_on = critic_loss_of(make_agent, settings, one(PROMPT, (4, 5), -1.0, FAILED), name, lam=1.0)
    assert going_on == pytest.approx((-1.0 + 0.99 * 0.5 - 0.5) ** 2)
    over = critic_loss_of(make_agent, settings, one(PROMPT, (4, 5), 0.9), name, lam=1.0)
    assert over == pytest.approx(0.4**2)


def test_the_one_step_backup_moves_a_token_to_the_value_of_the_next_prefix(make_agent, settings):
    """λ = 0: only the last token of an action sees its reward, the two others the V = 0.5 that is there already."""
    assert critic_loss_of(make_agent, settings, one(PROMPT, (4, 5, 6), 0.9), lam=0.0) == pytest.approx(0.4**2 / 3)


def test_a_next_state_that_was_acted_in_is_not_computed_again(make_agent, settings, monkeypatch):
    agent = make_agent(micro_batch_tokens=1)  # the longest sequence comes first, in a micro-batch of its own
    method = started("etpo", settings, agent)
    asked, state_batches = [], agent.networks.state_batches
    monkeypatch.setattr(agent.networks, "state_batches", lambda s: asked.extend(s) or state_batches(s))
    tries = [one(PROMPT, (4, 5), -1.0, FAILED), one(PROMPT, (4, 5), -1.0, (8, 8))]
    method.update([*tries, one(FAILED, (6, 7, 8), 0.5)])
    assert asked == [(8, 8)]


def test_action_level_gives_all_tokens_the_same_target_without_inner_kl(make_agent, settings):
    """V is 0, so the critic's loss shows the targets: the reward, less the later KLs where tokens have their own."""
    action = one(PROMPT, (4, 5, 6), 0.9)
    losses = []
    for name in ("etpo_action_level", "etpo"):
        agent = make_agent()
        for role in ("policy", "critic"):
            shift(agent, role, 0.05)
        method = started(name, settings, agent, policy_lr=0.0, critic_lr=0.0, beta=1.0)
        (batch,) = agent.networks.batches([action])
        kl = agent.networks.evaluate(batch).kl[0]
        advantage = agent.networks.terms(batch, 1.0, policy="fixed").advantage[0].detach()
        assert kl[1:].min() > 1e-3
        later = torch.zeros(3) if name == "etpo_action_level" else torch.stack([kl[1] + kl[2], kl[2], 0 * kl[2]])
        expected = float((0.9 - later - advantage).square().mean())
        losses.append(expected)
        assert method.update([action]).logged["critic_loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_built_from_its_section(settings, name):
    method = build_method(name, settings.methods[name].plain())
    assert method.reflect == (name != "etpo_no_reflection")


def test_unknown_names_are_one_clear_line(settings):
    with pytest.raises(UserError, match="unknown method 'sac'"):
        build_method("sac", {})
    with pytest.raises(UserError, match="'betta'"):
        build_method("etpo", {**settings.methods["etpo"].plain(), "betta": 1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"critic_lr": "1e-3"}, "methods.etpo.critic_lr: got '1e-3'"),
        ({"epochs": 0}, "methods.etpo.epochs: got 0"),
        ({"beta": None}, "methods.etpo.*beta"),
    ],
)
def test_a_wrong_setting_of_a_method_is_one_clear_line(settings, changes, message):
    section = {**settings.methods["etpo"].plain(), **changes}
    with pytest.raises(UserError, match=message):
        build_method("etpo", {key: value for key, value in section.items() if value is not None})


def test_what_the_new_methods_take_is_checked_as_well(settings):
    with pytest.raises(UserError, match="methods.tbrm.beta: got 0.0, expected more than 0"):
        build_method("tbrm", {**settings.methods["tbrm"].plain(), "beta": 0.0})
    with pytest.raises(UserError, match="methods.grpo.kl: got 'k4', expected 'k1', 'k2', 'k3' or 'full'"):
        build_method("grpo", {**settings.methods["grpo"].plain(), "kl": "k4"})


def ppo_critic_loss(make_agent, settings, batch, beta, by=0.0):
    """The critic's loss of a first update with V = 0.5 everywhere: the mean of (0.5 - return)^2."""
    agent = make_agent()
    with torch.no_grad():
        agent.networks.value_head.bias.fill_(0.5)
    shift(agent, "policy", by)
    return started("ppo_kl", settings, agent, beta=beta, epochs=1).update(batch).logged["critic_loss"]


def test_ppo_bootstraps_what_goes_on_and_nothing_else(make_agent, settings):
    on, over = [one(PROMPT, (4, 5), -1.0, FAILED)], [one(PROMPT, (4, 5), -1.0)]
    assert ppo_critic_loss(make_agent, settings, on, 0.1) == pytest.approx((0.5 + 1 - 0.99 * 0.5) ** 2)
    assert ppo_critic_loss(make_agent, settings, over, 0.1) == pytest.approx(1.5**2)


def log_ratio(agent, transition):
    """log pi/rho of the action tokens."""
    return log_prob(agent, "policy", transition) - log_prob(agent, "reference", transition)


def test_ppo_pays_for_the_divergence_of_the_action_drawn(make_agent, settings):
    over = one(PROMPT, (4, 5), -1.0)
    found = ppo_critic_loss(make_agent, settings, [over], 2.0, by=0.05)
    agent = make_agent()
    shift(agent, "policy", 0.05)
    paid = 2.0 * float(log_ratio(agent, over).sum())
    assert abs(paid) > 0.1
    assert found == pytest.approx((1.5 + paid) ** 2, rel=1e-4)


def test_token_level_ppo_pays_at_the_token_and_discounts_between_actions_only(make_agent, settings):
    agent = make_agent()
    shift(agent, "policy", 0.05)
    action = one(PROMPT, (4, 5, 6), 0.9)
    batch, values = LanguageBatch.of([action], "cpu"), torch.tensor([[0.1, 0.2, 0.3]])
    penalty = 2.0 * log_ratio(agent, action)[None]
    for name, inner in (("poad", 1.0), ("ntpo", 0.9)):
        method = started(name, settings, agent, gamma=0.9, lam=1.0, beta=2.0)
        returns = method._returns(batch, values, penalty, torch.zeros(1))[0]
        last = 0.9 - penalty[0, 2]
        middle = inner * last - penalty[0, 1]
        expected = torch.stack([inner * middle - penalty[0, 0], middle, last])
        torch.testing.assert_close(returns, expected, rtol=1e-5, atol=1e-6)
        method = started(name, settings, agent, gamma=0.9, lam=0.0, beta=2.0)
        one_step = method._returns(batch, values, penalty, torch.zeros(1))[0]
        expected = torch.tensor([inner * 0.2, inner * 0.3, 0.9]) - penalty[0]
        torch.testing.assert_close(one_step, expected, rtol=1e-5, atol=1e-6)


def test_token_level_ppo_bootstraps_what_goes_on_and_nothing_else(make_agent, settings):
    for next_prompt, expected in ((FAILED, -1.0 + 0.99 * 0.5), (None, -1.0)):
        agent = make_agent()
        with torch.no_grad():
            agent.networks.value_head.bias.fill_(0.5)
        logged = started("poad", settings, agent, epochs=1).update([one(PROMPT, (4,), -1.0, next_prompt)]).logged
        assert logged["critic_loss"] == pytest.approx((0.5 - expected) ** 2, rel=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_credit_is_what_the_method_held_of_each_token_before_it_learnt(make_agent, settings, name):
    batch = [one(PROMPT, (4, 5, 6), -1.0, FAILED), one(PROMPT, (7,), 0.75)]
    method = started(name, settings, make_agent())
    fresh = method.update(batch).credit
    assert [len(c) for c in fresh] == [3, 1]
    if name.startswith("etpo"):
        assert fresh == [[0, 0, 0], [0]]  # the critic is still the reference: no token is better than another
    elif name in ("tbrm", "shiq", "oreo"):
        assert sum(fresh, []) == pytest.approx([0, 0, 0, 0], abs=1e-6)  # nor is it in the logits
    elif name.startswith("ppo_kl"):
        assert fresh == [[-1, -1, -1], [0.75]]
    elif name == "grpo":  # in deviations of the group, which learning does not change
        assert fresh == [pytest.approx([-1, -1, -1]), pytest.approx([1])]
        return
    elif name == "rloo":  # the failed try led to the other one
        assert fresh == [pytest.approx([0.99 * 0.75 - 1.75] * 3), pytest.approx([1.75 - 0.99 * 0.75])]
    else:  # V is still 0: what is behind a token comes down to the reward, less at each step away from it
        shrink = method.lam * method.inner_discount
        assert fresh == [pytest.approx([-(shrink**2), -shrink, -1]), pytest.approx([0.75])]
    learnt = method.update(batch).credit
    assert learnt != fresh
    if name in ("etpo", "etpo_on_logits", "tbrm", "shiq", "oreo"):
        assert max(learnt[0]) < 0 < learnt[1][0], "the failed action is held worse, the other better"


def test_further_passes_of_the_exact_policy_are_steps_down_the_loss_of_the_first(make_agent, settings):
    batch = [one(PROMPT, (4, 5, 6), -1.0), one(PROMPT, (7, 8), 0.75)]
    agent, other = make_agent(), make_agent()
    method = started("etpo", settings, agent, epochs=1)
    started("etpo", settings, other, epochs=3).update(batch)
    networks, sequences = agent.networks, LanguageBatch.of(batch, "cpu").sequences
    with torch.no_grad():  # before anything is learnt: the policy, which is the reference
        drawn_by = networks.logits(networks.hidden("policy", sequences))
    method.update(batch)
    # V is 0 and so is the KL of the policy that acted: all that Q of a token of an action has to learn is its reward.
    targets = torch.tensor([-1.0, -1.0, -1.0, 0.75, 0.75])
    for _ in range(2):
        logits = networks.logits(networks.hidden("critic", sequences, grad=True))
        q = q_dueling(torch.zeros(5), logits, drawn_by, drawn_by, method.beta)
        error = (q[torch.arange(5), sequences.tokens] - targets).square()
        (error + method.advantage_prior * advantage_square(drawn_by, q)).mean().backward()
        networks.step(method.optimisers[0])
    # AdamW: rounding of tiny gradients in full
    found, expected = weights_of(other, "critic"), weights_of(agent, "critic")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)
    assert not torch.allclose(weights_of(agent, "policy"), weights_of(agent, "critic"), atol=1e-3)
    assert torch.equal(weights_of(other, "policy"), weights_of(other, "critic"))


def test_further_passes_of_a_descending_policy_keep_the_targets_of_the_policy_that_acted(make_agent, settings):
    batch = [one(PROMPT, (4, 5, 6), -1.0, FAILED), one(PROMPT, (7, 8), 0.75)]
    agent = make_agent()
    method, seen = started("etpo", settings, agent, epochs=3, policy_lr=0.05, critic_lr=0.05), []
    critic_loss = method._critic_loss
    method._critic_loss = lambda q, targets, mask: seen.append(targets) or critic_loss(q, targets, mask)
    logged = method.update(batch).logged
    assert len(seen) == 3 and torch.equal(seen[0], seen[2])
    assert logged["kl_per_token"] == 0.0, "what is logged is the KL of the policy that acted"
    assert not torch.equal(log_prob(agent, "policy", *batch), log_prob(agent, "reference", *batch))


def test_the_first_batch_is_learnt_from_by_whole_returns_and_later_ones_by_lambda_returns(make_agent, settings):
    batch = [one(PROMPT, (4, 5, 6), 0.75), one(PROMPT, (7,), -1.0)]
    method, seen = started("etpo", settings, make_agent(), lam=0.5, policy_lr=0.0, critic_lr=0.0), []
    targets = method._targets
    method._targets = lambda *a: seen.append((a[-1], a[0].flat(targets(*a)).tolist())) or targets(*a)
    for _ in range(2):
        method.update(batch)
    # Of each batch: what the critic is to learn, then what V is fitted to.
    assert [lam for lam, _ in seen] == [1.0, 1.0, 0.5, 1.0]
    assert sorted(seen[0][1]) == [-1.0, 0.75, 0.75, 0.75]
    assert min(seen[2][1]) > -1.0 - 1e-6 and len(set(seen[2][1])) > 2, "V has a say inside the action"


@pytest.mark.parametrize("changes", [{}, {"policy_lr": 0.01}, {"epochs": 2}], ids=["exact", "descent", "two passes"])
def test_a_centred_v_has_no_mean_error_on_the_batch_that_is_learnt_from(make_agent, settings, changes):
    method = started("etpo_memory", settings, make_agent(), remember=False, center=True, **changes)
    batch = [one(PROMPT, (4, 5, 6), 0.75), one(PROMPT, (7, 8), -1.0, FAILED), one(FAILED, (9,), -1.0)]
    seen, regressed, level = [], method._regressed, method._level
    method._regressed = lambda b, *a: seen.append((b, regressed(b, *a))) or seen[-1][1]
    levels = {}
    method._level = lambda b, expected: levels.setdefault(id(b), level(b, expected))
    for update in range(3):
        seen.clear()
        levels.clear()
        method.update(batch if update else batch + batch[:1])
        # Here the targets are whole returns, so that nothing but rounding is left over all tokens, however grouped.
        errors = torch.cat([b.flat(targets - levels[id(b)]) for b, targets in seen])
        assert abs(float(errors.mean())) < 1e-6 and errors.abs().max() > 0.1


def test_a_memory_that_is_switched_off_learns_from_the_batch_alone(make_agent, settings):
    batch = [one(PROMPT, (6, 7), 0.9), one(PROMPT, (4, 5), -0.2)]
    agents = make_agent(), make_agent()
    methods = started("etpo_memory", settings, agents[0], remember=False), started("etpo", settings, agents[1])
    for _ in range(2):
        assert methods[0].update(batch) == methods[1].update(batch)
    assert torch.equal(weights_of(agents[0], "critic"), weights_of(agents[1], "critic"))


@pytest.mark.parametrize("name", ["etpo_memory", "ppo_kl_memory"])
def test_a_memory_holds_the_best_action_that_ended_its_episode(make_agent, settings, name):
    first, lesser = one(PROMPT, (6, 7), 0.9), one(PROMPT, (4, 7), -0.2)
    equal, going_on = replace(first, action=(5, 7)), one(PROMPT, (8, 7), 1.0, FAILED)
    method = started(name, settings, make_agent())
    method.update([going_on, going_on])
    assert method.memory.best is None
    method.update([lesser, first, equal, going_on])
    assert method.memory.best == first
    # Later it is learnt from in the state that most of a batch was written in.
    later = [lesser, replace(lesser, prompt=FAILED), replace(lesser, prompt=FAILED)]
    assert method.memory.keep(later) == [replace(first, prompt=FAILED)] and method.memory.best == first


def test_a_memory_lifts_an_action_where_q_is_too_low_and_does_nothing_else(make_agent, settings):
    agent = make_agent()
    method = started("etpo_memory", settings, agent)
    best = one(FAILED, (6, 7), 0.9)
    method.update([best, one(PROMPT, (4, 5), -0.2)])

    def lifted(reward):
        again = replace(best, prompt=PROMPT, reward=reward)
        method.remembered = agent.networks.batches([again])
        for p in agent.networks.parameters("critic"):
            p.grad = None
        before = log_prob(agent, "critic", again)
        method._learn_besides(total=2)
        with torch.no_grad():
            for p in agent.networks.parameters("critic"):
                p.sub_(0.1 * p.grad)
        return log_prob(agent, "critic", again) - before

    assert (lifted(-5.0) == 0).all()
    assert (lifted(5.0) > 0).all()


@pytest.mark.parametrize("policy_lr", ["exact", 0.01])
def test_etpo_learns_from_what_it_remembers_in_every_pass(make_agent, settings, policy_lr):
    best, lesser = one(PROMPT, (6, 7), 0.9), one(PROMPT, (4, 5), -0.2)

    def q_of_best(name, epochs):
        agent = make_agent()
        method = started(name, settings, agent, policy_lr=policy_lr, epochs=epochs)
        method.update([best, lesser])  # a memory is learnt from once V knows something
        method.update([lesser, lesser])
        return float(log_prob(agent, "critic", best).sum())

    once, twice = (q_of_best("etpo_memory", n) - q_of_best("etpo", n) for n in (1, 2))
    assert once > 0.01
    assert twice > 1.6 * once, "the second pass learns from it too"


def test_ppo_learns_from_what_it_remembers_where_that_is_better_and_reports_only_the_batch(make_agent, settings):
    drawn = [one(PROMPT, (n, 5), r) for n, r in ((4, 0.5), (8, 0.7))]

    def update(name, reward=0.0):
        agent = make_agent()
        shift(agent, "policy", 0.05)
        other = one(PROMPT, (6, 7), reward)
        before = float(log_prob(agent, "policy", other).sum())
        # The KL left alone, so that rewards are what actions differ by.
        method = started(name, settings, agent, beta=0.0)
        if name == "ppo_kl_memory":
            method.memory.keep([other])
            method.memory.keep = lambda transitions: [other]
        result = method.update(drawn)
        return result, float(log_prob(agent, "policy", other).sum()) - before

    (alone, moved), (better, lifted) = update("ppo_kl"), update("ppo_kl_memory", 0.9)
    _, least = update("ppo_kl_memory", -1.0)
    assert lifted > moved + 0.05
    assert abs(least - moved) < lifted - moved, "what is worse than the batch is not pushed down"
    assert better.credit == alone.credit and len(better.credit) == 2
    for name in ("kl_per_token", "kl_per_action", "critic_loss"):
        assert better.logged[name] == pytest.approx(alone.logged[name], rel=1e-5)


@pytest.mark.parametrize("name", ["etpo_memory", "ppo_kl_memory"])
def test_a_memory_survives_a_checkpoint(make_agent, settings, name):
    method = started(name, settings, make_agent())
    assert method.get_state()["best"] is None
    method.update([one(PROMPT, (6, 7), 0.9)])
    other = started(name, settings, make_agent())
    other.set_state(method.get_state())
    assert other.memory.best == method.memory.best


# How often an update runs a network over its batch, by `docs/methods.md`: without a gradient, and with one.
RUNS = {"ppo_kl": (3, 2), "poad": (4, 4), "etpo": (3, 1), "etpo_on_logits": (7, 2), "tbrm": (1, 1), "shiq": (1, 1)}
RUNS |= {"oreo": (1, 2), "grpo": (2, 2), "rloo": (2, 1)}


@pytest.mark.parametrize("name", RUNS)
def test_an_update_runs_the_networks_as_often_as_the_documentation_says(make_agent, settings, name, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/methods.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}`.*\| {RUNS[name][0]} \+ {RUNS[name][1]} \|", page, re.MULTILINE)
    agent, runs = make_agent(), Counter()
    hidden = agent.networks.hidden

    def counted(role, sequences, grad=False):
        runs[grad] += 1
        return hidden(role, sequences, grad)

    monkeypatch.setattr(agent.networks, "hidden", counted)
    started(name, settings, agent).update([one(PROMPT, (4, 5, 6), -1.0), one(PROMPT, (7,), 0.75)])
    assert (runs[False], runs[True]) == RUNS[name]
