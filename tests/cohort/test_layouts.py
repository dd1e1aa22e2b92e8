"""Where trainers, frameworks and the hub's cache put an adapter: read, or rejected by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from clair_cli.cohort import inside
from clair_cli.cohort.load import load_one
from clair_cli.errors import UsageError
from tests import cohorts
from tests.cohorts import texts
from tests.hostile import client, config, load_cohort, only_rejection

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def scale_of_bob(folder: Path, **options: Any) -> float:
    """Which of Bob's adapters was read, by its scale."""
    cohort = load_cohort(folder, **options)
    assert cohort.rejected == ()
    (bob,) = [a for a in cohort.adapters if a.name == "bob"]
    return bob.modules["layers.0.q_proj"].scaling


def trainer(folder: Path, *steps: int, best: object = None, own: bool = False) -> Path:
    """A trainer's folder; checkpoint N scales by N, the adapter in the folder itself by 7."""
    bob = folder / "bob"
    for step in steps:
        made = client(bob, f"checkpoint-{step}", fields=config(2, 2 * step))
        (made / "optimizer.pt").write_bytes(b"x")
        state = {"global_step": step, "best_model_checkpoint": best, "loss": float("nan")}
        (made / "trainer_state.json").write_text(json.dumps(state))
    if own:
        made = client(folder, "made", fields=config(2, 14))
        for file in made.iterdir():
            file.rename(bob / file.name)
        made.rmdir()
    return bob


# An adapter further down


@pytest.mark.parametrize(
    "where", ["default", "actor/lora_adapter", "a/b", "global_step_10/actor/lora_adapter"]
)
def test_one_adapter_down_to_three_levels(folder: Path, where: str) -> None:
    client(folder / "bob", where, fields=config(2, 10))
    assert scale_of_bob(folder) == 5
    cohort = load_cohort(folder)
    assert texts(cohort.adapters[0].notes) == (f"read from the sub-folder '{where}'",)
    assert cohort.adapters[0].path.endswith(f"bob/{where}/{WEIGHTS}")
    (adapter,) = load_one(folder / "bob").adapters
    assert adapter.modules["layers.0.q_proj"].scaling == 5


def test_four_levels_down_is_named_as_ignored(folder: Path) -> None:
    client(folder / "bob", "a/b/c/d")
    cohort = load_cohort(folder)
    assert cohort.rejected == () and cohort.ignored == ("bob/",)
    assert "folder 'bob' ignored" in texts(cohort.notes)[0]


def test_the_one_weights_file_of_another_name(folder: Path) -> None:
    made = client(folder / "bob", "output", fields=config(2, 10))
    (made / WEIGHTS).rename(made / "last.safetensors")
    assert scale_of_bob(folder) == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ([f"x/{WEIGHTS}", f"y/{WEIGHTS}"], "folder holds 2 adapters, expected one: 'x', 'y'"),
        ([f"x/a/{WEIGHTS}", f"y/{WEIGHTS}"], "folder holds 2 adapters, expected one: 'x/a', 'y'"),
        (["x/a.safetensors", "y/b.safetensors"], "folder holds 2 adapters"),
        (["x/a.safetensors", "x/b.safetensors"], "folder holds 2 .safetensors files"),
        (["a/b/c/adapter_model.bin"], "'a/b/c/adapter_model.bin' is a pickle-based file"),
        (["a/old.zip"], "'a/old.zip' is an archive"),
        (["a/b/m.gguf"], "'a/b/m.gguf' is no .safetensors file"),
        ([f"a/{CONFIG}"], f"sub-folder 'a' holds {CONFIG}, but no {WEIGHTS}"),
        (["model-1.safetensors", "model.safetensors.index.json"], "a sharded whole model"),
        (["a-1.safetensors", "adapter_model.safetensors.index.json"], "a sharded adapter"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "2 of 2 shards and no index (.safetensors.index.json), none called",
        ),
        (["a-1-of-00012.safetensors", "a-3-of-00012.safetensors"], "holds 2 of 12 shards and no"),
        (["checkpoint-1/x.pt"], "'checkpoint-1/x.pt' is a pickle-based file"),
    ],
)
def test_what_cannot_be_read_is_rejected_by_name(folder: Path, make: list[str], words: str) -> None:
    for name in make:
        (folder / "bob" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "bob" / name).touch()
    rejection = only_rejection(folder)
    assert rejection.name == "bob" and words in rejection.message


