"""The paper's figures and tables, from the results of runs: its claims side by side with our numbers. Trains nothing.

    python plots.py                    every figure that the runs allow, into figures/, and what makes the others
    python plots.py --figure fig3      one of them; --format pdf for papers
    python plots.py --table            the paper's claims, mostly of Section 5, beside our numbers
    python plots.py --table games --out quick    every algorithm on every game, from runs with --out quick
    python plots.py --table tournament --game ipd    every algorithm beside every other: plays, prints and draws it
    python plots.py --table tit-for-tat    how often POLA and LOLA find it in the contribution game: plays and prints it
    python plots.py --report           all tables anew in results/paper/README.md, from the runs there alone

Runs are looked for in results/ and then in results/paper/, where the repository keeps its own; figures and tables say
which they are from. Tables take only runs of the very settings that they name. What is missing is named, with the
command that makes it.
"""

import argparse
import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from games import (
    GAMES,
    Game,
    Rules,
    exact_best_response,
    find_game,
    follow,
    iterated_returns,
    simultaneous_gradient,
    state_distribution,
    unflatten,
    write_file,
)

TITLES = {
    "naive": "naive",
    "lola": "LOLA",
    "hola": "HOLA(2)",
    "cola": "COLA",
    "maml": "M-MAML",
    "sos": "SOS",
}
TITLES |= {"pola": "POLA", "mfos": "M-FOS", "meva": "MeVa"}
SCRIPTS = {name: importlib.import_module(name) for name in TITLES}
COLORS = {
    "naive": "tab:gray",
    "lola": "tab:orange",
    "hola": "tab:green",
    "cola": "tab:purple",
    "maml": "tab:red",
}
COLORS |= {
    "sos": "tab:brown",
    "pola": "tab:olive",
    "mfos": "tab:pink",
    "meva": "tab:blue",
}
SYMBOLS = dict.fromkeys(
    ("lola", "hola", "cola", "sos", "pola"), r"$\alpha$"
)  # of what is swept
SYMBOLS |= {"meva": r"$\gamma$"}
PLAYS = {  # what is played, and who the second player is
    "self_play": ("self-play", "other agent"),
    "best_response": ("against a best response", "best response"),
    "versus_naive": ("with a naive learner", "naive learner"),
}
RETURNS = {  # all that is played, and what tables say
    "self_play": "self-play",
    "best_response": "best response",
    "exact_best_response": "exact best response",
    "versus_naive": "naive learner",
}
BESIDE = [f"agent : {other}" for other in list(RETURNS.values())[1:]]
POLICIES = ("policies", "response_policies", "versus_naive_policies")
A, B = -5.0307, 5.0307  # the Logistic Game's stable fixed points, (A, A) and (B, B)
LOGISTIC, IPD = GAMES["logistic"], GAMES["ipd"]


# The runs


class Run(NamedTuple):
    """What a figure or a table needs: a script on a game with these settings, or a small run with whatever it has."""

    script: str
    game: str
    settings: dict = {}
    quick: bool = False


EIGHT = dict(num_seeds=8)
GAMMAS = EIGHT | dict(
    eval_gammas=(0, 0.5, 0.8, 0.85, 0.87, 0.89, 0.9, 0.91, 0.92, 0.95, 0.99)
)
HILLS = EIGHT | dict(eval_gammas=(0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995))
SETTINGS = {
    "logistic": dict(naive={}, lola={}, hola=dict(order=2), cola=EIGHT, meva=GAMMAS),
    "ipd": dict(
        naive=EIGHT, lola=EIGHT, hola=dict(order=2), cola=dict(num_seeds=2), meva=EIGHT
    ),
    "imp": dict(meva={}),
    "two_hills": dict(naive={}, lola={}, hola=dict(order=2), cola=EIGHT, meva=HILLS),
}
RUNS = {
    f"{script}_{game}": Run(script, game, those[script])
    for game, those in SETTINGS.items()
    for script in those
}
RUNS["hola3_logistic"] = Run("hola", "logistic", dict(order=3))

VARIANTS = {  # of MeVa on the Logistic Game: the name of the run, what the table says, and what is changed
    "meva_logistic": ("no normalisation, tanh last", {}),
    "gelu_logistic": ("no normalisation, GELU last", dict(last_activation="gelu")),
    "norm_logistic": ("layer normalisation, tanh last", dict(layer_norm=True)),
    "text_logistic": (
        "layer normalisation, GELU last (App. D)",
        dict(layer_norm=True, last_activation="gelu"),
    ),
    "semi_gradient_logistic": (
        "no normalisation, tanh last, semi-gradient",
        dict(semi_gradient=True),
    ),
}
RUNS |= {
    name: Run("meva", "logistic", GAMMAS | change)
    for name, (_, change) in VARIANTS.items()
}
RUNS["far_logistic"] = Run("meva", "logistic", GAMMAS | dict(eval_steps=2000))

SHORT = dict(
    outer_steps=500, num_seeds=6, eval_gammas=(0.9, 0.95, 0.99)
)  # 500 of the paper's 2000 outer loops
ABLATIONS = {  # the name of the run, what figure and table say, and what is changed
    "all_techniques": ("all techniques", {}),
    "no_exploration": ("no sign flips", dict(flip_prob=0)),
    "no_target_network": ("no target network", dict(target_inertia=0)),
    "lambda_0": (r"$\lambda$ = 0", dict(bootstrap=0)),
    "lambda_1": (r"$\lambda$ = 1", dict(bootstrap=1)),
    "no_quantiles": ("no quantiles", dict(quantiles=1)),
    "fixed_gamma": (r"fixed $\gamma$ = .99", dict(fixed_gamma=0.99)),
    "form_v": ("form V", dict(form="V")),
}
RUNS |= {
    name: Run("meva", "ipd", SHORT | change) for name, (_, change) in ABLATIONS.items()
}
RUNS["short_two_hills"] = Run("meva", "two_hills", HILLS | dict(lr=1))  # short steps

# The rules of the figure of policies of each kind, and what it says.
RULES = {
    "naive": "naive",
    "grid": "LOLA",
    "small": "LOLA, lr / 10",
    "hola": "HOLA(2)",
    "cola": "COLA",
    "meva": "MeVa",
}
KINDS = {
    "tables": "ipd",
    "skewed tables": "ipd+skewed",
    "networks": "ipd+mlp",
}  # of policies, and the games with them
OF_KINDS = {
    (kind, name): f"{name}_{game}" for kind, game in KINDS.items() for name in RULES
}
GRID = dict(num_seeds=2, alphas=(0, 0.1, 0.3, 1, 2, 3, 5, 10, 20, 30, 50, 70, 100))
for kind, game in KINDS.items():
    grids = dict(
        grid=GRID,
        small=GRID | dict(lr=find_game(game).lr / 10, eval_steps=5000, eval_pairs=64),
    )
    own = dict(naive={}, hola=dict(order=2), cola=dict(num_seeds=4), meva=EIGHT) | grids
    for name, settings in own.items():
        run = Run("lola" if name in grids else name, game, settings)
        RUNS.setdefault(OF_KINDS[kind, name], run)  # those above stay what they are

SAMPLED = dict(
    lola=10, meva=0.95
)  # who learns from samples on the IPD, and at which alpha or gamma
EPISODES = (128, 512, 2048, 4096)
SAMPLES = {}  # the name of the run by script and episodes for each estimate (0: exact returns)
for script, episodes in itertools.product(SAMPLED, (0, *EPISODES)):
    game = f"ipd+episodes={episodes}+length=50" if episodes else "ipd"
    settings = (
        dict(alphas=(10,)) if script == "lola" else dict(batch_size=4, num_seeds=3)
    )
    SAMPLES[script, episodes] = (
        f"{script}_{game}" if episodes else f"{script}_exact_{game}"
    )
    RUNS[SAMPLES[script, episodes]] = Run(script, game, settings, quick=True)

TOURNAMENTS = {
    "ipd": 25.0,
    "imp": 25.0,
    "chicken": 1.0,
}  # those of the authors, and their step sizes
TRAINED = {
    "cola": {},
    "maml": {},
    "meva": {},
    "meva-naive": dict(opponent="naive"),
    "meva-lola": dict(opponent="lola"),
}
TRAINED |= {
    "mfos": {},
    "mfos-lola": dict(opponent="lola"),
    "mfos-self": dict(opponent="self"),
}
PROTOCOLS = {"paper": "paper's", "authors": "authors'"}
for (name, change), (game, step) in itertools.product(
    TRAINED.items(), TOURNAMENTS.items()
):
    script = name.split("-")[0]
    small, count = (
        script == "mfos",
        2 if script == "mfos" else 8 if game == "ipd" else 4,
    )
    ours = (
        change
        | dict(num_seeds=count)
        | (dict(lr=GAMES[game].lr, alpha=GAMES[game].lr) if small else {})
    )
    theirs = {
        "cola": dict(alpha_max=step, eval_alphas=(step,)),
        "maml": dict(num_seeds=8, model_lr=0.1),
        "mfos": dict(alpha=step),
        "meva": dict(
            alpha=step, variant="taylor-stop", hidden=128, blocks=0, quantiles=64, model_lr=1e-3, outer_steps=1001,
            normalized_step=True, eval_gammas=(0.95,),
        ),
    }[script]  # fmt: skip
    theirs = dict(lr=step, eval_steps=300, num_seeds=count) | theirs | change
    RUNS.setdefault(f"{name}_{game}", Run(script, game, ours, small))
    RUNS[f"authors/{name}_{game}"] = Run(script, game, theirs, small)
    if script == "meva" and change and not GAMES[game].symmetric:
        # One model beside an opponent is for one seat.
        RUNS.setdefault(f"{name}_{game}+swapped", Run(script, f"{game}+swapped", ours))
        seat_2 = Run(script, f"{game}+swapped", theirs)
        RUNS[f"authors/{name}_{game}+swapped"] = seat_2
RUNS |= {
    f"tournament_{game}": Run(
        "plots", game, dict(table="tournament", protocol="authors")
    )
    for game in TOURNAMENTS
}
DEVICES = dict(
    naive=(2,), lola=(1, 10, 30, 100), hola=(1, 5, 10, 100), meva=(0, 0.9, 0.95, 0.99)
)  # the settings shown
RUNS |= {
    f"{script}_gpu_ipd": Run(script, "ipd", SETTINGS["ipd"][script])
    for script in ("meva", "hola")
}
RUNS |= {f"{script}_gpu_ipd": Run(script, "ipd", {}) for script in ("naive", "lola")}
RUNS["mfos_1024_ipd"] = Run("mfos", "ipd", dict(batch_size=1024, num_seeds=3))
RUNS["mfos_4096_ipd"] = Run("mfos", "ipd", EIGHT)
RUNS |= {
    f"mfos-{name}_4096_ipd": Run("mfos", "ipd", dict(num_seeds=2, opponent=name))
    for name in ("lola", "self")
}
MFOS = [
    name for name in RUNS if name.startswith("mfos") and name.endswith("_4096_ipd")
] + ["mfos_1024_ipd"]
MFOS += [f"authors/{name}_ipd" for name in TRAINED if name.startswith("mfos")]
RUNS["tit-for-tat_contribution"] = Run(
    "plots", "contribution", dict(table="tit-for-tat")
)
RUNS |= {
    f"games/{script}_{game}": Run(script, game, quick=True)
    for game in GAMES
    for script in SCRIPTS
}


def flags(settings: dict) -> str:
    """Settings as a command line has them."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}"]
        words += [str(value) for value in values if not isinstance(value, bool)]
    return " ".join(words)


def paths_of(name: str, out: pathlib.Path) -> list[pathlib.Path]:
    """Where a run's results may be: what its command writes, and the copy that is kept in results/paper/."""
    script, game, settings, quick = RUNS[
        name
    ]  # one whose files would replace another's has a folder of its own
    stem = settings.get("table", script) + (
        f"-{settings['opponent']}" if "opponent" in settings else ""
    )
    stem += f"_{game}"
    folder = out if name in (stem, f"games/{stem}") else out / "results/variants" / name
    return [folder / f"results/{stem}.npz", out / f"results/paper/{name}.npz"]


def command(name: str, out: pathlib.Path = pathlib.Path(".")) -> str:
    """The command that makes a run."""
    script, game, settings, quick = RUNS[name]
    folder = paths_of(name, out)[0].parents[1]
    words = [f"python {script}.py --game {game}", flags(settings)]
    words += ["--quick"] * quick + [f"--out {shlex.quote(str(folder))}"] * (
        folder != pathlib.Path(".")
    )
    return " ".join(filter(None, words))


# Their results


