"""Every test. `python -m pytest -q` runs them on a CPU in a few minutes.

Oracles are independent of the code: closed forms, finite differences in float64, simulations and plain Python loops.
"""

import atexit
import contextlib
import dataclasses
import functools
import inspect
import io
import json
import math
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import types
from functools import partial
from unittest import mock

# Most of the tests' time is compiling: programs need not be optimised. To be set before jax is imported.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import cola
import games
import hola
import lola
import meva
import naive
import plots
from games import GAMES, Game, simultaneous_gradient

# Many tests run the same programs, in this process and in others: compile each once.
CACHE = tempfile.mkdtemp()
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ |= {"JAX_COMPILATION_CACHE_DIR": CACHE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

ROOT = pathlib.Path(__file__).parent
C, D = 30.0, -30.0  # log-odds of playing C, D for certain
POLICIES = {
    "all-C": (C, C, C, C, C),
    "all-D": (D, D, D, D, D),
    "tit-for-tat": (C, D, D, C, C),
    "win-stay-lose-shift": (C, C, D, D, C),
    "random": (0.0, 0.0, 0.0, 0.0, 0.0),
}
# The other iterated games are iterated matching pennies with other payoffs, the other one-round games are one round.
DISTINCT = ("logistic", "tandem", "hamiltonian", "balduzzi", "matching_pennies", "imp")
FULL = ("logistic", "matching_pennies", "imp")  # these are run with the default models
SCRIPTS = {script.__name__: script for script in (naive, lola, hola, cola, meva)}
TINY = {  # for each script, with the settings of TINY_EVAL
    "naive": dict(),
    "lola": dict(alpha=(0.0, 0.5)),
    "hola": dict(alpha=(0.0, 0.5), order=1),
    "cola": dict(outer_steps=29, batch_size=4, hidden=8, blocks=1, alpha_max=10.0, eval_alphas=(0.0, 0.5)),
    "meva": dict(outer_steps=26, batch_size=4, rollout_length=6, stride=3, hidden=8, blocks=1, quantiles=3,
                 eval_gammas=(0.0, 0.9)),
}  # fmt: skip
TINY_EVAL = dict(num_seeds=2, eval_pairs=3, eval_steps=4)


def tiny_settings(game, script, changes):
    stride = {"stride": 6} if script == "meva" and GAMES[game].planar else {}
    return {**TINY[script], **TINY_EVAL, **stride, **changes}


def tiny(game="ipd", script="meva", **changes):
    return SCRIPTS[script].make_config(game, **tiny_settings(game, script, changes))


def flags(**settings):
    """Keyword arguments as a command line."""
    words = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag if value else flag.replace("--", "--no-", 1)]
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def random_policies(game, count, seed=0):
    return jax.vmap(game.init)(jax.random.split(jax.random.key(seed), count))


# games.py


@pytest.mark.parametrize(
    "one, two, expected",
    [
        ("all-C", "all-C", (-1, -1)),
        ("all-D", "all-D", (-2, -2)),
        ("all-D", "all-C", (0, -3)),
        ("all-C", "all-D", (-3, 0)),
        ("tit-for-tat", "tit-for-tat", (-1, -1)),
        ("tit-for-tat", "all-D", (-2.04, -1.92)),  # (1 - d) (-3) + d (-2) and (1 - d) 0 + d (-2)
        ("win-stay-lose-shift", "all-D", (-2.510204, -0.979592)),
        ("random", "random", (-1.5, -1.5)),
    ],
)
def test_ipd_returns_in_closed_form(one, two, expected):
    returns = GAMES["ipd"].f(jnp.array([POLICIES[one], POLICIES[two]]))
    np.testing.assert_allclose(returns, expected, atol=1e-5)


def test_ipd_gradient_at_random_play():
    gradient = simultaneous_gradient(GAMES["ipd"].f, jnp.zeros((2, 5)))
    np.testing.assert_allclose(gradient, [[-0.01, -0.06, -0.06, -0.06, -0.06]] * 2, atol=1e-6)


JOINT = {  # each player's return where they play CC, CD, DC, DD, player 1 first
    "matching_pennies": ((1, -1), (-1, 1), (-1, 1), (1, -1)),
    "ultimatum": ((5, 5), (5, 5), (8, 2), (0, 0)),
    "stackelberg": ((1, 0), (3, 2), (2, 1), (4, 0)),
    "ipd": ((-1, -1), (-3, 0), (0, -3), (-2, -2)),
    "imp": ((1, -1), (-1, 1), (-1, 1), (1, -1)),
    "chicken": ((0, 0), (-1, 1), (1, -1), (-100, -100)),
    "stag_hunt": ((4, 4), (1, 3), (3, 1), (2, 2)),
    "bach_or_stravinsky": ((3, 2), (0, 0), (0, 0), (2, 3)),
    "hawk_dove": ((1, 1), (0, 2), (2, 0), (-1, -1)),
}
POINTS = {  # of the other games
    "logistic": ((0, 0), (0, 0)),
    "tandem": ((1, 2), (-7, -5)),  # 2 - 9, 4 - 9
    "hamiltonian": ((2, 3), (6, -6)),
    "balduzzi": ((1, 2), (-20.5, 18)),  # -1/2 - 20, -4/2 + 20
}