def test_shards_are_asked_for_as_one_file(folder: Path) -> None:
    (folder / "bob").mkdir()
    for name in ("a-1-of-2.safetensors", "a-2-of-2.safetensors"):
        (folder / "bob" / name).touch()
    hint = only_rejection(folder).hint
    assert hint and "ask for the adapter as one file, as save_pretrained" in hint


def test_strict_holds_for_an_adapter_further_down(tmp_path: Path) -> None:
    cohorts.save(tmp_path / "clients", cohorts.honest(3))
    hidden = tmp_path / "clients" / "bob" / "a" / "b"
    hidden.mkdir(parents=True)
    (hidden / "adapter_model.bin").touch()
    assert cohorts.clair("inspect", tmp_path / "clients", "--fail-on", "never").exit_code == 0
    assert cohorts.clair("inspect", tmp_path / "clients", "--strict").exit_code == 4


def test_folders_without_weights_are_named_in_one_note(folder: Path) -> None:
    for name in (".git", "logs/deep/er", "plots"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x.txt").touch()
    client(folder / ".cache", "x")
    (folder / "logs" / "training_args.bin").touch()
    cohort = load_cohort(folder)
    assert [a.name for a in cohort.adapters] == ["good"] and cohort.rejected == ()
    (said,) = texts(cohort.notes)
    assert said.startswith("folders '.cache', '.git', 'logs', 'plots' ignored: no weights file")


@pytest.mark.parametrize("count", [inside.MAX_ENTRIES - 1, inside.MAX_ENTRIES])
def test_looking_ends_after_so_many_entries(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Bob's folder, one sub-folder, and the rest in it."""
    monkeypatch.setattr(inside, "MAX_ENTRIES", 20)
    count += 20 - 20_000
    (folder / "bob" / "deep").mkdir(parents=True)
    for k in range(count - 1):
        (folder / "bob" / "deep" / f"{k}").touch()
    cohort = load_cohort(folder)
    assert [r.name for r in cohort.rejected] == ([] if count < 20 else ["bob"])
    assert count < 20 or "more than 20 entries down to 3 levels" in cohort.rejected[0].message


# Links


def test_a_link_counts_as_what_it_leads_to(folder: Path) -> None:
    trainer(folder, 3)
    (folder / "bob" / "best").symlink_to("checkpoint-3")
    (folder / "bob" / "self").symlink_to(".")
    (folder / "bob" / "up").symlink_to("..")
    (folder / "bob" / "gone").symlink_to("nowhere")
    assert scale_of_bob(folder) == 3


def test_a_link_out_of_the_cohort(folder: Path) -> None:
    outside = client(folder.parent, "outside")
    (folder / "bob" / "a").mkdir(parents=True)
    (folder / "bob" / "a" / "b").symlink_to(outside)
    assert "leaves the cohort's folder" in only_rejection(folder).message
    (outside / WEIGHTS).unlink()
    assert load_cohort(folder).ignored == ("bob/",)


# Checkpoints


@pytest.mark.parametrize(("wanted", "scale"), [("last", 1000), ("best", 20), (3, 3)])
@pytest.mark.parametrize("own", [False, True])
def test_the_checkpoint_asked_for(folder: Path, wanted: str | int, scale: float, own: bool) -> None:
    trainer(folder, 3, 20, 1000, best="/elsewhere/out/checkpoint-20", own=own)
    assert scale_of_bob(folder, checkpoint=wanted) == scale
    notes = " ".join(texts(load_cohort(folder, checkpoint=wanted).adapters[0].notes))
    assert f"'checkpoint-{scale}', " in notes and "of 3 checkpoints" in notes
    assert ("the adapter in the folder itself is ignored" in notes) is own


def test_without_the_option_the_folders_own_adapter_is_read(folder: Path) -> None:
    trainer(folder, 3, 20, own=True)
    assert scale_of_bob(folder) == 7


def test_several_checkpoints_and_no_option(folder: Path) -> None:
    trainer(folder, 3, 20)
    rejection = only_rejection(folder)
    assert "holds 2 adapters, expected one: 'checkpoint-20', 'checkpoint-3'" in rejection.message
    assert "--checkpoint last|best|N" in rejection.hint


def test_an_adapter_of_ones_own_is_given_by_its_folder(folder: Path) -> None:
    bob = trainer(folder, 3, 20)
    with pytest.raises(UsageError, match="holds 2 adapters, expected one") as caught:
        load_one(bob)
    assert caught.value.hint == "give the folder of the one that is meant"
    assert load_one(bob / "checkpoint-3").adapters


def test_one_checkpoint_needs_no_option(folder: Path) -> None:
    trainer(folder, 3)
    assert scale_of_bob(folder) == 3


def test_the_option_changes_no_client_without_checkpoints(folder: Path) -> None:
    cohort = load_cohort(folder, checkpoint="best")
    assert [a.name for a in cohort.adapters] == ["good"] and cohort.adapters[0].notes == ()


def test_checkpoints_of_other_trainers(folder: Path) -> None:
    for step in (9, 10):
        where = f"run/global_step_{step}/lora_adapter"
        client(folder / "bob", where, fields=config(2, 2 * step))
    assert scale_of_bob(folder, checkpoint="last") == 10
    assert scale_of_bob(folder, checkpoint=9) == 9


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (None, "names no best checkpoint (best_model_checkpoint is None)"),
        ("out/final", "names no best checkpoint"),
        (["x"], "names no best checkpoint"),
        ("checkpoint-4", "has no checkpoint 4, its best one by trainer_state.json; it has 3, 20"),
    ],
)
def test_a_best_checkpoint_that_is_not_known(folder: Path, best: object, words: str) -> None:
    trainer(folder, 3, 20, best=best)
    rejection = only_rejection(folder, checkpoint="best")
    assert words in rejection.message and "--checkpoint last" in rejection.hint


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "no trainer_state.json"),
        ("{", "trainer_state.json is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 9_000_000, "above the limit"),
        ('{"best_model_checkpoint": ' + "9" * 5000 + "}", "trainer_state.json is not JSON"),
    ],
)
def test_a_trainers_record_that_cannot_be_read(folder: Path, state: str | None, words: str) -> None:
    bob = trainer(folder, 3, 20, best="checkpoint-3")
    for step in (3, 20):
        (bob / f"checkpoint-{step}" / "trainer_state.json").unlink()
    if state is not None:
        (bob / "trainer_state.json").write_text(state)
    assert words in only_rejection(folder, checkpoint="best").message


