"""What a request was before Dynamo moved it to another worker.

When a worker is lost, the frontend sends its request to another one, with the tokens that were told so far behind the
prompt and so many fewer to come. Where the prompt ends, which draws were made, what the penalties have counted, it does not
say: that is written down in a folder that workers share, one small file for each request that runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

log = logging.getLogger(__name__)

#: Records that nobody has ended: a frontend that was lost with a worker asks for no other.
_STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Plan:
    """How a request runs."""

    #: What the model is given.
    prompt: list[int]
    #: The first new tokens, which were told already.
    told: list[int]
    #: Most new tokens, those among them; as many as there is room for unless given.
    most: int | None
    seed: int


class Journal:
    """Records of requests, in a folder; without one each request is what its worker was sent."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _STALE_SECONDS
        for path in folder.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                # Another worker's was quicker.
                continue

    @property
    def keeps(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def begin(self, request_id: str, tokens: Sequence[int], most: int | None, seed: int) -> Plan:
        """Finds what a request was at first, or writes down that it begins.

        Args:
            request_id: As the frontend calls it, on every worker.
            tokens: The prompt, and after a move what was told after it.
            most: Most new tokens that it still asks for.
            seed: Taken where it begins.
        """
        tokens = list(tokens)
        if self._folder is None:
            return Plan(tokens, [], most, seed)
        try:
            return self._known(self._path(request_id), tokens, most, seed)
        except OSError as error:
            log.warning("request %s: should its worker be lost, its draws are not known: %s", request_id, error)
            return Plan(tokens, [], most, seed)

    def _known(self, path: Path, tokens: list[int], most: int | None, seed: int) -> Plan:
        try:
            record = json.loads(path.read_text())
            length, first, drawn = record["prompt_tokens"], record["most"], record["seed"]
            told = tokens[length:]
            # Another request could have that name.
            left = None if first is None else first - len(told)
            if record["digest"] == _digest(tokens[:length]) and most == left:
                return Plan(tokens[:length], told, first, drawn)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: not a record of a request, written again: %s", path, error)
        record = {"prompt_tokens": len(tokens), "digest": _digest(tokens), "most": most, "seed": seed}
        whole = path.with_suffix(f".{secrets.token_hex(8)}")
        whole.write_text(json.dumps(record))
        whole.replace(path)
        return Plan(tokens, [], most, seed)

    def end(self, request_id: str) -> None:
        """Forgets a request that goes nowhere any more."""
        if self._folder is None:
            return
        try:
            self._path(request_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("request %s: its record stays: %s", request_id, error)

    def _path(self, request_id: str) -> Path:
        assert self._folder is not None
        # Clients may choose the name.
        return self._folder / f"{hashlib.sha256(request_id.encode()).hexdigest()}.json"


def _digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(array("I", tokens).tobytes()).hexdigest()
