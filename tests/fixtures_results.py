"""Synthetic raw results in a temporary root: small, seeded, with the exact files that runs write."""

import csv
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np

from etpo_paper.data.tasks import TASKS
from etpo_paper.environment import prompts
from etpo_paper.report import results

CHECKOUT = Path(__file__).resolve().parent.parent
METHODS = ("reflection", "ppo_kl", "etpo", "etpo_no_reflection", "etpo_action_level")
_FIT = "    model.fit(x_train, y_train)\n"
BODIES = {
    0.55: "    from sklearn.dummy import DummyClassifier\n    model = DummyClassifier()\n" + _FIT,
    0.70: "    from sklearn.linear_model import LogisticRegression\n    model = LogisticRegression()\n" + _FIT,
    0.80: (
        "    from sklearn.pipeline import make_pipeline\n"
        "    from sklearn.preprocessing import StandardScaler\n"
        "    from sklearn.ensemble import RandomForestClassifier\n"
        "    model = make_pipeline(StandardScaler(), RandomForestClassifier())\n" + _FIT
    ),
}
ESTIMATORS = ("ppo_kl", "grpo", "ntpo", "poad", "etpo_1", "etpo_0", "etpo_0_late", "vine_1", "vine_9")
BROKEN = "    model = LogisticRegression(\n"
_SKILL = {
    "reflection": 0.0,
    "ppo_kl": 0.4,
    "etpo": 0.6,
    "etpo_memory": 0.7,
    "etpo_no_reflection": 0.3,
    "etpo_action_level": 0.35,
}