def test_the_record_of_the_run_comes_first(folder: Path) -> None:
    bob = trainer(folder, 3, 20, best="checkpoint-20")
    (bob / "trainer_state.json").write_text(
        '{"best_model_checkpoint": "C:\\\\out\\\\checkpoint-3"}'
    )
    assert scale_of_bob(folder, checkpoint="best") == 3


def test_the_record_may_give_a_number_alone(folder: Path) -> None:
    bob = trainer(folder, 3, 20)
    (bob / "trainer_state.json").write_text('{"best_global_step": 3}')
    assert scale_of_bob(folder, checkpoint="best") == 3
    (bob / "trainer_state.json").write_text('{"best_global_step": true}')
    assert "names no best checkpoint" in only_rejection(folder, checkpoint="best").message


def test_checkpoints_without_an_adapter_are_named(folder: Path) -> None:
    """A run that was killed while it saved one."""
    bob = trainer(folder, 3, 20)
    for step in (100, 30):
        (bob / f"checkpoint-{step}").mkdir()
    assert scale_of_bob(folder, checkpoint="last") == 20
    (bob_read, _) = load_cohort(folder, checkpoint="last").adapters
    assert texts(bob_read.notes)[0] == (
        "read from 'checkpoint-20', the last of 2 checkpoints; without an adapter: "
        "'checkpoint-30', 'checkpoint-100'"
    )


