"""Two-player games, how learning rules are followed in them, and how a run is reported.

Conventions, the same in every file:

    x       a joint policy, (2, n), float32: row i holds player i's parameters
    f(x)    expected returns, (2,), to be maximised
    step    a learning rule: the joint policy x(t) -> x(t + 1)

No function takes a batch axis: a batch is a `jax.vmap`.

A policy of an iterated game is five log-odds of cooperating: in the first round (init),
and after DD, CD, DC, CC, the joint actions of the round before, one's own action first.
Tit-for-tat cooperates first and after DC and CC: about (9, -9, -9, 9, 9), for both
players. (Variants of games have others: 21 log-odds where players see two rounds, or
the weights of a network that gives them.) Joint actions are always in the order DD, CD,
DC, CC, but for payoffs as they are written, in the textbooks' order, own action first:

                           other cooperates    other defects
    ipd    I cooperate            -1                 -3
           I defect                0                 -2

`GAMES` has the games, with their sources. A variant of a game is a game as well: its
name says what is different, as in `ipd+mlp` or `imp+memory=2+discount=0.9`. `find_game`
makes it, from the words in `VARIANTS`.

Equations without another source are those of Cooijmans, Aghajohari and Courville
(2023), Learning with Learning Awareness using Meta-Values.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

JOINT_ACTIONS = ("DD", "CD", "DC", "CC")  # one's own action first


class Rules(NamedTuple):
    """What an iterated 2x2 game is made of: `iterated_game` makes a `Game` of it.

    (The rules of a game. A rule that players learn by is a `step`.)
    """

    own: tuple[float, ...]  # player 1's payoffs in CC, CD, DC, DD, its own action first
    other: tuple[float, ...]  # player 2's payoffs, its own action first
    discount: float = 0.96  # of the game
    memory: int = 1  # how many rounds policies see
    policy: str = "table"  # what parameters x are: a key of `POLICIES`
    table_scale: float = 1.0  # of the random log-odds that tables start with
    network_scale: float = 1.0  # of the random weights that networks start with
    lr: float = 2.0  # step size of tables that see one round
    episodes: int = 0  # learners see estimates of f from so many episodes; 0: f itself
    length: int = 150  # rounds of an episode

    @property
    def payoffs(self) -> tuple[tuple[float, ...], ...]:
        """Both players' payoffs in DD, CD, DC, CC as player 1 sees them. (2, 4)."""
        cc_1, cd_1, dc_1, dd_1 = self.own
        cc_2, cd_2, dc_2, dd_2 = self.other
        # Player 2 calls it DC where player 1 says CD.
        return (dd_1, cd_1, dc_1, cc_1), (dd_2, dc_2, cd_2, cc_2)


class Game(NamedTuple):
    """A differentiable game between two players, and the settings that suit it."""

    name: str
    n: int  # number of parameters of a player's policy
    f: Callable  # (2, n) -> (2,), expected returns
    init: Callable  # key -> (2, n), initial policies
    features: Callable  # (2, n) -> (2, m), what learned models see of each policy
    labels: tuple[str, ...]  # of the numbers that figures show of a policy
    symmetric: bool  # f_1(a, b) = f_2(b, a)?
    lr: float = 1.0  # step size of learners
    alphas: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0)  # look-ahead step sizes
    extent: float = 10.0  # planar games are surveyed on [-extent, extent]^2
    rules: Rules | None = None  # of an iterated game
    # (2, n) -> (2, o): log-odds of cooperating (C). None: policies are no such thing.
    log_odds: Callable | None = None
    # Where learners do not know f: (key, x) -> (2,), a random estimate of f(x), whose
    # derivatives are estimates of f's derivatives.
    sample: Callable | None = None

    @property
    def planar(self) -> bool:
        """One parameter for each player: all joint policies are a plane."""
        return self.n == 1

    @property
    def iterated(self) -> bool:
        """Is it an iterated 2x2 game, between policies that see the last rounds?"""
        return self.rules is not None


def checked_policies(x, n: int | None = None) -> jax.Array:
    """x as an array of floats, (2, n); TypeError or ValueError if it cannot be one.

    How to make x where players' parameters are dictionaries, as in flax, params_1 and
    params_2, perhaps with different numbers of parameters:

    ```python
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    row_1, unravel_1 = ravel_pytree(params_1)
    row_2, unravel_2 = ravel_pytree(params_2)
    n = max(len(row_1), len(row_2))
    x = jnp.stack([jnp.pad(row, (0, n - len(row))) for row in (row_1, row_2)])

    def f(x):  # what a shorter row was padded with is left out
        params_1 = unravel_1(x[0, : len(row_1)])
        params_2 = unravel_2(x[1, : len(row_2)])
        return jnp.stack(play(params_1, params_2))  # the returns of both players
    ```
    """
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError):
        raise TypeError(
            "x must be an array (2, n): flatten each player's parameters with "
            "jax.flatten_util.ravel_pytree, pad the shorter row with numbers that f "
            "ignores, and jnp.stack both rows (games.checked_policies has an example)"
        ) from None
    if x.ndim != 2 or len(x) != 2 or n not in (None, x.shape[1]):
        raise ValueError(
            f"x must be (2, {n or 'n'}), not {x.shape}: a row for each player, as all "
            "games here have two; for a batch there is jax.vmap"
        )
    return x.astype(jnp.result_type(x, 1.0))  # integers become floats


def checked_returns(f: Callable) -> Callable:
    """f, but with a TypeError where it does not return an array (2,), or uses NumPy."""

    def checked(x):
        try:
            returns = f(x)
        except jax.errors.TracerArrayConversionError as error:
            raise TypeError(
                "f must use jax.numpy in place of NumPy, as JAX differentiates it"
            ) from error
        found = getattr(returns, "shape", f"a {type(returns).__name__}")
        if found != (2,):
            raise TypeError(
                f"f must return both players' returns as an array (2,), not {found}: "
                "for example jnp.stack([return_1, return_2])"
            )
        return jnp.asarray(returns)

    return checked


def simultaneous_gradient(f: Callable, x: jax.Array) -> jax.Array:
    """Row i is the derivative of f_i by x_i (the barred nabla of Eq. 1).

    Args:
      f: differentiable game, (2, n) -> (2,).
      x: joint policy, (2, n).

    Returns:
      (2, n), in units of return per unit of policy parameter.
    """
    x = checked_policies(x)
    returns, pull_back = jax.vjp(checked_returns(f), x)
    of_1, of_2 = jnp.eye(2, dtype=returns.dtype)
    (gradient_1,) = pull_back(of_1)  # (2, n): the derivatives of f_1 by x_1 and x_2
    (gradient_2,) = pull_back(of_2)
    return jnp.stack([gradient_1[0], gradient_2[1]])


# --- Planar games: one parameter for each player --------------------------------------


def logistic(x: jax.Array) -> jax.Array:
    """The Logistic Game, Eq. 8 (Letcher, 2018). (2, 1) -> (2,).

    The divisor is the 10000 of the Meta-Values paper, not the 1000 in Letcher's print.
    The stable fixed points are B = (5.0307, 5.0307), where both players get 3.8584, and
    A = -B, where both get -0.0897; the origin is a saddle.
    """
    own = x[:, 0]
    other = x[::-1, 0]
    pull = -4 * jax.nn.sigmoid(own) * (1 - 2 * jax.nn.sigmoid(other))
    bowl = own**2 * other**2 + (own - other) ** 2 * (own + other) ** 2
    return pull - bowl / 10000


def tandem(x: jax.Array) -> jax.Array:
    """f_i = 2 x_i - (x_1 + x_2)^2 (Letcher et al., 2019, maximised). (2, 1) -> (2,).

    Naive learners stop on the line x_1 + x_2 = 1, where the sum of their returns is 0,
    and so does LookAhead. Each form of LOLA (the variants in lola.py) stops on a line
    of its own, further out and worse for both: each player pushes on, sure that the
    other will yield. This holds for small alpha. `taylor-stop`, LOLA as published,
    stops where x_1 + x_2 = 1 / (1 - 2 alpha) if alpha < 1/2, and `taylor` stops if
    alpha < 1/4; with a larger alpha their policies grow without bound.
    """
    own = x[:, 0]
    return 2 * own - own.sum() ** 2


def hamiltonian(x: jax.Array) -> jax.Array:
    """f = (x_1 x_2, -x_1 x_2) (Balduzzi et al., 2018). (2, 1) -> (2,).

    Its only fixed point is the origin. Naive learners circle it ever further out, by a
    factor sqrt(1 + lr^2) a step; looking ahead by alpha adds a pull inwards. Exact LOLA
    converges where 4 alpha > lr (1 + 4 alpha^2), LookAhead and LOLA as published where
    2 alpha > lr (1 + alpha^2).
    """
    product = x[0, 0] * x[1, 0]
    return jnp.stack([product, -product])


def balduzzi(x: jax.Array) -> jax.Array:
    """A weak attractor, the origin, in strong rotation (Balduzzi et al., 2018).

    f = (-x_1^2 / 2 - 10 x_1 x_2, -x_2^2 / 2 + 10 x_1 x_2). (2, 1) -> (2,). Naive
    learners converge only if lr < 2 / 101. With a small look-ahead, larger lr will do.
    """
    own = x[:, 0]
    product = x[0, 0] * x[1, 0]
    return jnp.stack([-10 * product, 10 * product]) - own**2 / 2