def make_root(root: Path) -> Path:
    """A root with the checkout's params.yaml and notebooks, but no results."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(CHECKOUT / "params.yaml", root / "params.yaml")
    if not (root / "notebooks").exists():
        (root / "notebooks").symlink_to(CHECKOUT / "notebooks")
    return root


def make_results(
    root: Path,
    scale: str = "smoke",
    methods=METHODS,
    tasks=("balance-scale", "kidney-stone"),
    seeds=(0, 1),
    updates: int = 5,
    batch: int = 8,
    gpt4: bool = False,
) -> None:
    """Writes runs whose rewards grow with a skill of the method; `kidney-stone` is marked a stand-in."""
    for task in tasks:
        for seed in seeds:
            for method in methods:
                _run(
                    root / "results" / scale / method / task / f"seed{seed}",
                    method,
                    task,
                    seed,
                    updates,
                    batch,
                )
            if not gpt4:
                _not_run(root / "results" / scale / "reflection_gpt4" / task / f"seed{seed}", task, seed)


def make_tables(root: Path, skip=()) -> None:
    """Notes of prepared tables as the `data` stage leaves them, for all tasks but those skipped."""
    folder = root / "data" / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in TASKS.items():
        if name in skip:
            continue
        known = spec.stand_in or spec
        note = {
            "task": name,
            "source": "embedded",
            "stand_in": spec.stand_in.text(spec) if spec.stand_in else None,
            "sha256": known.sha256,
            "rows": known.rows,
            "features": known.features,
            "class_counts": list(known.class_counts),
            "licence": known.licence,
        }
        (folder / f"{name}.json").write_text(json.dumps(note))


def make_evaluation(root: Path, scale: str = "smoke", gap: float = 0.02) -> None:
    """Held-out scores that lie `gap` below the best reward of each run."""
    path = root / "evaluations" / scale / "held_out.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(results.HELD_OUT_COLUMNS)
        for folder in sorted((root / "results" / scale).glob("*/*/seed*")):
            card = json.loads((folder / "run_card.json").read_text())
            if card["status"] != "finished":
                continue
            with (folder / "steps.csv").open() as steps:
                best = max(float(row["reward"]) for row in csv.DictReader(steps))
            stand_in = card["data"]["stand_in"] or ""
            run = [card["method"], card["task"], card["seed"]]
            writer.writerow([*run, best, best - gap, 0.51, 0.02, 10, 0, stand_in])


def _card(method, task, seed, status, reason=None):
    return {
        "status": status,
        "reason": reason,
        "scale": "smoke",
        "method": method,
        "task": task,
        "seed": seed,
        "device": "cpu",
        "data": {
            "source": "embedded",
            "stand_in": "made by a test" if task == "kidney-stone" else None,
            "sha256": "0" * 64,
        },
    }


def _write_csv(path: Path, columns, rows) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _not_run(folder: Path, task: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    card = _card("reflection_gpt4", task, seed, "not run", "OPENAI_API_KEY is not set")
    (folder / "run_card.json").write_text(json.dumps(card))
    _write_csv(folder / "steps.csv", results.STEP_COLUMNS, [])
    _write_csv(folder / "updates.csv", results.UPDATE_COLUMNS, [])


def _run(folder: Path, method: str, task: str, seed: int, updates: int, batch: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, len(task), sorted(_SKILL).index(method)])
    steps, rows, samples, best = [], [], [], (-1.0, None)
    for update in range(updates):
        success = 0.4 + _SKILL[method] * update / max(1, updates - 1)
        rewards = []
        for environment in range(batch):
            ran = generator.random() < success
            level = float(generator.choice(list(BODIES), p=[0.3, 0.4, 0.3])) if ran else -1.0
            reward = round(level + 0.01 * float(generator.random()), 6) if ran else -1.0
            rewards.append(reward)
            code = BODIES[level] if ran else BROKEN
            step = update * batch + environment + 1
            steps.append(
                {
                    "step": step,
                    "update": update,
                    "environment": environment,
                    "episode": update,
                    "episode_step": 1,
                    "reward": reward,
                    "done": int(ran),
                    "status": "ok" if ran else "snippet_error",
                    "error_class": "" if ran else "SyntaxError",
                    "code_hash": f"{int(level * 100) % 97:04x}{environment % 3}",
                    "tokens": 20 + environment,
                }
            )
            if environment < 4:
                sample = {
                    "update": update,
                    "step": step,
                    "reward": reward,
                    "status": "ok" if ran else "snippet_error",
                    "error": None if ran else "SyntaxError: '(' was never closed (line 1)",
                    "code": code,
                }
                samples.append(sample | _credit(method, sample))
            if reward > best[0]:
                best = (reward, code)
        rows.append(
            {
                "update": update,
                "steps": (update + 1) * batch,
                "mean_reward": round(float(np.mean(rewards)), 6),
                "max_reward": max(rewards),
                "share_runs": float(np.mean([reward > -1 for reward in rewards])),
                "policy_loss": 0.1,
                "critic_loss": 0.2,
                "kl_per_token": 0.01,
                "kl_per_action": 0.2 * update,
                "tokens": 200,
            }
        )
    _write_csv(folder / "steps.csv", results.STEP_COLUMNS, steps)
    _write_csv(folder / "updates.csv", results.UPDATE_COLUMNS, rows)
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if best[1] is not None:
        (folder / "best_code.py").write_text(prompts.program(best[1]))
    (folder / "run_card.json").write_text(json.dumps(_card(method, task, seed, "finished")))


def _credit(method: str, sample: dict) -> dict:
    """Tokens of the code and their credit: all alike for PPO-KL, most of it on one token for the other learners."""
    if method.startswith("reflection"):
        return {}
    pieces = [*re.findall(r"\n *| ?\w+|.", sample["code"]), ""]
    if method == "ppo_kl":
        return {"pieces": pieces, "credit": [sample["reward"]] * len(pieces)}
    credit = [0.01 * sample["reward"]] * len(pieces)
    credit[(7 + sample["step"]) % len(pieces)] = 0.4 * sample["reward"]
    return {"pieces": pieces, "credit": credit}


def make_regret(root: Path, scale: str = "smoke") -> None:
    """Writes regret curves that fall, of two methods and two stages of the mended released update."""
    path = root / "evaluations" / scale / "regret.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(results.REGRET_COLUMNS)
        for place, variant in enumerate(("etpo", "ppo_kl", "released", "released_1")):
            for purpose, world in (("tuning", 0), ("reported", 1)):
                curve = ((u, 2.0 / (1 + u) + 0.1 * place) for u in range(0, 41, 2))
                writer.writerows((variant, purpose, world, 0.03, *point) for point in curve)
    with path.with_name("benchmark.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(results.BENCHMARK_COLUMNS)
        for hard, kind in enumerate(("early", "long"), start=1):
            for place, variant in enumerate(("etpo", "ppo_kl", "grpo")):
                writer.writerow((kind, variant, "tuning", 0, 0, 0.1, 2.0, 1.0, 0.5))
                for seed in range(4):
                    end = 0.2 * hard * (1 + place) + 0.01 * seed
                    writer.writerow((kind, variant, "reported", 1, seed, 0.1, 2.0, 1.0, end))
    with path.with_name("estimates.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(results.ESTIMATE_COLUMNS)
        keys = ("early", "long"), (1, 8), ("reference", "halfway"), (1, 2)
        for kind, length, policy, world in itertools.product(*keys):
            for place, estimator in enumerate(ESTIMATORS):
                quality = (0.1 * place, 0.0, 0.2, 0.3, 0.9, length * (world + place), 2.0)
                writer.writerow((kind, length, policy, world, estimator, *quality))


def make_own_environment(root: Path, scale: str = "smoke") -> None:
    """Two seeds with five batches each: from 0.1 and 0.3 up by 0.1 a batch with ETPO, by 0.05 with PPO-KL."""
    path = root / "evaluations" / scale / "own_environment.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = (("etpo", 0.1), ("ppo_kl", 0.05)), (0, 1), range(5)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(results.OWN_ENVIRONMENT_COLUMNS)
        for (method, rise), seed, update in itertools.product(*keys):
            reward = 0.1 + 0.2 * seed + rise * update
            writer.writerow((method, seed, update, 16 * (update + 1), f"{reward:.6g}", 0.75))
