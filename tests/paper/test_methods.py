from dataclasses import replace

import pytest
import torch

from etpo_core.errors import UserError
from etpo_core.losses import q_dueling
from etpo_paper.base.settings import Settings, load_settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods import METHODS, build_method
from etpo_paper.methods.common import adamw, micro_batches, optimiser_step, pack, set_rates, token_log_prob
from etpo_paper.model.agent import Sequences

TRAINED = ["etpo", "etpo_action_level", "etpo_memory", "ppo_kl", "ppo_kl_memory", "poad", "ntpo"]
PROMPT, FAILED = (1, 2, 3), (1, 2, 3, 9, 9)


@pytest.fixture(scope="module")
def settings():
    return load_settings("laptop")


def started(name, settings, agent, **changes):
    method = build_method(name, Settings(**{**vars(settings.methods[name]), **changes}))
    training = Settings(**{**vars(settings.training), "micro_batch_tokens": 512})
    method.start(agent, training)
    return method


def draw(agent, count, good, seed, length=2):
    """Actions of the policy itself; the reward is +1 when the first token is a good one, else -1."""
    sequences = Sequences.pack([PROMPT], [[0]], "cpu")
    generator = torch.Generator().manual_seed(seed)
    first = agent.logits(agent.hidden("policy", sequences)).softmax(-1)[0]
    batch = []
    for token in torch.multinomial(first, count, replacement=True, generator=generator).tolist():
        action = (token, *(5,) * (length - 1))
        batch.append(Transition(PROMPT, action, (0.0,) * length, 1.0 if token in good else -1.0, True, None))
    return batch


def chance(agent, good):
    with torch.no_grad():
        hidden = agent.hidden("policy", Sequences.pack([PROMPT], [[0]], "cpu"))
        return float(agent.logits(hidden).softmax(-1)[0, sorted(good)].sum())


@pytest.mark.parametrize("name", TRAINED)
def test_it_learns_which_tokens_earn_the_reward(make_agent, settings, name):
    agent = make_agent()
    fast = {"policy_lr": 3e-3}
    fast |= {"critic_lr": 3e-3} if name.startswith("etpo") else {"value_lr": 0.03}
    method = started(name, settings, agent, **fast)
    # Half of the vocabulary, told apart by a direction of the head, so that a change of the hidden state can do it.
    side = agent.head_weight @ torch.randn(agent.head_weight.shape[1], generator=torch.Generator().manual_seed(0))
    good = set((side > 0).nonzero().flatten().tolist())
    before = chance(agent, good)
    for update in range(6):
        logged = method.update(draw(agent, 128, good, seed=update)).logged
    assert chance(agent, good) > before + 0.08, logged


@pytest.mark.parametrize("name", TRAINED)
def test_the_first_update_starts_from_the_reference(make_agent, settings, name):
    agent = make_agent()
    logged = started(name, settings, agent).update(draw(agent, 6, {2}, 0)).logged
    assert logged["kl_per_token"] == 0.0 and logged["kl_per_action"] == 0.0


def singly(agent, group):
    """`pack` with a row for each transition, whether equal to another or not."""
    packed = pack(agent, group)
    distinct = list(dict.fromkeys((t.prompt, t.action) for t in group))
    rows = [distinct.index((t.prompt, t.action)) for t in group]
    tokens = packed.each(packed.tokens)
    return replace(
        packed,
        ids=packed.ids[rows],
        rows=torch.arange(len(group)).repeat_interleave(packed.lengths),
        columns=torch.cat([packed.columns[packed.rows == row] for row in rows]),
        tokens=tokens,
        copies=torch.arange(len(tokens)),
    )


