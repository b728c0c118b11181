# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "jax>=0.8",
#     "chex>=0.1.90",
#     "optax>=0.2.6",
#     "numpy>=2.0",
#     "matplotlib>=3.10.8",
# ]
# ///
"""The tournament: every learning rule beside every other, and beside yours.

    python tournament.py --game ipd                       this repository's settings
    python tournament.py --game ipd --protocol authors    those of the paper's authors
    python tournament.py --game ipd --paper               plays nothing: the tournament in
                                                          results/paper/, drawn anew
    python tournament.py --search                         who finds tit-for-tat?
    python tournament.py --polytope                       what learned policies allow
                                                          random opponents (the IPD)

Two players start from random policies, each follows its rule, and the returns of their
last policies count. Everybody plays everybody in both seats, from the same 1024 starts;
trained rules play with all their models. It takes an hour on two cores, most of it for
POLA and M-FOS. Models are looked for in results/ and results/paper/. A run writes
results/tournament_GAME.npz, draws figures/own/tournament_GAME.png, and prints what
player 1 gets beside player 2.

A rule of your own plays by `play(game, {"mine": step})`, where `step(x)` is the next
joint policy, (2, n) -> (2, n).
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import coala
import cola
import hola
import lola
import loqa
import maml
import meva
import mfos
import naive
import pola
import sos
from games import (
    Game,
    Rules,
    beside,
    find_game,
    follow,
    iterated_returns,
    run_script,
    state_distribution,
    trajectory,
    unflatten,
    write_file,
)
from plots import (
    KINDS,
    LEARNED,
    TITLES,
    WIDTH,
    Broken,
    Results,
    find,
    load,
    save_figure,
)

TRIALS = 1024
BATCH = 16  # trials at a time: where POLA climbs, all of a batch wait for the longest
SCRIPTS = {  # that train
    "cola": cola,
    "maml": maml,
    "coala": coala,
    "meva": meva,
    "mfos": mfos,
}
TRAINED = (  # script-opponent
    "cola",
    "maml",
    "coala",
    "meva",
    "meva-naive",
    "meva-lola",
    "mfos",
    "mfos-lola",
    "mfos-self",
)
FIXED = {  # the signs of their log-odds: init, DD, CD, DC, CC
    "all-C": (1, 1, 1, 1, 1),
    "all-D": (-1, -1, -1, -1, -1),
    "tit-for-tat": (1, -1, -1, 1, 1),
    "win-stay-lose-shift": (1, 1, -1, -1, 1),
}

# --- Settings -------------------------------------------------------------------------


class Protocol(NamedTuple):
    """How a tournament is played."""

    lr: float  # step size of the policies
    alpha: float  # look-ahead step of LOLA, HOLA, SOS, POLA and COLA
    gamma: float  # meta-discount of MeVa
    steps: int  # that policies are followed for


TOURNAMENTS = {"ipd": 25.0, "imp": 25.0, "chicken": 1.0}  # the authors', and their lr
PROTOCOLS = {"paper": "the paper's settings", "authors": "the authors' settings"}


def protocol_of(game: Game, name: str) -> Protocol:
    """The settings of this repository ("paper"), or those of the authors' tournament.

    ValueError if the authors have none on this game.
    """
    if name == "paper":
        return Protocol(game.lr, game.alphas[:5][-1], 0.95, 500)
    if game.name not in TOURNAMENTS:
        known = ", ".join(TOURNAMENTS)
        raise ValueError(f"--protocol authors takes --game {known}, not {game.name}")
    lr = TOURNAMENTS[game.name]
    return Protocol(lr, lr, 0.95, 300)


# --- Contestants ----------------------------------------------------------------------


class Contestant(NamedTuple):
    """A learning rule, and as many models of it as there are.

    Of a step's result, (2, n), the row of this contestant's seat counts.
    """

    step: Callable  # step(x), or if there are models step(x, model, gammas, key)
    models: Any = None  # a pytree with a leading axis: errors are taken over models
    starts: np.ndarray | None = None  # (model, 2, n), if it chooses where to start
    gamma: float = 0.0  # its meta-discount, as MeVa's opponents are told it


def untrained(game: Game, protocol: Protocol) -> dict[str, Contestant]:
    """Rules without a model, by name."""
    f, alpha = game.f, protocol.alpha

    def follow_naive(x):
        return x + protocol.lr * naive.naive_gradient(f, x)

    def follow_lola(x):
        return x + protocol.lr * lola.lola_gradient(f, x, alpha)

    def follow_taylor(x):
        direction = lola.lola_gradient(f, x, alpha, variant="taylor-stop")
        return x + protocol.lr * direction

    def follow_hola(x):
        return x + protocol.lr * hola.hola_gradient(f, x, alpha, order=2)

    def follow_sos(x):
        scale = 1 / (1 - game.rules.discount)
        return x + protocol.lr * sos.sos_gradient(f, x, alpha, scale=scale)

    def follow_pola(x):
        # A unit of divergence costs what half a squared distance costs LOLA, 1 / lr. So
        # a short step is LOLA's divided by p (1 - p), p the chance of C: 4 to 40 times
        # as long.
        distance = partial(pola.divergence, game)
        beta = 1 / protocol.lr
        return pola.pola_step(f, x, alpha, beta, distance)

    def follow_loqa(x, variant):
        beta = game.rules.lr  # 2 on the IPD; less where payoffs are larger
        return x + protocol.lr * loqa.loqa_gradient(game, x, beta, variant)

    return {
        "naive": Contestant(follow_naive),
        "lola": Contestant(follow_lola),
        "lola-taylor-stop": Contestant(follow_taylor),
        "hola2": Contestant(follow_hola),
        "sos": Contestant(follow_sos),
        "pola": Contestant(follow_pola),
        "loqa": Contestant(partial(follow_loqa, variant="loqa")),
        "loqa-full": Contestant(partial(follow_loqa, variant="full")),
        "alignment": Contestant(partial(follow_loqa, variant="alignment")),
    }


def load_models(script: str, results: Results, game: Game) -> tuple:
    """The settings and the trained models of a run, a pytree with an axis of seeds."""
    settings = {}
    for name, value in results["config"].items():
        if name != "run_on":
            settings[name] = tuple(value) if isinstance(value, list) else value
    try:
        config = SCRIPTS[script].Config(**settings)
        like = SCRIPTS[script].model_init(jax.random.key(0), game, config)
        return config, unflatten(results, "params", like)
    except (TypeError, ValueError) as error:
        raise Broken(f"{results['path']}: {error}") from None


def trained(
    name: str, game: Game, protocol: Protocol, runs: dict[str, Results]
) -> Contestant:
    """A trained rule, from the results of its runs: those of NAME, or NAME+swapped."""
    script = name.partition("-")[0]
    lr, alpha = protocol.lr, protocol.alpha

    if script == "maml":
        sizes = runs[name]["params/step_size"]  # (model, 2)

        def follow_maml(x, step_size, gammas, key):
            return x + step_size[:, None] * naive.naive_gradient(game.f, x)

        return Contestant(follow_maml, sizes, starts=runs[name]["params/policy"])
    if script == "coala":  # its agents stand still
        return Contestant(lambda x: x, starts=runs[name]["params/policy"])

    config, models = load_models(script, runs[name], game)
    if f"{name}+swapped" in runs:  # a model for each seat
        _, of_player_2 = load_models(script, runs[f"{name}+swapped"], game)
        models = (models, of_player_2)

    def follow_cola(x, model, gammas, key):
        return x + lr * cola.cola_gradient(model, game, x, alpha)

    def follow_meva(x, model, gammas, key):
        return x + lr * meva.meva_gradient(model, game, x, gammas, config)

    def draw_mfos(x, model, gammas, key):
        rows = [mfos.act(key, model, game, x, seat)[1] for seat in (0, 1)]
        return jnp.stack(rows)

    if script == "cola":
        return Contestant(follow_cola, models)
    if script == "mfos":
        return Contestant(draw_mfos, models)
    return Contestant(follow_meva, models, gamma=protocol.gamma)


def fixed(game: Game) -> dict[str, Contestant]:
    """Policies that do not learn: tables of log-odds that see one round."""
    everyone = {}
    for name, signs in FIXED.items():
        policies = np.broadcast_to(30 * np.float32(signs), (1, 2, 5))
        everyone[name] = Contestant(lambda x: x, starts=policies)
    return everyone


def contestants(
    game: Game, protocol: Protocol, runs: dict[str, Results]
) -> dict[str, Contestant]:
    """Everyone, by name: rules, trained ones of which there are runs, fixed policies."""
    everyone = untrained(game, protocol)
    for name in runs:
        if not name.endswith("+swapped"):
            everyone[name] = trained(name, game, protocol, runs)
    if game.rules.policy == "table" and game.rules.memory == 1:
        everyone.update(fixed(game))
    return everyone


def find_models(game: Game, protocol: str, folders: list[Path]) -> tuple:
    """The results of trained rules by name, and the names of runs that are nowhere."""
    place = "authors/" if protocol == "authors" else ""
    names = {}
    for name in TRAINED:
        names[name] = f"{place}{name}_{game.name}"
        opponent = name.partition("-")[2]
        if name.startswith("meva") and opponent and not game.symmetric:
            # Beside an opponent a model is for one seat.
            names[f"{name}+swapped"] = f"{place}{name}_{game.name}+swapped"
    found, missing = find(names.values(), folders)
    runs = {name: found[run] for name, run in names.items() if run in found}
    for name in TRAINED:
        if f"{name}+swapped" in names and f"{name}+swapped" not in runs:
            runs.pop(name, None)  # it takes both
        if name not in runs:
            runs.pop(f"{name}+swapped", None)
    return runs, missing


# --- Playing --------------------------------------------------------------------------


def count_models(models) -> int:
    """How many models there are; a rule without any counts as one."""
    leaves = jax.tree.leaves(models)
    return len(leaves[0]) if leaves else 1


def next_policy(step, model, x, seat: int, gammas, key) -> jax.Array:
    """The next policy, (n,), of the player in this seat."""
    if model is None:
        return step(x)[seat]
    return step(x, model, gammas, key)[seat]


@partial(jax.jit, static_argnames=("game", "rules", "gammas", "steps"))
def play_pair(
    game: Game, rules: tuple, models: tuple, own: tuple, gammas: tuple, starts, steps
):
    """Two rules from the same starts, each pair of their models as often as any.

    Args:
      game: the game.
      rules: the steps of players 1 and 2.
      models: of each, or None.
      own: where each starts instead, (model, 2, n), or None.
      gammas: their meta-discounts.
      starts: joint policies, (trial, 2, n).
      steps: how many.

    Returns:
      where they end, (trial, 2, n), and which models they were of, (trial, 2).
    """
    counts = []
    for player in (0, 1):
        counts.append(count_models((models[player], own[player])))
    pairs = np.array(list(np.ndindex(*counts)))  # (pair, 2)
    # Trial t is played by pair t % len(pairs).
    share = -(-len(starts) // len(pairs))
    trials = jnp.arange(share * len(pairs)).reshape(share, -1).T % len(starts)
    seen = np.float32(gammas)

    def of_pair(args):
        which, those = args  # models, (2,), and trials, (share,)
        playing = []
        x = starts[those]
        for seat in (0, 1):
            chosen = jax.tree.map(lambda leaf, i=which[seat]: leaf[i], models[seat])
            playing.append(chosen)
            if own[seat] is not None:
                x = x.at[:, seat].set(own[seat][which[seat], seat])

        def step(x, key):
            keys = jax.random.split(key)
            rows = []
            for seat in (0, 1):
                row = next_policy(rules[seat], playing[seat], x, seat, seen, keys[seat])
                rows.append(row)
            return jnp.stack(rows)

        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(1)))(those)

        def last_of(trial):
            x, key = trial
            return follow(step, x, steps, key)

        return jax.lax.map(last_of, (x, keys), batch_size=BATCH)

    ends = jax.lax.map(of_pair, (pairs, trials))  # (pair, share, 2, n)
    ends = ends.swapaxes(0, 1).reshape(-1, 2, game.n)[: len(starts)]
    return ends, np.resize(pairs, (len(starts), 2))


CORNERS = ("CC", "DC", "CD", "DD", "none")  # where they end, player 1's action first


def corners_of(game: Game, ends: jax.Array) -> jax.Array:
    """The actions in more than half of the rounds, (trial,), an index of `CORNERS`."""

    def of_trial(x):
        dd, cd, dc, cc = state_distribution(game.log_odds(x), game.rules.discount)
        shares = jnp.stack([cc, dc, cd, dd])
        return jnp.where(shares.max() > 0.5, shares.argmax(), 4)

    return jax.vmap(of_trial)(ends)


def hold_tournament(
    game: Game,
    everyone: dict[str, Contestant],
    steps: int,
    trials: int = TRIALS,
    earlier: dict | None = None,
) -> dict:
    """Each contestant, player 1, beside each, player 2: arrays of the npz.

    All play from the same initial policies. Pairs of those in `earlier`, the arrays of
    another tournament, are taken from there.
    """
    starts = jax.vmap(game.init)(jax.random.split(jax.random.key(0), trials))
    count = len(everyone)
    shape = (count, count, trials)
    results = {
        "returns": np.zeros((*shape, 2), np.float32),
        "trained": np.zeros(shape, np.uint8),  # player 1's model
        "trained_2": np.zeros(shape, np.uint8),
        "corner": np.zeros(shape, np.uint8),
    }
    known = [] if earlier is None else list(earlier["names"])
    for i, name in enumerate(everyone):
        print(f"{i + 1:3d} / {count}  {name} beside all", flush=True)
        for j, other in enumerate(everyone):
            if name in known and other in known:
                cell = (known.index(name), known.index(other))
                for key, array in results.items():
                    array[i, j] = earlier[key][cell]
                continue
            both = (everyone[name], everyone[other])
            ends, played = play_pair(
                game,
                rules=tuple(one.step for one in both),
                models=tuple(one.models for one in both),
                own=tuple(one.starts for one in both),
                gammas=tuple(one.gamma for one in both),
                starts=starts,
                steps=steps,
            )
            results["returns"][i, j] = jax.vmap(game.f)(ends)
            results["corner"][i, j] = corners_of(game, ends)
            results["trained"][i, j] = played[:, 0]
            results["trained_2"][i, j] = played[:, 1]
        # Hundreds of compiled programs would take more memory mappings than a process
        # may have.
        jax.clear_caches()
    return {**results, "names": np.array(list(everyone))}


# --- Means, errors, equilibria --------------------------------------------------------


def by_model(returns: np.ndarray, played: np.ndarray) -> np.ndarray:
    """Means over the trials of each model, (trial, ...), (trial,) -> (model, ...)."""
    means = [returns[played == model].mean(axis=0) for model in range(played.max() + 1)]
    return np.array(means)


def has_models(results: Results, k: int) -> bool:
    """Is the k-th contestant one of which there are models?"""
    return results["names"][k] in TRAINED or results["trained"][k].max() > 0


def standard_errors(results: Results) -> np.ndarray:
    """Of the mean returns of each pair, (A, A, 2), over models.

    Over trials where nobody has a model. Squared, it is the sum over both sides of that
    of their models' means, which counts what noise is in both twice. Where one set of
    models has both sides (on the diagonal) that is of each model's two means together.
    NaN: there is one model, of which no error can be known.
    """
    count = len(results["names"])
    errors = np.zeros((count, count, 2))
    for i, j in np.ndindex(count, count):
        returns = results["returns"][i, j]
        means = []
        if has_models(results, i):
            means.append(by_model(returns, results["trained"][i, j]))
        if has_models(results, j):
            means.append(by_model(returns, results["trained_2"][i, j]))
        if i == j and means:
            means = [means[0] + means[1]]
        if not means:
            means = [returns]
        square = 0.0
        for samples in means:
            square += standard_error_of(samples) ** 2
        errors[i, j] = np.sqrt(square)
    return errors


def standard_error_of(samples: np.ndarray) -> np.ndarray:
    """Of the means of samples, (number, 2) -> (2,)."""
    if len(samples) == 1:
        return np.full(2, np.nan)
    return samples.std(axis=0, ddof=1) / len(samples) ** 0.5


def best_replies(means: np.ndarray) -> np.ndarray:
    """Which rows are best beside a column, to .001. (A, A) -> (A, A)."""
    return means > np.where(np.isfinite(means), means, -np.inf).max(axis=0) - 1e-3


def meta_game(results: Results) -> np.ndarray:
    """Mean return of each contestant beside each, seats by lot, to .001, (A, A)."""
    means = results["returns"].mean(axis=2, dtype=float)
    return ((means[..., 0] + means[..., 1].T) / 2).round(3)


def symmetric_equilibria(payoffs: np.ndarray) -> list[np.ndarray]:
    """Mixtures p, (A,), that are best replies to themselves. Payoffs (A, A) of the row.

    By enumeration of supports of five at most: within one, all are worth the same
    against p, and nothing outside it is worth more. Of supports on which that leaves p
    open, as where strategies are alike, none is found.
    """
    found = []
    for size in range(1, 6):
        supports = itertools.combinations(range(len(payoffs)), size)
        supports = np.array(list(supports), int).reshape(-1, size)
        systems = np.ones((len(supports), size + 1, size + 1))
        systems[:, :size, :size] = payoffs[supports[:, :, None], supports[:, None, :]]
        systems[:, :size, size] = -1  # times what all are worth
        systems[:, size, size] = 0
        regular = np.linalg.matrix_rank(systems) > size
        right_side = np.eye(size + 1)[:, -1:]
        solutions = np.linalg.solve(systems[regular], right_side)[..., 0]
        for support, (*weights, worth) in zip(supports[regular], solutions):
            p = np.zeros(len(payoffs))
            p[support] = weights
            if min(weights) > 1e-9 and (payoffs @ p).max() <= worth + 1e-9:
                found.append(p)
    return found


class Equilibrium(NamedTuple):
    """A symmetric equilibrium of the meta-game."""

    mixture: str  # who plays, in words
    worth: float  # what everybody gets
    slack: float  # less what the best of those outside would get; inf: nobody is
    error: float  # standard error of the slack


def equilibria(results: Results, who: np.ndarray) -> list[Equilibrium]:
    """Symmetric equilibria among some contestants, (A,) of truth values.

    The slack is a sum of the meta-game's entries with weights, whose errors are taken
    for independent. An entry is a mean over both seats, in which the same models play:
    its error is the mean of both seats' errors.
    """
    errors = standard_errors(results)
    squares = ((errors[..., 0] + errors[..., 1].T) / 2) ** 2
    payoffs = meta_game(results)[np.ix_(who, who)]
    squares = squares[np.ix_(who, who)]
    names = results["names"][who]
    found = []
    for p in symmetric_equilibria(payoffs):
        words = []
        for weight, name in zip(p, names):
            if weight == 1:
                words.append(name)
            elif weight > 0:
                words.append(f"{weight:.2g} {name}")
        worth = p @ payoffs @ p
        outside = np.where(p > 0, -np.inf, payoffs @ p)
        rival = outside.argmax()
        weights = np.outer(p - np.eye(len(p))[rival], p)
        counts = weights != 0
        error = np.sqrt((weights[counts] ** 2 * squares[counts]).sum())
        slack = worth - outside[rival]
        found.append(Equilibrium(" + ".join(words), worth, slack, error))
    return found


def describe_equilibria(results: Results, most: int = 100) -> str:
    """In words: the equilibria among all, and among those that learn."""
    payoffs = meta_game(results)
    finite = np.isfinite(payoffs).all(axis=0) & np.isfinite(payoffs).all(axis=1)
    learn = ~np.isin(results["names"], list(FIXED))
    lines = []
    for label, who in (("all", finite), ("those that learn", finite & learn)):
        found = equilibria(results, who)
        words = []
        for one in found[:most]:
            slack = f"slack {one.slack:.3f} ± {one.error:.3f}"
            if np.isinf(one.slack):
                slack = "nobody is outside"
            elif one.slack <= 1e-3:
                slack = "weak"
            words.append(f"{one.mixture} (return {one.worth:.3f}, {slack})")
        if len(found) > most:
            words.append(f"{len(found) - most} more")
        lines.append(f"among {label}: {'; '.join(words) or 'none'}")
    return ". And ".join(lines)


# --- Tables ---------------------------------------------------------------------------

AUTHORS = {  # their returns on the IPD, row : column, as far as the columns' are known
    ("naive", "naive"): (-1.988,),
    ("naive", "lola-taylor-stop"): (-1.377, -1.357),
    ("lola-taylor-stop", "lola-taylor-stop"): (-1.041,),
    ("maml", "maml"): (-1.224,),
    ("naive", "maml"): (-1.524, -1.398),
    ("lola-taylor-stop", "maml"): (-0.974, -1.290),
    ("meva-naive", "naive"): (-0.551, -1.999),
    ("meva-lola", "lola-taylor-stop"): (-1.145, -1.032),
    ("meva", "maml"): (-0.534, -1.993),
    ("meva", "meva"): (-1.052,),
}


def table(heading, rows) -> str:
    """A table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def matrix(names, words: Callable) -> str:
    """A table of pairs in Markdown; `words(i, j)` says what is in a cell."""
    rows = []
    for i, name in enumerate(names):
        rows.append([name, *(words(i, j) for j in range(len(names)))])
    return table(("", *names), rows)


