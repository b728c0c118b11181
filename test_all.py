"""Every test. `python -m pytest -q -m "not slow"` runs the quick ones on a CPU in a few minutes, `-m slow` the others.

Oracles are independent of the code: closed forms, finite differences in float64, simulations and plain Python loops.
"""

import atexit
import contextlib
import dataclasses
import functools
import gc
import io
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from typing import NamedTuple
from unittest import mock

# Most of the tests' time is compiling: programs need not be optimised. To be set before jax is imported.
FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_backend_optimization_level=0"

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
import maml
import meva
import mfos
import naive
import plots
import pola
import sos
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
    for script in (naive, lola, hola, sos, pola, cola, maml, mfos, meva)
}
TRAINED = ("cola", "meva")  # on several devices
MODELS = (*TRAINED, "maml", "mfos")
UNSWEPT = ("naive", "maml", "mfos")
FIRST = [name for name in SCRIPTS if name not in MODELS]
SAMPLERS = ("naive", "lola", "meva")  # that learn from estimates of f, too
VARIANTS = ("exact", "taylor", "taylor-stop", "lookahead")
TINY = {  # for each script, with the settings of TINY_EVAL
    "naive": dict(),
    "lola": dict(alphas=(0.0, 0.5)),
    "hola": dict(alphas=(0.0, 0.5), order=1),
    "sos": dict(alphas=(0.0, 0.5)),
    "pola": dict(alphas=(0.0, 0.5), climb_steps=9),
    "cola": dict(
        outer_steps=20,
        batch_size=4,
        hidden=8,
        blocks=1,
        alpha_max=10.0,
        eval_alphas=(0.0, 0.5),
    ),
    "maml": dict(outer_steps=20, batch_size=4, rollout_length=3),
    "mfos": dict(outer_steps=20, batch_size=4, rollout_length=3, hidden=8),
    "meva": dict(
        outer_steps=20,
        batch_size=4,
        rollout_length=6,
        stride=3,
        hidden=8,
        blocks=1,
        quantiles=3,
        eval_gammas=(0.0, 0.9),
    ),
}
TINY_EVAL = dict(num_seeds=2, eval_pairs=3, eval_steps=4)


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
    """The gradient of a scalar function of a vector, by five points in each direction (error of order step^4)."""
    gradient = np.zeros_like(x)
    for k in range(len(x)):
        e = np.zeros_like(x)
        e[k] = step
        around = [function(x + m * e) for m in (-2, -1, 1, 2)]
        gradient[k] = np.dot(around, (1, -8, 8, -1)) / (12 * step)
    return gradient


# games.py: the games


def test_ipd_in_closed_form():
    all_c, all_d, random = (C,) * 5, (D,) * 5, (0.0,) * 5
    tit_for_tat, win_stay = (C, D, D, C, C), (C, C, D, D, C)
    for one, two, expected in (
        (all_c, all_c, (-1, -1)),
        (all_d, all_c, (0, -3)),
        (tit_for_tat, tit_for_tat, (-1, -1)),
        (
            tit_for_tat,
            all_d,
            (-2.04, -1.92),
        ),  # (1 - d) (-3) + d (-2) and (1 - d) 0 + d (-2)
        (win_stay, all_d, (-2.510204, -0.979592)),
        (random, random, (-1.5, -1.5)),
    ):
        np.testing.assert_allclose(
            GAMES["ipd"].f(jnp.array([one, two])), expected, atol=1e-5
        )
    gradient = simultaneous_gradient(GAMES["ipd"].f, jnp.zeros((2, 5)))
    np.testing.assert_allclose(
        gradient, [[-0.01, -0.06, -0.06, -0.06, -0.06]] * 2, atol=1e-6
    )


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
    "contribution": ((0.33, 0.33), (-0.335, 0.665), (0.665, -0.335), (0, 0)),
}
POINTS = {  # of the other games
    "logistic": ((0, 0), (0, 0)),
    "tandem": ((1, 2), (-7, -5)),  # 2 - 9, 4 - 9
    "hamiltonian": ((2, 3), (6, -6)),
    "balduzzi": ((1, 2), (-20.5, 18)),  # -1/2 - 20, -4/2 + 20
    "two_hills": (
        (-5, 5),
        (1.0714286, 1.0714286),
    ),  # 2 / (1 + 100 / 40) + 3 / (1 + 100 / 20)
}


@pytest.mark.parametrize("name", GAMES)
def test_returns_worked_out_by_hand(name):
    f, n = GAMES[name].f, GAMES[name].n
    if name in POINTS:
        x, expected = POINTS[name]
        np.testing.assert_allclose(
            f(jnp.array(x, jnp.float32)[:, None]), expected, atol=1e-5
        )
        return
    joint = JOINT[name]
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for actions, expected in zip([(C, C), (C, D), (D, C), (D, D)], joint):
        same(f(jnp.array([[action] * n for action in actions])), expected)
    same(f(jnp.zeros((2, n))), np.mean(joint, 0))  # all four alike
    if GAMES[name].iterated:  # tit-for-tat against all-D: CD once, and DD from then on
        x = jnp.array([(C, D, D, C, C), (D,) * 5])
        same(f(x), 0.04 * np.array(joint[1]) + 0.96 * np.array(joint[3]))


@pytest.mark.parametrize("name", GAMES)
def test_games_are_what_their_entry_says(name):
    game, xs = GAMES[name], random_policies(GAMES[name], 64)
    assert game.name == name and len(game.labels) == game.n
    returns, swapped = jax.jit(jax.vmap(lambda x: (game.f(x), game.f(x[::-1])[::-1])))(
        xs
    )
    assert np.allclose(returns, swapped, atol=1e-5) == game.symmetric
    changed = (
        xs[0].at[1].add(1.0)
    )  # the one-backward-pass gradient needs each player's features to be its own
    np.testing.assert_array_equal(game.features(xs[0])[0], game.features(changed)[0])
    if name in ("matching_pennies", "imp", "hamiltonian"):  # zero-sum
        np.testing.assert_allclose(returns[:, 0], -returns[:, 1], atol=1e-6)
        assert np.abs(returns).max() > 0.1


def test_initial_policies_and_features_are_those_of_the_paper():
    logistic, ipd = (
        np.asarray(random_policies(GAMES[name], 4000)) for name in ("logistic", "ipd")
    )
    assert np.abs(logistic).max() < 8  # U(-8, 8)
    np.testing.assert_allclose(
        np.quantile(logistic, (0.25, 0.5, 0.75)), (-4, 0, 4), atol=0.2
    )
    np.testing.assert_allclose(
        [ipd.mean(), ipd.std(), (np.abs(ipd) < 1).mean()], [0, 1, 0.6827], atol=0.02
    )  # N(0, I)
    np.testing.assert_allclose(
        GAMES["logistic"].features(logistic), logistic / 10, rtol=1e-6
    )
    np.testing.assert_allclose(
        GAMES["ipd"].features(ipd), 1 / (1 + np.exp(-ipd)), rtol=1e-5
    )


def test_a_variant_of_a_game_is_a_game():
    """By name: from left to right, with the name as it was given."""
    find, ipd, x = games.find_game, GAMES["ipd"], random_policies(GAMES["ipd"], 1)[0]
    assert find("ipd") == ipd and find(BOWL) is BOWL
    imp = find("chicken+payoffs=1,-1,-1,1,-1,1,1,-1e+00")
    np.testing.assert_array_equal(imp.f(x), GAMES["imp"].f(x))
    assert (
        imp.name == "chicken+payoffs=1,-1,-1,1,-1,1,1,-1e+00"
        and imp.rules.payoffs == GAMES["imp"].rules.payoffs
    )
    assert not imp.symmetric and (imp.lr, imp.alphas) == (
        GAMES["chicken"].lr,
        GAMES["chicken"].alphas,
    )
    large = find("imp+payoffs=1e+06,-1E+2,+3,0.5")  # a number's plus begins no variant
    assert large.symmetric and large.rules.own == large.rules.other == (
        1e6,
        -100,
        3,
        0.5,
    )
    short = find("imp+discount=0.3")
    np.testing.assert_allclose(
        short.f(x)[0],
        simulated_distribution(x, 0.3) @ short.rules.payoffs[0],
        atol=1e-5,
    )
    many, fields = (
        find("ipd+memory=2+episodes=64+length=50+discount=5e-1+skewed"),
        ipd.rules._asdict(),
    )
    expected = fields | dict(
        memory=2, episodes=64, length=50, discount=0.5, policy="skewed"
    )
    assert (
        many.rules._asdict() == expected
        and many.sample
        and many.n == 21
        and many.lr == 8
    )
    key, x = jax.random.key(0), many.init(jax.random.key(1))
    sampled = games.sampled_returns(
        key, many.log_odds(x), ipd.rules.payoffs, 0.5, 64, 50
    )
    np.testing.assert_array_equal(many.sample(key, x), sampled)
    assert ipd.sample is None and find("ipd+episodes=1").rules.length == 150
    for name in ("ipd+mlp+discount=0.9", "imp+swapped+discount=0.9", "tandem+swapped"):
        base, *words = name.split("+")
        one, two = (
            find(name),
            find("+".join([base, *words[::-1]])),
        )  # here the order does not matter
        x = one.init(jax.random.key(0))
        np.testing.assert_allclose(one.f(x), two.f(x), rtol=1e-6)
        np.testing.assert_array_equal(one.features(x), two.features(x))


@pytest.mark.parametrize(
    "name, said",
    [
        ("chess", "game takes bach_or_stravinsky, .*, not 'chess'"),
        ("", "game takes bach_or_stravinsky, .*, not ''"),
        ("ipd_mlp", "game takes bach_or_stravinsky, .*, not 'ipd_mlp'"),
        ("ipd+", r"game takes bach_or_stravinsky, .*, not 'ipd\+'"),
        ("a\nb", r"game takes bach_or_stravinsky, .*, not 'a\\nb'"),
        (
            "ipd+probes=3",
            r"game 'ipd\+probes=3': probes is unknown; variants are \+mlp, .*swapped",
        ),
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
        (
            "logistic+length=9",
            "length takes an iterated game, and episodes=N before it",
        ),
        (
            "ipd+length=9+episodes=8",
            "length takes an iterated game, and episodes=N before it",
        ),
        ("ipd+mlp=3", "mlp takes no value"),
        ("ipd+skewed=1", "skewed takes no value"),
        ("imp+swapped=yes", "swapped takes no value"),
        ("ipd+memory=3", "memory takes a number from 1 to 2"),
        ("ipd+memory", "memory takes a number from 1 to 2"),
        ("ipd+memory=1.5", "memory takes a number from 1 to 2"),
        ("ipd+episodes=0", "episodes takes a number from 1 to"),
        ("ipd+episodes=-1", "episodes takes a number from 1 to"),
        ("ipd+episodes=1000001", "episodes takes a number from 1 to 1e\\+06"),
        ("ipd+episodes=8+length=0", "length takes a number from 1 to"),
        ("ipd+discount=1", "discount takes a number from 0 to 0.999"),
        ("ipd+discount=nan", "discount takes a number from 0 to 0.999"),
        ("ipd+discount=half", "discount takes a number from 0 to 0.999"),
        (
            "ipd+payoffs=1,2",
            r"payoffs takes four numbers with commas \(CC, CD, DC, DD\) or eight",
        ),
        ("ipd+payoffs=1,2,3,x", "payoffs takes a number from -1e\\+06 to 1e\\+06"),
        ("ipd+payoffs=1,2,3,inf", "payoffs takes a number from -1e\\+06 to 1e\\+06"),
    ],
)
def test_a_variant_that_is_no_good_is_refused(name, said):
    with pytest.raises(ValueError, match=said) as error:
        games.find_game(name)
    assert "\n" not in str(error.value)


def simulated_distribution(x, discount, rounds=1000, memory=1):
    """Follow the chain round by round, keeping the last rounds as (own, other) pairs of letters, player 1's first."""
    states, shares = (
        ("DD", "CD", "DC", "CC"),
        dict.fromkeys(("DD", "CD", "DC", "CC"), 0.0),
    )
    pasts = [
        "init",
        *(
            " ".join(past)
            for m in range(memory)
            for past in itertools.product(states, repeat=m + 1)
        ),
    ]
    policy = [
        dict(zip(pasts, 1 / (1 + np.exp(-np.float64(row))), strict=True)) for row in x
    ]
    now = {(): 1.0}
    for round_ in range(rounds):
        after = {}
        for past, chance in now.items():
            one = policy[0][" ".join(past) or "init"]
            two = policy[1][
                " ".join(state[::-1] for state in past) or "init"
            ]  # player 2 sees the letters reversed
            for s in states:
                step = (
                    chance
                    * (one if s[0] == "C" else 1 - one)
                    * (two if s[1] == "C" else 1 - two)
                )
                shares[s] += (1 - discount) * discount**round_ * step
                longer = (*past, s)[-memory:]
                after[longer] = after.get(longer, 0.0) + step
        now = after
    return np.array([shares[s] for s in states])


def test_policies_of_other_kinds_are_what_they_should_be():
    """Parameters, log-odds, step sizes, and what models see of them."""
    find, random = games.find_game, np.random.default_rng(0)
    by_hand = {  # n, and the log-odds of a policy
        "ipd": (5, lambda x: x),
        "ipd+skewed": (
            5,
            lambda x: (np.eye(5) - 2 * np.outer([0, 1, 1, 1, 1], [1, 0, 0, 0, 0])) @ x,
        ),
        "ipd+mlp": (
            129,
            lambda x: [
                one_by_one(x, own, other)
                for own, other in ("--", "DD", "CD", "DC", "CC")
            ],
        ),
    }

    def one_by_one(x, own, other):
        w, b, v = x[:96].reshape(2, 3, 16), x[96:112], x[112:128]
        return (
            v @ np.tanh(w[0, "-CD".index(own)] + w[1, "-CD".index(other)] + b) + x[128]
        )

    for name, (n, log_odds) in by_hand.items():
        game, x = find(name), random.normal(size=(2, n)).astype(np.float32)
        assert (game.n, game.name) == (n, name) and game.symmetric
        assert (
            game.lr == (1 if name == "ipd+mlp" else 2)
            and game.labels == GAMES["ipd"].labels
        )
        expected = np.array([log_odds(own) for own in x])
        np.testing.assert_allclose(game.log_odds(x), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            game.features(x), 1 / (1 + np.exp(-expected)), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            game.f(x), GAMES["ipd"].f(jnp.array(expected)), rtol=1e-4, atol=1e-4
        )
        np.testing.assert_array_equal(
            game.features(x)[1], game.features(put(x, 0, 0 * x[0]))[1]
        )  # its player's alone
        starts = np.asarray(random_policies(game, 2000))
        if name == "ipd+mlp":
            np.testing.assert_allclose(
                starts.std((0, 1)), np.repeat([1, 1 / 3], [112, 17]), rtol=0.06
            )
        else:  # the very same policies
            expected = random_policies(GAMES["ipd"], 2000)
            np.testing.assert_allclose(
                jax.vmap(game.log_odds)(starts), expected, atol=1e-5
            )
    # What a unit of the network sees of two rounds: the older one's own action first.
    game = find("ipd+memory=2+mlp")
    x = np.zeros((2, game.n), np.float32)
    x[0, 16 * np.arange(12)], x[0, 192 + 16] = (
        0.1 * 2.0 ** np.arange(12) / 100,
        1,
    )  # of the first unit
    places = [
        ["-CD".index(letter) + 3 * i for i, letter in enumerate(past)]
        for past in ("----", "--CD", "DCCD")
    ]
    seen = [game.labels.index(label) for label in ("init", "CD", "DC CD")]
    expected = [np.tanh(sum(0.001 * 2.0**k for k in those)) for those in places]
    np.testing.assert_allclose(game.log_odds(x)[0, np.array(seen)], expected, rtol=1e-5)
    assert (game.n, game.name, len(game.labels)) == (225, "ipd+memory=2+mlp", 21)
    assert (game.lr, find("ipd+memory=2").lr, find("ipd+memory=2").n) == (1, 8, 21)
    network = find("ipd+payoffs=0,-1,1,-100+discount=0.5+mlp")
    x = network.init(jax.random.key(0))
    table = find("ipd+payoffs=0,-1,1,-100+discount=0.5")
    np.testing.assert_allclose(network.f(x), table.f(network.log_odds(x)), rtol=1e-5)
    # In the contribution game policies start close to even chances, networks less so.
    for variant, factor in (
        ("", 0.1),
        ("+memory=2", 0.1),
        ("+skewed", 0.1),
        ("+mlp", 0.25),
    ):
        x, ipds = (
            find(name + variant).init(jax.random.key(2))
            for name in ("contribution", "ipd")
        )
        np.testing.assert_allclose(x, factor * ipds, rtol=1e-5)


def test_a_swapped_game_has_its_players_exchanged():
    game = BOWL._replace(
        f=lambda x: jnp.stack([x[0, 0], 10 * x[0, 0] + 5 * x[1, 0]]),
        init=lambda key: jnp.array([[1.0], [2.0]]),
        features=lambda x: x * jnp.array([[3.0], [4.0]]),
    )
    swapped, x = games.swapped(game), jnp.array([[7.0], [8.0]])
    np.testing.assert_array_equal(swapped.f(x), [10 * 8 + 5 * 7, 8])
    np.testing.assert_array_equal(swapped.init(None), [[2], [1]])
    np.testing.assert_array_equal(swapped.features(x), [[4 * 7], [3 * 8]])
    assert (
        swapped.rules is None and swapped.sample is None and swapped.name == game.name
    )
    sampled = games.swapped(
        game._replace(sample=lambda key, x: key * game.f(x))
    ).sample(2, x)
    np.testing.assert_array_equal(sampled, 2 * swapped.f(x))
    game, x = games.find_game("imp+skewed+episodes=4"), np.float32([[1] * 5, [2] * 5])
    swapped = games.swapped(game)
    assert swapped.name == game.name
    assert swapped.rules == game.rules._replace(
        own=game.rules.other, other=game.rules.own
    )
    np.testing.assert_array_equal(
        swapped.log_odds(x), [[1, -1, -1, -1, -1], [2, -2, -2, -2, -2]]
    )
    np.testing.assert_array_equal(swapped.f(x), game.f(x[::-1])[::-1])
    returns = games.iterated_returns(swapped.log_odds(x), swapped.rules.payoffs, 0.96)
    np.testing.assert_allclose(swapped.f(x), returns, rtol=1e-6)
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        swapped.sample(key, x), game.sample(key, x[::-1])[::-1]
    )
    assert games.find_game("imp+swapped").rules == games.swapped(GAMES["imp"]).rules
    for game in map(
        games.find_game, ("ultimatum", "imp", "imp+mlp", "logistic", "balduzzi")
    ):  # twice: as it was
        x, twice = game.init(key), games.swapped(games.swapped(game))
        np.testing.assert_array_equal(twice.init(key), x)
        np.testing.assert_array_equal(twice.f(x), game.f(x))
        y = (
            x + 1.0
        )  # whatever else asks the game which parameters it has must say the same in either seat
        apart, swapped = (
            pola.divergence(game, x, y),
            pola.divergence(games.swapped(game), x[::-1], y[::-1])[::-1],
        )
        np.testing.assert_allclose(swapped, apart, rtol=1e-6)


