"""Names of base models: which of them mean one model, and which one a result may name.

Only the text is looked at: a name from a stranger is never opened, nor asked for anywhere.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

# Models that the hub had without an owner at first: the owner that was added, and their names.
_OWNER_ADDED = {
    "albert": r"albert-",
    "almanach": r"camembert-",
    "distilbert": r"distil(bert|gpt2|roberta)",
    "facebookai": r"(xlm-)?roberta-|xlm-(mlm|clm)-",
    "google-bert": r"bert-",
    "google-t5": r"t5-",
    "openai-community": r"gpt2|openai-gpt",
    "salesforce": r"ctrl$",
    "transfo-xl": r"transfo-xl-",
    "xlnet": r"xlnet-",
}
_WITHOUT_OWNER = re.compile("|".join(f"(?:{names})" for names in _OWNER_ADDED.values()))
# Owners of copies, plain or quantised, of other owners' models under their names.
_COPIERS = frozenset((
    "unsloth", "thebloke", "casperhansen", "hugging-quants", "mlx-community", "nousresearch",
    "techxgenus", "solidrust", "modelcloud", "redhatai", "neuralmagic", "ise-uiuc",
))  # fmt: skip
_QUANTISED = re.compile(
    r"[-_.](?:(?:unsloth[-_])?bnb[-_]?[48]bit|(?:gptq|awq)(?:[-_.]?(?:int|w)?[48](?:bits?|a16)?)?"
    r"(?:[-_.]?g?128g?)?|[48]bit(?:[-_](?:gptq|awq))?|int[48]|fp8(?:[-_]dynamic)?|quantized"
    r"[-_.]w[48]a(?:8|16))$"
)
# The hub's renamings, and conversions of the same weights into its form.
_RENAMED = (
    (re.compile(r"^meta-(?=llama-3)"), ""),
    (re.compile(r"^(llama-2-.+)-hf$"), r"\1"),
)
# First folders of relative paths, which look like owners.
_FOLDERS = frozenset((
    "models", "model", "checkpoints", "checkpoint", "ckpt", "ckpts", "output", "outputs", "out",
    "results", "data", "pretrained", "pretrained_models", "base_models", "weights", "cache",
    "runs", "work", "workspace", "llm", "llms",
))  # fmt: skip


def is_local_path(name: str) -> bool:
    """Whether a base model's name is a path on somebody's machine and no hub name ("org/name").

    >>> [is_local_path(n) for n in ("org/name", "gpt2", "/data/llama", "./m", "C:\\\\m")]
    [False, False, True, True, True]
    >>> [is_local_path(n) for n in ("models/llama", "my-llama", "roberta-base")]
    [True, True, False]
    """
    if re.match(r"[/~.]|[A-Za-z]:|file:", name) or "\\" in name or name.count("/") > 1:
        return True
    owner, slash, rest = name.partition("/")
    if not slash:  # a folder, as the hub has no other models without an owner
        return bool(re.fullmatch(r"[\w .+-]+", name)) and not _WITHOUT_OWNER.match(name.lower())
    return not rest or owner.lower() in _FOLDERS


def is_absolute(name: str) -> bool:
    r"""Whether a name is a path that says where somebody's files are: an absolute one, or one that
    climbs out of a folder.

    >>> [is_absolute(n) for n in ("/home/bob/m", "~/m", "C:\\m", "file:///m", "../m", "org/name")]
    [True, True, True, True, True, False]
    """
    parts = re.split(r"[\\/]", name)
    return bool(re.match(r"[/\\~]|[A-Za-z]:|file:", name)) or ".." in parts


def last_part(name: str) -> str:
    """The last folder of a path, or a name without its owner; as all copies of one model have it.

    >>> last_part("/data/Meta-Llama-3-8B/"), last_part("unsloth/llama-3-8b-bnb-4bit")
    ('llama-3-8b', 'llama-3-8b')
    """
    text = re.split(r"[\\/]", name.rstrip("\\/"))[-1].lower()
    while (shorter := _QUANTISED.sub("", text)) and shorter != text:
        text = shorter
    for pattern, put in _RENAMED:
        text = pattern.sub(put, text)
    return text


def one_base(names: Iterable[str]) -> dict[str, str]:
    """Names of the hub to the name that stands for all names of the same model.

    The same are names that differ in letter case, in an owner that was added later
    (`roberta-base`), and copies that keep the name: quantised ones (bitsandbytes, GPTQ, AWQ), and
    those of owners who are known for them. A copy that may be of several owners' models goes with
    the most frequent.

    Args:
        names: one for each client; no local paths.

    Returns:
        Each name to the most frequent one of its model, of equally frequent ones the first in
        order of the alphabet.

    >>> one_base(["roberta-base", "FacebookAI/roberta-base", "org/roberta-base"])["roberta-base"]
    'FacebookAI/roberta-base'
    """
    counts = Counter(names)
    by_name: dict[str, Counter[str]] = defaultdict(Counter)  # model to owners, "" of a copy
    for name, count in counts.items():
        by_name[last_part(name)][_owner(name)] += count
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in counts:
        owners = {owner: n for owner, n in by_name[last_part(name)].items() if owner}
        usual = min(owners, key=lambda owner: (-owners[owner], owner), default="")
        groups[last_part(name), _owner(name) or usual].append(name)
    found: dict[str, str] = {}
    for same in groups.values():
        usual = min(same, key=lambda name: (-counts[name], name))
        found |= dict.fromkeys(same, usual)
    return found


def _owner(name: str) -> str:
    """The owner of the model that a hub name means; "" for a copy of somebody's, "-" for nobody."""
    owner, slash, rest = name.lower().rpartition("/")
    if owner in _COPIERS or _QUANTISED.search(rest):
        return ""
    if not slash:
        return "-"
    return "-" if re.match(_OWNER_ADDED.get(owner, r"(?!)"), rest) else owner


def name_to_write(names: Iterable[str | None]) -> str | None:
    """The base model's name that a result of these clients has: the most frequent name, at least
    two clients', of the model that more than half of them name; or that of more than half. None if
    there is none, and never an absolute path.

    >>> name_to_write(["gpt2", "openai-community/gpt2", "gpt2", None])
    'gpt2'
    >>> name_to_write(["/home/bob/gpt2"]), name_to_write(["org/a", "org/b"])
    (None, None)
    """
    every = [name or "" for name in names]
    hub = [name for name in every if name and not is_local_path(name)]
    same: Mapping[str, str] = one_base(hub)
    counts = Counter(same.get(name, name) for name in every)
    name, count = max(counts.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    alone = 2 * every.count(name) <= len(every) and every.count(name) < 2
    if not name or 2 * count <= len(every) or alone or is_absolute(name):
        return None
    return name