def tables(results: Results) -> str:
    """Returns, medians, corners, best replies, equilibria, and the authors' cells."""
    names = list(results["names"])
    means = results["returns"].mean(axis=2)
    medians = np.median(results["returns"], axis=2)
    errors = standard_errors(results)
    protocol = PROTOCOLS[results["config"]["protocol"]]

    def of_player_1(i, j):
        return f"{means[i, j, 0]:z.3f} ± {errors[i, j, 0]:.3f}"

    def of_player_2(i, j):
        return f"{means[i, j, 1]:z.3f} ± {errors[i, j, 1]:.3f}"

    def of_medians(i, j):
        return f"{medians[i, j, 0]:z.3f} : {medians[i, j, 1]:z.3f}"

    def of_corners(i, j):
        shares = [(results["corner"][i, j] == corner).mean() for corner in range(4)]
        return " ".join(f"{100 * share:.0f}" for share in shares)

    replies = []
    best = best_replies(means[..., 0])
    for j, name in enumerate(names):
        replies.append((name, ", ".join(results["names"][best[:, j]])))
    parts = [
        (
            f"With {protocol}: mean return of the row, player 1, beside the column, "
            "player 2; errors over models:"
        ),
        matrix(names, of_player_1),
        "Of the column, player 2:",
        matrix(names, of_player_2),
        "The medians, row : column:",
        matrix(names, of_medians),
        (
            f"Percent of the trials that end in {', '.join(CORNERS[:4])} (more than half "
            "of the rounds, discounted):"
        ),
        matrix(names, of_corners),
        "Player 1's best replies, to .001:",
        table(("to", "are"), replies),
        (
            "Symmetric equilibria of the meta-game, of five at most, seats by lot; a slack "
            "is what the best of those outside would lose: "
            f"{describe_equilibria(results)}."
        ),
    ]
    settings = (results["config"]["game"], results["config"]["protocol"])
    if settings == ("ipd", "authors"):
        parts.append("The authors' cells, ours, and the distance in standard errors:")
        parts.append(table_beside_the_authors(names, means, errors))
    return "\n\n".join(parts)


