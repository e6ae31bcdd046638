"""Synthetic run folders, written as a training run writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from noisyml.runs.folder import RunFolder

N_TRAIN, N_CLASSES = 400, 10

FILES = ("history", "noise", "selection", "thumbnails", "map", "class_maps")

#: How well each selector tells right labels from wrong ones: distance of the two score means.
SKILL = {"keep_all": 0.0, "prism_avg": 1.0, "prism_vmf": 2.0}


class RunMaker:
    """Writes run folders whose content depends on their settings and seed alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self,
        where: str,
        selector: str = "prism_avg",
        rate: float = 0.5,
        seed: int = 0,
        *,
        metrics: dict[str, float | None] | None = None,
        status: dict[str, Any] | None = None,
        files: tuple[str, ...] | bool = True,
        names: Callable[[int], str] = "class {}".format,
        pictures: tuple[int, ...] = (32, 32),
        environment: dict[str, Any] | None = None,
        extra_config: dict[str, Any] | None = None,
        extra_overrides: tuple[str, ...] = (),
    ) -> RunFolder:
        """One run folder; `metrics` replace the made-up ones, `files` are those to add."""
        chosen = set(FILES if files is True else files or ())
        folder = RunFolder(self.root / where)
        folder.path.mkdir(parents=True)
        config = {
            "seed": seed,
            "method": {"_target_": "noisyml.methods.metric_learning.prism.Prism"},
            "dataset": {
                "_target_": "noisyml.data.datasets.embedded.glyphs.Glyphs",
                "classes": N_CLASSES,
            },
            "noise": {"_target_": "noisyml.noise.Symmetric", "rate": rate, "seed": seed},
            "selector": {
                "_target_": f"noisyml.selectors.{selector.title().replace('_', '')}",
                "warmup": {"keep_all": 0, "prism_avg": 5, "prism_vmf": 7}.get(selector, 1),
            },
            "run_dir": str(folder.path),
            **(extra_config or {}),
        }
        typed = [f"selector={selector}", f"noise.rate={rate}", f"seed={seed}", *extra_overrides]
        folder.config_file.write_text(yaml.safe_dump(config))
        folder.overrides_file.write_text(yaml.safe_dump(["experiment=demo", *typed]))
        folder.environment_file.write_text(
            json.dumps(
                environment
                or {
                    "commit": "0123456789abcdef",
                    "dirty": False,
                    "device": "cpu",
                    "versions": {"python": "3.11.9", "torch": "2.11.0", "noisyml": "0.1.0"},
                }
            )
        )
        folder.write_status("finished")
        rng = np.random.default_rng([seed, int(1000 * rate), len(selector)])
        manifest = _manifest(np.random.default_rng([seed, int(1000 * rate)]), rate)
        skill = SKILL.get(selector, 1.0)
        if metrics is None:
            metrics = _metrics(rng, selector, skill, rate, float(manifest["changed"].mean()))
        folder.metrics_file.write_text(json.dumps(metrics))
        if status is not None:
            folder.write_status(**status)
            folder.metrics_file.unlink()
        judged = _selection(rng, manifest, skill, saturated=selector == "prism_vmf")
        if "history" in chosen:
            _history(rng, skill, rate).to_csv(folder.history_file, index=False)
        if "noise" in chosen:
            manifest.to_parquet(folder.noise_file)
        if "selection" in chosen and selector != "keep_all":
            judged.to_parquet(folder.selection_file)
        if "thumbnails" in chosen and selector != "keep_all":
            _thumbnails(rng, judged, manifest, names, pictures, folder.path / "thumbnails.npz")
        if "map" in chosen:
            _embedding_map(rng, names).to_parquet(folder.path / "embedding_map.parquet")
        if "class_maps" in chosen:
            _class_maps(rng, names, pictures, folder.path / "class_maps.npz")
        return folder


def _manifest(rng: np.random.Generator, rate: float) -> pd.DataFrame:
    clean = np.arange(N_TRAIN) % N_CLASSES
    changed = rng.random(N_TRAIN) < rate
    shift = rng.integers(1, N_CLASSES, N_TRAIN)
    observed = np.where(changed, (clean + shift) % N_CLASSES, clean)
    columns = {"index": np.arange(N_TRAIN), "observed": observed, "clean": clean}
    return pd.DataFrame({**columns, "changed": changed})


