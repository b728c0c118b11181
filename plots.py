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
"""The paper's figures, and some of our own, from the results of runs. Plays nothing.

    python plots.py                  every figure, from your runs in results/ and, where
                                     you have none, from those in results/paper/. They
                                     are drawn in figures/own/
    python plots.py --paper          from results/paper/ alone, in figures/: the pictures
                                     of README.md and of results/paper/README.md
    python plots.py --figure fig3    one figure; --format pdf for papers

What is missing is named; results/paper/details.md has the command of each run.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from games import GAMES, Game, find_game, run_script, write_file

# --- Names of algorithms, plays and runs ----------------------------------------------

TITLES = {
    "naive": "naive",
    "lola": "LOLA",
    "hola": "HOLA(2)",
    "cola": "COLA",
    "maml": "M-MAML",
    "sos": "SOS",
    "pola": "POLA",
    "mfos": "M-FOS",
    "meva": "MeVa",
}
COLORS = {
    "naive": "tab:gray",
    "lola": "tab:orange",
    "hola": "tab:green",
    "cola": "tab:purple",
    "maml": "tab:red",
    "sos": "tab:brown",
    "pola": "tab:olive",
    "coala": "tab:cyan",
    "mfos": "tab:pink",
    "meva": "tab:blue",
}
SYMBOLS = {  # of what is swept
    "lola": r"$\alpha$",
    "hola": r"$\alpha$",
    "cola": r"$\alpha$",
    "sos": r"$\alpha$",
    "pola": r"$\alpha$",
    "meva": r"$\gamma$",
}
PANELS = {  # what is played: its title, and who the second player is
    "self_play": ("self-play", "other agent"),
    "best_response": ("against a best response", "best response"),
    "versus_naive": ("with a naive learner", "naive learner"),
}
RETURNS = {  # what is played: its name in a table
    "self_play": "self-play",
    "best_response": "best response",
    "exact_best_response": "exact best response",
    "versus_naive": "naive learner",
}
POLICIES = ("policies", "response_policies", "versus_naive_policies")  # as in PANELS

ABLATIONS = {  # runs of MeVa on the IPD: what is changed
    "all_techniques": "all techniques",
    "no_exploration": "no sign flips",
    "no_target_network": "no target network",
    "lambda_0": r"$\lambda$ = 0",
    "lambda_1": r"$\lambda$ = 1",
    "no_quantiles": "no quantiles",
    "fixed_gamma": r"fixed $\gamma$ = .99",
    "form_v": "form V",
}
KINDS = {  # of policies, and the games with them
    "tables": "ipd",
    "skewed tables": "ipd+skewed",
    "networks": "ipd+mlp",
}
RULES = {  # of the figure of kinds of policies: the first part of the run's name
    "naive": "naive",
    "grid": "LOLA",
    "small": "LOLA, lr / 10",
    "hola": "HOLA(2)",
    "pola": "POLA",
    "cola": "COLA",
    "meva": "MeVa",
}
SCRIPT_OF = {  # by the same part
    "grid": "lola",
    "small": "lola",
    "eq2": "lola",
    "eq4": "cola",
    "short": "meva",
    "reliable": "meva",
}
LEARNED = {  # rows of the polytope: who learned beside whom (names of contestants)
    "MeVa beside MeVa": ("meva", "meva"),
    "MeVa beside naive": ("meva", "naive"),
    "LOLA beside LOLA": ("lola-taylor-stop", "lola-taylor-stop"),
    "LOLA beside naive": ("lola-taylor-stop", "naive"),
    "naive beside naive": ("naive", "naive"),
}
LOLA_AHEAD = {  # runs on the IPD by the steps of the other that are imagined
    1: "lola_ipd",
    2: "lola2_ipd",
    3: "lola3_ipd",
    5: "lola5_ipd",
    10: "lola10_ipd",
    20: "lola20_ipd",
}
COALA_AHEAD = {  # by the steps that naive learners take in training
    1: "coala1_ipd",
    2: "coala2_ipd",
    5: "coala5_ipd",
    10: "coala_ipd",
    20: "coala20_ipd",
}
EPISODES = (128, 512, 2048, 4096)  # of which samples consist
SAMPLED = {"lola": 10, "meva": 0.95}  # who learns from samples, at which alpha or gamma


def script_of(name: str) -> str:
    """The algorithm of a run: the first part of the run's name, or what it stands for."""
    first = name.partition("_")[0]
    return SCRIPT_OF.get(first, first)


def sampled_run(script: str, episodes: int) -> str:
    """The name of a run on samples of the IPD, or on exact returns (0 episodes)."""
    if episodes == 0:
        return f"{script}_exact_ipd"
    return f"{script}_ipd+episodes={episodes}+length=50"


# --- The results of runs --------------------------------------------------------------

