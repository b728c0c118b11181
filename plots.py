"""The paper's figures and tables, from the results of runs: its claims side by side with our numbers. Trains nothing.

    python plots.py                    every figure that the runs allow, into figures/, and what makes the others
    python plots.py --figure fig3      one of them; --format pdf for papers
    python plots.py --table            the paper's claims, mostly of Section 5, beside our numbers
    python plots.py --table ablations  what each technique of Section 4 is good for
    python plots.py --table games --out quick    every algorithm on every game, from runs with --out quick

Runs are looked for in results/ and then in results/paper/, where the repository keeps its own; figures and tables say
which they are from. Tables take only runs of the very settings that they name. What is missing is named, with the
command that makes it.
"""

import argparse
import json
import os
import pathlib
import shlex
import typing
import zipfile
import zlib
from collections.abc import Callable
from functools import partial

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from games import GAMES, simultaneous_gradient

COLORS = {"naive": "tab:gray", "lola": "tab:orange", "hola": "tab:green", "cola": "tab:purple", "meva": "tab:blue"}
TITLES = {"naive": "naive", "lola": "LOLA", "hola": "HOLA", "cola": "COLA", "meva": "MeVa"}
SYMBOLS = {"lola": r"$\alpha$", "hola": r"$\alpha$", "cola": r"$\alpha$", "meva": r"$\gamma$"}  # what is swept
PLAYS = {  # what is played, and who the second player is
    "self_play": ("self-play", "other agent"),
    "best_response": ("against a best response", "best response"),
    "versus_naive": ("with a naive learner", "naive learner"),
}
A, B = -5.0307, 5.0307  # the Logistic Game's stable fixed points, (A, A) and (B, B)
LOGISTIC, IPD = GAMES["logistic"].f, GAMES["ipd"].f


# The runs


class Run(typing.NamedTuple):
    """What a figure or a table needs: a script on a game, with flags."""

    script: str
    game: str
    flags: str = ""


SHORT = "--outer-steps 300 --num-seeds 3 --eval-gammas 0.9 0.95 0.99"  # 300 of the paper's 2000 outer loops
GAMMAS = "--eval-gammas 0 0.5 0.8 0.85 0.9 0.91 0.92 0.95 0.99"
ABLATIONS = {  # the name of the run, what figure and table say, and the switch
    "all_techniques": ("all techniques", ""),
    "no_exploration": ("no exploration", "--flip-prob 0"),
    "no_target_network": ("no target network", "--target-inertia 0"),
    "lambda_0": (r"$\lambda$ = 0", "--bootstrap 0"),
    "lambda_1": (r"$\lambda$ = 1", "--bootstrap 1"),
    "no_quantiles": ("no quantiles", "--quantiles 1"),
    "fixed_gamma": (r"fixed $\gamma$ = .99", "--fixed-gamma 0.99"),
    "form_v": ("form V", "--form V"),
}
RUNS = {
    "naive_logistic": Run("naive", "logistic"),
    "lola_logistic": Run("lola", "logistic"),
    "hola_logistic": Run("hola", "logistic", "--order 2"),
    "hola3_logistic": Run("hola", "logistic", "--order 3"),
    "cola_logistic": Run("cola", "logistic", "--num-seeds 8"),
    "meva_logistic": Run("meva", "logistic", f"--num-seeds 8 {GAMMAS}"),
    "semi_gradient_logistic": Run("meva", "logistic", f"--semi-gradient --num-seeds 8 {GAMMAS}"),
    "naive_ipd": Run("naive", "ipd", "--num-seeds 8"),
    "lola_ipd": Run("lola", "ipd", "--num-seeds 8"),
    "meva_ipd": Run("meva", "ipd", "--num-seeds 8"),
} | {name: Run("meva", "ipd", f"{SHORT} {switch}".rstrip()) for name, (_, switch) in ABLATIONS.items()}


class Broken(Exception):
    """A file that is not the results of a run, or not of one that will do."""


def folder_of(name: str, out: pathlib.Path) -> pathlib.Path:
    """The --out of a run. One whose files would replace another's has a folder of its own."""
    return out if name == "{}_{}".format(*RUNS[name]) else out / "results/variants" / name


def command(name: str, out: pathlib.Path = pathlib.Path(".")) -> str:
    """The command that makes a run."""
    script, game, flags = RUNS[name]
    folder = folder_of(name, out)
    words = "" if folder == pathlib.Path(".") else f"--out {shlex.quote(str(folder))}"
    return " ".join(filter(None, [f"python {script}.py --game {game}", flags, words]))


def paths_of(name: str, out: pathlib.Path) -> list[pathlib.Path]:
    """Where a run's results may be: what its command writes, and the copy that is kept in results/paper/."""
    script, game, _ = RUNS[name]
    return [folder_of(name, out) / f"results/{script}_{game}.npz", out / f"results/paper/{name}.npz"]


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a run, its configuration as a dict. Raises Broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            results = dict(file)
        return results | {"config": json.loads(str(results["config"]))}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise Broken(f"{path} is not the results of a run ({error})") from None


def made_by(run: Run, results: dict) -> bool:
    """Does the configuration of the results have what the flags of the run say?"""

    def number(word):
        try:
            return float(word)
        except ValueError:
            return word

    flags = [words.split() for words in run.flags.split("--")[1:]]
    config = results["config"]
    had = [np.ravel(config.get(name.replace("-", "_"))).tolist() for name, *_ in flags]
    return had == [[number(value) for value in values] or [True] for _, *values in flags]


def find(names, out: pathlib.Path, exactly=False) -> tuple[dict[str, dict], list[str], list[str]]:
    """The results of these runs by name, where each is from, and the commands of those that are missing.

    With `exactly`, only those that were made with the flags of the run.
    """
    runs, sources = {}, []
    for name in names:
        for path in filter(pathlib.Path.exists, paths_of(name, out)):
            results = load(path)
            if name not in runs and (made_by(RUNS[name], results) or not exactly):
                runs[name] = results
                settings = results["config"]
                loops = f" of {settings['outer_steps']} outer loops" if "outer_steps" in settings else ""
                sources.append(f"{path} ({settings['num_seeds']} seeds{loops})")
    return runs, sources, [command(name, out) for name in names if name not in runs]