@pytest.mark.parametrize("name", GAMES)
def test_returns_worked_out_by_hand(name):
    f, n = GAMES[name].f, GAMES[name].n
    if name in POINTS:
        x, expected = POINTS[name]
        np.testing.assert_allclose(f(jnp.array(x, jnp.float32)[:, None]), expected, atol=1e-5)
        return
    joint = JOINT[name]
    for actions, expected in zip([(C, C), (C, D), (D, C), (D, D)], joint):
        np.testing.assert_allclose(f(jnp.array([[action] * n for action in actions])), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(f(jnp.zeros((2, n))), np.mean(joint, 0), rtol=1e-5, atol=1e-5)  # all four alike
    if GAMES[name].iterated:  # tit-for-tat against all-D: CD once, and DD from then on
        x = jnp.array([POLICIES["tit-for-tat"], POLICIES["all-D"]])
        expected = 0.04 * np.array(joint[1]) + 0.96 * np.array(joint[3])
        np.testing.assert_allclose(f(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["matching_pennies", "imp", "hamiltonian"])
def test_zero_sum_games_are(name):
    returns = jax.vmap(GAMES[name].f)(random_policies(GAMES[name], 64))
    np.testing.assert_allclose(returns[:, 0], -returns[:, 1], atol=1e-6)
    assert np.abs(returns).max() > 0.1


def spectral_radius(field, x, lr):
    """Of one step x + lr field(x) near x: below 1 where they converge."""
    step = jax.jacobian(lambda x: x + lr * field(x[:, None])[:, 0])(x)
    return np.abs(np.linalg.eigvals(step)).max()


def test_rotating_games_converge_where_their_docstrings_say():
    origin, f = jnp.zeros(2), games.hamiltonian
    radius = spectral_radius(partial(simultaneous_gradient, f), origin, 0.1)
    np.testing.assert_allclose(radius, 1.01**0.5, rtol=1e-6)
    for alpha, converges in ((0.025, False), (0.026, True)):  # 4 alpha > 0.1 (1 + 4 alpha^2) from 0.02506 on
        assert (spectral_radius(partial(lola.lola_gradient, f, alpha=alpha), origin, 0.1) < 1) == converges
    f = games.balduzzi
    for lr, converges in ((2 / 101 - 1e-4, True), (2 / 101 + 1e-4, False)):
        assert (spectral_radius(partial(simultaneous_gradient, f), origin, lr) < 1) == converges
    lr = GAMES["balduzzi"].lr
    assert spectral_radius(partial(simultaneous_gradient, f), origin, lr) > 1
    assert spectral_radius(partial(lola.lola_gradient, f, alpha=0.01), origin, lr) < 1


def test_payoffs_and_discount_make_another_game():
    x = random_policies(GAMES["ipd"], 1)[0]
    for name in ("ipd", "stag_hunt", "imp", "bach_or_stravinsky"):
        own, other = GAMES[name].payoffs
        game = games.make_game("chicken", (*own, *other), 0.96)
        assert game.symmetric == (own == other) == GAMES[name].symmetric and game.lr == GAMES["chicken"].lr
        np.testing.assert_array_equal(game.f(x), GAMES[name].f(x))
        if game.symmetric:
            np.testing.assert_array_equal(games.make_game("ipd", own).f(x), game.f(x))
    assert games.make_game("imp") is GAMES["imp"]
    short = games.make_game("imp", discount=0.3)
    assert short.name == "imp_discount_0.3" and short.discount == 0.3
    assert games.make_game("ipd", (4, 0, 3.5, -1), 0.9).name == "payoffs_4_0_3.5_-1_discount_0.9"
    share = simulated_distribution(x, 0.3)
    np.testing.assert_allclose(short.f(x)[0], share @ (1, -1, -1, 1), atol=1e-5)
    longest = jax.jit(jax.vmap(games.make_game("ipd", discount=0.999).f))
    x = np.asarray(random_policies(GAMES["ipd"], 64))
    with jax.enable_x64(True):
        double = np.asarray(longest(jnp.asarray(x, jnp.float64)))
    np.testing.assert_allclose(longest(x), double, atol=2e-4)
    for name, settings, said in (
        ("ipd", dict(payoffs=(1, 2, 3)), "payoffs: takes four numbers .* not 3"),
        ("logistic", dict(payoffs=(1, 2, 3, 4)), "payoffs: takes an iterated --game .*, not logistic"),
        ("ultimatum", dict(discount=0.5), "discount: takes an iterated --game .*, not ultimatum"),
    ):
        with pytest.raises(ValueError, match=said):
            games.make_game(name, **settings)


def simulated_distribution(x, discount, rounds=1000):
    """Follow the chain round by round, keeping who did what as (own, other) pairs of letters."""
    policy = [dict(zip(("init", "DD", "CD", "DC", "CC"), 1 / (1 + np.exp(-np.float64(row))))) for row in x]
    states = ("DD", "CD", "DC", "CC")

    def next_state(one, two):
        return {s: (one if s[0] == "C" else 1 - one) * (two if s[1] == "C" else 1 - two) for s in states}

    now = next_state(policy[0]["init"], policy[1]["init"])
    total = dict.fromkeys(states, 0.0)
    for round_ in range(rounds):
        for s in states:
            total[s] += (1 - discount) * discount**round_ * now[s]
        after = [next_state(policy[0][s], policy[1][s[::-1]]) for s in states]  # player 2 sees the letters reversed
        now = {s: sum(now[r] * step[s] for r, step in zip(states, after)) for s in states}
    return np.array([total[s] for s in states])


def test_state_distribution_against_a_simulation():
    distribution = jax.jit(games.state_distribution)
    for x in 2 * random_policies(GAMES["ipd"], 8):
        share = distribution(x, 0.96)
        np.testing.assert_allclose(share, simulated_distribution(x, 0.96), atol=1e-5)
        np.testing.assert_allclose(share.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(games.state_distribution(x, 0.0), simulated_distribution(x, 0.0, 1), atol=1e-6)


def test_a_constant_payoff_adds_itself_to_the_returns():
    x = random_policies(GAMES["ipd"], 16)
    payoffs = np.array([[-2.0, -3, 0, -1], [-2, 0, -3, -1]])
    returns = jax.jit(jax.vmap(games.memory_one_returns, (0, None, None)))
    np.testing.assert_allclose(returns(x, payoffs + 5, 0.96), returns(x, payoffs, 0.96) + 5, atol=2e-5)
    zero_sum = returns(x, np.array([payoffs[0], -payoffs[0]]), 0.96)
    np.testing.assert_allclose(zero_sum[:, 0], -zero_sum[:, 1], atol=1e-6)


@pytest.mark.parametrize("name", GAMES)
def test_symmetry_is_as_declared(name):
    game = GAMES[name]
    x = random_policies(game, 64)
    f = jax.jit(jax.vmap(game.f))
    holds = np.allclose(f(x), f(x[:, ::-1])[:, ::-1], atol=1e-5)
    assert holds == game.symmetric


@pytest.mark.parametrize("name", GAMES)
def test_float32_returns_and_gradients_are_those_of_float64(name):
    game = GAMES[name]
    x = random_policies(game, 64)
    both = jax.jit(lambda x: (jax.vmap(game.f)(x), jax.vmap(partial(simultaneous_gradient, game.f))(x)))
    single = both(x)
    assert single[0].dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(x), jnp.float64)
        double = both(wide)
        assert double[0].dtype == jnp.float64
    scale = np.abs(double[0]).max()  # of the payoffs
    chex.assert_trees_all_close(single, jax.tree.map(np.asarray, double), atol=1e-5 * max(scale, 1), rtol=1e-4)


@pytest.mark.parametrize("name", GAMES)
def test_simultaneous_gradient_against_finite_differences(name):
    game = GAMES[name]
    with jax.enable_x64(True):
        x = np.asarray(random_policies(game, 1)[0], np.float64)
        expected, f = np.zeros_like(x), jax.jit(game.f)
        for i, j in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[i, j] = 1e-5
            expected[i, j] = (f(x + step)[i] - f(x - step)[i]) / 2e-5
        gradient = jax.jit(partial(simultaneous_gradient, game.f))(x)
        np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_logistic_game_has_its_two_fixed_points_and_the_saddle():
    f, b = GAMES["logistic"].f, jnp.full((2, 1), 5.0307)
    np.testing.assert_allclose(f(b), 3.8584, atol=1e-4)
    np.testing.assert_allclose(f(-b), -0.0897, atol=1e-4)
    for x in (b, -b, 0 * b):
        np.testing.assert_allclose(simultaneous_gradient(f, x), 0, atol=1e-4)
    jacobian = jax.jit(jax.jacobian(lambda x: simultaneous_gradient(f, x[:, None])[:, 0]))
    assert np.linalg.eigvals(jacobian(b[:, 0])).real.max() < 0
    assert np.linalg.eigvals(jacobian(-b[:, 0])).real.max() < 0
    assert np.linalg.eigvals(jacobian(jnp.zeros(2))).real.max() > 0


@pytest.mark.parametrize("name", GAMES)
def test_games_keep_their_shapes(name):
    game = GAMES[name]
    x = game.init(jax.random.key(0))
    chex.assert_shape([x, game.features(x)], (2, game.n))
    chex.assert_shape(game.f(x), (2,))
    assert game.name == name and len(game.labels) == game.n
    changed = x.at[1].add(1.0)  # the one-backward-pass gradient needs each player's features to be its own
    np.testing.assert_array_equal(game.features(x)[0], game.features(changed)[0])


# naive.py, lola.py, hola.py

lola_gradient = jax.jit(lola.lola_gradient, static_argnames=("f", "variant"))
hola_gradient = jax.jit(hola.hola_gradient, static_argnames=("f", "order"))


def tandem_stop(variant, a):
    """Where x_1 + x_2 comes to rest on Tandem, for each form of look-ahead by a (worked out by hand)."""
    return {
        "lookahead": 1.0,
        "taylor-stop": 1 / (1 - 2 * a),
        "taylor": (1 - 2 * a) / (1 - 4 * a),
        "exact": (1 - 2 * a * (1 - 2 * a)) / (1 - 2 * a) ** 2,
    }[variant]


@pytest.mark.parametrize("variant", lola.VARIANTS)
def test_every_form_of_lola_stops_on_tandem_where_it_should(variant):
    field = jax.jit(lambda x, alpha: lola.lola_gradient(games.tandem, x, alpha, variant))
    for alpha in (0.0, 0.1, 0.2):
        for x in random_policies(GAMES["tandem"], 3):
            for _ in range(200):
                x = x + 0.1 * field(x, alpha)
            np.testing.assert_allclose(x.sum(), tandem_stop(variant, alpha), atol=1e-4)


def tandem_by_hola(a, order):
    """HOLA(n) on Tandem is g(s) = A s + B, s = x_1 + x_2: d/dx_1 [2 x_1 - (s + a g)^2] = 2 - 2 (s + a g) (1 + a A)."""
    slope, offset = -2.0, 2.0
    for _ in range(order):
        slope, offset = -2 * (1 + a * slope) ** 2, 2 - 2 * a * offset * (1 + a * slope)
    return slope, offset


def tandem_by_cola(a):
    """The fixed point of that recursion, in closed form."""
    slope = (-(4 * a + 1) + (1 + 8 * a) ** 0.5) / (4 * a**2)
    return slope, 2 / (1 + 2 * a * (1 + a * slope))


def test_hola_on_tandem_is_its_recursion_and_tends_to_cola():
    x = random_policies(GAMES["tandem"], 1)[0]
    for order in range(5):
        for alpha in (0.0, 0.1, 0.3, 1.0):
            slope, offset = tandem_by_hola(alpha, order)
            np.testing.assert_allclose(
                hola_gradient(games.tandem, x, alpha, order), jnp.full((2, 1), slope * x.sum() + offset), rtol=2e-4
            )
    np.testing.assert_allclose(tandem_by_hola(0.3, 200), tandem_by_cola(0.3), atol=1e-6)  # alpha < 3/8
    assert abs(tandem_by_hola(0.4, 200)[0] - tandem_by_cola(0.4)[0]) > 0.1


@pytest.mark.parametrize("name", DISTINCT)
def test_hola_1_is_lola_and_hola_0_and_alpha_0_are_naive(name):
    f = GAMES[name].f

    @jax.jit
    def gradients(x, alpha, zero):
        look_ahead = lola.lola_gradient(f, x, alpha), hola.hola_gradient(f, x, alpha, 1)
        still = [lola.lola_gradient(f, x, zero, variant) for variant in lola.VARIANTS]
        still += [hola.hola_gradient(f, x, zero, 1), hola.hola_gradient(f, x, alpha, 0)]
        return look_ahead, still, naive.naive_gradient(f, x)

    for x in random_policies(GAMES[name], 4):
        (exact, order_1), still, naive_gradient = gradients(x, 0.7, 0.0)
        same = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
        same(order_1, exact)
        for gradient in still:
            same(gradient, naive_gradient)
        assert np.abs(exact - naive_gradient).max() > 1e-4


def difference(function, x, step=1e-3):
    """The gradient of a scalar function of a vector, by five points in each direction (error of order step^4)."""
    gradient = np.zeros_like(x)
    for k in range(len(x)):
        e = np.zeros_like(x)
        e[k] = step
        around = [function(x + m * e) for m in (-2, -1, 1, 2)]
        gradient[k] = np.dot(around, (1, -8, 8, -1)) / (12 * step)
    return gradient


def put(x, i, row):
    x = x.copy()
    x[i] = row
    return x


def hola_by_differences(f, i, x, alpha, order):
    """Player i's row of HOLA(n), by nested finite differences."""

    def surrogate(own):
        joint = put(x, i, own)
        if order:
            joint[1 - i] += alpha * hola_by_differences(f, 1 - i, joint, alpha, order - 1)
        return f(joint)[i]

    return difference(surrogate, x[i])


def lola_by_differences(f, i, x, alpha, variant):
    """Player i's row of LOLA's forms, by nested finite differences."""
    j = 1 - i

    def step(x):
        return alpha * difference(lambda other: f(put(x, j, other))[j], x[j])

    def slope(x):
        return difference(lambda other: f(put(x, j, other))[i], x[j])

    held_step, held_slope = step(x), slope(x)
    surrogate = {
        "exact": lambda x: f(put(x, j, x[j] + step(x)))[i],
        "lookahead": lambda x: f(put(x, j, x[j] + held_step))[i],
        "taylor": lambda x: f(x)[i] + slope(x) @ step(x),
        "taylor-stop": lambda x: f(x)[i] + held_slope @ step(x),
    }[variant]
    return difference(lambda own: surrogate(put(x, i, own)), x[i])


@pytest.mark.parametrize("name", DISTINCT)
def test_look_ahead_gradients_against_nested_finite_differences(name):
    game = GAMES[name]
    alpha = {"tandem": 0.3, "balduzzi": 0.03}.get(name, 3.0)
    with jax.enable_x64(True):
        compiled = jax.jit(game.f)
        f = lambda x: np.asarray(compiled(x))  # noqa: E731
        x = np.asarray(random_policies(game, 1, seed=3)[0], np.float64)
        same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        for variant in lola.VARIANTS:
            expected = [lola_by_differences(f, i, x, alpha, variant) for i in (0, 1)]
            same(lola_gradient(game.f, x, alpha, variant), expected)
        expected = [hola_by_differences(f, i, x, alpha, 2) for i in (0, 1)]
        same(hola_gradient(game.f, x, alpha, 2), expected)


def test_each_player_looks_ahead_by_its_own_alpha():
    f, alpha = GAMES["logistic"].f, jnp.array([3.0, 0.5])
    for x in random_policies(GAMES["logistic"], 2):
        for gradient in (partial(lola_gradient, f, x), partial(hola_gradient, f, x, order=2)):
            expected = jnp.stack([gradient(alpha=alpha[i])[i] for i in (0, 1)])
            np.testing.assert_allclose(gradient(alpha=alpha), expected, rtol=1e-4, atol=1e-6)


def test_lola_refuses_a_form_that_it_does_not_have():
    with pytest.raises(ValueError, match="not extra"):
        lola.lola_gradient(games.tandem, jnp.zeros((2, 1)), 0.1, "extra")


# cola.py


def make_cola(game, **changes):
    config = tiny(game, "cola", **changes)
    return cola.model_init(jax.random.key(1), GAMES[game], config), config


@pytest.mark.parametrize("share_params", [True, False])
def test_the_right_side_of_colas_equation_against_finite_differences(share_params):
    """In float64, with the model's own gradient in it; and both players' rows by one backward pass are right."""
    params, _ = make_cola("ipd", share_params=share_params)
    game, alpha = GAMES["ipd"], 3.0
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        x = np.asarray(random_policies(game, 1)[0], np.float64)
        model, f = jax.jit(lambda x: cola.cola_gradient(params, game, x, alpha)), jax.jit(game.f)

        def surrogate(i, own):
            joint = put(x, i, own)
            return f(put(joint, 1 - i, joint[1 - i] + alpha * model(joint)[1 - i]))[i]

        expected = np.array([difference(partial(surrogate, i), x[i]) for i in (0, 1)])
        right = jax.jit(lambda x: cola.both_sides(params, game, x, alpha)[1])(x)
        np.testing.assert_allclose(right, expected, rtol=1e-5, atol=1e-8)
        loss = jax.jit(lambda x: cola.consistency_loss(params, game, x, alpha))(x)
        np.testing.assert_allclose(loss, ((model(x) - expected) ** 2).sum(), rtol=1e-5)


def test_the_gradient_of_the_consistency_loss_goes_through_both_of_its_sides():
    params, _ = make_cola("tandem")
    game, x, alpha = GAMES["tandem"], random_policies(GAMES["tandem"], 1)[0], 0.2

    def two_passes(params, held):
        """The same loss by the Jacobian of the surrogate, its right side with the parameters `held`."""

        def surrogate(x):
            ahead = x + alpha * cola.cola_gradient(held, game, x, alpha)
            return jnp.stack([game.f(x.at[1].set(ahead[1]))[0], game.f(x.at[0].set(ahead[0]))[1]])

        return ((cola.cola_gradient(params, game, x, alpha) - simultaneous_gradient(surrogate, x)) ** 2).sum()

    loss = lambda params, **options: cola.consistency_loss(params, game, x, alpha, **options)  # noqa: E731
    both, left = jax.jit(lambda p: (jax.grad(loss)(p), jax.grad(partial(loss, semi_gradient=True))(p)))(params)
    same = partial(chex.assert_trees_all_close, rtol=1e-3, atol=1e-6)
    same(both, jax.jit(jax.grad(lambda p: two_passes(p, p)))(params))
    same(left, jax.jit(jax.grad(lambda p: two_passes(p, params)))(params))
    with pytest.raises(AssertionError):
        same(both, left)


def test_the_closed_form_on_tandem_is_consistent(monkeypatch):
    def closed_form(params, game, own, other, alpha):
        slope, offset = tandem_by_cola(alpha)
        return slope * (own + other[::-1]) + offset

    monkeypatch.setattr(cola, "model_gradient", closed_form)
    for alpha in (0.1, 0.3, 1.0):
        for x in random_policies(GAMES["tandem"], 3):
            assert cola.consistency_loss(None, GAMES["tandem"], x, alpha) < 1e-9


def test_trained_cola_stops_on_tandem_at_its_closed_form():
    config = cola.make_config("tandem", outer_steps=2500)
    params, metrics = jax.jit(partial(cola.train, config=config))(jax.random.key(0))
    chex.assert_shape(metrics["loss"], (2500,))
    grid = cola.planar_grid(GAMES["tandem"]).reshape(-1, 2, 1)
    grid = grid[jnp.abs(grid[:, 0, 0] - grid[:, 1, 0]) < 4.5][::7]  # from others the path leaves where it was trained

    @jax.jit
    def ends(alpha):
        field = partial(cola.cola_gradient, params, GAMES["tandem"], alpha=alpha)
        return jax.vmap(lambda x: cola.follow(field, x, config.lr, config.eval_steps)[0])(grid)

    for alpha in (0.1, 0.2, 0.3):
        slope, offset = tandem_by_cola(alpha)
        np.testing.assert_allclose(ends(alpha).sum((1, 2)), -offset / slope, atol=1e-2)


def test_consistency_is_measured_as_it_is_defined():
    params, _ = make_cola("tandem")
    game, alpha, key = GAMES["tandem"], 0.2, jax.random.key(4)
    measured = jax.jit(partial(cola.evaluate_consistency, game=game))(key, params, alpha=alpha)
    for name, shape in dict(consistency=(), hola_consistency=(3,), hola_cosine=(4,), squared_norm=()).items():
        chex.assert_shape(measured[name], (*shape, cola.HELD_OUT))
    x = game.init(jax.random.split(key, cola.HELD_OUT)[7])
    ours, right = jax.jit(lambda x: (cola.cola_gradient(params, game, x, alpha),
                                     cola.both_sides(params, game, x, alpha)[1]))(x)  # fmt: skip
    theirs = [hola_gradient(game.f, x, alpha, order) for order in range(4)]
    np.testing.assert_allclose(measured["consistency"][7], ((ours - right) ** 2).sum(), rtol=1e-3)
    for order in range(4):
        cosine = (ours * theirs[order]).sum() / jnp.linalg.norm(ours) / jnp.linalg.norm(theirs[order])
        np.testing.assert_allclose(measured["hola_cosine"][order, 7], cosine, rtol=1e-3)
    step = theirs[3] - theirs[2]
    np.testing.assert_allclose(measured["hola_consistency"][2, 7], (step**2).sum(), rtol=1e-2, atol=1e-9)


# meva.py: the pieces

meta_value = jax.jit(meva.meta_value, static_argnames="game")
model_gradient = jax.jit(meva.model_gradient, static_argnames="game")
meva_gradient = jax.jit(meva.meva_gradient, static_argnames=("game", "config"))
train = jax.jit(meva.train, static_argnames="config")
gradient_of = jax.jit(simultaneous_gradient, static_argnames="f")


def make_model(game="ipd", **changes):
    config = tiny(game, **changes)
    return meva.model_init(jax.random.key(1), GAMES[game], config), config


@pytest.mark.parametrize("game", ["logistic", "ipd"])
@pytest.mark.parametrize("share_params", [True, False])
def test_one_backward_pass_gives_the_simultaneous_gradient(game, share_params):
    params, _ = make_model(game, share_params=share_params)
    gamma = jnp.array([0.3, 0.8])
    two_passes = jax.jit(partial(simultaneous_gradient, lambda x: meva.meta_value(params, GAMES[game], x, gamma)))
    for x in random_policies(GAMES[game], 4):
        chex.assert_trees_all_close(model_gradient(params, GAMES[game], x, gamma), two_passes(x), rtol=1e-4, atol=1e-6)


def test_players_of_one_model_are_treated_alike_and_two_models_differ():
    game, gamma, x = GAMES["ipd"], jnp.array([0.3, 0.8]), GAMES["ipd"].init(jax.random.key(2))
    shared, _ = make_model(share_params=True)
    value, swapped = meta_value(shared, game, x, gamma), meta_value(shared, game, x[::-1], gamma[::-1])
    chex.assert_trees_all_close(value, swapped[::-1], rtol=1e-5)
    one, two = make_model(share_params=False)[0]
    expected = [meta_value(one, game, x, gamma)[0], meta_value(two, game, x, gamma)[1]]
    np.testing.assert_allclose(meta_value((one, two), game, x, gamma), expected, rtol=1e-6)
    assert abs(meta_value(one, game, x, gamma)[1] - expected[1]) > 1e-4


def test_the_field_is_eq_6_in_form_v_and_the_correction_in_form_u():
    game, gamma, x = GAMES["ipd"], jnp.array([0.3, 0.8]), GAMES["ipd"].init(jax.random.key(2))
    for form in "VU":
        params, config = make_model(form=form)
        learned = gradient_of(lambda x: meta_value(params, game, x, gamma), x)
        naive = gradient_of(game.f, x)
        expected = learned if form == "V" else naive + gamma[:, None] * learned
        field = meva_gradient(params, game, x, gamma, config)
        chex.assert_trees_all_close(field, expected, rtol=1e-4, atol=1e-6)


def test_network_is_the_one_of_appendix_d():
    """An independent forward pass in numpy, with blocks, gates and normalisation written out."""
    params, config = make_model(blocks=2, flip_prob=0.1)
    game, gamma = GAMES["ipd"], np.array([0.3, 0.8])
    x = np.asarray(game.init(jax.random.key(2)))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def normalised(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-6)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def mlp(p, x, last):
        h = gelu(normalised(x @ p["first"]["w"] + p["first"]["b"]))
        for block in p["blocks"]:
            gate = 1 / (1 + np.exp(-block["gate"]))
            inner = gelu(normalised(h @ block["in"]["w"] + block["in"]["b"]))
            h = gate * h + (1 - gate) * (inner @ block["out"]["w"] + block["out"]["b"])
        return last(normalised(h @ p["last"]["w"] + p["last"]["b"]))

    seen = 1 / (1 + np.exp(-x))
    z = [mlp(p.embed, np.append(seen[i], gamma[i]), gelu) for i in (0, 1)]
    h = [mlp(p.combine, np.concatenate([z[i], z[1 - i]]), np.tanh) for i in (0, 1)]
    expected = [h[i] @ p.readout["w"] + p.readout["b"] for i in (0, 1)]
    np.testing.assert_allclose(meva.meta_quantiles(params, game, x, gamma), expected, atol=1e-5)
    assert len(p.embed["blocks"]) == len(p.combine["blocks"]) == config.blocks


def test_lambda_returns_against_a_loop():
    k, quantiles, lam = 5, 3, 0.7
    rng = np.random.default_rng(0)
    rewards, values, gamma = rng.normal(size=(k, 2)), rng.normal(size=(k, 2, quantiles)), np.array([0.4, 0.9])
    expected = np.zeros((k, 2, quantiles))
    for i in range(2):
        for q in range(quantiles):
            target = values[k - 1, i, q]
            for t in reversed(range(k)):
                mixed = (1 - lam) * values[t, i, q] + lam * target
                target = expected[t, i, q] = (1 - gamma[i]) * rewards[t, i] + gamma[i] * mixed
    np.testing.assert_allclose(meva.lambda_returns(rewards, values, gamma, lam), expected, atol=1e-5)
    td0 = (1 - gamma[:, None]) * rewards[..., None] + gamma[:, None] * values
    np.testing.assert_allclose(meva.lambda_returns(rewards, values, gamma, 0.0), td0, atol=1e-5)


def test_a_standing_policy_is_worth_its_return_at_any_gamma():
    """App. A: the normalised Bellman equation keeps V = f where x does not move, whatever gamma and lambda."""
    f = jnp.array([-1.2, 0.7])
    rewards, values = jnp.tile(f, (6, 1)), jnp.tile(f[:, None], (6, 1, 4))
    for gamma in (0.0, 0.5, 0.999):
        for lam in (0.0, 0.9, 1.0):
            targets = meva.lambda_returns(rewards, values, jnp.full(2, gamma), lam)
            chex.assert_trees_all_close(targets, values, atol=1e-6)


def test_quantile_loss_against_a_loop():
    rng = np.random.default_rng(0)
    predictions, targets = 2 * rng.normal(size=(2, 6, 5))
    for prediction, target, loss in zip(predictions, targets, meva.quantile_loss(predictions, targets)):
        expected = 0.0
        for i in range(5):
            for j in range(5):
                error = target[j] - prediction[i]
                huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
                expected += abs((i + 0.5) / 5 - (error < 0)) * huber / 5
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_one_quantile_is_plain_regression():
    predictions, targets = jnp.array([[0.3]]), jnp.array([[-0.4]])
    np.testing.assert_allclose(meva.quantile_loss(predictions, targets), 0.25 * 0.7**2, rtol=1e-6)


def test_quantile_regression_finds_the_quantiles():
    """Minimised over predictions, the loss gives back the spread-out order of a sample's quantiles."""
    sample = jnp.sort(10 * jax.random.normal(jax.random.key(0), (64,)))
    predictions = jnp.zeros(64)
    optimizer = optax.adam(0.3)
    step = jax.jit(lambda p, s: optimizer.update(jax.grad(meva.quantile_loss)(p, sample), s))
    state = optimizer.init(predictions)
    for _ in range(500):
        updates, state = step(predictions, state)
        predictions = optax.apply_updates(predictions, updates)
    np.testing.assert_allclose(predictions[4:-4], sample[4:-4], atol=2.0)  # Huber's kink of width 1 smooths a little


def test_gammas_follow_the_arcsine_distribution():
    gamma = np.asarray(meva.draw_gammas(jax.random.key(0), tiny(batch_size=20000))).ravel()
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        share = 2 / np.pi * np.arcsin(np.sqrt(quantile))  # the distribution function of Beta(1/2, 1/2)
        np.testing.assert_allclose((gamma < quantile).mean(), share, atol=0.01)
    assert gamma.min() >= 0 and gamma.max() <= 1
    assert (meva.draw_gammas(jax.random.key(0), tiny(fixed_gamma=0.5)) == 0.5).all()


def test_flipped_signs_change_the_field_and_not_the_parameters():
    params, config = make_model(hidden=64, batch_size=64)
    before = jax.tree.map(np.array, params)
    signs = meva.draw_signs(jax.random.key(0), config)
    chex.assert_shape(signs, (64, 2, 64))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    np.testing.assert_allclose((signs < 0).mean(), 1 / 16, atol=0.01)
    x, gamma = GAMES["ipd"].init(jax.random.key(2)), jnp.full(2, 0.5)
    plain = model_gradient(params, GAMES["ipd"], x, gamma)
    flipped = model_gradient(params, GAMES["ipd"], x, gamma, signs[0])
    assert np.abs(plain - flipped).max() > 1e-4
    chex.assert_trees_all_equal(params, before)
    flipped_readout = dataclasses.replace(  # flips of a unit are flips of its weights in the last layer
        params, readout={"w": params.readout["w"] * signs[0, 0][:, None], "b": params.readout["b"]}
    )
    by_weights = model_gradient(flipped_readout, GAMES["ipd"], x, gamma)
    chex.assert_trees_all_close(by_weights[0], flipped[0], atol=1e-6)


def test_exploration_follows_the_flipped_model_alone_and_a_rollout_the_field():
    params, config = make_model()
    game, gamma, x = GAMES["ipd"], jnp.array([0.3, 0.8]), GAMES["ipd"].init(jax.random.key(2))
    signs = meva.draw_signs(jax.random.key(0), config)[0]
    end, on_policy = x, [x]
    for _ in range(config.stride):
        end = end + config.lr * model_gradient(params, game, end, gamma, signs)
        on_policy += [on_policy[-1] + config.lr * meva_gradient(params, game, on_policy[-1], gamma, config)]
    explore = jax.jit(meva.explore, static_argnames=("game", "config"))
    rollout = jax.jit(meva.rollout, static_argnames=("game", "config"))
    chex.assert_trees_all_close(explore(params, game, x, gamma, signs, config), end, atol=1e-4)
    chex.assert_trees_all_close(rollout(params, game, x, gamma, config), jnp.stack(on_policy), atol=1e-4)


@pytest.mark.parametrize("flip_prob", [0.25, 0.0])
def test_a_trajectory_keeps_its_perturbed_model_while_each_stretch_gets_new_gammas(monkeypatch, flip_prob):
    config = tiny(batch_size=2, rollout_length=12, stride=3, flip_prob=flip_prob)
    explored, followed = [], []
    explore, rollout = meva.explore, meva.rollout

    def spy_explore(params, game, x, gamma, signs, config):
        drawn = gamma, signs, params.readout["w"]
        jax.debug.callback(lambda *drawn: explored.append(np.concatenate(drawn, None)), *drawn)
        return explore(params, game, x, gamma, signs, config)

    def spy_rollout(params, game, x, gamma, config):
        xs = rollout(params, game, x, gamma, config)
        jax.debug.callback(lambda *drawn: followed.append(drawn), gamma, xs)
        return xs

    monkeypatch.setattr(meva, "explore", spy_explore)
    monkeypatch.setattr(meva, "rollout", spy_rollout)
    key = jax.random.key(0)
    jax.block_until_ready(jax.jit(meva.outer_step, static_argnames="config")(key, meva.train_init(key, config), config))
    jax.effects_barrier()
    assert len(np.unique([gamma for gamma, _ in followed], axis=0)) == len(followed) == 2 * 4  # batch x stretches
    if flip_prob:
        assert len(explored) == 2 * 4
        assert len(np.unique(explored, axis=0)) == 2  # one draw for each trajectory
    else:  # the on-policy trajectory itself goes on
        assert not explored
        starts, ends = ([tuple(np.ravel(xs[at])) for _, xs in followed] for at in (0, -1))
        assert sum(start in ends for start in starts) == 2 * 3


def test_target_network_is_a_moving_average():
    config = tiny(target_inertia=0.9)
    state = meva.train_init(jax.random.key(0), config)
    x = random_policies(GAMES["ipd"], config.batch_size)
    xs, gamma = jnp.stack([x] * (config.stride + 1), 1), jnp.full((config.batch_size, 2), 0.5)
    new, metrics = jax.jit(meva.update, static_argnames=("game", "config"))(state, GAMES["ipd"], xs, gamma, config)
    expected = jax.tree.map(lambda old, now: 0.9 * old + 0.1 * now, state.target_params, new.params)
    chex.assert_trees_all_close(new.target_params, expected, atol=1e-7)
    assert metrics["gradient_norm"] > 0


def test_the_gradient_of_the_batch_is_the_mean_over_its_groups(monkeypatch):
    config, game = tiny(batch_size=6), GAMES["ipd"]
    state = meva.train_init(jax.random.key(0), config)
    xs = jnp.stack([random_policies(game, 6, seed) for seed in range(config.stride + 1)], 1)
    gamma = jax.random.uniform(jax.random.key(1), (6, 2))

    def metrics(cached):
        monkeypatch.setattr(meva, "CACHED", cached)
        return jax.jit(lambda: meva.update(state, game, xs, gamma, config)[1])()

    whole = metrics(6 * config.stride)
    assert whole["loss"] > 0
    for cached in (5 * config.stride, config.stride, 1):  # two groups, six, and six though one is too much
        chex.assert_trees_all_close(metrics(cached), whole, rtol=1e-5)


def test_td_targets_come_from_the_target_network_or_from_both_sides():
    """The gradient by the parameters: none through the target where it is held constant, some where it is not."""
    game = GAMES["ipd"]
    xs, gamma = jnp.stack(list(random_policies(game, 4))), jnp.array([0.3, 0.8])

    def gradient(target_seed, **changes):
        config = tiny(**changes)
        params, target_params = (meva.model_init(jax.random.key(seed), game, config) for seed in (1, target_seed))
        return jax.jit(jax.grad(lambda p: meva.td_loss(p, target_params, game, xs, gamma, config)[0]))(params)

    def differ(one, two):
        return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two))) > 1e-4

    assert differ(gradient(1), gradient(2))
    alone = dict(target_inertia=0.0)
    assert not differ(gradient(1, **alone), gradient(2, **alone))
    assert not differ(gradient(1), gradient(1, **alone))  # the same network on both sides, targets held constant
    assert differ(gradient(1, **alone), gradient(1, **alone, semi_gradient=False))


