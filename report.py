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
"""The results pages: the runs that they need, the paper's claims, all tables.

    python report.py                   write the tables anew into README.md and into
                                       README.md and details.md of results/paper/, from
                                       the runs there
    python report.py --check           are these pages current? Status 1 if not
    python report.py --table claims    print one table, from your runs in results/ and,
                                       where you have none, from those in results/paper/

The text of the pages is written by hand. A table stands between two marks,
`<!-- table NAME -->` and `<!-- end -->`.
"""

import argparse
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cola
import meva
import tournament
from games import (
    GAMES,
    exact_best_response,
    run_script,
    simultaneous_gradient,
    state_distribution,
    write_file,
)
from hola import hola_gradient
from loqa import loqa_gradient
from plots import (
    ABLATIONS,
    EPISODES,
    KINDS,
    OF_KINDS,
    OF_SAMPLES,
    PANELS,
    RETURNS,
    RULES,
    SAMPLED,
    TIT_FOR_TAT,
    TITLES,
    Broken,
    Results,
    at,
    best,
    find,
    labelled,
    logistic_returns,
    sampled_run,
    script_of,
    standard_error,
    strategies,
)
from sos import sos_gradient
from tournament import TOURNAMENTS, by_model, load_models, table

LOGISTIC = GAMES["logistic"]
IPD = GAMES["ipd"]
ULTIMATUM = GAMES["ultimatum"]
A, B = -5.0307, 5.0307  # the Logistic Game's stable fixed points are (A, A) and (B, B)

# --- The runs: name and command, without `python` and --out ---------------------------

GAMMAS = "--num-seeds 8 --eval-gammas 0 0.5 0.8 0.85 0.87 0.89 0.9 0.91 0.92 0.95 0.99"
HILLS = "--num-seeds 8 --eval-gammas 0 0.5 0.8 0.9 0.95 0.98 0.99 0.995"
ALPHAS = "--num-seeds 2 --alphas 0 0.1 0.3 1 2 3 5 10 20 30 50 70 100"
SHORT = "--outer-steps 500 --eval-gammas 0.9 0.95 0.99"
SMALL_STEPS = "--eval-steps 5000 --eval-pairs 64"
STEPS_OF_COLA = "--lr 5 --eval-steps 500"  # its authors'
OF_COLA = (  # and their width, batch, learning rate, and policies to train on
    f"--num-seeds 8 {STEPS_OF_COLA} --alpha-max 5 --eval-alphas 5 --train-extent 7 "
    "--hidden 16 --blocks 0 --batch-size 64 --model-lr 0.001 --outer-steps 80000"
)
FAR = "--alphas 1 2 5 --num-seeds 2 --eval-pairs 64"  # long look-aheads take their time
BESIDE_COLA = f"{STEPS_OF_COLA} --eval-pairs 256 --alphas 5"

RUNS = {
    # The paper's figures, and the same for more algorithms.
    "naive_logistic": "naive.py --game logistic",
    "lola_logistic": "lola.py --game logistic",
    "hola_logistic": "hola.py --game logistic --order 2",
    "hola3_logistic": "hola.py --game logistic --order 3",
    "cola_logistic": "cola.py --game logistic --num-seeds 8",
    "meva_logistic": f"meva.py --game logistic {GAMMAS}",
    "far_logistic": f"meva.py --game logistic {GAMMAS} --eval-steps 2000",
    "naive_ipd": "naive.py --game ipd --num-seeds 8",
    "lola_ipd": "lola.py --game ipd --num-seeds 8",
    "hola_ipd": "hola.py --game ipd --order 2",
    "sos_ipd": "sos.py --game ipd --num-seeds 8",
    "pola_ipd": "pola.py --game ipd --num-seeds 8",
    "cola_ipd": "cola.py --game ipd --num-seeds 2",
    "maml_ipd": "maml.py --game ipd --num-seeds 8",
    "meva_ipd": "meva.py --game ipd --num-seeds 8",
    "meva_imp": "meva.py --game imp",
    # MeVa at its best: eight models that were not looked at to find the settings.
    "reliable_ipd": "meva.py --game ipd --preset reliable --seed 8 --num-seeds 8",
    # LOLA and COLA as the paper's body has them.
    "eq2_logistic": "lola.py --game logistic --variant joint",
    "eq2_ipd": "lola.py --game ipd --variant joint --num-seeds 8",
    "eq4_logistic": "cola.py --game logistic --variant joint --num-seeds 8",
    "eq4_ipd": "cola.py --game ipd --variant joint --num-seeds 2",
    # A single objective.
    "naive_two_hills": "naive.py --game two_hills",
    "lola_two_hills": "lola.py --game two_hills",
    "hola_two_hills": "hola.py --game two_hills --order 2",
    "cola_two_hills": "cola.py --game two_hills --num-seeds 8",
    "meva_two_hills": f"meva.py --game two_hills {HILLS}",
    "short_two_hills": f"meva.py --game two_hills {HILLS} --lr 1",
    # Policies that are tables, skewed tables, networks.
    "grid_ipd": f"lola.py --game ipd {ALPHAS}",
    "small_ipd": f"lola.py --game ipd {ALPHAS} --lr 0.2 {SMALL_STEPS}",
    "naive_ipd+skewed": "naive.py --game ipd+skewed",
    "hola_ipd+skewed": "hola.py --game ipd+skewed --order 2",
    "pola_ipd+skewed": "pola.py --game ipd+skewed",
    "cola_ipd+skewed": "cola.py --game ipd+skewed --num-seeds 4",
    "meva_ipd+skewed": "meva.py --game ipd+skewed --num-seeds 8",
    "grid_ipd+skewed": f"lola.py --game ipd+skewed {ALPHAS}",
    "small_ipd+skewed": f"lola.py --game ipd+skewed {ALPHAS} --lr 0.2 {SMALL_STEPS}",
    "naive_ipd+mlp": "naive.py --game ipd+mlp",
    "hola_ipd+mlp": "hola.py --game ipd+mlp --order 2",
    "cola_ipd+mlp": "cola.py --game ipd+mlp --num-seeds 4",
    "meva_ipd+mlp": "meva.py --game ipd+mlp --num-seeds 8",
    "grid_ipd+mlp": f"lola.py --game ipd+mlp {ALPHAS}",
    "small_ipd+mlp": f"lola.py --game ipd+mlp {ALPHAS} --lr 0.1 {SMALL_STEPS}",
    # COLA's own numbers, on Ultimatum, with its authors' steps.
    "cola_ultimatum": f"cola.py --game ultimatum {OF_COLA} --alpha-min 5",
    "range_ultimatum": f"cola.py --game ultimatum {OF_COLA}",
    "naive_ultimatum": f"naive.py --game ultimatum {STEPS_OF_COLA} --eval-pairs 256",
    "lola_ultimatum": f"lola.py --game ultimatum {BESIDE_COLA}",
    "hola_ultimatum": f"hola.py --game ultimatum {BESIDE_COLA} --order 2",
    "hola4_ultimatum": f"hola.py --game ultimatum {BESIDE_COLA} --order 4",
    "sos_ultimatum": f"sos.py --game ultimatum {BESIDE_COLA}",
    "cgd_ultimatum": f"sos.py --game ultimatum {BESIDE_COLA} --variant cgd",
    # M-FOS with as many starts as its authors have, and with as many episodes.
    "mfos_4096_ipd": "mfos.py --game ipd --num-seeds 8",
    "mfos-lola_4096_ipd": "mfos.py --game ipd --num-seeds 2 --opponent lola",
    "mfos-self_4096_ipd": "mfos.py --game ipd --num-seeds 2 --opponent self",
    "mfos_1024_ipd": (
        "mfos.py --game ipd --batch-size 1024 --num-seeds 3 --outer-steps 1000"
    ),
    # COALA's agents in mixed pools, also with larger steps of the naive learners (sums);
    # with agents alone, and with naive learners alone.
    "coala_ipd": "coala.py --game ipd --num-seeds 32",
    "coala_ipd+discount=0.95": "coala.py --game ipd+discount=0.95 --num-seeds 32",
    "coala_ipd+discount=0.999": "coala.py --game ipd+discount=0.999 --num-seeds 32",
    "alone_ipd+discount=0.95": (
        "coala.py --game ipd+discount=0.95 --num-seeds 32 --share 0"
    ),
    "alone_ipd+discount=0.999": (
        "coala.py --game ipd+discount=0.999 --num-seeds 32 --share 0"
    ),
    "learners_ipd+discount=0.95": (
        "coala.py --game ipd+discount=0.95 --num-seeds 32 --share 1"
    ),
    "learners_ipd+discount=0.999": (
        "coala.py --game ipd+discount=0.999 --num-seeds 32 --share 1"
    ),
    "sums_ipd+discount=0.95": (
        "coala.py --game ipd+discount=0.95 --num-seeds 32 --eta 100"
    ),
    "sums_ipd+discount=0.999": (
        "coala.py --game ipd+discount=0.999 --num-seeds 32 --eta 5000"
    ),
    # LOLA that looks 2 to 20 steps ahead, and COALA beside learners that take 1 to 20.
    "lola2_ipd": "lola.py --game ipd --lookahead 2 --alphas 1 2 5 10 --num-seeds 2",
    "lola3_ipd": "lola.py --game ipd --lookahead 3 --alphas 1 2 5 10 --num-seeds 2",
    "lola5_ipd": f"lola.py --game ipd --lookahead 5 {FAR}",
    "lola10_ipd": f"lola.py --game ipd --lookahead 10 {FAR}",
    "lola20_ipd": f"lola.py --game ipd --lookahead 20 {FAR}",
    "coala1_ipd": "coala.py --game ipd --learner-steps 1 --num-seeds 8",
    "coala2_ipd": "coala.py --game ipd --learner-steps 2 --num-seeds 8",
    "coala5_ipd": "coala.py --game ipd --learner-steps 5 --num-seeds 8",
    "coala20_ipd": "coala.py --game ipd --learner-steps 20 --num-seeds 8",
    # LOQA, with all of the softmax differentiated, and Advantage Alignment.
    "loqa_ipd": "loqa.py --game ipd --num-seeds 8 --eval-pairs 64",
    "full_ipd": "loqa.py --game ipd --num-seeds 8 --eval-pairs 64 --variant full",
    "alignment_ipd": "loqa.py --game ipd --num-seeds 8 --eval-pairs 64 --variant alignment",
    # The same on a GPU.
    "naive_gpu_ipd": "naive.py --game ipd",
    "lola_gpu_ipd": "lola.py --game ipd",
    "hola_gpu_ipd": "hola.py --game ipd --order 2",
    "meva_gpu_ipd": "meva.py --game ipd --num-seeds 8",
    # Played by tournament.py.
    "tournament_ipd": "tournament.py --game ipd --protocol authors",
    "tournament_imp": "tournament.py --game imp --protocol authors",
    "tournament_chicken": "tournament.py --game chicken --protocol authors",
    "tit-for-tat_contribution": "tournament.py --search",
    "polytope_ipd": "tournament.py --polytope",
}

NETWORKS = {  # runs of MeVa on the Logistic Game: what they have, and their flags
    "meva_logistic": ("no normalisation, tanh last", ""),
    "gelu_logistic": ("no normalisation, GELU last", "--last-activation gelu"),
    "norm_logistic": ("layer normalisation, tanh last", "--layer-norm"),
    "text_logistic": (
        "layer normalisation, GELU last (App. D)",
        "--layer-norm --last-activation gelu",
    ),
    "semi_gradient_logistic": (
        "no normalisation, tanh last, semi-gradient",
        "--semi-gradient",
    ),
}

SWITCHES = {  # what turns a technique off, by the run's name (see plots.ABLATIONS)
    "all_techniques": "",
    "no_exploration": "--flip-prob 0",
    "no_target_network": "--target-inertia 0",
    "lambda_0": "--bootstrap 0",
    "lambda_1": "--bootstrap 1",
    "no_quantiles": "--quantiles 1",
    "fixed_gamma": "--fixed-gamma 0.99",
    "form_v": "--form V",
}

TD_ERRORS = {  # of the authors' ablations, by the same names: their notebook
    "all_techniques": 0.0625,
    "no_exploration": 0.0581,
    "no_target_network": 0.0486,
    "lambda_0": 0.0523,
    "lambda_1": 0.0511,
    "no_quantiles": 0.0726,
    "fixed_gamma": 0.2305,
    "form_v": 0.0564,
}

# Settings of the authors' tournament, which has a step size for each game.
AUTHORS_MEVA = (
    "--variant taylor-stop --hidden 128 --blocks 0 --quantiles 64 --model-lr 0.001 "
    "--outer-steps 1001 --normalized-step --eval-gammas 0.95"
)


