"""The page around a model: one HTML file that loads nothing, and in which nothing of a model can become markup.

The document allows only the script and the style that it was written with, by their hashes. The model comes as JSON
that holds no `<`, and the page shows what is in it as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from importlib import resources
from typing import BinaryIO

from rnnsparse import __version__
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.storage.html.packing import Kind, pack

LARGEST = 1 << 28  # bytes of weights; browsers hold no text much longer than these are in base64
PARTS = resources.files("rnnsparse.storage.html")


def write(
    file: BinaryIO, model: CharLM, tokenizer: Tokenizer, kind: Kind, title: str, facts: Iterable[tuple[str, str]]
) -> None:
    """Write the page of a model.

    Args:
        title: what the page calls it.
        facts: what it says of the model beside what that itself knows: pairs of a heading and a text.

    Raises:
        UserError: its weights are not numbers, too large for fp16, or too many for a browser.
    """
    header, weights = pack(model, kind)
    if len(weights) > LARGEST:
        raise UserError(
            f"a page of {len(weights):,} bytes of weights is more than browsers read ({LARGEST:,}); export as "
            "safetensors, or train a model with fewer connections"
        )
    header["vocabulary"] = {
        "kind": tokenizer.kind,
        "characters": b"".join(tokenizer.symbols[1:]).decode() if tokenizer.kind == "char" else "",
    }
    header["title"] = title
    header["facts"] = [*_facts(model, tokenizer, kind, len(weights)), *facts]
    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; script-src {_hash(script)}; worker-src blob:; style-src {_hash(style)}; "
    parts = {
        "policy": html.escape(f"{policy}base-uri 'none'; form-action 'none'"),
        "title": html.escape(title),
        "style": style,
        "engine": _part("engine.js") + _part("worker.js"),
        "model": json.dumps(header).replace("<", "\\u003c"),
        "weights": base64.b64encode(weights).decode(),
        "script": script,
    }
    # One pass: what is put in is not looked at again, whatever it holds. A name on disk need not be valid text.
    page = re.sub(r"<!--(\w+)-->", lambda mark: parts[mark[1]], _part("page.html"))
    file.write(page.encode(errors="replace"))


def _part(name: str) -> str:
    return PARTS.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _facts(model: CharLM, tokenizer: Tokenizer, kind: Kind, size: int) -> Iterable[tuple[str, str]]:
    config, weights = model.config, model.sparse_weights().values()
    layers = "layer" if config.num_layers == 1 else "layers"
    shape = f"{config.cell.upper()}, {config.num_layers} {layers} of {config.hidden_size:,} units"
    also = (", normalised" if config.layer_norm else "") + (", skip connections" if model.rnn.skips else "")
    yield "Network", f"{shape}{also}, {config.embedding_dim:,} numbers for each symbol"
    if config.readout_dims:
        yield "Readout", f"layers of {', '.join(f'{n:,}' for n in config.readout_dims)}; {config.readout_activation}"
    unit = "bytes" if tokenizer.kind == "byte" else "characters"
    yield "Symbols", f"{tokenizer.vocab_size:,} {unit}"
    connections, positions = sum(w.values.numel() for w in weights), sum(w.positions for w in weights)
    share = 1 - connections / positions
    yield "Connections", f"{connections:,} of {positions:,} possible ones ({share:.1%} sparse)"
    yield "Weights here", f"{kind}, {size / 1e6:,.2f} MB packed"
    yield "Made by", f"rnnsparse {__version__}"
