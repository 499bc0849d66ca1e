"""Small worlds in which everything can be enumerated: where ETPO's claims are checked against brute force.

A `World` has a few states, a vocabulary of a few tokens and actions that are token sequences: an action
ends with the end token (the last of the vocabulary) or when it is cut off at the longest length. Each
whole action has a reward, may end the episode, and otherwise leads to a random next state. Tables over
prefixes, [states, prefixes, vocabulary], stand where a language model would: logits of the policy and of
the reference, and Q.

Two solvers look at the same world and share no step. The *action level* forgets that actions have
tokens: it enumerates every sequence, multiplies its probabilities out and solves a linear system (or
    iterates the closed-form
optimum). The *token level* repeats `bellman.token_targets` and `losses.target_policy_logits`, as training
does.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etpo_core import bellman, losses


@dataclass(frozen=True)
class World:
    """A tabular world; S states, V tokens, A actions of at most T tokens, P prefixes; all numbers float64.

    Attributes:
        tokens: integer [A, T], the tokens of each action, padded with 0.
        lengths: integer [A], 1 … T.
        prefixes: integer [A, T], which prefix stands before each token (0 is the empty one), padded with 0.
        transition: [S, A, S] probability of the next state.
        reward: [S, A].
        terminated: bool [S, A], the action ends the episode.
        reference_logits: [S, P, V] of ρ.
    """

    tokens: Tensor
    lengths: Tensor
    prefixes: Tensor
    transition: Tensor
    reward: Tensor
    terminated: Tensor
    reference_logits: Tensor

    @property
    def entries(self) -> Tensor:
        """Integer [A, T]: the flat index of (prefix, token) in a [prefixes · vocabulary] table."""
        return self.prefixes * self.reference_logits.shape[-1] + self.tokens

    @property
    def mask(self) -> Tensor:
        """Bool [A, T]: where there is a token."""
        return bellman.position_mask(self.lengths, self.tokens.shape[1])

    # ------------------------------------------------------------------------- action level: brute force

    def token_log_prob(self, logits: Tensor) -> Tensor:
        """log π(wʲ | s, w¹…wʲ⁻¹) of the tokens of every action, [S, A, T], 0 at padding."""
        log_prob = torch.log_softmax(logits, dim=-1).flatten(1)[:, self.entries]
        return torch.where(self.mask, log_prob, 0)

    def action_log_prob(self, logits: Tensor) -> Tensor:
        """log π(a|s) = Σ_j log π(wʲ | s, w¹…wʲ⁻¹), [S, A]."""
        return self.token_log_prob(logits).sum(dim=-1)

    def action_values(self, policy_logits: Tensor, beta: float, gamma: float) -> tuple[Tensor, Tensor]:
        """Entropy-regularised value of a policy over whole actions, from one linear system.

        V(s) = Σ_a π(a|s) (Q(s,a) - β log π(a|s)/ρ(a|s)),  Q(s,a) = r + γ (1 - terminated) Σ_s' P(s'|s,a) V(s').

        Returns:
            V [S] and Q [S, A].
        """
        log_policy = self.action_log_prob(policy_logits)
        probability = log_policy.exp()
        kl = (probability * (log_policy - self.action_log_prob(self.reference_logits))).sum(dim=-1)
        onward = gamma * self.transition * (~self.terminated)[..., None]
        matrix = torch.eye(len(kl), dtype=kl.dtype) - torch.einsum("sa,sat->st", probability, onward)
        value = torch.linalg.solve(matrix, (probability * self.reward).sum(dim=-1) - beta * kl)
        return value, self.reward + onward @ value

    def action_optimum(self, beta: float, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
        """The best value and policy over whole actions: V = β log Σ_a ρ exp(Q/β), π* = ρ exp(Q/β) / Z.

        Returns:
            V [S], Q [S, A] and log π* [S, A].
        """
        log_reference = self.action_log_prob(self.reference_logits)
        onward = gamma * self.transition * (~self.terminated)[..., None]

        def sweep(value: Tensor) -> Tensor:
            return beta * torch.logsumexp(log_reference + (self.reward + onward @ value) / beta, dim=-1)

        value = _fixed_point(sweep, torch.zeros_like(self.reward[:, 0]))
        q = self.reward + onward @ value
        return value, q, torch.log_softmax(log_reference + q / beta, dim=-1)

    # ------------------------------------------------------- token level: the package's functions, repeated

    def rows(self, table: Tensor) -> Tensor:
        """Spreads a [S, P] table over a batch of every action in every state, [S · A, T]."""
        return table[:, self.prefixes].flatten(0, 1)

    def averaged(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Mean target of each (state, prefix, token) when the rest of the action is drawn from `logits`.

        Args:
            targets: [S · A, T], a row for every action in every state.
            logits: [S, P, V] of the distribution that the actions come from.

        Returns:
            [S, P, V].
        """
        log_prob = self.token_log_prob(logits)
        rest = log_prob.flip(-1).cumsum(-1).flip(-1) - log_prob  # of the tokens after each position
        weighted = torch.where(self.mask, rest.exp() * targets.view_as(rest), 0)
        table = torch.zeros_like(self.reference_logits).flatten(1)
        index = self.entries.flatten().expand(len(table), -1)
        return table.scatter_add(1, index, weighted.flatten(1)).view_as(self.reference_logits)

    def soft_values(self, q: Tensor, policy_logits: Tensor, beta: float) -> Tensor:
        """Soft value of every prefix, [S, P]; column 0 is the soft value of the state."""
        kl = bellman.kl_divergence(policy_logits, self.reference_logits)
        return bellman.soft_value(bellman.expected_q(policy_logits, q), kl, beta)

    def after(self, state_values: Tensor) -> Tensor:
        """Expected value of the next state for every row of the batch, [S · A]."""
        return (self.transition @ state_values).flatten()

    def backup(
        self,
        q: Tensor,
        policy_logits: Tensor,
        beta: float,
        gamma: float,
        inner_discount: float = 1.0,
        late_kl: bool = False,
    ) -> Tensor:
        """One sweep of the per-token soft Bellman update over every token of every action.

        Args:
            q: [S, P, V].
            policy_logits: [S, P, V] of the policy that is evaluated.
            beta: β > 0.
            gamma: γ in [0, 1), between actions.
            inner_discount: discount between tokens; 1 is the paper's.
            late_kl: read the KL inside an action one environment step late, at the same position of the
                *next* action (0 after the last), as the code released with arXiv 2402.06700 does.

        Returns:
            [S, P, V].
        """
        values = self.soft_values(q, policy_logits, beta)
        inner = self.rows(values)
        if late_kl:
            kl = bellman.kl_divergence(policy_logits, self.reference_logits)
            inner = self.rows(bellman.expected_q(policy_logits, q)) - beta * self._kl_of_next(kl, policy_logits)
        states, actions = self.reward.shape
        targets = bellman.token_targets(
            inner,
            self.lengths.repeat(states),
            self.reward.flatten(),
            self.terminated.flatten(),
            self.after(values[:, 0]),
            gamma,
            inner_discount,
        )
        return self.averaged(targets, policy_logits)

    def evaluate(
        self,
        policy_logits: Tensor,
        beta: float,
        gamma: float,
        inner_discount: float = 1.0,
        late_kl: bool = False,
    ) -> Tensor:
        """Repeats `backup` from Q = 0 until nothing moves; arguments as there. Returns Q [S, P, V]."""
        return _fixed_point(
            lambda q: self.backup(q, policy_logits, beta, gamma, inner_discount, late_kl),
            torch.zeros_like(self.reference_logits),
        )

    def improve(self, beta: float, gamma: float, inner_discount: float = 1.0) -> tuple[Tensor, Tensor]:
        """Alternates one `backup` with the exact policy update until nothing moves, from π = ρ and Q = 0.

        Returns:
            Q [S, P, V] and the policy's log-probabilities [S, P, V].
        """

        def policy(q: Tensor) -> Tensor:
            return losses.target_policy_logits(self.reference_logits, q, beta)

        q = _fixed_point(
            lambda q: self.backup(q, policy(q), beta, gamma, inner_discount),
            torch.zeros_like(self.reference_logits),
        )
        return q, policy(q)

    def _kl_of_next(self, kl: Tensor, policy_logits: Tensor) -> Tensor:
        """[S · A, T]: the mean KL at each position of the action that follows, 0 where none follows."""
        at_position = torch.where(self.mask, kl[:, self.prefixes], 0)
        mean = torch.einsum("sa,saj->sj", self.action_log_prob(policy_logits).exp(), at_position)
        following = torch.einsum("sat,tj->saj", self.transition, mean)
        return torch.where(self.terminated[..., None], 0, following).flatten(0, 1)


def random_world(seed: int, states: int = 3, vocabulary: int = 4, longest: int = 3, done_share: float = 0.3) -> World:
    """Draws a world: rewards from [-1, 1], reference logits and transitions from a standard normal.

    Args:
        seed: of the generator; the same seed gives the same world.
        states: S ≥ 1.
        vocabulary: V ≥ 2, end token included.
        longest: T ≥ 1, the length at which an action is cut off.
        done_share: probability that an action in a state ends the episode.
    """
    end = vocabulary - 1
    going_on = [list(itertools.product(range(end), repeat=depth)) for depth in range(longest)]
    actions = [prefix + (end,) for prefix in itertools.chain(*going_on)]  # ended by the end token
    actions += [prefix + (token,) for prefix in going_on[-1] for token in range(end)]  # cut off
    tokens, lengths, prefixes, count = laid_out(actions)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (states, len(actions))
    return World(
        tokens=tokens,
        lengths=lengths,
        prefixes=prefixes,
        transition=torch.softmax(normal(*shape, states), dim=-1),
        reward=2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1,
        terminated=torch.rand(*shape, generator=generator) < done_share,
        reference_logits=normal(states, count, vocabulary),
    )


def laid_out(actions: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor, int]:
    """`tokens`, `lengths` and `prefixes` of a `World` for these actions, and how many prefixes there are.

    Prefixes are numbered by length and then in order, so that the empty one is 0. No action may begin with another.
    """
    found = {action[:j] for action in actions for j in range(len(action))}
    prefix_of = {prefix: number for number, prefix in enumerate(sorted(found, key=lambda p: (len(p), p)))}
    tokens = torch.zeros(len(actions), max(map(len, actions)), dtype=torch.long)
    prefixes = torch.zeros_like(tokens)
    for row, action in enumerate(actions):
        tokens[row, : len(action)] = torch.tensor(action)
        prefixes[row, : len(action)] = torch.tensor([prefix_of[action[:j]] for j in range(len(action))])
    return tokens, torch.tensor([len(action) for action in actions]), prefixes, len(prefix_of)


def random_policy(world: World, seed: int) -> Tensor:
    """Logits [S, P, V] of a policy that has nothing to do with the reference."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(world.reference_logits.shape, generator=generator, dtype=torch.float64)


def _fixed_point(sweep: Callable[[Tensor], Tensor], table: Tensor, patience: int = 30) -> Tensor:
    """Repeats `sweep` until only rounding moves the table: small changes that no longer shrink."""
    least, since = torch.inf, 0
    for _ in range(100_000):
        new = sweep(table)
        change = float((new - table).abs().max())
        table = new
        least, since = (change, 0) if change < least else (least, since + 1)
        if change == 0 or (least < 1e-10 * (1 + float(table.abs().max())) and since >= patience):
            return table
    raise RuntimeError("no fixed point after 100000 sweeps: is gamma below 1?")