UNBIASED = {  # what is estimated, and the look-ahead step if it is a form of LOLA
    "f": None, "naive": None, "exact": 3.0, "taylor": 20.0, "taylor-stop": 20.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, estimated",
    [
        ("ipd", ("f", "naive")),
        pytest.param("ipd", ("exact", "taylor", "taylor-stop"), marks=slow),
        pytest.param("bach_or_stravinsky", ("f", "naive", "exact"), marks=slow),
        pytest.param(
            "bach_or_stravinsky+memory=2", ("naive", "taylor-stop"), marks=slow
        ),
    ],
)
def test_sampled_returns_and_their_derivatives_are_unbiased(name, estimated):
    """Means of many small estimates, within 4 standard errors: of LOLA what look-ahead adds, over alpha.

    Of the exact form it is unbiased only as far as the imagined step is small or sure.
    """
    game, count = games.find_game(f"{name}+discount=0.7+episodes=32+length=25"), 2000
    x = game.init(jax.random.key(3))

    def all_of_them(f, f_ahead=None):
        def one(what, alpha):
            if alpha is None:
                return f(x) if what == "f" else simultaneous_gradient(f, x)
            looking, not_looking = (
                lola.lola_gradient(f, x, a, what, f_ahead) for a in (alpha, 0.0)
            )
            return (looking - not_looking) / alpha

        return {what: one(what, UNBIASED[what]) for what in estimated}

    def estimate(key):
        return all_of_them(
            *(partial(game.sample, key) for key in jax.random.split(key))
        )

    keys = jax.random.split(jax.random.key(0), (count // 100, 100))
    estimates = jax.jit(lambda keys: jax.lax.map(jax.vmap(estimate), keys))(keys)
    for what, exact in all_of_them(game.f).items():
        each = np.asarray(estimates[what], float).reshape(count, -1)
        errors = (each.mean(0) - np.ravel(exact)) / (each.std(0) / count**0.5)
        assert np.abs(errors).max() < 4, (what, errors)


@slow
def test_how_good_sampled_gradients_are():
    """The cosine of a player's estimated gradient to the exact one, and the error of f, means over random policies.

    Others measured .945 for 128 episodes and .994 for 2048.
    """
    x = random_policies(GAMES["ipd"], 100)
    exact = jax.vmap(
        lambda x: (GAMES["ipd"].f(x), simultaneous_gradient(GAMES["ipd"].f, x))
    )(x)

    def measure(episodes, count):
        sample = games.find_game(f"ipd+episodes={episodes}").sample
        one = lambda pair: (
            sample(*pair),
            simultaneous_gradient(partial(sample, pair[0]), pair[1]),
        )
        pairs = jax.random.split(jax.random.key(1), count), x[:count]
        f, gradient = jax.jit(lambda pairs: jax.lax.map(one, pairs, batch_size=20))(
            pairs
        )
        cosines = [(g * e).sum(-1) / np.linalg.norm(g, axis=-1) / np.linalg.norm(e, axis=-1)
                   for g, e in zip(np.asarray(gradient), np.asarray(exact[1]))]  # fmt: skip
        errors = np.asarray(f - exact[0][:count])
        return np.mean(cosines), errors.mean(), np.sqrt((errors**2).mean())

    cosine, bias, error = measure(128, 100)
    assert abs(cosine - 0.945) < 0.03 and abs(bias) < 0.003 and 0.01 < error < 0.02
    cosine, bias, error = measure(2048, 8)
    assert abs(cosine - 0.994) < 0.01 and abs(bias) < 0.003 and error < 0.006


def test_saturated_policies_and_single_episodes_are_sampled():
    """Tit-for-tat against all D has but one course, without chance: the return is that of so many rounds."""
    x = 10 * jnp.array([[C, D, D, C, C], [D] * 5])
    for game in ("ipd", "imp"):
        for length in (1, 7):
            for episodes in (1, 3):
                sample = games.find_game(
                    f"{game}+episodes={episodes}+length={length}"
                ).sample
                f = partial(sample, jax.random.key(0))
                once, then = np.array(
                    {"ipd": ((-3, 0), (-2, -2)), "imp": ((-1, 1), (1, -1))}[game]
                )
                shares = 0.96 ** np.arange(length) / (0.96 ** np.arange(length)).sum()
                np.testing.assert_allclose(
                    f(x), once * shares[0] + then * shares[1:].sum(), atol=1e-5
                )
                assert np.isfinite(simultaneous_gradient(f, x)).all()


@pytest.mark.parametrize("script", ["naive", pytest.param("lola", marks=slow)])
def test_learners_have_samples_and_those_beside_them_have_not(script):
    """What is sampled here depends on the key alone as a factor of another game's returns: learning by a loop."""
    other, lr = GAMES["stag_hunt"].f, 50.0
    game = GAMES["ipd"]._replace(
        sample=lambda key, x: other(x) * jax.random.uniform(key)
    )
    key = jax.random.key(4)
    key_start, key_fresh = jax.random.split(pair := jax.random.split(key, 3)[1])
    keys = jax.random.split(jax.random.fold_in(pair, 2), 2)

    def lolas(x, key):
        first, second = (partial(game.sample, key) for key in jax.random.split(key))
        return lola.lola_gradient(first, x, 0.9, "taylor", second)

    rule = dict(
        naive=lambda x, key: simultaneous_gradient(partial(game.sample, key), x),
        lola=lolas,
    )[script]
    settings = dict(alphas=(0.9,), variant="taylor") if script == "lola" else {}
    config = SCRIPTS[script].make_config(
        "ipd", lr=lr, eval_steps=2, eval_pairs=3, **settings
    )
    same = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    found = jax.jit(lambda key: SCRIPTS[script].evaluate(key, game, config))(key)
    start = x = shaped = game.init(key_start)
    for step in keys:
        x = x + lr * rule(x, step)
        shaped = shaped + lr * jnp.stack(
            [rule(shaped, step)[0], simultaneous_gradient(game.f, shaped)[1]]
        )
    same(found["policies"][0, 1], x)
    same(found["versus_naive_policies"][0, 1], shaped)
    response = games.best_response(game, x.at[1].set(game.init(key_fresh)[1]), lr, 2)
    same(found["response_policies"][0, 1], response)
    same(found["self_play"][0, 1], game.f(x))
    assert np.abs(x - start).max() > 0.5


def test_a_survey_by_a_rule_that_draws_has_keys_for_every_point():
    step = lambda x, key: x + 0.1 * jax.random.normal(key, x.shape)
    evaluate = partial(
        games.evaluate_game,
        jax.random.key(0),
        GAMES["tandem"],
        step,
        lr=0.1,
        steps=3,
        pairs=2,
    )
    found = evaluate(draws=True)
    assert (
        len(np.unique(found["endpoints"]))
        == len(np.unique(found["field"]))
        == 2 * 29**2
    )
    steps = np.diff(found["trajectories"], axis=1)  # (pair, step, 2)
    assert len(np.unique(np.round(steps, 5))) == steps.size == 2 * 3 * 2


def test_state_distribution_against_a_simulation():
    distribution = jax.jit(games.state_distribution)
    for x in 2 * random_policies(GAMES["ipd"], 4):
        share = distribution(x, 0.96)
        np.testing.assert_allclose(share, simulated_distribution(x, 0.96), atol=1e-5)
    payoffs = np.array([[-2.0, -3, 0, -1], [-2, 0, -3, -1]])
    one, two = (games.memory_one_returns(x, payoffs + added, 0.96) for added in (0, 5))
    np.testing.assert_allclose(two, one + 5, atol=2e-5)


@slow
def test_two_rounds_of_memory_against_a_simulation():
    """And against memory one, where nothing depends on the older round."""
    distribution = jax.jit(games.state_distribution, static_argnums=1)
    with jax.enable_x64(True):
        for x, discount in zip(
            2 * np.random.default_rng(0).normal(size=(4, 2, 21)), (0.0, 0.5, 0.9, 0.96)
        ):
            simulated = simulated_distribution(x, discount, memory=2)
            np.testing.assert_allclose(distribution(x, discount), simulated, atol=1e-9)
            longer = np.concatenate(
                [x, *[x[:, 5:]] * 4], 1
            )  # the two newer of three rounds
            np.testing.assert_allclose(
                distribution(longer, discount), distribution(x, discount), atol=1e-12
            )
            short = np.concatenate(
                [x[:, :5], *[x[:, 1:5]] * 4], 1
            )  # the newer round alone
            np.testing.assert_allclose(
                distribution(short, discount),
                distribution(x[:, :5], discount),
                atol=1e-12,
            )


def test_logistic_game_has_its_two_fixed_points_and_the_saddle():
    f, b = GAMES["logistic"].f, jnp.full((2, 1), 5.0307)
    np.testing.assert_allclose([f(b), f(-b)], [[3.8584] * 2, [-0.0897] * 2], atol=1e-4)
    jacobian = jax.jit(
        jax.jacobian(lambda x: simultaneous_gradient(f, x[:, None])[:, 0])
    )
    for x, stable in ((b, True), (-b, True), (0 * b, False)):
        np.testing.assert_allclose(simultaneous_gradient(f, x), 0, atol=1e-4)
        assert (np.linalg.eigvals(jacobian(x[:, 0])).real.max() < 0) == stable


# games.py: what becomes of policies


@pytest.mark.parametrize(
    "name",
    [
        "logistic",
        "ultimatum",
        *(pytest.param(name, marks=slow) for name in ("imp", "ipd+mlp")),
    ],
)
def test_evaluation_against_a_loop(name):
    """Self-play, best response and shaping from each seat, step by step in Python for one pair and one strength."""
    game, strength, lr, steps, key = (
        games.find_game(name),
        0.7,
        0.3,
        4,
        jax.random.key(7),
    )
    show = game.log_odds if game.iterated else lambda x: x
    naive = jax.jit(partial(simultaneous_gradient, game.f))
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    pair = jax.random.split(key, 3)[1]
    key_start, key_fresh = jax.random.split(pair)
    draw_keys = jax.random.split(jax.random.fold_in(pair, 2), steps)
    start, initial, draws = game.init(key_start), None, name == "ultimatum"
    rules = {"versus_naive": naive}
    if (
        name in ("ultimatum", "imp")
    ):  # beside another learner as well, and with places of the agents' own to start from
        initial = game.init(jax.random.key(8))
        rules["versus_opponent"] = jax.jit(
            lambda x: lola.lola_gradient(game.f, x, 0.9, "taylor")
        )

    def field(f, x, strengths, noise=0.0):  # by both's strengths, and what is drawn
        return lola.lola_gradient(f, x, strengths - 0.5 * strengths[::-1]) + noise

    def step_by(strengths, x, key=None):
        noise = 0.0 if key is None else jax.random.normal(key, x.shape)
        return x + lr * field(game.f, x, jnp.array(strengths), noise)

    def step_beside(agent):
        return partial(step_by, [strength * (agent == 0), strength * (agent == 1)])

    more = {"agent_start": initial, "step_beside": step_beside}
    if "versus_opponent" in rules:
        more["opponent_step"] = lambda x: (
            x + lr * lola.lola_gradient(game.f, x, 0.9, "taylor")
        )
    evaluate = partial(
        games.evaluate_game, lr=lr, steps=steps, pairs=3, draws=draws, **more
    )
    result = jax.jit(
        lambda: evaluate(key, game, partial(step_by, [strength, strength]))
    )()
    field, policies = (
        jax.jit(partial(field, game.f)),
        start if initial is None else initial,
    )
    noise = [jax.random.normal(key, start.shape) * draws for key in draw_keys]
    for t in range(steps):
        policies = policies + lr * field(
            policies, jnp.array([strength, strength]), noise[t]
        )
    same(result["policies"][1], show(policies))
    same(result["self_play"][1], game.f(policies))
    assert ("trajectories" in result, "best_response_2" in result) == (
        game.planar,
        not game.symmetric,
    )
    assert (
        not {"policies_2", "self_play_2", "trajectories_2", "endpoints_2"}
        & result.keys()
    )
    for agent, seat in ((0, ""), (1, "_2"))[: 1 if game.symmetric else 2]:
        other = 1 - agent
        policies, ends = np.array(policies), {}
        response = put(policies, other, game.init(key_fresh)[other])
        strengths = put(np.zeros(2, np.float32), agent, strength)
        for kind, rule in rules.items():
            ends[kind] = np.array(
                start
                if initial is None
                else put(np.array(start), agent, initial[agent])
            )
            for t in range(steps):
                own = np.array(field(ends[kind], strengths, noise[t]))
                ends[kind] += lr * put(own, other, rule(ends[kind])[other])
        for _ in range(steps):
            response = put(
                response, other, response[other] + lr * naive(response)[other]
            )
        ends["best_response"] = response
        table = GAMES[name.split("+")[0]].f if game.iterated else game.f
        if game.iterated:
            rows = 30 * np.array(
                [[1 if k >> bit & 1 else -1 for bit in range(5)] for k in range(32)],
                np.float32,
            )
            tables = np.array(show(policies))
            returns = [float(table(put(tables, other, row))[other]) for row in rows]
            exact = put(tables, other, rows[np.argmax(returns)])
        ends = {kind: show(jnp.array(end)) for kind, end in ends.items()}
        ends |= {"exact_best_response": exact} if game.iterated else {}
        for kind, end in ends.items():
            same(
                result[kind + seat][1], table(jnp.array(end))[np.array([agent, other])]
            )  # the agent first
            ours, end = (
                result[kind.replace("best_", "") + "_policies" + seat][1],
                np.array(end),
            )
            first = (
                1 if kind == "exact_best_response" else 2
            )  # of which there may be several: the agent's alone
            same(ours[:first], end[[agent, other]][:first])


def test_a_rule_is_followed_step_by_step():
    step = lambda x, key: 2 * x + jax.random.normal(key, (2, 3))
    start, key = jnp.ones((2, 3)), jax.random.key(0)
    path = [start]
    for drawn in jax.random.split(key, 4):
        path.append(step(path[-1], drawn))
    np.testing.assert_allclose(games.trajectory(step, start, 4, key), path, rtol=1e-6)
    np.testing.assert_allclose(games.follow(step, start, 4, key), path[-1], rtol=1e-6)
    np.testing.assert_array_equal(
        games.trajectory(lambda x: 2 * x, start, 2), [start, 2 * start, 4 * start]
    )
    np.testing.assert_array_equal(games.follow(lambda x: 2 * x, start, 0), start)
    for agent, other in ((0, 1), (1, 0)):
        both = games.beside(step, lambda x: x - 1, agent)(start, key)
        np.testing.assert_array_equal(both[agent], step(start, key)[agent])
        np.testing.assert_array_equal(both[other], [0, 0, 0])


def best_response_value(policy, own, discount=0.96):
    """What player 2 gets of its best response to a policy, by value iteration; `own` are its payoffs in DD, DC, CD, CC
    as player 1's letters have them."""
    states = ("DD", "CD", "DC", "CC")
    pasts = ["init", *states] + [
        f"{older} {newer}" for older in states for newer in states
    ]
    chance = dict(
        zip(pasts, 1 / (1 + np.exp(-np.float64(policy))))
    )  # of the agent's C, by what it sees
    memory, value = {5: 1, 21: 2}[len(chance)], dict.fromkeys(chance, 0.0)

    def act(past, action):
        def then(state):
            after = " ".join([*past.replace("init", "").split(), state][-memory:])
            return (1 - discount) * own[state] + discount * value[after]

        return chance[past] * then("C" + action) + (1 - chance[past]) * then(
            "D" + action
        )

    for _ in range(500):
        value = {past: max(act(past, action) for action in "CD") for past in chance}
    return value["init"]


def test_best_responses_against_value_iteration():
    """The exact one is as good as any; the gradient one comes close in 2000 steps, and none finds a better."""
    rewards = {"DD": -2, "CD": 0, "DC": -3, "CC": -1}
    game, xs = GAMES["ipd"], random_policies(GAMES["ipd"], 32)
    exact = jax.jit(jax.vmap(lambda x: games.exact_best_response(game, x)))(xs)
    learned = jax.jit(
        jax.vmap(lambda x: games.best_response(game, x.at[1].set(x[0]), 2.0, 2000))
    )(xs)
    returns = jax.jit(jax.vmap(game.f))
    np.testing.assert_array_equal(
        [exact[:, 0], learned[:, 0]], [xs[:, 0]] * 2
    )  # one stands still
    assert set(np.unique(exact[:, 1])) <= {-30.0, 30.0}
    np.testing.assert_allclose(
        returns(exact)[:, 1],
        [best_response_value(x[0], rewards) for x in xs],
        atol=1e-4,
    )
    short, xs = (
        games.find_game("ipd+discount=0.3"),
        3 * xs,
    )  # where it pays to defect after all, beside some
    got = jax.jit(jax.vmap(lambda x: short.f(games.exact_best_response(short, x))))(xs)[
        :, 1
    ]
    np.testing.assert_allclose(
        got, [best_response_value(x[0], rewards, 0.3) for x in xs], atol=1e-4
    )
    gain = returns(exact)[:, 1] - returns(learned)[:, 1]
    assert gain.min() > -1e-4 and gain.max() < 0.02, gain


SURE = np.array(
    list(itertools.product((C, D), repeat=5))
)  # all deterministic policies that see one round


@slow
def test_exact_best_responses_in_long_games():
    """In which rounding makes policy iteration go round in circles; and beside payoffs that are much alike."""
    alike = "ipd+payoffs=1000,998,1001,999+discount=0.99"
    for name in ("ipd+discount=0.999", "chicken+discount=0.999", alike):
        long, policies = games.find_game(name), 2 * random_policies(GAMES["ipd"], 1000)
        policies = policies.at[0, 0].set(
            jnp.array([1.65509, -0.911662, -0.993471, 1.752711, 0.751890])
        )
        ends = jax.jit(jax.vmap(lambda x: games.exact_best_response(long, x)))(policies)
        with jax.enable_x64(True):
            search = jax.vmap(
                lambda x: jax.vmap(lambda y: long.f(x.at[1].set(y)))(jnp.asarray(SURE))[
                    :, 1
                ].max()
            )
            best, got = (
                jax.jit(search)(np.float64(policies)),
                jax.jit(jax.vmap(long.f))(np.float64(ends))[:, 1],
            )
            lost = np.asarray(best - got)
        assert -1e-9 < lost.min() and lost.max() < 1e-6 * np.ptp(long.rules.payoffs), (
            name,
            lost.max(),
        )


@slow
def test_exact_best_responses_that_see_two_rounds():
    """Beside an agent that sees two, those that see one may be worse; beside one that sees one, two are of no use."""
    rewards, xs = (
        {"DD": -2, "CD": 0, "DC": -3, "CC": -1},
        random_policies(GAMES["ipd"], 32),
    )
    exact = jax.jit(
        jax.vmap(lambda x: GAMES["ipd"].f(games.exact_best_response(GAMES["ipd"], x)))
    )(xs)
    wide = games.find_game("ipd+memory=2")
    longer = lambda x: jnp.concatenate(
        [x[..., :5], *[x[..., 1:5]] * 4], -1
    )  # the same policy, seeing two rounds
    respond = jax.jit(jax.vmap(lambda x: games.exact_best_response(wide, x)))
    searched = jax.jit(
        jax.vmap(
            lambda x: jax.vmap(lambda y: wide.f(x.at[1].set(y)))(longer(SURE))[
                :, 1
            ].max()
        )
    )
    xs_2, returns_2 = 2 * random_policies(wide, 16), jax.jit(jax.vmap(wide.f))
    best = returns_2(respond(xs_2))[:, 1]
    np.testing.assert_allclose(
        best, [best_response_value(x[0], rewards) for x in xs_2], atol=1e-4
    )
    short = best - searched(xs_2)
    assert short.min() > -1e-5 and short.max() > 0.1
    np.testing.assert_allclose(
        returns_2(respond(longer(xs)))[:, 1], exact[:, 1], atol=1e-4
    )
    uneven = games.find_game("bach_or_stravinsky+memory=2")  # and player 1 responds
    other = games.swapped(uneven)
    got = jax.jit(
        jax.vmap(lambda x: uneven.f(games.exact_best_response(other, x[::-1])[::-1]))
    )(xs_2)[:, 0]
    rewards = {"DD": 2, "CD": 0, "DC": 0, "CC": 3}
    np.testing.assert_allclose(
        got, [best_response_value(x[1], rewards) for x in xs_2], atol=1e-4
    )


def test_basins_of_a_field_whose_basins_are_known():
    """Steps along sign(x) drive a point out along the diagonal of its quadrant: a quarter of the grid ends at B."""
    step = lambda x: x + 0.5 * jnp.sign(x)
    result = games.evaluate_game(
        jax.random.key(0), GAMES["logistic"], step, lr=0.5, steps=6, pairs=5
    )
    np.testing.assert_allclose(result["basin_fraction"], 14 * 14 / 841, rtol=1e-6)
    np.testing.assert_allclose(
        result["endpoints"][0, -1], (10 + 3, -10 - 3)
    )  # row x_2, column x_1
    start, end = result["trajectories"][:, 0], result["trajectories"][:, -1]
    np.testing.assert_allclose(end, start + 3 * np.sign(start), atol=1e-5)
    np.testing.assert_allclose(
        result["field"], 0.5 * np.sign(games.planar_grid(GAMES["logistic"]))
    )
    np.testing.assert_allclose(
        result["final_returns"],
        jax.vmap(GAMES["logistic"].f)(result["endpoints"].reshape(-1, 2, 1)).mean(0),
        rtol=1e-5,
    )


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "mfos"])
def test_each_script_evaluates_the_step_of_its_own_public_function(script, monkeypatch):
    """`evaluate` hands its rule to `evaluate_game`, for either player. A naive one's gamma is 0."""
    game, config, module = GAMES["imp"], tiny("imp", script), SCRIPTS[script]
    x, key, params = (
        3 * random_policies(game, 1)[0],
        jax.random.key(3),
        None,
    )  # SOS's scale matters there

    def spy(
        asked_key,
        asked,
        step,
        *,
        lr,
        steps,
        pairs,
        step_beside=None,
        opponent_step=None,
        agent_start=None,
        agents=(0, 1),
        draws=0,
    ):
        assert (
            opponent_step is None and agents == (0, 1) and not draws and asked == game
        )
        np.testing.assert_array_equal(
            agent_start, params.policy if script == "maml" else None
        )
        assert (lr, steps, pairs) == (
            config.lr,
            4,
            3,
        ) and asked_key is key  # the same pairs for all
        rules = [step_beside(agent) if step_beside else step for agent in (0, 1)]
        return {
            "step": step(x),
            "beside": jnp.stack([rule(x)[agent] for agent, rule in enumerate(rules)]),
        }

    monkeypatch.setattr(module, "evaluate_game", spy)
    if script in MODELS:
        params = module.model_init(jax.random.key(1), game, config)
    near = partial(pola.divergence, game)
    field = {
        "naive": lambda s: simultaneous_gradient(game.f, x),
        "lola": lambda s: lola.lola_gradient(game.f, x, s),
        "hola": lambda s: hola.hola_gradient(game.f, x, s, 1),
        "sos": lambda s: sos.sos_gradient(game.f, x, s, scale=25.0),
        "pola": lambda s: (
            (pola.pola_step(game.f, x, s, config.beta, near, 9) - x) / config.lr
        ),
        "cola": lambda s: cola.cola_gradient(params, game, x, s),
        "maml": lambda s: (
            params.step_size[:, None] / config.lr * simultaneous_gradient(game.f, x)
        ),
        "meva": lambda s: meva.meva_gradient(
            params, game, x, s, config
        ),  # each model sees both
    }[script]
    if script == "maml":
        params = params._replace(step_size=jnp.array([0.3, 0.8]))
    with mock.patch.multiple(cola, ORDERS=(0, 1), HELD_OUT=4):
        result = module.evaluate(key, *([params] if params else []), game, config)
    sweep = {"naive": [0.0], "maml": [1.0], "cola": config.__dict__.get("eval_alphas"),
             "meva": config.__dict__.get("eval_gammas")}.get(script) or config.alphas  # fmt: skip
    assert result["step"].shape == (len(sweep), 2, 5)
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6 * config.lr)
    for i, strength in enumerate(sweep):
        same(result["step"][i], x + config.lr * field(strength))
        for agent in (0, 1):
            own = np.eye(2)[agent] * strength if script == "meva" else strength
            same(
                result["beside"][i, agent],
                (x + config.lr * field(jnp.array(own)))[agent],
            )


# naive.py, lola.py, hola.py

lola_gradient = jax.jit(
    lola.lola_gradient, static_argnames=("f", "variant", "lookahead")
)
hola_gradient = jax.jit(hola.hola_gradient, static_argnames=("f", "order"))


@pytest.mark.parametrize("variant", [*VARIANTS, "sos"])
def test_every_form_of_lola_stops_on_tandem_where_it_should(variant):
    """At a sum x_1 + x_2 that was worked out by hand for each form of look-ahead by a. SOS does where naive ones do."""
    stop = {
        "sos": lambda a: 1.0,
        "lookahead": lambda a: 1.0,
        "taylor-stop": lambda a: 1 / (1 - 2 * a),
        "taylor": lambda a: (1 - 2 * a) / (1 - 4 * a),
        "exact": lambda a: (1 - 2 * a * (1 - 2 * a)) / (1 - 2 * a) ** 2,
    }[variant]
    gradient = (
        sos.sos_gradient
        if variant == "sos"
        else partial(lola.lola_gradient, variant=variant)
    )
    field = jax.jit(jax.vmap(lambda x, alpha: gradient(games.tandem, x, alpha)))
    x, alphas = (
        random_policies(GAMES["tandem"], 3),
        np.array([0.0, 0.1, 0.2], np.float32),
    )
    for _ in range(200):
        x = x + 0.1 * field(x, alphas)
    np.testing.assert_allclose(
        x.sum((1, 2)), [stop(alpha) for alpha in alphas], atol=1e-4
    )


def tandem_by_cola(a):
    """COLA on Tandem is g(s) = A s + B, s = x_1 + x_2: A and B in closed form."""
    slope = (-(4 * a + 1) + (1 + 8 * a) ** 0.5) / (4 * a**2)
    return slope, 2 / (1 + 2 * a * (1 + a * slope))


def test_lolas_imagined_step_has_returns_of_its_own_if_there_are_two():
    """d/dx_i of f_i + a (d f_i / d x_j) (d g_j / d x_j), in Tandem and balduzzi's game, by hand."""
    x, a = jnp.array([[0.3], [0.7]]), 0.2
    s, (x_1, x_2) = x.sum(), x[:, 0]
    g = np.array(
        [-x_1 - 10 * x_2, -x_2 + 10 * x_1]
    )  # each player's naive gradient in balduzzi's game
    crossed = np.array([10, -10])  # d g_j / d x_i of player i's other
    stopped = 2 - 2 * s + a * -2 * s * crossed
    for variant, expected in (
        ("taylor", stopped - 2 * a * g[::-1]),
        ("taylor-stop", stopped),
    ):
        found = lola.lola_gradient(games.tandem, x, a, variant, games.balduzzi)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def test_hola_on_tandem_is_its_recursion_and_tends_to_cola():
    """So is HOLA(n): d/dx_1 [2 x_1 - (s + a g)^2] = 2 - 2 (s + a g) (1 + a A)."""
    x, a = random_policies(GAMES["tandem"], 1)[0], 0.2  # it converges for a < 3/8
    slope, offset = -2.0, 2.0
    for order in range(50):
        if order < 5:
            expected = jnp.full((2, 1), slope * x.sum() + offset)
            np.testing.assert_allclose(
                hola_gradient(games.tandem, x, a, order), expected, rtol=2e-4
            )
        slope, offset = -2 * (1 + a * slope) ** 2, 2 - 2 * a * offset * (1 + a * slope)
    np.testing.assert_allclose((slope, offset), tandem_by_cola(a), atol=1e-6)


def hola_by_differences(f, i, x, alpha, order):
    """Player i's row of HOLA(n), by nested finite differences."""

    def surrogate(own):
        joint = put(x, i, own)
        if order:
            joint[1 - i] += alpha * hola_by_differences(
                f, 1 - i, joint, alpha, order - 1
            )
        return f(joint)[i]

    return difference(surrogate, x[i])


def lola_by_differences(f, i, x, alpha, variant, lookahead=1):
    """Player i's row of LOLA's forms, by nested finite differences."""
    j = 1 - i

    def step(x):
        ahead = x
        for _ in range(lookahead):
            ahead = put(
                ahead,
                j,
                ahead[j]
                + alpha
                * difference(lambda other: f(put(ahead, j, other))[j], ahead[j]),
            )
        return ahead[j] - x[j]

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


@pytest.mark.parametrize(
    "name", [KINDS[0], *(pytest.param(name, marks=slow) for name in KINDS[1:])]
)
def test_look_ahead_gradients_against_nested_finite_differences(name):
    """In float64, each player with an alpha of its own."""
    game, alpha = GAMES[name], np.array([3.0, 1.0])
    with jax.enable_x64(True):
        compiled = jax.jit(game.f)
        f = lambda x: np.asarray(compiled(x))
        x = np.asarray(random_policies(game, 1, seed=3)[0], np.float64)
        same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        for variant in VARIANTS:
            expected = [lola_by_differences(f, i, x, alpha[i], variant) for i in (0, 1)]
            same(lola_gradient(game.f, x, alpha, variant), expected)
        if game.planar:
            expected = [
                lola_by_differences(f, i, x, alpha[i], "exact", 3) for i in (0, 1)
            ]
            same(lola_gradient(game.f, x, alpha, lookahead=3), expected)
        for order in (0, 1, 2)[: 3 if game.planar else 2]:
            expected = [hola_by_differences(f, i, x, alpha[i], order) for i in (0, 1)]
            same(hola_gradient(game.f, x, alpha, order), expected)
            single = hola_gradient(game.f, x.astype(np.float32), alpha, order)
            np.testing.assert_allclose(single, expected, rtol=1e-3, atol=1e-5)


# sos.py


def sos_by_matrices(derivatives, x, alpha, scale):
    """The directions of the family, with H by finite differences of f's first derivatives; losses are -scale f."""
    n = x[0].size
    alpha, d = np.repeat(np.broadcast_to(alpha, 2), n) / scale, 2 * n
    slopes = lambda v: (
        -scale * np.asarray(derivatives(v.reshape(2, n))).reshape(2, d)
    )  # dL_i / dx
    v = x.ravel()
    own = np.repeat(
        np.eye(2, dtype=bool), n, axis=1
    )  # (2, 2 n), whose parameters these are
    simultaneous = lambda v: (slopes(v) * own).sum(0)
    xi, H = (
        simultaneous(v),
        np.stack([difference(lambda v: simultaneous(v)[k], v) for k in range(d)]),
    )
    H_o = np.where(own[0][:, None] == own[0], 0, H)
    A = (H - H.T) / 2
    xi_0 = xi - alpha * (H_o @ xi)
    crossed = slopes(v)[::-1]  # row j has dL_i / dx_j
    chi = np.concatenate(
        [(H[n:, :n].T @ crossed[1, n:]), (H[:n, n:].T @ crossed[0, :n])]
    )
    inner = -(alpha * chi) @ xi_0
    p_1 = 1 if inner >= 0 else min(1, -0.5 * (xi_0 @ xi_0) / inner)
    p_2 = xi @ xi if np.sqrt(xi @ xi) < 0.1 else 1
    sign = np.sign((xi @ H.T @ xi) * (A.T @ xi @ H.T @ xi) / d + 0.1)
    directions = {
        "sos": xi_0 - min(p_1, p_2) * alpha * chi,
        "lookahead": xi_0,
        "consensus": xi + alpha * (H.T @ xi),
        "sga": xi + sign * alpha * (A.T @ xi),
        "extragradient": simultaneous(v - alpha * xi),
        "cgd": np.linalg.inv(np.eye(d) + alpha[:, None] * H_o) @ xi,
        "lss": xi + H.T @ np.linalg.pinv(H, rcond=1e-5) @ xi,
    }
    cases = {("p_1", p_1 < min(1, p_2)), ("p_2", p_2 < min(1, p_1)), ("sign", sign)}
    return {name: -one.reshape(2, n) / scale for name, one in directions.items()}, cases


