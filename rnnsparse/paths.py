"""What a setting that names a file or folder is."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator

# The ~ of a home folder is expanded here: no shell does it in a file, nor behind `section.key=`.
PathName = Annotated[str, AfterValidator(os.path.expanduser)]