def test_td_loss_against_a_loop():
    """Eq. 7 in form V and its counterpart of Sec. 4.1 in form U: quantiles, lambda-returns and the target network."""
    game, gamma, lam = GAMES["ipd"], jnp.array([0.3, 0.8]), 0.6
    xs = jnp.stack(list(random_policies(game, 4)))
    quantiles = jax.jit(meva.meta_quantiles, static_argnames="game")
    for form, ahead in (("V", 0), ("U", 1)):
        config = tiny(form=form, bootstrap=lam)
        params, target_params = (meva.model_init(jax.random.key(seed), game, config) for seed in (1, 2))
        target, losses, errors = quantiles(target_params, game, xs[3], gamma), [], []
        for t in (2, 1, 0):
            mixed = (1 - lam) * quantiles(target_params, game, xs[t + 1], gamma) + lam * target
            target = (1 - gamma[:, None]) * game.f(xs[t + ahead])[:, None] + gamma[:, None] * mixed
            prediction = quantiles(params, game, xs[t], gamma)
            losses += [meva.quantile_loss(prediction, target)]
            errors += [np.abs(prediction.mean(-1) - target.mean(-1))]
        loss, error = meva.td_loss(params, target_params, game, xs, gamma, config)
        np.testing.assert_allclose([loss, error], [np.mean(losses), np.mean(errors)], rtol=1e-4)