@pytest.mark.parametrize(
    "name", ["logistic", "tandem", pytest.param("imp", marks=slow)]
)
def test_sos_and_its_family_against_their_formulas(name):
    """In float64, where SOS's criteria bite and where they do not, and both signs of SGA; alphas by player, too."""
    game, cases = GAMES[name], set()
    with jax.enable_x64(True):
        gradient = jax.jit(sos.sos_gradient, static_argnames=("f", "variant"))
        derivatives = jax.jit(jax.jacobian(game.f))
        apart = ((np.array([0.1, 3.0]), 1.0), (np.array([20.0, 4.0]), 25.0))
        for seed, (alpha, scale) in enumerate(
            ((0.1, 1.0), (2.0, 1.0), (20.0, 25.0), (1.0, 0.2), *apart)
        ):
            x = np.asarray(random_policies(game, 1, seed=seed)[0], np.float64)
            expected, those = sos_by_matrices(derivatives, x, alpha, scale)
            for variant in sos.VARIANTS:
                found = gradient(game.f, x, alpha, variant, scale)
                np.testing.assert_allclose(
                    found, expected[variant], rtol=1e-4, atol=1e-6, err_msg=variant
                )
                if np.ndim(alpha) == 0:
                    twice = gradient(
                        game.f, x, np.array([alpha, alpha]), variant, scale
                    )
                    np.testing.assert_array_equal(twice, found)
            cases |= those
    expected = {
        "logistic": {("p_2", True), ("sign", 1)},
        "tandem": {("p_1", True), ("sign", 1)},
    }
    assert {case for case in cases if case[1]} == expected.get(
        name, {("p_2", True), ("sign", 1), ("sign", -1)}
    )


@slow
def test_sos_and_its_family_end_where_published_code_does():
    """On the IPD after 100 steps of 25: the mean of both players' losses, to .03 (standard errors: .004 to .02)."""
    game, x = GAMES["ipd"], random_policies(GAMES["ipd"], 4096)
    losses = dict(
        sos=1.05,
        lookahead=1.95,
        consensus=1.69,
        sga=1.88,
        extragradient=1.97,
        cgd=1.96,
        lss=1.77,
    )
    fields = {
        name: partial(sos.sos_gradient, game.f, alpha=25.0, variant=name, scale=25.0)
        for name in losses
    }
    fields |= {
        "taylor": partial(lola.lola_gradient, game.f, alpha=25.0, variant="taylor")
    }
    fields |= {"naive": partial(simultaneous_gradient, game.f)}
    for name, field in fields.items():
        some = (
            x if name == "lookahead" else x[:512] if name != "lss" else x[:256]
        )  # some take long
        ends = jax.jit(
            jax.vmap(
                lambda x: game.f(games.follow(lambda x: x + 25 * field(x), x, 100))
            )
        )(some)
        expected = (losses | dict(taylor=1.05, naive=1.99))[name]
        np.testing.assert_allclose(-ends.mean(), expected, atol=0.03, err_msg=name)


# pola.py

SKEW = np.eye(5) - 2 * np.outer(
    np.arange(5) > 0, np.arange(5) == 0
)  # from skewed parameters to log-odds
STATES = [(0, 0), (1, 0), (0, 1), (1, 1)]  # actions of both, 1 for C


def plain_returns(x, payoffs, discount=0.96):
    """(2, 5) -> two returns, of complex log-odds, too, by a matrix filled state by state."""
    p = 1 / (1 + np.exp(-x))

    def joint(first, second):
        return [
            (first if a else 1 - first) * (second if b else 1 - second)
            for a, b in STATES
        ]

    transition = np.array(
        [
            joint(p[0, 1 + STATES.index((a, b))], p[1, 1 + STATES.index((b, a))])
            for a, b in STATES
        ]
    )
    weights = (
        (1 - discount)
        * np.array(joint(*p[:, 0]))
        @ np.linalg.inv(np.eye(4) - discount * transition)
    )
    return weights @ [[payoffs[a, b], payoffs[b, a]] for a, b in STATES]


def plain_objective(x, i, own, alpha, beta, payoffs):
    """Of skewed tables, with an imagined step by complex steps, which are exact, and KL by its definition."""
    y, j = x.astype(complex), 1 - i
    y[i] = own
    nudged = [y + 1e-30j * np.outer(np.arange(2) == j, unit) for unit in np.eye(5)]
    y[j] += alpha * np.array(
        [plain_returns(moved @ SKEW.T, payoffs)[j].imag / 1e-30 for moved in nudged]
    )
    kl = 0
    for old, new in zip(1 / (1 + np.exp(-SKEW @ x[i])), 1 / (1 + np.exp(-SKEW @ own))):
        kl += old * np.log(old / new) + (1 - old) * np.log((1 - old) / (1 - new))
    return plain_returns(y.real @ SKEW.T, payoffs)[i] - beta * kl


def contribution(factor):
    """A player's payoffs by counting who gives."""
    return {(a, b): factor * (a + b) / 2 - a for a, b in STATES}


def test_polas_objective_and_its_gradient_against_a_plain_one():
    rng, game = np.random.default_rng(0), games.find_game("contribution+skewed")
    plain = partial(plain_objective, payoffs=contribution(1.33))
    with jax.enable_x64(True):
        objective = partial(
            pola.pola_objective, game.f, distance=partial(pola.divergence, game)
        )
        value = jax.jit(jax.value_and_grad(objective, argnums=2), static_argnums=1)
        for i, alpha, beta in [(0, 12.0, 0.3), (1, 3.0, 2.0), (1, 0.0, 0.1)]:
            x, own = rng.normal(size=(2, 5)), rng.normal(size=5)
            found, gradient = value(jnp.asarray(x), i, own, alpha, beta)
            np.testing.assert_allclose(found, plain(x, i, own, alpha, beta), rtol=1e-10)
            ahead, behind = (
                [plain(x, i, own + h * unit, alpha, beta) for unit in np.eye(5)]
                for h in (1e-5, -1e-5)
            )
            np.testing.assert_allclose(
                gradient, np.subtract(ahead, behind) / 2e-5, atol=1e-8
            )


@partial(jax.jit, static_argnames="game")
def step_of(game, x, alpha, beta):
    return pola.pola_step(
        game.f, x, alpha, beta, partial(pola.divergence, game), 20000, 1e-9
    )


def test_new_policies_are_maxima_that_move_with_beta_and_go_with_their_players():
    game, x = GAMES["contribution"], np.random.default_rng(1).normal(size=(2, 5))
    alphas = np.array([20.0, 5.0])
    with jax.enable_x64(True):
        x, y = jnp.asarray(x), np.array(step_of(game, x, alphas, 0.1))
        objective = partial(
            pola.pola_objective,
            game.f,
            beta=0.1,
            distance=partial(pola.divergence, game),
        )
        gradient = jax.jit(jax.value_and_grad(objective, 2))
        for i in (0, 1):
            value, slope = gradient(x, i, y[i], alphas[i])
            assert (
                np.abs(slope).max()
                < 1e-8
                < 1e-3
                < np.abs(gradient(x, i, x[i], alphas[i])[1]).max()
            )
            for direction in np.vstack([np.eye(5), -np.eye(5)]):
                assert gradient(x, i, y[i] + 0.05 * direction, alphas[i])[0] < value
        np.testing.assert_allclose(
            step_of(game, x[::-1], alphas[::-1], 0.1)[::-1], y, atol=1e-5
        )
        moved = [
            np.abs(step_of(game, x, np.full(2, 20.0), beta) - x).max()
            for beta in (0.1, 10, 1e9)
        ]
        assert moved[0] > 10 * moved[1] > 0 and moved[2] < 1e-8
        g, p = games.simultaneous_gradient(game.f, jnp.asarray(x)), 1 / (1 + np.exp(-x))
        found = 1e3 * (step_of(game, x, np.zeros(2), 1e3) - x)
        np.testing.assert_allclose(
            found, g / p / (1 - p), rtol=1e-2
        )  # a small step is the natural gradient's


def test_policies_climb_to_the_top_that_is_uphill_from_where_they_are():
    f = lambda x: -((x[:, 0] ** 2 - 1) ** 2)
    y = pola.pola_step(
        f, jnp.array([[0.5], [-0.5]]), 0.0, 1e-3, lambda x, y: ((y - x) ** 2).sum(1) / 2
    )
    np.testing.assert_allclose(y, [[1], [-1]], atol=1e-3)
    # Uphill without end: steps of 1 and 2, after that which finds the slope.
    free = lambda x, y: jnp.zeros(2)
    np.testing.assert_allclose(
        pola.pola_step(lambda x: x[:, 0], jnp.zeros((2, 1)), 0.0, 0.0, free, 3),
        [[3], [3]],
    )


def test_what_policies_are_apart_by():
    x, y = jnp.zeros((2, 1)), jnp.array([[1.0], [2.0]])
    np.testing.assert_allclose(pola.divergence(GAMES["logistic"], x, y), [0.5, 2])
    kl = [
        np.log(0.5) - 0.5 * np.log(p * (1 - p))
        for p in 1 / (1 + np.exp(-np.array([1, 2])))
    ]
    np.testing.assert_allclose(
        pola.divergence(GAMES["matching_pennies"], x, y), kl, rtol=1e-5
    )
    x, y = (jnp.tile(row, (1, 21)) for row in (x, y))
    np.testing.assert_allclose(
        pola.divergence(games.find_game("imp+memory=2"), x, y),
        21 * np.array(kl),
        rtol=1e-5,
    )


@slow
def test_how_tit_for_tat_is_searched_for(tmp_path, capsys):
    """Each with its own settings, for each factor: a step by hand. And the command, which writes what is read again."""
    for algorithm in ("pola", "lola"):
        found = plots.search_with(
            algorithm,
            "tables",
            np.float32([1.33, 1.1]),
            np.float32([[5, 0.5], [0.1, 3]]),
            2,
            9,
        )
        assert found.shape == (2, 9, 2)
        for k, (factor, alpha, other) in enumerate(((1.33, 5, 0.1), (1.1, 0.5, 3))):
            game = games.find_game(
                f"contribution+payoffs={factor - 1},{factor / 2 - 1},{factor / 2},0"
            )
            step = {
                "pola": lambda x: pola.pola_step(
                    game.f, x, 25 * alpha, other / 25, partial(pola.divergence, game)
                ),
                "lola": lambda x: (
                    x + 25 * other * lola.lola_gradient(game.f, x, 25 * alpha)
                ),
            }[algorithm]
            xs = jax.vmap(GAMES["contribution"].init)(
                jax.random.split(jax.random.key(0), 9)
            )
            for t in range(2):
                xs = jax.jit(jax.vmap(step))(xs)
                expected = jax.vmap(partial(plots.plays_tit_for_tat, game))(xs)
                np.testing.assert_array_equal(found[k, :, t], expected)
    found = np.zeros(
        (4, 3, 5), bool
    )  # of two factors with two settings each: the better of them counts
    found[1, :2, 1] = found[2, 0] = True
    settings = {("pola", "networks"): (5, [[(1, 1), (2, 2)]] * 2)}
    with mock.patch.multiple(
        plots,
        SEARCHES=settings,
        FACTORS=(1.5, 1.7),
        search_with=mock.Mock(return_value=found),
    ):
        results = plots.search_for_tit_for_tat(3)
    np.testing.assert_allclose(results["found"], [[[2 / 3, 0], [1 / 3, 1 / 3]]])
    assert list(results["names"]) == ["POLA, networks"]
    words = plots.command("tit-for-tat_contribution", tmp_path).split()[2:]
    with mock.patch.object(plots, "search_for_tit_for_tat", return_value=results):
        status, out, err = plot(words, capsys)
    assert (
        not status
        and not err
        and "| POLA, networks | 0.67 (0.00) | 0.33 (0.33) |" in out
    )
    runs, _, missing = plots.find(["tit-for-tat_contribution"], tmp_path, exactly=True)
    assert not missing and plots.table_of_searches(runs) in out
    status, _, err = plot(
        ["--table", "tit-for-tat", "--game", "ipd", "--out", str(tmp_path)], capsys
    )
    assert status == 2 and "--game, --protocol: take --table tournament" in err


def test_when_players_have_found_tit_for_tat():
    tit_for_tat = jax.jit(plots.plays_tit_for_tat, static_argnums=0)
    like = games.find_game(
        "contribution+payoffs=1.33,0.665,1.665,1.0"
    )  # all payoffs are larger by 1
    for policy in itertools.product(
        (1e-3, 0.999), (0.1, 0.64, 0.66), (0.1, 0.64, 0.66), (0.1, 0.9), (0.5, 0.999)
    ):
        z = np.log(policy) - np.log1p(-np.array(policy))
        for other in (z, np.array([9.0, -9, -9, 9, 9])):
            x = np.stack([z, other])
            found = (
                max(policy[1:3]) < 0.65
                and np.mean(plain_returns(x, contribution(1.33))) > 0.8 * 0.33
            )
            assert (
                tit_for_tat(GAMES["contribution"], x)
                == tit_for_tat(like, x[::-1])
                == found
            )
    assert not tit_for_tat(like, jnp.full((2, 5), 9.0))  # all-C


# cola.py


def make_model(game="ipd", script="meva", **changes):
    config = tiny(game, script, **changes)
    return SCRIPTS[script].model_init(jax.random.key(1), GAMES[game], config), config


make_cola = partial(make_model, script="cola")


@pytest.mark.parametrize("share_params", [True, False])
def test_the_right_side_of_colas_equation_against_finite_differences(share_params):
    """In float64, with the model's own gradient in it; and both players' rows by one backward pass are right."""
    (params, _), game, alpha = (
        make_cola("ipd", share_params=share_params),
        GAMES["ipd"],
        3.0,
    )
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params
        )
        x = np.asarray(random_policies(game, 1)[0], np.float64)
        model, f = (
            jax.jit(lambda x: cola.cola_gradient(params, game, x, alpha)),
            jax.jit(game.f),
        )

        def surrogate(i, own):
            joint = put(x, i, own)
            return f(put(joint, 1 - i, joint[1 - i] + alpha * model(joint)[1 - i]))[i]

        expected = np.array([difference(partial(surrogate, i), x[i]) for i in (0, 1)])
        (_, right), loss = jax.jit(
            lambda x: (
                cola.both_sides(params, game, x, alpha),
                cola.consistency_loss(params, game, x, alpha),
            )
        )(x)
        np.testing.assert_allclose(right, expected, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(loss, ((model(x) - expected) ** 2).sum(), rtol=1e-5)


@slow
def test_the_gradient_of_the_consistency_loss_goes_through_both_of_its_sides():
    params, _ = make_cola("tandem")
    game, x, alpha = GAMES["tandem"], random_policies(GAMES["tandem"], 1)[0], 0.2

    def two_passes(params, held):
        """The same loss by the Jacobian of the surrogate, its right side with the parameters `held`."""

        def surrogate(x):
            ahead = x + alpha * cola.cola_gradient(held, game, x, alpha)
            return jnp.stack(
                [game.f(x.at[1].set(ahead[1]))[0], game.f(x.at[0].set(ahead[0]))[1]]
            )

        return (
            (
                cola.cola_gradient(params, game, x, alpha)
                - simultaneous_gradient(surrogate, x)
            )
            ** 2
        ).sum()

    for semi_gradient in (False, True):
        loss = lambda p: cola.consistency_loss(p, game, x, alpha, semi_gradient)
        theirs = lambda p: two_passes(p, params if semi_gradient else p)
        ours, expected = jax.jit(lambda p: (jax.grad(loss)(p), jax.grad(theirs)(p)))(
            params
        )
        chex.assert_trees_all_close(ours, expected, rtol=1e-3, atol=1e-6)


@slow
def test_trained_cola_stops_on_tandem_at_its_closed_form():
    game, config = GAMES["tandem"], cola.make_config("tandem", outer_steps=2500)
    params, _ = long_running(lambda key: cola.train(key, game, config))(
        jax.random.key(0)
    )
    grid = games.planar_grid(game).reshape(-1, 2, 1)
    grid = grid[jnp.abs(grid[:, 0, 0] - grid[:, 1, 0]) < 4.5][
        ::7
    ]  # from others the path leaves where it was trained
    for alpha in (0.1, 0.2, 0.3):
        step = lambda x: x + config.lr * cola.cola_gradient(params, game, x, alpha)
        ends = jax.jit(jax.vmap(lambda x: games.follow(step, x, config.eval_steps)))(
            grid
        )
        slope, offset = tandem_by_cola(alpha)
        np.testing.assert_allclose(ends.sum((1, 2)), -offset / slope, atol=1e-2)


@pytest.mark.parametrize("name", [pytest.param("tandem", marks=slow), "balduzzi"])
def test_consistency_is_measured_as_it_is_defined(name):
    (params, _), game, alpha, key = (
        make_cola(name),
        GAMES[name],
        0.2,
        jax.random.key(4),
    )
    measured = jax.jit(partial(cola.evaluate_consistency, game=game))(
        key, params, alpha=alpha
    )
    x = game.init(jax.random.split(key, cola.HELD_OUT)[7])
    ours, right = cola.both_sides(params, game, x, alpha)
    theirs = [hola_gradient(game.f, x, alpha, order) for order in range(4)]
    found = {name: array[..., 7] for name, array in measured.items()}
    same = partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-9)
    same(found["consistency"], ((ours - right) ** 2).sum())
    same(found["squared_norm"], (ours**2).sum())
    same(
        found["hola_consistency"],
        [((b - a) ** 2).sum() for a, b in itertools.pairwise(theirs)],
    )
    same(
        found["hola_cosine"],
        [(ours * g).sum() / jnp.linalg.norm(ours) / jnp.linalg.norm(g) for g in theirs],
    )


@slow
def test_cola_on_four_devices_is_cola_on_one(tmp_path):
    """Each has a share of the batch, and there is one mean of all their gradients."""
    settings = dict(alpha_max=0.5, outer_steps=5)
    words = ["--game", "tandem", *flags(**TINY["cola"] | TINY_EVAL | settings)]
    process = start(tmp_path, *words, script="cola", JAX_NUM_CPU_DEVICES="4")
    out, err = process.communicate(timeout=300)
    assert "4 x cpu" in out, err
    one = run(tmp_path / "one", game="tandem", script="cola", **settings)
    with np.load(tmp_path / "results/cola_tandem.npz") as four:
        for name in ("loss", "gradient_norm", "params/readout/w", "field"):
            np.testing.assert_allclose(four[name], one[name], rtol=1e-3, atol=1e-5)


# meva.py: the pieces

meta_value = jax.jit(meva.meta_value, static_argnames="game")
meta_quantiles = jax.jit(meva.meta_quantiles, static_argnames="game")


@pytest.mark.parametrize("script", TRAINED)
@pytest.mark.parametrize(
    "layer_norm, last", [(True, "tanh"), (False, "tanh"), (True, "gelu")]
)
def test_network_is_the_one_of_appendix_d(script, layer_norm, last):
    """An independent forward pass in numpy, with blocks, gates, normalisation and flipped signs written out."""
    game, x = GAMES["ipd"], np.asarray(random_policies(GAMES["ipd"], 1)[0])
    params, _ = make_model(
        script=script,
        blocks=2,
        share_params=False,
        layer_norm=layer_norm,
        last_activation=last,
    )
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape),
        params,
    )

    def normalised(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-6) if layer_norm else x

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def mlp(p, x, last):
        h = gelu(normalised(x @ p["first"]["w"] + p["first"]["b"]))
        for block in p["blocks"]:
            gate = 1 / (1 + np.exp(-block["gate"]))
            inner = gelu(normalised(h @ block["in"]["w"] + block["in"]["b"]))
            h = gate * h + (1 - gate) * (inner @ block["out"]["w"] + block["out"]["b"])
        return last(normalised(h @ p["last"]["w"] + p["last"]["b"]))

    def forward(p, given, last, signs):
        seen = 1 / (1 + np.exp(-x))
        z = [mlp(p.embed, np.append(seen[i], given[i]), gelu) for i in (0, 1)]
        h = [mlp(p.combine, np.concatenate([z[i], z[1 - i]]), last) for i in (0, 1)]
        return np.array(
            [signs[i] * h[i] @ p.readout["w"] + p.readout["b"] for i in (0, 1)]
        )

    one, two = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    gamma, signs = (
        np.array([0.3, 0.8]),
        1.0 - 2.0 * (np.arange(16).reshape(2, 8) % 3 == 0),
    )
    last = dict(tanh=np.tanh, gelu=gelu)[last]
    given = (
        (gamma, last, signs)
        if script == "meva"
        else ([0.4, 0.4], last, np.ones((2, 8)))
    )  # alpha 4 of 10

    def flipped_quantiles(params):
        z = meva.embed(params, game, x, gamma)
        return meva.combine(params, z, z[::-1], signs)

    plain = given
    if script == "meva":  # signs are for one model; the pair's quantiles have none
        np.testing.assert_allclose(
            flipped_quantiles(params[0]), forward(one, *given), atol=1e-5
        )
        plain = (gamma, last, np.ones((2, 8)))
    model = {
        "meva": lambda params: meva.meta_quantiles(params, game, x, gamma),
        "cola": lambda params: cola.cola_gradient(params, game, x, 4.0),
    }[script]
    np.testing.assert_allclose(
        model(params[0]), forward(one, *plain), atol=1e-5
    )  # shared by both players
    np.testing.assert_allclose(
        model(params), [forward(one, *plain)[0], forward(two, *plain)[1]], atol=1e-5
    )


def test_lambda_returns_against_a_loop():
    k, quantiles, lam, rng = 5, 3, 0.7, np.random.default_rng(0)
    rewards, values, gamma = (
        rng.normal(size=(k, 2)),
        rng.normal(size=(k, 2, quantiles)),
        np.array([0.4, 0.9]),
    )
    expected = np.zeros((k, 2, quantiles))
    for i, q in np.ndindex(2, quantiles):
        target = values[k - 1, i, q]
        for t in reversed(range(k)):
            mixed = (1 - lam) * values[t, i, q] + lam * target
            target = expected[t, i, q] = (1 - gamma[i]) * rewards[t, i] + gamma[
                i
            ] * mixed
    np.testing.assert_allclose(
        meva.lambda_returns(rewards, values, gamma, lam), expected, atol=1e-5
    )
    standing = np.broadcast_to(
        rewards[0, :, None], values.shape
    )  # App. A: V = f where x does not move
    np.testing.assert_allclose(
        meva.lambda_returns(standing[..., 0], standing, gamma, lam), standing, atol=1e-5
    )


def test_quantile_loss_against_a_loop():
    predictions, targets = 2 * np.random.default_rng(0).normal(size=(2, 6, 5))
    for prediction, target, loss in zip(
        predictions, targets, meva.quantile_loss(predictions, targets)
    ):
        expected = 0.0
        for i, j in np.ndindex(5, 5):
            error = target[j] - prediction[i]
            huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
            expected += abs((i + 0.5) / 5 - (error < 0)) * huber / 5
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def stretches(monkeypatch, state, game, config, key, step=meva.outer_step):
    """What one outer loop (or a chunk of one) hands to `update`: xs (stretch, batch, k + 1, 2, n), gammas (.., .., 2).

    Instead of being updated, the parameters are then multiplied by 1.2, so that theta tells which update it stems from.
    """
    seen = []

    def spy(state, game, xs, gamma, config, keys):
        jax.debug.callback(
            lambda *drawn: seen.append(tuple(map(np.array, drawn))),
            xs,
            gamma,
            ordered=True,
        )
        params = jax.tree.map(lambda leaf: 1.2 * leaf, state.params)
        return state._replace(params=params), dict.fromkeys(
            ("loss", "td_error", "gradient_norm"), jnp.zeros(())
        )

    monkeypatch.setattr(meva, "update", spy)
    new, _ = jax.jit(lambda key, state: step(key, state, game, config))(key, state)
    jax.effects_barrier()
    assert new.step == state.step + 1
    return map(np.array, zip(*seen))


OPPONENTS = [
    pytest.param(*case, marks=slow)
    for case in (("V", "self"), ("U", "lola"), ("V", "naive"))
]