SHAPES = {  # of the arrays that are read: S settings, N seeds, T steps and the start, n numbers of a policy
    **dict.fromkeys(RETURNS, ("S", "N", None, 2)),
    **dict.fromkeys(POLICIES, ("S", "N", None, 2, "n")),
    **dict.fromkeys(
        ("field", "values"), ("S", None, 29, 29, 2)
    ),  # in results/paper/ of the first seed alone
    "sweep": ("S",),
    "grid": (29, 29, 2),
    "basin_fraction": ("S", "N"),
    "endpoints": ("S", "N", 29, 29, 2),
    "trajectories": ("S", None, None, "T", 2),
    "consistency": ("S", "N", None),
    "hola_consistency": ("S", "N", 3, None),
    "hola_cosine": ("S", "N", 4, None),
    "returns": ("A", "A", None, 2),  # of a tournament of A contestants
    **dict.fromkeys(("trained", "corner"), ("A", "A", None)),
    "found": ("A", None, 2),  # in search of tit-for-tat, by A learners
    "episode_returns": ("S", "N", None, None, 2),
    "loss": ("N", None),
}


class Broken(Exception):
    """A file that is not the results of a run, or not of one that will do."""


class Results(dict):
    """The arrays of a run by name, its `config`, `path` and `source`. To ask for what is not there raises Broken."""

    def __missing__(self, name):
        raise Broken(f"{self['path']} has no {name}")


def load(path: pathlib.Path, run: Run) -> Results:
    """The results of this run, each array in the shape that it should have. Raises Broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        config = json.loads(str(arrays["config"]))
        game, of_plots = find_game(run.game), run.script == "plots"
        if config["game"] != game.name:
            raise ValueError(f"it is one on {config['game']}")
        sizes = dict(n=len(game.labels), A=np.size(arrays.get("names")))
        if not of_plots:
            sizes |= dict(
                S=arrays["sweep"].size,
                N=config["num_seeds"],
                T=config["eval_steps"] + 1,
            )
        for name in [name for name in arrays if name.removesuffix("_2") in SHAPES]:
            had, shape = (
                arrays[name].shape,
                [sizes.get(size, size) for size in SHAPES[name.removesuffix("_2")]],
            )
            fits = len(had) == len(shape) and all(
                size in (None, one) for size, one in zip(shape, had)
            )
            if arrays[name].dtype.kind not in "fu" or 0 in had or not fits:
                raise ValueError(
                    f"{name} has {arrays[name].dtype} {had}, not floats {tuple(shape)}"
                )
        made = (
            f"{PROTOCOLS[config['protocol']]} protocol"
            if of_plots
            else f"{config['num_seeds']} seeds"
        )
    except Exception as error:  # a damaged file can raise nearly all there are
        words = f"{path} is not the results of a run on {run.game} ({type(error).__name__}: {error})"
        raise Broken(" ".join(words.split())) from None
    made += (
        f" of {config['outer_steps']} outer loops" if "outer_steps" in config else ""
    )
    source = f"small runs in {path.parent}" if run.quick else f"{path} ({made})"
    return Results(arrays | dict(config=config, path=path, source=source))


def find(
    names, out: pathlib.Path, exactly=False, own=True
) -> tuple[dict[str, Results], str, list[str]]:
    """The results of these runs by name, where they are from, and the names of those that are missing.

    With `exactly`, only those made with the very settings of the run; without `own`, only those in results/paper/.
    """
    runs = {}
    for name in names:
        script, game, settings, quick = RUNS[name]
        if exactly and script in SCRIPTS:
            settings = json.loads(
                json.dumps(
                    dataclasses.asdict(
                        SCRIPTS[script].make_config(game, quick, **settings)
                    )
                )
            )
        for path in filter(pathlib.Path.exists, paths_of(name, out)[not own :]):
            results = load(path, RUNS[name])
            # An option that a script did not have yet when it made the run was at its default.
            had = (
                dataclasses.asdict(SCRIPTS[script].Config())
                if script in SCRIPTS
                else {}
            ) | results["config"]
            same = all(had.get(key) == value for key, value in settings.items())
            same = same and not had.get("missing")  # of a tournament: all were there
            if name not in runs and (same or not exactly):
                runs[name] = results
    sources = dict.fromkeys(results["source"] for results in runs.values())  # each once
    return runs, ", ".join(sources), [name for name in names if name not in runs]


def load_models(script: str, results: Results, game: Game):
    """The configuration and the trained models of a run, a pytree with a leading axis of seeds."""
    settings = {}
    for name, value in results["config"].items():
        if name != "run_on":
            settings[name] = tuple(value) if isinstance(value, list) else value
    config = SCRIPTS[script].Config(**settings)
    like = SCRIPTS[script].model_init(jax.random.key(0), game, config)
    try:
        return config, unflatten(results, "params", like)
    except ValueError as error:
        raise Broken(f"{results['path']}: {error}") from None


def at(results: Results, setting: float, exactly=True) -> int:
    """The index of the setting nearest to this one in the sweep of a run. Raises Broken if it has to be this one."""
    i = np.abs(results["sweep"] - setting).argmin()
    if exactly and not np.isclose(results["sweep"][i], setting, atol=1e-6):
        raise Broken(f"{results['path']} has no setting {setting:g} in its sweep")
    return i


def standard_error(samples: np.ndarray) -> float:
    return samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else np.nan


def logistic_returns(x: np.ndarray) -> np.ndarray:
    """Returns on the Logistic Game at joint policies (..., 2) -> (..., 2)."""
    return np.asarray(jax.vmap(LOGISTIC.f)(x.reshape(-1, 2, 1))).reshape(x.shape)


# The figures. Each function draws on an empty figure from the results of its runs, by name.

WIDTH = 6.75  # inches: two columns of a paper
STYLE = {
    "font.size": 7, "axes.titlesize": 7, "axes.linewidth": 0.6, "legend.fontsize": 6, "lines.linewidth": 1,
    "xtick.labelsize": 6, "ytick.labelsize": 6, "pdf.fonttype": 42,
}  # fmt: skip
TICKS = (-10, -5, 0, 5, 10)
PLANE = dict(
    aspect="equal",
    xlim=(-10, 10),
    ylim=(-10, 10),
    xticks=TICKS,
    yticks=TICKS,
    xlabel="$x_1$",
    ylabel="$x_2$",
)
BINS = np.linspace(-3, 0, 61)  # of return
CELLS = dict(
    origin="lower", extent=(-290 / 28, 290 / 28) * 2
)  # each grid point in the middle of its cell
BAR = dict(shrink=0.8, pad=0.01)  # a color bar beside its panels
LEVELS = np.arange(-5, 4.1, 0.5)  # of return
ROWS = dict.fromkeys(
    ("lola_logistic", "hola_logistic", "cola_logistic"), (0, 1, 5, 10)
)  # of Fig. 2, and settings
ROWS["meva_logistic"] = (0.8, 0.85, 0.9, 0.95)
HILL_ROWS = {
    name.replace("logistic", "two_hills"): settings for name, settings in ROWS.items()
}
HILL_ROWS["meva_two_hills"] = HILL_ROWS["short_two_hills"] = (0.8, 0.9, 0.95, 0.99)


def labelled(script: str, results: Results, i: int) -> str:
    """An algorithm and its i-th setting, and its step size if that is not everybody's."""
    setting = (
        f", {SYMBOLS[script]} = {results['sweep'][i]:g}" if script in SYMBOLS else ""
    )
    config = results["config"]
    return (
        TITLES[script]
        + setting
        + f", lr = {config['lr']:g}" * (config["lr"] != find_game(config["game"]).lr)
    )


def plane(figure: Figure, rows: int, columns: int, height: float):
    """Panels on the plane of joint policies, all with the same range, (rows, columns)."""
    figure.set_size_inches(WIDTH, height)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set(**PLANE)
        axis.label_outer()
    return axes


def draw_fig1(figure: Figure, runs: dict):
    """Contours of both players' returns in the Logistic Game, with A and B (Fig. 1)."""
    line = np.linspace(-10, 10, 201)
    values = logistic_returns(
        np.stack(np.meshgrid(line, line), -1).astype(np.float32)
    )  # (x_2, x_1, 2)
    axes = plane(figure, 1, 2, 3.0)[0]
    for player, axis in enumerate(axes):
        image = axis.contourf(
            line, line, values[..., player], levels=LEVELS, extend="both"
        )
        axis.contour(
            line,
            line,
            values[..., player],
            levels=LEVELS,
            colors="black",
            linewidths=0.2,
            linestyles="-",
        )
        for where, name in ((A, "A"), (B, "B")):
            circle = dict(boxstyle="circle,pad=0.15", facecolor="white", linewidth=0.4)
            axis.text(
                where,
                where,
                name,
                ha="center",
                va="center",
                fontweight="bold",
                bbox=circle,
            )
        axis.set_title(f"$f_{player + 1}(x)$")
    figure.colorbar(image, ax=axes, label="return", ticks=range(-5, 5), **BAR)


def draw_fig2(figure: Figure, runs: dict, basins: bool, rows: dict = ROWS):
    """Planar games: trajectories from random policies, first seed (Fig. 2a), or basins of attraction (Fig. 2b)."""
    for row, (name, settings) in zip(
        plane(figure, len(rows), 4, WIDTH / 4 * len(rows) + 0.2), rows.items()
    ):
        script, results = RUNS[name].script, runs[name]
        for axis, setting in zip(row, settings):
            i = at(results, setting, exactly=False)
            title = labelled(script, results, i)
            if basins:
                in_b = (
                    (results["endpoints"][i] > 0).all(-1).mean(0)
                )  # (29, 29): 1, white; gray with some of the models
                axis.imshow(in_b, cmap="gray", vmin=0, vmax=1, **CELLS)
                title += f": {in_b.mean():.1%}"
            for path in [] if basins else results["trajectories"][i, 0]:  # (time, 2)
                axis.plot(*path.T, color=COLORS[script], linewidth=0.5)
                axis.plot(*path[-1], "o", color="black", markersize=1.5)
            axis.set_title(title)


def draw_fig3(figure: Figure, runs: dict):
    """Returns on the IPD (Fig. 3), means and standard errors over policy pairs, as there; thin: the agent's by seed.

    On the right is what a best response leaves to the agents of one setting: means hide that some are exploited.
    """
    figure.set_size_inches(WIDTH, 4.2)
    axes = figure.subplots(2, 4, sharey=True, width_ratios=(3, 3, 3, 2))
    for (*row, last), script, setting in zip(axes, ("meva", "lola"), (0.99, 10)):
        results = runs[f"{script}_ipd"]
        ticks = np.arange(len(results["sweep"]))
        for axis, (key, (heading, other)) in zip(row, PLAYS.items()):
            pairs = results[key].reshape(len(ticks), -1, 2)
            axis.plot(
                ticks,
                results[key].mean(2)[..., 0],
                color=COLORS[script],
                linewidth=0.4,
                alpha=0.5,
            )
            players = (TITLES[script], COLORS[script], "-"), (other, "black", "--")
            for player, (label, color, style) in enumerate(players):
                errors = [standard_error(samples) for samples in pairs[..., player]]
                line = dict(color=color, linestyle=style, capsize=1.5, label=label)
                axis.errorbar(ticks, pairs[..., player].mean(1), errors, **line)
            axis.set(title=heading, xlabel=SYMBOLS[script], ylim=(-3.05, -0.4))
            axis.set_xticks(
                ticks, [f"{setting:g}" for setting in results["sweep"]], rotation=60
            )
            axis.legend(loc="lower right")
        row[0].set_ylabel("expected return per round")
        i = at(results, setting, exactly=False)
        agents = results["best_response"][i, ..., 0]  # (seed, pair)
        style = dict(orientation="horizontal", histtype="step", color=COLORS[script])
        for model in agents:
            last.hist(
                model,
                BINS,
                weights=np.full(model.size, 1 / model.size),
                linewidth=0.3,
                alpha=0.5,
                **style,
            )
        last.hist(
            agents.ravel(), BINS, weights=np.full(agents.size, 1 / agents.size), **style
        )
        last.set(
            title=f"agents at {SYMBOLS[script]} = {results['sweep'][i]:g}",
            xlabel="share of pairs",
            xscale="log",
        )


def best(results: Results) -> int:
    """The index of the setting with the highest mean return in self-play."""
    means = results["self_play"].mean((1, 2, 3))
    return np.where(np.isfinite(means), means, -np.inf).argmax()


