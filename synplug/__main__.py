"""``python -m synplug``."""

from synplug.cli.main import main

raise SystemExit(main())