@pytest.mark.parametrize("form, opponent", [("U", "self"), *OPPONENTS])
def test_an_outer_loop_against_plain_loops(form, opponent):
    """Algorithm 1 with exploration and every technique, or Sec. 3.3 with Eq. 7's both sides, in float64.

    Loops over stretches, trajectories, players, steps and quantiles call nothing of ours but `meta_value` and `f`, and
    differentiate one player's number at a time. Flipped units are flipped rows of the readout; one quantile is the
    meta-value of a model whose readout has that column alone. An opponent's row is `lola_gradient`'s, its gamma 0.
    """
    explore, agents = form == "U", (0, 1) if opponent == "self" else (0,)
    settings = (
        dict(target_inertia=0.9, bootstrap=0.6, semi_gradient=True, layer_norm=True)
        if explore
        else {}
    )
    settings |= dict(
        batch_size=2,
        rollout_length=4,
        stride=2,
        quantiles=2,
        hidden=4,
        flip_prob=0.25,
        model_lr=0.01,
    )
    game = GAMES["imp" if explore else "logistic"]
    with jax.enable_x64(True):
        settings |= dict(
            opponent=opponent, alpha=0.7, variant="taylor-stop" if explore else "exact"
        )
        settings |= dict(normalized_step=opponent == "lola", weight_decay=0.1)
        config = tiny(game.name, form=form, explore=explore, **settings)
        config = dataclasses.replace(config, share_params=True)
        state, other = (
            meva.train_init(jax.random.key(seed), game, config) for seed in (0, 1)
        )
        state = state._replace(target_params=other.params if explore else state.params)
        new, metrics = jax.jit(lambda key: meva.outer_step(key, state, game, config))(
            jax.random.key(5)
        )

        key_x, key_gamma, key_signs, key_stretches = jax.random.split(
            jax.random.key(5), 4
        )
        xs = [game.init(key) for key in jax.random.split(key_x, 2)]
        are_agents = np.array([1.0, opponent == "self"])
        draw_gamma = lambda key: (
            np.sin(np.pi / 2 * np.asarray(jax.random.uniform(key, (2, 2)))) ** 2
            * are_agents
        )
        held_gamma = draw_gamma(key_gamma)
        signs = np.where(jax.random.bernoulli(key_signs, 0.25, (2, 2, 4)), -1.0, 1.0)
        with_readout = lambda model, change: dataclasses.replace(
            model, readout=jax.tree.map(change, model.readout)
        )
        flipped = lambda model, row: with_readout(
            model, lambda w: w * row[:, None] if w.ndim == 2 else w
        )
        quantile = jax.jit(
            lambda model, x, gamma, i, m: meva.meta_value(
                with_readout(model, lambda w: w[..., m : m + 1]), game, x, gamma)[i],
            static_argnums=(3, 4),
        )  # fmt: skip
        slope = jax.jit(
            lambda model, x, gamma, i: jax.grad(
                lambda x: meva.meta_value(model, game, x, gamma)[i]
            )(x)[i],
            static_argnums=3,
        )
        naive_slope = jax.jit(
            lambda x, i: jax.grad(lambda x: game.f(x)[i])(x)[i], static_argnums=1
        )
        alpha = config.alpha if opponent == "lola" else 0.0
        rule = jax.jit(
            lambda x: lola.lola_gradient(game.f, x, alpha, config.variant)[1]
        )

        params, target, explorer, seen = (
            state.params,
            state.target_params,
            state.params,
            [],
        )
        first = second = jax.tree.map(jnp.zeros_like, params)
        for count, key in enumerate(jax.random.split(key_stretches, 2), 1):
            gammas, paths = draw_gamma(key), []
            for b in (0, 1):
                for _ in range(2 if explore else 0):
                    rows = [
                        slope(flipped(explorer, signs[b, i]), xs[b], held_gamma[b], i)
                        for i in (0, 1)
                    ]
                    rows = rows if opponent == "self" else [rows[0], rule(xs[b])]
                    xs[b] = xs[b] + config.lr * jnp.stack(rows)
                path = [xs[b]]
                for _ in range(2):
                    rows = [slope(params, path[-1], gammas[b], i) for i in (0, 1)]
                    if form == "U":
                        weight = 1 - gammas[b] * config.normalized_step
                        rows = [
                            weight[i] * naive_slope(path[-1], i)
                            + gammas[b, i] * rows[i]
                            for i in (0, 1)
                        ]
                    rows = rows if opponent == "self" else [rows[0], rule(path[-1])]
                    path.append(path[-1] + config.lr * jnp.stack(rows))
                xs[b] = xs[b] if explore else path[-1]
                paths.append(path)

            def mean_loss(params):
                losses, errors = [], []
                for b, i in itertools.product((0, 1), agents):
                    path, gamma = paths[b], gammas[b]
                    model = target if explore else params
                    ahead = [
                        [quantile(model, x, gamma, i, m) for m in (0, 1)] for x in path
                    ]
                    targets = ahead[2]
                    for t in (1, 0):
                        reward = game.f(path[t + 1] if form == "U" else path[t])[i]
                        lam = config.bootstrap
                        mixed = [
                            (1 - lam) * ahead[t + 1][m] + lam * targets[m]
                            for m in (0, 1)
                        ]
                        targets = [
                            (1 - gamma[i]) * reward + gamma[i] * mixed[m]
                            for m in (0, 1)
                        ]
                        found = [quantile(params, path[t], gamma, i, m) for m in (0, 1)]
                        loss = 0.0
                        for m, n in itertools.product((0, 1), (0, 1)):
                            error = targets[n] - found[m]
                            huber = jnp.where(
                                jnp.abs(error) < 1, error**2 / 2, jnp.abs(error) - 0.5
                            )
                            loss += jnp.abs((0.25, 0.75)[m] - (error < 0)) * huber / 2
                        losses += [loss]
                        errors += [jnp.abs(sum(targets) - sum(found)) / 2]
                return jnp.mean(jnp.stack(losses)), jnp.mean(jnp.stack(errors))

            (loss, error), gradient = jax.jit(
                jax.value_and_grad(mean_loss, has_aux=True)
            )(params)
            norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
            seen += [(loss, error, norm)]
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
            second = jax.tree.map(
                lambda v, g: config.adam_b2 * v + (1 - config.adam_b2) * g**2,
                second,
                gradient,
            )

            def moved(p, m, v):
                step = (
                    m
                    / (1 - 0.9**count)
                    / (np.sqrt(v / (1 - config.adam_b2**count)) + 1e-8)
                )
                return p - config.model_lr * (step + 0.1 * p)

            params = jax.tree.map(moved, params, first, second)
            rho = config.target_inertia
            target = jax.tree.map(
                lambda bar, p: rho * bar + (1 - rho) * p, target, params
            )
        same = partial(chex.assert_trees_all_close, rtol=1e-7, atol=1e-9)
        same((new.params, new.target_params), (params, target))
        same(
            [metrics[name] for name in ("loss", "td_error", "gradient_norm")],
            list(np.mean(seen, 0)),
        )
        assert new.step == 1


@pytest.mark.parametrize(
    "form, opponent", [("V", "self"), ("U", "self"), ("U", "lola")]
)
def test_what_policies_follow(form, opponent):
    """Eq. 6 and Sec. 4.1 written out. A model trained beside an opponent has seen others with a gamma of 0 alone."""
    game = GAMES["ipd"]
    config = tiny("ipd", form=form, opponent=opponent)
    params = meva.model_init(jax.random.key(0), game, config)
    x = random_policies(game, 1)[0]
    gamma = jnp.array([0.3, 0.8])

    @partial(jax.jit, static_argnums=0)
    def own_slope(i, gamma):
        return jax.grad(lambda x: meva.meta_value(params, game, x, gamma)[i])(x)[i]

    seen = [gamma, gamma]
    if opponent != "self":
        seen = [jnp.array([0.3, 0]), jnp.array([0, 0.8])]
    slopes = np.stack([own_slope(i, seen[i]) for i in (0, 1)])
    naive = np.asarray(simultaneous_gradient(game.f, x))
    weights = np.array([[0.3], [0.8]])
    for normalized, factor in ((False, 1), (True, 1 - weights)):
        expected = factor * naive + weights * slopes if form == "U" else slopes
        changed = dataclasses.replace(config, normalized_step=normalized)
        found = jax.jit(lambda: meva.meva_gradient(params, game, x, gamma, changed))()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@slow
@pytest.mark.parametrize("name", ["ultimatum", "ultimatum+swapped"])
def test_beside_an_opponent_the_model_is_player_1s(name, monkeypatch):
    """And the opponent's steps are those of player 2: in training, on the curve, and in evaluation."""
    game = games.find_game(name)
    settings = dict(rollout_length=4, stride=4, outer_steps=1, alpha=3.0)
    config, key = tiny(name, opponent="lola", **settings), jax.random.key(0)
    state = meva.train_init(key, game, config)
    assert isinstance(state.params, meva.Model)
    chunk = partial(meva.train_chunk, count=1)
    ((path,), (gamma,)) = stretches(monkeypatch, state, game, config, key, step=chunk)
    assert (gamma[:, 1] == 0).all() and (gamma[:, 0] > 0).all()
    fixed = meva.draw_gammas(key, dataclasses.replace(config, fixed_gamma=0.5))
    np.testing.assert_array_equal(fixed, [(0.5, 0.0)] * 4)

    def own_row(x, gamma):
        return meva.meva_gradient(state.params, game, x, gamma, config)[0]

    def other_row(x):
        return lola.lola_gradient(game.f, x, 3.0)[1]

    moved = (path[:, 1:] - path[:, :-1]) / config.lr  # (batch, k, 2, n)
    own = jax.jit(jax.vmap(jax.vmap(own_row, (0, None))))(path[:, :-1], gamma)
    other = jax.jit(jax.vmap(jax.vmap(other_row)))(path[:, :-1])
    np.testing.assert_allclose(moved[:, :, 0], own, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(moved[:, :, 1], other, rtol=1e-2, atol=1e-4)

    # What is said of training: returns beside the opponent.
    ones = dict.fromkeys(("loss", "td_error", "gradient_norm"), jnp.ones(()))
    with mock.patch.object(meva, "update", lambda state, *_: (state, ones)):
        _, curves = jax.jit(lambda state: chunk(key, state, game, config))(state)
    starts = jax.vmap(game.init)(jax.random.split(jax.random.fold_in(key, 2), 32))

    def pair_step(x):
        return x + config.lr * jnp.stack([own_row(x, 0.95), other_row(x)])

    ends = jax.jit(jax.vmap(lambda x: games.follow(pair_step, x, 200)))(starts)
    expected = jax.vmap(game.f)(ends)[:, 0].mean()
    np.testing.assert_allclose(curves["self_play_curve"], [expected], rtol=0.02)
    np.testing.assert_allclose(curves["loss"], [1.0])

    # Evaluation: there is no self-play, as there is no model of player 2.
    results = jax.jit(lambda: meva.evaluate(key, state.params, game, config))()
    assert "self_play" not in results and not any(
        name.endswith("_2") for name in results
    )
    i = config.eval_gammas.index(0.9)
    for b, pair_key in enumerate(jax.random.split(key, config.eval_pairs)):
        x = game.init(jax.random.split(pair_key)[0])
        for _ in range(config.eval_steps):
            rows = [own_row(x, jnp.array([0.9, 0.0])), other_row(x)]
            x = x + config.lr * jnp.stack(rows)
        np.testing.assert_allclose(
            results["versus_opponent"][i, b], game.f(x), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(results["policies"][i, b], x, rtol=1e-3, atol=1e-4)

    # Values on the grid are those of who looks ahead beside somebody who does not.
    at = games.planar_grid(game)[3, 5][:, None]
    value = meva.meta_value(state.params, game, at, jnp.array([0.9, 0.0]))
    np.testing.assert_allclose(results["values"][i, 3, 5], value, rtol=1e-4, atol=1e-5)


@slow
@pytest.mark.parametrize("opponent", ["naive", "lola"])
def test_a_model_is_trained_on_samples_wherever_it_asks_for_returns(opponent):
    """And its opponent in exploration, too. Samples that are another game's returns do as that game's exact ones."""
    config = tiny(
        "ipd", opponent=opponent, variant="exact", alpha=7.0, form="U", explore=True
    )
    exact, key = GAMES["stag_hunt"], jax.random.key(0)
    sampled = GAMES["ipd"]._replace(sample=lambda key, x: exact.f(x))
    state = meva.train_init(key, exact, config)
    step = lambda game: jax.jit(lambda: meva.outer_step(key, state, game, config))()
    chex.assert_trees_all_close(step(sampled), step(exact), rtol=1e-5)


def test_every_estimate_in_training_has_a_key_of_its_own():
    config, keys = tiny("ipd"), jax.random.split(jax.random.key(0), 2)
    sampled = GAMES["ipd"]._replace(
        sample=lambda key, x: jnp.full(2, jax.random.uniform(key))
    )
    lists = [
        meva.sample_keys(key, sampled, config) for key in keys
    ]  # (stretch, purpose, batch)
    assert (
        len(np.unique(jax.random.key_data(jnp.array(lists)).reshape(-1, 2), axis=0))
        == 2 * 3 * config.batch_size
    )
    assert meva.sample_keys(keys[0], GAMES["ipd"], config) == (None, None, None)
    params, xs = (
        meva.model_init(keys[0], sampled, config),
        jnp.zeros((config.stride + 1, 2, 5)),
    )
    with mock.patch.object(
        meva, "lambda_returns", side_effect=meva.lambda_returns
    ) as spy:
        meva.td_loss(
            params, params, sampled, xs, jnp.array([0.5, 0.9]), config, keys[0]
        )
    assert len(
        np.unique(rewards := spy.call_args.args[0])
    ) == config.stride and rewards.shape == (config.stride, 2)


def test_gammas_and_policies_follow_their_distributions(monkeypatch):
    """Beta(1/2, 1/2) for each player by itself, or the one that is fixed, and policies from the game's `init`."""
    for fixed in (None, 0.5):
        settings = dict(batch_size=10000, rollout_length=2, stride=1, fixed_gamma=fixed)
        game, config = GAMES["logistic"], tiny("logistic", **settings)
        state = meva.train_init(jax.random.key(0), game, config)
        xs, gammas = stretches(monkeypatch, state, game, config, jax.random.key(0))
        assert not fixed or (gammas == 0.5).all()
        for quantile in () if fixed else (0.1, 0.25, 0.5, 0.75, 0.9):
            share = (
                2 / np.pi * np.arcsin(np.sqrt(quantile))
            )  # the distribution function of Beta(1/2, 1/2)
            np.testing.assert_allclose(
                (gammas < quantile).mean((0, 1)), share, atol=0.015
            )
        if not fixed:
            np.testing.assert_allclose(
                np.corrcoef([*gammas[0].T, *gammas[1].T]), np.eye(4), atol=0.04
            )
        np.testing.assert_allclose(
            np.quantile(xs[0, :, 0], (0.25, 0.5, 0.75)), (-4, 0, 4), atol=0.2
        )


def test_td_targets_come_from_the_target_network_or_from_both_sides():
    """The gradient by the parameters: none through the target where it is held constant, some where it is not."""
    game, xs, gamma = (
        GAMES["ipd"],
        random_policies(GAMES["ipd"], 4),
        jnp.array([0.3, 0.8]),
    )
    one, two = (meva.model_init(jax.random.key(seed), game, tiny()) for seed in (1, 2))

    def gradient(
        target, **changes
    ):  # by the first layer of model one, with this target network
        loss = lambda params: meva.td_loss(
            params, target, game, xs, gamma, tiny(**changes)
        )[0]
        return jax.jit(jax.grad(loss))(one).embed["first"]["w"]

    own, alone = gradient(one), gradient(one, target_inertia=0.0)
    np.testing.assert_allclose(
        gradient(two, target_inertia=0.0), alone, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        own, alone, rtol=1e-3, atol=1e-6
    )  # one network on both sides, targets held constant
    assert np.abs(gradient(two) - own).max() > 1e-4
    assert (
        np.abs(gradient(one, target_inertia=0.0, semi_gradient=False) - alone).max()
        > 1e-4
    )


# maml.py


@pytest.mark.parametrize("seat", [pytest.param(0, marks=slow), 1])
def test_the_meta_gradient_against_finite_differences_of_a_loop(seat):
    """In float64, of the mean of f(x(1)) to f(x(4)), player by player; the other seat's numbers do not count."""
    game, lr = GAMES["imp"], 1.5
    with jax.enable_x64(True):
        learner = maml.Agents(
            jnp.asarray(random_policies(game, 1)[0], float), jnp.array([0.7, 2.5])
        )
        opponent = np.asarray(random_policies(game, 1, seed=1)[0], float)
        slope = jax.jit(
            lambda x, i: jax.grad(lambda x: game.f(x)[i])(x)[i], static_argnums=1
        )
        returns = jax.jit(game.f)

        def by_loop(numbers):  # the seat's policy and step size, (6,)
            x, total = put(opponent, seat, numbers[:5]), 0.0
            for _ in range(4):
                sizes = put(np.array([lr, lr]), seat, numbers[5])
                x = np.stack([x[i] + sizes[i] * slope(x, i) for i in (0, 1)])
                total += returns(x)[seat] / 4
            return float(total)

        numbers = np.array([*learner.policy[seat], learner.step_size[seat]])
        value, gradient = jax.value_and_grad(maml.meta_return)(
            learner, game, jnp.array(opponent), seat, lr, 4
        )
        np.testing.assert_allclose(value, by_loop(numbers), rtol=1e-9)
        ours = [*gradient.policy[seat], gradient.step_size[seat]]
        np.testing.assert_allclose(
            ours, difference(by_loop, numbers), rtol=1e-6, atol=1e-9
        )
        assert not gradient.policy[1 - seat].any() and not gradient.step_size[1 - seat]


@slow
def test_a_step_of_maml_is_adam_on_the_mean_of_its_opponents():
    """Each seat against opponents of its own, from the game's `init`; it begins with random policies and lr."""
    game, config = GAMES["imp"], tiny("imp", "maml", batch_size=3, lr=0.7)
    state, key = maml.train_init(jax.random.key(4), game, config), jax.random.key(5)
    np.testing.assert_array_equal(state.params.step_size, np.float32([0.7, 0.7]))
    new, metrics = jax.jit(lambda key: maml.outer_step(key, state, game, config))(key)
    keys = jax.random.split(key, (2, 3))
    one = lambda params, seat, b: maml.meta_return(
        params, game, game.init(keys[seat, b]), seat, 0.7, 3
    )
    mean = lambda params: jnp.stack(
        [sum(one(params, seat, b) for b in range(3)) / 3 for seat in (0, 1)]
    )
    np.testing.assert_allclose(metrics["mean_return"], mean(state.params), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], -np.mean(mean(state.params)), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda params: mean(params).mean()))(state.params)
    first = jax.tree.map(
        lambda p, g: p + 0.1 * g / (jnp.abs(g) + 1e-8), state.params, gradient
    )  # Adam's first step
    chex.assert_trees_all_close(new.params, first, atol=2e-3)
    assert new.step == 1 and not np.allclose(
        state.params.policy[0], state.params.policy[1]
    )
    np.testing.assert_array_equal(metrics["step_size"], state.params.step_size)
    second, _ = jax.jit(lambda key: maml.outer_step(key, new, game, config))(
        key
    )  # the moments go on
    again, now = (
        optax.adam(config.model_lr),
        jax.jit(jax.grad(lambda params: -mean(params).mean()))(new.params),
    )
    _, moments = again.update(
        jax.tree.map(jnp.negative, gradient), again.init(state.params)
    )
    expected = optax.apply_updates(new.params, again.update(now, moments)[0])
    chex.assert_trees_all_close(second.params, expected, atol=2e-3)


def test_maml_says_between_which_steps_it_diverged(tmp_path):
    with (
        mock.patch.object(maml, "CHUNK", 1),
        pytest.raises(SystemExit, match="^training diverged between steps 1 and 2$"),
    ):
        run(tmp_path, script="maml", model_lr=1e30)  # the first step is a finite one
    assert not files(tmp_path)


def test_maml_is_evaluated_with_the_second_key_of_a_seed(once):
    """So the others that play beside its agents are not those of its training."""
    folder, arrays, _ = once("maml", "logistic")
    params, config = maml.load(folder / "results/maml_logistic.npz", seed=1)
    _, key = jax.random.split(jax.random.key(1))
    evaluate = jax.jit(
        lambda key: maml.evaluate(key, params, GAMES["logistic"], config)
    )
    expected = evaluate(key)["versus_naive"]  # (1, pair, 2)
    np.testing.assert_allclose(arrays["versus_naive"][:, 1], expected, rtol=1e-5)


# mfos.py

SMALL = dict(batch_size=4, rollout_length=5, hidden=6, eval_pairs=3, eval_steps=4)


def two_layers(weights, state):
    for w, squash in zip(weights, (np.tanh, np.positive)):
        state = squash(np.append(state, 1) @ w)
    return state


def actor(agent, state):
    mean, variance = np.split(two_layers(agent.actor, state), 2)
    return mean, np.log1p(np.exp(variance))


def log_density(x, mean, variance):
    return sum(
        -((a - m) ** 2) / (2 * s) - 0.5 * np.log(2 * np.pi * s)
        for a, m, s in zip(x, mean, variance)
    )


@pytest.mark.parametrize(
    "opponent, seat", [("naive", 1), ("naive", 0), ("lola", 1), ("self", 1)]
)
def test_a_meta_episode_against_a_loop(opponent, seat):
    game, other = GAMES["imp"], 1 - seat  # whose seats differ
    with jax.enable_x64(True):
        config = mfos.make_config(
            "imp",
            **SMALL | dict(rollout_length=2),
            opponent=opponent,
            lr=3.0,
            alpha=2.0,
        )
        agents = mfos.model_init(jax.random.key(1), game, config)
        seen = mfos.meta_episode(jax.random.key(2), agents, game, config, seat)
        first, key = jax.random.split(jax.random.key(2))
        x, agents = np.asarray(game.init(first)), jax.tree.map(np.asarray, agents)
        assert len(agents) == 2 and not np.allclose(
            agents[0].actor[0], agents[1].actor[0]
        )
        drawn = np.concatenate(
            [np.ravel(w * (len(w) - 1) ** 0.5) for w in jax.tree.leaves(agents)]
        )
        assert (
            -1 < drawn.min() < -0.9 and 0.9 < drawn.max() < 1
        )  # as PyTorch draws them, biases, too
        for t, key in enumerate(jax.random.split(key, 2)):
            states = [
                1 / (1 + np.exp(-np.concatenate([x[i], x[1 - i]]))) for i in (0, 1)
            ]
            moments = [actor(agent, state) for agent, state in zip(agents, states)]
            draws = [
                np.asarray(jax.random.normal(key, 5)) for key in jax.random.split(key)
            ]
            policies = [
                mean + np.sqrt(variance) * draw
                for (mean, variance), draw in zip(moments, draws)
            ]
            if opponent != "self":
                ahead = lola.lola_gradient(
                    game.f, x, 2.0 * (opponent == "lola"), "taylor"
                )
                policies[other] = x[other] + 3.0 * ahead[other]
            x, returns = np.stack(policies), np.asarray(game.f(np.stack(policies)))
            expected = (
                states[seat],
                x[seat],
                log_density(x[seat], *moments[seat]),
                (returns[seat], returns[other]),
            )
            for array, numbers in zip(seen, expected, strict=True):
                np.testing.assert_allclose(array[t], numbers, rtol=1e-6, atol=1e-7)


def test_ppos_loss_and_gradient_against_a_loop():
    rng, sides = np.random.default_rng(0), set()
    with jax.enable_x64(True):
        config = mfos.make_config(
            "ipd", clip=0.15, value_weight=0.7, entropy_weight=0.3
        )
        weights = [rng.normal(size=shape) for shape in ((3, 2), (3, 4), (3, 2), (3, 1))]
        agent = jax.tree.map(
            jnp.asarray, mfos.Agent(tuple(weights[:2]), tuple(weights[2:]))
        )
        states, actions, targets = (
            rng.normal(size=(60, 2)),
            rng.normal(size=(60, 2)),
            rng.normal(size=60),
        )
        log_probs = [
            log_density(a, *actor(agent, s)) + 0.5 * rng.normal()
            for s, a in zip(states, actions)
        ]
        advantages = targets - [two_layers(agent.critic, state)[0] for state in states]
        flat, unravel = jax.flatten_util.ravel_pytree(agent)

        def by_loop(numbers):
            agent, total = jax.tree.map(np.asarray, unravel(numbers)), 0.0
            for state, action, log_prob, target, advantage in zip(
                states, actions, log_probs, targets, advantages
            ):
                mean, variance = actor(agent, state)
                ratio = np.exp(log_density(action, mean, variance) - log_prob)
                sides.add((bool(ratio < 0.85), bool(ratio > 1.15), bool(advantage > 0)))
                gain = advantage * (
                    min(ratio, 1.15) if advantage > 0 else max(ratio, 0.85)
                )
                entropy = 0.5 * np.log(
                    np.linalg.det(2 * np.pi * np.e * np.diag(variance))
                )
                total += (
                    0.7 * (two_layers(agent.critic, state)[0] - target) ** 2
                    - gain
                    - 0.3 * entropy
                )
            return total / len(states)

        loss = lambda agent: mfos.ppo_loss(
            agent, states, actions, np.array(log_probs), targets, config
        )
        value, gradient = jax.value_and_grad(loss)(agent)
        np.testing.assert_allclose(value, by_loop(flat), rtol=1e-9)
        expected = difference(by_loop, np.asarray(flat), 1e-5)
        np.testing.assert_allclose(
            jax.flatten_util.ravel_pytree(gradient)[0], expected, rtol=1e-5, atol=1e-8
        )
    assert (
        len(sides) == 6
    )  # below, within and above the clipped range, for both signs of the advantage