def draw_networks(figure: Figure, runs: dict):
    """The agent's returns on the IPD by kind of policy, each rule at its best setting in self-play.

    Points are models (or initial policies of a rule without a model), their mean is a bar, and a line goes from the 5th
    to the 95th percentile of the policy pairs.
    """
    figure.set_size_inches(WIDTH, 5.6)
    keys = ("self_play", "exact_best_response", "versus_naive")
    for axes, kind in zip(figure.subplots(3, 3, sharey=True).T, KINDS):
        labels = []
        for column, (name, label) in enumerate(RULES.items()):
            run = OF_KINDS[kind, name]
            results, script, i = runs[run], RUNS[run].script, best(runs[run])
            labels.append(
                f"{label}\n{SYMBOLS[script]} = {results['sweep'][i]:g}"
                if script in SYMBOLS
                else label
            )
            for axis, key in zip(axes, keys):
                agents = results[key][i][..., 0]  # (seed, pair)
                axis.vlines(
                    column,
                    *np.percentile(agents, (5, 95)),
                    color="lightgray",
                    linewidth=4,
                )
                where = column + np.linspace(-0.25, 0.25, len(agents) + 2)[1:-1]
                axis.plot(
                    where, agents.mean(1), ".", color=COLORS[script], markersize=4
                )
                axis.hlines(agents.mean(), column - 0.35, column + 0.35, color="black")
        for axis, key in zip(axes, keys):
            axis.set(title=f"{kind}: {RETURNS[key]}", ylim=(-3.05, -0.4))
            axis.set_xticks(range(len(labels)), labels, rotation=60)
            axis.label_outer()
        if kind == "tables":
            axes[1].set_ylabel("agent's expected return per round")


def draw_basins(figure: Figure, runs: dict):
    """Share of the surveyed area in the basin of B, against alpha (left) or gamma (right): means, and each model."""
    figure.set_size_inches(WIDTH / 2, 2.6)
    axis = figure.subplots()
    alphas = np.unique(
        np.concatenate(
            [runs[f"{script}_logistic"]["sweep"] for script in ("lola", "hola", "cola")]
        )
    )
    gammas = runs["meva_logistic"]["sweep"]
    at_gammas = len(alphas) + np.arange(len(gammas))
    for script in ("lola", "hola", "cola", "meva"):
        results = runs[f"{script}_logistic"]
        ticks = (
            at_gammas if script == "meva" else np.searchsorted(alphas, results["sweep"])
        )
        shares = results["basin_fraction"]  # (S, seed)
        axis.plot(ticks, shares, ".", markersize=2, color=COLORS[script], alpha=0.6)
        axis.plot(
            ticks,
            shares.mean(1),
            "o-",
            markersize=2.5,
            color=COLORS[script],
            label=TITLES[script],
        )
    naive = runs["naive_logistic"]["basin_fraction"].mean()
    axis.axhline(naive, color=COLORS["naive"], linestyle="--", label="naive", zorder=0)
    axis.axvline(len(alphas) - 0.5, color="black", linewidth=0.6)
    axis.set_xticks(
        [*range(len(alphas)), *at_gammas],
        [f"{x:g}" for x in (*alphas, *gammas)],
        rotation=60,
    )
    axis.set(
        xlabel=r"$\alpha$ (LOLA, HOLA, COLA)  |  $\gamma$ (MeVa)",
        ylabel="share that ends with $x_1, x_2 > 0$",
    )
    axis.legend(loc="upper left")


TIT_FOR_TAT = 19
STRATEGIES = {
    0: "all D",
    17: "grim",
    19: "tit-for-tat",
    25: "win-stay",
    31: "all C",
}  # as binary numbers, C being 1


def strategies(policies: np.ndarray) -> np.ndarray:
    """The nearest deterministic strategy of each policy, as a number: its five bits are init, DD, CD, DC, CC."""
    return (policies > 0) @ np.array([16, 8, 4, 2, 1])


def draw_policies(figure: Figure, runs: dict):
    """How often which of the 32 deterministic strategies meet, after rounding; tit-for-tat with itself is marked."""
    figure.set_size_inches(WIDTH, 4.6)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, script, setting in zip(axes, ("meva", "lola"), (0.99, 10)):
        results = runs[f"{script}_ipd"]
        i = at(results, setting, exactly=False)
        for axis, (key, (heading, other)) in zip(row, zip(POLICIES, PLAYS.values())):
            agent, opponent = strategies(results[key][i]).reshape(-1, 2).T
            counts, *_ = np.histogram2d(opponent, agent, np.arange(33))
            shares = np.where(counts, counts / counts.sum(), np.nan)
            image = axis.imshow(
                shares, origin="lower", cmap="plasma_r", norm="log", vmin=3e-4, vmax=1
            )
            axis.plot(
                19,
                19,
                "s",
                markersize=6,
                markerfacecolor="none",
                markeredgecolor="red",
                markeredgewidth=0.7,
            )
            axis.set(title=f"{labelled(script, results, i)}\n{heading}", ylabel=other)
            axis.grid(linewidth=0.2)
    axes[0, 0].set_yticks(list(STRATEGIES), STRATEGIES.values())
    for axis in axes[-1]:
        axis.set_xticks(list(STRATEGIES), STRATEGIES.values(), rotation=90)
        axis.set_xlabel("agent")
    figure.colorbar(image, ax=axes, label="share of the policy pairs", **BAR)


def draw_steps(figure: Figure, runs: dict, of_meva: bool):
    """The first seed's steps on the Logistic Game, over MeVa's normalised value of player 1 or over their length."""
    settings = [("naive", 1), ("lola", 5), ("hola", 5), ("cola", 5), ("meva", 0.9)]
    if of_meva:
        settings = [("meva", gamma) for gamma in (0, 0.8, 0.9, 0.95, 0.99)]
    axes = plane(figure, 1, 5, 1.6)[0]
    for axis, (script, setting) in zip(axes, settings):
        results = runs[f"{script}_logistic"]
        i = at(results, setting, exactly=False)
        grid, steps = results["grid"], results["field"][i, 0]
        length = np.linalg.norm(steps, axis=-1)
        if of_meva:
            image = axis.contourf(
                *grid.T, results["values"][i, 0, ..., 0].T, levels=LEVELS, extend="both"
            )
        else:
            image = axis.imshow(
                np.maximum(length, 1e-12),
                norm="log",
                vmin=1e-3,
                vmax=10,
                cmap="Blues",
                **CELLS,
            )
        directions = steps / np.where(length > 0, length, 1)[..., None]
        style = dict(
            pivot="mid",
            scale=20,
            width=0.006,
            headwidth=4,
            color="white" if of_meva else "black",
        )
        axis.quiver(*grid[::2, ::2].T, *directions[::2, ::2].T, **style)
        axis.set_title(labelled(script, results, i))
    words = (
        dict(label=r"meta-value $\hat V_1$", ticks=range(-5, 5))
        if of_meva
        else dict(label="length of a step")
    )
    figure.colorbar(image, ax=axes, **words, **BAR)


def draw_ablations(figure: Figure, runs: dict):
    """The agent's returns on the IPD with one technique of Section 4 changed: models, mean and standard error."""
    figure.set_size_inches(WIDTH, 2.6)
    *axes, right = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.2))
    rows = np.arange(len(ABLATIONS))[::-1]
    for axis, (key, (heading, _)) in zip(axes, PLAYS.items()):
        agents = [
            runs[name][key][at(runs[name], 0.99, exactly=False), ..., 0].mean(1)
            for name in ABLATIONS
        ]
        for row, agent in zip(rows, agents):
            axis.plot(
                agent,
                np.full(len(agent), row),
                ".",
                color=COLORS["meva"],
                markersize=3,
                alpha=0.6,
            )
            axis.errorbar(
                agent.mean(),
                row,
                xerr=standard_error(agent),
                fmt="|",
                color="black",
                capsize=2,
            )
        axis.axvline(agents[0].mean(), color="gray", linewidth=0.5)
        axis.set(title=heading, xlabel="agent's return", xlim=(-2.05, -0.9))
        axis.set_yticks(
            rows,
            [label for label, _ in ABLATIONS.values()]
            if axis is axes[0]
            else [""] * len(rows),
        )
    styles = {
        "meva": ("both sides", "-", COLORS["meva"]),
        "semi_gradient": ("semi-gradient", "--", "black"),
    }
    for name, (label, style, color) in styles.items():
        results = runs[f"{name}_logistic"]
        ticks = np.arange(len(results["sweep"]))
        right.plot(
            ticks, results["basin_fraction"], ".", markersize=2, color=color, alpha=0.6
        )
        right.plot(
            ticks, results["basin_fraction"].mean(1), style, color=color, label=label
        )
        right.set_xticks(
            ticks, [f"{gamma:g}" for gamma in results["sweep"]], rotation=60
        )
    right.set(
        title="Logistic Game, form V",
        xlabel=r"$\gamma$",
        ylabel="share that ends with $x_1, x_2 > 0$",
    )
    right.set_ylim(0.3, 1.03)
    right.legend(loc="lower left")
    loops, seeds = (
        runs["all_techniques"]["config"][key] for key in ("outer_steps", "num_seeds")
    )
    figure.suptitle(
        rf"IPD, $\gamma$ = .99: {loops} outer loops, {seeds} seeds", fontsize=7
    )


def draw_samples(figure: Figure, runs: dict):
    """The agent's returns on the IPD by the episodes of an estimate: points are seeds, and a line goes by their mean.

    LOLA follows estimates; MeVa is trained on them, and evaluated with exact gradients.
    """
    figure.set_size_inches(WIDTH, 4)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (script, setting) in zip(panels, SAMPLED.items()):
        color, exact = COLORS[script], runs[SAMPLES[script, 0]]
        for axis, (key, label) in zip(axes, list(PLAYS.items())[:2]):
            means = []
            for episodes in EPISODES:
                results = runs[SAMPLES[script, episodes]]
                agents = results[key][at(results, setting)][..., 0].mean(1)  # (seed,)
                axis.plot(
                    [episodes] * len(agents), agents, "o", color=color, markersize=2
                )
                means.append(agents.mean())
            axis.plot(
                EPISODES,
                means,
                "o-",
                markersize=4,
                color=color,
                fillstyle="none",
                label="estimates",
            )
            axis.axhline(
                exact[key][at(exact, setting)][..., 0].mean(),
                color="gray",
                linestyle=":",
                label="exact",
            )
            axis.set(
                title=f"{TITLES[script]}, {SYMBOLS[script]} = {setting:g}: {label[0]}",
                xscale="log",
            )
            axis.set_xticks(EPISODES, EPISODES)
            axis.minorticks_off()
            axis.legend()
        axes[0].set_ylabel("agent's expected return per round")
    for axis in panels[1]:
        axis.set_xlabel("episodes of 50 rounds for each estimate")


# The paper's claims


def spread(samples: np.ndarray, digits: int = 3) -> str:
    """Mean and standard error of samples, (number,); of a single one there is no error."""
    numbers = [samples.mean(), standard_error(samples)][: len(samples)]
    return " ± ".join(
        f"{number:z.{digits}f}" if abs(number) < 1e3 else f"{number:.1e}"
        for number in numbers
    )


def pair(returns: np.ndarray, digits: int = 3) -> str:
    """The agent's and the other's returns, (player, number)."""
    lost = (~np.isfinite(returns)).any(0).sum()
    return (
        f"{lost} of {returns.shape[1]} diverged"
        if lost
        else " : ".join(spread(own, digits) for own in returns)
    )


CLAIMS = []  # filled by `claims`, in the order of the text
RADIUS = 0.5  # who is this near to a fixed point, in both coordinates, has come to it


def claims(*runs: str):
    """Let a function of these runs' results yield claims, each with

    its section, the paper's sentence, what has to be true for it to hold (from the sentence, not from the numbers),
    what we find, and whether it is true, in each of the settings or models that it speaks of.
    """
    return lambda measure: CLAIMS.append((runs, measure)) or measure


def verdict(holds) -> str:
    """In words: `holds` has a truth value for each setting or model, none where there was nothing to judge."""
    count, true = np.size(holds), np.sum(holds)
    return (
        "yes"
        if true == count > 0
        else f"in part ({true} of {count})"
        if true
        else "**no**"
    )


def series(settings, values) -> str:
    """Values, (number of settings, seed), by setting: mean and standard error over seeds."""
    return ", ".join(
        f"{spread(np.ravel(value))} at {setting:g}"
        for setting, value in zip(settings, values)
    )