SHAPES = {  # S settings, N seeds, T steps and the start, n numbers of a policy
    "self_play": ("S", "N", None, 2),
    "best_response": ("S", "N", None, 2),
    "exact_best_response": ("S", "N", None, 2),
    "versus_naive": ("S", "N", None, 2),
    "policies": ("S", "N", None, 2, "n"),
    "response_policies": ("S", "N", None, 2, "n"),
    "versus_naive_policies": ("S", "N", None, 2, "n"),
    "field": ("S", None, 29, 29, 2),  # results/paper/ has those of the first seed
    "values": ("S", None, 29, 29, 2),
    "sweep": ("S",),
    "grid": (29, 29, 2),
    "basin_fraction": ("S", "N"),
    "endpoints": ("S", "N", 29, 29, 2),
    "trajectories": ("S", None, None, "T", 2),
    "consistency": ("S", "N", None),
    "hola_consistency": ("S", "N", 3, None),
    "hola_cosine": ("S", "N", 4, None),
    "episode_returns": ("S", "N", None, None, 2),
    "loss": ("N", None),
    "returns": ("A", "A", None, 2),  # of a tournament of A contestants
    "trained": ("A", "A", None),
    "trained_2": ("A", "A", None),
    "corner": ("A", "A", None),
    "clouds": ("A", None, None, None, 2),  # of A rules that met random opponents
    "partners": ("A", None, None, 2),
    "found": ("A", None, 2),  # of A searches for tit-for-tat
}


class Broken(ValueError):
    """A file that is not the results of a run, or not of one that will do."""


class Results(dict):
    """The arrays of a run by name, its `config` and its `path`.

    To ask for an array that is not there raises Broken.
    """

    def __missing__(self, name):
        raise Broken(f"{self['path']} has no {name}")


def load(path: Path) -> Results:
    """The results in a file, each array in the shape that it should have, or Broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            results = Results(file, path=path)
        config = json.loads(str(results["config"]))
        game = find_game(config["game"])
        sizes = {"n": len(game.labels), "A": np.size(results.get("names"))}
        if "sweep" in results:
            check_numbers(config)
            sizes["S"] = results["sweep"].size
            sizes["N"] = config["num_seeds"]
            sizes["T"] = config["eval_steps"] + 1
        for name, array in results.items():
            check_shape(name, array, sizes)
    except Exception as error:  # noqa: BLE001 (a damaged file can raise nearly all)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Broken(f"{path} is not the results of a run ({reason})") from None
    results["config"] = config
    return results


def check_numbers(config: dict):
    """Raise TypeError if a setting with which we calculate is no number."""
    for name in ("num_seeds", "eval_steps", "lr"):
        if not isinstance(config[name], int | float):
            raise TypeError(f"{name} is {config[name]!r}")


def check_shape(name: str, array: np.ndarray, sizes: dict[str, int]):
    """Raise ValueError if an array of the results has not the shape in `SHAPES`."""
    shape = SHAPES.get(name.removesuffix("_2"))
    if shape is None:
        return
    expected = tuple(sizes.get(size, size) for size in shape)
    fits = len(array.shape) == len(expected) and array.size > 0
    for size, wanted in zip(array.shape, expected):
        fits = fits and wanted in (None, size)
    if not fits or array.dtype.kind not in "fu":
        had = f"{array.dtype} {array.shape}"
        raise ValueError(f"{name} has {had}, not numbers {expected}")


def find(names, folders: list[Path]) -> tuple[dict[str, Results], list[str]]:
    """The results of these runs by name, and the names of those that are nowhere.

    The first folder that has a run counts: in FOLDER/NAME.npz or, of a run whose file
    would have replaced another's, in FOLDER/variants/NAME/results/SCRIPT_GAME.npz.
    """
    runs = {}
    for name in names:
        for folder in folders:
            own = sorted(folder.glob(f"variants/{name}/results/*.npz"))
            paths = [folder / f"{name}.npz", *own]
            there = [path for path in paths if path.exists()]
            if there and name not in runs:
                runs[name] = load(there[0])
                check_game(name, runs[name])
    return runs, [name for name in names if name not in runs]


def check_game(name: str, results: Results):
    """Broken, if a run's name ends in a game that it is not a run on."""
    game = name.rpartition("_")[2]
    had = results["config"]["game"]
    if game.partition("+")[0] in GAMES and game != had:
        raise Broken(f"{results['path']} is a run on {had}, not {game}")


def at(results: Results, setting: float, exactly=True) -> int:
    """The index of the setting nearest to this one in the sweep of a run.

    Broken, if it has to be this one and is not.
    """
    i = int(np.abs(results["sweep"] - setting).argmin())
    if exactly and not np.isclose(results["sweep"][i], setting, atol=1e-6):
        raise Broken(f"{results['path']} has no setting {setting:g} in its sweep")
    return i


def standard_error(samples: np.ndarray) -> float:
    """The standard error of the mean of samples, (number,)."""
    if len(samples) == 1:
        return np.nan
    return samples.std(ddof=1) / len(samples) ** 0.5


def logistic_returns(x: np.ndarray) -> np.ndarray:
    """Returns on the Logistic Game at joint policies (..., 2) -> (..., 2)."""
    returns = jax.vmap(GAMES["logistic"].f)(x.reshape(-1, 2, 1))
    return np.asarray(returns).reshape(x.shape)


# --- Figures: each function draws on an empty figure from the results of its runs -----