def nearest(results: dict, setting: float) -> int:
    """The index of the setting nearest to this one in the sweep of a run."""
    return int(np.abs(results["sweep"] - setting).argmin())


def at(results: dict, setting: float) -> int:
    """The index of this very setting in the sweep of a run. Raises Broken."""
    i = nearest(results, setting)
    if not np.isclose(results["sweep"][i], setting, atol=1e-6):
        raise Broken(f"a run has no setting {setting:g} in its sweep")
    return i


def standard_error(samples: np.ndarray) -> float:
    return samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else np.nan


def share_at_b(results: dict, setting: float) -> np.ndarray:
    """Share of the grid that ends with both coordinates above 0, B's quadrant, (seed,)."""
    return results["basin_fraction"][at(results, setting)]


def mean_returns(results: dict, key: str, setting: float) -> np.ndarray:
    """Returns, the agent's first, means over policy pairs, (2, seed)."""
    return results[key][at(results, setting)].mean(1).T


def returns_on(f, x: np.ndarray) -> np.ndarray:
    """Returns on a planar game at joint policies (..., 2) -> (..., 2)."""
    return np.asarray(jax.vmap(f)(x.reshape(-1, 2, 1))).reshape(x.shape)


# The figures. Each function draws on an empty figure from the results of its runs, by name.

WIDTH = 6.75  # inches: two columns of a paper
STYLE = {
    "font.size": 7, "axes.titlesize": 7, "axes.linewidth": 0.6, "legend.fontsize": 6, "lines.linewidth": 1,
    "xtick.labelsize": 6, "ytick.labelsize": 6, "pdf.fonttype": 42,
}  # fmt: skip
PLANE = dict(aspect="equal", xlim=(-10, 10), ylim=(-10, 10), xticks=(-10, -5, 0, 5, 10), yticks=(-10, -5, 0, 5, 10))
CELLS = dict(origin="lower", extent=(-290 / 28, 290 / 28) * 2)  # each grid point in the middle of its cell
BAR = dict(shrink=0.8, pad=0.01)  # a color bar beside its panels
LEVELS = np.arange(-5, 4.1, 0.5)  # of return
ROWS = {  # of Fig. 2: a run, the name of its algorithm, and four settings
    "lola_logistic": ("LOLA", (0, 1, 5, 10)),
    "hola_logistic": ("HOLA(2)", (0, 1, 5, 10)),
    "cola_logistic": ("COLA", (0, 1, 5, 10)),
    "meva_logistic": ("MeVa", (0.8, 0.85, 0.9, 0.95)),
}


def script_of(name: str) -> str:
    return RUNS[name].script


def labelled(name: str, results: dict, i: int) -> str:
    """A run and its i-th setting, for a title."""
    script = script_of(name)
    label = ROWS[name][0] if name in ROWS else TITLES[script]
    return f"{label}, {SYMBOLS[script]} = {results['sweep'][i]:g}" if script in SYMBOLS else label


def plane(figure: Figure, rows: int, columns: int, height: float):
    """Panels on the plane of joint policies, all with the same range, (rows, columns)."""
    figure.set_size_inches(WIDTH, height)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set(**PLANE)
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$")
    for axis in axes[:, 0]:
        axis.set_ylabel("$x_2$")
    return axes


def draw_fig1(figure: Figure, runs: dict):
    """Contours of both players' returns in the Logistic Game, with A and B (Fig. 1)."""
    line = np.linspace(-10, 10, 201)
    values = returns_on(LOGISTIC, np.stack(np.meshgrid(line, line), -1).astype(np.float32))  # (x_2, x_1, 2)
    axes = plane(figure, 1, 2, 3.0)[0]
    for player, axis in enumerate(axes):
        image = axis.contourf(line, line, values[..., player], levels=LEVELS, extend="both")
        axis.contour(line, line, values[..., player], levels=LEVELS, colors="black", linewidths=0.2, linestyles="-")
        for where, name in ((A, "A"), (B, "B")):
            circle = dict(boxstyle="circle,pad=0.15", facecolor="white", linewidth=0.4)
            axis.text(where, where, name, ha="center", va="center", fontweight="bold", bbox=circle)
        axis.set_title(f"$f_{player + 1}(x)$")
    figure.colorbar(image, ax=axes, label="return", ticks=range(-5, 5), **BAR)


def fig2_panels(figure: Figure, runs: dict):
    """The titled panels of Fig. 2, 4 algorithms x 4 settings: (axis, a run's name and results, the setting's index)."""
    panels = []
    for row, (name, (_, settings)) in zip(plane(figure, 4, 4, WIDTH + 0.2), ROWS.items()):
        for axis, setting in zip(row, settings):
            i = nearest(runs[name], setting)
            axis.set_title(labelled(name, runs[name], i))
            panels.append((axis, name, runs[name], i))
    return panels


def draw_fig2a(figure: Figure, runs: dict):
    """Trajectories from random policies of the first seed, each to the black point at its end (Fig. 2a)."""
    for axis, name, results, i in fig2_panels(figure, runs):
        for path in results["trajectories"][i, 0]:  # (time, 2)
            axis.plot(*path.T, color=COLORS[script_of(name)], linewidth=0.5)
            axis.plot(*path[-1], "o", color="black", markersize=1.5)


def draw_fig2b(figure: Figure, runs: dict):
    """Basins of attraction (Fig. 2b): white ends with x_1, x_2 > 0, gray with some of the models."""
    for axis, _, results, i in fig2_panels(figure, runs):
        in_b = (results["endpoints"][i] > 0).all(-1).mean(0)  # (29, 29)
        axis.imshow(in_b, cmap="gray", vmin=0, vmax=1, **CELLS)
        axis.set(title=f"{axis.get_title()}: {in_b.mean():.1%}", **PLANE)