def test_an_update_is_adam_on_each_agents_normalised_returns():
    game, settings = (
        GAMES["tandem"],
        dict(SMALL, opponent="self", epochs=2, gamma=0.7, model_lr=0.1),
    )
    with jax.enable_x64(True):
        config = mfos.make_config("tandem", **settings)
        state, keys = (
            mfos.train_init(jax.random.key(5), game, config),
            jax.random.split(jax.random.key(6), 4),
        )
        for k, opt_state in enumerate(state.opt_state):  # each agent has its own
            mu = jax.tree.map(lambda leaf: leaf + 0.01 * (k + 1), opt_state[0].mu)
            state.opt_state[k] = (opt_state[0]._replace(mu=mu), *opt_state[1:])
        episode = jax.jit(
            lambda key, seat: mfos.meta_episode(key, state.params, game, config, seat),
            static_argnums=1,
        )
        each = [zip(*(episode(key, seat) for key in keys)) for seat in (0, 1)]
        played = [
            [np.stack(arrays, 1) for arrays in kinds] for kinds in each
        ]  # (T, start, ...)
        np.testing.assert_array_equal(
            played[0][-1], played[1][-1][..., ::-1]
        )  # both see the same episodes
        outer_step = jax.jit(
            lambda key, state: mfos.outer_step(key, state, game, config)
        )
        stepped, metrics = outer_step(jax.random.key(6), state)
        _, unravel = jax.flatten_util.ravel_pytree(state.params[0])
        slope = jax.jit(
            jax.grad(lambda flat, batch: mfos.ppo_loss(unravel(flat), *batch, config))
        )
        np.testing.assert_allclose(
            metrics["mean_return"],
            [returns.mean((0, 1)) for *_, returns in played],
            rtol=1e-9,
        )
        assert stepped.step == 1 and len(state.params) == 2
        for i, agent, new, (*batch, returns) in zip(
            (0, 1), state.params, stepped.params, played, strict=True
        ):
            targets = np.zeros((5, 4))
            for t in range(5):
                targets[t] = sum(0.7 ** (k - t) * returns[k, :, 0] for k in range(t, 5))
            batch = [
                np.concatenate(array)
                for array in (
                    *batch,
                    (targets - targets.mean()) / (targets.std() + 1e-5),
                )
            ]
            flat, _ = jax.flatten_util.ravel_pytree(agent)
            m, v = 0.01 * (i + 1), 0.0
            for k in (1, 2):
                g = slope(flat, batch)
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                flat = flat - 0.1 * m / (1 - 0.9**k) / (
                    np.sqrt(v / (1 - 0.999**k)) + 1e-8
                )
            np.testing.assert_allclose(
                jax.flatten_util.ravel_pytree(new)[0], flat, rtol=1e-6, atol=1e-9
            )
        # Loop 13 has a key of its own, wherever its chunk begins.
        late, key = state._replace(step=jnp.int32(12)), jax.random.key(7)
        one = jax.jit(lambda: mfos.train_chunk(key, late, game, config, 1))()
        expected = outer_step(jax.random.fold_in(key, 13), late)
        chex.assert_trees_all_close(one[0], expected[0], rtol=1e-9)
        assert one[0].step == 13 and one[1]["mean_return"].shape == (1, 2, 2)


def test_seats_of_a_game_that_is_not_symmetric():
    """Player 1 always makes the unfair offer, player 2 takes every one."""
    game, config = GAMES["ultimatum"], mfos.make_config("ultimatum", **SMALL, lr=3.0)
    agents = jax.tree.map(
        jnp.zeros_like, mfos.model_init(jax.random.key(0), game, config)
    )
    last = lambda mean: (
        jnp.zeros((7, 2)).at[-1].set(jnp.array([mean, -30.0]))
    )  # and next to no variance
    agents = [
        agent._replace(actor=(agent.actor[0], last(mean)))
        for agent, mean in zip(agents, (-30.0, 30.0))
    ]
    results = jax.jit(lambda key: mfos.evaluate(key, agents, game, config))(
        jax.random.key(1)
    )
    np.testing.assert_allclose(
        results["self_play"], np.tile([8.0, 2.0], (1, 3, 1)), rtol=1e-4
    )
    one, two = (
        results["episode_returns"].T,
        results["episode_returns_2"].T,
    )  # (own and other's, ...)
    np.testing.assert_allclose(
        one[0], 4 * one[1], rtol=1e-3
    )  # 8 and 2 if it is taken, else nothing
    np.testing.assert_allclose(two[0], 10 - two[1], rtol=1e-3)
    assert (one[0] < 7.99).all() and (two[0] > 2).all() and (two[0] < 5).all()
    assert (results["versus_naive_policies"][..., 0, 0] < -20).all()
    assert (results["versus_naive_policies_2"][..., 0, 0] > 20).all()


def test_curves_of_mfos_are_drawn_in_words_and_for_all_their_outliers():
    rng, figure = np.random.default_rng(0), Figure()
    curves = {"mean_return": rng.uniform(1, 2, (2, 30, 1, 2))}
    curves["mean_return"][0, 3, 0, 1] = -1e6
    results = {"episode_returns": rng.uniform(1, 2, (1, 2, 8, 5, 2))}
    mfos.draw_curves(figure, curves, results)
    for axis in figure.axes:
        low, high = axis.get_ylim()
        assert -3 < low < 1.5 < high < 5
        words = f"{axis.get_title()} {axis.get_xlabel()} {axis.get_ylabel()}"
        assert "_" not in words and "meta-" in axis.get_xlabel() and "return" in words
    lines = figure.axes[0].lines
    solid = [line.get_ydata() for line in lines if line.get_linestyle() == "-"]
    # Each seed's agent, and nobody else, has a solid line.
    np.testing.assert_array_equal(solid, curves["mean_return"][:, :, 0, 0])


@slow
def test_mfos_on_two_devices_is_mfos_on_one(tmp_path):
    """Each has a share of the episodes, and there is one mean of their gradients."""
    settings = dict(outer_steps=3, opponent="self")
    words = ["--game", "ultimatum", *flags(**TINY["mfos"] | TINY_EVAL | settings)]
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


# What is trained

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
    """P such that player 1's meta-value is -x^T P x / 2. As x' = M x is linear, P is a fixed point on matrices."""
    returns = np.array(
        [[1, COUPLING], [COUPLING, COUPLING**2]]
    )  # f_1 = -x^T returns x / 2
    p = np.zeros((2, 2))
    for _ in range(2000):
        ascent = -np.array(
            [[p[0, 0], p[0, 1]], [p[0, 1], p[0, 0]]]
        )  # grad-bar of both players' values, by symmetry
        if form == "V":  # V(x) = (1 - gamma) f(x) + gamma V(M x), M x = x + lr grad V
            m = np.eye(2) + lr * ascent
            p = (1 - gamma) * returns + gamma * m.T @ p @ m
        else:  # U(x) = (1 - gamma) f(M x) + gamma U(M x), M x = x + lr (grad f + gamma grad U)
            m = np.eye(2) + lr * (
                gamma * ascent - np.array([[1, COUPLING], [COUPLING, 1]])
            )
            p = m.T @ ((1 - gamma) * returns + gamma * p) @ m
    return p


@slow
@pytest.mark.parametrize("form", ["U", "V"])
def test_training_reaches_the_meta_value_of_a_quadratic_game_of_ones_own(form):
    """f_i = -(x_i + c x_j)^2 / 2 keeps the meta-value quadratic: here the right one is known.

    The mean relative error over gammas and players: of single ones .09 to .19 were seen at worst.
    """
    settings = dict(
        hidden=16,
        quantiles=1,
        outer_steps=1600,
        batch_size=64,
        rollout_length=10,
        stride=10,
    )
    settings |= dict(
        lr=0.1, model_lr=3e-3, layer_norm=True, semi_gradient=True, bootstrap=0.9
    )
    config = meva.make_config(BOWL, form=form, **settings)
    train = long_running(lambda key: meva.train(key, BOWL, config)[0])
    line = np.linspace(-1.5, 1.5, 13)
    x = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    params, errors = train(jax.random.key(0)), []
    for gamma in (0.0, 0.5, 0.9):
        value = jax.vmap(lambda x: meta_value(params, BOWL, x[:, None], gamma))(x)
        for player in (0, 1):
            seen = x if player == 0 else x[:, ::-1]
            expected = -0.5 * np.einsum(
                "bi,ij,bj->b", seen, bowl_meta_value(form, config.lr, gamma), seen
            )
            errors += [
                np.abs(value[:, player] - expected).mean() / np.abs(expected).mean()
            ]
    assert np.mean(errors) < 0.2, errors


# Whoever copies: dtypes, lists, games of one's own


OTHER_KINDS = [
    name
    for name, game in GAMES.items()
    if name in KINDS[1:] or game.planar and name not in KINDS
]


@pytest.mark.parametrize(
    "name", [KINDS[0], *(pytest.param(name, marks=slow) for name in OTHER_KINDS)]
)
def test_public_functions_keep_the_dtype_of_x(name):
    """NumPy arrays and lists will do. With jax_enable_x64 on as well as off; bfloat16 on iterated games."""
    game, both = GAMES[name], [0.5, 1.0]
    (model, config), (g, _) = make_model(name), make_cola(name)
    functions = {
        "f": lambda x: (game.f(x), game.features(x), naive.naive_gradient(game.f, x)),
        "lola": lambda x: [
            lola.lola_gradient(game.f, x, both, variant) for variant in VARIANTS
        ],
    }
    if name in KINDS:
        functions |= {
            "hola": lambda x: hola.hola_gradient(game.f, x, np.array(both), 1),
            "sos": lambda x: [
                sos.sos_gradient(game.f, x, 0.5, variant) for variant in sos.VARIANTS
            ],
            "pola": lambda x: pola.pola_step(
                game.f, x, both, 0.1, partial(pola.divergence, game), 9
            ),
            "follow": lambda x: games.trajectory(
                partial(games.naive_step, game, lr=0.1), x, 2
            ),
            "best_response": lambda x: games.best_response(game, x, 0.1, 2),
            "cola": lambda x: (
                cola.both_sides(g, game, x, 0.5),
                cola.consistency_loss(g, game, x, 0.5),
            ),
            "meva": lambda x: (
                meva.meta_value(model, game, x, 0.9),
                meva.meva_gradient(model, game, x, both, config),
            ),
            "td_loss": lambda x: meva.td_loss(
                model, model, game, jnp.stack([x] * 4), x[:, 0], config
            ),
            "lambda_returns": lambda x: meva.lambda_returns(
                jnp.stack([x[:, 0]] * 3), jnp.stack([x] * 3), x[:, 0], 0.9
            ),
            "quantile_loss": lambda x: meva.quantile_loss(x, x),
        }
    if game.iterated:
        functions["exact"] = lambda x: (
            games.exact_best_response(game, x),
            games.state_distribution(x, 0.96),
        )
    cases = [(True, jnp.float32), (True, jnp.float64)] + [
        (False, jnp.bfloat16)
    ] * game.iterated
    for (wide, dtype), (function_name, function) in itertools.product(
        cases, functions.items()
    ):
        with jax.enable_x64(wide):
            out = jax.eval_shape(lambda: function(np.full((2, game.n), 0.5, dtype)))
        assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(dtype)}, (
            function_name,
            out,
            dtype,
            wide,
        )


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_game_of_ones_own_is_trained_and_evaluated(script, wide):
    """One that is not in GAMES, lopsided and with two parameters each; the shapes and dtypes of all that comes out."""
    module = SCRIPTS[script]
    game = BOWL._replace(
        name="mine",
        n=2,
        symmetric=False,
        labels=("a", "b"),
        lr=0.3,
        alphas=(0.0, 0.1),
        f=lambda x: -0.5 * ((x[:, 0] + x[::-1, 0] * x[:, 1]) ** 2 + x[:, 1] ** 2),
        init=lambda key: jax.random.normal(key, (2, 2)),
    )
    with jax.enable_x64(wide), mock.patch.multiple(cola, ORDERS=(0, 1)):
        config = module.make_config(game, **TINY[script] | TINY_EVAL)
        assert config.game == "mine" and config.lr == (3.0 if script == "pola" else 0.3)
        key, args = jax.random.key(0), []
        if script in MODELS:
            params, metrics = jax.eval_shape(
                lambda key: module.train(key, game, config), key
            )
            assert isinstance(params, (tuple, list)) and metrics["loss"].shape == (20,)
            args = [params]
        results = jax.eval_shape(
            lambda key, *args: module.evaluate(key, *args, game, config), key, *args
        )
    for name, shape in shapes(game, 1 if script in UNSWEPT else 2, 3, 4).items():
        assert results[name].shape == shape, name
    with pytest.raises(ValueError, match="game takes .*, not 'mine'"):
        module.make_config("mine")


def shapes(game, sweep, pairs, steps, seeds=()):
    """Of the arrays of an evaluation."""
    numbers = len(game.labels)  # of a policy
    one = dict(policies=(pairs, 2, numbers), self_play=(pairs, 2))
    if game.planar:
        one |= dict.fromkeys(("endpoints", "field"), (29, 29, 2))
        one |= dict(
            basin_fraction=(), trajectories=(pairs, steps + 1, 2), final_returns=(2,)
        )
    for seat in ("",) if game.symmetric else ("", "_2"):
        for kind in ("versus_naive", "best_response") + (
            "exact_best_response",
        ) * game.iterated:
            one |= {
                f"{kind}{seat}": (pairs, 2),
                f"{kind.replace('best_', '')}_policies{seat}": (pairs, 2, numbers),
            }
    return {name: (sweep, *seeds, *shape) for name, shape in one.items()}


def test_wrong_shapes_and_variants_are_told_to_who_copies():
    game, x, (params, config), (g, _) = (
        GAMES["ipd"],
        jnp.zeros((3, 5)),
        make_model(),
        make_cola("ipd"),
    )
    for function, *args in (
        (naive.naive_gradient, game.f, x),
        (lola.lola_gradient, game.f, x, 0.5),
        (hola.hola_gradient, game.f, x, 0.5, 1),
        (sos.sos_gradient, game.f, x, 0.5),
        (pola.pola_step, game.f, x, 0.5, 0.1, partial(pola.divergence, game)),
        (cola.cola_gradient, g, game, x, 0.5),
        (meva.meva_gradient, params, game, x, 0.9, config),
        (
            meva.td_loss,
            params,
            params,
            game,
            jnp.zeros((3, 2, 5)),
            jnp.zeros(2),
            config,
        ),  # the stride is 3
        (meva.quantile_loss, jnp.zeros(3), jnp.zeros(4)),
        (games.state_distribution, x, 0.96),
    ):
        with pytest.raises(AssertionError, match="shape"):
            function(*args)
    with pytest.raises(ValueError, match="not extra"):
        lola.lola_gradient(games.tandem, jnp.zeros((2, 1)), 0.1, "extra")


# Runs


def run(folder, *words, game="logistic", script="meva", **settings):
    """A script's main in this process, tiny. Returns the arrays that it wrote."""
    with mock.patch.multiple(
        cola, ORDERS=(0, 1), HELD_OUT=16
    ):  # the higher orders take long to compile
        words = [
            "--game",
            game,
            "--out",
            str(folder),
            *flags(**TINY[script] | TINY_EVAL | settings),
            *words,
        ]
        SCRIPTS[script].main(words)
    with np.load(folder / f"results/{script}_{game}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(script, game)`: folder, arrays and output of a tiny run, made by the first test that asks for it."""

    @functools.cache
    def make(script, game):
        folder, printed = tmp_path_factory.mktemp(f"{script}_{game}"), io.StringIO()
        with contextlib.redirect_stdout(printed):
            arrays = run(folder, script=script, game=game)
        return folder, arrays, printed.getvalue()

    return make


def files(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def assert_same_arrays(one, two):
    assert one.keys() == two.keys()
    for name in one.keys() - {"config"}:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


# All scripts play, write and draw by games.py: one of them is enough on most games.
QUICK_RUNS = [("naive", "logistic"), ("naive", "imp")]
QUICK_RUNS += [(script, "logistic") for script in ("maml", "meva")]
SLOW_RUNS = [(script, "imp") for script in ("lola", *MODELS)]
SLOW_RUNS += [
    (script, "logistic") for script in ("lola", "hola", "sos", "pola", "cola", "mfos")
]
SLOW_RUNS += [("meva", KINDS[1]), ("lola", KINDS[1])]
SLOW_RUNS += [("naive", KINDS[1]), ("naive", "ipd")]


@pytest.mark.parametrize(
    "script, game", QUICK_RUNS + [pytest.param(*run, marks=slow) for run in SLOW_RUNS]
)
def test_every_script_runs_on_every_kind_of_game(script, game, once):
    folder, arrays, out = once(script, game)
    name, trained, model = f"{script}_{game}", script in TRAINED, script in MODELS
    checkpoint = [f"results/{name}.checkpoint.npz"] * (trained or script == "mfos")
    assert files(folder) == [f"figures/{name}.png", *checkpoint, f"results/{name}.npz"]
    expected = shapes(GAMES[game], 1 if script in UNSWEPT else 2, 3, 4, seeds=(2,))
    curves = {"cola": ("loss", "gradient_norm"), "maml": ("loss",), "mfos": ("loss",),
              "meva": ("loss", "td_error", "gradient_norm")}.get(script, ())  # fmt: skip
    expected |= dict.fromkeys(curves, (2, 20))
    if script == "mfos":
        seats = ("", "_2")[: 2 - GAMES[game].symmetric]
        expected |= {
            f"episode_returns{seat}": (1, 2, 3, 3, 2) for seat in seats
        }  # of 3 pairs and meta-steps
    found = {name: (arrays[name].shape, arrays[name].dtype) for name in expected}
    assert found == {name: (shape, np.float32) for name, shape in expected.items()}
    assert {name for name in arrays if name.endswith("_2")} <= expected.keys()
    assert ("grid" in arrays, "values" in arrays) == (
        GAMES[game].planar,
        GAMES[game].planar and script == "meva",
    )
    config = json.loads(str(arrays["config"]))
    assert (
        config["game"] == game
        and config["num_seeds"] == 2
        and jax.__version__ in str(config["run_on"])
    )
    assert json.loads(out.splitlines()[0]) == config
    if (
        GAMES[game].planar and script != "maml"
    ):  # all others follow the same pairs of policies at all settings
        starts, theirs = (
            of["trajectories"][:, :, :, 0] for of in (arrays, once("naive", game)[1])
        )
        np.testing.assert_allclose(
            starts, np.broadcast_to(theirs, starts.shape), rtol=1e-6
        )
        assert len(np.unique(starts)) == 2 * 3 * 2  # of 2 seeds, 3 pairs
    if trained:  # of asymmetric games each player has a model
        assert (
            any(name.startswith("params/1/") for name in arrays)
            != GAMES[game].symmetric
        )
    assert (" 20 / 20  " in out) == model
    image, readme = (
        imread(folder / f"figures/{name}.png"),
        (ROOT / "README.md").read_text(),
    )
    assert min(image.shape[:2]) > 300 and image.std() > 0.05
    unexplained = [
        key
        for key in arrays
        if f"`{key.split('/')[0].removesuffix('_2')}" not in readme
    ]
    assert not unexplained, "README.md does not explain them"
    # The returns are those of the policies, and the table's.
    policies, returns = (
        arrays["policies"].reshape(-1, 2, GAMES[game].n),
        arrays["self_play"].reshape(-1, 2),
    )
    np.testing.assert_allclose(
        jax.vmap(GAMES[game].f)(policies), returns, rtol=1e-4, atol=1e-4
    )
    samples = arrays["best_response"][-1, :, :, 0].mean(1)  # by seed
    assert (
        f"{samples.mean():.3f} +- {samples.std(ddof=1) / math.sqrt(2):.3f}" in out
        and "error over 2 seeds" in out
    )
    assert f"wrote {folder}/results/{name}.npz and {folder}/figures/{name}.png" in out


OTHER_POLICIES = [("lola", "ipd+skewed"), ("naive", "ipd+memory=2"), ("naive", "imp+swapped+episodes=8+length=9"),
                  ("meva", "ipd+memory=2"), ("maml", "ipd+mlp"), ("mfos", "ipd+mlp")]  # fmt: skip


@pytest.mark.parametrize(
    "script, name", [pytest.param(*case, marks=slow) for case in OTHER_POLICIES]
)
def test_every_script_runs_on_variants_of_games(script, name, tmp_path):
    """Files carry the text as it was given."""
    arrays = run(tmp_path, game=name, script=script)
    assert f"figures/{script}_{name}.png" in files(
        tmp_path
    ) and f"results/{script}_{name}.npz" in files(tmp_path)
    game = games.find_game(name)
    for key, shape in shapes(
        game, 1 if script in UNSWEPT else 2, 3, 4, seeds=(2,)
    ).items():
        assert arrays[key].shape == shape, key
    tables = arrays["policies"].reshape(-1, 2, len(game.labels))
    returns = [games.iterated_returns(x, game.rules.payoffs, 0.96) for x in tables]
    np.testing.assert_allclose(
        returns, arrays["self_play"].reshape(-1, 2), rtol=1e-4, atol=1e-4
    )
    inputs = [
        arrays[key].shape[1]
        for key in arrays
        if key.startswith("params/") and key.endswith("embed/first/w")
    ]
    assert inputs == [len(game.labels) + 1] * (script in TRAINED)  # and gamma or alpha


@slow
def test_a_seed_is_the_same_run_whatever_the_number_of_seeds(once, tmp_path):
    """Bit for bit on a CPU, where seeds are trained in turn; elsewhere to rounding, as they are batched."""
    both, second = once("meva", "logistic")[1], run(tmp_path, seed=1, num_seeds=1)
    exact = jax.default_backend() == "cpu"
    same = (
        np.testing.assert_array_equal
        if exact
        else partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3)
    )
    for name in ("params/embed/first/w", "loss", "self_play_curve"):
        same(both[name][1], second[name][0])
        assert np.abs(both[name][0] - both[name][1]).min() > 0
    for name in ("trajectories", "best_response", "endpoints") if exact else ():
        same(both[name][:, 1], second[name][:, 0])
    np.testing.assert_array_equal(
        both["trajectories"][:, 1, :, 0], second["trajectories"][:, 0, :, 0]
    )


@slow
def test_beside_an_opponent_a_run_has_a_name_of_its_own_and_is_resumed(tmp_path):
    """On a game that is not symmetric: the model of one seat, and what it plays beside the opponent of its training."""
    words = ["--game", "ultimatum", "--opponent", "lola", "--out", str(tmp_path)]
    words += flags(**TINY["meva"] | TINY_EVAL | dict(blocks=0))
    meva.main(words)
    assert files(tmp_path) == [f"{name}meva-lola_ultimatum{end}" for name, end in (
        ("figures/", ".png"), ("results/", ".checkpoint.npz"), ("results/", ".npz"))]  # fmt: skip
    path = tmp_path / "results/meva-lola_ultimatum.npz"
    first = dict(np.load(path))
    path.unlink()
    meva.main([*words, "--resume"])
    assert_same_arrays(first, dict(np.load(path)))
    assert (
        first["versus_opponent"].shape == first["best_response"].shape == (2, 2, 3, 2)
    )
    assert first["versus_opponent_policies"].shape == (2, 2, 3, 2, 1)
    assert first["loss"].shape == (2, 20)
    assert first["params/readout/w"].shape == (2, 8, 3)
    assert not any(name.endswith("_2") for name in first)


@pytest.mark.parametrize(
    "script",
    [*(pytest.param(name, marks=slow) for name in ("cola", "mfos")), "maml", "meva"],
)
def test_train_is_what_the_script_does_chunk_by_chunk(script, once):
    written, module, config = (
        once(script, "logistic")[1],
        SCRIPTS[script],
        tiny("logistic", script),
    )
    key = jax.random.split(jax.random.key(config.seed))[0]
    params, metrics = jax.jit(lambda key: module.train(key, GAMES["logistic"], config))(
        key
    )
    for name, array in (metrics | games.flatten("params", params)).items():
        np.testing.assert_allclose(array, written[name][0], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    "script",
    [*(pytest.param(name, marks=slow) for name in ("cola", "mfos")), "maml", "meva"],
)
def test_a_trained_model_is_loaded(script, once, tmp_path):
    """Of each seed, with its settings; of a game of one's own if that is given."""
    folder, arrays, _ = once(script, "logistic")
    path, module = folder / f"results/{script}_logistic.npz", SCRIPTS[script]
    for seed, row in ((None, 0), (0, 0), (1, 1)):
        params, config = module.load(path, seed)
        assert config == tiny("logistic", script)
        for name, leaf in games.flatten("params", params).items():
            np.testing.assert_array_equal(leaf, arrays[name][row], err_msg=name)
    like = module.model_init(jax.random.key(0), GAMES["logistic"], config)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, like)
    with pytest.raises(ValueError, match="has no seed 2"):
        module.load(path, 2)
    mine = tmp_path / "mine.npz"
    text = json.dumps(json.loads(str(arrays["config"])) | {"game": "mine"})
    np.savez(mine, **arrays | {"config": np.array(text)})
    with pytest.raises(ValueError, match="not 'mine'"):
        module.load(mine)
    params, config = module.load(mine, game=GAMES["logistic"]._replace(name="mine"))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, like)
    assert config.game == "mine"


def test_divergence_ends_with_status_1_and_the_last_finite_state(tmp_path):
    with (
        mock.patch.object(meva, "CHUNK", 1),
        pytest.raises(SystemExit, match="diverged") as stopped,
    ):
        run(tmp_path, model_lr=1e30)
    step, kept = re.search(
        r"diverged at step (\d+); .*checkpoint.npz has the state after (\d+)$",
        stopped.value.code,
    ).groups()
    assert int(step) == int(kept) + 1  # chunks of one outer loop
    with np.load(tmp_path / "results/meva_logistic.checkpoint.npz") as file:
        assert (file["state/step"] == int(kept)).all()
        assert all(
            np.isfinite(file[name]).all()
            for name in file.files
            if name.startswith("state/")
        )
    assert not (tmp_path / "results/meva_logistic.npz").exists()


class Walk(NamedTuple):
    x: jax.Array
    step: jax.Array


