"""What the library says of its operators, and the hosts that only Rust has: the program `operator_tool` of
the crate `tests`, which answers requests (tests/src/bin/operator_tool.rs)."""

import atexit
import functools
import json
import os
import subprocess
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "target" / "release" / "operator_tool"


class OperatorError(Exception):
    """What the program says went wrong."""


class Tool:
    """The running program."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, what, data=b"", **fields):
        """The answer's JSON and bytes."""
        head = json.dumps({"do": what, "bytes": len(data)} | fields)
        self.process.stdin.write(head.encode() + b"\n" + data)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"{self.process.args[0]}: exit {self.process.wait()} at {head}"
        answer = json.loads(line)
        found = self.process.stdout.read(answer["bytes"])
        if "error" in answer:
            raise OperatorError(answer["error"])
        return answer, found

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@functools.cache
def tool():
    """The program of this process; `cargo xtask test` names it, else the release build's."""
    program = Path(os.environ.get("RATPLUS_OPERATOR_TOOL", PROGRAM))
    assert program.is_file(), f"{program} is not a file; `cargo build --release -p ratplus-tests` makes it"
    running = Tool(program)
    atexit.register(running.close)
    return running


@functools.cache
def library():
    """Domain, attributes of every node, and the operators' schemas by name."""
    return tool().ask("schemas")[0]


def schemas():
    return library()["operators"]


def lowered(model, form, max_seq_len):
    """A one-node model with the operator's function (`function`), or in standard operators (`inline`)."""
    return tool().ask(form, model, max_seq_len=max_seq_len)[1]