def draw_fig3(figure: Figure, runs: dict):
    """Returns on the IPD, MeVa above, LOLA below (Fig. 3): means and standard errors over policy pairs, as there.

    The thin lines are the agent's with each seed.
    """
    figure.set_size_inches(WIDTH, 4.2)
    axes = figure.subplots(2, 3, sharey=True)
    for row, name in zip(axes, ("meva_ipd", "lola_ipd")):
        results, script = runs[name], script_of(name)
        ticks = np.arange(len(results["sweep"]))
        for axis, (key, (heading, other)) in zip(row, PLAYS.items()):
            pairs = results[key].reshape(len(ticks), -1, 2)
            axis.plot(ticks, results[key].mean(2)[..., 0], color=COLORS[script], linewidth=0.4, alpha=0.5)
            players = (TITLES[script], COLORS[script], "-"), (other, "black", "--")
            for player, (label, color, style) in enumerate(players):
                errors = [standard_error(samples) for samples in pairs[..., player]]
                line = dict(color=color, linestyle=style, capsize=1.5, label=label)
                axis.errorbar(ticks, pairs[..., player].mean(1), errors, **line)
            axis.set(title=heading, xlabel=SYMBOLS[script], ylim=(-2.15, -0.45))
            axis.set_xticks(ticks, [f"{setting:g}" for setting in results["sweep"]], rotation=60)
            axis.legend()
        row[0].set_ylabel("expected return per round")


def draw_shares(axis, ticks: np.ndarray, results: dict, style: str, color: str, label: str):
    """The share of the grid in B's quadrant at each setting: the mean, and every model as a point."""
    shares = results["basin_fraction"]  # (S, seed)
    axis.plot(ticks, shares, ".", markersize=2, color=color, alpha=0.6)
    axis.plot(ticks, shares.mean(1), style, markersize=2.5, color=color, label=label)


def draw_basins(figure: Figure, runs: dict):
    """Share of the surveyed area in the basin of B, against alpha (left) or gamma (right), with every model a point."""
    figure.set_size_inches(WIDTH / 2, 2.6)
    axis = figure.subplots()
    *ahead, meva = ROWS
    alphas = np.unique(np.concatenate([runs[name]["sweep"] for name in ahead]))
    gammas = runs[meva]["sweep"]
    at_gammas = len(alphas) + np.arange(len(gammas))
    for name in ahead:
        ticks = np.searchsorted(alphas, runs[name]["sweep"])
        draw_shares(axis, ticks, runs[name], "o-", COLORS[script_of(name)], ROWS[name][0])
    draw_shares(axis, at_gammas, runs[meva], "o-", COLORS["meva"], ROWS[meva][0])
    naive = runs["naive_logistic"]["basin_fraction"].mean()
    axis.axhline(naive, color=COLORS["naive"], linestyle="--", label="naive", zorder=0)
    axis.axvline(len(alphas) - 0.5, color="black", linewidth=0.6)
    axis.set_xticks([*range(len(alphas)), *at_gammas], [f"{x:g}" for x in (*alphas, *gammas)], rotation=60)
    axis.set(xlabel=r"$\alpha$ (LOLA, HOLA, COLA)  |  $\gamma$ (MeVa)", ylabel="share that ends with $x_1, x_2 > 0$")
    axis.legend(loc="upper left")


STRATEGIES = {0: "all D", 17: "grim", 19: "tit-for-tat", 25: "win-stay", 31: "all C"}  # as binary numbers, C being 1


def strategies(policies: np.ndarray) -> np.ndarray:
    """The nearest deterministic strategy of each policy, as a number: its five bits are init, DD, CD, DC, CC."""
    return (policies > 0) @ np.array([16, 8, 4, 2, 1])


def draw_policies(figure: Figure, runs: dict):
    """How often which of the 32 deterministic strategies meet, after rounding; tit-for-tat with itself is marked."""
    figure.set_size_inches(WIDTH, 4.6)
    keys = dict(zip(("policies", "response_policies", "versus_naive_policies"), PLAYS.values()))
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, name, setting in zip(axes, ("meva_ipd", "lola_ipd"), (0.99, 10)):
        results = runs[name]
        i = nearest(results, setting)
        for axis, (key, (heading, other)) in zip(row, keys.items()):
            agent, opponent = np.moveaxis(strategies(results[key][i].reshape(-1, 2, 5)), -1, 0)
            counts = np.zeros((32, 32))
            np.add.at(counts, (opponent, agent), 1)
            shares = np.where(counts, counts / counts.sum(), np.nan)
            image = axis.imshow(shares, origin="lower", cmap="plasma_r", norm="log", vmin=3e-4, vmax=1)
            axis.plot(19, 19, "s", markersize=6, markerfacecolor="none", markeredgecolor="red", markeredgewidth=0.7)
            axis.set(title=f"{labelled(name, results, i)}\n{heading}", ylabel=other)
            axis.grid(linewidth=0.2)
    axes[0, 0].set_yticks(list(STRATEGIES), STRATEGIES.values())
    for axis in axes[-1]:
        axis.set_xticks(list(STRATEGIES), STRATEGIES.values(), rotation=90)
        axis.set_xlabel("agent")
    figure.colorbar(image, ax=axes, label="share of the policy pairs", **BAR)


def draw_arrows(axis, results: dict, i: int, color: str):
    """The directions of the first seed's steps on every other grid point."""
    points, steps = results["grid"][::2, ::2], results["field"][i, 0, ::2, ::2]
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    directions = steps / np.where(length > 0, length, 1)
    style = dict(pivot="mid", scale=20, width=0.006, headwidth=4)
    axis.quiver(*np.moveaxis(points, -1, 0), *np.moveaxis(directions, -1, 0), color=color, **style)


