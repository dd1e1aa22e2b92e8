"""What `clair convert` writes, loaded by diffusers and by peft: the delta weights stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clair_cli
from tests.adapters.test_diffusers import FIELDS, SAVE, load, theirs, trained, unet
from tests.adapters.test_peft_grid import EPS, worst
from tests.adapters.test_pipelines import TRAINERS, loaded, write

peft = pytest.importorskip("peft")
pytest.importorskip("diffusers")

pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]


def save_peft(model: Any, path: Path) -> None:
    """As PeftModel saves the U-Net's adapter, in a folder."""
    config = model.peft_config["default"]
    wrapped = peft.get_peft_model(unet(), config)
    state = peft.utils.get_peft_model_state_dict(model)
    named = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    peft.set_peft_model_state_dict(wrapped, named)
    wrapped.save_pretrained(path)


SAVED = {**SAVE, "peft": save_peft}


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("given", SAVED)
@pytest.mark.parametrize("over", ["", "mlx"])
def test_a_unet_in_each_format(tmp_path: Path, given: str, fields: str, over: str) -> None:
    """Its convolutions have no name in mlx-lm's format, so attention alone goes that way."""
    more = {} if not over else {"target_modules": ["to_q", "to_k", "to_v"]}
    model = trained(**FIELDS[fields], **more)
    source = tmp_path / ("peft" if given == "peft" else "s.safetensors")
    SAVED[given](model, source)
    wanted = theirs(model)
    if over:
        if given == "kohya":
            clair_cli.convert(source, tmp_path / "p", "diffusers")
            source = tmp_path / "p"
        clair_cli.convert(source, tmp_path / "mlx", "mlx")
        source = tmp_path / "mlx"
    for form in ("kohya", "diffusers"):
        out = tmp_path / f"{form}.safetensors"
        clair_cli.convert(source, out, form)  # type: ignore[arg-type]
        if form == "kohya" and fields == "patterns" and not over:
            # diffusers drops the alphas of to_k, which differ from most, in its own files too
            SAVED["kohya"](model, tmp_path / "own.safetensors")
            assert worst(theirs(load(out)), theirs(load(tmp_path / "own.safetensors"))) <= EPS
            continue
        assert worst(theirs(load(out)), wanted) <= EPS
    clair_cli.convert(source, tmp_path / "out", "peft")
    wrapped = peft.PeftModel.from_pretrained(unet(), tmp_path / "out")
    found = {name.replace("unet.base_model.model.", "unet."): delta
             for name, delta in theirs(wrapped).items()}  # fmt: skip
    assert worst(found, wanted) <= EPS


@pytest.mark.parametrize("name", ["wan", "qwen", "z-image", "flux"])
def test_a_transformers_own_adapter_for_its_pipeline(tmp_path: Path, name: str) -> None:
    """PEFT's folder has no part of a pipeline in its names; `transformer` goes in front."""
    trainer = TRAINERS[name]
    write(tmp_path / "s.safetensors", trainer)
    wanted = loaded(trainer, tmp_path / "s.safetensors")
    clair_cli.convert(tmp_path / "s.safetensors", tmp_path / "p", "peft")
    wrapped = peft.PeftModel.from_pretrained(trainer.model(), tmp_path / "p")
    found = {n.removeprefix("unet.base_model.model."): d for n, d in theirs(wrapped).items()}
    assert worst(found, wanted) <= EPS
    clair_cli.convert(tmp_path / "p", tmp_path / "d.safetensors", "diffusers")
    assert worst(loaded(trainer, tmp_path / "d.safetensors"), wanted) <= EPS
