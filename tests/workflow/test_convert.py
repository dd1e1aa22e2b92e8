"""`clair convert`: one adapter in another format, its product exact, and what is lost said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.load import load_one
from tests import cohorts
from tests.cohorts import Array, Client, clair
from tests.workflow.test_formats import UNET, kohya_module, write

FORMATS = ("peft", "kohya", "diffusers", "mlx")
FORMS = ("d.safetensors", "d")


def read(path: Path) -> Adapter:
    cohort = load_one(path)
    assert cohort.rejected == ()
    return cohort.adapters[0]


def deltas(adapter: Adapter) -> cohorts.Deltas:
    found = {}
    for name, module in adapter.modules.items():
        lora_A, lora_B = adapter.stored_factors(name)
        found[name] = module.scaling * (lora_B.double() @ lora_A.double()).numpy()
    return found


def unet_client(**config: Any) -> Client:
    """Modules of ranks 2, 3 and 4."""
    rng = np.random.default_rng(0)
    ranks = {m: 2 + k % 3 for k, m in enumerate(UNET)}
    A = {m: rng.standard_normal((r, UNET[m][1])) for m, r in ranks.items()}
    B = {m: rng.standard_normal((UNET[m][0], r)) for m, r in ranks.items()}
    short = {m.removeprefix("unet."): r for m, r in ranks.items()}
    return Client(A, B, {"r": 2, "rank_pattern": short, "task_type": None, **config})


def bare(client: Client) -> Client:
    """Of the U-Net alone, as PEFT has it."""
    A = {m.removeprefix("unet."): a for m, a in client.A.items()}
    return Client(A, {m.removeprefix("unet."): b for m, b in client.B.items()}, client.config)


def canonical(adapter: Adapter) -> cohorts.Deltas:
    """By the names that PEFT has for the U-Net's modules."""
    known = {kohya_module(m): m for m in UNET}
    return {known.get(n, n).removeprefix("unet."): d for n, d in deltas(adapter).items()}


def factors_of(adapter: Adapter) -> dict[str, list[bytes]]:
    """The bytes of each module's factors, by the same names."""
    known = {kohya_module(m): m for m in UNET}
    return {
        known.get(name, name).removeprefix("unet."): [
            tensor.contiguous().numpy().tobytes() for tensor in adapter.stored_factors(name)
        ]
        for name in adapter.modules
    }


SCALES: dict[str, dict[str, Any]] = {
    "one scale": {"lora_alpha": 6, "rank_pattern": {}, "r": 3},
    "patterns": {"lora_alpha": 6, "alpha_pattern": {"to_k": 5, "up_blocks.1.*to_q": 0.3}},
    "rslora": {"lora_alpha": 7, "use_rslora": True},
}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("between", FORMATS)
def test_from_peft_over_two_formats_the_product_stays(
    tmp_path: Path, between: str, wanted: str, form: str, scales: str
) -> None:
    client = unet_client(**SCALES[scales])
    if scales == "one scale":
        client = Client({m: np.resize(a, (3, a.shape[1])) for m, a in client.A.items()},
                        {m: np.resize(b, (len(b), 3)) for m, b in client.B.items()},
                        client.config)  # fmt: skip
    client = bare(client)
    source = cohorts.save_peft(tmp_path / "s", client)
    result = clair_cli.convert(source, tmp_path / "b", between)  # type: ignore[arg-type]
    assert (result.given_format, result.format, result.modules) == ("peft", between, len(UNET))
    clair_cli.convert(tmp_path / "b", tmp_path / form, wanted)  # type: ignore[arg-type]
    given, made = read(source), read(tmp_path / form)
    assert made.format == wanted
    assert cohorts.relative(canonical(made), canonical(given)) <= 1e-7
    if "mlx" not in (between, wanted) or scales == "one scale":
        assert factors_of(made) == factors_of(given)  # bit for bit