def draw_landscape(figure: Figure, runs: dict):
    """The learned meta-value of player 1 (normalised) on the Logistic Game, and where policies go, first seed."""
    results = runs["meva_logistic"]
    gammas = (0, 0.8, 0.9, 0.95, 0.99)
    axes = plane(figure, 1, len(gammas), 1.6)[0]
    for axis, gamma in zip(axes, gammas):
        i = nearest(results, gamma)
        x_1, x_2 = np.moveaxis(results["grid"], -1, 0)
        image = axis.contourf(x_1, x_2, results["values"][i, 0, ..., 0], levels=LEVELS, extend="both")
        draw_arrows(axis, results, i, "white")
        axis.set_title(labelled("meva_logistic", results, i))
    figure.colorbar(image, ax=axes, label=r"meta-value $\hat V_1$", ticks=range(-5, 5), **BAR)


def draw_fields(figure: Figure, runs: dict):
    """Where each algorithm goes from where, and how far, on the Logistic Game; first seed."""
    settings = {"naive_logistic": 1} | {name: settings[2] for name, (_, settings) in ROWS.items()}
    axes = plane(figure, 1, len(settings), 1.6)[0]
    for axis, (name, setting) in zip(axes, settings.items()):
        results, i = runs[name], nearest(runs[name], setting)
        length = np.linalg.norm(results["field"][i, 0], axis=-1)
        image = axis.imshow(np.maximum(length, 1e-12), norm="log", vmin=1e-3, vmax=10, cmap="Blues", **CELLS)
        draw_arrows(axis, results, i, "black")
        axis.set(title=labelled(name, results, i), **PLANE)
    figure.colorbar(image, ax=axes, label="length of a step", **BAR)


def draw_ablations(figure: Figure, runs: dict):
    """The agent's returns on the IPD with one technique of Section 4 changed: models, mean and standard error."""
    figure.set_size_inches(WIDTH, 2.6)
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.2))
    rows = np.arange(len(ABLATIONS))[::-1]
    for axis, (key, (heading, _)) in zip(axes, PLAYS.items()):
        agents = [results[key][nearest(results, 0.99)].mean(1)[:, 0] for results in map(runs.get, ABLATIONS)]  # (seed,)
        for row, agent in zip(rows, agents):
            axis.plot(agent, np.full(len(agent), row), ".", color=COLORS["meva"], markersize=3, alpha=0.6)
            axis.errorbar(agent.mean(), row, xerr=standard_error(agent), fmt="|", color="black", capsize=2)
        axis.axvline(agents[0].mean(), color="gray", linewidth=0.5)
        axis.set(title=heading, xlabel="agent's return", xlim=(-2.05, -0.9))
        axis.set_yticks(rows, [label for label, _ in ABLATIONS.values()] if axis is axes[0] else [""] * len(rows))
    both = ("meva_logistic", "both sides", "-", COLORS["meva"])
    for name, label, style, color in (both, ("semi_gradient_logistic", "semi-gradient", "--", "black")):
        ticks = np.arange(len(runs[name]["sweep"]))
        draw_shares(axes[3], ticks, runs[name], style, color, label)
        axes[3].set_xticks(ticks, [f"{gamma:g}" for gamma in runs[name]["sweep"]], rotation=60)
    axes[3].set(title="Logistic Game, form V", xlabel=r"$\gamma$", ylabel="share that ends with $x_1, x_2 > 0$")
    axes[3].set_ylim(0.3, 1.03)
    axes[3].legend(loc="lower left")
    loops, seeds = (runs["all_techniques"]["config"][key] for key in ("outer_steps", "num_seeds"))
    figure.suptitle(rf"IPD, $\gamma$ = .99: {loops} outer loops, {seeds} seeds", fontsize=7)


# The tables, in Markdown


def table_row(*cells) -> str:
    return f"| {' | '.join(cells)} |"


def header(*cells) -> str:
    return f"{table_row(*cells)}\n|{'---|' * len(cells)}"


def spread(samples: np.ndarray) -> str:
    """Mean and standard error over seeds, (seed,)."""
    return f"{samples.mean():.3f}" + f" ± {standard_error(samples):.3f}" * (len(samples) > 1)


def pair(results: dict, key: str, setting: float) -> str:
    """The agent's and the other's returns."""
    return " : ".join(map(spread, mean_returns(results, key, setting)))


def listed(results: dict, key: str, settings) -> str:
    return "; ".join(f"{pair(results, key, setting)} at {setting:g}" for setting in settings)


class Claim(typing.NamedTuple):
    """A sentence of the paper that can be measured, mostly of Section 5, and how: on which runs, and what they say."""

    section: str
    statement: str
    runs: tuple[str, ...]
    measure: Callable[..., tuple[str, bool]]  # the results of each run -> numbers, holds


CLAIMS = []  # filled by `claim`, in the order of the text


def claim(section: str, statement: str, *runs: str):
    """Make a claim of the function below it, which takes the results of these runs."""
    return lambda measure: CLAIMS.append(Claim(section, statement, runs, measure)) or measure


@claim("5.1", "two stable fixed points, A and B; the origin is a saddle point")
def fixed_points():
    gradient = partial(simultaneous_gradient, LOGISTIC)
    points = np.array([[[A], [A]], [[B], [B]], [[0], [0]]], np.float32)  # (point, 2, 1)
    length = np.linalg.norm(jax.vmap(gradient)(points), axis=(1, 2))
    rates = np.linalg.eigvals(np.asarray(jax.vmap(jax.jacobian(gradient))(points)).reshape(-1, 2, 2)).real
    words = "; ".join("{:.3f}, {:.3f}".format(*sorted(both)) for both in rates)
    holds = length.max() < 1e-4 and rates[:2].max() < 0 and rates[2].min() < 0 < rates[2].max()
    return f"gradients there at most {length.max():.0e}, eigenvalues at A, B and 0: {words}", holds