def runs_of_variants() -> dict[str, str]:
    """Runs of MeVa with something changed, and runs on samples."""
    runs = {}
    for name, (_, switch) in NETWORKS.items():
        runs[name] = f"meva.py --game logistic {GAMMAS} {switch}".strip()
    for name, switch in SWITCHES.items():
        runs[name] = f"meva.py --game ipd {SHORT} --num-seeds 6 {switch}".strip()
        runs[f"td/{name}"] = (  # of which TD errors are kept
            f"meva.py --game ipd {SHORT} --num-seeds 3 {switch}".strip()
        )
    for episodes in (0, *EPISODES):
        game = "ipd" if episodes == 0 else f"ipd+episodes={episodes}+length=50"
        runs[sampled_run("lola", episodes)] = (
            f"lola.py --game {game} --alphas 10 --quick"
        )
        runs[sampled_run("meva", episodes)] = (
            f"meva.py --game {game} --num-seeds 3 --quick --outer-steps 250 "
            "--batch-size 4 --target-inertia 0.99 --model-lr 0.001"
        )
    return runs


def runs_of_models(game: str, step: float) -> dict[str, str]:
    """The models of a tournament with the authors' settings."""
    runs = {}
    seeds = "--num-seeds 8" if game == "ipd" else "--num-seeds 4"
    steps = f"--lr {step:g} --eval-steps 300"
    runs[f"authors/cola_{game}"] = (
        f"cola.py --game {game} {seeds} {steps} --alpha-max {step:g} "
        f"--eval-alphas {step:g}"
    )
    runs[f"authors/maml_{game}"] = (
        f"maml.py --game {game} --num-seeds 8 {steps} --model-lr 0.1"
    )
    runs[f"authors/coala_{game}"] = f"coala.py --game {game} --num-seeds 8"
    of_meva = f"{seeds} {steps} --alpha {step:g} {AUTHORS_MEVA}"
    runs[f"authors/meva_{game}"] = f"meva.py --game {game} {of_meva}"
    seats = [game]
    if not GAMES[game].symmetric:
        seats.append(f"{game}+swapped")  # a model beside others is for one seat
    for opponent in ("naive", "lola"):
        for seat in seats:
            runs[f"authors/meva-{opponent}_{seat}"] = (
                f"meva.py --game {seat} --opponent {opponent} {of_meva}"
            )
    of_mfos = f"mfos.py --game {game} --num-seeds 2 --quick {steps} --alpha {step:g}"
    runs[f"authors/mfos_{game}"] = of_mfos
    for opponent in ("lola", "self"):
        runs[f"authors/mfos-{opponent}_{game}"] = f"{of_mfos} --opponent {opponent}"
    return runs


def small_runs() -> dict[str, str]:
    """Every algorithm on every game."""
    runs = {}
    for game in GAMES:
        for script in TITLES:
            runs[f"games/{script}_{game}"] = f"{script}.py --game {game} --quick"
    return runs


RUNS.update(runs_of_variants())
for name, lr in TOURNAMENTS.items():
    RUNS.update(runs_of_models(name, lr))
RUNS.update(small_runs())


def command(name: str) -> str:
    """The command that makes a run, so that `plots.find` finds it in results/."""
    words = RUNS[name].split()
    if words[0] == "tournament.py":
        return f"python {RUNS[name]}"
    written = words[0].removesuffix(".py")
    if "--opponent" in words:
        written += "-" + words[words.index("--opponent") + 1]
    written += "_" + words[words.index("--game") + 1]
    if name == written:
        return f"python {RUNS[name]}"
    return f"python {RUNS[name]} --out results/variants/{name}"


# --- The paper's claims ---------------------------------------------------------------


class Claim(NamedTuple):
    """What the paper says, what we asked for, and what came out."""

    section: str
    sentence: str  # the paper's
    criterion: str  # what has to be true: from the sentence, not from the numbers
    holds: object  # is it? Truth values, one for each setting or model of which it is
    evidence: str  # our main number, in 25 words at most
    numbers: str = ""  # all of them, if there are more
    ours: bool = False  # a variant that is not in the paper


RADIUS = 0.5  # who is this near to a fixed point, in both coordinates, has come to it


def verdict(holds) -> str:
    """In words: yes, no, or of how many settings or models it is true."""
    count = np.size(holds)
    true = int(np.sum(holds))
    if true == count and count > 0:
        return "yes"
    if true > 0:
        return f"{true} of {count}"
    return "no"


def number(x: float, digits: int) -> str:
    """A number in words."""
    return f"{x:z.{digits}f}" if abs(x) < 1e3 else f"{x:.1e}"


def spread(samples, digits: int = 3) -> str:
    """Mean and standard error of samples, (number,); of a single one there is none."""
    samples = np.ravel(samples)
    words = number(samples.mean(), digits)
    if len(samples) > 1:
        words += f" ± {number(standard_error(samples), digits)}"
    return words


def both(returns: np.ndarray, digits: int = 3) -> str:
    """The agent's and the other's returns, (number, 2), with a colon between them."""
    lost = (~np.isfinite(returns)).any(axis=1).sum()
    if lost > 0:
        return f"{lost} of {len(returns)} diverged"
    return f"{spread(returns[:, 0], digits)} : {spread(returns[:, 1], digits)}"


def series(settings, values) -> str:
    """Values by setting, (setting, number): means and standard errors."""
    words = []
    for setting, value in zip(settings, values, strict=True):
        words.append(f"{spread(value)} at {setting:g}")
    return ", ".join(words)


def highest(gammas, shares) -> str:
    """The largest of the shares, (gamma, seed), in words."""
    if len(gammas) == 0:
        return "there is no such gamma"
    i = shares.mean(axis=1).argmax()
    return (
        f"{spread(shares[i])} at best, at gamma = {gammas[i]:g}; by model "
        f"{shares[i].min():.2f} to {shares[i].max():.2f}"
    )


# --- Claims: the games ----------------------------------------------------------------


def fixed_points() -> list[Claim]:
    gradient = partial(simultaneous_gradient, LOGISTIC.f)
    points = np.array([[[A], [A]], [[B], [B]], [[0], [0]]], np.float32)  # (point, 2, 1)
    length = np.linalg.norm(jax.vmap(gradient)(points), axis=(1, 2))
    jacobian = jax.vmap(jax.jacobian(gradient))(points)
    rates = np.linalg.eigvals(np.reshape(jacobian, (3, 2, 2))).real
    words = []
    for low, high in np.sort(rates, axis=1):
        words.append(f"{low:.3f}, {high:.3f}")
    no_gradient = length.max() < 1e-4
    stable = rates[:2].max() < 0
    saddle = rates[2].min() < 0 < rates[2].max()
    fixed = Claim(
        "5.1",
        "two stable fixed points, A and B; the origin is a saddle point",
        "no gradient there; eigenvalues of its Jacobian negative at A and B, of both "
        "signs at the origin",
        no_gradient and stable and saddle,
        f"eigenvalues at A, B and 0: {'; '.join(words)}",
        f"gradients there at most {length.max():.0e}",
    )

    moves = np.linspace(-10, 10, 401, dtype=np.float32)  # of player 1
    replies = []
    for other in (A, B):
        x = np.stack([moves, np.full_like(moves, other)], axis=-1)
        value = logistic_returns(x)[:, 0]
        replies.append((moves[value.argmax()], value.max()))
    (to_a, at_a), (to_b, at_b) = replies
    near = abs(to_a - A) < 0.1 and abs(to_b - B) < 0.1
    prefer = Claim(
        "5.1",
        "both players prefer B, and cannot unilaterally go there",
        "B pays more than A, and each is the best reply to itself",
        near and at_a < at_b,
        f"the best reply to A is {to_a:.2f}, a return of {at_a:.2f}; to B {to_b:.2f}, "
        f"a return of {at_b:.2f}",
    )
    return [fixed, prefer]


def unconditional_play() -> list[Claim]:
    signs = np.float32([50, -50])  # all-C and all-D
    policies = np.broadcast_to(signs[:, None, None], (2, 2, 5))
    responses = jax.vmap(partial(exact_best_response, IPD))(policies)
    agents = jax.vmap(IPD.f)(responses)[:, 0]
    claim = Claim(
        "5.2",
        "who cooperates or defects unconditionally makes the best response defect, "
        "and gets -3 or -2",
        "those returns, to .001",
        np.allclose(agents, (-3, -2), atol=1e-3),
        f"{agents[0]:.3f} and {agents[1]:.3f}",
    )
    return [claim]


# --- Claims: the Logistic Game --------------------------------------------------------


def came_to(results: Results, point: float) -> np.ndarray:
    """Which points of the grid come to (point, point), (S, seed, 29, 29)."""
    return (np.abs(results["endpoints"] - point) < RADIUS).all(axis=-1)


def in_quadrant_of_b(results: Results) -> np.ndarray:
    """Which points of the grid end in B's quadrant, (S, seed, 29, 29)."""
    return (results["endpoints"] > 0).all(axis=-1)


def at_the_edges(results: Results) -> np.ndarray:
    """The points of the grid beyond 8, (29, 29)."""
    return np.abs(results["grid"]).max(axis=-1) > 8


def near_the_origin(results: Results) -> np.ndarray:
    """The points of the grid within 4 of the origin, (29, 29)."""
    return np.linalg.norm(results["grid"], axis=-1) < 4


def naive_goes_to_the_nearest(naive: Results) -> list[Claim]:
    side = naive["grid"].sum(axis=-1)  # x_1 + x_2
    off = np.abs(side) > 1e-3  # the diagonal belongs to neither
    nearest = np.where(side > 0, came_to(naive, B), came_to(naive, A))
    there = nearest[..., off]
    sides = (naive["endpoints"][..., off, :].sum(axis=-1) > 0) == (side > 0)[off]
    return [
        Claim(
            "5.1",
            "following naive gradients, players converge to whichever solution is "
            "nearest",
            f"all points off the diagonal x_1 + x_2 = 0 are within {RADIUS} of it "
            "after 200 steps",
            there.mean() == 1,
            f"{there.mean():.1%} of them are",
        ),
        Claim(
            "5.1",
            "the basins of attraction meet at a diagonal",
            "all points end on their side",
            sides.all(),
            f"{sides.mean():.1%} of them do",
        ),
    ]


def lola_helps_little(lola: Results) -> list[Claim]:
    alphas = lola["sweep"][1:]
    naive = lola["basin_fraction"][0].mean()
    shares = lola["basin_fraction"][1:].mean(axis=1)
    best_alpha = alphas[shares.argmax()]
    change = shares.max() - naive
    gain = shares.max() - shares[0]
    numbers = series(lola["sweep"], lola["basin_fraction"])
    return [
        Claim(
            "5.1",
            "LOLA grows the basin of B",
            "a larger share in B's quadrant than at alpha = 0, at every alpha",
            shares > naive,
            f"a share of {naive:.3f} at alpha = 0, of {shares.min():.3f} to "
            f"{shares.max():.3f} beyond",
            numbers,
        ),
        Claim(
            "5.1",
            "LOLA grows the basin of B only slightly",
            "the share changes by less than .1, at every alpha",
            np.abs(shares - naive) < 0.1,
            f"it grows by {change:.3f} at most, at alpha = {best_alpha:g}",
            numbers,
        ),
        Claim(
            "5.1",
            "increasing LOLA's alpha does not help much",
            "of all alphas but 0, the best one is better than the smallest by less "
            "than .05",
            gain < 0.05,
            f"the share is larger by {gain:.3f} at alpha = {best_alpha:g} than at "
            f"{alphas[0]:g}",
            numbers,
        ),
    ]


def hola_at_the_edges(naive: Results, hola: Results) -> list[Claim]:
    alphas = hola["sweep"][1:]
    edges = at_the_edges(hola)
    shares = in_quadrant_of_b(hola)[1:, 0, edges].mean(axis=-1)
    before = in_quadrant_of_b(naive)[0, 0, edges].mean()
    claim = Claim(
        "5.1",
        "HOLA(2) grows the basin of B around the edges",
        "of the points beyond 8 a larger share ends in B's quadrant than with naive "
        "learners, at every alpha",
        shares > before,
        f"{shares[:-1].min():.3f} to {shares[:-1].max():.3f}, and {shares[-1]:.3f} at "
        f"alpha = {alphas[-1]:g}; naive {before:.3f}",
        f"{series(alphas, shares)}; naive {before:.3f}",
    )
    return [claim]