@claims()
def the_games():
    gradient = partial(simultaneous_gradient, LOGISTIC.f)
    points = np.array([[[A], [A]], [[B], [B]], [[0], [0]]], np.float32)  # (point, 2, 1)
    length = np.linalg.norm(jax.vmap(gradient)(points), axis=(1, 2))
    rates = np.linalg.eigvals(
        np.asarray(jax.vmap(jax.jacobian(gradient))(points)).reshape(-1, 2, 2)
    ).real
    words = "; ".join("{:.3f}, {:.3f}".format(*sorted(both)) for both in rates)
    numbers = f"gradients there at most {length.max():.0e}, eigenvalues at A, B and 0: {words}"
    holds = (
        length.max() < 1e-4
        and rates[:2].max() < 0
        and rates[2].min() < 0 < rates[2].max()
    )
    criterion = "no gradient there; eigenvalues of its Jacobian negative at A and B, of both signs at the origin"
    yield (
        "5.1",
        "two stable fixed points, A and B; the origin is a saddle point",
        criterion,
        numbers,
        holds,
    )

    moves = np.linspace(-10, 10, 401, dtype=np.float32)  # of player 1
    values = [
        logistic_returns(np.stack([moves, np.full_like(moves, other)], -1))[:, 0]
        for other in (A, B)
    ]
    (to_a, at_a), (to_b, at_b) = (
        (moves[value.argmax()], value.max()) for value in values
    )
    numbers = f"the best reply to A is {to_a:.2f}, a return of {at_a:.2f}; to B {to_b:.2f}, a return of {at_b:.2f}"
    holds = abs(to_a - A) < 0.1 and abs(to_b - B) < 0.1 and at_a < at_b
    criterion = "B pays more than A, and each is the best reply to itself"
    yield (
        "5.1",
        "both players prefer B, and cannot unilaterally go there",
        criterion,
        numbers,
        holds,
    )

    sure = np.broadcast_to(
        np.float32([50, -50])[:, None, None], (2, 2, 5)
    )  # all-C and all-D, with themselves
    agents = jax.vmap(IPD.f)(jax.vmap(partial(exact_best_response, IPD))(sure))[:, 0]
    statement = "who cooperates or defects unconditionally makes the best response defect, and gets -3 or -2"
    numbers = "{:.3f} or {:.3f}".format(*agents)
    yield (
        "5.2",
        statement,
        "those returns, to .001",
        numbers,
        np.allclose(agents, (-3, -2), atol=1e-3),
    )


def came_to(results: Results, point: float) -> np.ndarray:
    """Which points of the grid come to (point, point), (S, seed, 29, 29)."""
    return (np.abs(results["endpoints"] - point) < RADIUS).all(-1)


def regions(results: Results) -> np.ndarray:
    """Share that ends in B's quadrant of the points beyond 8, and of those within 4 of the origin, (2, S, seed)."""
    in_b = (results["endpoints"] > 0).all(-1)
    edge, origin = (
        np.abs(results["grid"]).max(-1) > 8,
        np.linalg.norm(results["grid"], axis=-1) < 4,
    )
    return np.stack([in_b[..., edge].mean(-1), in_b[..., origin].mean(-1)])


@claims("naive_logistic")
def nearest(naive):
    side = naive["grid"].sum(-1)  # x_1 + x_2
    off = np.abs(side) > 1e-3  # the diagonal belongs to neither
    there = np.where(side > 0, came_to(naive, B), came_to(naive, A))[
        ..., off
    ]  # by symmetry the nearest one
    statement = (
        "following naive gradients, players converge to whichever solution is nearest"
    )
    criterion = f"all points off the diagonal x_1 + x_2 = 0 are within {RADIUS} of it after 200 steps"
    yield "5.1", statement, criterion, f"{there.mean():.1%} are", there.mean() == 1
    sides = (naive["endpoints"][..., off, :].sum(-1) > 0) == (side > 0)[off]
    numbers = f"{sides.mean():.1%} do"
    yield (
        "5.1",
        "the basins of attraction meet at a diagonal",
        "all points end on their side",
        numbers,
        sides.all(),
    )


@claims("lola_logistic")
def slightly(lola):
    alphas, shares = lola["sweep"][1:], lola["basin_fraction"]
    before, after = shares[0].mean(), shares[1:].mean(1)
    numbers = series(lola["sweep"], shares)
    criterion = "a larger share in B's quadrant than at alpha = 0, at every alpha"
    yield "5.1", "LOLA grows the basin of B", criterion, numbers, after > before
    criterion = "the share changes by less than .1, at every alpha"
    largest = (
        f"at most by {after.max() - before:.3f}, at alpha = {alphas[after.argmax()]:g}"
    )
    yield "5.1", "but only slightly", criterion, largest, np.abs(after - before) < 0.1
    criterion = (
        "of all alphas but 0, the best one is better than the smallest by less than .05"
    )
    numbers = f"by {after.max() - after[0]:.3f}"
    yield (
        "5.1",
        "and increasing alpha does not help much",
        criterion,
        numbers,
        after.max() - after[0] < 0.05,
    )


@claims("naive_logistic", "hola_logistic", "hola3_logistic", "lola_logistic")
def higher_order(naive, hola, third, lola):
    alphas, (edge, _) = hola["sweep"][1:], regions(hola)[:, 1:, 0]
    before = regions(naive)[0, 0, 0]
    criterion = "of the points beyond 8 a larger share ends in B's quadrant than with naive learners, at every alpha"
    numbers = f"{series(alphas, edge)}; naive {before:.3f}"
    yield (
        "5.1",
        "HOLA(2) grows the basin of B around the edges",
        criterion,
        numbers,
        edge > before,
    )

    near = np.linalg.norm(hola["grid"], axis=-1) < 4
    lost = [
        1 - (came_to(results, A) | came_to(results, B))[:, 0]
        for results in (hola, lola)
    ]  # (S, 29, 29) each
    inside, outside, other = (
        lost[0][1:, near].mean(-1),
        lost[0][1:, ~near].mean(-1),
        lost[1][1:, near].mean(-1),
    )
    numbers = f"{series(alphas, inside)}; elsewhere {series(alphas, outside)}; LOLA {series(alphas, other)}"
    criterion = "within 4 of it more points come to neither A nor B than elsewhere and than with LOLA, at every alpha"
    holds = inside > np.maximum(outside, other)
    yield (
        "5.1",
        "but suffers from instabilities around the origin",
        criterion,
        numbers,
        holds,
    )

    shares = [results["basin_fraction"][1:, 0] for results in (third, hola)]
    numbers = "; HOLA(2) ".join(series(alphas, each) for each in shares)
    criterion = "its share in B's quadrant is smaller by more than .01, at every alpha"
    yield (
        "5.1",
        "HOLA(3) is significantly worse than HOLA(2)",
        criterion,
        numbers,
        shares[0] < shares[1] - 0.01,
    )


@claims("cola_logistic", "naive_logistic", "lola_logistic", "hola_logistic")
def consistent(cola, *others):
    alphas = cola["sweep"][1:]
    shares = [
        [regions(each)[:, at(each, alpha, exactly=False)].mean(-1) for alpha in alphas]
        for each in others
    ]
    best = np.max(shares, 0)  # (alpha, place)
    for place, ours, theirs in zip(("edges", "origin"), regions(cola)[:, 1:], best.T):
        where = "beyond 8" if place == "edges" else "within 4 of it"
        criterion = f"of the points {where} a larger share ends in B's quadrant than with naive learners, LOLA or "
        criterion += (
            "HOLA(2), by more than two standard errors over models, at every alpha"
        )
        errors = [standard_error(share) for share in ours]
        numbers = (
            f"{series(alphas, ours)}; the best of the others {series(alphas, theirs)}"
        )
        statement = f"COLA makes significant improvements around the {place}"
        yield (
            "5.1",
            statement,
            criterion,
            numbers,
            ours.mean(-1) - 2 * np.array(errors) > theirs,
        )


@claims("meva_logistic")
def meta_values(meva):
    gammas, shares = meva["sweep"], meva["basin_fraction"]
    above = gammas > 0.9 + 1e-6
    criterion = "all of the grid ends in B's quadrant, as Fig. 2b counts, in every model at every gamma"
    statement = (
        "when gamma > .9, MeVa converges to B from anywhere in the surveyed area"
    )
    yield (
        "5.1",
        statement,
        criterion,
        series(gammas[above], shares[above]),
        shares[above] == 1,
    )
    came = came_to(meva, B)[above].mean((2, 3))
    criterion = f"all of the grid is within {RADIUS} of B after 200 steps, in every model at every gamma"
    yield (
        "5.1",
        "(the same, as convergence)",
        criterion,
        series(gammas[above], came),
        came == 1,
    )

    criterion = (
        "the mean share never falls from one gamma to the next, and is 1 at the last"
    )
    holds = *(np.diff(shares.mean(1)) >= 0), shares[-1].min() == 1
    numbers, statement = (
        series(gammas, shares),
        "by increasing gamma the basin of B becomes arbitrarily large",
    )
    yield "5.1", statement, criterion, numbers, holds

    close = (np.linalg.norm(meva["grid"] - A, axis=-1) < 2) & (
        meva["grid"].sum(-1) > 2 * A
    )
    start, step = (
        meva["grid"][close],
        meva["field"][above, 0][:, close],
    )  # (point, 2), (gamma, point, 2)
    change = (logistic_returns(start + step) - logistic_returns(start)).mean(
        -1
    )  # of the mean return, (gamma, point)
    gain = logistic_returns(meva["endpoints"][above, 0][:, close]).mean(
        -1
    ) - logistic_returns(start).mean(-1)
    numbers = f"the first step changes it by {change.mean():.3f} (it falls at {(change < 0).mean():.1%} of them), "
    numbers += f"200 steps by {gain.mean():.2f}"
    criterion = "the players' mean return falls at the first step and ends higher, for gamma > .9 from each grid point "
    criterion += "within 2 of A, on the side towards B; first model"
    statement = (
        "even close to A it is worth moving in a direction that immediately decreases f"
    )
    yield "5.1", statement, criterion, numbers, (change < 0) & (gain > 0)


@claims(
    "naive_logistic",
    "lola_logistic",
    "hola_logistic",
    "hola3_logistic",
    "cola_logistic",
    "meva_logistic",
)
def only_meva(*runs):
    *best, ours = [results["basin_fraction"].max(0) for results in runs]
    names = "naive", "LOLA", "HOLA(2)", "HOLA(3)", "COLA", "MeVa"
    numbers = ", ".join(
        f"{name} {spread(share)}" for name, share in zip(names, (*best, ours))
    )
    criterion = "the whole grid ends in B's quadrant with all models of MeVa and nothing else, each at its best setting"
    statement = "our algorithm is the only one to find the Pareto-efficient solution regardless of initialisation"
    yield (
        "1",
        statement,
        criterion,
        numbers,
        ours.min() == 1 and max(map(np.max, best)) < 1,
    )


def cooperation(policies: np.ndarray) -> np.ndarray:
    """Discounted share of the rounds in which each player of the IPD cooperates, (..., 2, 5) -> (..., 2)."""
    shares = jax.vmap(lambda x: state_distribution(x, IPD.rules.discount))(
        policies.reshape(-1, 2, 5)
    )
    return np.asarray(shares @ np.array([[0, 0], [1, 0], [0, 1], [1, 1]])).reshape(
        policies.shape[:-1]
    )


def chances(results: Results, i: int) -> np.ndarray:
    """How likely players of the IPD are to cooperate, first and after DD, CD, DC, CC, (5, seed)."""
    return (1 / (1 + np.exp(-results["policies"][i].astype(float)))).mean((1, 2)).T


RISES = "is larger at the last gamma than at 0, and never falls from one to the next by more than two standard errors"


def rises(values: np.ndarray) -> list[bool]:
    """Do numbers, (S, seed), rise with the setting, as `RISES` says? Of the whole, and of each step by itself."""
    steps = np.diff(values, axis=0)
    return [
        values[-1].mean() > values[0].mean(),
        *(step.mean() > -2 * standard_error(step) for step in steps),
    ]


@claims("naive_ipd")
def naive_fails(naive):
    found = (strategies(naive["policies"][0]) == TIT_FOR_TAT).mean((1, 2))  # (seed,)
    numbers = f"{spread(found)}; returns {spread(naive['self_play'][0].mean((1, 2)))}"
    criterion = (
        "a share of less than .05 of the policies are nearest to it, in every seed"
    )
    yield (
        "5.2",
        "naive learning fails to find tit-for-tat",
        criterion,
        numbers,
        found < 0.05,
    )