@claim("5.1", "both players prefer B, and cannot unilaterally go there")
def unilateral():
    moves = np.linspace(-10, 10, 401, dtype=np.float32)  # of player 1
    ends = {}
    for name, other in (("A", A), ("B", B)):
        values = returns_on(LOGISTIC, np.stack([moves, np.full_like(moves, other)], -1))[:, 0]
        ends[name] = float(moves[values.argmax()]), values.max()
    (to_a, at_a), (to_b, at_b) = ends.values()
    numbers = f"the best reply to A is {to_a:.2f}, a return of {at_a:.2f}; to B {to_b:.2f}, a return of {at_b:.2f}"
    return numbers, bool(abs(to_a - A) < 0.1 and abs(to_b - B) < 0.1 and at_a < at_b)


@claim(
    "5.1", "naive learners (LOLA, HOLA(2) at alpha = 0) go to whichever is nearest; the basins meet at a diagonal",
    "lola_logistic", "hola_logistic",
)  # fmt: skip
def nearest_solution(lola, hola):
    def agreement(results):
        ends = results["endpoints"][at(results, 0), 0]
        side = results["grid"].sum(-1)  # x_1 + x_2
        off = np.abs(side) > 1e-3  # the diagonal belongs to neither
        return ((ends > 0).all(-1) == (side > 0))[off].mean()

    numbers = agreement(lola), agreement(hola)
    return "{:.1%} and {:.1%} of the points off the diagonal".format(*numbers), min(numbers) > 0.99


@claim("5.1", "LOLA grows the basin of B, but only slightly, and increasing alpha does not help much", "lola_logistic")
def lola_grows(lola):
    before, *after, far = (share_at_b(lola, alpha).mean() for alpha in (0, 1, 2, 5, 10, 20))
    middle = ", ".join(f"{value:.3f}" for value in after)
    numbers = f"{before:.3f} at alpha = 0; {middle} at 1, 2, 5, 10; {far:.3f} at 20"
    return numbers, before < min(after) and max(after) < before + 0.1 and max(after) - min(after) < 0.05


def regions(results: dict, setting: float) -> tuple[float, float]:
    """Share that ends in B's quadrant of the points beyond 8, and of those within 4 of the origin, mean over seeds."""
    in_b = (results["endpoints"][at(results, setting)] > 0).all(-1).mean(0)  # (29, 29)
    edge = np.abs(results["grid"]).max(-1) > 8
    origin = np.linalg.norm(results["grid"], axis=-1) < 4
    return in_b[edge].mean(), in_b[origin].mean()


@claim("5.1", "HOLA(2) grows the basin of B around the edges", "hola_logistic")
def hola_edges(hola):
    before, *after = (regions(hola, alpha)[0] for alpha in (0, 1, 2, 5, 10))
    numbers = f"beyond 8: {before:.3f} at alpha = 0, {', '.join(f'{value:.3f}' for value in after)} at 1, 2, 5, 10"
    return numbers, min(after) > before + 0.02


@claim("5.1", "but suffers from instabilities around the origin", "hola_logistic", "lola_logistic")
def hola_origin(hola, lola):
    near = np.linalg.norm(hola["grid"], axis=-1) < 4

    def lost(results, where):  # share that comes to rest neither at A nor at B
        ends = results["endpoints"][at(results, 10), 0][where]
        return 1 - ((np.abs(ends - A) < 0.5).all(-1) | (np.abs(ends - B) < 0.5).all(-1)).mean()

    shares = lost(hola, near), lost(hola, ~near), lost(lola, near)
    numbers = "alpha = 10: {:.1%} of the points within 4 of the origin come to neither A nor B, {:.1%} of the others; "
    return (numbers + "{:.1%} with LOLA").format(*shares), shares[0] > 0.1 > 0.05 > max(shares[1:])


@claim("5.1", "HOLA(3) is significantly worse than HOLA(2)", "hola_logistic", "hola3_logistic")
def hola_third(hola, third):
    pairs = [(share_at_b(third, alpha).mean(), share_at_b(hola, alpha).mean()) for alpha in (1, 2, 5, 10)]
    numbers = ", ".join("{:.3f} : {:.3f}".format(*shares) for shares in pairs)
    return f"{numbers} at alpha = 1, 2, 5, 10", all(worse < better - 0.05 for worse, better in pairs[2:])


@claim(
    "5.1", "COLA makes significant improvements around the edges and around the origin",
    "cola_logistic", "naive_logistic", "hola_logistic",
)  # fmt: skip
def cola_regions(cola, naive, hola):
    best = np.max([regions(hola, alpha) for alpha in (1, 2, 5, 10)], 0)
    ours, before = regions(cola, 10), regions(naive, 1)
    triples = [f"{words} {a:.3f} (naive {b:.3f}, HOLA(2) at best {c:.3f})"
               for words, a, b, c in zip(("beyond 8", "within 4 of the origin"), ours, before, best)]  # fmt: skip
    holds = min(np.subtract(ours, before)) > 0.05 and ours[1] > best[1]
    return f"alpha = 10: {', '.join(triples)}; everywhere {spread(share_at_b(cola, 10))}", holds


@claim("5.1", "at gamma > .9 MeVa converges to B from anywhere in the surveyed area", "meva_logistic")
def meva_everywhere(meva):
    above = [gamma for gamma in meva["sweep"] if gamma > 0.9 + 1e-6]
    numbers = ", ".join(f"{spread(share_at_b(meva, gamma))} at {gamma:g}" for gamma in above)
    whole = sum((share_at_b(meva, gamma) == 1).all() for gamma in above)
    end = np.median(meva["endpoints"][at(meva, 0.95)])
    return f"{numbers} (median end at .95: {end:.2f}, B is {B:.2f})", 0 < whole == len(above)


