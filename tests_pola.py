"""Tests of pola.py, the contribution game and the count of tit-for-tat, to be merged into test_all.py."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import games
import pola
from games import GAMES

SKEW = np.eye(5) - 2 * np.outer(np.arange(5) > 0, np.arange(5) == 0)  # from preconditioned parameters to log-odds
STATES = [(0, 0), (1, 0), (0, 1), (1, 1)]  # actions of both, 1 for C


def plain_returns(x, payoffs, discount=0.96):
    """(2, 5) -> two returns, of complex log-odds, too, by a matrix filled state by state."""
    p = 1 / (1 + np.exp(-x))

    def joint(first, second):
        return [(first if a else 1 - first) * (second if b else 1 - second) for a, b in STATES]

    transition = np.array([joint(p[0, 1 + STATES.index((a, b))], p[1, 1 + STATES.index((b, a))]) for a, b in STATES])
    weights = (1 - discount) * np.array(joint(*p[:, 0])) @ np.linalg.inv(np.eye(4) - discount * transition)
    return weights @ [[payoffs[a, b], payoffs[b, a]] for a, b in STATES]


def plain_objective(x, i, own, alpha, beta, payoffs):
    """Of skewed tables, with an imagined step by complex steps, which are exact, and KL by its definition."""
    y, j = x.astype(complex), 1 - i
    y[i] = own
    nudged = [y + 1e-30j * np.outer(np.arange(2) == j, unit) for unit in np.eye(5)]
    y[j] += alpha * np.array([plain_returns(moved @ SKEW.T, payoffs)[j].imag / 1e-30 for moved in nudged])
    kl = 0
    for old, new in zip(1 / (1 + np.exp(-SKEW @ x[i])), 1 / (1 + np.exp(-SKEW @ own))):
        kl += old * np.log(old / new) + (1 - old) * np.log((1 - old) / (1 - new))
    return plain_returns(y.real @ SKEW.T, payoffs)[i] - beta * kl


def contribution(factor):
    """A player's payoffs by counting who gives."""
    return {(a, b): factor * (a + b) / 2 - a for a, b in STATES}


def test_polas_objective_and_its_gradient_against_a_plain_one():
    rng, game = np.random.default_rng(0), games.make_game("contribution", policy="preconditioned")
    plain = partial(plain_objective, payoffs=contribution(1.33))
    with jax.enable_x64(True):
        objective = partial(pola.pola_objective, game.f, distance=partial(pola.divergence, game))
        value = jax.jit(jax.value_and_grad(objective, argnums=2), static_argnums=1)
        for i, alpha, beta in [(0, 12.0, 0.3), (1, 3.0, 2.0), (1, 0.0, 0.1)]:
            x, own = rng.normal(size=(2, 5)), rng.normal(size=5)
            found, gradient = value(jnp.asarray(x), i, own, alpha, beta)
            np.testing.assert_allclose(found, plain(x, i, own, alpha, beta), rtol=1e-10)
            ahead, behind = ([plain(x, i, own + h * unit, alpha, beta) for unit in np.eye(5)] for h in (1e-5, -1e-5))
            np.testing.assert_allclose(gradient, np.subtract(ahead, behind) / 2e-5, atol=1e-8)


@partial(jax.jit, static_argnames="game")
def step_of(game, x, alpha, beta):
    return pola.pola_step(game.f, x, alpha, beta, partial(pola.divergence, game), 20000, 1e-9)


