"""What a request was before Dynamo moved it to another worker.

When a worker is lost, the frontend sends its request to another one, with the tokens that were told so far behind the
prompt and so many fewer to come. Where the prompt ends, which draws were made, what the penalties have counted, it does not
say: that is written down in a folder that workers share, one small file for each request that runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from ._errors import InputError

log = logging.getLogger(__name__)

#: Records that nobody has ended: a frontend that was lost with a worker asks for no other.
_STALE_SECONDS = 24 * 3600.0
#: What a record is called, and what it is written as before it is whole.
_NAME = re.compile(r"ratplus-request-[0-9a-f]{64}\.json(\.[0-9a-f]{16})?")


@dataclass(frozen=True)
class Plan:
    """How a request runs."""

    #: What the model is given.
    prompt: list[int]
    #: The first new tokens, which were told already.
    told: list[int]
    #: Most new tokens, those among them; as many as there is room for unless given.
    most: int | None
    #: Fewest new tokens, those among them.
    least: int
    seed: int

    @property
    def left(self) -> int | None:
        """Most tokens that are to come."""
        return None if self.most is None else self.most - len(self.told)

    def from_told(self) -> Plan:
        """The same where what was told stays, whatever comes after the prompt here."""
        least = max(0, self.least - len(self.told))
        return Plan(self.prompt + self.told, [], self.left, least, self.seed)


class Journal:
    """Records of requests, in a folder; without one each request is what its worker was sent."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _STALE_SECONDS
        # Other files that are in it are somebody's.
        for path in folder.iterdir():
            try:
                if _NAME.fullmatch(path.name) and path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                # Another worker's was quicker.
                continue

    @property
    def keeps(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def find(self, request_id: str, tokens: Sequence[int], most: int | None, least: int, seed: int) -> Plan:
        """What a request was at first, or is now where it begins.

        Args:
            request_id: As the frontend calls it, on every worker.
            tokens: The prompt, and after a move what was told after it.
            most: Most new tokens that it still asks for.
            least: Fewest.
            seed: Taken where it begins.

        Raises:
            InputError: It asks for more tokens at least than at most.
        """
        tokens = list(tokens)
        if self._folder is not None:
            try:
                plan = self._known(self._path(request_id), tokens, most)
            except OSError as error:
                log.warning("request %s: its record cannot be read: %s", request_id, error)
            else:
                plan = plan or Plan(tokens, [], most, least, seed)
                if plan.most is not None and plan.least > plan.most:
                    expected = f"expected at most `max_tokens`, {plan.most}, found {plan.least}"
                    raise InputError(f"`stop_conditions.min_tokens`: {expected}")
                return plan
        # It may have moved: then there are fewer to come than it asked for.
        return Plan(tokens, [], most, least if most is None else min(least, most), seed)

    def _known(self, path: Path, tokens: list[int], most: int | None) -> Plan | None:
        try:
            record = json.loads(path.read_text())
            length, numbers = record["prompt_tokens"], (record[name] for name in ("most", "least", "seed"))
            plan = Plan(tokens[:length], tokens[length:], *numbers)
            # Another request could have that name.
            if record["digest"] == _digest(plan.prompt) and plan.left == most:
                return plan
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: not a record of a request, written again: %s", path, error)
        return None

    def keep(self, request_id: str, plan: Plan) -> None:
        """Writes down how a request runs: before any of its tokens is told, and after it was taken, so that a worker with no
        room leaves nothing."""
        if self._folder is None:
            return
        record = {"prompt_tokens": len(plan.prompt), "digest": _digest(plan.prompt)}
        record |= {"most": plan.most, "least": plan.least, "seed": plan.seed}
        path = self._path(request_id)
        whole = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            whole.write_text(json.dumps(record))
            whole.replace(path)
        except OSError as error:
            log.warning("request %s: should its worker be lost, its draws are not known: %s", request_id, error)

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
        return self._folder / f"ratplus-request-{hashlib.sha256(request_id.encode()).hexdigest()}.json"


def _digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(array("I", tokens).tobytes()).hexdigest()