@claim("5.1", "by increasing gamma the basin of B becomes arbitrarily large", "meva_logistic")
def meva_grows(meva):
    mean = meva["basin_fraction"].mean(1)
    numbers = ", ".join(f"{value:.3f} at {gamma:g}" for value, gamma in zip(mean, meva["sweep"]))
    return numbers, mean[-1] > 0.99 and np.diff(mean).min() > -0.01


@claim(
    "1", "MeVa is the only one to find the Pareto-efficient solution regardless of initialisation",
    *ROWS,
)  # fmt: skip
def only_meva(lola, hola, cola, meva):
    best = [results["basin_fraction"].mean(1).max() for results in (lola, hola, cola)]
    numbers = "at best LOLA {:.3f}, HOLA(2) {:.3f}, COLA {:.3f}".format(*best)
    ours = share_at_b(meva, 0.99)
    return f"{numbers}; MeVa {spread(ours)} at gamma = .99", max(best) < 1 and ours.min() == 1


@claim("5.1", "even close to A it is worth moving in a direction that immediately decreases f", "meva_logistic")
def near_a(meva):
    paths = meva["trajectories"][at(meva, 0.95)].reshape(-1, *meva["trajectories"].shape[-2:])  # (path, time, 2)
    paths = paths[np.linalg.norm(paths[:, 0] - A, axis=-1) < 3]
    own = np.asarray(jax.vmap(partial(simultaneous_gradient, LOGISTIC))(paths[:, 0, :, None]))[..., 0]
    against = ((paths[:, 1] - paths[:, 0]) * own < 0).any(-1)  # some player's step lowers its return, to first order
    value = returns_on(LOGISTIC, paths).mean(-1)  # (path, time), of both players
    dip, gain = value[:, 0] - value.min(1), value[:, -1] - value[:, 0]
    numbers = f"gamma = .95: in {against.sum()} of {len(paths)} paths from within 3 of A a player first steps against "
    numbers += f"its own gradient; returns fall by {dip.mean():.2f} on the way and end {gain.mean():.2f} higher"
    return numbers, bool(against.mean() > 0.5 and dip.min() > 0 and gain.min() > 3)


@claim("5.2", "naive learning fails to find tit-for-tat, and defects", "naive_ipd")
def naive_fails(naive):
    value = naive["self_play"][0].mean(1)[:, 0]
    return spread(value), value.mean() < -1.9


@claim("5.2", "MeVa at low gamma: mostly defective strategies that approach -2", "meva_ipd")
def low_gamma(meva):
    value = mean_returns(meva, "self_play", 0)[0]
    return f"{spread(value)} at gamma = 0", abs(value.mean() + 2) < 0.05


@claim("5.2", "as gamma increases cooperation becomes more prevalent, with returns approaching -1", "meva_ipd")
def cooperation_grows(meva):
    means = {gamma: mean_returns(meva, "self_play", gamma)[0] for gamma in (0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999)}
    numbers = ", ".join(f"{spread(value)} at {gamma:g}" for gamma, value in means.items())
    rises = np.diff([value.mean() for value in means.values()])
    return numbers, rises.min() > -0.05 and means[0.99].mean() > -1.1


@claim("5.2", "who cooperates or defects unconditionally makes the best response defect, and gets -3 or -2")
def unconditional():
    bits = np.arange(32)[:, None] >> np.arange(5) & 1
    sure = np.where(bits, 50, -50).astype(np.float32)  # all deterministic strategies
    agents = []
    for agent in (np.full(5, 50, np.float32), np.full(5, -50, np.float32)):
        pairs = np.stack([np.broadcast_to(agent, sure.shape), sure], 1)  # (32, 2, 5)
        returns = np.asarray(jax.vmap(IPD)(pairs))
        agents.append(returns[returns[:, 1].argmax(), 0])
    return "{:.3f} or {:.3f}".format(*agents), np.allclose(agents, (-3, -2), atol=1e-3)


@claim("5.2", "instead the best response to MeVa is to cooperate", "meva_ipd")
def unexploitable(meva):
    agent, response = mean_returns(meva, "best_response", 0.99).mean(-1)
    return listed(meva, "best_response", (0.9, 0.95, 0.99)), agent > -1.2 and abs(response + 1) < 0.15


@claim("", "(the same, against the exact best response)", "meva_ipd")
def unexploitable_exactly(meva):
    agent, response = mean_returns(meva, "exact_best_response", 0.99).mean(-1)
    return listed(meva, "exact_best_response", (0.9, 0.95, 0.99)), agent > -1.2 and abs(response + 1) < 0.15


@claim("5.2", "MeVa shapes naive opponents into exploitable cooperation as gamma goes to 1", "meva_ipd")
def shaping(meva):
    gammas = (0.9, 0.95, 0.99, 0.999)
    before = mean_returns(meva, "versus_naive", 0)[1].mean()
    means = [mean_returns(meva, "versus_naive", gamma).mean(1) for gamma in gammas]
    return listed(meva, "versus_naive", (0, *gammas)), all(agent > other > before + 0.1 for agent, other in means)


@claim("5", "MeVa does not simply cooperate unconditionally but learns to play tit-for-tat", "meva_ipd")
def tit_for_tat(meva):
    def found(gamma):  # of all policies in self-play, (seed,)
        return (strategies(meva["policies"][at(meva, gamma)]) == 19).mean((1, 2))

    policies = meva["policies"][at(meva, 0.99)].astype(float)  # (seed, pair, 2, 5)
    cooperate = (1 / (1 + np.exp(-policies))).mean((1, 2)).T
    states = ", ".join(f"{spread(value)} {state}" for state, value in zip(("first", "DD", "CD", "DC", "CC"), cooperate))
    numbers = ", ".join(f"{spread(found(gamma))} at {gamma:g}" for gamma in (0.9, 0.95, 0.99))
    return f"share of policies nearest to it: {numbers}; P(C) at .99: {states}", found(0.99).mean() > 0.5