def hola_is_unstable(hola: Results, lola: Results) -> list[Claim]:
    alphas = hola["sweep"][1:]
    near = near_the_origin(hola)
    of_hola = ~(came_to(hola, A) | came_to(hola, B))[1:, 0]  # (alpha, 29, 29)
    of_lola = ~(came_to(lola, A) | came_to(lola, B))[1:, 0]
    inside = of_hola[:, near].mean(axis=-1)
    outside = of_hola[:, ~near].mean(axis=-1)
    lolas = of_lola[:, near].mean(axis=-1)
    claim = Claim(
        "5.1",
        "HOLA(2) suffers from instabilities around the origin",
        "within 4 of it more points come to neither A nor B than elsewhere and than "
        "with LOLA, at every alpha",
        (inside > outside) & (inside > lolas),
        f"{inside[0]:.3f} of the points there at alpha = {alphas[0]:g}, "
        f"{inside[-1]:.3f} at {alphas[-1]:g}",
        f"{series(alphas, inside)}; elsewhere {series(alphas, outside)}; "
        f"LOLA {series(alphas, lolas)}",
    )
    return [claim]


def hola_of_order_three(hola: Results, third: Results) -> list[Claim]:
    alphas = hola["sweep"][1:]
    of_two = hola["basin_fraction"][1:, 0]
    of_three = third["basin_fraction"][1:, 0]
    less = of_two - of_three
    claim = Claim(
        "5.1",
        "HOLA(3) is significantly worse than HOLA(2)",
        "its share in B's quadrant is smaller by more than .01, at every alpha",
        less > 0.01,
        f"its share is smaller by {less.min():.3f} to {less.max():.3f}",
        f"{series(alphas, of_three)}; HOLA(2) {series(alphas, of_two)}",
    )
    return [claim]


def cola_improves(cola, naive, lola, hola) -> list[Claim]:
    alphas = cola["sweep"][1:]
    claims = []
    for place, region in (("edges", at_the_edges), ("origin", near_the_origin)):
        points = region(cola)
        ours = in_quadrant_of_b(cola)[1:][..., points].mean(axis=-1)  # (alpha, seed)
        others = []
        for results in (naive, lola, hola):
            shares = in_quadrant_of_b(results)[..., points].mean(axis=(1, 2))
            nearest = [at(results, alpha, exactly=False) for alpha in alphas]
            others.append(shares[nearest])
        theirs = np.max(others, axis=0)  # (alpha,)
        errors = np.array([standard_error(shares) for shares in ours])
        where = "beyond 8" if place == "edges" else "within 4 of it"
        margin = ours.mean(axis=1) - theirs
        claim = Claim(
            "5.1",
            f"COLA makes significant improvements around the {place}",
            f"of the points {where} a larger share ends in B's quadrant than with "
            "naive learners, LOLA or HOLA(2), by more than two standard errors over "
            "models, at every alpha",
            margin > 2 * errors,
            f"its share less that of the best of the others: {margin.min():.3f} to "
            f"{margin.max():.3f}",
            f"{series(alphas, ours)}; the best of the others {series(alphas, theirs)}",
        )
        claims.append(claim)
    return claims


def meva_comes_to_b(meva: Results) -> list[Claim]:
    gammas = meva["sweep"]
    shares = meva["basin_fraction"]
    above = gammas > 0.9 + 1e-6
    came = came_to(meva, B)[above].mean(axis=(2, 3))  # (gamma, seed)
    rising = np.diff(shares.mean(axis=1)) >= 0
    return [
        Claim(
            "5.1",
            "when gamma > .9, MeVa converges to B from anywhere in the surveyed area",
            "all of the grid ends in B's quadrant, as Fig. 2b counts, in every model "
            "at every gamma",
            shares[above] == 1,
            f"in B's quadrant all of the grid in {(shares[above] == 1).sum()} of "
            f"{came.size} (models times gammas), within {RADIUS} of B in "
            f"{(came == 1).sum()}",
            series(gammas[above], shares[above]),
        ),
        Claim(
            "5.1",
            "when gamma > .9, MeVa converges to B, counted as near to B",
            f"all of the grid is within {RADIUS} of B after 200 steps, in every model "
            "at every gamma",
            came == 1,
            f"a share of {came[0].mean():.2f} is at {gammas[above][0]:g}, "
            f"{came[-1].mean():.2f} at {gammas[-1]:g}",
            series(gammas[above], came),
            ours=True,
        ),
        Claim(
            "5.1",
            "by increasing gamma the basin of B becomes arbitrarily large",
            "the mean share never falls from one gamma to the next, and is 1 at the "
            "last",
            [*rising, shares[-1].min() == 1],
            f"from {shares[0].mean():.3f} at {gammas[0]:g} to "
            f"{shares[-1].mean():.3f} at {gammas[-1]:g}",
            series(gammas, shares),
        ),
    ]


def worth_a_sacrifice(meva: Results) -> list[Claim]:
    above = meva["sweep"] > 0.9 + 1e-6
    distance = np.linalg.norm(meva["grid"] - A, axis=-1)
    towards_b = meva["grid"].sum(axis=-1) > 2 * A
    close = (distance < 2) & towards_b
    start = meva["grid"][close]  # (point, 2)
    step = meva["field"][above, 0][:, close]  # (gamma, point, 2)
    end = meva["endpoints"][above, 0][:, close]
    before = logistic_returns(start).mean(axis=-1)
    change = logistic_returns(start + step).mean(axis=-1) - before  # (gamma, point)
    gain = logistic_returns(end).mean(axis=-1) - before
    claim = Claim(
        "5.1",
        "even close to A it is worth moving in a direction that immediately decreases "
        "f",
        "the players' mean return falls at the first step and ends higher, for gamma "
        "> .9 from each grid point within 2 of A, on the side towards B; first model",
        (change < 0) & (gain > 0),
        f"it falls at {(change < 0).mean():.0%} of the first steps; 200 steps gain "
        f"{gain.mean():.2f}",
        f"the first step changes it by {change.mean():.4f} on average",
    )
    return [claim]


def only_meva(naive, lola, hola, third, cola, meva) -> list[Claim]:
    names = ("naive", "LOLA", "HOLA(2)", "HOLA(3)", "COLA")
    words = []
    largest = []
    for name, results in zip(names, (naive, lola, hola, third, cola), strict=True):
        shares = results["basin_fraction"].max(axis=0)  # (seed,), at the best setting
        words.append(f"{name} {spread(shares)}")
        largest.append(shares.max())
    ours = meva["basin_fraction"].max(axis=0)
    claim = Claim(
        "1",
        "our algorithm is the only one to find the Pareto-efficient solution "
        "regardless of initialisation",
        "the whole grid ends in B's quadrant with all models of MeVa and nothing "
        "else, each at its best setting",
        ours.min() == 1 and max(largest) < 1,
        f"{', '.join(words)}, MeVa {spread(ours)}",
    )
    return [claim]


def a_single_objective(naive, lola, hola, cola, meva, short) -> list[Claim]:
    gammas = short["sweep"]  # of both runs of MeVa
    above = gammas > 0.9 + 1e-6
    words = []
    highest = []
    names = ("naive", "LOLA", "HOLA(2)", "COLA")
    for name, results in zip(names, (naive, lola, hola, cola), strict=True):
        shares = results["basin_fraction"]
        at_best = shares[shares.mean(axis=1).argmax()]
        words.append(f"{name} at best {spread(at_best)}")
        highest.append(at_best.mean())
    long_steps = meva["basin_fraction"][above]
    short_steps = short["basin_fraction"][above]
    words.append(f"MeVa {series(gammas[above], long_steps)}")
    words.append(f"with a fifth of the step size {series(gammas[above], short_steps)}")
    whole = (long_steps[-2] == 1).sum()
    claim = Claim(
        "7",
        "readily applies to problems with a single objective",
        "on two hills all of the grid ends in the quadrant of the higher top, in every "
        "model at every gamma above .9, with long and with short steps",
        np.concatenate([long_steps, short_steps]) == 1,
        f"at {gammas[-2]:g} in {whole} of {long_steps.shape[1]} models; mean "
        f"{long_steps[-2].mean():.2f}, short steps {short_steps[-2].mean():.2f}, "
        f"others at most {max(highest):.2f}",
        ", ".join(words),
    )
    return [claim]


# --- Claims: the Iterated Prisoner's Dilemma ------------------------------------------


def cooperation(policies: np.ndarray) -> np.ndarray:
    """Discounted share of the rounds in which each player of the IPD cooperates.

    (..., 2, 5) -> (..., 2).
    """

    def of_pair(x):
        _, cd, dc, cc = state_distribution(x, IPD.rules.discount)
        return jnp.stack([cd + cc, dc + cc])

    shares = jax.vmap(of_pair)(policies.reshape(-1, 2, 5))
    return np.asarray(shares).reshape(policies.shape[:-1])


def chances(results: Results, i: int) -> np.ndarray:
    """How likely players of the IPD are to cooperate, first and after DD, CD, DC, CC.

    At the i-th setting, (5, seed).
    """
    log_odds = results["policies"][i].astype(float)
    # The logistic function, which does not overflow so.
    return ((1 + np.tanh(log_odds / 2)) / 2).mean(axis=(1, 2)).T


def naive_fails(naive: Results) -> list[Claim]:
    found = (strategies(naive["policies"][0]) == TIT_FOR_TAT).mean(axis=(1, 2))
    returns = naive["self_play"][0].mean(axis=(1, 2))
    claim = Claim(
        "5.2",
        "naive learning fails to find tit-for-tat",
        "a share of less than .05 of the policies are nearest to it, in every seed",
        found < 0.05,
        f"{spread(found)} of them are; returns {spread(returns)}",
    )
    return [claim]


RISES = (
    "is larger at the last gamma than at 0, and never falls from one to the next by "
    "more than two standard errors"
)


def rises(values: np.ndarray) -> list[bool]:
    """Do numbers, (S, seed), rise as `RISES` says? In the whole, and at each step."""
    found = [values[-1].mean() > values[0].mean()]
    for step in np.diff(values, axis=0):
        found.append(step.mean() > -2 * standard_error(step))
    return found


def meva_cooperates(meva: Results) -> list[Claim]:
    gammas = meva["sweep"]
    returns = meva["self_play"].mean(axis=(2, 3))  # (S, seed)
    low = returns[at(meva, 0.25)]  # gamma = 0 is naive learning by construction
    rates = cooperation(meva["policies"]).mean(axis=(2, 3))
    return [
        Claim(
            "5.2",
            "at low gamma, policies converge to mostly defective strategies and "
            "approach -2",
            "mean returns within .1 of -2 in every model",
            np.abs(low + 2) < 0.1,
            f"{spread(low)} at gamma = .25",
        ),
        Claim(
            "5.2",
            "as gamma increases, cooperation becomes more prevalent",
            f"its share of the rounds {RISES}",
            rises(rates),
            f"from {spread(rates[0])} of the rounds at {gammas[0]:g} to "
            f"{spread(rates[-1])} at "
            f"{gammas[-1]:g}",
            series(gammas, rates),
        ),
        Claim(
            "5.2",
            "as gamma increases, returns approach -1",
            "the mean return is within .1 of -1 at the largest gamma",
            np.abs(returns[-1].mean() + 1) < 0.1,
            f"{spread(returns[-1])} at {gammas[-1]:g}",
            series(gammas, returns),
        ),
    ]


def meva_is_not_exploited(meva: Results) -> list[Claim]:
    cooperative = meva["self_play"].mean(axis=(1, 2, 3)) > -1.2
    gammas = meva["sweep"][cooperative]
    policies = meva["policies"][cooperative]  # (S, seed, pair, 2, 5)
    exact = jax.vmap(partial(exact_best_response, IPD))(policies.reshape(-1, 2, 5))
    exact = np.asarray(exact).reshape(policies.shape)
    learned = meva["response_policies"][cooperative]
    claims = []
    for sentence, pairs in (
        ("the best response is to cooperate", learned),
        ("an exact best response is to cooperate", exact),
    ):
        rates = cooperation(pairs)[..., 1].mean(axis=2)  # (S, seed)
        claim = Claim(
            "5.2",
            sentence,
            "it cooperates in more than nine rounds of ten wherever self-play returns "
            "more than -1.2",
            rates.mean(axis=1) > 0.9,
            f"rounds in which it does: {highest(gammas, rates)}",
            series(gammas, rates),
            ours=pairs is exact,
        )
        claims.append(claim)
    kept = (meva["best_response"][cooperative][..., 0] > -1.5).mean(axis=2)
    claim = Claim(
        "1",
        "our algorithm finds nonexploitable cooperation",
        "wherever self-play returns more than -1.2, a best response leaves the agent "
        "more than -1.5 in 95 of 100 policy pairs, in every model",
        kept > 0.95,
        f"pairs with more than -1.5: {highest(gammas, kept)}",
        series(gammas, kept),
    )
    return [*claims, claim]