def walk_chunk(key, state, count):
    def advance(state, _):
        noise = jax.random.normal(jax.random.fold_in(key, state.step))
        return Walk(state.x + noise, state.step + 1), state.x

    state, curve = jax.lax.scan(advance, state, length=count)
    return state, {"loss": curve, "last": state.x[None]}


def test_chunks_of_any_length_train_alike_and_go_on_where_they_were(tmp_path, capsys):
    """A random walk in place of training: the last chunk is shorter; curves are joined; a checkpoint has it all."""
    config = tiny("logistic")
    walk = partial(
        games.train_in_chunks,
        np.uint32([3, 4]),
        lambda key: Walk(jax.random.normal(key), jnp.int32(0)),
        walk_chunk,
        mesh=games.use_devices(4, 1, None),
        config=config,
        settings=json.dumps(dataclasses.asdict(config)),
        path=tmp_path / "walk.npz",
    )
    whole, curves = walk(steps=7, length=7, resume=True)  # there is no checkpoint yet
    for i, seed in enumerate((3, 4)):
        key = jax.random.split(jax.random.key(seed))[0]  # the one to train with
        x = jax.random.normal(key)
        for t in range(7):
            np.testing.assert_allclose(curves["loss"][i, t], x, rtol=1e-6)
            x = x + jax.random.normal(jax.random.fold_in(key, t))
        np.testing.assert_allclose(whole.x[i], x, rtol=1e-6)
    assert curves["last"].shape == (2, 1)
    capsys.readouterr()
    found, parts = walk(steps=7, length=3, resume=False)  # from the start again
    assert re.findall(r"^ *(\d+) / 7", capsys.readouterr().out, re.MULTILINE) == [
        "3",
        "6",
        "7",
    ]
    chex.assert_trees_all_equal((found, parts["loss"]), (whole, curves["loss"]))
    assert parts["last"].shape == (2, 3)
    walk(steps=4, length=2, resume=False)
    capsys.readouterr()
    found, parts = walk(steps=7, length=3, resume=True)
    assert re.findall(r"^ *(\d+) / 7", capsys.readouterr().out, re.MULTILINE) == ["7"]
    chex.assert_trees_all_equal((found, parts["loss"]), (whole, curves["loss"]))
    again, parts = walk(steps=7, length=3, resume=True)  # nothing is left to do
    chex.assert_trees_all_equal((again, parts["loss"]), (whole, curves["loss"]))
    assert " / 7" not in capsys.readouterr().out


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


# The command line


