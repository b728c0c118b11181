"""Differentiable two-player games: pure functions from a pair of policies to a pair of expected returns.

`x` is always (2, n), float32: row i holds player i's parameters. `f(x)` is always (2,): expected returns, to be
maximised. A batch is a `jax.vmap`; no function here takes a batch axis of its own accord.

A policy of an iterated game is 5 log-odds of *cooperating* (of the first action, in games without that word) in the
order `init, DD, CD, DC, CC`. In every label the first letter is one's own action, so tit-for-tat is C, D, D, C, C for
both players: cooperate at first and wherever the second letter is C. Joint states are `(DD, CD, DC, CC)` as player 1
sees them: what is CD to player 1 is DC to player 2. `make_game` has policies of other kinds, networks or such as see
two rounds; `log_odds` are what they do, in any case.

Add a game with one entry in `GAMES`: README.md has an example. What becomes of policies in a game is below the games.
Equations without another source are those of Cooijmans et al., Learning with Learning Awareness using Meta-Values. The
2x2 games, a player's payoffs in CC, CD, DC, DD, its own action first, and in brackets player 2's where they are others:

one round, x the log-odds of C
  matching_pennies    1, -1, -1, 1 (-1, 1, 1, -1). Heads or tails; player 1 wins where they match (von Neumann, 1928).
  ultimatum           5, 5, 8, 0 (5, 2, 5, 0). Player 1 offers half of 10 (C) or 2 (D); player 2 would take an unfair
                      offer (C) or refuse it (D). Naive learners mostly end at 8 : 2 (Hutter, 2020).
  stackelberg         1, 3, 2, 4 (0, 1, 2, 0). D dominates for player 1, and (D, C) is the only equilibrium, at 2 : 1.
                      If player 1 commits to C, player 2 answers D, at 3 : 2 (Conitzer and Sandholm, 2006).
iterated
  ipd                 -1, -3, 0, -2. The Iterated Prisoner's Dilemma (Sec. 5.2).
  imp                 1, -1, -1, 1 (-1, 1, 1, -1). Iterated matching pennies (Foerster et al., 2018).
  chicken             0, -1, 1, -100. Swerve (C) or drive on (D); if both drive on it is a catastrophe (Russell, 1959).
  stag_hunt           4, 1, 3, 2. The stag (C) takes two hunters, a hare (D) one (Skyrms, 2004).
  bach_or_stravinsky  3, 0, 0, 2 (2, 0, 0, 3). Together in any case, player 1 rather to Bach (C), player 2 to Stravinsky
                      (D) (Luce and Raiffa, 1957, as the battle of the sexes).
  hawk_dove           1, 0, 2, -1. Share the prize of 2 (C, the dove) or fight for it (D, the hawk), at the risk of an
                      injury of 4 (Maynard Smith and Price, 1973).
  contribution        .33, -.335, .665, 0. Give 1 (C) or nothing (D), and get half of 1.33 times what was given by both.
                      Zhao et al. (2022) have factors c of 1.1, 1.25, 1.33, 1.4, 1.6: c - 1, c / 2 - 1, c / 2, 0.
"""

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np


class Game(NamedTuple):
    """A two-player differentiable game, its policies and what a figure needs to know of them."""

    name: str
    n: int  # parameters per player
    f: Callable[[jax.Array], jax.Array]  # (2, n) -> (2,), expected returns
    init: Callable[[jax.Array], jax.Array]  # key -> (2, n), initial policies
    features: Callable[[jax.Array], jax.Array]  # (2, n) -> (2, m), the policies as a model sees them, row by row
    symmetric: bool  # does f_1(a, b) = f_2(b, a) hold?
    labels: tuple[str, ...]  # one for each number that a model sees; in an iterated game for each observation
    lr: float = 1.0  # a step size of the policies that suits the game
    alphas: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0)  # look-ahead steps that suit it
    extent: float = 10.0  # planar games are surveyed and drawn on [-extent, extent]^2
    payoffs: tuple[tuple[float, ...], ...] = ()  # of an iterated game: each player's, as `joint_payoffs` takes them
    discount: float | None = None  # of an iterated game
    start: tuple[float, float] = (1.0, 1.0)  # of an iterated game: how large initial tables and networks are
    log_odds: Callable[[jax.Array], jax.Array] = lambda x: x  # of cooperating, in an iterated game, (2, n) -> (2, o)
    kind: tuple[str, int, int] = ("tabular", 1, 0)  # of an iterated game's policies: policy, memory, probes
    # key, (2, n) -> (2,): a random estimate of f, whose derivatives (for LOLA second ones, too) are estimates. None if
    # learners have f itself. If nobody has it, f is an estimate by a fixed key, partial(sample, jax.random.key(0)).
    sample: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    @property
    def planar(self) -> bool:
        """One parameter per player: the joint policy space is a plane that can be drawn."""
        return self.n == 1

    @property
    def iterated(self) -> bool:
        """Is it an iterated 2x2 game, with policies that see the last rounds?"""
        return bool(self.payoffs)

    def returns(self, key: jax.Array | None = None) -> Callable[[jax.Array], jax.Array]:
        """What a learner ascends, (2, n) -> (2,): f, or with a key the estimate that is sampled by it."""
        if key is not None and self.sample is None:
            raise ValueError(f"game: takes one with samples, make_game(..., episodes=...), not {self.name}")
        return self.f if key is None else partial(self.sample, key)