def _metrics(
    rng: np.random.Generator, selector: str, skill: float, rate: float, actual: float
) -> dict[str, float | None]:
    level = 0.9 - rate * (0.6 - 0.2 * skill)
    jitter = rng.normal(0, 0.008, 8)
    judged = selector != "keep_all"
    return {
        "test/precision_at_1": level + jitter[0],
        "test/r_precision": 0.7 * level + jitter[1],
        "test/map_at_r": 0.6 * level + jitter[2],
        "best/test/precision_at_1": level + 0.01 + jitter[3],
        "best/test/r_precision": 0.7 * level + 0.01 + jitter[4],
        "best/test/map_at_r": 0.6 * level + 0.01 + jitter[5],
        "val/map_at_r": 0.5 * level,
        "noise/nominal_rate": rate,
        "noise/actual_rate": actual,
        "selection/kept": 1 - actual if judged else 1.0,
        "selection/precision": 1 - actual * (1 - 0.4 * skill) if judged else 1 - actual,
        "selection/recall": 0.8 + 0.05 * skill if judged else 1.0,
        "selection/auroc": 0.5 + 0.2 * skill + jitter[6] if judged else None,
        "time/step_seconds": 0.021 + 0.002 * skill + abs(jitter[7]) / 20,
        "time/train_seconds": 63.0,
    }


def _history(rng: np.random.Generator, skill: float, rate: float) -> pd.DataFrame:
    steps = np.arange(1, 1201)
    loss = 1 + 3 * np.exp(-steps / 300) + rate - 0.2 * skill + rng.normal(0, 0.15, len(steps))
    history = pd.DataFrame({"step": steps, "epoch": steps // 100, "train/loss": loss})
    at = steps % 100 == 0
    level = (0.6 - 0.3 * rate + 0.1 * skill) * (1 - np.exp(-steps / 350))
    history["val/map_at_r"] = np.where(at, level + rng.normal(0, 0.01, len(steps)), np.nan)
    history["val/precision_at_1"] = np.where(at, 1.2 * level, np.nan)
    return history


def _selection(
    rng: np.random.Generator, manifest: pd.DataFrame, skill: float, *, saturated: bool
) -> pd.DataFrame:
    wrong = manifest["changed"].to_numpy()
    epochs = []
    for epoch in range(8):
        sharpness = (12.0 if saturated else 1.0) * (epoch + 1) / 8
        score = rng.normal(np.where(wrong, -skill, skill), 1.1) * sharpness
        p_clean = 1 / (1 + np.exp(-score))
        kept = p_clean > np.quantile(p_clean, wrong.mean())
        columns = {"index": manifest["index"], "p_clean": p_clean, "kept": kept, "epoch": epoch}
        epochs.append(pd.DataFrame(columns))
    return pd.concat(epochs, ignore_index=True)


def _embedding_map(rng: np.random.Generator, names: Callable[[int], str]) -> pd.DataFrame:
    label = np.arange(500) % 25
    angle = 2 * np.pi * label / 25
    spread = rng.normal(0, 0.12, (2, 500))
    x, y = np.cos(angle) + spread[0], np.sin(angle) * (0.5 + label / 50) + spread[1]
    return pd.DataFrame({"x": x, "y": y, "label": label, "label_name": [names(c) for c in label]})


def _class_maps(
    rng: np.random.Generator, names: Callable[[int], str], size: tuple[int, ...], path: Path
) -> None:
    np.savez(
        path,
        images=rng.integers(0, 256, (6, *size), dtype=np.uint8),
        given_maps=rng.normal(0, 1, (6, 4, 3)).astype(np.float32),
        answer_maps=rng.normal(0, 1, (6, 4, 3)).astype(np.float32),
        given_name=np.array([names(c) for c in range(6)]),
        answer_name=np.array([names(5 - c) for c in range(6)]),
        true_name=np.array(["", *[names(c) for c in range(5)]]),
        kind=np.array(["label right"] * 2 + ["label wrong"] * 4),
    )


def _thumbnails(
    rng: np.random.Generator,
    selection: pd.DataFrame,
    manifest: pd.DataFrame,
    names: Callable[[int], str],
    size: tuple[int, ...],
    path: Path,
) -> None:
    least = selection[selection["epoch"] == 7].nsmallest(24, "p_clean")
    rows = manifest.set_index("index").loc[least["index"]]
    np.savez(
        path,
        images=rng.integers(0, 256, (24, *size), dtype=np.uint8),
        index=least["index"].to_numpy(),
        p_clean=least["p_clean"].to_numpy(),
        observed_name=np.array([names(c) for c in rows["observed"]]),
        clean_name=np.array([names(c) for c in rows["clean"]]),
        key=np.array([f"train/{i:05d}.png" for i in least["index"]]),
    )