def meva_shapes_naive_learners(meva: Results) -> list[Claim]:
    gammas = meva["sweep"]
    high = gammas >= 0.9 - 1e-6
    learner = cooperation(meva["versus_naive_policies"])[..., 1].mean(axis=2)
    returns = meva["versus_naive"].mean(axis=2)  # (S, seed, 2)
    agent = returns[..., 0]
    other = returns[..., 1]
    words = []
    for gamma, of_both in zip(gammas[high], returns[high]):
        words.append(f"{both(of_both)} at {gamma:g}")
    mostly = learner.mean(axis=1)[high] > 0.5
    less = agent.mean(axis=1)[high] > other.mean(axis=1)[high]
    peak = agent.mean(axis=1).argmax()
    return [
        Claim(
            "5.2",
            "naive opponents are shaped into exploitable cooperation",
            "from gamma = .9 on the learner cooperates in most rounds, and gets less "
            "than the agent",
            [mostly, less],
            f"at {gammas[peak]:g} in {spread(learner[peak])} of the rounds; returns "
            f"{both(returns[peak])}",
            f"it cooperates {series(gammas, learner)}; agent : learner "
            f"{'; '.join(words)}",
        ),
        Claim(
            "5.2",
            "naive opponents are shaped as gamma_1 goes to 1",
            f"the agent's mean return beside a naive learner {RISES}",
            rises(agent),
            f"the agent gets most at {gammas[peak]:g}, {spread(agent[peak])}, and "
            f"{spread(agent[-1])} at {gammas[-1]:g}",
            series(gammas, agent),
        ),
    ]


def meva_plays_tit_for_tat(meva: Results) -> list[Claim]:
    i = at(meva, 0.99)
    found = (strategies(meva["policies"][i]) == TIT_FOR_TAT).mean(axis=(1, 2))
    by_model = ", ".join(f"{share:.2f}" for share in np.sort(found))
    after = dict(zip(("first", "DD", "CD", "DC", "CC"), chances(meva, i)))
    words = []
    for state, chance in after.items():
        words.append(f"{spread(chance)} {state}")
    return [
        Claim(
            "5",
            "MeVa in fact learns to play tit-for-tat",
            "more than half of the policies at gamma = .99 are nearest to "
            "tit-for-tat, in every model",
            found > 0.5,
            f"{spread(found)}; by model {by_model}",
        ),
        Claim(
            "5",
            "MeVa does not simply cooperate unconditionally",
            "on having been defected against (CD) it cooperates less than half as "
            "often as after CC, in every model",
            after["CD"] < after["CC"] / 2,
            f"after CD in {spread(after['CD'])}, after CC in {spread(after['CC'])}",
            f"P(C) {', '.join(words)}",
        ),
    ]


def by_play(results: Results) -> np.ndarray:
    """The agent's mean return in each of the three plays, by setting, (3, S)."""
    return np.array([results[play].mean(axis=(1, 2))[:, 0] for play in PANELS])


def best_and_last(results: Results) -> str:
    """In words: the best mean returns of the agent, and those at the last setting."""
    words = []
    for (title, _), curve in zip(PANELS.values(), by_play(results), strict=True):
        setting = results["sweep"][curve.argmax()]
        words.append(f"{title} {curve.max():.3f} at {setting:g}, {curve[-1]:.3f} last")
    return "; ".join(words)


def three(numbers) -> str:
    """Three numbers, of the three plays."""
    return ", ".join(f"{number:z.3f}" for number in numbers)


def looking_farther(lola: Results, meva: Results) -> list[Claim]:
    of_lola = by_play(lola)
    of_meva = by_play(meva)
    peak_lola = of_lola.max(axis=1)
    peak_meva = of_meva.max(axis=1)
    fall_lola = peak_lola - of_lola[:, -1]
    fall_meva = peak_meva - of_meva[:, -1]
    numbers = f"LOLA: {best_and_last(lola)}. MeVa: {best_and_last(meva)}"
    kept_meva = (meva["best_response"][at(meva, 0.99)][..., 0] > -1.5).mean()
    kept_lola = (lola["best_response"][at(lola, 10)][..., 0] > -1.5).mean()
    peaks = (
        "self-play, best response, naive learner: "
        f"LOLA {three(peak_lola)}; MeVa {three(peak_meva)}"
    )
    return [
        Claim(
            "5.2",
            "LOLA exhibits qualitatively the same results",
            "the agent's best mean returns are at most .1 below MeVa's, in each of "
            "the three plays",
            peak_lola > peak_meva - 0.1,
            peaks,
            numbers,
        ),
        Claim(
            "5.2",
            "LOLA's alpha can only be increased so far before results deteriorate",
            "at the largest alpha the agent gets less than at the best one, by more "
            "than .05, in each of the plays",
            fall_lola > 0.05,
            f"less by {three(fall_lola)} (self-play, best response, naive learner)",
            numbers,
        ),
        Claim(
            "5.2",
            "MeVa retains the desirable features of LOLA",
            "the agent's best mean returns are at most .1 below LOLA's, in each of "
            "the plays",
            peak_meva > peak_lola - 0.1,
            peaks,
            numbers,
        ),
        Claim(
            "5.2",
            "MeVa is easier to extend farther into the future",
            "from the best to the largest setting the agent loses no more than with "
            "LOLA, in each of the plays",
            fall_meva <= fall_lola,
            f"in self-play, against best responses, beside naive learners MeVa loses "
            f"{three(fall_meva)}; LOLA {three(fall_lola)}",
            numbers,
        ),
        Claim(
            "5.2",
            "MeVa is no easier to exploit than LOLA",
            "a best response leaves MeVa's agents more than -1.5 in no smaller share "
            "of policy pairs than LOLA's",
            kept_meva >= kept_lola,
            f"pairs with more than -1.5: MeVa {kept_meva:.3f} at gamma = .99, LOLA "
            f"{kept_lola:.3f} at alpha = 10",
            ours=True,
        ),
    ]


def in_both_seats(results: Results, other: str, name: str) -> np.ndarray:
    """Mean return beside another over both seats of each model, (model,)."""
    names = list(results["names"])
    i = names.index(name)
    j = names.index(other)
    first = by_model(results["returns"][i, j, :, 0], results["trained"][i, j])
    second = by_model(results["returns"][j, i, :, 1], results["trained_2"][j, i])
    return (first + second) / 2


def trained_for_the_situation(*tournaments: Results) -> list[Claim]:
    holds = []
    words = []
    for results in tournaments:
        for other, name in (("naive", "meva-naive"), ("lola-taylor-stop", "meva-lola")):
            own = in_both_seats(results, other, name)
            with_itself = in_both_seats(results, other, "meva")
            error = np.hypot(standard_error(own), standard_error(with_itself))
            holds.append(own.mean() - with_itself.mean() > 2 * error)
            game = results["config"]["game"]
            words.append(f"{game}, {other}: {spread(own)}, not {spread(with_itself)}")
    claim = Claim(
        "5.2",
        "in general we will need to train the model for the specific downstream "
        "situation",
        "beside naive learners and beside LOLA one that was trained for them gets "
        "more than one trained with itself, in the mean of both seats, by more than "
        "two standard errors, on each of three games",
        holds,
        f"beside naive learners on {sum(holds[::2])} of {len(tournaments)} games, "
        f"beside LOLA on {sum(holds[1::2])}",
        "; ".join(words),
    )
    return [claim]


# --- Claims of COLA's authors ---------------------------------------------------------
#
# They are a table in the notebook of Willi et al. (2022), on Ultimatum at alpha = 5. Its
# labels of HOLA and the orders that ran are out of step: these are the orders that ran.

COLAS_ALPHA = 5.0


def hola_of_order(order: int) -> Callable:
    """HOLA(order)'s update direction on Ultimatum, x -> (2, 1)."""
    return partial(hola_gradient, ULTIMATUM.f, alpha=COLAS_ALPHA, order=order)


class Noted(NamedTuple):
    """A rule beside COLA; None where we know no number of the authors."""

    run: str
    gradient: Callable | None  # x -> (2, 1), the direction, of rules without a model
    consistency: float | None = None  # squared distance of the two sides of COLA's Eq.
    cosine: float | None = None  # to COLA's direction
    fair: int | None = None  # of 10 runs, those that end at the fair offer


OF_COLAS_AUTHORS = {
    "COLA": Noted("cola_ultimatum", None, 0.007, None, 10),
    "COLA, alpha from 0 to 5": Noted("range_ultimatum", None),
    "naive": Noted("naive_ultimatum", hola_of_order(0)),
    "HOLA(1)": Noted("lola_ultimatum", hola_of_order(1), 1.17, 0.73),
    "HOLA(2)": Noted("hola_ultimatum", hola_of_order(2), 0.11, 0.76, 5),
    "HOLA(4)": Noted("hola4_ultimatum", hola_of_order(4), 4.2, 0.70),
    "SOS": Noted(
        "sos_ultimatum",
        partial(sos_gradient, ULTIMATUM.f, alpha=COLAS_ALPHA),
        0.38,
        0.73,
    ),
    "CGD": Noted(
        "cgd_ultimatum",
        partial(sos_gradient, ULTIMATUM.f, alpha=COLAS_ALPHA, variant="cgd"),
        1.4,
    ),
}
RUNS_OF_COLA = [noted.run for noted in OF_COLAS_AUTHORS.values()]
JUDGED_ON = 65_536  # policies from U(-7, 7)
BATCH = 256  # of which means are compared


class Judged(NamedTuple):
    """A rule's directions on `JUDGED_ON` policies, and their squared distances."""

    directions: np.ndarray  # (point, 2)
    consistency: np.ndarray  # (point,)


@cache
def policies_of_colas_authors() -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.uniform(-7, 7, (JUDGED_ON, 2, 1))


def sides_of_equation(gradient, f, x: jax.Array, alpha) -> tuple[jax.Array, jax.Array]:
    """Both sides of COLA's equation (App. B), of a rule: its direction, and the gradient
    of what each player gets after the other's step in that direction. (2, n), (2, n).

    Args:
      gradient: x -> (2, n), the rule's update direction, differentiable.
      f: the game, (2, n) -> (2,).
      x: joint policy, (2, n).
      alpha: look-ahead step of both players, ().
    """

    def surrogates(x):
        direction = gradient(x)
        after = x + alpha * direction
        returns = [f(after.at[i].set(x[i]))[i] for i in (0, 1)]
        return jnp.stack(returns), direction

    slopes, left = jax.jacfwd(surrogates, has_aux=True)(x)  # (2, 2, n), (2, n)
    return left, jnp.stack([slopes[0, 0], slopes[1, 1]])