def test_new_policies_are_maxima_that_move_with_beta_and_go_with_their_players():
    game, x = GAMES["contribution"], np.random.default_rng(1).normal(size=(2, 5))
    alphas = np.array([20.0, 5.0])
    with jax.enable_x64(True):
        x, y = jnp.asarray(x), np.array(step_of(game, x, alphas, 0.1))
        objective = partial(pola.pola_objective, game.f, beta=0.1, distance=partial(pola.divergence, game))
        gradient = jax.jit(jax.value_and_grad(objective, 2))
        for i in (0, 1):
            value, slope = gradient(x, i, y[i], alphas[i])
            assert np.abs(slope).max() < 1e-8 < 1e-3 < np.abs(gradient(x, i, x[i], alphas[i])[1]).max()
            for direction in np.vstack([np.eye(5), -np.eye(5)]):
                assert gradient(x, i, y[i] + 0.05 * direction, alphas[i])[0] < value
        np.testing.assert_allclose(step_of(game, x[::-1], alphas[::-1], 0.1)[::-1], y, atol=1e-5)
        moved = [np.abs(step_of(game, x, np.full(2, 20.0), beta) - x).max() for beta in (0.1, 10, 1e9)]
        assert moved[0] > 10 * moved[1] > 0 and moved[2] < 1e-8
        g, p = games.simultaneous_gradient(game.f, jnp.asarray(x)), 1 / (1 + np.exp(-x))
        found = 1e3 * (step_of(game, x, np.zeros(2), 1e3) - x)
        np.testing.assert_allclose(found, g / p / (1 - p), rtol=1e-2)  # a small step is the natural gradient's


def test_policies_climb_to_the_top_that_is_uphill_from_where_they_are():
    f = lambda x: -((x[:, 0] ** 2 - 1) ** 2)
    y = pola.pola_step(f, jnp.array([[0.5], [-0.5]]), 0.0, 1e-3, lambda x, y: ((y - x) ** 2).sum(1) / 2)
    np.testing.assert_allclose(y, [[1], [-1]], atol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 20.0])
def test_a_step_of_pola_does_not_depend_on_ones_own_parametrisation(alpha):
    """But player 2's does on that of player 1, whose step it imagines in parameters, unless alpha is 0."""
    game, z = GAMES["contribution"], np.random.default_rng(2).normal(size=(2, 5))
    to_log_odds = lambda x: jnp.stack([SKEW @ x[0], x[1]])
    skewed = game._replace(f=lambda x: game.f(to_log_odds(x)), log_odds=to_log_odds)
    with jax.enable_x64(True):
        new = np.array(step_of(game, z, np.full(2, alpha), 0.1))
        found = np.array(step_of(skewed, np.stack([np.linalg.solve(SKEW, z[0]), z[1]]), np.full(2, alpha), 0.1))
    np.testing.assert_allclose(SKEW @ found[0], new[0], atol=1e-4)
    assert np.allclose(found[1], new[1], atol=1e-4) == (alpha == 0) and np.abs(new - z).max(1).min() > 0.1


def test_the_contribution_game_by_counting_who_gives():
    for factor, words in [(1.33, {}), (1.1, dict(payoffs=(0.1, -0.45, 0.55, 0.0)))]:
        game, payoffs = games.make_game("contribution", **words), contribution(factor)
        for a, b in STATES:
            x = jnp.array([[60.0 * a - 30] * 5, [60.0 * b - 30] * 5])
            np.testing.assert_allclose(game.f(x), [payoffs[a, b], payoffs[b, a]], atol=1e-6)


def test_when_players_have_found_tit_for_tat():
    tit_for_tat, shifted = jax.jit(games.plays_tit_for_tat, static_argnums=0), (1.33, 0.665, 1.665, 1.0)
    like = games.make_game("contribution", shifted)  # all payoffs are larger by 1
    for policy in itertools.product((1e-3, 0.999), (0.1, 0.64, 0.66), (0.1, 0.64, 0.66), (0.1, 0.9), (0.5, 0.999)):
        z = np.log(policy) - np.log1p(-np.array(policy))
        for other in (z, np.array([9.0, -9, -9, 9, 9])):
            x = np.stack([z, other])
            found = max(policy[1:3]) < 0.65 and np.mean(plain_returns(x, contribution(1.33))) > 0.8 * 0.33
            assert tit_for_tat(GAMES["contribution"], x) == tit_for_tat(like, x[::-1]) == found
    assert not tit_for_tat(like, jnp.full((2, 5), 9.0))  # all-C
