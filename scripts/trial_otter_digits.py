"""Four objectives of images and captions on digits under exchanged captions, in a minute.

Pictures are the 64 standardised pixels of scikit-learn's digits, captions are 8 templates around
the word of the digit as centred bags of words; one linear layer to 64 dimensions on each side. A
share of the captions names a different digit. 1,200 pictures to learn from, 597 to name by the
template "a photo of the number {}.". For a seed all objectives begin alike and see the same
batches, so that differences are paired.

    python scripts/trial_otter_digits.py --rates 0 0.4 0.6 --seeds 10 --out outputs/digits.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyml.losses.image_text.contrastive import (
    LogTemperature,
    contrastive_losses,
    distillation_losses,
)
from noisyml.losses.image_text.otter import (
    Sides,
    matching_scores,
    similarity_targets,
    transport_targets,
)
from noisyml.models.ema import EMATeacher

OBJECTIVES = ("infonce", "label_smoothing", "distillation", "otter")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Captions around the word, which weighs more in short ones; the first is the prompt of the test.
TEMPLATES = {
    "short": (
        "a photo of the number {}.",
        "a picture of the number {}.",
        "the number {}",
        "a drawing of {}",
        "a handwritten {}",
        "an image of the digit {}",
        "this is the digit {}",
        "a scan of {}",
    ),
    "long": (
        "a photo of the number {}.",
        "the digit {} written by hand",
        "someone wrote a {}",
        "this shows {}",
        "handwritten {} on paper",
        "a scan of the figure {}",
        "{} in ink",
        "an image with the numeral {}",
    ),
}
TRAIN, BATCH, EPOCHS, RATE, ALPHA, SMOOTHING = 1200, 128, 30, 0.01, 0.5, 0.1


def bags(texts: list[str], vocabulary: list[str]) -> Tensor:
    """Numbers of each word [N, V]."""
    rows = [text.replace(".", "").split() for text in texts]
    return torch.tensor([[float(row.count(word)) for word in vocabulary] for row in rows])


def digits(rate: float, seed: int, wording: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pixels and bags of words to learn from, pixels and digits to test on, bags of the ten names.

    Args:
        rate: P(a caption names a different digit).
        seed: of the split, the templates and the noise.
        wording: key of `TEMPLATES`.
    """
    from sklearn.datasets import load_digits

    pixels, label = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(label), generator=draw)
    train, test = order[:TRAIN], order[TRAIN:]
    mean, std = pixels[train].mean(0), pixels[train].std(0)
    pixels = ((pixels - mean) / std.clamp(min=1e-6)).float()

    said = label[train].clone()
    wrong = torch.rand(TRAIN, generator=draw) < rate
    said[wrong] = (said + torch.randint(1, 10, (TRAIN,), generator=draw))[wrong] % 10
    templates = TEMPLATES[wording]
    which = torch.randint(len(templates), (TRAIN,), generator=draw).tolist()
    captions = [templates[t].format(WORDS[d]) for t, d in zip(which, said.tolist(), strict=True)]
    names = [templates[0].format(word) for word in WORDS]
    vocabulary = sorted({word for text in captions + names for word in text.strip(".").split()})
    counts = bags(captions, vocabulary)
    centre = counts.mean(0)
    spread = (counts - centre).std()
    return (
        pixels[train],
        (counts - centre) / spread,
        pixels[test],
        label[test],
        (bags(names, vocabulary) - centre) / spread,
    )


def trial(objective: str, rate: float, seed: int, wording: str) -> float:
    """Zero-shot accuracy on the test pictures after training.

    Args:
        objective: one of `OBJECTIVES`.
        rate, seed, wording: see `digits`.
    """
    images, texts, test, truth, names = digits(rate, seed, wording)
    torch.manual_seed(seed)
    student = nn.ModuleDict(
        {"image": nn.Linear(images.shape[1], 64), "text": nn.Linear(texts.shape[1], 64)}
    )
    temperature, taught_temperature = LogTemperature(), LogTemperature()
    teacher = EMATeacher(student)
    parameters = [*student.parameters(), temperature.value, taught_temperature.value]
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)
    own = torch.arange(BATCH)

    def sides(model: nn.ModuleDict, rows: Tensor) -> Sides:
        return Sides(
            nn.functional.normalize(model["image"](images[rows])),
            nn.functional.normalize(model["text"](texts[rows])),
        )

    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        for rows in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            teacher.update_parameters(student)
            found = sides(student, rows)
            logits = found.image @ found.text.T
            smoothing = SMOOTHING if objective == "label_smoothing" else 0.0
            loss = sum(
                contrastive_losses(temperature(side), own, smoothing).mean()
                for side in (logits, logits.T)
            )
            if objective in ("distillation", "otter"):
                with torch.no_grad():
                    taught = sides(teacher.averages, rows)
                if objective == "otter":
                    targets = transport_targets(matching_scores(taught, taught, removed=own))
                else:
                    scores = matching_scores(taught, taught, vv_coef=0.0, tt_coef=0.0)
                    targets = similarity_targets(scores)
                followed = sum(
                    distillation_losses(taught_temperature(side), target).mean()
                    for side, target in zip((logits, logits.T), targets, strict=True)
                )
                loss = ALPHA * loss + (1 - ALPHA) * followed
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        image, text = student["image"](test), nn.functional.normalize(student["text"](names))
    return float(((image @ text.T).argmax(1) == truth).float().mean())


def main(arguments: list[str]) -> int:
    """Run all trials, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.4, 0.6])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--wording", choices=TEMPLATES, default="short")
    parser.add_argument("--out", type=Path)
    typed = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    for rate in typed.rates:
        found = {
            objective: torch.tensor(
                [trial(objective, rate, seed, typed.wording) for seed in range(typed.seeds)]
            )
            for objective in OBJECTIVES
        }
        for objective, values in found.items():
            apart = values - found["infonce"]
            results.append(
                {
                    "rate": rate,
                    "objective": objective,
                    "accuracy": values.tolist(),
                    "mean": float(values.mean()),
                    "std": float(values.std()) if len(values) > 1 else 0.0,
                    "mean_difference_from_infonce": float(apart.mean()),
                    "seeds_ahead_of_infonce": int((apart > 0).sum()),
                }
            )
            line = results[-1]
            print(
                f"{rate:4} {objective:16} {line['mean']:.3f} +- {line['std']:.3f}  "
                f"{line['mean_difference_from_infonce']:+.3f}  "
                f"{line['seeds_ahead_of_infonce']} of {typed.seeds} seeds",
                flush=True,
            )
    if typed.out is not None:
        typed.out.parent.mkdir(parents=True, exist_ok=True)
        typed.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