def simultaneous_gradient(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The simultaneous gradient of Eq. 1: row i is the derivative of f_i by x_i.

    Args:
      f: differentiable game, (2, n) -> (2,).
      x: joint policy, (2, n).

    Returns:
      (2, n), in units of return per unit of policy parameter.
    """
    chex.assert_shape(x, (2, None))
    returns, pull_back = jax.vjp(f, x)
    return jnp.stack([pull_back(own)[0][i] for i, own in enumerate(jnp.eye(2, dtype=returns.dtype))])


def logistic(x: jax.Array) -> jax.Array:
    """The Logistic Game, Eq. 8 (Letcher, 2018). (2, 1) -> (2,).

    The divisor is the 10000 of the Meta-Values paper, not the 1000 in Letcher's print. The stable fixed points are
    B = (5.0307, 5.0307), where both players get 3.8584, and A = -B, where both get -0.0897; the origin is a saddle.
    """
    own, other = x[:, 0], x[::-1, 0]
    bowl = own**2 * other**2 + (own - other) ** 2 * (own + other) ** 2
    return -4 * jax.nn.sigmoid(own) * (1 - 2 * jax.nn.sigmoid(other)) - bowl / 10000


def tandem(x: jax.Array) -> jax.Array:
    """Tandem, f_i = 2 x_i - (x_1 + x_2)^2 (Letcher et al., 2019, as a maximisation). (2, 1) -> (2,).

    Naive learners stop on the line x_1 + x_2 = 1, where the sum of their returns is 0, and so does LookAhead. Every
    form of LOLA, which differentiates through the other's step, has a line of its own, further out and worse for both
    (Taylor's whole form for alpha < 1/4 alone): each player pushes on, sure that the other will yield.
    """
    own = x[:, 0]
    return 2 * own - own.sum() ** 2


def hamiltonian(x: jax.Array) -> jax.Array:
    """The Hamiltonian game, f = (x_1 x_2, -x_1 x_2) (Balduzzi et al., 2018). (2, 1) -> (2,).

    Its only fixed point is the origin. Naive learners circle it ever further out, by a factor sqrt(1 + lr^2) a step;
    looking ahead by alpha adds a pull inwards. Exact LOLA converges where 4 alpha > lr (1 + 4 alpha^2), LookAhead and
    LOLA as published where 2 alpha > lr (1 + alpha^2).
    """
    product = x[0, 0] * x[1, 0]
    return jnp.stack([product, -product])


def balduzzi(x: jax.Array) -> jax.Array:
    """f = (-x_1^2 / 2 - 10 x_1 x_2, -x_2^2 / 2 + 10 x_1 x_2) (Balduzzi et al., 2018). (2, 1) -> (2,).

    A weak attractor, the origin, in strong rotation: naive learners converge for lr < 2 / 101 alone, those that look a
    little ahead for larger steps, too.
    """
    own, product = x[:, 0], x[0, 0] * x[1, 0]
    return jnp.stack([-10 * product, 10 * product]) - own**2 / 2


def two_hills(x: jax.Array) -> jax.Array:
    """One objective for both players, f_1 = f_2 = 2 / (1 + |x + 5|^2 / 40) + 3 / (1 + |x - 5|^2 / 20). (2, 1) -> (2,).

    Two hills in a plane, each coordinate a player's. Their tops are at (-4.73, -4.73), where f is 2.279, and at
    (4.91, 4.91), where it is 3.336. Naive learners do gradient ascent: from half of the plane to the lower one.
    """
    lower, higher = 2 / (1 + ((x + 5) ** 2).sum() / 40), 3 / (1 + ((x - 5) ** 2).sum() / 20)
    return jnp.stack([lower + higher, lower + higher])


def planar_game(name: str, f, start: float, scale: float, symmetric: bool = False, **settings) -> Game:
    """A `Game` of one parameter for each player: it starts uniform in +-`start`, and models see it over `scale`."""
    init = lambda key: jax.random.uniform(key, (2, 1), minval=-start, maxval=start)
    return Game(name, 1, f, init, lambda x: x / scale, symmetric, labels=("x",), **settings)


def observations(memory: int) -> tuple[str, ...]:
    """What a player may have seen of the last rounds when it acts, older rounds first: `init`, `DD`, ..., `CC CC`."""
    pasts = (itertools.product(("DD", "CD", "DC", "CC"), repeat=rounds) for rounds in range(memory + 1))
    return tuple(" ".join(past) or "init" for past in itertools.chain(*pasts))


def seen_by_the_other(memory: int) -> np.ndarray:
    """The index of the other player's observation for each of one's own: player 1's CD is player 2's DC."""
    first, *pasts = observations(memory)
    swapped = [" ".join(letters[::-1] for letters in past.split()) for past in pasts]
    return np.vectorize(observations(memory).index)([first, *swapped])


def next_observations(memory: int) -> np.ndarray:
    """What is observed next, by its index: after each observation, when DD, CD, DC or CC is played. (o, 4)."""
    pasts = [past.replace("init", "").split() for past in observations(memory)]
    names = [[" ".join([*past, now][-memory:]) for now in ("DD", "CD", "DC", "CC")] for past in pasts]
    return np.vectorize(observations(memory).index)(names)


@jax.jit
def eliminate(a: jax.Array, b: jax.Array) -> jax.Array:
    """Solve a y = b for y by Gauss-Jordan elimination, (s, s), (s,) -> (s,).

    Unrolled, it fuses into few loops over a batch, where jnp.linalg.solve is a library call for each system. There is
    no pivoting: `a` must be diagonally dominant by rows or by columns. Under `jit` it is traced once, and not again in
    each of the many derivatives that look-ahead takes.
    """
    for i in range(len(b)):
        ratio = jnp.where(np.arange(len(b)) == i, 0, a[:, i] / a[i, i])
        a, b = a - ratio[:, None] * a[i], b - ratio * b[i]
    return b / jnp.diagonal(a)


def state_distribution(x: jax.Array, discount: float) -> jax.Array:
    """Discounted share of the time that two policies spend in each joint state of an iterated 2x2 game.

    Policies see the last m rounds, 4^m pasts. With p the distribution of the first m and P the transition matrix, the
    row vector y = (1 - discount) sum_t discount^t p P^t solves y (I - discount P) = (1 - discount) p. These are the
    shares of the rounds from the m-th on; those of the rounds before are added.

    Args:
      x: log-odds of cooperating, (2, o), in the order of `observations`: o = 5 for m = 1, 21 for m = 2, 85 for m = 3.
      discount: the game's own discount, in [0, 1).

    Returns:
      (4,), probabilities of DD, CD, DC, CC as player 1 sees them; they sum to 1.
    """
    chex.assert_shape(x, (2, {5, 21, 85}))
    memory = (5, 21, 85).index(x.shape[1]) + 1
    ours, theirs = jax.nn.sigmoid(x)
    theirs = theirs[seen_by_the_other(memory)]
    joint = jnp.stack([(1 - ours) * (1 - theirs), ours * (1 - theirs), (1 - ours) * theirs, ours * theirs])  # (4, o)
    # What happens after pasts of 0, ..., m - 1 rounds, and of m, the states from then on.
    *short, whole = jnp.split(joint, [(4**rounds - 1) // 3 for rounds in range(1, memory + 1)], axis=1)
    past, opening = jnp.ones(1, joint.dtype), []  # probabilities of all pasts of so many rounds
    for rounds, now in enumerate(short):
        past = (past * now).T.ravel()
        opening.append(discount**rounds * past.reshape(-1, 4).sum(0))
    # The transpose of I - discount P: entry [t, s] goes from s to t, if t's older rounds are s's newer ones.
    t, s = np.indices((4**memory, 4**memory))
    arrives = jnp.where(t // 4 == s % 4 ** (memory - 1), jnp.tile(whole, (4 ** (memory - 1), 1)), 0)
    a = jnp.eye(4**memory, dtype=joint.dtype) - discount * arrives
    # Derivatives solve the system again instead of going through the elimination: look-ahead takes several of them.
    later = jax.lax.custom_linear_solve(
        lambda y: (a * y).sum(1),  # not a matrix product, which a GPU would round to TF32
        (1 - discount) * discount ** (memory - 1) * past,
        solve=lambda _, b: eliminate(a, b),
        transpose_solve=lambda _, b: eliminate(a.T, b),
    )
    return later.reshape(-1, 4).sum(0) + (1 - discount) * sum(opening[:-1])  # the m-th round is in `later`


def iterated_returns(x: jax.Array, payoffs: tuple[tuple[float, ...], ...], discount: float) -> jax.Array:
    """Exact expected returns of an infinitely iterated 2x2 game, normalised: (1 - discount) times the discounted sum.

    Args:
      x: log-odds of cooperating, (2, o), in the order of `observations`, (2, 5) of memory-one policies.
      payoffs: (2, 4): each player's payoff in the joint states DD, CD, DC, CC as player 1 sees them.
      discount: the game's own discount, in [0, 1).

    Returns:
      (2,), in units of payoff for one round.
    """
    x = jnp.asarray(x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # half a precision is not enough for the system
    distribution = state_distribution(wide, discount)
    return (jnp.asarray(payoffs, wide.dtype) * distribution).sum(-1).astype(x.dtype)


memory_one_returns = iterated_returns  # of (2, 5)


def sampled_returns(
    key: jax.Array, x: jax.Array, payoffs, discount: float, episodes: int, length: int, baseline: bool = True
) -> jax.Array:
    """Estimate `iterated_returns` from episodes that two policies play. (2, o) -> (2,), differentiable to any order.

    The value is the mean over episodes of (1 - discount) / (1 - discount^length) sum_t discount^t r_t. It is unbiased,
    as derivatives are, for a game that ends after so many rounds and has the same sum of weights. The infinite one
    differs by discount^length times the range of payoffs at most: choose a length that makes this small. Derivatives
    are DiCE's (Foerster et al., 2018), those of

        sum_t discount^t w_t r_t,    w_t = prod_{u <= t} p_u / [p_u],

    with p_t the probability of the joint action of round t, and [p] = p but constant: w_t is 1 but for its derivatives.

    The baseline b_t of an episode is the mean reward of all others in the same round, and adds (1 - w_t) b_t: this is
    0, and so are its derivatives in expectation, as b_t is of other episodes. It is the same estimator as Loaded DiCE's
    (Farquhar et al., 2019) with leave-one-out mean returns from round t on as baselines, summed by parts.

    Args:
      key: draws the episodes.
      x, payoffs, discount: as in `iterated_returns`.
      episodes, length: how many, and how many rounds each has.
      baseline: whether to subtract it; a single episode has none.
    """
    x = jnp.asarray(x)
    chex.assert_shape(x, (2, {5, 21, 85}))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    payoffs = jnp.asarray(payoffs, wide.dtype)
    memory = (5, 21, 85).index(x.shape[1]) + 1
    next_seen = jnp.asarray(next_observations(memory), jnp.int32)
    ours, theirs = jnp.stack([jax.nn.log_sigmoid(-wide), jax.nn.log_sigmoid(wide)], 1)  # of D and C, (2, o) each
    log_joint = (theirs[:, None, seen_by_the_other(memory)] + ours).reshape(4, -1)  # of DD, CD, DC, CC
    thresholds = jnp.cumsum(jnp.exp(jax.lax.stop_gradient(log_joint)), 0)[:3]

    def play(carry, step):  # a round of all episodes
        seen, log_weight = carry  # (episodes,) each: what player 1 sees, log w_t
        key, share = step
        # How many thresholds a uniform number passes says which joint action it is.
        action = (jax.random.uniform(key, (episodes,), wide.dtype) >= thresholds[:, seen]).sum(0)  # the joint one
        log_p = log_joint[action, seen]
        log_weight += log_p - jax.lax.stop_gradient(log_p)
        rewards = payoffs[:, action]  # (2, episodes)
        mean = rewards.mean(1, keepdims=True)
        others = (episodes * mean - rewards) / max(episodes - 1, 1) if baseline else 0.0
        estimate = share * (mean + (jnp.exp(log_weight) - 1) * (rewards - others)).mean(1)  # of w r + (1 - w) b
        return (next_seen[seen, action], log_weight), estimate

    shares = discount ** np.arange(length)
    steps = jax.random.split(key, length), jnp.asarray(shares / shares.sum(), wide.dtype)
    first = jnp.zeros(episodes, jnp.int32), jnp.zeros(episodes, wide.dtype)
    return jax.lax.scan(play, first, steps)[1].sum(0).astype(x.dtype)


def network_log_odds(own: jax.Array, memory: int) -> jax.Array:
    """A policy that is a network of 16 tanh units: its log-odds of cooperating after each observation. (n,) -> (o,).

    For each of the last m rounds it sees two symbols, one's own action and the other's, of three each, as one-hot: not
    played yet, C, D. n = 96 m + 33, in the order weights (6 m, 16), biases (16,), weights (16,), bias (1,).
    """
    pasts = [["--"] * memory + past.replace("init", "").split() for past in observations(memory)]
    inputs = np.array([[letter == symbol for letter in "".join(past[-memory:]) for symbol in "-CD"] for past in pasts])
    w, b, v, c = jnp.split(own, 96 * memory + np.array([0, 16, 32]))
    units = jnp.tanh(jnp.where(inputs[:, :, None], w.reshape(-1, 16), 0).sum(1) + b)  # (o, 16)
    return (units * v).sum(1) + c


def joint_payoffs(own: tuple[float, ...], other: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Each player's payoffs in CC, CD, DC, DD, its own action first, as `memory_one_returns` takes them, (2, 4)."""
    (cc, cd, dc, dd), (cc_2, cd_2, dc_2, dd_2) = own, other
    return (dd, cd, dc, cc), (dd_2, dc_2, cd_2, cc_2)


def matrix_game(name: str, own: tuple[float, ...], other: tuple[float, ...], alphas: tuple[float, ...]) -> Game:
    """A `Game` of one round of a 2x2 game: x has the log-odds of the first action, and starts standard normal.

    `own` and `other` are the players' payoffs in CC, CD, DC, DD, each with its own action first.
    """

    def f(x):
        ours, theirs = jax.nn.sigmoid(x[:, 0])
        joint = jnp.stack([(1 - ours) * (1 - theirs), ours * (1 - theirs), (1 - ours) * theirs, ours * theirs])
        return (jnp.asarray(joint_payoffs(own, other), joint.dtype) * joint).sum(-1)

    init = lambda key: jax.random.normal(key, (2, 1))
    return Game(name, 1, f, init, jax.nn.sigmoid, own == other, labels=("x",), alphas=alphas, extent=3.0)


def iterated_game(
    name: str,
    own: tuple[float, ...],
    other: tuple[float, ...] = (),
    discount: float = 0.96,
    lr: float = 2.0,
    alphas: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 70.0, 100.0),
    start: tuple[float, float] = (1.0, 1.0),
) -> Game:
    """A `Game` between memory-one policies in an infinitely iterated 2x2 game.

    `own` and `other` are the players' payoffs in CC, CD, DC, DD, each with its own action first; without `other` they
    are the same. Policies start as standard normal log-odds (App. E), times start[0], networks as in `with_policies`,
    times start[1]. Models see probabilities (not in the paper).
    """
    own, other = tuple(own), tuple(other or own)
    f = lambda x: iterated_returns(x, joint_payoffs(own, other), discount)
    init = lambda key: start[0] * jax.random.normal(key, (2, 5))
    settings = dict(lr=lr, alphas=alphas, payoffs=(own, other), discount=discount, start=start)
    return Game(name, 5, f, init, jax.nn.sigmoid, own == other, observations(1), **settings)


def with_policies(game: Game, policy: str, memory: int, probes: int, seed: int) -> Game:
    """The same iterated game between policies of another kind, which its name then says. `make_game` explains."""
    labels = observations(memory)
    n, log_odds_of, initial_of = len(labels), lambda own: own, lambda drawn: drawn  # a player's; from normal numbers
    if policy == "preconditioned":
        log_odds_of = lambda own: own.at[1:].add(-2 * own[0])
        initial_of = lambda drawn: drawn.at[:, 1:].add(2 * drawn[:, :1])  # log-odds of these are what was drawn
    if policy == "mlp":
        n, log_odds_of = 96 * memory + 33, partial(network_log_odds, memory=memory)
        scale = np.repeat(np.float32([1, 1, 1 / 3, 1 / 3]), [96 * memory, 16, 16, 1])
        initial_of = lambda drawn: scale * drawn
    log_odds = jax.vmap(log_odds_of)
    seen = np.sort(np.random.default_rng(seed).permutation(len(labels))[: probes or len(labels)])
    words = ("memory2", memory == 2), (policy, policy != "tabular"), (f"probes{probes}", probes)
    return game._replace(
        name="_".join([game.name, *(word for word, is_said in words if is_said)]),
        n=n,
        f=lambda x: iterated_returns(log_odds(x), joint_payoffs(*game.payoffs), game.discount),
        init=lambda key: initial_of(game.start[policy == "mlp"] * jax.random.normal(key, (2, n))),
        features=lambda x: jax.nn.sigmoid(log_odds(x)[:, seen]),
        labels=labels,
        # A step changes a network's log-odds more; each of two rounds' pasts comes a quarter as often.
        lr=game.lr / 2 if policy == "mlp" else game.lr * 4 ** (memory - 1),
        log_odds=log_odds,
        kind=(policy, memory, probes),
    )


def with_samples(game: Game, episodes: int, length: int, baseline: bool, noise: float) -> Game:
    """The same game with a `sample`: by noise on f, or by episodes with its payoffs. `make_game` explains."""

    def noisy(key, x):
        x = 1.0 * jnp.asarray(x)
        errors = noise * jax.random.normal(key, (2, 1 + x.size), x.dtype)  # of f_i, and of its derivatives by x
        return game.f(x) + errors[:, 0] + (errors[:, 1:] * (x - jax.lax.stop_gradient(x)).ravel()).sum(1)

    if noise:
        return game._replace(name=f"{game.name}_noise{noise:g}", sample=noisy)
    words = (f"length{length}", length != 150), ("no_baseline", not baseline)
    settings = joint_payoffs(*game.payoffs), game.discount, episodes, length, baseline
    return game._replace(
        name="_".join([f"{game.name}_episodes{episodes}", *(word for word, is_said in words if is_said)]),
        sample=lambda key, x: sampled_returns(key, game.log_odds(x), *settings),
    )


def make_game(
    game: str | Game = "ipd",
    payoffs: tuple[float, ...] = (),
    discount: float | None = None,
    policy: str = "tabular",
    memory: int = 1,
    probes: int = 0,
    seed: int = 0,
    episodes: int = 0,
    episode_length: int | None = None,
    baseline: bool = True,
    noise: float = 0.0,
) -> Game:
    """The game of this name; an iterated one with other payoffs, discount or policies, which its name then says.

    Args:
      game: one of `GAMES`, or a `Game` of one's own.
      payoffs: a player's in CC, CD, DC, DD, its own action first: four numbers if they are the same for both players,
        or player 1's four and then player 2's four. Without them, those of the game.
      discount: in [0, 0.999], or None for that of the game.
      policy: what parameters make of the log-odds z of cooperating after each observation: `tabular`, z = x;
        `preconditioned`, z_0 = x_0 and z_k = x_k - 2 x_0 elsewhere (after Zhao et al., 2022, who subtract that of
        another observation; to test invariance: z starts as in tabular policies); `mlp`, the network of
        `network_log_odds`.
      memory: how many rounds policies see, 1 or 2.
      probes: how many observations models see the probabilities of, drawn by `seed`; 0 is all of them.
      episodes, episode_length, baseline: learners see only `sampled_returns` of so many episodes of so many rounds, 150
        if that is None; with 0 episodes they see f.
      noise: learners, of any game, see f and its first derivatives with independent normal errors of this standard
        deviation; higher derivatives are exact.

    Raises:
      ValueError: for another name, for anything else where the game is not iterated, or out of these ranges.
    """
    if not isinstance(game, Game) and game not in GAMES:
        raise ValueError(f"game: takes one of {', '.join(sorted(GAMES))} or a Game, not {game}")
    game = game if isinstance(game, Game) else GAMES[game]
    payoffs, plain = tuple(payoffs), ("tabular", 1, 0)
    other_policies = (policy, memory, probes) not in (plain, game.kind)
    given = dict(payoffs=payoffs, discount=discount is not None)
    given |= dict(policy=policy != "tabular", memory=memory != 1, probes=probes, episodes=episodes)
    flags = [flag for flag, is_given in given.items() if is_given]
    if flags and not game.iterated:
        iterated = ", ".join(sorted(name for name, game in GAMES.items() if game.iterated))
        raise ValueError(f"{flags[0]}: takes an iterated --game beside it ({iterated}), not {game.name}")
    if len(payoffs) not in (0, 4, 8):
        raise ValueError(f"payoffs: takes four numbers (CC, CD, DC, DD) or eight, not {len(payoffs)}")
    if discount is not None and not 0 <= discount <= 0.999:
        raise ValueError(f"discount: takes numbers from 0 to 0.999, not {discount}")
    if policy not in ("tabular", "mlp", "preconditioned"):
        raise ValueError(f"policy: takes tabular, mlp or preconditioned, not {policy}")
    if memory not in (1, 2):
        raise ValueError(f"memory: takes 1 or 2, not {memory}")
    if game.kind != plain and (payoffs or discount is not None or other_policies):
        raise ValueError(f"game: takes one whose policies are tabular and see one round to change, not {game.name}")
    if not 0 <= probes <= len(observations(memory)):
        raise ValueError(f"probes: takes numbers from 0 to {len(observations(memory))}, not {probes}")
    for flag, value, least in (("episodes", episodes, 0), ("episode-length", episode_length, 1), ("noise", noise, 0)):
        if value is not None and not value >= least:
            raise ValueError(f"{flag}: takes numbers from {least}, not {value}")
    if not episodes and (episode_length is not None or not baseline):
        raise ValueError(f"{'no-baseline' if not baseline else 'episode-length'}: takes --episodes beside it")
    if game.sample and (payoffs or discount is not None or other_policies or episodes or noise):
        raise ValueError(f"game: takes one without samples of its own to change, not {game.name}")
    if episodes and noise:
        raise ValueError("noise: takes no --episodes beside it")
    if payoffs or discount is not None:
        discount = game.discount if discount is None else discount
        own, other = (payoffs[:4], payoffs[4:] or payoffs) if payoffs else game.payoffs
        words = [game.name] if game.start != (1.0, 1.0) or not payoffs else []  # what payoffs do not say
        words += ["payoffs", *(str(payoff).removesuffix(".0") for payoff in payoffs)] if payoffs else []
        words += ["discount", str(discount)] if discount != game.discount else []
        game = game._replace(
            name="_".join(words),
            f=lambda x: iterated_returns(x, joint_payoffs(own, other), discount),
            symmetric=own == other,
            payoffs=(own, other),
            discount=discount,
        )
    game = with_policies(game, policy, memory, probes, seed) if other_policies else game
    return with_samples(game, episodes, episode_length or 150, baseline, noise) if episodes or noise else game


def game_of(settings: dict) -> Game:
    """`make_game` with those of a run's settings that it takes."""
    return make_game(**{name: settings[name] for name in inspect.signature(make_game).parameters if name in settings})


GAMES: dict[str, Game] = {
    game.name: game
    for game in (
        # That models see x / 10 is not in the paper's text, which does not say how x is scaled.
        planar_game("logistic", logistic, 8.0, 10.0, symmetric=True, alphas=(0.0, 1.0, 2.0, 5.0, 10.0, 20.0)),
        # At this step size naive learning is stable, and most forms of LOLA up to these alphas.
        planar_game("tandem", tandem, 3.0, 3.0, symmetric=True, lr=0.1, alphas=(0.0, 0.1, 0.2, 0.3), extent=3.0),
        planar_game("hamiltonian", hamiltonian, 1.0, 3.0, lr=0.1, alphas=(0.0, 0.05, 0.1, 0.2, 0.5), extent=1.0),
        # This step size is just too large for naive learning.
        planar_game("balduzzi", balduzzi, 1.0, 3.0, lr=0.02, alphas=(0.0, 0.01, 0.02, 0.05, 0.1), extent=1.0),
        planar_game("two_hills", two_hills, 8.0, 10.0, symmetric=True, lr=5.0, alphas=(0.0, 1.0, 2.0, 5.0, 10.0, 20.0)),
        matrix_game("matching_pennies", (1, -1, -1, 1), (-1, 1, 1, -1), alphas=(0.0, 0.5, 1.0, 2.0, 5.0)),
        matrix_game("ultimatum", (5, 5, 8, 0), (5, 2, 5, 0), alphas=(0.0, 0.5, 1.0, 2.0, 5.0)),
        matrix_game("stackelberg", (1, 3, 2, 4), (0, 1, 2, 0), alphas=(0.0, 0.5, 1.0, 2.0, 5.0)),
        iterated_game("ipd", (-1, -3, 0, -2)),
        iterated_game("imp", (1, -1, -1, 1), (-1, 1, 1, -1)),
        iterated_game("chicken", (0, -1, 1, -100), lr=0.1, alphas=(0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)),
        iterated_game("stag_hunt", (4, 1, 3, 2)),
        iterated_game("bach_or_stravinsky", (3, 0, 0, 2), (2, 0, 0, 3)),
        iterated_game("hawk_dove", (1, 0, 2, -1)),
        iterated_game("contribution", (0.33, -0.335, 0.665, 0), start=(0.1, 0.25)),  # as in their code, or nearly so
    )
}


# What becomes of policies in a game. A learning rule is a field: `field(x, strengths)` is the direction in which both
# players step, (2, n), and `strengths`, (2,), how far each looks ahead (alpha or gamma), 0 for naive learners.


def mirrored(game: Game) -> Game:
    """The game as player 2 sees it, as player 1: the players' places, and so all rows, are exchanged."""
    return game._replace(
        f=lambda x: game.f(x[::-1])[::-1],
        init=lambda key: game.init(key)[::-1],
        features=lambda x: game.features(x[::-1])[::-1],
        payoffs=game.payoffs[::-1],
        sample=game.sample and (lambda key, x: game.sample(key, x[::-1])[::-1]),
    )


def follow(field, x: jax.Array, lr: float, steps: int, key=None) -> tuple[jax.Array, jax.Array]:
    """Follow x(t + 1) = x(t) + lr field(x(t)). (2, n) -> the last x, (2, n), and those before it, (steps, 2, n).

    With a key, for fields that are estimates, it is `field(x, key)`, and each step has its own key.
    """
    keys = () if key is None else (jax.random.split(key, steps),)
    return jax.lax.scan(lambda x, key: (x + lr * field(x, *key), x), x, keys, length=steps)


def best_response(game: Game, x: jax.Array, agent: int, fresh: jax.Array, lr: float, steps: int) -> jax.Array:
    """Player `agent` stands still in x while the other starts at its `fresh` policy and learns naively. (2, n)."""
    x = jnp.asarray(x).at[1 - agent].set(fresh[1 - agent])
    return follow(lambda x: simultaneous_gradient(game.f, x).at[agent].set(0.0), x, lr, steps)[0]


def exact_best_response(game: Game, x: jax.Array, agent: int) -> jax.Array:
    """A best response to player `agent` of an iterated game, deterministic, by policy iteration (Howard, 1960).

    No policy is better, however long its memory, and none of a shorter memory than the agent's needs to be as good:
    beside the agent the other player faces a Markov decision process, whose states are what the agent sees. Returns
    both players' log-odds after each observation, (2, o): a network need not be able to play them.
    """
    z, other = game.log_odds(jnp.asarray(x)), 1 - agent
    wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    memory = len(game.labels[-1].split())
    # By the responder's observation, its own action (D, C) and the agent's: the next observation.
    following = next_observations(memory).reshape(-1, 2, 2).swapaxes(1, 2)
    arrives = following[..., None] == np.arange(len(following))  # (o, 2, 2, o)
    chance = jax.nn.sigmoid(wide[agent])[seen_by_the_other(memory)]
    chance = jnp.stack([1 - chance, chance], 1)[:, None]  # (o, 1, 2), of the agent's action
    transition = (chance[..., None] * arrives).sum(2)  # (o, 2, o)
    cc, cd, dc, dd = game.payoffs[other]
    reward = (1 - game.discount) * (chance * jnp.array([[dd, dc], [cd, cc]], wide.dtype)).sum(2)  # (o, 2)

    def improve(_, response):  # (o,), 1 where it cooperates
        here = np.arange(len(response)), response
        a = jnp.eye(len(following), dtype=wide.dtype) - game.discount * transition[here]
        # Values less that of the first state, v: a v = (1 - discount) v. In long games they differ by less than the
        # rounding of v, which would decide.
        value = eliminate(a, reward[here] - (1 - game.discount) * eliminate(a, reward[here])[0])
        return (reward + game.discount * (transition * value).sum(2)).argmax(1)

    response = jax.lax.fori_loop(0, 20, improve, jnp.zeros(len(following), int))  # a few would do, but for ties
    return z.at[other].set(jnp.where(response, 30, -30))


def planar_grid(game: Game) -> jax.Array:
    """The surveyed area, [-10, 10]^2 in Fig. 2b: 29 x 29 joint policies, x_1 along the columns. (29, 29, 2)."""
    line = jnp.arange(-14, 15) * game.extent / 14
    return jnp.stack(jnp.meshgrid(line, line), -1)


def survey(game: Game, field, lr: float, steps: int, key=None) -> dict[str, jax.Array]:
    """Where the grid's points end if they `follow` the field, and the share that ends at x_1, x_2 > 0 (Fig. 2b)."""
    grid = planar_grid(game).reshape(-1, 2, 1)
    keys = () if key is None else (jax.random.split(key, len(grid)),)
    ends = jax.vmap(lambda x, *key: follow(field, x, lr, steps, *key)[0])(grid, *keys)  # (841, 2, 1)
    return {
        "endpoints": ends.reshape(29, 29, 2),
        "basin_fraction": (ends > 0).all((1, 2)).mean(),
        "final_returns": jax.vmap(game.f)(ends).mean(0),
        "field": lr * jax.vmap(field)(grid, *keys).reshape(29, 29, 2),
    }


def evaluate_game(
    key, game: Game, field, strength, lr: float, steps: int, pairs: int, opponent=None, initial=None, sampled=False
) -> dict[str, jax.Array]:
    """Agents of this strength in self-play, against a best response, and beside a naive learner (Fig. 3).

    The agent is player 1, and its return and policy come first. Where the game is not symmetric it is player 2 as well,
    in arrays with `_2` in their names, still first. Planar games are surveyed, too.

    Args:
      key: draws the policies that pairs start from.
      field: the learning rule, `field(x, strengths)`, (2, n), (2,) -> (2, n).
      strength: how far the agents look ahead, (); naive learners by 0.
      lr: step size of all policies.
      steps, pairs: how many steps policies are followed for, and how many pairs of them.
      opponent: the rule of another learner, `opponent(x)`, (2, n) -> (2, n), to play beside as well, `versus_opponent`.
      initial: where agents start, (2, n), if not at random as everybody else.
      sampled: whether agents follow estimates, `field(x, strengths, key)`. All others follow `game.f`.

    Returns:
      Returns (pair, 2) as `self_play`, `best_response`, `exact_best_response` (iterated games), `versus_naive` and
      `versus_opponent`; the policies that got them, (pair, 2, n), in iterated games their log-odds of cooperating,
      (pair, 2, o), as `policies`, `response_policies`, `exact_response_policies`, `versus_naive_policies`,
      `versus_opponent_policies`; in planar games `trajectories`, (pair, steps + 1, 2), and what `survey` returns.
    """
    agents = jnp.array([[True, True], [True, False], [False, True]])[: 2 if game.symmetric else 3]  # who is one

    def one_pair(key):
        start, fresh = map(game.init, jax.random.split(key))
        samples = jax.random.fold_in(key, 2) if sampled else None  # 0 and 1 are what `split` makes

        def play(is_agent, other=partial(simultaneous_gradient, game.f)):  # (2,); who is none follows this rule
            def directions(x, *key):
                return jnp.where(is_agent[:, None], field(x, strength * is_agent, *key), other(x))

            first = start if initial is None else jnp.where(is_agent[:, None], initial, start)
            return follow(directions, first, lr, steps, samples)

        (x, *beside_naive), (path, *_) = jax.vmap(play)(agents)  # by who is an agent: one program
        beside_opponent = jax.vmap(partial(play, other=opponent))(agents[1:])[0] if opponent else []
        results = {"self_play": game.f(x), "policies": game.log_odds(x)}
        for agent, shaped in enumerate(beside_naive):
            ends = {"versus_naive": shaped, "best_response": best_response(game, x, agent, fresh, lr, steps)}
            if opponent:
                ends["versus_opponent"] = beside_opponent[agent]
            seat, agent_first = "_2" * agent, jnp.array([agent, 1 - agent])
            ends = {name: (game.f(end)[agent_first], game.log_odds(end)[agent_first]) for name, end in ends.items()}
            if game.iterated:
                tables = exact_best_response(game, x, agent)
                returns = iterated_returns(tables, joint_payoffs(*game.payoffs), game.discount)
                ends["exact_best_response"] = returns[agent_first], tables[agent_first]
            for name, (returns, policies) in ends.items():
                results[name + seat] = returns
                results[name.replace("best_", "") + "_policies" + seat] = policies  # named as above
        if game.planar:
            results["trajectories"] = jnp.concatenate([path, x[None]])[..., 0]
        return results

    # Episodes of all pairs at once would not fit in memory.
    over_pairs = partial(jax.lax.map, one_pair) if sampled and game.iterated else jax.vmap(one_pair)
    results = over_pairs(jax.random.split(key, pairs))
    if game.planar:
        both, samples = jnp.stack([strength, strength]), jax.random.fold_in(key, pairs) if sampled else None
        results |= survey(game, lambda x, *key: field(x, both, *key), lr, steps, samples)
    return results


def plays(results: dict, game: Game) -> list[list[tuple]]:
    """What was played in the arrays of `evaluate_game`, with leading axes (sweep, seed): a list for each seat.

    Of each play (title, agent, other, returns, mean, error): who plays, returns (sweep, seed, pair, 2), the agent's
    first, and their mean and standard error over the policy pairs of all seeds, (sweep, 2) each.
    """
    rows = []
    for seat, agent in enumerate(["agent"] if game.symmetric else ["player 1", "player 2"]):
        rows.append([])
        for name, title, other in (
            ("self_play", "self-play", "other agent"),
            ("best_response", "against a best response", "best response"),
            ("exact_best_response", "against the exact best response", "exact best response"),
            ("versus_naive", "with a naive learner", "naive learner"),
            ("versus_opponent", "with the opponent of its training", "opponent"),
        ):
            if name in results:
                returns = results[name][..., :: 1 - 2 * seat] if name == "self_play" else results[name + "_2" * seat]
                pairs = returns.reshape(len(returns), -1, 2)
                with np.errstate(all="ignore"):  # where policies diverged, and of a single pair
                    error = pairs.std(1) / np.sqrt(pairs.shape[1] - 1)
                    rows[-1].append((title, agent, other, returns, pairs.mean(1), error))
    return rows