def test_the_folder_above_the_cohort(folder: Path) -> None:
    client(folder, "bob")
    (rejection,) = load_cohort(folder.parent).rejected
    assert "holds 2 adapters, expected one: 'bob', 'good'" in rejection.message
    assert "if they are the clients, give this folder" in rejection.hint


def test_a_number_that_is_not_there(folder: Path) -> None:
    trainer(folder, 3, 20)
    assert "has no checkpoint 4; it has 3, 20" in only_rejection(folder, checkpoint=4).message


def test_checkpoints_of_two_runs(folder: Path) -> None:
    for run in ("a", "b"):
        client(folder / "bob" / run, "checkpoint-3")
    assert "holds 2 adapters" in only_rejection(folder, checkpoint=3).message


def test_verify_reads_the_same_checkpoint(tmp_path: Path) -> None:
    made, folder = cohorts.honest(3), tmp_path / "clients"
    for name, adapter in made.items():
        cohorts.save_peft(folder / name / "checkpoint-10", adapter)
        cohorts.save_peft(folder / name / "checkpoint-9", cohorts.unrelated())
    out = tmp_path / "m.safetensors"
    assert cohorts.clair("merge", folder, "-o", out).exit_code == 4
    done = cohorts.clair("merge", folder, "-o", out, "--checkpoint", "last", "--rank", "full")
    assert done.exit_code == 0, done.stderr
    assert (
        cohorts.relative(cohorts.read_dense(out), cohorts.mean([c.deltas() for c in made.values()]))
        < 1e-5
    )
    assert cohorts.clair("verify", out, folder).exit_code == 0


def test_values_of_the_option(tmp_path: Path) -> None:
    for value in ("first", "-1", "1.5"):
        ran = cohorts.clair("inspect", tmp_path, "--checkpoint", value)
        assert ran.exit_code == 2 and "last, best or a checkpoint's number" in ran.stderr


# The hub's cache


def cached(folder: Path, name: str = "models--org--bob", scale: int = 5) -> Path:
    """A download cache of one adapter: its files are links to blobs."""
    cache = folder / name
    made = client(folder, "made", fields=config(2, 2 * scale))
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for file, blob in ((WEIGHTS, "0a1b"), (CONFIG, "2c3d")):
        (made / file).rename(cache / "blobs" / blob)
        (cache / "snapshots" / "abc" / file).symlink_to(f"../../blobs/{blob}")
    made.rmdir()
    return cache


def test_a_download_cache_is_a_client(folder: Path) -> None:
    cache = cached(folder)
    (adapter, _) = sorted(load_cohort(folder).adapters, key=lambda a: a.name != cache.name)
    assert adapter.name == cache.name and adapter.modules["layers.0.q_proj"].scaling == 5
    assert texts(adapter.notes) == ("read from the download cache, snapshot 'abc'",)
    (adapter,) = load_one(cache).adapters
    assert adapter.modules["layers.0.q_proj"].scaling == 5


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("target", ["../../../good/{}", "../../../../outside/{}"])
def test_links_of_a_cache_stay_in_its_blobs(folder: Path, file: str, target: str) -> None:
    client(folder.parent, "outside")
    link = cached(folder) / "snapshots" / "abc" / file
    link.unlink()
    link.symlink_to(target.format(file))
    assert "leaves the blobs of its download cache" in only_rejection(folder).message


def test_blobs_that_are_a_link_to_another_client(folder: Path) -> None:
    cache = cached(folder)
    for blob, file in (("0a1b", WEIGHTS), ("2c3d", CONFIG)):
        (cache / "blobs" / blob).unlink()
        (cache / "snapshots" / "abc" / file).unlink()
        (cache / "snapshots" / "abc" / file).symlink_to(f"../../blobs/{file}")
    (cache / "blobs").rmdir()
    (cache / "blobs").symlink_to("../good")
    assert "leaves the blobs of its download cache" in only_rejection(folder).message


