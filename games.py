"""Differentiable two-player games: pure functions from a pair of policies to a pair of expected returns.

`x` is always (2, n), float32: row i holds player i's parameters. `f(x)` is always (2,): expected returns, to be
maximised. A batch is a `jax.vmap`; no function here takes a batch axis of its own accord.

A policy of an iterated game is 5 log-odds of *cooperating* (of the first action, in games without that word) in the
order `init, DD, CD, DC, CC`. In every label the first letter is one's own action, so tit-for-tat is C, D, D, C, C for
both players: cooperate at first and wherever the second letter is C. Joint states are `(DD, CD, DC, CC)` as player 1
sees them: what is CD to player 1 is DC to player 2.

Add a game with one entry in `GAMES`. Equations are those of Cooijmans et al., Learning with Learning Awareness using
Meta-Values.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Game(NamedTuple):
    """A two-player differentiable game, its policies and what a figure needs to know of them."""

    name: str
    n: int  # parameters per player
    f: Callable[[jax.Array], jax.Array]  # (2, n) -> (2,), expected returns
    init: Callable[[jax.Array], jax.Array]  # key -> (2, n), initial policies
    features: Callable[[jax.Array], jax.Array]  # (2, n) -> (2, n), the policies as a model sees them, row by row
    symmetric: bool  # does f_1(a, b) = f_2(b, a) hold?
    labels: tuple[str, ...]  # one for each parameter of a policy
    extent: float = 10.0  # planar games are surveyed and drawn on [-extent, extent]^2

    @property
    def planar(self) -> bool:
        """One parameter per player: the joint policy space is a plane that can be drawn."""
        return self.n == 1


def simultaneous_gradient(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The simultaneous gradient of Eq. 1: row i is the derivative of f_i by x_i.

    Args:
      f: differentiable game, (2, n) -> (2,).
      x: joint policy, (2, n).

    Returns:
      (2, n), in units of return per unit of policy parameter.
    """
    jacobian = jax.jacrev(f)(x)  # (player whose return, player whose parameters, n)
    return jnp.stack([jacobian[0, 0], jacobian[1, 1]])


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
    form of LOLA, which differentiates through the other's step, has a line of its own, further out and worse for both:
    each player pushes on, sure that the other will yield.
    """
    own = x[:, 0]
    return 2 * own - own.sum() ** 2


def eliminate(a: jax.Array, b: jax.Array) -> jax.Array:
    """Solve a y = b for y by Gaussian elimination on scalars, (4, 4), (4,) -> (4,).

    Unrolled, it fuses into one loop over a batch, where jnp.linalg.solve is a library call for each system. There is no
    pivoting: `a` must be diagonally dominant by rows or by columns.
    """
    rows = [[a[i, j] for j in range(4)] + [b[i]] for i in range(4)]
    for i in range(4):
        for j in range(i + 1, 4):
            ratio = rows[j][i] / rows[i][i]
            rows[j] = [below - ratio * above for below, above in zip(rows[j], rows[i])]
    y = [None] * 4
    for i in reversed(range(4)):
        y[i] = (rows[i][4] - sum(rows[i][j] * y[j] for j in range(i + 1, 4))) / rows[i][i]
    return jnp.stack(y)


def state_distribution(x: jax.Array, discount: float) -> jax.Array:
    """Discounted share of the time that two memory-one policies spend in each joint state of an iterated 2x2 game.

    With p the distribution of the first joint action and P the transition matrix, the row vector
    m = (1 - discount) sum_t discount^t p P^t solves m (I - discount P) = (1 - discount) p.

    Args:
      x: log-odds of cooperating, (2, 5), in the order init, DD, CD, DC, CC.
      discount: the game's own discount, in [0, 1).

    Returns:
      (4,), probabilities of DD, CD, DC, CC as player 1 sees them; they sum to 1.
    """
    ours, theirs = jax.nn.sigmoid(x)
    theirs = theirs[jnp.array([0, 1, 3, 2, 4])]  # player 1's CD is player 2's DC
    joint = jnp.stack([(1 - ours) * (1 - theirs), ours * (1 - theirs), (1 - ours) * theirs, ours * theirs])  # (4, 5)
    a = jnp.eye(4) - discount * joint[:, 1:]  # the transpose of I - discount P: entry [t, s] goes from s to t
    # Derivatives solve the system again instead of going through the elimination: look-ahead takes several of them.
    return jax.lax.custom_linear_solve(
        lambda y: (a * y).sum(1),  # not a matrix product, which a GPU would round to TF32
        (1 - discount) * joint[:, 0],
        solve=lambda _, b: eliminate(a, b),
        transpose_solve=lambda _, b: eliminate(a.T, b),
    )


def memory_one_returns(x: jax.Array, payoffs: tuple[tuple[float, ...], ...], discount: float) -> jax.Array:
    """Exact expected returns of an infinitely iterated 2x2 game, normalised: (1 - discount) times the discounted sum.

    Args:
      x: log-odds of cooperating, (2, 5), in the order init, DD, CD, DC, CC.
      payoffs: (2, 4): each player's payoff in the joint states DD, CD, DC, CC as player 1 sees them.
      discount: the game's own discount, in [0, 1).

    Returns:
      (2,), in units of payoff for one round.
    """
    return (jnp.asarray(payoffs, x.dtype) * state_distribution(x, discount)).sum(-1)


def iterated_game(name: str, payoffs: tuple[tuple[float, ...], ...], discount: float, symmetric: bool) -> Game:
    """A `Game` between memory-one policies in the infinitely iterated 2x2 game with these payoffs.

    Policies start as standard normal log-odds (App. E), and a model sees probabilities.
    """
    return Game(
        name=name,
        n=5,
        f=lambda x: memory_one_returns(x, payoffs, discount),
        init=lambda key: jax.random.normal(key, (2, 5)),
        features=jax.nn.sigmoid,
        symmetric=symmetric,
        labels=("init", "DD", "CD", "DC", "CC"),
    )


GAMES: dict[str, Game] = {
    "logistic": Game(
        name="logistic",
        n=1,
        f=logistic,
        init=lambda key: jax.random.uniform(key, (2, 1), minval=-8.0, maxval=8.0),
        features=lambda x: x / 10,  # not in the paper's text, which does not say how x is scaled
        symmetric=True,
        labels=("x",),
    ),
    "tandem": Game(
        name="tandem",
        n=1,
        f=tandem,
        init=lambda key: jax.random.uniform(key, (2, 1), minval=-3.0, maxval=3.0),
        features=lambda x: x / 3,
        symmetric=True,
        labels=("x",),
        extent=3.0,
    ),
    "ipd": iterated_game("ipd", payoffs=((-2, -3, 0, -1), (-2, 0, -3, -1)), discount=0.96, symmetric=True),
}