@pytest.mark.parametrize("name", [*TRAINED, "released"])
def test_equal_actions_are_computed_once_and_count_as_often_as_they_were_drawn(make_agent, settings, name, monkeypatch):
    def trained(pack):
        for module in ("etpo", "ppo_kl", "poad", "released"):
            monkeypatch.setattr(f"etpo_paper.methods.{module}.pack", pack)
        agent = make_agent()
        fast = {"epochs": 2, "policy_lr": 0.01, "critic_lr": 0.01}
        fast = {key: value for key, value in fast.items() if vars(settings.methods[name]).get(key, "exact") != "exact"}
        method = started(name, settings, agent, **fast)
        batch = [
            replace(t, reward=r) for t, r in zip(draw(agent, 3, set(), 0, length=3), (-1.0, 0.2, 1.0), strict=True)
        ]
        # One more behind a failure, one that is followed by a state, and all but one of them again.
        batch += [replace(batch[0], prompt=FAILED), replace(batch[1], reward=-1.0, done=False, next_prompt=FAILED)]
        found = [method.update(batch + batch[1:] + batch[2:3]) for _ in range(2)]
        return found, weights_of(agent)

    def weights_of(agent):
        return torch.cat([p.detach().flatten() for a in ("policy", "critic") for p in agent.parameters(a)])

    # In float32, sums in another order; and AdamW divides tiny gradients by their own size, rounding included.
    (once, weights), (alone, expected) = trained(pack), trained(singly)
    for a, b in zip(once, alone, strict=True):
        assert a.logged == pytest.approx(b.logged, rel=1e-3, abs=1e-6)
        for credit, of_its_own in zip(a.credit, b.credit, strict=True):
            assert credit == pytest.approx(of_its_own, rel=1e-3, abs=1e-5)
    moved = (expected - weights_of(make_agent())).norm()
    assert moved > 0 and (weights - expected).norm() < 1e-3 * moved


@pytest.mark.parametrize("reading", ["dueling", "residual", "scaled"])
def test_the_exact_policy_is_where_its_loss_is_least(make_agent, settings, reading):
    agent = make_agent()
    method = started("etpo", settings, agent, policy_lr="exact", reading=reading)
    method.update(draw(agent, 8, {2}, 0))
    batch = Sequences.pack([PROMPT, FAILED], [(4, 5), (6,)], "cpu")
    policy, reference, critic = (agent.hidden(role, batch).detach() for role in ("policy", "reference", "critic"))
    policy.requires_grad_(True)
    loss = method.reading.terms(agent, policy, reference, critic, batch.tokens, method.beta).policy_loss
    assert (policy - reference).abs().max() > 1e-3  # it did learn
    assert loss.detach().abs().max() < 1e-6
    assert torch.autograd.grad(loss.sum(), policy)[0].abs().max() < 1e-6


def test_a_policy_without_a_known_minimum_takes_no_exact_step(settings):
    section = vars(settings.methods.etpo)
    with pytest.raises(UserError, match="policy_lr: exact has no weights to take with reading raw"):
        build_method("etpo", Settings(**{**section, "reading": "raw"}))
    with pytest.raises(UserError, match="policy_lr: got 'fast', expected a learning rate or exact"):
        build_method("etpo", Settings(**{**section, "policy_lr": "fast"}))


def test_rates_are_shares_of_the_first_ones_after_a_restart_as_well():
    def optimiser():
        return adamw(0.9, ([torch.nn.Parameter(torch.zeros(1))], 0.4), ([torch.nn.Parameter(torch.zeros(1))], 0.2))

    first, second = optimiser(), optimiser()
    set_rates([first], 0.5)
    assert [g["lr"] for g in first.param_groups] == [0.2, 0.1]
    second.load_state_dict(first.state_dict())
    set_rates([first, second], 0.25)
    assert [g["lr"] for o in (first, second) for g in o.param_groups] == [0.1, 0.05] * 2


@pytest.mark.parametrize("name", TRAINED)
def test_micro_batches_change_nothing_but_memory(make_agent, settings, name):
    batch = [
        Transition(PROMPT, (4, 5, 6), (0.0,) * 3, -1.0, False, FAILED),
        Transition(PROMPT, (7,), (0.0,), 0.8, True, None),
        Transition(PROMPT, (4, 4), (0.0,) * 2, -1.0, False, (8, 8)),
        Transition(FAILED, (7, 8, 9, 10), (0.0,) * 4, 0.6, True, None),
    ]
    results = []
    for size in (1, 512):
        agent = make_agent()
        method = build_method(name, settings.methods[name])
        method.start(agent, Settings(**{**vars(settings.training), "micro_batch_tokens": size}))
        logged = [method.update(batch).logged for _ in range(2)]
        results.append((logged, agent.get_state()))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_micro_batches_keep_every_transition_and_the_limit():
    prompts = [(1, 2, 3), (1, 2, 3, 9, 9), (1, 2, 7), (1, 2, 3, 9, 8, 8)]
    batch = [Transition(p, (4,) * n, (0.0,) * n, 0.0, True, None) for p in prompts for n in (1, 2, 5)]
    groups = list(micro_batches(batch, 16))
    assert sorted((t for g in groups for t in g), key=repr) == sorted(batch, key=repr)
    for group in groups:
        packed = pack_on_cpu(group)
        assert len(packed.prefix) + packed.ids.numel() <= 16
    assert any(len(group) > 1 for group in groups)
    assert [len(group) for group in micro_batches(batch, 1)] == [1] * len(batch)