WIDTH = 6.75  # inches: two columns of a paper
STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.linewidth": 0.6,
    "legend.fontsize": 6.5,
    "lines.linewidth": 1,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "figure.titlesize": 8.5,
    "pdf.fonttype": 42,  # fonts as text, which publishers ask for
}
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # below text
A, B = -5.0307, 5.0307  # the Logistic Game's stable fixed points are (A, A) and (B, B)
TICKS = (-10, -5, 0, 5, 10)
HALF = 290 / 28  # of the surveyed square, so that grid points are centers of cells
CELLS = {"origin": "lower", "extent": (-HALF, HALF, -HALF, HALF)}
BAR = {"shrink": 0.8, "pad": 0.01}  # a color bar beside its panels
LEVELS = np.arange(-5, 4.1, 0.5)  # of return
IPD = "Iterated Prisoner's Dilemma"

PLANAR = {"logistic": "Logistic Game", "two_hills": "Two hills"}
ROWS = {  # of panels, by game: runs, and which of their settings are shown
    "logistic": {
        "lola_logistic": (0, 1, 5, 10),
        "hola_logistic": (0, 1, 5, 10),
        "cola_logistic": (0, 1, 5, 10),
        "meva_logistic": (0.8, 0.85, 0.9, 0.95),
    },
    "two_hills": {
        "lola_two_hills": (0, 1, 5, 10),
        "hola_two_hills": (0, 1, 5, 10),
        "cola_two_hills": (0, 1, 5, 10),
        "meva_two_hills": (0.8, 0.9, 0.95, 0.99),
        "short_two_hills": (0.8, 0.9, 0.95, 0.99),
    },
}
LANDSCAPES = {"meva_logistic": (0, 0.8, 0.9, 0.95, 0.99)}
FIELDS = {
    "naive_logistic": (1,),
    "lola_logistic": (5,),
    "hola_logistic": (5,),
    "cola_logistic": (5,),
    "meva_logistic": (0.9,),
}


def count(results: Results, what: str = "model") -> str:
    """How many seeds, in words."""
    seeds = results["config"]["num_seeds"]
    return f"{seeds} {what}" + ("s" if seeds > 1 else "")


def who(runs: dict) -> str:
    """How many MeVa and LOLA of the IPD a figure shows."""
    seeds = count(runs["lola_ipd"], "seed")
    return f"{IPD}: {count(runs['meva_ipd'])} of MeVa, {seeds} of LOLA"


def place_settings(axis, settings: np.ndarray, **style) -> np.ndarray:
    """Give the axis a tick for each setting, and return where: 0, 1, 2, ..."""
    ticks = np.arange(len(settings))
    axis.set_xticks(ticks, [f"{setting:g}" for setting in settings], **style)
    return ticks


def labelled(script: str, results: Results, i: int) -> str:
    """An algorithm and its i-th setting, and its step size if that is not everybody's."""
    words = TITLES[script]
    if script in SYMBOLS:
        words += f", {SYMBOLS[script]} = {results['sweep'][i]:g}"
    lr = results["config"]["lr"]
    usual = find_game(results["config"]["game"]).lr
    if script == "pola":
        usual *= 10  # its default
    if lr != usual:
        words += f", lr = {lr:g}"
    return words


def plane(figure: Figure, rows: int, columns: int):
    """Panels on the plane of joint policies, all with the same range, (rows, columns)."""
    figure.set_size_inches(WIDTH, WIDTH / columns * rows + 0.5)
    figure.set_layout_engine("compressed")  # no gaps between squares
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set(aspect="equal", xlim=(-10, 10), ylim=(-10, 10))
        axis.set(xticks=TICKS, yticks=TICKS, xlabel="$x_1$", ylabel="$x_2$")
        axis.label_outer()
    return axes


def panels_on_plane(figure: Figure, runs: dict, rows: dict, columns: int) -> list:
    """A panel with a title for each setting that `rows` has of its runs.

    Returns (axis, algorithm, results, index of the setting) of each.
    """
    shown = []
    for name, settings in rows.items():
        shown += [(name, setting) for setting in settings]
    axes = plane(figure, math.ceil(len(shown) / columns), columns).flatten()
    panels = []
    for axis, (name, setting) in zip(axes, shown):
        i = at(runs[name], setting, exactly=False)
        script = script_of(name)
        axis.set_title(labelled(script, runs[name], i))
        panels.append((axis, script, runs[name], i))
    for axis in axes[len(shown) :]:
        axis.remove()
    return panels


def draw_fig1(figure: Figure, runs: dict):
    """Contours of both players' returns in the Logistic Game, with A and B (Fig. 1)."""
    line = np.linspace(-10, 10, 201)
    x = np.stack(np.meshgrid(line, line), axis=-1)  # (x_2, x_1, 2)
    returns = logistic_returns(x.astype(np.float32))
    axes = plane(figure, 1, 2)[0]
    for player, axis in enumerate(axes):
        own = returns[..., player]
        image = axis.contourf(line, line, own, levels=LEVELS, extend="both")
        axis.contour(
            line, line, own, LEVELS, colors="k", linewidths=0.2, linestyles="-"
        )
        for where, name in ((A, "A"), (B, "B")):
            circle = {"boxstyle": "circle", "facecolor": "white", "linewidth": 0.4}
            axis.text(where, where, name, ha="center", va="center", bbox=circle)
        axis.set_title(f"player {player + 1}'s return, $f_{player + 1}(x)$")
    figure.colorbar(image, ax=axes, label="return", ticks=range(-5, 5), **BAR)
    figure.suptitle("Logistic Game: two stable solutions, A and B")