@pytest.mark.parametrize("ranks", [(2, 3, 3), (3, 2, 3), (2, 3, 4)])
def test_a_path_that_is_the_end_of_another_keeps_its_rank(
    tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    """PEFT takes the first key of a pattern that a path ends with."""
    rng = np.random.default_rng(0)
    sizes = dict(zip(("q", "block.q", "other"), ranks, strict=True))
    A = {m: rng.standard_normal((r, 6)) for m, r in sizes.items()}
    B = {m: rng.standard_normal((8, r)) for m, r in sizes.items()}
    pattern = {f"^{m}": r for m, r in sizes.items()}
    client = Client(A, B, {"r": 3, "lora_alpha": 6, "rank_pattern": pattern})
    source = cohorts.save_peft(tmp_path / "s", client)
    clair_cli.convert(source, tmp_path / "p", "peft")
    made = read(tmp_path / "p")
    assert {name: module.rank for name, module in made.modules.items()} == sizes
    assert cohorts.relative(deltas(made), deltas(read(source))) <= 1e-7


def test_the_dtype_and_mixed_ranks_stay(tmp_path: Path) -> None:
    client = bare(unet_client(lora_alpha=6))
    source = cohorts.save_peft(tmp_path / "s", client, "BF16")
    clair_cli.convert(source, tmp_path / "k.safetensors", "kohya")
    given, made = read(source), read(tmp_path / "k.safetensors")
    assert {m.dtype for m in made.modules.values()} == {"bfloat16"}
    assert sorted(m.rank for m in made.modules.values()) == sorted(
        m.rank for m in given.modules.values()
    )
    assert cohorts.relative(canonical(made), canonical(given)) <= 1e-7
    _, metadata = cohorts.read_safetensors(tmp_path / "k.safetensors")
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "Dynamic"


def test_one_rank_and_scale_of_mlx_by_zeros_and_by_lora_b(tmp_path: Path) -> None:
    client = bare(unet_client(lora_alpha=6))
    source = cohorts.save_peft(tmp_path / "s", client, "F16")
    result = clair_cli.convert(source, tmp_path / "m", "mlx")
    (text,) = [t for t in result.lost if t.startswith("scales of their own")]
    assert "which lora_b holds now, rounded to float32: modules 'down_blocks" in text
    tensors, _ = cohorts.read_safetensors(tmp_path / "m" / "adapters.safetensors")
    config = json.loads((tmp_path / "m" / "adapter_config.json").read_text())
    assert config["lora_parameters"]["rank"] == 4
    assert {t.shape[1] for name, t in tensors.items() if name.endswith("lora_a")} == {4}
    assert {t.shape[0] for name, t in tensors.items() if name.endswith("lora_b")} == {4}
    given, made = read(source), read(tmp_path / "m")
    assert cohorts.relative(canonical(made), canonical(given)) <= 1e-7


def words(result: Any) -> str:
    assert result.stdout == ""
    return str(result.stderr)


def test_the_command_says_what_is_lost(tmp_path: Path) -> None:
    fields = {"lora_dropout": 0.25, "task_type": "CAUSAL_LM", "revision": "main", "lora_alpha": 8}
    source = cohorts.save_peft(tmp_path / "s", bare(unet_client(**fields)))
    result = clair("convert", source, "-o", tmp_path / "k", "--tensor-names", "kohya")
    assert result.exit_code == 0
    assert words(result) == (
        "lost: fields of the config: base_model_name_or_path, lora_dropout, revision, task_type\n"
        f"{tmp_path}/k: 6 modules, peft to kohya\n"
    )
    result = clair("convert", source, "-o", tmp_path / "p", "--tensor-names", "peft")
    assert words(result) == f"{tmp_path}/p: 6 modules, peft to peft\n"
    metadata = {"ss_learning_rate": "1e-4", "ss_network_dim": "4", "format": "pt"}
    tensors = cohorts.read_safetensors(tmp_path / "k" / "pytorch_lora_weights.safetensors")[0]
    write(tmp_path / "n.safetensors", tensors, metadata)
    made = tmp_path / "n"
    result = clair("convert", tmp_path / "n.safetensors", "-o", made, "--tensor-names", "peft")
    assert "lost: 2 fields of the header: 'ss_learning_rate', 'ss_network_dim'\n" in words(result)
    result = clair("convert", made, "-o", made, "--tensor-names", "mlx", "--force")
    assert result.exit_code == 2
    assert "is the input" in words(result)
    result = clair("convert", source, "-o", made, "--tensor-names", "mlx", "-qf")
    assert {p.name for p in made.iterdir()} == {"adapter_config.json", "adapters.safetensors"}
    assert words(result).startswith("lost: fields of the config: revision, task_type\nlost: scales")


def with_bad_names(tmp_path: Path) -> Path:
    client = Client({"a.b": np.ones((2, 4)), "unet.x": np.ones((2, 4))},
                    {"a.b": np.ones((4, 2)), "unet.x": np.ones((4, 2))})  # fmt: skip
    return cohorts.save_peft(tmp_path / "s", client)


def test_refusals_have_the_exit_codes_of_the_other_commands(tmp_path: Path) -> None:
    """And write nothing."""
    good = cohorts.save_peft(tmp_path / "good", bare(unet_client(lora_alpha=6)))
    nan = cohorts.save_peft(tmp_path / "nan", cohorts.with_nan(unet_client(lora_alpha=6)))
    pissa = unet_client(lora_alpha=6, init_lora_weights="pissa")
    started = cohorts.save_peft(tmp_path / "pissa", bare(pissa))
    zero = cohorts.save_peft(tmp_path / "zero", bare(unet_client(lora_alpha=0)))
    write(tmp_path / "alone.safetensors", {"a.lora_A.weight": np.ones((2, 4)),
                                           "a.lora_B.weight": np.ones((4, 2))})  # fmt: skip
    (tmp_path / "old").write_text("")
    cases: list[tuple[Path, str, str, int, str]] = [
        (tmp_path / "absent", "x", "peft", 2, "does not exist"),
        (good, "x.bin", "peft", 2, "its name ends like a file's"),
        (good, "no/x", "peft", 2, "of the output does not exist"),
        (good, "good/x", "peft", 2, "lies inside the input"),
        (with_bad_names(tmp_path), "x", "kohya", 2, "needs the part of a pipeline"),
        (good, "x", "auto", 2, "'auto' is not one of"),
        (nan, "x", "peft", 4, "NaN or Inf"),
        (tmp_path / "alone.safetensors", "x", "peft", 4, "no adapter config"),
        (started, "x", "kohya", 4, "changes the base weights"),
        (zero, "x", "kohya", 4, "an alpha of 0, which an alpha tensor can't say"),
        (good, "old", "peft", 6, "exists"),
    ]
    for source, out, wanted, code, text in cases:
        before = cohorts.snapshot(tmp_path)
        result = clair("convert", source, "-o", tmp_path / out, "--tensor-names", wanted)
        assert (result.exit_code, text in result.stderr) == (code, True), (text, result.stderr)
        assert cohorts.snapshot(tmp_path) == before
    result = clair("convert", good, "-o", tmp_path / "x")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        2, "clair: missing option '--tensor-names'"
    )  # fmt: skip
    options = ("--tensor-names", "peft", "--assume-alpha", "rank")
    alone = tmp_path / "alone.safetensors"
    assert clair("convert", alone, "-o", tmp_path / "x", *options).exit_code == 0
    result = clair("convert", good, "-o", tmp_path / "y", "--tensor-names", "mlx", "--limit",
                   "rank=3")  # fmt: skip
    assert result.exit_code == 4
    result = clair("convert", started, "-o", tmp_path / "z", "--tensor-names", "peft")
    assert cohorts.read_config(tmp_path / "z")["init_lora_weights"] == "pissa"