def pack_on_cpu(group):
    return Sequences.pack([t.prompt for t in group], [t.action for t in group], "cpu")


def test_etpo_bootstraps_a_cut_off_episode_from_the_next_state(make_agent, settings):
    agent = make_agent()
    method = started("etpo", settings, agent)
    method.value.weight = torch.zeros(agent.head_weight.shape[1] + 1, dtype=torch.float64)
    method.value.weight[-1] = 0.5
    group = [Transition(PROMPT, (4, 5), (0.0,) * 2, -1.0, False, FAILED)]
    next_value = method._next_soft_value(group, {})
    assert next_value.tolist() == pytest.approx([0.5])  # KL is 0 at the start
    batch = Sequences.pack([PROMPT], [(4, 5)], "cpu")
    targets = method._targets(batch, group, torch.tensor([0.5, 0.5]), torch.zeros(2), next_value, {}, 1.0)
    assert targets.tolist() == pytest.approx([-1.0 + 0.99 * 0.5] * 2)


def test_etpo_does_not_bootstrap_a_done_episode(make_agent, settings):
    agent = make_agent()
    method = started("etpo", settings, agent)
    method.value.weight = torch.zeros(agent.head_weight.shape[1] + 1, dtype=torch.float64)
    method.value.weight[-1] = 0.5
    group = [Transition(PROMPT, (4, 5), (0.0,) * 2, 0.9, True, None)]
    assert method._next_soft_value(group, {}).tolist() == [0.0]


def test_a_next_state_that_was_acted_in_is_not_computed_again(make_agent, settings):
    agent = make_agent()
    method = started("etpo", settings, agent)
    group = [Transition(PROMPT, (4, 5), (0.0,) * 2, -1.0, False, FAILED)]
    assert method._next_soft_value(group, {FAILED: 0.25}).tolist() == [0.25]


def test_action_level_gives_all_tokens_the_same_target_without_inner_kl(make_agent, settings):
    agent = make_agent()
    method = started("etpo_action_level", settings, agent)
    batch = Sequences.pack([PROMPT], [(4, 5, 6)], "cpu")
    group = [Transition(PROMPT, (4, 5, 6), (0.0,) * 3, 0.9, True, None)]
    kl = torch.tensor([0.1, 0.2, 0.3])
    zero = torch.zeros(1)
    assert method._targets(batch, group, torch.zeros(3), kl, zero, {}, 1.0).tolist() == pytest.approx([0.9] * 3)
    token = started("etpo", settings, make_agent())
    beta = token.beta
    expected = [0.9 - beta * 0.5, 0.9 - beta * 0.3, 0.9]
    assert token._targets(batch, group, torch.zeros(3), kl, zero, {}, 1.0).tolist() == pytest.approx(expected)


def test_importance_weights_come_in_only_when_sampling_differs_from_the_policy(make_agent, settings):
    agent = make_agent()
    method = build_method("etpo", settings.methods.etpo)
    method.start(agent, Settings(**{**vars(settings.training), "temperature": 0.5}))
    assert not method.drawn_from_policy
    assert started("etpo", settings, make_agent()).drawn_from_policy
    batch = Sequences.pack([PROMPT], [(4, 5)], "cpu")
    group = [Transition(PROMPT, (4, 5), (-1.0, -2.0), 0.9, True, None)]
    weights = method._importance(batch, group, torch.tensor([-1.0, -3.0]))
    assert weights.tolist()[0] == pytest.approx([1.0, 0.36787944])
    assert method.update(group).logged["kl_per_token"] == 0.0


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_built_from_its_section(settings, name):
    method = build_method(name, settings.methods[name])
    assert method.reflect == (name != "etpo_no_reflection")