def draw_paths(figure: Figure, runs: dict, game: str):
    """Where the first seed's policies go from random starting points (Fig. 2a)."""
    for axis, script, results, i in panels_on_plane(figure, runs, ROWS[game], 4):
        for path in results["trajectories"][i, 0]:  # (time, 2)
            axis.plot(*path.T, color=COLORS[script], linewidth=0.5)
            axis.plot(*path[-1], "o", color="black", markersize=1.5)
    models = count(runs[f"meva_{game}"])
    figure.suptitle(
        f"{PLANAR[game]}: paths of both players' policies, each with a dot at its end\n"
        f"(of COLA and MeVa: of the first of {models})"
    )


def draw_basins_of(figure: Figure, runs: dict, game: str):
    """Which starting points end at x_1, x_2 > 0 (Fig. 2b); gray: with some models."""
    for axis, _, results, i in panels_on_plane(figure, runs, ROWS[game], 4):
        reached = (results["endpoints"][i] > 0).all(axis=-1)  # (seed, 29, 29)
        share = reached.mean(axis=0)
        axis.imshow(share, cmap="gray", vmin=0, vmax=1, **CELLS)
        style = {"ha": "right", "va": "top", "bbox": WHITE}
        axis.text(9, 9, f"{share.mean():.1%}", **style)
    models = count(runs[f"meva_{game}"])
    figure.suptitle(
        f"{PLANAR[game]}: share of starting points that lead to the better solution "
        f"(white)\ngray: with some of {models} of COLA and MeVa"
    )


BINS = np.linspace(-3, 0, 61)  # of return


def draw_fig3(figure: Figure, runs: dict):
    """Returns on the IPD (Fig. 3): means and standard errors over pairs of policies.

    Thin lines are the agent's returns by seed. On the right is what a best response
    leaves to the agents of one setting: means hide that some are exploited.
    """
    figure.set_size_inches(WIDTH, 4.6)
    axes = figure.subplots(2, 4, sharey=True, width_ratios=(3, 3, 3, 2))
    for row, script, setting in zip(axes, ("meva", "lola"), (0.99, 10), strict=True):
        results = runs[f"{script}_ipd"]
        for axis, play in zip(row, PANELS):
            draw_returns(axis, script, results, play)
        row[0].set_ylabel(f"{TITLES[script]}: return per round")
        i = at(results, setting, exactly=False)
        agents = results["best_response"][i, ..., 0]  # (seed, pair)
        for returns in agents:
            draw_histogram(row[3], returns, COLORS[script], linewidth=0.3, alpha=0.5)
        draw_histogram(row[3], agents.ravel(), COLORS[script], linewidth=1.0)
        row[3].set(
            title=f"best response at\n{SYMBOLS[script]} = {results['sweep'][i]:g}",
            xlabel="share of pairs",
            xscale="log",
        )
    figure.suptitle(f"{who(runs)} (thin: each); means and standard errors")


def draw_returns(axis, script: str, results: Results, play: str):
    """The agent's and the other's returns by setting."""
    title, other = PANELS[play]
    ticks = place_settings(axis, results["sweep"], rotation=90)
    returns = results[play]  # (S, seed, pair, 2)
    by_seed = returns.mean(axis=2)[..., 0]
    axis.plot(ticks, by_seed, color=COLORS[script], linewidth=0.4, alpha=0.5)
    pairs = returns.reshape(len(ticks), -1, 2)
    lines = ((TITLES[script], COLORS[script], "-"), (other, "black", "--"))
    for player, (label, color, style) in enumerate(lines):
        samples = pairs[..., player]
        errors = [standard_error(of_setting) for of_setting in samples]
        line = {"color": color, "linestyle": style, "capsize": 1.5, "label": label}
        axis.errorbar(ticks, samples.mean(axis=1), errors, **line)
    axis.set(title=title, xlabel=SYMBOLS[script], ylim=(-3.05, -0.4))
    axis.legend(loc="lower right")


def draw_histogram(axis, returns: np.ndarray, color: str, **style):
    """Shares of the pairs by return, with returns upwards."""
    weights = np.full(returns.size, 1 / returns.size)
    axis.hist(
        returns,
        BINS,
        weights=weights,
        orientation="horizontal",
        histtype="step",
        color=color,
        **style,
    )


def best(results: Results) -> int:
    """The index of the setting with the highest mean return in self-play."""
    means = results["self_play"].mean(axis=(1, 2, 3))
    return int(np.where(np.isfinite(means), means, -np.inf).argmax())