def two_hills(x: jax.Array) -> jax.Array:
    """One objective for both players: two hills in a plane. (2, 1) -> (2,).

    f_1 = f_2 = 2 / (1 + |x + 5|^2 / 40) + 3 / (1 + |x - 5|^2 / 20). The tops are at
    (-4.73, -4.73), where f is 2.279, and at (4.91, 4.91), where it is 3.336. Naive
    learners do gradient ascent: from half of the plane to the lower one.
    """
    lower = 2 / (1 + ((x + 5) ** 2).sum() / 40)
    higher = 3 / (1 + ((x - 5) ** 2).sum() / 20)
    return jnp.stack([lower + higher, lower + higher])


def planar_game(name, f, start, scale, symmetric=False, **settings) -> Game:
    """A `Game` of one parameter for each player.

    Args:
      name: of the game.
      f: returns, (2, 1) -> (2,).
      start: parameters start uniform in [-start, start].
      scale: what a model sees is x / scale.
      symmetric: whether f_1(a, b) = f_2(b, a).
      settings: other fields of `Game`.
    """
    return Game(
        name=name,
        n=1,
        f=f,
        init=lambda key: jax.random.uniform(key, (2, 1), minval=-start, maxval=start),
        features=lambda x: x / scale,
        labels=("x",),
        symmetric=symmetric,
        **settings,
    )


def joint_actions(first: jax.Array, second: jax.Array) -> jax.Array:
    """Probabilities of DD, CD, DC, CC, as player 1 sees them. (...), (...) -> (..., 4).

    `first` and `second` are the players' probabilities of cooperating.
    """
    dd = (1 - first) * (1 - second)
    cd = first * (1 - second)
    dc = (1 - first) * second
    cc = first * second
    return jnp.stack([dd, cd, dc, cc], axis=-1)


def matrix_game(name, own, other, **settings) -> Game:
    """A `Game` of one round of a 2x2 game; x are log-odds of the first action, C.

    `own` and `other` are the players' payoffs in CC, CD, DC, DD, own action first.
    """
    payoffs = Rules(own, other).payoffs

    def f(x):
        first, second = jax.nn.sigmoid(x[:, 0])
        joint = joint_actions(first, second)
        # A sum, not a product of matrices, whose factors a GPU rounds to 10 bits.
        return (jnp.asarray(payoffs, x.dtype) * joint).sum(axis=-1)

    return Game(
        name=name,
        n=1,
        f=f,
        init=lambda key: jax.random.normal(key, (2, 1)),
        features=jax.nn.sigmoid,
        labels=("x",),
        symmetric=own == other,
        extent=3.0,
        log_odds=lambda x: x,
        **settings,
    )


# --- Iterated games: what players see -------------------------------------------------


def observations(memory: int) -> tuple[str, ...]:
    """What a player may have seen of the last rounds when it acts, older rounds first.

    `init`, `DD`, `CD`, `DC`, `CC`; with a memory of two then `DD DD`, ..., `CC CC`.
    """
    labels = ["init"]
    for rounds in range(1, memory + 1):
        for past in itertools.product(JOINT_ACTIONS, repeat=rounds):
            labels.append(" ".join(past))
    return tuple(labels)


def seen_by_the_other(memory: int) -> np.ndarray:
    """The index of the other player's observation for each of one's own. (o,)."""
    labels = observations(memory)
    indices = [0]
    for label in labels[1:]:
        mirrored = [joint[::-1] for joint in label.split()]  # its CD is my DC
        indices.append(labels.index(" ".join(mirrored)))
    return np.array(indices)


def next_observations(memory: int) -> np.ndarray:
    """The index of what is seen next, after each observation and joint action. (o, 4).

    Joint actions are in the order DD, CD, DC, CC.
    """
    labels = observations(memory)
    rows = []
    for label in labels:
        past = label.replace("init", "").split()
        following = [[*past, joint][-memory:] for joint in JOINT_ACTIONS]
        rows.append([labels.index(" ".join(rounds)) for rounds in following])
    return np.array(rows)


def memory_of(x: jax.Array) -> int:
    """How many rounds policies see, from their log-odds (2, o): 5, 21 or 85 columns."""
    chex.assert_shape(x, (2, {5, 21, 85}))
    return {5: 1, 21: 2, 85: 3}[x.shape[1]]


# --- Iterated games: returns ----------------------------------------------------------


@jax.jit
def eliminate(a: jax.Array, b: jax.Array) -> jax.Array:
    """Solve a y = b by Gauss-Jordan elimination without pivoting. (s, s), (s,) -> (s,).

    `a` must be diagonally dominant by rows or by columns. Unrolled, it is fused into a
    few loops over a batch, where jnp.linalg.solve calls a library for each system.
    """
    for i in range(len(b)):
        is_other_row = np.arange(len(b)) != i
        ratio = jnp.where(is_other_row, a[:, i] / a[i, i], 0)
        b = b - ratio * b[i]
        a = a - ratio[:, None] * a[i]
    return b / jnp.diagonal(a)


