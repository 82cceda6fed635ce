"""Pure-torch stand-ins for compiled packages that fairchem-core imports but does not require.

Importing this package appends its own folder to ``sys.path``. Python searches that path in order, so a real
``torch_scatter`` or ``torch_sparse`` in site-packages always wins; the stand-ins are found only where there is none.
The distribution installs a one-line ``.pth`` file that does this import at interpreter start, so that the plain
``fairchem`` command works as well. Nothing heavy is imported here.
"""

import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))

if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)