# meva.py: training

COUPLING = 0.5
BOWL = Game(
    name="bowl",
    n=1,
    f=lambda x: -0.5 * (x[:, 0] + COUPLING * x[::-1, 0]) ** 2,
    init=lambda key: jax.random.uniform(key, (2, 1), minval=-2.0, maxval=2.0),
    features=lambda x: x,
    symmetric=True,
    labels=("x",),
)


def bowl_meta_value(form, lr, gamma):
    """P such that player 1's meta-value is -x^T P x / 2. As x' = M x is linear, P is a fixed point on matrices."""
    returns = np.array([[1, COUPLING], [COUPLING, COUPLING**2]])  # f_1 = -x^T returns x / 2
    p = np.zeros((2, 2))
    for _ in range(2000):
        ascent = -np.array([[p[0, 0], p[0, 1]], [p[0, 1], p[0, 0]]])  # grad-bar of both players' values, by symmetry
        if form == "V":  # V(x) = (1 - gamma) f(x) + gamma V(M x), M x = x + lr grad V
            m = np.eye(2) + lr * ascent
            p = (1 - gamma) * returns + gamma * m.T @ p @ m
        else:  # U(x) = (1 - gamma) f(M x) + gamma U(M x), M x = x + lr (grad f + gamma grad U)
            m = np.eye(2) + lr * (gamma * ascent - np.array([[1, COUPLING], [COUPLING, 1]]))
            p = m.T @ ((1 - gamma) * returns + gamma * p) @ m
    return p


@pytest.mark.parametrize("form", ["V", "U"])
def test_training_reaches_the_meta_value_of_a_quadratic_game(monkeypatch, form):
    """f_i = -(x_i + c x_j)^2 / 2 keeps the meta-value quadratic: here the right one is known."""
    monkeypatch.setitem(GAMES, "bowl", BOWL)
    lr = 0.1
    settings = dict(hidden=16, quantiles=1, outer_steps=800, batch_size=32, rollout_length=10, stride=10, model_lr=5e-3)
    config = meva.make_config("bowl", form=form, lr=lr, semi_gradient=True, bootstrap=0.9, **settings)
    params, _ = train(jax.random.key(0), config)
    line = np.linspace(-1.5, 1.5, 13)
    x = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    for gamma in (0.0, 0.5, 0.9):
        value = jax.vmap(lambda x: meta_value(params, BOWL, x[:, None], gamma))(x)
        for player in (0, 1):
            seen = x if player == 0 else x[:, ::-1]
            expected = -0.5 * np.einsum("bi,ij,bj->b", seen, bowl_meta_value(form, lr, gamma), seen)
            assert np.abs(value[:, player] - expected).mean() < 0.25 * np.abs(expected).mean(), (gamma, player)


def test_training_with_standing_policies_learns_the_returns():
    """App. A once more, trained: with lr = 0 the meta-value is f at every gamma."""
    settings = dict(hidden=32, quantiles=4, outer_steps=300, rollout_length=2, stride=2, model_lr=5e-3)
    params, _ = train(jax.random.key(0), meva.make_config("logistic", lr=0.0, **settings))
    game = GAMES["logistic"]
    x = random_policies(game, 64, seed=5)
    for gamma in (0.0, 0.5, 0.95):
        value = jax.vmap(lambda x: meta_value(params, game, x, jnp.full(2, gamma)))(x)
        assert np.abs(value - jax.vmap(game.f)(x)).mean() < 0.15


def run(folder, *words, game="logistic", script="meva", **settings):
    """A script's main in this process. Returns the arrays that it wrote."""
    settings = tiny_settings(game, script, settings)
    SCRIPTS[script].main(["--game", game, "--out", str(folder), *flags(**settings), *words])
    with np.load(folder / f"results/{script}_{game}.npz", allow_pickle=False) as file:
        return dict(file)