def state_distribution(x: jax.Array, discount: float) -> jax.Array:
    """Discounted shares of DD, CD, DC, CC, as player 1 sees them, in all rounds. (4,).

    What players see from the second round on is a Markov chain. With s the distribution
    of what they see in that round and P the transition matrix, the row vector
    y = (1 - discount) s (I - discount P)^-1 has the discounted shares of all that is
    seen, and a share of DD is the sum over what ends with DD.

    Args:
      x: log-odds of cooperating, (2, o), in the order of `observations`: o = 5 if
        policies see one round, 21 if they see two, 85 for three.
      discount: the game's own discount, in [0, 1).

    Returns:
      (4,), probabilities; they sum to 1.
    """
    memory = memory_of(x)
    first, second = jax.nn.sigmoid(x)
    joint = joint_actions(first, second[seen_by_the_other(memory)])  # (o, 4)

    # The chance to get from each observation to each other one. Column t is observation
    # t + 1, as init is never seen again, and ends with joint action t % 4.
    columns = np.arange(len(joint) - 1)
    follows = next_observations(memory)[:, columns % 4] == columns + 1
    chance = jnp.tile(joint, len(columns) // 4)
    chance = jnp.where(follows, chance, 0)  # (o, o - 1)
    start = chance[0]
    transition = chance[1:]

    # With a = I - discount P transposed, a y = (1 - discount) s. Derivatives solve the
    # system again, and do not go through the elimination: look-ahead takes several.
    # Sums, not products of matrices, whose factors a GPU rounds to 10 bits.
    a = jnp.eye(len(columns), dtype=x.dtype) - discount * transition.T
    shares = jax.lax.custom_linear_solve(
        lambda y: (a * y).sum(axis=1),
        (1 - discount) * start,
        solve=lambda _, b: eliminate(a, b),
        transpose_solve=lambda _, b: eliminate(a.T, b),
    )
    return shares.reshape(-1, 4).sum(axis=0)


def at_least_float32(x: jax.Array) -> jax.Array:
    """x, in float32 if it is in half precision, too little for a linear system."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def iterated_returns(x: jax.Array, payoffs, discount: float) -> jax.Array:
    """Exact returns of an infinitely iterated 2x2 game, for one round. (2, o) -> (2,).

    They are normalised: (1 - discount) times the discounted sum, in units of payoff.

    Args:
      x: log-odds of cooperating, (2, o), as `state_distribution` takes them.
      payoffs: each player's in DD, CD, DC, CC as player 1 sees them, (2, 4).
      discount: the game's own discount, in [0, 1).
    """
    x = jnp.asarray(x)
    wide = at_least_float32(x)
    shares = state_distribution(wide, discount)
    returns = (jnp.asarray(payoffs, wide.dtype) * shares).sum(axis=-1)
    return returns.astype(x.dtype)


memory_one_returns = iterated_returns  # of x (2, 5)


def log_joint_actions(x: jax.Array, seen_by_2: np.ndarray) -> jax.Array:
    """Log-probabilities of DD, CD, DC, CC after what player 1 sees. (2, o) -> (4, o).

    `seen_by_2` has the index of what player 2 sees then, (o,).
    """
    log_d = jax.nn.log_sigmoid(-x)
    log_c = jax.nn.log_sigmoid(x)
    log_d_2 = log_d[1, seen_by_2]
    log_c_2 = log_c[1, seen_by_2]
    dd = log_d[0] + log_d_2
    cd = log_c[0] + log_d_2
    dc = log_d[0] + log_c_2
    cc = log_c[0] + log_c_2
    return jnp.stack([dd, cd, dc, cc])


def draw_actions(key: jax.Array, thresholds: jax.Array) -> jax.Array:
    """A joint action for each episode, 0 to 3. (3, episodes) -> (episodes,).

    `thresholds` are cumulative probabilities. The action is the number of those that a
    uniform random number reaches.
    """
    uniform = jax.random.uniform(key, thresholds.shape[1:], thresholds.dtype)
    return (uniform >= thresholds).sum(axis=0)


def estimate_reward(reward: jax.Array, log_weight: jax.Array) -> jax.Array:
    """Mean over episodes of w r + (1 - w) b, with b the mean reward of all others.

    Rewards r are (2, episodes), log w is (episodes,). Returns (2,).
    """
    episodes = reward.shape[1]
    mean = reward.mean(axis=1, keepdims=True)
    baseline = (episodes * mean - reward) / max(episodes - 1, 1)
    # The mean of b is that of r.
    estimate = mean + (jnp.exp(log_weight) - 1) * (reward - baseline)
    return estimate.mean(axis=1)


def sampled_returns(key, x, payoffs, discount, episodes: int, length: int) -> jax.Array:
    """Estimate `iterated_returns` from episodes that two policies play. (2, o) -> (2,).

    The value is the mean over episodes of a weighted sum of rewards r(t), with weights
    discount^t that sum to 1. It is unbiased for a game of so many rounds, and so are
    derivatives of every order; the infinite game differs by discount^length times the
    range of payoffs at most. Derivatives are DiCE's (Foerster et al., 2018), those of

        sum_t discount^t w(t) r(t),    w(t) = product over u <= t of p(u) / [p(u)],

    with p(t) the probability of the joint action of round t, and [p] the same number
    held constant: w(t) is 1, but its derivatives are not 0. The baseline b(t) of an
    episode is the mean reward of the other episodes in that round. It adds (1 - w(t))
    b(t), which is 0, and so are its derivatives in expectation. (This is Loaded DiCE,
    Farquhar et al., 2019, with leave-one-out mean returns as baselines.)

    Args:
      key: draws the episodes.
      x, payoffs, discount: as in `iterated_returns`.
      episodes: how many there are. A single one has no baseline.
      length: how many rounds each has.
    """
    x = jnp.asarray(x)
    memory = memory_of(x)
    wide = at_least_float32(x)
    payoffs = jnp.asarray(payoffs, wide.dtype)
    next_seen = jnp.asarray(next_observations(memory), jnp.int32)

    log_joint = log_joint_actions(wide, seen_by_the_other(memory))  # (4, o)
    probabilities = jnp.exp(jax.lax.stop_gradient(log_joint))
    thresholds = jnp.cumsum(probabilities, axis=0)[:3]

    def play_round(carry, inputs):
        seen, log_weight = carry  # what player 1 sees and log w(t), (episodes,) each
        key, share = inputs
        action = draw_actions(key, thresholds[:, seen])
        log_p = log_joint[action, seen]
        log_weight += log_p - jax.lax.stop_gradient(log_p)

        estimate = estimate_reward(payoffs[:, action], log_weight)
        return (next_seen[seen, action], log_weight), share * estimate

    weights = discount ** np.arange(length)
    shares = jnp.asarray(weights / weights.sum(), wide.dtype)
    start = (jnp.zeros(episodes, jnp.int32), jnp.zeros(episodes, wide.dtype))
    inputs = (jax.random.split(key, length), shares)
    _, estimates = jax.lax.scan(play_round, start, inputs)
    return estimates.sum(axis=0).astype(x.dtype)


# --- Iterated games: what parameters make of a policy ---------------------------------


def table_log_odds(own: jax.Array, memory: int) -> jax.Array:
    """Parameters are the log-odds themselves. (o,) -> (o,)."""
    return own


def skewed_log_odds(own: jax.Array, memory: int) -> jax.Array:
    """A table whose first parameter acts on all log-odds. (o,) -> (o,).

    z_0 = x_0 and z_k = x_k - 2 x_0. It shows which algorithms depend on how policies
    are parametrised (after Zhao et al., 2022, who subtract another observation's).
    """
    return own.at[1:].add(-2 * own[0])


def network_log_odds(own: jax.Array, memory: int) -> jax.Array:
    """A network of 16 tanh units, which sees the last rounds. (n,) -> (o,).

    For each of the last m rounds it sees two symbols, one's own action and the other's,
    as one-hot vectors over: not played yet, C, D. n = 96 m + 33, in the order weights
    (6 m, 16), biases (16,), weights (16,), bias (1,).
    """
    inputs = []
    for label in observations(memory):
        past = ["--"] * memory + label.replace("init", "").split()
        letters = "".join(past[-memory:])
        inputs.append([letter == symbol for letter in letters for symbol in "-CD"])
    is_seen = np.array(inputs)[:, :, None]  # (o, 6 m, 1)

    w, b, v, c = jnp.split(own, 96 * memory + np.array([0, 16, 32]))
    units = jnp.tanh(jnp.where(is_seen, w.reshape(-1, 16), 0).sum(axis=1) + b)
    return (units * v).sum(axis=1) + c


POLICIES = {"table": table_log_odds, "skewed": skewed_log_odds, "mlp": network_log_odds}


def initial_policies(key: jax.Array, rules: Rules) -> jax.Array:
    """Random policies of an iterated game (App. E), normally distributed. (2, n)."""
    if rules.policy == "mlp":  # second-layer weights and bias are a third as large
        inputs = 96 * rules.memory
        scale = np.repeat(np.float32([1, 1, 1 / 3, 1 / 3]), [inputs, 16, 16, 1])
        noise = jax.random.normal(key, (2, inputs + 33))
        return scale * (rules.network_scale * noise)

    shape = (2, len(observations(rules.memory)))
    log_odds = rules.table_scale * jax.random.normal(key, shape)
    if rules.policy == "skewed":  # the parameters of these log-odds
        return log_odds.at[:, 1:].add(2 * log_odds[:, :1])
    return log_odds


IPD_ALPHAS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 70.0, 100.0)


def iterated_game(name, own, other=None, alphas=IPD_ALPHAS, **settings) -> Game:
    """A `Game` between policies in an infinitely iterated 2x2 game.

    Args:
      name: of the game.
      own: player 1's payoffs in CC, CD, DC, DD, its own action first.
      other: player 2's payoffs, its own action first, where they are not the same.
      alphas: look-ahead steps that suit it.
      settings: other fields of `Rules`.
    """
    rules = Rules(own, own if other is None else other, **settings)
    parametrisation = partial(POLICIES[rules.policy], memory=rules.memory)

    def log_odds(x):
        return jax.vmap(parametrisation)(x)

    def f(x):
        return iterated_returns(log_odds(x), rules.payoffs, rules.discount)

    def sample(key, x):
        settings = (rules.payoffs, rules.discount, rules.episodes, rules.length)
        return sampled_returns(key, log_odds(x), *settings)

    # Where tables see two rounds, each entry is used a quarter as often, and its
    # gradient is as much smaller. A step changes a network's log-odds more.
    lr = rules.lr * 4 ** (rules.memory - 1)
    if rules.policy == "mlp":
        lr = rules.lr / 2
    return Game(
        name=name,
        n=jax.eval_shape(lambda: initial_policies(jax.random.key(0), rules)).shape[1],
        f=f,
        init=lambda key: initial_policies(key, rules),
        features=lambda x: jax.nn.sigmoid(log_odds(x)),
        labels=observations(rules.memory),
        symmetric=rules.own == rules.other,
        lr=lr,
        alphas=alphas,
        rules=rules,
        log_odds=log_odds,
        sample=sample if rules.episodes > 0 else None,
    )


# --- The games ------------------------------------------------------------------------

MATRIX_ALPHAS = (0.0, 0.5, 1.0, 2.0, 5.0)

GAMES: dict[str, Game] = {
    # That models see x / 10 is not in the paper's text.
    "logistic": planar_game(
        "logistic",
        logistic,
        start=8.0,
        scale=10.0,
        symmetric=True,
        alphas=(0.0, 1.0, 2.0, 5.0, 10.0, 20.0),
    ),
    # At this step size naive learning is stable, and most forms of LOLA as well.
    "tandem": planar_game(
        "tandem",
        tandem,
        start=3.0,
        scale=3.0,
        symmetric=True,
        lr=0.1,
        alphas=(0.0, 0.1, 0.2, 0.3),
        extent=3.0,
    ),
    "hamiltonian": planar_game(
        "hamiltonian",
        hamiltonian,
        start=1.0,
        scale=3.0,
        lr=0.1,
        alphas=(0.0, 0.05, 0.1, 0.2, 0.5),
        extent=1.0,
    ),
    # This step size is just too large for naive learning.
    "balduzzi": planar_game(
        "balduzzi",
        balduzzi,
        start=1.0,
        scale=3.0,
        lr=0.02,
        alphas=(0.0, 0.01, 0.02, 0.05, 0.1),
        extent=1.0,
    ),
    "two_hills": planar_game(
        "two_hills",
        two_hills,
        start=8.0,
        scale=10.0,
        symmetric=True,
        lr=5.0,
        alphas=(0.0, 1.0, 2.0, 5.0, 10.0, 20.0),
    ),
    # --- One round of a 2x2 game ---
    # Heads or tails; player 1 wins where they match (von Neumann, 1928).
    "matching_pennies": matrix_game(
        "matching_pennies", (1, -1, -1, 1), (-1, 1, 1, -1), alphas=MATRIX_ALPHAS
    ),
    # Player 1 offers half of 10 (C) or 2 (D); player 2 would take an unfair offer (C)
    # or refuse it (D). Naive learners mostly end at 8 : 2 (Hutter, 2020).
    "ultimatum": matrix_game(
        "ultimatum", (5, 5, 8, 0), (5, 2, 5, 0), alphas=MATRIX_ALPHAS
    ),
    # D dominates for player 1, and (D, C) is the only equilibrium, at 2 : 1. If player
    # 1 commits to C, player 2 answers D, at 3 : 2 (Conitzer and Sandholm, 2006).
    "stackelberg": matrix_game(
        "stackelberg", (1, 3, 2, 4), (0, 1, 2, 0), alphas=MATRIX_ALPHAS
    ),
    # --- Iterated 2x2 games ---
    # The Iterated Prisoner's Dilemma (Sec. 5.2).
    "ipd": iterated_game("ipd", (-1, -3, 0, -2)),
    # Iterated matching pennies (Foerster et al., 2018).
    "imp": iterated_game("imp", (1, -1, -1, 1), (-1, 1, 1, -1)),
    # Swerve (C) or drive on (D); if both drive on it is a catastrophe (Russell, 1959).
    "chicken": iterated_game(
        "chicken",
        (0, -1, 1, -100),
        lr=0.1,
        alphas=(0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    ),
    # The stag (C) takes two hunters, a hare (D) one (Skyrms, 2004).
    "stag_hunt": iterated_game("stag_hunt", (4, 1, 3, 2)),
    # Both want to be together; player 1 prefers Bach (C), player 2 Stravinsky (D) (Luce
    # and Raiffa, 1957, as the battle of the sexes).
    "bach_or_stravinsky": iterated_game(
        "bach_or_stravinsky", (3, 0, 0, 2), (2, 0, 0, 3)
    ),
    # Share the prize of 2 (C, the dove) or fight for it (D, the hawk), at the risk of
    # an injury of 4 (Maynard Smith and Price, 1973).
    "hawk_dove": iterated_game("hawk_dove", (1, 0, 2, -1)),
    # Give 1 (C) or nothing (D), and get half of 1.33 times what was given by both. Zhao
    # et al. (2022) have factors c of 1.1, 1.25, 1.33, 1.4, 1.6: payoffs of c - 1,
    # c / 2 - 1, c / 2, 0. Initial policies are, nearly, those of their code.
    "contribution": iterated_game(
        "contribution",
        (0.33, -0.335, 0.665, 0),
        table_scale=0.1,
        network_scale=0.25,
    ),
}


# --- Variants of games ----------------------------------------------------------------


def change_rules(game: Game, **changes) -> Game:
    """An iterated game with other `Rules`."""
    if not game.iterated:
        raise ValueError("takes an iterated game")
    rules = game.rules._replace(**changes)
    return iterated_game(game.name, alphas=game.alphas, **rules._asdict())


def parse_number(value: str, kind: type, low: float, high: float):
    """A number of this kind, in this range; or ValueError."""
    try:
        number = kind(value)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise ValueError(f"takes a number from {low:g} to {high:g}")
    return number


def with_policy(game: Game, value: str, policy: str) -> Game:
    """Policies are networks of 16 units ("mlp"), or tables in skewed parameters."""
    if value:
        raise ValueError("takes no value")
    if game.iterated and game.rules.policy != "table":
        raise ValueError(f"does not go with {game.rules.policy}")
    return change_rules(game, policy=policy)


def with_memory(game: Game, value: str) -> Game:
    """Policies see the last round, or the last two."""
    return change_rules(game, memory=parse_number(value, int, 1, 2))


def with_episodes(game: Game, value: str) -> Game:
    """Learners see estimates of f and its derivatives, from so many episodes."""
    return change_rules(game, episodes=parse_number(value, int, 1, 1_000_000))


def with_length(game: Game, value: str) -> Game:
    """Episodes have so many rounds."""
    if game.sample is None:
        raise ValueError("takes an iterated game, and episodes=N before it")
    return change_rules(game, length=parse_number(value, int, 1, 100_000))


def with_discount(game: Game, value: str) -> Game:
    """The iterated game has another discount."""
    return change_rules(game, discount=parse_number(value, float, 0, 0.999))


def with_payoffs(game: Game, value: str) -> Game:
    """Other payoffs: four numbers, or eight if player 2's are not the same."""
    numbers = value.split(",")
    if len(numbers) not in (4, 8):
        raise ValueError("takes four numbers with commas (CC, CD, DC, DD) or eight")
    payoffs = tuple(parse_number(number, float, -1e6, 1e6) for number in numbers)
    return change_rules(game, own=payoffs[:4], other=payoffs[-4:])


def swapped(game: Game, value: str = "") -> Game:
    """The game with the players' seats exchanged: player 2 comes first."""
    if value:
        raise ValueError("takes no value")
    rules = game.rules
    if rules is not None:
        rules = rules._replace(own=rules.other, other=rules.own)

    def sample(key, x):
        return game.sample(key, x[::-1])[::-1]

    return game._replace(
        f=lambda x: game.f(x[::-1])[::-1],
        init=lambda key: game.init(key)[::-1],
        features=lambda x: game.features(x[::-1])[::-1],
        rules=rules,
        sample=None if game.sample is None else sample,
    )


VARIANTS = {
    "mlp": partial(with_policy, policy="mlp"),
    "skewed": partial(with_policy, policy="skewed"),
    "memory": with_memory,
    "episodes": with_episodes,
    "length": with_length,
    "discount": with_discount,
    "payoffs": with_payoffs,
    "swapped": swapped,
}
VARIANTS_HELP = (
    "+mlp, +skewed, +memory=2, +episodes=N, +length=T, +discount=D, "
    "+payoffs=CC,CD,DC,DD (and player 2's four) or +swapped"
)


def find_game(name: str | Game) -> Game:
    """The game of this name, such as `ipd`, or a variant of it, `ipd+mlp+discount=0.9`.

    Variants are applied from left to right. A `Game` of one's own is returned as it is.
    ValueError if there is no such game, or a variant is unknown, given twice, or does
    not fit the game.
    """
    if isinstance(name, Game):
        return name
    base, *words = re.split(r"\+(?=[a-zA-Z])", name)  # not in 1e+06
    if base not in GAMES:
        raise ValueError(f"game takes {', '.join(sorted(GAMES))}, not {base!r}")
    game = GAMES[base]
    given = set()
    for word in words:
        variant, _, value = word.partition("=")
        try:
            if variant not in VARIANTS:
                raise ValueError("is unknown")
            if variant in given:
                raise ValueError("is given twice")
            if word.endswith("="):
                raise ValueError("has no value")
            game = VARIANTS[variant](game, value)
        except ValueError as error:
            raise ValueError(
                f"game {name!r}: {variant} {error}; variants are {VARIANTS_HELP}"
            ) from None
        given.add(variant)
    return game._replace(name=name)


# --- Following a learning rule --------------------------------------------------------


def take_step(step: Callable, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """One step of a rule: `step(x)`, or with a key `step(x, key)`. (2, n) -> (2, n)."""
    if key is None:
        return step(x)
    return step(x, key)


def follow(step: Callable, x: jax.Array, steps: int, key=None) -> jax.Array:
    """Where `steps` applications of a rule lead from x. (2, n) -> (2, n).

    With a key, for a rule that draws, it is `step(x, key)`, with a new key each time.
    """
    keys = None if key is None else jax.random.split(key, steps)

    def advance(x, key):
        return take_step(step, x, key), None

    last, _ = jax.lax.scan(advance, x, keys, length=steps)
    return last


def trajectory(step: Callable, x: jax.Array, steps: int, key=None) -> jax.Array:
    """The joint policies on the way, x first. (2, n) -> (steps + 1, 2, n).

    Arguments are those of `follow`.
    """
    keys = None if key is None else jax.random.split(key, steps)

    def advance(x, key):
        return take_step(step, x, key), x

    last, path = jax.lax.scan(advance, x, keys, length=steps)
    return jnp.concatenate([path, last[None]])


# --- The paper's evaluation (Sec. 5) --------------------------------------------------


def naive_step(game: Game, x: jax.Array, lr: float) -> jax.Array:
    """One step of two naive learners (Eq. 1). (2, n) -> (2, n)."""
    return x + lr * simultaneous_gradient(game.f, x)


def beside(step: Callable, other_step: Callable, agent: int = 0) -> Callable:
    """The rule of a pair: player `agent` follows `step`, the other one `other_step`.

    The pair's rule takes a key where `step` draws; `other_step` never does.
    """

    def joint_step(x, key=None):
        own = take_step(step, x, key)[agent]
        return other_step(x).at[agent].set(own)

    return joint_step


def best_response(game: Game, x: jax.Array, lr: float, steps: int, agent: int = 0):
    """Player `agent` stands still in x while the other learns naively. (2, n).

    It is the paper's best response, by gradient steps, and as good as they are.
    """

    def step(now):
        return naive_step(game, now, lr).at[agent].set(x[agent])

    return follow(step, x, steps)


def decisions_beside(game: Game, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Markov decision process that player 2 faces beside player 1 of x.

    Its states are player 2's observations. Returns the rewards of its actions D and C,
    (o, 2), weighted by 1 - discount, and the chances of what it sees next, (o, 2, o).
    """
    rules = game.rules
    cooperates = jax.nn.sigmoid(game.log_odds(x)[0])
    cooperates = cooperates[seen_by_the_other(rules.memory)]
    # Of all arrays axis 1 is player 2's action, and axis 2 player 1's: D, C.
    chance = jnp.stack([1 - cooperates, cooperates], axis=1)[:, None]  # (o, 1, 2)
    cc, cd, dc, dd = rules.other
    payoffs = jnp.array([[dd, dc], [cd, cc]], cooperates.dtype)
    reward = (1 - rules.discount) * (chance * payoffs).sum(axis=2)

    # Columns DD, CD, DC, CC, player 2's own action first, are two axes: first that of
    # player 1's action, D or C, then player 2's own. Swap them.
    following = next_observations(rules.memory).reshape(-1, 2, 2)
    following = following.swapaxes(1, 2)
    leads = following[..., None] == np.arange(len(following))  # (o, 2, 2, o)
    # Not as a sum of products: jaxlib 0.10.2 makes it a matrix product, and crashes.
    transition = jnp.where(leads, chance[..., None], 0).sum(axis=2)
    return reward, transition


def exact_best_response(game: Game, x: jax.Array) -> jax.Array:
    """Player 2's best response to player 1 in an iterated game. (2, n) -> (2, o).

    It is deterministic, by policy iteration (Howard, 1960). No policy is better,
    however long its memory. Returns both players' log-odds after each observation (a
    network need not be able to play them).
    """
    x = jnp.asarray(x)
    wide = at_least_float32(x)
    reward, transition = decisions_beside(game, wide)
    discount = game.rules.discount
    states = np.arange(len(reward))

    def improve(_, response):  # (o,), 1 where it cooperates
        own_reward = reward[states, response]
        a = jnp.eye(len(states), dtype=wide.dtype)
        a = a - discount * transition[states, response]
        # Values solve a y = own_reward. Which action is best does not change if one
        # number, the first state's value v, is taken off all of them: (1 - discount) v
        # off the rewards, as all rows of a sum to 1 - discount. In long games values
        # differ by less than the rounding of v, and rounding would decide.
        v = eliminate(a, own_reward)[0]
        value = eliminate(a, own_reward - (1 - discount) * v)
        future = discount * (transition * value).sum(axis=2)
        return (reward + future).argmax(axis=1)

    # A few improvements would do, but for ties.
    defect = jnp.zeros(len(states), int)
    response = jax.lax.fori_loop(0, 20, improve, defect)
    sure = jnp.where(response == 1, 30, -30)  # log-odds
    return game.log_odds(x).at[1].set(sure)


def planar_grid(game: Game) -> jax.Array:
    """The surveyed area: 29 x 29 joint policies; x_1 grows along rows. (29, 29, 2)."""
    line = jnp.arange(-14, 15) * game.extent / 14
    x_1, x_2 = jnp.meshgrid(line, line)
    return jnp.stack([x_1, x_2], axis=-1)


def survey(game: Game, step: Callable, steps: int, key=None) -> dict[str, jax.Array]:
    """Where the points of `planar_grid` lead (Fig. 2b). `key` is for a rule that draws.

    Returns:
      "endpoints", (29, 29, 2), where `steps` of the rule lead; "basin_fraction", (),
      the share that ends with both above 0; "final_returns", (2,), the mean return
      there; and "field", (29, 29, 2), the first step.
    """
    starts = planar_grid(game).reshape(-1, 2, 1)
    keys = None if key is None else jax.random.split(key, len(starts))

    def first_and_last(x, key):
        return take_step(step, x, key) - x, follow(step, x, steps, key)

    field, ends = jax.vmap(first_and_last)(starts, keys)  # (841, 2, 1) both
    return {
        "endpoints": ends.reshape(29, 29, 2),
        "basin_fraction": (ends > 0).all(axis=(1, 2)).mean(),
        "final_returns": jax.vmap(game.f)(ends).mean(axis=0),
        "field": field.reshape(29, 29, 2),
    }


def policies_of(game: Game, x: jax.Array) -> jax.Array:
    """Policies as results have them: log-odds where they are such, else x itself."""
    if game.log_odds is None:
        return x
    return game.log_odds(x)


def play_self(game, step, start, steps, key) -> tuple[jax.Array, dict]:
    """Self-play: where the rule leads both players from `start`, and what they get."""
    results = {}
    if game.planar:
        path = trajectory(step, start, steps, key)  # (steps + 1, 2, 1)
        results["trajectories"] = path[..., 0]
        agents = path[-1]
    else:
        agents = follow(step, start, steps, key)
    results["self_play"] = game.f(agents)
    results["policies"] = policies_of(game, agents)
    return agents, results


def play_responses(game, agents, agent, newcomers, lr, steps) -> dict:
    """What best responses leave to an agent, 0 or 1. One learns, from `newcomers`."""
    order = np.array([agent, 1 - agent])  # the agent first
    start = newcomers.at[agent].set(agents[agent])
    response = best_response(game, start, lr, steps, agent)
    results = {
        "best_response": game.f(response)[order],
        "response_policies": policies_of(game, response)[order],
    }
    if game.iterated:
        seen = game if agent == 0 else swapped(game)  # as the agent sees it
        exact = exact_best_response(seen, agents[order])
        payoffs, discount = seen.rules.payoffs, seen.rules.discount
        results["exact_best_response"] = iterated_returns(exact, payoffs, discount)
        results["exact_response_policies"] = exact
    return results


def play_learners(game, step, opponent_step, agent, start, lr, steps, key) -> dict:
    """What an agent, 0 or 1, gets beside a naive learner, and beside the opponent."""
    order = np.array([agent, 1 - agent])  # the agent first
    pair_step = beside(step, partial(naive_step, game, lr=lr), agent)
    ends = follow(pair_step, start, steps, key)
    results = {
        "versus_naive": game.f(ends)[order],
        "versus_naive_policies": policies_of(game, ends)[order],
    }
    if opponent_step is not None:
        ends = follow(beside(step, opponent_step, agent), start, steps, key)
        results["versus_opponent"] = game.f(ends)[order]
        results["versus_opponent_policies"] = policies_of(game, ends)[order]
    return results


def over_pairs(play: Callable, keys: jax.Array, draws: bool) -> dict:
    """`play(key)` for each of the keys, one of a pair of policies."""
    if draws:  # one after another: episodes of all pairs would not fit in memory
        return jax.lax.map(play, keys)
    return jax.vmap(play)(keys)


def evaluate_game(
    key,
    game: Game,
    step: Callable,
    *,
    lr: float,
    steps: int,
    pairs: int,
    step_beside=None,
    opponent_step=None,
    agent_start=None,
    agents=(0, 1),
    draws=False,
) -> dict:
    """What agents get by following a rule, by themselves and beside others (Sec. 5.2).

    Args:
      key: draws the policies that everybody starts from.
      game: the game.
      step: the rule, x -> the next x, for both players in self-play.
      lr: step size of naive learners and of best responses, which learn naively.
      steps: how long policies are followed.
      pairs: how many pairs of policies there are.
      step_beside: where the rule of an agent, 0 or 1, is another one beside learners:
        `step_beside(agent)` is that rule.
      opponent_step: the rule of another learner to play beside.
      agent_start: where agents start, (2, n), if not at random as everybody else.
      agents: whose agents are evaluated beside others, (0,) or (0, 1). In a symmetric
        game player 2's are not: they would be player 1's.
      draws: whether `step` and `step_beside(agent)` take a key, `step(x, key)`.

    Returns:
      a dictionary of what player 1's agents get in each play, (pair, 2), their return
      first, and the policies of both that got it, (pair, 2, n), in iterated games their
      log-odds, (pair, 2, o):
        "self_play"            "policies"                  agents among themselves
        "best_response"        "response_policies"         beside one who learns naively
                                                           how to exploit such an agent
        "exact_best_response"  "exact_response_policies"   the same, exact
        "versus_naive"         "versus_naive_policies"     both learn, the other naively
        "versus_opponent"      "versus_opponent_policies"  both learn, if there is one
      With "_2" in the names the same of player 2's agents, their return first, if they
      are evaluated. In planar games also "trajectories" of self-play, (pair, steps + 1,
      2), and what `survey` returns.
    """

    def play_as(agent, agents_from, ends, start, newcomers, key):
        own_step = step if step_beside is None else step_beside(agent)
        start = start.at[agent].set(agents_from[agent])
        results = play_responses(game, ends, agent, newcomers, lr, steps)
        results |= play_learners(
            game, own_step, opponent_step, agent, start, lr, steps, key
        )
        return results

    def play(key):
        key_start, key_response = jax.random.split(key)
        # All plays of a pair draw by the same key. (A third one: not one of the two.)
        key_draw = jax.random.fold_in(key, 2) if draws else None
        start = game.init(key_start)
        newcomers = game.init(key_response)
        agents_from = start if agent_start is None else agent_start
        ends, results = play_self(game, step, agents_from, steps, key_draw)
        results |= play_as(0, agents_from, ends, start, newcomers, key_draw)
        if 1 in agents and not game.symmetric:
            second = play_as(1, agents_from, ends, start, newcomers, key_draw)
            results |= {name + "_2": array for name, array in second.items()}
        return results

    keys = over_devices(jax.random.split(key, pairs))
    results = over_pairs(play, keys, draws)
    if game.planar:
        key_survey = jax.random.fold_in(key, pairs) if draws else None
        results |= survey(game, step, steps, key_survey)
    return results


# --- Running a script -----------------------------------------------------------------


def make_folders(out: str):
    """Make results/ and figures/ in a folder. ValueError if they cannot be written."""
    check_devices()  # first: a run that is refused leaves no folders
    try:
        for name in ("results", "figures"):
            folder = Path(out) / name
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"not {out} ({error.strerror})"
        raise ValueError(
            f"--out takes a folder that can be written, {reason}"
        ) from None


def check_devices():
    """Start JAX; RuntimeError if there is no device of the kind that is asked for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        wanted = os.environ.get("JAX_PLATFORMS")
        raise RuntimeError(f"JAX finds no device (JAX_PLATFORMS is {wanted})") from None


def print_settings(config, devices: int | None = None) -> str:
    """Print the settings of a run, versions and device. Returns them, a JSON text.

    `devices` is how many are used, if not all.
    """
    device = f"{devices or jax.device_count()} x {jax.devices()[0].device_kind}"
    settings = dataclasses.asdict(config)
    settings["run_on"] = f"jax {jax.__version__} on {device}"
    text = json.dumps(settings)
    print(text, flush=True)
    return text


def run_script(main: Callable):
    """Run a script; what comes from outside, as Ctrl-C or a full disk, is one line."""
    try:
        main()
        return
    except BrokenPipeError:  # whoever read the output is gone
        reason, status = "", 1
    except KeyboardInterrupt:
        reason, status = "interrupted", 130
    except BadCheckpoint as error:
        reason, status = f"error: {error}", 2
    except (OSError, MemoryError, RuntimeError) as error:
        reason, status = str(error) or type(error).__name__, 1
    if reason:
        script = Path(sys.argv[0]).name
        print(f"{script}: {reason}".splitlines()[0], file=sys.stderr, flush=True)
    os._exit(status)  # after sys.exit JAX may crash, and a closed pipe complain


def write_file(path: Path, save: Callable):
    """Write a file by `save(path)` beside its name, and move it into place."""
    part = path.with_name(f"{os.getpid()}.{path.name}")  # no other run writes this one
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# --- Training: devices, checkpoints, progress -----------------------------------------


def use_devices(batch_size: int, devices: int | None, distributed: list | None) -> Mesh:
    """The devices that a training runs on: a mesh, to be set by `jax.set_mesh`.

    Args:
      batch_size: their number divides it.
      devices: how many of each process are used at most. If None all, and of a CPU each
        core is one.
      distributed: the words after --distributed if several processes share the work.

    ValueError if this cannot be.
    """
    if devices is not None and not 1 <= devices <= 256:
        raise ValueError(f"--devices takes 1 to 256, not {devices}")
    is_set = "device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 0 and not is_set:  # the user has not said
        with contextlib.suppress(RuntimeError):  # JAX has started: with one
            jax.config.update("jax_num_cpu_devices", devices or count_cores())
    if distributed is not None:
        join_processes(distributed)
    check_devices()
    if jax.process_index() > 0:  # process 0 prints and writes
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    by_process = [jax.local_devices(i) for i in range(jax.process_count())]
    most = min(len(local) for local in by_process)
    if devices is not None:
        most = min(most, devices)
    counts = [n for n in range(1, most + 1) if batch_size % (n * len(by_process)) == 0]
    if not counts:
        raise ValueError(f"--batch-size takes multiples of {len(by_process)} processes")
    used = [device for local in by_process for device in local[: max(counts)]]
    return Mesh(np.array(used), ("batch",))


def count_cores() -> int:
    """How many cores of the CPU this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def join_processes(words: list[str]):
    """Share the work with other processes, on this machine or on others.

    `words` are HOST:PORT COUNT INDEX: where process 0 listens, how many processes there
    are, and which this is. There are none on a cluster that JAX detects, such as Slurm.
    """
    takes = "--distributed takes HOST:PORT COUNT INDEX, or nothing where JAX detects a"
    takes = f"{takes} cluster, not {' '.join(words)!r}"
    if not words:
        try:
            jax.distributed.initialize()
        except ValueError:  # JAX detects none
            raise ValueError(takes) from None
        return
    match = re.fullmatch(r"([^\s:]+):(\d{1,5}) (\d{1,4}) (\d{1,4})", " ".join(words))
    if match is None:
        raise ValueError(takes)
    host, port, count, index = match.groups()
    if not 1 <= int(port) <= 65535 or not int(index) < int(count):
        raise ValueError(takes)
    jax.distributed.initialize(f"{host}:{port}", int(count), int(index))


def over_devices(batch: jax.Array) -> jax.Array:
    """Deal a batch out to the devices of the mesh that is set, if they divide it.

    Not where each device has seeds of its own (`over_seeds`): "batch" is then no axis
    that JAX shares out, one of `auto_axes`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "batch" not in mesh.auto_axes or len(batch) % mesh.size > 0:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec("batch"))


def mean_over_devices(function: Callable, params, *batch, axis: int = 0):
    """`function(params, *batch)`, a pytree of means over a batch that devices share.

    `axis` is that of the batch in all of its arrays. All means are added up at once.
    JAX by itself, as with `over_devices`, adds them up leaf by leaf, and in each step
    of a loop: on two cores COLA then takes 1.5 times as long, and M-FOS as well.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "batch" not in mesh.auto_axes or mesh.size == 1:
        return function(params, *batch)

    def of_share(params, *batch):
        numbers, unravel = ravel_pytree(function(params, *batch))
        return unravel(jax.lax.pmean(numbers, "batch"))

    whole, share = PartitionSpec(), PartitionSpec(*[None] * axis, "batch")
    specs = (whole, *[share] * len(batch))
    # With check_vma JAX would add up gradients by itself.
    shared = jax.shard_map(of_share, in_specs=specs, out_specs=whole, check_vma=False)
    return shared(params, *batch)


def over_seeds(function: Callable, mesh: Mesh) -> Callable:
    """Compile a function of one seed for all of them: (seeds, *arguments) -> results.

    It is `function(key to train with, key to evaluate with, *arguments)`. Axis 0 of all
    arguments and results is that of the seeds. Where the devices divide them, each has
    seeds of its own; otherwise all devices share the batch of each seed.
    """

    def of_one(inputs):
        seed, *arguments = inputs
        train_key, eval_key = jax.random.split(jax.random.key(seed))
        return function(train_key, eval_key, *arguments)

    def of_some(*inputs):
        # In turn on a CPU, which is slow at products with a batch of weights.
        if jax.default_backend() == "cpu":
            return jax.lax.map(of_one, inputs)
        return jax.vmap(of_one)(inputs)

    def of_all_devices(seeds, *arguments):
        if len(seeds) % mesh.size > 0:
            return of_some(seeds, *arguments)
        by_seed = PartitionSpec("batch")
        own_seeds = jax.shard_map(
            of_some, mesh=mesh, in_specs=by_seed, out_specs=by_seed, check_vma=False
        )
        return own_seeds(seeds, *arguments)

    return jax.jit(of_all_devices, out_shardings=NamedSharding(mesh, PartitionSpec()))


class BadCheckpoint(ValueError):
    """A checkpoint that is damaged, or of other settings."""


def flatten(prefix: str, tree) -> dict[str, np.ndarray]:
    """The leaves of a pytree by name, `prefix/path/to/leaf`."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaves[f"{prefix}/{name}"] = np.asarray(leaf)
    return leaves


def unflatten(arrays: dict, prefix: str, like):
    """The pytree of this structure whose leaves `flatten` named; or ValueError."""
    leaves = []
    for path, _ in jax.tree_util.tree_leaves_with_path(like):
        name = f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
        if name not in arrays:
            raise ValueError(f"there is no {name}")
        leaves.append(arrays[name])
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """A text that changes if anything in these arrays does."""
    content = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        content.update(f"{name} {array.dtype} {array.shape}".encode())
        content.update(array.tobytes())
    return content.hexdigest()


def save_checkpoint(path: Path, state, curves: dict, settings: str):
    """Write all that is needed to go on. `settings` are those of `print_settings`."""
    if jax.process_index() > 0:
        return
    arrays = {"config": np.array(settings)}
    arrays |= flatten("state", state) | flatten("curves", curves)
    arrays["checksum"] = np.array(checksum(arrays))
    write_file(path, partial(np.savez, **arrays))


def load_checkpoint(path: Path, state, config) -> tuple:
    """State and curves that `save_checkpoint` wrote, with settings like these.

    `state` is one of the same structure. BadCheckpoint if the file is damaged, or of
    other settings, but for those of the evaluation.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        whole = str(arrays.pop("checksum")) == checksum(arrays)
        had = dict(json.loads(str(arrays["config"])))
    except Exception:  # noqa: BLE001 whatever is raised on a damaged file
        whole = False
    if not whole:
        raise BadCheckpoint(f"--resume: {path} is damaged, or no checkpoint")
    for name, value in json.loads(json.dumps(dataclasses.asdict(config))).items():
        if had.get(name) != value and not name.startswith("eval_"):
            flag = "--" + name.replace("_", "-")
            raise BadCheckpoint(f"--resume: {path} has {flag} {had.get(name)}")
    try:
        saved = unflatten(arrays, "state", state)
    except ValueError as error:  # of another version of the script, or of optax
        raise BadCheckpoint(f"--resume: {path} does not fit: {error}") from None
    curves = {}
    for name, array in arrays.items():
        if name.startswith("curves/"):
            curves[name.removeprefix("curves/")] = array
    return saved, curves


def load_model(
    path: str | Path, Config: type, model_init: Callable, seed: int | None, game
) -> tuple:
    """A trained model and its settings, from the results of a run.

    Args:
      path: of the npz.
      Config: the dataclass of the settings.
      model_init: (key, game, config) -> parameters of the same structure.
      seed: which model, if there are several; the first if None.
      game: the game, if it is not one of `GAMES` or a variant.

    Returns:
      parameters and settings. ValueError if the file does not have them.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    saved = json.loads(str(arrays["config"]))
    settings = {}
    for field in dataclasses.fields(Config):
        value = saved.get(field.name, field.default)  # of an earlier version: fewer
        settings[field.name] = tuple(value) if isinstance(value, list) else value
    config = Config(**settings)
    game = find_game(config.game if game is None else game)
    like = jax.eval_shape(lambda key: model_init(key, game, config), jax.random.key(0))
    of_all = unflatten(arrays, "params", like)
    index = 0 if seed is None else seed - config.seed
    if not 0 <= index < config.num_seeds:
        raise ValueError(f"{path} has no seed {seed}")
    return jax.tree.map(lambda leaf: leaf[index], of_all), config


def train_in_chunks(
    seeds: np.ndarray,
    init: Callable,
    chunk: Callable,
    *,
    mesh: Mesh,
    steps: int,
    length: int,
    config,
    settings: str,
    path: Path,
    resume: bool,
) -> tuple:
    """Train a model for each seed, with a checkpoint after each chunk of steps.

    Args:
      seeds: (seed,), uint32.
      init: key -> the first state, a NamedTuple with the number of steps done, `step`.
      chunk: (key, state, count) -> the state after so many steps, and a dictionary of
        curves with `loss`, (count,). `key` is the seed's, the same in all chunks.
      mesh: the devices.
      steps: how many steps there are in all.
      length: how many a chunk has. The last one may have fewer.
      config: the settings. A checkpoint of others is refused.
      settings: the text of `print_settings`.
      path: of the checkpoint.
      resume: whether to go on from it, if there is one.

    Returns:
      state and curves, with the axis of the seeds first, in NumPy's arrays. SystemExit,
      status 1, if training diverges; the checkpoint then has the last finite state.
    """

    def init_seed(train_key, eval_key):
        return init(train_key)

    state = jax.device_get(over_seeds(init_seed, mesh)(seeds))
    curves = {}
    if resume and path.exists():
        state, curves = load_checkpoint(path, state, config)
    done = int(state.step[0])
    save_checkpoint(path, state, curves, settings)
    print(f"checkpoints in {path}, for --resume", flush=True)

    compiled = {}  # programs, by their numbers of steps
    while done < steps:
        count = min(length, steps - done)
        if count not in compiled:
            compiled[count] = compile_chunk(chunk, count, mesh, seeds, state)
        begin = time.perf_counter()
        state, new = jax.device_get(compiled[count](seeds, state))
        rate = count / (time.perf_counter() - begin)
        check_finite(state, new["loss"], done, path)
        done += count
        for name, curve in new.items():
            before = [curves[name]] if name in curves else []
            curves[name] = np.concatenate([*before, curve], axis=1)
        save_checkpoint(path, state, curves, settings)
        print_progress(done, steps, new, rate)
    return state, curves


def compile_chunk(chunk: Callable, count: int, mesh: Mesh, seeds, state):
    """A program for chunks of `count` steps of all seeds: (seeds, state) -> results."""

    def run_chunk(train_key, eval_key, state):
        return chunk(train_key, state, count)

    begin = time.perf_counter()
    program = over_seeds(run_chunk, mesh).lower(seeds, state).compile()
    print(f"compiled in {time.perf_counter() - begin:.1f} s", flush=True)
    return program


def print_progress(done: int, steps: int, curves: dict, rate: float):
    """How far training is; the last numbers of its curves, means over seeds; speed."""
    words = [f"{done:6d} / {steps}"]
    for name, curve in curves.items():
        last = np.ravel(curve[:, -1].mean(axis=0))
        words.append(f"{name} {' : '.join(f'{number:.4g}' for number in last)}")
    words.append(f"{rate:.3g} steps/s  {(steps - done) / rate:.0f} s left")
    print("  ".join(words), flush=True)


def check_finite(state, loss: np.ndarray, done: int, path: Path):
    """SystemExit if the loss, (seed, count), or the state after it is not finite."""
    finite = np.isfinite(loss).all(axis=0)  # (count,)
    for leaf in jax.tree.leaves(state):
        finite[-1] &= np.isfinite(leaf).all()
    if not finite.all():
        step = done + 1 + finite.argmin()
        kept = f"{path} has the state after {done}"
        raise SystemExit(f"training diverged at step {step}; {kept}")


# --- Reporting a run: an npz, a figure and a table ------------------------------------

PLAYS = {  # what is played, and its title, which says who the other player is
    "self_play": "self-play",
    "best_response": "with a learned best response",
    "exact_best_response": "with an exact best response",
    "versus_naive": "with a naive learner",
    "versus_opponent": "with the opponent of its training",
}


def report(
    algorithm: str,
    game: Game,
    settings: str,
    sweep: np.ndarray,
    results: dict[str, np.ndarray],
    *,
    symbol: str,
    color: str,
    out: str = ".",
    draw_below: Callable | None = None,
    jumps: bool = False,
):
    """Write results/ALGORITHM_GAME.npz and figures/ALGORITHM_GAME.png, print a table.

    Args:
      algorithm: its name.
      game: the game.
      settings: of the run, as `print_settings` returns them.
      sweep: the values of the setting that was swept, (S,), such as LOLA's alphas.
      results: of `evaluate_game`, with axes (S, seed, ...), and anything else.
      symbol: words for what was swept, of which the last is its symbol in figures.
      color: of the algorithm in figures.
      out: the folder that results/ and figures/ are in.
      draw_below: draws something else, on a figure of its own below: `draw(figure)`.
      jumps: whether policies jump from step to step, and are drawn without lines.
    """
    if jax.process_index() > 0:
        return
    results = dict(results, config=settings, sweep=np.asarray(sweep, np.float32))
    if game.planar:
        results["grid"] = np.asarray(planar_grid(game))
    npz = Path(out) / "results" / f"{algorithm}_{game.name}.npz"
    write_file(npz, partial(np.savez_compressed, **results))

    figure = draw_report(algorithm, game, results, symbol, color, draw_below, jumps)
    png = Path(out) / "figures" / f"{algorithm}_{game.name}.png"
    write_file(png, partial(figure.savefig, dpi=150))

    print_table(game, results, symbol)
    print(f"wrote {npz} and {png}", flush=True)


def players_of(results: dict) -> tuple[int, ...]:
    """Whose agents were evaluated: player 1's, or those of both players."""
    return (1, 2) if "best_response_2" in results else (1,)


def plays_of(results: dict, player: int) -> dict[str, np.ndarray]:
    """Returns of all plays of this player's agents, by name, the agent's first."""
    plays = {}
    for name in PLAYS:
        if player == 1 and name in results:
            plays[name] = results[name]
        if player == 2 and name == "self_play":
            plays[name] = results[name][..., ::-1]
        if player == 2 and name + "_2" in results:
            plays[name] = results[name + "_2"]
    return plays


def mean_and_error(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of returns (seed, pair, 2), both (2,).

    The error is that over seeds: pairs of one model are no independent samples of what
    training brings. Of a single seed it is that over pairs.
    """
    samples = returns.mean(axis=1) if len(returns) > 1 else returns[0]
    if len(samples) == 1:
        return samples[0], np.full(2, np.nan)
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / len(samples) ** 0.5


def samples_of(results: dict) -> str:
    """What standard errors are over, in words: seeds, or the pairs of a single one."""
    seeds, pairs = results["best_response"].shape[1:3]
    return f"{seeds} seeds" if seeds > 1 else f"{pairs} pairs of policies"


def describe_returns(returns: np.ndarray) -> str:
    """Means and standard errors, agent : other, of returns (seed, pair, 2)."""
    diverged = (~np.isfinite(returns)).any(axis=-1)
    if diverged.any():
        return f"{diverged.sum()} of {diverged.size} pairs diverged"
    words = []
    for mean, error in zip(*mean_and_error(returns)):
        form = ".3f" if abs(mean) < 1e4 else ".1e"
        plus_minus = "" if np.isnan(error) else f" +- {error:{form}}"
        words.append(f"{mean:{form}}{plus_minus}")
    return " : ".join(words)


def print_table(game: Game, results: dict, symbol: str):
    """Returns of all plays by setting, and where the points of a planar game end."""
    over = samples_of(results)
    swept = symbol.replace("$", "").replace("\\", "")  # alpha, not LaTeX's
    print(f"Mean returns by {swept}, agent : other, +- standard error over {over}")
    for player in players_of(results):
        plays = plays_of(results, player)
        titles = [PLAYS[name] for name in plays]
        agent = "" if game.symmetric else f"player {player}"
        print(agent.rjust(10), *(title.rjust(34) for title in titles))
        for i, setting in enumerate(results["sweep"]):
            cells = [describe_returns(returns[i]) for returns in plays.values()]
            print(f"{setting:10g}", *(cell.rjust(34) for cell in cells))
    if game.planar:
        shares = results["basin_fraction"].mean(axis=1)
        words = [f"{share:.3f}" for share in shares]
        print("share of the grid that ends at x_1, x_2 > 0:", *words)


def robust_limits(values: np.ndarray, least: float) -> tuple[float, float]:
    """Limits of an axis that shows the values, but for outliers.

    Let r be the range from the 10th to the 90th percentile, or `least` if that is more.
    Values that are further than 2 r from this range are not shown. The limits are
    `least` apart, or more.
    """
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, (10, 90))
    reach = 2 * max(high - low, least)
    bottom = max(values.min(), low - reach)
    top = min(values.max(), high + reach)
    margin = max(0.05 * (top - bottom), (least - (top - bottom)) / 2, 1e-6)
    return bottom - margin, top + margin


def draw_report(
    algorithm, game, results, symbol, color, draw_below=None, jumps=False
) -> Figure:
    """The figure of a run: the arguments are those of `report`."""
    players = players_of(results)
    width, height = 10, (2.75 + policies_height(game)) * len(players)
    if game.planar:
        width, height = max(6, 2 * len(results["sweep"]) + 1), 5.5
    figure = Figure(figsize=(width, height), layout="constrained")
    upper = figure
    if draw_below is not None:
        figure.set_size_inches(max(width, 9), height + 3)
        upper, lower = figure.subfigures(2, 1, height_ratios=(height, 3))
        draw_below(lower)
    seeds = results["policies"].shape[1]
    upper.suptitle(f"{algorithm} on {game.name}, {seeds} seed" + "s" * (seeds > 1))
    if game.planar:
        draw_plane(upper, game, results, symbol, color, jumps)
        return figure
    parts = upper.subfigures(len(players), 1, squeeze=False)[:, 0]
    for player, part in zip(players, parts):
        draw_player(part, game, results, player, symbol, color)
    return figure


def draw_plane(
    figure: Figure, game: Game, results: dict, symbol: str, color: str, jumps: bool
):
    """Trajectories of the first seed, and where the grid's points end (Fig. 2).

    White: points that end at x_1, x_2 > 0; gray: with some seeds.
    """
    sweep = results["sweep"]
    short = symbol.split()[-1]
    panels = figure.subplots(2, len(sweep), sharex=True, sharey=True, squeeze=False)
    edge = game.extent * 29 / 28  # each point of the grid in the middle of its cell
    for i, setting in enumerate(sweep):
        top, bottom = panels[:, i]
        shape = "." if jumps else "-"  # points or lines
        line = {"color": color, "linewidth": 0.8, "markersize": 1.5}
        for path in results["trajectories"][i, 0]:  # (time, 2)
            top.plot(path[:, 0], path[:, 1], shape, **line)
            top.plot(path[-1, 0], path[-1, 1], ".", color="black", zorder=3)
        title = f"{short} = {setting:g}" if len(sweep) > 1 else "self-play"
        top.set(title=title, ylabel="$x_2$", aspect="equal")
        top.set(xlim=(-edge, edge), ylim=(-edge, edge))

        share = (results["endpoints"][i] > 0).all(axis=-1).mean(axis=0)  # (29, 29)
        box = (-edge, edge, -edge, edge)
        bottom.imshow(share, origin="lower", extent=box, cmap="gray", vmin=0, vmax=1)
        bottom.set(title=f"{share.mean():.1%} of starts")
        bottom.set(xlabel="$x_1$", ylabel="$x_2$")
    for axis in panels.flat:
        axis.label_outer()
    # What a reader needs who sees the picture alone.
    first = f"First row: paths by {symbol}; dots: their ends"
    second = "Second row, white: starts of paths to $x_1, x_2 > 0$ (gray: some seeds)"
    figure.supxlabel(f"{first}\n{second}", fontsize="medium")


def policies_height(game: Game) -> float:
    """Height of the panel of policies, in inches: their numbers need room."""
    return max(2.75, 0.24 * len(game.labels))


def mark_settings(axis, results: dict, symbol: str):
    """The settings that were swept, at 0, 1, 2, ... on the horizontal axis."""
    labels = [f"{setting:g}" for setting in results["sweep"]]
    rotation = 60 if len(labels) > 6 else 0
    axis.set_xticks(range(len(labels)), labels, rotation=rotation)
    axis.set_xlabel(symbol)


def draw_play(axis, returns: np.ndarray, color: str, labels: tuple[str, str]):
    """Returns (S, seed, pair, 2): means and errors; thin: the agent's by seed.

    Returns what was drawn, with the ends of the error bars, a flat array.
    """
    positions = np.arange(len(returns))
    with np.errstate(invalid="ignore"):  # where policies have diverged
        by_setting = [mean_and_error(each) for each in returns]
    mean = np.array([mean for mean, _ in by_setting])  # (S, 2)
    error = np.array([error for _, error in by_setting])
    by_seed = returns[..., 0].mean(axis=2)  # (S, seed)
    axis.plot(positions, by_seed, ".-", color=color, linewidth=0.5, markersize=3)
    agent = {"fmt": "o-", "color": color, "label": labels[0]}
    other = {"fmt": "s--", "color": "black", "label": labels[1]}
    axis.errorbar(positions, mean[:, 0], error[:, 0], markersize=5, **agent)
    # Further right, so that neither covers the other.
    axis.errorbar(positions + 0.2, mean[:, 1], error[:, 1], markersize=4, **other)
    axis.set_xlim(-0.5, len(returns) - 0.3)
    drawn = (mean, mean - error, mean + error, by_seed)
    return np.concatenate([each.ravel() for each in drawn])


def draw_player(
    figure, game: Game, results: dict, player: int, symbol: str, color: str
):
    """What a player's agents get by setting (Fig. 3), and their policies."""
    plays = plays_of(results, player)
    cells = [*plays, "policies"]
    while len(cells) % 3 > 0:  # in rows of three, the policies as wide as there is room
        cells.append("policies")
    rows = np.reshape(cells, (-1, 3))
    heights = [2.75] * (len(rows) - 1) + [policies_height(game)]
    axes = figure.subplot_mosaic(rows, height_ratios=heights)

    agent = "agent" if game.symmetric else f"agent, player {player}"
    other = f"the other player (bars: standard errors over {samples_of(results)})"
    drawn = []
    for name, returns in plays.items():
        drawn.append(draw_play(axes[name], returns, color, (agent, other)))
        axes[name].set(title=PLAYS[name], ylabel="expected return")
        mark_settings(axes[name], results, symbol)

    drawn = np.concatenate(drawn)
    drawn = drawn[np.isfinite(drawn)]  # without what has diverged
    least = 0.1 * np.abs(drawn).max(initial=0)
    if game.iterated:  # a quarter of the range of all payoffs but the lowest
        payoffs = sorted(game.rules.own)
        least = (payoffs[3] - payoffs[1]) / 4
    limits = robust_limits(drawn, least)
    for name in plays:
        axes[name].set_ylim(limits)
    # One legend for all of them, above, where it covers nothing.
    lines, labels = axes["best_response"].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=2)
    draw_policies(axes["policies"], game, results, player, symbol)


def draw_policies(axis, game: Game, results: dict, player: int, symbol: str):
    """Mean policies at the end of a play: chances of C in iterated games."""
    policies = results["policies"]  # (S, seed, pair, 2, n)
    if game.iterated:
        shown = jax.nn.sigmoid(policies)
    else:
        shown = jnp.vectorize(game.features, signature="(p,n)->(p,m)")(policies)
    means = np.asarray(shown[..., player - 1, :].mean(axis=(1, 2)))  # (S, m)
    scale = {"vmin": 0, "vmax": 1} if game.iterated else {}
    axis.imshow(means.T, cmap="YlGn", aspect="auto", alpha=0.5, **scale)
    for (i, j), mean in np.ndenumerate(means):
        axis.text(i, j, f"{mean:.2f}", ha="center", va="center", fontsize="small")
    what = "P(cooperate) after own, other's action" if game.iterated else "policies"
    # Where there is no self-play, they are those beside the opponent of training.
    play = "self_play" if "self_play" in results else "versus_opponent"
    axis.set_title(f"{what}; {PLAYS[play]}")
    mark_settings(axis, results, symbol)
    axis.set_yticks(range(means.shape[1]), game.labels)