def table_beside_the_authors(names: list[str], means, errors) -> str:
    """The cells that the authors publish, beside ours."""
    rows = []
    for (row, column), theirs in AUTHORS.items():
        if row not in names or column not in names:
            continue
        i = names.index(row)
        j = names.index(column)
        ours = []
        far = []
        for mean, error in zip(means[i, j], errors[i, j]):
            ours.append(f"{mean:.3f} ± {error:.3f}")
        for mean, error, known in zip(means[i, j], errors[i, j], theirs):
            far.append(f"{(mean - known) / error:+.1f}")
        known = " : ".join(f"{number:.3f}" for number in theirs)
        rows.append((row, column, known, " : ".join(ours), " : ".join(far)))
    return table(("row", "column", "authors", "here", "distance"), rows)


def print_returns(results: Results):
    """What player 1 gets beside player 2, and the equilibria, on a terminal."""
    names = results["names"]
    width = max(len(name) for name in names)
    means = results["returns"].mean(axis=2)[..., 0]
    errors = standard_errors(results)[..., 0]
    print("Mean return of the row, player 1, beside the column; below, its error")
    print(" " * width, *(f"{number:6d}" for number in range(1, len(names) + 1)))
    for i, name in enumerate(names):
        print(name.ljust(width), *(f"{mean:z6.2f}" for mean in means[i]), i + 1)
        print(" " * width, *(f"{error:z6.2f}" for error in errors[i]))
    words = describe_equilibria(results, most=5).replace("±", "+-")
    print(f"Symmetric equilibria of the meta-game, {words}.")