def draw_networks(figure: Figure, runs: dict):
    """The agent's returns on the IPD by kind of policy, each rule at its best setting.

    Points are models, or seeds of a rule without a model; their mean is a bar, and a
    gray line goes from the 5th to the 95th percentile of the pairs of policies.
    """
    figure.set_size_inches(WIDTH, 6.6)
    plays = ("self_play", "exact_best_response", "versus_naive")
    panels = figure.subplots(3, 3, sharex="col", sharey=True)
    for column, (kind, game) in enumerate(KINDS.items()):
        labels = []
        for rule, title in RULES.items():
            results = runs.get(f"{rule}_{game}")
            if results is None:
                continue
            script = script_of(rule)
            i = best(results)
            if script in SYMBOLS:
                title += f", {SYMBOLS[script]} = {results['sweep'][i]:g}"
            place = len(labels)
            labels.append(title)
            for axis, play in zip(panels[:, column], plays, strict=True):
                agents = results[play][i][..., 0]  # (seed, pair)
                draw_agents(axis, place, agents, COLORS[script])
        for axis, play in zip(panels[:, column], plays, strict=True):
            axis.set(title=f"{kind}: {RETURNS[play]}", ylim=(-3.05, -0.4))
        panels[2, column].set_xticks(range(len(labels)), labels, rotation=90)
    panels[1, 0].set_ylabel("agent's return per round")
    figure.suptitle(
        f"{IPD} by kind of policy, each rule at its best setting in self-play\n"
        f"points: seeds, or {count(runs['meva_ipd'])} of MeVa; bars: their means; "
        "gray: 5% to 95% of the pairs of policies"
    )


def draw_agents(axis, place: float, agents: np.ndarray, color: str):
    """Means of models as points, their mean, and the 5th to the 95th percentile."""
    low, high = np.percentile(agents, (5, 95))
    axis.vlines(place, low, high, color="lightgray", linewidth=4)
    where = place + np.linspace(-0.25, 0.25, len(agents) + 2)[1:-1]
    axis.plot(where, agents.mean(axis=1), ".", color=color, markersize=4)
    axis.hlines(agents.mean(), place - 0.35, place + 0.35, color="black")


def draw_basins(figure: Figure, runs: dict):
    """The share that comes to B, against alpha (left) or gamma: means, and each model."""
    figure.set_size_inches(WIDTH, 3.2)
    axis = figure.subplots()
    looking = ("lola", "hola", "cola")
    sweeps = [runs[f"{script}_logistic"]["sweep"] for script in looking]
    alphas = np.unique(np.concatenate(sweeps))
    gammas = runs["meva_logistic"]["sweep"]
    ticks = place_settings(axis, [*alphas, *gammas])
    for script in looking:
        results = runs[f"{script}_logistic"]
        where = np.searchsorted(alphas, results["sweep"])
        draw_shares(axis, where, results, TITLES[script], "o-", COLORS[script])
    where = ticks[len(alphas) :]
    draw_shares(axis, where, runs["meva_logistic"], "MeVa", "o-", COLORS["meva"])
    naive = runs["naive_logistic"]["basin_fraction"].mean()
    axis.axhline(naive, color=COLORS["naive"], linestyle="--", label="naive", zorder=0)
    axis.axvline(len(alphas) - 0.5, color="black", linewidth=0.6)
    axis.set(
        xlabel=r"$\alpha$ (LOLA, HOLA, COLA)  |  $\gamma$ (MeVa)",
        ylabel="share that ends with $x_1, x_2 > 0$",
    )
    axis.legend(loc="upper left")
    figure.suptitle("Logistic Game: share of starting points that lead to B")


def draw_shares(axis, ticks, results: Results, label: str, style: str, color: str):
    """The share of starting points that lead to B, by setting: models and mean."""
    shares = results["basin_fraction"]  # (S, seed)
    axis.plot(ticks, shares, ".", markersize=4, color=color, alpha=0.6)
    label = f"{label}, {count(results, 'seed')}"
    mean = shares.mean(axis=1)
    axis.plot(ticks, mean, style, markersize=3, color=color, label=label)


TIT_FOR_TAT = 19
STRATEGIES = {  # as binary numbers, C being 1
    0: "all D",
    17: "grim",
    19: "tit-for-tat",
    25: "win-stay",
    31: "all C",
}


def strategies(policies: np.ndarray) -> np.ndarray:
    """The nearest deterministic strategy of each policy, as a number.

    Its five bits are init, DD, CD, DC, CC.
    """
    return (policies > 0) @ np.array([16, 8, 4, 2, 1])