@claim("5.2", "LOLA exhibits qualitatively the same results", "lola_ipd")
def lola_alike(lola):
    numbers = "; ".join(f"{words} {pair(lola, key, 10)}" for key, (words, _) in PLAYS.items())
    held = [mean_returns(lola, key, 10)[0].mean() > -1.2 for key in ("self_play", "best_response")]
    agent, other = mean_returns(lola, "versus_naive", 10).mean(-1)
    return f"alpha = 10: {numbers}", all(held) and agent > other


@claim("5.2", "but its alpha can only be increased so far before results deteriorate", "lola_ipd")
def lola_deteriorates(lola):
    alphas = (10, 20, 30, 50, 100)
    cells = {key: [mean_returns(lola, key, alpha)[0] for alpha in alphas] for key in ("self_play", "best_response")}
    numbers = "; ".join(f"{PLAYS[key][0]} {', '.join(map(spread, values))}" for key, values in cells.items())
    holds = [values[0].mean() > max(value.mean() for value in values[1:]) + 0.02 for values in cells.values()]
    return f"{numbers} at alpha = {', '.join(map(str, alphas))}", all(holds)


@claim("5.2", "MeVa retains the desirable features and is easier to extend farther into the future", "meva_ipd")
def meva_far(meva):
    gammas = (0.99, 0.995, 0.999)
    cells = {key: [mean_returns(meva, key, gamma)[0] for gamma in gammas] for key in ("self_play", "best_response")}
    numbers = "; ".join(f"{PLAYS[key][0]} {', '.join(map(spread, values))}" for key, values in cells.items())
    holds = all(value.mean() > -1.2 for values in cells.values() for value in values)
    return f"{numbers} at gamma = {', '.join(map(str, gammas))}", holds


def print_claims(out: pathlib.Path) -> list[str]:
    """The paper's claims beside our numbers. Returns the commands of missing runs."""
    runs, sources, missing = find(dict.fromkeys(name for claim in CLAIMS for name in claim.runs), out, exactly=True)
    lines = [f"From {', '.join(sources)}; ± standard errors over seeds.\n"]
    lines += [header("Sec.", "the paper", "here", "holds", "runs")]
    for claim in CLAIMS:
        if runs.keys() >= set(claim.runs):
            numbers, holds = claim.measure(*(runs[name] for name in claim.runs))
            names = ", ".join(f"`{name}`" for name in claim.runs)
            lines.append(table_row(claim.section, claim.statement, numbers, "yes" if holds else "**no**", names))
    lines += ["", header("run", "command"), *(table_row(f"`{name}`", f"`{command(name)}`") for name in runs)]
    print("\n".join(lines))
    return missing


def print_ablations(out: pathlib.Path) -> list[str]:
    """Returns with one technique changed, and the Logistic Game's basins. Returns the commands of missing runs."""
    logistic = {"meva_logistic": "both sides of Eq. 7", "semi_gradient_logistic": "semi-gradient"}
    runs, sources, missing = find([*ABLATIONS, *logistic], out, exactly=True)
    lines = [f"From {', '.join(sources)}; ± standard errors over seeds.\n"]
    lines += [f"The IPD at gamma = .99, `python meva.py --game ipd {SHORT}` and a switch:\n"]
    lines += [header("", "self-play", "agent : best response", "agent : naive learner", "switch")]
    for name in filter(runs.get, ABLATIONS):
        cells = [spread(mean_returns(runs[name], "self_play", 0.99)[0])]
        cells += [pair(runs[name], key, 0.99) for key in ("best_response", "versus_naive")]
        label, switch = ABLATIONS[name]
        lines.append(table_row(label, *cells, f"`{switch}`" if switch else ""))
    lines += ["\nThe Logistic Game, the share of the grid that ends with x_1, x_2 > 0:\n"]
    gammas = GAMMAS.split()[1:]
    lines += [header("gamma", *gammas)]
    for name in filter(runs.get, logistic):
        lines.append(table_row(logistic[name], *(spread(share_at_b(runs[name], float(gamma))) for gamma in gammas)))
    print("\n".join(lines))
    return missing


# Every algorithm on every game, from small runs

HEADINGS = {  # what is played, and whose returns stand beside the colon
    "self_play": "In self-play, player 1 : player 2",
    "best_response": "The agent : its best response, which learned while the agent stood still",
    "versus_naive": "The agent : a naive learner, which learned beside it",
}


def find_games(out: pathlib.Path, algorithms) -> tuple[dict[tuple[str, str], dict], list[str]]:
    """The results of these algorithms on every game, where they are, and the commands that make the others."""
    paths = {(game, algorithm): out / f"results/{algorithm}_{game}.npz" for game in GAMES for algorithm in algorithms}
    runs = {key: load(path) for key, path in paths.items() if path.exists()}
    folder = shlex.quote(str(out))
    lines = [f"python {key[1]}.py --game {key[0]} --quick --out {folder}" for key in paths if key not in runs]
    return runs, lines


def shown(number: float) -> str:
    return f"{round(number, 2) + 0:.2f}" if abs(number) < 1e3 else f"{number:.1e}"  # + 0: no negative zero


def cell(algorithm: str, results: dict, key: str) -> str:
    """Means and standard errors of the returns over all policy pairs of all seeds, the agent's first; by seats.

    At gamma = .99 or what is nearest, or at the largest look-ahead up to 10 of the sweep, if any.
    """
    sweep = results["sweep"]
    i = nearest(results, 0.99) if algorithm == "meva" else int(np.where(sweep <= 10, sweep, -1).argmax())
    seats = []
    for seat in ("", "_2"):
        if key + seat in results:
            samples = results[key + seat][i].reshape(-1, 2)
            lost = ~np.isfinite(samples).all(1)
            if lost.any():
                seats.append(f"{lost.sum()} of {len(lost)} pairs diverged")
                continue
            numbers = zip(samples.mean(0), map(standard_error, samples.T))
            seats.append(" : ".join(f"{shown(mean)} ± {shown(error)}" for mean, error in numbers))
    return "<br>".join(seats)