# --- Figures --------------------------------------------------------------------------

COLORS_OF_CORNERS = ("tab:green", "tab:orange", "tab:purple", "tab:red", "lightgray")


def heading(results: Results) -> str:
    """Which game, with which settings, and with how many models."""
    config = results["config"]
    models = results["trained"].max() + 1
    words = f"Tournament on {config['game']}, {PROTOCOLS[config['protocol']]}"
    return f"{words}, up to {models} models of a learner"


def draw_matrix(axis, results: Results, who: np.ndarray, size: float):
    """What the row gets beside the column, of some contestants, (A,) of indices."""
    pick = np.ix_(who, who)
    means = results["returns"].mean(axis=2)[..., 0][pick]
    errors = standard_errors(results)[..., 0][pick]
    low, high = np.percentile(means, (15, 95))
    axis.imshow(means, cmap="RdYlGn", vmin=low, vmax=high, alpha=0.8)
    style = {"ha": "center", "va": "center"}
    for (i, j), mean in np.ndenumerate(means):
        axis.text(j, i - 0.17, f"{mean:z.2f}", fontsize=size, weight="bold", **style)
        words = f"±{errors[i, j]:.2f}"
        axis.text(j, i + 0.24, words, fontsize=0.75 * size, **style)
    for i, j in np.argwhere(best_replies(means)):
        corner = (j - 0.47, i - 0.47)
        axis.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, linewidth=1.2))
    label_contestants(axis, results["names"][who], size)


