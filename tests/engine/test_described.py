"""A round is sent to other machines as a small description, and work on it needs no more."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

from clair_cli.adapters.adapter import Adapter, LoraModule
from clair_cli.adapters.config import parse_config
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.shared_tables import SharedTables
from clair_cli.cohort.round import Round
from clair_cli.engine.ray_tasks import described, read_item
from clair_cli.formats.safetensors.reader import SafetensorsFile
from clair_cli.formats.safetensors.source import TensorEntry

SAMPLE = Path(__file__).parents[2] / "sample_adapters" / "clients"
RANK, OUT, IN = 8, 64, 48


def an_adapter(client: int, n_modules: int) -> Adapter:
    """Of a file that is not there; each tensor has a digest of its own."""
    modules, tensors, at = {}, {}, 0
    for n in range(n_modules):
        name = f"model.layers.{n // 7}.self_attn.{'qkvogud'[n % 7]}_proj"
        keys = []
        for side, shape in (("A", (RANK, IN)), ("B", (OUT, RANK))):
            key = f"base_model.model.{name}.lora_{side}.weight"
            size = 2 * shape[0] * shape[1]
            digest = hashlib.sha256(f"{client} {key}".encode()).digest()[:16]
            tensors[key] = TensorEntry(key, "BF16", shape, at, at + size, digest, exponent=-3)
            keys.append(key)
            at += size
        layout = Layout("linear", (OUT, IN))
        modules[name] = LoraModule(name, name, *keys, layout, RANK, 16.0, 2.0, "bfloat16")
    config = parse_config({"r": RANK, "lora_alpha": 16, "peft_type": "LORA", "target_modules": []})
    path = Path(f"/shared/round/client-{client:04}/adapter_model.safetensors")
    source = SafetensorsFile(
        f"{client:064x}", {}, tensors, 8, at + 8, (1, 2, 3, 4), path=path, shown=path.as_posix()
    )
    return Adapter(
        f"client-{client:04}", path.as_posix(), source.sha256, config, "", modules, source
    )


def a_round(n_clients: int, n_modules: int) -> Round:
    adapters = tuple(an_adapter(k, n_modules) for k in range(n_clients))
    shapes = dict.fromkeys(sorted(adapters[0].modules), (OUT, IN))
    return Round(adapters, (), shapes, None, None, None, None, ())


def test_the_description_is_little_more_than_the_digests() -> None:
    round_ = a_round(200, 100)
    sent = pickle.dumps(described(round_))
    digests = 200 * 100 * 2 * 16
    assert digests < len(sent) < 2 * digests
    assert len(pickle.dumps(round_)) > 10 * len(sent), "as it stands it is too much for each task"


def test_what_is_sent_has_the_same_modules_and_entries() -> None:
    round_ = a_round(3, 5)
    found = pickle.loads(pickle.dumps(described(round_)))
    assert found.module_ranks == round_.module_ranks
    for one, other in zip(round_.adapters, found.adapters, strict=True):
        assert (one.name, one.content(), one.modules) == (
            other.name,
            other.content(),
            other.modules,
        )
        assert dict(other.source.tensors) == one.source.tensors
        assert list(other.source.tensors) == list(one.source.tensors)
        assert other.source.path == one.source.path


def test_adapters_of_one_layout_have_their_tables_once() -> None:
    tables = SharedTables()
    one, other = (tables.shared(an_adapter(k, 5)) for k in range(2))
    assert one.modules is other.modules and one.config is other.config
    assert one.source.tensors != other.source.tensors


def test_a_machine_without_the_working_folder_reads_absolute_paths(tmp_path: Path) -> None:
    """Relative ones do not come to it: `check_nodes` asks for the folder."""
    before = Path.cwd()
    assert read_item(lambda item: item, str(tmp_path / "gone"), "x") == "x"
    assert Path.cwd() == before


def test_paths_are_absolute_for_machines_that_stand_elsewhere() -> None:
    """As that of a previous adapter may not be."""
    one = an_adapter(0, 1)
    before = replace(one, source=replace(one.source, path=Path("before/adapter.safetensors")))
    sent = described(replace(a_round(2, 1), previous=before))
    assert sent.previous.source.path == Path.cwd() / "before/adapter.safetensors"
    assert sent.adapters[0].source.path.is_absolute()
