"""Ways to make one small client hostile. Each changes it in place and takes its chances."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from fuzz.small_clients import N_HONEST, PREFIX, Client, Round, honest_round

Rng = np.random.Generator
Change = Callable[[Client, Rng], None]


def hostile_round(rng: Rng) -> Round:
    """A round of seven honest clients, and an eighth with one to three changes."""
    made = honest_round(rng)
    hostile = made.clients[-1]
    if rng.random() < 0.15:
        copied = made.clients[int(rng.integers(N_HONEST))]
        hostile.A, hostile.B = deepcopy(copied.A), deepcopy(copied.B)
        made.words.append("copied")
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        change(hostile, rng)
        made.words.append(change.__name__)
    if made.previous is not None and rng.random() < 0.4:
        change = ON_VALUES[int(rng.integers(len(ON_VALUES)))]
        change(made.previous, rng)
        made.words.append(f"previous: {change.__name__}")
        made.hostile_previous = True
    return made


def whole(client: Client) -> list[str]:
    """The modules whose factors have numbers in them."""
    return [m for m in client.A if client.A[m].size and client.B[m].size]


def some(client: Client, rng: Rng) -> list[str]:
    """One whole module, or some, or all."""
    modules = whole(client)
    if not modules:
        return []
    n = int(rng.choice([1, 1, rng.integers(1, len(modules) + 1), len(modules)]))
    return [modules[int(i)] for i in rng.permutation(len(modules))[:n]]


def power(rng: Rng, low: float, high: float) -> float:
    """Ten to a uniform power."""
    return float(10.0 ** rng.uniform(low, high))


def maybe_double(client: Client, rng: Rng) -> None:
    if rng.random() < 0.5:
        client.dtype = "F64"


# Values


def cancelling_pair(client: Client, rng: Rng) -> None:
    """Two components of scale s that cancel but for d."""
    maybe_double(client, rng)
    for m in some(client, rng):
        a, b = client.A[m], client.B[m]
        if len(a) < 2:
            continue
        along = rng.standard_normal(len(b)) if rng.random() < 0.5 else np.ones(len(b))
        s, d = power(rng, 0, 30), 0.0 if rng.random() < 0.4 else power(rng, -6, 6)
        ratio = 1.0 if rng.random() < 0.6 else power(rng, -10, 10)
        a[1] = a[0] * ratio
        b[:, 0] = s * along
        b[:, 1] = (d * rng.standard_normal(len(b)) - s * along) / ratio


def cancelling_many(client: Client, rng: Rng) -> None:
    """All components along one row, and the last is what the others sum to, reversed."""
    maybe_double(client, rng)
    for m in some(client, rng):
        a, b = client.A[m], client.B[m]
        a[:] = a[0]
        b *= power(rng, 0, 30)
        b[:, -1] = -b[:, :-1].sum(1)


def cancelling_blocks(client: Client, rng: Rng) -> None:
    """Honest components beside blocks that cancel: often more components than width."""
    maybe_double(client, rng)
    extra = int(rng.integers(1, 24))
    for m in whole(client):
        a, b = client.A[m], client.B[m]
        rows = rng.standard_normal((extra, a.shape[1]))
        columns = power(rng, 0, 30) * rng.standard_normal((len(b), extra))
        client.A[m] = np.vstack([a, rows, rows])
        client.B[m] = np.hstack([b, columns, -columns])
    if client.A:
        client.config["r"] = len(next(iter(client.A.values())))


def gauge_exponents(client: Client, rng: Rng) -> None:
    """(B c, A / c), for the whole module or for each component, near the dtype's limits."""
    maybe_double(client, rng)
    limit = 160 if client.dtype == "F64" else 38
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for m in some(client, rng):
            n = len(client.A[m]) if rng.random() < 0.5 else 1
            c = 10.0 ** (rng.uniform(-limit, limit, n) * rng.choice([0.5, 0.9, 0.97, 1.0]))
            client.A[m] = client.A[m] / c[:, None]
            client.B[m] = client.B[m] * c


def gauge_matrix(client: Client, rng: Rng) -> None:
    """(B R, R^-1 A) with an ill-conditioned R."""
    maybe_double(client, rng)
    for m in some(client, rng):
        r = len(client.A[m])
        left, right = (np.linalg.qr(rng.standard_normal((r, r)))[0] for _ in range(2))
        values = 10.0 ** rng.uniform(-6, 6, r)
        client.A[m] = (right / values) @ (left.T @ client.A[m])
        client.B[m] = client.B[m] @ (left * values) @ right.T


def scaled(client: Client, rng: Rng) -> None:
    """The delta weight times a number, of either sign, somewhere or everywhere."""
    factor = power(rng, -8, 8) * float(rng.choice([-1, 1]))
    for m in some(client, rng):
        client.B[m] = client.B[m] * factor


