"""Train the sample round: a base model and the adapters of twelve federated clients.

    python sample_adapters/make_samples.py [--out FOLDER]

Needs the packages of the extra ``bench``. Everything comes from fixed seeds, so a second run on
the same machine with the same versions writes the same bytes. It takes about half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import PeftModel
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.copying import task as copying

HERE = Path(__file__).resolve().parent
ARCH, SEED = "gpt", 7
BASE_NAME = "sample_adapters/base"


@dataclass(frozen=True)
class Client:
    """How one client is made.

    Attributes:
        kind: of training data, as in ``copying.KINDS``.
        index: picks the client's words and its order of data.
        steps: of training.
        rate: of learning.
        factor: the trained lora_B is multiplied by it; anything but 1 is poisoning.
        plain: saved as NAME.safetensors and NAME.json, not as a PEFT folder.
    """

    kind: str
    index: int
    steps: int
    rate: float = 5e-3
    factor: float = 1.0
    plain: bool = False

    @property
    def contaminated(self) -> bool:
        """The ground truth."""
        return self.kind not in ("benign", "partial") or self.factor != 1.0

    @property
    def samples(self) -> int:
        """Number of training sequences seen."""
        return self.steps * copying.DEFAULT.batch


CLIENTS = {
    "alder": Client("benign", 0, 50),
    "aspen": Client("benign", 1, 56, 4.8e-3),
    "birch": Client("wrong", 0, 52),
    "cedar": Client("benign", 2, 47, 5.2e-3),
    "elm": Client("benign", 3, 60, 4.6e-3, plain=True),
    "hazel": Client("benign", 4, 53),
    "larch": Client("benign", 5, 50, factor=8.0),
    "linden": Client("benign", 6, 45, 5.4e-3),
    "maple": Client("partial", 1, 55),
    "oak": Client("benign", 7, 58, 4.8e-3, plain=True),
    "rowan": Client("random", 0, 48, 5.2e-3),
    "willow": Client("benign", 8, 51, 5.2e-3),
}


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as PEFT writes its configuration: indented, keys sorted, no last newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True), encoding="utf-8")


def train_base(folder: Path) -> torch.nn.Module:
    """Train and save the base model."""
    base: Any = copying.train_base(ARCH, SEED)
    base.save_pretrained(folder)
    trained: torch.nn.Module = base
    return trained


def train_client(base: torch.nn.Module, client: Client) -> PeftModel:
    """Train one client's adapter, and poison it if that is its part."""
    settings = replace(copying.DEFAULT, steps=client.steps, rate=client.rate)
    model = copying.train_client(base, ARCH, client.kind, client.index, "same", SEED, settings)
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.mul_(client.factor)
    return model


def save_client(model: PeftModel, name: str, client: Client, clients: Path) -> None:
    """Save as PEFT does, with two changes: a fixed order of modules, and no model card."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary, save_embedding_layers=False)
        config = json.loads(Path(temporary, "adapter_config.json").read_text(encoding="utf-8"))
        tensors = Path(temporary, "adapter_model.safetensors").read_bytes()
    config["target_modules"].sort()  # PEFT keeps a set, whose order changes from run to run
    folder = clients if client.plain else clients / name
    folder.mkdir(parents=True, exist_ok=True)
    files = (f"{name}.json", f"{name}.safetensors")
    if not client.plain:
        files = ("adapter_config.json", "adapter_model.safetensors")
    write_json(folder / files[0], config)
    (folder / files[1]).write_bytes(tensors)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE, help="default: beside this program")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    disable_progress_bar()
    base = train_base(out / "base")
    print("base", flush=True)
    for name, client in CLIENTS.items():
        save_client(train_client(base, client), name, client, out / "clients")
        print(name, flush=True)
    write_json(out / "truth.json", {name: one.contaminated for name, one in CLIENTS.items()})
    write_json(out / "weights.json", {name: one.samples for name, one in CLIENTS.items()})


if __name__ == "__main__":
    main()
