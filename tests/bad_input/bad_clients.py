"""The rows about a single client's files: who is made how, and what its reason must name."""

from __future__ import annotations

import struct

import numpy as np

from tests import cohorts
from tests.bad_input import clients as make
from tests.bad_input.clients import CONFIG, DATA, KEY, MODULE, WEIGHTS
from tests.bad_input.table import Bad
from tests.hostile import raw_file

ROWS_NAME = f"{cohorts.PREFIX}embed.token_adapter.trainable_tokens_delta"

BIG = 10**12
HEADER = "8,388,608"
BAD = [
    Bad(8, "empty", make.weights(b""), ("file is empty (0 bytes)",)),
    Bad(8, "seven bytes", make.weights(b"1234567"), ("file has 7 bytes",)),
    Bad(9, "truncated", make.weights(DATA[:-40]), ("truncated", "7,296", "7,256")),
    Bad(9, "truncated header", make.weights(DATA[:100]), ("truncated", "header needs")),
    Bad(10, "polyglot", make.weights(DATA + b"<html>"), ("6 extra bytes",)),
    Bad(
        11,
        "above the file",
        make.weights(struct.pack("<Q", 10**6) + b"{}"),
        ("1,000,000", "found 2"),
    ),
    Bad(
        11,
        "above the limit",
        make.weights(struct.pack("<Q", 2**63) + b"{}"),
        ("9,223,372,036,854,775,808", f"limit of {HEADER}"),
    ),
    Bad(12, "not JSON", make.weights(raw_file("{nope}")), ("header is not JSON", "position 1")),
    Bad(12, "not UTF-8", make.weights(raw_file(b'{"\xff": 1}')), ("header is not UTF-8 (byte 2)",)),
    Bad(12, "array", make.weights(raw_file("[1, 2]")), ("header does not start with '{'",)),
    Bad(12, "deep", make.deep_header, ("header is nested too deeply",)),
    Bad(13, "HTML", make.weights(b"<!DOCTYPE html><html>404</html>"), ("HTML page",)),
    Bad(
        13,
        "git-lfs",
        make.weights(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ("git-lfs pointer", "git lfs pull"),
    ),
    Bad(14, "overlap", make.header(lambda h: make.shift(h, -8)), ("overlaps", "by 8 bytes")),
    Bad(14, "hole", make.header(lambda h: make.shift(h, 8), bytes(8)), ("hole of 8 bytes",)),
    Bad(
        15,
        "tensor",
        make.twice(f'"{KEY}": {{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
        (f"gives the key '{KEY}' twice",),
    ),
    Bad(16, "metadata key", make.twice('"__metadata__": {"k": "1", "k": "2"}'), ("'k' twice",)),
    Bad(16, "metadata twice", make.twice('"__metadata__": {}'), ("'__metadata__' twice",)),
    Bad(16, "field", make.entry(evil=1), (KEY, "unknown header field 'evil'")),
    Bad(16, "metadata number", make.header(lambda h: h.update(__metadata__={"k": 1})), ("'k'",)),
    Bad(17, "shape", make.entry(shape=[6, 17]), (KEY, "(6, 17)", "408 bytes", "384")),
    Bad(18, "elements", make.entry(shape=[10**6, 10**6]), (KEY, "(1000000, 1000000)")),
    Bad(
        18,
        "offsets",
        make.entry(shape=[10**6, 10**6], data_offsets=[0, 4 * BIG]),
        ("3,999,999,999,616 bytes", KEY),
    ),
    Bad(19, "sparse", make.sparse, ("200,000,000,", "limit", "--limit file=")),
    Bad(20, "zero", make.entry(shape=[0, 16]), (KEY, "(0, 16)", "length 0")),
    Bad(20, "zero and 2**63", make.entry(shape=[0, 2**63]), (KEY, "length 0")),
    Bad(20, "zero and large", make.entry(shape=[0, 2**40, 2**40]), (KEY, "length 0")),
    Bad(20, "large", make.entry(shape=[2**63, 1]), (KEY, str(2**63))),
    Bad(20, "float", make.entry(shape=[6.0, 16]), (KEY, "is not a list of integers")),
    Bad(20, "negative", make.entry(shape=[-6, -16]), (KEY, "length -6")),
    Bad(
        21,
        "by count",
        make.many_tensors(100_000),
        ("100,000 tensors", "40,000", "--limit tensors="),
    ),
    Bad(
        21,
        "by header",
        make.many_tensors(300_000, "t" * 10),
        ("header length", f"limit of {HEADER}", "--limit header="),
    ),
    Bad(22, "100 axes", make.entry(shape=[1] * 98 + [6, 16]), (KEY, "100 axes")),
    Bad(22, "one axis", make.entry(shape=[96]), (KEY, "1 axis")),
    Bad(22, "seven axes", make.entry(shape=[6, 16, 1, 1, 1, 1, 1]), (KEY, "7 axes")),
    Bad(23, "arrays", make.config("[" * 100_000), ("adapter_config.json is nested too deeply",)),
    Bad(
        23, "objects", make.config('{"a":' * 100_000), ("adapter_config.json is nested too deeply",)
    ),
    Bad(24, "1 MB", make.config(b" " * 1_000_001), ("adapter_config.json", "1,000,001 bytes")),
    Bad(
        24,
        "digits",
        make.config('{"lora_alpha": 4, "r": ' + "1" * 5000 + "}"),
        ("field 'r'", "5,000 digits"),
    ),
    Bad(24, "NaN", make.config('{"r": 6, "lora_alpha": NaN}'), ("field 'lora_alpha'", "NaN")),
    Bad(24, "NaN in a list", make.config('{"x": [1, [NaN]]}'), ("field 'x'", "NaN")),
    Bad(
        24,
        "infinite",
        make.config('{"r": 6, "lora_alpha": 1e999}'),
        ("field 'lora_alpha'", "1e999"),
    ),
    Bad(25, "folder", make.no_config, ("no adapter config", CONFIG, "--assume-alpha")),
    Bad(
        25,
        "file",
        make.no_config_file,
        ("'clients/bad.json'", "'clients/adapter_config.json'", "lora_adapter_metadata"),
    ),
    Bad(26, "config", make.fields(r=3), ("rank 6", "rank 3", "module 'model.layers.0.")),
    Bad(26, "pattern", make.fields(rank_pattern={"q_proj": 2}), ("rank 6", "rank 2", MODULE)),
    Bad(
        27,
        "alpha",
        make.scaled(1.0, lora_alpha=1e6),
        ("scale", "1.67e+05", "2", "median"),
        "contaminated",
    ),
    Bad(
        27,
        "pattern",
        make.scaled(1.0, alpha_pattern={"q_proj": 1e6}),
        ("scale", "1.67e+05", "2", "median"),
        "contaminated",
    ),
    Bad(29, "DoRA", make.fields(use_dora=True), ("DoRA", "not supported")),
    Bad(
        29,
        "DoRA tensors",
        make.added(f"{cohorts.PREFIX}{MODULE}.lora_magnitude_vector", np.ones(24)),
        ("DoRA", "not supported", "lora_magnitude_vector"),
    ),
    Bad(
        29,
        "lora_bias alone",
        make.added(f"{cohorts.PREFIX}other.lora_B.bias", np.ones(24)),
        ("module 'other'", "the bias of a lora_B that the file does not have"),
    ),
    Bad(29, "KaSA", make.fields(kasa_config={"beta": 1}), ("KaSA", "not supported")),
    Bad(
        29,
        "KaSA tensor",
        make.added(f"{cohorts.PREFIX}{MODULE}.lora_diag", np.ones(6)),
        ("KaSA", "not supported"),
    ),
    Bad(29, "AdaLoRA", make.fields(peft_type="ADALORA"), ("'ADALORA'", "only 'LORA'")),
    Bad(
        29,
        "AdaLoRA tensor",
        make.added(f"{cohorts.PREFIX}{MODULE}.lora_E", np.ones((6, 1))),
        ("AdaLoRA", "not supported"),
    ),
    Bad(29, "IA3", make.fields(peft_type="IA3"), ("'IA3'", "only 'LORA'")),
    Bad(
        29,
        "IA3 tensors",
        make.renamed(lambda name: name.replace("lora_A", "ia3_l")),
        ("IA3", "not supported"),
    ),
    Bad(
        29,
        "PiSSA",
        make.fields(init_lora_weights="pissa"),
        ("init_lora_weights", "'pissa'", "changes the base weights", "--initial"),
    ),
    Bad(29, "LoHa", make.renamed(lambda name: name.replace("lora_A", "hada_w1_a")), ("LoHa",)),
    Bad(
        30,
        "NaN in a head",
        make.added(f"{cohorts.PREFIX}lm_head.weight", np.full((3, 4), np.nan)),
        (f"'{cohorts.PREFIX}lm_head.weight'", "12 NaN or Inf of 12"),
    ),
    Bad(
        30,
        "token rows without indices",
        make.added(ROWS_NAME, np.ones((2, 16))),
        (f"'{ROWS_NAME}'", "trainable_token_indices does not say which"),
    ),
    Bad(
        30,
        "token rows of another number",
        make.added(ROWS_NAME, np.ones((2, 16)), trainable_token_indices=[7]),
        (f"'{ROWS_NAME}' has 2 rows", "names 1"),
    ),
    Bad(31, "lora_A", make.header(make.without_its_pair), (f"module '{MODULE}'", "lora_B")),
    Bad(34, "in features", make.wider, (MODULE, "(24, 18)", "(24, 16)", "3 of 4 clients")),
    Bad(34, "out features", make.taller, (MODULE, "(26, 16)", "(24, 16)", "3 of 4 clients")),
    Bad(
        37,
        "other",
        make.fields(base_model_name_or_path="org/other\x1b[2J"),
        ("base_model_name_or_path", "'org/other\\x1b[2J'", "'org/base'", "3 of 4 clients"),
    ),
    Bad(40, "E4M3", make.as_dtype("F8_E4M3", 8), (KEY, "F8_E4M3", "expected F32")),
    Bad(40, "E5M2", make.as_dtype("F8_E5M2", 8), (KEY, "F8_E5M2")),
    Bad(40, "E8M0", make.as_dtype("F8_E8M0", 8), (KEY, "F8_E8M0")),
    *(
        Bad(41, dtype, make.as_dtype(dtype, bits), (KEY, f"dtype {dtype}"))
        for dtype, bits in (("I8", 8), ("BOOL", 8), ("C64", 64), ("F4", 4), ("F6_E2M3", 6))
    ),
    Bad(41, "unknown", make.as_dtype("F33", 32), (KEY, "unknown dtype 'F33'")),
    Bad(42, "NaN", make.spoiled(float("nan")), (KEY, "1 NaN or Inf of 96", "flat index 18")),
    Bad(42, "Inf", make.spoiled(float("-inf")), (KEY, "1 NaN or Inf of 96", "flat index 18")),
    Bad(43, "float32", make.scaled(1e30), ("the median",), "contaminated"),
    Bad(43, "both factors", make.both_factors(1e37), ("the median",), "contaminated"),
    Bad(43, "alpha", make.scaled(1.0, lora_alpha=1e300), ("norm", "1e300", "scaling")),
    Bad(43, "float64", make.scaled(1e300, "F64"), ("tensor", "1e300", "float32")),
    Bad(
        53, "bin", make.pickle_only("adapter_model.bin"), ("pickle-based", "not opened", "re-save")
    ),
    Bad(53, "pt", make.pickle_only("model.pt"), ("pickle-based", "not opened")),
    Bad(53, "file", make.pickle_file, ("pickle-based", "not opened"), entry="bad.pt"),
    Bad(55, "pickle", make.pickle_inside, ("a pickle, not opened",)),
    Bad(55, "zip", make.zip_inside, ("a zip archive", "not opened")),
    Bad(55, "gzip", make.gzip_inside, ("a gzip archive, not opened",)),
    Bad(56, "zip", make.zip_client, ("archive, not unpacked",), entry="bad.zip"),
    Bad(56, "tar", make.tar_client, ("archive, not unpacked",), entry="bad.tar.gz"),
    Bad(56, "npz", make.npz_client, ("archive, not unpacked",), entry="bad.npz"),
    Bad(56, "inside", make.archive_in_folder, ("'adapter.zip'", "archive, not unpacked")),
    Bad(57, "config only", make.no_weights, (f"no {WEIGHTS}",)),
    Bad(58, "index", make.sharded, ("sharded", "model.safetensors.index.json", "not followed")),
    Bad(
        59, "weights", make.weights_link, (WEIGHTS, "secret/adapter", "leaves the cohort's folder")
    ),
    Bad(59, "passwd", make.passwd_link, (WEIGHTS, "'/etc/passwd'", "leaves the cohort's folder")),
    Bad(59, "config", make.config_link, (CONFIG, "secret/adapter", "leaves the cohort's folder")),
    Bad(59, "folder", make.folder_link, ("'bad'", "secret/adapter", "leaves the cohort's folder")),
    Bad(
        59,
        "file",
        make.file_link,
        ("bad.safetensors", "secret/adapter", "leaves the cohort's folder"),
    ),
    Bad(60, "weights loop", make.weights_loop, ("link", WEIGHTS, "can't be followed")),
    Bad(60, "dangling", make.dangling, ("link 'bad' to 'nowhere'", "dangling")),
    Bad(62, "FIFO", make.fifo(WEIGHTS), ("FIFO", "not a regular file")),
    Bad(62, "FIFO config", make.fifo(CONFIG), ("FIFO", "not a regular file")),
    Bad(62, "FIFO file", make.fifo_file, ("FIFO", "not a regular file")),
    Bad(62, "socket", make.a_socket, ("socket", "not a regular file")),
    Bad(62, "folder", make.a_folder, ("a folder", "not a regular file")),
]