def print_games(out: pathlib.Path) -> list[str]:
    """Game x algorithm: returns in three plays. Returns the commands of missing runs."""
    runs, missing = find_games(out, TITLES)
    print("LOLA, HOLA and COLA at the largest look-ahead up to 10 of each run, MeVa at gamma = .99; ± standard errors "
          "over policy pairs.")  # fmt: skip
    for key, heading in HEADINGS.items():
        print(f"\n{heading}:\n\n{header('', *TITLES.values())}")
        for game in GAMES:
            cells = [cell(name, runs[game, name], key) if (game, name) in runs else "" for name in TITLES]
            print(table_row(f"`{game}`", *cells))
    return missing


def draw_games(figure: Figure, runs: dict[tuple[str, str], dict]):
    """The training of MeVa and COLA on every game: returns, and errors in units of the game's own payoffs."""
    curves = {("meva", "self_play_curve"): "MeVa: self-play", ("meva", "td_error"): "MeVa: TD error",
              ("cola", "loss"): "COLA: loss"}  # fmt: skip
    columns = 5
    bands = [list(GAMES)[i : i + columns] for i in range(0, len(GAMES), columns)]
    figure.set_size_inches(WIDTH, 3 * len(bands))
    for band, names in zip(figure.subfigures(len(bands), 1), bands):
        axes = band.subplots(len(curves), columns)
        for row, ((algorithm, key), label) in zip(axes, curves.items()):
            row[0].set_ylabel(label)
            for axis, game in zip(row, names):
                results = runs[game, algorithm]
                curve = results[key]  # (seed, step)
                loops = np.linspace(0, results["config"]["outer_steps"], curve.shape[1] + 1)[1:]
                axis.plot(loops, curve.T, color=COLORS[algorithm], linewidth=0.6)
                if key == "self_play_curve":
                    middle, half = (curve.max() + curve.min()) / 2, max(np.ptp(curve) * 0.55, 0.05)
                    axis.set_ylim(middle - half, middle + half)  # rounding is not to look like noise
                else:
                    axis.set_yscale("log")
                axis.minorticks_off()
            for axis in row[len(names) :]:
                axis.remove()
        for axis, game in zip(axes[0], names):
            axis.set_title(game)
        for axis in axes[-1, : len(names)]:
            axis.set_xlabel("outer loops")


# The command line

FIGURES = {  # how each is drawn, and from which runs; `games` from small runs of its own
    "fig1": (draw_fig1, ()),
    "fig2a": (draw_fig2a, tuple(ROWS)),
    "fig2b": (draw_fig2b, tuple(ROWS)),
    "fig3": (draw_fig3, ("meva_ipd", "lola_ipd")),
    "basins": (draw_basins, ("naive_logistic", *ROWS)),
    "policies": (draw_policies, ("meva_ipd", "lola_ipd")),
    "landscape": (draw_landscape, ("meva_logistic",)),
    "fields": (draw_fields, ("naive_logistic", *ROWS)),
    "ablations": (draw_ablations, (*ABLATIONS, "meva_logistic", "semi_gradient_logistic")),
    "games": (draw_games, ()),
}
TABLES = {"paper": print_claims, "ablations": print_ablations, "games": print_games}


def draw_figure(name: str, out: pathlib.Path, extension: str) -> list[str]:
    """Draw a figure if its runs are there. Returns the commands that make those that are missing."""
    draw, names = FIGURES[name]
    if name == "games":
        (runs, missing), sources = find_games(out, ("cola", "meva")), [str(out / "results")]
    else:
        runs, sources, missing = find(names, out)
    if missing:
        return missing
    path = out / f"figures/{name}.{extension}"
    part = path.with_name(path.name + ".part")  # written beside its name and moved into place: never half written
    try:
        path.parent.mkdir(exist_ok=True)
        with matplotlib.rc_context(STYLE):
            figure = Figure(layout="constrained")
            draw(figure, runs)
            figure.savefig(part, format=extension, dpi=200)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {path}" + f", from {', '.join(sources)}" * bool(sources))
    return []


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(FIGURES)
    parser.add_argument("--figure", choices=FIGURES, metavar="NAME", help=f"one of {names} (default: all)")
    parser.add_argument("--format", choices=("png", "pdf"), help="of figures (default: png)")
    tables = dict(choices=TABLES, nargs="?", const="paper", metavar="NAME")
    parser.add_argument("--table", **tables, help=f"print a table instead: {', '.join(TABLES)} (default: paper)")
    parser.add_argument("--out", type=pathlib.Path, default=".", help="where results/ and figures/ are (default: .)")
    args = parser.parse_args(argv)

    def refuse(message):
        parser.exit(2, f"{parser.prog}: error: argument {message}\n")

    if args.table and (args.figure or args.format):
        refuse("--table: takes neither --figure nor --format beside it")
    if not args.out.is_dir():
        refuse(f"--out: takes a folder that is there, not {args.out}")
    try:
        if args.table:
            missing = {args.table: TABLES[args.table](args.out)}
        else:
            asked = [args.figure] if args.figure else FIGURES
            missing = {name: draw_figure(name, args.out, args.format or "png") for name in asked}
    except Broken as error:
        refuse(f"--out: takes a folder with whole results ({error})")
    except KeyError as error:
        refuse(f"--out: takes a folder with whole results (a run lacks {error})")
    except OSError as error:
        refuse(f"--out: takes a folder that can be written, not {args.out} ({error.strerror})")
    if not args.figure and len(missing.get("games", ())) > 1 and not args.table:
        print(f"missing for games: {len(missing.pop('games'))} small runs; --figure games names them")
    for line in dict.fromkeys(line for lines in missing.values() for line in lines):  # each once
        waiting = ", ".join(name for name, lines in missing.items() if line in lines)
        print(f"missing for {waiting}: {line}")
    if (args.figure or args.table) and any(missing.values()):
        parser.exit(1)


if __name__ == "__main__":
    main()