def noise(client: Client, rng: Rng) -> None:
    for m in some(client, rng):
        client.B[m] = client.B[m] + power(rng, -3, 3) * rng.standard_normal(client.B[m].shape)


def odd_numbers(client: Client, rng: Rng) -> None:
    """One number that no training gives."""
    for m in some(client, rng):
        target = client.A[m] if rng.random() < 0.5 else client.B[m]
        if target.size:
            place = int(rng.integers(target.size))
            target.flat[place] = rng.choice([math.nan, math.inf, 1e300, 3e38, 1e-310, 65504.0])


def zeros(client: Client, rng: Rng) -> None:
    for m in some(client, rng):
        (client.A if rng.random() < 0.5 else client.B)[m][:] = 0.0


def other_dtype(client: Client, rng: Rng) -> None:
    client.dtype = str(rng.choice(["F64", "F32", "F16", "BF16"]))


# Structure


def other_rank(client: Client, rng: Rng) -> None:
    """Other ranks, also above min(out, in), mostly with the pattern that says so."""
    for m in some(client, rng):
        rank = int(rng.choice([1, rng.integers(1, 9), rng.integers(9, 70), rng.integers(70, 600)]))
        a, b = client.A[m], client.B[m]
        client.A[m] = rng.standard_normal((rank, a.shape[1])) / a.shape[1] ** 0.5
        client.B[m] = rng.standard_normal((len(b), rank)) / (rank * len(b)) ** 0.5
        if rng.random() < 0.8:
            client.config.setdefault("rank_pattern", {})[m] = rank


def other_shape(client: Client, rng: Rng) -> None:
    """Wider, narrower, turned round, or said to be of other dimensions."""
    for m in some(client, rng):
        a, b, kind = client.A[m], client.B[m], int(rng.integers(5))
        if kind == 0:
            client.A[m] = np.hstack([a, a[:, : int(rng.integers(1, 4))]])
        elif kind == 1:
            client.B[m] = b[: len(b) - int(rng.integers(1, 4))]
        elif kind == 2:
            client.A[m], client.B[m] = b.T.copy(), a.T.copy()
        elif kind == 3:
            name = f"{PREFIX}{m}.lora_{'AB'[int(rng.integers(2))]}.weight"
            values = a if ".lora_A." in name else b
            shapes = ([values.size], [*values.shape, 1, 1], [1, *values.shape], [0], [2**40, 2**40])
            client.shapes[name] = list(shapes[int(rng.integers(len(shapes)))])
        else:
            client.A[m] = a[:0] if rng.random() < 0.5 else a[:, :0]


def extra_modules(client: Client, rng: Rng) -> None:
    """Modules that nobody else has: many small ones, a long axis, a large head."""
    count = int(power(rng, 0, 2.3))
    rank = max((len(a) for a in client.A.values()), default=2)
    kinds = {"small": (1, 1), "alike": (24, 16), "long": (1, int(power(rng, 3, 5.5)))}
    kind = str(rng.choice(list(kinds)))
    count = 1 if kind == "long" else count
    size = float(rng.choice([0.0, 1.0, 2.0, 100.0]))
    for i in range(count):
        name = "lm_head" if i == 0 else f"model.more.{i}"
        out, in_ = kinds[kind]
        client.A[name] = rng.standard_normal((rank, in_)) / in_**0.5
        client.B[name] = size * rng.standard_normal((out, rank)) / (out * rank) ** 0.5


def missing_modules(client: Client, rng: Rng) -> None:
    """Only some of the modules, down to one or none."""
    modules = list(client.A)
    for m in modules[: int(rng.integers(1, len(modules) + 1))] if modules else []:
        del client.A[m], client.B[m]


def twice(client: Client, rng: Rng) -> None:
    """Tensors of a second adapter, a lone half of a pair, or a name of another kind."""
    names = [
        f"{PREFIX}model.layers.0.q_proj.lora_A.other.weight",
        f"{PREFIX}model.layers.9.q_proj.lora_A.weight",
        "model.layers.0.q_proj.lora_A.weight", "lora_unet_x.alpha", "x.lora_magnitude_vector", "",
        f"{PREFIX}\ud800.lora_A.weight", "a" * 600,
    ]  # fmt: skip
    client.more[names[int(rng.integers(len(names)))]] = np.ones((2, 16))


def cut_short(client: Client, rng: Rng) -> None:
    client.cut = int(power(rng, 0, 3))


# Configs