def parsed(module, words):
    return module.parse_args(words)[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_is_read(script):
    """By `train` or `evaluate`, but for those that `main` reads; and its flag changes it and nothing else."""
    module, read, key = SCRIPTS[script], set(), jax.random.key(0)

    class Spy(module.Config):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    game = games.find_game("ipd+episodes=64+length=40" if script in SAMPLERS else "ipd")
    others = dict(
        meva=dict(target_inertia=0.0, opponent="lola"), mfos=dict(opponent="lola")
    )
    base = tiny(game.name, script, **others.get(script, {}))
    spy, trained = Spy(**dataclasses.asdict(base)), script in MODELS
    read.clear()
    params = [module.model_init(key, game, base)] if trained else []
    with mock.patch.multiple(cola, ORDERS=(0, 1)):
        jax.eval_shape(
            lambda *params: module.evaluate(key, *params, game, spy), *params
        )
    if trained:
        jax.eval_shape(lambda key: module.train(key, game, spy), key)
    settings = {
        name: value
        for name, value in dataclasses.asdict(base).items()
        if name != "game"
    }
    assert settings.keys() - read == {"seed", "num_seeds"}
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    others = dict(fixed_gamma=0.3, form="V", seed=5, opponent="naive")
    others |= dict(last_activation="tanh" if script == "cola" else "gelu")
    others |= dict(
        variant={"meva": "taylor-stop", "lola": "taylor", "sos": "cgd"}.get(script)
    )
    for name, value in settings.items():
        changed = {
            bool: lambda v: not v,
            int: lambda v: 2 * v,
            float: lambda v: v / 2 or 0.5,
            tuple: lambda _: (0.25,),
        }
        value = others[name] if name in others else changed[type(value)](value)
        config = parsed(
            module,
            ["--game", game.name, "--out", CACHE, *flags(**given | {name: value})],
        )
        assert (
            dataclasses.replace(config, **{name: settings[name]}) == base != config
        ), name
    for name, seen in (
        (("ipd+mlp", 5), ("ipd+memory=2", 21)) if script in TRAINED else ()
    ):
        config, played = (
            parsed(module, ["--game", name, "--out", CACHE]),
            games.find_game(name),
        )
        model = jax.tree.leaves(
            jax.eval_shape(
                lambda: module.model_init(key, played, config).embed["first"]["w"]
            )
        )
        assert model[0].shape[0] == seen + 1  # and gamma or alpha


def test_other_payoffs_are_played_and_name_the_files(tmp_path, once):
    arrays = run(tmp_path, game="ipd+payoffs=1,-1,-1,1,-1,1,1,-1e+0", script="naive")
    assert files(tmp_path)[-1] == "results/naive_ipd+payoffs=1,-1,-1,1,-1,1,1,-1e+0.npz"
    np.testing.assert_array_equal(
        arrays["best_response_2"], once("naive", "imp")[1]["best_response_2"]
    )


FIG_3B = (0, 1, 2, 5, 10, 20, 30, 50, 70, 100)
PAPER = {  # the settings of Sec. 5 and Apps. B to E, or of the authors' code where README says so
    ("naive", "logistic"): dict(lr=1, eval_steps=200),
    ("naive", "ipd"): dict(lr=2, eval_pairs=256, eval_steps=500),
    ("lola", "logistic"): dict(lr=1, alphas=(0, 1, 2, 5, 10, 20), variant="exact"),
    ("lola", "ipd"): dict(lr=2, alphas=FIG_3B, variant="exact", eval_pairs=256),
    ("hola", "logistic"): dict(lr=1, order=2),
    ("pola", "ipd"): dict(alphas=FIG_3B, beta=0.004, lr=20, eval_pairs=64, eval_steps=20),
    ("pola", "tandem"): dict(beta=10, lr=0.1, eval_steps=200),
    ("mfos", "ipd"): dict(lr=25, batch_size=4096, rollout_length=100, gamma=0.99, hidden=256, model_lr=2e-3, epochs=4,
                          clip=0.2, entropy_weight=0.01),
    ("sos", "ipd"): dict(lr=2, variant="sos", alphas=FIG_3B, eval_pairs=256),
    ("hola", "ipd"): dict(lr=2, order=2, alphas=FIG_3B),
    ("cola", "logistic"): dict(lr=1, alpha_max=10, eval_alphas=(0, 1, 2, 5, 10), hidden=64, blocks=1, layer_norm=True,
                               last_activation="gelu", share_params=True),
    ("cola", "ipd"): dict(lr=2, alpha_max=10, hidden=64, blocks=2, share_params=True),
    ("meva", "logistic"): dict(
        lr=1, form="V", hidden=64, blocks=1, quantiles=16, share_params=True, layer_norm=False, last_activation="tanh",
        rollout_length=50, stride=50, outer_steps=1000, batch_size=128, model_lr=1e-3, fixed_gamma=None, bootstrap=0,
        target_inertia=0, explore=False, weight_decay=0, semi_gradient=False, adam_b2=0.99,
        eval_gammas=(0, 0.8, 0.85, 0.9, 0.95, 0.99), eval_steps=200),
    ("meva", "ipd"): dict(
        lr=2, form="U", hidden=64, blocks=2, quantiles=32, share_params=True, layer_norm=True, last_activation="tanh",
        rollout_length=100, stride=10, outer_steps=2000, batch_size=128, model_lr=1e-4, fixed_gamma=None, bootstrap=0.9,
        target_inertia=0.99, explore=True, flip_prob=1 / 16, weight_decay=1e-2, semi_gradient=True, adam_b2=0.99,
        eval_gammas=(0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999), eval_pairs=256, eval_steps=500),
}  # fmt: skip


@pytest.mark.parametrize("script, game", PAPER)
def test_defaults_are_the_papers_and_help_shows_them(script, game, capsys):
    module, paper = SCRIPTS[script], PAPER[script, game]
    config, quick = (
        module.make_config(game),
        module.make_config(game, quick=True, seed=3),
    )
    assert {name: getattr(config, name) for name in paper} == paper
    assert (
        quick.seed == 3
        and quick.lr == config.lr
        and (quick.num_seeds, config.num_seeds) == (1, 1)
    )
    with pytest.raises(SystemExit, match="0"):
        module.main(["--game", game, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in dataclasses.asdict(config):
        shown = getattr(module.Config(), name)  # those of the IPD
        if isinstance(shown, bool):
            shown = "on" if shown else "off"
        assert "--" + name.replace("_", "-") in text and (
            name == "game" or f"({shown})" in text
        ), name
    assert module.Config() == module.make_config()


def test_settings_depend_on_each_other():
    assert meva.make_config("ipd", fixed_gamma=0.9) == meva.make_config(
        "ipd", fixed_gamma=0.9, eval_gammas=[0.9]
    )
    assert (
        not meva.make_config("imp").share_params
        and meva.make_config("imp", share_params=True).share_params
    )
    assert cola.make_config("ipd", alpha_max=2.0).eval_alphas[-1] == 2.0
    for game in ("logistic", "ipd"):
        assert (
            meva.make_config(game, quick=True).outer_steps
            < meva.make_config(game).outer_steps
        )


def refused(module, words, named, folder, capsys):
    """Status 2, one line on stderr that names the flag, nothing on stdout, and no file in the folder is touched."""
    contents = lambda: {name: (folder / name).read_bytes() for name in files(folder)}
    before = contents()
    with pytest.raises(SystemExit) as stopped:
        module.main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, err
    assert err.count("\n") == 1 and named in err, err
    assert not out
    assert contents() == before
    return err


@pytest.mark.parametrize(
    "script, words, named",
    [
        (naive, "--game chess", "error: game takes bach_or_stravinsky, balduzzi"),
        (meva, "--game chess", "error: game takes bach_or_stravinsky, balduzzi"),
        (
            lola,
            "--game ipd+probes=3",
            "error: game 'ipd+probes=3': probes is unknown; variants are +mlp",
        ),
        (
            meva,
            "--game ultimatum+discount=0.5",
            "game 'ultimatum+discount=0.5': discount takes an iterated game;",
        ),
        (
            cola,
            "--game ipd+memory=3",
            "game 'ipd+memory=3': memory takes a number from 1 to 2",
        ),
        (maml, "--game ipd+mlp+mlp", "game 'ipd+mlp+mlp': mlp is given twice"),
        (
            mfos,
            "--game ipd+length=9",
            "game 'ipd+length=9': length takes an iterated game, and episodes=N before it",
        ),
        *(
            (
                script,
                "--game ipd+episodes=8",
                "exact returns, not those of ipd+episodes=8",
            )
            for script in (hola, sos, pola, cola, maml, mfos)
        ),
        (meva, "--outer 3", "--outer"),  # no abbreviations
        (lola, "--alpha 3", "--alpha"),
        (
            meva,
            "--num-seeds 1000000000",
            "--num-seeds takes 1 to 1000, not 1000000000",
        ),
        (naive, "--num-seeds 0", "--num-seeds takes 1 to 1000, not 0"),
        (meva, "--lr nan", "--lr takes 0 to 1e+30, not nan"),
        (hola, "--lr nan", "--lr takes 0 to 1e+30, not nan"),
        (meva, "--lr two", "--lr: invalid float value: 'two'"),
        (sos, "--lr two", "--lr: invalid float value: 'two'"),
        *(
            (SCRIPTS[name], f"--{flag} 2147483647", f"--{flag}")
            for name in FIRST
            for flag in ("eval-pairs", "eval-steps")
        ),
        (lola, "--lookahead 1000", "--lookahead takes 1 to 20, not 1000"),
        (lola, "--variant extra", "--variant: invalid choice: 'extra'"),
        (sos, "--variant taylor", "--variant: invalid choice: 'taylor'"),
        (
            meva,
            "--stride 7",
            "--stride takes divisors of --rollout-length 100, not 7",
        ),
        (
            meva,
            "--eval-gammas 0.5 1",
            "--eval-gammas takes 0 to 0.9999999, not 0.5 1.0",
        ),
        (meva, "--eval-gammas", "--eval-gammas: expected at least one argument"),
        (lola, "--alphas 0.5 -1", "--alphas takes 0 to 1e+30, not 0.5 -1.0"),
        (lola, "--alphas", "--alphas: expected at least one argument"),
        (meva, "--no-semi-gradient", "--no-semi-gradient takes --target-inertia 0"),
        *(
            (script, f"--{flag} {size}", f"--{flag} takes ")
            for script in (cola, mfos, meva)
            for flag, size in (("hidden", 1_000_000), ("batch-size", 2**31 - 1))
        ),
        (maml, "--lr 0", "--lr takes 1e-30 to 1e+30, not 0.0"),
        (meva, "--distributed localhost:1 two 0", "--distributed takes HOST:PORT"),
        (meva, "--distributed localhost:1 2", "--distributed takes HOST:PORT"),
        (meva, "--distributed localhost:12345678 2 0", "not 'localhost:12345678 2 0'"),
        (meva, "--distributed localhost:0 2 0", "not 'localhost:0 2 0'"),
        (meva, "--distributed localhost:65536 2 0", "not 'localhost:65536 2 0'"),
        (meva, "--distributed localhost:1 2 2", "not 'localhost:1 2 2'"),
        (meva, "--devices 0", "--devices takes 1 to 256, not 0"),
        (naive, "--resume", "unrecognized arguments: --resume"),
        (naive, "--discount 0.9", "unrecognized arguments: --discount"),
        (pola, "--beta -1", "--beta takes 0 to 1e+30, not -1.0"),
        (mfos, "--clip 2", "--clip takes 0 to 1, not 2.0"),
        (hola, "--order 6", "--order takes 0 to 5, not 6"),
        (cola, "--alpha-max 0", "--alpha-max takes 1e-30"),
        (
            cola,
            "--eval-alphas 1 11",
            "--eval-alphas takes numbers up to --alpha-max 10.0, not 11.0",
        ),
        (
            naive,
            "--out /proc/none",
            "--out takes a folder that can be written, not /proc/none",
        ),
        (
            cola,
            "--out /proc/none",
            "--out takes a folder that can be written, not /proc/none",
        ),
        (lola, "--out {}/file", "--out takes a folder that can be written"),
        (meva, "--out {}/file", "--out takes a folder that can be written"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(script, words, named, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    refused(
        script,
        ["--out", str(tmp_path), *words.format(tmp_path).split()],
        named,
        tmp_path,
        capsys,
    )
    assert [path.name for path in tmp_path.iterdir()] == [
        "file"
    ]  # nor are there folders


# Checkpoints


def mutations(whole, bomb):
    """Checkpoints that will not do, made from one that will: (what is wrong, its bytes or arrays, None if gone)."""
    with np.load(io.BytesIO(whole)) as file:
        good = dict(file)
    config, step = json.loads(str(good["config"])), good["state/step"]
    for wrong in (
        -13,
        -1,
        0,
        1,
        10,
        19,
        21,
        25,
        1000,
        2**31 - 1,
    ):  # 20 is right
        yield f"step {wrong}", good | {"state/step": np.full_like(step, wrong)}
    others = (
        step.astype(dtype) for dtype in (np.int64, np.float32, np.uint32, bool, str)
    )
    for wrong in (step - np.int32([0, 13]), step[:1], step[0], None, *others):
        yield f"step {wrong!r}", good | {"state/step": wrong}
    leaves = [
        name for name in good if good[name].dtype == np.float32 and good[name].size > 1
    ]
    for name in (
        leaves[0],
        leaves[len(leaves) // 2],
        "curves/loss",
        "curves/self_play_curve",
    ):
        leaf, first = (
            good[name],
            np.arange(good[name].size).reshape(good[name].shape) == 0,
        )
        may_diverge = (
            name == "curves/self_play_curve"
        )  # as nothing that is trained depends on it
        wrongs = (
            []
            if may_diverge
            else [
                np.where(first, np.float32(wrong), leaf) for wrong in (np.nan, np.inf)
            ]
        )
        wrongs += [
            leaf[..., :-1],
            np.tile(leaf, 2),
            np.concatenate([leaf, leaf[:1]]),
            leaf.ravel(),
            None,
        ]
        for wrong in wrongs + [
            leaf.astype(dtype) for dtype in (str, np.float64, object)
        ]:
            yield f"{name} {wrong!r}", good | {name: wrong}
    for text in (
        "null",
        "[]",
        "{}",
        "",
        "3",
        '"meva"',
        "{",
        json.dumps([config]),
        json.dumps({"lr": config["lr"]}),
    ):
        yield f"config {text[:10]}", good | {"config": np.array(text)}
    for change in (
        dict(lr=2.0),
        dict(seed=1),
        dict(game="ipd"),
        dict(hidden="8"),
        dict(blocks=None),
    ):
        yield (
            f"config with {change}",
            good | {"config": np.array(json.dumps(config | change))},
        )
    for wrong in (None, np.array(3), np.array([{}])):
        yield f"config {wrong}", good | {"config": wrong}
    for at in (int(share * len(whole)) for share in np.linspace(0.02, 0.98, 7)):
        yield f"cut at {at}", whole[:at]
        yield (
            f"flipped at {at}",
            whole[:at]
            + bytes(255 - byte for byte in whole[at : at + 40])
            + whole[at + 40 :],
        )
    pickle = f"cos\nmkdir\n(V{bomb}\ntR.".encode()  # makes a folder where it is loaded
    for content in (
        b"",
        bytes(1000),
        b"PK\3\4 is how it starts",
        pickle,
        b"\x93NUMPY\1\0",
    ):
        yield f"{content[:9]}", content


@slow
def test_no_mutated_checkpoint_is_believed(once, tmp_path, capsys, monkeypatch):
    """It is refused, and left alone. Each program is compiled once for all of them."""
    shutil.copytree(once("meva", "logistic")[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "results/meva_logistic.checkpoint.npz"
    whole, bomb, compiled = path.read_bytes(), tmp_path / "bomb", games.over_seeds
    over_seeds_once = functools.cache(
        lambda name, mesh: compiled(FUNCTIONS[name], mesh)
    )
    FUNCTIONS = {}

    def once_each(function, mesh):
        FUNCTIONS.setdefault(function.__code__, function)
        return over_seeds_once(function.__code__, mesh)

    monkeypatch.setattr(games, "over_seeds", once_each)
    believed = mock.Mock(side_effect=RuntimeError("believed"))
    monkeypatch.setattr(meva, "evaluate", believed)
    # How it is evaluated does not matter.
    settings = TINY["meva"] | TINY_EVAL | dict(eval_gammas=(0.5,))
    words = ["--resume", "--game", "logistic", "--out", str(tmp_path)]
    words += flags(**settings)

    def refused_as(named, words):
        before = path.read_bytes()
        with pytest.raises(games.BadCheckpoint) as error:
            meva.main(words)
        assert str(error.value) == f"--resume: {path} {named}"
        assert path.read_bytes() == before

    for wrong, content in mutations(whole, bomb):
        if not isinstance(content, bytes):
            arrays = {
                name: value for name, value in content.items() if value is not None
            }
            np.savez_compressed(path, **arrays)
        else:
            path.write_bytes(content)
        try:
            refused_as("is damaged, or no checkpoint", words)
        except BaseException as error:
            raise AssertionError(f"a checkpoint with {wrong}") from error
    assert not bomb.exists()
    # Whole ones of other settings are refused, and it is said which differ.
    path.write_bytes(whole)
    refused_as("has --lr 1.0", [*words, "--lr", "2"])
    refused_as("has --fixed-gamma None", [*words, "--fixed-gamma", "0.5"])
    with np.load(io.BytesIO(whole)) as file:
        arrays = dict(file)
    for change in (
        {"config": np.array("[]")},
        {"config": np.array("{}")},
        {"state/params/embed/first/w": None},
    ):
        other = {k: v for k, v in (arrays | change).items() if v is not None}
        del other["checksum"]
        other["checksum"] = np.array(games.checksum(other))
        np.savez(path, **other)
        with pytest.raises(games.BadCheckpoint):
            meva.main(words)
    path.write_bytes(whole)
    with pytest.raises(RuntimeError, match="believed"):  # and evaluated, not trained
        meva.main(words)


def test_a_checkpoint_is_what_was_saved_and_a_bad_one_ends_with_status_2(tmp_path):
    """A file that is none, by a process: one line. One of other settings names the flag."""
    (tmp_path / "results").mkdir()
    path = tmp_path / "results/meva_logistic.checkpoint.npz"
    config = tiny("logistic")
    state = meva.TrainState(
        {"w": np.arange(3.0)}, (), np.float32([[1, 2]]), np.int32([4, 4])
    )
    curves = {"loss": np.ones((2, 4), np.float32)}
    text = json.dumps(dataclasses.asdict(config) | {"run_on": "here"})
    games.save_checkpoint(path, state, curves, text)
    found, found_curves = games.load_checkpoint(path, state, config)
    chex.assert_trees_all_equal((found, found_curves), (state, curves))
    with pytest.raises(games.BadCheckpoint, match="has --hidden 8$"):
        games.load_checkpoint(path, state, dataclasses.replace(config, hidden=9))
    games.load_checkpoint(path, state, dataclasses.replace(config, eval_pairs=9))
    path.write_bytes(path.read_bytes()[:-100])
    process = start(tmp_path, "--game", "logistic", "--resume")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert err == f"meva.py: error: --resume: {path} is damaged, or no checkpoint\n"


@slow
def test_mfos_goes_on_from_its_checkpoint_bit_for_bit_and_believes_no_other(
    once, tmp_path, capsys
):
    words = ["--game", "logistic", "--resume", *flags(**TINY["mfos"] | TINY_EVAL)]
    in_process = [*words, "--out", str(tmp_path)]
    path = tmp_path / "results/mfos_logistic.checkpoint.npz"
    save, counts = games.save_checkpoint, itertools.count(1)

    def save_two(*args):  # one before the first chunk; the next but one is interrupted
        if next(counts) > 2:
            raise KeyboardInterrupt
        save(*args)

    with (
        mock.patch.object(games, "save_checkpoint", save_two),
        pytest.raises(KeyboardInterrupt),
    ):
        mfos.main(in_process)
    with np.load(path) as file:
        middle = dict(file)
    assert (middle["state/step"] == 10).all()
    assert middle["curves/mean_return"].shape == (2, 10, 1, 2)

    # A file with anything else in it is damaged, and settings that differ are named.
    loss, config = middle["curves/loss"], str(middle["config"])
    for name, wrong in (
        ("state/step", np.int32([0, 0])),
        ("state/step", np.int32([5, 5])),
        ("state/step", np.int32([10, 20])),
        ("state/opt_state/0/0/count", np.int32([4, 4])),
        ("curves/loss", loss[:, 1:]),
        ("curves/loss", loss + 1),
        ("config", np.array(config.replace('"clip": 0.2', '"clip": 0.3'))),
    ):
        assert name in middle and not np.array_equal(middle[name], wrong)
        np.savez(path, **middle | {name: wrong})
        with pytest.raises(games.BadCheckpoint, match="is damaged, or no checkpoint$"):
            mfos.main(in_process)
    process = start(tmp_path, *words, "--devices", "1", script="mfos")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err == f"mfos.py: error: --resume: {path} is damaged, or no checkpoint\n"
    np.savez(path, **middle)
    for flag, other, said in (("--clip", "0.3", "0.2"), ("--epochs", "5", "4")):
        with pytest.raises(games.BadCheckpoint, match=f"has {flag} {said}$"):
            mfos.main([*in_process, flag, other])

    capsys.readouterr()
    mfos.main(in_process)
    out = capsys.readouterr().out
    assert " 20 / 20 " in out and " 10 / 20 " not in out
    assert_same_arrays(
        dict(np.load(tmp_path / "results/mfos_logistic.npz")),
        once("mfos", "logistic")[1],
    )
    apart = tmp_path / "diverged"
    with pytest.raises(SystemExit, match="diverged at step 1; .* the state after 0$"):
        mfos.main([*in_process, "--lr", "1e30", "--out", str(apart)])
    with np.load(apart / "results/mfos_logistic.checkpoint.npz") as file:
        assert (file["state/step"] == 0).all()


# Scripts as programs


def start(folder, *words, script="meva", before="", **environment):
    """A script as a process, after some code."""
    path = str(ROOT / f"{script}.py")
    code = f"import runpy, sys; sys.path[:0] = [{str(ROOT)!r}]; sys.argv[0] = {path!r}\n{before}\n"
    program = (
        ["-c", f"{code}runpy.run_path({path!r}, None, '__main__')"]
        if before
        else [path]
    )
    command = [
        sys.executable,
        "-W",
        "error::DeprecationWarning",
        *program,
        *words,
        "--out",
        str(folder),
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, **pipes, env=os.environ | environment)


def wait_for_loop(process):
    """Until it has trained a chunk. Returns how far it came."""
    for line in process.stdout:
        if found := re.match(r" *(\d+) / ", line):
            return int(found[1])
    raise AssertionError(process.communicate()[1])


@slow
def test_killed_twice_interrupted_and_resumed_it_ends_bit_for_bit_alike(tmp_path):
    settings = dict(
        outer_steps=3001, eval_gammas=(0.9,), num_seeds=1
    )  # a prime: the last chunk is of one loop
    words, reached = (
        [
            "--game",
            "logistic",
            "--resume",
            *flags(**TINY["meva"] | TINY_EVAL | settings),
        ],
        [0],
    )
    for stop in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        process = start(tmp_path, *words)
        reached += [wait_for_loop(process)]
        process.send_signal(stop)
        _, err = process.communicate()
        assert "results/meva_logistic.npz" not in files(tmp_path)
        assert process.returncode == (130 if stop == signal.SIGINT else -stop)
        assert re.fullmatch(
            "meva.py: interrupted\n" if stop == signal.SIGINT else "", err
        ), err
    assert (
        reached == sorted(set(reached)) and reached[-1] < 3001
    )  # each went on from where the one before it was
    _, err = start(tmp_path, *words).communicate()
    assert not err
    out, _ = start(tmp_path / "whole", *words).communicate()
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    assert (
        f"on {max(n for n in (1, 2, 4) if n <= cores)} x cpu" in out
    )  # that share the batch of 4
    whole, resumed = (
        np.load(folder / "results/meva_logistic.npz")
        for folder in (tmp_path / "whole", tmp_path)
    )
    assert_same_arrays(dict(whole), dict(resumed))


FULL = """import numpy, pathlib; full = pathlib.Path("/dev/full")
numpy.savez = lambda path, **_: (path.write_text("half"), full.write_text("No space left"))"""
STOPPED = """import signal; from matplotlib.figure import Figure
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by who is started in the background
Figure.savefig = lambda *_, **__: signal.raise_signal(signal.SIGINT)"""


@pytest.mark.parametrize(
    "script, words, before, platform, status, said, left",
    [
        ("meva", "--game logistic", FULL, "", 1, "No space left on device", []),
        (
            "naive",
            "--game tandem",
            STOPPED,
            "",
            130,
            "interrupted",
            ["results/naive_tandem.npz"],
        ),
        ("meva", "--game tandem", "", "abacus", 1, "abacus", None),
        (
            "lola",
            "--game tandem",
            "",
            "cuda",
            1,
            "JAX finds no device (JAX_PLATFORMS is cuda)",
            None,
        ),
        (
            "maml",
            "--game tandem --batch-size 65536 --rollout-length 1000000",
            "",
            "cpu",
            1,
            "Out of memory",
            [],
        ),
    ],
)
def test_what_fails_from_outside_gets_one_line(
    script, words, before, platform, status, said, left, tmp_path
):
    process = start(
        tmp_path, *words.split(), script=script, before=before, JAX_PLATFORMS=platform
    )
    _, err = process.communicate(timeout=100)
    assert process.returncode == status, err
    assert err.count("\n") == 1 and err.startswith(f"{script}.py: ") and said in err, (
        err
    )
    assert files(tmp_path) == (left or []) and "AssertionError" not in err
    assert left is not None or not list(
        tmp_path.iterdir()
    )  # a run that is refused leaves no folders


@slow
def test_a_quick_run_has_as_many_pairs_as_it_should_and_does_not_crash(tmp_path):
    """jaxlib 0.10.2, which requirements.txt excludes, ends with a segmentation fault where two loops run at once."""
    process = start(
        tmp_path, *"--game imp --quick --eval-steps 2".split(), script="lola"
    )
    _, err = process.communicate()
    assert process.returncode == 0, err
    with np.load(tmp_path / "results/lola_imp.npz") as file:
        assert file["exact_best_response_2"].shape == (10, 1, 16, 2)


def test_a_closed_pipe_is_quiet(tmp_path):
    line = f"{sys.executable} {ROOT}/naive.py --game tandem --eval-pairs 2 --eval-steps 2 --out {tmp_path} | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert not done.stderr and json.loads(done.stdout)["game"] == "tandem"


def test_two_runs_that_write_the_same_file_at_once_do_not_disturb_each_other(tmp_path):
    """One process writes the whole file while another one is in the middle of it."""
    path = tmp_path / "file.npz"
    code = "import sys, pathlib; from games import write_file as write\n"
    code += "write(pathlib.Path(sys.argv[1]), lambda part: part.write_text('other'))"

    def save(part):
        part.write_text("own")
        subprocess.run([sys.executable, "-c", code, path], check=True, cwd=ROOT)
        assert path.read_text() == "other"

    games.write_file(path, save)
    assert path.read_text() == "own" and files(tmp_path) == ["file.npz"]


@pytest.mark.parametrize(
    "variables, count",
    [
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
        ({"JAX_NUM_CPU_DEVICES": "2"}, 2),
    ],
)
def test_devices_are_as_many_as_the_users_environment_says(variables, count):
    code = "import games; print(games.use_devices(8, None, None).size)"
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    environment = clean | {"JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == [str(count)], done.stderr


@slow
def test_devices_and_processes_train_as_one(tmp_path):
    settings = dict(outer_steps=61, num_seeds=4)  # chunks of 25, 25 and 11
    words = [
        "--game",
        "logistic",
        "--resume",
        *flags(**TINY["meva"] | TINY_EVAL | settings),
    ]

    def start_two():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        more = words + ["--distributed", address, "2"]
        return [
            start(tmp_path, *more, index, JAX_NUM_CPU_DEVICES="1")
            for index in ("0", "1")
        ]

    first, second = start_two()
    wait_for_loop(first)
    second.kill()
    first.communicate(timeout=200)
    assert first.returncode != 0  # it ends when the other is lost
    shutil.copytree(tmp_path / "results", tmp_path / "more/results")
    (first, err), (second, _) = (
        process.communicate(timeout=200) for process in start_two()
    )
    assert " 61 / 61 " in first and not re.search(r"^ *25 / 61", first, re.MULTILINE), (
        err
    )  # resumed
    assert not re.search("loss|wrote|config", second), (
        second
    )  # only process 0 prints; the network's library does, too
    # They agree with one to rounding; and so do more devices, from their checkpoint on.
    whole = run(tmp_path / "one", **settings)
    two = np.load(tmp_path / "results/meva_logistic.npz")
    assert {*two} == {*whole}
    out, err = start(
        tmp_path / "more", *words, "--devices", "9", JAX_NUM_CPU_DEVICES="8"
    ).communicate(timeout=200)
    assert "4 x cpu" in out, err  # that divide the batch of 4
    more = np.load(tmp_path / "more/results/meva_logistic.npz")
    for name in ("loss", "field", "params/readout/w"):
        for found in (two, more):
            np.testing.assert_allclose(
                found[name], whole[name], rtol=0.01, atol=0.01, err_msg=name
            )


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
        (128, (1, 1, 1), None, None),
    ],
)
def test_as_many_devices_as_divide_the_batch(batch, hosts, flag, count, monkeypatch):
    def local_devices(i):
        return [(i, j) for j in range(hosts[i])]

    monkeypatch.setattr(jax, "local_devices", local_devices)
    monkeypatch.setattr(jax, "process_count", lambda: len(hosts))
    monkeypatch.setattr(games, "Mesh", lambda devices, names: (devices, names))
    if count is None:
        with pytest.raises(ValueError, match="--batch-size takes multiples of 3"):
            games.use_devices(batch, flag, None)
        return
    devices, names = games.use_devices(batch, flag, None)
    each = count // len(hosts)
    expected = [(i, j) for i in range(len(hosts)) for j in range(each)]
    assert devices.tolist() == [list(device) for device in expected]
    assert names == ("batch",)


@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=slow) if name == "cola" else name for name in SCRIPTS],
)
def test_programs_are_fit_for_a_gpu(script, monkeypatch):
    """Without one: they are lowered for it, call nothing but XLA, and multiply matrices in full float32."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    game, module, config = GAMES["ipd"], SCRIPTS[script], tiny("ipd", script)
    key, texts = jax.random.key(0), []

    def lower(function, *args):
        texts.append(
            jax.export.export(function, platforms=["cuda"])(*args).mlir_module()
        )
        return jax.eval_shape(function, *args)

    params = []
    if script in MODELS:
        state = lower(jax.jit(lambda key: module.train_init(key, game, config)), key)
        steps = jax.jit(
            lambda key, state: module.train_chunk(key, state, game, config, 2)
        )
        params = [lower(steps, key, state)[0].params]
    lower(
        jax.jit(lambda key, *params: module.evaluate(key, *params, game, config)),
        key,
        *params,
    )
    for text in texts:
        assert "callback" not in text and not re.search(r"custom_call", text)
        products = re.findall(r"= stablehlo\.dot_general .*", text)
        assert all(
            "precision = [HIGHEST, HIGHEST]" in product for product in products
        ), products
    assert bool(products) == (script in (*TRAINED, "mfos"))


@pytest.mark.parametrize(
    "name",
    ["logistic", "ultimatum", "imp+mlp+memory=2", "ipd+skewed+episodes=8+length=9"],
)
def test_returns_and_look_ahead_are_not_rounded_on_a_gpu(name):
    """No kind of game multiplies matrices in what players get; LOLA and SOS's family not in less than float32."""
    game = games.find_game(name)
    functions = [partial(lola.lola_gradient, game.f, alpha=1.0, variant="taylor")]
    for variant in sos.VARIANTS if game.planar else ("sos",):
        functions += [partial(sos.sos_gradient, game.f, alpha=1.0, variant=variant)]
    functions += [partial(games.exact_best_response, game)] * game.iterated
    functions += [partial(game.sample, jax.random.key(0))] if game.sample else []
    for function in functions:
        text = jax.export.export(jax.jit(function), platforms=["cuda"])(
            jnp.zeros((2, game.n))
        ).mlir_module()
        products = re.findall(r"= stablehlo\.dot_general .*", text)
        assert all(
            "precision = [HIGHEST, HIGHEST]" in product for product in products
        ), (function, products)
        assert not products or function.keywords.get("variant") in ("cgd", "lss")


# plots.py


def plot(words, capsys):
    """The exit status of plots.py with these words, and what it prints."""
    status = 0
    try:
        plots.main(words)
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


@slow
def test_the_report_in_results_paper_is_current_and_every_figure_is_drawn(
    tmp_path, capsys, monkeypatch
):
    shutil.copytree(ROOT / "results/paper", tmp_path / "results/paper")
    path = tmp_path / "results/paper/README.md"
    before = path.read_text("utf-8")
    path.write_text(
        re.sub(
            "(<!-- table .*?-->\n).*?(\n<!-- end)", r"\1\2", before, flags=re.DOTALL
        ),
        "utf-8",
    )
    assert len(path.read_text("utf-8")) < len(before) / 2
    start(
        tmp_path, "--report", script="plots", XLA_FLAGS=FLAGS
    ).communicate()  # optimised, as it computes much
    assert path.read_text("utf-8") == before and "Missing here" not in before
    for name in (
        "hills",
        "hill_paths",
        "tournament_imp",
        "tournament_chicken",
    ):  # like others, of other runs
        monkeypatch.delitem(plots.FIGURES, name)
    status, out, _ = plot(["--out", str(tmp_path)], capsys)
    assert status == 0
    for name in plots.FIGURES:
        image = imread(tmp_path / f"figures/{name}.png")
        assert (
            image.shape[1] > 600 and image.std() > 0.05 and f"figures/{name}.png" in out
        )


SLOW_COMMANDS = r"(meva|lola)_ipd\+episodes"
COMMANDS = "probes|meva_episodes|lola_episodes(512|2048|4096)"
COMMANDS = [
    name
    for name, run in plots.RUNS.items()
    if run.script != "plots" and not name.startswith("games/")
]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=slow) if re.search(SLOW_COMMANDS, name) else name
        for name in COMMANDS
    ],
)
def test_every_command_makes_the_run_that_it_is_for(name, tmp_path):
    script, *words = plots.command(name, tmp_path).split()[1:]
    config, out = (
        parsed(SCRIPTS[script.removesuffix(".py")], words),
        pathlib.Path(words[words.index("--out") + 1]),
    )
    stem = f"{getattr(config, 'name', script.removesuffix('.py'))}_{config.game}"
    assert (path := plots.paths_of(name, tmp_path)[0]) == out / f"results/{stem}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    for key in (
        None,
        *(key for key in vars(config) if key not in ("game", "outer_steps")),
    ):
        change = {key: 77} if key else {}
        np.savez(
            path,
            config=json.dumps({"outer_steps": 3} | vars(config) | change),
            sweep=np.zeros(3),
        )
        same = vars(config) == vars(config) | change
        assert (name in plots.find([name], tmp_path, exactly=True)[0]) == same, key
    np.savez(
        path,
        config=json.dumps(vars(config) | {"game": config.game + "+swapped"}),
        sweep=np.zeros(3),
    )
    with pytest.raises(plots.Broken):
        plots.find([name], tmp_path)


BAD_RUNS = {  # of a run of LOLA on the IPD: what becomes of its bytes, its configuration or its arrays
    "empty": b"",
    "broken": b"PK\3\4" + bytes(40),
    "null": None,
    "a list": [],
    "no num_seeds": {"game": "ipd", "eval_steps": 500},
    "another game": {"game": "imp"},
    "settings cut": dict(self_play=np.zeros((1, 8, 4, 2))),
    "seeds cut": dict(self_play=np.zeros((3, 7, 4, 2))),
    "players cut": dict(self_play=np.zeros((3, 8, 4, 1))),
    "no pairs": dict(self_play=np.zeros((3, 8, 0, 2))),
    "a scalar sweep": dict(sweep=np.float32(3)),
    "flat": dict(policies=np.zeros(960)),
    "text": dict(self_play=np.full((3, 8, 4, 2), "x")),
    "objects": dict(self_play=np.full((3, 8, 4, 2), None)),
}


@pytest.mark.parametrize("bad", BAD_RUNS)
def test_a_run_that_is_not_what_it_should_be_gets_one_line(bad, tmp_path, capsys):
    path, change = tmp_path / "results/lola_ipd.npz", BAD_RUNS[bad]
    path.parent.mkdir()
    arrays = {
        name: np.zeros((3, 8, 4, 2))
        for name in ("self_play", "best_response", "versus_naive")
    }
    arrays |= {
        "sweep": np.array([10.0, 20.0, 30.0]),
        "policies": np.zeros((3, 8, 4, 2, 5)),
    }
    config = {"game": "ipd", "num_seeds": 8, "eval_steps": 500}
    if isinstance(change, dict) and "game" not in change:
        np.savez(path, config=json.dumps(config), **arrays | change)
    else:
        np.savez(
            path,
            config="" if isinstance(change, bytes) else json.dumps(change),
            **arrays,
        )
    if isinstance(change, bytes):
        path.write_bytes(change)
    status, out, err = plot(["--out", str(tmp_path), "--table"], capsys)
    assert status == 2 and not out and err.count("\n") == 1 and str(path) in err, err


@slow
def test_claims_fail_where_the_numbers_do(tmp_path):
    """Each claim is measured again in three worlds that are otherwise: in one at least it must not hold any more."""
    shutil.copytree(ROOT / "results/paper", tmp_path / "results/paper")
    returns, policies = plots.RETURNS, plots.POLICIES

    def world(
        ours, lolas, jump, change
    ):  # returns of MeVa and of LOLA, of alpha or gamma, and of policies
        changed = dict.fromkeys(policies, change) | {
            "endpoints": lambda x: 0 * x - 1.0,
            "field": lambda x: 0 * x,
        }
        changed["returns"] = lambda x: 0 * x  # of a tournament
        changed["basin_fraction"] = lambda x: (
            0 * x + np.linspace(*jump, len(x))[:, None]
        )
        falling = lambda x: np.linspace(ours, ours - 0.3, len(x))[
            :, None, None, None
        ]  # MeVa's by setting
        flat = lambda script: dict.fromkeys(
            returns, lambda x: 0 * x + (lolas if script == "lola" else falling(x))
        )
        return lambda script, name, x: (changed | flat(script)).get(name, lambda x: x)(
            x
        )

    worlds = (
        world(-1.5, -1.5, (1, 0), lambda x: -x),  # all is alike, or falls
        world(
            -1.0, -2.0, (0, 1), lambda x: 0 * x + np.float32([1, -1, -1, 1, 1])
        ),  # tit-for-tat; basins grow
        world(-2.0, -1.0, (0, 1), lambda x: 0 * x + 9),
    )
    count = 0
    for names, measure in plots.CLAIMS:
        runs, _, missing = plots.find(names, tmp_path)
        assert not missing
        verdicts = []
        for changed in worlds if runs else ():
            there = [plots.Results({key: changed(plots.RUNS[name].script, key, x) for key, x in arrays.items()})
                     for name, arrays in runs.items()]  # fmt: skip
            verdicts.append(
                [plots.verdict(holds) == "yes" for *_, holds in measure(*there)]
            )
        count += len(verdicts[0]) if runs else 0
        assert not np.all(verdicts, 0).any() or not runs, (names, verdicts)
    assert count == 33


def draw_by(draw, *args):
    """The panels of a figure, drawn and not saved."""
    figure = Figure()
    draw(figure, *args)
    figure.draw_without_rendering()
    return figure.axes


def test_the_papers_figures_show_the_arrays():
    """Who is drawn where: 2a's paths and ends, 2b's basins, and in Fig. 3 the agent, the other and their errors."""
    runs, _, missing = plots.find(
        (*plots.ROWS, *plots.HILL_ROWS, "meva_ipd", "lola_ipd"), ROOT
    )
    assert not missing
    for (
        results
    ) in runs.values():  # anywhere, so that every quadrant and every time counts
        for key in {"endpoints", "trajectories"} & results.keys():
            results[key] = np.random.default_rng(0).normal(size=results[key].shape)
    for rows in (plots.ROWS, plots.HILL_ROWS):
        panels = zip(
            *(
                draw_by(partial(plots.draw_fig2, basins=basins, rows=rows), runs)
                for basins in (True, False)
            )
        )
        for (name, settings), row in zip(rows.items(), chunks(panels, 4), strict=True):
            for setting, (basins, paths) in zip(settings, row):
                i = np.abs(runs[name]["sweep"] - setting).argmin()
                ends = runs[name]["endpoints"][i]  # (seed, 29, 29, 2)
                in_b = np.mean(
                    [(seed[..., 0] > 0) & (seed[..., 1] > 0) for seed in ends], 0
                )
                np.testing.assert_array_equal(basins.images[0].get_array(), in_b)
                assert basins.images[0].origin == "lower"  # x_2 upwards
                assert (
                    ("lr = 1" in basins.get_title())
                    == ("lr = 1" in paths.get_title())
                    == (name[:5] == "short")
                )
                lines = [line.get_xydata() for line in paths.lines]
                np.testing.assert_allclose(lines[::2], runs[name]["trajectories"][i, 0])
                np.testing.assert_allclose(
                    np.concatenate(lines[1::2]), runs[name]["trajectories"][i, 0][:, -1]
                )
    axes = iter(draw_by(plots.draw_fig3, runs))
    for name, chosen in (("meva_ipd", 0.99), ("lola_ipd", 10)):
        for key in ("self_play", "best_response", "versus_naive"):
            axis, values = next(axes), runs[name][key]  # (S, seed, pair, 2)
            for player, (line, _, bars) in enumerate(axis.containers):
                pooled = values[..., player].reshape(len(values), -1)
                np.testing.assert_allclose(line.get_ydata(), pooled.mean(1), rtol=1e-5)
                heights = [np.ptp(segment[:, 1]) for segment in bars[0].get_segments()]
                errors = pooled.std(1, ddof=1) / np.sqrt(pooled.shape[1])
                np.testing.assert_allclose(heights, 2 * errors, rtol=1e-3, atol=1e-6)
            labels = [container.get_label() for container in axis.containers]
            assert labels == [
                {"meva_ipd": "MeVa", "lola_ipd": "LOLA"}[name],
                plots.PLAYS[key][1],
            ]
        agents = runs[name]["best_response"][
            np.abs(runs[name]["sweep"] - chosen).argmin(), ..., 0
        ]
        *_, pooled = next(axes).patches
        heights = np.unique(np.round(pooled.get_xy()[:, 0], 6))
        assert set(
            np.round(np.histogram(agents, plots.BINS)[0] / agents.size, 6)
        ) <= set(heights)


def chunks(items, size):
    items = list(items)
    return [items[i : i + size] for i in range(0, len(items), size)]


@pytest.mark.parametrize("name", ["logistic", "ultimatum", "imp+memory=2"])
def test_a_scripts_own_figure_shows_the_arrays(name):
    """Of two seeds, with other numbers in every place."""
    game, random = games.find_game(name), np.random.default_rng(0)
    config = tiny(name, "lola")
    shapes = jax.eval_shape(lambda: lola.evaluate(jax.random.key(0), game, config))
    results = {
        key: random.normal(size=(2, 2, *array.shape[1:]))
        for key, array in shapes.items()
    }
    results["sweep"] = np.array([0.0, 0.5])
    figure = games.draw_report("lola", game, results, "alpha", "tab:orange", None)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == f"lola on {name}, 2 seeds"
    if game.planar:
        for i, (paths, basins) in enumerate(zip(figure.axes[:2], figure.axes[2:])):
            lines = [line.get_xydata() for line in paths.lines]
            np.testing.assert_allclose(lines[::2], results["trajectories"][i, 0])
            np.testing.assert_allclose(
                np.concatenate(lines[1::2]), results["trajectories"][i, 0][:, -1]
            )
            ends = results["endpoints"][i]
            np.testing.assert_array_equal(
                basins.images[0].get_array(), ((ends > 0).sum(-1) == 2).mean(0)
            )
            assert (
                basins.images[0].origin == "lower"
                and paths.get_title() == f"alpha = {results['sweep'][i]:g}"
            )
        return
    keys = ("self_play", "best_response", "exact_best_response", "versus_naive")
    for seat, row in enumerate(chunks(figure.axes, 5)):
        for key, axis in zip(keys, row):
            values = results[key + "_2" * (seat and key != "self_play")]
            agent = seat if key == "self_play" else 0
            assert (
                axis.containers[0].get_label()
                == ("agent, player 1", "agent, player 2")[seat]
            )
            for player, (line, *_) in zip((agent, 1 - agent), axis.containers):
                np.testing.assert_allclose(
                    line.get_ydata(), values[..., player].mean((1, 2)), rtol=1e-5
                )
                errors = (
                    values[..., player].mean(2).std(1, ddof=1) / 2**0.5
                )  # over seeds
                heights = [np.ptp(segment[:, 1]) for segment in _[1][0].get_segments()]
                np.testing.assert_allclose(heights, 2 * errors, rtol=1e-3, atol=1e-6)
            by_seed = [
                line.get_ydata() for line in axis.lines if line.get_linewidth() == 0.5
            ]
            np.testing.assert_allclose(by_seed, values[..., agent].mean(2).T, rtol=1e-5)
        seen = (1 / (1 + np.exp(-results["policies"][..., seat, :]))).mean((1, 2)).T
        np.testing.assert_allclose(
            row[4].images[0].get_array(), seen, rtol=1e-5
        )  # nothing else beside them
        assert [label.get_text() for label in row[4].get_yticklabels()] == list(
            game.labels
        )


def test_an_axis_is_not_flattened_by_an_outlier_and_magnifies_nothing():
    limits = partial(games.robust_limits, least=0.2)
    low, high = limits(np.array([*np.linspace(-2, -1, 50), -100]))
    # One outlier of many is left out: two ranges of .8 below -1.9 is the furthest.
    assert -3.8 < low <= -3.5 and -1 <= high < -0.8
    low, high = limits(
        np.array([*np.linspace(-2, -1, 50), np.nan, np.inf, 5e30, -np.inf])
    )
    assert -2.3 < low <= -2 and 0.5 <= high < 0.8
    low, high = limits(np.linspace(-2, -1.99, 50))
    assert (
        low < -2
        and -1.99 < high
        and 0.19 < high - low < 0.25
        and abs(low + high + 3.99) < 0.01
    )
    low, high = limits(np.linspace(-1, 1, 50))  # all of what is no outlier
    assert -1.2 < low < -1 and 1 < high < 1.2
    for few in ([], [np.nan], [0.0], [3.0, 3.0]):
        low, high = limits(np.array(few))
        assert low <= np.nanmin([*few, high]) and np.isfinite([low, high]).all()
    # A game without payoffs whose learners diverge is drawn as well.
    own = BOWL._replace(n=2, features=lambda x: x, labels=("a", "b"))
    shape, far = (2, 1, 3, 2), np.array([[[[1.0, 2.0]] * 3], [[[np.inf, -np.inf]] * 3]])
    results = {"self_play": far, "best_response": far, "versus_naive": far}
    results |= {"sweep": np.arange(2.0), "policies": np.zeros((*shape, 2))}
    figure = games.draw_report("lola", own, results, "alpha", "tab:orange", None)
    assert np.isfinite(figure.axes[0].get_ylim()).all()
    # And the figure of a run has them, in all panels alike.
    game, shape = GAMES["ipd"], (10, 1, 4, 2)
    results = {
        name: np.random.default_rng(0).uniform(-2, -1, shape)
        for name in games.PLAYS
        if name[-1] != "t"
    }
    results |= {"sweep": np.arange(10.0), "policies": np.zeros((*shape, 5))}
    results["versus_naive"][3, :, :, 1] = -1e4
    *panels, _ = games.draw_report(
        "lola", game, results, "alpha", "tab:orange", None
    ).axes
    assert (
        len({axis.get_ylim() for axis in panels}) == 1
        and -3 < panels[0].get_ylim()[0] < -1.7
    )


def table_of(game, results, capsys):
    games.print_table(GAMES[game], results, "alpha")
    return capsys.readouterr().out


def test_a_table_says_over_what_its_errors_are_and_what_has_diverged(capsys):
    """Over seeds where there are several, else over pairs."""
    random = np.random.default_rng(0)
    results = {name: random.normal(size=(2, 3, 5, 2)) for name in games.PLAYS} | {
        "sweep": np.array([0.5, 20.0])
    }
    lines = table_of("ipd", results, capsys).splitlines()
    assert lines[0].endswith("+- standard error over 3 seeds") and len(lines) == 4
    assert re.split("  +", lines[1].strip()) == [
        title for title, _ in games.PLAYS.values()
    ]
    for i, (line, setting) in enumerate(zip(lines[2:], ("0.5", "20"))):
        cells = []
        for name in games.PLAYS:
            by_seed = results[name][i].mean(1)
            numbers = zip(by_seed.mean(0), by_seed.std(0, ddof=1) / 3**0.5)
            cells += [
                " : ".join(f"{mean:.3f} +- {error:.3f}" for mean, error in numbers)
            ]
        assert re.split("  +", line.strip()) == [setting, *cells]
    one = {
        name: array if name == "sweep" else array[:, 1:2]
        for name, array in results.items()
    }
    lines, returns = (
        table_of("ipd", one, capsys).splitlines(),
        one["self_play"][1, 0, :, 1],
    )
    assert lines[0].endswith("+- standard error over 5 pairs of policies")
    assert f" : {returns.mean():.3f} +- {returns.std(ddof=1) / 5**0.5:.3f} " in lines[3]
    # A setting that has diverged is said to have, and the others are as they were.
    results["best_response"][1, 2, 3:, 0] = np.nan, np.inf
    diverged = table_of("ipd", results, capsys).splitlines()
    assert (
        "2 of 15 pairs diverged" in diverged[3]
        and "nan" not in " ".join(diverged)
        and "inf" not in diverged[3]
    )
    results["best_response"][1, 2, 3:, 0] = 0.0
    lines = table_of("ipd", results, capsys).splitlines()
    assert lines[:3] == diverged[:3] and "diverged" not in lines[3]
    results["best_response"][1] = -3e9
    assert "-3.0e+09 +- 0.0e+00" in table_of("ipd", results, capsys)  # in its column
    # Player 2's agents come first in their own table; a planar game's basins are said.
    results |= {
        name + "_2": random.normal(size=(2, 3, 5, 2))
        for name in ("best_response", "versus_naive")
    }
    lines = table_of(
        "matching_pennies", results | {"basin_fraction": np.full((2, 3), 0.25)}, capsys
    ).splitlines()
    assert (
        lines[1].split()[:2] == ["player", "1"]
        and lines[4].split()[:2] == ["player", "2"]
        and len(lines) == 8
    )
    assert lines[7] == "share of the grid that ends at x_1, x_2 > 0: 0.250 0.250"
    for name, column in (
        ("self_play", 1),
        ("best_response_2", 0),
        ("versus_naive_2", 0),
    ):
        assert f"{results[name][0, ..., column].mean():.3f} +- " in lines[5]
        assert f" : {results[name][0, ..., 1 - column].mean():.3f} +- " in lines[5]


def test_one_seed_is_one_seed():
    for seeds, said in ((1, "lola on ipd, 1 seed"), (3, "lola on ipd, 3 seeds")):
        results = {name: np.zeros((2, seeds, 4, 2)) for name in games.PLAYS}
        results |= {"sweep": np.arange(2.0), "policies": np.zeros((2, seeds, 4, 2, 5))}
        assert (
            games.draw_report(
                "lola", GAMES["ipd"], results, "alpha", "tab:orange", None
            ).get_suptitle()
            == said
        )


def results_of(settings, **arrays):
    """Results as if they were of a run with this sweep."""
    return plots.Results(
        arrays, sweep=np.array(settings), config=dict(game="ipd", lr=2), path="nowhere"
    )


def test_two_devices_are_compared_seed_by_seed():
    """A GPU's first two of a CPU's three seeds: agents get .01 more, and a single one of the others .5 more."""
    random, runs, shape = np.random.default_rng(0), {}, (3, 6, 2)
    for script, settings in plots.DEVICES.items():
        sweep = (-1.0, *settings)
        cpu = {
            key: random.normal(size=(len(sweep), *shape)) for key in plots.RETURNS
        } | {"loss": np.ones((3, 500))}
        gpu = {
            key: array[:, :2] + [0.01, 0.0]
            for key, array in cpu.items()
            if key != "loss"
        }
        gpu["versus_naive"][1, 1, 3, 1] += 0.5
        gpu["loss"] = cpu["loss"] + 1e-3 * (np.arange(1, 501) >= 100) * np.array(
            [[0], [1], [-2]]
        )
        runs |= {
            f"{script}_ipd": results_of(sweep, **cpu),
            f"{script}_gpu_ipd": results_of(sweep, **gpu),
        }
    table = plots.table_of_devices(runs)
    assert "2e-03 at 100" in table and "0e+00 at 50" in table
    rows = iter(table.splitlines()[2:])
    for script, settings in plots.DEVICES.items():
        for i, _ in enumerate(settings, 1):
            for key, cell in zip(
                plots.RETURNS, next(rows).strip("| ").split(" | ")[1:], strict=True
            ):
                mean = runs[f"{script}_ipd"][key][i, :2, :, 0].mean()
                off = 0.5 if key == "versus_naive" and i == 1 else 0.01
                assert cell == f"{mean:.4f}, {mean + 0.01:.4f} ({off:.0e})"


def test_what_is_said_and_drawn_of_policies_of_other_kinds():
    """Each rule at its best setting in self-play; who reciprocates, by three models that fail one of the conditions."""
    random, runs = np.random.default_rng(0), {}
    for kind, name in itertools.product(plots.KINDS, plots.RULES):
        sweep = (0.9, 0.95, 0.99) if name == "meva" else (0.1, 1.0, 2.0)
        keys = (*plots.RETURNS, "policies")
        arrays = {
            key: random.normal(size=(3, 4, 6, 2, *[5] * (key == "policies")))
            for key in keys
        }
        arrays["self_play"][1] = np.nan  # diverged
        runs[plots.OF_KINDS[kind, name]] = results_of(sweep, **arrays)
    panels = draw_by(plots.draw_networks, runs)
    places = itertools.product(
        ("self_play", "exact_best_response", "versus_naive"), plots.KINDS
    )
    for (key, kind), axis in zip(places, panels, strict=True):
        for line, name in zip(axis.lines, plots.RULES, strict=True):
            results = runs[plots.OF_KINDS[kind, name]]
            best = np.argmax(
                [np.nan_to_num(each, nan=-9.0).mean() for each in results["self_play"]]
            )
            np.testing.assert_allclose(
                line.get_ydata(), results[key][best, ..., 0].mean(1)
            )
            if (
                key == "versus_naive" and name != "naive"
            ):  # the lowest panels have the labels
                label = axis.get_xticklabels()[list(plots.RULES).index(name)].get_text()
                assert label.endswith(f"= {results['sweep'][best]:g}")
        bars = [
            collection.get_segments()[0][0, 1] for collection in axis.collections[1::2]
        ]
        best = [runs[plots.OF_KINDS[kind, name]] for name in plots.RULES]
        np.testing.assert_allclose(
            bars, [each[key][plots.best(each), ..., 0].mean() for each in best]
        )
    rows = [
        row.strip("| ").split(" | ")
        for row in plots.table_of_networks(runs).splitlines()
    ]
    more = sum(
        plots.best(runs[plots.OF_KINDS[kind, "meva"]]) == 0 for kind in plots.KINDS
    )  # beside .95 and .99
    assert len(rows) == 2 + 3 * (5 + 2) + more
    row = next(row for row in rows if row[:2] == ["networks", "MeVa, gamma = 0.99"])
    values = runs["meva_ipd+mlp"]["versus_naive"][2].mean(1)  # (seed, 2)
    assert row[5] == " : ".join(
        f"{x.mean():.3f} ± {x.std(ddof=1) / 2:.3f}" for x in values.T
    )

    chances = np.array(
        [[0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.5, 0.9]]
    )  # after CD and CC, by model
    policies = np.zeros((1, 4, 6, 2, 5))
    policies[0, :, :, :, [2, 4]] += np.log(chances / (1 - chances)).T[:, :, None, None]
    returns = {
        key: np.zeros((1, 4, 6, 2)) + np.array([-1.1, -9])
        for key in ("self_play", "exact_best_response")
    }
    returns["self_play"][0, 1, :, 0], returns["exact_best_response"][0, 2, :, 0] = (
        -1.2,
        -1.4,
    )
    results = results_of((0.99,), policies=policies, **returns)
    np.testing.assert_allclose(plots.chances(results, 0)[[2, 4]], chances.T)
    np.testing.assert_array_equal(
        plots.reciprocal(results, 0), [True, False, False, False]
    )


# plots.py: the tournament


def hold(game, everyone, steps, trials):
    with mock.patch.object(
        jax, "clear_caches"
    ) as clear:  # there are other tests' programs, too
        results = plots.hold_tournament(
            game, everyone, plots.Protocol(0.5, 0.8, 0.6, steps), trials
        )
    assert clear.call_count == len(
        everyone
    )  # else a whole one has too many memory mappings, and ends in a crash
    return results


def test_fixed_policies_meet_at_their_exact_returns():
    game = GAMES["imp"]
    everyone = plots.contestants(game, {}, plots.Protocol(0.5, 0.8, 0.6, 3))
    everyone = {name: everyone[name] for name in plots.FIXED}
    results = hold(game, everyone, steps=3, trials=2)
    assert list(results["names"]) == [
        "all-C",
        "all-D",
        "tit-for-tat",
        "win-stay-lose-shift",
    ]
    policies = ((C,) * 5, (D,) * 5, (C, D, D, C, C), (C, C, D, D, C))
    for (i, row), (j, column) in itertools.product(enumerate(policies), repeat=2):
        expected = [game.f(jnp.array([row, column]))] * 2
        np.testing.assert_allclose(results["returns"][i, j], expected, atol=1e-5)
    corners = [
        list(plots.CORNERS)[corner] for corner in results["corner"][:, :, 0].ravel()
    ]
    assert (
        corners[:8] == ["CC", "CD", "CC", "CC", "DC", "DD", "DD", "DC"]
        and results["returns"].dtype == np.float32
    )


@slow
def test_a_tournament_against_a_loop():
    """Each rule steps in its own seat, each pair of models plays as often as any, M-MAML starts where it chose."""
    game, play, trials, models, runs = (
        GAMES["imp"],
        plots.Protocol(0.5, 0.8, 0.6, 2),
        7,
        {},
        {},
    )
    for count, (name, changes) in enumerate(plots.TRAINED.items(), 1):
        module = SCRIPTS[name.split("-")[0]]
        config = tiny(
            "imp",
            module.__name__,
            **changes | dict(blocks=0) if "meva" in name else changes,
        )
        models[name] = [
            module.model_init(jax.random.key(10 * count + k), game, config)
            for k in range(count % 3 + 1)
        ]
        arrays = meva.flatten(
            "params", jax.tree.map(lambda *leaves: np.stack(leaves), *models[name])
        )
        runs[name] = plots.Results(
            arrays, config=dataclasses.asdict(config) | {"run_on": ""}, path=""
        )
    everyone = plots.contestants(game, runs, play)
    assert list(everyone) == [
        "naive",
        "lola",
        "lola-taylor-stop",
        "hola2",
        "sos",
        "pola",
        *plots.TRAINED,
        *plots.FIXED,
    ]
    scaled = lambda x: 25 * game.f(x)  # 1 / (1 - discount)
    near, draw = partial(pola.divergence, game), jax.random.key(5)
    rules = {
        "naive": lambda model, x, gammas: simultaneous_gradient(game.f, x),
        "lola": lambda model, x, gammas: lola.lola_gradient(game.f, x, 0.8),
        "lola-taylor-stop": lambda model, x, gammas: lola.lola_gradient(
            game.f, x, 0.8, "taylor-stop"
        ),
        "hola2": lambda model, x, gammas: hola.hola_gradient(game.f, x, 0.8, 2),
        "sos": lambda model, x, gammas: sos.sos_gradient(scaled, x, 0.8 / 25) / 25,
        "pola": lambda model, x, gammas: (
            2 * (pola.pola_step(game.f, x, 0.8, 2.0, near, 30, 1e-3) - x)
        ),
        "mfos": lambda model, x, gammas: (
            2 * (jnp.stack([mfos.act(draw, model, game, x, k)[1] for k in (0, 1)]) - x)
        ),
        "cola": lambda model, x, gammas: cola.cola_gradient(model, game, x, 0.8),
        "maml": lambda model, x, gammas: (
            simultaneous_gradient(game.f, x) * model.step_size[:, None] / 0.5
        ),
        "meva": lambda model, x, gammas: meva.meva_gradient(
            model, game, x, gammas, tiny("imp", blocks=0)
        ),
    }  # the directions, of steps .5 long
    shaping = tiny("imp", opponent="naive", blocks=0)
    rules["meva-naive"] = lambda model, x, gammas: meva.meva_gradient(
        model, game, x, gammas, shaping
    )
    rules = {name: jax.jit(rule) for name, rule in rules.items()}
    starts = jax.vmap(game.init)(jax.random.split(jax.random.key(0), trials))
    for name, rule in rules.items():
        last, gammas = (
            jax.tree.map(lambda leaf: leaf[-1], everyone[name].models),
            np.float32([0.2, 0.6]),
        )
        row = lambda x, seat: everyone[name].rule(
            last, x, seat, gammas, jax.random.key(5)
        )
        rows = jax.jit(lambda x: jnp.stack([row(x, 0), row(x, 1)]))(
            3 * starts[0]
        )  # SOS's scale matters there
        expected = 3 * starts[0] + 0.5 * rule(
            models.get(name, [None])[-1], 3 * starts[0], gammas
        )
        np.testing.assert_allclose(rows, expected, 1e-4, 1e-6, err_msg=name)

    some = ["maml", "meva"]
    results = plots.hold_tournament(
        game, {name: everyone[name] for name in some}, play, trials
    )
    assert list(results["names"]) == some
    for (i, row), (j, column) in itertools.product(enumerate(some), repeat=2):
        played = np.stack([results["trained"][i, j], results["trained_2"][i, j]], 1)
        counts = [len(models.get(name, [None])) for name in (row, column)]
        pairs, often = np.unique(played, axis=0, return_counts=True)
        assert len(pairs) == min(np.prod(counts), trials) and np.ptp(often) <= 1
        gammas = np.float32([0.6 * name.startswith("meva") for name in (row, column)])
        for t in range(trials):
            both = [
                models.get(name, [None] * 3)[k]
                for name, k in zip((row, column), played[t])
            ]
            own = [
                both[k].policy[k] if name == "maml" else starts[t][k]
                for k, name in enumerate((row, column))
            ]
            x = jnp.stack(own)
            for _ in range(2):
                steps = [
                    rules[name](model, x, gammas)[k]
                    for k, (name, model) in enumerate(zip((row, column), both))
                ]
                x = x + 0.5 * jnp.stack(steps)
            np.testing.assert_allclose(
                results["returns"][i, j, t],
                game.f(x),
                2e-3,
                1e-4,
                err_msg=f"{row} {column}",
            )
            states = dict(
                zip(("DD", "CD", "DC", "CC"), games.state_distribution(x, 0.96))
            )
            corner = max(states, key=states.get)
            assert list(plots.CORNERS)[results["corner"][i, j, t]] == (
                corner if states[corner] > 0.5 else "none"
            )


def test_symmetric_equilibria_of_known_games():
    for payoffs, expected in (
        (
            [[0, -1, 1], [1, 0, -1], [-1, 1, 0]],
            [(1 / 3, 1 / 3, 1 / 3)],
        ),  # rock, paper, scissors
        ([[-1, -3], [0, -2]], [(0, 1)]),  # the Prisoner's Dilemma
        (
            [[-1, 2], [0, 1]],
            [(0.5, 0.5)],
        ),  # hawk and dove, a prize of 2 and an injury of 4
        ([[4, 1], [3, 2]], [(1, 0), (0, 1), (0.5, 0.5)]),  # the Stag Hunt
        ([[5]], [(1,)]),
        (
            [[1, 1], [1, 1]],
            [(1, 0), (0, 1)],
        ),  # alike: all mixtures are, of which those between stay unnamed
    ):
        found = plots.symmetric_equilibria(np.array(payoffs, float))
        np.testing.assert_allclose(
            sorted(map(tuple, found)), sorted(expected), atol=1e-9
        )


def test_the_authors_tournament_is_played_as_they_did():
    """Its settings; and on the IPD each of their cells beside ours, with its distance."""
    protocols = [
        plots.protocol_of(game, name)
        for game in ("ipd", "chicken")
        for name in ("paper", "authors")
    ]
    assert protocols == [
        (2, 10, 0.95, 500),
        (25, 25, 0.95, 300),
        (0.1, 0.2, 0.95, 500),
        (1, 1, 0.95, 300),
    ]
    config = meva.make_config("imp", **plots.RUNS["authors/meva-lola_imp"].settings)
    theirs = dict(lr=25, opponent="lola", alpha=25, variant="taylor-stop", form="U", normalized_step=True, hidden=128,
                  blocks=0, quantiles=64, batch_size=128, rollout_length=100, stride=10, target_inertia=0.99,
                  bootstrap=0.9, model_lr=1e-3, adam_b2=0.99, weight_decay=0.01, outer_steps=1001, num_seeds=4,
                  fixed_gamma=None, share_params=False)  # fmt: skip
    assert {name: getattr(config, name) for name in theirs} == theirs
    config = maml.make_config("chicken", **plots.RUNS["authors/maml_chicken"].settings)
    theirs = dict(
        lr=1, batch_size=64, rollout_length=300, model_lr=0.1, outer_steps=1000
    )
    assert {name: getattr(config, name) for name in theirs} == theirs
    results = plots.load(
        ROOT / "results/paper/tournament_ipd.npz", plots.Run("plots", "ipd")
    )
    i, j = map(list(results["names"]).index, ("naive", "maml"))
    means, errors = (
        results["returns"][i, j].mean(0),
        plots.standard_errors(results)[i, j],
    )
    far = " : ".join(
        f"{distance:+.1f}" for distance in (means - np.array([-1.524, -1.398])) / errors
    )
    ours = f"{means[0]:.3f} ± {errors[0]:.3f} : {means[1]:.3f} ± {errors[1]:.3f}"
    assert (
        f"| naive | maml | -1.524 : -1.398 | {ours} | {far} |"
        in plots.table_of_tournaments({"": results})
    )
    every, learners = plots.equilibria(results).split("among those that learn")
    assert "tit-for-tat (return -1.000)" in every and "tit-for-tat" not in learners
    assert "cola (return -1.590)" in learners


@slow
def test_what_is_said_and_drawn_of_a_tournament(tmp_path, capsys, monkeypatch):
    """The command on a game without trained models, cut short; errors over models by hand; the matrix that is drawn."""
    monkeypatch.setattr(
        plots, "hold_tournament", partial(plots.hold_tournament, trials=3)
    )
    monkeypatch.setattr(
        plots, "protocol_of", lambda game, name: plots.Protocol(1.0, 1.0, 0.9, 2)
    )
    names, everyone = ("naive", "lola", "all-C", "tit-for-tat"), plots.contestants
    monkeypatch.setattr(
        plots,
        "contestants",
        lambda *args: {name: everyone(*args)[name] for name in names},
    )
    status, out, err = plot(
        [
            "--out",
            str(tmp_path),
            "--table",
            "tournament",
            "--game",
            "bach_or_stravinsky",
        ],
        capsys,
    )
    assert (
        not status
        and not err
        and f"wrote {tmp_path}/results/tournament_bach_or_stravinsky.npz" in out
    )
    with np.load(
        tmp_path / "results/tournament_bach_or_stravinsky.npz", allow_pickle=False
    ) as file:
        arrays = dict(file)
    assert arrays["returns"].shape == (4, 4, 3, 2) and arrays["trained"].shape == (
        4,
        4,
        3,
    )
    means = arrays["returns"].mean(2)
    assert (
        f"| naive | {means[0, 0, 0]:.3f} ± {arrays['returns'][0, 0, :, 0].std(ddof=1) / 3**0.5:.3f} |"
        in out
    )
    best = means[..., 0] > means[..., 0].max(0) - 1e-3
    assert (
        f"| lola | {', '.join(arrays['names'][best[:, 1]])} |" in out and best.sum() > 4
    )  # there are ties
    results = plots.Results(
        arrays, config={"game": "bach_or_stravinsky", "protocol": "paper"}, path=""
    )
    left, right, _ = draw_by(plots.draw_tournament, {"": results})
    np.testing.assert_allclose(left.images[0].get_array(), means[..., 0])
    framed = zip(left.lines[0].get_ydata(), left.lines[0].get_xdata())
    assert set(framed) == set(zip(*np.nonzero(best)))
    texts = {
        text.get_position(): text.get_text().strip()
        for text in left.texts
        if "±" not in text.get_text()
    }
    assert texts[2, 3] == f"{means[3, 2, 0]:z.2f}" and len(right.patches) == 5 * 16
    for corner, row, column in (
        (0, 1, 2),
        (3, 0, 1),
        (4, 3, 2),
    ):  # bars, from corner to corner and row to row
        shares = [(arrays["corner"][row, column] == k).mean() for k in range(5)]
        bar = right.patches[16 * corner + 4 * row + column]
        begin = column - 0.45 + 0.9 * sum(shares[:corner])
        np.testing.assert_allclose(
            (bar.get_x(), bar.get_width()), (begin, 0.9 * shares[corner]), atol=1e-9
        )
        np.testing.assert_allclose(bar.get_y() + bar.get_height() / 2, row)
    column = arrays["returns"][
        3, 1, :, 1
    ]  # player 2's returns, and medians and corners
    for cell in (f"| {column.mean():z.3f} ± {column.std(ddof=1) / 3**0.5:.3f} |", " : ".join(
            f"{median:z.3f}" for median in np.median(arrays["returns"][3, 1], 0)), " ".join(
            f"{100 * (arrays['corner'][3, 1] == k).mean():.0f}" for k in range(4))):  # fmt: skip
        assert cell in out, cell
    np.testing.assert_allclose(
        plots.meta_game(results)[1, 3], (means[1, 3, 0] + means[3, 1, 1]) / 2, atol=6e-4
    )

    # Two models on either side, means 3 and 4 by the row's, 1.5 and 5.5 by the column's; then one, and none.
    played = dict(
        trained=np.broadcast_to([0, 1, 0, 1], (2, 2, 4)),
        trained_2=np.broadcast_to([0, 0, 1, 1], (2, 2, 4)),
    )
    returns = np.broadcast_to(np.array([1.0, 2.0, 5.0, 6.0])[:, None], (2, 2, 4, 2))
    errors_of = lambda *names, **played: plots.standard_errors(
        plots.Results(names=np.array(names), returns=returns, **played))[..., 0]  # fmt: skip
    apart, together = (0.5**2 + 2**2) ** 0.5, (9.5 - 4.5) / 2
    np.testing.assert_allclose(
        errors_of("meva", "maml", **played), [[together, apart], [apart, together]]
    )
    np.testing.assert_allclose(errors_of("meva", "lola", **played)[0, 1], 0.5)
    assert np.isnan(
        errors_of(
            "meva", "lola", **{name: 0 * array for name, array in played.items()}
        )[0, 1]
    )
    np.testing.assert_allclose(
        errors_of("naive", "lola", **played), returns[0, 0, :, 0].std(ddof=1) / 2
    )
    for words in (
        ["--game", "imp"],
        ["--protocol", "authors", "--table"],
        ["--game", "imp", "--figure", "fig1"],
    ):
        status, out, err = plot(["--out", str(tmp_path), *words], capsys)
        assert status == 2 and "--game, --protocol: take --table tournament" in err
    words = [
        "--out",
        str(tmp_path),
        "--table",
        "tournament",
        "--game",
        "stag_hunt",
        "--protocol",
        "authors",
    ]
    status, out, err = plot(words, capsys)
    assert (
        status == 2
        and "--protocol: takes --game ipd, imp, chicken beside authors, not stag_hunt"
        in err
    )


# README.md, and the shape of the repository

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readmes_examples_run_as_they_stand_there(block, tmp_path):
    """In a folder with the scripts and the runs of results/paper alone."""
    for name in ("games", "plots", *SCRIPTS):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    shutil.copytree(ROOT / "results/paper", tmp_path / "results")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def check_shared_blocks(texts):
    """Returns name and text of each copy of a block, or raises AssertionError where copies differ."""
    block = re.compile(
        r"^# --- shared: (.*?) -+$(.*?)^# --- end shared -+$", re.MULTILINE | re.DOTALL
    )
    copies = [copy for text in texts for copy in block.findall(text)]
    for name in dict(copies):
        blocks = [text for other, text in copies if other == name]
        assert len(blocks) > 1 and len(set(blocks)) == 1, (
            f"copies of the block {name} differ, or there is only one"
        )
    marks = sum(
        len(re.findall("^# --- .*shared", text, re.MULTILINE)) for text in texts
    )
    assert 2 * len(copies) == marks > 30
    return copies


def test_shared_blocks_are_identical_everywhere():
    texts = [(ROOT / f"{name}.py").read_text() for name in SCRIPTS]
    for i, (_, block) in itertools.product(
        range(len(texts)), check_shared_blocks(texts)
    ):
        at = texts[i].find(block) + len(block) // 2
        changed = texts[i][:at] + chr(ord(texts[i][at]) ^ 1) + texts[i][at + 1 :]
        if block in texts[i]:
            with pytest.raises(AssertionError, match="differ"):
                check_shared_blocks([*texts[:i], changed, *texts[i + 1 :]])