def label_contestants(axis, names, size: float):
    """Names along both sides of a panel of pairs."""
    places = range(len(names))
    axis.set_xticks(places, names, rotation=50, ha="right", fontsize=size)
    axis.set_yticks(places, names, fontsize=size)
    axis.set(xlabel="player 2", ylabel="player 1")


def draw_corners(axis, results: Results):
    """In which corner each pair ends: shares of the trials, as bars."""
    count = len(results["names"])
    rows, columns = np.indices((count, count))
    left = columns - 0.45
    for corner, label in enumerate(CORNERS):
        widths = 0.9 * (results["corner"] == corner).mean(axis=2)
        axis.barh(
            rows.ravel(),
            widths.ravel(),
            0.8,
            left=left.ravel(),
            color=COLORS_OF_CORNERS[corner],
            label=label,
        )
        left = left + widths
    axis.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect=1)
    axis.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=6)
    label_contestants(axis, results["names"], 6)


def draw_tournament(figure: Figure, results: Results):
    """Everyone: returns above, and below in which corner pairs end."""
    figure.set_size_inches(WIDTH, 2 * WIDTH + 0.5)
    upper, lower = figure.subplots(2, 1)
    everyone = np.arange(len(results["names"]))
    draw_matrix(upper, results, everyone, size=min(6, 95 / len(everyone)))
    upper.set_title(
        "return of the row beside the column; framed: best replies to the column"
    )
    draw_corners(lower, results)
    lower.set_title(
        "actions in more than half of the rounds, in the end (row's first): trials",
        pad=20,
    )
    figure.suptitle(heading(results), fontsize=9)