def assert_same_arrays(one, two):
    assert one.keys() == two.keys()
    for name in one:
        if name != "config":
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture(scope="module")
def logistic_run(tmp_path_factory):
    """A small run of MeVa on the Logistic Game: its folder and its arrays."""
    folder = tmp_path_factory.mktemp("logistic")
    return folder, run(folder)


def test_a_seed_is_the_same_run_whatever_the_number_of_seeds(logistic_run, tmp_path):
    _, both = logistic_run
    second = run(tmp_path / "second", seed=1, num_seeds=1)
    for name, value in both.items():
        if name.startswith("params/") or name in ("loss", "self_play_curve"):
            np.testing.assert_array_equal(value[1], second[name][0])
    np.testing.assert_array_equal(both["trajectories"][:, 1], second["trajectories"][:, 0])
    assert np.abs(both["loss"][0] - both["loss"][1]).min() > 0
    assert np.abs(both["trajectories"][:, 0] - both["trajectories"][:, 1]).min() > 0


def test_train_is_what_the_script_does_chunk_by_chunk(logistic_run):
    _, written = logistic_run
    config = tiny("logistic")
    params, metrics = train(meva.seed_keys(config)[0][0], config)
    np.testing.assert_allclose(metrics["loss"], written["loss"][0], rtol=1e-3)
    for name, leaf in meva.flatten("params", params).items():
        np.testing.assert_allclose(leaf, written[name][0], atol=1e-4)


def test_each_program_is_compiled_once(tmp_path, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(meva, "train_chunk", chex.assert_max_traces(meva.train_chunk, n=1))
    counted = jax.jit(chex.assert_max_traces(meva.evaluate.__wrapped__, n=1), static_argnames="config")
    monkeypatch.setattr(meva, "evaluate", counted)
    written = run(tmp_path)
    assert written["self_play_curve"].shape == (2, 2)


def test_interrupted_and_resumed_ends_bit_for_bit_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cola, "ORDERS", (0, 1))
    run_it = partial(run, script="cola", outer_steps=502, semi_gradient=True)
    whole = run_it(tmp_path / "whole")
    save, saved = cola.save_checkpoint, []

    def save_until_interrupted(*args):
        save(*args)
        saved.append(args)
        if len(saved) == 2:  # at the start, and after the first chunk
            raise KeyboardInterrupt

    monkeypatch.setattr(cola, "save_checkpoint", save_until_interrupted)
    with pytest.raises(SystemExit) as stopped:
        run_it(tmp_path / "cut")
    assert stopped.value.code == 130
    assert not (tmp_path / "cut/results/cola_logistic.npz").exists()
    resumed = run_it(tmp_path / "cut", "--resume")
    assert "from outer loop 251 to 502" in capsys.readouterr().out
    assert_same_arrays(whole, resumed)
    reevaluated = run_it(tmp_path / "cut", "--resume", eval_alphas=(0.5,))
    assert reevaluated["basin_fraction"].shape == (1, 2)
    np.testing.assert_array_equal(reevaluated["loss"], whole["loss"])


def test_divergence_ends_with_status_1_and_the_last_finite_state(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, model_lr=1e30, outer_steps=29)
    said = re.search(r"diverged at outer loop (\d+); .*checkpoint.npz has the state after (\d+)$", stopped.value.code)
    assert int(said[1]) == int(said[2]) + 1  # chunks of one outer loop
    with np.load(tmp_path / "results/meva_logistic.checkpoint.npz") as file:
        assert all(np.isfinite(file[name]).all() for name in file.files if name.startswith("state/"))
    assert not (tmp_path / "results/meva_logistic.npz").exists()


# meva.py: evaluation


@pytest.mark.parametrize("name", ["logistic", "imp"])
def test_evaluation_against_a_loop(name):
    """Self-play, best response and shaping from each seat, step by step in Python for one pair and one gamma."""
    params, config = make_model(name)
    game, gamma, key = GAMES[name], 0.9, jax.random.key(7)
    field = jax.jit(lambda x, strengths: meva.meva_gradient(params, game, x, jnp.stack(strengths), config))
    naive = jax.jit(partial(simultaneous_gradient, game.f))
    evaluate = jax.jit(lambda key: meva.evaluate_game(key, game, field, jnp.full((), gamma), config))
    result = evaluate(key)

    key_self, key_response = jax.random.split(jax.random.split(key, config.eval_pairs)[1])
    start = policies = game.init(key_self)
    for _ in range(config.eval_steps):
        policies = policies + config.lr * field(policies, (gamma, gamma))
    np.testing.assert_allclose(result["policies"][1], policies, atol=1e-4)
    np.testing.assert_allclose(result["self_play"][1], game.f(policies), atol=1e-4)
    assert ("best_response_2" in result) == (name == "imp")
    for agent, seat in ((0, ""), (1, "_2"))[: 1 if game.symmetric else 2]:
        shaped, response = start, game.init(key_response)[1 - agent]
        both = lambda own, other: jnp.stack([other, own] if agent else [own, other])  # noqa: B023, E731
        for _ in range(config.eval_steps):
            own = field(shaped, both(jnp.float32(gamma), jnp.float32(0)))[agent]
            shaped = shaped + config.lr * both(own, naive(shaped)[1 - agent])
            response = response + config.lr * naive(both(policies[agent], response))[1 - agent]
        responses = both(policies[agent], response)
        for kind, expected in (("response", responses), ("versus_naive", shaped)):
            agent_first = expected[::-1] if agent else expected
            np.testing.assert_allclose(result[f"{kind}_policies{seat}"][1], agent_first, atol=1e-4)
            returns = game.f(expected)[::-1] if agent else game.f(expected)
            name_of_returns = {"response": "best_response"}.get(kind, kind)
            np.testing.assert_allclose(result[name_of_returns + seat][1], returns, atol=1e-4)


def best_response_value(policy, discount=0.96):
    """What a best response to a memory-one policy gets on the IPD, by value iteration."""
    cooperates = 1 / (1 + np.exp(-np.float64(policy)))  # init, DD, CD, DC, CC
    reward = {"DD": -2, "CD": 0, "DC": -3, "CC": -1}  # to the second letter
    states = ("DD", "CD", "DC", "CC")

    def best(share, value):
        now = {state: (1 - discount) * reward[state] + discount * value[state] for state in states}
        return max(share * now["C" + action] + (1 - share) * now["D" + action] for action in "CD")

    value = dict.fromkeys(states, 0.0)
    for _ in range(500):
        value = {s: best(share, value) for s, share in zip(states, cooperates[1:])}
    return best(cooperates[0], value)


def test_gradient_and_exact_best_responses_agree_on_the_ipd():
    """Against 256 random policies; after 500 steps one of them is still .03 away, on its way."""
    config, game = naive.make_config("ipd", eval_steps=2000), GAMES["ipd"]
    stand_still = lambda x, strengths: jnp.zeros_like(x)  # noqa: E731
    evaluate = jax.jit(partial(naive.evaluate_game, game=game, field=stand_still, config=config))
    result = evaluate(jax.random.key(0), strength=jnp.float32(0))
    chex.assert_shape(result["policies"], (256, 2, 5))
    gain = result["exact_best_response"][:, 1] - result["best_response"][:, 1]
    assert np.abs(gain).max() < 0.02, gain


def test_the_exact_best_response_from_either_seat_is_that_of_brute_force():
    """On iterated matching pennies, and what one player wins of it the other loses."""
    config, game = tiny("imp", "naive"), GAMES["imp"]
    stand_still = lambda x, strengths: jnp.zeros_like(x)  # noqa: E731
    result = jax.jit(partial(naive.evaluate_game, game=game, field=stand_still, config=config))(
        jax.random.key(0), strength=jnp.float32(0)
    )
    f = jax.jit(game.f)
    for pair, policies in enumerate(np.asarray(result["policies"])):
        first = [f(put(policies, 1, row))[1] for row in naive.DETERMINISTIC]
        second = [f(put(policies, 0, row))[0] for row in naive.DETERMINISTIC]
        np.testing.assert_allclose(result["exact_best_response"][pair], [-max(first), max(first)], atol=1e-5)
        np.testing.assert_allclose(result["exact_best_response_2"][pair], [-max(second), max(second)], atol=1e-5)


def test_exact_best_response_against_value_iteration():
    game = GAMES["ipd"]
    stand_still = lambda x, strengths: jnp.zeros_like(x)  # noqa: E731
    config = tiny("ipd", "naive", eval_pairs=16, eval_steps=300)
    result = jax.jit(partial(naive.evaluate_game, game=game, field=stand_still, config=config))(
        jax.random.key(0), strength=jnp.float32(0)
    )
    for pair in range(16):
        agent, response = result["exact_response_policies"][pair]
        np.testing.assert_array_equal(agent, result["policies"][pair, 0])
        assert set(np.unique(response)) <= {-30.0, 30.0}
        np.testing.assert_allclose(result["exact_best_response"][pair, 1], best_response_value(agent), atol=1e-4)
        np.testing.assert_allclose(game.f(jnp.stack([agent, response])), result["exact_best_response"][pair], atol=1e-5)
    gain = result["exact_best_response"][:, 1] - result["best_response"][:, 1]
    assert gain.min() > -1e-4  # no gradient finds a better one


def test_basins_of_a_field_whose_basins_are_known():
    """The field sign(x) drives a point out along the diagonal of its quadrant: a quarter of the grid ends at B."""
    config = tiny("logistic", eval_pairs=5)
    field = lambda x, strengths: jnp.sign(x) * strengths[:, None]  # noqa: E731
    result = meva.evaluate_game(jax.random.key(0), GAMES["logistic"], field, jnp.float32(1.0), config)
    np.testing.assert_allclose(result["basin_fraction"], 14 * 14 / 841, rtol=1e-6)
    np.testing.assert_allclose(result["endpoints"][0, -1], (10 + config.eval_steps, -10 - config.eval_steps))  # row x_2
    chex.assert_shape(result["trajectories"], (5, config.eval_steps + 1, 2))
    np.testing.assert_allclose(result["trajectories"][:, -1], result["trajectories"][:, 0]
                               + config.eval_steps * np.sign(result["trajectories"][:, 0]), atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(result["field"], config.lr * np.sign(meva.planar_grid(GAMES["logistic"])))


# The command line

CHANGED = dict(
    payoffs=(4.0, 1.0, 3.0, 2.0), discount=0.5, seed=5, num_seeds=3,
    lr=0.7, form="U", hidden=6, blocks=2, quantiles=2, share_params=False, outer_steps=3,
    batch_size=3, rollout_length=9, stride=2, flip_prob=0.5, fixed_gamma=0.3, bootstrap=0.1, target_inertia=0.5,
    semi_gradient=True, model_lr=0.1, adam_b2=0.5, weight_decay=0.3, eval_gammas=(0.3,), eval_pairs=2, eval_steps=3,
    alpha=(0.3,), variant="taylor", order=0, alpha_max=0.7, eval_alphas=(0.3,),
)  # fmt: skip


@functools.cache
def program(script, config, part):
    """What a run computes: its keys, or its training or evaluation with their constants."""
    key, script = jax.random.key(0), SCRIPTS[script]
    train_keys, eval_keys = script.seed_keys(config)
    if part == "keys":
        return np.asarray(jax.random.key_data(train_keys)).tolist()
    if part == "training":
        jaxpr = jax.make_jaxpr(partial(script.train, config=config))(key)
    else:
        args = [eval_keys]
        if hasattr(script, "train"):
            params = jax.eval_shape(partial(script.train_init, config=config), key).params
            args += [jax.tree.map(lambda leaf: jnp.zeros((config.num_seeds, *leaf.shape)), params)]
        with mock.patch.object(cola, "ORDERS", (0, 1)):  # the higher ones take long to trace
            jaxpr = jax.make_jaxpr(partial(script.evaluate.__wrapped__, config=config))(*args)
    text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr))  # without addresses in memory
    return text, [np.asarray(const).tolist() for const in jaxpr.consts]