def draw_policies(figure: Figure, runs: dict):
    """How often which of the 32 deterministic strategies meet, after rounding.

    Tit-for-tat with itself is marked.
    """
    figure.set_size_inches(WIDTH, 5.2)
    figure.set_layout_engine("compressed")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, script, setting in zip(axes, ("meva", "lola"), (0.99, 10), strict=True):
        results = runs[f"{script}_ipd"]
        i = at(results, setting, exactly=False)
        for axis, name, play in zip(row, POLICIES, PANELS, strict=True):
            title, other = PANELS[play]
            agent, opponent = strategies(results[name][i]).reshape(-1, 2).T
            counts, _, _ = np.histogram2d(opponent, agent, np.arange(33))
            shares = np.where(counts > 0, counts / counts.sum(), np.nan)
            image = axis.imshow(
                shares, origin="lower", cmap="plasma_r", norm="log", vmin=3e-4, vmax=1
            )
            axis.plot(TIT_FOR_TAT, TIT_FOR_TAT, "s", color="red", fillstyle="none")
            label = labelled(script, results, i)
            axis.set(title=f"{label}\n{title}", ylabel=other)
            axis.grid(linewidth=0.2)
    axes[0, 0].set_yticks(list(STRATEGIES), STRATEGIES.values())
    for axis in axes[-1]:
        axis.set_xticks(list(STRATEGIES), STRATEGIES.values(), rotation=90)
        axis.set_xlabel("agent")
    figure.colorbar(image, ax=axes, label="share of the pairs of policies", **BAR)
    words = "nearest deterministic strategies (red: tit-for-tat meets itself)"
    figure.suptitle(f"{who(runs)}\n{words}")


def draw_steps(axis, results: Results, i: int, color: str):
    """The directions of the first seed's steps at every second point of the grid."""
    steps = results["field"][i, 0, ::2, ::2]  # (15, 15, 2)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    directions = steps / np.where(length > 0, length, 1)
    grid = results["grid"][::2, ::2]
    style = {"pivot": "mid", "scale": 20, "width": 0.006, "headwidth": 4}
    axis.quiver(*grid.T, *directions.T, color=color, **style)


def draw_landscape(figure: Figure, runs: dict):
    """MeVa's normalised value of player 1 on the Logistic Game, and its steps."""
    panels = panels_on_plane(figure, runs, LANDSCAPES, 3)
    for axis, _, results, i in panels:
        x = results["grid"].T
        values = results["values"][i, 0, ..., 0]
        image = axis.contourf(*x, values.T, levels=LEVELS, extend="both")
        draw_steps(axis, results, i, "white")
    label = r"player 1's meta-value $\hat V_1$"
    figure.colorbar(image, ax=figure.axes, label=label, ticks=range(-5, 5), **BAR)
    models = count(runs["meva_logistic"])
    figure.suptitle(f"Logistic Game: MeVa's meta-value and steps, first of {models}")


def draw_fields(figure: Figure, runs: dict):
    """The steps of each algorithm on the Logistic Game, and how long they are."""
    style = {"norm": "log", "vmin": 1e-3, "vmax": 10, "cmap": "Blues"}
    for axis, _, results, i in panels_on_plane(figure, runs, FIELDS, 3):
        length = np.linalg.norm(results["field"][i, 0], axis=-1)
        image = axis.imshow(np.maximum(length, 1e-12), **style, **CELLS)
        draw_steps(axis, results, i, "black")
    figure.colorbar(image, ax=figure.axes, label="length of a step", **BAR)
    models = count(runs["meva_logistic"])
    figure.suptitle(
        f"Logistic Game: steps of each algorithm; COLA and MeVa: first of {models}"
    )


def draw_ablations(figure: Figure, runs: dict):
    """The agent's returns on the IPD with one technique of Section 4 changed.

    Points are models, with their mean and standard error.
    """
    figure.set_size_inches(WIDTH, 5.4)
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2.2))
    axes = upper.subplots(1, 3, sharey=True)
    rows = np.arange(len(ABLATIONS))[::-1]
    for axis, (play, (title, _)) in zip(axes, PANELS.items(), strict=True):
        for row, name in zip(rows, ABLATIONS):
            results = runs[name]
            i = at(results, 0.99, exactly=False)
            agents = results[play][i, ..., 0].mean(axis=1)  # (seed,)
            where = np.full(len(agents), row)
            axis.plot(agents, where, ".", color=COLORS["meva"], alpha=0.6)
            error = standard_error(agents)
            style = {"fmt": "|", "color": "black", "capsize": 2}
            axis.errorbar(agents.mean(), row, xerr=error, **style)
            if name == "all_techniques":
                axis.axvline(agents.mean(), color="gray", linewidth=0.5)
        axis.set(title=title, xlabel="agent's return per round", xlim=(-2.05, -0.75))
    axes[0].set_yticks(rows, ABLATIONS.values())
    config = runs["all_techniques"]["config"]
    upper.suptitle(
        rf"{IPD}, MeVa at $\gamma$ = .99: {config['num_seeds']} models each, "
        f"{config['outer_steps']} outer loops"
    )
    draw_sides(lower.subplots(), runs)
    lower.suptitle("Logistic Game: through which sides of Eq. 7 the error is minimised")


def draw_sides(axis, runs: dict):
    """The share that comes to B, with the target held constant or not."""
    meva = runs["meva_logistic"]
    ticks = place_settings(axis, meva["sweep"])
    draw_shares(axis, ticks, meva, "both sides", "-", COLORS["meva"])
    semi = runs["semi_gradient_logistic"]
    draw_shares(axis, ticks, semi, "semi-gradient", "--", "black")
    axis.set(xlabel=r"$\gamma$", ylabel="share with $x_1, x_2 > 0$", ylim=(0.3, 1.03))
    axis.legend(loc="upper left")