def judge_each(gradient: Callable, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two arrays of `Judged`, of a rule on Ultimatum at policies (point, 2, 1)."""

    def at_point(x):
        left, right = sides_of_equation(gradient, ULTIMATUM.f, x, COLAS_ALPHA)
        return left[:, 0], ((left - right) ** 2).sum()

    return jax.lax.map(at_point, x, batch_size=8192)  # at once jax 0.10.2 hangs


def judge(gradient: Callable) -> Judged:
    """Judge a rule on Ultimatum, in 64 bits: CGD divides by numbers near 0."""
    with jax.enable_x64(True):
        judged = jax.jit(partial(judge_each, gradient))(policies_of_colas_authors())
    return Judged(*map(np.asarray, judged))


@cache
def judge_rules() -> dict[str, Judged]:
    """All rules but COLA, which need no run."""
    judged = {}
    for title, noted in OF_COLAS_AUTHORS.items():
        if noted.gradient is not None:
            judged[title] = judge(noted.gradient)
    return judged


def judge_models(results: Results) -> list[Judged]:
    """Each model of COLA."""
    _, models = load_models("cola", results, ULTIMATUM)

    def of_model(params):
        gradient = partial(cola.cola_gradient, params, ULTIMATUM, alpha=COLAS_ALPHA)
        return judge_each(gradient, policies_of_colas_authors())

    with jax.enable_x64(True):
        directions, consistency = jax.jit(partial(jax.lax.map, of_model))(models)
    return list(map(Judged, np.asarray(directions), np.asarray(consistency)))


def cosines(models: list[Judged], rule: Judged) -> np.ndarray:
    """The mean cosine of each model of COLA to a rule, (model,)."""
    means = []
    for model in models:
        products = (model.directions * rule.directions).sum(axis=1)
        own = np.linalg.norm(model.directions, axis=1)
        lengths = own * np.linalg.norm(rule.directions, axis=1)
        means.append((products / lengths).mean())
    return np.array(means)


def over_batches(distances: np.ndarray) -> np.ndarray:
    """Means over batches of policies, from distances (..., point). (batch,)."""
    return distances.reshape(-1, BATCH).mean(axis=1)


def ends_at(results: Results, payoffs) -> np.ndarray:
    """Which pairs of Ultimatum end with both returns within .5 of these, (seed, pair)."""
    (returns,) = results["self_play"]  # there is one setting
    return (np.abs(returns - np.array(payoffs)) < 0.5).all(axis=-1)


def ends_fair(results: Results) -> np.ndarray:
    """Which pairs end at 5 : 5 under a credible threat, (seed, pair).

    It is credible if an unfair offer pays player 1 less than 5: player 2 would take
    it, and leave 8, in less than 5 of 8 cases.
    """
    (policies,) = results["policies"]  # (seed, pair, 2, 1), log-odds
    takes = (1 + np.tanh(policies[..., 1, 0] / 2)) / 2
    return ends_at(results, (5, 5)) & (takes < 5 / 8)


def cola_offers_half(results: Results) -> list[Claim]:
    fair = ends_fair(results).mean(axis=1)  # (seed,)
    half = ends_at(results, (5, 5)).mean(axis=1)
    of_models = ", ".join(f"{share:.3f}" for share in fair)
    claim = Claim(
        "",
        "COLA ends at the fair offer under a credible threat in 10 of 10 runs",
        "after 500 steps of 5 from N(0, 1) both returns are within .5 of 5, and an "
        "unfair offer would pay less, from all starts, in every model",
        fair == 1,
        f"from a share of {spread(fair)} of the starts; at 5 : 5 from {spread(half)}",
        f"by model {of_models}",
    )
    return [claim]


def hola_offers_half_at_times(results: Results) -> list[Claim]:
    (fair,) = ends_fair(results)
    (unfair,) = ends_at(results, (8, 2))
    (half,) = ends_at(results, (5, 5))
    idle = half & ~fair
    others = unfair[~fair]
    return [
        Claim(
            "",
            "HOLA(2) ends there in 5 of 10 runs",
            "it does from .19 to .81 of the starts, which is where 5 of 10 is in the "
            "95 % interval",
            0.19 < fair.mean() < 0.81,
            f"from {fair[:10].sum()} of the first 10 starts, {fair.sum()} of {fair.size}",
        ),
        Claim(
            "",
            "HOLA(2) ends near 8 : 2 in the other runs",
            "both returns are within .5 of it from all other starts",
            others.size > 0 and others.all(),
            f"from {others.sum()} of the other {others.size}; from {idle.sum()} at 5 : 5 "
            "without the threat",
        ),
    ]


def cola_is_consistent(results: Results) -> list[Claim]:
    models = judge_models(results)
    own = np.array([model.consistency.mean() for model in models])
    distances = {}
    close = []
    alike = []
    of_cosines = []
    for title, rule in judge_rules().items():
        noted = OF_COLAS_AUTHORS[title]
        distances[title] = rule.consistency.mean()
        if noted.consistency is not None:
            close.append(abs(distances[title] / noted.consistency - 1) < 0.1)
        if noted.cosine is not None:
            found = cosines(models, rule)
            alike.append(abs(found.mean() - noted.cosine) < 0.05)
            of_cosines.append(f"{title} {spread(found, digits=2)}")
    del distances["naive"]
    words = [f"{title} {distance:.2g}" for title, distance in distances.items()]
    first = over_batches(judge_rules()["HOLA(1)"].consistency)
    second = over_batches(judge_rules()["HOLA(2)"].consistency)
    below = (second < first / 5).sum()
    least = min(distances.values())
    return [
        Claim(
            "",
            "COLA has a squared consistency of .007",
            "it is at most .0075 in every model",
            own <= 0.0075,
            f"{spread(own, digits=4)}, by model {own.min():.4f} to {own.max():.4f}",
        ),
        Claim(
            "",
            "COLA is more consistent than HOLA(1), (2), (4), SOS and CGD",
            "its squared consistency is less than that of each, in every model",
            own < least,
            f"{own.max():.2g} at most, the others {least:.2g} at least",
        ),
        Claim(
            "",
            "squared consistency of HOLA(1) 1.17, HOLA(2) .11, HOLA(4) 4.2, SOS .38, "
            "CGD 1.4",
            "ours is within a tenth of each",
            close,
            ", ".join(words),
            f"over {BATCH} policies HOLA(2)'s is less than a fifth of HOLA(1)'s in "
            f"{below} of {first.size} batches",
        ),
        Claim(
            "",
            "cosine to COLA of HOLA(1) .73, HOLA(2) .76, HOLA(4) .70, SOS .73",
            "the mean over models is within .05 of each",
            alike,
            ", ".join(of_cosines),
        ),
    ]


CLAIMS_OF_COLA = [  # as `CLAIMS`
    (cola_offers_half, ["cola_ultimatum"]),
    (hola_offers_half_at_times, ["hola_ultimatum"]),
    (cola_is_consistent, ["cola_ultimatum"]),
]

# --- Claims of COALA's authors --------------------------------------------------------
#
# Meulemans et al. (2024) have 32 seeds, and show their quartiles. Their text has a
# discount of .95, their appendix one of .999. A pair is the two agents of a seed.

COALAS_DISCOUNTS = (0.95, 0.999)
RUNS_OF_COALA = [
    "coala_ipd",
    "coala_ipd+discount=0.95",
    "coala_ipd+discount=0.999",
    "alone_ipd+discount=0.95",
    "alone_ipd+discount=0.999",
    "learners_ipd+discount=0.95",
    "learners_ipd+discount=0.999",
    "sums_ipd+discount=0.95",
    "sums_ipd+discount=0.999",
]
RUNS_OF_LOLA = ["lola_ipd", "lola2_ipd", "lola10_ipd", "lola20_ipd"]
COOPERATES, DEFECTS = -1.2, -1.9  # a pair that gets more, less (CC pays -1, DD -2)


def pairs_of_coala(results: Results) -> np.ndarray:
    """Mean return of both agents of each pair with each other, (seed,)."""
    (returns,) = results["self_play"]  # there is one setting
    return returns.mean(axis=(1, 2))


def quartiles(samples: np.ndarray) -> str:
    """The median of samples, and the quartiles."""
    low, middle, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return f"median {middle:.3f}, quartiles {low:.3f} and {high:.3f}"


def count_by_discount(runs: tuple, holds: list[np.ndarray]) -> tuple[str, str]:
    """Of how many pairs something is true, and quartiles of their returns, in words."""
    counts = []
    returns = []
    for results, of_pairs, discount in zip(runs, holds, COALAS_DISCOUNTS, strict=True):
        counts.append(f"{of_pairs.sum()} of {of_pairs.size} pairs at {discount:g}")
        returns.append(f"{quartiles(pairs_of_coala(results))} at {discount:g}")
    return ", ".join(counts), "; ".join(returns)


def coala_cooperates_in_mixed_pools(*mixed: Results) -> list[Claim]:
    holds = [pairs_of_coala(results) > COOPERATES for results in mixed]
    claim = Claim(
        "",
        "in pools of agents and naive learners agents learn to cooperate",
        "the mean return of both agents with each other is more than -1.2, in every "
        "pair at both discounts",
        holds,
        *count_by_discount(mixed, holds),
    )
    return [claim]


def coala_defects_among_agents(*alone: Results) -> list[Claim]:
    holds = [pairs_of_coala(results) < DEFECTS for results in alone]
    claim = Claim(
        "",
        "in pools of agents alone agents learn to defect",
        "the mean return of both agents with each other is less than -1.9, in every "
        "pair at both discounts (this is naive learning)",
        holds,
        *count_by_discount(alone, holds),
    )
    return [claim]


def coala_extorts_naive_learners(*beside_learners: Results) -> list[Claim]:
    holds = []
    words = []
    for results in beside_learners:
        own, learners = np.moveaxis(results["versus_naive"][0].mean(axis=1), -1, 0)
        holds.append((own > -1) & (learners < own - 0.1))  # (seed,)
        words.append(f"agents {quartiles(own)}, learners {quartiles(learners)}")
    counts, _ = count_by_discount(beside_learners, holds)
    claim = Claim(
        "",
        "in pools of naive learners alone agents learn to extort them",
        "after 500 steps of a naive learner player 1's agent gets more than the -1 of "
        "CC, and the learner less than the agent by more than .1, in every pair at both "
        "discounts",
        holds,
        counts,
        "; ".join(words),
    )
    return [claim]


def coala_by_discount(*runs: Results) -> list[Claim]:
    count = len(COALAS_DISCOUNTS)
    holds = []
    words = []
    for i, discount in enumerate(COALAS_DISCOUNTS):
        mixed, alone = pairs_of_coala(runs[i]), pairs_of_coala(runs[count + i])
        cooperate = np.quantile(mixed, 0.25) > COOPERATES
        defect = np.quantile(alone, 0.75) < DEFECTS
        holds.append(cooperate and defect)
        words.append(f"{'yes' if holds[-1] else 'no'} at {discount:g}")
    claim = Claim(
        "",
        "both at once: mixed pools cooperate, and agents alone defect",
        "the lower quartile of pairs gets more than -1.2 in mixed pools, and the upper "
        "one less than -1.9 among agents, at each of both discounts",
        holds,
        ", ".join(words),
    )
    return [claim]


def coala_with_larger_steps(*sums: Results) -> list[Claim]:
    (claim,) = coala_cooperates_in_mixed_pools(*sums)
    sentence = "(ours) in mixed pools they do if eta is 5 for sums, 100 and 5000 here"
    return [claim._replace(sentence=sentence, ours=True)]


# Steps of the imagined learners in claims on LOLA: 10 where there is one, else 5.


def lola_by_seed(results: Results, alpha: float) -> np.ndarray:
    """Mean return of both agents with each other, (seed,)."""
    return results["self_play"][at(results, alpha)].mean(axis=(1, 2))


def near_sighted_lola(one: Results, two: Results) -> list[Claim]:
    of_one, of_two = lola_by_seed(one, 10), lola_by_seed(two, 5)
    claim = Claim(
        "",
        "LOLA that looks 1 or 2 steps ahead cooperates",
        "the mean return of both agents with each other is more than -1.2, in every "
        "seed (alpha = 10 and 5)",
        np.concatenate([of_one, of_two]) > COOPERATES,
        f"{spread(of_one)} with 1 step, {spread(of_two)} with 2",
    )
    return [claim]


def far_sighted_lola(ten: Results, twenty: Results) -> list[Claim]:
    of_ten, of_twenty = lola_by_seed(ten, 5), lola_by_seed(twenty, 5)
    claim = Claim(
        "",
        "LOLA that looks 10 or 20 steps ahead does not cooperate",
        "the mean return of both agents with each other is less than -1.5, in every "
        "seed (alpha = 5)",
        np.concatenate([of_ten, of_twenty]) < -1.5,
        f"{spread(of_ten)} with 10 steps, {spread(of_twenty)} with 20",
    )
    return [claim]


def lola_extorts_newcomers(twenty: Results) -> list[Claim]:
    returns = twenty["best_response"][at(twenty, 5)].mean(axis=1)  # (seed, 2)
    agents, learners = returns.T
    claim = Claim(
        "",
        "LOLA's policy, fixed, extorts a fresh naive learner if it looked 20 steps ahead",
        "after 500 steps the agent gets more than the -1 of CC, and the learner less "
        "than the agent by more than .1, in every seed (alpha = 5)",
        (agents > -1) & (learners < agents - 0.1),
        f"agents {spread(agents)}, learners {spread(learners)}",
    )
    return [claim]


CLAIMS_OF_COALA = [  # as `CLAIMS`
    (coala_cooperates_in_mixed_pools, RUNS_OF_COALA[1:3]),
    (coala_defects_among_agents, RUNS_OF_COALA[3:5]),
    (coala_by_discount, RUNS_OF_COALA[1:5]),
    (coala_extorts_naive_learners, RUNS_OF_COALA[5:7]),
    (coala_with_larger_steps, RUNS_OF_COALA[7:9]),
    (near_sighted_lola, ["lola_ipd", "lola2_ipd"]),
    (far_sighted_lola, ["lola10_ipd", "lola20_ipd"]),
    (lola_extorts_newcomers, ["lola20_ipd"]),
]

# --- Claims on LOQA and Advantage Alignment -------------------------------------------
#
# Aghajohari et al. (2024) and Duque et al. (2024). The criteria were written after two
# seeds had been seen; the runs have eight.

RUNS_OF_LOQA = ["loqa_ipd", "full_ipd", "alignment_ipd"]


def reciprocates(results: Results, betas, where: str, sentence: str) -> list[Claim]:
    """A claim that agents play tit-for-tat, or something like it, at these betas."""
    settings = [at(results, beta) for beta in betas]
    holds = [reciprocal(results, i) for i in settings]
    own = [results["self_play"][i, ..., 0].mean(axis=1) for i in settings]
    left = [results["exact_best_response"][i, ..., 0].mean(axis=1) for i in settings]
    counts = [
        f"{of_seeds.sum()} of {of_seeds.size} seeds at {beta:g}"
        for of_seeds, beta in zip(holds, betas, strict=True)
    ]
    claim = Claim(
        "",
        sentence,
        f"{where} in every seed agents get more than -1.15 with their like, are left "
        "more than -1.35 by an exact best response, and cooperate after CD less than "
        "half as often as after CC",
        holds,
        ", ".join(counts),
        f"self-play {series(betas, own)}; beside exact best responses "
        f"{series(betas, left)}",
    )
    return [claim]


def loqa_reciprocates(results: Results) -> list[Claim]:
    return reciprocates(
        results, (1.0,), "at beta = 1, the authors',", "LOQA learns to reciprocate"
    )


def alignment_reciprocates(results: Results) -> list[Claim]:
    return reciprocates(
        results,
        (1.0, 2.0, 5.0, 10.0),
        "at every beta of 1 and more",
        "Advantage Alignment cooperates, and is robust against exploitation",
    )


def full_reciprocates(results: Results) -> list[Claim]:
    (claim,) = reciprocates(
        results,
        (1.0, 2.0, 5.0, 10.0),
        "at every beta of 1 and more",
        "(ours) LOQA learns to, if all of the softmax is differentiated",
    )
    return [claim._replace(ours=True)]


def directions_of_loqa(beta: float) -> dict[str, np.ndarray]:
    """What each variant adds to the naive gradient, (pair, 10), at random policies."""
    keys = jax.random.split(jax.random.key(0), 4096)
    xs = jax.vmap(IPD.init)(keys)
    shaping = {}
    for variant in ("loqa", "full", "alignment"):

        def of_pair(x, variant=variant):
            naive = simultaneous_gradient(IPD.f, x)
            return (loqa_gradient(IPD, x, beta, variant) - naive).ravel()

        shaping[variant] = np.asarray(jax.jit(jax.vmap(of_pair))(xs))
    return shaping


def mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Between directions, (pair, 10) each."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return ((one * other).sum(axis=1) / lengths).mean()


def alignment_is_loqa_without_factor() -> list[Claim]:
    holds = []
    words = []
    for beta in (0.1, 1.0, 10.0):
        shaping = directions_of_loqa(beta)
        without = mean_cosine(shaping["alignment"], shaping["full"])
        with_factor = mean_cosine(shaping["alignment"], shaping["loqa"])
        holds.append(without > 0.9 and without > with_factor)
        words.append(f"{without:.2f} and {with_factor:.2f} at {beta:g}")
    claim = Claim(
        "",
        "Advantage Alignment is LOQA without the factor 1 - m",
        "at 4096 random pairs of policies the mean cosine of what it adds to the naive "
        "gradient and what `full` adds is more than .9, and more than that with LOQA, at "
        "beta = .1, 1 and 10",
        holds,
        f"cosines to `full` and to LOQA: {', '.join(words)}",
    )
    return [claim]


CLAIMS_OF_LOQA = [  # as `CLAIMS`
    (loqa_reciprocates, ["loqa_ipd"]),
    (alignment_reciprocates, ["alignment_ipd"]),
    (alignment_is_loqa_without_factor, []),
    (full_reciprocates, ["full_ipd"]),
]

# --- The list of claims ---------------------------------------------------------------

CLAIMS = [  # a function, and the runs whose results it takes
    (fixed_points, []),
    (unconditional_play, []),
    (naive_goes_to_the_nearest, ["naive_logistic"]),
    (lola_helps_little, ["lola_logistic"]),
    (hola_at_the_edges, ["naive_logistic", "hola_logistic"]),
    (hola_is_unstable, ["hola_logistic", "lola_logistic"]),
    (hola_of_order_three, ["hola_logistic", "hola3_logistic"]),
    (
        cola_improves,
        ["cola_logistic", "naive_logistic", "lola_logistic", "hola_logistic"],
    ),
    (meva_comes_to_b, ["meva_logistic"]),
    (worth_a_sacrifice, ["meva_logistic"]),
    (
        only_meva,
        [
            "naive_logistic",
            "lola_logistic",
            "hola_logistic",
            "hola3_logistic",
            "cola_logistic",
            "meva_logistic",
        ],
    ),
    (naive_fails, ["naive_ipd"]),
    (meva_cooperates, ["meva_ipd"]),
    (meva_is_not_exploited, ["meva_ipd"]),
    (meva_shapes_naive_learners, ["meva_ipd"]),
    (meva_plays_tit_for_tat, ["meva_ipd"]),
    (looking_farther, ["lola_ipd", "meva_ipd"]),
    (
        a_single_objective,
        [
            "naive_two_hills",
            "lola_two_hills",
            "hola_two_hills",
            "cola_two_hills",
            "meva_two_hills",
            "short_two_hills",
        ],
    ),
    (
        trained_for_the_situation,
        ["tournament_ipd", "tournament_imp", "tournament_chicken"],
    ),
]
RUNS_OF_CLAIMS = []
for _, names in CLAIMS:
    RUNS_OF_CLAIMS += names


# --- Tables of claims and commands ----------------------------------------------------


def all_claims(
    runs: dict[str, Results], claims: list = CLAIMS
) -> list[tuple[Claim, list[str]]]:
    """The claims whose runs are there, with these runs' names."""
    found = []
    for measure, names in claims:
        if all(name in runs for name in names):
            for claim in measure(*(runs[name] for name in names)):
                found.append((claim, names))
    return found


def group_of(words: str) -> str:
    """The group of claims with this verdict."""
    return "In part" if "of" in words else words.capitalize()


def table_of_claims(runs: dict[str, Results]) -> str:
    """Claims with verdicts and our main number, those that hold first."""
    groups = {"Yes": [], "In part": [], "No": [], "Added by us": []}
    for claim, _ in all_claims(runs):
        words = verdict(claim.holds)
        row = (claim.section, claim.sentence, words, claim.evidence)
        groups["Added by us" if claim.ours else group_of(words)].append(row)
    parts = []
    for group, rows in groups.items():
        parts.append(f"**{group}: {len(rows)} claims**")
        parts.append(table(("Sec.", "the paper", "holds", "here"), rows))
    return "\n\n".join(parts)


def list_of_criteria(runs: dict[str, Results], claims: list = CLAIMS) -> str:
    """Each claim with its criterion, all numbers, and the runs that they are from."""
    parts = []
    for claim, names in all_claims(runs, claims):
        where = f" (Sec. {claim.section})" if claim.section else ""
        lines = [
            f"**{claim.sentence}**{where}: {verdict(claim.holds)}",
            f"- It holds if: {claim.criterion}.",
            f"- Here: {claim.evidence}.",
        ]
        if claim.numbers:
            lines.append(f"- All numbers: {claim.numbers}.")
        if names:
            files = ", ".join(f"`{name}`" for name in names)
            lines.append(f"- Runs: {files}.")
        parts.append("\n".join([lines[0], "", *lines[1:]]))
    return "\n\n".join(parts)


def table_of_authors_claims(authors: str, claims: list, runs: dict) -> str:
    """The claims of others than the paper, with verdicts and our main number."""
    rows = []
    for claim, _ in all_claims(runs, claims):
        rows.append((claim.sentence, verdict(claim.holds), claim.evidence))
    return table((authors, "holds", "here"), rows)


FRONT = (  # the claims on the front page
    (
        "our algorithm is the only one to find the Pareto-efficient solution "
        "regardless of initialisation"
    ),
    "when gamma > .9, MeVa converges to B from anywhere in the surveyed area",
    "as gamma increases, cooperation becomes more prevalent",
    "our algorithm finds nonexploitable cooperation",
    "MeVa is easier to extend farther into the future",
)


def table_of_front_claims(runs: dict[str, Results]) -> str:
    """How many claims hold, and five that matter."""
    rows = []
    groups = []
    for claim, _ in all_claims(runs):
        words = verdict(claim.holds)
        if not claim.ours:
            groups.append(group_of(words))
        if claim.sentence in FRONT:
            rows.append((claim.sentence, words, claim.evidence))
    return (
        f"Of the {len(groups)} claims that we found in the paper {groups.count('Yes')} "
        f"hold over all settings and models, {groups.count('In part')} over some of "
        f"them, and {groups.count('No')} over none. Five that matter:\n\n"
        f"{table(('the paper', 'holds', 'here'), rows)}"
    )


def table_of_commands(runs: dict[str, Results]) -> str:
    """The command of each run but the small ones on every game."""
    rows = []
    for name in RUNS:
        if not name.startswith("games/"):
            rows.append((f"`{name}`", f"`{command(name)}`"))
    return table(("run", "command"), rows)


# --- The table of algorithms ----------------------------------------------------------


class Algorithm(NamedTuple):
    """A row of the front page."""

    title: str
    paper: str
    idea: str
    run: str  # on the IPD
    time: str  # of one seed at the paper's settings, on two cores


ALGORITHMS = {
    "naive": Algorithm(
        "naive learning",
        "Eq. 1",
        "the gradient of one's own return",
        "naive_ipd",
        "10 s",
    ),
    "lola": Algorithm(
        "LOLA",
        "Foerster et al. 2018",
        "the return after the other's next naive step",
        "lola_ipd",
        "15 s",
    ),
    "hola": Algorithm(
        "HOLA(n)",
        "Foerster et al. 2018",
        "the return after the other's next step of HOLA(n - 1)",
        "hola_ipd",
        "20 s",
    ),
    "sos": Algorithm(
        "SOS, and 7 relatives",
        "Letcher et al. 2019",
        "LOLA, as far as it does no harm",
        "sos_ipd",
        "20 s",
    ),
    "pola": Algorithm(
        "POLA",
        "Zhao et al. 2022",
        "LOLA, measuring steps by how play changes",
        "pola_ipd",
        "1 min",
    ),
    "cola": Algorithm(
        "COLA",
        "Willi et al. 2022",
        "a learned gradient that looks ahead at itself",
        "cola_ipd",
        "1 to 3 min",
    ),
    "maml": Algorithm(
        "M-MAML",
        "Lu et al. 2022",
        "a learned initial policy, then naive steps",
        "maml_ipd",
        "1 to 2 min",
    ),
    "coala": Algorithm(
        "COALA",
        "Meulemans et al. 2024",
        "a learned policy that naive learners adapt to",
        "coala_ipd",
        "10 to 40 s",
    ),
    "loqa": Algorithm(
        "LOQA",
        "Aghajohari et al. 2024",
        "also what raises the value to the other of what is good for oneself",
        "loqa_ipd",
        "15 s",
    ),
    "loqa --variant full": Algorithm(
        "LOQA, `--variant full`",
        "this repository",
        "the same without its factor: all of the softmax is differentiated",
        "full_ipd",
        "15 s",
    ),
    "loqa --variant alignment": Algorithm(
        "Advantage Alignment",
        "Duque et al. 2024",
        "the policy gradient, plus one's past advantages times the other's",
        "alignment_ipd",
        "15 s",
    ),
    "mfos": Algorithm(
        "M-FOS",
        "Lu et al. 2022",
        "PPO on how the other learns",
        "mfos_4096_ipd",
        "20 to 40 min",
    ),
    "meva": Algorithm(
        "MeVa",
        "Cooijmans et al. 2023",
        "the gradient of a learned sum of future returns",
        "meva_ipd",
        "4 to 20 min",
    ),
    "meva --preset reliable": Algorithm(
        "MeVa, `--preset reliable`",
        "this repository",
        "the same, after an eighth of the training",
        "reliable_ipd",
        "1 to 3 min",
    ),
}


def table_of_algorithms(runs: dict[str, Results]) -> str:
    """What each algorithm follows, and its return in self-play on the IPD."""
    rows = []
    for script, algorithm in ALGORITHMS.items():
        results = runs[algorithm.run]
        i = best(results)
        mean = results["self_play"][i, ..., 0].mean()
        file = script.partition(" ")[0]
        row = [f"[{algorithm.title}]({file}.py)", algorithm.paper, algorithm.idea]
        rows.append((*row, f"{mean:.2f}", algorithm.time))
    return table(("algorithm", "from", "it follows", "self-play", "time"), rows)


# --- Tables of returns ----------------------------------------------------------------

BESIDE = [f"agent : {other}" for other in list(RETURNS.values())[1:]]


def cell(results: Results, play: str, i: int, digits: int = 3) -> str:
    """Returns over the policy pairs of all seeds, the agent's first.

    On a second line the agent is player 2, if the game is not symmetric.
    """
    words = both(results[play][i].reshape(-1, 2), digits)
    if f"{play}_2" in results:
        second = both(results[f"{play}_2"][i].reshape(-1, 2), digits)
        words = f"{words}<br>{second}"
    return words


SHOWN = {  # settings in the table of returns
    "naive_ipd": (2,),
    "lola_ipd": (2, 5, 10, 30, 100),
    "eq2_ipd": (2, 5, 10, 30, 100),
    "hola_ipd": (5, 10, 30, 100),
    "sos_ipd": (10, 100),
    "pola_ipd": (10, 30),
    "cola_ipd": (1, 2, 5, 10),
    "eq4_ipd": (1, 2, 5, 10),
    "maml_ipd": (2,),
    "meva_ipd": (0, 0.5, 0.9, 0.95, 0.99, 0.999),
    "reliable_ipd": (0, 0.5, 0.9, 0.95, 0.99, 0.999),
    "meva_imp": (0.99,),
}


UNUSUAL = {"eq2": "Eq. 2", "eq4": "Eq. 4", "reliable": "preset reliable"}


def table_of_returns(runs: dict[str, Results]) -> str:
    """The IPD in numbers, and MeVa at full settings on iterated matching pennies."""
    rows = []
    for name, results in runs.items():
        first, game = name.split("_")
        for setting in SHOWN[name]:
            i = at(results, setting)
            label = labelled(script_of(name), results, i)
            if first in UNUSUAL:
                label += f" ({UNUSUAL[first]})"
            own = spread(results["self_play"][i][..., 0])
            others = [cell(results, play, i) for play in list(RETURNS)[1:]]
            rows.append((f"`{game}`", label, own, *others))
    return table(("", "", "self-play", *BESIDE), rows)


def over_models(results: Results, play: str, i: int) -> str:
    """Returns, the agent's first, with errors over models."""
    return both(results[play][i].mean(axis=1))


def reciprocal(results: Results, i: int) -> np.ndarray:
    """Which models of the IPD reciprocate at the i-th setting, (seed,).

    They get more than -1.15 with their like, are left more than -1.35 by an exact best
    response, and cooperate after CD less than half as often as after CC.
    """
    _, _, after_cd, _, after_cc = chances(results, i)
    own = results["self_play"][i, ..., 0].mean(axis=1)
    left = results["exact_best_response"][i, ..., 0].mean(axis=1)
    return (own > -1.15) & (left > -1.35) & (after_cd < after_cc / 2)


def table_of_networks(runs: dict[str, Results]) -> str:
    """The IPD between policies of each kind.

    Each rule is at its best setting in self-play, and MeVa at .95 and .99, too.
    """
    rows = []
    for kind, game in KINDS.items():
        for rule, title in RULES.items():
            results = runs.get(f"{rule}_{game}")
            if results is None:
                continue
            settings = [best(results)]
            if rule == "meva":
                settings += [at(results, 0.95), at(results, 0.99)]
            for i in dict.fromkeys(settings):  # each once
                label = title
                if rule == "meva":
                    label += f", gamma = {results['sweep'][i]:g}"
                elif rule != "naive":
                    label += f", alpha = {results['sweep'][i]:g}"
                own = spread(results["self_play"][i, ..., 0].mean(axis=1))
                others = [over_models(results, play, i) for play in list(RETURNS)[1:]]
                _, _, after_cd, _, after_cc = chances(results, i)
                after = f"{spread(after_cd)} and {spread(after_cc)}"
                which = reciprocal(results, i)
                count = f"{which.sum()} of {len(which)}"
                rows.append((kind, label, own, *others, after, count))
    heading = ("policies", "", "self-play", *BESIDE, "P(C) after CD and CC")
    return table((*heading, "reciprocal"), rows)


def table_of_samples(runs: dict[str, Results]) -> str:
    """LOLA, which follows estimates, and MeVa, which is trained on them, on the IPD."""
    rows = []
    for script, setting in SAMPLED.items():
        for episodes in (0, *EPISODES):
            results = runs.get(sampled_run(script, episodes))
            if results is None:
                continue
            i = at(results, setting)
            cells = [cell(results, play, i) for play in RETURNS]
            means = results["self_play"][i].mean(axis=(1, 2))
            seeds = ", ".join(f"{mean:.2f}" for mean in means)
            label = labelled(script, results, i)
            rows.append((label, str(episodes or "exact"), seeds, *cells))
    heading = ("", "episodes", "self-play of each seed", "agent : other", *BESIDE)
    return table(heading, rows)


def table_of_games(runs: dict[str, Results]) -> str:
    """Every algorithm on every game, from small runs.

    At gamma = .99, or at the largest look-ahead up to 10.
    """
    parts = []
    for play, (title, other) in PANELS.items():
        rows = []
        for game in GAMES:
            row = [f"`{game}`"]
            for script in TITLES:
                results = runs.get(f"games/{script}_{game}")
                if results is None:
                    row.append("")
                    continue
                if script == "meva":
                    i = at(results, 0.99, exactly=False)
                else:
                    sweep = results["sweep"]
                    i = np.where(sweep <= 10, sweep, -1).argmax()
                row.append(cell(results, play, i, digits=2))
            rows.append(row)
        parts.append(f"{title.capitalize()}, agent : {other}:")
        parts.append(table(("", *TITLES.values()), rows))
    return "\n\n".join(parts)


def table_of_mfos(runs: dict[str, Results]) -> str:
    """M-FOS on the IPD beside each opponent of its training.

    Mean returns over meta-episodes, of each model.
    """
    rows = []
    for results in runs.values():
        words = []
        for agent, other in results["episode_returns"].mean(axis=(0, 2, 3)):
            words.append(f"{agent:.3f} : {other:.3f}")
        config = results["config"]
        sizes = (str(config["batch_size"]), str(config["outer_steps"]))
        rows.append((config["opponent"], *sizes, "; ".join(words)))
    heading = ("opponent", "starts", "episodes", "agent : other, of each model")
    return table(heading, rows)


COMPARED = {  # settings in the table of devices
    "naive": (2,),
    "lola": (1, 10, 30, 100),
    "hola": (1, 5, 10, 100),
    "meva": (0, 0.9, 0.95, 0.99),
}


def table_of_devices(runs: dict[str, Results]) -> str:
    """Returns on the IPD from the same seeds on a CPU and on a GPU.

    In brackets is by how much the returns of a single pair differ at most.
    """
    rows = []
    for script, settings in COMPARED.items():
        cpu = runs[f"{script}_ipd"]
        gpu = runs[f"{script}_gpu_ipd"]
        for setting in settings:
            cells = []
            for play in RETURNS:
                theirs = gpu[play][at(gpu, setting)]  # (seed, pair, 2)
                ours = cpu[play][at(cpu, setting)][: len(theirs)]
                off = np.abs(ours - theirs).max()
                means = f"{ours[..., 0].mean():.4f}, {theirs[..., 0].mean():.4f}"
                cells.append(f"{means} ({off:.0e})")
            rows.append((labelled(script, cpu, at(cpu, setting)), *cells))
    off = np.abs(runs["meva_gpu_ipd"]["loss"] / runs["meva_ipd"]["loss"] - 1)
    words = []
    for loop in (1, 50, 100, 200, 500):
        words.append(f"{off[:, loop - 1].max():.0e} at {loop}")
    heading = ("CPU, GPU (largest difference)", *RETURNS.values())
    return (
        f"{table(heading, rows)}\n\nLosses of the models of MeVa differ, relatively "
        f"and at most, by {', '.join(words)} outer loops."
    )


# --- Tables on MeVa and COLA ----------------------------------------------------------


def table_of_ablations(runs: dict[str, Results]) -> str:
    """Returns on the IPD, and TD errors, with one technique of Section 4 changed.

    A TD error is the mean over the last fifty outer loops, of three models.
    """
    rows = []
    for name, label in ABLATIONS.items():
        if name not in runs:
            continue
        results = runs[name]
        i = at(results, 0.99)
        own = spread(results["self_play"][i, ..., 0].mean(axis=1))
        response = over_models(results, "best_response", i)
        learner = over_models(results, "versus_naive", i)
        error = spread(runs[f"td/{name}"]["td_error"][:, -50:].mean(axis=1), digits=4)
        switch = f"`{SWITCHES[name]}`" if SWITCHES[name] else ""
        theirs = f"{TD_ERRORS[name]:.4f}"
        rows.append((label, own, response, learner, error, theirs, switch))
    beside = ("agent : best response", "agent : naive learner")
    return table(("", "self-play", *beside, "TD error", "authors", "switch"), rows)


def table_of_final_layers(runs: dict[str, Results]) -> str:
    """The Logistic Game: the share that ends with x_1, x_2 > 0, by MeVa's network."""
    rows = []
    gammas = []
    for name, (label, _) in NETWORKS.items():
        if name in runs:
            gammas = [f"{gamma:g}" for gamma in runs[name]["sweep"]]
            rows.append((label, *map(spread, runs[name]["basin_fraction"])))
    return table(("gamma", *gammas), rows)


EQUATIONS = {
    "lola_logistic": "LOLA (App. B)",
    "eq2_logistic": "LOLA of Eq. 2",
    "cola_logistic": "COLA (App. B)",
    "eq4_logistic": "COLA of Eq. 4",
}


def table_of_equations(runs: dict[str, Results]) -> str:
    """The Logistic Game: the share that ends with x_1, x_2 > 0, by equation and alpha."""
    alphas = (0, 1, 2, 5, 10)
    rows = []
    for name, label in EQUATIONS.items():
        shares = [runs[name]["basin_fraction"][at(runs[name], a)] for a in alphas]
        rows.append((label, *map(spread, shares)))
    return table(("alpha", *map(str, alphas)), rows)


def table_of_presets(runs: dict[str, Results]) -> str:
    """MeVa with the paper's settings and with the reliable preset, errors over models.

    "Kept" is the share of pairs that an exact best response leaves more than -1.5.
    """
    rows = []
    for name, label in (("meva_ipd", "paper"), ("reliable_ipd", "reliable")):
        results = runs[name]
        for gamma in (0.95, 0.99, 0.999):
            i = at(results, gamma)
            kept = (results["exact_best_response"][i][..., 0] > -1.5).mean(axis=1)
            by_seed = ", ".join(f"{share:.2f}" for share in kept)
            own = spread(results["self_play"][i].mean(axis=(1, 2)))
            beside_naive = spread(results["versus_naive"][i][..., 0].mean(axis=1))
            row = (label, f"{gamma:g}", own, spread(kept), by_seed, beside_naive)
            rows.append(row)
    heading = (
        "settings",
        "gamma",
        "self-play",
        "kept",
        "kept, by model",
        "beside naive",
    )
    return table(heading, rows)


def slopes(results: Results, gammas, line: np.ndarray) -> np.ndarray:
    """Slopes of player 1's meta-value by its own policy, (gamma, 2, seed, point).

    At points of the diagonal x_1 = x_2. First the model's, and then those of what it
    stands for: the discounted mean of the returns that follow if both players follow
    the model, differentiated through 1000 steps.
    """
    config, models = load_models("meva", results, LOGISTIC)

    def at_point(gamma, params, x):
        direction = partial(
            meva.meva_gradient, params, LOGISTIC, gamma=gamma, config=config
        )

        def step(carry, _):
            x, weight, value = carry
            value = value + (1 - gamma) * weight * LOGISTIC.f(x)[0]
            return (x + config.lr * direction(x), gamma * weight, value), None

        def true_value(x):
            (_, _, value), _ = jax.lax.scan(step, (x, 1.0, 0.0), length=1000)
            return value

        return jnp.stack([direction(x)[0, 0], jax.jacfwd(true_value)(x)[0, 0]])

    points = np.broadcast_to(np.float32(line)[:, None, None], (len(line), 2, 1))
    of_models = jax.vmap(jax.vmap(at_point, (None, None, 0)), (None, 0, None))
    of_gamma = jax.jit(of_models)
    found = [of_gamma(np.float32(gamma), models, points) for gamma in gammas]
    return np.moveaxis(np.array(found), -1, 1)  # from (gamma, seed, point, 2)


def zero_of(slope: np.ndarray, line: np.ndarray) -> float:
    """Where a slope that falls along a line is zero."""
    return np.interp(0, -slope, line)


def table_of_ends(runs: dict[str, Results]) -> str:
    """Where MeVa's policies end on the Logistic Game, and where its value is largest.

    That is where the slope of its meta-value is zero, and that of the true one.
    """
    rows = []
    line = np.linspace(3.5, 7, 15)
    near = runs["meva_logistic"]
    far = runs["far_logistic"]
    at_b = logistic_returns(np.array([B, B], np.float32))[0]
    gammas = (0.9, 0.91, 0.92, 0.95, 0.99)
    for gamma, slopes_of_both in zip(gammas, slopes(near, gammas, line), strict=True):
        row = [f"{gamma:g}", spread(near["basin_fraction"][at(near, gamma)])]
        for results in (near, far):
            ends = results["endpoints"][at(results, gamma)]  # (seed, 29, 29, 2)
            close = (np.abs(ends - B) < RADIUS).all(axis=-1)
            row.append(spread(close.mean(axis=(1, 2))))
        for results in (near, far):
            ends = results["endpoints"][at(results, gamma)]
            row.append(spread(at_b - logistic_returns(ends).mean(axis=(1, 2, 3))))
        for of_models in slopes_of_both:
            tops = [zero_of(slope, line) for slope in of_models]
            row.append(spread(tops, digits=2))
        rows.append(row)
    heading = (
        "gamma",
        "in B's quadrant",
        "within .5 of B",
        "after 2000 steps",
        "return lost to B",
        "after 2000 steps",
        "the model's best x",
        "the true one's",
    )
    return table(heading, rows)


def table_of_consistency(runs: dict[str, Results]) -> str:
    """COLA's consistency loss on held-out policies of the Logistic Game.

    Beside it that of HOLA(n), and the cosine of COLA's gradient to that of HOLA(n).
    """
    results = runs["cola_logistic"]
    rows = []
    for i, alpha in enumerate(results["sweep"]):
        row = [f"{alpha:g}", f"{results['consistency'][i].mean():.2g}"]
        for loss in results["hola_consistency"][i].mean(axis=(0, 2)):
            row.append(f"{loss:.2g}")
        for cosine in results["hola_cosine"][i].mean(axis=(0, 2)):
            row.append(f"{cosine:.3f}")
        rows.append(row)
    cosines = [f"cosine to HOLA({n})" for n in range(4)]
    return table(("alpha", "COLA", "HOLA(0)", "LOLA", "HOLA(2)", *cosines), rows)


def table_of_colas_numbers(runs: dict[str, Results]) -> str:
    """Ultimatum at alpha = 5: who ends where, and how consistent each rule is.

    Beside our numbers those of COLA's authors. The range is that of nine in ten means
    over a batch of policies.
    """
    colas = judge_models(runs["cola_ultimatum"])
    rows = []
    for title, noted in OF_COLAS_AUTHORS.items():
        results = runs[noted.run]
        fair = ends_fair(results)
        half = ends_at(results, (5, 5))
        unfair = ends_at(results, (8, 2))
        if noted.gradient is None:
            models = judge_models(results)
            distances = np.array([model.consistency for model in models])
            cosine = ""
        else:
            rule = judge_rules()[title]
            distances = rule.consistency
            cosine = spread(cosines(colas, rule), digits=2)
        low, high = np.quantile(over_batches(distances), (0.05, 0.95))
        row = [
            title,
            "" if noted.fair is None else f"{noted.fair} of 10",
            spread(fair.mean(axis=1)),
            spread(half.mean(axis=1)),
            spread(unfair.mean(axis=1)),
            "" if noted.consistency is None else f"{noted.consistency:g}",
            f"{distances.mean():.2g}",
            f"{low:.2g} to {high:.2g}",
            "" if noted.cosine is None else f"{noted.cosine:.2f}",
            cosine,
        ]
        rows.append(row)
    heading = (
        "",
        "fair, authors",
        "fair",
        "5 : 5",
        "8 : 2",
        "squared consistency, authors",
        "squared consistency",
        f"of {BATCH} policies",
        "cosine to COLA, authors",
        "cosine to COLA",
    )
    return table(heading, rows)


def table_of_coalas_pools(runs: dict[str, Results]) -> str:
    """COALA's agents on the IPD by discount, in mixed pools and among themselves.

    Medians and quartiles over pairs, or over the agents of all pairs.
    """
    rows = []
    for results in runs.values():
        config = results["config"]
        own = pairs_of_coala(results)
        beside = results["versus_naive"][0].mean(axis=1)  # (seed, 2), player 1's agent
        cooperate, defect = (own > COOPERATES).sum(), (own < DEFECTS).sum()
        row = [
            f"`{config['game']}`",
            f"{config['share']:g}",
            f"{config['eta']:g}",
            f"{cooperate} and {defect} of {own.size}",
            quartiles(own),
            quartiles(beside[:, 0]),
            quartiles(beside[:, 1]),
        ]
        rows.append(row)
    heading = (
        "",
        "share of learners",
        "eta",
        "pairs that cooperate and defect",
        "a pair",
        "an agent beside a naive learner",
        "that learner",
    )
    return table(heading, rows)


def table_of_loqa(runs: dict[str, Results]) -> str:
    """LOQA and its relatives on the IPD, by beta."""
    rows = []
    for name, results in runs.items():
        for i, beta in enumerate(results["sweep"]):
            own = spread(results["self_play"][i, ..., 0].mean(axis=1))
            others = [over_models(results, play, i) for play in list(RETURNS)[2:]]
            after_start, dd, cd, dc, cc = (part.mean() for part in chances(results, i))
            after = f"{after_start:.2f} {dd:.2f} {cd:.2f} {dc:.2f} {cc:.2f}"
            left = results["exact_best_response"][i, ..., 0]
            share = f"{(left > -1.5).mean():.3f}"
            label = f"`{name.partition('_')[0]}`"
            rows.append((label, f"{beta:g}", own, *others, share, after))
    heading = (
        "variant",
        "beta",
        "self-play",
        *BESIDE[1:],
        "left more than -1.5",
        "P(C) at first, after DD, CD, DC, CC",
    )
    return table(heading, rows)


def table_of_tournament(runs: dict[str, Results]) -> str:
    """All tables of a tournament."""
    (results,) = runs.values()
    return tournament.tables(results)


def table_of_searches(runs: dict[str, Results]) -> str:
    """Who finds tit-for-tat in the contribution game."""
    return tournament.table_of_searches(runs["tit-for-tat_contribution"])


def table_of_polytope(runs: dict[str, Results]) -> str:
    """What learned policies of the IPD and random opponents get in the end.

    Means over agents, and by agent the share of opponents that get less than it does.
    """
    results = runs["polytope_ipd"]
    clouds = results["clouds"][:, :, -1].astype(float)  # (rule, agent, opponent, 2)
    rows = []
    for name, cloud, pairs in zip(
        results["names"], clouds, results["partners"][:, :, -1], strict=True
    ):
        less = (cloud[..., 1] < cloud[..., 0]).mean(axis=1)
        shares = ", ".join(f"{share:.2f}" for share in less)
        low, high = np.percentile(cloud[..., 1], (5, 95))
        others = f"{low:.2f} to {high:.2f}"
        rows.append((name, both(pairs), both(cloud.mean(axis=1)), others, shares))
    heading = (
        "agent beside a learner",
        "agent : that learner",
        "agent : random opponent",
        "90% of the opponents get",
        "share of opponents that get less than the agent, by agent",
    )
    return table(heading, rows)


# --- The pages ------------------------------------------------------------------------

OF_MFOS = [
    "mfos_4096_ipd",
    "mfos-lola_4096_ipd",
    "mfos-self_4096_ipd",
    "mfos_1024_ipd",
    "authors/mfos_ipd",
    "authors/mfos-lola_ipd",
    "authors/mfos-self_ipd",
]
OF_DEVICES = [f"{name}_{device}" for name in COMPARED for device in ("ipd", "gpu_ipd")]


class Table(NamedTuple):
    """A table of the pages."""

    make: Callable  # (results by name) -> Markdown
    runs: list[str]  # the names of the runs that it is from


TABLES = {
    "claims": Table(table_of_claims, RUNS_OF_CLAIMS),
    "front_claims": Table(table_of_front_claims, RUNS_OF_CLAIMS),
    "algorithms": Table(
        table_of_algorithms, [algorithm.run for algorithm in ALGORITHMS.values()]
    ),
    "criteria": Table(list_of_criteria, RUNS_OF_CLAIMS),
    "commands": Table(table_of_commands, []),
    "ends": Table(table_of_ends, ["meva_logistic", "far_logistic"]),
    "ablations": Table(
        table_of_ablations, [*ABLATIONS, *(f"td/{name}" for name in ABLATIONS)]
    ),
    "final_layers": Table(table_of_final_layers, list(NETWORKS)),
    "returns": Table(table_of_returns, list(SHOWN)),
    "equations": Table(table_of_equations, list(EQUATIONS)),
    "presets": Table(table_of_presets, ["meva_ipd", "reliable_ipd"]),
    "networks": Table(table_of_networks, OF_KINDS),
    "samples": Table(table_of_samples, OF_SAMPLES),
    "consistency": Table(table_of_consistency, ["cola_logistic"]),
    "games": Table(
        table_of_games, [name for name in RUNS if name.startswith("games/")]
    ),
    "cola_claims": Table(
        partial(table_of_authors_claims, "COLA's authors", CLAIMS_OF_COLA),
        RUNS_OF_COLA,
    ),
    "cola_numbers": Table(table_of_colas_numbers, RUNS_OF_COLA),
    "cola_criteria": Table(
        partial(list_of_criteria, claims=CLAIMS_OF_COLA), RUNS_OF_COLA
    ),
    "coala_claims": Table(
        partial(table_of_authors_claims, "COALA's authors", CLAIMS_OF_COALA),
        [*RUNS_OF_COALA, *RUNS_OF_LOLA],
    ),
    "coala_numbers": Table(table_of_coalas_pools, RUNS_OF_COALA),
    "coala_criteria": Table(
        partial(list_of_criteria, claims=CLAIMS_OF_COALA),
        [*RUNS_OF_COALA, *RUNS_OF_LOLA],
    ),
    "loqa_claims": Table(
        partial(
            table_of_authors_claims, "LOQA's and Alignment's authors", CLAIMS_OF_LOQA
        ),
        RUNS_OF_LOQA,
    ),
    "loqa_numbers": Table(table_of_loqa, RUNS_OF_LOQA),
    "loqa_criteria": Table(
        partial(list_of_criteria, claims=CLAIMS_OF_LOQA), RUNS_OF_LOQA
    ),
    "tournament_ipd": Table(table_of_tournament, ["tournament_ipd"]),
    "tournament_imp": Table(table_of_tournament, ["tournament_imp"]),
    "tournament_chicken": Table(table_of_tournament, ["tournament_chicken"]),
    "tit-for-tat": Table(table_of_searches, ["tit-for-tat_contribution"]),
    "polytope": Table(table_of_polytope, ["polytope_ipd"]),
    "mfos": Table(table_of_mfos, OF_MFOS),
    "devices": Table(table_of_devices, OF_DEVICES),
}
PAGES = ("README.md", "results/paper/README.md", "results/paper/details.md")


def make_table(name: str, folders: list[Path]) -> str:
    """A table from the results in these folders. Broken, if a run is missing."""
    runs, missing = find(TABLES[name].runs, folders)
    if missing:
        where = " or ".join(str(folder) for folder in folders)
        raise Broken(f"{where} lacks {missing[0]}: {command(missing[0])}")
    return TABLES[name].make(runs)


def fill_page(text: str, folder: Path) -> str:
    """The text of a page with all its tables made anew."""

    def fill(mark):
        name = mark[1]
        made = make_table(name, [folder])
        return f"<!-- table {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=argparse.SUPPRESS,  # so that an error is one line
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--table", metavar="NAME", help=f"one of {', '.join(TABLES)}")
    parser.add_argument("--out", default=".", help="the folder of results/")
    args = parser.parse_args(argv)
    if args.table is not None and args.table not in TABLES:
        parser.error(f"--table takes {', '.join(TABLES)}, not {args.table}")
    if args.table is not None and args.check:
        parser.error("--check takes no --table beside it")
    folder = Path(args.out) / "results"
    try:
        if args.table is not None:
            made = make_table(args.table, [folder, folder / "paper"])
            print(made.replace("±", "+-"))
            return
        pages = {}
        for name in PAGES:
            path = Path(args.out) / name
            pages[path] = fill_page(path.read_text("utf-8"), folder / "paper")
    except (Broken, FileNotFoundError) as error:
        parser.error(str(error))
    old = [path for path, text in pages.items() if path.read_text("utf-8") != text]
    for path in old:
        if args.check:
            print(f"{path} is not current: python report.py")
        else:
            write_file(
                path, partial(Path.write_text, data=pages[path], encoding="utf-8")
            )
            print(f"wrote {path}")
    if args.check and old:
        parser.exit(1)


if __name__ == "__main__":
    run_script(main)