def parts_of(script):
    return ("keys", *(["training"] if hasattr(SCRIPTS[script], "train") else []), "evaluation")


EVERY_FLAG = [(name, field.name) for name, script in SCRIPTS.items() for field in dataclasses.fields(script.Config)[1:]]


@pytest.mark.parametrize("script, name", EVERY_FLAG)
def test_every_flag_is_read(script, name):
    """Each flag changes the configuration and, through it, the program that is run or the keys that it runs on."""
    game = "ipd" if name in ("payoffs", "discount") else "tandem"
    changes = {}
    if script == "meva" and game == "tandem":
        changes = dict(stride=3, flip_prob=0.25, semi_gradient=name == "target_inertia")
    base = tiny(game, script, **changes)
    given = {k: v for k, v in dataclasses.asdict(base).items() if k not in ("game", name) and v not in (None, ())}
    words = ["--game", game, *flags(**given), *flags(**{name: CHANGED[name]})]
    _, _, config = SCRIPTS[script].parse(words, "", SCRIPTS[script].make_config, trained=True)
    assert dataclasses.replace(config, **{name: getattr(base, name)}) == base != config

    assert any(program(script, base, part) != program(script, config, part) for part in parts_of(script))


def test_the_same_configuration_is_the_same_program():
    """Without which the test above could not fail."""
    for script in SCRIPTS:
        config = tiny("logistic", script)
        for part in parts_of(script):
            assert program(script, config, part) == program.__wrapped__(script, config, part)


def test_defaults_are_the_papers():
    logistic, ipd = meva.make_config("logistic"), meva.make_config("ipd")
    sweep = (0, 0.8, 0.85, 0.9, 0.95, 0.99)
    paper = dict(lr=1, quantiles=16, eval_gammas=sweep, semi_gradient=False, share_params=True, fixed_gamma=None,
                 rollout_length=50, stride=50, outer_steps=1000, model_lr=1e-3, batch_size=128,
                 form="V", target_inertia=0, bootstrap=0, flip_prob=0, blocks=1, hidden=64, weight_decay=0)  # fmt: skip
    assert {name: getattr(logistic, name) for name in paper} == paper
    sweep = (0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999)
    paper = dict(lr=2, quantiles=32, eval_gammas=sweep, semi_gradient=True, share_params=True, fixed_gamma=None,
                 rollout_length=100, stride=10, outer_steps=2000, model_lr=1e-4, batch_size=128,
                 form="U", target_inertia=0.99, bootstrap=0.9, flip_prob=1 / 16, blocks=2, hidden=64,
                 weight_decay=1e-2, eval_pairs=256, eval_steps=500)  # fmt: skip
    assert {name: getattr(ipd, name) for name in paper} == paper


def test_settings_that_set_others(monkeypatch):
    for game in ("logistic", "ipd"):
        quick, full = meva.make_config(game, quick=True), meva.make_config(game)
        assert quick.outer_steps < full.outer_steps and quick.form == full.form
        assert meva.make_config(game, quick=True, outer_steps=7, hidden=3).outer_steps == 7
    assert meva.make_config("ipd", fixed_gamma=0.9).eval_gammas == (0.9,)
    assert meva.make_config("ipd", fixed_gamma=0.9, eval_gammas=(0.5,)).eval_gammas == (0.5,)
    monkeypatch.setitem(GAMES, "lopsided", BOWL._replace(symmetric=False))
    assert not meva.make_config("lopsided").share_params
    assert meva.make_config("lopsided", share_params=True).share_params


