"""The command line: the only place that reads argv, prints, and turns errors into exit codes.

Exit codes: 0 done; 2 user error, 1 a run that failed (one line on stderr each); 130 interrupted after saving.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

from rnnsparse.cli.arguments import parse
from rnnsparse.cli.messages import complain
from rnnsparse.errors import NEEDS_POSIX, RunFailed, UserError, one_line
from rnnsparse.streams import drop_unwritable, lasting_output, open_missing


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    if sys.platform == "win32":
        complain(NEEDS_POSIX)
        return 2
    open_missing()
    with lasting_output("stderr"):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for what it cannot show
    try:
        # Each command is a file of its own, loaded when it is called: torch takes seconds, and --help answers at once.
        code: int = importlib.import_module(f"rnnsparse.cli.{arguments.command}").run(arguments)
        print(end="", flush=True)  # a full disk shows itself here, not after the exit
        return code
    except (UserError, RunFailed) as error:
        complain(error)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nothing more to say.
        drop_unwritable(sys.stdout)
        return 1
    except OSError as error:
        drop_unwritable(sys.stdout)
        where = f"{error.filename}: " if error.filename else ""
        complain(where + (error.strerror or str(error)))
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        complain(
            "out of memory; lower training.batch_size, training.sequence_length, evaluation.lanes or "
            f"model.hidden_size ({one_line(error)[:120]})",
        )
        return 1


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has a class of its own for CUDA only.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