def test_unknown_names_are_one_clear_line(settings):
    with pytest.raises(UserError, match="unknown method 'sac'; choose one of: etpo"):
        build_method("sac", Settings())
    wrong = Settings(**vars(settings.methods.etpo), betta=1.0)
    with pytest.raises(UserError, match="unknown parameter of method etpo 'betta'.*: advantage_prior, beta, center"):
        build_method("etpo", wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"critic_lr": "1e-3"}, "methods.etpo.critic_lr: got '1e-3', expected a number .YAML reads"),
        ({"epochs": 0}, "methods.etpo.epochs: got 0, expected at least 1"),
        ({"beta": None}, "methods.etpo of params.yaml lacks 'beta'"),
    ],
)
def test_a_wrong_setting_of_a_method_is_one_clear_line(settings, changes, message):
    section = {**vars(settings.methods.etpo), **changes}
    with pytest.raises(UserError, match=message):
        build_method("etpo", Settings(**{key: value for key, value in section.items() if value is not None}))


def ppo_critic_loss(make_agent, settings, batch, beta, shift=0.0):
    """The critic's loss of a first update with V = 0.5 everywhere: the mean of (0.5 - return)^2."""
    agent = make_agent()
    with torch.no_grad():
        agent.value_heads["critic"].bias.fill_(0.5)
        for parameter in agent.parameters("policy"):
            parameter.add_(shift)
    return started("ppo_kl", settings, agent, beta=beta, epochs=1).update(batch).logged


def test_ppo_bootstraps_what_goes_on_and_nothing_else(make_agent, settings):
    on = [Transition(PROMPT, (4, 5), (0.0,) * 2, -1.0, False, FAILED)]
    over = [Transition(PROMPT, (4, 5), (0.0,) * 2, -1.0, True, None)]
    assert ppo_critic_loss(make_agent, settings, on, 0.1)["critic_loss"] == pytest.approx((0.5 + 1 - 0.99 * 0.5) ** 2)
    assert ppo_critic_loss(make_agent, settings, over, 0.1)["critic_loss"] == pytest.approx(1.5**2)


def log_ratio(agent, batch):
    """log pi/rho of the action tokens of a packed batch."""
    return token_log_prob(agent, batch, agent.hidden("policy", batch)) - token_log_prob(
        agent, batch, agent.hidden("reference", batch)
    )


def test_ppo_pays_for_the_divergence_of_the_action_drawn(make_agent, settings):
    over = [Transition(PROMPT, (4, 5), (0.0,) * 2, -1.0, True, None)]
    logged = ppo_critic_loss(make_agent, settings, over, 2.0, shift=0.05)
    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.parameters("policy"):
            parameter.add_(0.05)
    paid = 2.0 * float(log_ratio(agent, pack_on_cpu(over)).sum())
    assert abs(paid) > 0.1
    assert logged["critic_loss"] == pytest.approx((1.5 + paid) ** 2, rel=1e-4)


def test_token_level_ppo_pays_at_the_token_and_discounts_between_actions_only(make_agent, settings):
    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.parameters("policy"):
            parameter.add_(0.05)
    group = [Transition(PROMPT, (4, 5, 6), (0.0,) * 3, 0.9, True, None)]
    batch, values = pack_on_cpu(group), torch.tensor([0.1, 0.2, 0.3])
    penalty = 2.0 * log_ratio(agent, batch)
    for name, inner in (("poad", 1.0), ("ntpo", 0.9)):
        method = started(name, settings, agent, gamma=0.9, lam=1.0, beta=2.0)
        returns = method._returns(group, batch, values, penalty, torch.zeros(1))
        last = 0.9 - penalty[2]
        middle = inner * last - penalty[1]
        expected = torch.stack([inner * middle - penalty[0], middle, last])
        torch.testing.assert_close(returns, expected, rtol=1e-5, atol=1e-6)
        method = started(name, settings, agent, gamma=0.9, lam=0.0, beta=2.0)
        one_step = method._returns(group, batch, values, penalty, torch.zeros(1))
        expected = torch.tensor([inner * 0.2, inner * 0.3, 0.9]) - penalty
        torch.testing.assert_close(one_step, expected, rtol=1e-5, atol=1e-6)