def draw_learners(figure: Figure, results: Results):
    """The returns of those that learn beside each other."""
    figure.set_size_inches(WIDTH, WIDTH)
    learn = np.flatnonzero(~np.isin(results["names"], list(FIXED)))
    draw_matrix(figure.subplots(), results, learn, size=min(7.5, 105 / len(learn)))
    trials = results["returns"].shape[2]
    figure.suptitle(
        f"{heading(results)}, {trials} trials for each pair.\n"
        "Return of the row; framed: the best replies to a column; ±: standard errors",
        fontsize=8,
    )


def draw(results: Results, folder: Path):
    """Both figures, into a folder."""
    name = f"tournament_{results['config']['game']}"
    folder.mkdir(parents=True, exist_ok=True)
    for path, draw_on in (
        (folder / f"{name}.png", draw_tournament),
        (folder / f"{name}_learners.png", draw_learners),
    ):
        save_figure(partial(draw_on, results=results), path)
        print(f"wrote {path}")


# --- A tournament ---------------------------------------------------------------------


def held_before(game: Game, protocol: str, folders: list[Path]) -> Results | None:
    """The tournament that was held last on this game with these settings, if any."""
    settings = protocol_of(game, protocol)._asdict()
    for folder in folders:
        runs, _ = find([f"tournament_{game.name}"], [folder])
        for results in runs.values():
            had = {name: results["config"].get(name) for name in settings}
            if had == settings and results["returns"].shape[2] == TRIALS:
                return results
    return None


def play(
    game: Game | str,
    mine: dict[str, Callable | Contestant] | None = None,
    protocol: str = "paper",
    out: str | Path = ".",
) -> Results:
    """Hold a tournament; write, print and draw it.

    Args:
      game: the game, or its name.
      mine: rules of your own by name, each a step(x), (2, n) -> (2, n), or a
        `Contestant`. They play beside all others. What the others do beside each other
        is taken from the tournament that was held before, if there is one in OUT.
      protocol: "paper" or "authors", see `protocol_of`.
      out: the folder of results/ and figures/.

    Returns:
      the arrays of the npz. ValueError if a name is taken, the game is not iterated,
      or the authors have no tournament on it.
    """
    game = find_game(game)
    if not game.iterated:
        raise ValueError(f"--game takes an iterated game, not {game.name}")
    settings = protocol_of(game, protocol)
    results_folder = Path(out) / "results"
    folders = [results_folder, results_folder / "paper"]
    runs, missing = find_models(game, protocol, folders)
    for name, results in runs.items():
        print(f"{name}: {results['path']}")
    for name in missing:
        print(f"missing: {name}; results/paper/details.md says how it is made")

    everyone = contestants(game, settings, runs)
    earlier = None
    if mine:
        earlier = held_before(game, protocol, folders)
    for name, rule in (mine or {}).items():
        if name in everyone:
            raise ValueError(f"there is a contestant {name}")
        everyone[name] = rule if isinstance(rule, Contestant) else Contestant(rule)
    if earlier is not None:
        kept = [name for name in earlier["names"] if name not in (mine or {})]
        earlier = only(earlier, kept)

    results_folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=results_folder).close()  # before it takes minutes
    arrays = hold_tournament(game, everyone, settings.steps, TRIALS, earlier)
    config = {
        "game": game.name,
        "protocol": protocol,
        **settings._asdict(),
        "models": [str(results["path"]) for results in runs.values()],
        "missing": missing,
    }
    path = results_folder / f"tournament_{game.name}.npz"
    save = partial(np.savez_compressed, config=json.dumps(config), **arrays)
    write_file(path, save)
    print(f"wrote {path}")
    results = Results(arrays, config=config, path=path)
    print_returns(results)
    draw(results, Path(out) / "figures/own")
    return results