def test_snapshots_that_are_a_link_out(folder: Path) -> None:
    cache = cached(folder)
    (cache / "snapshots").rename(folder.parent / "snapshots")
    (cache / "snapshots").symlink_to(folder.parent / "snapshots")
    assert only_rejection(folder).name == cache.name


def test_an_adapter_beside_folders_called_like_a_caches(folder: Path) -> None:
    for name in ("blobs", "snapshots"):
        (folder / "good" / name).mkdir()
    assert [a.name for a in load_cohort(folder).adapters] == ["good"]


def test_several_snapshots(folder: Path) -> None:
    cache = cached(folder, "bob")
    (cache / "snapshots" / "def").mkdir()
    rejection = only_rejection(folder)
    assert "a download cache with 2 snapshots, and refs/main names none" in rejection.message
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    assert scale_of_bob(folder) == 5
    (cache / "refs" / "main").write_text("../../good")
    assert "refs/main names none of them" in only_rejection(folder).message


def test_an_empty_cache_is_no_client(folder: Path) -> None:
    for name in ("blobs", "snapshots/abc"):
        (folder / "bob" / name).mkdir(parents=True)
    assert load_cohort(folder).ignored == ("bob/",)


# What stands beside an adapter


def test_other_weights_beside_an_adapter_are_named(folder: Path) -> None:
    for name in ("value_head.safetensors", "new_embeddings.safetensors", ".x.safetensors"):
        (folder / "good" / name).touch()
    (adapter,) = load_cohort(folder).adapters
    assert texts(adapter.notes) == (
        "'new_embeddings.safetensors', 'value_head.safetensors' left out: only "
        "'adapter_model.safetensors' is read",
    )


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "adapters.safetensors"])
def test_the_usual_names_of_other_tools_come_before_others(folder: Path, file: str) -> None:
    made = client(folder, "bob", fields=config(2, 10))
    (made / WEIGHTS).rename(made / file)
    (made / "zzz.safetensors").touch()
    (made / "0001_adapters.safetensors").touch()
    assert scale_of_bob(folder) == 5


def test_one_trainers_folder_is_one_client(folder: Path) -> None:
    bob = trainer(folder, 3, 20, own=True)
    (bob / "value_head.safetensors").touch()
    cohort = load_cohort(bob)
    assert [a.name for a in cohort.adapters] == ["bob"]
    assert "give the folder that holds their folders" in texts(cohort.notes)[-1]
    assert "'checkpoint-20', 'checkpoint-3', 'value_head.safetensors' left out" in " ".join(
        texts(cohort.adapters[0].notes)
    )
    client(bob, "another")
    assert len(load_cohort(bob).adapters) > 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_sub_folder_that_cannot_be_listed(folder: Path) -> None:
    (folder / "bob" / "a").mkdir(parents=True)
    (folder / "bob" / "a").chmod(0)
    assert "Permission denied" in only_rejection(folder).message


# The owners' own readers


@pytest.mark.loaders
def test_the_hubs_library_finds_the_same_snapshot(folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    cache = cached(folder)
    (cache / "snapshots" / "def").mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    theirs = hub.snapshot_download("org/bob", cache_dir=folder, local_files_only=True)
    (ours,) = [a for a in load_cohort(folder).adapters if a.name == cache.name]
    assert Path(theirs).samefile(Path(ours.path).parent)


@pytest.mark.loaders
def test_the_trainers_own_record(folder: Path) -> None:
    callbacks = pytest.importorskip("transformers.trainer_callback")
    bob = trainer(folder, 3, 20)
    for step in (3, 20):
        state = callbacks.TrainerState(
            global_step=step,
            best_model_checkpoint=str(bob / "checkpoint-3"),
            log_history=[{"loss": float("nan"), "step": step}],
        )
        state.save_to_json(str(bob / f"checkpoint-{step}" / "trainer_state.json"))
    assert scale_of_bob(folder, checkpoint="best") == 3