def draw_samples(figure: Figure, runs: dict):
    """The agent's returns on the IPD by the episodes of an estimate.

    LOLA follows estimates; MeVa is trained on them, and evaluated with exact gradients.
    Points are seeds, and a line goes by their mean.
    """
    figure.set_size_inches(WIDTH, 4.6)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (script, setting) in zip(panels, SAMPLED.items(), strict=True):
        exact = runs[sampled_run(script, 0)]
        for axis, play in zip(axes, ("self_play", "best_response"), strict=True):
            means = []
            for episodes in EPISODES:
                results = runs[sampled_run(script, episodes)]
                agents = results[play][at(results, setting)][..., 0].mean(axis=1)
                where = [episodes] * len(agents)
                axis.plot(where, agents, "o", color=COLORS[script], markersize=2.5)
                means.append(agents.mean())
            axis.plot(EPISODES, means, "-", color=COLORS[script], label="estimates")
            of_exact = exact[play][at(exact, setting)][..., 0].mean()
            axis.axhline(of_exact, color="gray", linestyle=":", label="exact")
            seeds = count(exact, "model" if script == "meva" else "seed")
            label = f"{TITLES[script]}, {SYMBOLS[script]} = {setting:g}, {seeds}"
            axis.set(title=f"{label}: {PANELS[play][0]}", xscale="log")
            axis.set_xticks(EPISODES, EPISODES)
            axis.minorticks_off()
        axes[0].set_ylabel("agent's return per round")
    panels[0, 0].legend(loc="lower left")
    for axis in panels[1]:
        axis.set_xlabel("episodes of 50 rounds for each estimate")
    figure.suptitle(f"{IPD}: learning from samples (points: seeds or models)")


def draw_horizons(figure: Figure, runs: dict):
    """The agent's returns on the IPD by how many steps of the other it looks ahead.

    MeVa looks 1 / (1 - gamma) steps ahead. Points are means over seeds.
    """
    figure.set_size_inches(WIDTH, 2.6)
    axes = figure.subplots(1, 3, sharey=True)
    meva = runs["meva_ipd"]
    for axis, (play, (title, _)) in zip(axes, PANELS.items(), strict=True):
        for alpha, style in ((1, "s:"), (5, "o-")):
            agents = [
                runs[name][play][at(runs[name], alpha), ..., 0].mean(axis=1)
                for name in LOLA_AHEAD.values()
            ]
            label = rf"LOLA, $\alpha$ = {alpha}"
            draw_horizon(axis, list(LOLA_AHEAD), agents, label, style, "lola")
        agents = [
            runs[name][play][0, ..., 0].mean(axis=1) for name in COALA_AHEAD.values()
        ]
        draw_horizon(axis, list(COALA_AHEAD), agents, "COALA", "^-", "coala")
        ahead = 1 / (1 - meva["sweep"].astype(float))
        agents = meva[play][..., 0].mean(axis=2)
        draw_horizon(axis, ahead, agents, "MeVa", "D-", "meva")
        axis.set(title=title, xlabel="steps ahead", xscale="log")
    axes[0].set_ylabel("agent's return per round")
    axes[1].legend(loc="lower right")
    figure.suptitle(f"{IPD}: how far ahead is far enough?")


def draw_horizon(axis, ahead, agents, label: str, style: str, script: str):
    """Means and standard errors of agents' returns, (seed,) for each horizon."""
    means = [of_seeds.mean() for of_seeds in agents]
    errors = [standard_error(of_seeds) for of_seeds in agents]
    look = {"color": COLORS[script], "markersize": 3, "capsize": 1.5}
    axis.errorbar(ahead, means, yerr=errors, fmt=style, label=label, **look)


def draw_polytope(figure: Figure, runs: dict):
    """What agents get beside random opponents, and these, while the agents learn.

    In color is the cloud of the first agent, in gray those of all others.
    """
    results = runs["polytope_ipd"]
    clouds = results["clouds"]  # (rule, agent, time, opponent, 2)
    rows, agents, columns, opponents = clouds.shape[:4]
    figure.set_size_inches(WIDTH, WIDTH / columns * rows + 0.7)
    figure.set_layout_engine("compressed")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True)
    dots = {"linestyle": "none", "marker": ".", "markeredgewidth": 0}
    for row, name in enumerate(results["names"]):
        color = COLORS[LEARNED[name][0].partition("-")[0]]
        for time, axis in enumerate(panels[row]):
            draw_payoffs(axis, find_game(results["config"]["game"]))
            others = clouds[row, 1:, time].reshape(-1, 2)
            axis.plot(*others.T, color="lightgray", markersize=1, **dots)
            axis.plot(*clouds[row, 0, time].T, color=color, markersize=1.5, **dots)
            axis.plot(*results["partners"][row, 0, time], "kx", markersize=4)
        panels[row, 0].set_ylabel(f"{name}\nopponent's return")
    for axis, time in zip(panels[0], results["times"], strict=True):
        axis.set_title(f"step {time}")
    for axis in panels[-1]:
        axis.set_xlabel("agent's return")
    figure.suptitle(
        f"{IPD}: an agent after so many steps of learning meets "
        f"{opponents} random opponents\n"
        f"color: the first agent; gray: {agents - 1} more; "
        "cross: the first agent and the learner beside it\n"
        "outline: all pairs of returns that are possible; dotted: both get the same"
    )