@pytest.mark.parametrize("game, shown", [("logistic", "1000"), ("ipd", "2000")])
def test_help_shows_the_defaults_of_the_game(game, shown, capsys):
    with pytest.raises(SystemExit) as stopped:
        meva.main(["--game", game, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert f"outer loops of Algorithm 1, best a multiple of 25 (default: {shown})" in text
    for field in dataclasses.fields(meva.Config):
        assert "--" + field.name.replace("_", "-") in text


BY_HAND = ["--distributed", "--coordinator", "localhost:1", "--num-processes"]


@pytest.mark.parametrize(
    "words, named",
    [
        (["--game", "chess"], "--game: invalid choice: 'chess'"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--outer", "3"], "--outer"),  # no abbreviations
        (["--num-seeds", "0"], "--num-seeds: takes a whole number from 1 below 2^31, not 0"),
        (["--seed", "-1"], "--seed: takes a whole number from 0"),
        (["--lr", "nan"], "--lr: takes a number from 0 to 1e30, not nan"),
        (["--lr", "two"], "--lr: invalid float value: 'two'"),
        (["--model-lr", "inf"], "--model-lr"),
        (["--weight-decay", "-1"], "--weight-decay"),
        (["--hidden", "0"], "--hidden"),
        (["--blocks", "-1"], "--blocks"),
        (["--quantiles", "0"], "--quantiles"),
        (["--outer-steps", "3000000000"], "--outer-steps: takes a whole number from 1 below 2^31"),
        (["--outer-steps", "1.5"], "--outer-steps: invalid int value: '1.5'"),
        (["--batch-size", "0"], "--batch-size"),
        (["--rollout-length", "0"], "--rollout-length"),
        (["--stride", "7"], "--stride: takes a divisor of --rollout-length 100, not 7"),
        (["--flip-prob", "1.1"], "--flip-prob: takes a number in [0, 1], not 1.1"),
        (["--bootstrap", "2"], "--bootstrap"),
        (["--target-inertia", "1"], "--target-inertia: takes a number in [0, 1), not 1.0"),
        (["--adam-b2", "1"], "--adam-b2"),
        (["--form", "W"], "--form: takes V or U, not W"),
        (["--fixed-gamma", "1"], "--fixed-gamma: takes a number in [0, 1), not 1.0"),
        (["--eval-gammas", "0.5", "1"], "--eval-gammas: takes a number in [0, 1), not 0.5 1.0"),
        (["--eval-gammas"], "--eval-gammas: expected at least one argument"),
        (["--eval-pairs", "0"], "--eval-pairs"),
        (["--eval-steps", "0"], "--eval-steps"),
        (["--no-semi-gradient"], "--no-semi-gradient: takes --target-inertia 0"),
        (["--coordinator", "localhost:1"], "--coordinator: takes --distributed, --num-processes, --process-id"),
        ([*BY_HAND[:2], "localhost", *BY_HAND[3:], "2", "--process-id", "0"], "--coordinator: takes HOST:PORT"),
        ([*BY_HAND[:2], "localhost:65536", *BY_HAND[3:], "2", "--process-id", "0"], "--coordinator: takes HOST:PORT"),
        ([*BY_HAND, "99999999999", "--process-id", "0"], "--num-processes: takes a whole number below 2^31"),
        (["--distributed", "--process-id", "0"], "--process-id: takes --distributed, --coordinator, --num-processes"),
        ([*BY_HAND, "2", "--process-id", "2"], "--process-id: takes a whole number from 0 below --num-processes 2"),
        ([*BY_HAND, "0", "--process-id", "0"], "--process-id: takes a whole number from 0 below --num-processes 0"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(words, named, tmp_path, capsys):
    refused(meva, words, named, tmp_path, capsys)


@pytest.mark.parametrize(
    "script, words, named",
    [
        (naive, ["--alpha", "1"], "unrecognized arguments: --alpha"),
        (naive, ["--resume"], "unrecognized arguments: --resume"),
        (lola, ["--alpha", "1", "-1"], "--alpha: takes a number from 0 to 1e30, not 1.0 -1.0"),
        (lola, ["--alpha", "1e39"], "--alpha: takes a number from 0 to 1e30"),
        (lola, ["--payoffs", "1", "2"], "--payoffs: takes four numbers (CC, CD, DC, DD) or eight, not 2"),
        (lola, ["--payoffs", "1", "2", "3", "nan"], "--payoffs: takes numbers from -1000000 to 1000000"),
        (cola, ["--game", "logistic", "--payoffs", "1", "2", "3", "4"], "--payoffs: takes an iterated --game"),
        (meva, ["--game", "ultimatum", "--discount", "0.5"], "--discount: takes an iterated --game"),
        (naive, ["--discount", "1"], "--discount: takes a number from 0 to 0.999, not 1.0"),
        (lola, ["--variant", "extra"], "--variant: takes exact or taylor or taylor-stop or lookahead, not extra"),
        (hola, ["--order", "6"], "--order: takes a whole number from 0 to 5, not 6"),
        (cola, ["--alpha-max", "0"], "--alpha-max: takes a number above 0"),
        (cola, ["--eval-alphas", "1", "11"], "--eval-alphas: takes numbers up to --alpha-max 10.0, not 11.0"),
        (cola, ["--batch-size", "0"], "--batch-size: takes a whole number from 1"),
    ],
)
def test_bad_input_of_the_family_gets_one_line_and_status_2(script, words, named, tmp_path, capsys):
    refused(script, words, named, tmp_path, capsys)


def refused(script, words, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([*words, "--out", str(tmp_path / "new")])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert err.count("\n") == 1 and named in err and not out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("obstacle", ["", "results", "figures", "results/meva_ipd.npz/", "figures/meva_ipd.png/"])
def test_a_folder_that_cannot_be_written_is_found_before_training(obstacle, tmp_path, capsys):
    out = tmp_path / "out"
    if obstacle.endswith("/"):
        (out / obstacle).mkdir(parents=True)
    else:
        (out / obstacle).parent.mkdir(exist_ok=True)
        (out / obstacle).write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        meva.main(["--out", str(out)])
    printed, err = capsys.readouterr()
    assert stopped.value.code == 2 and not printed
    assert err.count("\n") == 1 and "--out: takes a folder that can be written" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_will_not_do_is_refused(logistic_run, tmp_path, capsys):
    shutil.copytree(logistic_run[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "results/meva_logistic.checkpoint.npz"
    whole = path.read_bytes()

    def refused(**settings):
        capsys.readouterr()
        before = path.read_bytes()
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path, "--resume", **settings)
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and err.count("\n") == 1 and "argument --resume: takes " in err
        assert path.read_bytes() == before
        return err

    assert "which has --lr 1.0" in refused(lr=2.0)
    assert "which has --seed 0" in refused(seed=1)
    assert "which has --hidden 8" in refused(hidden=4)
    assert "which has --blocks 1" in refused(blocks=2)
    assert "which has --share-params True" in refused(share_params=False)
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused()
    path.write_bytes(whole[:1000] + bytes(100) + whole[1100:])
    assert "damaged" in refused()
    path.write_bytes(b"")
    assert "damaged" in refused()
    with open(path, "wb") as file:
        np.savez(file, config="{}")
    assert "damaged" in refused()


# Figure and table


@pytest.mark.parametrize("name", ["ipd", "imp"])
def test_the_figure_shows_all_of_its_data(name):
    rng, game = np.random.default_rng(0), GAMES[name]
    results = {"sweep": np.array([0.0, 0.9]), "policies": rng.normal(size=(2, 3, 4, 2, 5))}
    seats = ("",) if game.symmetric else ("", "_2")
    for center, key in enumerate(meva.PANELS):
        for seat in seats[: 1 if key == "self_play" else 2]:
            results[key + seat] = -center + 0.1 * rng.normal(size=(2, 3, 4, 2))
    figure = Figure()
    meva.draw_returns(figure, results, game)
    columns = len(meva.PANELS) + 1
    cooperate = (1 / (1 + np.exp(-results["policies"]))).mean((1, 2))  # (sweep, player, 5)
    for row, seat in enumerate(seats):
        axes = figure.axes[row * columns : (row + 1) * columns]
        for axis, key in zip(axes, meva.PANELS):
            returns = results[key][..., ::-1] if seat and key == "self_play" else results[key + seat]
            low, high = axis.get_ylim()
            means = returns.mean((1, 2))
            assert low < means.min() and means.max() < high
            np.testing.assert_allclose(axis.containers[0].lines[0].get_ydata(), means[:, 0])
            np.testing.assert_allclose(axis.containers[1].lines[0].get_ydata(), means[:, 1])
        shown = [float(text.get_text()) for text in axes[-1].texts]
        expected = cooperate.mean(1) if game.symmetric else cooperate[:, row]
        np.testing.assert_allclose(shown, np.transpose([*expected, (1, 0, 0, 1, 1)]).ravel(), atol=0.0051)


def test_the_table_says_where_policies_diverged(capsys):
    ends = np.ones((1, 1, 29, 29, 2))
    results = {"sweep": np.array([0.5]), "endpoints": ends, "basin_fraction": np.array([[0.25]])}
    results["self_play"] = np.array([[[[1.5, -3e7]]]])
    meva.print_table(results, GAMES["logistic"])
    assert "diverged" not in (out := capsys.readouterr().out) and "0.250" in out and "+-" not in out and "-3e+07" in out
    ends[0, 0, 0] = np.nan
    meva.print_table(results, GAMES["logistic"])
    assert "note: 3.45% of the policy parameters diverged" in capsys.readouterr().out


# plots.py


def test_the_table_of_games_has_the_means_of_the_runs_and_says_what_is_missing(tmp_path, capsys):
    lola_pennies = run(tmp_path, game="matching_pennies", script="lola")
    naive_tandem = run(tmp_path, game="tandem", script="naive")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        plots.main(["--out", str(tmp_path), "--table", "games"])
    assert end.value.code == 1  # some are missing
    out = capsys.readouterr().out
    assert out.count("missing for games: python ") == len(SCRIPTS) * len(GAMES) - 2
    assert f"missing for games: python meva.py --game chicken --quick --out {tmp_path}\n" in out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| `matching_pennies`")]
    for row, key in zip(rows, ("self_play", "best_response", "versus_naive")):
        seats = row[2].split("<br>")  # LOLA's cell
        assert len(seats) == (1 if key == "self_play" else 2)
        for text, seat in zip(seats, ("", "_2")):
            samples = lola_pennies[key + seat][1].reshape(-1, 2)  # at alpha = 0.5
            expected = samples.mean(0), samples.std(0, ddof=1) / len(samples) ** 0.5
            numbers = np.array(re.findall(r"-?[\d.]+", text), float).reshape(2, 2)
            np.testing.assert_allclose(numbers.T, expected, atol=0.0051)
    assert f"{naive_tandem['self_play'][0, ..., 0].mean():.2f}" in out


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A folder with the runs of results/paper alone."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "results").mkdir()
    (folder / "results/paper").symlink_to(ROOT / "results/paper")
    return folder


def test_readmes_tables_are_those_of_the_runs_in_results_paper(paper, capsys):
    readme = (ROOT / "README.md").read_text().splitlines()
    for table in ("paper", "ablations"):
        plots.main(["--out", str(paper), "--table", table])
        lines = capsys.readouterr().out.splitlines()
        rows = [line for line in lines if line.startswith("|")]
        assert len(rows) > 10 and not [line for line in lines if line.startswith("missing")]
        assert not [row for row in rows if row not in readme]


def test_every_figure_is_drawn_from_results_paper(paper, capsys):
    plots.main(["--out", str(paper)])
    out = capsys.readouterr().out
    for name in plots.FIGURES.keys() - {"games"}:
        image = imread(paper / f"figures/{name}.png")
        assert image.shape[1] > 600 and image.std() > 0.05 and f"figures/{name}.png" in out
    assert "missing for games: 26 small runs" in out and out.count("missing") == 1
    plots.main(["--out", str(paper), "--figure", "fig1", "--format", "pdf"])
    assert (paper / "figures/fig1.pdf").read_bytes().startswith(b"%PDF")
    assert not list(paper.glob("figures/*.part"))


def test_plots_names_the_command_of_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        plots.main(["--out", str(tmp_path), "--figure", "fig3"])
    assert end.value.code == 1 and not list(tmp_path.iterdir())
    lines = capsys.readouterr().out.splitlines()
    commands = [f"python {name}.py --game ipd --num-seeds 8 --out {tmp_path}" for name in ("meva", "lola")]
    assert lines == [f"missing for fig3: {command}" for command in commands]
    for name in plots.RUNS:  # every command can be read, makes what will do, and writes where plots.py looks first
        script, *words = plots.command(name, tmp_path).split()[1:]
        script = script.removesuffix(".py")
        _, args, config = meva.parse(words, "", SCRIPTS[script].make_config, trained=True)
        assert args.out / f"results/{script}_{config.game}.npz" == plots.paths_of(name, tmp_path)[0]
        described = json.loads(meva.describe(config))
        assert plots.made_by(plots.RUNS[name], {"config": described})
        for flag in re.findall("--([a-z-]+)", plots.RUNS[name].flags):
            assert not plots.made_by(plots.RUNS[name], {"config": described | {flag.replace("-", "_"): 77}})


def save_run(path, settings, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, config=json.dumps(settings), **arrays)


def test_tables_take_runs_of_the_very_settings_and_ones_own_first(tmp_path, capsys):
    own, kept = plots.paths_of("naive_ipd", tmp_path)

    def table():
        with pytest.raises(SystemExit) as end:
            plots.main(["--out", str(tmp_path), "--table"])
        assert end.value.code == 1  # the others are missing
        return capsys.readouterr().out

    for path, value in ((own, -1.0), (kept, -2.0)):
        save_run(path, {"num_seeds": 8}, sweep=np.array([2.0]), self_play=np.full((1, 8, 4, 2), value))
    assert f"{own} (8 seeds)" in (out := table()) and "| -1.000 ± 0.000 | **no** |" in out
    save_run(own, {"num_seeds": 3}, sweep=np.array([2.0]), self_play=np.full((1, 3, 4, 2), -1.0))
    assert f"{kept} (8 seeds)" in (out := table()) and "| -2.000 ± 0.000 | yes |" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (["--out", "nowhere"], "--out: takes a folder that is there, not nowhere"),
        (["--table", "--format", "pdf"], "--table: takes neither"),
        (["--figure", "fig9"], "--figure: invalid choice"),
        (["--table"], "naive_ipd.npz is not the results of a run"),
    ],
)
def test_plots_refuses_bad_input_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/naive_ipd.npz").write_text("broken")
    with pytest.raises(SystemExit) as end:
        plots.main(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and said in err and not out and not (tmp_path / "figures").exists()


def test_strategies_are_numbered_by_their_bits():
    policies = np.array([POLICIES[name] for name in ("all-C", "all-D", "tit-for-tat", "win-stay-lose-shift")])
    names = [plots.STRATEGIES[number] for number in plots.strategies(policies)]
    assert names == ["all C", "all D", "tit-for-tat", "win-stay"]


def test_claims_fail_where_the_numbers_do(paper):
    """Each claim is measured again on runs in which all is alike, or falls: it must not hold any more."""
    for claim in plots.CLAIMS:
        runs, _, missing = plots.find(claim.runs, paper)
        assert not missing
        for results in runs.values():
            for key in ("self_play", "best_response", "exact_best_response", "versus_naive"):
                if key in results:
                    results[key] = 0 * results[key] - 1.5
            if "policies" in results:
                results["policies"] = -results["policies"]
            if "trajectories" in results:
                results["trajectories"] = results["trajectories"][..., :1, :].repeat(2, -2)  # nobody moves
            if "endpoints" in results:
                results["endpoints"] = 0 * results["endpoints"] - 1.0
                falling = np.linspace(1, 0, len(results["sweep"]))[:, None]
                results["basin_fraction"] = 0 * results["basin_fraction"] + falling
        if runs:
            assert not claim.measure(*(runs[name] for name in claim.runs))[1], claim.statement


# The script as a program


def start(folder, *words):
    command = [sys.executable, "-W", "error::DeprecationWarning", str(ROOT / "meva.py"), *words, "--out", str(folder)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def shapes(game, sweep, seeds, pairs, steps):
    game = GAMES[game]
    one = dict(policies=(pairs, 2, game.n), self_play=(pairs, 2))
    if game.planar:
        square = (29, 29, 2)
        one |= dict(endpoints=square, basin_fraction=(), trajectories=(pairs, steps + 1, 2), field=square)
        one |= dict(final_returns=(2,))
    for seat in ("",) if game.symmetric else ("", "_2"):
        for kind in ("", "exact_") if game.iterated else ("",):
            one |= {f"{kind}best_response{seat}": (pairs, 2), f"{kind}response_policies{seat}": (pairs, 2, game.n)}
        one |= {f"versus_naive{seat}": (pairs, 2), f"versus_naive_policies{seat}": (pairs, 2, game.n)}
    return {name: (sweep, seeds, *shape) for name, shape in one.items()}


def example(words):
    """README's example with these words, as it stands there."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if words in block)
    return found


def test_readmes_own_game_runs_as_it_stands_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(GAMES)
    try:
        exec(example("rock_paper_scissors"), {})
        with np.load(tmp_path / "results/lola_rock_paper_scissors.npz") as file:
            arrays = dict(file)
        assert arrays["policies"].shape == (3, 1, 16, 2, 3) and "exact_best_response" not in arrays
        np.testing.assert_allclose(arrays["self_play"].sum(-1), 0, atol=1e-6)
        assert (tmp_path / "figures/lola_rock_paper_scissors.png").exists()
        game = GAMES["rock_paper_scissors"]
        win = game.f(jnp.array([[C, D, D], [D, C, D]]))  # rock, paper
        np.testing.assert_allclose(win, (-1, 1), atol=1e-6)
        assert run(tmp_path, game="rock_paper_scissors", script="naive")["policies"].shape == (1, 2, 3, 2, 3)
    finally:
        for name in set(GAMES) - before:
            del GAMES[name]


def test_the_script_writes_its_results_and_its_figure(tmp_path, monkeypatch):
    game = "ipd"
    process = start(tmp_path, "--game", game, *flags(**tiny_settings(game, "meva", {})))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert not err
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        f"meva_{game}.checkpoint.npz", f"meva_{game}.npz", f"meva_{game}.png"]  # fmt: skip
    with np.load(tmp_path / f"results/meva_{game}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    config = json.loads(str(arrays["config"]))
    assert config["game"] == game and config["hidden"] == 8 and config["run_on"]["jax"] == jax.__version__
    for name, shape in shapes(game, 2, 2, 3, 4).items():
        assert arrays[name].shape == shape and arrays[name].dtype == np.float32, name
    np.testing.assert_allclose(arrays["sweep"], [0.0, 0.9], rtol=1e-6)
    for curve in ("loss", "td_error", "gradient_norm"):
        assert arrays[curve].shape == (2, 26)
    assert arrays["self_play_curve"].shape == (2, 2)  # two chunks of 13
    assert arrays["params/embed/first/w"].shape == (2, GAMES[game].n + 1, 8)
    scope = {}  # README's example, as it stands there
    monkeypatch.chdir(tmp_path)
    exec(example("run = np.load"), scope)
    chex.assert_shape(scope["step"], (2, 5))
    values = jax.vmap(lambda x: meta_value(scope["params"], GAMES["ipd"], x, 0.9))(arrays["policies"][1, 0])
    chex.assert_tree_all_finite(values)
    np.testing.assert_array_equal(scope["params"].readout["w"], arrays["params/readout/w"][0])

    table = out.splitlines()[-4:]
    assert table[0].split()[0] == "gamma" and table[1].split()[0] == "0" and table[2].split()[0] == "0.9"
    expected = arrays["self_play"][1, :, :, 0]
    assert f"{expected.mean():.3f} +- {expected.std(ddof=1) / math.sqrt(6):.3f}" in table[2]
    returns = [GAMES[game].f(policies) for policies in arrays["policies"].reshape(-1, 2, 5)]
    np.testing.assert_allclose(arrays["self_play"].reshape(-1, 2), returns, atol=1e-5)


def run_all(folder, names):
    """Run scripts on games, `script_game` each. Leaves what each printed, or how it failed, in `script_game.txt`.

    Games that are much like others are run with simpler models, which compile faster, and figures are coarse.
    """
    cola.ORDERS = (0, 1)  # the higher ones take long to compile
    save = Figure.savefig
    Figure.savefig = lambda figure, *args, **settings: save(figure, *args, **settings | {"dpi": 40})
    for name in names:
        script, game = name.split("_", 1)
        simpler = {"cola": dict(semi_gradient=True), "meva": dict(form="V", flip_prob=0.0, target_inertia=0.0)}
        settings = {}
        if game not in FULL and script in simpler:
            settings = dict(share_params=True) | simpler[script]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                run(folder, game=game, script=script, **settings)
            except BaseException:
                traceback.print_exc(file=printed)
        (folder / f"{name}.part").write_text(printed.getvalue())
        os.replace(folder / f"{name}.part", folder / f"{name}.txt")


@pytest.fixture(scope="session", autouse=True)
def every_run(request, tmp_path_factory):
    """A folder where two other processes run every script on every game while the other tests go on."""
    items = [item for item in request.session.items if item.name.startswith("test_every_script_runs_on_every_game")]
    names = ["{script}_{game}".format(**item.callspec.params) for item in items]
    if not names:
        yield
        return
    folder = tmp_path_factory.mktemp("every")
    environment = os.environ | {"TMPDIR": str(folder)}
    shares = names[::2], names[1::2]
    processes = [subprocess.Popen([sys.executable, __file__, folder, *share], env=environment) for share in shares]
    yield folder, processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_on_every_game(script, game, every_run):
    tmp_path, processes = every_run
    printed = tmp_path / f"{script}_{game}.txt"
    while not printed.exists():
        ended = all(process.poll() is not None for process in processes)
        assert not ended or printed.exists(), "the processes that run them ended"
        time.sleep(0.1)
    out = printed.read_text()
    assert f"wrote {tmp_path}/results/{script}_{game}.npz" in out, out
    with np.load(tmp_path / f"results/{script}_{game}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    sweep = arrays["sweep"].shape[0]
    assert sweep == (1 if script == "naive" else 2)
    expected = shapes(game, sweep, 2, 3, 4)
    for name, shape in expected.items():
        assert arrays[name].shape == shape and arrays[name].dtype == np.float32, name
    assert {name for name in arrays if name.endswith("_2")} <= expected.keys()
    readme = (ROOT / "README.md").read_text()
    for name in arrays:
        assert f"`{name.split('/')[0].removesuffix('_2')}" in readme, f"README.md does not explain {name}"
    assert hasattr(SCRIPTS[script], "train") == ("loss" in arrays)
    if "loss" in arrays and game in FULL:  # of asymmetric games each player has a model
        assert any(name.startswith("params/1/") for name in arrays) != GAMES[game].symmetric
    assert (script == "meva" and GAMES[game].planar) == ("values" in arrays)
    image = imread(tmp_path / f"figures/{script}_{game}.png")
    assert min(image.shape[:2]) > 130 and image.std() > 0.05


def shared_blocks(text):
    """The text of each shared block of a script, by its name."""
    parts = re.split(r"^# --- (shared: .*|end shared) ---$", text, flags=re.MULTILINE)
    opened, closed = parts[1::4], parts[3::4]
    assert all(name.startswith("shared: ") for name in opened) and set(closed) <= {"end shared"}
    assert len(opened) == len(closed) == len(set(opened))
    return dict(zip(opened, parts[2::4]))


def check_shared_blocks(texts):
    copies = [block for text in texts for block in shared_blocks(text).items()]
    assert len(copies) > 30
    for name in dict(copies):
        texts = [text for other, text in copies if other == name]
        assert len(texts) > 1 and len(set(texts)) == 1, f"copies of the block {name} differ, or there is only one"


def test_shared_blocks_are_identical_everywhere():
    texts = [pathlib.Path(script.__file__).read_text() for script in SCRIPTS.values()]
    check_shared_blocks(texts)
    for i, text in enumerate(texts):
        for block in shared_blocks(text).values():
            middle = text.index(block) + len(block) // 2
            changed = text[:middle] + chr(ord(text[middle]) ^ 1) + text[middle + 1 :]
            with pytest.raises(AssertionError, match="differ"):
                check_shared_blocks([*texts[:i], changed, *texts[i + 1 :]])


def test_each_gradient_can_be_copied_alone():
    """Only what its source says, JAX and simultaneous_gradient, on a game that is not in games.py."""

    def copied(script, *names):
        scope = dict(jax=jax, jnp=jnp, dataclasses=dataclasses, Game=Game, Config=object)
        scope |= dict(simultaneous_gradient=simultaneous_gradient, partial=partial)
        for name in names:
            exec(inspect.getsource(getattr(script, name)), scope)
        return scope[names[-1]], scope

    x, alpha = jnp.array([[0.3], [-0.7]]), 0.2
    naive_gradient, _ = copied(naive, "naive_gradient")
    own = x + COUPLING * x[::-1]  # f_i = -(x_i + c x_j)^2 / 2
    np.testing.assert_allclose(naive_gradient(BOWL.f, x), -own, rtol=1e-6)
    lola_copy, _ = copied(lola, "lola_gradient")
    hola_copy, _ = copied(hola, "hola_gradient")
    ahead = own - alpha * COUPLING * own[::-1]
    expected = -ahead * (1 - alpha * COUPLING**2)
    np.testing.assert_allclose(lola_copy(BOWL.f, x, alpha), expected, rtol=1e-5)
    np.testing.assert_allclose(hola_copy(BOWL.f, x, alpha, 1), expected, rtol=1e-5)

    network = "linear_init", "linear", "normed_linear", "mlp_init", "mlp", "Model"
    equation = "model_gradient", "both_sides", "consistency_loss", "cola_gradient"
    cola_copy, scope = copied(cola, *network, *equation)
    params = scope["Model"](**vars(cola.model_init(jax.random.key(0), BOWL, tiny("logistic", "cola"))))
    chex.assert_shape(cola_copy(params, BOWL, x, alpha), (2, 1))
    chex.assert_shape(scope["consistency_loss"](params, BOWL, x, alpha), ())
    meva_copy, scope = copied(meva, *network, "meta_quantiles", "meta_value", "model_gradient", "meva_gradient")
    params = scope["Model"](**vars(meva.model_init(jax.random.key(0), BOWL, tiny("logistic"))))
    chex.assert_shape(scope["meta_value"](params, BOWL, x, 0.9), (2,))
    one_pass = scope["model_gradient"](params, BOWL, x, 0.9)
    np.testing.assert_allclose(meva_copy(params, BOWL, x, 0.9, types.SimpleNamespace(form="V")), one_pass, rtol=1e-6)


@pytest.mark.parametrize(
    "script, changes", [("meva", {}), ("meva", dict(form="V", target_inertia=0.0)), ("cola", {}),
                        ("cola", dict(semi_gradient=True, share_params=False))],
)  # fmt: skip
def test_flops_counted_by_hand_are_those_of_the_compiled_program(script, changes):
    """All but a few percent of them: XLA counts the elementwise operations, too, few at this width."""
    config = tiny("ipd", script, hidden=256, batch_size=32, **changes)
    counts = {}
    for name, function, args, _, _, _, flops in SCRIPTS[script].parts(jax.random.key(0), config):
        if flops:
            counts[name] = flops / jax.jit(function).lower(*args).compile().cost_analysis()["flops"]
    assert counts.keys() in ({"exploration", "rollout", "targets and loss"}, {"the whole step"})
    assert all(0.93 < share < 1 for share in counts.values()), counts


def test_the_benchmark_prints_its_tables_and_writes_nothing(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        meva.main(["--benchmark", "--game", "logistic", *flags(**tiny_settings("logistic", "meva", {}))])
    out = capsys.readouterr().out
    for label in ("compile", "outer loop, all seeds", "environment steps", "model evaluations", "share of the peak"):
        assert re.search(rf"^{label} +[\d.,]+(%| s| a second)", out, re.MULTILINE), out
    seconds = float(re.search(r"seeds +([\d.]+) s", out)[1])
    flops, rate = map(float, re.search(r"FLOPs +(\S+) GFLOP an outer loop, (\S+) GFLOP/s", out).groups())
    assert rate == pytest.approx(flops / seconds, rel=1e-2)
    assert not list(tmp_path.iterdir())


def test_two_processes_train_as_one_and_end_when_one_is_lost(tmp_path):
    settings = tiny_settings("logistic", "meva", dict(outer_steps=61, num_seeds=4))  # a prime: chunks of one loop

    def start_two():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            by_hand = ["--distributed", "--coordinator", f"localhost:{free.getsockname()[1]}", "--num-processes", "2"]
        words = ["--game", "logistic", *flags(**settings), "--resume", *by_hand, "--process-id"]
        return [start(tmp_path, *words, index) for index in ("0", "1")]

    first, second = start_two()
    for line in first.stdout:
        if re.match(r" *\d+ / 61", line):
            break
    second.kill()
    _, err = first.communicate(timeout=100)
    assert first.returncode == 1, err
    assert "another process was lost" in err and "--resume goes on from the last checkpoint" in err

    whole = run(tmp_path / "one", **settings)
    first, second = start_two()
    outputs = [process.communicate(timeout=100) for process in (first, second)]
    assert first.returncode == second.returncode == 0, outputs
    assert 0 < int(re.search(r"from outer loop (\d+) to 61", outputs[0][0])[1]) < 61
    assert "outer loop" not in outputs[1][0]  # only process 0 prints
    with np.load(tmp_path / "results/meva_logistic.npz") as file:
        assert_same_arrays(whole, dict(file))


def test_importing_a_script_runs_and_parses_nothing(tmp_path):
    code = f"import sys; sys.argv = ['x', '--nonsense']; import games, {', '.join(SCRIPTS)}; print('imported')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == ("imported\n", "", 0)
    assert not list(tmp_path.iterdir())


if __name__ == "__main__":  # the process of `every_run`
    run_all(pathlib.Path(sys.argv[1]), sys.argv[2:])