@claims("meva_ipd")
def far_sighted(meva):
    gammas, returns = meva["sweep"], meva["self_play"].mean((2, 3))  # (S, seed)
    low = at(meva, 0.25)  # gamma = 0 is naive learning by construction
    numbers, holds = (
        f"{spread(returns[low])} at gamma = .25",
        np.abs(returns[low] + 2) < 0.1,
    )
    statement = (
        "at low gamma, policies converge to mostly defective strategies and approach -2"
    )
    yield (
        "5.2",
        statement,
        "mean returns within .1 of -2 in every model",
        numbers,
        holds,
    )

    rates = cooperation(meva["policies"]).mean((2, 3))  # (S, seed)
    numbers, statement = (
        series(gammas, rates),
        "as gamma increases, cooperation becomes more prevalent",
    )
    criterion = f"its share of the rounds {RISES}"
    yield "5.2", statement, criterion, numbers, rises(rates)
    numbers, criterion = (
        series(gammas, returns),
        "the mean return is within .1 of it at the largest gamma",
    )
    yield (
        "5.2",
        "with returns approaching -1",
        criterion,
        numbers,
        np.abs(returns[-1].mean() + 1) < 0.1,
    )

    cooperative = returns.mean(1) > -1.2
    criterion = "it cooperates in more than nine rounds of ten wherever self-play returns more than -1.2"
    policies = meva["policies"][cooperative]
    exact = jax.vmap(partial(exact_best_response, IPD))(policies.reshape(-1, 2, 5))
    responses = (
        meva["response_policies"][cooperative],
        np.asarray(exact).reshape(policies.shape),
    )
    for statement, pairs in zip(
        ("the best response is to cooperate", "(the exact best response)"), responses
    ):
        rates = cooperation(pairs)[..., 1].mean(2)  # (S, seed)
        yield (
            "5.2",
            statement,
            criterion,
            series(gammas[cooperative], rates),
            rates.mean(1) > 0.9,
        )
    agents = meva["best_response"][cooperative][..., 0]  # (S, seed, pair)
    kept = (agents > -1.5).mean(2)
    criterion = "wherever self-play returns more than -1.2, a best response leaves the agent more than -1.5 in 95 of "
    criterion += "100 policy pairs, in every model"
    numbers = series(gammas[cooperative], kept)
    yield (
        "1",
        "our algorithm finds nonexploitable cooperation",
        criterion,
        numbers,
        kept > 0.95,
    )

    learner = cooperation(meva["versus_naive_policies"])[..., 1].mean(2)  # (S, seed)
    returns = meva["versus_naive"].mean(2)  # (S, seed, 2)
    agent, other = np.moveaxis(returns, -1, 0)
    high = gammas >= 0.9 - 1e-6
    words = "; ".join(
        f"{pair(both.T)} at {gamma:g}"
        for both, gamma in zip(returns[high], gammas[high])
    )
    criterion = "from gamma = .9 on the learner cooperates in most rounds, and gets less than the agent"
    numbers = f"it cooperates {series(gammas, learner)}; agent : learner {words}"
    holds = [learner.mean(1)[high] > 0.5, agent.mean(1)[high] > other.mean(1)[high]]
    yield (
        "5.2",
        "naive opponents are shaped into exploitable cooperation",
        criterion,
        numbers,
        holds,
    )
    criterion = f"the agent's mean return beside a naive learner {RISES}"
    numbers = f"{series(gammas, agent)}; the best at {gammas[agent.mean(1).argmax()]:g}"
    yield "5.2", "(shaped) as gamma_1 goes to 1", criterion, numbers, rises(agent)

    i = at(meva, 0.99)
    found = (strategies(meva["policies"][i]) == TIT_FOR_TAT).mean((1, 2))
    each = f"{spread(found)}; by model {', '.join(f'{share:.2f}' for share in np.sort(found))}"
    criterion = "more than half of the policies at gamma = .99 are nearest to tit-for-tat, in every model"
    yield "5", "MeVa in fact learns to play tit-for-tat", criterion, each, found > 0.5
    by_state = dict(
        zip(("first", "DD", "CD", "DC", "CC"), chances(meva, i))
    )  # (seed,) each
    words = ", ".join(f"{spread(chance)} {state}" for state, chance in by_state.items())
    criterion = "on having been defected against (CD) it cooperates less than half as often as after CC, in every model"
    holds = by_state["CD"] < by_state["CC"] / 2
    yield (
        "5",
        "and does not simply cooperate unconditionally",
        criterion,
        f"P(C) {words}",
        holds,
    )


@claims("lola_ipd", "meva_ipd")
def looking_farther(lola, meva):
    peaks, falls, words = [], [], []
    for results in (lola, meva):
        curves = np.array(
            [results[key].mean((1, 2))[:, 0] for key in PLAYS]
        )  # (play, S)
        peaks.append(curves.max(1))
        falls.append(curves.max(1) - curves[:, -1])
        words.append("; ".join(
            f"{heading} {curve.max():.3f} at {results['sweep'][curve.argmax()]:g}, {curve[-1]:.3f} at the end"
            for (heading, _), curve in zip(PLAYS.values(), curves)
        ))  # fmt: skip
    (of_lola, of_meva), (lolas, mevas) = peaks, falls
    criterion = "the agent's best mean returns are at most .1 below MeVa's, in each of the three plays"
    numbers = f"LOLA: {words[0]}"
    yield (
        "5.2",
        "LOLA exhibits qualitatively the same results",
        criterion,
        numbers,
        of_lola > of_meva - 0.1,
    )
    criterion = "at the largest alpha the agent gets less than at the best one, by more than .05, in each of the plays"
    statement = "but its alpha can only be increased so far before results deteriorate"
    yield "5.2", statement, criterion, numbers, lolas > 0.05
    criterion = "the agent's best mean returns are at most .1 below LOLA's, in each of the plays"
    numbers = f"MeVa: {words[1]}"
    yield (
        "5.2",
        "MeVa retains the desirable features of LOLA",
        criterion,
        numbers,
        of_meva > of_lola - 0.1,
    )
    criterion = "from the best to the largest setting the agent loses no more than with LOLA, in each of the plays"
    yield (
        "5.2",
        "but is easier to extend farther into the future",
        criterion,
        numbers,
        mevas <= lolas,
    )
    agents = [
        np.ravel(results["best_response"][at(results, s)][..., 0])
        for results, s in ((meva, 0.99), (lola, 10))
    ]
    shares = [(agent > -1.5).mean() for agent in agents]
    numbers = "MeVa {:.3f} at gamma = .99, LOLA {:.3f} at alpha = 10".format(*shares)
    criterion = "a best response leaves MeVa's agents more than -1.5 in no smaller share of policy pairs than LOLA's"
    yield (
        "5.2",
        "(nonexploitable, beside LOLA)",
        criterion,
        numbers,
        shares[0] >= shares[1],
    )


@claims(
    "naive_two_hills",
    "lola_two_hills",
    "hola_two_hills",
    "cola_two_hills",
    "meva_two_hills",
    "short_two_hills",
)
def a_single_objective(*runs):
    *others, meva, short = [
        results["basin_fraction"] for results in runs
    ]  # (S, seed) each
    gammas = runs[-1]["sweep"]  # of both
    above = gammas > 0.9 + 1e-6
    names = "naive", "LOLA", "HOLA(2)", "COLA"
    words = [
        f"{name} at best {spread(share[share.mean(1).argmax()])}"
        for name, share in zip(names, others)
    ]
    words += [f"MeVa {series(gammas[above], meva[above])}"]
    words += [f"with a fifth of the step size {series(gammas[above], short[above])}"]
    criterion = "on two hills all of the grid ends in the quadrant of the higher top, in every model at every gamma "
    criterion += "above .9, with long and with short steps"
    holds = np.concatenate([meva[above], short[above]]) == 1
    yield (
        "7",
        "readily applies to problems with a single objective",
        criterion,
        ", ".join(words),
        holds,
    )


# The tournament: every learning rule beside every other

FIXED = {  # the signs of their log-odds: init, DD, CD, DC, CC
    "all-C": (1, 1, 1, 1, 1),
    "all-D": (-1, -1, -1, -1, -1),
    "tit-for-tat": (1, -1, -1, 1, 1),
    "win-stay-lose-shift": (1, 1, -1, -1, 1),
}
CORNERS = {
    "CC": "tab:green",
    "DC": "tab:orange",
    "CD": "tab:purple",
    "DD": "tab:red",
    "none": "lightgray",
}
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


class Protocol(NamedTuple):
    """How a tournament is played."""

    lr: float  # step size of the policies
    alpha: float  # look-ahead step of LOLA, HOLA, SOS, POLA and COLA
    gamma: float  # meta-discount of MeVa
    steps: int  # that policies are followed for


def protocol_of(game: str, name: str) -> Protocol:
    """The settings of this repository ("paper"), or those of the authors' tournament."""
    if name == "authors":
        return Protocol(TOURNAMENTS[game], TOURNAMENTS[game], 0.95, 300)
    return Protocol(GAMES[game].lr, GAMES[game].alphas[:5][-1], 0.95, 500)


class Contestant(NamedTuple):
    """A learning rule and as many models of it as there are."""

    rule: Callable  # (model, x, seat, gammas, key) -> (n,), the next policy of the player in this seat of x
    models: Any = np.zeros(1)  # a pytree with a leading axis
    gamma: float = 0.0  # as a meta-value sees this player
    starts: np.ndarray | None = (
        None  # (model, 2, n), of those that choose for each seat where to start
    )


def contestants(
    game: Game, runs: dict[str, Results], play: Protocol
) -> dict[str, Contestant]:
    """Those of the tournament on an iterated game, by name: rules, trained ones of which there are runs, policies."""
    naive, lola, hola, sos, pola, cola, meva, mfos = map(
        SCRIPTS.get, "naive lola hola sos pola cola meva mfos".split()
    )

    def learner(step_sizes, x, seat, *_):  # naive, with step sizes of its own
        return x[seat] + step_sizes[seat] * naive.naive_gradient(game.f, x)[seat]

    def look_ahead(gradient, **settings):
        def rule(model, x, seat, *_):
            return x[seat] + play.lr * gradient(game.f, x, play.alpha, **settings)[seat]

        return Contestant(rule)

    def proximal(
        model, x, seat, *_
    ):  # at the price of LOLA's small steps; 30 gradient steps almost settle it
        distance = partial(pola.divergence, game)
        return pola.pola_step(
            game.f, x, play.alpha, 1 / play.lr, distance, steps=30, tolerance=1e-3
        )[seat]

    def follow_cola(config, model, x, seat, *_):
        return x[seat] + play.lr * cola.cola_gradient(model, game, x, play.alpha)[seat]

    def follow_meva(config, model, x, seat, gammas, key):
        gradient = meva.meva_gradient(model, game, x, np.float32(gammas), config)
        return x[seat] + play.lr * gradient[seat]

    def draw_policy(config, agents, x, seat, gammas, key):
        return mfos.act(key, agents, game, x, seat)[1]

    everyone = {
        "naive": Contestant(learner, np.full((1, 2), play.lr, np.float32)),
        "lola": look_ahead(lola.lola_gradient),
        "lola-taylor-stop": look_ahead(lola.lola_gradient, variant="taylor-stop"),
        "hola2": look_ahead(hola.hola_gradient, order=2),
        "sos": look_ahead(sos.sos_gradient, scale=1 / (1 - game.rules.discount)),
        "pola": Contestant(proximal),
    }
    for name, results in runs.items():
        script = name.split("-")[0]
        if name.endswith("+swapped"):
            continue
        if script == "maml":
            everyone[name] = Contestant(
                learner, results["params/step_size"], starts=results["params/policy"]
            )
        else:
            config, models = load_models(script, results, game)
            if f"{name}+swapped" in runs:  # a model for each seat
                _, seat_2 = load_models(script, runs[f"{name}+swapped"], game)
                models = (models, seat_2)
            rule = dict(cola=follow_cola, meva=follow_meva, mfos=draw_policy)[script]
            everyone[name] = Contestant(
                partial(rule, config), models, play.gamma * (script == "meva")
            )
    for name, signs in FIXED.items():
        policies = np.broadcast_to(30 * np.float32(signs), (1, 2, game.n))
        everyone[name] = Contestant(
            learner, np.zeros((1, 2), np.float32), starts=policies
        )
    return everyone


@partial(jax.jit, static_argnames=("game", "rules", "gammas", "steps"))
def play_pair(
    game: Game,
    rules: tuple,
    gammas: tuple,
    models: tuple,
    own: tuple,
    starts,
    steps: int,
):
    """Two rules from these policies, (trial, 2, n), or for some from their `own`: each pair of models as often as any.

    Returns where they end, (trial, 2, n), and which models of the two played, (trial, 2).
    """
    counts = [len(jax.tree.leaves(each)[0]) for each in models]
    pairs = np.stack(
        np.divmod(np.arange(counts[0] * counts[1]), counts[1]), 1
    )  # (pair, 2)
    share = -(-len(starts) // len(pairs))  # trial t is played by pair t % len(pairs)
    trials = jax.numpy.arange(share * len(pairs)).reshape(share, -1).T % len(starts)

    def of_pair(args):
        which, x = args[0], starts[args[1]]
        those = [
            jax.tree.map(lambda leaf: leaf[i], each) for each, i in zip(models, which)
        ]
        for seat, policies in enumerate(own):
            x = (
                x
                if policies is None
                else x.at[:, seat].set(policies[which[seat], seat])
            )

        def step(x, key):
            keys, sides = jax.random.split(key), enumerate(zip(rules, those))
            return jax.numpy.stack(
                [
                    rule(model, x, seat, gammas, keys[seat])
                    for seat, (rule, model) in sides
                ]
            )

        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(1)))(
            args[1]
        )  # of each trial
        return jax.vmap(lambda x, key: follow(step, x, steps, key))(x, keys)

    ends = jax.lax.map(of_pair, (pairs, trials))  # (pair, share, 2, n)
    return ends.swapaxes(0, 1).reshape(-1, 2, game.n)[: len(starts)], np.resize(
        pairs, (len(starts), 2)
    )


