"""``python -m mmprune3d``: the same as the console command ``mmprune3d``."""

from __future__ import annotations

import sys

from mmprune3d.cli import main

sys.exit(main())