def only(results: Results, names: list[str]) -> dict:
    """The arrays of some contestants of a tournament."""
    which = np.flatnonzero(np.isin(results["names"], names))
    picked = {"names": results["names"][which]}
    for key in ("returns", "trained", "trained_2", "corner"):
        picked[key] = results[key][np.ix_(which, which)]
    return picked


# --- Who finds tit-for-tat in the contribution game? (Zhao et al., 2022) --------------

FACTORS = (1.1, 1.25, 1.33, 1.4, 1.6)  # of what is given
GRID = list(itertools.product((0.03, 0.1, 0.3, 1, 3), (0.05, 0.3, 2, 10)))
SEARCHES = {  # algorithm and kind of policies: steps, and settings for each factor
    # alpha times and beta over 1 - discount, as in the authors' code
    ("pola", "tables"): (
        10,
        [[(5, 0.1)], [(5, 0.1)], [(5, 0.1)], [(4, 0.1)], [(2.5, 0.1)]],
    ),
    ("pola", "skewed tables"): (
        10,
        [[(0.4, 0.5)], [(0.5, 0.5)], [(0.4, 0.5)], [(0.3, 0.5)], [(0.3, 0.5)]],
    ),
    ("pola", "networks"): (
        10,
        [[(0.3, 0.1)], [(0.25, 0.13)], [(0.25, 0.13)], [(0.2, 0.1)], [(0.12, 0.05)]],
    ),
    # alpha and lr times 1 - discount. The authors have none of skewed tables, where the
    # best of a grid counts, and none of networks at 1.1 and 1.25: those of 1.33.
    ("lola", "tables"): (30, [[(3, 25)]] * 5),
    ("lola", "skewed tables"): (100, [GRID] * 5),
    ("lola", "networks"): (
        100,
        [[(0.4, 0.05)], [(0.4, 0.05)], [(0.4, 0.05)], [(0.3, 0.1)], [(0.12, 0.05)]],
    ),
}


def plays_tit_for_tat(game: Game, x: jax.Array) -> jax.Array:
    """Have both found tit-for-tat, as Zhao et al. (2022) count it? (2, n) -> (), bool.

    Each cooperates with less than .65 after any round in which the other defected, and
    their mean return is more than .8 of the way from DD's payoff to CC's: they
    reciprocate, and mostly cooperate. (In their code DD's payoff is 0.)
    """
    after_d = np.array([label.endswith("D") for label in game.labels])
    chances = jax.nn.sigmoid(game.log_odds(x))
    reciprocate = (chances[:, after_d] < 0.65).all()
    cc, _, _, dd = game.rules.own
    return reciprocate & (game.f(x).mean() - dd > 0.8 * (cc - dd))


def contribution_game(kind: str, factor) -> Game:
    """The contribution game with this kind of policies, and a factor that JAX knows."""
    game = find_game(KINDS[kind].replace("ipd", "contribution"))
    own = (factor - 1, factor / 2 - 1, factor / 2, 0 * factor)
    payoffs = Rules(own, own).payoffs

    def returns(x):
        return iterated_returns(game.log_odds(x), payoffs, game.rules.discount)

    return game._replace(f=returns, rules=game.rules._replace(own=own, other=own))


@partial(jax.jit, static_argnames=("algorithm", "kind", "steps", "trials"))
def search_with(algorithm: str, kind: str, settings, steps: int, trials: int):
    """When do pairs play tit-for-tat? (setting, trial, step).

    A setting is a factor, POLA's alpha and beta or LOLA's alpha and lr, (setting, 3).
    """

    def of_setting(setting):
        factor, alpha, other = setting
        game = contribution_game(kind, factor)
        scale = 1 / (1 - game.rules.discount)

        def step(x, _):
            if algorithm == "pola":
                # The divergence does not depend on the factor.
                distance = partial(pola.divergence, game)
                beta = other / scale
                x = pola.pola_step(game.f, x, scale * alpha, beta, distance)
            else:
                lr = scale * other
                x = x + lr * lola.lola_gradient(game.f, x, scale * alpha)
            return x, plays_tit_for_tat(game, x)

        starts = jax.vmap(game.init)(jax.random.split(jax.random.key(0), trials))
        return jax.vmap(lambda x: jax.lax.scan(step, x, length=steps)[1])(starts)

    return jax.vmap(of_setting)(settings)


def search_for_tit_for_tat(trials: int = 100) -> dict:
    """The shares of pairs that play it at some time, and in the end.

    `found`, (A, factor, 2), by `names`, (A,). Of several settings that counts with
    which most find it at some time.
    """
    found = np.zeros((len(SEARCHES), len(FACTORS), 2), np.float32)
    names = []
    for k, ((algorithm, kind), (steps, by_factor)) in enumerate(SEARCHES.items()):
        print(f"{k + 1} / {len(SEARCHES)}  {algorithm}, {kind}", flush=True)
        names.append(f"{TITLES[algorithm]}, {kind}")
        settings = []
        for factor, of_factor in zip(FACTORS, by_factor, strict=True):
            settings += [(factor, *setting) for setting in of_factor]
        when = search_with(algorithm, kind, np.float32(settings), steps, trials)
        when = np.asarray(when).reshape(len(FACTORS), -1, trials, steps)
        ever = when.any(axis=3).mean(axis=2)  # (factor, setting)
        in_the_end = when[..., -1].mean(axis=2)
        for row, best in enumerate(ever.argmax(axis=1)):
            found[k, row] = (ever[row, best], in_the_end[row, best])
    return {"found": found, "names": np.array(names)}