def config_patterns(client: Client, rng: Rng) -> None:
    """Patterns of ranks and alphas: names, suffixes, expressions, and ones that are none."""
    modules = list(client.A) or ["q_proj"]
    keys = [
        *modules, *(m.rpartition(".")[2] for m in modules), "q_proj", r".*\.up", ".*", "(", "",
        "layers.0.q_proj", r"(a+)+$", "x" * 2000, r"model\.layers\.[0-9]\.up", "^q_proj",
        r"^(?!.*down).*\.(?:up|q_proj)", r"(?:layers\.\d{1,2}\.)+.*(?<!q)_proj",
    ]  # fmt: skip
    count = int(rng.choice([1, 2, 5, 300]))
    for field, values in (("alpha_pattern", ALPHAS), ("rank_pattern", RANKS)):
        if rng.random() < 0.6:
            pattern: dict[str, Any] = {}
            for i in range(count):
                key = keys[int(rng.integers(len(keys)))] if i < 5 else f"never.{i}"
                pattern[key] = values[int(rng.integers(len(values)))]
            client.config[field] = pattern


ALPHAS: list[Any] = [1, 4, 8.0, 0, -2, 1e-300, 1e30, 1e300, 2**70, "8", None, True, math.inf]
RANKS: list[Any] = [1, 2, 3, 4, 0, -1, 2**40, 2.0, "2", None, True]
FIELDS: dict[str, list[Any]] = {
    "r": RANKS,
    "lora_alpha": ALPHAS,
    "use_rslora": [True, False, None, "yes"],
    "base_model_name_or_path": ["evil/base", None, 1, "x" * 5000, "\u202e\n\x1b[31m"],
    "revision": ["evil", None, 3],
    "task_type": ["SEQ_CLS", None, 5],
    "lora_dropout": [0.5, -1, None, "x"],
    "target_modules": [["up"], [], None, "all-linear", [f"m{i}" for i in range(2000)], [1], "("],
    "bias": ["all", "none", None],
    "fan_in_fan_out": [True, False, None],
    "init_lora_weights": ["pissa", "eva", True, None, 7],
    "use_dora": [True, False],
    "modules_to_save": [["lm_head"], [], None],
    "peft_type": ["LOHA", None, "lora"],
    "inference_mode": [True, None],
    "runtime_config": [{}, {"ephemeral_gpu_offload": True}, None],
    "auto_mapping": [{"a": "b"}, None],
    "unknown_field": [1, None, {}],
    "exclude_modules": [["q_proj"], "x", None],
}


def config_fields(client: Client, rng: Rng) -> None:
    """One to three fields with other values, or missing."""
    for field in rng.permutation(list(FIELDS))[: int(rng.integers(1, 4))]:
        values = FIELDS[str(field)]
        if rng.random() < 0.1:
            client.config.pop(str(field), None)
        else:
            client.config[str(field)] = values[int(rng.integers(len(values)))]


def config_text(client: Client, rng: Rng) -> None:
    """JSON that is deep, broken, not an object, or has a key twice."""
    depth = int(power(rng, 0.5, 3.5))
    deep = "[" * depth + "]" * depth
    own = f'"r": {client.config["r"]}, "lora_alpha": {client.config["lora_alpha"]}'  # may be read
    texts = [
        f'{{"peft_type": "LORA", {own}, "runtime_config": {deep}}}',
        f'{{{own}, "auto_mapping": ' + '{"a":' * depth + "1" + "}" * depth + "}",
        "", "null", "[]", "{", '{"r": 2, "r": 3, "lora_alpha": 4}', '{"r": 2, "lora_alpha": NaN}',
        '{"r": 2, "lora_alpha": ' + "9" * 5000 + "}", "\ufeff{}", '{"r": 2, "x": "\\ud800"}',
    ]  # fmt: skip
    client.text = texts[int(rng.integers(len(texts)))]


def odd_name(client: Client, rng: Rng) -> None:
    """A name that means something to a reader, to a terminal, or to nobody."""
    names = [
        b"adapter_config.json", b"c0.json", b"c3.json", b"adapter_model.safetensors", b"c0.bin",
        b"-x", b" ", b"a\nb", b"\x1b[31m", "\u202e".encode(), b"\xff\xfe", b".hidden", b"x" * 200,
        b"report.json", b"C0", b"c7.safetensors", b"c0.txt", b"%s", b"[b]", b"<script>",
    ]  # fmt: skip
    client.entry = names[int(rng.integers(len(names)))]


# What hides or moves a delta weight, more often than the rest.
ON_VALUES: list[Change] = [
    cancelling_pair, cancelling_many, cancelling_blocks, gauge_exponents, gauge_matrix, scaled,
    noise, odd_numbers, zeros, other_dtype, other_rank, other_shape, extra_modules,
    missing_modules,
]  # fmt: skip
CHANGES: list[Change] = [
    *ON_VALUES, cancelling_pair, cancelling_pair, cancelling_many, cancelling_blocks,
    gauge_exponents, gauge_exponents, other_rank, extra_modules, config_patterns, config_patterns,
    config_fields, config_fields, config_text, odd_name, odd_name, twice, cut_short,
]  # fmt: skip