def test_alphas_stay_tensors_and_no_module_goes_without(tmp_path: Path) -> None:
    """Loaders take another module's alpha, and not 1, where one is missing."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for name, alpha in (("a.to_q", 2.0), ("b.to_q", 6.0)):
        tensors[f"diffusion_model.{name}.lora_A.weight"] = rng.standard_normal((2, 6))
        tensors[f"diffusion_model.{name}.lora_B.weight"] = rng.standard_normal((8, 2))
        tensors[f"diffusion_model.{name}.alpha"] = np.array(alpha)
    write(tmp_path / "s.safetensors", tensors)
    clair_cli.convert(tmp_path / "s.safetensors", tmp_path / "d.safetensors", "diffusers")
    made, metadata = cohorts.read_safetensors(tmp_path / "d.safetensors")
    assert made.keys() == tensors.keys()
    assert all(np.array_equal(made[name], np.float32(tensors[name])) for name in made)
    assert metadata == {"format": "pt"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", FORMATS)
def test_names_and_config_are_those_of_a_merge_of_one_client(
    tmp_path: Path, wanted: str, form: str
) -> None:
    fields = {"r": 6, "rank_pattern": {}, "lora_alpha": 6, "lora_dropout": 0.25}
    client = cohorts.factored({m.removeprefix("unet."): np.ones(s) for m, s in UNET.items()}, 6,
                              fields)  # fmt: skip
    cohorts.save_peft(tmp_path / "clients" / "a", client)
    options = ("--tensor-names", wanted)
    more = ("--rank", "6", "--dtype", "float32", "--allow-undetermined")
    for command, given, out in (("merge", "", "m"), ("convert", "a", "c")):
        path = tmp_path / out / form
        path.parent.mkdir()
        every = (*options, *(more if command == "merge" else ()))
        result = clair(command, tmp_path / "clients" / given, "-o", path, *every)
        assert result.exit_code == 0, result.stderr
    merged, made = tmp_path / "m" / form, tmp_path / "c" / form
    if form == "d":
        (merged / "report.json").unlink()
        (merged / "README.md").unlink()
        assert cohorts.snapshot(merged).keys() == cohorts.snapshot(made).keys()
        configs = [folder / "adapter_config.json" for folder in (merged, made)]
        if configs[0].exists():
            assert configs[0].read_text() == configs[1].read_text()
        (merged,), (made,) = (list(p.glob("*.safetensors")) for p in (merged, made))
    (wanted_tensors, header), (tensors, own) = map(cohorts.read_safetensors, (merged, made))
    assert {n: t.shape for n, t in tensors.items()} == {
        n: t.shape for n, t in wanted_tensors.items()
    }
    assert ("clair" in header) == (form != "d")  # where it is from
    assert own == {name: text for name, text in header.items() if name != "clair"}


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = cohorts.save_peft(tmp_path / "s", bare(unet_client(**SCALES["patterns"])))
    for out in ("a", "b"):
        clair_cli.convert(source, tmp_path / out, "diffusers")
    assert cohorts.snapshot(tmp_path / "a") == cohorts.snapshot(tmp_path / "b")


HEADS = {
    f"{cohorts.PREFIX}score.weight": np.arange(6.0).reshape(3, 2),
    f"{cohorts.PREFIX}mid_block.proj.lora_B.bias": np.arange(4.0),
}


def with_heads(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    tensors = {
        f"{cohorts.PREFIX}mid_block.proj.lora_A.weight": rng.standard_normal((2, 5)),
        f"{cohorts.PREFIX}mid_block.proj.lora_B.weight": rng.standard_normal((4, 2)),
        **HEADS,
    }
    config = {"r": 2, "lora_alpha": 6, "modules_to_save": ["score"], "lora_bias": True}
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(cohorts.safetensors(tensors, "F32", {}))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def test_what_was_trained_beside_the_lora_stays_as_it_is(tmp_path: Path) -> None:
    source = with_heads(tmp_path / "s")
    assert clair("convert", source, "-o", tmp_path / "d", "--tensor-names", "peft").exit_code == 0
    found, _ = cohorts.read_safetensors(tmp_path / "d" / "adapter_model.safetensors")
    assert {key: found[key].tolist() for key in HEADS} == {
        key: value.tolist() for key, value in HEADS.items()
    }
    config = cohorts.read_config(tmp_path / "d")
    assert (config["modules_to_save"], config["lora_bias"]) == (["score"], True)
    assert config["lora_alpha"] / config["r"] == 3


def test_formats_without_names_for_it_say_so(tmp_path: Path) -> None:
    source = with_heads(tmp_path / "s")
    result = clair("convert", source, "-o", tmp_path / "d", "--tensor-names", "mlx")
    assert result.exit_code == 0
    assert "lost: what was trained beside the LoRA: 'mid_block.proj.lora_B.bias'" in result.stderr
