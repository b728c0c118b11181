"""Every test. `python -m pytest -q -n auto -m "not slow"` runs the quick ones, `-m slow`
the others, in a few minutes each on two CPU cores.

Oracles are independent of the code: closed forms, finite differences in float64,
simulations and plain Python loops. A comment above each section says which it has.

Payoffs by hand are in the order CC, CD, DC, DD, as games are given; `state_distribution`
has DD, CD, DC, CC. The first letter is player 1's action or, of a policy, one's own.
"""

import atexit
import contextlib
import dataclasses
import functools
import gc
import inspect
import io
import itertools
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from functools import partial
from typing import NamedTuple
from unittest import mock

# Most of the tests' time is compiling: programs need not be optimised. To be set before
# jax is imported.
FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_backend_optimization_level=0"

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.quiver import Quiver

import coala
import cola
import games
import hola
import lola
import loqa
import maml
import meva
import mfos
import naive
import plots
import pola
import report
import sos
import tournament
from games import GAMES, Game, simultaneous_gradient

# Many tests run the same programs, in this process and in others: compile each once.
CACHE = os.path.join(
    tempfile.gettempdir(),
    "jax-" + os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())),
)
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
os.environ["TF_CPP_MIN_LOG_LEVEL"] = (
    "3"  # on some CPUs XLA complains of what it has cached itself
)
jax.config.update(
    "jax_num_cpu_devices", 1
)  # in this process, whichever test is the first
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

gc.set_threshold(
    300_000, 50, 50
)  # JAX's tracing makes many objects: a tenth of all time
slow = pytest.mark.slow
long_running = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})

ROOT = pathlib.Path(__file__).parent
C, D = 30.0, -30.0  # log-odds of playing C, D for certain
KINDS = (
    "logistic",
    "matching_pennies",
    "imp",
)  # one game of each: these reach every path of the code
SCRIPTS = {
    script.__name__: script
    for script in (naive, lola, hola, sos, pola, loqa, cola, maml, coala, mfos, meva)
}
TRAINED = ("cola", "meva")  # on several devices
MODELS = (*TRAINED, "maml", "coala", "mfos")
UNSWEPT = ("naive", "maml", "coala", "mfos")
SAMPLERS = ("naive", "lola", "meva")  # that learn from estimates of f, too
ITERATED = ("loqa",)  # that take iterated games alone
VARIANTS = ("exact", "taylor", "taylor-stop", "lookahead")
TINY = {  # for each script, with the settings of TINY_EVAL
    "naive": {},
    "lola": {"alphas": (0.0, 0.5)},
    "hola": {"alphas": (0.0, 0.5), "order": 1},
    "sos": {"alphas": (0.0, 0.5)},
    "pola": {"alphas": (0.0, 0.5), "climb_steps": 9},
    "loqa": {"betas": (0.0, 0.5)},
    "cola": {
        "outer_steps": 20,
        "batch_size": 4,
        "hidden": 8,
        "blocks": 1,
        "alpha_max": 10.0,
        "eval_alphas": (0.0, 0.5),
    },
    "maml": {"outer_steps": 20, "batch_size": 4, "rollout_length": 3},
    "coala": {"outer_steps": 20, "batch_size": 4, "learner_steps": 3},
    "mfos": {"outer_steps": 20, "batch_size": 4, "rollout_length": 3, "hidden": 8},
    "meva": {
        "outer_steps": 20,
        "batch_size": 4,
        "rollout_length": 6,
        "stride": 3,
        "hidden": 8,
        "blocks": 1,
        "quantiles": 3,
        "eval_gammas": (0.0, 0.9),
    },
}
TINY_EVAL = {"num_seeds": 2, "eval_pairs": 3, "eval_steps": 4}


def tiny(game="ipd", script="meva", **changes):
    return SCRIPTS[script].make_config(game, **TINY[script] | TINY_EVAL | changes)


def flags(**settings):
    """Keyword arguments as a command line."""
    words = []
    for name, value in settings.items():
        words += [
            "--no-" * (value is False)
            + "--" * (value is not False)
            + name.replace("_", "-")
        ]
        words += map(
            str,
            value
            if isinstance(value, tuple)
            else [value] * (not isinstance(value, bool)),
        )
    return words


def random_policies(game, count, seed=0):
    return jax.vmap(game.init)(jax.random.split(jax.random.key(seed), count))


def put(x, i, row):
    x = x.copy()
    x[i] = row
    return x


def difference(function, x, step=1e-3):
    """The gradient of a scalar function of a vector, by five points in each direction.

    The error is of order step^4.
    """
    gradient = np.zeros_like(x)
    for k in range(len(x)):
        e = np.zeros_like(x)
        e[k] = step
        around = [function(x + m * e) for m in (-2, -1, 1, 2)]
        gradient[k] = np.dot(around, (1, -8, 8, -1)) / (12 * step)
    return gradient


# --- games.py: the games --------------------------------------------------------------
# Closed forms, returns worked out by hand, and tables of what each game should be.

OUTCOMES = ("DD", "CD", "DC", "CC")  # what both play, player 1's action first
ALL_D = (D,) * 5
TIT_FOR_TAT = (C, D, D, C, C)
SURE = np.array(list(itertools.product((C, D), repeat=5)))  # sure policies, one round
PLAYED = {  # both players' returns where they play CC, CD, DC, DD, player 1 first
    "matching_pennies": ((1, -1), (-1, 1), (-1, 1), (1, -1)),
    "ultimatum": ((5, 5), (5, 5), (8, 2), (0, 0)),
    "stackelberg": ((1, 0), (3, 2), (2, 1), (4, 0)),
    "ipd": ((-1, -1), (-3, 0), (0, -3), (-2, -2)),
    "imp": ((1, -1), (-1, 1), (-1, 1), (1, -1)),
    "chicken": ((0, 0), (-1, 1), (1, -1), (-100, -100)),
    "stag_hunt": ((4, 4), (1, 3), (3, 1), (2, 2)),
    "bach_or_stravinsky": ((3, 2), (0, 0), (0, 0), (2, 3)),
    "hawk_dove": ((1, 1), (0, 2), (2, 0), (-1, -1)),
    "contribution": ((0.33, 0.33), (-0.335, 0.665), (0.665, -0.335), (0, 0)),
}
POINTS = {  # of the other games: a joint policy, and the returns there
    "logistic": ((0, 20), (-14, -16)),  # 2 - 20^4 / 10^4, 0 - 20^4 / 10^4
    "tandem": ((1, 2), (-7, -5)),  # 2 - 9, 4 - 9
    "hamiltonian": ((2, 3), (6, -6)),
    "balduzzi": ((1, 2), (-20.5, 18)),  # -1/2 - 20, -4/2 + 20
    "two_hills": ((-5, 5), (15 / 14, 15 / 14)),  # 2 / (1 + 5 / 2) + 3 / (1 + 5)
}
SETTINGS = {  # step size, extent of the surveyed square, largest look-ahead step
    "logistic": (1, 10, 20),
    "tandem": (0.1, 3, 0.3),
    "hamiltonian": (0.1, 1, 0.5),
    "balduzzi": (0.02, 1, 0.1),
    "two_hills": (5, 10, 20),
    "chicken": (0.1, 10, 1),
}
START = {  # policies start in [-start, start], and models see them over a scale
    "logistic": (8, 10),
    "tandem": (3, 3),
    "hamiltonian": (1, 3),
    "balduzzi": (1, 3),
    "two_hills": (8, 10),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def payoffs_of(name):
    """Both players' payoffs in DD, CD, DC, CC, as player 1 sees them. (4, 2)."""
    cc, cd, dc, dd = PLAYED[name]
    return np.array([dd, cd, dc, cc])


def outcome_chances(x):
    """Of DD, CD, DC, CC after what player 1 sees, by tables (..., 2, 5). (..., 5, 4)"""
    one = sigmoid(x)[..., 0, :]
    two = sigmoid(x)[..., 1, [0, 1, 3, 2, 4]]  # player 1's CD is player 2's DC
    dd = (1 - one) * (1 - two)
    return np.stack([dd, one * (1 - two), (1 - one) * two, one * two], axis=-1)


def table_returns(x, payoffs, discount=0.96):
    """(1 - d) s (I - d P)^-1 payoffs, of tables (..., 2, 5), in float64. (..., 2)"""
    chances = outcome_chances(x)
    start = chances[..., 0, :]
    transposed = np.swapaxes(chances[..., 1:, :], -1, -2)
    shares = np.linalg.solve(np.eye(4) - discount * transposed, start[..., None])
    return (1 - discount) * shares[..., 0] @ payoffs


def test_the_ipd_in_closed_form():
    game = GAMES["ipd"]
    win_stay = (C, C, D, D, C)
    mutual = game.f(jnp.array([TIT_FOR_TAT, TIT_FOR_TAT]))
    np.testing.assert_allclose(mutual, [-1, -1], atol=1e-5)
    # CD and DD by turns: the share of CD is (1 - d) / (1 - d^2) = 1 / 1.96.
    exploited = game.f(jnp.array([win_stay, ALL_D]))
    np.testing.assert_allclose(exploited, [-4.92 / 1.96, -1.92 / 1.96], atol=1e-5)
    gradient = simultaneous_gradient(game.f, jnp.zeros((2, 5)))
    expected = [-0.01, -0.06, -0.06, -0.06, -0.06]
    np.testing.assert_allclose(gradient, [expected, expected], atol=1e-6)


def test_a_pair_of_all_d_gets_dd_at_every_discount():
    """To float32 rounding over 1 - discount, what is left of the linear system."""
    x, payoffs = jnp.array([ALL_D, ALL_D]), payoffs_of("ipd").T
    returns = jax.jit(games.iterated_returns)
    for discount in (0, 0.1, 0.5, 0.9, 0.96, 0.99, 0.999):
        atol = 2 * 2**-23 / (1 - discount)
        found = returns(x, payoffs, discount)
        np.testing.assert_allclose(found, [-2, -2], rtol=0, atol=atol)


@pytest.mark.parametrize("name", POINTS)
def test_returns_of_planar_games_worked_out_by_hand(name):
    x, expected = POINTS[name]
    x = np.float32(x)[:, None]
    np.testing.assert_allclose(GAMES[name].f(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", PLAYED)
def test_returns_of_2x2_games_worked_out_by_hand(name):
    game, played = GAMES[name], PLAYED[name]
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for actions, expected in zip([(C, C), (C, D), (D, C), (D, D)], played):
        x = np.repeat(np.float32(actions)[:, None], game.n, axis=1)
        same(game.f(x), expected)
    same(game.f(np.zeros((2, game.n), np.float32)), np.mean(played, axis=0))
    if game.iterated:  # CD in the first round, and DD from then on
        returns = game.f(jnp.array([TIT_FOR_TAT, ALL_D]))
        same(returns, 0.04 * np.array(played[1]) + 0.96 * np.array(played[3]))
        x = 2 * random_policies(game, 1)[0]
        # float32 rounding, of returns down to -100
        np.testing.assert_allclose(
            game.f(x), table_returns(x, payoffs_of(name)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("make", [games.matrix_game, games.iterated_game])
def test_games_are_symmetric_where_payoffs_are_alike(make):
    assert make("mine", (1, 0, 2, -1), (1, 0, 2, -1)).symmetric
    assert not make("mine", (1, 0, 2, -1), (1, 0, 2, -2)).symmetric


@pytest.mark.parametrize("name", GAMES)
def test_games_are_what_their_entry_says(name):
    game = GAMES[name]
    xs = random_policies(game, 3)
    assert game.name == name
    assert len(game.labels) == game.n
    returns = np.array([game.f(x) for x in xs])
    exchanged = np.array([game.f(x[::-1])[::-1] for x in xs])
    assert np.allclose(returns, exchanged, atol=1e-5) == game.symmetric
    if name in ("matching_pennies", "imp", "hamiltonian"):  # zero-sum
        np.testing.assert_allclose(returns[:, 0], -returns[:, 1], atol=1e-6)
        assert np.abs(returns).max() > 0.1
    default = (2, 10, 100) if game.iterated else (1, 3, 5)
    settings = (game.lr, game.extent, max(game.alphas))
    assert settings == SETTINGS.get(name, default)
    assert game.alphas[0] == 0
    if game.iterated:
        assert game.rules.discount == 0.96


@pytest.mark.parametrize("name", GAMES)
def test_initial_policies_and_what_models_see_of_them(name):
    """Uniform in planar games, else normal: quartiles, of 2000 numbers or more."""
    game = GAMES[name]
    x = np.asarray(random_policies(game, 1000))
    if name in START:
        start, scale = START[name]
        most, quartile = 1, 0.5
        seen = x[0] / scale
    else:
        start = 0.1 if name == "contribution" else 1
        most, quartile = 5, 0.6745
        seen = sigmoid(x[0])
    quartiles = np.quantile(x / start, (0.25, 0.5, 0.75))
    np.testing.assert_allclose(quartiles, (-quartile, 0, quartile), atol=0.08)
    assert 0.99 < np.abs(x / start).max() < most
    np.testing.assert_allclose(game.features(x[0]), seen, rtol=1e-5)
    # A player's features are its own: two gradients take one backward pass.
    changed = put(x[0], 1, x[0, 1] + 1)
    np.testing.assert_array_equal(game.features(changed)[0], game.features(x[0])[0])


def test_the_logistic_game_has_two_fixed_points_and_a_saddle():
    f = GAMES["logistic"].f
    b = np.full((2, 1), 5.0307, np.float32)
    np.testing.assert_allclose(f(b), [3.8584] * 2, atol=1e-4)
    np.testing.assert_allclose(f(-b), [-0.0897] * 2, atol=1e-4)
    gradient = jax.jit(partial(simultaneous_gradient, f))
    step = 0.01
    for x, is_stable in ((b, True), (-b, True), (0 * b, False)):
        np.testing.assert_allclose(gradient(x), 0, atol=1e-4)
        columns = []
        for direction in np.float32([[[step], [0]], [[0], [step]]]):
            change = gradient(x + direction) - gradient(x - direction)
            columns.append(change[:, 0] / (2 * step))
        jacobian = np.stack(columns, axis=1)
        assert (np.linalg.eigvals(jacobian).real.max() < 0) == is_stable


# --- games.py: variants of games ------------------------------------------------------
# By networks written out by hand, by closed forms, and by small games defined here.


def uneven_returns(x):
    """f = (x_1 x_2 - x_1^2, 3 x_2 - x_1 x_2^2): nothing in it is symmetric."""
    one, two = x[:, 0]
    return jnp.stack([one * two - one**2, 3 * two - one * two**2])


def uneven_gradient(x):
    one, two = x[:, 0]
    return np.array([[two - 2 * one], [3 - 2 * one * two]])


UNEVEN = Game(
    name="uneven",
    n=1,
    f=uneven_returns,
    init=lambda key: jax.random.uniform(key, (2, 1)),
    features=lambda x: x * np.array([[3.0], [4.0]]),
    labels=("x",),
    symmetric=False,
    extent=1.0,
)


def test_a_variant_has_the_rules_that_its_name_says():
    ipd = GAMES["ipd"]
    assert games.find_game("ipd") == ipd
    assert games.find_game(UNEVEN) is UNEVEN
    name = "ipd+memory=2+episodes=64+length=50+discount=5e-1+skewed"
    game = games.find_game(name)
    changes = {
        "memory": 2,
        "episodes": 64,
        "length": 50,
        "discount": 0.5,
        "policy": "skewed",
    }
    assert game.rules._asdict() == ipd.rules._asdict() | changes
    assert (game.name, game.n, game.lr) == (name, 21, 8)
    assert game.alphas == ipd.alphas
    x = game.init(jax.random.key(1))
    with mock.patch.object(games, "sampled_returns", lambda *arguments: arguments):
        key, log_odds, *settings = game.sample("a key", x)
    assert key == "a key"
    assert settings == [ipd.rules.payoffs, 0.5, 64, 50]
    np.testing.assert_array_equal(log_odds, game.log_odds(x))
    assert ipd.sample is None
    assert games.find_game("ipd+episodes=1").rules.length == 150


def test_a_variant_has_the_payoffs_and_the_discount_that_its_name_says():
    name = "chicken+payoffs=1,-1,-1,1,-1,1,1,-1e+00"
    game, chicken = games.find_game(name), GAMES["chicken"]
    assert game.name == name
    assert game.rules.payoffs == GAMES["imp"].rules.payoffs
    assert not game.symmetric
    assert (game.lr, game.alphas) == (chicken.lr, chicken.alphas)
    # The plus of a number begins no variant.
    game = games.find_game("imp+payoffs=1e+06,-1E+2,+3,0.5")
    assert game.rules.own == game.rules.other == (1e6, -100, 3, 0.5)
    assert game.symmetric
    game = games.find_game("chicken+payoffs=1,2,3,4,5,6,7,8+discount=0.3")
    x = random_policies(game, 1)[0]
    payoffs = np.array([(4, 8), (2, 7), (3, 6), (1, 5)])  # in DD, CD, DC, CC
    expected = table_returns(x, payoffs, 0.3)
    np.testing.assert_allclose(game.f(x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name, other",
    [
        ("ipd+mlp+discount=0.9", "ipd+discount=0.9+mlp"),
        ("imp+swapped+discount=0.9", "imp+discount=0.9+swapped"),
    ],
)
def test_these_variants_may_come_in_any_order(name, other):
    one, two = games.find_game(name), games.find_game(other)
    x = one.init(jax.random.key(0))
    assert one.rules == two.rules
    np.testing.assert_allclose(one.f(x), two.f(x), rtol=1e-6)
    np.testing.assert_array_equal(one.features(x), two.features(x))


REFUSED_VARIANTS = [
    ("chess", "game takes bach_or_stravinsky, .*, not 'chess'"),
    ("", "game takes bach_or_stravinsky, .*, not ''"),
    ("ipd_mlp", "game takes bach_or_stravinsky, .*, not 'ipd_mlp'"),
    ("ipd+", r"game takes bach_or_stravinsky, .*, not 'ipd\+'"),
    ("a\nb", r"game takes bach_or_stravinsky, .*, not 'a\\nb'"),
    ("ipd+probes=3", r"'ipd\+probes=3': probes is unknown; variants are \+mlp, .*swap"),
    ("ipd+mlp+skewed", "skewed does not go with mlp"),
    ("ipd+skewed+mlp", "mlp does not go with skewed"),
    ("ipd+mlp=", "mlp has no value"),
    ("ipd+mlp+memory=2+mlp", "mlp is given twice"),
    ("tandem+swapped+swapped", "swapped is given twice"),
    ("ultimatum+discount=0.5", "discount takes an iterated game"),
    ("logistic+mlp", "mlp takes an iterated game"),
    ("tandem+memory=2", "memory takes an iterated game"),
    ("balduzzi+episodes=8", "episodes takes an iterated game"),
    ("ultimatum+payoffs=1,2,3,4", "payoffs takes an iterated game"),
    ("logistic+length=9", "length takes an iterated game, and episodes=N before it"),
    ("ipd+length=9+episodes=8", "length takes an iterated game, and episodes=N before"),
    ("ipd+mlp=3", "mlp takes no value"),
    ("ipd+skewed=1", "skewed takes no value"),
    ("imp+swapped=yes", "swapped takes no value"),
    ("ipd+memory=3", "memory takes a number from 1 to 2"),
    ("ipd+memory", "memory takes a number from 1 to 2"),
    ("ipd+memory=1.5", "memory takes a number from 1 to 2"),
    ("ipd+episodes=0", "episodes takes a number from 1 to"),
    ("ipd+episodes=-1", "episodes takes a number from 1 to"),
    ("ipd+episodes=1000001", r"episodes takes a number from 1 to 1e\+06"),
    ("ipd+episodes=8+length=0", "length takes a number from 1 to 100000"),
    ("ipd+episodes=8+length=100001", "length takes a number from 1 to 100000"),
    ("ipd+discount=1", "discount takes a number from 0 to 0.999"),
    ("ipd+discount=nan", "discount takes a number from 0 to 0.999"),
    ("ipd+discount=half", "discount takes a number from 0 to 0.999"),
    ("ipd+payoffs=1,2", r"payoffs takes four numbers with commas \(CC, CD.*or eight"),
    ("ipd+payoffs=1,2,3,x", r"payoffs takes a number from -1e\+06 to 1e\+06"),
    ("ipd+payoffs=1,2,3,inf", r"payoffs takes a number from -1e\+06 to 1e\+06"),
]


@pytest.mark.parametrize("name, said", REFUSED_VARIANTS)
def test_a_variant_that_is_no_good_is_refused(name, said):
    with pytest.raises(ValueError, match=said) as error:
        games.find_game(name)
    assert "\n" not in str(error.value)


def network_log_odds(x, own, other):
    """Of 16 tanh units that see two symbols of one round, each one of -, C, D."""
    w, b, v, c = x[:96].reshape(2, 3, 16), x[96:112], x[112:128], x[128]
    seen = w[0, "-CD".index(own)] + w[1, "-CD".index(other)]
    return v @ np.tanh(seen + b) + c


def log_odds_by_hand(name, x):
    """After init, DD, CD, DC, CC, of one player's parameters. (n,) -> (5,)"""
    if name == "ipd+skewed":  # z_0 = x_0, z_k = x_k - 2 x_0
        return x - 2 * x[0] * np.array([0, 1, 1, 1, 1])
    return [network_log_odds(x, *past) for past in ("--", "DD", "CD", "DC", "CC")]


@pytest.mark.parametrize("name", ["ipd+skewed", "ipd+mlp"])
def test_policies_of_other_kinds_are_tables_in_other_parameters(name):
    game = games.find_game(name)
    x = np.random.default_rng(0).normal(size=(2, game.n)).astype(np.float32)
    expected = np.array([log_odds_by_hand(name, own) for own in x])
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    same(game.log_odds(x), expected)
    same(game.features(x), sigmoid(expected))
    same(game.f(x), table_returns(expected, payoffs_of("ipd")))
    assert game.symmetric
    assert game.labels == GAMES["ipd"].labels


def test_a_network_sees_two_rounds_the_older_one_first():
    """Input k weighs 2^k / 10000 in the first unit: its log-odds say which are on."""
    game = games.find_game("ipd+memory=2+mlp")
    x = np.zeros((2, game.n), np.float32)
    x[0, 16 * np.arange(12)] = 2.0 ** np.arange(12) / 10000
    x[0, 192 + 16] = 1
    inputs = np.round(10000 * np.arctanh(np.asarray(game.log_odds(x)[0], float)))
    for label, letters in (("init", "----"), ("CD", "--CD"), ("DC CD", "DCCD")):
        places = ["-CD".index(letter) + 3 * i for i, letter in enumerate(letters)]
        expected = sum(2**place for place in places)
        assert inputs[game.labels.index(label)] == expected


@pytest.mark.parametrize(
    "variant, n, lr, deviation",
    [
        ("", 5, 2, 0.1),
        ("+skewed", 5, 2, 0.1),
        ("+memory=2", 21, 8, 0.1),
        ("+mlp", 129, 1, 0.25),
        ("+memory=2+mlp", 225, 1, 0.25),
    ],
)
def test_parameters_step_sizes_and_scales_of_variants(variant, n, lr, deviation):
    """In the contribution game policies start close to even chances."""
    ipd = games.find_game("ipd" + variant)
    game = games.find_game("contribution" + variant)
    assert (ipd.n, ipd.lr) == (game.n, game.lr) == (n, lr)
    x = ipd.init(jax.random.key(2))
    assert x.shape == (2, n)
    np.testing.assert_allclose(game.init(jax.random.key(2)), deviation * x, rtol=1e-5)


def test_how_random_networks_and_skewed_tables_start():
    x = random_policies(games.find_game("ipd+mlp"), 2000)
    # Weights and biases of the units; weights and bias of the second layer.
    expected = np.repeat([1, 1 / 3], [112, 17])
    deviations = np.std(x, axis=(0, 1))
    np.testing.assert_allclose(deviations, expected, rtol=0.06)  # of 4000 numbers
    skewed = games.find_game("ipd+skewed")
    key = jax.random.key(0)
    policies = skewed.log_odds(skewed.init(key))
    np.testing.assert_allclose(policies, GAMES["ipd"].init(key), atol=1e-5)


def test_a_swapped_game_has_its_players_exchanged():
    swapped = games.swapped(UNEVEN)
    x = jnp.array([[7.0], [8.0]])
    returns = np.array([3 * 7 - 8 * 7**2, 8 * 7 - 8**2])  # UNEVEN has x_1 = 8, x_2 = 7
    np.testing.assert_array_equal(swapped.f(x), returns)
    key = jax.random.key(0)
    np.testing.assert_array_equal(swapped.init(key), UNEVEN.init(key)[::-1])
    np.testing.assert_array_equal(swapped.features(x), [[4 * 7], [3 * 8]])
    assert (swapped.name, swapped.rules, swapped.sample) == ("uneven", None, None)
    sampled = UNEVEN._replace(sample=lambda key, x: key * UNEVEN.f(x))
    np.testing.assert_array_equal(games.swapped(sampled).sample(2, x), 2 * returns)


def test_a_swapped_iterated_game_has_its_payoffs_exchanged():
    game = games.find_game("bach_or_stravinsky+skewed+discount=0.5")
    swapped = games.swapped(game)
    exchanged = game.rules._replace(own=game.rules.other, other=game.rules.own)
    assert swapped.rules == exchanged
    x = random_policies(game, 1)[0]
    np.testing.assert_array_equal(swapped.log_odds(x), game.log_odds(x))
    # Payoffs in DD, CD, DC, CC: now it is player 2 that prefers C.
    payoffs = np.array([(3, 2), (0, 0), (0, 0), (2, 3)])
    expected = table_returns(game.log_odds(x), payoffs, 0.5)
    np.testing.assert_allclose(swapped.f(x), expected, rtol=1e-5)
    by_name = games.find_game("imp+swapped")
    assert by_name.rules == games.swapped(GAMES["imp"]).rules


# --- games.py: returns ----------------------------------------------------------------
# A simulation round by round; a plain loop over sampled episodes, and finite
# differences of it; means of many estimates.


def pasts_of(memory):
    """All that a player may have seen: "init", "DD", ..., and "DD DD", ..."""
    pasts = ["init"]
    for rounds in range(1, memory + 1):
        pasts += [" ".join(past) for past in itertools.product(OUTCOMES, repeat=rounds)]
    return pasts


def following(past, outcome, memory):
    """What a player sees after this past and one more round."""
    rounds = [*past.replace("init", "").split(), outcome]
    return " ".join(rounds[-memory:])


def mirrored(past):
    """What player 2 sees where player 1 sees this."""
    if past == "init":
        return past
    return " ".join(outcome[::-1] for outcome in past.split())


def simulated_distribution(x, discount, memory=1, rounds=1000):
    """Discounted shares of DD, CD, DC, CC, with the chance of each past by rounds."""
    pasts = pasts_of(memory)
    one = dict(zip(pasts, sigmoid(x[0]), strict=True))
    two = dict(zip(pasts, sigmoid(x[1]), strict=True))
    shares = dict.fromkeys(OUTCOMES, 0.0)
    now = {"init": 1.0}
    for t in range(rounds):
        after = dict.fromkeys(pasts, 0.0)
        for past, chance in now.items():
            chances_1 = {"C": one[past], "D": 1 - one[past]}
            chances_2 = {"C": two[mirrored(past)], "D": 1 - two[mirrored(past)]}
            for outcome in OUTCOMES:
                then = chance * chances_1[outcome[0]] * chances_2[outcome[1]]
                shares[outcome] += (1 - discount) * discount**t * then
                after[following(past, outcome, memory)] += then
        now = after
    return np.array(list(shares.values()))


def test_what_players_see_in_words():
    for memory in (1, 2):
        labels = list(games.observations(memory))
        assert labels == pasts_of(memory)
        others = games.seen_by_the_other(memory)
        assert [labels[i] for i in others] == [mirrored(past) for past in labels]
        then = games.next_observations(memory)
        for past, row in zip(labels, then):
            expected = [following(past, outcome, memory) for outcome in OUTCOMES]
            assert [labels[i] for i in row] == expected


@pytest.mark.parametrize("memory, discount", [(1, 0.96), (2, 0.8)])
def test_state_distribution_against_a_simulation(memory, discount):
    x = 2 * np.random.default_rng(0).normal(size=(2, len(pasts_of(memory))))
    distribution = jax.jit(games.state_distribution)(np.float32(x), discount)
    expected = simulated_distribution(x, discount, memory)
    np.testing.assert_allclose(distribution, expected, atol=1e-5)  # float32 rounding


def test_returns_are_alike_alone_and_in_batches_of_any_size():
    """And derivatives; at a discount of .999, where rounding weighs a thousand times."""
    game = games.find_game("ipd+discount=0.999")
    xs = random_policies(game, 1000)

    def returns_and_slope(x):
        returns, pull_back = jax.vjp(game.f, x)
        return returns, pull_back(jnp.array([1.0, 0.5]))[0]

    alone = jax.jit(returns_and_slope)
    together = jax.jit(jax.vmap(returns_and_slope))
    exact = table_returns(xs, payoffs_of("ipd"), 0.999)
    few = [alone(x) for x in xs[:7]]
    # float32 rounding of numbers up to 3, over 1 - discount.
    same = partial(np.testing.assert_allclose, rtol=0, atol=3 * 2**-23 / 0.001)
    for count in (7, 64, 1000):
        returns, slopes = together(xs[:count])
        same(returns, exact[:count])
        for i, (its_returns, its_slope) in enumerate(few):
            same(returns[i], its_returns)
            same(slopes[i], its_slope)


def test_returns_are_computed_in_float32_at_least():
    """In half precision x alone is rounded, and what is returned."""
    game, payoffs, key = GAMES["ipd"], payoffs_of("ipd"), jax.random.key(1)
    half = (3 * random_policies(game, 1)[0]).astype(jnp.bfloat16)
    x = half.astype(jnp.float32)
    same = partial(np.testing.assert_allclose, rtol=2**-8)
    returns = jax.jit(game.f)(half)
    assert returns.dtype == jnp.bfloat16
    same(returns.astype(jnp.float32), table_returns(x, payoffs))
    sample = jax.jit(lambda x: games.sampled_returns(key, x, payoffs.T, 0.9, 3, 20))
    sampled = sample(half)
    assert sampled.dtype == jnp.bfloat16
    same(sampled.astype(jnp.float32), sample(x))


@slow
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.96])
def test_two_and_three_rounds_of_memory_in_double_precision(discount):
    """Against a simulation; a third round is of no use where nothing depends on it."""
    distribution = jax.jit(games.state_distribution, static_argnums=1)
    with jax.enable_x64(True):
        x = 2 * np.random.default_rng(0).normal(size=(2, 21))
        two = distribution(x, discount)
        simulated = simulated_distribution(x, discount, memory=2)
        np.testing.assert_allclose(two, simulated, atol=1e-9)
        three = np.concatenate([x, *[x[:, 5:]] * 4], axis=1)
        np.testing.assert_allclose(distribution(three, discount), two, atol=1e-12)


def drawn_episodes(key, x, episodes, length):
    """What player 1 sees and what both play in each round, (episodes,) both."""
    seen = np.zeros(episodes, int)
    rounds = []
    for key_round in jax.random.split(key, length):
        uniform = np.asarray(jax.random.uniform(key_round, (episodes,)))
        reached = outcome_chances(x)[seen].cumsum(axis=1)[:, :3]
        played = (uniform[:, None] >= reached).sum(axis=1)
        rounds.append((seen, played))
        seen = 1 + played
    return rounds


def loaded_dice(x, at, rounds, payoffs, discount):
    """Returns estimated from episodes that were drawn by the policies `at`. (2,)

    The sum of discount^t (w r + (1 - w) b) over rounds, with weights that sum to 1, and
    the mean over episodes; w is the product of p(u; x) / p(u; at) over u <= t, and b is
    the mean reward of the other episodes.
    """
    total, scale, weight = 0.0, 0.0, 1.0
    for t, (seen, played) in enumerate(rounds):
        ratio = outcome_chances(x)[seen, played] / outcome_chances(at)[seen, played]
        weight = weight * ratio  # (episodes,)
        rewards = payoffs[played].T  # (2, episodes)
        others = (rewards.sum(axis=1)[:, None] - rewards) / (len(played) - 1)
        estimate = weight * rewards + (1 - weight) * others
        total = total + discount**t * estimate.mean(axis=1)
        scale = scale + discount**t
    return total / scale


@pytest.mark.parametrize("episodes, length", [(4, 5), (5, 2)])
def test_sampled_returns_with_fewer_episodes_than_rounds_or_more_against_a_loop(
    episodes, length
):
    """The value, all first derivatives, and second ones in a direction."""
    discount = 0.7
    payoffs = payoffs_of("bach_or_stravinsky")
    key = jax.random.key(1)
    x, along = np.random.default_rng(0).normal(size=(2, 2, 5))
    rounds = drawn_episodes(key, x, episodes, length)

    def slopes(at, player):
        def one_return(flat):
            return loaded_dice(flat.reshape(2, 5), x, rounds, payoffs, discount)[player]

        return difference(one_return, at.ravel()).reshape(2, 5)

    def sampled(x):
        return games.sampled_returns(key, x, payoffs.T, discount, episodes, length)

    derive = jax.jit(lambda *at: jax.jvp(jax.jacobian(sampled), *at))
    first, second = derive((np.float32(x),), (np.float32(along),))
    # Sums over episodes in float32, against float64.
    same = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    same(jax.jit(sampled)(x), loaded_dice(x, x, rounds, payoffs, discount))
    step = 1e-3
    for player in (0, 1):
        same(first[player], slopes(x, player))
        change = slopes(x + step * along, player) - slopes(x - step * along, player)
        same(second[player], change / (2 * step))


UNBIASED = {  # what is estimated, and the look-ahead step if it is a form of LOLA
    "f": None, "naive": None, "exact": 3.0, "taylor": 20.0, "taylor-stop": 20.0,
}  # fmt: skip


def estimated_by(what, x, f, f_ahead=None):
    """A return or a gradient from estimates of f; of LOLA what look-ahead adds."""
    alpha = UNBIASED[what]
    if what == "f":
        return f(x)
    if what == "naive":
        return simultaneous_gradient(f, x)
    looking = lola.lola_gradient(f, x, alpha, what, f_ahead)
    not_looking = lola.lola_gradient(f, x, 0.0, what, f_ahead)
    return (looking - not_looking) / alpha


@pytest.mark.parametrize(
    "name, episodes, estimated",
    [
        ("ipd", 2, ("f", "naive")),
        pytest.param("ipd", 2, ("taylor", "taylor-stop"), marks=slow),
        pytest.param("ipd", 32, ("exact", "taylor", "taylor-stop"), marks=slow),
        pytest.param("bach_or_stravinsky", 32, ("f", "naive", "exact"), marks=slow),
        pytest.param(
            "bach_or_stravinsky+memory=2", 32, ("naive", "taylor-stop"), marks=slow
        ),
    ],
)
def test_sampled_returns_and_their_derivatives_are_unbiased(name, episodes, estimated):
    """Means of many small estimates, within 4 standard errors.

    Of two episodes each is the other's baseline: if an episode were part of its own,
    gradients would be half as long. Of the exact form the estimate is unbiased only as
    far as the imagined step is small or sure.
    """
    game = games.find_game(f"{name}+discount=0.7+episodes={episodes}+length=25")
    count = 64_000 // episodes
    x = game.init(jax.random.key(3))

    def estimate(key):
        fs = [partial(game.sample, key) for key in jax.random.split(key)]
        return {what: estimated_by(what, x, *fs) for what in estimated}

    keys = jax.random.split(jax.random.key(0), (20, count // 20))
    estimates = long_running(lambda keys: jax.lax.map(jax.vmap(estimate), keys))(keys)
    for what in estimated:
        each = np.asarray(estimates[what], float).reshape(count, -1)
        exact = jax.jit(lambda x, what=what: estimated_by(what, x, game.f))(x)
        errors = (each.mean(0) - np.ravel(exact)) / (each.std(0) / count**0.5)
        assert np.abs(errors).max() < 4, (what, errors)


@slow
@pytest.mark.parametrize(
    "episodes, count, cosine, most, error",
    [(128, 100, 0.945, 0.03, (0.01, 0.02)), (2048, 8, 0.994, 0.01, (0, 0.006))],
)
def test_how_good_sampled_gradients_are(episodes, count, cosine, most, error):
    """The cosine to players' exact gradients, and the root mean square error of f.

    Means over random policies. The cosines are of an independent implementation.
    """
    game = games.find_game(f"ipd+episodes={episodes}")
    xs = random_policies(game, 100)[:count]
    keys = jax.random.split(jax.random.key(1), count)

    def estimate(pair):
        f = partial(game.sample, pair[0])
        return f(pair[1]), simultaneous_gradient(f, pair[1])

    estimate_all = jax.jit(lambda pairs: jax.lax.map(estimate, pairs, batch_size=20))
    returns, gradients = estimate_all((keys, xs))
    exact = jax.vmap(partial(simultaneous_gradient, game.f))(xs)
    norms = jnp.linalg.norm(gradients, axis=-1) * jnp.linalg.norm(exact, axis=-1)
    cosines = (gradients * exact).sum(axis=-1) / norms
    errors = np.asarray(returns - jax.vmap(game.f)(xs))
    assert abs(cosines.mean() - cosine) < most
    assert abs(errors.mean()) < 0.003
    assert error[0] < np.sqrt((errors**2).mean()) < error[1]


@pytest.mark.parametrize("episodes, length", [(3, 1), (1, 7)])
def test_saturated_policies_and_single_episodes_are_sampled(episodes, length):
    """Tit-for-tat against all D is sure: first CD, and DD in the rounds after it."""
    game = games.find_game(f"ipd+episodes={episodes}+length={length}")
    x = 10 * jnp.array([TIT_FOR_TAT, ALL_D])
    f = partial(game.sample, jax.random.key(0))
    value_and_slope = jax.jit(lambda x: (f(x), simultaneous_gradient(f, x)))
    returns, gradient = value_and_slope(x)
    shares = 0.96 ** np.arange(length)
    shares = shares / shares.sum()
    expected = shares[0] * np.array([-3, 0]) + (1 - shares[0]) * np.array([-2, -2])
    np.testing.assert_allclose(returns, expected, atol=1e-5)
    assert np.isfinite(gradient).all()


# --- games.py: following a rule, evaluation -------------------------------------------
# Plain loops in NumPy with gradients in closed form or by finite differences; best
# responses by value iteration and by brute force.


def test_a_rule_is_followed_step_by_step():
    step = lambda x, key: 2 * x + jax.random.normal(key, (2, 3))
    start, key = jnp.ones((2, 3)), jax.random.key(0)
    path = [start]
    for drawn in jax.random.split(key, 4):
        path.append(step(path[-1], drawn))
    np.testing.assert_allclose(games.trajectory(step, start, 4, key), path, rtol=1e-6)
    np.testing.assert_allclose(games.follow(step, start, 4, key), path[-1], rtol=1e-6)
    doubled = games.trajectory(lambda x: 2 * x, start, 2)
    np.testing.assert_array_equal(doubled, [start, 2 * start, 4 * start])
    np.testing.assert_array_equal(games.follow(lambda x: 2 * x, start, 0), start)
    for agent, other in ((0, 1), (1, 0)):
        both = games.beside(step, lambda x: x - x.sum(), agent)(start, key)
        np.testing.assert_array_equal(both[agent], step(start, key)[agent])
        np.testing.assert_array_equal(both[other], [-5, -5, -5])


def best_response_value(policy, rewards, discount):
    """What player 2 gets at best beside player 1's policy, by value iteration.

    V(past) = max over its actions of the mean of (1 - d) reward + d V(next past), over
    player 1's actions. Pasts and `rewards` have player 1's letter first.
    """
    memory = {5: 1, 21: 2}[len(policy)]
    cooperates = dict(zip(pasts_of(memory), sigmoid(policy), strict=True))
    value = dict.fromkeys(cooperates, 0.0)

    def after(past, outcome):
        later = value[following(past, outcome, memory)]
        return (1 - discount) * rewards[outcome] + discount * later

    def worth(past, action):
        chance = cooperates[past]
        if_c = after(past, "C" + action)
        if_d = after(past, "D" + action)
        return chance * if_c + (1 - chance) * if_d

    for _ in range(int(12 / (1 - discount))):  # d^n is 6e-6 or less
        value = {past: max(worth(past, "C"), worth(past, "D")) for past in value}
    return value["init"]


def test_exact_best_responses_against_value_iteration():
    """In a game in which it matters whose payoffs are whose."""
    game = games.find_game("ipd+payoffs=-1,-3,0,-2,3,-1,4,1+discount=0.9")
    rewards = {
        "CC": 3,
        "CD": 4,
        "DC": -1,
        "DD": 1,
    }  # player 2's, player 1's letter first
    payoffs = np.array([(-2, 1), (-3, 4), (0, -1), (-1, 3)])
    xs = 2 * random_policies(game, 24)
    exact = jax.jit(jax.vmap(partial(games.exact_best_response, game)))(xs)
    np.testing.assert_array_equal(exact[:, 0], xs[:, 0])  # player 1 stands still
    assert set(np.unique(exact[:, 1])) == {-30.0, 30.0}
    returns = table_returns(exact, payoffs, 0.9)[:, 1]
    expected = [best_response_value(x[0], rewards, 0.9) for x in xs]
    np.testing.assert_allclose(returns, expected, atol=1e-4)


def test_learned_best_responses_come_close_to_exact_ones():
    """By 1000 steps of gradient ascent; and none is better, but for rounding.

    Ascent slows down towards sure policies: what is left after 1000 steps is small.
    """
    game, count = GAMES["ipd"], 8
    xs = random_policies(game, count)
    starts = xs.at[:, 1].set(xs[:, 0])
    learn = jax.jit(jax.vmap(lambda x: games.best_response(game, x, 2.0, 1000)))
    learned = learn(starts)
    np.testing.assert_array_equal(learned[:, 0], xs[:, 0])
    gain = best_of_sure(xs, payoffs_of("ipd"), 0.96)
    gain = gain - table_returns(learned, payoffs_of("ipd"))[:, 1]
    assert gain.min() > -1e-4
    assert gain.max() < 0.02, gain


def best_of_sure(xs, payoffs, discount):
    """What player 2 gets by the best of the 32 sure tables beside each player 1."""
    returns = []
    for row in SURE:
        tables = np.array(xs, float)
        tables[:, 1] = row
        returns.append(table_returns(tables, payoffs, discount)[:, 1])
    return np.max(returns, axis=0)


@pytest.mark.parametrize(
    "name",
    [
        "ipd+discount=0.999",
        "ipd+payoffs=1000,998,1001,999+discount=0.99",
        pytest.param("chicken+discount=0.999", marks=slow),
    ],
)
def test_exact_best_responses_in_long_games(name):
    """Where payoffs are much alike, or rounding made policy iteration repeat for ever.

    `cycled` is a policy to which that had happened.
    """
    game = games.find_game(name)
    xs = 2 * random_policies(game, 1000)
    cycled = jnp.array([1.65509, -0.911662, -0.993471, 1.752711, 0.751890])
    xs = xs.at[0, 0].set(cycled)
    exact = jax.jit(jax.vmap(partial(games.exact_best_response, game)))(xs)
    payoffs = np.transpose(game.rules.payoffs)
    returns = table_returns(exact, payoffs, game.rules.discount)[:, 1]
    lost = best_of_sure(xs, payoffs, game.rules.discount) - returns
    assert lost.min() > -1e-9 * np.ptp(payoffs)
    assert lost.max() < 1e-6 * np.ptp(payoffs)


@slow
def test_exact_best_responses_that_see_two_rounds_against_value_iteration():
    game = games.find_game("bach_or_stravinsky+memory=2")
    rewards = {"DD": 3, "CD": 0, "DC": 0, "CC": 2}
    xs = 2 * random_policies(game, 16)
    exact = jax.jit(jax.vmap(partial(games.exact_best_response, game)))(xs)
    returns = jax.jit(jax.vmap(game.f))(exact)[:, 1]
    expected = [best_response_value(x[0], rewards, 0.96) for x in xs]
    np.testing.assert_allclose(returns, expected, atol=1e-4)


@slow
def test_beside_an_agent_that_sees_one_round_two_are_of_no_use():
    one, two = (
        GAMES["bach_or_stravinsky"],
        games.find_game("bach_or_stravinsky+memory=2"),
    )
    xs = random_policies(one, 32)
    longer = jnp.concatenate([xs, *[xs[..., 1:]] * 4], axis=-1)
    respond = jax.jit(jax.vmap(partial(games.exact_best_response, two)))
    returns = jax.jit(jax.vmap(two.f))(respond(longer))[:, 1]
    expected = best_of_sure(xs, payoffs_of(one.name), 0.96)
    np.testing.assert_allclose(returns, expected, atol=1e-4)


LR, STEPS, PAIRS = 0.1, 3, 3  # of the evaluations below
POLICIES_OF = {  # the names of returns and of the policies that got them
    "best_response": "response_policies",
    "versus_naive": "versus_naive_policies",
    "versus_opponent": "versus_opponent_policies",
}


def followed(rule, x, keys):
    """The joint policies that a rule visits, x first."""
    path = [np.asarray(x)]
    for key in keys:
        path.append(np.asarray(rule(path[-1], key)))
    return np.array(path)


def ends_beside_others(agent, rules, places, keys):
    """Where both policies end in each play of an agent, 0 or 1.

    Learners start at `start`, and the agent follows its rule. Where the other learns
    the best response, from `newcomers`, the agent stays as it is in `ends`.
    """
    rule, naive, opponent = rules
    start, newcomers, ends = places
    other = 1 - agent

    def respond(x, key):
        return put(naive(x), agent, x[agent])

    def beside_naive(x, key):
        return put(np.asarray(rule(x, key)), other, naive(x)[other])

    def beside_opponent(x, key):
        return put(np.asarray(rule(x, key)), other, opponent(x)[other])

    begin = put(newcomers, agent, ends[agent])
    plays = {
        "best_response": followed(respond, begin, keys)[-1],
        "versus_naive": followed(beside_naive, start, keys)[-1],
    }
    if opponent is not None:
        plays["versus_opponent"] = followed(beside_opponent, start, keys)[-1]
    return plays


def check_plays(results, pair, agent, plays, f, show):
    """That results have these returns and policies, the agent's first."""
    seat = ("", "_2")[agent]
    order = [agent, 1 - agent]
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for name, x in plays.items():
        same(results[name + seat][pair], f(x)[np.array(order)])
        same(results[POLICIES_OF[name] + seat][pair], show(x)[order])


AGENTS = np.array([[1.5], [-2.5]])  # where they start


def drawing_step(x, key, share=0.5):
    return share * x + 0.1 * jax.random.normal(key, x.shape)


def step_beside(agent):
    return partial(drawing_step, share=0.7 + 0.2 * agent)


def opponent_step(x):
    return 0.8 * x[::-1] - 0.3


@functools.cache
def uneven_evaluation():
    """Of a rule that draws, with another one beside learners."""
    evaluate = partial(
        games.evaluate_game,
        game=UNEVEN._replace(sample=lambda key, x: 1 / 0),  # nobody asks for it here
        step=drawing_step,
        lr=LR,
        steps=STEPS,
        pairs=PAIRS,
        step_beside=step_beside,
        opponent_step=opponent_step,
        agent_start=jnp.array(AGENTS),
        draws=True,
    )
    return jax.jit(evaluate)(jax.random.key(7))


@pytest.mark.parametrize("pair", [0, 2])
def test_evaluation_of_a_rule_that_draws_against_a_loop(pair):
    """Self-play and all plays beside others, of player 1's agents and player 2's."""
    results = uneven_evaluation()
    naive = lambda x: x + LR * uneven_gradient(x)
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    key = jax.random.split(jax.random.key(7), PAIRS)[pair]
    key_start, key_response = jax.random.split(key)
    keys = jax.random.split(jax.random.fold_in(key, 2), STEPS)
    path = followed(drawing_step, AGENTS, keys)
    same(results["trajectories"][pair], path[..., 0])
    same(results["self_play"][pair], UNEVEN.f(path[-1]))
    same(results["policies"][pair], path[-1])
    newcomers = np.asarray(UNEVEN.init(key_response))
    for agent in (0, 1):
        start = put(np.asarray(UNEVEN.init(key_start)), agent, AGENTS[agent])
        places = (start, newcomers, path[-1])
        rules = (step_beside(agent), naive, opponent_step)
        plays = ends_beside_others(agent, rules, places, keys)
        check_plays(results, pair, agent, plays, UNEVEN.f, lambda x: x)


def test_the_points_of_a_survey_draw_by_keys_of_their_own():
    results = uneven_evaluation()
    key_survey = jax.random.fold_in(jax.random.key(7), PAIRS)
    keys = jax.random.split(key_survey, 29 * 29)
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for i, j in ((0, 0), (3, 20), (28, 28)):
        start = np.array([[j - 14], [i - 14]]) / 14
        key = keys[29 * i + j]
        end = followed(drawing_step, start, jax.random.split(key, STEPS))[-1]
        same(results["endpoints"][i, j], end[:, 0])
        same(results["field"][i, j], (drawing_step(start, key) - start)[:, 0])


def test_evaluation_in_an_iterated_game_against_a_loop():
    """Policies are shown as log-odds, which are not the parameters here."""
    game = games.find_game("bach_or_stravinsky+skewed")
    key, payoffs = jax.random.key(7), payoffs_of("bach_or_stravinsky")
    show = lambda x: x - 2 * x[:, :1] * np.array([0, 1, 1, 1, 1])
    f = lambda x: table_returns(show(x), payoffs)
    step = lambda x: 0.5 * x + 0.25
    settings = {"lr": 2.0, "steps": STEPS, "pairs": 2}
    results = jax.jit(lambda: games.evaluate_game(key, game, step, **settings))()

    def naive(x):
        rows = []
        for i in (0, 1):
            row_return = lambda own, i=i: f(put(x, i, own))[i]
            rows.append(x[i] + 2 * difference(row_return, x[i]))
        return np.array(rows)

    key_start, key_response = jax.random.split(jax.random.split(key, 2)[1])
    start = np.asarray(game.init(key_start), float)
    newcomers = np.asarray(game.init(key_response), float)
    rule = lambda x, key: step(x)
    ends = followed(rule, start, range(STEPS))[-1]
    np.testing.assert_allclose(results["policies"][1], show(ends), atol=1e-5)
    np.testing.assert_allclose(results["self_play"][1], f(ends), atol=1e-5)
    for agent in (0, 1):
        places = (start, newcomers, ends)
        plays = ends_beside_others(agent, (rule, naive, None), places, range(STEPS))
        check_plays(results, 1, agent, plays, f, show)
        check_exact_response(results, 1, agent, show(ends), payoffs)


def check_exact_response(results, pair, agent, tables, payoffs):
    """That it stays beside the agent, and is as good as any of the 32 sure ones."""
    seat = ("", "_2")[agent]
    order = [agent, 1 - agent]
    policies = results["exact_response_policies" + seat][pair]
    returns = results["exact_best_response" + seat][pair]
    if agent == 1:  # DD, CD, DC, CC and the columns of players as player 2 sees them
        payoffs = payoffs[[0, 2, 1, 3], ::-1]
    same = partial(np.testing.assert_allclose, atol=1e-5)
    same(policies[0], tables[agent])
    same(returns, table_returns(policies, payoffs))
    same(returns[1], best_of_sure(tables[None, order], payoffs, 0.96)[0])


def shapes_of_evaluation(game, **settings):
    settings = {"lr": LR, "steps": STEPS, "pairs": PAIRS} | settings
    evaluate = partial(games.evaluate_game, jax.random.key(0), game, lambda x: x)
    results = jax.eval_shape(lambda: evaluate(**settings))
    return {name: array.shape for name, array in results.items()}


def test_whose_agents_are_evaluated():
    """Player 2's in games that are not symmetric, unless only player 1's are asked."""
    first = shapes_of_evaluation(GAMES["logistic"])
    assert shapes_of_evaluation(UNEVEN, agents=(0,)) == first
    second = {}
    for name in ("best_response", "versus_naive"):
        second[name + "_2"] = (PAIRS, 2)
    for name in ("response_policies", "versus_naive_policies"):
        second[name + "_2"] = (PAIRS, 2, 1)
    assert shapes_of_evaluation(UNEVEN) == first | second
    iterated = shapes_of_evaluation(games.find_game("ipd+mlp"))
    assert iterated["policies"] == (PAIRS, 2, 5)  # log-odds, not weights
    assert not {"trajectories", "endpoints", "best_response_2"} & iterated.keys()


def test_basins_of_a_field_whose_basins_are_known():
    """Steps along sign(x) lead out along the diagonal of a quadrant: 1/4 ends at B."""
    game = GAMES["logistic"]
    step = lambda x: x + 0.5 * jnp.sign(x)
    results = jax.jit(lambda: games.survey(game, step, 6))()
    np.testing.assert_allclose(results["basin_fraction"], 14 * 14 / 841, rtol=1e-6)
    # Rows are those of x_2, columns those of x_1.
    np.testing.assert_allclose(results["endpoints"][0, -1], (10 + 3, -10 - 3))
    np.testing.assert_allclose(results["field"][0, -1], (0.5, -0.5))
    ends = results["endpoints"].reshape(-1, 2, 1)
    returns = jax.vmap(game.f)(ends).mean(axis=0)
    np.testing.assert_allclose(results["final_returns"], returns, rtol=1e-5)


# --- What the scripts hand to games.py ------------------------------------------------
# A spy in the place of `evaluate_game` looks at the rule at one joint policy. The game
# is IMP, with other returns, which are quick to compile.


def quick_returns(x):
    return jnp.stack([jnp.sin(x[0]) @ x[1], x[0] ** 2 @ jnp.sin(x[1])]) / 50


QUICK_IMP = GAMES["imp"]._replace(f=quick_returns)
OTHER_SETTINGS = {  # than the defaults, where a rule has settings
    "lola": {"variant": "taylor", "lookahead": 2, "alphas": (0.0, 20.0)},
    "hola": {"order": 1, "alphas": (0.0, 20.0)},
    "pola": {"climb_steps": 5, "climb_tolerance": 0.1},
    "loqa": {"variant": "full", "betas": (0.0, 20.0)},
}


def direction_of(script, x, strength, params, config):
    """Where the public function of a script leads both players. (2, n)"""
    f = QUICK_IMP.f
    if script == "lola":
        return lola.lola_gradient(f, x, strength, "taylor", lookahead=2)
    if script == "hola":
        return hola.hola_gradient(f, x, strength, 1)
    if script == "sos":  # 25 is 1 / (1 - discount)
        return sos.sos_gradient(f, x, strength, scale=25.0)
    if script == "pola":
        near = partial(pola.divergence, QUICK_IMP)
        policies = pola.pola_step(f, x, strength, config.beta, near, 5, 0.1)
        return (policies - x) / config.lr
    if script == "loqa":
        return loqa.loqa_gradient(QUICK_IMP, x, strength[0], "full")
    if script == "cola":
        return cola.cola_gradient(params, QUICK_IMP, x, strength[0])
    if script == "meva":
        return meva.meva_gradient(params, QUICK_IMP, x, strength, config)
    gradient = simultaneous_gradient(f, x)
    if script == "maml":
        return params.step_size[:, None] / config.lr * gradient
    if script == "coala":  # its agents stand still
        return jnp.zeros_like(x)
    return gradient


def strengths_of(script, config):
    """What is swept: LOQA's betas, MeVa's gammas, others' alphas, or nothing."""
    if script == "loqa":
        return config.betas
    if script == "cola":
        return config.eval_alphas
    if script == "meva":
        return config.eval_gammas
    return getattr(config, "alphas", (0.0,))


def spied_evaluation(script, game, config, params, x, monkeypatch):
    """What `evaluate` asks `evaluate_game` for, and what its rules do with x."""
    asked = []
    module, key = SCRIPTS[script], jax.random.key(3)

    def spy(key, game, step, *, step_beside=None, **settings):
        asked.append((key, game, settings))
        draws = settings.get("draws", False)
        given = (x, jax.random.key(5)) if draws else (x,)
        results = {"step": step(*given)}
        for agent in (0, 1):
            rule = step if step_beside is None else step_beside(agent)
            results[f"beside by {agent}"] = rule(*given)[agent]
        return results

    monkeypatch.setattr(module, "evaluate_game", spy)
    monkeypatch.setattr(cola, "evaluate_consistency", lambda *arguments: {})
    found = jax.jit(lambda: module.evaluate(key, *params, game, config))()
    ((asked_key, asked_game, settings),) = asked
    assert asked_key is key  # the same pairs of policies for all strengths
    assert asked_game == game
    defaults = {
        "opponent_step": None,
        "agents": (0, 1),
        "draws": False,
        "agent_start": None,
    }
    return found, defaults | settings


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "mfos"])
def test_each_script_evaluates_the_step_of_its_public_function(script, monkeypatch):
    """In self-play and beside others. A naive learner's gamma is 0."""
    config = tiny("imp", script, lr=1.5, **OTHER_SETTINGS.get(script, {}))
    x = random_policies(QUICK_IMP, 1)[0]  # SOS takes short steps here if unscaled
    params = []
    if script in MODELS:
        params = [SCRIPTS[script].model_init(jax.random.key(1), QUICK_IMP, config)]
    start = None
    if script == "maml":
        params[0] = params[0]._replace(step_size=jnp.array([0.3, 0.8]))
    if script in ("maml", "coala"):
        start = params[0].policy
    found, asked = spied_evaluation(script, QUICK_IMP, config, params, x, monkeypatch)
    np.testing.assert_array_equal(asked.pop("agent_start"), start)
    expected = {"lr": config.lr, "steps": 4, "pairs": 3}
    assert asked == expected | {"opponent_step": None, "agents": (0, 1), "draws": False}

    model = params[0] if params else None
    direction = jax.jit(lambda s: direction_of(script, x, s, model, config))
    strengths = strengths_of(script, config)
    assert found["step"].shape == (len(strengths), 2, 5)
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for i, strength in enumerate(strengths):
        of_both = np.full(2, strength)
        same(found["step"][i], x + config.lr * direction(of_both))
        for agent in (0, 1):
            own = of_both * np.eye(2)[agent] if script == "meva" else of_both
            expected = x[agent] + config.lr * direction(own)[agent]
            same(found[f"beside by {agent}"][i], expected)


@pytest.mark.parametrize("script", ["naive", "lola"])
def test_learners_estimate_returns_by_keys_of_their_own(script, monkeypatch):
    """An estimate is a random factor of returns here, another one for imagined steps."""

    def sample(key, x):
        return quick_returns(x) * jax.random.uniform(key)

    game = QUICK_IMP._replace(sample=sample)
    x = random_policies(game, 1)[0]
    settings = {"alphas": (20.0,), "variant": "taylor", "lookahead": 2}
    if script == "naive":
        settings = {}
    config = SCRIPTS[script].make_config(game, **settings)
    found, asked = spied_evaluation(script, game, config, [], x, monkeypatch)
    assert asked["draws"]
    key = jax.random.key(5)
    if script == "naive":
        direction = simultaneous_gradient(partial(sample, key), x)
    else:
        f, f_ahead = [partial(sample, key) for key in jax.random.split(key)]
        gradient = partial(lola.lola_gradient, f, variant="taylor", lookahead=2)
        direction = jax.jit(partial(gradient, alpha=20.0, f_ahead=f_ahead))(x)
    np.testing.assert_allclose(found["step"][0], x + config.lr * direction, rtol=1e-5)


def test_a_seed_has_a_key_to_train_with_and_one_to_evaluate_with():
    def draw(train_key, eval_key, added):
        keys = jax.random.key_data(train_key), jax.random.key_data(eval_key)
        return jnp.stack(keys), added + 1

    mesh = games.use_devices(1, 1, None)
    keys, added = games.over_seeds(draw, mesh)(np.uint32([5, 6]), np.array([7, 8]))
    for seed in (5, 6):
        pair = jax.random.split(jax.random.key(seed))
        np.testing.assert_array_equal(keys[seed - 5], jax.random.key_data(pair))
    np.testing.assert_array_equal(added, [8, 9])


# --- naive.py, lola.py, hola.py -------------------------------------------------------
# Closed forms on Tandem, and nested finite differences.

lola_gradient = jax.jit(
    lola.lola_gradient, static_argnames=("f", "variant", "f_ahead", "lookahead")
)
hola_gradient = jax.jit(hola.hola_gradient, static_argnames=("f", "order"))


def cubic(x):
    """Returns of a game of two parameters each, none of which has the role of another.

    So an index that is swapped shows.

    Plain arithmetic: numpy's numbers and JAX's alike.
    """
    (a, b), (c, d) = x
    return_1 = a * c - 2 * b * d - 0.5 * a * a + 0.4 * a * b * d + 0.3 * b * c * d
    return_2 = b * c - 1.5 * a * d - 0.7 * d * d + 0.2 * a * c * d - 0.6 * a * b * c
    return return_1, return_2


def exchanged(x):
    """Returns of the game with the players' parameters exchanged."""
    return cubic(x[::-1])


CUBIC = Game(
    name="cubic",
    n=2,
    f=lambda x: jnp.stack(cubic(x)),
    init=lambda key: jax.random.normal(key, (2, 2)),
    features=lambda x: x / 2,
    labels=("first", "second"),
    symmetric=False,
)
X = np.array([[0.3, -0.7], [1.1, 0.4]])  # a joint policy of it
ALPHAS = np.array([0.7, 0.3])  # look-ahead steps of player 1 and 2


# The same form for both players, with numbers that a program takes as an argument.
NUMBERS = np.array(
    [  # of player 1's returns, then of player 2's: they go with their players
        [[1.0, -2.0], [-0.5, 0.3], [0.2, 0.4]],
        [[0.5, 3.0], [0.2, -0.7], [-0.6, 0.1]],
    ]
)


def numbered_returns(numbers, x):
    """f_i = sum of a x_i x_j + b x_i^2 + c x_i x_j^2, with a, b, c = numbers[i]."""
    a, b, c = numbers[:, 0], numbers[:, 1], numbers[:, 2]
    other = x[::-1]
    return (x * (a * other + b * x + c * other**2)).sum(axis=1)


TANDEM_STOPS = {  # x_1 + x_2 where both look ahead by a, worked out by hand
    "sos": lambda a: 1 + 0 * a,
    "lookahead": lambda a: 1 + 0 * a,
    "taylor-stop": lambda a: 1 / (1 - 2 * a),
    "taylor": lambda a: (1 - 2 * a) / (1 - 4 * a),
    "exact": lambda a: (1 - 2 * a * (1 - 2 * a)) / (1 - 2 * a) ** 2,
    "joint": lambda a: (1 - 6 * a + 16 * a**2) / (1 - 4 * a) ** 2,
}


@pytest.mark.parametrize("variant", TANDEM_STOPS)
def test_lola_and_sos_stop_on_tandem_where_they_should(variant):
    gradient = partial(lola.lola_gradient, variant=variant)
    if variant == "sos":
        gradient = sos.sos_gradient

    @jax.jit
    @jax.vmap
    def step(x, alpha):
        return x + 0.1 * gradient(games.tandem, x, alpha)

    alphas = np.float32([0, 0.1, 0.15])
    x = random_policies(GAMES["tandem"], 3)
    for _ in range(200):
        x = step(x, alphas)
    np.testing.assert_allclose(x.sum((1, 2)), TANDEM_STOPS[variant](alphas), atol=1e-4)


def tandem_by_cola(a):
    """COLA on Tandem is g(s) = A s + B, s = x_1 + x_2: A and B in closed form."""
    slope = (-(4 * a + 1) + (1 + 8 * a) ** 0.5) / (4 * a**2)
    return slope, 2 / (1 + 2 * a * (1 + a * slope))


def test_hola_on_tandem_is_its_recursion_and_tends_to_cola():
    """So is HOLA(n): d/dx_1 [2 x_1 - (s + a g)^2] = 2 - 2 (s + a g) (1 + a A)."""
    a = 0.2  # it converges for a < 3/8
    x = random_policies(GAMES["tandem"], 1)[0]
    slope, offset = -2.0, 2.0
    for order in range(50):
        if order < 5:
            found = hola_gradient(games.tandem, x, a, order)
            np.testing.assert_allclose(found, slope * x.sum() + offset, rtol=2e-4)
        offset = 2 - 2 * a * offset * (1 + a * slope)
        slope = -2 * (1 + a * slope) ** 2
    np.testing.assert_allclose((slope, offset), tandem_by_cola(a), atol=1e-6)


def look_ahead_by_differences(f, i, x, change):
    """d/dx_i f_i(x_i, x_j + change(x)), with j the other player, through its change."""

    def surrogate(own):
        joint = put(x, i, own)
        return f(put(joint, 1 - i, x[1 - i] + change(joint)))[i]

    # Far points, as differences of differences follow.
    return difference(surrogate, x[i], step=1e-2)


def hola_by_differences(f, i, x, alpha, order):
    """Player i's row of HOLA(n): the other's change is alpha g_j^(n - 1)(x)."""

    def change(x):
        if order == 0:
            return 0
        return alpha * hola_by_differences(f, 1 - i, x, alpha, order - 1)

    return look_ahead_by_differences(f, i, x, change)


def hola_rows(x, alphas, order):
    rows = [hola_by_differences(cubic, i, x, alphas[i], order) for i in (0, 1)]
    return np.array(rows)


def lola_by_differences(f, i, x, change, variant):
    """Player i's row of LOLA's forms, by the other's change, a function of x."""
    j = 1 - i
    if variant == "exact":
        return look_ahead_by_differences(f, i, x, change)
    if variant == "lookahead":
        return look_ahead_by_differences(f, i, x, lambda _: change(x))

    def slope(x):
        return difference(lambda other: f(put(x, j, other))[i], x[j], step=1e-2)

    def first_order(own):
        joint = put(x, i, own)
        at = x if variant == "taylor-stop" else joint
        return f(joint)[i] + slope(at) @ change(joint)

    return difference(first_order, x[i], step=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lola_against_nested_finite_differences(variant):
    """Each player has its own alpha, and imagines two steps on the returns `f_ahead`.

    HOLA(0) by differences is the plain gradient of these.
    """
    rows = []
    for i in (0, 1):

        def change(x):
            j = 1 - i
            ahead = x
            for _ in range(2):
                gradient = hola_by_differences(exchanged, j, ahead, 0, 0)
                ahead = put(ahead, j, ahead[j] + ALPHAS[i] * gradient)
            return ahead[j] - x[j]

        rows.append(lola_by_differences(cubic, i, X, change, variant))
    with jax.enable_x64(True):
        found = lola_gradient(
            CUBIC.f, X, ALPHAS, variant, lambda x: jnp.stack(exchanged(x)), 2
        )
    np.testing.assert_allclose(found, rows, rtol=1e-5)


STAG_HUNTS = [  # temptation, starts along an axis, who comes to CC: naive, LOLA
    (3.0, 51, (0.2591, 0.4291)),
    (2.2, 21, (0.463, 0.569)),
    (3.8, 21, (0.029, 0.045)),
]


@pytest.mark.parametrize("temptation, starts, published", STAG_HUNTS)
def test_lola_brings_more_starts_to_the_stag_hunts_better_end(
    temptation, starts, published
):
    """Others' numbers for a one-shot stag hunt, in which C pays 4 or 0, D this or 2.

    They come out to .01: ours are .263 and .424; .458 and .576; .023 and .043.
    """
    payoffs = jnp.array([[4.0, 0.0], [temptation, 2.0]])

    def f(x):
        p, q = jax.nn.sigmoid(x[:, 0])  # chances of C
        chances_1 = jnp.stack([p, 1 - p])
        chances_2 = jnp.stack([q, 1 - q])
        return jnp.stack(
            [chances_1 @ payoffs @ chances_2, chances_2 @ payoffs @ chances_1]
        )

    def end(x, alpha):
        def step(x, t):
            lr = 0.9 / (t + 10) ** 0.24
            direction = lola_gradient(f, x, alpha, "taylor-stop")
            return jnp.clip(x + lr * direction, -8, 8), None

        return jax.lax.scan(step, x, jnp.arange(140.0))[0]

    p = np.linspace(0.05, 0.95, starts, dtype=np.float32)
    grid = np.stack(np.meshgrid(p, p), axis=-1).reshape(-1, 2, 1)
    ends = jax.jit(jax.vmap(end, (0, None)))
    for alpha, share in zip((0.0, 0.825), published):
        chances = jax.nn.sigmoid(ends(np.log(grid / (1 - grid)), alpha))
        succeeded = (chances >= 0.82).all(axis=(1, 2))
        np.testing.assert_allclose(succeeded.mean(), share, atol=0.01)


def test_joint_lola_against_nested_finite_differences():
    """Eq. 2: f_i at x + alpha_i times both players' naive gradients."""
    rows = []
    for i in (0, 1):

        def surrogate(own):
            joint = put(X, i, own)
            steps = [hola_by_differences(exchanged, j, joint, 0, 0) for j in (0, 1)]
            return cubic(joint + ALPHAS[i] * np.array(steps))[i]

        rows.append(difference(surrogate, X[i], step=1e-2))

    with jax.enable_x64(True):
        f_ahead = lambda x: jnp.stack(exchanged(x))
        found = lola_gradient(CUBIC.f, X, ALPHAS, "joint", f_ahead)
        with pytest.raises(ValueError, match="one look-ahead step"):
            lola_gradient(CUBIC.f, X, ALPHAS, "joint", lookahead=2)
    np.testing.assert_allclose(found, rows, rtol=1e-5)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_hola_against_nested_finite_differences(order):
    """And HOLA(1) is what LOLA is by default."""
    expected = hola_rows(X, ALPHAS, order)
    with jax.enable_x64(True):
        found = hola_gradient(CUBIC.f, X, ALPHAS, order)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        if order == 1:
            found = lola_gradient(CUBIC.f, X, ALPHAS)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def mean_change(game, **settings):
    """What a step by LOLA's rule adds to x, over 10000 draws if returns are sampled."""
    config = lola.make_config(CUBIC, lr=0.3, variant="taylor-stop", **settings)
    step = lola.make_step(game, config, 0.5)
    if game.sample is None:
        return jax.jit(step)(X) - X
    keys = jax.random.split(jax.random.key(0), 10_000)
    return jax.jit(jax.vmap(step, (None, 0)))(X, keys).mean(0) - X


def test_lolas_rule_has_every_setting_and_samples_the_imagined_step_apart():
    """Samples are off by a factor of 0 or 2; its square would be 2 on average."""

    def sample(key, x):
        return 2 * jax.random.bernoulli(key) * CUBIC.f(x)

    once = 0.3 * lola_gradient(CUBIC.f, X, 0.5, "taylor-stop")
    twice = 0.3 * lola_gradient(CUBIC.f, X, 0.5, "taylor-stop", None, 2)
    same = partial(np.testing.assert_allclose, rtol=1e-4)
    same(mean_change(CUBIC, lookahead=2), twice)
    known = CUBIC._replace(sample=lambda key, x: CUBIC.f(x))
    same(mean_change(known, lookahead=2), twice)
    # Standard errors of the means are a hundredth of the change and of its parts.
    same(mean_change(CUBIC._replace(sample=sample)), once, rtol=0.05, atol=0.02)


# --- sos.py ---------------------------------------------------------------------------
# Formulas with matrices, by finite differences, and published numbers.


OWN = np.kron(np.eye(2), np.ones((2, 2))) > 0  # entries of H within a player's block


def linearised_losses(x, scale):
    """xi, its Jacobian H, and the rows dL_i / dx, of the losses L = -scale cubic."""

    def slopes(v):
        losses = [lambda v, i=i: -scale * cubic(v.reshape(2, 2))[i] for i in (0, 1)]
        return np.stack([difference(loss, v, step=1e-2) for loss in losses])

    def xi(v):
        return np.where(OWN[::2], slopes(v), 0).sum(axis=0)

    v = x.ravel()
    H = [difference(lambda v: xi(v)[k], v, step=1e-2) for k in range(4)]
    return xi, np.stack(H), slopes(v)


def sos_p_by_hand(xi, xi_0, shaping):
    """p_1 and p_2 of Algorithm 1 of Letcher et al. (2019), with a = .5 and b = .1."""
    inner = shaping @ xi_0
    p_1 = 1.0
    if inner < 0:
        p_1 = min(1, -0.5 * (xi_0 @ xi_0) / inner)
    p_2 = 1.0
    if np.sqrt(xi @ xi) < 0.1:
        p_2 = xi @ xi
    return p_1, p_2


def sos_by_matrices(x, alphas, scale=1.0):
    """Directions of SOS and its family in the game, and the numbers of their criteria.

    In the notation of Letcher et al. (2019), for losses and all parameters at once.
    """
    xi_at, H, slopes = linearised_losses(x, scale)
    xi = xi_at(x.ravel())
    alpha = np.repeat(alphas, 2) / scale
    H_o = np.where(OWN, 0, H)
    others = np.where(OWN[::2], 0, slopes).sum(axis=0)  # dL_2/dx_1 and dL_1/dx_2
    chi = H_o.T @ others
    xi_0 = xi - alpha * (H_o @ xi)
    p_1, p_2 = sos_p_by_hand(xi, xi_0, -alpha * chi)
    A = (H - H.T) / 2
    aligned = (xi @ H.T @ xi) * (A.T @ xi @ H.T @ xi) / 4
    # H_22 is singular in one case, and in another one so nearly that it counts as such.
    inverse = np.linalg.pinv(H[2:, 2:], rcond=1e-5)
    led = H[2:, :2].T @ inverse @ slopes[0, 2:]
    directions = {
        "sos": xi_0 - min(p_1, p_2) * alpha * chi,
        "lookahead": xi_0,
        "consensus": xi + alpha * (H.T @ xi),
        "sga": xi + np.sign(aligned + 0.1) * alpha * (A.T @ xi),
        "extragradient": xi_at(x.ravel() - alpha * xi),
        "cgd": np.linalg.inv(np.eye(4) + alpha[:, None] * H_o) @ xi,
        "lss": xi + H.T @ np.linalg.inv(H) @ xi,
        "stackelberg": xi - np.append(led, [0, 0]),
    }
    rows = {name: -one.reshape(2, 2) / scale for name, one in directions.items()}
    return rows, {"p_1": p_1, "p_2": p_2, "|xi|": np.linalg.norm(xi), "sga": aligned}


@jax.jit
def sos_family(x, alphas, **settings):
    gradient = partial(sos.sos_gradient, CUBIC.f, x, alphas, **settings)
    return {variant: gradient(variant=variant) for variant in sos.VARIANTS}


@pytest.mark.parametrize(
    "x, alphas, number, low, high",
    [
        ([2.2, -0.8, 1.0, -0.5], [1.0, 2.3], "p_1", 0.1, 0.9),
        ([0.02, 0.01, 0.0, -0.03], [1.0, 1.6], "p_2", 0.001, 0.009),
        ([0.0, 0.03, -0.05, 0.0], [1.2, 0.2], "p_1", 0.1, 0.9),  # p_2 is small, too
        ([0.06, -0.05, -0.01, 0.02], [2.1, 2.0], "|xi|", 0.1, 0.2),  # p_2 is 1
        ([0.5, 1.8, -0.5, 0.1], [1.9, 1.8], "sga", -1, -0.2),  # the sign turns
        ([-0.26, -0.31, -0.25, 0.29], [1.2, 1.6], "sga", -0.09, -0.05),  # or not
    ],
    ids=["p_1", "p_2", "both", "neither", "sign", "offset"],
)
def test_sos_and_its_family_against_matrices(x, alphas, number, low, high):
    """The number says which branch of a criterion each case is in, at a scale of 1."""
    x = np.reshape(x, (2, 2))
    assert low < sos_by_matrices(x, alphas)[1][number] < high
    with jax.enable_x64(True):
        for settings in ({}, {"scale": 2.0}):
            expected, _ = sos_by_matrices(x, alphas, **settings)
            found = sos_family(x, np.array(alphas), **settings)
            chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-12)


@jax.jit
def family_at_rest(numbers, alphas):
    """Directions of SOS and its family at x = 0; derivatives of their sum."""

    def total(x, alphas):
        gradient = partial(sos.sos_gradient, partial(numbered_returns, numbers))
        found = {v: gradient(x, alphas, variant=v) for v in sos.VARIANTS}
        return sum(rows.sum() for rows in found.values()), found

    x = jnp.zeros((2, 1), numbers.dtype)
    slopes, found = jax.grad(total, argnums=(0, 1), has_aux=True)(x, alphas)
    return found, slopes


@pytest.mark.parametrize(
    "of_both",
    [(1.0, -0.5, 0.2), (-2.0, -1.0, 0.0), (0.0, 0.0, 0.0)],
    ids=["point", "line", "constant"],
)
def test_soss_family_and_its_derivatives_are_finite_where_nobody_moves(of_both):
    """x = 0 is a fixed point, one of a line of them (H is singular), or f is 0."""
    numbers = np.float32([of_both, of_both])[:, :, None]
    found, slopes = family_at_rest(numbers, np.float32(ALPHAS))
    for variant, rows in found.items():
        np.testing.assert_array_equal(rows, 0, err_msg=variant)
    for slope in slopes:  # by x and by alpha
        assert np.isfinite(slope).all()


@partial(jax.jit, static_argnums=0)
def stackelberg(f, x, alpha=0.0):
    return sos.sos_gradient(f, x, alpha, "stackelberg")


LINKS = np.array([[1.0, -2.0, 0.5], [0.3, 0.8, -1.0], [2.0, 0.1, 0.7]])
BENDS = np.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.5]])


def led_returns(x):
    """Player 2's return is strictly concave in x_2; `best_answer` has its maximum."""
    leader, follower = x
    return_1 = leader @ LINKS @ follower - (leader**2).sum() + (follower**3).sum()
    return_2 = follower @ LINKS @ leader**2 - follower @ BENDS @ follower / 2
    return jnp.stack([return_1, return_2])


def best_answer(leader):
    return np.linalg.solve(BENDS, LINKS @ leader**2)


def test_stackelbergs_leader_ascends_what_it_gets_after_the_best_answer():
    """By finite differences through the best answer, in float64, at any alpha."""

    def return_of_leader(leader):
        return led_returns((leader, best_answer(leader)))[0]

    with jax.enable_x64(True):
        for leader in np.random.default_rng(0).normal(size=(3, 3)):
            x = np.stack([leader, best_answer(leader)])
            found = stackelberg(led_returns, x, ALPHAS)
            expected = difference(return_of_leader, leader)
            np.testing.assert_allclose(found[0], expected, rtol=1e-7)
            np.testing.assert_allclose(found[1], 0, atol=1e-12)
            # Off the best answer, player 2 learns naively.
            x = np.stack([leader, leader[::-1]])
            naive_gradient = simultaneous_gradient(led_returns, x)
            found = stackelberg(led_returns, x, ALPHAS)
            np.testing.assert_array_equal(found[1], naive_gradient[1])


MARKETS = np.float32([1, 2])


def cournot(x):
    """Each player sells in two markets. What both sell in one lowers its price."""
    return (x * (MARKETS - x.sum(axis=0))).sum(axis=1)


def test_stackelbergs_leader_sells_a_half_where_naive_players_sell_a_third():
    """Its follower sells a quarter. The leader is player 1 whoever plays beside it."""

    def leads(x):
        return x + 0.1 * stackelberg(cournot, x)

    def naive_rule(x):
        return x + 0.1 * simultaneous_gradient(cournot, x)

    thirds = np.stack([MARKETS / 3, MARKETS / 3])
    led = np.stack([MARKETS / 2, MARKETS / 4])
    cases = (
        (naive_rule, thirds),
        (leads, led),
        (games.beside(leads, naive_rule, 0), led),
        (games.beside(leads, naive_rule, 1), thirds),
    )
    starts = jax.random.normal(jax.random.key(0), (4, 2, 2))
    for step, expected in cases:
        ends = jax.vmap(lambda x: games.follow(step, x, 300))(starts)
        np.testing.assert_allclose(ends, np.stack([expected] * 4), rtol=1e-5)


WITHOUT_A_BEST_ANSWER = {  # as H_22 is 0: the leader is naive
    "constant": lambda x: 0 * x[:, 0],
    "linear": lambda x: x @ jnp.array([1, -2], x.dtype),
    "bilinear": lambda x: jnp.stack([x[0] @ x[1], -x[0] @ x[1]]),
}


@pytest.mark.parametrize("name", WITHOUT_A_BEST_ANSWER)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_stackelbergs_leader_is_naive_where_there_is_no_best_answer(name, dtype):
    f = WITHOUT_A_BEST_ANSWER[name]
    with jax.enable_x64(True):
        x = jnp.array(np.stack([X, -X, 0 * X]), dtype)
        found = jax.vmap(partial(stackelberg, f))(x)
        assert found.dtype == dtype
        expected = jax.vmap(partial(simultaneous_gradient, f))(x)
        np.testing.assert_array_equal(found, expected)
        slopes = jax.grad(lambda x: stackelberg(f, x).sum())(x[0])
        assert np.isfinite(slopes).all()


def test_stackelbergs_leader_expects_an_answer_of_those_parameters_that_have_one():
    """f_1 is x_21 + x_22. The answer of x_21 is x_11; x_22 is linear or is ignored."""
    for weight in (0.0, 3.0):

        def f(x):
            own, other = x
            return_2 = other[0] * own[0] - other[0] ** 2 / 2 + weight * other[1]
            return jnp.stack([other.sum(), return_2])

        found = stackelberg(f, np.float32([[2, 3], [5, 7]]))
        np.testing.assert_allclose(found, [[1, 0], [2 - 5, weight]], rtol=1e-6)


def test_stackelbergs_leader_on_stackelberg():
    """It comes as near to its best, 11/3 : 2/3, as its follower is sure of D.

    With p and q the chances of C: where f_2 is concave, p > 1/3 and q < 1/2, p tends to
    1/3 + 2 q, and q to 1 / sqrt(12 t). Other starts can lead to the 2 : 1 of naive
    learners, as the last one does.
    """
    f = GAMES["stackelberg"].f
    x = random_policies(GAMES["stackelberg"], 20)
    p, q = np.moveaxis(np.asarray(jax.nn.sigmoid(x), float)[..., 0], 1, 0)
    answer = 6 * q * (1 - q) / ((1 - 3 * p) * (1 - 2 * q))
    found = jax.vmap(partial(stackelberg, f))(x)
    np.testing.assert_allclose(found[:, 0, 0], -p * (1 - p) * (1 + answer), rtol=1e-3)

    def step(x):
        return x + 0.1 * stackelberg(f, x)

    starts = np.float32([[0, -1], [2, -0.5], [-0.5, -3], [-2, -1]])[..., None]
    ends = jax.vmap(lambda x: games.follow(step, x, 20_000))(starts)
    returns = jax.vmap(f)(ends)
    q = (12 * 0.1 * 20_000) ** -0.5
    assert q < 0.007
    near = [11 / 3 - 4 * q, 2 / 3 + 4 * q]
    np.testing.assert_allclose(returns[:3], [near] * 3, atol=2e-3)
    np.testing.assert_allclose(returns[3], [2, 1], atol=2e-3)


PUBLISHED_LOSSES = {
    "sos": 1.05,
    "lookahead": 1.95,
    "consensus": 1.69,
    "sga": 1.88,
    "extragradient": 1.97,
    "cgd": 1.96,
    "lss": 1.77,
    "taylor": 1.05,
    "naive": 1.99,
}


@slow
@pytest.mark.parametrize("name", PUBLISHED_LOSSES)
def test_sos_and_its_family_end_where_published_code_does(name):
    """On the IPD after 100 steps of 25: the mean of both players' losses.

    Those of the notebook of Letcher et al. (2019). Some are too close to tell apart;
    the formulas are checked above.
    """
    f = GAMES["ipd"].f
    count = {"lookahead": 4096, "lss": 256}.get(name, 512)  # some take long
    if name == "naive":
        gradient = partial(simultaneous_gradient, f)
    elif name == "taylor":
        gradient = partial(lola.lola_gradient, f, alpha=25.0, variant="taylor")
    else:
        gradient = partial(sos.sos_gradient, f, alpha=25.0, variant=name, scale=25.0)

    @jax.jit
    @jax.vmap
    def last_returns(x):
        return f(games.follow(lambda x: x + 25 * gradient(x), x, 100))

    x = random_policies(GAMES["ipd"], 4096)[:count]
    # Standard errors are .004 to .02.
    loss = -last_returns(x).mean()
    np.testing.assert_allclose(loss, PUBLISHED_LOSSES[name], atol=0.03)


# --- pola.py --------------------------------------------------------------------------
# The objective in plain numpy, its maxima, and a climb in a plain loop.

STATES = [(0, 0), (1, 0), (0, 1), (1, 1)]  # actions of both, 1 for C


def joint_chances(first, second):
    """Of each of `STATES`, from both players' chances of C."""
    chances = []
    for a, b in STATES:
        chance = first if a else 1 - first
        chances.append(chance * (second if b else 1 - second))
    return np.array(chances)


def plain_returns(x, payoffs, discount=0.96):
    """(2, 5) -> two returns, of complex log-odds, too, by a matrix state by state."""
    p = 1 / (1 + np.exp(-x))
    rows = []
    for a, b in STATES:
        seen_1, seen_2 = STATES.index((a, b)), STATES.index((b, a))
        rows.append(joint_chances(p[0, 1 + seen_1], p[1, 1 + seen_2]))
    ahead = np.linalg.inv(np.eye(4) - discount * np.array(rows))
    weights = (1 - discount) * joint_chances(p[0, 0], p[1, 0]) @ ahead
    return weights @ [[payoffs[a, b], payoffs[b, a]] for a, b in STATES]


def unskewed(x):
    """Log-odds of skewed tables, (..., 5): all but the first lose twice the first."""
    first = np.arange(5) == 0
    return x - 2 * x[..., :1] * ~first


def plain_objective(x, i, own, alpha, beta, payoffs):
    """What player i's new policy `own` maximises, for skewed tables.

    The imagined step is by complex steps, which are exact, KL by its definition.
    """
    j = 1 - i
    joint = put(x, i, own)
    step = np.zeros(5)
    for k in range(5):
        nudged = joint.astype(complex)
        nudged[j, k] += 1e-30j
        step[k] = plain_returns(unskewed(nudged), payoffs)[j].imag / 1e-30
    old = 1 / (1 + np.exp(-unskewed(x[i])))
    new = 1 / (1 + np.exp(-unskewed(own)))
    kl = old * np.log(old / new) + (1 - old) * np.log((1 - old) / (1 - new))
    imagined = put(joint, j, joint[j] + alpha * step)
    return plain_returns(unskewed(imagined), payoffs)[i] - beta * kl.sum()


def contribution(factor):
    """A player's payoffs by counting who gives."""
    return {(a, b): factor * (a + b) / 2 - a for a, b in STATES}


@functools.cache
def objective_of(game):
    distance = partial(pola.divergence, game)
    objective = partial(pola.pola_objective, game.f, distance=distance)
    return jax.jit(jax.value_and_grad(objective, argnums=2))


def test_polas_objective_and_its_gradient_against_a_plain_one():
    rng = np.random.default_rng(0)
    plain = partial(plain_objective, payoffs=contribution(1.33))
    with jax.enable_x64(True):
        objective = objective_of(games.find_game("contribution+skewed"))
        for i, alpha, beta in [(0, 12.0, 0.3), (1, 3.0, 2.0), (1, 0.0, 0.1)]:
            x = rng.normal(size=(2, 5))
            own = rng.normal(size=5)
            value, gradient = objective(x, i, own, alpha, beta)
            np.testing.assert_allclose(value, plain(x, i, own, alpha, beta), rtol=1e-10)
            slope = difference(lambda own: plain(x, i, own, alpha, beta), own)
            np.testing.assert_allclose(gradient, slope, atol=1e-8)


@partial(jax.jit, static_argnames="game")
def step_of(game, x, alpha, beta):
    distance = partial(pola.divergence, game)
    return pola.pola_step(game.f, x, alpha, beta, distance, 20000, 1e-9)


def test_new_policies_are_maxima_and_go_with_their_players():
    game = GAMES["contribution"]
    x = np.random.default_rng(1).normal(size=(2, 5))
    alphas = np.array([20.0, 5.0])
    with jax.enable_x64(True):
        y = np.array(step_of(game, x, alphas, 0.1))
        swapped = step_of(game, x[::-1], alphas[::-1], 0.1)
        np.testing.assert_allclose(swapped[::-1], y, atol=1e-5)
        for i in (0, 1):
            objective = partial(objective_of(game), x, i, alpha=alphas[i], beta=0.1)
            value, slope = objective(y[i])
            assert np.abs(slope).max() < 1e-8
            assert np.abs(objective(x[i])[1]).max() > 1e-3
            for change in np.vstack([np.eye(5), -np.eye(5)]):
                assert objective(y[i] + 0.05 * change)[0] < value


def test_the_price_of_distance_makes_steps_small_and_then_natural_gradients():
    game = GAMES["contribution"]
    x = np.random.default_rng(1).normal(size=(2, 5))
    p = 1 / (1 + np.exp(-x))
    with jax.enable_x64(True):
        alphas = np.full(2, 20.0)
        cheap, dear = [
            np.abs(step_of(game, x, alphas, beta) - x).max() for beta in (0.1, 10.0)
        ]
        assert cheap > 10 * dear > 0
        found = 1e3 * (step_of(game, x, np.zeros(2), 1e3) - x)
        gradient = jax.jit(partial(simultaneous_gradient, game.f))(x)
        # The second order of a step of some 1e-3 is left out.
        np.testing.assert_allclose(found, gradient / p / (1 - p), rtol=1e-2)


def test_without_look_ahead_new_policies_do_not_depend_on_their_parameters():
    """Skewed tables make of a policy what tables make of it."""
    log_odds = np.random.default_rng(1).normal(size=(2, 5))
    skewed = log_odds + 2 * log_odds[:, :1] * (np.arange(5) > 0)
    found = []
    with jax.enable_x64(True):
        for name, x in [("contribution", log_odds), ("contribution+skewed", skewed)]:
            game = games.find_game(name)
            np.testing.assert_allclose(game.log_odds(x), log_odds)
            distance = partial(pola.divergence, game)
            y = jax.jit(lambda x: pola.pola_step(game.f, x, 0.0, 0.01, distance))(x)
            found.append(1 / (1 + np.exp(-game.log_odds(y))))
    assert np.abs(found[0] - 1 / (1 + np.exp(-log_odds))).max() > 0.1
    np.testing.assert_allclose(found[1], found[0], atol=2e-3)


@pytest.mark.parametrize("name", ["ipd", "ipd+skewed", "ipd+mlp"])
def test_natural_gradients_against_a_matrix(name):
    """H is J^T diag(p (1 - p)) J, J the derivative of log-odds by parameters."""
    game = games.find_game(name)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, game.n))
    weights = rng.normal(size=5)
    with jax.enable_x64(True):
        jacobian = np.array(
            jax.jacobian(lambda own: game.log_odds(jnp.array(x).at[1].set(own))[1])(
                x[1]
            )
        )
        p = 1 / (1 + np.exp(-game.log_odds(x)[1]))
        hessian = jacobian.T @ np.diag(p * (1 - p)) @ jacobian
        slope = weights @ jacobian  # as slopes are: by way of the log-odds
        expected = np.linalg.solve(hessian + 1e-4 * np.eye(game.n), slope)

        def distance(old, new):
            joint = jnp.array(x)
            return pola.divergence(game, joint.at[1].set(old), joint.at[1].set(new))[1]

        found = pola.natural_gradient(distance, jnp.array(x[1]), jnp.array(slope))
    np.testing.assert_allclose(
        found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
    )


def climb_by_loop(slope_at, hessian_at, x, steps, tolerance):
    """Double steps that go on uphill, halve and do not take those that pass a top.

    They go along (hessian + 1e-4)^-1 slope, and half their squared length is what that
    matrix makes of them. The slope at the start is the first of all the gradients that
    `steps` counts.
    """
    slope = slope_at(x)
    size = 1.0
    for _ in range(steps - 1):
        hessian = hessian_at(x) + 1e-4 * np.eye(len(x))
        direction = size * np.linalg.solve(hessian, slope)
        if np.sqrt(direction @ hessian @ direction) <= tolerance:
            break
        slope_ahead = slope_at(x + direction)
        if direction @ slope_ahead >= 0:
            x = x + direction
            slope = slope_ahead
            size = 2 * size
        else:
            size = size / 2
    return x


@pytest.mark.parametrize("settings", [(), (150, 1e-7), (3, 0.0)])
def test_a_climb_against_a_loop(settings):
    """To 3e-4 and of 1000 gradients by default, which player 1's ridge takes."""
    curvatures = np.array([[1.0, 3000.0], [2.0, 5.0]])
    hessians = np.array([[[1.0, 0.2], [0.2, 2.0]], [[3.0, -1.0], [-1.0, 4.0]]])
    x = np.array([[3.0, 1e-3], [1.0, -2.0]])

    def f(x):
        return -(curvatures * x**2).sum(axis=1) / 2

    def distance(x, y):
        squares = jnp.einsum("in,inm,im->i", y - x, hessians, y - x)
        return (1 + x[:, 0] ** 2) * squares / 2

    with jax.enable_x64(True):
        found = pola.pola_step(f, x, 0.0, 0.0, distance, *settings)
    for i in (0, 1):
        row = climb_by_loop(
            lambda row: -curvatures[i] * row,
            lambda row: (1 + row[0] ** 2) * hessians[i],
            x[i],
            *settings or (1000, 3e-4),
        )
        np.testing.assert_allclose(found[i], row, rtol=1e-4, atol=1e-8)
    config = pola.make_config()
    assert (config.climb_steps, config.climb_tolerance) == (1000, 3e-4)
    with pytest.raises(ValueError, match="--climb-steps takes 2 to"):
        pola.make_config(climb_steps=1)  # that goes nowhere


def test_a_climb_does_not_go_where_slopes_are_no_numbers():
    """They are none beyond 1; the top is at .75."""

    def f(x):
        return x[:, 0] + jnp.sqrt(1 - x[:, 0])

    x = pola.pola_step(f, jnp.full((2, 1), -20.0), 0.0, 0.0, half_distance)
    np.testing.assert_allclose(x, 0.75, atol=1e-3)


def test_policies_that_are_no_chances_are_apart_by_half_a_squared_distance():
    y = jnp.array([[1.0, 3.0], [2.0, 0.0]])
    found = pola.divergence(GAMES["logistic"], jnp.zeros((2, 2)), y)
    np.testing.assert_allclose(found, [5, 2])


# --- loqa.py --------------------------------------------------------------------------
# The model of the opponent by linear systems and differences; sums over pairs of rounds,
# round by round, and over all histories.

UNLIKE = "ipd+payoffs=-1,-3,0,-2,3,-1,4,1"  # nothing is alike for the players
PLAYED_BY_LOQA = {
    "tables": ("ipd", "imp", "chicken", "bach_or_stravinsky+skewed", UNLIKE),
    "others": ("ipd+mlp", UNLIKE + "+memory=2"),
    "short": (UNLIKE + "+discount=0.2",),
}
KINDS_OF_LOQA = pytest.mark.parametrize(
    "kind", ["tables", "short", pytest.param("others", marks=slow)]
)
OWN_C = np.array([outcome[0] == "C" for outcome in OUTCOMES])


class Play(NamedTuple):
    """An iterated game as player i sees it, whose action comes first in `OUTCOMES`.

    The chances of outcomes, (o, 4), after each of o pasts; the index of the next past,
    (o, 4); the mean of sum over t of discount^t of each past, (o,); and of i and of j
    what they get from a past on, (2, o), and from a past and an outcome on, (2, o, 4).
    """

    chances: np.ndarray
    then: np.ndarray
    visits: np.ndarray
    v: np.ndarray
    q: np.ndarray


def play_of(rules, i, own, other):
    """By the log-odds of player i and of the other one, (o,) each."""
    pasts = pasts_of(rules.memory)
    of_i = dict(zip(("CC", "CD", "DC", "DD"), (rules.own, rules.other)[i]))
    of_j = dict(zip(("CC", "CD", "DC", "DD"), (rules.own, rules.other)[1 - i]))
    rewards = np.array([[of_i[both], of_j[both[::-1]]] for both in OUTCOMES]).T
    other_seen = [pasts.index(mirrored(past)) for past in pasts]
    one, two = sigmoid(own), sigmoid(other)[other_seen]

    chances, then, moves = [], [], np.zeros((len(pasts), len(pasts)))
    for s, past in enumerate(pasts):
        of_c = {"C": one[s], "D": 1 - one[s]}, {"C": two[s], "D": 1 - two[s]}
        chances.append([of_c[0][a] * of_c[1][b] for a, b in OUTCOMES])
        follows = [following(past, both, rules.memory) for both in OUTCOMES]
        then.append([pasts.index(after) for after in follows])
        for chance, after in zip(chances[s], then[s]):
            moves[s, after] += chance
    chances, then = np.array(chances), np.array(then)

    ahead = np.linalg.inv(np.eye(len(pasts)) - rules.discount * moves)
    v = rewards @ chances.T @ ahead.T
    q = rewards[:, None, :] + rules.discount * v[:, then]
    return Play(chances, then, ahead[0], v, q)


def given_b(play, numbers):
    """Means over i's own action of (o, 4), after j's D and C. (o, 2)"""
    own_c = play.chances[:, OWN_C].sum(axis=1, keepdims=True)
    return (1 - own_c) * numbers[:, ~OWN_C] + own_c * numbers[:, OWN_C]


def of_model(rules, i, own, now, other, beta, variant):
    """Sum over s and b of visits pi_j A_i log m, in which Q_j alone depends on `own`.

    All else is as `now`: visits, the first action of i, and with `loqa` the value of
    the action that is not b.
    """
    old, new = [play_of(rules, i, each, other) for each in (now, own)]
    pi_j = old.chances[:, ~OWN_C] + old.chances[:, OWN_C]
    advantage = given_b(old, old.q[0]) - old.v[0, :, None]
    was, values = [beta * given_b(old, each.q[1]) for each in (old, new)]
    others = (was if variant == "loqa" else values)[:, ::-1]
    log_m = values - np.logaddexp(values, others)
    return (old.visits[:, None] * pi_j * advantage * log_m).sum()


def normalised(rules, i, own, now, other, beta, variant):
    """What player i ascends with `loqa` or `full`, as a function of its log-odds."""
    shaped = of_model(rules, i, own, now, other, beta, variant)
    return (1 - rules.discount) * (play_of(rules, i, own, other).v[0, 0] + shaped)


def pair_sum(rules, play, advantage, apart):
    """By log-odds of i, from round to round, (o,). The mean of (1 - discount) times

    sum over t of discount^t (sum over k < t of apart^(t - k) advantage(k)) A_j(t)
    d log pi_i(a_t | s_t).
    """
    own_c = play.chances[:, OWN_C].sum(axis=1)
    of_j = play.chances * (play.q[1] - play.v[1, :, None])
    slopes = (of_j * (OWN_C - own_c[:, None])).sum(axis=1)
    # What the next past is, (o, o): its chance, and the mean advantage where it is so.
    is_next = play.then[..., None] == np.arange(len(slopes))
    moves = np.einsum("sk,sku->su", play.chances, is_next)
    gains = np.einsum("sk,sk,sku->su", play.chances, advantage, is_next)

    total = np.zeros(len(slopes))
    chance = np.eye(len(slopes))[0]  # of each past in round t
    inner = np.zeros(len(slopes))  # and, where it is so, the mean of the inner sum
    for t in range(int(25 / (1 - rules.discount))):  # the rest is 1e-10 of it
        total += (1 - rules.discount) * rules.discount**t * inner * slopes
        inner = apart * (inner @ moves + chance @ gains)
        chance = chance @ moves
    return total


def alignment_by_histories(rules, play, beta, rounds):
    """Advantage Alignment by its definition, from all histories of so many rounds."""
    discount = rules.discount
    own_c = play.chances[:, OWN_C].sum(axis=1)
    advantages = play.q - play.v[:, :, None]
    total = np.zeros(len(own_c))

    def go_on(t, s, chance, past_sum):
        """From the past s in round t; the sum over k of discount^(t - k) A_i(k)."""
        if t == rounds:
            return
        for k, action in enumerate(OWN_C):
            likely = chance * play.chances[s, k]
            of_i, of_j = advantages[:, s, k]
            weight = (1 - discount) * discount**t * (of_i + beta * past_sum * of_j)
            total[s] += likely * weight * (action - own_c[s])
            go_on(t + 1, play.then[s, k], likely, discount * (past_sum + of_i))

    go_on(0, 0, 1.0, 0.0)
    return total


def policies_of_loqa(game):
    return np.random.default_rng(0).normal(size=(2, game.n))


@functools.cache
def rows_of_loqa(name, variant, beta):
    """Of both players; of naive learning if there is no variant. In float64. (2, n)"""
    game = games.find_game(name)
    x = policies_of_loqa(game)
    if variant is None:
        return naive.naive_gradient(game.f, x)
    return loqa.loqa_gradient(game, x, beta, variant)


def cases_of_loqa(kind):
    """Games, and of each player i its log-odds, the other's and their play.

    Also a function that takes what is by log-odds of i to what is by x_i.
    """
    for name in PLAYED_BY_LOQA[kind]:
        game = games.find_game(name)
        log_odds, pull_back = jax.vjp(game.log_odds, policies_of_loqa(game))
        log_odds = np.array(log_odds)

        def by_x(i, slopes):
            return pull_back(jnp.asarray(put(np.zeros_like(log_odds), i, slopes)))[0][i]

        for i in (0, 1):
            own, other = log_odds[i], log_odds[1 - i]
            play = play_of(game.rules, i, own, other)
            yield game, i, own, other, play, partial(by_x, i)


def assert_close(found, expected, game):
    """As far as differences go, or rounding: a part in 10^8 of the largest number."""
    atol = 1e-8 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=game.name)


@KINDS_OF_LOQA
@pytest.mark.parametrize("variant", ["loqa", "full"])
def test_loqa_ascends_the_log_of_its_model(variant, kind):
    with jax.enable_x64(True):
        for game, i, own, other, _, by_x in cases_of_loqa(kind):
            beta = 0.3 * game.rules.lr

            def ascended(new):
                return normalised(game.rules, i, new, own, other, beta, variant)

            found = rows_of_loqa(game.name, variant, beta)[i]
            assert_close(found, by_x(difference(ascended, own)), game)


@KINDS_OF_LOQA
def test_alignment_and_full_loqa_are_sums_over_pairs_of_rounds(kind):
    """They differ by whose actions A_i(k) is of, and by how far apart rounds count."""
    with jax.enable_x64(True):
        for game, i, _, _, play, by_x in cases_of_loqa(kind):
            beta = 0.3 * game.rules.lr
            pairs = partial(pair_sum, game.rules, play)
            of_both = play.q[0] - play.v[0, :, None]
            of_b = given_b(play, of_both)
            aligned = pairs(of_both, game.rules.discount)
            full = pairs(of_b[:, [0, 0, 1, 1]], 1.0)  # OUTCOMES have j's D, D, C, C

            naive_row = rows_of_loqa(game.name, None, 0.0)[i]
            for variant, slopes in (("alignment", aligned), ("full", full)):
                found = rows_of_loqa(game.name, variant, beta)[i]
                assert_close(found, naive_row + beta * by_x(slopes), game)


def test_alignment_by_its_definition():
    """From histories of seven rounds, which leave out 7 discount^7 or so."""
    with jax.enable_x64(True):
        for game, i, _, _, play, by_x in cases_of_loqa("short"):
            slopes = alignment_by_histories(game.rules, play, beta=2.0, rounds=7)
            found = rows_of_loqa(game.name, "alignment", 2.0)[i]
            shaped = found - rows_of_loqa(game.name, None, 0.0)[i]
            assert np.abs(shaped).max() > 0.02
            np.testing.assert_allclose(found, by_x(slopes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["imp", "bach_or_stravinsky+skewed"])
def test_loqa_without_beta_is_naive_learning_and_goes_with_its_players(name):
    swapped = games.find_game(name + "+swapped")
    with jax.enable_x64(True):
        naive_rows = rows_of_loqa(name, None, 0.0)
        same = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        for variant in ("loqa", "full", "alignment"):
            same(rows_of_loqa(name, variant, 0.0), naive_rows)
            here = rows_of_loqa(name, variant, 0.6)
            assert (np.abs(here - naive_rows).max(axis=-1) > 0.001).all()
            x = policies_of_loqa(swapped)[::-1]
            there = loqa.loqa_gradient(swapped, x, 0.6, variant)
            same(there, here[::-1])


def test_loqa_is_computed_in_float32_at_least():
    """In bfloat16, with its 8 bits, linear systems would leave nothing of it."""
    game = GAMES["ipd"]
    x = random_policies(game, 1)[0].astype(jnp.bfloat16)
    found = jax.jit(loqa.loqa_gradient, static_argnums=(0, 3))(game, x, 1.0, "full")
    assert found.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        expected = loqa.loqa_gradient(game, np.array(x, np.float64), 1.0, "full")
    atol = 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(np.array(found, float), expected, rtol=0, atol=atol)


def test_what_becomes_of_loqa_on_the_ipd():
    """Reciprocity by `full`; by LOQA's factor cooperation whatever the other does."""
    game = GAMES["ipd"]

    @jax.jit
    @jax.vmap
    def play(x):
        ends = []
        for variant, beta in (("full", 2.0), ("loqa", 10.0)):

            def step(x):
                return x + game.lr * loqa.loqa_gradient(game, x, beta, variant)

            ends.append(games.follow(step, x, 500))
        ends = jnp.stack(ends)
        responses = jax.vmap(partial(games.exact_best_response, game))(ends)
        return jax.vmap(game.f)(ends), jax.vmap(game.f)(responses)

    self_play, beside_best = play(random_policies(game, 6))  # (pair, variant, 2)
    same = partial(np.testing.assert_allclose, atol=0.03)
    same(self_play, [[(-1, -1), (-1.05, -1.05)]] * 6)
    same(beside_best, [[(-1, -1), (-2.95, -0.08)]] * 6)


@slow
def test_what_loqas_docstring_says_of_the_ipd():
    """Returns, the agent's first."""
    said = {
        ("full", 2.0, "self_play"): (-1.0, -1.0),
        ("full", 2.0, "exact_best_response"): (-1.0, -1.0),
        ("full", 2.0, "versus_naive"): (-0.55, -2.0),
        ("loqa", 10.0, "self_play"): (-1.05, -1.05),
        ("loqa", 10.0, "exact_best_response"): (-2.94, -0.1),
    }

    @functools.cache
    def results_of(variant, beta):
        config = loqa.make_config(variant=variant, betas=[beta], eval_pairs=64)
        run = partial(loqa.evaluate, game=GAMES["ipd"], config=config)
        return long_running(run)(jax.random.key(0))

    for (variant, beta, play), expected in said.items():
        found = results_of(variant, beta)[play].mean(axis=(0, 1))
        np.testing.assert_allclose(found, expected, atol=0.03, err_msg=play)


def test_loqa_keeps_advantages_in_float32_at_a_discount_near_1():
    """Values are sums of a thousand rounds there, and advantages small differences."""
    game = games.find_game("ipd+discount=0.999")
    keys = jax.random.split(jax.random.key(0), 64)
    xs = np.asarray(jax.vmap(game.init)(keys))
    gradient = partial(loqa.loqa_gradient, game, beta=0.5)
    found = jax.jit(jax.vmap(gradient))(xs)
    with jax.enable_x64(True):
        expected = np.asarray(jax.jit(jax.vmap(gradient))(xs.astype(np.float64)))
    off = np.abs(np.asarray(found) - expected).max(axis=(1, 2))
    assert (off < 3e-3 * np.abs(expected).max(axis=(1, 2))).all()


def test_betas_of_loqa_go_with_payoffs_as_step_sizes_do():
    """On Chicken, where losses are 50 times as large as on the IPD, a twentieth."""
    betas = np.array(loqa.make_config("ipd").betas)
    np.testing.assert_allclose(loqa.make_config("chicken").betas, betas / 20)


# --- cola.py --------------------------------------------------------------------------
# Its equation and loss by finite differences, its training by a plain loop.


def make_model(game="ipd", script="meva", **changes):
    config = tiny(game, script, **changes)
    return SCRIPTS[script].model_init(jax.random.key(1), GAMES[game], config), config


make_cola = partial(make_model, script="cola")
SMALL_COLA = {
    "hidden": 4,
    "blocks": 0,
    "batch_size": 2,
    "outer_steps": 4,
    "share_params": False,
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"semi_gradient": True}, {"variant": "joint"}],
    ids=["both", "left", "joint"],
)
def test_colas_loss_and_its_gradient_against_finite_differences(settings):
    """The gradient, along one direction, is through both sides or through the left."""
    config = cola.make_config(CUBIC, **SMALL_COLA)

    def moved(t):
        return jax.tree.map(lambda leaf, d: leaf + t * d, params, direction)

    def loss(t):
        return cola.consistency_loss(moved(t), CUBIC, X, 0.7, **settings)

    def plain_loss(t):
        # Is the right side held where t = 0?
        held = 0.0 if "semi_gradient" in settings else t[0]
        loss = 0.0
        for i in (0, 1):

            def after_steps(own):
                joint = put(X, i, own)
                steps = 0.7 * np.asarray(model(held, joint))
                if "variant" not in settings:
                    steps[i] = 0  # one's own is not imagined
                return cubic(joint + steps)[i]

            right = difference(after_steps, X[i], step=1e-3)
            loss += ((model(t[0], X)[i] - right) ** 2).sum()
        return loss

    with jax.enable_x64(True):
        params = cola.model_init(jax.random.key(1), CUBIC, config)
        direction = cola.model_init(jax.random.key(2), CUBIC, config)
        model = jax.jit(lambda t, x: cola.cola_gradient(moved(t), CUBIC, x, 0.7))
        value, slope = jax.jit(jax.value_and_grad(loss))(0.0)
        np.testing.assert_allclose(value, plain_loss([0.0]), rtol=1e-6)
        expected = difference(plain_loss, np.zeros(1))
        np.testing.assert_allclose(slope, expected[0], rtol=1e-6)


@pytest.mark.parametrize("variant", ["exact", "joint"])
@pytest.mark.parametrize("a", [0.1, 2.0])
def test_both_sides_are_equal_where_colas_equation_is_solved(monkeypatch, variant, a):
    """On Tandem g(s) = A s + B, s = x_1 + x_2, solves it in closed form."""
    if variant == "exact":
        slope, offset = tandem_by_cola(a)
    else:  # Eq. 4: A = -2 u^2 and u = 1 + 2 a A, which is 1 at a = 0
        u = ((1 + 16 * a) ** 0.5 - 1) / (8 * a)
        slope = (u - 1) / (2 * a)
        offset = 2 * (1 + a * slope) / (1 + 4 * a * u)
    monkeypatch.setattr(
        cola, "model_row", lambda model, own, other, a: slope * (own + other) + offset
    )
    game = GAMES["tandem"]._replace(features=lambda x: x)
    for x in random_policies(game, 3):
        left, right = cola.both_sides((None, None), game, x, a, variant)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="exact or joint, not taylor"):
        cola.both_sides((None, None), game, x, a, "taylor")


def test_both_sides_of_colas_equation_of_a_rule():
    """By finite differences; and a model's squared distance is its loss."""
    rule = jax.jit(partial(sos.sos_gradient, CUBIC.f, alpha=0.3))

    def change_of(i):
        return lambda x: 0.7 * np.asarray(rule(x))[1 - i]

    with jax.enable_x64(True):
        left, right = report.sides_of_equation(rule, CUBIC.f, jnp.array(X), 0.7)
        np.testing.assert_allclose(left, rule(X), rtol=1e-12)
        for i in (0, 1):
            expected = look_ahead_by_differences(cubic, i, X, change_of(i))
            np.testing.assert_allclose(right[i], expected, rtol=1e-6)

        config = cola.make_config(CUBIC, **SMALL_COLA)
        params = cola.model_init(jax.random.key(1), CUBIC, config)
        model = partial(cola.cola_gradient, params, CUBIC, alpha=0.7)
        left, right = report.sides_of_equation(model, CUBIC.f, jnp.array(X), 0.7)
        loss = cola.consistency_loss(params, CUBIC, X, 0.7)
        np.testing.assert_allclose(((left - right) ** 2).sum(), loss, rtol=1e-12)


def drawn_by(key, count, extent):
    """The joint policies of CUBIC that COLA draws: uniform, or by init."""
    if extent > 0:
        return jax.random.uniform(key, (count, 2, 2), minval=-extent, maxval=extent)
    return jax.vmap(CUBIC.init)(jax.random.split(key, count))


def simple_loss(params, game, x, alpha, variant, semi_gradient):
    """In place of COLA's: of the last biases, and three times as large if held."""
    assert variant == "joint"
    biases = jnp.stack([model.readout["b"] for model in params])
    loss = ((biases - alpha * x) ** 2).sum()
    return 3 * loss if semi_gradient else loss


def biases_by_loop(key, config):
    """Adam by hand on `simple_loss`. The keys of steps are 1, 2, ... of the seed's.

    Returns the biases, and curves of the loss and the gradient's norm, (2, step).
    """
    b, first, second = np.zeros((3, 2, 2))
    curves = []
    for t in range(config.outer_steps):
        key_x, key_alpha = jax.random.split(jax.random.fold_in(key, 1 + t))
        xs = drawn_by(key_x, config.batch_size, config.train_extent)
        shares = jax.random.uniform(key_alpha, (config.batch_size, 1, 1))
        width = config.alpha_max - config.alpha_min
        errors = np.asarray(b - (config.alpha_min + width * shares) * xs)
        loss = 3 * (errors**2).sum() / config.batch_size
        slope = 6 * errors.mean(axis=0)
        curves.append([loss, np.linalg.norm(slope)])
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        mean = first / (1 - 0.9 ** (t + 1))
        square = second / (1 - 0.999 ** (t + 1))
        lr = config.model_lr * (1 + np.cos(np.pi * t / config.outer_steps)) / 2
        b = b - lr * mean / np.sqrt(square)
    return b, np.transpose(curves)


def test_cola_is_evaluated_at_steps_that_it_is_trained_for():
    def alphas(**changes):
        return cola.make_config("ipd", **changes).eval_alphas

    assert alphas() == (0, 1, 2, 5, 10)
    assert alphas(alpha_max=5.0) == (0, 0.5, 1, 2.5, 5)
    assert alphas(alpha_min=5.0, alpha_max=5.0) == (5,)
    np.testing.assert_allclose(alphas(alpha_min=2.0), (2, 2.8, 3.6, 6, 10))
    assert alphas(alpha_min=0.3, alpha_max=0.9)[-1] == 0.9  # without rounding


@pytest.mark.parametrize("extent, alpha_min", [(0.0, 0.0), (3.0, 1.5)])
def test_colas_training_against_a_loop(extent, alpha_min, monkeypatch):
    """In two chunks and in one: all batches differ, Adam goes on, its rate decays."""
    monkeypatch.setattr(cola, "consistency_loss", simple_loss)
    key = jax.random.key(3)
    changes = {"semi_gradient": True, "alpha_max": 2.0, "variant": "joint"}
    changes |= {"alpha_min": alpha_min, "train_extent": extent}
    config = cola.make_config(CUBIC, **SMALL_COLA | changes)
    b, expected = biases_by_loop(key, config)
    chunk = jax.jit(lambda state: cola.train_chunk(key, state, CUBIC, config, 2))
    half, early = chunk(cola.train_init(key, CUBIC, config))
    state, late = chunk(half)
    params, curves = jax.jit(lambda: cola.train(key, CUBIC, config))()
    for pair in (state.params, params):
        found = [model.readout["b"] for model in pair]
        np.testing.assert_allclose(found, b, rtol=1e-4)
    for i, name in enumerate(("loss", "gradient_norm")):
        np.testing.assert_allclose(curves[name], expected[i], rtol=1e-4)
        chunks = np.append(early[name], late[name])
        np.testing.assert_allclose(chunks, expected[i], rtol=1e-4)
    drawn = cola.model_init(jax.random.fold_in(key, 0), CUBIC, config)
    for model, start in zip(params, drawn):
        np.testing.assert_allclose(model.readout["w"], start.readout["w"])
    assert not np.array_equal(drawn[0].readout["w"], drawn[1].readout["w"])


@slow
def test_trained_cola_stops_on_tandem_at_its_closed_form():
    game = GAMES["tandem"]
    config = cola.make_config("tandem", outer_steps=2500)
    train = long_running(lambda key: cola.train(key, game, config))
    params, _ = train(jax.random.key(0))
    grid = games.planar_grid(game).reshape(-1, 2, 1)
    # From others the path leaves where it was trained.
    near = jnp.abs(grid[:, 0, 0] - grid[:, 1, 0]) < 4.5
    grid = grid[near][::7]

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def end(x, alpha):
        def step(x):
            return x + config.lr * cola.cola_gradient(params, game, x, alpha)

        return games.follow(step, x, config.eval_steps)

    for alpha in (0.1, 0.2, 0.3):
        slope, offset = tandem_by_cola(alpha)
        sums = end(grid, alpha).sum((1, 2))
        np.testing.assert_allclose(sums, -offset / slope, atol=1e-2)


@pytest.mark.parametrize("extent", [0.0, 2.0])
def test_consistency_is_measured_as_it_is_defined(extent, monkeypatch):
    """Beside HOLA by finite differences, of the last joint policy.

    COLA's own two sides are `both_sides`, which the test of its loss checks.
    """
    monkeypatch.setattr(cola, "HELD_OUT", 3)
    monkeypatch.setattr(cola, "ORDERS", (0, 1, 2))  # HOLA(3) takes long to compile
    key = jax.random.key(4)
    config = cola.make_config(CUBIC, **SMALL_COLA)
    with jax.enable_x64(True):
        params = cola.model_init(key, CUBIC, config)
        judge = partial(cola.evaluate_consistency, variant="joint", extent=extent)
        measured = jax.jit(partial(judge, game=CUBIC, alpha=0.5))(key, params)
        x = np.array(drawn_by(key, 3, extent)[2])
        both = jax.jit(lambda x: cola.both_sides(params, CUBIC, x, 0.5, "joint"))
        left, right = np.array(both(x))
    same = partial(np.testing.assert_allclose, rtol=1e-5)
    same(measured["consistency"][2], ((left - right) ** 2).sum())
    same(measured["squared_norm"][2], (left**2).sum())
    holas = np.array([hola_rows(x, [0.5, 0.5], order) for order in range(3)])
    distances = (np.diff(holas, axis=0) ** 2).sum((1, 2))
    same(measured["hola_consistency"][:, 2], distances)
    lengths = np.sqrt((holas**2).sum((1, 2)) * (left**2).sum())
    same(measured["hola_cosine"][:, 2], (holas * left).sum((1, 2)) / lengths)


def test_cola_is_judged_on_policies_that_neither_training_nor_evaluation_draws():
    def judge(key, params, game, alpha, variant, extent):
        assert variant == "joint"
        judged_by = jax.random.key_data(key)
        return {"judged_by": judged_by, "alpha": alpha, "extent": extent}

    def evaluate(key, game, step, **settings):
        return {"drawn_by": jax.random.key_data(key)}

    changes = {"variant": "joint", "train_extent": 3.0}
    config = cola.make_config(CUBIC, **SMALL_COLA | changes)
    with mock.patch.multiple(cola, evaluate_consistency=judge, evaluate_game=evaluate):
        found = cola.evaluate(jax.random.key(5), None, CUBIC, config)
    assert not np.array_equal(found["judged_by"], found["drawn_by"])
    assert cola.ORDERS == (0, 1, 2, 3)
    np.testing.assert_allclose(found["alpha"], config.eval_alphas)
    np.testing.assert_allclose(found["extent"], 3.0)


@slow
def test_cola_on_four_devices_is_cola_on_one(tmp_path):
    """Each has a share of the batch, and there is one mean of all their gradients."""
    settings = {"alpha_max": 0.5, "outer_steps": 5}
    words = ["--game", "tandem", *flags(**TINY["cola"] | TINY_EVAL | settings)]
    process = start(tmp_path, *words, script="cola", JAX_NUM_CPU_DEVICES="4")
    out, err = process.communicate(timeout=300)
    assert "4 x cpu" in out, err
    one = run(tmp_path / "one", game="tandem", script="cola", **settings)
    with np.load(tmp_path / "results/cola_tandem.npz") as four:
        for name in ("loss", "gradient_norm", "params/readout/w", "field"):
            np.testing.assert_allclose(four[name], one[name], rtol=1e-3, atol=1e-5)


# --- meva.py, and the network that cola.py shares with it: a forward pass in numpy ----

meta_value = jax.jit(meva.meta_value, static_argnames="game")


def plain_gelu(x):
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def plain_linear(p, x):
    return x @ p["w"] + p["b"]


def plain_layer(p, x, config):
    """h = w x + b, or (h - mean) / sqrt(variance + 1e-6) over the units, if so set."""
    h = plain_linear(p, x)
    if config.layer_norm:
        h = h - h.mean(-1, keepdims=True)
        h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6)
    return h


def plain_mlp(p, x, config, last):
    """first -> blocks h <- gate h + (1 - gate) out(in(h)) -> last (App. D)."""
    h = plain_gelu(plain_layer(p["first"], x, config))
    for block in p["blocks"]:
        gate = 1 / (1 + np.exp(-block["gate"]))
        inner = plain_gelu(plain_layer(block["in"], h, config))
        h = gate * h + (1 - gate) * plain_linear(block["out"], inner)
    return last(plain_layer(p["last"], h, config))


def plain_network(params, config, seen, given, signs=1.0):
    """z_i = mlp(seen_i, given_i), h_i = mlp(z_i, z_j), row i = (signs_i h_i) w + b.

    (..., 2, m), (2,) or (..., 2) -> (..., 2, outputs). Of two models each has a row.
    """
    if isinstance(params, tuple):
        one, two = [plain_network(p, config, seen, given, signs) for p in params]
        return np.stack([one[..., 0, :], two[..., 1, :]], axis=-2)
    given = np.broadcast_to(given, seen.shape[:-1])
    inputs = np.concatenate([seen, given[..., None]], axis=-1)
    z = plain_mlp(params.embed, inputs, config, plain_gelu)
    both = np.concatenate([z, z[..., ::-1, :]], axis=-1)
    last = np.tanh if config.last_activation == "tanh" else plain_gelu
    h = plain_mlp(params.combine, both, config, last)
    return plain_linear(params.readout, signs * h)


@pytest.mark.parametrize("script", TRAINED)
@pytest.mark.parametrize(
    "layer_norm, last", [(True, "tanh"), (False, "tanh"), (True, "gelu")]
)
def test_network_is_the_one_of_appendix_d(script, layer_norm, last):
    """For both players by one model, and by a model for each. Alpha is 4 of 10."""
    game = GAMES["ipd"]
    x = random_policies(game, 1)[0]
    settings = {"layer_norm": layer_norm, "last_activation": last}
    pair, config = make_model(script=script, blocks=2, share_params=False, **settings)
    pair = jax.tree.map(  # biases and gates that are not 0
        lambda leaf: np.asarray(leaf) + np.linspace(-0.5, 0.5, leaf.shape[-1]), pair
    )
    seen = 1 / (1 + np.exp(-x))
    for params in (pair[0], pair):
        if script == "meva":
            given = np.array([0.3, 0.8])
            rows = meva.meta_quantiles(params, game, x, given)
        else:
            given = 0.4
            rows = cola.cola_gradient(params, game, x, 4.0)
        expected = plain_network(params, config, seen, given)
        np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("script", TRAINED)
def test_initial_weights_are_independent_and_scaled_by_their_inputs(script):
    """No key draws two layers, players or seeds; the variance is 1 / inputs."""
    config = tiny(script=script, hidden=128, blocks=2, share_params=False)
    init = partial(SCRIPTS[script].model_init, game=GAMES["ipd"], config=config)
    leaves = jax.tree.leaves([init(jax.random.key(0)), init(jax.random.key(1))])
    weights = [leaf for leaf in leaves if leaf.ndim == 2]  # (inputs, outputs)
    numbers = [leaf.ravel()[:300] * len(leaf) ** 0.5 for leaf in weights]
    # Of so many covariances some are off by four standard errors of .06.
    np.testing.assert_allclose(np.cov(numbers), np.eye(len(weights)), atol=0.4)
    for leaf in leaves:
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, 0)  # biases, and gates: half open


# --- meva.py: a game whose derivatives are known, and complex steps -------------------


def duel(x, math=jnp):
    """f_1 = sum sin(a + 2 b), f_2 = sum cos(2 a - b) - b^2 / 4, of x = (a, b).

    (..., 2, n) -> (..., 2), by jax.numpy or numpy. The players are not alike.
    """
    a = x[..., 0, :]
    b = x[..., 1, :]
    f_1 = math.sin(a + 2 * b).sum(-1)
    f_2 = (math.cos(2 * a - b) - b**2 / 4).sum(-1)
    return math.stack([f_1, f_2], -1)


DUEL = Game(
    name="duel",
    n=2,
    f=duel,
    init=lambda key: jax.random.uniform(key, (2, 2), minval=-1.0),
    features=jnp.tanh,
    labels=("p", "q"),
    symmetric=False,
)
PLANAR_DUEL = DUEL._replace(n=1, init=lambda key: jax.random.uniform(key, (2, 1)))
# Returns of a game of chance: f times a number that the key draws.
LUCKY_DUEL = DUEL._replace(
    sample=lambda key, x: (1 + jax.random.uniform(key)) * duel(x)
)


def luck(keys):
    """What a lucky duel multiplies returns by, (batch, 1); 1 without keys."""
    if keys is None:
        return 1.0
    return 1 + np.array([jax.random.uniform(key) for key in keys])[:, None]


def plain_gradient(value, x):
    """Row i is the derivative of number i by x_i, Im value(x + i h e) / h.

    `value` takes (batch, 2, n), also complex, to (batch, 2). Returns (batch, 2, n).
    """
    gradient = np.zeros_like(x)
    for i, k in np.ndindex(x.shape[1:]):
        moved = x.astype(complex)
        moved[:, i, k] += 1e-30j
        gradient[:, i, k] = value(moved)[:, i].imag / 1e-30
    return gradient


def plain_meta_gradient(params, config, x, gamma, signs=1.0):
    """Row i is the derivative of player i's mean quantile by x_i. (batch, 2, n)."""

    def value(x):
        return plain_network(params, config, np.tanh(x), gamma, signs).mean(-1)

    return plain_gradient(value, x)


def plain_directions(params, config, x, gamma, keys=None):
    """grad V (Eq. 6) or grad f + gamma grad U (Sec. 4.1), or that with (1 - gamma).

    A model trained beside an opponent is told that the other's gamma is 0.
    """
    slopes = plain_meta_gradient(params, config, x, gamma)
    if config.opponent != "self":
        for i in (0, 1):
            own = gamma * np.eye(2)[i]
            slopes[:, i] = plain_meta_gradient(params, config, x, own)[:, i]
    if config.form == "V":
        return slopes
    gamma = np.expand_dims(gamma, -1)
    naive = plain_gradient(lambda x: luck(keys) * duel(x, np), x)
    if config.normalized_step:
        naive = (1 - gamma) * naive
    return naive + gamma * slopes


def plain_opponent_slope(config, x, keys=None):
    """df_2/db + df_2/da dc/db, with c = alpha df_1/da for LOLA and 0 if naive.

    In LOLA's exact form at a + c, in the other at a. In closed form. (batch, n).
    """
    a = x[:, 0]
    b = x[:, 1]
    alpha = 0.0 if config.opponent == "naive" else config.alpha
    if config.opponent == "lola" and keys is not None:
        keys, keys_ahead = jax.vmap(jax.random.split)(keys).T
        alpha = alpha * luck(keys_ahead)
    at = a
    if config.variant == "exact":
        at = a + alpha * np.cos(a + 2 * b)
    slope = np.sin(2 * at - b)
    change = -2 * alpha * np.sin(a + 2 * b)
    return luck(keys) * (slope - b / 2 - 2 * slope * change)


def plain_step(config, x, rows, keys=None):
    """x + lr rows; with an opponent its step is player 2's. (batch, 2, n)."""
    if config.opponent != "self":
        rows = np.stack([rows[:, 0], plain_opponent_slope(config, x, keys)], axis=1)
    return x + config.lr * rows


@pytest.mark.parametrize(
    "opponent, variant",
    [("naive", "exact"), ("lola", "exact"), ("lola", "taylor-stop")],
)
def test_a_step_beside_an_opponent(opponent, variant):
    """By exact returns and by estimates, of which LOLA has two. Player 1 follows x."""
    settings = {"opponent": opponent, "variant": variant, "alpha": 0.7}
    config = tiny(LUCKY_DUEL, lr=0.3, **settings)
    step = meva.training_step(lambda x, key: x, LUCKY_DUEL, config)
    x = random_policies(DUEL, 1)
    plain_x = np.asarray(x)
    keys = jax.random.split(jax.random.key(1), 1)
    for found, keys_now in ((step(x[0]), None), (step(x[0], keys[0]), keys)):
        expected = plain_step(config, plain_x, plain_x, keys_now)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- meva.py: targets and losses against their formulas -------------------------------


def plain_targets(rewards, values, gamma, bootstrap):
    """Y(t) = (1 - gamma) r(t) + gamma ((1 - lambda) U(x(t + 1)) + lambda Y(t + 1)).

    Y(k) = U(x(k)). rewards (k, ...), values U(x(1)), ..., U(x(k)) (k, ..., M).
    """
    targets = np.zeros_like(values)
    target = values[-1]
    for t in reversed(range(len(rewards))):
        future = (1 - bootstrap) * values[t] + bootstrap * target
        earned = (1 - gamma) * rewards[t]
        target = earned[..., None] + gamma[..., None] * future
        targets[t] = target
    return targets


def plain_quantile_loss(predictions, targets):
    """sum_i mean_j |tau_i - [e_ij < 0]| huber(e_ij), e_ij = target_j - prediction_i.

    tau_i = (i + 1/2) / M. (..., M), (..., M) -> (...), complex in a complex step.
    """
    count = predictions.shape[-1]
    tau = (np.arange(count) + 0.5) / count
    error = targets[..., None, :] - predictions[..., :, None]
    size = error * np.sign(error.real)
    huber = np.where(size.real <= 1, error**2 / 2, size - 0.5)
    weight = np.abs(tau[:, None] - (error.real < 0))
    return (weight * huber).mean(-1).sum(-1)


def test_lambda_returns_against_a_loop():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(5, 2))
    values = rng.normal(size=(5, 2, 3))
    gamma = np.array([0.4, 0.9])
    found = meva.lambda_returns(rewards, values, gamma, 0.7)
    expected = plain_targets(rewards, values, gamma, 0.7)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_quantile_loss_is_the_one_of_appendix_c():
    predictions, targets = 2 * np.random.default_rng(0).normal(size=(2, 6, 5))
    losses = meva.quantile_loss(predictions, targets)
    expected = plain_quantile_loss(predictions, targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


# --- meva.py: Algorithm 1 against plain loops, in float64 -----------------------------


class PlainLearner(NamedTuple):
    """Parameters of a model and of its target network, AdamW's moments and count."""

    theta: np.ndarray  # (parameters,), as are the next three
    target: np.ndarray
    first: np.ndarray
    second: np.ndarray
    count: int
    unravel: object  # theta -> the model


def plain_ravel(params):
    """All parameters as a vector, and the function from such a vector to a model."""
    leaves, tree = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])

    def unravel(theta):
        parts = []
        for part, leaf in zip(np.split(theta, ends[:-1]), leaves):
            parts.append(part.reshape(leaf.shape))
        return tree.unflatten(parts)

    return np.concatenate([leaf.ravel() for leaf in leaves]), unravel


def plain_td_loss(params, target_params, config, xs, gamma, rewards):
    """Mean quantile loss over steps, trajectories and learners; mean TD error.

    The TD error is |E target - E prediction|. xs (k + 1, batch, 2, n).
    """
    predictions = plain_network(params, config, np.tanh(xs[:-1]), gamma)
    values = plain_network(target_params, config, np.tanh(xs[1:]), gamma)
    targets = plain_targets(rewards, values, gamma, config.bootstrap)
    if config.opponent != "self":
        predictions = predictions[:, :, :1]
        targets = targets[:, :, :1]
    losses = plain_quantile_loss(predictions, targets)
    errors = np.abs((targets - predictions).mean(-1))
    return losses.mean(), errors.mean()


def complex_gradient(loss, theta):
    """The gradient of loss(theta), (), by a complex step along each parameter."""
    gradient = np.zeros_like(theta)
    for k in range(len(theta)):
        moved = theta.astype(complex)
        moved[k] += 1e-30j
        gradient[k] = loss(moved).imag / 1e-30
    return gradient


def plain_adamw(learner, gradient, config):
    """theta <- theta - eta (m^ / (sqrt(v^) + 1e-8) + decay theta).

    m^ = m / (1 - .9^c), v^ = v / (1 - b2^c): of means of the gradient and its square.
    """
    b2 = config.adam_b2
    count = learner.count + 1
    first = 0.9 * learner.first + 0.1 * gradient
    second = b2 * learner.second + (1 - b2) * gradient**2
    step = first / (1 - 0.9**count) / (np.sqrt(second / (1 - b2**count)) + 1e-8)
    step = step + config.weight_decay * learner.theta
    theta = learner.theta - config.model_lr * step
    return learner._replace(theta=theta, first=first, second=second, count=count)


def plain_update(learner, config, xs, gamma, rewards):
    """AdamW, then theta bar <- rho theta bar + (1 - rho) theta. (learner, metrics).

    Targets are theta bar's, or the model's own if rho = 0, constant or not.
    """
    rho = config.target_inertia

    def loss(theta):
        target = theta
        if config.semi_gradient:
            target = learner.target if rho > 0 else learner.theta
        models = learner.unravel(theta), learner.unravel(target)
        return plain_td_loss(*models, config, xs, gamma, rewards)

    gradient = complex_gradient(lambda theta: loss(theta)[0], learner.theta)
    metrics = [*loss(learner.theta), np.linalg.norm(gradient)]
    learner = plain_adamw(learner, gradient, config)
    target = rho * learner.target + (1 - rho) * learner.theta
    return learner._replace(target=target), metrics


def plain_gammas(key, config):
    """sin^2(pi u / 2), u uniform, or the one that is fixed; an opponent's is 0."""
    shape = (config.batch_size, 2)
    gammas = np.sin(np.pi / 2 * np.asarray(jax.random.uniform(key, shape))) ** 2
    if config.fixed_gamma is not None:
        gammas = np.full(shape, config.fixed_gamma)
    return gammas if config.opponent == "self" else gammas * [1, 0]


def stretch_keys(key, purpose, game, config):
    """For exploration (0), rollout (1) or rewards (2): (k, batch), if it draws."""
    if game.sample is None:
        return [None] * config.stride
    keys = jax.random.split(jax.random.fold_in(key, purpose), config.batch_size)
    return jax.vmap(lambda key: jax.random.split(key, config.stride))(keys).T


def plain_explore(explorer, config, x, gamma, signs, keys):
    """k steps along the gradient of the flipped model alone. (batch, 2, n)."""
    for keys_now in keys:
        rows = plain_meta_gradient(explorer, config, x, gamma, signs)
        x = plain_step(config, x, rows, keys_now)
    return x


def plain_rollout(params, config, x, gamma, keys):
    """x(0), ..., x(k) along the directions of Eq. 6. (k + 1, batch, 2, n)."""
    xs = [x]
    for keys_now in keys:
        rows = plain_directions(params, config, xs[-1], gamma, keys_now)
        xs.append(plain_step(config, xs[-1], rows, keys_now))
    return np.stack(xs)


def plain_rewards(config, xs, keys):
    """f at x(t + 1) in form U, at x(t) in form V, or estimates of it. (k, batch, 2)."""
    rewarded = xs[1:] if config.form == "U" else xs[:-1]
    return np.stack([luck(now) * duel(x, np) for x, now in zip(rewarded, keys)])


def plain_outer_loop(key, learner, game, config):
    """T / k times: explore or go on, roll out, update. Returns (learner, metrics)."""
    key_x, key_gamma, key_signs, key_stretches = jax.random.split(key, 4)
    x = np.stack([game.init(k) for k in jax.random.split(key_x, config.batch_size)])
    explorer = learner.unravel(learner.theta)
    held_gamma = plain_gammas(key_gamma, config)
    shape = (config.batch_size, 2, config.hidden)
    flips = jax.random.bernoulli(key_signs, config.flip_prob, shape)
    signs = np.where(flips, -1, 1)
    metrics = []
    stretches = config.rollout_length // config.stride
    for key_now in jax.random.split(key_stretches, stretches):
        keys = [stretch_keys(key_now, purpose, game, config) for purpose in range(3)]
        if config.explore:
            x = plain_explore(explorer, config, x, held_gamma, signs, keys[0])
        gamma = plain_gammas(key_now, config)
        params = learner.unravel(learner.theta)
        xs = plain_rollout(params, config, x, gamma, keys[1])
        rewards = plain_rewards(config, xs, keys[2])
        learner, numbers = plain_update(learner, config, xs, gamma, rewards)
        metrics.append(numbers)
        if not config.explore:
            x = xs[-1]
    return learner, np.mean(metrics, axis=0)


def plain_monitor(key, params, game, config):
    """Mean return of 32 pairs after 200 steps at the fixed gamma, or at .95. ()

    Player 1's where players are not alike.
    """
    gamma = 0.95 if config.fixed_gamma is None else config.fixed_gamma
    x = np.stack([game.init(k) for k in jax.random.split(key, 32)])
    xs = plain_rollout(params, config, x, np.full(2, gamma), [None] * 200)
    returns = duel(xs[-1], np)
    if config.opponent != "self" or not game.symmetric:
        returns = returns[:, :1]
    return returns.mean()


SMALL_LOOP = {
    "batch_size": 2,
    "rollout_length": 4,
    "stride": 2,
    "outer_steps": 7,
    "hidden": 4,
    "blocks": 0,
    "quantiles": 2,
    "layer_norm": False,
    "lr": 0.1,
    "model_lr": 0.01,
    "weight_decay": 0.1,
    "target_inertia": 0.0,
    "flip_prob": 0.25,
    "share_params": False,  # beside an opponent there is one model all the same
}
LOOPS = {  # game and settings: in the three most techniques are on and off
    "V-explore": (DUEL, {"form": "V", "target_inertia": 0.9, "bootstrap": 0.6}),
    "U-both-sides": (
        DUEL._replace(symmetric=True),
        {
            "form": "U",
            "explore": False,
            "semi_gradient": False,
            "fixed_gamma": 0.4,
            "share_params": True,
        },
    ),
    "U-beside-lola": (
        LUCKY_DUEL._replace(symmetric=True),
        {"form": "U", "opponent": "lola", "alpha": 0.7, "normalized_step": True},
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_algorithm_1_and_its_td_loss_against_plain_loops(name):
    """Two chunks of one loop each, which is two stretches, and an update after each."""
    game, settings = LOOPS[name]
    config = tiny(game, **SMALL_LOOP | settings)
    key = jax.random.key(5)
    key_monitor = jax.random.fold_in(key, 1 + config.outer_steps)
    same = partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9)
    with jax.enable_x64(True):
        chunk = jax.jit(lambda state: meva.train_chunk(key, state, game, config, 1))
        state = meva.train_init(key, game, config)
        assert isinstance(state.params, tuple) == (name == "V-explore")
        params = meva.model_init(jax.random.fold_in(key, 0), game, config)
        theta, unravel = plain_ravel(params)
        zeros = np.zeros_like(theta)
        learner = PlainLearner(theta, theta, zeros, zeros, 0, unravel)
        for loop in (1, 2):
            state, curves = chunk(state)
            key_loop = jax.random.fold_in(key, loop)
            learner, metrics = plain_outer_loop(key_loop, learner, game, config)
            params = unravel(learner.theta)
            returns = plain_monitor(key_monitor, params, game, config)
            same(plain_ravel(state.params)[0], learner.theta)
            same(plain_ravel(state.target_params)[0], learner.target)
            names = ("loss", "td_error", "gradient_norm", "self_play_curve")
            found = [curves[name] for name in names]
            same(np.ravel(found), [*metrics, returns])


def test_gammas_follow_their_distribution():
    """Beta(1/2, 1/2), whose distribution function is 2 / pi arcsin(sqrt(gamma))."""
    gammas = meva.draw_gammas(jax.random.key(0), tiny(batch_size=10000))
    for gamma in (0.1, 0.25, 0.5, 0.75, 0.9):
        share = 2 / np.pi * np.arcsin(np.sqrt(gamma))
        found = (gammas < gamma).mean(axis=0)
        np.testing.assert_allclose(found, share, atol=0.015)  # three standard errors
    fixed = tiny(opponent="naive", fixed_gamma=0.5)  # an opponent's stays 0
    np.testing.assert_array_equal(meva.draw_gammas(None, fixed), [(0.5, 0)] * 4)


# --- meva.py: evaluation, by which rules it is done -----------------------------------


def rules_handed_over(
    key, game, step, *, step_beside, opponent_step, agents, lr, steps, pairs
):
    """In place of `evaluate_game`: where a step of each rule leads from a policy."""
    x = game.init(key)
    results = {"self_play": 0.0, "policies": step(x)}
    results["settings"] = jnp.array([lr, steps, pairs])
    for agent in agents:
        results[f"beside_{agent}"] = step_beside(agent)(x)
    if opponent_step is not None:
        results["opponent"] = opponent_step(x)
    return results


def plain_rules(params, config, game, x, gamma):
    """The same in numpy, at one gamma, and values on the grid."""

    def moved(*gammas):
        rows = plain_directions(params, config, x[None], np.array(gammas))
        return x + config.lr * rows[0]

    results = {"policies": moved(gamma, gamma), "beside_0": moved(gamma, 0)}
    settings = (config.lr, config.eval_steps, config.eval_pairs)
    results["settings"] = np.array(settings)
    gammas = np.array([gamma, gamma])
    if config.opponent != "self":
        standing = np.zeros((1, 2, 1))
        results["opponent"] = plain_step(config, x[None], standing)[0]
        gammas = np.array([gamma, 0])
    if config.opponent != "self" and not game.symmetric:  # no model of player 2
        results["policies"][1] = results["opponent"][1]
    else:
        results["beside_1"] = moved(0, gamma)
        results["self_play"] = 0.0
    line = np.linspace(-10, 10, 29)
    grid = np.stack(np.meshgrid(line, line), axis=-1)[..., None]
    values = plain_network(params, config, np.tanh(grid), gammas).mean(-1)
    return results | {"values": values}


@pytest.mark.parametrize(
    "opponent, symmetric", [("self", False), ("lola", True), ("lola", False)]
)
def test_by_which_rules_a_model_is_evaluated(opponent, symmetric, monkeypatch):
    """Beside others their gamma is 0. In a symmetric game the model plays itself."""
    monkeypatch.setattr(meva, "evaluate_game", rules_handed_over)
    game = PLANAR_DUEL._replace(symmetric=symmetric)
    settings = {"alpha": 0.7, "lr": 0.3, "hidden": 4, "blocks": 0}
    config = tiny(game, opponent=opponent, **settings)
    key = jax.random.key(2)
    params = meva.model_init(key, game, config)
    results = jax.jit(lambda: meva.evaluate(key, params, game, config))()
    params = jax.tree.map(np.asarray, params)
    x = np.asarray(game.init(key))
    for g, gamma in enumerate(config.eval_gammas):
        expected = plain_rules(params, config, game, x, gamma)
        found = {name: array[g] for name, array in results.items()}
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


# --- maml.py --------------------------------------------------------------------------
# Training by a plain loop: gradients by finite differences, Adam in numpy.

# A game of one's own. Its returns are polynomials that numpy and JAX both work out:
# differences of them are exact but for rounding, those of meta-returns to order step^4.
# Nothing is alike for the players.
LOPSIDED = Game(
    "mine",
    n=2,
    f=lambda x: x[:, 0] * x[::-1, 1] - x[:, 1] ** 2 * x[::-1, 0] + x[0, 0] * x[0, 1],
    init=lambda key: jax.random.normal(key, (2, 2)),
    features=lambda x: 1 / (1 + x**2),
    labels=("a", "b"),
    symmetric=False,
    lr=0.3,
    alphas=(0.0, 0.1),
)


def derivative(f, x, i, by):
    """d f_i / d x_by, by differences."""
    return difference(lambda row: f(put(x, by, row))[i], x[by])


def maml_return(numbers, opponent, agent, config):
    """The mean of f_i(x(1)), ..., f_i(x(T)), where x_j' = x_j + s_j d f_j / d x_j.

    The agent i begins at all `numbers` but the last, which is its step size s_i.
    """
    x = put(opponent, agent, numbers[:-1])
    sizes = put(np.full(2, config.lr), agent, numbers[-1])
    returns = []
    for _ in range(config.rollout_length):
        slopes = [derivative(LOPSIDED.f, x, j, by=j) for j in (0, 1)]
        x = x + sizes[:, None] * slopes
        returns.append(LOPSIDED.f(x)[agent])
    return np.mean(returns)


class Adam:
    """Kingma and Ba (2015): x' = x - lr mean / (sqrt(square) + 1e-8).

    The moments are m' = .9 m + .1 g and v' = .999 v + .001 g^2, corrected for
    beginning at 0.
    """

    def __init__(self, lr):
        self.lr = lr
        self.count = 0
        self.m = 0.0
        self.v = 0.0

    def descend(self, x, gradient):
        self.count += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        mean = self.m / (1 - 0.9**self.count)
        square = self.v / (1 - 0.999**self.count)
        return x - self.lr * mean / (np.sqrt(square) + 1e-8)


def maml_training(key, agent, config):
    """An agent's numbers before each step of Adam and at last, and its mean returns.

    Step t has opponents of its own, by key number 1 + t. The loss is the mean over both
    agents of what they get, with the other sign.
    """
    policy = LOPSIDED.init(jax.random.fold_in(key, 0))[agent]
    path = [np.append(policy, config.lr)]
    losses = []
    adam = Adam(config.model_lr)
    for step in range(config.outer_steps):
        key_step = jax.random.fold_in(key, 1 + step)
        keys = jax.random.split(key_step, (2, config.batch_size))[agent]
        opponents = np.asarray([LOPSIDED.init(key) for key in keys])

        def loss(numbers, opponents=opponents):
            returns = [maml_return(numbers, x, agent, config) for x in opponents]
            return -np.mean(returns) / 2

        losses.append(loss(path[-1]))
        path.append(adam.descend(path[-1], difference(loss, path[-1])))
    return np.array(path), np.array(losses)


def test_maml_ascends_mean_returns_by_adam_in_chunks_of_any_length():
    """Three steps in chunks of two, of two seeds and of both agents.

    `meta_return` and its gradient are compared at each step.
    """
    seeds = np.array([3, 4], np.uint32)
    settings = {
        "outer_steps": 3,
        "batch_size": 2,
        "rollout_length": 2,
        "model_lr": 0.05,
    }
    config = maml.make_config(LOPSIDED, lr=0.2, **settings)
    same = partial(np.testing.assert_allclose, rtol=1e-6)
    with jax.enable_x64(True), mock.patch.object(maml, "CHUNK", 2):
        params, curves = maml.train_seeds(seeds, LOPSIDED, config)
        for row, seed in enumerate(seeds):
            key, _ = jax.random.split(jax.random.key(seed))
            total = 0.0
            for agent in (0, 1):
                path, losses = maml_training(key, agent, config)
                same(params.policy[row, agent], path[-1, :2])
                same(params.step_size[row, agent], path[-1, 2])
                same(curves["step_size"][row, :, agent], path[:-1, 2])
                same(curves["mean_return"][row, :, agent], -2 * losses)
                total += losses
            same(curves["loss"][row], total)


@pytest.mark.parametrize("module", [maml, coala])
def test_maml_and_coala_say_between_which_steps_they_diverged(module):
    settings = {"outer_steps": 4, "batch_size": 1}
    settings["rollout_length" if module is maml else "learner_steps"] = 1
    config = module.make_config(LOPSIDED, model_lr=1e30, **settings)
    said = "^training diverged between steps 1 and 2$"  # the first step is finite
    with mock.patch.object(module, "CHUNK", 1), pytest.raises(SystemExit, match=said):
        module.train_seeds(np.zeros(1, np.uint32), LOPSIDED, config)


def test_maml_is_evaluated_with_the_second_key_of_a_seed(tmp_path, monkeypatch):
    """So the others that play beside its agents are not those of its training."""
    written = mock.Mock()

    def draw(key, *_):
        return {"drawn": jax.random.uniform(key, (1,))}

    monkeypatch.setattr(maml, "train_seeds", lambda *_: ((), {}))
    monkeypatch.setattr(maml, "evaluate", draw)
    monkeypatch.setattr(maml, "report", written)
    maml.main(["--seed", "7", "--num-seeds", "2", "--out", str(tmp_path)])
    for i, found in enumerate(written.call_args.args[4]["drawn"][0]):
        _, key = jax.random.split(jax.random.key(7 + i))
        assert found == draw(key)["drawn"]


def test_small_runs_of_coala_are_a_quarter_as_long():
    small = {"outer_steps": 1000, "eval_pairs": 16}
    paper = coala.make_config("ipd")
    assert coala.make_config("ipd", quick=True) == dataclasses.replace(paper, **small)


def test_step_sizes_by_default_fit_the_game():
    """Of Adam a tenth of what they move. Learners beside M-FOS take 12.5-fold steps."""
    assert maml.make_config("ipd").model_lr == 0.1
    assert maml.make_config("balduzzi").model_lr == 0.1 * 0.02
    for name, lr in (("imp", 12.5 * GAMES["imp"].lr), ("tandem", 0.1)):
        config = mfos.make_config(name)
        assert config.lr == config.alpha == lr


def assert_drawn(axis, curves):
    """An agent's curves, [..., 0], are solid, and the other's, [..., 1], dotted."""
    for style, expected in zip("-:", np.moveaxis(curves, -1, 0)):
        lines = [line for line in axis.lines if line.get_linestyle() == style]
        np.testing.assert_array_equal([line.get_ydata() for line in lines], expected)


@pytest.mark.parametrize("times", [1, 4])
def test_a_curve_of_meva_is_seen_even_if_it_is_one_point(times):
    random = np.random.default_rng(0)
    curves = {"loss": random.uniform(1, 2, (2, 25))}
    curves["td_error"] = random.uniform(1, 2, (2, 25))
    curves["self_play_curve"] = random.uniform(-2, -1, (2, times))
    figure = Figure()
    meva.draw_curves(figure, curves, meva.make_config("ipd", outer_steps=100))
    for axis, curve in zip(figure.axes, curves.values(), strict=True):
        np.testing.assert_array_equal([line.get_ydata() for line in axis.lines], curve)
        assert axis.get_xlim()[0] == 0
    line = figure.axes[2].lines[0]
    assert len(line.get_xdata()) > 1 or line.get_marker() == "."


def test_curves_of_maml_have_a_line_for_each_agent_of_each_seed():
    figure = Figure()
    mean_return, step_size = np.random.default_rng(0).normal(size=(2, 2, 30, 2))
    curves = {"mean_return": mean_return, "step_size": step_size}
    maml.draw_curves(figure, curves, maml.make_config("ipd", outer_steps=30))
    left, right = figure.axes
    assert_drawn(left, mean_return)
    assert_drawn(right, step_size)
    np.testing.assert_array_equal(left.lines[0].get_xdata(), np.arange(1, 31))


# --- coala.py -------------------------------------------------------------------------
# A plain loop over the learner's steps, finite differences, AdamW in numpy; LOLA.


def coala_return(own, x, newcomers, agent, eta, share, steps):
    """What an agent with the policy `own` ascends: learners by a loop, one by one."""
    f, learner = LOPSIDED.f, 1 - agent
    with_learners = []
    for newcomer in newcomers:
        now = put(newcomer, agent, own)
        returns = [f(now)[agent]]
        for _ in range(steps):
            slope = derivative(f, now, learner, by=learner)
            now = put(now, learner, now[learner] + eta * slope)
            returns.append(f(now)[agent])
        with_learners.append(np.mean(returns))
    with_agent = f(put(x, agent, own))[agent]
    return share * np.mean(with_learners) + (1 - share) * with_agent


@pytest.mark.parametrize("share, steps", [(0.3, 3), (1.0, 1)])
def test_coala_ascends_the_mean_over_learners_and_the_other_agent(share, steps):
    x, *newcomers = np.random.default_rng(0).normal(size=(4, 2, 2))
    settings = (0.2, share, steps)
    with jax.enable_x64(True):
        given = (LOPSIDED.f, x, np.array(newcomers), *settings)
        returns = jax.jit(coala.coala_returns, static_argnums=(0, 5))(*given)
        gradient = jax.jit(coala.coala_gradient, static_argnums=(0, 5))(*given)
    for agent in (0, 1):

        def ascended(own, agent=agent):
            return coala_return(own, x, newcomers, agent, *settings)

        np.testing.assert_allclose(returns[agent], ascended(x[agent]), rtol=1e-9)
        slope = difference(ascended, x[agent])
        np.testing.assert_allclose(gradient[agent], slope, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_coalas_last_return_beside_the_present_opponent_is_lolas(steps):
    """The sum of M + 1 returns, less the M first of them, is the last one."""

    @jax.jit
    def both(x):
        gradient = partial(coala.coala_gradient, CUBIC.f, x, x[None], 0.3, 1.0)
        last = (steps + 1) * gradient(steps) - steps * gradient(steps - 1)
        return last, lola.lola_gradient(CUBIC.f, x, 0.3, lookahead=steps)

    with jax.enable_x64(True):
        for x in np.random.default_rng(0).normal(size=(4, 2, 2)):
            last, expected = both(x)
            assert np.abs(expected - naive.naive_gradient(CUBIC.f, x)).max() > 0.01
            np.testing.assert_allclose(last, expected, rtol=1e-9, atol=1e-12)


def test_coala_among_agents_alone_is_naive_learning():
    with jax.enable_x64(True):
        x, *newcomers = np.random.default_rng(0).normal(size=(3, 2, 2))
        found = coala.coala_gradient(CUBIC.f, x, np.array(newcomers), 0.3, share=0.0)
        expected = naive.naive_gradient(CUBIC.f, x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_coalas_learners_come_in_a_batch():
    newcomers = X[None]
    for wrong in (X, newcomers[None], newcomers[:, :1], newcomers[..., :1]):
        with pytest.raises(ValueError, match=r"x must be \(2, 2\), not"):
            coala.coala_gradient(CUBIC.f, X, wrong, 0.3)


def test_coala_trains_by_adamw_with_fresh_learners_in_each_step():
    """Three steps in chunks of two, of two seeds. (AdamW's decay is .0001.)"""
    seeds = np.array([3, 4], np.uint32)
    settings = {"outer_steps": 3, "batch_size": 2, "learner_steps": 2}
    config = coala.make_config(LOPSIDED, model_lr=0.05, share=0.4, eta=0.2, **settings)
    same = partial(np.testing.assert_allclose, rtol=1e-6)
    with jax.enable_x64(True), mock.patch.object(coala, "CHUNK", 2):
        params, curves = coala.train_seeds(seeds, LOPSIDED, config)
        for row, seed in enumerate(seeds):
            key, _ = jax.random.split(jax.random.key(seed))
            x = np.asarray(LOPSIDED.init(jax.random.fold_in(key, 0)))
            adams = [Adam(config.model_lr), Adam(config.model_lr)]
            for step in range(config.outer_steps):
                keys = jax.random.split(jax.random.fold_in(key, 1 + step))
                newcomers = [np.asarray(LOPSIDED.init(key)) for key in keys]
                returns, after = [], []
                for agent in (0, 1):

                    def loss(own, x=x, newcomers=newcomers, agent=agent):
                        return -coala_return(own, x, newcomers, agent, 0.2, 0.4, 2)

                    own = x[agent]
                    returns.append(-loss(own))
                    decayed = own - config.model_lr * 1e-4 * own
                    moved = adams[agent].descend(own, difference(loss, own)) - own
                    after.append(decayed + moved)
                same(curves["mean_return"][row, step], returns)
                same(curves["loss"][row, step], -np.sum(returns))
                x = np.array(after)
            same(params.policy[row], x, rtol=1e-8)


def test_curves_of_coala_have_a_line_for_each_agent_of_each_seed():
    figure = Figure()
    curve = np.random.default_rng(0).normal(size=(2, 30, 2))
    config = coala.make_config("ipd", outer_steps=30)
    coala.draw_curves(figure, {"mean_return": curve}, config)
    (axis,) = figure.axes
    assert_drawn(axis, curve)
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), np.arange(1, 31))


# --- mfos.py: episodes, PPO's loss, and training against plain loops in numpy ---

SMALL = {
    "batch_size": 2,
    "rollout_length": 3,
    "hidden": 2,
    "eval_pairs": 3,
    "eval_steps": 4,
}


def two_layers(weights, state):
    """W_2 (tanh(W_1 (s, 1)), 1), the biases being the last rows of the weights."""
    first, last = weights
    inner = np.tanh(np.append(state, 1) @ first)
    return np.append(inner, 1) @ last


def actor(agent, state):
    """Mean and variance of the next policy."""
    mean, raw_variance = np.split(two_layers(agent.actor, state), 2)
    return mean, np.log1p(np.exp(raw_variance))


def log_density(x, mean, variance):
    """log N(x; mean, variance) of independent numbers."""
    exponents = (x - mean) ** 2 / variance
    return -0.5 * (exponents + np.log(2 * np.pi * variance)).sum()


def act_by_hand(key, agent, x, player):
    """The state as a player sees it, the policy that it draws, and its log density."""
    features = 1 / (1 + x**2)
    state = np.concatenate([features[player], features[1 - player]])
    mean, variance = actor(agent, state)
    policy = mean + np.sqrt(variance) * np.asarray(jax.random.normal(key, (2,)))
    return state, policy, log_density(policy, mean, variance)


def learner_by_hand(x, i, config):
    """x_i + lr d/dx_i (f_i + alpha (d f_i / d x_j) . (d f_j / d x_j)), by differences.

    For a naive learner alpha is 0.
    """
    alpha = config.alpha if config.opponent == "lola" else 0.0
    f, j = LOPSIDED.f, 1 - i

    def surrogate(x):
        return f(x) + alpha * derivative(f, x, i, by=j) @ derivative(f, x, j, by=j)

    return x[i] + config.lr * derivative(surrogate, x, i, by=i)


def meta_episode_by_loop(key, agents, config, player):
    """States, policies, log densities, and returns, the player's own first. (T, ...)."""
    key_start, key_steps = jax.random.split(key)
    x = np.asarray(LOPSIDED.init(key_start))
    other = 1 - player
    steps = []
    for key_step in jax.random.split(key_steps, config.rollout_length):
        keys = jax.random.split(key_step)
        state, policy, log_prob = act_by_hand(keys[player], agents[player], x, player)
        if config.opponent == "self":
            _, other_policy, _ = act_by_hand(keys[other], agents[other], x, other)
        else:
            other_policy = learner_by_hand(x, other, config)
        x = put(put(x, player, policy), other, other_policy)
        returns = LOPSIDED.f(x)[[player, other]]
        steps.append((state, policy, log_prob, returns))
    return [np.array(arrays) for arrays in zip(*steps)]


def two_agents(config, seed=1):
    """Random ones, in numpy."""
    agents = mfos.model_init(jax.random.key(seed), LOPSIDED, config)
    return jax.tree.map(np.asarray, agents)


def test_mfos_has_an_agent_for_each_player_and_draws_it_as_pytorch_does():
    """Weights and biases are uniform to 1 / sqrt(inputs), and no number comes twice.

    Beside a learner in a symmetric game a single agent plays in either place.
    """
    cases = ("ipd", "naive", 1), ("ipd", "self", 2), ("imp", "lola", 2)
    for name, opponent, count in cases:
        config = mfos.make_config(name, hidden=6, opponent=opponent)
        with jax.enable_x64(True):
            agents = mfos.model_init(jax.random.key(1), GAMES[name], config)
        assert len(agents) == count
        leaves = jax.tree.leaves(agents)
        drawn = [np.ravel(leaf) * (len(leaf) - 1) ** 0.5 for leaf in leaves]
        numbers = np.unique(np.concatenate(drawn).round(10))
        assert len(numbers) == count * (11 * 6 + 7 * 10 + 11 * 6 + 7 * 1)
        assert -1 < numbers[0] < -0.98 and 0.98 < numbers[-1] < 1


@pytest.mark.parametrize(
    "opponent, player", [("naive", 0), ("lola", 1), ("self", 0), ("self", 1)]
)
def test_meta_episodes_against_a_loop(opponent, player):
    with jax.enable_x64(True):
        settings = SMALL | {"opponent": opponent, "lr": 0.3, "alpha": 0.2}
        config = mfos.make_config(LOPSIDED, **settings)
        agents = two_agents(config)
        keys = jax.random.split(jax.random.key(2), 2)
        play = jax.jit(mfos.meta_episodes, static_argnums=(2, 3, 4))
        found = play(keys, agents, LOPSIDED, config, player)
        for k, key in enumerate(keys):
            expected = meta_episode_by_loop(key, agents, config, player)
            for arrays, numbers in zip(found, expected, strict=True):
                np.testing.assert_allclose(arrays[:, k], numbers, rtol=1e-6)


def ppo_loss_by_loop(agent, batch, advantages, config):
    """The mean of c_1 (V - R)^2 - min(r A, clip(r) A) - c_2 H (PPO's Eqs. 7 and 9).

    R are targets, A advantages, r ratios of densities and H entropies.
    """
    total = 0.0
    for state, action, log_prob, target, advantage in zip(*batch, advantages):
        mean, variance = actor(agent, state)
        ratio = np.exp(log_density(action, mean, variance) - log_prob)
        if advantage > 0:
            gain = advantage * min(ratio, 1 + config.clip)
        else:
            gain = advantage * max(ratio, 1 - config.clip)
        error = two_layers(agent.critic, state)[0] - target
        entropy = 0.5 * np.log(2 * np.pi * np.e * variance).sum()
        total += config.value_weight * error**2 - gain
        total -= config.entropy_weight * entropy
    return total / len(advantages)


def values_by_loop(agent, states):
    return np.array([two_layers(agent.critic, state)[0] for state in states])


def ppo_gradient_by_loop(agent, batch, config):
    """PPO's loss and its derivatives, in a row, by differences. Advantages are fixed."""
    states, *_, targets = batch
    advantages = targets - values_by_loop(agent, states)
    numbers, unravel = jax.flatten_util.ravel_pytree(agent)

    def loss(numbers):
        changed = jax.tree.map(np.asarray, unravel(numbers))
        return ppo_loss_by_loop(changed, batch, advantages, config)

    numbers = np.asarray(numbers)
    step = 1e-5  # short, so that no ratio leaves the clipped range on the way
    return loss(numbers), difference(loss, numbers, step)


def test_ppos_loss_and_gradient_against_a_loop():
    """Ratios below, in and above the clipped range; advantages of both signs."""
    random = np.random.default_rng(0)
    settings = {"clip": 0.15, "value_weight": 0.7, "entropy_weight": 0.3, "hidden": 2}
    with jax.enable_x64(True):
        config = mfos.make_config(LOPSIDED, **settings)
        agent, _ = two_agents(config)
        states, policies = random.normal(size=(6, 4)), random.normal(size=(6, 2))
        targets = values_by_loop(agent, states) + [1, 2, 3, -1, -2, -3]
        log_probs = np.array([-0.2, 0.1, 0.3, -0.3, -0.1, 0.2])
        for i in range(6):
            log_probs[i] += log_density(policies[i], *actor(agent, states[i]))
        batch = states, policies, log_probs, targets
        loss_and_gradient = jax.jit(jax.value_and_grad(mfos.ppo_loss), static_argnums=5)
        value, gradient = loss_and_gradient(agent, *batch, config)
        expected, slopes = ppo_gradient_by_loop(agent, batch, config)
        np.testing.assert_allclose(value, expected, rtol=1e-9)
        found, _ = jax.flatten_util.ravel_pytree(gradient)
        np.testing.assert_allclose(found, slopes, rtol=1e-5, atol=1e-8)


def ppo_update_by_loop(agent, adam, episodes, config):
    """Steps of Adam on R(t) = r(t) + gamma r(t + 1) + ..., normalised over all of them.

    Returns the agent and the mean loss on the way.
    """
    *seen, returns = episodes  # arrays (T, batch, ...)
    rewards = returns[..., 0]
    targets = np.zeros_like(rewards)
    for t in range(len(rewards)):
        for later in range(t, len(rewards)):
            targets[t] += config.gamma ** (later - t) * rewards[later]
    targets = (targets - targets.mean()) / (targets.std() + 1e-5)
    batch = [np.concatenate(array) for array in (*seen, targets)]
    numbers, unravel = jax.flatten_util.ravel_pytree(agent)
    losses = []
    for _ in range(config.epochs):
        loss, gradient = ppo_gradient_by_loop(agent, batch, config)
        losses.append(loss)
        numbers = adam.descend(numbers, gradient)
        agent = jax.tree.map(np.asarray, unravel(numbers))
    return agent, np.mean(losses)


def outer_loop_by_hand(keys, agents, adams, config):
    """Episodes by each of the keys, and an update of each agent.

    Returns agents, loss, and mean returns, (agent, 2).
    """
    updated, losses, mean_returns = [], [], []
    for player in (0, 1):
        each = [meta_episode_by_loop(key, agents, config, player) for key in keys]
        episodes = [np.stack(arrays, axis=1) for arrays in zip(*each)]
        agent, loss = ppo_update_by_loop(
            agents[player], adams[player], episodes, config
        )
        updated.append(agent)
        losses.append(loss)
        mean_returns.append(episodes[-1].mean(axis=(0, 1)))
    return updated, sum(losses), mean_returns


def test_training_by_ppo_against_plain_loops():
    """Three outer loops, each with keys of its own; Adam's state goes on between them."""
    settings = {"opponent": "self", "epochs": 2, "gamma": 0.7, "model_lr": 0.1}
    key = jax.random.key(5)
    same = partial(chex.assert_trees_all_close, rtol=1e-6, atol=1e-9)
    with jax.enable_x64(True):
        config = mfos.make_config(LOPSIDED, **SMALL | settings)
        state = mfos.train_init(key, LOPSIDED, config)
        agents = jax.tree.map(np.asarray, state.params)
        adams = [Adam(config.model_lr), Adam(config.model_lr)]
        chunk = jax.jit(mfos.train_chunk, static_argnums=(2, 3, 4))
        for loop in (1, 2, 3):
            state, curves = chunk(key, state, LOPSIDED, config, 1)
            keys = jax.random.split(jax.random.fold_in(key, loop), config.batch_size)
            agents, loss, returns = outer_loop_by_hand(keys, agents, adams, config)
            same(state.params, agents)
            same(curves["loss"], np.array([loss]))
            same(curves["mean_return"], np.array([returns]))
            assert state.step == loop


def test_returns_of_mfos_stop_at_the_end_of_a_meta_episode():
    """Nothing comes after the last step, and nothing from another episode."""
    rewards = jnp.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])  # (T, batch)
    found = mfos.discounted_returns(rewards, 0.5)
    first, last = 1 + 0.5 * 2 + 0.25 * 4, 4
    expected = np.array([first, 2 + 0.5 * last, last])
    np.testing.assert_allclose(found, expected[:, None] * [1, 10])


def test_how_mfos_is_evaluated(monkeypatch):
    """Agents draw by keys of their own, each sees its own policy first; then episodes."""
    x = np.array([[0.2, -0.5], [1.0, 0.7]])

    def spy(key, game, step, *, opponent_step, **settings):
        assert settings == {"lr": 0.3, "steps": 4, "pairs": 3, "draws": True}
        return {"step": step(x, key), "opponent_step": opponent_step(x)}

    monkeypatch.setattr(mfos, "evaluate_game", spy)
    key = jax.random.key(7)
    same = partial(np.testing.assert_allclose, rtol=1e-6)
    with jax.enable_x64(True):
        config = mfos.make_config(LOPSIDED, **SMALL, opponent="lola", alpha=0.2)
        agents = two_agents(config)
        evaluate = jax.jit(mfos.evaluate, static_argnums=(2, 3))
        results = evaluate(key, agents, LOPSIDED, config)
        keys_step = jax.random.split(key)
        keys_episodes = jax.random.split(jax.random.fold_in(key, 3 + 1), 3)
        for player, seat in enumerate(("", "_2")):
            _, policy, _ = act_by_hand(keys_step[player], agents[player], x, player)
            same(results["step"][0, player], policy)
            learner = learner_by_hand(x, player, config)
            same(results["opponent_step"][0, player], learner)
            for pair, key in enumerate(keys_episodes):
                *_, returns = meta_episode_by_loop(key, agents, config, player)
                same(results[f"episode_returns{seat}"][0, pair], returns)


def test_curves_of_mfos_are_drawn_in_words_and_for_all_their_outliers():
    random = np.random.default_rng(0)
    figure = Figure()
    mean_return = random.uniform(1, 2, (2, 30, 1, 2))
    mean_return[0, 3, 0, 1] = -1e6
    episodes = random.uniform(1, 2, (1, 2, 8, 5, 2))
    curves, results = {"mean_return": mean_return}, {"episode_returns": episodes}
    mfos.draw_curves(figure, curves, results)
    left, right = figure.axes
    assert_drawn(left, mean_return[:, :, 0])
    assert_drawn(right, episodes[0].mean(axis=1))
    for axis in figure.axes:
        low, high = axis.get_ylim()
        assert -3 < low < 1.5 < high < 5
        words = f"{axis.get_title()} {axis.get_xlabel()} {axis.get_ylabel()}"
        assert "_" not in words and "meta-" in axis.get_xlabel() and "return" in words


@slow
def test_mfos_on_two_devices_is_mfos_on_one(tmp_path):
    """Each has a share of the episodes, and there is one mean of their gradients."""
    settings = TINY["mfos"] | TINY_EVAL | {"outer_steps": 3, "opponent": "self"}
    words = ["--game", "ultimatum", *flags(**settings)]
    process = start(tmp_path, *words, script="mfos", JAX_NUM_CPU_DEVICES="2")
    out, err = process.communicate(timeout=300)
    assert "2 x cpu" in out, err
    mfos.main([*words, "--out", str(tmp_path / "one")])
    name = "results/mfos-self_ultimatum.npz"
    with np.load(tmp_path / name) as two, np.load(tmp_path / "one" / name) as one:
        assert {"params/0/actor/0", "params/1/critic/1"} < set(two.files)
        for name in two.files:
            if name.startswith("params/") or name in ("loss", "mean_return"):
                np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4)


# --- meva.py trained: on a game whose meta-value is a quadratic form ---

COUPLING = 0.5
BOWL = Game(
    "bowl",
    n=1,
    f=lambda x: -0.5 * (x[:, 0] + COUPLING * x[::-1, 0]) ** 2,
    features=lambda x: x,
    init=lambda key: jax.random.uniform(key, (2, 1), minval=-2.0, maxval=2.0),
    symmetric=True,
    labels="x",
)


def bowl_meta_value(form, lr, gamma):
    """P such that player 1's meta-value is -x^T P x / 2. With x' = M x and f_1 = -x^T R x / 2,

    form V: P = (1 - gamma) R + gamma M^T P M, where M x = x + lr grad V;
    form U: P = M^T ((1 - gamma) R + gamma P) M, where M x = x + lr (grad f + gamma grad U).
    """
    returns = np.array([[1, COUPLING], [COUPLING, COUPLING**2]])
    naive_slope = -np.array([[1, COUPLING], [COUPLING, 1]])
    p = np.zeros((2, 2))
    for _ in range(2000):
        # The gradient of both players' values, by symmetry.
        slope = -np.array([[p[0, 0], p[0, 1]], [p[0, 1], p[0, 0]]])
        if form == "V":
            m = np.eye(2) + lr * slope
            p = (1 - gamma) * returns + gamma * m.T @ p @ m
        else:
            m = np.eye(2) + lr * (naive_slope + gamma * slope)
            p = m.T @ ((1 - gamma) * returns + gamma * p) @ m
    return p


@slow
@pytest.mark.parametrize("form", ["U", "V"])
def test_training_reaches_the_meta_value_of_a_quadratic_game(form):
    """The mean relative error over gammas and players: single ones are .09 to .19."""
    config = meva.make_config(
        BOWL,
        form=form,
        hidden=16,
        quantiles=1,
        outer_steps=1600,
        batch_size=64,
        rollout_length=10,
        stride=10,
        lr=0.1,
        model_lr=3e-3,
        layer_norm=True,
        semi_gradient=True,
        bootstrap=0.9,
    )
    train = long_running(lambda key: meva.train(key, BOWL, config)[0])
    params = train(jax.random.key(0))
    line = np.linspace(-1.5, 1.5, 13)
    x = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2, 1)
    errors = []
    for gamma in (0.0, 0.5, 0.9):
        p = bowl_meta_value(form, config.lr, gamma)
        values = jax.vmap(lambda x: meta_value(params, BOWL, x, gamma))(x)
        for player, seen in enumerate((x[..., 0], x[:, ::-1, 0])):
            expected = -0.5 * np.einsum("bi,ij,bj->b", seen, p, seen)
            error = np.abs(values[:, player] - expected).mean()
            errors.append(error / np.abs(expected).mean())
    assert np.mean(errors) < 0.2, errors


# --- All rules: exchanged seats; costs in the place of returns ------------------------
# What must be so in any game. In float64, where nobody is like the other.


@partial(jax.jit, static_argnums=3)
def directions(numbers, x, alphas, steps):
    """Of all rules that are formulas, by name, (2, 2) each.

    Those that do not take a number of look-ahead steps, or n, are there at 1.
    """
    f = partial(numbered_returns, numbers)
    found = {"hola": hola.hola_gradient(f, x, alphas, steps)}
    for variant in VARIANTS:
        gradient = lola.lola_gradient(f, x, alphas, variant, lookahead=steps)
        found[f"lola {variant}"] = gradient
    if steps == 1:
        found["naive"] = naive.naive_gradient(f, x)
        found["lola joint"] = lola.lola_gradient(f, x, alphas, "joint")
        for variant in sos.VARIANTS:
            found[f"sos {variant}"] = sos.sos_gradient(f, x, alphas, variant)
    return found


LOOK_AHEAD = pytest.mark.parametrize("steps", [1, 2, pytest.param(3, marks=slow)])


@LOOK_AHEAD
def test_players_take_their_directions_with_them_if_they_exchange_seats(steps):
    """All but Stackelberg's, which has its leader in the first seat."""
    with jax.enable_x64(True):
        for x in np.random.default_rng(0).normal(size=(4, 2, 2)):
            here = directions(NUMBERS, x, ALPHAS, steps)
            there = directions(NUMBERS[::-1], x[::-1], ALPHAS[::-1], steps)
            for name in here.keys() - {"sos stackelberg"}:
                rows = here[name]
                assert np.abs(rows[0] - rows[1]).max() > 0.01, name
                same = partial(np.testing.assert_allclose, rtol=1e-9, err_msg=name)
                same(there[name], rows[::-1])


@LOOK_AHEAD
def test_costs_with_a_negative_look_ahead_mirror_returns(steps):
    """All but SGA, whose sign depends on that of returns."""
    with jax.enable_x64(True):
        for x in np.random.default_rng(0).normal(size=(4, 2, 2)):
            returns = directions(NUMBERS, x, ALPHAS, steps)
            costs = directions(-NUMBERS, x, -ALPHAS, steps)
            for name in returns.keys() - {"sos sga"}:
                same = partial(np.testing.assert_allclose, rtol=1e-9, err_msg=name)
                same(costs[name], -returns[name])


def half_distance(x, y):
    return ((y - x) ** 2).sum(axis=1) / 2


UNSHARED = {"hidden": 4, "blocks": 0, "share_params": False}
MODELLED = {
    "cola": cola.make_config(CUBIC, **UNSHARED),
    "meva": meva.make_config(CUBIC, quantiles=3, **UNSHARED),
    "mfos": mfos.make_config(CUBIC, opponent="lola", alpha=0.4),
}


@jax.jit
def ends_and_returns(numbers, x, strengths, of_cola, of_meva):
    """What rules that climb or have models make of x. Models go with their players."""
    f = partial(numbered_returns, numbers)
    game = CUBIC._replace(f=f)
    agents = maml.Agents(x, strengths)
    returns = [maml.meta_return(agents, game, 2 * x, i, 0.1, 3) for i in (0, 1)]
    return {
        "pola": pola.pola_step(f, x, strengths, 4.0, half_distance, 20),
        "cola": cola.cola_gradient(of_cola, game, x, 0.5),
        "meva": meva.meva_gradient(of_meva, game, x, strengths, MODELLED["meva"]),
        "mfos": mfos.opponent_gradient(game, x, MODELLED["mfos"]),
        "maml": jnp.stack(returns),
        "coala": coala.coala_gradient(f, x, jnp.stack([x, 2 * x]), 0.1, 0.3, 3),
    }


@slow
def test_players_take_their_models_with_them_if_they_exchange_seats():
    with jax.enable_x64(True):
        key = jax.random.key(0)
        of_cola = cola.model_init(key, CUBIC, MODELLED["cola"])
        of_meva = meva.model_init(key, CUBIC, MODELLED["meva"])
        here = ends_and_returns(NUMBERS, X, ALPHAS, of_cola, of_meva)
        turned = [one[::-1] for one in (NUMBERS, X, ALPHAS, of_cola, of_meva)]
        there = ends_and_returns(*turned)
        for name, rows in here.items():
            assert np.abs(rows[0] - rows[1]).max() > 1e-4, name
            same = partial(np.testing.assert_allclose, rtol=1e-9, err_msg=name)
            same(there[name], rows[::-1])


# --- For those who copy: dtypes, games of one's own, errors ---------------------------
# What public functions return and refuse.


def rules(game):
    """Functions of x, (2, n). Strengths may be lists and NumPy's."""
    f, both = game.f, [0.5, 1.0]
    near = partial(pola.divergence, game)
    step = partial(games.naive_step, game, lr=0.1)
    yield f
    yield game.features
    yield partial(naive.naive_gradient, f)
    yield lambda x: hola.hola_gradient(f, x, np.array(both), 1)
    yield lambda x: pola.pola_step(f, x, both, 0.1, near, 9)
    yield lambda x: coala.coala_gradient(f, x, np.stack([x] * 3), 0.1)
    yield lambda x: games.trajectory(step, x, 2)
    yield lambda x: games.best_response(game, x, 0.1, 2)
    for variant in lola.SURROGATES:
        yield partial(lola.lola_gradient, f, alpha=both, variant=variant)
    for variant in sos.VARIANTS:
        yield partial(sos.sos_gradient, f, alpha=0.5, variant=variant)
    if game.iterated:
        for variant in ("loqa", "full", "alignment"):
            yield partial(loqa.loqa_gradient, game, beta=np.array(0.5), variant=variant)
        yield partial(games.exact_best_response, game)
        yield partial(games.state_distribution, discount=0.96)


def model_functions(game):
    """Functions of x, (2, n), of COLA's models and of MeVa's."""
    model, config = make_model(game.name)
    g, _ = make_cola(game.name)
    yield lambda x: cola.both_sides(g, game, x, 0.5)
    yield lambda x: cola.consistency_loss(g, game, x, 0.5)
    yield lambda x: meva.meta_value(model, game, x, 0.9)
    yield lambda x: meva.meva_gradient(model, game, x, [0.5, 1.0], config)
    yield lambda x: meva.quantile_loss(x, x)

    def td_loss(x):
        return meva.td_loss(model, model, game, jnp.stack([x] * 4), x[:, 0], config)

    def lambda_returns(x):
        returns = jnp.stack([x[:, 0]] * 3)
        return meva.lambda_returns(returns, jnp.stack([x] * 3), x[:, 0], 0.9)

    yield td_loss
    yield lambda_returns


@pytest.mark.parametrize("name", GAMES)
def test_every_games_returns_keep_the_dtype_of_x(name):
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(True):
            x = np.full((2, GAMES[name].n), 0.5, dtype)
            assert jax.eval_shape(GAMES[name].f, x).dtype == dtype


SLOW_KINDS = [pytest.param(name, marks=slow) for name in KINDS[1:]]


@pytest.mark.parametrize("name", [KINDS[0], *SLOW_KINDS])
def test_public_functions_keep_the_dtype_of_x(name):
    """With jax_enable_x64 on as well as off; bfloat16 on iterated games."""
    game = GAMES[name]
    cases = [(True, jnp.float32), (True, jnp.float64)]
    if game.iterated:
        cases.append((False, jnp.bfloat16))
    for function in (*rules(game), *model_functions(game)):
        for wide, dtype in cases:
            x = np.full((2, game.n), 0.5, dtype)
            with jax.enable_x64(wide):
                out = jax.eval_shape(partial(function, x))
            found = {leaf.dtype for leaf in jax.tree.leaves(out)}
            assert found == {jnp.dtype(dtype)}, (function, wide, dtype, out)


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_game_of_ones_own_is_trained_and_evaluated(script, wide):
    """One that is not in GAMES: the shapes of all that comes out."""
    module = SCRIPTS[script]
    mine = LOPSIDED
    if script in ITERATED:
        mine = games.iterated_game("mine", (2, 0, 3, 1), (1, 0, 2, -1), lr=0.3)
    args = [jax.random.key(0)]
    with jax.enable_x64(wide), mock.patch.multiple(cola, ORDERS=(0, 1)):
        config = module.make_config(mine, **TINY[script] | TINY_EVAL)
        assert config.game == "mine"
        assert config.lr == (3.0 if script == "pola" else 0.3)
        if script in MODELS:
            train = partial(module.train, game=mine, config=config)
            params, metrics = jax.eval_shape(train, *args)
            assert isinstance(params, (tuple, list))
            assert metrics["loss"].shape == (20,)
            args.append(params)
        evaluate = partial(module.evaluate, game=mine, config=config)
        results = jax.eval_shape(evaluate, *args)
    sweep = 1 if script in UNSWEPT else 2
    assert "versus_opponent" not in results
    for name, shape in shapes(mine, sweep, 3, 4).items():
        assert results[name].shape == shape, name
    with pytest.raises(ValueError, match="game takes .*, not 'mine'"):
        module.make_config("mine")


def shapes(game, sweep, pairs, steps, seeds=()):
    """Of the arrays of an evaluation."""
    policies = (pairs, 2, len(game.labels))
    found = {"policies": policies, "self_play": (pairs, 2)}
    if game.planar:
        found["endpoints"] = found["field"] = (29, 29, 2)
        found["basin_fraction"] = ()
        found["trajectories"] = (pairs, steps + 1, 2)
        found["final_returns"] = (2,)
    plays = {"versus_naive": "versus_naive", "best_response": "response"}
    if game.iterated:
        plays["exact_best_response"] = "exact_response"
    for play, kind in plays.items():
        for seat in ("",) if game.symmetric else ("", "_2"):
            found[play + seat] = (pairs, 2)
            found[f"{kind}_policies{seat}"] = policies
    return {name: (sweep, *seeds, *shape) for name, shape in found.items()}


def test_wrong_shapes_and_variants_are_told_to_who_copies():
    game = GAMES["ipd"]
    params, config = make_model()
    g, _ = make_cola("ipd")
    x = jnp.zeros((2, 4))
    short = jnp.zeros((3, 2, 5))  # the stride is 3
    wrong = (
        (meva.td_loss, params, params, game, short, jnp.zeros(2), config),
        (meva.quantile_loss, jnp.zeros(3), jnp.zeros(4)),
        (games.state_distribution, x, 0.96),
    )
    for function, *args in wrong:
        with pytest.raises(AssertionError, match="shape"):
            function(*args)
    of_games = (
        (loqa.loqa_gradient, game, x, 0.5),
        (cola.cola_gradient, g, game, x, 0.5),
        (cola.consistency_loss, g, game, x, 0.5),
        (meva.meva_gradient, params, game, x, 0.9, config),
        (meva.opponent_step, game, x, config),
    )
    for function, *args in of_games:
        with pytest.raises(ValueError, match=r"x must be \(2, 5\), not \(2, 4\)"):
            function(*args)
    with pytest.raises(ValueError, match="not extra"):
        lola.lola_gradient(games.tandem, jnp.zeros((2, 1)), 0.1, "extra")
    with pytest.raises(ValueError, match="not taylor"):
        loqa.loqa_gradient(game, jnp.zeros((2, 5)), 0.1, "taylor")
    with pytest.raises(ValueError, match="an iterated game, not logistic"):
        loqa.loqa_gradient(GAMES["logistic"], jnp.zeros((2, 1)), 0.1)


def return_of_maml(f, x=X, opponent=X):
    agents = maml.Agents(x, jnp.ones(2))
    return maml.meta_return(agents, CUBIC._replace(f=f), opponent, 0, 0.1, 2)


def loqas_direction(f, x):
    """Of a game whose policies have two parameters, which log-odds are made of."""
    game = GAMES["imp"]._replace(f=f, n=2, log_odds=lambda x: x[:, [0, 1, 1, 0, 0]])
    return loqa.loqa_gradient(game, x, 0.5)


COPIED = {  # what people copy, as functions of f and x
    "naive": naive.naive_gradient,
    "lola": partial(lola.lola_gradient, alpha=0.5),
    "f_ahead": lambda f, x: lola.lola_gradient(CUBIC.f, x, 0.5, f_ahead=f),
    "hola": partial(hola.hola_gradient, alpha=0.5, order=1),
    "sos": partial(sos.sos_gradient, alpha=0.5),
    "pola": partial(
        pola.pola_step, alpha=0.5, beta=1.0, distance=half_distance, steps=3
    ),
    "loqa": loqas_direction,
    "maml": return_of_maml,
    "opponent": lambda f, x: return_of_maml(f, opponent=x),
    "coala": partial(coala.coala_gradient, newcomers=X[None], eta=0.1, steps=2),
}
DENSE = {"kernel": np.ones((2, 2)), "bias": np.ones(2)}
WRONG_POLICIES = [  # and what is said of them
    ({"params": DENSE}, "ravel_pytree"),
    ([DENSE, DENSE], "ravel_pytree"),
    (None, r"must be an array \(2, n\)"),
    ([np.ones(3), np.ones(2)], "pad the shorter row"),
    ([[1.0, 2.0], [1.0]], "pad the shorter row"),
    (np.ones((3, 2)), r"not \(3, 2\): .* all games here have two"),
    ([np.ones(2)] * 3, r"not \(3, 2\): .* all games here have two"),
    (np.ones((7, 2, 2)), r"not \(7, 2, 2\): .* for a batch there is jax.vmap"),
    (np.ones(2), r"must be \(2, [n2]\), not \(2,\): a row for each player"),
]
WRONG_GAMES = [
    (cubic, r"an array \(2,\), not a tuple: .* jnp.stack"),
    (lambda x: list(cubic(x)), r"an array \(2,\), not a list: .* jnp.stack"),
    (lambda x: None, "not a NoneType"),
    (lambda x: CUBIC.f(x)[:, None], r"an array \(2,\), not \(2, 1\)"),
    (lambda x: CUBIC.f(x)[0], r"not \(\)"),
    (lambda x: CUBIC.f(x)[jnp.array([0, 1, 0])], r"not \(3,\)"),
    (lambda x: np.stack(cubic(x)), "jax.numpy in place of NumPy"),
]


@pytest.mark.parametrize("name", COPIED)
def test_what_is_no_policy_or_no_game_gets_one_sentence(name):
    """Inside of jit, too."""
    function = COPIED[name]
    jitted = jax.jit(function, static_argnums=0)
    cases = [(function, CUBIC.f, x, said) for x, said in WRONG_POLICIES]
    cases += [(jitted, CUBIC.f, x, said) for x, said in WRONG_POLICIES]
    cases += [(jitted, f, X, said) for f, said in WRONG_GAMES]
    for gradient, f, x, said in cases:
        with pytest.raises((TypeError, ValueError), match=said) as caught:
            gradient(f, x)
        assert "\n" not in str(caught.value)


def test_integers_lists_and_numpys_numbers_are_policies():
    """In the dtype of x, with jax_enable_x64 on as well as off."""
    numbers = [[1, -2], [3, 0]]
    rows = [np.array(row) for row in numbers]
    for wide, expected in ((False, jnp.float32), (True, jnp.float64)):
        with jax.enable_x64(wide):
            for x in (numbers, rows, np.array(numbers), np.array(numbers, float)):
                found = games.checked_policies(x)
                assert (type(found), found.dtype) == (type(jnp.zeros(2)), expected)
                np.testing.assert_array_equal(found, numbers)
            for dtype in (jnp.bfloat16, jnp.float32):
                assert games.checked_policies(jnp.zeros((2, 1), dtype)).dtype == dtype
    for function in COPIED.values():
        out = jax.eval_shape(partial(function, CUBIC.f), np.array(numbers))
        assert out.dtype == jnp.float32


def test_the_example_with_parameters_in_dictionaries(tmp_path):
    """Gradients are those by the dictionaries; what pads a row stays as it is."""
    text = inspect.getdoc(games.checked_policies)
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 11
    numbers = jax.random.normal(jax.random.key(0), (9,))
    params_1 = {"w": numbers[:4].reshape(2, 2), "b": numbers[4:6]}
    params_2 = {"v": numbers[6:]}

    def play(one, two):
        both = jnp.tanh(one["w"] @ two["v"][:2] + one["b"])
        return both.sum() * two["v"][2], (both**2).sum()

    path = tmp_path / "example.py"
    path.write_text(example)
    given = {"play": play, "params_1": params_1, "params_2": params_2}
    names = runpy.run_path(str(path), given)
    f, x = names["f"], names["x"]
    assert x.shape == (2, 6)
    gradient = jax.jit(naive.naive_gradient, static_argnums=0)(f, x)
    slopes = jax.jit(jax.jacobian(play, argnums=(0, 1)))(params_1, params_2)
    of_1, of_2 = slopes[0][0], slopes[1][1]
    same = partial(np.testing.assert_allclose, rtol=1e-5)
    same(gradient[0], np.concatenate([of_1["b"], of_1["w"].ravel()]))
    same(gradient[1], np.pad(of_2["v"], (0, 3)))


# Runs: what a script wrote is held against its own arrays, and its `main` against `train`


def arrays_in(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def run(folder, *words, game="logistic", script="meva", **settings):
    """A script's main in this process, tiny. Returns the arrays that it wrote."""
    settings = TINY[script] | TINY_EVAL | settings
    words = ["--game", game, "--out", str(folder), *flags(**settings), *words]
    # COLA's higher orders take long to compile.
    with mock.patch.multiple(cola, ORDERS=(0, 1), HELD_OUT=16):
        SCRIPTS[script].main(words)
    return arrays_in(folder / f"results/{script}_{game}.npz")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(script, game)`: folder, arrays and output of a tiny run, made once."""

    @functools.cache
    def make(script, game):
        folder = tmp_path_factory.mktemp(f"{script}_{game}")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            arrays = run(folder, script=script, game=game)
        return folder, arrays, printed.getvalue()

    return make


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in paths)


def assert_same_arrays(one, two):
    assert one.keys() == two.keys()
    for name in one.keys() - {"config"}:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


# All scripts play, write and draw by games.py: one of them is enough on most games.
RUNS = [("naive", "logistic"), ("naive", "imp"), ("maml", "logistic")]
ANY_GAME = [script for script in SCRIPTS if script not in ITERATED]
SLOW_RUNS = [(script, "logistic") for script in ANY_GAME if script not in dict(RUNS)]
SLOW_RUNS += [(script, "imp") for script in (*MODELS, *ITERATED)]
for each in SLOW_RUNS:
    RUNS.append(pytest.param(*each, marks=slow))
CURVES = {
    "cola": ("loss", "gradient_norm"),
    "maml": ("loss",),
    "coala": ("loss",),
    "mfos": ("loss",),
    "meva": ("loss", "td_error", "gradient_norm"),
}


@pytest.mark.parametrize("script, game", RUNS)
def test_a_run_writes_says_and_draws_what_it_should(script, game, once):
    """One test, as several could run on several workers, each with a run of its own."""
    folder, arrays, out = once(script, game)
    check_files_and_arrays(script, game, folder, arrays, out)
    check_settings_and_figure(script, game, folder, arrays, out)
    check_returns_and_table(game, arrays, out)


def check_files_and_arrays(script, game, folder, arrays, out):
    """What they are, and that the page of details explains all of them."""
    name, planar = f"{script}_{game}", GAMES[game].planar
    expected_files = [f"figures/{name}.png", f"results/{name}.npz"]
    if script in (*TRAINED, "mfos"):
        expected_files.insert(1, f"results/{name}.checkpoint.npz")
    assert files(folder) == expected_files
    assert f"wrote {folder}/results/{name}.npz and {folder}/figures/{name}.png" in out

    expected = shapes(GAMES[game], 1 if script in UNSWEPT else 2, 3, 4, seeds=(2,))
    for curve in CURVES.get(script, ()):
        expected[curve] = (2, 20)
    if script == "mfos":  # of 3 pairs and 3 meta-steps
        expected["episode_returns"] = (1, 2, 3, 3, 2)
        if not GAMES[game].symmetric:
            expected["episode_returns_2"] = (1, 2, 3, 3, 2)
    for array, shape in expected.items():
        assert (arrays[array].shape, arrays[array].dtype) == (shape, np.float32), array
    of_player_2 = {array for array in arrays if array.endswith("_2")}
    assert of_player_2 <= expected.keys()
    assert ("grid" in arrays) == planar
    assert ("values" in arrays) == (planar and script == "meva")
    page = (ROOT / "results/paper/details.md").read_text("utf-8")
    for array in arrays:
        assert f"`{array.split('/')[0].removesuffix('_2')}" in page


def check_settings_and_figure(script, game, folder, arrays, out):
    config = json.loads(str(arrays["config"]))
    assert json.loads(out.splitlines()[0]) == config
    assert config["game"] == game and config["num_seeds"] == 2
    assert config["run_on"].startswith(f"jax {jax.__version__} on 1 x")
    assert (" 20 / 20  " in out) == (script in MODELS)
    if script in TRAINED:  # of asymmetric games each player has a model
        of_player_2 = [name for name in arrays if name.startswith("params/1/")]
        assert bool(of_player_2) != GAMES[game].symmetric
    image = imread(folder / f"figures/{script}_{game}.png")
    assert min(image.shape[:2]) > 300 and image.std() > 0.05


def check_returns_and_table(game, arrays, out):
    """Returns are those of policies; errors are over seeds, of each one's mean."""
    policies = arrays["policies"].reshape(-1, 2, GAMES[game].n)
    returns = arrays["self_play"].reshape(-1, 2)
    f = jax.vmap(GAMES[game].f)(policies)
    np.testing.assert_allclose(f, returns, rtol=1e-4, atol=1e-4)
    assert "error over 2 seeds" in out
    for play in ("best_response", "versus_naive"):
        one, two = arrays[play][-1, :, :, 0].mean(axis=1)
        assert f"{(one + two) / 2:.3f} +- {abs(one - two) / 2:.3f} :" in out


# What one game or script has and the others have not.
VARIED = [
    ("naive", "ipd+payoffs=1,-1,-1,1,-1,1,1,-1e+0"),
    ("naive", "imp+swapped+episodes=8+length=9"),
    ("hola", "ipd+skewed"),
    ("lola", "ipd+memory=2"),
    ("maml", "ipd+mlp"),
    ("mfos", "ipd+mlp"),
]


@slow
@pytest.mark.parametrize("script, name", VARIED)
def test_every_script_runs_on_variants_of_games(script, name, tmp_path):
    """Files carry the text as it was given."""
    arrays = run(tmp_path, game=name, script=script)
    assert {f"figures/{script}_{name}.png", f"results/{script}_{name}.npz"} <= {
        *files(tmp_path)
    }
    game = games.find_game(name)
    expected = shapes(game, 1 if script in UNSWEPT else 2, 3, 4, seeds=(2,))
    for key, shape in expected.items():
        assert arrays[key].shape == shape, key
    tables = arrays["policies"].reshape(-1, 2, len(game.labels))
    returns = [games.iterated_returns(x, game.rules.payoffs, 0.96) for x in tables]
    found = arrays["self_play"].reshape(-1, 2)
    np.testing.assert_allclose(returns, found, rtol=1e-4, atol=1e-4)


@slow
def test_beside_an_opponent_a_run_has_a_name_of_its_own_and_is_resumed(tmp_path):
    """On a game that is not symmetric: the model is of one seat."""
    words = ["--game", "ultimatum", "--opponent", "lola", "--out", str(tmp_path)]
    words += flags(**TINY["meva"] | TINY_EVAL | {"blocks": 0})
    meva.main(words)
    path = tmp_path / "results/meva-lola_ultimatum.npz"
    first = arrays_in(path)
    assert files(tmp_path) == [
        "figures/meva-lola_ultimatum.png",
        "results/meva-lola_ultimatum.checkpoint.npz",
        "results/meva-lola_ultimatum.npz",
    ]
    path.unlink()
    meva.main([*words, "--resume"])
    assert_same_arrays(first, arrays_in(path))
    assert first["versus_opponent"].shape == (2, 2, 3, 2)
    assert first["best_response"].shape == (2, 2, 3, 2)
    assert first["versus_opponent_policies"].shape == (2, 2, 3, 2, 1)
    assert first["loss"].shape == (2, 20)
    assert first["params/readout/w"].shape == (2, 8, 3)
    assert not any(name.endswith("_2") for name in first)


def random_step(key, state, game, config):
    """In place of an outer loop: it is quick to compile, and tells which key it had."""
    noise = jax.random.normal(key)
    params = jax.tree.map(lambda leaf: leaf + noise, state.params)
    metrics = {"loss": noise, "td_error": jnp.exp(noise)}
    return state._replace(params=params, step=state.step + 1), metrics


def random_results(key, *model_game_config):
    """In place of an evaluation: two settings, two pairs of policies."""
    *model, _, _ = model_game_config
    weight = sum(leaf.sum() for leaf in jax.tree.leaves(model))
    return {"drawn": jax.random.normal(key, (2, 2)), "weight": weight + jnp.zeros(2)}


def without_work(script):
    """Patches a script, so that its work is random numbers, in chunks of two loops."""
    stubs = {"evaluate": random_results, "report": mock.Mock()}
    if script in MODELS:
        stubs |= {"outer_step": random_step, "CHUNK": 2}
    if script == "meva":
        stubs["monitor"] = lambda key, *_: jax.random.normal(key)
    return mock.patch.multiple(SCRIPTS[script], **stubs)


@functools.cache
def call_of_report(script):
    """By a script's main, for seeds 3 and 4; five outer loops if there are any."""
    game = "imp" if script in ITERATED else "logistic"
    module, settings = SCRIPTS[script], TINY[script] | TINY_EVAL | {"seed": 3}
    if script in MODELS:
        settings |= {"outer_steps": 5}
    with tempfile.TemporaryDirectory() as folder, without_work(script):
        module.main(["--game", game, "--out", folder, *flags(**settings)])
        call = module.report.call_args
    assert str(call.kwargs["out"]) == folder
    return call


@pytest.mark.parametrize("script", SCRIPTS)
def test_main_evaluates_each_seed_by_its_second_key(script):
    """Arrays have the setting first, then the seed; a report has them and the sweep."""
    call = call_of_report(script)
    name, game, settings, sweep, results = call.args
    expected_game = "imp" if script in ITERATED else "logistic"
    config = tiny(expected_game, script, seed=3)
    assert (name, game) == (script, GAMES[expected_game])
    assert json.loads(settings)["seed"] == 3
    names = {"meva": "eval_gammas", "cola": "eval_alphas", "loqa": "betas"}
    swept = names.get(script, "alphas")
    expected = [config.lr] if script in UNSWEPT else list(getattr(config, swept))
    assert list(sweep) == expected
    for i in (0, 1):
        key = jax.random.split(jax.random.key(3 + i))[1]
        drawn = jax.random.normal(key, (2, 2))
        np.testing.assert_allclose(results["drawn"][:, i], drawn, rtol=1e-6)
    if script == "meva":
        call.kwargs["draw_below"](Figure())


@pytest.mark.parametrize("script", MODELS)
def test_main_trains_in_chunks_what_train_does_at_once(script):
    """By the first key of each seed; and it evaluates the model that comes out."""
    results = call_of_report(script).args[4]
    game, config = GAMES["logistic"], tiny("logistic", script, outer_steps=5)
    train = jax.jit(lambda key: SCRIPTS[script].train(key, game, config))
    for i in (0, 1):
        key = jax.random.split(jax.random.key(3 + i))[0]
        with without_work(script):
            params, curves = train(key)
        assert len(np.unique(curves["loss"])) == 5
        weight = sum(leaf.sum() for leaf in jax.tree.leaves(params))
        np.testing.assert_allclose(results["weight"][:, i], weight, rtol=1e-4)
        for name, array in (curves | games.flatten("params", params)).items():
            found = results[name][i]
            if name == "self_play_curve":  # a number for each chunk, of the same key
                assert found.shape == (3,)
                array = np.repeat(array, 3)
            np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("script", MODELS)
def test_a_trained_model_is_loaded(script, tmp_path):
    """Of each seed, with its settings; of a game of one's own if that is given."""
    module = SCRIPTS[script]
    config = tiny("logistic", script, seed=3)
    init = partial(module.model_init, game=GAMES["logistic"], config=config)
    models = jax.vmap(init)(jax.random.split(jax.random.key(0)))
    path = tmp_path / "run.npz"

    def save(config, without=()):
        settings = dataclasses.asdict(config)
        for name in without:
            del settings[name]
        arrays = games.flatten("params", models)
        np.savez(path, config=json.dumps(settings), **arrays)

    save(config, without=["eval_pairs"])  # of a version without this setting
    _, found = module.load(path)
    default = module.Config().eval_pairs
    assert found == dataclasses.replace(config, eval_pairs=default)
    save(config)
    for seed, row in ((None, 0), (3, 0), (4, 1)):
        params, found = module.load(path, seed)
        assert found == config
        expected = jax.tree.map(lambda leaf, row=row: leaf[row], models)
        chex.assert_trees_all_equal_structs(params, expected)
        chex.assert_trees_all_equal(params, expected)
    for seed in (2, 5):
        with pytest.raises(ValueError, match=f"has no seed {seed}"):
            module.load(path, seed)
    save(dataclasses.replace(config, game="mine"))
    with pytest.raises(ValueError, match="not 'mine'"):
        module.load(path)
    _, found = module.load(path, game=GAMES["logistic"]._replace(name="mine"))
    assert found.game == "mine"


def test_what_a_run_wrote_can_be_loaded(once):
    folder, arrays, _ = once("maml", "logistic")
    params, config = maml.load(folder / "results/maml_logistic.npz", seed=1)
    assert config == tiny("logistic", "maml")
    for name, leaf in games.flatten("params", params).items():
        np.testing.assert_array_equal(leaf, arrays[name][1])


# games.py: training in chunks, of a random walk that a plain loop repeats


class Walk(NamedTuple):
    x: jax.Array
    step: jax.Array


def start_walk(key):
    return Walk(jax.random.normal(key), jnp.int32(0))


def walk_chunk(key, state, count):
    def advance(state, _):
        noise = jax.random.normal(jax.random.fold_in(key, state.step))
        return Walk(state.x + noise, state.step + 1), state.x

    state, curve = jax.lax.scan(advance, state, length=count)
    return state, {"loss": curve, "last": state.x[None]}


def train_walk(path, *, init=start_walk, chunk=walk_chunk, resume=False, **lengths):
    """State, curves, and after which steps progress was printed; of seeds 3 and 4."""
    config = tiny("logistic")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        state, curves = games.train_in_chunks(
            np.uint32([3, 4]),
            init,
            chunk,
            mesh=games.use_devices(4, 1, None),
            config=config,
            settings=json.dumps(dataclasses.asdict(config)),
            path=path,
            resume=resume,
            **lengths,
        )
    shown = re.findall(r"^ *(\d+) / ", printed.getvalue(), re.MULTILINE)
    return state, curves, [int(step) for step in shown]


def test_a_chunk_trains_each_seed_by_its_first_key(tmp_path):
    path = tmp_path / "walk.npz"
    state, curves, _ = train_walk(path, steps=5, length=5)
    assert curves["last"].shape == (2, 1)
    np.testing.assert_array_equal(state.step, [5, 5])
    for i, seed in enumerate((3, 4)):
        key = jax.random.split(jax.random.key(seed))[0]
        x = jax.random.normal(key)
        for t in range(5):
            np.testing.assert_allclose(curves["loss"][i, t], x, rtol=1e-6)
            x = x + jax.random.normal(jax.random.fold_in(key, t))
        np.testing.assert_allclose(state.x[i], x, rtol=1e-6)


def test_chunks_of_any_length_train_alike_and_go_on_where_they_were(tmp_path):
    """The last chunk is shorter; curves are joined; a checkpoint has all of it."""
    path = tmp_path / "walk.npz"
    whole, curves, shown = train_walk(path, steps=5, length=5, resume=True)
    assert shown == [5]  # there was no checkpoint to go on from

    def assert_whole(state, parts):
        chex.assert_trees_all_equal(state, whole)
        np.testing.assert_array_equal(parts["loss"], curves["loss"])

    state, parts, shown = train_walk(path, steps=5, length=2)
    assert_whole(state, parts)
    assert shown == [2, 4, 5]  # from the start again
    assert parts["last"].shape == (2, 3)

    train_walk(path, steps=2, length=2)
    state, parts, shown = train_walk(path, steps=5, length=2, resume=True)
    assert_whole(state, parts)
    assert shown == [4, 5]
    state, parts, shown = train_walk(path, steps=5, length=2, resume=True)
    assert_whole(state, parts)
    assert shown == []  # nothing was left to do


def grow_chunk(key, state, count):
    def advance(state, _):
        return Walk(2 * state.x, state.step + 1), state.x

    state, curve = jax.lax.scan(advance, state, length=count)
    return state, {"loss": curve}


def test_divergence_ends_with_status_1_and_the_last_finite_state(tmp_path):
    """Twice as much at each step: 2^128 is too much, after five steps from 2^123."""
    path = tmp_path / "walk.npz"
    walk = Walk(jnp.float32(2.0**123), jnp.int32(0))
    said = f"training diverged at step 6; {path} has the state after 3"
    with pytest.raises(SystemExit, match=f"^{said}$"):
        train_walk(path, init=lambda _: walk, chunk=grow_chunk, steps=9, length=3)
    kept = arrays_in(path)
    np.testing.assert_array_equal(kept["state/step"], [3, 3])
    np.testing.assert_array_equal(kept["state/x"], [2.0**126, 2.0**126])
    assert kept["curves/loss"].shape == (2, 3)


def test_the_step_of_divergence_is_the_first_that_is_not_finite():
    state = {"w": np.ones(2)}
    loss = np.ones((2, 3))
    games.check_finite(state, loss, 10, "file")
    for seed, at in ((0, 1), (1, 2)):
        wrong = loss.copy()
        wrong[seed, at:] = np.nan
        with pytest.raises(SystemExit, match=f"at step {11 + at}; file has .* 10"):
            games.check_finite(state, wrong, 10, "file")
    with pytest.raises(SystemExit, match="at step 13"):  # only the state shows it
        games.check_finite({"w": np.array([1, np.inf])}, loss, 10, "file")


# --- The command line -----------------------------------------------------------------
# Settings that are parsed, refused and handed on, by hand.


def parsed(module, words):
    return module.parse_args(words)[0]


def call_rules(key, game, step, step_beside=None, opponent_step=None, draws=False, **_):
    """In place of `evaluate_game`: a step of each rule, all that scripts do not share."""
    x = game.init(key)
    key = key if draws else None
    ends = [games.take_step(step, x, key)]
    if step_beside is not None:
        ends += [games.take_step(step_beside(agent), x, key) for agent in (0, 1)]
    if opponent_step is not None:
        ends.append(opponent_step(x))
    return {f"rule {i}": end for i, end in enumerate(ends)}


def lower_for_a_gpu(function, *args):
    exported = jax.export.export(jax.jit(function), platforms=["cuda"])
    return exported(*args).mlir_module()


@functools.cache
def trace(script, name):
    """A script's programs, lowered for a GPU, and the settings read on the way.

    `train` and `evaluate`. What all share, `evaluate_game`, comes with naive.py alone.
    """
    module, game, key = SCRIPTS[script], games.find_game(name), jax.random.key(0)
    read, texts, params = set(), [], []

    class Spy(module.Config):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    beside = {"meva": {"target_inertia": 0.0, "opponent": "lola"}}
    beside["mfos"] = {"opponent": "lola"}
    config = Spy(**vars(tiny(name, script, **beside.get(script, {}))))
    read.clear()
    train = jax.jit(lambda key: module.train(key, game, config))
    play = games.evaluate_game if script == "naive" else call_rules
    with (
        mock.patch.object(jax, "default_backend", return_value="gpu"),
        mock.patch.object(cola, "ORDERS", (0, 1)),
        mock.patch.object(module, "evaluate_game", play),
    ):
        if script in MODELS:
            texts.append(lower_for_a_gpu(train, key))
            params.append(jax.eval_shape(train, key)[0])
        evaluate = partial(module.evaluate, game=game, config=config)
        texts.append(lower_for_a_gpu(evaluate, key, *params))
    return texts, read


TRACED = [(script, "ipd") for script in SCRIPTS]
TRACED += [("lola", "ipd+episodes=8+length=9")]


@pytest.mark.parametrize("script, game", TRACED)
def test_every_setting_is_read(script, game):
    """By `train` or `evaluate`, but for those that `main` or `make_config` reads."""
    _, read = trace(script, game)
    names = {field.name for field in dataclasses.fields(SCRIPTS[script].Config)}
    others = {"game", "seed", "num_seeds"}
    if script == "meva":
        others.add("preset")
    assert names - read == others


OTHER_VALUES = {
    "preset": "reliable",
    "fixed_gamma": 0.3,
    "form": "V",
    "last_activation": "gelu",
    "opponent": "naive",
    "seed": 5,
}
OTHER_VARIANT = {
    "cola": "joint",
    "lola": "taylor",
    "loqa": "full",
    "meva": "taylor-stop",
    "sos": "cgd",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_flag_changes_its_setting_and_nothing_else(script, tmp_path):
    module = SCRIPTS[script]
    base = tiny("ipd", script)
    if script == "meva":  # which some other settings take
        base = dataclasses.replace(base, target_inertia=0.0)
    if script == "cola":  # a step that it is trained for at any of these settings
        base = dataclasses.replace(base, eval_alphas=(0.5,))
    settings = vars(base)
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in settings.items():
        if name == "game":
            continue
        if name == "variant":
            other = OTHER_VARIANT[script]
        elif name == "last_activation" and script == "cola":
            other = "tanh"
        elif name in OTHER_VALUES:
            other = OTHER_VALUES[name]
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, tuple):
            other = (0.25,)
        elif isinstance(value, float):
            other = value / 2 or 0.5
        else:
            other = 2 * value
        changed = given | {name: other}
        config = parsed(module, ["--out", str(tmp_path), *flags(**changed)])
        assert vars(config) == settings | {name: other}


@pytest.mark.parametrize("script", TRAINED)
@pytest.mark.parametrize("name, numbers", [("ipd+mlp", 5), ("ipd+memory=2", 21)])
def test_models_see_the_chances_to_cooperate_and_gamma_or_alpha(script, name, numbers):
    module = SCRIPTS[script]
    config = module.make_config(name)
    init = partial(module.model_init, game=games.find_game(name), config=config)
    model = jax.eval_shape(init, jax.random.key(0))
    assert model.embed["first"]["w"].shape[0] == numbers + 1


FIG_3B = (0, 1, 2, 5, 10, 20, 30, 50, 70, 100)
PAPER = {  # the settings of Sec. 5, Apps. B to E, or of the authors' code if README says so
    ("naive", "logistic"): {"lr": 1, "eval_steps": 200},
    ("naive", "ipd"): {"lr": 2, "eval_pairs": 256, "eval_steps": 500},
    ("lola", "logistic"): {"lr": 1, "alphas": (0, 1, 2, 5, 10, 20), "variant": "exact"},
    ("lola", "ipd"): {"lr": 2, "alphas": FIG_3B, "variant": "exact", "eval_pairs": 256},
    ("hola", "logistic"): {"lr": 1, "order": 2},
    ("hola", "ipd"): {"lr": 2, "order": 2, "alphas": FIG_3B},
    ("sos", "ipd"): {"lr": 2, "variant": "sos", "alphas": FIG_3B, "eval_pairs": 256},
    ("pola", "ipd"): {
        "alphas": FIG_3B,
        "beta": 0.004,
        "lr": 20,
        "eval_pairs": 64,
        "eval_steps": 20,
    },
    ("pola", "tandem"): {"beta": 10, "lr": 0.1, "eval_steps": 200},
    ("loqa", "ipd"): {
        "lr": 2,
        "betas": (0, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        "variant": "loqa",
        "eval_pairs": 256,
        "eval_steps": 500,
    },
    # A step of networks is half as long, which does not change what they prefer.
    ("loqa", "ipd+mlp"): {"lr": 1, "betas": (0, 0.1, 0.2, 0.5, 1, 2, 5, 10)},
    ("coala", "ipd"): {
        "share": 0.5,
        "eta": 5,
        "learner_steps": 10,
        "model_lr": 0.005,
        "lr": 2,
        "eval_pairs": 256,
        "eval_steps": 500,
    },
    ("coala", "ipd+discount=0.999"): {"eta": 5},
    ("coala", "chicken"): {"eta": 0.25},
    ("coala", "balduzzi"): {"eta": 0.05, "eval_pairs": 32, "eval_steps": 200},
    ("mfos", "ipd"): {
        "lr": 25,
        "batch_size": 4096,
        "rollout_length": 100,
        "gamma": 0.99,
        "hidden": 256,
        "model_lr": 2e-3,
        "epochs": 4,
        "clip": 0.2,
        "entropy_weight": 0.01,
    },
    ("cola", "logistic"): {
        "lr": 1,
        "alpha_max": 10,
        "eval_alphas": (0, 1, 2, 5, 10),
        "hidden": 64,
        "blocks": 1,
        "layer_norm": True,
        "last_activation": "gelu",
        "share_params": True,
    },
    ("cola", "ipd"): {
        "lr": 2,
        "alpha_max": 10,
        "hidden": 64,
        "blocks": 2,
        "share_params": True,
    },
    ("meva", "logistic"): {
        "lr": 1,
        "form": "V",
        "hidden": 64,
        "blocks": 1,
        "quantiles": 16,
        "share_params": True,
        "layer_norm": False,
        "last_activation": "tanh",
        "rollout_length": 50,
        "stride": 50,
        "outer_steps": 1000,
        "batch_size": 128,
        "model_lr": 1e-3,
        "fixed_gamma": None,
        "bootstrap": 0,
        "target_inertia": 0,
        "explore": False,
        "weight_decay": 0,
        "semi_gradient": False,
        "adam_b2": 0.99,
        "eval_gammas": (0, 0.8, 0.85, 0.9, 0.95, 0.99),
        "eval_steps": 200,
    },
    ("meva", "ipd"): {
        "lr": 2,
        "form": "U",
        "hidden": 64,
        "blocks": 2,
        "quantiles": 32,
        "share_params": True,
        "layer_norm": True,
        "last_activation": "tanh",
        "rollout_length": 100,
        "stride": 10,
        "outer_steps": 2000,
        "batch_size": 128,
        "model_lr": 1e-4,
        "fixed_gamma": None,
        "bootstrap": 0.9,
        "target_inertia": 0.99,
        "explore": True,
        "flip_prob": 1 / 16,
        "weight_decay": 1e-2,
        "semi_gradient": True,
        "adam_b2": 0.99,
        "eval_gammas": (0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999),
        "eval_pairs": 256,
        "eval_steps": 500,
    },
}


@pytest.mark.parametrize("script, game", PAPER)
def test_defaults_are_the_papers(script, game):
    make_config, paper = SCRIPTS[script].make_config, PAPER[script, game]
    config = make_config(game)
    assert {name: getattr(config, name) for name in paper} == paper
    assert (config.seed, config.num_seeds) == (0, 1)
    quick = make_config(game, quick=True, seed=3)
    assert (quick.seed, quick.num_seeds, quick.lr) == (3, 1, config.lr)
    assert quick != dataclasses.replace(config, seed=3)


def test_the_reliable_preset_is_the_papers_settings_but_for_four():
    reliable = {
        "preset": "reliable",
        "outer_steps": 500,
        "batch_size": 64,
        "flip_prob": 1 / 4,
        "model_lr": 1e-3,
    }
    paper = meva.make_config("chicken")
    config = meva.make_config("chicken", preset="reliable")
    assert config == dataclasses.replace(paper, **reliable)
    longer = meva.make_config("chicken", preset="reliable", outer_steps=600)
    assert longer == dataclasses.replace(config, outer_steps=600)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_flag_and_its_default_on_the_ipd(script, capsys):
    module = SCRIPTS[script]
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, default in vars(module.Config()).items():
        if isinstance(default, bool):
            default = "on" if default else "off"
        assert f"--{name.replace('_', '-')}" in text
        assert f"({default})" in text or name == "game"
    assert module.Config() == module.make_config()


def test_settings_depend_on_each_other():
    fixed = meva.make_config("ipd", fixed_gamma=0.9)
    assert fixed.eval_gammas == (0.9,)
    assert meva.make_config("ipd", fixed_gamma=0.9, eval_gammas=[0.9]) == fixed
    assert not meva.make_config("imp").share_params
    assert meva.make_config("imp", share_params=True).share_params
    assert cola.make_config("ipd", alpha_max=2.0).eval_alphas[-1] == 2.0
    assert meva.make_config("ipd", quick=True).batch_size == 16
    sampled = meva.make_config("ipd+episodes=9", quick=True)
    assert (sampled.batch_size, sampled.outer_steps) == (4, 250)
    assert (sampled.model_lr, sampled.target_inertia) == (1e-3, 0.99)
    for game in ("logistic", "ipd"):
        quick = meva.make_config(game, quick=True)
        assert quick.outer_steps < meva.make_config(game).outer_steps


REFUSED = """
naive --game chess -> error: game takes bach_or_stravinsky, balduzzi
meva --game chess -> error: game takes bach_or_stravinsky, balduzzi
lola --game ipd+probes=3 -> 'ipd+probes=3': probes is unknown; variants are +mlp
meva --game ultimatum+discount=0.5 -> discount=0.5': discount takes an iterated game;
cola --game ipd+memory=3 -> game 'ipd+memory=3': memory takes a number from 1 to 2
maml --game ipd+mlp+mlp -> game 'ipd+mlp+mlp': mlp is given twice
mfos --game ipd+length=9 -> length takes an iterated game, and episodes=N before it
hola --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
sos --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
pola --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
cola --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
maml --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
coala --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
loqa --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
loqa --game logistic -> error: loqa.py needs an iterated game, not logistic
loqa --game ultimatum -> error: loqa.py needs an iterated game, not ultimatum
loqa --variant taylor -> --variant: invalid choice: 'taylor'
loqa --betas 0.5 -1 -> --betas takes 0 to 1e+30, not 0.5 -1.0
loqa --betas -> --betas: expected at least one argument
coala --share 1.5 -> --share takes 0 to 1, not 1.5
mfos --game ipd+episodes=8 -> exact returns, not those of ipd+episodes=8
meva --outer 3 -> unrecognized arguments: --outer
lola --alpha 3 -> unrecognized arguments: --alpha
naive --resume -> unrecognized arguments: --resume
naive --discount 0.9 -> unrecognized arguments: --discount
naive --num-seeds 0 -> --num-seeds takes 1 to 1000, not 0
meva --lr nan -> --lr takes 0 to 1e+30, not nan
hola --lr nan -> --lr takes 0 to 1e+30, not nan
maml --lr 0 -> --lr takes 1e-30 to 1e+30, not 0.0
meva --lr two -> --lr: invalid float value: 'two'
sos --lr two -> --lr: invalid float value: 'two'
lola --lookahead 1000 -> --lookahead takes 1 to 20, not 1000
lola --variant extra -> --variant: invalid choice: 'extra'
sos --variant taylor -> --variant: invalid choice: 'taylor'
lola --alphas 0.5 -1 -> --alphas takes 0 to 1e+30, not 0.5 -1.0
lola --alphas -> --alphas: expected at least one argument
hola --order 6 -> --order takes 0 to 5, not 6
pola --beta -1 -> --beta takes 0 to 1e+30, not -1.0
mfos --clip 2 -> --clip takes 0 to 1, not 2.0
cola --alpha-max 0 -> --alpha-max takes 1e-30
cola --eval-alphas 1 11 -> --eval-alphas takes numbers up to --alpha-max 10.0, not 11.0
cola --alpha-min 11 -> --alpha-min takes numbers up to --alpha-max 10.0, not 11.0
cola --alpha-min 2 --eval-alphas 1 3 -> --eval-alphas takes numbers from --alpha-min 2.0, not
meva --eval-gammas 0.5 1 -> --eval-gammas takes 0 to 0.9999999, not 0.5 1.0
meva --eval-gammas -> --eval-gammas: expected at least one argument
meva --stride 7 -> --stride takes divisors of --rollout-length 100, not 7
meva --no-semi-gradient -> --no-semi-gradient takes --target-inertia 0
lola --variant joint --lookahead 2 -> --variant joint takes --lookahead 1
meva --preset reliable --quick -> --preset reliable takes an iterated game, and no --quick
meva --preset reliable --game logistic -> --preset reliable takes an iterated game
meva --devices 0 -> --devices takes 1 to 256, not 0
meva --distributed localhost:1 two 0 -> --distributed takes HOST:PORT
meva --distributed localhost:1 2 -> --distributed takes HOST:PORT
meva --distributed localhost:12345678 2 0 -> not 'localhost:12345678 2 0'
meva --distributed localhost:0 2 0 -> not 'localhost:0 2 0'
meva --distributed localhost:65536 2 0 -> not 'localhost:65536 2 0'
meva --distributed localhost:1 2 2 -> not 'localhost:1 2 2'
naive --out /proc/none -> --out takes a folder that can be written, not /proc/none
cola --out /proc/none -> --out takes a folder that can be written, not /proc/none
lola --out {}/file -> --out takes a folder that can be written
meva --out {}/file -> --out takes a folder that can be written
"""


def check_refused(script, words, said, folder, capsys):
    """Status 2, one line on stderr that names the flag, no output, no file, no folder."""
    (folder / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[script].main(["--out", str(folder), *words])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and said in err
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "in the way"


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_bad_input_gets_one_line_and_status_2(line, tmp_path, capsys):
    command, said = line.split(" -> ")
    script, *words = command.format(tmp_path).split()
    check_refused(script, words, said, tmp_path, capsys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_that_are_too_large_are_refused_by_every_script(
    script, tmp_path, capsys
):
    large = {"num-seeds": 10**9, "eval-pairs": 2**31 - 1, "eval-steps": 2**31 - 1}
    if script in (*TRAINED, "mfos"):
        large |= {"hidden": 10**6, "batch-size": 2**31 - 1}
    for flag, number in large.items():
        words = [f"--{flag}", str(number)]
        check_refused(script, words, f"--{flag} takes 1 to ", tmp_path, capsys)


# games.py: checkpoints, each kind of damage by itself

STATE = Walk(np.float32([[1, 2, 3], [4, 5, 6]]), np.int32([20, 20]))


def save_state(path, **settings):
    """A checkpoint of tiny settings, with changes. Returns what `load` gives back."""
    config = vars(tiny("logistic")) | settings
    curves = {"loss": np.arange(40, dtype=np.float32).reshape(2, 20)}
    games.save_checkpoint(path, STATE, curves, json.dumps(config | {"run_on": "here"}))
    return STATE, curves


def test_a_checkpoint_is_what_was_saved(tmp_path):
    saved = save_state(tmp_path / "file.npz")
    found = games.load_checkpoint(tmp_path / "file.npz", STATE, tiny("logistic"))
    chex.assert_trees_all_equal(found, saved)
    assert files(tmp_path) == ["file.npz"]


def test_a_checkpoint_of_other_settings_is_refused_by_their_flag(tmp_path):
    """But for those of the evaluation."""
    path = tmp_path / "file.npz"
    for name in vars(tiny()):
        save_state(path, **{name: "other"})
        load = partial(games.load_checkpoint, path, STATE, tiny("logistic"))
        if name.startswith("eval_"):
            load()
            continue
        said = f"--resume: {path} has --{name.replace('_', '-')} other"
        with pytest.raises(games.BadCheckpoint, match=f"^{said}$"):
            load()


def damaged_arrays(good):
    """Arrays of a checkpoint, each with one thing that is wrong."""
    for name, array in good.items():
        yield {key: good[key] for key in good if key != name}
        yield good | {name: array.ravel()[:-1]}
        yield good | {name: np.stack([array, array])}
        yield good | {name: array.astype(object)}
    for name in ("state/x", "state/step", "curves/loss"):
        array = good[name]
        yield good | {name: array + 1}
        yield good | {name: array[..., None]}
        for dtype in (np.float64, np.int64, np.uint32, str):
            yield good | {name: array.astype(dtype)}
        for wrong in (np.nan, np.inf, -1):
            yield good | {name: np.full_like(array, wrong, np.float32)}
    for text in ("null", "[]", "{}", "", "3", "{", str(good["config"]) + " "):
        yield good | {"config": np.array(text)}
    yield good | {"state/more": np.zeros(2)}


def damaged_bytes(whole, bomb):
    """The bytes of a checkpoint that is cut or flipped, or of something else."""
    for part in range(1, 8):
        at = part * len(whole) // 8
        flipped = bytes(255 - byte for byte in whole[at : at + 40])
        yield whole[:at]
        yield whole[:at] + flipped + whole[at + 40 :]
    yield from (b"", bytes(1000), b"PK\3\4 is how it starts", b"\x93NUMPY\1\0")
    yield f"cos\nmkdir\n(V{bomb}\ntR.".encode()  # a pickle that makes a folder


def test_no_damaged_checkpoint_is_believed(tmp_path):
    path, bomb = tmp_path / "file.npz", tmp_path / "bomb"
    save_state(path)
    whole, good = path.read_bytes(), arrays_in(path)

    def check():
        before = path.read_bytes()
        said = f"^--resume: {path} is damaged, or no checkpoint$"
        with pytest.raises(games.BadCheckpoint, match=said):
            games.load_checkpoint(path, STATE, tiny("logistic"))
        assert path.read_bytes() == before

    for arrays in damaged_arrays(good):
        np.savez(path, **arrays)
        check()
    for content in damaged_bytes(whole, bomb):
        path.write_bytes(content)
        check()
    assert not bomb.exists()


def test_a_whole_checkpoint_that_does_not_fit_is_refused(tmp_path):
    """One of another version of a script, or of optax; or whose settings are none."""
    path = tmp_path / "file.npz"
    save_state(path)
    load = partial(games.load_checkpoint, path, config=tiny("logistic"))
    with pytest.raises(games.BadCheckpoint, match="fit: there is no state/w"):
        load(state={"w": STATE.x, "step": STATE.step})
    for text in ("[]", "{}", "{"):
        games.save_checkpoint(path, STATE, {}, text)
        with pytest.raises(games.BadCheckpoint):
            load(state=STATE)


@slow
def test_mfos_goes_on_from_its_checkpoint_bit_for_bit(once, tmp_path, capsys):
    words = ["--game", "logistic", "--resume", "--out", str(tmp_path)]
    words += flags(**TINY["mfos"] | TINY_EVAL)
    stop = mock.patch.object(games, "print_progress", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(KeyboardInterrupt):  # after the first chunk
        mfos.main(words)
    middle = arrays_in(tmp_path / "results/mfos_logistic.checkpoint.npz")
    assert middle["state/step"].tolist() == [10, 10]
    assert middle["curves/mean_return"].shape == (2, 10, 1, 2)
    mfos.main(words)
    out = capsys.readouterr().out
    assert " 20 / 20 " in out and " 10 / 20 " not in out
    resumed = arrays_in(tmp_path / "results/mfos_logistic.npz")
    assert_same_arrays(resumed, once("mfos", "logistic")[1])


# Scripts as programs: what ends them, in this process where that shows it


def start(folder, *words, script="meva", **environment):
    """A script as a process."""
    command = [sys.executable, "-W", "error::DeprecationWarning", f"{ROOT}/{script}.py"]
    return subprocess.Popen(
        [*command, *words, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def wait_for_loop(process):
    """Until it has trained a chunk. Returns how far it came."""
    for line in process.stdout:
        if found := re.match(r" *(\d+) / ", line):
            return int(found[1])
    raise AssertionError(process.communicate()[1])


@slow
def test_killed_twice_interrupted_and_resumed_it_ends_bit_for_bit_alike(tmp_path):
    """A prime number of outer loops: the last chunk is of one."""
    # A shell's job in the background ignores interrupts, and so would its processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = {"outer_steps": 3001, "eval_gammas": (0.9,), "num_seeds": 1}
    words = ["--game", "logistic", "--resume"]
    words += flags(**TINY["meva"] | TINY_EVAL | settings)
    reached = [0]
    for stop, status, said in (
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGINT, 130, "meva.py: interrupted\n"),
    ):
        process = start(tmp_path, *words)
        reached.append(wait_for_loop(process))
        process.send_signal(stop)
        _, err = process.communicate()
        assert (process.returncode, err) == (status, said)
        assert "results/meva_logistic.npz" not in files(tmp_path)
    # Each went on from where the one before it was.
    assert reached == sorted(set(reached)) and reached[-1] < 3001
    _, err = start(tmp_path, *words).communicate()
    assert not err
    out, _ = start(tmp_path / "whole", *words).communicate()
    # As many devices as there are cores, but four at most: they share the batch of 4.
    devices = max(n for n in (1, 2, 4) if n <= games.count_cores())
    assert f"on {devices} x cpu" in out
    whole = arrays_in(tmp_path / "whole/results/meva_logistic.npz")
    assert_same_arrays(whole, arrays_in(tmp_path / "results/meva_logistic.npz"))


@pytest.mark.parametrize(
    "error, status, said",
    [
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt(), 130, "meva.py: interrupted\n"),
        (games.BadCheckpoint("--resume: no"), 2, "meva.py: error: --resume: no\n"),
        (OSError(28, "Disk full"), 1, "meva.py: [Errno 28] Disk full\n"),
        (MemoryError(), 1, "meva.py: MemoryError\n"),
        (RuntimeError("Out of memory\nallocating"), 1, "meva.py: Out of memory\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_fails_from_outside_gets_one_line(
    error, status, said, capsys, monkeypatch
):
    monkeypatch.setattr(os, "_exit", mock.Mock())
    monkeypatch.setattr(sys, "argv", ["folder/meva.py"])
    games.run_script(mock.Mock(side_effect=error))
    os._exit.assert_called_once_with(status)
    assert capsys.readouterr() == ("", said)


def test_what_fails_from_inside_is_raised(monkeypatch):
    monkeypatch.setattr(os, "_exit", mock.Mock())
    for error in (ValueError, AssertionError, SystemExit):
        with pytest.raises(error):
            games.run_script(mock.Mock(side_effect=error))
    games.run_script(mock.Mock())
    os._exit.assert_not_called()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_a_program(script):
    text = (ROOT / f"{script}.py").read_text()
    assert text.endswith('\n\nif __name__ == "__main__":\n    run_script(main)\n')


def test_where_jax_finds_no_device_nothing_is_written(tmp_path):
    process = start(tmp_path, script="naive", JAX_PLATFORMS="cuda")
    _, err = process.communicate(timeout=100)
    said = "naive.py: JAX finds no device (JAX_PLATFORMS is cuda)\n"
    assert (process.returncode, err) == (1, said)
    assert not list(tmp_path.iterdir())


@slow
@pytest.mark.parametrize(
    "script, words, platform, said",
    [
        ("meva", "--game tandem", "abacus", "abacus"),
        ("maml", "--batch-size 65536 --rollout-length 1000000", "cpu", "Out of memory"),
    ],
)
def test_processes_end_with_one_line(script, words, platform, said, tmp_path):
    words = words.split()
    process = start(tmp_path, *words, script=script, JAX_PLATFORMS=platform)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert err.count("\n") == 1 and err.startswith(f"{script}.py: ") and said in err
    assert not files(tmp_path)


@slow
def test_a_quick_run_has_as_many_pairs_as_it_should_and_does_not_crash(tmp_path):
    """jaxlib 0.10.2 does, if `decisions_beside` has a sum of products."""
    words = ["--game", "imp", "--quick", "--eval-steps", "2"]
    process = start(tmp_path, *words, script="lola")
    _, err = process.communicate()
    assert process.returncode == 0, err
    arrays = arrays_in(tmp_path / "results/lola_imp.npz")
    assert arrays["exact_best_response_2"].shape == (10, 1, 16, 2)


def test_a_closed_pipe_is_quiet(tmp_path):
    """Nobody reads what it prints: it ends at its first line."""
    process = start(tmp_path, "--game", "tandem", script="naive")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


# games.py: files, written whole or not at all


def half_a_file(*figure_and_path, **_):
    """In place of np.savez or a figure's savefig: the disk is full."""
    pathlib.Path(figure_and_path[-1]).write_text("half")
    raise OSError("disk full")


def test_a_file_is_whole_or_as_it_was_before(tmp_path):
    path = tmp_path / "file.txt"
    games.write_file(path, lambda part: part.write_text("before"))
    with pytest.raises(OSError, match="disk full"):
        games.write_file(path, half_a_file)
    assert files(tmp_path) == ["file.txt"]
    assert path.read_text() == "before"


def test_two_processes_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    """One writes all of it while the other is in the middle of it."""
    path = tmp_path / "file.txt"

    def save(part):
        part.write_text("own")
        with mock.patch.object(os, "getpid", return_value=os.getpid() + 1):
            games.write_file(path, lambda part: part.write_text("other"))
        assert path.read_text() == "other"

    games.write_file(path, save)
    assert path.read_text() == "own" and files(tmp_path) == ["file.txt"]


def test_where_the_disk_is_full_no_half_of_a_file_is_left(once, tmp_path):
    arrays = once("naive", "logistic")[1]
    for name in ("config", "sweep", "grid"):
        arrays = {key: arrays[key] for key in arrays if key != name}
    games.make_folders(tmp_path)
    where = {"symbol": "lr", "color": "gray", "out": tmp_path}

    def report():
        games.report("naive", GAMES["logistic"], "{}", [1.0], arrays, **where)

    checkpoint = tmp_path / "results/file.npz"
    for owner, name, write, left in (
        (np, "savez", partial(save_state, checkpoint), []),
        (np, "savez_compressed", report, []),
        (Figure, "savefig", report, ["results/naive_logistic.npz"]),
    ):
        full = mock.patch.object(owner, name, half_a_file)
        with full, pytest.raises(OSError, match="disk full"):
            write()
        assert files(tmp_path) == left
    with mock.patch.object(jax, "process_index", return_value=1):
        save_state(checkpoint)
        (tmp_path / left[0]).unlink()
        report()
    assert not files(tmp_path)  # only process 0 writes


# games.py: devices. Where there are two, a step of gradient descent is done by hand

TWO_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
import games

def descend(w, x):
    loss, gradient = jax.value_and_grad(lambda w: ((x * w).sum(axis=1) ** 2).mean())(w)
    return {"loss": loss, "gradient": gradient, "rows": jnp.float32(len(x))}

def descend_turned(w, x):
    return descend(w, x.T)

def train(train_key, eval_key, w):
    x = games.over_devices(jax.random.normal(train_key, (4, 3)))
    turned = games.mean_over_devices(descend_turned, w, x.T, axis=1)
    results = games.mean_over_devices(descend, w, x)
    alone = "batch" in jax.sharding.get_abstract_mesh().manual_axes
    results["device"] = jax.lax.axis_index("batch") if alone else jnp.int32(-1)
    results["turned"] = turned["gradient"]
    results["evaluated"] = x + jax.random.normal(eval_key)
    return results

mesh = games.use_devices(4, None, None)
found = {"devices": mesh.size}
with jax.set_mesh(mesh):
    for count in (2, 3):
        seeds = np.arange(count, dtype=np.uint32) + 5
        w = np.arange(3.0 * count, dtype=np.float32).reshape(count, 3)
        for name, array in games.over_seeds(train, mesh)(seeds, w).items():
            found[f"{count}/{name}"] = array
    for rows in (4, 5):
        dealt = jax.jit(games.over_devices)(np.zeros((rows, 3)))
        found[f"share_of_{rows}"] = dealt.sharding.shard_shape(dealt.shape)
np.savez(sys.argv[1], **found)
"""


def run_code(code, *words, **environment):
    """What a Python process prints, with no devices but those of the environment."""
    clean = dict(os.environ)
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        clean.pop(name, None)
    environment = clean | {"JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_devices_have_seeds_of_their_own_or_share_the_batch_of_each(tmp_path):
    """As if each seed were alone on one device: means over the batch, not sums."""
    path = tmp_path / "found.npz"
    run_code(TWO_DEVICES, str(path), JAX_NUM_CPU_DEVICES="2")
    found = arrays_in(path)
    assert found["devices"] == 2
    same = partial(np.testing.assert_allclose, rtol=1e-5)
    for count in (2, 3):
        for i in range(count):
            train_key, eval_key = jax.random.split(jax.random.key(5 + i))
            x = np.asarray(jax.random.normal(train_key, (4, 3)))
            w = np.arange(3 * i, 3 * i + 3)
            same(found[f"{count}/loss"][i], ((x @ w) ** 2).mean())
            gradient = 2 * x.T @ (x @ w) / 4
            same(found[f"{count}/gradient"][i], gradient)
            same(found[f"{count}/turned"][i], gradient)
            drawn = x + jax.random.normal(eval_key)
            same(found[f"{count}/evaluated"][i], drawn)
    # Which device had each seed, if one did; and how many rows of the batch each had.
    assert found["2/device"].tolist() == [0, 1]
    assert found["2/rows"].tolist() == [4, 4]
    assert found["3/device"].tolist() == [-1, -1, -1]
    assert found["3/rows"].tolist() == [2, 2, 2]
    assert found["share_of_4"].tolist() == [2, 3]
    assert found["share_of_5"].tolist() == [5, 3]


def test_devices_are_as_many_as_the_users_flags_of_xla_say():
    code = "import games; print(games.use_devices(8, None, None).size)"
    flag = "--xla_force_host_platform_device_count=4"
    assert run_code(code, XLA_FLAGS=flag).split() == ["4"]


def start_two(folder, words):
    """Two processes that share the work, on a port that is free."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = [*words, "--distributed", address, "2"]
    first = start(folder, *words, "0", JAX_NUM_CPU_DEVICES="1")
    second = start(folder, *words, "1", JAX_NUM_CPU_DEVICES="1")
    return first, second


@slow
def test_devices_and_processes_train_as_one(tmp_path):
    """Four seeds: two processes have two each; then four devices one each."""
    settings = {"outer_steps": 61, "num_seeds": 4}  # chunks of 25, 25 and 11
    words = ["--game", "logistic", "--resume"]
    words += flags(**TINY["meva"] | TINY_EVAL | settings)

    first, second = start_two(tmp_path, words)
    wait_for_loop(first)
    second.kill()
    first.communicate(timeout=200)
    assert first.returncode != 0  # it ends when the other is lost
    shutil.copytree(tmp_path / "results", tmp_path / "more/results")
    first, second = start_two(tmp_path, words)
    out, err = first.communicate(timeout=200)
    assert " 61 / 61 " in out and not re.search(r"^ *25 / 61", out, re.MULTILINE), err
    # Only process 0 prints; the network's library does, too.
    assert not re.search("loss|wrote|config", second.communicate(timeout=200)[0])
    # And as many of more devices as divide the batch, from the same checkpoint on.
    process = start(tmp_path / "more", *words, JAX_NUM_CPU_DEVICES="8")
    assert "4 x cpu" in process.communicate(timeout=200)[0]
    whole = run(tmp_path / "one", **settings)
    for folder in (tmp_path, tmp_path / "more"):
        found = arrays_in(folder / "results/meva_logistic.npz")
        assert found.keys() == whole.keys()
        for name in ("loss", "field", "params/readout/w"):  # rounding grows in training
            np.testing.assert_allclose(found[name], whole[name], rtol=0.01, atol=0.01)


@slow
def test_two_processes_share_the_batch_of_a_single_seed(tmp_path):
    settings = {"outer_steps": 3, "num_seeds": 1}
    words = ["--game", "logistic", *flags(**TINY["meva"] | TINY_EVAL | settings)]
    first, second = start_two(tmp_path, words)
    out, err = first.communicate(timeout=200)
    assert "2 x cpu" in out, err
    second.communicate(timeout=200)
    found = arrays_in(tmp_path / "results/meva_logistic.npz")
    whole = run(tmp_path / "one", **settings)
    for name in ("loss", "gradient_norm", "field", "params/readout/w"):
        # float32 rounding, of means over halves of the batch
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "batch, hosts, flag, count",
    [
        (128, (2,), None, 2),
        (100, (16,), None, 10),
        (128, (8,), 3, 2),
        (128, (8, 8), None, 16),
        (128, (8, 8), 1, 2),
        (128, (4, 2), None, 4),  # as many of each
        (7, (4,), None, 1),
    ],
)
def test_as_many_devices_as_divide_the_batch(batch, hosts, flag, count, monkeypatch):
    def local_devices(i):
        return [(i, j) for j in range(hosts[i])]

    monkeypatch.setattr(jax, "local_devices", local_devices)
    monkeypatch.setattr(jax, "process_count", lambda: len(hosts))
    monkeypatch.setattr(games, "Mesh", lambda devices, names: (devices, names))
    devices, names = games.use_devices(batch, flag, None)
    each = count // len(hosts)
    expected = [[i, j] for i in range(len(hosts)) for j in range(each)]
    assert devices.tolist() == expected
    assert names == ("batch",)


def test_a_batch_must_be_a_multiple_of_the_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "local_devices", lambda i: [i])
    with pytest.raises(ValueError, match="--batch-size takes multiples of 3"):
        games.use_devices(128, None, None)


FULL_PRECISION = "precision = [HIGHEST, HIGHEST]"


def products(text):
    return re.findall(r"= stablehlo\.dot_general .*", text)


def check_fit_for_a_gpu(text):
    """It calls nothing but XLA, and multiplies matrices in full float32."""
    assert "callback" not in text and "custom_call" not in text
    for product in products(text):
        assert FULL_PRECISION in product


@pytest.mark.parametrize("script, game", TRACED)
def test_programs_are_fit_for_a_gpu(script, game):
    """As they are lowered for one."""
    texts, _ = trace(script, game)
    for text in texts:
        check_fit_for_a_gpu(text)
    # Networks do; POLA, for its natural gradients.
    multiplies = script in (*TRAINED, "mfos", "pola")
    assert bool(products(texts[-1])) == multiplies


@pytest.mark.parametrize(
    "name", ["ultimatum", "imp+mlp+memory=2", "ipd+skewed+episodes=8+length=9"]
)
def test_no_kind_of_game_multiplies_matrices_in_what_players_get(name):
    """A GPU would round them. With derivatives, in full float32 or not."""
    game = games.find_game(name)

    def everything(x):
        gradient = simultaneous_gradient(game.f, x)
        responses = games.exact_best_response(game, x) if game.iterated else x
        if game.sample is None:
            return gradient, responses
        sample = partial(game.sample, jax.random.key(0))
        return gradient, responses, simultaneous_gradient(sample, x)

    text = lower_for_a_gpu(everything, jnp.zeros((2, game.n)))
    check_fit_for_a_gpu(text)
    assert not products(text)


def test_lola_and_soss_family_are_not_rounded_on_a_gpu():
    """Of them only those that invert matrices multiply them."""
    f = GAMES["logistic"].f
    inverting = ["cgd", "lss", "stackelberg"]

    def without_products(x):
        found = [lola.lola_gradient(f, x, 1.0, variant) for variant in lola.SURROGATES]
        for variant in sorted({*sos.VARIANTS} - {*inverting}):
            found.append(sos.sos_gradient(f, x, 1.0, variant))
        return found

    def with_products(x):
        return [sos.sos_gradient(f, x, 1.0, variant) for variant in inverting]

    x = jnp.zeros((2, 1))
    assert not products(lower_for_a_gpu(without_products, x))
    found = products(lower_for_a_gpu(with_products, x))
    assert found
    for product in found:
        assert FULL_PRECISION in product


# games.py: the figure and the table of a run. What was drawn is read back, and means
# and errors are worked out by hand.


def random_run(name):
    """Random numbers in place of a run of LOLA: two alphas, two seeds."""
    game = games.find_game(name)
    config = tiny(name, "lola")
    shapes = jax.eval_shape(lambda: lola.evaluate(jax.random.key(0), game, config))
    random = np.random.default_rng(0)
    results = {"sweep": np.array([0.0, 0.5])}
    for key, array in shapes.items():
        results[key] = random.normal(size=(2, 2, *array.shape[1:]))
    return results


def draw_run(game, results):
    figure = games.draw_report("lola", game, results, "step alpha", "tab:orange")
    figure.draw_without_rendering()
    return figure


def check_paths(axis, paths):
    """A panel has these paths, (pair, time, 2), each with a point at its end."""
    lines = [line.get_xydata() for line in axis.lines]
    np.testing.assert_allclose(lines[::2], paths)
    np.testing.assert_allclose(np.concatenate(lines[1::2]), paths[:, -1])


def check_basins(axis, ends):
    """White is the share of seeds that end, (seed, 29, 29, 2), with both above 0."""
    shares = ((ends[..., 0] > 0) & (ends[..., 1] > 0)).mean(axis=0)
    np.testing.assert_array_equal(axis.images[0].get_array(), shares)
    assert axis.images[0].origin == "lower"  # x_2 grows upwards


def check_errorbars(container, samples):
    """Means of samples, (S, sample), and bars of a standard error up and down."""
    line, _, (bars,) = container
    np.testing.assert_allclose(line.get_ydata(), samples.mean(axis=1), rtol=1e-5)
    errors = samples.std(axis=1, ddof=1) / samples.shape[1] ** 0.5
    heights = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(heights, 2 * errors, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["logistic", "ultimatum"])
def test_the_figure_of_a_planar_run_shows_paths_and_basins(name):
    game, results = GAMES[name], random_run(name)
    figure = draw_run(game, results)
    assert figure.get_suptitle() == f"lola on {name}, 2 seeds"
    assert "paths by step alpha" in figure.get_supxlabel()
    for i, setting in enumerate(results["sweep"]):
        above, below = figure.axes[i], figure.axes[2 + i]
        assert above.get_title() == f"alpha = {setting:g}"
        check_paths(above, results["trajectories"][i, 0])
        check_basins(below, results["endpoints"][i])


def test_the_figure_of_a_run_shows_what_both_players_agents_get():
    """Errors are over seeds; the policies' panel has chances of cooperation."""
    game, results = GAMES["imp"], random_run("imp")
    figure = draw_run(game, results)
    keys = ["best_response", "exact_best_response", "versus_naive"]
    for player, panels in ((1, figure.axes[:5]), (2, figure.axes[5:])):
        plays = [results[key if player == 1 else f"{key}_2"] for key in keys]
        own_first = [0, 1] if player == 1 else [1, 0]
        plays.insert(0, results["self_play"][..., own_first])
        for axis, returns in zip(panels, plays):
            by_seed = returns.mean(axis=2)  # (S, seed, 2)
            thin = [line for line in axis.lines if line.get_linewidth() == 0.5]
            agents = [line.get_ydata() for line in thin]
            np.testing.assert_allclose(agents, by_seed[..., 0].T, rtol=1e-5)
            assert axis.containers[0].get_label() == f"agent, player {player}"
            for column in (0, 1):
                check_errorbars(axis.containers[column], by_seed[..., column])
        log_odds = results["policies"][..., player - 1, :]
        chances = (1 / (1 + np.exp(-log_odds))).mean(axis=(1, 2))
        shown = panels[4].images[0].get_array()
        np.testing.assert_allclose(shown, chances.T, rtol=1e-5)
        labels = [label.get_text() for label in panels[4].get_yticklabels()]
        assert labels == list(game.labels)


def test_an_axis_leaves_outliers_out_and_magnifies_nothing():
    """The limits are two ranges of 80 % of the values away from these at most."""
    values = np.linspace(-2, -1, 50)
    limits = partial(games.robust_limits, least=0.2)
    low, high = limits(np.array([*values, -100]))
    assert -3.8 < low <= -3.5
    assert -1 <= high < -0.8
    low, high = limits(np.array([*values, np.nan, np.inf, 5e30, -np.inf]))
    assert -2.3 < low <= -2
    assert 0.5 <= high < 0.8
    low, high = limits(np.linspace(-2, -1.99, 50))  # at least .2, and in the middle
    assert 0.19 < high - low < 0.25
    assert abs(low + high + 3.99) < 0.01
    low, high = limits(np.linspace(-1, 1, 50))  # nothing is an outlier
    assert -1.2 < low < -1
    assert 1 < high < 1.2


@pytest.mark.parametrize("few", [[], [np.nan], [0.0], [3.0, 3.0]])
def test_an_axis_has_limits_whatever_is_to_be_shown(few):
    low, high = games.robust_limits(np.array(few), least=0.2)
    assert np.isfinite([low, high]).all()
    assert low < high
    assert low <= np.nanmin([*few, high])


def returns_of(low, high, settings):
    """A run of one seed and four pairs on the IPD, with returns from low to high."""
    random = np.random.default_rng(0)
    results = {"sweep": np.arange(float(settings))}
    for key in ("self_play", "best_response", "exact_best_response", "versus_naive"):
        results[key] = random.uniform(low, high, (settings, 1, 4, 2))
    results["policies"] = np.zeros((settings, 1, 4, 2, 5))
    return results


def test_all_panels_of_a_run_have_the_same_limits_without_its_outlier():
    results = returns_of(-2, -1, settings=10)
    results["versus_naive"][3, :, :, 1] = -1e4
    *panels, _ = draw_run(GAMES["ipd"], results).axes
    limits = {axis.get_ylim() for axis in panels}
    assert len(limits) == 1
    assert -3 < limits.pop()[0] < -1.7


def test_the_legend_of_a_run_covers_no_panel_and_says_what_bars_are():
    figure = draw_run(GAMES["ipd"], returns_of(-2, -1, settings=10))
    (part,) = figure.subfigs
    (legend,) = part.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[0] == "agent"
    assert "standard errors over 4 pairs of policies" in words[1]
    box = legend.get_window_extent()
    assert not any(box.overlaps(axis.get_tightbbox()) for axis in figure.axes)


@pytest.mark.parametrize("name", ["ipd", "ipd+memory=2"])
def test_numbers_of_policies_do_not_overlap(name):
    game, results = games.find_game(name), returns_of(-2, -1, settings=10)
    results["policies"] = np.zeros((10, 1, 4, 2, game.n))
    panel = draw_run(game, results).axes[-1]
    boxes = [text.get_window_extent() for text in panel.texts]
    boxes += [label.get_window_extent() for label in panel.get_yticklabels()]
    assert len(boxes) == 11 * len(game.labels)
    for i, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:i]) == 0


def test_error_bars_are_within_the_picture():
    """One pair at -1 and three at -2: a mean of -1.75, and an error of .25."""
    results = returns_of(-2, -2, settings=10)
    results["self_play"][:, :, 0] = -1
    low, high = draw_run(GAMES["ipd"], results).axes[0].get_ylim()
    assert low < -2
    assert high > -1.5


def test_a_run_that_diverged_is_drawn():
    own = BOWL._replace(n=2, features=lambda x: x, labels=("a", "b"))
    results = returns_of(1, 2, settings=2)
    del results["exact_best_response"]
    results["policies"] = np.zeros((2, 1, 4, 2, 2))
    for key in ("self_play", "best_response", "versus_naive"):
        results[key][1] = [np.inf, -np.inf]
    figure = draw_run(own, results)
    assert np.isfinite(figure.axes[0].get_ylim()).all()


@pytest.mark.parametrize("seeds, said", [(1, "1 seed"), (3, "3 seeds")])
def test_one_seed_is_one_seed(seeds, said):
    results = returns_of(-2, -1, settings=2)
    several = {}
    for key, array in results.items():
        several[key] = array if key == "sweep" else np.repeat(array, seeds, axis=1)
    assert draw_run(GAMES["ipd"], several).get_suptitle() == f"lola on ipd, {said}"


def table_of(game, results, capsys):
    """The lines of a table."""
    games.print_table(GAMES[game], results, "alpha")
    return capsys.readouterr().out.splitlines()


def cells_of(line):
    """The cells of a line of a table, which are two spaces or more apart."""
    return re.split("  +", line.strip())


def a_table():
    """A run at two settings, with three seeds and five pairs."""
    random = np.random.default_rng(0)
    results = {"sweep": np.array([0.5, 20.0])}
    for name in games.PLAYS:
        results[name] = random.normal(size=(2, 3, 5, 2))
    return results


def by_hand(samples):
    """Mean and standard error of samples, (sample, 2), as a table says them."""
    words = []
    for column in samples.T:
        error = column.std(ddof=1) / len(column) ** 0.5
        words.append(f"{column.mean():.3f} +- {error:.3f}")
    return " : ".join(words)


def test_a_tables_errors_are_over_seeds_where_there_are_several(capsys):
    results = a_table()
    first, titles, *rows = table_of("ipd", results, capsys)
    assert first.endswith("+- standard error over 3 seeds")
    assert cells_of(titles) == list(games.PLAYS.values())
    assert len(rows) == 2
    for i, setting in enumerate(("0.5", "20")):
        cells = [by_hand(results[name][i].mean(axis=1)) for name in games.PLAYS]
        assert cells_of(rows[i]) == [setting, *cells]


def test_a_tables_errors_are_over_pairs_where_there_is_one_seed(capsys):
    results = a_table()
    for name in games.PLAYS:
        results[name] = results[name][:, 1:2]
    first, _, _, row = table_of("ipd", results, capsys)
    assert first.endswith("+- standard error over 5 pairs of policies")
    assert cells_of(row)[1] == by_hand(results["self_play"][1, 0])


def test_a_table_says_what_has_diverged(capsys):
    results = a_table()
    before = table_of("ipd", results, capsys)
    results["best_response"][1, 2, 3:, 0] = np.nan, np.inf
    after = table_of("ipd", results, capsys)
    assert after[:3] == before[:3]
    assert cells_of(after[3])[2] == "2 of 15 pairs diverged"
    assert "nan" not in after[3]
    results["best_response"][1] = -3e9  # large, but numbers
    assert "-3.0e+09 +- 0.0e+00" in table_of("ipd", results, capsys)[3]


def test_a_table_has_both_players_agents_and_the_basins(capsys):
    results = a_table()
    random = np.random.default_rng(1)
    results["basin_fraction"] = np.full((2, 3), 0.25)
    for name in ("best_response_2", "versus_naive_2"):
        results[name] = random.normal(size=(2, 3, 5, 2))
    lines = table_of("matching_pennies", results, capsys)
    assert len(lines) == 8
    assert lines[1].split()[:2] == ["player", "1"]
    assert lines[4].split()[:2] == ["player", "2"]
    own_first = results["self_play"][..., ::-1]
    plays = (own_first, results["best_response_2"], results["versus_naive_2"])
    cells = [by_hand(returns[0].mean(axis=1)) for returns in plays]
    assert cells_of(lines[5]) == ["0.5", *cells]
    assert lines[7] == "share of the grid that ends at x_1, x_2 > 0: 0.250 0.250"


# --- plots.py: figures from results ---------------------------------------------------
# What is no run is refused. Random numbers in place of runs are found again in what was
# drawn.


def call(main, words, capsys):
    """The exit status of a script with these words, and what it prints."""
    status = 0
    try:
        main(words)
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


@slow
def test_every_figure_is_drawn(tmp_path, capsys):
    shutil.copytree(ROOT / "results/paper", tmp_path / "results/paper")
    status, out, _ = call(plots.main, ["--out", str(tmp_path), "--paper"], capsys)
    assert status == 0
    assert out.isascii()
    for name in plots.FIGURES:
        assert f"figures/{name}.png" in out
        path = tmp_path / f"figures/{name}.png"
        image = imread(path)
        assert image.shape[1] > 1000
        assert image.std() > 0.05  # something is on it
        assert path.stat().st_size < 500_000


def test_own_runs_are_drawn_first_and_elsewhere(tmp_path, capsys):
    """A run of one's own counts before the kept one, but not with --paper."""
    kept = tmp_path / "results/paper"
    kept.mkdir(parents=True)
    for name in ("meva_ipd", "lola_ipd"):
        shutil.copy(ROOT / f"results/paper/{name}.npz", kept)
    shutil.copy(kept / "lola_ipd.npz", tmp_path / "results")
    words = ["--out", str(tmp_path), "--figure", "policies"]
    status, out, _ = call(plots.main, words, capsys)
    assert status == 0
    assert f"from {tmp_path}/results/lola_ipd.npz, ipd, 8 seeds\n" in out
    assert f"from {kept}/meva_ipd.npz, ipd, 8 seeds, 2000 outer loops\n" in out
    assert (tmp_path / "figures/own/policies.png").exists()
    assert not (tmp_path / "figures/policies.png").exists()

    status, out, _ = call(plots.main, [*words, "--paper", "--format", "pdf"], capsys)
    assert status == 0
    assert f"from {kept}/lola_ipd.npz" in out
    assert (tmp_path / "figures/policies.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_in_a_folder_of_its_own_is_found_and_a_missing_one_named(
    tmp_path, capsys
):
    folder = tmp_path / "results/variants/meva_ipd/results"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "results/paper/meva_ipd.npz", folder)
    runs, missing = plots.find(["meva_ipd", "lola_ipd"], [tmp_path / "results"])
    assert list(runs) == ["meva_ipd"]
    assert missing == ["lola_ipd"]
    words = ["--out", str(tmp_path), "--figure", "fig3"]
    status, out, _ = call(plots.main, words, capsys)
    assert status == 1
    assert "missing for fig3: lola_ipd\n" in out
    assert "details.md" in out


def test_a_missing_run_is_named_once_with_all_its_figures(tmp_path, capsys):
    status, out, _ = call(plots.main, ["--out", str(tmp_path)], capsys)
    assert status == 0  # what could be drawn is: Figure 1 needs no run
    assert f"wrote {tmp_path}/figures/own/fig1.png" in out
    lines = [line for line in out.splitlines() if line.endswith(" meva_ipd")]
    assert lines == ["missing for fig3, networks, policies, horizons: meva_ipd"]


BAD_FILES = {"empty": b"", "broken": b"PK\3\4" + bytes(40)}
CONFIG = {"game": "ipd", "num_seeds": 8, "eval_steps": 500, "lr": 1.0}
BAD_CONFIGS = {
    "null": None,
    "a list": [],
    "no num_seeds": {"game": "ipd", "eval_steps": 500, "lr": 1.0},
    "no game": CONFIG | {"game": "chess"},
    "another game": CONFIG | {"game": "imp"},
    "a word for a number": CONFIG | {"num_seeds": "eight"},
    "digits for a number": CONFIG | {"num_seeds": "8"},
    "text for a step size": CONFIG | {"lr": "1"},
}
BAD_ARRAYS = {
    "settings cut": {"self_play": np.zeros((1, 8, 4, 2))},
    "seeds cut": {"self_play": np.zeros((3, 7, 4, 2))},
    "players cut": {"self_play": np.zeros((3, 8, 4, 1))},
    "no pairs": {"self_play": np.zeros((3, 8, 0, 2))},
    "a scalar sweep": {"sweep": np.float32(3)},
    "flat": {"policies": np.zeros(960)},
    "text": {"self_play": np.full((3, 8, 4, 2), "x")},
    "objects": {"self_play": np.full((3, 8, 4, 2), None)},
}


@pytest.mark.parametrize("bad", [*BAD_FILES, *BAD_CONFIGS, *BAD_ARRAYS])
def test_a_run_that_is_not_what_it_should_be_gets_one_line(bad, tmp_path, capsys):
    arrays = {"sweep": np.array([10.0, 20.0, 30.0])}
    for name in ("self_play", "best_response", "versus_naive"):
        arrays[name] = np.zeros((3, 8, 4, 2))
    arrays["policies"] = np.zeros((3, 8, 4, 2, 5))
    config = BAD_CONFIGS.get(bad, CONFIG)
    path = tmp_path / "results/lola_ipd.npz"
    path.parent.mkdir()
    np.savez(path, config=json.dumps(config), **arrays | BAD_ARRAYS.get(bad, {}))
    if bad in BAD_FILES:
        path.write_bytes(BAD_FILES[bad])
    words = ["--out", str(tmp_path), "--figure", "fig3"]
    status, out, err = call(plots.main, words, capsys)
    assert status == 2
    assert not out
    assert err.count("\n") == 1
    assert str(path) in err


@pytest.mark.parametrize("words", [["--figure", "fig9"], ["--out", "/nowhere"]])
def test_plots_py_refuses_in_one_line(words, capsys):
    status, out, err = call(plots.main, words, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)


def results_of(settings, **arrays):
    """Results as if they were of a run with this sweep."""
    config = {"game": "ipd", "lr": 2, "outer_steps": 9, "num_seeds": 3}
    return plots.Results(
        arrays, sweep=np.array(settings), config=config, path="nowhere"
    )


def draw_by(draw, *args):
    """The panels of a figure, drawn and not saved."""
    figure = Figure()
    draw(figure, *args)
    figure.draw_without_rendering()
    return figure.axes


def test_figure_1_has_the_returns_of_player_1_on_the_left(monkeypatch):
    drawn = []
    contourf = Axes.contourf

    def record(axis, x_1, x_2, values, **settings):
        drawn.append((x_1, x_2, values))
        return contourf(axis, x_1, x_2, values, **settings)

    monkeypatch.setattr(Axes, "contourf", record)
    panels = draw_by(plots.draw_fig1, {})
    for player, (x_1, x_2, values) in enumerate(drawn):
        assert f"$f_{player + 1}(x)$" in panels[player].get_title()
        i, j = 30, 170  # x_1 goes to the right, x_2 upwards
        expected = games.logistic(jnp.array([[x_1[j]], [x_2[i]]]))[player]
        np.testing.assert_allclose(values[i, j], expected, rtol=1e-5)


def planar_runs(game):
    """The committed runs of Fig. 2, with ends and paths anywhere in the plane."""
    runs, missing = plots.find(plots.ROWS[game], [ROOT / "results/paper"])
    assert not missing
    random = np.random.default_rng(0)
    for results in runs.values():
        for key in ("endpoints", "trajectories"):
            results[key] = random.normal(size=results[key].shape)
    return runs


@pytest.mark.parametrize("basins", [False, True])
@pytest.mark.parametrize("game", plots.ROWS)
def test_figure_2_shows_the_arrays(game, basins):
    runs = planar_runs(game)
    draw = plots.draw_basins_of if basins else plots.draw_paths
    panels = iter(draw_by(partial(draw, game=game), runs))
    for name, settings in plots.ROWS[game].items():
        for setting in settings:
            axis, results = next(panels), runs[name]
            i = np.abs(results["sweep"] - setting).argmin()
            if basins:
                check_basins(axis, results["endpoints"][i])
                share = axis.images[0].get_array().mean()
                assert axis.texts[0].get_text() == f"{share:.1%}"
            else:
                check_paths(axis, results["trajectories"][i, 0])
            is_short = name.startswith("short")
            assert ("lr = 1" in axis.get_title()) == is_short
    assert next(panels, None) is None


def test_figure_3_shows_means_and_errors_over_pairs():
    runs, _ = plots.find(("meva_ipd", "lola_ipd"), [ROOT / "results/paper"])
    axes = iter(draw_by(plots.draw_fig3, runs))
    for name, title, chosen in (("meva_ipd", "MeVa", 0.99), ("lola_ipd", "LOLA", 10)):
        results = runs[name]
        for key in ("self_play", "best_response", "versus_naive"):
            axis, returns = next(axes), results[key]  # (S, seed, pair, 2)
            labels = [container.get_label() for container in axis.containers]
            assert labels == [title, plots.PANELS[key][1]]
            for player in (0, 1):
                pooled = returns[..., player].reshape(len(returns), -1)
                check_errorbars(axis.containers[player], pooled)
        i = np.abs(results["sweep"] - chosen).argmin()
        agents = results["best_response"][i, ..., 0]
        *_, pooled = next(axes).patches  # the histogram of all models
        heights = np.unique(np.round(pooled.get_xy()[:, 0], 6))
        shares = np.histogram(agents, plots.BINS)[0] / agents.size
        assert set(np.round(shares, 6)) <= set(heights)


def test_steps_are_drawn_as_arrows_from_their_points():
    """On the value of player 1 (landscape), and on their length (fields)."""
    runs, _ = plots.find(["meva_logistic"], [ROOT / "results/paper"])
    meva_s = runs["meva_logistic"]
    runs |= dict.fromkeys([f"{name}_logistic" for name in plots.TITLES], meva_s)
    settings = {plots.draw_landscape: (0, 0.8, 0.9, 0.95, 0.99)}
    settings[plots.draw_fields] = (1, 5, 5, 5, 0.9)
    for draw, shown in settings.items():
        *panels, _ = draw_by(draw, runs)
        for axis, setting in zip(panels, shown, strict=True):
            i = np.abs(meva_s["sweep"] - setting).argmin()
            (arrows,) = [one for one in axis.collections if isinstance(one, Quiver)]
            step = meva_s["field"][i, 0, 4, 6]  # every second point of the grid
            k = np.flatnonzero((arrows.XY == meva_s["grid"][4, 6]).all(axis=1))
            drawn = np.array([arrows.U[k[0]], arrows.V[k[0]]])
            np.testing.assert_allclose(drawn, step / np.linalg.norm(step), rtol=1e-5)


def test_samples_are_drawn_by_seed_beside_exact_returns():
    random, runs = np.random.default_rng(0), {}
    for name in plots.OF_SAMPLES:
        arrays = {play: random.uniform(-2, -1, (2, 3, 4, 2)) for play in plots.PANELS}
        runs[name] = results_of((0.95, 10.0), **arrays)
    panels = iter(draw_by(plots.draw_samples, runs))
    for script, i in (("lola", 1), ("meva", 0)):
        for play in ("self_play", "best_response"):
            *points, mean, exact = next(panels).lines
            for k, episodes in enumerate(plots.EPISODES):
                results = runs[plots.sampled_run(script, episodes)]
                agents = results[play][i, ..., 0].mean(axis=1)
                np.testing.assert_allclose(points[k].get_ydata(), agents)
                np.testing.assert_allclose(mean.get_ydata()[k], agents.mean())
            of_exact = runs[plots.sampled_run(script, 0)][play][i, ..., 0].mean()
            np.testing.assert_allclose(exact.get_ydata(), of_exact)


def test_basins_are_drawn_as_means_and_by_model():
    random, runs = np.random.default_rng(0), {}
    for script in ("naive", "lola", "hola", "cola", "meva"):
        shares = random.uniform(size=(2, 3))
        runs[f"{script}_logistic"] = results_of((0.0, 0.5), basin_fraction=shares)
    (axis,) = draw_by(plots.draw_basins, runs)
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    by_model = [line.get_ydata() for line in axis.lines if line.get_alpha() == 0.6]
    for i, script in enumerate(("lola", "hola", "cola", "meva")):
        shares = runs[f"{script}_logistic"]["basin_fraction"]
        label = f"{plots.TITLES[script]}, 3 seeds"
        np.testing.assert_allclose(lines[label], shares.mean(axis=1))
        np.testing.assert_allclose(by_model[3 * i : 3 * i + 3], shares.T)
    naive = runs["naive_logistic"]["basin_fraction"].mean()
    np.testing.assert_allclose(lines["naive"], naive)


def test_policies_are_drawn_with_the_agent_on_the_horizontal_axis():
    """All agents play tit-for-tat, beside players that always defect."""
    tit_for_tat = [1, -1, -1, 1, 1]
    policies = np.broadcast_to([tit_for_tat, [-1] * 5], (1, 2, 3, 2, 5))
    arrays = dict.fromkeys(plots.POLICIES, policies)
    runs = {
        "meva_ipd": results_of((0.99,), **arrays),
        "lola_ipd": results_of((10.0,), **arrays),
    }
    *panels, _ = draw_by(plots.draw_policies, runs)
    for axis in panels:
        shares = np.nan_to_num(axis.images[0].get_array().filled(0))
        assert shares.shape == (32, 32)
        assert shares[0, 19] == 1
        assert shares.sum() == 1


def test_horizons_are_drawn_at_each_run_s_steps_ahead():
    """MeVa's at 1 / (1 - gamma); LOLA's at alpha = 1 and 5."""
    plays = tuple(plots.PANELS)
    runs = {}
    for k, name in enumerate(plots.LOLA_AHEAD.values()):
        returns = np.zeros((2, 3, 4, 2)) + np.array([k, -k])[:, None, None, None]
        returns[..., 1] = 99  # the other player's
        runs[name] = results_of((1, 5), **dict.fromkeys(plays, returns))
    for k, name in enumerate(plots.COALA_AHEAD.values()):
        returns = np.full((1, 3, 4, 2), 10.0 + k)
        runs[name] = results_of((2.0,), **dict.fromkeys(plays, returns))
    returns = np.zeros((2, 3, 4, 2)) + np.array([20, 21])[:, None, None, None]
    runs["meva_ipd"] = results_of((0.5, 0.99), **dict.fromkeys(plays, returns))
    panels = draw_by(plots.draw_horizons, runs)
    assert len(panels) == 3
    for panel in panels:
        lines = [container.lines[0].get_xydata() for container in panel.containers]
        lola_1, lola_5, of_coala, of_meva = (line.tolist() for line in lines)
        assert lola_1 == [[1, 0], [2, 1], [3, 2], [5, 3], [10, 4], [20, 5]]
        assert lola_5 == [[1, 0], [2, -1], [3, -2], [5, -3], [10, -4], [20, -5]]
        assert of_coala == [[1, 10], [2, 11], [5, 12], [10, 13], [20, 14]]
        np.testing.assert_allclose(of_meva, [[2, 20], [100, 21]])


def test_ablations_are_drawn_at_the_largest_gamma():
    random, runs = np.random.default_rng(0), {}
    for name in plots.ABLATIONS:
        arrays = {key: random.uniform(-2, -1, (2, 3, 4, 2)) for key in plots.PANELS}
        runs[name] = results_of((0.9, 0.99), **arrays)
    sides = {"meva_logistic": "both sides", "semi_gradient_logistic": "semi-gradient"}
    for name in sides:
        shares = random.uniform(size=(2, 3))
        runs[name] = results_of((0.9, 0.99), basin_fraction=shares)
    *panels, below = draw_by(plots.draw_ablations, runs)
    lines = {line.get_label(): line.get_ydata() for line in below.lines}
    for name, label in sides.items():
        shares = runs[name]["basin_fraction"]
        np.testing.assert_allclose(lines[f"{label}, 3 seeds"], shares.mean(axis=1))
    for axis, key in zip(panels, plots.PANELS, strict=True):
        by_model = [line for line in axis.lines if line.get_alpha() == 0.6]
        for line, name in zip(by_model, plots.ABLATIONS, strict=True):
            agents = runs[name][key][1, ..., 0].mean(axis=1)
            np.testing.assert_allclose(line.get_xdata(), agents)
        for container, name in zip(axis.containers, plots.ABLATIONS, strict=True):
            mean = runs[name][key][1, ..., 0].mean()
            np.testing.assert_allclose(float(container[0].get_xdata()[0]), mean)


@functools.cache
def runs_of_kinds():
    """Each rule with each kind of policies, at three settings; one has diverged.

    There is no run of POLA with networks.
    """
    random, runs = np.random.default_rng(0), {}
    for kind, name in itertools.product(plots.KINDS, plots.RULES):
        arrays = {key: random.normal(size=(3, 4, 6, 2)) for key in plots.RETURNS}
        arrays["policies"] = random.normal(size=(3, 4, 6, 2, 5))
        arrays["self_play"][1] = np.nan
        sweep = (0.9, 0.95, 0.99) if name == "meva" else (0.1, 1.0, 2.0)
        runs[f"{name}_{plots.KINDS[kind]}"] = results_of(sweep, **arrays)
    del runs["pola_ipd+mlp"]
    return runs


def best_setting(results):
    """The setting whose mean return in self-play is highest, of those 0 and 2."""
    first, _, last = [returns.mean() for returns in results["self_play"]]
    return 0 if first > last else 2


def test_kinds_of_policies_are_drawn_at_each_rules_best_setting():
    runs = runs_of_kinds()
    panels = iter(draw_by(plots.draw_networks, runs))
    for key in ("self_play", "exact_best_response", "versus_naive"):
        for kind in plots.KINDS:
            axis = next(panels)
            bars = [lines.get_segments()[0][0, 1] for lines in axis.collections[1::2]]
            names = [f"{name}_{plots.KINDS[kind]}" for name in plots.RULES]
            names = [name for name in names if name in runs]
            assert len(axis.lines) == len(names)
            for k, name in enumerate(names):
                results = runs[name]
                best = best_setting(results)
                agents = results[key][best, ..., 0]
                np.testing.assert_allclose(
                    axis.lines[k].get_ydata(), agents.mean(axis=1)
                )
                np.testing.assert_allclose(bars[k], agents.mean())
                if key == "versus_naive" and k > 0:  # the lowest panels
                    label = axis.get_xticklabels()[k].get_text()
                    assert label.endswith(f"= {results['sweep'][best]:g}")


# report.py: a run is what its command makes; the claims are measured in worlds in which
# they must fail; random numbers in place of runs are found again in the tables.


def config_of(name):
    """The settings that a run's command asks for, and the file that it writes."""
    script, *words = report.command(name).split()[1:]
    script = script.removesuffix(".py")
    out = "."
    if "--out" in words:
        at = words.index("--out")
        out = words.pop(at + 1)
        words.pop(at)
    with tempfile.TemporaryDirectory() as folder:
        config = parsed(SCRIPTS[script], [*words, "--out", folder])
    named = getattr(config, "name", script)
    return config, f"{out}/results/{named}_{config.game}.npz"


PLANNED = [name for name in report.RUNS if "tournament.py" not in report.RUNS[name]]


def test_a_run_is_found_where_its_command_writes_it(tmp_path):
    """Each in a folder of its own, so that none replaces another."""
    paths = set()
    for name in PLANNED:
        config, path = config_of(name)
        settings = {"game": config.game, "num_seeds": 1, "eval_steps": 1}
        settings["made_by"] = name
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / path, config=json.dumps(settings))
        paths.add(path)
    assert len(paths) == len(PLANNED)
    runs, missing = plots.find(PLANNED, [tmp_path / "results"])
    assert not missing
    for name, results in runs.items():
        assert results["config"]["made_by"] == name


def test_the_kept_runs_have_the_settings_of_their_commands():
    """An option that a script did not have yet was at its default."""
    folder = ROOT / "results/paper"
    kept = [str(path.relative_to(folder))[:-4] for path in folder.rglob("*.npz")]
    assert set(kept) <= set(report.RUNS)
    for name in set(kept) & set(PLANNED):
        config, _ = config_of(name)
        with np.load(folder / f"{name}.npz") as file:
            had = json.loads(str(file["config"]))
        expected = json.loads(json.dumps(vars(config)))
        defaults = json.loads(json.dumps(vars(type(config)())))
        for key, value in expected.items():
            assert had.get(key, defaults[key]) == value, (name, key)


def test_models_for_the_authors_tournament_have_their_settings():
    config, _ = config_of("authors/meva-lola_imp")
    assert (config.lr, config.alpha, config.variant) == (25, 25, "taylor-stop")
    assert (config.form, config.normalized_step, config.opponent) == ("U", True, "lola")
    assert (config.hidden, config.blocks, config.quantiles) == (128, 0, 64)
    assert (config.batch_size, config.rollout_length, config.stride) == (128, 100, 10)
    assert (config.target_inertia, config.bootstrap) == (0.99, 0.9)
    assert (config.model_lr, config.adam_b2, config.weight_decay) == (1e-3, 0.99, 0.01)
    assert (config.outer_steps, config.num_seeds) == (1001, 4)
    assert config.fixed_gamma is None

    config, _ = config_of("authors/maml_chicken")
    assert (config.lr, config.model_lr) == (1, 0.1)
    assert (config.batch_size, config.rollout_length) == (64, 300)
    assert config.outer_steps == 1000


@pytest.fixture
def small_pages(tmp_path):
    """Two pages with a table each, not filled yet, and the runs that these need."""
    folder = tmp_path / "results/paper"
    folder.mkdir(parents=True)
    for name in ("cola_logistic", "tit-for-tat_contribution"):
        shutil.copy(ROOT / f"results/paper/{name}.npz", folder)
    frame = "before\n<!-- table {} -->\n<!-- end -->\nafter\n"
    (folder / "README.md").write_text(frame.format("tit-for-tat"))
    (folder / "details.md").write_text(frame.format("consistency"))
    (tmp_path / "README.md").write_text("no table\n")
    return folder


def test_pages_are_filled_and_then_current(small_pages, tmp_path, capsys):
    words = ["--out", str(tmp_path)]
    status, out, _ = call(report.main, [*words, "--check"], capsys)
    assert status == 1
    assert out.count("is not current") == 2

    status, out, _ = call(report.main, words, capsys)
    assert (status, out.count("wrote")) == (0, 2)
    for page, name in (("README.md", "tit-for-tat"), ("details.md", "consistency")):
        made = report.make_table(name, [small_pages])
        text = (small_pages / page).read_text("utf-8")
        assert text.startswith(f"before\n<!-- table {name} -->\n{made}\n<!-- end -->")
        assert text.endswith("after\n")
    assert call(report.main, [*words, "--check"], capsys)[0] == 0

    page = small_pages / "details.md"
    changed = page.read_text("utf-8").replace("0.999", "0.998", 1)
    page.write_text(changed, "utf-8")
    status, out, _ = call(report.main, [*words, "--check"], capsys)
    assert status == 1
    assert "details.md is not current" in out
    assert page.read_text("utf-8") == changed  # it writes nothing


def test_a_table_takes_own_runs_first_and_names_what_is_missing(
    small_pages, tmp_path, capsys
):
    words = ["--out", str(tmp_path), "--table", "consistency"]
    _, kept, _ = call(report.main, words, capsys)
    with np.load(small_pages / "cola_logistic.npz") as file:
        arrays = dict(file)
    arrays["consistency"] = np.full_like(arrays["consistency"], 7)
    np.savez(tmp_path / "results/cola_logistic.npz", **arrays)
    _, own, _ = call(report.main, words, capsys)
    assert "| 7 |" in own
    assert "| 7 |" not in kept

    status, out, err = call(report.main, [*words[:-1], "samples"], capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "lola.py --game ipd --alphas 10" in err


@pytest.mark.parametrize(
    "words", [["--table", "nothing"], ["--table", "mfos", "--check"], ["--out", "no"]]
)
def test_report_py_refuses_in_one_line(words, capsys):
    status, out, err = call(report.main, words, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)


@slow
def test_the_pages_in_results_paper_are_current():
    process = start(ROOT, "--check", script="report", XLA_FLAGS=FLAGS)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "")
    for page in report.PAGES:
        assert "<!-- table " in (ROOT / page).read_text("utf-8")


def world(ours, lolas, first, last, change):
    """A function of a run's name, array's name and array: this array in a world.

    MeVa's returns fall from `ours` by .3 over the settings, all of LOLA's are `lolas`,
    basins go from `first` to `last`, and `change` is made to policies.
    """

    def of_array(run, name, x):
        if name in plots.RETURNS:
            if run.startswith("lola"):
                return 0 * x + lolas
            falling = np.linspace(ours, ours - 0.3, len(x))
            return 0 * x + falling[:, None, None, None]
        if name in plots.POLICIES:
            return change(x)
        if name == "basin_fraction":
            return 0 * x + np.linspace(first, last, len(x))[:, None]
        if name == "endpoints":
            return 0 * x - 1.0
        if name in ("field", "returns"):  # returns are those of a tournament
            return 0 * x
        return x

    return of_array


@slow
def test_claims_fail_where_the_numbers_do():
    """Each claim is measured in three other worlds, and fails in one at least."""
    tit_for_tat = np.float32([1, -1, -1, 1, 1])
    worlds = (
        world(-1.5, -1.5, 1, 0, lambda x: -x),  # all is alike, or falls
        world(-1.0, -2.0, 0, 1, lambda x: 0 * x + tit_for_tat),
        world(-2.0, -1.0, 0, 1, lambda x: 0 * x + 9),
    )
    count = 0
    for measure, names in report.CLAIMS:
        if not names:  # a claim that needs no run
            continue
        runs, _ = plots.find(names, [ROOT / "results/paper"])
        verdicts = []
        for changed in worlds:
            others = []
            for name in names:
                other = {key: changed(name, key, x) for key, x in runs[name].items()}
                others.append(plots.Results(other))
            claims = measure(*others)
            verdicts.append([report.verdict(claim.holds) == "yes" for claim in claims])
        assert not np.all(verdicts, axis=0).any(), (names, verdicts)
        count += len(claims)
    assert count == 33


@slow
def test_a_claims_evidence_is_short_and_its_group_is_its_verdict():
    runs, missing = plots.find(report.RUNS_OF_CLAIMS, [ROOT / "results/paper"])
    assert not missing
    claims = [claim for claim, _ in report.all_claims(runs)]
    assert len(claims) == 36
    page = report.table_of_claims(runs)
    criteria = report.list_of_criteria(runs)
    for claim in claims:
        assert 0 < len(claim.evidence.split()) <= 25, claim
        assert f" | {claim.sentence} | {report.verdict(claim.holds)} | " in page
        assert f"- It holds if: {claim.criterion}." in criteria
        assert claim.numbers in criteria
    yes, in_part, no, ours = re.split(r"\*\*[A-Z][a-z ]+: \d+ claims", page)[1:]
    assert yes.count("| yes |") == 15
    assert len(re.findall(r"\| \d+ of \d+ \|", in_part)) == 15
    assert no.count("| no |") == 3
    assert ours.count("\n| ") == 3 + 2  # and the heading
    front = report.table_of_front_claims(runs)
    assert "Of the 33 claims that we found in the paper 15 hold" in front
    assert front.count("\n| ") == 5 + 2


# The numbers of COLA's authors, on Ultimatum.


def ultimatum_by_hand(x):
    """Returns of Ultimatum: player 1 offers a half, player 2 takes an unfair offer."""
    half, takes = 1 / (1 + np.exp(-np.asarray(x)[:, 0]))
    taken = (1 - half) * takes
    return 5 * half + 8 * taken, 5 * half + 2 * taken


@pytest.fixture
def three_policies(monkeypatch):
    """In place of the many policies that rules are judged on, (3, 2, 1)."""
    x = np.array([[[0.3], [-1.0]], [[2.0], [0.5]], [[-3.0], [1.5]]])
    monkeypatch.setattr(report, "policies_of_colas_authors", lambda: x)
    return x


@pytest.mark.parametrize("title", ["naive", "HOLA(2)", "CGD"])
def test_rules_are_judged_on_ultimatum_by_definition(title, three_policies):
    rule = jax.jit(report.OF_COLAS_AUTHORS[title].gradient)
    judged = report.judge(rule)
    with jax.enable_x64(True):
        for k, x in enumerate(three_policies):
            left = np.asarray(rule(jnp.array(x)))
            np.testing.assert_allclose(judged.directions[k], left[:, 0], rtol=1e-9)
            expected = 0.0
            for i in (0, 1):

                def change(x, i=i):
                    return 5 * np.asarray(rule(jnp.array(x)))[1 - i]

                right = look_ahead_by_differences(ultimatum_by_hand, i, x, change)
                expected += ((left[i] - right) ** 2).sum()
            np.testing.assert_allclose(judged.consistency[k], expected, rtol=1e-5)


def test_who_is_who_among_colas_relatives(three_policies):
    """Each rule's direction is that of its name, at alpha = 5."""
    f = GAMES["ultimatum"].f
    with jax.enable_x64(True):
        x = jnp.array(three_policies[0])
        for title, noted in report.OF_COLAS_AUTHORS.items():
            expected = {
                "naive": lambda: hola.hola_gradient(f, x, 5.0, 0),
                "HOLA(1)": lambda: hola.hola_gradient(f, x, 5.0, 1),
                "HOLA(2)": lambda: hola.hola_gradient(f, x, 5.0, 2),
                "HOLA(4)": lambda: hola.hola_gradient(f, x, 5.0, 4),
                "SOS": lambda: sos.sos_gradient(f, x, 5.0),
                "CGD": lambda: sos.sos_gradient(f, x, 5.0, "cgd"),
            }
            config, _ = config_of(noted.run)
            assert (config.lr, config.eval_steps) == (5, 500)
            assert getattr(config, "alphas", (5,)) == (5,)
            if title.startswith("COLA"):
                assert config.alpha_min == (5 if title == "COLA" else 0)
                assert (config.alpha_max, config.eval_alphas) == (5, (5,))
                assert config.train_extent == 7
                continue
            found = noted.gradient(x)
            np.testing.assert_allclose(found, expected[title](), rtol=1e-12)
            order = {"HOLA(2)": 2, "HOLA(4)": 4}.get(title)
            variant = {"SOS": "sos", "CGD": "cgd", "HOLA(1)": "exact"}.get(title)
            assert getattr(config, "order", None) == order
            assert getattr(config, "variant", None) == variant


def test_colas_models_are_judged_each(three_policies):
    config = cola.make_config(
        "ultimatum", hidden=4, blocks=0, num_seeds=2, alpha_max=5.0, eval_alphas=(5.0,)
    )
    game = GAMES["ultimatum"]
    keys = jax.random.split(jax.random.key(6), 2)
    params = jax.vmap(lambda key: cola.model_init(key, game, config))(keys)
    results = plots.Results(
        games.flatten("params", params), config=vars(config), path="here"
    )
    models = report.judge_models(results)
    assert len(models) == 2
    for seed, model in enumerate(models):
        own = jax.tree.map(lambda leaf, i=seed: leaf[i], params)
        for k, x in enumerate(np.float32(three_policies)):
            g = cola.cola_gradient(own, game, x, 5.0)
            np.testing.assert_allclose(model.directions[k], g[:, 0], rtol=1e-4)
            loss = cola.consistency_loss(own, game, x, 5.0)
            np.testing.assert_allclose(model.consistency[k], loss, rtol=1e-3)


def test_rules_are_judged_on_policies_from_minus_7_to_7():
    x = report.policies_of_colas_authors()
    assert x.shape == (65_536, 2, 1)
    assert -7 <= x.min() < -6.99
    assert 6.99 < x.max() <= 7
    np.testing.assert_allclose((x**2).mean(axis=0), 49 / 3, rtol=0.02)


def ultimatum_ends(returns, takes):
    """The results of a run of Ultimatum, of one seed, from returns and P(C)."""
    log_odds = np.log(np.array(takes) / (1 - np.array(takes)))
    policies = np.stack([0 * log_odds + 6, log_odds], axis=-1)
    return plots.Results(
        self_play=np.array(returns, float)[None, None],
        policies=policies[None, None, ..., None],
    )


def test_an_offer_is_fair_if_an_unfair_one_would_pay_less():
    results = ultimatum_ends(
        [[5, 5], [4.6, 5.4], [5, 5], [5.6, 5], [5, 5.6], [8, 2], [7.6, 2.4], [8, 1]],
        [0.1, 0.62, 0.63, 0.1, 0.1, 0.9, 0.1, 0.9],
    )
    np.testing.assert_array_equal(report.ends_fair(results), [[1, 1] + 6 * [0]])
    unfair = report.ends_at(results, (8, 2))
    np.testing.assert_array_equal(unfair, [5 * [0] + [1, 1, 0]])


@pytest.mark.parametrize(
    "fair, unfair, other, verdicts",
    [
        (10, 10, 0, ("no", "yes", "yes")),
        (10, 9, 1, ("no", "yes", "no")),
        (20, 0, 0, ("yes", "no", "no")),
        (2, 18, 0, ("no", "no", "yes")),
    ],
)
def test_where_cola_and_hola_end(fair, unfair, other, verdicts):
    returns = fair * [[5, 5]] + unfair * [[8, 2]] + other * [[0, 0]]
    takes = fair * [0.1] + unfair * [0.9] + other * [0.1]
    results = ultimatum_ends(returns, takes)
    claims = report.cola_offers_half(results)
    claims += report.hola_offers_half_at_times(results)
    assert tuple(report.verdict(claim.holds) for claim in claims) == verdicts


def judged_as(consistency, cosine):
    """A rule at this distance, at this cosine to the first axis at each of 4 points."""
    direction = np.array([cosine, np.sqrt(1 - cosine**2)])
    lengths = np.array([1, 2, 3, 4])[:, None]
    return report.Judged(lengths * direction, np.full(4, consistency))


@pytest.mark.parametrize(
    "own, factor, less, verdicts",
    [
        (0.007, 1.05, 0.02, ("yes", "yes", "yes", "yes")),
        (0.2, 1.2, 0.1, ("no", "no", "no", "no")),
        (0.01, 0.5, 0.02, ("no", "yes", "no", "yes")),
    ],
)
def test_colas_consistency_beside_its_authors(own, factor, less, verdicts, monkeypatch):
    rules = {"naive": judged_as(0.0, 1.0)}
    for title, noted in report.OF_COLAS_AUTHORS.items():
        if noted.gradient is not None and noted.consistency is not None:
            cosine = (noted.cosine or 0.5) - less
            rules[title] = judged_as(factor * noted.consistency, cosine)
    monkeypatch.setattr(report, "BATCH", 2)
    monkeypatch.setattr(report, "judge_rules", lambda: rules)
    monkeypatch.setattr(report, "judge_models", lambda results: [judged_as(own, 1.0)])
    claims = report.cola_is_consistent(plots.Results())
    assert tuple(report.verdict(claim.holds) for claim in claims) == verdicts


# The claims of COALA's authors, in worlds of four pairs.


@pytest.mark.parametrize(
    "mixed, alone, verdicts",
    [
        ([-1.1, -1.1], [-1.95, -1.95], ("yes", "yes", "yes")),
        ([-1.1, -1.3], [-1.95, -1.95], ("4 of 8", "yes", "1 of 2")),
        ([-1.3, -1.1], [-1.95, -1.85], ("4 of 8", "4 of 8", "no")),
        ([-1.95, -1.3], [-1.1, -1.1], ("no", "no", "no")),
    ],
)
def test_coalas_claims_hold_where_pairs_cooperate_or_defect(mixed, alone, verdicts):
    """By discount, one agent a little above the mean of the pair, the other below."""
    runs = []
    for mean in (*mixed, *alone):
        returns = np.full((1, 4, 3, 2), mean) + np.array([0.3, -0.3])
        runs.append(results_of((2.0,), self_play=returns))
    claims = report.coala_cooperates_in_mixed_pools(*runs[:2])
    claims += report.coala_defects_among_agents(*runs[2:])
    claims += report.coala_by_discount(*runs)
    claims += report.coala_with_larger_steps(*runs[:2])
    found = [report.verdict(claim.holds) for claim in claims]
    assert tuple(found) == (*verdicts, verdicts[0])
    assert len({claim.sentence for claim in claims}) == 4


@pytest.mark.parametrize(
    "own, learner, verdict",
    [(-0.8, -1.4, "yes"), (-0.8, -0.85, "4 of 8"), (-1.1, -1.9, "4 of 8")],
)
def test_coala_extorts_if_it_gets_more_than_for_cooperation(own, learner, verdict):
    """At one of two discounts; at the other it does."""
    runs = []
    for returns in ((-0.9, -1.2), (own, learner)):
        beside = np.zeros((1, 4, 3, 2)) + np.array(returns)
        self_play = np.full((1, 4, 3, 2), -2.0)
        runs.append(results_of((2.0,), versus_naive=beside, self_play=self_play))
    (claim,) = report.coala_extorts_naive_learners(*runs)
    assert report.verdict(claim.holds) == verdict


def test_both_at_once_is_judged_by_quartiles():
    """Of five pairs the second of the worst is the quartile."""
    three, four = [-1.9, -1.9, -1.1, -1.1, -1.1], [-1.9, -1.1, -1.1, -1.1, -1.1]
    defect, less = [-2, -2, -2, -2, -1.0], [-2, -2, -2, -1.0, -1.0]
    worlds = [("yes", (four, defect)), ("no", (three, defect)), ("no", (four, less))]
    for verdict, world in worlds:
        runs = []
        for pairs in world:
            returns = np.zeros((1, 5, 3, 2)) + np.array(pairs)[:, None, None]
            runs += [results_of((2.0,), self_play=returns)] * 2
        (claim,) = report.coala_by_discount(*runs)
        assert report.verdict(claim.holds) == verdict


def test_the_table_of_coalas_pools_counts_pairs_and_has_their_quartiles():
    own = (
        np.zeros((1, 5, 3, 2)) + np.array([-1.0, -1.1, -1.5, -1.95, -2])[:, None, None]
    )
    beside = np.zeros((1, 5, 3, 2)) + np.array([-0.5, -1.5])
    results = results_of((2.0,), self_play=own, versus_naive=beside)
    results["config"] = {"game": "ipd", "share": 0.5, "eta": 5.0}
    (row,) = report.table_of_coalas_pools({"coala_ipd": results}).splitlines()[2:]
    middle = "median -1.500, quartiles -1.950 and -1.100"
    learners = []
    for mean in ("-0.500", "-1.500"):
        learners.append(f"median {mean}, quartiles {mean} and {mean}")
    words = f"2 and 2 of 5 | {middle} | {' | '.join(learners)}"
    assert row == f"| `ipd` | 0.5 | 5 | {words} |"


# Claims on LOLA by its look-ahead, and on LOQA, in worlds of three seeds.


def lola_at(means, play="self_play", others=None):
    """A run at alpha = 5 and 10 in which three seeds have these means at each."""
    agents = np.float64(means)[:, :, None]  # (alpha, seed, 1)
    others = agents if others is None else np.float64(others)[:, :, None]
    pair = np.array([0.2, -0.2])  # two pairs
    returns = np.stack([agents + pair, others + pair], axis=-1)
    return results_of((5.0, 10.0), **{play: returns})


def test_lola_is_judged_at_10_for_one_step_and_at_5_for_more():
    good, bad = [-1.1] * 3, [-1.3] * 3
    (claim,) = report.near_sighted_lola(lola_at([bad, good]), lola_at([good, bad]))
    assert report.verdict(claim.holds) == "yes"
    (claim,) = report.near_sighted_lola(lola_at([good, bad]), lola_at([bad, good]))
    assert report.verdict(claim.holds) == "no"
    assert claim.evidence == "-1.300 ± 0.000 with 1 step, -1.300 ± 0.000 with 2"
    defects, other = [-1.6, -1.6, -1.4], [-1.7, -1.7, -1.7]
    ten, twenty = lola_at([defects, good]), lola_at([other, good])
    (claim,) = report.far_sighted_lola(ten, twenty)
    assert report.verdict(claim.holds) == "5 of 6"
    assert claim.evidence.endswith("with 10 steps, -1.700 ± 0.000 with 20")


def test_lola_extorts_newcomers_if_it_gets_more_than_for_cooperation():
    agents, learners = [-0.8, -0.8, -1.1], [-1.4, -0.85, -1.9]
    of_newcomers = lola_at(
        [agents, [-2] * 3], play="best_response", others=[learners, [-2] * 3]
    )
    (claim,) = report.lola_extorts_newcomers(of_newcomers)
    np.testing.assert_array_equal(claim.holds, [True, False, False])
    assert claim.evidence.startswith("agents -0.900 ± 0.100, learners -1.383")


def loqa_at(own, left, after_cd):
    """A run at beta = 1, 2, 5, 10, three seeds of two pairs; one number for each beta."""
    arrays = {}
    for name, means in {"self_play": own, "exact_best_response": left}.items():
        arrays[name] = np.zeros((4, 3, 2, 2)) + np.array(means)[:, None, None, None]
    arrays["versus_naive"] = np.zeros((4, 3, 2, 2)) + np.array([-0.5, -2])
    chance = np.full((4, 3, 2, 2, 5), 0.9)
    chance[..., 2] = np.array(after_cd)[:, None, None, None]
    arrays["policies"] = np.log(chance / (1 - chance))
    return results_of((1.0, 2.0, 5.0, 10.0), **arrays)


@pytest.mark.parametrize(
    "own, left, after_cd, verdict",
    [
        (-1.1, -1.3, 0.4, "yes"),
        (-1.2, -1.3, 0.4, "9 of 12"),
        (-1.1, -1.4, 0.4, "9 of 12"),
        (-1.1, -1.3, 0.5, "9 of 12"),
    ],
)
def test_loqa_is_judged_at_one_beta_and_its_relatives_at_all(
    own, left, after_cd, verdict
):
    """The first beta of four is as given; at the others agents reciprocate."""
    good = {"own": -1.1, "left": -1.3, "after_cd": 0.4}
    first = {"own": own, "left": left, "after_cd": after_cd}
    world = {name: [first[name], *[good[name]] * 3] for name in good}
    (of_loqa,) = report.loqa_reciprocates(loqa_at(**world))
    assert report.verdict(of_loqa.holds) == ("yes" if verdict == "yes" else "no")
    for measure in (report.alignment_reciprocates, report.full_reciprocates):
        (claim,) = measure(loqa_at(**world))
        assert report.verdict(claim.holds) == verdict
        assert claim.evidence.endswith("3 of 3 seeds at 10")
    last = {name: world[name][::-1] for name in world}
    (of_loqa,) = report.loqa_reciprocates(loqa_at(**last))
    assert report.verdict(of_loqa.holds) == "yes"


@pytest.mark.parametrize(
    "full, loqa_s, verdict",
    [([1, 0.1], [0, 1], "yes"), ([1, 1], [0, 1], "no"), ([1, 0.1], [1, 0], "no")],
)
def test_alignment_is_judged_by_cosines(full, loqa_s, verdict, monkeypatch):
    directions = {"loqa": loqa_s, "full": full, "alignment": [2, 0]}
    arrays = {name: np.array([direction]) for name, direction in directions.items()}
    monkeypatch.setattr(report, "directions_of_loqa", lambda beta: arrays)
    (claim,) = report.alignment_is_loqa_without_factor()
    assert report.verdict(claim.holds) == verdict


@slow
def test_directions_of_loqa_are_what_it_adds_to_the_naive_gradient():
    rows = report.directions_of_loqa(0.3)["alignment"]
    x = GAMES["ipd"].init(jax.random.split(jax.random.key(0), 4096)[7])
    total = loqa.loqa_gradient(GAMES["ipd"], x, 0.3, "alignment")
    expected = total - naive.naive_gradient(GAMES["ipd"].f, x)
    np.testing.assert_allclose(rows[7], expected.ravel(), 1e-4, 1e-5)


def test_the_table_of_loqa_has_a_row_for_each_beta():
    results = loqa_at([-1.1] * 4, [-1.3, -1.6, -1.3, -1.3], [0.4] * 4)
    rows = report.table_of_loqa({"full_ipd": results}).splitlines()[2:]
    assert len(rows) == 4
    plays = "-1.300 ± 0.000 : -1.300 ± 0.000 | -0.500 ± 0.000 : -2.000 ± 0.000"
    after = "0.90 0.90 0.40 0.90 0.90"
    assert rows[0] == f"| `full` | 1 | -1.100 ± 0.000 | {plays} | 1.000 | {after} |"
    assert rows[1].split(" | ")[-2] == "0.000"


def test_the_table_of_mfos_says_starts_episodes_and_each_model():
    returns = np.zeros((1, 2, 3, 4, 2)) + np.array([[-0.5], [-0.9]])[:, :, None, None]
    returns[..., 1] = -2
    results = results_of((25.0,), episode_returns=returns)
    results["config"] |= {"opponent": "lola", "batch_size": 64, "outer_steps": 7}
    (row,) = report.table_of_mfos({"any": results}).splitlines()[2:]
    assert row == "| lola | 64 | 7 | -0.500 : -2.000; -0.900 : -2.000 |"


def test_the_table_of_ablations_has_the_errors_of_the_last_fifty_loops():
    runs = {}
    for name in plots.ABLATIONS:
        play = np.zeros((1, 6, 2, 2)) - 1.5
        names = ("self_play", "best_response", "versus_naive")
        runs[name] = results_of((0.99,), **dict.fromkeys(names, play))
        errors = np.full((3, 500), 9.0)
        errors[:, -50:] = 0.25
        runs[f"td/{name}"] = results_of((0.99,), td_error=errors)
    rows = report.table_of_ablations(runs).splitlines()[2:]
    assert len(rows) == len(plots.ABLATIONS)
    assert rows[0].endswith(" | 0.2500 ± 0.0000 | 0.0625 |  |")
    assert "| 0.2305 | `--fixed-gamma 0.99` |" in "\n".join(rows)


@slow
def test_colas_numbers_stand_beside_those_of_its_authors(monkeypatch):
    """On few policies; those of the pages are checked with the pages."""
    policies = report.policies_of_colas_authors()[:512]
    monkeypatch.setattr(report, "policies_of_colas_authors", lambda: policies)
    judge_rules = functools.cache(report.judge_rules.__wrapped__)
    monkeypatch.setattr(report, "judge_rules", judge_rules)
    monkeypatch.delitem(report.OF_COLAS_AUTHORS, "HOLA(4)")  # 13 s to compile
    runs, missing = plots.find(report.RUNS_OF_COLA, [ROOT / "results/paper"])
    assert not missing
    make = partial(report.table_of_authors_claims, "COLA's authors")
    page = make(report.CLAIMS_OF_COLA, runs)
    criteria = report.list_of_criteria(runs, report.CLAIMS_OF_COLA)
    claims = [claim for claim, _ in report.all_claims(runs, report.CLAIMS_OF_COLA)]
    assert len(claims) == 7
    for claim in claims:
        assert 0 < len(claim.evidence.split()) <= 25, claim
        assert f"| {claim.sentence} | {report.verdict(claim.holds)} | " in page
        assert f"- It holds if: {claim.criterion}." in criteria
    _, _, *rows = report.table_of_colas_numbers(runs).split("\n")
    for row, (title, noted) in zip(rows, report.OF_COLAS_AUTHORS.items(), strict=True):
        cells = row.strip("| ").split(" | ")
        assert cells[0] == title
        shares = report.ends_fair(runs[noted.run]).mean(axis=1)
        assert cells[2] == report.spread(shares)
        if noted.gradient is not None:
            mean = report.judge_rules()[title].consistency.mean()
            assert cells[6] == f"{mean:.2g}"


@pytest.mark.parametrize(
    "holds, words",
    [
        (True, "yes"),
        ([True, True], "yes"),
        ([True, False, False], "1 of 3"),
        ([False, False], "no"),
        ([], "no"),  # there was nothing to judge
    ],
)
def test_a_verdict_is_yes_only_where_all_is_true(holds, words):
    assert report.verdict(holds) == words


def test_shares_of_cooperation_go_with_their_players():
    always = np.array([[C] * 5, [D] * 5])
    np.testing.assert_allclose(report.cooperation(always[None]), [[1, 0]], atol=1e-6)


def test_numbers_rise_if_no_step_falls_by_more_than_two_errors():
    exact = np.array([[1.0, 1.0], [2.0, 2.0], [1.9, 1.9], [3.0, 3.0]])
    assert report.rises(exact) == [True, True, False, True]
    noisy = exact.copy()
    noisy[2] = [1.5, 2.3]  # a step of -.1 with an error of .4
    assert report.rises(noisy) == [True, True, True, True]
    assert not report.rises(exact[::-1])[0]


@pytest.mark.parametrize("share, holds", [(0.85, False), (0.95, True)])
def test_a_best_response_cooperates_from_nine_rounds_of_ten_on(share, holds):
    shape = (3, 2, 4, 2)
    policies = np.full((*shape, 5), C)
    arrays = {play: np.full(shape, -1.0) for play in plots.RETURNS}
    arrays |= {"policies": policies, "response_policies": policies.copy()}
    arrays["response_policies"][..., 1, :] = np.log(share / (1 - share))
    results = results_of((0.0, 0.25, 0.99), **arrays)
    learned, exact, kept = report.meva_is_not_exploited(results)
    assert learned.holds.all() == holds
    assert not exact.holds.any()  # who cooperates always is met by all-D
    assert kept.holds.all()


@pytest.mark.parametrize(
    "in_second_seat, by_model, holds",
    [(-1, 0, False), (1, 0, True), (1, 0.9, False), (1, 0.2, True)],
)
def test_a_model_for_the_situation_is_judged_in_both_seats(
    in_second_seat, by_model, holds
):
    """It gets 1 more in the first seat; two models differ by twice `by_model`."""
    names = ["naive", "lola-taylor-stop", "meva", "meva-naive", "meva-lola"]
    models = np.broadcast_to([0, 1, 0, 1], (5, 5, 4))
    differ = by_model * np.array([1, -1, 1, -1])
    returns = np.zeros((5, 5, 4, 2))
    for other, name in ((0, 3), (1, 4)):
        returns[name, other, :, 0] = 1 + differ
        returns[other, name, :, 1] = in_second_seat + differ
    results = results_of((), returns=returns, trained=models, trained_2=models)
    results["names"] = np.array(names)
    (claim,) = report.trained_for_the_situation(results)
    assert list(claim.holds) == [holds, holds]


def test_two_devices_are_compared_seed_by_seed():
    """On the second device agents get .01 more, and one of them .5 more."""
    random, runs = np.random.default_rng(0), {}
    late = np.arange(1, 501) >= 100
    for script, settings in report.COMPARED.items():
        sweep = (-1.0, *settings)
        cpu, gpu = {"loss": np.ones((3, 500))}, {}
        for play in plots.RETURNS:
            cpu[play] = random.normal(size=(len(sweep), 3, 6, 2))
            gpu[play] = cpu[play][:, :2] + [0.01, 0.0]
        gpu["versus_naive"][1, 1, 3, 1] += 0.5
        gpu["loss"] = cpu["loss"] + 1e-3 * late * np.array([[0], [1], [-2]])
        runs[f"{script}_ipd"] = results_of(sweep, **cpu)
        runs[f"{script}_gpu_ipd"] = results_of(sweep, **gpu)
    text = report.table_of_devices(runs)
    assert "2e-03 at 100" in text
    assert "0e+00 at 50" in text
    rows = iter(text.splitlines()[2:])
    for script, settings in report.COMPARED.items():
        for i in range(1, len(settings) + 1):
            cells = next(rows).strip("| ").split(" | ")[1:]
            for play, cell in zip(plots.RETURNS, cells, strict=True):
                mean = runs[f"{script}_ipd"][play][i, :2, :, 0].mean()
                off = 0.5 if play == "versus_naive" and i == 1 else 0.01
                assert cell == f"{mean:.4f}, {mean + 0.01:.4f} ({off:.0e})"


def test_the_table_of_kinds_has_each_rule_and_two_settings_of_meva():
    runs = runs_of_kinds()
    lines = report.table_of_networks(runs).splitlines()
    rows = [row.strip("| ").split(" | ") for row in lines]
    # Two lines above, then for each kind six rules but for one, and MeVa at its best
    # setting if that is .9, at .95 and at .99.
    of_meva = [runs[f"meva_{game}"] for game in plots.KINDS.values()]
    more = sum(best_setting(results) == 0 for results in of_meva)
    assert len(rows) == 2 + 3 * (6 + 2) - 1 + more
    row = next(row for row in rows if row[:2] == ["networks", "MeVa, gamma = 0.99"])
    by_seed = runs["meva_ipd+mlp"]["versus_naive"][2].mean(axis=1)  # (seed, 2)
    assert row[5] == by_hand(by_seed).replace("+-", "±")


def test_presets_are_compared_by_what_a_best_response_leaves_each_model():
    """Two models and four pairs; of the first's one keeps more than -1.5, or all."""
    response = np.full((3, 2, 4, 2), -1.6)
    response[..., 0] = -1.4
    response[1, 0, :3, 0] = -1.6
    own = np.broadcast_to([[-1.1], [-1.3]], (3, 2, 4))  # by model
    both = np.stack([own, own - 0.2], axis=-1)
    results = results_of(
        (0.95, 0.99, 0.999),
        exact_best_response=response,
        self_play=both,
        versus_naive=both,
    )
    runs = {"meva_ipd": results, "reliable_ipd": results}
    rows = report.table_of_presets(runs).splitlines()[2:]
    assert len(rows) == 6
    shown = "-1.300 ± 0.100 | {} | -1.200 ± 0.100"
    kept = "0.625 ± 0.375 | 0.25, 1.00"
    assert rows[4] == f"| reliable | 0.99 | {shown.format(kept)} |"
    kept = "1.000 ± 0.000 | 1.00, 1.00"
    assert rows[0] == f"| paper | 0.95 | {shown.format(kept)} |"


def test_equations_are_compared_by_the_share_that_comes_to_b():
    runs = {}
    for k, name in enumerate(report.EQUATIONS):
        shares = np.array([[0.1, 0.3], [0.2, 0.4], [0.3, 0.5], [0.4, 0.6], [0.5, 0.7]])
        runs[name] = results_of((0, 1, 2, 5, 10), basin_fraction=shares + k)
    rows = report.table_of_equations(runs).splitlines()[2:]
    shares = "0.200 ± 0.100 | 0.300 ± 0.100 | 0.400 ± 0.100 | 0.500 ± 0.100"
    assert rows[0] == f"| LOLA (App. B) | {shares} | 0.600 ± 0.100 |"
    assert rows[3].startswith("| COLA of Eq. 4 | 3.200 ± 0.100 | ")


def test_who_reciprocates():
    """Of four models the first does; each other one fails one of the conditions."""
    after_cd = np.array([0.1, 0.1, 0.1, 0.5])
    after_cc = np.array([0.9, 0.9, 0.9, 0.9])
    policies = np.zeros((1, 4, 6, 2, 5))
    policies[0, ..., 2] = np.log(after_cd / (1 - after_cd))[:, None, None]
    policies[0, ..., 4] = np.log(after_cc / (1 - after_cc))[:, None, None]
    self_play = np.full((1, 4, 6, 2), -1.1)
    self_play[0, 1] = -1.2
    response = np.full((1, 4, 6, 2), -1.1)
    response[0, 2] = -1.4
    results = results_of(
        (0.99,), policies=policies, self_play=self_play, exact_best_response=response
    )
    chances = report.chances(results, 0)
    np.testing.assert_allclose(chances[[2, 4]], [after_cd, after_cc])
    found = report.reciprocal(results, 0)
    np.testing.assert_array_equal(found, [True, False, False, False])


def test_the_games_table_shows_the_largest_look_ahead_up_to_ten():
    """Returns are the setting's index; a game without a run has an empty cell."""
    runs = {}
    for script, sweep in (("lola", (5.0, 20.0, 10.0)), ("meva", (0.99, 0.9, 0.95))):
        arrays = {}
        for play in plots.PANELS:
            arrays[play] = np.zeros((3, 1, 4, 2)) + np.arange(3)[:, None, None, None]
        runs[f"games/{script}_imp"] = results_of(sweep, **arrays)
    lines = report.table_of_games(runs).splitlines()
    (row, *_) = [line.split(" | ") for line in lines if line.startswith("| `imp`")]
    titles = list(plots.TITLES)
    assert row[1 + titles.index("lola")].startswith("2.00")
    assert row[1 + titles.index("meva")].startswith("0.00")
    assert row[1 + titles.index("naive")] == ""


# --- tournament.py --------------------------------------------------------------------
# Plain loops, closed forms and known games; the search for tit-for-tat by hand.


def hold(game, everyone, steps, trials):
    with mock.patch.object(jax, "clear_caches") as clear:  # of other tests as well
        results = tournament.hold_tournament(game, everyone, steps, trials)
    assert clear.call_count == len(everyone)  # else a long one runs out of memory
    return results


def test_fixed_policies_meet_at_their_exact_returns():
    game = GAMES["imp"]
    results = hold(game, tournament.fixed(game), steps=3, trials=2)
    policies = {
        "all-C": [C] * 5,
        "all-D": [D] * 5,
        "tit-for-tat": [C, D, D, C, C],
        "win-stay-lose-shift": [C, C, D, D, C],
    }
    assert list(results["names"]) == list(policies)
    for i, row in enumerate(policies.values()):
        for j, column in enumerate(policies.values()):
            expected = game.f(jnp.array([row, column]))
            for trial in results["returns"][i, j]:
                np.testing.assert_allclose(trial, expected, atol=1e-5)
    names = tournament.CORNERS
    corners = [names[corner] for corner in results["corner"][:2, :, 0].ravel()]
    of_all_c, of_all_d = corners[:4], corners[4:]
    assert of_all_c == ["CC", "CD", "CC", "CC"]
    # All-D meets tit-for-tat's one C, and win-stay-lose-shift's C in every second round.
    assert of_all_d == ["DC", "DD", "DD", "DC"]


@pytest.mark.parametrize("variant, count", [("", 4), ("+mlp", 0), ("+memory=2", 0)])
def test_fixed_policies_play_where_policies_are_tables_of_one_round(variant, count):
    game = games.find_game(f"ipd{variant}")
    protocol = tournament.Protocol(1.0, 1.0, 0.9, 2)
    everyone = tournament.contestants(game, protocol, {})
    assert len(everyone.keys() & tournament.FIXED.keys()) == count
    skewed = tournament.contestants(games.find_game("ipd+skewed"), protocol, {})
    assert list(skewed) == RULES_OF_TOURNAMENT


def test_players_and_trials_draw_by_keys_of_their_own():
    """And each pair of models plays as often as any."""
    game = GAMES["imp"]

    def draw(x, model, gammas, key):
        drawn = jax.random.uniform(key, (game.n,), maxval=0.1)
        return model + jnp.stack([drawn, drawn])

    models = (np.float32([10, 20, 30]), np.float32([-10, -20]))
    starts = jnp.zeros((7, 2, game.n))
    ends, played = tournament.play_pair(
        game, (draw, draw), models, (None, None), (0.0, 0.0), starts, steps=1
    )
    for seat in (0, 1):
        expected = models[seat][played[:, seat]]
        np.testing.assert_allclose(ends[:, seat, 0], expected, atol=0.1)
    pairs, often = np.unique(played, axis=0, return_counts=True)
    assert len(pairs) == 6
    assert often.max() - often.min() <= 1
    drawn = np.asarray(ends[..., 0]) % 1
    assert len(np.unique(drawn.round(6))) == drawn.size


def trained_runs(game):
    """Random models of each trained contestant, a list, and files of them."""
    models, runs = {}, {}
    for count, name in enumerate(tournament.TRAINED, 1):
        script, _, opponent = name.partition("-")
        module = SCRIPTS[script]
        changes = {"opponent": opponent} if opponent else {}
        if module is meva:
            changes |= {"blocks": 0}
        config = tiny(game.name, module.__name__, **changes)
        models[name] = []
        for k in range(count % 3 + 1):
            key = jax.random.key(10 * count + k)
            models[name].append(module.model_init(key, game, config))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *models[name])
        settings = dataclasses.asdict(config) | {"run_on": ""}
        arrays = games.flatten("params", stacked)
        runs[name] = plots.Results(arrays, config=settings, path="")
    return models, runs


def test_rules_hand_their_settings_on():
    """Each follows what its script returns, here a number, with the step size .5."""
    game, x = GAMES["imp"], np.ones((2, 5))
    calls = {
        (naive, "naive_gradient"): ((game.f, x), {}),
        (lola, "lola_gradient"): ((game.f, x, 8.0), {}),
        (hola, "hola_gradient"): ((game.f, x, 8.0), {"order": 2}),
        (sos, "sos_gradient"): ((game.f, x, 8.0), {"scale": 1 / (1 - 0.96)}),
    }
    everyone = tournament.untrained(game, tournament.Protocol(0.5, 8.0, 0.9, 2))
    rules = [everyone[name].step for name in ("naive", "lola", "hola2", "sos")]
    for k, ((module, name), (args, settings)) in enumerate(calls.items()):
        with mock.patch.object(module, name, return_value=k + 1) as function:
            np.testing.assert_allclose(rules[k](x), x + 0.5 * (k + 1))
        function.assert_called_once_with(*args, **settings)
    with mock.patch.object(pola, "pola_step", return_value=7) as function:
        assert everyone["pola"].step(x) == 7
    f, _, alpha, beta, _ = function.call_args.args
    assert (f, alpha, beta) == (game.f, 8.0, 2.0)
    assert function.call_args.kwargs == {}
    with mock.patch.object(lola, "lola_gradient", return_value=1) as function:
        everyone["lola-taylor-stop"].step(x)
    assert function.call_args.kwargs == {"variant": "taylor-stop"}
    rules = {"loqa": "loqa", "loqa-full": "full", "alignment": "alignment"}
    for name, variant in rules.items():
        with mock.patch.object(loqa, "loqa_gradient", return_value=3) as function:
            np.testing.assert_allclose(everyone[name].step(x), x + 1.5)
        function.assert_called_once_with(game, x, 2.0, variant)


def test_each_seat_has_its_model_and_meva_its_gamma():
    game, gamma = GAMES["imp"], 0.7
    runs = {}
    for k, name in enumerate(("meva-naive", "meva-naive+swapped")):
        config = tiny("imp", opponent="naive", blocks=0)
        model = meva.model_init(jax.random.key(k), game, config)
        arrays = games.flatten("params", jax.tree.map(lambda leaf: leaf[None], model))
        settings = dataclasses.asdict(config) | {"run_on": ""}
        runs[name] = plots.Results(arrays, config=settings, path="")
    protocol = tournament.Protocol(0.5, 8.0, gamma, 2)
    one = tournament.trained("meva-naive", game, protocol, runs)
    assert one.gamma == gamma
    for name, models in zip(runs, one.models, strict=True):
        for key, leaf in games.flatten("params", models).items():
            np.testing.assert_array_equal(leaf, runs[name][key])


@pytest.mark.parametrize("protocol", tournament.PROTOCOLS)
@pytest.mark.parametrize("name", tournament.TOURNAMENTS)
def test_the_kept_models_can_take_part(name, protocol):
    """Of the authors' settings all of them, else those whose runs are kept."""
    game = GAMES[name]
    settings = tournament.protocol_of(game, protocol)
    folders = [ROOT / "results/paper"]
    runs, missing = tournament.find_models(game, protocol, folders)
    everyone = tournament.contestants(game, settings, runs)
    kept = [one for one in tournament.TRAINED if one in everyone]
    if protocol == "authors":
        assert kept == list(tournament.TRAINED)
        assert not missing
    else:
        of_ipd = ["cola", "maml", "coala", "meva"]
        expected = {"ipd": of_ipd, "imp": ["meva"], "chicken": []}
        assert kept == expected[name]


def test_m_maml_starts_where_it_chose_and_has_two_step_sizes():
    game = GAMES["imp"]
    starts = np.ones((3, 2, 5), np.float32)
    step_sizes = np.tile(np.float32([0.5, -2.0]), (3, 1))
    arrays = {"params/policy": starts, "params/step_size": step_sizes}
    protocol = tournament.Protocol(lr=9.0, alpha=9.0, gamma=0.9, steps=9)
    everyone = tournament.contestants(game, protocol, {"maml": plots.Results(arrays)})
    maml_s = everyone["maml"]
    np.testing.assert_array_equal(maml_s.starts, starts)
    x = game.init(jax.random.key(0))
    found = maml_s.step(x, maml_s.models[1], None, None)
    expected = x + np.array([[0.5], [-2.0]]) * simultaneous_gradient(game.f, x)
    np.testing.assert_allclose(found, expected, 1e-5)


def test_coalas_agents_stand_still_where_they_were_trained_to():
    game = GAMES["imp"]
    starts = np.arange(30, dtype=np.float32).reshape(3, 2, 5)
    runs = {"coala": plots.Results({"params/policy": starts})}
    protocol = tournament.Protocol(lr=9.0, alpha=9.0, gamma=0.9, steps=9)
    coala_s = tournament.contestants(game, protocol, runs)["coala"]
    np.testing.assert_array_equal(coala_s.starts, starts)
    assert coala_s.models is None
    x = game.init(jax.random.key(0))
    np.testing.assert_array_equal(coala_s.step(x), x)


def next_policies(game, name, model, x, gammas):
    """Both players' next policies if both follow this rule, by the scripts alone."""
    if name == "mfos":
        draws = [mfos.act(jax.random.key(5), model, game, x, i)[1] for i in (0, 1)]
        return jnp.stack(draws)
    if name == "maml":
        return x + model.step_size[:, None] * simultaneous_gradient(game.f, x)
    if name.startswith("meva"):
        config = tiny("imp", opponent=name.partition("-")[2] or "self", blocks=0)
        return x + 0.5 * meva.meva_gradient(model, game, x, gammas, config)
    return x + 0.5 * cola.cola_gradient(model, game, x, 0.8)


RULES_OF_TOURNAMENT = ["naive", "lola", "lola-taylor-stop", "hola2", "sos", "pola"]
RULES_OF_TOURNAMENT += ["loqa", "loqa-full", "alignment"]


@slow
def test_each_trained_contestant_steps_by_its_rule_in_its_own_seat():
    """One of each kind of M-FOS and one of two of MeVa are enough: they are alike."""
    game = GAMES["imp"]
    models, runs = trained_runs(game)
    protocol = tournament.Protocol(0.5, 0.8, 0.6, 2)
    everyone = tournament.contestants(game, protocol, runs)
    everybody = [*RULES_OF_TOURNAMENT, *tournament.TRAINED, *tournament.FIXED]
    assert list(everyone) == everybody
    gammas = np.float32([0.2, 0.6])
    x = game.init(jax.random.key(0))
    for name in ("cola", "maml", "meva", "meva-naive", "mfos"):
        one = everyone[name]
        last = jax.tree.map(lambda leaf: leaf[-1], one.models)

        def both_seats(x, one=one, last=last):
            rows = []
            for seat in (0, 1):
                key = jax.random.key(5)
                row = tournament.next_policy(one.step, last, x, seat, gammas, key)
                rows.append(row)
            return jnp.stack(rows)

        model = models.get(name, [None])[-1]
        expected = jax.jit(partial(next_policies, game, name))(model, x, gammas)
        np.testing.assert_allclose(
            jax.jit(both_seats)(x), expected, rtol=1e-4, atol=1e-6, err_msg=name
        )
        assert one.gamma == 0.6 * name.startswith("meva")


@slow
def test_a_tournament_against_a_loop():
    """M-MAML starts where it chose, others where all do."""
    game, trials = GAMES["imp"], 7
    models, runs = trained_runs(game)
    protocol = tournament.Protocol(0.5, 0.8, 0.6, 2)
    everyone = tournament.contestants(game, protocol, runs)
    names = ["maml", "meva"]
    some = {name: everyone[name] for name in names}
    results = hold(game, some, steps=2, trials=trials)
    starts = jax.vmap(game.init)(jax.random.split(jax.random.key(0), trials))
    step = jax.jit(partial(next_policies, game), static_argnums=0)
    for i, j, t in np.ndindex(2, 2, trials):
        both = names[i], names[j]
        played = results["trained"][i, j, t], results["trained_2"][i, j, t]
        gammas = np.float32([0.6 * (name == "meva") for name in both])
        x = starts[t]
        for seat in (0, 1):
            if both[seat] == "maml":
                x = x.at[seat].set(models["maml"][played[seat]].policy[seat])
        for _ in range(2):
            rows = []
            for seat in (0, 1):
                model = models[both[seat]][played[seat]]
                rows.append(step(both[seat], model, x, gammas)[seat])
            x = jnp.stack(rows)
        found = results["returns"][i, j, t]
        # M-MAML's random step size makes policies large, and rounding with them.
        np.testing.assert_allclose(found, game.f(x), rtol=2e-3, atol=1e-4)
        states = games.state_distribution(x, 0.96)
        corner = ("DD", "CD", "DC", "CC")[states.argmax()]
        expected = corner if states.max() > 0.5 else "none"
        assert tournament.CORNERS[results["corner"][i, j, t]] == expected


KNOWN_GAMES = {  # payoffs of the row, and all symmetric equilibria
    "rock paper scissors": ([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], [(1 / 3,) * 3]),
    "prisoner's dilemma": ([[-1, -3], [0, -2]], [(0, 1)]),
    "hawk and dove": ([[-1, 2], [0, 1]], [(0.5, 0.5)]),
    "stag hunt": ([[4, 1], [3, 2]], [(0, 1), (0.5, 0.5), (1, 0)]),
    "one": ([[5]], [(1,)]),
    "alike": ([[1, 1], [1, 1]], [(0, 1), (1, 0)]),  # mixtures stay unnamed
}


@pytest.mark.parametrize("name", KNOWN_GAMES)
def test_symmetric_equilibria_of_known_games(name):
    payoffs, expected = KNOWN_GAMES[name]
    found = tournament.symmetric_equilibria(np.array(payoffs, float))
    np.testing.assert_allclose(sorted(map(tuple, found)), expected, atol=1e-9)


def errors_of(names, returns, trained, trained_2):
    """Standard errors of player 1's mean, (2, 2), where all pairs play the same.

    Models are of the names that are trained.
    """
    has = np.isin(names, tournament.TRAINED).astype(int)
    arrays = {
        "returns": np.broadcast_to(np.array(returns)[:, None], (2, 2, 4, 2)),
        "trained": has[:, None, None] * np.broadcast_to(trained, (2, 2, 4)),
        "trained_2": has[:, None] * np.broadcast_to(trained_2, (2, 2, 4)),
    }
    return tournament.standard_errors(plots.Results(arrays, names=np.array(names)))[
        ..., 0
    ]


def test_errors_of_a_tournament_are_over_models():
    """Means of the row's models are 3 and 4, those of the column's 1.5 and 5.5."""
    returns = [1.0, 2.0, 5.0, 6.0]
    rows, columns = [0, 1, 0, 1], [0, 0, 1, 1]
    apart = (0.5**2 + 2**2) ** 0.5  # of two sets of models
    together = (9.5 - 4.5) / 2  # of one set, in both seats
    found = errors_of(["meva", "maml"], returns, rows, columns)
    np.testing.assert_allclose(found, [[together, apart], [apart, together]])
    found = errors_of(["meva", "lola"], returns, rows, columns)
    np.testing.assert_allclose(found[0, 1], 0.5)  # LOLA has no models
    found = errors_of(["meva", "lola"], returns, [0] * 4, [0] * 4)
    assert np.isnan(found[0, 1])  # of a single model none is known
    found = errors_of(["naive", "lola"], returns, rows, columns)
    np.testing.assert_allclose(found, np.std(returns, ddof=1) / 2)  # over trials


def test_in_the_meta_game_seats_are_drawn_by_lot():
    """A contestant has the mean of both seats beside another, and beside itself."""
    returns = np.zeros((2, 2, 3, 2))
    returns[0, 1] = [4, 1]  # the first as player 1
    returns[1, 0] = [3, 2]  # as player 2
    returns[0, 0] = [7, 5]
    payoffs = tournament.meta_game(plots.Results(returns=returns))
    np.testing.assert_allclose(payoffs, [[6, 3], [2, 0]])


@pytest.mark.parametrize(
    "name, protocol, expected",
    [
        ("ipd", "paper", (2, 10, 0.95, 500)),
        ("ipd", "authors", (25, 25, 0.95, 300)),
        ("chicken", "paper", (0.1, 0.2, 0.95, 500)),
        ("chicken", "authors", (1, 1, 0.95, 300)),
    ],
)
def test_the_settings_of_both_protocols(name, protocol, expected):
    assert tournament.protocol_of(GAMES[name], protocol) == expected


def test_an_equilibriums_slack_and_its_error_worked_out_by_hand():
    """A game of two with payoffs 2, 1; 0, 0 by lot, and errors of .1 in every seat."""
    noise = 0.1 * np.sqrt(4) * np.sqrt(3 / 4) * np.array([1, 1, -1, -1])  # error .1
    means = np.array([[[2, 2], [1, 0]], [[0, 1], [0, 0]]], float)
    returns = means[:, :, None] + noise[:, None]
    results = plots.Results(
        returns=returns,
        names=np.array(["one", "two"]),
        trained=np.zeros((2, 2, 4), int),
        trained_2=np.zeros((2, 2, 4), int),
    )
    np.testing.assert_allclose(tournament.standard_errors(results), 0.1)
    (found,) = tournament.equilibria(results, np.array([True, True]))
    assert found[:2] == ("one", 2)
    # A mean of two seats has their error, and the slack is a difference of two entries.
    np.testing.assert_allclose(found.slack, 2)
    np.testing.assert_allclose(found.error, np.sqrt(2) * 0.1)


def test_where_all_play_nobody_is_outside_an_equilibrium():
    """Rock, paper and scissors."""
    payoffs = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], float)
    returns = np.stack([payoffs, payoffs.T], axis=-1)[:, :, None] + np.zeros((4, 1))
    models = np.zeros((3, 3, 4), int)
    results = plots.Results(returns=returns, trained=models, trained_2=models)
    results["names"] = np.array(["rock", "paper", "scissors"])
    text = tournament.describe_equilibria(results)
    mixture = "0.33 rock + 0.33 paper + 0.33 scissors"
    assert f"among all: {mixture} (return 0.000, nobody is outside)" in text


@functools.cache
def tournament_on_the_ipd():
    return plots.load(ROOT / "results/paper/tournament_ipd.npz")


def test_the_authors_cells_stand_beside_ours_with_their_distance():
    results = tournament_on_the_ipd()
    names = list(results["names"])
    i, j = names.index("naive"), names.index("maml")
    first, second = results["returns"][i, j].mean(axis=0)
    error_1, error_2 = tournament.standard_errors(results)[i, j]
    ours = f"{first:.3f} ± {error_1:.3f} : {second:.3f} ± {error_2:.3f}"
    far_1, far_2 = (first + 1.524) / error_1, (second + 1.398) / error_2
    line = f"| naive | maml | -1.524 : -1.398 | {ours} | {far_1:+.1f} : {far_2:+.1f} |"
    assert line in tournament.tables(results)


def test_equilibria_are_said_of_all_and_of_those_that_learn():
    text = tournament.describe_equilibria(tournament_on_the_ipd())
    every, learners = text.split("among those that learn")
    assert "tit-for-tat (return -1.000, weak)" in every
    assert "tit-for-tat" not in learners
    assert "cola (return -1.590, slack" in learners


def drift(x):
    return x + 0.5 * x[::-1]


FEW = {  # two rules that are quick to compile, and a fixed policy
    "drift": tournament.Contestant(drift),
    "shrink": tournament.Contestant(lambda x: 0.9 * x),
    "tit-for-tat": tournament.fixed(GAMES["ipd"])["tit-for-tat"],
}


def play_few(game, out, mine=None):
    """A tournament of them, and of mine, with three trials of two steps."""
    short = partial(tournament.Protocol, steps=2)
    with mock.patch.multiple(
        tournament,
        TRIALS=3,
        contestants=lambda game, protocol, runs: dict(FEW),
        protocol_of=lambda game, name: short(1.0, 1.0, 0.9),
    ):
        return tournament.play(game, mine, out=out)


@pytest.fixture(scope="session")
def short_tournament(tmp_path_factory):
    """What is printed, the results, and the folder."""
    folder = tmp_path_factory.mktemp("tournament")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        results = play_few("bach_or_stravinsky", folder)
    return out.getvalue(), results, folder


def test_what_is_said_of_a_tournament(short_tournament):
    said, results, folder = short_tournament
    path = folder / "results/tournament_bach_or_stravinsky.npz"
    assert f"wrote {path}" in said
    assert said.isascii()
    saved = plots.load(path)
    np.testing.assert_array_equal(saved["returns"], results["returns"])
    assert "missing: meva_bach_or_stravinsky; results/paper/details.md" in said
    returns = results["returns"]
    assert returns.shape == (3, 3, 3, 2)
    row = next(line for line in said.splitlines() if line.startswith("shrink "))
    means = returns[1].mean(axis=1)[:, 0]
    assert row.split()[1:] == [*(f"{mean:z.2f}" for mean in means), "2"]

    text = tournament.tables(results)
    error = returns[0, 0, :, 0].std(ddof=1) / 3**0.5
    assert f"| drift | {means_of(returns[0, 0], 0)} ± {error:.3f} |" in text
    error = returns[2, 1, :, 1].std(ddof=1) / 3**0.5
    assert f"| {means_of(returns[2, 1], 1)} ± {error:.3f} |" in text
    medians = np.median(returns[2, 1], axis=0)
    assert " : ".join(f"{median:z.3f}" for median in medians) in text
    shares = [100 * (results["corner"][2, 1] == k).mean() for k in range(4)]
    assert " ".join(f"{share:.0f}" for share in shares) in text


def means_of(returns, player):
    return f"{returns[:, player].mean():z.3f}"


def test_what_is_drawn_of_a_tournament(short_tournament):
    """Bars go from corner to corner and from row to row."""
    _, results, folder = short_tournament
    upper, lower = draw_by(tournament.draw_tournament, results)
    means = results["returns"].mean(axis=2)[..., 0]
    check_matrix(upper, means)
    assert len(lower.patches) == 5 * 9
    for corner, row, column in ((0, 1, 2), (3, 0, 1), (4, 2, 2)):
        shares = [(results["corner"][row, column] == k).mean() for k in range(5)]
        bar = lower.patches[9 * corner + 3 * row + column]
        begin = column - 0.45 + 0.9 * sum(shares[:corner])
        np.testing.assert_allclose(bar.get_x(), begin, atol=1e-9)
        np.testing.assert_allclose(bar.get_width(), 0.9 * shares[corner], atol=1e-9)
        np.testing.assert_allclose(bar.get_y() + bar.get_height() / 2, row)

    (panel,) = draw_by(tournament.draw_learners, results)
    check_matrix(panel, means[:2, :2])  # without tit-for-tat
    for name in ("", "_learners"):
        path = folder / f"figures/own/tournament_bach_or_stravinsky{name}.png"
        assert imread(path).shape[1] > 600


def check_matrix(axis, means):
    """The means are shown as colors and as text, and the best of a column framed."""
    np.testing.assert_allclose(axis.images[0].get_array(), means)
    best = means > means.max(axis=0) - 1e-3
    framed = [tuple(patch.get_center()[::-1]) for patch in axis.patches]
    np.testing.assert_allclose(sorted(framed), np.argwhere(best))
    texts = {}
    for text in axis.texts:
        if "±" not in text.get_text():
            column, row = np.round(text.get_position()).astype(int)
            texts[row, column] = text.get_text()
    assert texts[1, 0] == f"{means[1, 0]:z.2f}"


def test_a_rule_of_ones_own_plays_beside_all_others(short_tournament, tmp_path):
    """A rule by another name has the same row and column; the rest is kept."""
    _, before, folder = short_tournament
    out = tmp_path / "copy"
    shutil.copytree(folder, out)
    with mock.patch.object(tournament, "play_pair", wraps=tournament.play_pair) as held:
        results = play_few("bach_or_stravinsky", out, {"mine": drift})
    assert held.call_count == 7  # of 16
    assert list(results["names"]) == ["drift", "shrink", "tit-for-tat", "mine"]
    returns = results["returns"]
    np.testing.assert_array_equal(returns[:3, :3], before["returns"])
    np.testing.assert_allclose(returns[3, :3], before["returns"][0], rtol=1e-5)
    np.testing.assert_allclose(returns[:3, 3], before["returns"][:, 0], rtol=1e-5)
    # Another rule by the same name plays anew.
    again = play_few("bach_or_stravinsky", out, {"mine": lambda x: 0.9 * x})
    np.testing.assert_allclose(again["returns"][3, :3], before["returns"][1], rtol=1e-5)
    with pytest.raises(ValueError, match="there is a contestant drift"):
        play_few("bach_or_stravinsky", out, {"drift": drift})


def test_a_tournament_of_other_settings_is_passed_over(tmp_path):
    """The own one has this repository's settings, and the kept one the authors'."""
    own = tmp_path / "results"
    folders = [own, own / "paper"]
    folders[1].mkdir(parents=True)
    game = GAMES["imp"]
    for folder, protocol in zip(folders, tournament.PROTOCOLS, strict=True):
        settings = tournament.protocol_of(game, protocol)._asdict()
        config = {"game": "imp", "protocol": protocol, **settings}
        returns = np.zeros((1, 1, tournament.TRIALS, 2))
        path = folder / "tournament_imp.npz"
        np.savez(path, config=json.dumps(config), returns=returns, names=["one"])
        found = tournament.held_before(game, protocol, folders)
        assert found["path"] == path
    np.savez(path, config=json.dumps(config), returns=returns[:, :, 1:], names=["one"])
    assert tournament.held_before(game, "authors", folders) is None  # fewer trials


def test_a_contestant_has_models_starts_and_a_game_of_its_own(tmp_path):
    """Two models move by 1 and 2 from starts of their own, on another game."""
    game = games.iterated_game("mine", own=(3, 0, 5, 1), lr=1.0)
    starts = np.float32([[[0] * 5, [3] * 5], [[1] * 5, [4] * 5]])

    def step(x, model, gammas, key):
        return x + model

    walker = tournament.Contestant(step, np.float32([1, 2]), starts, gamma=0.5)
    with mock.patch.dict(FEW, clear=True):
        results = play_few(game, tmp_path, {"walker": walker})
    i = list(results["names"]).index("walker")
    assert results["trained"][i, i].tolist() == [0, 0, 1]  # models in pairs
    for t in range(3):
        ends = []
        for seat, key in enumerate(("trained", "trained_2")):
            model = results[key][i, i, t]
            ends.append(starts[model, seat] + 2 * (1 + model))
        expected = game.f(jnp.array(ends))
        np.testing.assert_allclose(results["returns"][i, i, t], expected, rtol=1e-5)


WRONG_WORDS = [
    ("--game logistic", "--game takes an iterated game, not logistic"),
    ("--game chess", "chess"),
    (
        "--game stag_hunt --protocol authors",
        "--protocol authors takes --game ipd, imp, chicken, not stag_hunt",
    ),
    ("--paper --game stag_hunt", "tournament_stag_hunt.npz is not the results of a"),
]


@pytest.mark.parametrize("words, said", WRONG_WORDS)
def test_a_tournament_that_cannot_be_held_gets_one_line(words, said, tmp_path, capsys):
    words = ["--out", str(tmp_path), *words.split()]
    status, out, err = call(tournament.main, words, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


@slow
@pytest.mark.parametrize("algorithm", ["pola", "lola"])
def test_each_setting_of_the_search_takes_its_own_steps(algorithm):
    """Of two factors of the contribution game, each with an alpha, and a beta or lr."""
    settings = np.float32([[1.33, 5, 0.1], [1.1, 0.5, 3]])
    found = tournament.search_with(algorithm, "tables", settings, 2, 9)
    assert found.shape == (2, 9, 2)
    keys = jax.random.split(jax.random.key(0), 9)
    for k, (factor, alpha, other) in enumerate(settings.tolist()):
        own = f"{factor - 1},{factor / 2 - 1},{factor / 2},0"
        game = games.find_game(f"contribution+payoffs={own}")

        def step(x):
            if algorithm == "lola":
                gradient = lola.lola_gradient(game.f, x, 25 * alpha)
                return x + 25 * other * gradient
            distance = partial(pola.divergence, game)
            return pola.pola_step(game.f, x, 25 * alpha, other / 25, distance)

        steps = jax.jit(jax.vmap(step))
        xs = jax.vmap(GAMES["contribution"].init)(keys)
        for t in range(2):
            xs = steps(xs)
            expected = jax.vmap(partial(tournament.plays_tit_for_tat, game))(xs)
            np.testing.assert_array_equal(found[k, :, t], expected)


def test_the_search_counts_the_better_setting_and_writes_it(tmp_path, capsys):
    """Of two factors with two settings each, and three pairs, of which some find it."""
    found = np.zeros((4, 3, 5), bool)
    found[1, :2, 1] = True  # the second setting of the first factor
    found[2, 0] = True
    settings = {("pola", "networks"): (5, [[(1, 1), (2, 2)]] * 2)}
    with mock.patch.multiple(
        tournament,
        SEARCHES=settings,
        FACTORS=(1.5, 1.7),
        search_with=mock.Mock(return_value=found),
    ):
        results = tournament.search_for_tit_for_tat(3)
    np.testing.assert_allclose(results["found"], [[[2 / 3, 0], [1 / 3, 1 / 3]]])
    assert list(results["names"]) == ["POLA, networks"]
    with mock.patch.object(tournament, "search_for_tit_for_tat", return_value=results):
        tournament.main(["--search", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "| POLA, networks | 0.67 (0.00) | 0.33 (0.33) |" in out
    runs, missing = plots.find(["tit-for-tat_contribution"], [tmp_path / "results"])
    assert not missing
    assert tournament.table_of_searches(*runs.values()) in out


plays_tit_for_tat = jax.jit(tournament.plays_tit_for_tat, static_argnums=0)


def test_who_punishes_only_after_dd_has_not_found_tit_for_tat():
    """After CD it cooperates, at .9. (After DD, CD: less than .65 on average, or once)"""
    game = GAMES["contribution"]
    for after_cd, found in ((0.9, False), (0.8, False), (0.64, True)):
        chances = np.array([0.9, 0.45, after_cd, 0.9, 0.9])
        x = np.log(chances / (1 - chances))
        pair = np.stack([x, x])
        assert np.mean(plain_returns(pair, contribution(1.33))) > 0.8 * 0.33
        assert plays_tit_for_tat(game, pair) == found


def test_when_players_have_found_tit_for_tat():
    """Both cooperate with less than .65 after D, and get more than .8 of CC's .33."""
    tit_for_tat = plays_tit_for_tat
    game = GAMES["contribution"]
    one_more = games.find_game("contribution+payoffs=1.33,0.665,1.665,1.0")
    strict = np.array([9.0, -9, -9, 9, 9])
    chances = itertools.product(
        (1e-3, 0.999), (0.1, 0.64, 0.66), (0.1, 0.64, 0.66), (0.1, 0.9), (0.5, 0.999)
    )
    for p in chances:
        z = np.log(p) - np.log1p(-np.array(p))
        for other in (z, strict):
            x = np.stack([z, other])
            worth = np.mean(plain_returns(x, contribution(1.33)))
            expected = max(p[1:3]) < 0.65 and worth > 0.8 * 0.33
            assert tit_for_tat(game, x) == expected
            assert tit_for_tat(one_more, x[::-1]) == expected
    assert not tit_for_tat(one_more, jnp.full((2, 5), 9.0))  # all-C


def random_opponents(count=200):
    """Policies of the IPD, (count, 5), and their chances of cooperating."""
    log_odds = np.random.default_rng(0).uniform(-5, 5, (count, 5)).astype(np.float32)
    return log_odds, 1 / (1 + np.exp(-log_odds.astype(float)))


def test_opponents_of_all_d_are_on_the_edge_from_dd_to_dc():
    """Where exactly: they see DD or, after they cooperated, CD."""
    opponents, p = random_opponents()
    found = tournament.meet(GAMES["ipd"], jnp.full(5, D), opponents)
    init, after_dd, after_cd = p[:, :3].T
    share = (0.04 * init + 0.96 * after_dd) / (1 - 0.96 * (after_cd - after_dd))
    expected = np.stack([2 * share - 2, -2 - share], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_opponents_of_tit_for_tat_get_what_it_gets_but_for_one_round():
    """It returns all rounds of the other but the last, and adds a C before the first.

    So the other gets 3 (1 - .96) (1 - c) more, c being its share of C: .12 at most.
    """
    opponents, _ = random_opponents()
    agent = jnp.array([C, D, D, C, C])
    own, other = np.array(tournament.meet(GAMES["ipd"], agent, opponents), float).T
    share = (2 * own + other + 6) / 3
    np.testing.assert_allclose(other - own, 0.12 * (1 - share), atol=1e-4)
    assert np.ptp(share) > 0.8


@pytest.mark.parametrize("chi", [1.5, 3])
def test_opponents_of_an_extortioner_are_on_a_line(chi):
    """f_1 + 2 = chi (f_2 + 2), whatever they do (Press and Dyson, 2012).

    With a discount (Hilbe, Traulsen and Sigmund, 2015) that takes chances p with
    .96 p = [C in the round before] + phi (own payoff + 2 - chi (the other's + 2)).
    """
    phi = 0.1
    own = np.array([-2, -3, 0, -1])  # DD, CD, DC, CC
    other = np.array([-2, 0, -3, -1])
    was_c = np.array([0, 1, 0, 1])
    p = (was_c + phi * (own + 2 - chi * (other + 2))) / 0.96
    p = np.clip([0, *p], 1e-9, 1)  # D in the first round
    agent = jnp.float32(np.log(p / (1 - p)))
    opponents, _ = random_opponents()
    found = np.array(tournament.meet(GAMES["ipd"], agent, opponents), float)
    np.testing.assert_allclose(found[:, 0] + 2, chi * (found[:, 1] + 2), atol=1e-4)
    assert np.ptp(found[:, 1]) > 0.2


def small_polytope():
    """Two rules: one beside itself, the other, with models, beside the first."""
    everyone = {
        "grow": tournament.Contestant(lambda x: 1.1 * x + 0.01),
        "drift": tournament.Contestant(
            lambda x, model, gammas, key: x + model * (1 + gammas[:, None]),
            np.float32([0.25, 9]),
            gamma=0.5,
        ),
    }
    rows = {"first": ("grow", "grow"), "second": ("drift", "grow")}
    with mock.patch.multiple(tournament, LEARNED=rows, TIMES=(0, 2, 3), OPPONENTS=6):
        return tournament.play_polytope(GAMES["ipd"], everyone)


def test_agents_meet_opponents_at_each_time_of_their_learning():
    """In plain loops, with the first model and the meta-discount of its seat."""
    results = small_polytope()
    assert list(results["names"]) == ["first", "second"]
    assert list(results["times"]) == [0, 2, 3]
    game = GAMES["ipd"]
    opponents = jax.random.uniform(jax.random.key(1), (6, 5), minval=-5, maxval=5)
    keys = jax.random.split(jax.random.key(0), 1024)
    for row, agent in np.ndindex(2, 8):
        x = np.array(game.init(keys[agent]))
        for step in range(4):
            if step in (0, 2, 3):
                k = (0, 2, 3).index(step)
                found = results["clouds"][row, agent, k]
                expected = [game.f(jnp.stack([x[0], one])) for one in opponents]
                np.testing.assert_allclose(found, expected, atol=0.0065)
                partner = results["partners"][row, agent, k]
                np.testing.assert_allclose(partner, game.f(x), atol=1e-4)
            own = 1.1 * x[0] + 0.01 if row == 0 else x[0] + 0.25 * 1.5
            x = np.stack([own, 1.1 * x[1] + 0.01])


def test_the_polytope_is_played_with_the_authors_settings(tmp_path, capsys):
    """And written where plots.py and report.py find it."""
    words = ["--polytope", "--out", str(tmp_path)]
    status, _, err = call(tournament.main, words, capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert "lacks authors/meva_ipd" in err

    folder = tmp_path / "results/authors"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "results/paper/authors/meva_ipd.npz", folder)
    arrays = small_polytope()
    with mock.patch.object(tournament, "play_polytope", return_value=arrays) as play:
        tournament.main(words)
    _, everyone = play.call_args.args
    assert {"meva", "naive", "lola-taylor-stop"} <= set(everyone)
    runs, missing = plots.find(["polytope_ipd"], [tmp_path / "results"])
    assert not missing
    config = runs["polytope_ipd"]["config"]
    settings = {name: config[name] for name in ("lr", "alpha", "gamma", "steps")}
    assert settings == {"lr": 25, "alpha": 25, "gamma": 0.95, "steps": 50}
    x = np.ones((2, 5), np.float32)
    gradient = naive.naive_gradient(GAMES["ipd"].f, x)
    np.testing.assert_allclose(everyone["naive"].step(x), x + 25 * gradient, rtol=1e-5)


def polytope_of_five_rules():
    """Random returns of three agents at two times beside four opponents."""
    random = np.random.default_rng(0)
    return results_of(
        (0,),
        names=np.array(list(plots.LEARNED)),
        times=np.array([0, 7]),
        clouds=random.uniform(-2, -1, (5, 3, 2, 4, 2)),
        partners=random.uniform(-2, -1, (5, 3, 2, 2)),
    )


def test_the_polytope_is_drawn_with_the_first_agent_in_color():
    results = polytope_of_five_rules()
    panels = iter(draw_by(plots.draw_polytope, {"polytope_ipd": results}))
    for row, (own, _) in enumerate(plots.LEARNED.values()):
        for k, time in enumerate(results["times"]):
            axis = next(panels)
            outline, diagonal, others, first, partner = axis.lines
            np.testing.assert_array_equal(
                outline.get_xydata(), [[-2, -2], [-3, 0], [-1, -1], [0, -3], [-2, -2]]
            )
            np.testing.assert_array_equal(diagonal.get_xydata(), [[-2, -2], [-1, -1]])
            clouds = results["clouds"][row, :, k]
            np.testing.assert_array_equal(first.get_xydata(), clouds[0])
            np.testing.assert_array_equal(others.get_xydata(), [*clouds[1], *clouds[2]])
            where = results["partners"][row, 0, k]
            np.testing.assert_array_equal(partner.get_xydata(), [where])
            assert first.get_color() == plots.COLORS[own.partition("-")[0]]
            assert axis.get_title() == (f"step {time}" if row == 0 else "")
            corners = {text.get_text(): text.xy for text in axis.texts}
            assert tuple(corners["CD"]) == (-3, 0)  # the agent cooperates
            assert tuple(corners["DC"]) == (0, -3)


def test_the_polytopes_table_has_the_last_step_and_who_gets_less():
    results = polytope_of_five_rules()
    made = report.table_of_polytope({"polytope_ipd": results}).splitlines()[2:]
    for row, (name, line) in enumerate(zip(plots.LEARNED, made, strict=True)):
        _, label, pair, cloud, most, shares, _ = [
            one.strip() for one in line.split("|")
        ]
        returns = results["clouds"][row, :, 1]
        assert label == name
        assert pair == by_hand(results["partners"][row, :, 1]).replace("+-", "±")
        assert cloud == by_hand(returns.mean(axis=1)).replace("+-", "±")
        low, high = np.quantile(returns[..., 1], (0.05, 0.95))
        assert most == f"{low:.2f} to {high:.2f}"
        less = [sum(other < own for own, other in agent) / 4 for agent in returns]
        assert shares == ", ".join(f"{share:.2f}" for share in less)


# --- README.md, and the shape of the repository ---------------------------------------
# The pages, the examples and the files themselves.

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


# In place of a tournament of minutes: beside itself alone.
SHORT_TOURNAMENT = """
import tournament
tournament.TRIALS = 3
tournament.contestants = lambda game, protocol, runs: {}
"""


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readmes_examples_run_as_they_stand_there(block, tmp_path):
    """In a folder with the scripts and the runs of results/paper alone."""
    for name in ("games", "plots", "tournament", *SCRIPTS):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    shutil.copytree(ROOT / "results/paper", tmp_path / "results")
    if "tournament.play" in block:
        block = SHORT_TOURNAMENT + block
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    anchors = []
    for heading in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        anchors.append(words.replace(" ", "-"))
    return anchors


PAGES = [ROOT / name for name in report.PAGES]


@pytest.mark.parametrize("page", PAGES, ids=report.PAGES)
def test_every_link_and_picture_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


def test_every_picture_in_git_is_shown_on_a_page():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    kept = re.findall(
        r"^!figures/(.*)$", (ROOT / ".gitignore").read_text(), re.MULTILINE
    )
    assert kept
    for name in kept:
        assert f"figures/{name})" in text, name


PROGRAMS = {**SCRIPTS, "plots": plots, "tournament": tournament, "report": report}


def test_flags_of_commands_in_texts_are_flags_of_their_scripts(capsys):
    """In pages, and in docstrings, which have words after a command."""
    found = 0
    paths = [*PAGES, *(ROOT / f"{name}.py" for name in PROGRAMS)]
    helps = {
        name: call(one.main, ["--help"], capsys)[1] for name, one in PROGRAMS.items()
    }
    for path in paths:
        for name, words in re.findall(r"python (\w+)\.py([^`\n]*)", path.read_text()):
            for flag in re.findall(r"(?<!\S)--[\w-]+", words):
                assert re.search(rf"{flag}\b(?!-)", helps[name]), (path, name, flag)
                found += 1
    assert found > 300


def test_inline_metadata_is_requirements_txt():
    """So that `uv run SCRIPT` installs what pip does. (PEP 723)"""
    required = []
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        required.append(line.partition("#")[0].strip())
    for name in PROGRAMS:
        text = (ROOT / f"{name}.py").read_text()
        block = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", text)[1]
        metadata = tomllib.loads(re.sub("^# ", "", block, flags=re.MULTILINE))
        assert metadata == {"requires-python": ">=3.11", "dependencies": required}


def test_the_workflow_runs_readmes_test_command():
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    lines = (ROOT / "README.md").read_text().splitlines()
    (command,) = [line for line in lines if "-m pytest" in line]
    assert f"- run: {command}\n" in workflow


SHARED = re.compile(
    r"^# --- shared: (.*?) -+$(.*?)^# --- end shared -+$", re.MULTILINE | re.DOTALL
)


def check_shared_blocks(texts):
    """AssertionError where copies of a block differ. Returns all copies."""
    copies, marks = [], 0
    for text in texts:
        copies += SHARED.findall(text)
        marks += len(re.findall("^# --- .*shared", text, re.MULTILINE))
    assert 2 * len(copies) == marks > 30
    for name in dict(copies):
        blocks = [block for other, block in copies if other == name]
        assert len(blocks) > 1, f"there is only one block {name}"
        assert len(set(blocks)) == 1, f"copies of the block {name} differ"
    return copies


def test_shared_blocks_are_identical_everywhere():
    """And a character that is changed in any of them is found."""
    texts = [(ROOT / f"{name}.py").read_text() for name in SCRIPTS]
    for _, block in check_shared_blocks(texts):
        for i, text in enumerate(texts):
            if block not in text:
                continue
            middle = text.find(block) + len(block) // 2
            other = chr(ord(text[middle]) ^ 1)
            changed = text[:middle] + other + text[middle + 1 :]
            with pytest.raises(AssertionError, match="differ"):
                check_shared_blocks([*texts[:i], changed, *texts[i + 1 :]])