def hold_tournament(
    game: Game, everyone: dict[str, Contestant], play: Protocol, trials: int = 1024
) -> dict:
    """Each contestant, player 1, beside each, player 2: arrays of the npz. All play from the same initial policies."""
    starts = jax.vmap(game.init)(jax.random.split(jax.random.key(0), trials))
    shape = (len(everyone), len(everyone), trials)
    results = {"returns": np.zeros((*shape, 2), np.float32)}
    results |= {
        name: np.zeros(shape, np.uint8) for name in ("trained", "trained_2", "corner")
    }
    for i, (name, row) in enumerate(everyone.items()):
        print(f"{i + 1:3d} / {len(everyone)}  {name} beside all", flush=True)
        for j, column in enumerate(everyone.values()):
            rules, models, gammas, own = zip(row, column)
            ends, played = play_pair(
                game, rules, gammas, models, own, starts, steps=play.steps
            )
            states = jax.vmap(lambda x: state_distribution(x, game.rules.discount))(
                ends
            )  # (trial, 4), DD, CD, DC, CC
            results["returns"][i, j] = jax.vmap(game.f)(ends)
            results["corner"][i, j] = np.where(
                states.max(1) > 0.5, 3 - states.argmax(1), 4
            )  # an index of CORNERS
            results["trained"][i, j], results["trained_2"][i, j] = np.asarray(played).T
        jax.clear_caches()  # hundreds of compiled programs take more memory mappings than a process may have
    return results | {"names": np.array(list(everyone))}


def by_model(returns: np.ndarray, played: np.ndarray) -> np.ndarray:
    """Means over the trials of each model, (trial, ...), (trial,) -> (model, ...)."""
    return np.array(
        [returns[played == model].mean(0) for model in range(played.max() + 1)]
    )


def standard_errors(results: Results) -> np.ndarray:
    """Of the mean returns of each pair, (A, A, 2), over models; over trials where nobody has learned anything before.

    Squared, it is the sum over both sides of that of their models' means, which counts what noise is in both twice.
    Where one set of models has both sides (on the diagonal) that is of each model's two means together. NaN: there is
    one trained model, of which no error can be known.
    """
    names, trials = results["names"], results["returns"].shape[2]
    errors = np.zeros((len(names), len(names), 2))
    for i, j in np.ndindex(len(names), len(names)):
        returns, played = (
            results["returns"][i, j],
            [results[key][i, j] for key in ("trained", "trained_2")],
        )
        means = [
            by_model(returns, models)
            for models, k in zip(played, (i, j))
            if names[k] in TRAINED
        ]
        means = [sum(means)] if i == j and means else means
        squares = [
            each.var(0, ddof=1) / len(each) if len(each) > 1 else np.nan
            for each in means
        ]
        errors[i, j] = np.sqrt(
            sum(squares) if means else returns.var(0, ddof=1) / trials
        )
    return errors


def symmetric_equilibria(payoffs: np.ndarray) -> list[np.ndarray]:
    """Mixtures p, (A,), that are best replies to themselves in a symmetric game, payoffs (A, A) of the row.

    By enumeration of supports of five at most: within one, all are worth the same against p, and nothing outside it
    is worth more. Of supports on which that leaves p open, as where strategies are alike, none is found.
    """
    found = []
    for support in (
        those
        for size in range(1, 6)
        for those in itertools.combinations(range(len(payoffs)), size)
    ):
        size = len(support)
        system = np.block(
            [
                [payoffs[np.ix_(support, support)], -np.ones((size, 1))],
                [np.ones(size), 0.0],
            ]
        )
        if np.linalg.matrix_rank(system) > size:
            *weights, worth = np.linalg.solve(system, np.eye(size + 1)[-1])
            p = np.zeros(len(payoffs))
            p[list(support)] = weights
            if min(weights) > 1e-9 and (payoffs @ p).max() <= worth + 1e-9:
                found.append(p)
    return found


def meta_game(results: Results) -> np.ndarray:
    """Mean return of each contestant beside each, where seats are drawn by lot, to .001, (A, A)."""
    means = results["returns"].mean(2, dtype=float)
    return ((means[..., 0] + means[..., 1].T) / 2).round(3)


def best_replies(means: np.ndarray) -> np.ndarray:
    """Which rows are best beside a column, to .001. (A, A) -> (A, A)."""
    return means > np.where(np.isfinite(means), means, -np.inf).max(0) - 1e-3


def equilibria(results: Results, most: int = 100) -> str:
    """The symmetric equilibria of the meta-game, among all and among those that learn, and what everybody gets.

    Those of the fewest contestants first, and of more than `most` their number.
    """
    payoffs, names, parts = meta_game(results), results["names"], []
    finite = np.isfinite(payoffs).all(0) & np.isfinite(payoffs).all(
        1
    )  # those that did not diverge
    for who, those in (
        ("all", finite),
        ("those that learn", finite & ~np.isin(names, list(FIXED))),
    ):
        among, words = payoffs[np.ix_(those, those)], []
        for p in symmetric_equilibria(among):
            mixture = " + ".join(
                f"{weight:.2g} {name}"
                for weight, name in zip(p, names[those])
                if weight
            )
            words.append(f"{mixture.removeprefix('1 ')} (return {p @ among @ p:.3f})")
        words[most:] = [f"{len(words) - most} more"] * (len(words) > most)
        parts.append(f"among {who}: {'; or '.join(words) or 'none'}")
    return "; ".join(parts)


@claims(*(f"tournament_{game}" for game in TOURNAMENTS))
def trained_for_the_situation(*tournaments):
    def beside(
        results, other, name
    ):  # mean return over both seats of each model, (model,)
        i, j = map(list(results["names"]).index, (name, other))
        first = by_model(results["returns"][i, j, :, 0], results["trained"][i, j])
        second = by_model(results["returns"][j, i, :, 1], results["trained_2"][j, i])
        return (first + second) / 2

    holds, words = [], []
    for results in tournaments:
        for other, name in (("naive", "meva-naive"), ("lola-taylor-stop", "meva-lola")):
            own, co_trained = (
                beside(results, other, name),
                beside(results, other, "meva"),
            )
            error = (standard_error(own) ** 2 + standard_error(co_trained) ** 2) ** 0.5
            holds.append(own.mean() - co_trained.mean() > 2 * error)
            words.append(f"{other}: {spread(own)}, not {spread(co_trained)}")
    statement = "in general we will need to train the model for the specific downstream situation"
    criterion = "beside naive learners and beside LOLA one that was trained for them gets more than one trained with "
    criterion += "itself, in the mean of both seats, by more than two standard errors, on each of three games"
    yield (
        "5.2",
        statement,
        criterion,
        f"on {', '.join(TOURNAMENTS)}, beside {'; '.join(words)}",
        holds,
    )


def draw_tournament(figure: Figure, runs: dict):
    """What the row gets beside the column, with the best reply to each column framed, and in which corner they end."""
    (results,) = runs.values()
    names, count = results["names"], len(results["names"])
    means, errors = results["returns"].mean(2)[..., 0], standard_errors(results)[..., 0]
    figure.set_size_inches(2 * WIDTH, WIDTH)
    left, right = figure.subplots(1, 2, sharey=True)
    low, high, size = *np.percentile(means, (15, 95)), min(13 / count, 1)
    image = left.imshow(means, cmap="RdYlGn", vmin=low, vmax=high, alpha=0.8)
    for (i, j), mean in np.ndenumerate(means):
        left.text(
            j,
            i,
            f"{mean:z.2f}\n",
            ha="center",
            va="center",
            fontweight="bold",
            fontsize=7 * size,
        )
        left.text(
            j, i, f"\n±{errors[i, j]:.2f}", ha="center", va="center", fontsize=5 * size
        )
    rows, columns = np.nonzero(best_replies(means))
    left.plot(
        columns,
        rows,
        "s",
        markersize=26 * size,
        markerfacecolor="none",
        markeredgecolor="black",
    )
    left.set_title(
        "return of the row (player 1) beside the column (player 2); framed: the best replies to a column"
    )
    shares = np.stack(
        [(results["corner"] == corner).mean(2) for corner in range(5)], -1
    )  # (A, A, 5)
    begins = np.cumsum(shares, -1) - shares
    rows, columns = np.indices((count, count))
    for corner, (label, color) in enumerate(CORNERS.items()):
        edges = columns - 0.45 + 0.9 * begins[..., corner]
        style = dict(left=edges.ravel(), color=color, label=label)
        right.barh(rows.ravel(), 0.9 * shares[..., corner].ravel(), 0.8, **style)
    right.set_title(
        "actions in more than half of the rounds, in the end (row's first): share of the trials"
    )
    right.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    right.set(xlim=(-0.5, count - 0.5), aspect=1)
    for axis in (left, right):
        axis.set_xticks(range(count), names, rotation=60, ha="right")
        axis.set_yticks(range(count), names)
    figure.colorbar(image, ax=left, **BAR)
    words = textwrap.fill(f"Symmetric equilibria {equilibria(results, most=3)}", 200)
    protocol = PROTOCOLS[results["config"]["protocol"]]
    figure.suptitle(
        f"Tournament on {results['config']['game']}, {protocol} protocol.\n{words}",
        fontsize=7,
    )


def table_of_tournaments(runs: dict[str, Results]) -> str:
    """Returns, medians, corners, best replies and equilibria, and the authors' cells beside ours."""
    parts = []
    for results in runs.values():
        names, game, protocol = (
            list(results["names"]),
            *map(results["config"].get, ("game", "protocol")),
        )
        errors, means, medians = (
            standard_errors(results),
            results["returns"].mean(2),
            np.median(results["returns"], 2),
        )
        corners = np.stack(
            [(results["corner"] == corner).mean(2) for corner in range(4)], -1
        )

        heading = f"`{game}`, {PROTOCOLS[protocol]} protocol: mean return of the row, player 1, beside the column, "
        ends = f"Percent of the trials that end in {', '.join([*CORNERS][:4])} "
        ends += "(more than half of the rounds, discounted):"
        matrices = {
            f"{heading}player 2; errors over models:": lambda at: (
                f"{means[at][0]:z.3f} ± {errors[at][0]:.3f}"
            ),
            "Of the column, player 2:": lambda at: (
                f"{means[at][1]:z.3f} ± {errors[at][1]:.3f}"
            ),
            "The medians, row : column:": lambda at: "{:z.3f} : {:z.3f}".format(
                *medians[at]
            ),
            ends: lambda at: " ".join(f"{100 * share:.0f}" for share in corners[at]),
        }
        for heading, words in matrices.items():
            rows = [
                [name, *(words((i, j)) for j in range(len(names)))]
                for i, name in enumerate(names)
            ]
            parts += [heading, table(("", *names), rows)]
        best = best_replies(means[..., 0]).T
        replies = [
            (name, ", ".join(results["names"][those]))
            for name, those in zip(names, best)
        ]
        parts += ["Player 1's best replies, to .001:", table(("to", "are"), replies)]
        parts.append(
            f"Symmetric equilibria of the meta-game, of five at most, seats by lot, {equilibria(results)}."
        )
        if (game, protocol) == ("ipd", "authors"):
            rows = []
            for pair_of, theirs in AUTHORS.items():
                if set(pair_of) <= set(names):
                    i, j = map(names.index, pair_of)
                    ours = " : ".join(
                        map("{:.3f} ± {:.3f}".format, means[i, j], errors[i, j])
                    )
                    far = [
                        f"{x:+.1f}"
                        for x in (means[i, j][: len(theirs)] - theirs)
                        / errors[i, j][: len(theirs)]
                    ]
                    rows.append(
                        (
                            *pair_of,
                            " : ".join(f"{x:.3f}" for x in theirs),
                            ours,
                            " : ".join(far),
                        )
                    )
            parts.append(
                "The authors' cells, ours, and the distance in our standard errors:"
            )
            parts.append(table(("row", "column", "authors", "here", "distance"), rows))
    return "\n\n".join(parts)