def test_token_level_ppo_bootstraps_what_goes_on_and_nothing_else(make_agent, settings):
    for done, expected in ((False, -1.0 + 0.99 * 0.5), (True, -1.0)):
        agent = make_agent()
        with torch.no_grad():
            agent.value_heads["critic"].bias.fill_(0.5)
        group = [Transition(PROMPT, (4,), (0.0,), -1.0, done, None if done else FAILED)]
        logged = started("poad", settings, agent, epochs=1).update(group).logged
        assert logged["critic_loss"] == pytest.approx((0.5 - expected) ** 2, rel=1e-5)


@pytest.mark.parametrize("name", [*TRAINED, "etpo_residual"])
def test_credit_is_what_the_method_held_of_each_token_before_it_learnt(make_agent, settings, name):
    batch = [
        Transition(PROMPT, (4, 5, 6), (0.0,) * 3, -1.0, False, FAILED),
        Transition(PROMPT, (7,), (0.0,), 0.75, True, None),
    ]
    changes = {"reading": "residual"} if name == "etpo_residual" else {}
    agent = make_agent()
    method = started(name.removesuffix("_residual"), settings, agent, **changes)
    fresh = method.update(batch).credit
    assert [len(c) for c in fresh] == [3, 1]
    if name.startswith("etpo"):
        assert fresh == [[0, 0, 0], [0]]  # the critic is still the reference: no token is better than another
    elif name.startswith("ppo_kl"):
        assert fresh == [[-1, -1, -1], [0.75]]
    else:  # V is still 0: what is behind a token comes down to the reward, less at each step away from it
        shrink = method.lam * method.inner_discount
        assert fresh == [pytest.approx([-(shrink**2), -shrink, -1]), pytest.approx([0.75])]
    learnt = method.update(batch).credit
    assert learnt != fresh
    if name in ("etpo", "etpo_residual"):
        assert max(learnt[0]) < 0 < learnt[1][0], "the failed action is held worse, the other better"


def test_a_second_pass_corrects_for_the_policy_that_has_moved(make_agent, settings):
    batch = [
        Transition(PROMPT, (4, 5, 6), (0.0,) * 3, -1.0, False, FAILED),
        Transition(PROMPT, (7, 8), (0.0,) * 2, 0.75, True, None),
    ]

    def logged(epochs, **rates):
        agent = make_agent()
        method = started("etpo", settings, agent, epochs=epochs, lam=0.5, **rates)
        drawn = token_log_prob(agent, pack(agent, batch), agent.hidden("policy", pack(agent, batch))).tolist()
        own = [replace(t, log_probs=tuple(drawn[i : i + len(t.action)])) for i, t in zip((0, 3), batch, strict=True)]
        weights = []
        importance = method._importance
        method._importance = lambda *a: weights.append(importance(*a)) or weights[-1]
        return method.update(own).logged, weights, agent

    still = {"policy_lr": 0.0, "critic_lr": 0.0}
    once, none, _ = logged(1, **still)
    twice, ones, _ = logged(2, **still)
    assert none == [] and len(ones) == 1
    torch.testing.assert_close(ones[0][ones[0] > 0], torch.ones(5))  # nothing moved: nothing to correct
    assert twice == pytest.approx(once, rel=1e-5, abs=1e-7)
    moved, others, agent = logged(3, policy_lr=0.05, critic_lr=0.05)
    assert len(others) == 2  # the critic starts as the reference, so that it is the second step that moves the policy
    assert (others[1][others[1] > 0] - 1).abs().min() > 1e-3
    assert moved["kl_per_token"] == 0.0, "what is logged is the KL of the policy that acted"
    policy, reference = (agent.hidden(role, pack(agent, batch)) for role in ("policy", "reference"))
    assert not torch.equal(policy, reference)


