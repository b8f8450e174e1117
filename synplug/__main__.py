"""``python -m synplug``."""

from synplug.cli.start import main

raise SystemExit(main())