def tournament(game: Game, protocol: str, out: pathlib.Path) -> list[str]:
    """Hold, write, print and draw a tournament of all whose models are there. Returns the names of missing runs."""
    play = protocol_of(game.name, protocol)
    names = {
        name + seat: f"{'authors/' * (protocol == 'authors')}{name}_{game.name}{seat}"
        for name in TRAINED
        for seat in ("", "+swapped")
    }
    runs, sources, missing = find(
        [*filter(RUNS.get, names.values())], out, exactly=True
    )
    there = {name: runs[run] for name, run in names.items() if run in runs}
    path, drawing = (
        out / f"results/tournament_{game.name}.npz",
        out / f"figures/tournament_{game.name}.png",
    )
    for folder in (path.parent, drawing.parent):  # before it takes minutes
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    arrays = hold_tournament(game, contestants(game, there, play), play)
    config = {
        "game": game.name,
        "table": "tournament",
        "protocol": protocol,
        **play._asdict(),
        "models": sources,
    }
    config |= {"missing": missing}
    write_file(path, partial(np.savez_compressed, config=json.dumps(config), **arrays))
    results = {path.stem: load(path, Run("plots", game.name))}
    print(f"{table_of_tournaments(results)}\n\nwrote {path}")
    save_figure(partial(draw_tournament, runs=results), drawing, str(path))
    return missing


# Tit-for-tat: who finds it in the contribution game (Zhao et al., 2022)

FACTORS = (1.1, 1.25, 1.33, 1.4, 1.6)  # of what is given
GRID_SETTINGS = list(itertools.product((0.03, 0.1, 0.3, 1, 3), (0.05, 0.3, 2, 10)))
SEARCHES = {  # algorithm and kind of policies: steps, and for each factor those settings of which the best counts
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
    # alpha and lr times 1 - discount; of skewed tables none are known
    ("lola", "tables"): (30, [[(3, 25)]] * 5),
    ("lola", "skewed tables"): (100, [GRID_SETTINGS] * 5),
    ("lola", "networks"): (
        100,
        [[(0.4, 0.05)], [(0.4, 0.05)], [(0.4, 0.05)], [(0.3, 0.1)], [(0.12, 0.05)]],
    ),
}


def plays_tit_for_tat(game: Game, x) -> jax.Array:
    """Have both players found tit-for-tat, as Zhao et al. (2022) count it? (2, n) -> (), bool.

    Each cooperates with less than .65 after any round in which the other defected, and their mean return is more than
    .8 of the way from DD's payoff to CC's: they reciprocate, and mostly cooperate. (Theirs, where DD's payoff is 0.)
    """
    after_d = np.array([label.endswith("D") for label in game.labels])
    cc, _, _, dd = game.rules.own
    return (jax.nn.sigmoid(game.log_odds(x))[:, after_d] < 0.65).all() & (
        game.f(x).mean() - dd > 0.8 * (cc - dd)
    )


@partial(jax.jit, static_argnames=("algorithm", "kind", "steps", "trials"))
def search_with(algorithm: str, kind: str, factors, settings, steps: int, trials: int):
    """When pairs play tit-for-tat, (setting, trial, step), with these (factor, alpha, beta or lr), (setting,) each."""
    game = find_game(KINDS[kind].replace("ipd", "contribution"))
    scale = 1 / (1 - game.rules.discount)

    def of_setting(factor, alpha, other):
        own = (factor - 1, factor / 2 - 1, factor / 2, 0 * factor)

        def returns(x):
            return iterated_returns(
                game.log_odds(x), Rules(own, own).payoffs, game.rules.discount
            )

        played = game._replace(f=returns, rules=game.rules._replace(own=own, other=own))

        def step(x, _):
            if algorithm == "pola":
                distance = partial(SCRIPTS["pola"].divergence, game)
                x = SCRIPTS["pola"].pola_step(
                    returns, x, scale * alpha, other / scale, distance
                )
            else:
                x = x + scale * other * SCRIPTS["lola"].lola_gradient(
                    returns, x, scale * alpha
                )
            return x, plays_tit_for_tat(played, x)

        starts = jax.vmap(game.init)(jax.random.split(jax.random.key(0), trials))
        return jax.vmap(lambda x: jax.lax.scan(step, x, length=steps)[1])(starts)

    return jax.vmap(of_setting)(factors, *settings)


def search_for_tit_for_tat(trials: int = 100) -> dict:
    """`found`, (A, factor, 2): the shares of pairs that play it at some time, and in the end, by `names`, (A,)."""
    found = np.zeros((len(SEARCHES), len(FACTORS), 2), np.float32)
    for k, ((algorithm, kind), (steps, settings)) in enumerate(SEARCHES.items()):
        print(f"{k + 1} / {len(SEARCHES)}  {algorithm}, {kind}", flush=True)
        factors, *both = np.float32(
            [(c, *each) for c, those in zip(FACTORS, settings) for each in those]
        ).T
        when = np.asarray(search_with(algorithm, kind, factors, both, steps, trials))
        shares = np.stack([when.any(2).mean(1), when[..., -1].mean(1)], 1).reshape(
            len(FACTORS), -1, 2
        )
        best = shares[..., 0].argmax(1)  # of what is found at some time
        found[k] = shares[np.arange(len(FACTORS)), best]
    return dict(
        found=found,
        names=np.array(
            [f"{TITLES[algorithm]}, {kind}" for algorithm, kind in SEARCHES]
        ),
    )


def table_of_searches(runs: dict[str, Results]) -> str:
    """Who finds tit-for-tat in the contribution game, and who still plays it in the end, by the factor."""
    rows = []
    for results in runs.values():
        for name, shares in zip(results["names"], results["found"]):
            rows.append((name, *(f"{ever:.2f} ({end:.2f})" for ever, end in shares)))
    return table(("at some time (in the end)", *map(str, FACTORS)), rows)


def search(out: pathlib.Path):
    """See how often tit-for-tat is found, write and print it."""
    path = paths_of("tit-for-tat_contribution", out)[0]
    path.parent.mkdir(exist_ok=True)
    arrays = search_for_tit_for_tat()
    config = json.dumps(
        dict(game="contribution", table="tit-for-tat", protocol="authors")
    )
    write_file(path, partial(np.savez_compressed, config=config, **arrays))
    print(f"{table_of_searches({'': arrays})}\n\nwrote {path}")


# The tables, in Markdown, from those of their runs that are there


def table(heading, rows) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table_of_claims(runs: dict[str, Results]) -> str:
    """The paper's claims beside our numbers, and the commands of all runs."""
    rows = []
    for names, measure in CLAIMS:
        if runs.keys() >= set(names):
            files = ", ".join(f"`{name}`" for name in names)
            for section, statement, criterion, numbers, holds in measure(
                *map(runs.get, names)
            ):
                rows.append(
                    (section, statement, criterion, numbers, verdict(holds), files)
                )
    commands = [
        (f"`{name}`", f"`{command(name)}`")
        for name in RUNS
        if not name.startswith("games/")
    ]
    claims = table(("Sec.", "the paper", "it holds if", "here", "holds", "runs"), rows)
    return f"{claims}\n\n{table(('run', 'command'), commands)}"


def table_of_ablations(runs: dict[str, Results]) -> str:
    """Returns with one technique of Section 4 changed, and the Logistic Game's basins."""
    rows = []
    for name in filter(runs.get, ABLATIONS):
        label, change = ABLATIONS[name]
        own, *others = [
            runs[name][key][at(runs[name], 0.99)].mean(1).T for key in PLAYS
        ]  # (2, seed) each
        rows.append(
            (
                label,
                pair(own[:1]),
                *map(pair, others),
                f"`{flags(change)}`" if change else "",
            )
        )
    returns = table(
        ("", "self-play", "agent : best response", "agent : naive learner", "switch"),
        rows,
    )
    rows = [
        (VARIANTS[name][0], *map(spread, runs[name]["basin_fraction"]))
        for name in filter(runs.get, VARIANTS)
    ]
    shares = table(("gamma", *map(str, GAMMAS["eval_gammas"])), rows)
    heading = f"The IPD at gamma = .99, `python meva.py --game ipd {flags(SHORT)}` and a switch:"
    return "\n\n".join(
        [
            heading,
            returns,
            "The Logistic Game, the share that ends with x_1, x_2 > 0:",
            shares,
        ]
    )


def slopes(results: Results, gammas, line: np.ndarray) -> np.ndarray:
    """Slopes of player 1's meta-value by its own policy at points of the diagonal x_1 = x_2, (gamma, 2, seed, point).

    Of the model first, and then of what it stands for: the discounted mean of the returns that follow if both players
    follow the model, differentiated through 2000 steps.
    """
    meva, game = SCRIPTS["meva"], LOGISTIC
    config, models = load_models("meva", results, game)

    def of_one(gamma, params, x):
        field = partial(meva.meva_gradient, params, game, gamma=gamma, config=config)

        def step(carry, _):
            x, weight, value = carry
            return (
                x + config.lr * field(x),
                gamma * weight,
                value + (1 - gamma) * weight * game.f(x)[0],
            ), None

        value = jax.jacfwd(
            lambda x: jax.lax.scan(step, (x, 1.0, 0.0), length=2000)[0][2]
        )
        return jax.numpy.stack([field(x)[0, 0], value(x)[0, 0]])

    x = np.broadcast_to(np.float32(line)[:, None, None], (len(line), 2, 1))
    of_all = jax.vmap(jax.vmap(of_one, (None, None, 0)), (None, 0, None))
    both = jax.jit(
        lambda gammas: jax.lax.map(lambda gamma: of_all(gamma, models, x), gammas)
    )(np.float32(gammas))
    return np.moveaxis(np.asarray(both), -1, 1)


def table_of_ends(runs: dict[str, Results]) -> str:
    """Where MeVa's policies end on the Logistic Game, and where its meta-value and the true one are at their best."""
    if len(runs) < 2:
        return ""
    rows, line = [], np.linspace(3.5, 7, 15)
    near, far = runs["meva_logistic"], runs["far_logistic"]
    gammas = (0.9, 0.91, 0.92, 0.95, 0.99)
    for gamma, both in zip(gammas, slopes(near, gammas, line)):
        ends = [
            results["endpoints"][at(results, gamma)] for results in (near, far)
        ]  # (seed, 29, 29, 2) each
        shares = [(np.abs(x - B) < RADIUS).all(-1).mean((1, 2)) for x in ends]
        lost = [
            logistic_returns(np.array([B, B]))[0] - logistic_returns(x).mean((1, 2, 3))
            for x in ends
        ]
        tops = np.array(
            [[np.interp(0, -slope, line) for slope in each] for each in both]
        )  # (2, seed), where it is 0
        cells = map(spread, [near["basin_fraction"][at(near, gamma)], *shares, *lost])
        rows.append((f"{gamma:g}", *cells, *(spread(x, digits=2) for x in tops)))
    heading = ("gamma", "in B's quadrant", "within .5 of B", "after 2000 steps", "return lost to B", "after 2000 steps",
               "the model's best x", "the true one's")  # fmt: skip
    return table(heading, rows)


def table_of_devices(runs: dict[str, Results]) -> str:
    """Returns on the IPD from the same seeds on a CPU and on a GPU, and by how much those of a single pair differ."""
    rows = []
    for script, settings in DEVICES.items():
        cpu, gpu = runs.get(f"{script}_ipd"), runs.get(f"{script}_gpu_ipd")
        for setting in settings if cpu and gpu else ():
            cells = []
            for key in RETURNS:
                ours, theirs = (
                    results[key][at(results, setting)] for results in (cpu, gpu)
                )  # (seed, pair, 2)
                ours = ours[: len(theirs)]
                off = np.abs(ours - theirs).max()
                cells.append(
                    f"{ours[..., 0].mean():.4f}, {theirs[..., 0].mean():.4f} ({off:.0e})"
                )
            rows.append((labelled(script, cpu, at(cpu, setting)), *cells))
    parts = [table(("CPU, GPU (largest difference)", *RETURNS.values()), rows)]
    if cpu and gpu:  # MeVa, the last one
        off = np.abs(gpu["loss"] / cpu["loss"] - 1).max(0)
        words = ", ".join(
            f"{off[loop - 1]:.0e} at {loop}" for loop in (1, 50, 100, 200, 500)
        )
        parts.append(
            f"Losses of the models of MeVa differ, relatively and at most, by {words} outer loops."
        )
    return "\n\n".join(parts)