def test_further_passes_of_the_exact_policy_are_steps_down_the_loss_of_the_first(make_agent, settings):
    batch = [
        Transition(PROMPT, (4, 5, 6), (0.0,) * 3, -1.0, True, None),
        Transition(PROMPT, (7, 8), (0.0,) * 2, 0.75, True, None),
    ]
    agent, other = make_agent(), make_agent()
    method = started("etpo", settings, agent, epochs=1)
    started("etpo", settings, other, epochs=3).update(batch)
    packed = pack(agent, batch)
    with torch.no_grad():  # before anything is learnt: the policy, which is the reference
        drawn_by = agent.logits(agent.hidden("policy", packed))
    method.update(batch)
    # V is 0 and so is the KL of the policy that acted: all that Q of a token of an action has to learn is its reward.
    targets = torch.tensor([-1.0, -1.0, -1.0, 0.75, 0.75])
    for _ in range(2):
        logits = agent.logits(agent.hidden("critic", packed, grad=True))
        q = q_dueling(torch.zeros(5), logits, drawn_by, drawn_by, method.beta)
        spread = (drawn_by.softmax(-1) * q.square()).sum(-1)
        error = (q[torch.arange(5), packed.tokens] - targets).square()
        (error + method.advantage_prior * spread).mean().backward()
        optimiser_step(method.critic_optimiser, method.grad_norm)
    found, expected = (torch.cat([p.flatten() for p in a.parameters("critic")]) for a in (other, agent))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)  # AdamW: rounding of tiny gradients in full
    assert not torch.allclose(agent.hidden("policy", packed), agent.hidden("critic", packed), atol=1e-3)
    torch.testing.assert_close(other.hidden("policy", packed), other.hidden("critic", packed))


def test_the_first_batch_is_learnt_from_by_whole_returns_and_later_ones_by_lambda_returns(make_agent, settings):
    batch = [
        Transition(PROMPT, (4, 5, 6), (0.0,) * 3, 0.75, True, None),
        Transition(PROMPT, (7,), (0.0,), -1.0, True, None),
    ]
    method = started("etpo", settings, make_agent(), lam=0.5, policy_lr=0.0, critic_lr=0.0)
    seen = []
    targets = method._targets
    method._targets = lambda *a, lam: seen.append((lam, targets(*a, lam=lam))) or seen[-1][1]
    for _ in range(2):
        method.update(batch)
    # Of each batch: what the critic is to learn, then what V is fitted to.
    assert [lam for lam, _ in seen] == [1.0, 1.0, 0.5, 1.0]
    assert sorted(seen[0][1].tolist()) == [-1.0, 0.75, 0.75, 0.75]
    assert seen[2][1].min() > -1.0 - 1e-6 and len(set(seen[2][1].tolist())) > 2, "V has a say inside the action"