def table_of_searches(results) -> str:
    """Who finds tit-for-tat, and who still plays it in the end, by the factor."""
    rows = []
    for name, shares in zip(results["names"], results["found"]):
        rows.append((name, *(f"{ever:.2f} ({end:.2f})" for ever, end in shares)))
    return table(("at some time (in the end)", *map(str, FACTORS)), rows)


def search(out: str | Path):
    """See how often tit-for-tat is found, write and print it."""
    path = Path(out) / "results/tit-for-tat_contribution.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = search_for_tit_for_tat()
    config = json.dumps({"game": "contribution", "protocol": "authors"})
    write_file(path, partial(np.savez_compressed, config=config, **arrays))
    print(f"{table_of_searches(arrays)}\n\nwrote {path}")


# --- What do learned policies allow others? (Press and Dyson, 2012) -------------------

TIMES = (0, 5, 10, 20, 35, 50)  # steps of learning
AGENTS = 8  # of each rule, from the tournament's first starts
OPPONENTS = 1000


def learn_beside(one: Contestant, other: Contestant, starts) -> jax.Array:
    """The pairs that learn, at `TIMES`. (agent, 2, n) -> (agent, time, 2, n).

    Player 1 follows `one`, and player 2 `other`, each with the first of its models.
    """
    gammas = jnp.float32([one.gamma, other.gamma])
    rules = []
    for contestant in (one, other):
        rule = contestant.step
        if contestant.models is not None:
            model = jax.tree.map(lambda leaf: leaf[0], contestant.models)
            rule = partial(rule, model=model, gammas=gammas, key=None)
        rules.append(rule)
    step = beside(*rules)
    paths = jax.jit(jax.vmap(lambda x: trajectory(step, x, TIMES[-1])))(starts)
    return paths[:, np.array(TIMES)]


def meet(game: Game, policy: jax.Array, opponents: jax.Array) -> jax.Array:
    """What a policy, (n,), gets beside each opponent, (K, n), and they. (K, 2)."""
    return jax.vmap(lambda opponent: game.f(jnp.stack([policy, opponent])))(opponents)


def play_polytope(game: Game, everyone: dict[str, Contestant]) -> dict:
    """Agents meet random opponents while they learn: arrays of the npz.

    Opponents are tables of log-odds, uniform between -5 and 5, the same for all.

    Returns:
      "clouds", (A, agent, time, opponent, 2): returns beside opponents, the agent's
      first, of the rules in `plots.LEARNED`; "partners", (A, agent, time, 2): those
      beside the player it learns with; "names", (A,); and "times".
    """
    keys = jax.random.split(jax.random.key(0), TRIALS)[:AGENTS]
    starts = jax.vmap(game.init)(keys)
    shape = (OPPONENTS, game.n)
    opponents = jax.random.uniform(jax.random.key(1), shape, minval=-5, maxval=5)
    of_all = jax.jit(jax.vmap(jax.vmap(lambda own: meet(game, own, opponents))))
    clouds = []
    partners = []
    for own, other in LEARNED.values():
        pairs = learn_beside(everyone[own], everyone[other], starts)
        clouds.append(of_all(pairs[:, :, 0]))
        partners.append(jax.vmap(jax.vmap(game.f))(pairs))
    # To .01, less than a dot of the figure.
    return {
        "clouds": np.round(clouds, 2).astype(np.float16),
        "partners": np.array(partners),
        "names": np.array(list(LEARNED)),
        "times": np.array(TIMES),
    }


def polytope(out: str | Path):
    """Let agents of the IPD meet random opponents, and write what they get."""
    game = find_game("ipd")
    settings = protocol_of(game, "authors")
    folder = Path(out) / "results"
    runs, missing = find(["authors/meva_ipd"], [folder, folder / "paper"])
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}: see results/paper/details.md")
    everyone = contestants(game, settings, {"meva": runs["authors/meva_ipd"]})
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings._replace(steps=TIMES[-1])
    config = {"game": game.name, "protocol": "authors", "num_seeds": 1}
    arrays = play_polytope(game, everyone)
    path = folder / "polytope_ipd.npz"
    config = json.dumps(config | settings._asdict())
    write_file(path, partial(np.savez_compressed, config=config, **arrays))
    print(f"wrote {path}; python plots.py --figure polytope draws it")


# --- Command line ---------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=argparse.SUPPRESS,  # so that an error is one line
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--game", default="ipd", help="an iterated game, or a variant")
    parser.add_argument(
        "--protocol", default="paper", choices=PROTOCOLS, help="whose settings"
    )
    parser.add_argument("--paper", action="store_true", help="draw what is kept")
    parser.add_argument("--search", action="store_true", help="for tit-for-tat instead")
    parser.add_argument("--polytope", action="store_true", help="random opponents")
    parser.add_argument("--out", default=".", help="folder of results/ and figures/")
    args = parser.parse_args(argv)
    try:
        if args.search:
            search(args.out)
        elif args.polytope:
            polytope(args.out)
        elif args.paper:
            name = f"tournament_{args.game}.npz"
            results = load(Path(args.out) / "results/paper" / name)
            print_returns(results)
            draw(results, Path(args.out) / "figures")
        else:
            play(args.game, protocol=args.protocol, out=args.out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    run_script(main)