def draw_payoffs(axis, game: Game):
    """The returns that two players can get in a game like the IPD, with its corners."""
    dd, cd, dc, cc = np.transpose(game.rules.payoffs)
    axis.plot(*np.transpose([dd, cd, cc, dc, dd]), color="black", linewidth=0.6)
    axis.plot(*np.transpose([dd, cc]), ":", color="black", linewidth=0.6)
    style = {"textcoords": "offset points", "fontsize": 5}
    axis.annotate("DD", dd, (-2, -1), ha="right", va="top", **style)
    axis.annotate("CD", cd, (0, 2), ha="center", va="bottom", **style)
    axis.annotate("DC", dc, (0, -2), ha="center", va="top", **style)
    axis.annotate("CC", cc, (2, 1), ha="left", va="bottom", **style)
    axis.set(aspect="equal", xlim=(-3.6, 0.6), ylim=(-3.6, 0.6))
    axis.set(xticks=range(-3, 1), yticks=range(-3, 1))


# --- Command line ---------------------------------------------------------------------

OF_KINDS = [f"{rule}_{game}" for game in KINDS.values() for rule in RULES]
OF_KINDS.remove("pola_ipd+mlp")  # was not run: networks climb for long
OF_SAMPLES = [sampled_run(name, n) for name in SAMPLED for n in (0, *EPISODES)]
FIGURES = {  # how each is drawn, and from which runs
    "fig1": (draw_fig1, []),
    "fig2a": (partial(draw_paths, game="logistic"), list(ROWS["logistic"])),
    "fig2b": (partial(draw_basins_of, game="logistic"), list(ROWS["logistic"])),
    "fig3": (draw_fig3, ["meva_ipd", "lola_ipd"]),
    "networks": (draw_networks, OF_KINDS),
    "samples": (draw_samples, OF_SAMPLES),
    "hills": (partial(draw_basins_of, game="two_hills"), list(ROWS["two_hills"])),
    "hill_paths": (partial(draw_paths, game="two_hills"), list(ROWS["two_hills"])),
    "basins": (draw_basins, ["naive_logistic", *ROWS["logistic"]]),
    "policies": (draw_policies, ["meva_ipd", "lola_ipd"]),
    "landscape": (draw_landscape, list(LANDSCAPES)),
    "fields": (draw_fields, list(FIELDS)),
    "polytope": (draw_polytope, ["polytope_ipd"]),
    "horizons": (
        draw_horizons,
        ["meva_ipd", *LOLA_AHEAD.values(), *COALA_AHEAD.values()],
    ),
    "ablations": (
        draw_ablations,
        [*ABLATIONS, "meva_logistic", "semi_gradient_logistic"],
    ),
}


def save_figure(draw, path: Path):
    """Draw a figure by `draw(figure)`, and write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure)
        margins = {"bbox_inches": "tight", "pad_inches": "layout"}
        settings = {"format": path.suffix[1:], "dpi": 160, **margins}
        write_file(path, partial(figure.savefig, **settings))


def draw_figure(name: str, folders: list[Path], path: Path) -> list[str]:
    """Draw a figure if its runs are in these folders. Returns which are missing."""
    draw, names = FIGURES[name]
    runs, missing = find(names, folders)
    if missing:
        return missing
    save_figure(partial(draw, runs=runs), path)
    print(f"wrote {path}")
    for results in runs.values():
        config = results["config"]
        words = f"{results['path']}, {config['game']}, {count(results, 'seed')}"
        if "outer_steps" in config:
            words += f", {config['outer_steps']} outer loops"
        print(f"    from {words}")
    return []


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=argparse.SUPPRESS,  # so that an error is one line
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ", ".join(FIGURES)
    parser.add_argument(
        "--figure", choices=FIGURES, metavar="NAME", help=f"one of {names}"
    )
    parser.add_argument("--paper", action="store_true", help="results/paper/ alone")
    parser.add_argument("--format", default="png", choices=("png", "pdf"))
    parser.add_argument("--out", default=".", help="folder of results/ and figures/")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if not out.is_dir():
        parser.error(f"--out takes a folder that is there, not {out}")
    folders = [out / "results", out / "results/paper"]
    figures = out / "figures/own"
    if args.paper:
        folders = [out / "results/paper"]
        figures = out / "figures"

    waiting = {}  # for each run that is missing, the figures that need it
    for name in FIGURES if args.figure is None else [args.figure]:
        path = figures / f"{name}.{args.format}"
        try:
            missing = draw_figure(name, folders, path)
        except Broken as error:
            parser.error(str(error))
        for run in missing:
            waiting.setdefault(run, []).append(name)
    for run, names in waiting.items():
        print(f"missing for {', '.join(names)}: {run}")
    if waiting:
        print("results/paper/details.md has the command of each run")
    if waiting and args.figure is not None:
        parser.exit(1)


if __name__ == "__main__":
    run_script(main)