@pytest.mark.parametrize("changes", [{}, {"policy_lr": 0.01}, {"epochs": 2}], ids=["exact", "descent", "two passes"])
def test_a_centred_v_has_no_mean_error_on_the_batch_that_is_learnt_from(make_agent, settings, changes):
    method = started("etpo", settings, make_agent(), center=True, **changes)
    batch = [
        Transition(PROMPT, (4, 5, 6), (0.0,) * 3, 0.75, True, None),
        Transition(PROMPT, (7, 8), (0.0,) * 2, -1.0, False, FAILED),
        Transition(FAILED, (9,), (0.0,), -1.0, True, None),
    ]
    seen, descend = [], method._descend

    def spy(terms, value, targets, total, sums):
        seen.append((targets - value).tolist())
        descend(terms, value, targets, total, sums)

    method._descend = spy
    for update in range(3):
        seen.clear()
        method.update(batch if update else batch + batch[:1])
        # Here the targets are whole returns, so that nothing but rounding is left over all tokens, however grouped.
        first_pass = seen[: len(seen) // method.epochs]
        errors = [e for of_group in first_pass for e in of_group]
        assert abs(sum(errors)) / len(errors) < 1e-6 and max(map(abs, errors)) > 0.1


def test_what_cannot_be_centred_is_one_clear_line(settings):
    wrong = Settings(**{**vars(settings.methods.etpo), "reading": "raw", "policy_lr": 0.001, "center": True})
    with pytest.raises(UserError, match="center: true has no V to move with reading raw"):
        build_method("etpo", wrong)


@pytest.mark.parametrize("name", ["etpo_memory", "ppo_kl_memory"])
def test_a_memory_holds_the_best_action_that_ended_its_episode(make_agent, settings, name):
    first, lesser = (Transition(PROMPT, (n, 7), (0.0,) * 2, r, True, None) for n, r in ((6, 0.9), (4, -0.2)))
    equal, going_on = replace(first, action=(5, 7)), Transition(PROMPT, (8, 7), (0.0,) * 2, 1.0, False, FAILED)
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
    best = Transition(FAILED, (6, 7), (0.0,) * 2, 0.9, True, None)
    method.update([best, Transition(PROMPT, (4, 5), (0.0,) * 2, -0.2, True, None)])
    batch = Sequences.pack([PROMPT], [best.action], "cpu")

    def lifted(reward):
        method.remembered = [replace(best, prompt=PROMPT, reward=reward)]
        for p in agent.parameters("critic"):
            p.grad = None
        before = token_log_prob(agent, batch, agent.hidden("critic", batch))
        method._learn_besides(total=2)
        with torch.no_grad():
            for p in agent.parameters("critic"):
                p.sub_(0.1 * p.grad)
        after = token_log_prob(agent, batch, agent.hidden("critic", batch))
        return after - before

    assert (lifted(-5.0) == 0).all()
    assert (lifted(5.0) > 0).all()


@pytest.mark.parametrize("policy_lr", ["exact", 0.01])
def test_etpo_learns_from_what_it_remembers_in_every_pass(make_agent, settings, policy_lr):
    best = Transition(PROMPT, (6, 7), (0.0,) * 2, 0.9, True, None)
    lesser = Transition(PROMPT, (4, 5), (0.0,) * 2, -0.2, True, None)

    def q_of_best(name, epochs):
        agent = make_agent()
        method = started(name, settings, agent, policy_lr=policy_lr, epochs=epochs)
        method.update([best, lesser])  # a memory is learnt from once V knows something
        method.update([lesser, lesser])
        return float(token_log_prob(agent, packed, agent.hidden("critic", packed)).sum())

    packed = pack_on_cpu([best])
    once, twice = (q_of_best("etpo_memory", n) - q_of_best("etpo", n) for n in (1, 2))
    assert once > 0.01
    assert twice > 1.6 * once, "the second pass learns from it too"


def test_ppo_learns_from_what_it_remembers_where_that_is_better_and_tells_only_of_the_batch(make_agent, settings):
    drawn = [Transition(PROMPT, (n, 5), (0.0,) * 2, r, True, None) for n, r in ((4, 0.5), (8, 0.7))]
    other = Transition(PROMPT, (6, 7), (0.0,) * 2, 0.0, True, None)

    def update(*rewards):
        agent = make_agent()
        with torch.no_grad():
            for parameter in agent.parameters("policy"):
                parameter.add_(0.05)
        packed = pack_on_cpu([other])
        before = float(token_log_prob(agent, packed, agent.hidden("policy", packed)).sum())
        # The KL left alone, so that rewards are what actions differ by.
        method = started("ppo_kl", settings, agent, beta=0.0)
        learnt = method.update(drawn, [replace(other, reward=reward) for reward in rewards])
        after = float(token_log_prob(agent, packed, agent.hidden("policy", packed)).sum())
        return learnt, after - before

    (alone, moved), (better, lifted), (_, least) = update(), update(0.9), update(-1.0)
    assert lifted > moved + 0.05
    assert abs(least - moved) < lifted - moved, "what is worse than the batch is not pushed down"
    assert better.credit == alone.credit and len(better.credit) == 2
    for name in ("kl_per_token", "kl_per_action", "critic_loss"):
        assert better.logged[name] == pytest.approx(alone.logged[name], rel=1e-5)


@pytest.mark.parametrize("name", ["etpo_memory", "ppo_kl_memory"])
def test_a_memory_survives_a_checkpoint(make_agent, settings, name):
    method = started(name, settings, make_agent())
    assert method.get_state()["best"] is None
    method.update([Transition(PROMPT, (6, 7), (0.0,) * 2, 0.9, True, None)])
    other = started(name, settings, make_agent())
    other.set_state(method.get_state())
    assert other.memory.best == method.memory.best