def table_of_mfos(runs: dict[str, Results]) -> str:
    """M-FOS on the IPD beside each opponent of its training: mean returns over meta-episodes, of each model."""
    rows = []
    for results in runs.values():
        each = results["episode_returns"].mean((0, 2, 3))  # (seed, 2)
        words = ["{:.3f} : {:.3f}".format(*returns) for returns in each]
        rows.append(
            (
                results["config"]["opponent"],
                str(results["config"]["batch_size"]),
                "; ".join(words),
            )
        )
    return table(("opponent", "starts", "agent : other, of each model"), rows)


def cell(results: Results, key: str, i: int, digits: int = 3) -> str:
    """Returns over the policy pairs of all seeds, the agent's first; by seats, where the game is not symmetric."""
    names = [key] + [f"{key}_2"] * (f"{key}_2" in results)
    return "<br>".join(
        pair(results[name][i].reshape(-1, 2).T, digits) for name in names
    )


def table_of_returns(runs: dict[str, Results]) -> str:
    """The Iterated Prisoner's Dilemma in numbers, and MeVa at full settings on iterated matching pennies."""
    settings = {"naive_ipd": (2,), "lola_ipd": (2, 5, 10, 30, 100), "hola_ipd": (5, 10, 30, 100),
                "cola_ipd": (1, 2, 5, 10), "meva_ipd": (0, 0.5, 0.9, 0.95, 0.99), "meva_imp": (0.99,)}  # fmt: skip
    rows = []
    for name, results in runs.items():
        for i in (at(results, setting) for setting in settings[name]):
            own = pair(results["self_play"][i].reshape(-1, 2).T[:1])
            others = [cell(results, key, i) for key in list(RETURNS)[1:]]
            rows.append(
                (
                    f"`{RUNS[name].game}`",
                    labelled(RUNS[name].script, results, i),
                    own,
                    *others,
                )
            )
    return table(("", "", "self-play", *BESIDE), rows)


def reciprocal(results: Results, i: int) -> np.ndarray:
    """Which models of the IPD reciprocate at the i-th setting, (seed,).

    They get more than -1.15 with their like, are left more than -1.35 by an exact best response, and cooperate after CD
    less than half as often as after CC.
    """
    after_cd, after_cc = chances(results, i)[[2, 4]]
    own, left = (
        results[key][i, ..., 0].mean(1) for key in ("self_play", "exact_best_response")
    )
    return (own > -1.15) & (left > -1.35) & (after_cd < after_cc / 2)


def table_of_networks(runs: dict[str, Results]) -> str:
    """The IPD between policies of each kind: each rule at its best setting in self-play, and MeVa at two settings."""
    rows = []
    for kind, (name, label) in itertools.product(KINDS, RULES.items()):
        results = runs.get(OF_KINDS[kind, name])
        if results:
            settings = [best(results)] + [
                at(results, gamma) for gamma in (0.95, 0.99) if name == "meva"
            ]
            for i in dict.fromkeys(settings):
                own, *others = [pair(results[key][i].mean(1).T) for key in RETURNS]
                setting = (
                    f", {'gamma' if name == 'meva' else 'alpha'} = {results['sweep'][i]:g}"
                    * (name != "naive")
                )
                after = " and ".join(map(spread, chances(results, i)[[2, 4]]))
                count = (
                    f"{reciprocal(results, i).sum()} of {len(results['self_play'][i])}"
                )
                rows.append(
                    (kind, label + setting, own.split(" : ")[0], *others, after, count)
                )
    return table(
        ("policies", "", "self-play", *BESIDE, "P(C) after CD and CC", "reciprocal"),
        rows,
    )


def table_of_consistency(runs: dict[str, Results]) -> str:
    """COLA's consistency loss on held-out policies of the Logistic Game, that of HOLA(n), and cosines of the two."""
    rows = []
    for results in runs.values():
        for i, alpha in enumerate(results["sweep"]):
            losses = [
                results["consistency"][i].mean(),
                *results["hola_consistency"][i].mean((0, 2)),
            ]
            cosines = results["hola_cosine"][i].mean((0, 2))
            rows.append(
                (
                    f"{alpha:g}",
                    *(f"{loss:.2g}" for loss in losses),
                    *(f"{cosine:.3f}" for cosine in cosines),
                )
            )
    return table(
        (
            "alpha",
            "COLA",
            "HOLA(0)",
            "LOLA",
            "HOLA(2)",
            *(f"cosine to HOLA({n})" for n in range(4)),
        ),
        rows,
    )


def table_of_games(runs: dict[str, Results]) -> str:
    """Every algorithm on every game, from small runs: at gamma = .99, or at the largest look-ahead up to 10."""
    tables = []
    for key, (heading, other) in PLAYS.items():
        rows = {game: [f"`{game}`"] for game in GAMES}
        for game, script in itertools.product(GAMES, TITLES):
            results = runs.get(f"games/{script}_{game}")
            if results:
                i = np.where(results["sweep"] <= 10, results["sweep"], -1).argmax()
                i = at(results, 0.99, exactly=False) if script == "meva" else i
            rows[game].append(cell(results, key, i, digits=2) if results else "")
        there = [cells for cells in rows.values() if any(cells[1:])]
        tables += [
            f"{heading.capitalize()}, agent : {other}:",
            table(("", *TITLES.values()), there),
        ]
    return "\n\n".join(tables)


def table_of_samples(runs: dict[str, Results]) -> str:
    """LOLA, which follows estimates, and MeVa, trained on them and evaluated with exact gradients, on the IPD."""
    rows = []
    for name, results in runs.items():
        script, episodes = next(key for key, run in SAMPLES.items() if run == name)
        i = at(results, SAMPLED[script])
        cells = [cell(results, key, i) for key in RETURNS]
        seeds = ", ".join(
            f"{value:.2f}" for value in results["self_play"][i].mean((1, 2))
        )
        rows.append(
            (labelled(script, results, i), str(episodes or "exact"), seeds, *cells)
        )
    return table(
        ("", "episodes", "self-play of each seed", "agent : other", *BESIDE), rows
    )


# The command line

FIGURES = {  # how each is drawn, and from which runs
    "fig1": (draw_fig1, ()),
    "fig2a": (partial(draw_fig2, basins=False), ROWS),
    "fig2b": (partial(draw_fig2, basins=True), ROWS),
    "fig3": (draw_fig3, ("meva_ipd", "lola_ipd")),
    "networks": (draw_networks, OF_KINDS.values()),
    "samples": (draw_samples, SAMPLES.values()),
    "hills": (partial(draw_fig2, basins=True, rows=HILL_ROWS), HILL_ROWS),
    "hill_paths": (partial(draw_fig2, basins=False, rows=HILL_ROWS), HILL_ROWS),
    "basins": (draw_basins, ("naive_logistic", *ROWS)),
    "policies": (draw_policies, ("meva_ipd", "lola_ipd")),
    "landscape": (partial(draw_steps, of_meva=True), ("meva_logistic",)),
    "fields": (partial(draw_steps, of_meva=False), ("naive_logistic", *ROWS)),
    "ablations": (
        draw_ablations,
        (*ABLATIONS, "meva_logistic", "semi_gradient_logistic"),
    ),
    **{
        f"tournament_{game}": (draw_tournament, (f"tournament_{game}",))
        for game in TOURNAMENTS
    },
}
TABLES = {
    "paper": (
        table_of_claims,
        dict.fromkeys(name for names, _ in CLAIMS for name in names),
    ),
    "ablations": (table_of_ablations, (*ABLATIONS, *VARIANTS)),
    "ends": (table_of_ends, ("meva_logistic", "far_logistic")),
    "returns": (
        table_of_returns,
        ("naive_ipd", "lola_ipd", "hola_ipd", "cola_ipd", "meva_ipd", "meva_imp"),
    ),
    "networks": (table_of_networks, OF_KINDS.values()),
    "samples": (table_of_samples, SAMPLES.values()),
    "consistency": (table_of_consistency, ("cola_logistic",)),
    "games": (table_of_games, [name for name in RUNS if name.startswith("games/")]),
    "tournament": (
        table_of_tournaments,
        [f"tournament_{game}" for game in TOURNAMENTS],
    ),
    "tit-for-tat": (table_of_searches, ["tit-for-tat_contribution"]),
    "mfos": (table_of_mfos, MFOS),
    "devices": (
        table_of_devices,
        [f"{script}_{name}" for script in DEVICES for name in ("ipd", "gpu_ipd")],
    ),
}


def draw_figure(name: str, out: pathlib.Path, extension: str) -> list[str]:
    """Draw a figure if its runs are there. Returns the names of those that are missing."""
    draw, names = FIGURES[name]
    runs, sources, missing = find(names, out)
    if not missing:
        save_figure(
            partial(draw, runs=runs), out / f"figures/{name}.{extension}", sources
        )
    return missing


def save_figure(draw, path: pathlib.Path, sources: str):
    path.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure)
        write_file(path, partial(figure.savefig, format=path.suffix[1:], dpi=200))
    print(f"wrote {path}" + f", from {sources}" * bool(sources))


def report(path: pathlib.Path, out: pathlib.Path) -> tuple[str, list[str]]:
    """The text of this file with all tables made anew from results/paper/, and the names of runs missing there."""
    text, lacking = path.read_text("utf-8"), []
    for name, (make, names) in TABLES.items():
        runs, _, missing = find(names, out, exactly=True, own=False)
        made = make(runs) + f"\n\nMissing here: {', '.join(missing)}." * bool(missing)
        frame = re.compile(f"(<!-- table {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = frame.sub(lambda marks: f"{marks[1]}\n{made}\n{marks[2]}", text)
        lacking += missing
    return text, lacking


def work(args: argparse.Namespace) -> dict[str, list[str]]:
    """Do what the command line asks for. Returns the names of missing runs, by what they are missing for."""
    if args.table == "tournament":
        return {
            args.table: tournament(
                GAMES[args.game or "ipd"], args.protocol or "paper", args.out
            )
        }
    if args.table == "tit-for-tat":
        search(args.out)
        return {}
    if args.table:
        make, names = TABLES[args.table]
        runs, sources, missing = find(names, args.out, exactly=True)
        print(f"From {sources or 'no run'}; ± standard errors.\n\n{make(runs)}")
        return {args.table: missing}
    if args.report:
        path = args.out / "results/paper/README.md"
        text, missing = report(path, args.out)
        write_file(path, lambda part: part.write_text(text, "utf-8"))
        print(f"wrote {path}")
        return {"the report": missing}
    names = [args.figure] if args.figure else FIGURES
    return {name: draw_figure(name, args.out, args.format or "png") for name in names}


def main(argv=None):
    layout = dict(
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser = argparse.ArgumentParser(description=__doc__, **layout)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--figure",
        choices=FIGURES,
        metavar="NAME",
        help=f"one of {', '.join(FIGURES)} (default: all)",
    )
    tables = dict(choices=TABLES, nargs="?", const="paper", metavar="NAME")
    what.add_argument(
        "--table",
        **tables,
        help=f"print a table instead: {', '.join(TABLES)} (default: paper)",
    )
    what.add_argument(
        "--report",
        action="store_true",
        help="write the tables into results/paper/README.md instead",
    )
    games = [name for name, game in GAMES.items() if game.iterated]
    parser.add_argument(
        "--game", choices=games, help="of --table tournament (default: ipd)"
    )
    parser.add_argument(
        "--protocol",
        choices=("paper", "authors"),
        help="of --table tournament (default: paper)",
    )
    parser.add_argument(
        "--format", choices=("png", "pdf"), help="of figures (default: png)"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=".",
        help="where results/ and figures/ are (default: .)",
    )
    args = parser.parse_args(argv)
    if args.format and (args.table or args.report):
        parser.error("argument --format: takes figures, no tables")
    searching = (args.table, args.game, args.protocol) == (
        "tit-for-tat",
        "contribution",
        None,
    )
    if (args.game or args.protocol) and args.table != "tournament" and not searching:
        parser.error("argument --game, --protocol: take --table tournament beside them")
    if args.protocol == "authors" and args.game not in (None, *TOURNAMENTS):
        parser.error(
            f"argument --protocol: takes --game {', '.join(TOURNAMENTS)} beside authors, not {args.game}"
        )
    if not args.out.is_dir():
        parser.error(f"argument --out: takes a folder that is there, not {args.out}")
    missing = {}
    try:
        missing = work(args)
        for name in dict.fromkeys(sum(missing.values(), [])):  # each once
            waiting = ", ".join(
                what for what, names in missing.items() if name in names
            )
            print(f"missing for {waiting}: {command(name, args.out)}")
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    except (Broken, OSError) as error:
        parser.exit(
            2,
            f"{parser.prog}: error: argument --out: takes a writable folder with whole results ({error})\n",
        )
    if any(missing.values()) and (args.figure or args.table or args.report):
        parser.exit(1)


if __name__ == "__main__":
    main()
